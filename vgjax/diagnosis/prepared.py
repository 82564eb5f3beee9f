"""A model traced, laid out and ready to be read: again and again with other parameters of the same shapes."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax.diagnosis.backward import Front, backward
from vgjax.diagnosis.dataflow import OPAQUE
from vgjax.diagnosis.exact import as_float, exact_forward, exact_loop_backward, exact_piece_backward
from vgjax.diagnosis.forward import Forward, forward
from vgjax.diagnosis.graphs import Variable
from vgjax.diagnosis.layout import Layout
from vgjax.diagnosis.models import Model
from vgjax.diagnosis.numbers import Numbers, left_range, signals_are_doubtful
from vgjax.diagnosis.paths import Way, find_spans
from vgjax.diagnosis.pieces import Compiled, Part, divide
from vgjax.diagnosis.readings import NAN, Path, Readings
from vgjax.diagnosis.rows import Rows
from vgjax.diagnosis.sites import find_nonlinearity
from vgjax.floatexp import FloatExp, from_float

LARGE = 2**14
"""Entries from which on an array that a function closes over is listed."""


def prepare(model: Model, *, parameters: bool = True) -> "Prepared":
    """Trace a model and lay it out; nothing is computed yet.

    Args:
        model: what to read.
        parameters: read gradients of parameters too.

    Raises:
        ValueError: if it writes to mutable references.
    """
    return Prepared(model, parameters)


class Prepared:
    """A model laid out (`prepare`)."""

    def __init__(self, model: Model, parameters: bool = True) -> None:
        self.model = model
        self.compiled = compiled = Compiled()
        self.layout = Layout(
            model.function, model.parameters, model.inputs, model.rest, has_loss=model.has_loss, compiled=compiled
        )
        for variable in self.layout.parameters:
            variable.read = variable.differentiable
        for way in self.layout.ways:
            find_spans(way, self.layout.graph)
        if not parameters:
            self._leave_out_weights()
        self.program = divide(self.layout.graph, self._mark_read())

    def _leave_out_weights(self) -> None:
        """Pull nothing back to what states are multiplied by; where they are is known by now."""
        graph = self.layout.graph
        nodes = graph.all_nodes()
        graphs = [graph, *(inner for node in graph.all_nodes() for inner in node.graphs)]
        variables = [v for node in nodes for v in (*node.inputs, *node.outputs)]
        for variable in [*variables, *(v for each in graphs for v in each.inputs)]:
            variable.differentiable &= not variable.is_weight

    def _mark_read(self) -> set[Variable]:
        """Mark the states as read, as the sites are; they are the cuts."""
        cuts = {v for state in self.layout.states() for v in state.variables}
        for variable in cuts:
            variable.read, variable.cotangent_only = variable.differentiable, False
            variable.nonlinearity = variable.nonlinearity or find_nonlinearity(variable, self.compiled)
        return cuts

    def read(self, parameters: Any = None, inputs: Any = None, *, key: Array | None = None) -> Readings:
        """One forward and one backward pass.

        Args:
            parameters, inputs: others of the same tree and shapes; the model's own by default. Nothing is compiled
                anew.
            key: draws what is pulled back from the outputs of a model without a loss; a fixed one by default.
        """
        return self._readings(self.numbers(parameters, inputs, key=key))

    def numbers(self, parameters: Any = None, inputs: Any = None, *, key: Array | None = None) -> Numbers:
        """What `read` reads, by variable of the graph."""
        key = jax.random.key(0) if key is None else key
        parameters = self.model.parameters if parameters is None else parameters
        inputs = self.model.inputs if inputs is None else inputs
        values = [jnp.asarray(leaf) for leaf in jax.tree.leaves((parameters, inputs, self.model.rest))]
        done = forward(self.program, values, self.compiled, False)
        if signals_are_doubtful(done.signals):
            done = forward(self.program, values, self.compiled, True)
            if left_range(done.signals):
                exact = exact_forward(self.program, values, self.compiled)
                return self._passes(exact.forward, key, careful=True, exact=exact.exact)
        numbers = self._passes(done, key, careful=False)
        return self._passes(done, key, careful=True) if numbers.are_doubtful() else numbers

    def _passes(self, done: Forward, key: Array, *, careful: bool, exact: dict[Part, Any] | None = None) -> Numbers:
        """The backward pass after a forward one, and what both have read."""
        outputs = done.outputs(self.program)
        pulls = (exact_piece_backward, exact_loop_backward) if exact is not None else None
        fronts: list[Front] | None = None if self.layout.ways[0].all_gradient else []
        given = self._cotangents([as_float(value) for value in outputs], key)
        back = backward(self.program, done, given, self.compiled, careful, fronts, pulls)
        return Numbers(done.signals, back.squares, outputs, exact or {}, fronts or [])

    def _cotangents(self, outputs: list[Any], key: Array) -> list[list[FloatExp]]:
        """What is pulled back from every output."""
        return [
            [from_float(self._cotangent(jax.random.fold_in(key, i), value))] if variable in self.layout.sinks else []
            for i, (variable, value) in enumerate(zip(self.layout.graph.outputs, outputs, strict=True))
        ]

    def _cotangent(self, key: Array, value: Any) -> Any:
        """Without a loss a standard Gaussian vector v: E ||J^T v||^2 = ||J||_F^2 (Hutchinson)."""
        if self.model.has_loss:
            return jnp.ones(value.shape, value.dtype)
        return jax.random.normal(key, value.shape, value.dtype)

    def _readings(self, numbers: Numbers) -> Readings:
        rows = Rows(self.layout, numbers)
        cotangent: Literal["loss", "random"] = "loss" if self.model.has_loss else "random"
        gradients = {
            name: numbers.log_cotangent(variable)
            for name, variable in zip(self.layout.names, self.layout.parameters, strict=True)
            if variable.differentiable
        }
        zeros = [n for n, v in zip(self.layout.names, self.layout.parameters, strict=True) if numbers.is_zero(v)]
        return Readings(
            paths=tuple(path for way in self.layout.ways for path in self._paths(way, rows)),
            sites=tuple(rows.of_site(site) for site in self.layout.sites.all),
            parameter_gradients=gradients,
            zero_parameters=tuple(zeros),
            opaque=self._opaque(),
            constants=self._constants(),
            frontier=tuple(map(rows.of_front, reversed(numbers.fronts))),
            loss=numbers.loss() if self.model.has_loss else NAN,
            cotangent=cotangent,
            first_inexact=rows.name_of(numbers.inexact[0]) if numbers.inexact else "",
        )

    def _paths(self, way: Way, rows: Rows) -> list[Path]:
        """A way's path; of a recurrence inside other loops one for each of their steps, none where it did not run."""
        if way.kind == "depth":
            return [Path(way.name, way.kind, tuple(rows.of_way(way, ())), way.all_gradient)]
        name = f"{rows.name_of_way(way)}, {way.name}"
        paths = [
            Path(", ".join([name, *map(str, index)]), way.kind, tuple(rows.of_way(way, index)))
            for index in np.ndindex(*(node.steps for node in way.outer))
        ]
        return [path for path in paths if not all(math.isnan(row.log_cotangent) for row in path.rows)]

    def _opaque(self) -> tuple[tuple[str, str], ...]:
        nodes = [node for node in self.layout.graph.all_nodes() if node.name in OPAQUE]
        return tuple((node.name, node.where) for node in nodes if any(v.differentiable for v in node.inputs))

    def _constants(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        large = [v for v in self.layout.graph.constants if v.size >= LARGE]
        return tuple((v.shape, v.users[0].where if v.users else "") for v in large)
