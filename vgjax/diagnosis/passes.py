"""The two passes over a program: values forward, cotangents back as value times 2^exponent; what is read on the way.

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
from vgjax.floatexp import (
    ZERO,
    FloatExp,
    add,
    aligned,
    from_float,
    moved,
    normalize_together,
    power_of_two,
    sum_of_squares,
)

NOT_TAKEN = -1.0
"""Stands for what is read in a branch that was not taken; no sum of squares and no share is negative."""


class Squares(NamedTuple):
    """A sum of squares, ``total * 4**exponent``; a leading axis of steps in loops; `NOT_TAKEN` in such a branch."""

    total: Array
    exponent: Array


class Signal(NamedTuple):
    """What is read of a variable's value.

    Attributes:
        squares: of its entries.
        zeros, saturated: shares of the activation that follows, shape ``()``; None where none does.
    """

    squares: Squares
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
    squares = Squares(*sum_of_squares(number, careful=careful))
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


@functools.partial(jax.jit, static_argnums=1)
def _squares(number: FloatExp, careful: bool) -> Squares:
    return Squares(*sum_of_squares(number, careful=careful))


_add = jax.jit(add)


# --- forward --------------------------------------------------------------------------------------------------------


class Forward(NamedTuple):
    """What a forward pass leaves.

    Attributes:
        values: of every variable between parts; under a loop the carry before each step, under a branching the
            `Forward` of the branch taken.
        signals: what was read.
        arguments: by part, where it was computed, if not at the values of its inputs.
    """

    values: dict[Any, Any]
    signals: dict[Variable, Signal]
    arguments: dict[Part, list[Any]]

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
    return Forward(values, signals, {})


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

    outputs, read = _switch(arguments[0], [branch(program) for program in switch.branches], arguments[1:])
    return outputs, [read[i] for i in range(len(switch.read))]


def _switch(index: Array, branches: list[Callable[..., Any]], operands: Sequence[Any]) -> tuple[Any, dict[int, Any]]:
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


# --- backward -------------------------------------------------------------------------------------------------------


class Backward(NamedTuple):
    """What a backward pass leaves: cotangents of the variables between parts, and what was read."""

    cotangents: dict[Variable, FloatExp]
    squares: dict[Variable, Squares]


def backward(program: Program, done: Forward, given: Sequence[FloatExp | None], run: Run, careful: bool) -> Backward:
    """Cotangents of a program's variables, those of its outputs being given (None: no gradient comes from there)."""
    cotangents: dict[Variable, FloatExp] = {}
    squares: dict[Variable, Squares] = {}
    receive(cotangents, program.graph.outputs, given)
    for part in reversed(program.parts):
        have = tuple(output in cotangents for output in part.outputs)
        if not any(have):
            continue
        squares.update((v, _squares(cotangents[v], careful)) for v in read_outputs(part) if v in cotangents)
        arguments = done.arguments.get(part) or [value_of(v, done.values) for v in part.inputs]
        pulled = [cotangents[output] for output in part.outputs if output in cotangents]
        if isinstance(part, Piece):
            results, read = run(piece_backward, part, have, careful)(arguments, pulled)
        elif isinstance(part, Loop):
            results, read = run(loop_backward, part, have, careful)(arguments, done.values[part], pulled)
        elif run is inline:
            results, read = switch_backward(part, have, careful, arguments, pulled)
        else:
            branch = part.branches[taken(part, arguments[0])]
            inner = backward(branch, done.values[part], _spread(have, pulled), run, careful)
            squares.update(inner.squares)
            results, read = [inner.cotangents.get(v) for v in branch.graph.inputs if v.differentiable], []
        receive(cotangents, wanted(part), results)
        squares.update(zip(part.read, read, strict=False))
    squares.update({v: _squares(cotangents[v], careful) for v in program.read_inputs if v in cotangents})
    return Backward(cotangents, squares)


def receive(
    cotangents: dict[Variable, FloatExp], variables: Sequence[Variable], numbers: Sequence[FloatExp | None]
) -> None:
    """Add cotangents to those that variables have."""
    for variable, number in zip(variables, numbers, strict=True):
        if number is not None and variable.differentiable:
            cotangents[variable] = _add(cotangents[variable], number) if variable in cotangents else number


def wanted(part: Part) -> list[Variable]:
    """The inputs whose cotangents a part gives."""
    if isinstance(part, Piece):
        return [v for v in part.inputs if v.differentiable]
    if isinstance(part, Loop):
        return [v for v, b in zip(part.inputs, part.body.graph.inputs, strict=True) if b.differentiable]
    return [v for v, b in zip(part.inputs[1:], part.branches[0].graph.inputs, strict=True) if b.differentiable]


def _spread(have: Sequence[bool], given: Sequence[FloatExp]) -> list[FloatExp | None]:
    """One entry for each output, None for those that have no cotangent."""
    following = iter(given)
    return [next(following) if h else None for h in have]


def _normalized(number: FloatExp) -> FloatExp:
    (value,), exponent = normalize_together([number.value], number.exponent)
    return FloatExp(value, exponent)


def _zero(variable: Variable) -> FloatExp:
    return FloatExp(jnp.zeros(variable.shape, variable.aval.dtype), jnp.full((), ZERO, jnp.int32))


