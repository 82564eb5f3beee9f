"""What passes without kernels read of one network: the same as those with kernels, under the same names."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from vgjax.floatexp import LINEAR, ZERO, FloatExp, from_float, normalize
from vgjax.implicit.passes import (
    At,
    Bundle,
    Undrawn,
    UndrawnLayers,
    backward_chain,
    bind_undrawn,
    each,
    forward_chain,
    no_rows,
    normalized,
    part_of,
    second_state,
)
from vgjax.implicit.plans import AffineNode, Plan
from vgjax.initializers import Scales
from vgjax.measure import losses
from vgjax.measure.correlation import Correlation, Second, read_pair
from vgjax.measure.flow import Pull, Push, direction
from vgjax.measure.gradients import GradientFlow, cotangents_of_loss, marked_gradients, without_batch
from vgjax.measure.one_layer import slope_statistics
from vgjax.networks.exactness import (
    Exactness,
    exact_at,
    exactness,
    marked_backward,
    marked_forward,
)
from vgjax.networks.layer import degrees
from vgjax.networks.layers import by_path, by_stage, joined
from vgjax.networks.network import Network, state_sizes


class Walked(NamedTuple):
    """What a forward pass leaves.

    Attributes:
        before: the rows before every layer, normalized, one tree a stage.
        last: those behind the last.
        log_norms: ln of the norms of the states, shape ``(inputs, depth + 1)``; NaN where they mean nothing.
        log_tangents: of the tangents, shape ``(tangents, depth + 1)``, not marked.
        exactness: of every input's states.
    """

    before: list[Bundle]
    last: Bundle
    log_norms: Array
    log_tangents: Array
    exactness: Exactness


def walk(layers: UndrawnLayers, xs: Float[Array, "inputs *input"], of: tuple[int, ...], rows_at: Any) -> Walked:
    """The forward pass.

    Args:
        xs: the inputs.
        of: for every tangent the input that it is at.
        rows_at: states before the first layer -> the `Bundle` there.
    """

    def visit(plan: Plan, at: At, rows: Bundle, extra: None) -> tuple[Bundle, Any]:
        rows, logs = normalized(rows)
        after, _, worries = forward_chain(plan, at, rows, logs)
        return after, (rows, logs.states, logs.tangents, worries)

    last, outs = layers.scan(rows_at(_first_rows(layers, xs)), visit, of=of)
    before, *series = zip(*outs, strict=True)
    log_states, log_tangents, worries = map(joined, series)
    last, logs = normalized(last)
    log_norms, log_tangents = (
        jnp.concatenate([along, end[None]]).T
        for along, end in ((log_states, logs.states), (log_tangents, logs.tangents))
    )
    found = jax.vmap(exactness)(log_norms, jax.tree.map(lambda a: a.T, worries))
    return Walked(list(before), last, marked_forward(found, log_norms), log_tangents, found)


def _first_rows(layers: UndrawnLayers, xs: Array) -> FloatExp:
    """s_0 of every input, normalized."""
    states = _inputs(layers, xs)
    plan, at = layers.stem()
    return forward_chain(plan, at, *normalized(_alone(states)))[0].states if plan else states


def _inputs(layers: UndrawnLayers, xs: Array) -> FloatExp:
    return each(jax.vmap(from_float)(xs.astype(layers.draw.dtype)))[0]


def _mean_squares(network: Network, log_norms: Array) -> Array:
    return 2 * log_norms - np.log(state_sizes(network)).astype(log_norms.dtype)


def _alone(states: FloatExp) -> Bundle:
    return Bundle(states, no_rows(states), no_rows(states))


# --- one direction ----------------------------------------------------------------------------------------------------


def push_undrawn(draw: Undrawn, scales: Scales, x: Float[Array, "*input"], tangents: Float[Array, "k *state"]) -> Push:
    """`vgjax.push_forward` of several tangents; ``log_gain`` has that leading axis."""
    layers, k = bind_undrawn(draw, scales), len(tangents)
    u = jax.vmap(from_float)(tangents.astype(draw.dtype))
    walked = walk(layers, x[None], (0,) * k, lambda states: Bundle(states, no_rows(states), u))
    found = jax.tree.map(lambda a: a[0], walked.exactness)
    return Push(
        _mean_squares(draw.network, walked.log_norms[0]),
        found.first_inexact_layer,
        found.first_nan_layer,
        marked_forward(found, walked.log_tangents),
    )


def push_each_undrawn(
    draw: Undrawn, scales: Scales, xs: Float[Array, "inputs *input"], tangents: Float[Array, "k *state"]
) -> Push:
    """`vgjax.push_forward` of several inputs, each with all tangents, through the same kernels; every field has a
    leading axis of inputs, and ``log_gain`` one of tangents behind it."""
    layers, m, k = bind_undrawn(draw, scales), len(xs), len(tangents)
    u = jax.vmap(from_float)(jnp.tile(tangents.astype(draw.dtype), (m, 1)))
    of = tuple(i for i in range(m) for _ in range(k))
    walked = walk(layers, xs, of, lambda states: Bundle(states, no_rows(states), u))
    logs = walked.log_tangents.reshape(m, k, -1)
    found = walked.exactness
    return Push(
        _mean_squares(draw.network, walked.log_norms),
        found.first_inexact_layer,
        found.first_nan_layer,
        jax.vmap(marked_forward)(found, logs),
    )


def pull_back_undrawn(
    draw: Undrawn, scales: Scales, x: Float[Array, "*input"], seed: Array, depths: tuple[int, ...]
) -> Pull:
    """`vgjax.gain_matrix`: rows of one cotangent a depth, all through the same kernels.

    Args:
        seed: a key that they are drawn by, each of norm 1; or the cotangents, shape ``(depths, *state)``, of networks
            whose states have one size.
        depths: where they start.
    """
    layers, network, at = bind_undrawn(draw, scales), draw.network, jnp.asarray(depths)
    walked = walk(layers, x[None], (), _alone)
    sizes = state_sizes(network)
    of = (0,) * len(depths)

    def entering(size: int) -> Array:
        if not jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
            return seed.astype(draw.dtype)
        return jax.vmap(lambda m: direction(jax.random.fold_in(seed, m), (size,), draw.dtype))(at)

    injected = functools.partial(_injected, {size: entering(size) for size in set(sizes.tolist())}, at)

    def visit(plan: Plan, where: At, rows: FloatExp, extra: Any) -> tuple[FloatExp, Array]:
        before, behind = extra
        rows, logs = each(injected(rows, behind))
        _, passed, _ = forward_chain(plan, where._replace(of=()), *normalized(before))
        return backward_chain(plan, where, passed, rows, gradients=False)[0], logs

    nothing = FloatExp(jnp.zeros((len(of), sizes[-1]), draw.dtype), jnp.full(len(of), ZERO, jnp.int32))
    behind = by_stage(network, jnp.arange(network.depth) + 1)
    extras = list(zip(walked.before, behind, strict=True))
    rows, logs = layers.scan(nothing, visit, of=of, extras=extras, reverse=True)
    first = each(injected(rows, jnp.zeros((), int)))[1]
    log_gain, exists = joined([first[None], *logs]).T, jnp.arange(network.depth + 1) <= at[:, None]
    found = jax.tree.map(lambda a: a[0], walked.exactness)
    log_gain = marked_backward(found, jnp.where(exists, log_gain, 0), at)
    return Pull(
        _mean_squares(network, walked.log_norms[0]),
        found.first_inexact_layer,
        found.first_nan_layer,
        jnp.where(exists, log_gain, jnp.nan),
    )


def _injected(entering: dict[int, Array], at: Array, rows: FloatExp, layer: Array) -> FloatExp:
    """Rows with those that start at a layer in their places."""
    here = at == layer
    value = jnp.where(here[:, None], entering[rows.value.shape[1]], rows.value)
    return FloatExp(value, jnp.where(here, 0, rows.exponent))


# --- the gradient of a loss -------------------------------------------------------------------------------------------


def gradients_undrawn(
    draw: Undrawn,
    scales: Scales,
    xs: Float[Array, "batch *input"],
    ys: Float[Array, "batch *target"],
    loss: losses.Loss,
) -> GradientFlow:
    """`vgjax.gradient_flow` of a batch."""
    network, layers, of = draw.network, bind_undrawn(draw, scales), tuple(range(len(xs)))
    walked = walk(layers, xs, (), _alone)
    deltas, of_head, saturated, exact = _where_loss_enters(layers, walked, ys, loss, of)

    def visit(plan: Plan, at: At, rows: FloatExp, before: Bundle) -> tuple[FloatExp, Any]:
        rows, logs = each(rows)
        _, passed, _ = forward_chain(plan, at._replace(of=()), *normalized(before))
        pulled, of_parameters = backward_chain(plan, at, passed, rows, gradients=True)
        return pulled, (logs, of_parameters, _slopes(plan, at, before.states))

    rows, reports = layers.scan(deltas, visit, of=of, extras=walked.before, reverse=True)
    rows, first = each(rows)
    logs, by_parameter, slopes = zip(*reports, strict=True)
    nothing: dict[str, Array] = {}
    mean_square_slope, saturation = (a.T for a in joined(slopes))
    flow = GradientFlow(
        _mean_squares(network, walked.log_norms),
        jnp.concatenate([first[:, None], joined(logs).T], axis=1),
        of_head | _of_stem(layers, xs, rows, of) | by_path(list(by_parameter), [s.depth for s in network.stages]),
        nothing,
        nothing,
        nothing,
        mean_square_slope,
        saturation,
        saturated,
        walked.exactness.first_inexact_layer,
        walked.exactness.first_nan_layer,
    )
    return marked_gradients(flow, walked.exactness, exact)


def gradient_undrawn(
    draw: Undrawn, scales: Scales, x: Float[Array, "*input"], y: Float[Array, "1 *target"], loss: losses.Loss
) -> GradientFlow:
    """The same of one example, without the batch axis; y has one of length 1."""
    return without_batch(gradients_undrawn(draw, scales, x[None], y, loss))


def _where_loss_enters(
    layers: UndrawnLayers, walked: Walked, ys: Array, loss: losses.Loss, of: tuple[int, ...]
) -> tuple[FloatExp, dict[str, Array], Array, Array]:
    """dL/ds_L of every example, normalized; ln of the head's parameter gradients; which examples are saturated, and
    which gradients mean something."""
    network, (plan, at) = layers.network, layers.head(of)
    read, passed = walked.last.states, tuple[Any, ...]()
    if plan:
        after, passed, _ = forward_chain(plan, at._replace(of=()), *normalized(_alone(read)))
        read = each(after.states)[0]
    deltas, saturated = cotangents_of_loss(loss, network, jax.tree.map(lambda a: a[None], read), ys)
    deltas = jax.tree.map(lambda a: a[0], deltas)
    deltas = each(deltas._replace(value=deltas.value / losses.mean_over(loss, network, len(ys))))[0]
    ends, logs = LINEAR, dict[str, Array]()
    if plan:
        first = plan[0]
        if isinstance(first, AffineNode):
            ends = degrees(first.activity, walked.last.states.value.shape[1:], walked.log_norms.dtype, None)
        deltas, logs = backward_chain(plan, at, passed, deltas, gradients=True)
    last = walked.log_norms[:, -1]
    return deltas, logs, saturated, exact_at(ends, last) & ~jnp.isnan(last)


def _of_stem(layers: UndrawnLayers, xs: Array, rows: FloatExp, of: tuple[int, ...]) -> dict[str, Array]:
    """ln of the stem's parameter gradients, from the cotangents of the first state."""
    plan, at = layers.stem(of, keep=True)
    if not plan:
        return {}
    _, passed, _ = forward_chain(plan, at._replace(of=()), *normalized(_alone(_inputs(layers, xs))))
    return backward_chain(plan, at, passed, rows, gradients=True)[1]


