"""The sweep: one measurement of networks, at every point of a grid of scales, for every seed.

A seed's draw is made once and shared by the whole grid, so that a layer is one matrix product for all of it; every
layer comes out of one pass; one compiled program serves all seeds, pieces and later grids of a network.
"""

import dataclasses
import difflib
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from vgjax.checks import ArrayLike, RandomKey, kinds, known, nan_is_data, positive_integer, short
from vgjax.ensembles import runner
from vgjax.ensembles.fingerprint import digest, digest_of_program, digest_of_text, options_of
from vgjax.ensembles.grid import Case, Grid, Networks, cases_of, grid_of
from vgjax.ensembles.measurement import Arrays, Measurement
from vgjax.ensembles.measurements import gains
from vgjax.ensembles.result import Result, describe_machine
from vgjax.files import disk_size
from vgjax.initializers import Scales
from vgjax.memory import MEMORY, chunks, of_machine
from vgjax.networks.layers import state_sizes
from vgjax.networks.network import Network
from vgjax.version import VERSION

LEADING = ("seed", "example")
MEASUREMENTS = (
    "gains",
    "gradients",
    "naive_readings",
    "correlations",
    "spectra",
    "lyapunov",
    "frobenius",
    "first_steps",
    "trainings",
)
"""Names that a text in place of a measurement may have meant, those of later wings too."""


# A string is told which one it means.
_Measure = Annotated[Measurement | str, "a measurement such as vgjax.gains()"]


@kinds
@nan_is_data
def sweep(
    network: Networks,
    *inputs: ArrayLike,
    key: RandomKey,
    measure: _Measure | None = None,
    seeds: int = 8,
    scales: Scales | None = None,
    leading: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    memory: int = MEMORY,
    workers: int | None = None,
    progress: bool | None = None,
    **axes: Any,
) -> Result:
    """One measurement at every point of a grid of scales, for every seed and every network.

    Seed s draws from ``fold_in(key, s)``, the same parameters for every measurement: those of
    ``init(jax.random.split(jax.random.fold_in(key, s))[0], network)``. One compilation serves all seeds and pieces, and
    a second grid of the same size.

    Args:
        network: one; or several, an axis ``network`` of the result: a list, or a dict by name.
        *inputs: what the measurement reads, after parameters and scales: one x for `gains`, x and y for `gradients`, x1
            and x2 for `correlations`, none for `trainings`.
        key: `jax.random.key`.
        measure: what is measured; left out, `gains`.
        seeds: independent draws.
        scales: those that stay fixed, as for `forward`.
        leading: what a leading axis of the inputs stands for: ``"seed"``: one input for each seed; ``"example"``: a
            batch, an axis ``example`` of the result.
        folder: where finished pieces are kept; called again with the same arguments after it was stopped, it goes on
            from there and gives the same result.
        memory: budget in bytes for one piece of the grid.
        workers: pieces done at once; default: the cores of this process where a piece does not fill them alone.
        progress: a bar on standard error, one step a piece; None shows it on a terminal only.
        **axes: the grid: the name of a scale (or of what else the measurement takes: ``learning_rate``) with its
            values, shape ``(points,)``; a plain number stays fixed. Schedules of a scale along the layers, shape
            ``(points, depth)`` or a list of numbers and schedules, are counted: an axis ``sigma_w_schedule`` with the
            coordinate ``sigma_w``.

    Returns:
        `Result`, with dimensions (network, seed, *axes) and those of the measurement.

    Raises:
        ValueError: an unknown or forbidden scale, an empty grid, a count that is not a whole number above 0, inputs
            that do not fit the network or whose leading axis is not named, a result that no machine holds, a folder of
            another run, or one for a program that calls back into Python (`jax.pure_callback`).
    """
    measure = gains() if measure is None else measure
    if not isinstance(measure, Measurement):
        near = difflib.get_close_matches(measure, MEASUREMENTS, n=1) if isinstance(measure, str) else []
        hint = f"; did you mean vgjax.{near[0]}()?" if near else ""
        raise ValueError(f"measure must be a measurement such as vgjax.gains(), got {short(measure)}{hint}")
    seeds, memory = positive_integer("seeds", seeds), positive_integer("memory", memory, 2**62)
    fixed = Scales() if scales is None else scales
    cases, many = cases_of(network), not isinstance(network, (Network, Case))
    grids = [grid_of(case, measure, fixed, axes) for case in cases.values()]
    _check_size(cases, grids, measure, seeds, folder)
    jobs = [
        _job(name, case, measure, grid, inputs, key, seeds, leading)
        for (name, case), grid in zip(cases.items(), grids, strict=True)
    ]
    parallel = measure.parallel and jax.default_backend() == "cpu"
    workers = (runner.cores() if parallel else 1) if workers is None else positive_integer("workers", workers)
    with measure.computing(jobs[0].network):
        layout = [list(job.chunk(memory, workers)) for job in jobs]
        settings, checkpoint = _settings(jobs, key, seeds), None
        if folder is not None:
            checkpoint = runner.Checkpoint(folder, {**settings, "computed": _computed(jobs)}, layout)
            layout = checkpoint.layout
            jobs = [dataclasses.replace(job, finish_last=not _ours(job.measure)) for job in jobs]
        jobs = [dataclasses.replace(job, size=tuple(size)) for job, size in zip(jobs, layout, strict=True)]
        pieces = runner.run(
            _in_turn(jobs, workers), measure.name, checkpoint=checkpoint, workers=workers, show=progress
        )
    return _assembled(jobs, pieces, many, {**settings, "chunks": layout})


