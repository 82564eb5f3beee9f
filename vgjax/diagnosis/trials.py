"""What could be changed about a model, each change measured on it: kernels at unit factor, redrawn, branches scaled."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax.checks import RandomKey, kinds
from vgjax.diagnosis.layout import Layout
from vgjax.diagnosis.models import Model, read_model, with_parameters
from vgjax.diagnosis.prepared import Prepared, prepare
from vgjax.diagnosis.readings import Path, Readings, Row
from vgjax.diagnosis.sites import Site
from vgjax.diagnosis.verdict import Verdict, Word, judge, number
from vgjax.initializers import Scales
from vgjax.measure.gradients import gradient_flow
from vgjax.networks.builders import lstm, mlp
from vgjax.networks.parameters import init
from vgjax.values import by_content

Leaves = dict[str, jax.Array]
"""Parameters by their paths."""

_ROUNDS = 8
"""Of rescaling: one factor changes all states behind it. ReLU needs 2, tanh and sigmoid 5 to 6 (measured)."""
_MOST = 2.0
"""ln of the largest factor of one round: a saturated layer answers to more with a jump."""
_UNIT_FACTOR = "kernels at unit"
_UNIT = 0.02
"""ln of a layer's factor that counts as 1."""


@by_content
@kinds
@dataclass(frozen=True)
class Proposal:
    """One change, and what it did to the model it was tried on.

    Attributes:
        name: what is changed.
        advice: the same as a sentence that says what to expect.
        before, after: verdicts on the model without and with it.
        change: parameters, by path, that are other than they were; None for what is no change of parameters.
    """

    name: str
    advice: str
    before: Verdict
    after: Verdict
    change: Callable[[Leaves], Leaves] | None = None

    @property
    def helps(self) -> bool:
        """Whether the model is healthy with it."""
        return self.after.is_healthy and not self.before.is_healthy

    @kinds
    def apply(self, model: Any) -> Any:
        """The model with the change; the one given stays as it is.

        Args:
            model: as for `vgjax.diagnose`, with the same parameters.

        Raises:
            ValueError: no change of parameters, or another model's.
        """
        if self.change is None:
            raise ValueError(f"{self.name} is no change of parameters: {self.advice}")
        return with_parameters(model, self.change)

    def __repr__(self) -> str:
        return f"<proposal: {self}>"

    def __str__(self) -> str:
        ends = (number(-verdict.lost) if math.isfinite(verdict.lost) else "-" for verdict in (self.before, self.after))
        return f"{self.name}: {self.before.word} -> {self.after.word} (gradient in all: {' -> '.join(ends)})"


@kinds
def proposals(
    model: Any, batch: Any, loss: Callable[..., Any] | None = None, *, key: RandomKey | None = None
) -> list[Proposal]:
    """What could be changed about a model, the most helpful first; every effect is measured on the model and batch.

    Tried are: one factor a kernel so that every layer hands the gradient on as it is, or the signal (LSUV, Mishkin &
    Matas 2016, arXiv:1511.06422, by scale alone); kernels drawn anew (He, LeCun, orthogonal); inputs standardized;
    branches of a residual stream by 1 / sqrt(L); biases of 0; gates of a recurrence opened, its kernels rescaled. A
    gradient that explodes can also be clipped, which no vanishing one is helped by.

    Args:
        model, batch, loss, key: as for `vgjax.diagnose`; ``key`` also draws kernels.

    Returns:
        One for everything that could be tried, sorted by what it leaves: a healthy verdict first, then the smallest
        change of the gradient over the whole path (L / xi). Empty for a healthy model.

    Raises:
        ValueError: as `vgjax.diagnose`.
    """
    key = jax.random.key(0) if key is None else key
    told = read_model(model, batch, loss, key)
    trial = _Trial(told, prepare(told), key)
    if trial.before.is_healthy:
        return []
    tried = sorted((found for make in _CHANGES for found in make(trial)), key=_rank)
    best = next((each for each in tried if not each.name.startswith(_UNIT_FACTOR)), None)
    if best is not None and best is tried[0] and abs(best.after.lost) >= 1:  # something is left to be rescaled
        tried = sorted([*tried, *_rescaled(trial, best)], key=_rank)
    helped, flows = any(each.helps for each in tried), trial.before.word in (Word.VANISHING, Word.EXPLODING)
    return ([_other_architecture(trial)] if flows and not helped else []) + tried + _advice(trial.before)


