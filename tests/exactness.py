"""Whether what the library says of a network is right: its calls beside an `mp_network.Exact` one.

A number has to be right, or NaN; and a NaN has to have a reason: the network's own NaN, a growth without a power past
the float range, an overflow or underflow inside of a layer, exponents that leave 32 bits. What "right" can mean is
limited by rounding, which a chaotic network amplifies: the truth is computed three times, once with the parameters as
they are and twice with all of them moved by a few roundings of the dtype. A number has to be right to the tolerance of
the dtype plus four times what that moves. From the layer on where it turns a state by a hundredth (the horizon), and
where it moves a number by a tenth, rounding decides and nothing is compared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from mp_network import Exact, correlation, log_norm, norm

import vgjax as vg

LABEL = 1

TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
"""Of a logarithm, relative to it where it is beyond 1."""

LOOSER = {"float32": 1e-3, "float64": 1e-7}
"""Of 1 - c, where one way of carrying a difference takes over from the other (`vgjax.correlation`)."""

MOST = 2.0**27
"""Exponents beyond need not be had: 32 bits hold 2^28 of them, and a little is left for what they are added to."""

LOWEST = -(2.0**28) * np.log(2)
"""What is smaller than e to this is 0 to the library."""


@dataclass(frozen=True, eq=False)
class Case:
    """A network with its numbers, and its twin.

    Attributes:
        name: for people.
        parameters, scales: of the library.
        xs: two inputs.
        exact: the same network at an input, ``(x, wobble, seed) -> Exact``.
        ruled: whether its blocks have a power law or a limit toward (zero, infinity).
        zero_by_symmetry: parameters whose gradient is, and reads as rounding: biases before a batch norm.
        differences: parameters whose gradient is one of nearly equal terms (of a softmax whose tokens are alike): right
            to the rounding of the largest gradient of their layer.
    """

    name: str
    parameters: Any
    scales: dict[str, float]
    xs: tuple[np.ndarray, np.ndarray]
    exact: Callable[[np.ndarray, float, int], Exact]
    ruled: tuple[bool, bool] = (True, True)
    zero_by_symmetry: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()

    @property
    def network(self) -> Any:
        return self.parameters.network

    @property
    def dtype(self) -> str:
        return np.dtype(self.parameters.dtype).name

    @property
    def depth(self) -> int:
        return self.network.depth

    @property
    def depths(self) -> list[int]:
        """Of the matrix of gains."""
        return sorted({1, self.depth // 6, self.depth // 2, self.depth})

    def scaled(self) -> Any:
        return vg.Scales(**{name: jnp.asarray(value, self.dtype) for name, value in self.scales.items()})

    def drawn(self, what: str) -> np.ndarray:
        """A tangent ``u``, a cotangent ``v``, a target ``y``."""
        shapes = vg.networks.network.state_shapes(self.network)
        shape = {"u": shapes[0], "v": shapes[-1], "y": vg.networks.network.output_shape(self.network)}[what]
        return np.random.default_rng(ord(what)).normal(size=shape).astype(np.float32)


# --- ours -----------------------------------------------------------------------------------------------------------


CALLS: dict[str, Callable[[Case, Any, Any, Any, Any], Any]] = {
    "push_forward": lambda case, p, s, x, _: vg.push_forward(p, s, x, case.drawn("u")),
    "pull_back": lambda case, p, s, x, _: vg.pull_back(p, s, x, case.drawn("v")),
    "gain_matrix": lambda case, p, s, x, _: vg.gain_matrix(p, s, x, case.depths),
    "gradient_flow": lambda case, p, s, x, _: {
        "squared_error": vg.gradient_flow(p, s, x, case.drawn("y")),
        **({"cross_entropy": vg.gradient_flow(p, s, x, LABEL)} if case.drawn("y").ndim == 1 else {}),
    },
    "states": lambda case, p, s, x, _: vg.states(p, s, x),
    "correlation": lambda case, p, s, x, x2: vg.correlation(p, s, x, x2),
}
"""Measurements of one network: ``(case, parameters, scales, x, x2) -> result``; they can be compiled as one."""


class Ours(NamedTuple):
    """Numbers of one kind.

    Attributes:
        values: any shape.
        reads: the last state that each depends on: along the first axis, or a number.
        first: the first layer that the library marks.
        truth: the same of an exact network and its sibling at the second input.
        absent: whether the library says by another flag that there is nothing to compare.
        excused: where nothing, or NaN, is what the documentation promises, by the same two networks.
        slack: how far a value may be off where the documentation says so, by the same two networks.
    """

    values: np.ndarray
    reads: Any
    first: int
    truth: Callable[[Exact, Exact], Any]
    absent: bool = False
    excused: Callable[[Exact, Exact], Any] = lambda *_: False
    slack: Callable[[Exact, Exact], Any] = lambda *_: 0.0


def first_marked(result: Any, depth: int) -> int:
    """The first layer that a result marks, for whatever reason; depth + 1 if there is none."""
    names = ("first_inexact_layer", "first_nan_layer")
    return min(int(np.min(getattr(result, name, depth + 1))) for name in names)


def numbers(call: str, case: Case, result: Any) -> dict[str, Ours]:
    """Everything that is compared of one call, by name."""
    depth, layers, size = case.depth, np.arange(case.depth + 1), case.drawn("u").size

    def ours(of: Any, values: Any, truth: Any, reads: Any = layers, absent: Any = False) -> Ours:
        return Ours(np.asarray(values, float), reads, first_marked(of, depth), truth, bool(absent))

    def states(of: Any) -> Ours:
        return ours(of, of.log_mean_square, lambda e, _: 2 * e.log_norms - np.log(size))

    if call == "push_forward":
        return {
            "gain": ours(result, result.log_gain, lambda e, _: e.push(case.drawn("u"))),
            "states": states(result),
        }
    if call == "pull_back":
        # A product of Jacobians up to layer m says nothing if any of them does not.
        gain = ours(result, result.log_gain, lambda e, _: e.pull(depth, case.drawn("v")), depth)
        return {"gain": gain, "states": states(result)}
    if call == "gain_matrix":
        rows = {
            f"to {m}": ours(result, row[: m + 1], lambda e, _, m=m: e.pull(m, seed(case, m)), m)
            for m, row in zip(case.depths, result.log_gain, strict=True)
        }
        return rows | {"states": states(result)}
    if call == "states":
        directions = np.reshape(result.direction, (depth + 1, -1))
        return {
            "norms": ours(result, result.log_norm, lambda e, _: e.log_norms),
            "directions": ours(result, directions, lambda e, _: e.directions),
        }
    if call == "correlation":
        return {
            "c": ours(result, result.correlation, lambda e, f: correlation(e, f)[0]),
            "ln(1 - c)": ours(result, result.log_one_minus_c, lambda e, f: _apart(e, f, case.dtype))._replace(
                excused=lambda e, f: np.minimum.accumulate(correlation(e, f)[1]) < _rounding(case.dtype),
                slack=lambda e, f: np.where(_meet(e, f), _rounded_apart(e, f, case.dtype), 0),
            ),
            "states": ours(result, result.log_mean_square[1], lambda _, f: 2 * f.log_norms - np.log(size)),
        }
    found = {}
    for loss, flow in result.items():
        target = LABEL if loss == "cross_entropy" else case.drawn("y")
        for path, log in {"states": flow.log_gradient, **flow.log_parameter_gradient}.items():
            if path in case.zero_by_symmetry:
                continue
            truth = lambda e, _, path=path, loss=loss, y=target: e.gradients(y, loss).get(path, np.nan)  # noqa: E731
            found[f"{loss} of {path}"] = ours(flow, log, truth, depth, flow.saturated)
            if path in case.differences:
                slack = lambda e, _, path=path, loss=loss, y=target: _below(e.gradients(y, loss), path, case.dtype)  # noqa: E731
                found[f"{loss} of {path}"] = found[f"{loss} of {path}"]._replace(slack=slack)
        found["states"] = states(flow)
        if not np.all(np.isnan(flow.mean_square_slope)):
            with np.errstate(divide="ignore"):
                slopes = np.log(flow.mean_square_slope)
            found["slopes"] = ours(flow, slopes, lambda e, _: _slopes(e, case.dtype), layers[:-1])._replace(
                excused=lambda e, _: np.abs(e.log_norms[:-1]) > (window(case.dtype) - 1) * np.log(2)
            )
    return found


def seed(case: Case, m: int) -> np.ndarray:
    """The cotangent that `gain_matrix` draws at depth m."""
    with jax.enable_x64(case.dtype == "float64"):
        key = jax.random.fold_in(jax.random.key(0), m)
        return np.asarray(vg.measure.flow.direction(key, case.drawn("v").shape, case.dtype))


def _slopes(network: Exact, dtype: str) -> np.ndarray | None:
    """ln of mean squares of phi': plain numbers, which leave the floats as such; None where blocks have no one phi."""
    if not hasattr(network.blocks[0], "slopes"):
        return None
    slopes = network.mean_square_slopes
    smallest, largest = (np.log(float(getattr(jnp.finfo(dtype), end))) for end in ("tiny", "max"))
    return np.where(slopes < smallest, -np.inf, np.where(slopes > largest, np.inf, slopes))


