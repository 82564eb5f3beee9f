"""Normalization layers, by Flax, with their epsilon explicit and their variances computed without cancellation; what
stands in their place; and gains alone."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jax import Array

from vgjax import activations
from vgjax.checks import FloatDtype, Size, finite, kinds, known
from vgjax.floatexp import (
    DIRECTION,
    LINEAR,
    Ends,
    FloatExp,
    add,
    exponent_past_range,
    extended,
    from_float,
    normalize,
    scaled_bias,
    to_float_clipped,
    with_zero_exponent,
)
from vgjax.initializers import Scale, Scales

NORMS = ("layer", "rms", "group", "batch", "batch_running")
"""``batch`` normalizes over the batch, which is then the state; ``batch_running`` by running statistics, those of the
identity until they are calibrated."""


POINTWISE = {"dyt": "tanh", "derf": "erf"}
"""What stands in place of a normalization without looking at the whole state, and its function (`DynamicTanh`)."""


class Norm(nnx.Module):
    """``gamma (h - mean) / sqrt(variance + epsilon) + beta``, gamma and beta trainable, drawn as 1 and 0.

    Args:
        kind: one of `NORMS`.
        features: size of the state's last axis.
        epsilon: what is added to the variance; 0 in the theory.
        groups: of the features, for ``"group"``.
        dtype: of the parameters.
        rngs: where the draws come from.

    Raises:
        ValueError: an unknown kind, a negative epsilon, or groups that do not divide the features.
    """

    @kinds
    def __init__(
        self,
        kind: str,
        features: Size,
        *,
        epsilon: float = 1e-6,
        groups: Size = 1,
        dtype: FloatDtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.kind = known("norm", kind, NORMS)
        finite("epsilon", epsilon, "not negative", lambda v: v >= 0)
        options: dict[str, Any] = {
            "epsilon": epsilon,
            # The mean of squares less the square of the mean cancels where the mean is large.
            "use_fast_variance": False,
            "param_dtype": dtype,
            "rngs": rngs,
        }
        if kind == "layer":
            self.norm: Any = nnx.LayerNorm(features, **options)
        elif kind == "rms":
            self.norm = nnx.RMSNorm(features, **options)
        elif kind == "group":
            if features % groups:
                raise ValueError(f"groups must divide the {features} features, got {groups}")
            self.norm = nnx.GroupNorm(features, groups, **options)
        else:
            # A momentum of 0: one calibrating pass sets the running statistics.
            self.norm = nnx.BatchNorm(features, use_running_average=kind == "batch_running", momentum=0.0, **options)
            # Flax keeps running statistics in float32 whatever the parameters are.
            self.norm.mean = nnx.BatchStat(jnp.zeros(features, dtype))
            self.norm.var = nnx.BatchStat(jnp.ones(features, dtype))

    @property
    def theory_arguments(self) -> dict[str, Any]:
        """Its kind and its epsilon."""
        return {"norm": self.kind, "epsilon": float(self.norm.epsilon)}

    def __call__(self, h: Array) -> Array:
        """Of the state's shape."""
        # Flax's group norm takes the first of several axes for a batch; one image has none.
        return self.norm(h[None])[0] if self.kind == "group" else self.norm(h)

    def step(self, state: FloatExp, scales: Scales) -> FloatExp:
        """The same for a normalized state of any size, without Euler's tangent product: what depends on the direction
        alone is itself at `to_float_clipped`, and below the root of epsilon a norm is linear, up to its offset."""
        if self.kind == "batch_running":
            return extended(lambda h: nnx.clone(self)(h), state, LINEAR)
        value = nnx.clone(self)(to_float_clipped(state))  # a copy: see `protocol.step`
        # Without epsilon, scale cancels: nothing beyond the range is left to tell.
        if not self.norm.epsilon:
            return from_float(value)
        offset = jnp.zeros_like(value) if self.kind == "rms" else jnp.broadcast_to(self.norm.bias[...], value.shape)
        below = add(
            with_zero_exponent(FloatExp(value - offset, exponent_past_range(state))),
            with_zero_exponent(from_float(offset)),
        )
        small = state.exponent < 0
        return FloatExp(jnp.where(small, below.value, value), jnp.where(small, below.exponent, 0))

    @property
    def degrees(self) -> Ends:
        """Of the direction alone; linear below the root of epsilon, and everywhere with running statistics."""
        if self.kind == "batch_running":
            return LINEAR
        return LINEAR[0] if self.norm.epsilon else DIRECTION, DIRECTION


