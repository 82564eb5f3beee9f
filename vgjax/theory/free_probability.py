"""Singular values of the input-output Jacobian J = D_L W_L ... D_1 W_1 at infinite width, by free probability.

Each W_l has variance sigma_w^2 / n ("gaussian") or is sigma_w times an orthogonal matrix ("orthogonal"), and D_l holds
the slopes phi'(sqrt(q) z) on its diagonal, the same q in every layer. The theory takes slopes and weights as
independent (asymptotically free), which networks satisfy in the limit of large width. S-transforms then multiply, so
that with M(omega) = E t / (omega - t), t = phi'^2, the spectrum of J J^T follows from one analytic function,

    F(omega) = sigma_w^(2L) omega^L (z / (1 + z))^(L - 1) [(1 + z)^L if gaussian],   z = M(omega):

F is the eigenvalue at which the moment generating function of J J^T takes the value z. The support and the density
come from the curve in the upper half plane on which F is real.

Source: Pennington, Schoenholz & Ganguli 2017, "Resurrecting the sigmoid in deep learning through dynamical isometry",
section 2.4; 2018, "The emergence of spectral universality in deep networks", section 3.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

from vgjax import activations
from vgjax.activations import Activation
from vgjax.checks import finite, kinds, known, not_negative, positive_integer
from vgjax.theory._free_curve import FreeCurve
from vgjax.theory._gaussian import ActivationLike, line, values
from vgjax.theory._slopes import SMALLEST_Q, SquaredSlopes, squared_slopes
from vgjax.values import by_content

# --- moments --------------------------------------------------------------------------------------------------------


@kinds
def spectrum_variance(activation: ActivationLike, q: float, depth: int, kernel_init: str = "gaussian") -> float:
    """Variance of the eigenvalues of J J^T (the squared singular values) in units of their squared mean.

    Var / mean^2 = L (mu_2 / mu_1^2 - 1 - s_1), mu_k = E phi'^(2k), s_1 = -1 for Gaussian and 0 for orthogonal weights;
    the mean is (sigma_w^2 mu_1)^L, and sigma_w drops out of the ratio.

    Args:
        activation: a name, an `Activation`, or any elementwise callable.
        q: variance of the preactivations in every layer.
        depth: number of layers, L.
        kernel_init: of the weights, "gaussian" or "orthogonal".

    Returns:
        The relative variance; NaN where all slopes vanish.

    Raises:
        ValueError: bad input.

    Source: Pennington, Schoenholz & Ganguli 2017, equation 22; 2018, equation 17.
    """
    depth, gaussian = positive_integer("depth", depth), _is_gaussian(kernel_init)
    return depth * (_moments(activation, q)[1] + gaussian)


def _moments(activation: ActivationLike, q: float) -> tuple[float, float]:
    """mu_1 = E phi'^2 and mu_2 / mu_1^2 - 1 (without cancellation; NaN where all slopes vanish)."""
    not_negative("q", q)
    along = line(activation, max(float(q), SMALLEST_Q))
    squared = along.slope**2
    mean = along.mean(squared)
    return mean, along.mean((squared / mean - 1) ** 2) if mean else math.nan


@kinds
def q_for_variance(activation: ActivationLike, depth: int, variance: float) -> float | None:
    """The smallest q in [1e-12, 1e4] at which orthogonal weights give the spectrum that relative variance.

    Solves L (mu_2(q) / mu_1(q)^2 - 1) = variance, the double scaling of q and depth in which the spectrum keeps its
    shape: q ~ 1 / sqrt(L) for tanh, 1 / log L for hard-tanh.

    Args:
        activation: a name, an `Activation`, or any elementwise callable.
        depth: number of layers, L.
        variance: of the eigenvalues of J J^T over their squared mean, as `spectrum_variance`; positive.

    Returns:
        q, or None where there is none.

    Raises:
        ValueError: bad input.

    Source: Pennington, Schoenholz & Ganguli 2018, section 3.
    """
    from scipy.optimize import brentq

    depth = positive_integer("depth", depth)
    finite("variance", variance, "positive", lambda v: v > 0)
    phi = activations.get(activation)

    def excess(log_q: float) -> float:
        return depth * _moments(phi, math.exp(log_q))[1] - variance

    grid = np.log(10) * np.linspace(-12, 4, 65)
    at = excess(grid[0])
    for low, high in itertools.pairwise(grid):
        before, at = at, excess(high)
        if before * at <= 0:
            return math.exp(brentq(excess, low, high, xtol=1e-14))
    return None


