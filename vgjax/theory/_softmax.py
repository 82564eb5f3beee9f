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
MOST = 12.0
"""Largest standard deviation of logits: the work grows like its third power, and takes two seconds there."""

_AT_ONCE = 2**20  # numbers of one vectorized step, 8 MB
_FAR, _WIDE = 30.0, 8.5  # exp(-30) counts for nothing, and so does a Gaussian beyond 8.5


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
    """The moments for n >= 2 logits of some variance, those of two rows of a correlation in [-1, 1]; NaN for logits
    of a standard deviation above `MOST`."""
    if not variance <= MOST**2:
        return SoftmaxMoments(*[math.nan] * 6)
    if variance == 0:  # all weights are 1 / n
        return SoftmaxMoments(1 / n, n**-2, n**-2, 1 / n, n**-2, n**-2)
    tau = math.sqrt(variance)
    x = np.arange(-_FAR - math.log(n) - _WIDE * tau, math.log(_FAR) + _WIDE * tau, _STEP)
    shared, own = tau * math.sqrt(abs(correlation)), tau * math.sqrt(1 - abs(correlation))
    c, weights = _gaussian(shared)
    one = _given(x[:, None] + shared * c, own, 2)
    other = one if correlation >= 0 else _given(x[:, None] - shared * c, own, 2)

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
    means, places = np.empty((most + 1, x.size)), x.reshape(-1)
    chunk = max(1, _AT_ONCE // len(z))
    for start in range(0, x.size, chunk):
        here = slice(start, start + chunk)
        # Beyond exp(6) exp(-y) counts for nothing, and y^4 stays within the range.
        y = np.exp(np.minimum(places[here, None] + own * z, 6))
        term = np.exp(-y)
        for j in range(most + 1):
            means[j, here] = term @ weights
            term *= y
    return [mean.reshape(x.shape) for mean in means]