# --- the work of one network ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """All that is measured of one network.

    Attributes:
        name: of the network.
        network, scales: what is drawn, and the scales of its own.
        measure: what is measured of it.
        grid: the points.
        inputs: for each seed.
        batch: whether they have an axis of examples.
        key, seeds: of the draws.
        size: points a piece, and points a batch.
        finish_last: whether pieces are kept as the program made them, and finished when all are there: what a user's
            code does on the host has no fingerprint.
    """

    name: str
    network: Network
    scales: Mapping[str, Any]
    measure: Measurement
    grid: Grid
    inputs: list[tuple[Any, ...]]
    batch: bool
    key: Array
    seeds: int
    size: tuple[int, ...] = (1, 1)
    finish_last: bool = False

    def chunk(self, memory: int, workers: int) -> tuple[int, int]:
        """Points a piece and points a batch, if every example of a point takes its share of the memory."""
        examples = len(self.inputs[0][0]) if self.batch else 1
        return self.measure.chunk(self.network, self.grid.points, max(1, memory // examples), workers)

    def pieces(self, number: int, workers: int) -> Iterator[tuple[str, Callable[[], Arrays]]]:
        """The pieces: their names, and what makes them."""
        drawn = functools.lru_cache(maxsize=workers)(self.draw)  # a seed's pieces come one behind the other
        for seed in range(self.seeds):
            for i, (taken, new) in enumerate(chunks(self.grid.points, self.size[0])):
                yield f"{number:04d}-{seed:05d}-{i:05d}", functools.partial(self.piece, drawn, seed, taken, new)

    def draw(self, seed: int) -> Any:
        """What is drawn once a seed."""
        return self.measure.draw(jax.random.fold_in(self.key, np.uint32(seed)), self.network)

    def piece(self, drawn: Callable[[int], Any], seed: int, taken: list[int], new: int) -> Arrays:
        """One piece, measured and, unless that comes last, finished."""
        arguments = self.arguments(drawn(seed), self.inputs[seed], taken)
        leaves, tree = jax.tree.flatten(arguments)
        shapes = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in leaves)
        switches = tuple(runner.switches().items())
        program = _program(self.measure.compiled_for(), self.batch, self.size[1], tree, shapes, switches)()
        found = {name: _numpy(a)[:new] for name, a in flat(program(*arguments)).items()}
        return found if self.finish_last else self.finished(seed, found)

    def finished(self, seed: int, found: Arrays) -> Arrays:
        """What becomes of a piece on the host."""
        return self.measure.finish(found, f" of seed {seed}")

    def arguments(self, drawn: Any, inputs: tuple[Any, ...], taken: list[int]) -> tuple[Any, ...]:
        """What the program is called with for some of the points."""
        swept, numbers = self.grid.take(taken)
        numbers = {**{n: np.broadcast_to(v, len(taken)) for n, v in self.grid.numbers.items()}, **numbers}
        fixed = Scales(**self.grid.scales)
        rest = jax.device_put((fixed, Scales(**swept), numbers, np.arange(len(taken)), inputs))
        return (drawn, *rest)


def _check_size(
    cases: Mapping[str, Case],
    grids: list[Grid],
    measure: Measurement,
    seeds: int,
    folder: str | os.PathLike[str] | None,
) -> None:
    """Refuse a result that no machine holds, before anything of its length is made."""
    numbers = 0
    for case, grid in zip(cases.values(), grids, strict=True):
        lengths = {"layer": case.network.depth + 1, "block": case.network.depth}
        of_one = max(math.prod(lengths.get(dim, 1) for dim in dims) for dims in case.adapt(measure).dims.values())
        numbers += seeds * grid.points * of_one
    limits = {"the memory of this machine": of_machine()}
    if folder is not None:
        limits["the disk of the folder"] = disk_size(folder)
    for where, size in limits.items():
        if 4 * numbers > size:
            raise ValueError(
                f"a sweep must give a result that fits into {where}, {size / 2**30:.3g} GiB, got {seeds:.3g} seeds of "
                f"{sum(grid.points for grid in grids):.3g} points, {4 * numbers / 2**30:.3g} GiB at least"
            )


def _job(
    name: str,
    case: Case,
    measure: Measurement,
    grid: Grid,
    inputs: tuple[ArrayLike, ...],
    key: Array,
    seeds: int,
    leading: str | None,
) -> Job:
    """The inputs of every seed, checked."""
    adapted = case.adapt(measure)
    if leading is not None:
        known("leading", leading, LEADING)
    if leading == "seed":
        for x in inputs:
            if np.ndim(x) == 0 or len(np.asarray(x)) != seeds:
                raise ValueError(f"inputs must be one for each of the {seeds} seeds, got shape {np.shape(x)}")
    each = [tuple(np.asarray(x)[seed] for x in inputs) if leading == "seed" else inputs for seed in range(seeds)]
    checked = [adapted.check(case.network, one) for one in (each if leading == "seed" else each[:1])]
    checked = checked if leading == "seed" else checked * seeds
    batch = checked[0][0]
    if batch and leading != "example":
        size, shape = len(np.asarray(checked[0][1][0])), case.network.input_shape
        raise ValueError(
            f"x must have shape {shape}, or its leading axis of {size} must be named: leading='seed' for one input a "
            f"seed, leading='example' for a batch"
        )
    return Job(name, case.network, case.scales, adapted, grid, [one for _, one in checked], batch, key, seeds)


@functools.lru_cache(maxsize=64)  # a compiled program holds memory maps, of which a process has but 65,530
def _program(
    measure: Measurement, batch: bool, together: int, tree: Any, shapes: tuple[jax.ShapeDtypeStruct, ...], _: Any
) -> runner.Once:
    """The program of a piece, compiled by the first thread that wants it while the others go on with their own; of
    JAX's settings at that time, too."""
    arguments = jax.tree.unflatten(tree, shapes)
    return runner.Once(lambda: _measure_points.lower(measure, batch, together, *arguments).compile())


