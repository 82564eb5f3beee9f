"""Activations transformed so that a deep network starts well-conditioned: Deep Kernel Shaping and Tailored Activation
Transformations.

Both replace phi by phihat(u) = gamma (phi(alpha u + beta) + delta) and choose the four numbers by conditions on two
maps of one layer with sigma_w = 1, sigma_b = 0: the variance map Q(q) = E phihat^2(q), and the normalized correlation
map C(c) = E phihat(u1) phihat(u2) / Q(1) at q = 1. The slope of C at 1 is chi, so chi^depth is what is being set.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax import activations
from vgjax.activations import Activation
from vgjax.checks import ArrayLike, finite, kinds, positive_integer
from vgjax.theory._gaussian import ActivationLike, Line, correlated_expectation, line
from vgjax.theory._pieces import pieces

_Trial = tuple[float, float, float, float]  # gamma and delta by two of the conditions at some alpha and beta, and how
# far the other two are missed


class Shaped(NamedTuple):
    """phihat(u) = gamma (base(alpha u + beta) + delta).

    Attributes:
        base: the activation that was transformed.
        alpha, beta: scale and shift of what enters it.
        gamma, delta: scale of what leaves it, and the shift before that.
    """

    base: Activation
    alpha: float
    beta: float
    gamma: float
    delta: float

    @property
    def activation(self) -> Activation:
        """phihat, for use in a network; the same object for the same numbers. Draw kernels at sigma_w = 1."""
        return _transformed(*self)


@functools.cache
def _transformed(base: Activation, alpha: float, beta: float, gamma: float, delta: float) -> Activation:
    def phihat(u: Array) -> Array:
        return gamma * (base(alpha * u + beta) + delta)

    kinks = tuple((kink - beta) / alpha for kink in base.kinks)
    homogeneous = base.homogeneous and beta == 0 and delta == 0
    return Activation(f"shaped {base.name}", phihat, kinks=kinks, homogeneous=homogeneous)


@kinds
def c_map(activation: ActivationLike, c: ArrayLike, q: float = 1.0) -> Any:
    """E phi(u1) phi(u2) / E phi^2 for a Gaussian pair of variance q and correlation c: C(c) at sigma_b = 0.

    Args:
        activation: a name, an `Activation` or a callable.
        c: correlations, any shape.
        q: variance.

    Returns:
        Shape of c.

    Raises:
        ValueError: a q that is not positive and finite, or as `theory.correlated_expectation`.
    """
    finite("q", q, "positive", lambda v: v > 0)
    return correlated_expectation(activation, q, q, c) / correlated_expectation(activation, q, q, 1.0)


@kinds
def local_slope(depth: int, slope: float = 1.5) -> float:
    """zeta^(1/depth): the slope C'(1) of each layer that gives a plain stack of that depth the slope zeta.

    Raises:
        ValueError: a depth that is not a whole number of at least 1, or a slope that is not above 1.

    Source: Martens et al. 2021, "Rapid training of deep neural networks without skip connections or normalization
    layers using Deep Kernel Shaping", which recommends zeta = 1.5.
    """
    finite("slope", slope, "above 1", lambda v: v > 1)
    return float(slope ** (1 / positive_integer("depth", depth)))


@kinds
def deep_kernel_shaping(activation: ActivationLike, slope: float) -> Shaped:
    """Deep Kernel Shaping: Q(1) = 1, Q'(1) = 1, C(0) = 0, C'(1) = slope.

    C(0) = 0 asks for delta = -E phi and Q(1) = 1 for gamma = 1 / sqrt(Var phi), both at alpha z + beta; the other two
    are solved for alpha and beta. Of several solutions the one nearest the origin is taken: smallest |beta|, then
    beta > 0.

    Args:
        activation: a name, an `Activation` or a callable.
        slope: of each layer, above 1; ``local_slope(depth)`` for a plain stack.

    Returns:
        `Shaped`.

    Raises:
        ValueError: a slope that is not above 1, or an activation for which there is no solution (ReLU, linear).

    Source: Martens et al. 2021, section on the conditions of DKS.
    """
    finite("slope", slope, "above 1", lambda v: v > 1)
    phi = activations.get(activation)

    def trial(at: Line, alpha: float) -> _Trial:
        mean = at.mean(at.phi)
        centered = at.phi - mean
        variance = max(at.mean(centered**2), 1e-300)
        q_slope = alpha * at.mean(centered * at.slope * at.z) / variance
        c_slope = alpha**2 * at.mean(at.slope**2) / variance
        return variance**-0.5, -mean, (q_slope - 1) / (slope - 1), (c_slope - 1) / (slope - 1) - 1

    return _nearest(_solutions(phi, slope - 1, trial), phi, f"Q'(1) = 1, C(0) = 0 and C'(1) = {slope:g}")


@kinds
def local_curvature(depth: int, curvature: float = 0.3) -> float:
    """tau / depth: the C''(1) of each layer that gives a plain stack of that depth, with C'(1) = 1, the curvature tau.

    Raises:
        ValueError: a depth that is not a whole number of at least 1, or a curvature that is not above 0.

    Source: Zhang, Botev and Martens 2022, "Deep learning without shortcuts: shaping the kernel with tailored
    rectifiers", which recommends tau = 0.3.
    """
    finite("curvature", curvature, "above 0", lambda v: v > 0)
    return curvature / positive_integer("depth", depth)


@kinds
def tailored_smooth(activation: ActivationLike, curvature: float) -> Shaped:
    """Tailored Activation Transformation of a smooth phi: Q(1) = 1, Q'(1) = 1, C'(1) = 1, C''(1) = curvature.

    C'(1) = 1 asks for gamma = 1 / (alpha sqrt(E phi'^2)), and Q(1) = 1 for delta = -E phi +- sqrt(1 / gamma^2 -
    Var phi), real by Poincare's inequality; the other two are solved for alpha and beta. Of several solutions the
    one nearest the origin is taken: smallest |beta|, then beta > 0.

    Args:
        activation: a name, an `Activation` or a callable whose slope does not jump.
        curvature: of each layer, above 0; ``local_curvature(depth)`` for a plain stack.

    Returns:
        `Shaped`.

    Raises:
        ValueError: a curvature that is not above 0, an activation with a kink (C''(1) is infinite), or one for which
            there is no solution.

    Source: Zhang, Botev and Martens 2022, section 4.
    """
    finite("curvature", curvature, "above 0", lambda v: v > 0)
    phi = activations.get(activation)
    _check_smooth(phi)

    def trial(sign: int, at: Line, alpha: float) -> _Trial:
        mean, slope2 = at.mean(at.phi), max(at.mean(at.slope**2), 1e-300)
        offset = sign * math.sqrt(max(alpha**2 * slope2 - at.mean((at.phi - mean) ** 2), 0.0))
        q_slope = at.mean((at.phi - mean + offset) * at.slope * at.z) / (alpha * slope2)
        c_curvature = alpha**2 * at.mean(_curvatures(phi, at.u) ** 2) / slope2
        return 1 / (alpha * math.sqrt(slope2)), offset - mean, (q_slope - 1) / curvature, c_curvature / curvature - 1

    found = [shaped for sign in (1, -1) for shaped in _solutions(phi, curvature, functools.partial(trial, sign))]
    return _nearest(found, phi, f"Q'(1) = 1, C'(1) = 1 and C''(1) = {curvature:g}")


@kinds
def tailored_leaky_relu(depth: int, correlation: float = 0.9) -> Shaped:
    """Tailored Activation Transformation of leaky ReLU: the negative slope a with C^depth(0) = eta.

    phihat = sqrt(2 / (1 + a^2)) leaky_relu(a), for which C is `leaky_relu_c_map` and every q is fixed.

    Args:
        depth: number of layers of a plain stack.
        correlation: eta, in (0, 1): what two orthogonal inputs end at.

    Returns:
        `Shaped`.

    Raises:
        ValueError: a depth that is not a whole number of at least 1, or an eta that is not in (0, 1) or above what
            ReLU (a = 0) gives at that depth.

    Source: Zhang, Botev and Martens 2022, section 4.
    """
    from scipy.optimize import brentq

    depth = positive_integer("depth", depth)
    if not 0 < correlation < 1:
        raise ValueError(f"correlation must lie in (0, 1), got {correlation}")

    def miss(slope: float) -> float:
        c = 0.0
        for _ in range(depth):
            c = leaky_relu_c_map(c, slope)
        return c - correlation

    if miss(0.0) < 0:
        largest = miss(0.0) + correlation
        raise ValueError(
            f"correlation must be at most {largest:.6g}, what ReLU gives at depth {depth}, got {correlation}"
        )
    a = float(brentq(miss, 0.0, 1.0, xtol=1e-15, rtol=1e-14))
    return Shaped(activations.leaky_relu(a), 1.0, 0.0, math.sqrt(2 / (1 + a * a)), 0.0)


@kinds
def leaky_relu_c_map(c: float, slope: float) -> float:
    """C(c) = c + (1-a)^2 / (pi (1+a^2)) (sqrt(1-c^2) - c arccos c), of leaky ReLU with negative slope a.

    Source: Cho and Saul 2009, "Kernel methods for deep learning", the arc-cosine kernel of degree 1.
    """
    c = min(c, 1.0)
    bend = math.sqrt((1 - c) * (1 + c)) - c * math.acos(c)
    return c + (1 - slope) ** 2 / (math.pi * (1 + slope**2)) * bend


def _curvatures(phi: Activation, u: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(_compiled_curvatures(phi, jnp.asarray(u)))


@functools.partial(jax.jit, static_argnums=0)
def _compiled_curvatures(phi: Activation, u: Array) -> Array:
    return jax.jvp(phi.derivative, (u,), (jnp.ones_like(u),))[1]


# --- solving for alpha and beta -------------------------------------------------------------------------------------

_BETAS = np.sinh(np.linspace(-5.47, 5.47, 40)) / 30  # dense near 0, where kinks of phi'' are; up to 4
_WEAKEST, _STRONGEST = 0.1, 4.0  # alpha, the weakest in units of the root of the target: phihat bends by alpha^2


def _check_smooth(phi: Activation) -> None:
    kinks = np.array(pieces(phi).kinks)
    with jax.enable_x64(True):
        left, right = (np.asarray(phi.derivative(jnp.asarray(kinks + side))) for side in (-1e-9, 1e-9))
    if np.any(np.abs(right - left) > 1e-6):
        raise ValueError(f"activation must have a continuous slope for C''(1) to be finite, got {phi.name!r}")


def _solutions(phi: Activation, target: float, trial: Callable[[Line, float], _Trial]) -> list[Shaped]:
    """Every solution that a grid in (ln alpha, beta) shows: both misses change sign between the corners of a cell."""
    from scipy.optimize import root

    def at(log_alpha: float, beta: float) -> _Trial:
        alpha = math.exp(min(max(log_alpha, -20.0), 3.0))
        return trial(line(phi, alpha * alpha, beta), alpha)

    alphas = np.linspace(math.log(min(_WEAKEST * math.sqrt(target), _WEAKEST)), math.log(_STRONGEST), 22)
    with np.errstate(all="ignore"):  # exponentials overflow at the far corner of the grid
        positive = np.array([[at(a, b)[2:] for b in _BETAS] for a in alphas]) > 0
    corners = np.stack([positive[i : len(positive) - 1 + i, j : len(_BETAS) - 1 + j] for i in (0, 1) for j in (0, 1)])
    cells = np.argwhere((corners.any(axis=0) & ~corners.all(axis=0)).all(axis=-1))
    starts = [np.array([alphas[i : i + 2].mean(), _BETAS[j : j + 2].mean()]) for i, j in cells]
    found = []
    for start in starts:
        end = root(lambda x: at(*x)[2:], start, tol=1e-12)
        gamma, delta, *misses = at(*end.x)
        if max(map(abs, misses)) < 1e-8:
            found.append(Shaped(phi, math.exp(end.x[0]), float(end.x[1]), gamma, delta))
    return found


def _nearest(found: list[Shaped], phi: Activation, conditions: str) -> Shaped:
    if not found:
        raise ValueError(f"activation must have a transformation with {conditions}, got {phi.name!r}, which has none")
    return min(found, key=lambda shaped: (round(abs(shaped.beta), 6), -shaped.beta))
