"""Linear maps beside branches: several streams that are mixed, averages over the past, one layer taken many times.

The streams h_i of hyper-connections, ``h'_j = skip sum_i R_ji h_i + branch w_j F(sum_i a_i h_i)``, have the covariance
``C_ij = E h_i . h_j / width``. A branch whose kernel is drawn afresh is independent of them, with ``E F^2 = gain E
x^2`` (1 for a linear branch at unit gain, 1/2 for a ReLU's), so that

    C' = skip^2 (R C R^T + eps^2 tr(C) 1) + branch^2 gain (a^T C a) w w^T,

eps being the deviation of free maps ``R + eps Z``. Tangents obey the same. Without branches, for any R that is
orthogonal (the identity, a shift): ``E gain^2 = (1 + n eps^2)^depth``.
"""

import math
from typing import NamedTuple

import numpy as np

from vgjax.checks import ArrayLike, finite, kinds, not_negative, positive_integer
from vgjax.values import by_content


@by_content
class StreamPropagation(NamedTuple):
    """Streams along depth, l = 0 ... depth; numpy float64, each of shape ``(depth + 1,)``.

    Attributes:
        mean_square: E h^2 over all streams.
        log_gain: ln E |J u|^2 / |u|^2, u an isotropic tangent of all streams: the *squared* gain.
    """

    mean_square: np.ndarray
    log_gain: np.ndarray


@kinds
def propagate_streams(
    depth: int,
    streams: int = 4,
    *,
    mixing: ArrayLike | None = None,
    deviation: float = 0.0,
    gain: float = 1.0,
    branch: float = 1.0,
    skip: float = 1.0,
    normalized: bool = False,
    q0: float = 1.0,
) -> StreamPropagation:
    """Mean square and gain of hyper-connected networks, whose branch reads the first stream and writes to all.

    Args:
        depth: blocks.
        streams: n; all begin as copies of one state.
        mixing: R, shape ``(streams, streams)``; left out, the shift by one that reads one stream after the other.
        deviation: eps; 0 with ``normalized``, since what a norm divides by does not average over so few streams.
        gain: E F^2 / E x^2 of a branch; with ``normalized``, E F^2, and the squared slope of F behind the norm.
        branch, skip: factors on both ways.
        normalized: whether a branch normalizes what it reads.
        q0: E h^2 of the first state.

    Raises:
        ValueError: sizes below 1, negative or infinite numbers, a mixing of another shape, a deviation beside a norm.

    Source: derived here; the maps are those of Zhu et al. 2024, "Hyper-connections".
    """
    depth, n = positive_integer("depth", depth), positive_integer("streams", streams)
    for name, value in {"deviation": deviation, "gain": gain, "branch": branch, "skip": skip}.items():
        not_negative(name, value)
    finite("q0", q0, "positive", lambda v: v > 0)
    if normalized and deviation:
        rule = "the mean of a ratio is not that of few maps"
        raise ValueError(f"deviation must be 0 where branches are normalized ({rule}), got {deviation:g}")
    r = np.roll(np.eye(n), 1, axis=1) if mixing is None else np.asarray(mixing, float)
    finite("mixing", r)
    if r.shape != (n, n):
        raise ValueError(f"mixing must have shape {(n, n)}, one row a stream, got {r.shape}")

    def mixed(c: np.ndarray) -> np.ndarray:
        return skip**2 * (r @ c @ r.T + deviation**2 * np.trace(c) * np.eye(n))

    c, u = np.full((n, n), float(q0)), np.eye(n) / n
    squares, gains = [q0], [1.0]
    for _ in range(depth):
        read = c[0, 0] if normalized else 1.0
        # Of all streams alike: what a branch writes to one it writes to all.
        c, u = mixed(c) + branch**2 * gain * c[0, 0] / read, mixed(u) + branch**2 * gain * u[0, 0] / read
        squares.append(np.trace(c) / n)
        gains.append(np.trace(u))
    return StreamPropagation(np.array(squares), np.log(gains))


@kinds
def free_maps_log_gain(deviation: ArrayLike, depth: int, streams: int = 4) -> np.ndarray:
    """``depth ln(1 + n eps^2)``: ln of the mean squared gain of a product of maps 1 + eps Z, Z_ij ~ N(0, 1), forward
    as backward.

    Args:
        deviation: eps, any shape.
        depth: maps.
        streams: n.

    Raises:
        ValueError: a negative or infinite deviation, or sizes below 1.

    Source: derived here.
    """
    not_negative("deviation", deviation)
    n = positive_integer("streams", streams)
    return positive_integer("depth", depth) * np.log1p(n * np.square(np.asarray(deviation, float)))


@by_content
class Balanced(NamedTuple):
    """A matrix after Sinkhorn's iteration.

    Attributes:
        map: rows of sum 1, shape ``(n, n)``.
        column_error: the largest distance of a column's sum from 1.
        second: its second singular value: how much of the streams' differences is left behind it, at most.
    """

    map: np.ndarray
    column_error: float
    second: float


