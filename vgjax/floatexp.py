"""Numbers past the float range: a value and a power of two.

Everything that grows or shrinks with depth (states, tangents, cotangents) travels as ``value * 2**exponent``. Powers of
two are exact, so nothing drifts, and the logarithm is taken once, at the end. This is the only room that knows how.

Three rules hold everywhere:

- The exponent is 0 while the norm lies within ``2**-W .. 2**W`` (`window_exponent`); past it the value is kept near
  norm 1. So in the ordinary range a scaled number *is* the plain number.
- Zero has no exponent: ``exponent == ZERO``, lower than any other, so it never decides a sum.
- What is no number (NaN, or an infinity that is not of the range's making) has the exponent 0 and ln NaN.
"""

import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike
from jaxtyping import Float, Int

ZERO = -(2**29)
"""The exponent of an exact zero."""

FARTHEST = 2**28
"""Exponents end here, at ln 1.86e8: a map of degree 2 doubles them at every layer, and int32 holds 30 such layers."""

LN2 = 0.6931471805599453

_FEW = 4096
"""Entries of a whole batch for which a branch that may save some work is not worth compiling."""


class FloatExp(NamedTuple):
    """The number ``value * 2**exponent``: an array of any shape with one exponent for all of it.

    Attributes:
        value: float array of any shape.
        exponent: int32, shape ``()``.
    """

    value: Array
    exponent: Array


def window_exponent(dtype: jnp.dtype) -> int:
    """W: norms within ``2**-W .. 2**W`` are left alone: a quarter of the dtype's exponents, so squares stay finite."""
    return int(jnp.finfo(dtype).maxexp) // 4


def from_float(value: Array) -> FloatExp:
    """An ordinary array as a scaled number."""
    return FloatExp(value, jnp.zeros((), jnp.int32))


def power_of_two(exponent: Int[Array, "*shape"], dtype: Any) -> Float[Array, "*shape"]:
    """``2**exponent``, exact.

    0 below the dtype's normal range (XLA flushes subnormals), its largest power of two above. Real for a complex dtype.
    """
    info = jnp.finfo(dtype)
    bias = int(info.maxexp) - 1
    field = jnp.clip(exponent, int(info.minexp) - 1, bias) + bias  # a field of 0 is the float 0
    return lax.bitcast_convert_type(field.astype(_BITS[info.dtype.name]) << int(info.nmant), info.dtype)


