"""Transformers: attention and feed-forward layers around skips, in the styles that are trained."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from jax.typing import DTypeLike

from vgjax import activations, blocks
from vgjax.blocks import Spec, spec
from vgjax.blocks.normalization import POINTWISE
from vgjax.blocks.protocol import block_info
from vgjax.blocks.told import TransformerArguments
from vgjax.checks import kinds, known, positive_integer
from vgjax.initializers import Law
from vgjax.networks.builders.combinators import Normalization, Phi, as_norm, chain, dense, dtype_name, norm, parallel
from vgjax.networks.builders.combinators import residual as around
from vgjax.networks.builders.recipes import HEAD, PLACES, TRANSFORMER_SCHEMES, Branch, as_branch, branch, end_init
from vgjax.networks.builders.stacking import sequential
from vgjax.networks.builders.transformer_parts import (
    GATES,
    Attending,
    FeedForward,
    Tokens,
    attention,
    check_law_fits,
    feed_forward,
    stem_parts,
)
from vgjax.networks.network import OF_HEAD, Network


@kinds
def transformer(
    *,
    width: int,
    depth: int,
    heads: int,
    inputs: int | Sequence[int] | Tokens,
    outputs: int | None = None,
    style: str = "encoder",
    attention: str | Attending = "style",
    feed_forward: Phi | FeedForward | None = "style",
    norm: str | Normalization | None = "style",
    residual: str | Branch = "style",
    kernel_init: Law = "style",
    dtype: DTypeLike = "float32",
) -> Network:
    """A transformer: each block self-attention and a feed-forward layer, both around skips; states ``(tokens, width)``.

    Scales: ``sigma_qk`` (query and key kernels), ``sigma_vo`` (value and output), ``sigma_w`` and ``sigma_b``
    (feed-forward), ``temperature`` (divides the logits), ``skip`` and ``branch`` of all residual connections;
    ``sigma_in`` (embedding), ``sigma_p`` (positions), ``sigma_r`` (router), ``value_skip`` (of a value residual),
    ``sigma_out`` (head; of a tied one a factor on its logits). Each kernel has one of its own, left out what it shares:
    ``sigma_q``, ``sigma_k``, ``sigma_v``, ``sigma_o``; ``sigma_1``, ``sigma_2`` and, of a gate, ``sigma_g`` of the
    feed-forward layer.

    A style says what is left out (where an option is ``"style"``), parts and scales:

    - ``encoder``: full attention without positions, gelu, pre-LN, all kernels at unit gain;
    - ``gpt2``: causal, learned positions, gelu_tanh, pre-LN; all entries of standard deviation .02, positions .01, and
      ``sigma_o``, ``sigma_2`` at (2 depth)^(-1/2) of that; logits of tokens by the table of the embedding (Radford et
      al. 2019 and their code);
    - ``llama``: causal, rotary positions, swiglu, pre-RMSNorm; all entries .02 (Touvron et al. 2023 and their code);
    - ``vit``: full attention, learned positions, gelu_tanh, pre-LN; Glorot's variances, positions .02 (Dosovitskiy et
      al. 2021 and their code; the mean of the tokens is read in place of a class token);
    - ``bert``: full attention, learned positions, gelu, post-LN; entries truncated Gaussians of .02; logits of
      tokens by the table of the embedding (Devlin et al. 2019).

    Args:
        width: of a token, a multiple of ``heads``.
        depth: blocks.
        heads: attention heads.
        inputs: shape of one input, ``(tokens, features)``; or `vgjax.networks.tokens`, whole numbers.
        outputs: size of the output, read from the (normalized) mean of the last tokens; left out, 1, and of tokens the
            logits of the vocabulary at every one of them: by a kernel of their own, or tied, by the table of the
            embedding, ``sigma_out sigma_in E h / sqrt(width)`` (Press and Wolf 2017).
        style: encoder, gpt2, llama, vit or bert.
        attention: full, causal, or `vgjax.networks.attention` with its options.
        feed_forward: an activation, a gated unit, or `vgjax.networks.feed_forward` with its options; None for attention
            alone.
        norm: layer, rms, dyt or derf, or `vgjax.norm` with its epsilon; None for none.
        residual: where the norm stands: ``"pre"``: h + F(norm(h)); ``"post"``: norm(h + F(h)); ``"sandwich"``: h +
            norm(F(norm(h))) (Peri-LN); ``"mix"``: the first quarter of the blocks post, the others pre (Mix-LN);
            ``"parallel"``: h + A(norm(h)) + F(norm(h)), one norm for both; ``"normalized"``: norm(skip h + branch
            norm(F(h))), skip .95 and branch .05 (nGPT). Or `vgjax.networks.branch` with the place and a scheme:
            stable, complete, rezero, skipinit, (with post) deepnorm, layer_scale (a gain of every feature behind the
            branch, scale ``layer_scale``: .1 up to 18 blocks, 1e-5 up to 24, else 1e-6), layer_norm_scaling (the scale
            ``norm_gain`` behind the norm, l^(-1/2) in block l).
        kernel_init, dtype: as for `vgjax.dense`; biases are Gaussian.

    Raises:
        ValueError: a size below 1, an unknown name, or what does not fit: heads, positions, a scheme and its place.

    Source: Vaswani et al. 2017; where the norms stand: Xiong et al. 2020 (pre, post), Kim et al. 2025, "Peri-LN", Li et
    al. 2025, "Mix-LN", Chowdhery et al. 2022, "PaLM" (parallel), Loshchilov et al. 2025, "nGPT"; Touvron et al. 2021
    (layer_scale); Sun et al. 2025 (layer_norm_scaling).
    """
    width, depth, heads = (positive_integer(n, v) for n, v in (("width", width), ("depth", depth), ("heads", heads)))
    if width % heads:
        raise ValueError(f"heads must divide the width {width}, got {heads}")
    parts = _chosen(style, (attention, feed_forward, norm, residual, kernel_init))
    draws: dict[str, Any] = {"kernel_init": parts.kernel_init, "dtype": dtype_name(dtype)}
    ends: dict[str, Any] = draws | {"kernel_init": end_init(parts.kernel_init)}
    place = parts.residual.kind
    shape, first = stem_parts(inputs, width, parts.attention.positions, ends)
    inside = parts.feed_forward.inside(width) if parts.feed_forward else width
    scales = parts.scales(Sizes(width, inside, depth, shape[1] if len(shape) > 1 else 1))
    if parts.norm and (place == "normalized" or style == "bert"):
        first["norm"] = parts.norm.block(width, draws["dtype"])
    branches = _branches(parts, width, heads, draws)
    told = _told(parts, shape[0])
    block = functools.partial(_block, branches, parts, width, depth, draws["dtype"], scales, told)
    pair = parts.attention.value_residual
    if pair:
        first["pair"] = spec(blocks.Remember, 2)  # the state, and a place for the first values
    early = max(1, round(depth / 4)) if place == "mix" else 0  # Li et al. 2025, section 4.1: a quarter
    places = ["post"] * early + ["pre" if place == "mix" else place] * (depth - early)
    stem = _end(scales, **first)
    head, read = _head(inputs, outputs, parts, width, scales, ends)
    network = sequential(
        *(block(p, first=pair and i == 0) for i, p in enumerate(places)),
        input_shape=shape,
        stem=stem,
        head=head,
        name="transformer" if style == "encoder" else style,
    )
    if read is None:
        return network
    (table,) = (path for path in block_info(stem).trainable if path.endswith("embed/embedding"))
    return replace(network, shared=((read, table),))


# --- styles -----------------------------------------------------------------------------------------------------------


class Sizes(NamedTuple):
    """What the scales of a style depend on: sizes of a state, inside the feed-forward layer, of what is embedded."""

    width: int
    inside: int
    depth: int
    features: int


def _unit_gain(sizes: Sizes) -> dict[str, float]:
    return {}


def _entries(std: float, positions: float, at_depth: bool, sizes: Sizes) -> dict[str, float]:
    """All entries of one standard deviation, in units of unit gain; with ``at_depth`` the last kernel of every branch
    at (2 depth)^(-1/2) of it."""
    of_width, behind = std * math.sqrt(sizes.width), (2 * sizes.depth) ** -0.5 if at_depth else 1.0
    return {
        **dict.fromkeys(("sigma_qk", "sigma_vo", "sigma_w", "sigma_r", OF_HEAD), of_width),
        "sigma_o": behind * of_width,
        "sigma_2": behind * std * math.sqrt(sizes.inside),
        "sigma_in": std * math.sqrt(sizes.features),
        "sigma_p": positions,
    }


def _glorot(positions: float, sizes: Sizes) -> dict[str, float]:
    """Var W = 2 / (fan_in + fan_out), in units of unit gain."""
    both = sizes.width + sizes.inside
    return {
        "sigma_w": math.sqrt(2 * sizes.width / both),
        "sigma_2": math.sqrt(2 * sizes.inside / both),
        "sigma_p": positions,
    }


class _Parts(NamedTuple):
    """What a transformer is made of, as `transformer` takes it; and what a style says alone: the defaults of its
    scales, and whether logits of tokens are read by the table of the embedding."""

    attention: Attending
    feed_forward: FeedForward | None
    norm: Normalization | None
    residual: Branch
    kernel_init: Law
    scales: Callable[[Sizes], dict[str, float]] = _unit_gain
    tied: bool = False


_PLAIN = _Parts(attention(), feed_forward(), norm("layer"), branch("pre"), "gaussian")
STYLES = {
    "encoder": _PLAIN,
    "gpt2": _PLAIN._replace(
        attention=attention("causal", positions="learned"),
        feed_forward=feed_forward("gelu_tanh"),
        norm=norm("layer", epsilon=1e-5),
        scales=functools.partial(_entries, 0.02, 0.01, True),
        tied=True,
    ),
    "llama": _PLAIN._replace(
        attention=attention("causal", positions="rotary"),
        feed_forward=feed_forward("swiglu"),
        norm=norm("rms", epsilon=1e-6),
        scales=functools.partial(_entries, 0.02, 0.0, False),
    ),
    "vit": _PLAIN._replace(
        attention=attention(positions="learned"),
        feed_forward=feed_forward("gelu_tanh"),
        kernel_init="uniform",
        scales=functools.partial(_glorot, 0.02),
    ),
    "bert": _PLAIN._replace(
        attention=attention(positions="learned"),
        norm=norm("layer", epsilon=1e-12),
        residual=branch("post"),
        kernel_init="truncated",
        scales=functools.partial(_entries, 0.02, 0.02, False),
        tied=True,
    ),
}
"""What is left out of a `transformer` of each style."""


def _chosen(style: str, given: tuple[Any, ...]) -> _Parts:
    """What was asked for, and of the style what was not.

    Raises:
        ValueError: what does not fit.
    """
    own = STYLES[known("style", style, STYLES)]
    left_out = [isinstance(value, str) and value == "style" for value in given]
    chosen: list[Any] = [theirs if out else mine for out, mine, theirs in zip(left_out, given, own, strict=False)]
    looks, fed, normed, skips, law = chosen
    looks = attention(looks) if isinstance(looks, str) else looks
    fed = fed if fed is None or isinstance(fed, FeedForward) else feed_forward(fed)
    skips = as_branch(skips, TRANSFORMER_SCHEMES, PLACES)
    parts = _Parts(looks, fed, as_norm(normed), skips, law, own.scales, own.tied)
    _check(parts)
    check_law_fits(law, looks, fed)
    return parts


def _check(parts: _Parts) -> None:
    """Raise ValueError for what a transformer does not have."""
    norm, (place, layers, bottleneck, scheme) = parts.norm, parts.residual
    needs = {"deepnorm": "post", "layer_norm_scaling": "pre"}.get(scheme or "")
    if needs and (place != needs or norm is None):
        raise ValueError(f"scheme {scheme!r} needs residual {needs!r} and a norm, got {place!r} and norm {norm}")
    if place in ("sandwich", "mix", "normalized") and norm is None:
        raise ValueError(f"residual {place!r} needs a norm, got None")
    if place == "normalized" and scheme is not None:
        raise ValueError(f"residual 'normalized' has factors of its own, got scheme {scheme!r}")
    if place == "parallel" and parts.feed_forward is None:
        raise ValueError("residual 'parallel' needs a feed-forward layer beside the attention, got None")
    if (layers, bottleneck) != (2, None):
        raise ValueError("layers and bottleneck of a transformer's branches must be left out (there is hidden)")
    if parts.attention.value_residual and (place == "parallel" or scheme is not None):
        raise ValueError(f"value_residual takes a skip around the attention alone, got {place!r}, scheme {scheme!r}")
    if norm is not None:
        known("norm", norm.kind, ("layer", "rms", *POINTWISE))
        if norm.on != "preactivations" or norm.batch is not None:
            raise ValueError("a transformer's norm takes an epsilon alone, got other options")


# --- blocks -----------------------------------------------------------------------------------------------------------


def _with(defaults: Mapping[str, float | tuple[float, ...]], **parts: Spec) -> Spec:
    """Blocks in a row, with defaults for those of the scales that they declare."""
    row = chain(**parts)
    declared = block_info(row).scales if defaults else {}
    mine = tuple((name, value) for name, value in defaults.items() if name in declared)
    return spec(blocks.Chain, defaults=mine, **parts) if mine else row


def _end(defaults: Mapping[str, float], **parts: Spec) -> Spec:
    """The same of a stem or a head; what stands alone is itself."""
    row = _with(defaults, **parts)
    return next(iter(parts.values())) if len(parts) == 1 and row == chain(**parts) else row


def _head(
    inputs: Any, outputs: int | None, parts: _Parts, width: int, scales: Mapping[str, float], ends: dict[str, Any]
) -> tuple[Spec, str | None]:
    """What reads the last state; and the path of the table there, where it is that of the embedding."""
    # What is never normalized on its way is by the head.
    norm = None if parts.residual.kind in ("post", "normalized") else parts.norm
    hidden = spec(blocks.Part, 0) if parts.attention.value_residual else None
    tokens = inputs if isinstance(inputs, Tokens) else None
    if tokens and tokens.tied and outputs is not None:
        raise ValueError(f"outputs must be left out where the readout is tied to the vocabulary, got {outputs}")
    each = tokens.vocabulary if tokens and outputs is None else None
    if not (tokens and each and (parts.tied if tokens.tied is None else tokens.tied)):
        size = each or (1 if outputs is None else positive_integer("outputs", outputs))
        last = {"before": hidden, "norm": norm, "after": None if each else spec(blocks.Pool, 1), **HEAD}
        return _end(scales, readout=dense(width, size, **ends | last)), None
    # A factor beside the table's own deviation: logits begin at the size of those by a kernel of their own.
    factor = scales.get(OF_HEAD, 1.0) / scales.get("sigma_in", 1.0)
    before = ({"hidden": hidden} if hidden else {}) | ({"norm": norm.block(width, ends["dtype"])} if norm else {})
    readout = {"readout": spec(blocks.Unembedding, each, width, dtype=ends["dtype"])}
    return _with({**scales, OF_HEAD: factor}, **before, **readout), "readout/table"


def _branches(parts: _Parts, width: int, heads: int, draws: dict[str, Any]) -> dict[str, dict[str, Spec]]:
    """Attention and feed-forward layer, by name, without what stands around them."""
    branches = {"attention": {"attention": parts.attention.block(width, heads, **draws)}}
    if parts.feed_forward:
        branches["feed_forward"] = parts.feed_forward.block(width, **draws)
    if parts.residual.kind == "parallel":
        both = parallel("sum", **{name: chain(**layers) for name, layers in branches.items()})
        return {"parallel": {"both": both}}
    return branches


def _block(
    branches: dict[str, dict[str, Spec]],
    parts: _Parts,
    width: int,
    depth: int,
    dtype: str,
    scales: Mapping[str, float],
    told: TransformerArguments | None,
    place: str,
    first: bool,
) -> Spec:
    """Branch after branch, each around a skip, the norm where it stands."""
    norm, scheme, row = parts.norm.block(width, dtype) if parts.norm else None, parts.residual.scheme, {}
    before = {"norm": norm} if norm and place in ("pre", "sandwich", "parallel") else {}
    behind = {"norm_behind": norm} if norm and place in ("sandwich", "normalized") else {}
    defaults: dict[str, Any] = dict(scales)
    if scheme == "layer_norm_scaling" and before:
        before["norm_gain"] = spec(blocks.Gain, "norm_gain")
        defaults["norm_gain"] = tuple(layer**-0.5 for layer in range(1, depth + 1))
    if scheme == "layer_scale":
        behind["layer_scale"] = spec(blocks.Gain, "layer_scale", width, dtype=dtype)
        # Touvron et al. 2021, section 2.
        defaults["layer_scale"] = 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6
    of_branch = None if scheme in ("layer_scale", "layer_norm_scaling") else scheme
    pair = parts.attention.value_residual
    names = blocks.ValueResidual.parts
    on_first: Callable[[Spec], Spec] = (lambda p: spec(blocks.OnFirst, p, parts=names)) if pair else (lambda p: p)
    for name, layers in branches.items():
        inside = _with(defaults, **before, **layers, **behind)
        if pair and name == "attention":
            row[name] = spec(blocks.ValueResidual, inside, first)
        else:
            row[name] = on_first(around(inside, scheme=of_branch, depth=depth, dtype=dtype))
        if norm and place in ("post", "normalized"):
            row[f"{name}_norm"] = on_first(norm)
    # Loshchilov et al. 2025: a step of .05 towards what the branch says, on a sphere.
    whole = _with({"skip": 0.95, "branch": 0.05} if place == "normalized" else {}, **row)
    return whole if told is None else replace(whole, options=(("told", told), *whole.options))


def _told(parts: _Parts, tokens: int) -> TransformerArguments | None:
    """What theory is told: full attention that knows no distances, of kernels without a mean."""
    looks, fed = parts.attention, parts.feed_forward
    known_attention = looks.mask == "full" and looks.window is looks.qk_norm is None and looks.positions != "rotary"
    known_attention &= not looks.value_residual
    by_name = isinstance(parts.kernel_init, str) and parts.kernel_init != "identity"
    if not (known_attention and by_name and (fed is None or fed.experts is None)):
        return None
    phi = None if fed is None else activations.get(GATES[str(fed.kind)] if fed.gated else fed.kind)
    gated = fed is not None and fed.gated
    return TransformerArguments(phi, gated, parts.residual.kind, parts.norm.kind if parts.norm else None, tokens)
