"""What ordinary floats cannot hold: thousands of layers, huge and tiny scales, dead layers, margins without end."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import vgjax as vg
from vgjax.floatexp import LN2, FloatExp, normalize


def assert_logs_close(ours: Any, truth: Any, relative: float = 1e-5) -> None:
    """To a relative error of the norm, or of its logarithm where that is large."""
    ours = np.asarray(ours, np.float64)
    assert np.all(np.isfinite(ours))
    np.testing.assert_array_less(np.abs(ours - truth), relative * np.maximum(1, np.abs(truth)))


def drawn(width: int, depth: int, activation: str, inputs: int = 4, outputs: int = 3) -> tuple[Any, dict[str, Any]]:
    """The parameters of a network, and one input, tangent and cotangent."""
    net = vg.mlp(width=width, depth=depth, activation=activation, inputs=inputs, outputs=outputs)
    params = oracles.drawn(net, (inputs, *[width] * (depth + 1), outputs))
    rng = np.random.default_rng(1)
    directions = {"x": inputs, "u": width, "v": width}
    return params, {name: rng.normal(size=size).astype(np.float32) for name, size in directions.items()}


def assert_flow_is_exact(params: Any, given: dict[str, Any], sigma_w: Any, sigma_b: Any = 0.0) -> None:
    """States, push and pull against the same network in float64 with its powers of two taken out."""
    activation = dict(params.network.head.options)["activation"].name
    truth = oracles.log_domain(oracles.weights(params, sigma_w, sigma_b), oracles.PHIS[activation], **given)
    scales = vg.Scales(sigma_w=jnp.asarray(sigma_w), sigma_b=jnp.asarray(sigma_b))
    push = vg.push_forward(params, scales, given["x"], given["u"])
    pull = vg.pull_back(params, scales, given["x"], given["v"])
    assert_logs_close(push.log_mean_square, truth.log_mean_square)
    assert_logs_close(push.log_gain, truth.push)
    assert_logs_close(pull.log_mean_square, truth.log_mean_square)
    assert_logs_close(pull.log_gain, truth.pull)
    assert int(push.first_inexact_layer) == int(pull.first_inexact_layer) == params.network.depth + 1


# --- depth ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma_w", [1.5, 0.5])
def test_10_000_orthogonal_linear_layers_multiply_by_sigma_w_each(sigma_w: float) -> None:
    net = vg.mlp(width=16, depth=10_000, activation="linear", inputs=3, kernel_init="orthogonal")
    params, x = oracles.drawn(net, (3, *[16] * 10_001, 1), kernel_init="orthogonal"), np.ones(3, np.float32)
    scales, truth = vg.Scales(sigma_w=sigma_w), np.arange(10_001) * np.log(sigma_w)
    assert_logs_close(vg.push_forward(params, scales, x).log_gain, truth, 1e-6)
    assert_logs_close(vg.pull_back(params, scales, x).log_gain, truth[::-1], 1e-6)


@pytest.mark.parametrize(
    ("activation", "sigma_w"), [("relu", 2.0), ("tanh", 0.5), ("gelu", 3.0)], ids=["relu", "tanh", "gelu"]
)
def test_3000_layers_without_bias_are_those_of_float64(activation: str, sigma_w: float) -> None:
    params, given = drawn(16, 3000, activation)
    assert_flow_is_exact(params, given, sigma_w)


def test_a_deep_sigmoid_network_is_finite_where_plain_float32_has_lost_most_layers() -> None:
    params, given = drawn(64, 200, "sigmoid")
    scales = vg.Scales(sigma_w=1.0, sigma_b=0.5)
    y = np.array([1.0, -2.0, 0.5], np.float32)
    flow = vg.gradient_flow(params, scales, given["x"], y, loss="cotangent")
    assert np.mean(vg.naive_reading(params, scales, given["x"], y, "float32", loss="cotangent")) > 0.5
    weights, phi = oracles.weights(params, 1.0, 0.5), oracles.PHIS["sigmoid"]
    delta = (weights[-1][0] @ y) * phi.slope(last_state(weights, phi.value, given["x"]))  # dL/dh^L
    truth = oracles.log_domain(weights, phi, given["x"], given["u"], delta)
    assert_logs_close(flow.log_gradient, truth.pull)
    assert_logs_close(flow.log_mean_square, truth.log_mean_square)


def last_state(weights: oracles.Weights, phi: Any, x: np.ndarray) -> np.ndarray:
    """h^L in float64 numpy."""
    h = x @ weights[0][0] + weights[0][1]
    for kernel, bias in weights[1:-1]:
        h = phi(h) @ kernel + bias
    return h


# --- against mpmath -------------------------------------------------------------------------------------------------


def test_a_vanishing_gradient_is_that_of_60_digits() -> None:
    params, given = drawn(5, 40, "sigmoid")
    y = np.array([1.0, -2.0, 0.5], np.float32)
    flow = vg.gradient_flow(params, vg.Scales(sigma_w=0.1), given["x"], y, loss="cotangent")
    truth = oracles.exact_gradients(oracles.weights(params, 0.1), "sigmoid", given["x"], y, "cotangent")
    assert truth[0] < np.log(1e-45)  # nothing that float32 could hold
    assert_logs_close(flow.log_gradient, truth)


@pytest.fixture(scope="module")
def exploding() -> tuple[Any, np.ndarray]:
    """A ReLU network without bias, alive to the end."""
    params, given = drawn(10, 12, "relu")
    return params, given["x"]


def test_squared_error_of_an_output_past_the_float_range(exploding: Any) -> None:
    params, x = exploding
    y = np.array([3.0, 1.0, 0.0], np.float32)
    flow = vg.gradient_flow(params, vg.Scales(sigma_w=5e3), x, y, loss="squared_error")
    truth = oracles.exact_gradients(oracles.weights(params, 5e3), "relu", x, y, "squared_error")
    assert truth[0] > np.log(1e80)
    assert_logs_close(flow.log_gradient, truth)


def cross_entropy(exploding: Any, sigma_w: float, labels: Any) -> vg.measure.GradientFlow:
    """The flow of three times the same example, with a label each."""
    params, x = exploding
    return vg.gradient_flow(params, vg.Scales(sigma_w=sigma_w), np.stack([x] * 3), labels)


def test_cross_entropy_is_exact_where_the_softmax_has_long_rounded(exploding: Any) -> None:
    params, x = exploding
    sigma_w = 5.0  # outputs about 1e6 apart
    weights = oracles.weights(params, sigma_w)
    output = oracles.forward(weights, jax.nn.relu, x)
    assert np.ptp(output) > 1e4
    flow = cross_entropy(exploding, sigma_w, [0, 1, 2])
    truth = [oracles.exact_gradients(weights, "relu", x, label, "cross_entropy") for label in range(3)]
    assert_logs_close(flow.log_gradient, np.stack(truth))
    assert not np.any(flow.saturated)


def test_a_certain_example_beside_an_uncertain_one_keeps_its_own_gradient(exploding: Any) -> None:
    """The summed parameter gradient is the uncertain example's; each state's is its own."""
    params, x = exploding
    sigma_w = 5.0  # outputs about 1e6 apart
    weights = oracles.weights(params, sigma_w)
    right, wrong = (int(f(oracles.forward(weights, jax.nn.relu, x))) for f in (np.argmax, np.argmin))
    mixed = cross_entropy(exploding, sigma_w, [right, wrong, right])
    truth = [oracles.exact_gradients(weights, "relu", x, label, "cross_entropy") for label in (right, wrong, right)]
    assert truth[0][0] < -1e4
    assert_logs_close(mixed.log_gradient, np.stack(truth))
    thrice = cross_entropy(exploding, sigma_w, [wrong] * 3)
    for path, log in mixed.log_parameter_gradient.items():
        assert_logs_close(log, np.asarray(thrice.log_parameter_gradient[path]) - np.log(3))


def test_margins_beyond_everything_are_flagged_and_stay_finite(exploding: Any) -> None:
    flow = cross_entropy(exploding, 5e3, [0, 1, 2])
    assert np.sum(flow.saturated) == 1  # the one label that is right
    assert np.all(np.isfinite(flow.log_gradient))
    assert np.all(np.isfinite(flow.log_mean_square))
    assert all(np.all(np.isfinite(log)) for log in flow.log_parameter_gradient.values())
    right = np.asarray(flow.saturated)
    assert np.all(np.asarray(flow.log_gradient)[right] < -9e7)
    assert np.all(np.asarray(flow.log_gradient)[~right] > -10)


# --- layers of their own scale --------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [1e21, 1e-21])
def test_one_layer_may_change_every_norm_by_two_to_the_70(jump: float) -> None:
    params, given = drawn(12, 8, "relu")
    sigma_w = np.full(8, 1.4, np.float32)
    sigma_w[3] = jump
    assert_flow_is_exact(params, given, sigma_w)
    y = np.array([1.0, -1.0, 2.0], np.float32)
    weights = oracles.weights(params, sigma_w)
    truth = oracles.gradients(weights, jax.nn.relu, given["x"][None], y[None], "cotangent")
    flow = vg.gradient_flow(params, vg.Scales(sigma_w=sigma_w), given["x"], y, loss="cotangent")
    assert_logs_close(flow.log_gradient, truth["states"][0])
    for path in ("kernel", "bias", "stem/kernel", "head/kernel"):
        assert_logs_close(flow.log_parameter_gradient[path], truth[path])


@pytest.mark.parametrize(("activation", "sigma_w"), [("relu", 1e-3), ("relu", 1e3), ("gelu", 1e-2)])
@pytest.mark.parametrize("first", [True, False], ids=["bias first", "bias last"])
def test_a_bias_in_one_half_of_the_layers(activation: str, sigma_w: float, first: bool) -> None:
    params, given = drawn(12, 40, activation)
    half = np.arange(40) < 20
    sigma_b = np.where(half if first else ~half, 0.7, 0.0).astype(np.float32)
    assert_flow_is_exact(params, given, sigma_w, sigma_b)


# --- dead layers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("activation", "level"), [("relu", 0.0), ("softplus", 0.0), ("selu", -1.7580993408473766)])
def test_after_a_dead_layer_at_a_huge_exponent_bias_and_plateau_are_left(activation: str, level: float) -> None:
    """Positive kernels drive the state to +10^40, one negative kernel to -10^40; the next sees phi at its left end."""
    params, _ = drawn(8, 60, activation)
    kernels = np.abs(np.asarray(params.stages[0]["kernel"]))
    kernels[40] *= -1
    stage = {"kernel": jnp.asarray(kernels), "bias": params.stages[0]["bias"]}
    stem = {"kernel": jnp.abs(params.stem["kernel"]), "bias": params.stem["bias"]}
    params = dataclasses.replace(params, stem=stem, stages=(stage,))
    x, scales = np.ones(4, np.float32), vg.Scales(sigma_w=10.0, sigma_b=0.5)
    flow = vg.gradient_flow(params, scales, x, np.ones(3, np.float32), loss="cotangent")
    assert flow.log_mean_square[41] > 2 * np.log(1e38)
    expected = 10 * level * kernels[41].sum(axis=0) + 0.5 * np.asarray(stage["bias"][41])
    assert_logs_close(flow.log_mean_square[42], oracles.log_mean_square(expected))
    assert np.all(np.isfinite(flow.log_mean_square))
    assert np.all(flow.log_gradient[:42] < -1e8)  # -inf counts
    assert np.all(np.isfinite(flow.log_gradient[42:]))
    assert not any(np.any(np.isnan(log)) for log in flow.log_parameter_gradient.values())


# --- one number at either end of the float range ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 65, 1000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("once", [False, True])
def test_a_number_of_any_size_is_normalized(once: bool, dtype: str, size: int) -> None:
    """Of all exponents side by side, also those at which a plain sum of squares is nothing or infinite."""
    largest, exponents = (127, (0, 1, -90, 140)) if dtype == "float32" else (1023, (0, 1, -700, 1100))
    octaves = np.array([-largest, *range(4 - largest, largest, 9), largest])
    octaves = octaves[octaves > 1 - largest]  # XLA flushes subnormals
    with jax.enable_x64(dtype == "float64"):
        mantissas = np.random.default_rng(size).uniform(0.5, 1, (len(octaves), size)).astype(dtype)
        rows = jnp.asarray(np.ldexp(mantissas, octaves[:, None]), dtype)
        for exponent in exponents:

            def normalized(row: jax.Array, exponent: int = exponent) -> Any:
                return normalize(FloatExp(row, jnp.asarray(exponent, jnp.int32)), once=once)

            number, log_norm = jax.jit(jax.vmap(normalized))(rows)
            again = jax.jit(lambda rows, of_one=normalized: jax.lax.map(of_one, rows))(rows)
            kept, norms = np.asarray(number.exponent), np.linalg.norm(mantissas.astype(float), axis=1)
            np.testing.assert_allclose(log_norm, np.log(norms) + (octaves + exponent) * LN2, rtol=3e-7, atol=1e-6)
            np.testing.assert_array_equal(
                np.ldexp(np.asarray(number.value), (kept - octaves - exponent)[:, None]), mantissas
            )
            inside = np.abs(np.log2(norms) + octaves + exponent) < largest // 4
            assert np.all(kept[inside] == 0)
            assert np.all(np.abs(np.log2(norms)[~inside] + (octaves + exponent - kept)[~inside]) <= largest // 4 + 2)
            jax.tree.map(np.testing.assert_array_equal, again[0], number)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "softplus"])
def test_an_input_at_the_end_of_the_float_range(activation: str) -> None:
    """Entries of 3e38 among them: the norm itself is no float."""
    net = vg.mlp(width=9, depth=5, inputs=70, activation=activation)
    params, scales = vg.init(jax.random.key(1), net), vg.Scales(sigma_w=1.3)
    x = np.random.default_rng(0).uniform(-1, 1, 70).astype(np.float32)
    found = vg.push_forward(params, scales, x * np.float32(3e38))
    with jax.enable_x64(True):
        expected = vg.push_forward(params.astype("float64"), scales, x.astype(float) * float(np.float32(3e38)))
    np.testing.assert_allclose(found.log_mean_square, expected.log_mean_square, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found.log_gain, expected.log_gain, rtol=1e-5, atol=1e-4)
