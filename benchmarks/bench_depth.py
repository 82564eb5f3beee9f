"""Against depth: compile time and memory of a map must not grow with it; a deep wide network need not fit in memory.

- Compile time of a whole map (trace, lower, compile, with nothing cached), at depth 10 to 10,000: the best of several,
  interleaved over the depths.
- Run time of the same map.
- Memory as the compiler has planned it (exact, unlike what the system reports): temporaries beyond the arguments and
  the results, less one copy of the results (the series over depth, before their last entry is joined to them).
- The stream: a network 1024 wide and 10,000 layers deep, 42 GB of weights, pushed through in a process of its own; its
  peak resident memory.

    python benchmarks/bench_depth.py        # SIZE=small for a quick look
"""

import json
import resource
import subprocess
import sys
import time
from typing import Any

from common import SMALL, best_of, piece_of_sweep, print_table, write_json

DEPTHS = (10, 100) if SMALL else (10, 100, 1000, 10_000)
WIDTH, SIDE, INPUTS = 64, 8, 20
COMPILES = 2 if SMALL else 5
RUNS = 3
STREAM_WIDTH, STREAM_DEPTH = 1024, 50 if SMALL else 10_000

MOST_COMPILE_TIME = 1.3  # times that of the shallowest
MOST_WORKING_MEMORY = 1.01  # times that of the shallowest
MOST_STREAM_MEMORY = 0.6  # GB


def problem(depth: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The arguments of a map over (sigma_w, sigma_b) at that depth, static and traced."""
    import jax
    import numpy as np

    import vgjax as vg
    from vgjax.measure import flow

    network = vg.mlp(width=WIDTH, depth=depth, activation="tanh", inputs=INPUTS)
    x = vg.data.sphere(jax.random.key(1), 1, INPUTS)[0]
    u = flow.directions(jax.random.key(2), network, 1)
    sigma_w, sigma_b = np.meshgrid(np.linspace(0.5, 3, SIDE), np.linspace(0, 1, SIDE), indexing="ij")
    grid = vg.Scales(sigma_w=sigma_w.ravel(), sigma_b=sigma_b.ravel())
    return piece_of_sweep(vg.init(jax.random.key(0), network), x, u, grid)


def compiled(static: tuple[Any, ...], traced: tuple[Any, ...]) -> tuple[float, Any]:
    """Seconds from the Python function to the compiled program, with nothing cached, and that program."""
    import jax

    from vgjax.ensembles import job

    jax.clear_caches()
    start = time.perf_counter()
    program = job._measure_points.lower(*static, *traced).compile()
    return time.perf_counter() - start, program


def against_depth() -> list[dict[str, Any]]:
    """Compile time, run time and memory of the map at every depth."""
    problems = {depth: problem(depth) for depth in DEPTHS}
    programs = {depth: compiled(*arguments)[1] for depth, arguments in problems.items()}  # also warms up
    seconds = dict.fromkeys(DEPTHS, float("inf"))
    for _ in range(COMPILES):
        for depth, arguments in problems.items():
            seconds[depth] = min(seconds[depth], compiled(*arguments)[0])
    run = best_of(RUNS, {str(depth): lambda d=depth: programs[d](*problems[d][1]) for depth in DEPTHS})
    rows = []
    for depth in DEPTHS:
        memory = programs[depth].memory_analysis()
        rows.append(
            {
                "depth": depth,
                "compile s": seconds[depth],
                "run s": run[str(depth)],
                "arguments MB": memory.argument_size_in_bytes / 1e6,
                "results MB": memory.output_size_in_bytes / 1e6,
                "temporaries MB": memory.temp_size_in_bytes / 1e6,
                "working MB": (memory.temp_size_in_bytes - memory.output_size_in_bytes) / 1e6,
            }
        )
    return rows


def peak() -> float:
    """Peak resident memory of this process so far, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def stream() -> dict[str, Any]:
    """The deep wide network in this process: seconds, and the peak resident memory after each step."""
    import jax

    import vgjax as vg

    imported = peak()
    network = vg.mlp(width=STREAM_WIDTH, depth=STREAM_DEPTH, activation="tanh", inputs=INPUTS)
    x = vg.data.sphere(jax.random.key(1), 1, INPUTS)[0]
    parameters = jax.block_until_ready(vg.init(jax.random.key(0), network, stream=True))
    drawn = peak()
    start = time.perf_counter()
    found = jax.block_until_ready(vg.push_forward(parameters, vg.Scales(sigma_w=1.5, sigma_b=0.1), x))
    seconds = time.perf_counter() - start
    return {
        "width": STREAM_WIDTH,
        "depth": STREAM_DEPTH,
        "weights GB": 4 * STREAM_DEPTH * STREAM_WIDTH * (STREAM_WIDTH + 1) / 1e9,
        "seconds": seconds,
        "ln gain": float(found.log_gain[-1]),
        "peak GB after import": imported,
        "peak GB after init": drawn,
        "peak GB": peak(),
    }


def stream_in_fresh_process() -> dict[str, Any]:
    """`stream` where nothing else has been allocated.

    To be called while this process is still small: on Linux a child's peak starts at its parent's resident memory.
    """
    ran = subprocess.run([sys.executable, __file__, "stream"], capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"the stream's process failed:\n{ran.stderr}")
    return json.loads(ran.stdout.splitlines()[-1])


def main() -> None:
    """The table over depth, the stream, what had to be reached; one JSON."""
    streamed = stream_in_fresh_process()  # first of all
    print_table([streamed])
    print()
    rows = against_depth()
    print_table(rows)

    def target(what: str, value: float, most: float) -> dict[str, Any]:
        return {"what": what, "value": value, "most": most, "reached": value <= most}

    first, last = rows[0], rows[-1]
    span = f"depth {last['depth']} over depth {first['depth']}"
    reached = [
        target(f"compile time, {span}", last["compile s"] / first["compile s"], MOST_COMPILE_TIME),
        target(f"working memory, {span}", last["working MB"] / first["working MB"], MOST_WORKING_MEMORY),
        target("peak GB of the stream", streamed["peak GB"], MOST_STREAM_MEMORY),
    ]
    print()
    print_table(reached)
    write_json(
        "depth",
        {
            "width": WIDTH,
            "points": SIDE**2,
            "dtype": "float32",
            "targets": reached,
            "rows": rows,
            "stream": streamed,
        },
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["stream"]:
        print(json.dumps(stream()))
    else:
        main()
