"""Right, or marked: past the float range by the degree of every block, and NaN in place of what means nothing."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vgjax as vg
from vgjax import activations
from vgjax.blocks.protocol import block_info
from vgjax.floatexp import LN2
from vgjax.networks.layer import measured

# --- degrees --------------------------------------------------------------------------------------------------------

NONE = (None, None)
HALF = Fraction(1, 2)
DEGREES: dict[str, tuple[Any, tuple[Any, Any], tuple[Any, Any]]] = {
    "h tanh h": (lambda h: h * jnp.tanh(h), (2, 1), (1, 0)),
    "square": (lambda h: h * h, (2, 1), (2, 1)),
    "cube": (lambda h: h * h * h, (3, 2), (3, 2)),
    "squared relu": (lambda h: jnp.maximum(h, 0) ** 2, (2, 1), (2, 1)),
    "root": (lambda h: jnp.sign(h) * jnp.sqrt(jnp.abs(h)), (HALF, -HALF), (HALF, -HALF)),
    "power 3/2": (lambda h: jnp.abs(h) ** 1.5, (3 * HALF, HALF), (3 * HALF, HALF)),
    "dead zone": (lambda h: jnp.maximum(h - 0.5, 0), (0, 0), (1, 0)),
    "h / (1 + h^2)": (lambda h: h / (1 + h * h), (1, 0), NONE),
    "asinh": (jnp.arcsinh, (1, 0), NONE),
    "h + sin h": (lambda h: h + jnp.sin(h), (1, 0), NONE),
    "expm1": (jnp.expm1, (1, 0), NONE),
    "square or h": (lambda h: jnp.where(h > 0, h * h, h), NONE, NONE),
    "cos": (jnp.cos, (0, 1), NONE),
    "step": (jnp.sign, (0, 0), (0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", DEGREES)
def test_degrees_of_a_users_activation_are_seen_at_either_end(name: str) -> None:
    phi, below, above = DEGREES[name]
    for found, expected in zip(activations.get(phi).facts.ends, (below, above), strict=True):
        if expected is NONE:
            assert not found.known
        else:
            assert tuple(found) == expected


class Gate(nnx.Module):
    """h sigmoid(A h): linear at both ends."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (width, width)) / np.sqrt(width))

    def __call__(self, h: jax.Array) -> jax.Array:
        return h * jax.nn.sigmoid(h @ self.kernel[...])


