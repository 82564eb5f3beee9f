"""Parameters: the numbers of a network, drawn at unit gain."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from vgjax.blocks.protocol import holds_keys
from vgjax.checks import FloatDtype, RandomKey, is_traced, kinds
from vgjax.networks.layer import Tree, draw, floating_dtype, parameter_dtype
from vgjax.networks.network import Network
from vgjax.values import by_content, on_device


@by_content
@functools.partial(jax.tree_util.register_dataclass, data_fields=["stem", "stages", "head"], meta_fields=["network"])
@dataclass(frozen=True)
class Parameters:
    """A network's draws at unit gain (`init`), or its ordinary parameters (`absorb_scales`): a pytree of plain arrays.

    Attributes:
        stem, head: parameters of one block, by Flax path; empty if there is none. What the head shares with the stem
            the stem holds.
        stages: one a stage: the parameters of its blocks stacked along a leading layer axis, or a `Stream`; of a tied
            stage, one block's.
        network: what they belong to (static), so that nothing else has to be handed along with them.
    """

    stem: Tree
    stages: tuple["Tree | Stream", ...]
    head: Tree
    network: Network

    @property
    def whole_head(self) -> Tree:
        """The head's parameters with those that the stem holds for it."""
        head = self.head
        for here, there in self.network.shared:
            head = put(head, here, functools.reduce(lambda tree, name: tree[name], there.split("/"), self.stem))
        return head

    @property
    def streamed(self) -> bool:
        """Whether some kernels are drawn anew in every pass instead of stored."""
        return any(isinstance(stage, Stream) for stage in self.stages)

    @property
    def dtype(self) -> Any:
        """Of the floating-point numbers; of streamed ones, that which they are drawn in."""
        stage, tree = self.network.stages[0], self.stages[0]
        if isinstance(tree, Stream):
            return parameter_dtype(stage.spec)
        return floating_dtype(tree)

    @kinds
    def astype(self, dtype: FloatDtype) -> "Parameters":
        """The same draws in another floating-point dtype: in float64 also where JAX makes none by itself."""
        with jax.enable_x64(True):
            return as_dtype(dtype, self)


@by_content
class Stream(NamedTuple):
    """A stage whose blocks are drawn inside the scan, each from its own key, and never stored.

    Attributes:
        keys: one key a layer, shape ``(depth,)``.
    """

    keys: Array


def jit_draw(f: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` of what draws random numbers by a key, its other arguments static: such a program runs about once.

    XLA's first level of optimization compiles the loops of threefry in half the time of its third, and they draw the
    same numbers as fast. A sum would change: its order is the optimizer's choice. Inside of another program there is
    none of its own.
    """
    plain = jax.jit(f, **options)
    quick = jax.jit(f, compiler_options={"xla_backend_optimization_level": "1"}, **options)
    known: dict[tuple[Any, ...], Callable[..., Any]] = {}

    @functools.wraps(f)
    def draw(key: jax.Array, *static: Any) -> Any:
        if is_traced(key) or jax.config.read("jax_disable_most_optimizations"):  # which asks for less still
            return plain(key, *static)
        if static not in known:
            known[static] = plain if _sums(plain.trace(key, *static).jaxpr) else quick
        return known[static](key, *static)

    return draw


def _sums(program: Any) -> bool:
    """Whether a traced program, or one inside of it, adds up numbers of an array."""
    for equation in program.eqns:
        if any(part in equation.primitive.name for part in ("sum", "prod", "dot", "conv_general")):
            return True
        if any(_sums(inner) for inner in jax.tree.leaves(equation.params) if hasattr(inner, "eqns")):
            return True
    return False


@kinds
def init(key: RandomKey, network: Network, *, stream: bool = False) -> Parameters:
    """Draw a network's parameters at unit gain.

    Layer l is drawn from ``fold_in(key, l)``, so the first layers of a deeper network are those of a shallower one.

    Args:
        key: `jax.random.key`.
        network: what to draw for.
        stream: keep only the keys and draw each layer inside every scan, so that no kernel is stored; same numbers.
    """
    return _init(key, network, stream)


@functools.partial(jit_draw, static_argnums=(1, 2))
def _init(key: Array, network: Network, stream: bool) -> Parameters:
    # Apart, so that a network with another stem or depth has the same blocks.
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
        without_shared(network, draw(network.head, head_key)) if network.head else {},
        network,
    )


@jit_draw
def two_keys(key: Array) -> tuple[Array, Array]:
    """That of the weights and that of all else: `jax.random.split`, in one program with what takes the two apart."""
    weights, rest = jax.random.split(key)
    return weights, rest


def put(tree: Tree, path: str, leaf: Any) -> Tree:
    """A tree with a leaf at a path, "linear/kernel"; None takes away the one that is there."""
    name, _, rest = path.partition("/")
    kept = {other: branch for other, branch in tree.items() if other != name}
    return kept | ({name: put(tree.get(name, {}), rest, leaf)} if rest else {} if leaf is None else {name: leaf})


def without_shared(network: Network, whole: Tree) -> Tree:
    """Of a head's parameters those that are its own."""
    return functools.reduce(lambda tree, shared: put(tree, shared[0], None), network.shared, whole)


def in_present_mode(tree: Any) -> Any:
    """A tree with all its numbers in dtypes of JAX's present mode: where float64 is off, no float64 nor int64 that was
    made where it was on."""
    here = lambda a: jnp.asarray(on_device(a), jax.dtypes.canonicalize_dtype(a.dtype))  # noqa: E731
    return jax.tree.map(lambda a: a if holds_keys(a) else here(a), tree)


def as_dtype(dtype: Any, tree: Any) -> Any:
    """A tree with all its floating-point numbers in a dtype; whole numbers and keys stay what they are."""
    return jax.tree.map(
        lambda a: jnp.asarray(a).astype(dtype) if jnp.issubdtype(jnp.result_type(a), jnp.floating) else a, tree
    )