def exponent_of(positive: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """floor(log2) of positive normal floats, int32; read off their bits."""
    info = jnp.finfo(positive.dtype)
    field = lax.bitcast_convert_type(positive, _BITS[positive.dtype.name]) >> int(info.nmant)
    return (field - (int(info.maxexp) - 1)).astype(jnp.int32)


_BITS = {"float16": jnp.int16, "bfloat16": jnp.int16, "float32": jnp.int32, "float64": jnp.int64}


def normalize(number: FloatExp, *, once: bool = False) -> tuple[FloatExp, Float[Array, ""]]:
    """The same number by the rules of this module, and its ``log_norm``.

    Args:
        number: any scaled number; its value may be as large or as small as the dtype holds.
        once: whether this is not done in every layer: then without a branch that may save some work.

    Returns:
        The normalized number, and ln of its Euclidean norm, shape ``()``: -inf for an exact zero and for nothing else,
        NaN for what is no number. Past `FARTHEST` the exponent stays there, and the logarithm says so.
    """
    value, exponent = number
    total, taken_out, factor = (_sum_of_squares_past_range if once else _sum_of_squares)(value.reshape(-1))
    nothing, no_number = total == 0, ~jnp.isfinite(total)
    true_exponent = exponent + taken_out + (exponent_of(total) >> 1)
    ordinary = (jnp.abs(true_exponent) <= window_exponent(value.dtype)) | no_number
    kept = jnp.where(ordinary, 0, true_exponent)
    # In two factors, since one alone may leave the range.
    value = value * factor * power_of_two(exponent + taken_out - kept, value.dtype)
    log_norm = jnp.log(total) / 2 + (exponent + taken_out).astype(value.dtype) * LN2
    log_norm = jnp.where(no_number, jnp.nan, log_norm)  # of 0, the logarithm is -inf by itself
    return FloatExp(value, jnp.where(nothing, ZERO, jnp.clip(kept, -FARTHEST, FARTHEST))), log_norm


def unit(number: FloatExp) -> tuple[Array, FloatExp]:
    """Direction (zeros for an exact zero) and norm, a number of shape ``()``, of any scaled number."""
    total, taken_out, factor = _sum_of_squares(number.value.reshape(-1))
    size = jnp.sqrt(total)
    direction = number.value * (factor / jnp.where(size == 0, 1, size))
    return direction, FloatExp(size, jnp.where(total == 0, ZERO, number.exponent + taken_out))


class Degrees(NamedTuple):
    """How a map f grows at one end of the float range: ``f(2^e u) - f(0)`` like ``2^(value e)``, and its Jacobian like
    ``2^(jacobian e)``, as e -> -inf or +inf.

    Attributes:
        value: 1 for an asymptotically linear map; 0 for one that tends to a constant or sees the direction alone.
        jacobian: 0 and -1 for those.

    None stands for a growth that is no power (a logarithm, an oscillation): nothing past this end can be computed.
    """

    value: Fraction | None = Fraction(1)
    jacobian: Fraction | None = Fraction(0)

    @property
    def known(self) -> bool:
        """Whether numbers past this end are exact."""
        return None not in self


Ends = tuple[Degrees, Degrees]
"""The degrees of a map below and above the float range."""

LINEAR: Ends = (Degrees(), Degrees())
DIRECTION = Degrees(Fraction(0), Fraction(-1))
"""Of a map that sees the direction alone."""


class ParameterDegrees(NamedTuple):
    """How the derivative D by a parameter grows at either end of the float range.

    Attributes:
        below, above: degrees of ``D - D(0)`` below, of D above; None for none.
        behind_offset: whether D(0) is 0 only where the offsets of the block are (the kernel behind a norm's beta).
        affine: whether D is affine in the state at any size, so that D(0) and what grows are two numbers of a sum.
    """

    below: Fraction | None
    above: Fraction | None
    behind_offset: bool
    affine: bool = False


def degree_of(growth: float, tolerance: float) -> Fraction | None:
    """The degree that a growth by ``2^growth`` an octave means: a small fraction; None if it is none."""
    degree = Fraction(growth).limit_denominator(12) if math.isfinite(growth) else None
    # Past degree 4 an octave's worth of exponents would not fit into int32 beside `FARTHEST`.
    return degree if degree is not None and abs(degree - growth) <= tolerance and abs(degree) <= 4 else None


def common_denominator(*degrees: Fraction | None) -> int:
    """The steps that exponents have to be taken in for their multiples by these degrees to be whole."""
    return math.lcm(*(degree.denominator for degree in degrees if degree is not None))


def times_degree(exponent: Int[Array, "*shape"], degree: Fraction | None) -> Int[Array, "*shape"]:
    """``degree * exponent`` for exponents that its denominator divides, within `FARTHEST` and a little more; 0 for an
    unknown degree: what is computed there means nothing, and is marked (`vgjax.networks.layers`)."""
    if not degree:
        return jnp.zeros_like(exponent)
    # Clipped before the product, which could leave int32, and after it, so that `ZERO` stays the lowest exponent.
    p, q, most = degree.numerator, degree.denominator, FARTHEST + FARTHEST // 2
    whole = jnp.clip(exponent, -most, most)
    whole = whole if q == 1 else whole // q  # one by one: all that is made of an exponent is compiled with it
    return whole if p == 1 else jnp.clip(p * whole, -most, most)


def exponent_past_range(number: FloatExp, step: int = 1) -> Int[Array, "*shape"]:
    """How far the exponent of a normalized number lies past ``-W .. W``, in multiples of ``step``, rounded away from
    the range; 0 within it and for an exact zero."""
    exponent, w = number.exponent, window_exponent(number.value.dtype)
    beyond = jnp.where(exponent == ZERO, 0, exponent - jnp.clip(exponent, -w, w))
    return beyond if step == 1 else jnp.sign(beyond) * step * -(-jnp.abs(beyond) // step)


def to_float_clipped(number: FloatExp, step: int = 1) -> Array:
    """The plain array nearest to a normalized number within the float range: itself, or moved in to norm ``2**-W`` or
    ``2**W`` by `exponent_past_range`.

    A map whose degrees are known has the same Jacobian there as at the number itself, up to a power of two.
    """
    value, exponent = number
    if step == 1:  # as `exponent_past_range` says, in one operation less
        w = window_exponent(value.dtype)
        return value * power_of_two(jnp.clip(exponent, -w, w), value.dtype)
    return value * power_of_two(exponent - exponent_past_range(number, step), value.dtype)


def with_zero_exponent(number: FloatExp) -> FloatExp:
    """The same number, with the exponent `ZERO` if it is exactly zero, so that it has no say in a sum."""
    return number._replace(exponent=jnp.where(is_zero(number.value), ZERO, number.exponent))


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


def extended(
    f: Callable[[Array], Array], number: FloatExp, ends: Ends, *, at_zero: bool = True, plateau: bool = True
) -> FloatExp:
    """f at a normalized number of any size, for an f whose degrees d at both ends of the float range are known.

    Inside the range f; below it ``f(0) + 2^(d e) J u / d``, above it ``2^(d e) J u / d``, J being the Jacobian at
    `to_float_clipped` (Euler's theorem: J h = d f for a homogeneous f of degree d); f itself where d is 0, and above
    where J u is exactly zero (all units on a plateau). One tangent product more than f.

    Args:
        f: array -> array, of any shapes.
        number: normalized (`normalize`).
        ends: its degrees.
        at_zero, plateau: whether f(0) may differ from 0, and whether f has plateaus; said where it is known, to save
            the work.

    Returns:
        The scaled f, not normalized; meaningless past an end whose degrees are unknown.
    """
    step = common_denominator(*(end.value for end in ends))
    x, beyond = to_float_clipped(number, step), exponent_past_range(number, step)
    y, linear = jax.jvp(f, (x,), (number.value,))

    def past(degree: Fraction | None) -> FloatExp:
        if not degree or degree == 1:
            return FloatExp(linear, number.exponent) if degree else from_float(y)
        # J u is of u, not of the clipped 2^e' u: e' is still to be counted.
        return FloatExp(linear / float(degree), number.exponent - beyond + times_degree(beyond, degree))

    low, high = (past(end.value) for end in ends)
    if at_zero and ends[0].value:
        low = add(with_zero_exponent(low), with_zero_exponent(from_float(f(jnp.zeros_like(x)))))
    below, above = number.exponent < 0, number.exponent > 0
    if plateau:
        above &= ~is_zero(linear)
    result = from_float(y)
    for outside, there in ((below, low), (above, high)):
        result = jax.tree.map(lambda a, b, outside=outside: jnp.where(outside, a, b), there, result)
    return result


# --- several arrays under one exponent, without branches --------------------------------------------------------------


def multiplied(value: Array, exponent: Int[Array, ""]) -> Array:
    """``value * 2**exponent`` for any exponent, in two exact factors: one alone may leave the range."""
    half = exponent >> 1
    return value * power_of_two(half, value.dtype) * power_of_two(exponent - half, value.dtype)


def moved(number: FloatExp, exponent: Int[Array, ""]) -> FloatExp:
    """``number * 2**exponent``; an exact zero stays one."""
    return number._replace(exponent=jnp.where(number.exponent == ZERO, ZERO, number.exponent + exponent))


def aligned(numbers: Sequence[FloatExp]) -> tuple[list[Array], Int[Array, ""]]:
    """Their values at the largest of their exponents, and that."""
    largest = functools.reduce(jnp.maximum, [number.exponent for number in numbers])
    return [value * power_of_two(exponent - largest, value.dtype) for value, exponent in numbers], largest


def normalize_together(values: Sequence[Array], exponent: Int[Array, ""]) -> tuple[list[Array], Int[Array, ""]]:
    """Arrays under one exponent by the rules of this module, their largest entry taking the place of the norm.

    One reduction and no branch, so that it costs little to compile wherever it stands.
    """
    largest = largest_entry(values)
    usable = (largest > 0) & jnp.isfinite(largest)
    found = jnp.where(usable, exponent_of(largest), 0)
    w = min(window_exponent(value.dtype) for value in values)
    kept = jnp.where(jnp.abs(exponent + found) <= w, 0, exponent + found)
    kept = jnp.where(usable, kept, exponent)
    return [multiplied(value, exponent - kept) for value in values], jnp.where(largest == 0, ZERO, kept)


class Extended(NamedTuple):
    """A map of several numbers, past the float range too.

    Attributes:
        results: one scaled number an output.
        arguments: where the map was computed: the numbers themselves, or moved in to the edge of the range.
        exact: whether all results are right, bool, shape ``()``.
    """

    results: list[FloatExp]
    arguments: list[Array]
    exact: Array


def extended_together(f: Callable[[list[Array]], list[Array]], numbers: Sequence[FloatExp]) -> Extended:
    """f at numbers of any size, scaled together, for an f whose degrees need not be known beforehand.

    Of every output its degree d is read off where f is computed: J x = d f there (Euler's theorem), with 2, 1, 0, -1
    or -2 for d; below the range J x = f - f(0) for an f that is affine there. Then f goes on as ``2^(d e)``.

    Args:
        f: arrays -> arrays, of any shapes.
        numbers: what it takes; at least one.
    """
    values, exponent = normalize_together(*aligned(numbers))
    w = min(window_exponent(value.dtype) for value in values)
    edge = jnp.clip(jnp.where(exponent == ZERO, 0, exponent), -w, w)
    x = [value * power_of_two(edge, value.dtype) for value in values]
    y, tangent = jax.jvp(lambda *x: f(list(x)), tuple(x), tuple(x))
    origin = f([jnp.zeros_like(value) for value in values])
    beyond = jnp.where(exponent == ZERO, 0, exponent - edge)
    found = [_extended_one(*parts, beyond) for parts in zip(y, tangent, origin, strict=True)]
    # What is nothing beside the others is nothing in a sum; in a product with them it would have had a say.
    lost = [(largest_entry([n.value]) > 0) & (largest_entry([v]) == 0) for n, v in zip(numbers, values, strict=True)]
    vanished = jnp.any(jnp.stack(lost)) & jnp.any(jnp.stack([largest_entry([value]) == 0 for value in y]))
    exact = jnp.all(jnp.stack([exact for _, exact in found])) & ((beyond == 0) | ~vanished)
    return Extended([number for number, _ in found], x, exact)


def _extended_one(y: Array, tangent: Array, origin: Array, beyond: Int[Array, ""]) -> tuple[FloatExp, Array]:
    """One output's number, from f(x), J x and f(0) at the edge of the range, and how far past that it is asked for."""
    if not jnp.issubdtype(y.dtype, jnp.inexact):  # a mask or a choice: of the direction alone
        return from_float(y), jnp.asarray(True)
    size = largest_entry([y])
    offset = jnp.where(beyond < 0, origin, 0).astype(y.dtype)

    def holds(difference: Array, tolerance: float) -> Array:
        return largest_entry([difference]) <= tolerance * size

    affine = add(with_zero_exponent(FloatExp(tangent, beyond)), with_zero_exponent(from_float(offset)))
    number, known = from_float(y), beyond == 0
    candidates = [(holds(y - offset - tangent, 1e-3), affine), (holds(tangent, 1e-6), from_float(y))]
    candidates += [(holds(d * y - tangent, 1e-3), FloatExp(y, d * beyond)) for d in (2, -1, -2)]
    for holding, candidate in candidates:
        number = jax.tree.map(lambda a, b, use=holding & ~known: jnp.where(use, a, b), candidate, number)
        known |= holding
    return number, known


def largest_entry(values: Sequence[Array]) -> Array:
    """The largest absolute value, float32 or wider, shape ``()``; 0 of nothing."""
    entries = [jnp.max(jnp.abs(value)) for value in values if value.size]
    return functools.reduce(jnp.maximum, [jnp.asarray(e, _wide(e.dtype)) for e in entries], jnp.zeros((), jnp.float32))


def sum_of_squares(number: FloatExp, *, careful: bool, lift: int = 0) -> tuple[Array, Int[Array, ""]]:
    """(total, k), the sum of squares being ``total * 4**k``.

    Args:
        number: of any dtype, real or complex.
        careful: whether its largest entry is taken out first: right in the whole float range, where the plain sum is
            for norms within 1e-15 to 1e15; twice the time.
        lift: octaves by which the plain sum's range is moved down.
    """
    value, exponent = number
    value = jnp.abs(value) if jnp.iscomplexobj(value) else value
    entries = value.astype(_wide(value.dtype)).reshape(-1)
    if not careful or not entries.size:
        return jnp.vdot(entries * 4.0**lift if lift else entries, entries), exponent - lift
    total, taken_out, _ = _sum_of_squares_past_range(entries)
    return total, exponent + taken_out


def _wide(dtype: Any) -> Any:
    """The dtype that sums are taken in: float32 for half precision."""
    return jnp.promote_types(dtype, jnp.float32)


def is_zero(value: Array) -> Array:
    """Whether an array is exactly zero, shape ``()``."""
    return _is_zero(value.reshape(-1))


@custom_vmap
def _is_zero(rows: Array) -> Array:
    """Whether all entries along the last axis are exactly zero.

    Only where the first few are does it look at the others.
    """
    if rows.size <= _FEW:
        return jnp.all(rows == 0, axis=-1)
    suspect = jnp.all(rows[..., :8] == 0, axis=-1)
    return lax.cond(jnp.any(suspect), lambda rows: jnp.all(rows == 0, axis=-1), lambda _: suspect, rows)


@_is_zero.def_vmap
def _(axis_size: int, in_batched: list[bool], rows: Array) -> tuple[Array, bool]:
    return _is_zero(rows), True


@custom_vmap
def _sum_of_squares(rows: Array) -> tuple[Array, Array, Array]:
    """(total, k, 2**-k), the sum of squares over the last axis being ``total * 2**(2 k)``: k is 0 unless the plain sum
    leaves the range.

    A layer that changes a norm by more than about 2**30 over- or underflows its plain sum of squares. What is always
    right takes a second sum, so it is done only for a batch in which some row needs it: `custom_vmap` sees the batch
    and lets one `lax.cond` decide for all its rows, where plain `vmap` would compute both.
    """
    if rows.size <= _FEW:
        return _sum_of_squares_past_range(rows)
    squares = jnp.sum(rows * rows, axis=-1)
    return lax.cond(
        ~jnp.any(jnp.logical_or(*_past_range(squares))),
        lambda *_: (squares, jnp.zeros(squares.shape, jnp.int32), jnp.ones_like(squares)),
        _moved_sum_of_squares,
        rows,
        squares,
    )


@_sum_of_squares.def_vmap
def _(axis_size: int, in_batched: list[bool], rows: Array) -> tuple[tuple[Array, ...], tuple[bool, ...]]:
    return _sum_of_squares(rows), (True, True, True)


def _past_range(squares: Array) -> tuple[Array, Array]:
    """Where plain sums of squares may have lost entries that count: those that are too small, and too large."""
    w = window_exponent(squares.dtype)
    return squares <= 2.0 ** (-5 * w // 2), ~(squares < 2.0 ** (3 * w))


def _sum_of_squares_past_range(rows: Array) -> tuple[Array, Array, Array]:
    """The same, right in the whole float range, without a branch."""
    return _moved_sum_of_squares(rows, jnp.sum(rows * rows, axis=-1))


def _moved_sum_of_squares(rows: Array, squares: Array) -> tuple[Array, Array, Array]:
    """The same, of rows moved up or down to where their sum, of which the plain one is ``squares``, is safe."""
    (small, large), lift = _past_range(squares), 5 * window_exponent(rows.dtype) // 2
    # The factor is chosen, not computed: what is made of a normalized number is compiled with all of this in it.
    k = jnp.where(large, lift, jnp.where(small, -lift, 0)).astype(jnp.int32)
    factor = jnp.where(large, 2.0**-lift, jnp.where(small, 2.0**lift, 1.0)).astype(rows.dtype)
    return jnp.sum((rows * factor[..., None]) ** 2, axis=-1), k, factor
