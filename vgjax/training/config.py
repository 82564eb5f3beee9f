"""How to train: optimizers, schedules and learning rates, checked; and when to look."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np
import optax
from jax import Array

from vgjax.checks import is_whole, kinds, known, not_negative, positive_integer, short
from vgjax.data import Examples
from vgjax.measure.losses import Loss
from vgjax.networks.network import Network
from vgjax.networks.parameters import init
from vgjax.networks.trainable import trainable
from vgjax.training.problem import checked_objective

Optimizer: TypeAlias = str | Callable[[Any], optax.GradientTransformation] | optax.GradientTransformation
Schedule: TypeAlias = str | Callable[[int], optax.Schedule]

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

_INTERVALS = 20  # between snapshots, if nothing is said


@kinds
@dataclass(frozen=True)
class SnapshotConfig:
    """When a training is looked at, and at what.

    Attributes:
        steps: from 0, before the first update, to the number of updates; the last is always one. None: the ends of 20
            intervals; ``()``: the last alone.
        num_eval: how many examples of each kind loss and accuracy are taken over, at most.
        gradients: whether at the gradients and the sizes of the states, layer by layer, too.

    Raises:
        ValueError: a count below 1.
    """

    steps: Sequence[float] | None = None
    num_eval: int = 1024
    gradients: bool = True

    def __post_init__(self) -> None:
        positive_integer("num_eval", self.num_eval)
        if self.steps is not None:  # as a tuple it can be compiled for
            object.__setattr__(self, "steps", tuple(np.asarray(self.steps, dtype=float).ravel().tolist()))

    @kinds
    def steps_of(self, num_steps: int) -> tuple[int, ...]:
        """The steps of a training of that many updates, ascending, with the last.

        Raises:
            ValueError: steps that are not whole or beyond it.
        """
        num_steps = positive_integer("num_steps", num_steps)
        wanted = np.linspace(0, num_steps, _INTERVALS + 1).round() if self.steps is None else self.steps
        steps = np.unique([*wanted, num_steps])
        for step in steps[(steps < 0) | (steps > num_steps) | (steps != steps.round())]:
            raise ValueError(f"snapshots must be at whole steps from 0 to num_steps = {num_steps}, got {step:g}")
        return tuple(int(step) for step in steps)


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained, as a static description: what its update is compiled for, and nothing else.

    Attributes:
        optimizer, schedule: as for `train`.
        num_steps: updates.
        batch_size: examples an update sees.
        loss: as for `vgjax.gradient_flow`.
        per_state: examples in a state: 1, or a batch's where a batch is the state.
    """

    optimizer: Optimizer
    schedule: Schedule
    num_steps: int
    batch_size: int
    loss: Loss
    per_state: int

    def optimizer_at(self, rates: dict[str, Array], leaves: Mapping[str, Any]) -> optax.GradientTransformation:
        """The optimizer at learning rates: ``{"": rate}``, or one for each group of parameters."""

        def at(rate: Array) -> optax.GradientTransformation:
            make = OPTIMIZERS[self.optimizer] if isinstance(self.optimizer, str) else self.optimizer
            if self.schedule == "constant":
                return make(rate)  # type: ignore[operator]
            factor = (SCHEDULES[self.schedule] if isinstance(self.schedule, str) else self.schedule)(self.num_steps)
            return make(lambda count: rate * factor(count))  # type: ignore[operator]

        if isinstance(self.optimizer, optax.GradientTransformation):
            return self.optimizer
        if tuple(rates) == ("",):
            return at(rates[""])
        return optax.partition({group: at(rate) for group, rate in rates.items()}, groups_of(tuple(rates), leaves))


# --- the edge -------------------------------------------------------------------------------------------------------


