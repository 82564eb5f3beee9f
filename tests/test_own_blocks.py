"""A user's own blocks with what Flax and arrays bring along: dropout, batch norm, an adjacency matrix."""

import copy
import pickle
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vgjax as vg
from vgjax.blocks import spec
from vgjax.networks.serialization import network_from_json, network_to_json

KEY = jax.random.key(2)
WIDTH = 6
NO_GRADIENTS = vg.training.SnapshotConfig((0,), gradients=False)


class Dropped(nnx.Module):
    """A linear map of what Flax's dropout leaves."""

    def __init__(self, rate: float, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, h: jax.Array) -> jax.Array:
        return self.linear(self.dropout(h))


class Normed(nnx.Module):
    """Flax's batch norm before a tanh."""

    def __init__(self, *, running: bool = False, rngs: nnx.Rngs):
        self.linear = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, use_running_average=running, epsilon=0.0, rngs=rngs)

    def __call__(self, h: jax.Array) -> jax.Array:
        return jnp.tanh(self.norm(self.linear(h)))


class ConvNormed(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(2, 2, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)

    def __call__(self, h: jax.Array) -> jax.Array:
        return self.norm(self.conv(h))


class Graph(nnx.Module):
    """A graph convolution: nodes along the first axis."""

    def __init__(self, adjacency: Any, *, weights: tuple[Any, ...] = (), rngs: nnx.Rngs):
        self.adjacency = adjacency
        self.weight = weights[0] if weights else 1.0
        self.linear = nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, h: jax.Array) -> jax.Array:
        return self.weight * (self.adjacency @ jnp.tanh(self.linear(h)))


def layer(parameters: Any, i: int) -> dict[str, np.ndarray]:
    return {name: np.asarray(a[i], np.float64) for name, a in parameters.stages[0]["linear"].items()}


# --- dropout --------------------------------------------------------------------------------------------------------


def data(examples: int = 5) -> vg.data.Examples:
    rng = np.random.default_rng(0)
    return vg.data.Examples(
        rng.normal(size=(examples, WIDTH)).astype(np.float32), rng.normal(size=(examples, WIDTH)).astype(np.float32)
    )


def frozen(rate: float, depth: int, steps: int) -> vg.training.Training:
    """Trained at a learning rate of 0: only the noise moves."""
    parameters = vg.init(KEY, vg.stack(Dropped, rate, depth=depth, input_shape=WIDTH))
    return vg.train(
        parameters, vg.Scales(), data(), "sgd", steps, learning_rate=0.0, batch_size=None, snapshots=NO_GRADIENTS
    )


def test_dropout_of_flax_is_drawn_anew_at_every_step() -> None:
    """E |W D x + b - y|^2 / 2 = |W x + b - y|^2 / 2 + rate / (1 - rate) sum_i x_i^2 |W_i|^2 / 2, by hand."""
    rate, steps = 0.3, 4000
    run = frozen(rate, 1, steps)
    w, (xs, ys) = layer(run.parameters, 0), data()
    quiet = np.sum((xs @ w["kernel"] + w["bias"] - ys) ** 2, axis=1) / 2
    noise = rate / (1 - rate) * np.sum(xs**2 * np.sum(w["kernel"] ** 2, axis=1), axis=1) / 2
    losses = np.asarray(run.loss, np.float64)
    error = losses.std() / np.sqrt(steps)
    assert error > 0
    assert abs(losses.mean() - np.mean(quiet + noise)) < 5 * error
    # And so that 4000 masks of 6 units come with all their 64 patterns.
    assert len(np.unique(losses)) > 50


def test_dropout_of_flax_is_off_in_evaluation() -> None:
    noisy, quiet = frozen(0.5, 3, 2), frozen(0.0, 3, 2)
    np.testing.assert_array_equal(noisy.snapshots.train_loss, quiet.snapshots.train_loss)
    assert np.all(np.asarray(noisy.loss) != np.asarray(quiet.loss))


