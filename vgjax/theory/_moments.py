"""Moments: E phi^2 and E phi'^2 of one input at every variance q from 0 to infinity.

Why a table: E f(sqrt(q) z) is an integral of f against exp(-u^2 / 2q), so it is analytic in ln q in the strip
|Im ln q| < pi/2 *whatever f is*, kinks and jumps included. Chebyshev interpolation in ln q therefore converges at a
rate that does not depend on the activation (24 points on a segment of length 2: 1e-13), and one table per activation
serves every scale, map and stack. Beyond its ends phi is a power of its argument, and so are its moments of q.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax import activations
from vgjax.activations import Activation
from vgjax.checks import ArrayLike, kinds, untraced
from vgjax.theory._chebyshev import Curve, axis, coefficients, sample
from vgjax.theory._gaussian import ActivationLike, at_once, nodes
from vgjax.theory._pieces import REACH, Pieces, pieces
from vgjax.values import by_content

Rows = Callable[..., list[Array]]

_LOWEST_Q, _HIGHEST_Q = 1e-14, 1e9  # corrections to the powers, one order in sqrt(q) taken along, are 1e-14 and 1e-9
_STEP = 2.0
_RESOLVED = 1e-12  # last two Chebyshev coefficients, of the least value on a segment; 1e-15 to 1e-13 as a rule
_HALVINGS = 9  # enough for exp(-a / q) until it is e^-650
_UNSEEN, _LOST = 1e-14, 1e-9  # share at the ends of quadrature: that calls for the Gaussian's tails; too much with them


@by_content
class Moments(NamedTuple):
    """What one input of variance q needs; each of the shape of q.

    Attributes:
        square: V = E phi(sqrt(q) z)^2.
        slope_square: E phi'(sqrt(q) z)^2; infinite if phi jumps.
        growth: dV / d ln q = q V'(q).
    """

    square: Any
    slope_square: Any
    growth: Any


@kinds
def moments(activation: ActivationLike, q: ArrayLike) -> Moments:
    """E phi^2, E phi'^2 and q d/dq E phi^2 at any variance, the limits at 0 and infinity included.

    Right to 1e-12 relative from q = 1e-14 to 1e9, or to as far as quadrature resolves phi, if it oscillates. Beyond,
    each goes on as the power of q that it tends to, with its first correction in sqrt(q) or 1 / sqrt(q): to 1e-9 where
    phi is bounded, or a power, far out; infinite where phi grows exponentially (beyond 1e150). Where phi is constant on
    both sides of 0, moments fall like exp(-a / q): right to 1e-9 down to 1e-230, and 0 below.

    Args:
        activation: a name, an `Activation`, or any elementwise callable.
        q: variances, any shape; infinity is welcome.

    Returns:
        `Moments` of numpy float64, of the shape of q.

    Raises:
        ValueError: a negative q or NaN, or an activation that is not elementwise, returns NaN, is complex, or has no
            second moment (a pole, growth like a Gaussian's inverse).

    Source: the layer's two averages of Poole et al. 2016, "Exponential expressivity in deep neural networks through
    transient chaos", equation 3, and Schoenholz et al. 2017, "Deep information propagation", equation 8.
    """
    values = np.asarray(q, float)
    bad = values[~(values >= 0)]
    if bad.size:
        raise ValueError(f"q must be a variance from 0 to infinity, got {bad.flat[0]:g}")
    return moment_table(activations.get(activation))(values)


class MomentTable(NamedTuple):
    """`Moments` of an activation as functions of q, for numpy (many q) and, traced as it is, for JAX (one q).

    Attributes:
        of_log_q: the curves over ln q.
        low, high: the q between which they hold.
        powers, corrections: p and beta of q^p (1 + beta (sqrt(q / low) - 1)) below, sqrt(high / q) above, in units of
            the value at that end; for E phi^2 and E phi'^2, shape ``(2 ends, 2)``.
        jumps: whether phi does; the curve of E phi'^2 is then meaningless.
    """

    of_log_q: Curve
    low: float
    high: float
    powers: np.ndarray
    corrections: np.ndarray
    jumps: bool

    def __call__(self, q: Any) -> Moments:
        """At any q in [0, inf]."""
        xp = q.__array_namespace__()
        inside = xp.clip(q, self.low, self.high)
        square, slope_square, growth = self.of_log_q(xp.log(inside))
        if isinstance(q, Array) or np.any(inside != q):
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                square, slope_square, growth = self._beyond(q / inside, (square, slope_square, growth))
        return Moments(square, xp.where(self.jumps, xp.inf, slope_square), growth)

    def limits(self, end: int) -> tuple[float, float, float]:
        """E phi^2 / q, E phi'^2 and q E phi'^2 / E phi^2 as q tends to 0 (end 0) or infinity (end 1)."""
        if self.faster_than_powers(end):
            return (0.0, 0.0, math.inf) if end == 0 else (math.inf, math.inf, math.inf)
        q, (power, of_slope) = (self.low, self.high)[end], self.powers[end]
        square, slope_square = (self.of_log_q(np.log(q))[:2] * (1 - self.corrections[end])).tolist()
        terms = (
            (square / q, power - 1),
            (math.inf if self.jumps else slope_square, of_slope),
            (q * slope_square / square if square and not self.jumps else math.inf, of_slope + 1 - power),
        )
        return tuple(
            value if not value or abs(rate) < 1e-6 else math.inf if (rate > 0) == bool(end) else 0.0
            for value, rate in terms
        )  # type: ignore

    def faster_than_powers(self, end: int) -> bool:
        """Whether E phi^2 falls (towards q = 0) or grows (towards infinity) faster than any power of q."""
        return bool(self.of_log_q.coefficients[0, 0, 0] == 0 if end == 0 else np.isinf(self.powers[1, 0]))

    def _beyond(self, ratio: Any, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """The moments at q from those at the nearer end and q in units of that."""
        xp = ratio.__array_namespace__()
        by = xp.clip(xp.log(ratio), -1500, 1500)  # finite, so that the power 0 of infinity is 1, and of 0 too
        shrink = xp.exp(-xp.abs(by) / 2)
        moved, powers = [], []
        for row in range(2):
            (p_low, p_high), (b_low, b_high) = self.powers[:, row], self.corrections[:, row]
            power, beta = xp.where(by > 0, p_high, p_low), xp.where(by > 0, b_high, b_low)
            corrected = 1 + beta * (shrink - 1)
            moved.append(xp.where(by == 0, values[row], values[row] * xp.exp(power * by) * corrected))
            powers.append(power - xp.sign(by) * beta * shrink / 2 / corrected)
        return *moved, xp.where(by == 0, values[2], xp.where(moved[0] == 0, 0, moved[0] * powers[0]))


@functools.cache
@untraced
def moment_table(phi: Activation) -> MomentTable:
    """The table of one activation from q = 1e-14 to 1e9, or as far as it can be resolved; float64."""
    _, edges, values = sampled(phi)
    of_log_q = Curve(edges, coefficients(values))
    powers, corrections = np.zeros((2, 2)), np.zeros((2, 2))
    for end, side in enumerate((1, -1)):
        last = of_log_q(edges[-end] + side * _STEP * np.arange(3.0))
        for row in range(2):
            powers[end, row], corrections[end, row] = _power(last[row], side)
    if pieces(phi).overflows:
        powers[1] = np.inf
    return MomentTable(of_log_q, math.exp(edges[0]), math.exp(edges[-1]), powers, corrections, bool(pieces(phi).jumps))


class Sampled(NamedTuple):
    """Where the moments of an activation were taken, and what they are.

    Attributes:
        pieces: of phi, with the Gaussian's tails where they matter.
        edges: of segments of ln q, shape ``(segments + 1,)``.
        values: of `Moments` at their nodes, shape ``(segments, DEGREE, 3)``.
    """

    pieces: Pieces
    edges: np.ndarray
    values: np.ndarray


@functools.cache
@untraced
def sampled(phi: Activation) -> Sampled:
    """Moments at the nodes of segments so short that each moment keeps its digits, however fast it falls or grows.

    Where phi vanishes near 0 its moments fall faster than any power of q, like exp(-a / q): what is left of them comes
    from the tails of the Gaussian, and segments are halved until interpolation resolves them. They are 0 from where
    those tails are beyond the float range.
    """
    found = pieces(phi)
    rows = _jumping if found.jumps else _smooth
    edges = axis(math.log(_LOWEST_Q), math.log(min(_HIGHEST_Q, found.largest_variance)), _STEP).edges
    low, high, before, parts = edges[:-1], edges[1:], np.full((len(edges) - 1, 2), np.inf), []
    for halvings in range(_HALVINGS + 1):
        values = averages(phi, found, sample(low, high), rows)
        bottom = values[..., :2].min(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            tail = np.abs(coefficients(values[..., :2])[..., -2:]).max(axis=-1) / bottom
        rough = (tail > _RESOLVED) & ((tail > 1e-8) | (tail < before / 2))  # what does not improve is rounding
        unseen = (_outside(values) > _UNSEEN) | (bottom == 0) & (halvings == 0)
        split = (rough | unseen).any(axis=1) & (halvings < _HALVINGS)
        before = np.concatenate([tail[split]] * 2)
        parts.append((low[~split], values[~split]))
        middle = (low + high)[split] / 2
        low, high = np.concatenate([low[split], middle]), np.concatenate([middle, high[split]])
        if not len(low):
            break
        found = dataclasses.replace(found, overflows=True)
    start, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(start)
    edges, values = np.append(start[order], edges[-1]), values[order]
    lost = _outside(values) > _LOST
    above = lost & (values[..., :2].max(axis=1) > 1) | ~np.isfinite(values[..., :2]).all(axis=1)
    segments = int(np.argmax(above.any(axis=1))) if above.any() else len(values)
    gone = np.column_stack([lost, lost.any(axis=1)])[:, None]
    return Sampled(found, edges[: segments + 1], np.where(gone, 0, values[..., :3])[:segments])


def _outside(values: np.ndarray) -> np.ndarray:
    """The largest share of E phi^2 and E phi'^2 that lies at the ends of quadrature, shape ``(segments, 2)``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(values[..., 3:] / values[..., :2], nan=0).max(axis=1)


def _power(values: np.ndarray, side: int) -> tuple[float, float]:
    """p and beta of `MomentTable` from values at an end and one and two segments inside of it."""
    if not (values > 0).all():
        return 0.0, 0.0
    outer, inner = (np.diff(np.log(values)) / (side * _STEP)).tolist()
    power = round(2 * outer) / 2
    # A correction of order sqrt(q) has fallen by e from one segment to the next; else the power is no half-integer.
    if abs(outer - power) > max(1e-9, 0.6 * abs(inner - power)):
        return outer, 0.0
    return power, (values[1] / values[0] * math.exp(-side * power * _STEP) - 1) / math.expm1(_STEP / 2)


def _smooth(weights: Array, z: Array, u: Array, value: Array, slope: Array) -> list[Array]:
    """`Moments`, and what the outermost twelfth of z has of the first two."""
    root = jnp.sqrt(weights)  # phi^2 itself would leave the float range where phi grows exponentially
    value, slope, ends = root * value, root * slope, jnp.abs(z) > 11 / 12 * jnp.max(z)
    rows = value**2, slope**2, u * value * slope, ends * value**2, ends * slope**2
    return [jnp.sum(row) for row in rows]


def _jumping(weights: Array, z: Array, u: Array, value: Array, slope: Array) -> list[Array]:
    """The same by parts, E (z^2 - 1) phi^2 / 2, without the slope, which does not know the jump."""
    square, ends = (jnp.sqrt(weights) * value) ** 2, jnp.abs(z) > 11 / 12 * jnp.max(z)
    rows = square, jnp.ones(()), square * (z * z - 1) / 2, ends * square, jnp.zeros(())
    return [jnp.sum(row) for row in rows]


def averages(phi: Activation, found: Pieces, log_q: np.ndarray, rows: Rows) -> np.ndarray:
    """Gaussian averages at ln q, shape ``(segments, DEGREE)`` -> ``(segments, DEGREE, rows)``; the rows come from
    (weights, z, u, phi(u), phi'(u)), by a module's function, for it is compiled for."""
    with jax.enable_x64(True):
        parts = [_averages(rows, phi, _within(found, t.max()), np.exp(t)) for t in log_q]
        return np.stack([np.asarray(part) for part in parts])


def _within(found: Pieces, log_q: float) -> Pieces:
    """Pieces up to 12 standard deviations (36 with tails), in a few sizes only, for each is compiled."""
    return found.within((1 + 2 * found.overflows) * REACH * 16.0 ** math.ceil(log_q / math.log(256)))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _averages(rows: Rows, phi: Activation, found: Pieces, q: Array) -> Array:
    def at(q: Array) -> Array:
        root = jnp.sqrt(q)
        z, weights = nodes(found, root)
        u = root * z
        return jnp.stack(rows(weights, z, u, phi(u), phi.derivative(u)))

    return jax.lax.map(at, q, batch_size=at_once(found))
