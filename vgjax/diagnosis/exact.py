"""The forward pass where states leave the float range: every part goes on by its degree (`extended_together`).

The parts are those of the ordinary pass; the backward pass is then taken where each of them was computed, at its
arguments moved in to the edge of the range: maps of degree 1 and 0 have the same Jacobian there, up to a power of two.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from vgjax.diagnosis.graphs import Variable, evaluate_all, value_of
from vgjax.diagnosis.passes import (
    Forward,
    Run,
    Signal,
    Squares,
    forward,
    inline,
    loop_forward,
    one_exponent,
    scanned,
    signal,
    split,
    switch_forward,
    taken,
)
from vgjax.diagnosis.pieces import Loop, Part, Piece, Program, Switch, read_outputs
from vgjax.floatexp import (
    FloatExp,
    extended_together,
    from_float,
    normalize_together,
    sum_of_squares,
    to_float_clipped,
)


class ExactForward(NamedTuple):
    """A forward pass with states of any size.

    Attributes:
        forward: where every part was computed, and what was read.
        exact: by part, whether its results are right, bool, shape ``()``.
    """

    forward: Forward
    exact: dict[Part, Array]


def exact_forward(program: Program, inputs: Sequence[Any], run: Run) -> ExactForward:
    """Values of a program's variables; states are scaled numbers."""
    given = map(_as_number, program.graph.inputs, inputs)
    values: dict[Any, Any] = {**program.graph.constants, **dict(zip(program.graph.inputs, given, strict=True))}
    signals = {v: scaled_signal(v, values[v]) for v in program.read_inputs}
    arguments: dict[Part, list[Any]] = {}
    exact: dict[Part, Array] = {}
    for part in program.parts:
        taking = [value_of(v, values) for v in part.inputs]
        if isinstance(part, Switch):
            branch = part.branches[taken(part, taking[0])]
            inner = exact_forward(branch, taking[1:], run)
            values[part], outputs = inner.forward, inner.forward.outputs(branch)
            arguments[part] = [_as_float(value) for value in taking]
            signals.update(inner.forward.signals)
            exact.update(inner.exact)
        elif isinstance(part, Loop):
            outputs, arguments[part], values[part], read, exact[part] = run(exact_loop, part)(taking)
            signals.update(zip(part.read, read, strict=True))
        else:
            outputs, arguments[part], read, exact[part] = run(exact_piece, part)(taking)
            signals.update(zip(part.read, read, strict=True))
        values.update(zip(part.outputs, map(_as_number, part.outputs, outputs), strict=True))
        signals.update((v, scaled_signal(v, values[v])) for v in read_outputs(part))
    return ExactForward(Forward(values, signals, arguments), exact)


def _as_number(variable: Variable, value: Any) -> Any:
    """States as scaled numbers, everything else as it is."""
    if not variable.is_state:
        return _as_float(value)
    return value if isinstance(value, FloatExp) else from_float(value)


def _as_float(value: Any) -> Any:
    """A plain array: a scaled number is moved in to the edge of the range."""
    return to_float_clipped(value) if isinstance(value, FloatExp) else value


def scaled_signal(variable: Variable, value: Any) -> Signal:
    """What is read of a value of any size; shares of its activation at the edge of the range."""
    squares = sum_of_squares(value if isinstance(value, FloatExp) else from_float(value), careful=True)
    return signal(variable, from_float(_as_float(value)), True)._replace(squares=Squares(*squares))


def _normalized(variable: Variable, number: FloatExp) -> Any:
    """A result as the next part takes it."""
    if not variable.is_state:
        return number.value
    (value,), exponent = normalize_together([number.value], number.exponent)
    return FloatExp(value, exponent)


class _Result(NamedTuple):
    """Of a function of states of any size: `results` by variable, `arguments` where it was computed."""

    results: list[Any]
    arguments: list[Any]
    exact: Array


