"""Criticality: the scales at which gradients neither vanish nor explode, or the reason why there are none.

A fixed point q is critical when chi = sigma_w^2 E phi'^2 = 1; then sigma_w^2 = 1 / E phi'^2 and sigma_b^2 = q - E phi^2
/ E phi'^2: the critical line is a curve with q as its parameter.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from vgjax import activations
from vgjax.activations import Activation
from vgjax.checks import ArrayLike, finite, kinds, not_empty, not_negative, short
from vgjax.theory._gaussian import ActivationLike
from vgjax.theory._level_sets import crossed
from vgjax.theory._moments import moment_table
from vgjax.theory._pieces import pieces
from vgjax.values import by_content

_PER_LOG = 32  # grid points of ln q to each unit: roots closer together than 3% in q count as one
_NOISE = 1e-12  # rounding of q - E phi^2 / E phi'^2, relative to q
_TANGENT = 1e-6  # |slope - 1| that counts as half-stable: at a fold the slope is known to the root of rounding only
_VANISHING = 1e-6  # E phi^2 / (q E phi'^2) - 1 at the lowest q, below which phi is linear there


@by_content
@dataclass(frozen=True, eq=False)
class Critical:
    """Critical points, or the reasons why there are none; numpy float64 and strings, all of one shape.

    Attributes:
        sigma_w, sigma_b: standard deviations; NaN if there is none.
        q_star: the fixed point of the q map at which chi = 1.
        q_slope: slope of the q map there.
        stability: "stable", "half-stable" (slope 1), "unstable" (forward iteration never reaches it, so it is no edge
            of chaos), "every q" (every q is a fixed point), or "none".
        reason: why it is no edge; empty if it is.
        others: further critical points at the same sigma_b, of that shape; "none" where one point has fewer.
    """

    sigma_w: np.ndarray
    sigma_b: np.ndarray
    q_star: np.ndarray
    q_slope: np.ndarray
    stability: np.ndarray
    reason: np.ndarray
    others: tuple["Critical", ...] = ()

    @property
    def is_edge(self) -> np.ndarray:
        """Whether networks are ordered on one side of it and chaotic on the other."""
        return np.equal(self.reason, "")

    @property
    def edge(self) -> np.ndarray:
        """sigma_w where it is an edge of chaos, NaN elsewhere: the critical line over ``sigma_b``."""
        return np.where(self.is_edge, self.sigma_w, np.nan)[()]


class _Point(NamedTuple):
    """One critical point; fields as in `Critical`."""

    sigma_w: float
    sigma_b: float
    q_star: float
    q_slope: float
    stability: str
    reason: str = ""


@kinds
def critical(activation: ActivationLike, sigma_b: ArrayLike | None = None, *, q: ArrayLike | None = None) -> Critical:
    """Where chi = 1: sigma_w at given sigma_b, or both scales at given fixed points q.

    sigma_w^2 = 1 / E phi'^2 and sigma_b^2 = q - E phi^2 / E phi'^2, both at q.

    Args:
        activation: a name, an `Activation`, or any elementwise callable.
        sigma_b: standard deviations of the biases, any shape; 0 if neither is given.
        q: instead, variances of the preactivations, positive, any shape.

    Returns:
        `Critical`, of the shape of what is given. At a given sigma_b it is the point on a stable fixed point (the
        smallest sigma_w, if there are several), else one on an unstable fixed point, named so, else the reason why
        there is none; further ones are in ``others``. At a given q there is none if sigma_b^2 would be negative, or
        phi' is 0 or infinite.

    Raises:
        ValueError: sigma_b and q together, a negative or non-finite sigma_b, a q that is not positive and finite, or an
            activation as `mean_field` refuses it.

    Source: Schoenholz et al. 2017, "Deep information propagation"; Hayou et al. 2019, "On the impact of the activation
    function on deep neural networks training", proposition 1, for the line by its q.
    """
    phi = activations.get(activation)
    if q is not None:
        if sigma_b is not None:
            raise ValueError(f"critical takes sigma_b or q, got both: {short(sigma_b)} and {short(q)}")
        not_empty("q", np.ravel(q))
        finite("q", q, "positive", lambda q: q > 0)
        variances = np.asarray(q, float)
        return _stacked(_points(phi, variances.ravel()), np.full_like(variances, np.nan))
    bias = np.asarray(0.0 if sigma_b is None else sigma_b, float)
    not_empty("sigma_b", bias.ravel())
    not_negative("sigma_b", bias)
    columns = [
        sorted(found, key=lambda point: (point.reason != "", point.sigma_w)) or [_none(b, _why_none(phi, b))]
        for b, found in zip(bias.ravel().tolist(), _all(phi, bias.ravel()), strict=True)
    ]
    first, *others = (_stacked(points, bias) for points in itertools.zip_longest(*columns))
    return replace(first, others=tuple(others))


def _none(sigma_b: float, reason: str, q: float = math.nan) -> _Point:
    return _Point(math.nan, sigma_b, q, math.nan, "none", reason)


def _stacked(points: Sequence[_Point | None], sigma_b: np.ndarray) -> Critical:
    """As arrays of the shape of sigma_b."""
    missing = (_none(b, "there is no further one") for b in sigma_b.ravel())
    fields = zip(*(point or none for point, none in zip(points, missing, strict=True)), strict=True)
    sigma_w, bias, q_star, q_slope, stability, reason = (np.array(f).reshape(sigma_b.shape)[()] for f in fields)
    return Critical(sigma_w, bias, q_star, q_slope, stability, reason)


def _points(phi: Activation, q: np.ndarray, variance_b: np.ndarray | None = None) -> list[_Point]:
    """What makes each q a critical fixed point; sigma_b^2 follows from it, or is known as a root's level."""
    square, slope_square, growth = moment_table(phi)(q)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance_b = q - square / slope_square if variance_b is None else variance_b
        parts = (q, 1 / np.sqrt(slope_square), variance_b, growth / (slope_square * q))
    return [_point(phi, *at) for at in zip(*(part.tolist() for part in parts), strict=True)]


