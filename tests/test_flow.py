"""Gradient flow of ordinary networks against automatic differentiation of the same network in plain Flax NNX."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import architecture_oracles
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

import vgjax as vg

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


class Case(NamedTuple):
    """One network with its loss; cases differ in what a bug would hide in."""

    activation: str
    loss: str
    dtype: str
    widths: tuple[int, ...] = (5, 5, 5, 5, 5)
    inputs: int = 3
    outputs: int = 4
    batch: int = 3
    sigma_w: Any = 1.3
    sigma_b: Any = 0.4


CASES = [
    Case("tanh", "cross_entropy", "float32"),
    Case("relu", "squared_error", "float64", widths=(7, 4, 4, 3), inputs=9, outputs=2, batch=4),
    Case("gelu", "cotangent", "float32", widths=(6,) * 4, inputs=2, outputs=1, batch=2),
    Case("sigmoid", "cross_entropy", "float64", widths=(8, 8, 8), outputs=3, sigma_w=4.0),
    Case("selu", "squared_error", "float32", widths=(4, 9), outputs=1, batch=1, sigma_b=0.0),
    Case("user", "cotangent", "float64", widths=(7, 7, 7), inputs=1, outputs=6),
    Case("linear", "cross_entropy", "float32", sigma_w=(0.7, 1.1, 2.0, 0.3), sigma_b=(0.0, 1.0, 0.2, 0.5)),
]


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """float64 switched on for what needs it."""
    with jax.enable_x64(dtype == "float64"):
        yield


def network(case: Case) -> tuple[vg.Network, vg.networks.Parameters]:
    net = vg.mlp(
        width=case.widths,
        activation=oracles.user_activation if case.activation == "user" else case.activation,
        inputs=case.inputs,
        outputs=case.outputs,
        dtype=case.dtype,
    )
    sizes = (case.inputs, *case.widths, case.outputs)
    return net, oracles.drawn(net, sizes, dtype=case.dtype)


def scales_of(case: Case) -> vg.Scales:
    return vg.Scales(sigma_w=jnp.asarray(case.sigma_w), sigma_b=jnp.asarray(case.sigma_b))


def examples(case: Case) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(len(case.activation))
    ys = {
        "cross_entropy": rng.integers(0, case.outputs, case.batch),
        "squared_error": rng.normal(size=(case.batch, case.outputs)).astype(case.dtype),
        "cotangent": rng.normal(size=(case.batch, case.outputs)).astype(case.dtype),
    }
    return rng.normal(size=(case.batch, case.inputs)).astype(case.dtype), ys[case.loss]


def assert_logs_close(ours: Any, truth: Any, tolerance: float) -> None:
    """A difference of logarithms is a relative difference of the norms."""
    assert np.shape(ours) == np.shape(truth)
    np.testing.assert_allclose(ours, truth, rtol=0, atol=tolerance)


# --- a loss ---------------------------------------------------------------------------------------------------------


SLOW = ("gelu", "selu", "linear")


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow) if case.activation in SLOW else case for case in CASES],
    ids=lambda case: f"{case.activation}-{case.dtype}",
)
def test_every_gradient_is_that_of_automatic_differentiation(case: Case) -> None:
    tolerance = TOLERANCE[case.dtype]
    with precision(case.dtype):
        net, params = network(case)
        xs, ys = examples(case)
        loss = "cotangent" if case.loss == "cotangent" else None  # the others are read off the targets
        flow = vg.gradient_flow(params, scales_of(case), xs, ys, loss=loss)
        weights = oracles.weights(params, case.sigma_w, case.sigma_b)
        truth = oracles.gradients(weights, oracles.ACTIVATIONS[case.activation], xs, ys, case.loss)
    assert_logs_close(flow.log_gradient, truth.pop("states"), tolerance)
    assert_logs_close(flow.log_mean_square, truth.pop("log_mean_square"), tolerance)
    assert set(flow.log_parameter_gradient) == set(truth)
    for path, log in truth.items():
        assert_logs_close(flow.log_parameter_gradient[path], log, tolerance)
    assert not np.any(flow.saturated)
    assert np.all(np.asarray(flow.first_inexact_layer) == net.depth + 1)


@pytest.fixture(scope="module")
def tanh_network() -> tuple[vg.networks.Parameters, vg.Scales, np.ndarray]:
    """A small network's numbers, and a batch of three inputs, shared by tests that look at one detail."""
    _, params = network(CASES[0])
    return params, scales_of(CASES[0]), examples(CASES[0])[0]


