"""Gradients: where the gradient of a loss goes, layer by layer and parameter by parameter."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Shaped

from vgjax.blocks.protocol import block_info
from vgjax.checks import ArrayLike, RandomKey, kinds, nan_is_data
from vgjax.floatexp import (
    LINEAR,
    ZERO,
    FloatExp,
    add,
    from_float,
    normalize,
    to_float_clipped,
    with_zero_exponent,
)
from vgjax.initializers import Scales
from vgjax.measure import losses
from vgjax.measure.one_layer import over_batch, parameter_gradients, slope_statistics
from vgjax.networks.exactness import Exactness, exact_at, marked_backward
from vgjax.networks.layer import Layer, degrees
from vgjax.networks.layers import Layers, Walk, bind, by_path, by_stage, checked_input, describe_states, joined
from vgjax.networks.network import Network
from vgjax.networks.parameters import Parameters
from vgjax.values import by_content


@by_content
class GradientFlow(NamedTuple):
    """Where the gradient of one network goes, layer by layer.

    ``batch`` below stands for the leading axis of the input, if it had one.

    Attributes:
        log_mean_square: ln of the mean square of the state s_l, shape ``(*batch, depth + 1)``.
        log_gradient: ln ||dL/ds_l||, shape ``(*batch, depth + 1)``; L is the loss of the batch, a sum over its examples
            (so that of this example alone) or their mean.
        log_parameter_gradient: by Flax path, ln of the norm of the gradient of that loss of the batch: shape
            ``(depth,)`` for the blocks (``"kernel"``, ``"bias"``), ``()`` for ``"stem/..."`` and ``"head/..."``. NaN
            in layers without that parameter. Of tied parameters, what each layer (each step of a recurrence,
            either end of a network with a tied readout) contributes.
        log_tied_gradient: by Flax path, ln of the norm of the whole gradient of tied parameters, the sum of those
            contributions, shape ``()``; of what stem and head share by the path in the stem; empty if there are none.
        log_gradient_parts: by name, ln of the norm of a part of dL/ds_l, where states have parts (an LSTM's ``h`` and
            ``c``), shape ``(*batch, depth + 1)``.
        diagnostics: by name, what blocks report of themselves (the mean of a gate), shape ``(*batch, depth)``.
        mean_square_slope: mean of phi'^2 over a block's units, shape ``(*batch, depth)``; NaN where not reported.
        saturation: share of a block's units on a flat end (5% of phi's largest slope), shape ``(*batch, depth)``; NaN
            where not reported.
        saturated: True where the loss's own gradient is too small even for an exponent (below e^-9e7):
            ``log_gradient`` is then an upper bound. Of a loss of your own: where floats do not hold the output, or the
            gradient is not finite, or is 0, which may be one or an underflow. Shape ``(*batch,)``.
        first_inexact_layer, first_nan_layer: as for `Push`, shape ``(*batch,)``; every gradient of an example that has
            one is NaN.
    """

    log_mean_square: Array
    log_gradient: Array
    log_parameter_gradient: dict[str, Array]
    log_tied_gradient: dict[str, Array]
    log_gradient_parts: dict[str, Array]
    diagnostics: dict[str, Array]
    mean_square_slope: Array
    saturation: Array
    saturated: Array
    first_inexact_layer: Array
    first_nan_layer: Array


OF_BATCH = ("log_parameter_gradient", "log_tied_gradient")
"""What is of the summed loss and has no batch axis."""


@kinds
@nan_is_data
def gradient_flow(
    parameters: Parameters,
    scales: Scales,
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    loss: losses.Loss | None = None,
    key: RandomKey | None = None,
) -> GradientFlow:
    """Where the gradient of a loss goes: ln ||dL/ds_l|| of every layer, and of every parameter, at any depth.

    Parameter gradients are those of the ordinary parameters (`vgjax.absorb_scales`: W = sigma_w Z, b = sigma_b z). A
    gradient that is zero by symmetry reads as rounding noise.

    Args:
        parameters, scales: as for `forward`.
        x: one input, or a batch with one more leading axis.
        y: what the loss compares the output with; with the batch axis of x. Left out, a random cotangent of norm 1.
        loss: ``"squared_error"`` (half the sum of squares, y of the output's shape), ``"cross_entropy"`` (softmax; y
            integer labels of shape ``output[:-1]``, or probabilities of the output's shape), ``"binary_cross_entropy"``
            (logits; y of the output's shape, 0 to 1); each with ``mean_`` in front: the mean over all terms, those of
            outputs and examples alike, in place of the sum; ``"cotangent"`` (y is dL/d(output)). Or a function of one
            example's output and y, a number: its gradient is that of `jax.grad`, exact where floats hold the output and
            the gradient. Left out: cross-entropy for whole numbers, with one output binary cross-entropy; else squared
            error.
        key: draws the random cotangent (default ``jax.random.key(0)``).

    Returns:
        `GradientFlow`.

    Raises:
        ValueError: unknown scales or loss, inputs or targets of the wrong shape, labels out of range, probabilities
            that do not sum to 1, one-hot rows without a loss.
    """
    x = checked_input(parameters, scales, x, batch=True)
    single = x.shape == parameters.network.input_shape
    loss, y = losses.targets(parameters.network, y, loss, key, 1 if single else len(x), single)
    return (_of_one if single else of_batch)(parameters, scales, x, y, loss)


def of_one(
    parameters: Parameters, scales: Scales, x: Shaped[Array, "*input"], y: Shaped[Array, "1 *target"], loss: losses.Loss
) -> GradientFlow:
    """`of_batch` of one example, without the batch axis; y has one of length 1."""
    return without_batch(_gradient_flow(parameters, scales, x[None], y, loss))


def without_batch(flow: GradientFlow) -> GradientFlow:
    """Of a batch of one example, without the batch axis."""
    of_batch: Any = {name: getattr(flow, name) for name in OF_BATCH}
    without: Any = {name: {} for name in of_batch}
    return jax.tree.map(lambda a: a[0], flow._replace(**without))._replace(**of_batch)


_of_one = functools.partial(jax.jit, static_argnames="loss")(of_one)


# --- one pass forward, one back -------------------------------------------------------------------------------------


class _Carry(NamedTuple):
    """What the reverse pass hands from layer to layer.

    Attributes:
        cotangent: dL/ds behind the layer, with a batch axis.
        tied: sums of the gradients of tied parameters so far, by path.
    """

    cotangent: FloatExp
    tied: dict[str, FloatExp]


class _Report(NamedTuple):
    """What the reverse pass reports of each layer: the fields of `GradientFlow`, of one layer."""

    log_gradient: Array
    log_parameter_gradient: dict[str, Array]
    log_gradient_parts: dict[str, Array]
    diagnostics: dict[str, Array]
    mean_square_slope: Array
    saturation: Array


def _gradient_flow(
    parameters: Parameters,
    scales: Scales,
    xs: Shaped[Array, "batch *input"],
    ys: Shaped[Array, "batch *target"],
    loss: losses.Loss,
) -> GradientFlow:
    network, layers = parameters.network, _bind_batch(parameters, scales, xs)
    forward = _walk_batch(parameters, scales, xs)
    entering, of_head, saturated = _where_loss_enters(layers, forward, ys, loss)
    names = _part_names(network)
    carry = _Carry(jax.tree.map(lambda a: a[-1], entering), _zeros(parameters))
    extras = list(zip(forward.reports, _entering_before(network, entering), strict=True))
    carry, reports = layers.scan(carry, functools.partial(_visit_back, names), extras=extras, reverse=True)
    first, log_first = jax.vmap(functools.partial(normalize, once=True))(carry.cotangent)
    ends = of_head | _of_stem(layers.stem, xs, first)
    log_mean_square, first_inexact, first_nan = describe_states(network, forward)
    report = _of_all_layers(reports, network)
    log_gradient, parts = jax.tree.map(
        lambda first, rest: jnp.concatenate([first[:, None], rest], axis=1),
        (log_first, _part_logs(first, names)),
        (report.log_gradient, report.log_gradient_parts),
    )
    flow = GradientFlow(
        log_mean_square,
        log_gradient,
        _logs(ends, once=True) | report.log_parameter_gradient,
        _logs(carry.tied | _of_both_ends(network, ends)),
        parts,
        report.diagnostics,
        report.mean_square_slope,
        report.saturation,
        saturated,
        first_inexact,
        first_nan,
    )
    return marked_gradients(flow, forward.exactness, _exact_at_head(layers.head, forward, network.every_step))


def _exact_at_head(head: Layer | None, forward: Walk, every_step: bool) -> Array:
    """Whether the loss's own gradient means something, for every example."""
    read = forward.log_norms if every_step else forward.log_norms[:, -1:]
    ends = degrees(head.spec, forward.last.value.shape[1:], read.dtype, None) if head else LINEAR
    return jnp.all(exact_at(ends, read) & ~jnp.isnan(forward.log_norms[:, -1:]), axis=1)


def marked_gradients(flow: GradientFlow, found: Exactness, exact: Array) -> GradientFlow:
    """NaN in place of every gradient that went through what means nothing."""
    depth = flow.log_gradient.shape[1] - 1
    log_gradient = marked_backward(found, jnp.where(exact[:, None], flow.log_gradient, jnp.nan), depth)
    entered, no_gradient = log_gradient[:, 1:], jnp.isnan(log_gradient)
    lost = jnp.any(jnp.isnan(entered), axis=0)
    # Where the cotangent underflows, so may phi; where it does not, a dead unit's gradient is a true zero.
    vanished = jnp.any(no_gradient[:, :-1] & ~jnp.isneginf(entered), axis=0)

    def of_parameter(path: str, log: Array) -> Array:
        if log.ndim == 0:
            return jnp.where(jnp.any(no_gradient[:, 0]) if path.startswith("stem/") else ~jnp.all(exact), jnp.nan, log)
        return jnp.where(lost | (vanished & jnp.isneginf(log)), jnp.nan, log)

    def of_tied(path: str, log: Array) -> Array:
        # What the stem holds for the head is reached last.
        return of_parameter(path, log) if path.startswith("stem/") else jnp.where(jnp.any(lost), jnp.nan, log)

    at_states = jnp.isnan(flow.log_mean_square[:, :-1])
    return flow._replace(
        log_gradient=log_gradient,
        log_parameter_gradient={path: of_parameter(path, log) for path, log in flow.log_parameter_gradient.items()},
        log_tied_gradient={path: of_tied(path, log) for path, log in flow.log_tied_gradient.items()},
        log_gradient_parts=jax.tree.map(lambda a: jnp.where(no_gradient, jnp.nan, a), flow.log_gradient_parts),
        diagnostics=jax.tree.map(lambda a: jnp.where(at_states, jnp.nan, a), flow.diagnostics),
        mean_square_slope=jnp.where(at_states, jnp.nan, flow.mean_square_slope),
        saturation=jnp.where(at_states, jnp.nan, flow.saturation),
    )


of_batch = functools.partial(jax.jit, static_argnames="loss")(_gradient_flow)


def _bind_batch(parameters: Parameters, scales: Scales, xs: Array) -> Layers:
    """The layers of a batch: what a driven block reads has a batch axis behind that of the layers."""
    return bind(parameters, scales, jnp.moveaxis(xs, 0, 1) if parameters.network.driven else xs)


def _walk_batch(parameters: Parameters, scales: Scales, xs: Array) -> Walk:
    """The states of every example: states with axes (layer, batch), logarithms with (batch, layer)."""

    def walk(x: Array) -> Walk:
        layers = bind(parameters, scales, x)
        return layers.walk(layers.first_state(x))

    return jax.vmap(walk, out_axes=Walk(None, 1, 0, 0, 0))(xs)  # type: ignore[arg-type]


def _visit_back(
    names: tuple[str, ...], layer: Layer, carry: _Carry, extra: tuple[FloatExp, FloatExp | None]
) -> tuple[_Carry, _Report]:
    states, entering = extra
    back = _back(layer.absorb_scales(), states, carry.cotangent)
    tied = carry.tied
    if layer.tied:
        tied = {p: add(with_zero_exponent(t), with_zero_exponent(back.gradients[p])) for p, t in tied.items()}
    report = _Report(
        back.log_cotangent,
        _logs(back.gradients),
        _part_logs(back.cotangent, names),
        over_batch(layer, Layer.diagnostics, jax.vmap(to_float_clipped)(states)),
        *slope_statistics(layer, states),
    )
    return _Carry(back.before if entering is None else _sum(back.before, entering), tied), report


def _of_all_layers(reports: list[_Report], network: Network) -> _Report:
    """The reports of the stages as one, series with a leading batch axis; of parameters there is none."""
    depths = [stage.depth for stage in network.stages]
    series = {n: [getattr(report, n) for report in reports] for n in _Report._fields}
    by_name = {n: by_path(series[n], depths) for n in ("log_parameter_gradient", "diagnostics")}
    whole = _Report(**{n: by_name.get(n) or joined(series[n]) for n in _Report._fields})  # type: ignore[arg-type]
    turned = jax.tree.map(lambda a: a.T, whole._replace(log_parameter_gradient={}))
    return turned._replace(log_parameter_gradient=whole.log_parameter_gradient)


def _of_stem(stem: Layer | None, xs: Array, first: FloatExp) -> dict[str, FloatExp]:
    """The stem's parameter gradients, from the cotangents of the first state."""
    if stem is None:
        return {}
    x = jax.vmap(lambda x: normalize(from_float(x), once=True)[0])(xs.astype(first.value.dtype))
    gradients = parameter_gradients(stem.absorb_scales(), x, first)
    return {f"stem/{path}": gradient for path, gradient in gradients.items()}


def _of_both_ends(network: Network, ends: dict[str, FloatExp]) -> dict[str, FloatExp]:
    """The whole gradients of what the head shares with the stem, by the path there."""
    pairs = [(f"stem/{there}", f"head/{here}") for here, there in network.shared]
    return {path: add(*(with_zero_exponent(ends[each]) for each in (path, other))) for path, other in pairs}


# --- where the loss enters ------------------------------------------------------------------------------------------


def _where_loss_enters(
    layers: Layers, forward: Walk, ys: Array, loss: losses.Loss
) -> tuple[FloatExp, dict[str, FloatExp], Array]:
    """dL/ds of every state that the head reads, with leading axes (states read, batch); the head's parameter gradients;
    which examples are saturated."""
    head, network = layers.head, layers.network
    read = jax.tree.map(lambda a: a[None], forward.last)
    read = joined([*forward.reports, read]) if network.every_step else read
    read = jax.tree.map(lambda a: a[-network.depth :], read)
    outputs = jax.vmap(jax.vmap(lambda s: normalize(head.step(s) if head else s, once=True)[0]))(read)
    deltas, saturated = cotangents_of_loss(loss, network, outputs, ys)
    deltas = deltas._replace(value=deltas.value / losses.mean_over(loss, network, len(ys)))
    if head is None:
        return deltas, {}, saturated
    lead = deltas.exponent.shape
    back = _back(head.absorb_scales(), *jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (read, deltas)), once=True)
    gradients = {f"head/{path}": gradient for path, gradient in back.gradients.items()}
    return jax.tree.map(lambda a: a.reshape(*lead, *a.shape[1:]), back.before), gradients, saturated


def cotangents_of_loss(loss: losses.Loss, network: Network, outputs: FloatExp, ys: Array) -> tuple[FloatExp, Array]:
    """dL/d(output) with leading axes (states read, batch), and which examples are lost."""
    of_one = functools.partial(losses.cotangent, loss)
    if not network.every_step:
        outputs = jax.tree.map(lambda a: a[0], outputs)
        deltas, lost = jax.vmap(of_one)(outputs, ys)
        return jax.tree.map(lambda a: a[None], deltas), lost
    # A named loss is a sum over the steps; a function sees all of them.
    of_all = of_one if callable(loss) else jax.vmap(of_one)
    deltas, lost = jax.vmap(of_all, (1, 0), (1, 0))(outputs, ys)
    return deltas, lost if callable(loss) else jnp.any(lost, axis=1)


def _entering_before(network: Network, entering: Any) -> list[Any]:
    """By stage, what the loss adds to the cotangent before each layer; None where it reads the last state alone.

    The first state is not read, and what the last one adds is where the reverse pass begins.
    """
    if not network.every_step:
        return [None] * len(network.stages)
    return by_stage(network, jax.tree.map(lambda a: jnp.concatenate([0 * a[:1], a[:-1]]), entering))


def _sum(a: FloatExp, b: FloatExp) -> FloatExp:
    return jax.vmap(lambda a, b: add(with_zero_exponent(a), with_zero_exponent(b)))(a, b)


# --- one layer back -------------------------------------------------------------------------------------------------


class _Back(NamedTuple):
    """One layer back, for a batch.

    Attributes:
        before: the cotangents before it, not normalized.
        gradients: its parameter gradients, summed over the batch, not normalized.
        cotangent: the cotangents behind it, normalized.
        log_cotangent: ln of their norms.
    """

    before: FloatExp
    gradients: dict[str, FloatExp]
    cotangent: FloatExp
    log_cotangent: Array


def _back(layer: Layer, states: FloatExp, cotangents: FloatExp, *, once: bool = False) -> _Back:
    cotangents, logs = jax.vmap(functools.partial(normalize, once=once))(cotangents)
    before = over_batch(layer, Layer.pull, states, cotangents)
    return _Back(before, parameter_gradients(layer, states, cotangents), cotangents, logs)


def _logs(gradients: dict[str, FloatExp], *, once: bool = False) -> dict[str, Array]:
    return {path: normalize(gradient, once=once)[1] for path, gradient in gradients.items()}


def _part_names(network: Network) -> tuple[str, ...]:
    """The parts of its states, if all have the same."""
    names = {block_info(stage.spec).parts for stage in network.stages}
    return names.pop() if len(names) == 1 else ()


def _part_logs(cotangents: FloatExp, names: tuple[str, ...]) -> dict[str, Array]:
    def part(i: int) -> Array:
        return jax.vmap(lambda v: normalize(v._replace(value=v.value[i]))[1])(cotangents)

    return {name: part(i) for i, name in enumerate(names)}


def _zeros(parameters: Parameters) -> dict[str, FloatExp]:
    """Where the sums of the gradients of tied parameters begin, by path."""
    stages = zip(parameters.network.stages, parameters.stages, strict=True)
    tied = [Layer(stage.spec, tree, Scales()) for stage, tree in stages if stage.tied]  # type: ignore[arg-type]
    leaves = (leaf for layer in tied for leaf in layer.trainable().items())
    return {path: FloatExp(jnp.zeros_like(leaf), jnp.asarray(ZERO)) for path, leaf in leaves}
