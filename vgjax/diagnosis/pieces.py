"""A graph cut into parts that are computed one by one: pieces, loops and branchings, known by their structure.

Parts of equal structure share what is compiled for the first of them, so that compile time does not grow with depth.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.extend.core as core
import jax.extend.core.primitives as primitives
import jax.numpy as jnp
import numpy as np

from vgjax.diagnosis.dataflow import SHAPES, is_opened
from vgjax.diagnosis.graphs import Graph, Node, Nonlinearity, Variable, alone, opened_jaxpr


@dataclass(eq=False)
class Piece:
    """Nodes that are differentiated at once.

    Attributes:
        nodes: in order.
        inputs, outputs: what it takes from outside, what is used outside.
        read: its variables that are read.
    """

    nodes: list[Node]
    inputs: list[Variable]
    outputs: list[Variable]
    read: list[Variable]


@dataclass(eq=False)
class _Opened:
    """A node that is looked into; its arrays are the node's own."""

    node: Node

    @property
    def inputs(self) -> list[Variable]:
        """Of a loop: constants, carry, slices; of a branching: which branch, then the operands."""
        return self.node.inputs

    @property
    def outputs(self) -> list[Variable]:
        """Of a loop: carry, then stacked results."""
        return self.node.outputs


@dataclass(eq=False)
class Loop(_Opened):
    """A `scan`: its node, the parts of its body, and what is read in it, once a step."""

    body: "Program"
    read: list[Variable] = field(init=False)

    def __post_init__(self) -> None:
        self.read = self.body.read


@dataclass(eq=False)
class Switch(_Opened):
    """A `cond` or `switch`: its node, the parts of its branches, and what is read in any of them."""

    branches: "list[Program]"
    read: list[Variable] = field(init=False)

    def __post_init__(self) -> None:
        self.read = [variable for branch in self.branches for variable in branch.read]


Part = Piece | Loop | Switch


def read_outputs(part: Part) -> list[Variable]:
    """The outputs of a loop or a branching that are read: a piece reads its own with all others."""
    return [] if isinstance(part, Piece) else [variable for variable in part.outputs if variable.read]


@dataclass(eq=False)
class Program:
    """A graph and its parts in the order of the computation."""

    graph: Graph
    parts: list[Part]

    @property
    def read_inputs(self) -> list[Variable]:
        """Inputs of the graph that are read."""
        return [variable for variable in self.graph.inputs if variable.read]

    @property
    def read(self) -> list[Variable]:
        """All that is read, nested parts too, in an order that equal programs share."""
        return self.read_inputs + [v for part in self.parts for v in (*part.read, *read_outputs(part))]


def divide(graph: Graph, cuts: set[Variable]) -> Program:
    """A graph's parts: first what does not depend on the batch, then pieces that end where a variable of the cuts is
    made; opened loops and branchings stand alone."""
    early, remaining = _split_off_weights(graph)
    groups: list[list[Node]] = [*early, []]
    for node in remaining:
        if is_opened(node):
            groups += [[node], []]
            continue
        groups[-1].append(node)
        if any(output in cuts for output in node.outputs):
            groups.append([])
    outputs = set(graph.outputs)
    return Program(graph, [_part(group, outputs, cuts) for group in groups if group])


def _part(nodes: list[Node], graph_outputs: set[Variable], cuts: set[Variable]) -> Part:
    if is_opened(nodes[0]):
        inner = [divide(graph, cuts) for graph in nodes[0].graphs]
        return Loop(nodes[0], inner[0]) if nodes[0].kind == "loop" else Switch(nodes[0], inner)
    inside = set(nodes)
    made = [output for node in nodes for output in node.outputs]
    needed = dict.fromkeys(v for node in nodes for v in node.inputs if v.literal is None)
    return Piece(
        nodes,
        [v for v in needed if v.source not in inside],
        [v for v in made if v in graph_outputs or any(user not in inside for user in v.users)],
        [v for v in made if v.read],
    )


_FEW = 8
"""Up to so many entries, what depends neither on batch nor on parameters is a count or a random key."""


