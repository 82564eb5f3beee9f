"""The law of squared slopes t = phi'(sqrt(q) z)^2, from which free probability builds whole Jacobians."""

import functools
import math
from typing import NamedTuple

import numpy as np

from vgjax import activations
from vgjax.activations import Activation
from vgjax.checks import not_negative
from vgjax.theory._gaussian import ActivationLike, line, values
from vgjax.theory._quadrature import ORDER, gaussian_panels, rule

SMALLEST_Q = 1e-30  # stands for q -> 0, where a kink at 0 still has two sides

_FARTHEST = 6.0  # |z| > 6 has probability 2e-9: no network of any width has steeper slopes than those within
_GRID = np.linspace(-9, 9, 181)  # z; the mass beyond is 2e-19
_DYADIC = 2.0 ** -np.arange(3.0, 41.0)  # down to 1e-12: omega comes that close to the largest t in deep networks
_FLAT_TOP = 1e-4  # probability below which equal slopes are the flat top of a smooth maximum and no atom


class SquaredSlopes(NamedTuple):
    """The law of t = phi'(sqrt(q) z)^2, as panels of quadrature nodes.

    Attributes:
        values: t at the nodes, shape ``(panels, nodes)``; smooth on each panel. What is below 1e-150 of the largest
            counts as 0.
        weights: their probabilities, same shape; the sum is 1.
    """

    values: np.ndarray
    weights: np.ndarray

    @property
    def atoms(self) -> tuple[tuple[float, float], ...]:
        """Values that t takes with positive probability (over 1e-4, or t = 0), with that probability; increasing."""
        return tuple(zip(*(part.tolist() for part in self._constants()), strict=True))

    def cells(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The law as a mixture of atoms and uniform laws: centers, half-widths and masses, each ``(cells,)``.

        Each panel keeps its mass, mean and variance. A mixture has a density, so that the equations can be solved next
        to the real axis, where bare nodes would show as lines.
        """
        atoms, probabilities = self._constants()
        rest = ~self._constant & (self.weights.sum(axis=1) > 1e-9)
        values, weights = self.values[rest], self.weights[rest]
        masses = weights.sum(axis=1)
        centers = (weights * values).sum(axis=1) / masses
        halves = np.sqrt(3 * (weights * (values - centers[:, None]) ** 2).sum(axis=1) / masses)
        masses = np.concatenate([probabilities, masses])
        return (
            np.concatenate([atoms, centers]),
            np.concatenate([np.zeros_like(atoms), np.minimum(halves, 0.99 * centers)]),
            masses / masses.sum(),
        )

    @property
    def _constant(self) -> np.ndarray:
        """The panels on which t is constant, to rounding."""
        return np.ptp(self.values, axis=1) <= 2.0**-50 * self.values.max(axis=1)

    def _constants(self) -> tuple[np.ndarray, np.ndarray]:
        """Values and probabilities of those panels, equal values taken together."""
        values, weights = self.values[self._constant].max(axis=1), self.weights[self._constant].sum(axis=1)
        order = np.argsort(values)
        values, weights = values[order], weights[order]
        new = np.diff(values, prepend=-1.0) > 1e-12 * values
        values, weights = values[new], np.add.reduceat(weights, np.flatnonzero(new)) if len(values) else weights
        kept = (weights > _FLAT_TOP) | (values == 0)
        return values[kept], weights[kept]


def squared_slopes(activation: ActivationLike, q: float) -> SquaredSlopes:
    """The law of phi'(sqrt(q) z)^2, z ~ N(0, 1), whose sums over the nodes are right to rounding; q = 0 is a limit."""
    not_negative("q", q)
    return _squared_slopes(activations.get(activation), float(q))


@functools.lru_cache(maxsize=64)
def _squared_slopes(phi: Activation, q: float) -> SquaredSlopes:
    root = math.sqrt(max(q, SMALLEST_Q))
    along = line(phi, root * root)
    z, (x, _) = along.z.reshape(-1, ORDER), rule()
    middle, half = (z[:, -1] + z[:, 0]) / 2, (z[:, -1] - z[:, 0]) / (2 * x[-1])
    top, largest = _steepest(phi, root, along.z, along.slope)
    # M is needed close to the largest t, where t / (omega - t) is narrow: panels that halve towards it.
    edges = np.concatenate([middle - half, middle + half, _GRID, top - _DYADIC, [top], top + _DYADIC])
    edges = np.unique(np.clip(edges, _GRID[0], _GRID[-1]))
    z, weights = gaussian_panels(edges[np.append(np.diff(edges) > 2e-14, True)])
    t = np.minimum(values(phi, root * z)[1] ** 2, largest)
    t[t < 1e-150 * largest] = 0  # their squares would underflow
    return SquaredSlopes(t, weights / weights.sum())


def _steepest(phi: Activation, root: float, z: np.ndarray, slope: np.ndarray) -> tuple[float, float]:
    """Where phi'(root z)^2 is largest, and that value: the best of the nodes, then ever closer around it."""
    best, width = float(z[np.argmax(np.where(np.abs(z) <= _FARTHEST, np.abs(slope), -1))]), 0.5
    for _ in range(9):
        near = np.clip(best + width * np.linspace(-1, 1, 65), -_FARTHEST, _FARTHEST)
        size = np.abs(values(phi, root * near)[1])
        best, width = float(near[np.argmax(size)]), width / 16
    return best, float(size.max()) ** 2
