"""The work of one network in a sweep: what a piece of it is, the program that makes it, and how it travels.

A seed's draw is made once and shared by all its pieces; one compiled program serves all of them, in this process or in
another one's, on one device or on all.
"""

import functools
import hashlib
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vgjax import memory
from vgjax.ensembles.assembly import Arrays, Slot
from vgjax.ensembles.fingerprint import digest, digest_of_program, digest_of_text
from vgjax.ensembles.grid import Grid
from vgjax.ensembles.measurement import Measurement
from vgjax.ensembles.result import describe_machine
from vgjax.ensembles.runner import Failed, Once, Refused, switched, switches
from vgjax.initializers import Scales
from vgjax.networks.network import Network
from vgjax.version import VERSION

AXIS = "points"
"""The axis of a mesh along which points are laid, where it has several."""


@dataclass(frozen=True)
class Job:
    """All that is measured of one network.

    Attributes:
        name: of the network.
        network, scales: what is drawn, and the scales of its own.
        measure: what is measured of it.
        grid: the points.
        inputs: by seed; one and the same object where they are the same.
        batch: whether they have an axis of examples.
        key, seeds: of the draws.
        size: points a piece, and points a batch.
        finish_last: whether pieces are kept as the program made them, and finished when all are there: what a user's
            code does on the host has no fingerprint.
        mesh: the devices that share the points of a piece; None for the one that JAX computes on.
    """

    name: str
    network: Network
    scales: Mapping[str, Any]
    measure: Measurement
    grid: Grid
    inputs: list[tuple[Any, ...]] | dict[int, tuple[Any, ...]]
    batch: bool
    key: Array
    seeds: int
    size: tuple[int, ...] = (1, 1)
    finish_last: bool = False
    mesh: Mesh | None = None

    def chunk(self, budget: int, workers: int) -> tuple[int, int]:
        """Points a piece and points a batch, if every example of a point takes its share of the memory."""
        examples = len(self.inputs[0][0]) if self.batch else 1
        return self.measure.chunk(self.network, self.grid.points, max(1, budget // examples), workers)

    def draw(self, seed: int) -> Any:
        """What is drawn once a seed, on every device."""
        drawn = self.measure.draw(jax.random.fold_in(self.key, np.uint32(seed)), self.network)
        return drawn if self.mesh is None else jax.device_put(drawn, NamedSharding(self.mesh, PartitionSpec()))

    def piece(self, drawn: Callable[[int], Any], seed: int, chunk: int) -> Arrays:
        """One piece, measured and, unless that comes last, finished."""
        taken, new = memory.chunk(self.grid.points, self.size[0], chunk)
        share = 1 if self.mesh is None else self.mesh.shape[axis_of(self.mesh)]
        taken += taken[-1:] * (-len(taken) % share)  # as many for every device
        arguments = self.arguments(drawn(seed), self.inputs[seed], taken)
        leaves, tree = jax.tree.flatten(arguments)
        shapes = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=self._sharding(a)) for a in leaves)
        compiled = _program(
            self.measure.compiled_for(), self.batch, self.size[1], self.mesh, tree, shapes, tuple(switches().items())
        )
        found = {name: _numpy(a)[:new] for name, a in flat(compiled()(*arguments)).items()}
        return found if self.finish_last else self.finished(seed, found)

    def finished(self, seed: int, found: Arrays) -> Arrays:
        """What becomes of a piece on the host."""
        return self.measure.finish(found, f" of seed {seed}")

    def arguments(self, drawn: Any, inputs: tuple[Any, ...], taken: list[int]) -> tuple[Any, ...]:
        """What the program is called with for some of the points."""
        swept, numbers = self.grid.take(taken)
        numbers = {**{n: np.broadcast_to(v, len(taken)) for n, v in self.grid.numbers.items()}, **numbers}
        of_points, shared = (Scales(**swept), numbers, np.arange(len(taken))), (Scales(**self.grid.scales), inputs)
        if self.mesh is None:
            of_points, shared = jax.device_put((of_points, shared))
        else:
            each = NamedSharding(self.mesh, PartitionSpec(axis_of(self.mesh)))
            of_points = jax.device_put(of_points, each)
            shared = jax.device_put(shared, NamedSharding(self.mesh, PartitionSpec()))
        return drawn, shared, of_points

    def _sharding(self, a: Any) -> Any:
        return None if self.mesh is None else a.sharding

    def computed(self) -> str:
        """A fingerprint of all that is computed: what tells two functions of one name apart."""
        alone = replace(self, mesh=None)

        def program(key: Array, inputs: tuple[Array, ...]) -> Any:
            drawn = self.measure.draw(key, self.network)
            return _measure_points(
                self.measure.compiled_for(), self.batch, 1, None, *alone.arguments(drawn, inputs, [0])
            )

        given = {**self.grid.axes, **self.grid.scales, **self.grid.numbers}
        traced = digest_of_program(jax.make_jaxpr(program)(self.key, self.inputs[0]))
        return digest_of_text(" ".join([traced, *given, digest(*given.values())]))


