"""Networks: what is compiled for, static and hashable.

A `Network` is a stem, stages of identical blocks (one `lax.scan` each) and a head. The stem makes the first state s_0
from the input, the blocks map s_0 to s_1 ... s_L, the head reads s_L; ``depth`` L counts the blocks.
`vgjax.networks.builders` makes them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from vgjax import activations
from vgjax.activations import Activation
from vgjax.blocks import Dense, Spec
from vgjax.blocks.protocol import block_info, scales_of
from vgjax.checks import is_traced, known
from vgjax.initializers import Scale, Scales


@dataclass(frozen=True)
class Stage:
    """``depth`` blocks of one spec in a row; one scan, so compile time does not depend on depth.

    Attributes:
        spec: how a block is built.
        depth: how many.
        tied: all of them share one draw (a recurrence).
        fed: each gets its own slice of the network's input, ``x[l]``, beside its state.
    """

    spec: Spec
    depth: int
    tied: bool = False
    fed: bool = False


@dataclass(frozen=True)
class Network:
    """A deep network as a static, hashable description; what is traced are `Parameters`, `Scales` and inputs.

    Attributes:
        stem: input -> s_0; None if the input is the first state.
        stages: the blocks, in order. A stage of depth 1 may change the state's shape (a transition).
        head: s_L -> output, at unit gain; None if the last state is the output.
        input_shape: shape of one input.
        defaults: of scales, where they differ from those that the blocks declare: name -> value, as pairs.
        every_step: the head reads every state s_1 ... s_L, not the last alone; the output then has a leading axis of
            layers.
    """

    stem: Spec | None
    stages: tuple[Stage, ...]
    head: Spec | None
    input_shape: tuple[int, ...]
    defaults: tuple[tuple[str, float], ...] = ()
    every_step: bool = False

    def __post_init__(self) -> None:
        if sum(stage.tied for stage in self.stages) > 1:
            raise ValueError("a network may have one stage of tied parameters, got several")

    @property
    def depth(self) -> int:
        """L, the number of blocks."""
        return sum(stage.depth for stage in self.stages)

    @property
    def scales(self) -> dict[str, Scale]:
        """The scales that its blocks declare, by name, with their defaults here."""
        specs = [*([self.stem] if self.stem else []), *(stage.spec for stage in self.stages)]
        declared = scales_of(*(block_info(spec) for spec in specs))
        return declared | {name: declared[name]._replace(default=value) for name, value in self.defaults}

    @property
    def fed(self) -> bool:
        """Whether its blocks read the input layer by layer."""
        return any(stage.fed for stage in self.stages)

    @property
    def activation(self) -> str | None:
        """Name of the blocks' activation, linear layers aside; None if they have none or differ."""
        names = {a.name for stage in self.stages for a in _activations(stage.spec)} - {"linear"}
        if not names and all(any(_activations(stage.spec)) for stage in self.stages):
            return "linear"
        return names.pop() if len(names) == 1 else None

    @property
    def plain(self) -> "Plain | None":
        """What theory has to know of a plain stack of `Dense` blocks, each with its own draw; None for any other
        network."""
        if any(stage.spec.block is not Dense or stage.tied for stage in self.stages):
            return None
        first = self.stages[0].spec
        options = dict(first.options)
        if any(dict(stage.spec.options) != options for stage in self.stages) or not set(options) <= set(_PLAIN):
            return None
        sizes = [first.arguments[0], *(s.spec.arguments[1] for s in self.stages for _ in range(s.depth))]
        activation: Any = options.get("activation", "linear")
        kernel_inits = str(options.get("kernel_init", "gaussian")), str(options.get("bias_init", "gaussian"))
        return Plain(activations.get(activation), *kernel_inits, tuple(sizes))  # type: ignore[arg-type]

    @property
    def exact_range(self) -> tuple[bool, bool]:
        """Whether states (below, above) the float range are exact: whether all its activations allow it (`Facts`)."""
        specs = (*(stage.spec for stage in self.stages), *([self.head] if self.head else []))
        facts = [a.facts for spec in specs for a in _activations(spec)]
        return all(f.below for f in facts), all(f.above for f in facts)


_PLAIN = ("activation", "kernel_init", "bias_init", "dtype")


class Plain(NamedTuple):
    """A plain stack: its activation, the laws of its kernels and biases, and the sizes of h^0 ... h^L."""

    activation: Activation
    kernel_init: str
    bias_init: str
    widths: tuple[int, ...]


def _activations(spec: Spec) -> Iterator[Activation]:
    for part in spec.nested():
        yield from (value for _, value in part.options if isinstance(value, Activation))


def check_scales(network: Network, scales: Scales) -> None:
    """Raise ValueError unless the network declares every scale, each keeps the rule of its kind, and each is a number
    or one value per layer."""
    declared = network.scales
    for name, value in scales.items():
        scale = declared[known("scale", name, declared)]
        scale.check(name, value)
        if np.shape(value) not in ((), (network.depth,)):
            expected = f"a number or one value per layer, shape ({network.depth},)"
            raise ValueError(f"{name} must be {expected}, got shape {np.shape(value)}")
        if np.shape(value) and scale.kind == "parameter" and any(stage.tied for stage in network.stages):
            raise ValueError(f"{name} must be one number where layers share their parameters, got one per layer")


def check_input(network: Network, x: ArrayLike, *, batch: bool = False) -> None:
    """Raise ValueError unless x is one finite input of the network (or, with ``batch``, any number of them)."""
    shape, expected = np.shape(x), network.input_shape
    if not (shape == expected or (batch and shape[1:] == expected and shape[0] > 0)):
        leading = " (with or without a leading batch axis)" if batch else ""
        steps = f": one input for each of the {network.depth} steps" if network.fed else ""
        raise ValueError(f"x must have shape {expected}{leading}{steps}, got {shape}")
    if not is_traced(x) and not np.all(np.isfinite(np.asarray(x))):
        raise ValueError("x must be finite, got a NaN or an infinity")
