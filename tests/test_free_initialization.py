"""Any law, any array, one scale a kernel, schedules as axes, blocks in a row and beside what they keep: every network
against the same one written by hand in plain JAX with the same numbers."""

import functools
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.nn import initializers as laws

import vgjax as vg
from vgjax.blocks import spec
from vgjax.networks import chain, concatenated, conv

KEY = jax.random.key(3)
TOLERANCE = {"float32": 1e-5, "float64": 1e-11}


def positions(key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """A law that draws nothing: its mean is far from zero, and every entry says where it stands."""
    return (1 + jnp.arange(math.prod(shape), dtype=dtype).reshape(shape) / math.prod(shape)) / 4


def leaves(parameters: Any) -> list[tuple[str, Any]]:
    """Kernels and biases of all layers, without layer axis, by Flax path."""
    trees = [parameters.stem, parameters.head]
    for stage, tree in zip(parameters.network.stages, parameters.stages, strict=True):
        trees.append(tree if stage.tied else jax.tree.map(lambda a: a[0], tree))
    return [(jax.tree_util.keystr(path), a) for tree in trees for path, a in jax.tree_util.tree_leaves_with_path(tree)]


def log_norm(a: Any) -> Any:
    with np.errstate(divide="ignore"):  # a dead ReLU: a true zero
        return np.log(np.linalg.norm(np.asarray(a, np.float64).ravel()))


def by_hand(
    layers: list[Callable[..., Any]], trees: list[Any], x: Any, v: Any, tolerance: float, flow: Any
) -> list[Any]:
    """ln |dL/ds_l| of s -> f_l(parameters_l, s) one behind the other, L = v . output, by `jax.grad` in float64; as
    `flow` reports them. The gradients by the parameters come back."""
    with jax.enable_x64(True):
        trees, x, v = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), (trees, x, v))
        states = [x]
        for f, tree in zip(layers, trees, strict=True):
            states.append(f(tree, states[-1]))

        def loss(trees: Any, nudges: Any) -> Any:
            h = x
            for f, tree, nudge in zip(layers, trees, nudges, strict=True):
                h = f(tree, h) + nudge
            return jnp.sum(v * h)

        nudges = [jnp.zeros(s.shape, jnp.float64) for s in states[1:]]
        by_tree, by_state = jax.jit(jax.grad(loss, argnums=(0, 1)))(trees, nudges)
        np.testing.assert_allclose(flow.log_gradient, [log_norm(g) for g in by_state[:-1]], atol=tolerance, rtol=0)
        means = [2 * log_norm(s) - np.log(s.size) for s in states[1:-1]]
        np.testing.assert_allclose(flow.log_mean_square, means, atol=tolerance, rtol=0)
        return by_tree


# --- laws and arrays --------------------------------------------------------------------------------------------------

