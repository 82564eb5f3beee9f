"""Training against an ordinary loop: the network unrolled in plain Flax, the same minibatches, optax or numpy."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import architecture_oracles as architectures
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import scipy.special
from flax import nnx

import vgjax as vg
from vgjax.networks.trainable import trainable
from vgjax.training import config, loop

KEY = jax.random.key(3)
ORDER, _ = jax.random.split(KEY)
EXAMPLES, BATCH, STEPS, EVALUATED = 21, 8, 12, 15
LOOKED_AT = (0, 5, 12)
SIGMA_W, SIGMA_B = 1.25, 0.25
SCALES = vg.Scales(sigma_w=SIGMA_W, sigma_b=SIGMA_B)
RNG = np.random.default_rng(0)


def examples(count: int, shape: tuple[int, ...] = (4,), labels: str = "classes") -> vg.data.Examples:
    """Gaussian inputs with one of three classes, or three numbers."""
    inputs = RNG.normal(size=(count, *shape)).astype(np.float32)
    drawn = RNG.integers(0, 3, count) if labels == "classes" else RNG.normal(size=(count, 3))
    return vg.data.Examples(inputs, drawn.astype(np.int32 if labels == "classes" else np.float32))


CLASSES, HELD_OUT = examples(EXAMPLES), examples(9)
NUMBERS, HELD_OUT_NUMBERS = examples(EXAMPLES, labels="numbers"), examples(9, labels="numbers")
SEQUENCES = examples(EXAMPLES, (4, 3))

TANH, SIZES = vg.mlp(width=5, depth=3, inputs=4, outputs=3), (4, 5, 5, 5, 5, 3)
RELU, RELU_SIZES = vg.mlp(width=[6, 7], inputs=4, outputs=3, activation="relu"), (4, 6, 7, 3)


def minibatches(data: Any, batch: int, steps: int, per_state: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
    """What every step of a training with this key takes, and the one after the last."""
    taken = np.asarray(vg.data.batches(ORDER, len(data.inputs), batch, steps + 1))
    shaped = [
        [a[rows].reshape(-1, per_state, *a.shape[1:]) if per_state > 1 else a[rows] for a in data] for rows in taken
    ]
    return [(x.astype(np.float64), y) for x, y in shaped]


# --- an ordinary loop -----------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What an ordinary loop saw: the loss of every minibatch, and the weights before its update, one list each."""

    loss: np.ndarray
    weights: list[Any]


@functools.partial(nnx.jit, static_argnames="loss")
def value_and_gradient(model: oracles.Unrolled, x: Any, y: Any, loss: str) -> Any:
    def mean_loss(model: oracles.Unrolled) -> Any:
        return jnp.mean(jax.vmap(oracles.LOSSES[loss])(model(x)[0], y))

    return nnx.value_and_grad(mean_loss)(model)


def ordinary_loop(start: oracles.Weights, phi: Any, optimizer: Any, batches: Sequence[Any], loss: str) -> Seen:
    """Flax and optax as any user writes them, in float64."""
    with jax.enable_x64(True):
        model = oracles.Unrolled(start, phi)
        memory, losses, weights = optimizer.init(nnx.state(model, nnx.Param)), [], []

        @jax.jit
        def update(gradient: Any, memory: Any, parameters: Any) -> Any:
            updates, memory = optimizer.update(gradient, memory, parameters)
            return optax.apply_updates(parameters, updates), memory

        for x, y in batches:
            weights.append([(np.asarray(one.kernel[...]), np.asarray(one.bias[...])) for one in model.layers])
            value, gradient = value_and_gradient(model, x, y, loss)
            parameters, memory = update(gradient, memory, nnx.state(model, nnx.Param))
            nnx.update(model, parameters)
            losses.append(float(value))
        weights.append([(np.asarray(one.kernel[...]), np.asarray(one.bias[...])) for one in model.layers])
    return Seen(np.array(losses), weights)


def outputs(weights: oracles.Weights, activation: str, x: np.ndarray) -> np.ndarray:
    """Of a plain network in numpy."""
    (kernel, bias), *rest = weights
    h = np.asarray(x, np.float64) @ kernel + bias
    for kernel, bias in rest:
        h = oracles.PHIS[activation].value(h) @ kernel + bias
    return h


def score(found: np.ndarray, labels: np.ndarray, loss: str) -> tuple[float, float]:
    """Mean loss and accuracy."""
    right = labels if loss == "cross_entropy" else labels.argmax(1)
    if loss == "cross_entropy":
        each = scipy.special.logsumexp(found, axis=1) - found[np.arange(len(found)), labels]
    else:
        each = ((found - labels) ** 2).sum(1) / 2
    return float(each.mean()), float((found.argmax(1) == right).mean())


class Case(NamedTuple):
    """A plain network trained by the library, and what the ordinary loop needs to do the same.

    Attributes:
        network, sizes: what is trained, from draws by numpy; from the key if there are no sizes.
        loss: of the ordinary loop; the library reads it off the labels.
        options: of `vgjax.train`.
        optimizer: of the ordinary loop.
        tolerance: relative, of numbers, and absolute, of logarithms.
        dtype: of the library's training.
    """

    network: vg.Network
    sizes: tuple[int, ...] | None
    loss: str
    options: dict[str, Any]
    optimizer: Any
    tolerance: float = 1e-5
    dtype: str = "float32"


