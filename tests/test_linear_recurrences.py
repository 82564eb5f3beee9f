"""Linear recurrences: gradients against plain JAX of the papers' equations, and the laws that they are drawn from."""

import functools
from collections.abc import Callable
from typing import Any

import architecture_oracles as truth
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from test_architectures import TOLERANCE, Case, assert_close, make

import vgjax as vg
from vgjax.networks import delta_net, diagonal_rnn, mamba, min_gru, min_lstm, rg_lru

WIDTH, DEPTH = 6, 4
BUILDERS = {
    "diagonal_rnn": diagonal_rnn,
    "mamba": mamba,
    "min_gru": min_gru,
    "min_lstm": min_lstm,
    "rg_lru": rg_lru,
    "delta_net": delta_net,
}
OF_WIDTH = ("mamba", "rg_lru")  # an input is as wide as the state


# --- the papers' equations --------------------------------------------------------------------------------------------


def diagonal(p: Any, pair: Any, scales: dict[str, float], x: Any) -> Any:
    """h' = lambda h + gamma B x, in complex numbers."""
    h, gamma = pair[0] + 1j * pair[1], p["gain"][0] + 1j * p["gain"][1]
    b = p["input_kernel"][:, :WIDTH] + 1j * p["input_kernel"][:, WIDTH:]
    h = jnp.exp(-jnp.exp(p["log_decay"]) + 1j * p["phase"]) * h + gamma * (x @ b)
    return jnp.stack([h.real, h.imag])


def selective(p: Any, h: Any, scales: dict[str, float], x: Any) -> Any:
    """A state and a channel at a time."""
    dt, b = jnp.log1p(jnp.exp(x @ p["step_kernel"] + p["step_bias"])), x @ p["input_kernel"]
    a, each = jnp.exp(p["log_rate"]), len(x) // len(dt)

    def one(n: int, c: int) -> Any:
        group = c // each
        return jnp.exp(-dt[group] * a[n % len(a), group]) * h[n, c] + dt[group] * b[n] * x[c]

    return jnp.stack([jnp.stack([one(n, c) for c in range(len(x))]) for n in range(len(b))])


def sigmoid(a: Any) -> Any:
    return 1 / (1 + jnp.exp(-a))


def gates(p: Any, x: Any, count: int) -> Any:
    return jnp.split(x @ p["input_kernel"] + p["bias"], count)


def minimal_gru(p: Any, h: Any, scales: dict[str, float], x: Any) -> Any:
    z, n = gates(p, x, 2)
    z = sigmoid(z - scales["forget_bias"])
    return (1 - z) * h + z * n


def minimal_lstm(p: Any, h: Any, scales: dict[str, float], x: Any) -> Any:
    f, i, n = gates(p, x, 3)
    f, i = sigmoid(f + scales["forget_bias"]), sigmoid(i)
    return f / (f + i) * h + i / (f + i) * n


def real_gated(p: Any, h: Any, scales: dict[str, float], x: Any) -> Any:
    r, i = map(sigmoid, gates(p, x, 2))
    a = (1 / (1 + jnp.exp(p["decay"]))) ** (8 * r)
    return a * h + jnp.sqrt(1 - a**2) * (i * x)


def matrix(p: Any, s: Any, scales: dict[str, float], x: Any, decay: bool = False, erase: bool = True) -> Any:
    key, value = x @ p["key_kernel"], x @ p["value_kernel"]
    key = key / jnp.linalg.norm(key)
    beta = scales["rate"] * sigmoid(x @ p["rate_kernel"])
    kept = jnp.eye(len(key)) * (sigmoid(x @ p["decay_kernel"] + scales["forget_bias"]) if decay else 1)
    kept = kept @ (jnp.eye(len(key)) - beta * jnp.outer(key, key)) if erase else kept
    return s @ kept + beta * jnp.outer(value, key)


def parts(cell: Callable[..., Any], *state: int, every_step: bool = False) -> truth.Parts:
    """From the state 0; the head reads all of the state."""
    head = lambda p, s: s.reshape(-1) @ p["kernel"] + p["bias"]  # noqa: E731
    return truth.Parts(lambda p, x: jnp.zeros(state, x.dtype), cell, head, fed=True, every_step=every_step)


