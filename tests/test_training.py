"""Training against an ordinary loop: the network unrolled in plain Flax, the same minibatches, optax or numpy."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
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
from vgjax import training

KEY = jax.random.key(3)
WEIGHTS, ORDER, _ = jax.random.split(KEY, 3)
EXAMPLES, BATCH, STEPS, EVALUATED = 21, 8, 12, 15
RECORD = (0, 5, 12)
SIGMA_W, SIGMA_B = 1.25, 0.25
SCALES = vg.Scales(sigma_w=SIGMA_W, sigma_b=SIGMA_B)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module", autouse=True)
def quickly_compiled() -> Iterator[None]:
    """What counts is how long programs compile: they run for milliseconds."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def examples(count: int, shape: tuple[int, ...] = (4,), labels: str = "classes") -> vg.data.Examples:
    """Gaussian inputs with one of three classes, or three numbers."""
    inputs = RNG.normal(size=(count, *shape)).astype(np.float32)
    drawn = RNG.integers(0, 3, count) if labels == "classes" else RNG.normal(size=(count, 3))
    return vg.data.Examples(inputs, drawn.astype(np.int32 if labels == "classes" else np.float32))


CLASSES, HELD_OUT = examples(EXAMPLES), examples(9)
NUMBERS, HELD_OUT_NUMBERS = examples(EXAMPLES, labels="numbers"), examples(9, labels="numbers")
SEQUENCES = examples(EXAMPLES, (4, 3))

TANH, SIZES = vg.mlp(widths=[6, 5, 5, 5], inputs=4, outputs=3), (4, 6, 5, 5, 5, 3)
RELU, RELU_SIZES = vg.mlp(widths=[6, 7], inputs=4, outputs=3, activation="relu"), (4, 6, 7, 3)


