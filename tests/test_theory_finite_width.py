"""Finite-width laws against closed forms, mpmath and numpy networks of their own; nothing of the simulator.

`rows` draws networks exactly but without matrices: given the layer before, the pairs (h_i, u_i) of a Gaussian layer
are independent and Gaussian with the sample covariance of (phi, phi' u), and those of a Haar layer are a uniformly
rotated frame with exactly that covariance. `matrices` draws the matrices.
"""

import itertools

import mpmath
import numpy as np
import pytest
import scipy.special
from scipy.special import expit, ndtr, polygamma, psi

from vgjax.theory import _finite_width, band, fourth_moment, log_gain_moments, log_normal_beta

COMPUTES = True

LAMBDA, ALPHA = 1.0507009873554805, 1.6732632423543772  # Klambauer et al. 2017

PHI = {
    "linear": (lambda h: h, np.ones_like),
    "relu": (lambda h: np.maximum(h, 0), lambda h: 1.0 * (h > 0)),
    "leaky_relu(0.3)": (lambda h: np.maximum(h, 0.3 * h), lambda h: np.where(h > 0, 1, 0.3)),
    "tanh": (np.tanh, lambda h: 1 - np.tanh(h) ** 2),
    "sigmoid": (expit, lambda h: expit(h) * expit(-h)),
    "hard_tanh": (lambda h: np.clip(h, -1, 1), lambda h: 1.0 * (abs(h) < 1)),
    "gelu": (lambda h: h * ndtr(h), lambda h: ndtr(h) + h * np.exp(-h * h / 2) / np.sqrt(2 * np.pi)),
    "selu": (
        lambda h: LAMBDA * np.where(h > 0, h, ALPHA * np.expm1(np.minimum(h, 0))),
        lambda h: LAMBDA * np.where(h > 0, 1, ALPHA * np.exp(np.minimum(h, 0))),
    ),
}


def flat(h):
    return 0 * h + 1


def first_layer(rng, draws, n, q0, sigma_b2, kernel_init):
    """h^0 of variance q0, its part without bias of exact norm under Haar's law, and a random direction u."""
    y, u = rng.standard_normal((2, draws, n))
    if kernel_init == "orthogonal":
        y *= np.sqrt(n) / np.linalg.norm(y, axis=1, keepdims=True)
    h = np.sqrt(q0 - sigma_b2) * y + np.sqrt(sigma_b2) * rng.standard_normal((draws, n))
    return h, u / np.linalg.norm(u, axis=1, keepdims=True)


def rows(name, n, depth, sigma_w2, sigma_b2, q0, draws, kernel_init="gaussian", seed=0):
    """ln ||J_{l<-0} u||, shape (draws, depth + 1)."""
    rng, (phi, slope) = np.random.default_rng(seed), PHI[name]
    h, u = first_layer(rng, draws, n, q0, sigma_b2, kernel_init)
    logs = np.zeros((draws, depth + 1))
    for l in range(depth):
        f, v = phi(h), slope(h) * u
        a, b, c = (sigma_w2 / n * np.einsum("di,di->d", *two)[:, None] for two in ((f, f), (f, v), (v, v)))
        y, z = rng.standard_normal((2, draws, n))
        if kernel_init == "orthogonal":
            y *= np.sqrt(n) / np.linalg.norm(y, axis=1, keepdims=True)
            z -= y * np.mean(y * z, axis=1, keepdims=True)
            z *= np.sqrt(n) / np.linalg.norm(z, axis=1, keepdims=True)
        h = np.sqrt(a) * y
        u = b / np.sqrt(a) * y + np.sqrt(np.maximum(c - b * b / a, 0)) * z
        if sigma_b2:
            h = h + np.sqrt(sigma_b2) * rng.standard_normal((draws, n))
        norm = np.linalg.norm(u, axis=1, keepdims=True)
        logs[:, l + 1], u = logs[:, l] + np.log(norm[:, 0]), u / norm
    return logs


