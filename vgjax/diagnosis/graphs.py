"""A traced function as a graph of variables and nodes: calls written out, loops and branches with graphs of their own.

Public names of JAX alone, the same on every version: no parameter of an equation is read that only some have.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.core
import jax.extend.core as core
import jax.extend.core.primitives as primitives
import jax.extend.source_info_util as source_info_util
import jax.numpy as jnp
import numpy as np

CALLS = {
    getattr(primitives, name)
    for name in ("jit_p", "pjit_p", "closed_call_p", "call_p", "remat_p")
    if hasattr(primitives, name)
}
"""Calls that are written out: what they compute is what stands in them."""

LIBRARIES = ("jax", "jaxlib", "flax", "haiku", "equinox", "optax", "jaxtyping", "diffrax", "distrax", "brax", "chex")
"""Whose lines are not the user's."""


@dataclass(eq=False, repr=False)
class Variable:
    """An array of the computation.

    Attributes:
        aval: its shape and dtype, as JAX traces it.
        literal: its value, if that is a number written in the program.
        source: the node that makes it; None for an argument, a constant and a literal.
        users: the nodes that read it.
        batch: whether it depends on the inputs in any way.
        differentiable: whether gradient passes it.
        parameters: positions of the parameters that it depends on.
        read: whether its norm and its cotangent's are read.
        cotangent_only: whether of these the cotangent's alone is.
        nonlinearity: what activation it goes through, if that is read too.
    """

    aval: Any
    literal: Any = None
    source: "Node | None" = None
    users: "list[Node]" = field(default_factory=list)
    batch: bool = False
    differentiable: bool = False
    parameters: frozenset[int] = frozenset()
    read: bool = False
    cotangent_only: bool = False
    nonlinearity: "Nonlinearity | None" = None

    @property
    def is_state(self) -> bool:
        """Whether it carries the signal and its gradient."""
        return self.differentiable and self.batch

    @property
    def is_weight(self) -> bool:
        """Whether it is a parameter or made of parameters alone."""
        return self.differentiable and not self.batch

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return tuple(getattr(self.aval, "shape", ()))

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape))


@dataclass(eq=False)
class Nonlinearity:
    """An elementwise function of one variable, as nodes of the graph.

    Attributes:
        nodes: those that compute it, in order.
        argument, value: its variables, of one shape.
        steepest: its largest slope.
    """

    nodes: "list[Node]"
    argument: Variable
    value: Variable
    steepest: float = 1.0


@dataclass(eq=False, repr=False)
class Node:
    """One equation; a loop (`scan`), a branching (`cond`, `switch`) or a checkpoint holds the graphs of its bodies.

    Attributes:
        kind: what it is.
        equation: JAX's own.
        inputs, outputs: its variables, one for each of the equation's.
        scope: the names that the equation stands under.
        caller: the equation of the call, loop or branching that it stands in, if any.
        graphs: the body of a loop, the branches of a branching.
        counts: of a loop: how many inputs are constant, how many are carried, how many are sliced by step.
    """

    kind: Literal["equation", "loop", "switch", "checkpoint"]
    equation: Any
    inputs: list[Variable]
    outputs: list[Variable]
    scope: str
    caller: Any = None
    graphs: "list[Graph]" = field(default_factory=list)
    counts: tuple[int, int, int] = (0, 0, 0)

    @property
    def primitive(self) -> Any:
        """JAX's primitive."""
        return self.equation.primitive

    @property
    def name(self) -> str:
        """Its primitive's name."""
        return str(self.equation.primitive.name)

    @property
    def where(self) -> str:
        """``file.py:line (function)`` of the user's code; of the call that it stands in, where JAX knows no more."""
        own, outer = (equation and users_line(equation.source_info) for equation in (self.equation, self.caller))
        return own or outer or str(source_info_util.summarize(self.equation.source_info))

    @property
    def steps(self) -> int:
        """Of a loop: how many."""
        return int(self.equation.params["length"])


