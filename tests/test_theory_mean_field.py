"""Fixed points, phases and depth scales against closed forms, published numbers and brute iteration."""

import math
import re

import jax.numpy as jnp
import numpy as np
import pytest
from mean_field_numbers import POINTS

from vgjax import theory
from vgjax.theory import critical_line, critical_point, critical_sigma_w, fixed_points, mean_field, mean_field_map
from vgjax.theory.phases import STATUSES


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
    at_edge = mean_field("tanh", critical_sigma_w("tanh", 0.2).sigma_w, 0.2)
    assert at_edge.phase == "critical"
    assert at_edge.xi_grad == at_edge.xi_c == math.inf
    every = mean_field("relu", math.sqrt(2))
    assert (every.status, every.phase, every.q_star, every.fixed_points) == ("every q is fixed", "critical", 1.0, ())
    gone = mean_field("tanh", 0.5)
    assert (gone.status, gone.q_star) == ("decays to zero", 0.0)
    assert (gone.chi, gone.q_slope) == pytest.approx((0.25, 0.25), rel=1e-10)
    grown = mean_field("gelu", 3.0, 0.1)
    assert (grown.status, grown.q_star) == ("grows without bound", math.inf)
    assert (grown.chi, grown.q_slope) == pytest.approx((4.5, 4.5), rel=1e-4)  # ReLU's, up to 1 / sqrt(1e9)
    # A jump: chi is infinite, not the 0 that automatic differentiation sees; two inputs are torn apart.
    torn = mean_field(jnp.sign, 1.5, 0.1)
    assert torn.chi == math.inf
    assert torn.phase == "chaotic"
    # C(c) = (2 / pi) asin(c): sigma_w^2 C + sigma_b^2 = c q, q = sigma_w^2 + sigma_b^2.
    assert 1.5**2 * 2 / math.pi * math.asin(torn.c_star) + 0.01 == pytest.approx(torn.c_star * torn.q_star, rel=1e-8)


def test_start_decides_between_several_fixed_points():
    low, high = fixed_points("gelu", math.sqrt(2), math.sqrt(0.05))
    assert (low.stable, high.stable) == (True, False)
    assert mean_field("gelu", math.sqrt(2), math.sqrt(0.05), start=high.q * 0.9).q_star == pytest.approx(
        low.q, rel=1e-9
    )
    assert mean_field("gelu", math.sqrt(2), math.sqrt(0.05), start=high.q * 1.1).status == "grows without bound"


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
    grid = mean_field_map(name, sigma_w, sigma_b)
    assert grid.q_star.shape == (9, 3)
    for field in ("q_star", "chi", "xi_grad", "xi_q", "c_star", "xi_c"):
        assert not np.isnan(getattr(grid, field)).any(), field
    assert set(grid.status.ravel()) <= set(STATUSES)
    for i, j in ((0, 0), (3, 1), (8, 2), (5, 0)):
        point = mean_field(name, sigma_w[i], sigma_b[j])
        assert point.status == grid.status[i, j]
        for field in ("q_star", "chi", "c_star", "c_slope"):
            assert getattr(grid, field)[i, j] == pytest.approx(getattr(point, field), rel=1e-9, abs=1e-12), field


@pytest.mark.parametrize("name", ["tanh", "silu", "sigmoid"])
def test_the_fixed_point_is_where_iteration_ends(name):
    found = mean_field(name, 1.3, 0.4)
    q = theory.trajectory(name, 1.3, 0.4, 3000).q[-1]
    assert found.q_star == pytest.approx(q, rel=1e-10)


