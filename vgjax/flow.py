"""Gradient flow: log-domain Jacobian products of one network, forward and backward.

J_{m<-l} is the product of the layer Jacobians from state l to state m. A tangent u is pushed forward (J u), a
cotangent v pulled back (J^T v); both, and the states themselves, are scaled numbers, so their logarithms are right at
any depth. All logarithms are natural and all norms Euclidean. A true zero is -inf; underflow does not happen.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from vgjax.checks import is_traced, known, untraced
from vgjax.exponents import LN2, ZERO, Scaled, add, clipped, normalize, plain, power_of_two, settled, window
from vgjax.initializers import Scales
from vgjax.networks import (
    Layer,
    Network,
    Parameters,
    Spec,
    check_input,
    check_scales,
    draw,
    head_layer,
    init,
    parameter_dtype,
    scan_layers,
    stem_layer,
    unit_scales,
)

LOSSES = ("cross_entropy", "squared_error", "cotangent")
NAIVE_DTYPES = ("float32", "bfloat16", "float16")
FLAT = 0.05
"""A unit is saturated where |phi'| is below this share of phi's largest slope."""


class Push(NamedTuple):
    """What one forward pass tells, at every depth.

    Attributes:
        log_mean_square: ln of the mean square of the state s_l, shape ``(depth + 1,)``.
        log_gain: ln ||J_{l<-0} u||, shape ``(depth + 1,)``, or ``(tangents, depth + 1)`` for several u.
        left_range: first layer whose state left the float range at an end where the activation is not asymptotically
            linear, so that what follows is meaningless; depth + 1 if there is none, as for every activation of the
            library but sin at absurd scales.
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
        ju = jax.jvp(layer, (clipped(state),), (u.value,))[1]
        return (layer.step(state), Scaled(ju, u.exponent)), (log_state, log_u)

    carry = (_first_state(parameters, scales, x), plain(u.astype(parameter_dtype(parameters))))
    (state, ju), logs = scan_layers(parameters, scales, carry, visit)
    log_states, log_us = _joined([*logs, (normalize(state)[1][None], normalize(ju)[1][None])])
    return Push(*_states_reading(parameters.network, log_states), log_us)


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
    states, last, log_states = _states(parameters, scales, x)
    at = jnp.asarray(depths)

    def fresh(shape: tuple[int, ...]) -> Array:
        if not jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
            return seed.astype(dtype)
        return jax.vmap(lambda m: _direction(jax.random.fold_in(seed, m), shape, dtype))(at)

    cotangents = {shape: fresh(shape) for shape in set(state_shapes(parameters.network))}

    def injected(rows: Scaled, layer: Array) -> Scaled:
        shape, here = rows.value.shape[1:], at == layer
        mask = here.reshape(-1, *(1,) * len(shape))
        return Scaled(jnp.where(mask, cotangents[shape], rows.value), jnp.where(here, 0, rows.exponent))

    def visit(layer: Layer, rows: Scaled, extra: tuple[Scaled, Array]) -> tuple[Scaled, Array]:
        state, behind = extra
        rows, log_rows = jax.vmap(normalize)(injected(rows, behind))
        pulled = jax.vjp(layer, clipped(state))[1]
        return Scaled(jax.vmap(lambda v: pulled(v)[0])(rows.value), rows.exponent), log_rows

    nothing = Scaled(jnp.zeros((len(depths), *last.value.shape), dtype), jnp.full(len(depths), ZERO))
    starts = np.cumsum([0, *(stage.depth for stage in parameters.network.stages)])
    behind = [jnp.arange(a, b) + 1 for a, b in itertools.pairwise(starts)]
    rows, logs = scan_layers(
        parameters, scales, nothing, visit, extras=list(zip(states, behind, strict=True)), reverse=True
    )
    first = jax.vmap(normalize)(injected(rows, jnp.zeros((), int)))[1]
    log_gain = _joined([first[None], *logs]).T
    exists = jnp.arange(parameters.network.depth + 1) <= at[:, None]
    return Pull(*_states_reading(parameters.network, log_states), jnp.where(exists, log_gain, jnp.nan))


def _states(parameters: Parameters, scales: Scales, x: Array) -> tuple[list[Scaled], Scaled, Array]:
    """Normalized states before every block (one a stage, leading layer axis), the last one, ln of all L + 1 norms."""

    def visit(layer: Layer, state: Scaled, _: None) -> tuple[Scaled, tuple[Scaled, Array]]:
        state, log_norm = normalize(state)
        return layer.step(state), (state, log_norm)

    last, outputs = scan_layers(parameters, scales, _first_state(parameters, scales, x), visit)
    last, log_last = normalize(last)
    return [states for states, _ in outputs], last, _joined([*(logs for _, logs in outputs), log_last[None]])


