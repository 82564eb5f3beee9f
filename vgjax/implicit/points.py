"""Points: a plain stack at one setting of its scales, by the sums of its draw (`vgjax.implicit.stacks`).

With the state ``h = r g`` and the tangent ``u = p g + s t`` of a layer, and what `vgjax.implicit.sums` knows of
``a = phi(h)`` and ``d = phi'(h) u`` as functions of r, the next layer's numbers are (c = sigma_w / sqrt(n))

    r'^2 = c^2 |a|^2 + sigma_b^2,  p' = c^2 a.d / r',
    s'^2 = c^2 |d - a (a.d) / |a|^2|^2 + c^2 (a.d)^2 / |a|^2 (sigma_b / r')^2,

and a cotangent D behind the kernel, of which its norm v and w = g'.D count, becomes

    W^T D = c (x a + v e),  x = (c / r') (w - v k),  k = (c a.e + sigma_b e_b) / r',

e and e_b fresh normals. All grow and shrink as value * 2**exponent. One point costs a short polynomial a layer.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from vgjax.activations import Activation
from vgjax.checks import untraced
from vgjax.floatexp import LN2, ZERO, FloatExp, exponent_of, from_float, normalize, power_of_two, window_exponent
from vgjax.implicit.stacks import DrawnStack, Stack
from vgjax.implicit.sums import (
    GAINS,
    GRADIENTS,
    HIGHEST,
    LOWEST,
    divisors,
    flat_ends,
    starts_at_zero,
    two_slopes,
)
from vgjax.initializers import Scales
from vgjax.measure import losses
from vgjax.measure.flow import Push
from vgjax.measure.gradients import GradientFlow, cotangents_of_loss, marked_gradients, without_batch
from vgjax.measure.one_layer import FLAT
from vgjax.networks.exactness import Doubts, Exactness, exactness, marked_forward
from vgjax.networks.layers import scales_along
from vgjax.networks.network import OF_HEAD

# --- numbers ----------------------------------------------------------------------------------------------------------


def _tidy(value: Array, exponent: Array) -> FloatExp:
    """A number that is not negative, with its value in 1 .. 2."""
    positive = value > 0
    e = jnp.where(positive, exponent_of(jnp.where(positive, value, 1)), 0)
    return FloatExp(value * power_of_two(-e, value.dtype), jnp.where(positive, exponent + e, ZERO))


def _log(number: FloatExp) -> Array:
    positive = number.value > 0
    return jnp.where(
        positive,
        jnp.log(jnp.where(positive, number.value, 1)) + number.exponent.astype(number.value.dtype) * LN2,
        jnp.where(number.value == 0, -jnp.inf, jnp.nan),
    )


def _over(a: Array, b: Array) -> Array:
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


class _At(NamedTuple):
    """The sums at one state, and what follows of it.

    Attributes:
        r: the state's size.
        plain: the same as a float, within `LOWEST` and `HIGHEST`.
        sums: by name.
        activation: |a|.
        behind: the next state's size, with its kernel and bias.
        share, lack: of that, what the kernel and what the bias makes, by cosine and sine.
    """

    r: FloatExp
    plain: Array
    sums: dict[str, Array]
    activation: FloatExp
    behind: FloatExp
    share: Array
    lack: Array


def _at(stack: Stack, names: tuple[str, ...], sums: Any, r: FloatExp, c: Array, sigma_b: Array) -> _At:
    dtype = r.value.dtype
    w = window_exponent(dtype)
    plain = jnp.clip(r.value * power_of_two(jnp.clip(r.exponent, -w, w), dtype), LOWEST, HIGHEST)
    found = dict(zip(names, sums(stack.activation, plain), strict=True))
    root = jnp.sqrt(jnp.maximum(found["aa"], 0))
    a = _times_divisor(stack.activation, root, r, plain)
    top = jnp.where(sigma_b != 0, jnp.maximum(a.exponent, 0), a.exponent)
    of_kernel, of_bias = c * a.value * power_of_two(a.exponent - top, dtype), sigma_b * power_of_two(-top, dtype)
    size = jnp.hypot(of_kernel, of_bias)
    nothing = size == 0
    lack = jnp.where(nothing, 1, of_bias / jnp.where(nothing, 1, size))
    return _At(r, plain, found, a, _tidy(size, top), of_kernel / jnp.where(nothing, 1, size), lack)


def _times_divisor(activation: Activation, root: Array, r: FloatExp, plain: Array) -> FloatExp:
    """|a| of what stands in the sums for it."""
    here = jnp.zeros_like(r.exponent)
    if not starts_at_zero(activation):
        return FloatExp(root, here)
    if not activation.facts.bounded:
        return FloatExp(root * r.value, r.exponent)
    small = r.exponent < 0
    return FloatExp(root * jnp.where(small, r.value, plain) / (1 + plain), jnp.where(small, r.exponent, here))


def _first_size(stack: Stack, scales: Scales, x: Array) -> FloatExp:
    (x, e), _ = normalize(from_float(x), once=True)
    e = jnp.where(e == ZERO, 0, e)
    bias = scales["sigma_b"][0] if stack.biased[0] else jnp.zeros((), x.dtype)
    top = jnp.where(bias != 0, jnp.maximum(e, 0), e)
    of_kernel = scales[stack.stem_scale][0] * jnp.sqrt(jnp.mean(x**2)) * power_of_two(e - top, x.dtype)
    return _tidy(jnp.hypot(of_kernel, bias * power_of_two(-top, x.dtype)), top)


def _kernels(stack: Stack, scales: Scales) -> tuple[Array, Array]:
    """c and sigma_b of the kernels behind layers 0 ... L - 1."""
    sigma_b = scales["sigma_b"] if stack.biased[1] else jnp.zeros_like(scales["sigma_b"])
    return scales["sigma_w"] / np.sqrt(stack.width).astype(scales["sigma_w"].dtype), sigma_b


@functools.cache
@untraced
def _dies(activation: Activation) -> bool:
    """Whether a state that is exactly 0 passes nothing on."""
    return float(activation.derivative(np.zeros((), np.float32))) == 0


def _alive(stack: Stack, r: FloatExp) -> Array:
    return r.value > 0 if _dies(stack.activation) else jnp.ones_like(r.value, bool)


def _exactness(stack: Stack, log_norms: Array) -> Exactness:
    if stack.activation.facts.dead:  # its zeros are zeros, and nothing is in doubt
        return exactness(log_norms, None)
    underflows = jnp.ones(stack.depth, bool)
    return exactness(log_norms, Doubts(jnp.zeros_like(underflows), underflows))


def _log_mean_squares(stack: Stack, log_norms: Array) -> Array:
    return 2 * log_norms - np.log(stack.width).astype(log_norms.dtype)


# --- forward ----------------------------------------------------------------------------------------------------------


def push_stack(drawn: DrawnStack, scales: Scales, x: Float[Array, " inputs"]) -> Push:
    """`vgjax.push_forward` of one random direction, at one point.

    Args:
        drawn: for `GAINS`.
        scales: as for `vgjax.forward`.
        x: one input.
    """
    stack, dtype = drawn.stack, drawn.gram.dtype
    along_layers = scales_along(drawn.network, scales, dtype)
    c, sigma_b = _kernels(stack, along_layers)

    def step(now: tuple[FloatExp, Array, Array, Array], xs: Any) -> tuple[Any, Any]:
        r, p, s, e = now
        (sums, gram), c, sigma_b = xs
        size = jnp.sqrt(jnp.maximum(p * p * gram[0] + 2 * p * s * gram[1] + s * s * gram[2], 0))
        u = _tidy(size, e)
        log_u, down = _log(u), power_of_two(jnp.where(u.exponent == ZERO, 0, e - u.exponent), size.dtype)
        p, s, e = p * down, s * down, u.exponent
        at = _at(stack, GAINS, sums, r, c, sigma_b)
        aa, ag, xx, a_t, xt, tt = (at.sums[name] for name in GAINS)
        along = _over(p * ag + s * a_t, jnp.sqrt(aa))
        # What of the tangent is not along a, of sums of just that: nothing cancels where it is little.
        p_x = p * divisors(stack.activation, at.plain)[1]
        across = jnp.maximum(p_x * p_x * xx + 2 * p_x * s * xt + s * s * tt, 0)
        alive = _alive(stack, r)
        next_p = jnp.where(alive, c * at.share * along, 0)
        next_s = jnp.where(alive, jnp.abs(c) * jnp.sqrt(across + (along * at.lack) ** 2), 0)
        return (at.behind, next_p, next_s, e), (_log(r) + jnp.log(gram[0]) / 2, log_u)

    first = _first_size(stack, along_layers, x.astype(dtype))
    zero = jnp.zeros_like(first.value)
    start = first, zero, zero + 1 / jnp.sqrt(drawn.gram[0, 2]), jnp.zeros_like(first.exponent)
    sums, last = jax.tree.map(lambda a: a[:-1], drawn.sums), drawn.gram[-1]
    (r, p, s, e), (log_norms, log_u) = lax.scan(step, start, ((sums, drawn.gram[:-1]), c, sigma_b))
    size = _tidy(jnp.sqrt(jnp.maximum(p * p * last[0] + 2 * p * s * last[1] + s * s * last[2], 0)), e)
    log_norms = jnp.append(log_norms, _log(r) + jnp.log(last[0]) / 2)
    found = _exactness(stack, log_norms)
    log_gain = marked_forward(found, jnp.append(log_u, _log(size)))
    squares = _log_mean_squares(stack, marked_forward(found, log_norms))
    return Push(squares, found.first_inexact_layer, found.first_nan_layer, log_gain)


# --- backward ---------------------------------------------------------------------------------------------------------


class _Cotangent(NamedTuple):
    """A cotangent by its norm and by what it has along g, under one exponent."""

    norm: Array
    along: Array
    exponent: Array


def gradient_stack(
    drawn: DrawnStack, scales: Scales, x: Float[Array, " inputs"], y: Float[Array, "1 *target"], loss: losses.Loss
) -> GradientFlow:
    """`vgjax.gradient_flow` of one example, at one point.

    Args:
        drawn: for `GRADIENTS`.
        scales, x: as for `push_stack`.
        y, loss: as for `vgjax.measure.gradients.of_one`.
    """
    stack, dtype, x = drawn.stack, drawn.gram.dtype, x.astype(drawn.gram.dtype)
    along_layers = scales_along(drawn.network, scales, dtype)
    c, sigma_b = _kernels(stack, along_layers)

    def climb(r: FloatExp, xs: Any) -> tuple[FloatExp, Any]:
        sums, c, sigma_b = xs
        at = _at(stack, GRADIENTS, sums, r, c, sigma_b)
        return at.behind, at

    sums = jax.tree.map(lambda a: a[:-1], drawn.sums)
    top, before = lax.scan(climb, _first_size(stack, along_layers, x), (sums, c, sigma_b))
    zero = jnp.zeros_like(top.value)
    of_head = along_layers[OF_HEAD][-1] / np.sqrt(stack.width).astype(zero.dtype)
    last = _at(stack, GRADIENTS, jax.tree.map(lambda a: a[-1], drawn.sums), top, of_head, zero)
    entering, saturated = _entering(drawn, last, of_head, y, loss)

    def descend(behind: _Cotangent, xs: Any) -> tuple[_Cotangent, Array]:
        at, normal, c = xs
        return _pulled(stack, at, behind, normal, c), _log_of(behind)

    down, log_behind = lax.scan(
        descend, _pulled(stack, last, entering, zero, of_head), (before, drawn.bias_normals[:-1], c), reverse=True
    )
    log_gradient = jnp.concatenate([_log_of(down)[None], log_behind])
    by_parameter = {
        "head/bias": _log_of(entering),
        "head/kernel": _log_of(entering) + _log(last.activation),
        "stem/bias": log_gradient[0],
        "stem/kernel": log_gradient[0] + normalize(from_float(x), once=True)[1],
        "bias": log_gradient[1:],
        "kernel": log_gradient[1:] + jax.vmap(_log)(before.activation),
    }
    sizes = jax.tree.map(lambda along, end: jnp.append(along, end), before.r, last.r)
    log_norms = jax.vmap(_log)(sizes) + jnp.log(drawn.gram[:, 0]) / 2
    normals = jax.tree.map(lambda a: a[:-1], drawn.normals)
    slopes = jax.vmap(functools.partial(_slope_statistics, stack))(before, normals)
    return _flow(stack, log_norms, log_gradient, by_parameter, slopes, saturated)


def _flow(
    stack: Stack,
    log_norms: Array,
    log_gradient: Array,
    by_parameter: dict[str, Array],
    slopes: tuple[Array, Array],
    saturated: Array,
) -> GradientFlow:
    """The flow of one example, marked where it means nothing."""
    found, nothing = _exactness(stack, log_norms), dict[str, Array]()
    squares = _log_mean_squares(stack, marked_forward(found, log_norms))
    series = {
        "log_mean_square": squares,
        "log_gradient": log_gradient,
        "mean_square_slope": slopes[0],
        "saturation": slopes[1],
        "saturated": saturated,
        "first_inexact_layer": found.first_inexact_layer,
        "first_nan_layer": found.first_nan_layer,
    }
    named = {"log_tied_gradient": nothing, "log_gradient_parts": nothing, "diagnostics": nothing}
    of_batch: Any = {name: a[None] for name, a in series.items()} | named  # a batch of one
    flow = GradientFlow(log_parameter_gradient=by_parameter, **of_batch)
    exact = ~jnp.isnan(squares[None, -1])
    return without_batch(marked_gradients(flow, jax.tree.map(lambda a: a[None], found), exact))


def _entering(drawn: DrawnStack, last: _At, c: Array, y: Array, loss: losses.Loss) -> tuple[_Cotangent, Array]:
    """dL/d(output), as a cotangent behind the head's kernel; and whether it is lost."""
    output = normalize(FloatExp(c * last.activation.value * drawn.read_out, last.activation.exponent))[0]
    with_axes = jax.tree.map(lambda a: a[None, None], output)
    deltas, saturated = cotangents_of_loss(loss, drawn.network, with_axes, y)
    value, exponent = (a[0, 0] for a in deltas)
    value = value / losses.mean_over(loss, drawn.network, 1)
    (value, exponent), _ = normalize(FloatExp(value, exponent))
    norm, along = jnp.sqrt(jnp.sum(value**2)), jnp.sum(drawn.read_out * value)
    return _Cotangent(norm, along, exponent), saturated[0]


