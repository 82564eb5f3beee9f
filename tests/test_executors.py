"""Pieces that other processes do: the same bits, whatever the engine, whichever of its processes dies, and whatever a
user brings; what cannot travel, or would be computed otherwise, is refused in one sentence."""

import json
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vgjax as vg
from vgjax.ensembles import job, runner
from vgjax.ensembles.measurements import Gains

# Of processes that were killed, pipes and sockets are left to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
COMPUTES = True
"""Other processes optimize what they compile."""

KEY = jax.random.key(7)
X = np.array([0.5, -1.0, 2.0, 0.25], np.float32)
NET = vg.mlp(width=[5, 4, 5], inputs=4, outputs=3)
OF_LAMBDA = vg.mlp(width=6, depth=4, inputs=4, activation=lambda h: jnp.tanh(h) * 1.25)
DATA = vg.data.Examples(np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32), np.arange(12) % 3)


def spawned(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    with spawned(2) as executor:
        yield executor


def assert_same(found: vg.Result, expected: vg.Result) -> None:
    """To the bit, and in what is said of it."""
    assert list(found.arrays) == list(expected.arrays)
    for name, a in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], a, strict=True)
    assert found.dims == expected.dims
    assert found.provenance == expected.provenance


def swept(**options: Any) -> vg.Result:
    """Four pieces of each of two networks."""
    given = {"network": {"flat": NET, "own": OF_LAMBDA}, "x": X, "measure": vg.gains(), "seeds": 2, "memory": 1}
    given |= {"key": KEY, "sigma_w": [0.5, 1.5], "workers": 2, **options}
    inputs = () if given["x"] is None else (given["x"],)
    del given["x"]
    return vg.sweep(given.pop("network"), *inputs, **given)


# --- processes ------------------------------------------------------------------------------------------------------

CALLS: dict[str, dict[str, Any]] = {
    "gains": {},
    "one input a seed": {"x": np.stack([X, -X]), "leading": "seed"},
    "a batch": {"x": np.stack([X, -X, 2 * X]), "leading": "example"},
    "spectra in float64": {"measure": vg.spectra((1, 2), dtype="float64")},
    "trainings": {"network": NET, "x": None, "measure": vg.trainings(DATA, "adam", 3, batch_size=4, test=DATA)},
    "a lambda": {
        "measure": vg.measurement(lambda p, s, x: {"out": vg.forward(p, s, x)[:2]}, {"out": ("unit",)}),
    },
}


@pytest.mark.parametrize("call", CALLS)
def test_processes_give_the_bits_of_threads(processes: Executor, call: str) -> None:
    assert_same(swept(executor=processes, **CALLS[call]), swept(**CALLS[call]))


def test_processes_compute_under_the_switches_of_the_call(processes: Executor) -> None:
    with jax.enable_x64(True), jax.threefry_partitionable(False):
        here = swept(measure=vg.gains(stream=True))
        assert not np.array_equal(here.log_gain, swept(measure=vg.gains()).log_gain)
        assert_same(swept(measure=vg.gains(stream=True), executor=processes), here)


def programs() -> list[int]:
    """Of this process: compiled, and used again; jobs unpacked."""
    found = job._program.cache_info()
    return [found.misses, found.hits, job._unpacked.cache_info().misses]


def test_a_process_compiles_a_network_once_and_draws_a_seed_once() -> None:
    with spawned(1) as executor:
        swept(executor=executor, seeds=3)
        assert executor.submit(programs).result() == [2, 10, 2]


def test_pieces_of_processes_are_kept_and_read(processes: Executor, tmp_path: Path) -> None:
    whole = swept(network=NET)
    assert_same(swept(network=NET, folder=tmp_path, executor=processes), whole)
    for path in [*tmp_path.glob("0*.npz")][1:]:
        path.unlink()
    assert_same(swept(network=NET, folder=tmp_path), whole)
    assert_same(vg.collect(tmp_path), whole)


