"""Finite width: what ln ||J u|| of one draw does, to order 1/n in its mean and its variance.

Given the layer before, the n pairs (h_i, u_i) of a Gaussian layer are independent and Gaussian, so a network and its
tangent are a Markov chain in three numbers: the variance q of h, the norm of u and their correlation rho. The gain of
a layer then has two sources, the slopes, ||D u||^2 / ||u||^2 with D = diag phi'(h), whose law at given q is exact
here, and the matrix, ||W v||^2 / ||v||^2; and the fluctuation delta of ln q, which layers hand on, modulates the first.
For homogeneous activations q does not matter, and everything is exact. All logarithms are natural.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax import activations
from vgjax.activations import Activation
from vgjax.checks import ArrayLike, kinds, known, not_negative, positive_integer
from vgjax.theory._chebyshev import Axis, Curve, coefficients, locate, polynomials, sample
from vgjax.theory._gaussian import ActivationLike, line
from vgjax.theory._mean_field import mean_field
from vgjax.theory._moments import averages, moment_table, sampled
from vgjax.theory._pieces import pieces
from vgjax.theory._scales import checked_scales
from vgjax.values import by_content

# ln q over which laws of slopes are interpolated: 24 nodes on segments of length 3 (2.5^-24 = 3e-10) from q = 1e-9 to
# 7e8; beyond, phi is a power of its argument already, and the law no longer changes.
_LAWS = Axis(-21.0, 3.0, 14)

# Standard Gaussian cut at +-2: E x^2 = 1 - d, E x^4 = 3 E x^2 - 4 d, d = 4 density(2) / P(|x| < 2).
_CUT = 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
_EXCESS_KURTOSIS = {
    "gaussian": 0.0,
    "truncated": (3 * (1 - _CUT) - 4 * _CUT) / (1 - _CUT) ** 2 - 3,
    "uniform": -6 / 5,
    "orthogonal": 0.0,
}
"""Of a kernel's entries, for each law that `band` covers."""


@by_content
class LogMoments(NamedTuple):
    """Mean and variance of a logarithm; numbers, or arrays of one shape."""

    mean: Any
    variance: Any


@by_content
class Band(NamedTuple):
    """What to expect of ln ||J_{l<-0} u|| of one draw, at every depth l.

    Attributes:
        mean: mean over draws (quenched), shape ``(*scales, depth + 1)``.
        deviation: standard deviation over draws, same shape.
    """

    mean: np.ndarray
    deviation: np.ndarray


# --- one layer ------------------------------------------------------------------------------------------------------


@kinds
def log_gain_moments(activation: ActivationLike, width: int, q: float = 1.0) -> LogMoments:
    """Mean and variance of ln ||J u||^2 over one Gaussian layer from n to n units, sigma_w^2 E phi'^2 = 1, ||u|| = 1.

    It is the law of ln X, X = (1/n) sum_i w_i g_i^2 with w = phi'(sqrt(q) z)^2 / E phi'^2 and z, g ~ N(0, 1), given
    that some w_i is not 0 (ReLU: some unit is alive). With M(t) = E exp(-t X) = (E (1 + 2 t w / n)^(-1/2))^n,

        E ln X = int_0^inf (exp(-t) - M(t)) dt / t,
        E ln^2 X = -2 int_0^inf ln(t) (exp(-t) - M(t)) dt / t - 2 gamma E ln X.

    Right to 1e-10. Linear: psi(n/2) + ln(2/n) and psi'(n/2). The logarithms of independent layers add: for linear,
    ReLU and leaky ReLU without bias this is all there is at any depth.

    Args:
        activation: a name, an `Activation`, or any elementwise callable.
        width: n.
        q: variance of the preactivations; does not matter for homogeneous activations.

    Returns:
        `LogMoments`; (-inf, 0) where phi' is 0 almost everywhere.

    Raises:
        ValueError: a width below 1, or a negative or non-finite q.

    Source: derivatives at s = 0 of int_0^inf t^(s-1) (exp(-t) - M(t)) dt = Gamma(s) (1 - E X^-s); for ReLU the mixture
        of chi-square laws over the number of live units of Hanin and Nica 2019, "Products of many large random
        matrices and gradients in deep neural networks".
    """
    n = positive_integer("width", width)
    not_negative("q", q)
    slope, values, weights = _law_of_slopes(activations.get(activation), float(q))
    if slope == 0:
        return LogMoments(-math.inf, 0.0)
    slopes, matrix = _slopes_part(values, weights, n), _log_chi_square(n)
    return LogMoments(slopes.mean + matrix.mean, slopes.variance + matrix.variance)


