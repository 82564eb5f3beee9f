"""Runs that are killed at every file operation, one after the other: nothing lost, nothing half, the same bits.

Each trial is a process of its own, killed (SIGKILL) before its k-th operation in the run's folder, k spread over all of
them: a driver; one of three parts of a job array, beside the others; one of two drivers in one folder. In another fifth
of the trials the disk is full from the k-th operation on, and in another one a worker of Dask is killed when k pieces
are there. Then the run goes on, and its result is compared with that of a run that nobody disturbed, to the bit.

    python benchmarks/kills.py 200        # 10 if no number is given
"""

import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import numpy as np

import vgjax as vg

PIECES = 8
WRITES = ("open", "os.rename", "os.link", "os.remove", "os.chmod", "os.mkdir", "os.listdir", "os.scandir")
"""Python's names of what touches a folder (`sys.audit`)."""
warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)


def sweep(folder: Path | None, **options: Any) -> Any:
    """Four seeds of two points, a piece each."""
    network = vg.mlp(width=4, depth=3, inputs=4)
    about = {"key": jax.random.key(0), "seeds": 4, "sigma_w": [0.5, 1.5], "memory": 1, "workers": 1, **options}
    return vg.sweep(network, np.ones(4, np.float32), folder=folder, **about)


# --- processes ------------------------------------------------------------------------------------------------------


