"""Training: what vanishing and exploding gradients cost, and what optimizers change, step by step.

A training is one compiled program of pure functions on a network's ordinary parameters (`vgjax.absorb_scales`): minibatches
from a key, any optax optimizer, and at chosen steps a look at every layer. That it diverges is a result, not an error.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from vgjax.data import Examples, batches
from vgjax.ensembles import runner
from vgjax.floatexp import from_float, normalize
from vgjax.initializers import Scales
from vgjax.measure.gradients import gradient_flow
from vgjax.networks.layers import Parameters, Stream, by_path, init, ordinary, redrawn, trainable, with_trainable
from vgjax.networks.network import Network, check_scales
from vgjax.training.config import Optimizer, Plan, Rates, Schedule, Task, checked_rates, made, planned
from vgjax.training.problem import Data, as_dtype, in_states, mean_loss, outputs


class Looks(NamedTuple):
    """What a training saw at the recorded steps: the state before that update; ``r`` of them. Logarithms are natural.

    Attributes:
        train_loss, test_loss: mean over (at most ``evaluate``) examples, shape ``(r,)``; NaN without test examples.
        train_accuracy, test_accuracy: share of them whose largest output is the label's; NaN for a single output.
        log_gradient: ln of the root mean square over the minibatch of ||dL_i/ds_l||, L_i the loss of one example, shape
            ``(r, depth + 1)``; exact where floats would read 0 or inf.
        log_parameter_gradient: by Flax path, ln of the norm of the gradient of the minibatch's mean loss, shape ``(r,
            depth)`` for the blocks, ``(r,)`` for ``"stem/..."`` and ``"head/..."``; of tied parameters what each step
            contributes.
        log_tied_gradient: the same of the whole of tied parameters, shape ``(r,)``.
        log_parameter: ln of the norm of the parameters, shapes as above (one number if tied).
        log_update: ln of the norm of the update that the optimizer makes of that minibatch, in its own floats: -inf is
            an update of 0, whether truly or by underflow.
    """

    train_loss: Array
    train_accuracy: Array
    test_loss: Array
    test_accuracy: Array
    log_gradient: Array = np.nan  # type: ignore[assignment]
    log_parameter_gradient: dict[str, Array] = {}  # noqa: RUF012
    log_tied_gradient: dict[str, Array] = {}  # noqa: RUF012
    log_parameter: dict[str, Array] = {}  # noqa: RUF012
    log_update: dict[str, Array] = {}  # noqa: RUF012

    @property
    def log_update_ratio(self) -> dict[str, Array]:
        """ln of the update's norm over that of the parameters, by path; NaN where both are 0."""
        return {path: update - self.log_parameter[path] for path, update in self.log_update.items()}


class Training(NamedTuple):
    """What became of one network.

    Attributes:
        steps: the recorded steps, shape ``(r,)``: 0 is before the first update, ``num_steps`` after the last.
        looks: what was seen at them.
        loss: mean loss of every step's minibatch before its update, shape ``(num_steps,)``.
        first_nonfinite: the first step whose loss, or whose updated parameters, are not all finite; ``num_steps`` if
            none.
        parameters, scales: at the end: the ordinary parameters, and the scales that go with them in `forward`.
    """

    steps: Array
    looks: Looks
    loss: Array
    first_nonfinite: Array
    parameters: Parameters
    scales: Scales

    @property
    def diverged(self) -> bool:
        """Whether anything was not finite at some step."""
        return bool(self.first_nonfinite < len(self.loss))


