"""Pictures of training, from numbers made by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

import vgjax as vg
from vgjax import plots
from vgjax.plots.learning import intensity


def swept(shape: tuple[int, ...], axes: dict[str, np.ndarray], steps: int = 20) -> vg.TrainingSweep:
    """Trainings of one seed whose loss falls where the first axis is low and grows where it is high."""
    rate = np.linspace(-1, 1, shape[0]).reshape(-1, *[1] * len(shape[1:]))
    growth = np.broadcast_to(rate, shape)[None]
    loss = np.exp(growth[..., None] * np.arange(steps))
    accuracy = np.where(growth < 0, 0.9, 0.1)[..., None]
    none = np.full((1, *shape, 1, 2), np.nan)
    return vg.TrainingSweep(
        axes, np.array([steps]), np.full((1, *shape), steps), loss, accuracy, accuracy, accuracy, accuracy, none
    )


def test_a_boundary_is_blue_where_training_converges_and_red_elsewhere():
    axes = {"learning_rate_stem": np.geomspace(1, 100, 8), "learning_rate_blocks": np.geomspace(1, 100, 5)}
    sweep = swept((8, 5), axes)
    figure = plots.trainability_boundary(sweep, sweep, titles=["one", "two"])
    mesh = figure.axes[0].collections[0]
    shade = np.asarray(mesh.get_array()).reshape(5, 8).T
    np.testing.assert_array_equal(shade > 0, sweep.converged[0])
    assert figure.axes[0].get_xscale() == "log"
    assert "first layer" in figure.axes[0].get_xlabel()
    assert [ax.get_title() for ax in figure.axes] == ["one", "two"]


def test_intensity_ranks_within_each_side():
    loss = np.array([[1, 0.1], [1, 0.5], [1, 2.0], [1, 30.0]])
    np.testing.assert_allclose(intensity(loss, np.array([True, True, False, False])), [1, 0.15, -0.15, -1])


def test_a_lost_training_is_the_darkest_red():
    loss = np.array([[1, 2.0, 4.0], [1, np.inf, np.nan]])
    np.testing.assert_allclose(intensity(loss, np.array([False, False])), [-0.15, -1])


def test_the_trainability_map_shows_the_accuracy_and_the_theory():
    axes = {"depth": np.array([10, 20, 30]), "learning_rate": np.array([0.1, 1]), "sigma_w": np.sqrt([1.0, 1.5, 2.0])}
    sweep = swept((3, 2, 3), axes)
    xi, lost = np.array([4.0, 20.0, 5.0]), np.array([15.0, np.nan, 25.0])
    figure = plots.trainability_map(sweep, xi=xi, multiples=(1, 6), lost=lost)
    ax = figure.axes[0]
    shown = np.asarray(ax.collections[0].get_array()).reshape(3, 3)
    np.testing.assert_array_equal(shown, sweep.best())
    lines = {line.get_label(): line for line in ax.get_lines()}
    np.testing.assert_allclose(lines[r"6 $\xi_c$"].get_data(), [[1.0, 1.5, 2.0], 6 * xi])
    np.testing.assert_allclose(lines["float32 reads 0"].get_ydata(), lost)


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
    looks = SimpleNamespace(log_gradient=gradient)
    run = SimpleNamespace(loss=np.geomspace(1, 0.5, 10), steps=np.array([0, 5, 10]), looks=looks)
    figure = plots.training({"shallow": run, "deep": run})
    assert [ax.get_title() for ax in figure.axes][:3] == ["loss", "shallow", "deep"]
    assert all(path.stat().st_size > 1000 for path in plots.save(figure, tmp_path / "runs"))
