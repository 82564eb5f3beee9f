"""Criticality: the scales at which gradients neither vanish nor explode, or the reason why there are none.

A fixed point q is critical when chi = sigma_w^2 E phi'^2 = 1; then sigma_w^2 = 1 / E phi'^2 and sigma_b^2 = q - E phi^2
/ E phi'^2 (Schoenholz et al. 2017; Hayou et al. 2019): the critical line is a curve with q as its parameter.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from vgjax import activations
from vgjax.activations import Activation, Elementwise
from vgjax.checks import not_negative
from vgjax.theory.gaussian import line, pieces
from vgjax.theory.tables import OnePoint, one_point

_PER_LOG = 32  # grid points of ln q to each unit
_NOISE = 1e-12  # rounding of q - E phi^2 / E phi'^2, relative to q


class Critical(NamedTuple):
    """A critical point, or the reason why there is none.

    Attributes:
        sigma_w, sigma_b: standard deviations; NaN if there is none.
        q_star: the fixed point of the q map at which chi = 1.
        q_slope: slope of the q map there.
        stability: "stable", "half-stable" (slope 1), "unstable" (forward iteration never reaches it, so it is no edge
            of chaos), "every q" (every q is a fixed point), or "none".
        reason: why it is no edge; empty if it is.
        others: further critical points at the same sigma_b.
    """

    sigma_w: float
    sigma_b: float
    q_star: float
    q_slope: float
    stability: str
    reason: str = ""
    others: tuple["Critical", ...] = ()

    @property
    def is_edge(self) -> bool:
        """Whether networks are ordered on one side of it and chaotic on the other."""
        return not self.reason


def critical_sigma_w(activation: str | Activation | Elementwise, sigma_b: float = 0.0) -> Critical:
    """The weight scale at the edge of chaos for one bias scale: chi(q*) = 1.

    Args:
        activation: a name, an `Activation`, or any elementwise callable.
        sigma_b: standard deviation of the biases.

    Returns:
        `Critical`: the one on a stable fixed point (the smallest sigma_w, if there are several), else one on an
        unstable fixed point, named so, else the reason why there is none.

    Raises:
        ValueError: a negative or non-finite scale, or an activation as `mean_field` refuses it.
    """
    not_negative("sigma_b", sigma_b)
    phi, sigma_b = activations.get(activation), float(sigma_b)
    found = _all(phi, np.array([sigma_b]))[0]
    if not found:
        return Critical(math.nan, sigma_b, math.nan, math.nan, "none", _why_none(phi, sigma_b))
    ranked = sorted(found, key=lambda point: (not point.is_edge, point.sigma_w))
    return ranked[0]._replace(others=tuple(ranked[1:]))


def critical_line(activation: str | Activation | Elementwise, sigma_b: ArrayLike) -> np.ndarray:
    """sigma_w at the edge of chaos for many sigma_b: `critical_sigma_w` at each, NaN where there is none.

    Args:
        activation: as for `critical_sigma_w`.
        sigma_b: standard deviations, shape ``(points,)``.

    Returns:
        Shape ``(points,)``.

    Raises:
        ValueError: as `critical_sigma_w`.
    """
    not_negative("sigma_b", sigma_b)
    values = np.atleast_1d(np.asarray(sigma_b, float))
    edges = [[p.sigma_w for p in found if p.is_edge] for found in _all(activations.get(activation), values)]
    return np.array([min(edge, default=math.nan) for edge in edges]).reshape(np.shape(sigma_b))


def critical_point(activation: str | Activation | Elementwise, q: float) -> Critical:
    """The scales at which a given q is a critical fixed point: sigma_w^2 = 1 / E phi'^2, sigma_b^2 = q - E phi^2 / E
    phi'^2.

    Args:
        activation: as for `critical_sigma_w`.
        q: variance of the preactivations, positive.

    Returns:
        `Critical`; none if sigma_b^2 would be negative or phi' is 0 or infinite.

    Raises:
        ValueError: a q that is not positive and finite, or an activation as `mean_field` refuses it.
    """
    if not (np.isfinite(q) and q > 0):
        raise ValueError(f"q must be positive and finite, got {q}")
    phi = activations.get(activation)
    along = line(phi, q)
    square, slope_square = along.mean(along.phi**2), along.mean(along.slope**2)
    jumps = pieces(phi, phi.kinks).jumps
    if jumps or slope_square == 0:
        return Critical(math.nan, math.nan, q, math.nan, "none", _why_none(phi, 0.0))
    variance = q - square / slope_square
    if variance < -_NOISE * q:
        reason = f"chi = 1 at q = {q:g} would need sigma_b^2 = {variance:.3g}, below 0"
        return Critical(math.nan, math.nan, q, math.nan, "none", reason)
    q_slope = along.mean(along.u * along.phi * along.slope) / (slope_square * q)
    return _named(1 / math.sqrt(slope_square), math.sqrt(max(variance, 0)), q, q_slope, phi.homogeneous)


def _named(sigma_w: float, sigma_b: float, q: float, q_slope: float, homogeneous: bool) -> Critical:
    if homogeneous:
        return Critical(sigma_w, sigma_b, q, 1.0, "every q")
    if abs(q_slope - 1) <= 1e-6:
        return Critical(sigma_w, sigma_b, q, q_slope, "half-stable", "iteration reaches it from one side only")
    if q_slope > 1:
        reason = f"q* = {q:.6g} is unstable (slope {q_slope:.4g}): forward iteration never reaches it"
        return Critical(sigma_w, sigma_b, q, q_slope, "unstable", reason)
    return Critical(sigma_w, sigma_b, q, q_slope, "stable")


# --- roots of q - E phi^2 / E phi'^2 = sigma_b^2 --------------------------------------------------------------------


def _all(phi: Activation, sigma_b: np.ndarray) -> list[list[Critical]]:
    """All critical points for each sigma_b."""
    if pieces(phi, phi.kinks).jumps:
        return [[] for _ in sigma_b]
    table = one_point(phi)
    with jax.enable_x64(True):
        t, bias, _ = _along(phi)
        points, cells = np.nonzero(np.stack([_crossings(bias, np.exp(t), b**2) for b in sigma_b]))
        found: list[list[Critical]] = [_at_zero(phi, b) for b in sigma_b]
        if len(points):
            padded = 1 << int(len(points) - 1).bit_length()  # few shapes, few compilations
            which, cell = np.resize(points, padded), np.resize(cells, padded)
            roots = _roots(table, *(jnp.asarray(a) for a in (t[cell], t[cell + 1], sigma_b[which] ** 2)))
            for i, q, sigma_w, q_slope in zip(points, *(np.asarray(a).tolist() for a in roots), strict=False):
                found[i].append(_named(sigma_w, float(sigma_b[i]), q, q_slope, False))
    return found


@functools.cache
def _along(phi: Activation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ln q, q - E phi^2 / E phi'^2 and E phi'^2 over the whole table."""
    table = one_point(phi)
    low, high = (math.log(float(end)) for end in (table.low, table.high))
    t = np.linspace(low, high, math.ceil((high - low) * _PER_LOG))
    moments = np.asarray(_moments(table, jnp.asarray(t)))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return t, np.exp(t) - moments[:, 0] / moments[:, 1], moments[:, 1]


