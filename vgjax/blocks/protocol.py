"""What a block is, and what it may say about itself.

A block is any `nnx.Module` built with ``rngs=`` and called as ``block(h)`` on a plain array (one example, unbatched;
batches are `vmap`). What it may say about itself, all of it optional, so that a user's own module stacks as it is:

- ``scales``: class attribute or property, the names of the `Scales` it reads, each with its `Scale` (default and kind;
  a bare number is the default of a factor); it is then called ``block(h, scales)``;
- ``absorb_scales(scales)``: multiply scales into its own parameters, in place, and return the names of those that then
  stand at 1: what makes ordinary parameters of unit-gain draws;
- ``step(state, scales)``: itself on a scaled number past the float range (default: by its degrees, one tangent product
  more); of a driven block ``step(state, scales, x)``;
- ``linear``: class attribute, True if it is a linear map (so the exponent passes through);
- ``degrees``: how it and its Jacobian grow (below, above) the float range, `floatexp.Degrees` (default: measured on one
  draw); ``parameter_degrees``: how its derivative by each parameter does, by path, `floatexp.ParameterDegrees`
  (likewise);
- ``underflows()`` (with scales and input, if it gets them): whether a zero that it makes of a state or a tangent may be
  an underflow of its own (default: within the float range, if on one draw it made none);
- ``slopes(h)``: phi' of its units and phi's largest slope, for saturation (default: none reported);
- ``diagnostics(h)`` (with the arguments of the call): named numbers worth following along the depth, such as the mean
  of a gate (default: none);
- ``vocabulary``: of a stem that reads tokens, how many there are: the network's input is then whole numbers below it;
- ``theory_arguments``: what theory has to be given of it, an object of its family's class in `vgjax.blocks.told`; of a
  part, the fields that it sets of the layer it stands in, as a dict (default: None, theory has nothing);
- ``redraw(key)``: draw its noise anew, in place, as training does at every step (default: what keys it holds, those of
  Flax's own dropout, are drawn anew);
- ``parts``: class attribute, the names of the parts of its state along the state's first axis (an LSTM's h and c).

A block in a stage that is driven (a recurrent cell) gets its own input as last argument: ``block(h, x)`` or ``block(h,
scales, x)``. What a call changes in the block's own state is forgotten: a random key gives the same numbers in every
call, so that a network is a function. Evaluation sets ``deterministic``, as Flax's dropout has it, in all parts of a
block. Arrays that it works with (an adjacency matrix) are arguments, or an `nnx.Variable` inside; one that is read from
a global name is what it was when the block was first compiled. Derivatives are always those of the plain call; nothing
else needs to be written for a new block.
"""

import functools
import hashlib
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from vgjax.blocks.told import TheoryArguments
from vgjax.checks import ArrayLike, is_numeric, kinds, known, short
from vgjax.floatexp import Ends, FloatExp, ParameterDegrees, exponent_past_range, extended, extended_together
from vgjax.initializers import KINDS, Scale, Scales
from vgjax.values import reduced


@kinds
@dataclass(frozen=True)
class Spec:
    """How to build a block: its class and its static arguments.

    Attributes:
        block: an `nnx.Module` class; built as ``block(*arguments, **dict(options), rngs=rngs)``.
        arguments, options: hashable; arrays as `Constant`.
        deterministic: whether its noise (dropout) is off.
    """

    block: type[nnx.Module]
    arguments: tuple[Hashable, ...] = ()
    options: tuple[tuple[str, Hashable], ...] = ()
    deterministic: bool = False

    def __reduce_ex__(self, protocol: Any) -> Any:
        return reduced(self, self.block, self.arguments, self.options, self.deterministic)

    def __repr__(self) -> str:
        said = [
            *map(repr, self.arguments),
            *(f"{name}={getattr(value, 'name', value)}" for name, value in self.options),
        ]
        return f"{self.block.__name__}({', '.join(said)})"

    @kinds
    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """A freshly drawn block."""
        arguments = [_plain(value) for value in self.arguments]
        options = {name: _plain(value) for name, value in self.options}
        block = self.block(*arguments, **options, rngs=rngs)  # type: ignore[call-arg]
        if self.deterministic:
            block.set_attributes(deterministic=True, raise_if_not_found=False)
        return block

    @kinds
    def nested(self) -> Iterator["Spec"]:
        """This spec and those of the blocks it is made of."""
        yield self
        for value in (*self.arguments, *(value for _, value in self.options)):
            if isinstance(value, Spec):
                yield from value.nested()


