"""Theory against the simulator: the one place, with the figures, where both are imported.

Tolerances are 4 standard errors, as theory or the draws themselves give them, plus C / width for what infinite-width
theory leaves out, with C's reason beside it; at two widths, so that the 1 / width law is tested too.
"""

import functools
import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import scipy.special

import vgjax as vg
from vgjax import theory

COMPUTES = True

# (sigma_w^2, sigma_b^2): ordered, near the edge, chaotic; for those whose q grows without bound, where it settles.
POINTS = {
    "tanh": ((1.0, 0.05), (1.76, 0.05), (2.5, 0.05)),
    "relu": ((1.0, 0.1), (2.0, 0.0), (2.4, 0.0)),
    "gelu": ((1.0, 0.1), (1.5, 0.1)),
    "sigmoid": ((4.0, 0.1), (20.0, 0.1)),
    "selu": ((0.5, 0.1), (0.98, 0.1), (1.5, 0.1)),
}
CASES = [(name, *point) for name, points in POINTS.items() for point in points]
DEPTH = 24
SEEDS = {64: 240, 192: 60}
X = np.random.default_rng(7).normal(size=16).astype(np.float32)


@functools.cache
def swept(name: str, width: int) -> vg.Result:
    """All pairs of the variances of an activation: drawn once."""
    network = vg.mlp(width=width, depth=DEPTH, activation=name, inputs=16)
    sigma_w, sigma_b = (np.unique(np.sqrt(variances)) for variances in zip(*POINTS[name], strict=True))
    axes = {"sigma_w": sigma_w, "sigma_b": sigma_b}
    return vg.sweep(network, X, key=jax.random.key(width), seeds=SEEDS[width], progress=False, **axes)


def measured(name: str, variance_w: float, variance_b: float, width: int) -> vg.Result:
    """One point of them."""
    sweep = swept(name, width)
    wanted = {"sigma_w": math.sqrt(variance_w), "sigma_b": math.sqrt(variance_b)}
    i, j = (int(np.abs(sweep.axes[axis] - value).argmin()) for axis, value in wanted.items())
    arrays = {of: a[:, i : i + 1, j : j + 1] for of, a in sweep.arrays.items()}
    return replace(sweep, axes={axis: np.array([value]) for axis, value in wanted.items()}, arrays=arrays)


@pytest.mark.parametrize(("name", "variance_w", "variance_b"), CASES)
@pytest.mark.parametrize("width", [64, 192])
def test_the_band_covers_the_measured_gain(name, variance_w, variance_b, width):
    sweep = measured(name, variance_w, variance_b, width)
    found = vg.compare(sweep)
    # The band is right to 1 / n; a term 40 l / n^2 was measured for GELU, whose q scatters by itself, and less than a
    # tenth of it for all others.
    allowed = 4 * found.standard_error + (40 if name == "gelu" else 4) * np.arange(DEPTH + 1) / width**2
    off = np.abs(found.measured - found.predicted)
    assert np.all(off[..., 1:] <= allowed[..., 1:]), np.max(off[..., 1:] / allowed[..., 1:])
    # The deviation of N draws has a relative error of 1 / sqrt(2 N); theory's own is 1 / n of it times a few, at width
    # 64 up to 12 percent (GELU).
    spread = sweep.log_gain.std(axis=0, ddof=1)[..., 1:] / found.deviation[..., 1:]
    allowed = 4 / math.sqrt(2 * sweep.seeds) + (8 if name == "gelu" else 2) / width
    np.testing.assert_allclose(spread, 1, atol=allowed)


NUMPY = {
    "tanh": np.tanh,
    "relu": lambda h: np.maximum(h, 0),
    "gelu": lambda h: h * scipy.special.ndtr(h),
    "sigmoid": scipy.special.expit,
    "selu": lambda h: 1.0507009873554805 * np.where(h > 0, h, 1.6732632423543772 * np.expm1(h.clip(max=0))),
}


