"""Theory against the simulator: the one place, with the figures, where both are imported.

Tolerances are 4 standard errors, as theory or the draws themselves give them, plus C / width for what infinite-width
theory leaves out, with C's reason beside it; at two widths, so that the 1 / width law is tested too.
"""

import functools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import vgjax as vg
from vgjax import theory

# (sigma_w^2, sigma_b^2): ordered, near the edge, chaotic; for those whose q grows without bound, where it settles.
POINTS = {
    "tanh": ((1.0, 0.05), (1.76, 0.05), (2.5, 0.05)),
    "relu": ((1.0, 0.1), (2.0, 0.0), (2.4, 0.0)),
    "gelu": ((1.0, 0.1), (1.5, 0.1)),
    "sigmoid": ((4.0, 0.1), (20.0, 0.1)),
    "selu": ((0.5, 0.1), (0.98, 0.1), (1.5, 0.1)),
}
CASES = [(name, *point) for name, points in POINTS.items() for point in points]
DEPTH, SEEDS = 24, 24


@functools.cache
def swept(name: str, width: int) -> vg.Sweep:
    """All pairs of the variances of an activation: drawn once."""
    network = vg.mlp(width=width, depth=DEPTH, activation=name, inputs=16)
    x = jax.random.normal(jax.random.key(7), (SEEDS, 16))
    sigma_w, sigma_b = (np.unique(np.sqrt(variances)) for variances in zip(*POINTS[name], strict=True))
    axes = {"sigma_w": sigma_w, "sigma_b": sigma_b}
    return vg.sweep(network, x, key=jax.random.key(width), seeds=SEEDS, progress=False, **axes)


def measured(name: str, variance_w: float, variance_b: float, width: int) -> vg.Sweep:
    """One point of them."""
    sweep = swept(name, width)
    wanted = {"sigma_w": math.sqrt(variance_w), "sigma_b": math.sqrt(variance_b)}
    i, j = (int(np.abs(sweep.axes[axis] - value).argmin()) for axis, value in wanted.items())
    arrays = {of: getattr(sweep, of)[:, i : i + 1, j : j + 1] for of in sweep.trailing}
    return replace(sweep, axes={axis: np.array([value]) for axis, value in wanted.items()}, **arrays)


@pytest.mark.parametrize(("name", "variance_w", "variance_b"), CASES)
@pytest.mark.parametrize("width", [64, 192])
def test_the_band_covers_the_measured_gain(name, variance_w, variance_b, width):
    found = vg.compare(measured(name, variance_w, variance_b, width))
    # The band is right to 1 / n; a term 40 l / n^2 was measured for GELU, whose q scatters by itself, and less than a
    # tenth of it for all others.
    allowed = 4 * found.standard_error + (40 if name == "gelu" else 4) * np.arange(DEPTH + 1) / width**2
    off = np.abs(found.measured - found.predicted)
    assert np.all(off[..., 1:] <= allowed[..., 1:]), np.max(off[..., 1:] / allowed[..., 1:])
    spread = measured(name, variance_w, variance_b, width).log_gain[..., -1].std(ddof=1)
    predicted = found.standard_error[..., -1] * math.sqrt(SEEDS)
    # The deviation of 24 draws has a relative error of 1 / sqrt(46); a tenth more is theory's at width 64 (GELU).
    assert spread == pytest.approx(predicted.item(), rel=4 / math.sqrt(2 * (SEEDS - 1)) + 0.1)


@pytest.mark.parametrize(("name", "variance_w", "variance_b"), CASES)
@pytest.mark.parametrize("width", [64, 192])
def test_the_state_settles_at_q_star(name, variance_w, variance_b, width):
    sweep = measured(name, variance_w, variance_b, width)
    start = np.exp(sweep.log_mean_square[:, 0, 0, 0].astype(float))
    q = [theory.propagate(name, math.sqrt(variance_w), math.sqrt(variance_b), DEPTH, q0=q0).q for q0 in start]
    square = np.exp(sweep.log_mean_square[:, 0, 0].astype(float))
    ratio = square / np.array(q)
    error = ratio.std(axis=0, ddof=1) / math.sqrt(SEEDS)
    # E q_l differs from the trajectory by V'' Var(q) / 2 a layer, summed over the layers that q remembers: up to 24 / n
    # where the q map's slope is near 1 (GELU, SELU, ReLU at criticality), about 1 / n elsewhere.
    assert np.all(np.abs(ratio.mean(axis=0) - 1) <= 4 * error + DEPTH / width + 1e-5)


TWO_INPUTS = [case for case in CASES if case[0] in ("tanh", "selu")]


