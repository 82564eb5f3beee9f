"""The same map for twelve activations: the edge between vanishing and exploding is the activation's own.

Black: measured; dashed: the edge of chaos of infinite width, where there is one that signals reach.
"""

import functools
from typing import TYPE_CHECKING

import jax
import numpy as np
from common import SMALL, render

import vgjax as vg
from vgjax import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACTIVATIONS = (
    "tanh",
    "erf",
    "hard_tanh",
    "sin",
    "sigmoid",
    "softplus",
    "relu",
    "leaky_relu(0.3)",
    "selu",
    "gelu",
    "silu",
    "mish",
)
REACH = float(np.log(2))


def compute() -> dict[str, vg.Result]:
    """32 x 32 networks of 100 layers and width 128 for each activation, 4 draws."""
    names, points, width, depth, seeds = (ACTIVATIONS[:2], 6, 16, 10, 1) if SMALL else (ACTIVATIONS, 32, 128, 100, 4)
    inputs = vg.data.digits().inputs[:seeds]
    grid = {
        "sigma_w": np.linspace(0.5, 4, points, dtype=np.float32),
        "sigma_b": np.linspace(0, 1, points, dtype=np.float32),
    }
    networks = {a: vg.mlp(width=width, depth=depth, activation=a, inputs=64, outputs=10) for a in names}
    sweep = functools.partial(vg.sweep, key=jax.random.key(0), seeds=seeds, leading="seed", **grid)
    return {activation: sweep(network, inputs) for activation, network in networks.items()}


@plots.styled
def draw(sweeps: dict[str, vg.Result]) -> "Figure":
    """Small multiples with one colour scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    axes = figure.subplots(-(-len(sweeps) // 4), min(4, len(sweeps)), sharex=True, sharey=True, squeeze=False)
    for ax, (activation, sweep) in zip(axes.flat, sweeps.items(), strict=True):
        mesh = plots.draw_rate(ax, *sweep.axes.values(), sweep.rate(), reach=REACH)
        sigma_b = np.linspace(0, 1, 101)
        plots.draw_critical_line(ax, vg.theory.critical(activation, sigma_b).edge, sigma_b)
        ax.set_title(activation)
    figure.supxlabel(plots.label("sigma_w"), fontsize=8.5)
    figure.supylabel(plots.label("sigma_b"), fontsize=8.5)
    plots.colour_bar(
        figure, axes, mesh, "factor on the gradient norm, per layer", plots.factor_ticks(REACH), plots.factor
    )
    return figure


if __name__ == "__main__":
    render("activations", compute, draw)
