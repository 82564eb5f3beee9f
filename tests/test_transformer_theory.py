"""Mean field of transformers: exact integrals, derived numbers, and drawn networks."""

import dataclasses
import functools
import itertools
import math
import re
from typing import Any

import jax
import numpy as np
import pytest
from scipy import special, stats

import vgjax as vg
from vgjax.theory import transformer
from vgjax.theory._softmax import softmax_moments

N, SEEDS = 8, 32

# --- weights of a softmax ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [1e-3, 1.0, 9.0, 36.0])
def test_two_weights_are_the_logistic_of_one_difference(variance: float) -> None:
    """n = 2: A = (s, 1 - s), s = logistic(d), d ~ N(0, 2 tau^2), and a pair of these of correlation rho."""
    root, rho = math.sqrt(2 * variance), 0.6
    order = 400
    z, weights = np.polynomial.legendre.leggauss(order)
    z, weights = 9 * z, 9 * weights * stats.norm.pdf(9 * z)
    first = special.expit(root * z)[:, None]
    second = special.expit(root * (rho * z[:, None] + math.sqrt(1 - rho**2) * z))
    both = weights[:, None] * weights
    products = first * second + (1 - first) * (1 - second)
    squares = first[:, 0] ** 2 + (1 - first[:, 0]) ** 2
    cubes = first**2 * second + (1 - first) ** 2 * (1 - second)
    expected = (
        np.sum(weights * squares),
        np.sum(weights * (first[:, 0] ** 3 + (1 - first[:, 0]) ** 3)),
        np.sum(weights * squares**2),
        np.sum(both * products),
        np.sum(both * cubes),
        np.sum(both * products**2),
    )
    np.testing.assert_allclose(softmax_moments(2, variance, rho), expected, rtol=1e-9)


@pytest.mark.parametrize("n", [2, 5, 64])
def test_rows_that_are_equal_independent_or_flat(n: int) -> None:
    equal, independent, flat = (softmax_moments(n, v, rho) for v, rho in ((2.0, 1.0), (2.0, 0.0), (0.0, 0.3)))
    np.testing.assert_allclose(equal[3:], equal[:3], rtol=1e-10)
    assert independent.product == pytest.approx(1 / n, rel=1e-10)  # E A = 1 / n of every weight
    assert flat == (1 / n, n**-2, n**-2, 1 / n, n**-2, n**-2)
    # Over rows of weak logits, to first order in tau^2: E sum A^2 = (1 + tau^2 (1 - 1/n)) / n.
    weak = softmax_moments(n, 1e-5, 0.5)
    assert n * weak.square - 1 == pytest.approx(1e-5 * (1 - 1 / n), rel=1e-4)
    assert n * weak.product - 1 == pytest.approx(0.5e-5 * (1 - 1 / n), rel=1e-4)


def test_logits_too_large_for_the_integrals_are_not_a_number() -> None:
    assert np.isnan(softmax_moments(4, 145.0, 0.5)).all()
    # One weight takes all: 1 - E sum A^2 falls like 1 / tau.
    near = [1 - softmax_moments(4, tau**2, 0.5).square for tau in (6.0, 12.0)]
    assert near[0] / near[1] == pytest.approx(2, rel=0.1)
    found = transformer.propagate("relu", 40, tokens=4, norm=None, sigma_w=2.0)
    first = int(np.argmax(np.isnan(found.log_gain)))
    assert 0 < first < 40
    assert np.isnan(found.log_gain[first:]).all()
    assert np.isfinite(found.log_gain[:first]).all()


@pytest.mark.parametrize(("n", "variance", "rho"), [(3, 2.0, 0.4), (16, 4.0, -0.06), (200, 1.0, 0.9), (8, 100.0, 0.5)])
def test_moments_are_those_of_drawn_softmaxes(n: int, variance: float, rho: float) -> None:
    rng, draws = np.random.default_rng(0), 2_000_000 // n
    z = rng.normal(size=(2, draws, n))
    a, b = (special.softmax(math.sqrt(variance) * x, axis=1) for x in (z[0], rho * z[0] + math.sqrt(1 - rho**2) * z[1]))
    sums = [(a**2).sum(1), (a**3).sum(1), (a**2).sum(1) ** 2, (a * b).sum(1), (a * a * b).sum(1), (a * b).sum(1) ** 2]
    for exact, drawn in zip(softmax_moments(n, variance, rho), sums, strict=True):
        assert abs(exact - drawn.mean()) < 4 * drawn.std() / math.sqrt(draws)