WITHOUT_GRADIENTS = {"snapshots": vg.training.SnapshotConfig(LOOKED_AT, num_eval=EVALUATED, gradients=False)}


def clipped(rate: Any) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(0.3), optax.sgd(rate))


def leaf_by_leaf(*rates: float) -> optax.GradientTransformation:
    """Gradient descent with a learning rate of its own for every array, in the order of bias, kernel, bias, ..."""

    def update(gradient: Any, memory: None, parameters: Any = None) -> Any:
        leaves, tree = jax.tree.flatten(gradient)
        return jax.tree.unflatten(tree, [-rate * g for rate, g in zip(rates, leaves, strict=True)]), memory

    return optax.GradientTransformation(lambda _: None, update)


def linear_to_zero(steps: int) -> optax.Schedule:
    return optax.linear_schedule(1.0, 0.0, steps)


def sgd(**options: Any) -> dict[str, Any]:
    return {"optimizer": "sgd", **WITHOUT_GRADIENTS, **options}


CASES = {
    "momentum, a cosine": Case(
        TANH,
        SIZES,
        "cross_entropy",
        {"optimizer": "momentum", "schedule": "cosine", "learning_rate": 0.1},
        optax.sgd(optax.cosine_decay_schedule(0.1, STEPS), momentum=0.9),
    ),
    "adam, squared error": Case(
        RELU,
        RELU_SIZES,
        "squared_error",
        {"optimizer": "adam", "learning_rate": 0.01, **WITHOUT_GRADIENTS},
        optax.adam(0.01),
    ),
    "a finished optimizer, float64, drawn from the key": Case(
        TANH,
        None,
        "cross_entropy",
        {"optimizer": clipped(0.2), **WITHOUT_GRADIENTS},
        clipped(0.2),
        1e-12,
        "float64",
    ),
    "functions of a learning rate": Case(
        TANH,
        SIZES,
        "cross_entropy",
        {"optimizer": clipped, "schedule": linear_to_zero, "learning_rate": 0.3, **WITHOUT_GRADIENTS},
        clipped(optax.linear_schedule(0.3, 0.0, STEPS)),
    ),
    "rates of stem, blocks and head": Case(
        TANH,
        SIZES,
        "cross_entropy",
        sgd(learning_rate={"stem": 0.1, "blocks": 0.0, "head": 0.3}),
        leaf_by_leaf(0.1, 0.1, *[0.0] * 6, 0.3, 0.3),
    ),
    "rates of kernels and biases": Case(
        TANH,
        SIZES,
        "cross_entropy",
        sgd(learning_rate={"kernel": 0.2, "bias": 0.0}),
        leaf_by_leaf(*[0.0, 0.2] * 5),
    ),
}


class Both(NamedTuple):
    """One training by the library and by the ordinary loop."""

    case: Case
    training: vg.training.Training
    seen: Seen
    batches: list[tuple[np.ndarray, np.ndarray]]


def data_of(case: Case) -> tuple[vg.data.Examples, vg.data.Examples]:
    """To train on, and held out."""
    return (CLASSES, HELD_OUT) if case.loss == "cross_entropy" else (NUMBERS, HELD_OUT_NUMBERS)


def start_of(case: Case) -> vg.networks.Parameters:
    """Draws at unit gain."""
    drawn = oracles.drawn(case.network, case.sizes) if case.sizes else vg.init(KEY, case.network)
    return drawn.astype(case.dtype)


@pytest.fixture(scope="module", params=CASES)
def both(request: pytest.FixtureRequest) -> Both:
    case = CASES[request.param]
    data, held_out = data_of(case)
    options = {"snapshots": vg.training.SnapshotConfig(LOOKED_AT, num_eval=EVALUATED), **case.options}
    about = {"num_steps": STEPS, "batch_size": BATCH, "test": held_out, "key": KEY}
    trained = vg.train(start_of(case), SCALES, data, **about, **options)
    batches = minibatches(data, BATCH, STEPS)
    start = oracles.weights(start_of(case), SIGMA_W, SIGMA_B)
    activation = case.network.activation
    seen = ordinary_loop(start, oracles.ACTIVATIONS[activation], case.optimizer, batches, case.loss)
    return Both(case, jax.tree.map(np.asarray, trained), seen, batches)


def test_the_loss_of_every_step_is_that_of_an_ordinary_loop(both: Both) -> None:
    losses = both.seen.loss[:STEPS]
    assert np.ptp(losses) > 0.1  # something happens
    np.testing.assert_allclose(both.training.loss, losses, rtol=both.case.tolerance)
    assert both.training.first_nonfinite == STEPS
    assert not both.training.diverged