def _log_moments(values: np.ndarray, weights: np.ndarray, n: int) -> LogMoments:
    """Of ln X, X = (1/n) sum w_i g_i^2, given X > 0; w takes these values with these weights."""
    dead = float(weights[values == 0].sum()) ** n

    def transform(t: np.ndarray) -> np.ndarray:
        # By expm1 and log1p, so that what is left after subtracting exp(-t) keeps its digits at any width.
        with np.errstate(divide="ignore"):
            return np.exp(n * np.log1p(np.expm1(-np.log1p(np.outer(t, 2 / n * values)) / 2) @ weights))

    top = 6.0  # exp(-t) is 0 there; the law's own transform may fall later
    while top < 500 and transform(np.array([math.exp(top)]))[0] - dead > 1e-16:
        top *= 1.4
    # In y = ln t the integrand is analytic for |Im y| < pi/2: trapezoids of width h err by exp(-pi^2 / h) = 6e-13 only;
    # below y = -32 it is below t = 1e-14.
    step = 0.35
    y = np.arange(-32, top, step)
    t = np.exp(y)
    difference = np.exp(-t) - (transform(t) - dead) / (1 - dead)
    mean = step * difference.sum()
    square = -2 * (step * (y @ difference) + np.euler_gamma * mean)
    return LogMoments(float(mean), float(square - mean**2))


def _law_of_slopes(phi: Activation, q: float) -> tuple[float, np.ndarray, np.ndarray]:
    """E phi'^2, and the values of w = phi'^2 / E phi'^2, each once, with their weights."""
    on = line(phi, q)
    slope = on.mean(on.slope**2)
    heavy = on.weights > 1e-19  # lighter nodes change no digit and only cost time
    values, which = np.unique(on.slope[heavy] ** 2 / (slope or 1), return_inverse=True)
    return slope, values, np.bincount(which, on.weights[heavy])


def _slopes_part(values: np.ndarray, weights: np.ndarray, n: int) -> LogMoments:
    """Of ln(||D u||^2 / ||u||^2 / E phi'^2): X over the chi-square of u, which is independent of their ratio."""
    if len(values) == 1:
        return LogMoments(0.0, 0.0)
    with_norm = _log_moments(values, weights, n)
    norm = _log_chi_square(n)
    return LogMoments(with_norm.mean - norm.mean, with_norm.variance - norm.variance)


def _matrix_part(kernel_init: str, n: int, after: int) -> LogMoments:
    """Of ln(||W v||^2 / ||v||^2) at unit gain, W from n to ``after`` units; for Haar's law the norm of a projection."""
    size = math.log(after / n)
    if kernel_init == "orthogonal" and after >= n:
        return LogMoments(size, 0.0)
    norm = _log_chi_square(after)
    whole = _log_chi_square(n) if kernel_init == "orthogonal" else LogMoments(0.0, 0.0)
    return LogMoments(size + norm.mean - whole.mean, norm.variance - whole.variance)


@functools.cache
def _log_chi_square(n: int) -> LogMoments:
    """Of ln(chi^2_n / n)."""
    from scipy.special import polygamma, psi

    return LogMoments(float(psi(n / 2) + math.log(2 / n)), float(polygamma(1, n / 2)))


# --- homogeneous activations ----------------------------------------------------------------------------------------


@kinds
def fourth_moment(widths: Sequence[int], activation: ActivationLike = "relu") -> float:
    """E ||J u||^4 / ||u||^4 of a homogeneous activation in He's scaling without bias, u a random direction; exact.

        n_L (n_L + 2) / (n_0 (n_0 + 2)) prod_{l<L} (1 + k / n_l),   k = 3 E phi'^4 / (E phi'^2)^2 - 1,

    5 for ReLU, 2 for linear. The first factor is that of the unequal ends, as E ||J u||^2 = n_L / n_0.

    Args:
        widths: sizes n_0 ... n_L of the states h^0 ... h^L.
        activation: linear, ReLU or leaky ReLU of any slope.

    Returns:
        The moment; inf above the float range.

    Raises:
        ValueError: an activation that is not homogeneous, fewer than one size, or a size below 1.

    Source: Hanin 2018, "Which neural net architectures give rise to exploding and vanishing gradients?", theorem 1;
        the constant by one layer, E (sum w g^2)^2 = 3 n E w^2 + n (n - 1) (E w)^2.
    """
    sizes, k = _sizes(widths), _constant(activation)
    ends = sizes[-1] * (sizes[-1] + 2) / (sizes[0] * (sizes[0] + 2))
    with np.errstate(over="ignore"):
        return float(ends * np.prod(1 + k / np.array(sizes[:-1])))


