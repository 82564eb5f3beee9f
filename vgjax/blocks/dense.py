"""Affine layers, preactivation to preactivation: fully connected and convolutional."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from vgjax import activations, initializers
from vgjax.activations import Activation, Elementwise
from vgjax.blocks import protocol
from vgjax.blocks.protocol import Spec
from vgjax.checks import known
from vgjax.floatexp import FloatExp, add, normalize, scaled_bias, with_zero_exponent
from vgjax.initializers import Scales


class Affine(nnx.Module):
    """The layer of the theory: ``h' = sigma_w Z after(phi(before(h))) + sigma_b z``, Z any linear map.

    Z is drawn at unit gain (``E Z_ij^2 = 1 / fan_in``), the bias z at unit variance. The scale multiplies the
    activation and not the kernel: over a grid of scales with one draw, all the grid is then one product.

    Attributes:
        activation: phi.
        before, after: blocks on either side of phi (a normalization, dropout, a pooling), or None.
        names: of the scales of kernel and bias.
    """

    activation: Activation
    before: Any
    after: Any
    names: tuple[str, str]
    bias: nnx.Param

    def __init__(
        self,
        outputs: int,
        activation: str | Activation | Elementwise,
        before: Spec | None,
        after: Spec | None,
        names: tuple[str, str],
        bias_init: str,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.activation = activations.get(activation)
        self.names = names
        self.before = before.build(rngs) if before else None
        self.after = after.build(rngs) if after else None
        bias = initializers.kernel_init(bias_init, initializers.BIAS_INITS)(rngs.params(), (1, outputs), dtype)
        self.bias = nnx.Param(bias[0])

    @abstractmethod
    def product(self, a: Array) -> Array:
        """Z a."""

    @property
    def scales(self) -> Mapping[str, float]:
        """Those of kernel and bias, and of the blocks around phi."""
        own = {self.names[0]: 1.0, self.names[1]: 0.0}
        return {**own, **protocol.scales_of(self.before), **protocol.scales_of(self.after)}

    @property
    def homogeneity(self) -> tuple[int, int] | None:
        """Asymptotically linear where phi is; with other blocks inside, to be measured."""
        return None if self.before or self.after else (0, 0)

    def __call__(self, h: Array, scales: Scales) -> Array:
        """One state to the next; leading axes (a batch, tokens) pass through."""
        a = self.activation(protocol.call(self.before, h, scales) if self.before else h)
        a = protocol.call(self.after, a, scales) if self.after else a
        return self.product(scales[self.names[0]] * a) + scales[self.names[1]] * self.bias[...]

    def step(self, state: FloatExp, scales: Scales) -> FloatExp:
        """The same for a normalized state of any size; the result is not normalized."""
        if self.before:
            state = normalize(protocol.step(self.before, state, scales))[0]
        a = activations.apply(self.activation, state)
        if self.after:
            a = protocol.step(self.after, normalize(a)[0], scales)
        product = FloatExp(self.product(scales[self.names[0]] * a.value), a.exponent)
        return add(with_zero_exponent(product), scaled_bias(scales[self.names[1]], self.bias[...]))

    def slopes(self, h: Array, scales: Scales) -> tuple[Array, float]:
        """phi' of the units, of the shape of the state, and the largest |phi'|."""
        h = protocol.call(self.before, h, scales) if self.before else h
        return self.activation.derivative(h), self.activation.facts.largest_slope


class Dense(Affine):
    """A fully connected layer: ``h' = sigma_w Z phi(h) + sigma_b z``, shapes ``(fan_in,)`` -> ``(fan_out,)``.

    Args:
        fan_in, fan_out: sizes of the states before and after.
        activation: phi: a name, an `Activation` or a callable.
        kernel_init: name of the kernel's unit-gain law (`initializers.KERNEL_INITS`).
        bias_init: ``"gaussian"`` or ``"zero"``.
        before, after: specs of blocks on either side of phi: ``W after(phi(before(h))) + b``.
        names: of the scales of kernel and bias.
        dtype: of the parameters.
        rngs: where the draws come from.
    """

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        *,
        activation: str | Activation | Elementwise = "linear",
        kernel_init: str = "gaussian",
        bias_init: str = "gaussian",
        before: Spec | None = None,
        after: Spec | None = None,
        names: tuple[str, str] = ("sigma_w", "sigma_b"),
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(initializers.kernel_init(kernel_init)(rngs.params(), (fan_in, fan_out), dtype))
        super().__init__(fan_out, activation, before, after, names, bias_init, dtype, rngs)

    def product(self, a: Array) -> Array:
        """The matrix product."""
        return jnp.dot(a, self.kernel[...])

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """W = sigma_w Z, b = sigma_b z."""
        return _absorb(self, self.kernel, scales)


class Conv(Affine):
    """A convolutional layer that keeps the image's size (or divides it by the strides), in one, two or three
    dimensions: ``h' = sigma_w Z * phi(h) + sigma_b z``, shapes ``(*size, channels)``.

    Args:
        channels_in, channels_out: sizes of the last axis.
        kernel_size: odd, one number a dimension.
        strides: one number a dimension, or one for all.
        padding: ``"circular"`` or ``"zero"``.
        kernel_init: unit-gain law of the kernel, fan_in being channels_in times the window; ``"delta_orthogonal"`` is
            orthogonal at the centre of the window and 0 elsewhere.
        activation, bias_init, before, after, names, dtype, rngs: as for `Dense`.

    Raises:
        ValueError: an even kernel, an unknown padding, or delta-orthogonal with channels_in > channels_out.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        kernel_size: tuple[int, ...] = (3, 3),
        strides: int = 1,
        padding: str = "circular",
        activation: str | Activation | Elementwise = "linear",
        kernel_init: str = "gaussian",
        bias_init: str = "gaussian",
        before: Spec | None = None,
        after: Spec | None = None,
        names: tuple[str, str] = ("sigma_w", "sigma_b"),
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        draw = initializers.convolution(kernel_init, kernel_size, channels_in, channels_out)
        self.conv = nnx.Conv(
            channels_in,
            channels_out,
            kernel_size,
            strides,
            padding=initializers.PADDINGS[known("padding", padding, initializers.PADDINGS)],
            use_bias=False,
            param_dtype=dtype,
            kernel_init=lambda key, _, dtype: draw(key, dtype),
            rngs=rngs,
        )
        super().__init__(channels_out, activation, before, after, names, bias_init, dtype, rngs)

    def product(self, a: Array) -> Array:
        """The convolution."""
        return self.conv(a)

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """W = sigma_w Z, b = sigma_b z."""
        return _absorb(self, self.conv.kernel, scales)


def _absorb(block: Affine, kernel: nnx.Param, scales: Scales) -> frozenset[str]:
    of_kernel, of_bias = block.names
    kernel[...] = scales[of_kernel] * kernel[...]
    block.bias[...] = scales[of_bias] * block.bias[...]
    inside = (protocol.absorb_scales(part, scales) for part in (block.before, block.after))
    return frozenset(block.names).union(*inside)