def test_every_layer_has_a_mask_of_its_own() -> None:
    """With identity kernels the network is the product of all masks: units that survive two layers of one mask would
    be as many as survive one."""
    net = vg.stack(Dropped, 0.5, depth=2, input_shape=WIDTH)
    parameters = vg.init(KEY, net)
    eye = {"kernel": jnp.broadcast_to(jnp.eye(WIDTH), (2, WIDTH, WIDTH)), "bias": jnp.zeros((2, WIDTH))}
    parameters = replace(parameters, stages=({**parameters.stages[0], "linear": eye},))
    ones = vg.data.Examples(np.ones((1, WIDTH), np.float32), np.zeros((1, WIDTH), np.float32))
    run = vg.train(
        parameters, vg.Scales(), ones, "sgd", 400, learning_rate=0.0, batch_size=None, snapshots=NO_GRADIENTS
    )
    survivors = np.asarray(run.loss) * 2 / 16  # each survivor of two layers is 2 * 2
    assert abs(survivors.mean() - WIDTH / 4) < 5 * survivors.std() / 20


def test_a_measurement_keeps_one_mask() -> None:
    parameters = vg.init(KEY, vg.stack(Dropped, 0.5, depth=3, input_shape=WIDTH))
    x = np.ones(WIDTH, np.float32)
    first, second = (vg.gradient_flow(parameters, vg.Scales(), x) for _ in range(2))
    np.testing.assert_array_equal(first.log_gradient, second.log_gradient)
    assert np.sum(np.asarray(vg.forward(parameters, vg.Scales(), x))) != 0


# --- batch norm -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "shape"),
    [(Normed, WIDTH), (Normed, (1, WIDTH)), (ConvNormed, (4, 4, 2)), (ConvNormed, (1, 4, 4, 2))],
)
def test_batch_norm_of_flax_without_a_batch_is_refused(block: Any, shape: Any) -> None:
    with pytest.raises(
        ValueError, match=r"holds nnx.BatchNorm, so its state must be a batch .* vgjax.norm, or use_run"
    ):
        vg.stack(block, depth=3, input_shape=shape)


def test_batch_norm_of_flax_on_a_batch_is_that_of_plain_flax() -> None:
    batch, depth = 4, 3
    parameters = vg.init(KEY, vg.stack(Normed, depth=depth, input_shape=(batch, WIDTH)))
    x, y = np.random.default_rng(0).normal(size=(2, batch, WIDTH)).astype(np.float32)
    ours = vg.gradient_flow(parameters, vg.Scales(), x, y)
    with jax.enable_x64(True):
        weights = [layer(parameters, i) for i in range(depth)]

        def above(h: Any, first: int) -> Any:
            for w in weights[first:]:
                a = h @ w["kernel"] + w["bias"]
                h = jnp.tanh((a - a.mean(axis=0)) / a.std(axis=0))
            return h

        states = [above(x.astype(np.float64), depth)]
        for w in weights:
            a = states[-1] @ w["kernel"] + w["bias"]
            states.append(jnp.tanh((a - a.mean(axis=0)) / a.std(axis=0)))
        grads = [jax.grad(lambda h, i=i: jnp.sum((above(h, i) - y) ** 2) / 2)(h) for i, h in enumerate(states)]
        expected = [np.log(np.linalg.norm(g)) for g in grads]
    np.testing.assert_allclose(ours.log_gradient, expected, rtol=0, atol=2e-5)


def test_batch_norm_of_flax_with_running_statistics_takes_one_example() -> None:
    net = vg.stack(Normed, running=True, depth=2, input_shape=WIDTH)
    assert np.all(np.isfinite(vg.gradient_flow(vg.init(KEY, net), vg.Scales(), np.ones(WIDTH)).log_gradient))


# --- arrays ---------------------------------------------------------------------------------------------------------

RING = np.roll(np.eye(5, dtype=np.float32), 1, axis=0)


