"""Several streams: hyper-connections, averages over the past, and what is kept beside itself."""

import functools
from typing import Any

import architecture_oracles as truth
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_oracles import check, within_errors

import vgjax as vg
from vgjax.blocks import spec
from vgjax.networks import chain, concatenated, depth_average, hyper_connections
from vgjax.theory import streams as theory

N, D, DEPTH = 3, 4, 5
KEY = jax.random.key(7)


def hyper(
    block: Any, depth: int = DEPTH, inputs: Any = D, width: int = D, streams: int = N, dtype: str = "float32"
) -> Any:
    """Streams from the input itself, and a head on their sum."""
    split, merge = spec(vg.blocks.Split, streams), spec(vg.blocks.Merge)
    head = vg.dense(width, 2, before=merge, dtype=dtype)
    blocks = [block] * depth if isinstance(block, vg.blocks.Spec) else block
    return vg.networks.sequential(*blocks, input_shape=inputs, stem=split, head=head)


def branch(dtype: str = "float32") -> vg.blocks.Spec:
    return vg.dense(D, D, "tanh", dtype=dtype)


# --- hyper-connections against automatic differentiation ------------------------------------------------------------


def paper(maps: Any) -> truth.Parts:
    """Equation 2 of Zhu et al. 2024 with its streams one after the other; ``maps(p, H) -> A_m, A_r, B``, rows of H
    streams, and A_r from row to column."""

    def block(p: Any, H: Any, scales: dict[str, float], _: None) -> Any:
        A_m, A_r, B = maps(p, H)
        h0 = sum(A_m[i] * H[i] for i in range(N))
        out = jnp.tanh(h0) @ p["branch"]["kernel"] + p["branch"]["bias"]
        return jnp.stack(
            [
                scales.get("skip", 1.0) * sum(A_r[i][j] * H[i] for i in range(N))
                + scales.get("branch", 1.0) * B[j] * out
                for j in range(N)
            ]
        )

    return truth.Parts(
        lambda p, x: jnp.stack([x] * N), block, lambda p, H: truth.affine(p, sum(H[i] for i in range(N)))
    )


def shifted(i: int, j: int) -> float:
    """Stream i + 1 becomes stream i."""
    return float(i == (j + 1) % N)


def free(p: Any, H: Any) -> Any:
    return p["read"][:, 0], [[shifted(i, j) + p["mixing"][j, i] for j in range(N)] for i in range(N)], p["write"][0]


def dynamic(p: Any, H: Any) -> Any:
    """Equations 10 to 13, a place (token) with maps of its own."""
    A_m, A_r, B = free(p, H)
    waves = [jnp.tanh(h / jnp.sqrt(jnp.mean(h**2, axis=-1, keepdims=True)) @ p["dynamic"]) for h in H]
    s, t = p["factors"][0, 0], p["factors"][1, 0]
    A_r = [[A_r[i][j] + s * waves[i][:, j : j + 1] for j in range(N)] for i in range(N)]
    A_m = [A_m[i] + s * waves[i][:, N : N + 1] for i in range(N)]
    return A_m, A_r, [B[j] + t * waves[j][:, N + 1 :] for j in range(N)]


def balanced(p: Any, H: Any) -> Any:
    """Rows say where to: each is normalized last."""
    A_m, _, B = free(p, H)
    R = jnp.exp(jnp.array([[1.5 * shifted(i, j) for i in range(N)] for j in range(N)]) + p["mixing"])
    for _ in range(20):
        R = R / R.sum(axis=0, keepdims=True)
        R = R / R.sum(axis=1, keepdims=True)
    return A_m, R.T, B