def test_an_example_reads_its_own_gradient_whatever_stands_beside_it(tanh_network: Any) -> None:
    params, scales, xs = tanh_network
    ys = [2, 0, 3]
    together = vg.gradient_flow(params, scales, xs, ys)
    alone = [vg.gradient_flow(params, scales, x, y) for x, y in zip(xs, ys, strict=True)]
    for name in (
        "log_gradient",
        "log_mean_square",
        "mean_square_slope",
        "saturation",
        "saturated",
        "first_inexact_layer",
    ):
        series = np.stack([getattr(flow, name) for flow in alone])  # one example: no batch axis
        assert series.shape == getattr(together, name).shape
        np.testing.assert_allclose(getattr(together, name), series, atol=1e-5)


def test_without_targets_the_cotangent_has_norm_one() -> None:
    """dL/db of the head, summed over a batch, is the sum of their (equal) cotangents."""
    case = CASES[2]
    _, params = network(case)
    xs, _ = examples(case)
    flow = vg.gradient_flow(params, scales_of(case), xs, key=jax.random.key(3))
    np.testing.assert_allclose(flow.log_parameter_gradient["head/bias"], np.log(case.batch), atol=1e-6)


def test_mean_square_slope_is_of_phi_and_saturation_relative_to_its_largest_slope() -> None:
    case = CASES[3]
    with precision(case.dtype):
        _, params = network(case)
        xs, ys = examples(case)
        flow = vg.gradient_flow(params, scales_of(case), 5 * xs, ys)
        weights, phi = oracles.weights(params, case.sigma_w, case.sigma_b), oracles.PHIS["sigmoid"]
    h, slopes = 5 * xs @ weights[0][0] + weights[0][1], []
    for kernel, bias in weights[1:-1]:
        slopes.append(phi.slope(h))
        h = phi.value(h) @ kernel + bias
    flat = np.array([np.mean(s < 0.05 * 0.25, axis=1) for s in slopes]).T
    assert np.any(flat)
    np.testing.assert_allclose(flow.mean_square_slope, np.array([np.mean(s**2, axis=1) for s in slopes]).T, rtol=1e-12)
    np.testing.assert_allclose(flow.saturation, flat, rtol=1e-12)


def naive_states(kernels: np.ndarray, x: np.ndarray, v: np.ndarray, dtype: str) -> np.ndarray:
    """Whether sqrt(sum of squares) of dL/dh^l is 0 or not finite when all of a sigmoid network is in this dtype."""
    w, x, v = (jnp.asarray(a, dtype) for a in (kernels, x, v))

    def loss(nudges: jax.Array) -> jax.Array:
        h = x + nudges[0]
        h, _ = jax.lax.scan(lambda h, layer: (jax.nn.sigmoid(h) @ layer[0] + layer[1], None), h, (w, nudges[1:]))
        return jnp.sum(jax.nn.sigmoid(h) * v)

    g = jax.jit(jax.grad(loss))(jnp.zeros((len(kernels) + 1, len(x)), dtype))
    norms = jnp.sqrt(jnp.sum(g * g, axis=1))
    return np.asarray((norms == 0) | ~jnp.isfinite(norms))


