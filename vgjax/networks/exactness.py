"""Exactness: from which layer on a number would mean nothing, and NaN in its place.

Three things can end what is exact. A state leaves the float range at an end where the next layer grows like no power
(`floatexp.Degrees`), or past the exponents themselves; a zero is an underflow inside of a layer; a layer makes a NaN or
an infinity of its own. All are found in the logarithms when the pass is over, so that the pass itself has no branches.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from vgjax.floatexp import FARTHEST, LN2, Ends, FloatExp, window_exponent
from vgjax.networks.layer import Layer


class Exactness(NamedTuple):
    """From where on the states of a network mean nothing; depth + 1 for never.

    Attributes:
        first_inexact_layer: the first state past what can be computed, int32, shape ``()``.
        first_nan_layer: the first state with a NaN or an infinity of the network's own (an overflow inside of one layer
            included), if that comes first, int32, shape ``()``.
        underflows: whether a zero that a layer makes is an underflow, shape ``(depth,)``.
    """

    first_inexact_layer: Int[Array, "*batch"]
    first_nan_layer: Int[Array, "*batch"]
    underflows: Bool[Array, "*batch depth"]

    @property
    def layers(self) -> Array:
        """How many states are exact, from the first on."""
        return jnp.minimum(self.first_inexact_layer, self.first_nan_layer)


class Doubts(NamedTuple):
    """What a layer cannot be trusted with at a state.

    Attributes:
        left: anything: the state has left the float range at an end where the layer grows like no power.
        underflows: its zeros, which are underflows.
    """

    left: Bool[Array, "*layers"]
    underflows: Bool[Array, "*layers"]


def doubts(layer: Layer, state: FloatExp, log_norm: Float[Array, ""]) -> Doubts:
    """Of one layer at a normalized state and ln of its norm."""
    return Doubts(~exact_at(layer.degrees(state), log_norm), layer.underflows(state))


def exactness(log_norms: Float[Array, " layers"], at: Doubts | None) -> Exactness:
    """Read off ln of the norms of the states s_0 ... s_L, and the doubts at all but the last; None: there are none."""
    depth, before, behind = len(log_norms) - 1, log_norms[:-1], log_norms[1:]
    inexact, underflows = _first(_ended(log_norms)), jnp.zeros(depth, bool)
    if at is not None:
        underflows = at.underflows
        lost = jnp.isneginf(behind) & ~jnp.isneginf(before) & underflows
        inexact = jnp.minimum(1 + _first(at.left | lost), inexact)
    no_number = _first(jnp.isnan(log_norms))
    # What the one leaves behind says nothing of the other.
    return Exactness(
        jnp.where(inexact <= no_number, inexact, depth + 1),
        jnp.where(no_number < inexact, no_number, depth + 1),
        underflows,
    )


def exact_at(ends: Ends, log_norms: Array) -> Array:
    """Whether a map of those degrees is exact at states of such norms."""
    far = window_exponent(log_norms.dtype) * LN2
    below, above = ((log_norms < -far) & (not ends[0].known), (log_norms > far) & (not ends[1].known))
    return ~(jnp.isfinite(log_norms) & (below | above))


def marked_forward(found: Exactness, log_norms: Float[Array, "*rows layers"]) -> Float[Array, "*rows layers"]:
    """ln of norms along the layers (of the states, of what is pushed): NaN from where they mean nothing on."""
    exact = jnp.arange(log_norms.shape[-1], dtype=jnp.int32) < found.layers[..., None]
    return _marked(jnp.where(exact, log_norms, jnp.nan), found.underflows)


def marked_backward(
    found: Exactness, log_norms: Float[Array, "*rows layers"], end: Int[Array, "*rows"] | int
) -> Float[Array, "*rows layers"]:
    """The same of what is pulled back from state ``end``, through the Jacobians at all states before it."""
    exact = (jnp.asarray(end, jnp.int32) < found.layers)[..., None]
    back = jnp.where(exact, log_norms, jnp.nan)[..., ::-1]
    return _marked(back, found.underflows[..., ::-1])[..., ::-1]


def marked_layers(found: Exactness, of_layers: Float[Array, "..."]) -> Float[Array, "..."]:
    """What is of the Jacobian of every layer, leading axis: NaN where it, or the state behind it, means nothing."""
    exact = jnp.arange(1, len(of_layers) + 1, dtype=jnp.int32) < found.layers
    return jnp.where(exact.reshape(-1, *(1,) * (of_layers.ndim - 1)), of_layers, jnp.nan)


def _marked(log_norms: Array, underflows: Array) -> Array:
    """NaN behind the first NaN, the first zero that is an underflow, and the end of the exponents."""
    before, behind = log_norms[..., :-1], log_norms[..., 1:]
    lost = jnp.isneginf(behind) & ~jnp.isneginf(before) & underflows
    means_nothing = jnp.isnan(log_norms) | _ended(log_norms)
    means_nothing |= jnp.concatenate([jnp.zeros_like(means_nothing[..., :1]), lost], axis=-1)
    reached = jnp.arange(log_norms.shape[-1], dtype=jnp.int32) >= _first(means_nothing)[..., None]
    return jnp.where(reached, jnp.nan, log_norms)


def _ended(log_norms: Array) -> Array:
    """Where the exponents have ended; a zero has none."""
    return (jnp.abs(log_norms) >= FARTHEST * LN2) & ~jnp.isneginf(log_norms)


def _first(marked: Bool[Array, "*rows layers"]) -> Int[Array, "*rows"]:
    """The first layer marked; their number where none is."""
    none = jnp.ones_like(marked[..., :1])
    return jnp.argmax(jnp.concatenate([marked, none], axis=-1), axis=-1).astype(jnp.int32)
