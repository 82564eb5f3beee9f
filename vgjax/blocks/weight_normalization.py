"""Dense layers whose kernels are a length and a direction."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from vgjax.blocks.dense import Dense
from vgjax.checks import Size, kinds
from vgjax.floatexp import ParameterDegrees
from vgjax.initializers import Scales


class WeightNormalized(Dense):
    """A layer of normalized weights: ``h' = sigma_w W phi(h) + sigma_b z``, the weights of unit j ``g_j v_j / |v_j|``.

    Drawn at g = 1, without data: every unit has weights of norm 1 exactly, so that the layer keeps the mean square as a
    Gaussian one does in the mean, and scatters a little less: for a linear phi ``Var |W a|^2 / |a|^4 = 2 fan_out
    (fan_in - 1) / (fan_in^2 (fan_in + 2))``, a Gaussian's being 2 fan_out / fan_in^2. The gradient by v_j is orthogonal
    to v_j. The scale goes into g.

    Args:
        fan_in, fan_out: sizes of the states before and after.
        rngs: where the draws come from.
        **dense: kernel_init (of v, whose length does not count), dtype, activation, before, after, names, follows,
            bias_init: as for `Dense`.

    Source: Salimans and Kingma 2016, "Weight normalization", equation 2; g = 1 in place of their pass over data.
    """

    # At finite width its moments are not those of independent weights.
    theory_arguments = None

    @kinds
    def __init__(self, fan_in: Size, fan_out: Size, *, rngs: nnx.Rngs, **dense: Any):
        super().__init__(fan_in, fan_out, rngs=rngs, **dense)
        self.gain = nnx.Param(jnp.ones(fan_out, self.kernel.dtype))

    @property
    def parameter_degrees(self) -> Mapping[str, ParameterDegrees] | None:
        """By both factors those of the kernel."""
        of_kernel = super().parameter_degrees
        return None if of_kernel is None else {**of_kernel, "gain": of_kernel["kernel"]}

    def product(self, a: Array) -> Array:
        """The matrix product."""
        v = self.kernel[...]
        lengths = jnp.linalg.norm(v, axis=0)
        return jnp.dot(a, v * (self.gain[...] / jnp.where(lengths == 0, 1, lengths)))

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """g = sigma_w, b = sigma_b z."""
        v, of_kernel = self.kernel[...], self.names[0]
        absorbed = super().absorb_scales(scales)
        self.kernel[...], self.gain[...] = v, scales[of_kernel] * self.gain[...]
        return absorbed