@kinds
def sinkhorn(logits: ArrayLike, steps: int = 20, *, tolerance: float | None = None) -> Balanced:
    """exp(logits) made doubly stochastic: columns, then rows, divided by their sums, ``steps`` times.

    Args:
        logits: shape ``(n, n)``, rows say where to.
        steps: of the iteration.
        tolerance: the column error that is taken for converged; left out, it is reported and not judged.

    Raises:
        ValueError: logits that are not finite or no square, steps below 1, or a column error above the tolerance.

    Source: Sinkhorn and Knopp 1967; 20 steps: Xie et al. 2025, "mHC: manifold-constrained hyper-connections".
    """
    from scipy.special import logsumexp

    log = np.asarray(logits, float)
    finite("logits", log)
    if log.ndim != 2 or log.shape[0] != log.shape[1] or not log.size:
        raise ValueError(f"logits must be a square matrix, got shape {log.shape}")
    for _ in range(positive_integer("steps", steps)):
        log = log - logsumexp(log, axis=0, keepdims=True)
        log = log - logsumexp(log, axis=1, keepdims=True)
    balanced = np.exp(log)
    error = float(np.max(np.abs(balanced.sum(axis=0) - 1)))
    if tolerance is not None and not error <= tolerance:
        raise ValueError(f"columns must sum to 1 within {tolerance:g} after {steps} steps, got an error of {error:.2g}")
    second = float(np.linalg.svd(balanced, compute_uv=False)[1]) if len(log) > 1 else 0.0
    return Balanced(balanced, error, second)


@kinds
def second_eigenvalue(logit: ArrayLike, streams: int = 4) -> np.ndarray:
    """``(e^b - 1) / (e^b + n - 1)``: what one map of logits b 1 leaves of the differences between the streams.

    Args:
        logit: b, any shape.
        streams: n.

    Raises:
        ValueError: a logit that is not finite, or streams below 1.

    Source: derived here: the map is ``(e^b - 1) 1 + ones`` over its row sum.
    """
    finite("logit", logit)
    small = np.exp(-np.abs(np.asarray(logit, float)))  # of either sign without overflow
    ahead = (1 - small) / (1 + (positive_integer("streams", streams) - 1) * small)
    return np.where(np.asarray(logit) >= 0, ahead, -(1 - small) / (small + streams - 1))


@kinds
def constrained_log_gain(kept: float, depth: int, streams: int = 4) -> np.ndarray:
    """``ln [(1 + (n - 1) mu^l) / n]``, l = 0 ... depth: ln of the mean squared gain of doubly stochastic maps.

    The mean of the streams passes as it is, of their differences each map keeps mu. For one map R it is the square of
    `second_eigenvalue`; for maps drawn by a law that no renaming of the streams changes, ``(E |R|_F^2 - 1) / (n - 1)``.

    Args:
        kept: mu, in [0, 1].
        depth: maps.
        streams: n.

    Returns:
        Shape ``(depth + 1,)``: from 0 down to -ln n, however deep.

    Raises:
        ValueError: a mu outside of [0, 1], or sizes below 1.

    Source: derived here.
    """
    finite("kept", kept, "in [0, 1]", lambda v: (v >= 0) & (v <= 1))
    n, layers = positive_integer("streams", streams), np.arange(positive_integer("depth", depth) + 1)
    return np.log((1 + (n - 1) * float(kept) ** layers) / n)


@kinds
def depth_average_mean_square(depth: int, deviation: float, *, gain: float = 1.0) -> np.ndarray:
    """E h_l^2 / E h_0^2 of a linear stack that reads averages of all its past, the weights 1 + eps z_0, eps z_1, ...

    States of different layers are uncorrelated, since kernels are: ``q_(l+1) = gain (q_l + eps^2 (q_0 + ... + q_l))``.

    Args:
        depth: L.
        deviation: eps.
        gain: E F^2 / E x^2 of a layer.

    Returns:
        Shape ``(depth + 1,)``.

    Raises:
        ValueError: a depth below 1, or a negative or infinite number.

    Source: derived here; the averages are those of Pagliardini et al. 2024, "DenseFormer".
    """
    not_negative("deviation", deviation)
    not_negative("gain", gain)
    q = [1.0]
    for _ in range(positive_integer("depth", depth)):
        q.append(gain * (q[-1] + deviation**2 * math.fsum(q)))
    return np.array(q)


@kinds
def tied_log_gain(depth: int, *, skip: float = 1.0, branch: float = 1.0) -> float:
    """``ln sum_k C(L, k)^2 skip^(2(L-k)) branch^(2k)``: ln of the mean squared gain of one map, skip 1 + branch W,
    taken L times, Var W_ij = 1 / width, at infinite width.

    Powers of one W are uncorrelated and each of unit gain: the sum over k. Untied it is ``L ln(skip^2 + branch^2)``.
    With ``branch = c / L`` the loop is a flow, exp(c W), of mean squared gain I_0(2c) (`flow_gain`).

    Args:
        depth: L.
        skip, branch: of every step; the sign of neither counts.

    Raises:
        ValueError: a depth below 1, or a number that is not finite.

    Source: derived here; Chen et al. 2018, "Neural ordinary differential equations", for depth as time.
    """
    from scipy.special import gammaln, logsumexp

    finite("skip", skip)
    finite("branch", branch)
    L = positive_integer("depth", depth)
    k = np.arange(L + 1)
    counts = gammaln(L + 1) - gammaln(k + 1) - gammaln(L - k + 1)
    # 0^0 = 1: a factor of 0 leaves the term without it.
    with np.errstate(divide="ignore", invalid="ignore"):
        powers = [np.where(p == 0, 0, p * np.log(abs(float(f)))) for p, f in ((L - k, skip), (k, branch))]
    return float(logsumexp(2 * (counts + powers[0] + powers[1])))


@kinds
def flow_gain(time: ArrayLike) -> np.ndarray:
    """``I_0(2t)``: the mean squared gain of exp(t W), Var W_ij = 1 / width, at infinite width: 2.279585302 at t = 1.

    Args:
        time: t, any shape: branch times depth.

    Raises:
        ValueError: a time that is not finite.

    Source: derived here: ``E |W^k u|^2 = 1`` for every k, so the sum of ``(t^k / k!)^2``.
    """
    from scipy.special import i0

    finite("time", time)
    return i0(2 * np.asarray(time, float))