def kernels(rng, kernel_init, draws, n, after):
    """Shape (draws, after, n), variance 1 / n."""
    if kernel_init == "uniform":
        return rng.uniform(-1, 1, (draws, after, n)) * np.sqrt(3 / n)
    if kernel_init == "gaussian":
        return rng.standard_normal((draws, after, n)) / np.sqrt(n)
    q, r = np.linalg.qr(rng.standard_normal((draws, max(after, n), min(after, n))))
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None] * np.sqrt(max(1, after / n))
    return q if after >= n else q.swapaxes(1, 2)


def matrices(name, widths, sigma_w2, sigma_b2, q0, draws, kernel_init="gaussian", seed=0):
    """The same from drawn matrices, at any widths."""
    rng, (phi, slope) = np.random.default_rng(seed), PHI[name]
    h, u = first_layer(rng, draws, widths[0], q0, sigma_b2, kernel_init)
    logs = np.zeros((draws, len(widths)))
    for l, (n, after) in enumerate(itertools.pairwise(widths)):
        w = np.sqrt(sigma_w2) * kernels(rng, kernel_init, draws, n, after)
        f, v = (np.einsum("dij,dj->di", w, x) for x in (phi(h), slope(h) * u))
        h = f + np.sqrt(sigma_b2) * rng.standard_normal((draws, after))
        norm = np.linalg.norm(v, axis=1, keepdims=True)
        logs[:, l + 1], u = logs[:, l] + np.log(norm[:, 0]), v / norm
    return logs


def fixed_point(name, sigma_w2, sigma_b2):
    z, weights = np.polynomial.hermite_e.hermegauss(100)
    q = 1.0
    for _ in range(300):
        q = sigma_w2 * float(weights @ PHI[name][0](np.sqrt(q) * z) ** 2) / np.sqrt(2 * np.pi) + sigma_b2
    return q


def agree(found, logs, widths, c_mean, c_deviation):
    """Mean to 4 standard errors + c l / n^2, deviation to 4 standard errors + c / n of itself: the next orders."""
    depth, n = np.arange(len(widths)), min(widths)
    error = logs.std(axis=0) / np.sqrt(len(logs))
    assert np.all(np.abs(found.mean - logs.mean(axis=0)) <= 4 * error + c_mean * depth / n**2 + 1e-12)
    # 0.8: the standard error of a deviation, Gaussian 1/sqrt 2, with room for a kurtosis of 3.6.
    allowed = 4 * 0.8 * error + c_deviation / n * found.deviation + 1e-12
    assert np.all(np.abs(found.deviation - logs.std(axis=0)) <= allowed)


# --- one layer ------------------------------------------------------------------------------------------------------


def log_chi_square(k):
    """Mean and variance of ln chi^2_k."""
    return psi(k / 2) + np.log(2), polygamma(1, k / 2) + 0.0


@pytest.mark.parametrize("n", [1, 2, 3, 20, 1000])
def test_linear_is_one_chi_square(n):
    mean, variance = log_chi_square(n)
    assert log_gain_moments("linear", n) == pytest.approx((mean - np.log(n), variance), abs=1e-12)
    by_integral = _finite_width._log_moments(np.ones(1), np.ones(1), n)  # the closed form is no shortcut of it
    assert by_integral == pytest.approx((mean - np.log(n), variance), abs=1e-10)


@pytest.mark.parametrize("n", [1, 2, 5, 20, 64, 256])
def test_relu_is_a_mixture_over_its_live_units(n):
    live = np.arange(1, n + 1)
    weights = scipy.special.comb(n, live) / (2.0**n - 1)
    mean, variance = log_chi_square(live)
    mean += np.log(2 / n)
    total = weights @ mean
    assert log_gain_moments("relu", n) == pytest.approx((total, weights @ (variance + (mean - total) ** 2)), abs=1e-10)


@pytest.mark.parametrize(
    ("n", "mean", "variance"),  # the mixture above, to the ten digits of the reference numbers
    [
        (20, -0.1371867248, 0.3117580750),
        (64, -0.0401085988, 0.0829973506),
        (256, -0.0098286594, 0.0198187089),
    ],
)
def test_relu_reference_numbers(n, mean, variance):
    assert log_gain_moments("relu", n) == pytest.approx((mean, variance), abs=1e-10)


