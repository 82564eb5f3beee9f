"""Where a measured rate crosses a target: sweeps of a few points, closer and closer around the crossing.

All points are of the same draws, so that each draw's rate is one function of the scale: what differs between two points
is the scale alone, and the crossing of the mean is far sharper than the spread of the draws.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from vgjax.initializers import Scale

POINTS = 8
"""Points of every sweep: always as many, so that one compiled program serves all of them. A sweep draws all weights
once more, which costs about what eight points do."""
_ROUNDS = 24
"""Sweeps at most around a crossing; every second one at least narrows it by a factor of 7."""
NEAR = 3.0
"""Standard errors to each side of a crossing that its neighbourhood reaches: POINTS of them are then less than one
apart, and the slope is that over what the error spans, also where chaos makes a rate rough on smaller scales."""
_RESOLUTION = 4 * float(np.finfo(np.float32).eps)
"""Relative distance of two values of a scale below which float32 does not tell their rates apart."""
_WIDENINGS = 2
_FACTOR = 4.0


class Crossing(NamedTuple):
    """Where the mean rate crosses the target.

    Attributes:
        value: of the scale; NaN where there is none.
        rates: of every draw there, shape ``(seeds,)``.
        slope: of the mean rate there, by the scale.
        bracket: two measured values between which it lies.
        reason: why there is none; empty if there is one.
    """

    value: float
    rates: np.ndarray
    slope: float
    bracket: tuple[float, float]
    reason: str = ""

    @property
    def standard_error(self) -> float:
        """Of the value, by the delta method: that of the mean rate, over the slope."""
        with np.errstate(divide="ignore"):
            return float(np.std(self.rates, ddof=1) / np.sqrt(len(self.rates)) / np.abs(self.slope))


class _Measured(NamedTuple):
    """Rates of every draw at increasing values; shapes ``(points,)`` and ``(seeds, points)``."""

    values: np.ndarray
    rates: np.ndarray

    def joined(self, values: np.ndarray, rates: np.ndarray) -> "_Measured":
        """With further points; of a value measured twice the first."""
        all_values, first = np.unique([*self.values, *values], return_index=True)
        return _Measured(all_values, np.concatenate([self.rates, rates], axis=1)[:, first])

    @property
    def mean(self) -> np.ndarray:
        """Over draws, shape ``(points,)``; -inf where a draw's is, NaN where a draw has none."""
        with np.errstate(invalid="ignore"):
            return self.rates.mean(axis=0)

    def cell(self, target: float) -> int | None:
        """The point before the first crossing; None if there is none. What is NaN is on neither side."""
        below, known = self.mean < target, ~np.isnan(self.mean)
        crosses = known[:-1] & known[1:] & (below[:-1] != below[1:])
        return int(crosses.argmax()) if crosses.any() else None


def crossing(
    rates: Callable[[np.ndarray], np.ndarray], grids: Iterable[np.ndarray], target: float, tolerance: float
) -> Crossing:
    """The first crossing of the mean rate and a target on the first of some grids that has one, closed in on.

    Args:
        rates: of every draw at some values, shape ``(seeds, points)`` from ``(points,)``; -inf is below any target, NaN
            on neither side.
        grids: where to look, in order; each of shape ``(points,)``.
        target: the rate that is sought.
        tolerance: bracket at which to stop, where the standard error is not larger anyway.
    """
    measured = None
    for grid in grids:
        found = rates(grid)
        measured = (measured or _Measured(np.empty(0), np.empty((len(found), 0)))).joined(grid, found)
        if measured.cell(target) is not None:
            return _closed_in(rates, measured, target, tolerance)
    assert measured is not None
    return _none(measured, _why_none(measured, target))


def _closed_in(
    rates: Callable[[np.ndarray], np.ndarray], measured: _Measured, target: float, tolerance: float
) -> Crossing:
    """Sweep after sweep, each around where the last ones expect the crossing."""
    before = np.inf
    for _ in range(_ROUNDS):
        i = measured.cell(target)
        if i is None:
            return _none(measured, _why_none(measured, target))
        found, (low, high) = _interpolated(measured, i, target), measured.values[i : i + 2]
        enough = max(tolerance, _RESOLUTION * max(abs(low), abs(high)))
        if high - low <= max(enough, np.nan_to_num(found.standard_error, posinf=0.0)):
            break
        grid = _neighbourhood(measured, i, found, target, enough)
        if high - low > before / 2 or np.isnan(found.value):  # the last one was beside it: evenly where it must be
            grid = np.linspace(low, high, POINTS + 2)[1:-1]
        before = high - low
        measured = measured.joined(grid, rates(grid))
    if np.isnan(found.value):
        ends = " to ".join(f"{mean:.4g}" for mean in measured.mean[np.isin(measured.values, found.bracket)])
        return found._replace(reason=f"the rate jumps from {ends} between {low:.6g} and {high:.6g}")
    return found