def train(
    key: Array,
    network: Network,
    scales: Scales,
    data: Data,
    optimizer: Optimizer = "sgd",
    num_steps: int = 1000,
    *,
    learning_rate: float | Array | Mapping[str, float] | None = None,
    schedule: Schedule = "constant",
    batch_size: int | None = 64,
    loss: str | None = None,
    test: Data | None = None,
    parameters: Parameters | None = None,
    record: Sequence[int] | None = None,
    gradients: bool = True,
    evaluate: int = 1024,
    dtype: str | None = None,
    progress: bool | None = None,
) -> Training:
    """Train one network and look at every layer on the way.

    What moves are the ordinary Flax parameters (W = sigma_w Z, b = sigma_b z), as a user's optimizer would see them.
    The draw, the order of the examples and the noise of dropout (one mask a minibatch) come from the key. A second call
    with other numbers (key, scales, learning rate, data of the same shape) compiles nothing.

    Args:
        key: `jax.random.key`.
        network: any. With a batch in its state (batch norm) a minibatch is one state, and ``batch_size`` is its.
        scales: those of the draw, as for `forward`; ``dropout`` is 0 where loss and accuracy are taken.
        data: training examples: ``inputs`` of shape ``(examples, *input)`` and ``labels``: classes ``(examples,)`` or
            numbers ``(examples, *output)``.
        optimizer: a name in `OPTIMIZERS`, a function from a learning rate to an optax optimizer (``optax.lion``,
            ``lambda rate: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rate))``), or an optax optimizer as it
            is. Parameters of a stage are stacked by layer: an optimizer that looks at whole arrays (LARS, Adafactor)
            sees them as one.
        num_steps: updates.
        learning_rate: a number (default .01); or one for each group of parameters, by a part of their path: ``{"stem":
            .1, "blocks": .01, "head": .01}`` or ``{"kernel": .1, "bias": .01}``.
        schedule: a name in `SCHEDULES`, or a function from the number of steps to an optax schedule of what the
            learning rate is multiplied with (``lambda steps: optax.linear_schedule(1.0, 0.0, steps)``); a finished
            optimizer has its own.
        batch_size: examples a minibatch, drawn without repetition within an epoch; None takes all of them, in order.
        loss: ``"cross_entropy"`` or ``"squared_error"`` (half the sum of squares); left out, read off the labels.
        test: examples for test loss and accuracy.
        parameters: draws at unit gain to start from (of `lsuv`, say) instead of those of the key.
        record: steps at which to look, from 0 to ``num_steps``, which is always one; default: 20 intervals.
        gradients: look at the gradients too.
        evaluate: how many examples of each kind loss and accuracy are taken over, at most.
        dtype: ``"float64"`` computes the same drawn network in float64.
        progress: a bar on standard error, one step a look; None shows it on a terminal only.

    Returns:
        `Training`.

    Raises:
        ValueError: an unknown name, a learning rate that is negative or not finite, no steps, a batch larger than the
            data, examples that do not fit the network, labels that do not fit its output.
    """
    rates = checked_rates(optimizer, learning_rate)
    for name, rate in rates.items():
        if np.ndim(rate):
            of = f" of {name}" if name else ""
            raise ValueError(f"learning_rate{of} must be a number (`train_sweep` takes several), got {rate}")
    check_scales(network, scales)
    if parameters is not None and parameters.network != network:
        raise ValueError("parameters must be draws of the network that is trained, got those of another")
    if parameters is not None and any(isinstance(own, Stream) for own in parameters.stages):
        raise ValueError("parameters must be stored to be trained; draw them with init(..., stream=False)")
    plan, examples, held = planned(
        network,
        data,
        test,
        tuple(rates),
        optimizer=optimizer,
        schedule=schedule,
        num_steps=num_steps,
        batch_size=batch_size,
        loss=loss,
        record=record,
        gradients=gradients,
        evaluate=evaluate,
        dtype=dtype,
    )
    with jax.enable_x64(plan.task.dtype == "float64"):
        # The draw and the looks are programs of their own, the same for every optimizer.
        drawn = init(jax.random.split(key, 3)[0], network) if parameters is None else parameters
        course = _course(plan, key, scales, rates, examples, held, drawn)
        now, t, looks = _begin(course), 0, []
        for then in runner.progress(plan.record, len(plan.record), "train", progress):
            now, t = _until(course, now, t, then), then
            looks.append(course.look(now, t))
        seen = jax.tree.map(lambda *each: jnp.stack(each), *looks)
        return course.finished(now, seen)


# --- the program ----------------------------------------------------------------------------------------------------


