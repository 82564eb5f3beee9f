"""Back over 10,000 steps a gradient falls like a power of time where factors on the state are drawn near 1 (LRU, S4D,
Mamba), exponentially where gates or weights set them; the memory horizon is where its square has fallen to 1/e."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from common import SMALL, render

import vgjax as vg
from vgjax import networks, plots, theory
from vgjax.theory import linear_recurrences as linear

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEPS, SEEDS, SHRINK = (40, 2, 16) if SMALL else (10_000, 16, 1)
RADII, LSTM_BIAS, GRU_BIAS = (0.9, 0.999), 4.0, 1.0
SMALL_WEIGHTS = 1e-4  # of an LSTM and a GRU: what they add to a factor then stays small over all steps

LogGain = Callable[[float], float]


@dataclass(frozen=True)
class Cell:
    """A recurrence, and what theory says of it.

    Attributes:
        network: over all steps.
        scales: that are not at their defaults.
        theory: steps -> ln of the mean squared gradient.
        colour, marker: how it looks.
    """

    network: vg.Network
    scales: dict[str, float]
    theory: LogGain
    colour: str
    marker: str


S4D = "#762a83", "o"


@functools.cache
def cells() -> dict[str, Cell]:
    """By name. Few units keep a gradient for very long, so that many have to be drawn."""
    size: dict[str, Any] = {"depth": STEPS, "inputs": 32 // SHRINK}
    small = {"sigma_w": SMALL_WEIGHTS, "sigma_v": SMALL_WEIGHTS}
    field = theory.mean_field("tanh", 1.0, 1.0)
    kept = {bias: 2 * math.log(theory.recurrent.forget_gate(bias).factor) for bias in (LSTM_BIAS, GRU_BIAS)}
    gate = linear.min_gru_rates(1.0)
    return {
        "S4D": Cell(networks.diagonal_rnn(width=512 // SHRINK, law="s4d", **size), {}, linear.s4d_log_gain, *S4D),
        "Mamba": Cell(
            networks.mamba(width=128 // SHRINK, states=16, depth=STEPS),
            {"sigma_dt": 1.0},
            functools.partial(linear.mamba_log_gain, states=16, sigma_dt=1.0),
            plots.VANISHING,
            "s",
        ),
        "LRU": Cell(
            networks.diagonal_rnn(width=1024 // SHRINK, radii=RADII, **size),
            {},
            functools.partial(linear.ring_log_gain, radii=RADII),
            "#1b7837",
            "D",
        ),
        f"LSTM, bias {LSTM_BIAS:g}": Cell(
            vg.lstm(width=64 // SHRINK, **size),
            small | {"forget_bias": LSTM_BIAS},
            lambda steps: steps * kept[LSTM_BIAS],
            "#e08214",
            "^",
        ),
        f"GRU, bias {GRU_BIAS:g}": Cell(
            vg.gru(width=64 // SHRINK, **size),
            small | {"forget_bias": GRU_BIAS},
            lambda steps: steps * kept[GRU_BIAS],
            "#8c510a",
            "v",
        ),
        "tanh RNN": Cell(
            vg.rnn(width=128 // SHRINK, bias_init="zero", **size),
            {"sigma_w": 1.0, "sigma_v": 1.0},
            lambda steps: -steps / float(field.xi_grad),
            plots.EXPLODING,
            "P",
        ),
        "minGRU": Cell(
            networks.min_gru(width=256 // SHRINK, depth=STEPS, inputs=256 // SHRINK),
            {"sigma_v": 1.0},
            lambda steps: steps * gate.annealed,
            "0.35",
            "X",
        ),
    }


def compute() -> dict[str, np.ndarray]:
    """ln ||J^T v||^2 over t steps back, t = 0 ... T, of every draw and its white inputs; shape ``(seeds, steps + 1)``.

    v is the same on all units, so that all count alike; of an LSTM it is on the cell alone.
    """

    def back(parameters: vg.networks.Parameters, scales: vg.Scales, x: jax.Array) -> dict[str, jax.Array]:
        v = jnp.ones(parameters.network.stem.arguments[0])
        v = v.at[0].set(0) if parameters.network.name == "lstm" else v
        return {"log_square": 2 * vg.pull_back(parameters, scales, x, v / jnp.linalg.norm(v)).log_gain[::-1]}

    pulls = vg.measurement(back, {"log_square": ("step",)})
    found = {}
    for name, cell in cells().items():
        x = jax.random.normal(jax.random.key(1), (SEEDS, *cell.network.input_shape))
        options: dict[str, Any] = {"key": jax.random.key(0), "seeds": SEEDS, "leading": "seed"}
        found[name] = vg.sweep(cell.network, x, measure=pulls, **options, **cell.scales).log_square.astype(float)
    return found


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(data: dict[str, np.ndarray]) -> "Figure":
    """The gradient itself, down to where most are gone; how much of its square is lost, in nats, with the horizon."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.5), layout="constrained")
    gradient, lost = figure.subplots(1, 2)
    at = np.unique(np.geomspace(1, STEPS, 17).astype(int))
    for name, cell in cells().items():
        horizon = linear.memory_horizon(cell.theory)
        text = f"{name}: {horizon:.3g} step{'s' if horizon != 1 else ''}"
        steps = np.geomspace(1, STEPS, 120)
        expected = np.array([cell.theory(t) for t in steps])
        measured = annealed(data[name])
        spread = data[name].std(axis=0, ddof=1)
        style: dict[str, Any] = {"color": cell.colour, "marker": cell.marker, "ls": "", "mec": "white", "mew": 0.4}
        gradient.plot(steps, np.exp(np.maximum(expected / 2, -60)), color=cell.colour, linewidth=0.9)
        gradient.plot(at, np.exp(np.maximum(measured[at] / 2, -60)), markersize=4.2, label=text, **style)
        lost.plot(steps, -expected, color=cell.colour, linewidth=0.9)
        lost.plot(at, -measured[at], markersize=4.2, **style)
        low, high = -(measured + spread)[at], -(measured - spread)[at]
        lost.fill_between(at, np.maximum(low, 1e-9), high, color=cell.colour, alpha=0.2, linewidth=0)
    finish(gradient, lost)
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": 4, "fontsize": 7, "columnspacing": 1.4}
    figure.legend(*gradient.get_legend_handles_labels(), **place, title="memory horizon, by theory")
    return figure


def annealed(log_squares: np.ndarray) -> np.ndarray:
    """ln of the mean over draws of squares."""
    return np.logaddexp.reduce(log_squares, axis=0) - math.log(len(log_squares))


def finish(gradient: "Axes", lost: "Axes") -> None:
    """Logarithms on all axes; the horizon as a line."""
    for ax in (gradient, lost):
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set(xlim=(1, STEPS), xlabel="steps back in time, $t$")
    gradient.set(ylim=(1e-6, 1.5), title=r"root mean square of $\|\partial L / \partial h_{T-t}\|$")
    lost.set(ylim=(1e-2, 3e4), title=r"$-\ln$ of the mean square: nats lost")
    lost.axhline(1, color="k", linewidth=0.7, linestyle=(0, (4, 2)))
    typical = -linear.min_gru_rates(1.0).quenched
    lost.plot([1, STEPS], [typical, STEPS * typical], color="0.35", linewidth=0.8, linestyle=(0, (1, 1.5)))
    lost.text(0.98, 1, "horizon", transform=lost.get_yaxis_transform(), ha="right", va="bottom", fontsize=7)


if __name__ == "__main__":
    render("memory_horizon", compute, draw)
