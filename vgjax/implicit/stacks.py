"""Plain stacks as a few numbers a layer: a whole grid of scales through the sums of one draw.

With the state ``h = r g`` and the tangent ``u = p g + s t`` of a layer, and what `vgjax.implicit.sums` knows of
``a = phi(h)`` and ``d = phi'(h) u`` as functions of r, the next layer's numbers are (c = sigma_w / sqrt(n))

    r'^2 = c^2 |a|^2 + sigma_b^2,  p' = c^2 a.d / r',  s'^2 = c^2 |d - a (a.d)/|a|^2|^2 + c^2 (a.d)^2/|a|^2 (sigma_b/r')^2,

and a cotangent D behind the kernel, of which its norm v and w = g'.D count, becomes

    W^T D = c (x a + v e),  x = (c / r') (w - v k),  k = (c a.e + sigma_b e_b) / r',

e and e_b fresh normals. All grow and shrink as value * 2**exponent. One point costs a short polynomial a layer.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Key

from vgjax.activations import Activation
from vgjax.checks import untraced
from vgjax.floatexp import LN2, ZERO, FloatExp, exponent_of, normalize, power_of_two, window_exponent
from vgjax.implicit.plans import AffineNode, plan_of
from vgjax.implicit.sums import (
    GAINS,
    GRADIENTS,
    HIGHEST,
    LOWEST,
    divisors,
    homogeneous,
    pieces_of,
    smooth,
    starts_at_zero,
    steps,
    two_slopes,
)
from vgjax.initializers import Scales
from vgjax.measure import losses
from vgjax.measure.flow import Push
from vgjax.measure.gradients import FLAT, GradientFlow, cotangents_of_loss, marked_gradients
from vgjax.networks.exactness import Doubts, Exactness, exactness, marked_forward
from vgjax.networks.network import OF_HEAD, Network


@dataclass(frozen=True)
class Stack:
    """A fully connected network of one width and one activation, with nothing around it.

    Attributes:
        activation: phi.
        width, depth, inputs, outputs: its sizes.
        stem_scale: the name of the stem's kernel scale.
        biased: whether stem and layers have Gaussian biases; without, they have none.
    """

    activation: Activation
    width: int
    depth: int
    inputs: int
    outputs: int
    stem_scale: str
    biased: tuple[bool, bool]

    @property
    def kind(self) -> str | None:
        """How the sums of a layer are had: homogeneous, steps or smooth; None if in no such way."""
        ends, bounded = self.activation.facts.ends, self.activation.facts.bounded
        known = ends[0].known and (bounded or ends[1].known)
        if not known or ends[0].jacobian != 0 or ends[0].value not in (0, 1):
            return None
        if not bounded and (ends[1].value != 1 or ends[1].jacobian != 0):
            return None
        if self.activation.homogeneous:
            return "homogeneous"
        if pieces_of(self.activation):
            return "steps"
        # A kink at 0 is none in r: every unit stays on its side.
        return "smooth" if set(self.activation.kinks) <= {0.0} else None


@functools.cache
def stack_of(network: Network) -> Stack | None:
    """A network as a plain stack of Gaussian kernels; None where it is none."""
    if network.stem is None or network.head is None or len(network.stages) != 1:
        return None
    plans = [plan_of(block) for block in (network.stem, network.stages[0].spec, network.head)]
    if not all(len(plan) == 1 and isinstance(plan[0], AffineNode) for plan in plans):
        return None
    stem, layer, head = (plan[0] for plan in plans)
    phi = _bare_activation(layer)  # type: ignore[arg-type]
    heads_bias = head.bias_init == "zero"  # type: ignore[union-attr]
    laws = {node.kernel.law for node in (stem, layer, head)}  # type: ignore[union-attr]
    biases = {stem.bias_init, layer.bias_init} - {"gaussian", "zero"}  # type: ignore[union-attr]
    linear = _bare_activation(stem)  # type: ignore[arg-type]
    if phi is None or phi != _bare_activation(head) or linear is None or linear.name != "linear":  # type: ignore[arg-type]
        return None
    if laws != {"gaussian"} or biases or not heads_bias or layer.kernel.fan_in != layer.kernel.fan_out:  # type: ignore[union-attr]
        return None
    if layer.names != ("sigma_w", "sigma_b") or stem.names[1] != "sigma_b" or head.names[0] != OF_HEAD:  # type: ignore[union-attr]
        return None
    return Stack(
        phi,
        layer.kernel.fan_in,  # type: ignore[union-attr]
        network.depth,
        stem.kernel.fan_in,  # type: ignore[union-attr]
        head.kernel.fan_out,  # type: ignore[union-attr]
        stem.names[0],  # type: ignore[union-attr]
        (stem.bias_init == "gaussian", layer.bias_init == "gaussian"),  # type: ignore[union-attr]
    )


def _bare_activation(node: AffineNode) -> Activation | None:
    options = dict(node.activity.options)
    return None if {"before", "after"} & options.keys() else options.get("activation")  # type: ignore[return-value]


# --- one draw, for a box of scales --------------------------------------------------------------------------------------


class Box(NamedTuple):
    """The scales that a draw is made for: its sums hold between these.

    Attributes:
        first: smallest and largest norm of the first state over the root of its width, shape ``(2,)``.
        sigma_w, sigma_b: smallest and largest of every layer, shape ``(2, depth)``.
    """

    first: Array
    sigma_w: Array
    sigma_b: Array


class Drawn(NamedTuple):
    """One draw of a stack as functions of r.

    Attributes:
        sums: `Smooth`, `Steps` or `Homogeneous`, with a leading axis of layers 0 ... L.
        gram: g.g, g.t and t.t of every layer (of gradients, e in place of t), shape ``(depth + 1, 3)``.
        bias_normals: e_b of every layer, shape ``(depth + 1,)``.
        read_out: the normals that the head makes of the last activations, shape ``(outputs,)``.
        flat: the normals of every layer in order, for counting flat units, shape ``(depth + 1, width)``; empty without
            gradients, and where there is nothing to count.
        error: of the sums at probes, by layer, shape ``(depth + 1,)``; 0 where they are exact.
    """

    sums: Any
    gram: Array
    bias_normals: Array
    read_out: Array
    flat: Array
    error: Array


def draw_stack(
    key: Key[Array, ""], stack: Stack, box: Box, names: tuple[str, ...], pieces: int, dtype: Any = np.float32
) -> Drawn:
    """The sums of all layers for every point of a box.

    Args:
        names: `vgjax.implicit.sums.GAINS` or ``GRADIENTS``.
        pieces: of the polynomials of a smooth phi.
        dtype: of what is read off; the sums themselves are made in float64.
    """
    with jax.enable_x64(True):
        return _draw_stack(key, stack, box, names, pieces, np.dtype(dtype).name)


@functools.partial(jax.jit, static_argnames=("stack", "names", "pieces", "dtype"))
def _draw_stack(
    key: Key[Array, ""], stack: Stack, box: Box, names: tuple[str, ...], pieces: int, dtype: str
) -> Drawn:
    of_layers, of_bias, of_head = jax.random.split(key, 3)
    n, kind, wide = stack.width, stack.kind, jnp.float64
    counts = bool(names != GAINS and kind != "homogeneous" and flat_ends(stack.activation))

    def layer(ends: tuple[Array, Array], xs: Any) -> tuple[tuple[Array, Array], Any]:
        l, sigma_w, sigma_b = xs
        mine = jax.random.fold_in(of_layers, l)
        error, flat = jnp.zeros((), wide), jnp.zeros(0, wide)
        sums: Any
        if kind == "homogeneous":
            sums, gram = homogeneous(stack.activation, mine, n, wide, names)
            return ends, (sums, jnp.stack([gram[0, 0], gram[0, 1], gram[1, 1]]), flat, error)
        # Normals of float32 whatever is asked for, so that a network is the same in both.
        z = jax.random.normal(mine, (2, n), jnp.float32).astype(wide)
        gram = jnp.stack([jnp.sum(z[0] * z[0]), jnp.sum(z[0] * z[1]), jnp.sum(z[1] * z[1])])
        flat = jnp.sort(z[0]) if counts else flat
        if kind == "steps":
            return ends, (steps(stack.activation, z, names), gram, flat, error)
        sums, error, squares = smooth(stack.activation, ends, z, names, pieces)
        return _next_ends(stack, squares, sigma_w, sigma_b), (sums, gram, flat, error)

    first, sigma_w, sigma_b = (a.astype(wide) for a in box)
    last = lambda a: jnp.concatenate([a, a[:, -1:]], axis=1).T  # noqa: E731 - no kernel stands behind the last layer
    clipped = jnp.clip(first, LOWEST, HIGHEST)
    _, made = lax.scan(
        layer, (clipped[0], clipped[1]), (jnp.arange(stack.depth + 1), last(sigma_w), last(sigma_b))
    )
    sums, gram, flat, error = jax.tree.map(lambda a: a.astype(dtype), made)
    normals = jax.random.normal(of_bias, (stack.depth + 1,), jnp.float32).astype(dtype)
    return Drawn(
        sums, gram, normals, jax.random.normal(of_head, (stack.outputs,), jnp.float32).astype(dtype), flat, error
    )


def _next_ends(stack: Stack, squares: Array, sigma_w: Array, sigma_b: Array) -> tuple[Array, Array]:
    """Between what the next radii lie, by intervals, and a little more: a maximum may lie between the nodes."""
    ends = []
    for square, c, b, more in zip((jnp.min(squares), jnp.max(squares)), sigma_w, sigma_b, (1 / 1.02, 1.02), strict=True):
        ends.append(jnp.clip(jnp.sqrt(c * c * square / stack.width + b * b) * more, LOWEST, HIGHEST))
    return ends[0], ends[1]


# --- numbers --------------------------------------------------------------------------------------------------------------


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


def _first_size(stack: Stack, scales: dict[str, Array], mean_square: Array) -> FloatExp:
    bias = scales["sigma_b"][0] if stack.biased[0] else jnp.zeros_like(mean_square)
    size = jnp.hypot(scales[stack.stem_scale][0] * jnp.sqrt(mean_square), bias)
    return _tidy(size, jnp.zeros((), jnp.int32))


def _kernels(stack: Stack, scales: dict[str, Array]) -> tuple[Array, Array]:
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
    underflows = jnp.full(log_norms.shape[:-1] + (stack.depth,), not stack.activation.facts.dead)
    return exactness(log_norms, Doubts(jnp.zeros_like(underflows), underflows))


def _log_mean_squares(stack: Stack, log_norms: Array) -> Array:
    return 2 * log_norms - np.log(stack.width).astype(log_norms.dtype)


# --- forward --------------------------------------------------------------------------------------------------------------


def push_stack(drawn: Drawn, stack: Stack, scales: dict[str, Array], mean_square: Float[Array, ""]) -> Push:
    """ln ||J_{l<-0} u|| of one random direction u, at one point.

    Args:
        drawn: for `GAINS`.
        scales: every scale, one value a layer.
        mean_square: |x|^2 / inputs.
    """
    c, sigma_b = _kernels(stack, scales)

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

    first = _first_size(stack, scales, mean_square)
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


# --- backward -------------------------------------------------------------------------------------------------------------


class _Cotangent(NamedTuple):
    """A cotangent by its norm and by what it has along g, under one exponent."""

    norm: Array
    along: Array
    exponent: Array


def gradient_stack(
    drawn: Drawn,
    stack: Stack,
    network: Network,
    scales: dict[str, Array],
    mean_square: Float[Array, ""],
    y: Float[Array, "1 *target"],
    loss: losses.Loss,
) -> GradientFlow:
    """`vgjax.gradient_flow` of one example, at one point.

    Args:
        drawn: for `GRADIENTS`.
        network: what the stack was read off.
        scales, mean_square: as for `push_stack`.
        y, loss: as for `vgjax.measure.gradients.of_one`.
    """
    c, sigma_b = _kernels(stack, scales)

    def climb(r: FloatExp, xs: Any) -> tuple[FloatExp, Any]:
        sums, c, sigma_b = xs
        at = _at(stack, GRADIENTS, sums, r, c, sigma_b)
        return at.behind, at

    sums = jax.tree.map(lambda a: a[:-1], drawn.sums)
    top, before = lax.scan(climb, _first_size(stack, scales, mean_square), (sums, c, sigma_b))
    zero = jnp.zeros_like(top.value)
    of_head = scales[OF_HEAD][-1] / np.sqrt(stack.width).astype(zero.dtype)
    last = _at(stack, GRADIENTS, jax.tree.map(lambda a: a[-1], drawn.sums), top, of_head, zero)
    entering, saturated = _entering(drawn, network, last, of_head, y, loss)

    def descend(behind: _Cotangent, xs: Any) -> tuple[_Cotangent, Array]:
        at, normal, c = xs
        return _pulled(stack, at, behind, normal, c), _log_of(behind)

    down, log_behind = lax.scan(
        descend, _pulled(stack, last, entering, zero, of_head), (before, drawn.bias_normals[:-1], c), reverse=True
    )
    log_gradient = jnp.concatenate([_log_of(down)[None], log_behind])
    sizes = jax.tree.map(lambda along, end: jnp.append(along, end), before.r, last.r)
    log_norms = jax.vmap(_log)(sizes) + jnp.log(drawn.gram[:, 0]) / 2
    log_a = jax.vmap(_log)(before.activation)
    slopes, flat = jax.vmap(functools.partial(_slope_statistics, stack))(
        before, jax.tree.map(lambda a: a[:-1], drawn.flat)
    )
    log_x = jnp.log(mean_square * stack.inputs) / 2
    of_last = _log_of(entering)
    found = _exactness(stack, log_norms)
    nothing: dict[str, Array] = {}
    flow = GradientFlow(
        _log_mean_squares(stack, marked_forward(found, log_norms)),
        log_gradient,
        {
            "head/bias": of_last,
            "head/kernel": of_last + _log(last.activation),
            "stem/bias": log_gradient[0],
            "stem/kernel": log_gradient[0] + log_x,
            "bias": log_gradient[1:],
            "kernel": log_gradient[1:] + log_a,
        },
        nothing,
        nothing,
        nothing,
        slopes,
        flat,
        saturated,
        found.first_inexact_layer,
        found.first_nan_layer,
    )
    return _marked_one(flow, found)


def _marked_one(flow: GradientFlow, found: Exactness) -> GradientFlow:
    """`marked_gradients` of one example."""
    of_batch: Any = {"log_parameter_gradient": flow.log_parameter_gradient}
    without: Any = {name: {} for name in of_batch}
    with_axis = jax.tree.map(lambda a: a[None], flow._replace(**without))._replace(**of_batch)
    exact = ~jnp.isnan(flow.log_mean_square[-1:])
    marked = marked_gradients(with_axis, jax.tree.map(lambda a: a[None], found), exact)
    of_batch = {"log_parameter_gradient": marked.log_parameter_gradient}
    return jax.tree.map(lambda a: a[0], marked._replace(**without))._replace(**of_batch)


def _entering(
    drawn: Drawn, network: Network, last: _At, c: Array, y: Array, loss: losses.Loss
) -> tuple[_Cotangent, Array]:
    """dL/d(output), as a cotangent behind the head's kernel; and whether it is lost."""
    output = normalize(FloatExp(c * last.activation.value * drawn.read_out, last.activation.exponent))[0]
    with_axes = jax.tree.map(lambda a: a[None, None], output)
    deltas, saturated = cotangents_of_loss(loss, network, with_axes, y)
    value, exponent = (a[0, 0] for a in deltas)
    value = value / losses.mean_over(loss, network, 1)
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


