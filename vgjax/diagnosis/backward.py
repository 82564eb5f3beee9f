"""The backward pass over a program: cotangents as value times 2^exponent, and what is read on the way."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from vgjax.diagnosis.forward import (
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
    power_of_two,
)

_add = jax.jit(add)


class Backward(NamedTuple):
    """What a backward pass leaves: cotangents of the variables between parts, and what was read."""

    cotangents: dict[Variable, FloatExp]
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
    given: Sequence[FloatExp | None],
    run: Run,
    careful: bool,
    fronts: list[Front] | None = None,
    pulls: "Pulls | None" = None,
) -> Backward:
    """Cotangents of a program's variables, those of its outputs being given (None: no gradient comes from there).

    Fronts, if asked for, are appended last part first: after a part, a state that is used both before and behind it has
    the cotangent of what is behind alone.
    """
    pull_piece, pull_loop = pulls or (piece_backward, loop_backward)
    cotangents: dict[Variable, FloatExp] = {}
    squares: dict[Variable, Squares] = {}
    receive(cotangents, program.graph.outputs, given)
    place = {v: i for i, part in enumerate(program.parts) for v in part.outputs}
    for position, part in reversed(list(enumerate(program.parts))):
        if fronts is not None:
            alive = [v for v in cotangents if v.is_state and place.get(v, -1) <= position]
            fronts.append((part, [squares_of(cotangents[v], True) for v in alive]))
        have = tuple(output in cotangents for output in part.outputs)
        if not any(have):
            continue
        squares.update((v, squares_of(cotangents[v], careful, LIFT)) for v in read_outputs(part) if v in cotangents)
        arguments = [value_of(v, done.values) for v in part.inputs]
        pulled = [cotangents[output] for output in part.outputs if output in cotangents]
        if isinstance(part, Piece):
            for some, numbers in [(have, pulled)] if run is inline or not careful else _by_size(have, pulled):
                results, read = run(pull_piece, part, some, careful)(arguments, numbers)
                receive(cotangents, wanted(part), results)
                for v, found in zip(part.read, read, strict=True):
                    squares[v] = _larger(squares[v], found) if v in squares else found
            continue
        if isinstance(part, Loop):
            results, read = run(pull_loop, part, have, careful)(arguments, done.values[part], pulled)
        elif run is inline:
            results, read = switch_backward(part, have, careful, arguments, pulled)
        else:
            branch = part.branches[taken(part, arguments[0])]
            inner = backward(branch, done.values[part], _spread(have, pulled), run, careful, pulls=pulls)
            squares.update(inner.squares)
            results, read = [inner.cotangents.get(v) for v in branch.graph.inputs if v.differentiable], []
        receive(cotangents, wanted(part), results)
        squares.update(zip(part.read, read, strict=False))
    squares.update({v: squares_of(cotangents[v], careful, LIFT) for v in program.read_inputs if v in cotangents})
    return Backward(cotangents, squares)


LIFT = 30
"""Cotangents are read in sums that hold norms of 1e-24 to 1e6: a mean loss of a large batch has small ones."""

_APART = 60
"""Octaves by which cotangents may differ for a piece to be pulled back once for both: float32 holds 126."""


def _by_size(have: tuple[bool, ...], given: list[FloatExp]) -> list[tuple[tuple[bool, ...], list[FloatExp]]]:
    """Cotangents of a piece in groups of about one size, each with the outputs that have them: what only a small one
    comes to would be nothing beside a large one."""
    exponents = jax.device_get([number.exponent for number in given])
    positions = [i for i, h in enumerate(have) if h]
    order = sorted(range(len(given)), key=lambda i: exponents[i])
    groups = [[order[0]]]
    for before, i in itertools.pairwise(order):
        apart = exponents[i] - exponents[before] > _APART and exponents[before] != ZERO
        groups += [[i]] if apart else []
        groups[-1] += [] if apart else [i]
    return [
        (tuple(i in {positions[j] for j in group} for i in range(len(have))), [given[j] for j in sorted(group)])
        for group in groups
    ]


@jax.jit
def _larger(one: Squares, other: Squares) -> Squares:
    """The larger of two sums that are far apart: it is the sum of both."""

    def size(squares: Squares) -> Array:
        return jnp.where(squares.total > 0, exponent_of(squares.total) // 2 + squares.exponent, ZERO)

    return jax.tree.map(lambda a, b: jnp.where(size(one) >= size(other), a, b), one, other)


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
) -> Pulled:
    """Cotangents of the wanted inputs, and what is read.

    Plain floats inside; the exponent of what came in is put on what goes out.
    """
    cotangents, exponent = aligned(given)
    pulled, read = pull(piece, have, arguments, cotangents)
    numbers = [_normalized(FloatExp(value, exponent)) for value in pulled]
    return numbers, [squares_of(FloatExp(value, exponent), careful, LIFT) for value in read]


def pull(
    piece: Piece, have: tuple[bool, ...], arguments: list[Any], cotangents: list[Any]
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
    have: tuple[bool, ...],
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
    stacked = {i: number for i, number in enumerate(stacked_outputs) if number is not None}

    def step(state: Any, now: Any) -> tuple[Any, Any]:
        carry, sums = state
        old, slices, rows = now
        numbers = {i: _normalized(FloatExp(rows[i], stacked[i].exponent)) for i in stacked}
        values, exponent = aligned([*carry, *numbers.values()])
        here: list[FloatExp | None] = [None] * len(loop.body.graph.outputs)
        for i, value in zip([*_carried_positions(loop), *(len(old) + i for i in numbers)], values, strict=True):
            here[i] = from_float(value)
        pulled, read = (pull_step or step_backward)(loop, careful, [*constants, *old, *slices], here)
        found = dict(zip(body_wanted(loop), (moved(number, exponent) for number in pulled), strict=True))
        read = [Squares(total, k + exponent) for total, k in read]
        sums = [add(total, found[v]) for total, v in zip(sums, fixed, strict=True)]
        return (_under_one_exponent([found[v] for v in carried]), sums), ([found[v] for v in sliced], read)

    first = [number or _zero(v) for number, v in zip(carry_outputs, carried, strict=True)]
    state = _under_one_exponent(first), [_zero(v) for v in fixed]
    rows = {i: number.value for i, number in stacked.items()}
    (carry, sums), (by_step, read) = lax.scan(step, state, (before, slices, rows), **scanned(loop, backward=True))
    return [*sums, *carry, *(one_exponent(number) for number in by_step)], read


def step_backward(loop: Loop, careful: bool, inputs: list[Any], given: list[FloatExp | None]) -> Pulled:
    """Cotangents of the differentiable inputs of a loop's body, and what is read in it."""
    done = forward(loop.body, inputs, inline, careful)
    result = backward(loop.body, done, given, inline, careful)
    nothing = Squares(jnp.zeros(()), jnp.zeros((), jnp.int32))
    cotangents = [result.cotangents.get(v, _zero(v)) for v in body_wanted(loop)]
    return cotangents, [result.squares.get(v, nothing) for v in loop.read]


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


def one_exponent(number: FloatExp) -> FloatExp:
    """Rows with exponents of their own, at the largest of them."""
    value, exponent = number
    largest = jnp.max(exponent)
    factor = power_of_two(exponent - largest, value.dtype)
    return FloatExp(value * factor.reshape(-1, *[1] * (value.ndim - 1)), largest)


def switch_backward(
    switch: Switch, have: tuple[bool, ...], careful: bool, arguments: list[Any], given: list[FloatExp]
) -> Pulled:
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
    numbers, read = run_switch(arguments[0], branches, (arguments[1:], given))
    nothing = Squares(jnp.zeros(()), jnp.zeros((), jnp.int32))
    return numbers, [read.get(i, nothing) for i in range(len(switch.read))]
