"""The states that gradient passes: along the layers, along the steps of a recurrence, or the longest of several ways.

A state is a run of cuts (`dominators`) with no weights between them. It stands for its preactivation: the first one,
with the bias.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from vgjax.diagnosis.dataflow import between_cuts, dominators, is_opened, reaching, sources, weighted_nodes
from vgjax.diagnosis.graphs import Graph, Node, Variable
from vgjax.diagnosis.sites import Site, Sites
from vgjax.diagnosis.spans import Spans, spans_between


@dataclass(eq=False)
class State:
    """A place that gradient passes.

    Attributes:
        variables: one, or the parts of a carry.
        sites: maps with weights on the way to it from the state before; its own, whose result it is, comes first.
        loops: those it stands in, outermost first.
        maker: the node that makes it; of a carry, the one that makes the next.
        spans: on the way to it from the state before (`find_spans`); of a carry, from the last state of a step.
    """

    variables: list[Variable]
    sites: list[Site] = field(default_factory=list)
    loops: tuple[Node, ...] = ()
    maker: Node | None = None
    spans: Spans = field(default_factory=Spans)


@dataclass(eq=False)
class Steps:
    """The states of a loop's body, each once a step, and then the carry that comes out.

    Attributes:
        node: the loop.
        states, result: of the body; the carry that comes out.
        entry: spans on the way into the loop from the state before it (`find_spans`).
    """

    node: Node
    states: list[State]
    result: State
    entry: Spans = field(default_factory=Spans)


@dataclass(eq=False)
class Way:
    """States and loops in the order of the computation: a `vgjax.diagnosis.readings.Path` before any number.

    Attributes:
        name, kind, all_gradient: as there.
        items: states, and loops with those of their bodies.
        outer: of a recurrence, the loops that it stands in, outermost first.
    """

    name: str
    kind: Literal["depth", "time"]
    items: list[State | Steps]
    all_gradient: bool = True
    outer: tuple[Node, ...] = ()

    def length(self) -> int:
        """Number of layers."""
        counts = [item.node.steps * len(item.states) if isinstance(item, Steps) else 1 for item in self.items]
        return sum(counts)

    def states(self) -> Iterator[State]:
        """All of them, those of loops once."""
        for item in self.items:
            if isinstance(item, Steps):
                yield from (*item.states, item.result)
            else:
                yield item


_FEW_STEPS = 32
"""A recurrence inside other loops has a way for each of their steps, if these are no more."""


class Ways:
    """Lays out a graph: the main way first, then recurrences."""

    def __init__(self, graph: Graph, sites: Sites, sinks: list[Variable]) -> None:
        self.sites = sites
        self.recurrences: dict[Node, Way] = {}
        main = self._main(graph, sinks)
        self._find_recurrences(graph, reaching(graph, sinks), ())
        self.all = [main, *self.recurrences.values()]

    def _main(self, graph: Graph, sinks: list[Variable]) -> Way:
        begins = sources(graph, sinks)
        best = Way("depth", "depth", self._chain(graph, begins, sinks, ()))
        for start in begins if len(begins) > 1 else []:
            from_one = Way("depth", "depth", self._chain(graph, [start], sinks, ()))
            best = max(best, from_one, key=Way.length)
        longest = Way("depth", "depth", self._longest(graph, begins, sinks), all_gradient=False)
        inside = [len(state.sites) for state in best.states()]
        # Cuts say little where most of the weights lie between two of them.
        few = not inside or max(inside) > max(1, sum(max(1, count) for count in inside) / 2)
        return longest if few and longest.length() > best.length() else best

    def _chain(
        self, graph: Graph, begins: list[Variable], sinks: list[Variable], loops: tuple[Node, ...]
    ) -> list[State | Steps]:
        """States and loops along the cuts from the beginnings to the sinks."""
        cuts = dominators(graph, begins, sinks)
        items: list[State | Steps] = []
        run: list[Variable] = []
        pending: list[Site] = []

        def close() -> None:
            nonlocal run, pending
            if run and (pending or not items):  # else there are no weights between it and what a loop gave
                items.append(_state(run, pending, loops))
                pending = []
            run = []

        between = between_cuts(graph, begins, sinks, cuts)
        for i, cut in enumerate([None, *cuts]):
            if isinstance(cut, Variable):
                run.append(cut)
            elif cut is not None and (steps := self._enter(cut, loops)) is not None:
                close()
                items.append(steps)
            elif cut is not None and (found := self.sites.of(cut)):
                close()
                pending += found
            found = [site for node in between.get(i - 1, []) for site in self.sites.of(node)]
            if found:
                close()
                pending += found
        close()
        return items

    def _enter(self, node: Node, loops: tuple[Node, ...]) -> Steps | None:
        """A loop on the way as layers; None if it is a recurrence, which gets a way of its own, or no loop."""
        if node.kind != "loop":
            return None
        body = node.graphs[0]
        constants, carried, _ = node.counts
        positions = [i for i in range(carried) if body.inputs[constants + i].is_state]
        if not positions:
            return None
        before = [body.inputs[constants + i] for i in positions]
        after = [body.outputs[i] for i in positions]
        inner = (*loops, node)
        sites = self.sites.of(node)
        result = State([node.outputs[i] for i in positions], loops=loops, maker=after[0].source)
        over_time = any(v.is_state for v in node.inputs[constants + carried :])
        chain = [] if over_time or len(before) > 1 else self._chain(body, before, after, inner)
        inside = [item for item in chain if isinstance(item, State)]
        if inside and len(inside) == len(chain):
            steps = Steps(node, _around(inside, before[0], inner, after[0].source), result)
        else:  # several parts of a carry, or loops of layers inside layers: a step is one state
            steps = Steps(node, [State(before, sites, inner, after[0].source)], result)
        if over_time and math.prod(outer.steps for outer in loops) <= _FEW_STEPS:
            self.recurrences[node] = Way(node.where, "time", [steps], outer=loops)
        if over_time:
            return None
        return steps

    def _find_recurrences(self, graph: Graph, alive: set[Variable], loops: tuple[Node, ...]) -> None:
        """Those off the main way too, and inside other loops."""
        for node in graph.nodes:
            if not is_opened(node) or not any(v in alive for v in node.outputs):
                continue
            inner = (*loops, node) if node.kind == "loop" else loops
            if node not in self.recurrences:
                self._enter(node, loops)
            for body in node.graphs:
                self._find_recurrences(body, reaching(body, body.outputs), inner)

    def _longest(self, graph: Graph, begins: list[Variable], sinks: list[Variable]) -> list[State | Steps]:
        """The way with most weights."""
        alive = reaching(graph, sinks)
        best: dict[Variable, tuple[int, Variable | None]] = {v: (0, None) for v in begins}
        for node in graph.nodes:
            known = [v for v in node.inputs if v.is_state and v in best]
            if not known or not any(v in alive for v in node.outputs):
                continue
            before = max(known, key=lambda v: best[v][0])
            count = len(list(weighted_nodes(node))) * (node.steps if node.kind == "loop" else 1)
            best.update((v, (best[before][0] + count, before)) for v in node.outputs if v.is_state and v not in best)
        here = max((v for v in sinks if v in best), key=lambda v: best[v][0], default=None)
        items: list[State | Steps] = []
        while here is not None:
            maker = here.source
            found = self.sites.of(maker) if maker else []
            steps = self._enter(maker, ()) if maker is not None and is_opened(maker) else None
            if steps is not None:
                items.append(steps)
            elif maker is not None and found:
                single = maker.kind == "equation"
                items.append(State([found[0].variable] if single else [here], found, maker=maker))
            here = best[here][1]
        return items[::-1]


def _state(run: list[Variable], sites: list[Site], loops: tuple[Node, ...]) -> State:
    """A run of cuts as one state: the result of the site before it, bias included, else its first variable."""
    own = [site for site in sites if site.variable in run]
    variable = own[-1].variable if own else run[0]
    ordered = [site for site in sites if site in own[-1:]] + [site for site in sites if site not in own[-1:]]
    return State([variable], ordered, loops, own[-1].node if own else variable.source)


def _around(chain: list[State], before: Variable, loops: tuple[Node, ...], maker: Node | None) -> list[State]:
    """The states of one step: the carry before it, with the sites that make the next one, the last of the chain; then
    those on the way."""
    return [State([before], chain[-1].sites, loops, maker), *chain[1:-1]]


# --- what lies between ----------------------------------------------------------------------------------------------


def find_spans(way: Way, graph: Graph) -> None:
    """Say of all states what lies between them and the state before, where they are cuts of one variable each."""
    before: Variable | None = None
    for item in way.items if way.all_gradient else []:
        if isinstance(item, Steps):
            _find_spans_of_steps(item, graph, before)
            before = _single(item.result)
        else:
            here = _single(item)
            item.spans = _spans(graph, before, here)
            before = here


def _find_spans_of_steps(steps: Steps, graph: Graph, before: Variable | None) -> None:
    """A loop's, if all of its gradient comes in by the carry, and that of its entry, if all of it leaves there."""
    node, body = steps.node, steps.node.graphs[0]
    carry = _single(steps.states[0])
    if carry is None or node not in graph.nodes:
        return
    position = body.inputs.index(carry)
    taken, used = node.inputs[position], [v for v in node.outputs if v.users or v in graph.outputs]
    if [v for v in node.inputs if v.is_state] == [taken] and len(taken.users) == 1:
        steps.entry = _spans(graph, before, taken)
    if [v for v in used if v.is_state] == steps.result.variables:
        for one, other in itertools.pairwise(steps.states):
            other.spans = _spans(body, _single(one), _single(other))
        last, following = _single(steps.states[-1]), body.outputs[position - node.counts[0]]
        steps.states[0].spans = steps.result.spans = _spans(body, last, following)


def _spans(graph: Graph, before: Variable | None, here: Variable | None) -> Spans:
    return Spans() if before is None or here is None else spans_between(graph, before, here)


def _single(state: State) -> Variable | None:
    """The variable of a state that is no more than one."""
    return state.variables[0] if len(state.variables) == 1 else None
