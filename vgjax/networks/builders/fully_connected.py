"""Fully connected networks: plain, normalized, residual, noisy."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from jax.typing import DTypeLike

from vgjax import activations
from vgjax.blocks import Spec
from vgjax.checks import kinds, positive_integer
from vgjax.initializers import Law
from vgjax.networks.builders.combinators import Normalization, Phi, as_norm, dense
from vgjax.networks.builders.recipes import (
    HEAD,
    STACK_SCHEMES,
    Branch,
    as_branch,
    end_init,
    residual_block,
    sizes,
    stem_scales,
)
from vgjax.networks.builders.stacking import sequential
from vgjax.networks.network import Network


@kinds
def mlp(
    *,
    width: int | Sequence[int],
    depth: int | None = None,
    activation: Phi = "tanh",
    inputs: int | None = None,
    outputs: int = 1,
    norm: str | Normalization | None = None,
    dropout: str | None = None,
    residual: str | Branch | None = None,
    stem: bool = True,
    kernel_init: Law = "gaussian",
    bias_init: Law = "gaussian",
    dtype: DTypeLike = "float32",
) -> Network:
    """A fully connected network: ``h^{l+1} = W^{l+1} phi(h^l) + b^{l+1}``, h^0 = W^0 x + b^0, output W phi(h^L); with
    normalization, dropout and skip connections where they are asked for.

    Scales: ``sigma_w`` and ``sigma_b``; ``sigma_in`` of the first kernel W^0 alone (left out: that of the others; under
    the scheme fixup: 1), ``sigma_out`` of the head's; those of `vgjax.networks.branch`, and ``dropout``.

    Args:
        width: units of every hidden state; or, without a depth, the sizes of h^0 ... h^L.
        depth: L, the number of hidden layers after the first, h^0 (so there are L + 1 hidden states).
        activation: phi.
        inputs, outputs: sizes of one input and one output.
        norm: a kind of normalization (layer, rms, group, batch, batch_running), or `vgjax.norm` with its options.
        dropout: bernoulli or gaussian noise on the activations, at the rate of the scale ``dropout``.
        residual: a kind of skip connection (pre, plain, post), or `vgjax.networks.branch` with its options.
        stem: False leaves the first layer out: the input is h^0, as in the theory.
        kernel_init, bias_init, dtype: as for `vgjax.dense`. Where kernels are given as an array, those of stem and head
            are Gaussian.

    Raises:
        ValueError: a size below 1, an unknown name, a depth beside several widths, or no depth beside one.
    """
    widths = _widths(width, depth)
    skips = None if residual is None else as_branch(residual, STACK_SCHEMES)
    norm, phi, outputs = as_norm(norm), activations.get(activation), positive_integer("outputs", outputs)
    draws: dict[str, Any] = {"kernel_init": kernel_init, "bias_init": bias_init, "dtype": dtype}
    ends: dict[str, Any] = draws | {"kernel_init": end_init(kernel_init)}
    layer: Any = functools.partial(dense, activation=phi, norm=norm, dropout=dropout, **draws)
    if skips and len(set(widths)) > 1:
        raise ValueError(f"widths must be equal in a residual network, got {widths}")
    if skips:
        specs = [residual_block(layer, skips, widths[0], widths[0], depth=len(widths) - 1)] * (len(widths) - 1)
    else:
        specs = [layer(before, after) for before, after in itertools.pairwise(widths)]
    # Behind a phi that closes a block (post) the head has nothing to do but its product.
    read: Callable[..., Spec] = dense if skips and skips.kind == "post" else functools.partial(layer, dropout=None)
    first = None
    if stem:
        first = dense(positive_integer("inputs", inputs), widths[0], **ends, **stem_scales(skips))
    elif inputs not in (None, widths[0]):
        raise ValueError(f"inputs must be the {widths[0]} units of h^0 (or left out) without a stem, got {inputs}")
    return sequential(
        *specs,
        input_shape=(*(norm.leading if norm else ()), inputs if first and inputs else widths[0]),
        stem=first,
        head=read(widths[-1], outputs, **ends | HEAD),
        name="mlp",
    )


def _widths(width: int | Sequence[int], depth: int | None) -> tuple[int, ...]:
    """Sizes of h^0 ... h^L."""
    widths = sizes("width", width)
    if isinstance(width, Sequence) or len(widths) > 1:
        if depth is not None:
            raise ValueError(f"depth must be left out beside the widths of all states, got depth={depth}")
        if len(widths) < 2:
            raise ValueError(f"width must hold at least 2 sizes (h^0 and one layer) without a depth, got {widths}")
        return widths
    return widths * (positive_integer("depth", depth) + 1)
