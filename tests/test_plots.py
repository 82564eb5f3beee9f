"""Figures: what is drawn is what was measured, matplotlib's settings stay as they were, files are whole and stable."""

import dataclasses

import jax
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

import vgjax as vg
from vgjax import plots
from vgjax.measure.spectrum import Spectrum


def result(log_gain, **axes) -> vg.Result:
    """A sweep of gains that was never run."""
    arrays = {"log_gain": log_gain, "log_mean_square": np.zeros_like(log_gain)}
    dims = {"log_gain": ("layer",), "log_mean_square": ("layer",)}
    return vg.Result("gains", axes, arrays, dims, provenance={"state_size": 16})


def synthetic(shape=(9, 5), depth=8, seeds=2) -> vg.Result:
    """A sweep whose rate is exactly (sigma_w - 1) at every sigma_b."""
    sigma_w, sigma_b = np.linspace(0, 2, shape[0]), np.linspace(0, 1, shape[1])
    rate = np.broadcast_to((sigma_w - 1)[:, None], shape)
    log_gain = np.broadcast_to(rate[..., None] * np.arange(depth + 1), (seeds, *shape, depth + 1))
    return result(log_gain, sigma_w=sigma_w, sigma_b=sigma_b)


def test_rate_and_edge_of_a_known_sweep():
    sweep = synthetic((8, 5))
    np.testing.assert_allclose(sweep.rate(), np.broadcast_to((sweep.axes["sigma_w"] - 1)[:, None], (8, 5)), atol=1e-15)
    np.testing.assert_allclose(sweep.edge(), 1)


def test_edge_is_missing_where_there_is_none():
    sweep = synthetic()
    assert np.isnan(result(np.abs(sweep.log_gain) + np.arange(9), **sweep.axes).edge()).all()


def test_a_dead_network_is_a_rate_of_minus_infinity_and_a_grey_cell():
    sweep = synthetic()
    log_gain = sweep.log_gain.copy()
    log_gain[:, 0, 0, 5:] = -np.inf
    dead = result(log_gain, **sweep.axes)
    assert dead.rate()[0, 0] == -np.inf
    assert np.isfinite(dead.rate()).sum() == dead.rate().size - 1
    mesh = plots.phase_map(dead).axes[0].collections[0]
    assert np.ma.getmaskarray(np.ma.masked_invalid(mesh.get_array())).sum() == 1


def test_phase_map_draws_the_edge_where_it_was_measured():
    figure = plots.phase_map(synthetic())
    assert isinstance(figure, Figure)
    contour = next(c for c in figure.axes[0].collections if type(c).__name__ == "QuadContourSet")
    np.testing.assert_allclose(contour.get_paths()[0].vertices[:, 0], 1)
    texts = " ".join(t.get_text().replace("\n", " ") for t in figure.axes[0].texts)
    assert "gradients vanish" in texts
    assert "gradients explode" in texts


def test_phase_map_says_what_was_swept_as_far_as_it_knows():
    assert plots.describe(synthetic()) == "width 16, 8 layers, 2 draws"
    network = vg.mlp(width=16, depth=8, activation="gelu", inputs=2)
    known = dataclasses.replace(synthetic(seeds=1), networks={"": network})
    assert plots.describe(known) == "gelu, width 16, 8 layers, 1 draw"
    assert plots.phase_map(known).axes[0].get_title() == "gelu, width 16, 8 layers, 1 draw"


def test_phase_map_of_one_axis_of_too_many_and_of_several_networks():
    sweep = synthetic()
    line = result(sweep.log_gain[:, :, 0], sigma_w=sweep.axes["sigma_w"])
    assert len(plots.phase_map(line).axes) == 2  # the panel and its colour bar
    three = result(sweep.log_gain[..., None, :], **sweep.axes, skip=np.ones(1))
    with pytest.raises(
        ValueError, match=r"^a phase map needs one or two axes of at least 2 values, got \{.*'skip': 1\}$"
    ):
        plots.phase_map(three)
    with pytest.raises(ValueError, match=r"^a phase map needs one or two axes .*, got \{'sigma_w': 1\}$"):
        plots.phase_map(result(sweep.log_gain[:, :1, 0], sigma_w=np.ones(1)))
    two = dataclasses.replace(line, networks={"a": None, "b": None}, arrays={"log_gain": sweep.log_gain[:, :, 0]})
    with pytest.raises(ValueError, match=r"^a phase map is of one network, got 2$"):
        plots.phase_map(two)


def test_drawing_leaves_matplotlib_alone(tmp_path):
    before = dict(mpl.rcParams)
    plots.save(plots.phase_map(synthetic()), tmp_path / "map")
    assert dict(mpl.rcParams) == before


