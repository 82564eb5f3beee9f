"""Plans: what a training is compiled for, once all that was asked for has been checked; optimizers and schedules."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np
import optax
from jax import Array

from vgjax.checks import known, not_negative, positive_integer
from vgjax.data import Examples
from vgjax.networks.layers import init, parameter_dtype, trainable
from vgjax.networks.network import Network
from vgjax.training.problem import Data, checked_examples

Optimizer: TypeAlias = str | Callable[[Any], optax.GradientTransformation] | optax.GradientTransformation
Schedule: TypeAlias = str | Callable[[int], optax.Schedule]
Rates: TypeAlias = dict[str, Array]
"""Learning rates: ``{"": rate}``, or one for each group of parameters."""

OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "nesterov": functools.partial(optax.sgd, momentum=0.9, nesterov=True),
    "adagrad": optax.adagrad,
    "rmsprop": optax.rmsprop,
    "adam": optax.adam,
    "adamw": optax.adamw,
}
"""Optimizers by name, each made from a learning rate."""

SCHEDULES: dict[str, Callable[[int], optax.Schedule]] = {
    "constant": lambda steps: optax.constant_schedule(1.0),
    "step": lambda steps: optax.piecewise_constant_schedule(1.0, {-(-steps // 2): 0.1, -(-3 * steps // 4): 0.1}),
    "exponential": lambda steps: optax.exponential_decay(1.0, steps, 0.01),
    "cosine": lambda steps: optax.cosine_decay_schedule(1.0, steps),
    "warmup": lambda steps: optax.warmup_cosine_decay_schedule(0.0, 1.0, -(-steps // 10), max(steps, 2)),
}
"""Schedules by name: what the learning rate is multiplied with, made from the number of steps: 1; a tenth from half of
the steps on and a hundredth from three quarters; down to a hundredth exponentially; down to 0 along a cosine; linearly
up over the first tenth of the steps and then along a cosine."""

LOOKS = 20


@dataclass(frozen=True)
class Task:
    """What is to be learned, as a static description: what looking at a network is compiled for.

    Attributes:
        network: what is trained.
        loss: ``"cross_entropy"`` or ``"squared_error"``.
        batch_size: examples an update sees.
        lot: examples in a state: 1, or a batch's where a batch is the state.
        evaluate: how many examples loss and accuracy are taken over, at most.
        dtype: it computes in.
    """

    network: Network
    loss: str
    batch_size: int
    lot: int
    evaluate: int
    dtype: str


@dataclass(frozen=True)
class Plan:
    """A training as a static description: what it is compiled for.

    Attributes:
        task: what is to be learned.
        optimizer, schedule: as for `train`.
        groups: names of the groups of parameters that have a learning rate of their own; ``("",)`` for one rate.
        num_steps: updates.
        record: the steps at which it looks, ascending; the last is ``num_steps``.
        gradients: whether it looks at the gradients, layer by layer.
    """

    task: Task
    optimizer: Optimizer
    schedule: Schedule
    groups: tuple[str, ...]
    num_steps: int
    record: tuple[int, ...]
    gradients: bool


def made(plan: Plan, rates: Rates, leaves: dict[str, Array]) -> optax.GradientTransformation:
    """The optimizer at these learning rates."""

    def one(rate: Array) -> optax.GradientTransformation:
        make = OPTIMIZERS[plan.optimizer] if isinstance(plan.optimizer, str) else plan.optimizer
        if plan.schedule == "constant":
            return make(rate)  # type: ignore[operator]
        factor = (SCHEDULES[plan.schedule] if isinstance(plan.schedule, str) else plan.schedule)(plan.num_steps)
        return make(lambda count: rate * factor(count))  # type: ignore[operator]

    if isinstance(plan.optimizer, optax.GradientTransformation):
        return plan.optimizer
    if plan.groups == ("",):
        return one(rates[""])
    return optax.partition({name: one(rate) for name, rate in rates.items()}, grouped(plan.groups, leaves))


# --- the edge ---------------------------------------------------------------------------------------------------------


def planned(
    network: Network,
    data: Data,
    test: Data | None,
    groups: Sequence[str],
    *,
    optimizer: Optimizer,
    schedule: Schedule,
    num_steps: int,
    batch_size: int | None,
    loss: str | None,
    record: Sequence[int] | None,
    gradients: bool,
    evaluate: int,
    dtype: str | None,
) -> tuple[Plan, Examples, Examples | None]:
    """What to compile for, and the examples as arrays, once all of it has been checked."""
    if isinstance(optimizer, str):
        known("optimizer", optimizer, OPTIMIZERS)
    if isinstance(schedule, str):
        known("schedule", schedule, SCHEDULES)
    if isinstance(optimizer, optax.GradientTransformation) and schedule != "constant":
        raise ValueError(f"schedule must be left out where the optimizer has its own learning rate, got {schedule!r}")
    num_steps = positive_integer("num_steps", num_steps)
    drawn = jax.eval_shape(functools.partial(init, network=network), jax.random.key(0))
    if groups and groups != ("",):
        grouped(groups, trainable(drawn))
    loss, lot, examples = checked_examples("data", network, data, loss)
    held = None if test is None else checked_examples("test", network, test, loss)[2]
    task = Task(
        network,
        loss,
        checked_batch(batch_size, lot, len(examples.inputs)),
        lot,
        max(lot, positive_integer("evaluate", evaluate)),
        np.dtype(known("dtype", dtype, ["float32", "float64"]) if dtype else parameter_dtype(drawn)).name,
    )
    steps = checked_steps(record, num_steps)
    plan = Plan(task, optimizer, schedule, tuple(groups), num_steps, steps, bool(gradients))
    return plan, examples, held


def checked_rates(optimizer: Optimizer, learning_rate: Any) -> dict[str, Any]:
    """The learning rates by group: numbers, or arrays of them."""
    if isinstance(optimizer, optax.GradientTransformation):
        if learning_rate is not None:
            raise ValueError("learning_rate must be left out where the optimizer has its own")
        return {}
    if learning_rate is None:
        learning_rate = 0.01
    rates = dict(learning_rate) if isinstance(learning_rate, Mapping) else {"": learning_rate}
    for name, rate in rates.items():
        not_negative("learning_rate" + (f" of {name}" if name else ""), rate)
    return rates


def grouped(groups: Sequence[str], leaves: Mapping[str, Any]) -> dict[str, str]:
    """Which group each trainable leaf belongs to: that whose name is a part of its path.

    Raises:
        ValueError: a leaf in no group, or in several.
    """
    found = {path: [name for name in groups if name in path.split("/")] for path in leaves}
    for path, names in found.items():
        if len(names) != 1:
            which = " and ".join(names) or "none"
            raise ValueError(f"learning_rate must name one group for every parameter, got {which} for {path}")
    for name in groups:
        if [name] not in found.values():
            raise ValueError(f"learning_rate must name groups of parameters, got {name!r}, which is part of no path")
    return {path: names[0] for path, names in found.items()}


def checked_batch(batch_size: int | None, lot: int, examples: int) -> int:
    """How many examples an update sees."""
    if batch_size is None:
        return examples // lot * lot
    batch_size = positive_integer("batch_size", batch_size)
    if batch_size > examples:
        raise ValueError(f"batch_size must be at most the {examples} examples of the data, got {batch_size}")
    if batch_size % lot:
        raise ValueError(f"batch_size must be a multiple of the {lot} examples in a state, got {batch_size}")
    return batch_size


def checked_steps(record: Sequence[int] | None, num_steps: int) -> tuple[int, ...]:
    """The steps to look at, ascending, with the last."""
    wanted = np.linspace(0, num_steps, LOOKS + 1).round() if record is None else np.asarray(record, dtype=float)
    steps = np.unique([*wanted.ravel(), num_steps])
    for step in steps[(steps < 0) | (steps > num_steps) | (steps != steps.round())]:
        raise ValueError(f"record must hold whole steps from 0 to num_steps = {num_steps}, got {step:g}")
    return tuple(int(step) for step in steps)
