"""Trajectories: variance, correlation and gradient growth layer by layer, transients included."""

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
from vgjax.checks import positive_integer
from vgjax.theory import correlation
from vgjax.theory.gaussian import Pieces, check_correlation, pair, pieces
from vgjax.theory.phases import check_dropout
from vgjax.theory.residual import per_layer
from vgjax.theory.tables import OnePoint, TwoPoint, one_point

_ALIKE = 1e-9  # |ln q1 / q2| below which two norms count as equal: the correlation sees its square
_STRIDE = 64  # layers between two looks at whether they are


class Trajectory(NamedTuple):
    """What mean field predicts at every layer; numpy float64.

    Attributes:
        q: variance of the preactivations h^0 ... h^L, shape ``(depth + 1,)``, or ``(2, depth + 1)`` for two inputs.
        log_chi: ln of the predicted mean squared gain from layer 0 to l, the sum of ln chi(q) over the layers crossed;
            shape of q.
        one_minus_c: 1 - correlation of the two inputs, shape ``(depth + 1,)``; None for one input.
    """

    q: np.ndarray
    log_chi: np.ndarray
    one_minus_c: np.ndarray | None = None

    @property
    def c(self) -> np.ndarray | None:
        """The correlation; where it is near 1 read ``one_minus_c`` instead."""
        return None if self.one_minus_c is None else 1 - self.one_minus_c


def trajectory(
    activation: str | Activation | Elementwise,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    depth: int,
    q0: ArrayLike = 1.0,
    c0: float | None = None,
    *,
    one_minus_c0: float | None = None,
    dropout: float = 0.0,
) -> Trajectory:
    """q_l, the correlation c_l of two inputs, and the predicted gradient gain, from layer 0 to the depth.

    q_{l+1} = sigma_w^2 E phi(u)^2 / keep + sigma_b^2, C_{l+1} = sigma_w^2 E phi(u1) phi(u2) + sigma_b^2, chi(q) =
    sigma_w^2 E phi'(u)^2 / keep, with keep = 1 - dropout. 1 - c is carried itself and never subtracted from: right to
    1e-6 relative after 10^6 critical layers.

    Args:
        activation: a name, an `Activation`, or any elementwise callable.
        sigma_w, sigma_b: standard deviations, shape ``()`` or one per layer, ``(depth,)``.
        depth: L, how many layers to cross.
        q0: variance of the first preactivations; two numbers for two inputs of unequal norms.
        c0: correlation of two inputs at the start; None follows one input only.
        one_minus_c0: instead of c0, where it is near 1.
        dropout: share of units dropped, independently for each input.

    Returns:
        `Trajectory`. Where q leaves the float range it is 0 or inf, and the correlation from there on NaN.

    Raises:
        ValueError: a negative or non-finite scale, a q0 that is not positive, a correlation outside [-1, 1], a depth
            below 1, or an activation as `mean_field` refuses it.
    """
    phi, depth = activations.get(activation), positive_integer("depth", depth)
    check_dropout(dropout)
    start = np.atleast_1d(np.asarray(q0, float))
    if start.shape not in ((1,), (2,)) or not np.all(np.isfinite(start) & (start > 0)):
        raise ValueError(f"q0 must be one or two positive numbers, got {q0}")
    if (c0 is not None) and (one_minus_c0 is not None):
        raise ValueError(f"a start is given by c0 or by one_minus_c0, got both: {c0} and {one_minus_c0}")
    if c0 is not None:
        check_correlation("c0", c0)
        one_minus_c0 = 1 - float(c0)
    if one_minus_c0 is not None:
        check_correlation("1 - one_minus_c0", 1 - one_minus_c0)
    elif len(start) == 2:
        raise ValueError(f"two inputs need c0, their correlation at the start, got q0 = {q0} alone")
    with jax.enable_x64(True):
        scales = (per_layer(name, s, depth) for name, s in (("sigma_w", sigma_w), ("sigma_b", sigma_b)))
        weights, biases = (jnp.asarray(scale) ** 2 for scale in scales)
        keep = jnp.asarray(1 - dropout)
        q, log_chi = (np.asarray(a) for a in _norms(one_point(phi), weights / keep, biases, jnp.asarray(start)))
        apart = None
        if one_minus_c0 is not None:
            norms = np.broadcast_to(q, (2, depth + 1))
            apart = _correlations(phi, weights, biases, keep, norms, one_minus_c0)
    if len(start) == 1:
        q, log_chi = q[0], log_chi[0]
    return Trajectory(q, log_chi, apart)


