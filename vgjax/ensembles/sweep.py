"""The sweep: one measurement of networks, at every point of a grid of scales, for every seed.

A seed's draw is made once and shared by the whole grid, so that a layer is one matrix product for all of it; every
layer comes out of one pass; one compiled program serves all seeds, pieces and later grids of a network.
"""

import dataclasses
import difflib
import math
import os
from collections.abc import Mapping
from typing import Annotated, Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from vgjax.checks import ArrayLike, RandomKey, is_whole, kinds, known, nan_is_data, positive_integer, short
from vgjax.ensembles import runner
from vgjax.ensembles.assembly import Outline
from vgjax.ensembles.fingerprint import digest, digest_of_text, options_of
from vgjax.ensembles.folder import PROGRAM, Checkpoint, Status, outline_to_json
from vgjax.ensembles.grid import Case, Grid, Networks, cases_of, grid_of
from vgjax.ensembles.implicit import WEIGHTS, without_weights
from vgjax.ensembles.job import AXIS, Job, axis_of, in_other_processes, packed
from vgjax.ensembles.measurement import Measurement
from vgjax.ensembles.measurements import gains
from vgjax.ensembles.result import Result, describe_machine
from vgjax.ensembles.work import OnError, Work
from vgjax.files import disk_size
from vgjax.initializers import Scales
from vgjax.memory import of_device, of_machine
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


@overload
def sweep(
    network: Networks,
    *inputs: ArrayLike,
    key: RandomKey,
    folder: str | os.PathLike[str],
    part: tuple[int, int],
    **options: Any,
) -> Status:
    """Of a part: how far its folder is."""


@overload
def sweep(network: Networks, *inputs: ArrayLike, key: RandomKey, part: None = None, **options: Any) -> Result:
    """Of the whole: the result."""


@kinds
@nan_is_data
def sweep(
    network: Networks,
    *inputs: ArrayLike,
    key: RandomKey,
    measure: _Measure | None = None,
    seeds: int = 8,
    scales: Scales | None = None,
    weights: str = "drawn",
    leading: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    part: tuple[int, ...] | None = None,
    memory: int | None = None,
    workers: int | None = None,
    executor: Any = None,
    mesh: Mesh | None = None,
    on_error: OnError = "record",
    progress: bool | None = None,
    **axes: Any,
) -> Result | Status:
    """One measurement at every point of a grid of scales, for every seed and every network.

    Seed s draws from ``fold_in(key, s)``, the same parameters for every measurement: those of
    ``init(jax.random.split(jax.random.fold_in(key, s))[0], network)``. One compilation serves all seeds and pieces, and
    a second grid of the same size.

    A piece that raises is tried once more, elsewhere where there is an elsewhere; then its points are NaN, a warning
    names it, ``result.missing_points`` counts them, and all others are done.

    Args:
        network: one; or several, an axis ``network`` of the result: a list, or a dict by name.
        *inputs: what the measurement reads, after parameters and scales: one x for `gains`, x and y for `gradients`, x1
            and x2 for `correlations`, none for `trainings`.
        key: `jax.random.key`.
        measure: what is measured; left out, `gains`.
        seeds: independent draws.
        scales: those that stay fixed, as for `forward`.
        weights: ``"implicit"``: no kernel is drawn. Gains, gradients and correlations of fully connected networks with
            Gaussian or orthogonal kernels, skips and norms included: equal in law to drawn ones at every single point,
            at the price of a few vectors a layer, or, for a grid of a plain stack, of a few numbers. The points of a
            seed then share normals in place of weights, and two measurements of one seed are of two networks.
        leading: what a leading axis of the inputs stands for: ``"seed"``: one input for each seed; ``"example"``: a
            batch, an axis ``example`` of the result.
        folder: where finished pieces are kept; called again with the same arguments after it was stopped, it goes on
            from there and gives the same result. Several processes and machines may write to one at once.
        part: (i, n): do the i-th n-th of the pieces alone, i from 0, and keep them in the folder: for job arrays, whose
            result `vgjax.collect` reads.
        memory: budget in bytes for one piece of the grid; default: 256 MiB, of accelerators a quarter of
            what they have.
        workers: pieces done at once; default: the cores of this process where a piece does not fill them alone. With an
            executor of more than 64 workers, how many it has, so that none of them waits.
        executor: what does the pieces: any `concurrent.futures.Executor` of other processes (that are spawned: JAX does
            not survive a fork), of Dask (``client.get_executor()``), or what has ``submit`` alike. It stays open.
        mesh: the devices along which the points of a piece are laid: one axis, or that called ``points``; default: all
            devices of this process.
        on_error: ``"raise"``: the first piece that fails twice ends the sweep with its error.
        progress: a bar on standard error, one step a piece; None shows it on a terminal and in a notebook.
        **axes: the grid: the name of a scale (or of what else the measurement takes: ``learning_rate``) with its
            values, shape ``(points,)``; a plain number stays fixed. Schedules of a scale along the layers, shape
            ``(points, depth)`` or a list of numbers and schedules, are counted: an axis ``sigma_w_schedule`` with the
            coordinate ``sigma_w``.

    Returns:
        `Result`, with dimensions (network, seed, *axes) and those of the measurement; of a part the `Status` of its
        folder.

    Raises:
        ValueError: an unknown or forbidden scale, an empty grid, a count that is not a whole number above 0, inputs
            that do not fit the network or whose leading axis is not named, a network or a measurement that needs its
            weights drawn, a result that no machine holds, a folder of another run, or one for a program that calls back
            into Python (`jax.pure_callback`), a part that is none or has no folder, an executor for what cannot be
            pickled or whose workers are of another version, a mesh without an axis for points.
        RuntimeError: an executor that has lost its processes.
        Exception: what the pieces raise, if the first of them all do.
    """
    measure = _checked_measure(gains() if measure is None else measure)
    known("weights", weights, WEIGHTS)
    seeds = positive_integer("seeds", seeds)
    part = None if part is None else _checked_part(part, folder)
    mesh = _checked_mesh(mesh, executor)
    memory = _checked_memory(memory, mesh)
    fixed = Scales() if scales is None else scales
    cases, several = cases_of(network), not isinstance(network, (Network, Case))
    grids = [grid_of(case, measure, fixed, axes) for case in cases.values()]
    _check_size(cases, grids, measure, seeds, folder, assembled=part is None)
    jobs = [
        dataclasses.replace(_job(name, case, measure, grid, inputs, key, seeds, leading), mesh=mesh)
        for (name, case), grid in zip(cases.items(), grids, strict=True)
    ]
    jobs = [without_weights(job) for job in jobs] if weights == "implicit" else jobs
    workers = _checked_workers(workers, jobs[0].measure, executor, mesh)
    elsewhere = None if executor is None else [packed(job) for job in jobs]
    with measure.computing(jobs[0].network):
        jobs, outline, checkpoint = _begun(jobs, several, folder, memory, workers * (part[1] if part else 1))
        work = Work(outline, jobs, checkpoint, part, on_error)
        begin = work.here(workers) if elsewhere is None else in_other_processes(jobs, elsewhere)
        work.do(begin, progress, executor=executor, workers=workers)
    work.warn(stacklevel=4)  # of whoever called what `kinds` and `nan_is_data` have wrapped
    return work.result()


