"""Networks: what is compiled for, static and hashable.

A `Network` is a stem, stages of identical blocks (one `lax.scan` each) and a head. The stem makes the first state s_0
from the input, the blocks map s_0 to s_1 ... s_L, the head reads s_L; ``depth`` L counts the blocks.
"""

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from vgjax import activations, blocks, initializers
from vgjax.activations import Activation, Elementwise
from vgjax.checks import is_traced, known, not_negative, positive_integer
from vgjax.initializers import Scales


@dataclass(frozen=True)
class Spec:
    """How to build a block: its class and its static arguments.

    Attributes:
        block: an `nnx.Module` class; built as ``block(*arguments, **dict(options), rngs=rngs)``.
        arguments, options: hashable.
    """

    block: type[nnx.Module]
    arguments: tuple[Hashable, ...] = ()
    options: tuple[tuple[str, Hashable], ...] = ()

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """A freshly drawn block."""
        return self.block(*self.arguments, **dict(self.options), rngs=rngs)  # type: ignore[call-arg]


@dataclass(frozen=True)
class Stage:
    """``depth`` blocks of one spec in a row; one scan, so compile time does not depend on depth."""

    spec: Spec
    depth: int


@dataclass(frozen=True)
class Network:
    """A deep network as a static, hashable description; what is traced are `Parameters`, `Scales` and inputs.

    Attributes:
        stem: input -> s_0; None if the input is the first state.
        stages: the blocks, in order. A stage of depth 1 may change the state's shape (a transition).
        head: s_L -> output, at unit gain; None if the last state is the output.
        input_shape: shape of one input.
    """

    stem: Spec | None
    stages: tuple[Stage, ...]
    head: Spec | None
    input_shape: tuple[int, ...]

    @property
    def depth(self) -> int:
        """L, the number of blocks."""
        return sum(stage.depth for stage in self.stages)

    @property
    def scales(self) -> dict[str, float]:
        """The names of the scales its blocks declare, with their defaults."""
        specs = [*([self.stem] if self.stem else []), *(stage.spec for stage in self.stages)]
        return {name: default for spec in specs for name, default in blocks.declared_scales(spec.block).items()}

    @property
    def activation(self) -> str | None:
        """Name of the blocks' activation; None if they have none or differ."""
        names = {
            a.name if isinstance(a, Activation) else None
            for a in (dict(s.spec.options).get("activation") for s in self.stages)
        }
        return names.pop() if len(names) == 1 else None

    @property
    def plain(self) -> "Plain | None":
        """What theory has to know of a plain stack of `Dense` blocks; None for any other network."""
        if any(stage.spec.block is not blocks.Dense for stage in self.stages):
            return None
        first = self.stages[0].spec
        about = dict(first.options)
        if any(dict(stage.spec.options) != about for stage in self.stages):
            return None
        sizes = [first.arguments[0], *(s.spec.arguments[1] for s in self.stages for _ in range(s.depth))]
        return Plain(about["activation"], about["law"], about["bias_law"], tuple(sizes))  # type: ignore[arg-type]

    @property
    def covered(self) -> tuple[bool, bool]:
        """Whether states (below, above) the float range are exact: whether all its activations allow it (`Facts`)."""
        specs = (*(stage.spec for stage in self.stages), *([self.head] if self.head else []))
        activations = [dict(spec.options).get("activation") for spec in specs]
        facts = [a.facts for a in activations if isinstance(a, Activation)]
        return all(f.below for f in facts), all(f.above for f in facts)

    @property
    def prefix_closed(self) -> bool:
        """Whether its first l layers are the l-layer network (so that one pass answers for every depth)."""
        return all(getattr(stage.spec.block, "prefix_closed", True) for stage in self.stages)


class Plain(NamedTuple):
    """A plain stack: its activation, the laws of its kernels and biases, and the sizes of h^0 ... h^L."""

    activation: Activation
    law: str
    bias_law: str
    widths: tuple[int, ...]


def check_scales(network: Network, scales: Scales) -> None:
    """Raise ValueError unless the network declares every scale and each is a number or one value per layer."""
    for name, value in scales.items():
        known("scale", name, list(network.scales))
        not_negative(name, value)
        if np.shape(value) not in ((), (network.depth,)):
            expected = f"a number or one value per layer, shape ({network.depth},)"
            raise ValueError(f"{name} must be {expected}, got shape {np.shape(value)}")


def check_input(network: Network, x: ArrayLike, *, batch: bool = False) -> None:
    """Raise ValueError unless x is one finite input of the network (or, with ``batch``, any number of them)."""
    shape = np.shape(x)
    if not (shape == network.input_shape or (batch and shape[1:] == network.input_shape and shape[0] > 0)):
        leading = " (with or without a leading batch axis)" if batch else ""
        raise ValueError(f"x must have shape {network.input_shape}{leading}, got {shape}")
    if not is_traced(x) and not np.all(np.isfinite(np.asarray(x))):
        raise ValueError("x must be finite, got a NaN or an infinity")


# --- builders -------------------------------------------------------------------------------------------------------