def _rank(proposal: Proposal) -> tuple[int, float]:
    lost = proposal.after.lost
    return int(not proposal.after.is_healthy), abs(lost) if math.isfinite(lost) else math.inf


def _advice(before: Verdict) -> list[Proposal]:
    if before.word is not Word.EXPLODING:
        return []
    said = (
        "clip the gradient's norm (optax.clip_by_global_norm) and warm the learning rate up: the steps then stay "
        "finite, the layers near the input still get all of the gradient"
    )
    return [Proposal("clipping", said, before, before)]


# --- trying ---------------------------------------------------------------------------------------------------------


class _Trial:
    """A model that other parameters are tried in; what is compiled serves all of them."""

    def __init__(self, model: Model, prepared: Prepared, key: jax.Array) -> None:
        self.key, self.inputs = key, model.inputs
        self.layout: Layout = prepared.layout
        self._structure = jax.tree.structure(model.parameters)
        self._read = functools.partial(prepared.read, key=key)
        self.leaves: Leaves = dict(zip(self.layout.names, jax.tree.leaves(model.parameters), strict=True))
        self.readings = self.read(self.leaves)
        self.before = judge(self.readings)

    def read(self, leaves: Leaves, inputs: Any = None) -> Readings:
        """What a pass says of such parameters, and such inputs."""
        return self._read(jax.tree.unflatten(self._structure, list(leaves.values())), inputs)

    def proposal(self, name: str, advice: str, change: Callable[[Leaves], Leaves]) -> Proposal:
        """A change, measured."""
        return Proposal(name, advice, self.before, judge(self.read(self.leaves | change(self.leaves))), change)

    def sites(self) -> Iterator[tuple[str, Site]]:
        """Products and convolutions that read a parameter, once for each."""
        seen = set()
        for site in self.layout.sites.all:
            name = self.layout.site_name(site)
            if site.weight is not None and site.fan_in and name not in seen:
                seen.add(name)
                yield name, site


# --- factors --------------------------------------------------------------------------------------------------------

Factors = dict[tuple[str, int | None], float]
"""ln of a factor by the kernel's path, and by its slice if it is one of a stack."""


def _rescaled(trial: _Trial, first: Proposal | None = None) -> Iterator[Proposal]:
    """One factor a kernel so that each layer's own is 1; behind another change, if one is given."""
    ways = {
        "backward": ("gradient", lambda row, after: after.log_cotangent - row.log_cotangent),
        "forward": ("signal", lambda row, after: -after.log_rms),
    }
    changed = {} if first is None or first.change is None else first.change(trial.leaves)
    for way, (what, off) in ways.items():
        factors = _solved(trial, trial.leaves | changed, off)
        name = f"{_UNIT_FACTOR} {way} factor"
        advice = f"rescale {len(factors)} kernels, each by its own factor, so that every layer keeps the {what}"
        if factors and first is not None and first.change is not None:
            name, advice = f"{first.name}, then {name}", f"{first.advice}, then {advice}"
            yield trial.proposal(name, advice, functools.partial(_one_then_times, first.change, factors))
        elif factors:
            yield trial.proposal(name, advice, functools.partial(_times, factors))


def _solved(trial: _Trial, leaves: Leaves, off: Callable[[Row, Row], float]) -> Factors:
    total: Factors = {}
    for _ in range(_ROUNDS):
        moves = _moves(trial.read(leaves | _times(total, leaves)).paths[0], trial, off)
        total = {at: total.get(at, 0.0) + moves.get(at, 0.0) for at in {**total, **moves}}
        if max(map(abs, moves.values()), default=0.0) < _UNIT:
            break
    return total


def _moves(path: Path, trial: _Trial, off: Callable[[Row, Row], float]) -> Factors:
    """What each kernel that alone makes a layer is off by, as ln of the factor to come; the first layer reads data."""
    found: dict[tuple[str, int | None], list[float]] = {}
    for row, after, sites in _layers(path):
        names = {site.name for site in sites if site.name in trial.leaves}
        move = off(row, after)
        if len(names) == 1 and math.isfinite(move) and row.operation != "input":
            (name,) = names
            stacked = trial.leaves[name].ndim > _matrix_axes(trial, name)
            step = next(site.step for site in sites) if stacked else None
            found.setdefault((name, step), []).append(float(np.clip(move, -_MOST, _MOST)))
    return {at: float(np.mean(moves)) for at, moves in found.items()}


