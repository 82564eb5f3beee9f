"""The edge, measured: the scale at which gradients neither vanish nor explode, for any network, beside theory's.

As `comparison`, above simulator and theory.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from vgjax import theory
from vgjax.blocks.told import LayerArguments
from vgjax.checks import ArrayLike, RandomKey, finite, is_number, kinds, known, positive_integer, short, takes
from vgjax.ensembles.crossing import NEAR, POINTS, crossing, grids_near, search_grids
from vgjax.ensembles.edge import Edge, Root
from vgjax.ensembles.measurement import Measurement
from vgjax.ensembles.result import Result, growth_per_layer
from vgjax.ensembles.runner import progress
from vgjax.ensembles.sweep import sweep
from vgjax.initializers import Scale, Scales
from vgjax.networks.network import Network

Inputs = Annotated[ArrayLike | tuple[ArrayLike, ...], "an array of numbers, or a tuple of them"]
Reading = Callable[[Result], Any]

_FIRST_GUESS = 0.1
"""How far from the first point of a line the second is expected, relative to it: of later ones two others tell."""


# --- the two questions ----------------------------------------------------------------------------------------------


@kinds
def solve(
    network: Network,
    inputs: Inputs,
    scale: str = "sigma_w",
    *,
    key: RandomKey,
    target_rate: float = 0.0,
    seeds: int = 16,
    between: tuple[float, ...] | None = None,
    tolerance: float = 1e-3,
    from_layer: int | None = None,
    reading: Reading | None = None,
    **options: Any,
) -> Root:
    """The critical value of one scale, measured: E over draws of (ln gain(L) - ln gain(l)) / (L - l) = target_rate.

    All values are measured on the same draws, by sweeps of eight: a coarse one over the bracket, then closer and closer
    ones around the crossing, until two values enclose it that are a standard error, or the tolerance, apart. Of several
    crossings it is the lowest that the coarse one shows; ``between`` says which. A draw whose gain is a true zero has
    the rate -inf, which is below any target; NaN is on neither side.

    Args:
        network: any one.
        inputs: x, or a tuple of what the measurement takes: ``(x, y)``.
        scale: the name of a scale of its blocks.
        key: `jax.random.key`, as for `vgjax.sweep`, whose draws these are.
        target_rate: growth of ln gain per layer; 0: neither vanishing nor exploding.
        seeds: independent draws, 2 at least.
        between: where to look; left out, around the scale's default, wider twice if there is no crossing
            (`vgjax.ensembles.crossing.search_grids`).
        tolerance: of the value, where its standard error is smaller.
        from_layer: l, past the transient; left out, half the depth.
        reading: instead of that growth, what of a `Result` has to be the target: ``result -> (seeds, *axes)``.
        **options: of `vgjax.sweep`: measure, scales and further scales by name (one number each), leading, folder,
            memory, workers, executor, progress.

    Returns:
        `Root`, with theory's value beside it for plain stacks. No crossing is a result: NaN and the reason.

    Raises:
        ValueError: an unknown scale, one that is also given, ends that are not in order, fewer than 2 seeds, a
            measurement without ``log_gain`` and without a reading, or what `vgjax.sweep` refuses.
    """
    asked = {"key": key, "seeds": seeds, **options}
    search = _search(network, inputs, scale, asked, target_rate, between, tolerance, from_layer, reading)
    return search.root({})


@kinds
def trace_edge(
    network: Network,
    inputs: Inputs,
    scale: str = "sigma_w",
    *,
    along: str,
    values: ArrayLike,
    key: RandomKey,
    target_rate: float = 0.0,
    seeds: int = 16,
    between: tuple[float, ...] | None = None,
    tolerance: float = 1e-3,
    from_layer: int | None = None,
    reading: Reading | None = None,
    **options: Any,
) -> Edge:
    """The line on which the mean rate is the target, over a second scale: `solve` at each of its values.

    The search begins where the last two points of the line expect the next, so that most points take one or two sweeps
    of eight values. Where there are several crossings it so follows the one that it began with.

    Args:
        network, inputs, scale, key, target_rate, seeds, between, tolerance, from_layer, reading: as for `solve`.
        along: the name of the second scale.
        values: of it, increasing or decreasing, shape ``(points,)``.
        **options: as for `solve`; the progress bar is one of points.

    Returns:
        `Edge`; `vgjax.plots.edge` draws it.

    Raises:
        ValueError: as `solve`; values that are not in order.
    """
    known("along", along, network.scales)
    second = _checked_values(network, along, values)
    if along == scale or along in options:
        raise ValueError(f"along must be a scale that is neither sought nor given, got {along!r}")
    asked = {"key": key, "seeds": seeds, **options, "progress": False}
    search = _search(network, inputs, scale, asked, target_rate, between, tolerance, from_layer, reading)
    roots: list[Root] = []
    for value in progress(second, len(second), f"{scale} over {along}", options.get("progress")):
        roots.append(search.root({along: float(value)}, _expected(second, roots, search.tolerance)))
    return _line(search, along, second, roots)


def _expected(second: np.ndarray, roots: list[Root], tolerance: float) -> tuple[float, float] | None:
    """Where the next point of a line is expected, from the last two that were found, and how far around it."""
    found = [(at, root) for at, root in zip(second, roots, strict=False) if root.found]
    if not found:
        return None
    at, last = found[-1]
    own = max(NEAR * last.standard_error, tolerance)
    if len(found) == 1:
        return last.value, own + _FIRST_GUESS * max(abs(last.value), 1.0)
    before, first = found[-2]
    step = (last.value - first.value) * (second[len(roots)] - at) / (at - before)
    return last.value + step, own + abs(step) / 4


def _line(search: "_Search", along: str, second: np.ndarray, roots: list[Root]) -> Edge:
    numbers = ("value", "standard_error", "slope", "theory", "evaluations")
    of_roots = {name: np.array([getattr(root, name) for root in roots]) for name in numbers}
    return Edge(
        search.scale,
        along,
        second,
        edge=of_roots.pop("value"),
        **of_roots,
        target_rate=search.target_rate,
        seeds=search.asked["seeds"],
        reasons=tuple(root.reason for root in roots),
        about_theory=tuple(root.about_theory for root in roots),
        network=repr(search.network),
    )


# --- one search -----------------------------------------------------------------------------------------------------


@dataclass
class _Search:
    """What is asked of every sweep of a search, and how many there were.

    Attributes:
        network, inputs, scale, target_rate, between, tolerance: as for `solve`, checked.
        read: rates of a result, shape ``(seeds, points)``.
        asked: all else that `vgjax.sweep` is given.
        folder: where each sweep has a folder of its own: searches take the same steps again.
        sweeps: so far.
    """

    network: Network
    inputs: tuple[ArrayLike, ...]
    scale: str
    target_rate: float
    between: tuple[float, float] | None
    tolerance: float
    read: Reading
    asked: dict[str, Any]
    folder: Path | None
    sweeps: int = 0

    def root(self, fixed: dict[str, float], near: tuple[float, float] | None = None) -> Root:
        """The root with some scales fixed, sought around an expected value first."""
        scale, before = self.network.scales[self.scale], self.sweeps
        grids = search_grids(scale, self.between) if near is None else grids_near(scale, self.between, *near)
        found = crossing(lambda values: self.rates(values, fixed), grids, self.target_rate, self.tolerance)
        evaluations, (predicted, about) = (self.sweeps - before) * POINTS, _theory(self, fixed)
        told: dict[str, Any] = {"target_rate": self.target_rate, "evaluations": evaluations, "about_theory": about}
        return Root(self.scale, standard_error=found.standard_error, theory=predicted, **told, **found._asdict())

    def rates(self, values: np.ndarray, fixed: dict[str, float]) -> np.ndarray:
        """Of every draw at some values, shape ``(seeds, points)``."""
        kept = {} if self.folder is None else {"folder": self.folder / f"{self.sweeps:03d}"}
        asked: dict[str, Any] = {**self.asked, **fixed, **kept, self.scale: values}
        result: Result = sweep(self.network, *self.inputs, **asked)
        self.sweeps += 1
        rates, shape = np.asarray(self.read(result), float), (result.seeds, len(values))
        if rates.shape != shape:
            raise ValueError(f"reading must give one number a draw and value, shape {shape}, got {rates.shape}")
        return rates


def _search(
    network: Network,
    inputs: Inputs,
    scale: str,
    asked: dict[str, Any],
    target_rate: float,
    between: tuple[float, ...] | None,
    tolerance: float,
    from_layer: int | None,
    reading: Reading | None,
) -> _Search:
    """All that a search is told, checked before any work."""
    declared = network.scales[known("scale", scale, network.scales)]
    finite("target_rate", target_rate)
    finite("tolerance", tolerance, "positive", lambda v: v > 0)
    if reading is not None and not takes(reading, "result"):
        raise ValueError(f"reading must be a function of one argument, a Result, got {short(reading)}")
    if from_layer is not None and not 0 <= from_layer < network.depth:
        raise ValueError(f"from_layer must lie in 0 .. {network.depth - 1}, got {from_layer}")
    asked = _checked_options(scale, asked)
    folder = asked.pop("folder", None)
    return _Search(
        network,
        inputs if isinstance(inputs, tuple) else (inputs,),
        scale,
        float(target_rate),
        None if between is None else _checked_between(scale, declared, between),
        float(tolerance),
        _growth(network, asked.get("measure"), from_layer) if reading is None else reading,
        asked,
        None if folder is None else Path(folder),
    )


def _checked_options(scale: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What every sweep is asked, if it leaves one axis alone, and all draws to each."""
    asked = {**asked, "seeds": positive_integer("seeds", asked["seeds"])}
    if asked["seeds"] < 2:
        raise ValueError(f"seeds must be at least 2, of which an error is made, got {asked['seeds']}")
    if scale in asked:
        raise ValueError(f"{scale} must be left out where it is sought, got {short(asked[scale])}")
    if "part" in asked:
        raise ValueError(f"part must be left out where each sweep needs the last one, got {short(asked['part'])}")
    for name in asked.keys() - inspect.signature(sweep).parameters.keys():
        if not is_number(asked[name]):
            raise ValueError(f"{name} must be one number beside a scale that is sought, got {short(asked[name])}")
    return asked


