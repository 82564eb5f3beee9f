"""Trainability: many trainings at once, over depths, learning rates, scales and seeds; which of them learn.

Every network is trained alone: what one does, and whether it diverges, is nobody else's business. What differs in
numbers runs in one compiled program, what differs in shape in one program each; the pieces use all cores, and a folder
keeps them as they come.
"""

import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from vgjax.checks import positive_integer
from vgjax.data import Examples
from vgjax.ensembles import runner
from vgjax.ensembles.result import Result
from vgjax.ensembles.sweep import grid_of, points_of, provenance
from vgjax.initializers import Scales
from vgjax.measure.flow import state_shapes
from vgjax.networks.layers import init, trainable
from vgjax.networks.network import Network
from vgjax.training.config import Optimizer, Plan, Schedule, checked_rates, made, planned
from vgjax.training.loop import Training, trained
from vgjax.training.problem import Data

WORK = 2e10
"""About how many multiplications a chunk should cost: a second or two."""
CACHED = 2**14
"""Units a layer, of all examples and trainings, that one batch on a CPU should not exceed: beyond it a batch gains at
most a third (width 64), where at width 16 it gains half (`benchmarks/bench_training.py`)."""
GROUP = "learning_rate_"
"""What the axis of a group's learning rate begins with."""
LEARNED = 0.5
"""Accuracy from which a network counts as trainable (of ten classes)."""