class Product(nnx.Module):
    """A h times B h, elementwise: of degree 2."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.a, self.b = (nnx.Param(jax.random.normal(rngs.params(), (width, width)) / np.sqrt(width)) for _ in "ab")

    def __call__(self, h: jax.Array) -> jax.Array:
        return (h @ self.a[...]) * (h @ self.b[...])


class Damped(nnx.Module):
    """h / (1 + |h|^2): as 1 / h far out."""

    def __init__(self, *, rngs: nnx.Rngs):
        pass

    def __call__(self, h: jax.Array) -> jax.Array:
        return h / (1 + jnp.sum(h * h))


class Logarithmic(nnx.Module):
    """h log(1 + |h|) / |h|: like no power far out."""

    def __init__(self, *, rngs: nnx.Rngs):
        pass

    def __call__(self, h: jax.Array) -> jax.Array:
        norm = jnp.linalg.norm(h)
        return h * jnp.log1p(norm) / norm


class Unlike(nnx.Module):
    """Two parts that grow unlike each other: h and h^2."""

    def __init__(self, *, rngs: nnx.Rngs):
        pass

    def __call__(self, h: jax.Array) -> jax.Array:
        return jnp.concatenate([h[:3], h[3:] ** 2])


@pytest.mark.parametrize(
    ("block", "arguments", "below", "above"),
    [
        (Gate, (6,), (1, 0), (1, 0)),
        (Product, (6,), (2, 1), (2, 1)),
        (Damped, (), (1, 0), (-1, -2)),
        (Logarithmic, (), (1, 0), NONE),
        (Unlike, (), NONE, NONE),
    ],
)
def test_degrees_of_a_users_block_are_seen_at_either_end(block: Any, arguments: Any, below: Any, above: Any) -> None:
    found = measured(vg.blocks.spec(block, *arguments), (6,), "float32", None).ends
    for end, expected in zip(found, (below, above), strict=True):
        assert (not end.known) if expected is NONE else tuple(end) == expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", vg.activations.NAMES)
def test_what_a_layer_says_of_its_parameters_is_what_is_measured(activation: str, dtype: str) -> None:
    dense = vg.mlp(width=7, depth=2, inputs=7, activation=activation), (7,)
    convolution = vg.cnn(channels=3, depth=2, inputs=(4, 4, 3), activation=activation), (4, 4, 3)
    for network, shape in (dense, convolution):
        spec = network.stages[0].spec
        told = block_info(spec).parameter_degrees
        assert (told is None) == (activation in ("softsign", "sin", "arctan"))  # of which nothing is known far out
        assert told is None or dict(told) == dict(measured(spec, shape, dtype, None).parameters)


@pytest.mark.parametrize("what", ["layer", "derf", "transformer"])
def test_parameters_behind_a_norm_inside_a_skip_are_seen_to_follow_the_state(what: str) -> None:
    """Below the root of epsilon relu(norm(h)) is linear: the gain of a norm is no offset, though a skip passes without
    it, and though offsets stand before it; float32 against float64, which does not leave its range."""
    shape: tuple[int, ...] = (6,)
    if what == "transformer":
        shape = (3, 6)
        block = vg.transformer(width=6, depth=2, heads=2, inputs=shape).stages[0].spec
    else:
        block = vg.residual(vg.networks.chain(vg.norm(what).block(6, "float32"), vg.dense(6, 6, "relu")))
    net = vg.stack(block, depth=14, input_shape=shape)
    small = {"sigma_w": 1e-3, "sigma_vo": 1e-3, "branch": 1e-3, "skip": 0.02}
    parameters, scales = vg.init(jax.random.key(0), net), vg.Scales(**{n: small[n] for n in small if n in net.scales})
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    ours = vg.gradient_flow(parameters, scales, x)
    with jax.enable_x64(True):
        wide = jax.tree.map(np.asarray, vg.gradient_flow(parameters.astype("float64"), scales, x))
    assert wide.log_mean_square[-1] / 2 < -40  # float32 travels with an exponent from -22 on
    for path, log in ours.log_parameter_gradient.items():
        if "query" not in path and "key" not in path:  # of degree 3, or less behind an offset: marked
            np.testing.assert_allclose(log, wide.log_parameter_gradient[path], rtol=1e-5, atol=1e-5, err_msg=path)


def test_an_activation_of_degree_two_doubles_its_exponent_at_every_layer() -> None:
    """Width 1, all kernels 1/2: h_{l+1} = h_l tanh(h_l) / 2 is h_l^2 / 2 once it is small."""
    net = vg.mlp(width=1, depth=12, inputs=1, activation=lambda h: h * jnp.tanh(h), bias_init="zero")
    params = jax.tree.map(jnp.ones_like, vg.init(jax.random.key(0), net))
    pushed = vg.push_forward(params, vg.Scales(sigma_w=0.5), jnp.array([2.0**-60]), jnp.ones(1))
    # The stem has the scale of the first layer.
    log_h = [-61 * LN2]
    log_gain = [0.0]
    for _ in range(12):
        log_gain.append(log_gain[-1] + log_h[-1])  # d/dh h^2 / 2 = h
        log_h.append(2 * log_h[-1] - LN2)
    np.testing.assert_allclose(pushed.log_mean_square, 2 * np.array(log_h), rtol=1e-6)
    np.testing.assert_allclose(pushed.log_gain, log_gain, rtol=1e-6)
    pulled = vg.pull_back(params, vg.Scales(sigma_w=0.5), jnp.array([2.0**-60]), jnp.ones(1))
    np.testing.assert_allclose(pulled.log_gain, log_gain[-1] - np.array(log_gain), rtol=1e-6)
    assert pushed.first_inexact_layer == pushed.first_nan_layer == 13


def test_where_the_exponents_end_what_follows_is_marked() -> None:
    net = vg.mlp(width=1, depth=40, inputs=1, activation=lambda h: h * h, bias_init="zero")
    params = jax.tree.map(jnp.ones_like, vg.init(jax.random.key(0), net))
    pushed = vg.push_forward(params, vg.Scales(sigma_w=0.5), jnp.array([2.0**-60]), jnp.ones(1))
    log_h = -61.0 * LN2 * 2.0 ** np.arange(41) - LN2 * (2.0 ** np.arange(41) - 1)
    first = int(np.argmax(np.abs(log_h) >= 2**28 * LN2))
    assert int(pushed.first_inexact_layer) == first
    np.testing.assert_allclose(pushed.log_mean_square[:first], 2 * log_h[:first], rtol=1e-6)
    assert np.all(np.isnan(pushed.log_mean_square[first:]))
    assert np.all(np.isnan(pushed.log_gain[first:]))


# --- zeros that are none --------------------------------------------------------------------------------------------


def test_a_slope_below_the_float_range_is_no_zero() -> None:
    """tanh' of 60 is e^-119, which float32 does not hold; relu' of -60 is 0."""
    for activation, expected in (("tanh", np.nan), ("relu", -np.inf)):
        net = vg.mlp(width=3, depth=4, inputs=3, activation=activation, bias_init="zero")
        params = vg.init(jax.random.key(0), net)
        eye = jnp.eye(3)
        kernels = params.stages[0]["kernel"].at[:].set(eye)
        stages = ({**params.stages[0], "kernel": kernels},)
        params = type(params)({**params.stem, "kernel": eye}, stages, params.head, net)
        x = jnp.full(3, -60.0)
        pushed = vg.push_forward(params, vg.Scales(), x, jnp.ones(3))
        pulled = vg.pull_back(params, vg.Scales(), x, jnp.ones(3))
        np.testing.assert_array_equal(pushed.log_gain[1], expected)
        np.testing.assert_array_equal(pulled.log_gain[0], expected)
        assert np.isfinite(pulled.log_gain[4])
        flow = vg.gradient_flow(params, vg.Scales(), x, jnp.ones(1), loss="cotangent")
        np.testing.assert_array_equal(flow.log_gradient[0], expected)
        np.testing.assert_array_equal(flow.log_parameter_gradient["stem/kernel"], expected)
    assert not np.isnan(pushed.log_mean_square).any()


# --- NaN of the network's own ---------------------------------------------------------------------------------------


def breaks(at: float, rest: Any) -> Any:
    """An activation that is NaN where |h| > at, for a network whose states grow."""
    return lambda h: jnp.where(jnp.abs(h) > at, jnp.sqrt(-jnp.abs(h)), rest(h))


@pytest.mark.parametrize("rest", [jax.nn.relu, jnp.tanh, lambda h: h], ids=["relu", "tanh", "linear"])
def test_a_nan_stays_one_and_its_layer_is_named(rest: Any) -> None:
    """A NaN in the state of a ReLU network used to read -inf behind the layer that made it."""
    net = vg.mlp(width=4, depth=12, inputs=3, activation=breaks(50.0, rest), bias_init="zero")
    params = vg.init(jax.random.key(1), net)
    x, scales = jnp.ones(3), vg.Scales(sigma_w=np.where(np.arange(12) < 6, 1.0, 300.0).astype(np.float32))
    h = x @ params.stem["kernel"]
    states = [h]
    for l in range(12):
        h = scales.sigma_w[l] * (breaks(50.0, rest)(h) @ params.stages[0]["kernel"][l])
        states.append(h)
    first = next(l for l, h in enumerate(states) if not np.all(np.isfinite(h)))
    assert 7 <= first <= 9
    pushed = vg.push_forward(params, scales, x)
    assert int(pushed.first_nan_layer) == first
    assert int(pushed.first_inexact_layer) == 13
    for series in (pushed.log_mean_square, pushed.log_gain, vg.states(params, scales, x).log_norm):
        assert np.all(np.isfinite(series[:first]))
        assert np.all(np.isnan(series[first:]))
    matrix = vg.gain_matrix(params, scales, x)
    assert np.all(np.isnan(matrix.log_gain[first:]))
    assert np.all(np.isfinite(matrix.log_gain[first - 1, :first]))
    flow = vg.gradient_flow(params, scales, x, jnp.ones(1), loss="cotangent")
    assert np.all(np.isnan(flow.log_gradient))
    assert all(np.all(np.isnan(log)) for log in flow.log_parameter_gradient.values())
    batch = vg.gradient_flow(params, scales, jnp.stack([x, 1e-3 * x]), jnp.ones((2, 1)), loss="cotangent")
    assert np.all(np.isnan(batch.log_gradient[0]))
    swept = vg.sweep(net, x, measure=vg.gains(), key=jax.random.key(1), sigma_w=[1.0, 300.0])
    assert not np.any(np.isnan(swept.log_gain[:, 0]))
    assert np.all(swept.first_nan_layer[:, 1] <= 3)
    assert np.all(np.isnan(swept.log_gain[:, 1, -1]))
    with pytest.raises(ValueError, match="finite"):
        vg.log_singular_values(params, scales, x)
    exponents = vg.lyapunov_exponents(params, scales, x)
    assert np.all(np.isnan(exponents.log_stretch[first:]))
    apart = vg.correlation(params, scales, x, jnp.array([1.0, 2.0, 3.0]))
    assert np.all(np.isnan(apart.correlation[first:]))


@pytest.mark.parametrize("value", [1e300, -1e39, 1e-300])
def test_numbers_outside_the_range_of_the_dtype_are_refused(value: float) -> None:
    net = vg.mlp(width=4, depth=2, inputs=3)
    params, x = vg.init(jax.random.key(0), net), np.full(3, value)
    sentence = r"x must lie within the range of float32, got 1e"
    for call in (vg.push_forward, vg.pull_back, vg.gradient_flow, vg.log_singular_values, vg.states, vg.forward):
        with pytest.raises(ValueError, match=sentence):
            call(params, vg.Scales(), x)
    with pytest.raises(ValueError, match=sentence):
        vg.sweep(net, x, measure=vg.gains(), key=jax.random.key(0))
    with pytest.raises(ValueError, match="tangent must lie within the range of float32"):
        vg.push_forward(params, vg.Scales(), np.ones(3), np.full(4, value))
