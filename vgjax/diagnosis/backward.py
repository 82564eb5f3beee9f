"""The backward pass over a program: cotangents as value times 2^exponent, and what is read on the way."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from vgjax.diagnosis.cotangents import Cotangents
from vgjax.diagnosis.forward import (
    LIFT,
    Forward,
    Run,
    Squares,
    forward,
    inline,
    run_switch,
    scanned,
    split,
    squares_of,
    taken,
)
from vgjax.diagnosis.graphs import Variable, evaluate_all, value_of
from vgjax.diagnosis.pieces import Loop, Part, Piece, Program, Switch, read_outputs
from vgjax.floatexp import (
    ZERO,
    FloatExp,
    add,
    aligned,
    exponent_of,
    from_float,
    moved,
    normalize_together,
)


class Backward(NamedTuple):
    """What a backward pass leaves: cotangents of the variables between parts, and what was read."""

    cotangents: Cotangents
    squares: dict[Variable, Squares]


Pulled = tuple[list[FloatExp], list[Squares]]
"""Of a part: cotangents of the wanted inputs (`wanted`), and what is read in it."""

Pulls = tuple[Callable[..., Pulled], Callable[..., Pulled]]
"""The backward functions of a piece and of a loop; `piece_backward` and `loop_backward` where nothing is said."""

Front = tuple[Part, list[Squares]]
"""A part, and the gradient by each state that is alive after it."""


def backward(
    program: Program,
    done: Forward,
    given: Sequence[list[FloatExp]],
    run: Run,
    careful: bool,
    fronts: list[Front] | None = None,
    pulls: Pulls | None = None,
) -> Backward:
    """Cotangents of a program's variables, those of its outputs being given (empty: no gradient comes from there).

    Fronts, if asked for, are appended last part first: after a part, a state that is used both before and behind it has
    the cotangent of what is behind alone.
    """
    cotangents = Cotangents(apart=careful and run is not inline)
    squares: dict[Variable, Squares] = {}
    cotangents.receive(program.graph.outputs, given)
    place = {v: i for i, part in enumerate(program.parts) for v in part.outputs}
    for position, part in reversed(list(enumerate(program.parts))):
        if fronts is not None:
            alive = [v for v in cotangents if v.is_state and place.get(v, -1) <= position]
            fronts.append((part, [squares_of(cotangents.total(v), True) for v in alive]))
        read = [v for v in read_outputs(part) if v in cotangents]
        squares.update((v, squares_of(cotangents.total(v), careful, LIFT)) for v in read)
        if any(output in cotangents for output in part.outputs):
            _pull_part(part, done, (cotangents, squares), run, careful, pulls)
    read = [v for v in program.read_inputs if v in cotangents]
    squares.update({v: squares_of(cotangents.total(v), careful, LIFT) for v in read})
    return Backward(cotangents, squares)


def _pull_part(
    part: Part,
    done: Forward,
    into: tuple[Cotangents, dict[Variable, Squares]],
    run: Run,
    careful: bool,
    pulls: Pulls | None,
) -> None:
    """Pull the cotangents of a part's outputs back to its inputs, and read what is in it."""
    cotangents, squares = into
    pull_piece, pull_loop = pulls or (piece_backward, loop_backward)
    arguments = [value_of(v, done.values) for v in part.inputs]
    given = [cotangents.of(output) for output in part.outputs]
    if isinstance(part, Switch) and run is not inline:
        branch = part.branches[taken(part, arguments[0])]
        inner = backward(branch, done.values[part], given, run, careful, pulls=pulls)
        squares.update(inner.squares)
        cotangents.receive(wanted(part), [inner.cotangents.of(v) for v in branch.graph.inputs if v.differentiable])
        return
    for some in cotangents.rounds(part.outputs) if isinstance(part, Piece) else [given]:
        have, flat = tuple(map(len, some)), [number for numbers in some for number in numbers]
        if isinstance(part, Piece):
            results, read = run(pull_piece, part, have, careful)(arguments, flat)
        elif isinstance(part, Loop):
            results, read = run(pull_loop, part, have, careful)(arguments, done.values[part], flat)
        else:
            results, read = switch_backward(part, have, careful, arguments, flat)
        cotangents.receive(wanted(part), [[number] for number in results])
        for v, found in zip(part.read, read, strict=True):
            squares[v] = _larger(squares[v], found) if v in squares else found