def _slopes(plan: Plan, at: At, states: FloatExp) -> tuple[Array, Array]:
    """Mean of phi'^2 and the share of flat units, of a layer that is one activation and its kernel; else NaN."""
    if len(plan) == 1 and isinstance(plan[0], AffineNode):
        return slope_statistics(part_of(plan[0], at.inside(0)), states)
    unknown = jnp.full(len(states.exponent), jnp.nan, states.value.dtype)
    return unknown, unknown


# --- two inputs -------------------------------------------------------------------------------------------------------


def correlate_undrawn(
    draw: Undrawn, scales: Scales, x1: Float[Array, "*input"], x2: Float[Array, "*input"]
) -> Correlation:
    """`vgjax.correlation`: the second state travels as its difference from the first, which keeps its digits however
    close the two get."""
    layers, network = bind_undrawn(draw, scales), draw.network
    x1, x2 = (x.astype(draw.dtype) for x in (x1, x2))
    states, apart = (each(jax.vmap(from_float)(x[None]))[0] for x in (x1, x2 - x1))
    plan, at = layers.stem()
    rows = Bundle(states, apart, no_rows(states))
    rows = forward_chain(plan, at, *normalized(rows))[0] if plan else rows

    def visit(plan: Plan, at: At, rows: Bundle, extra: None) -> tuple[Bundle, Any]:
        rows, logs = normalized(rows)
        after, _, worries = forward_chain(plan, at, rows, logs)
        return after, (_read(rows), logs.states[0], worries)

    last, outs = layers.scan(rows, visit, of=())
    readings, logs, both_in_doubt = map(joined, zip(*outs, strict=True))
    worries, others = (jax.tree.map(lambda a, i=i: a[:, i], both_in_doubt) for i in (0, 1))
    end = _read(normalized(last)[0])
    log_first = jnp.concatenate([logs, normalize(jax.tree.map(lambda a: a[0], last.states))[1][None]])
    readings = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), readings, end)
    squares, firsts = [], []
    for log_norms, in_doubt in ((log_first, worries), (readings.log_norm, others)):
        found = exactness(log_norms, in_doubt)
        squares.append(_mean_squares(network, marked_forward(found, log_norms)))
        firsts.append((found.first_inexact_layer, found.first_nan_layer))
    both = jnp.stack(squares)
    lost = jnp.any(jnp.isnan(both), axis=0)
    c, one_minus_c = (jnp.where(lost, jnp.nan, a) for a in readings[:2])
    return Correlation(c, one_minus_c, both, *(jnp.minimum(*pair) for pair in zip(*firsts, strict=True)))


def _read(rows: Bundle) -> Any:
    first, other, apart = (jax.tree.map(lambda a: a[0], part) for part in (rows.states, second_state(rows), rows.apart))
    return read_pair(first, Second(other, apart))
