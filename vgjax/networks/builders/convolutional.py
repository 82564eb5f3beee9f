"""Convolutional networks: plain stacks and residual ones in stages."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jax.typing import DTypeLike

from vgjax import activations, blocks, initializers
from vgjax.blocks import Spec, spec
from vgjax.checks import positive_integer
from vgjax.networks.builders.parts import (
    GATED,
    Branch,
    Layers,
    Phi,
    drawn_as,
    dtype_name,
    embedding,
    image_shape,
    in_stages,
    leading_axes,
    norm_around,
    residual_block,
    scheme_defaults,
    window,
)
from vgjax.networks.network import Network


def cnn(
    *,
    channels: int,
    depth: int,
    size: int | Sequence[int] = (8, 8),
    activation: Phi = "relu",
    inputs: int = 1,
    outputs: int = 1,
    kernel_size: int = 3,
    padding: str = "circular",
    norm: str | None = None,
    norm_on: str = "preactivations",
    epsilon: float = 1e-6,
    groups: int = 1,
    batch: int | None = None,
    kernel_init: str = "gaussian",
    bias_init: str = "gaussian",
    dtype: DTypeLike = "float32",
) -> Network:
    """A plain convolutional network: ``h^{l+1} = W^{l+1} * phi(h^l) + b^{l+1}``, states ``(*size, channels)``.

    Args:
        channels: of every hidden state.
        depth: convolutions after the first, h^0.
        size: of the image, one number a dimension (1-D, 2-D or 3-D).
        inputs: channels of the input, which has shape ``(*size, inputs)``.
        outputs: size of the output, read from phi(h^L) averaged over the image.
        kernel_size: odd.
        padding: ``"circular"`` (as in the theory) or ``"zero"``.
        kernel_init: gaussian, truncated, uniform, orthogonal, delta_orthogonal.
        activation, norm, norm_on, epsilon, groups, batch, bias_init, dtype: as for `mlp`.

    Raises:
        ValueError: a size below 1, an even kernel, an unknown name, or delta_orthogonal with more channels in than out.
    """
    image = image_shape(size)
    depth, channels = positive_integer("depth", depth), positive_integer("channels", channels)
    layer = Layers(
        activations.get(activation),
        drawn_as(kernel_init, bias_init, dtype, initializers.CONVOLUTION_INITS),
        norm_around(norm, norm_on, epsilon, groups),
        window(kernel_size, padding, len(image)),
    )
    return Network(
        stem=layer.linear(kernel_init).conv(positive_integer("inputs", inputs), channels),
        stages=in_stages([layer.conv(channels, channels)] * depth),
        head=layer.readout(channels, outputs, len(image)),
        input_shape=(*leading_axes(batch, norm), *image, inputs),
    )


def resnet(
    *,
    channels: int | Sequence[int] = (16, 32, 64),
    depths: int | Sequence[int] = (9, 9, 9),
    size: int | Sequence[int] = (32, 32),
    activation: Phi = "relu",
    inputs: int = 3,
    outputs: int = 10,
    kernel_size: int = 3,
    padding: str = "zero",
    norm: str | None = "batch",
    norm_on: str = "preactivations",
    epsilon: float = 1e-5,
    groups: int = 1,
    batch: int | None = None,
    scheme: str | None = None,
    kernel_init: str = "gaussian",
    bias_init: str = "zero",
    dtype: DTypeLike = "float32",
) -> Network:
    """A residual convolutional network with pre-activation: ``h + V * phi(norm(W * phi(norm(h))))``, in stages.

    From one stage to the next a block of stride 2 halves the image; its skip is a convolution of window 1.

    Args:
        channels: of every stage.
        depths: residual blocks of every stage (two convolutions each); from the second stage on the first of them is
            the transition.
        size, inputs, outputs, kernel_size, padding: as for `cnn`.
        norm: batch by default, which needs ``batch``; or layer, rms, group, batch_running, None.
        activation, norm_on, epsilon, groups, batch, scheme, bias_init, dtype: as for `mlp`.
        kernel_init: as for `cnn`; convolutions of window 1 in the skips are Gaussian.

    Raises:
        ValueError: as `cnn`; or channels and depths of different lengths.

    Source: He et al. 2016, "Identity mappings in deep residual networks".
    """
    image = image_shape(size)
    widths, lengths = (
        tuple(positive_integer(name, v) for v in np.atleast_1d(np.asarray(values, object)))
        for name, values in (("channels", channels), ("depths", depths))
    )
    if len(widths) != len(lengths):
        raise ValueError(f"channels and depths must name as many stages, got {widths} and {lengths}")
    layer = Layers(
        activations.get(activation),
        drawn_as(kernel_init, bias_init, dtype, initializers.CONVOLUTION_INITS),
        norm_around(norm, norm_on, epsilon, groups),
        window(kernel_size, padding, len(image)),
    )
    branch = Branch("pre", 2)
    steps: list[Spec] = []
    for i, (width, length) in enumerate(zip(widths, lengths, strict=True)):
        block = residual_block(layer.conv, branch, layer.phi, width, width, scheme, dtype)
        if i:
            steps.append(_transition(layer, widths[i - 1], width, scheme, dtype))
        steps += [block] * (length - bool(i))
    return Network(
        stem=layer.linear(kernel_init).conv(
            positive_integer("inputs", inputs), widths[0], **embedding(scheme == "fixup")
        ),
        stages=in_stages(steps),
        head=layer.readout(widths[-1], outputs, len(image)),
        input_shape=(*leading_axes(batch, norm), *image, inputs),
        defaults=scheme_defaults(scheme, branch, len(steps), layer.phi),
    )


def _transition(layer: "Layers", before: int, after: int, scheme: str | None, dtype: DTypeLike) -> Spec:
    branch = spec(
        blocks.Chain,
        layer_1=layer.conv(before, after, strides=2),
        layer_2=layer.conv(after, after, names=("sigma_v", "sigma_a")),
    )
    narrow = replace(layer.linear("gaussian"), window=(("kernel_size", (1,) * layer.dimensions), layer.window[1]))
    about = {"shortcut": narrow.conv(before, after, strides=2), "dtype": dtype_name(dtype)}
    return spec(blocks.Residual, branch, **about, **({"gate": True} if scheme in GATED else {}))
