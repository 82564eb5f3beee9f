"""Gradients: where the gradient of a loss goes, layer by layer and parameter by parameter."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from vgjax import losses
from vgjax.checks import known
from vgjax.exponents import ZERO, Scaled, add, clipped, excess, normalize, plain, power_of_two, settled
from vgjax.flow import first_state, joined, states_before, states_reading
from vgjax.initializers import Scales
from vgjax.layers import Layer, Parameters, by_path, by_stage, fed, head_layer, scan_layers, stem_layer
from vgjax.networks import Network, about, check_input, check_scales

NAIVE_DTYPES = ("float32", "bfloat16", "float16")
FLAT = 0.05
"""A unit is saturated where |phi'| is below this share of phi's largest slope."""


class GradientFlow(NamedTuple):
    """Where the gradient of one network goes, layer by layer.

    ``batch`` below stands for the leading axis of the input, if it had one.

    Attributes:
        log_mean_square: ln of the mean square of the state s_l, shape ``(*batch, depth + 1)``.
        log_gradient: ln ||dL/ds_l||, shape ``(*batch, depth + 1)``; L is the loss of that example alone.
        log_parameter_gradient: by Flax path, ln of the norm of the gradient of the *summed* loss of the batch: shape
            ``(depth,)`` for the blocks (``"kernel"``, ``"bias"``), ``()`` for ``"stem/..."`` and ``"head/..."``. NaN
            in layers without that parameter. Of tied parameters, what each layer (each step of a recurrence)
            contributes.
        log_tied_gradient: by Flax path, ln of the norm of the whole gradient of tied parameters, the sum of those
            contributions, shape ``()``; empty if there are none.
        log_gradient_parts: by name, ln of the norm of a part of dL/ds_l, where states have parts (an LSTM's ``h`` and
            ``c``), shape ``(*batch, depth + 1)``.
        readings: by name, what blocks report of themselves (the mean of a gate), shape ``(*batch, depth)``.
        mean_square_slope: mean of phi'^2 over a block's units, shape ``(*batch, depth)``; NaN where not reported.
        saturation: share of a block's units on a flat end (`FLAT`), shape ``(*batch, depth)``; NaN where not reported.
        naive: by dtype, True where a plain backward pass in that dtype reads ||dL/ds_l|| as 0 or not finite, shape
            ``(*batch, depth + 1)``.
        saturated: True where the loss's own gradient is too small even for a scaled number (below e^-1.8e8):
            ``log_gradient`` is then an upper bound. Shape ``(*batch,)``.
        left_range: as for `Push`, shape ``(*batch,)``.
    """

    log_mean_square: Array
    log_gradient: Array
    log_parameter_gradient: dict[str, Array]
    log_tied_gradient: dict[str, Array]
    log_gradient_parts: dict[str, Array]
    readings: dict[str, Array]
    mean_square_slope: Array
    saturation: Array
    naive: dict[str, Array]
    saturated: Array
    left_range: Array


def gradient_flow(
    network: Network,
    parameters: Parameters,
    scales: Scales,
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    loss: str | None = None,
    key: Array | None = None,
    naive: Sequence[str] = ("float32",),
) -> GradientFlow:
    """Where the gradient of a loss goes: ln ||dL/ds_l|| of every layer, and of every parameter, at any depth.

    Parameter gradients are those of the ordinary parameters (`vgjax.scaled`: W = sigma_w Z, b = sigma_b z). A
    gradient that is zero by symmetry reads as rounding noise.

    Args:
        network, parameters, scales: as for `forward`.
        x: one input, or a batch with one more leading axis.
        y: what the loss compares the output with: integer labels (cross-entropy), numbers of the output's shape
            (squared error), or the output's cotangent; with the batch axis of x. Left out, a random cotangent of norm
            1.
        loss: ``"cross_entropy"`` (softmax), ``"squared_error"`` (half the sum of squares) or ``"cotangent"``; left
            out, read off y.
        key: draws the random cotangent (default ``jax.random.key(0)``).
        naive: the dtypes whose plain reading is compared, of float32, bfloat16 and float16; each costs a plain pass.

    Returns:
        `GradientFlow`.

    Raises:
        ValueError: unknown scales, loss or dtype, inputs or targets of the wrong shape, labels out of range.
    """
    check_scales(network, scales)
    check_input(network, x, batch=True)
    for dtype in naive:
        known("naive", dtype, NAIVE_DTYPES)
    xs = jnp.asarray(x)
    single = xs.shape == network.input_shape
    loss, ys = losses.targets(network, y, loss, key, 1 if single else len(xs), single)
    return (_of_one if single else _of_batch)(parameters, scales, xs, ys, loss, tuple(naive))


@functools.partial(jax.jit, static_argnames=("loss", "naive"))
def _of_one(
    parameters: Parameters, scales: Scales, x: Array, ys: Array, loss: str, naive: tuple[str, ...]
) -> GradientFlow:
    """Without the batch axis."""
    flow = _gradient_flow(parameters, scales, x[None], ys, loss, naive)
    of_batch: Any = {name: getattr(flow, name) for name in ("log_parameter_gradient", "log_tied_gradient")}
    without: Any = {name: {} for name in of_batch}
    return jax.tree.map(lambda a: a[0], flow._replace(**without))._replace(**of_batch)


def _gradient_flow(
    parameters: Parameters, scales: Scales, xs: Array, ys: Array, loss: str, naive: tuple[str, ...]
) -> GradientFlow:
    network = parameters.network
    states, last, log_states = jax.vmap(
        lambda x: states_before(fed(parameters, x), scales, first_state(parameters, scales, x)), out_axes=(1, 0, 0)
    )(xs)
    seeds, parameter_logs, saturated = _loss_cotangents(parameters, states, last, ys, loss)
    running = fed(parameters, jnp.moveaxis(xs, 0, 1)) if network.fed else parameters

    names = _part_names(network)

    def visit(layer: Layer, carry: Any, extra: tuple[Scaled, Scaled | None]) -> tuple[Any, Any]:
        (deltas, totals), (states, seed) = carry, extra
        before, gradients, log_deltas, parts = _back(layer.ordinary(), states, deltas, names)
        if layer.tied:
            totals = {path: add(settled(total), settled(gradients[path])) for path, total in totals.items()}
        named = _logs(gradients), _over(layer, Layer.readings, jax.vmap(clipped)(states))
        series = log_deltas, *_slope_statistics(layer, states)
        return (before if seed is None else _sum(before, seed), totals), (named, parts, series)

    carry = jax.tree.map(lambda a: a[-1], seeds), _zeros(network, parameters)
    extras = list(zip(states, _seeds_before(network, seeds), strict=True))
    (deltas, totals), outs = scan_layers(running, scales, carry, visit, extras=extras, reverse=True)
    first, log_first = jax.vmap(normalize)(deltas)
    stem = stem_layer(parameters, scales)
    if stem:
        before_stem = jax.vmap(lambda x: normalize(plain(x))[0])(xs.astype(first.value.dtype))
        logs = _logs(_back(stem.ordinary(), before_stem, first)[1])
        parameter_logs |= {f"stem/{path}": log for path, log in logs.items()}

    depths = [stage.depth for stage in network.stages]
    parameter_logs |= by_path([named[0] for named, *_ in outs], depths)
    readings = {name: a.T for name, a in by_path([named[1] for named, *_ in outs], depths).items()}
    log_deltas, mean_square_slope, saturation = (joined([series[i] for *_, series in outs]).T for i in range(3))
    parts = jax.tree.map(
        lambda first, series: jnp.concatenate([first[:, None], series.T], axis=1),
        _part_logs(first, names),
        joined([parts for _, parts, _ in outs]),
    )
    log_mean_square, left_range = jax.vmap(functools.partial(states_reading, network))(log_states)
    return GradientFlow(
        log_mean_square,
        jnp.concatenate([log_first[:, None], log_deltas], axis=1),
        parameter_logs,
        _logs(totals),
        parts,
        readings,
        mean_square_slope,
        saturation,
        {dtype: _naive_reading(parameters, scales, xs, ys, loss, dtype) for dtype in naive},
        saturated,
        left_range,
    )


_of_batch = functools.partial(jax.jit, static_argnames=("loss", "naive"))(_gradient_flow)


# --- where the loss enters ------------------------------------------------------------------------------------------


def _loss_cotangents(
    parameters: Parameters, states: list[Scaled], last: Scaled, ys: Array, loss: str
) -> tuple[Scaled, dict[str, Array], Array]:
    """dL/ds of every state that the head reads, with leading axes (states read, batch); ln of the head's parameter
    gradients; which examples are saturated."""
    network, head = parameters.network, head_layer(parameters)
    read = jax.tree.map(lambda a: a[None], last)
    read, ys = (joined([*states, read]), jnp.moveaxis(ys, 1, 0)) if network.every_step else (read, ys[None])
    read = jax.tree.map(lambda a: a[-len(ys) :], read)
    outputs = jax.vmap(jax.vmap(lambda s: normalize(head.step(s) if head else s)[0]))(read)
    ys = ys if loss == "cross_entropy" else ys.astype(outputs.value.dtype)
    deltas, saturated = jax.vmap(jax.vmap(functools.partial(losses.cotangent, loss)))(outputs, ys)
    if head is None:
        return deltas, {}, jnp.any(saturated, axis=0)
    lead = deltas.exponent.shape
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (read, deltas))
    before, gradients, *_ = _back(head, *flat)
    logs = {f"head/{path}": log for path, log in _logs(gradients).items()}
    return jax.tree.map(lambda a: a.reshape(*lead, *a.shape[1:]), before), logs, jnp.any(saturated, axis=0)


def _seeds_before(network: Network, seeds: Any) -> list[Any]:
    """By stage, what the loss adds to the cotangent before each layer; None where it reads the last state alone.

    The first state is not read, and what the last one adds is where the reverse pass begins.
    """
    if not network.every_step:
        return [None] * len(network.stages)
    return by_stage(network, jax.tree.map(lambda a: jnp.concatenate([0 * a[:1], a[:-1]]), seeds))


def _sum(a: Scaled, b: Scaled) -> Scaled:
    return jax.vmap(lambda a, b: add(settled(a), settled(b)))(a, b)


# --- one layer back -------------------------------------------------------------------------------------------------


def _over(layer: Layer, f: Callable[..., Any], *rows: Any) -> Any:
    """f(layer, row) for a batch of rows; the layer's own input, if it has one, has that leading axis too."""
    of_input = None if layer.input is None else 0
    return jax.vmap(lambda x, *row: f(replace(layer, input=x), *row), (of_input, *[0] * len(rows)))(layer.input, *rows)


