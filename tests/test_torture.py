"""Torture: 40 layers of every kind of activation, far from critical both ways, with and without bias, against mpmath.

Every number that a measurement gives has to be right, or its layer marked by ``first_inexact_layer``; a mark has to have
a reason. What "right" can mean is limited by rounding, which a chaotic network amplifies: the truth is computed three
times, once with the weights as they are and twice with all of them moved by a few roundings of the dtype. A number has
to be right to the tolerance of the dtype plus four times what that moves; where that is a tenth or more, rounding
decides and nothing is compared.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mp_network
import numpy as np
import oracles
import pytest
from mp_activations import ACTIVATIONS, Phi
from mp_network import Exact, correlation

import vgjax as vg

INPUTS, WIDTH, OUTPUTS, DEPTH = 5, 6, 3, 40
SEEN = (1, 7, 20, DEPTH)  # depths of the matrix of gains
LABEL = 1

TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
"""Of a logarithm, relative to it where it is beyond 1."""

FAR = {"float32": 100, "float64": 900}
"""Powers of two near either end of the floats."""

MOST = 2.0**25
"""Exponents beyond may be marked: the next few layers multiply them past what 32 bits hold."""


class Point(NamedTuple):
    """Where a network is measured; the numbers are the same in float32 and in float64.

    Attributes:
        sigma_w, sigma_b: its scales.
        end: its input is of size 1 (0), or near the lower (-1) or the upper (1) end of the floats.
    """

    sigma_w: float
    sigma_b: float
    end: int = 0


POINTS = [
    *(Point(w, b) for w in (0.0625, 0.5, 3.0, 50.0) for b in (0.0, 0.5)),
    *(Point(w, b, end) for w, b in ((3.0, 0.0), (0.5, 0.5)) for end in (-1, 1)),
]


# --- ours -----------------------------------------------------------------------------------------------------------


@functools.cache
def given() -> dict[str, np.ndarray]:
    """Two inputs of size 1, a tangent, a cotangent, a target."""
    rng = np.random.default_rng(5)
    sizes = {"x": INPUTS, "x2": INPUTS, "u": WIDTH, "v": WIDTH, "y": OUTPUTS}
    return {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}


def inputs(dtype: str, end: int) -> list[np.ndarray]:
    return [np.ldexp(given()[name].astype(dtype), end * FAR[dtype]) for name in ("x", "x2")]


@functools.cache
def parameters(name: str, dtype: str) -> Any:
    """Of one network; the same numbers in both dtypes."""
    options: Any = {"width": WIDTH, "depth": DEPTH, "activation": ACTIVATIONS[name].library}
    network, wanted = (vg.mlp(**options, inputs=INPUTS, outputs=OUTPUTS, dtype=d) for d in ("float32", dtype))
    drawn = oracles.drawn(network, (INPUTS, *[WIDTH] * (DEPTH + 1), OUTPUTS))
    with jax.enable_x64(dtype == "float64"):
        leaves = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), dtype), (drawn.stem, drawn.stages, drawn.head))
        return vg.networks.Parameters(*leaves, wanted)


@functools.cache
def _program(name: str, dtype: str) -> Callable[..., dict[str, Any]]:
    # One program: most of the time goes into compiling.
    @jax.jit
    def everything(params: Any, scales: Any, x: Any, x2: Any) -> dict[str, Any]:
        u, v, y = (given()[name] for name in "uvy")
        return {
            "push": vg.push_forward(params, scales, x, u),
            "pull": vg.pull_back(params, scales, x, v),
            "gains": vg.gain_matrix(params, scales, x, SEEN),
            "squared error": vg.gradient_flow(params, scales, x, y),
            "cross-entropy": vg.gradient_flow(params, scales, x, LABEL),
            "states": vg.states(params, scales, x),
            "correlation": vg.correlation(params, scales, x, x2),
        }

    return everything


def measured(name: str, dtype: str, point: Point) -> dict[str, Any]:
    """Every measurement of one network, in numpy."""
    with jax.enable_x64(dtype == "float64"):
        scales = vg.Scales(sigma_w=jnp.asarray(point.sigma_w, dtype), sigma_b=jnp.asarray(point.sigma_b, dtype))
        results = _program(name, dtype)(parameters(name, dtype), scales, *inputs(dtype, point.end))
        return jax.tree.map(np.asarray, results)


class Ours(NamedTuple):
    """Numbers of one kind.

    Attributes:
        values: any shape.
        reads: the last state that each depends on: shape ``(layers,)``, or a number.
        marked: which of them the library says nothing about.
    """

    values: Any
    reads: Any
    marked: Any


def numbers(results: dict[str, Any]) -> dict[str, Ours]:
    """Everything that is compared, by name."""
    layers = np.arange(DEPTH + 1)

    def ours(call: str, values: Any, reads: Any = layers, unless: Any = False) -> Ours:
        return Ours(np.asarray(values, float), reads, (reads >= results[call].first_inexact_layer) | unless)

    found = {
        "push: gain": ours("push", results["push"].log_gain),
        # A product of Jacobians up to layer m says nothing if any of them does not.
        "pull: gain": ours("pull", results["pull"].log_gain, DEPTH),
        "states: norms": ours("states", results["states"].log_norm),
        "states: directions": ours("states", results["states"].direction),
        "correlation: c": ours("correlation", results["correlation"].correlation),
        "correlation: ln(1 - c)": ours("correlation", results["correlation"].log_one_minus_c),
    }
    for call in ("push", "pull", "gains", "squared error", "cross-entropy"):
        found[f"{call}: states"] = ours(call, results[call].log_mean_square)
    for m, row in zip(SEEN, results["gains"].log_gain, strict=True):
        found[f"gains: to {m}"] = ours("gains", row[: m + 1], m)
    for call in ("squared error", "cross-entropy"):
        flow = results[call]
        for path, log in {"states": flow.log_gradient, **flow.log_parameter_gradient}.items():
            found[f"{call}: gradient of {path}"] = ours(call, log, DEPTH, flow.saturated)
        with np.errstate(divide="ignore"):
            found[f"{call}: slopes"] = ours(call, np.log(flow.mean_square_slope), layers[:-1])
    return found


# --- the truth ------------------------------------------------------------------------------------------------------


def truth(network: Exact, other: Exact, dtype: str) -> dict[str, np.ndarray]:
    """The same numbers by the same names, of a network at both inputs."""
    u, v, y = (given()[name] for name in "uvy")
    norms, slopes, (c, apart) = network.log_norms(), network.mean_square_slopes(), correlation(network, other)
    # In two directions that meet, 1 - c is known to eps^2, unless the states meet (`vgjax.correlation`).
    lost = (apart < 2 * np.log(100 * float(jnp.finfo(dtype).eps))) & (np.abs(norms - other.log_norms()) > 1e-3)
    found = {
        "push: gain": network.push(u),
        "pull: gain": network.pull(DEPTH, v),
        "states: norms": norms,
        "states: directions": network.directions(),
        "correlation: c": c,
        "correlation: ln(1 - c)": np.where(lost, -np.inf, apart),
    }
    for call in ("push", "pull", "gains", "squared error", "cross-entropy"):
        found[f"{call}: states"] = 2 * norms - np.log(WIDTH)
    for m in SEEN:
        with jax.enable_x64(dtype == "float64"):
            seed = np.asarray(vg.measure.flow.direction(jax.random.fold_in(jax.random.key(0), m), (WIDTH,), dtype))
        found[f"gains: to {m}"] = network.pull(m, seed)
    for call, loss, target in (("squared error", "squared_error", y), ("cross-entropy", "cross_entropy", LABEL)):
        for path, log in network.gradients(target, loss).items():
            found[f"{call}: gradient of {path}"] = log
        # A plain number, which may leave the floats as such.
        smallest, largest = (np.log(float(getattr(jnp.finfo(dtype), end))) for end in ("tiny", "max"))
        found[f"{call}: slopes"] = np.where(slopes < smallest, -np.inf, np.where(slopes > largest, np.inf, slopes))
    return found


def failures(name: str, dtype: str, point: Point) -> tuple[list[str], int]:
    """What is false and not marked, or marked without a reason; and how many numbers were compared."""
    phi, xs = ACTIVATIONS[name], inputs(dtype, point.end)
    weights = oracles.weights(parameters(name, "float32"), point.sigma_w, point.sigma_b)

    def networks(wobble: float = 0.0, seed: int = 0) -> list[Exact]:
        return [mp_network.mlp(weights, phi, x, wobble=wobble, seed=seed) for x in xs]

    pair, few = networks(), 4 * float(jnp.finfo(dtype).eps)
    right, *moved = (truth(*both, dtype) for both in (pair, networks(few, 1), networks(few, 2)))
    known_until = horizon(right, moved)
    results, found, compared = measured(name, dtype, point), [], 0
    for what, ours in numbers(results).items():
        nothing = np.full(np.shape(ours.values), np.nan)
        theirs, *shifted = (facts.get(what, nothing) for facts in (right, *moved))
        judged = np.broadcast_to((~ours.marked & (ours.reads < known_until)).T, theirs.shape[:1] or ()).reshape(
            theirs.shape[:1] + (1,) * (theirs.ndim - 1)
        )
        false, known = compare(what, ours.values, theirs, shifted, dtype)
        compared += int(np.sum(known & judged))
        if np.any(false & judged):
            at = np.unravel_index(np.argmax(false & judged), false.shape)
            where = [int(i) for i in at]
            entry = f"{ours.values[at]:.6g}, right {theirs[at]:.6g}"
            found.append(f"{what} {where}: {entry}; {np.sum(false & judged)} false")
    for call, result in results.items():
        why = [needless(int(result.first_inexact_layer), phi, network, dtype) for network in pair]
        if all(why):
            found.append(f"{call}: marked at {result.first_inexact_layer}, {why[0]}")
    return found, compared


def horizon(right: dict[str, np.ndarray], moved: list[dict[str, np.ndarray]]) -> int:
    """The first layer whose state rounding decides; depth + 1 if there is none."""
    names, directions = ([t[f"states: {what}"] for t in (right, *moved)] for what in ("norms", "directions"))
    with np.errstate(invalid="ignore"):
        turned = np.max([np.abs(d - directions[0]).max(axis=1) for d in directions[1:]], axis=0) > 0.01
        grown = np.max([np.abs(n - names[0]) for n in names[1:]], axis=0) > 0.01 * np.maximum(1, np.abs(names[0]))
    return int(np.argmax(turned | grown)) if np.any(turned | grown) else DEPTH + 1


def compare(
    what: str, ours: np.ndarray, right: np.ndarray, moved: list[np.ndarray], dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """Which numbers are false, and which were compared at all."""
    size = np.maximum(1, np.abs(right))
    # 1 - c is worse where one way of carrying a difference takes over from the other (`vgjax.correlation`).
    tolerance = {"float32": 1e-3, "float64": 1e-7}[dtype] if what == "correlation: ln(1 - c)" else TOLERANCE[dtype]
    with np.errstate(invalid="ignore"):
        shift = np.max([np.where(right == m, 0, np.abs(m - right)) for m in moved], axis=0)
        near = (ours == right) | np.isfinite(ours) & (np.abs(ours - right) <= tolerance * size + 4 * shift)
        # What has no truth (a tower of exponentials) is right only if it is marked.
        decided = np.isnan(right) | (right == -np.inf) & (shift == 0) | (4 * shift < 0.1 * size)
    if what.startswith("correlation"):
        decided &= np.isfinite(right)
    return decided & ~near, decided & ~np.isnan(right)


def needless(first: int, phi: Phi, network: Exact, dtype: str) -> str:
    """Why a mark at that layer has no reason; empty if it has one."""
    if first > DEPTH or first >= len(network.states):
        return ""
    power, slope = network.log_norms()[first] / np.log(2), network.mean_square_slopes()[min(first, DEPTH - 1)] / 2
    # Derivatives that no float holds, and exponents that no int32 does.
    if abs(power) > MOST or slope < np.log(float(jnp.finfo(dtype).tiny)) + 10:
        return ""
    inside = abs(power) <= int(jnp.finfo(dtype).maxexp) // 4 - 1
    ruled = phi.ruled[0] if power < 0 else phi.ruled[1]
    return f"where the state is 2^{power:.3g}" + (" and phi has a rule" if ruled else "") if inside or ruled else ""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_number_is_right_or_marked(name: str, dtype: str) -> None:
    found = {point: failures(name, dtype, point)[0] for point in POINTS}
    assert not any(found.values()), found