ARCHITECTURES: dict[str, Callable[..., vg.Network]] = {
    "mlp": functools.partial(vg.mlp, width=(5, 7, 4), inputs=3, outputs=2),
    "residual mlp": functools.partial(vg.mlp, width=5, depth=2, inputs=3, residual="plain", norm="layer"),
    "cnn": functools.partial(vg.cnn, channels=3, depth=2, inputs=(4, 5, 2), kernel_size=(3, 5)),
    "resnet": functools.partial(vg.resnet, channels=(2, 3), depth=(1, 1), inputs=(4, 4, 2), norm=None),
    "rnn": functools.partial(vg.rnn, width=4, depth=3, inputs=3),
    "minimal": functools.partial(vg.rnn, width=4, depth=3, inputs=4, cell="minimal"),
    "lstm": functools.partial(vg.lstm, width=4, depth=3, inputs=3),
    "gru": functools.partial(vg.gru, width=4, depth=3, inputs=3),
    "transformer": functools.partial(vg.transformer, width=6, depth=2, heads=2, inputs=(3, 4)),
}
RECURRENT = ("rnn", "minimal", "lstm", "gru")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_kernel_and_bias_of_every_architecture_is_drawn_by_the_law_as_it_is(name: str) -> None:
    given: dict[str, Any] = {"kernel_init": positions}
    given |= {"input_kernel_init": positions} if name in RECURRENT else {}
    given |= {"bias_init": laws.constant(0.3)} if name != "transformer" else {}
    params = vg.init(KEY, ARCHITECTURES[name](**given))
    checked = 0
    for path, leaf in leaves(params):
        head = leaf.shape[-1:] == params.head["bias"].shape and leaf is params.head["kernel"]
        if "norm" in path or (head and name in RECURRENT) or leaf is params.head["bias"]:
            continue
        if "kernel" in path:
            # Gates stand side by side; Flax's attention has heads apart, and draws all of them as one matrix.
            width = 4 if name in RECURRENT else leaf.shape[-1]
            parts = jnp.split(leaf, leaf.shape[-1] // width, axis=-1) if name in RECURRENT else [leaf]
            parts = [leaf.reshape(6, 6)] if leaf.ndim == 3 and name == "transformer" else parts
            for part in parts:
                np.testing.assert_allclose(part, positions(None, part.shape, part.dtype), rtol=1e-6, err_msg=path)
        elif name != "transformer":
            np.testing.assert_array_equal(leaf, np.full(leaf.shape, 0.3, np.float32), path)
        checked += 1
    assert checked >= 3
    # A bias was not given to be multiplied by 0.
    assert params.network.scales["sigma_b"].default == (0.0 if name == "transformer" else 1.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "law",
    [laws.he_normal(), laws.glorot_uniform(), laws.normal(0.4), laws.orthogonal(1.3), laws.constant(0.2), positions],
    ids=lambda law: law.__qualname__.split(".")[0],
)
def test_gradients_under_any_law_are_those_of_the_same_network_by_hand(law: Any, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        net = vg.mlp(width=(5, 7, 4), inputs=3, outputs=2, kernel_init=law, bias_init=laws.uniform(0.7), dtype=dtype)
        params, x, v = vg.init(KEY, net), np.array([0.3, -1.0, 0.7], dtype), np.array([1.0, -0.4], dtype)
        # No scale is given: the law is what is drawn.
        flow = vg.gradient_flow(params, vg.Scales(), x, v, loss="cotangent")
        trees = [params.stem, *(jax.tree.map(lambda a: a[0], tree) for tree in params.stages), params.head]
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(trees))
        layers: list[Any] = [lambda p, h: h @ p["kernel"] + p["bias"]]
        layers += [lambda p, h: jnp.tanh(h) @ p["kernel"] + p["bias"]] * 3
        by_tree = by_hand(layers, trees, x, v, TOLERANCE[dtype], flow)
        for path, end in (("stem", by_tree[0]), ("head", by_tree[-1])):
            for name in ("kernel", "bias"):
                log = flow.log_parameter_gradient[f"{path}/{name}"]
                assert float(log) == pytest.approx(log_norm(end[name]), abs=TOLERANCE[dtype])
        for name in ("kernel", "bias"):
            expected = [log_norm(g[name]) for g in by_tree[1:-1]]
            np.testing.assert_allclose(flow.log_parameter_gradient[name], expected, atol=TOLERANCE[dtype], rtol=0)


def test_scales_multiply_a_law_of_ones_own() -> None:
    net = vg.mlp(width=(5, 7), inputs=3, kernel_init=positions, bias_init=laws.constant(0.3))
    params, left = vg.absorb_scales(vg.init(KEY, net), vg.Scales(sigma_w=2.0, sigma_b=0.5))
    kernel, bias = params.stages[0]["kernel"][0], params.stages[0]["bias"][0]
    np.testing.assert_allclose(kernel, 2 * positions(None, (5, 7), jnp.float32), rtol=1e-6)
    np.testing.assert_allclose(bias, np.full(7, 0.15), rtol=1e-6)
    assert {name: set(np.ravel(value)) for name, value in left.items()} == {name: {1.0} for name in net.scales}


def test_given_arrays_are_compared_and_hashed_by_what_they_hold() -> None:
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(6, 6)), rng.normal(size=6)
    build = functools.partial(vg.mlp, width=6, depth=3, inputs=4)
    net = build(kernel_init=kernel, bias_init=bias)
    again = build(kernel_init=kernel.copy(), bias_init=jnp.asarray(bias))
    assert build(kernel_init=kernel + 1e-9) != build(kernel_init=kernel)
    assert repr(net) == "mlp(tanh, width 6, depth 3, inputs 4, outputs 1, given 6x6, given 6 bias)"
    assert (again != net) == (jnp.asarray(bias).dtype != bias.dtype)
    # What is handed over may be changed afterwards.
    changed = kernel.copy()
    kept = build(kernel_init=changed, bias_init=bias)
    changed[:] = 0
    for same in (
        kept,
        pickle.loads(pickle.dumps(net)),
        vg.networks.network_from_json(json.loads(json.dumps(vg.networks.network_to_json(net)))),
    ):
        assert (same, hash(same)) == (net, hash(net))
        params = vg.init(KEY, same)
        for layer in params.stages[0]["kernel"]:
            np.testing.assert_array_equal(layer, kernel.astype(np.float32))
        np.testing.assert_array_equal(params.stages[0]["bias"], np.tile(bias.astype(np.float32), (3, 1)))
        np.testing.assert_array_equal(params.stem["bias"], bias.astype(np.float32))
    # What must not change a width is Gaussian.
    assert abs(np.var(vg.init(KEY, build(kernel_init=kernel)).stem["kernel"]) - 1 / 4) < 4 / 4 * math.sqrt(2 / 24)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_given_kernels_of_a_gated_cell_hold_all_gates(cell: str) -> None:
    gates = {"lstm": 4, "gru": 3}[cell]
    whole = np.arange(4 * gates * 4, dtype=np.float32).reshape(4, -1)
    biases = np.arange(16, dtype=np.float32)
    stage = vg.init(KEY, ARCHITECTURES[cell](kernel_init=whole, bias_init=biases)).stages[0]
    np.testing.assert_array_equal(stage["kernel"], whole)
    held = [stage["bias"], *([stage["recurrent_bias"]] if cell == "gru" else [])]
    np.testing.assert_array_equal(np.concatenate(held), biases)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: vg.dense(3, 4, kernel_init=0.1),
            "kernel_init must be a string, a function, an array of JAX or an array, got 0.1",
        ),
        (
            lambda: vg.dense(3, 4, bias_init=None),
            "bias_init must be a string, a function, an array of JAX or an array, got None",
        ),
        (lambda: vg.dense(3, 4, bias_init="constant"), "bias_init must be one of gaussian, uniform, fan_in_uniform, z"),
        (
            lambda: vg.dense(3, 4, kernel_init=np.ones((3, 4), complex)),
            "kernel_init must be a string, a function, an array",
        ),
        (lambda: vg.dense(3, 4, bias_init=np.array([0, 1, np.nan, 2])), "bias_init must be finite, got nan"),
        (
            lambda: vg.mlp(width=(5, 7), inputs=3, kernel_init=np.ones((7, 5))),
            r"^kernel_init must have shape \(5, 7\), got \(7, 5\)$",
        ),
        (lambda: vg.mlp(width=5, depth=1, inputs=3, bias_init=np.ones(3)), r"^bias_init must have shape \(5,\), got"),
        (
            lambda: vg.mlp(width=5, depth=1, inputs=3, kernel_init=lambda key, shape, dtype: jnp.ones(shape[::-1])),
            r"^kernel_init must have shape \(3, 5\), got \(5, 3\)$",
        ),
        (
            lambda: vg.mlp(width=5, depth=1, inputs=3, bias_init=lambda key, shape, dtype: jnp.ones(shape, jnp.int32)),
            "^bias_init must draw in the dtype it is called with, float32, got int32$",
        ),
        (lambda: vg.lstm(width=4, depth=3, inputs=3, kernel_init=np.ones((4, 4))), r"shape \(4, 16\), got \(4, 4\)"),
        (lambda: vg.cnn(channels=3, depth=1, kernel_init=np.ones((3, 3))), r"shape \(3, 3, 3, 3\), got \(3, 3\)"),
        (lambda: vg.cnn(channels=3, depth=1, kernel_size=(3, 5, 3)), "kernel_size must be one number, or one for each"),
    ],
)
@pytest.mark.usefixtures("kinds_unchecked")
def test_what_is_no_law_is_refused_in_one_sentence(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("window", [(), (3, 5)], ids=["linear", "conv"])
def test_pytorchs_defaults_are_a_point_of_the_map_in_every_layer(window: tuple[int, ...]) -> None:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for kernels and biases: what `torch.nn.Linear` and `Conv2d` reset to."""
    scheme = vg.networks.scheme("torch_conv" if window else "torch_linear", 7, 11)
    given: dict[str, Any] = {"kernel_init": scheme.kernel_init, "bias_init": scheme.bias_init}
    if window:
        net = vg.cnn(channels=40, depth=2, inputs=(8, 8, 3), kernel_size=window, **given)
    else:
        net = vg.mlp(width=(400, 100, 300), inputs=50, **given)
    scales = vg.Scales(sigma_w=scheme.sigma_w, sigma_b=scheme.sigma_b)
    params = vg.absorb_scales(vg.init(KEY, net), scales)[0]
    layers = [params.stem, *(jax.tree.map(lambda a: a[0], tree) for tree in params.stages)]
    for tree in layers:
        kernel = np.asarray(tree["conv"]["kernel"] if window else tree["kernel"], np.float64)
        fan_in = math.prod(kernel.shape[:-1])
        for draws in (kernel.ravel(), np.asarray(tree["bias"], np.float64)):
            assert np.abs(draws).max() <= 1 / math.sqrt(fan_in)
            # Var x^2 = (1/5 - 1/9) a^4 for x from U(-a, a).
            error = math.sqrt((1 / 5 - 1 / 9) / draws.size) / fan_in
            assert abs(np.mean(draws**2) - 1 / (3 * fan_in)) < 4 * error
    assert vg.networks.scheme("he_normal", 7, 11) == ("truncated", math.sqrt(2), "zero", 0.0)


def test_uniform_biases_have_unit_variance() -> None:
    bias = np.asarray(vg.init(KEY, vg.mlp(width=900, depth=1, inputs=2, bias_init="uniform")).stem["bias"], np.float64)
    assert np.abs(bias).max() <= math.sqrt(3)
    assert abs(np.mean(bias**2) - 1) < 4 * 3 * math.sqrt((1 / 5 - 1 / 9) / 900)


@pytest.mark.parametrize(
    "given",
    [
        {"kernel_init": laws.he_normal()},
        {"kernel_init": laws.constant(0.1)},
        {"kernel_init": np.eye(6)},
        {"bias_init": laws.normal(1.0)},
        {"bias_init": np.ones(6)},
        {"bias_init": "uniform"},
        {"bias_init": "fan_in_uniform"},
    ],
)
@pytest.mark.parametrize("residual", [None, "pre", "plain"])
def test_theory_has_nothing_for_laws_that_it_does_not_know(given: dict[str, Any], residual: str | None) -> None:
    skips = residual and vg.networks.branch(residual, layers=1 if residual == "pre" else 2)
    net = vg.mlp(width=6, depth=2, inputs=3, residual=skips, **given)
    assert net.theory_arguments is None
    assert vg.mlp(width=6, depth=2, inputs=3, residual=skips).theory_arguments is not None
    if residual is None:
        with pytest.raises(ValueError, match=r"^compare needs a network that theory knows, got mlp"):
            vg.compare(vg.sweep(net, np.ones(3, np.float32), key=KEY, sigma_w=[0.5, 1.0], seeds=2))


def test_a_network_of_a_law_of_ones_own_is_described_and_comes_back_by_hand(tmp_path: Path) -> None:
    net = vg.mlp(width=4, depth=2, inputs=3, kernel_init=positions)
    assert repr(net) == "mlp(tanh, width 4, depth 2, inputs 3, outputs 1, positions)"
    assert pickle.loads(pickle.dumps(net)) == net
    written = json.loads(json.dumps(vg.networks.network_to_json(net)))
    assert vg.networks.network_from_json(written) is None
    path = vg.sweep(net, np.ones(3, np.float32), key=KEY, seeds=1).save(tmp_path / "gain.npz")
    with pytest.raises(ValueError, match="an activation, a block or a law of your own"):
        _ = vg.load(path).network
    assert vg.load(path, network=net).network == net


@pytest.mark.parametrize("which", ["kernel_init", "bias_init"])
def test_a_folder_tells_laws_of_one_name_and_arrays_of_one_shape_apart(tmp_path: Path, which: str) -> None:
    def law(mean: float) -> Any:
        return lambda key, shape, dtype: mean + jax.random.normal(key, shape, dtype)

    shape = (3, 3) if which == "kernel_init" else (3,)
    for i, (one, other) in enumerate([(law(1.0), law(2.0)), (np.full(shape, 0.5), np.full(shape, 0.7))]):
        run: dict[str, Any] = {"key": KEY, "seeds": 1, "folder": str(tmp_path / str(i))}
        x = np.ones(3, np.float32)
        first = vg.sweep(vg.mlp(width=3, depth=2, inputs=3, **{which: one}), x, **run)
        again = vg.sweep(vg.mlp(width=3, depth=2, inputs=3, **{which: one}), x, **run)
        np.testing.assert_array_equal(first.log_gain, again.log_gain)
        with pytest.raises(ValueError, match=r"program|network"):
            vg.sweep(vg.mlp(width=3, depth=2, inputs=3, **{which: other}), x, **run)


# --- one scale a kernel -----------------------------------------------------------------------------------------------


def test_every_kernel_of_a_transformer_has_a_scale_of_its_own_and_gpt2_can_be_said() -> None:
    depth, width = 3, 6
    net = vg.transformer(width=width, depth=depth, heads=2, inputs=(5, 4), outputs=2, kernel_init=laws.normal(0.02))
    drawn = vg.init(KEY, net)
    last = (2 * depth) ** -0.5
    params = vg.absorb_scales(drawn, vg.Scales(sigma_o=last, sigma_2=last))[0]
    attention, feed = (("attention", "branch", "attention"), ("feed_forward", "branch"))

    def at(params: Any, *path: str) -> Any:
        return functools.reduce(lambda tree, name: tree[name], path, params.stages[0])

    for path, factor in (
        *(((*attention, name, "kernel"), last if name == "out" else 1.0) for name in ("query", "key", "value", "out")),
        ((*feed, "layer_1", "kernel"), 1.0),
        ((*feed, "layer_2", "kernel"), last),
    ):
        np.testing.assert_allclose(at(params, *path), factor * at(drawn, *path), rtol=1e-6)
        assert np.std(at(drawn, *path)) == pytest.approx(0.02, rel=0.3)


def test_a_scale_that_is_not_given_stands_at_the_one_it_follows() -> None:
    net = vg.transformer(width=6, depth=2, heads=2, inputs=(5, 4), outputs=2)
    params, x = vg.init(KEY, net), np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    shared = {"sigma_qk": 1.3, "sigma_vo": np.array([0.7, 0.9], np.float32), "sigma_w": 1.4}
    whole = vg.forward(params, vg.Scales(**shared), x)
    told = {"sigma_q": 1.3, "sigma_k": 1.3, "sigma_v": shared["sigma_vo"], "sigma_o": shared["sigma_vo"]}
    told |= {"sigma_1": 1.4, "sigma_2": 1.4}
    np.testing.assert_array_equal(vg.forward(params, vg.Scales(**told), x), whole)
    # What is given to a kernel is its own: the shared one no longer counts.
    np.testing.assert_array_equal(vg.forward(params, vg.Scales(**told, sigma_w=5.0, sigma_vo=6.0), x), whole)
    for name in told:
        assert not np.array_equal(vg.forward(params, vg.Scales(**told | {name: 0.2}), x), whole)


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_a_stem_has_a_scale_of_its_own(name: str) -> None:
    net = ARCHITECTURES[name]()
    params = vg.init(KEY, net)
    x = np.random.default_rng(0).normal(size=net.input_shape).astype(np.float32)
    as_before = vg.states(params, vg.Scales(sigma_w=1.7, sigma_in=1.7), x)
    left_out = vg.states(params, vg.Scales(sigma_w=1.7), x)
    jax.tree.map(np.testing.assert_array_equal, left_out, as_before)
    own = vg.gradient_flow(params, vg.Scales(sigma_w=1.7, sigma_in=0.85), x).log_mean_square
    np.testing.assert_allclose(
        own[0],
        np.asarray(vg.gradient_flow(params, vg.Scales(sigma_w=1.7), x).log_mean_square[0]) - 2 * np.log(2),
        rtol=1e-5,
    )
    # Held still while the others are swept, as a map of the blocks alone wants it.
    result = vg.sweep(net, x, key=KEY, seeds=2, sigma_w=[0.5, 1.0, 2.0], sigma_in=1.0)
    first = result.log_mean_square[:, :, 0]
    np.testing.assert_array_equal(first, np.broadcast_to(first[:, :1], first.shape))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_head_has_a_scale_of_its_own(name: str) -> None:
    net = ARCHITECTURES[name]()
    params = vg.init(KEY, net)
    x = np.random.default_rng(0).normal(size=net.input_shape).astype(np.float32)
    y = np.ones(np.shape(vg.forward(params, vg.Scales(), x)), np.float32)
    scales, unit = vg.Scales(sigma_out=0.25), vg.Scales()
    np.testing.assert_allclose(vg.forward(params, scales, x), 0.25 * vg.forward(params, unit, x), rtol=1e-5)
    np.testing.assert_allclose(
        vg.forward(*vg.absorb_scales(params, scales), x), vg.forward(params, scales, x), rtol=1e-5
    )
    scaled, plain = (vg.gradient_flow(params, s, x, y, loss="cotangent") for s in (scales, unit))
    np.testing.assert_allclose(scaled.log_gradient, plain.log_gradient + np.log(0.25), atol=1e-5)
    # By the ordinary kernel W = sigma Z, whatever sigma is.
    for path in ("head/kernel", "head/bias"):
        np.testing.assert_allclose(scaled.log_parameter_gradient[path], plain.log_parameter_gradient[path], atol=1e-5)


# --- schedules as an axis -------------------------------------------------------------------------------------------


def test_schedules_along_the_layers_are_an_axis(tmp_path: Path) -> None:
    net, x = vg.mlp(width=(5, 6, 4), inputs=3), np.array([0.4, -1.0, 0.2], np.float32)
    ramp, fall = np.array([0.5, 2.0], np.float32), np.array([2.0, 0.5], np.float32)
    result = vg.sweep(net, x, key=KEY, seeds=2, sigma_w=[1.5, ramp, fall], sigma_b=[0.1, 0.3])
    assert {name: values.tolist() for name, values in result.axes.items()} == {
        "sigma_w_schedule": [0, 1, 2],
        "sigma_b": [0.1, 0.3],
    }
    np.testing.assert_allclose(result.coordinates["sigma_w"], [[1.5, 1.5], ramp, fall])
    for i, sigma_w in enumerate((1.5, ramp, fall)):
        drawn, _ = jax.random.split(jax.random.fold_in(KEY, 1))
        one = vg.gradient_flow(vg.init(drawn, net), vg.Scales(sigma_w=sigma_w, sigma_b=0.3), x)
        np.testing.assert_allclose(result.log_mean_square[1, i, 1], one.log_mean_square, atol=1e-5)
    table = result.to_xarray()
    assert table.log_gain.dims == ("seed", "sigma_w_schedule", "sigma_b", "layer")
    assert table.sigma_w.dims == ("sigma_w_schedule", "block")
    assert table.sizes["block"] == 2
    for suffix in ("npz", "nc"):
        again = vg.load(result.save(tmp_path / f"map.{suffix}"))
        np.testing.assert_array_equal(again.coordinates["sigma_w"], result.coordinates["sigma_w"])
        assert list(again.axes) == ["sigma_w_schedule", "sigma_b"]
    with pytest.raises(ValueError, match=r"^compare takes sweeps over sigma_w, sigma_b, got sigma_w_schedule$"):
        vg.compare(result)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((4, 3)), r"^sigma_w must be a number or one value per layer, shape \(2,\), got shape \(3,\)$"),
        ([1.0, np.ones(2), np.ones(3)], r"^sigma_w must hold numbers and schedules of one length, got shapes"),
        (np.ones((2, 2, 2)), "^sigma_w must be a non-empty one-dimensional grid, or one schedule along the layers"),
        ([np.array([1.0, -1.0])], "^sigma_w must be finite and not negative, got -1$"),
        ([], "^sigma_w must be a non-empty one-dimensional grid"),
    ],
)
def test_what_is_no_axis_is_refused_in_one_sentence(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vg.sweep(vg.mlp(width=(5, 6, 4), inputs=3), np.ones(3, np.float32), key=KEY, sigma_w=values)


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("padding", ["circular", "zero"])
def test_windows_images_and_strides_need_not_be_square(padding: str, dtype: str) -> None:
    window, strides = (3, 5), (2, 1)

    def convolved(p: Any, h: Any, strides: tuple[int, int]) -> Any:
        # Strides start at the same pixel as in the library: 'SAME' of an even size pads less before than behind.
        mode = "wrap" if padding == "circular" else "constant"
        pads = [(n // 2, n // 2) for n in window]
        if padding == "zero":
            size = [(-(-m // s) - 1) * s + n - m for m, n, s in zip(h.shape, window, strides, strict=False)]
            pads = [(max(n, 0) // 2, max(n, 0) - max(n, 0) // 2) for n in size]
        h = jnp.pad(h, [*pads, (0, 0)], mode=mode)
        out = jax.lax.conv_general_dilated(
            h[None], p["conv"]["kernel"], strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return out[0] + p["bias"]

    with jax.enable_x64(dtype == "float64"):
        build = functools.partial(conv, kernel_size=window, padding=padding, dtype=dtype, bias_init=laws.normal(0.5))
        net = vg.sequential(
            build(2, 3, "tanh"),
            build(3, 4, "tanh", strides=strides),
            input_shape=(4, 6, 1),
            stem=build(1, 2),
            head=vg.dense(4, 2, after=spec(vg.blocks.Pool, 2), dtype=dtype),
        )
        params = vg.init(KEY, net)
        x = np.random.default_rng(0).normal(size=(4, 6, 1)).astype(dtype)
        flow = vg.gradient_flow(params, vg.Scales(), x, np.array([1.0, -0.5], dtype), loss="cotangent")
        trees = [params.stem, *(jax.tree.map(lambda a: a[0], t) for t in params.stages), params.head]
        layers: list[Any] = [
            lambda p, h: convolved(p, h, (1, 1)),
            lambda p, h: convolved(p, jnp.tanh(h), (1, 1)),
            lambda p, h: convolved(p, jnp.tanh(h), strides),
            lambda p, h: jnp.mean(h, axis=(0, 1)) @ p["kernel"] + p["bias"],
        ]
        by_hand(layers, trees, x, np.array([1.0, -0.5]), TOLERANCE[dtype], flow)
    assert vg.cnn(channels=3, depth=2, inputs=(8, 6, 1), kernel_size=(3, 5)).stages[0].depth == 2


# --- blocks in a row --------------------------------------------------------------------------------------------------


class Gated(nnx.Module):
    """A user's block that changes its shape and knows nothing of the library."""

    def __init__(self, before: int, after: int, *, rngs: nnx.Rngs):
        self.value = nnx.Linear(before, after, rngs=rngs)
        self.gate = nnx.Linear(before, after, use_bias=False, rngs=rngs)

    def __call__(self, h: Any) -> Any:
        return self.value(h) * nnx.sigmoid(self.gate(h)) + 0.1


def gated(p: Any, h: Any) -> Any:
    return (h @ p["value"]["kernel"] + p["value"]["bias"]) * jax.nn.sigmoid(h @ p["gate"]["kernel"]) + 0.1


def test_blocks_of_a_users_own_and_of_any_shapes_stand_in_a_row() -> None:
    """5-10-2-1."""
    net = vg.sequential(spec(Gated, 5, 10), spec(Gated, 10, 2), spec(Gated, 2, 1), input_shape=5)
    assert [stage.depth for stage in net.stages] == [1, 1, 1]
    params, x = vg.init(KEY, net), np.random.default_rng(1).normal(size=5).astype(np.float32)
    flow = vg.gradient_flow(params, vg.Scales(), x, np.ones(1, np.float32), loss="cotangent")
    trees = [jax.tree.map(lambda a: a[0], tree) for tree in params.stages]
    with jax.enable_x64(True):
        f = lambda h: functools.reduce(lambda h, p: gated(p, h), trees, h)  # noqa: E731
        trees = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), trees)
        jacobian = np.asarray(jax.jacrev(f)(jnp.asarray(x, jnp.float64)))
    assert float(flow.log_gradient[0]) == pytest.approx(log_norm(jacobian), abs=1e-5)
    assert flow.log_parameter_gradient["value/kernel"].shape == (3,)
    singular = vg.log_singular_values(params, vg.Scales(), x, [3]).log_singular_values
    assert float(np.max(singular)) == pytest.approx(np.log(np.linalg.norm(jacobian)), abs=1e-5)
    gains = vg.gain_matrix(params, vg.Scales(), x).log_gain
    assert np.isfinite(np.asarray(gains)).sum() == 10  # J_{m<-l} for l <= m
    data = vg.data.Examples(np.ones((4, 5), np.float32), np.zeros((4, 1), np.float32))
    assert np.isfinite(vg.train(params, vg.Scales(), data, num_steps=2, batch_size=4).loss).all()


