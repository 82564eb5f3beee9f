"""Linear recurrences and other tied depth: how much of a gradient is left after T steps, by the law of the factors.

Everywhere the gain is ``E |dh_T / dh_0|^2`` a unit, over draws and (where gates read it) over white inputs; its natural
logarithm is what is returned. T may be any number: between whole steps the same formula. `memory_horizon` is where it
has fallen to 1 / e.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vgjax.checks import finite, kinds, not_negative, positive_integer, short, takes
from vgjax.theory._quadrature import gaussian_panels, panels

# --- factors that are drawn once --------------------------------------------------------------------------------------


@kinds
def ring_log_gain(steps: float, radii: tuple[float, float] = (0.0, 1.0)) -> float:
    """ln E |lambda|^(2 T) of the LRU, |lambda|^2 uniform between the squares of two radii r0 and r1.

    E |lambda|^(2 T) = (r1^(2 T + 2) - r0^(2 T + 2)) / ((T + 1) (r1^2 - r0^2)): 1 / (T + 1) on the whole disk.

    Args:
        steps: T.
        radii: r0, r1, from 0 to 1.

    Raises:
        ValueError: negative steps, radii that are not in order between 0 and 1.

    Source: Orvieto et al. 2023, "Resurrecting recurrent neural networks for long sequences", lemma 3.2, for the law.
    """
    not_negative("steps", steps)
    low, high = _ordered("radii", radii, 1.0)
    if high == 0:
        return 0.0 if steps == 0 else -math.inf
    if low == high:
        return 2 * steps * math.log(high)
    with np.errstate(divide="ignore"):
        ratio = (2 * steps + 2) * (np.log(low) - np.log(high))  # -inf for the disk
    top = (2 * steps + 2) * math.log(high) + np.log(-np.expm1(ratio))
    return float(top - math.log1p(steps) - math.log((high - low) * (high + low)))


@kinds
def s4d_log_gain(steps: float, time_steps: tuple[float, float] = (1e-3, 0.1)) -> float:
    """ln E |exp(dt A)|^(2 T) of S4D-Lin and S5, Re A = -1/2, dt log-uniform between a and b.

    E e^(-T dt) = (E1(T a) - E1(T b)) / ln(b / a), E1 the exponential integral.

    Args:
        steps: T.
        time_steps: a, b.

    Raises:
        ValueError: negative steps, time steps that are not positive and in order.

    Source: Gu et al. 2022, "On the parameterization and initialization of diagonal state space models", for the law.
    """
    not_negative("steps", steps)
    return float(_log_mean_decay(np.asarray(steps), *_positive(time_steps)))


@kinds
def mamba_log_gain(
    steps: float,
    states: int = 16,
    heads: bool = False,
    sigma_dt: float = 0.0,
    time_steps: tuple[float, float] = (1e-3, 0.1),
) -> float:
    """ln E exp(-2 A sum_t dt_t) of Mamba: dt = softplus(b + g) with b such that dt is log-uniform between a and b at g
    = 0, and the input's g ~ N(0, sigma_dt^2).

    At sigma_dt = 0 of one A: (E1(2 A T a) - E1(2 A T b)) / ln(b / a). With noise the average over g is taken at every
    step, the one over b and A over the whole time.

    Args:
        steps: T.
        states: A = 1 ... states, of equal weight.
        heads: Mamba-2 instead: A uniform between 1 and 16.
        sigma_dt: standard deviation of what the input adds (of the scale ``sigma_dt``, for white inputs of variance 1).
        time_steps: a, b.

    Raises:
        ValueError: negative steps, a sigma_dt below 0 or above 30, no states, time steps that are not positive and in
            order.

    Source: Gu and Dao 2023, "Mamba", section 3.6; Dao and Gu 2024, "Transformers are SSMs", for the laws.
    """
    not_negative("steps", steps)
    _resolved("sigma_dt", sigma_dt)
    low, high = _positive(time_steps)
    rates = np.arange(1.0, positive_integer("states", states) + 1)
    weights = np.full(states, 1 / states)
    if heads:
        rates, weights = (part.ravel() for part in panels(np.geomspace(1.0, 16.0, 9)))
        weights = weights / 15
    if not sigma_dt:
        return float(_log_mean(_log_mean_decay(2 * steps * rates, low, high), weights))
    # Over ln dt at the input 0: panels of a quarter, on which e^(-2 A T dt) is smooth wherever it is not 0.
    edges = np.linspace(math.log(low), math.log(high), 1 + math.ceil(4 * math.log(high / low) + 1))
    log_dt, of_dt = (part.ravel() for part in panels(edges))
    noise, of_noise = _gaussian(sigma_dt)
    dt = np.exp(log_dt)
    bias = dt + np.log(-np.expm1(-dt))
    noisy = np.logaddexp(0, bias[:, None] + sigma_dt * noise)
    by_rate = [
        _log_mean(steps * _log_mean(-2 * rate * noisy, of_noise), of_dt / math.log(high / low)) for rate in rates
    ]
    return float(_log_mean(np.array(by_rate), weights))


@kinds
def rg_lru_log_gain(
    steps: float, sigma: float = 0.0, radii: tuple[float, float] = (0.9, 0.999), sharpness: float = 8.0
) -> float:
    """ln E prod_t a^(2 c r_t) of the RG-LRU, a^2 uniform between the squares of two radii, r = sigmoid(N(0, sigma^2)).

    At sigma = 0 all gates stand at 1/2 and this is the ring with c T / 2 in the place of T. Else the average over the
    gate is taken at every step, the one over a over the whole time.

    Args:
        steps: T.
        sigma: standard deviation of the gate's preactivation (``sigma_v``, for white inputs of variance 1).
        radii: of a.
        sharpness: c.

    Raises:
        ValueError: negative steps, a sigma below 0 or above 30, radii that are not in order between 0 and 1, a
            sharpness that is not positive.

    Source: De et al. 2024, "Griffin", section 2.4, for the law.
    """
    not_negative("steps", steps)
    _resolved("sigma", sigma)
    finite("sharpness", sharpness, "positive", lambda v: v > 0)
    low, high = _ordered("radii", radii, 1.0)
    if not sigma or low == high == 1:
        return ring_log_gain(sharpness * steps / 2, radii)
    # Over ln of a^2 = u, crowded toward the largest, which is what is left in the end.
    depth = 1.0 - np.concatenate([[0.0], np.geomspace(1e-6, 1.0, 97)])
    u, of_u = (part.ravel() for part in panels(low**2 + (high**2 - low**2) * depth[::-1]))
    noise, of_noise = _gaussian(sigma)
    gate = 1 / (1 + np.exp(-sigma * noise))
    each = _log_mean(sharpness * np.log(u)[:, None] * gate, of_noise)
    return float(_log_mean(steps * each, of_u / (high**2 - low**2)))


# --- gates alone ------------------------------------------------------------------------------------------------------


class GateRates(NamedTuple):
    """How a gate f changes a squared gradient in a step, natural logs.

    Attributes:
        annealed: ln E f^2, of the mean square over all units.
        quenched: 2 E ln f, of a typical unit.
    """

    annealed: float
    quenched: float


@kinds
def min_gru_rates(sigma: float, forget_bias: float = 0.0) -> GateRates:
    """The factor 1 - z = sigmoid(forget_bias - g) of a minGRU, g ~ N(0, sigma^2), by quadrature.

    Args:
        sigma: standard deviation of the gate's preactivation: sqrt(sigma_v^2 + sigma_b^2) for white inputs of variance
            1 (quenched, and annealed where biases are 0).
        forget_bias: as the cell's.

    Returns:
        `GateRates`.

    Raises:
        ValueError: a sigma below 0 or above 30, a bias that is not finite.

    Source: Feng et al. 2024, "Were RNNs all we needed?", for the cell.
    """
    _resolved("sigma", sigma)
    finite("forget_bias", forget_bias)
    z, weights = _gaussian(sigma)
    log = -np.logaddexp(0, sigma * z - forget_bias)
    return GateRates(float(_log_mean(2 * log, weights)), float(2 * log @ weights))


@kinds
def min_lstm_rates(sigma: float, forget_bias: float = 0.0) -> GateRates:
    """The factor f / (f + i) of a minLSTM, f and i sigmoids of two independent N(0, sigma^2), by quadrature.

    Args:
        sigma, forget_bias: as for `min_gru_rates`; the bias is added in f.

    Returns:
        `GateRates`.

    Raises:
        ValueError: a sigma below 0 or above 30, a bias that is not finite.

    Source: Feng et al. 2024, "Were RNNs all we needed?", for the cell.
    """
    _resolved("sigma", sigma)
    finite("forget_bias", forget_bias)
    z, weights = _gaussian(sigma)
    inverse_f, inverse_i = np.logaddexp(0, -sigma * z - forget_bias), np.logaddexp(0, -sigma * z)  # -ln f, -ln i
    rows = [-np.logaddexp(0, of_f - inverse_i) for of_f in inverse_f]
    annealed = _log_mean(np.array([_log_mean(2 * row, weights) for row in rows]), weights)
    return GateRates(float(annealed), float(2 * np.array([row @ weights for row in rows]) @ weights))


@kinds
def delta_rule_log_gain(steps: float, rate: float, size: int) -> float:
    """T ln(1 - beta (2 - beta) / d) of the delta rule: S' = S (1 - beta k k^T) + ..., unit keys k in all directions.

    Exactly 0 at beta = 2, where every step is a reflection.

    Args:
        steps: T.
        rate: beta, the same at every step.
        size: d, of a key.

    Raises:
        ValueError: negative steps, a rate that is not finite, a size below 1.

    Source: Yang et al. 2024, "Parallelizing linear transformers with the delta rule over sequence length", for the map.
    """
    not_negative("steps", steps)
    finite("rate", rate)
    lost = rate * (2 - rate) / positive_integer("size", size)
    return 0.0 if steps * lost == 0 else steps * math.log1p(-lost) if lost < 1 else -math.inf


# --- memory -----------------------------------------------------------------------------------------------------------


class Memory(NamedTuple):
    """What a unit h' = lambda h + x holds, and what that says of lambda.

    Attributes:
        variance: E h^2.
        sensitivity: E (dh / dlambda)^2.
    """

    variance: float
    sensitivity: float


@kinds
def curse_of_memory(factor: float) -> Memory:
    """h' = lambda h + x under white x of variance 1, in the stationary state: gradients explode where memory is long.

    E h^2 = 1 / (1 - lambda^2), E (dh / dlambda)^2 = (1 + lambda^2) / (1 - lambda^2)^3.

    Args:
        factor: lambda, between -1 and 1.

    Returns:
        `Memory`.

    Raises:
        ValueError: a factor of size 1 or more.

    Source: Zucchet and Orvieto 2024, "Recurrent neural networks: vanishing and exploding gradients are not the end of
    the story", section 3.
    """
    finite("factor", factor, "between -1 and 1", lambda v: np.abs(v) < 1)
    left = (1 - factor) * (1 + factor)
    return Memory(1 / left, (1 + factor**2) / left**3)


@kinds
def memory_horizon(log_gain: Callable[[float], float]) -> float:
    """The steps T after which the mean squared gradient has fallen to 1 / e: ``log_gain(T) = -1``.

    Args:
        log_gain: T -> ln of it, falling; ``functools.partial(ring_log_gain, radii=(.9, .999))``.

    Returns:
        T, any number; 0 if it has fallen so far before the first step, infinite if it has not in 1e12.

    Raises:
        ValueError: what is no function of one number.
    """
    from scipy.optimize import brentq

    if not takes(log_gain, "steps"):
        raise ValueError(f"log_gain must be a function of the number of steps, got {short(log_gain)}")
    if log_gain(0.0) <= -1:
        return 0.0
    end = 1.0
    while log_gain(end) > -1:
        end *= 2
        if end > 1e12:
            return math.inf
    # -inf (a gradient of exactly 0) is past it as well.
    return float(brentq(lambda steps: max(log_gain(steps), -1e3) + 1, 0.0, end, xtol=1e-12, rtol=1e-13))


# --- tied depth -------------------------------------------------------------------------------------------------------


@kinds
def looped_log_gain(loops: int, scale: float, tied: bool = True) -> float:
    """ln E |(1 + eps W)^N u|^2 for |u| = 1 and Var W = 1 / width at infinite width: one linear residual block, N times.

    sum_k C(N, k)^2 eps^(2 k), which tends to I_0(2) at eps = 1 / N; with a draw of its own for every loop (1 +
    eps^2)^N.

    Args:
        loops: N.
        scale: eps.
        tied: whether all loops share one draw.

    Raises:
        ValueError: no loops, a negative scale.
    """
    from scipy.special import gammaln

    loops = positive_integer("loops", loops)
    not_negative("scale", scale)
    if not tied or scale == 0:
        return loops * math.log1p(scale**2)
    k = np.arange(loops + 1)
    log_binomial = gammaln(loops + 1) - gammaln(k + 1) - gammaln(loops - k + 1)
    return float(np.logaddexp.reduce(2 * (log_binomial + k * math.log(scale))))


@kinds
def equilibrium_log_gain(chi: float) -> float:
    """ln E |(1 - D W)^-1 u|^2 for |u| = 1: of a deep equilibrium h* = phi(W h*) + x, D the slopes there.

    sum_l chi^l = 1 / (1 - chi), chi = sigma_w^2 E phi'^2: the gains of all loops of a tied network add up, since those
    of different length are uncorrelated.

    Args:
        chi: from 0 to below 1; at 1 there is no equilibrium that is stable.

    Raises:
        ValueError: a chi outside of that.

    Source: Bai, Kolter and Koltun 2019, "Deep equilibrium models", theorem 1, for the Jacobian.
    """
    finite("chi", chi, "at least 0 and below 1", lambda v: (v >= 0) & (v < 1))
    return -math.log1p(-chi)


# --- averages ---------------------------------------------------------------------------------------------------------


def _log_mean_decay(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """ln E e^(-x dt), dt log-uniform between low and high."""
    if low == high:
        return -x * low
    octaves = math.log(high / low)
    large = np.maximum(x * high, 0.1) / high
    whole, rest = _log_exp1(large * low), _log_exp1(large * high)
    found = whole + np.log(-np.expm1(rest - whole)) - math.log(octaves)
    # Where x dt is small both integrals are large and alike: there by the series of E1(z) + ln z + gamma.
    k, small = np.arange(1, 11), np.minimum(x * high, 0.1)[..., None]
    terms = -((-1.0) ** k) * small**k / (k * np.cumprod(k)) * (1 - (low / high) ** k)
    return np.where(x * high < 0.1, np.log1p(-terms.sum(axis=-1) / octaves), found)


def _log_exp1(x: np.ndarray) -> np.ndarray:
    """ln of the exponential integral E1, whatever the size of x."""
    from scipy.special import exp1

    near = np.minimum(x, 500.0)
    far = np.maximum(x, 500.0)
    series = np.log1p(-1 / far + 2 / far**2 - 6 / far**3 + 24 / far**4)  # to 1e-11 of 1 from 500 on
    return np.where(x <= 500, np.log(exp1(near)), -far - np.log(far) + series)


def _resolved(name: str, sigma: float) -> None:
    """Pass what quadrature resolves: beyond, a sigmoid is a step."""
    finite(name, sigma, "from 0 to 30", lambda v: (v >= 0) & (v <= 30))


def _gaussian(sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for functions of sigmoid(sigma z), z ~ N(0, 1)."""
    # A sigmoid has its nearest pole at i pi / sigma: pieces of about that size.
    count = 2 * math.ceil(6 * max(1.0, sigma / 2))
    z, weights = (part.ravel() for part in gaussian_panels(np.linspace(-12, 12, 1 + count)))
    return z, weights / weights.sum()


def _log_mean(logs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """ln sum_i weights_i e^(logs_i) over the last axis."""
    top = np.max(logs, axis=-1)
    finite_top = np.where(np.isfinite(top), top, 0.0)
    return finite_top + np.log(np.exp(logs - finite_top[..., None]) @ weights)


def _ordered(name: str, pair: tuple[float, float], most: float) -> tuple[float, float]:
    if len(pair) != 2 or not 0 <= pair[0] <= pair[1] <= most:
        raise ValueError(f"{name} must be two numbers from 0 to {most:g}, in order, got {pair}")
    return pair


def _positive(time_steps: tuple[float, float]) -> tuple[float, float]:
    if len(time_steps) != 2 or not 0 < time_steps[0] <= time_steps[1] < math.inf:
        raise ValueError(f"time_steps must be two positive numbers, in order, got {time_steps}")
    return time_steps
