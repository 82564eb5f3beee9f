"""Numbers past the float range: a value and a power of two.

Everything that grows or shrinks with depth (states, tangents, cotangents) travels as ``value * 2**exponent``. Powers of
two are exact, so nothing drifts, and the logarithm is taken once, at the end. This is the only room that knows how.

Two rules hold everywhere:

- The exponent is 0 while the norm lies within ``2**-W .. 2**W`` (`window_exponent`); past it the value is kept near
  norm 1. So in the ordinary range a scaled number *is* the plain number.
- Zero has no exponent: ``exponent == ZERO``, lower than any other, so it never decides a sum.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike
from jaxtyping import Float, Int

ZERO = -(2**29)
"""The exponent of an exact zero."""

LN2 = 0.6931471805599453


class FloatExp(NamedTuple):
    """The number ``value * 2**exponent``: an array of any shape with one exponent for all of it.

    Attributes:
        value: float array of any shape.
        exponent: int32, shape ``()``.
    """

    value: Array
    exponent: Array


def window_exponent(dtype: jnp.dtype) -> int:
    """W: norms within ``2**-W .. 2**W`` are left alone.

    A quarter of the dtype's exponents, so that squares stay finite.
    """
    return int(jnp.finfo(dtype).maxexp) // 4


def from_float(value: Array) -> FloatExp:
    """An ordinary array as a scaled number."""
    return FloatExp(value, jnp.zeros((), jnp.int32))


def power_of_two(exponent: Int[Array, "*shape"], dtype: Any) -> Float[Array, "*shape"]:
    """``2**exponent``, exact.

    0 below the dtype's normal range (XLA flushes subnormals), its largest power of two above.
    """
    bits, info = _BITS[jnp.dtype(dtype).name], jnp.finfo(dtype)
    bias = int(info.maxexp) - 1
    field = jnp.clip(exponent, int(info.minexp) - 1, bias) + bias  # a field of 0 is the float 0
    return lax.bitcast_convert_type(field.astype(bits) << int(info.nmant), jnp.dtype(dtype))


def exponent_of(positive: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """floor(log2) of positive normal floats, int32; read off their bits."""
    info = jnp.finfo(positive.dtype)
    field = lax.bitcast_convert_type(positive, _BITS[positive.dtype.name]) >> int(info.nmant)
    return (field - (int(info.maxexp) - 1)).astype(jnp.int32)


_BITS = {"float32": jnp.int32, "float64": jnp.int64}


def normalize(number: FloatExp) -> tuple[FloatExp, Float[Array, ""]]:
    """The same number by the rules of this module, and its ``log_norm``.

    Args:
        number: any scaled number; its value may be as large or as small as the dtype holds.

    Returns:
        The normalized number, and ln of its Euclidean norm, shape ``()``: -inf for an exact zero and for nothing else.
    """
    value, exponent = number
    total, taken_out = _sum_of_squares(value.reshape(-1))
    is_zero = total == 0
    norm_exponent = jnp.where(is_zero, 0, taken_out + exponent_of(total) // 2)
    true_exponent = exponent + norm_exponent
    w = window_exponent(value.dtype)
    kept = jnp.where(is_zero, ZERO, jnp.where(jnp.abs(true_exponent) <= w, 0, true_exponent))
    value = value * power_of_two(exponent - kept, value.dtype)
    log_norm = jnp.log(total) / 2 + (exponent + taken_out).astype(value.dtype) * LN2
    return FloatExp(value, kept), jnp.where(is_zero, -jnp.inf, log_norm)


def to_float_clipped(number: FloatExp) -> Array:
    """The plain array nearest to a normalized number within the float range: itself, or moved in to norm ``2**-W`` or
    ``2**W``.

    Maps that are asymptotically homogeneous of degree 1 have the same Jacobian there as at the number itself (Euler).
    """
    value, exponent = number
    w = window_exponent(value.dtype)
    return value * power_of_two(jnp.clip(exponent, -w, w), value.dtype)


def residual_exponent(number: FloatExp) -> Int[Array, ""]:
    """The powers of two that `to_float_clipped` leaves out, int32, shape ``()``; 0 for an exact zero."""
    w = window_exponent(number.value.dtype)
    return jnp.where(number.exponent == ZERO, 0, number.exponent - jnp.clip(number.exponent, -w, w))


def with_zero_exponent(number: FloatExp) -> FloatExp:
    """The same number, with the exponent `ZERO` if it is exactly zero, so that it has no say in a sum."""
    return number._replace(exponent=jnp.where(_is_zero(number.value.reshape(-1)), ZERO, number.exponent))


def scaled_bias(scale: ArrayLike, value: Array) -> FloatExp:
    """``scale * value`` as a summand: with the exponent `ZERO` where it is exactly zero.

    Over a grid of scales this looks at ``value`` once, not at every product.
    """
    return FloatExp(jnp.asarray(scale * value), jnp.where((scale == 0) | jnp.all(value == 0), ZERO, 0))


def add(*numbers: FloatExp) -> FloatExp:
    """The sum of numbers (`with_zero_exponent`), at the largest of their exponents."""
    largest = functools.reduce(jnp.maximum, [n.exponent for n in numbers])
    terms = [n.value * power_of_two(n.exponent - largest, n.value.dtype) for n in numbers]
    return FloatExp(functools.reduce(jnp.add, terms), largest)


def euler(f: Callable[[Array], Array], number: FloatExp, homogeneity: tuple[int, int] = (0, 0)) -> FloatExp:
    """f at a normalized number of any size, for any f that is asymptotically homogeneous of degree 1 or 0, or tends to
    f(0) or to a constant.

    f(2^e u) inside the float range; f(0) + 2^e J u below it; 2^e J u above it, or f itself where that is exactly zero
    (all units dead) or where f depends on the direction alone. J is taken at `to_float_clipped` (Euler's theorem). One
    tangent product more than f itself.

    Args:
        f: array -> array, of any shapes.
        number: normalized (`normalize`).
        homogeneity: of f's Jacobian (below, above) the float range: 0, or -1 for the direction alone.
    """
    value, exponent = number
    x = to_float_clipped(number)
    y, linear = jax.jvp(f, (x,), (value,))
    below = add(with_zero_exponent(FloatExp(linear, exponent)), with_zero_exponent(from_float(f(jnp.zeros_like(x)))))
    inside = (exponent == 0) | ((exponent > 0) & ((homogeneity[1] < 0) | _is_zero(linear.reshape(-1))))
    inside |= (exponent < 0) & (homogeneity[0] < 0)
    return FloatExp(
        jnp.where(inside, y, jnp.where(exponent < 0, below.value, linear)),
        jnp.where(inside, 0, jnp.where(exponent < 0, below.exponent, exponent)),
    )


@custom_vmap
def _is_zero(rows: Array) -> Array:
    """Whether all entries along the last axis are exactly zero.

    Only where the first few are does it look at the others.
    """
    suspect = jnp.all(rows[..., :8] == 0, axis=-1)
    return lax.cond(jnp.any(suspect), lambda rows: jnp.all(rows == 0, axis=-1), lambda _: suspect, rows)


@_is_zero.def_vmap
def _(axis_size: int, in_batched: list[bool], rows: Array) -> tuple[Array, bool]:
    return _is_zero(rows), True


@custom_vmap
def _sum_of_squares(rows: Array) -> tuple[Array, Array]:
    """(total, k), the sum of squares over the last axis being ``total * 2**(2 k)``: k is 0 unless the plain sum
    leaves the range.

    A layer that changes a norm by more than about 2**30 over- or underflows its plain sum of squares. Taking the
    largest entry out first is always right but a quarter slower, so it is done only for a batch in which some row
    needs it: `custom_vmap` sees the batch and lets one `lax.cond` decide for all its rows, where plain `vmap` would
    compute both.
    """
    squares = jnp.sum(rows * rows, axis=-1)
    w = window_exponent(rows.dtype)
    safe = (squares > 2.0 ** (-5 * w // 2)) & (squares < 2.0 ** (3 * w))
    return lax.cond(
        jnp.all(safe),
        lambda _: (squares, jnp.zeros(squares.shape, jnp.int32)),
        _sum_of_squares_past_range,
        rows,
    )


@_sum_of_squares.def_vmap
def _(axis_size: int, in_batched: list[bool], rows: Array) -> tuple[tuple[Array, Array], tuple[bool, bool]]:
    return _sum_of_squares(rows), (True, True)


def _sum_of_squares_past_range(rows: Array) -> tuple[Array, Array]:
    largest = jnp.max(jnp.abs(rows), axis=-1)
    k = jnp.where(largest == 0, 0, exponent_of(largest))
    # In two factors: 2**-k itself may leave the range.
    half, rest = (power_of_two(-part, rows.dtype)[..., None] for part in (k // 2, k - k // 2))
    return jnp.sum((rows * half * rest) ** 2, axis=-1), k
