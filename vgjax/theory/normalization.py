"""Gradient growth per layer under batch, layer and RMS normalization, at infinite width.

A normalizing layer forgets the scale of what enters it, so the variance settles after one layer and one number says
everything: chi, the growth per layer of the mean *squared* gradient. Batch normalization is above 1 for every
activation; with LayerNorm and RMSNorm chi = 1 can be reached by choosing sigma_b / sigma_w.
"""

import math
from typing import NamedTuple

import numpy as np

from vgjax import activations
from vgjax.activations import Activation
from vgjax.checks import kinds, not_negative, positive_integer
from vgjax.theory._gaussian import ActivationLike, line, values
from vgjax.theory._pieces import pieces
from vgjax.theory._quadrature import panels
from vgjax.theory._scales import check_scale


@kinds
def batch_norm_rate(activation: ActivationLike, batch: float) -> float:
    """Growth per layer of the mean squared gradient through h -> W phi(BN(h)) + b, whatever sigma_w and sigma_b.

    BN uses the statistics of the batch, eps = 0. A unit's B normalized values y are uniform on the sphere of radius
    sqrt(B) in the hyperplane of zero mean, and with D = phi'

        rate = [(B-1) E D1^2 + E D1 D2 - E (D1 y1)^2 + E D1 y1 D2 y2] / [(B-3) (E phi1^2 - E phi1 phi2)],

        rate(B -> infinity) = E phi'^2 / Var phi at q = 1.

    The mean over networks, not the typical one: at small B the mean of logs is a few percent lower.

    Args:
        activation: a name, an `Activation` or a callable.
        batch: B, at least 2, or ``math.inf``.

    Returns:
        The rate, to 1e-9. Infinite for B = 3, where 1 / variance has no mean; 0 for B = 2, where y = +-1 is constant
        and no gradient passes at all.

    Raises:
        ValueError: a batch that is not a whole number of at least 2, or an activation constant over the batch.

    Source: Yang et al. 2019, "A mean field theory of batch normalization".
    """
    phi = activations.get(activation)
    if batch == math.inf:
        at = line(phi, 1.0)
        return _ratio(phi, at.mean(at.slope**2), at.mean((at.phi - at.mean(at.phi)) ** 2))
    if positive_integer("batch", batch) < 2:
        raise ValueError(f"batch must be at least 2 (one sample has no variance), got {batch}")
    if batch <= 3:
        return math.inf if batch == 3 else 0.0
    above, variance = _on_the_sphere(phi, int(batch))
    return _ratio(phi, above / (batch - 3), variance)


def _ratio(phi: Activation, above: float, variance: float) -> float:
    if variance <= 0:
        raise ValueError(f"activation must not be constant, got {phi.name!r} of zero variance")
    return above / variance


class NormPoint(NamedTuple):
    """The fixed point of a normalized stack.

    Attributes:
        q: variance of the preactivation, from the first layer on.
        chi: growth per layer of the mean squared gradient.
        critical_ratio: r = sigma_b^2 / sigma_w^2 at which chi = 1: the critical line sigma_b^2 = r sigma_w^2; None if
            r would be negative (chi < 1 everywhere).
    """

    q: float
    chi: float
    critical_ratio: float | None


@kinds
def norm_on_preactivations(activation: ActivationLike, sigma_w: float, sigma_b: float = 0.0) -> NormPoint:
    """h -> W phi(norm(h)) + b, for LayerNorm and RMSNorm alike (the mean of h over the width is 0).

    q* = sigma_w^2 E phi^2 + sigma_b^2, chi = sigma_w^2 E phi'^2 / q*, r = E phi'^2 - E phi^2, all at q = 1.

    Args:
        activation: a name, an `Activation` or a callable.
        sigma_w, sigma_b: standard deviations, Var W = sigma_w^2 / fan_in.

    Returns:
        `NormPoint`.

    Raises:
        ValueError: a negative or non-finite sigma, or q* = 0.

    Source: Doshi, He and Gromov 2023, "Critical initialization of wide and deep neural networks through partial
    Jacobians", section on LayerNorm.
    """
    _check_sigmas(sigma_w, sigma_b)
    at = line(activation, 1.0)
    square, slope = at.mean(at.phi**2), at.mean(at.slope**2)
    q = sigma_w**2 * square + sigma_b**2
    if q == 0:
        raise ValueError(
            f"sigma_w and sigma_b must not give preactivations that are all 0, got {sigma_w} and {sigma_b}"
        )
    return NormPoint(q, sigma_w**2 * slope / q, _ratio_or_none(slope - square))


@kinds
def layer_norm_on_activations(activation: ActivationLike, sigma_w: float, sigma_b: float = 0.0) -> NormPoint:
    """h -> W LayerNorm(phi(h)) + b.

    LayerNorm subtracts the mean over the width and divides by the standard deviation: at infinite width a fixed affine
    map. So q* = sigma_w^2 + sigma_b^2 and chi = sigma_w^2 E phi'^2 / Var phi at q*. The critical line is an arc over
    q*: r = q* E phi'^2 / Var phi - 1, constant for homogeneous phi, and never negative (Poincare's inequality).

    Args:
        activation: a name, an `Activation` or a callable.
        sigma_w, sigma_b: standard deviations, Var W = sigma_w^2 / fan_in.

    Returns:
        `NormPoint`; its ``critical_ratio`` is the one at the same q*.

    Raises:
        ValueError: a negative or non-finite sigma, both 0, or a constant activation.
    """
    return _on_activations(activation, sigma_w, sigma_b, centered=1.0)


