"""Transformer encoders."""

import functools
from collections.abc import Sequence
from typing import Any

from jax.typing import DTypeLike

from vgjax import activations, blocks
from vgjax.blocks import Spec, spec
from vgjax.checks import kinds, known, positive_integer
from vgjax.initializers import Law
from vgjax.networks.builders.combinators import Normalization, Phi, as_norm, chain, dense, dtype_name
from vgjax.networks.builders.combinators import residual as around
from vgjax.networks.builders.recipes import HEAD, Branch, as_branch, end_init, sizes
from vgjax.networks.builders.stacking import sequential
from vgjax.networks.network import Network


@kinds
def transformer(
    *,
    width: int,
    depth: int,
    heads: int,
    inputs: int | Sequence[int],
    outputs: int = 1,
    hidden: int | None = None,
    activation: Phi = "gelu",
    norm: str | Normalization | None = "layer",
    residual: str | Branch = "pre",
    causal: bool = False,
    kernel_init: Law = "gaussian",
    dtype: DTypeLike = "float32",
) -> Network:
    """A transformer encoder: each block self-attention and a feed-forward layer of two kernels, both around skips;
    states ``(tokens, width)``.

    Scales: ``sigma_qk`` (query and key kernels), ``sigma_vo`` (value and output), ``sigma_w`` and ``sigma_b``
    (feed-forward), ``temperature`` (divides the logits), ``skip`` and ``branch`` of both residual connections;
    ``sigma_in`` (embedding), ``sigma_out`` (head). Each kernel has one of its own, left out what it shares:
    ``sigma_q``, ``sigma_k``, ``sigma_v``, ``sigma_o``; ``sigma_1`` and ``sigma_2`` of the feed-forward layer. GPT-2 is
    ``kernel_init=jax.nn.initializers.normal(.02)`` with sigma_o = sigma_2 = (2 depth)^(-1/2).

    Args:
        width: of a token, a multiple of ``heads``.
        depth: blocks.
        heads: attention heads.
        inputs: shape of one input, ``(tokens, features)``.
        outputs: size of the output, read from the (pre-LN: normalized) mean of the last tokens.
        hidden: width inside the feed-forward layer (left out: 4 width); 0 for attention alone.
        activation: phi of the feed-forward layer.
        norm: layer or rms, or `vgjax.norm` with its epsilon; None for none.
        residual: where the norm stands: ``"pre"``: h + F(norm(h)), ``"post"``: norm(h + F(h)); or
            `vgjax.networks.branch` with the kind and a scheme: stable, rezero, skipinit, or (with post) deepnorm.
        causal: a token looks at itself and those before it only.
        kernel_init, dtype: as for `vgjax.dense`; biases are Gaussian.

    Raises:
        ValueError: a size below 1, an unknown name, or heads that do not divide the width.

    Source: Vaswani et al. 2017; where the norms stand: Xiong et al. 2020.
    """
    width, depth, heads = (positive_integer(n, v) for n, v in (("width", width), ("depth", depth), ("heads", heads)))
    tokens = sizes("inputs", inputs)
    if len(tokens) != 2:
        raise ValueError(f"inputs must be the shape (tokens, features) of one input, got {tokens}")
    if width % heads:
        raise ValueError(f"heads must divide the width {width}, got {heads}")
    norm, skips = as_norm(norm), as_branch(residual, ("stable", "rezero", "skipinit", "deepnorm"))
    _check(norm, skips)
    draws: dict[str, Any] = {"kernel_init": kernel_init, "dtype": dtype_name(dtype)}
    attention = spec(blocks.Attention, width, heads, causal=causal, **draws)
    branches = {"attention": {"attention": attention}}
    if hidden != 0:
        # 4 width: Vaswani et al. 2017, section 3.3.
        inside = positive_integer("hidden", 4 * width if hidden is None else hidden)
        layer: Any = functools.partial(dense, follows="sigma_w", **draws)
        branches["feed_forward"] = {
            "layer_1": layer(width, inside, names=("sigma_1", "sigma_b")),
            "layer_2": layer(inside, width, activations.get(activation), names=("sigma_2", "sigma_b")),
        }
    block = _block(branches, norm.block(width, draws["dtype"]) if norm else None, skips, depth, draws["dtype"])
    ends: dict[str, Any] = draws | {"kernel_init": end_init(kernel_init)}
    # Under pre-LN the stream itself is never normalized, and so the head does it.
    last = {"norm": norm if skips.kind == "pre" else None, "after": spec(blocks.Pool, 1), **HEAD}
    return sequential(
        *[block] * depth,
        input_shape=tokens,
        stem=dense(tokens[1], width, names=("sigma_in", "sigma_b"), **ends),
        head=dense(width, positive_integer("outputs", outputs), **ends | last),
        name="transformer",
    )


def _check(norm: Normalization | None, skips: Branch) -> None:
    """Raise ValueError for what a transformer does not have."""
    known("residual", skips.kind, ("pre", "post"))
    if skips.scheme == "deepnorm" and (skips.kind != "post" or norm is None):
        raise ValueError(f"scheme 'deepnorm' needs residual 'post' and a norm, got {skips.kind!r} and norm {norm}")
    if (skips.layers, skips.bottleneck) != (2, None):
        raise ValueError("layers and bottleneck of a transformer's branches must be left out (there is hidden)")
    if norm is not None:
        known("norm", norm.kind, ("layer", "rms"))
        if norm.on != "preactivations" or norm.batch is not None:
            raise ValueError("a transformer's norm takes an epsilon alone, got other options")


def _block(branches: dict[str, dict[str, Spec]], norm: Spec | None, skips: Branch, depth: int, dtype: str) -> Spec:
    """Branch after branch, each around a skip, the norm before it or behind."""
    parts: dict[str, Spec] = {}
    for name, layers in branches.items():
        before = {"norm": norm} if norm and skips.kind == "pre" else {}
        parts[name] = around(chain(**before, **layers), scheme=skips.scheme, depth=depth, dtype=dtype)
        if norm and skips.kind == "post":
            parts[f"{name}_norm"] = norm
    return chain(**parts)