def _back(
    layer: Layer, states: Scaled, deltas: Scaled, names: tuple[str, ...] = ()
) -> tuple[Scaled, dict[str, Scaled], Array, dict[str, Array]]:
    """One layer back, for a batch: the cotangents before it (not normalized), its summed parameter gradients, ln of the
    cotangents behind it, and of their parts."""
    deltas, log_deltas = jax.vmap(normalize)(deltas)
    before = _over(layer, Layer.pull, states, deltas)
    gradients = _parameter_gradients(layer, states, jax.vmap(clipped)(states), deltas)
    return before, gradients, log_deltas, _part_logs(deltas, names)


def _logs(gradients: dict[str, Scaled]) -> dict[str, Array]:
    return {path: normalize(gradient)[1] for path, gradient in gradients.items()}


def _part_names(network: Network) -> tuple[str, ...]:
    """The parts of its states, if all have the same."""
    names = {about(stage.spec).parts for stage in network.stages}
    return names.pop() if len(names) == 1 else ()


def _part_logs(deltas: Scaled, names: tuple[str, ...]) -> dict[str, Array]:
    def part(i: int) -> Array:
        return jax.vmap(lambda delta: normalize(delta._replace(value=delta.value[i]))[1])(deltas)

    return {name: part(i) for i, name in enumerate(names)}


