"""A layer: one block with its parameters, its scales and its own input; a map from state to state."""

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from vgjax.blocks import Spec, protocol
from vgjax.blocks.protocol import block_info, holds_keys, path_name
from vgjax.checks import untraced
from vgjax.floatexp import (
    Degrees,
    Ends,
    FloatExp,
    ParameterDegrees,
    common_denominator,
    degree_of,
    exponent_past_range,
    is_zero,
    times_degree,
    to_float_clipped,
    window_exponent,
)
from vgjax.initializers import Scales

Tree = dict[str, Any]
"""Parameters of one block, or of a stage with a leading layer axis: nested plain dicts of arrays."""


def draw(spec: Spec, key: Array) -> Tree:
    """The parameters of one freshly drawn block, as nested plain dicts of arrays by Flax path."""
    return nnx.to_pure_dict(nnx.split(spec.build(nnx.Rngs(key)))[1])


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["parameters", "scales", "input"], meta_fields=["spec", "tied"]
)
@dataclass(frozen=True)
class Layer:
    """A block together with its parameters, its scales and its own input: state -> state.

    Attributes:
        spec: how the block is built (static).
        parameters: nested dicts of arrays, no layer axis.
        scales: one number each.
        input: what the block reads beside its state, if its stage is driven.
        tied: whether other layers share its parameters (static).
    """

    spec: Spec
    parameters: Tree
    scales: Scales
    input: Array | None = None
    tied: bool = False

    def __call__(self, h: Array) -> Array:
        """The next state of a plain one."""
        # The module is made inside the call: it may change its own state only in the trace that made it.
        return protocol.call(self.module(), h, self.scales, self.input)

    def step(self, state: FloatExp) -> FloatExp:
        """The next state of a normalized scaled one, not normalized."""
        return protocol.step(self.module(), state, self.scales, self.input, self.degrees(state))

    def push(self, state: FloatExp, u: FloatExp) -> FloatExp:
        """J u, J being the Jacobian at a normalized state."""
        h, shift = self.place(state)
        return FloatExp(jax.jvp(self, (h,), (u.value,))[1], u.exponent + shift)

    def pull(self, state: FloatExp, v: FloatExp) -> FloatExp:
        """J^T v, J being the Jacobian at a normalized state."""
        h, shift = self.place(state)
        return FloatExp(jax.vjp(self, h)[1](v.value)[0], v.exponent + shift)

    def place(self, state: FloatExp) -> tuple[Array, Array]:
        """Where the Jacobian at a normalized state is to be taken, and the power of two that it lacks there."""
        below, above = (end.jacobian for end in self.degrees(state))
        # Most blocks: known while tracing, so that no operation is spent on it.
        if not below and not above:
            return to_float_clipped(state), jnp.zeros((), jnp.int32)
        step = common_denominator(below, above)
        beyond = exponent_past_range(state, step)
        shift = jnp.where(beyond < 0, times_degree(beyond, below), times_degree(beyond, above))
        return to_float_clipped(state, step), shift

    def underflows(self, state: FloatExp) -> Array:
        """Whether a zero that the layer makes of a state or of a tangent is an underflow of its own, shape ``()``.

        Not past the float range: a slope that is 0 there (tanh' at 1e10) lies below all exponents, and 0 is right.
        """
        block: Any = self.module()
        if protocol.declared(block, "underflows"):
            return block.underflows(*protocol.arguments(block, self.scales, self.input))
        if protocol.declared(block, "never_zero") is not None:
            if not block.never_zero:
                return jnp.zeros((), bool)
            return is_zero(self.slopes(to_float_clipped(state))[0]) & (state.exponent == 0)
        of_user = [self.scales[name] == 0 for name, scale in block_info(self.spec).scales.items() if scale.first]
        switched_off = functools.reduce(jnp.logical_or, of_user, jnp.zeros((), bool))
        return (state.exponent == 0) & ~switched_off if self.measured(state).never_zero else jnp.zeros((), bool)

    def slopes(self, h: Array) -> tuple[Array, float]:
        """phi' of the block's units, and phi's largest slope; NaN if the block does not report them."""
        block: Any = self.module()
        if not protocol.declared(block, "slopes"):
            return jnp.full(h.shape, jnp.nan, h.dtype), 1.0
        return block.slopes(h, *protocol.arguments(block, self.scales, self.input))

    def diagnostics(self, h: Array) -> dict[str, Array]:
        """Named numbers that the block reports of itself at a state."""
        return protocol.diagnostics(self.module(), h, self.scales, self.input)

    def trainable(self) -> dict[str, Array]:
        """The `nnx.Param` leaves (no batch statistics, no random state), by path "linear/kernel"."""
        paths = block_info(self.spec).trainable
        leaves = ((path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(self.parameters))
        return {path: leaf for path, leaf in leaves if path in paths}

    def with_parameters(self, leaves: dict[str, Array]) -> "Layer":
        """The same layer with some leaves replaced, by path."""
        replaced = jax.tree_util.tree_map_with_path(lambda path, old: leaves.get(path_name(path), old), self.parameters)
        return replace(self, parameters=replaced)

    def absorb_scales(self) -> "Layer":
        """The same map with its scales inside its parameters (W = sigma_w Z), as far as the block can."""
        block = self.module()
        absorbed = protocol.absorb_scales(self.scales, block)
        scales = {name: jnp.ones_like(s) if name in absorbed else s for name, s in self.scales.items()}
        return replace(self, parameters=nnx.to_pure_dict(nnx.split(block)[1]), scales=Scales._of(scales))

    def redrawn(self, key: Array) -> "Layer":
        """The same layer with its noise drawn anew."""
        module = self.module()
        part: Any
        # Numbered, so that two dropouts of one block have noise of their own.
        for i, (_, part) in enumerate(nnx.iter_modules(module)):
            if protocol.declared(part, "redraw"):
                part.redraw(jax.random.fold_in(key, i))
        # And Flax's own: every key a block holds.
        keys = itertools.count(len(list(nnx.iter_modules(module))))
        redraw = lambda a: jax.random.split(jax.random.fold_in(key, next(keys)), a.shape) if holds_keys(a) else a  # noqa: E731
        return replace(self, parameters=jax.tree.map(redraw, nnx.to_pure_dict(nnx.split(module)[1])))

    def degrees(self, state: FloatExp) -> Ends:
        """Its degrees at both ends of the float range."""
        return degrees(self.spec, state.value.shape, state.value.dtype, self._read)

    def parameter_degrees(self, state: FloatExp) -> Mapping[str, ParameterDegrees]:
        """Those of its derivative by each parameter."""
        told = block_info(self.spec).parameter_degrees
        return self.measured(state).parameters if told is None else told

    def measured(self, state: FloatExp) -> "Measured":
        """What a draw of the block shows."""
        return measured(self.spec, state.value.shape, state.value.dtype.name, self._read)

    @property
    def _read(self) -> tuple[int, ...] | None:
        return None if self.input is None else self.input.shape

    def module(self) -> nnx.Module:
        """The block as a Flax module that holds these parameters."""
        # A copy: without it (flax 0.12) merging inside a vjp fails for modules that change their own state.
        return nnx.merge(block_info(self.spec).graph, self.parameters, copy=True)


class Measured(NamedTuple):
    """What a draw of a block shows of its growth.

    Attributes:
        ends: its degrees (below, above) the float range.
        parameters: of the derivative by each parameter, by path.
        never_zero: whether exact zeros come out of it only by underflow: there were none at ordinary sizes.
    """

    ends: Ends
    parameters: Mapping[str, ParameterDegrees]
    never_zero: bool


def degrees(spec: Spec, shape: tuple[int, ...], dtype: Any, read: tuple[int, ...] | None) -> Ends:
    """The degrees of a block at states of some shape: what it declares, or what is measured."""
    declared = block_info(spec).degrees
    return measured(spec, shape, np.dtype(dtype).name, read).ends if declared is None else declared


@functools.cache
@untraced
def measured(spec: Spec, shape: tuple[int, ...], dtype: str, read: tuple[int, ...] | None) -> Measured:
    """`Measured` on one draw, so that it holds for any block."""
    # Where numbers begin to travel with an exponent is where the growth has to be known.
    far = 2.0 ** window_exponent(np.dtype(dtype))
    rng = np.random.default_rng(0)

    def normal(shape: tuple[int, ...]) -> Any:
        return rng.normal(size=shape).astype(dtype)

    with jax.enable_x64(dtype == "float64"), np.errstate(divide="ignore", invalid="ignore"):
        like = jax.eval_shape(lambda: draw(spec, jax.random.key(0)))
        drawn = _as_floats(dtype, jax.tree.map(lambda leaf: _stand_in(leaf, normal), like))
        # A factor that stands at 0 (ReZero) would hide what it multiplies.
        scales = {
            name: np.asarray(1.0 if scale.kind == "factor" and not scale.first else scale.unit, dtype)
            for name, scale in block_info(spec).scales.items()
        }
        layer = Layer(spec, drawn, Scales._of(scales), None if read is None else normal(read))
        h = normal(shape)
        v = normal(jax.eval_shape(Layer.__call__, layer, h).shape)

        # A few numbers once: what counts is how long it compiles. And they are numpy's: an operation of JAX outside of
        # the one program would be a program of its own.
        quick: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
        compiled = jax.jit(_look).lower(layer, h, v, np.ones((), dtype)).compile(quick)

        def at(layer: Layer, size: float, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
            return jax.tree.map(np.asarray, compiled(layer, side * h, v, np.asarray(size, dtype)))

        def octaves(layer: Layer) -> list[Any]:
            """At either end of the range, at a state and at its opposite: both have to grow alike."""
            ends = ((0.5 / far, 1 / far), (far, 2 * far))
            return [[(at(layer, a, side), at(layer, b, side)) for side in (1, -1)] for a, b in ends]

        whole = octaves(layer)
        bare = octaves(layer.with_parameters(_offsets(layer, at, 0.5 / far)))
        ordinary = [at(layer, size, side)[1:3] for size in (0.25, 1.0, 4.0) for side in (1, -1)]

    # What the offsets decide on (a product of two maps, a norm behind a bias) is not known: their scales may be 0.
    ends, without = ([_degrees([(one[:3], two[:3]) for one, two in pairs]) for pairs in of] for of in (whole, bare))
    below, above = (end if end == other else Degrees(None, None) for end, other in zip(ends, without, strict=True))
    by_parameter = {path: _parameter_degrees(path, *whole, *bare) for path in layer.trainable()}
    return Measured((below, above), by_parameter, all(np.all(a != 0) for pair in ordinary for a in pair))


def _offsets(layer: Layer, at: Callable[[Layer, float, int], Any], size: float) -> dict[str, Any]:
    """The vectors that are added, and so may be 0, as zeros; what multiplies may not.

    At small states the derivative by an offset is constant and that by a gain vanishes, if no offset stands before it
    and no gain at 0 behind it; and with a gain at 0 others are exactly 0. So those that are sure are settled first, and
    with them the others.
    """

    def derivatives(zeros: dict[str, Any]) -> list[Any]:
        without = layer.with_parameters(zeros)
        return [[at(without, a, side)[3] for a in (size, 2 * size)] for side in (1, -1)]

    def some(looks: list[Any], path: str) -> bool:
        return any(np.any(a[path]) for pair in looks for a in pair)

    vectors: Any = {p: np.zeros_like(leaf) for p, leaf in layer.trainable().items() if leaf.ndim < 2}
    # Without an offset a block still passes something on.
    unsettled = {p: zero for p, zero in vectors.items() if np.any(at(layer.with_parameters({p: zero}), 1, 1)[2])}
    offsets: dict[str, Any] = {}
    while True:
        seen = [derivatives(offsets | unsettled), derivatives(offsets)]
        dead = [p for p in layer.trainable() if not some(seen[0], p)]
        alive = [p for p in layer.trainable() if some(seen[1], p)]
        added: list[str] = []
        multiplied: list[str] = []
        for path in unsettled:
            growths = [_growth([(one[path], two[path]) for one, two in looks]) for looks in seen]
            if growths[0] == 0 and some(seen[0], path):
                added.append(path)
            elif any(growth is not None and growth > 0 for growth in growths):
                alone = derivatives({p: zero for p, zero in (offsets | unsettled).items() if p != path})
                without = derivatives(offsets | {path: unsettled[path]})
                decides = any(some(alone, p) for p in dead) or any(not some(without, p) for p in alive)
                (multiplied if decides else added).append(path)
        if not added and not multiplied:
            return offsets
        offsets |= {path: unsettled[path] for path in added}
        unsettled = {p: zero for p, zero in unsettled.items() if p not in (*added, *multiplied)}


def _look(layer: Layer, h: Array, v: Array, size: Array) -> tuple[Array, Array, Array, dict[str, Array]]:
    """f, J h, J^T v and D^T v by every parameter, at a state ``size * h``."""
    out, push = jax.linearize(lambda h, p: layer.with_parameters(p)(h), size * h, layer.trainable())
    back, of_parameters = jax.linear_transpose(push, h, layer.trainable())(v)
    return out, push(h, jax.tree.map(jnp.zeros_like, layer.trainable())), back, of_parameters


def _parameter_degrees(path: str, *octaves: list[Any]) -> ParameterDegrees:
    """From what was seen below and above the range, with offsets and without."""
    low, high, low_bare, high_bare = (
        _growth([(one[3][path], two[3][path]) for one, two in pairs]) for pairs in octaves
    )
    behind_offset = low == 0 and low_bare not in (0, None)
    low = low_bare if behind_offset or low == low_bare else None
    return ParameterDegrees(low, high if high == high_bare else None, behind_offset)


def _degrees(pairs: list[Any]) -> Degrees:
    """The degrees of a map, from (f, J h, J^T v) at pairs of states an octave apart."""
    # J u of a fixed u: what J h grows by beside its own degree.
    value, tangent, back = ([(one[i], two[i]) for one, two in pairs] for i in range(3))
    jacobian = _growth(back)
    # Of the direction alone: J h is zero, or what rounding leaves of it.
    if jacobian == -1 and _growth(value) == 0:
        return Degrees(Fraction(0), jacobian)
    along = _growth(tangent, whole=True)
    nothing = not any(np.any(a) for pair in tangent for a in pair)
    return Degrees(Fraction(0) if nothing else None if along is None else along + 1, jacobian)


def _growth(pairs: list[tuple[np.ndarray, np.ndarray]], whole: bool = False) -> Fraction | None:
    """The degree of arrays that are seen at pairs of states an octave apart; None if they show several or none.

    With ``whole`` every entry has to show it: parts of a state that grow unlike each other do not share an exponent.
    """
    with np.errstate(all="ignore"):
        norms = [[np.linalg.norm(a.ravel().astype(float)) for a in pair] for pair in pairs]
        growths = [np.log2(b / a) for a, b in norms if a or b]  # of an exact zero no growth is seen
        by_entry = [np.log2(np.abs(b / a))[(a != 0) | (b != 0)] for a, b in pairs]
    degrees = {degree_of(float(growth), 1e-3) for growth in growths}
    if not degrees:
        return Fraction(0)
    degree = degrees.pop() if len(degrees) == 1 else None
    if degree is None or not whole:
        return degree
    return degree if all(np.all(np.abs(each - float(degree)) < 0.1) for each in by_entry) else None


def _as_floats(dtype: str, tree: Any) -> Any:
    """Numbers of numpy in a dtype, as far as they are floating-point ones."""
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def _stand_in(leaf: jax.ShapeDtypeStruct, normal: Callable[[tuple[int, ...]], Any]) -> Any:
    """Some numbers in place of a draw: kernels of about unit gain, vectors of ones, keys."""
    if holds_keys(leaf):
        return jnp.broadcast_to(jax.random.key(0), leaf.shape)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return np.zeros(leaf.shape, leaf.dtype)
    # Ones, not zeros: a zero gain or bias would hide what stands behind it.
    if len(leaf.shape) < 2:
        return np.ones(leaf.shape, leaf.dtype)
    return (normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(leaf.dtype)


@functools.cache
def shape_after(spec: Spec, state: jax.ShapeDtypeStruct, x: jax.ShapeDtypeStruct | None = None) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the state that a block makes of another (and of its own input); nothing is computed.

    Raises:
        ValueError: a state without the batch that a block normalizes over.
    """
    axes = block_info(spec).batch_axes
    if axes and (len(state.shape) < axes or state.shape[0] < 2):
        raise ValueError(
            f"{spec.block.__name__} holds nnx.BatchNorm, so its state must be a batch of at least 2 examples along its "
            f"first axis (input_shape=(batch, ...)), got a state of shape {state.shape}; or take vgjax.norm, or "
            f"use_running_average=True and vgjax.networks.calibrate"
        )

    def run(h: Array, x: Array | None) -> Array:
        return Layer(spec, draw(spec, jax.random.key(0)), unit_scales(spec, h.dtype), x)(h)

    return jax.eval_shape(run, state, x)


def parameter_dtype(spec: Spec) -> Any:
    """The dtype of a block's floating-point parameters; float32 if it has none."""
    return floating_dtype(jax.eval_shape(lambda: draw(spec, jax.random.key(0))))


def floating_dtype(tree: Tree) -> Any:
    """The dtype that holds all floating-point numbers of a tree; float32 if there are none."""
    found = [leaf.dtype for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return functools.reduce(jnp.promote_types, found) if found else np.dtype(np.float32)


def unit_scales(spec: Spec, dtype: Any) -> Scales:
    """Every scale that a block declares: those of parameters at 1, the others at their default."""
    return Scales._of({name: np.asarray(scale.unit, dtype) for name, scale in block_info(spec).scales.items()})
