"""The command line: it draws the map, says where, and refuses bad input in one sentence before any work."""

import re

import jax
import numpy as np
import pytest

import vgjax as vg
from vgjax.cli import main

SMALL = ("--points", "5", "--width", "16", "--depth", "12", "--seeds", "2", "--quiet")


def test_map_writes_figures_and_data_and_says_where(tmp_path, capsys):
    assert main(["map", *SMALL, "--out", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr().out
    names = {"map.npz", "map.png", "map.pdf", "profile.png", "profile.pdf"}
    assert {path.name for path in (tmp_path / "new").iterdir()} == names
    assert all(str(tmp_path / "new" / name) in printed for name in names)
    saved = vg.load(tmp_path / "new" / "map.npz")
    assert saved.log_gain.shape == (2, 5, 5, 13)
    assert saved.lead == ("seed", "sigma_w", "sigma_b")
    assert "tanh, width 16, 12 layers, 2 draws: at sigma_b = 0 " in printed  # the grid's value nearest to 0.05
    assert re.search(r"theory, infinite width: the edge of chaos lies at sigma_w = [\d.]+\n", printed)
    assert re.search(r"tanh: theory and measurement (agree|differ): root mean square z [\d.]+ over 25 points", printed)


def test_map_is_the_same_bytes_twice(tmp_path):
    for name in ("a", "b"):
        assert main(["map", *SMALL, "--sigma-w", "1", "2", "--out", str(tmp_path / name)]) == 0
    for path in (tmp_path / "a").glob("*.p*"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--activation", "tanb"], "did you mean 'tanh'"),
        (["--sigma-w", "-1", "2"], "--sigma-w must be finite and not negative, got -1"),
        (["--sigma-w", "2", "1"], "--sigma-w must run from a smaller to a larger value, got 2 1"),
        (["--sigma-b", "0", "nan"], "--sigma-b must be finite and not negative, got nan"),
        (["--points", "1"], "points must be at least 2"),
        (["--width", "0"], "width must be at least 1, got 0"),
        (["--depth", "0"], "depth must be at least 1, got 0"),
        (["--seeds", "0"], "seeds must be at least 1, got 0"),
        (["--kernel-init", "gausian"], "did you mean 'gaussian'"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(tmp_path, capsys, arguments, sentence):
    out = tmp_path / "out"
    assert main(["map", *SMALL, *arguments, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(f"vgjax: .*{re.escape(sentence)}.*\n", said)
    assert not out.exists()


def test_an_unwritable_folder_is_noticed_before_any_work(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["map", *SMALL, "--out", str(tmp_path / "file" / "below")]) == 2
    assert re.match("vgjax: out must be a folder that can be written to, got '.*below'", capsys.readouterr().err)


def test_the_measured_edge_of_relu_is_the_square_root_of_two():
    net, x = vg.mlp(width=128, depth=40, activation="relu", inputs=64), np.ones(64)
    found = vg.sweep(net, x, key=jax.random.key(0), seeds=4, sigma_w=np.linspace(1, 2, 7), sigma_b=np.linspace(0, 1, 7))
    # Mean of logs at finite width: the edge sits where ln(sigma_w^2 / 2) = beta / 2, and ln ||J u||^2 has variance
    # beta, both a layer, beta = 5 / width. Over 20 layers and 4 seeds that leaves a standard error in sigma_w of:
    edge, beta = found.edge(), 5 / 128
    error = np.sqrt(2) * np.sqrt(beta / (20 * 4)) / 2
    assert np.abs(edge - np.sqrt(2) * np.exp(beta / 4)).max() < 4 * error