def _zeros(network: Network, parameters: Parameters) -> dict[str, Scaled]:
    """Where the sums of the gradients of tied parameters begin, by path."""
    tied = [(stage, own) for stage, own in zip(network.stages, parameters.stages, strict=True) if stage.tied]
    leaves = (Layer(stage.spec, own, Scales()).trainable() for stage, own in tied)  # type: ignore[arg-type]
    return {path: Scaled(jnp.zeros_like(leaf), jnp.asarray(ZERO)) for found in leaves for path, leaf in found.items()}


def _parameter_gradients(layer: Layer, states: Scaled, h: Array, deltas: Scaled) -> dict[str, Scaled]:
    """sum_b dL_b/d(parameter), not normalized, by path.

    The derivative is taken at the clipped state. Beyond the float range it grows like 2^(k e), with a k for each
    parameter: 1 for a kernel that multiplies the state, 0 for a bias that is added to it (`Layer.degrees`).
    """
    beyond = jax.vmap(excess)(states)
    one = replace(layer, input=None if layer.input is None else layer.input[0])
    degrees = one.degrees(jax.tree.map(lambda a: a[0], states)).parameters

    def gradient(below: int, above: int) -> tuple[dict[str, Array], Array]:
        exponent = deltas.exponent + beyond * jnp.where(beyond < 0, below, above)
        common = jnp.max(exponent)
        weights = jax.vmap(lambda e: power_of_two(e - common, h.dtype))(exponent)
        v = deltas.value * weights.reshape(-1, *(1,) * (deltas.value.ndim - 1))
        at = lambda p: _over(layer.with_parameters(p), Layer.__call__, h)  # noqa: E731
        return jax.vjp(at, layer.trainable())[1](v)[0], common

    # One product per kind of parameter; what a kind does not use is never computed (XLA drops it).
    by_kind = {kind: gradient(*kind) for kind in set(degrees.values())}
    return {path: Scaled(by_kind[kind][0][path], by_kind[kind][1]) for path, kind in degrees.items()}


