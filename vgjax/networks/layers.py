"""Layers: a network with all its numbers, and the one pass through it that everything measured is made of.

`bind` puts parameters, scales and input together; `Layers.scan` visits every layer in order, in either direction, and
`Layers.walk` is the forward pass: the state normalized before every layer and stepped behind it, beside whatever is
carried along. Nothing here knows what the blocks are.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from vgjax.blocks.protocol import block_info
from vgjax.checks import ArrayLike, kinds
from vgjax.floatexp import FloatExp, from_float, normalize
from vgjax.initializers import Scales
from vgjax.networks.exactness import Exactness, doubts, exactness, marked_forward
from vgjax.networks.layer import Layer, Tree, draw, unit_scales
from vgjax.networks.network import OF_HEAD, Network, Stage, check_input, check_scales, state_shapes, state_sizes
from vgjax.networks.parameters import Parameters, Stream, as_dtype
from vgjax.values import on_device

Visit = Callable[[Layer, Any, Any], tuple[Any, Any]]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["parameters", "scales", "inputs"], meta_fields=[])
@dataclass(frozen=True)
class Layers:
    """A network with its numbers, ready for a pass.

    Attributes:
        parameters: draws at unit gain, or ordinary parameters.
        scales: every scale that the network declares, one value a layer, shape ``(depth,)``.
        inputs: what driven blocks read, shape ``(depth, ...)``; None if there are none.
    """

    parameters: Parameters
    scales: Scales
    inputs: Array | None

    @property
    def network(self) -> Network:
        """Whose layers they are."""
        return self.parameters.network

    @property
    def stem(self) -> Layer | None:
        """The stem, with the scales of the first block."""
        spec = self.network.stem
        return Layer(spec, self.parameters.stem, jax.tree.map(lambda s: s[0], self.scales)) if spec else None

    @property
    def head(self) -> Layer | None:
        """The head, at unit gain but for `OF_HEAD`, and but for the stem's scales where it shares its parameters."""
        spec = self.network.head
        if spec is None:
            return None
        unit = unit_scales(spec, self.parameters.dtype)
        own = {OF_HEAD: self.scales[OF_HEAD][-1]} if OF_HEAD in unit else {}
        if self.stem and self.network.shared:
            of_stem = block_info(self.stem.spec).scales
            own = {name: self.stem.scales[name] for name in unit if name in of_stem} | own
        return Layer(spec, self.parameters.whole_head, Scales._of({**unit, **own}))

    def first_state(self, x: Array) -> FloatExp:
        """s_0, not normalized."""
        x = x.astype(self.parameters.dtype)
        # Without a stem the walk normalizes: it does so before every layer.
        return self.stem.step(normalize(from_float(x), once=True)[0]) if self.stem else from_float(x)

    def scan(
        self, carry: Any, visit: Visit, *, extras: Sequence[Any] | None = None, reverse: bool = False
    ) -> tuple[Any, list[Any]]:
        """Visit every layer in order: one `lax.scan` a stage, so that compile time does not grow with depth.

        Args:
            carry: handed from visit to visit.
            visit: ``(layer, carry, extra) -> (carry, report)``.
            extras: one a stage, each with a leading layer axis; what each visit gets beside its layer.
            reverse: from the last layer to the first.

        Returns:
            The last carry, and the reports: one tree a stage with a leading layer axis, in the order of the stages.
        """
        stages = self.network.stages
        here = by_stage(self.network, (self.scales, self.inputs))
        reports: list[Any] = [None] * len(stages)
        for i in reversed(range(len(stages))) if reverse else range(len(stages)):
            stage, tree = stages[i], self.parameters.stages[i]

            # The loop's variables as defaults: a closure over them would see those of the last stage.
            def body(carry: Any, xs: Any, stage: Stage = stage, tree: Tree | Stream = tree) -> tuple[Any, Any]:
                stacked, (scales, x), extra = xs
                if isinstance(tree, Stream):
                    stacked = draw(stage.spec, stacked.keys)
                mine: Any = tree if stage.tied else stacked
                return visit(Layer(stage.spec, mine, scales, x if stage.driven else None, stage.tied), carry, extra)

            xs = (None if stage.tied else tree, here[i], extras[i] if extras is not None else None)
            if stage.keeps_shape:
                carry, reports[i] = lax.scan(body, carry, xs, length=stage.depth, reverse=reverse)
            else:  # `lax.scan` wants one shape for the carry
                carry, report = body(carry, jax.tree.map(lambda a: a[0], xs))
                reports[i] = jax.tree.map(lambda a: a[None], report)
        return carry, reports

    def walk(
        self,
        state: FloatExp,
        visit: "Callable[[Layer, FloatExp, Any, Any], tuple[Any, Any]] | None" = None,
        carry: Any = None,
        *,
        extras: Sequence[Any] | None = None,
    ) -> "Walk":
        """The forward pass of the states, and of what is carried beside them.

        Args:
            state: the first one, not normalized (`first_state`).
            visit: ``(layer, state, carry, extra) -> (carry, report)``, the state normalized; left out, the report is
                the state.
            carry: of the first visit.
            extras: as for `scan`.
        """

        def step(layer: Layer, now: tuple[FloatExp, Any], extra: Any) -> tuple[tuple[FloatExp, Any], Any]:
            state, log_norm = normalize(now[0])
            carry, report = visit(layer, state, now[1], extra) if visit else (None, state)
            return (layer.step(state), carry), (report, log_norm, doubts(layer, state, log_norm))

        (last, carry), outs = self.scan((state, carry), step, extras=extras)
        last, log_last = normalize(last, once=True)
        reports, *series = zip(*outs, strict=True)
        log_norms, in_doubt = map(joined, series)
        log_norms = jnp.concatenate([log_norms, log_last[None]])
        found = exactness(log_norms, in_doubt)
        return Walk(carry, list(reports), last, marked_forward(found, log_norms), found)

    def section(self, start: int, stop: int) -> "Layers":
        """Layers ``start`` to ``stop`` as those of a network of their own, without stem and head."""
        network = self.network
        # What enters a driven network is its input, and no state: a section of a section has no shape to begin with.
        steps = [(stop - start, *network.input_shape[1:])] * (len(network.stages) + 1)
        shapes = steps if network.driven else state_shapes(network)
        stages: list[Stage] = []
        trees: list[Any] = []
        shape, first = shapes[-1], 0
        for stage, tree, before in zip(network.stages, self.parameters.stages, shapes[:-1], strict=True):
            low, high = max(start - first, 0), min(stop - first, stage.depth)
            first += stage.depth
            if low < high:
                shape = shape if stages else before
                stages.append(replace(stage, depth=high - low))
                trees.append(tree if stage.tied else jax.tree.map(lambda a, low=low, high=high: a[low:high], tree))
        scales, inputs = jax.tree.map(lambda a: a[start:stop], (self.scales, self.inputs))
        alone = replace(network, stem=None, stages=tuple(stages), head=None, input_shape=shape, shared=())
        return Layers(Parameters({}, tuple(trees), {}, alone), scales, inputs)


