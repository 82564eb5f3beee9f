"""What is asked of a sweep: the networks by name, and the points of the grid."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import numpy as np

from vgjax.checks import kinds, known
from vgjax.ensembles.measurement import Measurement
from vgjax.initializers import Scales
from vgjax.networks.network import Network, check_scales


@kinds
@dataclass(frozen=True)
class Case:
    """A network as one of several in a sweep, with what belongs to it alone.

    Attributes:
        network: what is drawn.
        scales: fixed ones of its own: name -> value.
        adapt: what becomes of the sweep's measurement here.
    """

    network: Network
    scales: Mapping[str, Any] = field(default_factory=dict)

    def adapt(self, measure: Measurement) -> Measurement:
        """The measurement as it is made of this network."""
        return measure


Networks = Annotated[
    Network | Case | Sequence[Network | Case] | Mapping[str, Network | Case], "a network, or several of them"
]


def cases_of(network: Networks) -> dict[str, Case]:
    """The networks by name."""
    if isinstance(network, (Network, Case)):
        return {"": _case(network)}
    if not isinstance(network, Mapping):
        listed = list(network) if isinstance(network, Iterable) else [network]
        if not all(isinstance(each, (Network, Case)) for each in listed):
            raise ValueError(f"network must be a network, or several of them, got {network!r:.80}")
        cases = [_case(each) for each in listed]
        names = [f"depth {case.network.depth}" for case in cases]
        if len(set(names)) < len(names):
            names = [f"{i}: {name}" for i, name in enumerate(names)]
        network = dict(zip(names, cases, strict=True))
    if not network:
        raise ValueError("network must be at least one, got none")
    if not all(isinstance(name, str) and name for name in network):
        raise ValueError(f"networks must be named by texts that are not empty, got {list(network)}")
    return {name: _case(each) for name, each in network.items()}


def _case(network: Any) -> Case:
    if isinstance(network, Case):
        return network
    if not isinstance(network, Network):
        raise ValueError(f"network must be a network, or several of them, got {network!r:.80}")
    return Case(network)


class Grid(NamedTuple):
    """The points of one network.

    Attributes:
        axes: what is swept, in order: name -> values, shape ``(points,)``; of a scale also schedules along the layers,
            shape ``(points, depth)``.
        of_scales: which of them are scales; the others are numbers of the measurement.
        scales, numbers: what stays fixed.
    """

    axes: dict[str, np.ndarray]
    of_scales: frozenset[str]
    scales: dict[str, Any]
    numbers: dict[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Points along each axis."""
        return tuple(len(values) for values in self.axes.values())

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """The axes as a result has them: schedules are counted, under a name of their own."""
        counted = {name: np.arange(len(values)) for name, values in self.schedules.items()}
        return {f"{name}_schedule" if name in counted else name: counted.get(name, v) for name, v in self.axes.items()}

    @property
    def schedules(self) -> dict[str, np.ndarray]:
        """The axes of schedules."""
        return {name: values for name, values in self.axes.items() if values.ndim > 1}

    @property
    def points(self) -> int:
        """How many."""
        return math.prod(self.shape)

    def take(self, points: Sequence[int]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Swept scales and numbers at some of the points, each of shape ``(points,)``."""
        at = np.unravel_index(np.asarray(points), self.shape) if self.axes else ()
        swept = {name: values[i] for (name, values), i in zip(self.axes.items(), at, strict=True)}
        scales = {name: values for name, values in swept.items() if name in self.of_scales}
        return scales, {name: values for name, values in swept.items() if name not in self.of_scales}


def grid_of(case: Case, measure: Measurement, scales: Scales, axes: Mapping[str, Any]) -> Grid:
    """Swept axes as numpy arrays in the order given, and what stays fixed, all checked."""
    network, adapted = case.network, case.adapt(measure)
    for name in axes:
        known("scale", name, [*network.scales, *adapted.number_names])
    numbers = adapted.numbers(network, {name: v for name, v in axes.items() if name in adapted.number_names})
    given: dict[str, Any] = {}
    for name, values in axes.items():  # in the order of the call
        ours = {n: v for n, v in numbers.items() if n == name or n.startswith(f"{name}_")}
        given |= {name: values} if name in network.scales else ours
    given = {**given, **{name: value for name, value in numbers.items() if name not in given}}
    several = {name: v for name, v in given.items() if isinstance(v, (list, tuple)) or np.ndim(v)}
    swept = {name: _axis(name, values) for name, values in several.items()}
    for name, values in swept.items():
        if values.ndim not in ((1, 2) if name in network.scales else (1,)) or not values.size:
            also = ", or one schedule along the layers a point" if values.ndim > 2 else ""
            raise ValueError(f"{name} must be a non-empty one-dimensional grid{also}, got shape {values.shape}")
    plain = {name: value for name, value in given.items() if name not in swept}
    fixed = {**scales, **case.scales, **{name: value for name, value in plain.items() if name in network.scales}}
    for name in {**scales, **case.scales}.keys() & axes.keys():
        raise ValueError(f"{name} must be given once, got it among the fixed scales and as an argument of its own")
    check_scales(network, Scales(**fixed))
    for name in swept.keys() & network.scales.keys():
        for value in swept[name]:
            check_scales(network, Scales(**{name: value}))
    rest = {name: value for name, value in numbers.items() if name not in swept}
    return Grid(swept, frozenset(swept) & frozenset(network.scales), fixed, rest)


def _axis(name: str, values: Any) -> np.ndarray:
    """The values of an axis as one array; numbers among schedules are the same in every layer."""
    if not isinstance(values, (list, tuple)):
        return np.asarray(values)
    each = [np.asarray(value) for value in values]
    lengths = {value.shape for value in each if value.ndim}
    if len(lengths) > 1:
        raise ValueError(f"{name} must hold numbers and schedules of one length, got shapes {sorted(lengths)}")
    return np.stack(np.broadcast_arrays(*each)) if each else np.asarray(values)
