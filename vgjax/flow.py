"""Gradient flow: log-domain Jacobian products of one network, forward and backward.

J_{m<-l} is the product of the layer Jacobians from state l to state m. A tangent u is pushed forward (J u), a
cotangent v pulled back (J^T v); both, and the states themselves, are scaled numbers, so their logarithms are right at
any depth. All logarithms are natural and all norms Euclidean. A true zero is -inf; underflow does not happen.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from vgjax.exponents import LN2, ZERO, Scaled, normalize, plain, window
from vgjax.initializers import Scales
from vgjax.layers import (
    Layer,
    Parameters,
    by_stage,
    fed,
    parameter_dtype,
    per_layer,
    scan_layers,
    shape_after,
    stem_layer,
)
from vgjax.networks import Network, Stage, check_input, check_scales


class Push(NamedTuple):
    """What one forward pass tells, at every depth.

    Attributes:
        log_mean_square: ln of the mean square of the state s_l, shape ``(depth + 1,)``.
        log_gain: ln ||J_{l<-0} u||, shape ``(depth + 1,)``, or ``(tangents, depth + 1)`` for several u.
        left_range: first layer whose state left the float range at an end where the activation is not asymptotically
            linear (nor flat), so that what follows is meaningless; depth + 1 if there is none, as for every activation
            of the library but sin, softsign and arctan at absurd scales.
    """

    log_mean_square: Array
    left_range: Array
    log_gain: Array


class Pull(NamedTuple):
    """What one reverse pass tells.

    Attributes:
        log_mean_square: ln of the mean square of the state s_l, shape ``(depth + 1,)``.
        log_gain: ln ||J_{m<-l}^T v||, shape ``(depth + 1,)`` over l for one m, ``(depths, depth + 1)`` for several;
            NaN where l > m, where there is no such product.
        left_range: as for `Push`.
    """

    log_mean_square: Array
    left_range: Array
    log_gain: Array


# --- forward --------------------------------------------------------------------------------------------------------


def push_forward(
    network: Network,
    parameters: Parameters,
    scales: Scales,
    x: ArrayLike,
    tangents: ArrayLike | None = None,
    *,
    key: Array | None = None,
) -> Push:
    """ln ||J_{l<-0} u|| at every depth l, from one forward pass.

    Memory beyond the kernels does not grow with depth. The first l layers are the l-layer network.

    Args:
        network, parameters, scales: as for `forward`.
        x: one input.
        tangents: u, shape ``(tangents, *state)`` or ``(*state)``, as they are (not normalized); left out, one random
            direction of norm 1.
        key: draws the random direction (default ``jax.random.key(0)``).

    Returns:
        `Push`.

    Raises:
        ValueError: unknown scales, or an input or tangent of the wrong shape.
    """
    check_scales(network, scales)
    check_input(network, x)
    shape = state_shapes(network)[0]
    u = _given_directions(tangents, key, shape, "tangents")
    result = _push_forward(parameters, scales, jnp.asarray(x), u)
    several = tangents is not None and jnp.ndim(tangents) > len(shape)
    return result if several else result._replace(log_gain=result.log_gain[0])


def push(parameters: Parameters, scales: Scales, x: Array, u: Array) -> Push:
    """`push_forward` of one tangent, unchecked and untransformed: what sweeps `vmap`."""

    def visit(layer: Layer, carry: tuple[Scaled, Scaled], _: None) -> tuple[tuple[Scaled, Scaled], tuple[Array, Array]]:
        (state, log_state), (u, log_u) = normalize(carry[0]), normalize(carry[1])
        return (layer.step(state), layer.push(state, u)), (log_state, log_u)

    carry = (first_state(parameters, scales, x), plain(u.astype(parameter_dtype(parameters))))
    (state, ju), logs = scan_layers(fed(parameters, x), scales, carry, visit)
    log_states, log_us = joined([*logs, (normalize(state)[1][None], normalize(ju)[1][None])])
    return Push(*states_reading(parameters.network, log_states), log_us)


def push_all(parameters: Parameters, scales: Scales, x: Array, tangents: Array) -> Push:
    """`push` of several tangents, shape ``(tangents, *state)``; ``log_gain`` has that leading axis."""
    # The state does not depend on the tangent, so `vmap` computes it once.
    found = jax.vmap(lambda u: tuple(push(parameters, scales, x, u)), out_axes=(None, None, 0))(tangents)
    return Push(*found)


_push_forward = jax.jit(push_all)


# --- backward -------------------------------------------------------------------------------------------------------


def pull_back(
    network: Network,
    parameters: Parameters,
    scales: Scales,
    x: ArrayLike,
    cotangent: ArrayLike | None = None,
    *,
    key: Array | None = None,
) -> Pull:
    """ln ||J_{L<-l}^T v|| for every layer l, from one forward and one reverse pass.

    Args:
        network, parameters, scales: as for `forward`.
        x: one input.
        cotangent: v at the last state, as it is; left out, a random direction of norm 1.
        key: draws the random direction (default ``jax.random.key(0)``).

    Returns:
        `Pull`, ``log_gain`` of shape ``(depth + 1,)``.

    Raises:
        ValueError: unknown scales, or an input or cotangent of the wrong shape.
    """
    check_scales(network, scales)
    check_input(network, x)
    v = _given_directions(cotangent, key, state_shapes(network)[-1], "cotangent")
    result = _pull_back(parameters, scales, jnp.asarray(x), v, (network.depth,))
    return result._replace(log_gain=result.log_gain[0])


def gain_matrix(
    network: Network,
    parameters: Parameters,
    scales: Scales,
    x: ArrayLike,
    depths: Sequence[int] | None = None,
    *,
    key: Array | None = None,
) -> Pull:
    """ln ||J_{m<-l}^T v|| for all l and a set of depths m, in one reverse scan that carries one cotangent a depth.

    Args:
        network, parameters, scales: as for `forward`.
        x: one input.
        depths: the m, each from 0 to L; left out, every depth up to 64 layers, else 64 of them evenly spread.
        key: draws v, a random direction of norm 1 at each m, from ``fold_in(key, m)`` (default ``jax.random.key(0)``).

    Returns:
        `Pull`, ``log_gain`` of shape ``(depths, depth + 1)``.

    Raises:
        ValueError: unknown scales, an input of the wrong shape, or a depth the network does not have.
    """
    check_scales(network, scales)
    check_input(network, x)
    if depths is None:
        depths = np.unique(np.linspace(0, network.depth, min(network.depth + 1, 64)).round().astype(int)).tolist()
    for m in depths:
        if isinstance(m, bool) or not isinstance(m, (int, np.integer)) or not 0 <= m <= network.depth:
            raise ValueError(f"depths must be whole numbers from 0 to {network.depth}, got {m!r}")
    key = jax.random.key(0) if key is None else key
    return _pull_back(parameters, scales, jnp.asarray(x), key, tuple(int(m) for m in depths))


@functools.partial(jax.jit, static_argnames=("depths",))
def _pull_back(parameters: Parameters, scales: Scales, x: Array, seed: Array, depths: tuple[int, ...]) -> Pull:
    """The rows of one cotangent a depth.

    ``seed`` is the cotangent itself, shape ``(1, *state)``, or a key to draw each with.
    """
    dtype = parameter_dtype(parameters)
    start, parameters = first_state(parameters, scales, x), fed(parameters, x)
    states, last, log_states = states_before(parameters, scales, start)
    at = jnp.asarray(depths)

    def fresh(shape: tuple[int, ...]) -> Array:
        if jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
            return jax.vmap(lambda m: direction(jax.random.fold_in(seed, m), shape, dtype))(at)
        # A given cotangent belongs to the last state; states of another shape take none.
        return seed.astype(dtype) if shape == seed.shape[1:] else jnp.zeros((1, *shape), dtype)

    cotangents = {shape: fresh(shape) for shape in set(state_shapes(parameters.network))}

    def injected(rows: Scaled, layer: Array) -> Scaled:
        shape, here = rows.value.shape[1:], at == layer
        mask = here.reshape(-1, *(1,) * len(shape))
        return Scaled(jnp.where(mask, cotangents[shape], rows.value), jnp.where(here, 0, rows.exponent))

    def visit(layer: Layer, rows: Scaled, extra: tuple[Scaled, Array]) -> tuple[Scaled, Array]:
        state, behind = extra
        rows, log_rows = jax.vmap(normalize)(injected(rows, behind))
        return jax.vmap(functools.partial(layer.pull, state))(rows), log_rows

    nothing = Scaled(jnp.zeros((len(depths), *last.value.shape), dtype), jnp.full(len(depths), ZERO, jnp.int32))
    behind = by_stage(parameters.network, jnp.arange(parameters.network.depth) + 1)
    rows, logs = scan_layers(
        parameters, scales, nothing, visit, extras=list(zip(states, behind, strict=True)), reverse=True
    )
    first = jax.vmap(normalize)(injected(rows, jnp.zeros((), int)))[1]
    log_gain = joined([first[None], *logs]).T
    exists = jnp.arange(parameters.network.depth + 1) <= at[:, None]
    return Pull(*states_reading(parameters.network, log_states), jnp.where(exists, log_gain, jnp.nan))


def states_before(parameters: Parameters, scales: Scales, state: Scaled) -> tuple[list[Scaled], Scaled, Array]:
    """Normalized states before every block (one a stage, leading layer axis), the last one, ln of all L + 1 norms.

    ``state`` is the first one, not normalized; the parameters of a fed network are `fed`.
    """

    def visit(layer: Layer, state: Scaled, _: None) -> tuple[Scaled, tuple[Scaled, Array]]:
        state, log_norm = normalize(state)
        return layer.step(state), (state, log_norm)

    last, outputs = scan_layers(parameters, scales, state, visit)
    last, log_last = normalize(last)
    return [states for states, _ in outputs], last, joined([*(logs for _, logs in outputs), log_last[None]])


@jax.jit
def visited_states(parameters: Parameters, scales: Scales, x: Array) -> Scaled:
    """The normalized states s_0 ... s_L of one pass, with a leading layer axis.

    For networks whose states all have one shape.
    """
    stages, last, _ = states_before(fed(parameters, x), scales, first_state(parameters, scales, x))
    return joined([*stages, jax.tree.map(lambda a: a[None], last)])


def first_state(parameters: Parameters, scales: Scales, x: Array) -> Scaled:
    """s_0, not normalized."""
    stem = stem_layer(parameters, scales)
    x = x.astype(parameter_dtype(parameters))
    return stem.step(normalize(plain(x))[0]) if stem else plain(x)


# --- shared -----------------------------------------------------------------------------------------------------------


@functools.cache
def state_shapes(network: Network) -> tuple[tuple[int, ...], ...]:
    """Shapes of the first state and of the state behind every stage."""

    x, at_layer = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (network.input_shape, network.input_shape[1:]))
    states = [shape_after(network.stem, x) if network.stem else x]
    for stage in network.stages:
        states.append(shape_after(stage.spec, states[-1], at_layer if stage.fed else None))
    return tuple(state.shape for state in states)


def section(parameters: Parameters, scales: Scales, start: int, stop: int) -> tuple[Parameters, Scales]:
    """Blocks ``start`` to ``stop`` as a network of their own, without stem and head, and their scales."""
    network, shapes = parameters.network, state_shapes(parameters.network)
    stages: list[Stage] = []
    owns: list[Any] = []
    shape, first = shapes[-1], 0
    for stage, own, before in zip(network.stages, parameters.stages, shapes, strict=False):
        low, high = max(start - first, 0), min(stop - first, stage.depth)
        first += stage.depth
        if low < high:
            shape = shape if stages else before
            stages.append(replace(stage, depth=high - low))
            owns.append(own if stage.tied else jax.tree.map(lambda a, low=low, high=high: a[low:high], own))
    along, inputs = jax.tree.map(lambda s: s[start:stop], (per_layer(parameters, scales), parameters.inputs))
    alone = replace(network, stem=None, stages=tuple(stages), head=None, input_shape=shape)
    return Parameters({}, tuple(owns), {}, alone, inputs), along


def _given_directions(given: ArrayLike | None, key: Array | None, shape: tuple[int, ...], name: str) -> Array:
    """Given directions, shape ``(n, *state)``, or one random one of norm 1."""
    if given is None:
        return direction(jax.random.key(0) if key is None else key, shape, jnp.float32)[None]
    given = jnp.asarray(given)
    if given.shape == shape:
        return given[None]
    if name == "tangents" and given.shape[1:] == shape:
        return given
    raise ValueError(f"{name} must have the state's shape {shape}, got {given.shape}")


def directions(key: Array, network: Network, count: int) -> Array:
    """Random directions of norm 1 at the first state, shape ``(count, *state)``."""
    return jax.vmap(lambda k: direction(k, state_shapes(network)[0], jnp.float32))(jax.random.split(key, count))


@functools.partial(jax.jit, static_argnums=(1, 2))
def direction(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """A random direction of norm 1, uniform on the sphere."""
    v = jax.random.normal(key, shape, dtype)
    return v / jnp.sqrt(jnp.sum(v * v))


def joined(series: list[Any]) -> Any:
    """The series of the stages as one over all layers."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *series)


def states_reading(network: Network, log_norms: Array) -> tuple[Array, Array]:
    """ln of the mean squares of the states s_0 ... s_L from ln of their norms, and ``left_range``."""
    sizes = [int(np.prod(shape)) for shape in state_shapes(network)]
    per_state = np.repeat(sizes, [stage.depth for stage in network.stages] + [1])
    far = window(log_norms.dtype) * LN2
    below, above = network.covered
    left = (jnp.isfinite(log_norms) & (log_norms < -far) & (not below)) | ((log_norms > far) & (not above))
    first = jnp.where(jnp.any(left), jnp.argmax(left), network.depth + 1)
    return 2 * log_norms - jnp.log(jnp.asarray(per_state, log_norms.dtype)), first.astype(jnp.int32)