# --- derived numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("rms", (0.446287103, 1.200856748, 2.058433294)),
        ("derf", (0.120274408, 0.473446850, 1.318119674)),
    ],
)
def test_uniform_attention_has_the_numbers_derived_by_hand(norm: str, expected: tuple[float, ...]) -> None:
    """16 orthogonal tokens, ReLU, all scales 1, queries and keys at 0: blocks 1, 4, 12. The first by hand: attention
    gives u = 1 + 1/16 (of q the same), the feed-forward layer u = u + 1/2."""
    found = transformer.propagate("relu", 12, tokens=16, norm=norm, sigma_qk=0.0)
    np.testing.assert_allclose(found.log_gain[[1, 4, 12]], expected, atol=5e-9)
    if norm == "rms":
        assert found.log_gain[1] == pytest.approx(math.log(1 + 1 / 16 + 1 / 2), rel=1e-12)


ZETA = {"relu": 1.0, "gelu": 1.072031598, "silu": 1.066634241}


@pytest.mark.parametrize(("phi", "gated"), [*itertools.product(ZETA, (False, True))])
def test_feed_forward_layers_have_their_exponents(phi: str, gated: bool) -> None:
    """Without attention E g^2 is the product of 1 + zeta / (l + q0 / c): zeta = E |grad f|^2 / E f^2, one more for a
    gate; c = E f^2 adds to q at every block."""
    depth = 100 if phi == "relu" else 20
    found = transformer.propagate(phi, depth, tokens=2, sigma_vo=0.0, gated=gated)
    c = found.q[1] - 1
    expected = np.cumsum(np.log1p((ZETA[phi] + gated) / (np.arange(depth) + 1 / c)))
    np.testing.assert_allclose(found.log_gain[1:], expected, rtol=1e-8)
    np.testing.assert_allclose(found.q, 1 + c * np.arange(depth + 1), rtol=1e-10)
    if phi == "relu" and not gated:
        assert math.exp(found.log_gain[100]) == pytest.approx(51, rel=1e-12)


def test_where_the_norm_stands_decides_how_the_gradient_grows() -> None:
    """Peri-LN: (q0 + L) / q0 whatever the kernels; nGPT with ReLU: 1 at any step; post-RMS with ReLU: 1 a block."""
    call = functools.partial(transformer.propagate, "relu", 9, tokens=3, sigma_vo=0.0)
    for sigma_w in (0.3, 3.0):
        peri = call(residual="sandwich", q0=2.0, sigma_w=sigma_w)
        # Attention is there, but nothing: its norm leaves it so.
        np.testing.assert_allclose(np.exp(peri.log_gain), (2 + np.arange(10)) / 2, rtol=1e-12)
    for step in (0.05, 0.6):
        np.testing.assert_allclose(call(residual="normalized", skip=1 - step, branch=step).log_gain, 0, atol=1e-12)
    np.testing.assert_allclose(call(residual="post", sigma_w=1.7).log_gain, 0, atol=1e-12)


def test_branches_that_shrink_with_depth_keep_the_gradient() -> None:
    """A branch of E f^2 = 1, zeta = 1 (ReLU, W_2 at sqrt(2)): E g^2 = 1 + L, 2 and 1 + 1/L for L^0, L^-1/2 and 1/L; and
    1 + H_L for l^-1/2 behind the norm (harmonic number), as long as phi is homogeneous."""
    for depth in (1, 20):
        call = functools.partial(
            transformer.propagate, "relu", depth, tokens=2, sigma_vo=0.0, sigma_1=1.0, sigma_2=math.sqrt(2)
        )
        for power, expected in ((0.0, 1 + depth), (-0.5, 2), (-1.0, 1 + 1 / depth)):
            assert math.exp(call(branch=depth**power).log_gain[-1]) == pytest.approx(expected, rel=1e-12)
        l = np.arange(1, depth + 1)
        scaled = call(norm_gain=l**-0.5)
        np.testing.assert_allclose(scaled.q[1:], 1 + np.cumsum(1 / l), rtol=1e-12)
        np.testing.assert_allclose(np.exp(scaled.log_gain[1:]), 1 + np.cumsum(1 / l), rtol=1e-12)


