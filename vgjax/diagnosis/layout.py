"""A function laid out: its graph, the maps with weights in it, the states that gradient passes, and their names."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vgjax.diagnosis.dataflow import mark
from vgjax.diagnosis.graphs import is_inexact, trace
from vgjax.diagnosis.paths import State, Way, Ways
from vgjax.diagnosis.pieces import Compiled
from vgjax.diagnosis.sites import Site, Sites


class Layout:
    """What is known of a function before any number.

    Args:
        function: ``(parameters, inputs, rest) -> outputs``.
        parameters, inputs, rest: pytrees of arrays that it is traced at.
        has_loss: whether the first output alone is what gradient comes from.
        checkpoints: as for `vgjax.diagnosis.graphs.trace`.
        compiled: as for `vgjax.diagnosis.sites.Sites`.

    Attributes:
        names: paths of the parameters, in the order of their tree.
        graph: the function's.
        parameters: its variables.
        sinks: outputs that gradient comes from.
        sites, ways: maps with weights, and states.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        parameters: Any,
        inputs: Any,
        rest: Any,
        *,
        has_loss: bool = True,
        checkpoints: bool = False,
        compiled: Compiled | None = None,
    ) -> None:
        self.names = parameter_names(parameters)
        self.graph = trace(function, parameters, inputs, rest, checkpoints=checkpoints)
        leaves, data = jax.tree.leaves(parameters), jax.tree.leaves(inputs)
        self.parameters = self.graph.inputs[: len(leaves)]
        for i, variable in enumerate(self.parameters):
            variable.differentiable = is_inexact(variable)
            variable.parameters = frozenset([i])
        for variable in self.graph.inputs[len(leaves) : len(leaves) + len(data)]:
            variable.batch, variable.differentiable = True, is_inexact(variable)
        mark(self.graph)
        outputs = self.graph.outputs[:1] if has_loss else self.graph.outputs
        self.sinks = [variable for variable in outputs if variable.is_state]
        self.sites = Sites(self.graph, [int(np.size(leaf)) for leaf in leaves], compiled)
        self.ways: list[Way] = Ways(self.graph, self.sites, self.sinks).all

    def states(self) -> list[State]:
        """Of all ways."""
        return [state for way in self.ways for state in way.states()]

    def site_name(self, site: Site) -> str:
        """The path of the largest parameter in its weight."""
        return site.node.scope or site.node.name if site.parameter is None else self.names[site.parameter]

    def state_name(self, state: State) -> str:
        """The parameter's path of its one site; of several what their paths have in common, or else the first's."""
        names = [self.site_name(site) for site in state.sites]
        if names and (len(set(names)) == 1 or state.sites[0].variable in state.variables):
            return names[0]
        if names:
            return "/".join(_common(names)) or names[0]
        return (state.maker.scope or state.maker.name) if state.maker else "input"


def parameter_names(parameters: Any) -> list[str]:
    """The path of every leaf, as ``encoder/layers/7/kernel``; no two are the same."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(parameters)]
    names = ["/".join(filter(None, map(_key_name, path))) for path in paths]
    return names if len({*names}) == len(names) else [jax.tree_util.keystr(path) for path in paths]


def _key_name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            name = str(getattr(key, attribute))
            return "" if name in ("value", "raw_value") else name
    return str(key)


def _common(names: list[str]) -> list[str]:
    parts = list(zip(*(name.split("/") for name in names), strict=False))
    length = next((i for i, part in enumerate(parts) if len(set(part)) > 1), len(parts))
    return names[0].split("/")[:length]
