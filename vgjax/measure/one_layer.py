"""One layer of a batch, backward: the gradients of its parameters, and how flat its units are."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from vgjax.floatexp import (
    FloatExp,
    ParameterDegrees,
    add,
    common_denominator,
    exponent_past_range,
    power_of_two,
    times_degree,
    to_float_clipped,
    with_zero_exponent,
)
from vgjax.networks.layer import Layer

FLAT = 0.05
"""A unit is saturated where |phi'| is below this share of phi's largest slope."""


def over_batch(layer: Layer, f: Callable[..., Any], *rows: Any) -> Any:
    """f(layer, row) for a batch of rows; the layer's own input, if it has one, has that leading axis too."""
    of_input = None if layer.input is None else 0
    return jax.vmap(lambda x, *row: f(replace(layer, input=x), *row), (of_input, *[0] * len(rows)))(layer.input, *rows)


def parameter_gradients(layer: Layer, states: FloatExp, cotangents: FloatExp) -> dict[str, FloatExp]:
    """sum_b dL_b/d(parameter), not normalized, by path.

    The derivative is taken at the clipped state. Beyond the float range it grows like 2^(k e), with a k for each
    parameter: 1 for a kernel that multiplies the state, 0 for a bias that is added to it (`Layer.measured`).
    """
    one = replace(layer, input=None if layer.input is None else layer.input[0])
    kinds = one.parameter_degrees(jax.tree.map(lambda a: a[0], states))

    def pulled(h: Array, weights: Array, exponent: Array) -> dict[str, FloatExp]:
        """sum_b weights_b 2^exponent_b D_b^T v_b."""
        common = jnp.max(exponent)
        weights = weights * jax.vmap(lambda e: power_of_two(e - common, h.dtype))(exponent)
        v = cotangents.value * weights.reshape(-1, *(1,) * (cotangents.value.ndim - 1))
        at = lambda p: over_batch(layer.with_parameters(p), Layer.__call__, h)  # noqa: E731
        return {path: FloatExp(g, common) for path, g in jax.vjp(at, layer.trainable())[1](v)[0].items()}

    def gradient(kind: ParameterDegrees) -> dict[str, FloatExp]:
        below, above, behind_offset, affine = kind
        step = common_denominator(below, above)
        h, beyond = (jax.vmap(functools.partial(f, step=step))(states) for f in (to_float_clipped, exponent_past_range))
        growth = jnp.where(beyond < 0, times_degree(beyond, below), times_degree(beyond, above))
        every, nowhere = jnp.ones((), h.dtype), jnp.zeros_like(h)
        if affine and below:
            # Apart: in one number either could be lost beside the other, and then be scaled.
            grown = functools.partial(pulled, weights=every, exponent=cotangents.exponent + growth)
            there, slope = jax.jvp(grown, (nowhere,), (h,))
            along = {path: FloatExp(slope[path].value, number.exponent) for path, number in there.items()}
            return _added(along, pulled(nowhere, every, cotangents.exponent))
        unknown = ((beyond < 0) & (below is None)) | ((beyond > 0) & (above is None))
        found = pulled(h, jnp.where(unknown, jnp.nan, every), cotangents.exponent + growth)
        if not behind_offset:
            return found
        # D = D(0) + 2^growth (D(clipped) - D(0)) below the range.
        rest = jnp.where(beyond < 0, 1 - power_of_two(growth, h.dtype), 0)
        return _added(found, pulled(nowhere, rest, cotangents.exponent))

    # One product per kind of parameter; what a kind does not use is never computed (XLA drops it).
    by_kind = {kind: gradient(kind) for kind in set(kinds.values())}
    return {path: by_kind[kind][path] for path, kind in kinds.items()}


def _added(one: dict[str, FloatExp], other: dict[str, FloatExp]) -> dict[str, FloatExp]:
    return {path: add(with_zero_exponent(g), with_zero_exponent(other[path])) for path, g in one.items()}


def slope_statistics(layer: Layer, states: FloatExp) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Mean of phi'^2, and the share of flat units, of every example; NaN past the float range where phi' grows."""

    def read(layer: Layer, state: FloatExp) -> tuple[Array, Array]:
        h, shift = layer.place(state)
        slopes, largest = layer.slopes(h)
        slopes = jnp.where(shift == 0, slopes.reshape(-1), jnp.nan)
        flat = jnp.where(jnp.isnan(slopes), jnp.nan, (jnp.abs(slopes) < FLAT * largest).astype(slopes.dtype))
        return jnp.mean(slopes**2), jnp.mean(flat)

    return over_batch(layer, read, states)
