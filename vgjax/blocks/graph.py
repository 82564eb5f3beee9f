"""Graph convolutions: what a node becomes is a weighted sum over its neighbours; nodes along the state's first axis."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from vgjax.blocks.dense import Dense
from vgjax.blocks.protocol import Constant
from vgjax.blocks.told import GraphArguments, LayerArguments, TheoryArguments
from vgjax.checks import Size, finite, kinds


class GraphConv(Dense):
    """A graph convolution: ``h' = sigma_w A phi(h) Z + sigma_b z``, shapes ``(nodes, fan_in)`` -> ``(nodes, fan_out)``.

    Args:
        adjacency: A, shape ``(nodes, nodes)``, as it is; A_ij weighs what node i hears of node j
            (`vgjax.networks.normalized_adjacency`).
        fan_in, fan_out: sizes of one node's state before and after.
        rngs: where the draws come from.
        **dense: kernel_init, dtype, activation, before, after, names, follows, bias_init: as for `Dense`.

    Raises:
        ValueError: an adjacency that is not square, or not finite.

    Source: Kipf and Welling 2017, "Semi-supervised classification with graph convolutional networks", equation 2.
    """

    @kinds
    def __init__(self, adjacency: np.ndarray, fan_in: Size, fan_out: Size, *, rngs: nnx.Rngs, **dense: Any):
        check_adjacency(adjacency)
        super().__init__(fan_in, fan_out, rngs=rngs, **dense)
        # Part of the program and not of the parameters: these are stacked by layer.
        self.adjacency = Constant(adjacency)

    @property
    def theory_arguments(self) -> TheoryArguments | None:
        """Those of the layer at every node, and the adjacency."""
        layer = super().theory_arguments
        return GraphArguments(layer, self.adjacency) if isinstance(layer, LayerArguments) else None

    def product(self, a: Array) -> Array:
        """A a Z."""
        return jnp.dot(jnp.asarray(self.adjacency.array, a.dtype), super().product(a))


def check_adjacency(adjacency: Any) -> None:
    """Pass a square matrix of finite numbers."""
    shape = np.shape(adjacency)
    if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
        raise ValueError(f"adjacency must be a square matrix, one row a node, got shape {shape}")
    finite("adjacency", adjacency)
