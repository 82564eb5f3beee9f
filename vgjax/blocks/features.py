"""Inputs as waves: random Fourier features."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from vgjax.checks import FloatDtype, Size, kinds
from vgjax.initializers import Scale, Scales


class FourierFeatures(nnx.Module):
    """``[cos(2 pi sigma_f B x), sin(2 pi sigma_f B x)]``, B_ij ~ N(0, 1) and not trained: shapes ``(*leading, inputs)``
    -> ``(*leading, 2 waves)``; a stem.

    Its mean square is 1/2 at any x. Two inputs have the inner product ``waves exp(-2 pi^2 sigma_f^2 |x - y|^2)`` in the
    mean, and a tangent grows by ``E |J u|^2 = waves (2 pi sigma_f)^2 |u|^2``.

    Args:
        inputs: size of the input's last axis.
        waves: rows of B.
        dtype: of B.
        rngs: where the draws come from.

    Source: Rahimi and Recht 2007, "Random features for large-scale kernel machines"; Tancik et al. 2020, "Fourier
    features let networks learn high frequency functions in low dimensional domains".
    """

    @kinds
    def __init__(self, inputs: Size, waves: Size, *, dtype: FloatDtype = jnp.float32, rngs: nnx.Rngs):
        self.frequencies = nnx.Variable(jax.random.normal(rngs.params(), (inputs, waves), dtype))

    @property
    def scales(self) -> Mapping[str, Scale]:
        """The standard deviation of the frequencies."""
        return {"sigma_f": Scale(1.0, "parameter")}

    def __call__(self, x: Array, scales: Scales) -> Array:
        """Cosines first, then sines."""
        phases = 2 * jnp.pi * jnp.dot(scales.sigma_f * x, self.frequencies[...])
        return jnp.concatenate([jnp.cos(phases), jnp.sin(phases)], axis=-1)

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """Into the frequencies."""
        self.frequencies[...] = scales.sigma_f * self.frequencies[...]
        return frozenset({"sigma_f"})
