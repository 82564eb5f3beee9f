"""Tables of Gaussian expectations: of one input as functions of q, of two as a function of what they share.

Why tables: E f(sqrt(q) z) is an integral of f against exp(-u^2 / 2q), so it is analytic in ln q in the strip
|Im ln q| < pi/2 *whatever f is*, kinks and jumps included. Chebyshev interpolation in ln q therefore converges at a
rate that does not depend on the activation (24 points on a segment of length 2: 1e-13), and one table per activation
serves every scale, map and trajectory.
"""

import dataclasses
import functools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax.activations import Activation
from vgjax.checks import untraced
from vgjax.theory.chebyshev import Curve, Surface, axis, curve, surface
from vgjax.theory.gaussian import Pieces, between, breaks, nodes, pieces

LOWEST_Q, HIGHEST_Q = 1e-14, 1e9
_STEEPEST = 1e5  # growth of E phi^2 over one segment that interpolation still resolves


class Moments(NamedTuple):
    """What one input needs, at one q.

    Attributes:
        square: V = E phi^2.
        slope_square: E phi'^2; infinite if phi jumps.
        growth: dV / d ln q = q V'(q).
    """

    square: Any
    slope_square: Any
    growth: Any


class OnePoint(NamedTuple):
    """`Moments` of an activation as functions of q.

    Attributes:
        of_log_q: the curves over ln q.
        low, high: the q between which they hold.
        jumps: whether phi does; the curve of E phi'^2 is then meaningless.
    """

    of_log_q: Curve
    low: float
    high: float
    jumps: bool

    def __call__(self, q: Any) -> Moments:
        """At one q (JAX) or many (numpy); beyond the ends as at the ends."""
        xp = q.__array_namespace__()
        square, slope_square, growth = self.of_log_q(xp.log(q))
        return Moments(square, xp.where(self.jumps, xp.inf, slope_square), growth)


class TwoPoint(NamedTuple):
    """Two inputs of equal norm, as a function of what they share.

    u1 and u2 share a Gaussian part of variance v = c q and have independent ones of variance s = (1 - c) q each. What
    is kept are E (phi(u1) - phi(u2))^2 / 2 s and E phi'(u1) phi'(u2). Both tend to E phi'^2 for s -> 0, without a
    subtraction; the first turns the c map into epsilon -> sigma_w^2 ratio epsilon, epsilon = 1 - c, the second is its
    slope.

    Attributes:
        ratios, slopes: surfaces over ln(sqrt(s) + sqrt(s0)), ln(v + v0); times sqrt(s) if phi jumps.
        root, shift: sqrt(s0) and v0.
        jumps: whether phi does.
    """

    ratios: Surface
    slopes: Surface
    root: float
    shift: float
    jumps: bool

    def ratio(self, s: Any, v: Any) -> Any:
        """E (phi(u1) - phi(u2))^2 / 2 s for one pair (JAX) or many (numpy); s > 0 if phi jumps."""
        return self._read(self.ratios, s, v)

    def slope(self, s: Any, v: Any) -> Any:
        """E phi'(u1) phi'(u2) likewise."""
        return self._read(self.slopes, s, v)

    def _read(self, surface: Surface, s: Any, v: Any) -> Any:
        xp = s.__array_namespace__()
        value = surface(xp.log(xp.sqrt(s) + self.root), xp.log(v + self.shift))
        return xp.where(self.jumps, value / xp.sqrt(s), value)


@functools.cache
@untraced
def one_point(phi: Activation) -> OnePoint:
    """The table of one activation from q = 1e-14 to 1e9, or as far as it can be resolved; float64."""
    with jax.enable_x64(True):
        found = pieces(phi, phi.kinks)
        along = axis(math.log(LOWEST_Q), math.log(min(HIGHEST_Q, found.largest_variance)), 2.0)
        parts = np.split(along.nodes, along.segments)
        values = np.stack([_moments(phi, _within(found, math.exp(t.max())), np.exp(t)) for t in parts])
        with np.errstate(divide="ignore", invalid="ignore"):
            square = values[:, :, 0]
            steep = ~(square.max(axis=1) <= _STEEPEST * square.min(axis=1)) & (
                along.low + along.step * np.arange(len(parts)) > 0
            )
        segments = int(np.argmax(steep)) if steep.any() else len(parts)
        along = along._replace(segments=segments)
        table = curve(along, values[:segments].reshape(-1, 3))
        return OnePoint(table, math.exp(along.low), math.exp(along.high), bool(found.jumps))


