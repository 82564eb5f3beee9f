"""Maps without weights against the matrix products that they do without.

One 32 x 32 map over (sigma_w, sigma_b), 100 layers, every depth, one draw. The bare scan is the same map's matrix
products and nothing else, state and tangent stacked into one product, which is the faster way; its weights are drawn
beforehand, while the draw of the tables counts. Where its kernels would not fit, one kernel stands for all layers, and
where even that takes minutes, its time follows from the rate of the largest that was run: both are said. Contenders of
one row run interleaved in one process; on a busy machine the product, which wants all cores, suffers more than what is
held against it, so its rate stands beside.

    python benchmarks/bench_implicit.py        # SIZE=small for a quick look
"""

import json
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import SMALL, best_of, print_table, write_json
from jax import Array, lax

import vgjax as vg
from vgjax.ensembles.implicit import ImplicitGains, without_weights
from vgjax.ensembles.job import Job, _measure_points
from vgjax.ensembles.sweep import grid_of
from vgjax.implicit import points, stacks, sums

SIDE, DEPTH = (8, 20) if SMALL else (32, 100)
WIDTHS = (64, 128) if SMALL else (256, 1000, 8192)
DIRECT_WIDTHS = (64,) if SMALL else (256, 1000)
LARGE = (10**3, 10**4) if SMALL else (10**3, 10**4, 10**5, 10**6)
MANY = 2**10 if SMALL else 10**6
DEEP = 200 if SMALL else 10_000
ROUNDS = 2 if SMALL else 4
BARE_MOST = 8e12
"""Floating-point operations of a bare scan that is still run; beyond, its time follows from its rate."""
TARGETS = {("tanh", 256): 6, ("tanh", 1000): 30, ("tanh", 8192): 500, ("relu", 256): 20}
DIRECT_TARGETS = {256: 1.5, 1000: 5}
HIGHEST = lax.Precision.HIGHEST
X = np.random.default_rng(0).normal(size=16).astype(np.float32)
AXES = {"sigma_w": np.linspace(0.5, 4, SIDE, dtype=np.float32), "sigma_b": np.linspace(0, 2, SIDE, dtype=np.float32)}


def network(activation: str, width: int, depth: int = DEPTH) -> vg.Network:
    return vg.mlp(width=width, depth=depth, activation=activation, inputs=len(X), outputs=10)


# --- the contenders -------------------------------------------------------------------------------------------------


@jax.jit
def bare(kernels: Array, rows: Array) -> Array:
    """One product a layer; a single kernel stands for all."""
    step = lambda h, z: (jnp.dot(h, z, precision=HIGHEST), None)  # noqa: E731
    if kernels.shape[0] == 1:
        return lax.scan(lambda h, _: step(h, kernels[0]), rows, length=DEPTH)[0]
    return lax.scan(step, rows, kernels)[0]


def bare_scan(width: int) -> tuple[Any, float, str]:
    """What runs it, its operations, and how it was had."""
    operations = 2 * DEPTH * 2 * SIDE**2 * width**2
    one = 4 * DEPTH * width**2 > 2**31
    kernels = jax.random.normal(jax.random.key(1), (1 if one else DEPTH, width, width)) / width**0.5
    rows = jax.random.normal(jax.random.key(2), (2 * SIDE**2, width))
    return lambda: bare(kernels, rows), operations, "one kernel for all layers" if one else "a kernel a layer"


def job_of(activation: str, width: int, measure: Any, *inputs: Any, depth: int = DEPTH, axes: Any = AXES) -> Job:
    """A sweep's job of one draw, as `vgjax.sweep` makes it."""
    net = network(activation, width, depth)
    case = vg.ensembles.Case(net)
    grid = grid_of(case, measure, vg.Scales(), axes)
    checked = measure.check(net, inputs)[1]
    return without_weights(Job("", net, {}, measure, grid, [checked], False, jax.random.key(0), 1))


def drawing_and_reading(job: Job, together: int | None = None) -> Any:
    """One seed of a sweep: its draw and the program of all its points."""
    count = job.grid.points

    def run() -> Any:
        drawn = job.draw(0)
        arguments = job.arguments(drawn, job.inputs[0], list(range(count)))
        return _measure_points(job.measure.compiled_for(), False, together or count, None, *arguments)

    return run


def forced_direct(job: Job) -> Job:
    """The same job by rows of vectors, where tables would do."""
    import dataclasses

    return dataclasses.replace(job, measure=ImplicitGains(1, False))


# --- rows -----------------------------------------------------------------------------------------------------------


