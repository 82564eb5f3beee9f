"""Figures: what is drawn is what was measured, matplotlib's settings stay as they were, files are whole and stable."""

import jax
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

import vgjax as vg
from vgjax import plots
from vgjax.ensembles.result import Sweep


def synthetic(shape=(9, 5), depth=8, seeds=2) -> Sweep:
    """A sweep whose rate is exactly (sigma_w - 1) at every sigma_b."""
    sigma_w, sigma_b = np.linspace(0, 2, shape[0]), np.linspace(0, 1, shape[1])
    rate = np.broadcast_to((sigma_w - 1)[:, None], shape)
    log_gain = np.broadcast_to(rate[..., None] * np.arange(depth + 1), (seeds, *shape, depth + 1))
    left = np.full((seeds, *shape), depth + 1)
    return Sweep({"sigma_w": sigma_w, "sigma_b": sigma_b}, log_gain, np.zeros_like(log_gain), left, 16)


def test_rate_and_edge_of_a_known_sweep():
    sweep = synthetic((8, 5))
    assert np.allclose(sweep.rate(), (sweep.axes["sigma_w"] - 1)[:, None])
    assert np.allclose(sweep.edge(), 1)


def test_edge_is_missing_where_there_is_none():
    sweep = synthetic()
    growing = Sweep(
        sweep.axes, np.abs(sweep.log_gain) + np.arange(9), sweep.log_mean_square, sweep.first_inexact_layer, 16
    )
    assert np.isnan(growing.edge()).all()


def test_a_dead_network_is_a_rate_of_minus_infinity():
    sweep = synthetic()
    log_gain = sweep.log_gain.copy()
    log_gain[:, 0, 0, 5:] = -np.inf
    rate = Sweep(sweep.axes, log_gain, sweep.log_mean_square, sweep.first_inexact_layer, 16).rate()
    assert rate[0, 0] == -np.inf
    assert np.isfinite(rate).sum() == rate.size - 1


def test_phase_map_draws_the_edge_where_it_was_measured():
    figure = plots.phase_map(synthetic())
    assert isinstance(figure, Figure)
    contour = next(c for c in figure.axes[0].collections if type(c).__name__ == "QuadContourSet")
    assert np.allclose(contour.get_paths()[0].vertices[:, 0], 1)
    texts = " ".join(t.get_text().replace("\n", " ") for t in figure.axes[0].texts)
    assert "gradients vanish" in texts
    assert "gradients explode" in texts


def test_phase_map_of_one_axis_and_of_too_many():
    sweep = synthetic()
    line = Sweep(
        {"sigma_w": sweep.axes["sigma_w"]},
        sweep.log_gain[:, :, 0],
        sweep.log_mean_square[:, :, 0],
        sweep.first_inexact_layer[:, :, 0],
        16,
    )
    assert len(plots.phase_map(line).axes) == 2  # the panel and its colour bar
    with pytest.raises(ValueError, match="one or two axes of at least 2 values"):
        plots.phase_map(Sweep({**sweep.axes, "x": np.ones(3)}, *[None] * 3, 16))


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
    with pytest.raises(ValueError, match="not supported"):
        plots.save(plots.phase_map(synthetic()), tmp_path / "map", suffixes=(".nonsense",))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def vanishing() -> tuple[vg.Network, jax.Array]:
    """A deep network that float32 loses at small scales, and its input."""
    network = vg.mlp(width=32, depth=120, activation="tanh", inputs=8, outputs=32)
    return network, jax.random.normal(jax.random.key(0), (8,))


def test_depth_profile_ends_the_float32_reading_where_it_ends(vanishing):
    scales = vg.Scales(sigma_w=np.float32(0.4))
    flow = vg.profile(*vanishing, key=jax.random.key(1), seeds=3, scales=scales, naive=("float32",))
    assert flow.log_gradient.shape == (3, 121)
    ax = plots.depth_profile({"tanh": flow}).axes[0]
    cross = next(line for line in ax.lines if line.get_marker() == "X" and len(line.get_xdata()))
    lost = flow.naive["float32"].mean(axis=0) > 0.5
    assert lost.any()
    assert int(cross.get_xdata()[0]) == np.flatnonzero(~lost)[0]


def test_the_reading_derived_from_logs_agrees_with_the_plain_pass(vanishing):
    # Forward and backward directions are different draws: their ln gains differ by about 1.5 over these layers, that
    # is by 2 to 3 layers a seed, so by 0.7 in the mean of 16.
    sigma_w = np.float32([0.4, 0.6])
    sweep = vg.sweep(*vanishing, key=jax.random.key(1), seeds=16, sigma_w=sigma_w)
    derived = sweep.lost("float32").argmax(axis=-1)
    for i, scale in enumerate(sigma_w):
        scales = vg.Scales(sigma_w=scale)
        flow = vg.profile(*vanishing, key=jax.random.key(1), seeds=16, scales=scales, naive=("float32",))
        crossed = (~flow.naive["float32"]).sum(axis=1)  # layers that plain float32 still reads, from the last one back
        assert abs(crossed.mean() - derived[:, i].mean()) <= 2


def test_a_spectrum_is_drawn_as_it_is_with_what_is_lost_in_the_legend():
    values = np.array([[0.0, -1.0, -2.0], [-10.0, -3000.0, -np.inf]])
    figure = plots.spectrum(vg.measure.Spectrum(np.array([1, 50]), values, 1.0, 51), title="two depths")
    drawn = [line.get_ydata() for line in figure.axes[0].lines[:2]]
    np.testing.assert_array_equal(drawn[0], values[0])
    np.testing.assert_array_equal(drawn[1], values[1, :2])
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["1 layer", "50 layers, 1 of 3 lost"]
