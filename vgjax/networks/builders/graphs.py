"""Graph networks: the same kernel at every node, neighbours by a given adjacency."""

import functools
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from vgjax import activations, blocks
from vgjax.blocks import Spec, spec
from vgjax.blocks.graph import check_adjacency
from vgjax.checks import ArrayLike, kinds, not_negative, positive_integer
from vgjax.initializers import Law
from vgjax.networks.builders.combinators import Normalization, Phi, as_norm, dense
from vgjax.networks.builders.recipes import HEAD, STACK_SCHEMES, Branch, as_branch, end_init, residual_block
from vgjax.networks.builders.recipes import stem_scales as of_stem
from vgjax.networks.builders.stacking import sequential
from vgjax.networks.network import Network


@kinds
def normalized_adjacency(adjacency: ArrayLike, *, self_loops: bool = True) -> np.ndarray:
    """``D^(-1/2) (A + 1) D^(-1/2)``, D the row sums of A + 1: symmetric, its largest eigenvalue 1.

    Args:
        adjacency: A, symmetric and not negative, shape ``(nodes, nodes)``.
        self_loops: False leaves the 1 out.

    Returns:
        Of the same shape, float64.

    Raises:
        ValueError: an A that is not square, finite, symmetric and without negative numbers, or a node without any
            neighbour.

    Source: Kipf and Welling 2017, "Semi-supervised classification with graph convolutional networks", equation 2.
    """
    check_adjacency(adjacency)
    not_negative("adjacency", adjacency)
    given = np.asarray(adjacency, float)
    if not np.array_equal(given, given.T):
        raise ValueError("adjacency must be symmetric to be normalized from both sides, got one that is not")
    linked = given + np.eye(len(given)) if self_loops else given
    degrees = linked.sum(axis=1)
    if np.any(degrees == 0):
        raise ValueError(f"adjacency must give every node a neighbour, got none for node {int(np.argmin(degrees))}")
    return linked / np.sqrt(np.outer(degrees, degrees))


@kinds
def graph_conv(adjacency: ArrayLike, fan_in: int, fan_out: int, activation: Phi = "linear", **options: Any) -> Spec:
    """A graph convolution, ``A phi(h) W + b``, states ``(nodes, features)``.

    Args:
        adjacency: A, as it is (`normalized_adjacency`), held by its content.
        fan_in, fan_out: sizes of one node's state.
        activation: phi.
        **options: of `vgjax.dense`: norm, dropout, before, after, names, follows, kernel_init, bias_init, dtype.

    Raises:
        ValueError: an adjacency that is not square, or not finite; else as for `vgjax.dense`.
    """
    check_adjacency(adjacency)
    unknown = set(options) - {*_OPTIONS}
    if unknown:
        raise ValueError(f"options must be of {', '.join(_OPTIONS)}, got {', '.join(sorted(unknown))}")
    layer = dense(fan_in, fan_out, activation, **options)
    return spec(blocks.GraphConv, np.asarray(adjacency), *layer.arguments, **dict(layer.options))


_OPTIONS = ("norm", "dropout", "before", "after", "names", "follows", "kernel_init", "bias_init", "dtype")


@kinds
def graph_network(
    adjacency: ArrayLike,
    *,
    width: int,
    depth: int,
    inputs: int,
    outputs: int = 1,
    activation: Phi = "relu",
    norm: str | Normalization | None = None,
    residual: str | Branch | None = None,
    pooled: bool = False,
    kernel_init: Law = "gaussian",
    bias_init: Law = "gaussian",
    dtype: DTypeLike = "float32",
) -> Network:
    """A graph convolutional network, ``h^{l+1} = A phi(h^l) W^{l+1} + b^{l+1}``, h^0 = x W^0 + b^0 at every node.

    Scales: those of `vgjax.mlp`: ``sigma_w``, ``sigma_b``, ``sigma_in``, ``sigma_out``, and those of the residual
    branches.

    Args:
        adjacency: A, shape ``(nodes, nodes)``, as it is (`normalized_adjacency`).
        width: of a node's state.
        depth: convolutions.
        inputs: size of one node's input; a network's input has shape ``(nodes, inputs)``.
        outputs: size of the output, W phi(h^L), of every node.
        activation: phi.
        norm: a kind of normalization of a node's state, or `vgjax.norm` with its options.
        residual: a kind of skip connection (pre, plain, post), or `vgjax.networks.branch`.
        pooled: whether the output is one, of the mean over the nodes.
        kernel_init, bias_init, dtype: as for `vgjax.dense`.

    Raises:
        ValueError: a size below 1, an unknown name, or an adjacency that is not square, or not finite.

    Source: Kipf and Welling 2017, "Semi-supervised classification with graph convolutional networks".
    """
    check_adjacency(adjacency)
    width, depth, inputs = (
        positive_integer(name, size) for name, size in (("width", width), ("depth", depth), ("inputs", inputs))
    )
    skips = None if residual is None else as_branch(residual, STACK_SCHEMES)
    around: dict[str, Any] = {"activation": activations.get(activation), "norm": as_norm(norm)}
    draws: dict[str, Any] = {"kernel_init": kernel_init, "bias_init": bias_init, "dtype": dtype}
    ends: dict[str, Any] = draws | {"kernel_init": end_init(kernel_init)}
    layer: Any = functools.partial(graph_conv, np.asarray(adjacency), **around, **draws)
    block = residual_block(layer, skips, width, width, depth=depth) if skips else layer(width, width)
    # Behind a phi that closes a block (post) the head has nothing to do but its product.
    read: dict[str, Any] = {} if skips and skips.kind == "post" else around
    pool: dict[str, Any] = {"after": spec(blocks.Pool, 1)} if pooled else {}
    return sequential(
        *[block] * depth,
        input_shape=(len(np.asarray(adjacency)), inputs),
        stem=dense(inputs, width, **ends, **of_stem(skips)),
        head=dense(width, positive_integer("outputs", outputs), **read, **pool, **ends | HEAD),
        name="graph network",
    )