def maps() -> list[dict[str, Any]]:
    """The map by every engine."""
    rows = []
    rate = 0.0
    for width in WIDTHS:
        run_bare, operations, how = bare_scan(width)
        work: dict[str, Any] = {}
        for activation in ("tanh", "relu", "gelu", "hard_tanh") if width <= 1000 else ("tanh", "relu"):
            work[activation] = drawing_and_reading(job_of(activation, width, vg.gains(), X))
            back = job_of(activation, width, vg.gradients(), X, np.ones(10, np.float32))
            work[f"{activation}, gradients"] = drawing_and_reading(back)
        if width in DIRECT_WIDTHS:
            work["direct tanh"] = drawing_and_reading(forced_direct(job_of("tanh", width, vg.gains(), X)))
        if operations <= BARE_MOST:
            work["bare"] = run_bare
        seconds = best_of(ROUNDS, work)
        if "bare" in seconds:
            rate = operations / seconds["bare"]
        else:
            seconds["bare"], how = operations / rate, "from its rate at the width before"
        for name, taken in seconds.items():
            if name != "bare":
                rows.append(map_row(name, width, taken, seconds["bare"], operations, how))
    return rows


def map_row(name: str, width: int, taken: float, of_bare: float, operations: float, how: str) -> dict[str, Any]:
    activation = name.split(",")[0]
    target = DIRECT_TARGETS.get(width) if name.startswith("direct") else TARGETS.get((activation, width))
    target = target / 2 if target and "gradients" in name else target
    return {
        "map": name,
        "width": width,
        "seconds": taken,
        "bare seconds": of_bare,
        "bare GFLOP/s": operations / of_bare / 1e9,
        "times bare": of_bare / taken,
        "target": target,
        "reached": None if target is None or SMALL else of_bare / taken >= target,
        "bare scan": how,
    }


def widths() -> list[dict[str, Any]]:
    """ReLU, whose sums are drawn from their own law, at any width."""
    work = {str(width): drawing_and_reading(job_of("relu", width, vg.gains(), X)) for width in LARGE}
    seconds = best_of(ROUNDS, work)
    return [
        {"width": width, "seconds": seconds[str(width)], "over the first": seconds[str(width)] / seconds[str(LARGE[0])]}
        for width in LARGE
    ]


def first_calls() -> list[dict[str, Any]]:
    """Seconds of the first sweep of a process, compilation included, import not."""
    code = """
import json, sys, time
import jax, numpy as np, vgjax as vg
name, measure, width, depth, side = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
net = vg.mlp(width=width, depth=depth, activation=name, inputs=16, outputs=10)
x, y = np.ones(16), np.ones(10)
args = (x,) if measure == "gains" else (x, y)
axes = dict(sigma_w=np.linspace(.5, 4, side), sigma_b=np.linspace(0, 2, side))
start = time.perf_counter()
vg.sweep(net, *args, measure=getattr(vg, measure)(), key=jax.random.key(0), seeds=1, weights="implicit", **axes)
print(json.dumps(time.perf_counter() - start))
"""
    rows = []
    for name in ("tanh", "relu", "gelu", "hard_tanh", "hard_swish"):
        for measure in ("gains", "gradients"):
            arguments = [name, measure, str(WIDTHS[0]), str(DEPTH), str(SIDE)]
            out = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
            seconds = json.loads(out.stdout.splitlines()[-1])
            rows.append(
                {"first call": name, "measure": measure, "seconds": seconds, "target": 8, "reached": seconds < 8}
            )
    return rows


def many_points() -> dict[str, Any]:
    """Many points, width 1000, forward and backward: every tenth layer's gradient and the last gain are kept.

    In a process of its own, for the peak of its memory.
    """
    out = subprocess.run([sys.executable, __file__, "many"], capture_output=True, text=True, check=True)
    return json.loads(out.stdout.splitlines()[-1])


