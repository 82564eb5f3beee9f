"""Blocks: Flax NNX modules that map a state to the next state.

A block is any `nnx.Module` built with ``rngs=`` and called as ``block(h)`` on a plain array (one example, unbatched;
batches are `vmap`). What it may say about itself, all of it optional, so that a user's own module stacks as it is:

- ``scales``: class attribute, the names of the `Scales` it reads with their defaults; it is then called ``block(h,
  scales)``;
- ``scaled(parameters, scales)``: its ordinary parameters at given scales, which then stand at 1 in the call (static
  method);
- ``step(state, scales)``: itself on a scaled number past the float range (default: Euler's rule, one tangent product
  more);
- ``slopes(h)``: phi' of its units and phi's largest slope, for saturation (default: none reported);
- ``prefix_closed``: class attribute, False if what leaves it depends on layers behind it.

Derivatives are always those of the plain call; nothing else needs to be written for a new block.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from vgjax import activations, initializers
from vgjax.activations import Activation
from vgjax.exponents import Scaled, add, offset, settled
from vgjax.initializers import Scales


class Dense(nnx.Module):
    """The layer of the theory, preactivation to preactivation: ``h' = sigma_w phi(h) Z + sigma_b z``.

    Z is the stored kernel at unit gain (``E Z_ij^2 = 1 / fan_in``), z the stored bias at unit variance. The scale
    multiplies the activation and not the kernel: over a grid of scales with one draw, all the grid is then one matrix
    product.

    Args:
        fan_in, fan_out: sizes of the states before and after.
        activation: phi.
        law: name of the kernel's unit-gain law (`initializers.LAWS`).
        bias_law: ``"gaussian"`` or ``"zero"``.
        dtype: of the parameters.
        rngs: where the draws come from.
    """

    scales: ClassVar[Mapping[str, float]] = {"sigma_w": 1.0, "sigma_b": 0.0}

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        *,
        activation: Activation,
        law: str = "gaussian",
        bias_law: str = "gaussian",
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.kernel = nnx.Param(initializers.law(law)(rngs.params(), (fan_in, fan_out), dtype))
        bias = initializers.law(bias_law, initializers.BIAS_LAWS)(rngs.params(), (1, fan_out), dtype)
        self.bias = nnx.Param(bias[0])

    def __call__(self, h: Array, scales: Scales) -> Array:
        """Shapes ``(fan_in,)`` -> ``(fan_out,)``."""
        return self._product(scales.sigma_w * self.activation(h)) + scales.sigma_b * self.bias[...]

    def step(self, state: Scaled, scales: Scales) -> Scaled:
        """The same for a normalized state of any size; the result is not normalized."""
        a = activations.apply(self.activation, state)
        product = Scaled(self._product(scales.sigma_w * a.value), a.exponent)
        return add(settled(product), offset(scales.sigma_b, self.bias[...]))

    def slopes(self, h: Array) -> tuple[Array, float]:
        """phi'(h), shape ``(fan_in,)``, and the largest |phi'|."""
        return self.activation.derivative(h), self.activation.facts.largest_slope

    @staticmethod
    def scaled(parameters: dict[str, Array], scales: Scales) -> dict[str, Array]:
        """W = sigma_w Z, b = sigma_b z."""
        return {"kernel": scales.sigma_w * parameters["kernel"], "bias": scales.sigma_b * parameters["bias"]}

    def _product(self, a: Array) -> Array:
        # Full precision by name: the default is TF32 on recent GPUs and bfloat16 on TPUs, where 1e-5 would fail
        # silently.
        return jnp.dot(a, self.kernel[...], precision=lax.Precision.HIGHEST)


def declared_scales(block: type[nnx.Module]) -> Mapping[str, float]:
    """The names and defaults of the scales a block class declares."""
    return getattr(block, "scales", {})


def call(block: nnx.Module, h: Array, scales: Scales) -> Array:
    """The block on a plain array, with the scales it declares."""
    return block(h, scales) if declared_scales(type(block)) else block(h)  # type: ignore[operator]
