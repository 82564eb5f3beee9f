"""Networks: forward passes, scaled parameters, streamed and prefix draws, and what is refused."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

import vgjax as vg
from vgjax.networks.parameters import jit_draw

KEY = jax.random.key(1)
SIZES = (6, 5, 4, 4, 4, 7, 3)  # input, widths of h^0 ... h^4, output
SIGMA_W, SIGMA_B = np.array([1.5, 0.2, 3.0, 0.9], np.float32), np.array([0.1, 0.0, 1.0, 0.4], np.float32)


def uneven(dtype: str = "float32", **options: Any) -> vg.Network:
    return vg.mlp(width=SIZES[1:-1], inputs=SIZES[0], outputs=SIZES[-1], activation="gelu", dtype=dtype, **options)


def example(dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).normal(size=SIZES[0]).astype(dtype)


# --- forward --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-13)])
@pytest.mark.parametrize(("sigma_w", "sigma_b"), [(1.7, 0.3), (SIGMA_W, SIGMA_B)], ids=["numbers", "per layer"])
def test_forward_is_the_unrolled_flax_network(dtype: str, tolerance: float, sigma_w: Any, sigma_b: Any) -> None:
    with jax.enable_x64(dtype == "float64"):
        net = uneven(dtype)
        params = oracles.drawn(net, SIZES, dtype=dtype)
        ours = vg.forward(params, vg.Scales(sigma_w=sigma_w, sigma_b=sigma_b), example(dtype))
        truth = oracles.forward(oracles.weights(params, sigma_w, sigma_b), oracles.ACTIVATIONS["gelu"], example(dtype))
    assert ours.shape == (SIZES[-1],)
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours, truth, rtol=tolerance, atol=tolerance)


def test_scales_left_out_are_sigma_w_1_and_sigma_b_0() -> None:
    net = uneven()
    params = oracles.drawn(net, SIZES)
    truth = oracles.forward(oracles.weights(params), oracles.ACTIVATIONS["gelu"], example())
    np.testing.assert_allclose(vg.forward(params, vg.Scales(), example()), truth, rtol=1e-5, atol=1e-6)


def test_batches_of_forward_are_vmap() -> None:
    net = uneven()
    params, scales = oracles.drawn(net, SIZES), vg.Scales(sigma_w=1.7, sigma_b=0.3)
    xs = np.random.default_rng(1).normal(size=(3, SIZES[0])).astype(np.float32)
    batch = jax.vmap(lambda x: vg.forward(params, scales, x))(xs)
    np.testing.assert_allclose(batch, [vg.forward(params, scales, x) for x in xs], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("sigma_w", "sigma_b"), [(1.7, 0.3), (SIGMA_W, SIGMA_B)], ids=["numbers", "per layer"])
def test_scaled_parameters_are_sigma_w_z_and_give_the_same_output_at_unit_scales(sigma_w: Any, sigma_b: Any) -> None:
    params, scales = oracles.drawn(uneven(), SIZES), vg.Scales(sigma_w=sigma_w, sigma_b=sigma_b)
    ordinary, left = vg.absorb_scales(params, scales)
    jax.tree.map(lambda s: np.testing.assert_array_equal(s, np.ones(4)), left)
    for ours, truth in zip(oracles.weights(ordinary, 1, 1), oracles.weights(params, sigma_w, sigma_b), strict=True):
        np.testing.assert_allclose(ours[0], truth[0], rtol=1e-6)
        np.testing.assert_allclose(ours[1], truth[1], rtol=1e-6)
    output = vg.forward(ordinary, left, example())
    np.testing.assert_allclose(output, vg.forward(params, scales, example()), rtol=1e-5, atol=1e-6)


def test_a_stem_absorbs_a_scale_that_not_every_layer_reads() -> None:
    """sigma_w is of the stem and of the second layer; sigma_v of the first layer alone, sigma_in of a stem alone."""
    layers = [vg.dense(4, 4, "tanh", names=("sigma_v", "sigma_a")), vg.dense(4, 4, "gelu")]
    x = np.array([0.3, -1.0, 2.0], np.float32)
    for of_stem in ("sigma_w", "sigma_in"):
        stem = vg.dense(3, 4, names=(of_stem, "sigma_b"))
        params = vg.init(KEY, vg.networks.sequential(*layers, input_shape=3, stem=stem))
        scales = vg.Scales(**{"sigma_v": 0.8, "sigma_w": 1.3, "sigma_b": 0.3, of_stem: 1.7})
        ordinary, left = vg.absorb_scales(params, scales)
        np.testing.assert_allclose(ordinary.stem["kernel"], 1.7 * params.stem["kernel"], rtol=1e-6)
        output = vg.forward(params, scales, x)
        np.testing.assert_allclose(vg.forward(ordinary, left, x), output, rtol=1e-5)
        assert not np.allclose(vg.forward(ordinary, scales, x), output, rtol=1e-3)


# --- draws ----------------------------------------------------------------------------------------------------------


def test_streamed_parameters_give_the_flow_of_stored_ones() -> None:
    net = vg.mlp(width=(4, 4, 4, 4), inputs=6, outputs=3, activation="gelu", kernel_init="uniform")
    stored, streamed = vg.init(KEY, net), vg.init(KEY, net, stream=True)
    scales, x = vg.Scales(sigma_w=SIGMA_W[:3], sigma_b=SIGMA_B[:3]), example()
    stored_flow, streamed_flow = (vg.gradient_flow(p, scales, x, 1) for p in (stored, streamed))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), streamed_flow, stored_flow)
    with pytest.raises(ValueError, match="parameters must be stored to take scales"):
        vg.absorb_scales(streamed, scales)


def test_the_first_layers_of_a_deep_network_are_the_shallow_network() -> None:
    """Weights, states and gains: depth 20 is the beginning of depth 100."""
    nets = [vg.mlp(width=6, depth=depth, activation="gelu", inputs=4) for depth in (20, 100)]
    shallow, deep = (vg.init(KEY, net) for net in nets)
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(deep.stages[0][name][:20], shallow.stages[0][name])
        np.testing.assert_array_equal(deep.stem[name], shallow.stem[name])
        np.testing.assert_array_equal(deep.head[name], shallow.head[name])
    u, x, scales = np.ones(6, np.float32), np.arange(4, dtype=np.float32), vg.Scales(sigma_w=1.5, sigma_b=0.3)
    short, long = (vg.push_forward(p, scales, x, u) for p in (shallow, deep))
    np.testing.assert_allclose(long.log_gain[:21], short.log_gain, atol=1e-5)
    np.testing.assert_allclose(long.log_mean_square[:21], short.log_mean_square, atol=1e-5)


def test_keys_decide_the_draw() -> None:
    net = vg.mlp(width=6, depth=20, activation="gelu", inputs=4)
    once, again, other = (vg.init(jax.random.key(seed), net) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, once, again)
    assert not np.any(once.stages[0]["kernel"] == other.stages[0]["kernel"])


# --- what a network is ----------------------------------------------------------------------------------------------


@pytest.fixture
def optimized() -> Iterator[None]:
    """Programs as users have them."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.usefixtures("optimized")