def _apart(network: Exact, other: Exact, dtype: str) -> np.ndarray:
    """ln (1 - c); NaN below eps^2 in two directions that meet while the states do not (`vgjax.correlation`)."""
    apart = correlation(network, other)[1]
    return np.where((apart < _rounding(dtype)) & _meet(network, other), np.nan, apart)


def _meet(network: Exact, other: Exact) -> np.ndarray:
    """Where directions can meet while the states do not."""
    with np.errstate(invalid="ignore"):  # both are 0
        return np.abs(network.log_norms - other.log_norms) > 1e-3


def _rounded_apart(network: Exact, other: Exact, dtype: str) -> np.ndarray:
    """What a few roundings of either state are to ln (1 - c); without end below eps^2."""
    with np.errstate(over="ignore"):
        return 8 * _eps(dtype) * np.exp(-correlation(network, other)[1] / 2)


def _eps(dtype: str) -> float:
    return float(jnp.finfo(dtype).eps)


def _rounding(dtype: str) -> float:
    """ln (1 - c) of two states that differ by a few roundings."""
    return 2 * np.log(100 * _eps(dtype))


def _below(gradients: dict[str, np.ndarray], path: str, dtype: str) -> np.ndarray:
    """How far a gradient lies below the rounding of its layer's largest; 0 where it does not."""
    largest = np.max([log for log in gradients.values() if np.shape(log) == np.shape(gradients[path])], axis=0)
    return np.maximum(largest + np.log(8 * _eps(dtype)) - gradients[path], 0)


