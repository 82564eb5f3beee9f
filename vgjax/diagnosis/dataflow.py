"""What depends on what: signal and weights, and the variables that all gradient must pass."""

import random
from collections.abc import Iterable, Iterator, Sequence

import jax.extend.core.primitives as primitives

from vgjax.diagnosis.graphs import Graph, Node, Variable, is_inexact


def _named(*names: str) -> set[object]:
    return {getattr(primitives, f"{name}_p") for name in names if hasattr(primitives, f"{name}_p")}


NO_GRADIENT = _named("stop_gradient", "sign", "floor", "ceil", "round", "argmax", "argmin", "while")
"""What gradient does not pass."""

SHAPES = _named("reshape", "broadcast_in_dim", "convert_element_type", "transpose", "squeeze", "expand_dims", "copy")
"""What moves the entries of an array and changes none."""

OPAQUE = {"while", "custom_vjp_call", "shard_map", "pallas_call"}
"""Names of what is differentiated by its own rule, or not at all, and not looked into."""

PRODUCTS = {"dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general", "scaled_dot"}


# --- marks ----------------------------------------------------------------------------------------------------------


def mark(graph: Graph) -> None:
    """Set ``batch``, ``differentiable`` and ``parameters`` of all variables, those of the graph's inputs being set."""
    for node in graph.nodes:
        if node.kind == "loop":
            _mark_loop(node)
        elif node.kind == "switch":
            _mark_switch(node)
        elif node.kind == "checkpoint":
            _mark_checkpoint(node)
        else:
            passes = any(v.differentiable for v in node.inputs) and node.primitive not in NO_GRADIENT
            for output in node.outputs:
                output.batch = any(v.batch for v in node.inputs)
                output.differentiable = passes and is_inexact(output)
                output.parameters = frozenset().union(*(v.parameters for v in node.inputs))


def _join(variable: Variable, *others: Variable) -> bool:
    """Let a variable depend on what others depend on; whether that changed it."""
    before = variable.batch, variable.differentiable, variable.parameters
    variable.batch |= any(v.batch for v in others)
    variable.differentiable |= any(v.differentiable for v in others) and is_inexact(variable)
    variable.parameters |= frozenset().union(*(v.parameters for v in others))
    return before != (variable.batch, variable.differentiable, variable.parameters)


def _mark_loop(node: Node) -> None:
    """The body until its carry depends on nothing more: at most as many rounds as parts are carried."""
    constants, carried, _ = node.counts
    body = node.graphs[0]
    for variable, inner in zip(node.inputs, body.inputs, strict=True):
        _join(inner, variable)
    carry = body.inputs[constants : constants + carried]
    while True:
        mark(body)
        if not any([_join(before, after) for before, after in zip(carry, body.outputs[:carried], strict=True)]):
            break
    for i, output in enumerate(node.outputs):
        _join(output, body.outputs[i], *([carry[i]] if i < carried else []))


def _mark_switch(node: Node) -> None:
    index, *operands = node.inputs
    for branch in node.graphs:
        for variable, inner in zip(operands, branch.inputs, strict=True):
            _join(inner, variable)
        mark(branch)
    for i, output in enumerate(node.outputs):
        _join(output, *(branch.outputs[i] for branch in node.graphs))
        output.batch |= index.batch


def _mark_checkpoint(node: Node) -> None:
    (body,) = node.graphs
    for variable, inner in zip(node.inputs, body.inputs, strict=True):
        _join(inner, variable)
    mark(body)
    for output, inner in zip(node.outputs, body.outputs, strict=True):
        _join(output, inner)


# --- maps with weights ----------------------------------------------------------------------------------------------


def is_embedding(node: Node) -> bool:
    """Whether it reads rows of a weight by indices of the batch."""
    return node.primitive is primitives.gather_p and node.inputs[0].is_weight and node.inputs[1].batch


def is_weighted(node: Node) -> bool:
    """Whether it is a product or a convolution of a weight with the signal, an embedding, or has a rule of its own for
    a weight and the signal."""
    if node.name in PRODUCTS | OPAQUE | {"custom_jvp_call"}:
        return any(v.is_weight for v in node.inputs) and any(v.batch for v in node.inputs)
    return node.kind == "equation" and is_embedding(node)


