"""Sines, waves, normalized weights and spikes: against automatic differentiation and closed forms."""

import copy
import functools
import pickle
from typing import Any

import architecture_oracles as truth
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_oracles import check, within_errors
from flax import nnx
from scipy.special import lambertw

import vgjax as vg
from vgjax.blocks import spec
from vgjax.networks import scheme, spiking
from vgjax.theory import streams as theory

KEY = jax.random.key(13)

# --- SIREN --------------------------------------------------------------------------------------------------------


def siren(width: Any, depth: int | None, inputs: int) -> tuple[vg.Network, vg.Scales]:
    """As it is initialized; no biases."""
    net = vg.mlp(width=width, depth=depth, activation="sin", inputs=inputs, kernel_init="uniform", bias_init="zero")
    sigmas = {"sigma_w": scheme("siren", 8, 8).sigma_w, "sigma_in": scheme("siren_first", inputs, 8).sigma_w}
    return net, vg.Scales(**sigmas)


def test_siren_draws_the_papers_uniform_laws() -> None:
    """U(-sqrt(6 / n), sqrt(6 / n)), and omega_0 U(-1 / n, 1 / n) with omega_0 = 30 in front of the first sin."""
    net, scales = siren(600, 1, 40)
    ordinary, _ = vg.absorb_scales(vg.init(KEY, net), scales)
    for kernel, end in ((ordinary.stages[0]["kernel"], np.sqrt(6 / 600)), (ordinary.stem["kernel"], 30 / 40)):
        assert np.abs(kernel).max() <= end * (1 + 1e-6)
        assert np.abs(kernel).max() > 0.999 * end
        within_errors(np.ravel(kernel) ** 2, end**2 / 3)


def test_sines_of_the_first_layer_have_the_arcsine_law() -> None:
    """P(sin t < s) = 1/2 + arcsin(s) / pi for a phase over many periods; exactly, E sin^2 = (1 - prod_i sinc) / 2, the
    characteristic function of 30 w . x at 2."""
    net, scales = siren((40000, 1), None, 2)
    x = np.array([0.7, -0.4], np.float32)
    stem = {name: np.asarray(a, np.float64) for name, a in vg.absorb_scales(vg.init(KEY, net), scales)[0].stem.items()}
    sines = np.sort(np.sin(x @ stem["kernel"]))
    arcsine = 0.5 + np.arcsin(sines) / np.pi
    assert np.abs(arcsine - (np.arange(len(sines)) + 0.5) / len(sines)).max() < 2 / np.sqrt(len(sines))
    phases = 2 * 30 / 2 * x
    within_errors(sines**2, (1 - np.prod(np.sin(phases) / phases)) / 2)
    within_errors(sines**4, 3 / 8)


def test_the_variance_and_the_gradient_of_siren() -> None:
    """q' = 1 - exp(-2 q) behind the first layer, whose arcsine law has 2 E sin^2 = 1; q* = 1 + W(-2 e^-2) / 2, and a
    squared gradient grows by 2 E cos^2 = 1 + exp(-2 q*) = 2 - q* a layer."""
    fixed = float(1 + lambertw(-2 * np.exp(-2)).real / 2)
    assert fixed == pytest.approx(0.7968121300, abs=1e-10)
    there = vg.theory.mean_field("sin", scheme("siren", 4, 4).sigma_w)
    assert float(there.q_star) == pytest.approx(fixed, rel=1e-9)
    assert float(there.chi) == pytest.approx(2 - fixed, rel=1e-9)
    width, depth, seeds = 256, 6, 40
    net, scales = siren(width, depth, 3)

    @jax.jit
    @jax.vmap
    def one(key: jax.Array) -> Any:
        x = jax.random.uniform(jax.random.fold_in(key, 1), (3,), minval=-1, maxval=1)
        found = vg.push_forward(vg.init(key, net), scales, x, key=key)
        return found.log_mean_square, found.log_gain

    squares, gains = (np.exp(np.asarray(a, np.float64)) for a in one(jax.random.split(KEY, seeds)))
    q = [1.0]
    for _ in range(depth - 1):
        q.append(1 - np.exp(-2 * q[-1]))
    for l in range(1, depth + 1):
        error = squares[:, l].std(ddof=1) / np.sqrt(seeds)
        assert abs(squares[:, l].mean() - q[l - 1]) < 4 * error + 2 / width, l
    expected = np.prod([1 + np.exp(-2 * each) for each in q[:-1]])  # and 1 of the first: 2 E cos^2 of an arcsine law
    error = (gains[:, -1] ** 2).std(ddof=1) / np.sqrt(seeds)
    assert abs(np.mean(gains[:, -1] ** 2) - expected) < 4 * error + 4 * depth / width
    assert error < 0.05 * expected