def window(dtype: str) -> int:
    """States within 2^-window ... 2^window are ordinary floats to the library."""
    return int(jnp.finfo(dtype).maxexp) // 4


# --- beside the truth -----------------------------------------------------------------------------------------------


class Judge:
    """The truth of one case, and what rounding leaves of it."""

    def __init__(self, case: Case):
        self.case, eps = case, _eps(case.dtype)
        self.pairs = [[case.exact(x, *w) for x in case.xs] for w in ((0.0, 0), (4 * eps, 1), (4 * eps, 2))]
        self.horizon = self._horizon()

    def _horizon(self) -> int:
        """The first layer whose state or Jacobian rounding decides; depth + 1 if there is none."""
        (network, _), *others = self.pairs
        for l, h in enumerate(network.states):
            there = [[h], network.jacobians[l : l + 1]]
            moved = [[[o.states[l]], o.jacobians[l : l + 1]] for o, _ in others if l < len(o.states)]
            pairs = [ab for m in moved for x, y in zip(there, m, strict=True) for ab in zip(x, y, strict=False)]
            if any(_differ(a, b) for a, b in pairs):
                return l
        return self.case.depth + 1

    def false(self, call: str, result: Any) -> tuple[list[str], int]:
        """What is false in the result of a call, or NaN without a reason; and how many numbers were compared."""
        found, compared = [], 0
        for what, ours in numbers(call, self.case, result).items():
            tolerance = (LOOSER if what == "ln(1 - c)" else TOLERANCE)[self.case.dtype]
            if ours.absent or ours.truth(*self.pairs[0]) is None:
                continue
            false, known = self.compare(ours, tolerance)
            found += [f"{call}, {what}{wrong}" for wrong in false]
            compared += known
        return found, compared

    def compare(self, ours: Ours, tolerance: float) -> tuple[list[str], int]:
        """The same of one kind of numbers."""
        right, *moved = (np.broadcast_to(ours.truth(*pair), ours.values.shape) for pair in self.pairs)
        reads = np.asarray(ours.reads)
        reads = np.broadcast_to(reads.reshape((*reads.shape, *(1,) * (right.ndim - reads.ndim))), right.shape)
        false, silent, known = judged(ours.values, right, moved, tolerance, ours.slack(*self.pairs[0]))
        excused = np.asarray(ours.excused(*self.pairs[0]), bool)
        false &= ~excused
        found = []
        if np.any(false & (reads < self.horizon)):
            found.append(_entry(false & (reads < self.horizon), ours.values, right))
        silent &= (reads < ours.first) & (reads < self.horizon)
        silent &= ~excused
        if np.any(silent) and not self._range_left(right):
            found.append(_entry(silent, ours.values, right))
        return found, int(np.sum(known & (reads < self.horizon)))

    def _range_left(self, right: np.ndarray) -> bool:
        """Whether a series leaves the exponents, or a layer the floats."""
        return bool(np.nanmax(np.abs(right), initial=0, where=np.isfinite(right)) > MOST * np.log(2)) or any(
            self._leaves_floats(network, l) for network in self.pairs[0] for l in range(len(network.jacobians))
        )

    def _leaves_floats(self, network: Exact, l: int) -> bool:
        """Whether the Jacobian of the layer behind state l is too small or too large for a float."""
        info, grown = jnp.finfo(self.case.dtype), network.log_growth[l] / np.log(2)
        return grown < int(info.minexp) + 15 or grown > int(info.maxexp) - 15

    def needless(self, result: Any) -> str:
        """Why the first mark of a result has no reason; empty if it has one, of either input."""
        first = first_marked(result, self.case.depth)
        why = [self._needless(first, network) for network in self.pairs[0]]
        return f"marked at layer {first}, {why[0]}" if all(why) else ""

    def _needless(self, first: int, network: Exact) -> str:
        if first > self.case.depth or first >= len(network.states) - 1:
            return ""
        before = max(first - 1, 0)
        if self._leaves_floats(network, before):
            return ""
        powers = network.log_norms[[before, first]] / np.log(2)
        if max(abs(powers)) > MOST:
            return ""
        inside = abs(powers[0]) <= window(self.case.dtype) - 1
        ruled = self.case.ruled[int(powers[0] > 0)]
        return f"behind a state of 2^{powers[0]:.3g}" + " that has a rule" * ruled if inside or ruled else ""


