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

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax import activations
from vgjax.activations import Activation, Elementwise
from vgjax.checks import known, not_negative, positive_integer
from vgjax.theory.gaussian import NODES, WEIGHTS, line

_SMALLEST_Q = 1e-30  # stands for q -> 0, where a kink at 0 still has two sides
_FARTHEST = 6.0  # |z| > 6 has probability 2e-9: no network of any width has steeper slopes than those within
_GRID = np.linspace(-9, 9, 181)
_DYADIC = 2.0 ** -np.arange(3.0, 41.0)


class SquaredSlopes(NamedTuple):
    """The law of t = phi'(sqrt(q) z)^2, as panels of quadrature nodes.

    Attributes:
        values: t at the nodes, shape ``(panels, nodes)``; smooth on each panel. What is below 1e-150 of the largest
            counts as 0.
        weights: their probabilities, same shape; the sum is 1.
    """

    values: np.ndarray
    weights: np.ndarray

    @property
    def atoms(self) -> tuple[tuple[float, float], ...]:
        """Values that t takes with positive probability (over 1e-4, or t = 0), with that probability; increasing."""
        return tuple(zip(*(part.tolist() for part in self._constants()), strict=True))

    def cells(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The law as a mixture of atoms and uniform laws: centers, half-widths and masses, each ``(cells,)``.

        Each panel keeps its mass, mean and variance. A mixture has a density, so that the equations can be solved next
        to the real axis, where bare nodes would show as lines.
        """
        atoms, probabilities = self._constants()
        rest = ~self._constant & (self.weights.sum(axis=1) > 1e-9)
        values, weights = self.values[rest], self.weights[rest]
        masses = weights.sum(axis=1)
        centers = (weights * values).sum(axis=1) / masses
        halves = np.sqrt(3 * (weights * (values - centers[:, None]) ** 2).sum(axis=1) / masses)
        masses = np.concatenate([probabilities, masses])
        return (
            np.concatenate([atoms, centers]),
            np.concatenate([np.zeros_like(atoms), np.minimum(halves, 0.99 * centers)]),
            masses / masses.sum(),
        )

    @property
    def _constant(self) -> np.ndarray:
        """The panels on which t is constant, to rounding."""
        return np.ptp(self.values, axis=1) <= 2.0**-50 * self.values.max(axis=1)

    def _constants(self) -> tuple[np.ndarray, np.ndarray]:
        """Values and probabilities of those panels, equal values taken together."""
        values, weights = self.values[self._constant].max(axis=1), self.weights[self._constant].sum(axis=1)
        order = np.argsort(values)
        values, weights = values[order], weights[order]
        new = np.diff(values, prepend=-1.0) > 1e-12 * values
        values, weights = values[new], np.add.reduceat(weights, np.flatnonzero(new)) if len(values) else weights
        kept = (weights > 1e-4) | (values == 0)  # the flat top of a smooth maximum is no atom
        return values[kept], weights[kept]


def squared_slopes(activation: str | Activation | Elementwise, q: float) -> SquaredSlopes:
    """The law of phi'(sqrt(q) z)^2, z ~ N(0, 1), whose sums over the nodes are right to rounding.

    Args:
        activation: a name, an `Activation`, or any elementwise callable.
        q: variance of the preactivations; 0 stands for its limit from above.

    Returns:
        Its nodes and probabilities.

    Raises:
        ValueError: a negative or non-finite q, or as `gaussian.line`.
    """
    not_negative("q", q)
    return _squared_slopes(activations.get(activation), float(q))


@functools.lru_cache(maxsize=64)
def _squared_slopes(phi: Activation, q: float) -> SquaredSlopes:
    root = math.sqrt(max(q, _SMALLEST_Q))
    along = line(phi, root * root)
    z = along.z.reshape(-1, len(NODES))
    middle, half = (z[:, -1] + z[:, 0]) / 2, (z[:, -1] - z[:, 0]) / (2 * NODES[-1])
    top, largest = _steepest(phi, root, along.z, along.slope)
    # M is needed close to the largest t, where t / (omega - t) is narrow: panels that halve towards it.
    edges = np.concatenate([middle - half, middle + half, _GRID, top - _DYADIC, [top], top + _DYADIC])
    edges = np.sort(np.clip(edges, _GRID[0], _GRID[-1]))
    half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
    z = middle[:, None] + half[:, None] * NODES
    weights = half[:, None] * WEIGHTS * np.exp(-z * z / 2)
    values = np.minimum(_slopes(phi, root * z) ** 2, largest)
    values[values < 1e-150 * largest] = 0  # their squares would underflow
    wide = half > 1e-14
    return SquaredSlopes(values[wide], weights[wide] / weights[wide].sum())


def _steepest(phi: Activation, root: float, z: np.ndarray, slope: np.ndarray) -> tuple[float, float]:
    """Where phi'(root z)^2 is largest, and that value: the best of the nodes, then ever closer around it."""
    best, width = float(z[np.argmax(np.where(np.abs(z) <= _FARTHEST, np.abs(slope), -1))]), 0.5
    for _ in range(9):
        near = np.clip(best + width * np.linspace(-1, 1, 65), -_FARTHEST, _FARTHEST)
        size = np.abs(_slopes(phi, root * near))
        best, width = float(near[np.argmax(size)]), width / 16
    return best, float(size.max()) ** 2


def _slopes(phi: Activation, u: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(_jitted_slopes(phi, jnp.asarray(u)))


@functools.partial(jax.jit, static_argnums=0)
def _jitted_slopes(phi: Activation, u: Array) -> Array:
    return phi.derivative(u)


# --- moments --------------------------------------------------------------------------------------------------------


def spectrum_variance(activation: str | Activation | Elementwise, q: float, depth: int, law: str = "gaussian") -> float:
    """Variance of the eigenvalues of J J^T (the squared singular values) in units of their squared mean.

    Var / mean^2 = L (mu_2 / mu_1^2 - 1 - s_1), mu_k = E phi'^(2k), s_1 = -1 for Gaussian and 0 for orthogonal weights;
    the mean is (sigma_w^2 mu_1)^L, and sigma_w drops out of the ratio.

    Args:
        activation: a name, an `Activation`, or any elementwise callable.
        q: variance of the preactivations in every layer.
        depth: number of layers, L.
        law: of the weights, "gaussian" or "orthogonal".

    Returns:
        The relative variance; NaN where all slopes vanish.

    Raises:
        ValueError: bad input.

    Source: Pennington, Schoenholz & Ganguli 2017, equation 22; 2018, equation 17.
    """
    depth, gaussian = positive_integer("depth", depth), _is_gaussian(law)
    return depth * (_moments(activation, q)[1] + gaussian)


def _moments(activation: str | Activation | Elementwise, q: float) -> tuple[float, float]:
    """mu_1 = E phi'^2 and mu_2 / mu_1^2 - 1 (without cancellation; NaN where all slopes vanish)."""
    not_negative("q", q)
    along = line(activation, max(float(q), _SMALLEST_Q))
    squared = along.slope**2
    mean = along.mean(squared)
    return mean, along.mean((squared / mean - 1) ** 2) if mean else math.nan


def q_for_variance(activation: str | Activation | Elementwise, depth: int, variance: float) -> float | None:
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
    _check_positive("variance", variance)
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


def log_largest_singular_value(
    activation: str | Activation | Elementwise,
    q: float,
    depth: int,
    sigma_w: float | None = None,
    law: str = "gaussian",
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
        law: of the weights, "gaussian" or "orthogonal".

    Returns:
        ln s_max; inf for slopes without bound, -inf where J vanishes. Slopes steeper than all those at |z| <= 6 are
        left out (they matter where q is so small that phi' is nearly linear in z).

    Raises:
        ValueError: bad input, or no critical sigma_w since all slopes vanish.

    Source: Pennington, Schoenholz & Ganguli 2017, equations 15 and 23.
    """
    from scipy.optimize import brentq

    depth, gaussian = positive_integer("depth", depth), _is_gaussian(law)
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

    lowest, highest = -40.0, 40.0
    y = brentq(slope, lowest, highest, xtol=1e-12) if slope(lowest) < 0 else lowest
    z = float((weights * t / (math.exp(y) + gap)).sum())
    log_eta = -math.log1p(1 / z)
    per_layer = math.log1p(math.exp(y)) + log_eta + gaussian * math.log1p(z) + math.log(largest) + log_sigma2
    return (depth * per_layer - log_eta) / 2


def _is_gaussian(law: str) -> int:
    """1 for Gaussian and 0 for orthogonal weights: -s_1."""
    return int(known("law", law, ("gaussian", "orthogonal")) == "gaussian")


def _log_sigma2(sigma_w: float | None, phi: Activation, q: float) -> float:
    """ln sigma_w^2, the critical one by default."""
    if sigma_w is not None:
        not_negative("sigma_w", sigma_w)
        return 2 * math.log(sigma_w) if sigma_w > 0 else -math.inf
    mean, _ = _moments(phi, q)
    if mean == 0:
        raise ValueError(f"sigma_w must be given where all slopes vanish (none is critical), got None for {phi.name!r}")
    return -math.log(mean)


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and positive, got {value:g}")


def _unbounded(phi: Activation) -> bool:
    """Whether |phi'| still grows far out."""
    far = 2.0 ** np.arange(6, 20, 0.125)
    sizes = np.abs(_slopes(phi, np.concatenate([far, -far]))).reshape(2, 2, -1).max(axis=(0, 2))
    return not np.isfinite(sizes).all() or bool(sizes[1] > 1.2 * sizes[0])


# --- the density ----------------------------------------------------------------------------------------------------


class Spectrum(NamedTuple):
    """The law of the singular values s of a Jacobian, in logs, since s spans hundreds of decades in deep networks.

    Attributes:
        log_singular_values: ln s, not decreasing, shape ``(points,)``; empty where the law has only atoms.
        density_of_logs: density of ln s there. With the atoms the trapezoidal rule gives 1 to 1e-3, at the default
            number of points and q up to 100; each band ends with a 0.
        atoms: (s, probability) of each value taken with positive probability, increasing.
    """

    log_singular_values: np.ndarray
    density_of_logs: np.ndarray
    atoms: tuple[tuple[float, float], ...]

    @property
    def singular_values(self) -> np.ndarray:
        """s."""
        return np.exp(self.log_singular_values)

    @property
    def density(self) -> np.ndarray:
        """Density of s: the part that has one; with the weights of the atoms it integrates to 1."""
        return self.density_of_logs * np.exp(-self.log_singular_values)


def density(
    activation: str | Activation | Elementwise,
    q: float,
    depth: int,
    sigma_w: float | None = None,
    law: str = "gaussian",
    points: int = 400,
) -> Spectrum:
    """Density of the singular values s of J and its atoms.

    On each radius r there is exactly one omega = r exp(i theta) with F real (arg F / theta increases in theta); the
    eigenvalue is then F and the density of ln s is -(2 / pi) Im z. No continuation in the complex plane is needed.

    Args:
        activation, q, depth, sigma_w, law: as for `log_largest_singular_value`.
        points: number of s per band of the spectrum.

    Returns:
        ln s, their density and the atoms: at 0 with P(slope = 0), and with orthogonal weights at (sigma_w |a|)^L with
        max(0, 1 - L (1 - p)) for slopes of size |a| that have probability p.

    Raises:
        ValueError: bad input, or no critical sigma_w since all slopes vanish.

    Source: the S-transforms of Pennington, Schoenholz & Ganguli 2017, section 2.4; the curve as in Belinschi &
    Bercovici 2005, "Partially defined semigroups relative to multiplicative free convolution".
    """
    depth, gaussian = positive_integer("depth", depth), _is_gaussian(law)
    _check_points(points)
    phi = activations.get(activation)
    slopes = squared_slopes(phi, q)
    log_sigma2 = _log_sigma2(sigma_w, phi, q)
    if log_sigma2 == -math.inf:
        return Spectrum(np.empty(0), np.empty(0), ((0.0, 1.0),))
    layers = _Layers(slopes.cells(), depth, gaussian)
    curves = [layers.one_layer(points)] if layers.trivial else [layers.curve(*band, points) for band in layers.bands()]
    logs, heights = (np.concatenate([np.empty(0), *(curve[i] for curve in curves)]) for i in (0, 1))
    return Spectrum((logs + depth * log_sigma2) / 2, 2 * heights, _atoms(slopes, depth, gaussian, log_sigma2))


def _check_points(points: int) -> None:
    if positive_integer("points", points) < 10:
        raise ValueError(f"points must be at least 10, got {points}")


def _atoms(slopes: SquaredSlopes, depth: int, gaussian: int, log_sigma2: float) -> tuple[tuple[float, float], ...]:
    found = []
    for value, probability in slopes.atoms:
        weight = probability if value == 0 else 0 if gaussian else 1 - depth * (1 - probability)
        if weight > 1e-12:
            log_s = depth * (math.log(value) + log_sigma2) / 2 if value else -math.inf
            found.append((math.exp(log_s) if log_s < 709 else math.inf, float(weight)))
    return tuple(found)


class _Layers(NamedTuple):
    """F for sigma_w = 1 in the upper half plane, and the curve on which it is real."""

    cells: tuple[np.ndarray, np.ndarray, np.ndarray]
    depth: int
    gaussian: int

    @property
    def trivial(self) -> bool:
        """F(omega) = omega: the spectrum is the law of t itself."""
        return self.depth == 1 and not self.gaussian

    def generating(self, omega: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """z = M(omega), 1 + z (which cancels near 0) and dz / d ln omega, each of the shape of omega ``(points,)``."""
        centers, halves, masses = self.cells
        distance = omega[:, None] - centers
        x = halves / distance
        squared, excess = x * x, _excess(x)
        z = (centers * (1 + excess) / distance + excess) @ masses
        one = (omega * (((1 + excess) / distance) @ masses)).real + 1j * z.imag
        ratio = squared / (1 - squared)
        rate = ((centers / distance * (1 + ratio) + ratio - excess) / distance) @ masses  # E t / (omega - t)^2
        return z, one, -omega * rate

    def argument(self, log_r: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """arg F, negative below the curve and positive above, and its derivative by theta."""
        z, one, change = self.generating(np.exp(log_r + 1j * theta))
        by_eta = np.angle(z / one)
        argument = self.depth * (theta + by_eta + self.gaussian * np.angle(one)) - by_eta
        rate = self.depth + change * ((self.depth - 1) / z + self.gaussian * self.depth) / one
        return argument, rate.real

    def bands(self) -> list[tuple[float, float]]:
        """Intervals of ln r on which the curve is off the real axis; each contains cells or ends at 0."""
        log_r = self._scan()
        inside = self._inside(log_r)
        ends = np.flatnonzero(inside[1:] != inside[:-1])
        low, high, rising = log_r[ends], log_r[ends + 1], inside[ends + 1]
        for _ in range(50):
            middle = (low + high) / 2
            up = self._inside(middle) == rising
            low, high = np.where(up, low, middle), np.where(up, middle, high)
        edges = np.concatenate([log_r[:1], high] if inside[0] else [high])
        apart = np.flatnonzero(edges[2::2] - edges[1:-1:2] > 1e-6)  # less is rounding next to an atom
        return list(zip(edges[[0, *(2 * apart + 2)]], edges[[*(2 * apart + 1), -1]], strict=True)) if len(edges) else []

    def _inside(self, log_r: np.ndarray) -> np.ndarray:
        theta = np.full_like(log_r, 1e-10)
        return self.argument(log_r, theta)[0] < -1e-8 * self.depth * theta

    def _scan(self) -> np.ndarray:
        """Radii between which the curve may touch the real axis: the ends of runs of cells, and the gaps between
        them ever closer to those ends."""
        positive = self.cells[0] > 0
        centers, halves = self.cells[0][positive], self.cells[1][positive]
        order = np.argsort(centers - halves)
        left, right = (np.log((centers + sign * halves)[order]) for sign in (-1, 1))
        width, reached = right - left, np.maximum.accumulate(right)
        # Cells next to each other leave slits of third order in their width, which are no gaps.
        last = np.flatnonzero(left[1:] - reached[:-1] > np.maximum(width[1:], width[:-1]) / 2)
        low, high = reached[last, None], left[last + 1, None]
        gaps = low + (high - low) / (1 + np.exp(-np.linspace(-16, 16, 65)))
        near = np.logaddexp(0, np.linspace(-16, 50, 133))
        runs = np.concatenate([[left[0]], low.ravel(), high.ravel(), [reached[-1]]])
        return np.unique(np.concatenate([left[0] - near, runs, gaps.ravel(), reached[-1] + near]))

    def curve(self, low: float, high: float, points: int) -> tuple[np.ndarray, np.ndarray]:
        """ln x along one band, x = s^2, and the density of ln x; 0 beyond either end."""
        phase = np.linspace(0, math.pi, 101)
        phase = self._shares(phase, *self.on(_between(low, high, phase)), points)
        log_x, heights, above = self.on(_between(low, high, phase))
        around = (above[:-2] - above[2:]) / np.maximum(log_x[2:] - log_x[:-2], 1e-300)
        heights[1:-1] = np.minimum(
            heights[1:-1], 1.1 * np.maximum(around, 0)
        )  # a peak narrower than its neighbours' distance
        middle = points // 2
        for end, inner, half in ((0, 1, slice(0, middle)), (-1, -2, slice(middle, None))):
            if heights[end] > heights[inner]:  # where the density diverges, its end makes up for the mass
                missing = above[half][0] - above[half][-1] - np.trapezoid(heights[half], log_x[half])
                heights[end] = max(heights[end] + 2 * missing / abs(log_x[end] - log_x[inner]), 0)
        return np.concatenate([log_x[:1], log_x, log_x[-1:]]), np.concatenate([[0], heights, [0]])

    @staticmethod
    def _shares(
        phase: np.ndarray, log_x: np.ndarray, heights: np.ndarray, above: np.ndarray, points: int
    ) -> np.ndarray:
        """Where to put the points: shares by phase, by mass and by mass times x, none where tails hold nothing."""
        seen = np.flatnonzero(heights > 1e-9)
        kept = slice(max(seen[0] - 1, 0), seen[-1] + 2) if len(seen) else slice(None)
        phase, log_x, above = phase[kept], log_x[kept], above[kept]
        mass = np.maximum(-np.diff(above), 0)
        parts = np.array([np.diff(phase), mass, mass * np.exp(log_x[1:] - log_x[-1])])
        share = np.cumsum((parts / np.maximum(parts.sum(axis=1, keepdims=True), 1e-300)).sum(axis=0))
        return np.interp(np.linspace(0, share[-1], points), np.concatenate([[0], share]), phase)

    def angle(self, log_r: np.ndarray) -> np.ndarray:
        """theta at which F(r exp(i theta)) is real: Newton's method, kept in a bracket."""
        low, high, theta = np.zeros_like(log_r), np.full_like(log_r, math.pi), np.full_like(log_r, 1.5)
        going = np.arange(len(log_r))
        for _ in range(60):
            at = theta[going]
            argument, rate = self.argument(log_r[going], at)
            low[going], high[going] = np.where(argument < 0, at, low[going]), np.where(argument < 0, high[going], at)
            newton = at - argument / rate
            within = (newton > low[going]) & (newton < high[going])
            theta[going] = np.where(within, newton, (low[going] + high[going]) / 2)
            going = going[np.abs(theta[going] - at) > 1e-11 * at + 1e-13]
            if not len(going):
                break
        return theta

    def on(self, log_r: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """At the points of the curve ln F, the density of ln F and the probability above, Im of the integral of
        z d ln F over pi."""
        theta = self.angle(log_r)
        omega = np.exp(log_r + 1j * theta)
        z, one, _ = self.generating(omega)
        log_eta, log_one = np.log(np.abs(z / one)), np.log(one)
        log_x = self.depth * (log_r + log_eta + self.gaussian * log_one.real) - log_eta
        centers, halves, masses = self.cells
        distance = omega[:, None] - centers
        angles = (np.angle(distance + halves) + np.angle(distance - halves)) / 2 + _excess(halves / distance).imag
        by_slopes = angles @ masses - theta  # Im E ln(1 - t / omega)
        above = self.depth * (by_slopes + log_one.imag + self.gaussian * (z - log_one).imag) - log_one.imag
        return log_x, -z.imag / math.pi, above / math.pi

    def one_layer(self, points: int) -> tuple[np.ndarray, np.ndarray]:
        """As `curve`, where the spectrum is the law of t itself."""
        smooth = self.cells[1] > 0
        centers, halves, masses = (values[smooth] for values in self.cells)
        if not smooth.any():
            return np.empty(0), np.empty(0)
        log_t = _between(
            math.log((centers - halves).min()), math.log((centers + halves).max()), np.linspace(0, math.pi, points)
        )
        ends = np.concatenate([log_t[:1], (log_t[1:] + log_t[:-1]) / 2, log_t[-1:]])
        below = np.clip((np.exp(ends)[:, None] - centers + halves) / (2 * halves), 0, 1) @ masses
        return log_t, np.diff(below) / np.diff(ends)


def _between(low: float, high: float, phase: np.ndarray) -> np.ndarray:
    """Points whose density, for equal steps of the phase, grows towards both ends, where spectra end like roots."""
    return low + (high - low) * (1 - np.cos(phase)) / 2


def _excess(x: np.ndarray) -> np.ndarray:
    """artanh(x) / x - 1."""
    squared = x * x
    series = squared * (1 / 3 + squared * (1 / 5 + squared * (1 / 7 + squared * (1 / 9 + squared / 11))))
    near = np.abs(x) > 0.1
    series[near] = np.log((1 + x[near]) / (1 - x[near])) / (2 * x[near]) - 1
    return series


# --- universal limits -----------------------------------------------------------------------------------------------


def universal_density(kind: str, variance: float, points: int = 400) -> Spectrum:
    """The limit of `density` for critical orthogonal weights as L -> infinity at a fixed relative variance.

    S(z) = exp(-variance z / (1 + z)) for slopes that are 0 or 1 ("bernoulli": hard-tanh, ReLU),
    S(z) = exp(-variance z) for slopes with a smooth maximum ("smooth": tanh, erf); the mean of s^2 is 1. With
    omega = 1 + 1 / z the curves on which F is real are elementary.

    Args:
        kind: "bernoulli" or "smooth".
        variance: of s^2; positive.
        points: number of s.

    Returns:
        ln s, their density and the atoms: below variance 1 the Bernoulli class has one at exp(variance / 2) of weight
        1 - variance; its weight at 0 vanishes in the limit.

    Raises:
        ValueError: an unknown kind, or a variance that is not positive and finite.

    Source: Pennington, Schoenholz & Ganguli 2018, section 4.
    """
    known("kind", kind, ("bernoulli", "smooth"))
    _check_positive("variance", variance)
    _check_points(points)
    log_x, omega = (_bernoulli if kind == "bernoulli" else _smooth)(variance, points)
    heights = -(1 / (omega - 1)).imag / math.pi
    atom = ((math.exp(variance / 2), 1 - variance),) if kind == "bernoulli" and variance < 1 else ()
    return Spectrum(log_x / 2, 2 * heights, atom)


def _bernoulli(variance: float, points: int) -> tuple[np.ndarray, np.ndarray]:
    """F = omega exp(variance / omega) is real where r = variance sin(theta) / theta."""
    theta = math.pi / (1 + np.exp(np.linspace(-10, 10, points)))  # the lower tail of ln x falls like 1 / (ln x)^2 only
    sinc = np.sinc(theta / math.pi)
    return np.log(variance * sinc) + np.cos(theta) / sinc, variance * sinc * np.exp(1j * theta)


def _smooth(variance: float, points: int) -> tuple[np.ndarray, np.ndarray]:
    """F = omega exp(variance / (omega - 1)) is real where cosh(ln r) = cos(theta) + variance sin(theta) / (2 theta)."""
    from scipy.optimize import brentq

    def cosh(theta: np.ndarray | float) -> np.ndarray:
        return np.cos(theta) + variance / 2 * np.sinc(np.asarray(theta) / math.pi)

    largest = brentq(lambda theta: float(cosh(theta)) - 1, 0, math.pi, xtol=1e-15)
    along = np.linspace(-math.pi / 2, math.pi / 2, points)
    theta = largest * np.cos(along)
    omega = np.exp(np.sign(along) * np.arccosh(np.maximum(cosh(theta), 1)) + 1j * theta)
    return np.log(np.abs(omega)) + variance * (1 / (omega - 1)).real, omega
