"""Gradients: where the gradient of a loss goes, layer by layer and parameter by parameter."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from vgjax import losses
from vgjax.checks import known, untraced
from vgjax.exponents import ZERO, Scaled, clipped, normalize, plain, power_of_two, window
from vgjax.flow import first_state, joined, states_before, states_reading
from vgjax.initializers import Scales
from vgjax.layers import Layer, Parameters, draw, head_layer, scan_layers, stem_layer, unit_scales
from vgjax.networks import Network, Spec, check_input, check_scales

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
            in layers without that parameter.
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
    xs = xs[None] if single else xs
    loss, ys = losses.targets(network, y, loss, key, len(xs), single)
    result = _gradient_flow(parameters, scales, xs, ys, loss, tuple(naive))
    return result if not single else _first_example(result)


def _first_example(flow: GradientFlow) -> GradientFlow:
    first = jax.tree.map(lambda a: a[0], flow._replace(log_parameter_gradient={}))
    return first._replace(log_parameter_gradient=flow.log_parameter_gradient)


@functools.partial(jax.jit, static_argnames=("loss", "naive"))
def _gradient_flow(
    parameters: Parameters, scales: Scales, xs: Array, ys: Array, loss: str, naive: tuple[str, ...]
) -> GradientFlow:
    states, last, log_states = jax.vmap(
        lambda x: states_before(parameters, scales, first_state(parameters, scales, x)), out_axes=(1, 0, 0)
    )(xs)
    stem, head = stem_layer(parameters, scales), head_layer(parameters)
    parameter_logs: dict[str, Any] = {}

    outputs = jax.vmap(lambda s: normalize(head.step(s) if head else s)[0])(last)
    deltas, saturated = jax.vmap(functools.partial(losses.cotangent, loss))(
        outputs, ys.astype(outputs.value.dtype) if loss != "cross_entropy" else ys
    )
    if head:
        deltas, logs, _ = _back(head, last, deltas)
        parameter_logs |= {f"head/{path}": log for path, log in logs.items()}

    def visit(layer: Layer, deltas: Scaled, states: Scaled) -> tuple[Scaled, Any]:
        before, parameter_logs, log_deltas = _back(layer.ordinary(), states, deltas)
        return before, (parameter_logs, log_deltas, *_slope_statistics(layer, states))

    deltas, outs = scan_layers(parameters, scales, deltas, visit, extras=states, reverse=True)
    first, log_first = jax.vmap(normalize)(deltas)
    if stem:
        _, logs, _ = _back(
            stem.ordinary(), jax.vmap(lambda x: normalize(plain(x))[0])(xs.astype(first.value.dtype)), first
        )
        parameter_logs |= {f"stem/{path}": log for path, log in logs.items()}
    parameter_logs |= _by_path([logs for logs, *_ in outs], [stage.depth for stage in parameters.network.stages])
    log_deltas, mean_square_slope, saturation = (joined([out[i] for out in outs]).T for i in (1, 2, 3))
    log_mean_square, left_range = jax.vmap(functools.partial(states_reading, parameters.network))(log_states)
    return GradientFlow(
        log_mean_square,
        jnp.concatenate([log_first[:, None], log_deltas], axis=1),
        parameter_logs,
        mean_square_slope,
        saturation,
        {dtype: _naive_reading(parameters, scales, xs, ys, loss, dtype) for dtype in naive},
        saturated,
        left_range,
    )


def _back(layer: Layer, states: Scaled, deltas: Scaled) -> tuple[Scaled, dict[str, Array], Array]:
    """One layer back, for a batch: the cotangents before it (not normalized), ln of its summed parameter gradients,
    ln of the cotangents behind it."""
    deltas, log_deltas = jax.vmap(normalize)(deltas)
    h = jax.vmap(clipped)(states)
    before = jax.vmap(lambda h, v: jax.vjp(layer, h)[1](v)[0])(h, deltas.value)
    return Scaled(before, deltas.exponent), _parameter_logs(layer, states, h, deltas), log_deltas


def _parameter_logs(layer: Layer, states: Scaled, h: Array, deltas: Scaled) -> dict[str, Array]:
    """ln of the norm of sum_b dL_b/d(parameter), by path.

    The derivative is taken at the clipped state. Beyond the float range it grows like 2^(k e), with a k for each
    parameter: 1 for a kernel that multiplies the state, 0 for a bias that is added to it (`_degrees`).
    """
    excess = states.exponent - jnp.clip(states.exponent, -window(h.dtype), window(h.dtype))
    degrees = _degrees(layer.spec, h.shape[1:], h.dtype.name)

    def gradient(below: int, above: int) -> tuple[dict[str, Array], Array]:
        exponent = deltas.exponent + excess * jnp.where(excess < 0, below, above)
        exponent = jnp.where(states.exponent == ZERO, deltas.exponent, exponent)
        common = jnp.max(exponent)
        weights = jax.vmap(lambda e: power_of_two(e - common, h.dtype))(exponent)
        v = deltas.value * weights.reshape(-1, *(1,) * (deltas.value.ndim - 1))
        at = lambda p: jax.vmap(layer.with_parameters(p))(h)  # noqa: E731
        return jax.vjp(at, layer.trainable())[1](v)[0], common

    # One product per kind of parameter; what a kind does not use is never computed (XLA drops it).
    by_kind = {kind: gradient(*kind) for kind in set(degrees.values())}
    logs = {}
    for path, kind in degrees.items():
        gradients, common = by_kind[kind]
        logs[path] = normalize(Scaled(gradients[path], common))[1]
    return logs


@functools.cache
@untraced
def _degrees(spec: Spec, shape: tuple[int, ...], dtype: str) -> dict[str, tuple[int, int]]:
    """How a block's parameter gradients grow with its state, (below, above) the float range, by path: 2^k when the
    state doubles.

    Measured on one draw, so that it holds for any block.
    """
    far = 2.0 ** window(np.dtype(dtype))
    sizes = (1 / far, 2 / far, far, 2 * far)

    @jax.jit
    def log_norms() -> list[dict[str, Array]]:
        key, key_h, key_v = jax.random.split(jax.random.key(0), 3)
        layer = Layer(spec, draw(spec, key), unit_scales(spec, dtype))
        h = jax.random.normal(key_h, shape, dtype)

        def at(size: float) -> dict[str, Array]:
            out, back = jax.vjp(lambda p: layer.with_parameters(p)(size * h), layer.trainable())
            gradient = back(jax.random.normal(key_v, out.shape, dtype))[0]
            return {path: jnp.log2(jnp.linalg.norm(g.reshape(-1))) for path, g in gradient.items()}

        return [at(size) for size in sizes]

    with jax.enable_x64(dtype == "float64"):
        logs = [{path: float(log) for path, log in at.items()} for at in log_norms()]

    def degree(path: str, once: int) -> int:
        growth = logs[once + 1][path] - logs[once][path]
        return round(growth) if np.isfinite(growth) else 0

    return {path: (degree(path, 0), degree(path, 2)) for path in logs[0]}


def _slope_statistics(layer: Layer, states: Scaled) -> tuple[Array, Array]:
    slopes, largest = jax.vmap(layer.slopes, out_axes=(0, None))(jax.vmap(clipped)(states))
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

    stem, head = stem_layer(parameters, scales), head_layer(parameters)

    def one(x: Array, y: Array) -> Array:
        h = cast(stem)(cast(x)) if stem else cast(x)
        last, states = scan_layers(parameters, scales, h, lambda layer, h, _: (cast(layer)(h), h))
        g = jax.grad(lambda h: losses.value(loss, cast(head)(h) if head else h, cast(y)))(last)
        first, logs = scan_layers(
            parameters,
            scales,
            g,
            lambda layer, g, h: (jax.vjp(cast(layer), h)[1](g)[0], lost(g)),
            extras=states,
            reverse=True,
        )
        return joined([lost(first)[None], *logs])

    return jax.vmap(one)(xs, ys)


def _by_path(stages: list[dict[str, Array]], depths: list[int]) -> dict[str, Array]:
    """One series over all layers for every path that occurs in some stage; NaN in the layers that lack it."""
    paths = {path: log.dtype for logs in stages for path, log in logs.items()}
    return {
        path: jnp.concatenate(
            [logs.get(path, jnp.full(depth, jnp.nan, dtype)) for logs, depth in zip(stages, depths, strict=True)]
        )
        for path, dtype in paths.items()
    }
