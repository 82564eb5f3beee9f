"""Correlation: how alike two inputs, or the tokens of one, become along the depth."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from vgjax.floatexp import FloatExp, add, from_float, normalize, with_zero_exponent
from vgjax.initializers import Scales
from vgjax.measure.flow import states
from vgjax.networks.layer import Layer
from vgjax.networks.layers import bind, by_stage, checked_input, describe_states, joined
from vgjax.networks.parameters import Parameters, as_dtype

_FAR = 30.0  # ln of a ratio of norms from which the larger state alone says where the two point


class Correlation(NamedTuple):
    """Two inputs along the depth of one network.

    Attributes:
        correlation: c_l, the cosine of the two states, shape ``(depth + 1,)``; NaN where one of them is exactly 0.
        log_one_minus_c: ln (1 - c_l), without cancellation, same shape; -inf where the states are parallel.
        log_mean_square: ln of the mean squares of both states, shape ``(2, depth + 1)``.
        first_inexact_layer: as for `Push`, of either state.
    """

    correlation: Array
    log_one_minus_c: Array
    log_mean_square: Array
    first_inexact_layer: Array


def correlation(parameters: Parameters, scales: Scales, x1: ArrayLike, x2: ArrayLike) -> Correlation:
    """The correlation c_l of two inputs at every layer, and 1 - c_l however small it is.

        c_l = s_l(x1) . s_l(x2) / (||s_l(x1)|| ||s_l(x2)||)

    What is carried is one state and the difference to the other, each with its own exponent: close to each other the
    difference goes through the layer as a tangent at the midpoint, so 1 - c is right to rounding at e^-10000 as at 1.
    In a recurrence, whose inputs differ at every step, differences are taken in plain floats: there 1 - c below 1e-12
    (float32) is rounding.

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


def correlate(parameters: Parameters, scales: Scales, x1: Array, x2: Array) -> Correlation:
    """`correlation`, unchecked and not compiled by itself: what sweeps `vmap`."""
    layers, network = bind(parameters, scales, x1), parameters.network
    x1, x2 = (as_dtype(parameters.dtype, x) for x in (x1, x2))
    state, apart = from_float(x1), from_float(x2 - x1)
    if layers.stem:
        apart = _difference(layers.stem, layers.stem, normalize(state)[0], normalize(apart)[0])
        state = layers.first_state(x1)

    def visit(layer: Layer, state: FloatExp, apart: FloatExp, x: Array | None) -> tuple[FloatExp, "_Pair"]:
        apart = normalize(apart)[0]
        other = layer if layer.input is None else replace(layer, input=x)
        return _difference(layer, other, state, apart), _read(state, apart)

    extras = by_stage(network, x2) if network.driven else None
    walked = layers.walk(state, visit, apart, extras=extras)
    last = jax.tree.map(lambda a: a[None], _read(walked.last, normalize(walked.carry)[0]))
    pair = joined([*walked.reports, last])
    both = (describe_states(network, log_norms) for log_norms in (walked.log_norms, pair.log_norm))
    squares, inexact = zip(*both, strict=True)
    return Correlation(pair.c, pair.log_one_minus_c, jnp.stack(squares), jnp.minimum(*inexact))


_correlate = jax.jit(correlate)


class _Pair(NamedTuple):
    """c and ln (1 - c) of two states, and ln of the norm of the second."""

    c: Array
    log_one_minus_c: Array
    log_norm: Array


def _difference(layer: Layer, other: Layer, state: FloatExp, apart: FloatExp) -> FloatExp:
    """f(s + d) - f(s) behind a layer, of normalized s and d; not normalized.

    Directly it is right to eps |s| / |d|, as a tangent at the midpoint to |d|^2 / |s|^2 (|d| / |s| at a kink of phi):
    both are small where the one takes over from the other, at eps^(2/3).
    """
    direct = _minus(other.step(_sum(state, apart)), layer.step(state))
    if layer.input is not None:  # the inputs differ too
        return direct
    half = apart._replace(value=apart.value / 2)
    tangent = layer.push(_sum(state, half), apart)
    near = normalize(apart)[1] - normalize(state)[1] < 2 / 3 * np.log(jnp.finfo(state.value.dtype).eps)
    return jax.tree.map(lambda a, b: jnp.where(near, a, b), tangent, direct)


def _sum(a: FloatExp, b: FloatExp) -> FloatExp:
    return normalize(add(with_zero_exponent(a), with_zero_exponent(b)))[0]


def _minus(a: FloatExp, b: FloatExp) -> FloatExp:
    return add(with_zero_exponent(a), with_zero_exponent(b._replace(value=-b.value)))


def _read(state: FloatExp, apart: FloatExp) -> _Pair:
    """From s and d = s' - s: with k the cosine of d to s and r = |d| / |s|, s' is (1 + r k) along s and r sqrt(1 - k^2)
    across it, and 1 - c = across^2 / (|s'| (|s'| + along))."""
    (unit, log_norm), (step, log_apart) = _unit(state), _unit(apart)
    k = jnp.sum(unit * step)
    across = jnp.sum((step - k * unit) ** 2)  # sin^2: what is left of the step, not 1 - k^2, which cancels
    log_ratio = jnp.minimum(log_apart - log_norm, _FAR)
    r = jnp.exp(log_ratio)
    along = 1 + r * k
    length = jnp.sqrt(along**2 + r**2 * across)
    c = along / length
    small = 2 * log_ratio + jnp.log(across) - jnp.log(length * (length + along))
    log_one_minus_c = jnp.where(along > 0, small, jnp.log1p(-c))
    other = normalize(add(with_zero_exponent(state), with_zero_exponent(apart)))[1]
    nothing = jnp.isneginf(log_norm) | jnp.isneginf(other)
    return _Pair(*(jnp.where(nothing, jnp.nan, a) for a in (c, log_one_minus_c)), other)


def _unit(number: FloatExp) -> tuple[Array, Array]:
    """The direction of a normalized number (0 for 0) and ln of its norm."""
    norm = jnp.sqrt(jnp.sum(number.value**2))
    return jnp.where(norm > 0, number.value / jnp.where(norm > 0, norm, 1), 0), normalize(number)[1]


# --- tokens ---------------------------------------------------------------------------------------------------------


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
def _mean_cosines(directions: Array) -> Array:
    def at(state: Array) -> Array:
        unit = state / jnp.linalg.norm(state, axis=1, keepdims=True)
        n = len(unit)
        return (jnp.sum(unit.sum(axis=0) ** 2) - n) / (n * (n - 1))

    return jax.vmap(at)(directions)
