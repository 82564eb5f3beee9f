"""Measurements of networks whose kernels are never drawn (`vgjax.implicit`), for sweeps with ``weights="implicit"``.

Each is the measurement that it stands for with another draw: of a plain stack and one input the sums of its layers,
from which every point of the grid is read; of all else a key, with normals that all points share.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax.ensembles.job import Job
from vgjax.ensembles.measurement import Measurement
from vgjax.ensembles.measurements import Correlations, Gains, Gradients, over_directions
from vgjax.implicit.passes import Undrawn, undrawn
from vgjax.implicit.plans import REMEDY, check_network
from vgjax.implicit.points import gradient_stack, push_stack
from vgjax.implicit.readings import (
    correlate_undrawn,
    gradient_undrawn,
    gradients_undrawn,
    push_each_undrawn,
    push_undrawn,
)
from vgjax.implicit.stacks import Box, DrawnStack, Stack, draw_stack, pieces_needed, stack_of
from vgjax.implicit.sums import GAINS, GRADIENTS, NODES
from vgjax.initializers import Scales
from vgjax.measure.flow import directions
from vgjax.measure.gradients import OF_BATCH
from vgjax.networks.layer import parameter_dtype
from vgjax.networks.network import Network, state_sizes
from vgjax.networks.parameters import two_keys

WEIGHTS = ("drawn", "implicit")

_ERROR: dict[str, tuple[str, ...]] = {"table_error": ()}
"""About the error of ln gain over 100 layers that reading from tables makes; 0 where there are none."""


def without_weights(job: Job) -> Job:
    """A job whose kernels are never drawn.

    Raises:
        ValueError: a measurement, a block, a law or an architecture that needs them.
    """
    measure = job.measure
    if type(measure) not in _DIRECT:
        raise ValueError(
            f"weights='implicit' measures gains, gradients and correlations, got {measure.name}; weights='drawn' "
            f"measures all"
        )
    if getattr(measure, "stream", False):
        raise ValueError(f"weights='implicit' stores no kernels, so stream must be False, got True; {REMEDY}")
    if isinstance(measure, Correlations) and job.batch:
        raise ValueError("weights='implicit' takes one pair of inputs (or one for each seed), got a batch of them")
    check_network(job.network)
    options = {each.name: getattr(measure, each.name) for each in dataclasses.fields(measure) if each.init}  # type: ignore[arg-type]
    tables = _tables(job)
    if tables is None:
        return dataclasses.replace(job, measure=_DIRECT[type(measure)](**options))
    return dataclasses.replace(job, measure=_TABULATED[type(measure)](**options, **tables))


def _tables(job: Job) -> dict[str, Any] | None:
    """The options of a measurement that reads a plain stack's tables; None where they do not apply, or do not pay."""
    measure, network = job.measure, job.network
    stack = stack_of(network)
    inputs = [np.asarray(job.inputs[seed][0], float) for seed in range(job.seeds)]
    # Several rows meet every kernel together; a state of 0 has no direction.
    if stack is None or job.batch or type(measure) not in _TABULATED or getattr(measure, "probes", 1) > 1:
        return None
    if not all(np.any(x) for x in {id(x): x for x in inputs}.values()):
        return None
    box = _box(job, stack, inputs)
    names = GAINS if isinstance(measure, Gains) else GRADIENTS
    pieces = pieces_needed(network, _ends(box), names, parameter_dtype(network.stages[0].spec))
    if pieces is None or (stack.kind == "smooth" and job.grid.points < _WORTH * NODES * pieces):
        return None
    return {"box": box, "pieces": pieces}


_WORTH = 1
"""Points for every node of a table from which on it pays: a node costs about what a point does."""


def _box(job: Job, stack: Stack, inputs: list[np.ndarray]) -> tuple[Any, ...]:
    """`Box` of a grid, as hashable numbers."""
    network, of_scales = job.network, {name: job.grid.axes[name] for name in job.grid.of_scales}
    ends, roots = [], [np.sqrt(np.mean(x**2)) for x in inputs]
    for extreme in (np.min, np.max):
        swept = {name: extreme(np.abs(values), axis=0) for name, values in of_scales.items()}
        completed = network.completed({**job.grid.scales, **swept})
        along = {name: np.broadcast_to(np.abs(np.asarray(v, float)), network.depth) for name, v in completed.items()}
        bias = [along["sigma_b"] * biased for biased in stack.biased]
        first = np.hypot(along[stack.stem_scale][0] * extreme(roots), bias[0][0])
        ends.append((float(first), tuple(along["sigma_w"].tolist()), tuple(bias[1].tolist())))
    return tuple(zip(*ends, strict=True))


# --- any network ----------------------------------------------------------------------------------------------------


def _undrawn(key: Array, network: Network) -> tuple[Undrawn, Array]:
    weights, rest = two_keys(key)
    return undrawn(weights, network), rest


def _with_error(found: dict[str, Any], error: Array | None = None) -> dict[str, Any]:
    return {**found, "table_error": jnp.zeros(()) if error is None else error}


