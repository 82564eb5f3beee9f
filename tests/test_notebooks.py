"""In a notebook a result is a table, a figure shows itself, and work has a progress bar."""

import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest

import vgjax as vg
from vgjax.ensembles import notebook, runner


@pytest.fixture(scope="module")
def measured():
    net = vg.mlp(width=8, depth=5, activation="tanh", inputs=4)
    return vg.sweep(net, np.ones(4), key=jax.random.key(0), seeds=2, sigma_w=[0.5, 2.0])


def test_a_figure_is_its_own_picture_and_settings_stay(measured):
    import matplotlib as mpl

    before = mpl.rcParams.copy()
    picture = vg.plots.depth_profile({"tanh": measured.log_gain[:, 0]})._repr_png_()
    assert picture.startswith(b"\x89PNG")
    assert mpl.rcParams == before


def test_a_figure_can_be_pickled():
    figure = vg.plots.depth_profile({"a": [0.0, -1.0, -2.0]})
    assert pickle.loads(pickle.dumps(figure))._repr_png_() == figure._repr_png_()


def test_a_notebook_shows_it_with_nothing_configured(tmp_path):
    """IPython's own display machinery, without pyplot and without a magic."""
    pytest.importorskip("IPython")
    code = (
        "from IPython.core.formatters import DisplayFormatter; import vgjax as vg;"
        "found, _ = DisplayFormatter().format(vg.plots.depth_profile({'a': [0.0, -1.0, -2.0]}));"
        "print(sorted(found))"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert shown.stdout.strip() == "['image/png', 'text/plain']"


def test_a_result_is_a_table_with_a_picture_of_each_variable_against_the_layer(measured):
    page = measured._repr_html_()
    assert page.count("<tr>") == 1 + len(measured.arrays)
    layered = [name for name in measured.arrays if "layer" in measured.dims[name]]
    assert page.count("<svg") == page.count("<path") == len(layered) > 0


def test_the_picture_is_of_the_mean_and_breaks_where_nothing_is_finite():
    values = np.array([[0.0, 1.0, -np.inf, 1.0, 2.0], [0.0, 3.0, np.nan, 3.0, 2.0]])
    page = notebook.table("t", {"a": values}, {"a": ("seed", "layer")})
    right, bottom, middle = notebook.WIDTH - 1, notebook.HEIGHT - 1, notebook.HEIGHT / 2
    step = (notebook.WIDTH - 2) / 4
    expected = f"M1.0 {bottom:.1f}L{1 + step:.1f} 1.0M{1 + 3 * step:.1f} 1.0L{right:.1f} 1.0"
    assert f'd="{expected}"' in page  # means 0, 2, none, 2, 2
    assert "0, 3</td>" in page
    flat = notebook.table("t", {"a": values[:, 3:4] * [[1, 1]]}, {"a": ("seed", "layer")})
    assert f"{middle:.1f}" in flat
    empty = notebook.table("t", {"<a>": values * np.nan}, {"<a>": ("seed", "layer")})
    assert "<svg" not in empty
    assert "&lt;a&gt;" in empty
    assert "nothing finite" in empty


@pytest.mark.parametrize("kernel", [False, True])
def test_work_has_a_bar_in_a_notebook_and_none_in_a_pipe(monkeypatch, kernel):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    if kernel:
        monkeypatch.setitem(sys.modules, "ipykernel", sys)
        monkeypatch.setattr(runner.importlib.util, "find_spec", lambda name: None)  # no widgets: a bar of text
    with runner.progress_bar(3, "work") as bar:
        assert bar.disable is not kernel
    with runner.progress_bar(3, "work", False) as bar:
        assert bar.disable
