"""Two inputs along the depth, and the states themselves: against arbitrary precision, numpy and plain Flax."""

from collections.abc import Callable
from typing import Any

import architecture_oracles as truth
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import oracles
import pytest

import vgjax as vg
from vgjax.measure.correlation import Correlation

KEY = jax.random.key(3)
WIDTH, INPUTS = 6, 3
X1, OTHER = np.array([0.5, -1.0, 2.0], np.float32), np.array([1.0, 0.3, -0.7], np.float32)

PHIS = {
    "tanh": mpmath.tanh,
    "relu": lambda h: max(h, mpmath.mpf(0)),
    "linear": lambda h: h,
}


def network(activation: str, depth: int, dtype: str = "float32") -> tuple[vg.Network, vg.networks.Parameters]:
    """A small mlp with a draw of numpy."""
    net = vg.mlp(width=WIDTH, depth=depth, activation=activation, inputs=INPUTS, dtype=dtype)
    return net, oracles.drawn(net, (INPUTS, *[WIDTH] * (depth + 1), 1), dtype=dtype)


def exact(weights: oracles.Weights, phi: Callable[[Any], Any], x1: Any, x2: Any, digits: int) -> Correlation:
    """The same of the unrolled network, in so many digits and with unbounded exponents; c = 1 is told by equality."""

    def log(number: Any) -> float:
        return float(mpmath.log(number)) if number else -np.inf

    rows = []
    with mpmath.workdps(digits):
        states = [mpmath.matrix(np.asarray(x, float)[None].tolist()) for x in (x1, x2)]
        for i, (kernel, bias) in enumerate(weights[:-1]):
            w, b = mpmath.matrix(kernel.tolist()), mpmath.matrix(bias[None].tolist())
            states = [(h.apply(phi) if i else h) * w + b for h in states]
            squares = [mpmath.fdot(h, h) for h in states]
            c = mpmath.fdot(*states) / mpmath.sqrt(squares[0] * squares[1])
            rows.append((float(c), log(1 - c), *(log(square / len(states[0])) for square in squares)))
    c, apart, *squares = np.array(rows).T
    return Correlation(c, apart, np.array(squares), np.asarray(len(rows)), np.asarray(len(rows)))


def assert_is(found: Correlation, truth: Correlation, tolerance: float) -> None:
    """``tolerance`` is of 1 - c, relative; c and the mean squares are right to rounding, which layers add up."""
    eps = np.finfo(np.asarray(found.correlation).dtype).eps
    np.testing.assert_allclose(found.correlation, truth.correlation, rtol=0, atol=100 * eps)
    np.testing.assert_allclose(found.log_mean_square, truth.log_mean_square, rtol=200 * eps, atol=200 * eps)
    np.testing.assert_allclose(found.log_one_minus_c, truth.log_one_minus_c, rtol=eps, atol=tolerance)
    assert int(found.first_inexact_layer) == int(truth.first_inexact_layer)


def correlation_is_exact(
    activation: str, depth: int, sigma_w: float, sigma_b: float, x2: Any, tolerance: float, digits: int = 60
) -> np.ndarray:
    """Of X1 and another input in float32; ln (1 - c) as it should be."""
    _, parameters = network(activation, depth)
    found = vg.correlation(parameters, vg.Scales(sigma_w=sigma_w, sigma_b=sigma_b), X1, x2)
    weights = oracles.weights(parameters, sigma_w, sigma_b)
    expected = exact(weights, PHIS[activation], X1, x2, digits)
    assert_is(found, expected, tolerance)
    return expected.log_one_minus_c


# --- against arbitrary precision ------------------------------------------------------------------------------------

# A difference of two floats of relative size r is right to eps / r and a tangent at the midpoint to r^2 (r, where it
# crosses a kink): at the r where the one takes over from the other that is eps^(2/3) = 2e-5 (eps^(1/2) = 3e-4), and in
# these networks of width 6 up to 20 (3) times as much.
ROUNDING, HANDED_OVER = 3e-5, {"tanh": 5e-4, "relu": 1e-3}


