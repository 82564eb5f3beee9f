"""Transformer encoders."""

from dataclasses import replace

from jax.typing import DTypeLike

from vgjax import activations, blocks
from vgjax.activations import Activation
from vgjax.blocks import Spec, spec
from vgjax.checks import known, positive_integer
from vgjax.networks.builders.parts import (
    GATED,
    Layers,
    Phi,
    drawn_as,
    embedding,
    in_stages,
    norm_around,
    scheme_defaults,
)
from vgjax.networks.network import Network


def transformer(
    *,
    width: int,
    depth: int,
    heads: int,
    tokens: int,
    inputs: int,
    outputs: int = 1,
    hidden: int | None = None,
    activation: Phi = "gelu",
    norm: str | None = "pre",
    kind: str = "layer",
    epsilon: float = 1e-6,
    causal: bool = False,
    scheme: str | None = None,
    tied: bool = False,
    kernel_init: str = "gaussian",
    bias_init: str = "zero",
    dtype: DTypeLike = "float32",
) -> Network:
    """A transformer encoder: each block self-attention and a feed-forward layer of two kernels, both around skips;
    states ``(tokens, width)``.

    Scales: ``sigma_qk`` (query and key kernels), ``sigma_vo`` (value and output), ``sigma_w`` and ``sigma_b``
    (feed-forward), ``temperature`` (divides the logits), ``skip`` and ``branch`` of both residual connections;
    ``sigma_in`` (embedding).

    Args:
        width: of a token, a multiple of ``heads``.
        depth: blocks.
        heads: attention heads.
        tokens: of one input, which has shape ``(tokens, inputs)``.
        outputs: size of the output, read from the (pre-LN: normalized) mean of the last tokens.
        hidden: width inside the feed-forward layer (left out: 4 width); 0 for attention alone.
        activation: phi of the feed-forward layer.
        norm: ``"pre"``: h + F(LN(h)), ``"post"``: LN(h + F(h)), or None.
        kind: layer or rms norm.
        epsilon: added to the variances of the norm (0 in the theory).
        causal: a token looks at itself and those before it only.
        scheme: ``"deepnorm"`` (with ``norm="post"``): skip = (2L)^(1/4), sigma_vo and sigma_w at (8L)^(-1/4) (Wang et
            al. 2022); or those of `mlp` but ``"fixup"``. They set defaults; what is given in `Scales` wins.
        tied: all blocks share one draw.
        kernel_init, bias_init, dtype: as for `mlp`.

    Raises:
        ValueError: a size below 1, an unknown name, or heads that do not divide the width.

    Source: Vaswani et al. 2017; where the norms stand: Xiong et al. 2020.
    """
    width, depth = positive_integer("width", width), positive_integer("depth", depth)
    heads, tokens = positive_integer("heads", heads), positive_integer("tokens", tokens)
    inputs, outputs = positive_integer("inputs", inputs), positive_integer("outputs", outputs)
    if width % heads:
        raise ValueError(f"heads must divide the width {width}, got {heads}")
    hidden = 4 * width if hidden is None else hidden
    drawn = drawn_as(kernel_init, bias_init, dtype)
    place = None if norm is None else known("norm", norm, ("pre", "post"))
    if scheme == "deepnorm" and place != "post":
        raise ValueError(f"scheme 'deepnorm' needs norm='post', got {norm!r}")
    normed = norm_around(known("kind", kind, ("layer", "rms")), "preactivations", epsilon, 1)
    layer = Layers(activations.get("linear"), drawn, normed)
    block = _transformer_block(layer, activations.get(activation), width, heads, hidden, place, causal, scheme)
    head = layer if place == "pre" else layer.linear()
    return Network(
        stem=layer.linear().dense(inputs, width, **embedding(True)),
        stages=in_stages([block] * depth, tied),
        head=replace(head, pool=1).dense(width, outputs, bias_init="zero"),
        input_shape=(tokens, inputs),
        defaults=_deepnorm(depth) if scheme == "deepnorm" else scheme_defaults(scheme, None, depth, layer.phi),
    )


def _transformer_block(
    layer: "Layers",
    phi: Activation,
    width: int,
    heads: int,
    hidden: int,
    place: str | None,
    causal: bool,
    scheme: str | None,
) -> Spec:
    dtype = dict(layer.drawn)["dtype"]
    branches = {
        "attention": {
            "attention": spec(
                blocks.Attention, width, heads, causal=causal, kernel_init=dict(layer.drawn)["kernel_init"], dtype=dtype
            )
        }
    }
    if hidden:
        plain = layer.linear()
        branches["feed_forward"] = {
            "layer_1": plain.dense(width, positive_integer("hidden", hidden)),
            "layer_2": replace(plain, phi=phi).dense(hidden, width),
        }
    norm = layer.norm_of(width)
    gate = {"gate": True} if scheme in GATED else {}
    parts: dict[str, Spec] = {}
    for name, branch in branches.items():
        inside = {"norm": norm, **branch} if place == "pre" else branch
        parts[name] = spec(blocks.Residual, spec(blocks.Chain, **inside), dtype=dtype, **gate)
        if place == "post":
            parts[f"{name}_norm"] = norm
    return spec(blocks.Chain, **parts)


def _deepnorm(depth: int) -> tuple[tuple[str, float], ...]:
    alpha, beta = (2 * depth) ** 0.25, (8 * depth) ** -0.25
    return (("skip", alpha), ("sigma_vo", beta), ("sigma_w", beta))
