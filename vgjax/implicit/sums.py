"""Sums over the units of one layer as functions of one number: how large its state is.

The state of a plain layer is r g, g a vector of normals and r a number; a tangent has the part p g + s t beside it, t
fresh normals, and a cotangent that comes back through the next kernel has fresh normals e. All that the layer does to
them are inner products of ``a = phi(r g)``, ``phi'(r g)``, g, t and e, functions of r alone: had once a layer, they
serve a whole grid of scales. Three ways to have them, by phi:

- smooth: Chebyshev polynomials on pieces of ``y = ln(1 + r / (1/2))``, from the sums at a few r;
- piecewise linear: exactly, from prefix sums over the units in the order in which they cross a kink;
- homogeneous: numbers that do not depend on r, drawn from their own law at a cost that does not depend on the width.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Key

from vgjax.activations import Activation
from vgjax.checks import untraced

TURN = 0.5
"""Where the variable of the tables turns from r to ln r."""

NODES = 24
"""Of a polynomial on one piece."""

LOWEST, HIGHEST = 2.0**-20, 2.0**20
"""The radii between which sums are asked for: below, phi is linear (or constant), above linear, to all digits."""

_TILE = 512

GAINS = ("aa", "ag", "xx", "at", "xt", "tt")
"""Of activations (``a``) with themselves, with the slopes times g (``g``) and times t (``t``); and of what these have
beside the activations, ``x`` and ``t``: a tangent almost parallel to the state keeps the digits of the rest."""
GRADIENTS = ("aa", "ag", "ae", "ge", "bb", "be", "ee", "ff")
"""Of those with a cotangent's normals (``e``), of activations and normals behind the slopes (``b``, ``e``), and of the
slopes (``f``)."""
# Where phi(0) = 0, activations and x are divided by what they are as small as (`divisors`): polynomials have a size.


def starts_at_zero(activation: Activation) -> bool:
    """Whether phi(0) = 0."""
    return activation.facts.at_zero == 0


def divisors(activation: Activation, r: Array) -> tuple[Array, Array]:
    """What activations, and what x, are divided by in the sums."""
    if not starts_at_zero(activation):
        return jnp.ones_like(r), jnp.ones_like(r)
    saturating = r / (1 + r)
    return saturating if activation.facts.bounded else r, saturating


def sums_at(activation: Activation, r: Float[Array, " k"], z: Float[Array, "2 n"], names: tuple[str, ...]) -> Array:
    """The sums at some radii, shape ``(names, k)``; z holds g, and t or e."""
    tiles, rest = divmod(z.shape[1], _TILE)
    parts = []
    if tiles:  # a tile after the other stays in the cache, and rounds with the root of their number alone
        parts.append(jnp.sum(_raw_sums(activation, r, z[:, : tiles * _TILE].reshape(2, tiles, _TILE), names), axis=-1))
    if rest:
        parts.append(_raw_sums(activation, r, z[:, tiles * _TILE :], names))
    found = functools.reduce(jnp.add, parts)
    return found if names == GRADIENTS else jnp.stack(_residuals(list(found), activation, r))


def _residuals(raw: Sequence[Array], activation: Activation, r: Array) -> list[Array]:
    """The sums of `GAINS`, of aa, ag, gg, ax, xx, at, gt, xt and tt: g being the slopes times g, and x what these have
    beside a share of the activations."""
    aa, ag, gg, ax, xx, at, gt, xt, tt = raw
    some = jnp.where(aa > 0, aa, 1)  # of a layer whose units are all off nothing is left to project on
    # Beside the activations: of x while phi is nearly linear, of all of g once it is nearly flat; neither cancels then.
    flat, of_x = gg < _share(activation, r) ** 2 * aa / 2, divisors(activation, r)[1]
    beside = jnp.where(flat, (gg - ag * ag / some) / of_x**2, xx - ax * ax / some)
    with_t = jnp.where(flat, (gt - ag * at / some) / of_x, xt - ax * at / some)
    return [aa, ag, jnp.maximum(beside, 0), at, with_t, jnp.maximum(tt - at * at / some, 0)]


def _share(activation: Activation, r: Array) -> Array:
    """The activations, as they stand in the sums, that phi'(r g) g has beside x: all of it where phi is linear."""
    return divisors(activation, r)[0] / r if starts_at_zero(activation) else jnp.zeros_like(r)


