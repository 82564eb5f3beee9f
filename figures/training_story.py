"""What vanishing costs: a shallow and a deep sigmoid network in training; the deep one with ReLU, and with skips."""

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

WIDTH, SHALLOW, DEEP, STEPS = (16, 2, 5, 20) if SMALL else (100, 3, 50, 1000)
RATE = 0.3
RELU: dict[str, Any] = {"activation": "relu"}
SKIPS = RELU | {"residual": vg.networks.branch("pre", scheme="stable")}
CASES = {
    f"sigmoid, {SHALLOW} layers": ({"activation": "sigmoid"}, SHALLOW, 1.0, RATE),
    f"sigmoid, {DEEP} layers": ({"activation": "sigmoid"}, DEEP, 1.0, RATE),
    f"ReLU, {DEEP} layers": (RELU, DEEP, 2**0.5, RATE / 30),
    f"ReLU with skips, {DEEP} layers": (SKIPS, DEEP, 2**0.5, RATE / 3),
}
COLOURS = (plots.EXPLODING, plots.VANISHING, plots.CRITICAL, "#e08214")
LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1, 1, 1)))


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        loss: of every step's minibatch.
        steps: the recorded ones.
        log_gradient: ln of the gradient of the states, shape ``(recorded, layers)``.
        log_update_ratio: ln of update over weights of the kernels, first to last, same shape.
        accuracy: on held-out images, at the end.
    """

    loss: np.ndarray
    steps: np.ndarray
    log_gradient: np.ndarray
    log_update_ratio: np.ndarray
    accuracy: float


def compute() -> dict[str, Run]:
    """Plain gradient descent on the images of digits."""
    training, test = vg.data.split(jax.random.key(9), vg.data.digits())
    runs = {}
    for name, (options, layers, sigma_w, rate) in CASES.items():
        network = vg.mlp(width=WIDTH, depth=layers - 1, inputs=64, outputs=10, **options)
        found = vg.train(
            vg.init(jax.random.key(0), network),
            vg.Scales(sigma_w=sigma_w),
            training,
            "sgd",
            STEPS,
            learning_rate=rate,
            test=test,
            snapshots=vg.training.SnapshotConfig(np.linspace(0, STEPS, min(STEPS, 50) + 1).round()),
        )
        ratio = found.snapshots.log_update_ratio
        hidden = next(of for path, of in ratio.items() if path.endswith("kernel") and of.ndim == 2)
        kernels = np.concatenate([ratio["stem/kernel"][:, None], hidden], axis=1)
        seen = found.snapshots.step, found.snapshots.log_gradient, kernels
        runs[name] = Run(np.asarray(found.loss), *map(np.asarray, seen), float(found.snapshots.test_accuracy[-1]))
    return runs


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(runs: dict[str, Run]) -> "Figure":
    """Losses and relative updates above, the gradient over layer and step below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.9), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 0.95))
    losses, updates = above.subplots(1, 2, width_ratios=(1.15, 1))
    draw_losses(losses, runs)
    draw_updates(updates, runs)
    heats = below.subplots(1, len(runs))
    finite = np.concatenate([run.log_gradient[np.isfinite(run.log_gradient)] for run in runs.values()])
    reach = float(finite.min()), float(finite.max())
    for ax, (name, run) in zip(heats, runs.items(), strict=True):
        mesh = plots.draw_gradient_heat(ax, run.steps, run.log_gradient, reach)
        mark_float32(ax, run)
        ax.set_title(name.replace(", ", "\n"), fontsize=7.5)
    ticks = plots.powers_of_ten(*reach)
    text = r"$\|\partial L / \partial h^l\|$"
    plots.colour_bar(below, heats, mesh, text, ticks, plots.power_of_ten, extend="neither")  # type: ignore[arg-type]
    return figure


def draw_losses(ax: "Axes", runs: dict[str, Run]) -> None:
    """Averaged over an epoch's worth of minibatches."""
    window = max(1, STEPS // 40)
    for (name, run), colour, line in zip(runs.items(), COLOURS, LINES, strict=True):
        smooth = np.convolve(run.loss, np.ones(window) / window, "valid")
        text = f"{name}: {run.accuracy:.0%} right"
        ax.plot(np.arange(len(smooth)) + window / 2, smooth, color=colour, linestyle=line, label=text)
    ax.axhline(np.log(10), color="0.7", linewidth=0.6, zorder=0)
    ax.text(STEPS, np.log(10) * 1.06, "guessing", color="0.4", ha="right", fontsize=7)
    ax.set(xlabel="step", ylabel="training loss", yscale="log", xlim=(0, STEPS), ylim=(1e-5, 6))
    ax.legend(loc="lower left", fontsize=6.5, handlelength=2.4)


def draw_updates(ax: "Axes", runs: dict[str, Run]) -> None:
    """Median over the run of how far a step moves each kernel, relative to its size."""
    for run, colour, line in zip(runs.values(), COLOURS, LINES, strict=True):
        median = np.median(run.log_update_ratio[:-1], axis=0)
        shown = np.where(np.isfinite(median), median, np.nan)
        layers = np.arange(1, len(median) + 1)
        ax.plot(layers, shown, color=colour, linestyle=line, marker="o", markersize=2)
        still = layers[np.isneginf(median)]
        if still.size:
            ax.axvspan(0.5, still.max() + 0.5, color="0.92", linewidth=0, zorder=-2)
            text = f"layers 1 to {still.max()} of the\ndeep sigmoid network:\nthe update is 0 in float32"
            ax.text(1, np.log(1e-6), text, color=colour, fontsize=7, va="top")
    ax.set(xlabel="hidden layer $l$", ylabel=r"$\|\Delta W^l\|\;/\;\|W^l\|$ in a step", xlim=(0, DEEP + 1))
    ax.set_yticks(plots.powers_of_ten(*ax.get_ylim()))
    ax.yaxis.set_major_formatter(plots.power_of_ten)


def mark_float32(ax: "Axes", run: Run) -> None:
    """The line below which a float32 sum of squares reads 0."""
    lost = 0.5 * np.log(2.0**-126)
    if (run.log_gradient < lost).any():
        layers = np.arange(run.log_gradient.shape[1])
        ax.contour(run.steps, layers, run.log_gradient.T, [lost], colors="white", linewidths=0.8, linestyles="--")
        ax.text(run.steps[-1] * 0.97, 1, "float32 norm: 0", color="white", fontsize=7, ha="right", va="bottom")


if __name__ == "__main__":
    render("training_story", compute, draw)