def test_the_last_parameters_are_those_of_an_ordinary_loop(both: Both) -> None:
    found = oracles.weights(both.training.parameters, 1.0, 1.0)
    start, expected = both.seen.weights[0], both.seen.weights[STEPS]
    for own, first, last in zip(found, start, expected, strict=True):
        for a, before, after in zip(own, first, last, strict=True):
            np.testing.assert_allclose(a, after, rtol=both.case.tolerance, atol=both.case.tolerance)
            if np.array_equal(before, after):  # at a learning rate of 0
                np.testing.assert_array_equal(a, before.astype(np.float32))


def test_the_last_parameters_make_an_ordinary_network(both: Both) -> None:
    """With the scales that are left, as any parameters do; whole only where all scales are inside them."""
    assert {name: np.unique(s).tolist() for name, s in both.training.scales.items()} == {
        name: [1] for name in ("sigma_b", "sigma_in", "sigma_out", "sigma_w")
    }
    assert both.training.parameters.network == both.case.network
    assert {leaf.dtype.name for leaf in jax.tree.leaves(both.training.parameters)} == {both.case.dtype}


def test_losses_and_accuracies_are_those_of_the_first_examples(both: Both) -> None:
    seen, loss, activation = both.training.snapshots, both.case.loss, both.case.network.activation
    assert seen.step.tolist() == list(LOOKED_AT)
    for kind, data in zip(("train", "test"), data_of(both.case), strict=True):
        xs, ys = (a[:EVALUATED] for a in data)
        found = [score(outputs(both.seen.weights[t], activation, xs), ys, loss) for t in LOOKED_AT]
        np.testing.assert_allclose(getattr(seen, f"{kind}_loss"), [a for a, _ in found], rtol=both.case.tolerance)
        np.testing.assert_allclose(getattr(seen, f"{kind}_accuracy"), [a for _, a in found], rtol=1e-6)


def test_every_layers_logarithms_are_those_of_jax_grad(both: Both) -> None:
    seen, loss, activation = both.training.snapshots, both.case.loss, both.case.network.activation
    if "snapshots" in both.case.options:
        assert np.isnan(seen.log_gradient).all()
        assert seen.log_gradient.shape == (3, both.case.network.depth + 1)
        assert seen.log_parameter_gradient == seen.log_parameter == seen.log_update == seen.log_update_ratio == {}
        return
    phi, tolerance = oracles.ACTIVATIONS[activation], both.case.tolerance
    for i, t in enumerate(LOOKED_AT):
        before, after = both.seen.weights[t : t + 2]
        update = [tuple(b - a for a, b in zip(*pair, strict=True)) for pair in zip(before, after, strict=True)]
        truth = oracles.gradients(before, phi, *both.batches[t], loss)
        rms = scipy.special.logsumexp(2 * truth.pop("states"), axis=0) / 2 - np.log(BATCH) / 2
        np.testing.assert_allclose(seen.log_gradient[i], rms, rtol=tolerance, atol=tolerance)
        del truth["log_mean_square"]
        sizes, moves = by_path(before), by_path(update)
        assert set(seen.log_parameter) == set(seen.log_update) == set(seen.log_parameter_gradient) == set(truth)
        for path, of_sum in truth.items():
            about = {"rtol": tolerance, "atol": tolerance, "err_msg": f"{path} at step {t}"}
            np.testing.assert_allclose(seen.log_parameter_gradient[path][i], of_sum - np.log(BATCH), **about)
            np.testing.assert_allclose(seen.log_parameter[path][i], sizes[path], **about)
            np.testing.assert_allclose(seen.log_update[path][i], moves[path], **about)
            with np.errstate(invalid="ignore"):
                ratio = moves[path] - sizes[path]
            np.testing.assert_allclose(seen.log_update_ratio[path][i], ratio, **about)
    assert seen.log_tied_gradient == {}


def by_path(weights: oracles.Weights) -> dict[str, Any]:
    """ln of every norm, of the blocks as a series."""
    kernels, biases = ([oracles.log_norm(pair[i]) for pair in weights] for i in (0, 1))
    ends = {"stem": 0, "head": -1}
    named = {f"{end}/{name}": a[i] for end, i in ends.items() for name, a in (("kernel", kernels), ("bias", biases))}
    return named | {"kernel": np.array(kernels[1:-1]), "bias": np.array(biases[1:-1])}


def test_sizes_of_parameters_are_in_the_order_of_layers_across_stages() -> None:
    network = vg.mlp(width=[6, 5, 5, 5, 7], inputs=4, outputs=3)
    assert [stage.depth for stage in network.stages] == [1, 2, 1]
    drawn = oracles.drawn(network, (4, 6, 5, 5, 5, 7, 3))
    found, expected = loop.log_norms(network, trainable(drawn)), by_path(oracles.weights(drawn, 1.0, 1.0))
    assert set(found) == set(expected)
    for path, log in expected.items():
        np.testing.assert_allclose(found[path], log, rtol=1e-6, err_msg=path)


