"""Jacobian spectra against closed forms, reference numbers and singular values of random products."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgjax import activations
from vgjax.theory._slopes import squared_slopes
from vgjax.theory.free_probability import (
    SpectralDensity,
    log_largest_singular_value,
    q_for_variance,
    spectral_density,
    spectrum_variance,
    universal_density,
)

COMPUTES = True

EVERY = ["linear", "tanh", "erf", "hard_tanh", "relu", "leaky_relu", "gelu", "selu", "sigmoid", "sin", "softplus"]


def integral(spectrum: SpectralDensity, power: float = 0) -> float:
    """E s^power, atoms included: over the exact probabilities between the points."""
    powers = np.exp(power * spectrum.log_s)
    between = np.diff(spectrum.cumulative) * (powers[1:] + powers[:-1]) / 2
    return between.sum() + sum(w * s**power for s, w in spectrum.atoms)


def cumulative(spectrum: SpectralDensity, s: np.ndarray) -> np.ndarray:
    """P(singular value <= s)."""
    atoms = sum((w * (s >= position) for position, w in spectrum.atoms), np.zeros_like(s))
    return np.interp(np.log(s), spectrum.log_s, spectrum.cumulative) + atoms if len(spectrum.log_s) else atoms


def drawn(activation: str, q: float, depth: int, kernel_init: str, width: int, seed: int) -> np.ndarray:
    """Singular values of D_L W_L ... D_1 W_1, critical weights and independent slopes: the model, at finite width."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        u = math.sqrt(q) * rng.standard_normal((depth, width))
        slopes = np.asarray(activations.get(activation).derivative(jnp.asarray(u)))
    product = np.eye(width)
    for d in slopes:
        kernel = rng.standard_normal((width, width)) / math.sqrt(width)
        if kernel_init == "orthogonal":
            basis, triangle = np.linalg.qr(kernel)
            kernel = basis * np.sign(np.diag(triangle))  # Haar
        product = d[:, None] * (kernel @ product)
    moments = squared_slopes(activation, q)
    return np.linalg.svd(product, compute_uv=False) / np.sum(moments.weights * moments.values) ** (depth / 2)


# --- the edge -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 10, 50, 10_000])
def test_edge_of_linear_gaussian(depth: int) -> None:
    # The largest s^2 of a product of L Ginibre matrices is (L + 1)^(L + 1) / L^L (Fuss-Catalan); at depth 10^4 the sum
    # of 10^4 logs of size 10 rounds to 1e-11.
    exact = ((depth + 1) * math.log(depth + 1) - depth * math.log(depth)) / 2
    found = log_largest_singular_value("linear", 1.0, depth, 1.0, "gaussian")
    assert found == pytest.approx(exact, rel=1e-13, abs=1e-10)


@pytest.mark.parametrize(
    ("activation", "q", "depth", "kernel_init", "squared"),
    [
        # M = (1/2) / (omega - 1): the least (1 + z)^(1 + L g) (2 z + 1)^L / (z (1 + z)^L), g = 1 if Gaussian
        ("relu", 1.0, 2, "gaussian", "11.0901699"),
        ("relu", 1.0, 10, "gaussian", "54.4108585"),
        ("relu", 1.0, 2, "orthogonal", "4.0000000"),  # two free projections: arcsine law
        ("relu", 1.0, 10, "orthogonal", "25.8117479"),
        # min over z of (1 + z) / (z S(z)), M by composite Gauss-Legendre quadrature
        ("tanh", 1 / 16, 16, "orthogonal", "2.26168107"),
        ("tanh", 1 / 64, 64, "orthogonal", "1.71331624"),
        ("tanh", 1.0, 10, "orthogonal", "16.50387"),
        ("tanh", 1 / 16, 16, "gaussian", "45.69072"),
        ("hard_tanh", 0.5, 10, "orthogonal", "4.8180416038"),
    ],
)
def test_edge_reference(activation: str, q: float, depth: int, kernel_init: str, squared: str) -> None:
    # To half a unit of the last digit.
    half_a_digit = 0.501 * 10.0 ** -len(squared.split(".")[1])
    found = math.exp(2 * log_largest_singular_value(activation, q, depth, None, kernel_init))
    assert found == pytest.approx(float(squared), abs=half_a_digit)


