"""The table of `docs/exactness.md`: kinds of networks x calls, past either end of the float range, each cell measured.

``python tests/test_exactness_table.py --write`` measures it again. A cell says what was found: ``exact``, all numbers
are right; ``marked``, all are right or NaN with a reason; ``refused``, in a sentence. ``false`` is what none may say.
"""

import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mp_blocks
import mp_network
import numpy as np
import oracles
import pytest
from exactness import CALLS, TOLERANCE, Case, Judge, Ours, first_marked, numbers
from mp_activations import ACTIVATIONS
from mp_blocks import DEPTH, INPUTS, OUTPUTS, TWINS, WIDTH
from mp_network import Exact

import vgjax as vg

TABLE = Path(__file__).parent.parent / "docs" / "exactness.md"
REGION = re.compile(r"<!-- table -->\n.*?<!-- /table -->", re.S)
KEY = jax.random.key(3)

PHIS = {
    "linear at both ends: GELU": "gelu",
    "bounded: tanh": "tanh",
    "dead zone: soft threshold": "soft threshold",
    "oscillating: sin": "sin",
    "degree 2 at zero, 1 far out: h tanh(h)": "h tanh h",
    "degree 2: h abs(h)": "odd square",
    "degree 1/2: sign(h) sqrt(abs(h))": "root",
    "degree 1 at zero, -1 far out: h / (1 + h^2)": "1 to -1",
    "no degree far out: arcsinh": "asinh",
    "no end far out: exp(h) - 1": "expm1",
}
"""Fully connected networks, by what is special about phi."""

KINDS = [*PHIS, *TWINS]
ENDS = {"in range": 0, "toward zero": -1, "far out": 1}
SIGMAS = {0: (1.0, 0.1), -1: (0.05, 0.0), 1: (20.0, 0.1)}
"""sigma_w and sigma_b at each end."""


@functools.cache
def drawn(kind: str) -> Any:
    if kind in TWINS:
        net = TWINS[kind].network()
    else:
        phi = ACTIVATIONS[PHIS[kind]].library
        net = vg.mlp(width=WIDTH, depth=DEPTH, activation=phi, inputs=INPUTS, outputs=OUTPUTS)
    # The draw of seed 0 of a sweep.
    return vg.init(jax.random.split(jax.random.fold_in(KEY, 0))[0], net)


def case(kind: str, end: int) -> Case:
    parameters, (sigma_w, sigma_b) = drawn(kind), SIGMAS[end]
    every = dict.fromkeys(("sigma_w", "sigma_v", "sigma_vo"), sigma_w) | {"sigma_b": sigma_b}
    scales = {name: value for name, value in every.items() if name in parameters.network.scales}
    rng = np.random.default_rng(7)
    x, x2 = (np.ldexp(rng.normal(size=parameters.network.input_shape).astype(np.float32), 90 * end) for _ in "12")
    if kind in TWINS:
        ordinary = vg.absorb_scales(parameters, vg.Scales(**scales))[0]
        exact = functools.partial(mp_blocks.network, TWINS[kind], ordinary)
        symmetric = ("bias", "stem/bias") if kind == "batch norm" else ()
        similar = tuple(f"attention/{name}/kernel" for name in ("query", "key")) if kind == "attention" else ()
        return Case(kind, parameters, scales, (x, x2), exact, TWINS[kind].ruled, symmetric, similar)
    phi, weights = ACTIVATIONS[PHIS[kind]], oracles.weights(parameters, sigma_w, sigma_b)
    exact = lambda x, wobble, seed: mp_network.mlp(weights, phi, x, wobble=wobble, seed=seed)  # noqa: E731
    return Case(kind, parameters, scales, (x, x2), exact, phi.ruled)


# --- calls whose results have a shape of their own ------------------------------------------------------------------


class Found(NamedTuple):
    """What a call says: its result, and the numbers of it that are compared."""

    result: Any
    numbers: list[Ours]
    tolerance: float = TOLERANCE["float32"]