@jax.jit
def visited_states(parameters: Parameters, scales: Scales, x: Array) -> Scaled:
    """The normalized states s_0 ... s_L of one pass, with a leading layer axis.

    For networks whose states all have one shape.
    """
    stages, last, _ = _states(parameters, scales, x)
    return _joined([*stages, jax.tree.map(lambda a: a[None], last)])


def _first_state(parameters: Parameters, scales: Scales, x: Array) -> Scaled:
    stem = stem_layer(parameters, scales)
    x = x.astype(parameter_dtype(parameters))
    return stem.step(normalize(plain(x))[0]) if stem else plain(x)


# --- a loss ---------------------------------------------------------------------------------------------------------


def gradient_flow(
    network: Network,
    parameters: Parameters,
    scales: Scales,
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    loss: str | None = None,
    key: Array | None = None,
    naive: Sequence[str] = NAIVE_DTYPES,
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
        naive: the dtypes whose plain reading is compared; ``()`` for none.

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
    loss, ys = _targets(network, y, loss, key, len(xs), single)
    result = _gradient_flow(parameters, scales, xs, ys, loss, tuple(naive))
    return result if not single else _first_example(result)


def _first_example(flow: GradientFlow) -> GradientFlow:
    first = jax.tree.map(lambda a: a[0], flow._replace(log_parameter_gradient={}))
    return first._replace(log_parameter_gradient=flow.log_parameter_gradient)


def _targets(
    network: Network, y: ArrayLike | None, loss: str | None, key: Array | None, batch: int, single: bool
) -> tuple[str, Array]:
    """The loss meant, and its targets with a batch axis."""
    shape = _output_shape(network)
    if loss is not None:
        known("loss", loss, LOSSES)
    if y is None:
        if loss not in (None, "cotangent"):
            raise ValueError(f"loss {loss!r} needs y, got None")
        v = _direction(jax.random.key(0) if key is None else key, shape, jnp.float32)
        return "cotangent", jnp.broadcast_to(v, (batch, *shape))
    ys = jnp.asarray(y)[None] if single else jnp.asarray(y)
    whole = jnp.issubdtype(ys.dtype, jnp.integer)
    loss = loss or ("cross_entropy" if whole else "squared_error")
    if loss == "cross_entropy":
        if not whole or ys.shape != (batch,):
            raise ValueError(
                f"y must be one integer label an example for cross_entropy, got shape {jnp.shape(y)} of {ys.dtype}"
            )
        if not is_traced(ys):
            bad = np.asarray(ys)[(np.asarray(ys) < 0) | (np.asarray(ys) >= shape[0])]
            if bad.size:
                raise ValueError(f"labels must lie in 0 .. {shape[0] - 1}, got {bad[0]}")
    elif ys.shape != (batch, *shape):
        raise ValueError(f"y must have the output's shape {shape} an example for {loss}, got {jnp.shape(y)}")
    elif not is_traced(ys) and not np.all(np.isfinite(np.asarray(ys))):
        raise ValueError("y must be finite, got a NaN or an infinity")
    return loss, ys


@functools.partial(jax.jit, static_argnames=("loss", "naive"))
def _gradient_flow(
    parameters: Parameters, scales: Scales, xs: Array, ys: Array, loss: str, naive: tuple[str, ...]
) -> GradientFlow:
    states, last, log_states = jax.vmap(lambda x: _states(parameters, scales, x), out_axes=(1, 0, 0))(xs)
    stem, head = stem_layer(parameters, scales), head_layer(parameters)
    parameter_logs: dict[str, Any] = {}

    outputs = jax.vmap(lambda s: normalize(head.step(s) if head else s)[0])(last)
    deltas, saturated = jax.vmap(functools.partial(_loss_cotangent, loss))(
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
    log_deltas, mean_square_slope, saturation = (_joined([out[i] for out in outs]).T for i in (1, 2, 3))
    log_mean_square, left_range = jax.vmap(functools.partial(_states_reading, parameters.network))(log_states)
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


def _loss_cotangent(loss: str, output: Scaled, y: Array) -> tuple[Scaled, Array]:
    """dL/d(output) of one example as a scaled number, and whether it is beyond even that."""
    if loss == "cotangent":
        return plain(y), jnp.zeros((), bool)
    if loss == "squared_error":
        return add(settled(output), settled(plain(-y))), jnp.zeros((), bool)
    return _cross_entropy_cotangent(output, y)


def _cross_entropy_cotangent(output: Scaled, label: Array) -> tuple[Scaled, Array]:
    """softmax - onehot from its logarithms: in plain floats it is exactly 0 as soon as the margin passes about 17
    (float32).

    ln |delta_j| = z_j - lse(z) for the wrong classes and lse_{j != label}(z) - lse(z) for the right one, z_j the
    margin to the label.
    """
    u, exponent = output
    deepest = ZERO // 2  # what is left of the exponents for the layers behind
    largest = 3 * window(u.dtype)  # margins beyond 2^largest saturate anyway
    z = (u - u[label]) * power_of_two(jnp.minimum(exponent, largest), u.dtype)
    right = jnp.arange(len(u)) == label
    total = jax.nn.logsumexp(z)
    logs = jnp.where(right, jax.nn.logsumexp(jnp.where(right, -jnp.inf, z)), z) - total
    top = jnp.max(logs)
    is_zero = top == -jnp.inf  # a single class
    saturated = ~is_zero & (top < deepest * LN2)
    e = jnp.where(is_zero | saturated, 0, jnp.floor(jnp.maximum(top, deepest * LN2) / LN2)).astype(jnp.int32)
    shift = jnp.where(saturated | is_zero, jnp.where(is_zero, 0.0, top), e.astype(u.dtype) * LN2)
    value = jnp.where(right, -1, 1) * jnp.exp(logs - shift)
    return Scaled(value, jnp.where(is_zero, ZERO, jnp.where(saturated, deepest, e))), saturated


def _naive_reading(parameters: Parameters, scales: Scales, xs: Array, ys: Array, loss: str, dtype: str) -> Array:
    """True where a plain pass in ``dtype`` reads sqrt(sum of squares) of dL/ds_l as 0 or not finite.

    Shape ``(batch, depth + 1)``.
    """

    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)

    def lost(g: Array) -> Array:
        norm = jnp.sqrt(jnp.sum(g * g))
        return (norm == 0) | ~jnp.isfinite(norm)

    def loss_of(output: Array, y: Array) -> Array:
        if loss == "cotangent":
            return jnp.sum(output * y)
        if loss == "squared_error":
            return jnp.sum((output - y) ** 2) / 2
        return -jax.nn.log_softmax(output)[y]

    stem, head = stem_layer(parameters, scales), head_layer(parameters)

    def one(x: Array, y: Array) -> Array:
        h = cast(stem)(cast(x)) if stem else cast(x)
        last, states = scan_layers(parameters, scales, h, lambda layer, h, _: (cast(layer)(h), h))
        g = jax.grad(lambda h: loss_of(cast(head)(h) if head else h, cast(y)))(last)
        first, logs = scan_layers(
            parameters,
            scales,
            g,
            lambda layer, g, h: (jax.vjp(cast(layer), h)[1](g)[0], lost(g)),
            extras=states,
            reverse=True,
        )
        return _joined([lost(first)[None], *logs])

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


# --- shared ---------------------------------------------------------------------------------------------------------


@functools.cache
def state_shapes(network: Network) -> tuple[tuple[int, ...], ...]:
    """Shapes of the first state and of the state behind every stage."""

    def run(key: Array) -> list[Array]:
        parameters = init(key, network, stream=True)
        x = jnp.zeros(network.input_shape)
        states, last, _ = _states(parameters, Scales(), x)
        return [*(s.value[0] for s in states), last.value]

    return tuple(s.shape for s in jax.eval_shape(run, jax.random.key(0)))


def _given_directions(given: ArrayLike | None, key: Array | None, shape: tuple[int, ...], name: str) -> Array:
    """Given directions, shape ``(n, *state)``, or one random one of norm 1."""
    if given is None:
        return _direction(jax.random.key(0) if key is None else key, shape, jnp.float32)[None]
    given = jnp.asarray(given)
    if given.shape == shape:
        return given[None]
    if name == "tangents" and given.shape[1:] == shape:
        return given
    raise ValueError(f"{name} must have the state's shape {shape}, got {given.shape}")


def directions(key: Array, network: Network, count: int) -> Array:
    """Random directions of norm 1 at the first state, shape ``(count, *state)``."""
    return jax.vmap(lambda k: _direction(k, state_shapes(network)[0], jnp.float32))(jax.random.split(key, count))


def _direction(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    v = jax.random.normal(key, shape, dtype)
    return v / jnp.sqrt(jnp.sum(v * v))


def _joined(series: list[Any]) -> Any:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *series)


def _states_reading(network: Network, log_norms: Array) -> tuple[Array, Array]:
    """ln of the mean squares of the states s_0 ... s_L from ln of their norms, and ``left_range``."""
    sizes = [int(np.prod(shape)) for shape in state_shapes(network)]
    per_state = np.repeat(sizes, [stage.depth for stage in network.stages] + [1])
    far = window(log_norms.dtype) * LN2
    below, above = network.covered
    left = (jnp.isfinite(log_norms) & (log_norms < -far) & (not below)) | ((log_norms > far) & (not above))
    first = jnp.where(jnp.any(left), jnp.argmax(left), network.depth + 1)
    return 2 * log_norms - jnp.log(jnp.asarray(per_state, log_norms.dtype)), first.astype(jnp.int32)


@functools.cache
def _output_shape(network: Network) -> tuple[int, ...]:
    def run(key: Array) -> Array:
        head = head_layer(init(key, network, stream=True))
        last = jnp.zeros(state_shapes(network)[-1])
        return head(last) if head else last

    return jax.eval_shape(run, jax.random.key(0)).shape