@pytest.mark.parametrize(("kernel_init", "gaussian"), [("orthogonal", 0), ("gaussian", 1)])
def test_edge_by_quadrature_and_minimization(kernel_init: str, gaussian: int) -> None:
    from scipy.integrate import quad
    from scipy.optimize import minimize_scalar
    from scipy.special import erf

    depth, sigma_w, q = 5, 1.3, 0.8

    def t(z: float) -> float:  # GELU', by hand
        u = math.sqrt(q) * z
        return ((1 + erf(u / math.sqrt(2))) / 2 + u * math.exp(-u * u / 2) / math.sqrt(2 * math.pi)) ** 2

    def log_eigenvalue(omega: float) -> float:
        weight = 1 / math.sqrt(2 * math.pi)
        z = quad(lambda x: weight * math.exp(-x * x / 2) * t(x) / (omega - t(x)), -10, 10, epsabs=1e-13, limit=200)[0]
        layer = math.log(sigma_w**2 * omega * z / (1 + z)) + gaussian * math.log(1 + z)
        return depth * layer + math.log((1 + z) / z)

    exact = minimize_scalar(log_eigenvalue, bounds=(1.3, 30), method="bounded", options={"xatol": 1e-7}).fun / 2
    assert log_largest_singular_value("gelu", q, depth, sigma_w, kernel_init) == pytest.approx(exact, abs=1e-10)


def test_edge_close_to_isometry() -> None:
    # tanh, q -> 0: t = 1 - 2 q z^2 + O(q^2), so sigma_w^2 t = 1 + 2 q (1 - z^2): at order q products are sums, and
    # ln s^2 = 2 q times the upper edge of the free sum of L laws of 1 - z^2, found here from its Cauchy transform.
    from scipy.integrate import quad
    from scipy.optimize import minimize_scalar

    depth, q = 10, 1e-6

    def edge(gap: float) -> float:
        density = 2 / math.sqrt(2 * math.pi)
        cauchy = quad(lambda z: density * math.exp(-z * z / 2) / (gap + z * z), 0, 12, points=[math.sqrt(gap)])[0]
        return depth * (1 + gap - 1 / cauchy) + 1 / cauchy

    exact = q * minimize_scalar(edge, bounds=(1e-6, 50), method="bounded", options={"xatol": 1e-10}).fun
    # The next order is 4 q z^2 L relative, at z of order 1.
    assert log_largest_singular_value("tanh", q, depth, None, "orthogonal") == pytest.approx(exact, rel=1e-4)


def test_edge_at_an_atom() -> None:
    # Hard-tanh keeps an atom at sigma_w^L while P(|sqrt(q) z| < 1) > 1 - 1 / L; the largest value is the atom.
    q, depth = 0.1, 20
    inside = math.erf(1 / math.sqrt(2 * q))
    assert inside > 1 - 1 / depth
    exact = -depth * math.log(inside) / 2
    assert log_largest_singular_value("hard_tanh", q, depth, None, "orthogonal") == pytest.approx(exact, abs=1e-13)
    spectrum = spectral_density("hard_tanh", q, depth, None, "orthogonal")
    (zero, at_zero), (top, at_top) = spectrum.atoms
    assert (zero, top) == pytest.approx((0, math.exp(exact)))
    assert (at_zero, at_top) == pytest.approx((1 - inside, 1 - depth * (1 - inside)), abs=1e-12)


def test_edges_without_a_number() -> None:
    assert log_largest_singular_value(lambda h: h * h, 1.0, 3, 1.0) == math.inf
    assert log_largest_singular_value("tanh", 1.0, 3, 0.0) == -math.inf
    assert log_largest_singular_value(jnp.zeros_like, 1.0, 3, 1.0) == -math.inf
    assert spectral_density("tanh", 1.0, 3, 0.0).atoms == ((0.0, 1.0),)