# --- what is asked for ----------------------------------------------------------------------------------------------


def _checked_measure(measure: Any) -> Measurement:
    if isinstance(measure, Measurement):
        return measure
    near = difflib.get_close_matches(measure, MEASUREMENTS, n=1) if isinstance(measure, str) else []
    hint = f"; did you mean vgjax.{near[0]}()?" if near else ""
    raise ValueError(f"measure must be a measurement such as vgjax.gains(), got {short(measure)}{hint}")


def _checked_memory(memory: int | None, mesh: Mesh | None) -> int:
    """The budget of a piece: by default of all devices that share it, if each has a memory of its own."""
    if memory is not None:
        return positive_integer("memory", memory, 2**62)
    return of_device() * (1 if mesh is None or mesh.devices.flat[0].platform == "cpu" else mesh.size)


def _checked_part(part: Any, folder: Any) -> tuple[int, int]:
    if len(part) != 2 or not all(map(is_whole, part)) or not 0 <= part[0] < part[1]:
        raise ValueError(f"part must be (i, n) with i from 0 to n - 1, got {tuple(part)}")
    if folder is None:
        raise ValueError(f"part must come with a folder, where its pieces are kept, got {tuple(part)} without one")
    return int(part[0]), int(part[1])


def _checked_mesh(mesh: Mesh | None, executor: Any) -> Mesh | None:
    """The devices that share a piece; None for one alone."""
    if mesh is not None:
        if executor is not None:
            raise ValueError(f"mesh must be left out where an executor's workers have their own devices, got {mesh}")
        axis_of(mesh)
        return mesh
    devices = jax.local_devices()
    if executor is not None or len(devices) == 1 or runner.switches()["jax_default_device"] is not None:
        return None
    return Mesh(np.array(devices), (AXIS,))