@dataclass(eq=False)
class Graph:
    """A computation.

    Attributes:
        inputs, outputs: its variables.
        constants: arrays that it holds.
        nodes: in the order of the program.
    """

    inputs: list[Variable]
    outputs: list[Variable] = field(default_factory=list)
    constants: dict[Variable, Any] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)

    def all_nodes(self) -> Iterator[Node]:
        """Nested ones too, each before what stands in it."""
        for node in self.nodes:
            yield node
            for graph in node.graphs:
                yield from graph.all_nodes()


def trace(function: Callable[..., Any], *arguments: Any, checkpoints: bool = False) -> Graph:
    """The graph of ``function(*arguments)``; inputs and outputs are flat, in the order of their trees.

    Args:
        function: of pytrees of arrays.
        arguments: what it is traced at.
        checkpoints: whether `jax.checkpoint` stays a node with a graph of its own, instead of being written out.

    Raises:
        ValueError: if it writes to mutable references.
    """
    calls = CALLS - {primitives.remat_p} if checkpoints else CALLS
    graph = from_jaxpr(jax.make_jaxpr(function)(*arguments), Place(calls=frozenset(calls)))
    for node in graph.all_nodes():
        if any(hasattr(variable.aval, "inner_aval") for variable in (*node.inputs, *node.outputs)):
            raise ValueError(
                f"{node.where} reads or writes a mutable reference (jax.new_ref), whose gradient cannot be followed: "
                "pass its value in and return the new one."
            )
    return graph


@dataclass(frozen=True, eq=False)
class Place:
    """Where equations are met: the scope and the caller of their `Node`, and which calls are written out there."""

    scope: str = ""
    caller: Any = None
    calls: frozenset[Any] = frozenset(CALLS)


def from_jaxpr(jaxpr: Any, place: Place = Place()) -> Graph:
    """A jaxpr's graph.

    Every call gets variables of its own: JAX keeps the jaxpr of a function that is called twice, so that both calls
    name the same ones.
    """
    opened, constants = opened_jaxpr(jaxpr)
    graph = Graph([Variable(v.aval) for v in opened.invars])
    graph.outputs = _write_out(graph, opened, constants, graph.inputs, place)
    for node in graph.nodes:
        for variable in node.inputs:
            variable.users.append(node)
        for variable in node.outputs:
            variable.source = node
    return graph


def opened_jaxpr(jaxpr: Any) -> tuple[Any, list[Any]]:
    """A jaxpr, closed or not, and the constants it holds."""
    return (jaxpr.jaxpr, list(jaxpr.consts)) if hasattr(jaxpr, "consts") else (jaxpr, [])


def _write_out(graph: Graph, jaxpr: Any, constants: list[Any], inputs: list[Variable], place: Place) -> list[Variable]:
    """Add a jaxpr's equations to the graph; its outputs."""
    variables = dict(zip(jaxpr.invars, inputs, strict=True))

    def constant(aval: Any, value: Any) -> Variable:
        made = Variable(aval)
        graph.constants[made] = value
        return made

    def read(atom: Any) -> Variable:
        if not isinstance(atom, core.Literal):
            return variables[atom]
        return constant(atom.aval, atom.val) if np.ndim(atom.val) else Variable(atom.aval, literal=atom.val)

    for variable, value in zip(jaxpr.constvars, constants, strict=True):
        variables[variable] = constant(variable.aval, value)
    for equation in jaxpr.eqns:
        scope = "/".join(part for part in (place.scope, str(equation.source_info.name_stack)) if part)
        inside = replace(place, scope=scope, caller=equation if users_line(equation.source_info) else place.caller)
        arguments = [read(atom) for atom in equation.invars]
        if equation.primitive in place.calls:
            inner, held = opened_jaxpr(equation.params.get("jaxpr", equation.params.get("call_jaxpr")))
            outputs = _write_out(graph, inner, held, arguments, inside)
        else:
            outputs = [Variable(variable.aval) for variable in equation.outvars]
            graph.nodes.append(_node(equation, arguments, outputs, place.caller, inside))
        variables.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _node(equation: Any, inputs: list[Variable], outputs: list[Variable], caller: Any, inside: Place) -> Node:
    arrays = inputs, outputs, inside.scope, caller
    if equation.primitive is primitives.scan_p:
        body = from_jaxpr(equation.params["jaxpr"], inside)
        # Counted by their axes, for the names of these counts differ between versions of JAX: what is sliced by step
        # has one axis more outside than inside, what is carried comes out with as many.
        sliced = sum(len(v.shape) == len(b.shape) + 1 for v, b in zip(inputs, body.inputs, strict=True))
        carried = sum(len(v.shape) == len(b.shape) for v, b in zip(outputs, body.outputs, strict=True))
        return Node("loop", equation, *arrays, [body], (len(inputs) - carried - sliced, carried, sliced))
    if equation.primitive is primitives.cond_p:
        return Node("switch", equation, *arrays, [from_jaxpr(each, inside) for each in equation.params["branches"]])
    if equation.primitive is primitives.remat_p:
        return Node("checkpoint", equation, *arrays, [from_jaxpr(equation.params["jaxpr"], inside)])
    return Node("equation", equation, *arrays)


