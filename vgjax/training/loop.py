"""Training: what vanishing and exploding gradients cost, and what optimizers change, step by step.

A training is a compiled program of pure functions on a network's ordinary parameters (`vgjax.absorb_scales`):
minibatches from a key, any optax optimizer, and at chosen steps a snapshot of every layer. That it diverges is a
result, not an error. What is updated and what is looked at are programs apart, so that neither is compiled for the
other.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from vgjax.checks import ArrayLike, RandomKey, kinds, nan_is_data, short
from vgjax.data import Examples, batches
from vgjax.ensembles import runner
from vgjax.floatexp import from_float, normalize
from vgjax.initializers import Scales
from vgjax.measure import gradients as _gradients
from vgjax.measure import losses
from vgjax.measure.losses import Loss
from vgjax.networks.layers import by_path
from vgjax.networks.network import Network
from vgjax.networks.parameters import Parameters, as_dtype, in_present_mode
from vgjax.networks.trainable import absorbed, redrawn, trainable, with_trainable, without_noise
from vgjax.training.config import Optimizer, Schedule, SnapshotConfig, TrainConfig, checked_config, checked_rates
from vgjax.training.problem import Data, as_examples, check_start, in_states, mean_loss, scores
from vgjax.values import by_content, on_device

DTYPES = ("float32", "float64")


@by_content
class Snapshots(NamedTuple):
    """What a training looked like at ``r`` of its steps: the state before that update. Logarithms are natural.

    Attributes:
        step: which: 0 is before the first update, ``num_steps`` after the last, shape ``(r,)``.
        train_loss, test_loss: mean over (at most ``num_eval``) examples, shape ``(r,)``; NaN without test examples.
        train_accuracy, test_accuracy: share of them whose largest output is the label's; for binary cross-entropy, of
            outputs on the label's side; NaN where there is no right answer (squared error of a single output).
        log_gradient: ln of the root mean square over the minibatch of ||dL_i/ds_l||, L_i the loss of one example (of a
            mean, the mean of its terms), shape ``(r, depth + 1)``; exact where floats would read 0 or inf. NaN where
            gradients were not asked for.
        log_mean_square: ln of the mean square of the state s_l over the minibatch, shape ``(r, depth + 1)``; as exact,
            and NaN where gradients were not asked for.
        log_parameter_gradient: by Flax path, ln of the norm of the gradient of the minibatch's mean loss, shape ``(r,
            depth)`` for the blocks, ``(r,)`` for ``"stem/..."`` and ``"head/..."``; of tied parameters what each step
            contributes.
        log_tied_gradient: the same of the whole of tied parameters, shape ``(r,)``.
        log_parameter: ln of the norm of the parameters, shapes as above (one number if tied).
        log_update: ln of the norm of the update that the optimizer makes of that minibatch, in its own floats: -inf is
            an update of 0, whether truly or by underflow.
    """

    step: Array
    train_loss: Array
    train_accuracy: Array
    test_loss: Array
    test_accuracy: Array
    log_gradient: Array
    log_mean_square: Array
    log_parameter_gradient: dict[str, Array] = {}  # noqa: RUF012
    log_tied_gradient: dict[str, Array] = {}  # noqa: RUF012
    log_parameter: dict[str, Array] = {}  # noqa: RUF012
    log_update: dict[str, Array] = {}  # noqa: RUF012

    @property
    def log_update_ratio(self) -> dict[str, Array]:
        """ln of the update's norm over that of the parameters, by path; NaN where both are 0."""
        return {path: update - self.log_parameter[path] for path, update in self.log_update.items()}


@by_content
class Training(NamedTuple):
    """What became of one network.

    Attributes:
        snapshots: what it looked like on the way.
        loss: mean loss of every step's minibatch before its update, shape ``(num_steps,)``.
        first_nonfinite: the first step whose loss, or whose updated parameters, are not all finite; ``num_steps`` if
            none.
        parameters, scales: at the end: the ordinary parameters, and the scales that go with them in `forward`.
    """

    snapshots: Snapshots
    loss: Array
    first_nonfinite: Array
    parameters: Parameters
    scales: Scales

    @property
    def diverged(self) -> bool:
        """Whether anything was not finite at some step."""
        return bool(self.first_nonfinite < len(self.loss))


