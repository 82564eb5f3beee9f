"""The gradient gain of one ReLU draw is log-normal, and its depth and widths enter only through beta = 5 sum 1/n."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np
from common import SMALL, render
from jax import Array

import vgjax as vg
from vgjax import plots, theory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HE = 2**0.5
INPUTS = 16
DRAWS = 100 if SMALL else 2000
RATIOS = [(24, 3), (48, 6), (24, 12), (48, 24), (24, 36), (48, 72)]  # width, depth: three ratios, two widths each
EQUAL = [[width] * (depth + 1) for width, depth in RATIOS]
UNEQUAL = [[64] * 6 + [16] * 6, [16] * 12 + [64] * 12, [64] * 6 + [16] * 16 + [32] * 8]
COLOURS = [plots.VANISHING, plots.CRITICAL, plots.EXPLODING]

SIGMA_B, ORDERED, CHAOTIC = 0.3, 1.0, 2.5
TANH_WIDTH, TANH_DEPTH, TANH_DRAWS = (16, 10, 10) if SMALL else (64, 100, 400)


@dataclass(frozen=True)
class LogGains:
    """Measured ln(||J u||^2 n_0 / n_L) of many draws of one ReLU network.

    Attributes:
        widths: sizes of the states.
        values: shape ``(draws,)``.
    """

    widths: tuple[int, ...]
    values: np.ndarray

    @property
    def beta(self) -> float:
        """Of the limit law N(-beta/2, beta)."""
        return theory.log_normal_beta(self.widths, "relu")


def compute() -> tuple[list[LogGains], vg.Sweep, theory.Band]:
    """2000 draws of each of 9 ReLU networks; 400 draws of tanh networks at three sigma_w with their predicted bands."""
    stacks = [*EQUAL[:2], UNEQUAL[0]] if SMALL else [*EQUAL, *UNEQUAL]
    return [log_gains(tuple(widths), DRAWS) for widths in stacks], *tanh_spread()


def log_gains(widths: tuple[int, ...], draws: int) -> LogGains:
    """Every draw has its own weights and its own direction u."""
    network = vg.mlp(widths=widths, activation="relu", inputs=INPUTS, bias_law="zero")
    x = vg.data.sphere(jax.random.key(1), 1, INPUTS)[0]

    def one(key: Array) -> Array:
        weights, direction = jax.random.split(key)
        push = vg.push_forward(network, vg.init(weights, network), vg.Scales(sigma_w=HE), x, key=direction)
        return push.log_gain[-1]

    keys = jax.random.split(jax.random.key(0), draws)
    gains = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=20))(keys)
    return LogGains(widths, 2 * np.asarray(gains, float) + np.log(widths[0] / widths[-1]))


def tanh_spread() -> tuple[vg.Sweep, theory.Band]:
    """Ordered, critical and chaotic tanh networks, and what theory expects of one draw."""
    sigma_w = np.array([ORDERED, theory.critical_sigma_w("tanh", SIGMA_B).sigma_w, CHAOTIC])
    network = vg.mlp(width=TANH_WIDTH, depth=TANH_DEPTH, activation="tanh", inputs=INPUTS)
    x = vg.data.sphere(jax.random.key(1), 1, INPUTS)[0]
    sweep = vg.sweep(network, x, key=jax.random.key(2), seeds=TANH_DRAWS, sigma_w=sigma_w, sigma_b=SIGMA_B)
    q0 = np.exp(sweep.log_mean_square[..., 0].astype(float)).mean(axis=0)
    return sweep, theory.band("tanh", [TANH_WIDTH] * (TANH_DEPTH + 1), sigma_w, SIGMA_B, q0=q0)


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(data: tuple[list[LogGains], vg.Sweep, theory.Band]) -> "Figure":
    """Histograms over the law; moments against beta; the spread of tanh networks against depth."""
    from matplotlib.figure import Figure

    relu, sweep, band = data
    figure = Figure(figsize=(7.2, 2.75), layout="constrained")
    law, collapse, spread = figure.subplots(1, 3)
    draw_histograms(law, [found for found in relu if len(set(found.widths)) == 1])
    draw_moments(collapse, relu)
    draw_spread(spread, sweep, band)
    return figure


def draw_histograms(ax: "Axes", gains: Sequence[LogGains]) -> None:
    """Densities over draws as markers, filled for the wider network of each depth / width, and the law as a line."""
    for i, found in enumerate(gains):
        colour, beta, wide = COLOURS[i // 2], found.beta, i % 2
        reach = 3.4 * np.sqrt(beta)
        density, edges = np.histogram(found.values, bins=np.linspace(-reach, reach, 22) - beta / 2, density=True)
        fill = colour if wide else "white"
        ax.plot((edges[1:] + edges[:-1]) / 2, density, "so"[wide], color=colour, mfc=fill, markersize=3, mew=0.7)
        if not wide:
            x = np.linspace(-20, 8, 800)
            law = np.exp(-((x + beta / 2) ** 2) / 2 / beta) / np.sqrt(2 * np.pi * beta)
            ax.plot(x, law, color=colour, zorder=0)
            at = -beta / 2 - 1.1 * np.sqrt(beta), np.exp(-0.6) / np.sqrt(2 * np.pi * beta)
            text = rf"$L/n$ = {(len(found.widths) - 1) / found.widths[0]:.3g}" + "\n" + rf"$\beta$ = {beta:.3g}"
            ax.annotate(text, at, xytext=(-5, 2), textcoords="offset points", ha="right", color=colour, fontsize=7)
    for i, found in enumerate(gains[:2]):
        ax.plot([], [], "so"[i], color="0.3", mfc=["white", "0.3"][i], markersize=3, label=f"$n$ = {found.widths[0]}")
    ax.plot([], [], color="0.3", label=r"$N(-\beta/2, \beta)$")
    ax.legend(loc="upper left", handlelength=1.2)
    ax.set(xlabel=r"$\ln \|J u\|^2$", ylabel="density over draws", ylim=(0, None), xlim=(-14, 5), title="ReLU, one law")


def draw_moments(ax: "Axes", gains: Sequence[LogGains]) -> None:
    """Variance and minus twice the mean against beta, with bars of two standard errors, over the identity."""
    for found in gains:
        several = len(set(found.widths)) > 1
        count, mean, variance = len(found.values), found.values.mean(), found.values.var(ddof=1)
        fourth = ((found.values - mean) ** 4).mean()
        bars = 2 * np.sqrt((fourth - variance**2) / count), 4 * np.sqrt(variance / count)
        for value, bar, marker, colour in zip(
            (variance, -2 * mean), bars, "o^", (plots.EXPLODING, plots.VANISHING), strict=True
        ):
            fill = colour if several else "white"
            ax.errorbar(
                found.beta, value, bar, fmt=marker, color=colour, mfc=fill, markersize=4, elinewidth=0.7, mew=0.8
            )
    ends = np.array([0.4, 12])
    ax.plot(ends, ends, color="k", linewidth=0.9, zorder=0)
    ax.plot([], [], "o", color=plots.EXPLODING, markersize=4, label="variance")
    ax.plot([], [], "^", color=plots.VANISHING, markersize=4, label="$-2$ mean")
    ax.plot([], [], "o", color="0.4", mfc="white", markersize=4, label="equal widths")
    ax.plot([], [], "o", color="0.4", markersize=4, label="unequal widths")
    ax.legend(loc="upper left", handletextpad=0.3, borderaxespad=0.2)
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, title="moments: widths enter through one sum")
    ax.set(xlabel=r"$\beta$ = 5 $\Sigma_l\, 1/n_l$ (and its ends)", ylabel=r"moment of $\ln \|J u\|^2$ over draws")
    ticks = [0.5, 1, 2, 5, 10]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()


def draw_spread(ax: "Axes", sweep: vg.Sweep, band: theory.Band) -> None:
    """Standard deviation over draws of ln ||J u|| against depth: dots over the predicted lines, around which two
    standard errors of so many draws are shaded."""
    layers = np.arange(sweep.depth + 1)
    at = layers[:: max(1, sweep.depth // 12)][1:]
    names = zip(COLOURS, ("ordered", "critical", "chaotic"), "os^", strict=True)
    for i, (colour, name, marker) in enumerate(names):
        predicted = band.deviation[i]
        error = predicted / np.sqrt(2 * (sweep.seeds - 1))
        ax.fill_between(layers, predicted - 2 * error, predicted + 2 * error, color=colour, alpha=0.2, linewidth=0)
        ax.plot(layers, predicted, color=colour, linewidth=1)
        ax.plot(at, sweep.log_gain[:, i].std(axis=0, ddof=1)[at], marker, color=colour, markersize=3)
        end = rf" {name}," + "\n" + rf" $\sigma_w$ = {sweep.axes['sigma_w'][i]:.3g}"
        ax.text(sweep.depth, predicted[-1], end, color=colour, va="center", fontsize=7)
    ax.set(xlabel="layer $l$", ylabel=r"s.d. over draws of $\ln \|J_l\, u\|$", xlim=(0, None), ylim=(0, None))
    ax.set_title(f"tanh, width {sweep.state_size}, {sweep.seeds} draws")


if __name__ == "__main__":
    render("log_gain", compute, draw)
