"""Networks of a user's own blocks."""

from collections.abc import Hashable

import jax
import jax.numpy as jnp
from flax import nnx

from vgjax.blocks import Spec
from vgjax.checks import positive_integer
from vgjax.networks.layer import shape_after
from vgjax.networks.network import Network, Stage


def stack(
    block: type[nnx.Module],
    *arguments: Hashable,
    depth: int,
    input_shape: int | tuple[int, ...],
    stem: Spec | None = None,
    head: Spec | None = None,
    tied: bool = False,
    **options: Hashable,
) -> Network:
    """A network of ``depth`` copies of your own block, each drawn afresh: any `nnx.Module` from a state to a state of
    its shape.

    Args:
        block: built as ``block(*arguments, **options, rngs=rngs)``, called as ``block(h)`` on one example; or as
            ``block(h, scales)`` if the class declares ``scales`` (see `vgjax.blocks.protocol`).
        depth: how many.
        input_shape: shape of one input: the state's shape where there is no stem.
        stem, head: `Spec` of the blocks before and behind.
        tied: all of them share one draw.

    Raises:
        ValueError: a depth below 1, arguments that cannot be hashed, or a block that changes the shape or the dtype of
            its state.
    """
    shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
    made = Spec(block, arguments, tuple(sorted(options.items())))
    try:
        hash(made)
    except TypeError as error:
        raise ValueError(f"arguments of {block.__name__} must be hashable (they are compiled for): {error}") from None
    network = Network(stem, (Stage(made, positive_integer("depth", depth), tied),), head, shape)
    _check_states(network)
    return network


def _check_states(network: Network) -> None:
    state = jax.ShapeDtypeStruct(network.input_shape, jnp.float32)
    state = shape_after(network.stem, state) if network.stem else state
    for stage in network.stages:
        name, after = stage.spec.block.__name__, shape_after(stage.spec, state)
        if after.shape != state.shape and stage.depth > 1:
            raise ValueError(f"{name} must keep the shape of its state, got {after.shape} from {state.shape}")
        if after.dtype != state.dtype:
            raise ValueError(f"{name} must keep the dtype of its state, got {after.dtype} from {state.dtype}")
        state = after
