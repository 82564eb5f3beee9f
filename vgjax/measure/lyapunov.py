"""Growth per layer: Lyapunov exponents, the determinant, and the singular values of every single layer."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from vgjax.checks import ArrayLike, kinds, nan_is_data, positive_integer, whole_numbers
from vgjax.floatexp import LN2, FloatExp
from vgjax.initializers import Scales
from vgjax.measure.jacobian import DENSE, Origin, check_memory, check_one_shape, columns, computing_from, jacobian
from vgjax.networks.exactness import marked_layers
from vgjax.networks.layer import Layer
from vgjax.networks.layers import joined
from vgjax.networks.network import Network
from vgjax.networks.parameters import Parameters
from vgjax.values import by_content


@by_content
class Lyapunov(NamedTuple):
    """Growth rates along the depth, in nats per layer.

    Attributes:
        log_stretch: ln of what each layer adds to each exponent, shape ``(layers, count)``.
        discarded: how many layers at the start count as transient.
    """

    log_stretch: np.ndarray
    discarded: int

    @property
    def exponents(self) -> np.ndarray:
        """Mean over the layers behind the transient, shape ``(count,)``; descending, as far as they have converged."""
        return self.log_stretch[self.discarded :].mean(axis=0)

    @property
    def standard_error(self) -> np.ndarray:
        """Of the exponents, from ten stretches of layers (successive layers are not independent): itself right to a
        quarter or so; NaN below 20 layers."""
        rest = self.log_stretch[self.discarded :]
        if len(rest) < 20:
            return np.full(rest.shape[1], np.nan)
        means = np.stack([part.mean(axis=0) for part in np.array_split(rest, 10)])
        return means.std(axis=0, ddof=1) / np.sqrt(10)

    @property
    def running(self) -> np.ndarray:
        """The exponents as they would be after each layer, shape ``(layers - discarded, count)``: whether they have
        converged."""
        rest = self.log_stretch[self.discarded :]
        return np.cumsum(rest, axis=0) / np.arange(1, len(rest) + 1)[:, None]


@kinds
@nan_is_data
def lyapunov_exponents(
    parameters: Parameters,
    scales: Scales,
    x: ArrayLike,
    count: int | None = None,
    *,
    discard: int | None = None,
    dtype: str | None = None,
) -> Lyapunov:
    """Lyapunov exponents: the rates lim (1/L) ln s at which directions grow, by a running QR decomposition.

    Where `log_singular_values` gives the spectrum of one finite product, these are its limit per layer: at a finite
    depth a different number (off by several nats at 300 layers). An exponent further below the largest than the digits
    of the dtype (16 nats in float32, 36 in float64) is rounding.

    Args:
        parameters, scales, x, dtype: as for `log_singular_values`; all states of one shape.
        count: how many of the largest (left out: all).
        discard: layers at the start that count as transient (left out: a tenth).

    Returns:
        `Lyapunov`.

    Raises:
        ValueError: unknown scales, an input of the wrong shape, states of several shapes, or a discard that leaves no
            layer.

    Source: Benettin et al. 1980, "Lyapunov characteristic exponents for smooth dynamical systems".
    """
    discard = checked_discard(parameters.network, discard)
    check_one_shape(parameters.network)
    with computing_from(parameters, scales, x, dtype) as origin:
        size = origin.size if count is None else min(positive_integer("count", count), origin.size)
        return Lyapunov(np.asarray(stretches(origin, origin.rotation(size)), float), discard)


def checked_discard(network: Network, discard: int | None) -> int:
    """How many layers count as transient: a tenth, or what was asked for."""
    if discard is None:
        return network.depth // 10
    return whole_numbers("discard", [discard], 0, network.depth - 1)[0]


@jax.jit
def stretches(origin: Origin, basis: Float[Array, "size count"]) -> Float[Array, "depth count"]:
    """ln |R_ii| of every layer, shape ``(depth, count)``."""

    def visit(layer: Layer, state: FloatExp, basis: Array, _: None) -> tuple[Array, Array]:
        h, shift = layer.place(state)
        basis, r = jnp.linalg.qr(columns(jax.linearize(layer, h)[1], basis.T.reshape(-1, *h.shape)))
        return basis, jnp.log(jnp.abs(jnp.diagonal(r))) + LN2 * shift.astype(r.dtype)

    walked = origin.layers.walk(origin.state, visit, basis)
    return marked_layers(walked.exactness, joined(walked.reports))


@kinds
@nan_is_data
def log_determinant(parameters: Parameters, scales: Scales, x: ArrayLike, *, dtype: str | None = None) -> np.ndarray:
    """ln |det J_{l<-0}| at every depth l: the sum over layers of their own, each by an LU decomposition.

    Args:
        parameters, scales, x, dtype: as for `log_singular_values`; all states of one shape.

    Returns:
        Shape ``(depth + 1,)``, float64; -inf from the first singular layer on.

    Raises:
        ValueError: as `lyapunov_exponents`.
    """
    return np.concatenate([[0.0], np.cumsum(_single_layers(parameters, scales, x, dtype, _log_dets))])


@kinds
def layer_singular_values(
    parameters: Parameters, scales: Scales, x: ArrayLike, *, dtype: str | None = None
) -> np.ndarray:
    """ln of the singular values of every single layer's Jacobian.

    Args:
        parameters, scales, x, dtype: as for `log_singular_values`; all states of one shape.

    Returns:
        Shape ``(depth, n)``, descending along the last axis; -inf for exact zeros.

    Raises:
        ValueError: as `lyapunov_exponents`.
    """
    return _single_layers(parameters, scales, x, dtype, _log_values)


def _single_layers(
    parameters: Parameters,
    scales: Scales,
    x: ArrayLike,
    dtype: str | None,
    f: Callable[[Origin], Array],
) -> np.ndarray:
    """One of the functions below, of every layer of a checked network."""
    check_one_shape(parameters.network)
    with computing_from(parameters, scales, x, dtype) as origin:
        check_memory(parameters.network, origin.size, 1, origin.state.value.dtype, DENSE)
        return np.asarray(f(origin), float)


@jax.jit
def layer_jacobians(origin: Origin) -> Float[Array, "depth n n"]:
    """The Jacobians of all layers, shape ``(depth, n, n)``."""
    return _of_layers(origin, lambda matrix, _: matrix)


@jax.jit
def _log_dets(origin: Origin) -> Array:
    return _of_layers(origin, lambda matrix, shift: jnp.linalg.slogdet(matrix)[1] + len(matrix) * shift)


@jax.jit
def _log_values(origin: Origin) -> Array:
    return _of_layers(origin, lambda matrix, shift: jnp.log(jnp.linalg.svd(matrix, compute_uv=False)) + shift)


def _of_layers(origin: Origin, f: Callable[[Array, Array], Array]) -> Array:
    """f of every layer's Jacobian and of ln of what is left to multiply it by, with a leading layer axis."""

    def visit(layer: Layer, state: FloatExp, _: None, __: None) -> tuple[None, Array]:
        h, shift = layer.place(state)
        matrix = jacobian(layer, h)
        return None, f(matrix, LN2 * shift.astype(matrix.dtype))

    walked = origin.layers.walk(origin.state, visit)
    return marked_layers(walked.exactness, joined(walked.reports))