@pytest.mark.parametrize("slope", [0.01, 0.3])
def test_leaky_relu_of_two_units(slope):
    # X is g1^2, a^2 g1^2 (weight 1/4 each, two units alike: chi^2_2) or, with weight 1/2, g1^2 + a^2 g2^2 = R^2 (cos^2
    # + a^2 sin^2): ln R^2 is ln chi^2_2 and the angle uniform.
    a2 = mpmath.mpf(slope) ** 2

    def angle(power):
        return mpmath.quad(
            lambda t: mpmath.log(mpmath.cos(t) ** 2 + a2 * mpmath.sin(t) ** 2) ** power,
            [0, mpmath.pi / 4, mpmath.pi / 2 - 0.05, mpmath.pi / 2],
        ) / (mpmath.pi / 2)

    logs = [(mpmath.mpf(0), mpmath.mpf(0)), (mpmath.log(a2), mpmath.log(a2) ** 2), (angle(1), angle(2))]
    first, second = (sum(w * log[i] for w, log in zip((0.25, 0.25, 0.5), logs, strict=True)) for i in (0, 1))
    mean, variance = log_chi_square(2)
    expected = float(first) + mean - np.log(2) - np.log((1 + slope**2) / 2), float(second - first**2) + variance
    assert log_gain_moments(f"leaky_relu({slope})", 2) == pytest.approx(expected, abs=1e-9)


def test_large_width_is_the_first_order():
    # Var = (3 E phi'^4 / m^2 - 1) / n, mean minus half of it, up to terms of order 1 / n^2 = 1e-12.
    z = np.linspace(-12, 12, 24001)
    weights = np.exp(-z * z / 2) / np.exp(-z * z / 2).sum()
    w = (1 - np.tanh(1.5 * z) ** 2) ** 2
    variance = (3 * weights @ w**2 / (weights @ w) ** 2 - 1) / 1e6
    assert log_gain_moments("tanh", 10**6, q=2.25) == pytest.approx((-variance / 2, variance), abs=2e-11)


def test_a_flat_activation_has_no_gain():
    assert tuple(log_gain_moments(flat, 8)) == (-np.inf, 0)


# --- homogeneous activations ----------------------------------------------------------------------------------------


def test_fourth_moment():
    # (1 + 5 / 10)^10 and (1 + 5 / 50)^50.
    assert fourth_moment([10] * 11) == pytest.approx(57.6650390625, rel=1e-13)
    assert fourth_moment([50] * 51) == pytest.approx(117.3908529, rel=1e-9)
    assert fourth_moment([10] * 3, "linear") == pytest.approx(1.2**2, rel=1e-13)
    assert fourth_moment([7]) == 1
    assert fourth_moment([2] * 10**4) == np.inf


@pytest.mark.parametrize(("name", "m"), [("relu", 0.5), ("leaky_relu(0.3)", 0.545)])
def test_fourth_moment_of_unequal_widths(name, m):
    widths = [24, 40, 32]  # at 24 no layer of 10^4 draws is dead
    fourth = np.exp(4 * matrices(name, widths, 1 / m, 0, 1.0, 10_000))[:, -1]
    # ||J u||^4 has a heavy tail, whose own error is estimated from the same draws: 4 standard errors, a few percent.
    assert abs(fourth.mean() - fourth_moment(widths, name)) <= 4 * fourth.std() / np.sqrt(len(fourth))


def test_log_normal_beta():
    assert log_normal_beta([50] * 51) == pytest.approx(5, rel=1e-13)
    assert log_normal_beta([50] * 51, "linear") == pytest.approx(2, rel=1e-13)
    assert log_normal_beta([10, 20, 40]) == pytest.approx(5 / 10 + 5 / 20 + 2 / 40 - 2 / 10, rel=1e-13)
    # The exact variance tends to it: at n = 4000 the next term is 16 / n^2 a layer.
    widths = [4000, 3000, 5000]
    assert 4 * band("relu", widths, 2**0.5).deviation[-1] ** 2 == pytest.approx(log_normal_beta(widths), rel=4e-3)


