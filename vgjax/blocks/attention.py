"""Self-attention over tokens: which look at which, how many heads share a key, and how positions are told."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from vgjax import initializers
from vgjax.blocks import protocol
from vgjax.blocks.normalization import Norm
from vgjax.blocks.protocol import Spec
from vgjax.checks import FloatDtype, Size, finite, kinds, known
from vgjax.floatexp import Degrees, Ends, FloatExp, exponent_past_range, to_float_clipped
from vgjax.initializers import Law, Scale, Scales

MASKS = ("full", "causal")
"""Which tokens a token looks at: all, or itself and those before it."""


class Attention(nnx.Module):
    """Multi-head self-attention, shapes ``(tokens, width)`` -> ``(tokens, width)``:

    ``O softmax(Q K^T / (temperature sqrt(size))) V``, size = width / heads; no biases. Each kernel has a scale of its
    own, ``sigma_q``, ``sigma_k``, ``sigma_v``, ``sigma_o``; what is not given of them stands at ``sigma_qk``, for the
    first two, or at ``sigma_vo``. With ``qk_norm`` those of queries and keys multiply what the norm made.

    Args:
        width: of a token, a multiple of ``heads``.
        heads: attention heads.
        key_heads: heads that keys and values have, each for ``heads / key_heads`` queries (grouped-query attention; 1
            is multi-query); left out, ``heads``.
        mask: one of `MASKS`.
        window: a token looks at those less than this far away only (sliding); None for all.
        rotary: turn queries and keys by their position times ``rotary^(-2 i / size)``, a pair of entries i and i + size
            / 2 at a time; None for not. Its usual value is 10,000.
        qk_norm: normalize each query and key by its root mean square, this being the epsilon; None for not.
        kernel_init: how the kernels are drawn, of shape ``(width, width)`` (those of fewer keys are narrower): as for
            `vgjax.blocks.Dense`.
        dtype: of the parameters.
        rngs: where the draws come from.

    Raises:
        ValueError: heads that do not divide the width, keys' heads that do not divide the heads, an odd size under
            rotation, an unknown mask, or a number that is out of range.

    Source: Vaswani et al. 2017, "Attention is all you need"; grouped queries: Ainslie et al. 2023, "GQA"; rotation: Su
    et al. 2021, "RoFormer"; normalized queries and keys: Henry et al. 2020; Dehghani et al. 2023, "Scaling vision
    transformers to 22 billion parameters"; windows: Beltagy et al. 2020, "Longformer".
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
        key_heads: Size | None = None,
        mask: str = "full",
        window: Size | None = None,
        rotary: float | None = None,
        qk_norm: float | None = None,
        kernel_init: Law = "gaussian",
        dtype: FloatDtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        key_heads = heads if key_heads is None else key_heads
        check_heads(width, heads, key_heads, mask, rotary)
        self.mask, self.window, self.rotary, size = mask, window, rotary, width // heads

        def product(before: Any, behind: Any) -> nnx.LinearGeneral:
            return nnx.LinearGeneral(
                before,
                behind,
                axis=(-2, -1) if isinstance(before, tuple) else -1,
                use_bias=False,
                kernel_init=initializers.kernel_initializer(kernel_init),
                param_dtype=dtype,
                rngs=rngs,
            )

        self.query, self.key = product(width, (heads, size)), product(width, (key_heads, size))
        self.value, self.out = product(width, (key_heads, size)), product((heads, size), width)
        norms = [None if qk_norm is None else Norm("rms", size, epsilon=qk_norm, dtype=dtype, rngs=rngs) for _ in "qk"]
        self.query_norm, self.key_norm = norms

    def __call__(self, h: Array, scales: Scales) -> Array:
        """Every token looks at those that its mask shows it."""
        return self.read(h, self.values(h, scales), scales)

    def values(self, h: Array, scales: Scales) -> Array:
        """What there is to be read of every token, shape ``(tokens, key_heads, size)``."""
        return self.value(scales.sigma_v * h)

    def read(self, h: Array, values: Array, scales: Scales) -> Array:
        """Means of values, and the output made of them, shape ``(tokens, width)``."""
        # The scales multiply states, not kernels: a grid of them is one product (`vgjax.blocks.dense`).
        query = self._looked(self.query, self.query_norm, h, scales.sigma_q)
        key = self._looked(self.key, self.key_norm, h, scales.sigma_k)
        tokens, heads, size = query.shape
        grouped = query.reshape(tokens, key.shape[1], -1, size) / scales.temperature
        logits = jnp.einsum("qkgd,tkd->kgqt", grouped, key) / math.sqrt(size)
        weights = jax.nn.softmax(jnp.where(self._seen(tokens), logits, -jnp.inf))
        mixed = jnp.einsum("kgqt,tkd->qkgd", weights, values).reshape(tokens, heads, size)
        return scales.sigma_o * self.out(mixed)

    def step(self, state: FloatExp, scales: Scales) -> FloatExp:
        """The same for a normalized state of any size: a mean over all tokens, or the value of one, grows linearly."""
        # Not by Euler's tangent product: of tokens that are nearly alike a softmax of large logits has slopes whose
        # sum is rounding noise alone.
        return FloatExp(self(to_float_clipped(state), scales), exponent_past_range(state))

    def _looked(self, product: nnx.LinearGeneral, norm: Norm | None, h: Array, sigma: Array) -> Array:
        """Queries or keys, shape ``(tokens, heads, size)``."""
        a = product(sigma * h) if norm is None else sigma * norm(product(h))
        return a if self.rotary is None else turned(a, self.rotary)

    def _seen(self, tokens: int) -> Array:
        """Which tokens (columns) each token (row) looks at."""
        away = jnp.arange(tokens)[:, None] - jnp.arange(tokens)
        seen = away >= 0 if self.mask == "causal" else jnp.ones_like(away, bool)
        return seen if self.window is None else seen & (jnp.abs(away) < self.window)

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """Each kernel takes its scale, or the gain of the norm behind it."""
        looked = ((self.query, self.query_norm, "sigma_q"), (self.key, self.key_norm, "sigma_k"))
        for product, norm, sigma in (*looked, (self.value, None, "sigma_v"), (self.out, None, "sigma_o")):
            parameter = product.kernel if norm is None else norm.norm.scale
            parameter[...] = scales[sigma] * parameter[...]
        # Those that others follow have been read as theirs.
        return frozenset(self.scales) - {"temperature"}