def variances(name, variance_w, variance_b, depth):
    """w of every layer at infinite width, and n times mean and variance of what finite width adds, by numpy alone.

    Given the layer before, units are independent Gaussians of variance w' = sigma_w^2 mean phi(sqrt(w) z)^2 +
    sigma_b^2, so E w' = V(w) + V'' Var w / 2 and Var w' = V'^2 Var w + sigma_w^4 Var phi^2 / n; and E q = E w.
    """
    z = np.linspace(-12, 12, 200_001)
    density = np.exp(-z * z / 2)
    density /= density.sum()
    phi = NUMPY[name]

    def v(w):
        squares = phi(np.sqrt(w) * z) ** 2
        mean = density @ squares
        return variance_w * mean + variance_b, variance_w**2 * (density @ squares**2 - mean**2)

    w, mean, variance = variance_w * float(X @ X) / 16 + variance_b, 0.0, 0.0
    found = [(w, mean, variance)]
    for _ in range(depth):
        step = 1e-3 * w
        (low, _), (middle, noise), (high, _) = v(w - step), v(w), v(w + step)
        slope, curvature = (high - low) / (2 * step), (high - 2 * middle + low) / step**2
        mean = slope * mean + curvature * variance / 2
        variance = slope**2 * variance + noise
        w = middle
        found.append((w, mean, variance))
    return np.array(found).T


@pytest.mark.parametrize(("name", "variance_w", "variance_b"), CASES)
def test_theory_s_trajectory_is_that_of_numpy(name, variance_w, variance_b):
    w, _, _ = variances(name, variance_w, variance_b, DEPTH)
    q = theory.propagate(name, math.sqrt(variance_w), math.sqrt(variance_b), DEPTH, q0=w[0]).q
    np.testing.assert_allclose(q, w, rtol=1e-6)  # the sum over 200,001 points is right to 1e-8 at a kink


@pytest.mark.parametrize(("name", "variance_w", "variance_b"), CASES)
@pytest.mark.parametrize("width", [64, 192])
def test_the_mean_square_of_states_is_theory_s_with_its_first_correction(name, variance_w, variance_b, width):
    sweep = measured(name, variance_w, variance_b, width)
    w, mean, variance = variances(name, variance_w, variance_b, DEPTH)
    ratio = np.exp(sweep.log_mean_square[:, 0, 0].astype(float)) / w
    # A mean square of n Gaussians scatters by 2 / n itself.
    error = np.sqrt((variance / w**2 + 2) / width / sweep.seeds)
    off = np.abs(ratio.mean(axis=0) - 1 - mean / w / width)
    # What is left is of second order: (the relative variance of w)^2, and as much again for what curvature makes of it.
    second = (variance / w**2 / width) ** 2 + (mean / w / width) ** 2
    assert np.all(off <= 4 * error + second + 1e-5), np.max(off / (4 * error + second + 1e-5))


TWO_INPUTS = [(name, variance_w, variance_b) for name, variance_w, variance_b in CASES if name in ("tanh", "selu")]


@functools.cache
def pairs(name: str, variance_w: float, variance_b: float, width: int) -> vg.Result:
    """The correlations of one point."""
    network = vg.mlp(width=width, depth=DEPTH, activation=name, inputs=16)
    x = np.random.default_rng(3).normal(size=(2, 16)).astype(np.float32)
    x *= 4 / np.linalg.norm(x, axis=1, keepdims=True)
    sigma_w, sigma_b = ([math.sqrt(variance)] for variance in (variance_w, variance_b))
    options = {"key": jax.random.key(width), "seeds": SEEDS[width], "sigma_w": sigma_w, "sigma_b": sigma_b}
    return vg.sweep(network, *x, measure=vg.correlations(), **options)


@pytest.mark.parametrize(("name", "variance_w", "variance_b"), TWO_INPUTS)
@pytest.mark.parametrize("variable", ["log_one_minus_c", "log_mean_square"])
def test_correlations_are_those_of_infinite_width_up_to_one_over_width(name, variance_w, variance_b, variable):
    for width in (64, 192):
        found = vg.compare(pairs(name, variance_w, variance_b, width), variable)
        off = np.abs(found.measured - found.predicted)[0, 0]
        # A layer's noise of 1 / n in q and c moves their means by about as much (a curvature of order 1 over 2), which
        # the layers behind remember: at most all of them, where their slope is near 1.
        allowed = 4 * found.standard_error[0, 0] + np.arange(DEPTH + 1) / width + 1e-5
        assert np.all(off <= allowed), (width, np.max(off / allowed))


