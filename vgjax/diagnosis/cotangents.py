"""Cotangents by variable: sums of scaled numbers, kept apart where one would be nothing beside another.

Two ways to one state may bring it gradients of very different size, and so do the steps of a recurrence. A sum in one
array has one exponent for all of it: what lies more than float32's 126 octaves below its largest entry is lost. That is
right for the sum itself, and wrong for a variable that only the small one comes to.
"""

from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from vgjax.diagnosis.graphs import Variable
from vgjax.floatexp import ZERO, FloatExp, add, power_of_two

APART = 30
"""Octaves from which on numbers are kept apart. A band of steps spans as many, and 32 more where its exponents are 0;
another that is added to it as many again; float32 has 34 left for the entries of one step."""

_add = jax.jit(add)


class Cotangents:
    """Of every variable that has one.

    Args:
        apart: whether numbers that differ by more than `APART` stay apart; not inside a trace, for it looks at them.
    """

    def __init__(self, *, apart: bool) -> None:
        self._apart = apart
        self._numbers: dict[Variable, list[FloatExp]] = {}

    def __contains__(self, variable: Variable) -> bool:
        return variable in self._numbers

    def __iter__(self) -> Iterator[Variable]:
        return iter(self._numbers)

    def receive(self, variables: Sequence[Variable], numbers: Sequence[list[FloatExp]]) -> None:
        """Add to what variables have; rows may have exponents of their own."""
        for variable, some in zip(variables, numbers, strict=True):
            for number in some if variable.differentiable else []:
                if number.exponent.ndim:
                    rows = _bands(number) if self._apart and variable.is_state else [_under_one(number)]
                    self.receive([variable], [rows])
                elif variable in self and not (self._apart and variable.is_state):
                    self._numbers[variable] = [_add(*self._numbers[variable], number)]
                else:
                    self._numbers.setdefault(variable, []).append(number)

    def total(self, variable: Variable) -> FloatExp:
        """The sum as one number."""
        return _sum(self._numbers[variable])

    def of(self, variable: Variable) -> list[FloatExp]:
        """The sum as few numbers that are far apart; empty if there is none."""
        numbers = self._numbers.get(variable, [])
        if len(numbers) > 1:
            groups = _groups(_on_host(numbers))
            self._numbers[variable] = [_sum([numbers[i] for i in group]) for group in groups]
        return self._numbers.get(variable, [])

    def rounds(self, variables: Sequence[Variable]) -> list[list[list[FloatExp]]]:
        """For each of few groups of about one size, at most one number for every variable."""
        pairs = [(i, number) for i, variable in enumerate(variables) for number in self.of(variable)]
        if not self._apart or len(pairs) == 1:
            return [[self.of(variable) for variable in variables]]
        rounds = []
        for group in _groups(_on_host(number for _, number in pairs)):
            found = [[pairs[j][1] for j in group if pairs[j][0] == i] for i in range(len(variables))]
            rounds.append([[_sum(some)] if some else [] for some in found])
        return rounds


def _on_host(numbers: Iterable[FloatExp]) -> list[int]:
    return [int(exponent) for exponent in jax.device_get([number.exponent for number in numbers])]


def _sum(numbers: list[FloatExp]) -> FloatExp:
    return numbers[0] if len(numbers) == 1 else _add(*numbers)


def _groups(exponents: list[int]) -> list[list[int]]:
    """Positions in groups that span at most `APART`, the largest first; exact zeros go with any."""
    order = sorted(range(len(exponents)), key=lambda i: -exponents[i])
    groups: list[list[int]] = []
    for i in order:
        if groups and (exponents[groups[-1][0]] - exponents[i] <= APART or exponents[i] == ZERO):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def one_exponent(number: FloatExp) -> FloatExp:
    """Rows with exponents of their own, at the largest of them."""
    value, exponent = number
    largest = jnp.max(exponent)
    factor = power_of_two(exponent - largest, value.dtype)
    return FloatExp(value * factor.reshape(-1, *[1] * (value.ndim - 1)), largest)


_under_one = jax.jit(one_exponent)


@jax.jit
def _band(number: FloatExp, top: Array) -> FloatExp:
    """The rows whose exponents lie less than `APART` below the top, zeros in place of the others."""
    inside = (number.exponent <= top) & (number.exponent > top - APART)
    return one_exponent(number._replace(exponent=jnp.where(inside, number.exponent, ZERO)))


def _bands(number: FloatExp) -> list[FloatExp]:
    """Rows with exponents of their own as a sum of numbers that are apart."""
    remaining = [int(e) for e in jax.device_get(number.exponent)]
    bands = []
    while remaining:
        top = max(remaining)
        bands.append(_band(number, jnp.asarray(top, jnp.int32)))
        remaining = [e for e in remaining if ZERO < e <= top - APART]
    return bands