def _split_off_weights(graph: Graph) -> tuple[list[list[Node]], list[Node]]:
    """What is made of weights alone (slices of stacked ones, normalized ones), and of counts and random keys, with all
    that it is made of, in groups that share no variable; and the other nodes.

    Inside a layer's piece they would tell equal layers apart, each reading a slice of its own. What only moves entries
    (a bias that is broadcast, a cast) stays with its layer, and so do large constants and random masks that are used
    once.
    """
    possible: set[Node] = set()
    for node in graph.nodes:
        at_hand = all(v.source is None or v.source in possible for v in node.inputs)  # not behind a loop
        if at_hand and node.outputs and not any(v.batch for v in node.outputs) and not is_opened(node):
            possible.add(node)
    needed: set[Variable] = set()
    chosen: set[Node] = set()
    for node in reversed(graph.nodes):
        if node not in possible:
            continue
        if any(v.differentiable for v in node.outputs):
            begins = node.primitive not in SHAPES
        else:
            shared = any(len(v.users) > 1 for v in node.outputs)
            small = all(v.size <= _FEW for v in node.outputs)
            begins = (shared or small) and any(v.literal is None for v in node.inputs)
        if begins or any(v in needed for v in node.outputs):
            chosen.add(node)
            needed.update(node.inputs)
    group_of: dict[Variable, list[Node]] = {}
    groups: dict[int, list[Node]] = {}
    for node in graph.nodes:
        if node in chosen:
            variables = [v for v in (*node.inputs, *node.outputs) if v.literal is None]
            joined = [node]
            for old in {id(group_of[v]): group_of[v] for v in variables if v in group_of}.values():
                joined = old + joined
                groups.pop(id(old))
            groups[id(joined)] = joined
            group_of.update((v, joined) for member in joined for v in (*member.inputs, *member.outputs))
    order = {node: i for i, node in enumerate(graph.nodes)}
    early = [sorted(group, key=order.__getitem__) for group in groups.values()]
    return early, [node for node in graph.nodes if node not in chosen]


# --- what is equal --------------------------------------------------------------------------------------------------