@kinds
@nan_is_data
def train(
    parameters: Parameters,
    scales: Scales,
    data: Data,
    optimizer: Optimizer = "sgd",
    num_steps: int = 1000,
    *,
    key: RandomKey | None = None,
    learning_rate: ArrayLike | Mapping[str, ArrayLike] | None = None,
    schedule: Schedule = "constant",
    batch_size: int | None = 64,
    test: Data | None = None,
    snapshots: SnapshotConfig | None = None,
    loss: Loss | None = None,
) -> Training:
    """Train one network and look at every layer on the way.

    What moves are the ordinary Flax parameters (W = sigma_w Z, b = sigma_b z), as a user's optimizer would see them. A
    second call with other numbers (parameters, key, scales, learning rate, data of the same shape) compiles nothing,
    nor does one with other snapshots compile the update again. On a terminal a bar goes from snapshot to snapshot.

    Args:
        parameters: draws at unit gain (`init`), stored, of any network; ``parameters.astype("float64")`` are those of
            the same network in float64, and so is its training. With a batch in its state (batch norm) a minibatch is
            one state, and ``batch_size`` is its.
        scales: those of the draw, as for `forward`; dropout, Flax's own too, is off where loss and accuracy are taken.
        data: training examples: ``inputs`` of shape ``(examples, *input)`` and ``labels``, with a leading axis of
            examples.
        optimizer: a name in `OPTIMIZERS`, a function from a learning rate to an optax optimizer (``optax.lion``,
            ``lambda rate: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rate))``), or an optax optimizer as it
            is. Parameters of a stage are stacked by layer: an optimizer that looks at whole arrays (LARS, Adafactor)
            sees them as one.
        num_steps: updates.
        key: draws the order of the examples and the noise of dropout, one mask a minibatch (default
            ``jax.random.key(0)``).
        learning_rate: a number (default .01); or one for each group of parameters, by a part of their path: ``{"stem":
            .1, "blocks": .01, "head": .01}`` or ``{"kernel": .1, "bias": .01}``.
        schedule: a name in `SCHEDULES`, or a function from the number of steps to an optax schedule of what the
            learning rate is multiplied with (``lambda steps: optax.linear_schedule(1.0, 0.0, steps)``); a finished
            optimizer has its own.
        batch_size: examples a minibatch, drawn without repetition within an epoch; None takes all of them, in order.
        test: examples for test loss and accuracy.
        snapshots: when to look, and at what; default: `SnapshotConfig` as it is.
        loss: as for `gradient_flow`, which see also for what labels mean by themselves. Its mean over the examples is
            what is minimized: of a sum of terms, the mean of these sums; of a ``mean_`` loss, the mean of all terms.

    Returns:
        `Training`.

    Raises:
        ValueError: an unknown name, a learning rate that is negative or not finite, no steps, a batch larger than the
            data, examples that do not fit the network, labels that do not fit its output, streamed parameters.
    """
    check_start(parameters, scales)
    rates = checked_rates(parameters.network, optimizer, learning_rate)
    for group, rate in rates.items():
        if np.ndim(rate):
            of = f" of {group}" if group else ""
            raise ValueError(
                f"learning_rate{of} must be a number (a sweep of `trainings` takes several), got {short(rate)}"
            )
    snapshots = SnapshotConfig() if snapshots is None else snapshots
    with jax.enable_x64(parameters.dtype == np.float64):
        examples, held_out = as_examples("data", data), None if test is None else as_examples("test", test)
        about: dict[str, Any] = {"optimizer": optimizer, "schedule": schedule, "num_steps": num_steps}
        config = checked_config(parameters.network, examples, held_out, **about, batch_size=batch_size, loss=loss)
        steps = snapshots.steps_of(config.num_steps)
        key = jax.random.key(0) if key is None else key
        parameters, scales, rates = in_present_mode((parameters, *jax.tree.map(on_device, (scales, rates))))
        problem = begin(config, key, parameters, scales, rates, examples)
        state, seen = first_state(problem), []
        for step in runner.progress(steps, len(steps), "train"):
            state = until(problem, state, step)
            seen.append(jax.tree.map(np.asarray, _snapshot(problem, state, held_out, snapshots)))
        return _finished(problem, state, jax.tree.map(lambda *each: on_device(np.stack(each)), *seen))


# --- the update -----------------------------------------------------------------------------------------------------


