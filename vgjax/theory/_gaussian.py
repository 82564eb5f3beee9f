"""Gaussian expectations of any elementwise function, to rounding.

E f(sqrt(q) z) with z ~ N(0, 1) is integrated by composite Gauss-Legendre quadrature. Two sets of edges split the line:
those of the Gaussian, in z, and those of f, in u = sqrt(q) z (`_pieces`). Gauss-Hermite loses digits at kinks: its
E phi'^2 of hard-tanh is off by 0.05 at 200 nodes.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax import activations
from vgjax.activations import Activation, Elementwise
from vgjax.checks import ArrayLike, finite, is_traced, kinds, not_negative
from vgjax.theory._pieces import MOST_PIECES, REACH, Pieces, pieces
from vgjax.theory._quadrature import gaussian_panels

ActivationLike = str | Activation | Elementwise
"""What every prediction takes for phi: a name, an `Activation`, or any elementwise callable."""

R = TypeVar("R")

_Z_EDGES = np.linspace(-REACH, REACH, 7)
_Z_EDGES_WITH_TAILS = np.linspace(-36, 36, 25)  # the mass of exp(a u) lies at z = a sqrt(q); e^-648 is left at z = 36
_FEW_PIECES = 128  # a pair needs them twice, nested: what is traced with unknown q stays within those
_AT_ONCE = 2**15  # panels of one vectorized step: about 2^20 nodes, 8 MB


@kinds
def expectation(f: ActivationLike, q: ArrayLike, *, kinks: Sequence[float] = ()) -> Any:
    """E f(sqrt(q) z), z ~ N(0, 1).

    Right to 1e-12 relative or 1e-10 absolute in float64 for q from 1e-8 to 1e4, and to 1e-5 in float32, where f is
    piecewise smooth. Differentiable in q (jumps and kinks included), under `jit` and `vmap`.

    Args:
        f: a name, an `Activation`, or any elementwise callable; compared by identity, so pass the same object twice
            to find its pieces once.
        q: variance, any shape. Numbers and numpy arrays are computed in float64, JAX arrays in their own dtype.
        kinks: points where f or its slope jumps, if you know them; they are found otherwise.

    Returns:
        Shape of q; a numpy float64 for numbers and numpy arrays.

    Raises:
        ValueError: a negative or non-finite q, or an f that is not elementwise, complex or NaN.
    """
    not_negative("q", q)
    return in_own_dtype(functools.partial(_expectations, *_resolved(f, kinks, q, MOST_PIECES)), q)


@kinds
def correlated_expectation(
    f: ActivationLike, q1: ArrayLike, q2: ArrayLike, c: ArrayLike, *, kinks: Sequence[float] = ()
) -> Any:
    """E f(u1) f(u2) for a Gaussian pair of variances q1, q2 and correlation c.

    Differentiable in all three: in c by Price's theorem, d/dc = sqrt(q1 q2) E f'(u1) f'(u2), where f is continuous.

    Args:
        f, kinks: as for `expectation`.
        q1, q2: variances, any shapes that broadcast.
        c: correlation, in [-1, 1].

    Returns:
        The broadcast shape.

    Raises:
        ValueError: as `expectation`, or a correlation outside [-1, 1].

    Source: Price 1958, "A useful theorem for nonlinear devices having Gaussian inputs".
    """
    not_negative("q1", q1)
    not_negative("q2", q2)
    finite("c", c, "in [-1, 1]", lambda c: np.abs(c) <= 1)
    largest = float(np.max([np.nan if is_traced(q) else np.max(q, initial=0) for q in (q1, q2)]))  # NaN if either is
    resolved = _resolved(f, kinks, largest, _FEW_PIECES)
    return in_own_dtype(functools.partial(_correlated_expectations, *resolved), q1, q2, c)


def _resolved(f: ActivationLike, kinks: Sequence[float], q: ArrayLike, most: int) -> tuple[Activation, Pieces]:
    """f as an `Activation`, and its pieces as far out as q needs them."""
    phi = activations.get(f)
    found = pieces(phi, kinks)
    largest = np.nan if is_traced(q) else float(np.max(q, initial=0))
    found = found.within(REACH * math.sqrt(largest)) if np.isfinite(largest) else found.innermost(most)
    if largest > found.largest_variance:
        raise ValueError(_out_of_reach("q", found.largest_variance, phi, found, largest))
    return phi, found


def _out_of_reach(what: str, most: float, phi: Activation, found: Pieces, got: float) -> str:
    return (
        f"{what} must be at most {most:.3g} for activation {phi.name!r}, which oscillates or grows too fast beyond "
        f"|h| = {found.reach:.3g}, got {got:g}"
    )


def in_own_dtype(f: Callable[..., R], *numbers: ArrayLike) -> Any:
    """f of the numbers: JAX arrays as they are; plain numbers and numpy arrays in float64, back as numpy."""
    if any(isinstance(number, Array) for number in numbers):
        return f(*(jnp.asarray(number) for number in numbers))
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, f(*(jnp.asarray(number, float) for number in numbers)))


# --- along one line, concrete ---------------------------------------------------------------------------------------


class Line(NamedTuple):
    """An activation along a Gaussian line u = sqrt(q) z + mean, ready for sums; numpy float64, each ``(nodes,)``.

    E g(z, phi, phi') = sum(weights * g(z, phi, slope)).
    """

    z: np.ndarray
    u: np.ndarray
    phi: np.ndarray
    slope: np.ndarray
    weights: np.ndarray

    def mean(self, values: np.ndarray) -> float:
        """E of the values at the nodes."""
        return float(self.weights @ values)


def line(activation: ActivationLike, q: float, mean: float = 0.0) -> Line:
    """phi and phi' at the nodes of E f(sqrt(q) z + mean), exact for all their products; concrete numbers only.

    Raises:
        ValueError: a negative or non-finite q, a mean that is not finite, or a Gaussian that reaches farther than phi
            is resolved.
    """
    not_negative("q", q)
    finite("mean", mean)
    phi, root = activations.get(activation), math.sqrt(q)
    found, reach = pieces(phi), abs(mean) + REACH * root
    if reach > found.reach:
        raise ValueError(_out_of_reach("|mean| + 12 sqrt(q)", found.reach, phi, found, reach))
    # Powers of two: the number of nodes then takes few values, and each is compiled for.
    near = found.within(2.0 ** math.ceil(math.log2(reach + 1)))
    with np.errstate(over="ignore"):  # q = 0
        z, weights = nodes(near, np.asarray(root), np.asarray(mean))
    u = root * z + mean
    return Line(z, u, *_values(phi, u), weights)


def values(phi: Activation, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """phi and phi' at u, numpy float64 of any shape; padded to a power of two, so that few sizes are compiled for."""
    padded = np.zeros(1 << max(10, (u.size - 1).bit_length()))
    padded[: u.size] = u.ravel()
    value, slope = (x[: u.size].reshape(u.shape) for x in _values(phi, padded))
    return value, slope


def _values(phi: Activation, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with jax.enable_x64(True):
        value, slope = _compiled_values(phi, u)
        return np.asarray(value), np.asarray(slope)


@functools.partial(jax.jit, static_argnums=0)
def _compiled_values(phi: Activation, u: Array) -> tuple[Array, Array]:
    return phi(u), phi.derivative(u)


# --- the quadratures, for one q; numpy or JAX -----------------------------------------------------------------------


def nodes(found: Pieces, root: Any, mean: Any = 0.0) -> tuple[Any, Any]:
    """z and the weights of E f(root z + mean), each of shape ``(nodes,)``; sum(weights) is 1."""
    xp = root.__array_namespace__()
    edges = xp.asarray(found.edges, dtype=root.dtype)
    z, weights = gaussian_panels(breaks(found, (edges - mean) / xp.maximum(root, xp.finfo(root.dtype).tiny)))
    return z.ravel(), weights.ravel()


def breaks(found: Pieces, images: Any) -> Any:
    """The Gaussian's edges together with the images of the function's, increasing."""
    xp = images.__array_namespace__()
    own = xp.asarray(_Z_EDGES_WITH_TAILS if found.overflows else _Z_EDGES, dtype=images.dtype)
    return xp.sort(xp.concat([own, xp.clip(images, own[0], own[-1])]))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _expectations(phi: Activation, found: Pieces, q: Array) -> Array:
    each = functools.partial(_one_point, phi, found)
    return jax.lax.map(each, q.ravel(), batch_size=at_once(found)).reshape(q.shape)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _correlated_expectations(phi: Activation, found: Pieces, q1: Array, q2: Array, c: Array) -> Array:
    q1, q2, c = jnp.broadcast_arrays(q1, q2, c)
    each = functools.partial(_two_point, phi, found)
    return jax.lax.map(lambda at: each(*at), (q1.ravel(), q2.ravel(), c.ravel())).reshape(c.shape)


def at_once(found: Pieces) -> int:
    """How many integrals to vectorize."""
    return max(1, _AT_ONCE // len(found.edges))


def _one_point(phi: Activation, found: Pieces, q: Array) -> Array:
    # At q = 0 the slope in q is taken a little to the right, where it exists; the value there is phi(0), exactly.
    at_zero = q == 0
    root = jnp.sqrt(jnp.where(at_zero, q + 1e-12, q))
    z, weights = nodes(found, root)
    value = jnp.where(q <= found.largest_variance, jnp.sum(weights * phi(root * z)), jnp.nan)
    return value + jax.lax.stop_gradient(jnp.where(at_zero, phi(jnp.zeros_like(q)) - value, 0))


def _two_point(phi: Activation, found: Pieces, q1: Array, q2: Array, c: Array) -> Array:
    def product(u1: Array, u2: Array) -> Array:
        return phi(u1) * phi(u2)

    if found.jumps:  # the slope of phi does not know them; the moving edges of the quadrature do
        return pair(found, product, q1, q2, 1 - c)

    @jax.custom_jvp
    def value(q1: Array, q2: Array, c: Array) -> Array:
        return pair(found, product, q1, q2, 1 - c)

    @value.defjvp
    def _(at: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
        q1, q2, c = at
        slope = phi.derivative
        by_c = jnp.sqrt(q1 * q2) * pair(found, lambda u1, u2: slope(u1) * slope(u2), q1, q2, 1 - c)
        by_q1 = pair(found, lambda u1, u2: u1 * slope(u1) * phi(u2), q1, q2, 1 - c) / (2 * q1)
        by_q2 = pair(found, lambda u1, u2: phi(u1) * u2 * slope(u2), q1, q2, 1 - c) / (2 * q2)
        return value(q1, q2, c), by_q1 * tangents[0] + by_q2 * tangents[1] + by_c * tangents[2]

    return value(q1, q2, c)


def pair(found: Pieces, g: Callable[[Array, Array], Array], q1: Array, q2: Array, epsilon: Array) -> Array:
    """E g(u1, u2) for a Gaussian pair of correlation 1 - epsilon; g is elementwise, with the pieces of one function in
    both arguments.

    u1 = sqrt(q1) z1 and, given it, u2 = sqrt(q2) (c z1 + sqrt(1 - c^2) z2). The inner integral over z2 smooths the
    kinks of g in u2 to a width of sqrt(1 - c^2) around their images, so the outer one is graded towards them.
    """
    c = 1 - epsilon
    tiny = jnp.finfo(c.dtype).tiny
    roots = jnp.maximum(jnp.sqrt(q1), tiny), jnp.maximum(jnp.sqrt(q2), tiny)
    spread = jnp.sqrt(epsilon * (2 - epsilon))
    slope = jnp.where(jnp.abs(c) < 1e-30, 1e-30, c)
    edges = jnp.asarray(found.edges, c.dtype)
    widths = np.array([0.5, 2.0, 5.0, 9.0])  # of panels in which a Gaussian step of width 1 is resolved; 9: exp(-40)
    graded = (
        jnp.asarray(found.kinks, c.dtype).reshape(-1, 1, 1) / roots[1]
        + spread * jnp.asarray([widths, -widths], c.dtype)
    ) / slope
    images = [edges / roots[0], edges / (roots[1] * slope), graded.ravel()]
    z1, outer = gaussian_panels(breaks(found, jnp.concatenate(images)))

    def given(z: Array) -> Array:
        center = c * z
        z2, inner = gaussian_panels(breaks(found, (edges / roots[1] - center) / jnp.maximum(spread, tiny)))
        return jnp.sum(inner * g(jnp.sqrt(q1) * z, jnp.sqrt(q2) * (center + spread * z2)))

    resolved = jnp.maximum(q1, q2) <= found.largest_variance
    return jnp.where(resolved, 0, jnp.nan) + jnp.sum(outer.ravel() * jax.lax.map(given, z1.ravel(), batch_size=256))
