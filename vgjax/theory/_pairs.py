"""Pairs of inputs of equal norm: their correlation map, its fixed point and its slope there.

With epsilon = 1 - c the map is epsilon -> sigma_w^2 R(epsilon) epsilon, where R(epsilon) = E (phi(u1) - phi(u2))^2 /
(2 epsilon q) tends to E phi'^2 for epsilon -> 0: nothing is subtracted, so it is as right at 1 - c = 1e-15 as at 1.
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
from vgjax.theory._chebyshev import Axis, Surface, axis, surface
from vgjax.theory._gaussian import breaks
from vgjax.theory._moments import MomentTable, moment_table, sampled
from vgjax.theory._pieces import REACH, Pieces
from vgjax.theory._quadrature import gaussian_panels, panels

_LEAST = 1e-13  # a fixed point nearer to c = 1 than that is not told from it
_LOWS, _HIGHS = (1e-2, 1e-4, 1e-8, 1e-12), (1e2, 1e4, 1e8)  # ends of tables: few, for each costs a second; q settles
# between the first two as a rule
_OUTER = 16  # Gauss-Legendre nodes in the shared part, whose panels are graded: the integrand is smoothed already
_MOST_WORK = 1.5e10  # evaluations of phi for a table: minutes
_GRADING = 3.0  # ratio of neighbouring panels there: 16 nodes resolve a singularity one panel away to 1e-13


class PairTable(NamedTuple):
    """Two inputs of equal norm, as a function of what they share.

    u1 and u2 share a Gaussian part of variance v = c q and have independent ones of variance s = (1 - c) q each. What
    is kept are E (phi(u1) - phi(u2))^2 / 2 s and E phi'(u1) phi'(u2). Both tend to E phi'^2 for s -> 0, without a
    subtraction; the first turns the c map into epsilon -> sigma_w^2 ratio epsilon, epsilon = 1 - c, the second is its
    slope.

    Attributes:
        ratios, slopes: surfaces over ln(sqrt(s) + sqrt(s0)), ln(v + v0); times sqrt(s) if phi jumps.
        root, shift: sqrt(s0) and v0.
        jumps: whether phi does.
        unit: moments for which both are in units of E phi^2 / q, which may be steep; None where nothing is.
    """

    ratios: Surface
    slopes: Surface
    root: float
    shift: float
    jumps: bool
    unit: MomentTable | None

    def ratio(self, s: Any, v: Any) -> Any:
        """E (phi(u1) - phi(u2))^2 / 2 s for one pair (JAX) or many (numpy); s > 0 if phi jumps."""
        return self._read(self.ratios, s, v)

    def slope(self, s: Any, v: Any) -> Any:
        """E phi'(u1) phi'(u2) likewise."""
        return self._read(self.slopes, s, v)

    def _read(self, surface: Surface, s: Any, v: Any) -> Any:
        xp = s.__array_namespace__()
        value = surface(xp.log(xp.sqrt(s) + self.root), xp.log(v + self.shift))
        if self.unit is not None:
            value = value * self.unit(s + v).square / (s + v)
        return xp.where(self.jumps, value / xp.sqrt(s), value)


def pair_table(phi: Activation, low: float, high: float) -> PairTable:
    """The table for q between two ends, which the call alone decides on: what came before moves no digit."""
    lower = max(least_norm(phi), next((end for end in _LOWS if end <= low), _LOWS[-1]))
    return _pair_table(phi, lower, next((end for end in _HIGHS if end >= high), _HIGHS[-1]))


def least_norm(phi: Activation) -> float:
    """q below which correlations are not known: E phi^2 leaves the float range not far below."""
    square = sampled(phi).values[:, :, 0]
    return 6 * math.exp(sampled(phi).edges[np.argmax((square > 0).all(axis=1))]) if (square == 0).any() else 0.0


def fixed_correlations(
    pair: PairTable, q: np.ndarray, levels: np.ndarray, gaps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """c* and the slope of the c map there, where c = 1 repels; shapes ``(points,)``.

    The c map is a power series in c with coefficients that are not negative, so it is convex on [0, 1] and has exactly
    one fixed point below 1 when its slope at 1, chi, exceeds 1, or when it maps 1 to 1 - gap (dropout). Source: Poole
    et al. 2016, "Exponential expressivity in deep neural networks through transient chaos", section 3.
    """
    from scipy.optimize.elementwise import find_root

    def excess(x: np.ndarray, q: np.ndarray, level: np.ndarray, gap: np.ndarray) -> np.ndarray:
        # Falls from chi - 1 at x = sqrt(epsilon) = 0 to at most 0 at x = 1.
        square = x * x
        return level * pair.ratio(square * q, (1 - square) * q) + gap / square - 1

    ends = np.full_like(q, math.sqrt(_LEAST)), np.ones_like(q)
    found = find_root(excess, ends, args=(q, levels, gaps))
    # Without a change of sign the root lies beyond the end at which the function is nearer to 0.
    beyond = np.where(found.f_bracket[0] <= 0, *ends)
    epsilon = np.where(found.status == -1, beyond, found.x) ** 2
    return 1 - epsilon, levels * pair.slope(epsilon * q, (1 - epsilon) * q)


# --- the table ------------------------------------------------------------------------------------------------------


@functools.cache
@untraced
def _pair_table(phi: Activation, low: float, high: float) -> PairTable:
    """For q between two ends; float64.

    First, given the shared part m, Var phi(m + sqrt(s) z) / s and (E phi'(m + sqrt(s) z))^2 for every s on a set of m;
    then their averages over m ~ N(0, v) for every v, as one matrix product.
    """
    with jax.enable_x64(True):
        whole = sampled(phi).pieces
        found = whole.within(REACH * math.sqrt(high))  # s + v <= high: all that matters lies there
        narrowest = _narrowest(found)
        # ln(sqrt(s) + sqrt(s0)), because averages are even in sqrt(s) only for smooth phi; s0 and v0 lie below what
        # either end of the table and the narrowest feature of phi can tell from 0.
        root, shift = min(math.sqrt(low), narrowest) / 4, low / 20
        along_s = axis(math.log(root), math.log(math.sqrt(high) + root), 1.0)
        along_v = axis(math.log(shift), math.log(high + shift), 2.0)
        s, v = _variances(along_s, along_v, root, shift)
        m, weights = _shared(found, math.sqrt(v.min()), math.sqrt(s.min()), math.sqrt(high))
        if (work := 32 * len(found.edges) * len(s) * len(m)) > _MOST_WORK:
            raise ValueError(
                f"activation {phi.name!r} must have fewer pieces for correlations, got {len(found.edges)} up to |h| = "
                f"{found.reach:.3g}: a table would take {work:.1g} evaluations"
            )
        given = _given_shared(phi, found, s, m, np.sqrt(s) < narrowest / 8)
        if found.jumps:
            given *= np.sqrt(s)[:, None]
        density = np.exp(-(m[:, None] ** 2) / (2 * v)) * weights[:, None] / np.sqrt(2 * math.pi * v)
        unit, q = (moment_table(phi), s[:, None] + v) if whole.overflows else (None, s)
        size = unit(q).square / q if unit else np.ones((1, 1))
        ratios, slopes = (surface(along_s, along_v, part @ density / np.where(size > 0, size, 1)) for part in given)
        return PairTable(ratios, slopes, root, shift, bool(found.jumps), unit)


def _variances(along_s: Axis, along_v: Axis, root: float, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """s and v at the nodes; v a little above 0, where its density has a width."""
    s = (np.exp(along_s.nodes.ravel()) - root) ** 2
    return s, np.maximum(np.exp(along_v.nodes.ravel()) - shift, 1e-3 * shift)


def _narrowest(found: Pieces) -> float:
    """Width of the narrowest piece: the finest scale of phi, kinks apart (they may leave slivers beside them)."""
    low, high = np.array(found.edges[:-1]), np.array(found.edges[1:])
    kinks = np.array([*found.kinks, np.inf])
    apart = np.abs((low + high)[:, None] / 2 - kinks).min(axis=1) > 2e-3
    return float((high - low)[apart].min())


def _shared(found: Pieces, narrowest_v: float, narrowest_s: float, widest: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights in m that serve every v at once, graded towards 0 and towards the kinks."""
    outermost = 10 * widest
    graded = narrowest_v * _GRADING ** np.arange(0, math.log(outermost / narrowest_v, _GRADING))
    near = narrowest_s * _GRADING ** np.arange(0, math.log(outermost / narrowest_s, _GRADING))
    edges = [np.array(found.edges), graded, -graded, np.array([0, outermost, -outermost])]
    edges += [kink + side * near for kink in found.kinks for side in (-1, 1)]
    m, weights = panels(np.unique(np.clip(np.concatenate(edges), -outermost, outermost)), _OUTER)
    return m.ravel(), weights.ravel()


def _given_shared(phi: Activation, found: Pieces, s: np.ndarray, m: np.ndarray, small: np.ndarray) -> np.ndarray:
    """Var phi(m + sqrt(s) z) / s and (E phi')^2 for every s and m, shape ``(2, len(s), len(m))``.

    Where s is small only the kinks cut phi, so there are two programs; each runs on both halves of its s, for XLA on a
    CPU would use one core: four threads in all.
    """
    few = dataclasses.replace(found, edges=found.kinks)
    given = np.empty((2, len(s), len(m)))

    def run(where: np.ndarray, cut: Pieces) -> None:
        with jax.enable_x64(True), ThreadPoolExecutor() as pool:  # the setting holds for one thread
            size = (len(where) + 1) // 2
            halves = where[:size], where[len(where) - size :]  # of one size, for one program
            program = _given_shared_jit.lower(phi, cut, s[halves[0]], m).compile()
            for half, values in zip(halves, pool.map(lambda half: _called(program, s[half], m), halves), strict=True):
                given[:, half] = values

    with ThreadPoolExecutor() as pool:
        list(pool.map(run, (np.flatnonzero(small), np.flatnonzero(~small)), (few, found)))
    return given


def _called(program: Any, *arguments: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(program(*arguments))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _given_shared_jit(phi: Activation, found: Pieces, s: Array, m: Array) -> Array:
    def at(s: Array, m: Array) -> Array:
        root = jnp.sqrt(s)
        z, weights = (part.ravel() for part in gaussian_panels(breaks(found, (jnp.asarray(found.edges) - m) / root)))
        value = phi(m + root * z)
        apart = value - jnp.sum(weights * value)
        # E phi' = E z phi / sqrt(s), by parts: right for jumps too.
        return jnp.stack([jnp.sum(weights * apart**2), jnp.sum(weights * z * apart) ** 2]) / s

    return jnp.moveaxis(jax.lax.map(lambda s: jax.lax.map(lambda m: at(s, m), m, batch_size=128), s), -1, 0)
