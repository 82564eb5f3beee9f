"""Gaussian expectations of any elementwise function, to rounding.

E f(sqrt(q) z) with z ~ N(0, 1) is integrated by composite Gauss-Legendre quadrature. Two sets of edges split the line:
those of the Gaussian, in z, and those of f, in u = sqrt(q) z, found once per function by bisection until a polynomial
resolves every piece (`pieces`). So kinks, jumps, steep steps and oscillations cost panels, not digits; Gauss-Hermite
loses them (E phi'^2 of hard-tanh is off by 0.05 at 200 nodes).
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from vgjax import activations
from vgjax.activations import Activation, Elementwise
from vgjax.checks import is_traced, not_negative, untraced

R = TypeVar("R")

NODES, WEIGHTS = np.polynomial.legendre.leggauss(32)
Z_EDGES = np.linspace(-12, 12, 7)  # exp(-12^2 / 2) = 5e-32
Z_EDGES_OF_EXPONENTIALS = np.linspace(-36, 36, 19)  # the mass of exp(a u) lies at z = a sqrt(q)

_FARTHEST = 2.0**20
_MOST_PIECES = 4096
_NARROWEST = 2.0**-45
_NARROW = 2.0**-20  # a piece like that betrays a kink of phi or of its slope
_TAIL = 24  # Legendre coefficients from this one on have to vanish


@dataclass(frozen=True)
class Pieces:
    """Where a function has to be split so that a polynomial resolves every piece.

    Attributes:
        edges: ends of the pieces, increasing.
        kinks: those edges at which the function or its slope is not smooth.
        jumps: those kinks at which the function itself jumps.
        reach: |u| up to which the pieces resolve it: 2^20, or less where it overflows or oscillates too often.
        overflows: the function leaves the float range before 2^20 (it grows exponentially).
    """

    edges: tuple[float, ...]
    kinks: tuple[float, ...]
    jumps: tuple[float, ...]
    reach: float
    overflows: bool

    def within(self, reach: float) -> "Pieces":
        """The pieces that begin within that distance from 0; all, if they are few (each set is compiled for)."""
        if len(self.edges) <= 128:
            return self
        last = min((abs(e) for e in self.edges if abs(e) >= reach), default=self.reach)
        edges = tuple(e for e in self.edges if abs(e) <= last)
        return replace(self, edges=edges, reach=min(self.reach, last))

    def innermost(self, most: int) -> "Pieces":
        """No more than about that many pieces."""
        if len(self.edges) <= most:
            return self
        return self.within(sorted(map(abs, self.edges))[most])

    @property
    def largest_variance(self) -> float:
        """q up to which expectations are right."""
        return (self.reach / 12) ** 2


def expectation(f: str | Activation | Elementwise, q: ArrayLike, *, kinks: Sequence[float] = ()) -> Any:
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
    return in_own_dtype(functools.partial(_expectations, *_resolved(f, kinks, q, _MOST_PIECES)), q)


def correlated_expectation(
    f: str | Activation | Elementwise, q1: ArrayLike, q2: ArrayLike, c: ArrayLike, *, kinks: Sequence[float] = ()
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
    check_correlation("c", c)
    return in_own_dtype(
        functools.partial(_correlated_expectations, *_resolved(f, kinks, np.maximum(*_plain(q1, q2)), 128)), q1, q2, c
    )


def _plain(*numbers: ArrayLike) -> list[Any]:
    return [np.nan if is_traced(number) else np.asarray(number) for number in numbers]


def _resolved(
    f: str | Activation | Elementwise, kinks: Sequence[float], q: ArrayLike, most: int
) -> tuple[Activation, Pieces]:
    """f as an `Activation`, and its pieces as far out as q needs them."""
    phi = activations.get(f)
    found = pieces(phi, tuple(sorted({*phi.kinks, *map(float, kinks)})))
    largest = np.nan if is_traced(q) else float(np.max(q, initial=0))
    found = found.within(12 * math.sqrt(largest)) if np.isfinite(largest) else found.innermost(most)
    if largest > found.largest_variance:
        raise ValueError(
            f"q must be at most {found.largest_variance:.3g} for activation {phi.name!r}, which oscillates or grows "
            f"too fast beyond |h| = {found.reach:.3g}, got {largest:g}"
        )
    return phi, found


def in_own_dtype(f: Callable[..., R], *numbers: ArrayLike) -> Any:
    """f of the numbers: JAX arrays as they are; plain numbers and numpy arrays in float64, back as numpy."""
    if any(isinstance(number, Array) for number in numbers):
        return f(*(jnp.asarray(number) for number in numbers))
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, f(*(jnp.asarray(number, float) for number in numbers)))


def check_correlation(name: str, value: ArrayLike) -> None:
    """Pass numbers in [-1, 1]; traced ones cannot be looked at and pass too."""
    if is_traced(value):
        return
    numbers = np.asarray(value, dtype=float)
    bad = numbers[~(np.abs(numbers) <= 1)]
    if bad.size:
        raise ValueError(f"{name} must lie in [-1, 1], got {bad.flat[0]:g}")


class Line(NamedTuple):
    """An activation along the Gaussian line u = sqrt(q) z, ready for sums; numpy float64, each of shape ``(nodes,)``.

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


