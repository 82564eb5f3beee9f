"""NaN and infinities of a network's own: named, and every result NaN from where plain JAX has one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

import vgjax as vg

INPUTS, WIDTH, OUTPUTS, DEPTH = 3, 4, 2, 12
KEY = jax.random.key(3)  # draws in which every one of them leaves its domain

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "root of a negative number": lambda h: jnp.sign(h) * jnp.sqrt(64 - h * h),
    "logarithm of a negative number": lambda h: h + 0 * jnp.log(8 - jnp.abs(h)),
    "beyond the domain": lambda h: 8 * jnp.arcsin(h / 8),
    "one over zero": lambda h: h + 0.001 / jnp.maximum(8 - jnp.abs(h), 0),
    # Its slope is 1 everywhere: the NaN is in the states alone.
    "infinity less infinity": lambda h: (
        h + jnp.where(jnp.abs(h) < 8, 0.0, jnp.inf) - jnp.where(jnp.abs(h) < 8, 0.0, jnp.inf)
    ),
}
"""Each is an ordinary function up to 8."""


class Own(nnx.Module):
    """A user's block: ``phi(h) A``."""

    def __init__(self, width: int, phi: Any, *, rngs: nnx.Rngs):
        self.phi = phi
        self.kernel = nnx.Param(1.5 * jax.random.normal(rngs.params(), (width, width)) / np.sqrt(width))

    def __call__(self, h: jax.Array) -> jax.Array:
        return jnp.dot(self.phi(h), self.kernel[...])


def network(name: str, own: bool) -> Any:
    phi = ACTIVATIONS[name]
    if own:
        return vg.stack(Own, WIDTH, phi, depth=DEPTH, input_shape=WIDTH)
    return vg.mlp(width=WIDTH, depth=DEPTH, activation=phi, inputs=INPUTS, outputs=OUTPUTS)


SCALES = {True: vg.Scales(), False: vg.Scales(sigma_w=1.5)}


def plain_states(params: Any, name: str, own: bool, x: np.ndarray) -> list[np.ndarray]:
    """h^0 ... h^L of a plain loop, in float64."""
    with jax.enable_x64(True):
        phi, h = ACTIVATIONS[name], np.asarray(x, np.float64)
        if own:
            layers = [(np.asarray(kernel, np.float64), 0.0) for kernel in params.stages[0]["kernel"]]
        else:
            (kernel, bias), *layers, _ = oracles.weights(params, 1.5)
            h = h @ kernel + bias
        states = [h]
        for kernel, bias in layers:
            states.append(np.asarray(phi(states[-1])) @ kernel + bias)
    return states


def first_of_its_own(states: list[np.ndarray]) -> int:
    """The first layer that is not finite; none of these networks comes near the end of float64."""
    return next(l for l, h in enumerate(states) if not np.all(np.isfinite(h)))


# One after the other in every place: what is compiled for one takes most of the time.
CASES = [
    ("root of a negative number", False),
    ("one over zero", True),
    *(
        pytest.param((name, own), marks=pytest.mark.torture)
        for name in ACTIVATIONS
        for own in (False, True)
        if (name, own) not in (("root of a negative number", False), ("one over zero", True))
    ),
]


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: Any) -> tuple[Any, Any, np.ndarray, int, np.ndarray]:
    """Parameters, scales, an input, the first layer that is no number, and ln of the norms before it."""
    name, own = request.param
    params = vg.init(jax.random.split(jax.random.fold_in(KEY, 0))[0], network(name, own))
    x = np.array([1.0, -0.5, 0.3, 0.2][: WIDTH if own else INPUTS], np.float32)
    with np.errstate(all="ignore"):
        states = plain_states(params, name, own, x)
        first = first_of_its_own(states)
    assert 1 <= first < DEPTH
    return params, SCALES[own], x, first, np.array([oracles.log_norm(h) for h in states[:first]])


def assert_nan_from(log: Any, first: int) -> None:
    """Finite before a layer along the last axis, NaN from there on."""
    log = np.asarray(log)
    assert np.all(np.isfinite(log[..., :first])), log
    assert np.all(np.isnan(log[..., first:])), log


def assert_all_nan(*logs: Any) -> None:
    for log in logs:
        assert np.all(np.isnan(np.asarray(log))), log


def test_forward_is_right_before_and_nan_behind(case: Any) -> None:
    params, scales, x, first, norms = case
    push, states = vg.push_forward(params, scales, x), vg.states(params, scales, x)
    assert (int(push.first_nan_layer), int(states.first_nan_layer)) == (first, first)
    for log in (push.log_gain, push.log_mean_square, states.log_norm):
        assert_nan_from(log, first)
    np.testing.assert_allclose(states.log_norm[:first], norms, rtol=1e-4, atol=1e-4)
    assert_all_nan(states.direction[first:])


