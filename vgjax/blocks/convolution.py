"""The convolutional layer."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from vgjax import initializers
from vgjax.blocks.dense import Affine
from vgjax.checks import FloatDtype, Size, kinds, known
from vgjax.initializers import Law


class Conv(Affine):
    """A convolutional layer that keeps the image's size (or divides it by the strides), in one, two or three
    dimensions: ``h' = sigma_w Z * phi(h) + sigma_b z``, shapes ``(*size, channels)``.

    Args:
        channels_in, channels_out: sizes of the last axis.
        kernel_size: odd, one number a dimension.
        strides: one number a dimension, or one for all.
        padding: ``"circular"`` or ``"zero"``.
        kernel_init: how the kernel is drawn, fan_in being channels_in times the window; ``"delta_orthogonal"`` is
            orthogonal at the centre of the window and 0 elsewhere; or a law or an array of one's own, of shape
            ``(*kernel_size, channels_in, channels_out)``, as it is.
        dtype, rngs, **affine: activation, before, after, names, follows, bias_init: as for `Affine`.

    Raises:
        ValueError: an even kernel, an unknown padding, or delta-orthogonal with channels_in > channels_out.
    """

    kernel_path = "conv/kernel"

    @kinds
    def __init__(
        self,
        channels_in: Size,
        channels_out: Size,
        *,
        kernel_size: tuple[int, ...] = (3, 3),
        strides: int | tuple[int, ...] = 1,
        padding: str = "circular",
        kernel_init: Law = "gaussian",
        dtype: FloatDtype = jnp.float32,
        rngs: nnx.Rngs,
        **affine: Any,
    ):
        draw = initializers.convolution_initializer(kernel_init, kernel_size, channels_in, channels_out)
        self.conv = nnx.Conv(
            channels_in,
            channels_out,
            kernel_size,
            strides,
            padding=initializers.PADDINGS[known("padding", padding, initializers.PADDINGS)],
            use_bias=False,
            param_dtype=dtype,
            kernel_init=lambda key, _, dtype: draw(key, dtype),  # its shape Flax tells as well
            rngs=rngs,
        )
        super().__init__(channels_out, dtype=dtype, rngs=rngs, **affine)

    def product(self, a: Array) -> Array:
        """The convolution."""
        return self.conv(a)