def weighted_nodes(node: Node) -> Iterator[Node]:
    """The maps with weights in a node, itself or nested."""
    if node.kind == "equation" and is_weighted(node):
        yield node
    for graph in node.graphs:
        yield from (inner for inner in graph.all_nodes() if inner.kind == "equation" and is_weighted(inner))


def is_opened(node: Node) -> bool:
    """Whether a loop or a branching is looked into: a loop if it makes states, a branching if there is a loop or a map
    with weights in it too. All others are equations like any other."""
    if node.kind == "equation" or not any(v.is_state for v in node.outputs):
        return False
    if node.kind == "loop":
        return True
    return any(is_weighted(inner) or is_opened(inner) for graph in node.graphs for inner in graph.all_nodes())


# --- ways of the gradient -------------------------------------------------------------------------------------------


def reaching(graph: Graph, sinks: Iterable[Variable]) -> set[Variable]:
    """The differentiable variables that the sinks depend on, themselves among them."""
    reached = {v for v in sinks if v.differentiable}
    for node in reversed(graph.nodes):
        if any(output in reached for output in node.outputs):
            reached.update(v for v in node.inputs if v.differentiable)
    return reached


def sources(graph: Graph, sinks: Iterable[Variable]) -> list[Variable]:
    """Where the signal begins: states made of no other state (float inputs, embeddings), if they reach the sinks."""
    reached = reaching(graph, sinks)
    made = [v for node in graph.nodes if not any(i.is_state for i in node.inputs) for v in node.outputs]
    return [v for v in (*graph.inputs, *made) if v.is_state and v in reached]


_PRIME = (1 << 61) - 1


def dominators(graph: Graph, starts: Iterable[Variable], sinks: Iterable[Variable]) -> list[Variable | Node]:
    """States, and loops and branchings that are opened, on every way from the starts to the sinks, in program order.

    Ways are counted modulo a prime with random weights at their edges: something lies on all of them if and only if
    (ways to it) (ways from it) is the count of all (but for a chance of 1e-15).
    """
    generator = random.Random(0)
    begins = dict.fromkeys(starts)
    ways_to: dict[Variable | Node, int] = dict.fromkeys(begins, 1)
    weight: dict[tuple[Node, int], int] = {}
    for node in graph.nodes:
        for i, v in enumerate(node.inputs):
            if v.is_state and v in ways_to:
                weight[node, i] = generator.randrange(1, _PRIME)
        ways_to[node] = sum(ways_to[v] * weight[node, i] for i, v in enumerate(node.inputs) if (node, i) in weight)
        ways_to[node] %= _PRIME
        ways_to.update((v, ways_to[node]) for v in node.outputs if v.is_state and v not in begins)
    ways_from: dict[Variable | Node, int] = dict.fromkeys(sinks, 1)
    for node in reversed(graph.nodes):
        ways_from[node] = sum(ways_from.get(v, 0) for v in node.outputs if v.is_state and v not in begins) % _PRIME
        for i, v in enumerate(node.inputs):
            if (node, i) in weight:
                ways_from[v] = (ways_from.get(v, 0) + ways_from[node] * weight[node, i]) % _PRIME
    total = sum(ways_from.get(v, 0) for v in begins) % _PRIME
    candidates: list[Variable | Node] = [v for v in begins if v.source is None]
    for node in graph.nodes:
        candidates += [node, *node.outputs] if is_opened(node) else node.outputs
    return [c for c in candidates if total and ways_to.get(c, 0) * ways_from.get(c, 0) % _PRIME == total]


def between_cuts(
    graph: Graph, begins: Sequence[Variable], sinks: Sequence[Variable], cuts: Sequence[Variable | Node]
) -> dict[int, list[Node]]:
    """The nodes that gradient passes behind each cut and before the next; -1: before the first."""
    number: dict[Variable | Node, int] = {cut: i for i, cut in enumerate(cuts)}
    behind = {v: number.get(v, -1) for v in begins}
    alive = reaching(graph, sinks)
    nodes: dict[int, list[Node]] = {}
    for node in graph.nodes:
        known = [behind[v] for v in node.inputs if v in behind]
        if not any(v in alive for v in node.outputs) or not (known or any(v in behind for v in node.outputs)):
            continue
        last = max(known, default=-1)
        if node not in number:
            nodes.setdefault(last, []).append(node)
        behind.update((v, number.get(v, number.get(node, last))) for v in node.outputs if v.is_state)
    return nodes
