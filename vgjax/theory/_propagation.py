"""Propagation: variance, correlation and gradient growth layer by layer, transients included."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax import activations
from vgjax.activations import Activation
from vgjax.checks import ArrayLike, finite, kinds, not_empty, positive_integer, short
from vgjax.theory._gaussian import ActivationLike, pair
from vgjax.theory._moments import MomentTable, moment_table, sampled
from vgjax.theory._pairs import PairTable, least_norm, pair_table
from vgjax.theory._pieces import REACH, Pieces
from vgjax.theory._scales import check_dropout, checked_scales
from vgjax.values import by_content

_ALIKE = 1e-9  # |ln q1 / q2| below which two norms count as equal: the correlation sees its square
_STRIDE = 64  # layers between two looks at whether they are
_MOST_PIECES = 512  # of a quadrature in two dimensions: a second for a layer
_LOW, _HIGH = 1e-9, 1e7  # q between which correlations are looked up; beyond, phi is a power of its argument


@by_content
class Propagation(NamedTuple):
    """What mean field predicts at every layer; numpy float64.

    Attributes:
        q: variance of the preactivations h^0 ... h^L, shape ``(*scales, depth + 1)``; for a pair of variances at the
            start ``(2, *scales, depth + 1)``.
        log_chi: ln of the predicted mean squared gain from layer 0 to l, the sum of ln chi(q) over the layers crossed;
            shape of q. Minus infinity behind a sigma_w of 0 or where phi is constant; NaN from the layer on whose chi
            is below 1e-230 and not 0 (signals within a flat part of phi).
        one_minus_c: 1 - correlation of the two inputs, shape ``(*scales, depth + 1)``; None for one input.
    """

    q: np.ndarray
    log_chi: np.ndarray
    one_minus_c: np.ndarray | None = None

    @property
    def c(self) -> np.ndarray | None:
        """The correlation; where it is near 1 read ``one_minus_c`` instead."""
        return None if self.one_minus_c is None else 1 - self.one_minus_c


@kinds
def propagate(
    activation: ActivationLike,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    depth: int | None,
    q0: ArrayLike | tuple[ArrayLike, ArrayLike] = 1.0,
    c0: ArrayLike | None = None,
    *,
    one_minus_c0: ArrayLike | None = None,
    dropout: float = 0.0,
) -> Propagation:
    """q_l, the correlation c_l of two inputs, and the predicted gradient gain, from layer 0 to the depth.

    q_{l+1} = sigma_w^2 E phi(u)^2 / keep + sigma_b^2, C_{l+1} = sigma_w^2 E phi(u1) phi(u2) + sigma_b^2, chi(q) =
    sigma_w^2 E phi'(u)^2 / keep, with keep = 1 - dropout. 1 - c is carried itself and never subtracted from: right to
    1e-6 relative after 10^6 critical layers.

    Args:
        activation: a name, an `Activation`, or any elementwise callable.
        sigma_w, sigma_b: standard deviations, any shapes that broadcast, with q0 and c0 as well: one call answers a
            grid of scales.
        depth: L, how many layers to cross; None for as many as the last axis of the scales has, one number per layer.
        q0: variance of the first preactivations; a tuple of two for two inputs of unequal norms.
        c0: correlation of two inputs at the start; None follows one input only.
        one_minus_c0: instead of c0, where it is near 1.
        dropout: share of units dropped, independently for each input.

    Returns:
        `Propagation`. Where q leaves the float range it is 0 or inf; there, and where E phi^2 is below 1e-230, the
        correlation is NaN from then on.

    Raises:
        ValueError: a negative or non-finite scale, a q0 that is not positive, a correlation outside [-1, 1] or given
            twice, a depth below 1, shapes that do not broadcast, or an activation as `mean_field` refuses it.

    Source: Poole et al. 2016, "Exponential expressivity in deep neural networks through transient chaos", equations 3
    and 5; Schoenholz et al. 2017, "Deep information propagation", for chi and dropout.
    """
    phi = activations.get(activation)
    check_dropout(dropout)
    checked_scales(sigma_w=sigma_w, sigma_b=sigma_b)
    not_empty("q0", q0 if isinstance(q0, tuple) else (q0,))
    norms = [np.asarray(variance, float) for variance in (q0 if isinstance(q0, tuple) else (q0,))]
    for variance in norms:
        not_empty("q0", np.ravel(variance))
        finite("q0", variance, "positive", lambda q: q > 0)
    epsilon = _start(len(norms), c0, one_minus_c0)
    layers = _by_layer(sigma_w, sigma_b, depth)
    starts = norms if epsilon is None else [*norms, epsilon]
    shape = np.broadcast_shapes(*(a.shape[:-1] for a in layers), *(a.shape for a in starts))
    whole = (np.broadcast_to(a, (*shape, a.shape[-1])) for a in layers)
    levels, biases = (a.reshape(-1, a.shape[-1]).T for a in whole)
    flat, keep, apart = np.stack([np.broadcast_to(a, shape).ravel() for a in starts]), 1 - dropout, None
    with jax.enable_x64(True):  # numpy arrays up to the programs: each operation outside of them would be compiled
        found = _norms(moment_table(phi), levels / keep, biases, flat[: len(norms)])
        q, log_chi = (np.asarray(a) for a in found)
        if epsilon is not None:
            apart = _correlations(phi, levels, keep, np.broadcast_to(q, (len(q), 2, q.shape[2])), flat[-1])
            apart = apart.T.reshape((*shape, -1))
    outer = (2,) * (len(norms) - 1)  # no axis of inputs for one
    q, log_chi = (np.moveaxis(a, 0, -1).reshape((*outer, *shape, -1)) for a in (q, log_chi))
    return Propagation(q, log_chi, apart)


def _start(inputs: int, c0: ArrayLike | None, one_minus_c0: ArrayLike | None) -> np.ndarray | None:
    """1 - c at layer 0, or None for one input."""
    if inputs > 2:
        raise ValueError(f"q0 must be a variance or a tuple of two, got a tuple of {inputs}")
    if (c0 is not None) and (one_minus_c0 is not None):
        raise ValueError(f"a start is given by c0 or by one_minus_c0, got both: {short(c0)} and {short(one_minus_c0)}")
    if c0 is one_minus_c0 is None:
        if inputs == 2:
            raise ValueError("two inputs need c0, their correlation at the start, got q0 of two alone")
        return None
    given: Any = c0 if c0 is not None else one_minus_c0
    not_empty("c0 or one_minus_c0", np.ravel(given))
    name, start = ("c0", c0) if c0 is not None else ("1 - one_minus_c0", 1 - np.asarray(one_minus_c0, float))
    finite(name, start, "in [-1, 1]", lambda c: np.abs(c) <= 1)
    return np.asarray(1 - np.asarray(c0, float) if c0 is not None else one_minus_c0, float)


def _by_layer(sigma_w: ArrayLike, sigma_b: ArrayLike, depth: int | None) -> list[np.ndarray]:
    """Variances of weights and of biases, layer by layer along the last axis."""
    squares = [np.square(np.asarray(s, float)) for s in (sigma_w, sigma_b)]
    if depth is not None:
        return [np.repeat(square[..., None], positive_integer("depth", depth), axis=-1) for square in squares]
    if not any(square.ndim for square in squares):
        raise ValueError("depth must be given where the scales have no axis of layers, got None")
    layers = max(square.shape[-1] for square in squares if square.ndim)
    return [np.broadcast_to(square, (*square.shape[:-1], layers)) for square in squares]


@jax.jit
def _norms(table: MomentTable, levels: Any, biases: Any, start: Any) -> tuple[Array, Array]:
    """q and the sum of ln chi for each input, shapes ``(depth + 1, inputs, points)``; levels are sigma_w^2 / keep."""
    look_up = jax.vmap(jax.vmap(lambda q: table(q)))

    def layer(q: Array, scales: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        level, bias = scales
        square, slope_square, _ = look_up(q)
        # A weight of 0 cuts even an infinite signal.
        after = jnp.where(level == 0, 0, level * square) + bias
        # Unless phi is flat everywhere, E phi'^2 is not 0 but beyond the float range, and its logarithm not known.
        chi = jnp.where((slope_square == 0) & ~flat, jnp.nan, level * slope_square)
        return after, (after, jnp.log(jnp.where(level == 0, 0, chi)))

    flat = jnp.all(table.of_log_q.coefficients[:, 1] == 0)
    _, (q, log_chi) = jax.lax.scan(layer, start, (levels, biases))
    total = jnp.where(jnp.cumsum(levels == 0, axis=0)[:, None] > 0, -jnp.inf, jnp.cumsum(log_chi, axis=0))
    return jnp.concatenate([start[None], q]), jnp.concatenate([jnp.zeros((1, *start.shape)), total])


def _correlations(phi: Activation, levels: np.ndarray, keep: float, q: np.ndarray, start: np.ndarray) -> np.ndarray:
    """1 - c at every layer, shape ``(depth + 1, points)``: by quadrature while norms differ or c < 0, then by table.

    From sigma_w^2, ``(depth, points)``, the norms of both inputs, ``(depth + 1, 2, points)``, and 1 - c at layer 0.
    """
    depth, here, table = len(levels), 0, moment_table(phi)
    known = np.logical_and.accumulate((np.isfinite(q) & (q > least_norm(phi))).all(axis=1))
    before, after = _within_table(table, levels / keep, np.where(known[:, None], q, max(1.0, 2 * least_norm(phi))))
    lost = (1 / keep - 1) * table(before).square.mean(axis=1)
    alike = np.abs(np.log(before[:, 0] / before[:, 1])) < _ALIKE
    apart = np.empty((depth + 1, len(start)))
    apart[0] = start
    while here < depth and not (alike[here] & (apart[here] <= 1)).all():
        some = slice(here, here + _STRIDE)
        near = sampled(phi).pieces.within(REACH * math.sqrt(before[some].max())).innermost(_MOST_PIECES)
        part = _by_quadrature(phi, near, levels[some], before[some], after[some], lost[some], apart[here])
        apart[here + 1 : here + 1 + len(part)] = part
        here += len(part)
    if here < depth:
        both, then = (np.sqrt(norm[here:].prod(axis=1)) for norm in (before, after))
        pair_of = pair_table(phi, both.min(), both.max())
        apart[here + 1 :] = _by_table(pair_of, levels[here:], both, then, lost[here:], apart[here])
    return np.where(known, apart, np.nan)


def _within_table(table: MomentTable, levels: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The norms before and behind each layer, shapes ``(depth, 2, points)``; those far out scaled to where tables hold.

    Far out phi is a power of its argument, and correlation does not depend on the common scale of two inputs.
    """
    low, high = max(_LOW, table.low), min(_HIGH, table.high)
    before, after = q[:-1], q[1:]
    with np.errstate(over="ignore"):
        factor = np.minimum(1, high / before.max(axis=1)) * np.maximum(1, low / before.min(axis=1))
    scaled = before * factor[:, None]
    return scaled, np.where(factor[:, None] == 1, after, levels[:, None] * table(scaled).square)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _by_quadrature(
    phi: Activation, found: Pieces, levels: Any, before: Any, after: Any, lost: Any, start: Any
) -> Array:
    """1 - c behind each layer from the norms before and behind it, shape ``(layers, points)``.

    sqrt(q1' q2') (1 - c') = (q1' + q2') / 2 - C' - (sqrt q1' - sqrt q2')^2 / 2, and the first two are
    sigma_w^2 (E (phi(u1) - phi(u2))^2 / 2 + (1 / keep - 1) (E phi(u1)^2 + E phi(u2)^2) / 2), the latter part ``lost``.
    """

    def half_square(u1: Array, u2: Array) -> Array:
        return (phi(u1) - phi(u2)) ** 2 / 2

    def point(at: tuple[Array, ...]) -> Array:
        epsilon, level, before, after, lost = at
        distance = pair(found, half_square, before[0], before[1], epsilon) + lost
        roots = jnp.sqrt(after)
        return jnp.clip((level * distance - (roots[0] - roots[1]) ** 2 / 2) / (roots[0] * roots[1]), 0, 2)

    def layer(epsilon: Array, at: tuple[Array, ...]) -> tuple[Array, Array]:
        level, before, after, lost = at
        epsilon = jax.lax.map(point, (epsilon, level, before.T, after.T, lost))
        return epsilon, epsilon

    return jax.lax.scan(layer, start, (levels, before, after, lost))[1]


@jax.jit
def _by_table(both: PairTable, levels: Any, before: Any, after: Any, lost: Any, start: Any) -> Array:
    """As `_by_quadrature` from norms that are equal for both inputs, shape ``(layers, points)``."""

    def point(epsilon: Array, level: Array, before: Array, after: Array, lost: Array) -> Array:
        distance = both.ratio(epsilon * before, (1 - epsilon) * before) * epsilon * before
        return jnp.clip(level * (distance + lost) / after, 0, 1)

    def layer(epsilon: Array, at: tuple[Array, ...]) -> tuple[Array, Array]:
        epsilon = jax.vmap(point)(epsilon, *at)
        return epsilon, epsilon

    return jax.lax.scan(layer, start, (levels, before, after, lost))[1]