# --- the edge -------------------------------------------------------------------------------------------------------


@kinds
def log_largest_singular_value(
    activation: ActivationLike,
    q: float,
    depth: int,
    sigma_w: float | None = None,
    kernel_init: str = "gaussian",
) -> float:
    """ln of the largest singular value of J: half the ln of the least F(omega) above the largest phi'^2.

    ln s_max = (1/2) min over z > 0 of ln[(1 + z) / (z S(z))], S the S-transform of J J^T. The minimum may lie at
    z = infinity: at an atom at the top (hard-tanh with orthogonal weights while P(slope 1) > 1 - 1 / L).

    Args:
        activation: a name, an `Activation`, or any elementwise callable.
        q: variance of the preactivations in every layer.
        depth: number of layers, L; 10^4 and more are fine.
        sigma_w: standard deviation of the weights times sqrt(width); None for the critical one,
            sigma_w^2 E phi'^2 = 1.
        kernel_init: of the weights, "gaussian" or "orthogonal".

    Returns:
        ln s_max; inf for slopes without bound, -inf where J vanishes. Slopes steeper than all those at |z| <= 6 are
        left out (they matter where q is so small that phi' is nearly linear in z).

    Raises:
        ValueError: bad input, or no critical sigma_w since all slopes vanish.

    Source: Pennington, Schoenholz & Ganguli 2017, equations 15 and 23.
    """
    from scipy.optimize import brentq

    depth, gaussian = positive_integer("depth", depth), _is_gaussian(kernel_init)
    phi = activations.get(activation)
    slopes = squared_slopes(phi, q)
    log_sigma2 = _log_sigma2(sigma_w, phi, q)
    largest = float(slopes.values.max())
    if log_sigma2 == -math.inf or largest == 0:
        return -math.inf
    if _unbounded(phi):
        return math.inf
    t, weights = (slopes.values / largest).ravel(), slopes.weights.ravel()
    gap = 1 - t

    def slope(y: float) -> float:
        """d ln F / d ln omega at omega = 1 + exp(y), in units of the largest t."""
        distance = math.exp(y) + gap
        ratio = weights * t / distance
        z = ratio.sum()
        change = -(1 + math.exp(y)) * (ratio / distance).sum()
        return float(depth + change * ((depth - 1) / (z * (1 + z)) + gaussian * depth / (1 + z)))

    lowest, highest = -40.0, 40.0  # omega - 1 = e^-40: below what float64 tells from the atom at the top
    y = brentq(slope, lowest, highest, xtol=1e-12) if slope(lowest) < 0 else lowest
    z = float((weights * t / (math.exp(y) + gap)).sum())
    log_eta = -math.log1p(1 / z)
    per_layer = math.log1p(math.exp(y)) + log_eta + gaussian * math.log1p(z) + math.log(largest) + log_sigma2
    return (depth * per_layer - log_eta) / 2


def _is_gaussian(kernel_init: str) -> int:
    """1 for Gaussian and 0 for orthogonal weights: -s_1."""
    return int(known("kernel_init", kernel_init, ("gaussian", "orthogonal")) == "gaussian")