@kinds
def log_normal_beta(widths: Sequence[int], activation: ActivationLike = "relu") -> float:
    """beta of the limit law ln(||J u||^2 n_0 / n_L) ~ N(-beta/2, beta), for depth and width large together.

        beta = k sum_{l<L} 1 / n_l + 2 / n_L - 2 / n_0,   k = 3 E phi'^4 / (E phi'^2)^2 - 1: ReLU 5, linear 2.

    Args, Raises: as for `fourth_moment`.

    Source: Hanin and Nica 2019, "Products of many large random matrices and gradients in deep neural networks".
    """
    sizes, k = _sizes(widths), _constant(activation)
    return float(k * np.sum(1 / np.array(sizes[:-1])) + 2 / sizes[-1] - 2 / sizes[0])


def _constant(activation: ActivationLike) -> float:
    phi = activations.get(activation)
    slope, values, weights = _law_of_slopes(phi, 1.0)
    if not phi.homogeneous or slope == 0:
        raise ValueError(f"activation must be homogeneous (linear, relu, leaky_relu), got {phi.name!r}")
    return float(3 * weights @ values**2 - 1)


def _sizes(widths: Sequence[int]) -> list[int]:
    sizes = [positive_integer("widths", n) for n in widths]
    if not sizes:
        raise ValueError("widths must hold at least one size, got none")
    return sizes


# --- any activation -------------------------------------------------------------------------------------------------


@kinds
def band(
    activation: ActivationLike,
    widths: Sequence[int],
    sigma_w: ArrayLike,
    sigma_b: ArrayLike = 0.0,
    kernel_init: str = "gaussian",
    q0: ArrayLike | None = None,
) -> Band:
    """Mean and standard deviation over draws of ln ||J_{l<-0} u|| at every depth l, for a random direction u.

    The infinite-width part is (1/2) sum ln chi(q_l) along q' = V(q) = sigma_w^2 E phi(sqrt(q) z)^2 + sigma_b^2, plus
    (1/2) ln(n_l / n_0) where widths differ. Order 1/n adds, layer by layer and from l = 0 on, mean and variance of the
    gain of slopes and matrix at q, and what the fluctuation delta of ln q and the correlation rho of h and u do to it.
    With f = ln V and lambda = ln chi as functions of ln q, and with the sampling noises e of ln V and eta of lambda,

        E delta' = f' E delta + f''/2 E delta^2 - Var e / 2,        E delta'^2 = f'^2 E delta^2 + Var e,
        Cov(ln ||u||^2, delta)' = f' (Cov + lambda' E delta^2) + Cov(eta, e),
        E ln gain^2 += lambda' E delta + lambda''/2 E delta^2 + E rho^2 (E phi'^2 z^2 / E phi'^2 - 1),
        Var ln gain^2 += 2 lambda' Cov + lambda'^2 E delta^2.

    Exact for linear, ReLU and leaky ReLU (given that no layer is dead), with any bias under the Gaussian law, without
    under the orthogonal. Otherwise what is neglected is about 1/n^2 a layer in the mean (1/n of itself in the
    deviation) and grows with E delta^2, the variance of ln q, to the size of the 1/n terms where that is not small:
    where q scatters by itself (GELU: the deviation at width 64 is 12 percent low, at 256 5) and, at a criticality with
    q* = 0, at depths ~ n. Nothing is singular there: the band follows the finite depth, not the fixed point.

    Args:
        activation: a name, an `Activation`, or any elementwise callable.
        widths: sizes of the states h^0 ... h^L.
        sigma_w, sigma_b: standard deviations of the weights (times the root of fan_in) and of the biases; any shapes
            that broadcast.
        kernel_init: of the kernels: "gaussian", "orthogonal" (Haar), "uniform" or "truncated".
        q0: mean square of h^0 over draws. None: the fixed point that q runs to from 1, or 1 if it runs to 0 or
            infinity.

    Returns:
        `Band`; mean -inf with deviation 0 from where the gain is a true zero.

    Raises:
        ValueError: no size, a size below 1, a negative or non-finite scale or q0, or an unknown law.

    Source: 1/n expansion of the chain in the module's docstring. At a fixed point where V has slope r, n times the
        variance tends to 3 E phi'^4/m^2 - 1 + 2 k sigma_w^2 (E phi^2 phi'^2/m - E phi^2) + k^2 sigma_w^4 Var phi^2 a
        layer, m = E phi'^2, k = (d ln m/dq) / (1 - r).
    """
    phi, sizes = activations.get(activation), _sizes(widths)
    for name, value in (("sigma_w", sigma_w), ("sigma_b", sigma_b), ("q0", q0)):
        not_negative(name, 0 if value is None else value)
    known("kernel_init", kernel_init, _EXCESS_KURTOSIS)
    shape = checked_scales(sigma_w=sigma_w, sigma_b=sigma_b, q0=1.0 if q0 is None else q0)
    sigma_w2, sigma_b2 = (np.broadcast_to(np.square(np.asarray(s, float)), shape) for s in (sigma_w, sigma_b))
    q = _start(phi, sigma_w2, sigma_b2) if q0 is None else np.broadcast_to(np.asarray(q0, float), shape)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        state = _first_state(kernel_init, np.where(q > 0, sigma_b2 / q, 1.0), sizes[0])
        mean, variance = [np.zeros(q.shape)], [np.zeros(q.shape)]
        for n, after in itertools.pairwise(sizes):
            at, slope, matrix = _averages(phi, q), _slopes(phi, n, q), _matrix_part(kernel_init, n, after)
            gain = _gain(at, state, n)
            mean.append(mean[-1] + np.log(sigma_w2 * at.slope) + slope.mean + matrix.mean + gain.mean)
            variance.append(variance[-1] + slope.variance + matrix.variance + gain.variance)
            q = _held(phi, sigma_w2 * at.square + sigma_b2)
            state = _next_state(at, state, np.where(q > 0, 1 - sigma_b2 / q, 0.0), kernel_init, n, after)
        lost = np.logical_or.accumulate(np.isneginf(np.stack(mean, axis=-1)), axis=-1)
        deviation = np.sqrt(np.maximum(np.stack(variance, axis=-1), 0)) / 2
        return Band(np.where(lost, -np.inf, np.stack(mean, axis=-1) / 2), np.where(lost, 0, deviation))