# --- random Fourier features ------------------------------------------------------------------------------------------


def test_fourier_features_in_front_of_a_network(x64: None) -> None:
    stem = spec(vg.blocks.FourierFeatures, 2, 3, dtype="float64")
    layer = vg.dense(6, 6, "tanh", dtype="float64")
    net = vg.stack(layer, depth=2, input_shape=2, stem=stem, head=vg.dense(6, 2, dtype="float64"))

    def waves(p: Any, x: Any) -> Any:
        phases = 2 * np.pi * x @ p["frequencies"]
        return jnp.concatenate([jnp.cos(phases), jnp.sin(phases)])

    parts = truth.Parts(waves, lambda p, h, *_: truth.affine(p, jnp.tanh(h)), truth.affine)
    names = {"frequencies": "sigma_f", "kernel": "sigma_w", "bias": "sigma_b"}
    parameters = truth.drawn(net)
    flow = truth.compiled(vg.gradient_flow, parameters, vg.Scales(), np.ones(2), np.ones(2))
    assert not any("frequencies" in path for path in flow.log_parameter_gradient)  # they are not trained
    check(net, parts, {"sigma_f": 0.4, "sigma_w": 1.2, "sigma_b": 0.3}, names, without=("stem/frequencies",))


def test_fourier_features_have_a_gaussian_kernel() -> None:
    """cos^2 + sin^2 = 1; E z(x) . z(y) = m exp(-2 pi^2 sigma^2 |x - y|^2); E |J u|^2 = m (2 pi sigma)^2 |u|^2."""
    sigma, waves, x, y = 0.3, 4, np.array([0.2, -0.5, 0.1]), np.array([0.6, -0.3, 0.4])
    scales = vg.Scales(sigma_f=sigma)

    @jax.jit
    @jax.vmap
    def one(key: jax.Array) -> Any:
        block = vg.blocks.FourierFeatures(3, waves, rngs=nnx.Rngs(key))
        first, tangent = jax.jvp(lambda x: block(x, scales), (jnp.asarray(x),), (jnp.asarray(y),))
        return jnp.sum(first**2), first @ block(y, scales), jnp.sum(tangent**2)

    norms, products, tangents = (np.asarray(a, np.float64) for a in one(jax.random.split(KEY, 4000)))
    np.testing.assert_allclose(norms, waves, rtol=1e-5)
    within_errors(products, waves * np.exp(-2 * np.pi**2 * sigma**2 * np.sum((x - y) ** 2)))
    within_errors(tangents, waves * (2 * np.pi * sigma) ** 2 * np.sum(y**2))


# --- weight normalization ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normalized_weights(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        layer = spec(vg.blocks.WeightNormalized, 4, 4, activation="tanh", dtype=dtype)
        net = vg.stack(layer, depth=3, input_shape=4, head=vg.dense(4, 2, dtype=dtype))

    def block(p: Any, h: Any, *_: Any) -> Any:
        """Equation 2 of Salimans and Kingma 2016, unit by unit."""
        units = [p["gain"][j] * p["kernel"][:, j] / jnp.sqrt(jnp.sum(p["kernel"][:, j] ** 2)) for j in range(4)]
        return jnp.stack([jnp.dot(w, jnp.tanh(h)) for w in units]) + p["bias"]

    parts = truth.Parts(lambda p, x: x, block, truth.affine)
    check(net, parts, {"sigma_w": 1.2, "sigma_b": 0.3}, {"gain": "sigma_w", "bias": "sigma_b"}, dtype=dtype)


