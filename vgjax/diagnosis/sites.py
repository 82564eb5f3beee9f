"""Maps with weights, the parameters they read, and the activations that follow them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.extend.core.primitives as primitives
import jax.numpy as jnp
from jax import Array

from vgjax.diagnosis.dataflow import SHAPES, is_weighted
from vgjax.diagnosis.graphs import Graph, Node, Nonlinearity, Variable, evaluate_all
from vgjax.diagnosis.pieces import Compiled

_SLICES = {primitives.slice_p, primitives.dynamic_slice_p}

_AFFINE = SHAPES | {primitives.add_p, primitives.sub_p}
"""What a bias is added by, and what may stand between it and the product."""

_NO_ACTIVATION = {
    *_AFFINE, primitives.neg_p, primitives.mul_p, primitives.div_p, primitives.square_p, primitives.integer_pow_p
}  # fmt: skip
"""What makes no activation alone: norms and losses take squares too."""

ELEMENTWISE = {
    "abs", "add", "add_any", "and", "clamp", "convert_element_type", "copy", "cos", "custom_jvp_call", "div", "eq",
    "erf", "erfc", "exp", "exp2", "expm1", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p", "logistic",
    "lt", "max", "min", "mul", "ne", "neg", "not", "one_minus_square", "or", "pow", "rsqrt", "select_n", "sign", "sin",
    "sqrt", "square", "stop_gradient", "sub", "tan", "tanh"
}  # fmt: skip
"""What maps every entry by itself."""


@dataclass(eq=False)
class Site:
    """A map with weights.

    Attributes:
        node: the product, convolution or embedding.
        variable: its result, with the bias.
        preactivation: what the activation that follows takes: that result, or its sum with others.
        loops: those it stands in, outermost first.
        parameter: position of the largest parameter in its weight.
        weight: the parameter itself, or the slice of it that is read here; None where the weight is made of
            parameters in any other way.
    """

    node: Node
    variable: Variable
    preactivation: Variable
    loops: tuple[Node, ...]
    parameter: int | None
    weight: Variable | None

    @property
    def fan_in(self) -> int:
        """Entries that each entry of the result sums up; 0 for an embedding, which sums none."""
        position = next((i for i, v in enumerate(self.node.inputs) if v.is_weight), 0)
        shape, given = self.node.inputs[position].shape, self.node.equation.params
        if self.node.primitive is primitives.dot_general_p:
            (contracted, _) = given["dimension_numbers"]
            return math.prod(shape[axis] for axis in contracted[position])
        if self.node.primitive is primitives.conv_general_dilated_p:
            return math.prod(shape) // shape[given["dimension_numbers"].rhs_spec[0]]
        return 0


Parents = tuple[tuple[Node, Graph], ...]
"""The nodes that a graph stands in, with the graph of each that leads to it, outermost first."""


class Sites:
    """All sites of a graph, nested ones too; every variable of theirs is marked as read.

    Args:
        graph: a whole one.
        sizes: entries of each parameter.
        compiled: finds the activations that follow; None leaves them out.
    """

    def __init__(self, graph: Graph, sizes: list[int], compiled: Compiled | None) -> None:
        self.all: list[Site] = []
        self._of_node: dict[Node, Site] = {}
        self._sizes = sizes
        self._compiled = compiled
        self._gather(graph, ())

    def of(self, node: Node) -> list[Site]:
        """Those of a node, itself or nested."""
        found = [self._of_node[node]] if node in self._of_node else []
        return found + [site for graph in node.graphs for inner in graph.nodes for site in self.of(inner)]

    def _gather(self, graph: Graph, parents: Parents) -> None:
        for node in graph.nodes:
            if node.kind == "equation" and is_weighted(node) and node.outputs[0].differentiable:
                self.all.append(self._site(node, graph, parents))
                self._of_node[node] = self.all[-1]
            for inner in node.graphs:
                self._gather(inner, (*parents, (node, inner)))

    def _site(self, node: Node, graph: Graph, parents: Parents) -> Site:
        weights = [v for v in node.inputs if v.is_weight]
        reads = [position for v in weights for position in v.parameters]
        variable = _with_bias(node.outputs[0], graph)
        variable.read = True
        preactivation = variable if self._compiled is None else _preactivation(variable, graph, self._compiled)
        preactivation.read = True
        weight = parameter_slice(max(weights, key=lambda v: v.size), parents)
        if weight is not None:
            weight.read = True
        loops = tuple(parent for parent, _ in parents if parent.kind == "loop")
        return Site(node, variable, preactivation, loops, max(reads, key=self._sizes.__getitem__, default=None), weight)


def _with_bias(result: Variable, graph: Graph) -> Variable:
    """A map's result after the last bias that is added to it."""
    here = result
    while len(here.users) == 1 and here not in graph.outputs:
        (user,) = here.users
        if user.primitive not in _AFFINE or any(v.batch for v in user.inputs if v is not here):
            break
        (here,) = user.outputs
        result = here if user.primitive not in SHAPES else result
    return result


