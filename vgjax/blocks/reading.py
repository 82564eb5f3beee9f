"""Small maps without parameters: where a state begins, what a head reads of it, phi alone."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from vgjax import activations
from vgjax.activations import Activation, Elementwise
from vgjax.checks import kinds
from vgjax.floatexp import FloatExp
from vgjax.initializers import Scales


class Pool(nnx.Module):
    """The mean over the ``axes`` axes before the last (pixels, tokens)."""

    linear = True

    @kinds
    def __init__(self, axes: int, *, rngs: nnx.Rngs):
        self.axes = axes

    def __call__(self, h: Array) -> Array:
        """Shape ``(*leading, features)``."""
        return jnp.mean(h, axis=tuple(range(-1 - self.axes, -1)))


class Part(nnx.Module):
    """One part of a state along its first axis (an LSTM's h)."""

    linear = True

    @kinds
    def __init__(self, index: int, *, rngs: nnx.Rngs):
        self.index = index

    def __call__(self, h: Array) -> Array:
        """The state without its first axis."""
        return h[self.index]


class Flat(nnx.Module):
    """All entries of a state in a row."""

    linear = True

    @kinds
    def __init__(self, *, rngs: nnx.Rngs): ...

    def __call__(self, h: Array) -> Array:
        """Any shape -> ``(entries,)``."""
        return h.reshape(-1)


class Start(nnx.Module):
    """The state 0, whatever the input: where a recurrence begins."""

    linear = True

    @kinds
    def __init__(self, shape: tuple[int, ...], *, rngs: nnx.Rngs):
        self.shape = shape

    def __call__(self, x: Array) -> Array:
        """Zeros."""
        return jnp.zeros(self.shape, x.dtype)


class Activate(nnx.Module):
    """phi alone.

    Args:
        activation: a name, an `Activation` or a callable.
    """

    @kinds
    def __init__(self, *, activation: str | Activation | Elementwise, rngs: nnx.Rngs):
        self.activation = activations.get(activation)

    def __call__(self, h: Array) -> Array:
        """Elementwise."""
        return self.activation(h)

    def step(self, state: FloatExp, scales: Scales) -> FloatExp:
        """The same for a normalized state of any size."""
        return activations.apply(self.activation, state)
