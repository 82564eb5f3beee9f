"""Networks: what is compiled for, static and hashable.

A `Network` is a stem, stages of identical blocks (one `lax.scan` each) and a head. The stem makes the first state s_0
from the input, the blocks map s_0 to s_1 ... s_L, the head reads s_L; ``depth`` L counts the blocks.
`vgjax.networks.builders` makes them.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax.activations import Activation
from vgjax.blocks import Spec
from vgjax.blocks.protocol import block_info, scales_of
from vgjax.blocks.told import TheoryArguments
from vgjax.checks import ArrayLike, finite_in, is_traced, kinds, known
from vgjax.initializers import Scale, Scales, law_name
from vgjax.networks.layer import parameter_dtype, shape_after

OF_HEAD = "sigma_out"
"""The one scale that a head reads; its others stand at unit gain, for it is no layer of what sweeps are about."""


@kinds
@dataclass(frozen=True)
class Stage:
    """``depth`` blocks of one spec in a row; one scan, so compile time does not depend on depth.

    Attributes:
        spec: how a block is built.
        depth: how many.
        tied: all of them share one draw (a recurrence).
        driven: each gets its own slice of the network's input, ``x[l]``, beside its state.
        read: the head reads the state behind each of them, not the last alone (a loss at every step).
        keeps_shape: the state behind a block has the shape of that before it; else the stage has one block.
    """

    spec: Spec
    depth: int
    tied: bool = False
    driven: bool = False
    read: bool = False
    keeps_shape: bool = True

    def __post_init__(self) -> None:
        if self.depth > 1 and not self.keeps_shape:
            name = self.spec.block.__name__
            raise ValueError(f"{name} must keep the shape of its state to stand in a stage of {self.depth}")


@kinds
@dataclass(frozen=True, repr=False)
class Network:
    """A deep network as a static, hashable description; what is traced are `Parameters`, `Scales` and inputs.

    Attributes:
        stem: input -> s_0; None if the input is the first state.
        stages: the blocks, in order.
        head: s_L -> output, at unit gain; None if the last state is the output.
        input_shape: shape of one input.
        shared: paths of parameters of the head that are parameters of the stem, each with its path there (a readout by
            the table of the embedding): the stem holds them, for both, and the head takes the stem's scales.
        name: of the architecture, for people; two networks that differ in nothing else are equal.
    """

    stem: Spec | None
    stages: tuple[Stage, ...]
    head: Spec | None
    input_shape: tuple[int, ...]
    shared: tuple[tuple[str, str], ...] = ()
    # Not compared: it would compile equal networks twice.
    name: str = field(default="network", compare=False)

    def __post_init__(self) -> None:
        # Gradients of tied parameters are summed by path, which two such stages would share.
        if sum(stage.tied for stage in self.stages) > 1:
            raise ValueError("a network may have one stage of tied parameters, got several")
        if len({stage.read for stage in self.stages}) > 1:
            raise ValueError("the head must read the states of all stages or of none, got some")
        if self.shared and (self.stem is None or self.head is None):
            raise ValueError(f"stem and head must be there to share parameters, got none for {self.shared[0]}")

    def __repr__(self) -> str:
        return _in_one_line(self)

    @property
    def depth(self) -> int:
        """L, the number of blocks."""
        return sum(stage.depth for stage in self.stages)

    @property
    def scales(self) -> dict[str, Scale]:
        """The scales that its blocks declare, by name, with their defaults; and `OF_HEAD`, where the head has it."""
        of_blocks = [block_info(stage.spec) for stage in self.stages]
        of_stem = [block_info(self.stem)] if self.stem else []
        of_head = block_info(self.head).scales if self.head else {}
        of_head = {name: scale for name, scale in of_head.items() if name == OF_HEAD}
        # Those of the blocks first; of two defaults that of the blocks holds.
        return scales_of(*of_blocks) | scales_of(*of_stem, *of_blocks) | of_head

    @kinds
    def completed(self, scales: Mapping[str, Any]) -> dict[str, Any]:
        """Every scale that it declares: as it was given, else as the one that it follows, else at its default."""
        declared = self.scales

        def value(name: str) -> Any:
            if name in scales:
                return scales[name]
            followed = declared[name].follows
            return value(followed) if followed in declared else one_a_layer(name, declared[name].default)

        def one_a_layer(name: str, default: Any) -> Any:
            if isinstance(default, tuple) and len(default) != self.depth:
                rule = f"scale {name} has a default for each of {len(default)} layers"
                raise ValueError(f"{rule}, so the network must have that depth, got depth {self.depth}")
            return default

        return {name: value(name) for name in declared}

    @property
    def driven(self) -> bool:
        """Whether its blocks read the input layer by layer."""
        return any(stage.driven for stage in self.stages)

    @property
    def every_step(self) -> bool:
        """Whether the head reads every state s_1 ... s_L; the output then has a leading axis of layers."""
        return any(stage.read for stage in self.stages)

    @property
    def activation(self) -> str | None:
        """Name of the blocks' activation, linear layers aside; None if they have none or differ."""
        names = {a.name for stage in self.stages for a in _activations(stage.spec)} - {"linear"}
        # "linear" where nothing else is, but not for blocks that tell no activation at all.
        if not names and all(any(_activations(stage.spec)) for stage in self.stages):
            return "linear"
        return names.pop() if len(names) == 1 else None

    @property
    def theory_arguments(self) -> TheoryArguments | None:
        """What theory has to be given of it; None where theory has nothing: where blocks tell nothing, or not of one
        family, or share draws or read inputs otherwise than its theory has it."""
        stages = [(block_info(stage.spec).theory, stage) for stage in self.stages]
        told = [(of, stage.depth) for of, stage in stages if of and {stage.tied, stage.driven} == {of.over_time}]
        if len(told) < len(stages) or len({type(of) for of, _ in told}) != 1:
            return None
        return told[0][0].stacked(told)