def _start(phi: Activation, sigma_w2: np.ndarray, sigma_b2: np.ndarray) -> np.ndarray:
    """The fixed point that q runs to from 1; 1 where there is none."""
    q = mean_field(phi, np.sqrt(sigma_w2), np.sqrt(sigma_b2)).q_star
    return np.where((q > 0) & np.isfinite(q), q, 1.0)


class _Averages(NamedTuple):
    """Gaussian averages at many q, of a = phi^2 / E phi^2 and w = phi'^2 / E phi'^2; each of the shape of q.

    a1, w1 are the first logarithmic derivatives of E phi^2 and E phi'^2, a2 and w2 q^2 times the second derivatives
    over the value: d/dq E f = E f (z^2 - 1) / (2 q), and again.
    """

    square: np.ndarray  # E phi^2
    slope: np.ndarray  # E phi'^2
    a1: np.ndarray
    a2: np.ndarray
    w1: np.ndarray
    w2: np.ndarray
    aa: np.ndarray
    aw: np.ndarray
    ww: np.ndarray
    along: np.ndarray  # (E phi phi' z)^2 / (E phi^2 E phi'^2)


def _averages(phi: Activation, q: np.ndarray) -> _Averages:
    """At any q; beyond the ends of the table the ratios have come to their limits."""
    square, slope, _ = moment_table(phi)(q)
    return _Averages(square, slope, *_ratio_table(phi)(np.log(q)))


@functools.cache
def _ratio_table(phi: Activation) -> Curve:
    """The ratios among `_Averages` over ln q, where `moment_table` reaches."""
    edges = moment_table(phi).of_log_q.edges
    return Curve(edges, coefficients(averages(phi, sampled(phi).pieces, sample(edges[:-1], edges[1:]), _ratios)))


def _ratios(weights: Array, z: Array, u: Array, value: Array, slope: Array) -> list[Array]:
    def mean(values: Array) -> Array:
        return jnp.sum(weights * values)

    def over(values: Array, size: Array) -> Array:
        return values / jnp.where(size == 0, 1, size)

    square, slope_square = mean(value**2), mean(slope**2)
    a, w = over(value**2, square), over(slope**2, slope_square)
    first, second = (z**2 - 1) / 2, (z**4 - 6 * z**2 + 3) / 4
    along = over(mean(value * slope * z) ** 2, square * slope_square)
    return [*map(mean, (a * first, a * second, w * first, w * second, a * a, a * w, w * w)), along]


def _held(phi: Activation, q: np.ndarray) -> np.ndarray:
    """q kept inside the float range where phi is linear, or flat, long before its ends."""
    below, above = (end.value in (0, 1) and end.jacobian == 0 for end in phi.facts.ends)
    return np.clip(q, 1e-250 if below else 0, 1e250 if above else np.inf)


