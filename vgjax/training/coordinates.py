"""Coordinate check: how much states and their changes over the first steps depend on width and on depth.

A parametrization is right if, at a learning rate that is good for a small network, a wide and deep one moves as much:
every state changes by a size that depends on neither. What is looked at is the size (root mean square over a batch and
the units) of every state, of its change since the beginning, and of its change by the last update.
"""

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from vgjax.checks import RandomKey, kinds, known, not_negative, positive_integer, short
from vgjax.ensembles import runner
from vgjax.files import npz_path, read_arrays, write_arrays
from vgjax.initializers import Scales
from vgjax.measure.losses import Loss
from vgjax.networks.layer import Layer
from vgjax.networks.layers import bind
from vgjax.networks.network import Network, check_scales
from vgjax.networks.parameters import Parameters, init
from vgjax.networks.trainable import trainable, with_trainable, without_noise
from vgjax.training import loop
from vgjax.training.config import OPTIMIZERS, checked_config
from vgjax.training.problem import Data, as_examples, in_states
from vgjax.values import by_content

WHAT = ("size", "change", "update")
"""What is measured of a state: itself, its difference from that before training, from that before the last step."""

PLACES = ("first", "quarter", "middle", "three quarters", "last", "output")
"""Where along the depth: of the states s_0 ... s_L, and what the head makes of s_L."""

_SEAL = "coordinate check"
_AXES = ("width", "depth")
_FLAT = 0.2  # a power of width or depth that is taken for none: finite sizes leave some


class Parametrization(NamedTuple):
    """What changes with the size of a network.

    Attributes:
        scales: by name, those of the network.
        rate: ``(path, wide) -> factor`` on the learning rate of a parameter: its path begins with stem, blocks or head;
            of each of its axes (that of the layers left out), whether it grows with the width.
    """

    scales: Mapping[str, float]
    rate: Callable[[str, tuple[bool, ...]], float]


Rule: TypeAlias = Callable[[float, float, bool], Parametrization]
"""``(width ratio, depth ratio, adaptive) -> Parametrization``: ratios to the smallest, and whether the optimizer's
steps are of the size of the learning rate (Adam) or of the gradient (SGD)."""


def _standard(width: float, depth: float, adaptive: bool) -> Parametrization:
    return Parametrization({}, lambda path, wide: 1.0)


def _maximal_update(width: float, depth: float, adaptive: bool) -> Parametrization:
    def rate(path: str, wide: tuple[bool, ...]) -> float:
        # Yang et al. 2022, table 3: what adds to a wide state, what is added up over one, or both; and what is neither.
        if sum(wide) != 1:
            return 1.0 if not any(wide) or not adaptive else 1 / width
        return 1 / width if not wide[-1] else 1.0 if adaptive else width

    # Heads are held, so their size grows: logits are divided by it, not by its root.
    return Parametrization({"sigma_out": width**-0.5, "temperature": width**0.5}, rate)


def _with_depth(power: float, width: float, depth: float, adaptive: bool) -> Parametrization:
    plain = _maximal_update(width, depth, adaptive)
    # All branches move coherently: depth steps of size depth^-power each, SGD's by another depth^-power smaller.
    factor = depth ** (power - 1 if adaptive else 2 * power - 1)

    def rate(path: str, wide: tuple[bool, ...]) -> float:
        return plain.rate(path, wide) * (factor if path.startswith("blocks/") else 1.0)

    return Parametrization({**plain.scales, "branch": depth**-power}, rate)


PARAMETRIZATIONS: dict[str, Rule] = {
    "standard": _standard,
    "mup": _maximal_update,
    "depth_mup": functools.partial(_with_depth, 0.5),
    "complete_p": functools.partial(_with_depth, 1.0),
}
"""Parametrizations by name. With n and L the width and the depth in units of the smallest, under Adam (in brackets:
SGD): ``standard`` changes nothing; ``mup``: kernels from width to width learn at 1 / n (1), those of a head 1 / n (1 /
n), those of a stem and vectors of the width 1 (n), what has no wide axis 1 (1); sigma_out = n^(-1/2), temperature =
n^(1/2), for heads of which there are as many at every width; ``depth_mup``: and branch = L^(-1/2), blocks at L^(-1/2)
of that (1); ``complete_p``: branch = 1 / L, blocks at 1 (L)."""