class Running(NamedTuple):
    """What the loop carries: what moves, what the optimizer remembers, and what was seen at every step."""

    leaves: dict[str, Array]
    memory: optax.OptState
    loss: Array
    first_nonfinite: Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["start", "scales", "rates", "data", "test", "indices", "noise"],
    meta_fields=["plan"],
)
@dataclass(frozen=True)
class Course:
    """What stays as it is while a network is trained.

    Attributes:
        plan: the static part.
        start, scales: the ordinary parameters drawn, and the scales left.
        rates: learning rates.
        data, test: examples.
        indices: which of them every step takes, shape ``(num_steps + 1, batch_size)``.
        noise: the key of what is drawn anew at every step.
    """

    plan: Plan
    start: Parameters
    scales: Scales
    rates: Rates
    data: Examples
    test: Examples | None
    indices: Array
    noise: Array

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """At its learning rates."""
        return made(self.plan, self.rates, trainable(self.start))

    def begin(self) -> Running:
        """Before the first step."""
        leaves, steps = trainable(self.start), self.plan.num_steps
        seen = jnp.full(steps, jnp.nan, self.plan.task.dtype), jnp.asarray(steps, jnp.int32)
        return Running(leaves, self.optimizer.init(leaves), *seen)

    def batch(self, t: Array | int) -> Examples:
        """The minibatch of a step, as inputs of the network."""
        task = self.plan.task
        whole = task.batch_size == len(self.data.inputs)
        return in_states(task.lot, self.data if whole else jax.tree.map(lambda a: a[self.indices[t]], self.data))

    def at(self, leaves: dict[str, Array], t: Array | int) -> Parameters:
        """The network of a step, with its noise."""
        return redrawn(with_trainable(self.start, leaves), jax.random.fold_in(self.noise, t))

    def gradient(self, leaves: dict[str, Array], t: Array | int) -> tuple[Array, dict[str, Array]]:
        """Loss and gradient of a step."""
        task, batch = self.plan.task, self.batch(t)

        def loss(leaves: dict[str, Array]) -> Array:
            return mean_loss(task.loss, task.lot, self.at(leaves, t), self.scales, batch)

        return jax.value_and_grad(loss)(leaves)

    def step(self, t: Array, now: Running) -> Running:
        """One update."""
        loss, gradients = self.gradient(now.leaves, t)
        updates, memory = self.optimizer.update(gradients, now.memory, now.leaves)
        leaves: Any = optax.apply_updates(now.leaves, updates)
        fine = jnp.isfinite(loss) & jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves.values()]))
        first = jnp.minimum(now.first_nonfinite, jnp.where(fine, self.plan.num_steps, t))
        return Running(leaves, memory, now.loss.at[t].set(loss), first)

    def look(self, now: Running, t: Array | int) -> Looks:
        """What is to be seen before a step."""
        task, whole = self.plan.task, with_trainable(self.start, now.leaves)
        seen = Looks(*score(task, whole, self.scales, self.data), *score(task, whole, self.scales, self.test))
        if not self.plan.gradients:
            return seen._replace(log_gradient=jnp.full(task.network.depth + 1, jnp.nan, task.dtype))
        rms, of_parameters, of_tied = gradient_norms(task, self.at(now.leaves, t), self.scales, self.batch(t))
        return seen._replace(
            log_gradient=rms,
            log_parameter_gradient=of_parameters,
            log_tied_gradient=of_tied,
            log_parameter=log_norms(task.network, now.leaves),
            log_update=_log_update(self, now, t),
        )

    def finished(self, end: Running, looks: Looks) -> Training:
        """The result."""
        steps, parameters = jnp.asarray(self.plan.record, jnp.int32), with_trainable(self.start, end.leaves)
        return Training(steps, looks, end.loss, end.first_nonfinite, parameters, self.scales)


@functools.partial(jax.jit, static_argnames="plan")
def _course(
    plan: Plan,
    key: Array,
    scales: Scales,
    rates: Rates,
    data: Examples,
    test: Examples | None,
    parameters: Parameters | None = None,
) -> Course:
    weights, order, noise = jax.random.split(key, 3)
    drawn = init(weights, plan.task.network) if parameters is None else parameters
    drawn, data, test, rates, scales = as_dtype(plan.task.dtype, (drawn, data, test, rates, scales))
    indices = batches(order, len(data.inputs), plan.task.batch_size, plan.num_steps + 1)
    return Course(plan, *ordinary(drawn, scales), rates, data, test, indices, noise)