# --- other architectures --------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """An architecture: the network, its layers in plain Flax, what it learns and by which optimizer.

    Attributes:
        network, parts: the same network twice.
        data: examples.
        scales: of the draw, by name; those of parameters, and others.
        left: of them, those that multiply no parameters.
        per_state: examples in a state.
        optimizer: by name, and of the ordinary loop.
    """

    network: vg.Network
    parts: architectures.Parts
    data: vg.data.Examples
    scales: dict[str, float]
    left: dict[str, float]
    per_state: int
    optimizer: tuple[str, optax.GradientTransformation]


NOTHING = np.log(1e-12)
BATCH_NORM = architectures.Around(jnp.tanh, functools.partial(architectures.normed, "batch", epsilon=1e-6))
KINDS = {
    "a batch is the state": Kind(
        vg.mlp(width=[6, 5], inputs=4, outputs=3, norm=vg.norm("batch", batch=4)),
        architectures.plain(BATCH_NORM),
        CLASSES,
        {"sigma_w": SIGMA_W, "sigma_b": SIGMA_B},
        {},
        4,
        ("sgd", optax.sgd(0.1)),
    ),
    "an LSTM": Kind(
        vg.lstm(width=5, depth=4, inputs=3, outputs=3, bias_init="gaussian"),
        architectures.recurrent(architectures.lstm_cell, 5, parts=2),
        SEQUENCES,
        {"sigma_w": SIGMA_W, "sigma_v": 0.75, "sigma_b": SIGMA_B, "forget_bias": 0.5},
        {"forget_bias": 0.5},
        1,
        ("adam", optax.adam(0.1)),
    ),
}


def outputs_of_parts(kind: Kind, leaves: Any, xs: Any) -> Any:
    """Of every state, by layers of plain Flax in a row."""
    (stem, own, head), (stage,) = leaves, kind.network.stages
    layers = [architectures.one_layer(own, stage.tied, i) for i in range(stage.depth)]
    left, none = [kind.left] * stage.depth, [0.0] * (stage.depth + 1)
    return jax.vmap(lambda x: architectures.run(kind.parts, stem, layers, head, left, x, none)[0])(xs)


def loop_of_parts(kind: Kind, drawn: vg.networks.Parameters, batches: Sequence[Any]) -> Seen:
    """`jax.grad` through the layers in plain Flax, and optax, in float64."""
    stem, (own,) = architectures.multiplied(drawn, kind.scales)
    leaves = jax.tree.map(lambda a: np.asarray(a, np.float64), (stem, own, drawn.head))

    def mean_loss(leaves: Any, xs: Any, ys: Any) -> Any:
        found = zip(outputs_of_parts(kind, leaves, xs), ys, strict=True)
        return sum(architectures.loss_of("cross_entropy", output, y) for output, y in found) / np.size(ys)

    @jax.jit
    def step(leaves: Any, memory: Any, xs: Any, ys: Any) -> Any:
        value, gradient = jax.value_and_grad(mean_loss)(leaves, xs, ys)
        updates, memory = kind.optimizer[1].update(gradient, memory, leaves)
        return value, optax.apply_updates(leaves, updates), memory

    with jax.enable_x64(True):
        memory, losses, weights = kind.optimizer[1].init(leaves), [], [leaves]
        for xs, ys in batches:
            value, leaves, memory = step(leaves, memory, xs, ys)
            losses.append(float(value))
            weights.append(jax.tree.map(np.asarray, leaves))
    return Seen(np.array(losses), weights)


class OfKind(NamedTuple):
    """One training of another architecture by the library and by the ordinary loop."""

    kind: Kind
    training: vg.training.Training
    seen: Seen
    batches: list[tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module", params=KINDS)
def of_kind(request: pytest.FixtureRequest) -> OfKind:
    kind = KINDS[request.param]
    drawn = architectures.drawn(kind.network)
    options = {"key": KEY, "learning_rate": 0.1, "batch_size": BATCH, "snapshots": vg.training.SnapshotConfig([5])}
    trained = vg.train(drawn, vg.Scales(**kind.scales), kind.data, kind.optimizer[0], STEPS, **options)
    batches = minibatches(kind.data, BATCH, STEPS, kind.per_state)
    return OfKind(kind, jax.tree.map(np.asarray, trained), loop_of_parts(kind, drawn, batches), batches)


def test_other_architectures_train_as_in_an_ordinary_loop(of_kind: OfKind) -> None:
    found, seen = of_kind.training, of_kind.seen
    np.testing.assert_allclose(found.loss, seen.loss[:STEPS], rtol=1e-5)
    parameters = (found.parameters.stem, *found.parameters.stages, found.parameters.head)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), parameters, seen.weights[STEPS])
    start, end = (architectures_leaves(leaves) for leaves in (seen.weights[0], parameters))
    still = [path for path, a in start.items() if np.linalg.norm(end[path] - a) < 1e-3 * np.linalg.norm(a)]
    cancelled = ["0/bias", "1/bias"]  # a batch norm takes away the biases before it
    assert still == (cancelled if of_kind.kind.per_state > 1 else [])


def architectures_leaves(trees: Any) -> dict[str, np.ndarray]:
    """By path; without the running statistics, which a batch in training has no use for."""
    return {f"{i}/{path}": leaf for i, tree in enumerate(trees) for path, leaf in architectures.trainable(tree)}


def test_gradients_in_other_architectures_are_those_of_jax_grad(of_kind: OfKind) -> None:
    kind, seen = of_kind.kind, of_kind.training.snapshots
    stem, own, head = of_kind.seen.weights[5]
    at, left = vg.networks.Parameters(stem, (own,), head, kind.network), [kind.left] * kind.network.depth
    truth = architectures.gradients(kind.parts, at, left, *of_kind.batches[5], "cross_entropy")
    of_batch = (scipy.special.logsumexp(2 * truth.log_gradient, axis=0) - np.log(BATCH)) / 2
    np.testing.assert_allclose(seen.log_gradient[0], of_batch, rtol=1e-5, atol=2e-5)
    for name in ("log_parameter_gradient", "log_tied_gradient"):
        found, expected = getattr(seen, name), getattr(truth, name)
        assert set(found) == set(expected)
        for path, log in expected.items():
            if np.all(log < NOTHING):  # zero by symmetry reads as rounding noise
                assert np.all(found[path] < NOTHING / 2)
            else:
                np.testing.assert_allclose(found[path][0], log - np.log(BATCH), rtol=1e-5, atol=2e-5, err_msg=path)
    assert bool(seen.log_tied_gradient) == kind.network.stages[0].tied


def test_sizes_of_tied_parameters_and_their_updates_are_one_number(of_kind: OfKind) -> None:
    before, after = of_kind.seen.weights[5:7]
    seen, tied = of_kind.training.snapshots, of_kind.kind.network.stages[0].tied
    for found, trees in (
        (seen.log_parameter, before),
        (seen.log_update, jax.tree.map(np.subtract, after, before)),
    ):
        expected = sizes_by_path(trees, tied)
        assert set(found) == set(expected)
        for path, log in expected.items():
            if np.any(log > NOTHING):
                np.testing.assert_allclose(found[path][0], log, rtol=1e-5, atol=2e-5, err_msg=path)
            assert found[path][0].shape == np.shape(log)


def sizes_by_path(trees: Any, tied: bool) -> dict[str, Any]:
    """ln of every norm of stem, blocks and head."""
    stem, own, head = (architectures.trainable(tree) for tree in trees)
    ends = {f"{end}/{path}": oracles.log_norm(a) for end, tree in (("stem", stem), ("head", head)) for path, a in tree}
    inside = {path: oracles.log_norm(a) if tied else np.array([oracles.log_norm(one) for one in a]) for path, a in own}
    return ends | inside


def test_scores_of_other_architectures_are_over_whole_states(of_kind: OfKind) -> None:
    """A state that is not full is left out."""
    kind, seen = of_kind.kind, of_kind.training.snapshots
    whole = len(kind.data.inputs) // kind.per_state * kind.per_state
    xs, ys = (a[:whole].reshape(-1, kind.per_state, *a.shape[1:]) if kind.per_state > 1 else a for a in kind.data)
    with jax.enable_x64(True):
        found = jax.jit(functools.partial(outputs_of_parts, kind))(of_kind.seen.weights[5], xs.astype(np.float64))
    expected = score(np.asarray(found).reshape(whole, 3), ys.reshape(-1), "cross_entropy")
    assert (seen.train_loss[0], seen.train_accuracy[0]) == pytest.approx(expected, rel=1e-5)
    assert np.isnan([seen.test_loss, seen.test_accuracy]).all()


# --- dropout --------------------------------------------------------------------------------------------------------

NOISY, NOISY_SIZES = vg.mlp(width=[5, 6], inputs=4, outputs=3, dropout="bernoulli"), (4, 5, 6, 3)
STILL = vg.mlp(width=[5, 6], inputs=4, outputs=3)
RATE, DRAWS = 0.3, 310


def standing_still(rate: float) -> vg.training.Training:
    """Many steps of no learning on all examples at once: all that can change is the noise."""
    like = jax.eval_shape(lambda key: vg.init(key, NOISY), KEY)
    own = oracles.drawn(STILL, NOISY_SIZES, seed=3)
    (stage,), noise = own.stages, jnp.zeros(jax.tree.leaves(like.stages[0]["after"])[0].shape)
    after = jax.tree.map(lambda _: noise, like.stages[0]["after"])
    parameters = vg.networks.Parameters(own.stem, ({**stage, "after": after},), own.head, NOISY)
    scales = vg.Scales(sigma_w=SIGMA_W, sigma_b=SIGMA_B, dropout=rate)
    options = {"key": KEY, "batch_size": None, "snapshots": vg.training.SnapshotConfig(gradients=False)}
    return vg.train(parameters, scales, CLASSES, "sgd", DRAWS, learning_rate=0.0, **options)


def test_dropout_is_drawn_anew_at_every_step_and_left_out_of_evaluation() -> None:
    """The loss of every step is that of one of the 32 networks that dropping some of 5 units makes; each unit is
    dropped at the rate, independently of the others and of the steps before, within 4 standard deviations."""
    weights = oracles.weights(oracles.drawn(STILL, NOISY_SIZES, seed=3), SIGMA_W, SIGMA_B)
    (stem, inner, head) = weights
    masks = np.array(list(itertools.product([0, 1], repeat=5)))
    h = np.tanh(CLASSES.inputs.astype(np.float64) @ stem[0] + stem[1])
    dropped = [np.tanh((mask * h / (1 - RATE)) @ inner[0] + inner[1]) @ head[0] + head[1] for mask in masks]
    losses = np.array([score(output, CLASSES.labels, "cross_entropy")[0] for output in dropped])
    assert np.min(np.diff(np.sort(losses))) > 1e-4  # no two alike

    trained = standing_still(RATE)
    distances = np.abs(np.asarray(trained.loss)[:, None] - losses)
    assert distances.min(axis=1).max() < 2e-6
    kept = masks[distances.argmin(axis=1)]
    deviations = (kept - (1 - RATE)) / np.sqrt(RATE * (1 - RATE))  # of mean 0 and variance 1
    assert np.abs(deviations.mean(0)).max() < 4 / np.sqrt(DRAWS)
    correlations = np.triu(deviations.T @ deviations / DRAWS, 1)
    assert np.abs(correlations).max() < 4 / np.sqrt(DRAWS)
    assert np.abs(np.mean(deviations[1:] * deviations[:-1], axis=0)).max() < 4 / np.sqrt(DRAWS)

    whole = score(outputs(weights, "tanh", CLASSES.inputs), CLASSES.labels, "cross_entropy")
    np.testing.assert_allclose(trained.snapshots.train_loss, whole[0], rtol=1e-6)
    np.testing.assert_allclose(trained.snapshots.train_accuracy, whole[1], rtol=1e-6)
    assert np.ptp(trained.snapshots.train_loss) == 0
    quiet = standing_still(0.0)
    np.testing.assert_allclose(quiet.loss, whole[0], rtol=1e-6)


# --- steps ----------------------------------------------------------------------------------------------------------


def looking(*steps: float, **options: Any) -> vg.training.SnapshotConfig:
    """At losses alone."""
    return vg.training.SnapshotConfig(steps, **{"gradients": False, **options})


def short(num_steps: int = STEPS, network: vg.Network = RELU, **options: Any) -> vg.training.Training:
    """The network of the squared error, without gradients."""
    about = {"optimizer": "sgd", "key": KEY, "learning_rate": 0.05, "batch_size": BATCH, "snapshots": looking(3)}
    about |= {"scales": SCALES, "data": NUMBERS, **options}
    return vg.train(oracles.drawn(network, RELU_SIZES), num_steps=num_steps, **about)


def test_fewer_steps_are_the_first_of_more_whatever_is_looked_at() -> None:
    many, few = short(STEPS), short(7, snapshots=looking(5, 1, 3))
    np.testing.assert_allclose(few.loss, many.loss[:7], rtol=1e-6)
    np.testing.assert_allclose(few.snapshots.train_loss[1], many.snapshots.train_loss[0], rtol=1e-6)
    assert (few.snapshots.step.tolist(), many.snapshots.step.tolist()) == ([1, 3, 5, 7], [3, STEPS])


def test_by_default_it_looks_at_the_ends_of_20_intervals() -> None:
    steps = vg.training.SnapshotConfig().steps_of(DRAWS)
    assert len(steps) == 21
    assert (steps[0], steps[-1]) == (0, DRAWS)
    assert set(np.diff(steps)) <= {15, 16}
    assert vg.training.SnapshotConfig().steps_of(4) == (0, 1, 2, 3, 4)
    assert vg.training.SnapshotConfig([7, 0, 7]).steps_of(9) == (0, 7, 9)
    assert vg.training.SnapshotConfig(()).steps_of(9) == (9,)
    assert vg.training.SnapshotConfig(np.array([1.0, 2.0])) == vg.training.SnapshotConfig((1, 2))  # to be compiled for


def test_other_numbers_run_the_same_programs() -> None:
    calls = []

    def counted(h: jax.Array) -> jax.Array:
        calls.append(1)
        return jnp.tanh(h)

    network = vg.mlp(width=[6, 7], inputs=4, outputs=3, activation=counted)
    first = short(network=network)
    traced = len(calls)
    again = short(network=network, key=jax.random.key(8), scales=vg.Scales(sigma_w=0.9, sigma_b=0.1), learning_rate=0.2)
    assert len(calls) == traced > 0
    assert not np.array_equal(first.loss, again.loss)


def test_other_snapshots_do_not_compile_the_update_again() -> None:
    """Their steps, how many examples they are taken over, on what, and whether gradients are looked at."""
    made = []

    def counted(rate: Any) -> optax.GradientTransformation:
        if isinstance(rate, jax.core.Tracer):
            made.append(1)  # whenever a program with the optimizer in it is traced
        return optax.sgd(rate)

    first = short(optimizer=counted)
    traced = len(made)
    others = [looking(), looking(0, 1, 7, 12), looking(3, num_eval=5)]
    for again in (
        *(short(optimizer=counted, snapshots=each) for each in others),
        short(optimizer=counted, test=NUMBERS),
    ):
        assert len(made) == traced > 0
        np.testing.assert_array_equal(again.loss, first.loss)
    short(optimizer=counted, snapshots=vg.training.SnapshotConfig((3,)))
    assert len(made) == traced + 1  # the size of an update, which it says too


def test_without_a_key_it_is_that_of_zero() -> None:
    np.testing.assert_array_equal(short(key=None).loss, short(key=jax.random.key(0)).loss)
    assert not np.array_equal(short(key=None).loss, short().loss)


@pytest.mark.parametrize(("size", "first"), [(1, 1), (1000, 0)])
def test_the_first_step_that_is_not_finite_is_that_of_a_loss_or_of_an_update(size: float, first: int) -> None:
    """At a learning rate a tenth of the largest float: small gradients leave the range by the next loss, large ones at
    once."""
    lost = short(data=vg.data.Examples(NUMBERS.inputs, size * NUMBERS.labels), learning_rate=3e37, snapshots=looking(1))
    assert lost.diverged
    assert lost.first_nonfinite == first
    assert np.isfinite(lost.loss[0])
    assert not np.isfinite(lost.loss[1:]).any()
    assert not np.isfinite(lost.snapshots.train_loss).any()


# --- optimizers and schedules ---------------------------------------------------------------------------------------

NAMED = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "nesterov": lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
    "adagrad": optax.adagrad,
    "rmsprop": optax.rmsprop,
    "adam": optax.adam,
    "adamw": optax.adamw,
}


def updates_of(optimizer: Any, leaves: Any) -> list[Any]:
    """Two updates of some numbers by gradients that depend on them."""
    memory, updates = optimizer.init(leaves), []
    for _ in range(2):
        gradient = jax.tree.map(jnp.sin, leaves)
        update, memory = optimizer.update(gradient, memory, leaves)
        leaves = optax.apply_updates(leaves, update)
        updates.append(update)
    return updates


def test_every_optimizer_is_the_one_of_optax_at_a_traced_learning_rate() -> None:
    assert set(config.OPTIMIZERS) == set(NAMED)
    leaves = {"stem/kernel": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)}

    @jax.jit
    def both(rate: Any) -> Any:
        named = {name: config.TrainConfig(name, "constant", 2, 1, "squared_error", 1) for name in NAMED}
        found = {name: each.optimizer_at({"": rate}, leaves) for name, each in named.items()}
        return [
            {name: updates_of(optimizer, leaves) for name, optimizer in some.items()}
            for some in (found, {name: make(0.05) for name, make in NAMED.items()})
        ]

    found, expected = both(0.05)
    for name in NAMED:
        for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(expected[name]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=name)
    steps = np.array([found[name][1]["stem/kernel"] for name in NAMED])
    assert len(np.unique(np.round(steps[:, 0, 0], 7))) == len(NAMED)  # no two alike


def cosine(share: np.ndarray) -> np.ndarray:
    return (1 + np.cos(np.pi * share)) / 2


SHAPES = {
    "constant": lambda t, steps: np.ones(steps + 1),
    "step": lambda t, steps: np.where(t < steps / 2, 1.0, np.where(t < 3 * steps / 4, 0.1, 0.01)),
    "exponential": lambda t, steps: 0.01 ** (t / steps),
    "cosine": lambda t, steps: cosine(t / steps),
    "warmup": lambda t, steps: risen_and_fallen(t, steps, -(-steps // 10)),
}


def risen_and_fallen(t: np.ndarray, steps: int, risen: int) -> np.ndarray:
    return np.where(t < risen, t / risen, cosine((t - risen) / max(1, steps - risen)))


def test_schedules_have_the_shapes_they_are_named_for() -> None:
    assert set(config.SCHEDULES) == set(SHAPES)
    t = np.arange(37)
    for name, factors in SHAPES.items():
        found = [float(config.SCHEDULES[name](36)(i)) for i in t]
        np.testing.assert_allclose(found, factors(t, 36), rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("name", SHAPES)
def test_schedules_of_a_single_step_begin_where_longer_ones_begin(name: str) -> None:
    assert float(config.SCHEDULES[name](1)(0)) == SHAPES[name](np.arange(21), 20)[0]


# --- bad input ------------------------------------------------------------------------------------------------------


def with_nan(a: np.ndarray) -> np.ndarray:
    return np.where(np.arange(a.size).reshape(a.shape) == 5, np.nan, a)


def data(inputs: Any = CLASSES.inputs, labels: Any = CLASSES.labels) -> dict[str, Any]:
    return {"data": vg.data.Examples(inputs, labels)}


def rates(**groups: Any) -> dict[str, Any]:
    return {"learning_rate": groups}


BAD = [
    ({"learning_rate": -0.1}, "learning_rate must be finite and not negative, got -0.1"),
    ({"learning_rate": np.nan}, "learning_rate must be finite and not negative, got nan"),
    ({"learning_rate": np.inf}, "learning_rate must be finite and not negative, got inf"),
    (rates(kernel=0.1, bias=-1.0), "learning_rate of bias must be finite and not negative, got -1"),
    ({"learning_rate": [0.1, 0.2]}, "learning_rate must be a number.*got "),
    (rates(kernel=[0.1, 0.2], bias=0.1), "learning_rate of kernel must be a number.*got "),
    ({"learning_rate": 0.1, "optimizer": optax.adam(0.1)}, "learning_rate must be left out where the optimizer has"),
    (
        {"schedule": "cosine", "optimizer": optax.adam(0.1)},
        "schedule must be left out where the optimizer has .*cosine",
    ),
    (rates(stem=0.1, head=0.1), "learning_rate must name one group for every parameter, got none for blocks/0/"),
    (rates(kernel=0.1, bias=0.1, gate=0.1), "learning_rate must .*gate"),
    (
        rates(kernel=0.1, bias=0.1, stem=0.1),
        "learning_rate must name one group .*, got (kernel|bias) and stem for stem",
    ),
    ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
    ({"num_steps": 2.5}, "num_steps must be a whole number, got 2.5"),
    ({"batch_size": 22}, "batch_size must be at most the 21 examples of the data, got 22"),
    ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ({"optimizer": "adm"}, "optimizer must be one of sgd, .*, got 'adm'; did you mean 'adam'"),
    ({"schedule": "cosin"}, "schedule must be one of constant, .*, got 'cosin'; did you mean 'cosine'"),
    ({"loss": "hinge"}, "loss must be one of cross_entropy, .*, or a function .*, got 'hinge'"),
    (
        {"snapshots": vg.training.SnapshotConfig([0, 13])},
        "snapshots must be at whole steps from 0 to num_steps = 12, got 13",
    ),
    (
        {"snapshots": vg.training.SnapshotConfig([-1])},
        "snapshots must be at whole steps from 0 to num_steps = 12, got -1",
    ),
    (
        {"snapshots": vg.training.SnapshotConfig([1.5])},
        "snapshots must be at whole steps from 0 to num_steps = 12, got 1.5",
    ),
    (
        {"snapshots": vg.training.SnapshotConfig([np.nan])},
        "snapshots must be at whole steps from 0 to num_steps = 12, got nan",
    ),
    ({"scales": vg.Scales(sigma_v=1.0)}, "scale must be one of sigma_w, sigma_b, sigma_in, sigma_out, got 'sigma_v'"),
    (data(labels=CLASSES.labels + 1), r"labels must lie in 0 \.\. 2, got 3"),
    (data(labels=CLASSES.labels - 1), r"labels must lie in 0 \.\. 2, got -1"),
    (data(labels=CLASSES.labels[:20]), "data must hold one label an input, got 20 labels for 21 inputs"),
    (data(labels=np.zeros((21, 4), np.float32)), r"y must have the output's shape \(3,\) an example .*\(21, 4\)"),
    (data(labels=np.zeros((21, 3), np.int32)), "loss must be named .* whole numbers of the output's shape"),
    (data(labels=with_nan(NUMBERS.labels)), "y must be finite, got a NaN or an infinity"),
    (data(CLASSES.inputs[:, :3]), r"data must hold inputs of shape \(examples, 4\), got \(21, 3\)"),
    (data(CLASSES.inputs[0]), "data must hold (inputs of shape|one label an input)"),
    (data(CLASSES.inputs[:0], CLASSES.labels[:0]), r"data must hold inputs of shape \(examples, 4\), got \(0, 4\)"),
    (data(with_nan(CLASSES.inputs)), "data must hold finite inputs, got a NaN or an infinity"),
    ({"test": vg.data.Examples(HELD_OUT.inputs[:, :3], HELD_OUT.labels)}, "test must hold inputs of shape"),
    ({"test": HELD_OUT_NUMBERS}, "test must have labels of the kind of the data's, for cross_entropy, got float32"),
    ({"parameters": vg.init(KEY, TANH, stream=True)}, "parameters must be stored to be trained"),
    ({"parameters": TANH}, r"parameters must be Parameters \(of vgjax.init\), got Network"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_trainings_are_refused_in_one_sentence(options: dict[str, Any], message: str) -> None:
    given = {"scales": SCALES, "num_steps": STEPS, "batch_size": BATCH, **data(), **options}
    given.setdefault("parameters", oracles.drawn(TANH, SIZES))
    with pytest.raises(ValueError, match=message):
        vg.train(**given)


@pytest.mark.parametrize("count", [0, 1.5])
def test_snapshots_are_of_a_whole_number_of_examples(count: Any) -> None:
    with pytest.raises(ValueError, match=f"num_eval must be .*got {count}"):
        vg.training.SnapshotConfig(num_eval=count)


def test_batches_that_are_states_have_sizes_of_their_own() -> None:
    network, scales = KINDS["a batch is the state"].network, vg.Scales(sigma_b=SIGMA_B)
    drawn = architectures.drawn(network)
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 4 examples in a state, got 6"):
        vg.train(drawn, scales, CLASSES, batch_size=6)
    few = vg.data.Examples(CLASSES.inputs[:3], CLASSES.labels[:3])
    with pytest.raises(ValueError, match="data must hold at least the 4 examples of a state, got 3"):
        vg.train(drawn, scales, few, batch_size=None)