@functools.cache
def states_of_two(width: int, depth: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """A plain scan over ordinary parameters: the two inputs, and their h^0 ... h^L by case and draw."""
    network = vg.mlp(width=width, depth=depth, inputs=16)
    x = np.random.default_rng(3).normal(size=(2, 16)).astype(np.float32)
    x *= 4 / np.linalg.norm(x, axis=1, keepdims=True)

    @functools.partial(jax.jit, static_argnames="name")
    def states(parameters, sigma_w, sigma_b, name):
        phi = vg.activations.get(name)

        def layer(h, draw):
            after = phi(h) @ (sigma_w * draw["kernel"]) + sigma_b * draw["bias"]
            return after, after

        first = x @ (sigma_w * parameters.stem["kernel"]) + sigma_b * parameters.stem["bias"]
        return jnp.concatenate([first[None], jax.lax.scan(layer, first, parameters.stages[0])[1]])

    h = np.empty((len(TWO_INPUTS), seeds, depth + 1, 2, width))
    for seed in range(seeds):
        parameters = oracles.drawn(network, (16, *[width] * (depth + 1), 1), seed)
        for i, (name, variance_w, variance_b) in enumerate(TWO_INPUTS):
            h[i, seed] = states(parameters, math.sqrt(variance_w), math.sqrt(variance_b), name=name)
    return x, h


@pytest.mark.parametrize(("name", "variance_w", "variance_b"), TWO_INPUTS)
def test_two_inputs_settle_at_c_star(name, variance_w, variance_b):
    width, depth, seeds = 512, 60, 6
    x, every = states_of_two(width, depth, seeds)
    h = every[TWO_INPUTS.index((name, variance_w, variance_b))]
    c = (h[:, :, 0] * h[:, :, 1]).sum(-1) / np.linalg.norm(h[:, :, 0], axis=-1) / np.linalg.norm(h[:, :, 1], axis=-1)
    q0 = np.full(2, variance_w + variance_b)
    c0 = (variance_w * float(x[0] @ x[1]) / 16 + variance_b) / q0[0]
    predicted = theory.propagate(name, math.sqrt(variance_w), math.sqrt(variance_b), depth, q0=tuple(q0), c0=c0).c
    error = c.std(axis=0, ddof=1) / math.sqrt(seeds)
    # A layer adds noise of 1 / sqrt(n) to c, which the slope of the c map damps; its mean is off by some 1 / n a layer,
    # which near criticality adds up over xi_c layers: at most 20 of them count here.
    assert np.all(np.abs(c.mean(axis=0) - predicted) <= 4 * error + 20 / width)


@pytest.mark.parametrize(
    ("name", "widths"), [("tanh", (48, 192)), pytest.param("hard_tanh", (192,), marks=pytest.mark.slow)]
)
def test_the_measured_edge_is_the_critical_line(name, widths):
    errors = []
    for width in widths:
        network = vg.mlp(width=width, depth=60, activation=name, inputs=16)
        sigma_b = np.array([0.2, 0.5])
        centre = theory.critical(name, sigma_b).sigma_w.mean()
        sweep = vg.sweep(
            network,
            jnp.ones(16),
            key=jax.random.key(0),
            seeds=12,
            progress=False,
            sigma_w=np.linspace(0.6 * centre, 1.5 * centre, 19),
            sigma_b=sigma_b,
        )
        edge, line = sweep.edge(), theory.critical(name, sigma_b).sigma_w
        errors.append(np.abs(edge - line))
        # The rate is about (ln chi - 2 / n) / 2 (finite width lowers the mean of logs); its slope in ln sigma_w is of
        # order 1, its error over 30 layers and 12 draws about 1 / sqrt(30 * 12 * n / 2).
        assert np.all(errors[-1] / line <= 6 / width + 4 / math.sqrt(180 * width))
    assert np.mean(errors[-1]) < np.mean(errors[0]) or len(widths) == 1


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
    assert "agree" in vg.compare(sweep).verdict
    wrong = vg.compare(sweep, activation="erf")
    assert "differ" in wrong.verdict
    assert np.abs(wrong.z[..., -1]).max() > 4


def test_compare_refuses_what_theory_does_not_cover():
    sweep = measured("tanh", 1.0, 0.05, 64)
    by_hand = vg.Sweep(sweep.axes, sweep.log_gain, sweep.log_mean_square, sweep.first_inexact_layer, 64)
    with pytest.raises(ValueError, match=r"compare needs a sweep of vgjax\.mlp, got one of an unknown network"):
        vg.compare(by_hand)
    network = vg.mlp(width=8, depth=2, inputs=3)
    several = vg.sweep(network, jnp.ones(3), key=jax.random.key(0), seeds=2, tangents=2, progress=False, sigma_w=[1.0])
    with pytest.raises(ValueError, match="compare needs one tangent a draw, got 2"):
        vg.compare(several)


def test_unequal_widths_and_zero_bias_are_known_from_the_sweep():
    network = vg.mlp(width=(40, 24, 32, 28), activation="relu", inputs=5, bias_init="zero")
    sweep = vg.sweep(
        network, jnp.ones(5), key=jax.random.key(0), seeds=40, progress=False, sigma_w=[1.0, 1.5], sigma_b=[0.0, 3.0]
    )
    found = vg.compare(sweep)
    assert np.array_equal(found.predicted[:, 0], found.predicted[:, 1])  # sigma_b multiplies zeros
    assert np.nanmax(np.abs(found.z)) < 4


def test_predicted_profile_runs_through_the_measured_one():
    network = vg.mlp(width=(60, *[40] * 12, 50), activation="tanh", inputs=6)
    scales = vg.Scales(sigma_w=1.7, sigma_b=0.2)
    flow = vg.profile(network, jnp.ones(6), key=jax.random.key(0), seeds=24, scales=scales, naive=())
    band = vg.predicted_profile(network, flow, scales)
    error = np.hypot(band.deviation, band.deviation[-1]) / math.sqrt(24)
    off = flow.log_gradient.mean(axis=0) - band.mean
    assert off[-1] == pytest.approx(0, abs=1e-6)
    # The cotangent is phi'(h^L) times a head vector, not quite isotropic: about 1 / n more.
    assert np.all(np.abs(off) <= 4 * error + 4 / 40)