@pytest.mark.parametrize("activation", EVERY)
@pytest.mark.parametrize("kernel_init", ["gaussian", "orthogonal"])
def test_edge_of_deep_networks(activation: str, kernel_init: str) -> None:
    # Slopes only enter by their variance v once L v is large: s_max^2 -> e L (v + 1 or 0) for critical weights, with
    # corrections of order 1 / L.
    # Orthogonal linear layers have v = 0: all singular values are 1.
    relative = spectrum_variance(activation, 1.0, 10_000, kernel_init)
    exact = 1 + math.log(relative) if (activation, kernel_init) != ("linear", "orthogonal") else 0
    found = 2 * log_largest_singular_value(activation, 1.0, 10_000, None, kernel_init)
    assert found == pytest.approx(exact, abs=2e-3)


# --- moments --------------------------------------------------------------------------------------------------------


def test_variance() -> None:
    # mu_2 / mu_1^2: 1 for linear, 2 for ReLU, 1 / P for hard-tanh.
    assert spectrum_variance("linear", 1.0, 7, "gaussian") == pytest.approx(7)
    assert spectrum_variance("linear", 1.0, 7, "orthogonal") == pytest.approx(0, abs=1e-13)
    assert spectrum_variance("relu", 3.0, 7, "orthogonal") == pytest.approx(7)
    inside = math.erf(1 / math.sqrt(2 * 0.3))
    assert spectrum_variance("hard_tanh", 0.3, 4, "gaussian") == pytest.approx(4 / inside)
    # tanh: t = 1 - 2 q z^2, Var t = 8 q^2; no digits are lost at q = 1e-9.
    assert spectrum_variance("tanh", 1e-9, 1, "orthogonal") == pytest.approx(8e-18, rel=1e-7)


def test_moments_do_not_depend_on_the_panels() -> None:
    # erf: E phi'^2k with phi' = 2 / sqrt(pi) exp(-u^2) is a Gaussian integral.
    q = 0.7
    slopes = squared_slopes("erf", q)
    for k in (1, 2, 3):
        exact = (4 / math.pi) ** k / math.sqrt(1 + 4 * k * q)
        assert np.sum(slopes.weights * slopes.values**k) == pytest.approx(exact, rel=1e-13)


def test_q_for_variance() -> None:
    # Hard-tanh: L (1 / P - 1) = variance.
    q = q_for_variance("hard_tanh", 50, 0.25)
    assert q is not None
    assert math.erf(1 / math.sqrt(2 * q)) == pytest.approx(1 / (1 + 0.25 / 50), rel=1e-12)
    # tanh: 8 L q^2 (1 + O(q)).
    q = q_for_variance("tanh", 10**8, 0.25)
    assert q == pytest.approx(math.sqrt(0.25 / 8e8), rel=1e-3)
    assert q_for_variance("relu", 10, 0.25) is None
    assert q_for_variance("linear", 10, 0.25) is None


# --- densities ------------------------------------------------------------------------------------------------------


def test_quarter_circle() -> None:
    spectrum = spectral_density("linear", 1.0, 1, 1.0, "gaussian")
    inside = slice(1, -1)
    s = spectrum.s[inside]
    # Marchenko-Pastur of a square matrix; the curve is exact up to the tolerance in theta.
    np.testing.assert_allclose(spectrum.density[inside], np.sqrt(np.maximum(4 - s * s, 0)) / math.pi, atol=1e-4)
    assert s[-1] == pytest.approx(2, abs=1e-7)


