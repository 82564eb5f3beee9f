"""Mean field: where the variance and the correlation of signals settle, and how far signals and gradients reach.

q_{l+1} = sigma_w^2 E phi(sqrt(q_l) z)^2 + sigma_b^2 (the q map), chi = sigma_w^2 E phi'(sqrt(q*) z)^2 (growth of the
mean squared gradient per layer), and the c map of two inputs' correlation (Poole et al. 2016; Schoenholz et al. 2017).

For a fixed sigma_b the q map has its fixed points where sigma_w^2 = F(q) = (q - sigma_b^2) / E phi^2: the fixed points
of every sigma_w are level sets of *one* function of q, which is why a whole map is hardly more work than a point.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from vgjax import activations
from vgjax.activations import Activation, Elementwise
from vgjax.checks import not_negative
from vgjax.theory import correlation
from vgjax.theory.tables import OnePoint, one_point

STATUSES = (
    "converged",
    "several fixed points",
    "decays to zero",
    "grows without bound",
    "every q is fixed",
    "oscillates",
)
"""What becomes of q_l, by code."""
CONVERGED, SEVERAL, ZERO, UNBOUNDED, EVERY, OSCILLATES = range(6)

_PER_LOG = 16  # grid points of ln q to each unit
_CRITICAL = 1e-12  # |chi - 1| up to which a point is critical


class FixedPoint(NamedTuple):
    """One fixed point of the q map.

    Attributes:
        q: where.
        chi: growth of the mean squared gradient per layer there.
        q_slope: slope of the q map.
        stable: forward iteration is drawn to it.
    """

    q: float
    chi: float
    q_slope: float
    stable: bool


@dataclass(frozen=True)
class MeanField:
    """Mean field at a point, or on a map; numpy float64 and strings, of shape ``()`` or ``(sigma_w, sigma_b)``.

    Attributes:
        activation: phi.
        sigma_w, sigma_b: the scales, shapes ``()``, or those of the map's axes.
        q_star: the fixed point that forward iteration reaches from its start; 0 or inf where it decays or grows.
        chi: sigma_w^2 E phi'^2 there (the limit, for 0 and inf); inf where phi jumps.
        q_slope: slope of the q map there; its ratio q_{l+1} / q_l in the limit for 0 and inf.
        status: one of `STATUSES`.
        dropout: share of units that are dropped.
        fixed_points: all of them, increasing; for a point only.
    """

    activation: Activation
    sigma_w: np.ndarray
    sigma_b: np.ndarray
    q_star: np.ndarray
    chi: np.ndarray
    q_slope: np.ndarray
    status: np.ndarray
    dropout: float = 0.0
    fixed_points: tuple[FixedPoint, ...] = ()

    @property
    def phase(self) -> np.ndarray:
        """ "ordered" (chi < 1, gradients vanish), "critical" or "chaotic" (chi > 1, they explode)."""
        code = np.where(np.abs(self.chi - 1) <= _CRITICAL, 1, np.where(self.chi < 1, 0, 2))
        return np.array(["ordered", "critical", "chaotic"])[code]

    @property
    def xi_grad(self) -> np.ndarray:
        """-1 / ln chi, in layers: the mean squared gradient changes by e.

        Negative where it explodes, inf if critical.
        """
        return depth_scale(self.chi)

    @property
    def xi_q(self) -> np.ndarray:
        """-1 / ln |slope of the q map|, in layers; negative where q leaves its value (grows without bound)."""
        return depth_scale(np.abs(self.q_slope))

    @functools.cached_property
    def _correlation(self) -> tuple[np.ndarray, np.ndarray]:
        return _correlation(self)

    @property
    def c_star(self) -> np.ndarray:
        """The correlation to which two inputs of equal norm are drawn; 1 in the ordered phase, and where q* is 0 or inf
        and identical inputs stay together."""
        return self._correlation[0]

    @property
    def c_slope(self) -> np.ndarray:
        """Slope of the c map at c*; chi in the ordered phase."""
        return self._correlation[1]

    @property
    def xi_c(self) -> np.ndarray:
        """-1 / ln (slope of the c map at c*), in layers: the depth to which two inputs can be told apart; inf if
        critical."""
        return depth_scale(self.c_slope)


def depth_scale(factor: ArrayLike) -> np.ndarray:
    """-1 / ln factor: layers in which something that changes by this factor per layer changes by e.

    Inf at 1, 0 at 0.
    """
    factor = np.asarray(factor)
    with np.errstate(divide="ignore"):
        return np.where(
            np.abs(factor - 1) <= _CRITICAL, np.inf, -1 / np.where(factor == 1, np.inf, np.log(factor)) + 0.0
        )


def mean_field(
    activation: str | Activation | Elementwise,
    sigma_w: float,
    sigma_b: float = 0.0,
    *,
    start: float = 1.0,
    dropout: float = 0.0,
) -> MeanField:
    """All fixed points of the q map at one pair of scales, and what signals and gradients do at the one they reach.

    Args:
        activation: a name, an `Activation`, or any elementwise callable.
        sigma_w, sigma_b: standard deviations.
        start: q_0, from which forward iteration starts.
        dropout: share of units that are dropped, the others scaled up by 1 / (1 - dropout), independently for every
            input: the q map then has sigma_w^2 / (1 - dropout) in place of sigma_w^2, and c = 1 is no fixed point.

    Returns:
        `MeanField` of numbers, in float64 whatever JAX's default is.

    Raises:
        ValueError: a negative or non-finite scale, a start that is not positive, an activation that is not elementwise,
            returns NaN, is complex, or has no second moment.
    """
    for name, value in (("sigma_w", sigma_w), ("sigma_b", sigma_b)):
        if np.ndim(value):
            raise ValueError(f"{name} must be a number, got shape {np.shape(value)}; mean_field_map takes grids")
    found = mean_field_map(activation, np.array([sigma_w]), np.array([sigma_b]), start=start, dropout=dropout)
    numbers = {name: getattr(found, name)[0, 0] for name in ("q_star", "chi", "q_slope", "status")}
    return MeanField(
        found.activation,
        np.array(sigma_w, float),
        np.array(sigma_b, float),
        **numbers,
        dropout=dropout,
        fixed_points=fixed_points(found.activation, sigma_w / math.sqrt(1 - dropout), sigma_b),
    )


def mean_field_map(
    activation: str | Activation | Elementwise,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    *,
    start: float = 1.0,
    dropout: float = 0.0,
) -> MeanField:
    """`mean_field` on a grid: q*, chi and xi_grad at once, c* and xi_c when they are asked for.

    Args:
        activation, start, dropout: as for `mean_field`.
        sigma_w, sigma_b: values along the two axes, shapes ``(columns,)`` and ``(rows,)``.

    Returns:
        `MeanField` of arrays of shape ``(columns, rows)``; no cell is NaN.

    Raises:
        ValueError: as `mean_field`, or an empty or not one-dimensional axis.
    """
    phi = activations.get(activation)
    axes: list[np.ndarray] = []
    for name, values in (("sigma_w", sigma_w), ("sigma_b", sigma_b)):
        not_negative(name, values)
        axes.append(np.asarray(values, float))
        if axes[-1].ndim != 1 or not axes[-1].size:
            raise ValueError(f"{name} must be a non-empty one-dimensional grid, got shape {axes[-1].shape}")
    if not (np.isfinite(start) and start > 0):
        raise ValueError(f"start must be positive and finite, got {start}")
    check_dropout(dropout)
    q_star, chi, q_slope, status = _map(phi, float(start), axes[0] ** 2 / (1 - dropout), axes[1] ** 2)
    return MeanField(phi, axes[0], axes[1], q_star, chi, q_slope, np.array(STATUSES)[status], dropout)


def check_dropout(dropout: float) -> None:
    """Pass a share in [0, 1)."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")


