"""The literature's numbers, by simulation: fixed draws, the stated tolerance, predictions that share no code with it.

Numbers are those of the papers named beside them, recomputed to the digits printed.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import vgjax as vg
from vgjax import theory

COMPUTES = True

SEEDS = 4


def drawn(net: vg.Network, seed: int, kernel_init: str = "gaussian") -> vg.networks.Parameters:
    """Parameters of a network by numpy, so that nothing is compiled: kernels of variance 1 / fan_in or orthogonal,
    standard normal biases, norms of gain 1 and offset 0, gates of 1, uniform noise."""
    rng = np.random.default_rng(seed)

    def fill(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path)
        if "'scale'" in name or "'gate'" in name:
            return np.ones(leaf.shape, leaf.dtype)
        if "'noise'" in name:
            return rng.uniform(size=leaf.shape).astype(leaf.dtype)
        if "kernel" not in name:
            return (rng.normal(size=leaf.shape) * ("'norm'" not in name)).astype(leaf.dtype)
        attends = [part for part in ("query", "key", "value") if f"'{part}'" in name]
        axes = 2 if attends or "'out'" in name else 1  # of the inputs, or of the outputs: heads have two
        fan_in = math.prod(leaf.shape[-axes - 1 : -1]) if "'out'" in name else leaf.shape[-1 - axes]
        shape = (*leaf.shape[: leaf.ndim - 1 - axes], fan_in, math.prod(leaf.shape[-1 - axes :]) // fan_in)
        a = (
            oracles.orthonormal(rng, shape)
            if kernel_init == "orthogonal"
            else rng.normal(size=shape) / math.sqrt(fan_in)
        )
        return a.reshape(leaf.shape).astype(leaf.dtype)

    like = jax.eval_shape(lambda key: vg.init(key, net), jax.random.key(0))
    return jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(fill, like))


def inputs(net: vg.Network, seed: int) -> np.ndarray:
    return np.random.default_rng(1000 + seed).normal(size=net.input_shape).astype(np.float32)


def rates(
    build: Callable[[int], vg.Network], scales: vg.Scales, start: int, stop: int, seeds: int = 8
) -> dict[int, np.ndarray]:
    """Growth per layer of the squared gradient from layer ``stop`` back to ``start``, of every draw, at two widths."""
    found = {}
    for width in (128, 512):
        net = build(width)
        pulls = (vg.pull_back(drawn(net, s), scales, inputs(net, s), key=jax.random.key(s)) for s in range(seeds))
        logs = np.array([pull.log_gain for pull in pulls], float)
        found[width] = np.exp(2 * (logs[:, start] - logs[:, stop]) / (stop - start))
    return found


def assert_within_errors(found: dict[int, np.ndarray], expected: float, per_width: float) -> None:
    """The mean over draws is what is expected to 4 standard errors and a correction of order 1 / width; and the errors
    are small enough to tell."""
    for width, values in found.items():
        error = values.std(ddof=1) / math.sqrt(len(values)) / abs(expected)
        assert abs(values.mean() / expected - 1) < 4 * error + per_width / width, (width, values.mean(), error)
    assert 4 * error < 0.05


# --- normalization --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "batch", "expected"),
    [
        ("linear", 8, 1.2),
        pytest.param("relu", 8, 1.788189977, marks=pytest.mark.slow),
        ("relu", 64, 1.493062938),
    ],
)
def test_batch_norm_explodes_at_the_rate_of_its_batch(activation: str, batch: int, expected: float) -> None:
    """Yang et al. 2019, "A mean field theory of batch normalization"; whatever sigma_w."""
    normed = {"activation": activation, "norm": vg.norm("batch", batch=batch, epsilon=0.0)}
    found = rates(lambda width: vg.mlp(width=width, depth=16, inputs=64, **normed), vg.Scales(sigma_w=1.3), 2, 15)
    assert_within_errors(found, expected, per_width=1)


def test_layer_norm_has_the_chi_of_theory() -> None:
    """Doshi, He and Gromov 2023."""
    normed = {"activation": "tanh", "norm": vg.norm("layer", epsilon=0.0)}
    scales = vg.Scales(sigma_w=1.2, sigma_b=0.4)
    found = rates(lambda width: vg.mlp(width=width, depth=40, inputs=64, **normed), scales, 2, 38)
    chi = theory.normalization.norm_on_preactivations("tanh", 1.2, 0.4).chi
    assert_within_errors(found, chi, per_width=1)


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_normalized_network_does_not_see_the_scale_of_its_weights(norm: str) -> None:
    """Exactly, without epsilon; and so at 1e-14 and 1e14 as well, where states and single Jacobians are beyond the
    window of the exponents."""
    kind = vg.norm(norm, batch=4 if norm == "batch" else None, epsilon=0.0)
    net = vg.mlp(width=9, depth=6, inputs=5, activation="tanh", norm=kind)
    params, x, v = drawn(net, 0), inputs(net, 0), np.random.default_rng(1).normal(size=(*net.input_shape[:-1], 9))
    scales = [vg.Scales(sigma_w=sigma) for sigma in (1.0, 1e-14, 1e14)]
    plain, *extreme = (vg.pull_back(params, scale, x, v.astype(np.float32)) for scale in scales)
    assert np.ptp(plain.log_gain) > 0.1
    for pull, scale in zip(extreme, scales[1:], strict=True):
        np.testing.assert_allclose(pull.log_gain, plain.log_gain, atol=1e-4)
        shift = 2 * math.log(float(scale.sigma_w))
        np.testing.assert_allclose(pull.log_mean_square - shift, plain.log_mean_square, atol=1e-4)
        assert pull.first_inexact_layer == 7
    if norm == "layer":
        found = [vg.log_singular_values(params, scale, x, dtype="float64") for scale in scales]
        rank = found[0].rank
        for other in found[1:]:
            np.testing.assert_array_equal(other.rank, rank)
            kept = other.log_singular_values[:, : rank[0]], found[0].log_singular_values[:, : rank[0]]
            np.testing.assert_allclose(*kept, atol=1e-6)


def test_below_its_epsilon_a_norm_is_linear_and_so_it_goes_on_past_the_float_range() -> None:
    """The same numbers in float64, where 1e-90 is an ordinary number."""
    options = {"width": 7, "depth": 6, "inputs": 5, "activation": "gelu", "norm": vg.norm("layer", epsilon=1e-3)}
    scales, net = vg.Scales(sigma_w=1e-14), vg.mlp(**options)
    params, x, v = drawn(net, 0), inputs(net, 0), np.random.default_rng(1).normal(size=7).astype(np.float32)
    ours = vg.pull_back(params, scales, x, v)
    with jax.enable_x64(True):
        double = vg.mlp(**options, dtype="float64")
        like = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params.stem, params.stages, params.head))
        exact = vg.pull_back(vg.networks.Parameters(*like, double), scales, x.astype(float), v.astype(float))
    exact = jax.tree.map(np.asarray, exact)
    assert exact.log_mean_square[-1] < -380
    np.testing.assert_allclose(ours.log_mean_square, exact.log_mean_square, rtol=1e-5)
    np.testing.assert_allclose(ours.log_gain, exact.log_gain, rtol=1e-5, atol=1e-5)


# --- residual -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "at_10", "at_100"),
    [("tanh", 2.643206353, 10.54554853), ("relu", 10 * math.log(1.5), 100 * math.log(1.5))],
)
def test_residual_gradients_grow_like_the_root_of_depth_or_with_it(
    activation: str, at_10: float, at_100: float
) -> None:
    """Yang and Schoenholz 2017: x + V phi(W x), sigma_v = sigma_w = 1, no bias, p = 1 at the start."""
    for width in (128, 384):
        net = vg.mlp(width=width, depth=100, stem=False, activation=activation, residual="plain")
        logs = []
        for s in range(SEEDS):
            x = inputs(net, s)
            pull = vg.pull_back(drawn(net, s), vg.Scales(), x / np.sqrt(np.mean(x**2)), key=jax.random.key(s))
            logs.append(2 * np.asarray(pull.log_gain, float))
        for l, expected in ((10, at_10), (100, at_100)):
            ratios = np.array(logs)[:, 0] - np.array(logs)[:, l]
            annealed = np.logaddexp.reduce(ratios) - math.log(SEEDS)
            # Finite width: about 5 l / (4 n) between mean and typical, and the scatter of four draws.
            allowed = 4 * ratios.std(ddof=1) / math.sqrt(SEEDS) + 5 * l / width / 4
            assert annealed == pytest.approx(expected, abs=allowed), (width, l)


def test_rezero_is_the_identity_and_only_its_gate_has_a_gradient() -> None:
    """Bachlechner et al. 2020: J = 1 exactly, branch parameters exactly 0, the gate not."""
    net = vg.mlp(width=8, depth=20, inputs=4, outputs=3, residual=vg.networks.branch("plain", scheme="rezero"))
    flow = vg.gradient_flow(drawn(net, 0), vg.Scales(), inputs(net, 0), 1)
    np.testing.assert_array_equal(flow.log_gradient, flow.log_gradient[0])
    np.testing.assert_array_equal(flow.log_mean_square, flow.log_mean_square[0])
    for path, logs in flow.log_parameter_gradient.items():
        if path.startswith("branch/"):
            assert np.all(np.isneginf(logs))
    assert np.all(np.isfinite(flow.log_parameter_gradient["gate"]))


def test_stable_and_fixup_scale_the_branches_by_depth() -> None:
    """Hayou et al. 2021: squared gradient (1 + 1/L)^L for ReLU at sigma_v sigma_w = sqrt 2. Zhang et al. 2019:
    L^(-1/(2m-2)), the last kernel 0, so that every block begins as the identity."""
    stable = {"activation": "relu", "residual": vg.networks.branch("plain", scheme="stable")}
    scales = vg.Scales(sigma_w=2**0.5)
    found = rates(lambda width: vg.mlp(width=width, depth=32, inputs=64, **stable), scales, 0, 32)
    assert_within_errors(found, 1 + 1 / 32, per_width=0.5)
    fixup = vg.mlp(
        width=4, depth=16, inputs=2, activation="relu", residual=vg.networks.branch("pre", layers=3, scheme="fixup")
    )
    assert fixup.scales["sigma_w"].default == pytest.approx(math.sqrt(2) * theory.residual.fixup_scale(16, 3))
    assert fixup.scales["sigma_v"].default == 0
    np.testing.assert_allclose(vg.pull_back(drawn(fixup, 0), vg.Scales(), np.ones(2)).log_gain, 0, atol=1e-6)


# --- convolutions ---------------------------------------------------------------------------------------------------


def test_delta_orthogonal_convolutions_keep_every_singular_value() -> None:
    """Xiao et al. 2018: all equal to sigma_w^L, to the rounding of the float32 draw, under circular padding."""
    net = vg.cnn(channels=4, depth=20, inputs=(4, 3, 2), activation="linear", kernel_init="delta_orthogonal")
    found = vg.log_singular_values(
        vg.init(jax.random.key(0), net), vg.Scales(sigma_w=1.1), inputs(net, 0), dtype="float64"
    )
    np.testing.assert_allclose(found.log_singular_values, 20 * math.log(np.float32(1.1)), atol=20 * 2.0**-23)


# --- recurrences ----------------------------------------------------------------------------------------------------


def test_an_orthogonal_linear_recurrence_scales_by_rho_at_every_step() -> None:
    net = vg.rnn(width=12, depth=1000, inputs=3, activation="linear")
    gain = vg.pull_back(drawn(net, 0, "orthogonal"), vg.Scales(sigma_w=0.9), inputs(net, 0)).log_gain
    np.testing.assert_allclose(gain, np.arange(1000, -1, -1) * math.log(np.float32(0.9)), atol=1e-3, rtol=2e-6)


@pytest.mark.parametrize(("bias", "time_scale"), [(0.0, 1.442695), (2.0, 7.878482), (4.0, 55.096638)])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_forget_gate_keeps_gradients_for_its_time_scale(kind: str, bias: float, time_scale: float) -> None:
    """With vanishing weights the factor per step is sigmoid(bias): a time scale of -1 / ln sigmoid(bias)."""
    net = getattr(vg, kind)(width=5, depth=40, inputs=2)
    scales = vg.Scales(sigma_w=0.0, sigma_v=0.0, forget_bias=bias)
    flow = vg.gradient_flow(drawn(net, 0), scales, inputs(net, 0))
    logs = flow.log_gradient_parts["c"] if kind == "lstm" else flow.log_gradient
    per_step = (logs[0] - logs[-2]) / 39
    assert -1 / float(per_step) == pytest.approx(time_scale, rel=1e-5)
    gate = flow.diagnostics["forget_gate" if kind == "lstm" else "update_gate"]
    np.testing.assert_allclose(gate, 1 / (1 + math.exp(-bias)), rtol=1e-6)


@pytest.mark.parametrize(("gain", "exponent"), [(2.0, 0.1547242298), (3.0, 0.3102493151)])
def test_the_largest_lyapunov_exponent_of_the_tanh_recurrence(gain: float, exponent: float) -> None:
    """Autonomous h <- g J tanh h; its finite-width correction is about -14 / width at g = 2, -9 / width at g = 3."""
    found = {}
    for width in (192, 768):
        net = vg.networks.tied(vg.mlp(width=width, depth=800, inputs=16))
        draws = [(drawn(net, s), inputs(net, s)) for s in range(4)]
        exponents = [vg.lyapunov_exponents(p, vg.Scales(sigma_w=gain), x, 1, discard=200).exponents for p, x in draws]
        found[width] = np.array(exponents, float)[:, 0]
    assert_within_errors(found, exponent, per_width=15)


def test_the_minimal_recurrence_follows_its_mean_field_with_new_weights_at_every_step() -> None:
    """Chen, Pennington and Schoenholz 2018, inputs white in time, R = 1."""

    def build(width: int) -> vg.Network:
        return vg.networks.untied(vg.rnn(width=width, depth=24, inputs=width, cell="minimal"))

    scales = vg.Scales(sigma_w=2.0, sigma_v=1.0, forget_bias=1.0)
    expected = theory.recurrent.minimal_rnn(sigma_w=2.0, sigma_v=1.0, mean_b=1.0)
    assert_within_errors(rates(build, scales, 10, 24, seeds=4), expected.chi, per_width=1)


# --- transformers ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("place", "exponent"), [("pre", -0.5), ("post", 0.0)])
def test_the_last_kernels_gradient_falls_with_depth_under_pre_norm_only(place: str, exponent: float) -> None:
    """Xiong et al. 2020: L^-1/2 under pre-LN, flat under post-LN, for L = 4 ... 32, d = 64, 8 tokens. Within 0.1.

    The L-layer network is the 32-layer one with the branches behind L at 0: those blocks are the identity (under
    post-LN on what is normalized already).
    """
    net = vg.transformer(
        width=64,
        depth=32,
        heads=4,
        inputs=(8, 64),
        outputs=10,
        norm=vg.norm("layer", epsilon=0.0),
        residual=place,
        feed_forward="relu",
    )
    depths, logs = np.array([4, 8, 16, 32]), []
    for seed in range(8):
        params, x = drawn(net, seed), inputs(net, seed)
        kept = [vg.Scales(branch=1.0 * (np.arange(32) < depth)) for depth in depths]
        flows = [vg.gradient_flow(params, scales, x, 1) for scales in kept]
        kernel = "feed_forward/branch/layer_2/kernel"
        logs.append([flow.log_parameter_gradient[kernel][L - 1] for flow, L in zip(flows, depths, strict=True)])
    slope = np.polyfit(np.log(depths), np.mean(logs, axis=0), 1)[0]
    assert slope == pytest.approx(exponent, abs=0.1)


def test_deepnorm_has_its_constants() -> None:
    """Wang et al. 2022, 12 layers."""
    skips = vg.networks.branch("post", scheme="deepnorm")
    net = vg.transformer(width=8, depth=12, heads=2, inputs=(3, 2), residual=skips)
    scales = {name: scale.default for name, scale in net.scales.items()}
    assert scales["skip"] == pytest.approx(2.2133638394)
    assert scales["sigma_vo"] == scales["sigma_w"] == pytest.approx(0.3194715521)
    assert scales["sigma_qk"] == 1


def test_uniform_attention_makes_tokens_alike() -> None:
    """Noci et al. 2022: M / (n + M), M = (1 + 1/L)^L - 1, for n = 16 orthonormal tokens.

    The 6-layer network is the 12-layer one with the branches behind at 0.
    """
    net = vg.transformer(width=256, depth=12, heads=1, inputs=(16, 256), norm=None, feed_forward=None)
    stem = {"kernel": jnp.eye(256), "bias": jnp.zeros(256)}
    found: dict[int, list[float]] = {6: [], 12: []}
    for seed in range(8):
        params = dataclasses.replace(drawn(net, seed, "orthogonal"), stem=stem)
        x = np.linalg.qr(inputs(net, seed).T)[0].T  # orthonormal tokens
        for depth, values in found.items():
            scales = vg.Scales(sigma_qk=0.0, branch=depth**-0.5 * (np.arange(12) < depth))
            values.append(vg.measure.token_correlation(params, scales, x)[depth])
    for depth, expected in ((6, 0.0868427587), (12, 0.0915819030)):
        error = np.std(found[depth], ddof=1) / math.sqrt(8)
        assert error < 0.1 * expected
        assert float(np.mean(found[depth])) == pytest.approx(expected, abs=float(4 * error))


def test_without_a_skip_tokens_collapse_and_queries_and_keys_learn_nothing() -> None:
    """Dong, Cordonnier and Loukas 2021: rank one after one layer of uniform attention."""
    net = vg.transformer(width=16, depth=3, heads=2, inputs=(5, 16), norm=None, feed_forward=None)
    params, x = drawn(net, 0), inputs(net, 0)
    scales = vg.Scales(sigma_qk=0.0, skip=0.0)
    np.testing.assert_allclose(vg.measure.token_correlation(params, scales, x)[1:], 1, atol=1e-5)
    same = np.repeat(x[:1], 5, axis=0)
    flow = vg.gradient_flow(params, vg.Scales(), same)
    weights = flow.log_parameter_gradient
    for part in ("query", "key"):
        below = weights[f"attention/branch/attention/{part}/kernel"]
        assert np.all(below < weights["attention/branch/attention/value/kernel"] - 12)  # 0, to rounding


# --- noise ----------------------------------------------------------------------------------------------------------


def test_dropout_moves_the_variance_to_its_fixed_point() -> None:
    """tanh at (2.5, .05), a tenth of the units dropped: q* = 1.2640994325."""
    scales, found = vg.Scales(sigma_w=math.sqrt(2.5), sigma_b=math.sqrt(0.05), dropout=0.1), {}
    for width in (128, 512):
        net = vg.mlp(width=width, depth=40, inputs=64, dropout="bernoulli")
        pushes = [vg.push_forward(drawn(net, s), scales, inputs(net, s)) for s in range(8)]
        found[width] = np.exp(np.array([push.log_mean_square[6:] for push in pushes], float)).mean(axis=1)
    assert_within_errors(found, 1.2640994325, per_width=1)
    assert found[512].mean() > 1.1 * theory.mean_field("tanh", math.sqrt(2.5), math.sqrt(0.05)).q_star