# --- the program ----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)  # a compiled program holds memory maps, of which a process has but 65,530
def _program(
    measure: Measurement,
    batch: bool,
    together: int,
    mesh: Mesh | None,
    tree: Any,
    shapes: tuple[jax.ShapeDtypeStruct, ...],
    _: Any,
) -> Once:
    """The program of a piece, compiled by the first thread that wants it while the others go on with their own; of
    JAX's settings at that time, too."""
    arguments = jax.tree.unflatten(tree, shapes)
    return Once(lambda: _measure_points.lower(measure, batch, together, mesh, *arguments).compile())


@functools.partial(jax.jit, static_argnames=("measure", "batch", "together", "mesh"))
def _measure_points(
    measure: Measurement,
    batch: bool,
    together: int,
    mesh: Mesh | None,
    drawn: Any,
    shared: tuple[Scales, tuple[Array, ...]],
    points: tuple[Scales, dict[str, Array], Array],
) -> dict[str, Any]:
    """One draw at many points, with a leading axis of points."""
    one = functools.partial(_on_one_device, measure, batch, together)
    if mesh is None:
        return one(drawn, shared, points)
    # Every device has a program of its own: left to the compiler, loops over all points and conditions that ask all of
    # them (a batched `while_loop`) would wait for each other at every step.
    everywhere, apart = PartitionSpec(), PartitionSpec(axis_of(mesh))
    return jax.shard_map(one, mesh=mesh, in_specs=(everywhere, everywhere, apart), out_specs=apart, check_vma=False)(
        drawn, shared, points
    )


def _on_one_device(
    measure: Measurement,
    batch: bool,
    together: int,
    drawn: Any,
    shared: tuple[Scales, tuple[Array, ...]],
    points: tuple[Scales, dict[str, Array], Array],
) -> dict[str, Any]:
    fixed, inputs = shared

    def at(point: tuple[Scales, dict[str, Array], Array]) -> dict[str, Any]:
        scales = Scales._of({**fixed, **point[0]})
        if batch:
            return measure.over_examples(drawn, scales, point[1], *inputs)[0]
        return measure.measure(drawn, scales, point[1], *inputs)

    count = len(points[2])
    if count == 1:  # as the call of one network would be: no batch axis anywhere
        return jax.tree.map(lambda a: a[None], at(jax.tree.map(lambda a: a[0], points)))
    if together >= count:
        return jax.vmap(at)(points)
    # One after the other where a single point fills a core, or where its decompositions do not gain from a batch.
    return lax.map(at, points, batch_size=together if together > 1 else None)


def axis_of(mesh: Mesh) -> str:
    """The axis along which points are laid.

    Raises:
        ValueError: there are several and none is called ``points``.
    """
    if AXIS in mesh.axis_names:
        return AXIS
    if len(mesh.axis_names) != 1:
        raise ValueError(f"mesh must have one axis, or one that is called {AXIS!r}, got axes {mesh.axis_names}")
    return str(mesh.axis_names[0])


