"""Spiking units: a step forward, and the slope of something smooth on the way back."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from vgjax.activations import Activation
from vgjax.blocks.recurrent import RNNCell
from vgjax.checks import Size, finite, kinds, known
from vgjax.floatexp import Degrees, Ends
from vgjax.initializers import Scale, Scales


def _fast_sigmoid(steepness: float, u: Array) -> Array:
    return 1 / (1 + steepness * jnp.abs(u)) ** 2


def _arctan(steepness: float, u: Array) -> Array:
    return (steepness / 2) / (1 + (jnp.pi / 2 * steepness * u) ** 2)


_SLOPES = {"fast_sigmoid": _fast_sigmoid, "arctan": _arctan}


def _step(threshold: float, u: Array) -> Array:
    return (u > threshold).astype(u.dtype)


def _shifted(kind: str, steepness: float, threshold: float, u: Array) -> Array:
    return _SLOPES[kind](steepness, u - threshold)


@kinds
def surrogate(kind: str = "fast_sigmoid", steepness: float = 25.0, threshold: float = 1.0) -> Activation:
    """A spike, 1 where u > threshold and else 0, that differentiates (forward and reverse mode) to a surrogate slope.

    ``fast_sigmoid``: ``1 / (1 + k |u - threshold|)^2``; ``arctan``: ``(k / 2) / (1 + (pi k (u - threshold) / 2)^2)``.
    The same object for the same numbers.

    Args:
        kind: fast_sigmoid or arctan.
        steepness: k.
        threshold: where it spikes.

    Raises:
        ValueError: an unknown kind, a steepness that is not positive, or a threshold that is not finite.

    Source: Zenke and Ganguli 2018, "SuperSpike", with k = 25 as in snnTorch; Fang et al. 2021, "Incorporating learnable
    membrane time constant", for the arctan; Neftci, Mostafa and Zenke 2019, "Surrogate gradient learning".
    """
    return _checked(kind, steepness, threshold)


def _checked(kind: str, steepness: float, threshold: float) -> Activation:
    finite("steepness", steepness, "positive", lambda v: v > 0)
    finite("threshold", threshold)
    return _made(known("surrogate", kind, _SLOPES), float(steepness), float(threshold))


@functools.cache
def _made(kind: str, steepness: float, threshold: float) -> Activation:
    return Activation(
        f"spike({kind}, {steepness:g}, {threshold:g})",
        functools.partial(_step, threshold),
        functools.partial(_shifted, kind, steepness, threshold),
        kinks=(threshold,),
    )


class LIFCell(RNNCell):
    """Leaky integrate-and-fire units: ``u' = decay u + W s - threshold s + V x + b``, spikes ``s = 1 where u >
    threshold``, which reset by subtraction; the state is the membrane potential u.

    On the way back a spike has its surrogate's slope. So a gradient passes silent units too: at u = 0, with g the slope
    there, ``J = (decay - g threshold) 1 + g sigma_w W``, whose powers `vgjax.theory.streams.tied_log_gain` knows.

    Args:
        width, inputs: sizes of the state and of one input.
        surrogate, steepness, threshold: as for `surrogate`.
        **options: kernel_init, input_kernel_init, bias_init, dtype, rngs: as for every cell.

    Source: Neftci, Mostafa and Zenke 2019, "Surrogate gradient learning in spiking neural networks".
    """

    # Below the range a state would go on by its tangent, which is not that of a step: marked. Above, spikes are small.
    degrees: ClassVar[Ends] = (Degrees(None, None), Degrees())

    @kinds
    def __init__(
        self,
        width: Size,
        inputs: Size,
        *,
        surrogate: str = "fast_sigmoid",
        steepness: float = 25.0,
        threshold: float = 1.0,
        **options: Any,
    ):
        super().__init__(width, inputs, activation=_checked(surrogate, steepness, threshold), **options)
        self.threshold = threshold

    @property
    def scales(self) -> Mapping[str, Scale]:
        """Those of kernels and biases, and what is left of a potential after a step."""
        return {**super().scales, "decay": Scale(0.9)}

    def __call__(self, h: Array, scales: Scales, x: Array) -> Array:
        """Shapes ``(width,)``, ``(inputs,)`` -> ``(width,)``."""
        spikes = self.activation(h)
        return scales.decay * h + self.recur(spikes, scales) - self.threshold * spikes + self.drive(x, scales)

    def diagnostics(self, h: Array, scales: Scales, x: Array) -> dict[str, Array]:
        """The share of units that spike, and their mean square slope."""
        slope = self.activation.derivative(h)
        return {"spikes": jnp.mean(self.activation(h)), "mean_square_slope": jnp.mean(slope**2)}