def test_weights_of_norm_one_scatter_less_than_gaussian_ones() -> None:
    """|W a|^2 / |a|^2 is a sum of squared cosines, each of mean 1 / n and variance 2 (n - 1) / (n^2 (n + 2))."""
    n, m, seeds = 6, 3, 6000
    block, scales = spec(vg.blocks.WeightNormalized, n, m), vg.Scales(sigma_w=1.0, sigma_b=0.0)
    a = np.random.default_rng(0).normal(size=n).astype(np.float32)

    @jax.jit
    @jax.vmap
    def one(key: jax.Array) -> Any:
        layer: Any = block.build(nnx.Rngs(key))
        return jnp.sum(layer(a, scales) ** 2) / jnp.sum(a**2), layer.product(jnp.eye(n))

    squares, kernels = (np.asarray(each, np.float64) for each in one(jax.random.split(KEY, seeds)))
    within_errors(squares, m / n)
    within_errors((squares - m / n) ** 2, 2 * m * (n - 1) / (n**2 * (n + 2)))
    np.testing.assert_allclose(np.sum(kernels**2, axis=1), 1, rtol=1e-5)


def test_lsuv_sets_the_lengths_and_leaves_the_directions() -> None:
    net = vg.stack(vg.blocks.WeightNormalized, 8, 8, activation="tanh", depth=4, input_shape=8)
    parameters, xs = vg.init(KEY, net), np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    found = vg.networks.lsuv(parameters, vg.Scales(sigma_w=0.7), xs)
    np.testing.assert_array_equal(found.stages[0]["kernel"], parameters.stages[0]["kernel"])
    h = xs.astype(np.float64)
    for v, g in zip(found.stages[0]["kernel"], found.stages[0]["gain"], strict=True):
        h = np.tanh(h) @ (0.7 * np.asarray(g) * v / np.linalg.norm(v, axis=0))
        assert h.var() == pytest.approx(1, rel=1e-4)


def test_the_gradient_by_a_direction_is_orthogonal_to_it() -> None:
    layer: Any = spec(vg.blocks.WeightNormalized, 5, 4, kernel_init="identity").build(nnx.Rngs(0))
    v, a = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32), jnp.arange(5.0) / 5
    graph, state = nnx.split(layer)

    def loss(v: jax.Array) -> Any:
        drawn = nnx.merge(graph, nnx.to_pure_dict(state) | {"kernel": v}, copy=True)
        return jnp.sum(drawn(a, vg.Scales(sigma_w=1.0, sigma_b=0.0)) ** 3)

    gradient = jax.grad(loss)(v)
    assert np.abs(gradient).max() > 0.1
    np.testing.assert_allclose(np.sum(np.asarray(gradient * v), axis=0), 0, atol=1e-6)


# --- spikes -----------------------------------------------------------------------------------------------------------


def straight_through(u: Any, kind: str, k: float) -> Any:
    """1 where u > 1, with the slope of a smooth function: its value is taken off again."""
    smooth = (
        (u - 1) / (1 + k * jnp.abs(u - 1)) if kind == "fast_sigmoid" else jnp.arctan(np.pi / 2 * k * (u - 1)) / np.pi
    )
    return jnp.where(u > 1, 1.0, 0.0) + smooth - jax.lax.stop_gradient(smooth)


@pytest.mark.parametrize("kind", ["fast_sigmoid", "arctan"])
def test_spiking_units(kind: str, x64: None) -> None:
    """Potentials that reach the threshold and those that do not."""
    net = spiking(
        width=6, depth=5, inputs=3, outputs=2, surrogate=kind, steepness=2.0, every_step=True, dtype="float64"
    )

    def cell(p: Any, u: Any, scales: dict[str, float], x: Any) -> Any:
        s = straight_through(u, kind, 2.0)
        return scales["decay"] * u + s @ p["kernel"] - s + x @ p["input_kernel"] + p["bias"]

    parts = truth.Parts(lambda p, x: jnp.zeros(6), cell, truth.affine, fed=True, every_step=True)
    names = {"input_kernel": "sigma_v", "kernel": "sigma_w", "bias": "sigma_b"}
    scales = {"sigma_w": 1.5, "sigma_v": 1.4, "sigma_b": 0.3, "decay": 0.8}
    flow, expected, _ = check(net, parts, scales, names)
    share = [np.mean(np.asarray(state) > 1, axis=1) for state in expected.states[:-1]]
    np.testing.assert_allclose(flow.diagnostics["spikes"], np.array(share).T)
    assert 0.05 < np.mean(share) < 0.6


