"""Pieces: where a function has to be split so that one polynomial resolves it on every part.

Found once per function by bisection. Kinks, jumps, steep steps and oscillations then cost panels, not digits.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax.activations import Activation
from vgjax.checks import untraced
from vgjax.theory._quadrature import ORDER, rule

MOST_PIECES = 4096  # sin(u) needs one every 6, so that it is resolved up to |u| = 12,000
REACH = 12  # standard deviations: the Gaussian mass beyond, exp(-12^2 / 2) = 5e-32, is below any rounding

_FARTHEST = 2.0**20  # q = (2^20 / 12)^2 = 7.6e9, above the tables' end of 1e9
_NARROWEST = 2.0**-45  # relative: the last bisections that still move an edge in float64
_NARROW = 2.0**-20  # a smooth function is resolved long before: a piece like that betrays a kink of phi or of phi'
_TAIL = 24  # Legendre coefficients from this one on have to vanish: 8 of them, since parity hides every other one
_RESOLVED = 2e-14  # of the largest value: a hundred roundings, since 32 of them add up in a coefficient
_UNBOUNDED, _STEEP = 0.1, 0.02  # powers of 1 / distance to which phi and phi' may grow: a logarithm looks like 0.05
_AT_ONCE = 4096  # points in one call of phi
_INFINITE = 0.495  # from 1/2 on the square has no mean

Values: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Points -> phi and phi' there."""


@dataclass(frozen=True)
class Pieces:
    """Where a function has to be split so that a polynomial resolves every piece.

    Attributes:
        edges: ends of the pieces, increasing.
        kinks: those edges at which the function or its slope is not smooth.
        jumps: where the function jumps, or is so steep that its squared slope has no mean (the root of |u|).
        reach: |u| up to which the pieces resolve it: 2^20, or less where it overflows or oscillates too often.
        overflows: the function leaves the float range before 2^20 (it grows exponentially).
    """

    edges: tuple[float, ...]
    kinks: tuple[float, ...]
    jumps: tuple[float, ...]
    reach: float
    overflows: bool

    def within(self, reach: float) -> "Pieces":
        """The pieces that begin within that distance from 0; all, if they are few (each set is compiled for)."""
        if len(self.edges) <= 128:
            return self
        last = min((abs(e) for e in self.edges if abs(e) >= reach), default=self.reach)
        edges = tuple(e for e in self.edges if abs(e) <= last)
        return replace(self, edges=edges, reach=min(self.reach, last))

    def innermost(self, most: int) -> "Pieces":
        """No more than about that many pieces."""
        if len(self.edges) <= most:
            return self
        return self.within(sorted(map(abs, self.edges))[most])

    @property
    def largest_variance(self) -> float:
        """q up to which expectations are right."""
        return (self.reach / REACH) ** 2


def pieces(phi: Activation, kinks: Iterable[float] = ()) -> Pieces:
    """The pieces on which both phi and phi' are polynomials, to rounding; kinks that phi does not declare are found."""
    return _pieces(phi, tuple(sorted({*phi.kinks, *map(float, kinks)})))


@functools.cache
@untraced
def _pieces(phi: Activation, kinks: tuple[float, ...]) -> Pieces:
    with jax.enable_x64(True):
        values = _values(phi)
        reach, overflows = _reach(phi.name, values)
        steep = _singularities(phi.name, values, min(reach, 1e3))
        measure = _Resolution(values, reach)
        known = tuple(kink for kink in kinks if abs(kink) < reach)
        edges, narrow = _bisect(measure, known, reach)
        if narrow:
            known = tuple(sorted({*known, *_kinks(narrow)}))
            edges, _ = _bisect(measure, known, reach)
        edges = _merged(measure, edges, known)
        points = np.array(known)
        step = 1e-11 * np.maximum(1, np.abs(points))
        left, right = (values(points + sign * step)[0] for sign in (-1, 1))
        jumps = np.abs(right - left) > 1e-4 * np.maximum(1e-3, np.abs(left) + np.abs(right))
    resolved = max(0.0, float(min(-edges[0], edges[-1])))
    return Pieces(tuple(edges.tolist()), known, (*points[jumps].tolist(), *steep), resolved, overflows)


