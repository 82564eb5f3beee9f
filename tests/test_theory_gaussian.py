"""Gaussian expectations against closed forms, mpmath and scipy, over q from 1e-8 to 1e4 and every kind of kink."""

import itertools
import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from scipy import integrate

from vgjax import activations
from vgjax.theory import correlated_expectation, expectation
from vgjax.theory._gaussian import line
from vgjax.theory._pieces import pieces

COMPUTES = True

VARIANCES = (1e-8, 1e-3, 1.0, 50.0, 1e4)


def square_of(name: str) -> activations.Activation:
    phi = activations.get(name)
    return activations.Activation(f"{name}^2", lambda u: phi(u) ** 2, kinks=phi.kinks)


SQUARES = {name: square_of(name) for name in ("tanh", "hard_tanh", "gelu", "sin", "relu", "softsign")}


def step(u):
    return jnp.where(u > 0.3, 1.0, 0.0).astype(u.dtype)


def steep(u):
    return jnp.tanh(300 * (u - 0.2))


def bent(u):
    return jnp.maximum(jnp.sin(u), u / 3 - 1)  # kinks where the two cross, not declared


def by_mpmath(f, q: float, points) -> float:
    """E f(sqrt(q) z) by mpmath's quadrature, split at the points (in u)."""
    with mp.workdps(25):
        root = mp.sqrt(mp.mpf(q))
        ends = sorted(
            {mp.mpf(x) for x in (-14, -7, -3, 0, 3, 7, 14)} | {p / root for p in points if abs(p / root) < 14}
        )
        return float(mp.quad(lambda z: f(root * z) * mp.npdf(z), ends))


@pytest.mark.parametrize("q", VARIANCES)
def test_second_moments_to_rounding(q):
    fine = [s * x for s in (-1, 1) for x in (0.3, 1, 2, 5, 10, 30, 100)]
    exact = {
        "tanh": by_mpmath(lambda u: mp.tanh(u) ** 2, q, fine),
        "gelu": by_mpmath(lambda u: (u * mp.ncdf(u)) ** 2, q, fine),
        "hard_tanh": by_mpmath(lambda u: min(max(u, -1), 1) ** 2, q, [-1, 1]),
        "sin": -math.expm1(-2 * q) / 2,
        "relu": q / 2,
    }
    for name, value in exact.items():
        assert float(expectation(SQUARES[name], q)) == pytest.approx(value, rel=1e-12), name


@pytest.mark.parametrize("q", VARIANCES)
def test_single_precision(q):
    # Relative 1e-5, or absolute 1e-5 where sin^2 is summed over arguments of 1000, which float32 rounds to 6e-5.
    for name in ("tanh", "hard_tanh", "gelu", "sin"):
        exact, found = float(expectation(SQUARES[name], q)), expectation(SQUARES[name], jnp.float32(q))
        assert found.dtype == jnp.float32
        assert float(found) == pytest.approx(exact, rel=1e-5, abs=1e-5 if q > 1e3 else 0), name


@pytest.mark.parametrize("q", [1e-4, 0.04, 1.0, 400.0])
def test_a_users_own_jumps_steps_and_kinks_are_found(q):
    root = math.sqrt(q)
    assert float(expectation(step, q)) == pytest.approx(
        0.5 * math.erfc(0.3 / root / math.sqrt(2)), rel=1e-11, abs=1e-14
    )
    ends = [0.2 + x for x in np.linspace(-0.05, 0.05, 11)]
    exact = by_mpmath(lambda u: mp.tanh(300 * (u - mp.mpf("0.2"))), q, ends)
    assert float(expectation(steep, q)) == pytest.approx(exact, abs=1e-11)
    z = np.linspace(-12, 12, 2_400_001)
    by_trapezoid = float(np.sum(np.asarray(bent(root * z)) * np.exp(-z * z / 2)) * 1e-5 / math.sqrt(2 * math.pi))
    assert float(expectation(bent, q)) == pytest.approx(by_trapezoid, abs=1e-8)  # the trapezoid's own error at kinks