def test_a_draw_by_a_program_of_its_own_has_the_bits_of_one_inside_of_another() -> None:
    key = jax.random.key(5)
    for law in ("gaussian", "truncated", "uniform"):
        net = vg.mlp(width=10, depth=3, inputs=10, outputs=10, kernel_init=law)
        alone, inside = vg.init(key, net), jax.jit(lambda key, net=net: vg.init(key, net))(key)
        jax.tree.map(np.testing.assert_array_equal, alone, inside)

    def of_norm_1(key: Any, size: int) -> Any:  # in which order it sums is the compiler's choice
        drawn = jax.random.normal(key, (size,))
        return drawn / jnp.sqrt(jnp.sum(drawn * drawn))

    for size in (33, 100, 1000):
        alone, inside = (jit(of_norm_1, static_argnums=1)(key, size) for jit in (jit_draw, jax.jit))
        np.testing.assert_array_equal(alone, inside)


def test_a_network_is_hashable_and_equal_when_built_twice() -> None:
    assert uneven() == uneven()
    assert hash(uneven()) == hash(uneven())
    assert uneven() != uneven(kernel_init="uniform")
    mine = oracles.user_activation
    assert vg.mlp(width=3, depth=2, inputs=1, activation=mine) == vg.mlp(width=3, depth=2, inputs=1, activation=mine)
    assert vg.mlp(width=3, depth=2, inputs=1) == vg.mlp(width=(3, 3, 3), inputs=1)