def _differ(a: np.ndarray, b: np.ndarray) -> bool:
    """By a hundredth; of what is exponentially small or large only the logarithm has digits."""
    log = log_norm(a)
    if np.isfinite(log) and abs(log) > 1e4:
        return abs(log_norm(b) - log) > 0.01 * abs(log)
    return norm(a - b) > 0.01 * norm(a)


def _entry(which: np.ndarray, ours: np.ndarray, right: np.ndarray) -> str:
    at = np.unravel_index(np.argmax(which), which.shape)
    return f"{''.join(f'[{i}]' for i in at)}: {ours[at]:.6g}, right {right[at]:.6g}; {np.sum(which)} such"


def judged(
    ours: np.ndarray, right: np.ndarray, moved: list[np.ndarray], tolerance: float, slack: Any = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which numbers are false, which are NaN instead of a truth, and which were compared."""
    size = np.maximum(1, np.abs(right))
    with np.errstate(invalid="ignore"):
        shift = np.max([np.where(right == m, 0, np.abs(m - right)) for m in moved], axis=0)
        near = (ours == right) | np.isfinite(ours) & (np.abs(ours - right) <= tolerance * size + 4 * shift + slack)
        decided = np.isnan(right) | (right == -np.inf) & (shift == 0) | (4 * shift < 0.1 * size)
    near |= np.isneginf(ours) & (right < LOWEST)
    # What has no truth (a tower of exponentials) is right only as NaN.
    false = decided & ~near & ~np.isnan(ours)
    silent = decided & ~np.isnan(right) & np.isnan(ours)
    return false, silent, decided & ~np.isnan(right) & ~np.isnan(ours)