def _swept(case: Case, measure: Any, *inputs: Any) -> Any:
    return vg.sweep(case.network, *inputs, measure=measure, key=KEY, seeds=1, scales=case.scaled())


def _found(case: Case, result: Any, values: Any, truth: Callable[[Any], Any], reads: Any, slack: float = 0.0) -> Found:
    # Rates, norms and trainings have NaN for a mark; its layer is that of the states.
    named = result if hasattr(result, "first_inexact_layer") else asked(case, "states")
    first = first_marked(named, case.depth)
    ours = Ours(np.asarray(values, float), reads, first, lambda e, _: truth(e))
    return Found(result, [ours], TOLERANCE[case.dtype] + slack)


def sweep_gains(case: Case) -> Found:
    u = np.asarray(vg.gains().draw(jax.random.fold_in(KEY, 0), case.network)[1][0])
    swept = _swept(case, vg.gains(), case.xs[0])
    return _found(case, swept, swept.log_gain[0], lambda e: e.push(u), np.arange(case.depth + 1))


def sweep_gradients(case: Case) -> Found:
    y = case.drawn("y")
    swept = _swept(case, vg.gradients(loss="squared_error"), case.xs[0], y)
    return _found(case, swept, swept.log_gradient[0], functools.partial(_gradient, y), case.depth)


def _gradient(y: Any, network: Exact) -> Any:
    return network.gradients(y, "squared_error").get("states", np.nan)


def log_singular_values(case: Case) -> Found:
    found = vg.log_singular_values(case.parameters, case.scaled(), case.xs[0])
    slack = 10 * found.condition * float(jnp.finfo(case.dtype).eps)  # right to about that many roundings
    values = found.log_singular_values[0]

    def truth(network: Exact) -> np.ndarray:
        # A direction that one layer shrinks to 2^-18 of its largest counts as lost in float32.
        right, lost = network.log_singular_values(case.depth), network.worst_condition > 2.0**18
        return np.where(np.isneginf(values) & lost, -np.inf, right)

    return _found(case, found, values, truth, case.depth, slack)


def lyapunov_exponents(case: Case) -> Found:
    found = vg.lyapunov_exponents(case.parameters, case.scaled(), case.xs[0], 1, discard=0)
    start = np.asarray(vg.measure.graded.orthonormal(case.drawn("u").size, 1, case.dtype))[:, 0]
    return _found(case, found, found.log_stretch.sum(axis=0), lambda e: e.push(start)[-1:], case.depth)


def log_frobenius(case: Case) -> Found:
    found = vg.log_frobenius(case.parameters, case.scaled(), case.xs[0])
    return _found(case, found, found.log_norm, lambda e: e.log_frobenius(), np.arange(case.depth + 1))


def train(case: Case) -> Found:
    """Gradients before the first update."""
    y, x = case.drawn("y"), case.xs[0]
    # A batch that is one state is the minibatch.
    inputs, labels = (x, y) if "batch" in repr(case.network.stages[0].spec) else (x[None], y[None])
    config = vg.training.SnapshotConfig(steps=(0,))
    data = vg.data.Examples(inputs, labels)
    done = vg.train(case.parameters, case.scaled(), data, "sgd", 1, batch_size=len(inputs), snapshots=config)
    # A root mean square over the examples, of which such a state holds several.
    values = done.snapshots.log_gradient[0] + np.log(len(inputs)) / 2
    return _found(case, done.snapshots, values, functools.partial(_gradient, y), case.depth)


OTHERS: dict[str, Callable[[Case], Found]] = {
    "sweep of gains": sweep_gains,
    "sweep of gradients": sweep_gradients,
    "log_singular_values": log_singular_values,
    "lyapunov_exponents": lyapunov_exponents,
    "log_frobenius": log_frobenius,
    "train": train,
}
COLUMNS = [*CALLS, *OTHERS]