@pytest.mark.parametrize(("kind", "slope"), [("fast_sigmoid", 1 / 4), ("arctan", 0.5 / (1 + np.pi**2 / 4))])
def test_a_surrogate_slope_goes_both_ways(kind: str, slope: float) -> None:
    """By jvp as by vjp, at u = 0 with k = threshold = 1; forward it is a step."""
    spike = vg.blocks.surrogate(kind, 1.0)
    u = jnp.array([-5.0, 0.0, 0.999, 1.001, 7.0])
    np.testing.assert_array_equal(spike(u), [0, 0, 0, 1, 1])
    pushed = jax.jvp(spike, (u,), (jnp.ones(5),))[1]
    (pulled,) = jax.vjp(spike, u)[1](jnp.ones(5))
    np.testing.assert_array_equal(pushed, pulled)
    assert pushed[1] == pytest.approx(slope, rel=1e-6)
    assert vg.blocks.surrogate(kind, 1.0) is spike
    assert pickle.loads(pickle.dumps(spike))(u).sum() == 2
    assert copy.deepcopy(spike) is spike


@pytest.mark.parametrize("tied", [True, False])
def test_silent_units_pass_a_gradient_of_closed_form(tied: bool) -> None:
    """At u = 0 nothing spikes and J = (decay - g) 1 + g sigma_w W with g = 1 / (1 + k)^2: untied E gain^2 =
    ((decay - g)^2 + g^2 sigma_w^2)^T; tied, at infinite width, the sum of squared binomial terms."""
    width, steps, seeds, g, decay, sigma_w = 64, 8, 400, 0.25, 0.9, 2.0
    net = spiking(width=width, depth=steps, inputs=1, steepness=1.0)
    net = net if tied else vg.networks.untied(net)
    scales = vg.Scales(sigma_w=sigma_w, decay=decay)

    @jax.jit
    @jax.vmap
    def one(key: jax.Array) -> Any:
        params, x = vg.init(key, net), jnp.zeros((steps, 1))
        u = jax.random.normal(jax.random.fold_in(key, 1), (width,))
        push = vg.push_forward(params, scales, x, u / jnp.linalg.norm(u))
        pull = vg.pull_back(params, scales, x, u / jnp.linalg.norm(u))
        return push.log_gain[-1], pull.log_gain[0], push.first_inexact_layer

    *both, inexact = one(jax.random.split(KEY, seeds))
    assert np.all(inexact == steps + 1)  # an exact 0 is no number below the range
    forward, backward = (np.exp(2 * np.asarray(a, np.float64)) for a in both)
    expected = ((decay - g) ** 2 + (g * sigma_w) ** 2) ** steps
    if tied:
        expected = np.exp(theory.tied_log_gain(steps, skip=decay - g, branch=g * sigma_w))
    for found in (forward, backward):
        error = found.std(ddof=1) / np.sqrt(seeds)
        assert error < 0.1 * expected
        assert abs(found.mean() - expected) < 4 * error + (2 / width * expected if tied else 0)


def test_potentials_below_the_float_range_are_marked() -> None:
    """A kick, then silence: u falls by the decay, past 2^-32 in float32, where a step has another tangent."""
    net = spiking(width=4, depth=60, inputs=1, steepness=1.0)
    x = np.zeros((60, 1), np.float32)
    x[0] = 0.1
    parameters = truth.drawn(net)
    scales = vg.Scales(sigma_w=1.0, decay=0.5)
    found = truth.compiled(vg.push_forward, parameters, scales, x)
    expected = np.log(np.mean((0.1 * np.asarray(parameters.stages[0]["input_kernel"], np.float64)) ** 2))
    logs = expected + 2 * np.log(0.5) * np.arange(60)
    last = int(found.first_inexact_layer)
    assert 20 < last < 40
    np.testing.assert_allclose(found.log_mean_square[1:last], logs[: last - 1], atol=1e-5)
    assert np.all(np.isnan(found.log_mean_square[last + 1 :]))