# --- flat units -----------------------------------------------------------------------------------------------------------


@functools.cache
@untraced
def flat_ends(activation: Activation) -> tuple[tuple[float, float], ...]:
    """Between what phi is flat: |phi'| below `FLAT` of its largest, as intervals, to about 1e-12."""
    with jax.enable_x64(True):
        slope = jax.jit(activation.derivative)
        least = FLAT * activation.facts.largest_slope

        def is_flat(h: np.ndarray) -> np.ndarray:
            return np.asarray(np.abs(slope(h)) < least)

        far = np.concatenate([-np.geomspace(1e6, 30, 400), np.linspace(-30, 30, 60001), np.geomspace(30, 1e6, 400)])
        at = is_flat(far)
        changes = np.flatnonzero(at[1:] != at[:-1])
        low, high = far[changes], far[changes + 1]
        for _ in range(60):
            middle = (low + high) / 2
            same = is_flat(middle) == at[changes]
            low, high = np.where(same, middle, low), np.where(same, high, middle)
    ends = [*([-np.inf] if at[0] else []), *high.tolist(), *([np.inf] if at[-1] else [])]
    return tuple(zip(ends[::2], ends[1::2], strict=True))


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
        for low, high in flat_ends(activation):
            until = [_count_below(normals, end, at.plain, n) for end in (low, high)]
            flat = flat + (until[1] - until[0]) / n
    return jnp.where(alive, mean, 0), jnp.where(alive, flat, 1)


def _count_below(normals: Array, end: float, r: Array, n: int) -> Array:
    if not np.isfinite(end):
        return jnp.full_like(r, 0 if end < 0 else n)
    return jnp.searchsorted(normals, end / r, method="scan_unrolled").astype(r.dtype)
