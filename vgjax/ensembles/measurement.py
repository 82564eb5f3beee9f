"""What a sweep measures: one drawn network at one point, and what has to be known of that to repeat it.

A `Measurement` is a pure function with its options: static and hashable, so that it can be compiled for. `vgjax.sweep`
draws, repeats, labels and keeps; it knows no more of a measurement than what stands here. Write your own by
`measurement`, or as a frozen dataclass of this kind.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import numpy as np
from jax import Array

from vgjax.checks import ArrayLike, kinds, known
from vgjax.ensembles.result import Result
from vgjax.initializers import Scales
from vgjax.memory import chunk_size
from vgjax.networks.layers import state_sizes
from vgjax.networks.network import Network, check_input
from vgjax.networks.parameters import Parameters, init, two_keys
from vgjax.values import reduced

Arrays = dict[str, np.ndarray]


class Measurement(ABC):
    """A measurement of one drawn network at one point of a sweep.

    Attributes:
        name: what a result says was measured.
        dims: names of the dimensions of every variable, those behind seed and axes: ``"layer"`` for s_0 ... s_L,
            ``"block"`` for what is between them. A variable is named by what stands before the first dot of its name.
        number_names: what it takes beside scales, fixed or as an axis.
        parallel: whether pieces gain from running side by side on a CPU: those whose products do not fill it alone.
    """

    name: ClassVar[str]
    dims: ClassVar[Mapping[str, tuple[str, ...]]]
    number_names: ClassVar[tuple[str, ...]] = ()
    parallel: ClassVar[bool] = False

    @abstractmethod
    def measure(self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array) -> dict[str, Any]:
        """Traceable: what is measured at one point, by name; nested dicts come out as ``"name.path"``.

        Args:
            drawn: of `draw`.
            scales: all that were given, fixed and swept.
            numbers: what the measurement brings beside scales (`numbers`).
            *inputs: of `check`, for one example.
        """

    def compiled_for(self) -> "Measurement":
        """The measurement without those options that only `check` and `finish` read: equal ones share a program."""
        return self

    def draw(self, key: Array, network: Network) -> Any:
        """What is drawn once a seed and shared by all points: here the parameters, and a key for all else.

        The parameters are the same for every measurement: those of ``init(jax.random.split(key)[0], network)``.
        """
        weights, rest = two_keys(key)
        return init(weights, network), rest

    def check(self, network: Network, inputs: tuple[ArrayLike, ...]) -> tuple[bool, tuple[Any, ...]]:
        """The inputs as arrays, if they fit the network, and whether they are a batch: they have an axis of examples.

        Raises:
            ValueError: before any work is done.
        """
        if len(inputs) != 1:
            raise ValueError(f"{self.name} takes one input x, got {len(inputs)}")
        return checked_batch(network, inputs[0])

    def numbers(self, network: Network, given: Mapping[str, Any]) -> dict[str, Any]:
        """All that it takes beside scales, with what was given of it: name -> number, or values of an axis; checked.

        A name may come out as several, ``learning_rate_stem`` and so on.
        """
        return {}

    def over_examples(
        self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """`measure` of a batch, and those variables that have no axis of examples."""
        return jax.vmap(lambda *one: self.measure(drawn, scales, numbers, *one))(*inputs), frozenset()

    def coordinates(self, network: Network) -> dict[str, np.ndarray]:
        """Values along its own dimensions, by their name; layers and blocks are known."""
        return {}

    def bytes_per_point(self, network: Network) -> int:
        """About what one point (and one example) keeps alive: states of a layer twice over, and one series."""
        return 8 * (12 * int(state_sizes(network).max()) + 4 * (network.depth + 1))

    def chunk(self, network: Network, points: int, memory: int, workers: int) -> tuple[int, int]:
        """How many points a piece holds, and how many of those run as one batch (one matrix product for all)."""
        size = chunk_size(points, self.bytes_per_point(network), memory)
        return size, size

    def computing(self, network: Network) -> AbstractContextManager[Any]:
        """Entered around all the work: what is switched on for it."""
        return contextlib.nullcontext()

    def finish(self, arrays: Arrays, where: str) -> Arrays:
        """On the host: what becomes of one piece's arrays, which have a leading axis of points.

        ``where`` names the piece in a sentence, `` of seed 3``.
        """
        return arrays


def checked_batch(network: Network, x: ArrayLike) -> tuple[bool, tuple[np.ndarray, ...]]:
    """x as an array, and whether it is a batch of inputs."""
    check_input(network, x, batch=True)
    x = np.asarray(x)
    return x.shape != network.input_shape, (x,)


@dataclass(frozen=True)
class Own(Measurement):
    """A user's function as a measurement (`measurement`)."""

    function: Callable[..., Mapping[str, Any]]
    own_dims: tuple[tuple[str, tuple[str, ...]], ...]
    bytes: int | None = None
    dims: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, hash=False, compare=False)  # type: ignore[misc]
    name: str = field(init=False)  # type: ignore[misc]

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", dict(self.own_dims))
        object.__setattr__(self, "name", getattr(self.function, "__name__", "measurement"))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return reduced(self, self.function, self.own_dims, self.bytes)

    def measure(self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array) -> dict[str, Any]:
        """The function's."""
        parameters: Parameters = drawn[0]
        found = dict(self.function(parameters, scales, *inputs))
        lengths = {"layer": parameters.network.depth + 1, "block": parameters.network.depth}
        for name, value in found.items():
            dims, shape = self.dims[known("a measured variable", name, self.dims)], np.shape(value)
            expected = [lengths.get(dim, size) for dim, size in zip(dims, shape, strict=False)]
            if len(shape) != len(dims) or list(shape) != expected:
                raise ValueError(f"{name} must have dimensions ({', '.join(dims)}), got shape {shape}")
        return found

    def check(self, network: Network, inputs: tuple[ArrayLike, ...]) -> tuple[bool, tuple[Any, ...]]:
        """Any number of inputs of the network."""
        checked = [checked_batch(network, x) for x in inputs]
        if len({batch for batch, _ in checked}) > 1:
            raise ValueError(f"{self.name} takes inputs that all have an axis of examples or none, got both")
        return any(batch for batch, _ in checked), tuple(x for _, (x,) in checked)

    def bytes_per_point(self, network: Network) -> int:
        """As it was told."""
        return super().bytes_per_point(network) if self.bytes is None else self.bytes


@kinds
def measurement(
    function: Callable[..., Mapping[str, Any]],
    dims: Mapping[str, tuple[str, ...]],
    *,
    bytes_per_point: int | None = None,
) -> Measurement:
    """Your own measurement, for `vgjax.sweep`.

    Args:
        function: ``(parameters, scales, *inputs) -> {name: array}``, traceable, of one network and one example; batches
            and grids are made by `vmap`.
        dims: name -> names of the array's dimensions; ``"layer"`` where it runs over s_0 ... s_L, ``"block"`` over the
            layers between.
        bytes_per_point: about what one point keeps alive, from which follows how many are taken at once.

    Raises:
        ValueError: no variable, one named as something else of a `Result` is, or a dimension that all variables have.
    """
    if not dims:
        raise ValueError("dims must name one variable at least, got none")
    for name, each in dims.items():
        if not name.isidentifier() or hasattr(Result, name):
            raise ValueError(f"dims must name variables that a result has no other meaning for, got {name!r}")
        if isinstance(each, str) or {*each} & {"network", "seed", "example"}:
            raise ValueError(f"dims must be a tuple of names other than network, seed and example, got {each!r}")
    return Own(function, tuple((name, tuple(each)) for name, each in dims.items()), bytes_per_point)
