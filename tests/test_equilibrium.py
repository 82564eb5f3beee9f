"""Infinitely many tied layers, and many: deep equilibria and looped residual stacks."""

import math
from typing import Any

import architecture_oracles as truth
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_architectures import Case, assert_close, make

import vgjax as vg
from vgjax.blocks import Equilibrium, RNNCell, spec
from vgjax.theory import linear_recurrences as theory

WIDTH = 6
KEY = jax.random.key(7)


def equilibria(width: int = WIDTH, depth: int = 2, dtype: str = "float32", **options: Any) -> vg.Network:
    cell = spec(RNNCell, width, width, dtype=dtype)
    head = vg.dense(width, 3, dtype=dtype)
    return vg.stack(spec(Equilibrium, cell, **options), depth=depth, input_shape=width, head=head)


def unrolled(p: Any, h: Any, scales: dict[str, float], _: None) -> Any:
    """300 layers of one cell from 0, differentiated as they stand."""
    p = p["cell"]

    def layer(z: Any, _: None) -> tuple[Any, None]:
        return jnp.tanh(z @ p["kernel"] + h @ p["input_kernel"] + p["bias"]), None

    return jax.lax.scan(layer, jnp.zeros_like(h), None, length=300)[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_gradient_is_that_of_very_many_layers(dtype: str) -> None:
    head = lambda p, h: h @ p["kernel"] + p["bias"]  # noqa: E731
    parts = truth.Parts(lambda p, x: x, unrolled, head)
    scales = {"sigma_w": (0.6, 0.5), "sigma_v": 1.3, "sigma_b": 0.4}
    case = Case(equilibria, parts, "squared_error", scales, dtype=dtype)
    tolerance = {"float32": 1e-5, "float64": 1e-11}[dtype]
    with jax.enable_x64(dtype == "float64"):
        made = make(case)
        flow = jax.jit(vg.gradient_flow)(made.parameters, made.scales, made.xs, made.ys)
    expected = truth.gradients(parts, made.ordinary, made.by_layer, made.xs, made.ys, case.loss)
    assert_close(flow.log_mean_square, expected.log_mean_square, tolerance, "log_mean_square")
    assert_close(flow.log_gradient, expected.log_gradient, tolerance, "log_gradient")
    assert set(flow.log_parameter_gradient) == set(expected.log_parameter_gradient)
    for path, log in flow.log_parameter_gradient.items():
        assert_close(log, expected.log_parameter_gradient[path], tolerance, path)
    iterations = np.asarray(flow.diagnostics["iterations"])
    assert np.all((iterations > 5) & (iterations < 300)), iterations


def test_both_directions_are_of_one_jacobian() -> None:
    """<v, J u> = <J^T v, u>, and J is that of finite differences."""
    block = spec(Equilibrium, spec(RNNCell, WIDTH, WIDTH)).build(nnx.Rngs(0))
    scales = vg.Scales(sigma_w=0.5, sigma_v=1.0, sigma_b=0.0)
    h, u, v = jax.random.normal(KEY, (3, WIDTH))
    f = lambda h: block(h, scales)  # noqa: E731
    pushed, pulled = jax.jvp(f, (h,), (u,))[1], jax.vjp(f, h)[1](v)[0]
    assert float(v @ pushed) == pytest.approx(float(pulled @ u), rel=1e-5)
    np.testing.assert_allclose((f(h + 1e-2 * u) - f(h - 1e-2 * u)) / 2e-2, pushed, atol=2e-3)


@pytest.mark.parametrize(("sigma_w", "iterations", "settles"), [(0.5, 200, True), (0.5, 3, False), (4.0, 200, False)])
def test_what_does_not_settle_is_no_number(sigma_w: float, iterations: int, settles: bool) -> None:
    network = equilibria(depth=2, width=200, iterations=iterations)
    parameters, x = vg.init(KEY, network), np.ones(200, np.float32)
    pushed = vg.push_forward(parameters, vg.Scales(sigma_w=sigma_w), x)
    assert int(pushed.first_nan_layer) == (3 if settles else 1)
    assert bool(np.isfinite(pushed.log_gain[-1])) == settles


class Injected(nnx.Module):
    """tanh(W z) + x, whose equilibrium has the Jacobian (1 - D W)^-1 alone."""

    scales = {"sigma_w": vg.blocks.Scale(1.0, "parameter")}  # noqa: RUF012

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (width, width)) / math.sqrt(width))

    def __call__(self, z: Any, scales: vg.Scales, x: Any) -> Any:
        return jnp.tanh(jnp.dot(scales.sigma_w * z, self.kernel[...])) + x


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_the_gain_of_an_equilibrium_is_one_over_one_minus_chi(size: float) -> None:
    """At the input 0 chi is sigma_w^2; at others it is that of the stationary variance q = sigma_w^2 E (tanh^2 + x^2),
    the input being drawn apart from the weights."""
    width, seeds, sigma_w = 150, 12, 0.8
    q = 1.0
    for _ in range(100):
        q = sigma_w**2 * (mean(np.tanh, q, 2) + size**2)
    chi = sigma_w**2 * mean(lambda a: 1 - np.tanh(a) ** 2, q, 2)
    network = vg.stack(spec(Equilibrium, spec(Injected, width)), depth=1, input_shape=width)
    xs = size * np.random.default_rng(0).normal(size=(seeds, width)).astype(np.float32)
    found = vg.sweep(network, xs, key=KEY, seeds=seeds, leading="seed", measure=vg.frobenius(), sigma_w=sigma_w)
    gains = np.exp(2 * found.log_norm[:, -1].astype(float)) / width
    expected = math.exp(theory.equilibrium_log_gain(chi))
    assert abs(gains.mean() - expected) < 4 * gains.std(ddof=1) / math.sqrt(seeds)


def mean(f: Any, q: float, power: int) -> float:
    z, weights = np.polynomial.hermite_e.hermegauss(60)
    return float(f(math.sqrt(q) * z) ** power @ weights / weights.sum())


@pytest.mark.parametrize(("loops", "scale"), [(4, 0.5), (16, 1 / 16), (16, 0.25)])
def test_a_looped_residual_block(loops: int, scale: float) -> None:
    """sum_k C(N, k)^2 eps^(2 k) of one draw, (1 + eps^2)^N of a draw for each."""
    width, seeds = 200, 40
    stack = vg.stack(vg.residual(vg.dense(width, width)), depth=loops, input_shape=width)
    x = np.ones(width, np.float32)
    for network in (vg.networks.tied(stack), stack):
        found = vg.sweep(network, x, key=KEY, seeds=seeds, measure=vg.gains(1), branch=scale)
        squares = np.exp(2 * found.log_gain[:, -1].astype(float))
        expected = math.exp(theory.looped_log_gain(loops, scale, tied=network != stack))
        assert abs(squares.mean() - expected) < 4 * squares.std(ddof=1) / math.sqrt(seeds)


def test_two_steps_of_one_glorot_kernel() -> None:
    """E |W^2 x|^2 = 1 + 2 / n^2 exactly where a kernel is used twice, 1 where each step has its own; n = 2."""
    draws = 20000
    stack = vg.stack(vg.dense(2, 2), depth=2, input_shape=2)
    for network, expected in ((vg.networks.tied(stack), 1.5), (stack, 1.0)):
        logs = jax.vmap(lambda key, n=network: vg.push_forward(vg.init(key, n), vg.Scales(), np.ones(2)).log_gain[-1])
        squares = np.exp(2 * np.asarray(logs(jax.random.split(KEY, draws)), float))
        assert abs(squares.mean() - expected) < 4 * squares.std() / math.sqrt(draws)
