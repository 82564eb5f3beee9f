"""Fixed points, phases and depth scales against closed forms, published numbers and brute iteration."""

import math
import re

import jax.numpy as jnp
import numpy as np
import pytest
from mean_field_numbers import POINTS

from vgjax.theory import _critical, critical, mean_field, moments, propagate
from vgjax.theory._mean_field import STATUSES

COMPUTES = True


def tanh_5(u):
    return jnp.tanh(5 * u)


def closest_to_a_fold(expected) -> float:
    return min((abs(point[2] - 1) for point in expected), default=1.0)


@pytest.mark.parametrize("name", sorted({point[0] for point in POINTS}))
def test_every_reference_point(name):
    # 1e-8 relative (1e-4 within 1e-3 of a fold, where 1 - slope has lost that many digits).
    for _, variance_w, variance_b, expected in (point for point in POINTS if point[0] == name):
        tolerance = 1e-8 if closest_to_a_fold(expected) > 1e-3 else 1e-4
        sigma_w, sigma_b = math.sqrt(variance_w), math.sqrt(variance_b)
        found = mean_field(name, sigma_w, sigma_b)
        assert len(found.fixed_points) == len(expected), (variance_w, variance_b)
        for here, (q, chi, slope, stable, *_) in zip(found.fixed_points, expected, strict=True):
            assert (here.q, here.chi, here.q_slope) == pytest.approx((q, chi, slope), rel=tolerance)
            assert here.stable == stable
        stable = [point for point in expected if point[3]]
        if not stable:
            assert found.status in ("decays to zero", "grows without bound", "every q is fixed")
            continue
        assert found.status == ("several fixed points" if len(expected) > 1 else "converged")
        q, chi, slope, _, *correlation = stable[0]
        assert found.q_star == pytest.approx(q, rel=tolerance)
        for scale, factor in ((found.xi_grad, chi), (found.xi_q, slope)):
            assert scale == pytest.approx(-1 / math.log(factor), rel=tolerance)
        if correlation:
            assert found.c_star == pytest.approx(correlation[0], rel=1e-8, abs=1e-12)
            assert found.xi_c == pytest.approx(-1 / math.log(correlation[1]), rel=1e-8)


def test_published_points_of_tanh():
    # Schoenholz et al. 2017, sigma_b^2 = .05: (sigma_w^2, q*, chi, c*, xi_c, |xi_grad|), recomputed to these digits.
    rows = (
        (1.0, 0.193592520, 0.759031647, 1.0, 3.6269756, 3.626976),
        (1.4, 0.364884273, 0.911032677, 1.0, 10.7323184, 10.732318),
        (1.6, 0.474251650, 0.963686500, 1.0, 27.0348858, 27.034886),
        (2.0, 0.721761873, 1.047666000, 0.744082420, 25.2134148, 21.475434),
        (2.5, 1.063958377, 1.133515699, 0.446804232, 11.7955975, 7.979315),
        (3.0, 1.428008462, 1.208934424, 0.299317642, 9.0514557, 5.270389),
    )
    for variance, *expected in rows:
        found = mean_field("tanh", math.sqrt(variance), math.sqrt(0.05))
        assert (found.q_star, found.chi, found.c_star) == pytest.approx(tuple(expected[:3]), abs=6e-10)
        assert (found.xi_c, abs(found.xi_grad)) == pytest.approx(tuple(expected[3:]), abs=6e-7)
    # Poole et al. 2016: sigma_w = 2.5, sigma_b = .3.
    found = mean_field("tanh", 2.5, 0.3)
    assert (found.q_star, found.chi, found.c_star) == pytest.approx(
        (4.0791238753, 1.5852247650, 0.1221037473), abs=6e-11
    )


