"""Many trainings at once against each alone and against numpy; runs that are stopped; what is read off the result."""

import errno
import itertools
import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import oracles
import pytest
from scipy.special import logsumexp

import vgjax as vg
from vgjax.ensembles import runner
from vgjax.training import trainability

KEY = jax.random.key(5)
STEPS, BATCH, EXAMPLES = 12, 8, 21
NET = vg.mlp(widths=[6, 5], inputs=4, outputs=3, activation="relu")
SIGMA_B = 0.25
TAME = np.array([0.01, 0.02, 0.04, 0.08], np.float32)
WILD = np.array([0.01, 3.0, 0.04, 50.0], np.float32)
SIGMA_W = np.array([0.5, 0.75, 1.0, 1.25], np.float32)
RNG = np.random.default_rng(2)
DATA = vg.data.Examples(
    RNG.normal(size=(EXAMPLES, 4)).astype(np.float32), RNG.normal(size=(EXAMPLES, 3)).astype(np.float32)
)
HELD_OUT = vg.data.Examples(DATA.inputs[:9] + 1, DATA.labels[:9])


@pytest.fixture(scope="module", autouse=True)
def quickly_compiled() -> Iterator[None]:
    """What counts is how long programs compile: they run for milliseconds."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def eight_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches and chunks of 8 trainings: all sweeps of this file run one program, a grid of 32 in 4 chunks."""
    monkeypatch.setattr(trainability, "CACHED", 8 * 44)
    monkeypatch.setattr(trainability, "WORK", 1)


def swept(rates: Any = WILD, **options: Any) -> vg.TrainingSweep:
    """Two seeds, four learning rates, four scales."""
    given = {"data": DATA, "key": KEY, "seeds": 2, "sigma_w": SIGMA_W, "sigma_b": SIGMA_B, "test": HELD_OUT, **options}
    return vg.train_sweep(NET, num_steps=given.pop("num_steps", STEPS), learning_rate=rates, batch_size=BATCH, **given)


@pytest.fixture(scope="module")
def wild() -> vg.TrainingSweep:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainability, "CACHED", 8 * 44)
        patch.setattr(trainability, "WORK", 1)
        return swept()


ARRAYS = ("loss", "first_nonfinite", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "log_gradient")


def assert_same(a: vg.TrainingSweep, b: vg.TrainingSweep) -> None:
    """Bit for bit."""
    assert list(a.axes) == list(b.axes)
    for name in a.axes:
        np.testing.assert_array_equal(a.axes[name], b.axes[name], strict=True)
    for name in (*ARRAYS, "steps"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), strict=True)
    assert (a.fixed, a.provenance) == (b.fixed, b.provenance)


# --- each by itself -------------------------------------------------------------------------------------------------


class Alone(NamedTuple):
    """One training in numpy float32: the loss of every step, the first step that is not finite, the last weights."""

    loss: np.ndarray
    first_nonfinite: int
    weights: list[tuple[np.ndarray, np.ndarray]]


def in_numpy(seed: int, rate: float, sigma_w: float) -> Alone:
    """Gradient descent on half the sum of squares of a ReLU network, forward and back by hand."""
    _, order, _ = jax.random.split(jax.random.fold_in(KEY, seed), 3)
    weights = [tuple(np.float32(a) for a in pair) for pair in oracles.weights(drawn(seed), sigma_w, SIGMA_B)]
    taken = np.asarray(vg.data.batches(order, EXAMPLES, BATCH, STEPS))
    losses, first = [], STEPS
    with np.errstate(over="ignore", invalid="ignore"):
        for t, rows in enumerate(taken):
            loss, gradients = of_batch(weights, DATA.inputs[rows], DATA.labels[rows])
            weights = [
                tuple(a - np.float32(rate) * g for a, g in zip(pair, both, strict=True))
                for pair, both in zip(weights, gradients, strict=True)
            ]
            losses.append(loss)
            if not (np.isfinite(loss) and all(np.isfinite(a).all() for pair in weights for a in pair)):
                first = min(first, t)
    return Alone(np.array(losses), first, weights)


def drawn(seed: int) -> vg.Parameters:
    return vg.init(jax.random.split(jax.random.fold_in(KEY, seed), 3)[0], NET)


