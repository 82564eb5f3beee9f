"""Comparison: what was measured beside what infinite-width theory and its 1/n band predict for it.

The one place, with the pictures and the command line, where simulator and theory meet.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vgjax import theory
from vgjax.activations import Activation
from vgjax.blocks.protocol import TheoryArguments
from vgjax.checks import known
from vgjax.ensembles.result import Result

CURVE_POINTS = 201


@dataclass(frozen=True)
class Comparison:
    """Measurement and theory of one variable, point by point; natural logarithms.

    Attributes:
        variable: what is compared.
        axes: the swept scales, as in the result.
        measured: over seeds, shape ``(*axes, depth + 1)``: the mean of log gains and log gradients, ln of the mean
            square of states and of the mean of 1 - c.
        predicted: what theory expects of it, same shape.
        deviation: standard deviation of one draw, same shape: theory's for gains and gradients, else that of the draws.
        seeds: draws in ``measured``.
        critical: the edge of chaos at infinite width: sigma_w and sigma_b along the curve, each of shape ``(points,)``;
            NaN where there is none.
        name: of the activation.
        left_out: share of points that are not compared, because some seed's gradient is a true zero or its state left
            what the activation covers.
    """

    variable: str
    axes: dict[str, np.ndarray]
    measured: np.ndarray
    predicted: np.ndarray
    deviation: np.ndarray
    seeds: int
    critical: tuple[np.ndarray, np.ndarray]
    name: str
    left_out: float

    @property
    def standard_error(self) -> np.ndarray:
        """Of ``measured``, shape ``(*axes, depth + 1)``."""
        return self.deviation / np.sqrt(self.seeds)

    @property
    def bands(self) -> list[theory.Band]:
        """The prediction as one band (mean, and deviation of one draw) a point, in the order of the axes."""
        means, deviations = (a.reshape(-1, a.shape[-1]) for a in (self.predicted, self.deviation))
        return [theory.Band(*band) for band in zip(means, deviations, strict=True)]

    @property
    def z(self) -> np.ndarray:
        """(measured - predicted) / standard error, shape ``(*axes, depth + 1)``; NaN where nothing is compared."""
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (self.measured - self.predicted) / self.standard_error
        return np.where(self.standard_error > 0, z, np.nan)

    @property
    def verdict(self) -> str:
        """What the z-scores say behind all layers (of gradients: at the first), in one line."""
        layer = 0 if self.variable == "log_gradient" else self.measured.shape[-1] - 1
        z = self.z[..., layer]
        told = np.isfinite(z)
        if not told.any():
            return f"{self.name}: nothing to compare: no point has a finite {self.variable} and a predicted spread"
        worst = np.unravel_index(np.nanargmax(np.where(told, np.abs(z), np.nan)), z.shape)
        where = ", ".join(f"{n} = {v[i]:.3g}" for (n, v), i in zip(self.axes.items(), worst, strict=True))
        root = float(np.sqrt(np.mean(z[told] ** 2)))
        says = "agree" if root < 2 else "differ"
        left = f" ({self.left_out:.0%} of points left out)" if self.left_out else ""
        return (
            f"{self.name}: theory and measurement {says}: root mean square z {root:.2f} over {told.sum()} points at "
            f"layer {layer} (1 is chance), largest {z[worst]:+.1f}{' at ' if where else ''}{where}{left}"
        )

    def __str__(self) -> str:
        return self.verdict


def compare(result: Result, variable: str | None = None) -> Comparison:
    """What was measured beside what theory predicts at the same widths, laws and scales, from the first layer on.

    Theory starts from the mean square of h^0 that was measured (gradients: and from the last layer's gradient), and
    knows nothing else of the measurement. Gains and gradients are compared with theory at that width (`theory.band`:
    mean and spread of the logarithm), states and correlations with infinite width, so that they differ by O(1 / width)
    beyond their standard error.

    Args:
        result: a sweep of `gains` with one probe, of `gradients`, or of `correlations`, of a network that theory knows,
            over ``sigma_w``, ``sigma_b`` or both.
        variable: ``"log_gain"``, ``"log_gradient"``, ``"log_mean_square"`` or ``"log_one_minus_c"``; left out, the
            first of them that was measured (of correlations the last).

    Returns:
        `Comparison`.

    Raises:
        ValueError: a network, a variable or axes that theory does not cover.
    """
    measured = [name for name in _PREDICTIONS if name in result.arrays]
    if not measured:
        raise ValueError(f"compare needs gains, gradients or correlations, got {result.measure}")
    variable = measured[-1 if result.measure == "correlations" else 0] if variable is None else variable
    compared = _PREDICTIONS[known("variable", variable, measured)]
    plain, scales = _plain(result), _scales(result)
    grid = np.meshgrid(*(scales[name] for name in result.axes), indexing="ij")
    at = {**scales, **dict(zip(result.axes, grid, strict=True))}
    at = {name: np.broadcast_to(values, [len(v) for v in result.axes.values()]) for name, values in at.items()}
    found = compared(result, plain, at["sigma_w"], at["sigma_b"])
    whole = np.isfinite(found.measured) & (result.first_inexact_layer.min(axis=0) > result.depth)[..., None]
    deviation = np.where(whole, found.deviation, np.nan)
    line = _critical(plain.activation, scales["sigma_b"])
    about = result.seeds, line, plain.activation.name, float(1 - whole.mean())
    return Comparison(variable, result.axes, found.measured, found.predicted, deviation, *about)


class _Compared(NamedTuple):
    """Fields of `Comparison`, each of shape ``(*axes, depth + 1)``."""

    measured: np.ndarray
    predicted: np.ndarray
    deviation: np.ndarray


def _gains(result: Result, plain: TheoryArguments, sigma_w: np.ndarray, sigma_b: np.ndarray) -> _Compared:
    probes = result.provenance.get("options", {}).get("probes", 1)
    if probes != 1:
        raise ValueError(f"compare needs one probe a draw, got {probes}")
    band = theory.band(
        plain.activation, plain.widths, sigma_w, sigma_b, law=plain.kernel_init, q0=_first_square(result)
    )
    return _Compared(result.mean("log_gain"), band.mean, band.deviation)


def _gradients(result: Result, plain: TheoryArguments, sigma_w: np.ndarray, sigma_b: np.ndarray) -> _Compared:
    """The gain from layer l to L is that of `theory.band` between the two: backwards as forwards."""
    band = theory.band(
        plain.activation, plain.widths, sigma_w, sigma_b, law=plain.kernel_init, q0=_first_square(result)
    )
    last = result.log_gradient[..., -1].astype(float)
    spread = last.std(axis=0, ddof=1)[..., None] if result.seeds > 1 else 0.0
    # Forwards a gain from n to n' units has a factor n' / n in its mean square that it has not backwards.
    sizes = np.log(np.array(plain.widths) / plain.widths[-1]) / 2
    variance = np.maximum(band.deviation[..., -1:] ** 2 - band.deviation**2, 0)
    mean = last.mean(axis=0)[..., None] + band.mean[..., -1:] - band.mean + sizes
    return _Compared(result.mean("log_gradient"), mean, np.sqrt(spread**2 + variance))


def _states(result: Result, plain: TheoryArguments, sigma_w: np.ndarray, sigma_b: np.ndarray) -> _Compared:
    squares = np.exp(result.log_mean_square.astype(float))
    if squares.ndim > sigma_w.ndim + 2:  # of two inputs, the first
        squares = squares[..., 0, :]
    q = _trajectories(plain, sigma_w, sigma_b, result.depth, squares[..., 0].mean(axis=0)[..., None], lambda t: t.q)
    return _logs(squares, q)


def _correlations(result: Result, plain: TheoryArguments, sigma_w: np.ndarray, sigma_b: np.ndarray) -> _Compared:
    squares = np.exp(result.log_mean_square[..., 0].astype(float)).mean(axis=0)  # of both inputs
    apart = np.exp(result.log_one_minus_c.astype(float))
    start = np.concatenate([squares, apart[..., 0].mean(axis=0)[..., None]], axis=-1)
    expected = _trajectories(plain, sigma_w, sigma_b, result.depth, start, lambda t: t.one_minus_c)
    return _logs(apart, expected)


def _logs(draws: np.ndarray, expected: np.ndarray) -> _Compared:
    """ln of a mean over draws, with the deviation of one draw in its logarithm (its coefficient of variation)."""
    mean = draws.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = draws.std(axis=0, ddof=1) / mean if len(draws) > 1 else np.full(mean.shape, np.nan)
        return _Compared(np.log(mean), np.log(expected), spread)


def _trajectories(
    plain: TheoryArguments,
    sigma_w: np.ndarray,
    sigma_b: np.ndarray,
    depth: int,
    start: np.ndarray,
    read: Callable[[Any], Any],
) -> np.ndarray:
    """Of every point, shape ``(*axes, depth + 1)``; ``start`` holds one q, or two and 1 - c."""
    found = np.empty((*sigma_w.shape, depth + 1))
    for point in np.ndindex(sigma_w.shape):
        scales = float(sigma_w[point]), float(sigma_b[point])
        two = {"one_minus_c0": float(start[point][2])} if start.shape[-1] == 3 else {}
        q0 = start[point][:2] if two else float(start[point][0])
        found[point] = read(theory.trajectory(plain.activation, *scales, depth, q0, **two))
    return found


_PREDICTIONS: dict[str, Callable[..., _Compared]] = {
    "log_gain": _gains,
    "log_gradient": _gradients,
    "log_mean_square": _states,
    "log_one_minus_c": _correlations,
}


# --- the edge -------------------------------------------------------------------------------------------------------

_DEFAULTS = {"sigma_w": 1.0, "sigma_b": 0.0}


def _plain(result: Result) -> TheoryArguments:
    """What theory has to know of the network, if it covers it."""
    plain = result.network.theory_arguments
    if plain is None:
        raise ValueError(f"compare needs a network that theory knows (vgjax.mlp), got {result.network!r:.200}")
    return plain


def _scales(result: Result) -> dict[str, np.ndarray]:
    """sigma_w and sigma_b along the axes, or the one number that they are."""
    others = [name for name in result.axes if name not in _DEFAULTS]
    if others:
        raise ValueError(f"compare takes sweeps over sigma_w and sigma_b, got {', '.join(others)}")
    for name in _DEFAULTS:
        if np.ndim(result.fixed.get(name, 0.0)):
            raise ValueError(f"compare takes one {name} for all layers, got one a layer")
    scales = {name: np.asarray(result.fixed.get(name, default), float) for name, default in _DEFAULTS.items()}
    scales |= {name: values.astype(float) for name, values in result.axes.items()}
    zero_bias = result.network.theory_arguments is not None and result.network.theory_arguments.bias_init == "zero"
    return {**scales, "sigma_b": scales["sigma_b"] * (not zero_bias)}


def _first_square(result: Result) -> np.ndarray:
    """q of h^0 as measured, shape ``(*axes,)``."""
    return np.asarray(np.exp(result.log_mean_square[..., 0].astype(float)).mean(axis=0))


def _critical(phi: Activation, sigma_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The edge of chaos over the range of bias scales, finely."""
    along = np.linspace(sigma_b.min(), sigma_b.max(), CURVE_POINTS) if sigma_b.size > 1 else sigma_b.reshape(1)
    return theory.critical(phi, along.astype(float)).edge, along
