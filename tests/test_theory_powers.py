"""Activations of any degree at 0, steps, poles and exponentials: closed forms, or one sentence before any work."""

import math
import re
import time

import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from vgjax.theory import critical, expectation, mean_field, moments, normalization, propagate

COMPUTES = True

Q = np.array([1e-200, 1e-20, 1e-8, 1e-3, 1.0, 1e4, 1e12])


def power(p):
    return lambda h: jnp.abs(h) ** p


@pytest.mark.parametrize("p", [1.01, 1.3, 2.0, 2.5, 3.0])
def test_powers_of_the_absolute_value(p):
    # E |u|^2p = (2q)^p gamma(p + 1/2) / sqrt(pi), and the slope's is p^2 times that of p - 1.
    def moment(p, q):
        return (2 * q) ** p * math.gamma(p + 0.5) / math.sqrt(math.pi)

    phi, unit = power(p), moment(p, 1.0)
    found = moments(phi, Q)
    # |h|^1.01 is resolved to 1e-8, since its kink is found to 1e-14 and not at 0 itself.
    tolerance = 1e-6 if p % 0.5 else 1e-10
    inside = slice(2, 6) if p % 0.5 else slice(None)
    with np.errstate(under="ignore", over="ignore"):
        assert found.square[inside] == pytest.approx(moment(p, Q)[inside], rel=tolerance)
        assert found.slope_square[inside] == pytest.approx(p * p * moment(p - 1, Q)[inside], rel=tolerance)
    # q = w^2 unit q^p: unstable for p > 1, with q = 0 below it, where nothing is left.
    small = mean_field(phi, 0.2)
    if p >= 1.3:
        (only,) = small.fixed_points
        assert only.q == pytest.approx((0.04 * unit) ** (1 / (1 - p)), rel=1e-6)
        assert (only.stable, only.q_slope) == (False, pytest.approx(p, rel=1e-6))
    assert (small.status, small.q_star, small.chi, small.q_slope) == ("decays to zero", 0, 0, 0)
    if p == 2:
        # C(c) = (1 + 2 c^2) / 3 at every q: 1/2 attracts, 1 repels.
        assert (small.c_star, small.c_slope) == pytest.approx((0.5, 2 / 3), rel=1e-9)
    assert "q* = 0 is stable with chi = 0" in critical(phi).reason


def test_degree_two_only_near_zero():
    phi = mean_field(lambda h: h * jnp.tanh(h), 0.5)
    assert (phi.status, phi.q_star, phi.chi, phi.q_slope, phi.phase) == ("decays to zero", 0, 0, 0, "ordered")
    series = propagate(lambda h: h * jnp.tanh(h), 0.5, 0.0, 3, q0=1e-6)
    # E phi^2 = 3 q^2, E phi'^2 = 4 q, to order q.
    assert series.q[1:3] == pytest.approx([0.25 * 3e-12, 0.25 * 3 * (0.75e-12) ** 2], rel=1e-4)
    assert series.log_chi[1] == pytest.approx(math.log(0.25 * 4e-6), abs=1e-4)


def test_slopes_without_a_mean_square():
    for phi, square in ((power(0.5), Q * 0 + np.sqrt(2 * Q / math.pi)), (lambda h: jnp.log(jnp.abs(h)), None)):
        found = moments(phi, Q[2:6])
        assert np.isinf(found.slope_square).all()
        if square is not None:
            assert found.square == pytest.approx(square[2:6], rel=1e-10)
    at = mean_field(power(0.5), 1.0, 0.3)
    assert (at.chi, at.phase) == (math.inf, "chaotic")
    assert at.q_star == pytest.approx(math.sqrt(2 * at.q_star / math.pi) + 0.09, rel=1e-10)