@jax.jit
def _larger(one: Squares, other: Squares) -> Squares:
    """The larger of two sums that are far apart (`Cotangents.rounds`): the other is nothing beside it."""

    def size(squares: Squares) -> Array:
        return jnp.where(squares.total > 0, exponent_of(squares.total) // 2 + squares.exponent, ZERO)

    return jax.tree.map(lambda a, b: jnp.where(size(one) >= size(other), a, b), one, other)


def wanted(part: Part) -> list[Variable]:
    """The inputs whose cotangents a part gives."""
    if isinstance(part, Piece):
        return [v for v in part.inputs if v.differentiable]
    if isinstance(part, Loop):
        return [v for v, b in zip(part.inputs, part.body.graph.inputs, strict=True) if b.differentiable]
    return [v for v, b in zip(part.inputs[1:], part.branches[0].graph.inputs, strict=True) if b.differentiable]


def _spread(have: Sequence[int], given: Sequence[FloatExp]) -> list[list[FloatExp]]:
    """The numbers of each output, of which it has so many."""
    following = iter(given)
    return [list(itertools.islice(following, count)) for count in have]


def _normalized(number: FloatExp) -> FloatExp:
    (value,), exponent = normalize_together([number.value], number.exponent)
    return FloatExp(value, exponent)


def _zero(variable: Variable) -> FloatExp:
    return FloatExp(jnp.zeros(variable.shape, variable.aval.dtype), jnp.full((), ZERO, jnp.int32))


def piece_backward(
    piece: Piece, have: tuple[int, ...], careful: bool, arguments: list[Any], given: list[FloatExp]
) -> Pulled:
    """Cotangents of the wanted inputs, and what is read.

    Plain floats inside; the exponent of what came in is put on what goes out.
    """
    cotangents, exponent = aligned(given)
    pulled, read = pull(piece, have, arguments, cotangents)
    numbers = [_normalized(FloatExp(value, exponent)) for value in pulled]
    return numbers, [squares_of(FloatExp(value, exponent), careful, LIFT) for value in read]


def pull(
    piece: Piece, have: tuple[int, ...], arguments: list[Any], cotangents: list[Any]
) -> tuple[list[Any], list[Any]]:
    """Cotangents of the wanted inputs and of what is read, in plain floats.

    A variable in the middle is read as the cotangent of a zero that is added to it: all that uses it is behind that,
    inside the piece and outside.
    """
    inputs = wanted(piece)
    outputs = [v for v, h in zip(piece.outputs, have, strict=True) if h]
    values = dict(zip(piece.inputs, arguments, strict=True))

    def run(states: list[Any], offsets: list[Any]) -> list[Any]:
        local = values | dict(zip(inputs, states, strict=True))
        offset = dict(zip(piece.read, offsets, strict=True))
        for node in piece.nodes:
            if not node.outputs:  # prints and the like, done in the forward pass
                continue
            evaluate_all([node], local)
            local.update((v, local[v] + offset[v]) for v in node.outputs if v in offset)
        return [local[v] for v in outputs]

    zeros = [jnp.zeros(v.shape, v.aval.dtype) for v in piece.read]
    _, pull_back = jax.vjp(run, [values[v] for v in inputs], zeros)
    found: tuple[list[Any], list[Any]] = pull_back(cotangents)
    return found


def loop_backward(
    loop: Loop,
    have: tuple[int, ...],
    careful: bool,
    arguments: list[Any],
    before: list[Any],
    given: list[FloatExp],
    pull_step: Callable[..., Pulled] | None = None,
) -> Pulled:
    """Cotangents of the wanted inputs, and what is read in every step.

    Every step is computed again from the carry before it (`step_backward`, if no other function is given). The whole
    carry has one exponent, kept within the window at every step; what is constant gathers its cotangent as a scaled
    sum, slices have an exponent for each step.
    """
    constants, _, slices = split(loop, arguments)
    fixed, carried, sliced = ([v for v in group if v.differentiable] for group in split(loop, loop.body.graph.inputs))
    carry_outputs, stacked_outputs = _carry_and_stacked(loop, _spread(have, given))
    stacked = {i: numbers for i, numbers in enumerate(stacked_outputs) if numbers}

    def step(state: Any, now: Any) -> tuple[Any, Any]:
        carry, sums = state
        old, slices, rows = now
        numbers = {i: _row(stacked[i], rows[i]) for i in stacked}
        values, exponent = aligned([*carry, *numbers.values()])
        here: list[list[FloatExp]] = [[] for _ in loop.body.graph.outputs]
        for i, value in zip([*_carried_positions(loop), *(len(old) + i for i in numbers)], values, strict=True):
            here[i] = [from_float(value)]
        pulled, read = (pull_step or step_backward)(loop, careful, [*constants, *old, *slices], here)
        found = dict(zip(body_wanted(loop), (moved(number, exponent) for number in pulled), strict=True))
        read = [Squares(total, k + exponent) for total, k in read]
        sums = [add(total, found[v]) for total, v in zip(sums, fixed, strict=True)]
        return (_under_one_exponent([found[v] for v in carried]), sums), ([found[v] for v in sliced], read)

    first = [add(*numbers) if numbers else _zero(v) for numbers, v in zip(carry_outputs, carried, strict=True)]
    state = _under_one_exponent(first), [_zero(v) for v in fixed]
    rows = {i: [number.value for number in numbers] for i, numbers in stacked.items()}
    (carry, sums), (by_step, read) = lax.scan(step, state, (before, slices, rows), **scanned(loop, backward=True))
    return [*sums, *carry, *by_step], read


def _row(numbers: list[FloatExp], rows: list[Array]) -> FloatExp:
    """One step's row of a sum, normalized by itself."""
    normalized = [_normalized(FloatExp(row, number.exponent)) for number, row in zip(numbers, rows, strict=True)]
    return normalized[0] if len(normalized) == 1 else _normalized(add(*normalized))


def step_backward(loop: Loop, careful: bool, inputs: list[Any], given: list[list[FloatExp]]) -> Pulled:
    """Cotangents of the differentiable inputs of a loop's body, and what is read in it."""
    done = forward(loop.body, inputs, inline, careful)
    result = backward(loop.body, done, given, inline, careful)
    nothing = Squares(jnp.zeros(()), jnp.zeros((), jnp.int32))
    cotangents = [_found(result, v) for v in body_wanted(loop)]
    return cotangents, [result.squares.get(v, nothing) for v in loop.read]


def _found(result: Backward, variable: Variable) -> FloatExp:
    return result.cotangents.total(variable) if variable in result.cotangents else _zero(variable)


def body_wanted(loop: Loop) -> list[Variable]:
    """The differentiable inputs of a loop's body."""
    return [v for v in loop.body.graph.inputs if v.differentiable]


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


def switch_backward(
    switch: Switch, have: tuple[int, ...], careful: bool, arguments: list[Any], given: list[FloatExp]
) -> Pulled:
    """Cotangents of the wanted inputs, and what is read, `NOT_TAKEN` in the other branches."""

    def branch(program: Program) -> Callable[..., Any]:
        inputs = program.graph.inputs
        needed = [v for v, b in zip(inputs, switch.branches[0].graph.inputs, strict=True) if b.differentiable]

        def run(operands: list[Any], given: list[FloatExp]) -> tuple[list[FloatExp], dict[int, Squares]]:
            done = forward(program, operands, inline, careful)
            result = backward(program, done, _spread(have, given), inline, careful)
            read = {switch.read.index(v): s for v, s in result.squares.items()}
            return [_found(result, v) for v in needed], read

        return run

    branches = [branch(program) for program in switch.branches]
    numbers, read = run_switch(arguments[0], branches, (arguments[1:], given))
    nothing = Squares(jnp.zeros(()), jnp.zeros((), jnp.int32))
    return numbers, [read.get(i, nothing) for i in range(len(switch.read))]