_begin = jax.jit(Course.begin)


@jax.jit
def _until(course: Course, now: Running, t: Array | int, then: Array | int) -> Running:
    """All steps from t up to another."""
    return lax.fori_loop(t, then, course.step, now)


@jax.jit
def _log_update(course: Course, now: Running, t: Array | int) -> dict[str, Array]:
    gradients = course.gradient(now.leaves, t)[1]
    updates: Any = course.optimizer.update(gradients, now.memory, now.leaves)[0]
    return log_norms(course.plan.task.network, updates)


def trained(plan: Plan, key: Array, scales: Scales, rates: Rates, data: Examples, test: Examples | None) -> Training:
    """`train` as one traceable function of all that is no static description; unbatched, for `vmap` and `lax.map`."""
    course = _course(plan, key, scales, rates, data, test)

    def visit(carry: tuple[Running, Array], then: Array) -> tuple[tuple[Running, Array], Looks]:
        now = _until(course, carry[0], carry[1], then)
        return (now, then), course.look(now, then)

    steps = jnp.asarray(plan.record, jnp.int32)
    (end, _), looks = lax.scan(visit, (course.begin(), jnp.zeros((), jnp.int32)), steps)
    return course.finished(end, looks)


@functools.partial(jax.jit, static_argnames="task")
def score(task: Task, parameters: Parameters, scales: Scales, examples: Examples | None) -> tuple[Array, Array]:
    """Loss and accuracy of the first examples, without noise; NaN where there are none."""
    nothing = jnp.full((), jnp.nan, task.dtype)
    if examples is None:
        return nothing, nothing
    quiet = Scales._of({name: jnp.zeros_like(s) if name == "dropout" else s for name, s in scales.items()})
    states = in_states(task.lot, jax.tree.map(lambda a: a[: task.evaluate], examples))
    answers = jnp.argmax(found := outputs(task.network, parameters, quiet, states.inputs), axis=-1)
    labels = states.labels if task.loss == "cross_entropy" else jnp.argmax(states.labels, axis=-1)
    right = jnp.mean((answers == labels).astype(task.dtype)) if found.shape[-1] > 1 else nothing
    return mean_loss(task.loss, task.lot, parameters, quiet, states), right


def gradient_norms(
    task: Task, parameters: Parameters, scales: Scales, examples: Examples
) -> tuple[Array, dict[str, Array], dict[str, Array]]:
    """`Looks.log_gradient`, ``log_parameter_gradient`` and ``log_tied_gradient`` of one minibatch."""
    flow = gradient_flow(parameters, scales, *examples, loss=task.loss, naive=())
    count = np.log(len(examples.inputs) * task.lot)
    rms = (jax.nn.logsumexp(2 * flow.log_gradient, axis=0) - count) / 2
    of_mean = jax.tree.map(lambda log: log - count, (flow.log_parameter_gradient, flow.log_tied_gradient))
    return rms, *of_mean


@functools.partial(jax.jit, static_argnames="network")
def log_norms(network: Network, leaves: dict[str, Array]) -> dict[str, Array]:
    """ln of the norm of every layer's part of `trainable` leaves, by Flax path."""
    norm = lambda a: normalize(from_float(a))[1]  # noqa: E731
    ends = {path: norm(leaf) for path, leaf in leaves.items() if not path.startswith("blocks/")}
    stages = []
    for i, stage in enumerate(network.stages):
        inside = {path.removeprefix(f"blocks/{i}/"): a for path, a in leaves.items() if path.startswith(f"blocks/{i}/")}
        if stage.tied:
            ends |= {path: norm(leaf) for path, leaf in inside.items()}
        stages.append({} if stage.tied else {path: jax.vmap(norm)(leaf) for path, leaf in inside.items()})
    return ends | by_path(stages, [stage.depth for stage in network.stages])