def of_batch(weights: Any, xs: np.ndarray, ys: np.ndarray) -> tuple[np.float32, list[Any]]:
    """Mean loss of a batch, and its gradients by layer."""
    inputs, states = [xs], []
    for kernel, bias in weights:
        states.append(inputs[-1] @ kernel + bias)
        inputs.append(np.maximum(states[-1], 0))
    error = states[-1] - ys
    delta, gradients = error / np.float32(len(xs)), []
    for (kernel, _), a, h in zip(reversed(weights), reversed(inputs[:-1]), [*reversed(states[:-1]), None], strict=True):
        gradients.append((a.T @ delta, delta.sum(0)))
        delta = np.where(h > 0, delta @ kernel.T, 0) if h is not None else delta
    return np.sum(np.sum(error**2, axis=1) / 2) / np.float32(len(xs)), gradients[::-1]


def test_every_point_of_a_sweep_is_a_training_by_hand(wild: vg.TrainingSweep) -> None:
    """The axes in their order, every loss, and where it stops being finite; above 1 a loss grows with its rounding."""
    assert list(wild.axes) == ["learning_rate", "sigma_w"]
    assert wild.loss.shape == (2, 4, 4, STEPS)
    assert wild.train_loss.shape == wild.test_accuracy.shape == (2, 4, 4, 1)
    for seed, (i, rate), (j, sigma_w) in itertools.product(range(2), enumerate(WILD), enumerate(SIGMA_W)):
        alone = in_numpy(seed, rate, sigma_w)
        assert wild.first_nonfinite[seed, i, j] == alone.first_nonfinite, (seed, rate, sigma_w)
        if rate < 1:
            np.testing.assert_allclose(wild.loss[seed, i, j], alone.loss, rtol=2e-5)
            for name, data in (("train", DATA), ("test", HELD_OUT)):
                loss = of_batch(alone.weights, *data)[0]
                np.testing.assert_allclose(getattr(wild, f"{name}_loss")[seed, i, j, -1], loss, rtol=2e-5)
    np.testing.assert_array_equal(wild.diverged, wild.first_nonfinite < STEPS)
    assert wild.diverged[:, 3].all()
    assert not wild.diverged[:, [0, 2]].any()
    assert len(np.unique(wild.first_nonfinite)) > 3  # at different steps


def test_neighbours_of_a_lost_network_are_what_they_are_without_it(wild: vg.TrainingSweep) -> None:
    """In one batch with it, bit for bit."""
    tame = swept(np.where(WILD < 1, WILD, TAME))
    assert not tame.diverged.any()
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(tame, name)[:, [0, 2]], getattr(wild, name)[:, [0, 2]])


def test_a_network_alone_is_the_one_in_the_sweep(wild: vg.TrainingSweep) -> None:
    for seed, i, j in ((0, 0, 3), (1, 2, 1), (1, 3, 2)):
        scales = vg.Scales(sigma_w=SIGMA_W[j], sigma_b=SIGMA_B)
        key = jax.random.fold_in(KEY, seed)
        options = {"learning_rate": float(WILD[i]), "batch_size": BATCH, "gradients": False, "record": []}
        alone = vg.train(key, NET, scales, DATA, "sgd", STEPS, test=HELD_OUT, **options)
        assert alone.first_nonfinite == wild.first_nonfinite[seed, i, j]
        if not wild.diverged[seed, i, j]:  # 12 stable steps: a few roundings of float32
            np.testing.assert_allclose(alone.loss, wild.loss[seed, i, j], rtol=2e-6)
            for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
                np.testing.assert_allclose(getattr(alone.looks, name), getattr(wild, name)[seed, i, j], rtol=2e-6)


def test_one_after_the_other_is_the_same_as_together(wild: vg.TrainingSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainability, "CACHED", 1)
    alone = swept()
    assert (wild.provenance["chunks"], alone.provenance["chunks"]) == ([[8, 8]], [[1, 1]])
    np.testing.assert_array_equal(alone.first_nonfinite, wild.first_nonfinite)
    np.testing.assert_allclose(alone.loss[:, [0, 2]], wild.loss[:, [0, 2]], rtol=2e-6)
    np.testing.assert_allclose(alone.train_loss[:, [0, 2]], wild.train_loss[:, [0, 2]], rtol=2e-6)