def build(name: str, **options: Any) -> Callable[..., vg.Network]:
    inputs = {} if name in OF_WIDTH else {"inputs": 5}
    return functools.partial(BUILDERS[name], **{"width": WIDTH, "depth": DEPTH, "outputs": 3, **inputs, **options})


KERNEL, OFFSETS = {"sigma_v": 1.3}, {"sigma_v": 1.3, "sigma_b": 0.4, "forget_bias": (0.7, -0.4, 1.5, 0.2)}
OF_MATRIX = {"sigma_v": 1.3, "sigma_gate": 0.8, "rate": (1.0, 2.0, 0.5, 1.5)}
CASES = {
    "diagonal": Case(build("diagonal_rnn"), parts(diagonal, 2, WIDTH), "squared_error", KERNEL),
    "mamba": Case(
        build("mamba", states=3), parts(selective, 3, WIDTH), "squared_error", KERNEL | {"sigma_dt": 0.7}, dtype="float64"
    ),
    "mamba of heads, a loss at every step": Case(
        build("mamba", states=3, heads=2, every_step=True),
        parts(selective, 3, WIDTH, every_step=True),
        "cross_entropy",
        KERNEL | {"sigma_dt": 0.7},
    ),
    "min_gru": Case(build("min_gru"), parts(minimal_gru, WIDTH), "squared_error", OFFSETS),
    "min_lstm": Case(build("min_lstm"), parts(minimal_lstm, WIDTH), "cross_entropy", OFFSETS, dtype="float64"),
    "rg_lru": Case(
        build("rg_lru"), parts(real_gated, WIDTH), "squared_error", KERNEL | {"sigma_b": 0.4}, dtype="float64"
    ),
    "delta_net": Case(build("delta_net"), parts(matrix, WIDTH, WIDTH), "squared_error", OF_MATRIX),
    "gated delta_net": Case(
        build("delta_net", decay="scalar"),
        parts(functools.partial(matrix, decay=True), WIDTH, WIDTH),
        "squared_error",
        OF_MATRIX | {"forget_bias": 1.2},
        dtype="float64",
    ),
    "gated linear attention": Case(
        build("delta_net", decay="channel", erase=False),
        parts(functools.partial(matrix, decay=True, erase=False), WIDTH, WIDTH),
        "cross_entropy",
        OF_MATRIX | {"forget_bias": 1.2},
        dtype="float64",
    ),
}
SLOW = ("mamba of heads, a loss at every step", "gated delta_net")
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES]


@pytest.mark.parametrize("name", NAMES)
def test_every_gradient_is_that_of_automatic_differentiation_of_the_papers_equations(name: str) -> None:
    """In float32 also of inputs so small that states travel with an exponent."""
    case = CASES[name]
    tolerance = TOLERANCE[case.dtype]
    with jax.enable_x64(case.dtype == "float64"):
        made = make(case)
        flow = jax.jit(vg.gradient_flow)
        sizes = (1.0, 1e-14) if case.dtype == "float32" and name != "mamba of heads, a loss at every step" else (1.0,)
        flows = {size: flow(made.parameters, made.scales, size * made.xs, made.ys) for size in sizes}
    for size, ours in flows.items():
        expected = truth.gradients(case.parts, made.ordinary, made.by_layer, size * made.xs, made.ys, case.loss)
        assert_close(ours.log_mean_square, expected.log_mean_square, tolerance, "log_mean_square")
        assert_close(ours.log_gradient, expected.log_gradient, tolerance, "log_gradient")
        for found, others in (
            (ours.log_parameter_gradient, expected.log_parameter_gradient),
            (ours.log_tied_gradient, expected.log_tied_gradient),
        ):
            assert set(found) == set(others)
            for path in others:
                assert_close(found[path], others[path], tolerance, path)
        names = ("real", "imaginary") if name == "diagonal" else ()
        assert set(ours.log_gradient_parts) == set(names)
        for part, log in zip(names, expected.log_gradient_parts if names else (), strict=True):
            assert_close(ours.log_gradient_parts[part], log, tolerance, part)
