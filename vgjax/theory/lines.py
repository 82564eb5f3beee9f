"""Averages beyond the standard line: of a Gaussian with a mean, and at variances up to infinity."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax import activations
from vgjax.activations import Activation, Elementwise
from vgjax.checks import not_negative
from vgjax.theory.gaussian import NODES, WEIGHTS, Z_EDGES, Z_EDGES_OF_EXPONENTIALS, Line, Pieces, nodes, pieces


def shifted_line(activation: str | Activation | Elementwise, scale: float, shift: float) -> Line:
    """phi and phi' at the nodes of E f(scale z + shift): `gaussian.line` for a Gaussian of any mean.

    Args:
        activation: a name, an `Activation` or a callable.
        scale: standard deviation, at least 0.
        shift: mean.

    Raises:
        ValueError: a negative or non-finite scale, or a Gaussian that reaches farther than phi is resolved.
    """
    not_negative("scale", scale)
    not_negative("|shift|", abs(shift))
    phi = activations.get(activation)
    found, reach = pieces(phi, phi.kinks), abs(shift) + 12 * scale
    if reach > found.reach:
        raise ValueError(f"|shift| + 12 scale must be at most {found.reach:.3g} for {phi.name!r}, got {reach:.3g}")
    own = Z_EDGES_OF_EXPONENTIALS if found.overflows else Z_EDGES
    edges = np.array(found.within(2.0 ** math.ceil(math.log2(reach + 1))).edges)
    images = np.clip((edges - shift) / max(scale, 1e-300), own[0], own[-1])
    breaks = np.sort(np.concatenate([own, images]))
    half, middle = np.diff(breaks)[:, None] / 2, (breaks[1:] + breaks[:-1])[:, None] / 2
    z = (middle + half * NODES).ravel()
    weights = (half * WEIGHTS).ravel() * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    u = scale * z + shift
    with jax.enable_x64(True):
        values, slopes = (np.asarray(a) for a in _compiled_values(phi, jnp.asarray(u)))
    return Line(z, u, values, slopes, weights)


@functools.partial(jax.jit, static_argnums=0)
def _compiled_values(phi: Activation, u: Array) -> tuple[Array, Array]:
    return phi(u), phi.derivative(u)


def moments(activation: str | Activation | Elementwise, q: float) -> tuple[float, float]:
    """E phi^2 and E phi'^2 at variance q, infinity included.

    Beyond what the quadrature resolves (q ~ 1e10) phi is bounded or linear on both sides, and what happens near 0 is a
    correction in 1 / sqrt(q); two resolved variances give it, to 1e-9.

    Raises:
        ValueError: a negative q, or one beyond what the quadrature resolves of a phi that is neither.
    """
    if q != math.inf:
        not_negative("q", q)
    phi = activations.get(activation)
    everywhere = pieces(phi, phi.kinks)
    largest = everywhere.largest_variance
    if q <= largest:
        reach = 2.0 ** math.ceil(math.log2(12 * math.sqrt(q) + 1))  # few sizes, since each is compiled for
        return _moments(phi, everywhere.within(reach), q)
    if not (phi.facts.bounded or phi.facts.above):
        raise ValueError(
            f"q must be at most {largest:.3g} for activation {phi.name!r}, which is neither bounded nor asymptotically "
            f"linear, got {q:.3g}"
        )
    (limit, correction), (slope_limit, slope_correction) = _far(phi)
    size = 1.0 if phi.facts.bounded else q  # an infinite q times a vanishing limit is 0
    return times(limit + correction / math.sqrt(q), size), slope_limit + slope_correction / math.sqrt(q)


@functools.cache
def _far(phi: Activation) -> tuple[tuple[float, float], tuple[float, float]]:
    """a and b of a + b / sqrt(q) for E phi^2 (over q, if phi is not bounded) and for E phi'^2."""
    everywhere = pieces(phi, phi.kinks)
    qs = np.array([1.0, 0.25]) * everywhere.largest_variance
    values = np.array([_moments(phi, everywhere, q) for q in qs])
    if not phi.facts.bounded:
        values[:, 0] /= qs
    a, b = np.linalg.solve(np.stack([np.ones(2), qs**-0.5], axis=1), values)
    return (float(a[0]), float(b[0])), (float(a[1]), float(b[1]))


def _moments(phi: Activation, found: Pieces, q: float) -> tuple[float, float]:
    with jax.enable_x64(True):
        square, slope = _compiled_moments(phi, found, jnp.asarray(q, float))
    return float(square), float(slope)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled_moments(phi: Activation, found: Pieces, q: Array) -> tuple[Array, Array]:
    u, _, weights = nodes(found, q)
    return jnp.sum(weights * phi(u) ** 2), jnp.sum(weights * phi.derivative(u) ** 2)


def times(factor: float, value: float) -> float:
    """The product, with 0 times infinity = 0: what is not connected does not overflow."""
    return factor * value if factor else 0.0