def test_equal_layers_in_a_row_are_one_stage() -> None:
    net = uneven()
    assert [stage.depth for stage in net.stages] == [1, 2, 1]
    assert net.depth == 4
    assert [stage.depth for stage in vg.mlp(width=3, depth=500, inputs=3, outputs=3).stages] == [500]
    assert net.scales == {
        "sigma_w": vg.blocks.Scale(1.0, "parameter"),
        "sigma_b": vg.blocks.Scale(0.0, "parameter"),
        "sigma_in": vg.blocks.Scale(1.0, "parameter", follows="sigma_w"),
        "sigma_out": vg.blocks.Scale(1.0, "parameter"),
    }


# --- scales of blocks -----------------------------------------------------------------------------------------------


class Scaled(nnx.Module):
    """A user's block whose scales are of several kinds, one of them in short form."""

    scales = {"gain": 1.5, "drop": vg.blocks.Scale(0.1, "rate"), "cool": vg.blocks.Scale(2.0, "divisor")}  # noqa: RUF012

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jnp.eye(width))

    def __call__(self, h: jax.Array, scales: vg.Scales) -> jax.Array:
        return scales.gain * (1 - scales.drop) / scales.cool * h @ self.kernel[...]


def test_a_users_block_declares_kinds_and_a_bare_number_is_a_factor() -> None:
    net = vg.stack(Scaled, 2, depth=3, input_shape=2)
    assert net.scales == {
        "gain": vg.blocks.Scale(1.5, "factor"),
        "drop": vg.blocks.Scale(0.1, "rate"),
        "cool": vg.blocks.Scale(2.0, "divisor"),
    }
    params, x = vg.init(KEY, net), np.ones(2, np.float32)
    np.testing.assert_allclose(vg.forward(params, vg.Scales(), x), (1.5 * 0.9 / 2) ** 3, rtol=1e-6)
    np.testing.assert_allclose(vg.forward(params, vg.Scales(gain=-1.0, drop=0.0), x), -(0.5**3), rtol=1e-6)
    for bad, message in (({"drop": 1.0}, "below 1, got 1"), ({"cool": 0.0}, "positive, got 0")):
        with pytest.raises(ValueError, match=message):
            vg.forward(params, vg.Scales(**bad), x)


class Confused(nnx.Module):
    """Not a block: its scale is of no kind that there is."""

    scales = {"gain": vg.blocks.Scale(1.0, "factr")}  # noqa: RUF012

    def __init__(self, *, rngs: nnx.Rngs):
        pass

    def __call__(self, h: jax.Array, scales: vg.Scales) -> jax.Array:
        return scales.gain * h


class Dropping(Confused):
    """A block whose gain is a rate."""

    scales = {"gain": vg.blocks.Scale(0.0, "rate")}  # noqa: RUF012


def test_scales_of_no_kind_or_of_two_are_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"the kind of scale gain must be one of parameter, .* did you mean 'factor'"):
        vg.stack(Confused, depth=1, input_shape=2)
    net = vg.stack(Scaled, 2, depth=1, input_shape=2, stem=vg.blocks.spec(Dropping))
    with pytest.raises(ValueError, match="scale gain must be of one kind, got rate and factor"):
        vg.forward(vg.init(KEY, net), vg.Scales(), np.ones(2))


