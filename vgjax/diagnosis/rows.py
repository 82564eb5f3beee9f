"""Rows of a reading: names, places and numbers of states and sites."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from vgjax.diagnosis.graphs import Node
from vgjax.diagnosis.layout import Layout
from vgjax.diagnosis.numbers import Index, Numbers, joined
from vgjax.diagnosis.paths import State, Steps, Way
from vgjax.diagnosis.pieces import Part, Piece
from vgjax.diagnosis.readings import NAN, Frontier, Row
from vgjax.diagnosis.sites import Site
from vgjax.diagnosis.spans import Spans


class Rows:
    """Makes rows.

    Args:
        layout: of the function.
        numbers: what was read.
    """

    def __init__(self, layout: Layout, numbers: Numbers) -> None:
        self._layout = layout
        self._numbers = numbers

    def of_way(self, way: Way, index: Index) -> Iterator[Row]:
        """All rows of a way, steps of its loops one by one."""
        for position, item in enumerate(way.items):
            if isinstance(item, State):
                yield self._split(self.of_state(item, index, None), item.spans, index)
            else:
                yield from self._of_steps(item, index, is_first=position == 0)

    def _of_steps(self, steps: Steps, index: Index, *, is_first: bool) -> Iterator[Row]:
        """Of a loop's states at every step, then of the carry that comes out."""
        numbers, (carry, *others) = range(steps.node.steps), steps.states
        spans, before = steps.entry, index
        for step in numbers[::-1] if steps.node.equation.params["reverse"] else numbers:
            here = (*index, step)
            is_again = not is_first and before is index  # what a loop begins with is the state before it, once more
            yield self._split(replace(self.of_state(carry, here, step), is_layer=not is_again), spans, before)
            for state in others:
                yield self._split(self.of_state(state, here, step), state.spans, here)
            spans, before = carry.spans, here
        result = replace(self.of_state(steps.result, index, None), name=self._layout.state_name(carry))
        if result.log_cotangent > -math.inf or any(variable.users for variable in steps.result.variables):
            yield self._split(result, spans, before)

    def _split(self, row: Row, spans: Spans, index: Index) -> Row:
        """With what lies between it and the state before, read at these steps."""
        logs = tuple(self._numbers.log_cotangent(cut, index) for cut in spans.cuts)
        return row if any(map(math.isnan, logs)) else replace(row, kinds=spans.kinds, log_cuts=logs)

    def name_of_way(self, way: Way) -> str:
        """The name of its first state."""
        return self._layout.state_name(next(way.states()))

    def of_state(self, state: State, index: Index, step: int | None) -> Row:
        """A state at one step of the loops it stands in."""
        variable = state.variables[0]
        own = state.sites[0] if state.sites and state.sites[0].variable in state.variables else None
        preactivation = own.preactivation if own else variable
        zeros, saturated = self._numbers.shares(preactivation, index) if len(state.variables) == 1 else (NAN, NAN)
        return Row(
            name=self._layout.state_name(state),
            where=state.maker.where if state.maker else "",
            operation=state.maker.name if state.maker else "input",
            shape=variable.shape,
            dtype=str(variable.aval.dtype),
            step=step,
            log_rms=self._numbers.log_rms(state.variables, index),
            log_cotangent=self._numbers.log_cotangents(state.variables, index),
            log_parameter_gradient=self._parameter_gradient(state.sites[0], index) if state.sites else NAN,
            zeros=zeros,
            saturated=saturated,
            sites=tuple(self.of_site(site, index, step) for site in state.sites if site is not own),
        )

    def of_site(self, site: Site, index: Index = (), step: int | None = None) -> Row:
        """A map with weights, joined over the steps of loops that the index does not name."""
        variable = site.variable
        zeros, saturated = self._numbers.shares(site.preactivation, index)
        return Row(
            name=self._layout.site_name(site),
            where=site.node.where,
            operation=site.node.name,
            shape=variable.shape,
            dtype=str(variable.aval.dtype),
            step=step,
            log_rms=self._numbers.log_rms([variable], index),
            log_cotangent=self._numbers.log_cotangent(variable, index),
            log_parameter_gradient=self._parameter_gradient(site, index),
            zeros=zeros,
            saturated=saturated,
        )

    def of_front(self, front: tuple[Part, list[np.ndarray]]) -> Frontier:
        """The gradient that is alive after a part."""
        part, logs = front
        every = np.concatenate(logs) if logs else np.array([-np.inf])
        return Frontier(_last_node(part).where, joined(logs), float(np.min(every)))

    def name_of(self, part: Part) -> str:
        """The name of the first state or site that a part makes; its operation if it makes none."""
        made = {*part.read, *part.outputs}
        for state in self._layout.states():
            if not made.isdisjoint(state.variables):
                return self._layout.state_name(state)
        names = [self._layout.site_name(site) for site in self._layout.sites.all if site.variable in made]
        return names[0] if names else f"{_last_node(part).name} at {_last_node(part).where}"

    def _parameter_gradient(self, site: Site, index: Index) -> float:
        """Of the slice that the site reads, or of the whole parameter where its weight is made of it in another way."""
        if site.parameter is None:
            return NAN
        return self._numbers.log_cotangent(site.weight or self._layout.parameters[site.parameter], index)


def _last_node(part: Part) -> Node:
    return part.nodes[-1] if isinstance(part, Piece) else part.node