@dataclass(frozen=True, eq=False, repr=False)
class Constant:
    """An array among the arguments of a block, hashed and compared by its content.

    Attributes:
        array: a copy that cannot be written to; the block gets it as it is.
    """

    array: np.ndarray

    def __post_init__(self) -> None:
        array = np.array(self.array)
        array.setflags(write=False)
        object.__setattr__(self, "array", array)

    @functools.cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self.array.tobytes()).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"array(shape {self.array.shape}, {self.array.dtype}, sha256 {self._digest})"

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Constant) and repr(self) == repr(other))

    def __hash__(self) -> int:
        return hash(repr(self))


def _plain(value: Any) -> Any:
    """What a block is built with: arrays as they were given."""
    if isinstance(value, tuple):
        return tuple(_plain(each) for each in value)
    return value.array if isinstance(value, Constant) else value


def _hashable(value: Any) -> Any:
    """What a spec holds."""
    if type(value) is tuple:
        return tuple(_hashable(each) for each in value)
    if not isinstance(value, (np.ndarray, jax.Array)):
        return value
    if not is_numeric(value):
        raise ValueError(f"arguments of a block must be hashable or arrays of numbers, got {short(value)}")
    return Constant(np.asarray(value))


@kinds
def spec(block: type[nnx.Module], *arguments: Any, **options: Any) -> Spec:
    """The `Spec` of ``block(*arguments, **options, rngs=...)``; arrays among them are held by their content."""
    held = tuple(_hashable(value) for value in arguments)
    return Spec(block, held, tuple((name, _hashable(value)) for name, value in options.items()))


def declared(block: Any, name: str) -> Any:
    """What the class of a block declares under a name; None if nothing.

    What an instance holds under that name (a user's ``self.linear = nnx.Linear(...)``) says nothing of the block.
    """
    return getattr(block, name) if hasattr(type(block), name) else None


def scales_of(*blocks: Any) -> dict[str, Scale]:
    """The scales that blocks declare between them; of two declarations of one name the later one's default holds.

    Raises:
        ValueError: an unknown kind, or one name declared with two kinds.
    """
    scales: dict[str, Scale] = {}
    for block in blocks:
        for name, value in (declared(block, "scales") or {}).items():
            # A bare number is the short form of what needs no rule.
            scale = value if isinstance(value, Scale) else Scale(float(value))
            known(f"the kind of scale {name}", scale.kind, KINDS)
            # One number is handed to all blocks that read the name: two kinds would be two meanings.
            if name in scales and scales[name].kind != scale.kind:
                raise ValueError(f"scale {name} must be of one kind, got {scales[name].kind} and {scale.kind}")
            scales[name] = scale
    return scales


Defaults = tuple[tuple[str, float | tuple[float, ...]], ...]
"""Defaults of scales by name; one number, or one a layer."""


def with_defaults(scales: Mapping[str, Scale], defaults: Defaults) -> dict[str, Scale]:
    """Scales with other defaults, which then follow no other scale."""
    return {**scales, **{name: scales[name]._replace(default=value, follows=None) for name, value in defaults}}


def arguments(block: nnx.Module, scales: Scales, x: ArrayLike | None) -> tuple[Any, ...]:
    """What a block is called with beside its state."""
    return (*([scales] if scales_of(block) else []), *([x] if x is not None else []))


def call(block: Any, h: ArrayLike, scales: Scales, x: ArrayLike | None = None) -> Array:
    """The block on a plain array, with the scales it declares and its own input if it is driven."""
    # Full precision by name: the default is TF32 on recent GPUs and bfloat16 on TPUs, where 1e-5 would fail silently.
    with jax.default_matmul_precision("highest"):
        return block(h, *arguments(block, scales, x))


def step(block: Any, state: FloatExp, scales: Scales, x: ArrayLike | None = None, ends: Ends | None = None) -> FloatExp:
    """The block on a normalized scaled number of any size; the result is not normalized.

    ``ends`` are its degrees, where it does not declare them and they are known; else they are read off where it is
    computed. What grows like no power is NaN past the float range, if it has no step of its own.
    """
    if declared(block, "linear"):
        return FloatExp(call(block, state.value, scales, x), state.exponent)
    if declared(block, "step"):
        with jax.default_matmul_precision("highest"):
            return block.step(state, scales, *([] if x is None else [x]))
    # A copy made inside: a block may change its own state (running statistics) only in the trace that made it.
    run = lambda h: call(nnx.clone(block), h, scales, x)  # noqa: E731
    ends = declared(block, "degrees") or ends
    if ends is not None:
        return _marked(extended(run, state, ends), state, ends)
    found = extended_together(lambda values: [run(values[0])], [state])
    return found.results[0]._replace(value=jnp.where(found.exact, found.results[0].value, jnp.nan))