def graph(adjacency: Any, **options: Any) -> vg.Network:
    return vg.stack(Graph, adjacency, depth=2, input_shape=(5, 2), **options)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_a_block_takes_an_array(kind: Any) -> None:
    net = graph(kind(2 * RING), weights=(kind(np.float32(3)),))
    parameters, x = vg.init(KEY, net), np.ones((5, 2), np.float32)
    h = x.astype(np.float64)
    for i in range(2):
        w = layer(parameters, i)
        h = 3 * 2 * RING @ np.tanh(h @ w["kernel"] + w["bias"])
    np.testing.assert_allclose(vg.forward(parameters, vg.Scales(), x), h, rtol=1e-5)


def test_arrays_count_by_their_content() -> None:
    again = RING.copy()
    net, same, other = graph(RING), graph(jnp.asarray(again)), graph(RING.T)
    assert net == same
    assert hash(net) == hash(same)
    assert net != other
    again[0] = 7.0  # what was given is held as it was
    assert graph(again) != same
    assert net == pickle.loads(pickle.dumps(net)) == copy.deepcopy(net)
    assert spec(Graph, RING) != spec(Graph, RING.astype(np.float64))


def test_a_network_with_an_array_is_written_for_people_and_not_had_back() -> None:
    described = network_to_json(graph(RING))
    assert "sha256" in str(described)
    assert network_from_json(described) is None


def test_a_folder_tells_arrays_apart(tmp_path: Any) -> None:
    x = np.ones((5, 2), np.float32)
    vg.sweep(graph(RING), x, key=KEY, seeds=1, folder=str(tmp_path))
    with pytest.raises(ValueError, match="folder must hold an earlier run of the same settings"):
        vg.sweep(graph(RING.T), x, key=KEY, seeds=1, folder=str(tmp_path))
    vg.sweep(graph(RING.copy()), x, key=KEY, seeds=1, folder=str(tmp_path))


def test_what_is_neither_hashable_nor_an_array_is_refused() -> None:
    with pytest.raises(ValueError, match=r"arguments .*must be .*hashable"):
        graph([[1.0, 0.0], [0.0, 1.0]])


# --- parts of a chain -------------------------------------------------------------------------------------------------


class Squares(nnx.Module):
    """A map of degree 2 that says nothing of itself."""

    def __init__(self, *, rngs: nnx.Rngs):
        pass

    def __call__(self, h: jax.Array) -> jax.Array:
        return h * jnp.roll(h, 1)


class Logarithms(nnx.Module):
    """A map that grows like no power."""

    def __init__(self, *, rngs: nnx.Rngs):
        pass

    def __call__(self, h: jax.Array) -> jax.Array:
        return h * jnp.log(jnp.sum(h**2))


def test_a_part_of_degree_two_inside_a_chain_is_exact_past_the_range() -> None:
    """It was taken for linear there, and nothing was marked: ln gain 258 in place of 359 after 7 layers."""
    chain = vg.networks.chain(squares=vg.blocks.spec(Squares), linear=vg.dense(8, 8))
    net = vg.stack(chain, depth=7, input_shape=8)
    parameters, scales = vg.init(KEY, net), vg.Scales(sigma_w=30.0)
    x = np.random.default_rng(0).normal(size=8).astype(np.float32)
    ours = vg.push_forward(parameters, scales, x)
    with jax.enable_x64(True):
        wide = jax.tree.map(np.asarray, vg.push_forward(parameters.astype("float64"), scales, x))
    assert wide.log_gain[-1] > 300
    np.testing.assert_allclose(ours.log_gain, wide.log_gain, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ours.log_mean_square, wide.log_mean_square, rtol=1e-6)


def test_a_part_that_grows_like_no_power_is_marked_past_the_range() -> None:
    chain = vg.networks.chain(logs=vg.blocks.spec(Logarithms), linear=vg.dense(8, 8))
    net = vg.stack(chain, depth=40, input_shape=8)
    found = vg.push_forward(vg.init(KEY, net), vg.Scales(sigma_w=30.0), np.ones(8, np.float32))
    first = int(min(found.first_inexact_layer, found.first_nan_layer))
    assert 0 < first <= 40
    assert np.all(np.isnan(found.log_gain[first:]))
    assert np.all(np.isfinite(found.log_gain[:first]))