def _within(found: Pieces, q: float) -> Pieces:
    """Pieces up to 12 standard deviations, in a few sizes only, for each is compiled."""
    return found.within(12 * 16.0 ** math.ceil(math.log(q, 256)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _moments(phi: Activation, found: Pieces, q: Array) -> Array:
    """`Moments` at many q, shape ``(len(q), 3)``."""

    def at(q: Array) -> Array:
        u, z, weights = nodes(found, q)
        value, slope = phi(u), phi.derivative(u)
        square = jnp.sum(weights * value**2)
        if found.jumps:  # by parts: E (z^2 - 1) phi^2 / 2 needs no slope
            return jnp.stack([square, jnp.zeros_like(q), jnp.sum(weights * (z * z - 1) * value**2) / 2])
        return jnp.stack([square, jnp.sum(weights * slope**2), jnp.sum(weights * u * value * slope)])

    return jax.lax.map(at, q, batch_size=max(1, 2**15 // len(found.edges)))


@functools.cache
@untraced
def two_point(phi: Activation, low: float, high: float) -> TwoPoint:
    """The table for q between two ends; float64.

    First, given the shared part m, Var phi(m + sqrt(s) z) / s and (E phi'(m + sqrt(s) z))^2 for every s on a set of m;
    then their averages over m ~ N(0, v) for every v, as one matrix product.
    """
    with jax.enable_x64(True):
        found = pieces(phi, phi.kinks).within(12 * math.sqrt(high))  # s + v <= high: all that matters lies there
        narrowest = _narrowest(found)
        root, shift = min(math.sqrt(low), narrowest) / 4, low / 20
        along_s = axis(math.log(root), math.log(math.sqrt(high) + root), 1.0)
        along_v = axis(math.log(shift), math.log(high + shift), 2.0)
        s = (np.exp(along_s.nodes) - root) ** 2
        v = np.maximum(np.exp(along_v.nodes) - shift, 1e-3 * shift)
        m, weights = _shared(found, math.sqrt(v.min()), math.sqrt(s.min()), math.sqrt(high))
        few = dataclasses.replace(found, edges=found.kinks)
        small = np.sqrt(s) < narrowest / 8
        given = np.empty((2, len(s), len(m)))
        parts = [(small, few), (~small, found)]
        with ThreadPoolExecutor() as pool:  # two programs, compiled and run side by side
            for (where, _), values in zip(
                parts, pool.map(lambda part: _given_shared(phi, part[1], s[part[0]], m), parts), strict=True
            ):
                given[:, where] = values
        if found.jumps:
            given *= np.sqrt(s)[:, None]
        density = np.exp(-(m[:, None] ** 2) / (2 * v)) * weights[:, None] / np.sqrt(2 * math.pi * v)
        ratios, slopes = (surface(along_s, along_v, part @ density) for part in given)
        return TwoPoint(ratios, slopes, root, shift, bool(found.jumps))


def _narrowest(found: Pieces) -> float:
    """Width of the narrowest piece: the finest scale of phi, kinks apart (they may leave slivers beside them)."""
    low, high = np.array(found.edges[:-1]), np.array(found.edges[1:])
    kinks = np.array([*found.kinks, np.inf])
    apart = np.abs((low + high)[:, None] / 2 - kinks).min(axis=1) > 2e-3
    return float((high - low)[apart].min())


def _shared(found: Pieces, narrowest_v: float, narrowest_s: float, widest: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights in m that serve every v at once, graded towards 0 and towards the kinks."""
    outermost = 10 * widest
    graded = narrowest_v * 3.0 ** np.arange(0, math.log(outermost / narrowest_v, 3))
    near = narrowest_s * 3.0 ** np.arange(0, math.log(outermost / narrowest_s, 3))
    edges = [np.array(found.edges), graded, -graded, np.array([0, outermost, -outermost])]
    edges += [kink + side * near for kink in found.kinks for side in (-1, 1)]
    breaks = np.unique(np.clip(np.concatenate(edges), -outermost, outermost))
    half, middle = np.diff(breaks) / 2, (breaks[1:] + breaks[:-1]) / 2
    x, w = np.polynomial.legendre.leggauss(16)
    return (middle[:, None] + half[:, None] * x).ravel(), (half[:, None] * w).ravel()


def _given_shared(phi: Activation, found: Pieces, s: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Var phi(m + sqrt(s) z) / s and (E phi')^2 for every s and m, shape ``(2, len(s), len(m))``.

    One program, run on both halves of s side by side: XLA on a CPU would use one core.
    """
    size = (len(s) + 1) // 2
    halves = s[:size], s[len(s) - size :]

    def run(part: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):  # holds for one thread
            return np.asarray(program(part, m))

    with jax.enable_x64(True), ThreadPoolExecutor() as pool:
        program = _given_shared_jit.lower(phi, found, halves[0], m).compile()
        first, last = pool.map(run, halves)
    return np.concatenate([first, last[:, 2 * size - len(s) :]], axis=1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _given_shared_jit(phi: Activation, found: Pieces, s: Array, m: Array) -> Array:
    def at(s: Array, m: Array) -> Array:
        root = jnp.sqrt(s)
        z, weights = between(breaks(found, (jnp.asarray(found.edges) - m) / root, s))
        value = phi(m + root * z)
        apart = value - jnp.sum(weights * value)
        # E phi' = E z phi / sqrt(s), by parts: right for jumps too.
        return jnp.stack([jnp.sum(weights * apart**2), jnp.sum(weights * z * apart) ** 2]) / s

    return jnp.moveaxis(jax.lax.map(lambda s: jax.lax.map(lambda m: at(s, m), m, batch_size=128), s), -1, 0)