def _interpolated(measured: _Measured, i: int, target: float) -> Crossing:
    """What is known of the crossing behind a point: linear between it and the next; where it is one of several within
    its error, as in chaos, that of the line through all of these."""
    (low, high), (below, above) = measured.values[i : i + 2], measured.rates[:, i : i + 2].T
    bracket = float(low), float(high)
    if not np.isfinite(measured.mean[i : i + 2]).all():
        return Crossing(np.nan, np.full(len(below), np.nan), np.nan, bracket)
    rise = above.mean() - below.mean()
    share = (target - below.mean()) / rise
    value, rates = low + share * (high - low), below + share * (above - below)
    secant = Crossing(float(value), rates, float(rise / (high - low)), bracket)
    reach = max(1.01 * NEAR * secant.standard_error, high - low)
    near = (np.abs(measured.values - value) <= reach) & np.isfinite(measured.mean)
    values, mean = measured.values[near], measured.mean[near]
    slope, excess = (float(each) for each in np.polyfit(values - value, mean - target, 1))
    (turns,) = np.nonzero((mean[:-1] < target) != (mean[1:] < target))
    if len(turns) == 1 or not slope:
        return secant._replace(slope=slope)
    # The first of several would lie too low, by about their error.
    middle = float(np.clip(value - excess / slope, values[0], values[-1]))
    rates = np.array([np.interp(middle, values, each) for each in measured.rates[:, near]])
    return Crossing(middle, rates, slope, (float(values[turns[0]]), float(values[turns[-1] + 1])))


def _neighbourhood(measured: _Measured, i: int, found: Crossing, target: float, enough: float) -> np.ndarray:
    """The next points: as far around the crossing as the draws and the interpolation leave it open."""
    if np.isnan(found.value):
        return np.empty(0)
    from scipy.interpolate import PchipInterpolator

    near = [k for k in range(max(i - 1, 0), min(i + 3, len(measured.values))) if np.isfinite(measured.mean[k])]
    roots = PchipInterpolator(measured.values[near], measured.mean[near]).solve(target, extrapolate=False)
    value = min(roots, key=lambda root: abs(root - found.value), default=found.value)
    half = max(NEAR * found.standard_error, 2 * abs(value - found.value), enough)
    return np.linspace(max(value - half, measured.values[0]), min(value + half, measured.values[-1]), POINTS)


def _none(measured: _Measured, reason: str) -> Crossing:
    nowhere = np.full(len(measured.rates), np.nan)
    return Crossing(np.nan, nowhere, np.nan, (float(measured.values[0]), float(measured.values[-1])), reason)


def _why_none(measured: _Measured, target: float) -> str:
    mean, (low, *_, high) = measured.mean, measured.values
    where, lost = f"from {low:.6g} to {high:.6g}", int(np.isnan(mean).sum())
    if lost == len(mean):
        return f"the rate is NaN {where}"
    behind = f"; it is NaN at {lost} of {len(mean)} points" if lost else ""
    if (mean < target).any() and (mean >= target).any():
        return f"the rate crosses {target:g} {where}, but where it is NaN{behind}"
    if np.nanmax(mean) < target:
        return f"the rate stays below {target:g} {where}: it comes up to {np.nanmax(mean):.4g}{behind}"
    return f"the rate stays above {target:g} {where}: it comes down to {np.nanmin(mean):.4g}{behind}"


# --- where to look --------------------------------------------------------------------------------------------------


def search_grids(scale: Scale, between: tuple[float, float] | None) -> Iterator[np.ndarray]:
    """Coarse grids of a scale, each around the one before; between two values that alone.

    Factors of the default, positive ones: half to twice, then 4 and 16 times as far. Offsets: 4 below the default to 4
    above, then 16 and 64. Rates: 0 to 0.95. Where the default is 0: 0 to 1, then 4 and 16.
    """
    default = abs(scale.first)
    if between is not None:
        yield _between(*between)
    elif scale.kind == "rate":
        yield np.linspace(0, 0.95, POINTS)
    elif scale.kind == "offset":
        yield np.linspace(scale.first - _FACTOR, scale.first + _FACTOR, POINTS)
        for k in range(1, _WIDENINGS + 1):
            beyond = np.geomspace(_FACTOR**k, _FACTOR ** (k + 1), POINTS // 2 + 1)[1:]
            yield scale.first + np.concatenate([-beyond[::-1], beyond])
    elif default == 0:
        yield np.linspace(0, 1, POINTS)
        for k in range(_WIDENINGS):
            yield np.geomspace(_FACTOR**k, _FACTOR ** (k + 1), POINTS + 1)[1:]
    else:
        yield np.geomspace(default / 2, default * 2, POINTS)
        for k in range(_WIDENINGS):
            beyond = np.geomspace(2 * _FACTOR**k, 2 * _FACTOR ** (k + 1), POINTS // 2 + 1)[1:]
            yield default * np.concatenate([1 / beyond[::-1], beyond])


def grids_near(scale: Scale, between: tuple[float, float] | None, value: float, half: float) -> Iterator[np.ndarray]:
    """Around an expected value, then four times as far, then those of `search_grids`."""
    least = {"parameter": 0.0, "rate": 0.0, "divisor": abs(value) / 8}.get(scale.kind, -np.inf)
    low, high = between or (least, 0.99 if scale.kind == "rate" else np.inf)
    for reach in (half, _FACTOR * half):
        ends = max(value - reach, low), min(value + reach, high)
        if ends[0] < ends[1]:
            yield np.linspace(*ends, POINTS)
    yield from search_grids(scale, between)


def _between(low: float, high: float) -> np.ndarray:
    """By factors if the ends are far apart in them."""
    return np.geomspace(low, high, POINTS) if 0 < 2 * low < high else np.linspace(low, high, POINTS)