@pytest.mark.parametrize("name", ["tanh", pytest.param("hard_tanh", marks=pytest.mark.slow)])
def test_the_measured_edge_is_the_critical_line(name):
    errors = []
    for width in (48, 192):
        network = vg.mlp(width=width, depth=60, activation=name, inputs=16)
        sigma_b = np.array([0.2, 0.5])
        line = theory.critical(name, sigma_b).sigma_w
        grid = np.linspace(0.6 * line.mean(), 1.5 * line.mean(), 19)
        options = {"key": jax.random.key(0), "seeds": 12, "progress": False}
        sweep = vg.sweep(network, np.ones(16), sigma_w=grid, sigma_b=sigma_b, **options)
        errors.append(np.abs(sweep.edge() - line) / line)
        # The rate is about (ln chi - 2 / n) / 2 (finite width lowers the mean of logs); its slope in ln sigma_w is of
        # order 1, its error over 30 layers and 12 draws about 1 / sqrt(30 * 12 * n / 2).
        assert np.all(errors[-1] <= 6 / width + 4 / math.sqrt(180 * width))
    assert np.mean(errors[1]) < np.mean(errors[0]) / 2  # a quarter, by the law


def test_the_largest_singular_value_of_an_orthogonal_tanh_network():
    n, depth, q = 384, 8, 0.25
    point = theory.critical("tanh", q=q)
    expected = theory.free_probability.log_largest_singular_value("tanh", q, depth, kernel_init="orthogonal")
    network = vg.mlp(width=n, depth=depth, activation="tanh", inputs=n)

    @jax.jit
    def jacobian(draws, h):
        def layer(h, draw):
            return jnp.tanh(h) @ (point.sigma_w * draw["kernel"]) + point.sigma_b * draw["bias"], None

        return jax.jacobian(lambda h: jax.lax.scan(layer, h, draws)[0])(h)

    found = []
    for seed in range(4):
        draws = oracles.drawn(network, (*[n] * (depth + 2), 1), seed, kernel_init="orthogonal").stages[0]
        h = math.sqrt(q) * np.random.default_rng(100 + seed).normal(size=n).astype(np.float32)
        found.append(math.log(np.linalg.norm(np.asarray(jacobian(draws, h)), 2)))
    # Edges scatter by n^(-2/3) of the spectrum's width, and single draws by some percent of it.
    assert np.mean(found) == pytest.approx(expected, abs=0.05)


def test_compare_says_so_when_theory_is_wrong():
    sweep = measured("tanh", 2.5, 0.05, 64)
    found = vg.compare(sweep)
    says = r"tanh: theory and measurement agree: root mean square z [\d.]+ over 1 points at layer 24 \(1 is chance\), "
    assert re.match(says, str(found))
    # The same numbers, said to be of another network: erf bends twice as early.
    other = vg.mlp(width=64, depth=DEPTH, activation="erf", inputs=16)  # widths of correlations have no say
    wrong = vg.compare(replace(sweep, networks={"": other}))
    assert re.match("erf: theory and measurement differ: ", wrong.verdict)
    assert np.abs(wrong.z[..., -1]).max() > 4
    for variable in ("log_one_minus_c", "log_mean_square"):
        pair = pairs("tanh", 2.5, 0.05, 192)  # wide enough for 60 draws not to tell it from infinite
        assert "agree" in vg.compare(pair, variable).verdict
        assert "differ" in vg.compare(replace(pair, networks={"": other}), variable).verdict


def test_compare_takes_the_scales_that_were_fixed():
    network = vg.mlp(width=64, depth=DEPTH, activation="tanh", inputs=16)
    options = {"key": jax.random.key(0), "seeds": 40, "progress": False}
    axis = vg.sweep(network, X, sigma_w=[2.0], sigma_b=[0.7], **options)
    for fixed in (
        vg.sweep(network, X, sigma_w=[2.0], sigma_b=0.7, **options),
        vg.sweep(network, X, scales=vg.Scales(sigma_w=2.0, sigma_b=0.7), **options),
        vg.sweep(vg.ensembles.Case(network, {"sigma_w": 2.0}), X, sigma_b=[0.7], **options),
    ):
        found = vg.compare(fixed)
        np.testing.assert_allclose(found.predicted.ravel(), vg.compare(axis).predicted.ravel(), rtol=1e-6)
        assert "agree" in found.verdict