def mlp(
    *,
    width: int | None = None,
    depth: int | None = None,
    activation: str | Activation | Elementwise = "tanh",
    inputs: int,
    outputs: int = 1,
    widths: Sequence[int] | None = None,
    law: str = "gaussian",
    bias_law: str = "gaussian",
    dtype: DTypeLike = "float32",
) -> Network:
    """A fully connected network: ``h^{l+1} = W^{l+1} phi(h^l) + b^{l+1}``, h^0 = W^0 x + b^0, output W phi(h^L).

    Args:
        width: units of every hidden state; or give ``widths``.
        depth: L, the number of hidden layers after the first, h^0 (so there are L + 1 hidden states).
        activation: phi: a name, an `Activation`, or any elementwise callable.
        inputs, outputs: sizes of one input and one output.
        widths: instead of width and depth, the sizes of h^0 ... h^L.
        law: unit-gain law of the kernels: gaussian, truncated, uniform, orthogonal.
        bias_law: gaussian or zero. The head has a zero bias.
        dtype: float32 or float64 (the latter within ``with jax.enable_x64(True):``).

    Raises:
        ValueError: a size below 1, an unknown name, or both (or neither) of width with depth and widths.
    """
    if (widths is None) == (width is None and depth is None):
        raise ValueError("an mlp takes either width and depth or widths, not both")
    if widths is None:
        size, length = positive_integer("width", width), positive_integer("depth", depth)
        states: tuple[int, ...] = (size,) * (length + 1)
    else:
        states = tuple(positive_integer("widths", w) for w in widths)
        if len(states) < 2:
            raise ValueError(f"widths must hold at least 2 sizes (h^0 and one layer), got {len(states)}")
    phi = activations.get(activation)
    initializers.law(law), initializers.law(bias_law, initializers.BIAS_LAWS)
    kind = np.dtype(dtype).name
    if kind not in ("float32", "float64"):
        raise ValueError(f"dtype must be float32 or float64, got {kind}")
    if jax.dtypes.canonicalize_dtype(kind).name != kind:
        raise ValueError(f"dtype {kind} needs jax.enable_x64(True) around the work, got it switched off")

    def dense(fan_in: int, fan_out: int, phi: Activation, bias_law: str = bias_law) -> Spec:
        options = {"activation": phi, "law": law, "bias_law": bias_law, "dtype": kind}
        return Spec(blocks.Dense, (fan_in, fan_out), tuple(options.items()))

    inputs, outputs = positive_integer("inputs", inputs), positive_integer("outputs", outputs)
    return Network(
        stem=dense(inputs, states[0], activations.get("linear")),
        stages=_stages([dense(*sizes, phi) for sizes in itertools.pairwise(states)]),
        head=dense(states[-1], outputs, phi, bias_law="zero"),
        input_shape=(inputs,),
    )


def stack(
    block: type[nnx.Module],
    *arguments: Hashable,
    depth: int,
    input_shape: int | tuple[int, ...],
    stem: Spec | None = None,
    head: Spec | None = None,
    **options: Hashable,
) -> Network:
    """A network of ``depth`` copies of your own block, each drawn afresh: any `nnx.Module` from a state to a state of
    its shape.

    Args:
        block: built as ``block(*arguments, **options, rngs=rngs)``, called as ``block(h)`` on one example; or as
            ``block(h, scales)`` if the class declares ``scales`` (see `vgjax.blocks`).
        depth: how many.
        input_shape: shape of one input: the state's shape where there is no stem.
        stem, head: `Spec` of the blocks before and behind.

    Raises:
        ValueError: a depth below 1, arguments that cannot be hashed, or a block that changes the shape of its state.
    """
    shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
    spec = Spec(block, arguments, tuple(sorted(options.items())))
    try:
        hash(spec)
    except TypeError as error:
        raise ValueError(f"arguments of {block.__name__} must be hashable (they are compiled for): {error}") from None
    network = Network(stem, (Stage(spec, positive_integer("depth", depth)),), head, shape)
    _check_shapes(network)
    return network


def _stages(specs: list[Spec]) -> tuple[Stage, ...]:
    """Equal blocks in a row become one stage, if they keep the state's shape; a block that changes it stands alone."""
    stages: list[Stage] = []
    for spec in specs:
        keeps_shape = spec.arguments[0] == spec.arguments[1]
        if stages and stages[-1].spec == spec and keeps_shape:
            stages[-1] = replace(stages[-1], depth=stages[-1].depth + 1)
        else:
            stages.append(Stage(spec, 1))
    return tuple(stages)


def _check_shapes(network: Network) -> None:
    def shape_after(spec: Spec | None, shape: tuple[int, ...]) -> tuple[int, ...]:
        if spec is None:
            return shape

        def run(h: Array) -> Array:
            return blocks.call(spec.build(nnx.Rngs(0)), h, Scales(**network.scales))

        return jax.eval_shape(run, jax.ShapeDtypeStruct(shape, jnp.float32)).shape

    shape = shape_after(network.stem, network.input_shape)
    for stage in network.stages:
        after = shape_after(stage.spec, shape)
        if after != shape and stage.depth > 1:
            raise ValueError(f"{stage.spec.block.__name__} must keep the shape of its state, got {after} from {shape}")
        shape = after
