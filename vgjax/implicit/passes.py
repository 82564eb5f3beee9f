"""Passes through a network that has no kernels: rows (states, differences, tangents) forward, cotangents backward.

All rows that meet one kernel go through it together, and a layer costs a few vectors of its width. A row is a number
with an exponent of its own (`vgjax.floatexp`), so it never leaves the float range; what stands between kernels is the
library's own block, with its own derivatives.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Key

from vgjax.checks import RandomKey, kinds
from vgjax.floatexp import FloatExp, add, is_zero, normalize, power_of_two, scaled_bias, unit, with_zero_exponent
from vgjax.implicit.frames import FEW, Seen, Vectors
from vgjax.implicit.plans import AffineNode, PartNode, Plan, SkipNode, check_network, plan_of
from vgjax.initializers import BIAS_INITS, Scales
from vgjax.measure.correlation import Second, behind
from vgjax.measure.one_layer import parameter_gradients
from vgjax.networks.exactness import Doubts, doubts
from vgjax.networks.layer import Layer, draw, parameter_dtype, unit_scales
from vgjax.networks.layers import by_stage, scales_along
from vgjax.networks.network import OF_HEAD, Network
from vgjax.values import by_content


@by_content
@functools.partial(jax.tree_util.register_dataclass, data_fields=["key"], meta_fields=["network"])
@dataclass(frozen=True)
class Undrawn:
    """A network with a key in place of its parameters.

    Attributes:
        key: of everything random.
        network: what it belongs to (static).
    """

    key: Array
    network: Network

    @property
    def dtype(self) -> Any:
        """That which its parameters would have."""
        return parameter_dtype(self.network.stages[0].spec)


@kinds
def undrawn(key: RandomKey, network: Network) -> Undrawn:
    """A network with a key in place of its parameters, for passes that draw none.

    Raises:
        ValueError: a block, a law or an architecture that needs its kernels drawn.
    """
    check_network(network)
    return Undrawn(key, network)


class Bundle(NamedTuple):
    """What travels through the layers together; each row with an exponent of its own.

    Attributes:
        states: value ``(inputs, *state)``.
        apart: what the second state lies apart from the first, one row, or none.
        tangents: value ``(tangents, *state)``.
    """

    states: FloatExp
    apart: FloatExp
    tangents: FloatExp


def each(rows: FloatExp) -> tuple[FloatExp, Array]:
    """Normalized rows, and ln of their norms."""
    return jax.vmap(normalize)(rows)


class LogNorms(NamedTuple):
    """ln of the norms of `Bundle`, one array each."""

    states: Array
    apart: Array
    tangents: Array


def normalized(rows: Bundle) -> tuple[Bundle, LogNorms]:
    """Normalized rows, and ln of their norms."""
    found = [each(part) for part in rows]
    return Bundle(*(part for part, _ in found)), LogNorms(*(logs for _, logs in found))


def _directions(*parts: FloatExp) -> tuple[Vectors, FloatExp]:
    """All rows of some parts by direction, as a list where they are few, and norm."""
    found = [jax.vmap(unit)(part) for part in parts]
    sizes = jax.tree.map(lambda *a: jnp.concatenate(a), *(size for _, size in found))
    if len(sizes.exponent) > FEW:
        return jnp.concatenate([vectors for vectors, _ in found]), sizes
    return [vectors[i] for vectors, size in found for i in range(len(size.exponent))], sizes


def _of_sizes(vectors: Vectors, sizes: FloatExp, counts: Sequence[int]) -> list[FloatExp]:
    """Rows at some norms, in parts of so many."""
    ends = [sum(counts[:i]) for i in range(len(counts) + 1)]
    parts = []
    for low, high in itertools.pairwise(ends):
        mine = vectors[low:high]
        value = jnp.stack(list(mine)) if high > low else jnp.zeros((0, vectors[0].shape[-1]), sizes.value.dtype)
        parts.append(FloatExp(sizes.value[low:high, None] * value, sizes.exponent[low:high]))
    return parts


def no_rows(like: FloatExp) -> FloatExp:
    """None of them."""
    return jax.tree.map(lambda a: a[:0], like)


def _sum(*terms: FloatExp) -> FloatExp:
    return jax.vmap(lambda *each: add(*map(with_zero_exponent, each)))(*terms)


def _times(factor: Array, rows: FloatExp) -> FloatExp:
    return rows._replace(value=factor * rows.value)


def second_state(rows: Bundle) -> FloatExp:
    """The state that `Bundle.apart` leads to, normalized."""
    return each(_sum(jax.tree.map(lambda a: a[:1], rows.states), rows.apart))[0]


# --- one node forward -------------------------------------------------------------------------------------------------


class PassedPart(NamedTuple):
    """What a block leaves for the way back: the states before it, normalized."""

    states: FloatExp


class PassedAffine(NamedTuple):
    """What an affine layer leaves.

    Attributes:
        states: before it, normalized.
        sizes: norms of all rows in front of its kernel, those of the states first.
        seen: of its kernel.
    """

    states: FloatExp
    sizes: FloatExp
    seen: Seen


class PassedSkip(NamedTuple):
    """What a skip connection leaves.

    Attributes:
        branch, shortcut: what the nodes of the two leave.
        added: states behind the branch, normalized.
    """

    branch: "Passed"
    shortcut: "Passed"
    added: FloatExp


Passed = tuple[PassedPart | PassedAffine | PassedSkip, ...]
"""What the nodes of a chain leave."""


class At(NamedTuple):
    """Where in a network a chain stands.

    Attributes:
        key: of what is random there.
        scales: one number each.
        of: for every tangent, or cotangent, the input whose it is (static).
        keep: whether there is a way back (static).
    """

    key: Key[Array, ""]
    scales: Scales
    of: tuple[int, ...] = ()
    keep: bool = False

    def inside(self, i: int) -> "At":
        """The same for what is numbered within."""
        return self._replace(key=jax.random.fold_in(self.key, i))


_KERNEL, _BACK, _BIAS, _PART = range(4)
_SHORTCUT = 2**20
"""What a node draws, by number; a shortcut is numbered past all nodes of a branch."""


def forward_chain(plan: Plan, at: At, rows: Bundle, logs: LogNorms) -> tuple[Bundle, Passed, Doubts]:
    """Rows through a chain, not normalized behind it; and the doubts at its states, by input, the second last.

    Args:
        rows, logs: normalized, and ln of their norms.
    """
    passed: list[Any] = []
    worries: list[Doubts] = []
    for i, node in enumerate(plan):
        rows, logs = normalized(rows) if i else (rows, logs)
        rows, one, worry = _STEPS[type(node)](node, at.inside(i), rows, logs)
        passed.append(one)
        worries.append(worry)
    return rows, tuple(passed), jax.tree.map(lambda *a: functools.reduce(jnp.logical_or, a), *worries)


def part_of(node: AffineNode | PartNode, at: At) -> Layer:
    """The part of a node that has no kernel."""
    part = node.activity if isinstance(node, AffineNode) else node.part
    return Layer(part, draw(part, at.inside(_PART).key), at.scales)


def _through_part(layer: Layer, at: At, rows: Bundle, logs: LogNorms) -> tuple[Bundle, Doubts, Array]:
    """Rows through a block without kernels, not normalized; and whether the second state is nothing behind it."""
    states, apart, tangents = rows
    worry = jax.vmap(functools.partial(doubts, layer))(states, logs.states)
    nothing = jnp.zeros((), bool)
    if len(apart.exponent):
        other = normalize(jax.tree.map(lambda a: a[0], second_state(rows)))
        first, difference = (jax.tree.map(lambda a: a[0], part) for part in (states, apart))
        met = behind(layer, layer, first, Second(other[0], difference))
        apart, nothing = jax.tree.map(lambda a: a[None], met.apart), is_zero(met.state.value)
        worry = jax.tree.map(lambda a, b: jnp.append(a, b), worry, doubts(layer, *other))
    if at.of:
        tangents = jax.vmap(layer.push)(jax.tree.map(lambda a: a[jnp.asarray(at.of)], states), tangents)
    return Bundle(jax.vmap(layer.step)(states), apart, tangents), worry, nothing


def _through_block(node: PartNode, at: At, rows: Bundle, logs: LogNorms) -> tuple[Bundle, PassedPart, Doubts]:
    after, worry, _ = _through_part(part_of(node, at), at, rows, logs)
    return after, PassedPart(rows.states), worry


def _through_affine(node: AffineNode, at: At, rows: Bundle, logs: LogNorms) -> tuple[Bundle, PassedAffine, Doubts]:
    after, worry, nothing = _through_part(part_of(node, at), at, rows, logs)
    vectors, sizes = _directions(*after)
    product, seen = node.kernel.multiply(at.inside(_KERNEL).key, vectors, keep=at.keep)
    scaled = sizes._replace(value=at.scales[node.names[0]] * sizes.value)
    states, apart, tangents = _of_sizes(product, scaled, [len(part.exponent) for part in after])
    if len(apart.exponent):  # K 0 is 0, and not what rounding leaves of K a - K a
        gone = _times(-jnp.ones(()), jax.tree.map(lambda a: a[:1], states))
        apart = jax.tree.map(lambda a, b: jnp.where(nothing, a, b), gone, apart)
    z = BIAS_INITS[node.bias_init](at.inside(_BIAS).key, node.kernel.fan_out, sizes.value.dtype, node.kernel.fan_in)
    bias = scaled_bias(at.scales[node.names[1]], z)
    states = jax.vmap(lambda state: add(with_zero_exponent(state), bias))(states)
    return Bundle(states, apart, tangents), PassedAffine(rows.states, sizes, seen), worry


def _through_skip(node: SkipNode, at: At, rows: Bundle, logs: LogNorms) -> tuple[Bundle, PassedSkip, Doubts]:
    added, of_branch, worries = forward_chain(node.branch, at, rows, logs)
    kept, of_shortcut = rows, ()
    if node.shortcut is not None:
        kept, of_shortcut, worry = forward_chain(node.shortcut, at.inside(_SHORTCUT), rows, logs)  # type: ignore[assignment]
        worries = jax.tree.map(jnp.logical_or, worry, worries)
    factors = at.scales.skip, at.scales.branch
    total = Bundle(*(_sum(*map(_times, factors, pair)) for pair in zip(kept, added, strict=True)))
    return total, PassedSkip(of_branch, of_shortcut, each(added.states)[0] if node.gate else added.states), worries


_STEPS: Mapping[type, Any] = {AffineNode: _through_affine, PartNode: _through_block, SkipNode: _through_skip}


# --- one node back ----------------------------------------------------------------------------------------------------


def backward_chain(
    plan: Plan, at: At, passed: Passed, cotangents: FloatExp, *, gradients: bool
) -> tuple[FloatExp, dict[str, Array]]:
    """Cotangents behind a chain, normalized, to those before it, normalized too.

    Args:
        gradients: whether ln of the norms of the parameter gradients, sums over the cotangents, are wanted by path.
    """
    logs: dict[str, Array] = {}
    for i, node in reversed(list(enumerate(plan))):
        cotangents, found = _BACK_STEPS[type(node)](node, at.inside(i), passed[i], cotangents, gradients)
        cotangents, logs = each(cotangents)[0], found | logs
    return cotangents, logs


def _back_through_part(
    node: AffineNode | PartNode, at: At, states: FloatExp, cotangents: FloatExp, gradients: bool
) -> tuple[FloatExp, dict[str, Array]]:
    layer, states = part_of(node, at), jax.tree.map(lambda a: a[jnp.asarray(at.of)], each(states)[0])
    logs: dict[str, Array] = {}
    if gradients:
        found = parameter_gradients(layer.absorb_scales(), states, cotangents)
        logs = {f"{node.path}{path}": normalize(gradient)[1] for path, gradient in found.items()}
    return jax.vmap(layer.pull)(states, cotangents), logs


def _back_through_block(
    node: PartNode, at: At, passed: PassedPart, cotangents: FloatExp, gradients: bool
) -> tuple[FloatExp, dict[str, Array]]:
    return _back_through_part(node, at, passed.states, cotangents, gradients)


def _back_through_affine(
    node: AffineNode, at: At, passed: PassedAffine, cotangents: FloatExp, gradients: bool
) -> tuple[FloatExp, dict[str, Array]]:
    vectors, sizes = _directions(cotangents)
    pulled, triangle = node.kernel.multiply_transposed(at.inside(_BACK).key, passed.seen, vectors)
    logs: dict[str, Array] = {}
    if gradients:
        logs = {
            f"{node.path}kernel": _log_of_outer_products(passed, triangle, sizes),
            f"{node.path}bias": _log_of_sum(cotangents),
        }
    scaled = sizes._replace(value=at.scales[node.names[0]] * sizes.value)
    behind_activity = each(_of_sizes(pulled, scaled, [len(at.of)])[0])[0]
    before, inside = _back_through_part(node, at, passed.states, behind_activity, gradients)
    return before, logs | inside


def _back_through_skip(
    node: SkipNode, at: At, passed: PassedSkip, cotangents: FloatExp, gradients: bool
) -> tuple[FloatExp, dict[str, Array]]:
    factor, logs = at.scales.branch, dict[str, Array]()
    kept = each(_times(at.scales.skip, cotangents))[0]
    if node.shortcut is not None:
        kept, logs = backward_chain(node.shortcut, at.inside(_SHORTCUT), passed.shortcut, kept, gradients=gradients)
    scaled = each(_times(factor, cotangents))[0]
    added, inside = backward_chain(node.branch, at, passed.branch, scaled, gradients=gradients)
    if gradients and node.gate:
        logs |= {f"{node.path}gate": _log_of_products(passed.added, cotangents)}
    return _sum(kept, added), logs | inside


_BACK_STEPS: Mapping[type, Any] = {
    AffineNode: _back_through_affine,
    PartNode: _back_through_block,
    SkipNode: _back_through_skip,
}


# --- norms of sums over examples --------------------------------------------------------------------------------------


def _shares(exponents: Array, dtype: Any) -> tuple[Array, Array]:
    """The largest of exponents, and 2 to what each lacks to it."""
    largest = jnp.max(exponents)
    return largest, power_of_two(exponents - largest, dtype)


def _log_of_outer_products(passed: PassedAffine, triangle: Any, sizes: FloatExp) -> Array:
    """ln ||sum_b d_b a_b^T||: of the product of their triangles, whose frames have norm 1, so that nothing cancels."""
    count = len(sizes.exponent)
    of_a = jax.tree.map(lambda a: a[:count], passed.sizes)
    exponent, shares = _shares(of_a.exponent + sizes.exponent, sizes.value.dtype)
    weights = shares * sizes.value * of_a.value
    of_d, of_inputs = (_matrix(of)[:, :count] for of in (triangle, passed.seen.triangle))
    core = jnp.dot(of_d * weights, of_inputs.T, precision="highest")
    return normalize(FloatExp(core, exponent), once=True)[1]


def _matrix(triangle: Any) -> Array:
    if isinstance(triangle, Array):
        return triangle
    zero = jnp.zeros_like(triangle[0][0])
    return jnp.stack([jnp.stack([zero if entry is None else entry for entry in row]) for row in triangle])


def _log_of_sum(cotangents: FloatExp) -> Array:
    exponent, shares = _shares(cotangents.exponent, cotangents.value.dtype)
    return normalize(FloatExp(jnp.sum(shares[:, None] * cotangents.value, axis=0), exponent), once=True)[1]


def _log_of_products(states: FloatExp, cotangents: FloatExp) -> Array:
    exponent, shares = _shares(states.exponent + cotangents.exponent, states.value.dtype)
    total = jnp.sum(shares * jnp.sum(states.value * cotangents.value, axis=1))
    return normalize(FloatExp(total[None], exponent), once=True)[1]


# --- all layers -------------------------------------------------------------------------------------------------------


@functools.partial(jax.tree_util.register_dataclass, data_fields=["draw", "scales"], meta_fields=[])
@dataclass(frozen=True)
class UndrawnLayers:
    """A network without kernels, ready for a pass.

    Attributes:
        draw: the key and the network.
        scales: every scale that the network declares, one value a layer, shape ``(depth,)``.
    """

    draw: Undrawn
    scales: Scales

    @property
    def network(self) -> Network:
        """Whose layers they are."""
        return self.draw.network

    @property
    def keys(self) -> tuple[Array, Array, Array]:
        """Of the stem, of every layer, of the head: layer l's does not depend on how many there are."""
        stem, of_layers, head = jax.random.split(self.draw.key, 3)
        fold = functools.partial(jax.random.fold_in, of_layers)
        return stem, jax.vmap(fold)(jnp.arange(self.network.depth)), head

    def stem(self, of: tuple[int, ...] = (), *, keep: bool = False) -> tuple[Plan, At]:
        """Its plan, empty where there is none, with the scales of the first block."""
        plan = plan_of(self.network.stem, "stem/") if self.network.stem else ()
        return plan, At(self.keys[0], jax.tree.map(lambda s: s[0], self.scales), of, keep)

    def head(self, of: tuple[int, ...] = ()) -> tuple[Plan, At]:
        """Its plan, empty where there is none, at unit gain but for `OF_HEAD`."""
        network = self.network
        plan = plan_of(network.head, "head/") if network.head else ()
        at_unit = unit_scales(network.head, self.draw.dtype) if network.head else Scales()
        own = {OF_HEAD: self.scales[OF_HEAD][-1]} if OF_HEAD in at_unit else {}
        return plan, At(self.keys[2], Scales._of({**at_unit, **own}), of, keep=True)

    def scan(
        self, carry: Any, visit: Any, *, of: tuple[int, ...], extras: Any = None, reverse: bool = False
    ) -> tuple[Any, list[Any]]:
        """Visit every layer, as `vgjax.networks.layers.Layers.scan` does: ``(plan, at, carry, extra) -> (carry,
        report)``."""
        stages = self.network.stages
        here = by_stage(self.network, (self.keys[1], self.scales))
        reports: list[Any] = [None] * len(stages)
        for i in reversed(range(len(stages))) if reverse else range(len(stages)):
            plan = plan_of(stages[i].spec)

            def body(carry: Any, xs: Any, plan: Plan = plan) -> tuple[Any, Any]:
                (key, scales), extra = xs
                return visit(plan, At(key, scales, of, keep=reverse), carry, extra)

            xs = (here[i], extras[i] if extras is not None else None)
            if stages[i].keeps_shape:
                carry, reports[i] = lax.scan(body, carry, xs, length=stages[i].depth, reverse=reverse)
            else:
                carry, report = body(carry, jax.tree.map(lambda a: a[0], xs))
                reports[i] = jax.tree.map(lambda a: a[None], report)
        return carry, reports


def bind_undrawn(draw: Undrawn, scales: Scales) -> UndrawnLayers:
    """A network with its scales, those not given as `Network.completed` says."""
    return UndrawnLayers(draw, scales_along(draw.network, scales, draw.dtype))