def _extended(
    f: Callable[[list[Any]], list[Any]], inputs: list[Variable], results: list[Variable], arguments: list[Any]
) -> _Result:
    """``f(arguments)``, scaled together in those that are states."""
    numbers = [_as_number(v, value) for v, value in zip(inputs, arguments, strict=True)]
    states = [i for i, number in enumerate(numbers) if isinstance(number, FloatExp)]
    if not states:
        return _Result(f(numbers), numbers, jnp.asarray(True))

    def full(values: list[Array]) -> list[Any]:
        replaced = dict(zip(states, values, strict=True))
        return [replaced.get(i, number) for i, number in enumerate(numbers)]

    found = extended_together(lambda values: f(full(values)), [numbers[i] for i in states])
    by_variable = [_normalized(v, number) for v, number in zip(results, found.results, strict=True)]
    return _Result(by_variable, full(found.arguments), found.exact)


def exact_piece(piece: Piece, arguments: list[Any]) -> tuple[list[Any], list[Any], list[Signal], Array]:
    """Outputs, where it was computed, what is read, whether it is right."""

    def run(values: list[Any]) -> list[Any]:
        local = dict(zip(piece.inputs, values, strict=True))
        evaluate_all(piece.nodes, local)
        return [local[v] for v in (*piece.outputs, *piece.read)]

    found = _extended(run, piece.inputs, [*piece.outputs, *piece.read], arguments)
    count = len(piece.outputs)
    read = [scaled_signal(v, value) for v, value in zip(piece.read, found.results[count:], strict=True)]
    return found.results[:count], found.arguments, read, found.exact


def exact_loop(loop: Loop, arguments: list[Any]) -> tuple[list[Any], list[Any], list[Any], list[Signal], Array]:
    """Outputs, where it was computed, the carry before every step, what is read in every step, whether it is right.

    Every step is one map of its carry, its slices and all that is constant. What is read in loops and branches inside
    it is read where that map was computed.
    """
    graph = loop.body.graph
    numbers = [_as_number(v, value) for v, value in zip(graph.inputs, arguments, strict=True)]
    constants, carry, slices = split(loop, numbers)
    pieces = [part for part in loop.body.parts if isinstance(part, Piece)]
    seen = [v for piece in pieces for v in piece.read]

    def run(values: list[Any]) -> list[Any]:
        local: dict[Any, Any] = {**graph.constants, **dict(zip(graph.inputs, values, strict=True))}
        for part in loop.body.parts:
            if isinstance(part, Piece):
                evaluate_all(part.nodes, local)
                continue
            outputs = run_part(part, [value_of(v, local) for v in part.inputs])
            local.update(zip(part.outputs, outputs, strict=True))
        return [value_of(v, local) for v in (*graph.outputs, *seen)]

    def step(carry: list[Any], now: Any) -> tuple[list[Any], Any]:
        slices, exponents = now
        rows = [FloatExp(s, e) if e is not None else s for s, e in zip(slices, exponents, strict=True)]
        values = [*constants, *carry, *rows]
        found = _extended(run, graph.inputs, [*graph.outputs, *seen], values)
        signals = forward(loop.body, found.arguments, inline, True).signals
        read = zip([*graph.inputs, *seen], [*values, *found.results[len(graph.outputs) :]], strict=True)
        signals |= {v: scaled_signal(v, value) for v, value in read if v.read}
        following = zip(split(loop, graph.inputs)[1], found.results[: len(carry)], strict=True)
        before = split(loop, found.arguments)[1]
        stacked = found.results[len(carry) : len(graph.outputs)]
        return [_as_number(*one) for one in following], (stacked, before, [signals[v] for v in loop.read], found.exact)

    values = [s.value if isinstance(s, FloatExp) else s for s in slices]
    exponents = [jnp.broadcast_to(s.exponent, (loop.node.steps,)) if isinstance(s, FloatExp) else None for s in slices]
    carry, (stacked, before, read, exact) = lax.scan(step, carry, (values, exponents), **scanned(loop))
    stacked = [one_exponent(row) if isinstance(row, FloatExp) else row for row in stacked]
    return [*carry, *stacked], [_as_float(n) for n in numbers], before, read, jnp.all(exact)


def run_part(part: Loop | Switch, arguments: list[Any]) -> list[Any]:
    """A loop's or branching's outputs in plain floats."""
    if isinstance(part, Loop):
        return loop_forward(part, True, arguments)[0]
    return switch_forward(part, True, arguments)[0]
