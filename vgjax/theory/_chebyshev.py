"""Piecewise Chebyshev interpolants in one and two dimensions: what makes theory on a whole map cheap.

They read JAX arrays one point at a time, for use under `jit` and in scans over layers, and numpy arrays many points at
once, sorted by segment: a whole map then needs no compilation.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

DEGREE = 24  # with segments of length 2 in ln q: 3.4^-24 = 1e-13, see `_moments`
_ANGLES = (np.arange(DEGREE) + 0.5) * math.pi / DEGREE
_POINTS = np.cos(_ANGLES)
_TO_COEFFICIENTS = np.cos(np.outer(np.arange(DEGREE), _ANGLES)) * 2 / DEGREE
_TO_COEFFICIENTS[0] /= 2
_FEW = 32  # points: below, what counts is the number of numpy calls, not the work in each
_CACHED = 1 << 12  # points whose polynomials, 24 x 8 bytes each, stay in a second-level cache


class Axis(NamedTuple):
    """Equal segments of one axis."""

    low: float
    step: float
    segments: int

    @property
    def edges(self) -> np.ndarray:
        """Their ends, shape ``(segments + 1,)``."""
        return self.low + self.step * np.arange(self.segments + 1)

    @property
    def nodes(self) -> np.ndarray:
        """Where to sample, shape ``(segments, DEGREE)``."""
        return sample(self.edges[:-1], self.edges[1:])


def axis(low: float, high: float, step: float) -> Axis:
    """Segments of about that length between two ends."""
    segments = max(1, math.ceil((high - low) / step - 1e-9))
    return Axis(low, (high - low) / segments, segments)


def sample(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Nodes of segments between these ends, shape ``(segments, DEGREE)``."""
    return low[:, None] + (high - low)[:, None] * (_POINTS + 1) / 2


class Curve(NamedTuple):
    """Functions of one number, on segments of any length.

    Attributes:
        edges: ends of the segments, shape ``(segments + 1,)``.
        coefficients: shape ``(segments, rows, DEGREE)``.
    """

    edges: np.ndarray
    coefficients: np.ndarray

    def __call__(self, t: Any) -> Any:
        """Values of all rows, shape ``(rows, *t.shape)``; t is held within the ends."""
        counts = np.arange(len(self.edges), dtype=float)
        if isinstance(t, Array) or np.ptp(steps := np.diff(self.edges)) > 1e-9:
            place = t.__array_namespace__().interp(t, self.edges, counts)
        else:  # a division costs a hundredth of a search
            place = (t - self.edges[0]) / steps[0]
        segment, x = locate(place, len(self.coefficients))
        if isinstance(t, Array):
            return jnp.asarray(self.coefficients)[segment] @ polynomials(x)
        segment, x = segment.ravel(), x.ravel()
        values = np.empty((self.coefficients.shape[1], t.size))
        for here, points in _groups(segment):
            values[:, points] = self.coefficients[here] @ polynomials(x[points])
        return values.reshape(len(values), *t.shape)


class Surface(NamedTuple):
    """A function of two numbers; attributes as for `Curve`, coefficients of shape ``(segments, segments, DEGREE,
    DEGREE)``."""

    low: np.ndarray
    step: np.ndarray
    coefficients: np.ndarray

    def __call__(self, x: Any, y: Any) -> Any:
        """Values, shape of x and of y, ``(points,)``; each number is held within its ends."""
        places = ((x - self.low[0]) / self.step[0], (y - self.low[1]) / self.step[1])
        (i, along_x), (j, along_y) = map(locate, places, self.coefficients.shape[:2])
        if isinstance(x, Array):
            return polynomials(along_x) @ (jnp.asarray(self.coefficients)[i, j] @ polynomials(along_y))
        values, columns = np.empty(x.size), self.coefficients.shape[1]
        for here, points in _groups(i * columns + j):
            rows = self.coefficients[divmod(here, columns)] @ polynomials(along_y[points])
            values[points] = np.einsum("kp,kp->p", polynomials(along_x[points]), rows)
        return values


def surface(along_x: Axis, along_y: Axis, values: np.ndarray) -> Surface:
    """Through samples at the axes' nodes, shape ``(nodes of x, nodes of y)``."""
    blocks = values.reshape(along_x.segments, DEGREE, along_y.segments, DEGREE)
    both = np.einsum("kn,anbm,lm->abkl", _TO_COEFFICIENTS, blocks, _TO_COEFFICIENTS, optimize=True)
    low, step = np.array([along_x.low, along_y.low]), np.array([along_x.step, along_y.step])
    return Surface(low, step, np.ascontiguousarray(both))


def coefficients(values: np.ndarray) -> np.ndarray:
    """Of samples at the nodes of segments, shape ``(..., DEGREE, rows)`` -> ``(..., rows, DEGREE)``."""
    return np.ascontiguousarray(np.einsum("kn,...nr->...rk", _TO_COEFFICIENTS, values))


def locate(place: Any, segments: int) -> tuple[Any, Any]:
    """The segment of each place, which counts them, and where in it, from -1 to 1; numpy or JAX, as it is."""
    xp = place.__array_namespace__()
    segment = xp.minimum(xp.maximum(xp.floor(xp.where(xp.isnan(place), 0, place)), 0), segments - 1)
    return segment.astype(int), xp.minimum(xp.maximum(2 * (place - segment) - 1, -1), 1)


def polynomials(x: Any) -> Any:
    """T_0 ... T_23, shape ``(DEGREE, *x.shape)``."""
    if x.size < _FEW and isinstance(x, np.ndarray):
        return np.cos(np.multiply.outer(np.arange(DEGREE), np.arccos(x)))
    xp = x.__array_namespace__()
    known, top = xp.stack([xp.ones_like(x), x, 2 * x * x - 1]), x * (4 * x * x - 3)
    while len(known) < DEGREE:  # T_{n+k} = 2 T_n T_k - T_{n-k}: three doublings instead of 21 steps
        mirrored = xp.concat([known[1:], top[None]])[::-1]
        known, top = xp.concat([known, 2 * top * known - mirrored]), 2 * top * top - 1
    return known


def _groups(cell: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Which points lie in each cell, some at a time."""
    order = np.argsort(cell, kind="stable")
    ordered = cell[order]
    new = np.flatnonzero(np.diff(ordered)) + 1
    for first, last in itertools.pairwise([0, *new.tolist(), len(order)]):
        for start in range(first, last, _CACHED):
            yield int(ordered[first]), order[start : min(start + _CACHED, last)]
