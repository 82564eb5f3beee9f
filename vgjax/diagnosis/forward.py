"""The forward pass over a program, and what is read on the way.

Every function of a part takes and returns arrays in the order of the part's own lists, so that it can be compiled once
for all parts of one structure (`Compiled`); inside a loop or a branch parts are computed in line (`inline`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from vgjax.diagnosis.graphs import Variable, evaluate_all, value_of
from vgjax.diagnosis.pieces import Loop, Part, Piece, Program, Switch, read_outputs
from vgjax.floatexp import FloatExp, from_float, sum_of_squares

NOT_TAKEN = -1.0
"""Stands for what is read in a branch that was not taken; no sum of squares and no share is negative."""

LIFT = 30
"""Cotangents and weights are read in sums that hold norms of 1e-24 to 1e6: a mean loss of a large batch has small
ones."""


class Squares(NamedTuple):
    """A sum of squares, ``total * 4**exponent``; a leading axis of steps in loops; `NOT_TAKEN` in such a branch."""

    total: Array
    exponent: Array


class Signal(NamedTuple):
    """What is read of a variable's value.

    Attributes:
        squares: of its entries; None where its cotangent alone is read.
        zeros, saturated: shares of the activation that follows, shape ``()``; None where none does.
    """

    squares: Squares | None
    zeros: Array | None
    saturated: Array | None


Run = Callable[..., Callable[..., Any]]
"""``run(function, part, *static)(*arrays)``: `Compiled`, or `inline` inside a trace."""


def inline(function: Callable[..., Any], part: Part, *static: Any) -> Callable[..., Any]:
    """The function of a part as it is."""
    return functools.partial(function, part, *static)


# --- reading --------------------------------------------------------------------------------------------------------


def signal(variable: Variable, number: FloatExp, careful: bool) -> Signal:
    """What is read of a value."""
    if variable.cotangent_only:
        return Signal(None, None, None)
    squares = squares_of(number, careful, LIFT if variable.is_weight else 0)
    if variable.nonlinearity is None:
        return Signal(squares, None, None)
    f = variable.nonlinearity

    def activation(x: Array) -> Array:
        values = {f.argument: x}
        evaluate_all(f.nodes, values)
        return values[f.value]

    y, slope = jax.jvp(activation, (number.value,), (jnp.ones_like(number.value),))
    saturated = jnp.mean((jnp.abs(slope) < f.steepest / 20).astype(jnp.float32))
    return Signal(squares, jnp.mean((y == 0).astype(jnp.float32)), saturated)


@functools.partial(jax.jit, static_argnums=(1, 2))
def squares_of(number: FloatExp, careful: bool, lift: int = 0) -> Squares:
    """The sum of squares of a number's entries (`sum_of_squares`)."""
    return Squares(*sum_of_squares(number, careful=careful, lift=lift))


# --- forward --------------------------------------------------------------------------------------------------------


class Forward(NamedTuple):
    """What a forward pass leaves.

    Attributes:
        values: of every variable between parts; under a loop the carry before each step, under a branching the
            `Forward` of the branch taken.
        signals: what was read.
    """

    values: dict[Any, Any]
    signals: dict[Variable, Signal]

    def outputs(self, program: Program) -> list[Any]:
        """Values of the program's outputs."""
        return [value_of(variable, self.values) for variable in program.graph.outputs]


