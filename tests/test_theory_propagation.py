"""Layer by layer against closed forms, published sequences, and quadrature that shares nothing with the tables."""

import math

import numpy as np
import pytest

from vgjax.theory import correlated_expectation, critical, mean_field, propagate
from vgjax.theory._gaussian import line

COMPUTES = True


def relu_angles(depth: int) -> np.ndarray:
    """1 - c_l of critical ReLU from c_0 = 0, in float64, from the arc-cosine map of the angle without cancellation."""
    angle, out = math.pi / 2, [1.0]
    for _ in range(depth):
        # (sin t - t cos t), by its series where the difference would cancel
        rest = math.sin(angle) - angle * math.cos(angle) if angle > 0.02 else angle**3 / 3 - angle**5 / 30
        after = 2 * math.sin(angle / 2) ** 2 - rest / math.pi
        angle = 2 * math.asin(math.sqrt(after / 2))
        out.append(after)
    return np.array(out)


def test_critical_relu():
    # From c_0 = 0: published to these digits; 1 - c_l ~ 9 pi^2 / (2 l^2).
    found = propagate("relu", math.sqrt(2), 0.0, 10, c0=0.0)
    assert found.c[[1, 2, 5, 10]] == pytest.approx([0.318309886184, 0.493731090200, 0.735946350628, 0.871535516022])
    assert found.q == pytest.approx(np.ones(11), rel=1e-13)
    deep = propagate("relu", math.sqrt(2), 0.0, 10**5, c0=0.0).one_minus_c
    exact = relu_angles(10**5)
    assert deep[[100, 10**4, 10**5]] == pytest.approx(exact[[100, 10**4, 10**5]], rel=1e-7)
    assert deep[-1] * 1e10 == pytest.approx(9 * math.pi**2 / 2, rel=1e-3)


def test_critical_tanh_decays_like_one_over_depth():
    # beta = 2 / (sigma_w^2 q E phi''^2), Hayou et al. 2019, proposition 3: 1 - c_l ~ beta / l.
    edge = critical("tanh", math.sqrt(0.05))
    found = propagate("tanh", edge.sigma_w, math.sqrt(0.05), 10**5, q0=edge.q_star, c0=0.5)
    on = line("tanh", edge.q_star)
    beta = 2 / (edge.sigma_w**2 * edge.q_star * on.mean((2 * on.phi * on.slope) ** 2))
    assert found.one_minus_c[-1] * 10**5 == pytest.approx(beta, rel=3e-3)  # corrections ~ ln l / l
    assert abs(found.log_chi[-1]) < 1e-8


def test_critical_tanh_without_bias():
    # K_l at sigma_w = 1 from K_0 = 1, published to these digits.
    q = propagate("tanh", 1.0, 0.0, 1000).q[[1, 2, 5, 10, 100, 1000]]
    published = (0.3942944904, 0.2364504105, 0.1034406081, 0.05220008279, 0.0050690192, 0.0005011639105)
    assert q == pytest.approx(published, rel=1e-9)


@pytest.mark.parametrize("name", ["tanh", "gelu", "hard_tanh"])
def test_two_inputs_of_unequal_norms(name):
    sigma_w, sigma_b, q, c = 1.6, 0.3, np.array([0.4, 2.5]), -0.4
    found = propagate(name, sigma_w, sigma_b, 6, q0=tuple(q), c0=c)
    for l in range(7):
        assert found.q[:, l] == pytest.approx(q, rel=1e-11)
        assert found.c[l] == pytest.approx(c, abs=1e-11)
        squares = [float(correlated_expectation(name, one, one, 1.0)) for one in q]
        product = float(correlated_expectation(name, *q, c))
        q = sigma_w**2 * np.array(squares) + sigma_b**2
        c = (sigma_w**2 * product + sigma_b**2) / math.sqrt(q[0] * q[1])


def test_propagation_ends_at_the_fixed_points():
    for sigma_w, dropout in ((1.0, 0.0), (2.0, 0.0), (1.5, 0.1)):
        there = mean_field("tanh", sigma_w, 0.3, dropout=dropout)
        found = propagate("tanh", sigma_w, 0.3, 400, q0=(0.5, 2.0), c0=0.2, dropout=dropout)
        assert found.q[:, -1] == pytest.approx([there.q_star] * 2, rel=1e-10)
        assert found.c[-1] == pytest.approx(there.c_star, rel=1e-8)
        assert np.diff(found.log_chi[0])[-1] == pytest.approx(math.log(there.chi), rel=1e-9)