def _activations(spec: Spec) -> Iterator[Activation]:
    for part in spec.nested():
        yield from (value for _, value in part.options if isinstance(value, Activation))


# --- shapes ---------------------------------------------------------------------------------------------------------


@functools.cache
def state_shapes(network: Network) -> tuple[tuple[int, ...], ...]:
    """Shapes of the first state and of the state behind every stage."""
    # float32 for any dtype: only shapes are read, and float64 may be switched off here.
    x, at_layer = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (network.input_shape, network.input_shape[1:]))
    states = [shape_after(network.stem, x) if network.stem else x]
    for stage in network.stages:
        states.append(shape_after(stage.spec, states[-1], at_layer if stage.driven else None))
    return tuple(state.shape for state in states)


@functools.cache
def output_shape(network: Network) -> tuple[int, ...]:
    """Shape of the output: ``(outputs,)``, with ``every_step`` ``(depth, outputs)``."""
    last = jax.ShapeDtypeStruct(state_shapes(network)[-1], jnp.float32)
    shape = shape_after(network.head, last).shape if network.head else last.shape
    return (network.depth, *shape) if network.every_step else shape


def state_sizes(network: Network) -> np.ndarray:
    """Numbers in each of the states s_0 ... s_L, shape ``(depth + 1,)``."""
    sizes = [int(np.prod(shape)) for shape in state_shapes(network)]
    return np.repeat(sizes, [stage.depth for stage in network.stages] + [1])


# --- for people -----------------------------------------------------------------------------------------------------

# What every network is made of, and what its name and its activation say already.
_UNSAID = ("dense", "conv", "chain", "activate")


def _in_one_line(network: Network) -> str:
    """``mlp(tanh, width 256, depth 100, inputs 64, outputs 10)``, and behind it what else there is: norms, skips."""
    shapes = [shape for shape, _ in itertools.groupby(state_shapes(network))]
    numbers = {
        "width" if all(len(shape) == 1 for shape in shapes) else "states": "-".join(map(_by_x, shapes)),
        "depth": str(network.depth),
        "inputs": _by_x(network.input_shape),
        "outputs": _by_x(output_shape(network)),
    }
    first = [network.activation] if network.activation else []
    return f"{network.name}({', '.join([*first, *(' '.join(pair) for pair in numbers.items()), *_extras(network)])})"


def _by_x(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "one number"


def _extras(network: Network) -> Iterator[str]:
    words: list[str] = []
    for part in (part for stage in network.stages for part in stage.spec.nested()):
        named = part.block.__name__.removesuffix("Cell").lower()
        if named not in (*_UNSAID, network.name):
            kinds = (argument for argument in part.arguments if isinstance(argument, str))
            words.append(" ".join([*kinds, part.block.__name__.lower()]))
        options = {"kernel_init": "gaussian", "bias_init": "gaussian", "dtype": "float32"} | dict(part.options)
        words += [law_name(options["kernel_init"]), f"{law_name(options['bias_init'])} bias", str(options["dtype"])]
    yield from (word for word in dict.fromkeys(words) if word not in ("gaussian", "gaussian bias", "float32"))
    if any(stage.tied and not stage.driven for stage in network.stages):
        yield "tied"
    if network.every_step:
        yield "every step read"
    if network.shared:
        yield "tied readout"


# --- checks at the edge ---------------------------------------------------------------------------------------------


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
        steps = f": one input for each of the {network.depth} steps" if network.driven else ""
        raise ValueError(f"x must have shape {expected}{leading}{steps}, got {shape}")
    finite_in("x", x, parameter_dtype(network.stages[0].spec))
    vocabulary = block_info(network.stem or network.stages[0].spec).vocabulary
    if vocabulary is not None and not is_traced(x):
        outside = (np.asarray(x) % 1 != 0) | (np.asarray(x) < 0) | (np.asarray(x) >= vocabulary)
        if np.any(outside):
            raise ValueError(
                f"x must hold tokens, whole numbers from 0 to {vocabulary - 1}, got {np.asarray(x)[outside][0]}"
            )