@functools.partial(jax.jit, static_argnames=("measure", "batch", "together"))
def _measure_points(
    measure: Measurement,
    batch: bool,
    together: int,
    drawn: Any,
    fixed: Scales,
    swept: Scales,
    numbers: dict[str, Array],
    index: Array,
    inputs: tuple[Array, ...],
) -> dict[str, Any]:
    """One draw at many points, with a leading axis of points."""

    def at(point: tuple[Scales, dict[str, Array], Array]) -> dict[str, Any]:
        scales = Scales._of({**fixed, **point[0]})
        if batch:
            return measure.over_examples(drawn, scales, point[1], *inputs)[0]
        return measure.measure(drawn, scales, point[1], *inputs)

    points = (swept, numbers, index)
    if len(index) == 1:  # as the call of one network would be: no batch axis anywhere
        return jax.tree.map(lambda a: a[None], at(jax.tree.map(lambda a: a[0], points)))
    if together >= len(index):
        return jax.vmap(at)(points)
    # One after the other where a single point fills a core, or where its decompositions do not gain from a batch.
    return lax.map(at, points, batch_size=together if together > 1 else None)


def _in_turn(jobs: list[Job], workers: int) -> dict[str, Callable[[], Arrays]]:
    """A piece of every network in turn, so that their programs are compiled side by side; the deepest first."""
    deepest_first = sorted(enumerate(jobs), key=lambda job: -job[1].network.depth)
    rounds = itertools.zip_longest(*(job.pieces(i, workers) for i, job in deepest_first))
    return dict(piece for pieces in rounds for piece in pieces if piece is not None)


# --- the result -----------------------------------------------------------------------------------------------------