@by_content
class CoordinateCheck(NamedTuple):
    """What `coordinate_check` found; natural logarithms of root mean squares.

    Attributes:
        parametrization: its name.
        widths, depths: the smallest of each first.
        along_width: by name (`WHAT`), shape ``(widths, seeds, steps + 1, depth + 2)``, at the first depth: the states
            s_0 ... s_L and the output; -inf for no change.
        along_depth: likewise, shape ``(depths, seeds, steps + 1, places)``, at the first width, at `PLACES`; NaN at
            those that lie between two states at some depth (all lie on states where depths are multiples of 4).
    """

    parametrization: str
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    along_width: dict[str, np.ndarray]
    along_depth: dict[str, np.ndarray]

    @kinds
    def at_places(self, axis: str, what: str = "change") -> np.ndarray:
        """Logarithms along ``"width"`` or ``"depth"`` at `PLACES`, shape ``(sizes, seeds, steps + 1, places)``."""
        known("axis", axis, ("width", "depth")), known("what", what, WHAT)
        if axis == "depth":
            return self.along_depth[what]
        return _at_places(self.along_width[what], self.depths[:1])

    @kinds
    def slopes(self, axis: str, what: str = "change") -> tuple[np.ndarray, np.ndarray]:
        """The power of width or depth that it grows like at the last step, and its standard error, at `PLACES`.

        Least squares over the logarithms of all sizes and seeds; NaN along an axis of one size, and where nothing
        moves. Two numbers alone have an infinite error.
        """
        sizes = np.log(np.array(self.widths if axis == "width" else self.depths, float))
        y = self.at_places(axis, what)[:, :, -1]
        y = np.where(np.isfinite(y).all(axis=(0, 1)), y, np.nan)  # of what does not move there is no power
        if len(sizes) < 2:
            return np.full(len(PLACES), np.nan), np.full(len(PLACES), np.nan)
        x = np.broadcast_to((sizes - sizes.mean())[:, None], y.shape[:2])
        slope = np.einsum("ns,nsp->p", x, y - y.mean(axis=(0, 1))) / np.sum(x**2)
        rest = y - y.mean(axis=(0, 1)) - x[..., None] * slope
        variance = np.sum(rest**2, axis=(0, 1)) / (x.size - 2) if x.size > 2 else np.full(len(PLACES), np.inf)
        return slope, np.sqrt(variance / np.sum(x**2))

    @kinds
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to ``path``, an ``.npz``, whole or not at all.

        Raises:
            ValueError: another suffix.
        """
        described = json.dumps([self.parametrization, self.widths, self.depths])
        along = {f"{axis}/{what}": a for axis in _AXES for what, a in getattr(self, f"along_{axis}").items()}
        write_arrays(npz_path(path), {"description": np.array(described), **along}, _SEAL)
        return Path(path)

    @classmethod
    @kinds
    def load(cls, path: str | os.PathLike[str]) -> "CoordinateCheck":
        """Read back what `save` wrote.

        Raises:
            ValueError: a file that holds something else, or not all of it.
            FileNotFoundError: there is no such file.
        """
        arrays = read_arrays(npz_path(path), _SEAL)
        if arrays is None:
            raise ValueError(f"path must hold a whole saved coordinate check, got {str(path)!r}")
        name, widths, depths = json.loads(str(arrays["description"]))
        along = ({what: arrays[f"{axis}/{what}"] for what in WHAT if f"{axis}/{what}" in arrays} for axis in _AXES)
        return cls(name, tuple(widths), tuple(depths), *along)

    @property
    def verdict(self) -> str:
        """In words, a line an axis: where the change of a state depends on the size of the network, and how."""
        lines = []
        for axis, sizes in (("width", self.widths), ("depth", self.depths)):
            if len(sizes) > 1:
                there = _whole(self.depths if axis == "depth" else self.depths[:1])
                slope, error = (a[there] for a in self.slopes(axis))
                words = _words(slope, error, [PLACES[i] for i in there])
                lines.append(f"{self.parametrization} in {axis} ({sizes[0]} to {sizes[-1]}): {words}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.verdict


def _words(slope: np.ndarray, error: np.ndarray, places: list[str]) -> str:
    if not np.all(np.isfinite(slope)):
        return f"the change at {places[int(np.argmin(np.isfinite(slope)))]} is zero or not finite"
    # Off where it is surely so, alike where it surely is not.
    off, alike = np.abs(slope) - 2 * error > _FLAT, np.abs(slope) + 2 * error < 2 * _FLAT
    worst = int(np.argmax(np.where(off, np.abs(slope), 0) if off.any() else np.abs(slope)))
    power = f"power {slope[worst]:+.2f} +- {error[worst]:.2f} at {places[worst]}"
    if off.any():
        others = ", ".join(places[i] for i in np.flatnonzero(off))
        return f"the change {'grows' if slope[worst] > 0 else 'shrinks'} with it, {power} (off at {others})"
    if alike.all():
        return f"states move alike at all sizes (largest {power})"
    return f"undecided (largest {power}): more seeds or sizes would tell"


def _whole(depths: Sequence[int]) -> list[int]:
    """Those of `PLACES` that are states at all depths: the first quarter of 6 layers is none."""
    return [i for i in range(5) if all(i * depth % 4 == 0 for depth in depths)] + [5]


def _at_places(series: np.ndarray, depths: Sequence[int]) -> np.ndarray:
    """Of a series over s_0 ... s_L and the output (last axis), what stands at `PLACES`; NaN where one is no state at
    one of the depths."""
    depth = series.shape[-1] - 2
    picked = series[..., [*(i * depth // 4 for i in range(5)), depth + 1]]
    return np.where(np.isin(np.arange(len(PLACES)), _whole(depths)), picked, np.nan)


@kinds
def coordinate_check(
    make_network: Callable[..., Any],
    data: Data,
    *,
    widths: Sequence[int],
    depths: Sequence[int],
    parametrization: str | Callable[..., Any] = "standard",
    optimizer: str = "adam",
    learning_rate: float = 0.01,
    steps: int = 4,
    seeds: int = 3,
    scales: Scales | None = None,
    key: RandomKey | None = None,
    loss: Loss | None = None,
) -> CoordinateCheck:
    """Sizes of states, of their changes and of updates over the first steps of training, against width and depth.

    Trains every width at the first depth, and every depth at the first width, a few steps on all of the data.

    Args:
        make_network: ``(width, depth) -> Network``.
        data: examples, as for `train`; a hundred are enough.
        widths, depths: ascending, the first ones are those that learning rate and scales are meant for.
        parametrization: one of `PARAMETRIZATIONS`, or a function like those (`Rule`). Of scales that it names, those
            that the network has not are left out.
        optimizer: a name in `OPTIMIZERS`.
        learning_rate: of the first width and depth.
        steps: updates.
        seeds: draws a network, of which the errors are made.
        scales: of all networks, left out: their defaults; where the parametrization has a factor of its own for one of
            them, it multiplies it.
        key: draws the networks (default ``jax.random.key(0)``).
        loss: as for `train`.

    Returns:
        `CoordinateCheck`: slopes, a verdict in words; `vgjax.plots.coordinate_check` draws it.

    Raises:
        ValueError: sizes that do not ascend, what is no network, an unknown name, a parametrization of depth for
            networks without a scale ``branch``, or what `train` refuses.

    Source: Yang et al. 2022, "Tensor programs V" (the check in width; mup's tables 3 and 8); Yang et al. 2024, "Tensor
    programs VI" (depth_mup); Dey et al. 2025, "Don't be lazy: CompleteP".
    """
    sizes = _ascending("widths", widths), _ascending("depths", depths)
    steps, seeds = positive_integer("steps", steps), positive_integer("seeds", seeds)
    known("optimizer", optimizer, OPTIMIZERS)
    not_negative("learning_rate", learning_rate)
    rule = (
        PARAMETRIZATIONS[known("parametrization", parametrization, PARAMETRIZATIONS)]
        if isinstance(parametrization, str)
        else parametrization
    )
    name = parametrization if isinstance(parametrization, str) else short(parametrization)
    key = jax.random.key(0) if key is None else key
    given = Scales() if scales is None else scales
    (small, shallow), points = (sizes[0][0], sizes[1][0]), _points(*sizes)
    jobs = [_job(make_network, rule, optimizer, point, sizes, given) for point in points]
    how: dict[str, Any] = {"optimizer": optimizer, "rate": learning_rate, "steps": steps, "loss": loss, "seeds": seeds}
    found = {
        point: _run(job, data=data, key=key, **how)
        for point, job in zip(runner.progress(points, len(points), "coordinate check"), jobs, strict=True)
    }
    along_width = {what: np.stack([found[n, shallow][what] for n in sizes[0]]) for what in WHAT}
    along_depth = {what: np.stack([_at_places(found[small, l][what], sizes[1]) for l in sizes[1]]) for what in WHAT}
    return CoordinateCheck(name, *sizes, along_width, along_depth)


# --- the edge -------------------------------------------------------------------------------------------------------


def _ascending(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    checked = tuple(positive_integer(name, size) for size in sizes)
    if not checked or list(checked) != sorted(set(checked)):
        raise ValueError(f"{name} must ascend, got {list(sizes)}")
    return checked


def _called(name: str, about: str, function: Callable[..., Any], arguments: tuple[Any, ...], kind: type) -> Any:
    """What a user's function makes, if it is of the kind that it is to make."""
    try:
        made = function(*arguments)
    except (TypeError, IndexError) as error:
        raise ValueError(f"{name} must be a function {about}, got {short(function)}: {short(str(error))}") from error
    if not isinstance(made, kind):
        raise ValueError(f"{name} must be a function {about}, got {short(made)} from it")
    return made


def _points(widths: tuple[int, ...], depths: tuple[int, ...]) -> list[tuple[int, int]]:
    """A cross: all widths at the first depth, all depths at the first width."""
    return [*((width, depths[0]) for width in widths), *((widths[0], depth) for depth in depths[1:])]


class _Job(NamedTuple):
    """A network to be trained, and how: its scales, and the factors on its learning rates, by path."""

    network: Network
    scales: Scales
    factors: dict[str, float]


def _job(
    make_network: Callable[..., Any],
    rule: Rule,
    optimizer: str,
    point: tuple[int, int],
    sizes: tuple[tuple[int, ...], tuple[int, ...]],
    given: Scales,
) -> _Job:
    def made(width: int) -> Network:
        about = "(width, depth) -> Network"
        network: Network = _called("make_network", about, make_network, (width, point[1]), Network)
        return network

    network = made(point[0])
    wider, deeper = (size / along[0] for size, along in zip(point, sizes, strict=True))
    ratios = wider, deeper, optimizer not in ("sgd", "momentum", "nesterov")
    about = "(width, depth, adaptive) -> Parametrization"
    rule_of = _called("parametrization", about, rule, ratios, Parametrization)
    if "branch" in rule_of.scales and "branch" not in network.scales:
        raise ValueError(f"a parametrization of depth needs networks with a scale branch, got {network!r}")
    check_scales(network, given)
    standing = network.completed(given)
    named = {name: factor * np.asarray(standing[name]) for name, factor in rule_of.scales.items() if name in standing}
    values: dict[str, Any] = {**given, **named}
    shapes, *ends = (_shapes(each) for each in (network, made(sizes[0][0]), made(sizes[0][-1])))
    if any(end.keys() != shapes.keys() for end in ends):
        raise ValueError(f"make_network must make the same parameters at all widths, got others at {point[0]}")
    wide = {path: tuple(a != b for a, b in zip(*(end[path] for end in ends), strict=True)) for path in shapes}
    return _Job(network, Scales(**values), {path: rule_of.rate(path, axes) for path, axes in wide.items()})


def _shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Of one layer's parameters, by path."""
    drawn = trainable(jax.eval_shape(functools.partial(init, network=network), jax.random.key(0)))
    return {path: leaf.shape[int(_is_stacked(network, path)) :] for path, leaf in drawn.items()}


# --- the work ---------------------------------------------------------------------------------------------------------


def _run(
    job: _Job, *, data: Data, optimizer: str, rate: float, steps: int, loss: Loss | None, seeds: int, key: Array
) -> dict[str, np.ndarray]:
    """Logarithms of one network, by name, shape ``(seeds, steps + 1, depth + 2)``."""
    examples = as_examples("data", data)

    def made(rate: Any) -> optax.GradientTransformation:
        # Steps are proportional to the learning rate, weight decay included.
        scaled = optax.stateless(lambda updates, _: {path: job.factors[path] * u for path, u in updates.items()})
        return optax.chain(OPTIMIZERS[optimizer](rate), scaled)

    config = checked_config(
        job.network,
        examples,
        None,
        optimizer=made,
        schedule="constant",
        num_steps=steps,
        batch_size=None,
        loss=loss,
    )
    probes = in_states(config.per_state, examples).inputs
    seen = []
    for seed in range(seeds):
        parameters = init(jax.random.fold_in(key, seed), job.network)
        problem = loop.begin(config, key, parameters, job.scales, {"": jnp.asarray(rate, parameters.dtype)}, examples)
        state, leaves, rows = loop.first_state(problem), [], []
        for step in range(steps + 1):
            state = loop.until(problem, state, step)
            leaves.append(state.leaves)
            now = (leaves[-1], leaves[0], leaves[max(0, step - 1)])
            rows.append(np.asarray(_coordinates(problem.parameters, problem.scales, now, probes)))
        seen.append(np.stack(rows))
    logs = np.stack(seen).astype(float)
    return {what: logs[:, :, i] for i, what in enumerate(WHAT)}


def _is_stacked(network: Network, path: str) -> bool:
    """Whether a parameter has an axis of layers."""
    return path.startswith("blocks/") and not network.stages[int(path.split("/")[1])].tied


@jax.jit
def _coordinates(parameters: Parameters, scales: Scales, leaves: tuple[Any, Any, Any], xs: Array) -> Array:
    """ln of the root mean squares of `WHAT`, shape ``(3, depth + 2)``, from leaves now, at first and before."""

    def states(leaves: dict[str, Array]) -> list[Any]:
        whole = without_noise(with_trainable(parameters, leaves))
        return jax.vmap(lambda x: _states(whole, scales, x))(xs)

    now, first, before = map(states, leaves)
    apart = [now, *(jax.tree.map(jnp.subtract, now, other) for other in (first, before))]
    return jnp.stack([jnp.concatenate([_log_rms(series) for series in each]) for each in apart])


def _states(parameters: Parameters, scales: Scales, x: Array) -> list[Array]:
    """s_0, the states behind every layer a stage, and the output; each with a leading axis."""
    layers = bind(parameters, scales, x)
    h = layers.stem(x.astype(parameters.dtype)) if layers.stem else x.astype(parameters.dtype)

    def visit(layer: Layer, h: Array, _: None) -> tuple[Array, Array]:
        h = layer(h)
        return h, h

    last, series = layers.scan(h, visit)
    return [h[None], *series, (layers.head(last) if layers.head else last)[None]]


def _log_rms(series: Array) -> Array:
    """Over examples (leading axis) and units, one number a layer (the next axis)."""
    axes = (0, *range(2, series.ndim))
    return jnp.log(jnp.mean(series**2, axis=axes)) / 2
