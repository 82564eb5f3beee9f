"""Correlation: the c map of two inputs of equal norm, its fixed point and its slope there.

With epsilon = 1 - c the map is epsilon -> sigma_w^2 R(epsilon) epsilon, where R(epsilon) = E (phi(u1) - phi(u2))^2 /
(2 epsilon q) tends to E phi'^2 for epsilon -> 0: nothing is subtracted, so it is as right at 1 - c = 1e-15 as at 1.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from vgjax.activations import Activation
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


@jax.jit
def fixed_correlations(pair: TwoPoint, q: Array, levels: Array, gaps: Array) -> tuple[Array, Array]:
    """c* and the slope of the c map there, where c = 1 repels; shapes ``(points,)``.

    The c map is a power series in c with coefficients that are not negative, so it is convex on [0, 1] and has exactly
    one fixed point below 1 when its slope at 1, chi, exceeds 1, or when it maps 1 to 1 - gap (dropout).
    """

    def at(q: Array, level: Array, gap: Array) -> tuple[Array, Array]:
        def excess(x: Array) -> Array:  # falls from chi - 1 at x = sqrt(epsilon) = 0 to at most 0 at x = 1
            return level * pair.ratio(x * x * q, (1 - x * x) * q) + gap / (x * x) - 1

        epsilon = _falling_root(excess, jnp.sqrt(_LEAST), jnp.ones_like(q)) ** 2
        return 1 - epsilon, level * pair.slope(epsilon * q, (1 - epsilon) * q)

    return jax.lax.map(lambda point: at(*point), (q, levels, gaps), batch_size=256)


def _falling_root(f: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Where f, falling, crosses 0 between two ends; the end beyond which it would cross, where it does not.

    Chandrupatla 1997: inverse quadratic interpolation where it can be trusted, bisection elsewhere; 14 steps leave
    nothing to gain for the smooth functions here.
    """
    f_low, f_high = f(low), f(high)

    def step(_: int, state: tuple[Array, ...]) -> tuple[Array, ...]:
        a, b, c, fa, fb, fc, share = state  # the root lies between a and b; c was dropped last
        x = a + share * (b - a)
        fx = f(x)
        same = jnp.sign(fx) == jnp.sign(fa)
        b, c, fb, fc = (jnp.where(same, *pair) for pair in ((b, a), (a, b), (fb, fa), (fa, fb)))
        a, fa = x, fx
        xi, psi = (a - b) / _nonzero(c - b), (fa - fb) / _nonzero(fc - fb)
        trusted = (psi**2 < xi) & ((1 - psi) ** 2 < 1 - xi)
        inverse = fa / _nonzero(fb - fa) * fc / _nonzero(fb - fc)
        inverse += (c - a) / _nonzero(b - a) * fa / _nonzero(fc - fa) * fb / _nonzero(fc - fb)
        least = 1e-15 / _nonzero(jnp.abs(b - a))
        share = jnp.clip(jnp.where(trusted, inverse, 0.5), least, 1 - least)
        return a, b, c, fa, fb, fc, share

    start = (high, low, low, f_high, f_low, f_low, jnp.full_like(low, 0.5))
    a, b, _, fa, fb, *_ = jax.lax.fori_loop(0, 14, step, start)
    root = jnp.where(jnp.abs(fa) < jnp.abs(fb), a, b)
    return jnp.where(f_low <= 0, low, jnp.where(f_high >= -1e-14, high, root))


def _nonzero(x: Array) -> Array:
    return jnp.where(x == 0, 1e-300, x)
