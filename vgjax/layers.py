"""Layers: the numbers of a network: its parameters, its blocks with theirs, one pass over them.

Everything that runs through the depth of a network (`forward`, and all of `vgjax.flow`) is a visit to every `Layer` by
`scan_layers`, and knows nothing of what the blocks are.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from vgjax.blocks import Spec, protocol
from vgjax.checks import untraced
from vgjax.exponents import Scaled, clipped, excess, window
from vgjax.initializers import Scales
from vgjax.networks import Network, Stage, about, check_input, check_scales, path_name

Tree = dict[str, Any]
"""Parameters of one block, or of a stage with a leading layer axis: nested plain dicts of arrays."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["stem", "stages", "head", "inputs"], meta_fields=["network"]
)
@dataclass(frozen=True)
class Parameters:
    """A network's draws at unit gain (`init`), or its ordinary parameters (`scaled`): a pytree of plain arrays.

    Attributes:
        stem, head: parameters of one block, by Flax path; empty if there is none.
        stages: one a stage: the parameters of its blocks stacked along a leading layer axis, or a `Stream`; of a tied
            stage, one block's.
        network: what they belong to (static).
        inputs: what the blocks of a fed network read, shape ``(depth, ...)``, while it runs (`fed`); else None.
    """

    stem: Tree
    stages: tuple["Tree | Stream", ...]
    head: Tree
    network: Network
    inputs: Array | None = None


class Stream(NamedTuple):
    """A stage whose blocks are drawn inside the scan, each from its own key, and never stored.

    Attributes:
        keys: one key a layer, shape ``(depth,)``.
    """

    keys: Array


# --- draws ----------------------------------------------------------------------------------------------------------


def init(key: Array, network: Network, *, stream: bool = False) -> Parameters:
    """Draw a network's parameters at unit gain.

    Layer l is drawn from ``fold_in(key, l)``, so the first layers of a deeper network are those of a shallower one.

    Args:
        key: `jax.random.key`.
        network: what to draw for.
        stream: keep only the keys and draw each layer inside every scan, so that no kernel is stored; same numbers.
    """
    return _init(key, network, stream)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _init(key: Array, network: Network, stream: bool) -> Parameters:
    stem_key, block_key, head_key = jax.random.split(key, 3)
    layer_keys = jax.vmap(functools.partial(jax.random.fold_in, block_key))(jnp.arange(network.depth))
    stages: list[Tree | Stream] = []
    start = 0
    for stage in network.stages:
        keys = layer_keys[start : start + stage.depth]
        if stage.tied:
            stages.append(draw(stage.spec, keys[0]))
        else:
            # One layer after the other: the same bits as `vmap`, which needs temporaries of three times the weights.
            stages.append(Stream(keys) if stream else lax.map(functools.partial(draw, stage.spec), keys))
        start += stage.depth
    return Parameters(
        draw(network.stem, stem_key) if network.stem else {},
        tuple(stages),
        draw(network.head, head_key) if network.head else {},
        network,
    )


def draw(spec: Spec, key: Array) -> Tree:
    """The parameters of one freshly drawn block, as nested plain dicts of arrays by Flax path."""
    return nnx.to_pure_dict(nnx.split(spec.build(nnx.Rngs(key)))[1])