def _log_sigma2(sigma_w: float | None, phi: Activation, q: float) -> float:
    """ln sigma_w^2, the critical one by default."""
    if sigma_w is not None:
        not_negative("sigma_w", sigma_w)
        return 2 * math.log(sigma_w) if sigma_w > 0 else -math.inf
    mean, _ = _moments(phi, q)
    if mean == 0:
        raise ValueError(f"sigma_w must be given where all slopes vanish (none is critical), got None for {phi.name!r}")
    return -math.log(mean)


def _unbounded(phi: Activation) -> bool:
    """Whether |phi'| still grows far out."""
    far = 2.0 ** np.arange(6, 20, 0.125)
    sizes = np.abs(values(phi, np.concatenate([far, -far]))[1]).reshape(2, 2, -1).max(axis=(0, 2))
    return not np.isfinite(sizes).all() or bool(sizes[1] > 1.2 * sizes[0])


# --- the density ----------------------------------------------------------------------------------------------------


@by_content
class SpectralDensity(NamedTuple):
    """The law of the singular values s of a Jacobian, in logs, since s spans hundreds of decades in deep networks.

    Attributes:
        log_s: ln s, not decreasing, shape ``(points,)``; empty where the law has only atoms.
        density_of_logs: density of ln s there, of the part that has one; each band ends with a 0. It may diverge at an
            end and peak between two points: for masses and means read ``cumulative``, which knows them exactly.
        cumulative: probability of the continuous part up to there; its last value and the atoms sum to 1.
        atoms: (s, probability) of each value taken with positive probability, increasing.
    """

    log_s: np.ndarray
    density_of_logs: np.ndarray
    cumulative: np.ndarray
    atoms: tuple[tuple[float, float], ...]

    @property
    def s(self) -> np.ndarray:
        """The singular values themselves."""
        return np.exp(self.log_s)

    @property
    def density(self) -> np.ndarray:
        """Density of s: the part that has one; with the weights of the atoms it integrates to 1."""
        return self.density_of_logs * np.exp(-self.log_s)


@kinds
def spectral_density(
    activation: ActivationLike,
    q: float,
    depth: int,
    sigma_w: float | None = None,
    kernel_init: str = "gaussian",
    points: int = 400,
) -> SpectralDensity:
    """Density of the singular values s of J and its atoms.

    On each radius r there is exactly one omega = r exp(i theta) with F real (arg F / theta increases in theta); the
    eigenvalue is then F and the density of ln s is -(2 / pi) Im z. No continuation in the complex plane is needed.

    Args:
        activation, q, depth, sigma_w, kernel_init: as for `log_largest_singular_value`.
        points: number of s per band of the spectrum.

    Returns:
        ln s, their density and the atoms: at 0 with P(slope = 0), and with orthogonal weights at (sigma_w |a|)^L with
        max(0, 1 - L (1 - p)) for slopes of size |a| that have probability p.

    Raises:
        ValueError: bad input, or no critical sigma_w since all slopes vanish.

    Source: the S-transforms of Pennington, Schoenholz & Ganguli 2017, section 2.4; the curve as in Belinschi &
    Bercovici 2005, "Partially defined semigroups relative to multiplicative free convolution".
    """
    depth, gaussian = positive_integer("depth", depth), _is_gaussian(kernel_init)
    finite("points", positive_integer("points", points), "at least 10", lambda n: n >= 10)
    phi = activations.get(activation)
    slopes = squared_slopes(phi, q)
    log_sigma2 = _log_sigma2(sigma_w, phi, q)
    if log_sigma2 == -math.inf:
        return SpectralDensity(np.empty(0), np.empty(0), np.empty(0), ((0.0, 1.0),))
    logs, heights, below = FreeCurve(slopes.cells(), depth, gaussian).curve(points)
    atoms = _atoms(slopes, depth, gaussian, log_sigma2)
    return SpectralDensity((logs + depth * log_sigma2) / 2, 2 * heights, below, atoms)