def test_band_of_equal_layers_is_the_exact_law_of_each():
    depth = np.arange(8)
    for sigma_b in (0.0, 0.7):
        found, layer = band("relu", [20] * 8, 1.3, sigma_b), log_gain_moments("relu", 20)
        assert found.mean == pytest.approx(depth / 2 * (np.log(1.3**2 / 2) + layer.mean), abs=1e-11)
        assert found.deviation == pytest.approx(np.sqrt(depth * layer.variance) / 2, abs=1e-9)


def test_linear_band_is_a_product_of_chi_squares():
    # ||W u||^2 = chi^2_{n_{l+1}} / n_l, independent layer by layer, at any widths.
    widths = [3, 5, 2, 7]
    means, variances = log_chi_square(np.array(widths[1:]))
    found = band("linear", widths, 0.8)
    assert found.mean[1:] == pytest.approx(np.cumsum(means - np.log(widths[:-1]) + np.log(0.64)) / 2, abs=1e-12)
    assert found.deviation[1:] == pytest.approx(np.sqrt(np.cumsum(variances)) / 2, abs=1e-12)


def test_orthogonal_linear_networks_are_deterministic():
    found = band("linear", [16] * 30, 1.1, 0.3, kernel_init="orthogonal")
    assert found.mean == pytest.approx(np.arange(30) * np.log(1.1), abs=1e-12)
    assert np.all(found.deviation < 1e-14)


@pytest.mark.parametrize("kernel_init", ["gaussian", "orthogonal"])
def test_homogeneous_bands_are_exact_at_any_width(kernel_init):
    widths = [9, 6, 12, 6]
    logs = matrices("leaky_relu(0.3)", widths, 1.5, 0, 1.0, 15_000, kernel_init)
    agree(band("leaky_relu(0.3)", widths, 1.5**0.5, kernel_init=kernel_init, q0=1.0), logs, widths, 0, 0)


# --- any activation -------------------------------------------------------------------------------------------------

# sigma_w^2, sigma_b^2, and the neglected orders C of mean (l C / n^2) and deviation (C / n). The mean of a logarithm of
# variance v / n misses about (v / n)^2 / 4 a layer, v = 2 .. 3 here, and the gain is half of it. GELU is the one whose
# ln q scatters by itself (E delta^2 = 4.5 / n), which its convex q map enlarges. Measured at l = 20 with control
# variates, n times (mean predicted - simulated) falls to 0: 6.98 +- 0.08 at n = 64, 4.78 +- 0.13 at 128, 2.87 +- 0.16
# at 256, 1.1 +- 0.3 at 1024, so C tends to 40; the deviation's excess is 12, 9, 5 and 0.4 +- 1 percent.
POINTS = {
    ("tanh", 1.0, 0.05): (1.5, 1),  # ordered
    ("tanh", 1.7609546396, 0.05): (1.5, 1),  # critical
    ("tanh", 2.5, 0.05): (1.5, 1),  # chaotic
    ("sigmoid", 4.0, 0.1): (1.5, 1),
    ("hard_tanh", 1.5, 0.05): (1.5, 1),
    ("selu", 0.9, 0.1): (1.5, 1),
    ("relu", 2.0, 0.0): (0, 0),
    ("gelu", 1.8, 0.1): (40, 12),
}


@pytest.mark.parametrize(("n", "draws"), [(64, 3000), (128, 1500)])
@pytest.mark.parametrize("point", POINTS, ids=lambda point: f"{point[0]}-{point[1]:g}")
def test_bands_at_fixed_points(point, n, draws):
    name, sigma_w2, sigma_b2 = point
    logs = rows(*(name, n, 20, sigma_w2, sigma_b2), fixed_point(name, sigma_w2, sigma_b2), draws)
    agree(band(name, [n] * 21, sigma_w2**0.5, sigma_b2**0.5), logs, [n] * 21, *POINTS[point])


