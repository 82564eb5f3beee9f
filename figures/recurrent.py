"""Over 200 steps the gradient of a plain recurrent network vanishes at the rate of mean field; gates keep it for as
long as their bias says."""

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

WIDTH, STEPS, SEEDS, INPUTS = (16, 30, 2, 8) if SMALL else (128, 200, 32, 32)
SMALL_WEIGHTS, DRIVE = 0.01, 0.1  # scale of all kernels; of the input kernels where the recurrent ones differ
BIASES: dict[str, tuple[float, ...]] = {"LSTM": (0.0, 1.0, 4.0), "GRU": (0.0, 4.0)}
PLAIN = {"RNN": (np.nan,)}  # it has no gate
KERNELS = {  # activation, recurrent kernel of plain networks; how they look
    ("linear", "orthogonal"): ("k", "s"),
    ("tanh", "orthogonal"): (plots.VANISHING, "s"),
    ("tanh", "gaussian"): (plots.EXPLODING, "o"),
    ("tanh", "identity"): ("#1b7837", "D"),
}

Curves = dict[tuple[str, float], np.ndarray]


@dataclass(frozen=True)
class Data:
    """ln ||dL/dh_t||, t = 0 ... T, shape ``(seeds, steps + 1)``.

    Attributes:
        small, ordinary: small weights, and weights of scale 1: by the cell and its forget bias (NaN without gates).
        laws: of plain networks, by the activation and the law of the recurrent kernel.
    """

    small: Curves
    ordinary: Curves
    laws: dict[tuple[str, str], np.ndarray]


def compute() -> Data:
    """Random inputs at every step, a random cotangent at the last; 32 draws."""
    size: dict[str, Any] = {"width": WIDTH, "depth": STEPS, "inputs": INPUTS}
    networks = {"RNN": vg.rnn(**size, bias_init="zero"), "LSTM": vg.lstm(**size), "GRU": vg.gru(**size)}

    def gated(cells: dict[str, tuple[float, ...]], sigma: float) -> Curves:
        return {(cell, bias): gradients(networks[cell], sigma, sigma, bias) for cell in cells for bias in cells[cell]}

    laws = {}
    for phi, kernel_init in KERNELS:
        network = vg.rnn(**size, activation=phi, kernel_init=kernel_init, bias_init="zero")
        laws[phi, kernel_init] = gradients(network, 1.0, DRIVE)
    return Data(gated(BIASES, SMALL_WEIGHTS), gated(PLAIN | BIASES, 1.0), laws)


def gradients(network: vg.Network, sigma_w: float, sigma_v: float, bias: float = np.nan) -> np.ndarray:
    """Of every draw, each with inputs and a cotangent of its own."""
    x = jax.random.normal(jax.random.key(1), (SEEDS, STEPS, INPUTS))
    scales: dict[str, float] = {"sigma_w": sigma_w, "sigma_v": sigma_v}
    scales |= {} if np.isnan(bias) else {"forget_bias": bias}
    options: dict[str, Any] = {"key": jax.random.key(0), "seeds": SEEDS, "leading": "seed"}
    return vg.sweep(network, x, measure=vg.gradients(), **options, **scales).log_gradient.astype(float)


# --- drawing --------------------------------------------------------------------------------------------------------

COLOURS = {0.0: "#e08214", 1.0: "#1b7837", 4.0: plots.VANISHING}
THEORY: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 0.9, "zorder": 3}


