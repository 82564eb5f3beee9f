"""Moments: E phi^2 and E phi'^2 of one input at every variance q from 0 to infinity.

Why a table: E f(sqrt(q) z) is an integral of f against exp(-u^2 / 2q), so it is analytic in ln q in the strip
|Im ln q| < pi/2 *whatever f is*, kinks and jumps included. Chebyshev interpolation in ln q therefore converges at a
rate that does not depend on the activation (24 points on a segment of length 2: 1e-13), and one table per activation
serves every scale, map and stack. Beyond its ends phi is a power of its argument, and so are its moments of q.
"""

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
from vgjax.theory._chebyshev import Axis, Curve, axis, curve
from vgjax.theory._gaussian import ActivationLike, at_once, nodes
from vgjax.theory._pieces import REACH, Pieces, pieces
from vgjax.values import by_content

Rows = Callable[..., list[Array]]

_LOWEST_Q, _HIGHEST_Q = 1e-14, 1e9  # corrections to the powers, one order in sqrt(q) taken along, are 1e-14 and 1e-9
_STEP = 2.0
_STEEPEST = 1e5  # growth of E phi^2 over one segment that 24 points still resolve to 1e-10
_SURE = 0.03  # a power is taken for a half-integer if it is that close: corrections at q = 1e9 are below 1e-3 for O(1)
# scales of phi, while others (|h|^0.3, logarithms) are no closer as a rule


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
    phi is bounded, or a power, far out; infinite where phi grows exponentially.

    Args:
        activation: a name, an `Activation`, or any elementwise callable.
        q: variances, any shape; infinity is welcome.

    Returns:
        `Moments` of numpy float64, of the shape of q.

    Raises:
        ValueError: a negative q or NaN, or an activation that is not elementwise, returns NaN, is complex, or has no
            second moment.

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
    found = pieces(phi)
    along = axis(math.log(_LOWEST_Q), math.log(min(_HIGHEST_Q, found.largest_variance)), _STEP)
    values = averages(phi, along, _jumping if found.jumps else _smooth)
    square = values[:, :, 0]
    with np.errstate(invalid="ignore"):
        steep = ~(square.max(axis=1) <= _STEEPEST * square.min(axis=1)) & (along.nodes[:, -1] > 0)
    segments = int(np.argmax(steep)) if steep.any() else len(steep)
    along = along._replace(segments=segments)
    of_log_q = curve(along, values[:segments])
    powers, corrections = np.zeros((2, 2)), np.zeros((2, 2))
    for end, (at, side) in enumerate(((along.low, 1), (along.high, -1))):
        for row, (last, inside) in enumerate(of_log_q(np.array([at, at + side * _STEP]))[:2].tolist()):
            powers[end, row], corrections[end, row] = _power(last, inside, side)
    if steep.any() or found.overflows:
        powers[1] = np.inf
    return MomentTable(of_log_q, math.exp(along.low), math.exp(along.high), powers, corrections, bool(found.jumps))


def _power(at_end: float, inside: float, side: int) -> tuple[float, float]:
    """p and beta of `MomentTable` from values at an end and one segment inside of it."""
    if not (at_end > 0 and inside > 0):
        return 0.0, 0.0
    found = math.log(inside / at_end) / (side * _STEP)
    power = round(2 * found) / 2
    if abs(found - power) > _SURE:
        return found, 0.0
    return power, (inside / at_end * math.exp(-side * power * _STEP) - 1) / math.expm1(_STEP / 2)


def _smooth(weights: Array, z: Array, u: Array, value: Array, slope: Array) -> list[Array]:
    """The rows of the table."""
    return [jnp.sum(weights * row) for row in (value**2, slope**2, u * value * slope)]


def _jumping(weights: Array, z: Array, u: Array, value: Array, slope: Array) -> list[Array]:
    """The same by parts, E (z^2 - 1) phi^2 / 2, without the slope, which does not know the jump."""
    square = weights * value**2
    return [jnp.sum(square), jnp.zeros(()), jnp.sum(square * (z * z - 1)) / 2]


def averages(phi: Activation, along: Axis, rows: Rows) -> np.ndarray:
    """Gaussian averages at the nodes of an axis of ln q, shape ``(segments, DEGREE, rows)``; the rows come from
    (weights, z, u, phi(u), phi'(u)), by a module's function, for it is compiled for."""
    found = pieces(phi)
    with jax.enable_x64(True):
        parts = [_averages(rows, phi, _within(found, t.max()), np.exp(t)) for t in along.nodes]
        return np.stack([np.asarray(part) for part in parts])


def _within(found: Pieces, log_q: float) -> Pieces:
    """Pieces up to 12 standard deviations, in a few sizes only, for each is compiled."""
    return found.within(REACH * 16.0 ** math.ceil(log_q / math.log(256)))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _averages(rows: Rows, phi: Activation, found: Pieces, q: Array) -> Array:
    def at(q: Array) -> Array:
        root = jnp.sqrt(q)
        z, weights = nodes(found, root)
        u = root * z
        return jnp.stack(rows(weights, z, u, phi(u), phi.derivative(u)))

    return jax.lax.map(at, q, batch_size=at_once(found))