def _preactivation(result: Variable, graph: Graph, compiled: Compiled) -> Variable:
    """What the activation after a map takes: its result, or the sum that it is one term of, as in a recurrent cell."""
    here = result
    while True:
        here.nonlinearity = here.nonlinearity or find_nonlinearity(here, compiled)
        if here.nonlinearity is not None:
            return here
        if len(here.users) != 1 or here in graph.outputs or here.users[0].primitive is not primitives.add_p:
            return result
        (here,) = here.users[0].outputs
        if here.shape != result.shape:
            return result


def parameter_slice(weight: Variable, parents: Parents) -> Variable | None:
    """The parameter that a weight is, or the slice of one, seen through reshapes, transposes, casts, slices and loops.

    A loop's slice is the body's own variable: its cotangent is read at every step.
    """
    selected: Variable | None = None
    while True:
        source = weight.source
        if source is not None:
            inputs = [v for v in source.inputs if v.is_weight]
            moves = source.primitive in SHAPES and inputs and inputs[0].size == weight.size
            if len(inputs) != 1 or not (moves or source.primitive in _SLICES):
                return None
            selected = selected if moves else selected or weight
            weight = inputs[0]
            continue
        if not parents:
            return selected or weight
        (node, graph), parents = parents[-1], parents[:-1]
        position = graph.inputs.index(weight)
        constants, carried, _ = node.counts
        if node.kind == "loop" and constants <= position < constants + carried:
            return None
        if node.kind == "loop" and position >= constants:
            selected = selected or weight
        weight = node.inputs[position + (node.kind == "switch")]


# --- activations ----------------------------------------------------------------------------------------------------


def find_nonlinearity(argument: Variable, compiled: Compiled) -> Nonlinearity | None:
    """The activation that a variable goes through: the first elementwise function of it alone that all its elementwise
    uses lead to, and that is more than a polynomial."""
    inside = _functions_of(argument)
    for value in inside:
        nodes = _between(value, inside)
        hidden = {argument, *(v for node in nodes for v in node.outputs)} - {value}
        behind = (node for node in inside.values() if node not in nodes)
        alone = not any(v in hidden for node in behind for v in node.inputs)
        if alone and value.differentiable and any(node.primitive not in _NO_ACTIVATION for node in nodes):
            return _with_steepest(Nonlinearity(nodes, argument, value), compiled)
    return None


def _functions_of(argument: Variable) -> dict[Variable, Node]:
    """The variables that are elementwise functions of one alone, each with its node, in order."""
    inside: dict[Variable, Node] = {}
    candidates = list(dict.fromkeys(argument.users))
    while candidates:
        node = candidates.pop(0)
        output = node.outputs[0] if len(node.outputs) == 1 else None
        known = all(v is argument or v in inside or v.literal is not None for v in node.inputs)
        if output is None or not known or node.name not in ELEMENTWISE or output.shape != argument.shape:
            continue
        if output not in inside:
            inside[output] = node
            candidates += [user for user in output.users if user not in candidates]
    return inside


def _between(value: Variable, inside: dict[Variable, Node]) -> list[Node]:
    """The nodes that a value is computed by, in order."""
    needed = _ancestors(value, inside) | {value}
    return [node for v, node in inside.items() if v in needed]


def _ancestors(value: Variable, inside: dict[Variable, Node]) -> set[Variable]:
    found: set[Variable] = set()
    remaining = [v for v in inside[value].inputs if v in inside]
    while remaining:
        v = remaining.pop()
        if v not in found:
            found.add(v)
            remaining += [w for w in inside[v].inputs if w in inside]
    return found


def _with_steepest(f: Nonlinearity, compiled: Compiled) -> Nonlinearity:
    """With the largest slope on -8 .. 8, computed once for every function."""
    key = "steepest", compiled.nonlinearity(f)
    if key not in compiled.functions:
        largest = float(jax.jit(_steepest(f))())
        compiled.functions[key] = lambda: largest
    f.steepest = compiled.functions[key]()
    return f


def _steepest(f: Nonlinearity) -> Callable[[], Array]:
    shape, dtype = f.argument.shape, f.argument.aval.dtype
    rows = -(-161 // max(1, f.argument.size))

    def activation(x: Array) -> Array:
        values = {f.argument: x}
        evaluate_all(f.nodes, values)
        return values[f.value]

    def largest() -> Array:
        # Arrays of the variable's own shape, for a function inside (a `custom_jvp`) may be traced for that alone.
        points = jnp.arange(rows * f.argument.size) % 161
        x = (points.reshape(rows, *shape) / 10 - 8).astype(dtype)
        slopes = jax.lax.map(lambda x: jax.jvp(activation, (x,), (jnp.ones_like(x),))[1], x)
        return jnp.max(jnp.abs(slopes)).astype(jnp.float32)

    return largest