def _point(phi: Activation, q: float, sigma_w: float, variance_b: float, q_slope: float) -> _Point:
    if not 0 < sigma_w < math.inf:
        return _none(math.nan, _why_none(phi, 0.0), q)
    if variance_b < -_NOISE * q:
        return _none(math.nan, f"chi = 1 at q = {q:g} would need sigma_b^2 = {variance_b:.3g}, below 0", q)
    sigma_b = math.sqrt(max(variance_b, 0))
    if phi.homogeneous:
        return _Point(sigma_w, sigma_b, q, 1.0, "every q")
    if abs(q_slope - 1) <= _TANGENT:
        return _Point(sigma_w, sigma_b, q, q_slope, "half-stable", "iteration reaches it from one side only")
    if q_slope > 1:
        reason = f"q* = {q:.6g} is unstable (slope {q_slope:.4g}): forward iteration never reaches it"
        return _Point(sigma_w, sigma_b, q, q_slope, "unstable", reason)
    return _Point(sigma_w, sigma_b, q, q_slope, "stable")


# --- roots of q - E phi^2 / E phi'^2 = sigma_b^2 --------------------------------------------------------------------


def _all(phi: Activation, sigma_b: np.ndarray) -> list[list[_Point]]:
    """All critical points for each sigma_b."""
    if pieces(phi).jumps:
        return [[] for _ in sigma_b]
    t, q, bias, _ = _along(phi)
    owners, cells = np.nonzero([crossed(bias, b**2, _NOISE * q) for b in sigma_b])
    found: list[list[_Point]] = [_at_zero(phi, b) for b in sigma_b]
    levels = sigma_b[owners] ** 2
    for i, point in zip(owners, _points(phi, _roots(phi, t[cells], t[cells + 1], levels), levels), strict=True):
        found[i].append(point._replace(sigma_b=float(sigma_b[i])))
    return found