def test_phases_and_statuses_are_named():
    assert mean_field("tanh", 0.9, 0.1).phase == "ordered"
    assert mean_field("tanh", 2.0, 0.1).phase == "chaotic"
    at_edge = mean_field("tanh", critical("tanh", 0.2).sigma_w, 0.2)
    assert at_edge.phase == "critical"
    assert at_edge.xi_grad == at_edge.xi_c == math.inf
    every = mean_field("relu", math.sqrt(2))
    assert (every.status, every.phase, every.q_star, every.fixed_points) == ("every q is fixed", "critical", 1.0, ())
    gone = mean_field("tanh", 0.5)
    assert (gone.status, gone.q_star) == ("decays to zero", 0.0)
    assert (gone.chi, gone.q_slope) == pytest.approx((0.25, 0.25), rel=1e-10)
    grown = mean_field("gelu", 3.0, 0.1)
    assert (grown.status, grown.q_star) == ("grows without bound", math.inf)
    assert (grown.chi, grown.q_slope) == pytest.approx((4.5, 4.5), rel=1e-9)  # ReLU's: the limits, not the table's end
    # SELU beyond is ReLU up to its plateau, which no longer matters: identical inputs stay together, critically.
    far = mean_field("selu", 3.0, 0.5)
    assert (far.q_star, far.c_star, far.xi_c) == (math.inf, 1.0, math.inf)
    # A jump: chi is infinite, not the 0 that automatic differentiation sees; two inputs are torn apart.
    torn = mean_field(jnp.sign, 1.5, 0.1)
    assert torn.chi == math.inf
    assert torn.phase == "chaotic"
    # C(c) = (2 / pi) asin(c): sigma_w^2 C + sigma_b^2 = c q, q = sigma_w^2 + sigma_b^2.
    assert 1.5**2 * 2 / math.pi * math.asin(torn.c_star) + 0.01 == pytest.approx(torn.c_star * torn.q_star, rel=1e-8)


def test_q0_decides_between_several_fixed_points():
    at = ("gelu", math.sqrt(2), math.sqrt(0.05))
    low, high = mean_field(*at).fixed_points
    assert (low.stable, high.stable) == (True, False)
    assert mean_field(*at, q0=high.q * 0.9).q_star == pytest.approx(low.q, rel=1e-9)
    assert mean_field(*at, q0=high.q * 1.1).status == "grows without bound"


def test_scaling_identity():
    # tanh(5 x) at (sigma_w / 5, sigma_b / 5) is tanh at (sigma_w, sigma_b), with q in units of 1 / 25.
    for sigma_w, sigma_b in ((0.9, 0.1), (1.8, 0.3)):
        plain, scaled = mean_field("tanh", sigma_w, sigma_b), mean_field(tanh_5, sigma_w / 5, sigma_b / 5)
        assert scaled.q_star * 25 == pytest.approx(plain.q_star, rel=1e-10)
        for name in ("chi", "q_slope", "c_star", "c_slope"):
            assert getattr(scaled, name) == pytest.approx(getattr(plain, name), rel=1e-9), name


@pytest.mark.parametrize("name", ["tanh", "gelu"])
def test_a_map_is_its_points_and_has_no_nan(name):
    sigma_w, sigma_b = np.linspace(0.5, 3, 9), np.array([0.0, 0.3, 0.7])
    grid = mean_field(name, sigma_w[:, None], sigma_b)
    assert grid.q_star.shape == grid.sigma_w.shape == grid.sigma_b.shape == (9, 3)
    for field in ("q_star", "chi", "xi_grad", "xi_q", "c_star", "xi_c"):
        assert not np.isnan(getattr(grid, field)).any(), field
    assert set(grid.status.ravel()) <= set(STATUSES.values())
    for i, j in ((0, 0), (3, 1), (8, 2), (5, 0)):
        point = mean_field(name, sigma_w[i], sigma_b[j])
        assert point.status == grid.status[i, j]
        for field in ("q_star", "chi", "c_star", "c_slope"):
            assert getattr(grid, field)[i, j] == pytest.approx(getattr(point, field), rel=1e-9, abs=1e-12), field


@pytest.mark.parametrize("name", ["tanh", "silu", "sigmoid"])
def test_the_fixed_point_is_where_iteration_ends(name):
    found = mean_field(name, 1.3, 0.4)
    q = propagate(name, 1.3, 0.4, 3000).q[-1]
    assert found.q_star == pytest.approx(q, rel=1e-10)


