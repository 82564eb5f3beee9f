"""Layers: the numbers of a network: its parameters, its blocks with theirs, one pass over them.

Everything that runs through the depth of a network (`forward`, and all of `vgjax.flow`) is a visit to every `Layer` by
`scan_layers`, and knows nothing of what the blocks are.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from vgjax import blocks
from vgjax.exponents import Scaled, euler
from vgjax.initializers import Scales
from vgjax.networks import Network, Spec, check_input, check_scales

Tree = dict[str, Any]
"""Parameters of one block, or of a stage with a leading layer axis: nested plain dicts of arrays."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["stem", "stages", "head"], meta_fields=["network"])
@dataclass(frozen=True)
class Parameters:
    """A network's draws at unit gain (`init`), or its ordinary parameters (`scaled`): a pytree of plain arrays.

    Attributes:
        stem, head: parameters of one block, by Flax path; empty if there is none.
        stages: one a stage: the parameters of its blocks stacked along a leading layer axis, or a `Stream`.
        network: what they belong to (static).
    """

    stem: Tree
    stages: tuple["Tree | Stream", ...]
    head: Tree
    network: Network


class Stream(NamedTuple):
    """A stage whose blocks are drawn inside the scan, each from its own key, and never stored.

    Attributes:
        keys: one key a layer, shape ``(depth,)``.
    """

    keys: Array


# --- draws ----------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("network", "stream"))
def init(key: Array, network: Network, *, stream: bool = False) -> Parameters:
    """Draw a network's parameters at unit gain.

    Layer l is drawn from ``fold_in(key, l)``, so the first layers of a deeper network are those of a shallower one.

    Args:
        key: `jax.random.key`.
        network: what to draw for.
        stream: keep only the keys and draw each layer inside every scan, so that no kernel is stored; same numbers.
    """
    stem_key, block_key, head_key = jax.random.split(key, 3)
    layer_keys = jax.vmap(functools.partial(jax.random.fold_in, block_key))(jnp.arange(network.depth))
    stages: list[Tree | Stream] = []
    start = 0
    for stage in network.stages:
        keys = layer_keys[start : start + stage.depth]
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


@functools.cache
def graph(spec: Spec) -> nnx.GraphDef:
    """The static part of a block; `nnx.merge` with a dict of its arrays gives the module back."""
    found: list[nnx.GraphDef] = []

    def build() -> None:
        found.append(nnx.split(spec.build(nnx.Rngs(0)))[0])

    jax.eval_shape(build)
    return found[0]


@functools.cache
def _trainable_paths(spec: Spec) -> frozenset[str]:
    found: list[frozenset[str]] = []

    def build() -> None:
        parameters = nnx.to_pure_dict(nnx.state(spec.build(nnx.Rngs(0)), nnx.Param))
        found.append(frozenset(_leaves(parameters)))

    jax.eval_shape(build)
    return found[0]