SCALES = {"sigma_w": 1.3, "sigma_b": 0.4, "sigma_r": 0.3, "branch": 0.7, "skip": 0.9}
NAMES = {"branch/kernel": "sigma_w", "branch/bias": "sigma_b", "mixing": "sigma_r", "dynamic": "sigma_d"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_free_maps(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        net = hyper(hyper_connections(branch(dtype), N, dtype=dtype), dtype=dtype)
    flow, _, ordinary = check(net, paper(free), SCALES, NAMES, dtype=dtype)
    R = np.array([[[shifted(i, j) for i in range(N)] for j in range(N)]]) + ordinary.stages[0]["mixing"]
    for axis, name in ((2, "largest_row_sum"), (1, "largest_column_sum")):
        np.testing.assert_allclose(flow.diagnostics[name][0], np.abs(R).sum(axis).max(1), rtol=1e-5)
    assert list(flow.log_gradient_parts) == ["stream_0", "stream_1", "stream_2"]


def test_dynamic_maps_at_every_token(x64: None) -> None:
    block = hyper_connections(branch("float64"), N, features=D, dtype="float64")
    net = hyper(block, inputs=(2, D), dtype="float64")
    check(net, paper(dynamic), SCALES | {"sigma_d": 1.2}, NAMES)


def test_constrained_maps(x64: None) -> None:
    block = hyper_connections(branch("float64"), N, logit=1.5, dtype="float64")
    # Streams that differ, of which one is read: sums of 1 keep equal ones, and the sum of all, whatever the logits.
    head = vg.dense(D, 2, before=spec(vg.blocks.Part, 1), dtype="float64")
    parts = truth.Parts(lambda p, x: x, paper(balanced).block, lambda p, H: truth.affine(p, H[1]))
    net = vg.stack(block, depth=DEPTH, input_shape=(N, D), head=head)
    flow, _, ordinary = check(net, parts, SCALES | {"sigma_r": 1.1}, NAMES)
    for l in range(DEPTH):
        p = {name: jnp.asarray(a[l]) for name, a in ordinary.stages[0].items() if name != "branch"}
        sums = np.asarray(balanced(p, None)[1]).sum(axis=1)
        np.testing.assert_allclose(flow.diagnostics["column_error"][0, l], np.abs(sums - 1).max(), atol=1e-15)
    np.testing.assert_allclose(flow.diagnostics["largest_row_sum"], 1, rtol=1e-12)


def test_blocks_all_alike_are_the_papers_layers_that_read_one_stream_after_the_other() -> None:
    """Layer k of the paper reads stream k mod n and keeps all streams."""
    alike = hyper(hyper_connections(branch(), N))
    turned = hyper([hyper_connections(branch(), N, read=k % N) for k in range(DEPTH)])
    parameters = truth.drawn(alike)
    unlike = vg.networks.Parameters(
        {},
        tuple(jax.tree.map(lambda a, k=k: a[k : k + 1], parameters.stages[0]) for k in range(DEPTH)),
        parameters.head,
        turned,
    )
    first, one = jnp.zeros((N, 1)).at[0].set(1), jnp.ones((1, N))
    starts = [jnp.roll(first, k % N, axis=0) for k in range(DEPTH)]
    parameters.stages[0].update(read=jnp.stack([first] * DEPTH), write=jnp.stack([one] * DEPTH))
    for stage, read in zip(unlike.stages, starts, strict=True):
        stage.update(read=read[None], write=one[None])
    x, y = np.random.default_rng(0).normal(size=D), np.ones(2)
    scales = vg.Scales(sigma_w=1.2, sigma_b=0.3)
    call = functools.partial(vg.gradient_flow, loss="squared_error")
    flows = [truth.compiled(call, each, scales, x, y) for each in (parameters, unlike)]
    for name in ("log_gradient", "log_mean_square"):
        np.testing.assert_allclose(*(getattr(flow, name) for flow in flows), rtol=0, atol=1e-5)
    kernels = [flow.log_parameter_gradient["branch/kernel"] for flow in flows]
    np.testing.assert_allclose(*kernels, rtol=0, atol=1e-5)


def test_dynamic_maps_begin_as_static_ones() -> None:
    """The paper starts W at 0 and s at .01."""
    block = hyper_connections(branch(), N, features=D)
    module = block.build(vg.blocks.protocol.nnx.Rngs(0))
    h = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
    scales = vg.Scales(sigma_w=1.0, sigma_b=0.0, skip=1.0, branch=1.0, sigma_r=0.0)
    here = module.maps(h, vg.Scales(**scales, sigma_d=0.0))
    np.testing.assert_array_equal(here[0], np.eye(N)[0])
    np.testing.assert_array_equal(here[1], np.roll(np.eye(N), 1, axis=1))
    np.testing.assert_array_equal(here[2], np.ones(N))
    np.testing.assert_array_equal(module.factors[...], np.full((2, 1), 0.01, np.float32))
    # Of the direction alone, and defined at 0.
    scales = vg.Scales(**scales, sigma_d=1.0)
    for ours, theirs in zip(module.maps(h, scales), module.maps(1e12 * h, scales), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert all(np.all(np.isfinite(each)) for each in module.maps(0 * h, scales))


def test_streams_past_the_float_range() -> None:
    """Depth 400 in float32 against numpy in float64 that divides by the norm after every layer."""
    net = hyper(hyper_connections(vg.dense(D, D, "relu"), N), depth=400)
    parameters, x = truth.drawn(net), np.random.default_rng(1).normal(size=D)
    scales = vg.Scales(sigma_w=2.5, sigma_r=0.2)
    found = truth.compiled(vg.push_forward, parameters, scales, x)
    stage = jax.tree.map(lambda a: np.asarray(a, np.float64), parameters.stages[0])
    h, total, logs = np.stack([x] * N), 0.0, [np.log(np.mean(x**2))]
    for l in range(400):
        R = np.roll(np.eye(N), 1, axis=1) + 0.2 * stage["mixing"][l]
        read = stage["read"][l][:, 0] @ h
        made = np.maximum(read, 0) @ (2.5 * stage["branch"]["kernel"][l])
        h = R @ h + np.outer(stage["write"][l][0], made)
        total += np.log(np.mean(h**2))
        h = h / np.sqrt(np.mean(h**2))
        logs.append(total)
    assert logs[-1] > 200
    np.testing.assert_allclose(found.log_mean_square, logs, rtol=1e-5, atol=1e-4)
    assert found.first_inexact_layer == 401


# --- gains of hyper-connections -------------------------------------------------------------------------------------


@functools.cache
def gains(block: Any, depth: int, seeds: int, width: int, **scales: float) -> tuple[np.ndarray, np.ndarray]:
    """Squared gains of isotropic tangents and cotangents, over draws, at the last state and at the first."""
    net = hyper(block, depth, width, width, streams=4)
    x = np.random.default_rng(0).normal(size=width).astype(np.float32)
    size = 4 * width

    @jax.jit
    @jax.vmap
    def one(key: jax.Array) -> Any:
        params = vg.init(key, net)
        u, v = jax.random.normal(jax.random.fold_in(key, 9), (2, 4, width)) / np.sqrt(size)
        unit = lambda a: a / jnp.linalg.norm(a)  # noqa: E731
        push = vg.push_forward(params, vg.Scales(**scales), x, unit(u))
        pull = vg.pull_back(params, vg.Scales(**scales), x, unit(v))
        return push.log_gain[-1], pull.log_gain[0]

    return tuple(np.exp(2 * np.asarray(a, np.float64)) for a in one(jax.random.split(KEY, seeds)))  # type: ignore[return-value]


def test_free_maps_have_the_gain_of_their_closed_form() -> None:
    """E gain^2 = (1 + n eps^2)^L, forward and backward: 1.04^24 = 2.563."""
    for found in gains(hyper_connections(vg.dense(1, 1), 4), 24, 2000, 1, sigma_r=0.1, branch=0.0):
        within_errors(found, 1.04**24)
    assert np.exp(theory.free_maps_log_gain(0.1, 24, 4)) == pytest.approx(1.04**24, rel=1e-12)
    # What was reported of a training at 27B: a gain of 3000 over 60 maps.
    assert np.exp(theory.free_maps_log_gain(0.277, 60) / 2) == pytest.approx(3000, rel=0.03)


def test_constrained_maps_never_amplify() -> None:
    """E gain^2 = (1 + 3 mu^L) / 4, mu from matrices that numpy balances; never above 1 forward, nor backward."""
    rng = np.random.default_rng(3)
    R = balance(3 * np.eye(4) + rng.normal(size=(20000, 4, 4)))
    mu = (np.sum(R**2, axis=(1, 2)).mean() - 1) / 3
    forward, backward = gains(hyper_connections(vg.dense(1, 1), 4, logit=3.0), 8, 2000, 1, sigma_r=1.0, branch=0.0)
    expected = np.exp(theory.constrained_log_gain(mu, 8))
    assert expected[0] == 1
    for found in (forward, backward):
        within_errors(found, expected[-1])
        assert found.max() < 1.01
    assert 0.25 < expected[-1] < 0.6


def test_a_constrained_map_has_the_second_eigenvalue_of_its_closed_form(x64: None) -> None:
    """(e^3 - 1) / (e^3 + 3) = .826731, and the gain of 6 of them is that of its powers, exactly."""
    assert theory.second_eigenvalue(3.0) == pytest.approx(0.826731, abs=5e-7)
    assert theory.sinkhorn(3 * np.eye(4)).second == pytest.approx(float(theory.second_eigenvalue(3.0)), rel=1e-12)
    assert theory.second_eigenvalue(-1.0, 5) == pytest.approx(
        np.linalg.eigvalsh(balance(-np.eye(5)[None])[0])[0], rel=1e-9
    )
    block = hyper_connections(vg.dense(1, 1, dtype="float64"), 4, logit=3.0, dtype="float64").build(
        vg.blocks.protocol.nnx.Rngs(0)
    )
    R = np.asarray(block.maps(jnp.ones((4, 1)), vg.Scales(sigma_r=0.0))[1])
    squares = [np.sum(np.linalg.matrix_power(R, l) ** 2) / 4 for l in range(7)]
    np.testing.assert_allclose(np.log(squares), theory.constrained_log_gain(0.8267313420818772**2, 6), atol=1e-12)


def balance(logits: np.ndarray, steps: int = 20) -> np.ndarray:
    R = np.exp(logits)
    for _ in range(steps):
        R = R / R.sum(axis=1, keepdims=True)
        R = R / R.sum(axis=2, keepdims=True)
    return R


def test_sinkhorn_errs_on_the_columns_alone() -> None:
    """Twenty steps, rows last: medians of the column error 8e-7 at logits of scale 2, 3e-3 at 4."""
    rng = np.random.default_rng(0)
    for scale, median in ((2, 8e-7), (4, 3e-3)):
        logits = scale * rng.normal(size=(20000, 4, 4))
        R = balance(logits)
        errors = np.abs(R.sum(axis=1) - 1).max(axis=1)
        assert np.median(errors) == pytest.approx(median, rel=0.15)
        for one, ours in zip(R[:5], map(theory.sinkhorn, logits[:5]), strict=True):
            np.testing.assert_allclose(ours.map, one, atol=1e-13)
            assert np.abs(ours.map.sum(axis=1) - 1).max() < 1e-14
            assert ours.column_error == pytest.approx(np.abs(one.sum(axis=0) - 1).max(), abs=1e-13)
    with pytest.raises(ValueError, match=r"columns must sum to 1 within 1e-06 after 20 steps, got an error of 0\."):
        theory.sinkhorn(np.array([[9.0, 0.0], [9.0, -9.0]]), tolerance=1e-6)


def test_streams_with_branches_are_what_theory_says() -> None:
    """A linear branch, at every width; and pre-norm branches, to 1 / width."""
    expected = theory.propagate_streams(6, 4, deviation=0.1, branch=0.5)
    forward, backward = gains(hyper_connections(vg.dense(8, 8), 4), 6, 1500, 8, sigma_r=0.1, branch=0.5)
    within_errors(forward, np.exp(expected.log_gain[-1]))
    within_errors(backward, np.exp(expected.log_gain[-1]))  # of the product's transpose: |J|_F^2 is one number
    width = 256
    normed = chain(norm=spec(vg.blocks.Norm, "rms", width, epsilon=0.0), layer=vg.dense(width, width))
    expected = theory.propagate_streams(6, 4, normalized=True)
    assert np.exp(expected.log_gain[-1]) == pytest.approx(7, rel=1e-12)
    for found in gains(hyper_connections(normed, 4), 6, 200, width):
        error = found.std(ddof=1) / np.sqrt(200)
        assert (
            abs(found.mean() - 7) < 4 * error + 70 / width
        )  # 9.5, 8.7, 7.6 at widths 24, 48, 96: about 7 + 65 / width
        assert error < 0.1
    # Without deviation of the maps and one stream this is the plain residual stack.
    plain = theory.propagate_streams(6, 1, gain=0.7, branch=0.5)
    np.testing.assert_allclose(plain.log_gain, np.arange(7) * np.log1p(0.25 * 0.7), rtol=1e-12)
    np.testing.assert_allclose(plain.mean_square, (1 + 0.25 * 0.7) ** np.arange(7), rtol=1e-12)
    normed = theory.propagate_streams(6, 1, normalized=True)  # 1 + l, and its product of 1 + 1 / (1 + l)
    np.testing.assert_allclose(normed.mean_square, 1 + np.arange(7), rtol=1e-12)
    np.testing.assert_allclose(normed.log_gain, np.log(1 + np.arange(7)), rtol=1e-12)


# --- averages over the past -----------------------------------------------------------------------------------------


def averaged(width: int, depth: int, phi: str = "linear", **options: Any) -> Any:
    block = depth_average(vg.dense(width, width, phi, **options), depth + 1, **options)
    head = vg.dense(width, 2, before=spec(vg.blocks.Part, 0), bias_init="zero", **options)
    stem = spec(vg.blocks.Remember, depth + 1)
    return vg.stack(block, depth=depth, input_shape=width, stem=stem, head=head)


def test_averages_over_the_past(x64: None) -> None:
    """Equation 1 of Pagliardini et al. 2024, with the past in a list."""

    def block(p: Any, past: Any, scales: dict[str, float], _: None) -> Any:
        weights = [float(j == 0) + p["weights"][j, 0] for j in range(5)]
        read = sum(weight * state for weight, state in zip(weights, past, strict=True))
        return jnp.stack([jnp.tanh(read) @ p["branch"]["kernel"] + p["branch"]["bias"], *past[:-1]])

    parts = truth.Parts(
        lambda p, x: jnp.stack([x, *[jnp.zeros_like(x)] * 4]), block, lambda p, past: truth.affine(p, past[0])
    )
    names = {"branch/kernel": "sigma_w", "branch/bias": "sigma_b", "weights": "sigma_past"}
    scales = {"sigma_w": 1.2, "sigma_b": 0.3, "sigma_past": 0.5}
    check(averaged(D, 4, "tanh", dtype="float64"), parts, scales, names)


def test_averages_begin_as_the_network_without_them() -> None:
    net, plain = (
        averaged(D, 4, "tanh"),
        vg.stack(vg.dense(D, D, "tanh"), depth=4, input_shape=D, head=vg.dense(D, 2, bias_init="zero")),
    )
    parameters = truth.drawn(net)
    same = vg.networks.Parameters({}, (parameters.stages[0]["branch"],), parameters.head, plain)
    x, scales = np.random.default_rng(0).normal(size=D), vg.Scales(sigma_w=1.2, sigma_b=0.3)
    outputs = [truth.compiled(vg.forward, each, scales, x) for each in (parameters, same)]
    np.testing.assert_allclose(*outputs, rtol=1e-6)


def test_averages_have_the_mean_square_of_their_closed_form() -> None:
    """q_(l+1) = q_l + eps^2 (q_0 + ... + q_l): 1, 1.25, 1.8125, ... at eps = .5."""
    expected = theory.depth_average_mean_square(5, 0.5)
    np.testing.assert_allclose(expected[:3], [1, 1.25, 1.8125])
    net, x = averaged(6, 5), np.random.default_rng(0).normal(size=6).astype(np.float32)

    @jax.jit
    @jax.vmap
    def newest(key: jax.Array) -> Any:
        return jnp.mean(vg.forward(vg.init(key, net), vg.Scales(sigma_past=0.5), x) ** 2)

    found = np.asarray(newest(jax.random.split(KEY, 4000)))
    within_errors(found / np.mean(x**2), expected[-1])


# --- what is kept beside itself -------------------------------------------------------------------------------------


def mean_gain(net: Any, seeds: int, **scales: float) -> np.ndarray:
    """|J u|^2 / |u|^2 of draws, each with an input and a tangent of its own."""

    @jax.jit
    @jax.vmap
    def one(key: jax.Array) -> Any:
        x, u = jax.random.normal(jax.random.fold_in(key, 3), (2, *net.input_shape))
        params = vg.init(key, net)
        forward = lambda x: vg.forward(params, vg.Scales(**scales), x)  # noqa: E731
        return jnp.sum(jax.jvp(forward, (x,), (u,))[1] ** 2) / jnp.sum(u**2)

    return np.asarray(one(jax.random.split(KEY, seeds)), np.float64)


def test_a_dense_net_gains_by_its_growth() -> None:
    """Each layer adds k features of the mean square of all n before: E |J u|^2 = |u|^2 prod (1 + k / n_l), which is
    (n + L k) / n, for a linear as for a He-scaled ReLU network."""
    n, k, L = 6, 4, 5
    for phi, sigma_w in (("linear", 1.0), ("relu", 2**0.5)):
        layers = [concatenated(vg.dense(n + i * k, k, phi)) for i in range(L)]
        within_errors(mean_gain(vg.sequential(*layers, input_shape=n), 3000, sigma_w=sigma_w), (n + L * k) / n)


def test_the_bottom_of_a_u_net_carries_a_share_of_two_to_the_minus_its_levels() -> None:
    """Unit gain in all: merging [h, F(h)] halves both. Without its bottom a net of 3 levels has E gain^2 = 7 / 8."""

    def level(inside: Any, wide: int, narrow: int) -> Any:
        around = chain(down=vg.dense(wide, narrow), inside=inside, up=vg.dense(narrow, wide))
        return chain(skip=concatenated(around), merge=vg.dense(2 * wide, wide))

    bottom = vg.dense(2, 2, names=("sigma_v", "sigma_a"))
    net = vg.sequential(level(level(level(bottom, 4, 2), 6, 4), 8, 6), input_shape=8)
    within_errors(mean_gain(net, 3000), 1.0)
    within_errors(mean_gain(net, 3000, sigma_v=0.0), 7 / 8)


# --- loops and flows ------------------------------------------------------------------------------------------------


def test_a_looped_linear_residual_tends_to_a_bessel_function() -> None:
    assert np.exp(theory.tied_log_gain(4, branch=0.5)) == pytest.approx(7.50390625, rel=1e-12)
    assert np.exp(theory.tied_log_gain(16, branch=0.25)) == pytest.approx(222.9016714, rel=1e-9)
    assert theory.flow_gain(1.0) == pytest.approx(2.279585302, rel=1e-9)
    loops = np.array([np.exp(theory.tied_log_gain(L, branch=1 / L)) for L in (100, 200, 400)])
    np.testing.assert_allclose(np.diff(loops)[0] / np.diff(loops)[1], 2, rtol=0.02)  # an error of order 1 / L
    np.testing.assert_allclose(2 * loops[2] - loops[1], 2.279585302, rtol=1e-5)
    assert theory.tied_log_gain(7, skip=0.0, branch=2.0) == pytest.approx(14 * np.log(2))
    assert theory.tied_log_gain(7, skip=3.0, branch=0.0) == pytest.approx(14 * np.log(3))


def test_residual_networks_of_branches_1_over_depth_are_a_flow() -> None:
    """Tied: exp(W) of the kernel that is drawn, to 1 / L; and its gain I_0(2) over draws, to 1 / width. Untied:
    E gain^2 = (1 + 1 / L^2)^L, which is 1 + 1 / L."""
    from scipy.linalg import expm

    width, depth = 24, 256
    net = vg.networks.tied(vg.stack(vg.residual(vg.dense(width, width)), depth=depth, input_shape=width))
    x = np.random.default_rng(0).normal(size=(40, width)).astype(np.float32)
    scales = vg.Scales(branch=1 / depth)

    @jax.jit
    @jax.vmap
    def run(key: jax.Array, x: Any) -> Any:
        params = vg.init(key, net)
        return params.stages[0]["branch"]["kernel"], vg.forward(params, scales, x)

    kernels, outputs = (np.asarray(a, np.float64) for a in run(jax.random.split(KEY, 40), x))
    exact = np.array([a @ expm(W) for a, W in zip(x, kernels, strict=True)])
    # The step's error: (1 + W / L)^L = exp(W - W^2 / 2L + ...).
    second = np.array([a @ W @ W @ expm(W) for a, W in zip(x, kernels, strict=True)]) / (2 * depth)
    np.testing.assert_allclose(np.linalg.norm(outputs - exact), np.linalg.norm(second), rtol=0.02)
    within_errors(np.sum(exact**2, axis=1) / np.sum(x**2, axis=1), 2.279585302, errors=4)
    untied = vg.stack(vg.residual(vg.dense(width, width)), depth=16, input_shape=width)
    within_errors(mean_gain(untied, 400, branch=1 / 16), (1 + 1 / 16**2) ** 16)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hyper_connections(branch(), 0), "streams must be at least 1, got 0"),
        (lambda: hyper_connections(branch(), 4, read=4), "read must be one of the 4 streams, counted from 0, got 4"),
        (lambda: hyper_connections(branch(), 4, logit=float("nan")), "logit must be finite, got nan"),
        (lambda: hyper_connections(branch(), 4, logit=1.0, steps=0), "steps must be at least 1, got 0"),
        (
            lambda: hyper_connections(vg.residual(branch(), scheme="rezero")),
            "scale branch must be of one kind, got parameter and factor",
        ),
        (lambda: depth_average(branch(), 0), "memory must be at least 1, got 0"),
        (lambda: vg.stack(hyper_connections(branch()), depth=2, input_shape=D), "HyperConnection must take a state"),
        (lambda: theory.sinkhorn(np.ones((2, 3))), r"logits must be a square matrix, got shape \(2, 3\)"),
        (lambda: theory.sinkhorn(np.full((2, 2), np.inf)), "logits must be finite, got inf"),
        (lambda: theory.propagate_streams(3, mixing=np.eye(3)), r"mixing must have shape \(4, 4\), .* got \(3, 3\)"),
        (
            lambda: theory.propagate_streams(3, deviation=0.1, normalized=True),
            r"deviation must be 0 where branches are normalized .*, got 0.1",
        ),
        (lambda: theory.free_maps_log_gain(-0.1, 4), "deviation must be finite and not negative, got -0.1"),
        (lambda: theory.constrained_log_gain(1.1, 4), r"kept must be finite and in \[0, 1\], got 1.1"),
        (lambda: theory.depth_average_mean_square(0, 0.1), "depth must be at least 1, got 0"),
        (lambda: theory.tied_log_gain(3, branch=float("inf")), "branch must be finite, got inf"),
        (lambda: theory.flow_gain([0.0, np.nan]), "time must be finite, got nan"),
        (lambda: theory.second_eigenvalue(np.inf), "logit must be finite, got inf"),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("block", [hyper_connections(branch()), depth_average(branch(), 3)])
def test_passes_without_weights_refuse_what_they_do_not_know(block: Any) -> None:
    shape = (4, D) if block.block is vg.blocks.HyperConnection else (3, D)
    net = vg.stack(block, depth=2, input_shape=shape)
    with pytest.raises(ValueError, match=f"whose states are vectors, got stack of {block.block.__name__}"):
        vg.sweep(net, np.ones(shape), key=KEY, weights="implicit")


def test_descriptions_are_read_back() -> None:
    for block in (hyper_connections(branch(), logit=3.0, features=D), depth_average(branch(), 4)):
        net = vg.stack(block, depth=2, input_shape=(4, D))
        assert vg.networks.network_from_json(vg.networks.network_to_json(net)) == net