def line(activation: str | Activation | Elementwise, q: float) -> Line:
    """phi and phi' at the nodes of E f(sqrt(q) z), exact for all their products; concrete q only.

    Raises:
        ValueError: as `expectation`.
    """
    not_negative("q", q)
    with jax.enable_x64(True):
        return Line(*(np.asarray(a) for a in _line(*_resolved(activation, (), q, _MOST_PIECES), jnp.asarray(q, float))))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _line(phi: Activation, found: Pieces, q: Array) -> tuple[Array, ...]:
    u, z, weights = nodes(found, q)
    return z, u, phi(u), phi.derivative(u), weights


# --- the quadratures, for one q -------------------------------------------------------------------------------------


def nodes(found: Pieces, q: Array) -> tuple[Array, Array, Array]:
    """u = sqrt(q) z, z and the weights of E f(u) for one q, each of shape ``(nodes,)``; sum(weights) is 1."""
    root = jnp.sqrt(q)
    images = jnp.asarray(found.edges, q.dtype) / jnp.maximum(root, jnp.finfo(q.dtype).tiny)
    z, weights = between(breaks(found, images, q))
    return root * z, z, weights


def breaks(found: Pieces, images: Array | np.ndarray, like: Array) -> Array:
    """The Gaussian's edges together with the images of the function's, increasing."""
    own = jnp.asarray(Z_EDGES_OF_EXPONENTIALS if found.overflows else Z_EDGES, like.dtype)
    return jnp.sort(jnp.concatenate([own, jnp.clip(jnp.asarray(images, like.dtype), own[0], own[-1])]))


def between(edges: Array) -> tuple[Array, Array]:
    """Nodes and Gaussian weights between increasing edges."""
    half, middle = (edges[1:] - edges[:-1]) / 2, (edges[1:] + edges[:-1]) / 2
    z = middle[:, None] + half[:, None] * jnp.asarray(NODES, edges.dtype)
    weights = half[:, None] * jnp.asarray(WEIGHTS / math.sqrt(2 * math.pi), edges.dtype) * jnp.exp(-z * z / 2)
    return z.ravel(), weights.ravel()


