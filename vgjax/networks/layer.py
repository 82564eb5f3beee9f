"""A layer: one block with its parameters, its scales and its own input; a map from state to state."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from vgjax.blocks import Spec, protocol
from vgjax.blocks.protocol import block_info, is_key, path_name
from vgjax.checks import untraced
from vgjax.floatexp import FloatExp, residual_exponent, to_float_clipped, window_exponent
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
        return protocol.step(self.module(), state, self.scales, self.input, self._homogeneity(state))

    def push(self, state: FloatExp, u: FloatExp) -> FloatExp:
        """J u, J being the Jacobian at a normalized state."""
        moved = jax.jvp(self, (to_float_clipped(state),), (u.value,))[1]
        return FloatExp(moved, u.exponent + self.exponent_shift(state))

    def pull(self, state: FloatExp, v: FloatExp) -> FloatExp:
        """J^T v, J being the Jacobian at a normalized state."""
        moved = jax.vjp(self, to_float_clipped(state))[1](v.value)[0]
        return FloatExp(moved, v.exponent + self.exponent_shift(state))

    def exponent_shift(self, state: FloatExp) -> Array:
        """The power of two between the Jacobian at a state beyond the float range and that at `to_float_clipped`."""
        below, above = self._homogeneity(state)
        # Most blocks: known while tracing, so that no operation is spent on it.
        if not below and not above:
            return jnp.zeros((), jnp.int32)
        beyond = residual_exponent(state)
        return beyond * jnp.where(beyond < 0, below, above)

    def slopes(self, h: Array) -> tuple[Array, float]:
        """phi' of the block's units, and phi's largest slope; NaN if the block does not report them."""
        block: Any = self.module()
        if not protocol.declared(block, "slopes"):
            return jnp.full(h.shape, jnp.nan, h.dtype), 1.0
        return block.slopes(h, *protocol.arguments(block, self.scales, self.input))

    def diagnostics(self, h: Array) -> dict[str, Array]:
        """Named numbers that the block reports of itself at a state."""
        block: Any = self.module()
        arguments = protocol.arguments(block, self.scales, self.input)
        return block.diagnostics(h, *arguments) if protocol.declared(block, "diagnostics") else {}

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
        redraw = lambda a: jax.random.split(jax.random.fold_in(key, next(keys)), a.shape) if is_key(a) else a  # noqa: E731
        return replace(self, parameters=jax.tree.map(redraw, nnx.to_pure_dict(nnx.split(module)[1])))

    def homogeneities(self, state: FloatExp) -> "Homogeneity":
        """How the derivative of the block grows when its state doubles."""
        read = None if self.input is None else self.input.shape
        return _homogeneity_of(self.spec, state.value.shape, state.value.dtype.name, read)

    def _homogeneity(self, state: FloatExp) -> tuple[int, int]:
        declared = block_info(self.spec).homogeneity
        return self.homogeneities(state).state if declared is None else declared

    def module(self) -> nnx.Module:
        """The block as a Flax module that holds these parameters."""
        # A copy: without it (flax 0.12) merging inside a vjp fails for modules that change their own state.
        return nnx.merge(block_info(self.spec).graph, self.parameters, copy=True)


class Homogeneity(NamedTuple):
    """How the derivative of a block grows when its state doubles, as powers of two, (below, above) the float range.

    Attributes:
        state: of the Jacobian: 0, or -1 for a block that depends on the direction alone.
        parameters: of the derivative by each parameter, by path.
    """

    state: tuple[int, int]
    parameters: dict[str, tuple[int, int]]


@functools.cache
@untraced
def _homogeneity_of(spec: Spec, shape: tuple[int, ...], dtype: str, read: tuple[int, ...] | None) -> Homogeneity:
    """Measured on one draw, so that it holds for any block."""
    # Where numbers begin to travel with an exponent is where the growth has to be known.
    far = 2.0 ** window_exponent(np.dtype(dtype))
    rng = np.random.default_rng(0)

    def normal(shape: tuple[int, ...]) -> Any:
        return rng.normal(size=shape).astype(dtype)

    with jax.enable_x64(dtype == "float64"), np.errstate(divide="ignore", invalid="ignore"):
        like = jax.eval_shape(functools.partial(draw, spec), jax.random.key(0))
        drawn = _as_floats(dtype, jax.tree.map(lambda leaf: _stand_in(leaf, normal), like))
        layer = Layer(spec, drawn, unit_scales(spec, dtype), None if read is None else normal(read))
        h = normal(shape)
        v = normal(jax.eval_shape(Layer.__call__, layer, h).shape)

        # Numbers of numpy: an operation of JAX outside of the one program would be a program of its own.
        def log_sizes(layer: Layer, h: Array, v: Array, size: Array) -> tuple[Array, dict[str, Array]]:
            back = jax.vjp(lambda h, p: layer.with_parameters(p)(h), size * h, layer.trainable())[1]
            return jax.tree.map(lambda g: jnp.log2(jnp.linalg.norm(g.reshape(-1))), back(v))

        # A few numbers once: what counts is how long it compiles.
        quick: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
        measured = jax.jit(log_sizes).lower(layer, h, v, np.ones((), dtype)).compile(quick)
        # Two sizes an octave apart at either end: the difference of their log2 is the power.
        sizes = np.array([1 / far, 2 / far, far, 2 * far], dtype)
        logs = [jax.tree.map(np.asarray, measured(layer, h, v, size)) for size in sizes]
        growth = jax.tree.map(lambda a, b, c, d: (float(b - a), float(d - c)), *logs)

    of_state, of_parameters = growth
    # The Jacobian of any other growth (an activation that oscillates) is not covered, and counts as constant.
    below, above = (-1 if abs(g + 1) < 0.1 else 0 for g in of_state)
    # No growth is seen where the derivative is exactly zero (a branch at 0): its logarithm is -inf.
    rounded = {path: tuple(round(g) if np.isfinite(g) else 0 for g in ends) for path, ends in of_parameters.items()}
    return Homogeneity((below, above), rounded)  # type: ignore[arg-type]


def _as_floats(dtype: str, tree: Any) -> Any:
    """Numbers of numpy in a dtype, as far as they are floating-point ones."""
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def _stand_in(leaf: jax.ShapeDtypeStruct, normal: Callable[[tuple[int, ...]], Any]) -> Any:
    """Some numbers in place of a draw: kernels of about unit gain, vectors of ones, keys."""
    if is_key(leaf):
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
            f"use_running_average=True and vgjax.calibrate"
        )

    def run(key: Array, h: Array, x: Array | None) -> Array:
        return Layer(spec, draw(spec, key), unit_scales(spec, h.dtype), x)(h)

    return jax.eval_shape(run, jax.random.key(0), state, x)


def parameter_dtype(spec: Spec) -> Any:
    """The dtype of a block's floating-point parameters; float32 if it has none."""
    leaves = jax.tree.leaves(jax.eval_shape(functools.partial(draw, spec), jax.random.key(0)))
    return next((leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)), np.dtype(np.float32))


def unit_scales(spec: Spec, dtype: Any) -> Scales:
    """Every scale that a block declares: those of parameters at 1, the others at their default."""
    return Scales._of({name: np.asarray(scale.unit, dtype) for name, scale in block_info(spec).scales.items()})