@pytest.mark.parametrize("memory", [1, 2**40])
def test_a_chunk_fits_the_memory(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least one training; never more at once than its caches, nor more in a chunk than there are."""
    monkeypatch.setattr(trainability.Job, "piece", fake_piece)
    found = swept(memory=memory, seeds=3)
    assert found.provenance["chunks"] == ([[1, 1]] if memory == 1 else [[8, 8]])
    monkeypatch.setattr(trainability, "WORK", 1e30)
    assert swept(memory=2**40, seeds=3, workers=1).provenance["chunks"] == [[48, 8]]
    assert swept(memory=2**40, seeds=3, workers=5).provenance["chunks"] == [[10, 8]]


# --- the axes -------------------------------------------------------------------------------------------------------


def fake_piece(job: trainability.Job, taken: list[int], new: int) -> runner.Arrays:
    """What a chunk would be if a network said nothing but which it is."""
    seed, rates, scales = job.points.take(taken[:new])
    depth, nothing = len(job.plan.task.network.stages), np.zeros((new, 1), np.float32)
    who = [seed, np.full(new, depth), *(rates[name] for name in sorted(rates)), scales.get("sigma_w", 0 * seed)]
    loss = np.stack([np.broadcast_to(a, new) for a in who], axis=1).astype(np.float32)
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    found = {"loss": loss, "first_nonfinite": seed} | dict.fromkeys(names, nothing)
    return found | {"log_gradient": np.ones((new, 1, job.plan.task.network.depth + 1), np.float32)}


def never(*_: Any) -> runner.Arrays:
    """In place of a chunk where nothing may be trained."""
    raise AssertionError("trained, and should have been refused")


def deeper(depth: int) -> vg.Network:
    return vg.mlp(widths=[6, *range(5, 5 + depth)], inputs=4, outputs=3, activation="relu")


def test_axes_are_depth_then_learning_rates_then_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every point says which it is; behind the last layer of a shallower network there is nothing."""
    monkeypatch.setattr(trainability.Job, "piece", fake_piece)
    rates = {"bias": 0.5, "kernel": TAME[:3]}
    about = {"key": KEY, "learning_rate": rates, "batch_size": BATCH, "num_steps": 4, "workers": 2}
    found = vg.train_sweep([deeper(3), deeper(1)], DATA, seeds=5, sigma_w=SIGMA_W[:2], sigma_b=SIGMA_B, **about)
    assert list(found.axes) == ["depth", "learning_rate_kernel", "sigma_w"]
    np.testing.assert_array_equal(found.axes["depth"], [3, 1])
    assert found.fixed == {"learning_rate_bias": 0.5, "sigma_b": SIGMA_B}
    expected = np.stack(np.broadcast_arrays(*np.ix_(range(5), [3, 1], [0.5], TAME[:3], SIGMA_W[:2])), axis=-1)
    np.testing.assert_array_equal(found.loss, expected[:, :, 0])
    assert found.first_nonfinite.shape == (5, 2, 3, 2)
    assert found.log_gradient.shape == (5, 2, 3, 2, 1, 4)
    assert not np.isnan(found.log_gradient[:, 0]).any()
    assert not np.isnan(found.log_gradient[:, 1, ..., :2]).any()
    assert np.isnan(found.log_gradient[:, 1, ..., 2:]).all()


def test_a_sweep_without_axes_is_over_seeds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainability.Job, "piece", fake_piece)
    found = vg.train_sweep(NET, DATA, num_steps=4, key=KEY, seeds=3, batch_size=BATCH)
    assert found.axes == {}
    assert found.loss.shape == (3, 4)
    assert found.fixed == {"learning_rate": 0.01}


def test_gradients_of_networks_of_several_depths() -> None:
    """Layer by layer before the first step, against `jax.grad`."""
    networks = [deeper(1), deeper(2)]
    options = {"learning_rate": 0.02, "batch_size": None, "gradients": True, "record": [0], "sigma_b": SIGMA_B}
    found = vg.train_sweep(networks, DATA, num_steps=2, key=KEY, **options)
    assert found.log_gradient.shape == (1, 2, 2, 3)
    assert found.steps.tolist() == [0, 2]
    assert np.isnan(found.log_gradient[0, 0, :, 2]).all()
    weights_key = jax.random.split(jax.random.fold_in(KEY, 0), 3)[0]
    for i, network in enumerate(networks):
        weights = oracles.weights(vg.init(weights_key, network), 1.0, SIGMA_B)
        truth = oracles.gradients(weights, jax.nn.relu, *DATA, "squared_error")["states"]
        of_batch = (logsumexp(2 * truth, axis=0) - np.log(EXAMPLES)) / 2
        np.testing.assert_allclose(found.log_gradient[0, i, 0, : i + 2], of_batch, rtol=1e-5, atol=1e-5)


