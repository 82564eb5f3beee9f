"""Moments of softmax weights over Gaussian logits: what attention is made of at initialization.

A = softmax(a) and A' = softmax(a'), a and a' each n independent Gaussians of variance tau^2, a_k and a'_k of
correlation rho. With 1 / Z^k = int s^(k - 1) exp(-s Z) ds / (k - 1)!, the mean of a product of weights is an integral
over ln s (two of them for two rows) of products of means over one logit, E y^j exp(-y), y = s exp a. All are analytic
in a strip, so that the trapezoidal rule converges exponentially.
"""

import math
from typing import NamedTuple

import numpy as np

_STEP = 0.3  # of ln s, whose strip is pi wide: exp(-pi^2 / step) is 5e-15
_FAR, _WIDE = 30.0, 8.5  # exp(-30) counts for nothing, and so does a Gaussian beyond 8.5
_LARGEST = 64.0  # standard deviation of logits: what is summed over grows like its cube
_AT_ONCE = 2_000_000  # numbers held in one piece


class SoftmaxMoments(NamedTuple):
    """Means of sums over the n weights of a softmax, and of two.

    Attributes:
        square, cube, square_of_square: E sum A^2, E sum A^3, E (sum A^2)^2.
        product, cubic_product, square_of_product: E sum A A', E sum A^2 A' (which is E sum A A'^2), E (sum A A')^2.
    """

    square: float
    cube: float
    square_of_square: float
    product: float
    cubic_product: float
    square_of_product: float


def softmax_moments(n: int, variance: float, correlation: float) -> SoftmaxMoments:
    """The moments for n >= 2 logits of some variance, those of two rows of a correlation in [-1, 1].

    Raises:
        ValueError: a standard deviation above `_LARGEST`.
    """
    from scipy.interpolate import make_interp_spline

    if variance == 0:  # all weights are 1 / n
        return SoftmaxMoments(1 / n, n**-2, n**-2, 1 / n, n**-2, n**-2)
    tau = math.sqrt(variance)
    if not tau <= _LARGEST:
        raise ValueError(f"logits of attention must have a standard deviation of at most {_LARGEST:g}, got {tau:g}")
    x = np.arange(-_FAR - math.log(n) - _WIDE * tau, math.log(_FAR) + _WIDE * tau, _STEP)
    shared, own = tau * math.sqrt(abs(correlation)), tau * math.sqrt(1 - abs(correlation))
    c, weights = _gaussian(shared)
    # One function of ln s and what is shared together: interpolated, since a point of its own for every pair is many.
    t = np.arange(x[0] - shared * _WIDE - 1, x[-1] + shared * _WIDE + 1, _STEP / 3)
    curves = [make_interp_spline(t, values, k=9) for values in _given(t, own, 2)]
    one, other = (
        [curve(x[:, None] + side * shared * c) for curve in curves] for side in (1, math.copysign(1, correlation))
    )

    def both(j: int, k: int) -> np.ndarray:
        """E y^j exp(-y) y'^k exp(-y'), for s in the first (rows) and in the second (columns)."""
        return (one[j] * weights) @ other[k].T

    k0, _, k2, k3, k4 = _given(x, tau, 4)
    rest = both(0, 0)
    of_squares = k4 * k0 ** (n - 1) + (n - 1) * k2**2 * k0 ** (n - 2)
    of_products = both(2, 2) * rest ** (n - 1) + (n - 1) * both(1, 1) ** 2 * rest ** (n - 2)
    return SoftmaxMoments(
        float(n * _STEP * np.sum(k2 * k0 ** (n - 1))),
        float(n * _STEP * np.sum(k3 * k0 ** (n - 1)) / 2),
        float(n * _STEP * np.sum(of_squares) / 6),
        float(n * _STEP**2 * np.sum(both(1, 1) * rest ** (n - 1))),
        float(n * _STEP**2 * np.sum(both(2, 1) * rest ** (n - 1))),
        float(n * _STEP**2 * np.sum(of_products)),
    )


def _gaussian(scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for means over z of what is analytic in exp(-exp(scale z))."""
    step = min(0.25, 0.4 / max(scale, 1e-300))  # the strip is pi / scale wide
    z = np.arange(-_WIDE, _WIDE, step)
    return z, np.exp(-z * z / 2) * step / math.sqrt(2 * math.pi)


def _given(x: np.ndarray, own: float, most: int) -> list[np.ndarray]:
    """E y^j exp(-y), j = 0 ... most, y = s exp(a), for every x: ln s and the part of a that is given."""
    z, weights = _gaussian(own)

    def means(x: np.ndarray) -> list[np.ndarray]:
        log_y = x[:, None] + own * z
        # A power at a time: y^j exp(-y) is bounded, where each alone may leave the range.
        return [np.exp(j * log_y - np.exp(log_y)) @ weights for j in range(most + 1)]

    pieces = np.array_split(x, -(-x.size * z.size // _AT_ONCE))
    return [np.concatenate(each) for each in zip(*map(means, pieces), strict=True)]