class Walk(NamedTuple):
    """What a forward pass leaves.

    Attributes:
        carry: what the last visit handed on.
        reports: one tree a stage, with a leading layer axis.
        last: s_L, normalized.
        log_norms: ln ||s_l||, shape ``(depth + 1,)``; NaN where it means nothing.
        exactness: from where on that is.
    """

    carry: Any
    reports: list[Any]
    last: FloatExp
    log_norms: Array
    exactness: Exactness


def bind(parameters: Parameters, scales: Scales, x: Array | None) -> Layers:
    """A network with its numbers; the scales that are not given as `Network.completed` says.

    ``x`` is the input of the network, which driven blocks read layer by layer: its leading axis is that of the layers.
    """
    network, dtype = parameters.network, parameters.dtype
    along = scales_along(network, scales, dtype)
    return Layers(parameters, along, as_dtype(dtype, x) if network.driven else None)


def scales_along(network: Network, scales: Scales, dtype: Any) -> Scales:
    """Every scale of a network, one value a layer, shape ``(depth,)``; those not given as `Network.completed` says."""
    completed = network.completed(scales).items()
    return Scales._of({name: jnp.broadcast_to(jnp.asarray(s, dtype), (network.depth,)) for name, s in completed})


def checked_input(parameters: Parameters, scales: Scales, x: ArrayLike, *, batch: bool = False) -> Array:
    """The input as an array, if it, the parameters and the scales fit each other: the edge of every measurement.

    Raises:
        ValueError: parameters that are none, unknown scales, or an input of the wrong shape.
    """
    if not isinstance(parameters, Parameters):
        raise ValueError(f"parameters must be those of vgjax.init, got {type(parameters).__name__}")
    check_scales(parameters.network, scales)
    check_input(parameters.network, x, batch=batch)
    return on_device(x)