@pytest.mark.parametrize(("name", "sigma_w2", "sigma_b2"), [("tanh", 1.7609546396, 0.05), ("selu", 0.9, 0.1)])
def test_bands_of_orthogonal_networks(name, sigma_w2, sigma_b2):
    q = fixed_point(name, sigma_w2, sigma_b2)
    logs = rows(*(name, 64, 20, sigma_w2, sigma_b2, q), 5000, kernel_init="orthogonal")
    agree(band(name, [64] * 21, sigma_w2**0.5, sigma_b2**0.5, "orthogonal"), logs, [64] * 21, 1.5, 1)


@pytest.mark.parametrize("kernel_init", ["gaussian", "orthogonal"])
def test_bands_follow_the_transient(kernel_init):
    # sigma_w = 1, no bias: critical with q* = 0, so that q falls like 1 / (2 l) and there is no fixed point at all.
    logs = rows("tanh", 64, 30, 1.0, 0.0, 1.5, 5000, kernel_init)
    agree(band("tanh", [64] * 31, 1.0, kernel_init=kernel_init, q0=1.5), logs, [64] * 31, 2, 1.5)


@pytest.mark.parametrize("kernel_init", ["gaussian", "orthogonal", "uniform"])
def test_bands_of_unequal_widths_from_drawn_matrices(kernel_init):
    # Off the fixed point, with a narrowing and a widening layer; n = 16 shows what is of order 1 / n.
    widths = [24, 32, 16, 24, 24]
    logs = matrices("tanh", widths, 2.5, 0.05, 0.6, 8000, kernel_init)
    agree(band("tanh", widths, 2.5**0.5, 0.05**0.5, kernel_init, q0=0.6), logs, widths, 1.5, 1)


def test_rows_and_matrices_are_one_law():
    for kernel_init in ("gaussian", "orthogonal"):
        slow = matrices("tanh", [12] * 5, 2.5, 0.05, 0.6, 4000, kernel_init)
        fast = rows("tanh", 12, 4, 2.5, 0.05, 0.6, 40_000, kernel_init, seed=1)
        error = slow.std(axis=0) / np.sqrt(len(slow))
        assert np.all(np.abs(slow.mean(axis=0) - fast.mean(axis=0)) <= 4.5 * error + 1e-12)
        assert slow.std(axis=0) == pytest.approx(fast.std(axis=0), rel=4.5 * 0.8 / np.sqrt(len(slow)))


@pytest.mark.parametrize(("name", "sigma_w2", "sigma_b2"), [("tanh", 2.5, 0.05), ("gelu", 1.8, 0.1)])
def test_deep_bands_grow_by_the_fixed_point_formulas(name, sigma_w2, sigma_b2):
    # Per layer of ln ||J u||^2, by plain sums and finite differences: at n = 1e6 what is left is 1e-6 of it.
    n, phi, q = 10**6, PHI[name], fixed_point(name, sigma_w2, sigma_b2)
    z = np.linspace(-12, 12, 24001)
    weights = np.exp(-z * z / 2) / np.exp(-z * z / 2).sum()

    def mean(f, q):
        return weights @ f(phi[0](np.sqrt(q) * z), phi[1](np.sqrt(q) * z))

    def jets(f, step=2e-3):
        up, at, down = f(q + step), f(q), f(q - step)
        return at, (up - down) / (2 * step), (up - 2 * at + down) / step**2

    _, r, v2 = jets(lambda q: sigma_w2 * mean(lambda f, d: f * f, q))
    log_m, a, a1 = jets(lambda q: np.log(mean(lambda f, d: d * d, q)))
    m, k = np.exp(log_m), a / (1 - r)
    square, product = mean(lambda f, d: f * f, q), mean(lambda f, d: f * f * d * d, q)
    slope, state = 3 * mean(lambda f, d: d**4, q) / m**2 - 1, sigma_w2**2 * (mean(lambda f, d: f**4, q) - square**2)
    variance = slope + 2 * k * sigma_w2 * (product / m - square) + k**2 * state
    chi = sigma_w2 * m
    rho = sigma_w2**2 * product / (q * chi * (1 - r**2 / chi))
    shift = -slope / 2 + (a * v2 / (1 - r) + a1) / 2 * state / (1 - r**2)
    shift += rho * (mean(lambda f, d: d * d * z * z, q) / m - 1)
    found = band(name, [n] * 201, sigma_w2**0.5, sigma_b2**0.5)
    last = slice(100, None)
    steps, variances = np.diff(2 * found.mean[last]), np.diff(4 * found.deviation[last] ** 2)
    # The second differences of step 2e-3 are right to 1e-5.
    assert n * (steps - np.log(chi)) == pytest.approx(np.full(100, shift), abs=1e-4)
    assert n * variances == pytest.approx(np.full(100, variance), rel=1e-4)


