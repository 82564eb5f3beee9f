"""Models that other people have published, diagnosed as they are: is every number right, and what does it cost?

Every parameter's gradient norm is compared with `jax.grad`'s, and the cotangent at every site with the gradient by a
perturbation that is added there (by JAX's own reverse pass, at every step of a loop). Norms below 1e-6 of the largest
of their model are rounding (a bias in front of a batch norm) and left out. Seconds are of first and second calls, as
ratios to those of ``jax.jit(jax.grad(loss))`` in the same process.

    FLAX=... BONSAI=... python benchmarks/bench_public_models.py   # where the models come from: public_models.py
"""

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import SMALL, print_table, write_json
from public_models import CASES, KEY

import vgjax as vg
from vgjax.diagnosis.graphs import Node, Variable, is_inexact
from vgjax.diagnosis.layout import Layout
from vgjax.diagnosis.models import Model, read_model
from vgjax.diagnosis.prepared import Prepared, prepare
from vgjax.diagnosis.tapped import run

RIGHT = 1e-5
"""How far a logarithm may be off."""

ROUNDING = 1e-6
"""Of the largest norm of a model: what is smaller is not compared."""

WANTED = 14, 16
"""So many of so many models."""


def seconds(function: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def worst(ours: list[float], norms: list[float]) -> tuple[float, int]:
    """The largest difference of logarithms, and how many were compared."""
    largest = max(norms, default=0.0)
    pairs = [(log, math.log(n)) for log, n in zip(ours, norms, strict=True) if n > ROUNDING * largest]
    return max((abs(a - b) if math.isfinite(a) else math.inf for a, b in pairs), default=0.0), len(pairs)


def norm(a: Any) -> float:
    return float(np.linalg.norm(np.asarray(a, np.complex128).ravel()))


def of_parameters(model: Model, prepared: Prepared) -> tuple[float, int]:
    """Gradient norms of parameters beside `jax.grad`'s."""
    loss = lambda p: model.function(p, model.inputs, model.rest)  # noqa: E731
    right = [norm(g) for g in jax.tree.leaves(jax.jit(jax.grad(loss))(model.parameters))]
    readings = prepared.read()
    return worst([readings.parameter_gradients[name] for name in prepared.layout.names], right)


def of_sites(model: Model, prepared: Prepared) -> tuple[float, int]:
    """Cotangents of all that is read, at all steps of loops, beside gradients by perturbations."""
    layout = prepared.layout
    loops = places(layout)
    zeros = [jnp.zeros((*(n.steps for n in nodes), *v.shape), v.aval.dtype) for v, nodes in loops.items()]
    leaves = [jnp.asarray(a) for a in jax.tree.leaves((model.parameters, model.inputs, model.rest))]

    def loss(offsets: list[Any]) -> Any:
        moved = lambda _, value, offset: (value + offset, ())  # noqa: E731
        return run(layout.graph, leaves, dict(zip(loops, offsets, strict=True)), moved)[0][0].sum()

    numbers, ours, norms = prepared.numbers(), [], []
    for (variable, nodes), gradient in zip(loops.items(), jax.jit(jax.grad(loss))(zeros), strict=True):
        for index in np.ndindex(*(node.steps for node in nodes)):
            log = numbers.log_cotangent(variable, index)
            if not math.isnan(log):  # a branch that is not taken
                ours.append(log)
                norms.append(norm(gradient[index]))
    return worst(ours, norms)


def places(layout: Layout) -> dict[Variable, tuple[Node, ...]]:
    """What is read, with the loops it stands in."""
    read = {v: state.loops for state in layout.states() for v in state.variables}
    read |= {site.variable: site.loops for site in layout.sites.all}
    return {v: loops for v, loops in read.items() if is_inexact(v) and v.differentiable}


def costs(model: Model) -> dict[str, float]:
    """First and second calls of a diagnosis as ratios to those of the gradient alone."""
    loss = lambda p: model.function(p, model.inputs, model.rest)  # noqa: E731
    gradient, prepared = jax.jit(jax.grad(loss)), prepare(model)
    first = seconds(lambda: gradient(model.parameters)), seconds(lambda: prepared.read().loss)
    again = [(seconds(lambda: gradient(model.parameters)), seconds(lambda: prepared.read().loss)) for _ in range(5)]
    second = [min(each) for each in zip(*again, strict=True)]
    return {"first_call": first[1] / first[0], "second_call": second[1] / second[0]}


def measured(name: str) -> dict[str, Any]:
    """One model: right or not, and what it cost; or why it was not there."""
    try:
        given = CASES[name]()
    except (ImportError, KeyError, FileNotFoundError) as error:
        return {"model": name, "missing": f"{type(error).__name__}: {error}"}
    try:
        found = vg.diagnose(*given)
        model = read_model(*given, KEY)
        prepared = prepare(model)
        (parameters, leaves), (sites, compared) = of_parameters(model, prepared), of_sites(model, prepared)
    except Exception as error:  # any failure is a result here
        return {"model": name, "failed": f"{type(error).__name__}: {error}"}
    row = {"model": name, "verdict": found.verdict.sentence, "parameters": parameters, "leaves": leaves}
    row |= {"sites": sites, "compared": compared, "right": max(parameters, sites) <= RIGHT}
    return row | costs(model)


def main() -> None:
    """All models, one table, one JSON."""
    warnings.simplefilter("ignore")  # those of other libraries
    names = list(CASES)[:3] if SMALL else list(CASES)
    rows = []
    for name in names:
        rows.append(measured(name))
        print(rows[-1], flush=True)
        jax.clear_caches()
    there = [row for row in rows if "missing" not in row]
    right = sum(bool(row.get("right")) for row in there)
    print_table(
        [{key: row.get(key, "") for key in ("model", "parameters", "sites", "right", "first_call")} for row in rows]
    )
    print(f"{right} of {len(there)} are right")
    ratios = {key: float(np.median([row[key] for row in there if key in row])) for key in ("first_call", "second_call")}
    wanted = {"right": f"{WANTED[0]} of {WANTED[1]}", "first_call": 3.0, "second_call": 3.0}
    write_json(
        "public_models", {"models": rows, "right": right, "tried": len(there), "median": ratios, "wanted": wanted}
    )


if __name__ == "__main__":
    main()