# --- the ordinary pass ----------------------------------------------------------------------------------------------


@kinds
def forward(parameters: Parameters, scales: Scales, x: ArrayLike) -> Array:
    """The output of an ordinary forward pass in ordinary floats.

    Args:
        parameters: draws at unit gain (`init`), or ordinary parameters (`absorb_scales`) with unit scales.
        scales: of the blocks and the stem.
        x: one input, shape ``network.input_shape``; batches by `vmap`.

    Returns:
        The head's output, shape ``(outputs,)``; with ``every_step``, ``(depth, outputs)``.

    Raises:
        ValueError: unknown scales, or an input of the wrong shape.
    """
    return _forward(parameters, scales, checked_input(parameters, scales, x))


@jax.jit
def _forward(parameters: Parameters, scales: Scales, x: Array) -> Array:
    layers = bind(parameters, scales, x)
    head, every = layers.head, parameters.network.every_step
    h = x.astype(parameters.dtype)
    h = layers.stem(h) if layers.stem else h

    def visit(layer: Layer, h: Array, _: None) -> tuple[Array, Array | None]:
        h = layer(h)
        return h, (head(h) if head else h) if every else None

    h, outputs = layers.scan(h, visit)
    return joined(outputs) if every else head(h) if head else h


# --- series along the layers ----------------------------------------------------------------------------------------


def describe_states(network: Network, walked: Walk) -> tuple[Array, Array, Array]:
    """ln of the mean squares of the states s_0 ... s_L, the first inexact and the first NaN layer."""
    log_sizes = np.log(state_sizes(network)).astype(walked.log_norms.dtype)
    return 2 * walked.log_norms - log_sizes, walked.exactness.first_inexact_layer, walked.exactness.first_nan_layer


def joined(series: Sequence[Any]) -> Any:
    """The series of the stages as one over all layers."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *series)


def by_stage(network: Network, along: Any) -> list[Any]:
    """A tree of arrays along the layers as one a stage."""
    starts = np.cumsum([0, *(stage.depth for stage in network.stages)])
    return [jax.tree.map(lambda a, i=i, j=j: a[i:j], along) for i, j in itertools.pairwise(starts.tolist())]


def by_path(stages: list[dict[str, Array]], depths: list[int]) -> dict[str, Array]:
    """One series over all layers for every path that occurs in some stage; NaN in the layers that lack it."""
    some = {path: log for logs in stages for path, log in logs.items()}
    return {
        path: jnp.concatenate(
            [
                logs.get(path, jnp.full((depth, *like.shape[1:]), jnp.nan, like.dtype))
                for logs, depth in zip(stages, depths, strict=True)
            ]
        )
        for path, like in some.items()
    }