def child(work: Callable[[], Any]) -> int:
    """A process that does this; its number. No JAX has run here yet, whose threads a child would not have."""
    process = os.fork()
    if process:
        return process
    status = 9
    try:
        with contextlib.redirect_stderr(open(os.devnull, "w")), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(process: int) -> int:
    """Its exit status; that of a killed one is minus its signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def at_operation(folder: Path, k: int, do: Callable[[str, tuple[Any, ...]], Any]) -> list[int]:
    """From here on, do something before the k-th operation in a folder, and before all later ones; what counts them."""
    met: list[int] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        touches = event in WRITES and arguments and isinstance(arguments[0], (str, os.PathLike))
        if touches and str(arguments[0]).startswith(str(folder)):
            met.append(1)
            if len(met) >= k:
                do(event, arguments)

    sys.addaudithook(hook)
    return met


def killed_at(folder: Path, k: int, work: Callable[[], Any]) -> bool:
    """A process that does this, killed before its k-th operation; whether it had so many."""

    def until() -> None:
        at_operation(folder, k, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        work()

    status = ended(child(until))
    assert status in (0, -signal.SIGKILL), f"exit status {status}"
    return status != 0


# --- what is disturbed ----------------------------------------------------------------------------------------------


def driver(folder: Path, k: int) -> bool:
    """Alone."""
    return killed_at(folder, k, lambda: sweep(folder))


def part(folder: Path, k: int) -> bool:
    """The second of three parts, beside the others."""
    others = [child(lambda i=i: sweep(folder, part=(i, 3))) for i in (0, 2)]
    killed = killed_at(folder, k, lambda: sweep(folder, part=(1, 3)))
    assert [ended(other) for other in others] == [0, 0], "another part was hurt"
    return killed


def two_drivers(folder: Path, k: int) -> bool:
    """Both do everything."""
    other = child(lambda: sweep(folder))
    killed = killed_at(folder, k, lambda: sweep(folder))
    assert ended(other) == 0, "the other driver was hurt"
    return killed


def full_disk(folder: Path, k: int) -> bool:
    """From the k-th operation on: the result is whole in memory, or refused before any work."""

    def full(event: str, arguments: tuple[Any, ...]) -> None:
        reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not reads and event not in ("os.listdir", "os.scandir", "os.remove"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def work() -> None:
        met = at_operation(folder, k, full)
        try:
            found = sweep(folder)
        except ValueError as error:
            assert "folder must be a folder that can be written to" in str(error), error  # noqa: PT017
        else:
            assert digest(found) == UNDISTURBED
        os._exit(FULL if len(met) >= k else 0)

    status = ended(child(work))
    assert status in (0, FULL), f"exit status {status}"
    return status == FULL


FULL = 3
DISTURBED = {each.__name__: each for each in (driver, part, two_drivers, full_disk)}

SHARED = {"part": 3, "two_drivers": 2}
"""Among how many the operations are shared, about."""


def digest(result: vg.Result) -> str:
    """Of all bits."""
    return json.dumps({name: [str(a.dtype), a.tobytes().hex()] for name, a in result.arrays.items()})


def check(folder: Path) -> None:
    """What a run left: whole pieces or none, and the rest is done."""

    def work() -> None:
        if (folder / "settings.json").exists():
            before = {path.name: path.read_bytes() for path in folder.glob("0*.npz")}
            done = vg.status(folder).done
            assert done == len(before)
            if done:
                assert vg.load(folder).missing_points == PIECES - done, "a piece was half"
        else:
            before = {}
            assert not list(folder.glob("0*")) if folder.exists() else True, "pieces of no run"
        assert digest(sweep(folder)) == UNDISTURBED, "other bits"
        assert digest(vg.collect(folder)) == UNDISTURBED, "other bits in the folder"
        lost = [name for name, content in before.items() if (folder / name).read_bytes() != content]
        assert not lost, "a piece was done again"
        left = {path.name for path in folder.iterdir()}
        assert len(left) == PIECES + 1, f"left behind: {left}"

    assert ended(child(work)) == 0, f"what was left could not go on: {folder}"


# --- Dask -----------------------------------------------------------------------------------------------------------


def of_dask(client: Any, folder: Path, k: int) -> None:
    """A worker is killed when k pieces are there; the engine replaces it."""
    workers = list(client.run(os.getpid).values())
    over = threading.Event()

    def kill() -> None:
        while not over.is_set() and len(list(folder.glob("0*.npz"))) < k:
            time.sleep(0.001)
        os.kill(workers[k % len(workers)], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        found = sweep(folder, executor=client.get_executor(pure=False), workers=2)
    finally:
        over.set()
        thread.join()
    assert digest(found) == UNDISTURBED, "other bits"
    assert digest(vg.collect(folder)) == UNDISTURBED, "other bits in the folder"


# --- all of it ------------------------------------------------------------------------------------------------------


def count_operations(folder: Path) -> int:
    """Of a driver that nobody disturbs."""
    run, count = folder / "counted", folder / "count"

    def work() -> None:
        met = at_operation(run, sys.maxsize, lambda *_: None)
        sweep(run)
        count.write_text(str(len(met)))

    assert ended(child(work)) == 0
    return int(count.read_text())


def loop(kills: int) -> dict[str, Any]:
    """Kills by what was disturbed; raises AssertionError at the first that does harm."""
    global UNDISTURBED
    folder = Path(tempfile.mkdtemp())
    shared = folder / "undisturbed"
    assert ended(child(lambda: shared.write_text(digest(sweep(None))))) == 0
    UNDISTURBED = shared.read_text()
    operations = count_operations(folder)
    counts, trials = dict.fromkeys([*DISTURBED, "dask"], 0), kills // 5
    for i in range(trials):
        for name, disturb in DISTURBED.items():
            run = folder / f"{name}-{i}"
            met = disturb(run, 1 + i * operations // SHARED.get(name, 1) // trials)
            counts[name] += met
            check(run)
            shutil.rmtree(run)
    # From here on JAX runs in this process too.
    from distributed import Client, LocalCluster

    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 50}
    for i in range(kills - 4 * trials):  # a cluster each: Dask does not always replace the process twice
        with LocalCluster(**options) as cluster, Client(cluster) as client:
            of_dask(client, folder / f"dask-{i}", i % PIECES)
        counts["dask"] += 1
    shutil.rmtree(folder)
    return {"trials": kills, "kills": counts, "operations": operations, "pieces": PIECES}


UNDISTURBED = ""

if __name__ == "__main__":
    start = time.perf_counter()
    found = loop(int(sys.argv[1]) if sys.argv[1:] else 10)
    print(json.dumps({**found, "seconds": time.perf_counter() - start}))