@dataclass(frozen=True)
class Halved(Gains):
    """Finished by a user's code, once: in a folder last."""

    def finish(self, arrays: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
        return {**arrays, "log_gain": arrays["log_gain"] / 2}


def test_a_finish_of_one_s_own_is_done_once(processes: Executor, tmp_path: Path) -> None:
    whole = swept(network=NET, measure=Halved(1, False))
    assert not np.array_equal(whole.log_gain, swept(network=NET).log_gain, equal_nan=True)
    for executor, folder in ((processes, None), (processes, tmp_path), (None, tmp_path)):
        assert_same(swept(network=NET, measure=Halved(1, False), executor=executor, folder=folder), whole)


# --- what fails -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Faulty(Gains):
    """Fails on the host at one seed: of the given kind."""

    fault: str = ""

    def finish(self, arrays: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
        if where != " of seed 1" or not self.fault:
            return arrays
        if self.fault == "dies":
            os._exit(1)
        if self.fault == "cannot leave":
            raise Unpicklable(lambda: 0)
        raise Unmade(1, 2) if self.fault == "cannot come back" else ValueError("this seed is cursed")


class Unpicklable(Exception):
    """Of a kind that processes cannot send."""


class Unmade(Exception):
    """Of a kind that is sent and cannot be made again, as most of JAX's own."""

    def __init__(self, one: Any, other: Any):
        super().__init__(f"{one} and {other}")


@pytest.mark.parametrize("fault", ["raises", "cannot leave", "cannot come back"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_piece_that_fails_is_nan_and_named_and_all_others_are_done(
    processes: Executor, tmp_path: Path, elsewhere: bool, fault: str
) -> None:
    executor = processes if elsewhere else None
    options: dict[str, Any] = {"network": NET, "seeds": 3, "executor": executor}
    with pytest.warns(RuntimeWarning, match=r"^2 of 6 pieces failed and are NaN in the result: seed 1, point 0 \(.*\)"):
        found = swept(measure=Faulty(1, False, fault), **options)
    whole = swept(measure=Faulty(1, False), **options)
    assert np.isnan(found.log_gain[1]).all()
    assert np.isnan(found.first_nan_layer[1]).all()
    for name, a in whole.arrays.items():
        np.testing.assert_array_equal(found.arrays[name][[0, 2]], a[[0, 2]])
    assert found.missing_points == 2
    assert whole.missing_points == 0
    assert list(found.provenance["failed_pieces"]) == ["seed 1, point 0", "seed 1, point 1"]
    assert "2 points missing" in repr(found)
    again = vg.load(found.save(tmp_path / "a.npz"))
    assert again == found


def test_a_piece_that_failed_says_why_in_the_folder_and_is_done_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = vg.measurement(lambda p, s, x: {"out": s["sigma_w"]}, {"out": ()})
    real = job.Job.piece

    def cursed(self: Any, drawn: Any, seed: int, chunk: int) -> Any:
        if (seed, chunk) == (1, 0):
            raise OSError("the disk of this machine")
        return real(self, drawn, seed, chunk)

    monkeypatch.setattr(job.Job, "piece", cursed)
    with pytest.warns(RuntimeWarning, match=r"seed 1, point 0 \(OSError: the disk"):
        found = swept(network=NET, measure=broken, folder=tmp_path)
    monkeypatch.undo()
    (path,) = tmp_path.glob("*.failed.json")
    said = json.loads(path.read_text())
    assert said["error"] == "OSError: the disk of this machine"
    assert "in cursed" in said["traceback"]
    assert said["attempts"] == 2
    status = vg.status(tmp_path)
    assert (status.done, status.failed, status.remaining, status.is_complete) == (3, 1, 0, False)
    assert vg.load(tmp_path) == found
    with pytest.raises(
        ValueError, match=r"^folder must hold all 4 pieces .* without 1: seed 1, point 0 \(OSError: the"
    ):
        vg.collect(tmp_path)
    whole = swept(network=NET, measure=broken, folder=tmp_path)
    assert whole.missing_points == 0
    assert not list(tmp_path.glob("*.failed.json"))
    assert vg.status(tmp_path).is_complete
    assert_same(vg.collect(tmp_path), whole)


def of_values(parameters: Any, scales: Any, x: Any) -> dict[str, Any]:
    """A mistake that JAX has a kind of error for, which cannot be made again."""
    return {"out": x[0] if x[0] > 0 else x[1]}


@pytest.mark.parametrize("elsewhere", [False, True])
def test_errors_of_jax_come_back(processes: Executor, elsewhere: bool) -> None:
    executor = processes if elsewhere else None
    with pytest.raises(
        (RuntimeError, jax.errors.TracerBoolConversionError), match="Attempted boolean conversion of tr"
    ):
        swept(network=NET, measure=vg.measurement(of_values, {"out": ()}), executor=executor)
    assert_same(swept(network=NET, executor=executor), swept(network=NET))  # and the processes live


def test_a_finish_that_fails_is_one_piece_in_a_folder_too(tmp_path: Path) -> None:
    options: dict[str, Any] = {"network": NET, "seeds": 3, "folder": tmp_path}
    with pytest.warns(
        RuntimeWarning, match=r"^2 of 6 pieces failed and are NaN in the result: seed 1, point 0 \(Value"
    ):
        found = swept(measure=Faulty(1, False, "raises"), **options)
    assert found.missing_points == 2
    assert vg.status(tmp_path).is_complete  # what fails is done on the host again each time
    with pytest.warns(RuntimeWarning, match=r"^2 of 6 pieces failed"):
        assert_same(swept(measure=Faulty(1, False, "raises"), **options), found)


def test_whoever_asked_is_warned(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="pieces failed") as warned:
        vg.sweep(NET, X, key=KEY, seeds=3, measure=Faulty(1, False, "raises"))
    assert warned[0].filename == __file__


@pytest.mark.parametrize("on_error", ["raise", "record"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_always_fails_ends_the_sweep_with_its_error(processes: Executor, on_error: str, elsewhere: bool) -> None:
    """And what is asked to raise, when it first does."""
    wrong = vg.measurement(lambda p, s, x: {"out": jnp.zeros(2)}, {"out": ()})
    with pytest.raises(ValueError, match=r"(?s)^out must have dimensions \(\), got shape \(2,\)") as e:
        swept(network=NET, seeds=40, measure=wrong, on_error=on_error, executor=processes if elsewhere else None)
    assert not isinstance(e.value, runner.Refused)
    if on_error == "raise":
        with pytest.raises(ValueError, match=r"^this seed is cursed\nin the piece of seed 1, point [01]$"):
            swept(network=NET, measure=Faulty(1, False, "raises"), on_error=on_error)


@pytest.mark.parametrize(("on_error", "failed"), [("raise", 1), ("record", 4)])
def test_the_pieces_that_end_a_sweep_are_said_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_error: str, failed: int
) -> None:
    def cursed(*_: Any) -> Any:
        raise OSError("cursed")

    monkeypatch.setattr(job.Job, "piece", cursed)
    with pytest.raises(OSError, match="cursed"):
        swept(seeds=9, on_error=on_error, folder=tmp_path)
    assert vg.status(tmp_path).failed == failed


def deadly(parameters: Any, scales: Any, x: Any) -> dict[str, Any]:
    """Ends the process that traces it for the flatter network, if that is none of pytest's."""
    if multiprocessing.parent_process() and parameters.network.depth == NET.depth:
        os._exit(1)
    return {"out": vg.forward(parameters, scales, x)[0]}


def test_an_executor_that_loses_its_processes_is_said_to_and_what_was_done_is_kept(tmp_path: Path) -> None:
    measure = vg.measurement(deadly, {"out": ()})
    sentence = r"^executor must keep its processes alive, got one that lost them \(.*\): call again with a new one"
    with spawned(1) as executor, pytest.raises(RuntimeError, match=sentence):
        swept(measure=measure, executor=executor, folder=tmp_path, workers=1)
    assert [path.name for path in tmp_path.glob("0*.npz")] == ["0001-00000-00000.npz"]
    assert_same(swept(measure=measure, folder=tmp_path), swept(measure=measure))


def test_workers_of_another_version_are_refused_by_what_differs(
    processes: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = job.describe_machine()
    monkeypatch.setattr(job, "describe_machine", lambda: {**here, "jax": "9.9", "device": "tpu: v9"})
    sentence = (
        rf"^a worker must compute as the sweep's own process does, got one of another jax \({here['jax']} there, 9\.9 "
        r"here\), device \(.* there, tpu: v9 here\)$"
    )
    with pytest.raises(ValueError, match=sentence):
        swept(executor=processes, folder=tmp_path)
    assert not list(tmp_path.glob("0*"))


def test_what_cannot_travel_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: list[int]
) -> None:
    class Never(Executor):
        def submit(self, *_: Any, **__: Any) -> Any:
            pytest.fail("submitted")

    lock = threading.Lock()
    with pytest.raises(ValueError, match=r"^executor must get what can be pickled, got a network measured by .*lock"):
        swept(network=NET, executor=Never(), measure=vg.measurement(lambda p, s, x: {"a": lock}, {"a": ()}))
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(
        ValueError, match=r"^executor must get what can be pickled, got own measured by gains that cann"
    ):
        swept(executor=Never())
    assert not pieces
    with pytest.raises(ValueError, match=r"or define functions in a module$"):
        swept(executor=Never(), folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_functions_of_modules_need_no_cloudpickle(processes: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    assert_same(swept(network=NET, executor=processes), swept(network=NET))


def test_processes_that_fork_are_refused() -> None:
    """They would hang."""
    executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
    with pytest.raises(ValueError, match=r"^executor must spawn its processes, .*, got one that forks$"):
        swept(executor=executor)


def test_many_networks_are_unpacked_and_compiled_once_each() -> None:
    networks = {f"{depth}": vg.mlp(width=3, depth=depth, inputs=4) for depth in range(2, 9)}
    with spawned(1) as executor:
        swept(network=networks, executor=executor, workers=1)
        assert executor.submit(programs).result() == [7, 21, 7]


def test_a_task_holds_the_inputs_of_its_seed_alone(processes: Executor) -> None:
    sizes: list[int] = []

    class Weighs(Executor):
        def submit(self, function: Any, task: Any, /) -> Any:  # type: ignore[override]
            sizes.append(len(pickle.dumps(task)))
            return processes.submit(function, task)

    for seeds in (2, 40):
        xs = np.random.default_rng(0).normal(size=(seeds, 4)).astype(np.float32)
        options: dict[str, Any] = {"network": NET, "x": xs, "leading": "seed", "seeds": seeds, "sigma_w": 1.5}
        assert_same(swept(executor=Weighs(), **options), swept(**options))
    assert max(sizes) < 1.02 * min(sizes)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"executor": ProcessPoolExecutor}, r"^executor must have submit\(function, \*arguments\), got "),
        ({"executor": 3}, r"^executor must have submit\(function, \*arguments\), got 3$"),
        ({"workers": 0}, r"^workers must be at least 1, got 0$"),
        ({"on_error": "ignore"}, r"^on_error must be one of record, raise, got 'ignore'$"),
        ({"part": (0, 2)}, r"^part must come with a folder, where its pieces are kept, got \(0, 2\) without one$"),
    ],
)
def test_bad_input_is_one_sentence(pieces: list[int], options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        swept(**options)
    assert not pieces


# --- Dask -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Of a scheduler and two worker processes."""
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 50}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        yield client


def test_dask_gives_the_bits_of_threads_though_a_worker_is_killed(client: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {**CALLS["trainings"], "seeds": 4, "sigma_w": np.linspace(0.5, 1.5, 5)}
    killed: list[int] = []

    def kill() -> None:
        while len(list(tmp_path.glob("0*.npz"))) < 3:
            time.sleep(0.001)
        killed.extend(client.run(os.getpid).values())
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    found = swept(executor=client.get_executor(), folder=tmp_path, **options)
    thread.join()
    assert_same(found, swept(**options))
    assert_same(vg.collect(tmp_path), found)
    assert found.missing_points == 0


def test_a_piece_that_fails_in_dask_is_tried_again_and_said(client: Any) -> None:
    with pytest.warns(RuntimeWarning, match=r"^2 of 6 pieces failed .* \(ValueError: this seed is cursed\)"):
        found = swept(network=NET, seeds=3, measure=Faulty(1, False, "raises"), executor=client.get_executor())
    assert found.missing_points == 2


# --- submitit -------------------------------------------------------------------------------------------------------


def test_submitit_does_single_pieces(tmp_path: Path) -> None:
    """Whose futures call nobody back."""
    submitit = pytest.importorskip("submitit")
    options: dict[str, Any] = {"network": NET, "seeds": 1, "memory": 2**20}
    executor = submitit.AutoExecutor(tmp_path, cluster="local")
    executor.update_parameters(timeout_min=5)
    assert_same(swept(executor=executor, **options), swept(**options))
