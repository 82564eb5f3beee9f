"""Comparison: what was measured beside what infinite-width theory and its 1/n band predict for it.

The one place, with the pictures and the command line, where simulator and theory meet.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vgjax import theory
from vgjax.blocks.protocol import TheoryArguments, TransformerArguments
from vgjax.checks import kinds, known
from vgjax.ensembles.result import Result, check_complete
from vgjax.theory import normalization, residual, transformer
from vgjax.values import by_content

CURVE_POINTS = 201


@by_content
@dataclass(frozen=True)
class Comparison:
    """Measurement and theory of one variable, point by point; natural logarithms.

    Attributes:
        variable: what is compared.
        axes: the swept scales, as in the result.
        measured: over seeds, shape ``(*axes, depth + 1)``: the mean of log gains and log gradients, ln of the mean
            square of states and of the mean of 1 - c.
        predicted: what theory expects of it, same shape.
        deviation: standard deviation of one draw, same shape: theory's for gains and gradients of plain stacks, else
            that of the draws.
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
        layers = np.flatnonzero(np.isfinite(self.z).any(axis=tuple(range(self.z.ndim - 1))))
        layer = int(layers[0 if self.variable == "log_gradient" else -1]) if layers.size else 0
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


@kinds
def compare(result: Result, variable: str | None = None, *, correlation: float | None = None) -> Comparison:
    """What was measured beside what theory predicts at the same widths, draws and scales, from the first layer on.

    Theory starts from the mean square of h^0 that was measured (gradients: and from the last layer's gradient; a
    normalized stack: from its first layer on), and knows nothing else of the measurement. Gains and gradients of plain
    stacks are compared with theory at that width (`theory.band`: mean and spread of the logarithm). All else is
    compared with infinite width, from which it differs by O(1 / width) beyond its standard error.

    Args:
        result: a sweep of `gains` with one probe, of `gradients`, or of `correlations`, of a network that theory knows:
            a plain stack, with dropout, with residual branches, or with layer, RMS or batch norm around phi; a
            transformer of full attention without rotation.
        variable: ``"log_gain"``, ``"log_gradient"``, ``"log_mean_square"`` or ``"log_one_minus_c"``; left out, the
            first of them that was measured (of correlations the last). Of transformers gains and mean squares.
        correlation: of two tokens of h^0, which theory of transformers starts from (`vgjax.measure.token_correlation`).

    Returns:
        `Comparison`.

    Raises:
        ValueError: a network, a variable or axes that theory does not cover, or a result with missing points.
    """
    check_complete("compare", result)
    measured = [name for name in _PREDICTIONS if name in result.arrays]
    if not measured or "first_inexact_layer" not in result.arrays:
        raise ValueError(f"compare needs gains, gradients or correlations, got {result.measure}")
    variable = measured[-1 if result.measure == "correlations" else 0] if variable is None else variable
    known("variable", variable, measured)
    tokens = result.network.transformer_arguments
    if tokens is not None:
        critical, name = (np.array([np.nan]), np.array([np.nan])), result.network.name
        found = _transformer(result, tokens, variable, correlation)
    else:
        stack = _stack(result)
        critical, name = _critical(stack), stack.told.activation.name
        found = _PREDICTIONS[variable](result, stack)
    whole = np.isfinite(found.measured) & (result.first_inexact_layer.min(axis=0) > result.depth)[..., None]
    deviation = np.where(whole, found.deviation, np.nan)
    about = result.seeds, critical, name, float(1 - whole.mean())
    return Comparison(variable, result.axes, found.measured, found.predicted, deviation, *about)