def test_steps():
    found = moments(lambda h: (h > 0.3) * 1.0, np.array([1e-4, 3e-3, 0.1, 10.0]))
    with mp.workdps(40):
        expected = [float(mp.erfc(mp.mpf(0.3) / mp.sqrt(2 * mp.mpf(q))) / 2) for q in (1e-4, 3e-3, 0.1, 10.0)]
    assert found.square == pytest.approx(expected, rel=1e-9)
    assert np.isinf(found.slope_square).all()


def test_growth_faster_than_powers():
    q = np.array([1.0, 20.0, 100.0, 150.0])
    found = moments(jnp.exp, q)
    assert found.square == pytest.approx(np.exp(2 * q), rel=1e-10)
    assert found.growth == pytest.approx(2 * q * np.exp(2 * q), rel=1e-10)
    grown = mean_field(jnp.exp, 2.0, 1.0)
    assert (grown.status, grown.q_star, grown.chi) == ("grows without bound", math.inf, math.inf)
    assert (grown.c_star, grown.xi_c) == (0, 0)


def test_fixed_points_beyond_the_table():
    # erf: E phi^2 = (2 / pi) asin(2 q / (1 + 2 q)).
    def after(q, w, b):
        return w * w * 2 / mp.pi * mp.asin(2 * q / (1 + 2 * q)) + b * b

    for w, b in ((0.5, 1e-10), (0.3, 1e-30), (1e6, 0.1), (1e12, 0.0)):
        found = mean_field("erf", w, b)
        with mp.workdps(80):
            w, b = mp.mpf(w), mp.mpf(b)
            start = (b * b / (1 - w * w * 4 / mp.pi)) if w < 1 else w * w
            q = start
            for _ in range(200):  # contracts
                q = after(q, w, b)
        assert found.q_star == pytest.approx(float(q), rel=1e-9)
        assert found.status in ("converged", "several fixed points")


def test_no_moments_is_one_sentence_before_any_work():
    for phi, words in (
        (lambda h: 1 / h, r"a pole like \|h - a\|\^-1, got one at a = .*: E phi\^2 is infinite"),
        (lambda h: 1 / (h - 0.7), r"a pole like \|h - a\|\^-1, got one at a = 0\.7: E phi\^2 is infinite"),
        (jnp.tan, r"a pole like \|h - a\|\^-1, got one at a = -?1\.5708: E phi\^2 is infinite"),
        (power(-0.3), r"a pole like \|h - a\|\^-0\.3, got one at a = .*: E phi\^2 is beyond quadrature"),
        (power(0.75), r"a slope like \|h - a\|\^-0\.25, got one at a = .*: E phi'\^2 is beyond quadrature"),
    ):
        began = time.process_time()
        for call in (
            lambda phi: mean_field(phi, 1.0, 0.1),
            lambda phi: critical(phi, 0.1),
            lambda phi: propagate(phi, 1.0, 0.1, 5),
            lambda phi: moments(phi, 1.0),
            lambda phi: expectation(phi, 1.0),
        ):
            with pytest.raises(ValueError, match="activation .* must not have " + words) as refused:
                call(phi)
            assert "\n" not in str(refused.value)
        assert time.process_time() - began < 20


def test_too_many_pieces_for_correlations_is_one_sentence():
    steps = mean_field(jnp.round, 1.2, 0.3)
    assert steps.chi == math.inf
    with pytest.raises(ValueError, match=r"must have fewer pieces for correlations, got \d+ up to") as refused:
        _ = steps.c_star
    assert re.fullmatch(r"[^\n]+", str(refused.value))


def test_scales_beyond_floats_are_one_sentence():
    calls = (
        lambda w: mean_field("tanh", w, 0.1),
        lambda w: propagate("tanh", 1.0, w, 5),
        lambda w: normalization.norm_on_preactivations("tanh", w),
        lambda w: normalization.rms_norm_on_activations("tanh", w),
        lambda w: normalization.layer_norm_on_activations("tanh", w),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"sigma_[wb] must be finite and at most 1e75, got 1e\+300"):
            call(1e300)
