"""What figures compute themselves, against another way to the same number."""

import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vgjax as vg
from vgjax import theory

FIGURES = Path(__file__).parent.parent / "figures"


@pytest.fixture
def figure(monkeypatch):
    """Imports a script of `figures` at its small size."""
    monkeypatch.setenv("SIZE", "small")
    monkeypatch.syspath_prepend(str(FIGURES))
    yield importlib.import_module
    for name in {path.stem for path in FIGURES.glob("*.py")} & set(sys.modules):
        del sys.modules[name]


def test_length_and_curvature_of_a_circle_are_those_of_its_covariance(figure):
    """q c(d) of two points at an angle d is q - g d^2 / 2 + a d^4 / 24 with g = |h'|^2, a = |h''|^2 and k^2 = a / g^2:
    by the library's c map."""
    sigma_w, depth = 2.5, 5
    script, field = figure("great_circle"), theory.mean_field("tanh", sigma_w, 0.3)
    q = float(field.q_star)
    d = np.array([0.02, 0.04])
    apart = theory.propagate("tanh", sigma_w, 0.3, depth, q0=q, one_minus_c0=1 - np.cos(d)).one_minus_c[:, -1] * q
    (fourth, g) = np.linalg.solve(np.stack([-(d**4) / 24, d**2 / 2], axis=1), apart)
    expected = script.expected(sigma_w, q, float(field.chi), depth)
    np.testing.assert_allclose(expected.length[-1], 2 * np.pi * np.sqrt(g), rtol=1e-3)
    np.testing.assert_allclose(expected.curvature[-1], np.sqrt(fourth) / g, rtol=0.02)  # what d^6 leaves


def test_derivatives_along_a_circle_are_those_of_its_states(figure):
    """The states at 64 angles, differentiated by their Fourier series."""
    script = figure("great_circle")
    network = vg.mlp(width=16, depth=3, activation="tanh", stem=False)
    params, _ = vg.absorb_scales(vg.init(jax.random.key(0), network), vg.Scales(sigma_w=1.0, sigma_b=0.3))
    h, v, a = map(np.asarray, script.jets(params, 0.3, 64))
    waves = 1j * np.fft.fftfreq(64, 1 / 64)[:, None]
    for order, derivative in ((1, v), (2, a)):
        series = np.fft.ifft(waves**order * np.fft.fft(h, axis=1), axis=1).real
        np.testing.assert_allclose(derivative, series, atol=2e-3)


def test_the_gradient_on_the_cliff_is_that_of_jax(figure, x64):
    script = figure("rnn_cliff")
    for w in (3.9, 1 / float(script.SIGMOID.derivative(script.START)), 4.8):
        gradient = jax.grad(script.loss_of)(jnp.array([w, script.cliff(w)]))
        np.testing.assert_allclose(np.linalg.norm(gradient), script.norm_on_cliff(w), rtol=1e-6)


def test_the_first_kernels_gradient_has_the_moments_of_its_layers():
    """By plain numpy: ||dz/dW^1||^2 of ReLU networks, the product of a factor a hidden layer."""
    rng, widths, draws = np.random.default_rng(0), (6, 10, 8), 20000
    signal, slopes, kernels, fan_in = np.ones((draws, 4)), [], [], 4
    for n in widths:
        kernels.append(rng.normal(size=(draws, fan_in, n)) * np.sqrt(2 / fan_in))
        h = np.einsum("di,dij->dj", signal, kernels[-1])
        slopes.append(h > 0)
        signal, fan_in = np.maximum(h, 0), n
    back = slopes[-1] * rng.normal(size=(draws, fan_in)) * np.sqrt(2 / fan_in)
    for kernel, slope in zip(kernels[:0:-1], slopes[-2::-1], strict=True):
        back = slope * np.einsum("dj,dij->di", back, kernel)
    square = (back**2).sum(axis=1)
    log = np.log(square[square > 0])
    layers = [theory.log_gain_moments("relu", n) for n in widths]
    assert abs(log.mean() - sum(layer.mean for layer in layers)) < 4 * log.std() / np.sqrt(draws)
    np.testing.assert_allclose(log.var(), sum(layer.variance for layer in layers), rtol=0.06)
    ratio = (square**2).mean() / square.mean() ** 2
    np.testing.assert_allclose(ratio, np.prod(1 + 5 / np.array(widths)), rtol=0.1)


