"""Trainability: which networks learn, over depths, learning rates, scales and seeds.

`trainings` is what `vgjax.sweep` measures: every network is trained alone, and whether it diverges is nobody else's
business. What differs in numbers runs in one compiled program, what differs in shape in one program each.
"""

import contextlib
import functools
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import numpy as np
from jax import Array

from vgjax.checks import ArrayLike, kinds, known, positive_integer
from vgjax.data import Examples
from vgjax.ensembles.measurement import Arrays, Measurement
from vgjax.ensembles.result import Result, check_complete
from vgjax.initializers import Scales
from vgjax.measure.losses import Loss, checked_loss
from vgjax.memory import chunk_size
from vgjax.networks.layers import state_sizes
from vgjax.networks.network import Network
from vgjax.networks.parameters import Parameters, init
from vgjax.networks.trainable import trainable
from vgjax.training.config import Optimizer, Schedule, SnapshotConfig, TrainConfig, checked_config, checked_rates
from vgjax.training.loop import DTYPES, trained
from vgjax.training.problem import Data, as_examples

RATE = "learning_rate"
"""The name of the axis of the learning rate; of that of a group of parameters, what it begins with."""

_WORK = 2e10
"""About how many multiplications a piece should cost: a second or two, so that little is lost where a run is stopped,
and a piece's own costs (30 ms) are small beside it."""
_CACHED = 2**14
"""Units a layer, of all examples and trainings, that one batch on a CPU should not exceed: beyond it a batch gains at
most a third (width 64), where at width 16 it gains half (`benchmarks/bench_training.py`)."""
_UNITS = 2**30
"""The same on an accelerator, whose memory is then what limits a batch."""
_LEARNED = 0.5  # accuracy from which a network counts as trainable (of ten classes)


