"""Batch normalization makes gradients explode at every initialization: the rate per layer against the batch size."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from common import SMALL, render

import vgjax as vg
from vgjax import plots, theory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DEPTH, SEEDS = (32, 8, 2) if SMALL else (512, 24, 8)
START = 4  # the first layers, before batches look as they do deep down, are left out of the rate
BATCHES = (5, 16) if SMALL else (4, 6, 8, 16, 64, 256)
SHOWN = BATCHES[-2]  # of the right panel
CURVE = [*range(4, 17), 20, 24, 32, 48, 64, 96, 128, 192, 256, 384]
STYLES = {
    "linear": ("linear", plots.VANISHING, "o"),
    "tanh": ("tanh", "#1b7837", "s"),
    "relu": ("ReLU", plots.EXPLODING, "D"),
}


@dataclass(frozen=True)
class Rates:
    """Growth per layer of the mean squared gradient of one activation.

    Attributes:
        curve: at infinite width, for every batch size of ``CURVE``.
        limit: for the largest batches.
        measured, error: mean over layers and draws, and its standard error; one for each of ``BATCHES``.
        log_gain: at the batch size ``SHOWN``, shape ``(seeds, depth + 1)``.
    """

    curve: np.ndarray
    limit: float
    measured: np.ndarray
    error: np.ndarray
    log_gain: np.ndarray


def compute() -> dict[str, Rates]:
    """Three activations, six batch sizes, 8 draws of 24 layers; all share the same draws."""
    return {phi: rates(phi) for phi in STYLES}


def rates(phi: str) -> Rates:
    """Theory and measurement of one activation."""
    gains = {batch: log_gains(phi, batch) for batch in BATCHES}
    factors = np.array([np.exp(2 * np.diff(gain)[:, START:]).mean(axis=1) for gain in gains.values()])
    error = factors.std(axis=1, ddof=1) / np.sqrt(SEEDS)
    rate = theory.normalization.batch_norm_rate
    return Rates(np.array([rate(phi, b) for b in CURVE]), rate(phi, np.inf), factors.mean(axis=1), error, gains[SHOWN])


def log_gains(phi: str, batch: int) -> np.ndarray:
    """ln of the factor on the norm of a random direction, over all examples of the batch, for every draw."""
    x = jax.random.normal(jax.random.key(1), (SEEDS, batch, WIDTH))
    found = vg.sweep(deep(phi, batch), x, key=jax.random.key(0), seeds=SEEDS, leading="seed")
    return found.log_gain.astype(float)


def deep(phi: str, batch: int) -> vg.Network:
    """h <- W phi(BN(h)); the scale of W makes no difference."""
    norm = vg.norm("batch", epsilon=0.0, batch=batch)
    return vg.mlp(width=WIDTH, depth=DEPTH, activation=phi, inputs=WIDTH, norm=norm, bias_init="zero")


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(data: dict[str, Rates]) -> "Figure":
    """The rate against the batch size, and one explosion against layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    draw_rates(left, data)
    draw_explosion(right, data)
    return figure


def draw_rates(ax: "Axes", data: dict[str, Rates]) -> None:
    """Theory as lines with their limits, measured rates as dots with bars of one standard error."""
    for phi, found in data.items():
        name, colour, marker = STYLES[phi]
        ax.plot(CURVE, found.curve, color=colour)
        ax.plot([40, CURVE[-1]], [found.limit] * 2, color=colour, linestyle=(0, (1, 2)), linewidth=0.9)
        style: dict[str, Any] = {
            "fmt": marker,
            "color": colour,
            "markersize": 4,
            "mec": "white",
            "mew": 0.5,
            "elinewidth": 0.8,
        }
        ax.errorbar(BATCHES, found.measured, found.error, **style)
        ax.text(CURVE[-1] * 1.1, found.limit, name, color=colour, va="center")
    ax.axhline(1, color="0.7", linewidth=0.6, zorder=0)
    ax.plot([], [], color="0.4", label="theory, infinite width")
    ax.plot([], [], color="0.4", linestyle=(0, (1, 2)), linewidth=0.9, label=r"its limit $B \to \infty$")
    ax.plot([], [], "o", color="0.4", markersize=3.5, label=f"measured, width {WIDTH}")
    ax.legend(loc="upper right")
    ax.set(xscale="log", xlim=(3.6, CURVE[-1]), ylim=(0.9, 3.4), xlabel="examples in the batch, $B$")
    ax.set_ylabel("growth per layer of\nthe mean squared gradient")
    ax.set_xticks([4, 8, 16, 32, 64, 128, 256], minor=False)
    ax.set_xticks([], minor=True)
    ax.xaxis.set_major_formatter("{x:g}")


def draw_explosion(ax: "Axes", data: dict[str, Rates]) -> None:
    """Mean over draws and their range; the slope of theory from behind the transient."""
    layers = np.arange(DEPTH + 1)
    for phi, found in data.items():
        name, colour, marker = STYLES[phi]
        mean = found.log_gain.mean(axis=0)
        low, high = found.log_gain.min(axis=0), found.log_gain.max(axis=0)
        ax.fill_between(layers, low, high, color=colour, alpha=0.25, linewidth=0)
        ax.plot(layers[::2], mean[::2], marker, color=colour, markersize=3.5, mec="white", mew=0.5)
        slope = np.log(theory.normalization.batch_norm_rate(phi, SHOWN)) / 2
        ax.plot(layers[START:], mean[START] + slope * (layers[START:] - START), "k", linewidth=0.8, zorder=0)
        ax.text(DEPTH + 0.6, mean[-1], name, color=colour, va="center")
    ax.plot([], [], "k", linewidth=0.8, label=f"slope of theory, from layer {START}")
    ax.plot([], [], "o", color="0.4", markersize=3.5, label=f"mean and range of {SEEDS} draws")
    ax.legend(loc="upper left")
    ax.set(xlim=(0, DEPTH + 0.4), xlabel="layers crossed, $l$", ylabel="factor on the gradient norm")
    ax.set_title(f"$B$ = {SHOWN}, width {WIDTH}")
    ax.set_yticks(plots.powers_of_ten(*ax.get_ylim()))
    ax.yaxis.set_major_formatter(plots.power_of_ten)


if __name__ == "__main__":
    render("batchnorm_rate", compute, draw)