def fixed_points(activation: str | Activation | Elementwise, sigma_w: float, sigma_b: float) -> tuple[FixedPoint, ...]:
    """All isolated fixed points of the q map between q = 1e-14 and 1e9, increasing.

    Raises:
        ValueError: as `mean_field`.
    """
    not_negative("sigma_w", sigma_w)
    not_negative("sigma_b", sigma_b)
    phi = activations.get(activation)
    table = one_point(phi)
    level, bias = float(sigma_w) ** 2, float(sigma_b) ** 2
    knots = _knots(_samples(phi, 1.0), bias)
    if _constant(knots.value, level):
        return ()
    crossed = np.flatnonzero(_crossings(knots.value, level))[:_MOST_ROOTS]
    q = _roots(table, _brackets(knots, crossed), knots.step, np.full(crossed.shape, level), bias)
    found = (a.tolist() for a in (q, *_at(table, q, np.full(crossed.shape, level))))
    return tuple(FixedPoint(q, chi, slope, abs(slope) < 1) for q, chi, slope in zip(*found, strict=True))


def _correlation(field: MeanField) -> tuple[np.ndarray, np.ndarray]:
    """c* and the slope of the c map there."""
    shape, keep = np.shape(field.q_star), 1 - field.dropout
    columns = field.sigma_w[:, None] if shape else field.sigma_w
    values = (field.q_star, field.chi * keep, columns**2, field.sigma_b)
    q, slope, level, sigma_b = (np.array(np.broadcast_to(a, shape)).ravel() for a in values)
    one = one_point(field.activation)
    # Where q runs to an end the scales no longer matter: what is left is the correlation of phi / sqrt(E phi^2).
    for end, near in ((0, max(1e-6, one.low)), (np.inf, min(1e6, one.high))):
        square, slope_square, _ = (float(a) for a in one(np.asarray(near)))
        there = q == end
        q[there], level[there], sigma_b[there] = near, near / max(square, 1e-280) * keep, 0
        slope[there] = 1 if abs(slope_square / square * near - 1) < 1e-3 else near / square * slope_square
    c_star, gap = np.ones_like(q), field.dropout * (1 - sigma_b**2 / q)
    apart = (slope > 1 + _CRITICAL) | (gap > 0)
    if apart.any():
        pair = correlation.table(field.activation, q[apart].min(), min(q[apart].max(), one.high))
        found = correlation.fixed_correlations(pair, q[apart], level[apart], gap[apart])
        c_star[apart], slope[apart] = found
    return c_star.reshape(shape)[()], slope.reshape(shape)[()]


