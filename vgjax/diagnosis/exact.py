"""Both passes where states leave the float range: every part goes on by its degree (`extended_together`).

The parts are those of the ordinary passes. Forward, each is a map of the states that come in; backward, so is the
cotangent that it gives: that of a kernel grows with the state, that of a state does not.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from vgjax.diagnosis.backward import Pulled, body_wanted, loop_backward, pull, step_backward, wanted
from vgjax.diagnosis.cotangents import one_exponent
from vgjax.diagnosis.forward import (
    LIFT,
    Forward,
    Run,
    Signal,
    forward,
    inline,
    loop_forward,
    scanned,
    signal,
    split,
    squares_of,
    switch_forward,
    taken,
)
from vgjax.diagnosis.graphs import Variable, evaluate_all, value_of
from vgjax.diagnosis.pieces import Loop, Part, Piece, Program, Switch, read_outputs
from vgjax.floatexp import (
    ZERO,
    Extended,
    FloatExp,
    aligned,
    extended_together,
    from_float,
    moved,
    normalize_together,
    power_of_two,
    to_float_clipped,
)


class ExactForward(NamedTuple):
    """A forward pass with states of any size.

    Attributes:
        forward: values, of states as scaled numbers, and what was read.
        exact: by part, whether its results are right, bool, shape ``()``.
    """

    forward: Forward
    exact: dict[Part, Array]


def exact_forward(program: Program, inputs: Sequence[Any], run: Run) -> ExactForward:
    """Values of a program's variables; states are scaled numbers."""
    given = map(_as_number, program.graph.inputs, inputs)
    values: dict[Any, Any] = {**program.graph.constants, **dict(zip(program.graph.inputs, given, strict=True))}
    signals = {v: scaled_signal(v, values[v]) for v in program.read_inputs}
    exact: dict[Part, Array] = {}
    for part in program.parts:
        taking = [value_of(v, values) for v in part.inputs]
        if isinstance(part, Switch):
            branch = part.branches[taken(part, taking[0])]
            inner = exact_forward(branch, taking[1:], run)
            values[part], outputs = inner.forward, inner.forward.outputs(branch)
            signals.update(inner.forward.signals)
            exact.update(inner.exact)
        elif isinstance(part, Loop):
            outputs, values[part], read, exact[part] = run(exact_loop, part)(taking)
            signals.update(zip(part.read, read, strict=True))
        else:
            outputs, read, exact[part] = run(exact_piece, part)(taking)
            signals.update(zip(part.read, read, strict=True))
        values.update(zip(part.outputs, map(_as_number, part.outputs, outputs), strict=True))
        signals.update((v, scaled_signal(v, values[v])) for v in read_outputs(part))
    return ExactForward(Forward(values, signals), exact)


def _as_number(variable: Variable, value: Any) -> Any:
    """States as scaled numbers, everything else as it is."""
    if not variable.is_state:
        return as_float(value)
    return value if isinstance(value, FloatExp) else from_float(value)


def as_float(value: Any) -> Any:
    """A plain array: a scaled number is moved in to the edge of the range."""
    return to_float_clipped(value) if isinstance(value, FloatExp) else value


def scaled_signal(variable: Variable, value: Any) -> Signal:
    """What is read of a value of any size; shares of its activation at the edge of the range."""
    if variable.cotangent_only:
        return signal(variable, from_float(as_float(value)), True)
    squares = squares_of(value if isinstance(value, FloatExp) else from_float(value), True)
    return signal(variable, from_float(as_float(value)), True)._replace(squares=squares)


def _result(variable: Variable, number: FloatExp) -> Any:
    """A result as the next part takes it."""
    if not variable.is_state:
        return number.value
    (value,), exponent = normalize_together([number.value], number.exponent)
    return FloatExp(value, exponent)


def _extended(f: Callable[[list[Any]], list[Any]], inputs: list[Variable], arguments: list[Any]) -> Extended:
    """``f(arguments)``, scaled together in those that are states; where it was computed, all of its arguments."""
    numbers = [_as_number(v, value) for v, value in zip(inputs, arguments, strict=True)]
    states = [i for i, number in enumerate(numbers) if isinstance(number, FloatExp)]
    if not states:
        return Extended([from_float(value) for value in f(numbers)], numbers, jnp.asarray(True))

    def full(values: list[Array]) -> list[Any]:
        replaced = dict(zip(states, values, strict=True))
        return [replaced.get(i, number) for i, number in enumerate(numbers)]

    found = extended_together(lambda values: f(full(values)), [numbers[i] for i in states])
    return found._replace(arguments=full(found.arguments))


def exact_piece(piece: Piece, arguments: list[Any]) -> tuple[list[Any], list[Signal], Array]:
    """Outputs, what is read, whether they are right."""

    def run(values: list[Any]) -> list[Any]:
        local = dict(zip(piece.inputs, values, strict=True))
        evaluate_all(piece.nodes, local)
        return [local[v] for v in (*piece.outputs, *piece.read)]

    found = _extended(run, piece.inputs, arguments)
    results = [_result(v, n) for v, n in zip((*piece.outputs, *piece.read), found.results, strict=True)]
    count = len(piece.outputs)
    return results[:count], [*map(scaled_signal, piece.read, results[count:])], found.exact


