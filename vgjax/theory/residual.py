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

import math
from typing import NamedTuple

import numpy as np

from vgjax import activations
from vgjax.checks import ArrayLike, kinds, positive_integer
from vgjax.theory._gaussian import ActivationLike
from vgjax.theory._moments import moment_table
from vgjax.theory._scales import checked_scales, per_layer
from vgjax.values import by_content


@by_content
class ResidualPropagation(NamedTuple):
    """A residual stream along depth, l = 0..depth; numpy float64.

    Attributes:
        p: E x_l^2, shape ``(*scales, depth + 1)``; infinite where it leaves the float range.
        q: variance of the preactivation of the branch of layer l, shape ``(*scales, depth)``.
        log_chi: ln E|g_0|^2 / E|g_l|^2: growth of the mean squared gradient on its way from x_l back to x_0, shape
            ``(*scales, depth + 1)``.
    """

    p: np.ndarray
    q: np.ndarray
    log_chi: np.ndarray


@kinds
def propagate(
    activation: ActivationLike,
    depth: int,
    *,
    sigma_w: ArrayLike = 1.0,
    sigma_b: ArrayLike = 0.0,
    sigma_v: ArrayLike = 1.0,
    sigma_a: ArrayLike = 0.0,
    branch: ArrayLike = 1.0,
    skip: ArrayLike = 1.0,
    p0: ArrayLike = 1.0,
) -> ResidualPropagation:
    """p, q and the gradient's growth at every depth of x' = skip x + branch (V phi(W x + b) + a).

    Args:
        activation: a name, an `Activation` or a callable.
        depth: number of residual layers.
        sigma_w, sigma_b: standard deviations before phi, Var W = sigma_w^2 / fan_in; any shapes that broadcast, with
            the next two and p0 as well: one call answers a grid of scales.
        sigma_v, sigma_a: standard deviations after phi, Var V = sigma_v^2 / fan_in.
        branch, skip: scales, shape ``()`` or ``(depth,)``; for instance ``branch=stable_scale(depth)``.
        p0: E x_0^2.

    Returns:
        `ResidualPropagation`.

    Raises:
        ValueError: a negative or non-finite number, a depth that is not a whole number of at least 1, or scales of
            other shapes.

    Source: Yang and Schoenholz 2017, "Mean field residual networks: on the edge of chaos".
    """
    depth = positive_integer("depth", depth)
    scales = {"sigma_w": sigma_w, "sigma_b": sigma_b, "sigma_v": sigma_v, "sigma_a": sigma_a, "p0": p0}
    shape = checked_scales(**scales)
    w2, b2, v2, a2 = (np.broadcast_to(np.square(np.asarray(scale, float)), shape) for scale in [*scales.values()][:4])
    branches, skips = per_layer("branch", branch, depth), per_layer("skip", skip, depth)
    table = moment_table(activations.get(activation))

    p, q, factors = np.empty((depth + 1, *shape)), np.empty((depth, *shape)), np.empty((depth, *shape))
    p[0] = p0
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        for l, (t2, s2) in enumerate(zip(branches**2, skips**2, strict=True)):
            q[l] = _times(w2, p[l]) + b2
            square, slope_square, _ = table(q[l])
            p[l + 1] = _times(s2, p[l]) + t2 * a2 + _times(t2 * v2, square)
            factors[l] = s2 + _times(t2 * v2 * w2, slope_square)
        log_chi = np.concatenate([np.zeros((1, *shape)), np.cumsum(np.log(factors), axis=0)])
    return ResidualPropagation(*(np.moveaxis(series, 0, -1) for series in (p, q, log_chi)))


def _times(factor: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The product, with 0 times infinity = 0: what is not connected does not overflow."""
    return factor * np.where(factor == 0, 0, value)


@kinds
def stable_scale(depth: int) -> float:
    """1 / sqrt(depth): the branch scale that keeps p and the gradient bounded at any depth.

    Raises:
        ValueError: a depth that is not a whole number of at least 1.

    Source: Hayou et al. 2021, "Stable ResNet".
    """
    return 1 / math.sqrt(positive_integer("depth", depth))


@kinds
def fixup_scale(depth: int, layers: int) -> float:
    """depth^(-1 / (2m - 2)): the factor on the first m - 1 kernels of every branch under Fixup (the last one is 0).

    Args:
        depth: number of residual branches.
        layers: m, kernels in a branch, at least 2.

    Returns:
        The factor.

    Raises:
        ValueError: numbers that are not whole, or too small.

    Source: Zhang, Dauphin and Ma 2019, "Fixup initialization", section 3.
    """
    if positive_integer("layers", layers) < 2:
        raise ValueError(f"layers must be at least 2 (the last kernel of a Fixup branch is 0), got {layers}")
    return float(positive_integer("depth", depth) ** (-1 / (2 * layers - 2)))