def evaluate(node: Node, values: list[Any]) -> list[Any]:
    """What a node's equation computes, for all its inputs and all its outputs (None where JAX drops one)."""
    atoms = node.equation.invars
    given = [value for value, atom in zip(values, atoms, strict=True) if not isinstance(atom, core.Literal)]
    if node.primitive is primitives.while_p:  # JAX refuses to differentiate it; no gradient passes it
        given = jax.lax.stop_gradient(given)
    results = iter(jax.core.eval_jaxpr(alone(node.equation), (), *given))
    return [None if isinstance(variable, core.DropVar) else next(results) for variable in node.equation.outvars]


def evaluate_all(nodes: Iterable[Node], values: dict[Variable, Any]) -> None:
    """Compute nodes one after the other, in place."""
    for node in nodes:
        arguments = [value_of(v, values) for v in node.inputs]
        values.update(zip(node.outputs, evaluate(node, arguments), strict=True))


def value_of(variable: Variable, values: dict[Variable, Any]) -> Any:
    """A variable's value, or the number that is written in the program."""
    return values[variable] if variable.literal is None else jnp.asarray(variable.literal, variable.aval.dtype)


def alone(equation: Any) -> Any:
    """A jaxpr of one equation: how to compute it by public names."""
    inputs = [atom for atom in equation.invars if not isinstance(atom, core.Literal)]
    outputs = [variable for variable in equation.outvars if not isinstance(variable, core.DropVar)]
    information = core.DebugInfo("vgjax", "vgjax", None, None)  # JAX warns without one
    return core.Jaxpr((), inputs, outputs, [equation], effects=equation.effects, debug_info=information)


def is_inexact(variable: Variable) -> bool:
    """Whether its entries are floats or complex."""
    dtype = getattr(variable.aval, "dtype", None)
    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.inexact)) and dtype != jax.dtypes.float0


# --- places in the code ---------------------------------------------------------------------------------------------


def users_line(source_info: Any) -> str:
    """``file.py:line (function)``: the innermost line that is in no library; empty where JAX knows none."""
    try:
        frames = source_info.traceback.frames
    except AttributeError:  # nowhere documented
        frames = []
    for frame in frames:
        name = frame.file_name
        if name and not name.startswith("<") and not name.startswith(_library_roots(len(sys.modules))):
            return f"{os.path.basename(name)}:{frame.line_num} ({frame.function_name})"
    return ""


@functools.lru_cache(maxsize=1)
def _library_roots(number_of_modules: int) -> tuple[str, ...]:
    """Where the libraries lie that are imported by now."""
    files = [getattr(sys.modules.get(name), "__file__", None) for name in LIBRARIES]
    folders = [os.path.dirname(file) + os.sep for file in files if file]
    return (*folders, os.path.dirname(__file__) + os.sep, contextlib.__file__, functools.__file__)