def _layers(path: Path) -> Iterator[tuple[Row, Row, list[Row]]]:
    """Two states, one behind the other, and the maps with weights between them. A state of a loop holds those that make
    the next of its kind, any other those that make itself."""
    rows = path.rows
    for row, after in itertools.pairwise(rows):
        if row.step is not None and not _is_product(row):
            yield row, after, [row, *row.sites]
        elif after.is_layer and after.step is None:
            yield row, after, [after, *after.sites]


def _is_product(row: Row) -> bool:
    return row.operation in ("dot_general", "conv_general_dilated")


def _matrix_axes(trial: _Trial, name: str) -> int:
    """Axes of the weight that a map reads; a stack of them has one more."""
    return next((len(site.weight.shape) for n, site in trial.sites() if n == name and site.weight), 99)


def _times(factors: Factors, leaves: Leaves) -> Leaves:
    changed: Leaves = {}
    for (name, step), log in factors.items():
        leaf = jnp.asarray(changed.get(name, leaves[name]))
        factor = jnp.asarray(math.exp(log), leaf.dtype)
        changed[name] = leaf * factor if step is None else leaf.at[step].multiply(factor)
    return changed


def _one_then_times(first: Callable[[Leaves], Leaves], factors: Factors, leaves: Leaves) -> Leaves:
    changed = first(leaves)
    return changed | _times(factors, leaves | changed)


# --- new draws ------------------------------------------------------------------------------------------------------


def _redrawn(trial: _Trial) -> Iterator[Proposal]:
    """Kernels drawn anew at their own fan-in."""
    kernels = {name: site.fan_in for name, site in trial.sites()}
    if not kernels:
        return
    for name, gain in (("He", math.sqrt(2)), ("LeCun", 1.0)):
        advice = f"draw kernels as Gaussians of variance {gain**2:.0f} / fan_in ({name})"
        yield trial.proposal(f"{name} kernels", advice, functools.partial(_gaussian, kernels, gain, trial.key))
    matrices = {name: site for name, site in trial.sites() if site.weight is not None and len(site.weight.shape) == 2}
    if len(matrices) == len(kernels):
        said = "draw kernels as orthogonal matrices: every direction keeps its length"
        yield trial.proposal("orthogonal kernels", said, functools.partial(_orthogonal, [*matrices], trial.key))


def _gaussian(kernels: dict[str, int], gain: float, key: jax.Array, leaves: Leaves) -> Leaves:
    return {
        name: (gain / math.sqrt(fan_in) * jax.random.normal(jax.random.fold_in(key, i), leaves[name].shape)).astype(
            leaves[name].dtype
        )
        for i, (name, fan_in) in enumerate(kernels.items())
    }


def _orthogonal(names: Sequence[str], key: jax.Array, leaves: Leaves) -> Leaves:
    draw = jax.nn.initializers.orthogonal()
    drawn: Leaves = {}
    for i, name in enumerate(names):
        shape = leaves[name].shape
        keys = jax.random.split(jax.random.fold_in(key, i), math.prod(shape[:-2]))
        one = jnp.stack([draw(each, shape[-2:], jnp.float32) for each in keys])
        drawn[name] = one.reshape(shape).astype(leaves[name].dtype)
    return drawn


# --- streams, biases, gates -----------------------------------------------------------------------------------------


def _standardized(trial: _Trial) -> Iterator[Proposal]:
    """Inputs of mean 0 and variance 1, over the whole batch, if they are far from that."""

    def standardized(a: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(a), jnp.floating) or jnp.size(a) < 2:
            return a
        return (a - jnp.mean(a)) / jnp.maximum(jnp.std(a), 1e-6)

    floats = [a for a in jax.tree.leaves(trial.inputs) if jnp.issubdtype(jnp.result_type(a), jnp.floating)]
    far = [a for a in floats if abs(float(jnp.mean(a))) > 0.5 or not 0.3 < float(jnp.std(a)) < 3]
    if far:
        after = judge(trial.read(trial.leaves, jax.tree.map(standardized, trial.inputs)))
        said = f"give it inputs of mean 0 and variance 1, not of mean {float(jnp.mean(far[0])):.2g}"
        yield Proposal("standardized inputs", f"{said} and deviation {float(jnp.std(far[0])):.2g}", trial.before, after)


def _branches(trial: _Trial) -> Iterator[Proposal]:
    """The last kernel of every branch of a residual stream by 1 / sqrt(L)."""
    adds = [row for row in trial.readings.paths[0].rows if row.operation == "add" and row.sites]
    last = [row.sites[-1].name for row in adds if row.sites[-1].name in trial.leaves]
    if len(last) > 1:
        factor = -math.log(len(adds)) / 2
        advice = f"multiply the last kernel of each of {len(adds)} branches by 1 / sqrt({len(adds)})"
        factors: Factors = {(name, None): factor for name in last}
        yield trial.proposal("branches by 1 / sqrt(L)", advice, functools.partial(_times, factors))