def _atoms(slopes: SquaredSlopes, depth: int, gaussian: int, log_sigma2: float) -> tuple[tuple[float, float], ...]:
    found = []
    for value, probability in slopes.atoms:
        weight = probability if value == 0 else 0 if gaussian else 1 - depth * (1 - probability)
        if weight > 1e-12:
            log_s = depth * (math.log(value) + log_sigma2) / 2 if value else -math.inf
            found.append((math.exp(log_s) if log_s < 709 else math.inf, float(weight)))
    return tuple(found)


# --- universal limits -----------------------------------------------------------------------------------------------


@kinds
def universal_density(kind: str, variance: float, points: int = 400) -> SpectralDensity:
    """The limit of `spectral_density` for critical orthogonal weights as L -> infinity at a fixed relative variance.

    S(z) = exp(-variance z / (1 + z)) for slopes that are 0 or 1 ("bernoulli": hard-tanh, ReLU),
    S(z) = exp(-variance z) for slopes with a smooth maximum ("smooth": tanh, erf); the mean of s^2 is 1. With
    omega = 1 + 1 / z the curves on which F is real are elementary.

    Args:
        kind: "bernoulli" or "smooth".
        variance: of s^2; from 1e-12 to 1e15.
        points: number of s.

    Returns:
        ln s, their density and the atoms: below variance 1 the Bernoulli class has one at exp(variance / 2) of weight
        1 - variance; its weight at 0 vanishes in the limit.

    Raises:
        ValueError: an unknown kind, or a variance out of these bounds.

    Source: Pennington, Schoenholz & Ganguli 2018, section 4.
    """
    known("kind", kind, ("bernoulli", "smooth"))
    # Where the curves keep their digits.
    finite("variance", variance, "from 1e-12 to 1e15", lambda v: (v >= 1e-12) & (v <= 1e15))
    finite("points", positive_integer("points", points), "at least 10", lambda n: n >= 10)
    log_x, omega, above = (_bernoulli if kind == "bernoulli" else _smooth)(variance, points)
    heights = -(1 / (omega - 1)).imag / math.pi
    atoms = ((math.exp(variance / 2), 1 - variance),) if kind == "bernoulli" and variance < 1 else ()
    below = 1 - sum(weight for _, weight in atoms) - (above - above[-1]) / math.pi
    return SpectralDensity(log_x / 2, 2 * heights, below, atoms)


def _bernoulli(variance: float, points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ln F, omega and Im of the integral of z d ln F, where F = omega exp(variance / omega) is real: where
    r = variance sin(theta) / theta."""
    theta = math.pi / (1 + np.exp(np.linspace(-10, 10, points)))  # the lower tail of ln x falls like 1 / (ln x)^2 only
    sinc = np.sinc(theta / math.pi)
    omega = variance * sinc * np.exp(1j * theta)
    above = (1 - variance) * np.log(1 - 1 / omega) - variance / omega
    return np.log(variance * sinc) + np.cos(theta) / sinc, omega, above.imag


def _smooth(variance: float, points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same where F = omega exp(variance / (omega - 1)) is real: where cosh(ln r) = cos(theta) + variance
    sin(theta) / (2 theta)."""
    from scipy.optimize import brentq

    def cosh(theta: np.ndarray | float) -> np.ndarray:
        return np.cos(theta) + variance / 2 * np.sinc(np.asarray(theta) / math.pi)

    largest = brentq(lambda theta: float(cosh(theta)) - 1, 0, math.pi, xtol=1e-15)
    along = np.linspace(-math.pi / 2, math.pi / 2, points)
    theta = largest * np.cos(along)
    omega = np.exp(np.sign(along) * np.arccosh(np.maximum(cosh(theta), 1)) + 1j * theta)
    above = np.log(1 - 1 / omega) + variance / (2 * (omega - 1) ** 2)
    return np.log(np.abs(omega)) + variance * (1 / (omega - 1)).real, omega, above.imag
