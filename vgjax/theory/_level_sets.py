"""Level sets of F(q) = (q - sigma_b^2) / E phi^2: the fixed points of the q map at every sigma_w^2, for one sigma_b.

F is a Hermite cubic on each interval of a grid of ln q, cut where it turns: between its knots it is monotone, so that
running extrema and `searchsorted` find the crossings of many levels at once, and Newton's steps on the table of
moments itself make them right to rounding.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

from vgjax.activations import Activation
from vgjax.theory._moments import MomentTable, moment_table

ONE, SEVERAL, ZERO, UNBOUNDED, EVERY, OSCILLATES = range(6)
"""What becomes of q; `OSCILLATES` is for the caller to tell."""

_PER_LOG = 16  # grid points to each unit of ln q: the cubic's error, step^4 F'''' / 384, is then below 1e-7 of F
_BISECTIONS, _NEWTON = 20, 2  # 2^-20 of 1 / 16, then squared twice: rounding
_MOST_ROOTS = 8
_NOISE = 2e-13  # rounding of F, relative: where F is flat at the level itself it crosses nothing
_CONSTANT = 1e-11  # relative range of F within which every q counts as a fixed point (ReLU): 23 decades of rounding
_TINY = 1e-60  # the least E phi^2: below, a fixed point is sigma_b^2 to its last digit
_LEAST = 1e-305  # in place of q = 0
_ROUNDED = 1e-7  # what extrapolation leaves of SELU's E phi^2 / q at infinity is 8e-9
_STEEP = 1 / 8  # change of ln E phi^2 between grid points that the cubics resolve as well


def first_crossings(
    phi: Activation, q0: float, levels: np.ndarray, biases: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """q* and status of every (level, bias) = (sigma_w^2, sigma_b^2); all of shape ``(points,)``.

    From q0 iteration climbs to the next crossing above where the level exceeds F, or falls to the next below: the first
    knot at which a running extremum of F passes the level. (Where E phi^2 falls with q, iteration overshoots and may
    circle; the fixed point it circles, or settles in, is taken to be that one.)
    """
    samples, order = _samples(phi, q0), np.argsort(biases, kind="stable")
    levels, biases = levels[order], biases[order]
    unique, starts = np.unique(biases, return_index=True)
    parts = zip(unique, np.split(levels, starts[1:]), strict=True)
    rows = [_row(_knots(samples, bias), samples.origin, of_bias) for bias, of_bias in parts]
    grows, decays, constant, several, *brackets = (np.concatenate(part) for part in zip(*rows, strict=True))
    table = moment_table(phi)
    found = np.where(constant, q0, _roots(table, _Brackets(*brackets), levels, biases))
    for end, beyond in enumerate((decays & ~constant, grows & ~constant)):
        if beyond.any():
            found[beyond] = _beyond(table, end, levels[beyond], biases[beyond])
    q, status = np.empty_like(levels), np.empty(len(levels), int)
    q[order] = found
    status[order] = np.select([constant, np.isinf(found), found == 0, several], [EVERY, UNBOUNDED, ZERO, SEVERAL], ONE)
    return q, status


def all_crossings(phi: Activation, level: float, bias: float) -> np.ndarray:
    """Every isolated fixed point within the table, increasing; the first few of infinitely many."""
    samples = _samples(phi, 1.0)
    knots = _knots(samples, bias)
    if _constant(knots.value, level):
        return np.empty(0)
    cells = np.flatnonzero(crossed(knots.value, level, _NOISE * level))[:_MOST_ROOTS]
    return _roots(moment_table(phi), _brackets(knots, cells), np.full(cells.shape, level), bias)


class _Samples(NamedTuple):
    """Moments along a grid of ln q with q0 on it, ``(points,)`` each, its steps, and the index of q0."""

    t: np.ndarray
    q: np.ndarray
    square: np.ndarray
    rate: np.ndarray  # d ln E phi^2 / d ln q
    step: np.ndarray
    origin: int


class _Knots(NamedTuple):
    """F along ln q: every grid interval has three pieces (a cubic turns at most twice), some of no length."""

    t: np.ndarray  # shape (3 intervals + 1,)
    value: np.ndarray  # of F there
    cubic: np.ndarray  # F on each interval as a cubic of its own coordinate in [0, 1], shape (intervals, 4)


class _Brackets(NamedTuple):
    """Pieces of F, one for each root that is looked for."""

    low: np.ndarray  # ends in ln q
    high: np.ndarray
    rising: np.ndarray  # whether F rises between them
    cubic: np.ndarray  # as in `_Knots`
    left: np.ndarray  # ln q where its coordinate is 0
    step: np.ndarray  # and from there to where it is 1


@functools.lru_cache(64)
def _samples(phi: Activation, q0: float) -> _Samples:
    """Over the whole table, closer where E phi^2 is steep."""
    table = moment_table(phi)
    first, low, high = math.log(q0), math.log(table.low), math.log(table.high)
    if not low < first < high:
        raise ValueError(f"q0 must lie between {table.low:.2g} and {table.high:.2g}, got {q0}")
    steps = np.arange(math.ceil((low - first) * _PER_LOG), math.floor((high - first) * _PER_LOG) + 1)
    t = first + steps / _PER_LOG
    moved = np.abs(np.diff(np.log(np.maximum(table.of_log_q(t)[0], _TINY))))
    place = np.concatenate([[0], np.cumsum(np.maximum(1, np.ceil(moved / _STEEP - 0.01)))])
    t = np.interp(np.arange(place[-1] + 1), place, t)
    square, _, growth = table.of_log_q(t)
    known = square > _TINY
    square, rate = np.where(known, square, _TINY), np.where(known, growth / np.where(known, square, 1), 0)
    return _Samples(t, np.exp(t), square, rate, np.diff(t), int(place[-steps[0]]))


def _knots(samples: _Samples, bias: float) -> _Knots:
    """Hermite cubics of F from E phi^2 and its slope, for one bias variance."""
    t, q, square, rate, step, _ = samples
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        value = (q - bias) / square
        slope = q / square - value * rate
        rise, first, last = value[1:] - value[:-1], slope[:-1] * step, slope[1:] * step
        a, b, c = first, 3 * rise - 2 * first - last, first + last - 2 * rise
        inside = b * b - 3 * a * c
        root = b + np.where(b < 0, -1, 1) * np.sqrt(np.maximum(inside, 0))  # both roots without cancellation
        turns = np.stack([-root / (3 * c), -a / root])
        turns = np.where((turns > 0) & (turns < 1) & (inside > 0), turns, 0)
        x = np.stack([np.zeros_like(a), turns.min(axis=0), turns.max(axis=0)])
        cubic = np.stack([value[:-1], a, b, c])
        between = _polynomial(cubic[:, None], x)
    return _Knots(np.append((t[:-1] + step * x).T.ravel(), t[-1]), np.append(between.T.ravel(), value[-1]), cubic.T)


def _polynomial(cubic: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Of coefficients along the first axis."""
    return cubic[0] + x * (cubic[1] + x * (cubic[2] + x * cubic[3]))