def test_dropout():
    # Schoenholz et al. 2017: (2.5, .05), keep rate .9, recomputed to these digits.
    found = mean_field("tanh", math.sqrt(2.5), math.sqrt(0.05), dropout=0.1)
    assert (found.q_star, found.c_star) == pytest.approx((1.2640994325, 0.1922741264), abs=6e-11)
    assert found.xi_c == pytest.approx(4.44319320, abs=6e-9)
    ordered = mean_field("tanh", 1.0, 0.2, dropout=0.05)
    assert ordered.c_star < 1  # c = 1 is no fixed point any more
    assert np.all(np.isfinite(mean_field("tanh", np.linspace(0.5, 3, 20), 0.2, dropout=0.05).xi_c))


def test_scales_broadcast_in_any_order():
    sigma_w, sigma_b = np.array([1.2, 2.5, 0.7, 1.9]), np.array([0.3, 0.0, 0.3, 0.1])
    together = mean_field("tanh", sigma_w, sigma_b)
    apart = [mean_field("tanh", w, b) for w, b in zip(sigma_w, sigma_b, strict=True)]
    for field in ("q_star", "chi", "xi_q", "c_star", "xi_c"):
        alone = [float(getattr(point, field)) for point in apart]
        assert getattr(together, field) == pytest.approx(alone, rel=1e-9, abs=1e-12), field
    assert together.status.tolist() == [point.status for point in apart]
    swapped = mean_field("tanh", sigma_w, sigma_b[:, None])
    assert np.array_equal(swapped.q_star, mean_field("tanh", sigma_w[:, None], sigma_b).q_star.T)
    assert mean_field("relu", np.ones((2, 1, 3)), np.full((4, 1), 0.1)).xi_c.shape == (2, 4, 3)


def test_the_same_call_gives_the_same_bits_whatever_came_before():
    # A fresh callable: nothing is known about it. The second call needs a table that reaches further down.
    def phi(u):
        return jnp.tanh(u)

    sigma_w = np.array([1.6, 2.0, 3.0])
    first = mean_field(phi, sigma_w, 0.1).c_star
    assert mean_field(phi, 1.001, 0.0).q_star < 0.01
    assert mean_field(phi, 1.001, 0.0).c_star == pytest.approx(0, abs=1e-9)
    propagate(phi, 1.0, 0.0, 500, c0=0.5)
    assert mean_field(phi, sigma_w, 0.1).c_star.tobytes() == first.tobytes()


# --- moments --------------------------------------------------------------------------------------------------------


def test_moments_from_zero_to_infinity():
    q = np.array([0.0, 1e-250, 1e-20, 1e-3, 1.0, 1e4, 1e12, 1e200, math.inf])
    with np.errstate(over="ignore"):
        fourth = 3 * q**2
    for name, square, slope in (("relu", q / 2, 0.5), ("linear", q, 1.0), (jnp.square, fourth, 4 * q)):
        found = moments(name, q)
        assert found.square == pytest.approx(square, rel=1e-12), name
        assert found.slope_square == pytest.approx(np.broadcast_to(slope, q.shape), rel=1e-12), name
    # sin: E sin^2 = (1 - exp(-2 q)) / 2, whose table ends where quadrature no longer follows the oscillations.
    assert moments("sin", q).square == pytest.approx(-np.expm1(-2 * q) / 2, rel=1e-12)
    assert moments("sin", q[:6]).growth == pytest.approx(q[:6] * np.exp(-2 * q[:6]), rel=1e-9, abs=1e-12)
    # tanh saturates: E sech^4 -> (4 / 3) / sqrt(2 pi q), and 1 - E tanh^2 -> E sech^2 -> 2 / sqrt(2 pi q).
    far = moments("tanh", np.array([1e12, math.inf]))
    assert far.slope_square == pytest.approx([4 / 3 / math.sqrt(2e12 * math.pi), 0], rel=1e-9)
    assert 1 - far.square[0] == pytest.approx(2 / math.sqrt(2e12 * math.pi), rel=1e-6)
    assert far.square[1] == pytest.approx(1, abs=1e-9)
    # A kink at 0 leaves a correction of sqrt(q) there: SELU's E phi^2 / q comes to half of l^2 (1 + a^2).
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    assert moments("selu", 0.0).slope_square == pytest.approx(scale**2 * (1 + alpha**2) / 2, rel=1e-12)
    assert moments("sigmoid", 0.0) == pytest.approx((0.25, 0.0625, 0.0), abs=1e-13)
    assert moments(jnp.exp, 1e3).square == math.inf
    assert moments(jnp.sign, 1.0) == pytest.approx((1, math.inf, 0), abs=1e-12)


