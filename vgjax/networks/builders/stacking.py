"""From blocks to networks: in a row, all alike, or sharing one draw."""

import inspect
import itertools
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from vgjax.blocks import Spec, spec
from vgjax.checks import kinds, positive_integer
from vgjax.networks.builders.recipes import sizes
from vgjax.networks.layer import parameter_dtype, shape_after
from vgjax.networks.network import Network, Stage


@kinds
def stack(
    block: Spec | type[nnx.Module],
    *arguments: Any,
    depth: int,
    input_shape: int | tuple[int, ...],
    stem: Spec | None = None,
    head: Spec | None = None,
    **options: Any,
) -> Network:
    """A network of ``depth`` copies of one block, each drawn afresh: a `Spec`, or any `nnx.Module` of your own from a
    state to a state of its shape.

    Args:
        block: a `Spec`; or a class, built as ``block(*arguments, **options, rngs=rngs)``, called as ``block(h)`` on one
            example, or as ``block(h, scales)`` if it declares ``scales`` (see `vgjax.blocks.protocol`). Arguments are
            hashable, or arrays, which are held by their content. With `nnx.BatchNorm` a state is a batch: the first
            axis of ``input_shape``.
        depth: how many.
        input_shape: shape of one input: the state's shape where there is no stem.
        stem, head: `Spec` of the blocks before and behind.

    Raises:
        ValueError: a depth below 1, arguments that cannot be hashed and are no arrays, a block that changes the shape
            or the dtype of its state, or one with `nnx.BatchNorm` and no batch in its state.
    """
    if isinstance(block, Spec) and (arguments or options):
        raise ValueError(f"a Spec of {block.block.__name__} has its arguments already, got more of them")
    copied = block if isinstance(block, Spec) else spec(block, *arguments, **options)
    name = copied.block.__name__
    # Told here: unhashable arguments would fail in the first compiled call, far from what was typed.
    try:
        hash(copied)
    except TypeError as error:
        raise ValueError(f"arguments of {name} must be hashable or arrays (they are compiled for): {error}") from None
    try:
        inspect.signature(copied.block.__init__).bind(None, *copied.arguments, **dict(copied.options), rngs=None)
    except TypeError as error:
        raise ValueError(f"arguments of {name} must be those that it is built with: {error}") from None
    copies = [copied] * positive_integer("depth", depth)
    return sequential(*copies, input_shape=input_shape, stem=stem, head=head, name=f"stack of {name}")


@kinds
def sequential(
    *blocks: Spec,
    input_shape: int | tuple[int, ...],
    stem: Spec | None = None,
    head: Spec | None = None,
    name: str = "sequential",
) -> Network:
    """A network of blocks in a row, equal or not. Equal neighbours are one stage, and so one scan.

    ``vg.sequential(spec(Mine, 5, 10), spec(Mine, 10, 2), vg.dense(2, 1, "relu"), input_shape=5)``, spec being
    `vgjax.blocks.spec` and Mine a `nnx.Module` as for `stack`.

    Args:
        *blocks: `Spec` of every block, in order; the state of each has the shape that the one before it makes.
        input_shape: shape of one input: the first state's shape where there is no stem.
        stem, head: `Spec` of the blocks before and behind.
        name: of the architecture, for people.

    Raises:
        ValueError: no blocks, what is none, or one that changes the dtype of its state, or its shape where an equal
            one follows.
    """
    if not blocks:
        raise ValueError("a network needs at least one block, got none")
    rows = [(row, len(list(copies))) for row, copies in itertools.groupby(blocks)]
    shape = sizes("input_shape", input_shape) if np.size(input_shape) else ()
    # Parameters decide the dtype of a network (`Parameters.dtype`): inputs are cast to it.
    state = jax.ShapeDtypeStruct(shape, parameter_dtype(rows[0][0]))
    state = _after(stem, state) if stem else state
    stages = []
    for row, depth in rows:
        named, after = row.block.__name__, _after(row, state)
        if after.dtype != state.dtype:
            raise ValueError(f"{named} must keep the dtype of its state, got {after.dtype} from {state.dtype}")
        if after.shape != state.shape and depth > 1:
            raise ValueError(f"{named} must keep the shape of its state, got {after.shape} from {state.shape}")
        stages.append(Stage(row, depth, keeps_shape=after.shape == state.shape))
        state = after
    return Network(stem, tuple(stages), head, shape, name=name)


def _after(spec: Spec, state: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    try:
        return shape_after(spec, state)
    except (TypeError, IndexError, OverflowError) as error:
        told = str(error).split("\n")[0]
        raise ValueError(f"{spec.block.__name__} must take a state of shape {state.shape}, got {told}") from error


@kinds
def tied(network: Network) -> Network:
    """The same network with one draw for all its layers: an autonomous recurrence.

    Raises:
        ValueError: layers that are not all alike.
    """
    # One draw is one stage: the sum over its layers is the gradient of the shared parameters.
    if len(network.stages) > 1 or not network.stages[0].keeps_shape:
        raise ValueError(f"layers must be all alike to share one draw, got {network!r}")
    return replace(network, stages=(replace(network.stages[0], tied=True),))


@kinds
def untied(network: Network) -> Network:
    """The same network with a draw of its own for every layer: a recurrence with new weights at every step, which is
    what mean-field theory assumes."""
    return replace(network, stages=tuple(replace(stage, tied=False) for stage in network.stages))