# --- runs that are stopped ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [RuntimeError("stop"), KeyboardInterrupt()])
def test_a_sweep_that_was_stopped_goes_on_and_is_the_same_bit_for_bit(
    wild: vg.TrainingSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    real, trained = trainability.Job.piece, []

    def counted(job: trainability.Job, taken: list[int], new: int) -> runner.Arrays:
        if len(trained) == 2:
            raise stop
        trained.append(taken)
        return real(job, taken, new)

    monkeypatch.setattr(trainability.Job, "piece", counted)
    with pytest.raises(type(stop)):
        swept(folder=tmp_path, workers=1)
    assert len(list(tmp_path.glob("*.npz"))) == 2
    trained[:] = [[]]  # one more may be done before it stops again
    with pytest.raises(type(stop)):
        swept(folder=str(tmp_path), workers=1)
    trained.clear()
    (tmp_path / sorted(path.name for path in tmp_path.glob("*.npz"))[1]).write_bytes(b"PK corrupt")
    assert_same(swept(folder=tmp_path, workers=2), wild)
    assert len(trained) == 2  # the one that is missing and the one that is corrupt
    assert_same(swept(folder=tmp_path), wild)  # and none
    assert len(trained) == 2
    assert sorted({path.suffix for path in tmp_path.iterdir()}) == [".json", ".npz"]


def test_a_sweep_goes_on_with_another_number_of_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And another budget: the pieces are those of the run that began it."""
    monkeypatch.setattr(trainability.Job, "piece", fake_piece)
    monkeypatch.setattr(trainability, "WORK", 1e30)
    begun = swept(folder=tmp_path, workers=3)
    assert begun.provenance["chunks"] == [[11, 8]]
    next(tmp_path.glob("*-00001.npz")).unlink()
    assert_same(swept(folder=tmp_path, workers=1, memory=1), begun)
    monkeypatch.setattr(trainability.Job, "piece", never)
    assert_same(swept(folder=tmp_path, workers=7), begun)


def test_a_full_disk_leaves_the_result_whole(
    wild: vg.TrainingSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, real = [], np.savez

    def fills_up(file: Any, **arrays: Any) -> None:
        written.append(file)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, **arrays)

    monkeypatch.setattr(np, "savez", fills_up)
    with pytest.warns(RuntimeWarning, match="takes no more pieces .No space left on device.") as raised:
        found = swept(folder=tmp_path)
    assert len(raised) == 1
    assert_same(found, wild)
    assert len(list(tmp_path.iterdir())) == 2  # the settings and the one piece that fitted
    monkeypatch.undo()


def with_clip(most: float) -> Any:
    return lambda rate: optax.chain(optax.clip_by_global_norm(most), optax.sgd(rate))


OTHERS = {
    "num_steps": {"num_steps": STEPS + 1},
    "key": {"key": jax.random.key(6)},
    "data": {"data": vg.data.Examples(DATA.inputs + 1e-6, DATA.labels)},
    "test": {"test": vg.data.Examples(HELD_OUT.inputs, HELD_OUT.labels + 1e-6)},
    "axes": {"rates": np.nextafter(WILD, 0)},
    "fixed": {"sigma_b": 0.26},
    "seeds": {"seeds": 3},
    "update": {"optimizer": with_clip(1.0000001)},
    "schedule": {"optimizer": with_clip(1.0), "schedule": "cosine"},
    "dtype": {"dtype": "float64"},
    "evaluate": {"evaluate": 7},
    "record": {"record": [0]},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_of_other_settings_is_refused_with_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Before anything is trained; two functions differ if they compute something else."""
    monkeypatch.setattr(trainability.Job, "piece", fake_piece)
    same = {"optimizer": with_clip(1.0), "folder": tmp_path}
    swept(**same)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr(trainability.Job, "piece", never)
    with pytest.raises(ValueError, match=f"folder must hold an earlier run of the same settings, .* in .*{name}"):
        swept(**{**same, **OTHERS[name]})
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    swept(**{**same, "optimizer": with_clip(1.0)})  # another function that computes the same


def test_a_folder_that_is_none_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainability.Job, "piece", never)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"folder must be empty or hold an earlier run, got .* with other files"):
        swept(folder=tmp_path)
    with pytest.raises(ValueError, match=r"folder must be a folder that can be written to, got .*notes\.txt"):
        swept(folder=tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# --- what is read off ----------------------------------------------------------------------------------------------


def made(accuracy: Any, loss: Any = None, first: Any = None, **axes: Any) -> vg.TrainingSweep:
    """A result without a training: last accuracies (seed, *axes), losses (seed, *axes, steps)."""
    accuracy = np.asarray(accuracy, float)[..., None]
    loss = np.ones((*accuracy.shape[:-1], 20)) if loss is None else np.asarray(loss, float)
    first = np.full(loss.shape[:-1], loss.shape[-1]) if first is None else np.asarray(first)
    values = {name: np.asarray(a) for name, a in axes.items()}
    none = np.full(accuracy.shape, np.nan)
    return vg.TrainingSweep(
        values, np.array([20]), first, loss, none, accuracy, none, accuracy / 2, np.full((*accuracy.shape, 3), np.nan)
    )


def test_the_best_is_the_mean_over_seeds_at_the_best_learning_rate_of_every_point() -> None:
    accuracy = np.random.default_rng(1).uniform(size=(3, 2, 4, 5, 6))
    first = np.full(accuracy.shape, 20)
    first[1, 0, 2] = 7  # lost: its answers are wrong
    axes = {"depth": [2, 9], "learning_rate_stem": range(4), "learning_rate_head": range(5), "sigma_w": range(6)}
    found = made(accuracy, first=first, **axes)
    accuracy[1, 0, 2] = 0
    expected = [[max(accuracy[:, d, i, j, k].sum() / 3 for i in range(4) for j in range(5)) for k in range(6)]
                for d in range(2)]  # fmt: skip
    np.testing.assert_allclose(found.best(), expected)
    np.testing.assert_allclose(found.best("test_accuracy"), np.array(expected) / 2)


def test_a_lost_network_with_no_number_counts_as_wrong() -> None:
    found = made([[np.nan, 0.5], [0.8, 0.5]], first=[[3, 20], [20, 20]], sigma_w=[1.0, 2.0])
    np.testing.assert_allclose(found.best(), [0.4, 0.5])


def test_the_trainable_depth_is_the_deepest_that_learns() -> None:
    """Even where a shallower one does not; 0 where none does."""
    accuracy = np.array([[0.9, 0.4, 0.1], [0.3, 0.49, 0.1], [0.5, 0.9, 0.1]])  # (depth, sigma_w)
    found = made(accuracy[None, :, None], depth=[10, 20, 40], learning_rate=[0.1], sigma_w=[1.0, 2.0, 3.0])
    np.testing.assert_array_equal(found.trainable_depth(), [40, 40, 0])
    np.testing.assert_array_equal(found.trainable_depth(0.6), [10, 40, 0])
    np.testing.assert_array_equal(found.trainable_depth(0.26, "test_accuracy"), [10, 40, 0])
    unsorted = made(accuracy[None, :, None], depth=[40, 20, 10], learning_rate=[0.1], sigma_w=[1.0, 2.0, 3.0])
    np.testing.assert_array_equal(unsorted.trainable_depth(), [40, 10, 0])
    with pytest.raises(ValueError, match="a trainable depth needs a sweep over depth, got axes sigma_w"):
        made([[0.5]], sigma_w=[1.0]).trainable_depth()


def test_converged_is_finite_and_lower_than_at_first() -> None:
    loss = np.ones((5, 20))
    loss[0, -2:] = 0.9  # the last tenth
    loss[1, -2:] = [0.1, 1.95]  # on average above
    loss[2, 1:-2] = 0.1  # lower on the way, but not at the end
    loss[3, -2:] = 0.1
    loss[4, 5:] = np.nan
    found = made(np.zeros((1, 5)), loss[None], [[20, 20, 20, 19, 5]], learning_rate=range(5))
    np.testing.assert_array_equal(found.converged, [[True, False, False, False, False]])
    np.testing.assert_array_equal(found.diverged, [[False, False, False, True, True]])
    short = made(np.zeros((1, 2)), [[[2.0, 1.0, 1.5], [2.0, 1.0, 2.5]]], sigma_w=[1.0, 2.0])  # at least one step
    np.testing.assert_array_equal(short.converged, [[True, False]])


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".nc"])
def test_what_is_saved_is_loaded_whole(wild: vg.TrainingSweep, tmp_path: Path, suffix: str) -> None:
    loaded = vg.load(wild.save(tmp_path / f"result{suffix}"))
    assert type(loaded) is vg.TrainingSweep
    assert_same(loaded, wild)
    np.testing.assert_array_equal(loaded.converged, wild.converged)