def _shares(size: int, together: int, points: int, workers: int) -> tuple[int, int]:
    share = min(size, max(_LEAST, -(-points // workers)))
    return share, min(together, share)


_LEAST = 64
"""Points that a piece is not cut below."""


@dataclass(frozen=True)
class ImplicitGains(Gains):
    """`gains` without kernels."""

    parallel: ClassVar[bool] = True
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {**Gains.dims, **_ERROR}

    def draw(self, key: Array, network: Network) -> Any:
        """A key, and directions."""
        draw, of_directions = _undrawn(key, network)
        return draw, directions(of_directions, network, self.probes)

    def measure(self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array) -> dict[str, Any]:
        """All directions through the same kernels."""
        return _with_error(over_directions(push_undrawn(drawn[0], scales, inputs[0], drawn[1])))

    def over_examples(
        self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """All examples through the same kernels, each with the same directions."""
        found = over_directions(push_each_undrawn(drawn[0], scales, inputs[0], drawn[1]))
        return _with_error(found, jnp.zeros(len(inputs[0]))), frozenset()

    def bytes_per_point(self, network: Network) -> int:
        """Rows before and behind a layer, and those of what is known of it."""
        return 2 * super().bytes_per_point(network)

    def chunk(self, network: Network, points: int, memory: int, workers: int) -> tuple[int, int]:
        """A share for every core: there is no product that fills them all."""
        return _shares(*super().chunk(network, points, memory, workers), points, workers)


@dataclass(frozen=True)
class ImplicitGradients(Gradients):
    """`gradients` without kernels."""

    parallel: ClassVar[bool] = True
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {**Gradients.dims, **_ERROR}

    def draw(self, key: Array, network: Network) -> Any:
        """Keys."""
        return _undrawn(key, network)

    def measure(self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array) -> dict[str, Any]:
        """As `gradients`."""
        draw, x, y, loss = self.resolved(drawn, inputs, single=True)
        return _with_error(gradient_undrawn(draw, scales, x, y, loss)._asdict())

    def over_examples(
        self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """All examples through the same kernels."""
        draw, x, y, loss = self.resolved(drawn, inputs, single=False)
        found = gradients_undrawn(draw, scales, x, y, loss)._asdict()
        return _with_error(found, jnp.zeros(len(x))), frozenset(OF_BATCH)

    def bytes_per_point(self, network: Network) -> int:
        """All states, and a few rows of a layer."""
        sizes = state_sizes(network)
        return 8 * (2 * int(sizes.sum()) + 24 * int(sizes.max()))

    def chunk(self, network: Network, points: int, memory: int, workers: int) -> tuple[int, int]:
        """As for gains."""
        return _shares(*super().chunk(network, points, memory, workers), points, workers)


@dataclass(frozen=True)
class ImplicitCorrelations(Correlations):
    """`correlations` without kernels."""

    parallel: ClassVar[bool] = True
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {**Correlations.dims, **_ERROR}

    def draw(self, key: Array, network: Network) -> Any:
        """Keys."""
        return _undrawn(key, network)

    def measure(self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array) -> dict[str, Any]:
        """As `correlations`."""
        return _with_error(correlate_undrawn(drawn[0], scales, *inputs)._asdict())


# --- plain stacks ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TabulatedGains(Gains):
    """`gains` of a plain stack, from sums that are made once for a box of scales.

    Attributes:
        box: `vgjax.implicit.stacks.Box`, as nested tuples.
        pieces: of the tables' polynomials.
    """

    box: tuple[Any, ...] = field(repr=False)
    pieces: int

    parallel: ClassVar[bool] = True
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {**Gains.dims, **_ERROR}

    def compiled_for(self) -> Measurement:
        """For any box."""
        return dataclasses.replace(self, box=())

    def draw(self, key: Array, network: Network) -> Any:
        """The sums."""
        return _drawn_stack(key, network, self.box, GAINS, self.pieces)

    def measure(self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array) -> dict[str, Any]:
        """One point."""
        return _with_error(push_stack(drawn[0], scales, inputs[0])._asdict(), drawn[0].error)

    def bytes_per_point(self, network: Network) -> int:
        """Its series."""
        return 8 * 8 * (network.depth + 1)


@dataclass(frozen=True)
class TabulatedGradients(Gradients):
    """`gradients` of a plain stack, from sums that are made once for a box of scales.

    Attributes:
        box, pieces: as for `TabulatedGains`.
    """

    box: tuple[Any, ...] = field(repr=False)
    pieces: int

    parallel: ClassVar[bool] = True
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {**Gradients.dims, **_ERROR}

    def compiled_for(self) -> Measurement:
        """For any box."""
        return dataclasses.replace(self, box=())

    def draw(self, key: Array, network: Network) -> Any:
        """The sums, and a key."""
        return _drawn_stack(key, network, self.box, GRADIENTS, self.pieces)

    def measure(self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array) -> dict[str, Any]:
        """One point."""
        stack, x, y, loss = self.resolved(drawn, inputs, single=True)
        return _with_error(gradient_stack(stack, scales, x, y, loss)._asdict(), stack.error)

    def bytes_per_point(self, network: Network) -> int:
        """Its series, and the sums at every layer."""
        return 8 * 40 * (network.depth + 1)


def _ends(box: tuple[Any, ...]) -> Box:
    parts: list[Any] = [np.asarray(part, float) for part in box]
    return Box(*parts)


def _drawn_stack(
    key: Array, network: Network, box: tuple[Any, ...], names: tuple[str, ...], pieces: int
) -> tuple[DrawnStack, Array]:
    weights, rest = two_keys(key)
    return draw_stack(weights, network, _ends(box), names, pieces, parameter_dtype(network.stages[0].spec)), rest


_DIRECT: dict[type[Measurement], Any] = {
    Gains: ImplicitGains,
    Gradients: ImplicitGradients,
    Correlations: ImplicitCorrelations,
}
_TABULATED: dict[type[Measurement], Any] = {Gains: TabulatedGains, Gradients: TabulatedGradients}
