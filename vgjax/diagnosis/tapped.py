"""A graph run and differentiated by JAX itself, with something done at some of its variables."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax import lax

from vgjax.diagnosis.forward import run_switch
from vgjax.diagnosis.graphs import Graph, Node, Variable, evaluate, value_of

Taps = dict[Variable, Any]
"""A pytree for variables of a graph or of graphs nested in it; with leading axes of steps for those in loops."""

Visit = Callable[[Variable, Any, Any], tuple[Any, Any]]
"""``(variable, value, its tap) -> (value that goes on, report)``."""


def run(graph: Graph, inputs: Sequence[Any], taps: Taps, visit: Visit) -> tuple[list[Any], Taps]:
    """Outputs of a graph, and what was reported at the variables that have taps.

    Args:
        graph: a whole one.
        inputs: in the order of its inputs.
        taps: by variable.
        visit: what is done there.
    """
    values: dict[Variable, Any] = dict(graph.constants)
    reports: Taps = {}

    def put(variables: Sequence[Variable], found: Sequence[Any]) -> None:
        for variable, value in zip(variables, found, strict=True):
            values[variable] = value
            if variable in taps:
                values[variable], reports[variable] = visit(variable, value, taps[variable])

    put(graph.inputs, inputs)
    for node in graph.nodes:
        arguments = [value_of(v, values) for v in node.inputs]
        if node.graphs:
            inner = {v: taps[v] for v in _inside(node) if v in taps}
            found, below = _NESTED[node.kind](node, arguments, inner, visit)
            reports |= below
        else:
            found = evaluate(node, arguments)
        put(node.outputs, found)
    return [value_of(v, values) for v in graph.outputs], reports


def _inside(node: Node) -> Iterator[Variable]:
    for graph in node.graphs:
        yield from graph.inputs
        for inner in graph.all_nodes():
            yield from inner.outputs
            for nested in inner.graphs:
                yield from nested.inputs


def _loop(node: Node, arguments: list[Any], taps: Taps, visit: Visit) -> tuple[list[Any], Taps]:
    constants, carried, _ = node.counts
    fixed, carry, slices = (
        arguments[:constants], arguments[constants : constants + carried], arguments[constants + carried :]
    )  # fmt: skip
    variables, given = list(taps), node.equation.params

    def step(carry: list[Any], now: Any) -> Any:
        slices, taps_now = now
        here = dict(zip(variables, taps_now, strict=True))
        outputs, reports = run(node.graphs[0], [*fixed, *carry, *slices], here, visit)
        return outputs[:carried], (outputs[carried:], [reports[v] for v in variables])

    how = {"length": node.steps, "reverse": given["reverse"], "unroll": given["unroll"]}
    carry, (stacked, found) = lax.scan(step, carry, (slices, list(taps.values())), **how)
    return [*carry, *stacked], dict(zip(variables, found, strict=True))


def _switch(node: Node, arguments: list[Any], taps: Taps, visit: Visit) -> tuple[list[Any], Taps]:
    variables = list(taps)

    def branch(graph: Graph) -> Callable[..., Any]:
        def inner(taps_now: list[Any], *operands: Any) -> Any:
            outputs, reports = run(graph, operands, dict(zip(variables, taps_now, strict=True)), visit)
            return outputs, {variables.index(v): report for v, report in reports.items()}

        return inner

    operands = (list(taps.values()), *arguments[1:])
    outputs, found = run_switch(arguments[0], [branch(graph) for graph in node.graphs], operands)
    return outputs, {variables[i]: report for i, report in found.items()}


def _checkpoint(node: Node, arguments: list[Any], taps: Taps, visit: Visit) -> tuple[list[Any], Taps]:
    variables, given = list(taps), node.equation.params

    def inner(taps_now: list[Any], *arguments: Any) -> Any:
        outputs, reports = run(node.graphs[0], arguments, dict(zip(variables, taps_now, strict=True)), visit)
        return outputs, [reports[v] for v in variables]

    kept = jax.checkpoint(inner, prevent_cse=given["prevent_cse"], policy=given["policy"])
    outputs, found = kept(list(taps.values()), *arguments)
    return outputs, dict(zip(variables, found, strict=True))


_NESTED: dict[str, Callable[..., tuple[list[Any], Taps]]] = {
    "loop": _loop,
    "switch": _switch,
    "checkpoint": _checkpoint,
}