def forward(program: Program, inputs: Sequence[Any], run: Run, careful: bool) -> Forward:
    """Values of a program's variables."""
    values: dict[Any, Any] = {**program.graph.constants, **dict(zip(program.graph.inputs, inputs, strict=True))}
    signals = {v: signal(v, from_float(values[v]), careful) for v in program.read_inputs}
    for part in program.parts:
        arguments = [value_of(v, values) for v in part.inputs]
        if isinstance(part, Piece):
            outputs, read = run(piece_forward, part, careful)(arguments)
        elif isinstance(part, Loop):
            outputs, values[part], read = run(loop_forward, part, careful)(arguments)
        elif run is inline:
            outputs, read = switch_forward(part, careful, arguments)
        else:
            branch = part.branches[taken(part, arguments[0])]
            values[part] = inner = forward(branch, arguments[1:], run, careful)
            outputs = inner.outputs(branch)
            signals.update(inner.signals)
            read = []
        values.update(zip(part.outputs, outputs, strict=True))
        signals.update(zip(part.read, read, strict=False))
        signals.update((v, signal(v, from_float(values[v]), careful)) for v in read_outputs(part))
    return Forward(values, signals)


def taken(switch: Switch, index: Array) -> int:
    """The branch that an index takes, as `lax.switch` does."""
    return min(max(int(index), 0), len(switch.branches) - 1)


def piece_forward(piece: Piece, careful: bool, arguments: list[Any]) -> tuple[list[Any], list[Signal]]:
    """Outputs and what is read."""
    values = dict(zip(piece.inputs, arguments, strict=True))
    evaluate_all(piece.nodes, values)
    read = [signal(v, from_float(values[v]), careful) for v in piece.read]
    return [values[v] for v in piece.outputs], read


def loop_forward(loop: Loop, careful: bool, arguments: list[Any]) -> tuple[list[Any], list[Any], list[Signal]]:
    """Outputs, the carry before every step, and what is read in every step."""
    constants, carry, slices = split(loop, arguments)

    def step(carry: list[Any], slices: list[Any]) -> tuple[list[Any], Any]:
        done = forward(loop.body, [*constants, *carry, *slices], inline, careful)
        outputs = done.outputs(loop.body)
        return outputs[: len(carry)], (outputs[len(carry) :], carry, [done.signals[v] for v in loop.read])

    carry, (stacked, before, read) = lax.scan(step, carry, slices, **scanned(loop))
    return [*carry, *stacked], before, read


def split(loop: Loop, values: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """What is constant, what is carried, what is sliced by step."""
    constants, carried, _ = loop.node.counts
    return list(values[:constants]), list(values[constants : constants + carried]), list(values[constants + carried :])


def scanned(loop: Loop, *, backward: bool = False) -> dict[str, Any]:
    """How the loop runs, as `lax.scan` takes it."""
    given = loop.node.equation.params
    return {"length": loop.node.steps, "reverse": given["reverse"] != backward, "unroll": given["unroll"]}


def switch_forward(switch: Switch, careful: bool, arguments: list[Any]) -> tuple[list[Any], list[Signal]]:
    """Outputs and what is read, `NOT_TAKEN` in the other branches."""

    def branch(program: Program) -> Callable[..., Any]:
        def run(*operands: Any) -> tuple[list[Any], dict[int, Signal]]:
            done = forward(program, operands, inline, careful)
            return done.outputs(program), {switch.read.index(v): s for v, s in done.signals.items()}

        return run

    outputs, read = run_switch(arguments[0], [branch(program) for program in switch.branches], arguments[1:])
    return outputs, [read[i] for i in range(len(switch.read))]


def run_switch(index: Array, branches: list[Callable[..., Any]], operands: Sequence[Any]) -> tuple[Any, dict[int, Any]]:
    """`lax.switch` over functions that return the same outputs, and each what is read in itself."""
    read: dict[int, Any] = {}
    for branch in branches:
        read.update(jax.eval_shape(branch, *operands)[1])
    missing = jax.tree.map(lambda a: jnp.full(a.shape, NOT_TAKEN).astype(a.dtype), read)

    def padded(branch: Callable[..., Any]) -> Callable[..., Any]:
        def run(*operands: Any) -> Any:
            outputs, found = branch(*operands)
            return outputs, missing | found

        return run

    result: tuple[Any, dict[int, Any]] = lax.switch(index, [padded(branch) for branch in branches], *operands)
    return result