@pytest.mark.parametrize("depth", [2, 5, 300])
def test_fuss_catalan(depth: int) -> None:
    # Products of L Ginibre matrices: x = sin^(L+1)((L+1) a) / (sin a sin^L(L a)),
    # density sin^2 a sin^(L-1)(L a) / (pi sin^L((L+1) a)) (Neuschel 2014, equation 10).
    a = np.linspace(0, 1, 200_001)[1:-1] * math.pi / (depth + 1)
    one, low, high = (np.log(np.sin(k * a)) for k in (1, depth, depth + 1))
    log_x = (depth + 1) * high - one - depth * low
    log_density = 2 * one + (depth - 1) * low - math.log(math.pi) - depth * high
    spectrum = spectral_density("linear", 1.0, depth, 1.0, "gaussian")
    logs, heights = spectrum.log_s[1:-1], spectrum.density_of_logs[1:-1]
    within = (logs > log_x.min() / 2) & (logs < log_x.max() / 2)
    exact = np.interp(2 * logs[within], log_x[::-1], 2 * np.exp(log_x + log_density)[::-1])  # of ln s: 2 x rho(x)
    # The steps in a, next to an edge like a root.
    np.testing.assert_allclose(heights[within], exact, atol=1e-5)


def test_two_projections() -> None:
    # ReLU, two orthogonal layers, sigma_w^2 = 2: half at 0, half an arcsine law in s: density 1 / (pi sqrt(4 - s^2)).
    spectrum = spectral_density("relu", 1.0, 2, None, "orthogonal")
    assert spectrum.atoms == ((0.0, pytest.approx(0.5)),)
    s = spectrum.s
    bulk = (s > 1e-3) & (s < 1.99)
    np.testing.assert_allclose(spectrum.density[bulk], 1 / (math.pi * np.sqrt(4 - s[bulk] ** 2)), rtol=1e-6)
    # The density diverges at 2; the probability does not notice, but for what lies beyond the last point.
    np.testing.assert_allclose(spectrum.cumulative, np.arcsin(np.minimum(s / 2, 1)) / math.pi, atol=1e-4)


@pytest.mark.parametrize(("slope", "depth", "points"), [(0.3, 2, 400), (0.3, 3, 20), (0.05, 3, 30)])
def test_every_height_is_that_of_the_law(slope: float, depth: int, points: int) -> None:
    # Leaky ReLU, orthogonal: t is 1 or a^2, M a rational function, and F(omega) = x a polynomial whose roots numpy
    # finds. At depth 2 the density diverges at both ends, deeper it peaks next to them: nothing is smoothed away.
    spectrum = spectral_density(f"leaky_relu({slope})", 1.0, depth, 1.0, "orthogonal", points)
    omega, t = np.poly1d([1, 0]), slope**2
    below, above = 2 * (omega - 1) * (omega - t), (omega - t) + t * (omega - 1)  # M = above / below
    exact = []
    for x in spectrum.s[1:-1] ** 2:
        roots = (omega**depth * above ** (depth - 1) - x * (above + below) ** (depth - 1)).roots
        upper = roots[roots.imag > 0]
        exact.append(-2 / math.pi * np.min((above(upper) / below(upper)).imag, initial=0))
    # A last point next to a divergence is as sensitive as that is steep.
    np.testing.assert_allclose(spectrum.density_of_logs[1:-1], exact, rtol=1e-6)
    np.testing.assert_array_equal(spectrum.density_of_logs[[0, -1]], 0)


def test_all_singular_values_equal() -> None:
    spectrum = spectral_density("linear", 2.0, 30, 1.1, "orthogonal")
    assert not len(spectrum.log_s)
    assert spectrum.atoms == ((pytest.approx(1.1**30), pytest.approx(1)),)
    assert log_largest_singular_value("linear", 2.0, 30, 1.1, "orthogonal") == pytest.approx(30 * math.log(1.1))


def test_one_orthogonal_layer_is_the_law_of_the_slopes() -> None:
    # erf: P(|phi'| > 2 / sqrt(pi) exp(-q z^2)) = erf(z / sqrt 2). A histogram by 400 points: 1e-3.
    q, z = 0.7, np.array([0.3, 1.0, 2.0])
    spectrum = spectral_density("erf", q, 1, 1.0, "orthogonal")
    s = 2 / math.sqrt(math.pi) * np.exp(-q * z * z)
    np.testing.assert_allclose(1 - cumulative(spectrum, s), [math.erf(x / math.sqrt(2)) for x in z], atol=1e-3)


