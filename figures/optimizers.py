"""Optimizers against depth: what they change, and what they cannot."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from common import SMALL, render

import vgjax as vg
from vgjax import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DEPTHS, STEPS = (8, (2,), 5) if SMALL else (64, (2, 5, 10, 20, 40), 300)
OPTIMIZERS = {
    "gradient descent": ("sgd", 0.1),
    "momentum": ("momentum", 0.03),
    "Nesterov": ("nesterov", 0.03),
    "AdaGrad": ("adagrad", 0.01),
    "RMSProp": ("rmsprop", 0.001),
    "Adam": ("adam", 0.001),
}
if SMALL:
    OPTIMIZERS = {name: OPTIMIZERS[name] for name in ("gradient descent", "Adam")}
FACTORS = (1 / 10, 1, 10)
NETWORKS: dict[str, tuple[dict[str, Any], float]] = {
    "sigmoid": ({"activation": "sigmoid"}, 1.0),
    "ReLU, He weights": ({"activation": "relu"}, 2**0.5),
    "the same, residual": ({"activation": "relu", "residual": vg.networks.branch("pre", scheme="stable")}, 2**0.5),
}


@dataclass(frozen=True)
class Comparison:
    """Held-out accuracy after training at the best of three learning rates, by network, shape ``(optimizers,
    depths)``."""

    accuracy: dict[str, np.ndarray]


def compute() -> Comparison:
    """Every optimizer on every network, all depths, three learning rates."""
    training, test = vg.data.split(jax.random.key(9), vg.data.digits())
    found = {}
    for name, (options, sigma_w) in NETWORKS.items():
        networks = [vg.mlp(width=WIDTH, depth=depth, inputs=64, outputs=10, **options) for depth in DEPTHS]
        rows = [
            vg.sweep(
                networks,
                measure=vg.trainings(training, optimizer, STEPS, test=test),
                key=jax.random.key(0),
                seeds=1,
                scales=vg.Scales(sigma_w=sigma_w),
                learning_rate=rate * np.array(FACTORS),
                progress=True,
            )
            for optimizer, rate in OPTIMIZERS.values()
        ]
        found[name] = np.stack([vg.training.best(row, "test_accuracy") for row in rows])
    return Comparison(found)


@plots.styled
def draw(found: Comparison) -> "Figure":
    """A table of accuracies for each network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.4), layout="constrained")
    axes = figure.subplots(1, len(found.accuracy), sharey=True)
    for ax, (name, accuracy) in zip(axes, found.accuracy.items(), strict=True):
        mesh = draw_table(ax, accuracy)
        ax.set_title(name)
    axes[0].set_yticks(range(len(OPTIMIZERS)), list(OPTIMIZERS))
    text = "accuracy on new images"
    plots.colour_bar(figure, axes, mesh, text, np.linspace(0, 1, 6), "{:.0%}".format, extend="neither")
    return figure


def draw_table(ax: "Axes", accuracy: np.ndarray) -> Any:
    """Colours and numbers."""
    mesh = ax.imshow(accuracy, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(accuracy):
        ax.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color="k" if value > 0.55 else "w")
    ax.set_xticks(range(len(DEPTHS)), [str(depth) for depth in DEPTHS])
    ax.set_xlabel("depth $L$")
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    return mesh


if __name__ == "__main__":
    render("optimizers", compute, draw)
