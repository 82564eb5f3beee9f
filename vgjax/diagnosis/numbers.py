"""What two passes have read, on the host: logarithms in float64, joined over steps and parts."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax.diagnosis.backward import Front
from vgjax.diagnosis.forward import LIFT, NOT_TAKEN, Signal, Squares
from vgjax.diagnosis.graphs import Variable
from vgjax.diagnosis.pieces import Part
from vgjax.diagnosis.readings import NAN
from vgjax.floatexp import FloatExp

LN2 = math.log(2.0)

Index = tuple[int, ...]
"""Steps of the loops that a variable stands in, outermost first; over those that are not named it is joined."""


class Numbers:
    """Readings by variable.

    Args:
        signals: of the forward pass.
        squares: of the cotangents.
        outputs: values of the graph's outputs, scaled numbers where states left the float range.
        exact: whether the results of each part are right, where states left the float range.
        fronts: gradients that are alive after each part.
    """

    def __init__(
        self,
        signals: dict[Variable, Signal],
        squares: dict[Variable, Squares],
        outputs: list[Any],
        exact: dict[Part, Any],
        fronts: list[Front],
    ) -> None:
        variables = list(signals), list(squares)
        read = jax.device_get((list(signals.values()), list(squares.values())))
        self.outputs = outputs
        self.fronts = [(part, [_log_norms(jax.device_get(s), ()) for s in squares]) for part, squares in fronts]
        self.inexact = [part for part, is_exact in exact.items() if not bool(is_exact)]
        self._signals: dict[Variable, Signal] = dict(zip(variables[0], read[0], strict=True))
        self._squares: dict[Variable, Squares] = dict(zip(variables[1], read[1], strict=True))

    def loss(self) -> float:
        """The first output, infinite where float64 ends too."""
        value, exponent = self.outputs[0] if isinstance(self.outputs[0], FloatExp) else (self.outputs[0], 0)
        try:
            return math.ldexp(float(value), int(exponent))
        except OverflowError:
            return math.copysign(math.inf, float(value))

    def are_doubtful(self) -> bool:
        """Whether the careful backward pass is needed: a plain sum of squares may have left the float range, or a
        cotangent has left the window, so that others may be nothing beside it."""
        read = self._squares.values()
        moved = any(np.any((np.asarray(s.total) > 0) & (s.exponent != -LIFT)) for s in read)
        return moved or any(_is_outside(s.total) for s in read)

    def is_zero(self, variable: Variable) -> bool:
        """Whether all entries of what is read once are exactly 0."""
        signal = self._signals.get(variable)
        squares = None if signal is None else signal.squares
        return squares is not None and bool(np.all(np.asarray(squares.total) == 0))

    def log_rms(self, variables: list[Variable], index: Index = ()) -> float:
        """ln of the root mean square of all entries of all of them."""
        signals = {v: self._signals[v] for v in variables if v in self._signals}
        logs = {v: _log_norms(squares, index) for v, squares in _squares_of(signals)}
        if not logs:
            return NAN
        entries = sum(v.size * log.size for v, log in logs.items())
        return joined([*logs.values()]) - math.log(entries) / 2 if entries else NAN

    def log_cotangent(self, variable: Variable, index: Index = ()) -> float:
        """ln of the norm of one variable's cotangent."""
        return self.log_cotangents([variable], index)

    def log_cotangents(self, variables: list[Variable], index: Index = ()) -> float:
        """ln of the norm of the cotangents of all of them; -inf where no gradient comes; NaN in a branch not taken, and
        of what gradient does not pass."""
        computed = [v for v in variables if v in self._signals and v.differentiable]
        if not computed:
            return NAN
        return joined([_log_norms(self._squares[v], index) for v in computed if v in self._squares])

    def shares(self, variable: Variable, index: Index = ()) -> tuple[float, float]:
        """(zeros, saturated) in the activation that follows; NaN where none does."""
        signal = self._signals.get(variable)
        if signal is None or signal.zeros is None or signal.saturated is None:
            return NAN, NAN
        zeros, saturated = (_at(share, index) for share in (signal.zeros, signal.saturated))
        return (float(np.mean(zeros)), float(np.mean(saturated))) if zeros.size else (NAN, NAN)


def signals_are_doubtful(signals: dict[Variable, Signal]) -> bool:
    """Whether a plain sum of squares of a state may have left the float range."""
    return any(_is_outside(s.total) for s in jax.device_get([read for _, read in _of_states(signals)]))


def left_range(signals: dict[Variable, Signal]) -> bool:
    """Whether a state is not finite, or so near the ends of its dtype's range that the next may leave it."""
    for variable, read in _of_states(signals):
        total, exponent = (np.asarray(a, np.float64) for a in jax.device_get(read))
        end = 0.875 * float(jnp.finfo(variable.aval.dtype).maxexp)
        with np.errstate(divide="ignore", invalid="ignore"):
            octaves = (np.log2(total / max(variable.size, 1)) / 2 + exponent)[total > 0]
        if not np.all(np.isfinite(total)) or np.any(np.abs(octaves) > end):
            return True
    return False


def _of_states(signals: dict[Variable, Signal]) -> list[tuple[Variable, Squares]]:
    return [(variable, squares) for variable, squares in _squares_of(signals) if variable.is_state]


def _squares_of(signals: dict[Variable, Signal]) -> list[tuple[Variable, Squares]]:
    return [(variable, read.squares) for variable, read in signals.items() if read.squares is not None]


def _is_outside(total: Any) -> bool:
    total = np.asarray(total)
    return bool(np.any(((total > 0) & (total < 1e-30)) | ~(total <= 1e30)))


def _at(array: Any, index: Index, where: Any = None) -> np.ndarray:
    """The entries at these steps that were computed, shape ``(entries,)``: others stand at `NOT_TAKEN`."""
    values = np.asarray(array, np.float64)
    decides = values if where is None else np.asarray(where)
    index = index[: values.ndim]
    return values[index][decides[index] != NOT_TAKEN].reshape(-1)


def _log_norms(squares: Squares, index: Index) -> np.ndarray:
    total, exponent = _at(squares.total, index), _at(squares.exponent, index, squares.total)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(total) / 2 + np.where(total == 0, 0.0, exponent) * LN2)


def joined(logs: list[np.ndarray]) -> float:
    """ln of the norm of several, from ln of each; NaN of nothing that was computed."""
    every = np.concatenate([2 * log for log in logs]) if logs else np.array([-np.inf])
    with np.errstate(invalid="ignore"):
        return float(np.logaddexp.reduce(every)) / 2 if every.size else NAN