def _checked_workers(workers: int | None, measure: Measurement, executor: Any, mesh: Mesh | None) -> int:
    if executor is not None and (isinstance(executor, type) or not callable(getattr(executor, "submit", None))):
        raise ValueError(f"executor must have submit(function, *arguments), got {short(executor)}")
    start = getattr(getattr(executor, "_mp_context", None), "get_start_method", lambda: "")()
    if start == "fork":  # the default on Linux before Python 3.14
        raise ValueError(
            "executor must spawn its processes, in which JAX hangs if they are forked: "
            "ProcessPoolExecutor(mp_context=multiprocessing.get_context('spawn')), got one that forks"
        )
    if workers is not None:
        return positive_integer("workers", workers)
    alone = executor is None and mesh is None
    side_by_side = executor is not None or (alone and measure.parallel and jax.default_backend() == "cpu")
    return runner.cores() if side_by_side else 1


def _check_size(
    cases: Mapping[str, Case],
    grids: list[Grid],
    measure: Measurement,
    seeds: int,
    folder: str | os.PathLike[str] | None,
    assembled: bool,
) -> None:
    """Refuse a result that no machine holds, before anything of its length is made."""
    numbers = 0
    for case, grid in zip(cases.values(), grids, strict=True):
        lengths = {"layer": case.network.depth + 1, "block": case.network.depth}
        of_one = max(math.prod(lengths.get(dim, 1) for dim in dims) for dims in case.adapt(measure).dims.values())
        numbers += seeds * grid.points * of_one
    limits = {"the memory of this machine": of_machine()} if assembled else {}
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


# --- the work -------------------------------------------------------------------------------------------------------


def _begun(
    jobs: list[Job], several: bool, folder: str | os.PathLike[str] | None, memory: int, workers: int
) -> tuple[list[Job], Outline, Checkpoint | None]:
    """The jobs cut into pieces, what their result will be, and the folder, whose earlier run says how they are cut."""
    layout, settings, checkpoint = [list(job.chunk(memory, workers)) for job in jobs], _settings(jobs), None
    outline = _outline(jobs, several, layout, settings)
    if folder is not None:
        computed = digest_of_text(" ".join(job.computed() for job in jobs))
        jobs = [dataclasses.replace(job, finish_last=not _ours(job.measure)) for job in jobs]
        described = outline_to_json(outline, readable=not any(job.finish_last for job in jobs))
        checkpoint = Checkpoint(folder, {**settings, PROGRAM: computed}, layout, described)
        layout = checkpoint.layout
        outline = _outline(jobs, several, layout, settings)
    jobs = [dataclasses.replace(job, size=tuple(size)) for job, size in zip(jobs, layout, strict=True)]
    return jobs, outline, checkpoint


def _outline(jobs: list[Job], several: bool, layout: list[list[int]], settings: dict[str, Any]) -> Outline:
    first = jobs[0]
    coordinates = first.grid.schedules
    for job in jobs:  # of several networks the longest
        for dim, values in job.measure.coordinates(job.network).items():
            coordinates[dim] = max(coordinates.get(dim, values), values, key=len)
    fixed = {name: np.asarray(v).tolist() for name, v in {**first.grid.scales, **first.grid.numbers}.items()}
    return Outline(
        measure=first.measure.name,
        axes=first.grid.labels,
        coordinates=coordinates,
        fixed={name: value for name, value in fixed.items() if not several or name not in first.scales},
        networks={job.name: job.network for job in jobs},
        dims=first.measure.dims,
        seeds=first.seeds,
        sizes=tuple(size for size, _ in layout),
        depths=tuple(job.network.depth for job in jobs),
        provenance={**settings, "chunks": layout, **({} if first.mesh is None else {"devices": first.mesh.size})},
    )


def _settings(jobs: list[Job]) -> dict[str, Any]:
    """Where a result comes from, as plain JSON values."""
    key, options = jobs[0].key, {job.name: options_of(job.measure) for job in jobs}
    shared = options[jobs[0].name]
    key_data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return {
        "vgjax": VERSION,
        **describe_machine(),
        "weights": "implicit" if "table_error" in jobs[0].measure.dims else "drawn",
        "options": shared if all(each == shared for each in options.values()) else options,
        "networks": [repr(job.network) for job in jobs],
        "scales": [{name: np.asarray(v).tolist() for name, v in job.scales.items()} for job in jobs],
        "state_size": int(state_sizes(jobs[0].network)[-1]),
        "key": np.asarray(key_data).tolist(),
        "seeds": jobs[0].seeds,
        "axes": {name: values.tolist() for name, values in jobs[0].grid.axes.items()},
        "fixed": {name: np.asarray(v).tolist() for name, v in {**jobs[0].grid.scales, **jobs[0].grid.numbers}.items()},
        "inputs": digest(*(x for job in jobs for seed in range(job.seeds) for x in job.inputs[seed])),
    }


def _ours(measure: Measurement) -> bool:
    """Whether all code of a measurement, and of one inside it, is the library's, known by its version."""
    all_of_it = [measure, *(each for each in vars(measure).values() if isinstance(each, Measurement))]
    return all(type(each).__module__.partition(".")[0] == __name__.partition(".")[0] for each in all_of_it)