class ValueResidual(nnx.Module):
    """Attention around a skip whose values are mixed with those of the first block; states ``[h, V_1]``:

        h' = skip h + branch F(h; V),   V = (1 - value_skip) V_l + value_skip V_1

    The first block's values are its own, and what it hands on as V_1.

    Args:
        branch: F: a `Chain` with one `Attention` among its parts, as many heads for keys as for queries.
        first: whether it is the first block; what stands in the place of V_1 is then not read.
        rngs: where the draws come from.

    Raises:
        ValueError: a branch of another kind, or where it is called a state that is no pair.

    Source: Zhou et al. 2024, "Value residual learning", their constant for all blocks (1/2); 1 is their SVFormer.
    """

    # Both parts have one exponent: past the float range the smaller would be lost beside the other.
    degrees: ClassVar[Ends] = (Degrees(None, None), Degrees(None, None))
    parts: ClassVar[tuple[str, ...]] = ("hidden", "first_values")

    @kinds
    def __init__(self, branch: Spec, first: bool, *, rngs: nnx.Rngs):
        self.branch: Any = branch.build(rngs)
        self.first = first
        attentions = [part for part in self._parts() if isinstance(part, Attention)]
        if len(attentions) != 1 or attentions[0].key.kernel.shape != attentions[0].query.kernel.shape:
            raise ValueError(f"branch must be a chain with one attention, keys for every head, got {branch!r}")

    @property
    def scales(self) -> Mapping[str, Scale]:
        """Those of the branch, the factors on both ways, and the share of the first block's values."""
        return protocol.scales_of(self.branch) | {"branch": Scale(1.0), "skip": Scale(1.0), "value_skip": Scale(0.5)}

    def __call__(self, state: Array, scales: Scales) -> Array:
        """Shape ``(2, tokens, width)``."""
        if state.ndim != 3 or len(state) != 2:
            raise ValueError(f"ValueResidual must take a state of shape (2, tokens, width), got {state.shape}")
        h, kept = state
        made = h
        for part in self._parts():
            if isinstance(part, Attention):
                own = part.values(made, scales)
                kept = own.reshape(h.shape) if self.first else kept
                mixed = (1 - scales.value_skip) * own + scales.value_skip * kept.reshape(own.shape)
                made = part.read(made, mixed, scales)
            else:
                made = protocol.call(part, made, scales)
        return jnp.stack([scales.skip * h + scales.branch * made, kept])

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """What the branch absorbs."""
        return protocol.absorb_scales(scales, self.branch)

    def _parts(self) -> list[Any]:
        return [getattr(self.branch, name) for name in getattr(self.branch, "order", ())]


def check_heads(width: int, heads: int, key_heads: int, mask: str, rotary: float | None) -> None:
    """Raise ValueError unless a width has such heads."""
    if width % heads:
        raise ValueError(f"heads must divide the width {width}, got {heads}")
    if heads % key_heads:
        raise ValueError(f"key_heads must divide the heads {heads}, got {key_heads}")
    known("mask", mask, MASKS)
    if rotary is None:
        return
    finite("rotary", rotary, "positive", lambda v: v > 0)
    if (width // heads) % 2:
        raise ValueError(f"rotary needs heads of an even size, got width / heads = {width // heads}")


def turned(a: Array, base: float) -> Array:
    """Each pair of entries i, i + size / 2 of a token at position t turned by ``t base^(-2 i / size)``, shape
    ``(tokens, heads, size)``."""
    tokens, _, size = a.shape
    speeds = base ** (-2 * jnp.arange(size // 2, dtype=a.dtype) / size)
    angles = jnp.arange(tokens, dtype=a.dtype)[:, None, None] * speeds
    first, second = jnp.split(a, 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
