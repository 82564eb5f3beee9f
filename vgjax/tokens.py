"""Tokens: how alike they become along the depth of a transformer."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from vgjax.flow import visited_states
from vgjax.initializers import Scales
from vgjax.layers import Parameters
from vgjax.networks import Network, check_input, check_scales


def token_correlation(network: Network, parameters: Parameters, scales: Scales, x: ArrayLike) -> np.ndarray:
    """Mean cosine between two different tokens of the state s_l, at every layer: 1 is rank collapse.

    Args:
        network: whose states are tokens, shape ``(tokens, width)``, at least two of them.
        parameters, scales: as for `forward`.
        x: one input.

    Returns:
        Shape ``(depth + 1,)``; NaN where a token is zero.

    Raises:
        ValueError: unknown scales, an input of the wrong shape, or states that are not tokens.
    """
    check_scales(network, scales)
    check_input(network, x)
    states = visited_states(parameters, scales, jnp.asarray(x)).value
    if states.ndim != 3 or states.shape[1] < 2:
        raise ValueError(f"states must be at least two tokens, shape (tokens, width), got shape {states.shape[1:]}")
    return np.asarray(_mean_cosines(states))


@jax.jit
def _mean_cosines(states: Array) -> Array:
    def at(state: Array) -> Array:
        unit = state / jnp.linalg.norm(state, axis=1, keepdims=True)
        n = len(unit)
        return (jnp.sum(unit.sum(axis=0) ** 2) - n) / (n * (n - 1))

    return jax.vmap(at)(states)