class TrainState(NamedTuple):
    """What the loop carries.

    Attributes:
        step: the next one.
        leaves: what moves (`trainable`).
        memory: what the optimizer remembers.
        loss, first_nonfinite: as in `Training`, so far.
    """

    step: Array
    leaves: dict[str, Array]
    memory: optax.OptState
    loss: Array
    first_nonfinite: Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["parameters", "scales", "rates", "data", "rows", "noise"],
    meta_fields=["config"],
)
@dataclass(frozen=True)
class Problem:
    """What stays as it is while a network is trained.

    Attributes:
        config: what its update is compiled for.
        parameters, scales: the ordinary parameters it starts from, and the scales left.
        rates: learning rates by group of parameters.
        data: examples to train on.
        rows: which of them every step takes, shape ``(num_steps + 1, batch_size)``.
        noise: the key of what is drawn anew at every step.
    """

    config: TrainConfig
    parameters: Parameters
    scales: Scales
    rates: dict[str, Array]
    data: Examples
    rows: Array
    noise: Array

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """At its learning rates."""
        return self.config.optimizer_at(self.rates, trainable(self.parameters))

    def minibatch(self, step: Array) -> Examples:
        """The examples of a step, as inputs of the network."""
        whole = self.config.batch_size == len(self.data.inputs)
        taken = self.data if whole else jax.tree.map(lambda a: a[self.rows[step]], self.data)
        return in_states(self.config.per_state, taken)

    def network_at(self, step: Array, leaves: dict[str, Array]) -> Parameters:
        """The network of a step, with its noise."""
        return redrawn(with_trainable(self.parameters, leaves), jax.random.fold_in(self.noise, step))

    def gradient(self, state: TrainState) -> tuple[Array, dict[str, Array]]:
        """Loss and gradient of a step's minibatch."""
        config, batch = self.config, self.minibatch(state.step)

        def loss(leaves: dict[str, Array]) -> Array:
            return mean_loss(config.loss, config.per_state, self.network_at(state.step, leaves), self.scales, batch)

        return jax.value_and_grad(loss)(state.leaves)


@functools.partial(jax.jit, static_argnames="config")
def begin(
    config: TrainConfig,
    key: Array,
    parameters: Parameters,
    scales: Scales,
    rates: dict[str, Array],
    data: Examples,
) -> Problem:
    """The problem of a training: ordinary parameters, the order of the examples, the key of the noise."""
    order, noise = jax.random.split(key)
    # One more than there are updates: the last snapshot looks at a minibatch, too.
    rows = batches(order, len(data.inputs), config.batch_size, config.num_steps + 1)
    rates = as_dtype(parameters.dtype, rates)  # a rate of another dtype would promote what it moves
    return Problem(config, *absorbed(parameters, scales), rates, data, rows, noise)


@jax.jit
def first_state(problem: Problem) -> TrainState:
    """Before the first update."""
    leaves, steps = trainable(problem.parameters), problem.config.num_steps
    loss = jnp.full(steps, jnp.nan, problem.parameters.dtype)
    count = functools.partial(jnp.asarray, dtype=jnp.int32)
    return TrainState(count(0), leaves, problem.optimizer.init(leaves), loss, count(steps))


@jax.jit
def until(problem: Problem, state: TrainState, step: Array | int) -> TrainState:
    """All updates up to a step."""
    return lax.fori_loop(state.step, jnp.asarray(step, jnp.int32), lambda _, state: _update(problem, state), state)


def _update(problem: Problem, state: TrainState) -> TrainState:
    loss, gradient = problem.gradient(state)
    updates, memory = problem.optimizer.update(gradient, state.memory, state.leaves)
    leaves: Any = optax.apply_updates(state.leaves, updates)
    finite = jnp.isfinite(loss) & jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves.values()]))
    first = jnp.minimum(state.first_nonfinite, jnp.where(finite, problem.config.num_steps, state.step))
    return TrainState(state.step + 1, leaves, memory, state.loss.at[state.step].set(loss), first)


def _finished(problem: Problem, state: TrainState, snapshots: Snapshots) -> Training:
    end = with_trainable(problem.parameters, state.leaves)
    return Training(snapshots, state.loss, state.first_nonfinite, end, problem.scales)


