"""Correlation: how alike two inputs, or the tokens of one, become along the depth."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Shaped

from vgjax.activations import Activation
from vgjax.blocks import Spec
from vgjax.checks import ArrayLike, kinds, nan_is_data
from vgjax.floatexp import FloatExp, add, from_float, is_zero, normalize, with_zero_exponent
from vgjax.initializers import Scales
from vgjax.measure.flow import states
from vgjax.networks.exactness import Doubts, doubts, exactness, marked_forward
from vgjax.networks.layer import Layer
from vgjax.networks.layers import bind, by_stage, checked_input, describe_states, joined
from vgjax.networks.parameters import Parameters, as_dtype
from vgjax.values import by_content


@by_content
class Correlation(NamedTuple):
    """Two inputs along the depth of one network.

    Attributes:
        correlation: c_l, the cosine of the two states, shape ``(depth + 1,)``; NaN where one of them is exactly 0.
        log_one_minus_c: ln (1 - c_l), without cancellation, same shape; -inf where the states are parallel, NaN from
            where one layer shrinks their difference below the rounding of the states.
        log_mean_square: ln of the mean squares of both states, shape ``(2, depth + 1)``.
        first_inexact_layer, first_nan_layer: as for `Push`, of either state.
    """

    correlation: Array
    log_one_minus_c: Array
    log_mean_square: Array
    first_inexact_layer: Array
    first_nan_layer: Array


@kinds
@nan_is_data
def correlation(parameters: Parameters, scales: Scales, x1: ArrayLike, x2: ArrayLike) -> Correlation:
    """The correlation c_l of two inputs at every layer, and 1 - c_l however small it is.

        c_l = s_l(x1) . s_l(x2) / (||s_l(x1)|| ||s_l(x2)||)

    What is carried are both states and their difference, each with its own exponent. Where the two are close the
    difference goes through the layer as a tangent at the midpoint, so ln (1 - c) is as good at -10000 as at 0: right to
    1e-5 in float32, and to about 1e-3 (float64: 1e-7) behind the layers where the one takes over from the other. Two
    things limit it. Where directions meet but norms do not (a network without bias), each state rounds for itself:
    ln (1 - c) is right to about eps / sqrt(1 - c), and 1 - c below eps^2 is rounding. In a recurrence, whose inputs
    differ at every step, the difference is the plain one, and 1 - c below 1e-12 (float32) is rounding.

    Args:
        parameters, scales: as for `forward`.
        x1, x2: two inputs, each of shape ``network.input_shape``.

    Returns:
        `Correlation`.

    Raises:
        ValueError: unknown scales, or an input of the wrong shape.

    Source: Poole et al. 2016, "Exponential expressivity in deep neural networks through transient chaos", section 3.
    """
    x1, x2 = (checked_input(parameters, scales, x) for x in (x1, x2))
    return _correlate(parameters, scales, x1, x2)


def correlate(
    parameters: Parameters, scales: Scales, x1: Shaped[Array, "*input"], x2: Shaped[Array, "*input"]
) -> Correlation:
    """`correlation`, unchecked and not compiled by itself: what sweeps `vmap`."""
    layers, network = bind(parameters, scales, x1), parameters.network
    x1, x2 = (as_dtype(parameters.dtype, x) for x in (x1, x2))
    state, second = from_float(x1), Second(from_float(x2), from_float(x2 - x1))
    if layers.stem:
        second = behind(layers.stem, layers.stem, normalize(state)[0], second)
        state = layers.first_state(x1)

    def visit(layer: Layer, state: FloatExp, second: Second, x: Array | None) -> tuple[Second, tuple[Reading, Doubts]]:
        other = layer if layer.input is None else replace(layer, input=x)
        about = read_pair(state, second), doubts(other, *normalize(second.state))
        return behind(layer, other, state, second), about

    extras = by_stage(network, x2) if network.driven else None
    walked = layers.walk(state, visit, second, extras=extras)
    last = jax.tree.map(lambda a: a[None], read_pair(walked.last, walked.carry))
    readings, in_doubt = zip(*walked.reports, strict=True)
    read = joined([*readings, last])
    other = exactness(read.log_norm, joined(in_doubt))
    second_walk = walked._replace(log_norms=marked_forward(other, read.log_norm), exactness=other)
    of_both, *first = zip(*(describe_states(network, each) for each in (walked, second_walk)), strict=True)
    squares = jnp.stack(of_both)
    c, one_minus_c = (jnp.where(jnp.any(jnp.isnan(squares), axis=0), jnp.nan, a) for a in read[:2])
    return Correlation(c, one_minus_c, squares, *(jnp.minimum(*pair) for pair in first))


_correlate = jax.jit(correlate)


class Second(NamedTuple):
    """The second input's state, and how far it is from the first's (their plain difference loses what they share)."""

    state: FloatExp
    apart: FloatExp


class Reading(NamedTuple):
    """c and ln (1 - c) of two states, and ln of the norm of the second."""

    c: Array
    log_one_minus_c: Array
    log_norm: Array


def behind(layer: Layer, other: Layer, state: FloatExp, second: Second) -> Second:
    """The second state and the difference behind a layer (``other`` with the second input), not normalized.

    With r = |d| / |s|, a plain difference is right to eps / r, a tangent at the midpoint to r^2 where phi is smooth and
    to r where d crosses a kink of it: the one takes over from the other where the larger of both is smallest.
    """
    there, apart = normalize(second.state)[0], normalize(second.apart)[0]
    after = layer.step(state)
    plain = other.step(there)
    direct = Second(plain, _minus(plain, after))
    if layer.input is not None:  # the inputs differ too
        return direct
    tangent = layer.push(_sum(state, apart._replace(value=apart.value / 2)), apart)
    eps = jnp.finfo(state.value.dtype).eps
    near = normalize(apart)[1] - normalize(state)[1] < (1 / 3 if _smooth(layer.spec) else 1 / 2) * np.log(eps)
    # What one layer shrinks below the rounding of the states is in neither, unless it is nothing.
    swallowed = normalize(direct.apart)[1] < normalize(after)[1] + np.log(8 * eps)
    swallowed &= ~is_zero(tangent.value) | layer.underflows(state)
    swallowed |= jnp.any(jnp.isnan(apart.value))  # as it was before this layer
    value = jnp.where(swallowed, jnp.nan, direct.apart.value)
    direct = direct._replace(apart=direct.apart._replace(value=value))
    # A state of its own would forget a difference below its rounding: it follows the tangent as long as that holds.
    return jax.tree.map(lambda a, b: jnp.where(near, a, b), Second(_sum(after, tangent), tangent), direct)


def _smooth(spec: Spec) -> bool:
    """Whether a block says what its activations are, and none of them has a kink."""
    options = [value for part in spec.nested() for _, value in part.options]
    activations = [value for value in options if isinstance(value, Activation)]
    return bool(activations) and not any(activation.kinks for activation in activations)


def _sum(a: FloatExp, b: FloatExp) -> FloatExp:
    return normalize(add(with_zero_exponent(a), with_zero_exponent(b)))[0]


def _minus(a: FloatExp, b: FloatExp) -> FloatExp:
    return add(with_zero_exponent(a), with_zero_exponent(b._replace(value=-b.value)))


def read_pair(state: FloatExp, second: Second) -> Reading:
    """c and 1 - c of s (normalized) and s'.

    Apart, from their directions u and u': 1 - c = |u - u'|^2 / 2. Close to each other, from d = s' - s: with k the
    cosine of d to s and r = |d| / |s|, s' is (1 + r k) along s and r sqrt(1 - k^2) across it, and 1 - c = across^2 /
    (|s'| (|s'| + along)).
    """
    (unit, log_norm), (other, log_other), (step, log_apart) = map(_unit, (state, second.state, second.apart))
    k = jnp.sum(unit * step)
    across = jnp.sum((step - k * unit) ** 2)  # sin^2: what is left of the step, not 1 - k^2, which cancels
    log_ratio = log_apart - log_norm
    close = log_ratio < -1
    r = jnp.exp(jnp.where(close, log_ratio, 0))
    along = 1 + r * k
    length = jnp.sqrt(along**2 + r**2 * across)
    small = 2 * log_ratio + jnp.log(across) - jnp.log(length * (length + along))
    log_one_minus_c = jnp.where(close, small, jnp.log(jnp.sum((unit - other) ** 2) / 2))
    c = jnp.where(close, along / length, jnp.sum(unit * other))
    log_one_minus_c = jnp.where(jnp.isnan(log_apart), jnp.nan, log_one_minus_c)
    nothing = jnp.isneginf(log_norm) | jnp.isneginf(log_other)
    return Reading(jnp.where(nothing, jnp.nan, c), jnp.where(nothing, jnp.nan, log_one_minus_c), log_other)


def _unit(number: FloatExp) -> tuple[Float[Array, "*state"], Float[Array, ""]]:
    """The direction of a number (0 for 0) and ln of its norm."""
    number, log_norm = normalize(number)
    norm = jnp.sqrt(jnp.sum(number.value**2))
    return jnp.where(norm > 0, number.value / jnp.where(norm > 0, norm, 1), 0), log_norm


# --- tokens ---------------------------------------------------------------------------------------------------------


@kinds
def token_correlation(parameters: Parameters, scales: Scales, x: ArrayLike) -> Array:
    """Mean cosine between two different tokens of the state s_l, at every layer: 1 is rank collapse.

    Args:
        parameters, scales: as for `forward`; of a network whose states are tokens, shape ``(tokens, width)``, at least
            two of them.
        x: one input.

    Returns:
        Shape ``(depth + 1,)``; NaN where a token is zero.

    Raises:
        ValueError: unknown scales, an input of the wrong shape, or states that are not tokens.
    """
    directions = states(parameters, scales, x).direction
    shape = None if isinstance(directions, list) else directions.shape[1:]
    if shape is None or len(shape) != 2 or shape[0] < 2:
        raise ValueError(f"states must be at least two tokens, shape (tokens, width), got shape {shape}")
    return _mean_cosines(directions)


@jax.jit
def _mean_cosines(directions: Float[Array, "layers tokens width"]) -> Float[Array, " layers"]:
    def at(state: Array) -> Array:
        unit = state / jnp.linalg.norm(state, axis=1, keepdims=True)
        n = len(unit)
        return (jnp.sum(unit.sum(axis=0) ** 2) - n) / (n * (n - 1))

    return jax.vmap(at)(directions)