def test_what_is_found_out_about_functions():
    assert pieces(activations.get(step)).jumps == pytest.approx([0.3], abs=1e-12)
    assert pieces(activations.get(jnp.sign)).jumps == pytest.approx([0.0], abs=1e-12)
    assert pieces(activations.get("relu")).jumps == ()
    kinks = pieces(activations.get(lambda u: jnp.abs(u - 1 / 3))).kinks
    assert kinks == pytest.approx([1 / 3], abs=1e-12)
    assert pieces(activations.get("tanh")).kinks == ()


def test_published_moments_at_unit_variance():
    # E phi^2 and E phi'^2 at q = 1, by composite Gauss-Legendre quadrature apart from this library.
    table = {
        "tanh": (0.3942944904, 0.4644029024),
        "erf": (0.4645590544, 0.5694100347),
        "hard_tanh": (0.5160585510, 0.6826894921),
        "sigmoid": (0.2933790359, 0.0448362414),
        "selu": (1.0, 1.0715749925),
        "gelu": (0.4252214826, 0.4558508656),
        "silu": (0.3557755198, 0.3794823516),
        "sin": (0.4323323584, 0.5676676416),
        "leaky_relu": (0.50005, 0.50005),
    }
    for name, expected in table.items():
        on = line(name, 1.0)
        assert (on.mean(on.phi**2), on.mean(on.slope**2)) == pytest.approx(expected, abs=6e-11), name


@pytest.mark.parametrize("c", [-1.0, -0.5, 0.0, 0.3, 0.999, 1 - 1e-9, 1.0])
def test_two_points_against_closed_forms(c):
    q1, q2 = 2.0, 0.7
    theta = math.acos(c)
    exact = {
        # arc-cosine kernel (Cho and Saul 2009), arcsine kernel (Williams 1997), sine, linear, sign
        "relu": math.sqrt(q1 * q2) / (2 * math.pi) * (math.sin(theta) + (math.pi - theta) * c),
        "erf": 2 / math.pi * math.asin(2 * c * math.sqrt(q1 * q2) / math.sqrt((1 + 2 * q1) * (1 + 2 * q2))),
        "sin": math.exp(-(q1 + q2) / 2) * math.sinh(c * math.sqrt(q1 * q2)),
        "linear": c * math.sqrt(q1 * q2),
        jnp.sign: 2 / math.pi * math.asin(c),
    }
    for f, value in exact.items():
        assert float(correlated_expectation(f, q1, q2, c)) == pytest.approx(value, abs=1e-12), f


@pytest.mark.parametrize(("name", "q1", "q2", "c"), [("tanh", 9.0, 0.3, 0.8), ("hard_tanh", 40.0, 25.0, 0.95)])
def test_two_points_against_scipy(name, q1, q2, c):
    phi = {"tanh": np.tanh, "hard_tanh": lambda u: np.clip(u, -1, 1)}[name]
    spread = math.sqrt(q2 * (1 - c * c))

    def inner(z: float) -> float:
        center = math.sqrt(q2) * c * z
        ends = sorted({-9.0, 9.0, *np.clip([(s - center) / spread for s in (-1, 0, 1)], -9, 9)})
        parts = [
            integrate.quad(lambda y: phi(center + spread * y) * math.exp(-y * y / 2), a, b, epsabs=1e-13)[0]
            for a, b in itertools.pairwise(ends)
        ]
        return float(phi(math.sqrt(q1) * z)) * sum(parts) * math.exp(-z * z / 2) / (2 * math.pi)

    ends = sorted({-9.0, 0.0, 9.0, *(s / math.sqrt(q1) for s in (-1, 1)), *(s / math.sqrt(q2) / c for s in (-1, 1))})
    exact = sum(integrate.quad(inner, a, b, epsabs=1e-11)[0] for a, b in itertools.pairwise(ends))
    assert float(correlated_expectation(name, q1, q2, c)) == pytest.approx(exact, abs=1e-10)


