"""Every architecture against automatic differentiation of the same network in plain Flax NNX."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import architecture_oracles as truth
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx
from scipy.special import expit

import vgjax as vg
from vgjax import initializers
from vgjax.networks.network import check_scales

TOLERANCE = {"float32": 1e-5, "float64": 1e-11}
LN = functools.partial(truth.normed, "layer", epsilon=1e-6)
RELU, TANH, GELU = (oracles.ACTIVATIONS[name] for name in ("relu", "tanh", "gelu"))
USER = oracles.user_activation
SIGMAS = {"sigma_w": 1.0, "sigma_b": 0.0, "sigma_v": 1.0, "sigma_a": 0.0, "sigma_qk": 1.0, "sigma_vo": 1.0}


class Case(NamedTuple):
    """One architecture: as the library builds it and as Flax does, with its numbers.

    Attributes:
        build: the library's network.
        parts: the same by Flax.
        loss: what is differentiated.
        given: scales that are given.
        implied: scales that the architecture's scheme or cell sets by itself.
        last: the last layer of a residual branch (`architecture_oracles.multiplied`).
        zero: parameters whose gradient is zero by symmetry, so that it reads as rounding.
        diagnostics: ``(parameters, s_l, x_l, scales) -> what a cell reports``, in numpy.
        batch: how many inputs.
        noise: distribution of the dropout.
    """

    build: Callable[..., vg.Network]
    parts: truth.Parts
    loss: str
    given: dict[str, Any]
    implied: dict[str, float] = {}  # noqa: RUF012
    last: str = ""
    dtype: str = "float32"
    zero: tuple[str, ...] = ()
    diagnostics: Callable[..., dict[str, float]] | None = None
    batch: int = 2
    noise: str = "bernoulli"


def fully_connected(**options: Any) -> Callable[..., vg.Network]:
    return functools.partial(vg.mlp, **{"width": 6, "depth": 3, "inputs": 4, "outputs": 3, **options})


def tied(**options: Any) -> Callable[..., vg.Network]:
    return lambda **more: vg.networks.tied(fully_connected(**options)(**more))


def convolutional(**options: Any) -> Callable[..., vg.Network]:
    return functools.partial(vg.cnn, **{"channels": 4, "depth": 3, "inputs": (8, 8, 2), "outputs": 3, **options})


def recurrent(kind: Callable[..., vg.Network], **options: Any) -> Callable[..., vg.Network]:
    return functools.partial(kind, **{"width": 5, "depth": 3, "inputs": 3, "outputs": 4, **options})


def attentive(**options: Any) -> Callable[..., vg.Network]:
    sizes = {"width": 6, "depth": 3, "heads": 2, "inputs": (3, 4), "outputs": 5}
    return functools.partial(vg.transformer, **{**sizes, **options})


def _preactivations(p: Any, h: np.ndarray, x: np.ndarray) -> np.ndarray:
    return h @ p["kernel"] + x @ p["input_kernel"] + p["bias"]


def _simple_gates_of(p: Any, h: np.ndarray, x: np.ndarray, scales: dict[str, float]) -> dict[str, float]:
    return {"mean_square_slope": np.mean(np.cosh(_preactivations(p, h, x)) ** -4.0)}


def _minimal_gates_of(p: Any, h: np.ndarray, x: np.ndarray, scales: dict[str, float]) -> dict[str, float]:
    return {"update_gate": expit(_preactivations(p, h, x) + scales["forget_bias"]).mean()}


def _lstm_gates_of(p: Any, state: np.ndarray, x: np.ndarray, scales: dict[str, float]) -> dict[str, float]:
    i, f, _, o = np.split(_preactivations(p, state[0], x), 4)
    gates = {"input_gate": i, "forget_gate": f + scales["forget_bias"], "output_gate": o}
    return {name: expit(gate).mean() for name, gate in gates.items()}


def _gru_gates_of(p: Any, h: np.ndarray, x: np.ndarray, scales: dict[str, float]) -> dict[str, float]:
    r, z, _ = np.split(_preactivations(p, h, x), 3)
    return {"reset_gate": expit(r).mean(), "update_gate": expit(z + scales["forget_bias"]).mean()}


CASES = {
    "residual pre, bottleneck, layer norm": Case(
        fully_connected(
            residual=vg.networks.branch("pre", bottleneck=4), norm=vg.norm("layer", epsilon=1e-3), activation="tanh"
        ),
        truth.residual("pre", truth.Around(TANH, functools.partial(truth.normed, "layer", epsilon=1e-3))),
        "cross_entropy",
        {
            "sigma_w": (1.3, 0.8, 1.1),
            "sigma_b": 0.3,
            "sigma_v": (0.7, 1.4, 0.9),
            "sigma_a": 0.2,
            "skip": (0.9, 1.2, 0.8),
            "branch": (0.6, 0.7, 1.5),
        },
        last="layer_2",
    ),
    "residual pre of one layer, stable, rms norm on activations": Case(
        fully_connected(
            residual=vg.networks.branch("pre", layers=1, scheme="stable"),
            norm=vg.norm("rms", on="activations"),
            activation="relu",
        ),
        truth.residual(
            "pre", truth.Around(RELU, functools.partial(truth.normed, "rms", epsilon=1e-6), behind=True), kernels=1
        ),
        "squared_error",
        {"sigma_w": 1.3, "sigma_b": 0.4, "skip": 0.9},
        implied={"branch": 1 / np.sqrt(3)},
        dtype="float64",
    ),
    "residual plain, rezero, group norm": Case(
        fully_connected(
            residual=vg.networks.branch("plain", bottleneck=8, scheme="rezero"),
            norm=vg.norm("group", groups=2),
            activation=USER,
        ),
        truth.residual(
            "plain", truth.Around(USER, functools.partial(truth.normed, "group", epsilon=1e-6, groups=2)), gated=True
        ),
        "cotangent",
        {"sigma_w": 1.2, "sigma_b": 0.3, "sigma_v": 0.8, "sigma_a": 0.2, "skip": 1.1, "branch": (0.4, 0.7, 1.3)},
        last="layer_2",
    ),
    "residual post, three kernels, gaussian dropout": Case(
        fully_connected(
            residual=vg.networks.branch("post", layers=3, bottleneck=5), dropout="gaussian", activation="tanh"
        ),
        truth.residual("post", truth.Around(TANH, dropout="gaussian"), kernels=3),
        "squared_error",
        {
            "sigma_w": 1.3,
            "sigma_b": 0.3,
            "sigma_v": 0.8,
            "sigma_a": 0.2,
            "skip": 0.9,
            "branch": (0.6, 0.7, 1.5),
            "dropout": (0.2, 0.3, 0.4),
        },
        last="layer_3",
        dtype="float64",
        noise="gaussian",
    ),
    "fixup": Case(
        fully_connected(residual=vg.networks.branch("pre", layers=3, scheme="fixup"), activation="relu"),
        truth.residual("pre", truth.Around(RELU), kernels=3, gated=True),
        "cross_entropy",
        {"sigma_in": 1.3, "sigma_b": 0.3, "sigma_v": 0.8, "sigma_a": 0.2, "skip": 1.1, "branch": 1.0},
        implied={"sigma_w": np.sqrt(2) * 3**-0.25},
        last="layer_3",
        dtype="float64",
    ),
    "batch norm, bernoulli dropout": Case(
        fully_connected(norm=vg.norm("batch", batch=5), dropout="bernoulli", activation="gelu"),
        truth.plain(
            truth.Around(GELU, functools.partial(truth.normed, "batch", epsilon=1e-6), dropout="bernoulli"),
        ),
        "cross_entropy",
        {"sigma_w": (1.2, 0.9, 1.1), "sigma_b": 0.4, "dropout": (0.3, 0.4, 0.2)},
        dtype="float64",
        zero=("bias", "stem/bias"),
    ),
    "tied, batch norm by running statistics, on activations": Case(
        tied(norm=vg.norm("batch_running", on="activations"), activation="tanh"),
        truth.plain(
            truth.Around(TANH, functools.partial(truth.normed, "batch_running", epsilon=1e-6), behind=True),
        ),
        "squared_error",
        {"sigma_w": 1.2, "sigma_b": 0.4},
        batch=3,
    ),
    "cnn of two dimensions, circular, group norm": Case(
        convolutional(inputs=(4, 3, 2), norm=vg.norm("group", groups=2), activation="relu"),
        truth.plain(
            truth.Around(RELU, functools.partial(truth.normed, "group", epsilon=1e-6, groups=2)),
            pool=2,
            stem=truth.image_stem(truth.Around()),
        ),
        "cross_entropy",
        {"sigma_w": (1.4, 1.2, 0.9), "sigma_b": (0.3, 0.2, 0.5)},
        dtype="float64",
    ),
    "cnn of one dimension, zeros, layer norm": Case(
        convolutional(
            inputs=(7, 2), kernel_size=5, padding="zero", norm=vg.norm("layer", on="activations"), activation="tanh"
        ),
        truth.plain(
            truth.Around(TANH, LN, behind=True, padding="zero"),
            pool=1,
            stem=truth.image_stem(truth.Around(padding="zero")),
        ),
        "squared_error",
        {"sigma_w": 1.4, "sigma_b": 0.3},
        dtype="float64",  # in float32 a norm over few channels is worth .9e-5 on one processor and 1.03e-5 on another
    ),
    "resnet": Case(
        functools.partial(
            vg.resnet,
            channels=(3, 4),
            depth=(2, 1),
            inputs=(5, 4, 2),
            outputs=3,
            padding="zero",
            norm=vg.norm("batch", batch=3, epsilon=1e-5),
            residual=vg.networks.branch("pre", scheme="skipinit"),
        ),
        truth.resnet(truth.Around(RELU, functools.partial(truth.normed, "batch", epsilon=1e-5), padding="zero")),
        "cross_entropy",
        {"sigma_w": 1.4, "sigma_b": 0.3, "sigma_v": 1.2, "sigma_a": 0.2, "skip": 0.9, "branch": (0.5, 0.8, 1.2)},
        last="layer_2",
        zero=("stem/bias", "branch/layer_1/bias", "branch/layer_2/bias", "shortcut/bias"),
    ),
    "rnn, a loss at every step": Case(
        recurrent(vg.rnn, every_step=True, activation="tanh"),
        truth.recurrent(truth.simple_cell, 5, every_step=True),
        "squared_error",
        {"sigma_w": 1.4, "sigma_v": 0.8, "sigma_b": 0.3},
        diagnostics=_simple_gates_of,
    ),
    "minimal cell": Case(
        recurrent(vg.rnn, cell="minimal", inputs=5),
        truth.recurrent(truth.minimal_cell, 5),
        "cross_entropy",
        {"sigma_w": 1.4, "sigma_v": 0.8, "sigma_b": 0.3, "forget_bias": 0.6},
        diagnostics=_minimal_gates_of,
    ),
    "lstm, a loss at every step": Case(
        recurrent(vg.lstm, every_step=True),
        truth.recurrent(truth.lstm_cell, 5, parts=2, every_step=True),
        "cross_entropy",
        {"sigma_w": 1.4, "sigma_v": 0.8, "sigma_b": 0.3, "forget_bias": (0.7, -0.4, 1.5)},
        dtype="float64",
        diagnostics=_lstm_gates_of,
    ),
    "gru": Case(
        recurrent(vg.gru),
        truth.recurrent(truth.gru_cell, 5),
        "squared_error",
        {"sigma_w": 1.4, "sigma_v": 0.8, "sigma_b": 0.3, "forget_bias": -0.6},
        dtype="float64",
        diagnostics=_gru_gates_of,
    ),
    "transformer pre, causal": Case(
        attentive(attention="causal"),
        truth.transformer(GELU, "pre", LN, causal=True),
        "cross_entropy",
        {
            "sigma_in": 1.4,
            "sigma_w": (1.2, 0.9, 1.1),
            "sigma_b": 0.3,
            "sigma_qk": 1.5,
            "sigma_vo": 0.8,
            "temperature": (1.7, 0.6, 1.2),
            "skip": 0.9,
            "branch": 0.7,
        },
    ),
    "transformer post, deepnorm, rms norm": Case(
        attentive(
            residual=vg.networks.branch("post", scheme="deepnorm"),
            norm=vg.norm("rms", epsilon=1e-2),
            feed_forward=vg.networks.feed_forward("relu", hidden=5),
        ),
        truth.transformer(RELU, "post", functools.partial(truth.normed, "rms", epsilon=1e-2)),
        "squared_error",
        {"sigma_in": 0.8, "sigma_b": 0.3, "sigma_qk": 1.5, "temperature": 0.7},
        dtype="float64",
        implied={"skip": 6**0.25, "sigma_vo": 24**-0.25, "sigma_w": 24**-0.25},
    ),
    "attention alone, tied, rezero": Case(
        lambda **options: vg.networks.tied(
            attentive(norm=None, feed_forward=None, heads=3, residual=vg.networks.branch("pre", scheme="rezero"))(
                **options
            )
        ),
        truth.transformer(None, None, gated=True),
        "cotangent",
        {
            "sigma_in": 1.2,
            "sigma_b": 0.3,
            "sigma_qk": 1.5,
            "sigma_vo": 0.8,
            "temperature": 1.4,
            "skip": 0.9,
            "branch": 0.7,
        },
    ),
}


class Made(NamedTuple):
    """A case with its numbers."""

    network: vg.Network
    parameters: vg.networks.Parameters
    scales: vg.Scales
    ordinary: vg.networks.Parameters
    left: vg.Scales
    by_layer: list[dict[str, float]]
    xs: np.ndarray
    ys: np.ndarray


def make(case: Case) -> Made:
    """The case's network with numbers of its dtype."""
    net = case.build(dtype=case.dtype)
    parameters = truth.drawn(net, case.noise)
    scales = vg.Scales(**{name: jnp.asarray(value) for name, value in case.given.items()})
    values = {n: np.broadcast_to(v, net.depth) for n, v in (case.implied | case.given).items()}
    by_layer = [{n: float(v[i]) for n, v in values.items() if not n.startswith("sigma")} for i in range(net.depth)]
    rng = np.random.default_rng(1)
    xs = rng.normal(size=(case.batch, *net.input_shape)).astype(case.dtype)
    shape = (case.batch, *jax.eval_shape(lambda x: vg.forward(parameters, scales, x), xs[0]).shape)
    ys = rng.normal(size=shape).astype(case.dtype)
    if case.loss == "cross_entropy":
        ys = rng.integers(0, shape[-1], shape[:-1])
    return Made(net, parameters, scales, *truth.compiled(vg.absorb_scales, parameters, scales), by_layer, xs, ys)