@pytest.mark.parametrize(("activation", "sigma_w", "depth"), [("tanh", 2.0, 8), ("relu", 1.4, 20)])
def test_two_different_inputs_are_as_in_60_digits(activation: str, sigma_w: float, depth: int) -> None:
    apart = correlation_is_exact(activation, depth, sigma_w, 0.3, OTHER, ROUNDING)
    assert apart[0] > 0  # c < 0 at first
    assert apart.min() > -10


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_two_inputs_that_the_ordered_phase_brings_together_far_below_rounding(activation: str) -> None:
    apart = correlation_is_exact(activation, 40, 0.5, 0.3, OTHER, HANDED_OVER[activation], digits=120)
    assert apart[0] > 0
    assert apart[-1] < 4 * np.log(np.finfo(np.float32).eps)


def test_inputs_that_differ_by_a_rounding_are_followed_down_to_e_to_the_minus_500() -> None:
    """As products of tangents would: from 1 - c = e^-33, which no float32 cosine shows, to e^-530."""
    near = X1 + np.float32(1e-6) * OTHER
    apart = correlation_is_exact("tanh", 40, 0.002, 0.5, near, ROUNDING, digits=300)
    assert apart[0] < -30
    assert apart[-1] < -500


def test_twice_the_difference_is_four_times_the_distance_at_any_depth() -> None:
    """An identity of tangents, at 1 - c = e^-900; and the distance shrinks as the square of what it is pushed to."""
    _, parameters = network("tanh", 400)
    scales, u = vg.Scales(sigma_w=0.3, sigma_b=0.5), np.float32(2**-20) * np.array([1, 0.25, -0.5], np.float32)
    once, twice = (vg.correlation(parameters, scales, X1, X1 + k * u).log_one_minus_c for k in (1, 2))  # exact sums
    assert once[-1] < -900
    # Rounding of a float32 near 900, twice, and a curvature of 2^-20.
    np.testing.assert_allclose(twice - once, np.log(4), atol=2e-4)
    pushed = vg.push_forward(parameters, scales, X1, u @ (np.float32(0.3) * np.asarray(parameters.stem["kernel"])))
    of_tangent = 2 * pushed.log_gain - pushed.log_mean_square - np.log(WIDTH) - np.log(2)  # sin^2 of its angle apart
    assert np.all(once - of_tangent < 1e-3)
    assert (once[-1] - once[0]) / (of_tangent[-1] - of_tangent[0]) == pytest.approx(1, abs=8 / 900)


def test_a_difference_below_rounding_grows_in_the_chaotic_phase_until_the_states_are_apart() -> None:
    """The second state follows the difference as long as its own rounding is the larger of both."""
    net = vg.mlp(width=30, depth=100, activation="tanh", inputs=INPUTS)  # a narrow one saturates
    parameters = oracles.drawn(net, (INPUTS, *[30] * 101, 1))
    x1, x2 = np.array([0.5, -1.0, 0.0], np.float32), np.array([0.5, -1.0, 1e-9], np.float32)
    found = vg.correlation(parameters, vg.Scales(sigma_w=6.0, sigma_b=0.1), x1, x2)
    expected, h = [], np.stack([x1, x2]).astype(float)
    for i, (kernel, bias) in enumerate(oracles.weights(parameters, 6.0, 0.1)[:-1]):
        h = (np.tanh(h) if i else h) @ kernel + bias
        u1, u2 = h / np.linalg.norm(h, axis=1, keepdims=True)
        expected.append(np.log(np.sum((u1 - u2) ** 2) / 2))
    # Roundings of 1e-7 grow as fast as the difference: its path is the exact one until they are 1e-3.
    told = np.array(expected) < np.array(expected[0]) + 2 * np.log(1e4)
    assert np.all(told[:10])
    np.testing.assert_allclose(found.log_one_minus_c[told], np.array(expected)[told], atol=0.02)
    assert expected[-1] > np.log(1e-2)
    assert found.log_one_minus_c[-1] > np.log(1e-2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_in_float64_everything_is_right_to_float64(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        _, parameters = network("tanh", 20, dtype)
        scales = vg.Scales(sigma_w=0.5, sigma_b=0.3)
        x1, x2 = X1.astype(dtype), OTHER.astype(dtype)
        found = vg.correlation(parameters, scales, x1, x2)
        assert found.log_one_minus_c.dtype == dtype
    truth = exact(oracles.weights(parameters, 0.5, 0.3), mpmath.tanh, x1, x2, 120)
    assert_is(found, truth, HANDED_OVER["tanh"] if dtype == "float32" else 1e-8)


def test_opposite_inputs_of_an_odd_network_stay_opposite() -> None:
    apart = correlation_is_exact("tanh", 10, 1.2, 0.0, -X1, ROUNDING)
    np.testing.assert_allclose(apart, np.log(2), atol=1e-15)
    correlation_is_exact("tanh", 10, 1.2, 0.0, -X1 + np.float32(0.01) * OTHER, ROUNDING)


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1e3, 1e12])
@pytest.mark.parametrize("activation", ["tanh", "linear"])
def test_inputs_of_unequal_norms(activation: str, size: float) -> None:
    """One may be smaller than the other's rounding."""
    correlation_is_exact(activation, 6, 1.2, 0.0 if activation == "linear" else 0.3, np.float32(size) * OTHER, ROUNDING)