@pytest.mark.parametrize("suffix", [".npz", ".nc"])
def test_a_result_over_seeds_alone_and_one_over_depths_are_loaded_whole(tmp_path: Path, suffix: str) -> None:
    for found in (made([0.1, 0.9]), made(np.zeros((2, 3, 1)), depth=[1, 2, 5], learning_rate_stem=[0.1])):
        loaded = vg.load(found.save(tmp_path / f"result{suffix}"))
        assert_same(loaded, found)


def test_a_dataset_is_labelled(wild: vg.TrainingSweep) -> None:
    data = wild.to_xarray()
    assert data["loss"].dims == ("seed", "learning_rate", "sigma_w", "update")
    assert data["log_gradient"].dims == ("seed", "learning_rate", "sigma_w", "step", "layer")
    point = data["loss"].sel(seed=1, learning_rate=WILD[2], sigma_w=0.75, update=7)
    assert float(point) == wild.loss[1, 2, 1, 7]
    assert data["steps"].values.tolist() == [STEPS]
    assert data["log_gradient"].attrs["units"] == "natural logarithm"


# --- the border -----------------------------------------------------------------------------------------------------


def grid(points: int, inside: Any) -> np.ndarray:
    """A condition on the unit square, at the centres of its cells."""
    x = (np.arange(points) + 0.5) / points
    return inside(*np.meshgrid(x, x, indexing="ij"))