def exact_piece_backward(
    piece: Piece, have: tuple[int, ...], careful: bool, arguments: list[Any], given: list[FloatExp]
) -> Pulled:
    """As `piece_backward`, at states of any size."""
    cotangents, exponent = aligned(given)
    inputs = wanted(piece)

    def run(values: list[Any]) -> list[Any]:
        pulled, read = pull(piece, have, values, cotangents)
        return [*pulled, *read]

    found = [moved(number, exponent) for number in _extended(run, piece.inputs, arguments).results]
    return [_normalized(number) for number in found[: len(inputs)]], [
        squares_of(n, careful, LIFT) for n in found[len(inputs) :]
    ]


def _normalized(number: FloatExp) -> FloatExp:
    (value,), exponent = normalize_together([number.value], number.exponent)
    return FloatExp(value, exponent)


# --- loops ----------------------------------------------------------------------------------------------------------


def exact_loop(loop: Loop, arguments: list[Any]) -> tuple[list[Any], list[Any], list[Signal], Array]:
    """Outputs, the carry before every step, what is read in every step, whether they are right.

    Every step is one map of its carry, its slices and all that is constant. What is read in loops and branches inside
    it is read where that map was computed, and not right past the range.
    """
    nested = any(part.read for part in loop.body.parts if not isinstance(part, Piece))
    graph = loop.body.graph
    constants, carry, slices = split(loop, _by_step(loop, arguments))
    seen = [v for part in loop.body.parts if isinstance(part, Piece) for v in part.read]

    def step(carry: list[Any], slices: list[Any]) -> tuple[list[Any], Any]:
        values = [*constants, *carry, *slices]
        found = _extended(lambda values: _step(loop, values, seen), graph.inputs, values)
        results = [_result(v, n) for v, n in zip((*graph.outputs, *seen), found.results, strict=True)]
        signals = forward(loop.body, found.arguments, inline, True).signals
        read = zip((*graph.inputs, *seen), (*values, *results[len(graph.outputs) :]), strict=True)
        signals |= {v: scaled_signal(v, value) for v, value in read if v.read}
        following = map(_as_number, split(loop, graph.inputs)[1], results[: len(carry)])
        stacked = results[len(carry) : len(graph.outputs)]
        exact = found.exact & ~_is_outside(values) if nested else found.exact
        return list(following), (stacked, carry, [signals[v] for v in loop.read], exact)

    carry, (stacked, before, read, exact) = lax.scan(step, carry, slices, **scanned(loop))
    rows = [one_exponent(row) if isinstance(row, FloatExp) else row for row in stacked]
    return [*carry, *rows], before, read, jnp.all(exact)


def _is_outside(values: list[Any]) -> Array:
    """Whether one of several values, normalized, lies outside the float range's window."""
    exponents = [value.exponent for value in values if isinstance(value, FloatExp)]
    return jnp.any(jnp.stack([(exponent != 0) & (exponent != ZERO) for exponent in exponents]))


def _by_step(loop: Loop, arguments: list[Any]) -> list[Any]:
    """A loop's arguments as numbers; what is sliced has its exponent at every step."""
    constants, carry, slices = split(loop, [*map(_as_number, loop.body.graph.inputs, arguments)])
    repeated = [
        s._replace(exponent=jnp.broadcast_to(s.exponent, (loop.node.steps,))) if isinstance(s, FloatExp) else s
        for s in slices
    ]
    return [*constants, *carry, *repeated]


def _step(loop: Loop, values: list[Any], seen: list[Variable]) -> list[Any]:
    """The outputs of a loop's body, and the variables seen on the way, in plain floats."""
    graph = loop.body.graph
    local: dict[Any, Any] = {**graph.constants, **dict(zip(graph.inputs, values, strict=True))}
    for part in loop.body.parts:
        if isinstance(part, Piece):
            evaluate_all(part.nodes, local)
            continue
        arguments = [value_of(v, local) for v in part.inputs]
        nested = (
            loop_forward(part, True, arguments) if isinstance(part, Loop) else switch_forward(part, True, arguments)
        )
        local.update(zip(part.outputs, nested[0], strict=True))
    return [value_of(v, local) for v in (*graph.outputs, *seen)]


def exact_loop_backward(
    loop: Loop,
    have: tuple[int, ...],
    careful: bool,
    arguments: list[Any],
    before: list[Any],
    given: list[FloatExp],
) -> Pulled:
    """As `loop_backward`, at states of any size."""
    return loop_backward(loop, have, careful, _by_step(loop, arguments), before, given, _exact_step_backward)


def _exact_step_backward(loop: Loop, careful: bool, inputs: list[Any], given: list[list[FloatExp]]) -> Pulled:
    """As `step_backward`, at states of any size; what is read inside the body is read where it was computed."""

    def run(values: list[Any]) -> list[Any]:
        return [n.value * power_of_two(n.exponent, n.value.dtype) for n in step_backward(loop, True, values, given)[0]]

    found = _extended(run, loop.body.graph.inputs, inputs)
    pulled = dict(zip(body_wanted(loop), map(_normalized, found.results), strict=True))
    _, read = step_backward(loop, careful, found.arguments, given)
    read = [
        squares_of(pulled[v], careful, LIFT) if v in pulled else squares
        for v, squares in zip(loop.read, read, strict=True)
    ]
    return list(pulled.values()), read