def _slopes(phi: Activation, n: int, q: np.ndarray) -> LogMoments:
    """`_slopes_part` at many q, from the Chebyshev coefficients of those segments that they lie in, row by row.

    Like Gaussian averages (see `_moments`) the law of w is analytic in ln q, whatever phi is.
    """
    reached = (math.log(pieces(phi).largest_variance) - _LAWS.low) // _LAWS.step
    t = np.zeros(q.size) if phi.homogeneous else np.log(q).ravel()
    index, x = locate((t - _LAWS.low) / _LAWS.step, min(_LAWS.segments, max(1, int(reached))))
    needed, which = np.unique(index, return_inverse=True)
    rows = np.stack([_slopes_segment(phi, n, int(i)) for i in needed])[which.ravel()]
    return LogMoments(*np.einsum("prk,kp->rp", rows, polynomials(x)).reshape(2, *q.shape))


@functools.cache
def _slopes_segment(phi: Activation, n: int, segment: int) -> np.ndarray:
    laws = [_law_of_slopes(phi, math.exp(t))[1:] for t in _LAWS.nodes[segment]]
    return coefficients(np.array([_slopes_part(*kernel_init, n) for kernel_init in laws]))


class _State(NamedTuple):
    """Fluctuations at one layer, of order 1/n.

    delta is that of ln q; rho the correlation of h and u. Under the orthogonal law the sample norm of W phi and its
    overlap with u are given exactly, which takes their share out of all sampling noise: ``exact`` is that share (0 for
    independent entries, below 1 where a layer narrows), ``part`` the part of q that is not bias.
    """

    mean: Any = 0.0  # E delta
    variance: Any = 0.0  # E delta^2
    with_gain: Any = 0.0  # Cov(ln ||u||^2, delta)
    overlap: Any = 0.0  # E rho^2
    kurtosis: Any = 0.0  # excess, of h
    joint_kurtosis: Any = 0.0  # of h, h, u, u
    exact: float = 0.0
    part: Any = 1.0


def _first_state(kernel_init: str, bias: np.ndarray, n: int) -> _State:
    """h^0 = W x + b of a given x, q its part. Its overlap with u is a sample's, which the exact law counts as rho."""
    exact, part = float(kernel_init == "orthogonal"), np.maximum(0.0, 1 - bias)
    return _State(overlap=exact * part / n, exact=exact, part=part)


def _gain(at: _Averages, state: _State, n: int) -> LogMoments:
    """What fluctuations add to mean and variance of ln gain^2."""
    exact, w1 = state.exact * state.part / n, at.w1
    lambda2 = w1 + at.w2 - w1**2
    mean = w1 * state.mean + lambda2 / 2 * state.variance + np.log1p(2 * w1 * state.overlap)
    mean += at.w2 * state.kurtosis / 6 + w1 * state.joint_kurtosis
    # E f at an exact sample covariance is E f less the second-order term of a Wishart matrix's scatter.
    mean += exact * (state.part * (w1**2 - at.w2) - 2 * w1)
    variance = 2 * w1 * state.with_gain + w1**2 * (state.variance - 2 * exact * state.part)
    return LogMoments(mean, variance)


def _next_state(at: _Averages, state: _State, part: np.ndarray, kernel_init: str, n: int, after: int) -> _State:
    """Fluctuations one layer on; ``part`` is sigma_w^2 E phi^2 / V(q)."""
    f1, f2 = part * at.a1, part * (at.a1 + at.a2) - (part * at.a1) ** 2
    exact, excess = state.exact * state.part, _EXCESS_KURTOSIS[kernel_init]
    noise = part**2 * (at.aa - 1 - 2 * exact * state.part * at.a1**2) / n
    shared_noise = part * (at.aw - 1 - 2 * exact * state.part * at.w1 * at.a1) / n
    bias = part * at.a2 * (state.kurtosis / 6 - exact * state.part / n)
    overlap = part * (at.along * (state.overlap - exact / n) + at.aw / n)
    return _State(
        mean=f1 * state.mean + f2 / 2 * state.variance - noise / 2 + bias,
        variance=f1**2 * state.variance + noise,
        with_gain=f1 * (state.with_gain + at.w1 * state.variance) + shared_noise,
        # The denominator saturates it, where u turns into h for good (phi = h^3).
        overlap=np.minimum(1.0, overlap / (1 + 2 * at.w1 * state.overlap)),
        kurtosis=excess * part**2 * at.aa / n,
        joint_kurtosis=excess * part * at.aw / n,
        exact=min(1.0, after / n) if kernel_init == "orthogonal" else 0.0,
        part=part,
    )