@jax.jit
def _moments(table: OnePoint, t: Array) -> Array:
    """E phi^2, E phi'^2 and q d/dq E phi^2 at many ln q, shape ``(len(t), 3)``."""
    return jax.vmap(lambda t: table.of_log_q(t))(t)


def _crossings(bias: np.ndarray, q: np.ndarray, level: float) -> np.ndarray:
    """Grid cells in which the curve crosses the level by more than rounding."""
    excess = bias - level
    told = np.flatnonzero(np.abs(excess) > _NOISE * q)
    crossed = np.zeros(len(q) - 1, bool)
    turns = np.flatnonzero(np.diff(np.sign(excess[told])))
    for turn in turns:  # within a stretch that rounding hides, the last cell of it
        crossed[told[turn + 1] - 1] = True
    return crossed


def _at_zero(phi: Activation, sigma_b: float) -> list[Critical]:
    """The critical point of vanishing signals: sigma_b = 0, sigma_w = 1 / |phi'(0)|; and that of homogeneous phi."""
    if sigma_b > 0:
        return []
    t, bias, slope_square = _along(phi)
    q = np.exp(t)
    if not np.abs(bias[0]) < 1e-6 * q[0]:
        return []
    sigma_w = 1 / math.sqrt(slope_square[0])
    if np.all(np.abs(bias) <= _NOISE * q):
        return [Critical(sigma_w, 0.0, 1.0, 1.0, "every q")]
    square = (q - bias) * slope_square
    first = int(np.argmax(np.abs(q / square * slope_square[0] - 1) > 1e-9))
    falls = q[first] / square[first] * slope_square[0] > 1  # signals decay towards 0 at this sigma_w
    reason = "" if falls else "q* = 0 is unstable there: signals grow away from it"
    return [Critical(sigma_w, 0.0, 0.0, 1.0, "stable" if falls else "unstable", reason)]


@jax.jit
def _roots(table: OnePoint, low: Array, high: Array, bias: Array) -> tuple[Array, Array, Array]:
    """q, sigma_w and the slope of the q map where q - E phi^2 / E phi'^2 = bias, by bisection of each cell."""

    def excess(t: Array, bias: Array) -> Array:
        square, slope_square, _ = table.of_log_q(t)
        return jnp.exp(t) - square / slope_square - bias

    def root(low: Array, high: Array, bias: Array) -> Array:
        rising = excess(high, bias) > 0

        def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            middle = (ends[0] + ends[1]) / 2
            above = (excess(middle, bias) > 0) == rising
            return jnp.where(above, ends[0], middle), jnp.where(above, middle, ends[1])

        return sum(jax.lax.fori_loop(0, 52, halve, (low, high))) / 2

    t = jax.lax.map(lambda cell: root(*cell), (low, high, bias), batch_size=256)
    _, slope_square, growth = _moments(table, t).T
    return jnp.exp(t), 1 / jnp.sqrt(slope_square), growth / jnp.exp(t) / slope_square


def _why_none(phi: Activation, sigma_b: float) -> str:
    """Why no fixed point has chi = 1 at this sigma_b."""
    jumps = pieces(phi, phi.kinks).jumps
    if jumps:
        return f"{phi.name} jumps at h = {jumps[0]:.3g}: E phi'^2 is infinite, and so is chi at every sigma_w"
    t, bias, slope_square = _along(phi)
    if not np.any(slope_square > 0):
        return f"{phi.name} is flat: chi is 0 at every sigma_w"
    q = np.exp(t)
    able = q > sigma_b**2 * (1 + 1e-9)
    square = (q - bias) * slope_square
    with np.errstate(divide="ignore", invalid="ignore"):
        chi = np.where(able, (q - sigma_b**2) / square * slope_square, np.nan)
    if np.nanmax(chi) < 1 + 1e-9:
        return f"chi < 1 at every fixed point (it comes up to {np.nanmax(chi):.4g}): beyond, q grows without bound"
    return f"chi > 1 at every fixed point (it comes down to {np.nanmin(chi):.4g}): gradients explode wherever q settles"