class Flat(nnx.Module):
    """A user's block whose attributes are named as words of the protocol, which they are not."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(width, width, rngs=rngs)
        self.step = nnx.Variable(jnp.zeros(()))
        self.parts = ("this", "that")
        self.slopes = self.diagnostics = self.redraw = self.homogeneity = self.scales = 3

    def __call__(self, h: jax.Array) -> jax.Array:
        return jnp.tanh(self.linear(h))


def test_only_what_a_blocks_class_declares_is_the_protocols() -> None:
    """The state enters far beyond the float range, where a linear block would keep its exponent."""
    net = vg.stack(Flat, 4, depth=3, input_shape=4)
    params, x = vg.init(KEY, net), np.array([1.0, -2, 3, 4], np.float32) * 1e30
    flow = vg.gradient_flow(params, vg.Scales(), x)
    assert np.all(flow.log_mean_square[1:] <= 0)
    assert flow.log_gradient_parts == flow.diagnostics == {}
    kernels, h = params.stages[0]["linear"], x.astype(float)
    for kernel, bias in zip(kernels["kernel"], kernels["bias"], strict=True):
        h = np.tanh(h @ np.asarray(kernel, float) + np.asarray(bias))
    np.testing.assert_allclose(flow.log_mean_square[-1], oracles.log_mean_square(h), rtol=1e-4)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"width": -3}, "width must be at least 1, got -3"),
        ({"depth": 2.0}, "depth must be a whole number, got 2.0"),
        ({"width": True}, "width must be a whole number or a list of whole numbers, got True"),
        ({"inputs": 0}, "inputs must be at least 1"),
        ({"outputs": "3"}, "outputs must be a whole number, got '3'"),
        ({"inputs": None}, "inputs must be a whole number, got None"),
        ({"width": None}, "width must be a whole number or a list of whole numbers, got None"),
        ({"depth": None}, "depth must be a whole number, got None"),
        ({"width": (3, 3)}, "depth must be left out beside the widths of all states, got depth=3"),
        ({"width": (3,), "depth": None}, r"width must hold at least 2 sizes .*, got \(3,\)"),
        ({"width": (3, 0), "depth": None}, "width must be at least 1, got 0"),
        ({"stem": False}, r"inputs must be the 4 units of h\^0 \(or left out\) without a stem, got 2"),
        ({"activation": "rleu"}, "did you mean 'relu'"),
        ({"activation": jax.nn.softmax}, "activation 'softmax' must"),
        ({"activation": jnp.log}, "must not return NaN"),
        ({"kernel_init": "gausian"}, "kernel_init must be one of .* did you mean 'gaussian'"),
        ({"bias_init": "zeros"}, "bias_init must be one of gaussian, uniform, fan_in_uniform, zero, got 'zeros'; did"),
        ({"dtype": "float16"}, "dtype must be float32 or float64, got 'float16'"),
        ({"dtype": "float64"}, r"dtype float64 needs jax.enable_x64\(True\) around the work, got it switched off"),
    ],
)
def test_bad_networks_are_refused_in_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        vg.mlp(**{"width": 4, "depth": 3, "inputs": 2, **options})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"sigma_v": 1.0}, "scale must be one of sigma_w, sigma_b, sigma_in, sigma_out, got 'sigma_v'"),
        ({"sigma_w": np.ones(3)}, r"sigma_w must be a number or one value per layer, shape \(4,\), got shape \(3,\)"),
        ({"sigma_b": np.ones((4, 1))}, r"got shape \(4, 1\)"),
        ({"sigma_w": -1.0}, "sigma_w must be finite and not negative, got -1"),
        ({"sigma_b": [0.1, 0.2, -0.5, 0]}, "sigma_b must be finite and not negative, got -0.5"),
    ],
)
@pytest.mark.parametrize("use", [vg.forward, vg.push_forward, vg.pull_back, vg.gradient_flow, vg.gain_matrix])
def test_bad_scales_are_refused_in_one_sentence(use: Any, scales: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        use(oracles.drawn(uneven(), SIZES), vg.Scales(**scales), example())


@pytest.mark.parametrize("use", [vg.forward, vg.push_forward, vg.pull_back, vg.gradient_flow, vg.gain_matrix])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones(SIZES[0] + 1), r"x must have shape \(6,\).*, got \(7,\)"),
        (np.ones((2, 3, SIZES[0])), r"x must have shape \(6,\).*, got \(2, 3, 6\)"),
        (np.full(SIZES[0], np.nan), "x must be finite"),
        (np.full(SIZES[0], np.inf), "x must be finite"),
    ],
    ids=["size", "rank", "nan", "infinite"],
)
def test_bad_inputs_are_refused_in_one_sentence(use: Any, x: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        use(oracles.drawn(uneven(), SIZES), vg.Scales(), x)


class Shrinking(nnx.Module):
    """Not a block: it changes the shape of its state."""

    def __init__(self, *_: Any, rngs: nnx.Rngs):
        self.linear = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, h: jax.Array) -> jax.Array:
        return self.linear(h)


def test_blocks_that_do_not_stack_are_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"Shrinking must keep the shape of its state, got \(3,\) from \(4,\)"):
        vg.stack(Shrinking, depth=2, input_shape=4)
    with pytest.raises(ValueError, match="arguments must be a list of hashable"):
        vg.stack(Shrinking, [1, 2], depth=2, input_shape=4)
    with pytest.raises(ValueError, match="depth must be at least 1"):
        vg.stack(Shrinking, depth=0, input_shape=4)