def test_moments_do_not_step_at_the_ends_of_the_table():
    for name in ("tanh", "gelu", "selu", "softplus", "sigmoid", "relu6"):
        for end in (1e-14, 1e9):
            inside, outside = (np.array(moments(name, end * factor)) for factor in (1 - 1e-7, 1 + 1e-7))
            assert inside[:2] == pytest.approx(outside[:2], rel=3e-7), (name, end)


# --- criticality ----------------------------------------------------------------------------------------------------


def test_published_critical_lines():
    # chi(q*) = 1, sigma_w^2 at sigma_b^2 = .01, .05, .1, .25; GELU's roots lie on unstable fixed points.
    table = {
        "tanh": (1.424205290, 1.760954640, 1.986072641, 2.401489235),
        "erf": (1.114280063, 1.375839007, 1.552117855, 1.880547259),
        "hard_tanh": (1.052061209, 1.165544690, 1.263405932, 1.471727699),
        "selu": (0.760232561, 0.901765892, 0.980327286, 1.101738533),
        "sin": (1.304773257, 1.502070103, 1.611811555, 1.769774791),
        "gelu": (2.982799369, 2.302519512, 2.076676194, 1.959631023),
    }
    sigma_b = np.sqrt([0.01, 0.05, 0.1, 0.25])
    for name, expected in table.items():
        found = critical(name, sigma_b)
        assert found.sigma_w**2 == pytest.approx(expected, abs=1.1e-9), name
        stability = ["unstable"] * 3 + ["stable"] if name == "gelu" else ["stable"] * 4
        assert found.stability.tolist() == stability, name
        assert np.array_equal(found.is_edge, found.stability == "stable"), name
        assert np.array_equal(found.edge, np.where(found.is_edge, found.sigma_w, np.nan), equal_nan=True), name
        for i, one in enumerate(critical(name, b) for b in sigma_b):
            assert (one.sigma_w, one.q_star) == pytest.approx((found.sigma_w[i], found.q_star[i]), rel=1e-12), name
    assert critical("tanh", 0.3).sigma_w == pytest.approx(1.395583975, abs=6e-10)  # Poole et al. 2016


def test_several_critical_points_at_one_bias_are_ranked(monkeypatch):
    # No activation at hand has more than one: two at the first bias, edges first, none at the second, one at the third.
    points = [_critical._Point(w, 0.1, 1.0, 0.5, "stable") for w in (1.3, 1.2)]
    points += [_critical._Point(1.1, 0.1, 2.0, 1.5, "unstable", "is unstable")]
    monkeypatch.setattr(_critical, "_all", lambda phi, sigma_b: [points, [], points[2:]])
    found = critical("relu", np.array([0.1, 0.2, 0.1]))
    assert found.sigma_w == pytest.approx([1.2, math.nan, 1.1], nan_ok=True)
    assert found.edge == pytest.approx([1.2, math.nan, math.nan], nan_ok=True)
    second, third = found.others
    assert second.sigma_w == pytest.approx([1.3, math.nan, math.nan], nan_ok=True)
    assert third.sigma_w == pytest.approx([1.1, math.nan, math.nan], nan_ok=True)
    assert third.stability.tolist() == ["unstable", "none", "none"]
    assert found.is_edge.tolist() == second.is_edge.tolist() == [True, False, False]


def test_critical_points_at_vanishing_bias():
    for name, expected in (("relu", math.sqrt(2)), ("leaky_relu(0.3)", math.sqrt(2 / 1.09)), ("linear", 1.0)):
        found = critical(name)
        assert (found.sigma_w, found.stability) == (pytest.approx(expected, rel=1e-12), "every q"), name
    for name, slope in (("tanh", 1.0), ("erf", 2 / math.sqrt(math.pi)), ("sin", 1.0)):
        found = critical(name)
        assert (found.q_star, found.stability) == (0, "stable"), name
        assert found.sigma_w == pytest.approx(1 / slope, rel=1e-10), name


