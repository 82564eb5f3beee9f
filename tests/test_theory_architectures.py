"""Normalization, residual, recurrent and attention theory against closed forms, other series, and finite networks."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from vgjax.theory import attention, moments, normalization, recurrent, residual

COMPUTES = True

EXACT = 1e-9  # closed forms and printed references: what `batch_norm_rate` promises; most agree to 1e-14

PHI: dict[str, Callable] = {"tanh": np.tanh, "relu": lambda h: np.maximum(h, 0.0), "linear": lambda h: h}
SLOPE: dict[str, Callable] = {"tanh": lambda h: 1 - np.tanh(h) ** 2, "relu": lambda h: 1.0 * (h > 0)}


def within(measured: np.ndarray, theory: float, bias: float) -> bool:
    """A mean over independent draws agrees with theory to 4 standard errors and a finite-width bias."""
    error = np.std(measured, ddof=1) / math.sqrt(len(measured))
    return bool(abs(np.mean(measured) - theory) <= 4 * error + bias)


# --- batch normalization --------------------------------------------------------------------------------------------


def relu_rate(batch: int) -> float:
    """Degree-two homogeneous functions have the same mean on the sphere as for Gaussians: arc-cosine kernels."""
    rho = -1 / (batch - 1)
    kappa0 = 1 / 4 + math.asin(rho) / (2 * math.pi)  # E phi'1 phi'2
    kappa1 = (math.sqrt(1 - rho**2) + (math.pi - math.acos(rho)) * rho) / (2 * math.pi)  # E phi1 phi2
    return ((batch - 1) / 2 + kappa0 - 1 / 2 + kappa1) / ((batch - 3) * (1 / 2 - kappa1))


@pytest.mark.parametrize("batch", [4, 5, 6, 7, 8, 64, 4096])
def test_batch_norm_closed_forms(batch: int) -> None:
    assert normalization.batch_norm_rate("linear", batch) == pytest.approx((batch - 2) / (batch - 3), rel=EXACT)
    assert normalization.batch_norm_rate("relu", batch) == pytest.approx(relu_rate(batch), rel=EXACT)


def test_batch_norm_references() -> None:
    rate = normalization.batch_norm_rate
    assert rate("relu", 8) == pytest.approx(1.788189977, rel=1e-9)
    assert rate("relu", 64) == pytest.approx(1.493062938, rel=1e-9)
    assert rate("relu", math.inf) == pytest.approx(math.pi / (math.pi - 1), rel=1e-14)
    assert rate("tanh", math.inf) == pytest.approx(1.177807232, rel=1e-9)  # E phi'^2 / E phi^2 = .46440290 / .39429449
    assert rate("linear", 8) == pytest.approx(1.2, rel=1e-13)
    assert rate("linear", 64) == pytest.approx(1.0163934426, rel=1e-10)
    assert rate("tanh", 10**6) == pytest.approx(rate("tanh", math.inf), rel=3e-6)  # corrections of order 1 / B


def test_batch_norm_small_batches() -> None:
    assert normalization.batch_norm_rate("tanh", 3) == math.inf
    # Two samples are always normalized to +1 and -1: nothing depends on the input.
    assert normalization.batch_norm_rate("tanh", 2) == 0


def panels(breaks: list[float]) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(200)
    half, middle = np.diff(breaks) / 2, (np.array(breaks)[1:] + np.array(breaks)[:-1]) / 2
    return (middle[:, None] + half[:, None] * nodes).ravel(), (half[:, None] * weights).ravel()


def series_rate(phi: Callable, slope: Callable, kinks: list[float], batch: int, terms: int) -> float:
    """By the Funk-Hecke formula instead of double integrals: E f(y1) g(y2) = sum_l E f G_l E g G_l / E G_l^2 G_l(rho),
    in the Gegenbauer polynomials G_l of one coordinate of the sphere in n = B - 1 dimensions, G_l(1) = 1."""
    n, radius, rho = batch - 1, math.sqrt(batch - 1), -1 / (batch - 1)
    angle, weights = panels([-math.pi / 2, *(math.asin(k / radius) for k in kinks), math.pi / 2])
    t, weights = np.sin(angle), weights * np.cos(angle) ** (n - 2)
    weights /= weights.sum()
    points = np.append(t, rho)
    g = [np.ones_like(points), points]
    for l in range(2, terms):
        g.append((2 * (l + n / 2 - 2) * points * g[-1] - (l - 1) * g[-2]) / (l + n - 3))
    at, kernel = np.array(g)[:, :-1], np.array(g)[:, -1]
    kernel = kernel / (at**2 @ weights)

    def pair(f: np.ndarray) -> float:
        return float(kernel @ (at @ (weights * f)) ** 2)

    y, f, d = radius * t, phi(radius * t), slope(radius * t)
    above = (batch - 1) * (weights @ d**2) + pair(d) - weights @ (d * y) ** 2 + pair(d * y)
    return above / ((batch - 3) * (weights @ f**2 - pair(f)))


def test_batch_norm_by_another_series() -> None:
    for batch in (5, 8, 64):  # analytic: the series converges geometrically, to rounding
        series = series_rate(PHI["tanh"], SLOPE["tanh"], [], batch, 40)
        assert normalization.batch_norm_rate("tanh", batch) == pytest.approx(series, rel=1e-12)
    # phi' jumps: terms fall like a power of l; 400 terms of B = 8 differ from 200 by 4e-11, from 60 by 1e-8
    for batch, terms, truncation in ((8, 200, 1e-10), (16, 60, 1e-12)):
        series = series_rate(lambda h: np.clip(h, -1, 1), lambda h: 1.0 * (abs(h) < 1), [-1, 1], batch, terms)
        assert normalization.batch_norm_rate("hard_tanh", batch) == pytest.approx(series, rel=truncation)


def test_batch_norm_of_a_callable() -> None:
    def mine(h: jnp.ndarray) -> jnp.ndarray:
        return jnp.where(h > 0, h, 0 * h)

    assert normalization.batch_norm_rate(mine, 16) == pytest.approx(relu_rate(16), rel=EXACT)


@pytest.mark.parametrize("name", ["tanh", "relu"])
def test_batch_norm_of_finite_networks(name: str) -> None:
    batch, width, layers = 8, 300, 7
    growth = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        h, stored = rng.standard_normal((batch, width)), []
        for _ in range(layers):
            spread = h.std(axis=0)
            y = (h - h.mean(axis=0)) / spread
            kernel = rng.standard_normal((width, width)) / math.sqrt(width)
            stored.append((y, spread, kernel))
            h = PHI[name](y) @ kernel
        g, sizes = rng.standard_normal((batch, width)), []
        for y, spread, kernel in reversed(stored):
            g = (g @ kernel.T) * SLOPE[name](y)
            g = (g - g.mean(axis=0) - y * (g * y).mean(axis=0)) / spread
            sizes.append((g**2).mean())
        growth.append((sizes[-2] / sizes[1]) ** (1 / (layers - 3)))  # the first layer's input has another variance
    # 5 / width covers the O(1 / width) bias (linear: -3 / width); 16 seeds give about 1% of standard error.
    assert within(np.array(growth), normalization.batch_norm_rate(name, batch), 5 / width)


# --- layer and RMS normalization ------------------------------------------------------------------------------------


def test_norm_on_preactivations() -> None:
    relu = normalization.norm_on_preactivations("relu", 1.3)
    assert relu == pytest.approx((1.69 / 2, 1.0, 0.0), abs=1e-13)
    erf = normalization.norm_on_preactivations("erf", 1.3, 0.2)
    assert erf.critical_ratio == pytest.approx(0.104850980336, abs=1e-12)
    assert erf.q == pytest.approx(1.69 * 0.4645590544 + 0.04, rel=1e-9)
    assert erf.chi == pytest.approx(1.69 * 0.5694100347 / erf.q, rel=1e-9)
    critical = normalization.norm_on_preactivations("erf", 1.3, 1.3 * math.sqrt(erf.critical_ratio))
    assert critical.chi == pytest.approx(1, rel=1e-14)
    assert normalization.norm_on_preactivations("sigmoid", 1.0).critical_ratio is None  # .0448 - .2934 < 0


def test_norm_on_activations() -> None:
    # ReLU: Var phi = q (1/2 - 1 / 2 pi), E phi'^2 = 1/2, at any q.
    layer = normalization.layer_norm_on_activations("relu", 1.0, 0.5)
    assert layer.q == 1.25
    assert layer.chi == pytest.approx(math.pi / (math.pi - 1) / 1.25, rel=1e-13)
    assert layer.critical_ratio == pytest.approx(1 / (math.pi - 1), rel=1e-13)
    assert normalization.rms_norm_on_activations("relu", 1.0, 0.5) == pytest.approx((1.25, 1 / 1.25, 0.0), abs=1e-13)
    # On the arc of one q* the ratio is what makes chi = 1.
    tanh = normalization.layer_norm_on_activations("tanh", 1.0, 1.0)
    sigma_w = math.sqrt(tanh.q / (1 + tanh.critical_ratio))
    sigma_b = sigma_w * math.sqrt(tanh.critical_ratio)
    assert normalization.layer_norm_on_activations("tanh", sigma_w, sigma_b).chi == pytest.approx(1, rel=1e-13)
    assert normalization.rms_norm_on_activations("sigmoid", 1.0).critical_ratio is None


@pytest.mark.parametrize("place", ["preactivations", "activations"])
def test_layer_norm_of_finite_networks(place: str) -> None:
    width, sigma_w, sigma_b, layers = 500, 1.5, 0.4, 6

    def norm(h: np.ndarray) -> tuple[np.ndarray, float]:
        return (h - h.mean()) / h.std(), h.std()

    def back(g: np.ndarray, y: np.ndarray, spread: float) -> np.ndarray:
        return (g - g.mean() - y * (g * y).mean()) / spread

    logs, qs = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        h, chain = 1.7 * rng.standard_normal(width), []
        for _ in range(layers):
            kernel = sigma_w * rng.standard_normal((width, width)) / math.sqrt(width)
            if place == "preactivations":
                y, spread = norm(h)
                chain.append((kernel, SLOPE["relu"](y), y, spread))
                h = kernel @ PHI["relu"](y)
            else:
                y, spread = norm(PHI["relu"](h))
                chain.append((kernel, SLOPE["relu"](h), y, spread))
                h = kernel @ y
            h += sigma_b * rng.standard_normal(width)
        qs.append(np.mean(h**2))
        g, sizes = rng.standard_normal(width), []
        for kernel, slope, y, spread in reversed(chain):
            g = kernel.T @ g
            g = back(g * slope, y, spread) if place == "preactivations" else back(g, y, spread) * slope
            sizes.append(np.mean(g**2))
        logs.append(math.log(sizes[-2] / sizes[0]) / (layers - 2))
    find = {"preactivations": "norm_on_preactivations", "activations": "layer_norm_on_activations"}[place]
    theory = getattr(normalization, find)("relu", sigma_w, sigma_b)
    assert within(np.array(qs), theory.q, 5 * theory.q / width)
    assert within(np.array(logs), math.log(theory.chi), 5 / width)


def test_residual_norm_rate() -> None:
    assert normalization.residual_norm_rate(1.7, 1.0) == 1
    assert normalization.residual_norm_rate(1.7, 0.0) == 1.7
    # x' = mu x + W relu(norm(x)) settles at p = (sigma_w^2 / 2) / (1 - mu^2); the branch's gradient is over p.
    mu, sigma_w = 0.6, 1.3
    settled = sigma_w**2 / 2 / (1 - mu**2)
    chi = normalization.norm_on_preactivations("relu", sigma_w).chi
    assert normalization.residual_norm_rate(chi, mu) == pytest.approx(mu**2 + sigma_w**2 / 2 / settled, rel=1e-13)


def test_bad_normalization() -> None:
    with pytest.raises(ValueError, match=r"batch must be at least 2 .* got 1"):
        normalization.batch_norm_rate("tanh", 1)
    with pytest.raises(ValueError, match=r"batch must be a whole number, got 8\.5"):
        normalization.batch_norm_rate("tanh", 8.5)
    with pytest.raises(ValueError, match="activation must not be constant"):
        normalization.batch_norm_rate(jnp.zeros_like, 8)
    with pytest.raises(ValueError, match="sigma_w must be finite and not negative, got -1"):
        normalization.norm_on_preactivations("tanh", -1)
    with pytest.raises(ValueError, match="sigma_w and sigma_b must not give preactivations that are all 0"):
        normalization.norm_on_preactivations("tanh", 0)
    with pytest.raises(ValueError, match=r"skip must lie in \[0, 1\], got 1.5"):
        normalization.residual_norm_rate(1.0, 1.5)


# --- residual -------------------------------------------------------------------------------------------------------


def test_residual_references() -> None:
    tanh = residual.propagate("tanh", 500)
    assert tanh.log_chi[[0, 10, 100, 500]] == pytest.approx([0, 2.643206353, 10.54554853, 24.19829277], rel=1e-9)
    relu = residual.propagate("relu", 3000)  # p = 1.5^l leaves the float range at l = 1751
    assert relu.log_chi == pytest.approx(np.arange(3001) * math.log(1.5), abs=1e-10)
    assert relu.p[:1000] == pytest.approx(1.5 ** np.arange(1000.0), rel=1e-10)
    assert relu.p[-1] == math.inf


def test_residual_asymptotics() -> None:
    # sqrt law: the local slope d log / d sqrt(l) approaches (4/3) sqrt(2 / pi), corrections of order 1 / sqrt(l)
    log = residual.propagate("tanh", 1600).log_chi
    slope = (log[1600] - log[1225]) / (math.sqrt(1600) - math.sqrt(1225))
    assert slope == pytest.approx(4 / 3 * math.sqrt(2 / math.pi), rel=1 / math.sqrt(1225))


def test_residual_scales() -> None:
    depth = 50
    scaled = residual.propagate("relu", depth, sigma_w=math.sqrt(2), branch=residual.stable_scale(depth))
    assert scaled.log_chi[-1] == pytest.approx(depth * math.log1p(1 / depth), rel=1e-13)
    identity = residual.propagate("tanh", depth, sigma_b=0.3, branch=0.0)
    assert np.all(identity.log_chi == 0)
    assert np.all(identity.p == 1)
    assert np.all(np.isneginf(residual.propagate("tanh", 2, sigma_w=0.0, skip=0.0).log_chi[1:]))
    assert residual.fixup_scale(16, 3) == pytest.approx(0.5)  # 16^(-1/4)


def test_residual_per_layer_and_biases() -> None:
    # Linear phi: q = w p + b, p' = s^2 p + t^2 (v q + a), factor s^2 + t^2 v w; every number different.
    skip, branch = np.array([0.9, 1.0, 0.5]), np.array([0.3, 0.7, 1.1])
    w, b, v, a, p = 1.2, 0.3, 0.8, 0.4, 2.0
    found = residual.propagate("linear", 3, sigma_w=w, sigma_b=b, sigma_v=v, sigma_a=a, branch=branch, skip=skip, p0=p)
    ps, qs = [p], []
    for s, t in zip(skip, branch, strict=True):
        qs.append(w**2 * ps[-1] + b**2)
        ps.append(s**2 * ps[-1] + t**2 * (v**2 * qs[-1] + a**2))
    assert found.p == pytest.approx(ps, rel=1e-13)
    assert found.q == pytest.approx(qs, rel=1e-13)
    assert found.log_chi[1:] == pytest.approx(np.cumsum(np.log(skip**2 + branch**2 * (v * w) ** 2)), rel=1e-12)


def test_residual_grid() -> None:
    sigma_w, p0 = np.array([0.5, 1.0, 3.0]), np.array([[1.0], [4.0]])
    found = residual.propagate("gelu", 9, sigma_w=sigma_w, sigma_a=0.2, p0=p0, branch=np.linspace(0, 1, 9))
    assert found.p.shape == found.log_chi.shape == (2, 3, 10)
    for i, j in ((0, 1), (1, 2)):
        one = residual.propagate("gelu", 9, sigma_w=sigma_w[j], sigma_a=0.2, p0=p0[i, 0], branch=np.linspace(0, 1, 9))
        for whole, alone in zip(found, one, strict=True):
            assert whole[i, j] == pytest.approx(alone, rel=1e-12)


def test_moments_beyond_the_quadrature() -> None:
    # GELU = u Phi(u): E gelu^2 = q/4 + E u^2 (Phi^2 - 1/4), and sign(u) 's is q/2; mpmath at q = 1e12, split at 0.
    def mean(f: Callable) -> float:
        with mpmath.workdps(30):
            root = mpmath.mpf(10) ** 6
            splits = [-20, *(-(mpmath.mpf(10) ** k) for k in (-4, -5, -6)), 0, 1e-6, 1e-5, 1e-4, 20]
            return float(mpmath.quad(lambda z: f(root * z) * mpmath.npdf(z), splits))

    square, slope, _ = moments("gelu", 1e12)
    assert square == pytest.approx(mean(lambda u: (u * mpmath.ncdf(u)) ** 2), rel=1e-9)
    assert slope == pytest.approx(mean(lambda u: (mpmath.ncdf(u) + u * mpmath.npdf(u)) ** 2), rel=1e-9)


def test_residual_of_finite_networks() -> None:
    width, depth = 300, 30
    logs, ps = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x, chain = rng.standard_normal(width), []
        x *= math.sqrt(width) / np.linalg.norm(x)
        for _ in range(depth):
            w, v = rng.standard_normal((2, width, width)) / math.sqrt(width)
            h = w @ x
            chain.append((w, v, SLOPE["tanh"](h)))
            x = x + v @ np.tanh(h)
        ps.append(np.mean(x**2))
        g = top = rng.standard_normal(width)
        for w, v, slope in reversed(chain):
            g = g + w.T @ (slope * (v.T @ g))
        logs.append(math.log(np.sum(g**2) / np.sum(top**2)))
    theory = residual.propagate("tanh", depth)
    # ln averages lie below the log of the average by half their variance, O(depth / width) in all
    assert within(np.array(logs), theory.log_chi[-1], 2 * depth / width)
    assert within(np.array(ps), theory.p[-1], theory.p[-1] * 2 / width)


def test_bad_residual() -> None:
    with pytest.raises(ValueError, match="sigma_v must be finite and not negative, got -1"):
        residual.propagate("tanh", 3, sigma_v=-1)
    with pytest.raises(ValueError, match=r"branch must be a number or have shape \(3,\), one per layer, got shape \(2"):
        residual.propagate("tanh", 3, branch=[1.0, 2.0])
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        residual.propagate("tanh", 0)
    with pytest.raises(ValueError, match="layers must be at least 2"):
        residual.fixup_scale(10, 1)


# --- recurrent ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gain", "exponent"), [(1.5, 0.0652172119), (2.0, 0.1547242298), (3.0, 0.3102493151)])
def test_lyapunov_references(gain: float, exponent: float) -> None:
    assert recurrent.maximal_lyapunov("tanh", gain).exponent == pytest.approx(exponent, rel=2e-9)


def test_lyapunov_limits() -> None:
    assert tuple(recurrent.maximal_lyapunov("tanh", 0.5)) == (0.0, pytest.approx(math.log(0.5), rel=1e-13))
    assert tuple(recurrent.maximal_lyapunov("tanh", 1.0)) == (0.0, pytest.approx(0.0, abs=1e-13))
    # q -> 0+: q = (g^2 - 1) / 2 + ..., exponent = 0.5 ln(g^2 (1 - 2 q + 17/3 q^2 ...)) is of second order
    assert recurrent.maximal_lyapunov("tanh", 1.0001).q == pytest.approx(1.0001**2 / 2 - 0.5, rel=1e-3)
    assert tuple(recurrent.maximal_lyapunov("relu", 3.0)) == (
        math.inf,
        pytest.approx(math.log(3) - math.log(2) / 2, rel=1e-13),
    )
    assert tuple(recurrent.maximal_lyapunov("relu", 1.0)) == (0.0, pytest.approx(-math.log(2) / 2, rel=1e-13))
    assert tuple(recurrent.maximal_lyapunov("gelu", 3.0)) == (
        math.inf,
        pytest.approx(math.log(3) - math.log(2) / 2, rel=1e-10),
    )
    # sin: E sin^2 = (1 - exp(-2 q)) / 2, E cos^2 = (1 + exp(-2 q)) / 2
    q, exponent = recurrent.maximal_lyapunov("sin", 2.0)
    assert q == pytest.approx(2 * (1 - math.exp(-2 * q)), rel=1e-12)
    assert exponent == pytest.approx(0.5 * math.log(2 * (1 + math.exp(-2 * q))), rel=1e-12)
    assert tuple(recurrent.maximal_lyapunov(jnp.square, 0.5)) == (0.0, -math.inf)
    assert tuple(recurrent.maximal_lyapunov("tanh", 0.0)) == (0.0, -math.inf)
    several = recurrent.maximal_lyapunov("tanh", np.array([0.5, 1.5, 2.0]))
    assert several.exponent == pytest.approx([math.log(0.5), 0.0652172119, 0.1547242298], rel=2e-9)


def test_lyapunov_of_finite_networks() -> None:
    width, gain, steps = 300, 3.0, 300
    exponents = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        kernel = gain * rng.standard_normal((width, width)) / math.sqrt(width)
        h, u, total = rng.standard_normal(width), rng.standard_normal(width), 0.0
        for step in range(-100, steps):
            u = kernel @ (SLOPE["tanh"](h) * u)
            h = kernel @ np.tanh(h)
            size = np.linalg.norm(u)
            u, total = u / size, total + (math.log(size) if step >= 0 else 0.0)
        exponents.append(total / steps)
    # The bias is -2.8 / width: -.018 at 150, -.0095 at 300, with standard errors of .002.
    assert within(np.array(exponents), recurrent.maximal_lyapunov("tanh", gain).exponent, 4 / width)


def test_minimal_rnn_fixed_point() -> None:
    from scipy.integrate import quad

    sigma_w, sigma_v, sigma_b, mean_b, second = 2.5, 1.0, 0.5, 3.0, 1.7
    found = recurrent.minimal_rnn(sigma_w, sigma_v, sigma_b, mean_b, second)

    def mean(f: Callable[[float], float]) -> float:
        at = lambda z: f(1 / (1 + math.exp(-math.sqrt(found.q) * z - mean_b)))  # noqa: E731
        return quad(lambda z: at(z) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi), -12, 12, epsabs=1e-13, limit=200)[
            0
        ]

    hidden = second * mean(lambda u: (1 - u) ** 2) / (1 - mean(lambda u: u * u))
    assert found.hidden == pytest.approx(hidden, rel=1e-11)
    assert found.q == pytest.approx(sigma_w**2 * hidden + sigma_v**2 * second + sigma_b**2, rel=1e-11)
    chi = mean(lambda u: u * u) + sigma_w**2 * (hidden + second) * mean(lambda u: (u * (1 - u)) ** 2)
    assert found.chi == pytest.approx(chi, rel=1e-11)


def test_minimal_rnn_limits() -> None:
    # No weights and no noise: u = sigmoid(mean) is a constant, h an exponential average.
    u = 1 / (1 + math.exp(-2.0))
    assert recurrent.minimal_rnn(0, 0, 0, 2.0) == pytest.approx(((1 - u) / (1 + u), 0, u * u), rel=1e-13)
    # An open gate, 1 - u = exp(-40): all digits of what is lost.
    assert recurrent.minimal_rnn(0, 0, 0, 40.0).hidden == pytest.approx(math.exp(-40) / 2, rel=1e-12)


def test_minimal_rnn_of_finite_networks() -> None:
    width, steps, sigma_w, sigma_v, mean_b = 200, 80, 2.0, 0.7, 1.0
    hidden, logs = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        h, jacobians, squares = np.zeros(width), [], []
        for step in range(steps):
            w, v = rng.standard_normal((2, width, width)) / math.sqrt(width)
            x = rng.standard_normal(width)
            u = 1 / (1 + np.exp(-(sigma_w * w @ h + sigma_v * v @ x + mean_b)))
            if step >= steps // 2:
                jacobians.append((w, u, h - x))
                squares.append(np.mean(h**2))
            h = u * h + (1 - u) * x
        hidden.append(np.mean(squares))
        g = top = rng.standard_normal(width)
        for w, u, difference in reversed(jacobians):
            g = u * g + sigma_w * w.T @ (u * (1 - u) * difference * g)
        logs.append(math.log(np.sum(g**2) / np.sum(top**2)) / len(jacobians))
    theory = recurrent.minimal_rnn(sigma_w, sigma_v, 0, mean_b)
    assert within(np.array(hidden), theory.hidden, 5 * theory.hidden / width)
    assert within(np.array(logs), math.log(theory.chi), 5 / width)


@pytest.mark.parametrize(("bias", "steps"), [(0, 1.442695), (1, 3.192219), (2, 7.878482), (4, 55.096638)])
def test_forget_gate(bias: float, steps: float) -> None:
    gate = recurrent.forget_gate(bias)
    assert gate.time_scale == pytest.approx(steps, abs=5e-7)  # the printed digits
    assert gate.factor == pytest.approx(1 / (1 + math.exp(-bias)), rel=1e-15)
    assert recurrent.forget_gate(1000) == (1.0, math.inf)


def test_latch() -> None:
    assert recurrent.latch(1.25).attractors == pytest.approx([-0.7104117835, 0.7104117835], abs=5e-11)
    two = recurrent.latch(2.0)
    assert two.points == pytest.approx([-0.9575040241, 0, 0.9575040241], abs=5e-11)
    assert two.slopes == pytest.approx([2 * (1 - 0.9575040241**2), 2, 2 * (1 - 0.9575040241**2)], rel=1e-9)
    assert recurrent.latch(0.9).attractors.tolist() == [0]
    assert recurrent.latch(1.0).points.tolist() == [0]  # marginal: no attractor
    assert recurrent.latch(1 + 1e-8).attractors == pytest.approx([-math.sqrt(3e-8), math.sqrt(3e-8)], rel=1e-6)
    assert recurrent.latch(1.0, "linear").points.size == 0  # every x is fixed, none alone
    assert len(recurrent.latch(10.0, lambda h: 1 / (1 + jnp.exp(5 - h))).attractors) == 2


def test_orthogonal_growth() -> None:
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.standard_normal((20, 20)))
    dense = np.linalg.norm(np.linalg.matrix_power(0.9 * q, 50), 2)
    assert recurrent.orthogonal_log_growth(0.9, 50) == pytest.approx(math.log(dense), rel=1e-13)
    assert recurrent.orthogonal_log_growth(0.0, 3) == -math.inf


def test_bad_recurrent() -> None:
    with pytest.raises(ValueError, match="gain must be finite and not negative, got -2"):
        recurrent.maximal_lyapunov("tanh", -2)
    with pytest.raises(ValueError, match="second_moment must be finite and not negative, got -1"):
        recurrent.minimal_rnn(1, 1, second_moment=-1)
    with pytest.raises(ValueError, match=r"\|bias\| must be finite and not negative, got nan"):
        recurrent.forget_gate(math.nan)
    with pytest.raises(ValueError, match=r"\|weight\| must be finite and not negative, got inf"):
        recurrent.latch(math.inf)
    with pytest.raises(ValueError, match=r"steps must be a whole number, got 2\.5"):
        recurrent.orthogonal_log_growth(1.0, 2.5)


# --- attention ------------------------------------------------------------------------------------------------------


def test_deep_norm() -> None:
    assert attention.deep_norm(12) == pytest.approx((2.2133638394, 0.3194715521), rel=1e-10)
    encoder, decoder = attention.deep_norm_encoder_decoder(16, 16)
    assert encoder == pytest.approx((0.81 * 16 ** (5 / 16), 0.87 * 16 ** (-5 / 16)))
    assert decoder == pytest.approx((48**0.25, 192**-0.25))


def test_token_correlation_references() -> None:
    found = [attention.uniform_attention_correlation(16, depth, branch=depth**-0.5) for depth in (6, 12)]
    assert [c[-1] for c in found] == pytest.approx([0.0868427587, 0.0915819030], rel=1e-9)
    assert found[0][0] == 0
    assert attention.uniform_attention_correlation(16, 3, skip=0.0).tolist() == [0, 1, 1, 1]
    tiny = attention.uniform_attention_correlation(4, 1, branch=1e-9)[-1]
    assert tiny == pytest.approx(1e-18 / 4, rel=1e-12)


def test_token_correlation_of_finite_networks() -> None:
    tokens, width, start = 5, 400, 0.3
    skip, branch = np.array([0.9, 1.2, 0.7]), np.array([0.5, 0.8, 1.1])
    measured = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        common = rng.standard_normal(width)
        x = math.sqrt(start) * common + math.sqrt(1 - start) * rng.standard_normal((tokens, width))
        for s, a in zip(skip, branch, strict=True):
            x = s * x + a * (rng.standard_normal((width, width)) / math.sqrt(width)) @ x.mean(axis=0)
        gram = x @ x.T
        measured.append((gram.sum() - np.trace(gram)) / (tokens - 1) / np.trace(gram))
    theory = attention.uniform_attention_correlation(tokens, 3, branch=branch, skip=skip, correlation=start)
    assert theory[0] == pytest.approx(start, rel=1e-15)
    assert within(np.array(measured), theory[-1], 5 / width)


def test_bad_attention() -> None:
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        attention.deep_norm(0)
    with pytest.raises(ValueError, match="tokens must be at least 2, got 1"):
        attention.uniform_attention_correlation(1, 3)
    with pytest.raises(ValueError, match=r"correlation must lie in \[-1/3, 1\]"):
        attention.uniform_attention_correlation(4, 3, correlation=-0.5)
    with pytest.raises(ValueError, match="skip and branch must not both be 0"):
        attention.uniform_attention_correlation(4, 2, branch=[1.0, 0.0], skip=0.0)
