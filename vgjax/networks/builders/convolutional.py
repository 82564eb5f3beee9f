"""Convolutional networks: plain stacks and residual ones in stages."""

import functools
from collections.abc import Sequence
from typing import Any

from jax.typing import DTypeLike

from vgjax import activations, blocks
from vgjax.blocks import Spec, spec
from vgjax.checks import kinds, positive_integer
from vgjax.initializers import Law
from vgjax.networks.builders.combinators import Normalization, Phi, as_norm, conv, dense, norm
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
def cnn(
    *,
    channels: int,
    depth: int,
    inputs: int | Sequence[int] = (8, 8, 1),
    outputs: int = 1,
    activation: Phi = "relu",
    kernel_size: int | Sequence[int] = 3,
    padding: str = "circular",
    norm: str | Normalization | None = None,
    kernel_init: Law = "gaussian",
    bias_init: Law = "gaussian",
    dtype: DTypeLike = "float32",
) -> Network:
    """A plain convolutional network: ``h^{l+1} = W^{l+1} * phi(h^l) + b^{l+1}``, states ``(*size, channels)``.

    Scales: as for `mlp`.

    Args:
        channels: of every hidden state.
        depth: convolutions after the first, h^0.
        inputs: shape of one input, ``(*size, channels)``, of 1 to 3 dimensions beside the channels.
        outputs: size of the output, read from phi(h^L) averaged over the image.
        kernel_size: of the window, odd: one number, or one a dimension of the image.
        padding: ``"circular"`` (as in the theory) or ``"zero"``.
        norm: as for `mlp`.
        activation, kernel_init, bias_init, dtype: as for `vgjax.networks.conv`.

    Raises:
        ValueError: a size below 1, an even window, an unknown name, or delta_orthogonal with more channels in than out.
    """
    image = _image(inputs)
    channels, depth = positive_integer("channels", channels), positive_integer("depth", depth)
    layer = _layer(activation, norm, image, kernel_size, padding, kernel_init, bias_init, dtype)
    return _network([layer(channels, channels)] * depth, layer, image, (channels, channels), outputs, "cnn")


BATCH_NORM = norm("batch", batch=32)
"""That of `resnet`: 32 images are one state, whose examples depend on each other."""


@kinds
def resnet(
    *,
    channels: int | Sequence[int] = (16, 32, 64),
    depth: int | Sequence[int] = (9, 9, 9),
    inputs: int | Sequence[int] = (8, 8, 1),
    outputs: int = 1,
    activation: Phi = "relu",
    kernel_size: int | Sequence[int] = 3,
    padding: str = "circular",
    norm: str | Normalization | None = BATCH_NORM,
    residual: str | Branch = "pre",
    kernel_init: Law = "gaussian",
    bias_init: Law = "gaussian",
    dtype: DTypeLike = "float32",
) -> Network:
    """A residual convolutional network, ``h + V * phi(norm(W * phi(norm(h))))``, in stages.

    From one stage to the next a block of stride 2 halves the image; its skip is a convolution of window 1.

    Args:
        channels: of every stage.
        depth: residual blocks of every stage (two convolutions each); from the second stage on the first of them is the
            transition.
        norm: as for `mlp`; by default batch norm, of which 32 images are one state.
        residual: as for `mlp`.
        inputs, outputs, activation, kernel_size, padding, bias_init, dtype: as for `cnn`.
        kernel_init: as for `cnn`; convolutions of window 1 in the skips are Gaussian, but for a law of your own.

    Raises:
        ValueError: as `cnn`; or channels and depths of different lengths.

    Source: He et al. 2016, "Identity mappings in deep residual networks".
    """
    image, widths, depths = _image(inputs), sizes("channels", channels), sizes("depth", depth)
    if len(widths) != len(depths):
        raise ValueError(f"channels and depth must name as many stages, got {widths} and {depths}")
    skips = as_branch(residual, STACK_SCHEMES)
    layer = _layer(activation, norm, image, kernel_size, padding, kernel_init, bias_init, dtype)
    block = functools.partial(residual_block, layer, skips, depth=sum(depths))
    # Gaussian: a projection may lead to fewer channels, which a delta-orthogonal kernel cannot.
    of_skips = kernel_init if callable(kernel_init) else "gaussian"
    narrow = {"activation": "linear", "norm": None, "kernel_size": (1,) * (len(image) - 1), "kernel_init": of_skips}
    specs: list[Spec] = [block(widths[0], widths[0])] * depths[0]
    for before, after, length in zip(widths[:-1], widths[1:], depths[1:], strict=True):
        specs.append(block(before, after, shortcut=layer(before, after, strides=2, **narrow), strides=2))
        specs += [block(after, after)] * (length - 1)
    return _network(specs, layer, image, (widths[0], widths[-1]), outputs, "resnet", skips)


def _layer(
    activation: Phi,
    norm: str | Normalization | None,
    image: tuple[int, ...],
    kernel_size: int | Sequence[int],
    padding: str,
    kernel_init: Law,
    bias_init: Law,
    dtype: DTypeLike,
) -> "functools.partial[Spec]":
    """`conv` with all its options but the channels."""
    size = sizes("kernel_size", kernel_size)
    size = size * (len(image) - 1) if len(size) == 1 else size
    if len(size) != len(image) - 1:
        raise ValueError(f"kernel_size must be one number, or one for each of the image's {image[:-1]}, got {size}")
    window: dict[str, Any] = {"kernel_size": size, "padding": padding}
    draws: dict[str, Any] = {"kernel_init": kernel_init, "bias_init": bias_init, "dtype": dtype}
    return functools.partial(conv, activation=activations.get(activation), norm=as_norm(norm), **window, **draws)


def _network(
    specs: list[Spec],
    layer: "functools.partial[Spec]",
    image: tuple[int, ...],
    channels: tuple[int, int],
    outputs: int,
    name: str,
    skips: Branch | None = None,
) -> Network:
    """The blocks between a convolution of the image and a head that reads the mean of phi over it (or, where a phi
    closes each block, of the state)."""
    options = layer.keywords
    norm: Normalization | None = options["norm"]
    ends: dict[str, Any] = {"kernel_init": end_init(options["kernel_init"])}
    bare = skips is not None and skips.kind == "post"
    kept = {option: options[option] for option in ("dtype", *(() if bare else ("activation", "norm")))}
    pool = spec(blocks.Pool, len(image) - 1)
    return sequential(
        *specs,
        input_shape=(*(norm.leading if norm else ()), *image),
        stem=layer(image[-1], channels[0], activation="linear", norm=None, **stem_scales(skips), **ends),
        head=dense(channels[1], positive_integer("outputs", outputs), after=pool, **kept, **ends, **HEAD),
        name=name,
    )


def _image(inputs: int | Sequence[int]) -> tuple[int, ...]:
    image = sizes("inputs", inputs)
    if not 2 <= len(image) <= 4:
        raise ValueError(f"inputs must be the shape of an image, 1 to 3 sizes and its channels, got {image}")
    return image
