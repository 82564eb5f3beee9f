"""Recurrent networks: how much of a perturbation is left after a step.

One number per architecture: the largest Lyapunov exponent of a plain network, chi of the minimalRNN, the forget factor
of a gated cell, rho of a scaled orthogonal one; and the two attractors in which a single unit latches a bit.
"""

import math
from typing import NamedTuple

import numpy as np

from vgjax import activations
from vgjax.checks import ArrayLike, kinds, not_negative, positive_integer
from vgjax.theory._gaussian import ActivationLike, line, values
from vgjax.theory._mean_field import mean_field
from vgjax.values import by_content


@by_content
class MaximalLyapunov(NamedTuple):
    """The stationary state of autonomous random networks; numpy float64, each of the shape of the gain.

    Attributes:
        q: variance of h in the stationary state; 0 if activity dies out, infinite if it runs away.
        exponent: largest Lyapunov exponent per step, natural log of a norm (not of its square): > 0 is chaos.
    """

    q: np.ndarray
    exponent: np.ndarray


@kinds
def maximal_lyapunov(activation: ActivationLike, gain: ArrayLike) -> MaximalLyapunov:
    """Largest Lyapunov exponent of h_{t+1} = g J phi(h_t), Var J_ij = 1 / width, at infinite width.

    exponent = 0.5 ln(g^2 E phi'^2) at the stationary q = g^2 E phi^2; where activity dies out, as for a tanh below
    g = 1, ln(g |phi'(0)|).

    Args:
        activation: a name, an `Activation` or a callable.
        gain: g, any shape.

    Returns:
        `MaximalLyapunov`, in the state that q = 1 is driven to: the nearest q above it if its activity grows, below it
        otherwise, 1 itself if it stays (every q is fixed for ReLU at g^2 = 2). A non-monotone variance map may have
        others. The exponent is -inf where no perturbation survives.

    Raises:
        ValueError: a negative or non-finite gain, or an activation as `theory.mean_field` refuses it.

    Source: Sompolinsky, Crisanti and Sommers 1988, "Chaos in random neural networks"; Engelken, Wolf and Abbott 2023,
    "Lyapunov spectra of chaotic recurrent neural networks", for steps of time.
    """
    not_negative("gain", gain)
    # The same average as over independent layers: fixed weights matter only to finite networks.
    there = mean_field(activation, gain)
    with np.errstate(divide="ignore"):
        return MaximalLyapunov(there.q_star, np.log(there.chi) / 2)


class MinimalRNN(NamedTuple):
    """The stationary state of a minimalRNN.

    Attributes:
        hidden: Q = E h^2.
        q: variance of the gate's preactivation.
        chi: growth per step of the mean squared gradient.
    """

    hidden: float
    q: float
    chi: float


@kinds
def minimal_rnn(
    sigma_w: float, sigma_v: float, sigma_b: float = 0.0, mean_b: float = 0.0, second_moment: float = 1.0
) -> MinimalRNN:
    """h' = u h + (1 - u) x with the gate u = sigmoid(W h + V x + b), b ~ N(mean_b, sigma_b^2), at infinite width.

    For inputs white in time, R = E x^2, and weights independent at every step,

        Q = R E(1-u)^2 / (1 - E u^2),   q = sigma_w^2 Q + sigma_v^2 R + sigma_b^2,
        chi = E u^2 + sigma_w^2 (Q + R) E u'^2.

    The last term's R comes from u' multiplying h - x; formulas without it are in circulation.

    Args:
        sigma_w, sigma_v: standard deviations, Var W = sigma_w^2 / hidden units, Var V = sigma_v^2 / inputs.
        sigma_b, mean_b: of the bias; a large mean opens the gate to the past.
        second_moment: R.

    Returns:
        `MinimalRNN`, at the smallest q if there are several.

    Raises:
        ValueError: a negative or non-finite number.

    Source: Chen, Pennington and Schoenholz 2018, "Dynamical isometry and a mean field theory of RNNs", whose set-up
    this is.
    """
    from scipy.optimize import brentq

    names = ("sigma_w", "sigma_v", "sigma_b", "second_moment")
    for name, value in zip(names, (sigma_w, sigma_v, sigma_b, second_moment), strict=True):
        not_negative(name, value)
    not_negative("|mean_b|", abs(mean_b))

    def at(q: float) -> MinimalRNN:
        # v = 1 - u is distributed like sigmoid(sqrt(q) z - mean_b), which keeps its digits where u is nearly 1.
        v = line("sigmoid", q, -mean_b)
        lost = v.mean(v.phi * (2 - v.phi))  # 1 - E u^2
        hidden = second_moment * v.mean(v.phi**2) / lost
        chi = 1 - lost + sigma_w**2 * (hidden + second_moment) * v.mean(v.slope**2)
        return MinimalRNN(hidden, sigma_w**2 * hidden + sigma_v**2 * second_moment + sigma_b**2, chi)

    # 0 <= Q <= R, since (1 - u)^2 <= 1 - u^2: q lies between these two, more densely searched at the lower end.
    low = sigma_v**2 * second_moment + sigma_b**2
    grid = low + sigma_w**2 * second_moment * np.linspace(0, 1, 65) ** 2
    misses = np.array([at(q).q - q for q in grid])
    after = int(np.argmax(misses <= 0))
    q = grid[0] if after == 0 else brentq(lambda q: at(q).q - q, grid[after - 1], grid[after], xtol=1e-15, rtol=1e-14)
    return at(float(q))