# --- a layer: a block with its numbers ------------------------------------------------------------------------------


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
        input: what the block reads beside its state, if its stage is fed.
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

    def step(self, state: Scaled) -> Scaled:
        """The next state of a normalized scaled one, not normalized."""
        return protocol.step(self.module(), state, self.scales, self.input, self._degree(state))

    def push(self, state: Scaled, u: Scaled) -> Scaled:
        """J u, J being the Jacobian at a normalized state."""
        moved = jax.jvp(self, (clipped(state),), (u.value,))[1]
        return Scaled(moved, u.exponent + self.lift(state))

    def pull(self, state: Scaled, v: Scaled) -> Scaled:
        """J^T v, J being the Jacobian at a normalized state."""
        moved = jax.vjp(self, clipped(state))[1](v.value)[0]
        return Scaled(moved, v.exponent + self.lift(state))

    def lift(self, state: Scaled) -> Array:
        """The power of two by which the Jacobian at a state beyond the float range differs from that at `clipped`."""
        below, above = self._degree(state)
        if not below and not above:
            return jnp.zeros((), jnp.int32)
        beyond = excess(state)
        return beyond * jnp.where(beyond < 0, below, above)

    def slopes(self, h: Array) -> tuple[Array, float]:
        """phi' of the block's units, and phi's largest slope; NaN if the block does not report them."""
        block: Any = self.module()
        if not hasattr(block, "slopes"):
            return jnp.full(h.shape, jnp.nan, h.dtype), 1.0
        return block.slopes(h, *protocol.arguments(block, self.scales, self.input))

    def readings(self, h: Array) -> dict[str, Array]:
        """Named numbers that the block reports of itself at a state."""
        block: Any = self.module()
        arguments = protocol.arguments(block, self.scales, self.input)
        return block.readings(h, *arguments) if hasattr(block, "readings") else {}

    def trainable(self) -> dict[str, Array]:
        """The `nnx.Param` leaves (no batch statistics, no random state), by path "linear/kernel"."""
        paths = about(self.spec).trainable
        leaves = ((path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(self.parameters))
        return {path: leaf for path, leaf in leaves if path in paths}

    def with_parameters(self, leaves: dict[str, Array]) -> "Layer":
        """The same layer with some leaves replaced, by path."""
        replaced = jax.tree_util.tree_map_with_path(lambda path, old: leaves.get(path_name(path), old), self.parameters)
        return replace(self, parameters=replaced)

    def ordinary(self) -> "Layer":
        """The same map with its scales inside its parameters (W = sigma_w Z), as far as the block can."""
        block = self.module()
        absorbed = protocol.absorb(block, self.scales)
        scales = {name: jnp.ones_like(s) if name in absorbed else s for name, s in self.scales.items()}
        return replace(self, parameters=nnx.to_pure_dict(nnx.split(block)[1]), scales=Scales._of(scales))

    def redrawn(self, key: Array) -> "Layer":
        """The same layer with its noise drawn anew."""
        module = self.module()
        for i, (_, part) in enumerate(nnx.iter_modules(module)):
            if hasattr(part, "redraw"):
                part.redraw(jax.random.fold_in(key, i))
        return replace(self, parameters=nnx.to_pure_dict(nnx.split(module)[1]))

    def degrees(self, state: Scaled) -> "Degrees":
        """How the derivative of the block grows when its state doubles."""
        read = None if self.input is None else self.input.shape
        return _degrees(self.spec, state.value.shape, state.value.dtype.name, read)

    def _degree(self, state: Scaled) -> tuple[int, int]:
        said = about(self.spec).degree
        return self.degrees(state).state if said is None else said

    def module(self) -> nnx.Module:
        """The block as a Flax module that holds these parameters."""
        return nnx.merge(about(self.spec).graph, self.parameters, copy=True)


class Degrees(NamedTuple):
    """How the derivative of a block grows when its state doubles, as powers of two, (below, above) the float range.

    Attributes:
        state: of the Jacobian: 0, or -1 for a block that depends on the direction alone.
        parameters: of the derivative by each parameter, by path.
    """

    state: tuple[int, int]
    parameters: dict[str, tuple[int, int]]


@functools.cache
@untraced
def _degrees(spec: Spec, shape: tuple[int, ...], dtype: str, read: tuple[int, ...] | None) -> Degrees:
    """Measured on one draw, so that it holds for any block."""
    far = 2.0 ** window(np.dtype(dtype))
    rng = np.random.default_rng(0)

    def normal(shape: tuple[int, ...]) -> Any:
        return rng.normal(size=shape).astype(dtype)

    with jax.enable_x64(dtype == "float64"), np.errstate(divide="ignore", invalid="ignore"):
        like = jax.eval_shape(functools.partial(draw, spec), jax.random.key(0))
        drawn = jax.tree.map(lambda leaf: _stand_in(leaf, normal), like)
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
        sizes = np.array([1 / far, 2 / far, far, 2 * far], dtype)
        logs = [jax.tree.map(np.asarray, measured(layer, h, v, size)) for size in sizes]
        growth = jax.tree.map(lambda a, b, c, d: (float(b - a), float(d - c)), *logs)

    of_state, of_parameters = growth
    # The Jacobian of any other growth (an activation that oscillates) is not covered, and counts as constant.
    below, above = (-1 if abs(g + 1) < 0.1 else 0 for g in of_state)
    rounded = {path: tuple(round(g) if np.isfinite(g) else 0 for g in ends) for path, ends in of_parameters.items()}
    return Degrees((below, above), rounded)  # type: ignore[arg-type]


def _stand_in(leaf: jax.ShapeDtypeStruct, normal: Callable[[tuple[int, ...]], Any]) -> Any:
    """Some numbers in place of a draw: kernels of about unit gain, vectors of ones, keys."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), leaf.shape)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return np.zeros(leaf.shape, leaf.dtype)
    if len(leaf.shape) < 2:
        return np.ones(leaf.shape, leaf.dtype)
    return (normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(leaf.dtype)


def shape_after(spec: Spec, state: jax.ShapeDtypeStruct, x: jax.ShapeDtypeStruct | None = None) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the state that a block makes of another (and of its own input); nothing is computed."""

    def run(key: Array, h: Array, x: Array | None) -> Array:
        return Layer(spec, draw(spec, key), unit_scales(spec, h.dtype), x)(h)

    return jax.eval_shape(run, jax.random.key(0), state, x)


def stem_layer(parameters: Parameters, scales: Scales) -> Layer | None:
    """The stem, with the scales of the first block."""
    spec = parameters.network.stem
    return Layer(spec, parameters.stem, jax.tree.map(lambda s: s[0], per_layer(parameters, scales))) if spec else None


def head_layer(parameters: Parameters) -> Layer | None:
    """The head, at unit gain."""
    spec = parameters.network.head
    return Layer(spec, parameters.head, unit_scales(spec, parameter_dtype(parameters))) if spec else None


def unit_scales(spec: Spec, dtype: Any) -> Scales:
    """Every scale that a block declares: those of parameters at 1, the others at their default."""
    declared = about(spec).scales.items()
    return Scales._of({n: np.asarray(1 if n.startswith("sigma") else value, dtype) for n, value in declared})


def scan_layers(
    parameters: Parameters,
    scales: Scales,
    carry: Any,
    visit: Callable[[Layer, Any, Any], tuple[Any, Any]],
    *,
    extras: Sequence[Any] | None = None,
    reverse: bool = False,
) -> tuple[Any, list[Any]]:
    """Visit every block of the network in order: one `lax.scan` a stage.

    Args:
        parameters, scales: as for `forward`.
        carry: handed from visit to visit.
        visit: ``(layer, carry, extra) -> (carry, output)``.
        extras: one a stage, each with a leading layer axis; what each visit gets beside its layer.
        reverse: from the last block to the first.

    Returns:
        The last carry, and one output a stage with a leading layer axis, in the order of the stages.
    """
    network = parameters.network
    here = by_stage(network, (per_layer(parameters, scales), parameters.inputs))
    outputs: list[Any] = [None] * len(network.stages)
    order = range(len(network.stages))
    for i in reversed(order) if reverse else order:
        stage, own = network.stages[i], parameters.stages[i]

        def body(carry: Any, xs: Any, stage: Stage = stage, own: Tree | Stream = own) -> tuple[Any, Any]:
            stacked, (scales, x), extra = xs
            drawn: Any = own if stage.tied else draw(stage.spec, stacked.keys) if isinstance(own, Stream) else stacked
            return visit(Layer(stage.spec, drawn, scales, x if stage.fed else None, stage.tied), carry, extra)

        xs = (None if stage.tied else own, here[i], extras[i] if extras is not None else None)
        if stage.depth == 1:  # a transition may change the shape of the carry
            carry, output = body(carry, jax.tree.map(lambda a: a[0], xs))
            outputs[i] = jax.tree.map(lambda a: a[None], output)
        else:
            carry, outputs[i] = lax.scan(body, carry, xs, length=stage.depth, reverse=reverse)
    return carry, outputs


def by_stage(network: Network, along: Any) -> list[Any]:
    """A tree of arrays along the layers as one a stage."""
    starts = np.cumsum([0, *(stage.depth for stage in network.stages)])
    return [jax.tree.map(lambda a, i=i, j=j: a[i:j], along) for i, j in itertools.pairwise(starts.tolist())]


def by_path(stages: list[dict[str, Array]], depths: list[int]) -> dict[str, Array]:
    """One series over all layers for every path that occurs in some stage; NaN in the layers that lack it."""
    some = {path: log for logs in stages for path, log in logs.items()}
    return {
        path: jnp.concatenate(
            [
                logs.get(path, jnp.full((depth, *like.shape[1:]), jnp.nan, like.dtype))
                for logs, depth in zip(stages, depths, strict=True)
            ]
        )
        for path, like in some.items()
    }


def fed(parameters: Parameters, x: Array) -> Parameters:
    """The parameters of a network whose blocks read x layer by layer; of any other network, as they are."""
    return replace(parameters, inputs=x.astype(parameter_dtype(parameters))) if parameters.network.fed else parameters


def per_layer(parameters: Parameters, scales: Scales) -> Scales:
    """Every declared scale as one value per layer, shape ``(depth,)``, in the parameters' dtype."""
    network, dtype = parameters.network, parameter_dtype(parameters)
    full = {**network.scales, **scales}
    return Scales._of({n: jnp.broadcast_to(jnp.asarray(s, dtype), (network.depth,)) for n, s in full.items()})


def parameter_dtype(parameters: Parameters) -> Any:
    """The dtype of the parameters; of streamed ones, that which they are drawn in."""
    stage, own = parameters.network.stages[0], parameters.stages[0]
    drawn = jax.eval_shape(functools.partial(draw, stage.spec), own.keys[0]) if isinstance(own, Stream) else own
    floats = [leaf.dtype for leaf in jax.tree.leaves(drawn) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return floats[0] if floats else jnp.float32


# --- what an optimizer moves ----------------------------------------------------------------------------------------


def trainable(parameters: Parameters) -> dict[str, Array]:
    """The `nnx.Param` leaves of stored parameters, by path: "stem/kernel", "blocks/0/kernel" (of the first stage,
    stacked by layer unless it is tied), "head/bias"."""
    return {
        f"{place}/{path}": leaf
        for place, (spec, own) in _places(parameters).items()
        for path, leaf in Layer(spec, own, Scales()).trainable().items()
    }


def with_trainable(parameters: Parameters, leaves: dict[str, Array]) -> Parameters:
    """The same parameters with the leaves of `trainable` replaced."""

    def put(place: str, spec: Spec, own: Tree) -> Tree:
        mine = {path.removeprefix(f"{place}/"): leaf for path, leaf in leaves.items() if path.startswith(f"{place}/")}
        return Layer(spec, own, Scales()).with_parameters(mine).parameters

    return _put(parameters, {place: put(place, *at) for place, at in _places(parameters).items()})


def redrawn(parameters: Parameters, key: Array) -> Parameters:
    """Stored parameters with the noise of every block (dropout) drawn anew; those of a network without any as they
    are."""

    def put(i: int, place: str, spec: Spec, own: Tree) -> Tree:
        if not about(spec).noisy:
            return own
        here = jax.random.fold_in(key, i)
        draw_one = lambda own, key: Layer(spec, own, Scales()).redrawn(key).parameters  # noqa: E731
        stage = parameters.network.stages[int(place.split("/")[1])] if "/" in place else None
        if stage is None or stage.tied:
            return draw_one(own, here)
        return jax.vmap(draw_one)(own, jax.random.split(here, stage.depth))

    return _put(parameters, {at[0]: put(i, at[0], *at[1]) for i, at in enumerate(_places(parameters).items())})


def _places(parameters: Parameters) -> dict[str, tuple[Spec, Any]]:
    """Where parameters lie: the stem, every stage, the head; with the spec of their block."""
    network = parameters.network
    places = {f"blocks/{i}": (s.spec, parameters.stages[i]) for i, s in enumerate(network.stages)}
    ends = {"stem": (network.stem, parameters.stem), "head": (network.head, parameters.head)}
    return places | {name: (spec, own) for name, (spec, own) in ends.items() if spec is not None}


def _put(parameters: Parameters, own: dict[str, Tree]) -> Parameters:
    stages = tuple(own[f"blocks/{i}"] for i in range(len(parameters.stages)))
    return replace(parameters, stem=own.get("stem", {}), stages=stages, head=own.get("head", {}))


# --- the two readings of a network ----------------------------------------------------------------------------------


def forward(network: Network, parameters: Parameters, scales: Scales, x: Array) -> Array:
    """The output of an ordinary forward pass in ordinary floats.

    Args:
        network: what the parameters belong to.
        parameters: draws at unit gain (`init`), or ordinary parameters (`scaled`) with unit scales.
        scales: of the blocks and the stem.
        x: one input, shape ``network.input_shape``; batches by `vmap`.

    Returns:
        The head's output, shape ``(outputs,)``; with ``every_step``, ``(depth, outputs)``.

    Raises:
        ValueError: unknown scales, or an input of the wrong shape.
    """
    check_scales(network, scales)
    check_input(network, x)
    return _forward(parameters, scales, jnp.asarray(x))


@jax.jit
def _forward(parameters: Parameters, scales: Scales, x: Array) -> Array:
    stem, head = stem_layer(parameters, scales), head_layer(parameters)
    h = x.astype(parameter_dtype(parameters))
    h = stem(h) if stem else h
    every = parameters.network.every_step

    def visit(layer: Layer, h: Array, _: None) -> tuple[Array, Array | None]:
        h = layer(h)
        return h, (head(h) if head else h) if every else None

    h, outputs = scan_layers(fed(parameters, x), scales, h, visit)
    return jnp.concatenate(outputs) if every else head(h) if head else h


def scaled(parameters: Parameters, scales: Scales) -> Parameters:
    """The ordinary Flax parameters that a user's optimizer would see: W = sigma_w Z, b = sigma_b z.

    Z is the stored draw at unit gain, so W has standard deviation sigma_w / sqrt(fan_in). They compute the same
    network where those scales are 1: ``forward(net, scaled(params, scales), Scales(sigma_w=1, sigma_b=1), x)``; scales
    that multiply no parameters (skip, temperature, dropout) stay what they were. The head is at unit gain already.

    Args:
        parameters: draws at unit gain (`init`).
        scales: numbers, or one value per layer.

    Raises:
        ValueError: unknown scales, or streamed parameters, which are never stored.
    """
    check_scales(parameters.network, scales)
    if any(isinstance(own, Stream) for own in parameters.stages):
        raise ValueError("parameters must be stored to be scaled; draw them with init(..., stream=False)")
    return ordinary(parameters, scales)[0]


def ordinary(parameters: Parameters, scales: Scales) -> tuple[Parameters, Scales]:
    """The ordinary parameters of stored draws, and the scales under which they are the same network: 1 where a block
    has taken a scale into its parameters."""

    def visit(layer: Layer, _: None, __: None) -> tuple[None, tuple[Tree, Scales]]:
        absorbed = layer.ordinary()
        return None, (absorbed.parameters, absorbed.scales)

    _, outs = scan_layers(parameters, scales, None, visit)
    kept = (
        jax.tree.map(lambda a: a[0], own) if stage.tied else own
        for stage, (own, _) in zip(parameters.network.stages, outs, strict=True)
    )
    left = {name: jnp.concatenate([own[name] for _, own in outs]) for name in outs[0][1]}
    if any(stage.tied for stage in parameters.network.stages):  # their sigmas are one number (`check_scales`)
        left = {name: value[0] if name.startswith("sigma") else value for name, value in left.items()}
    stem = stem_layer(parameters, scales)
    stem_parameters = stem.ordinary().parameters if stem else {}
    return replace(parameters, stem=stem_parameters, stages=tuple(kept)), Scales._of(left)
