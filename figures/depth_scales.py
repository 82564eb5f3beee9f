"""How deep signals and gradients reach diverges at the edge of chaos, and both decays are measured as predicted."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from common import SMALL, pairs, render

import vgjax as vg
from vgjax import plots, theory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACTIVATION, SIGMA_B = "tanh", float(np.sqrt(0.05))
WIDTH, DEPTH, DRAWS = (64, 30, 2) if SMALL else (512, 128, 16)
PAIRS = 2 if SMALL else 4  # of states from each start
PAST = DEPTH // 10  # the transient of the gradient
NEAR = 1e-6  # 1 - correlation of two inputs where c* = 1
ASIDE = 0.3  # where c* < 1: 1 - correlation of two inputs, relative to 1 - c*, on either side
ERRORS = 4  # standard errors above 0 that a difference must be to be fitted

OF_SIGNALS, OF_GRADIENTS = plots.VANISHING, plots.EXPLODING


class Measured(NamedTuple):
    """A growth per layer (its logarithm) with its standard error over draws, shapes ``(points,)``."""

    rate: np.ndarray
    error: np.ndarray


class Scales(NamedTuple):
    """Theory on a fine grid of sigma_w^2, measurements on a coarse one; ``band``: ln chi as it is at this width."""

    critical: float
    fine: np.ndarray
    field: theory.MeanField
    band: np.ndarray
    coarse: np.ndarray
    gradient: Measured
    correlation: Measured


def compute() -> Scales:
    """Networks of width 512 and 128 layers, 16 draws, at 17 weight scales."""
    critical = float(theory.critical(ACTIVATION, SIGMA_B).sigma_w) ** 2
    below, above = critical - np.geomspace(0.06, 1.2, 8), critical + np.geomspace(0.12, 2.2, 9)
    coarse = np.concatenate([below[::-1], above])[:: 4 if SMALL else 1]
    away = np.geomspace(1e-4, 2.4, 120)
    fine = np.concatenate([critical - away[::-1][away[::-1] < 1.35], [critical], critical + away])
    network = vg.mlp(width=WIDTH, depth=DEPTH, activation=ACTIVATION, stem=False)
    sigma_w = np.sqrt(coarse)
    there = theory.mean_field(ACTIVATION, sigma_w, SIGMA_B)
    return Scales(
        critical,
        fine,
        theory.mean_field(ACTIVATION, np.sqrt(fine), SIGMA_B),
        slope_past_transient(theory.band(ACTIVATION, [WIDTH] * (DEPTH + 1), np.sqrt(fine), SIGMA_B).mean),
        coarse,
        gradient_rate(network, sigma_w),
        correlation_rate(network, sigma_w, there.q_star, 1 - there.c_star),
    )


def gradient_rate(network: vg.Network, sigma_w: np.ndarray) -> Measured:
    """ln chi as measured: the slope of ln |gain|^2 against depth, past the transient."""
    x = jax.random.normal(jax.random.key(2), network.input_shape)
    measure = vg.gains(stream=True)
    found = vg.sweep(network, x, measure=measure, key=jax.random.key(3), seeds=DRAWS, sigma_w=sigma_w, sigma_b=SIGMA_B)
    slopes = slope_past_transient(found.log_gain)
    return Measured(slopes.mean(axis=0), slopes.std(axis=0, ddof=1) / np.sqrt(DRAWS))


def slope_past_transient(log_gain: np.ndarray) -> np.ndarray:
    """Of ln |gain|^2 along the last axis, by least squares."""
    layers = np.arange(DEPTH + 1)[PAST:]
    slopes = np.polyfit(layers, 2 * log_gain[..., PAST:].reshape(-1, len(layers)).T, 1)[0]
    return slopes.reshape(log_gain.shape[:-1])


# --- the decay of correlations ----------------------------------------------------------------------------------------


def correlation_rate(network: vg.Network, sigma_w: np.ndarray, q_star: np.ndarray, one_minus_c: np.ndarray) -> Measured:
    """ln of the factor by which |c - c*| shrinks per layer, with the jackknife's error over draws.

    Where c* < 1, pairs start on both sides of it: half their difference decays as |c - c*| does, without its curvature.
    """
    aside = one_minus_c[:, None] / np.array([1 - ASIDE, 1 + ASIDE])
    starts = np.where(one_minus_c[:, None] > 0, aside, [NEAR, 0])
    points = zip(sigma_w, q_star, starts, strict=True)
    apart = np.stack([one_minus_correlation(network, *point) for point in points], axis=2)
    distance = (apart[:, 0] - apart[:, 1]) / 2
    above = above_noise(distance)
    rates = [fit(np.delete(distance, draw, axis=0).mean(axis=0), above) for draw in range(DRAWS)]
    return Measured(fit(distance.mean(axis=0), above), np.std(rates, axis=0) * np.sqrt(DRAWS - 1))


def one_minus_correlation(network: vg.Network, sigma_w: float, q: float, starts: np.ndarray) -> np.ndarray:
    """1 - c at every layer from each start, mean over pairs of states, shape ``(draws, starts, layers + 1)``."""
    x1, x2 = pairs(jax.random.key(4), WIDTH, [(q, start) for start in starts], PAIRS)
    options: dict[str, Any] = {"measure": vg.correlations(stream=True), "leading": "example", "seeds": DRAWS}
    found = vg.sweep(network, x1, x2, key=jax.random.key(5), sigma_w=sigma_w, sigma_b=SIGMA_B, **options)
    return np.exp(found.log_one_minus_c).reshape(DRAWS, len(starts), PAIRS, -1).mean(axis=2)


def above_noise(distance: np.ndarray) -> np.ndarray:
    """Layers before the first at which the mean over draws is lost in their spread, shape ``(points, layers + 1)``."""
    mean, error = distance.mean(axis=0), distance.std(axis=0, ddof=1) / np.sqrt(len(distance))
    return np.logical_and.accumulate(mean > ERRORS * error, axis=-1)


def fit(distance: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Slope of ln distance against layer over those above the noise, for each point."""
    layers = np.arange(distance.shape[-1])
    return np.array([np.polyfit(layers[a], np.log(d[a]), 1)[0] for d, a in zip(distance, above, strict=True)])


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(scales: Scales) -> "Figure":
    """Both depth scales on one logarithmic axis; that of exploding gradients without its sign."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6, 3.5), layout="constrained")
    ax = figure.subplots()
    ax.axvline(scales.critical, color=plots.CRITICAL, linewidth=0.7)
    ax.plot(scales.fine, theory_lengths(scales.field.xi_c), color=OF_SIGNALS)
    ax.plot(scales.fine, theory_lengths(scales.field.xi_grad), color=OF_GRADIENTS, linestyle=(0, (4, 2)))
    ax.plot(scales.fine, 1 / np.abs(scales.band), **AT_WIDTH, label="gradient, theory to order 1/n")
    for name, colour, marker in (("correlation", OF_SIGNALS, "o"), ("gradient", OF_GRADIENTS, "^")):
        length, error = lengths(getattr(scales, name))
        ax.errorbar(scales.coarse, length, error, marker=marker, color=colour, label=f"{name}, measured", **DOT)
    ax.set(
        yscale="log",
        xlim=(scales.fine[0] - 0.05, scales.fine[-1]),
        ylim=(0.9, 1000),
        xlabel=r"$\sigma_w^2$ (weight variance $\times$ fan-in)",
        ylabel="depth scale, layers",
        title=rf"{ACTIVATION}, $\sigma_b^2$ = {SIGMA_B**2:.2g}, {DRAWS} draws of width {WIDTH} ($\pm$ 1 s.e.)",
    )
    write(ax, scales)
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        handles[::-1], labels[::-1], loc="upper right", bbox_to_anchor=(1.0, 0.95), fontsize=6.5, handlelength=1.6
    )
    return figure


AT_WIDTH: dict[str, Any] = {"color": plots.EXPLODING, "linewidth": 0.9, "linestyle": (0, (1, 1.2))}
DOT: dict[str, Any] = {
    "linestyle": "",
    "markersize": 4.2,
    "markeredgecolor": "white",
    "markeredgewidth": 0.5,
    "elinewidth": 0.8,
    "zorder": 3,
}


def write(ax: "Axes", scales: Scales) -> None:
    """Names of lines and phases, where the lines leave room."""
    xi_c, xi_grad = theory_lengths(scales.field.xi_c), theory_lengths(scales.field.xi_grad)
    at, last = int(np.searchsorted(scales.fine, 3.1)), scales.fine[-1]
    of_gradients = r"$|\xi_\mathrm{grad}|$: gradients explode"
    ax.text(3.1, xi_c[at] * 1.2, r"$\xi_c$", color=OF_SIGNALS, ha="center", fontsize=8.5)
    ax.text(3.1, xi_grad[at] / 1.35, of_gradients, color=OF_GRADIENTS, ha="center", va="top", fontsize=7)
    ax.text(0.5, 5, "$\\xi_c = \\xi_\\mathrm{grad}$:\ngradients\nvanish", fontsize=7)
    ax.text(scales.critical + 0.05, 1, f"edge of chaos, $\\sigma_w^2$ = {scales.critical:.4g}", fontsize=7)
    ax.text(scales.critical - 0.1, 950, "ordered", color=plots.CRITICAL, ha="right", va="top")
    ax.text((scales.critical + last) / 2, 950, "chaotic", color=plots.CRITICAL, ha="center", va="top")


def theory_lengths(xi: np.ndarray) -> np.ndarray:
    """Without sign; a gap where it is infinite."""
    return np.where(np.isfinite(xi), np.abs(xi), np.nan)


def lengths(measured: Measured) -> tuple[np.ndarray, np.ndarray]:
    """1 / |rate| and its error bars downwards and upwards, shape ``(2, points)``; upwards to the axis' end at most."""
    rate = np.abs(measured.rate)
    low, high = 1 / (rate + measured.error), 1 / np.maximum(rate - measured.error, 1e-4)
    return 1 / rate, np.array([1 / rate - low, high - 1 / rate])


if __name__ == "__main__":
    render("depth_scales", compute, draw)