def test_erf_in_place_of_a_norm_grows_like_a_stretched_exponential() -> None:
    """h' = h + W erf(alpha h), sigma_w = q0 = 1, at depths 10, 100, 1000: E erf^2 = (2 / pi) asin(2 a^2 q / (1 + 2 a^2
    q)), E erf'^2 a^2 = 4 a^2 / (pi sqrt(1 + 4 a^2 q))."""
    for alpha, expected in ((0.1, (0.123941, 1.219098, 6.800560)), (0.5, (1.653504, 7.017230, 21.791233))):
        stretched = vg.Activation(f"erf of {alpha} h", lambda h, a=alpha: jax.scipy.special.erf(a * h))
        found = vg.theory.residual.propagate(stretched, 1000, sigma_w=1.0, sigma_v=1.0)
        np.testing.assert_allclose(found.log_chi[[10, 100, 1000]], expected, atol=2e-6)


def test_what_is_nothing_stays_nothing_and_what_leaves_the_floats_is_no_number() -> None:
    """Attention of scale 0 behind derf; and q = 900^l past 1e308 at l = 105, where ln u is no number and not -inf."""
    nothing = transformer.propagate("relu", 2, tokens=4, norm="derf", residual="sandwich", sigma_vo=0.0, sigma_w=0.0)
    np.testing.assert_array_equal(nothing.log_gain, 0)
    grown = transformer.propagate(None, 120, tokens=4, norm=None, skip=0.0, sigma_vo=30.0, sigma_qk=0.0, p0=1.0)
    assert not np.isneginf(grown.log_gain).any()
    assert np.isnan(grown.log_gain[-1])
    assert np.isfinite(grown.log_gain[:50]).all()


# --- drawn networks -------------------------------------------------------------------------------------------------


def drawn(width: int, depth: int, given: dict[str, Any], **options: Any) -> np.ndarray:
    """ln gain^2 of draws, on orthogonal tokens, shape ``(SEEDS, depth + 1)``."""
    options = {"norm": vg.norm("rms", epsilon=0.0), "feed_forward": "relu"} | options
    net = vg.transformer(width=width, depth=depth, heads=4, inputs=(N, width), **options)
    net = dataclasses.replace(net, stem=None)  # the tokens themselves: a drawn stem makes them a little alike
    x = np.linalg.qr(np.random.default_rng(0).normal(size=(width, N)))[0].T * math.sqrt(width)
    m = vg.sweep(net, x.astype(np.float32), key=jax.random.key(1), seeds=SEEDS, skip=[1.0], **given)
    return 2 * np.asarray(m.log_gain, float)[:, 0]


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "pre": ({"sigma_qk": 1.2}, {}, {}),
    "sandwich, swiglu": (
        {"sigma_qk": 1.0, "sigma_w": 1.3},
        {"residual": "sandwich", "feed_forward": "swiglu"},
        {"residual": "sandwich", "activation": "silu", "gated": True},
    ),
    "parallel, derf": (
        {"sigma_qk": 1.3, "sigma_b": 0.4, "sigma_alpha": 1.4},
        {"residual": "parallel", "norm": "derf"},
        {"residual": "parallel", "norm": "derf"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_drawn_networks_have_the_gain_of_theory(name: str) -> None:
    """As width goes to infinity: what is left of the gap if it falls like 1 / width, within 4 standard errors."""
    given, options, told = CASES[name]
    depth, gaps, errors = 4, [], []
    for width in (64, 128):
        squares = np.exp(drawn(width, depth, given, **options))
        expected = transformer.propagate(**{"activation": "relu", "depth": depth, "tokens": N} | told, **given).log_gain
        gaps.append(np.log(squares.mean(axis=0)) - expected)
        errors.append(squares.std(axis=0, ddof=1) / squares.mean(axis=0) / math.sqrt(SEEDS))
    gap, error = 2 * gaps[1] - gaps[0], np.sqrt(4 * errors[1] ** 2 + errors[0] ** 2)
    assert np.all(np.abs(gap[1:]) < 4 * error[1:])
    assert np.all(error[1:] < 0.15)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": 1}, "tokens must be at least 2, got 1"),
        ({"p0": 1.5}, "p0 must lie in [-q0 / 7, q0] for 8 tokens, got 1.5"),
        ({"residual": "pst"}, "did you mean 'post'?"),
        ({"norm": "group"}, "norm must be one of rms, layer, dyt, derf, got 'group'"),
        ({"sigma_x": 1.0}, "scale must be one of"),
        ({"branch": np.ones(4)}, "branch must be a number or have shape (3,), one per layer, got shape (4,)"),
        ({"q0": 0.0}, "q0 must be finite and positive, got 0"),
    ],
)
def test_what_theory_does_not_cover_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        transformer.propagate(**{"activation": "relu", "depth": 3, "tokens": N} | given)