# --- cells ----------------------------------------------------------------------------------------------------------


def cell(judge: Judge, column: str) -> tuple[str, list[str]]:
    """What a call does with a case, and what is wrong about it."""
    case = judge.case
    try:
        found = asked(case, column)
    except ValueError as error:
        return "refused", [] if re.fullmatch(r"[^\n]*\bmust\b[^\n]*", str(error)) else [str(error)]
    if isinstance(found, Found):
        pairs = [judge.compare(ours, found.tolerance) for ours in found.numbers]
        false, compared = [f"{column}{wrong}" for wrongs, _ in pairs for wrong in wrongs], sum(n for _, n in pairs)
        results, kinds = [found.result], found.numbers
    else:
        false, compared = judge.false(column, found)
        results = list(found.values()) if isinstance(found, dict) else [found]
        # A slope is a plain number, NaN past its range; everything else is one with an exponent.
        by_name = numbers(column, case, found).items()
        kinds = [ours for what, ours in by_name if not ours.absent and what != "slopes"]
    if false:
        return "false", false
    wrong = [why for why in map(judge.needless, results) if why]
    # Where there is no truth (a state beyond everything) NaN is a mark as well; but c of a zero state is none.
    ignored = [np.isnan(ours.truth(*judge.pairs[0])) if column == "correlation" else False for ours in kinds]
    if wrong or any(np.any(np.isnan(ours.values) & ~np.asarray(i)) for ours, i in zip(kinds, ignored, strict=True)):
        return "marked", wrong
    return "exact", [] if compared else ["nothing compared"]


def asked(case: Case, column: str) -> Any:
    """What the library says."""
    if column in OTHERS:
        return OTHERS[column](case)
    return jax.tree.map(np.asarray, _program(case.name, column)(case.parameters, case.scaled(), *case.xs))


@functools.cache
def _program(kind: str, column: str) -> Callable[..., Any]:
    """Compiled once for all ends."""
    return jax.jit(functools.partial(CALLS[column], case(kind, 0)))


def rows(kind: str) -> dict[str, dict[str, tuple[str, list[str]]]]:
    """All cells of a kind, at every end."""
    judges = {end: Judge(case(kind, ENDS[end])) for end in ENDS}
    cells = {end: {column: cell(judge, column) for column in COLUMNS} for end, judge in judges.items()}
    # The programs of all kinds together take more memory maps than a process may have.
    _program.cache_clear()
    jax.clear_caches()
    return cells


# --- the table ------------------------------------------------------------------------------------------------------


def written(kind: str, end: str, cells: dict[str, tuple[str, list[str]]]) -> str:
    return f"| {kind} | {end} | " + " | ".join(cells[column][0] for column in COLUMNS) + " |"


def table() -> str:
    head = ["| kind | end | " + " | ".join(f"`{c}`" if " " not in c else c for c in COLUMNS) + " |"]
    head.append("|---" * (2 + len(COLUMNS)) + "|")
    lines = [written(kind, end, cells) for kind in KINDS for end, cells in rows(kind).items() if ENDS[end]]
    return "\n".join(["<!-- table -->", *head, *lines, "<!-- /table -->"])


QUICK = ["degree 2 at zero, 1 far out: h tanh(h)", "a user's product (A h) * (B h)"]


@pytest.mark.parametrize(
    "kind", [*QUICK, *(pytest.param(kind, marks=pytest.mark.torture) for kind in KINDS if kind not in QUICK)]
)
def test_cells_are_as_committed_and_none_is_false(kind: str) -> None:
    for end, cells in rows(kind).items():
        assert not any(wrong for _, wrong in cells.values()), (end, cells)
        assert not ENDS[end] or written(kind, end, cells) in TABLE.read_text(), cells


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        TABLE.write_text(REGION.sub(lambda _: table(), TABLE.read_text()))
    else:
        for kind in KINDS:
            for end, cells in rows(kind).items():
                print(kind, end, cells)
