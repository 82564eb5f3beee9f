"""What lies between one state and the next: spans from cut to cut, of one kind each.

Every gradient passes every cut, so that a state's gain is the product of what its spans do.
"""

import itertools
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import jax.extend.core.primitives as primitives

from vgjax.diagnosis.dataflow import PRODUCTS, SHAPES, between_cuts, dominators, is_weighted, weighted_nodes
from vgjax.diagnosis.graphs import Graph, Node, Variable
from vgjax.diagnosis.readings import Kind
from vgjax.diagnosis.sites import ELEMENTWISE


@dataclass(frozen=True, eq=False)
class Spans:
    """In the order of the computation; none where they cannot be told apart.

    Attributes:
        kinds: of each.
        cuts: the variables between them, one fewer.
    """

    kinds: tuple[Kind, ...] = ()
    cuts: tuple[Variable, ...] = ()


def spans_between(graph: Graph, start: Variable, end: Variable) -> Spans:
    """Those from one state to a later one; their cuts are marked as read on the way back."""
    if start is end:
        return Spans(("other",))
    made = [-1 if v.source is None else graph.nodes.index(v.source) for v in (start, end)]
    inner = Graph([start], [end], nodes=graph.nodes[made[0] + 1 : made[1] + 1])
    cuts = [v for v in dominators(inner, [start], [end]) if isinstance(v, Variable) and v is not start]
    if end not in cuts:
        return Spans()
    nodes = between_cuts(inner, [start], [end], [start, *cuts])
    passed = {start, *(v for some in nodes.values() for node in some for v in node.outputs)}
    ends = enumerate(itertools.pairwise([start, *cuts]))
    spans = _joined([(_kind(nodes[i], passed, before, cut), nodes[i], cut) for i, (before, cut) in ends])
    for cut in spans.cuts:
        cut.cotangent_only |= not cut.read
        cut.read = True
    return spans


def _joined(spans: Sequence[tuple[Kind | None, Sequence[Node], Variable]]) -> Spans:
    """Neighbours that belong together as one span."""
    kinds: list[Kind | None] = []
    ends: list[Variable] = []
    for kind, nodes, end in spans:
        if kinds and _belongs(kind, nodes, kinds[-1]):
            ends[-1] = end
        elif kinds and kinds[-1] is None:
            kinds[-1], ends[-1] = kind, end
        else:
            kinds.append(kind)
            ends.append(end)
    return Spans(tuple(kind or "other" for kind in kinds), tuple(ends[:-1]))


def _belongs(kind: Kind | None, nodes: Sequence[Node], last: Kind | None) -> bool:
    """Whether a span is one with that before it: of its kind or of none, the weight of a norm, the count of a mean."""
    if kind != "scale" or kind == last:
        return kind in (None, last)
    factors = [v for node in nodes for v in node.inputs]
    is_weight, is_count = any(v.is_weight for v in factors), any(v.literal is not None for v in factors)
    return (last == "norm" and is_weight) or (last == "pooling" and is_count)


# --- kinds ----------------------------------------------------------------------------------------------------------

_MOVES = SHAPES | {primitives.add_p, primitives.sub_p, primitives.neg_p}
"""What changes no norm of a cotangent, if it takes one state and keeps its size."""


def _kind(nodes: Sequence[Node], passed: AbstractSet[Variable], before: Variable, cut: Variable) -> Kind | None:
    """Of the nodes between two neighbouring cuts; none of a bias, a cast, a reshape, which change no norm.

    Args:
        nodes: one that all gradient passes, or those of several ways.
        passed: the variables that it passes; others are constants to it.
        before, cut: where they begin and end.
    """
    keeps_size = before.size == cut.size
    if len(nodes) == 1:
        return _kind_of_one(nodes[0], passed, keeps_size)
    if any(node.name in PRODUCTS or any(weighted_nodes(node)) for node in nodes):
        return "branch"
    if any(node.name.startswith("reduce_") for node in nodes):
        makers = [*nodes, before.source] if before.source else nodes
        is_softmax = any(node.name in ("exp", "exp2") for node in makers)
        return "activation" if is_softmax else "norm" if keeps_size else "pooling"
    return _kind_by_entries(nodes, passed)


def _kind_of_one(node: Node, passed: AbstractSet[Variable], keeps_size: bool) -> Kind | None:
    if node.kind == "loop":
        return "recurrence"
    if node.kind == "equation" and is_weighted(node):
        return "kernel"
    if node.name.startswith("reduce_"):
        return "pooling"
    if node.primitive in _MOVES and keeps_size and sum(v in passed for v in node.inputs) == 1:
        return None
    return _kind_by_entries([node], passed)


def _kind_by_entries(nodes: Sequence[Node], passed: AbstractSet[Variable]) -> Kind:
    """Of what neither sums nor multiplies states."""
    by_entry = [node for node in nodes if node.kind == "equation" and node.name in ELEMENTWISE]
    if not all(_is_linear(node, passed) for node in by_entry):
        return "activation"
    return "scale" if len(by_entry) == len(nodes) else "other"


def _is_linear(node: Node, passed: AbstractSet[Variable]) -> bool:
    """Of what maps entry by entry."""
    if node.primitive is primitives.mul_p:
        return sum(v in passed for v in node.inputs) == 1
    if node.primitive is primitives.div_p:
        return node.inputs[1] not in passed
    if node.primitive is primitives.select_n_p:
        return not node.inputs[0].batch  # a mask that is drawn, and not where a state is positive
    return node.primitive in _MOVES