def _values(phi: Activation) -> Values:
    """phi and phi' at points of any shape, float64, shape ``(2, *points)``: one compilation for all numbers of them."""

    @jax.jit
    def both(u: Array) -> Array:
        return jnp.stack([phi(u), phi.derivative(u)])

    def values(points: np.ndarray) -> np.ndarray:
        rows = np.resize(points, (-(-points.size // _AT_ONCE), _AT_ONCE))
        found = [np.asarray(both(row)) for row in rows] or [np.empty((2, 0))]
        return np.concatenate(found, axis=1)[:, : points.size].reshape(2, *points.shape)

    return values


def _reach(name: str, values: Values) -> tuple[float, bool]:
    """How far out phi^2 and phi' are finite, and whether that is short of the farthest."""
    grid = 1.00713 * 2.0 ** np.arange(0, 20.01, 1 / 16)  # off round numbers, where slopes may be infinite
    found = values(np.stack([grid, -grid]))
    with np.errstate(over="ignore", invalid="ignore"):
        finite: np.ndarray = np.all(np.isfinite(found**2), axis=(0, 1))
    if finite.all():
        return _FARTHEST, False
    if not finite[0]:
        raise ValueError(f"activation {name!r} must be finite, got an infinity or NaN near |h| = 1")
    last = int(finite.argmin()) - 1
    with np.errstate(divide="ignore"):
        log = np.log(np.abs(found[0]).max(axis=0))
    half = int(np.abs(grid - grid[last] / 2).argmin())
    rate, rate_at_half = (log[i] / grid[i] ** 2 for i in (last, half))
    if rate_at_half < 1.3 * rate:  # ln |phi| / h^2 no longer falls
        raise ValueError(
            f"activation {name!r} must have a second moment under every Gaussian, got growth like "
            f"exp({rate:.2g} h^2): E phi^2 is infinite from q = {1 / (4 * rate):.2g} on"
        )
    return float(grid[last]), True


def _singularities(name: str, values: Values, reach: float) -> list[float]:
    """Where the slope grows like |u - a|^-s, s >= 1/2, next to some a; a power that quadrature cannot do is refused."""

    def sizes(u: np.ndarray) -> np.ndarray:
        return np.nan_to_num(np.abs(values(u)), nan=0)

    grid = np.sinh(np.linspace(-1.00071, 1, 1 << 13) * np.arcsinh(reach))
    first, found = sizes(grid), []
    for of_slope, size in enumerate(first):
        peaks = 1 + np.flatnonzero((size[1:-1] >= size[:-2]) & (size[1:-1] > size[2:]))
        peaks = peaks[np.argsort(-size[peaks], kind="stable")[:64]]
        if not peaks.size:
            continue
        at, width = np.resize(grid[peaks], 64), np.resize(np.diff(grid)[peaks], 64)
        for _ in range(12):  # ever closer to each peak
            near = at[:, None] + width[:, None] * np.linspace(-1, 1, 17)
            at = near[np.arange(64), sizes(near)[of_slope].argmax(axis=1)]
            width = width / 8
        away = np.array([1e-8, 1e-6, 1e-4]) * np.maximum(1, np.abs(at))[:, None]
        around = np.maximum(*(sizes(at[:, None] + side * away)[of_slope] for side in (-1, 1)))
        power = -np.diff(np.log10(np.maximum(around, 1e-300)), axis=1).max(axis=1) / 2
        beyond = (power > (_UNBOUNDED, _STEEP)[of_slope]) & (
            around[:, 0] > 1e-6 * size.max()
        )  # no rounding of larger things
        if beyond.any():
            worst = int(np.where(beyond, np.abs(at), np.inf).argmin())
            if not (of_slope and power[worst] > _INFINITE):
                moment = ("phi^2", "phi'^2")[of_slope]
                fate = "infinite" if power[worst] > _INFINITE else "beyond quadrature"
                raise ValueError(
                    f"activation {name!r} must not have {('a pole', 'a slope')[of_slope]} like "
                    f"|h - a|^-{power[worst]:.2g}, got one at a = {at[worst]:.5g}: E {moment} is {fate}"
                )
            found.append(float(at[worst]))
    return found


class _Resolution:
    """How well one polynomial resolves phi and phi' on intervals."""

    batch = _AT_ONCE // (ORDER + 2)  # one call of phi for all their nodes and ends

    def __init__(self, values: Values, reach: float):
        self._values, degrees = values, np.arange(ORDER)
        nodes, weights = rule()
        # The two ends as well: a jump between the last node and the end would go unseen.
        self._points = np.concatenate([nodes, [-1 + 1e-13, 1 - 1e-13]])
        legendre = np.polynomial.legendre.legvander(nodes, ORDER - 1)
        self._coefficients = legendre * weights[:, None] * (2 * degrees + 1) / 2
        self._at_ends = np.stack([(-1.0) ** degrees, np.ones(ORDER)], axis=1)
        self._radii = reach * 2.0 ** np.arange(-40, 0.01, 0.25)
        size = np.abs(values(np.stack([-self._radii, self._radii]))).max(axis=1)
        self._size = np.maximum.accumulate(np.nan_to_num(size), axis=1)
        # What is smaller than that is the rounding of larger things (1 - tanh^2 where it is 0).
        self._least = 1e-2 * np.maximum(self._size[:, np.searchsorted(self._radii, 8.0)], 1e-200)[:, None]

    def __call__(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """The tails of the Legendre coefficients of phi and phi' on each interval, in units of their largest value up
        to its inner half; shape ``(2, intervals)``."""
        near, far = np.minimum(np.abs(low), np.abs(high)), np.maximum(np.abs(low), np.abs(high))
        at = np.searchsorted(self._radii, np.maximum(near, far / 2)).clip(max=len(self._radii) - 1)
        values = self._values((low + high)[:, None] / 2 + (high - low)[:, None] / 2 * self._points)
        with np.errstate(invalid="ignore", over="ignore"):
            coefficients = values[..., :-2] @ self._coefficients
            ends = np.abs(coefficients @ self._at_ends - values[..., -2:]).max(axis=-1) / ORDER
            tails = np.maximum(np.abs(coefficients[..., _TAIL:]).max(axis=-1), ends)
        return tails / np.maximum(self._size[:, at], self._least)


def _bisect(
    measure: _Resolution, kinks: tuple[float, ...], reach: float
) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Edges such that every piece is resolved, innermost first, and those that had to be tiny."""
    # Odd numbers, not symmetric: a kink that fell on an edge would not be noticed.
    start = np.array([0.2537, 0.5171, 1.0391, 2.0193, 4.0717, 8.1131, 65.317, 1031.7, 33013.0])
    start = np.array([*(-1.0171 * start), 0.0173, *start])
    for kink in kinks:  # an edge beside a kink would leave a sliver between them
        start = start[np.abs(start - kink) > 0.2 * np.maximum(1, np.abs(start))]
    edges = np.unique(np.concatenate([start[np.abs(start) < reach], kinks, [-reach, reach]]))
    low, high, before = edges[:-1], edges[1:], np.full((2, len(edges) - 1), np.inf)
    done: list[tuple[float, float]] = []
    narrow: list[tuple[float, float]] = []
    while len(low) and len(done) < MOST_PIECES:
        order = np.argsort(np.minimum(np.abs(low), np.abs(high)), kind="stable")
        low, high, before = low[order], high[order], before[:, order]
        a, b, parent = low[: measure.batch], high[: measure.batch], before[:, : measure.batch]
        tail = measure(a, b)
        # What is small and does not improve under bisection is the rounding of phi itself.
        resolved = ((tail <= _RESOLVED) | ((tail < 1e-9) & (tail > 0.7 * parent))).all(axis=0)
        size = np.maximum(1, np.maximum(np.abs(a), np.abs(b)))
        stuck = ~resolved & (b - a <= _NARROWEST * size)
        tiny = (stuck | resolved) & (b - a < _NARROW * size)
        narrow += zip(a[tiny], b[tiny], strict=True)
        done += zip(a[resolved | stuck], b[resolved | stuck], strict=True)
        split = ~(resolved | stuck)
        a, b, tail = a[split], b[split], tail[:, split]
        wide = (a * b > 0) & (np.maximum(np.abs(a), np.abs(b)) > 4 * np.minimum(np.abs(a), np.abs(b)))
        middle = np.where(wide, np.sign(a) * np.sqrt(np.abs(a * b)), (a + b) / 2)
        low = np.concatenate([a, middle, low[measure.batch :]])
        high = np.concatenate([middle, b, high[measure.batch :]])
        before = np.concatenate([tail, tail, before[:, measure.batch :]], axis=1)
    if len(low):  # out of budget: resolved up to the innermost that is left
        reach = float(np.minimum(np.abs(low), np.abs(high)).min())
    inside = np.unique([edge for piece in done for edge in piece])
    return inside[np.abs(inside) <= reach], narrow


def _kinks(narrow: list[tuple[float, float]]) -> list[float]:
    """Where a function is not smooth: one point for each group of tiny neighbours, in the tiniest of them."""
    low, high = np.array(sorted(narrow)).T
    groups = np.split(
        np.arange(len(low)), np.flatnonzero(low[1:] - high[:-1] > 1e-4 * np.maximum(1, np.abs(low[1:]))) + 1
    )
    found = []
    for group in groups:
        width = (high - low)[group]
        tiniest = group[width <= 1.01 * width.min()]
        found.append(float((low[tiniest[0]] + high[tiniest[-1]]) / 2))
    return found


def _merged(measure: _Resolution, edges: np.ndarray, kinks: tuple[float, ...]) -> np.ndarray:
    """Fewer edges: neighbours between kinks become one piece where it is resolved as well.

    Not over more than a factor of 4 in |u|, or 8 in width: what is narrow would hide between the nodes of a wide piece.
    """

    def one_piece(low: float, high: float, narrowest: float) -> bool:
        wide = high - low > 8 * narrowest or max(abs(low), abs(high)) > max(2, 4 * min(abs(low), abs(high)))
        return not wide and bool(measure(np.array([low]), np.array([high])).max() <= _RESOLVED)

    kept, narrowest = [edges[0]], edges[1] - edges[0]
    pairs = measure(edges[:-2], edges[2:]).max(axis=0) <= _RESOLVED  # all at once: most neighbours cannot
    for here, after, paired in zip(edges[1:-1], edges[2:], pairs, strict=True):
        if here in kinks or not paired or not one_piece(kept[-1], after, min(narrowest, after - here)):
            kept.append(here)
            narrowest = np.inf
        narrowest = min(narrowest, after - here)
    return np.array([*kept, edges[-1]])