@kinds
def rms_norm_on_activations(activation: ActivationLike, sigma_w: float, sigma_b: float = 0.0) -> NormPoint:
    """h -> W RMSNorm(phi(h)) + b: as `layer_norm_on_activations`, with E phi^2 in place of Var phi.

    Here r can be negative: where the mean of phi is large, every gradient vanishes.

    Args, Returns: as for `layer_norm_on_activations`.

    Raises:
        ValueError: as `layer_norm_on_activations`.
    """
    return _on_activations(activation, sigma_w, sigma_b, centered=0.0)


def _on_activations(activation: ActivationLike, sigma_w: float, sigma_b: float, centered: float) -> NormPoint:
    _check_sigmas(sigma_w, sigma_b)
    phi = activations.get(activation)
    q = sigma_w**2 + sigma_b**2
    at = line(phi, q)
    growth = _ratio(phi, at.mean(at.slope**2), at.mean((at.phi - centered * at.mean(at.phi)) ** 2))
    return NormPoint(q, sigma_w**2 * growth, _ratio_or_none(q * growth - 1))


@kinds
def residual_norm_rate(chi: float, skip: float) -> float:
    """mu^2 + (1 - mu^2) chi: growth per layer of the mean squared gradient through h -> mu h + W phi(norm(h)) + b.

    The stream settles at q* / (1 - mu^2), which is what the branch's gradient is divided by; at mu = 1 the rate is 1.

    Args:
        chi: that of the stack without the skip, `NormPoint.chi`.
        skip: mu, in [0, 1].

    Returns:
        The rate.

    Raises:
        ValueError: a negative or non-finite chi, or a skip outside [0, 1].

    Source: Doshi, He and Gromov 2023, section on residual connections.
    """
    not_negative("chi", chi)
    if not 0 <= skip <= 1:
        raise ValueError(f"skip must lie in [0, 1], got {skip}")
    return skip**2 + (1 - skip**2) * chi


def _check_sigmas(sigma_w: float, sigma_b: float) -> None:
    check_scale("sigma_w", sigma_w)
    check_scale("sigma_b", sigma_b)


def _ratio_or_none(r: float) -> float | None:
    """r, with its rounding taken off 0, or None below it."""
    if abs(r) < 1e-14:
        return 0.0
    return r if r > 0 else None


# --- the sphere of a batch ------------------------------------------------------------------------------------------


def _on_the_sphere(phi: Activation, batch: int) -> tuple[float, float]:
    """(B-1) E D1^2 + E D1 D2 - E (D1 y1)^2 + E D1 y1 D2 y2, and E phi1^2 - E phi1 phi2.

    y1 = sqrt(B-1) sin a with density cos^(B-3) a, and given it y2 = sqrt(B-1) (rho sin a + sqrt(1 - rho^2) cos a sin b)
    with density cos^(B-4) b, rho = -1 / (B-1): both densities are smooth down to B = 4.
    """
    radius, rho = math.sqrt(batch - 1), -1 / (batch - 1)
    edges = np.array([e for e in pieces(phi).edges if abs(e) < radius]) / radius
    # Where the image of an edge leaves the range of y2, the inner integral ends in a (half-integer) power.
    leave = math.acos(rho) + np.array([[1], [-1]]) * np.arccos(edges)
    breaks = np.concatenate([np.arcsin(edges), np.pi / 2 - np.arccos(np.cos(leave)).ravel()])
    a, outer = _angles(breaks, batch - 3)

    spread = math.sqrt(1 - rho**2) * np.cos(a)[:, None]
    images = (edges - rho * np.sin(a)[:, None]) / np.maximum(spread, 1e-300)
    b, inner = _angles(np.arcsin(np.clip(images, -1, 1)), batch - 4)

    y1, y2 = radius * np.sin(a), radius * (rho * np.sin(a)[:, None] + spread * np.sin(b))
    phi1, slope1 = values(phi, y1)
    phi2, slope2 = values(phi, y2)

    def same(f: np.ndarray) -> float:
        return float(outer @ f**2)

    def other(f: np.ndarray, g: np.ndarray) -> float:
        return float(outer @ (f * np.sum(inner * g, axis=1)))

    above = (batch - 1) * same(slope1) + other(slope1, slope2)
    above += other(slope1 * y1, slope2 * y2) - same(slope1 * y1)
    return above, same(phi1) - other(phi1, phi2)


def _angles(breaks: np.ndarray, power: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [-pi/2, pi/2] for the density ~ cos^power, between breaks of shape ``(..., k)``.

    Every panel is traversed as middle - half cos(pi s), which turns half-integer powers at its ends into smooth
    functions of s.
    """
    # cos^power is close to a Gaussian of variance 1 / power: the panels of a line, as far as there are angles.
    own = np.clip(np.array([-12, -8, -4, 0, 4, 8, 12]) / math.sqrt(power + 1), -np.pi / 2, np.pi / 2)
    own = np.broadcast_to(own, (*breaks.shape[:-1], len(own)))
    at = np.sort(np.concatenate([own, np.clip(breaks, own[..., :1], own[..., -1:])], axis=-1), axis=-1)
    half, middle = (at[..., 1:, None] - at[..., :-1, None]) / 2, (at[..., 1:, None] + at[..., :-1, None]) / 2
    from scipy.special import xlog1py

    s, w = panels(np.array([0.0, np.pi]))
    nodes = middle - half * np.cos(s[0])
    # cos^power by its logarithm: the rounding of cos itself would grow with the batch.
    weights = half * w[0] * np.sin(s[0]) * np.exp(xlog1py(power / 2, -(np.sin(nodes) ** 2)))
    nodes, weights = (x.reshape(*breaks.shape[:-1], -1) for x in (nodes, weights))
    return nodes, weights / weights.sum(axis=-1, keepdims=True)