class _Stack(NamedTuple):
    """What theory is told of a network.

    Attributes:
        told: its arguments.
        scales: by name, at every point, shape ``(*axes,)``.
        q0: mean square of h^0 as measured, same shape.
        depth: L.
        batch: examples in a state, for batch norm.
    """

    told: TheoryArguments
    scales: dict[str, np.ndarray]
    q0: np.ndarray
    depth: int
    batch: int

    @property
    def sigmas(self) -> list[np.ndarray]:
        """Those of kernels and biases in the order of the formula. Dropout with one mask for all inputs, drawn with the
        network, adds its variance to the weights': sigma_w / sqrt(1 - rate) (Schoenholz et al. 2017, section 5, has a
        mask an input, which this is not)."""
        kernel, *others = (self.scales[name] for name in self.told.names)
        keep = 1 - self.scales["dropout"] if self.told.dropout else 1.0
        biases = 0.0 if self.told.bias_init == "zero" else 1.0
        return [kernel / np.sqrt(keep), *(s * biases if i % 2 == 0 else s for i, s in enumerate(others))]


class _Compared(NamedTuple):
    """Fields of `Comparison`, each of shape ``(*axes, depth + 1)``."""

    measured: np.ndarray
    predicted: np.ndarray
    deviation: np.ndarray


# --- gains and gradients --------------------------------------------------------------------------------------------


def _gains(result: Result, stack: _Stack) -> _Compared:
    probes = result.provenance.get("options", {}).get("probes", 1)
    if probes != 1:
        raise ValueError(f"compare needs one probe a draw, got {probes}")
    measured, draws = result.mean("log_gain").astype(float), result.log_gain.astype(float)
    if stack.told.plain:
        band = _band(stack)
        return _Compared(measured, band.mean, band.deviation)
    growth = _log_growth(stack)
    if stack.told.norm:  # the first layer divides by what the input happens to be; its gain is taken as measured
        growth = growth - growth[..., 1:2] + measured[..., 1:2]
        growth[..., 0] = measured[..., 0]
    spread = draws.std(axis=0, ddof=1) if result.seeds > 1 else np.full(measured.shape, np.nan)
    return _Compared(measured, growth, np.where(np.arange(stack.depth + 1) > bool(stack.told.norm), spread, 0))


def _gradients(result: Result, stack: _Stack) -> _Compared:
    """The gain from layer l to L is that between the two: backwards as forwards."""
    measured, draws = result.mean("log_gradient").astype(float), result.log_gradient.astype(float)
    last, spread = draws[..., -1:].mean(axis=0), draws[..., -1:].std(axis=0, ddof=1) if result.seeds > 1 else 0.0
    if not stack.told.plain:
        growth = _log_growth(stack)
        several = result.seeds > 1
        deviation = (draws - draws[..., -1:]).std(axis=0, ddof=1) if several else np.full(measured.shape, np.nan)
        begins = np.arange(stack.depth + 1) >= bool(stack.told.norm)
        return _Compared(measured, last + growth[..., -1:] - growth, np.where(begins, deviation, np.nan))
    band, widths = _band(stack), np.array(stack.told.widths)
    # Forwards a gain from n to n' units has a factor n' / n in its mean square that it has not backwards.
    sizes = np.log(widths / widths[-1]) / 2
    variance = np.maximum(band.deviation[..., -1:] ** 2 - band.deviation**2, 0)
    return _Compared(measured, last + band.mean[..., -1:] - band.mean + sizes, np.sqrt(spread**2 + variance))


def _band(stack: _Stack) -> theory.Band:
    told, (sigma_w, sigma_b) = stack.told, stack.sigmas
    return theory.band(told.activation, told.widths, sigma_w, sigma_b, kernel_init=told.kernel_init, q0=stack.q0)


def _log_growth(stack: _Stack) -> np.ndarray:
    """ln of the mean gain from layer 0 to l at infinite width, shape ``(*axes, depth + 1)``."""
    told, layers = stack.told, np.arange(stack.depth + 1)
    if told.norm == "batch":
        rate = normalization.batch_norm_rate(told.activation, stack.batch)
        return np.broadcast_to(layers * np.log(rate) / 2, (*stack.q0.shape, len(layers))).copy()
    if told.norm:
        return _at_every_point(stack, lambda *sigmas: layers * np.log(_norm_point(told, *sigmas).chi) / 2)
    if told.residual:
        return np.asarray(_residual(stack).log_chi) / 2
    sizes = np.log(np.array(told.widths) / told.widths[0]) / 2
    sigma_w, sigma_b = stack.sigmas
    return np.asarray(theory.propagate(told.activation, sigma_w, sigma_b, stack.depth, stack.q0).log_chi) / 2 + sizes


