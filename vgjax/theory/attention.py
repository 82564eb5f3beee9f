"""Transformers at initialization: DeepNorm's constants, and how uniform attention makes tokens alike."""

from typing import NamedTuple

import numpy as np

from vgjax.checks import ArrayLike, kinds, positive_integer
from vgjax.theory._scales import per_layer


class DeepNorm(NamedTuple):
    """x' = LayerNorm(alpha x + f(x)), with the kernels of f drawn at gain beta.

    Attributes:
        alpha: factor on the skip.
        beta: gain of the feed-forward, value and output kernels; query and key kernels keep gain 1.
    """

    alpha: float
    beta: float


@kinds
def deep_norm(layers: int) -> DeepNorm:
    """alpha = (2N)^(1/4), beta = (8N)^(-1/4): DeepNorm for an encoder alone or a decoder alone of N layers.

    Args:
        layers: N.

    Returns:
        `DeepNorm`.

    Raises:
        ValueError: layers that are not a whole number of at least 1.

    Source: Wang et al. 2022, "DeepNet: scaling transformers to 1,000 layers", figure 2.
    """
    n = positive_integer("layers", layers)
    return DeepNorm((2 * n) ** 0.25, (8 * n) ** -0.25)


@kinds
def deep_norm_encoder_decoder(encoder_layers: int, decoder_layers: int) -> tuple[DeepNorm, DeepNorm]:
    """DeepNorm for N encoder layers and M decoder layers: the encoder's constants, then the decoder's.

    Encoder: .81 (N^4 M)^(1/16), .87 (N^4 M)^(-1/16). Decoder: (3M)^(1/4), (12M)^(-1/4).

    Args:
        encoder_layers, decoder_layers: N and M.

    Returns:
        Two `DeepNorm`.

    Raises:
        ValueError: layers that are not whole numbers of at least 1.

    Source: Wang et al. 2022, "DeepNet: scaling transformers to 1,000 layers", figure 2.
    """
    n = positive_integer("encoder_layers", encoder_layers)
    m = positive_integer("decoder_layers", decoder_layers)
    both = n**4 * m
    return DeepNorm(0.81 * both**0.0625, 0.87 * both**-0.0625), DeepNorm((3 * m) ** 0.25, (12 * m) ** -0.25)


@kinds
def uniform_attention_correlation(
    tokens: int, depth: int, *, branch: ArrayLike = 1.0, skip: ArrayLike = 1.0, correlation: float = 0.0
) -> np.ndarray:
    """Mean correlation of two tokens along depth, under x_i' = skip x_i + branch V mean_j x_j with V of unit gain.

    Uniform attention is what softmax gives at small query and key kernels. It leaves the tokens' differences to the
    skip and adds to their mean: with r_l = prod_(k < l) skip^2 / (skip^2 + branch^2), at infinite width,

        c_l = [n c_0 + (1 - c_0) (1 - r_l)] / [1 + (n - 1) c_0 + (n - 1) (1 - c_0) r_l].

    With a skip of 1 and c_0 = 0 this is M / (n + M), M = (1 + branch^2)^l - 1. Without a skip every token is the same
    after one layer (rank one), and the gradients of query and key kernels are 0.

    Args:
        tokens: n, at least 2.
        depth: number of attention layers.
        branch, skip: scales, shape ``()`` or ``(depth,)``; for instance ``branch=depth**-0.5``.
        correlation: c_0, of every two tokens of equal norm at the start; in [-1 / (n - 1), 1].

    Returns:
        c_l for l = 0..depth, shape ``(depth + 1,)``.

    Raises:
        ValueError: a number out of range, scales of another shape, or a layer whose skip and branch are both 0.

    Source: Dong, Cordonnier and Loukas 2021, "Attention is not all you need"; Noci et al. 2022, "Signal propagation in
    transformers", where the tokens' correlation is followed with a skip.
    """
    n, depth = positive_integer("tokens", tokens), positive_integer("depth", depth)
    if n < 2:
        raise ValueError(f"tokens must be at least 2, got {n}")
    if not -1 / (n - 1) <= correlation <= 1:
        raise ValueError(f"correlation must lie in [-1/{n - 1}, 1] for {n} tokens of equal norm, got {correlation}")
    added, kept = (per_layer(*named, depth) for named in (("branch", branch), ("skip", skip)))
    if np.any((added == 0) & (kept == 0)):
        raise ValueError("skip and branch must not both be 0 in one layer, got a layer that forgets its input")
    with np.errstate(divide="ignore", over="ignore"):
        log_r = np.concatenate([[0.0], np.cumsum(-np.log1p((added / kept) ** 2))])
    mixed = (1 - correlation) * -np.expm1(log_r)
    different = (1 - correlation) * (n - 1) * np.exp(log_r)
    return (n * correlation + mixed) / (1 + (n - 1) * correlation + different)
