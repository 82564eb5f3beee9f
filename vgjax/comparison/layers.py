"""Stacks of layers around phi: plain ones with their 1/n band; with dropout, skips or norms at infinite width."""

from collections.abc import Callable
from typing import Any

import numpy as np

from vgjax import theory
from vgjax.blocks.told import LayerArguments
from vgjax.comparison.points import NOWHERE, Compared, Family, Points, annealed, quenched
from vgjax.theory import normalization, residual

CURVE_POINTS = 201


class MeanFieldStack:
    """A sweep of a stack: what its layers are, and their scales at every point.

    Raises:
        ValueError: layers that theory does not know.
    """

    def __init__(self, points: Points):
        told = points.told
        assert isinstance(told, LayerArguments)
        if told.norm in ("group", "batch_running") or (told.norm and told.residual):
            raise ValueError(f"compare needs a network that theory knows, got {points.result.network!r}")
        self.points, self.told, self.q0, self.depth = points, told, points.q0, points.depth

    @property
    def sigmas(self) -> list[np.ndarray]:
        """Those of kernels and biases in the order of the formula. Dropout with one mask for all inputs, drawn with the
        network, adds its variance to the weights': sigma_w / sqrt(1 - rate) (Schoenholz et al. 2017, section 5, has a
        mask an input, which this is not)."""
        kernel, *others = map(self.points.grid, self.told.names)
        keep = 1 - self.points.grid("dropout") if self.told.dropout else 1.0
        biases = 0.0 if self.told.bias_init == "zero" else 1.0
        return [kernel / np.sqrt(keep), *(s * biases if i % 2 == 0 else s for i, s in enumerate(others))]

    @property
    def size_gain(self) -> np.ndarray:
        """ln of what a gain forwards has from sizes alone, which it has not backwards: sqrt(n_l / n_0)."""
        return np.log(np.array(self.told.widths) / self.told.widths[0]) / 2

    def band(self) -> theory.Band:
        """Mean and deviation of the log gain at these widths."""
        told, (sigma_w, sigma_b) = self.told, self.sigmas
        return theory.band(told.activation, told.widths, sigma_w, sigma_b, kernel_init=told.kernel_init, q0=self.q0)

    def propagation(self, **start: Any) -> theory.Propagation:
        """At infinite width, without norm and skip."""
        sigma_w, sigma_b = self.sigmas
        return theory.propagate(self.told.activation, sigma_w, sigma_b, self.depth, **start)

    def log_growth(self) -> np.ndarray:
        """ln of the mean gain from layer 0 to l at infinite width, shape ``(*axes, depth + 1)``."""
        told, layers = self.told, np.arange(self.depth + 1)
        if told.norm == "batch":
            rate = normalization.batch_norm_rate(told.activation, self.points.result.network.input_shape[0])
            return np.broadcast_to(layers * np.log(rate) / 2, (*self.q0.shape, len(layers))).copy()
        if told.norm:
            return self.at_every_point(lambda *sigmas: layers * np.log(_norm_point(told, *sigmas).chi) / 2)
        if told.residual:
            return np.asarray(self.residual().log_chi) / 2
        return np.asarray(self.propagation(q0=self.q0).log_chi) / 2 + self.size_gain

    def residual(self) -> residual.ResidualPropagation:
        """Of ``skip h + branch (V phi(W h + b) + a)``; without the inner layer W is the identity."""
        inner = self.sigmas if self.told.residual == "plain" else [1.0, 0.0, *self.sigmas]
        scales: dict[str, Any] = dict(zip(("sigma_w", "sigma_b", "sigma_v", "sigma_a"), inner, strict=True))
        factors = {name: self.points.grid(name) for name in ("branch", "skip")}
        for name, values in factors.items():
            if np.ptp(values):
                raise ValueError(f"compare takes one {name} for all points, got several")
        numbers = {name: float(values.flat[0]) for name, values in factors.items()}
        return residual.propagate(self.told.activation, self.depth, **scales, **numbers, p0=self.q0)

    def at_every_point(self, f: Callable[..., np.ndarray]) -> np.ndarray:
        """f of the sigmas of each point, shape ``(*axes, depth + 1)``."""
        sigmas = np.broadcast_arrays(*self.sigmas)
        found = [f(*(float(sigma[point]) for sigma in sigmas)) for point in np.ndindex(self.q0.shape)]
        return np.stack(found).reshape(*self.q0.shape, -1)

    def critical(self) -> tuple[np.ndarray, np.ndarray]:
        """The edge of chaos over the range of bias scales, finely; of other stacks than plain ones there is none."""
        if not self.told.plain:
            return NOWHERE
        sigma_b: np.ndarray = self.sigmas[1]
        spread = sigma_b.size and np.ptp(sigma_b) > 0
        along = np.linspace(sigma_b.min(), sigma_b.max(), CURVE_POINTS if spread else 1)
        return np.asarray(theory.critical(self.told.activation, along).sigma_w), along