@pytest.mark.parametrize(
    "inside",
    [
        lambda x, y: y < 0.31 + 0.37 * x,
        lambda x, y: x < 0.44 + 0.13 * y,
        lambda x, y: (x - 0.52) ** 2 + (y - 0.47) ** 2 < 0.38**2,
    ],
)
def test_smooth_borders_have_dimension_1(inside: Any) -> None:
    counted = vg.box_dimension(grid(256, inside))
    assert counted.dimension == pytest.approx(1, abs=0.05)
    assert counted.sizes.tolist() == [1, 2, 4, 8, 16, 32]


def test_closed_smooth_borders_have_dimension_1_to_a_hundredth() -> None:
    for inside in (lambda x, y: np.hypot(x - 0.5, y - 0.5) < 0.31, lambda x, y: np.abs(x - 0.5) + 2 * y < 1.7):
        inner = grid(200, inside) & grid(200, lambda x, y: (x > 0.1) & (y > 0.1) & (x < 0.9) & (y < 0.9))
        assert vg.box_dimension(inner).dimension == pytest.approx(1, abs=0.01)


def test_a_random_half_fills_the_plane() -> None:
    """Every box on the grid: in 8 x 8 of the largest, 9 x 9 of those that hang over its edges, 255 cells along it."""
    counted = vg.box_dimension(np.random.default_rng(0).random((256, 256)) < 0.5)
    assert counted.dimension == pytest.approx(2, abs=0.1)
    assert counted.counts[-1] == pytest.approx(((255 + 31) / 32) ** 2)


