"""Push and pull: log-domain Jacobian products of one network, forward and backward.

J_{m<-l} is the product of the layer Jacobians from state l to state m. A tangent u is pushed forward (J u), a
cotangent v pulled back (J^T v); both, and the states themselves, are numbers with an exponent, so their logarithms are
right at any depth. All logarithms are natural and all norms Euclidean. A true zero is -inf; underflow does not happen.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key, Shaped

from vgjax.checks import ArrayLike, RandomKey, finite_in, kinds, nan_is_data, whole_numbers
from vgjax.floatexp import ZERO, FloatExp, from_float, normalize
from vgjax.initializers import Scales
from vgjax.networks.exactness import marked_backward, marked_forward
from vgjax.networks.layer import Layer
from vgjax.networks.layers import bind, by_stage, checked_input, describe_states, joined, state_shapes
from vgjax.networks.network import Network
from vgjax.networks.parameters import Parameters
from vgjax.values import by_content, on_device


@by_content
class Push(NamedTuple):
    """What one forward pass tells, at every layer.

    Attributes:
        log_mean_square: ln of the mean square of the state s_l, shape ``(depth + 1,)``.
        first_inexact_layer: first state that cannot be computed, because one before it left the float range where the
            block grows like no power, or all its units underflow to zero; NaN stands from there on, and in every
            product that goes through there. depth + 1 if there is none, as for every activation of the library but sin,
            softsign and arctan at absurd scales. Shape ``()``.
        first_nan_layer: first state with a NaN or an infinity of the network's own making, with NaN from there on;
            depth + 1 if there is none. Shape ``()``.
        log_gain: ln ||J_{l<-0} u||, shape ``(depth + 1,)``, or ``(tangents, depth + 1)`` for several u.
    """

    log_mean_square: Float[Array, " layers"]
    first_inexact_layer: Int[Array, ""]
    first_nan_layer: Int[Array, ""]
    log_gain: Float[Array, "*rows layers"]


@by_content
class Pull(NamedTuple):
    """What one reverse pass tells.

    Attributes:
        log_mean_square: ln of the mean square of the state s_l, shape ``(depth + 1,)``.
        first_inexact_layer, first_nan_layer: as for `Push`.
        log_gain: ln ||J_{m<-l}^T v||, shape ``(depth + 1,)`` over l for one m, ``(depths, depth + 1)`` for several;
            NaN where l > m, where there is no such product.
    """

    log_mean_square: Float[Array, " layers"]
    first_inexact_layer: Int[Array, ""]
    first_nan_layer: Int[Array, ""]
    log_gain: Float[Array, "*rows layers"]


@by_content
class States(NamedTuple):
    """The hidden states of one network.

    Attributes:
        direction: s_l / ||s_l||, one array a stage and one for s_L, each with a leading layer axis; a single array of
            shape ``(depth + 1, *state)`` where all states have one shape. 0 where the state is exactly 0, NaN where its
            norm is.
        log_norm: ln ||s_l||, shape ``(depth + 1,)``; -inf where the state is exactly 0.
        first_inexact_layer, first_nan_layer: as for `Push`.
    """

    direction: Any
    log_norm: Float[Array, " layers"]
    first_inexact_layer: Int[Array, ""]
    first_nan_layer: Int[Array, ""]


@kinds
@nan_is_data
def states(parameters: Parameters, scales: Scales, x: ArrayLike) -> States:
    """The hidden states s_0 ... s_L, their directions and ln of their norms apart: s_l = exp(log_norm_l) direction_l.

    Args:
        parameters, scales: as for `forward`.
        x: one input, shape ``network.input_shape``.

    Returns:
        `States`.

    Raises:
        ValueError: unknown scales, or an input of the wrong shape.
    """
    return _states(parameters, scales, checked_input(parameters, scales, x))


@jax.jit
def _states(parameters: Parameters, scales: Scales, x: Array) -> States:
    layers = bind(parameters, scales, x)
    walked = layers.walk(layers.first_state(x))

    def direction(state: FloatExp, log_norm: Array) -> Array:
        norm = jnp.sqrt(jnp.sum(state.value**2))  # normalized: its squares stay within the float range
        unit = jnp.where(norm > 0, state.value / jnp.where(norm > 0, norm, 1), 0)
        return jnp.where(jnp.isnan(log_norm), jnp.nan, unit)

    last = jax.tree.map(lambda a: a[None], walked.last)
    exact = by_stage(parameters.network, walked.log_norms[:-1])
    log_norms = [*exact, walked.log_norms[-1:]]
    directions = [jax.vmap(direction)(*each) for each in zip((*walked.reports, last), log_norms, strict=True)]
    one_shape = len(set(state_shapes(parameters.network))) == 1
    _, *first = describe_states(parameters.network, walked)
    return States(joined(directions) if one_shape else directions, walked.log_norms, *first)


# --- forward --------------------------------------------------------------------------------------------------------


@kinds
@nan_is_data
def push_forward(
    parameters: Parameters,
    scales: Scales,
    x: ArrayLike,
    tangent: ArrayLike | None = None,
    *,
    key: RandomKey | None = None,
) -> Push:
    """ln ||J_{l<-0} u|| at every depth l, from one forward pass.

    Memory beyond the kernels does not grow with depth. The first l layers are the l-layer network.

    Args:
        parameters, scales: as for `forward`.
        x: one input.
        tangent: u, shape ``state``, or several with a leading axis, as they are (not normalized); left out, one random
            direction of norm 1.
        key: draws the random direction (default ``jax.random.key(0)``).

    Returns:
        `Push`.

    Raises:
        ValueError: unknown scales, or an input or tangent of the wrong shape.
    """
    x = checked_input(parameters, scales, x)
    shape = state_shapes(parameters.network)[0]
    u, several = _given_or_random("tangent", tangent, key, shape, several=True)
    result = _push_all(parameters, scales, x, u)
    return result if several else result._replace(log_gain=result.log_gain[0])


def push(parameters: Parameters, scales: Scales, x: Shaped[Array, "*input"], u: Float[Array, "*state"]) -> Push:
    """`push_forward` of one tangent, unchecked and not compiled by itself: what sweeps `vmap`."""
    layers = bind(parameters, scales, x)

    def visit(layer: Layer, state: FloatExp, u: FloatExp, _: None) -> tuple[FloatExp, Array]:
        u, log_u = normalize(u)
        return layer.push(state, u), log_u

    walked = layers.walk(layers.first_state(x), visit, from_float(u.astype(parameters.dtype)))
    log_gain = joined([*walked.reports, normalize(walked.carry, once=True)[1][None]])
    return Push(*describe_states(parameters.network, walked), marked_forward(walked.exactness, log_gain))


def push_all(
    parameters: Parameters, scales: Scales, x: Shaped[Array, "*input"], tangents: Float[Array, "tangents *state"]
) -> Push:
    """`push` of several tangents, shape ``(tangents, *state)``; ``log_gain`` has that leading axis."""
    # The state does not depend on the tangent, so `vmap` computes it once.
    pushed = jax.vmap(lambda u: tuple(push(parameters, scales, x, u)), out_axes=(None, None, None, 0))(tangents)
    return Push(*pushed)


_push_all = jax.jit(push_all)


# --- backward -------------------------------------------------------------------------------------------------------


@kinds
@nan_is_data
def pull_back(
    parameters: Parameters,
    scales: Scales,
    x: ArrayLike,
    cotangent: ArrayLike | None = None,
    *,
    key: RandomKey | None = None,
) -> Pull:
    """ln ||J_{L<-l}^T v|| for every layer l, from one forward and one reverse pass.

    Args:
        parameters, scales: as for `forward`.
        x: one input.
        cotangent: v at the last state, as it is; left out, a random direction of norm 1.
        key: draws the random direction (default ``jax.random.key(0)``).

    Returns:
        `Pull`, ``log_gain`` of shape ``(depth + 1,)``.

    Raises:
        ValueError: unknown scales, or an input or cotangent of the wrong shape.
    """
    x = checked_input(parameters, scales, x)
    v, _ = _given_or_random("cotangent", cotangent, key, state_shapes(parameters.network)[-1])
    result = _pull_back(parameters, scales, x, v, (parameters.network.depth,))
    return result._replace(log_gain=result.log_gain[0])


@kinds
@nan_is_data
def gain_matrix(
    parameters: Parameters,
    scales: Scales,
    x: ArrayLike,
    depths: Sequence[int] | None = None,
    *,
    key: RandomKey | None = None,
) -> Pull:
    """ln ||J_{m<-l}^T v|| for all l and a set of depths m, in one reverse scan that carries one cotangent a depth.

    Args:
        parameters, scales: as for `forward`.
        x: one input.
        depths: the m, each from 0 to L; left out, every depth up to 64 layers, else 64 of them evenly spread.
        key: draws v, a random direction of norm 1 at each m, from ``fold_in(key, m)`` (default ``jax.random.key(0)``).

    Returns:
        `Pull`, ``log_gain`` of shape ``(depths, depth + 1)``.

    Raises:
        ValueError: unknown scales, an input of the wrong shape, or a depth the network does not have.
    """
    x, last = checked_input(parameters, scales, x), parameters.network.depth
    if depths is None:
        depths = np.unique(np.linspace(0, last, min(last + 1, 64)).round().astype(int)).tolist()
    wanted = whole_numbers("depths", depths, 0, last)
    return _pull_back(parameters, scales, x, jax.random.key(0) if key is None else key, tuple(wanted))


@functools.partial(jax.jit, static_argnames=("depths",))
def _pull_back(parameters: Parameters, scales: Scales, x: Array, seed: Array, depths: tuple[int, ...]) -> Pull:
    """The rows of one cotangent a depth.

    ``seed`` is the cotangent itself, shape ``(1, *state)``, or a key to draw each with.
    """
    network, layers, at = parameters.network, bind(parameters, scales, x), jnp.asarray(depths)
    forward = layers.walk(layers.first_state(x))
    cotangents = {shape: _cotangents(seed, at, shape, parameters.dtype) for shape in set(state_shapes(network))}

    def injected(rows: FloatExp, layer: Array) -> FloatExp:
        shape, here = rows.value.shape[1:], at == layer
        mask = here.reshape(-1, *(1,) * len(shape))
        return FloatExp(jnp.where(mask, cotangents[shape], rows.value), jnp.where(here, 0, rows.exponent))

    def visit(layer: Layer, rows: FloatExp, extra: tuple[FloatExp, Array]) -> tuple[FloatExp, Array]:
        state, behind = extra
        rows, log_rows = jax.vmap(normalize)(injected(rows, behind))
        return jax.vmap(functools.partial(layer.pull, state))(rows), log_rows

    last = forward.last.value
    nothing = FloatExp(jnp.zeros((len(depths), *last.shape), last.dtype), jnp.full(len(depths), ZERO, jnp.int32))
    behind = by_stage(network, jnp.arange(network.depth) + 1)
    rows, logs = layers.scan(nothing, visit, extras=list(zip(forward.reports, behind, strict=True)), reverse=True)
    first = jax.vmap(normalize)(injected(rows, jnp.zeros((), int)))[1]
    log_gain = joined([first[None], *logs]).T
    exists = jnp.arange(network.depth + 1) <= at[:, None]
    log_gain = marked_backward(forward.exactness, jnp.where(exists, log_gain, 0), at)
    return Pull(*describe_states(network, forward), jnp.where(exists, log_gain, jnp.nan))


def _cotangents(
    seed: Array, at: Int[Array, " depths"], shape: tuple[int, ...], dtype: Any
) -> Float[Array, "rows *state"]:
    """What enters at each depth whose state has that shape, ``(depths, *shape)``."""
    if jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        return jax.vmap(lambda m: direction(jax.random.fold_in(seed, m), shape, dtype))(at)
    # A given cotangent belongs to the last state; states of another shape take none.
    return seed.astype(dtype) if shape == seed.shape[1:] else jnp.zeros((1, *shape), dtype)


# --- directions -----------------------------------------------------------------------------------------------------


def _given_or_random(
    name: str, given: ArrayLike | None, key: Array | None, shape: tuple[int, ...], *, several: bool = False
) -> tuple[Array, bool]:
    """Given directions, shape ``(n, *state)``, or one random one of norm 1; and whether there was a leading axis."""
    if given is None:
        return direction(jax.random.key(0) if key is None else key, shape, jnp.float32)[None], False
    finite_in(name, given, jnp.result_type(float))
    given = on_device(given)
    if given.shape == shape:
        return given[None], False
    if several and given.shape[1:] == shape:
        return given, True
    raise ValueError(f"{name} must have the state's shape {shape}, got {given.shape}")


@functools.partial(jax.jit, static_argnums=(1, 2))
def directions(key: Key[Array, ""], network: Network, count: int) -> Float[Array, "{count} *state"]:
    """Random directions of norm 1 at the first state, shape ``(count, *state)``."""
    return jax.vmap(lambda k: direction(k, state_shapes(network)[0], jnp.float32))(jax.random.split(key, count))


@functools.partial(jax.jit, static_argnums=(1, 2))
def direction(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any) -> Float[Array, "*state"]:
    """A random direction of norm 1, uniform on the sphere."""
    v = jax.random.normal(key, shape, dtype)
    return v / jnp.sqrt(jnp.sum(v * v))