def flat(tree: Mapping[str, Any]) -> Arrays:
    """Nested dicts of arrays as one, by names with dots; a Flax path's "/" is one too."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(tree))
    names = ("/".join(str(step.key) for step in path).replace("/", ".") for path, _ in leaves)
    return {name: leaf for name, (_, leaf) in zip(names, leaves, strict=True)}


def _numpy(a: Any) -> np.ndarray:
    """An array as files can hold it: NumPy has no bfloat16 and its like, and float32 holds them exactly."""
    a = np.asarray(a)
    return a.astype(np.float32) if a.dtype.kind == "V" else a


def _assembled(jobs: list[Job], pieces: dict[str, Arrays], many: bool, settings: dict[str, Any]) -> Result:
    """The pieces as one result: of several networks, the largest of each dimension, NaN where one does not reach."""
    whole = [_whole(job, i, pieces) for i, job in enumerate(jobs)]
    order = list(jobs[0].measure.dims)
    found = dict.fromkeys(name for each in whole for name in each)
    names = sorted(found, key=lambda name: order.index(name.partition(".")[0]))
    dims = {
        name: next(_dims(job, name, each[name]) for job, each in zip(jobs, whole, strict=True) if name in each)
        for name in names
    }
    arrays = {name: _stacked([each.get(name) for each in whole]) if many else whole[0][name] for name in names}
    first = jobs[0]
    coordinates = first.grid.schedules
    for job in jobs:  # of several networks the longest
        for dim, values in job.measure.coordinates(job.network).items():
            coordinates[dim] = max(coordinates.get(dim, values), values, key=len)
    fixed = {name: np.asarray(v).tolist() for name, v in {**first.grid.scales, **first.grid.numbers}.items()}
    return Result(
        measure=first.measure.name,
        axes=first.grid.labels,
        arrays=arrays,
        dims=dims,
        coordinates=coordinates,
        networks={job.name: job.network for job in jobs},
        fixed={name: value for name, value in fixed.items() if not many or name not in first.scales},
        provenance=settings,
    )


def _whole(job: Job, number: int, pieces: dict[str, Arrays]) -> Arrays:
    """All of one network's pieces, with leading dimensions (seed, *axes)."""
    mine = [pieces[name] for name, _ in job.pieces(number, 1)]
    if job.finish_last:
        each = len(mine) // job.seeds
        mine = [job.finished(i // each, piece) for i, piece in enumerate(mine)]
    shape = (job.seeds, *job.grid.shape)
    return {n: np.concatenate([p[n] for p in mine]).reshape(*shape, *mine[0][n].shape[1:]) for n in mine[0]}


def _dims(job: Job, name: str, a: np.ndarray) -> tuple[str, ...]:
    """Names of a variable's dimensions behind seed and axes."""
    dims = job.measure.dims[name.partition(".")[0]]
    behind = a.ndim - 1 - len(job.grid.shape)
    return ("example", *dims) if behind == len(dims) + 1 else dims[:behind]


def _stacked(arrays: list[np.ndarray | None]) -> np.ndarray:
    """One a network along a new first axis."""
    there = [a for a in arrays if a is not None]
    if len({a.ndim for a in there}) > 1:
        raise ValueError("networks of a sweep must be alike in what they take as one input, got batches and examples")
    shape = tuple(max(sizes) for sizes in zip(*(a.shape for a in there), strict=True))
    if all(a is not None and a.shape == shape for a in arrays):
        return np.stack(there)
    whole = np.full((len(arrays), *shape), np.nan, np.result_type(np.float32, *(a.dtype for a in there)))
    for row, a in zip(whole, arrays, strict=True):
        if a is not None:
            row[tuple(slice(size) for size in a.shape)] = a
    return whole


def _settings(jobs: list[Job], key: Array, seeds: int) -> dict[str, Any]:
    """Where a result comes from, as plain JSON values."""
    options = {job.name: options_of(job.measure) for job in jobs}
    shared = options[jobs[0].name]
    key_data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return {
        "vgjax": VERSION,
        **describe_machine(),
        "options": shared if all(each == shared for each in options.values()) else options,
        "networks": [repr(job.network) for job in jobs],
        "scales": [{name: np.asarray(v).tolist() for name, v in job.scales.items()} for job in jobs],
        "state_size": int(state_sizes(jobs[0].network)[-1]),
        "key": np.asarray(key_data).tolist(),
        "seeds": seeds,
        "axes": {name: values.tolist() for name, values in jobs[0].grid.axes.items()},
        "fixed": {name: np.asarray(v).tolist() for name, v in {**jobs[0].grid.scales, **jobs[0].grid.numbers}.items()},
        "inputs": digest(*(x for job in jobs for one in job.inputs for x in one)),
    }


def _computed(jobs: list[Job]) -> str:
    """A fingerprint of all that is computed: what tells two functions of one name apart."""
    parts = []
    for job in jobs:

        def program(key: Array, inputs: tuple[Array, ...], job: Job = job) -> Any:
            drawn = job.measure.draw(key, job.network)
            return _measure_points(job.measure.compiled_for(), job.batch, 1, *job.arguments(drawn, inputs, [0]))

        given = {**job.grid.axes, **job.grid.scales, **job.grid.numbers}
        parts += [digest_of_program(jax.make_jaxpr(program)(job.key, job.inputs[0])), *given, digest(*given.values())]
    return digest_of_text(" ".join(parts))


def _ours(measure: Measurement) -> bool:
    """Whether all code of a measurement, and of one inside it, is the library's, known by its version."""
    all_of_it = [measure, *(each for each in vars(measure).values() if isinstance(each, Measurement))]
    return all(type(each).__module__.partition(".")[0] == __name__.partition(".")[0] for each in all_of_it)
