"""Long runs: processes against threads, what a piece costs Dask, a million pieces, two hundred kills.

Targets: two worker processes on two cores have at least .9 of the speed of one process with two threads, for 64 pieces
of a training sweep, after each has compiled; Dask adds less than 50 ms to a piece; a million trivial pieces take less
than 1 ms of scheduling and bookkeeping each and less than 500 MB; of 200 kills none loses or halves anything.

    python benchmarks/bench_runs.py        # SIZE=small for a quick look; "bench_runs.py kills" does that part again
"""

import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import SMALL, print_table, read_json, write_json

import vgjax as vg
from vgjax.ensembles import job

SEEDS, STEPS, ROUNDS = (4, 20, 1) if SMALL else (16, 400, 3)
TRIVIAL, KEPT, THROUGH_DASK = (2_000, 200, 50) if SMALL else (1_000_000, 20_000, 1_000)
KILLS = 10 if SMALL else 200


def trainings(key: int, **options: Any) -> float:
    """Seconds of a sweep of four pieces a seed."""
    rng = np.random.default_rng(0)
    data = vg.data.Examples(rng.normal(size=(256, 32)).astype(np.float32), np.arange(256) % 10)
    network = vg.mlp(width=64, depth=8, inputs=32, outputs=10)
    measure = vg.trainings(data, "adam", STEPS, batch_size=64)
    start = time.perf_counter()
    found = vg.sweep(
        network,
        measure=measure,
        key=jax.random.key(key),
        seeds=SEEDS,
        sigma_w=np.linspace(1, 2, 4),
        memory=1,
        **options,
    )
    seconds = time.perf_counter() - start
    assert found.missing_points == 0
    return seconds


def processes_and_threads() -> dict[str, float]:
    """Fastest of some rounds of each, in turns, after one that compiles."""
    best = {"processes": np.inf, "threads": np.inf}
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        for key in range(ROUNDS + 1):
            options: dict[str, Any] = {"processes": {"executor": executor}, "threads": {}}
            for name, how in options.items():
                seconds = trainings(0 if not key else 1, workers=2, **how)
                best[name] = min(best[name], seconds) if key else np.inf
    pieces = 4 * SEEDS
    return {
        "pieces": pieces,
        "processes_s": best["processes"],
        "threads_s": best["threads"],
        "speed_of_processes": best["threads"] / best["processes"],
    }


def gains(**options: Any) -> float:
    """Seconds of a sweep whose pieces are nothing."""
    network = vg.mlp(width=4, depth=2, inputs=4)
    start = time.perf_counter()
    vg.sweep(network, np.ones(4), key=jax.random.key(0), seeds=THROUGH_DASK, workers=1, **options)
    return time.perf_counter() - start


def through_dask() -> dict[str, float]:
    """What a piece costs more than in this process."""
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        options: dict[str, Any] = {"dask": {"executor": client.get_executor(pure=False)}, "here": {}}
        seconds = {name: [gains(**how) for _ in range(2)][1] for name, how in options.items()}
    each = {name: 1e3 * s / THROUGH_DASK for name, s in seconds.items()}
    return {
        "pieces": THROUGH_DASK,
        "dask_ms": each["dask"],
        "here_ms": each["here"],
        "more_ms": each["dask"] - each["here"],
    }


def most_memory() -> float:
    """Megabytes that this process had at most; not those of the one that started it, as getrusage counts them."""
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]


def trivial(count: int, folder: str) -> None:
    """Prints milliseconds a piece and megabytes, before and at most, of pieces that take no time to make."""
    job.Job.piece = lambda self, drawn, seed, chunk: {"log_gain": np.zeros((1, 3), np.float32)}  # type: ignore[method-assign]
    network = vg.mlp(width=2, depth=2, inputs=2)
    options: dict[str, Any] = {"key": jax.random.key(0), "folder": folder or None, "workers": 1}
    vg.sweep(network, np.ones(2), seeds=2, **{**options, "folder": None})
    before = most_memory()
    start = time.perf_counter()
    found = vg.sweep(network, np.ones(2), seeds=count, **options)
    seconds = time.perf_counter() - start
    assert found.log_gain.shape == (count, 3)
    said = {"pieces": count, "ms": 1e3 * seconds / count, "mb_before": before, "mb": most_memory()}
    if folder:
        start = time.perf_counter()
        assert vg.status(folder).is_complete
        said["status_ms"] = 1e3 * (time.perf_counter() - start) / count
    print(json.dumps(said))


def many(count: int, kept: bool) -> dict[str, float]:
    """In a process of its own, whose memory is that of this work."""
    with tempfile.TemporaryDirectory() as folder:
        where = str(Path(folder) / "run") if kept else ""
        said = subprocess.check_output([sys.executable, __file__, "trivial", str(count), where])
    return json.loads(said)


def killed() -> dict[str, Any]:
    """What `kills.py` says."""
    script = str(Path(__file__).parent / "kills.py")
    return json.loads(subprocess.check_output([sys.executable, script, str(KILLS)]))


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "processes": processes_and_threads,
    "dask": through_dask,
    "million": lambda: many(TRIVIAL, kept=False),
    "kept": lambda: many(KEPT, kept=True),
    "kills": killed,
}


def targets(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was wanted of the parts that are there, misses included."""
    rows = [
        ("processes", "speed of processes", lambda f: f["speed_of_processes"], ">=", 0.9),
        ("dask", "more for a piece by Dask, ms", lambda f: f["more_ms"], "<", 50),
        ("million", "bookkeeping of a piece, ms", lambda f: f["ms"], "<", 1),
        ("million", "memory, MB", lambda f: f["mb"], "<", 500),
        ("kills", "kills and full disks without harm", lambda f: sum(f["kills"].values()), ">=", KILLS),
    ]
    there = [(what, value(found[part]), sign, least) for part, what, value, sign, least in rows if part in found]
    return [
        {"what": what, "value": v, "wanted": f"{sign} {least}", "reached": v >= least if sign == ">=" else v < least}
        for what, v, sign, least in there
    ]


def main(names: list[str]) -> None:
    """All parts, or some beside the others of the last run; printed as they come."""
    found: dict[str, Any] = read_json("runs") if names else {}
    for name in names or PARTS:
        found[name] = PARTS[name]()
        print(name, found[name], flush=True)
        write_json("runs", {**{part: found[part] for part in PARTS if part in found}, "targets": targets(found)})
    print_table(targets(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["trivial"]:
        trivial(int(sys.argv[2]), sys.argv[3])
    else:
        main(sys.argv[1:])