# --- the level sets of F --------------------------------------------------------------------------------------------

_MOST_ROOTS = 8
_NOISE = 2e-13  # rounding of F, relative: where F is flat at the level itself it crosses nothing


class _Knots(NamedTuple):
    """F(q) = (q - sigma_b^2) / E phi^2 along t = ln q, cut where it turns: monotone between knots.

    Every grid interval has three pieces (a cubic turns at most twice); those that it does not need have no length.

    Attributes:
        t, value: the knots and F there, shape ``(3 intervals + 1,)``.
        cubic: F on each interval as a cubic of its own coordinate in [0, 1], shape ``(intervals, 4)``.
        low, step: of the grid.
    """

    t: np.ndarray
    value: np.ndarray
    cubic: np.ndarray
    low: float
    step: float


class _Brackets(NamedTuple):
    """Pieces of F, one for each root that is looked for.

    Attributes:
        low, high: ends in ln q.
        rising: whether F rises between them.
        cubic: F as a cubic of its own coordinate, shape ``(..., 4)``.
        left: ln q where that is 0.
    """

    low: np.ndarray
    high: np.ndarray
    rising: np.ndarray
    cubic: np.ndarray
    left: np.ndarray


class _Samples(NamedTuple):
    """Moments along a grid of ln q with the start on it, each of shape ``(points,)``."""

    t: np.ndarray
    square: np.ndarray
    growth: np.ndarray


@functools.lru_cache(64)
def _samples(phi: Activation, start: float) -> _Samples:
    """Over the whole table."""
    table = one_point(phi)
    first, low, high = math.log(start), math.log(table.low), math.log(table.high)
    if not low < first < high:
        raise ValueError(f"start must lie between {math.exp(low):.2g} and {math.exp(high):.2g}, got {start}")
    steps = np.arange(math.ceil((low - first) * _PER_LOG), math.floor((high - first) * _PER_LOG) + 1)
    t = first + steps / _PER_LOG
    square, _, growth = table.of_log_q(t)
    return _Samples(t, np.maximum(square, 1e-280), growth)


def _knots(samples: _Samples, bias: float) -> _Knots:
    """Hermite cubics of F from E phi^2 and its slope, for one bias variance."""
    t, square, growth = samples
    q, step = np.exp(t), t[1] - t[0]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        value = (q - bias) / square
        slope = (q / square - value * (growth / square)) * step
        rise, first, last = value[1:] - value[:-1], slope[:-1], slope[1:]
        a, b, c = first, 3 * rise - 2 * first - last, first + last - 2 * rise
        inside = b * b - 3 * a * c
        root = b + np.where(b < 0, -1, 1) * np.sqrt(np.maximum(inside, 0))
        turns = np.stack([-root / (3 * c), -a / root])
        turns = np.where((turns > 0) & (turns < 1) & (inside > 0), turns, 0)
        x = np.stack([np.zeros_like(a), turns.min(axis=0), turns.max(axis=0)])
        cubic = np.stack([value[:-1], a, b, c])
        between = _polynomial(cubic[:, None], x)
    return _Knots(
        np.append((t[:-1] + step * x).T.ravel(), t[-1]), np.append(between.T.ravel(), value[-1]), cubic.T, t[0], step
    )