@functools.cache
def _along(phi: Activation) -> tuple[np.ndarray, ...]:
    """ln q, q, q - E phi^2 / E phi'^2 and E phi'^2 over the whole table, shape ``(points,)`` each."""
    table = moment_table(phi)
    low, high = math.log(table.low), math.log(table.high)
    t = np.linspace(low, high, math.ceil((high - low) * _PER_LOG))
    square, slope_square, _ = table.of_log_q(t)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return t, np.exp(t), np.exp(t) - square / slope_square, slope_square


def _at_zero(phi: Activation, sigma_b: float) -> list[_Point]:
    """The critical point of vanishing signals: sigma_b = 0, sigma_w = 1 / |phi'(0)|; and that of homogeneous phi."""
    if sigma_b > 0:
        return []
    _, q, bias, slope_square = _along(phi)
    if not np.abs(bias[0]) < _VANISHING * q[0]:
        return []
    _, at_zero, _ = moment_table(phi).limits(0)
    sigma_w = 1 / math.sqrt(at_zero)
    if np.all(np.abs(bias) <= _NOISE * q):
        return [_Point(sigma_w, 0.0, 1.0, 1.0, "every q")]
    square = (q - bias) * slope_square
    first = int(np.argmax(np.abs(q / square * at_zero - 1) > 1e-9))  # where phi is no longer linear
    falls = q[first] / square[first] * at_zero > 1  # signals decay towards 0 at this sigma_w
    reason = "" if falls else "q* = 0 is unstable there: signals grow away from it"
    return [_Point(sigma_w, 0.0, 0.0, 1.0, "stable" if falls else "unstable", reason)]


def _roots(phi: Activation, low: np.ndarray, high: np.ndarray, level: np.ndarray) -> np.ndarray:
    """q where q - E phi^2 / E phi'^2 is the level, one for each cell of ln q."""
    from scipy.optimize.elementwise import find_root

    table = moment_table(phi)

    def excess(t: np.ndarray, level: np.ndarray) -> np.ndarray:
        square, slope_square, _ = table.of_log_q(t)
        return np.exp(t) - square / slope_square - level

    found = find_root(excess, (low, high), args=(level,))
    # A cell in which rounding hides the crossing has no change of sign: its end that is nearer.
    nearer = np.where(np.abs(found.f_bracket[0]) < np.abs(found.f_bracket[1]), low, high)
    return np.exp(np.where(found.status == -1, nearer, found.x))


def _why_none(phi: Activation, sigma_b: float) -> str:
    """Why no fixed point has chi = 1 at this sigma_b."""
    jumps = pieces(phi).jumps
    if jumps:
        return (
            f"{phi.name} jumps at h = {jumps[0]:.3g}, or nearly: E phi'^2 is infinite, and so is chi at every sigma_w"
        )
    _, q, bias, slope_square = _along(phi)
    if not np.any(slope_square > 0):
        return f"{phi.name} is flat: chi is 0 at every sigma_w"
    if sigma_b == 0 and moment_table(phi).limits(0)[0] == 0:
        return "q* = 0 is stable with chi = 0 at every sigma_w: small signals vanish, and gradients with them"
    if sigma_b > 0 and moment_table(phi)(np.array(sigma_b**2)).slope_square == 0:
        return f"{phi.name} is flat as far as signals of variance sigma_b^2 = {sigma_b**2:.3g} reach: chi is 0 there"
    able = q > sigma_b**2 * (1 + 1e-9)
    with np.errstate(divide="ignore", invalid="ignore"):
        chi = np.where(able, (q - sigma_b**2) / (q - bias), np.nan)
    if np.nanmax(chi) < 1 + 1e-9:
        return f"chi < 1 at every fixed point (it comes up to {np.nanmax(chi):.4g}): beyond, q grows without bound"
    return f"chi > 1 at every fixed point (it comes down to {np.nanmin(chi):.4g}): gradients explode wherever q settles"