def _checked_between(scale: str, declared: Scale, between: tuple[float, ...]) -> tuple[float, float]:
    for end in between:
        declared.check(scale, end)
    if len(between) != 2 or not between[0] < between[1]:
        raise ValueError(f"between must be (low, high) with low below high, got {tuple(between)}")
    return float(between[0]), float(between[1])


def _growth(network: Network, measure: Any, from_layer: int | None) -> Reading:
    """Growth of ln gain per layer of every draw; of a batch the mean over its examples."""
    if isinstance(measure, Measurement) and "log_gain" not in measure.dims:
        raise ValueError(f"reading must say what is sought in a measurement without log_gain, got {measure.name}")

    def read(result: Result) -> np.ndarray:
        rates = growth_per_layer(result.log_gain.astype(float), network.depth, from_layer)
        return rates.mean(axis=tuple(range(2, rates.ndim)))

    return read


def _checked_values(network: Network, along: str, values: ArrayLike) -> np.ndarray:
    """Of the second scale, in order."""
    second = np.asarray(values, float)
    network.scales[along].check(along, second)
    steps = np.diff(second.ravel())
    if second.ndim != 1 or not second.size or not ((steps > 0).all() or (steps < 0).all()):
        raise ValueError(f"values must be numbers that increase or decrease, at least one, got {short(values)}")
    return second


def _theory(search: _Search, fixed: dict[str, float]) -> tuple[float, str]:
    """The critical scale at infinite width and depth, and what it is; NaN, and why there is none."""
    told = search.network.theory_arguments
    if not isinstance(told, LayerArguments) or not told.plain:
        return math.nan, "theory has the critical scale of plain stacks alone"
    of_kernel, of_bias = told.names
    if search.scale != of_kernel or search.target_rate:
        return math.nan, f"theory has {of_kernel} at rate 0 alone"
    numbers = {name: value for name, value in search.asked.items() if name in search.network.scales}
    given = {**(search.asked.get("scales") or Scales()), **numbers, **fixed}
    sigma_b = search.network.completed(given)[of_bias]
    if np.ndim(sigma_b):
        return math.nan, f"theory has one {of_bias} for all layers"
    found = theory.critical(told.activation, 0.0 if told.bias_init == "zero" else float(sigma_b))
    return float(found.edge), str(found.reason) or "edge of chaos"