def trained(
    config: TrainConfig,
    key: Array,
    parameters: Parameters,
    scales: Scales,
    rates: dict[str, Array],
    data: Examples,
    test: Examples | None,
    snapshots: SnapshotConfig,
) -> Training:
    """`train` as one traceable function of all that is no static description; unbatched, for `vmap` and `lax.map`."""
    problem = begin(config, key, parameters, scales, rates, data)

    def visit(state: TrainState, step: Array) -> tuple[TrainState, Snapshots]:
        state = until(problem, state, step)
        return state, _snapshot(problem, state, test, snapshots)

    steps = jnp.asarray(snapshots.steps_of(config.num_steps), jnp.int32)
    state, seen = lax.scan(visit, first_state(problem), steps)
    return _finished(problem, state, seen)


# --- the snapshots --------------------------------------------------------------------------------------------------


def _snapshot(problem: Problem, state: TrainState, test: Examples | None, snapshots: SnapshotConfig) -> Snapshots:
    """What is to be seen before a step: programs of their own, most of them the same for every optimizer."""
    config, whole = problem.config, with_trainable(problem.parameters, state.leaves)
    score = functools.partial(_score, config.loss, config.per_state, snapshots.num_eval, whole, problem.scales)
    # Of numpy: an operation of JAX out here would be a program of its own.
    unseen: Any = np.full(whole.network.depth + 1, np.nan, whole.dtype)
    (train_loss, train_accuracy), (test_loss, test_accuracy) = score(problem.data), score(test) if test else unseen[:2]
    seen = Snapshots(state.step, train_loss, train_accuracy, test_loss, test_accuracy, unseen, unseen)
    if not snapshots.gradients:
        return seen
    # What is compiled for another optimizer would be the same program.
    rest = replace(problem, config=replace(config, optimizer="sgd", schedule="constant"), rates={})
    return seen._replace(**_norms(rest, state.step, state.leaves), log_update=_log_update(problem, state))


@functools.partial(jax.jit, static_argnames=("loss", "per_state", "num_eval"))
def _score(
    loss: Loss, per_state: int, num_eval: int, parameters: Parameters, scales: Scales, examples: Examples
) -> tuple[Array, Array]:
    """Loss and accuracy of the first examples, without noise."""
    states = in_states(per_state, jax.tree.map(lambda a: a[: max(per_state, num_eval)], examples))
    return scores(loss, per_state, without_noise(parameters), scales, states)


@jax.jit
def _norms(problem: Problem, step: Array, leaves: dict[str, Array]) -> dict[str, Any]:
    """The fields of `Snapshots` that are norms, but for that of the update."""
    (xs, ys), config = problem.minibatch(step), problem.config
    flow = _gradients.of_batch(problem.network_at(step, leaves), problem.scales, xs, ys, config.loss)
    log_count = math.log(config.batch_size)
    # The gradient of a mean loss has been divided by the number of examples already.
    of_sum = 0.0 if losses.is_mean(config.loss) else log_count
    return {
        "log_gradient": (jax.nn.logsumexp(2 * flow.log_gradient, axis=0) + log_count) / 2 - of_sum,
        "log_mean_square": jax.nn.logsumexp(flow.log_mean_square, axis=0) - math.log(len(xs)),
        "log_parameter_gradient": jax.tree.map(lambda log: log - of_sum, flow.log_parameter_gradient),
        "log_tied_gradient": jax.tree.map(lambda log: log - of_sum, flow.log_tied_gradient),
        "log_parameter": log_norms(problem.parameters.network, leaves),
    }


@jax.jit
def _log_update(problem: Problem, state: TrainState) -> dict[str, Array]:
    updates: Any = problem.optimizer.update(problem.gradient(state)[1], state.memory, state.leaves)[0]
    return log_norms(problem.parameters.network, updates)


def log_norms(network: Network, leaves: dict[str, Array]) -> dict[str, Array]:
    """ln of the norm of every layer's part of `trainable` leaves, by Flax path."""
    norm = lambda a: normalize(from_float(a), once=True)[1]  # noqa: E731
    ends = {path: norm(leaf) for path, leaf in leaves.items() if not path.startswith("blocks/")}
    stages = []
    for i, stage in enumerate(network.stages):
        inside = {path.removeprefix(f"blocks/{i}/"): a for path, a in leaves.items() if path.startswith(f"blocks/{i}/")}
        if stage.tied:
            ends |= {path: norm(leaf) for path, leaf in inside.items()}
        stages.append({} if stage.tied else {path: jax.vmap(norm)(leaf) for path, leaf in inside.items()})
    return ends | by_path(stages, [stage.depth for stage in network.stages])
