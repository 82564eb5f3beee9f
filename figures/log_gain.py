"""The gradient gain of one ReLU draw is log-normal, and depth and widths enter only through beta = 5 sum 1/n."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np
from common import SMALL, render

import vgjax as vg
from vgjax import plots, theory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HE = 2**0.5
INPUTS = 16
DRAWS = 100 if SMALL else 2500
RATIOS = (0.125, 0.5, 1.5)  # depth / width
STACKS = ((8,) * 13, (16,) * 25) if SMALL else ((24,) * 37, (48,) * 73, (64,) * 8 + (16,) * 8 + (32,) * 9)
COLOURS = [plots.VANISHING, plots.CRITICAL, plots.EXPLODING]
MARKS = (("s", "-"), ("o", "--"), ("^", ":"))  # of the stacks

SIGMA_B, ORDERED, CHAOTIC = 0.3, 1.0, 2.5
TANH_WIDTH, TANH_DEPTH, TANH_DRAWS = (16, 10, 10) if SMALL else (64, 100, 400)


@dataclass(frozen=True)
class LogGains:
    """Measured ln(||J_{l<-0} u||^2 n_0 / n_l) of many draws of one ReLU network, at every depth l.

    Attributes:
        widths: sizes of the states.
        values: of the draws in which no layer is dead, shape ``(draws, depth + 1)``.
        exact: mean and variance at that width, shape ``(2, depth + 1)``.
    """

    widths: tuple[int, ...]
    values: np.ndarray
    exact: np.ndarray

    def beta(self, depth: int) -> float:
        """Of the limit law N(-beta/2, beta)."""
        return theory.log_normal_beta(self.widths[: depth + 1], "relu")


def compute() -> tuple[list[LogGains], vg.Result, list[theory.Band]]:
    """2500 draws of each of 3 ReLU networks; 400 draws of tanh networks at three sigma_w with their predicted bands."""
    gains = [log_gains(widths, jax.random.key(i)) for i, widths in enumerate(STACKS)]
    return gains, *tanh_spread()


def log_gains(widths: tuple[int, ...], key: jax.Array) -> LogGains:
    """Every draw has its own weights and its own direction u; the first l layers are a network of depth l."""
    network = vg.mlp(width=widths, activation="relu", inputs=INPUTS, bias_init="zero")
    x = vg.data.sphere(jax.random.key(1), 1, INPUTS)[0]
    log_gain = vg.sweep(network, x, key=key, seeds=DRAWS, sigma_w=HE).log_gain
    size = np.log(np.array(widths) / widths[0])
    values = 2 * log_gain.astype(float) - size
    band = theory.band("relu", widths, HE)
    exact = np.stack([2 * band.mean - size, 4 * band.deviation**2])
    return LogGains(widths, values[np.isfinite(values[:, -1])], exact)


def tanh_spread() -> tuple[vg.Result, list[theory.Band]]:
    """Ordered, critical and chaotic tanh networks, and what theory expects of one draw."""
    sigma_w = np.array([ORDERED, theory.critical("tanh", SIGMA_B).sigma_w, CHAOTIC])
    network = vg.mlp(width=TANH_WIDTH, depth=TANH_DEPTH, activation="tanh", inputs=INPUTS)
    x = vg.data.sphere(jax.random.key(1), 1, INPUTS)[0]
    sweep = vg.sweep(network, x, key=jax.random.key(2), seeds=TANH_DRAWS, sigma_w=sigma_w, sigma_b=SIGMA_B)
    return sweep, vg.compare(sweep).bands


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(data: tuple[list[LogGains], vg.Result, list[theory.Band]]) -> "Figure":
    """Histograms over the law; moments against beta; the spread of tanh networks against depth."""
    from matplotlib.figure import Figure

    relu, sweep, bands = data
    figure = Figure(figsize=(7.2, 2.75), layout="constrained")
    law, collapse, spread = figure.subplots(1, 3)
    draw_histograms(law, relu[:2])
    draw_moments(collapse, relu)
    draw_spread(spread, sweep, bands)
    return figure


def draw_histograms(ax: "Axes", gains: Sequence[LogGains]) -> None:
    """Densities over draws as markers, filled for the wider network, and the limit law of each depth / width."""
    x = np.linspace(-20, 8, 800)
    for ratio, colour, side in zip(RATIOS, COLOURS, (-0.7, 0.6, 0.6), strict=True):
        for found, marker, fill in zip(gains, "so", ("white", colour), strict=True):
            depth = round(ratio * found.widths[0])
            beta = found.beta(depth)
            edges = np.linspace(-3.4, 3.4, 22) * np.sqrt(beta) - beta / 2
            density, _ = np.histogram(found.values[:, depth], bins=edges)
            density = density / len(found.values) / np.diff(edges)
            ax.plot((edges[1:] + edges[:-1]) / 2, density, marker, color=colour, mfc=fill, markersize=3, mew=0.7)
        ax.plot(x, normal(x, beta), color=colour, zorder=0)
        at = -beta / 2 - side * np.sqrt(beta)
        text = f"$L/n$ = {ratio}\n" + rf"$\beta$ = {beta:.3g}"
        place = {"textcoords": "offset points", "ha": "right" if side > 0 else "left", "color": colour, "fontsize": 7}
        ax.annotate(text, (at, normal(at, beta)), xytext=(-6 * np.sign(side), 2), **place)
    for found, marker, fill in zip(gains, "so", ("white", "0.3"), strict=True):
        ax.plot([], [], marker, color="0.3", mfc=fill, markersize=3, label=f"$n$ = {found.widths[0]}")
    ax.plot([], [], color="0.3", label=r"$N(-\beta/2, \beta)$")
    ax.legend(loc="upper left", handlelength=1.2, borderaxespad=0.1)
    ax.set(xlabel=r"$\ln \|J u\|^2$", ylabel="density over draws", ylim=(0, None), xlim=(-14, 7))
    ax.set_title(f"ReLU, {DRAWS} draws each")


def normal(x: "float | np.ndarray", beta: float) -> np.ndarray:
    """Density of N(-beta/2, beta)."""
    return np.exp(-((x + beta / 2) ** 2) / 2 / beta) / np.sqrt(2 * np.pi * beta)


def draw_moments(ax: "Axes", gains: Sequence[LogGains]) -> None:
    """Variance and minus twice the mean against beta, with bars of two standard errors; the limit as a thick line, the
    exact moments of each network as thin ones."""
    ends = np.array([0.2, 13])
    ax.plot(ends, ends, color="0.75", linewidth=2.6, zorder=0, label="limit law")
    for found, (marker, style) in zip(gains, MARKS[: len(gains)], strict=True):
        layers = np.arange(1, len(found.widths))
        beta = np.array([found.beta(layer) for layer in layers])
        at = np.unique(np.searchsorted(beta, np.geomspace(0.3, 0.99 * beta[-1], 7)))
        count, mean, variance = len(found.values), found.values.mean(axis=0), found.values.var(axis=0)
        fourth = ((found.values - mean) ** 4).mean(axis=0)
        moments = [
            (
                plots.EXPLODING,
                plots.EXPLODING,
                variance,
                np.sqrt(np.maximum(fourth - variance**2, 0) / count),
                found.exact[1],
            ),
            (plots.VANISHING, "white", -2 * mean, 2 * np.sqrt(variance / count), -2 * found.exact[0]),
        ]
        for colour, fill, value, error, exact in moments:
            ax.plot(beta, exact[1:], color=colour, linestyle=style, linewidth=0.7)
            bars = {"fmt": marker, "markersize": 3.4, "elinewidth": 0.7, "mew": 0.7, "mfc": fill}
            ax.errorbar(beta[at], value[layers[at]], 2 * error[layers[at]], color=colour, **bars)
        name = "$n_l$ = " + ", ".join(f"{n}" for n in dict.fromkeys(found.widths))
        ax.plot([], [], marker, linestyle=style, linewidth=0.7, color="0.3", markersize=3.4, label=name)
    words = {"variance (filled)": 0.62, "$-2$ mean (open)": 0.42, "thin lines: exact": 0.28}
    for (word, y), colour in zip(words.items(), (plots.EXPLODING, plots.VANISHING, "0.3"), strict=True):
        ax.text(11, y, word, color=colour, fontsize=7, ha="right")
    ax.legend(loc="upper left", handlelength=1.8, borderaxespad=0.1, fontsize=7)
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, title="unequal widths too: one sum")
    ax.set(xlabel=r"$\beta = 5 \Sigma_{l<L} 1/n_l + 2/n_L - 2/n_0$", ylabel=r"moments of $\ln(\|J u\|^2 n_0/n_L)$")
    ticks = [0.2, 0.5, 1, 2, 5, 10]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()


def draw_spread(ax: "Axes", sweep: vg.Result, bands: list[theory.Band]) -> None:
    """Standard deviation over draws of ln ||J u|| against depth: dots over the predicted lines, around which two
    standard errors of so many draws are shaded."""
    layers = np.arange(sweep.depth + 1)
    at = layers[:: max(1, sweep.depth // 12)][1:]
    names = zip(COLOURS, ("ordered", "critical", "chaotic"), "os^", strict=True)
    for i, (colour, name, marker) in enumerate(names):
        predicted = bands[i].deviation
        error = predicted / np.sqrt(2 * (sweep.seeds - 1))
        ax.fill_between(layers, predicted - 2 * error, predicted + 2 * error, color=colour, alpha=0.2, linewidth=0)
        ax.plot(layers, predicted, color=colour, linewidth=1)
        ax.plot(at, sweep.log_gain[:, i].std(axis=0, ddof=1)[at], marker, color=colour, markersize=3)
        end = rf" {name}," + "\n" + rf" $\sigma_w$ = {sweep.axes['sigma_w'][i]:.3g}"
        ax.text(sweep.depth, predicted[-1], end, color=colour, va="center", fontsize=7)
    ax.set(xlabel="layer $l$", ylabel=r"s.d. over draws of $\ln \|J_l\, u\|$", xlim=(0, None), ylim=(0, None))
    ax.set_title(f"tanh, width {TANH_WIDTH}, {sweep.seeds} draws")


if __name__ == "__main__":
    render("log_gain", compute, draw)