class Gate(NamedTuple):
    """A memory cell with a constant gate.

    Attributes:
        factor: what is left of the cell's state, and of the gradient through it, after one step.
        time_scale: steps after which the norm has fallen by e.
    """

    factor: float
    time_scale: float


@kinds
def forget_gate(bias: float) -> Gate:
    """The memory of an LSTM or GRU at vanishing weights: factor sigmoid(mu), time scale -1 / ln sigmoid(mu).

    Args:
        bias: mu, of the gate that multiplies the past (an LSTM's forget gate; a GRU's update gate where that is z in
            h' = z h + (1 - z) candidate, else minus its bias).

    Returns:
        `Gate`.

    Raises:
        ValueError: a bias that is not finite.

    Source: Gers, Schmidhuber and Cummins 2000, "Learning to forget"; Tallec and Ollivier 2018, "Can recurrent neural
    networks warp time?", for the time scale.
    """
    not_negative("|bias|", abs(bias))
    rate = float(np.logaddexp(0, -bias))  # -ln sigmoid
    return Gate(math.exp(-rate), 1 / rate if rate > 0 else math.inf)


@by_content
class Latch(NamedTuple):
    """The fixed points of x = phi(w x); numpy float64, each of shape ``(points,)``.

    Attributes:
        points: in increasing order.
        slopes: w phi'(w x): how a perturbation grows in a step, there.
    """

    points: np.ndarray
    slopes: np.ndarray

    @property
    def attractors(self) -> np.ndarray:
        """The points that perturbations return to, |slope| < 1."""
        return self.points[np.abs(self.slopes) < 1]


@kinds
def latch(weight: float, activation: ActivationLike = "tanh") -> Latch:
    """Fixed points of one self-excited unit, x = phi(w x): it stores a bit where there are two attractors.

    For tanh there are two if and only if w > 1. There the gradient through a stored bit vanishes: |slope| < 1.

    Args:
        weight: w.
        activation: a name, an `Activation` or a callable.

    Returns:
        `Latch`: the isolated crossings with |x| between 1e-12 and 1e12, and 0. Points where the two sides only touch
        are not found.

    Raises:
        ValueError: a weight that is not finite.

    Source: Bengio, Simard and Frasconi 1994, "Learning long-term dependencies with gradient descent is difficult".
    """
    from scipy.optimize.elementwise import find_root

    not_negative("|weight|", abs(weight))
    phi = activations.get(activation)

    def excess(x: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            return values(phi, weight * x)[0] - x

    radii = np.geomspace(1e-12, 1e12, 4801)  # 200 to a decade: crossings 1% apart are told from each other
    x = np.concatenate([-radii[::-1], [0.0], radii])
    side = np.sign(excess(x))
    cells = np.flatnonzero(side[:-1] * side[1:] < 0)
    crossed = find_root(excess, (x[cells], x[cells + 1])).x
    points = np.sort(np.concatenate([crossed, _isolated(x, side == 0)]))
    return Latch(points, weight * values(phi, weight * points)[1])


def _isolated(x: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Middles of runs of fixed points too narrow to be an interval of them (rounding shows x = tanh(x) as one)."""
    first = np.flatnonzero(fixed & ~np.roll(fixed, 1))
    last = np.flatnonzero(fixed & ~np.roll(fixed, -1))
    narrow = x[last] - x[first] < 1e-5 * np.maximum(1, np.abs(x[first]))
    return ((x[first] + x[last]) / 2)[narrow]


@kinds
def orthogonal_log_growth(rho: float, steps: int) -> float:
    """ln ||dh_T / dh_0|| = T ln rho, exactly, of the linear network h' = rho Q h with Q orthogonal.

    Args:
        rho: scale of the recurrent kernel.
        steps: T.

    Returns:
        T ln rho; -inf for rho = 0.

    Raises:
        ValueError: a negative or non-finite rho, or steps that are not a whole number of at least 1.

    Source: Arjovsky, Shah and Bengio 2016, "Unitary evolution recurrent neural networks", section 2.
    """
    not_negative("rho", rho)
    return positive_integer("steps", steps) * math.log(rho) if rho else -math.inf