def flat(tree: Mapping[str, Any]) -> Arrays:
    """Nested dicts of arrays as one, by names with dots; a Flax path's "/" is one too."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(tree))
    names = ("/".join(str(step.key) for step in path).replace("/", ".") for path, _ in leaves)
    return {name: leaf for name, (_, leaf) in zip(names, leaves, strict=True)}


def _numpy(a: Any) -> np.ndarray:
    """An array as files can hold it: NumPy has no bfloat16 and its like, and float32 holds them exactly."""
    a = np.asarray(a)
    return a.astype(np.float32) if a.dtype.kind == "V" else a


# --- pieces made elsewhere ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packed:
    """A pickled job, known by its digest."""

    digest: str
    content: bytes = field(compare=False, repr=False)


def packed(job: Job) -> Packed:
    """A job that can travel.

    Raises:
        ValueError: it holds what cannot be pickled.
    """
    job = replace(job, mesh=None, inputs={} if _own_inputs(job) else {0: job.inputs[0]})
    dumps, remedy = _pickler()
    try:
        content = dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"executor must get what can be pickled, got {job.name or 'a network'} measured by {job.measure.name} that "
            f"cannot ({error}){remedy}"
        ) from None
    return Packed(hashlib.sha256(content).hexdigest(), content)


def _pickler() -> tuple[Callable[[Any], bytes], str]:
    """Cloudpickle, which takes functions without a name in a module, and those of scripts; without it, what to do."""
    try:
        import cloudpickle
    except ImportError:
        return pickle.dumps, ": install cloudpickle (pip install 'vgjax[pickle]') or define functions in a module"
    return cloudpickle.dumps, ""


def _own_inputs(job: Job) -> bool:
    """Whether every seed has its own."""
    return any(job.inputs[seed] is not job.inputs[0] for seed in range(job.seeds))


def in_other_processes(jobs: list[Job], all_packed: list[Packed]) -> Callable[[Any, Slot, int], Any]:
    """What submits pieces of packed jobs to an executor of other processes.

    What travels is a dict of plain values and bytes, so that a worker of another version can read what it is asked to
    be before it reads anything else. The attempt is in it for engines that remember what they were asked (Dask).
    """
    about = {
        "machine": _computes(),
        "switches": {name: getattr(v, "platform", v) for name, v in switches().items()},  # a device is one of here
    }
    own = [_own_inputs(job) for job in jobs]

    def begin(executor: Any, slot: Slot, attempt: int) -> Any:
        job, of_network = jobs[slot.network], all_packed[slot.network]
        task = {
            **about,
            "digest": of_network.digest,
            "job": of_network.content,
            "seed": slot.seed,
            "chunk": slot.chunk,
            "size": job.size,
            "finish_last": job.finish_last,
            "inputs": job.inputs[slot.seed] if own[slot.network] else None,
            "attempt": attempt,
        }
        return executor.submit(made, task)

    return begin


def made(task: dict[str, Any]) -> Arrays | Failed:
    """The piece of a task, or why there is none: what another process does.

    Raises:
        Refused: it would compute something else, being of another version.
    """
    with switched(task["switches"]), jax.debug_nans(False):
        _check_same(task["machine"], _computes())
        try:
            job, drawn = _unpacked(Packed(task["digest"], task["job"]))
            inputs = {task["seed"]: job.inputs[0] if task["inputs"] is None else task["inputs"]}
            job = replace(job, size=task["size"], finish_last=task["finish_last"], inputs=inputs)
            with job.measure.computing(job.network):
                return job.piece(drawn, task["seed"], task["chunk"])
        except Exception as error:  # not all can travel: of JAX's own, few
            return Failed.of(error, travels=True)


def _check_same(asked: dict[str, Any], worker: dict[str, Any]) -> None:
    differ = [
        f"{name} ({worker.get(name)} there, {value} here)" for name, value in asked.items() if worker.get(name) != value
    ]
    if differ:
        raise Refused(f"a worker must compute as the sweep's own process does, got one of another {', '.join(differ)}")


def _computes() -> dict[str, Any]:
    return {"vgjax": VERSION, **describe_machine()}


@functools.lru_cache(maxsize=64)  # as programs: pieces of many networks come in turn
def _unpacked(packed: Packed) -> tuple[Job, Callable[[int], Any]]:
    """A job and its draws, which a process makes once for all its pieces."""
    job: Job = pickle.loads(packed.content)
    return job, functools.lru_cache(maxsize=1)(job.draw)
