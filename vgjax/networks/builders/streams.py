"""More than one stream: branches around which a network keeps several states, or all states before."""

from jax.typing import DTypeLike

from vgjax import blocks
from vgjax.blocks import Spec, spec
from vgjax.blocks.protocol import block_info
from vgjax.checks import kinds, positive_integer
from vgjax.networks.builders.combinators import dtype_name


@kinds
def hyper_connections(
    branch: Spec,
    streams: int = 4,
    *,
    read: int | None = None,
    logit: float | None = None,
    steps: int = 20,
    features: int | None = None,
    dtype: DTypeLike = "float32",
) -> Spec:
    """Hyper-connections around any branch: n streams instead of one skip, ``h'_j = sum_i R_ji h_i + w_j F(sum_i a_i
    h_i)`` (`vgjax.blocks.HyperConnection`).

    The state has a leading axis of streams; `vgjax.blocks.Split` behind the stem makes it, `vgjax.blocks.Merge` in
    front of the head sums it up::

        block = hyper_connections(vg.dense(64, 64, "relu"), streams=4)
        stem = chain(vg.dense(8, 64), spec(vg.blocks.Split, 4))
        head = vg.dense(64, 1, before=spec(vg.blocks.Merge), bias_init="zero")
        vg.stack(block, depth=60, input_shape=8, stem=stem, head=head)

    Scales: ``sigma_r``, the standard deviation of the entries of R around its start (0), ``sigma_d`` of dynamic maps
    (0), ``skip`` and ``branch``, and those of the branch.

    Args:
        branch: F, a block from a state to a state of its shape.
        streams: n.
        read: the stream that all blocks read; left out, one after the other, as in the paper.
        logit: b, which makes R doubly stochastic (mHC): Sinkhorn of ``exp(b P + sigma_r Z)``; left out, R is free.
        steps: of Sinkhorn, each columns and then rows.
        features: size of the state's last axis makes all maps depend on the state (dynamic); left out, they do not.
        dtype: of the maps.

    Raises:
        ValueError: a size below 1, a stream that is not there, or a logit that is not finite.

    Source: Zhu et al. 2024, "Hyper-connections"; Xie et al. 2025, "mHC: manifold-constrained hyper-connections".
    """
    options: dict[str, int | float | None] = {"read": read, "logit": logit, "features": features}
    given = {name: value for name, value in options.items() if value is not None}
    given |= {} if logit is None else {"steps": positive_integer("steps", steps)}
    made = spec(blocks.HyperConnection, branch, positive_integer("streams", streams), **given, dtype=dtype_name(dtype))
    block_info(made)  # built once, so that a stream that is not there is told here
    return made


@kinds
def depth_average(branch: Spec, memory: int, *, dtype: DTypeLike = "float32") -> Spec:
    """A block that reads a weighted sum of all states so far, as a DenseFormer does (`vgjax.blocks.DepthAverage`).

    The state is the stack of past states, the newest first; `vgjax.blocks.Remember` behind the stem begins it, and
    ``spec(vgjax.blocks.Part, 0)`` in front of the head reads the newest.

    Scales: ``sigma_past``, the standard deviation of the weights around their start (0: the network without averages),
    and those of the branch.

    Args:
        branch: F, from one state to the next, its own skip connection inside.
        memory: states that are kept: depth + 1 for all.
        dtype: of the weights.

    Raises:
        ValueError: a size below 1.

    Source: Pagliardini et al. 2024, "DenseFormer: enhancing information flow in transformers via depth weighted
    averaging".
    """
    return spec(blocks.DepthAverage, branch, positive_integer("memory", memory), dtype=dtype_name(dtype))
