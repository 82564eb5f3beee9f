"""Rows of a reading: names, places and numbers of states and sites."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from vgjax.diagnosis.graphs import Node
from vgjax.diagnosis.layout import Layout
from vgjax.diagnosis.numbers import Index, Numbers, joined
from vgjax.diagnosis.paths import State, Way
from vgjax.diagnosis.pieces import Part, Piece
from vgjax.diagnosis.readings import NAN, Frontier, Row
from vgjax.diagnosis.sites import Site


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
                yield self.of_state(item, index, None)
                continue
            steps = range(item.node.steps)
            order = steps[::-1] if item.node.equation.params["reverse"] else steps
            rows = [self.of_state(state, (*index, step), step) for step in order for state in item.states]
            if rows and position:  # what a loop begins with is the state before it, once more
                rows[0] = replace(rows[0], is_layer=False)
            yield from rows
            result = replace(self.of_state(item.result, index, None), name=self._layout.state_name(item.states[0]))
            if result.log_cotangent > -math.inf or any(variable.users for variable in item.result.variables):
                yield result

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