def _marked(made: FloatExp, state: FloatExp, ends: Ends) -> FloatExp:
    """What is made of a state, NaN where that has left the float range at an end that is not known: said by the part,
    since what it stands in may grow like a power."""
    if all(end.known for end in ends):
        return made
    beyond, (below, above) = exponent_past_range(state), (not end.known for end in ends)
    return made._replace(value=jnp.where((beyond < 0) & below | (beyond > 0) & above, jnp.nan, made.value))


def diagnostics(block: Any, h: Array, scales: Scales, x: ArrayLike | None = None) -> dict[str, Array]:
    """Named numbers that the block reports of itself at a state; none if it has none."""
    return block.diagnostics(h, *arguments(block, scales, x)) if declared(block, "diagnostics") else {}


def absorb_scales(scales: Scales, *blocks: Any) -> frozenset[str]:
    """Let blocks take scales into their parameters, as far as they can; the names of those that then stand at 1."""
    return frozenset().union(*(block.absorb_scales(scales) for block in blocks if declared(block, "absorb_scales")))


class BlockInfo(NamedTuple):
    """What a block says about itself once it is built.

    Attributes:
        graph: its static part; `nnx.merge` with a dict of its arrays gives the module back.
        trainable: paths of its `nnx.Param` leaves, "linear/kernel".
        scales: the names of the scales it declares, with their defaults and kinds.
        degrees, parameter_degrees: how it, and its derivative by each parameter, grow, if it says so.
        parts: the names of the parts of its state; empty if it has none.
        noisy: whether it holds noise that training draws anew at every step.
        vocabulary: how many tokens there are, of a block that reads tokens; else None.
        batch_axes: how many axes a state must have for the first to be a batch that is normalized over; 0 if it holds
            no `nnx.BatchNorm`.
        theory: what theory has to be given of it; None where theory has nothing.
    """

    graph: nnx.GraphDef
    trainable: frozenset[str]
    scales: Mapping[str, Scale]
    degrees: Ends | None
    parameter_degrees: Mapping[str, ParameterDegrees] | None
    parts: tuple[str, ...]
    noisy: bool
    vocabulary: int | None
    batch_axes: int
    theory: TheoryArguments | None


@functools.cache
def block_info(spec: Spec) -> BlockInfo:
    """What a block says about itself, from one abstract build."""
    info: list[BlockInfo] = []

    def build() -> None:
        block: Any = spec.build(nnx.Rngs(0))
        graph = nnx.split(block)[0]
        leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(block, nnx.Param)))
        trainable = frozenset(path_name(path) for path, _ in leaves)
        redraws = any(declared(part, "redraw") for _, part in nnx.iter_modules(block))
        noisy = redraws or any(holds_keys(leaf) for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.split(block)[1])))
        theory = declared(block, "theory_arguments")
        theory = theory if isinstance(theory, TheoryArguments) else None
        parts = tuple(declared(block, "parts") or ())
        growth = declared(block, "degrees"), declared(block, "parameter_degrees")
        sizes = (declared(part, "vocabulary") for _, part in nnx.iter_modules(block))
        vocabulary = next((size for size in sizes if size is not None), None)
        told = scales_of(block), *growth, parts, noisy, vocabulary, _batch_axes(block), theory
        info.append(BlockInfo(graph, trainable, *told))

    # Traced, not run, so that nothing is drawn; the graph is static and leaves by the list, as a result cannot.
    jax.eval_shape(build)
    return info[0]


def holds_keys(leaf: Any) -> bool:
    """Whether an array holds random keys."""
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _batch_axes(block: nnx.Module) -> int:
    parts = [part for _, part in nnx.iter_modules(block)]
    if not any(isinstance(part, nnx.BatchNorm) and not part.use_running_average for part in parts):
        return 0
    return max(2, *(len(part.kernel_size) + 2 for part in parts if isinstance(part, nnx.Conv)), 0)


def path_name(path: tuple[Any, ...]) -> str:
    """A path in a nested dict as "linear/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