def test_saved_figures_are_stable_and_whole(tmp_path):
    for name in ("a", "b"):
        plots.save(plots.phase_map(synthetic()), tmp_path / name)
    for suffix in (".png", ".pdf"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert len(list(tmp_path.iterdir())) == 4


def test_a_failing_save_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match=r"^suffixes must be one of .*, got '.nonsense'"):
        plots.save(plots.phase_map(synthetic()), tmp_path / "map", suffixes=(".nonsense",))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def vanishing() -> tuple[vg.Network, jax.Array]:
    """A deep network that float32 loses at small scales, and its input."""
    network = vg.mlp(width=32, depth=120, activation="tanh", inputs=8, outputs=32)
    return network, jax.random.normal(jax.random.key(0), (8,))


def test_depth_profile_ends_the_float32_reading_where_it_ends(vanishing):
    options = {"key": jax.random.key(1), "seeds": 3, "sigma_w": 0.4}
    flow = vg.sweep(*vanishing, measure=vg.gradients(), **options).log_gradient
    lost = vg.sweep(*vanishing, measure=vg.naive_readings(), **options).lost
    assert flow.shape == lost.shape == (3, 121)
    ax = plots.depth_profile({"tanh": flow}, lost={"tanh": lost}).axes[0]
    cross = next(line for line in ax.lines if line.get_marker() == "X" and len(line.get_xdata()))
    most = lost.mean(axis=0) > 0.5
    assert most.any()
    assert int(cross.get_xdata()[0]) == np.flatnonzero(~most)[0]
    (curve,) = (line for line in ax.lines if line.get_label() == "tanh")
    np.testing.assert_allclose(curve.get_ydata(), flow.mean(axis=0), rtol=1e-6)


def test_depth_profile_says_nothing_of_float32_where_it_is_told_nothing():
    band = vg.theory.Band(np.linspace(-3, 0, 4), np.linspace(1, 0, 4))
    figure = plots.depth_profile({"a": np.arange(4.0), "b": -np.ones((2, 4))}, theory={"a": band})
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", r"theory $\pm$ 1 s.d. of a draw"]
    drawn = [line.get_ydata() for line in ax.lines]
    for expected in (band.mean, band.mean + band.deviation, band.mean - band.deviation):
        assert any(np.array_equal(y, expected) for y in drawn)


def test_the_reading_derived_from_logs_agrees_with_the_plain_pass(vanishing):
    # Forward and backward directions are different draws: their ln gains differ by about 1.5 over these layers, that
    # is by 2 to 3 layers a seed, so by 0.7 in the mean of 16; 2 are three standard errors.
    options = {"key": jax.random.key(1), "seeds": 16, "sigma_w": [0.4, 0.6]}
    derived = vg.sweep(*vanishing, **options).naive_lost("float32").argmax(axis=-1)
    lost = vg.sweep(*vanishing, measure=vg.naive_readings(), **options).lost
    crossed = (~lost).sum(axis=-1)  # layers that plain float32 still reads, from the last one back
    assert np.all(crossed.mean(axis=0) < 120)
    assert np.all(np.abs(crossed.mean(axis=0) - derived.mean(axis=0)) <= 2)


def test_a_spectrum_is_drawn_as_it_is_with_what_is_lost_in_the_legend():
    values = np.array([[0.0, -1.0, -2.0], [-10.0, -3000.0, -np.inf]])
    figure = plots.spectrum(Spectrum(np.array([1, 50]), values, 1.0, 51), title="two depths")
    drawn = [line.get_ydata() for line in figure.axes[0].lines[:2]]
    np.testing.assert_array_equal(drawn[0], values[0])
    np.testing.assert_array_equal(drawn[1], values[1, :2])
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["1 layer", "50 layers, 1 of 3 lost"]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_a_profile_of_any_number_of_curves_runs_from_what_vanishes_to_what_explodes(count):
    slopes = np.linspace(-1, 1, count)[::-1]
    figure = plots.depth_profile({f"{slope}": slope * np.arange(6.0)[::-1] for slope in slopes})
    colours = {line.get_label(): line.get_color() for line in figure.axes[0].get_lines()}
    drawn = [colours[f"{slope}"] for slope in sorted(slopes)]
    assert len(set(drawn)) == count
    ends = {1: [plots.CRITICAL] * 2, 2: [plots.VANISHING, plots.EXPLODING], 3: [plots.VANISHING, plots.EXPLODING]}
    assert [drawn[0], drawn[-1]] == ends.get(count, [plots.VANISHING, plots.EXPLODING])