def minibatches(data: Any, batch: int, steps: int, lot: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
    """What every step of a training with this key takes, and the one after the last."""
    taken = np.asarray(vg.data.batches(ORDER, len(data.inputs), batch, steps + 1))
    shaped = [[a[rows].reshape(-1, lot, *a.shape[1:]) if lot > 1 else a[rows] for a in data] for rows in taken]
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
    """

    network: vg.Network
    sizes: tuple[int, ...] | None
    loss: str
    options: dict[str, Any]
    optimizer: Any
    tolerance: float = 1e-5


def clipped(rate: Any) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(0.3), optax.sgd(rate))


def leaf_by_leaf(*rates: float) -> optax.GradientTransformation:
    """Gradient descent with a learning rate of its own for every array, in the order of bias, kernel, bias, ..."""

    def update(gradient: Any, memory: None, parameters: Any = None) -> Any:
        leaves, tree = jax.tree.flatten(gradient)
        return jax.tree.unflatten(tree, [-rate * g for rate, g in zip(rates, leaves, strict=True)]), memory

    return optax.GradientTransformation(lambda _: None, update)


def linear_to_zero(rate: Any, steps: int) -> optax.Schedule:
    return optax.linear_schedule(rate, 0.0, steps)


def sgd(**options: Any) -> dict[str, Any]:
    return {"optimizer": "sgd", "gradients": False, **options}


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
        {"optimizer": "adam", "learning_rate": 0.01},
        optax.adam(0.01),
    ),
    "a finished optimizer, float64, drawn from the key": Case(
        TANH,
        None,
        "cross_entropy",
        {"optimizer": clipped(0.2), "gradients": False, "dtype": "float64"},
        clipped(0.2),
        1e-12,
    ),
    "functions of a learning rate": Case(
        TANH,
        SIZES,
        "cross_entropy",
        {"optimizer": clipped, "schedule": linear_to_zero, "learning_rate": 0.3, "gradients": False},
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
    training: vg.Training
    seen: Seen
    batches: list[tuple[np.ndarray, np.ndarray]]


def data_of(case: Case) -> tuple[vg.data.Examples, vg.data.Examples]:
    """To train on, and held out."""
    return (CLASSES, HELD_OUT) if case.loss == "cross_entropy" else (NUMBERS, HELD_OUT_NUMBERS)


def start_of(case: Case) -> vg.Parameters:
    """Draws at unit gain."""
    return oracles.drawn(case.network, case.sizes) if case.sizes else vg.init(WEIGHTS, case.network)


@pytest.fixture(scope="module", params=CASES)
def both(request: pytest.FixtureRequest) -> Both:
    case = CASES[request.param]
    data, held_out = data_of(case)
    trained = vg.train(
        KEY,
        case.network,
        SCALES,
        data,
        num_steps=STEPS,
        batch_size=BATCH,
        test=held_out,
        record=RECORD,
        evaluate=EVALUATED,
        parameters=start_of(case) if case.sizes else None,
        **case.options,
    )
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
                assert "learning_rate" in both.case.options
                np.testing.assert_array_equal(a, before.astype(a.dtype))


def test_the_last_parameters_make_an_ordinary_network(both: Both) -> None:
    """With the scales that are left, as any parameters do; whole only where all scales are inside them."""
    assert {name: np.unique(s).tolist() for name, s in both.training.scales.items()} == {"sigma_b": [1], "sigma_w": [1]}
    assert both.training.parameters.network == both.case.network
    dtype = both.case.options.get("dtype", "float32")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(both.training.parameters)} == {dtype}


def test_losses_and_accuracies_are_those_of_the_first_examples(both: Both) -> None:
    looks, loss, activation = both.training.looks, both.case.loss, both.case.network.activation
    assert both.training.steps.tolist() == list(RECORD)
    for kind, data in zip(("train", "test"), data_of(both.case), strict=True):
        xs, ys = (a[:EVALUATED] for a in data)
        found = [score(outputs(both.seen.weights[t], activation, xs), ys, loss) for t in RECORD]
        np.testing.assert_allclose(getattr(looks, f"{kind}_loss"), [a for a, _ in found], rtol=both.case.tolerance)
        np.testing.assert_allclose(getattr(looks, f"{kind}_accuracy"), [a for _, a in found], rtol=1e-6)


def test_every_layers_logarithms_are_those_of_jax_grad(both: Both) -> None:
    looks, loss, activation = both.training.looks, both.case.loss, both.case.network.activation
    if not both.case.options.get("gradients", True):
        assert np.isnan(looks.log_gradient).all()
        assert looks.log_gradient.shape == (3, both.case.network.depth + 1)
        assert looks.log_parameter_gradient == looks.log_parameter == looks.log_update == looks.log_update_ratio == {}
        return
    phi, tolerance = oracles.ACTIVATIONS[activation], both.case.tolerance
    for i, t in enumerate(RECORD):
        before, after = both.seen.weights[t : t + 2]
        update = [tuple(b - a for a, b in zip(*pair, strict=True)) for pair in zip(before, after, strict=True)]
        truth = oracles.gradients(before, phi, *both.batches[t], loss)
        rms = scipy.special.logsumexp(2 * truth.pop("states"), axis=0) / 2 - np.log(BATCH) / 2
        np.testing.assert_allclose(looks.log_gradient[i], rms, rtol=tolerance, atol=tolerance)
        del truth["log_mean_square"]
        sizes, moves = by_path(before), by_path(update)
        assert set(looks.log_parameter) == set(looks.log_update) == set(looks.log_parameter_gradient) == set(truth)
        for path, of_sum in truth.items():
            about = {"rtol": tolerance, "atol": tolerance, "err_msg": f"{path} at step {t}"}
            np.testing.assert_allclose(looks.log_parameter_gradient[path][i], of_sum - np.log(BATCH), **about)
            np.testing.assert_allclose(looks.log_parameter[path][i], sizes[path], **about)
            np.testing.assert_allclose(looks.log_update[path][i], moves[path], **about)
            with np.errstate(invalid="ignore"):
                ratio = moves[path] - sizes[path]
            np.testing.assert_allclose(looks.log_update_ratio[path][i], ratio, **about)
    assert looks.log_tied_gradient == {}


def by_path(weights: oracles.Weights) -> dict[str, Any]:
    """ln of every norm, of the blocks as a series."""
    kernels, biases = ([oracles.log_norm(pair[i]) for pair in weights] for i in (0, 1))
    ends = {"stem": 0, "head": -1}
    named = {f"{end}/{name}": a[i] for end, i in ends.items() for name, a in (("kernel", kernels), ("bias", biases))}
    return named | {"kernel": np.array(kernels[1:-1]), "bias": np.array(biases[1:-1])}
