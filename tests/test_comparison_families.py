"""compare of streams, graphs and linear recurrences: drawn networks have the mean squares of their theory."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import vgjax as vg
from vgjax.blocks import spec
from vgjax.networks import (
    delta_net,
    depth_average,
    diagonal_rnn,
    graph_conv,
    hyper_connections,
    mamba,
    min_gru,
    min_lstm,
    normalized_adjacency,
    rg_lru,
)

DEPTH, WIDTH, STREAMS, SEEDS = 6, 12, 3, 1000
KEY = jax.random.key(4)


def white(steps: int, size: int, square: float = 0.7) -> np.ndarray:
    """Inputs that are orthogonal from step to step: over draws of a Gaussian kernel its product with each is drawn
    anew."""
    rows = np.linalg.qr(np.random.default_rng(0).normal(size=(size, steps)))[0].T
    return (np.sqrt(square * size) * rows).astype(np.float32)


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def ring(nodes: int = 5) -> np.ndarray:
    return np.roll(np.eye(nodes), 1, axis=0) + np.roll(np.eye(nodes), -1, axis=0)


def network(block: Any, shape: Any = WIDTH, stem: Any = None, depth: int = DEPTH) -> vg.Network:
    return vg.stack(block, depth=depth, input_shape=shape, stem=stem)


def split(streams: int = STREAMS) -> vg.blocks.Spec:
    return spec(vg.blocks.Split, streams)


def hyper(branch: Any = None, streams: int = STREAMS, stem: Any = None, **options: Any) -> vg.Network:
    block = hyper_connections(branch or vg.dense(WIDTH, WIDTH), streams, **options)
    return network(block, stem=split(streams) if stem is None else stem)


def averages(memory: int = DEPTH + 1, branch: Any = None, stem: Any = None) -> vg.Network:
    stem = spec(vg.blocks.Remember, memory) if stem is None else stem
    return network(depth_average(branch or vg.dense(WIDTH, WIDTH), memory), stem=stem)


def graph(adjacency: np.ndarray | None = None, phi: str = "linear", stem: Any = None, **options: Any) -> vg.Network:
    given = normalized_adjacency(ring()) if adjacency is None else adjacency
    return network(graph_conv(given, WIDTH, WIDTH, phi, **options), (5, WIDTH), stem)


class Case(NamedTuple):
    """A network, its input, what is swept, what is said of the input; and what would be another theory's: a network,
    other axes, or what is said of another input."""

    network: Any
    x: np.ndarray
    axes: dict[str, Any]
    wrong: Any
    given: Any = {}  # noqa: RUF012 - read alone
    variables: Any = ("log_gain",)


BOTH = ("log_gain", "log_mean_square")
MAPS = {"sigma_w": [0.6, 1.0], "branch": [0.5, 1.0]}
NODES = {"covariance": drawn(5, WIDTH) @ drawn(5, WIDTH).T}
WHITE = {"input_variance": 0.7}
CASES = {
    "free maps": Case(hyper(), drawn(WIDTH), MAPS | {"sigma_r": 0.2}, hyper(streams=6), variables=BOTH),
    "free maps around one stream": Case(
        hyper(read=1), drawn(WIDTH), MAPS | {"sigma_r": [0.2], "skip": 0.9}, hyper(streams=6), variables=BOTH
    ),
    "constrained maps": Case(hyper(logit=1.5), drawn(WIDTH), MAPS, {"axes": {"branch": [0.6, 1.2]}}, variables=BOTH),
    "dynamic maps as they begin": Case(
        hyper(features=WIDTH), drawn(WIDTH), MAPS, {"axes": {"sigma_w": [0.7, 1.2]}}, variables=BOTH
    ),
    "two kernels in a branch": Case(
        hyper(vg.networks.chain(vg.dense(WIDTH, 5), vg.dense(5, WIDTH, names=("sigma_v", "sigma_a")))),
        drawn(WIDTH),
        {"sigma_w": [0.6, 1.0], "sigma_v": 1.3},
        hyper(),
        variables=BOTH,
    ),
    "averages over depth": Case(
        averages(),
        drawn(WIDTH),
        {"sigma_past": [0.2, 0.5], "sigma_w": [0.8, 1.1]},
        {"axes": {"sigma_past": [0.4, 0.7]}},
        variables=("log_mean_square",),
    ),
    "averages of which the oldest is forgotten": Case(
        averages(DEPTH), drawn(WIDTH), {"sigma_past": [0.2, 0.5]}, averages(), variables=("log_mean_square",)
    ),
    "a graph": Case(
        graph(),
        drawn(5, WIDTH),
        {"sigma_w": [1.0, 1.3], "sigma_b": [0.0, 0.2]},
        graph(1.1 * normalized_adjacency(ring())),
        NODES,
        BOTH,
    ),
    "LRU": Case(
        diagonal_rnn(width=16, depth=DEPTH, inputs=3, radii=(0.5, 0.99)),
        drawn(DEPTH, 3),
        {"sigma_v": [0.5, 2.0]},
        diagonal_rnn(width=16, depth=DEPTH, inputs=3, radii=(0.6, 0.99)),
    ),
    "S4D": Case(
        diagonal_rnn(width=16, depth=DEPTH, inputs=3, law="s4d", time_steps=(0.01, 0.5)),
        drawn(DEPTH, 3),
        {},
        diagonal_rnn(width=16, depth=DEPTH, inputs=3, law="s4d"),
    ),
    "Mamba": Case(
        mamba(width=16, depth=DEPTH, states=4), white(DEPTH, 16), {"sigma_dt": [0.0, 2.0]},
        mamba(width=16, depth=DEPTH, states=6), WHITE,
    ),
    "Mamba-2": Case(
        mamba(width=16, depth=DEPTH, states=4, heads=8), drawn(DEPTH, 16), {"sigma_dt": 0.0},
        mamba(width=16, depth=DEPTH, states=4),
    ),
    "RG-LRU": Case(
        rg_lru(width=16, depth=DEPTH, radii=(0.5, 0.999)), white(DEPTH, 16), {"sigma_v": [0.0, 3.0]},
        rg_lru(width=16, depth=DEPTH, radii=(0.5, 0.999), sharpness=5.0), WHITE,
    ),
    "minGRU": Case(
        min_gru(width=16, depth=DEPTH, inputs=16), white(DEPTH, 16), {"sigma_v": [1.0, 2.0], "forget_bias": [0.0, 2.0]},
        {"input_variance": 1.0}, WHITE,
    ),
    "minLSTM": Case(
        min_lstm(width=16, depth=DEPTH, inputs=16), white(DEPTH, 16),
        {"sigma_v": [1.0, 2.0], "forget_bias": [0.0, 2.0]}, {"input_variance": 1.0}, WHITE,
    ),
    "the delta rule": Case(
        delta_net(width=6, depth=DEPTH, inputs=16), white(DEPTH, 16), {"rate": [1.0, 3.0], "sigma_gate": 0.0},
        delta_net(width=5, depth=DEPTH, inputs=16), WHITE,
    ),
}  # fmt: skip


def swept(name: str, *y: np.ndarray, **options: Any) -> vg.Result:
    case = CASES[name]
    return vg.sweep(case.network, case.x, *y, key=KEY, seeds=SEEDS, **options, **case.axes)


def assert_told_apart(name: str, result: vg.Result, variable: str) -> None:
    """The right theory agrees at every point and layer, the wrong one is seen."""
    case = CASES[name]
    found = vg.compare(result, variable, **case.given)
    assert found.variable == variable
    assert "theory and measurement agree" in found.verdict
    assert np.isfinite(found.z).any(axis=-1).all()
    assert np.nanmax(np.abs(found.z)) < 4
    wrong, given = case.wrong, case.given
    if isinstance(wrong, vg.Network):
        result = dataclasses.replace(result, networks={"": wrong})
    elif "axes" in wrong:
        axes = {name: np.asarray(values) for name, values in wrong["axes"].items()}
        result = dataclasses.replace(result, axes=result.axes | axes)
    else:
        given = wrong
    assert "theory and measurement differ" in vg.compare(result, variable, **given).verdict


@pytest.mark.parametrize("name", CASES)
def test_gains_and_states_have_the_mean_squares_of_their_theory(name: str) -> None:
    result = swept(name)
    for variable in CASES[name].variables:
        assert_told_apart(name, result, variable)


@pytest.mark.parametrize("name", ["LRU", "Mamba", "minGRU", "the delta rule"])
def test_gradients_through_time_run_back_as_gains_run_forward(name: str) -> None:
    result = swept(name, np.ones(1, np.float32), measure=vg.gradients())
    assert_told_apart(name, result, "log_gradient")
    found = vg.compare(result, **CASES[name].given)
    assert found.variable == "log_gradient"
    gains = vg.compare(swept(name), **CASES[name].given).predicted
    np.testing.assert_allclose(found.predicted - found.predicted[..., -1:], gains[..., ::-1], atol=1e-12)


def test_a_theory_of_mean_squares_is_compared_with_mean_squares() -> None:
    """Not with the mean of logarithms, which lies below by half a variance: seen here."""
    result = swept("free maps")
    found = vg.compare(result)
    np.testing.assert_allclose(found.measured, result.annealed("log_gain"), rtol=1e-5, atol=1e-6)
    off = (result.mean("log_gain") - found.predicted)[..., -1]
    assert np.all(off < -4 * result.error("log_gain")[..., -1])
    squares = np.exp(2 * result.log_gain.astype(float))
    deviation = squares.std(axis=0, ddof=1) / squares.mean(axis=0) / 2
    np.testing.assert_allclose(found.deviation[..., 1:], deviation[..., 1:], rtol=1e-5)


def test_gates_that_read_nothing_have_no_spread_and_are_not_scored() -> None:
    result = vg.sweep(
        min_gru(width=4, depth=3, inputs=2), drawn(3, 2), key=KEY, seeds=4, sigma_v=0.0, forget_bias=[1.0]
    )
    found = vg.compare(result)
    np.testing.assert_allclose(found.measured, found.predicted, rtol=1e-6, atol=1e-12)
    assert np.isnan(found.z).all()
    assert "nothing to compare" in found.verdict


# --- what holds at infinite width -----------------------------------------------------------------------------------


def at_width(width: int, kind: str) -> tuple[vg.Network, np.ndarray, dict[str, Any]]:
    """Behind a drawn stem."""
    if kind == "graph":
        x = drawn(5, 4)
        net = network(graph_conv(normalized_adjacency(ring()), width, width, "relu"), (5, 4), vg.dense(4, width), 4)
        return net, x, {"covariance": x @ x.T}
    layers = {"relu": vg.dense(width, width, "relu"), "norm": vg.dense(width, width, norm=vg.norm("rms", epsilon=0.0))}
    stem = vg.networks.chain(vg.dense(8, width), split())
    return network(hyper_connections(layers[kind], STREAMS), 8, stem, 4), drawn(8), {}


@pytest.mark.parametrize("kind", ["relu", "norm", "graph"])
def test_relu_and_norms_differ_by_one_over_width(kind: str) -> None:
    """C = 4 in the logarithm of a norm, at two widths; 2.6 is the most that was measured beyond 2 errors."""
    for width in (24, 96):
        net, x, given = at_width(width, kind)
        result = vg.sweep(net, x, key=KEY, seeds=200, sigma_w=[0.8, 1.2])
        for variable in BOTH:
            found = vg.compare(result, variable, **given)
            off = np.abs(found.measured - found.predicted)
            assert np.all(off <= 4 * np.nan_to_num(found.standard_error) + 4 / width), (width, variable)


def test_a_covariance_counts_up_to_a_factor() -> None:
    result = swept("a graph")
    ones, twice = (vg.compare(result, "log_mean_square", covariance=f * NODES["covariance"]) for f in (1, 2))
    np.testing.assert_allclose(ones.predicted, twice.predicted, rtol=1e-12)
    np.testing.assert_array_equal(vg.compare(result).predicted, vg.compare(result, **NODES).predicted)


# --- what is refused ------------------------------------------------------------------------------------------------

RELU = vg.dense(WIDTH, WIDTH, "relu")
NORMED = vg.dense(WIDTH, WIDTH, norm=vg.norm("rms", epsilon=0.0))
SMALL: dict[str, Any] = {"width": 4, "depth": 2}


def unmeasured(net: vg.Network, variables: tuple[str, ...], scales: dict[str, Any], **axes: Any) -> vg.Result:
    """As a sweep would give it, without its numbers."""
    sizes = [len(values) for values in axes.values()]
    arrays = {name: np.zeros((2, *sizes, net.depth + 1)) for name in variables}
    arrays["first_inexact_layer"] = np.full((2, *sizes), net.depth + 1)
    dims = dict.fromkeys(variables, ("layer",)) | {"first_inexact_layer": ()}
    axes = {name: np.asarray(values) for name, values in axes.items()}
    return vg.Result("gains", axes, arrays, dims, networks={"": net}, fixed=scales)


@pytest.mark.parametrize(
    ("net", "scales", "given", "message"),
    [
        (hyper(vg.dense(WIDTH, WIDTH, "tanh")), {}, {}, "compare takes hyper-connections around a homogeneous phi, "
         "as linear and relu, got tanh"),
        (hyper(RELU), {}, {}, "compare takes relu behind a stem that draws h^0 with a Gaussian kernel, got no stem"),
        (hyper(vg.dense(WIDTH, WIDTH, norm=vg.norm("layer", epsilon=0.0))), {}, {}, "compare takes norm 'layer' "
         "behind a stem that draws h^0 with a Gaussian kernel, got no stem"),
        (hyper(RELU, stem=vg.networks.chain(vg.dense(WIDTH, WIDTH, kernel_init="uniform"), split())), {}, {},
         "compare takes relu behind a stem that draws h^0 with a Gaussian kernel, got a stem that ends in Dense"),
        (network(hyper_connections(vg.dense(4, 4), 3), (3, 4)), {}, {},
         "compare takes hyper-connections whose stem ends in Split, got no stem"),
        (averages(stem=split(DEPTH + 1)), {}, {},
         "compare takes averages over depth whose stem ends in Remember, got a stem that ends in Split"),
        (hyper(vg.dense(WIDTH, WIDTH, kernel_init="identity")), {}, {},
         "compare takes hyper-connections around kernels without a mean, got kernel_init 'identity'"),
        (hyper(vg.dense(WIDTH, WIDTH, norm="rms")), {}, {},
         "compare takes branches whose norm has epsilon 0, got 1e-06"),
        (hyper(vg.dense(WIDTH, WIDTH, norm=vg.norm("rms", epsilon=0.0, on="activations"))), {}, {},
         "compare takes branches whose norm is rms or layer, before phi, got rms on activations"),
        (hyper(vg.dense(WIDTH, WIDTH, dropout="gaussian")), {}, {},
         "compare takes hyper-connections around a layer without skip or dropout, got one with them"),
        (hyper(), {"sigma_b": 0.3}, {}, "compare takes sigma_b 0 of hyper-connections, whose theory has no biases, "
         "got 0.3"),
        (hyper(logit=1.0), {"sigma_r": 0.2}, {},
         "compare takes sigma_r 0 of constrained maps, of whose law theory has no moments, got 0.2"),
        (hyper(features=WIDTH), {"sigma_d": 0.5}, {},
         "compare takes sigma_d 0 of dynamic maps, which theory has as they begin, got 0.5"),
        (hyper(NORMED), {"sigma_r": 0.5}, {}, "deviation must be 0 where branches are normalized (the mean of a "
         "ratio is not that of few maps), got 0.5"),
        (hyper(), {"branch": [0.5] * DEPTH}, {}, "compare takes one branch for all layers, got one a layer"),
        (averages(branch=NORMED), {}, {}, "compare takes averages over depth without norm, got norm 'rms'"),
        (averages(3), {}, {}, "compare takes averages over depth with a memory of all 6 states, got 3"),
        (averages(), {}, {"variable": "log_gain"},
         "compare takes log_mean_square of averages over depth, got log_gain"),
        (graph(phi="tanh", stem=vg.dense(WIDTH, WIDTH)), {}, NODES,
         "activation must be one of linear, relu, got 'tanh'"),
        (graph(norm="layer"), {}, NODES,
         "compare takes graph convolutions without norm and dropout, got norm 'layer'"),
        (graph(dropout="gaussian"), {}, NODES,
         "compare takes graph convolutions without norm and dropout, got dropout 'gaussian'"),
        (graph(kernel_init="identity"), {}, NODES,
         "compare takes graph convolutions whose kernels have no mean, got kernel_init 'identity'"),
        (graph(), {}, {"variable": "log_mean_square"},
         "compare needs the covariance of the nodes of h^0 for a graph network, got None"),
        (graph(), {}, {"covariance": np.eye(4)},
         "covariance must have the adjacency's shape (5, 5), got (4, 4)"),
        (graph(), {}, {"covariance": np.zeros((5, 5))},
         "covariance must have a positive mean square of its nodes, got 0"),
        (graph(), {}, {"correlation": 0.5},
         "correlation must be left out of a comparison of a graph network, got 0.5"),
        (min_gru(**SMALL, inputs=3), {}, {}, "compare needs input_variance, the mean square of inputs that "
         "are white, for the law min_gru, which reads them, got None"),
        (min_gru(**SMALL, inputs=3), {}, {"input_variance": -1.0},
         "input_variance must be finite and positive, got -1"),
        (min_gru(**SMALL, inputs=3), {"sigma_b": 0.4}, WHITE,
         "compare takes sigma_b 0 of a recurrence of the law min_gru, got 0.4"),
        (min_gru(**SMALL, inputs=3, input_kernel_init="uniform"), {}, WHITE,
         "compare takes gates of Gaussian kernels, got input_kernel_init 'uniform'"),
        (delta_net(**SMALL, inputs=3), {}, WHITE,
         "compare takes sigma_gate 0 of a recurrence of the law delta_rule, got 1"),
        (delta_net(**SMALL, inputs=3, decay="scalar"), {}, WHITE,
         "compare needs a network that theory knows, got matrix("),
        (vg.lstm(**SMALL, inputs=3), {}, {}, "compare needs a network that theory knows, got lstm("),
        (mamba(**SMALL), {}, {"variable": "log_mean_square", **WHITE},
         "compare takes log_gain or log_gradient of a linear recurrence, got log_mean_square"),
    ],
)  # fmt: skip
def test_what_theory_does_not_have_is_refused(
    net: vg.Network, scales: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole sentence, below
        vg.compare(unmeasured(net, ("log_gain", "log_mean_square"), scales), **given)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (diagonal_rnn(**SMALL, inputs=3, outputs=2), "compare takes log_gradient of recurrences with one output, got "
         "output shape (2,)"),
        (diagonal_rnn(**SMALL, inputs=3, every_step=True), "compare takes log_gradient of recurrences with one output, "
         "got output shape (2, 1)"),
        (dataclasses.replace(diagonal_rnn(**SMALL, inputs=3), head=vg.dense(8, 1, "tanh",
         before=spec(vg.blocks.Flat))), "compare takes log_gradient behind a linear head of a Gaussian kernel, got "
         "Dense(8, 1, "),
    ],
)  # fmt: skip
def test_gradients_that_do_not_begin_in_all_directions_are_refused(net: vg.Network, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole sentence, below
        vg.compare(unmeasured(net, ("log_gradient", "log_mean_square"), {}))
    assert str(error.value).startswith(message)


def test_a_batch_of_examples_and_axes_of_another_family_are_refused() -> None:
    net = hyper()
    result = vg.sweep(net, drawn(3, WIDTH), key=KEY, seeds=2, leading="example")
    with pytest.raises(ValueError, match=r"^compare takes one input a draw, got a batch of 3$"):
        vg.compare(result)
    result = unmeasured(min_gru(**SMALL, inputs=3), ("log_gain", "log_mean_square"), {}, sigma_out=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"^compare takes sweeps over sigma_v, sigma_b, forget_bias, got sigma_out$"):
        vg.compare(result)