# --- the ends -------------------------------------------------------------------------------------------------------


def test_one_input_twice_has_no_distance_and_zeros_have_no_direction() -> None:
    _, parameters = network("linear", 4)
    nothing = np.zeros_like(X1)
    same = vg.correlation(parameters, vg.Scales(sigma_w=1.1, sigma_b=0.3), X1, X1)
    assert np.all(np.isneginf(same.log_one_minus_c))
    np.testing.assert_allclose(same.correlation, 1, atol=1e-6)
    double = vg.correlation(parameters, vg.Scales(sigma_w=1.1), X1, 2 * X1)
    np.testing.assert_allclose(double.correlation, 1, atol=1e-6)
    assert np.all(double.log_one_minus_c < 2 * np.log(1e-6))  # the squared rounding of two directions
    for pair in ((X1, nothing), (nothing, X1), (nothing, nothing)):
        found = vg.correlation(parameters, vg.Scales(sigma_w=1.1), *pair)
        assert np.all(np.isnan(found.correlation))
        assert np.all(np.isnan(found.log_one_minus_c))
        np.testing.assert_array_equal(np.isneginf(found.log_mean_square[:, 0]), [not x.any() for x in pair])


def test_inputs_may_be_swapped() -> None:
    _, parameters = network("tanh", 12)
    scales = vg.Scales(sigma_w=1.1, sigma_b=0.1)
    one, other = (vg.correlation(parameters, scales, *pair) for pair in ((X1, OTHER), (OTHER, X1)))
    np.testing.assert_allclose(one.log_one_minus_c, other.log_one_minus_c, atol=ROUNDING)
    np.testing.assert_allclose(one.log_mean_square, other.log_mean_square[::-1], atol=1e-6)


def test_states_past_the_float_range_have_a_correlation() -> None:
    """ReLU without bias is homogeneous: its correlation does not know sigma_w."""
    _, parameters = network("relu", 120)
    parameters = jax.tree.map(jnp.abs, parameters)  # alive to the end
    large, small, one = (
        vg.correlation(parameters, vg.Scales(sigma_w=sigma_w), np.abs(X1), np.abs(OTHER)) for sigma_w in (64, 2**-6, 1)
    )
    assert large.log_mean_square.max() > 500
    assert small.log_mean_square.min() < -500
    for found in (large, small):
        np.testing.assert_allclose(found.correlation, one.correlation, atol=1e-6)
        np.testing.assert_allclose(found.log_one_minus_c[:3], one.log_one_minus_c[:3], atol=ROUNDING)


def test_an_activation_that_a_state_leaves_is_told() -> None:
    _, parameters = network("sin", 8)
    found = vg.correlation(parameters, vg.Scales(sigma_w=1e-20), X1, 1e-9 * X1)
    alone = [vg.push_forward(parameters, vg.Scales(sigma_w=1e-20), x).first_inexact_layer for x in (X1, 1e-9 * X1)]
    assert int(found.first_inexact_layer) == min(map(int, alone))


# --- many pairs, other networks -------------------------------------------------------------------------------------


def test_vmap_over_scales_is_the_loop_over_them() -> None:
    _, parameters = network("tanh", 8)
    sigmas = jnp.array([0.3, 1.0, 2.0])

    def found(sigma_w: jax.Array) -> Correlation:
        return vg.correlation(parameters, vg.Scales(sigma_w=sigma_w, sigma_b=0.2), X1, OTHER)

    together, loop = jax.vmap(found)(sigmas), [found(s) for s in sigmas]
    # Products of three points round otherwise than those of one, by how much a processor's instructions decide.
    jax.tree.map(lambda a, *b: np.testing.assert_allclose(a, np.stack(b), rtol=1e-5, atol=ROUNDING), together, *loop)


