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

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
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
    numbers = {name: getattr(found, name).reshape(())[()] for name in ("q_star", "chi", "q_slope", "status")}
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
    table = one_point(phi)
    with jax.enable_x64(True):
        levels, biases = jnp.asarray(axes[0]) ** 2 / (1 - dropout), jnp.asarray(axes[1]) ** 2
        grid = _grid(table, start)
        found = _map(table, grid, int(np.searchsorted(grid, math.log(start))), levels, biases)
        q_star, chi, q_slope, status = (np.asarray(a) for a in found)
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
    with jax.enable_x64(True):
        knots = jax.tree.map(np.asarray, _knots_at(table, _grid(table, 1.0), bias))
        if _constant(knots.value, level):
            return ()
        crossed = np.flatnonzero(_crossings(knots.value, level))[:_MOST_ROOTS]
        padded = np.resize(crossed, _MOST_ROOTS) if crossed.size else np.zeros(_MOST_ROOTS, int)
        roots = [np.asarray(a)[: crossed.size].tolist() for a in _roots_at(table, knots, padded, level, bias)]
    return tuple(FixedPoint(q, chi, slope, abs(slope) < 1) for q, chi, slope in zip(*roots, strict=True))


def _correlation(field: MeanField) -> tuple[np.ndarray, np.ndarray]:
    """c* and the slope of the c map there."""
    shape, keep = np.shape(field.q_star), 1 - field.dropout
    columns = field.sigma_w[:, None] if shape else field.sigma_w
    values = (field.q_star, field.chi * keep, columns**2, field.sigma_b)
    q, slope, level, sigma_b = (np.array(np.broadcast_to(a, shape)).ravel() for a in values)
    one = one_point(field.activation)
    low, high = float(one.low), float(one.high)
    with jax.enable_x64(True):
        # Where q runs to an end the scales no longer matter: what is left is the correlation of phi / sqrt(E phi^2).
        for end, near in ((0, max(1e-6, low)), (np.inf, min(1e6, high))):
            square, slope_square, _ = (float(a) for a in _table_at(one, near))
            there = q == end
            q[there], level[there], sigma_b[there] = near, near / max(square, 1e-280) * keep, 0
            slope[there] = 1 if abs(slope_square / square * near - 1) < 1e-3 else near / square * slope_square
        c_star, gap = np.ones_like(q), field.dropout * (1 - sigma_b**2 / q)
        apart = (slope > 1 + _CRITICAL) | (gap > 0)
        if apart.any():
            pair = correlation.table(field.activation, q[apart].min(), min(q[apart].max(), high))
            padded = 1 << int(apart.sum() - 1).bit_length()  # few shapes, few compilations
            points = (jnp.asarray(np.resize(a[apart], padded)) for a in (q, level, gap))
            found = correlation.fixed_correlations(pair, *points)
            c_star[apart], slope[apart] = (np.asarray(a)[: apart.sum()] for a in found)
    return c_star.reshape(shape)[()], slope.reshape(shape)[()]


@jax.jit
def _table_at(table: OnePoint, q: ArrayLike) -> tuple[Array, ...]:
    return table(jnp.asarray(q))


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

    t: Array
    value: Array
    cubic: Array
    low: Array
    step: Array


def _grid(table: OnePoint, start: float) -> np.ndarray:
    """Grid of ln q over the table with ``start`` on it."""
    first, low, high = math.log(start), float(jnp.log(table.low)), float(jnp.log(table.high))
    if not low < first < high:
        raise ValueError(f"start must lie between {math.exp(low):.2g} and {math.exp(high):.2g}, got {start}")
    return first + np.arange(math.ceil((low - first) * _PER_LOG), math.floor((high - first) * _PER_LOG) + 1) / _PER_LOG


def _knots(t: Array, square: Array, growth: Array, bias: Array) -> _Knots:
    """Hermite cubics of F from E phi^2 and its slope; unbatched in the bias variance."""
    q = jnp.exp(t)
    square = jnp.maximum(square, 1e-280)
    value = (q - bias) / square
    step = t[1] - t[0]
    slope = (q / square - value * (growth / square)) * step
    rise, first, last = value[1:] - value[:-1], slope[:-1], slope[1:]
    cubic = jnp.stack([value[:-1], first, 3 * rise - 2 * first - last, first + last - 2 * rise], axis=-1)
    _, a, b, c = cubic.T
    root = b + jnp.where(b < 0, -1, 1) * jnp.sqrt(jnp.maximum(b * b - 3 * a * c, 0))
    turns = jnp.stack([-root / (3 * jnp.where(c == 0, 1e-300, c)), -a / jnp.where(root == 0, 1e-300, root)])
    turns = jnp.where((turns > 0) & (turns < 1) & (b * b > 3 * a * c), turns, 0)
    x = jnp.concatenate([jnp.zeros_like(turns[:1]), jnp.sort(turns, axis=0)]).T  # (intervals, 3)
    between = _polynomial(cubic[:, None], x)
    return _Knots(
        jnp.append((t[:-1, None] + step * x).ravel(), t[-1]), jnp.append(between.ravel(), value[-1]), cubic, t[0], step
    )


def _polynomial(cubic: Array, x: Array) -> Array:
    return cubic[..., 0] + x * (cubic[..., 1] + x * (cubic[..., 2] + x * cubic[..., 3]))


