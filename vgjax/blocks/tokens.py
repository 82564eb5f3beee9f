"""Where tokens begin: what stands for each of a vocabulary, and what tells where in a row one stands."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from vgjax.checks import FloatDtype, Size, kinds, known
from vgjax.floatexp import DIRECTION, LINEAR, Ends, FloatExp, add, from_float, scaled_bias, with_zero_exponent
from vgjax.initializers import Scale, Scales


class Embedding(nnx.Module):
    """One row of a table a token, ``h_t = sigma_in E[x_t]``, shapes ``(tokens,)`` -> ``(tokens, width)``; the entries
    are drawn with unit variance.

    Args:
        vocabulary: how many tokens there are; the input is whole numbers below it.
        width: of a state.
        dtype: of the parameters.
        rngs: where the draws come from.
    """

    scales: ClassVar[Mapping[str, Scale]] = {"sigma_in": Scale(1.0, "parameter")}
    # A token has no size: nothing grows with it.
    degrees: ClassVar[Ends] = (DIRECTION, DIRECTION)

    @kinds
    def __init__(self, vocabulary: Size, width: Size, *, dtype: FloatDtype = jnp.float32, rngs: nnx.Rngs):
        if vocabulary > _LARGEST_TOKEN:
            raise ValueError(f"vocabulary must be at most {_LARGEST_TOKEN}, got {vocabulary}")
        self.embed = nnx.Embed(vocabulary, width, embedding_init=_unit_variance, param_dtype=dtype, rngs=rngs)

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.embed.num_embeddings

    def __call__(self, x: Array, scales: Scales) -> Array:
        """A network's input is an array of floats, which hold whole numbers as they are."""
        return scales.sigma_in * self.embed.embedding[...][x.astype(jnp.int32)]

    def step(self, state: FloatExp, scales: Scales) -> FloatExp:
        """The same for a normalized input."""
        return from_float(self(state.value * 2.0 ** jnp.where(state.value == 0, 0, state.exponent), scales))

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """The table takes its scale."""
        self.embed.embedding[...] = scales.sigma_in * self.embed.embedding[...]
        return frozenset(self.scales)


class Unembedding(nnx.Module):
    """Logits of every token of a vocabulary, by the table that tells tokens apart at the other end:

    ``sigma_out sigma_in E h_t / sqrt(width)``, shapes ``(tokens, width)`` -> ``(tokens, vocabulary)``; E is drawn with
    unit variance, or is that of an `Embedding` where a network shares it (``shared`` of `vgjax.Network`).

    Args:
        vocabulary, width: shape of the table.
        dtype: of the parameters.
        rngs: where the draws come from.

    Source: Press and Wolf 2017, "Using the output embedding to improve language models".
    """

    # sigma_out is no deviation of its own: the entries are those of the embedding.
    scales: ClassVar[Mapping[str, Scale]] = {"sigma_in": Scale(1.0, "parameter"), "sigma_out": Scale(1.0)}
    linear = True

    @kinds
    def __init__(self, vocabulary: Size, width: Size, *, dtype: FloatDtype = jnp.float32, rngs: nnx.Rngs):
        self.table = nnx.Param(_unit_variance(rngs.params(), (vocabulary, width), dtype))

    def __call__(self, h: Array, scales: Scales) -> Array:
        """Every token's state with every row of the table."""
        gain = scales.sigma_out * scales.sigma_in / math.sqrt(h.shape[-1])
        return gain * h @ self.table[...].T

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """The table takes the scale of the embedding."""
        self.table[...] = scales.sigma_in * self.table[...]
        return frozenset({"sigma_in"})


# What float32 counts one by one; the networks' inputs are floats.
_LARGEST_TOKEN = 2**24

POSITIONS = ("learned", "sinusoidal")
"""How positions are told by what is added to a state (rotation tells them inside attention)."""


class Positions(nnx.Module):
    """What is added to a state for where its tokens stand, ``h_t + sigma_p P_t``, states ``(tokens, width)``.

    ``"learned"``: P is drawn with unit variance and trained; ``"sinusoidal"``: P_t is sin and cos of ``t 10000^(-2 i /
    width)``, i < width / 2, side by side, of mean square 1/2.

    Args:
        tokens, width: shape of a state.
        kind: one of `POSITIONS`.
        dtype: of the parameters.
        rngs: where the draws come from.

    Raises:
        ValueError: an unknown kind, sines of an odd width, or where it is called a state of another shape.

    Source: Vaswani et al. 2017, section 3.5 (sines); Devlin et al. 2019, "BERT" (learned).
    """

    scales: ClassVar[Mapping[str, Scale]] = {"sigma_p": Scale(1.0, "parameter")}
    degrees: ClassVar[Ends] = LINEAR

    @kinds
    def __init__(self, tokens: Size, width: Size, kind: str, *, dtype: FloatDtype = jnp.float32, rngs: nnx.Rngs):
        if known("positions", kind, POSITIONS) == "sinusoidal" and width % 2:
            raise ValueError(f"sinusoidal positions need an even width, got {width}")
        if kind == "learned":
            self.table: nnx.Variable = nnx.Param(_unit_variance(rngs.params(), (tokens, width), dtype))
        else:
            angles = np.arange(tokens)[:, None] * 10_000.0 ** (-2 * np.arange(width // 2) / width)
            self.table = Fixed(jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=1), dtype))

    def __call__(self, h: Array, scales: Scales) -> Array:
        """Of the state's shape."""
        if h.shape != self.table.shape:
            raise ValueError(f"positions are those of a state of shape {self.table.shape}, got {h.shape}")
        return h + scales.sigma_p * self.table[...]

    def step(self, state: FloatExp, scales: Scales) -> FloatExp:
        """The same for a normalized state of any size."""
        return add(with_zero_exponent(state), scaled_bias(scales.sigma_p, self.table[...]))

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """The table takes its scale."""
        self.table[...] = scales.sigma_p * self.table[...]
        return frozenset(self.scales)


class Fixed(nnx.Variable):
    """Numbers that are part of a network and never trained."""


def _unit_variance(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """N(0, 1) entries, as an initializer of Flax."""
    return nnx.initializers.normal(1.0)(key, shape, dtype)