def _leaves(tree: Tree) -> dict[str, Array]:
    return {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _path(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


# --- a layer: a block with its numbers ------------------------------------------------------------------------------


@functools.partial(jax.tree_util.register_dataclass, data_fields=["parameters", "scales"], meta_fields=["spec"])
@dataclass(frozen=True)
class Layer:
    """A block together with its parameters and scales: state -> state.

    Attributes:
        spec: how the block is built (static).
        parameters: nested dicts of arrays, no layer axis.
        scales: one number each.
    """

    spec: Spec
    parameters: Tree
    scales: Scales

    def __call__(self, h: Array) -> Array:
        """The next state of a plain one."""
        # The module is made inside the call: it may change its own state only in the trace that made it.
        return blocks.call(self._module(), h, self.scales)

    def step(self, state: Scaled) -> Scaled:
        """The next state of a normalized scaled one, not normalized."""
        if hasattr(self.spec.block, "step"):
            return self.spec.block.step(self._module(), state, self.scales)
        return euler(self, state)

    def slopes(self, h: Array) -> tuple[Array, float]:
        """phi' of the block's units, and phi's largest slope; NaN if the block does not report them."""
        block = self._module()
        return block.slopes(h) if hasattr(block, "slopes") else (jnp.full(h.shape, jnp.nan, h.dtype), 1.0)

    def trainable(self) -> dict[str, Array]:
        """The `nnx.Param` leaves (no batch statistics, no random state), by path "linear/kernel"."""
        return {path: leaf for path, leaf in _leaves(self.parameters).items() if path in _trainable_paths(self.spec)}

    def with_parameters(self, leaves: dict[str, Array]) -> "Layer":
        """The same layer with some leaves replaced, by path."""
        replaced = jax.tree_util.tree_map_with_path(lambda path, old: leaves.get(_path(path), old), self.parameters)
        return replace(self, parameters=replaced)

    def ordinary(self) -> "Layer":
        """The same map with its scales inside its parameters (W = sigma_w Z), as far as the block can."""
        if not hasattr(self.spec.block, "scaled"):
            return self
        parameters = self.spec.block.scaled(self.parameters, self.scales)
        return replace(self, parameters=parameters, scales=jax.tree.map(jnp.ones_like, self.scales))

    def _module(self) -> nnx.Module:
        return nnx.merge(graph(self.spec), self.parameters, copy=True)


def stem_layer(parameters: Parameters, scales: Scales) -> Layer | None:
    """The stem, with the scales of the first block."""
    spec = parameters.network.stem
    return Layer(spec, parameters.stem, jax.tree.map(lambda s: s[0], per_layer(parameters, scales))) if spec else None


def head_layer(parameters: Parameters) -> Layer | None:
    """The head, at unit gain."""
    spec = parameters.network.head
    return Layer(spec, parameters.head, unit_scales(spec, parameter_dtype(parameters))) if spec else None


def unit_scales(spec: Spec, dtype: Any) -> Scales:
    """Every scale that a block declares, at 1."""
    return Scales._of({name: jnp.ones((), dtype) for name in blocks.declared_scales(spec.block)})


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
    along = per_layer(parameters, scales)
    starts = np.cumsum([0, *(stage.depth for stage in network.stages)])
    outputs: list[Any] = [None] * len(network.stages)
    order = range(len(network.stages))
    for i in reversed(order) if reverse else order:
        stage, own = network.stages[i], parameters.stages[i]
        here = jax.tree.map(lambda s, a=int(starts[i]), b=int(starts[i + 1]): s[a:b], along)

        def body(carry: Any, xs: Any, spec: Spec = stage.spec) -> tuple[Any, Any]:
            own, scales, extra = xs
            drawn = draw(spec, own.keys) if isinstance(own, Stream) else own
            return visit(Layer(spec, drawn, scales), carry, extra)

        xs = (own, here, extras[i] if extras is not None else None)
        if stage.depth == 1:  # a transition may change the shape of the carry
            carry, output = body(carry, jax.tree.map(lambda a: a[0], xs))
            outputs[i] = jax.tree.map(lambda a: a[None], output)
        else:
            carry, outputs[i] = lax.scan(body, carry, xs, length=stage.depth, reverse=reverse)
    return carry, outputs


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


# --- the two readings of a network ----------------------------------------------------------------------------------


def forward(network: Network, parameters: Parameters, scales: Scales, x: Array) -> Array:
    """The output of an ordinary forward pass in ordinary floats.

    Args:
        network: what the parameters belong to.
        parameters: draws at unit gain (`init`), or ordinary parameters (`scaled`) with unit scales.
        scales: of the blocks and the stem.
        x: one input, shape ``network.input_shape``; batches by `vmap`.

    Returns:
        The head's output, shape ``(outputs,)``.

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
    h, _ = scan_layers(parameters, scales, h, lambda layer, h, _: (layer(h), None))
    return head(h) if head else h


def scaled(parameters: Parameters, scales: Scales) -> Parameters:
    """The ordinary Flax parameters that a user's optimizer would see: W = sigma_w Z, b = sigma_b z.

    Z is the stored draw at unit gain, so W has standard deviation sigma_w / sqrt(fan_in). They compute the same
    network at unit scales: ``forward(net, scaled(params, scales), Scales(sigma_w=1, sigma_b=1), x)``. The head is at
    unit gain already.

    Args:
        parameters: draws at unit gain (`init`).
        scales: numbers, or one value per layer.

    Raises:
        ValueError: unknown scales, or streamed parameters, which are never stored.
    """
    check_scales(parameters.network, scales)
    if any(isinstance(own, Stream) for own in parameters.stages):
        raise ValueError("parameters must be stored to be scaled; draw them with init(..., stream=False)")
    _, stages = scan_layers(parameters, scales, None, lambda layer, _, __: (None, layer.ordinary().parameters))
    stem = stem_layer(parameters, scales)
    return replace(parameters, stem=stem.ordinary().parameters if stem else {}, stages=tuple(stages))
