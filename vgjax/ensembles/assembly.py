"""What a sweep's result will be of, how it is cut into pieces, and how these become one result again."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from vgjax.ensembles.result import FAILED, MISSING, Result
from vgjax.networks.network import Network

Arrays = dict[str, np.ndarray]


class Slot(NamedTuple):
    """Where a piece belongs: a chunk of the grid, of one seed, of one network, each by number."""

    network: int
    seed: int
    chunk: int

    @property
    def name(self) -> str:
        """What its file is called."""
        return f"{self.network:04d}-{self.seed:05d}-{self.chunk:05d}"


@dataclass(frozen=True)
class Outline:
    """All that is known of a result before anything of it is measured.

    Attributes:
        measure, axes, coordinates, fixed: as in `Result`.
        networks: by name, as in `Result`.
        dims: of the measurement's variables, in its order.
        seeds: how many draws.
        sizes: points a piece, of every network.
        depths: of the networks; the deepest is begun first.
    """

    measure: str
    axes: dict[str, np.ndarray]
    coordinates: dict[str, np.ndarray]
    fixed: dict[str, Any]
    networks: dict[str, Network | None]
    dims: Mapping[str, tuple[str, ...]]
    seeds: int
    sizes: tuple[int, ...]
    depths: tuple[int, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def several(self) -> bool:
        """Whether there is a dimension ``network``."""
        return "" not in self.networks

    @property
    def shape(self) -> tuple[int, ...]:
        """Points along each axis."""
        return tuple(len(values) for values in self.axes.values())

    @property
    def points(self) -> int:
        """Of the grid."""
        return math.prod(self.shape)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Pieces a seed, of every network."""
        return tuple(-(-self.points // size) for size in self.sizes)

    @property
    def pieces(self) -> int:
        """How many there are of all."""
        return self.seeds * sum(self.chunks)

    def slots(self, part: tuple[int, int] = (0, 1)) -> Iterator[Slot]:
        """All pieces, or the i-th of n equal parts of them.

        One of every network in turn, so that their programs are compiled side by side, the deepest first; a seed's
        come one behind the other, since they share its draw.
        """
        deepest_first = sorted(range(len(self.sizes)), key=lambda k: -self.depths[k])
        rounds = itertools.zip_longest(*map(self._slots_of, deepest_first))
        in_turn = (slot for slots in rounds for slot in slots if slot is not None)
        return itertools.islice(in_turn, *self._bounds(part))

    def count(self, part: tuple[int, int] = (0, 1)) -> int:
        """How many pieces a part has."""
        first, end = self._bounds(part)
        return end - first

    def _bounds(self, part: tuple[int, int]) -> tuple[int, int]:
        i, n = part
        return i * self.pieces // n, (i + 1) * self.pieces // n

    def _slots_of(self, network: int) -> Iterator[Slot]:
        for seed in range(self.seeds):
            for chunk in range(self.chunks[network]):
                yield Slot(network, seed, chunk)

    def rows(self, slot: Slot) -> slice:
        """The points of a piece, in the order of the flattened grid."""
        size = self.sizes[slot.network]
        return slice(slot.chunk * size, min((slot.chunk + 1) * size, self.points))

    def said(self, slot: Slot) -> str:
        """A piece in words."""
        rows, name = self.rows(slot), [*self.networks][slot.network]
        last = rows.stop - 1
        points = f"points {rows.start} to {last}" if last > rows.start else f"point {last}"
        return f"{f'{name}, ' if name else ''}seed {slot.seed}, {points}"

    def result(
        self,
        arrays: Mapping[str, Any],
        kept: Mapping[str, np.ndarray],
        missing: Iterable[Slot] = (),
        failed: Mapping[Slot, str] | None = None,
    ) -> Result:
        """The result.

        Args:
            arrays: its variables, also such as are not in memory.
            kept: those that it holds.
            missing: pieces that are not there.
            failed: of them those that raised, and what.
        """
        lost = sum(rows.stop - rows.start for rows in map(self.rows, missing))
        errors = {self.said(slot): error for slot, error in (failed or {}).items()}
        not_there = {**({MISSING: lost} if lost else {}), **({FAILED: errors} if errors else {})}
        return Result(
            measure=self.measure,
            axes=self.axes,
            arrays=dict(kept),
            dims={name: self._dims_of(name, a.ndim - self.several - 1 - len(self.shape)) for name, a in arrays.items()},
            coordinates=self.coordinates,
            networks=self.networks,
            fixed=self.fixed,
            provenance={**self.provenance, **not_there},
        )

    def _dims_of(self, name: str, ndim: int) -> tuple[str, ...]:
        """Names of the dimensions of a variable behind network, seed and axes, of which it has ``ndim``."""
        dims = self.dims[name.partition(".")[0]]
        return ("example", *dims) if ndim == len(dims) + 1 else dims[:ndim]


class Assembly:
    """A result in the making: as large as the result will be, whatever the number of pieces, which come in any order.

    Args:
        outline: of the result.
    """

    def __init__(self, outline: Outline):
        self._outline = outline
        self._whole: list[Arrays] = [{} for _ in outline.sizes]
        self._there = [np.zeros((outline.seeds, chunks), bool) for chunks in outline.chunks]

    def put(self, slot: Slot, piece: Arrays) -> None:
        """Put a piece where it belongs."""
        outline, whole = self._outline, self._whole[slot.network]
        for name, a in piece.items():
            if name not in whole:
                whole[name] = np.zeros((outline.seeds, outline.points, *a.shape[1:]), a.dtype)
            whole[name][slot.seed, outline.rows(slot)] = a
        self._there[slot.network][slot.seed, slot.chunk] = True

    def missing(self) -> Iterator[Slot]:
        """What has not come."""
        for network, there in enumerate(self._there):
            yield from (Slot(network, int(seed), int(chunk)) for seed, chunk in np.argwhere(~there))

    def result(self, failed: Mapping[Slot, str] | None = None) -> Result:
        """The result; what is not there is NaN, and counted in the provenance.

        Raises:
            ValueError: nothing is there.
        """
        arrays = shaped(self._outline, [self._marked(i) for i in range(len(self._whole))])
        return self._outline.result(arrays, arrays, self.missing(), failed)

    def _marked(self, network: int) -> Arrays:
        """One network's arrays, NaN where pieces are missing."""
        whole, there = self._whole[network], self._there[network]
        if there.all():
            return whole
        size, points = self._outline.sizes[network], self._outline.points
        lost = ~np.repeat(there, size, axis=1)[:, :points]
        marked = {name: a.astype(np.result_type(np.float32, a.dtype)) for name, a in whole.items()}
        for a in marked.values():
            a[lost] = np.nan
        return marked


def shaped(outline: Outline, whole: list[dict[str, Any]]) -> dict[str, Any]:
    """The variables of a result: of every network's arrays of shape ``(seeds, points, ...)``, of NumPy or like them,
    none of one without a piece.

    Raises:
        ValueError: nothing is there.
    """
    order, lead = list(outline.dims), (outline.seeds, *outline.shape)
    names = sorted(dict.fromkeys(itertools.chain(*whole)), key=lambda name: order.index(name.partition(".")[0]))
    if not names:
        raise ValueError(f"a result must have one piece at least, got none of {outline.pieces}")
    each = [{name: a.reshape(*lead, *a.shape[2:]) for name, a in one.items()} for one in whole]
    return {name: _stacked([one.get(name) for one in each]) if outline.several else each[0][name] for name in names}


def _stacked(arrays: Iterable[Any]) -> Any:
    """One a network along a new first axis: the largest of each dimension, NaN where one does not reach."""
    arrays = list(arrays)
    there = [a for a in arrays if a is not None]
    if len({a.ndim for a in there}) > 1:
        raise ValueError("networks of a sweep must be alike in what they take as one input, got batches and examples")
    shape = tuple(max(sizes) for sizes in zip(*(a.shape for a in there), strict=True))
    if all(a is not None and a.shape == shape for a in arrays):
        return np.stack(there)
    kind = np.result_type(np.float32, *(a.dtype for a in there))
    return np.stack([np.full(shape, np.nan, kind) if a is None else _filled(a, shape, kind) for a in arrays])


def _filled(a: Any, shape: tuple[int, ...], kind: np.dtype) -> Any:
    """An array with NaN where it does not reach."""
    behind = [(0, size - mine) for size, mine in zip(shape, a.shape, strict=True)]
    return np.pad(a.astype(kind), behind, constant_values=np.nan)