def _predicted(points: Points) -> Compared:
    stack = MeanFieldStack(points)
    return _OF[points.variable](stack)._replace(critical=stack.critical())


def _gains(stack: MeanFieldStack) -> Compared:
    draws = stack.points.draws
    if stack.told.plain:
        band = stack.band()
        return quenched(draws, band.mean)._replace(deviation=band.deviation)
    growth = stack.log_growth()
    if stack.told.norm:  # the first layer divides by what the input happens to be; its gain is taken as measured
        measured = draws.mean(axis=0)
        growth = growth - growth[..., 1:2] + measured[..., 1:2]
        growth[..., 0] = measured[..., 0]
    return quenched(draws, growth, begins=1 + bool(stack.told.norm))


def _gradients(stack: MeanFieldStack) -> Compared:
    """The gain from layer l to L is that between the two: backwards as forwards."""
    draws = stack.points.draws
    measured, last = draws.mean(axis=0), draws[..., -1:].mean(axis=0)
    if not stack.told.plain:
        growth = stack.log_growth()
        deviation = quenched(draws - draws[..., -1:], growth, begins=0).deviation
        begins = np.arange(stack.depth + 1) >= bool(stack.told.norm)
        return Compared(measured, last + growth[..., -1:] - growth, np.where(begins, deviation, np.nan))
    band, sizes = stack.band(), stack.size_gain - stack.size_gain[-1]
    spread = draws[..., -1:].std(axis=0, ddof=1) if len(draws) > 1 else 0.0
    variance = np.maximum(band.deviation[..., -1:] ** 2 - band.deviation**2, 0)
    return Compared(measured, last + band.mean[..., -1:] - band.mean + sizes, np.sqrt(spread**2 + variance))


def _states(stack: MeanFieldStack) -> Compared:
    told = stack.told
    if told.norm == "batch":
        raise ValueError("theory has the gains of a stack with batch norm, not its states; got log_mean_square")
    if told.norm:
        q = stack.at_every_point(lambda *sigmas: np.full(stack.depth + 1, _norm_point(told, *sigmas).q))
        q[..., 0] = stack.q0
    elif told.residual:
        q = stack.residual().p
    else:
        q = stack.propagation(q0=stack.q0).q
    with np.errstate(divide="ignore"):
        return annealed(stack.points.draws, np.log(np.asarray(q)))


def _correlations(stack: MeanFieldStack) -> Compared:
    if stack.told.norm or stack.told.residual:
        network = stack.points.result.network
        raise ValueError(f"theory has correlations of stacks without norm or skip, got {network!r}")
    squares = np.exp(stack.points.result.log_mean_square[..., 0].astype(float)).mean(axis=0)
    apart = np.exp(stack.points.draws[..., 0]).mean(axis=0)
    expected = stack.propagation(q0=tuple(np.moveaxis(squares, -1, 0)), one_minus_c0=apart).one_minus_c
    with np.errstate(divide="ignore"):
        return annealed(stack.points.draws, np.log(np.asarray(expected)))


_OF: dict[str, Callable[[MeanFieldStack], Compared]] = {
    "log_gain": _gains,
    "log_gradient": _gradients,
    "log_mean_square": _states,
    "log_one_minus_c": _correlations,
}


def _norm_point(told: LayerArguments, sigma_w: float, sigma_b: float) -> normalization.NormPoint:
    places = {
        ("layer", "activations"): normalization.layer_norm_on_activations,
        ("rms", "activations"): normalization.rms_norm_on_activations,
    }
    return places.get((str(told.norm), told.norm_on), normalization.norm_on_preactivations)(
        told.activation, sigma_w, sigma_b
    )


def _names(told: LayerArguments) -> tuple[str, ...]:
    return (*told.names, *(["branch", "skip"] if told.residual else []), *(["dropout"] if told.dropout else []))


LAYERS = Family("a stack", tuple(_OF), _names, _predicted)