def _raw_sums(activation: Activation, r: Array, z: Array, names: tuple[str, ...]) -> Array:
    r = r.reshape(-1, *(1,) * (z.ndim - 1))
    h = r * z[0]
    a, f = jax.jvp(activation, (h,), (jnp.ones_like(h),))
    of_a, of_x = divisors(activation, r)
    a = a / of_a
    fg, fe, total = f * z[0], f * z[1], functools.partial(jnp.sum, axis=-1)
    if names == GAINS:
        x = (fg - _share(activation, r) * a) / of_x
        found = [a * a, a * fg, fg * fg, a * x, x * x, a * fe, fg * fe, x * fe, fe * fe]
    else:
        b = f * a
        found = [a * a, a * fg, a * z[1], fg * z[1], b * b, b * fe, fe * fe, f * f]
    return jnp.stack([total(each) for each in found])


# --- smooth -----------------------------------------------------------------------------------------------------------


class Smooth(NamedTuple):
    """Polynomials on pieces of y.

    Attributes:
        low, high: ends of y.
        coefficients: shape ``(names, NODES, pieces)``.
    """

    low: Array
    high: Array
    coefficients: Array

    def __call__(self, activation: Activation, r: Float[Array, ""]) -> list[Array]:
        """The sums at one radius, by Clenshaw's recurrence."""
        pieces = self.coefficients.shape[-1]
        place = jnp.clip((jnp.log1p(r / TURN) - self.low) / (self.high - self.low), 0, 1) * pieces
        if pieces == 1:
            x, of_piece = 2 * place - 1, self.coefficients[:, :, 0]
        else:
            piece = jnp.clip(place.astype(jnp.int32), 0, pieces - 1)
            x, of_piece = 2 * (place - piece) - 1, self.coefficients[:, :, piece]
        return [_clenshaw(of_piece[i], x) for i in range(len(self.coefficients))]


def _clenshaw(coefficients: Array, x: Array) -> Array:
    last = before = jnp.zeros_like(x)
    for k in range(NODES - 1, 0, -1):
        last, before = 2 * x * last - before + coefficients[k], last
    return x * last - before + coefficients[0]