def _slope_statistics(layer: Layer, states: Scaled) -> tuple[Array, Array]:
    slopes, largest = _over(layer, Layer.slopes, jax.vmap(clipped)(states))
    largest = jnp.broadcast_to(largest, len(slopes))[:, None]
    slopes = slopes.reshape(len(slopes), -1)
    flat = jnp.where(jnp.isnan(slopes), jnp.nan, (jnp.abs(slopes) < FLAT * largest).astype(slopes.dtype))
    return jnp.mean(slopes**2, axis=1), jnp.mean(flat, axis=1)


def _naive_reading(parameters: Parameters, scales: Scales, xs: Array, ys: Array, loss: str, dtype: str) -> Array:
    """True where a plain pass in ``dtype`` reads sqrt(sum of squares) of dL/ds_l as 0 or not finite.

    Shape ``(batch, depth + 1)``.
    """

    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)

    def lost(g: Array) -> Array:
        norm = jnp.sqrt(jnp.sum(g * g))
        return (norm == 0) | ~jnp.isfinite(norm)

    network = parameters.network
    stem, head = stem_layer(parameters, scales), head_layer(parameters)

    def seed(h: Array, y: Array) -> Array:
        return jax.grad(lambda h: losses.value(loss, cast(head)(h) if head else h, cast(y)))(h)

    def one(x: Array, y: Array) -> Array:
        running = fed(parameters, x)
        h = cast(stem)(cast(x)) if stem else cast(x)
        last, states = scan_layers(running, scales, h, lambda layer, h, _: (cast(layer)(h), h))
        read = joined([*states, last[None]])[1:] if network.every_step else last[None]
        seeds = jax.vmap(seed)(read, y if network.every_step else y[None])

        def visit(layer: Layer, g: Array, extra: tuple[Array, Array | None]) -> tuple[Array, Array]:
            h, seed = extra
            before = jax.vjp(cast(layer), h)[1](g)[0]
            return before if seed is None else before + seed, lost(g)

        extras = list(zip(states, _seeds_before(network, seeds), strict=True))
        first, logs = scan_layers(running, scales, seeds[-1], visit, extras=extras, reverse=True)
        return joined([lost(first)[None], *logs])

    return jax.vmap(one)(xs, ys)