def test_dropout():
    # Schoenholz et al. 2017: (2.5, .05), keep rate .9, recomputed to these digits.
    found = mean_field("tanh", math.sqrt(2.5), math.sqrt(0.05), dropout=0.1)
    assert (found.q_star, found.c_star) == pytest.approx((1.2640994325, 0.1922741264), abs=6e-11)
    assert found.xi_c == pytest.approx(4.44319320, abs=6e-9)
    ordered = mean_field("tanh", 1.0, 0.2, dropout=0.05)
    assert ordered.c_star < 1  # c = 1 is no fixed point any more
    assert np.all(np.isfinite(mean_field_map("tanh", np.linspace(0.5, 3, 20), [0.2], dropout=0.05).xi_c))


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
        found = [critical_sigma_w(name, b) for b in sigma_b]
        assert [point.sigma_w**2 for point in found] == pytest.approx(expected, abs=1.1e-9), name
        stability = ["unstable"] * 3 + ["stable"] if name == "gelu" else ["stable"] * 4
        assert [point.stability for point in found] == stability, name
        line = [p.sigma_w if p.is_edge else math.nan for p in found]
        assert critical_line(name, sigma_b) == pytest.approx(line, nan_ok=True), name
    assert critical_sigma_w("tanh", 0.3).sigma_w == pytest.approx(1.395583975, abs=6e-10)  # Poole et al. 2016


def test_critical_points_at_vanishing_bias():
    for name, expected in (("relu", math.sqrt(2)), ("leaky_relu(0.3)", math.sqrt(2 / 1.09)), ("linear", 1.0)):
        found = critical_sigma_w(name)
        assert (found.sigma_w, found.stability) == (pytest.approx(expected, rel=1e-12), "every q"), name
    for name, slope in (("tanh", 1.0), ("erf", 2 / math.sqrt(math.pi)), ("sin", 1.0)):
        found = critical_sigma_w(name)
        assert (found.q_star, found.stability) == (0, "stable"), name
        assert found.sigma_w == pytest.approx(1 / slope, rel=1e-10), name


def test_there_is_none_is_an_answer_with_its_reason():
    for name, sigma_b, reason in (
        ("relu", 0.3, "chi < 1 at every fixed point"),
        ("softplus", 0.1, "chi < 1 at every fixed point"),
        (jnp.sign, 0.1, "jumps at h = .*chi at every sigma_w"),
        ("gelu", 0.1, "unstable .*never reaches it"),
    ):
        found = critical_sigma_w(name, sigma_b)
        assert not found.is_edge
        assert found.reason
        assert re.search(reason, found.reason), found.reason
        assert np.isnan(critical_line(name, [sigma_b])).all()


def test_half_stable_point_of_gelu():
    # chi = 1 and slope 1 of the q map meet at q = (3 + sqrt 17) / 2, analytically.
    found = critical_point("gelu", (3 + math.sqrt(17)) / 2)
    assert (found.sigma_w**2, found.sigma_b**2) == pytest.approx((1.983058257438, 0.172922390756), abs=6e-13)
    assert found.q_slope == pytest.approx(1, abs=1e-12)
    assert found.stability == "half-stable"


def test_a_critical_point_is_a_critical_fixed_point():
    for name in ("tanh", "selu", "hard_tanh"):
        point = critical_point(name, 0.6)
        there = mean_field(name, point.sigma_w, point.sigma_b)
        assert (there.q_star, there.chi) == pytest.approx((0.6, 1.0), rel=1e-9)
    assert critical_point("relu", 0.6).stability == "every q"
    assert "below 0" in critical_point("softplus", 0.6).reason


def test_bad_input_is_one_clear_sentence():
    with pytest.raises(ValueError, match="sigma_w must be finite and not negative, got -1"):
        mean_field("tanh", -1.0, 0.1)
    with pytest.raises(ValueError, match="sigma_b must be finite and not negative, got inf"):
        mean_field("tanh", 1.0, math.inf)
    with pytest.raises(ValueError, match="sigma_w must be a number, got shape"):
        mean_field("tanh", np.ones(3), 0.1)
    with pytest.raises(ValueError, match="sigma_b must be a non-empty one-dimensional grid"):
        mean_field_map("tanh", [1.0], [])
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), got 1"):
        mean_field("tanh", 1.0, 0.1, dropout=1)
    with pytest.raises(ValueError, match="start must be positive and finite, got 0"):
        mean_field("tanh", 1.0, 0.1, start=0)
    with pytest.raises(ValueError, match="q must be positive and finite, got 0"):
        critical_point("tanh", 0)
    with pytest.raises(ValueError, match="did you mean 'tanh'"):
        critical_sigma_w("tanhh", 0.1)
    with pytest.raises(ValueError, match="second moment"):
        mean_field(lambda u: jnp.exp(u * u), 1.0, 0.1)
