"""Rows of a reading: names, places and numbers of states and sites."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from vgjax.diagnosis.graphs import Node, Variable
from vgjax.diagnosis.numbers import Index, Numbers, joined
from vgjax.diagnosis.paths import State, Way
from vgjax.diagnosis.pieces import Part, Piece
from vgjax.diagnosis.readings import NAN, Frontier, Row
from vgjax.diagnosis.sites import Site


class Rows:
    """Makes rows.

    Args:
        names, parameters: paths of the parameters, and their variables.
        numbers: what was read.
    """

    def __init__(self, names: list[str], parameters: list[Variable], numbers: Numbers) -> None:
        self._names = names
        self._parameters = parameters
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
            result = replace(self.of_state(item.result, index, None), name=self._state_name(item.states[0]))
            if result.log_cotangent > -math.inf or any(variable.users for variable in item.result.variables):
                yield result

    def name_of_way(self, way: Way) -> str:
        """The name of its first state."""
        return self._state_name(next(way.states()))

    def of_state(self, state: State, index: Index, step: int | None) -> Row:
        """A state at one step of the loops it stands in."""
        variable = state.variables[0]
        own = state.sites[0] if state.sites and state.sites[0].variable in state.variables else None
        preactivation = own.preactivation if own else variable
        zeros, saturated = self._numbers.shares(preactivation, index) if len(state.variables) == 1 else (NAN, NAN)
        return Row(
            name=self._state_name(state),
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
            name=self._site_name(site),
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

    def name_of(self, part: Part, ways: list[Way], sites: list[Site]) -> str:
        """The name of the first state or site that a part makes; its operation if it makes none."""
        made = {*part.read, *part.outputs}
        for state in (state for way in ways for state in way.states()):
            if not made.isdisjoint(state.variables):
                return self._state_name(state)
        names = [self._site_name(site) for site in sites if site.variable in made]
        return names[0] if names else f"{_last_node(part).name} at {_last_node(part).where}"

    def _parameter_gradient(self, site: Site, index: Index) -> float:
        """Of the slice that the site reads, or of the whole parameter where its weight is made of it in another way."""
        if site.parameter is None:
            return NAN
        return self._numbers.log_cotangent(site.weight or self._parameters[site.parameter], index)

    def _site_name(self, site: Site) -> str:
        return site.node.scope or site.node.name if site.parameter is None else self._names[site.parameter]

    def _state_name(self, state: State) -> str:
        """The parameter's path of its one site; of several what their paths have in common, or else the first's."""
        names = [self._site_name(site) for site in state.sites]
        if names and (len(set(names)) == 1 or state.sites[0].variable in state.variables):
            return names[0]
        if names:
            return "/".join(_common(names)) or names[0]
        return (state.maker.scope or state.maker.name) if state.maker else "input"


def _common(names: list[str]) -> list[str]:
    parts = list(zip(*(name.split("/") for name in names), strict=False))
    length = next((i for i, part in enumerate(parts) if len(set(part)) > 1), len(parts))
    return names[0].split("/")[:length]


def _last_node(part: Part) -> Node:
    return part.nodes[-1] if isinstance(part, Piece) else part.node
