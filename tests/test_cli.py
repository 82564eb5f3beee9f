"""The command line: it draws the map, says where, and refuses bad input in one sentence before any work."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import vgjax as vg
from vgjax.cli import _parser, main

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
    assert main(["map", *SMALL, "--out", str(tmp_path / "new"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {Path(name).name for name in said["files"]} == names
    assert said["edge"] == pytest.approx(float(saved.edge("sigma_w")[0]))
    assert said["verdict"] in printed


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


# --- theory, remedies, and answers as JSON --------------------------------------------------------------------------


def test_theory_says_what_the_library_says(capsys):
    assert main(["theory", "--sigma-w", "1.5", "--sigma-b", "0.05", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    point = vg.theory.mean_field("tanh", 1.5, 0.05)
    for name in ("q_star", "chi", "c_star", "xi_q", "xi_c", "xi_grad"):
        assert said[name] == float(getattr(point, name)), name
    band = vg.theory.band("tanh", [256] * 101, 1.5, 0.05)
    assert (said["log_gain_mean"], said["log_gain_deviation"]) == (band.mean[-1], band.deviation[-1])
    assert main(["theory", "--sigma-w", "1.5", "--sigma-b", "0.05"]) == 0
    words = capsys.readouterr().out
    assert words.startswith("tanh, sigma_w = 1.5, sigma_b = 0.05: chaotic: gradients explode, by a factor of 1.066 a")
    assert "the edge of chaos lies at sigma_w = 1.123" in words


def test_theory_without_a_scale_takes_the_edge_or_says_why_there_is_none(capsys):
    assert main(["theory", "--activation", "erf", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["phase"] == "critical"
    assert said["xi_grad"] is None  # infinite, which JSON does not know
    assert main(["theory", "--activation", "relu"]) == 2
    assert "--sigma-w must be given where there is no edge of chaos: chi < 1" in capsys.readouterr().err


def test_remedies_are_those_of_the_library(tmp_path, capsys):
    small = ["--layers", "4", "--width", "8", "--examples", "2", "--seeds", "2", "--quiet", "--out", str(tmp_path)]
    assert main(["remedies", "exploding", *small, "--json", str(tmp_path / "said.json")]) == 0
    table = capsys.readouterr().out
    said = json.loads((tmp_path / "said.json").read_text())
    saved = vg.load(tmp_path / "remedies.npz")
    assert vg.ensembles.remedy_table(saved) in table
    assert [*said["remedies"]] == [*saved.networks]
    assert said["remedies"]["He weights"]["log_ratio"] == pytest.approx(
        saved.log_ratio[[*saved.networks].index("He weights")].mean()
    )
    assert said["files"] == [str(tmp_path / f"remedies.{suffix}") for suffix in ("npz", "png", "pdf")]
    assert all(name in table for name in said["files"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["theory", "--activation", "tanb"], "did you mean 'tanh'"),
        (["theory", "--sigma-w", "-1"], "--sigma-w must be finite and not negative, got -1"),
        (["theory", "--sigma-b", "inf"], "--sigma-b must be finite and not negative, got inf"),
        (["theory", "--depth", "0"], "depth must be at least 1, got 0"),
        (["theory", "--kernel-init", "identity"], "kernel_init must be one of"),
        (["remedies", "vanishing", "--layers", "0"], "layers must be at least 1, got 0"),
        (["remedies", "vanishing", "--seeds", "0"], "seeds must be at least 1, got 0"),
    ],
)
def test_a_bad_question_is_answered_in_one_sentence(capsys, arguments, sentence):
    assert main(arguments) == 2
    assert re.fullmatch(f"vgjax: .*{re.escape(sentence)}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [["draw"], ["remedies", "imploding"], [], ["map", "--points", "many"]])
def test_misuse_is_exit_status_two(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "vgjax" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["map", "theory", "remedies", "diagnose", "explore", "status", "collect"])
def test_help_has_examples_that_can_be_parsed(capsys, name):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    _, _, examples = capsys.readouterr().out.partition("examples:\n")
    lines = [line.partition(" | ")[0].partition("   the ")[0].split() for line in examples.strip().splitlines()]
    assert lines
    for line in lines:
        assert line[:2] == ["vgjax", name]
        _parser().parse_args(line[1:])
