"""Residual stacks x' = skip x + branch (V phi(W x + b) + a) at infinite width, layer by layer.

With p = E x^2 and q = sigma_w^2 p + sigma_b^2 the variance of the branch's preactivation,

    p' = skip^2 p + branch^2 (sigma_v^2 E phi^2(q) + sigma_a^2),
    E|g|^2 = (skip^2 + branch^2 sigma_v^2 sigma_w^2 E phi'^2(q)) E|g'|^2.

At skip = branch = 1 the gradient grows like a power or a stretched exponential of depth instead of an exponential where
phi saturates: tanh with sigma_v = sigma_w = 1 and no bias has p ~ l and a log growth ~ (4/3) sqrt(2 l / pi). ReLU keeps
the exponential: l ln(1 + sigma_v^2 sigma_w^2 / 2). Branches of scale 1 / sqrt(depth) (`stable_scale`) bound it by a
constant: (1 + sigma_v^2 sigma_w^2 / (2 depth))^depth for ReLU. At branch = 0, skip = 1 (ReZero, SkipInit at the start)
every layer is the identity and the log growth is exactly 0.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from vgjax import activations
from vgjax.activations import Activation, Elementwise
from vgjax.checks import not_negative, positive_integer
from vgjax.theory.gaussian import Pieces, nodes, pieces


class Trajectory(NamedTuple):
    """A residual stream along depth, l = 0..depth; numpy float64.

    Attributes:
        p: E x_l^2, shape ``(depth + 1,)``; infinite where it leaves the float range.
        q: variance of the preactivation of the branch of layer l, shape ``(depth,)``.
        log_gradient: ln E|g_0|^2 / E|g_l|^2: growth of the mean squared gradient on its way from x_l back to x_0,
            shape ``(depth + 1,)``.
    """

    p: np.ndarray
    q: np.ndarray
    log_gradient: np.ndarray


def trajectory(
    activation: str | Activation | Elementwise,
    depth: int,
    *,
    sigma_w: float = 1.0,
    sigma_b: float = 0.0,
    sigma_v: float = 1.0,
    sigma_a: float = 0.0,
    branch: ArrayLike = 1.0,
    skip: ArrayLike = 1.0,
    p0: float = 1.0,
) -> Trajectory:
    """p, q and the log gradient at every depth of x' = skip x + branch (V phi(W x + b) + a).

    Args:
        activation: a name, an `Activation` or a callable.
        depth: number of residual layers.
        sigma_w, sigma_b: standard deviations before phi, Var W = sigma_w^2 / fan_in.
        sigma_v, sigma_a: standard deviations after phi, Var V = sigma_v^2 / fan_in.
        branch, skip: scales, shape ``()`` or ``(depth,)``; for instance ``branch=stable_scale(depth)``.
        p0: E x_0^2.

    Raises:
        ValueError: a negative or non-finite number, a depth that is not a whole number of at least 1, scales of
            another shape, or variances beyond what phi resolves.

    Source: Yang and Schoenholz 2017, "Mean field residual networks: on the edge of chaos".
    """
    depth = positive_integer("depth", depth)
    sigmas = {"sigma_w": sigma_w, "sigma_b": sigma_b, "sigma_v": sigma_v, "sigma_a": sigma_a}
    for name, value in {**sigmas, "p0": p0}.items():
        not_negative(name, value)
    branches, skips = per_layer("branch", branch, depth), per_layer("skip", skip, depth)
    phi = activations.get(activation)

    p, q, factors = np.empty(depth + 1), np.empty(depth), np.empty(depth)
    p[0] = p0
    with np.errstate(over="ignore", under="ignore"):
        for l, (b2, s2) in enumerate(zip(branches**2, skips**2, strict=True)):
            q[l] = _times(sigma_w**2, p[l]) + sigma_b**2
            square, slope = moments(phi, float(q[l]))
            p[l + 1] = _times(s2, p[l]) + b2 * sigma_a**2 + _times(b2 * sigma_v**2, square)
            factors[l] = s2 + b2 * sigma_v**2 * sigma_w**2 * slope
    with np.errstate(divide="ignore"):
        return Trajectory(p, q, np.concatenate([[0.0], np.cumsum(np.log(factors))]))


def stable_scale(depth: int) -> float:
    """1 / sqrt(depth): the branch scale that keeps p and the gradient bounded at any depth.

    Source: Hayou et al. 2021, "Stable ResNet".
    """
    return 1 / math.sqrt(positive_integer("depth", depth))


def fixup_scale(depth: int, layers: int) -> float:
    """depth^(-1 / (2m - 2)): the factor on the first m - 1 kernels of every branch under Fixup (the last one is 0).

    Args:
        depth: number of residual branches.
        layers: m, kernels in a branch, at least 2.

    Source: Zhang, Dauphin and Ma 2019, "Fixup initialization", section 3.
    """
    if positive_integer("layers", layers) < 2:
        raise ValueError(f"layers must be at least 2 (the last kernel of a Fixup branch is 0), got {layers}")
    return float(positive_integer("depth", depth) ** (-1 / (2 * layers - 2)))


def per_layer(name: str, scale: ArrayLike, depth: int) -> np.ndarray:
    """A scale as one number per layer, shape ``(depth,)``; a number holds for all.

    Raises:
        ValueError: a negative or non-finite value, or another shape.
    """
    not_negative(name, scale)
    values = np.asarray(scale, dtype=float)
    if values.shape not in ((), (depth,)):
        raise ValueError(f"{name} must be a number or have shape {(depth,)}, one per layer, got shape {values.shape}")
    return np.broadcast_to(values, (depth,))


def _times(factor: float, value: float) -> float:
    """The product, with 0 times infinity = 0: what is not connected does not overflow."""
    return factor * value if factor else 0.0


# --- moments at any variance ----------------------------------------------------------------------------------------


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
    return _times(limit + correction / math.sqrt(q), size), slope_limit + slope_correction / math.sqrt(q)


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