def _root(table: OnePoint, knots: _Knots, piece: Array, level: Array, bias: Array) -> Array:
    """q where F crosses the level between knots ``piece`` and ``piece + 1``: by bisection of the cubic, then Newton's
    steps on the table itself."""
    low, high = knots.t[piece], knots.t[piece + 1]
    interval = jnp.minimum(piece // 3, knots.cubic.shape[0] - 1)
    cubic, left = knots.cubic[interval], knots.low + knots.step * interval
    rising = knots.value[piece + 1] >= knots.value[piece]

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        a, b = ends
        middle = (a + b) / 2
        above = (_polynomial(cubic, (middle - left) / knots.step) > level) == rising
        return jnp.where(above, a, middle), jnp.where(above, middle, b)

    a, b = jax.lax.fori_loop(0, 20, halve, (low, high))
    t = (a + b) / 2
    for _ in range(2):
        square, _, growth = table.of_log_q(t)
        q_next = level * square + bias
        t = jnp.clip(t - (jnp.log(q_next) - t) / (level * growth / q_next - 1), low, high)
    return jnp.exp(t)


def _at(table: OnePoint, q: Array, level: Array) -> tuple[Array, Array]:
    """chi and the slope of the q map at a fixed point; the limits for q = 0 and infinity."""
    moments = table(jnp.clip(q, table.low, table.high))
    inside = (q > 0) & jnp.isfinite(q)
    ratio = jnp.where(inside, moments.growth, moments.square) / jnp.clip(q, table.low, table.high)
    return jnp.where(level == 0, 0, level * moments.slope_square), level * ratio


def _constant(value: np.ndarray | Array, level: ArrayLike) -> Array:
    """Every q is a fixed point: F is the level everywhere. From its extremes, once for all levels."""
    return jnp.maximum(jnp.max(value) - level, level - jnp.min(value)) <= 1e-11 * level


def _crossings(value: np.ndarray, level: float) -> np.ndarray:
    """The pieces between knots in which F crosses the level, by more than its rounding."""
    side = np.sign(value - level) * (np.abs(value - level) > _NOISE * level)
    told = np.flatnonzero(side)
    if not told.size:
        return np.zeros(len(value) - 1, bool)
    last_told = told[np.maximum(np.searchsorted(told, np.arange(len(value)), side="right") - 1, 0)]
    return np.diff(side[last_told]) != 0


@jax.jit
def _knots_at(table: OnePoint, t: Array, bias: Array) -> _Knots:
    moments = jax.vmap(lambda t: table.of_log_q(t))(t)
    return _knots(t, moments[:, 0], moments[:, 2], bias)


@jax.jit
def _roots_at(table: OnePoint, knots: _Knots, pieces: Array, level: Array, bias: Array) -> tuple[Array, ...]:
    q = jax.vmap(lambda piece: _root(table, knots, piece, level, bias))(pieces)
    return q, *jax.vmap(lambda q: _at(table, q, level))(q)


@functools.partial(jax.jit, static_argnums=2)
def _map(table: OnePoint, t: Array, origin: int, levels: Array, biases: Array) -> tuple[Array, ...]:
    """q*, chi, slope and status of every (level, bias), shapes ``(levels, biases)``.

    From the start, t[origin], iteration climbs to the next crossing above where the level exceeds F, or falls to the
    next below: the first knot at which a running extremum of F passes the level. (Where E phi^2 falls with q, iteration
    overshoots and may circle; the fixed point it circles, or settles in, is taken to be that one.)
    """
    moments = jax.vmap(lambda t: table.of_log_q(t))(t)
    here = 3 * origin

    def row(bias: Array) -> tuple[Array, ...]:
        knots = _knots(t, moments[:, 0], moments[:, 2], bias)
        above, below = knots.value[here:], knots.value[here::-1]
        climb = jnp.searchsorted(jax.lax.cummax(above), levels * (1 + _NOISE))
        fall = jnp.searchsorted(-jax.lax.cummin(below), -levels * (1 - _NOISE))
        up = levels > above[0]
        last = len(knots.value) - 2
        piece = jnp.clip(jnp.where(up, here + climb - 1, here - fall), 0, last)
        q = jax.vmap(lambda piece, level: _root(table, knots, piece, level, bias))(piece, levels)
        constant = _constant(knots.value, levels)
        lower, upper = jnp.minimum(knots.value[1:], knots.value[:-1]), jnp.maximum(knots.value[1:], knots.value[:-1])
        count = jnp.searchsorted(jnp.sort(lower), levels * (1 - _NOISE))
        count -= jnp.searchsorted(jnp.sort(upper), levels * (1 + _NOISE))
        q = jnp.where(up & (climb == len(above)), jnp.inf, jnp.where(~up & (fall == len(below)), 0, q))
        q = jnp.where(constant, jnp.exp(t[origin]), q)
        chi, slope = jax.vmap(lambda q, level: _at(table, q, level))(q, levels)
        status = jnp.where(count > 1, SEVERAL, CONVERGED)
        for code, holds in ((OSCILLATES, slope < -1), (UNBOUNDED, jnp.isinf(q)), (ZERO, q == 0), (EVERY, constant)):
            status = jnp.where(holds, code, status)
        return q, chi, slope, status

    return jax.tree.map(jnp.transpose, jax.lax.map(row, biases))
