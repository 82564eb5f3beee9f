"""Torture: 40 layers of every kind of activation, far from critical both ways, with and without bias, against mpmath.

Every number that a measurement gives has to be right, or its layer marked by ``first_inexact_layer``; a mark has to have
a reason. What "right" can mean is limited by rounding, which a chaotic network amplifies: the truth is computed three
times, once with the weights as they are and twice with all of them moved by a few roundings of the dtype. An entry has
to be right to the tolerance of the dtype plus four times what that moves; where it moves the logarithm by a tenth or
more, rounding decides and nothing is compared.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mp_network
import numpy as np
import oracles
import pytest
from mp_network import ACTIVATIONS, Exact

import vgjax as vg

SIZES = INPUTS, WIDTH, OUTPUTS = 5, 6, 3
DEPTH = 40
SIGMA_W, SIGMA_B = (0.0625, 0.5, 3.0, 50.0), (0.0, 0.5)  # the same numbers in float32 and in float64
POINTS = [(w, b) for w in SIGMA_W for b in SIGMA_B]
SEEN = (1, 7, 20, DEPTH)  # depths of the matrix of gains
LABEL = 1

TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
"""Of a logarithm, relative to it where it is beyond 1."""

MOST = 2.0**25
"""Exponents beyond may be marked: the next few layers multiply them past what 32 bits hold."""


class Entries(NamedTuple):
    """Numbers of one kind along some axis.

    Attributes:
        ours: what the library gives.
        truth: a function of the exact network.
        marked: which of them the library says nothing about.
    """

    ours: Any
    truth: Callable[[Exact], np.ndarray]
    marked: Any


@functools.cache
def given() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    sizes = {"x": INPUTS, "x2": INPUTS, "u": WIDTH, "v": WIDTH, "y": OUTPUTS}
    return {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}


@functools.cache
def parameters(name: str, dtype: str) -> Any:
    """Of one network; the same numbers in both dtypes."""
    activation = ACTIVATIONS[name].library
    nets = [
        vg.mlp(width=WIDTH, depth=DEPTH, activation=activation, inputs=INPUTS, outputs=OUTPUTS, dtype=d)
        for d in ("float32", dtype)
    ]
    drawn = oracles.drawn(nets[0], (INPUTS, *[WIDTH] * (DEPTH + 1), OUTPUTS))
    with jax.enable_x64(dtype == "float64"):
        leaves = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), dtype), (drawn.stem, drawn.stages, drawn.head))
        return vg.networks.Parameters(*leaves, nets[1])


@functools.cache
def measured(name: str, dtype: str, sigma_w: float, sigma_b: float) -> dict[str, Any]:
    """Every measurement of one network, in numpy."""
    with jax.enable_x64(dtype == "float64"):
        return jax.tree.map(np.asarray, _everything(name, dtype)(parameters(name, dtype), sigma_w, sigma_b))


@functools.cache
def _everything(name: str, dtype: str) -> Callable[..., Any]:
    # One program: most of the time goes into compiling.
    @jax.jit
    def run(params: Any, sigma_w: Any, sigma_b: Any) -> dict[str, Any]:
        scales, (x, x2, u, v, y) = vg.Scales(sigma_w=sigma_w, sigma_b=sigma_b), given().values()
        return {
            "push": vg.push_forward(params, scales, x, u),
            "pull": vg.pull_back(params, scales, x, v),
            "gains": vg.gain_matrix(params, scales, x, SEEN),
            "squared error": vg.gradient_flow(params, scales, x, y),
            "cross-entropy": vg.gradient_flow(params, scales, x, LABEL),
            "states": vg.states(params, scales, x),
            "correlation": vg.correlation(params, scales, x, x2),
        }

    return run


@functools.cache
def truths(name: str, sigma_w: float, sigma_b: float, x: str, wobble: float = 0.0, seed: int = 0) -> Exact:
    weights = oracles.weights(parameters(name, "float32"), sigma_w, sigma_b)
    return Exact(weights, ACTIVATIONS[name], given()[x], wobble=wobble, seed=seed)


def entries(results: dict[str, Any], dtype: str) -> Iterator[tuple[str, Entries]]:
    """Everything that is compared, by name."""
    u, v, y = (given()[name] for name in "uvy")
    layers, spread = np.arange(DEPTH + 1), np.log(WIDTH)

    def after(result: Any) -> np.ndarray:
        return layers >= result.first_inexact_layer

    for call in ("push", "pull", "gains", "squared error", "cross-entropy"):
        result = results[call]
        yield f"{call}: states", Entries(result.log_mean_square, lambda e: 2 * e.log_norms() - spread, after(result))
    push, pull, gains = (results[call] for call in ("push", "pull", "gains"))
    yield "push: gain", Entries(push.log_gain, lambda e: e.push(u), after(push))
    # A product of Jacobians up to layer m says nothing if any of them does not.
    yield "pull: gain", Entries(pull.log_gain, lambda e: e.pull(DEPTH, v), pull.first_inexact_layer <= DEPTH)
    for m, row in zip(SEEN, gains.log_gain, strict=True):
        with jax.enable_x64(dtype == "float64"):
            seed = np.asarray(vg.measure.flow.direction(jax.random.fold_in(jax.random.key(0), m), (WIDTH,), dtype))
        truth = functools.partial(lambda m, seed, e: e.pull(m, seed), m, seed)
        yield f"gains: to {m}", Entries(row[: m + 1], truth, gains.first_inexact_layer <= m)
    for call, loss, target in (("squared error", "squared_error", y), ("cross-entropy", "cross_entropy", LABEL)):
        flow = results[call]
        none = (flow.first_inexact_layer <= DEPTH) | flow.saturated
        ours = {"states": flow.log_gradient, **flow.log_parameter_gradient}
        for path, log in ours.items():
            truth = functools.partial(lambda path, loss, y, e: e.gradients(y, loss)[path], path, loss, target)
            yield f"{call}: gradient of {path}", Entries(log, truth, none)
        with np.errstate(divide="ignore"):
            slopes = np.log(flow.mean_square_slope)
        yield f"{call}: slopes", Entries(slopes, lambda e: e.mean_square_slopes(), after(flow)[:-1])
    of_states = results["states"]
    yield "states: norms", Entries(of_states.log_norm, lambda e: e.log_norms(), after(of_states))


def failures(name: str, dtype: str, sigma_w: float, sigma_b: float) -> tuple[list[str], int]:
    """What is false and not marked, or marked without a reason; and how many numbers were compared."""
    results = measured(name, dtype, sigma_w, sigma_b)
    eps = float(jnp.finfo(dtype).eps)
    truth, *moved = (truths(name, sigma_w, sigma_b, "x", *w) for w in ((), (4 * eps, 1), (4 * eps, 2)))
    found, compared = [], 0
    for what, entry in entries(results, dtype):
        wrong, known = compare(entry, truth, moved, dtype)
        compared += int(np.sum(known))
        if np.any(wrong):
            at = int(np.argmax(wrong))
            ours, right = np.atleast_1d(entry.ours)[at], np.atleast_1d(entry.truth(truth))[at]
            found.append(f"{what}[{at}] is {ours:.6g}, right is {right:.6g} ({np.sum(wrong)} false)")
    for call, result in results.items():
        reason = needless(int(result.first_inexact_layer), name, truth, dtype)
        found += [f"{call}: marked at {result.first_inexact_layer} {reason}"] if reason and call != "correlation" else []
    return found, compared


def compare(entry: Entries, truth: Exact, moved: list[Exact], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Which numbers are false and not marked, and which were compared at all."""
    ours, right = np.atleast_1d(entry.ours).astype(float), np.atleast_1d(entry.truth(truth))
    marked, largest = np.broadcast_to(entry.marked, right.shape), np.log(float(jnp.finfo(dtype).max))
    size = np.maximum(1, np.abs(right))
    with np.errstate(invalid="ignore"):
        shift = np.max([np.abs(np.atleast_1d(entry.truth(m)) - right) for m in moved], axis=0)
        shift = np.where(np.isneginf(right) & [np.isneginf(np.atleast_1d(entry.truth(m))) for m in moved], 0, shift)
        shift = np.max(np.broadcast_to(shift, (1, *right.shape)) if shift.ndim == 1 else shift, axis=0)
        near = np.abs(ours - right) <= TOLERANCE[dtype] * size + 4 * shift
    # What the truth itself does not know (a tower of exponentials) is right only if it is marked.
    unknown = np.isnan(right)
    decided = unknown | (4 * shift < 0.1 * size) & ~np.isnan(shift)
    same = (np.isneginf(ours) & np.isneginf(right)) | near & np.isfinite(ours)
    del largest
    return ~marked & decided & ~same, ~marked & decided & ~unknown


def needless(first: int, name: str, truth: Exact, dtype: str) -> str:
    """Why a mark at that layer has no reason; empty if it has one."""
    if first > DEPTH or first >= len(truth.states):
        return ""
    window = float(jnp.finfo(dtype).maxexp) // 4
    power = truth.log_norms()[first] / np.log(2)
    slope = truth.mean_square_slopes()[min(first, DEPTH - 1)] / 2
    below, above = ACTIVATIONS[name].ruled
    if abs(power) > MOST or slope < np.log(float(jnp.finfo(dtype).tiny)) + 10:
        return ""
    if abs(power) <= window - 1:
        return f"where the state is 2^{power:.3g}"
    if (power < 0 and below) or (power > 0 and above):
        return f"where the state is 2^{power:.3g} and phi a power"
    return ""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_number_is_right_or_marked(name: str, dtype: str) -> None:
    found = {point: failures(name, dtype, *point)[0] for point in POINTS}
    assert not any(found.values()), found