def run_many() -> None:
    import resource

    side = int(MANY**0.5)
    axes = {
        "sigma_w": np.linspace(0.5, 4, side, dtype=np.float32),
        "sigma_b": np.linspace(0, 2, side, dtype=np.float32),
    }
    forward = job_of("tanh", 1000, vg.gains(), X, axes=axes)
    back = job_of("tanh", 1000, vg.gradients(), X, np.ones(10, np.float32), axes=axes)
    piece, kept = min(2**12, side**2), slice(None, None, 10)

    @jax.jit
    def read_forward(drawn: Any, scales: vg.Scales) -> Array:
        return jax.vmap(lambda s: points.push_stack(drawn, s, jnp.asarray(X)).log_gain[-1])(scales)

    @jax.jit
    def read_back(drawn: Any, scales: vg.Scales) -> Array:
        y = jnp.ones((1, 10))
        of_one = lambda s: points.gradient_stack(drawn, s, jnp.asarray(X), y, "squared_error").log_gradient[kept]  # noqa: E731
        return jax.vmap(of_one)(scales)

    def all_of_it() -> tuple[np.ndarray, np.ndarray]:
        results: tuple[list[Any], list[Any]] = ([], [])
        for into, job, read in zip(results, (forward, back), (read_forward, read_back), strict=True):
            drawn = job.draw(0)[0]
            for first in range(0, side**2, piece):
                at = list(range(first, min(first + piece, side**2)))
                at += at[-1:] * (piece - len(at))
                into.append(np.asarray(read(drawn, vg.Scales(**job.grid.take(at)[0]))))
        return np.concatenate(results[0]), np.concatenate(results[1])

    all_of_it()  # compiles
    start = time.perf_counter()
    found = all_of_it()
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    row = {
        "points": side**2,
        "finite": bool(np.all(np.isfinite(found[0])) and np.all(np.isfinite(found[1]))),
        "seconds": seconds,
        "peak GiB": peak,
        "reached": None if SMALL else seconds < 30 and peak < 2,
    }
    print(json.dumps(row))


def exactness() -> list[dict[str, Any]]:
    """float32 against float64 of the same draws, at every layer of a deep network; and of the tables in float64."""
    rows = []
    with jax.enable_x64(True):
        for activation in ("tanh", "relu", "hard_tanh", "gelu", "sigmoid"):
            for names, depth in ((sums.GAINS, DEEP), (sums.GRADIENTS, DEEP)):
                rows.append(exactness_row(activation, names, depth))
    return rows


def exactness_row(activation: str, names: tuple[str, ...], depth: int) -> dict[str, Any]:
    net = network(activation, 64, depth)
    scales = [(1.0, 0.0), (1.4142135, 0.0), (1.5, 0.05), (2.5, 0.3)]
    ends = lambda i: np.array([np.full(depth, f([s[i] for s in scales])) for f in (min, max)])  # noqa: E731
    size = float(np.sqrt(np.mean(X.astype(float) ** 2)))
    first = np.array([size, float(np.hypot(2.5 * size, 0.3))])
    box = stacks.Box(first, ends(0), ends(1))
    pieces = {kind: stacks.pieces_needed(net, box, names, kind) for kind in ("float32", "float64")}

    def read(drawn: Any) -> list[np.ndarray]:
        def one(w: Array, b: Array) -> Any:
            at = vg.Scales(sigma_w=w, sigma_b=b)
            if names == sums.GAINS:
                push = points.push_stack(drawn, at, jnp.asarray(X))
                return push.log_gain, push.log_mean_square
            flow = points.gradient_stack(drawn, at, jnp.asarray(X), jnp.ones((1, 10)), "cotangent")
            return flow.log_gradient, flow.log_parameter_gradient["kernel"]

        dtype = drawn.gram.dtype
        w, b = (jnp.asarray([s[i] for s in scales], dtype) for i in (0, 1))
        return [np.asarray(a, float) for a in jax.jit(jax.vmap(one))(w, b)]

    def drawn(kind: str, count: int | None) -> Any:
        return stacks.draw_stack(jax.random.key(3), net, box, names, count or 1, np.dtype(kind))

    single, double = (read(drawn(kind, pieces[kind])) for kind in ("float32", "float64"))
    finer = read(drawn("float64", 2 * (pieces["float64"] or 1)))
    with np.errstate(invalid="ignore"):
        error = max(np.nanmax(np.abs(a - b) / np.maximum(1, np.abs(b))) for a, b in zip(single, double, strict=True))
        of_table = max(np.nanmax(np.abs(a - b)) for a, b in zip(double, finer, strict=True)) * 100 / depth
    return {
        "activation": activation,
        "what": "gains" if names == sums.GAINS else "gradients",
        "depth": depth,
        "float32 error": float(error),
        "float32 reached": bool(error <= 1e-5),
        "pieces": pieces["float32"],
        "float64 pieces": pieces["float64"],
        "table error per 100 layers": float(of_table),
        "table reached": bool(of_table <= 1e-6),
    }


def main() -> None:
    result: dict[str, Any] = {"side": SIDE, "depth": DEPTH}
    for name, rows in (
        ("maps", maps),
        ("widths", widths),
        ("first_calls", first_calls),
        ("many_points", lambda: [many_points()]),
        ("exactness", exactness),
    ):
        result[name] = rows()
        print(f"\n{name}")
        print_table(result[name])
        write_json("implicit", result)  # after each, so that nothing is lost


if __name__ == "__main__":
    run_many() if sys.argv[1:] == ["many"] else main()