def test_spiking_networks_are_read_back_from_their_description() -> None:
    net = spiking(width=4, depth=3, inputs=2, steepness=3.0)
    assert vg.networks.network_from_json(vg.networks.network_to_json(net)) == net
    assert vg.networks.network_to_json(net)["stages"][0]["spec"]["block"] == "LIFCell"


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vg.blocks.surrogate("sigmoid"), "surrogate must be one of fast_sigmoid, arctan, got 'sigmoid'"),
        (lambda: vg.blocks.surrogate(steepness=0.0), "steepness must be finite and positive, got 0"),
        (lambda: spiking(width=4, depth=2, inputs=1, surrogate="atan"), "surrogate must be one of .* mean 'arctan'"),
        (lambda: spiking(width=4, depth=2, inputs=1, threshold=float("inf")), "threshold must be finite, got inf"),
        (lambda: spiking(width=0, depth=2, inputs=1), "width must be at least 1, got 0"),
        (
            lambda: vg.sweep(
                vg.stack(vg.blocks.WeightNormalized, 4, 4, depth=2, input_shape=4),
                np.ones(4),
                key=KEY,
                weights="implicit",
            ),
            "in chains and skip connections, got WeightNormalized",
        ),
        (lambda: scheme("siren_last", 4, 4), "scheme must be one of .* did you mean 'siren_first'"),
        (
            lambda: vg.stack(vg.blocks.WeightNormalized, 4, 4, depth=2, input_shape=5),
            r"WeightNormalized must take a state of shape \(5,\)",
        ),
        (
            lambda: vg.stack(vg.dense(4, 4), depth=2, input_shape=3, stem=spec(vg.blocks.FourierFeatures, 2, 2)),
            r"FourierFeatures must take a state of shape \(3,\)",
        ),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        functools.partial(call)()


# --- a residual encoder of deep reinforcement learning ----------------------------------------------------------------


def test_means_that_add_up_end_the_growth_of_a_deep_encoder() -> None:
    """Skips over four times Dense (LeCun uniform / 3), layer norm, swish (Wang et al. 2025, "1000 layer networks for
    self-supervised RL"). The mean of swish is the same in all branches: q_l = 1 + Var l + mean^2 l^2, so E g^2 = prod
    (1 + E swish^2 zeta^4 / q_l), zeta = E swish'^2 / E swish^2, converges."""
    width, depth, seeds = 256, 16, 16
    phi = vg.activations.get("silu")
    layer = (
        vg.dense(width, width, kernel_init="uniform"),
        vg.blocks.spec(vg.blocks.Norm, "layer", width, epsilon=0.0),
        vg.blocks.spec(vg.blocks.Activate, activation=phi),
    )
    net = vg.stack(vg.residual(vg.networks.chain(*layer * 4)), depth=depth, input_shape=width)
    x = np.random.default_rng(0).normal(size=width).astype(np.float32)
    m = vg.sweep(net, x / np.sqrt(np.mean(x**2)), key=jax.random.key(0), seeds=seeds, sigma_w=[3**-0.5])

    z, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    sigmoid = 1 / (1 + np.exp(-z))
    value, slope = z * sigmoid, sigmoid * (1 + z * (1 - sigmoid))
    mean, square, zeta = weights @ value, weights @ value**2, (weights @ slope**2) / (weights @ value**2)
    layers = np.arange(depth + 1)
    q = 1 + (square - mean**2) * layers + mean**2 * layers**2
    expected = np.concatenate([[0], np.cumsum(np.log1p(square * zeta**4 / q[:-1]))])

    squares = np.exp(2 * np.asarray(m.log_gain, float)[:, 0])
    error = squares.std(axis=0, ddof=1) / squares.mean(axis=0) / np.sqrt(seeds)
    off = np.abs(np.log(squares.mean(axis=0)) - expected)
    assert np.all(off <= 4 * error + 4 / width + 1e-6)
    assert np.max(error) < 0.08
    np.testing.assert_allclose(np.exp(np.asarray(m.log_mean_square, float)[:, 0]).mean(axis=0), q, rtol=0.1)