def cosines(a: list[np.ndarray], b: list[np.ndarray]) -> np.ndarray:
    """Of two lists of states, in float64."""
    flat = [[np.asarray(s, float).ravel() for s in states] for states in (a, b)]
    return np.array([u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in zip(*flat, strict=True)])


def unrolled(parts: truth.Parts, parameters: Any, scales: dict[str, float], x: Any, last: str = "") -> list[np.ndarray]:
    """All states of the same network in plain Flax and float64."""
    sigmas = {"sigma_w": 1.0, "sigma_b": 0.0, "sigma_v": 1.0, "sigma_a": 0.0, **scales}
    with jax.enable_x64(True):
        stem, stages = truth.multiplied(parameters, sigmas, last)
        head = jax.tree.map(lambda a: np.asarray(a, float), parameters.head)
        each = [
            (tree, s.tied, i) for tree, s in zip(stages, parameters.network.stages, strict=True) for i in range(s.depth)
        ]
        layers = [truth.one_layer(*one) for one in each]
        rest = [{name: float(v) for name, v in scales.items()}] * len(layers)
        _, states = truth.run(parts, stem, layers, head, rest, np.asarray(x, float), [0.0] * (len(layers) + 1))
        return [np.asarray(s) for s in states]


def normed(kind: str) -> Any:
    return lambda p, h: truth.normed(kind, p, h, epsilon=1e-3)


TANH, RELU = oracles.ACTIVATIONS["tanh"], oracles.ACTIVATIONS["relu"]
SIZES = {"width": 5, "depth": 3, "inputs": 4, "outputs": 2}
SIGMAS = {"sigma_w": 1.3, "sigma_b": 0.4}
ARCHITECTURES = {
    "batch norm": (
        vg.mlp(**SIZES, norm=vg.norm("batch", batch=4, epsilon=1e-3)),
        truth.plain(truth.Around(TANH, normed("batch"))),
        SIGMAS,
    ),
    "residual, layer norm": (
        vg.mlp(**SIZES, residual="pre", norm=vg.norm("layer", epsilon=1e-3), activation="relu"),
        truth.residual("pre", truth.Around(RELU, normed("layer"))),
        {**SIGMAS, "sigma_v": 0.8, "sigma_a": 0.2, "branch": 0.7, "skip": 1.1},
    ),
    "convolution": (
        vg.cnn(channels=3, depth=3, inputs=(4, 3, 2), activation="tanh"),
        truth.plain(truth.Around(TANH), pool=2, stem=truth.image_stem(truth.Around())),
        SIGMAS,
    ),
    "recurrence": (
        vg.rnn(width=5, depth=3, inputs=4, activation="tanh"),
        truth.recurrent(truth.simple_cell, 5),
        {**SIGMAS, "sigma_v": 0.7},
    ),
}


