"""Sweeps of trainings against each alone and against numpy; runs that are stopped; what is read off the result."""

import dataclasses
import errno
import itertools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from scipy.special import logsumexp

import vgjax as vg
from vgjax.ensembles import runner
from vgjax.ensembles.job import Job, _program
from vgjax.memory import chunk as points_of
from vgjax.training import trainability

KEY = jax.random.key(5)
STEPS, BATCH, EXAMPLES = 12, 8, 21
NET = vg.mlp(width=[6, 5], inputs=4, outputs=3, activation="relu")
SIGMA_B = 0.25
TAME = np.array([0.01, 0.02, 0.04, 0.08], np.float32)
WILD = np.array([0.01, 3.0, 0.04, 50.0], np.float32)
SIGMA_W = np.array([0.5, 0.75, 1.0, 1.25], np.float32)
RNG = np.random.default_rng(2)
DATA = vg.data.Examples(
    RNG.normal(size=(EXAMPLES, 4)).astype(np.float32), RNG.normal(size=(EXAMPLES, 3)).astype(np.float32)
)
HELD_OUT = vg.data.Examples(DATA.inputs[:9] + 1, DATA.labels[:9])
EIGHT = 8 * 44  # units a layer of 8 trainings


@pytest.fixture(autouse=True)
def eight_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of one batch of 8 trainings: all sweeps of this file run one program, two pieces a seed."""
    monkeypatch.setattr(trainability, "_CACHED", EIGHT)
    monkeypatch.setattr(trainability, "_WORK", 1)


ABOUT_SWEEP = ("on_error", "key", "seeds", "folder", "memory", "workers", "sigma_w", "sigma_b")


def swept(rates: Any = WILD, network: Any = NET, **options: Any) -> vg.Result:
    """Two seeds, four learning rates, four scales."""
    given = {"key": KEY, "seeds": 2, "sigma_w": SIGMA_W, "sigma_b": SIGMA_B, **options}
    of_sweep = {name: given.pop(name) for name in ABOUT_SWEEP if name in given}
    of_training = {"data": DATA, "num_steps": STEPS, "batch_size": BATCH, "test": HELD_OUT, **given}
    return vg.sweep(network, measure=vg.trainings(**of_training), learning_rate=rates, **of_sweep)


@pytest.fixture(scope="module")
def wild() -> vg.Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainability, "_CACHED", EIGHT)
        patch.setattr(trainability, "_WORK", 1)
        return swept()


def assert_same(a: vg.Result, b: vg.Result) -> None:
    """Bit for bit."""
    for kind in ("axes", "arrays", "coordinates"):
        one, other = getattr(a, kind), getattr(b, kind)
        assert list(one) == list(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], strict=True)
    assert (a.fixed, a.provenance, a.dims) == (b.fixed, b.provenance, b.dims)


# --- each by itself -------------------------------------------------------------------------------------------------


class Alone(NamedTuple):
    """One training in numpy float32: the loss of every step, the first step that is not finite, the last weights."""

    loss: np.ndarray
    first_nonfinite: int
    weights: list[tuple[np.ndarray, np.ndarray]]


def keys_of(seed: int) -> tuple[Any, Any]:
    """Of the weights of a seed, and of all else."""
    weights, rest = jax.random.split(jax.random.fold_in(KEY, seed))
    return weights, rest


def in_numpy(seed: int, rate: float, sigma_w: float) -> Alone:
    """Gradient descent on half the sum of squares of a ReLU network, forward and back by hand."""
    weights_key, rest = keys_of(seed)
    drawn = oracles.weights(vg.init(weights_key, NET), sigma_w, SIGMA_B)
    weights = [tuple(np.float32(a) for a in pair) for pair in drawn]
    taken = np.asarray(vg.data.batches(jax.random.split(rest)[0], EXAMPLES, BATCH, STEPS))
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


def test_every_point_of_a_sweep_is_a_training_by_hand(wild: vg.Result) -> None:
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
                np.testing.assert_allclose(wild.arrays[f"{name}_loss"][seed, i, j, -1], loss, rtol=2e-5)
    np.testing.assert_array_equal(wild.diverged, wild.first_nonfinite < STEPS)
    assert wild.diverged[0, 3].all()  # a dead network of the other seed does not
    assert not wild.diverged[:, [0, 2]].any()
    assert len(np.unique(wild.first_nonfinite)) > 3  # at different steps


def test_neighbours_of_a_lost_network_are_what_they_are_without_it(wild: vg.Result) -> None:
    """In one batch with it, bit for bit."""
    tame = swept(np.where(WILD < 1, WILD, TAME))
    assert not tame.diverged.any()
    for name in tame.arrays:
        np.testing.assert_array_equal(tame.arrays[name][:, [0, 2]], wild.arrays[name][:, [0, 2]])


def test_a_network_alone_is_the_one_in_the_sweep(wild: vg.Result) -> None:
    """Seed s is drawn with the first half of its key and trained with the second."""
    for seed, i, j in ((0, 0, 3), (1, 2, 1), (1, 3, 2)):
        weights, rest = keys_of(seed)
        scales = vg.Scales(sigma_w=SIGMA_W[j], sigma_b=SIGMA_B)
        options = {"learning_rate": float(WILD[i]), "batch_size": BATCH, "test": HELD_OUT, "key": rest}
        snapshots = vg.training.SnapshotConfig((), gradients=False)
        alone = vg.train(vg.init(weights, NET), scales, DATA, "sgd", STEPS, snapshots=snapshots, **options)
        assert alone.first_nonfinite == wild.first_nonfinite[seed, i, j]
        if not wild.diverged[seed, i, j]:  # 12 stable steps: a few roundings of float32
            np.testing.assert_allclose(alone.loss, wild.loss[seed, i, j], rtol=2e-6)
            for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
                found = getattr(alone.snapshots, name)
                np.testing.assert_allclose(found, wild.arrays[name][seed, i, j], rtol=2e-6)


def test_one_after_the_other_is_the_same_as_together(wild: vg.Result, monkeypatch: pytest.MonkeyPatch) -> None:
    """And several batches a piece."""
    for cached, work, chunks in ((1, 1, [[1, 1]]), (4 * 44, 1e30, [[16, 4]])):
        monkeypatch.setattr(trainability, "_CACHED", cached)
        monkeypatch.setattr(trainability, "_WORK", work)
        other = swept(workers=1)
        assert (wild.provenance["chunks"], other.provenance["chunks"]) == ([[8, 8]], chunks)
        np.testing.assert_array_equal(other.first_nonfinite, wild.first_nonfinite)
        for name in ("loss", "train_loss"):
            np.testing.assert_allclose(other.arrays[name][:, [0, 2]], wild.arrays[name][:, [0, 2]], rtol=2e-6)


def test_rates_by_group_are_axes_of_their_own() -> None:
    """In the order of the call, each of them what it is in a training alone."""
    rates = {"bias": 0.5, "kernel": TAME[1:3]}
    found = swept(rates, sigma_w=1.0, sigma_b=SIGMA_W[:3], seeds=1)
    assert list(found.axes) == ["learning_rate_kernel", "sigma_b"]
    assert found.fixed == {"learning_rate_bias": 0.5, "sigma_w": 1.0}
    weights, rest = keys_of(0)
    for (i, rate), (j, sigma_b) in itertools.product(enumerate(TAME[1:3]), enumerate(SIGMA_W[:3])):
        options = {"learning_rate": {"kernel": float(rate), "bias": 0.5}, "batch_size": BATCH, "key": rest}
        scales, snapshots = vg.Scales(sigma_w=1.0, sigma_b=sigma_b), vg.training.SnapshotConfig((), gradients=False)
        alone = vg.train(vg.init(weights, NET), scales, DATA, "sgd", STEPS, snapshots=snapshots, **options)
        np.testing.assert_allclose(found.loss[0, i, j], alone.loss, rtol=2e-6)


def test_a_sweep_without_axes_is_over_seeds_alone() -> None:
    found = vg.sweep(NET, measure=vg.trainings(DATA, num_steps=4, batch_size=BATCH), key=KEY, seeds=3)
    assert found.axes == {}
    assert found.loss.shape == (3, 4)
    assert found.fixed == {"learning_rate": 0.01}
    assert len(np.unique(found.loss[:, 0])) == 3
    finished = vg.trainings(DATA, optax.sgd(0.01), num_steps=4, batch_size=BATCH)
    np.testing.assert_allclose(vg.sweep(NET, measure=finished, key=KEY, seeds=3).loss, found.loss, rtol=1e-6)


def deeper(depth: int) -> vg.Network:
    return vg.mlp(width=[6, *range(5, 5 + depth)], inputs=4, outputs=3, activation="relu")


def test_gradients_of_networks_of_several_depths() -> None:
    """Layer by layer before the first step, against `jax.grad`; behind the last layer of a network there is nothing."""
    networks = [deeper(2), deeper(1)]
    options = {"num_steps": 2, "batch_size": None, "snapshots": vg.training.SnapshotConfig([0]), "seeds": 1}
    found = swept(0.02, networks, sigma_w=1.0, **options)
    assert list(found.networks) == ["depth 2", "depth 1"]
    assert found.log_gradient.shape == (2, 1, 2, 3)
    assert found.coordinates["step"].tolist() == [0, 2]
    assert np.isnan(found.log_gradient[1, 0, :, 2]).all()
    for i, network in enumerate(networks):
        weights = oracles.weights(vg.init(keys_of(0)[0], network), 1.0, SIGMA_B)
        truth = oracles.gradients(weights, jax.nn.relu, *DATA, "squared_error")["states"]
        of_batch = (logsumexp(2 * truth, axis=0) - np.log(EXAMPLES)) / 2
        np.testing.assert_allclose(found.log_gradient[i, 0, 0, : 3 - i], of_batch, rtol=1e-5, atol=1e-5)


def test_float64_is_computed_of_numbers_of_float64() -> None:
    """Rates that differ by less than a rounding of float32 are two rates, data keep their digits."""
    rates = 0.05 * np.array([1, 1 + 1e-12])
    data = vg.data.Examples(np.asarray(DATA.inputs, np.float64) / 3, DATA.labels)
    found = swept(rates, data=data, dtype="float64", sigma_w=1.0, seeds=1)
    assert found.loss.dtype == np.float64
    change = np.abs(found.loss[0, 1] - found.loss[0, 0])[1:] / found.loss[0, 0, 1:]
    assert change.max() < 1e-11
    assert (change > 0).all()
    weights = oracles.weights(vg.init(keys_of(0)[0], NET), 1.0, SIGMA_B)
    rows = np.asarray(vg.data.batches(jax.random.split(keys_of(0)[1])[0], EXAMPLES, BATCH, 1))[0]
    first = np.mean(
        [np.sum((oracles.forward(weights, jax.nn.relu, data.inputs[i]) - data.labels[i]) ** 2) for i in rows]
    )
    assert found.loss[0, 0, 0] == pytest.approx(first / 2, rel=1e-12)


# --- pieces ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3, 16])
@pytest.mark.parametrize("points", [1, 5, 32, 100])
def test_pieces_are_of_whole_batches_and_no_more_than_they_may_be(
    points: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch fits the caches and the memory; there is a piece for every worker, as far as there are points; at most
    one point a batch is computed twice."""
    measure = vg.trainings(DATA, num_steps=STEPS, batch_size=BATCH)
    one = measure.bytes_per_point(NET)
    for work, cached, memory in itertools.product((1, 1e7, 1e30), (1, 3 * 44, 1e9), (1, 7 * one, 2**40)):
        monkeypatch.setattr(trainability, "_WORK", work)
        monkeypatch.setattr(trainability, "_CACHED", cached)
        size, together = measure.chunk(NET, points, memory, workers)
        assert size % together == 0
        assert 1 <= together <= max(1, min(cached // 44, memory // one))
        share = -(-points // workers)
        assert size - size // together < share or size == 1
        if work == 1:
            assert size == together


def test_other_examples_of_the_same_shape_run_the_same_program_which_does_not_keep_them() -> None:
    first = swept()
    programs = _program.cache_info().currsize
    other = swept(
        data=vg.data.Examples(DATA.inputs + 1, DATA.labels), test=vg.data.Examples(DATA.inputs[:9], DATA.labels[:9])
    )
    assert _program.cache_info().currsize == programs
    assert not np.array_equal(first.loss, other.loss)
    assert vg.trainings(DATA).compiled_for() == vg.trainings(HELD_OUT).compiled_for()
    assert not vg.trainings(DATA).compiled_for().examples


# --- runs that are stopped ------------------------------------------------------------------------------------------


def counted_pieces(monkeypatch: pytest.MonkeyPatch, stop: BaseException | None = None) -> list[list[int]]:
    """The points of every piece that is done from here on, as often as the run is stopped at the third."""
    real, done = Job.piece, []

    def piece(job: Job, drawn: Any, seed: int, chunk: int) -> runner.Arrays:
        if stop is not None and len(done) == 2:
            raise stop
        done.append(points_of(job.grid.points, job.size[0], chunk)[0])
        return real(job, drawn, seed, chunk)

    monkeypatch.setattr(Job, "piece", piece)
    return done


def never(*_: Any) -> runner.Arrays:
    """In place of a piece where nothing may be trained."""
    raise AssertionError("trained, and should have been refused")


@pytest.mark.parametrize("stop", [RuntimeError("stop"), KeyboardInterrupt()])
def test_a_sweep_that_was_stopped_goes_on_and_is_the_same_bit_for_bit(
    wild: vg.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    done = counted_pieces(monkeypatch, stop)
    with pytest.raises(type(stop)):
        swept(folder=tmp_path, workers=1, on_error="raise")
    assert len(list(tmp_path.glob("*.npz"))) == 2
    done[:] = [[]]  # one more may be done before it stops again
    with pytest.raises(type(stop)):
        swept(folder=str(tmp_path), workers=1, on_error="raise")
    done.clear()
    (tmp_path / sorted(path.name for path in tmp_path.glob("*.npz"))[1]).write_bytes(b"PK corrupt")
    assert_same(swept(folder=tmp_path, workers=2), wild)
    assert len(done) == 2  # the one that is missing and the one that is corrupt
    assert_same(swept(folder=tmp_path), wild)  # and none
    assert len(done) == 2
    assert sorted({path.suffix for path in tmp_path.iterdir()}) == [".json", ".npz"]


def test_a_sweep_goes_on_on_a_machine_with_another_number_of_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And in another budget: the pieces are those of the run that began it, and so are the bits."""
    monkeypatch.setattr(trainability, "_WORK", 1e30)

    def on(cores: int, **options: Any) -> vg.Result:
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        assert runner.cores() == cores
        return swept(folder=tmp_path, **options)

    begun = on(3)
    assert begun.provenance["chunks"] == [[6, 6]]
    for path in tmp_path.glob("*-00001.npz"):
        path.unlink()
    done = counted_pieces(monkeypatch)
    assert_same(on(16, memory=1), begun)
    assert [len(taken) for taken in done] == [6, 6]  # a seed each
    assert_same(on(1), begun)
    assert len(done) == 2


def test_a_full_disk_leaves_the_result_whole(wild: vg.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def with_clip(most: float) -> Callable[[Any], optax.GradientTransformation]:
    return lambda rate: optax.chain(optax.clip_by_global_norm(most), optax.sgd(rate))


def falling(power: float) -> Callable[[int], optax.Schedule]:
    return lambda steps: lambda count: (1 - count / steps) ** power


def bent(slope: float) -> vg.Network:
    """A network of a user's own activation, whose name is the same for any slope."""
    return vg.mlp(width=[6, 5], inputs=4, outputs=3, activation=lambda h: jnp.where(h > 0, h, slope * h))


SAME = {"optimizer": with_clip(1.0), "schedule": falling(1.0), "network": bent(0.1)}
OTHERS = {
    "options.num_steps": {"num_steps": STEPS + 1},
    "key": {"key": jax.random.key(6)},
    "inputs": {"data": vg.data.Examples(DATA.inputs + 1e-6, DATA.labels)},
    "inputs, program": {"test": None},
    "^inputs": {"test": vg.data.Examples(HELD_OUT.inputs, HELD_OUT.labels + 1e-6)},
    "axes.learning_rate": {"rates": np.nextafter(WILD, 0)},
    "fixed.sigma_b": {"sigma_b": 0.26},
    "seeds": {"seeds": 3},
    "options.dtype": {"dtype": "float64"},
    "options.batch_size": {"batch_size": 7},
    "options.snapshots.num_eval": {"snapshots": vg.training.SnapshotConfig((), num_eval=7, gradients=False)},
    # functions of one name
    "^program": {"optimizer": with_clip(1.0000001)},
    "^program ": {"schedule": falling(1.0000001)},
    "^program  ": {"network": bent(0.1000001)},
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pieces of a sweep of a user's own functions."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainability, "_CACHED", EIGHT)
        patch.setattr(trainability, "_WORK", 1)
        swept(folder=folder, **SAME)
    return folder


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_of_other_settings_is_refused_with_what_differs(
    kept: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Before anything is trained; two functions differ if they compute something else, whatever they are called."""
    before = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    monkeypatch.setattr(Job, "piece", never)
    with pytest.raises(ValueError, match="folder must hold an earlier run of the same settings") as raised:
        swept(**{**SAME, "folder": kept, **OTHERS[name]})
    differ = str(raised.value).partition("differs in ")[2].split(", ")
    expected = name.strip().removeprefix("^").split(", ")
    assert set(expected) <= set(differ)
    if name.startswith("^"):
        assert differ == expected
    assert {path: path.stat().st_mtime_ns for path in kept.iterdir()} == before


def test_other_functions_that_compute_the_same_are_no_others(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in another process, where all functions lie elsewhere."""
    monkeypatch.setattr(Job, "piece", never)
    swept(folder=kept, optimizer=with_clip(1.0), schedule=falling(1.0), network=bent(0.1))


def test_a_folder_that_is_none_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Job, "piece", never)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"folder must be empty or hold an earlier run, got .* with other files"):
        swept(folder=tmp_path)
    with pytest.raises(ValueError, match=r"folder must be a folder that can be written to, got .*notes\.txt"):
        swept(folder=tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# --- what is read off -----------------------------------------------------------------------------------------------


def made(accuracy: Any, loss: Any = None, first: Any = None, depth: Any = None, **axes: Any) -> vg.Result:
    """A result without a training: last accuracies (network?, seed, *axes), losses with steps behind."""
    accuracy = np.asarray(accuracy, float)[..., None]
    loss = np.ones((*accuracy.shape[:-1], 20)) if loss is None else np.asarray(loss, float)
    first = np.full(loss.shape[:-1], loss.shape[-1]) if first is None else np.asarray(first)
    scores = {"train_accuracy": accuracy, "test_accuracy": accuracy / 2}
    arrays = vg.trainings(DATA).finish({"loss": loss, "first_nonfinite": first, **scores}, "")
    networks = {"": NET} if depth is None else {f"depth {one}": deeper(one) for one in depth}
    return vg.Result(
        "trainings",
        {name: np.asarray(values) for name, values in axes.items()},
        arrays,
        {name: trainability.Trainings.dims[name] for name in arrays},
        networks=networks,
    )


def test_the_best_is_the_mean_over_seeds_at_the_best_learning_rate_of_every_point() -> None:
    accuracy = np.random.default_rng(1).uniform(size=(2, 3, 4, 5, 6))
    first = np.full(accuracy.shape, 20)
    first[0, 1, 2] = 7  # lost: its answers are wrong
    axes = {"learning_rate_stem": range(4), "learning_rate_head": range(5), "sigma_w": range(6)}
    found = made(accuracy, first=first, depth=[2, 9], **axes)
    accuracy[0, 1, 2] = 0
    expected = [[max(accuracy[d, :, i, j, k].sum() / 3 for i in range(4) for j in range(5)) for k in range(6)]
                for d in range(2)]  # fmt: skip
    np.testing.assert_allclose(vg.training.best(found), expected)
    np.testing.assert_allclose(vg.training.best(found, "test_accuracy"), np.array(expected) / 2)
    of_one = made(accuracy[1], **axes)
    np.testing.assert_allclose(vg.training.best(of_one), expected[1])


def test_a_lost_network_with_no_number_counts_as_wrong() -> None:
    found = made([[np.nan, 0.5], [0.8, 0.5]], first=[[3, 20], [20, 20]], sigma_w=[1.0, 2.0])
    np.testing.assert_allclose(vg.training.best(found), [0.4, 0.5])


def test_the_trainable_depth_is_the_deepest_that_learns(tmp_path: Path) -> None:
    """Even where a shallower one does not; 0 where none does."""
    accuracy = np.array([[0.9, 0.4, 0.1], [0.3, 0.49, 0.1], [0.5, 0.9, 0.1]])[:, None, None]  # (depth, ..., sigma_w)
    axes = {"learning_rate": [0.1], "sigma_w": [1.0, 2.0, 3.0]}
    found = made(accuracy, depth=[10, 20, 40], **axes)
    np.testing.assert_array_equal(vg.trainable_depth(found), [40, 40, 0])
    np.testing.assert_array_equal(vg.trainable_depth(found, 0.6), [10, 40, 0])
    np.testing.assert_array_equal(vg.trainable_depth(found, 0.26, "test_accuracy"), [10, 40, 0])
    np.testing.assert_array_equal(vg.trainable_depth(made(accuracy, depth=[40, 20, 10], **axes)), [40, 10, 0])
    with pytest.raises(ValueError, match="a trainable depth needs a sweep over several networks, got one"):
        vg.trainable_depth(made([[0.5]], sigma_w=[1.0]))
    loaded = vg.load(found.save(tmp_path / "result.npz"))
    np.testing.assert_array_equal(vg.trainable_depth(loaded), [40, 40, 0])
    unknown = dataclasses.replace(found, networks=dict.fromkeys(found.networks))  # of a block that a file cannot hold
    with pytest.raises(ValueError, match=r"needs the networks: hand them over as load\(path, network=\.\.\.\)"):
        vg.trainable_depth(unknown)


def test_only_accuracies_of_trainings_are_read() -> None:
    with pytest.raises(ValueError, match="name must be one of train_accuracy, test_accuracy, got 'train_loss'"):
        vg.training.best(made([[0.5]], sigma_w=[1.0]), "train_loss")
    gains = vg.Result("gains", {}, {"log_gain": np.zeros((1, 3))}, {"log_gain": ("layer",)})
    with pytest.raises(ValueError, match="best needs a sweep of trainings, got one of gains"):
        vg.training.best(gains)
    with pytest.raises(ValueError, match="zoom needs a sweep of trainings, got one of gains"):
        vg.training.zoom(gains, 2.0)


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
def test_what_is_saved_is_loaded_whole(wild: vg.Result, tmp_path: Path, suffix: str) -> None:
    loaded = vg.load(wild.save(tmp_path / f"result{suffix}"))
    assert_same(loaded, wild)
    assert loaded.converged.dtype == bool


def test_a_dataset_is_labelled(wild: vg.Result) -> None:
    data = wild.to_xarray()
    assert data["loss"].dims == ("seed", "learning_rate", "sigma_w", "update")
    assert data["log_gradient"].dims == ("seed", "learning_rate", "sigma_w", "step", "layer")
    assert data["converged"].dims == ("seed", "learning_rate", "sigma_w")
    point = data["loss"].sel(seed=1, learning_rate=WILD[2], sigma_w=0.75)[7]
    assert float(point) == wild.loss[1, 2, 1, 7]
    assert data["step"].values.tolist() == [STEPS]
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
    counted = vg.training.box_dimension(grid(256, inside))
    assert counted.dimension == pytest.approx(1, abs=0.05)
    assert counted.sizes.tolist() == [1, 2, 4, 8, 16, 32]


def test_closed_smooth_borders_have_dimension_1_to_a_hundredth() -> None:
    for inside in (lambda x, y: np.hypot(x - 0.5, y - 0.5) < 0.31, lambda x, y: np.abs(x - 0.5) + 2 * y < 1.7):
        inner = grid(200, inside) & grid(200, lambda x, y: (x > 0.1) & (y > 0.1) & (x < 0.9) & (y < 0.9))
        assert vg.training.box_dimension(inner).dimension == pytest.approx(1, abs=0.01)


def test_a_random_half_fills_the_plane() -> None:
    """Every box on the grid: in 8 x 8 of the largest, 9 x 9 of those that hang over its edges, 255 cells along it."""
    counted = vg.training.box_dimension(np.random.default_rng(0).random((256, 256)) < 0.5)
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
    assert vg.training.box_dimension(island).dimension == pytest.approx(1.5, abs=0.05)


def test_the_dimension_of_a_sierpinski_triangle_is_found() -> None:
    """The odd numbers in Pascal's triangle: ln 3 / ln 2."""
    i = np.arange(512)
    assert vg.training.box_dimension((i[:, None] & i) == 0).dimension == pytest.approx(np.log2(3), abs=0.05)


def test_boxes_are_counted_as_by_hand() -> None:
    """On a grid whose sides are no powers of 2: all ways to lay the boxes, one after the other."""
    inside = np.random.default_rng(3).random((37, 45)) < 0.02
    counted = vg.training.box_dimension(inside)
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
        counted = vg.training.box_dimension(np.ones((40, 40)))
    assert np.isnan(counted.dimension)
    assert not counted.counts.any()
    for shape in ((31, 40), (40,), (2, 40, 40)):
        with pytest.raises(ValueError, match="converged must be a grid of at least 32 x 32 points, got shape"):
            vg.training.box_dimension(np.ones(shape))


def bordered(x: Any, y: Any, *insides: Any) -> vg.Result:
    """A sweep over two axes that converges inside, one condition a seed."""
    i, j = np.meshgrid(np.arange(len(x)), np.arange(len(y)), indexing="ij")
    loss = np.ones((len(insides), len(x), len(y), 10))
    for of_seed, inside in zip(loss, insides, strict=True):
        of_seed[inside(i, j), 1:] = 0.5
    return made(np.zeros(loss.shape[:-1]), loss, learning_rate=x, sigma_w=y)


@pytest.mark.parametrize("ends", [(1e-3, 10.0), (1e-12, 1e-9), (1e3, 1e7)])
def test_zoom_keeps_equal_ratios_and_shrinks_by_the_factor(ends: tuple[float, float]) -> None:
    """Around a border: a line between two places of one axis, densest where a corner stands out of it."""
    x, y = np.geomspace(*ends, 40), np.linspace(-2, 3, 64)
    closer = vg.training.zoom(bordered(x, y, lambda i, j: i < 25), 8.0, points=11)
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
    for values in vg.training.zoom(low, 10.0).values():
        np.testing.assert_allclose(values, np.linspace(0, 0.1, 40), atol=1e-15)
    for values in vg.training.zoom(high, 10.0).values():
        np.testing.assert_allclose(values, np.linspace(0.9, 1, 40))
        assert values.max() <= 1


def test_zoom_goes_to_where_the_border_is_densest() -> None:
    """A straight line, and a checkerboard of 6 x 6 points around one place on it."""
    x, y = np.linspace(1, 2, 40), np.linspace(1, 5, 50)

    def inside(i: Any, j: Any) -> Any:
        near = (np.abs(i - 20.5) < 3) & (np.abs(j - 30.5) < 3)
        return np.where(near, (i + j) % 2 == 0, i < 20)

    closer = vg.training.zoom(bordered(x, y, inside), 4.0)
    assert {name: len(values) for name, values in closer.items()} == {"learning_rate": 40, "sigma_w": 50}
    middle = [np.mean(values) for values in closer.values()]
    assert np.abs(np.array(middle) - [x[20], y[30]]).max() < 0.25
    for values, wide in zip(closer.values(), (1, 4), strict=True):
        assert np.ptp(values) == pytest.approx(wide / 4)
    again = vg.training.zoom(bordered(*closer.values(), inside), 4.0)  # a zoom can be zoomed
    assert np.ptp(again["sigma_w"]) == pytest.approx(1 / 4)


def test_zoom_goes_to_the_border_nearest_to_where_it_is_told() -> None:
    """On a diagonal, nearest in steps of the grid, whatever their lengths."""
    x, y = np.geomspace(0.01, 1, 41), np.linspace(1, 2, 41)
    closer = vg.training.zoom(bordered(x, y, lambda i, j: i < j), 10.0, points=3, at=(x[10], y[30]))
    np.testing.assert_allclose([closer["learning_rate"][1], closer["sigma_w"][1]], [x[20], y[20]], rtol=0.13)
    found = [int(np.abs(axis - v[1]).argmin()) for axis, v in zip((x, y), closer.values(), strict=True)]
    assert abs(found[0] - 20) + abs(found[1] - 20) <= 1


def test_a_zoom_is_into_the_border_of_one_seed_the_first_unless_told() -> None:
    x, y = np.linspace(1, 2, 41), np.linspace(1, 5, 41)
    found = bordered(x, y, lambda i, j: i < 10, lambda i, j: i < 30)
    middles = [
        np.mean(vg.training.zoom(found, 10.0, **seed)["learning_rate"]) for seed in ({}, {"seed": 0}, {"seed": 1})
    ]
    np.testing.assert_allclose(middles, [x[9:11].mean()] * 2 + [x[29:31].mean()])
    for seed in (2, -1, 0.5):
        with pytest.raises(ValueError, match=f"seed must be (a whole number|whole numbers from 0 to 1), got {seed}"):
            vg.training.zoom(found, 10.0, seed=seed)


def test_bad_zooms_are_refused_in_one_sentence() -> None:
    x, y = np.geomspace(0.01, 1, 40), np.linspace(1, 2, 40)
    good = bordered(x, y, lambda i, j: i < j)
    with pytest.raises(ValueError, match="factor must be above 1, got 1"):
        vg.training.zoom(good, 1.0)
    with pytest.raises(ValueError, match="factor must be above 1, got nan"):
        vg.training.zoom(good, np.nan)
    with pytest.raises(ValueError, match="points must be at least 1, got 0"):
        vg.training.zoom(good, 2.0, points=0)
    with pytest.raises(ValueError, match="zoom needs a border between convergence and divergence, got none"):
        vg.training.zoom(bordered(x, y, lambda i, j: i < 100), 2.0)
    with pytest.raises(ValueError, match="zoom needs a sweep of one network over two axes, got sigma_w"):
        vg.training.zoom(made(np.zeros((1, 4)), sigma_w=range(4)), 2.0)
    several = made(np.zeros((2, 1, 4)), depth=[1, 2], sigma_w=range(4))
    with pytest.raises(ValueError, match="zoom needs a sweep of one network over two axes, got network, sigma_w"):
        vg.training.zoom(several, 2.0)


def test_a_zoom_is_what_a_sweep_takes() -> None:
    """Rates by group with those that stay, beside a scale."""
    rates = {"kernel": np.array([0.04, 50.0]), "bias": 0.02}
    whole = swept(rates, sigma_w=SIGMA_W[:2], seeds=1)
    assert whole.converged.any()
    assert not whole.converged.all()
    axes = vg.training.zoom(whole, 2.0, points=3)
    assert axes["learning_rate"]["bias"] == 0.02
    again = swept(axes["learning_rate"], sigma_w=axes["sigma_w"], seeds=1)
    assert {name: len(values) for name, values in again.axes.items()} == {"learning_rate_kernel": 3, "sigma_w": 3}
    np.testing.assert_array_equal(again.axes["learning_rate_kernel"], axes["learning_rate"]["kernel"])
    assert again.fixed == whole.fixed == {"learning_rate_bias": 0.02, "sigma_b": SIGMA_B}


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": []}, "network must be at least one, got none"),
        ({"rates": [[0.1, 0.2]]}, r"learning_rate must be a non-empty one-dimensional grid, got shape \(1, 2\)"),
        ({"rates": []}, r"learning_rate must be a non-empty .* got shape \(0,\)"),
        ({"rates": {"kernel": [[0.1]], "bias": 0.1}}, "learning_rate_kernel must be a non-empty one-dimensional grid"),
        ({"rates": [0.1, -0.2]}, "learning_rate must be finite and not negative, got -0.2"),
        ({"rates": {"kernel": [0.1, np.nan], "bias": 1}}, "learning_rate of kernel must be finite and not negative"),
        ({"rates": [0.1], "optimizer": optax.sgd(0.1)}, "learning_rate must be left out where the optimizer has its"),
        ({"rates": {"kernel": 0.1}}, "learning_rate must name one group for every parameter, got none for"),
        ({"sigma_w": [[[1.0]]]}, r"sigma_w must be a non-empty one-dimensional grid, or .*, got shape \(1, 1, 1\)"),
        ({"sigma_w": [-1.0]}, "sigma_w must be finite and not negative, got -1"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"memory": 0}, "memory must be at least 1, got 0"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"batch_size": 22}, "batch_size must be at most the 21 examples of the data, got 22"),
        ({"optimizer": "adm"}, "optimizer must be one of sgd"),
        ({"dtype": "float16"}, "dtype must be one of float32, float64, got 'float16'"),
        ({"data": vg.data.Examples(DATA.inputs * np.inf, DATA.labels)}, "data must hold finite inputs"),
        (
            {"data": vg.data.Examples(DATA.inputs[:, 1:], DATA.labels)},
            r"data must hold inputs of shape \(examples, 4\)",
        ),
        (
            {"snapshots": vg.training.SnapshotConfig([13])},
            "snapshots must be at whole steps from 0 to num_steps = 12, got 13",
        ),
    ],
)
def test_bad_sweeps_are_refused_in_one_sentence(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Job, "piece", never)
    with pytest.raises(ValueError, match=message):
        swept(**options)


def test_trainings_have_their_inputs_from_their_data() -> None:
    with pytest.raises(ValueError, match="trainings takes no inputs beside its data, got 1"):
        vg.sweep(NET, DATA.inputs[0], measure=vg.trainings(DATA, num_steps=4), key=KEY)
    with pytest.raises(
        ValueError,
        match="scale must be one of sigma_w, sigma_b, sigma_in, sigma_out, learning_rate, got 'learning_rates'",
    ):
        vg.sweep(NET, measure=vg.trainings(DATA, num_steps=4), key=KEY, learning_rates=[0.1])