class DynamicTanh(nnx.Module):
    """``gamma f(alpha h) + beta`` in place of a normalization, f tanh (DyT) or erf (Derf); alpha one trainable number,
    drawn as 1/2 and multiplied by the scale ``sigma_alpha``; gamma and beta drawn as 1 and 0.

    Args:
        kind: ``"dyt"`` or ``"derf"``.
        features: size of the state's last axis.
        dtype: of the parameters.
        rngs: where the draws come from.

    Source: Zhu et al. 2025, "Transformers without normalization", whose alpha_0 is 1/2; Chen et al. 2025, "Stronger
    normalization-free transformers" (erf).
    """

    scales: ClassVar[Mapping[str, Scale]] = {"sigma_alpha": Scale(1.0, "parameter")}

    @kinds
    def __init__(self, kind: str, features: Size, *, dtype: FloatDtype = jnp.float32, rngs: nnx.Rngs):
        self.activation = activations.get(POINTWISE[known("norm", kind, POINTWISE)])
        self.alpha, self.gain = nnx.Param(jnp.full((), 0.5, dtype)), nnx.Param(jnp.ones(features, dtype))
        self.bias = nnx.Param(jnp.zeros(features, dtype))

    def __call__(self, h: Array, scales: Scales) -> Array:
        """Of the state's shape."""
        return self.gain[...] * self.activation(scales.sigma_alpha * self.alpha[...] * h) + self.bias[...]

    def step(self, state: FloatExp, scales: Scales) -> FloatExp:
        """The same for a normalized state of any size."""
        inside = normalize(FloatExp(scales.sigma_alpha * self.alpha[...] * state.value, state.exponent))[0]
        f = activations.apply(self.activation, inside)
        return add(with_zero_exponent(FloatExp(self.gain[...] * f.value, f.exponent)), scaled_bias(1.0, self.bias[...]))

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """alpha takes its scale."""
        self.alpha[...] = scales.sigma_alpha * self.alpha[...]
        return frozenset(self.scales)


class Gain(nnx.Module):
    """``scale g h``: a factor of its own for the state, and for every feature a trainable one, drawn as 1.

    Args:
        name: of the scale.
        features: size of the state's last axis; None for the scale alone.
        dtype: of the parameters.
        rngs: where the draws come from.

    Source: Touvron et al. 2021, "Going deeper with image transformers" (LayerScale, behind a branch); Sun et al. 2025,
    "The curse of depth in large language models" (1 / sqrt(l) behind a norm).
    """

    linear = True

    @kinds
    def __init__(self, name: str, features: Size | None = None, *, dtype: FloatDtype = jnp.float32, rngs: nnx.Rngs):
        self.name = name
        self.gain = None if features is None else nnx.Param(jnp.ones(features, dtype))

    @property
    def scales(self) -> Mapping[str, Scale]:
        """Its own."""
        return {self.name: Scale(1.0, "factor" if self.gain is None else "parameter")}

    def __call__(self, h: Array, scales: Scales) -> Array:
        """Of the state's shape."""
        return scales[self.name] * h if self.gain is None else scales[self.name] * self.gain[...] * h

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """The gains of features take the scale."""
        if self.gain is None:
            return frozenset()
        self.gain[...] = scales[self.name] * self.gain[...]
        return frozenset({self.name})
