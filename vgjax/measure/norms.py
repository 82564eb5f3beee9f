"""Norms of Jacobian products, exact or by random probes."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from vgjax.checks import positive_integer
from vgjax.initializers import Scales
from vgjax.measure.flow import direction, push_all
from vgjax.memory import MEMORY, chunk_size, chunks
from vgjax.networks.layers import checked_input, state_shapes
from vgjax.networks.parameters import Parameters


class Frobenius(NamedTuple):
    """ln of the Frobenius norm of J_{l<-0} at every depth.

    Attributes:
        log_norm: shape ``(depth + 1,)``; half of ln of the (estimated) sum of s^2.
        standard_error: of log_norm, from the spread of the probes; 0 where it is exact.
    """

    log_norm: np.ndarray
    standard_error: np.ndarray


def log_frobenius(
    parameters: Parameters,
    scales: Scales,
    x: ArrayLike,
    probes: int | None = None,
    *,
    key: Array | None = None,
) -> Frobenius:
    """ln ||J_{l<-0}||_F at every depth: exactly, or by Hutchinson's estimate, the mean of ||J u||^2 over random u.

    Args:
        parameters, scales, x: as for `forward`.
        probes: how many random directions; left out, every unit vector is pushed (the exact norm, n tangents).
        key: draws the directions (default ``jax.random.key(0)``).

    Returns:
        `Frobenius`.

    Raises:
        ValueError: unknown scales, an input of the wrong shape, or fewer than 2 probes.

    Source: Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix".
    """
    x, shape = checked_input(parameters, scales, x), state_shapes(parameters.network)[0]
    size = int(np.prod(shape))
    if probes is not None and positive_integer("probes", probes) < 2:
        raise ValueError(f"probes must be at least 2, got {probes}")
    key = jax.random.key(0) if key is None else key

    def directions(taken: Array) -> Array:  # E u u^T = 1, as for the unit vectors together
        if probes is None:
            return jax.nn.one_hot(taken, size).reshape(-1, *shape)
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(taken)
        return jax.vmap(lambda k: direction(k, shape, jnp.float32))(keys) * np.sqrt(size)

    count = probes or size
    logs = [
        np.asarray(_push_all(parameters, scales, x, directions(jnp.asarray(taken))).log_gain, float)[:new]
        for taken, new in chunks(count, chunk_size(count, 32 * size, MEMORY))
    ]
    squares = 2 * np.concatenate(logs)
    total = np.logaddexp.reduce(squares)
    if probes is None:
        return Frobenius(total / 2, np.zeros(parameters.network.depth + 1))
    total -= np.log(probes)
    with np.errstate(invalid="ignore"):
        spread = np.exp(squares - total).std(axis=0, ddof=1) / np.sqrt(probes)
    return Frobenius(total / 2, np.nan_to_num(spread) / 2)


_push_all = jax.jit(push_all)