def _polynomial(cubic: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Of coefficients along the first axis."""
    return cubic[0] + x * (cubic[1] + x * (cubic[2] + x * cubic[3]))


def _brackets(knots: _Knots, piece: np.ndarray) -> _Brackets:
    """Between knots ``piece`` and ``piece + 1``."""
    interval = np.minimum(piece // 3, len(knots.cubic) - 1)
    rising = knots.value[piece + 1] >= knots.value[piece]
    left = knots.low + knots.step * interval
    return _Brackets(knots.t[piece], knots.t[piece + 1], rising, knots.cubic[interval], left)


def _roots(
    table: OnePoint, brackets: _Brackets, step: float, level: np.ndarray, bias: np.ndarray | float
) -> np.ndarray:
    """q where F crosses the level in each bracket: by bisection of the cubic, then Newton's steps on the table itself;
    shape of the level."""
    low, high, rising, cubic, left = brackets
    cubic = np.ascontiguousarray(np.moveaxis(cubic, -1, 0))
    cubic[0] -= level
    a, b = (low - left) / step, (high - left) / step
    for _ in range(20):
        middle = (a + b) / 2
        above = (_polynomial(cubic, middle) > 0) == rising
        a, b = np.where(above, a, middle), np.where(above, middle, b)
    t = left + step * (a + b) / 2
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for _ in range(2):
            square, _, growth = table.of_log_q(t)
            q_next = level * square + bias
            t = np.clip(t - (np.log(q_next) - t) / (level * growth / q_next - 1), low, high)
    return np.exp(t)


def _at(table: OnePoint, q: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """chi and the slope of the q map at fixed points; the limits for q = 0 and infinity."""
    held = np.clip(q, table.low, table.high)
    moments = table(held)
    ratio = np.where((q > 0) & np.isfinite(q), moments.growth, moments.square) / held
    with np.errstate(invalid="ignore"):
        return np.where(level == 0, 0, level * moments.slope_square), level * ratio


def _constant(value: np.ndarray, level: ArrayLike) -> np.ndarray:
    """Every q is a fixed point: F is the level everywhere. From its extremes, once for all levels."""
    return np.maximum(value.max() - level, level - value.min()) <= 1e-11 * np.asarray(level)


def _crossings(value: np.ndarray, level: float) -> np.ndarray:
    """The pieces between knots in which F crosses the level, by more than its rounding."""
    side = np.sign(value - level) * (np.abs(value - level) > _NOISE * level)
    told = np.flatnonzero(side)
    if not told.size:
        return np.zeros(len(value) - 1, bool)
    last_told = told[np.maximum(np.searchsorted(told, np.arange(len(value)), side="right") - 1, 0)]
    return np.diff(side[last_told]) != 0


def _runs(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends of the stretches on which F is monotone, each sorted."""
    moves = np.flatnonzero(np.diff(value))
    if not moves.size:
        return value[:0], value[:0]
    turns = moves[np.flatnonzero(np.diff(np.sign(np.diff(value)[moves])))] + 1
    ends = value[[0, *turns, -1]]
    return np.sort(np.minimum(ends[1:], ends[:-1])), np.sort(np.maximum(ends[1:], ends[:-1]))


def _map(phi: Activation, start: float, levels: np.ndarray, biases: np.ndarray) -> tuple[np.ndarray, ...]:
    """q*, chi, slope and status of every (level, bias), shapes ``(levels, biases)``.

    From the start iteration climbs to the next crossing above where the level exceeds F, or falls to the next below:
    the first knot at which a running extremum of F passes the level. (Where E phi^2 falls with q, iteration overshoots
    and may circle; the fixed point it circles, or settles in, is taken to be that one.)
    """
    table, samples = one_point(phi), _samples(phi, start)
    step, origin = samples.t[1] - samples.t[0], int(np.searchsorted(samples.t, math.log(start)))
    here = 3 * origin
    less, more = levels * (1 - _NOISE), levels * (1 + _NOISE)

    def row(bias: float) -> tuple[np.ndarray, ...]:
        knots = _knots(samples, bias)
        above, below = knots.value[here:], knots.value[here::-1]
        climb = np.searchsorted(np.maximum.accumulate(above), more)
        fall = np.searchsorted(-np.minimum.accumulate(below), -less)
        up = levels > above[0]
        piece = np.clip(np.where(up, here + climb - 1, here - fall), 0, len(knots.value) - 2)
        lower, upper = _runs(knots.value)
        several = np.searchsorted(lower, less) - np.searchsorted(upper, more) > 1
        ends = up & (climb == len(above)), ~up & (fall == len(below))
        return *ends, _constant(knots.value, levels), several, *_brackets(knots, piece)

    columns = (np.stack(rows, axis=1) for rows in zip(*map(row, biases), strict=True))
    grows, decays, constant, several, *brackets = columns
    level = np.broadcast_to(levels[:, None], grows.shape)
    q = _roots(table, _Brackets(*brackets), step, level, biases)
    q = np.where(constant, start, np.where(grows, np.inf, np.where(decays, 0, q)))
    chi, slope = _at(table, q, level)
    status = np.where(several, SEVERAL, CONVERGED)
    for code, holds in ((OSCILLATES, slope < -1), (UNBOUNDED, np.isinf(q)), (ZERO, q == 0), (EVERY, constant)):
        status[holds] = code
    return q, chi, slope, status
