"""Correlation: the c map of two inputs of equal norm, its fixed point and its slope there.

With epsilon = 1 - c the map is epsilon -> sigma_w^2 R(epsilon) epsilon, where R(epsilon) = E (phi(u1) - phi(u2))^2 /
(2 epsilon q) tends to E phi'^2 for epsilon -> 0: nothing is subtracted, so it is as right at 1 - c = 1e-15 as at 1.
"""

import math

import numpy as np

from vgjax.activations import Activation
from vgjax.theory.roots import falling_root
from vgjax.theory.tables import TwoPoint, two_point

_LEAST = 1e-13  # a fixed point nearer to c = 1 than that is not told from it


_reach: dict[Activation, tuple[float, float]] = {}


def table(phi: Activation, low: float, high: float) -> TwoPoint:
    """The table of two inputs for q between two ends: .01 to 100, where q settles as a rule, or wider if need be.

    One table an activation: the widest that was asked for serves all.
    """
    ends = 10.0 ** math.floor(math.log10(max(low, 1e-12))), 10.0 ** math.ceil(math.log10(min(high, 1e8)))
    known = _reach.get(phi, (1e-2, 1e2))
    _reach[phi] = min(ends[0], known[0]), max(ends[1], known[1])
    return two_point(phi, *_reach[phi])


def fixed_correlations(
    pair: TwoPoint, q: np.ndarray, levels: np.ndarray, gaps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """c* and the slope of the c map there, where c = 1 repels; shapes ``(points,)``.

    The c map is a power series in c with coefficients that are not negative, so it is convex on [0, 1] and has exactly
    one fixed point below 1 when its slope at 1, chi, exceeds 1, or when it maps 1 to 1 - gap (dropout).
    """

    def excess(x: np.ndarray, which: np.ndarray) -> np.ndarray:
        # Falls from chi - 1 at x = sqrt(epsilon) = 0 to at most 0 at x = 1.
        at, square = q[which], x * x
        return levels[which] * pair.ratio(square * at, (1 - square) * at) + gaps[which] / square - 1

    epsilon = falling_root(excess, np.full_like(q, math.sqrt(_LEAST)), np.ones_like(q)) ** 2
    return 1 - epsilon, levels * pair.slope(epsilon * q, (1 - epsilon) * q)