def test_the_start_is_the_fixed_point_reached_from_one():
    for sigma_w2, sigma_b2 in ((1.0, 0.05), (2.5, 0.05)):
        q = fixed_point("tanh", sigma_w2, sigma_b2)
        given, found = (band("tanh", [32] * 9, sigma_w2**0.5, sigma_b2**0.5, q0=q0) for q0 in (q, None))
        assert found.mean == pytest.approx(given.mean, abs=1e-9)
    # q falls to 0 or grows without bound: it starts from 1.
    for name, sigma_w in (("tanh", 0.5), ("tanh", 1.0), ("gelu", 3.0)):
        assert np.array_equal(band(name, [32] * 9, sigma_w).mean, band(name, [32] * 9, sigma_w, q0=1.0).mean)


def test_far_from_any_fixed_point_the_layer_is_its_linear_limit():
    depth, n = 600, 32
    # tanh at q -> 0 is linear; GELU at q -> infinity is ReLU. ln q runs to -800 and 700.
    for name, limit, sigma_w in (("tanh", "linear", 0.5), ("gelu", "relu", 2.5)):
        found, expected = (band(which, [n] * (depth + 1), sigma_w) for which in (name, limit))
        steps, limits = (np.diff(b.mean)[-100:] for b in (found, expected))
        assert steps == pytest.approx(limits, abs=1e-4)
        variances, limits = (np.diff(b.deviation**2)[-100:] for b in (found, expected))
        assert variances == pytest.approx(limits, rel=1e-2)


def test_true_zeros():
    for found in (band("tanh", [8] * 4, 0.0, 0.5), band(flat, [8] * 4, 1.0)):
        assert list(found.mean) == [0, -np.inf, -np.inf, -np.inf]
        assert not found.deviation.any()


def test_band_starts_at_nothing():
    found = band("gelu", [5], 1.0, 0.1)
    assert found.mean.tolist() == [0]
    assert found.deviation.tolist() == [0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_gain_moments("relu", 0), "width must be at least 1, got 0"),
        (lambda: log_gain_moments("tanh", 4, q=-1.0), "q must be finite and not negative, got -1"),
        (lambda: log_gain_moments("relo", 4), "did you mean 'relu'"),
        (lambda: fourth_moment([]), "widths must hold at least one size, got none"),
        (lambda: fourth_moment([4, 2.5]), "widths must be a list of whole numbers, got \\[4, 2.5\\]"),
        (lambda: fourth_moment([4, 4], "tanh"), "activation must be homogeneous .*, got 'tanh'"),
        (lambda: log_normal_beta([4, 0]), "widths must be at least 1, got 0"),
        (lambda: band("tanh", [4, 4], -1.0), "sigma_w must be finite and not negative, got -1"),
        (lambda: band("tanh", [4, 4], 1.0, np.inf), "sigma_b must be finite and not negative, got inf"),
        (lambda: band("tanh", [4, 4], 1.0, q0=np.nan), "q0 must be finite and not negative, got nan"),
        (
            lambda: band("tanh", [4, 4], 1.0, kernel_init="gausian"),
            "kernel_init must be one of .*mean 'gaussian'",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