def test_gradients_have_the_band_of_gains_from_the_last_layer_back():
    network = vg.mlp(width=(60, *[40] * 12, 50), activation="tanh", inputs=16)
    seeds, options = 100, {"key": jax.random.key(0), "sigma_w": [1.0, 1.7], "sigma_b": 0.2}
    flow = vg.sweep(network, X, measure=vg.gradients(), seeds=seeds, **options)
    found = vg.compare(flow)
    assert found.variable == "log_gradient"
    assert "at layer 0 " in found.verdict
    assert [band.mean.shape for band in found.bands] == [(14,), (14,)]
    off = flow.log_gradient.mean(axis=0) - found.predicted
    np.testing.assert_allclose(off[:, -1], 0, atol=1e-6)
    # The cotangent is phi'(h^L) times a head vector, not quite isotropic: about 1 / n more.
    assert np.all(np.abs(off) <= 4 * found.standard_error + 2 / 40)
    # N draws tell a deviation to 1 / sqrt(2 N); the rest is the band's own second order and that cotangent again.
    spread = flow.log_gradient.std(axis=0, ddof=1) / found.deviation
    np.testing.assert_allclose(spread, 1, atol=4 / math.sqrt(2 * seeds) + 0.05)
    named = vg.compare(flow, "log_mean_square")
    assert named.variable == "log_mean_square"
    assert np.all(np.abs(named.measured - named.predicted) <= 4 * named.standard_error + np.arange(14) / 40)


def test_compare_refuses_what_theory_does_not_cover():
    network = vg.mlp(width=8, depth=2, inputs=3)
    options = {"key": jax.random.key(0), "seeds": 2, "progress": False}
    x = np.ones(3, np.float32)

    def refused(result, message, variable=None):
        with pytest.raises(ValueError, match=message):
            vg.compare(result, variable)

    sweep = vg.sweep(network, x, sigma_w=[1.0], **options)
    refused(replace(sweep, networks={"": None}), "^the file could not hold this network")
    refused(vg.sweep([network, network], x, sigma_w=[1.0], **options), "^a result over several networks has them as")
    probes = vg.sweep(network, x, measure=vg.gains(2), sigma_w=[1.0], **options)
    refused(probes, "^compare needs one probe a draw, got 2$")
    norms = vg.sweep(network, x, measure=vg.frobenius(), **options)
    refused(norms, "^compare needs gains, gradients or correlations, got frobenius$")
    residual = vg.mlp(width=8, depth=2, inputs=3, residual="pre")
    known = r"^compare needs a network that theory knows, got (mlp|rnn)\("
    refused(vg.sweep(residual, x, sigma_w=[1.0], **options), known)
    refused(vg.sweep(vg.rnn(width=8, depth=3, inputs=1), np.ones((3, 1)), sigma_w=[1.0], **options), known)
    by_layer = vg.sweep(network, x, scales=vg.Scales(sigma_b=np.ones(2, np.float32)), sigma_w=[1.0], **options)
    refused(by_layer, "^compare takes one sigma_b for all layers, got one a layer$")
    message = "^variable must be one of log_gain, log_mean_square, got 'log_gian'; did you mean 'log_gain'\\?$"
    refused(sweep, message, "log_gian")


def test_unequal_widths_and_zero_bias_are_known_from_the_sweep():
    network = vg.mlp(width=(40, 24, 32, 28), activation="relu", inputs=5, bias_init="zero")
    options = {"key": jax.random.key(0), "seeds": 40, "progress": False}
    sweep = vg.sweep(network, np.ones(5), sigma_w=[1.0, 1.5], sigma_b=[0.0, 3.0], **options)
    found = vg.compare(sweep)
    np.testing.assert_array_equal(found.predicted[:, 0], found.predicted[:, 1])  # sigma_b multiplies zeros
    assert np.nanmax(np.abs(found.z)) < 4