@jax.jit
def _norms(table: OnePoint, levels: Array, biases: Array, start: Array) -> tuple[Array, Array]:
    """q and the sum of ln chi for each input, shapes ``(inputs, depth + 1)``; levels are sigma_w^2 / keep.

    Beyond the ends of the table phi is a power of its argument: E phi^2 and E phi'^2 go on as they do at the end.
    """

    def moments(q: Array) -> tuple[Array, Array]:
        inside = jnp.clip(q, table.low, table.high)
        square, slope_square, growth = table(inside)
        power = growth / square  # d ln E phi^2 / d ln q
        beyond = jnp.log(jnp.clip(q, 1e-300, 1e300) / inside)
        slopes = slope_square * jnp.exp(jnp.where(power > 0.5, power - 1, 0) * beyond)
        size = jnp.where(q > 1e-300, square * jnp.exp(power * beyond), 0)
        return jnp.where((q > 1e300) & (power > 0.5), jnp.inf, size), slopes

    def layer(q: Array, scales: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        level, bias = scales
        square, slope_square = jax.vmap(moments)(q)
        after = level * square + bias
        return after, (after, jnp.log(level * slope_square))

    _, (q, log_chi) = jax.lax.scan(layer, start, (levels, biases))
    zero = jnp.zeros((1, len(start)))
    return jnp.concatenate([start[None], q]).T, jnp.concatenate([zero, jnp.cumsum(log_chi, axis=0)]).T


def _correlations(
    phi: Activation, levels: Array, biases: Array, keep: Array, q: np.ndarray, start: float
) -> np.ndarray:
    """1 - c at every layer, shape ``(depth + 1,)``: by quadrature while the norms differ or c < 0, then by table."""
    depth = len(levels)
    found = pieces(phi, phi.kinks)
    usable = (np.isfinite(q) & (q > 0)).all(axis=0)  # beyond the float range nothing is known
    last = depth if usable.all() else int(np.argmin(usable)) - 1
    q, after = _within_table(one_point(phi), levels / keep, q)
    apart = np.full(depth + 1, np.nan)
    apart[0], here = start, 0
    alike = np.abs(np.log(q[0] / q[1])) < _ALIKE
    while here < last and not (alike[here] and apart[here] <= 1):
        stop = min(here + _STRIDE, last)
        near = found.within(12 * math.sqrt(q[:, here:stop].max())).innermost(512)
        norms = (jnp.asarray(norm[:, here:stop]) for norm in (q, after))
        part = _by_quadrature(phi, near, levels[here:stop], keep, *norms, apart[here])
        apart[here + 1 : stop + 1] = np.asarray(part)
        here = stop
    if here < last:
        both, then = (np.sqrt(norm[0, here:last] * norm[1, here:last]) for norm in (q, after))
        pair_table = correlation.table(phi, both.min(), both.max())
        norms = (jnp.asarray(norm) for norm in (both, then))
        part = _by_table(pair_table, one_point(phi), levels[here:last], keep, *norms, jnp.asarray(apart[here]))
        apart[here + 1 : last + 1] = np.asarray(part)
    return apart


def _within_table(table: OnePoint, levels: Array, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The norms before and behind each layer, shapes ``(2, depth)``; those far out scaled to where tables hold.

    Far out phi is a power of its argument, and correlation does not depend on the common scale of two inputs.
    """
    low, high = max(1e-9, float(table.low)), min(1e7, float(table.high))
    before, after = q[:, :-1], q[:, 1:]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        factor = np.minimum(1, high / before.max(axis=0)) * np.maximum(1, low / before.min(axis=0))
        scaled = before * factor
    square = np.asarray(_squares(table, jnp.asarray(np.nan_to_num(scaled, nan=1.0, posinf=1.0))))
    return scaled, np.where(factor == 1, after, np.asarray(levels) * square)


@jax.jit
def _squares(table: OnePoint, q: Array) -> Array:
    return jax.vmap(jax.vmap(lambda q: table(q).square))(q)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _by_quadrature(
    phi: Activation, found: Pieces, levels: Array, keep: Array, before: Array, after: Array, start: Array
) -> Array:
    """1 - c behind each layer from the norms before and behind it, shapes ``(2, layers)``.

    sqrt(q1' q2') (1 - c') = (q1' + q2') / 2 - C' - (sqrt q1' - sqrt q2')^2 / 2, and the first two are
    sigma_w^2 (E (phi(u1) - phi(u2))^2 / 2 + (1 / keep - 1) (E phi(u1)^2 + E phi(u2)^2) / 2).
    """

    def half_square(u1: Array, u2: Array) -> Array:
        return (phi(u1) - phi(u2)) ** 2 / 2

    def lost(u1: Array, u2: Array) -> Array:
        return (phi(u1) ** 2 + phi(u2) ** 2) / 2

    def layer(epsilon: Array, at: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        level, before, after = at
        distance = pair(found, half_square, before[0], before[1], epsilon)
        distance += (1 / keep - 1) * jax.lax.cond(
            keep < 1, lambda: pair(found, lost, before[0], before[1], epsilon), lambda: jnp.zeros_like(distance)
        )
        roots = jnp.sqrt(after)
        epsilon = jnp.clip((level * distance - (roots[0] - roots[1]) ** 2 / 2) / (roots[0] * roots[1]), 0, 2)
        return epsilon, epsilon

    return jax.lax.scan(layer, jnp.asarray(start), (levels, before.T, after.T))[1]


@jax.jit
def _by_table(
    pair_table: TwoPoint, one: OnePoint, levels: Array, keep: Array, before: Array, after: Array, start: Array
) -> Array:
    """1 - c behind each layer from the norm before and behind it, the same for both inputs, shapes ``(layers,)``."""

    def layer(epsilon: Array, at: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        level, before, after = at
        distance = pair_table.ratio(epsilon * before, (1 - epsilon) * before) * epsilon * before
        dropped = (1 / keep - 1) * one(before).square
        epsilon = jnp.clip(level * (distance + dropped) / after, 0, 1)
        return epsilon, epsilon

    return jax.lax.scan(layer, start, (levels, before, after))[1]