def _pulled(stack: Stack, at: _At, behind: _Cotangent, normal: Array, c: Array) -> _Cotangent:
    """Through the kernel behind a state, and through its slopes."""
    aa, ag, ae, ge, bb, be, ee = (at.sums[name] for name in GRADIENTS[:-1])
    root = jnp.sqrt(aa)
    known = at.share * _over(ae, root) + at.lack * normal
    x, v = _over(at.share * (behind.along - behind.norm * known), root), behind.norm
    square = jnp.maximum(x * x * bb + 2 * x * v * be + v * v * ee, 0)
    alive = _alive(stack, at.r)
    norm = jnp.where(alive, jnp.abs(c) * jnp.sqrt(square), 0)
    along = jnp.where(alive, c * (x * ag + v * ge), 0)
    tidy = _tidy(norm, behind.exponent)
    down = power_of_two(jnp.where(tidy.exponent == ZERO, 0, behind.exponent - tidy.exponent), norm.dtype)
    return _Cotangent(tidy.value, along * down, tidy.exponent)


def _log_of(cotangent: _Cotangent) -> Array:
    return _log(FloatExp(cotangent.norm, cotangent.exponent))


# --- flat units -------------------------------------------------------------------------------------------------------


def _slope_statistics(stack: Stack, at: _At, normals: Array) -> tuple[Array, Array]:
    """Mean of phi'^2, and the share of flat units, of one layer."""
    n, activation = stack.width, stack.activation
    mean, alive = at.sums["ff"] / n, _alive(stack, at.r)
    if stack.kind == "homogeneous":
        up, down = (float(slope) for slope in two_slopes(activation))
        steep = max(abs(up), abs(down))
        on, off = abs(up) < FLAT * steep, abs(down) < FLAT * steep
        count = (mean - down * down) / (up * up - down * down) if up * up != down * down else jnp.ones_like(mean)
        flat = on * count + off * (1 - count)
    else:
        flat = jnp.zeros_like(mean)
        for low, high in flat_ends(activation, FLAT):
            until = [_count_below(normals, end, at.plain, n) for end in (low, high)]
            flat = flat + (until[1] - until[0]) / n
    return jnp.where(alive, mean, 0), jnp.where(alive, flat, 1)


def _count_below(normals: Array, end: float, r: Array, n: int) -> Array:
    if not np.isfinite(end):
        return jnp.full_like(r, 0 if end < 0 else n)
    return jnp.searchsorted(normals, end / r, method="scan_unrolled").astype(r.dtype)