@dataclass(frozen=True)
class TrainingSweep(Result):
    """What `vgjax.train_sweep` saw. The axes are the depths (if there were several networks), learning rates, scales.

    Attributes:
        axes: what was swept, in order: name -> values, shape ``(points,)``.
        steps: the recorded steps, shape ``(r,)``; the last is after the last update.
        loss: mean loss of every step's minibatch, shape ``(seed, *axes, num_steps)``.
        first_nonfinite: the first step whose loss, or whose updated parameters, are not finite; the number of steps if
            none, shape ``(seed, *axes)``.
        train_loss, train_accuracy, test_loss, test_accuracy: as for `Looks`, shape ``(seed, *axes, r)``.
        log_gradient: as for `Looks`, shape ``(seed, *axes, r, layers)``; NaN where it was not asked for, and behind the
            last layer of a network that is not the deepest.
        fixed: the scales and learning rates that were not swept: name -> value.
        provenance: network, optimizer, key, versions, device: plain JSON values.
    """

    trailing: ClassVar[dict[str, tuple[str, ...]]] = {
        "first_nonfinite": (),
        "loss": ("update",),
        "train_loss": ("step",),
        "train_accuracy": ("step",),
        "test_loss": ("step",),
        "test_accuracy": ("step",),
        "log_gradient": ("step", "layer"),
    }

    axes: dict[str, np.ndarray]
    steps: np.ndarray
    first_nonfinite: np.ndarray
    loss: np.ndarray
    train_loss: np.ndarray
    train_accuracy: np.ndarray
    test_loss: np.ndarray
    test_accuracy: np.ndarray
    log_gradient: np.ndarray
    fixed: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def coordinates(self) -> dict[str, Any]:
        """The recorded steps."""
        return {"steps": ("step", self.steps)}

    @property
    def diverged(self) -> np.ndarray:
        """Whether anything was not finite at some step, shape ``(seed, *axes)``."""
        return self.first_nonfinite < self.loss.shape[-1]

    @property
    def converged(self) -> np.ndarray:
        """Whether training went down: all finite, and the loss of the last tenth of the steps below the first one's,
        shape ``(seed, *axes)``."""
        last = self.loss[..., -max(1, self.loss.shape[-1] // 10) :].mean(axis=-1)
        return ~self.diverged & (last < self.loss[..., 0])

    def best(self, name: str = "train_accuracy") -> np.ndarray:
        """The mean over seeds at the end of training, at the best of the learning rates.

        Args:
            name: an accuracy. A loss that is not finite counts as accuracy does: its network's answers are wrong.

        Returns:
            Shape of the axes other than learning rates.
        """
        final = np.where(self.diverged, 0, getattr(self, name)[..., -1]).mean(axis=0)
        return final.max(axis=tuple(i for i, axis in enumerate(self.axes) if axis.startswith("learning_rate")))

    def trainable_depth(self, threshold: float = LEARNED, name: str = "train_accuracy") -> np.ndarray:
        """The deepest network whose `best` accuracy is at least a threshold, at every point of the scales; 0 if none.

        Raises:
            ValueError: a sweep over one network.
        """
        if "depth" not in self.axes:
            raise ValueError(f"a trainable depth needs a sweep over depth, got axes {', '.join(self.axes) or 'none'}")
        learned = self.best(name) >= threshold
        depths = self.axes["depth"].reshape(-1, *[1] * (learned.ndim - 1))
        return np.max(np.where(learned, depths, 0), axis=0)


def train_sweep(
    network: Network | Sequence[Network],
    data: Data,
    optimizer: Optimizer = "sgd",
    num_steps: int = 1000,
    *,
    key: Array,
    seeds: int = 1,
    learning_rate: ArrayLike | Mapping[str, ArrayLike] | None = None,
    schedule: Schedule = "constant",
    batch_size: int | None = 64,
    loss: str | None = None,
    test: Data | None = None,
    scales: Scales | None = None,
    record: Sequence[int] = (),
    gradients: bool = False,
    evaluate: int = 1024,
    dtype: str | None = None,
    folder: str | None = None,
    memory: int = runner.MEMORY,
    workers: int | None = None,
    progress: bool | None = None,
    **axes: ArrayLike,
) -> TrainingSweep:
    """Train a network for every seed at every point of a grid of learning rates and scales, and at several depths.

    Seed s of a network is what ``train(fold_in(key, s), ...)`` trains. One program a network; a chunk of points at a
    time on each core.

    Args:
        network: one; or several of different depth, an axis of the result.
        data, optimizer, num_steps, schedule, batch_size, loss, test, gradients, evaluate, dtype: as for `train`.
        key: `jax.random.key`.
        seeds: independent draws, each with its own order of the examples.
        learning_rate: a number, or values for an axis ``learning_rate``; or numbers and values by group of parameters,
            for axes ``learning_rate_stem``, ``learning_rate_kernel`` ...
        scales: those that stay fixed.
        record: as for `train`, but by default the end alone.
        folder: where finished chunks are kept; called again with the same settings after it was stopped, it goes on
            from there and gives the same result.
        memory: budget in bytes for one chunk.
        workers: chunks done at once; default: the cores of this process on a CPU, 1 on an accelerator.
        progress: a bar on standard error, one step a chunk; None shows it on a terminal only.
        **axes: the grid: a scale's name with its values, shape ``(points,)``; a plain number stays fixed.

    Returns:
        `TrainingSweep`, with axes (seed, depth, learning rates, *axes).

    Raises:
        ValueError: as for `train` and `sweep`; networks of one depth; a folder that cannot be written to, or that holds
            a run of other settings.
    """
    networks = _checked_networks(network)
    seeds, memory = positive_integer("seeds", seeds), positive_integer("memory", memory)
    rates = checked_rates(optimizer, learning_rate)
    grids = [grid_of(one, scales if scales is not None else Scales(), axes, least=0) for one in networks]
    about: dict[str, Any] = {"optimizer": optimizer, "schedule": schedule, "num_steps": num_steps, "loss": loss}
    about |= {"batch_size": batch_size, "record": record, "gradients": gradients, "evaluate": evaluate, "dtype": dtype}
    plans = [planned(one, data, test, tuple(rates), **about) for one in networks]
    points = Points.over(rates, *grids[0], seeds)
    on_cpu = jax.default_backend() == "cpu"
    workers = (runner.cores() if on_cpu else 1) if workers is None else positive_integer("workers", workers)
    jobs = [Job(plan, key, points, given, held, _size(plan, points, memory, workers)) for plan, given, held in plans]
    settings, store = _settings(jobs, key), None
    if folder is not None:
        store = runner.Store(folder, settings, [job.size for job in jobs])
        jobs = [replace(job, size=tuple(size)) for job, size in zip(jobs, store.layout, strict=True)]
    found = runner.run(_in_turn(jobs), "train", store=store, workers=workers, show=progress)
    settings[runner.LAYOUT] = [list(job.size) for job in jobs]
    return _assembled(jobs, found, isinstance(network, Network), settings)


def _in_turn(jobs: list["Job"]) -> dict[str, Callable[[], runner.Arrays]]:
    """A piece of every network in turn, so that their programs are compiled side by side; the deepest first."""
    deepest_first = sorted(jobs, key=lambda job: -job.plan.task.network.depth)
    rounds = itertools.zip_longest(*(job.pieces() for job in deepest_first))
    return dict(piece for pieces in rounds for piece in pieces if piece is not None)


# --- the pieces -----------------------------------------------------------------------------------------------------


class Points(NamedTuple):
    """A grid of learning rates and scales, the same for every seed.

    Attributes:
        grid: the axes, in order: name -> values.
        rates: learning rates by group, a number or the value at every point, shape ``(points,)``.
        scales: swept scales at every point, shape ``(points,)``.
        fixed: scales that are not swept.
        seeds: how many.
    """

    grid: dict[str, np.ndarray]
    rates: dict[str, Any]
    scales: dict[str, np.ndarray]
    fixed: dict[str, Any]
    seeds: int

    @classmethod
    def over(cls, rates: dict[str, Any], scales: dict[str, np.ndarray], fixed: dict[str, Any], seeds: int) -> "Points":
        """The grid of those learning rates that are arrays, and of scales."""
        axes = {_axis(name): np.asarray(rate) for name, rate in rates.items() if np.ndim(rate)}
        for name, values in axes.items():
            if values.ndim != 1 or not values.size:
                raise ValueError(
                    f"{name} must be a number or a non-empty one-dimensional grid, got shape {values.shape}"
                )
        grid = axes | scales
        at = points_of(grid)[1]
        return cls(grid, {n: at.get(_axis(n), r) for n, r in rates.items()}, {n: at[n] for n in scales}, fixed, seeds)

    @property
    def shape(self) -> tuple[int, ...]:
        """Seeds, and points along each axis."""
        return self.seeds, *(len(values) for values in self.grid.values())

    @property
    def trainings(self) -> int:
        """Of one network: seeds times points."""
        return int(np.prod(self.shape))

    def take(self, taken: list[int]) -> tuple[np.ndarray, dict[str, Any], dict[str, Any]]:
        """Seeds, learning rates and swept scales of some of them."""
        points = self.trainings // self.seeds
        seed, point = np.divmod(np.asarray(taken), points)
        rates = {name: np.broadcast_to(rate, points)[point] for name, rate in self.rates.items()}
        return seed, rates, {name: values[point] for name, values in self.scales.items()}


@dataclass(frozen=True)
class Job:
    """All trainings of one network: one program, in chunks.

    Attributes:
        size: trainings a chunk, and how many of those run as one batch.
    """

    plan: Plan
    key: Array
    points: Points
    data: Examples
    test: Examples | None
    size: tuple[int, ...]

    def arguments(self, taken: list[int]) -> tuple[Any, ...]:
        """What the program is called with for some of the trainings."""
        seed, rates, swept = self.points.take(taken)
        fixed = Scales(**self.points.fixed)
        return jax.tree.map(jnp.asarray, (self.key, seed, rates, Scales(**swept), fixed, self.data, self.test))

    def pieces(self) -> list[tuple[str, Callable[[], runner.Arrays]]]:
        """The chunks: their names, and what makes them."""
        made = runner.chunks(self.points.trainings, self.size[0])
        names = (f"depth-{self.plan.task.network.depth:05d}-{i:05d}" for i in itertools.count())
        return [(name, functools.partial(self.piece, *chunk)) for name, chunk in zip(names, made, strict=False)]

    def piece(self, taken: list[int], new: int) -> runner.Arrays:
        """One chunk, trained."""
        with jax.enable_x64(self.plan.task.dtype == "float64"):
            arguments = self.arguments(taken)
            leaves, tree = jax.tree.flatten(arguments)
            shapes = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in leaves)
            found = _program(self.plan, self.size[1], tree, shapes)()(*arguments)
            return {name: np.asarray(a)[:new] for name, a in found.items()}


@functools.cache
def _program(plan: Plan, together: int, tree: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> runner.Once:
    """The program of a chunk, compiled by the first thread that wants it while the others go on with their own."""
    return runner.Once(lambda: _chunk.lower(plan, together, *jax.tree.unflatten(tree, shapes)).compile())


@functools.partial(jax.jit, static_argnames=("plan", "together"))
def _chunk(
    plan: Plan,
    together: int,
    key: Array,
    seeds: Array,
    rates: dict[str, Array],
    swept: Scales,
    fixed: Scales,
    data: Examples,
    test: Examples | None,
) -> dict[str, Array]:
    def one(point: tuple[Array, dict[str, Array], Scales]) -> dict[str, Array]:
        seed, rates, swept = point
        scales = Scales._of({**fixed, **swept})
        return _kept(trained(plan, jax.random.fold_in(key, seed), scales, rates, data, test))

    # One after the other where a single training fills a core; more of them only move data in and out of its caches.
    return lax.map(one, (seeds, rates, swept), batch_size=together if together > 1 else None)


def _kept(training: Training) -> dict[str, Array]:
    looks = training.looks
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "log_gradient")
    of_all = {"loss": training.loss, "first_nonfinite": training.first_nonfinite}
    return of_all | {name: getattr(looks, name) for name in names}


def _size(plan: Plan, points: Points, memory: int, workers: int) -> tuple[int, int]:
    """Trainings a chunk, and how many of those run as one batch."""
    network, task = plan.task.network, plan.task
    drawn = jax.eval_shape(functools.partial(init, network=network), jax.random.key(0))
    weights = sum(leaf.size for leaf in trainable(drawn).values())
    units = _units(network) * task.batch_size // task.lot
    fitting = runner.chunk_size(points.trainings, 8 * (6 * weights + 6 * units), memory)
    together = min(fitting, _together(units // (network.depth + 1)))
    cost = 6 * weights * task.batch_size * plan.num_steps
    share = -(-points.trainings // workers)
    return min(share, together * max(1, int(WORK / cost / together))), together


def _units(network: Network) -> int:
    """Units of all its states together."""
    sizes = [int(np.prod(shape)) for shape in state_shapes(network)]
    depths = [1, *(stage.depth for stage in network.stages)]
    return sum(size * depth for size, depth in zip(sizes, depths, strict=True))


def _together(units: int) -> int:
    """How many trainings of that many units a layer (of all examples) to run as one batch."""
    if jax.default_backend() != "cpu":
        return 2**30 // units
    return max(1, CACHED // units)


# --- the edge -------------------------------------------------------------------------------------------------------


def _checked_networks(network: Network | Sequence[Network]) -> list[Network]:
    networks = [network] if isinstance(network, Network) else list(network)
    depths = [one.depth for one in networks]
    if not networks or len(set(depths)) < len(depths):
        raise ValueError(f"network must be one, or several of different depth, got depths {depths}")
    return networks


def _axis(group: str) -> str:
    """The name of the axis of a group's learning rate."""
    return GROUP + group if group else "learning_rate"


def _settings(jobs: list[Job], key: Array) -> dict[str, Any]:
    """All that a result depends on, as plain JSON values."""
    plan, points, (data, test) = jobs[0].plan, jobs[0].points, (jobs[0].data, jobs[0].test)
    fixed = {_axis(name): float(rate) for name, rate in points.rates.items() if not np.ndim(rate)}
    about = {name: getattr(plan.task, name) for name in ("batch_size", "loss", "evaluate", "dtype")}
    return provenance(
        plan.task.network,
        key,
        networks=[repr(job.plan.task.network) for job in jobs],
        optimizer=plan.optimizer if isinstance(plan.optimizer, str) else "own",
        schedule=plan.schedule if isinstance(plan.schedule, str) else "own",
        update=_digest_of_update(plan),
        num_steps=plan.num_steps,
        record=list(plan.record),
        gradients=plan.gradients,
        **about,
        seeds=points.seeds,
        axes={name: values.tolist() for name, values in points.grid.items()},
        fixed=fixed | {name: np.asarray(value).tolist() for name, value in points.fixed.items()},
        data=_digest(*data),
        test=_digest(*test) if test is not None else None,
    )


def _digest(*arrays: ArrayLike) -> str:
    whole = hashlib.sha256()
    for a in map(np.asarray, arrays):
        whole.update(f"{a.shape} {a.dtype}".encode() + a.tobytes())
    return whole.hexdigest()[:16]


def _digest_of_update(plan: Plan) -> str:
    """What tells one optimizer from another, even where both are functions: the program of an update."""
    drawn = trainable(jax.eval_shape(functools.partial(init, network=plan.task.network), jax.random.key(0)))

    def update(rates: dict[str, Array], leaves: dict[str, Array]) -> Any:
        optimizer = made(plan, rates, leaves)
        return optimizer.update(leaves, optimizer.init(leaves), leaves)

    program = jax.make_jaxpr(update)(dict.fromkeys(plan.groups, 1.0), drawn)
    text = re.sub(r"0x[0-9a-f]+", "", str(program))
    return _digest(np.frombuffer(text.encode(), np.uint8), *program.consts)


def _assembled(
    jobs: list[Job], found: dict[str, runner.Arrays], single: bool, settings: dict[str, Any]
) -> TrainingSweep:
    """The pieces as one result."""
    deepest = max(job.plan.task.network.depth for job in jobs)
    each = []
    for job in jobs:
        pieces = [found[name] for name, _ in job.pieces()]
        whole = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        whole["log_gradient"] = _padded(whole["log_gradient"], deepest + 1)
        each.append({name: a.reshape(*job.points.shape, *a.shape[1:]) for name, a in whole.items()})
    arrays = each[0] if single else {name: np.stack([one[name] for one in each], axis=1) for name in each[0]}
    grid = jobs[0].points.grid
    axes = grid if single else {"depth": np.asarray([job.plan.task.network.depth for job in jobs]), **grid}
    return TrainingSweep(
        axes, np.asarray(jobs[0].plan.record), **arrays, fixed=settings.pop("fixed"), provenance=settings
    )


def _padded(a: np.ndarray, length: int) -> np.ndarray:
    """NaN behind the end of the last axis."""
    return np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, length - a.shape[-1])], constant_values=np.nan)