def test_backward_is_nan_throughout_if_any_layer_on_the_way_is(case: Any) -> None:
    params, scales, x, first, _ = case
    pull = vg.pull_back(params, scales, x)
    assert_all_nan(pull.log_gain)
    gains = vg.gain_matrix(params, scales, x, range(DEPTH + 1))
    assert (int(pull.first_nan_layer), int(gains.first_nan_layer)) == (first, first)
    for m, row in enumerate(gains.log_gain):
        assert np.all(np.isfinite(row[: m + 1]) if m < first else np.isnan(row[: m + 1])), (m, row)


def test_gradients_are_nan(case: Any) -> None:
    params, scales, x, first, _ = case
    flow = vg.gradient_flow(params, scales, x)
    assert int(flow.first_nan_layer) == first
    assert_all_nan(flow.log_gradient, *flow.log_parameter_gradient.values())
    assert_nan_from(flow.log_mean_square, first)


def test_one_example_of_a_batch_takes_no_other_with_it(case: Any) -> None:
    params, scales, x, first, _ = case
    small = x / 1e4
    flow, alone = vg.gradient_flow(params, scales, np.stack([x, small])), vg.gradient_flow(params, scales, small)
    np.testing.assert_array_equal(flow.first_nan_layer, [first, alone.first_nan_layer])
    assert_all_nan(flow.log_gradient[0])
    np.testing.assert_allclose(flow.log_gradient[1], alone.log_gradient, rtol=1e-5, atol=1e-5)
    assert_all_nan(*flow.log_parameter_gradient.values())  # of the summed loss


def test_correlation_is_nan_from_the_first_of_either_input_on(case: Any) -> None:
    params, scales, x, first, _ = case
    for inputs in ((x, x / 1e4), (x / 1e4, x)):
        found = vg.correlation(params, scales, *inputs)
        assert int(found.first_nan_layer) == first
        assert_nan_from(found.correlation, first)
        assert_all_nan(found.log_one_minus_c[first:])


def test_sweeps_name_it_for_every_point(case: Any) -> None:
    params, scales, x, first, _ = case
    options: Any = {"key": KEY, "seeds": 1, "scales": scales}
    gains = vg.sweep(params.network, x, measure=vg.gains(), **options)
    gradients = vg.sweep(params.network, x, measure=vg.gradients(), **options)
    assert_nan_from(gains.log_gain[0], first)
    assert_all_nan(gradients.log_gradient[0])
    assert (int(gains.first_nan_layer[0]), int(gradients.first_nan_layer[0])) == (first, first)


def test_spectra_are_refused_and_norms_and_rates_nan(case: Any) -> None:
    params, scales, x, first, _ = case
    with pytest.raises(ValueError, match=f"finite, got a NaN or an infinity at layer {first}"):
        vg.log_singular_values(params, scales, x)
    assert_nan_from(vg.log_frobenius(params, scales, x).log_norm, first)
    assert_nan_from(vg.measure.log_determinant(params, scales, x), first)
    stretch = vg.lyapunov_exponents(params, scales, x, discard=0).log_stretch
    assert_nan_from(stretch.T, first - 1)  # of layers, the first of which leads from state 0 to 1


def test_a_nan_in_the_branch_not_taken_is_none() -> None:
    """``where`` around a square root of a negative number: reverse mode of plain JAX is NaN everywhere, the slope is
    not."""

    def root(h: Any) -> Any:
        return jnp.where(jnp.abs(h) < 8, h, jnp.sqrt(jnp.abs(h) - 8))

    assert np.isnan(jax.grad(root)(0.5))
    networks = [
        vg.mlp(width=WIDTH, depth=3, activation=phi, inputs=INPUTS, outputs=OUTPUTS) for phi in (root, "linear")
    ]
    x = np.array([0.5, -0.2, 1.0], np.float32)
    (push, flow), (right_push, right_flow) = (
        [f(vg.init(KEY, net), SCALES[True], x) for f in (vg.push_forward, vg.gradient_flow)] for net in networks
    )
    np.testing.assert_allclose(push.log_gain, right_push.log_gain, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(flow.log_gradient, right_flow.log_gradient, rtol=1e-5, atol=1e-5)
    for name, log in right_flow.log_parameter_gradient.items():
        np.testing.assert_allclose(flow.log_parameter_gradient[name], log, rtol=1e-5, atol=1e-5)


# --- inputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "tanh", "linear"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_inputs_that_are_no_number_of_the_dtype(activation: str, value: float) -> None:
    """NaN, infinity, and what is finite in float64 alone: refused, or NaN from the first layer on."""
    params = vg.init(KEY, vg.mlp(width=WIDTH, depth=3, activation=activation, inputs=INPUTS, outputs=OUTPUTS))
    x = np.array([0.5, value, 1.0])
    try:
        with np.errstate(over="ignore"):
            push, flow = (f(params, vg.Scales(), x) for f in (vg.push_forward, vg.gradient_flow))
    except ValueError as error:
        assert "x must" in str(error)  # noqa: PT017
    else:
        assert (int(push.first_nan_layer), int(flow.first_nan_layer)) == (0, 0)
        assert_all_nan(push.log_gain, push.log_mean_square, flow.log_gradient, *flow.log_parameter_gradient.values())
