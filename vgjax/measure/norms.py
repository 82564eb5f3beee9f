"""Norms of Jacobian products, exact or by random probes."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Key

from vgjax.checks import ArrayLike, RandomKey, kinds, nan_is_data, positive_integer
from vgjax.initializers import Scales
from vgjax.measure.flow import direction, push_all
from vgjax.memory import MEMORY, chunk_size, chunks
from vgjax.networks.layers import checked_input, state_shapes, state_sizes
from vgjax.networks.network import Network
from vgjax.networks.parameters import Parameters
from vgjax.values import by_content


@by_content
class Frobenius(NamedTuple):
    """ln of the Frobenius norm of J_{l<-0} at every depth.

    Attributes:
        log_norm: shape ``(depth + 1,)``; half of ln of the (estimated) sum of s^2.
        standard_error: of log_norm, from the spread of the probes; 0 where it is exact.
    """

    log_norm: np.ndarray | Array
    standard_error: np.ndarray | Array


@kinds
@nan_is_data
def log_frobenius(
    parameters: Parameters,
    scales: Scales,
    x: ArrayLike,
    probes: int | None = None,
    *,
    key: RandomKey | None = None,
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
    x, network = checked_input(parameters, scales, x), parameters.network
    probes = None if probes is None else checked_probes(probes)
    vectors = probe_vectors(network, probes, jax.random.key(0) if key is None else key)
    size = chunk_size(len(vectors), 32 * int(state_sizes(network)[0]), MEMORY)
    logs = [
        np.asarray(_push_all(parameters, scales, x, vectors[jnp.asarray(taken)]).log_gain, float)[:new]
        for taken, new in chunks(len(vectors), size)
    ]
    with jax.enable_x64(True):
        return Frobenius(*map(np.asarray, read_squares(jnp.asarray(2 * np.concatenate(logs)), exact=probes is None)))


_push_all = jax.jit(push_all)


def checked_probes(probes: int) -> int:
    """How many, if it is a whole number of at least 2."""
    if positive_integer("probes", probes) < 2:
        raise ValueError(f"probes must be at least 2, got {probes}")
    return int(probes)


def probe_vectors(network: Network, probes: int | None, key: Key[Array, ""]) -> Float[Array, "n *state"]:
    """Directions u at the first state with sum E u u^T = 1, shape ``(n, *state)``: every unit vector, or random."""
    shape, size = state_shapes(network)[0], int(state_sizes(network)[0])
    if probes is None:
        return jnp.eye(size).reshape(-1, *shape)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(probes))
    return jax.vmap(lambda k: direction(k, shape, jnp.float32))(keys) * np.sqrt(size)


@functools.partial(jax.jit, static_argnames="exact")
def read_squares(log_squares: Float[Array, "probes layers"], exact: bool) -> Frobenius:
    """The norm from ln ||J u||^2 of every probe, shape ``(probes, depth + 1)``."""
    total = jax.nn.logsumexp(log_squares, axis=0)
    if exact:
        return Frobenius(total / 2, jnp.zeros_like(total))
    count = len(log_squares)
    mean = total - np.log(count)
    shares = jnp.exp(log_squares - jnp.where(jnp.isneginf(mean), 0, mean))  # of a lost product: all 0
    return Frobenius(mean / 2, jnp.std(shares, axis=0, ddof=1) / np.sqrt(count) / 2)