class Compiled:
    """Functions of parts, compiled once for all parts of one structure.

    ``compiled(function, part, *static)(*arrays)`` is ``function(part, *static, *arrays)``, which returns what belongs
    to variables in the order of the part's own lists, so that an equal part may take it for its own.
    """

    def __init__(self) -> None:
        self.functions: dict[Any, Callable[..., Any]] = {}
        self._parts: dict[Part, Any] = {}
        self._jaxprs: dict[int, Any] = {}
        self._rules: dict[int, Any] = {}
        self._inside_rule = False
        self._kept: dict[int, Any] = {}  # what is known by its identity must not be freed

    def __call__(self, function: Callable[..., Any], part: Part, *static: Any) -> Callable[..., Any]:
        """The compiled function of the first part that was equal to this one."""
        key = (function.__name__, self.structure(part), static)
        if key not in self.functions:
            self.functions[key] = jax.jit(lambda *arrays: function(part, *static, *arrays))
        return self.functions[key]

    def structure(self, part: Part) -> Any:
        """Equal for parts that compute the same, from arrays of the same shapes, and in which the same is read."""
        if part not in self._parts:
            inputs = [v for v in dict.fromkeys(part.inputs) if v.literal is None]
            nodes = part.nodes if isinstance(part, Piece) else [part.node]
            self._parts[part] = self._nodes(nodes, inputs, part.outputs)
        return self._parts[part]

    def _nodes(self, nodes: Iterable[Node], inputs: list[Variable], outputs: list[Variable]) -> Any:
        number = {variable: i for i, variable in enumerate(inputs)}
        lines = []
        for node in nodes:
            arguments = tuple(number[v] if v.literal is None else _literal(v.literal, v.aval) for v in node.inputs)
            number |= {v: len(number) + i for i, v in enumerate(node.outputs)}
            inside = tuple(self._marks(v) for graph in node.graphs for v in _variables(graph))
            lines.append((self._equation(node.equation), arguments, tuple(map(self._marks, node.outputs)), inside))
        return tuple(map(self._marks, inputs)), tuple(lines), tuple(number.get(v) for v in outputs)

    def _marks(self, variable: Variable) -> Any:
        f = variable.nonlinearity
        activation = f and (f.steepest, self.nonlinearity(f))
        read = variable.read, variable.cotangent_only
        return (*_shape(variable.aval), variable.batch, variable.differentiable, *read, activation)

    def nonlinearity(self, f: Nonlinearity) -> Any:
        """Equal for equal functions of arrays of one shape."""
        plain = [(self._equation(node.equation), *map(_shape, (v.aval for v in node.outputs))) for node in f.nodes]
        number = {f.argument: -1} | {v: (i, j) for i, node in enumerate(f.nodes) for j, v in enumerate(node.outputs)}
        wiring = [number.get(v, _literal(v.literal, v.aval)) for node in f.nodes for v in node.inputs]
        return tuple(plain), tuple(wiring)

    def _equation(self, equation: Any) -> Any:
        """A primitive and its parameters.

        A rule of `custom_jvp` is made anew at every call: it is known by what it computes. One of `custom_vjp` is known
        by its identity alone, for its backward half is not traced before it is used.
        """
        given = dict(equation.params)
        if equation.primitive is not primitives.custom_jvp_call_p:
            return equation.primitive.name, self._parameter(given)
        function = self._jaxpr(given["call_jaxpr"])
        if self._inside_rule:  # which may call its own function again, and that its rule
            return equation.primitive.name, function
        if id(equation) not in self._rules:
            self._inside_rule = True
            self._rules[id(equation)], self._kept[id(equation)] = self._jaxpr(_rule(equation)), equation
            self._inside_rule = False
        return equation.primitive.name, function, self._rules[id(equation)]

    def _parameter(self, value: Any) -> Any:
        if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
            return self._jaxpr(value)
        if isinstance(value, tuple | list):
            return type(value).__name__, tuple(map(self._parameter, value))
        if isinstance(value, dict):
            return tuple(sorted((str(name), self._parameter(entry)) for name, entry in value.items()))
        try:
            hash(value)
        except TypeError:
            self._kept[id(value)] = value
            return "identity", id(value)
        return type(value).__name__, value

    def _jaxpr(self, jaxpr: Any) -> Any:
        opened, constants = opened_jaxpr(jaxpr)
        if id(opened) not in self._jaxprs:
            number = {v: i for i, v in enumerate([*opened.constvars, *opened.invars])}

            def read(atom: Any) -> Any:
                return _literal(atom.val, atom.aval) if isinstance(atom, core.Literal) else number[atom]

            lines = []
            for equation in opened.eqns:
                arguments = tuple(read(atom) for atom in equation.invars)
                number |= {v: len(number) + i for i, v in enumerate(equation.outvars)}
                lines.append((self._equation(equation), arguments, tuple(_shape(v.aval) for v in equation.outvars)))
            key = tuple(_shape(v.aval) for v in opened.invars), tuple(lines), tuple(map(read, opened.outvars))
            self._jaxprs[id(opened)], self._kept[id(opened)] = key, opened
        self._kept.update((id(constant), constant) for constant in constants)
        return self._jaxprs[id(opened)], tuple(map(id, constants))


def _rule(equation: Any) -> Any:
    """The jaxpr of an equation's tangents."""
    atoms = [atom for atom in equation.invars if not isinstance(atom, core.Literal)]
    floats = [i for i, atom in enumerate(atoms) if jnp.issubdtype(atom.aval.dtype, jnp.inexact)]

    def tangents(values: list[Any]) -> Any:
        def function(*moved: Any) -> Any:
            replaced = dict(zip(floats, moved, strict=True))
            every = [replaced.get(i, value) for i, value in enumerate(values)]
            return jax.core.eval_jaxpr(alone(equation), (), *every)

        moved = [values[i] for i in floats]
        return jax.jvp(function, moved, moved)

    return jax.make_jaxpr(tangents)([jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype) for atom in atoms])


def _variables(graph: Graph) -> list[Variable]:
    return [*graph.inputs, *(v for node in graph.all_nodes() for v in node.outputs)]


def _shape(aval: Any) -> Any:
    return getattr(aval, "shape", None), str(getattr(aval, "dtype", "")), bool(getattr(aval, "weak_type", False))


def _literal(value: Any, aval: Any) -> Any:
    number = value.item() if isinstance(value, np.generic | np.ndarray | jax.Array) else value
    return "literal", repr(number), _shape(aval)  # as text, for NaN is not equal to itself