def test_densities_of_activations_and_gradients_have_their_moments(figure):
    script, q, s = figure("glorot_histograms"), 0.4, 0.7
    square, slope_square, _ = theory.moments("tanh", q)
    a = np.linspace(-1, 1, 200003)[1:-1]
    density = script.activation_density(a, q)
    np.testing.assert_allclose(np.trapezoid(density, a), 1, rtol=1e-5)
    np.testing.assert_allclose(np.trapezoid(density * a**2, a), square, rtol=1e-4)
    g = np.linspace(-6, 6, 3001)
    for uniform in (0.0, 0.6):
        density = script.gradient_density(g, q, s, uniform)
        np.testing.assert_allclose(np.trapezoid(density, g), 1, rtol=1e-4)
        np.testing.assert_allclose(np.trapezoid(density * g**2, g), s**2 * slope_square, rtol=1e-3)


def test_correlations_of_residual_networks_have_the_closed_form_of_relu(figure):
    """E relu relu = sqrt(q q) (sin t + (pi - t) cos t) / 2 pi at an angle t."""
    script, depth, p, g = figure("residual_trajectories"), 6, 1.0, 0.0
    found = script.expected("relu", 1.0, depth)
    w2, b2, v2, a2 = (script.SCALES[name] ** 2 for name in ("sigma_w", "sigma_b", "sigma_v", "sigma_a"))
    for l in range(depth):
        q, angle = w2 * p + b2, np.arccos((w2 * g + b2) / (w2 * p + b2))
        g = g + v2 * q * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / 2 / np.pi + a2
        p = p + v2 * q / 2 + a2
        np.testing.assert_allclose(found.p[l + 1], p, rtol=1e-10)
        np.testing.assert_allclose(found.one_minus_e[l + 1], 1 - g / p, rtol=1e-8)


def test_a_residual_relu_network_runs_into_its_power_law(figure):
    """1 - e by its own recursion far out, where biases have faded."""
    script, apart = figure("residual_trajectories"), 0.5
    gain = script.SCALES["sigma_v"] ** 2 * script.SCALES["sigma_w"] ** 2 / 2
    for _ in range(20000):
        angle = np.arccos(1 - apart)
        after = 1 - (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / np.pi
        apart = (apart + gain * after) / (1 + gain)
    np.testing.assert_allclose(script.relu_limit(np.array(20000.0)), apart, rtol=0.02)


def test_a_latched_unit_forgets_at_the_slope_of_its_attractor(figure):
    script, x = figure("bengio_latch"), 0.9
    for w in (0.7, 1.6):
        x = 0.9
        for _ in range(400):
            x = np.tanh(w * x)
        steps = [np.tanh(w * (x + d)) for d in (-1e-6, 1e-6)]
        np.testing.assert_allclose(script.slope(w), (steps[1] - steps[0]) / 2e-6, rtol=1e-6)


def test_the_first_loss_below_is_found(figure):
    script = figure("learning_time")
    falling, flat = np.linspace(3, 0, 61), np.full(61, 2.0)
    found = script.first_below(np.stack([falling, flat]))
    assert np.isinf(found[1])
    assert falling[int(found[0]) - 10 : int(found[0])].mean() < script.LEARNED


def test_a_perturbation_along_the_state_shrinks_by_the_slope_of_the_q_map(figure):
    """By the q map itself: the variance after a layer, a little above and below its fixed point."""
    script = figure("delta_orthogonal")
    edge = theory.critical("tanh", q=script.Q_STAR)
    starts = script.Q_STAR * np.array([1 - 1e-4, 1 + 1e-4])
    after = theory.propagate("tanh", edge.sigma_w, edge.sigma_b, 1, q0=starts).q[:, 1]
    np.testing.assert_allclose(script.slope_along(), np.diff(after)[0] / np.diff(starts)[0], rtol=1e-5)