def _row(knots: _Knots, origin: int, levels: np.ndarray) -> tuple[np.ndarray, ...]:
    """For the levels of one bias: whether q grows, decays, is fixed everywhere, has several fixed points; and the
    bracket of the one it reaches."""
    here, last = 3 * origin, len(knots.value)
    less, more = levels * (1 - _NOISE), levels * (1 + _NOISE)
    above, below = knots.value[here:], knots.value[here::-1]
    climb = np.searchsorted(np.maximum.accumulate(above), more)
    fall = np.searchsorted(-np.minimum.accumulate(below), -less)
    up = levels > above[0]
    piece = np.clip(np.where(up, here + climb - 1, here - fall), 0, last - 2)
    lower, upper = _runs(knots.value)
    several = np.searchsorted(lower, less) - np.searchsorted(upper, more) > 1
    ends = up & (climb == len(above)), ~up & (fall == len(below))
    return *ends, _constant(knots.value, levels), several, *_brackets(knots, piece)


def _brackets(knots: _Knots, piece: np.ndarray) -> _Brackets:
    """Between knots ``piece`` and ``piece + 1``."""
    interval = np.minimum(piece // 3, len(knots.cubic) - 1)
    rising = knots.value[piece + 1] >= knots.value[piece]
    left = knots.t[3 * interval]
    step = knots.t[3 * interval + 3] - left
    return _Brackets(knots.t[piece], knots.t[piece + 1], rising, knots.cubic[interval], left, step)


def _roots(table: MomentTable, brackets: _Brackets, level: np.ndarray, bias: np.ndarray | float) -> np.ndarray:
    """q where F crosses the level in each bracket: by bisection of the cubic, then Newton's steps on the table itself;
    shape of the level."""
    low, high, rising, cubic, left, step = brackets
    cubic = np.ascontiguousarray(cubic.T)
    cubic[0] -= level
    a, b = (low - left) / step, (high - left) / step
    for _ in range(_BISECTIONS):
        middle = (a + b) / 2
        above = (_polynomial(cubic, middle) > 0) == rising
        a, b = np.where(above, a, middle), np.where(above, middle, b)
    t = left + step * (a + b) / 2
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for _ in range(_NEWTON):
            square, _, growth = table.of_log_q(t)
            q_next = level * square + bias
            t = np.clip(t - (np.log(q_next) - t) / (level * growth / q_next - 1), low, high)
    return np.exp(t)


def _beyond(table: MomentTable, end: int, level: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The fixed point below the table (end 0) or above it (end 1), by the powers that moments are there; 0 or infinity
    if there is none; shape of the level."""
    from scipy.optimize.elementwise import find_root

    def excess(t: np.ndarray, level: np.ndarray, bias: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(level * table(np.exp(t)).square + bias, _LEAST)) - t

    tends = level * table.limits(end)[0] - 1  # of ln q from a layer to the next, at the end itself
    exists = (bias > 0) | (tends > _ROUNDED) if end == 0 else tends < -_ROUNDED
    level, bias, q = level[exists], bias[exists], np.full(level.shape, (0.0, np.inf)[end])
    least = np.log(np.maximum(bias, _LEAST))
    low, high = (least, math.log(table.low)) if end == 0 else (math.log(table.high), -math.log(_LEAST))
    found = find_root(excess, np.broadcast_arrays(low, high, level)[:2], args=(level, bias))
    q[exists] = np.where(found.status == -1, q[exists], np.exp(found.x))
    return q


def _constant(value: np.ndarray, level: np.ndarray | float) -> np.ndarray:
    """Every q is a fixed point: F is the level everywhere. From its extremes, once for all levels."""
    return np.maximum(value.max() - level, level - value.min()) <= _CONSTANT * np.asarray(level)


def crossed(value: np.ndarray, level: float, noise: np.ndarray | float) -> np.ndarray:
    """The cells between points in which a curve crosses the level by more than its rounding; where rounding hides it
    for a stretch, the last cell of that."""
    told = np.flatnonzero(np.abs(value - level) > noise)
    turns = np.flatnonzero(np.diff(np.sign(value[told] - level)))
    cells = np.zeros(len(value) - 1, bool)
    cells[told[turns + 1] - 1] = True
    return cells


def _runs(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends of the stretches on which F is monotone, each sorted."""
    moves = np.flatnonzero(np.diff(value))
    if not moves.size:
        return value[:0], value[:0]
    turns = moves[np.flatnonzero(np.diff(np.sign(np.diff(value)[moves])))] + 1
    ends = value[[0, *turns, -1]]
    return np.sort(np.minimum(ends[1:], ends[:-1])), np.sort(np.maximum(ends[1:], ends[:-1]))