@functools.partial(jax.jit, static_argnums=(0, 1))
def _expectations(phi: Activation, found: Pieces, q: Array) -> Array:
    each = functools.partial(_one_point, phi, found)
    return jax.lax.map(each, q.ravel(), batch_size=max(1, 2**15 // len(found.edges))).reshape(q.shape)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _correlated_expectations(phi: Activation, found: Pieces, q1: Array, q2: Array, c: Array) -> Array:
    q1, q2, c = jnp.broadcast_arrays(q1, q2, c)
    each = functools.partial(_two_point, phi, found)
    return jax.lax.map(lambda at: each(*at), (q1.ravel(), q2.ravel(), c.ravel())).reshape(c.shape)


def _one_point(phi: Activation, found: Pieces, q: Array) -> Array:
    # At q = 0 the slope in q is taken a little to the right, where it exists; the value there is phi(0), exactly.
    at_zero = q == 0
    u, _, weights = nodes(found, jnp.where(at_zero, q + 1e-12, q))
    value = jnp.where(q <= found.largest_variance, jnp.sum(weights * phi(u)), jnp.nan)
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
    images = jnp.asarray(found.edges, c.dtype) / (roots[1] * slope)
    widths = np.array([0.5, 2.0, 5.0, 9.0])
    graded = (
        jnp.asarray(found.kinks, c.dtype).reshape(-1, 1, 1) / roots[1]
        + spread * jnp.asarray([widths, -widths], c.dtype)
    ) / slope
    z1, outer = between(
        breaks(found, jnp.concatenate([jnp.asarray(found.edges, c.dtype) / roots[0], images, graded.ravel()]), c)
    )

    def given(z: Array) -> Array:
        center = c * z
        images = (jnp.asarray(found.edges, c.dtype) / roots[1] - center) / jnp.maximum(spread, tiny)
        z2, inner = between(breaks(found, images, c))
        return jnp.sum(inner * g(jnp.sqrt(q1) * z, jnp.sqrt(q2) * (center + spread * z2)))

    resolved = jnp.maximum(q1, q2) <= found.largest_variance
    return jnp.where(resolved, 0, jnp.nan) + jnp.sum(outer * jax.lax.map(given, z1, batch_size=256))


# --- the pieces -----------------------------------------------------------------------------------------------------


@functools.cache
@untraced
def pieces(phi: Activation, kinks: tuple[float, ...] = ()) -> Pieces:
    """The pieces on which both phi and phi' are polynomials, to rounding; kinks that were not declared are found."""
    with jax.enable_x64(True):
        reach, overflows = _reach(phi)
        measure = _Resolution(phi, reach)
        known = tuple(kink for kink in kinks if abs(kink) < reach)
        edges, narrow = _bisect(measure, known, reach)
        if narrow:
            known = tuple(sorted({*known, *_kinks(narrow)}))
            edges, _ = _bisect(measure, known, reach)
        edges = _merged(measure, edges, known)
        points = np.array(known)
        step = 1e-11 * np.maximum(1, np.abs(points))
        left, right = (np.asarray(phi(jnp.asarray(points + sign * step))) for sign in (-1, 1))
        jumps = np.abs(right - left) > 1e-4 * np.maximum(1e-3, np.abs(left) + np.abs(right))
    resolved = max(0.0, float(min(-edges[0], edges[-1])))
    return Pieces(tuple(edges.tolist()), known, tuple(points[jumps].tolist()), resolved, overflows)


def _reach(phi: Activation) -> tuple[float, bool]:
    """How far out phi^2 and phi' are finite, and whether that is short of the farthest."""
    grid = 1.00713 * 2.0 ** np.arange(0, 20.01, 1 / 16)  # off round numbers, where slopes may be infinite
    u = jnp.asarray(np.concatenate([grid, -grid]))
    usable = jnp.isfinite(phi(u) ** 2) & jnp.isfinite(phi.derivative(u) ** 2)
    finite: np.ndarray = np.all(np.asarray(usable).reshape(2, -1), axis=0)
    if finite.all():
        return _FARTHEST, False
    if not finite[0]:
        raise ValueError(f"activation {phi.name!r} must be finite, got an infinity or NaN near |h| = 1")
    last = int(finite.argmin()) - 1
    log = np.log(np.abs(np.asarray(phi(u))).reshape(2, -1).max(axis=0))
    half = int(np.abs(grid - grid[last] / 2).argmin())
    rate, rate_at_half = (log[i] / grid[i] ** 2 for i in (last, half))
    if rate_at_half < 1.3 * rate:  # ln |phi| / h^2 no longer falls
        raise ValueError(
            f"activation {phi.name!r} must have a second moment under every Gaussian, got growth like "
            f"exp({rate:.2g} h^2): E phi^2 is infinite from q = {1 / (4 * rate):.2g} on"
        )
    return float(grid[last]), True


class _Resolution:
    """How well one polynomial resolves phi and phi' on intervals."""

    batch = 64  # one compilation for all

    def __init__(self, phi: Activation, reach: float):
        degrees = np.arange(32)
        transform = np.polynomial.legendre.legvander(NODES, 31) * WEIGHTS[:, None] * (2 * degrees + 1) / 2

        def rows(u: Array) -> Array:
            return jnp.stack([phi(u), phi.derivative(u)])

        def tails(low: Array, high: Array) -> Array:
            # The two ends as well: a jump between the last node and the end would go unseen.
            x = np.concatenate([NODES, [-1 + 1e-13, 1 - 1e-13]])
            values = rows((low + high)[:, None] / 2 + (high - low)[:, None] / 2 * x)
            coefficients = values[..., :-2] @ transform
            ends = coefficients @ np.stack([(-1.0) ** degrees, np.ones(32)], axis=1) - values[..., -2:]
            return jnp.maximum(jnp.abs(coefficients[..., _TAIL:]).max(axis=-1), jnp.abs(ends).max(axis=-1) / 32)

        self._tails = jax.jit(tails)
        self._radii = reach * 2.0 ** np.arange(-40, 0.01, 0.25)
        inner = np.concatenate([[-r, r] for r in self._radii])
        size = np.abs(np.asarray(jax.jit(rows)(jnp.asarray(inner)))).reshape(2, -1, 2).max(axis=-1)
        self._size = np.maximum.accumulate(np.nan_to_num(size), axis=1)
        # What is smaller than that is the rounding of larger things (1 - tanh^2 where it is 0).
        self._least = 1e-2 * np.maximum(self._size[:, np.searchsorted(self._radii, 8.0)], 1e-200)[:, None]

    def __call__(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """The tails of the Legendre coefficients of phi and phi' on each interval, in units of their largest value up
        to its inner half; shape ``(2, intervals)``."""
        near, far = np.minimum(np.abs(low), np.abs(high)), np.maximum(np.abs(low), np.abs(high))
        at = np.searchsorted(self._radii, np.maximum(near, far / 2)).clip(max=len(self._radii) - 1)
        tails = [
            np.asarray(self._tails(*(np.resize(x[i : i + self.batch], self.batch) for x in (low, high))))
            for i in range(0, len(low), self.batch)
        ]
        return np.concatenate(tails, axis=1)[:, : len(low)] / np.maximum(self._size[:, at], self._least)


def _bisect(
    measure: _Resolution, kinks: tuple[float, ...], reach: float
) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Edges such that every piece is resolved, innermost first, and those that had to be tiny."""
    # Odd numbers, not symmetric: a kink that fell on an edge would not be noticed.
    start = np.array([0.2537, 0.5171, 1.0391, 2.0193, 4.0717, 8.1131, 65.317, 1031.7, 33013.0])
    start = np.array([*(-1.0171 * start), 0.0173, *start])
    for kink in kinks:  # an edge beside a kink would leave a sliver between them
        start = start[np.abs(start - kink) > 0.2 * np.maximum(1, np.abs(start))]
    edges = np.unique(np.concatenate([start[np.abs(start) < reach], kinks, [-reach, reach]]))
    low, high, before = edges[:-1], edges[1:], np.full((2, len(edges) - 1), np.inf)
    done: list[tuple[float, float]] = []
    narrow: list[tuple[float, float]] = []
    while len(low) and len(done) < _MOST_PIECES:
        order = np.argsort(np.minimum(np.abs(low), np.abs(high)), kind="stable")
        low, high, before = low[order], high[order], before[:, order]
        a, b, parent = low[: measure.batch], high[: measure.batch], before[:, : measure.batch]
        tail = measure(a, b)
        # What is small and does not improve under bisection is the rounding of phi itself.
        resolved = ((tail <= 2e-14) | ((tail < 1e-9) & (tail > 0.7 * parent))).all(axis=0)
        size = np.maximum(1, np.maximum(np.abs(a), np.abs(b)))
        stuck = ~resolved & (b - a <= _NARROWEST * size)
        tiny = (stuck | resolved) & (b - a < _NARROW * size)
        narrow += zip(a[tiny], b[tiny], strict=True)
        done += zip(a[resolved | stuck], b[resolved | stuck], strict=True)
        split = ~(resolved | stuck)
        a, b, tail = a[split], b[split], tail[:, split]
        wide = (a * b > 0) & (np.maximum(np.abs(a), np.abs(b)) > 4 * np.minimum(np.abs(a), np.abs(b)))
        middle = np.where(wide, np.sign(a) * np.sqrt(np.abs(a * b)), (a + b) / 2)
        low = np.concatenate([a, middle, low[measure.batch :]])
        high = np.concatenate([middle, b, high[measure.batch :]])
        before = np.concatenate([tail, tail, before[:, measure.batch :]], axis=1)
    if len(low):  # out of budget: resolved up to the innermost that is left
        reach = float(np.minimum(np.abs(low), np.abs(high)).min())
    inside = np.unique([edge for piece in done for edge in piece])
    return inside[np.abs(inside) <= reach], narrow


def _kinks(narrow: list[tuple[float, float]]) -> list[float]:
    """Where a function is not smooth: one point for each group of tiny neighbours, in the tiniest of them."""
    low, high = np.array(sorted(narrow)).T
    groups = np.split(
        np.arange(len(low)), np.flatnonzero(low[1:] - high[:-1] > 1e-4 * np.maximum(1, np.abs(low[1:]))) + 1
    )
    found = []
    for group in groups:
        width = (high - low)[group]
        tiniest = group[width <= 1.01 * width.min()]
        found.append(float((low[tiniest[0]] + high[tiniest[-1]]) / 2))
    return found


def _merged(measure: _Resolution, edges: np.ndarray, kinks: tuple[float, ...]) -> np.ndarray:
    """Fewer edges: neighbours between kinks become one piece where it is resolved as well.

    Not over more than a factor of 4 in |u|, or 8 in width: what is narrow would hide between the nodes of a wide piece.
    """

    def one_piece(low: float, high: float, narrowest: float) -> bool:
        wide = high - low > 8 * narrowest or max(abs(low), abs(high)) > max(2, 4 * min(abs(low), abs(high)))
        return not wide and bool(measure(np.array([low]), np.array([high])).max() <= 2e-14)

    kept, narrowest = [edges[0]], edges[1] - edges[0]
    pairs = measure(edges[:-2], edges[2:]).max(axis=0) <= 2e-14  # all at once: most neighbours cannot
    for here, after, paired in zip(edges[1:-1], edges[2:], pairs, strict=True):
        if here in kinks or not paired or not one_piece(kept[-1], after, min(narrowest, after - here)):
            kept.append(here)
            narrowest = np.inf
        narrowest = min(narrowest, after - here)
    return np.array([*kept, edges[-1]])