@pytest.mark.usefixtures("kinds_unchecked")
def test_what_is_no_block_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^blocks must be a Spec of a block"):
        vg.sequential(Gated, input_shape=5)
    with pytest.raises(ValueError, match=r"^blocks must be a Spec of a block"):
        vg.sequential([vg.dense(5, 5)] * 2, input_shape=5)  # type: ignore[arg-type]


# --- blocks beside what they keep -------------------------------------------------------------------------------------


def dense_net(growth: int, depth: int, dtype: str, **options: Any) -> vg.Network:
    layers = [
        concatenated(vg.dense(4 + i * growth, growth, "relu", bias_init=laws.normal(0.3), dtype=dtype, **options))
        for i in range(depth)
    ]
    head = vg.dense(4 + depth * growth, 2, "relu", bias_init="zero", dtype=dtype)
    return vg.sequential(*layers, input_shape=4, head=head)


def grown(sigma: float, p: Any, h: Any, phi: Callable[[Any], Any] = jax.nn.relu) -> Any:
    p = p["branch"]
    return jnp.concatenate([h, sigma * phi(h) @ p["kernel"] + p["bias"]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_densenet_is_the_one_written_by_hand(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        net = dense_net(3, 6, dtype)
        params, x = vg.init(KEY, net), np.array([0.5, -1.0, 2.0, 0.3], dtype)
        flow = vg.gradient_flow(params, vg.Scales(sigma_w=1.3), x, np.array([1.0, -0.4], dtype), loss="cotangent")
        trees = [*(jax.tree.map(lambda a: a[0], tree) for tree in params.stages), params.head]
    exact = float(np.asarray(1.3, dtype))
    layers: list[Any] = [functools.partial(grown, exact)] * 6
    layers.append(lambda p, h: jax.nn.relu(h) @ p["kernel"] + p["bias"])
    start: list[Any] = [lambda p, h: h]  # no stem: the first state is the input
    by_tree = by_hand(start + layers, [{}, *trees], x, np.array([1.0, -0.4]), 10 * TOLERANCE[dtype], flow)
    expected = [log_norm(g["branch"]["kernel"]) - np.log(exact) for g in by_tree[1:-1]]  # by W = sigma Z
    found = flow.log_parameter_gradient["branch/kernel"]
    np.testing.assert_allclose(found, expected, atol=10 * TOLERANCE[dtype])
    assert int(flow.first_inexact_layer) == net.depth + 1


def test_states_of_several_sizes_are_marked_where_they_leave_the_float_range() -> None:
    """At sigma_w = 1e8 the input is lost beside the sixth state, 1e48 times its size, and with it its gradient."""
    net, x = dense_net(3, 6, "float32"), np.array([0.5, -1.0, 2.0, 0.3], np.float32)
    params, scales = vg.init(KEY, net), vg.Scales(sigma_w=1e8)
    found = vg.gradient_flow(params, scales, x)
    h, states = np.asarray(x, np.float64), [np.asarray(x, np.float64)]
    for tree in params.stages:
        p = {name: np.asarray(leaf, np.float64)[0] for name, leaf in tree["branch"].items()}
        h = np.concatenate([h, float(np.float32(1e8)) * np.maximum(h, 0) @ p["kernel"] + p["bias"]])
        states.append(h)
    past = [bool(np.linalg.norm(h) > 2.0**32) for h in states]
    first = past.index(True) + 1
    assert 1 < first < 6
    assert int(found.first_inexact_layer) == first
    expected = [np.log(np.mean(h**2)) for h in states[:first]]
    np.testing.assert_allclose(found.log_mean_square[:first], expected, atol=1e-4)
    assert np.isnan(found.log_mean_square[first:]).all()
    assert np.isnan(found.log_gradient[: first - 1]).all()


@pytest.mark.parametrize("sigma", [1e-9, 1.1, 1e9])
def test_what_is_kept_and_merged_again_is_exact_past_the_float_range(sigma: float) -> None:
    """Homogeneous of degree 1: float32 against the same in float64, which holds 1e108."""
    layer = functools.partial(vg.dense, activation="leaky_relu(0.3)")
    net = vg.stack(chain(concatenated(layer(4, 3)), layer(7, 4)), depth=6, input_shape=4)
    params, x = vg.init(KEY, net), np.array([0.5, 1.0, 2.0, 0.3], np.float32)
    v = np.array([1.0, -0.4, 0.3, 0.8], np.float32)
    flow = vg.gradient_flow(params, vg.Scales(sigma_w=sigma), x, v, loss="cotangent")
    exact = float(np.float32(sigma))

    def block(p: Any, h: Any) -> Any:
        phi = functools.partial(jax.nn.leaky_relu, negative_slope=0.3)
        h = grown(exact, {"branch": p["layer_1"]["branch"] | {"bias": 0.0}}, h, phi)
        return exact * phi(h) @ p["layer_2"]["kernel"]

    trees = [jax.tree.map(lambda a, i=i: np.asarray(a)[i], params.stages[0]) for i in range(6)]
    by_hand([lambda p, h: h, *[block] * 6, lambda p, h: h], [{}, *trees, {}], x, v, 1e-4, flow)
    assert int(flow.first_inexact_layer) == net.depth + 1


class Upsample(nnx.Module):
    """A user's block: every pixel twice."""

    linear = True

    def __init__(self, *, rngs: nnx.Rngs):
        pass

    def __call__(self, h: Any) -> Any:
        return jnp.repeat(jnp.repeat(h, 2, axis=-3), 2, axis=-2)


def u_net(dtype: str) -> vg.Network:
    """Two levels, channels 2-3-4, 8 by 4 pixels at the top."""
    build = functools.partial(conv, bias_init=laws.normal(0.3), dtype=dtype, padding="zero")

    def level(inside: Any, outer: int, inner: int) -> Any:
        down, back = build(outer, inner, "tanh", strides=2), build(inner, outer, "tanh")
        return chain(concatenated(chain(down, inside, back, spec(Upsample))), build(2 * outer, outer, "tanh"))

    block = level(level(build(4, 4, "tanh"), 3, 4), 2, 3)
    return vg.stack(block, depth=2, input_shape=(8, 4, 2))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_u_net_is_the_one_written_by_hand(dtype: str) -> None:
    def layer(p: Any, h: Any, strides: int = 1) -> Any:
        out = jax.lax.conv_general_dilated(
            jnp.tanh(h)[None],
            p["conv"]["kernel"],
            (strides, strides),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return out[0] + p["bias"]

    def level(p: Any, h: Any, inside: Any) -> Any:
        q = p["layer_1"]["branch"]
        made = layer(q["layer_3"], inside(q["layer_2"], layer(q["layer_1"], h, 2)))
        made = jnp.repeat(jnp.repeat(made, 2, axis=0), 2, axis=1)
        return layer(p["layer_2"], jnp.concatenate([h, made], axis=-1))

    def block(p: Any, h: Any) -> Any:
        return level(p, h, lambda p, h: level(p, h, layer))

    with jax.enable_x64(dtype == "float64"):
        params = vg.init(KEY, u_net(dtype))
        rng = np.random.default_rng(2)
        x, v = (rng.normal(size=(8, 4, 2)).astype(dtype) for _ in range(2))
        flow = vg.gradient_flow(params, vg.Scales(), x, v, loss="cotangent")
    trees = [jax.tree.map(lambda a, i=i: np.asarray(a)[i], params.stages[0]) for i in range(2)]
    layers: list[Any] = [lambda p, h: h, block, block, lambda p, h: h]
    by_tree = by_hand(layers, [{}, *trees, {}], x, v, TOLERANCE[dtype], flow)
    paths = {
        "/".join(step.key for step in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(by_tree[1])
    }
    assert len(paths) == 14
    for path, leaf in paths.items():
        assert float(flow.log_parameter_gradient[path][0]) == pytest.approx(log_norm(leaf), abs=10 * TOLERANCE[dtype])


def test_a_branch_that_cannot_stand_beside_its_state_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"keep all axes but the last to be concatenated, got \(2, 2, 3\) from \(4, 4"):
        vg.stack(concatenated(conv(2, 3, strides=2)), depth=1, input_shape=(4, 4, 2))


# --- batches ----------------------------------------------------------------------------------------------------------

X = np.random.default_rng(5).normal(size=(3, 4)).astype(np.float32)
OF_A_BATCH: dict[str, tuple[vg.ensembles.Measurement, tuple[Any, ...]]] = {
    "gains": (vg.gains(), (X,)),
    "gradients": (vg.gradients(), (X, np.array([0, 1, 1]))),
    "naive_readings": (vg.naive_readings(), (X, np.array([0, 1, 1]))),
    "correlations": (vg.correlations(), (X, X[::-1] + 0.1)),
    "lyapunov": (vg.lyapunov(2), (X,)),
    "frobenius": (vg.frobenius(), (X,)),
}


@pytest.mark.parametrize("name", OF_A_BATCH)
def test_every_measurement_takes_a_batch_and_gives_each_example_what_it_has_alone(name: str) -> None:
    measure, inputs = OF_A_BATCH[name]
    net = vg.mlp(width=4, depth=3, inputs=4, outputs=2)
    run: dict[str, Any] = {"measure": measure, "key": KEY, "seeds": 2, "sigma_w": [0.7, 1.5]}
    together = vg.sweep(net, *inputs, leading="example", **run)
    alone = [vg.sweep(net, *(a[i] for a in inputs), **run) for i in range(3)]
    for variable, values in together.arrays.items():
        if "example" not in together.dims[variable]:  # of the summed loss
            continue
        axis = 2 + together.dims[variable].index("example")
        for i in range(3):
            expected = alone[i].arrays[variable]
            np.testing.assert_allclose(np.take(values, i, axis=axis), expected, atol=2e-5, rtol=1e-5)
    assert any("example" in dims for dims in together.dims.values())


def test_spectra_take_one_input_and_say_so() -> None:
    with pytest.raises(ValueError, match=r"^spectra takes one input, or one for each seed \(leading='seed'\), got a b"):
        vg.sweep(vg.mlp(width=4, depth=3, inputs=4), X, measure=vg.spectra(), key=KEY, leading="example")


# --- sizes of states along a training ---------------------------------------------------------------------------------


def test_training_records_the_sizes_of_all_states() -> None:
    net = vg.mlp(width=(5, 6, 4), inputs=3, outputs=2)
    rng = np.random.default_rng(0)
    data = vg.data.Examples(rng.normal(size=(7, 3)).astype(np.float32), rng.normal(size=(7, 2)).astype(np.float32))
    params, scales = vg.init(KEY, net), vg.Scales(sigma_w=1.4, sigma_b=0.3)
    config = vg.training.SnapshotConfig((0, 3, 6))
    given: dict[str, Any] = {"learning_rate": 0.2, "batch_size": None, "snapshots": config}
    done = vg.train(params, scales, data, num_steps=6, **given)

    def expected(params: Any, scales: Any) -> np.ndarray:
        ordinary = vg.absorb_scales(params, scales)[0]
        trees = [ordinary.stem, *(jax.tree.map(lambda a: a[0], tree) for tree in ordinary.stages)]
        h, found = np.asarray(data.inputs, np.float64), []
        for i, p in enumerate(trees):
            h = (np.tanh(h) if i else h) @ np.asarray(p["kernel"], np.float64) + np.asarray(p["bias"], np.float64)
            found.append(np.log(np.mean(h**2)))
        return np.array(found)

    assert done.snapshots.log_mean_square.shape == (3, 3)
    np.testing.assert_allclose(done.snapshots.log_mean_square[0], expected(params, scales), atol=1e-5)
    np.testing.assert_allclose(done.snapshots.log_mean_square[-1], expected(done.parameters, done.scales), atol=1e-5)
    measure = vg.trainings(data, num_steps=6, batch_size=None, snapshots=config)
    swept = vg.sweep(net, measure=measure, key=KEY, seeds=1, sigma_w=1.4, sigma_b=0.3, learning_rate=0.2)
    assert swept.dims["log_mean_square"] == ("step", "layer")
    assert np.isfinite(swept.log_mean_square).all()
    unseen = vg.training.SnapshotConfig((0,), gradients=False)
    assert np.isnan(
        vg.train(params, scales, data, num_steps=6, **given | {"snapshots": unseen}).snapshots.log_mean_square
    ).all()
    with pytest.raises(ValueError, match=r"^compare needs gains, gradients or correlations, got trainings$"):
        vg.compare(swept)
