"""Noise of mean 1 on every unit, with its own draw."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from vgjax.checks import FloatDtype, kinds, known
from vgjax.initializers import Scale, Scales


class Mask(nnx.Variable):
    """What noise was drawn: part of a network, but not of its trainable parameters."""


class Dropout(nnx.Module):
    """Units dropped at a rate and the others scaled up (``"bernoulli"``), or multiplied by Gaussian noise of the same
    variance, ``rate / (1 - rate)`` (``"gaussian"``).

    The noise is drawn once with the block: a network is then one function, and draws of networks are draws of noise. So
    the rate is a scale like any other, ``dropout``, and can be swept. Training draws it anew at every step (`redraw`);
    where ``deterministic`` is set, as in evaluation, there is none.

    Args:
        shape: of the state.
        distribution: ``"bernoulli"`` or ``"gaussian"``.
        dtype: of the noise.
        rngs: where the draws come from.

    Source: Srivastava et al. 2014, "Dropout", for both distributions.
    """

    scales: ClassVar[Mapping[str, Scale]] = {"dropout": Scale(0.0, "rate")}
    linear = True

    @kinds
    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        distribution: str = "bernoulli",
        dtype: FloatDtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.distribution = known("dropout", distribution, ("bernoulli", "gaussian"))
        self.deterministic = False
        self.noise = Mask(jnp.zeros(shape, dtype))
        self.redraw(rngs.params())

    @property
    def theory_arguments(self) -> dict[str, Any]:
        """The distribution."""
        return {"dropout": self.distribution}

    def redraw(self, key: Array) -> None:
        """New noise."""
        draw = jax.random.uniform if self.distribution == "bernoulli" else jax.random.normal
        self.noise[...] = draw(key, self.noise[...].shape, self.noise[...].dtype)

    def __call__(self, h: Array, scales: Scales) -> Array:
        """Of the state's shape."""
        # The rate meets the noise here and not where it is drawn: one draw serves all rates of a sweep.
        if self.deterministic:
            return h
        rate, noise = scales.dropout, self.noise[...]
        if self.distribution == "bernoulli":
            return jnp.where(noise >= rate, h / (1 - rate), 0)
        return h * (1 + jnp.sqrt(rate / (1 - rate)) * noise)