@pytest.fixture(params=ARCHITECTURES.values(), ids=list(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> Any:
    """Parameters, scales, two inputs of a network, and its states by Flax for each input."""
    net, parts, scales = request.param
    parameters = truth.drawn(net)
    x1, x2 = np.random.default_rng(8).normal(size=(2, *net.input_shape)).astype(np.float32)
    last = "layer_2" if "branch" in scales else ""
    states = [unrolled(parts, parameters, scales, x, last) for x in (x1, x2)]
    return parameters, vg.Scales(**scales), x1, x2, states


def test_correlation_and_states_of_every_kind_of_network_are_those_of_flax(architecture: Any) -> None:
    parameters, scales, x1, x2, states = architecture
    begin = 1 if parameters.network.driven else 0  # a recurrence begins at 0, which has no direction
    found = vg.correlation(parameters, scales, x1, x2)
    assert np.all(np.isnan(found.correlation[:begin]))
    expected = cosines(*(s[begin:] for s in states))
    assert np.all(1 - expected > 1e-3)  # so that float64 cosines tell 1 - c too
    np.testing.assert_allclose(found.correlation[begin:], expected, atol=3e-6)
    np.testing.assert_allclose(np.exp(found.log_one_minus_c[begin:]), 1 - expected, rtol=1e-4)
    for i, x in enumerate((x1, x2)):
        np.testing.assert_allclose(
            found.log_mean_square[i][begin:], [oracles.log_mean_square(s) for s in states[i][begin:]], atol=1e-5
        )
        of_one = vg.states(parameters, scales, x)
        assert of_one.direction.shape == (4, *states[i][0].shape)
        scaled = np.exp(np.asarray(of_one.log_norm, float)).reshape(4, *[1] * states[i][0].ndim) * of_one.direction
        np.testing.assert_allclose(scaled, np.stack(states[i]), atol=1e-5 * np.abs(np.stack(states[i])).max())


# --- states ---------------------------------------------------------------------------------------------------------


def test_states_are_those_of_an_unrolled_network_of_unequal_widths_one_array_a_stage() -> None:
    widths = (5, 7, 7, 4)
    net = vg.mlp(width=widths, activation="gelu", inputs=INPUTS)
    parameters = oracles.drawn(net, (INPUTS, *widths, 1))
    found = vg.states(parameters, vg.Scales(sigma_w=1.3, sigma_b=0.4), X1)
    weights = oracles.weights(parameters, 1.3, 0.4)
    with jax.enable_x64(True):
        _, expected = oracles.Unrolled(weights, oracles.ACTIVATIONS["gelu"])(np.asarray(X1, float))
    directions = [row for part in found.direction for row in part]
    assert [len(d) for d in directions] == list(widths)
    for direction, log_norm, state in zip(directions, found.log_norm, expected, strict=True):
        np.testing.assert_allclose(np.exp(float(log_norm)) * direction, state, rtol=1e-5, atol=1e-6)
    assert int(found.first_inexact_layer) == net.depth + 1


@pytest.mark.parametrize("sigma_w", [0.02, 50.0])
def test_states_past_the_float_range_keep_direction_and_norm(sigma_w: float) -> None:
    _, parameters = network("relu", 80)
    parameters = jax.tree.map(jnp.abs, parameters)
    given = {"x": np.abs(X1), "u": np.ones(WIDTH), "v": np.ones(WIDTH)}
    weights = oracles.weights(parameters, sigma_w)
    expected = oracles.log_domain(weights, oracles.PHIS["relu"], **given).log_mean_square
    found = vg.states(parameters, vg.Scales(sigma_w=sigma_w), given["x"])
    assert np.abs(expected[-1]) > 300
    np.testing.assert_allclose(2 * np.asarray(found.log_norm, float) - np.log(WIDTH), expected, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found.direction, axis=1), 1, atol=1e-6)
    direction = np.asarray(found.direction[0], float)
    for kernel, _ in weights[1:-1]:
        direction = np.maximum(direction, 0) @ kernel
        direction /= np.linalg.norm(direction)
    np.testing.assert_allclose(found.direction[-1], direction, atol=1e-5)


def test_a_state_that_is_exactly_zero_has_no_direction() -> None:
    _, parameters = network("relu", 3)
    found = vg.states(parameters, vg.Scales(sigma_w=0.0), X1)
    assert np.all(np.isneginf(found.log_norm))
    assert not np.any(found.direction)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("kinds_unchecked")
def test_bad_pairs_are_refused_in_one_sentence() -> None:
    net, parameters = network("tanh", 3)
    with pytest.raises(ValueError, match=r"^x must have shape \(3,\), got \(4,\)$"):
        vg.correlation(parameters, vg.Scales(), X1, np.ones(4))
    with pytest.raises(ValueError, match=r"^x must have shape \(3,\), got \(2, 3\)$"):
        vg.correlation(parameters, vg.Scales(), np.stack([X1, X1]), X1)
    with pytest.raises(ValueError, match=r"^x must be finite, got a NaN or an infinity$"):
        vg.states(parameters, vg.Scales(), np.full(3, np.inf))
    with pytest.raises(
        ValueError,
        match=r"^scale must be one of sigma_w, sigma_b, sigma_in, sigma_out, got 'sigma_v'; did you mean 'sigma_\w'\?$",
    ):
        vg.states(parameters, vg.Scales(sigma_v=1.0), X1)
    with pytest.raises(ValueError, match=r"^parameters must be Parameters \(of vgjax.init\), got Network$"):
        vg.correlation(net, vg.Scales(), X1, X1)
    with pytest.raises(
        ValueError, match=r"^states must be at least two tokens, shape \(tokens, width\), got shape \(6,\)$"
    ):
        vg.measure.token_correlation(parameters, vg.Scales(), X1)