def test_approach_is_that_of_the_depth_scale():
    there = mean_field("tanh", 1.0, 0.3)
    found = propagate("tanh", 1.0, 0.3, 300, q0=there.q_star, one_minus_c0=0.01)
    ratio = found.one_minus_c[300] / found.one_minus_c[299]
    assert -1 / math.log(ratio) == pytest.approx(there.xi_c, rel=1e-9)  # 1 - c is 1e-50 there: never subtracted from


def test_beyond_the_float_range():
    vanishing = propagate("tanh", 0.5, 0.0, 2000)
    assert vanishing.log_chi[-1] == pytest.approx(2000 * math.log(0.25), rel=1e-3)
    assert vanishing.q[-1] == 0
    exploding = propagate("relu", 2.0, 0.0, 1200, c0=0.5)
    assert exploding.q[-1] == math.inf
    assert exploding.log_chi[-1] == pytest.approx(1200 * math.log(2), rel=1e-9)
    assert exploding.one_minus_c[900] == pytest.approx(propagate("relu", 2**0.5, 0.0, 900, c0=0.5).one_minus_c[-1])


def test_scales_by_layer():
    weights = np.linspace(1, 2, 5)
    found, q = propagate("tanh", weights, 0.1, None), 1.0
    for l, sigma_w in enumerate(weights):
        on = line("tanh", q)
        assert np.diff(found.log_chi)[l] == pytest.approx(math.log(sigma_w**2 * on.mean(on.slope**2)), rel=1e-11)
        q = sigma_w**2 * on.mean(on.phi**2) + 0.01
        assert found.q[l + 1] == pytest.approx(q, rel=1e-12)


def test_a_grid_is_its_points():
    # Unequal norms and negative correlations among them, a signal that dies and one that leaves the float range.
    sigma_w, c0 = np.array([0.02, 1.0, 1.7]), np.array([[0.3], [-0.5]])
    found = propagate("tanh", sigma_w, 0.0, 120, q0=(1.0, 0.5), c0=c0, dropout=0.1)
    assert found.q.shape == found.log_chi.shape == (2, 2, 3, 121)
    assert found.one_minus_c.shape == (2, 3, 121)
    for i, j in ((0, 0), (0, 2), (1, 1), (1, 2)):
        alone = propagate("tanh", sigma_w[j], 0.0, 120, q0=(1.0, 0.5), c0=c0[i, 0], dropout=0.1)
        assert found.q[:, i, j] == pytest.approx(alone.q, rel=1e-12)
        assert found.log_chi[:, i, j] == pytest.approx(alone.log_chi, rel=1e-12)
        assert found.one_minus_c[i, j] == pytest.approx(alone.one_minus_c, rel=1e-9, nan_ok=True)
    assert np.isnan(found.one_minus_c[0, 0, -1])
    assert np.isfinite(found.one_minus_c[:, 1:]).all()


def test_scales_by_layer_on_a_grid():
    weights, bias = np.array([[1.0, 1.5, 2.0], [0.5, 0.6, 0.7]]), np.array([[0.1], [0.2]])
    found = propagate("gelu", weights, bias, None, c0=0.4)
    for i in range(2):
        alone = propagate("gelu", weights[i], bias[i, 0], None, c0=0.4)
        assert found.q[i] == pytest.approx(alone.q, rel=1e-13)
        assert found.c[i] == pytest.approx(alone.c, rel=1e-12)


def test_bad_input_is_one_clear_sentence():
    with pytest.raises(ValueError, match="q0 must be finite and positive, got 0"):
        propagate("tanh", 1.0, 0.0, 3, q0=0.0)
    with pytest.raises(ValueError, match="two inputs need c0, their correlation at the start, got q0 of two alone"):
        propagate("tanh", 1.0, 0.0, 3, q0=(1.0, 2.0))
    with pytest.raises(ValueError, match="a start is given by c0 or by one_minus_c0, got both"):
        propagate("tanh", 1.0, 0.0, 3, c0=0.5, one_minus_c0=0.5)
    with pytest.raises(ValueError, match="depth must be given where the scales have no axis of layers, got None"):
        propagate("tanh", 1.0, 0.0, None)
    with pytest.raises(ValueError, match="q0 must be a variance or a tuple of two, got a tuple of 3"):
        propagate("tanh", 1.0, 0.0, 3, q0=(1.0, 1.0, 1.0), c0=0.5)
    with pytest.raises(ValueError, match=r"1 - one_minus_c0 must be finite and in \[-1, 1\], got -1.5"):
        propagate("tanh", 1.0, 0.0, 3, one_minus_c0=2.5)
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        propagate("tanh", 1.0, 0.0, 0)