def piece_backward(
    piece: Piece, have: tuple[bool, ...], careful: bool, arguments: list[Any], given: list[FloatExp]
) -> tuple[list[FloatExp], list[Squares]]:
    """Cotangents of the wanted inputs, and what is read.

    Plain floats inside; the exponent of what came in is put on what goes out. A variable in the middle is read as the
    cotangent of a zero that is added to it: all that uses it is behind that, inside the piece and outside.
    """
    inputs = wanted(piece)
    outputs = [v for v, h in zip(piece.outputs, have, strict=True) if h]
    values = dict(zip(piece.inputs, arguments, strict=True))

    def run(states: list[Any], offsets: list[Any]) -> list[Any]:
        local = values | dict(zip(inputs, states, strict=True))
        offset = dict(zip(piece.read, offsets, strict=True))
        for node in piece.nodes:
            evaluate_all([node], local)
            local.update((v, local[v] + offset[v]) for v in node.outputs if v in offset)
        return [local[v] for v in outputs]

    zeros = [jnp.zeros(v.shape, v.aval.dtype) for v in piece.read]
    _, pull = jax.vjp(run, [values[v] for v in inputs], zeros)
    cotangents, exponent = aligned(given)
    pulled, read = pull(cotangents)
    numbers = [_normalized(FloatExp(value, exponent)) for value in pulled]
    return numbers, [Squares(*sum_of_squares(FloatExp(value, exponent), careful=careful)) for value in read]


def loop_backward(
    loop: Loop,
    have: tuple[bool, ...],
    careful: bool,
    arguments: list[Any],
    before: list[Any],
    given: list[FloatExp],
) -> tuple[list[FloatExp], list[Squares]]:
    """Cotangents of the wanted inputs, and what is read in every step.

    Every step is computed again from the carry before it. The whole carry has one exponent, kept within the window at
    every step; what is constant gathers its cotangent as a scaled sum, slices have an exponent for each step.
    """
    constants, _, slices = split(loop, arguments)
    fixed, carried, sliced = ([v for v in group if v.differentiable] for group in split(loop, loop.body.graph.inputs))
    carry_outputs, stacked_outputs = _carry_and_stacked(loop, _spread(have, given))
    stacked = {i: number for i, number in enumerate(stacked_outputs) if number is not None}

    def step(state: Any, now: Any) -> tuple[Any, Any]:
        carry, sums = state
        old, slices, rows = now
        done = forward(loop.body, [*constants, *old, *slices], inline, careful)
        numbers = {i: _normalized(FloatExp(rows[i], stacked[i].exponent)) for i in stacked}
        values, exponent = aligned([*carry, *numbers.values()])
        here: list[FloatExp | None] = [None] * len(loop.body.graph.outputs)
        for i, value in zip([*_carried_positions(loop), *(len(old) + i for i in numbers)], values, strict=True):
            here[i] = from_float(value)
        result = backward(loop.body, done, here, inline, careful)
        found = {v: moved(result.cotangents.get(v, _zero(v)), exponent) for v in (*fixed, *carried, *sliced)}
        read = [result.squares.get(v, Squares(jnp.zeros(()), jnp.zeros((), jnp.int32))) for v in loop.read]
        read = [Squares(total, k + exponent) for total, k in read]
        sums = [add(total, found[v]) for total, v in zip(sums, fixed, strict=True)]
        return (_under_one_exponent([found[v] for v in carried]), sums), ([found[v] for v in sliced], read)

    first = [number or _zero(v) for number, v in zip(carry_outputs, carried, strict=True)]
    state = _under_one_exponent(first), [_zero(v) for v in fixed]
    rows = {i: number.value for i, number in stacked.items()}
    (carry, sums), (by_step, read) = lax.scan(step, state, (before, slices, rows), **scanned(loop, backward=True))
    return [*sums, *carry, *(one_exponent(number) for number in by_step)], read


def _carried_positions(loop: Loop) -> list[int]:
    """Which parts of the carry have cotangents."""
    _, carried, _ = split(loop, loop.body.graph.inputs)
    return [i for i, v in enumerate(carried) if v.differentiable]


def _carry_and_stacked(loop: Loop, outputs: list[Any]) -> tuple[list[Any], list[Any]]:
    """Of a list by the loop's outputs: the differentiable parts of the carry, and what is stacked."""
    carried = loop.node.counts[1]
    return [outputs[i] for i in _carried_positions(loop)], outputs[carried:]


def _under_one_exponent(numbers: list[FloatExp]) -> list[FloatExp]:
    if not numbers:
        return []
    values, exponent = normalize_together(*aligned(numbers))
    return [FloatExp(value, exponent) for value in values]


def one_exponent(number: FloatExp) -> FloatExp:
    """Rows with exponents of their own, at the largest of them."""
    value, exponent = number
    largest = jnp.max(exponent)
    factor = power_of_two(exponent - largest, value.dtype)
    return FloatExp(value * factor.reshape(-1, *[1] * (value.ndim - 1)), largest)


def switch_backward(
    switch: Switch, have: tuple[bool, ...], careful: bool, arguments: list[Any], given: list[FloatExp]
) -> tuple[list[FloatExp], list[Squares]]:
    """Cotangents of the wanted inputs, and what is read, `NOT_TAKEN` in the other branches."""

    def branch(program: Program) -> Callable[..., Any]:
        inputs = program.graph.inputs
        needed = [v for v, b in zip(inputs, switch.branches[0].graph.inputs, strict=True) if b.differentiable]

        def run(operands: list[Any], given: list[FloatExp]) -> tuple[list[FloatExp], dict[int, Squares]]:
            done = forward(program, operands, inline, careful)
            result = backward(program, done, _spread(have, given), inline, careful)
            read = {switch.read.index(v): s for v, s in result.squares.items()}
            return [result.cotangents.get(v, _zero(v)) for v in needed], read

        return run

    branches = [branch(program) for program in switch.branches]
    numbers, read = _switch(arguments[0], branches, (arguments[1:], given))
    nothing = Squares(jnp.zeros(()), jnp.zeros((), jnp.int32))
    return numbers, [read.get(i, nothing) for i in range(len(switch.read))]