@pytest.mark.parametrize("activation", EVERY)
@pytest.mark.parametrize(("depth", "kernel_init", "q"), [(2, "orthogonal", 1.0), (5, "gaussian", 1.0)])
def test_mass_mean_and_variance(activation: str, depth: int, kernel_init: str, q: float) -> None:
    spectrum = spectral_density(activation, q, depth, None, kernel_init)
    variance = spectrum_variance(activation, q, depth, kernel_init)
    # Means over 400 intervals; probabilities and atoms are exact, but for 1e-4 next to a divergence.
    assert integral(spectrum) == pytest.approx(1, abs=1e-4)
    assert integral(spectrum, 2) == pytest.approx(1, abs=1e-3)
    assert integral(spectrum, 4) - 1 == pytest.approx(variance, rel=3e-3, abs=1e-3)
    assert (np.diff(spectrum.cumulative) >= 0).all()
    top = log_largest_singular_value(activation, q, depth, None, kernel_init)
    ends = [*spectrum.log_s[-1:], *(math.log(s) for s, _ in spectrum.atoms if s)]
    # Cells instead of nodes cost 1e-5; softplus ends in a tail too thin to be followed, not like a root.
    assert max(ends) == pytest.approx(top, abs=1e-3 if activation == "softplus" else 1e-4)


@pytest.mark.parametrize(
    ("activation", "q", "depth", "kernel_init"),
    [("tanh", 1e-6, 10, "orthogonal"), ("tanh", 100.0, 3, "orthogonal"), ("tanh", 1.0, 10_000, "gaussian")],
)
def test_extreme_densities(activation: str, q: float, depth: int, kernel_init: str) -> None:
    spectrum = spectral_density(activation, q, depth, None, kernel_init)
    assert np.isfinite(spectrum.density_of_logs).all()
    assert (np.diff(spectrum.log_s) >= 0).all()
    assert integral(spectrum) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("activation", "q", "depth", "kernel_init"),
    [
        ("tanh", 1.0, 2, "orthogonal"),
        ("tanh", 1 / 16, 4, "orthogonal"),
        ("hard_tanh", 0.5, 4, "orthogonal"),
        ("leaky_relu(0.3)", 1.0, 3, "orthogonal"),
        ("gelu", 1.0, 4, "gaussian"),
        ("sin", 4.0, 5, "gaussian"),
    ],
)
def test_against_random_products(activation: str, q: float, depth: int, kernel_init: str) -> None:
    width, seeds = 400, 6
    s = np.array([drawn(activation, q, depth, kernel_init, width, seed) for seed in range(seeds)])
    spectrum = spectral_density(activation, q, depth, None, kernel_init)
    logs = spectrum.log_s
    # Away from the atoms, where rounding decides on which side a singular value lies.
    grid = np.exp(np.linspace(max(logs[0], -15), logs[-1] + 0.5, 2001))
    for position, _ in spectrum.atoms:
        grid = grid[np.abs(grid - position) > 1e-6]
    counted = np.searchsorted(np.sort(s.ravel()), grid, side="right") / s.size
    # What varies most is the empirical law of the slopes: the 1% point of Kolmogorov's law for width x seeds of them.
    assert np.abs(counted - cumulative(spectrum, grid)).max() < 1.63 / math.sqrt(width * seeds)
    # E s^4, of mean 1 + variance: 4 standard errors over draws, and corrections of order depth / width.
    squares = np.mean(s**4, axis=1) / (1 + spectrum_variance(activation, q, depth, kernel_init))
    assert abs(squares.mean() - 1) <= 4 * squares.std(ddof=1) / math.sqrt(seeds) + depth / width
    # The largest lies low by the width of Tracy and Widom's law, about half of depth / width^(2/3).
    top = np.log(s.max(axis=1))
    edge = log_largest_singular_value(activation, q, depth, None, kernel_init)
    allowed = 4 * top.std(ddof=1) / math.sqrt(seeds) + depth * width ** (-2 / 3) / 2
    assert abs(top.mean() - edge) <= allowed + 1e-12


