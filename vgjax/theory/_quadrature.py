"""Composite Gauss-Legendre quadrature: the one rule behind every integral of theory, for numpy and for JAX arrays."""

import functools
import math
from typing import Any

import numpy as np

ORDER = 32  # with `_pieces`, whose pieces are those on which the last 8 of 32 Legendre coefficients vanish


@functools.cache
def rule(order: int = ORDER) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in [-1, 1] and their weights, each of shape ``(order,)``."""
    return np.polynomial.legendre.leggauss(order)


def panels(edges: Any, order: int = ORDER) -> tuple[Any, Any]:
    """Nodes and weights between increasing edges, shape ``(..., k + 1)`` -> two of ``(..., k, order)``."""
    x, w = (part.astype(edges.dtype) for part in rule(order))
    half, middle = (edges[..., 1:] - edges[..., :-1]) / 2, (edges[..., 1:] + edges[..., :-1]) / 2
    return middle[..., None] + half[..., None] * x, half[..., None] * w


def gaussian_panels(edges: Any) -> tuple[Any, Any]:
    """As `panels`, with the weights of a standard Gaussian."""
    z, weights = panels(edges)
    return z, weights * (z.__array_namespace__().exp(-z * z / 2) / math.sqrt(2 * math.pi))