def _biases(trial: _Trial) -> Iterator[Proposal]:
    """Offsets at 0, where there are others."""
    names = [name for name in trial.leaves if name.rpartition("/")[2] in ("bias", "b", "offset", "beta")]
    moved = [name for name in names if bool(jnp.any(trial.leaves[name] != 0))]
    if moved:
        yield trial.proposal("biases of 0", f"start {len(moved)} biases at 0", functools.partial(_zeros, moved))


def _zeros(names: Sequence[str], leaves: Leaves) -> Leaves:
    return {name: jnp.zeros_like(leaves[name]) for name in names}


def _gates(trial: _Trial) -> Iterator[Proposal]:
    """Of an LSTM or GRU: one gate's bias raised, whichever of them the gradient answers to."""
    if trial.before.kind != "time":
        return
    for name, leaf in trial.leaves.items():
        for gates in (1, 3, 4) if leaf.ndim == 1 else ():  # of libraries with an array a gate, or with one for all
            size = leaf.size // gates
            for gate, rise in itertools.product(range(gates) if gates * size == leaf.size > 1 else (), (1.0, 3.0, 6.0)):
                part = slice(gate * size, (gate + 1) * size)
                said = f"{name}[{part.start}:{part.stop}] raised by {rise:g}"
                raised = functools.partial(_raised, name, part, rise)
                yield trial.proposal(said, f"start with {said}, so that a gate stays open", raised)


def _raised(name: str, part: slice, rise: float, leaves: Leaves) -> Leaves:
    return {name: jnp.asarray(leaves[name]).at[part].add(rise)}


def _recurrent(trial: _Trial) -> Iterator[Proposal]:
    """Of a recurrence: one of its kernels by the factor that a step is off by; its memory changes with it."""
    if trial.before.kind != "time" or not math.isfinite(trial.before.slope):
        return
    path = next(path for path in trial.readings.paths if path.name == trial.before.path)
    for name in dict.fromkeys(
        site.name for row in path.rows for site in (row, *row.sites) if site.name in trial.leaves
    ):
        factors: Factors = {(name, None): trial.before.slope}
        for _ in range(_ROUNDS):
            found = judge(trial.read(trial.leaves | _times(factors, trial.leaves)))
            if found.kind != "time" or not math.isfinite(found.slope) or abs(found.slope) < _UNIT / 4:
                break
            factors = {(name, None): factors[name, None] + float(np.clip(found.slope, -_MOST, _MOST))}
        advice = f"multiply {name} by {math.exp(factors[name, None]):.3g}, so that a step keeps the gradient's size"
        yield trial.proposal(f"{name} rescaled", advice, functools.partial(_times, factors))


def _other_architecture(trial: _Trial) -> Proposal:
    """What no parameters of this model can do, measured on a network of the library of the same depth and width."""
    before = trial.before
    path = next((path for path in trial.readings.paths if path.name == before.path), trial.readings.paths[0])
    width = min(128, max(2, int(np.median([row.shape[-1] if row.shape else 1 for row in path.rows]))))
    depth = max(2, before.layers)
    if before.kind == "time":
        net, scales = lstm(width=width, depth=depth, inputs=width), Scales(forget_bias=3.0)
        what = f"an LSTM with a forget bias of 3 over {depth} steps"
    else:
        net = mlp(width=width, depth=depth, activation="relu", inputs=width, norm="layer", residual="pre")
        scales, what = Scales(), f"a residual stream of {depth} branches, each behind a layer norm,"
    x = jax.random.normal(trial.key, net.input_shape)
    logs = np.asarray(gradient_flow(init(trial.key, net), scales, x).log_gradient, float)
    lost = float(logs[-1] - logs[0])
    after = Verdict(Word.HEALTHY, before.path, before.kind, depth, slope=lost / depth, lost=lost, limit=before.limit)
    said = f"no change of parameters that was tried helps; {what} hands {number(-lost)} of its gradient on (measured)"
    return Proposal("another architecture", said, before, after)


_CHANGES: tuple[Callable[[_Trial], Iterator[Proposal]], ...] = (
    _rescaled, _redrawn, _standardized, _branches, _biases, _gates, _recurrent
)  # fmt: skip