# --- universal limits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [0.05, 0.25, 1.0, 4.0])
def test_universal_moments(variance: float) -> None:
    smooth, bernoulli = universal_density("smooth", variance), universal_density("bernoulli", variance)
    for spectrum in (smooth, bernoulli):
        assert [integral(spectrum), integral(spectrum, 2)] == pytest.approx([1, 1], abs=1e-3)
        assert integral(spectrum, 4) == pytest.approx(1 + variance, rel=1e-3)
    # Biane 1997: m_3 = 1 + 3 v + 3 v^2 / 2 for S = exp(-v z).
    assert integral(smooth, 6) == pytest.approx(1 + 3 * variance + 1.5 * variance**2, rel=1e-3)
    # Both edges of exp(v z) (1 + z) / z, where v z (1 + z) = 1.
    z = (-1 + np.array([-1, 1]) * math.sqrt(1 + 4 / variance)) / 2
    edges = np.sqrt((1 + z) / z * np.exp(variance * z))
    np.testing.assert_allclose(smooth.s[[0, -1]], edges, rtol=1e-10)
    # e v above variance 1 (e L for ReLU); an atom of weight 1 - v below.
    if variance > 1:
        assert bernoulli.s[-1] ** 2 == pytest.approx(math.e * variance, rel=1e-6)
    elif variance < 1:
        assert bernoulli.atoms == ((pytest.approx(math.exp(variance / 2)), pytest.approx(1 - variance)),)


@pytest.mark.parametrize(("activation", "kind"), [("hard_tanh", "bernoulli"), ("tanh", "smooth"), ("erf", "smooth")])
def test_universality(activation: str, kind: str) -> None:
    depth, variance = 2000, 0.5
    q = q_for_variance(activation, depth, variance)
    assert q is not None
    spectrum, limit = spectral_density(activation, q, depth, None, "orthogonal"), universal_density(kind, variance)
    s = np.linspace(0.1, 3, 400)
    s = s[np.abs(s - math.exp(variance / 2)) > 0.01]
    # The next cumulants are of order v / sqrt(v L) = 0.02.
    np.testing.assert_allclose(cumulative(spectrum, s), cumulative(limit, s), atol=0.02)


@pytest.mark.parametrize("kind", ["smooth", "bernoulli"])
@pytest.mark.parametrize("variance", [0.25, 4.0])
def test_universal_probabilities_are_integrals_of_the_density(kind: str, variance: float) -> None:
    spectrum = universal_density(kind, variance, points=4000)
    between = np.diff(spectrum.cumulative) / np.diff(spectrum.log_s)
    heights = (spectrum.density_of_logs[1:] + spectrum.density_of_logs[:-1]) / 2
    # The trapezoidal rule away from the ends, where the density rises like a root; differences of 1e-7 in the tail.
    np.testing.assert_allclose(between[400:-400], heights[400:-400], rtol=1e-3)


# --- bad input ------------------------------------------------------------------------------------------------------


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="q must be finite and not negative, got -1"):
        log_largest_singular_value("tanh", -1.0, 3)
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        spectral_density("tanh", 1.0, 0)
    with pytest.raises(ValueError, match="sigma_w must be finite and not negative, got -1"):
        spectral_density("tanh", 1.0, 2, -1.0)
    with pytest.raises(ValueError, match="kernel_init must be one of gaussian, orthogonal, got 'orthogonl'"):
        spectrum_variance("tanh", 1.0, 2, "orthogonl")
    with pytest.raises(ValueError, match="sigma_w must be given where all slopes vanish"):
        log_largest_singular_value(jnp.zeros_like, 1.0, 2)
    with pytest.raises(ValueError, match="points must be finite and at least 10, got 3"):
        spectral_density("tanh", 1.0, 2, points=3)
    with pytest.raises(ValueError, match="kind must be one of bernoulli, smooth, got 'smoth'; did you mean 'smooth'"):
        universal_density("smoth", 1.0)
    with pytest.raises(ValueError, match="variance must be finite and from 1e-12 to 1e15, got 0"):
        universal_density("smooth", 0.0)
    with pytest.raises(ValueError, match="variance must be finite and positive, got -1"):
        q_for_variance("tanh", 10, -1.0)