@plots.styled
def draw(data: Data) -> "Figure":
    """Small weights, where the gate's bias says all; ordinary weights; laws of the recurrent kernel."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    small, ordinary, laws = figure.subplots(1, 3)
    draw_cells(small, data.small, SMALL_WEIGHTS)
    draw_cells(ordinary, data.ordinary, 1.0)
    text = "theory of gates:\nvanishing weights;\nof the RNN:\nmean field"
    ordinary.text(0.98, 0.04, text, transform=ordinary.transAxes, color="0.3", ha="right", fontsize=7)
    draw_laws(laws, data)
    small.set_ylabel(r"$\|\partial L / \partial h_t\|$")
    ordinary.plot([], [], color="0.3", **THEORY, label="theory")
    handles, labels = ordinary.get_legend_handles_labels()
    order = [0, 6, 1, 4, 2, 5, 3]
    place: dict[str, Any] = {"loc": "outside lower left", "ncols": 4, "fontsize": 7, "columnspacing": 1.2}
    figure.legend([handles[i] for i in order], [labels[i] for i in order], **place)
    return figure


def draw_cells(ax: "Axes", curves: Curves, sigma: float) -> None:
    """Every cell and bias at one scale of the weights."""
    every = STEPS // 10
    for (cell, bias), values in curves.items():
        colour, text = (plots.EXPLODING, cell) if np.isnan(bias) else (COLOURS[bias], f"{cell}, forget bias {bias:g}")
        fill, first = (colour, 0) if cell == "LSTM" else ("white", every // 2)
        marker = "s" if cell == "RNN" else "o"
        curve(ax, values, colour, marker, text, mfc=fill, mew=0.8, markersize=3.2, markevery=(first, every))
        ax.plot(time(), expected(cell, bias, sigma), color=colour, **THEORY)
    finish(ax, rf"$\sigma_w$ = $\sigma_v$ = {sigma:g}")


def expected(cell: str, bias: float, sigma: float) -> np.ndarray:
    """Of a gate its factor at vanishing weights (an LSTM's cell begins with its output gate, 1/2); of an RNN half of
    ln chi, the input as noise that every step adds."""
    back = STEPS - time()
    if cell == "RNN":
        return mean_field(sigma, sigma)
    begin = np.log(0.5) * (back > 0) if cell == "LSTM" else 0
    return begin + back * np.log(theory.recurrent.forget_gate(bias).factor)


def mean_field(sigma_w: float, sigma_v: float) -> np.ndarray:
    """Of a tanh RNN."""
    return (time() - STEPS) / theory.mean_field("tanh", sigma_w, sigma_v).xi_grad / 2


def draw_laws(ax: "Axes", data: Data) -> None:
    """tanh cells under weak inputs; a linear one with an orthogonal kernel keeps the norm exactly."""
    for (phi, kernel_init), (colour, marker) in KERNELS.items():
        text = f"{phi}, {kernel_init.replace('gaussian', 'Gaussian')}"
        curve(ax, data.laws[phi, kernel_init], colour, marker, text, markersize=3.2, markevery=STEPS // 10)
    steps = STEPS - time()[:-1]
    exact = [theory.recurrent.orthogonal_log_growth(1.0, int(count)) for count in steps]
    ax.plot(time()[:-1], exact, color="0.3", **THEORY)
    ax.plot(time(), mean_field(1.0, DRIVE), color="0.3", **THEORY)
    low, high = ax.get_ylim()
    ax.set_ylim(low - 0.55 * (high - low), high)  # room for the legend
    finish(ax, rf"RNN, $\sigma_w$ = 1, $\sigma_v$ = {DRIVE:g}")
    ax.legend(loc="lower right", fontsize=7, title="activation, recurrent kernel", alignment="left")


def curve(ax: "Axes", values: np.ndarray, colour: str, marker: str, text: str, **style: Any) -> None:
    """Mean over draws as a line with dots, one standard deviation of a draw as a band."""
    mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1)
    ax.fill_between(time(), mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
    ax.plot(time(), mean, marker=marker, color=colour, linewidth=0.8, label=text, **style)


def time() -> np.ndarray:
    """t = 0 ... T."""
    return np.arange(STEPS + 1)


def finish(ax: "Axes", title: str) -> None:
    """Time below, powers of ten beside."""
    ax.set(xlabel="time step $t$", xlim=(0, STEPS), title=title)
    ax.set_yticks(plots.powers_of_ten(*ax.get_ylim()))
    ax.yaxis.set_major_formatter(plots.power_of_ten)


if __name__ == "__main__":
    render("recurrent", compute, draw)