def test_naive_says_where_a_plain_backward_pass_loses_the_gradient() -> None:
    """Identity kernels in stem and head, so that the network is a bare chain of sigmoid layers."""
    net = vg.mlp(width=6, depth=60, activation="sigmoid", inputs=6, outputs=6)
    params = dataclasses.replace(
        oracles.drawn(net, (6,) * 63),
        stem={"kernel": 2 * jnp.eye(6), "bias": jnp.zeros(6)},
        head={"kernel": jnp.eye(6), "bias": jnp.zeros(6)},
    )
    x, v = np.ones(6, np.float32), np.ones(6, np.float32)
    scales, kernels = vg.Scales(sigma_w=0.5), 0.5 * np.asarray(params.stages[0]["kernel"])
    for dtype in ("float32", "bfloat16", "float16"):
        lost = vg.naive_reading(params, scales, x, v, dtype, loss="cotangent")
        truth = naive_states(kernels, x, v, dtype)
        assert 0 < np.sum(truth) < len(truth)
        assert np.sum(truth != lost) <= 1  # the last bits go a layer earlier or later with the order of operations
    assert np.all(np.isfinite(vg.gradient_flow(params, scales, x, v, loss="cotangent").log_gradient))


def test_a_dead_network_has_no_gradient_and_no_nan() -> None:
    """All biases negative and all kernels 0: from h^1 on every ReLU is dead."""
    net = vg.mlp(width=4, depth=5, activation="relu", inputs=3, outputs=2)
    params = jax.tree.map(lambda a: 0 * a, oracles.drawn(net, (3, *[4] * 6, 2)))
    stage = {"kernel": params.stages[0]["kernel"], "bias": params.stages[0]["bias"] - 1}
    stem = {"kernel": jnp.ones((3, 4)), "bias": params.stem["bias"]}
    head = {"kernel": jnp.ones((4, 2)), "bias": params.head["bias"]}
    dead = vg.networks.Parameters(stem, (stage,), head, net)
    scales, x = vg.Scales(sigma_w=1.0, sigma_b=1.0), np.ones((2, 3), np.float32)
    flow = vg.gradient_flow(dead, scales, x, [0, 1])
    assert np.all(np.isneginf(flow.log_gradient))
    assert np.all(np.isneginf(flow.log_parameter_gradient["kernel"]))
    assert not any(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(flow))
    push = vg.push_forward(dead, scales, x[0])
    np.testing.assert_array_equal(np.isneginf(push.log_gain), [False, *[True] * 5])
    np.testing.assert_allclose(push.log_mean_square[1:], 0, atol=1e-6)


# --- directions -----------------------------------------------------------------------------------------------------


class Mapped(NamedTuple):
    """A network with its numbers, one input, its dense Jacobians J_{m<-l} by (m, l), and the tolerance."""

    net: vg.Network
    params: vg.networks.Parameters
    scales: vg.Scales
    x: np.ndarray
    jacobians: dict[tuple[int, int], np.ndarray]
    tolerance: float


MAPPED = [
    Case("gelu", "", "float64", widths=(4, 4, 7, 3)),
    Case("user", "", "float32"),
]


@pytest.fixture(params=MAPPED, ids=["unequal", "square"])
def mapped(request: pytest.FixtureRequest) -> Iterator[Mapped]:
    with precision(request.param.dtype):
        yield _mapped(request.param)


@functools.cache
def _mapped(case: Case) -> Mapped:
    net, params = network(case)
    x = np.random.default_rng(1).normal(size=case.inputs).astype(case.dtype)
    jacobians = oracles.jacobians(
        oracles.weights(params, case.sigma_w, case.sigma_b), oracles.ACTIVATIONS[case.activation], x
    )
    return Mapped(net, params, scales_of(case), x, jacobians, TOLERANCE[case.dtype])