# --- states and correlations ----------------------------------------------------------------------------------------


def _states(result: Result, stack: _Stack) -> _Compared:
    squares = np.exp(result.log_mean_square.astype(float))
    if "input" in result.dims["log_mean_square"]:  # of two inputs, the first
        squares = squares[..., 0, :]
    told, depth = stack.told, stack.depth
    if told.norm == "batch":
        raise ValueError("theory has the gains of a stack with batch norm, not its states; got log_mean_square")
    if told.norm:
        q = _at_every_point(stack, lambda *sigmas: np.full(depth + 1, _norm_point(told, *sigmas).q))
        q[..., 0] = stack.q0
    elif told.residual:
        q = _residual(stack).p
    else:
        sigma_w, sigma_b = stack.sigmas
        q = theory.propagate(told.activation, sigma_w, sigma_b, depth, stack.q0).q
    return _logs(squares, np.asarray(q))


def _correlations(result: Result, stack: _Stack) -> _Compared:
    told = stack.told
    if told.norm or told.residual:
        raise ValueError(f"theory has correlations of stacks without norm or skip, got {result.network!r}")
    first, second = np.moveaxis(np.exp(result.log_mean_square[..., 0].astype(float)).mean(axis=0), -1, 0)
    apart = np.exp(result.log_one_minus_c.astype(float))
    sigma_w, sigma_b = stack.sigmas
    start: dict[str, Any] = {"q0": (first, second), "one_minus_c0": apart[..., 0].mean(axis=0)}
    expected = theory.propagate(told.activation, sigma_w, sigma_b, stack.depth, **start).one_minus_c
    return _logs(apart, np.asarray(expected))


def _logs(draws: np.ndarray, expected: np.ndarray) -> _Compared:
    """ln of a mean over draws, with the deviation of one draw in its logarithm (its coefficient of variation)."""
    mean = draws.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = draws.std(axis=0, ddof=1) / mean if len(draws) > 1 else np.full(mean.shape, np.nan)
        return _Compared(np.log(mean), np.log(expected), spread)


def _transformer(result: Result, told: TransformerArguments, variable: str, correlation: float | None) -> _Compared:
    """Point by point, from the mean square of h^0 as measured and the correlation of its tokens as it was given."""
    if variable not in ("log_gain", "log_mean_square"):
        raise ValueError(f"compare takes log_gain or log_mean_square of a transformer, got {variable}")
    if correlation is None:
        raise ValueError("compare needs the correlation of two tokens of h^0 for a transformer, got None")
    others = [name for name in result.axes if name not in transformer.SCALES]
    if others:
        raise ValueError(f"compare takes sweeps over {', '.join(transformer.SCALES)}, got {', '.join(others)}")
    squares = np.exp(result.log_mean_square.astype(float))
    q0 = squares[..., 0].mean(axis=0)
    # Not those that follow another, which may be swept: theory has the same rule.
    own = {name: scale.default for name, scale in result.network.scales.items() if scale.follows is None}
    fixed = {**own, **result.fixed}
    scales = {name: np.asarray(value, float) for name, value in fixed.items() if name in transformer.SCALES}
    about = {**told._asdict(), "depth": result.depth}
    expected = np.empty((*q0.shape, result.depth + 1))
    for point in np.ndindex(q0.shape):
        here = {name: values[i] for (name, values), i in zip(result.axes.items(), point, strict=True)}
        q = float(q0[point])
        found = transformer.propagate(**about, **{**scales, **here}, q0=q, p0=q * correlation)
        expected[point] = found.log_gain / 2 if variable == "log_gain" else found.q
    if variable == "log_mean_square":
        return _logs(squares, expected)
    draws = result.log_gain.astype(float)
    spread = draws.std(axis=0, ddof=1) if result.seeds > 1 else np.full(expected.shape, np.nan)
    return _Compared(
        result.mean("log_gain").astype(float), expected, np.where(np.arange(result.depth + 1) > 0, spread, 0)
    )