def checked_config(
    network: Network,
    data: Examples,
    test: Examples | None,
    *,
    optimizer: Optimizer,
    schedule: Schedule,
    num_steps: int,
    batch_size: int | None,
    loss: Loss | None,
) -> TrainConfig:
    """What to compile for, once all that was asked for has been checked against the network and the examples."""
    if isinstance(optimizer, str):
        known("optimizer", optimizer, OPTIMIZERS)
    if isinstance(schedule, str):
        known("schedule", schedule, SCHEDULES)
    if callable(optimizer) and not isinstance(_made("optimizer", optimizer, 0.1), optax.GradientTransformation):
        raise ValueError("optimizer must make an optax optimizer of a learning rate, got something else")
    if callable(schedule) and not callable(_made("schedule", schedule, 10)):
        raise ValueError("schedule must make an optax schedule of a number of steps, got something else")
    if isinstance(optimizer, optax.GradientTransformation) and schedule != "constant":
        raise ValueError(f"schedule must be left out where the optimizer has its own learning rate, got {schedule!r}")
    num_steps = positive_integer("num_steps", num_steps)
    meant, per_state = checked_objective("data", network, data, loss)
    if test is not None and checked_objective("test", network, test, loss)[0] != meant:
        raise ValueError(f"test must have labels of the kind of the data's, for {meant}, got {test.labels.dtype}")
    batch_size = _checked_batch(batch_size, per_state, len(data.inputs))
    return TrainConfig(optimizer, schedule, num_steps, batch_size, meant, per_state)


def _made(name: str, make: Any, of: Any) -> Any:
    """What a user's function makes of a number."""
    try:
        return make(of)
    except TypeError as error:
        raise ValueError(f"{name} must be a function of one number, got {short(make)}: {error}") from error


def _checked_batch(batch_size: int | None, per_state: int, examples: int) -> int:
    """How many examples an update sees."""
    if batch_size is None:
        return examples // per_state * per_state
    batch_size = positive_integer("batch_size", batch_size)
    if batch_size > examples:
        raise ValueError(f"batch_size must be at most the {examples} examples of the data, got {batch_size}")
    if batch_size % per_state:
        raise ValueError(f"batch_size must be a multiple of the {per_state} examples in a state, got {batch_size}")
    return batch_size


def checked_rates(network: Network, optimizer: Optimizer, learning_rate: Any) -> dict[str, Any]:
    """The learning rates by group of parameters, numbers or arrays of them: ``{"": rate}`` for one, none for an
    optimizer that has its own.

    Raises:
        ValueError: a rate that is negative or not finite, or groups that are not those of the network's parameters.
    """
    if isinstance(optimizer, optax.GradientTransformation):
        if learning_rate is not None:
            raise ValueError("learning_rate must be left out where the optimizer has its own")
        return {}
    learning_rate = 0.01 if learning_rate is None else learning_rate
    rates = dict(learning_rate) if isinstance(learning_rate, Mapping) else {"": learning_rate}
    rates = {group: float(rate) if is_whole(rate) else rate for group, rate in rates.items()}
    for group, rate in rates.items():
        not_negative("learning_rate" + (f" of {group}" if group else ""), rate)
    if tuple(rates) != ("",):
        drawn = jax.eval_shape(functools.partial(init, network=network), jax.random.key(0))
        groups_of(tuple(rates), trainable(drawn))
    return rates


def groups_of(groups: Sequence[str], leaves: Mapping[str, Any]) -> dict[str, str]:
    """Which group each trainable leaf belongs to: that whose name is a part of its path.

    Raises:
        ValueError: a leaf in no group, or in several; a group without any.
    """
    names = {path: [group for group in groups if group in path.split("/")] for path in leaves}
    for path, of_path in names.items():
        if len(of_path) != 1:
            which = " and ".join(of_path) or "none"
            raise ValueError(f"learning_rate must name one group for every parameter, got {which} for {path}")
    for group in groups:
        if [group] not in names.values():
            raise ValueError(f"learning_rate must name groups of parameters, got {group!r}, which is part of no path")
    return {path: of_path[0] for path, of_path in names.items()}