def test_push_forward_is_the_dense_jacobian_times_each_tangent(mapped: Mapped) -> None:
    net, params, scales, x, jacobians, tolerance = mapped
    us = np.random.default_rng(2).normal(size=(3, jacobians[0, 0].shape[1])).astype(x.dtype)
    us[1] *= 1e-3  # tangents are taken as they are
    truth = [[oracles.log_norm(jacobians[l, 0] @ u) for l in range(net.depth + 1)] for u in us]
    assert_logs_close(vg.push_forward(params, scales, x, us).log_gain, truth, tolerance)
    assert_logs_close(vg.push_forward(params, scales, x, us[1]).log_gain, truth[1], tolerance)


def test_pull_back_is_the_transposed_jacobian_times_the_cotangent(mapped: Mapped) -> None:
    net, params, scales, x, jacobians, tolerance = mapped
    last = net.depth
    v = 5 * np.random.default_rng(3).normal(size=jacobians[last, last].shape[0]).astype(x.dtype)
    truth = [oracles.log_norm(jacobians[last, l].T @ v) for l in range(last + 1)]
    assert_logs_close(vg.pull_back(params, scales, x, v).log_gain, truth, tolerance)


def test_gain_matrix_is_every_transposed_jacobian_and_nan_above_the_diagonal(mapped: Mapped) -> None:
    net, params, scales, x, jacobians, tolerance = mapped
    key, depths = jax.random.key(11), [net.depth, 0, 2]
    truth = np.full((3, net.depth + 1), np.nan)
    for row, m in enumerate(depths):
        v = np.asarray(jax.random.normal(jax.random.fold_in(key, m), jacobians[m, m].shape[:1], x.dtype), np.float64)
        truth[row, : m + 1] = [oracles.log_norm(jacobians[m, l].T @ v / np.linalg.norm(v)) for l in range(m + 1)]
    matrix = vg.gain_matrix(params, scales, x, depths, key=key)
    np.testing.assert_array_equal(np.isnan(matrix.log_gain), np.isnan(truth))
    assert_logs_close(matrix.log_gain, truth, tolerance)


def test_gain_matrix_of_a_deep_network_takes_64_depths_from_the_first_state_to_the_last() -> None:
    net = vg.mlp(width=3, depth=200, inputs=2)
    matrix = vg.gain_matrix(oracles.drawn(net, (2, *[3] * 201, 1)), vg.Scales(), np.ones(2, np.float32))
    assert matrix.log_gain.shape == (64, 201)
    lengths = np.sum(~np.isnan(matrix.log_gain), axis=1)
    assert (lengths[0], lengths[-1]) == (1, 201)
    assert np.all(np.diff(lengths) > 0)


def test_a_random_direction_has_norm_one() -> None:
    net, params, scales, x, *_ = _mapped(MAPPED[1])
    push = vg.push_forward(params, scales, x, key=jax.random.key(5))
    pull = vg.pull_back(params, scales, x, key=jax.random.key(5))
    assert push.log_gain.shape == pull.log_gain.shape == (net.depth + 1,)
    np.testing.assert_allclose([push.log_gain[0], pull.log_gain[-1]], 0, atol=1e-6)


# --- properties -----------------------------------------------------------------------------------------------------


def test_doubling_sigma_w_of_a_relu_network_without_bias_adds_ln_2_a_layer() -> None:
    net = vg.mlp(width=16, depth=200, activation="relu", inputs=4)
    params, x = oracles.drawn(net, (4, *[16] * 201, 1)), np.ones(4, np.float32)
    once, twice = (vg.push_forward(params, vg.Scales(sigma_w=s), x) for s in (1.25, 2.5))
    layers = np.arange(201)
    np.testing.assert_allclose(twice.log_gain - once.log_gain, layers * np.log(2), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(
        twice.log_mean_square - once.log_mean_square, 2 * (layers + 1) * np.log(2), rtol=1e-6, atol=1e-5
    )


def test_gradient_flow_is_the_same_under_jit(tanh_network: Any) -> None:
    params, scales, xs = tanh_network
    ys = jnp.array([0, 3, 1])
    jitted = jax.jit(vg.gradient_flow)(params, scales, xs, ys)
    plain = vg.gradient_flow(params, scales, xs, ys)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), jitted, plain)