def test_works_traced_and_differentiates(x64):
    qs = jnp.array([0.0, 0.5, 3.0])
    looped = [float(expectation(SQUARES["tanh"], float(q))) for q in qs]
    assert jax.jit(lambda q: expectation(SQUARES["tanh"], q))(qs) == pytest.approx(looped, abs=1e-15)
    assert jax.vmap(lambda q: expectation(SQUARES["tanh"], q))(qs) == pytest.approx(looped, abs=1e-15)
    # d/dq E sin^2 = exp(-2 q), at q = 0 as well; d/dq of a probability moves with the jump.
    slopes = jax.vmap(jax.grad(lambda q: expectation(SQUARES["sin"], q)))(jnp.array([0.0, 0.5, 2.0]))
    assert slopes == pytest.approx(np.exp([0, -1, -4]), abs=1e-9)
    density = 0.3 / (2 * math.sqrt(2 * math.pi)) * math.exp(-(0.3**2) / 2)
    assert float(jax.grad(lambda q: expectation(step, q))(1.0)) == pytest.approx(density, rel=1e-9)


@pytest.mark.parametrize("c", [-0.6, 0.0, 0.7, 1.0])
def test_two_points_differentiate(x64, c):
    def exact(q1, q2, c):
        return 2 / jnp.pi * jnp.arcsin(2 * c * jnp.sqrt(q1 * q2) / jnp.sqrt((1 + 2 * q1) * (1 + 2 * q2)))

    at = (jnp.array(1.3), jnp.array(0.4), jnp.array(c))
    found = jax.grad(lambda *a: correlated_expectation("erf", *a), argnums=(0, 1, 2))(*at)
    assert np.array(found) == pytest.approx(np.array(jax.grad(exact, argnums=(0, 1, 2))(*at)), abs=1e-11)


def test_bad_input_is_one_clear_sentence():
    with pytest.raises(ValueError, match="q must be finite and not negative, got -1"):
        expectation("tanh", -1.0)
    with pytest.raises(ValueError, match=r"c must be finite and in \[-1, 1\], got 1.5"):
        correlated_expectation("tanh", 1.0, 1.0, 1.5)
    with pytest.raises(ValueError, match=r"activation .* must be elementwise, got shape"):
        expectation(lambda u: u.sum(), 1.0)
    with pytest.raises(ValueError, match="must keep the dtype, got complex64"):
        expectation(lambda u: u * 1j, 1.0)
    with pytest.raises(ValueError, match="activation 'log' must not return NaN, got NaN at -3"):
        expectation(jnp.log, 1.0)
    with pytest.raises(
        ValueError, match=r"must have a second moment under every Gaussian, .*infinite from q = 0.25 on"
    ):
        expectation(lambda u: jnp.exp(u * u), 0.1)
    with pytest.raises(ValueError, match=r"q must be at most .* oscillates or grows too fast"):
        expectation(lambda u: jnp.sin(100 * u), 1e4)
    with pytest.raises(ValueError, match=r"\|mean\| \+ 12 sqrt\(q\) must be at most .* got 1e\+07"):
        line("tanh", 0.0, 1e7)
    with pytest.raises(ValueError, match="mean must be finite, got nan"):
        line("tanh", 1.0, math.nan)


def test_a_line_with_a_mean():
    # E (m + s z)_+ = m Phi(m/s) + s N(m/s); E phi' = Phi(m/s)
    m, s = -0.7, 1.3
    cdf, pdf = math.erfc(-m / s / math.sqrt(2)) / 2, math.exp(-((m / s) ** 2) / 2) / math.sqrt(2 * math.pi)
    at = line("relu", s * s, m)
    assert at.mean(at.phi) == pytest.approx(m * cdf + s * pdf, rel=1e-13)
    assert at.mean(at.slope) == pytest.approx(cdf, rel=1e-13)
    at = line("tanh", 0.0, 0.4)
    assert at.mean(at.phi) == pytest.approx(math.tanh(0.4), rel=1e-14)
