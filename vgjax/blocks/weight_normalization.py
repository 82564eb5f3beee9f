"""Dense layers whose kernels are a length and a direction."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from vgjax.blocks.dense import Dense
from vgjax.checks import Size, kinds
from vgjax.floatexp import ParameterDegrees


class WeightNormalized(Dense):
    """A layer of normalized weights: ``h' = sigma_w W phi(h) + sigma_b z``, the weights of unit j ``g_j v_j / |v_j|``.

    Drawn at g = 1, without data: every unit has weights of norm 1 exactly, so that the layer keeps the mean square as a
    Gaussian one does in the mean, and scatters a little less: for a linear phi ``Var |W a|^2 / |a|^4 = 2 fan_out
    (fan_in - 1) / (fan_in^2 (fan_in + 2))``, a Gaussian's being 2 fan_out / fan_in^2. The gradient by v_j is orthogonal
    to v_j. Scales go into g, and so does `vgjax.networks.lsuv`, the paper's pass over data for a whole layer.

    Args:
        fan_in, fan_out: sizes of the states before and after.
        rngs: where the draws come from.
        **dense: kernel_init (of v, whose length does not count), dtype, activation, before, after, names, follows,
            bias_init: as for `Dense`.

    Source: Salimans and Kingma 2016, "Weight normalization", equation 2; g = 1 in place of their pass over
    data.
    """

    # Of a kernel only the direction counts: what scales it is g.
    kernel_path = "gain"
    # At finite width its moments are not those of independent weights.
    theory_arguments = None

    @kinds
    def __init__(self, fan_in: Size, fan_out: Size, *, rngs: nnx.Rngs, **dense: Any):
        super().__init__(fan_in, fan_out, rngs=rngs, **dense)
        self.gain = nnx.Param(jnp.ones(fan_out, self.kernel.dtype))

    @property
    def fan_in(self) -> int:
        """How many numbers a unit sums."""
        return self.kernel.shape[0]

    @property
    def parameter_degrees(self) -> Mapping[str, ParameterDegrees] | None:
        """By both factors those of the kernel."""
        told = super().parameter_degrees
        return None if told is None else {**told, "kernel": told["gain"]}

    def product(self, a: Array) -> Array:
        """The matrix product."""
        v = self.kernel[...]
        lengths = jnp.linalg.norm(v, axis=0)
        return jnp.dot(a, v * (self.gain[...] / jnp.where(lengths == 0, 1, lengths)))
