"""Pictures of training, from numbers made by hand."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest

import vgjax as vg
from vgjax import plots
from vgjax.plots.learning import intensity
from vgjax.training import trainability

DATA = vg.data.Examples(np.zeros((4, 2), np.float32), np.zeros((4, 2), np.float32))


def swept(*shape: int, seeds: int = 1, depths: Sequence[int] = (), **axes: np.ndarray) -> vg.Result:
    """Trainings whose loss falls where the first axis is low and grows where it is high, the border one step further
    for every seed."""
    places = np.arange(shape[0]) - (shape[0] - 1) / 2
    growth = (places - np.arange(seeds)[:, None]).reshape(seeds, shape[0], *[1] * len(shape[1:])) / shape[0]
    growth = np.broadcast_to(growth, (seeds, *shape))
    if depths:  # the first axis is that of networks
        growth = np.moveaxis(growth, 1, 0)
    accuracy = np.where(growth < 0, 0.9, 0.1)[..., None]
    arrays = {"loss": np.exp(growth[..., None] * np.arange(20)), "first_nonfinite": np.full(growth.shape, 20)}
    arrays = vg.trainings(DATA).finish(arrays | {"train_accuracy": accuracy, "test_accuracy": accuracy}, "")
    networks = {f"depth {depth}": vg.mlp(width=2, depth=depth, inputs=2) for depth in depths}
    dims = {name: trainability.Trainings.dims[name] for name in arrays}
    return vg.Result("trainings", axes, arrays, dims, networks=networks or {"": vg.mlp(width=2, depth=1, inputs=2)})


def shades(ax: Any, *shape: int) -> np.ndarray:
    return np.asarray(ax.collections[0].get_array()).reshape(shape).T


@pytest.mark.parametrize("seed", [0, 1])
def test_a_boundary_is_blue_where_training_converges_and_red_elsewhere(seed: int) -> None:
    """That of the seed that is asked for."""
    rates = {"learning_rate_stem": np.geomspace(1, 100, 8), "learning_rate_blocks": np.geomspace(1, 100, 5)}
    result = swept(8, 5, seeds=2, **rates)
    figure = plots.trainability_boundary(result, result, titles=["one", "two"], seed=seed)
    np.testing.assert_array_equal(shades(figure.axes[0], 5, 8) > 0, result.converged[seed])
    assert not np.array_equal(*result.converged)
    assert figure.axes[0].get_xscale() == "log"
    assert "first layer" in figure.axes[0].get_xlabel()
    assert [ax.get_title() for ax in figure.axes] == ["one", "two"]
    with pytest.raises(ValueError, match="seed must be whole numbers from 0 to 1, got 2"):
        plots.trainability_boundary(result, seed=2)


def test_intensity_ranks_within_each_side():
    loss = np.array([[1, 0.1], [1, 0.5], [1, 2.0], [1, 30.0]])
    np.testing.assert_allclose(intensity(loss, np.array([True, True, False, False])), [1, 0.15, -0.15, -1])


def test_a_lost_training_is_the_darkest_red():
    loss = np.array([[1, 2.0, 4.0], [1, np.inf, np.nan]])
    np.testing.assert_allclose(intensity(loss, np.array([False, False])), [-0.15, -1])


def test_the_trainability_map_shows_the_accuracy_and_the_theory() -> None:
    depths, variance = [10, 20, 30], np.array([1.0, 1.5, 2.0])
    result = swept(3, 2, 3, depths=depths, learning_rate=np.array([0.1, 1]), sigma_w=np.sqrt(variance))
    xi, lost = np.array([4.0, 20.0, 5.0]), np.array([15.0, np.nan, 25.0])
    figure = plots.trainability_map(result, xi=xi, multiples=(1, 6), lost=lost)
    ax = figure.axes[0]
    np.testing.assert_array_equal(shades(ax, 3, 3).T, vg.training.best(result))
    assert len(np.unique(vg.training.best(result))) == 2
    lines = {line.get_label(): line for line in ax.get_lines()}
    np.testing.assert_allclose(lines[r"6 $\xi_c$"].get_data(), [variance, 6 * xi])
    np.testing.assert_allclose(lines["float32 reads 0"].get_ydata(), lost)
    np.testing.assert_allclose(ax.get_ylim(), [5, 35])


def test_losses_end_in_a_cross_where_they_are_lost():
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    plots.draw_losses(ax, {"fine": np.geomspace(1, 0.1, 10), "lost": np.array([1, 5.0, 25, np.inf, np.nan])})
    cross = [line for line in ax.get_lines() if line.get_marker() == "X"]
    assert len(cross) == 1
    np.testing.assert_allclose(cross[0].get_data(), [[2], [25.0]])


@pytest.mark.parametrize("lost", [False, True])
def test_runs_side_by_side(tmp_path, lost):
    gradient = np.linspace(-20, 0, 12).reshape(3, 4)
    if lost:
        gradient[1, 0] = -np.inf
    nothing = np.full(3, np.nan)
    snapshots = vg.training.Snapshots(np.array([0, 5, 10]), *[nothing] * 4, gradient, gradient)
    network = vg.mlp(width=2, depth=3, inputs=2)
    parameters = vg.init(jax.random.key(0), network)
    run = vg.training.Training(snapshots, np.geomspace(1, 0.5, 10), np.int32(10), parameters, vg.Scales())
    figure = plots.training({"shallow": run, "deep": run})
    assert [ax.get_title() for ax in figure.axes][:3] == ["loss", "shallow", "deep"]
    assert all(path.stat().st_size > 1000 for path in plots.save(figure, tmp_path / "runs"))