def test_there_is_none_is_an_answer_with_its_reason():
    for name, sigma_b, reason in (
        ("relu", 0.3, "chi < 1 at every fixed point"),
        ("softplus", 0.1, "chi < 1 at every fixed point"),
        (jnp.sign, 0.1, "jumps at h = .*chi at every sigma_w"),
        ("gelu", 0.1, "unstable .*never reaches it"),
    ):
        found = critical(name, sigma_b)
        assert not found.is_edge
        assert found.reason
        assert re.search(reason, found.reason), found.reason
        assert np.isnan(critical(name, [sigma_b]).edge).all()


def test_half_stable_point_of_gelu():
    # chi = 1 and slope 1 of the q map meet at q = (3 + sqrt 17) / 2, analytically.
    found = critical("gelu", q=(3 + math.sqrt(17)) / 2)
    assert (found.sigma_w**2, found.sigma_b**2) == pytest.approx((1.983058257438, 0.172922390756), abs=6e-13)
    assert found.q_slope == pytest.approx(1, abs=1e-12)
    assert found.stability == "half-stable"


def test_a_critical_point_is_a_critical_fixed_point():
    q = np.array([[0.3, 0.6]])
    for name in ("tanh", "selu", "hard_tanh"):
        point = critical(name, q=q)
        there = mean_field(name, point.sigma_w, point.sigma_b)
        assert there.q_star == pytest.approx(q, rel=1e-9)
        assert there.chi == pytest.approx(np.ones((1, 2)), rel=1e-9)
    assert critical("relu", q=0.6).stability == "every q"
    assert "below 0" in critical("softplus", q=0.6).reason
    assert "chi at every sigma_w" in critical(jnp.sign, q=0.6).reason


def test_bad_input_is_one_clear_sentence():
    with pytest.raises(ValueError, match="sigma_w must be finite and not negative, got -1"):
        mean_field("tanh", -1.0, 0.1)
    with pytest.raises(ValueError, match="sigma_b must be finite and not negative, got inf"):
        mean_field("tanh", 1.0, math.inf)
    with pytest.raises(ValueError, match=r"scales must broadcast .*, got shapes sigma_w \(3,\), sigma_b \(2,\)"):
        mean_field("tanh", np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match=r"sigma_b must not be empty, got shape \(0,\)"):
        mean_field("tanh", [1.0], [])
    with pytest.raises(ValueError, match=r"fixed_points are those of one pair of scales, got shape \(2,\)"):
        _ = mean_field("tanh", [1.0, 2.0], 0.1).fixed_points
    with pytest.raises(ValueError, match="q must be a variance from 0 to infinity, got -1"):
        moments("tanh", [1.0, -1.0])
    with pytest.raises(ValueError, match=r"dropout must be finite and in \[0, 1\), got 1"):
        mean_field("tanh", 1.0, 0.1, dropout=1)
    with pytest.raises(ValueError, match="q0 must be finite and positive, got 0"):
        mean_field("tanh", 1.0, 0.1, q0=0)
    with pytest.raises(ValueError, match="q0 must lie between 1e-14 and 1e\\+09, got 1e-20"):
        mean_field("tanh", 1.0, 0.1, q0=1e-20)
    with pytest.raises(ValueError, match="q must be finite and positive, got 0"):
        critical("tanh", q=[1.0, 0.0])
    with pytest.raises(ValueError, match=r"critical takes sigma_b or q, got both: 0\.1 and 1\.0"):
        critical("tanh", 0.1, q=1.0)
    with pytest.raises(ValueError, match="did you mean 'tanh'"):
        critical("tanhh", 0.1)
    with pytest.raises(
        ValueError, match=r"must have a second moment under every Gaussian, .*infinite from q = 0\.25 on"
    ):
        mean_field(lambda u: jnp.exp(u * u), 1.0, 0.1)