@functools.cache
def _polynomials(pieces: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Nodes in 0 .. 1, their transform, and probes halfway between nodes with the polynomials there."""
    angles = (np.arange(NODES) + 0.5) * math.pi / NODES
    transform = np.cos(np.outer(np.arange(NODES), angles)) * 2 / NODES
    transform[0] /= 2
    between = np.array([1, NODES // 3, NODES // 2, NODES - 1]) * math.pi / NODES
    starts = np.arange(pieces)[:, None]
    nodes, probes = ((starts + (np.cos(x) + 1) / 2) / pieces for x in (angles, between))
    return nodes, transform, probes, np.cos(np.arange(NODES) * between[:, None])


def smooth(
    activation: Activation, ends: tuple[Array, Array], z: Float[Array, "2 n"], names: tuple[str, ...], pieces: int
) -> tuple[Smooth, Array, Array]:
    """The polynomials between two radii; their largest relative error at probes (`_relative_error`); and |a|^2 where it
    was computed, from which its range is read."""
    nodes, transform, probes, basis = (jnp.asarray(a, z.dtype) for a in _polynomials(pieces))
    low, high = (jnp.log1p(end / TURN) for end in ends)
    high = jnp.maximum(high, low + 1e-3)
    places = jnp.concatenate([nodes.ravel(), probes.ravel(), jnp.array([0.0, 1.0], z.dtype)])
    r = jnp.maximum(TURN * jnp.expm1(low + (high - low) * places), LOWEST)
    values = sums_at(activation, r, z, names)
    at_nodes, at_probes = (
        part.reshape(len(names), pieces, -1) for part in (values[:, : nodes.size], values[:, nodes.size : -2])
    )
    coefficients = jnp.einsum("kj,spj->skp", transform, at_nodes, precision="highest")
    read = jnp.einsum("jk,skp->spj", basis, coefficients, precision="highest")
    error = _relative_error(read, at_probes, r[nodes.size : -2].reshape(pieces, -1), names, activation, z.shape[1])
    return Smooth(low, high, coefficients), error, values[0] * divisors(activation, r)[0] ** 2


def _relative_error(
    read: Array, true: Array, r: Array, names: tuple[str, ...], activation: Activation, n: int
) -> Array:
    """The largest relative error at the probes: of |a|^2, and of the squares of the tangents, or of the cotangents,
    that are met there."""
    squares = functools.partial(_of_tangents, activation, r) if names == GAINS else functools.partial(_of_cotangents, n)
    mixing = None if names != GAINS else _mixing(true, divisors(activation, r)[1])
    worst = jnp.zeros((), true.dtype)
    for found, expected in zip(squares(read, mixing), squares(true, mixing), strict=True):
        worst = jnp.maximum(worst, jnp.max(jnp.abs(found / expected - 1)))
    return worst


def _mixing(sums: Array, divisor: Array) -> Array:
    """The share of p^2 in p^2 + s^2 at which a tangent stays from layer to layer: the fixed point of their ratio."""
    aa, ag, xx, at, _, tt = sums
    grown, mixed, made = ag * ag / aa, at * at / aa, divisor**2 * xx
    half = (grown - tt) / 2
    root = jnp.sqrt(half * half + made * mixed)
    # The larger root of made q^2 - 2 half q - mixed = 0, without cancellation on either side.
    ratio = jnp.where(half > 0, (half + root) / made, mixed / (root - half))
    return jnp.where(jnp.isfinite(ratio), ratio / (1 + ratio), 1)


def _of_tangents(activation: Activation, r: Array, sums: Array, mixing: Array) -> list[Array]:
    aa, ag, xx, at, xt, tt = sums
    p, s = jnp.sqrt(mixing), jnp.sqrt(1 - mixing)
    p_x = p * divisors(activation, r)[1]
    return [aa, (p * ag + s * at) ** 2 / aa + p_x * p_x * xx + 2 * p_x * s * xt + s * s * tt]


def _of_cotangents(n: int, sums: Array, _: None) -> list[Array]:
    """Of x a + v e with as much of a as there is of any one direction among n."""
    aa, _, ae, _, bb, be, ee, ff = sums
    x = 1 / jnp.sqrt(aa)
    return [aa, x * x * bb + 2 * x * be + ee, ff, ae / jnp.sqrt(aa) + n]


# --- piecewise linear -------------------------------------------------------------------------------------------------


@functools.cache
@untraced
def pieces_of(activation: Activation) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(kinks, A, B): phi(h) = A + B h between the kinks; None if phi is no such function, or phi(0) is not 0."""
    if not activation.kinks or not starts_at_zero(activation):
        return None
    kinks = np.sort(np.asarray(activation.kinks, float))
    ends = [kinks[0] - 8, *kinks, kinks[-1] + 8]
    inside = np.array([lo + (hi - lo) * np.array([0.1, 0.5, 0.9]) for lo, hi in itertools.pairwise(ends)])
    with jax.enable_x64(True):
        both = jax.jit(lambda h: jax.jvp(activation, (h,), (jnp.ones_like(h),)))(inside)
    value, slope = (np.asarray(a, float) for a in both)
    b = slope[:, 1]
    a = value[:, 1] - b * inside[:, 1]
    linear = np.allclose(value, a[:, None] + b[:, None] * inside, atol=1e-9)
    # A piece through 0 has A = 0 exactly, and all others their digits.
    return (kinks, np.round(a, 12), b) if linear else None


class PrefixSums(NamedTuple):
    """Sums that are polynomials in 1/r between the radii at which a unit crosses a kink.

    Attributes:
        at: those radii, ascending, shape ``(events,)``.
        between: sums of products of the pieces' A and B, shape ``(columns, events + 1)``.
    """

    at: Array
    between: Array

    def __call__(self, activation: Activation, r: Float[Array, ""]) -> list[Array]:
        """The sums at one radius, in the order of `GAINS` or of `GRADIENTS`."""
        row = self.between[:, jnp.searchsorted(self.at, r, side="left", method="scan_unrolled")]
        of_a, of_x = divisors(activation, r)
        # phi = A + B h, its slopes times g are B g, and x is a multiple of A: none of them is a difference.
        if len(row) == 6:
            aa, ab, at, bb, gt, tt = row
            v, w, x = 1 / of_a, r / of_a, -1 / (r * of_x)
            squares = aa * v * v + 2 * ab * v * w + bb * w * w
            of_slopes = [squares, ab * v + bb * w, bb]
            raw = [*of_slopes, (aa * v + ab * w) * x, aa * x * x, at * v + gt * w, gt, at * x, tt]
            return _residuals(raw, activation, r)
        aa, ab, ae, baba, bab, bae, bb, ge, gg, bge, ee, ff = row
        v, w = 1 / of_a, r / of_a
        return [
            *(aa * v * v + 2 * ab * v * w + bb * w * w, ab * v + bb * w, ae * v + ge * w, ge),
            *(baba * v * v + 2 * bab * v * w + gg * w * w, bae * v + bge * w, ee, ff),
        ]


def _columns(a: Array, b: Array, z: Array, names: tuple[str, ...]) -> tuple[Array, Array]:
    """What `PrefixSums` sums over the units, ``(columns, n)``: those with a factor A, and those without."""
    g, e = z
    if names == GAINS:
        return jnp.stack([a * a, a * b * g, a * b * e]), jnp.stack([b * b * g * g, b * b * g * e, b * b * e * e])
    with_a = [a * a, a * b * g, a * e, (a * b) ** 2, a * b**3 * g, a * b * b * e]
    without = [b * b * g * g, b * g * e, b**4 * g * g, b**3 * g * e, b * b * e * e, b * b]
    return jnp.stack(with_a), jnp.stack(without)


def steps(activation: Activation, z: Float[Array, "2 n"], names: tuple[str, ...]) -> PrefixSums:
    """Prefix sums over the units in the order in which they cross a kink as r grows from 0."""
    kinks, a, b = pieces_of(activation)  # type: ignore[misc]
    g = z[0]

    def of_piece(i: int) -> tuple[Array, Array]:
        return _columns(jnp.full_like(g, a[i]), jnp.full_like(g, b[i]), z, names)

    def by_sign(up: int, down: int) -> list[Array]:
        return [jnp.where(g > 0, one, other) for one, other in zip(of_piece(up), of_piece(down), strict=True)]

    start = by_sign(int(np.sum(kinks <= 0)), int(np.sum(kinks < 0)))
    end = by_sign(len(kinks), 0)
    at, jumps = [], []
    for i, kink in enumerate(kinks):
        if kink == 0:  # crossed by none: units have their signs
            continue
        crosses = g * kink > 0
        new, old = (i + 1, i) if kink > 0 else (i, i + 1)
        at.append(jnp.where(crosses, kink / jnp.where(crosses, g, 1), jnp.inf))
        jumps.append([jnp.where(crosses, b - a, 0) for a, b in zip(of_piece(old), of_piece(new), strict=True)])
    radii = jnp.concatenate(at)
    order = jnp.argsort(radii)
    with_a, without = (jnp.concatenate(parts, axis=1)[:, order] for parts in zip(*jumps, strict=True))
    # Each summed from the end where it is 0, so that a difference of large sums never stands for a small one.
    zero = jnp.zeros_like(with_a[:, :1]), jnp.zeros_like(without[:, :1])
    grown = jnp.sum(start[0], axis=1, keepdims=True) + jnp.concatenate([zero[0], jnp.cumsum(with_a, axis=1)], axis=1)
    left = jnp.concatenate([jnp.cumsum(without[:, ::-1], axis=1)[:, ::-1], zero[1]], axis=1)
    return PrefixSums(radii[order], jnp.concatenate([grown, jnp.sum(end[1], axis=1, keepdims=True) - left]))


# --- homogeneous ------------------------------------------------------------------------------------------------------


class Homogeneous(NamedTuple):
    """Sums that are the same at every radius.

    Attributes:
        sums: shape ``(names,)``.
    """

    sums: Array

    def __call__(self, activation: Activation, r: Float[Array, ""]) -> list[Array]:
        """The sums at one radius."""
        return [jnp.broadcast_to(value, r.shape) for value in self.sums]


def homogeneous(
    activation: Activation, key: Key[Array, ""], n: int, dtype: Any, names: tuple[str, ...]
) -> tuple[Homogeneous, Float[Array, "2 2"]]:
    """The sums of n units, and the Gram matrix of g and t or e, from two Wishart matrices: of the units on either side
    of the kink, whose number is binomial. O(1) at every width."""
    of_number, of_both = jax.random.split(key)
    count = jax.random.binomial(of_number, jnp.asarray(n, dtype), 0.5, dtype=dtype)
    on, off = wisharts(of_both, jnp.stack([count, n - count]), dtype)
    up, down = two_slopes(activation)

    def total(power: int, i: int, j: int) -> Array:
        return up**power * on[i, j] + down**power * off[i, j]

    # a = f g, so that x = 0; e stands alone, or behind a slope as in ee and be; b behind two.
    aa, ff = total(2, 0, 0), up**2 * count + down**2 * (n - count)
    if names == GAINS:
        at, zero = total(2, 0, 1), jnp.zeros((), dtype)
        found = [aa, aa, zero, at, zero, total(2, 1, 1) - at * at / jnp.where(aa > 0, aa, 1)]
    else:
        ge = total(1, 0, 1)
        found = [aa, aa, ge, ge, total(4, 0, 0), total(3, 0, 1), total(2, 1, 1), ff]
    return Homogeneous(jnp.stack(found)), on + off


@functools.cache
@untraced
def two_slopes(activation: Activation) -> tuple[float, float]:
    """Of a homogeneous phi above and below 0."""
    up, down = (float(activation(jnp.asarray(h))) * h for h in (1.0, -1.0))
    return up, down


def wisharts(key: Key[Array, ""], m: Float[Array, " k"], dtype: Any) -> Float[Array, "k 2 2"]:
    """G G^T for matrices G of 2 x m normals, by Bartlett's decomposition; an m may be 0."""
    of_diagonal, of_rest = jax.random.split(key)
    freedom = jnp.stack([m, m - 1], axis=-1)  # one sampler for all: each takes a second to compile
    chi = jnp.sqrt(2 * jax.random.gamma(of_diagonal, jnp.maximum(freedom, 0.5) / 2, dtype=dtype))
    first, second = jnp.where(freedom > 0, chi, 0).T
    rest = jnp.where(m > 0, jax.random.normal(of_rest, m.shape, dtype), 0)
    return jnp.stack(
        [jnp.stack([first * first, first * rest], -1), jnp.stack([first * rest, rest * rest + second * second], -1)], -2
    )


# --- flat units -------------------------------------------------------------------------------------------------------


@functools.cache
@untraced
def flat_ends(activation: Activation, share: float) -> tuple[tuple[float, float], ...]:
    """Between what phi is flat: |phi'| below a share of its largest, as intervals, to about 1e-12."""
    with jax.enable_x64(True):
        slope = jax.jit(activation.derivative)
        least = share * activation.facts.largest_slope

        def is_flat(h: np.ndarray) -> np.ndarray:
            return np.asarray(np.abs(slope(h)) < least)

        far = np.concatenate([-np.geomspace(1e6, 30, 400), np.linspace(-30, 30, 60001), np.geomspace(30, 1e6, 400)])
        at = is_flat(far)
        changes = np.flatnonzero(at[1:] != at[:-1])
        low, high = far[changes], far[changes + 1]
        for _ in range(60):
            middle = (low + high) / 2
            same = is_flat(middle) == at[changes]
            low, high = np.where(same, middle, low), np.where(same, high, middle)
    ends = [*([-np.inf] if at[0] else []), *high.tolist(), *([np.inf] if at[-1] else [])]
    return tuple(zip(ends[::2], ends[1::2], strict=True))
