"""Self-attention over tokens, by Flax."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from vgjax import initializers
from vgjax.checks import FloatDtype, Size, kinds
from vgjax.initializers import Law, Scale, Scales


class Attention(nnx.Module):
    """Multi-head self-attention, shapes ``(tokens, width)`` -> ``(tokens, width)``:

    ``O softmax(Q K^T / (temperature sqrt(width / heads))) V``; no biases. Each kernel has a scale of its own,
    ``sigma_q``, ``sigma_k``, ``sigma_v``, ``sigma_o``; what is not given of them stands at ``sigma_qk``, for the first
    two, or at ``sigma_vo``.

    Args:
        width: of a token, a multiple of ``heads``.
        heads: attention heads.
        causal: a token looks at itself and those before it only.
        kernel_init: how the kernels are drawn, of shape ``(width, width)``: as for `vgjax.blocks.Dense`.
        dtype: of the parameters.
        rngs: where the draws come from.

    Raises:
        ValueError: heads that do not divide the width.

    Source: Vaswani et al. 2017, "Attention is all you need".
    """

    scales: ClassVar[Mapping[str, Scale]] = {
        "sigma_qk": Scale(1.0, "parameter"),
        "sigma_vo": Scale(1.0, "parameter"),
        **{name: Scale(1.0, "parameter", "sigma_qk") for name in ("sigma_q", "sigma_k")},
        **{name: Scale(1.0, "parameter", "sigma_vo") for name in ("sigma_v", "sigma_o")},
        "temperature": Scale(1.0, "divisor"),
    }

    @kinds
    def __init__(
        self,
        width: Size,
        heads: Size,
        *,
        causal: bool = False,
        kernel_init: Law = "gaussian",
        dtype: FloatDtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if width % heads:
            raise ValueError(f"heads must divide the width {width}, got {heads}")
        self.causal = causal
        self.attention = nnx.MultiHeadAttention(
            heads,
            width,
            use_bias=False,
            # A network is a function: no cache of earlier tokens, no dropout, no keys kept.
            decode=False,
            deterministic=True,
            attention_fn=_softmax_attention,
            kernel_init=initializers.kernel_initializer(kernel_init),
            param_dtype=dtype,
            keep_rngs=False,
            rngs=rngs,
        )

    def __call__(self, h: Array, scales: Scales) -> Array:
        """Every token looks at every token (or those before it)."""
        # The scales multiply states, not kernels: a grid of them is one product (`vgjax.blocks.dense`).
        query, key, value = scales.sigma_q * h, scales.sigma_k * h, scales.sigma_v * h
        mask = jnp.tril(jnp.ones((1, len(h), len(h)), bool)) if self.causal else None
        return scales.sigma_o * self.attention(query / scales.temperature, key, value, mask=mask)

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """Each kernel takes its scale."""
        a = self.attention
        for part, sigma in ((a.query, "sigma_q"), (a.key, "sigma_k"), (a.value, "sigma_v"), (a.out, "sigma_o")):
            part.kernel[...] = scales[sigma] * part.kernel[...]
        # Those that others follow have been read as theirs.
        return frozenset(self.scales) - {"temperature"}


def _softmax_attention(query: Array, key: Array, value: Array, mask: Array | None = None, **_: Any) -> Array:
    """Shapes ``(tokens, heads, size)``, in the dtype of its arguments (Flax's own takes the softmax in float32)."""
    logits = jnp.einsum("qhd,khd->hqk", query, key) / math.sqrt(query.shape[-1])
    logits = logits if mask is None else jnp.where(mask, logits, -jnp.inf)
    return jnp.einsum("hqk,khd->qhd", jax.nn.softmax(logits), value)