def _residual(stack: _Stack) -> residual.ResidualPropagation:
    """Of ``skip h + branch (V phi(W h + b) + a)``; without the inner layer W is the identity."""
    inner = stack.sigmas if stack.told.residual == "plain" else [1.0, 0.0, *stack.sigmas]
    scales: dict[str, Any] = dict(zip(("sigma_w", "sigma_b", "sigma_v", "sigma_a"), inner, strict=True))
    factors = {name: stack.scales[name] for name in ("branch", "skip")}
    for name, values in factors.items():
        if np.ptp(values):
            raise ValueError(f"compare takes one {name} for all points, got several")
    numbers = {name: float(values.flat[0]) for name, values in factors.items()}
    return residual.propagate(stack.told.activation, stack.depth, **scales, **numbers, p0=stack.q0)


def _norm_point(told: TheoryArguments, sigma_w: float, sigma_b: float) -> normalization.NormPoint:
    places = {
        ("layer", "activations"): normalization.layer_norm_on_activations,
        ("rms", "activations"): normalization.rms_norm_on_activations,
    }
    return places.get((str(told.norm), told.norm_on), normalization.norm_on_preactivations)(
        told.activation, sigma_w, sigma_b
    )


def _at_every_point(stack: _Stack, f: Callable[..., np.ndarray]) -> np.ndarray:
    """f of the sigmas of each point, shape ``(*axes, depth + 1)``."""
    sigmas = np.broadcast_arrays(*stack.sigmas)
    points = [f(*(float(sigma[point]) for sigma in sigmas)) for point in np.ndindex(stack.q0.shape)]
    return np.stack(points).reshape(*stack.q0.shape, -1)


_PREDICTIONS: dict[str, Callable[[Result, _Stack], _Compared]] = {
    "log_gain": _gains,
    "log_gradient": _gradients,
    "log_mean_square": _states,
    "log_one_minus_c": _correlations,
}


# --- the edge -------------------------------------------------------------------------------------------------------


def _stack(result: Result) -> _Stack:
    """What theory is told, if it covers the network and what was swept."""
    network = result.network
    told = network.theory_arguments
    if told is None or told.norm in ("group", "batch_running") or (told.norm and told.residual):
        raise ValueError(f"compare needs a network that theory knows, got {network!r}")
    names = [*told.names, *(["branch", "skip"] if told.residual else []), *(["dropout"] if told.dropout else [])]
    others = [name for name in result.axes if name not in names]
    if others:
        raise ValueError(f"compare takes sweeps over {', '.join(names)}, got {', '.join(others)}")
    fixed = {name: value for name, value in network.completed(result.fixed).items() if name in names}
    for name, value in fixed.items():
        if np.ndim(value):
            raise ValueError(f"compare takes one {name} for all layers, got one a layer")
    grid = np.meshgrid(*(values.astype(float) for values in result.axes.values()), indexing="ij")
    at = {**fixed, **dict(zip(result.axes, grid, strict=True))}
    q0 = np.exp(result.log_mean_square[..., 0].astype(float)).mean(axis=0)
    q0 = q0[..., 0] if "input" in result.dims["log_mean_square"] else q0
    scales = {name: np.broadcast_to(np.asarray(at[name], float), q0.shape) for name in names}
    return _Stack(told, scales, np.asarray(q0), result.depth, network.input_shape[0])


def _critical(stack: _Stack) -> tuple[np.ndarray, np.ndarray]:
    """The edge of chaos over the range of bias scales, finely; of other stacks than plain ones there is none here."""
    if not stack.told.plain:
        return np.array([np.nan]), np.array([np.nan])
    sigma_b: np.ndarray = stack.sigmas[1]
    spread = sigma_b.size and np.ptp(sigma_b) > 0
    along = np.linspace(sigma_b.min(), sigma_b.max(), CURVE_POINTS if spread else 1)
    return np.asarray(theory.critical(stack.told.activation, along).sigma_w), along