def assert_close(ours: Any, other: Any, tolerance: float, what: str) -> None:
    """A difference of logarithms is a relative difference of the norms."""
    assert np.shape(ours) == np.shape(other), what
    np.testing.assert_allclose(ours, other, rtol=0, atol=tolerance, err_msg=what)


def diagnostics(case: Case, made: Made, states: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What a cell reports of itself, at every step of every example."""
    weights = jax.tree.map(lambda a: np.asarray(a, np.float64), made.ordinary.stages[0])

    def at(example: int, step: int) -> dict[str, float]:
        return case.diagnostics(weights, states[step][example], made.xs[example, step], made.by_layer[step])

    reported = [[at(b, t) for t in range(made.network.depth)] for b in range(case.batch)]
    return {name: np.array([[step[name] for step in steps] for steps in reported]) for name in reported[0][0]}


# --- gradients ------------------------------------------------------------------------------------------------------


SLOW = (
    "residual pre of one layer, stable, rms norm on activations",
    "residual plain, rezero, group norm",
    "fixup",
    "cnn of one dimension, zeros, layer norm",
    "resnet",
    "minimal cell",
    "transformer post, deepnorm, rms norm",
)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES])
def test_every_gradient_is_that_of_automatic_differentiation_of_the_unrolled_network(name: str) -> None:
    case = CASES[name]
    tolerance = TOLERANCE[case.dtype]
    with jax.enable_x64(case.dtype == "float64"):
        made = make(case)
        cotangent = {"loss": "cotangent"} if case.loss == "cotangent" else {}  # the others are read off the targets
        call = functools.partial(vg.gradient_flow, **cotangent)
        flow = truth.compiled(call, made.parameters, made.scales, made.xs, made.ys)
    expected = truth.gradients(case.parts, made.ordinary, made.by_layer, made.xs, made.ys, case.loss)

    stem, stages = truth.multiplied(made.parameters, SIGMAS | case.implied | case.given, case.last)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=tolerance),
        (made.ordinary.stem, list(made.ordinary.stages), made.ordinary.head),
        (stem, stages, made.parameters.head),
    )
    assert_close(flow.log_mean_square, expected.log_mean_square, tolerance, "log_mean_square")
    assert_close(flow.log_gradient, expected.log_gradient, tolerance, "log_gradient")
    for ours, others in (
        (flow.log_parameter_gradient, expected.log_parameter_gradient),
        (flow.log_tied_gradient, expected.log_tied_gradient),
    ):
        assert set(ours) == set(others)
        for path in set(ours) - set(case.zero):
            assert_close(ours[path], others[path], tolerance, path)
    for path in case.zero:
        assert np.nanmax(expected.log_parameter_gradient[path]) < -30, path
    names = ("h", "c") if "lstm" in name else ()
    assert set(flow.log_gradient_parts) == set(names)
    for part, log in zip(names, expected.log_gradient_parts if names else (), strict=True):
        assert_close(flow.log_gradient_parts[part], log, tolerance, part)
    mean_gates = diagnostics(case, made, expected.states) if case.diagnostics else {}
    assert set(flow.diagnostics) == set(mean_gates)
    for reading, series in mean_gates.items():
        assert_close(flow.diagnostics[reading], series, tolerance, reading)
    assert not np.any(flow.saturated)
    assert np.all(flow.first_inexact_layer == made.network.depth + 1)


# --- products and outputs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lstm, a loss at every step", "transformer pre, causal"])
def test_products_are_those_of_dense_jacobians_and_outputs_those_of_flax(name: str) -> None:
    case = CASES[name]
    tolerance = TOLERANCE[case.dtype]
    with jax.enable_x64(case.dtype == "float64"):
        made = make(case)
        net, x = made.network, made.xs[0]
        outputs, jacobians = truth.jacobians(case.parts, made.ordinary, made.by_layer, x)
        shape = (2, 5) if "lstm" in name else (3, 6)
        u, v = np.random.default_rng(2).normal(size=(2, *shape)).astype(case.dtype)
        push = truth.compiled(vg.push_forward, made.parameters, made.scales, x, u)
        pull = truth.compiled(vg.pull_back, made.parameters, made.scales, x, v)
        of_draws = truth.compiled(vg.forward, made.parameters, made.scales, x)
        of_ordinary = truth.compiled(vg.forward, made.ordinary, made.left, x)
    pushed = [oracles.log_norm(jacobians[m, 0] @ u.ravel()) for m in range(net.depth + 1)]
    pulled = [oracles.log_norm(jacobians[net.depth, l].T @ v.ravel()) for l in range(net.depth + 1)]
    assert_close(push.log_gain, pushed, tolerance, "push")
    assert_close(pull.log_gain, pulled, tolerance, "pull")
    assert_close(push.log_mean_square, pull.log_mean_square, tolerance, "states")
    for ours in (of_draws, of_ordinary):
        np.testing.assert_allclose(ours, outputs, rtol=tolerance, atol=tolerance)


# --- corners --------------------------------------------------------------------------------------------------------


def test_a_norm_on_activations_may_stand_before_the_pooling_of_a_head() -> None:
    net = convolutional(norm=vg.norm("layer", on="activations"))()
    x = np.ones(net.input_shape)
    assert jax.eval_shape(lambda p: vg.forward(p, vg.Scales(), x), truth.drawn(net)).shape == (3,)


def test_batch_norm_in_float64_does_not_warn(x64: None) -> None:
    net = fully_connected(norm=vg.norm("batch", batch=4))(dtype="float64")
    x = np.ones(net.input_shape)
    assert jax.eval_shape(lambda p: vg.forward(p, vg.Scales(), x), truth.drawn(net)).dtype == np.float64


def test_attention_in_float64_is_exact_to_float64(x64: None) -> None:
    attention = vg.blocks.Attention(6, 2, dtype="float64", rngs=nnx.Rngs(0))
    h = np.random.default_rng(5).normal(size=(3, 6))
    kernels, scales = (
        nnx.to_pure_dict(nnx.state(attention)),
        vg.Scales(**{name: scale.default for name, scale in attention.scales.items()}),
    )
    plain = truth.compiled(functools.partial(truth.attended, kernels, causal=False, temperature=1.0), h)
    np.testing.assert_allclose(truth.compiled(attention, h, scales), plain, rtol=1e-12)


# --- a user's own block ---------------------------------------------------------------------------------------------


class Users(nnx.Module):
    """A block of plain Flax: batch norm, whose running statistics a call changes, and dropout, which counts calls."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.linear = nnx.Linear(width, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.4, rngs=rngs)

    def __call__(self, h: jax.Array) -> jax.Array:
        return h + self.dropout(jnp.tanh(self.linear(self.norm(h))))


def test_a_users_block_with_batch_norm_and_dropout_stacks_as_it_is() -> None:
    net = vg.stack(Users, 4, depth=3, input_shape=(5, 4))
    params = truth.drawn(net)
    x, v = np.random.default_rng(3).normal(size=(2, 5, 4)).astype(np.float32)
    call = functools.partial(vg.gradient_flow, loss="cotangent")
    flow = truth.compiled(call, params, vg.Scales(), x, v)
    graph, _ = nnx.split(Users(4, rngs=nnx.Rngs(0)))

    def loss(stage: Any, nudges: list[Any]) -> Any:
        h = x + nudges[0]
        for i, nudge in enumerate(nudges[1:]):
            h = nnx.merge(graph, jax.tree.map(lambda a, i=i: a[i], stage), copy=True)(h) + nudge
        return jnp.sum(h * v)

    trained = {"norm": ("scale", "bias"), "linear": ("kernel", "bias")}
    trained_draws = {part: {name: params.stages[0][part][name] for name in names} for part, names in trained.items()}

    def of_trained(parts: Any, nudges: list[Any]) -> Any:
        return loss({part: tree | parts.get(part, {}) for part, tree in params.stages[0].items()}, nudges)

    by_stage, by_state = truth.compiled(
        jax.grad(of_trained, argnums=(0, 1)), trained_draws, [np.zeros((5, 4), np.float32)] * 4
    )
    assert_close(flow.log_gradient, [oracles.log_norm(g) for g in by_state], 1e-5, "states")
    expected = {path: np.array([oracles.log_norm(layer) for layer in g]) for path, g in truth.trainable(by_stage)}
    assert set(flow.log_parameter_gradient) == set(expected)
    for path, log in expected.items():
        assert_close(flow.log_parameter_gradient[path], log, 1e-5, path)
    # Masks differ from layer to layer: the same block thrice is another network.
    repeated = jax.tree.map(lambda a: jnp.stack([a[0]] * 3), params.stages[0]["dropout"])
    assert not np.allclose(loss(params.stages[0], [0.0] * 4), loss(params.stages[0] | {"dropout": repeated}, [0.0] * 4))


# --- bad input ------------------------------------------------------------------------------------------------------


class Narrowing(nnx.Module):
    """Not a block: it drops a unit."""

    def __init__(self, *, rngs: nnx.Rngs):
        pass

    def __call__(self, h: jax.Array) -> jax.Array:
        return h[:-1]


class Rounding(nnx.Module):
    """Not a block: its state leaves in half precision."""

    def __init__(self, *, rngs: nnx.Rngs):
        pass

    def __call__(self, h: jax.Array) -> jax.Array:
        return h.astype(jnp.float16)


def at_scales(build: Callable[[], vg.Network], **scales: Any) -> Callable[[], Any]:
    return lambda: check_scales(build(), vg.Scales(**scales))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (convolutional(channels=0), "channels must be at least 1, got 0"),
        (convolutional(kernel_size=4), r"kernel_size must be odd to keep the image's size, got \(4, 4\)"),
        (convolutional(padding="same"), "padding must be one of circular, zero, got 'same'"),
        (convolutional(inputs=(4, 4, 4, 4, 2)), "inputs must be the shape of an image, 1 to 3 sizes and its channels"),
        (lambda: vg.norm("batch", batch=1), "batch must be at least 2 for norm 'batch' .*, got 1"),
        (fully_connected(norm="batch"), "batch must be at least 2 for norm 'batch' .*, got None"),
        (fully_connected(norm=vg.norm("group", groups=4)), "groups must divide the 6 features, got 4"),
        (fully_connected(norm="bach"), "norm must be one of .* did you mean 'batch'"),
        (lambda: vg.norm("layer", epsilon=-1.0), "epsilon must be finite and not negative, got -1"),
        (
            lambda: vg.networks.branch("pre", layers=1, scheme="fixup"),
            "layers must be at least 2 for scheme 'fixup', got 1",
        ),
        (lambda: vg.networks.branch("post", layers=1), "layers must be at least 2 for residual 'post', got 1"),
        (
            fully_connected(residual=vg.networks.branch("pre", scheme="deepnorm")),
            "scheme must be one of stable, complete, rezero, skipinit, fixup",
        ),
        (
            lambda: vg.networks.tied(vg.mlp(width=(4, 5, 5), inputs=3)),
            r"layers must be all alike to share one draw, got mlp\(tanh, width 4-5, depth 2, inputs 3, outputs 1\)",
        ),
        (
            functools.partial(vg.mlp, width=(4, 5, 5), inputs=3, residual="pre"),
            r"widths must be equal in a residual network, got \(4, 5, 5\)",
        ),
        (
            functools.partial(vg.resnet, channels=(3, 4), depth=(1, 1, 1)),
            r"channels and depth must name as many stages, got \(3, 4\) and \(1, 1, 1\)",
        ),
        (
            recurrent(vg.rnn, cell="minimal", inputs=3),
            "inputs must equal the width 5 for a minimal cell, got 3",
        ),
        (recurrent(vg.rnn, cell="lstm"), "cell must be one of simple, minimal, got 'lstm'"),
        (attentive(heads=4), "heads must divide the width 6, got 4"),
        (
            attentive(residual=vg.networks.branch("pre", scheme="deepnorm")),
            "scheme 'deepnorm' needs residual 'post' and a norm",
        ),
        (
            attentive(residual=vg.networks.branch("pre", scheme="fixup")),
            "scheme must be one of stable, complete, rezero, skipinit, deepnorm, layer_scale, layer_norm_scaling, got",
        ),
        (
            lambda: vg.blocks.Conv(4, 3, kernel_init="delta_orthogonal", rngs=nnx.Rngs(0)),
            "delta_orthogonal needs channels_in <= channels_out, got 4 and 3",
        ),
        (
            lambda: initializers.convolution_initializer("gaussian", (3, 2), 4, 4),
            r"kernel_size must be odd to keep the image's size, got \(3, 2\)",
        ),
        (
            lambda: vg.stack(Narrowing, depth=2, input_shape=4),
            r"Narrowing must keep the shape of its state, got \(3,\) from \(4,\)",
        ),
        (
            lambda: vg.stack(Rounding, depth=2, input_shape=4),
            "Rounding must keep the dtype of its state, got float16 from float32",
        ),
        (at_scales(fully_connected(dropout="gaussian"), dropout=1.0), "dropout must be finite and .* below 1, got 1"),
        (at_scales(fully_connected(dropout="gaussian"), dropout=-0.1), "dropout must be .* at least 0 .*, got -0.1"),
        (at_scales(attentive(), temperature=0), "temperature must be finite and positive, got 0"),
        (at_scales(attentive(), branch=[1.0, np.inf, 0]), "branch must be finite, got inf"),
        (lambda: vg.Scales(forget_bias=np.nan), "forget_bias must be finite, got nan"),
    ],
)
def test_bad_architectures_and_scales_are_refused_in_one_sentence(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def recurrence() -> vg.networks.Parameters:
    return truth.drawn(recurrent(vg.rnn)())


@pytest.mark.parametrize(
    ("scales", "steps", "message"),
    [
        ({"sigma_u": 1.0}, 3, "scale must be one of sigma_w, sigma_v, sigma_b, sigma_out, got 'sigma_u'; did you mean"),
        ({"forget_bias": 1.0}, 3, "scale must be one of sigma_w, sigma_v, sigma_b, sigma_out, got 'forget_bias'"),
        ({"sigma_w": np.ones(3)}, 3, "sigma_w must be one number where layers share their parameters"),
        ({}, 2, r"x must have shape \(3, 3\).*: one input for each of the 3 steps, got \(2, 3\)"),
    ],
)
@pytest.mark.parametrize("use", [vg.forward, vg.push_forward, vg.pull_back, vg.gradient_flow])
def test_bad_scales_and_sequences_of_a_recurrence_are_refused_in_one_sentence(
    recurrence: Any, use: Any, scales: dict[str, Any], steps: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        use(recurrence, vg.Scales(**scales), np.ones((steps, 3)))
    assert "\n" not in str(error.value)