def koch_island(levels: int, points: int) -> np.ndarray:
    """A square whose sides are replaced by 8 of a quarter of their length, again and again, down to steps of 1."""
    steps = np.array([1, 1j, -1, -1j])
    for _ in range(levels):
        steps = np.ravel(steps[:, None] * np.array([1, 1j, 1, -1j, -1j, 1, 1j, 1]))
    ends = np.cumsum(steps)
    upright = steps.real == 0
    low = np.minimum(ends, ends - steps)[upright]  # sorts by the real part first, which both share
    x, y = (part.round().astype(int) + points // 2 - 2 * 4 ** (levels - 1) for part in (low.real, low.imag))
    crossed = np.zeros((points, points), bool)
    np.logical_xor.at(crossed, (x, y), True)
    return np.logical_xor.accumulate(crossed, axis=0)


def test_the_dimension_of_a_quadratic_koch_island_is_found() -> None:
    """ln 8 / ln 4: Mandelbrot 1982, "The fractal geometry of nature", plate 49. Its area stays that of the square."""
    island = koch_island(4, 512)
    assert island.sum() == 4**8
    assert vg.box_dimension(island).dimension == pytest.approx(1.5, abs=0.05)


def test_the_dimension_of_a_sierpinski_triangle_is_found() -> None:
    """The odd numbers in Pascal's triangle: ln 3 / ln 2."""
    i = np.arange(512)
    assert vg.box_dimension((i[:, None] & i) == 0).dimension == pytest.approx(np.log2(3), abs=0.05)


def test_boxes_are_counted_as_by_hand() -> None:
    """On a grid whose sides are no powers of 2: all ways to lay the boxes, one after the other."""
    inside = np.random.default_rng(3).random((37, 45)) < 0.02
    counted = vg.box_dimension(inside)
    border = {(i, j) for i, j in np.ndindex(36, 44) if len({*inside[i : i + 2, j], *inside[i : i + 2, j + 1]}) == 2}
    assert counted.sizes.tolist() == [1, 2, 4]
    for size, count in zip(counted.sizes, counted.counts, strict=True):
        ways = [len({((i + a) // size, (j + b) // size) for i, j in border}) for a, b in np.ndindex(size, size)]
        assert count == pytest.approx(np.mean(ways))
    slope = np.polynomial.Polynomial.fit(np.log(counted.sizes), np.log(counted.counts), 1).convert().coef[1]
    assert counted.dimension == pytest.approx(-slope)


def test_where_there_is_no_border_there_is_no_dimension() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counted = vg.box_dimension(np.ones((40, 40)))
    assert np.isnan(counted.dimension)
    assert not counted.counts.any()
    for shape in ((31, 40), (40,), (2, 40, 40)):
        with pytest.raises(ValueError, match="converged must be a grid of at least 32 x 32 points, got shape"):
            vg.box_dimension(np.ones(shape))


def bordered(x: Any, y: Any, inside: Any) -> vg.TrainingSweep:
    """A sweep over two axes that converges inside."""
    i, j = np.meshgrid(np.arange(len(x)), np.arange(len(y)), indexing="ij")
    loss = np.ones((len(x), len(y), 10))
    loss[inside(i, j), 1:] = 0.5
    return made(np.zeros((1, len(x), len(y))), loss[None], learning_rate=x, sigma_w=y)


@pytest.mark.parametrize("ends", [(1e-3, 10.0), (1e-12, 1e-9), (1e3, 1e7)])
def test_zoom_keeps_equal_ratios_and_shrinks_by_the_factor(ends: tuple[float, float]) -> None:
    """Around a border: a line between two places of one axis, densest where a corner stands out of it."""
    x, y = np.geomspace(*ends, 40), np.linspace(-2, 3, 64)
    closer = vg.zoom(bordered(x, y, lambda i, j: i < 25), 8.0, points=11)
    assert list(closer) == ["learning_rate", "sigma_w"]
    rates = closer["learning_rate"]
    np.testing.assert_allclose(rates[1:] / rates[:-1], (ends[1] / ends[0]) ** (1 / 8 / 10), rtol=1e-9)
    assert rates[5] == pytest.approx(np.sqrt(x[24] * x[25]))
    np.testing.assert_allclose(np.diff(closer["sigma_w"]), 5 / 8 / 10, rtol=1e-9)
    assert y[0] <= closer["sigma_w"][0] < closer["sigma_w"][-1] <= y[-1]
    assert rates.dtype == closer["sigma_w"].dtype == np.float64
    assert {len(values) for values in closer.values()} == {11}


def test_a_zoom_at_a_corner_stays_on_the_plane() -> None:
    """And holds the border: no negative rates beside a rate of 0."""
    x = np.linspace(0, 1, 40)
    low, high = (bordered(x, x, f) for f in (lambda i, j: (i < 1) & (j < 1), lambda i, j: (i < 39) | (j < 39)))
    for values in vg.zoom(low, 10.0).values():
        np.testing.assert_allclose(values, np.linspace(0, 0.1, 40), atol=1e-15)
    for values in vg.zoom(high, 10.0).values():
        np.testing.assert_allclose(values, np.linspace(0.9, 1, 40))
        assert values.max() <= 1


def test_zoom_goes_to_where_the_border_is_densest() -> None:
    """A straight line, and a checkerboard of 6 x 6 points around one place on it."""
    x, y = np.linspace(1, 2, 40), np.linspace(1, 5, 50)

    def inside(i: Any, j: Any) -> Any:
        near = (np.abs(i - 20.5) < 3) & (np.abs(j - 30.5) < 3)
        return np.where(near, (i + j) % 2 == 0, i < 20)

    closer = vg.zoom(bordered(x, y, inside), 4.0)
    assert {name: len(values) for name, values in closer.items()} == {"learning_rate": 40, "sigma_w": 50}
    middle = [np.mean(values) for values in closer.values()]
    assert np.abs(np.array(middle) - [x[20], y[30]]).max() < 0.25
    for values, wide in zip(closer.values(), (1, 4), strict=True):
        assert np.ptp(values) == pytest.approx(wide / 4)
    again = vg.zoom(bordered(*closer.values(), inside), 4.0)  # a zoom can be zoomed
    assert np.ptp(again["sigma_w"]) == pytest.approx(1 / 4)


def test_zoom_goes_to_the_border_nearest_to_where_it_is_told() -> None:
    """On a diagonal, nearest in steps of the grid, whatever their lengths."""
    x, y = np.geomspace(0.01, 1, 41), np.linspace(1, 2, 41)
    closer = vg.zoom(bordered(x, y, lambda i, j: i < j), 10.0, points=3, at=(x[10], y[30]))
    np.testing.assert_allclose([closer["learning_rate"][1], closer["sigma_w"][1]], [x[20], y[20]], rtol=0.13)
    found = [int(np.abs(axis - v[1]).argmin()) for axis, v in zip((x, y), closer.values(), strict=True)]
    assert abs(found[0] - 20) + abs(found[1] - 20) <= 1


def test_bad_zooms_are_refused_in_one_sentence() -> None:
    x, y = np.geomspace(0.01, 1, 40), np.linspace(1, 2, 40)
    good = bordered(x, y, lambda i, j: i < j)
    with pytest.raises(ValueError, match="factor must be above 1, got 1"):
        vg.zoom(good, 1.0)
    with pytest.raises(ValueError, match="factor must be above 1, got nan"):
        vg.zoom(good, np.nan)
    with pytest.raises(ValueError, match="points must be at least 1, got 0"):
        vg.zoom(good, 2.0, points=0)
    with pytest.raises(ValueError, match="zoom needs a border between convergence and divergence, got none"):
        vg.zoom(bordered(x, y, lambda i, j: i < 100), 2.0)
    with pytest.raises(ValueError, match="zoom needs a sweep over two axes, got sigma_w"):
        vg.zoom(made(np.zeros((1, 4)), sigma_w=range(4)), 2.0)


def test_a_zoom_is_what_a_sweep_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates by group with those that stay, beside a scale."""
    loss = np.ones((1, 2, 2, 4))
    loss[0, 0, 0, 1:] = 0.5
    kept = made(np.zeros((1, 2, 2)), loss, learning_rate_kernel=np.array([0.1, 1.0]), sigma_w=SIGMA_W[:2])
    monkeypatch.setattr(trainability.Job, "piece", fake_piece)
    axes = vg.zoom(replace(kept, fixed={"learning_rate_bias": 0.5, "sigma_b": SIGMA_B}), 2.0, points=3)
    assert axes["learning_rate"]["bias"] == 0.5
    again = vg.train_sweep(NET, DATA, num_steps=4, key=KEY, batch_size=BATCH, sigma_b=SIGMA_B, **axes)
    assert {name: len(values) for name, values in again.axes.items()} == {"learning_rate_kernel": 3, "sigma_w": 3}
    np.testing.assert_array_equal(again.axes["learning_rate_kernel"], axes["learning_rate"]["kernel"])
    assert again.fixed == {"learning_rate_bias": 0.5, "sigma_b": SIGMA_B}


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": [NET, NET]}, r"network must be one, or several of different depth, got depths \[1, 1\]"),
        ({"network": []}, r"network must be one, or several of different depth, got depths \[\]"),
        (
            {"learning_rate": [[0.1, 0.2]]},
            r"learning_rate must be a number or a .* one-dimensional grid, got .*\(1, 2\)",
        ),
        ({"learning_rate": []}, r"learning_rate must be a number or a non-empty .* got shape \(0,\)"),
        ({"learning_rate": {"kernel": [[0.1]], "bias": 0.1}}, "learning_rate_kernel must be a number or a non-empty"),
        ({"learning_rate": [0.1, -0.2]}, "learning_rate must be finite and not negative, got -0.2"),
        ({"learning_rate": {"kernel": [0.1, np.nan], "bias": 1}}, "learning_rate of kernel must be finite and not neg"),
        ({"learning_rate": [0.1], "optimizer": optax.sgd(0.1)}, "learning_rate must be left out where the optimizer"),
        ({"learning_rate": {"kernel": 0.1}}, "learning_rate must name one group for every parameter, got none for"),
        ({"sigma_w": [[1.0]]}, r"sigma_w must be a non-empty one-dimensional grid, got shape \(1, 1\)"),
        ({"sigma_w": [-1.0]}, "sigma_w must be finite and not negative, got -1"),
        ({"sigma_v": [1.0]}, "scale must be one of sigma_w, sigma_b, got 'sigma_v'"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"memory": 0}, "memory must be at least 1, got 0"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"batch_size": 22}, "batch_size must be at most the 21 examples of the data, got 22"),
        ({"record": [5]}, "record must hold whole steps from 0 to num_steps = 4, got 5"),
        ({"optimizer": "adm"}, "optimizer must be one of sgd"),
        ({"loss": "cross_entropy"}, "y must be one integer label an example for cross_entropy"),
        ({"data": vg.data.Examples(DATA.inputs * np.inf, DATA.labels)}, "data must hold finite inputs"),
    ],
)
def test_bad_sweeps_are_refused_in_one_sentence(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainability.Job, "piece", never)
    given = {"network": NET, "data": DATA, "num_steps": 4, "key": KEY, "batch_size": BATCH, **options}
    with pytest.raises(ValueError, match=message):
        vg.train_sweep(**given)