def test_vmap_over_seeds_is_the_loop_over_seeds(tanh_network: Any) -> None:
    params, scales, xs = tanh_network
    draws = [oracles.drawn(params.network, (3, 5, 5, 5, 5, 5, 4), seed) for seed in range(3)]

    def gain(params: vg.networks.Parameters) -> jax.Array:
        return vg.push_forward(params, scales, xs[0]).log_gain

    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *draws)
    np.testing.assert_allclose(jax.vmap(gain)(batch), np.stack([gain(params) for params in draws]), atol=1e-5)


def test_vmap_over_a_scale_is_the_loop_over_the_scale(tanh_network: Any) -> None:
    params, _, xs = tanh_network
    sigmas = jnp.array([0.3, 1.0, 4.0])

    def gain(sigma_w: jax.Array) -> jax.Array:
        return vg.pull_back(params, vg.Scales(sigma_w=sigma_w, sigma_b=0.2), xs[0]).log_gain

    np.testing.assert_allclose(jax.vmap(gain)(sigmas), np.stack([gain(s) for s in sigmas]), atol=1e-5)


# --- a user's own blocks --------------------------------------------------------------------------------------------


class Residual(nnx.Module):
    """A user's block without scales."""

    def __init__(self, size: int, *, rngs: nnx.Rngs):
        self.inner = nnx.Linear(size, 2 * size, rngs=rngs)
        self.outer = nnx.Linear(2 * size, size, use_bias=False, rngs=rngs)

    def __call__(self, h: jax.Array) -> jax.Array:
        return h + self.outer(jnp.tanh(self.inner(h)))


class Branch(nnx.Module):
    """A user's block that declares a scale: a convolution with a kernel that is not square, on a skip connection."""

    scales = {"alpha": 1.0}  # noqa: RUF012

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(channels, channels, kernel_size=(3, 5), rngs=rngs)

    def __call__(self, h: jax.Array, scales: vg.Scales) -> jax.Array:
        return h + scales.alpha * jax.nn.gelu(self.conv(h), approximate=False)


def merged(spec: vg.blocks.Spec, parameters: Any) -> nnx.Module:
    """The user's module with these parameters."""
    graph, state = nnx.split(spec.build(nnx.Rngs(0)))
    nnx.replace_by_pure_dict(state, parameters)
    return nnx.merge(graph, state)


def log_gradients_of_blocks(
    net: vg.Network, params: vg.networks.Parameters, alpha: Any, x: np.ndarray, v: np.ndarray
) -> tuple:
    """ln of dL/ds_l of all layers and of all parameter gradients, by `jax.grad` through the user's modules in a row."""
    layers = [jax.tree.map(lambda a, i=i: a[i], params.stages[0]) for i in range(net.depth)]

    def loss(nudges: jax.Array, layers: list[Any], x: jax.Array) -> jax.Array:
        h = merged(net.stem, params.stem)(x) if net.stem else x
        for nudge, layer, a in zip(nudges[:-1], layers, alpha, strict=True):
            block = merged(net.stages[0].spec, layer)
            h = block(h + nudge) if a is None else block(h + nudge, vg.Scales(alpha=a))
        h = h + nudges[-1]
        return jnp.sum((merged(net.head, params.head)(h) if net.head else h) * v)

    shape = jax.eval_shape(lambda x: merged(net.stem, params.stem)(x) if net.stem else x, x).shape
    nudges, own = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.zeros((net.depth + 1, *shape)), layers, x)
    paths = [{"/".join(k.key for k in p): g for p, g in jax.tree_util.tree_leaves_with_path(tree)} for tree in own]
    return [oracles.log_norm(g) for g in nudges], {p: [oracles.log_norm(tree[p]) for tree in paths] for p in paths[0]}