@dataclass(frozen=True)
class Trainings(Measurement):
    """`trainings`."""

    optimizer: Optimizer
    num_steps: int
    schedule: Schedule
    batch_size: int | None
    snapshots: SnapshotConfig
    dtype: str | None
    loss: Loss | None
    # To train on and, if there are any, to test on. Numbers, no part of what is compiled: a sweep hands them to the
    # program, and fingerprints them, as its inputs.
    examples: tuple[Examples, ...] = field(compare=False, repr=False)

    name: ClassVar[str] = "trainings"
    number_names: ClassVar[tuple[str, ...]] = (RATE,)
    parallel: ClassVar[bool] = True
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "loss": ("update",),
        "first_nonfinite": (),
        "diverged": (),
        "converged": (),
        "train_loss": ("step",),
        "train_accuracy": ("step",),
        "test_loss": ("step",),
        "test_accuracy": ("step",),
        "log_gradient": ("step", "layer"),
        "log_mean_square": ("step", "layer"),
    }

    def compiled_for(self) -> "Trainings":
        """Without the examples, which would be kept as long as the program."""
        return replace(self, examples=())

    def check(self, network: Network, inputs: tuple[ArrayLike, ...]) -> tuple[bool, tuple[Any, ...]]:
        """The examples as inputs of the program."""
        if inputs:
            raise ValueError(f"trainings takes no inputs beside its data, got {len(inputs)}")
        self._config(network, *self.examples)
        return False, tuple(a for each in self.examples for a in each)

    def numbers(self, network: Network, given: Mapping[str, Any]) -> dict[str, Any]:
        """Learning rates by group of parameters, ``learning_rate_stem``; of an optimizer that has its own, none."""
        rates = checked_rates(network, self.optimizer, given.get(RATE))
        return {f"{RATE}_{group}" if group else RATE: rate for group, rate in rates.items()}

    def measure(self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array) -> dict[str, Any]:
        """`train` of one draw."""
        parameters, key = drawn
        data, test = Examples(*inputs[:2]), Examples(*inputs[2:]) if inputs[2:] else None
        config = self._config(parameters.network, data, test)
        rates = {name.removeprefix(RATE).removeprefix("_"): rate for name, rate in numbers.items()}
        parameters = parameters.astype(self.dtype or parameters.dtype)
        training = trained(config, key, parameters, scales, rates, data, test, self.snapshots)
        scores = {name: a for name, a in training.snapshots._asdict().items() if name in self.dims}
        return {"loss": training.loss, "first_nonfinite": training.first_nonfinite, **scores}

    def finish(self, arrays: Arrays, where: str) -> Arrays:
        """And what became of each: whether it diverged, whether it converged."""
        loss = arrays["loss"]
        diverged = arrays["first_nonfinite"] < loss.shape[-1]
        last = loss[..., -max(1, loss.shape[-1] // 10) :].mean(axis=-1)
        became = {"diverged": diverged, "converged": ~diverged & (last < loss[..., 0])}
        return {name: (arrays | became)[name] for name in self.dims if name in arrays or name in became}

    def coordinates(self, network: Network) -> dict[str, np.ndarray]:
        """The steps of the snapshots."""
        return {"step": np.asarray(self.snapshots.steps_of(self.num_steps))}

    def bytes_per_point(self, network: Network) -> int:
        """Weights, their gradient, what an optimizer remembers of both, and all states of a minibatch."""
        return 8 * 6 * (_weights(network) + self._units(network))

    def chunk(self, network: Network, points: int, memory: int, workers: int) -> tuple[int, int]:
        """On a CPU as many as its caches hold as one batch, and pieces of some seconds, one for every worker at least.

        All batches of a piece are of one size: `lax.map` compiles another program for a rest.
        """
        units = self._units(network) // (network.depth + 1)
        most = max(1, (_CACHED if jax.default_backend() == "cpu" else _UNITS) // units)
        together = min(most, chunk_size(points, self.bytes_per_point(network), memory))
        cost = 6 * _weights(network) * self._config(network, *self.examples).batch_size * self.num_steps
        size = min(-(-points // workers), together * max(1, int(_WORK / cost / together)))
        batches = -(-size // together)
        together = -(-size // batches)
        return batches * together, together

    def computing(self, network: Network) -> AbstractContextManager[Any]:
        """In its dtype."""
        return _precision(self.dtype)

    def _config(self, network: Network, data: Examples, test: Examples | None = None) -> TrainConfig:
        about: dict[str, Any] = {"optimizer": self.optimizer, "schedule": self.schedule, "num_steps": self.num_steps}
        return checked_config(network, data, test, **about, batch_size=self.batch_size, loss=self.loss)

    def _units(self, network: Network) -> int:
        """Of all states of a minibatch."""
        config = self._config(network, *self.examples)
        return int(state_sizes(network).sum()) * config.batch_size // config.per_state


@kinds
def trainings(
    data: Data,
    optimizer: Optimizer = "sgd",
    num_steps: int = 1000,
    *,
    schedule: Schedule = "constant",
    batch_size: int | None = 64,
    test: Data | None = None,
    snapshots: SnapshotConfig | None = None,
    dtype: str | None = None,
    loss: Loss | None = None,
) -> Measurement:
    """What becomes of networks in training, by `vgjax.train`.

    ``vg.sweep(networks, measure=vg.trainings(data, "adam", 200), key=key, learning_rate=[.01, .1], sigma_w=ws)``. A
    sweep takes ``learning_rate`` as a number (default .01), as values of an axis, or as a dict of both by group of
    parameters, for axes ``learning_rate_stem``, ``learning_rate_blocks`` and so on.

    Seed s is drawn once for all points: with ``weights, rest = jax.random.split(jax.random.fold_in(key, s))`` it is
    ``train(init(weights, network), scales, data, ..., key=rest)``.

    Variables: ``loss`` of every ``update``; ``first_nonfinite``, as in `vgjax.training.Training`; ``diverged``: whether
    anything was not finite at some step; ``converged``: all finite, and the mean loss of the last tenth of the updates
    below that of the first; and at every ``step`` of a snapshot ``train_loss``, ``train_accuracy``, ``test_loss``,
    ``test_accuracy``, ``log_gradient`` and ``log_mean_square`` by ``layer``, as in `vgjax.training.Snapshots`.

    Args:
        data, optimizer, num_steps, schedule, batch_size, test, loss: as for `vgjax.train`.
        dtype: ``"float64"`` computes the same drawn networks in float64; left out, each in its own.
        snapshots: as for `vgjax.train`; default: losses and accuracies at the end alone.

    Raises:
        ValueError: another dtype, or snapshots beyond the last step.
    """
    if dtype is not None:
        known("dtype", dtype, DTYPES)
    num_steps = positive_integer("num_steps", num_steps)
    snapshots = SnapshotConfig((), gradients=False) if snapshots is None else snapshots
    snapshots.steps_of(num_steps)
    with _precision(dtype):
        examples = as_examples("data", data), *(() if test is None else (as_examples("test", test),))
    return Trainings(optimizer, num_steps, schedule, batch_size, snapshots, dtype, checked_loss(loss), examples)


def _precision(dtype: str | None) -> AbstractContextManager[Any]:
    return contextlib.nullcontext() if dtype is None else jax.enable_x64(dtype == "float64")


@functools.cache
def _weights(network: Network) -> int:
    """How many numbers an optimizer moves."""
    drawn: Parameters = jax.eval_shape(functools.partial(init, network=network), jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in trainable(drawn).values())


# --- what is read off ----------------------------------------------------------------------------------------------


@kinds
def best(result: Result, name: str = "train_accuracy") -> np.ndarray:
    """The mean accuracy over seeds at the end of training, at the best of the learning rates.

    A network whose numbers are not finite answers wrong: its accuracy counts as 0. NaN where one is missing.

    Args:
        result: of a sweep of `trainings`.
        name: ``"train_accuracy"`` or ``"test_accuracy"``.

    Returns:
        Shape of the result's axes other than learning rates, with several networks ``(network, ...)``.

    Raises:
        ValueError: a result of something else, or another name.
    """
    check_trainings("best", result)
    known("name", name, ("train_accuracy", "test_accuracy"))
    end = np.where(result.diverged == 1, 0, result.arrays[name][..., -1]).mean(axis=result.lead.index("seed"))
    left = [axis for axis in result.lead if axis != "seed"]
    return end.max(axis=tuple(i for i, axis in enumerate(left) if axis.startswith(RATE)))


@kinds
def trainable_depth(result: Result, threshold: float = _LEARNED, name: str = "train_accuracy") -> np.ndarray:
    """The depth of the deepest network whose `best` accuracy is at least a threshold; 0 if none.

    Args:
        result: of a sweep of `trainings` over several networks.
        threshold: between 0 and 1.
        name: as for `best`.

    Returns:
        Shape of the result's axes other than learning rates.

    Raises:
        ValueError: a result of one network, one with missing points, or one read from a file without its networks
            (`vgjax.load`).
    """
    learned = best(result, name) >= threshold
    check_complete("a trainable depth", result)
    if not result.several:
        raise ValueError("a trainable depth needs a sweep over several networks, got one")
    depths = [network.depth for network in result.networks.values() if network is not None]
    if len(depths) < len(result.networks):
        raise ValueError("a trainable depth needs the networks: hand them over as load(path, network=...)")
    return np.max(np.where(learned, np.reshape(depths, (-1, *[1] * (learned.ndim - 1))), 0), axis=0)


def check_trainings(what: str, result: Result) -> None:
    """Raise ValueError unless a result is one of trainings."""
    if result.measure != Trainings.name:
        raise ValueError(f"{what} needs a sweep of trainings, got one of {result.measure}")
