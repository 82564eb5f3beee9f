"""A sweep as theory is asked about it, what theory answers, and what a family of networks has for both."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vgjax.blocks import Chain, Spec
from vgjax.blocks.protocol import block_info
from vgjax.blocks.told import LayerArguments, TheoryArguments
from vgjax.ensembles.result import Result

NOWHERE = (np.array([np.nan]), np.array([np.nan]))
"""The critical line of a network that has none."""


ROUNDING = 2.0**-20
"""Of a float32 logarithm, with some to spare."""


class Compared(NamedTuple):
    """Fields of `Comparison`, each of shape ``(*axes, depth + 1)``; and the critical line."""

    measured: np.ndarray
    predicted: np.ndarray
    deviation: np.ndarray
    critical: tuple[np.ndarray, np.ndarray] = NOWHERE


class Swept(NamedTuple):
    """What a scale is at the points of a sweep over it: where it stands among the axes, and its values."""

    place: int
    values: np.ndarray


class Points(NamedTuple):
    """A sweep of one variable, and what theory is told of it.

    Attributes:
        result: the sweep.
        variable: what is compared.
        scales: those that theory reads, by name: a `Swept`, a number, or one number a layer.
        given: what was said of the input, by name; None where it was not.
    """

    result: Result
    variable: str
    scales: Mapping[str, Any]
    given: Mapping[str, Any]

    @property
    def told(self) -> TheoryArguments:
        """What the network tells of itself."""
        told = self.result.network.theory_arguments
        assert told is not None
        return told

    @property
    def depth(self) -> int:
        """L."""
        return self.result.depth

    @property
    def draws(self) -> np.ndarray:
        """The variable itself (of two inputs, of the first), shape ``(seed, *axes, depth + 1)``."""
        draws = self.result.arrays[self.variable].astype(float)
        return draws[..., 0, :] if "input" in self.result.dims[self.variable] else draws

    @property
    def q0(self) -> np.ndarray:
        """Mean square of h^0 as measured (of two inputs, of the first), shape ``(*axes,)``."""
        squares = np.exp(self.result.arrays["log_mean_square"][..., 0].astype(float)).mean(axis=0)
        return np.asarray(squares[..., 0] if "input" in self.result.dims["log_mean_square"] else squares)

    def grid(self, name: str) -> np.ndarray:
        """A scale at every point, shape ``(*axes,)``."""
        value, shape = self.scales[name], self.q0.shape
        if isinstance(value, Swept):
            value = np.moveaxis(value.values.astype(float).reshape(-1, *[1] * (len(shape) - 1)), 0, value.place)
        return np.broadcast_to(np.asarray(value, float), shape)

    def check_zero(self, name: str, of: str) -> None:
        """Raise ValueError unless a scale is 0 at every point."""
        values = self.grid(name)
        if np.any(values):
            raise ValueError(f"compare takes {name} 0 of {of}, got {values.flat[np.argmax(np.abs(values))]:g}")

    def each(self, f: Callable[[dict[str, Any], float], np.ndarray]) -> np.ndarray:
        """f of the scales and of q0 at every point, shape ``(*axes, depth + 1)``."""
        q0, found = self.q0, []
        for point in np.ndindex(q0.shape):
            here = {n: v.values[point[v.place]] if isinstance(v, Swept) else v for n, v in self.scales.items()}
            numbers = {name: float(v) if np.ndim(v) == 0 else np.asarray(v, float) for name, v in here.items()}
            found.append(f(numbers, float(q0[point])))
        return np.stack(found).reshape(*q0.shape, -1)


class Family(NamedTuple):
    """How theory is laid over the networks that tell arguments of one class.

    Attributes:
        of: which they are, in a sentence.
        variables: what theory has of them.
        names: of the scales that it reads, from the arguments.
        predict: what was measured, beside what is predicted.
        by_layer: whether scales may be one number a layer.
        takes: what may be said of the input, by name.
    """

    of: str
    variables: tuple[str, ...]
    names: Callable[[Any], tuple[str, ...]]
    predict: Callable[[Points], Compared]
    by_layer: bool = False
    takes: tuple[str, ...] = ()


# --- averages over draws --------------------------------------------------------------------------------------------


def quenched(draws: np.ndarray, predicted: np.ndarray, begins: int = 1) -> Compared:
    """The mean of logarithms, with the deviation of one draw from the layer on where they begin to differ.

    Args:
        draws: shape ``(seed, *axes, depth + 1)``.
        predicted: shape ``(*axes, depth + 1)``.
        begins: that layer.
    """
    mean = draws.mean(axis=0)
    spread = draws.std(axis=0, ddof=1) if len(draws) > 1 else np.full(mean.shape, np.nan)
    return Compared(mean, predicted, np.where(np.arange(mean.shape[-1]) >= begins, spread, 0))


def annealed(draws: np.ndarray, predicted: np.ndarray, power: int = 1, begins: int = 0) -> Compared:
    """ln of a mean over draws, over a power: of norms (``power=2``) ln of the root mean square; with the deviation of
    one draw in that logarithm (its coefficient of variation, over the power).

    Args:
        draws: logarithms, shape ``(seed, *axes, depth + 1)``.
        predicted: the same logarithm, shape ``(*axes, depth + 1)``.
        power: of what the mean is.
        begins: the layer from which on draws differ.
    """
    # The largest taken out, since squares of what logarithms hold may leave the floats.
    top = np.max(draws, axis=0)
    top = np.where(np.isfinite(top), top, 0.0)
    each = np.exp(power * (draws - top))
    mean = each.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = each.std(axis=0, ddof=1) / mean if len(draws) > 1 else np.full(mean.shape, np.nan)
        # Draws that are all alike (gates that read nothing) differ by the rounding of float32 logarithms alone.
        spread = np.where(spread < ROUNDING * np.maximum(1, np.abs(top)), 0, spread)
        measured = top + np.log(mean) / power
    return Compared(measured, predicted, np.where(np.arange(mean.shape[-1]) >= begins, spread / power, 0))


MEAN_SQUARE: dict[str, dict[str, int]] = {"log_gain": {"power": 2, "begins": 1}, "log_mean_square": {}}
"""Options of `annealed` for a theory of mean squares."""


# --- what makes the first state ---------------------------------------------------------------------------------------


def parts_of(stem: Spec | None) -> list[Spec]:
    """The blocks of a stem, one behind the other; none if the first state is the input."""
    if stem is None or stem.block is not Chain:
        return [] if stem is None else [stem]
    return [part for _, each in stem.options if isinstance(each, Spec) for part in parts_of(each)]


def check_drawn(parts: list[Spec], layer: LayerArguments) -> None:
    """Raise ValueError unless a first state that meets phi or layer norm is Gaussian, as theory has it: units of one
    given input are not, and what that changes goes away like 1 / sqrt(width) alone."""
    told = block_info(parts[-1]).theory if parts else None
    gaussian = isinstance(told, LayerArguments) and told.kernel_init == "gaussian"
    if not gaussian and (layer.label != "linear" or layer.norm == "layer"):
        what = layer.label if layer.label != "linear" else f"norm {layer.norm!r}"
        raise ValueError(
            f"compare takes {what} behind a stem that draws h^0 with a Gaussian kernel, got {_said(parts)}"
        )


def check_ends_in(parts: list[Spec], block: type, of: str) -> None:
    """Raise ValueError unless the last part of a stem is of that class."""
    if not parts or parts[-1].block is not block:
        raise ValueError(f"compare takes {of} whose stem ends in {block.__name__}, got {_said(parts)}")


def _said(parts: list[Spec]) -> str:
    return f"a stem that ends in {parts[-1].block.__name__}" if parts else "no stem"