def test_a_users_block_between_a_stem_and_a_head_of_the_users() -> None:
    linear = {"stem": vg.blocks.Spec(nnx.Linear, (3, 4)), "head": vg.blocks.Spec(nnx.Linear, (4, 2))}
    net = vg.stack(Residual, 4, depth=3, input_shape=3, **linear)
    params = architecture_oracles.drawn(net)
    x, v = np.array([0.3, -1.2, 2.0], np.float32), np.array([1.0, -0.5], np.float32)
    states, of_parameters = log_gradients_of_blocks(net, params, [None] * 3, x, v)
    flow = vg.gradient_flow(params, vg.Scales(), x, v, loss="cotangent")
    assert_logs_close(flow.log_gradient, states, 1e-5)
    assert {p for p in flow.log_parameter_gradient if not p.startswith(("stem", "head"))} == set(of_parameters)
    for path, logs in of_parameters.items():
        assert_logs_close(flow.log_parameter_gradient[path], logs, 1e-5)
    assert np.all(np.isnan(flow.saturation))


@pytest.mark.parametrize("alpha", [None, (0.1, 0.6)], ids=["default", "per layer"])
def test_a_users_block_with_a_declared_scale(alpha: Any) -> None:
    shape = (5, 4, 2)
    net = vg.stack(Branch, 2, depth=2, input_shape=shape)
    params = architecture_oracles.drawn(net)
    x, v = np.random.default_rng(4).normal(size=(2, *shape)).astype(np.float32)
    scales = vg.Scales() if alpha is None else vg.Scales(alpha=jnp.asarray(alpha))
    by_layer = np.broadcast_to(1.0 if alpha is None else alpha, 2)
    states, of_parameters = log_gradients_of_blocks(net, params, by_layer, x, v)
    flow = vg.gradient_flow(params, scales, x, v, loss="cotangent")
    assert_logs_close(flow.log_gradient, states, 1e-5)
    for path, logs in of_parameters.items():
        assert_logs_close(flow.log_parameter_gradient[path], logs, 1e-5)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "loss", "message"),
    [
        ([0, 1, 4], None, "labels must lie in 0 .. 3, got 4"),
        ([0, -1, 2], None, "labels must lie in 0 .. 3, got -1"),
        ([0.0, 1.0, 2.0], "cross_entropy", "integer label"),
        ([0, 1], None, "one integer label, or probabilities"),
        (np.ones((3, 5)), None, "y must have the output's shape"),
        (np.full((3, 4), np.nan), None, "y must be finite"),
        ([0, 1, 2], "hinge", "loss must be one of"),
        ([0, 1, 2], "crossentropy", "did you mean 'cross_entropy'"),
        (None, "squared_error", "needs y"),
    ],
)
def test_bad_targets_are_refused_in_one_sentence(tanh_network: Any, y: Any, loss: Any, message: str) -> None:
    params, scales, xs = tanh_network
    with pytest.raises(ValueError, match=message):
        vg.gradient_flow(params, scales, xs, y, loss=loss)


def test_bad_directions_depths_and_dtypes_are_refused(tanh_network: Any) -> None:
    params, scales, xs = tanh_network
    with pytest.raises(ValueError, match=r"tangent must have the state's shape \(5,\), got \(4,\)"):
        vg.push_forward(params, scales, xs[0], np.ones(4))
    with pytest.raises(ValueError, match=r"cotangent must have the state's shape \(5,\), got \(2, 5\)"):
        vg.pull_back(params, scales, xs[0], np.ones((2, 5)))
    with pytest.raises(ValueError, match="depths must be whole numbers from 0 to 4"):
        vg.gain_matrix(params, scales, xs[0], [5])
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'float8'"):
        vg.naive_reading(params, scales, xs[0], 0, "float8")
