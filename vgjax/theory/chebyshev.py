"""Piecewise Chebyshev interpolants in one and two dimensions: what makes theory on a whole map cheap."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

DEGREE = 24
_ANGLES = (np.arange(DEGREE) + 0.5) * math.pi / DEGREE
_POINTS = np.cos(_ANGLES)
_TO_COEFFICIENTS = np.cos(np.outer(np.arange(DEGREE), _ANGLES)) * 2 / DEGREE
_TO_COEFFICIENTS[0] /= 2


class Axis(NamedTuple):
    """Equal segments of one axis."""

    low: float
    step: float
    segments: int

    @property
    def high(self) -> float:
        """End of the last segment."""
        return self.low + self.step * self.segments

    @property
    def nodes(self) -> np.ndarray:
        """Where to sample, shape ``(segments * DEGREE,)``."""
        return (self.low + self.step * (np.arange(self.segments)[:, None] + (_POINTS + 1) / 2)).ravel()


def axis(low: float, high: float, step: float) -> Axis:
    """Segments of about that length between two ends."""
    segments = max(1, math.ceil((high - low) / step - 1e-9))
    return Axis(low, (high - low) / segments, segments)


class Curve(NamedTuple):
    """Functions of one number.

    Attributes:
        low, step: left end of the first segment, and the length of each.
        coefficients: shape ``(segments, rows, DEGREE)``.
    """

    low: Array
    step: Array
    coefficients: Array

    def __call__(self, t: Array) -> Array:
        """Values of all rows at one t, shape ``(rows,)``; t is held within the ends."""
        segment, basis = _locate(t, self.low, self.step, self.coefficients.shape[0])
        return self.coefficients[segment] @ basis


class Surface(NamedTuple):
    """A function of two numbers; attributes as for `Curve`, coefficients of shape ``(segments, segments, DEGREE,
    DEGREE)``."""

    low: Array
    step: Array
    coefficients: Array

    def __call__(self, x: Array, y: Array) -> Array:
        """Value at one point; each number is held within its ends."""
        rows, columns = self.coefficients.shape[:2]
        i, along_x = _locate(x, self.low[0], self.step[0], rows)
        j, along_y = _locate(y, self.low[1], self.step[1], columns)
        return along_x @ (self.coefficients[i, j] @ along_y)


def curve(along: Axis, values: np.ndarray) -> Curve:
    """Through samples at the axis's nodes, shape ``(nodes, rows)``."""
    blocks = values.reshape(along.segments, DEGREE, -1)
    coefficients = np.einsum("kn,snr->srk", _TO_COEFFICIENTS, blocks)
    return Curve(*(jnp.asarray(a, float) for a in (along.low, along.step, coefficients)))


def surface(along_x: Axis, along_y: Axis, values: np.ndarray) -> Surface:
    """Through samples at the axes' nodes, shape ``(nodes of x, nodes of y)``."""
    blocks = values.reshape(along_x.segments, DEGREE, along_y.segments, DEGREE)
    coefficients = np.einsum("kn,anbm,lm->abkl", _TO_COEFFICIENTS, blocks, _TO_COEFFICIENTS, optimize=True)
    low, step = np.array([along_x.low, along_y.low]), np.array([along_x.step, along_y.step])
    return Surface(*(jnp.asarray(a, float) for a in (low, step, coefficients)))


def _locate(t: Array, low: Array, step: Array, segments: int) -> tuple[Array, Array]:
    """The segment of t and the Chebyshev polynomials there, shape ``(DEGREE,)``."""
    place = (t - low) / step
    segment = jnp.clip(jnp.floor(jnp.where(jnp.isnan(place), 0, place)), 0, segments - 1)
    x = jnp.clip(2 * (place - segment) - 1, -1 - 1e-9, 1 + 1e-9)  # with its slope at the very ends

    polynomials = [jnp.ones_like(x), x]
    while len(polynomials) < DEGREE:
        polynomials.append(2 * x * polynomials[-1] - polynomials[-2])
    return segment.astype(int), jnp.stack(polynomials)
