"""Criticality: the scales at which gradients neither vanish nor explode, or the reason why there are none.

A fixed point q is critical when chi = sigma_w^2 E phi'^2 = 1; then sigma_w^2 = 1 / E phi'^2 and sigma_b^2 = q - E phi^2
/ E phi'^2 (Schoenholz et al. 2017; Hayou et al. 2019): the critical line is a curve with q as its parameter.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from vgjax import activations
from vgjax.activations import Activation, Elementwise
from vgjax.checks import not_negative
from vgjax.theory.gaussian import line, pieces
from vgjax.theory.roots import falling_root
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
    t, bias, _ = _along(phi)
    points, cells = np.nonzero(np.stack([_crossings(bias, np.exp(t), b**2) for b in sigma_b]))
    found: list[list[Critical]] = [_at_zero(phi, b) for b in sigma_b]
    roots = _roots(one_point(phi), t[cells], t[cells + 1], sigma_b[points] ** 2)
    for i, q, sigma_w, q_slope in zip(points, *(a.tolist() for a in roots), strict=True):
        found[i].append(_named(sigma_w, float(sigma_b[i]), q, q_slope, False))
    return found


@functools.cache
def _along(phi: Activation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ln q, q - E phi^2 / E phi'^2 and E phi'^2 over the whole table."""
    table = one_point(phi)
    low, high = math.log(table.low), math.log(table.high)
    t = np.linspace(low, high, math.ceil((high - low) * _PER_LOG))
    square, slope_square, _ = table.of_log_q(t)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return t, np.exp(t) - square / slope_square, slope_square


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


def _roots(table: OnePoint, low: np.ndarray, high: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, ...]:
    """q, sigma_w and the slope of the q map where q - E phi^2 / E phi'^2 = bias, one for each cell of ln q."""

    def excess(t: np.ndarray, which: np.ndarray) -> np.ndarray:
        square, slope_square, _ = table.of_log_q(t)
        return np.exp(t) - square / slope_square - bias[which]

    falling = np.where(excess(low, np.arange(len(low))) > 0, 1, -1)
    t = falling_root(lambda t, which: falling[which] * excess(t, which), low, high)
    _, slope_square, growth = table.of_log_q(t)
    return np.exp(t), 1 / np.sqrt(slope_square), growth / np.exp(t) / slope_square


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
