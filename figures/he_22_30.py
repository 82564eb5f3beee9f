"""Thirty ReLU layers hardly learn from Xavier's initialization and do from He's: every layer of Xavier's shrinks signal
and gradient by sqrt(1/2) (He et al. 2015, "Delving deep into rectifiers", arXiv 1502.01852, figures 2 and 3; here fully
connected networks on images of digits in place of convolutions on ImageNet).

With Xavier's a network stays at guessing for a while, the longer the deeper: within these steps 22 layers come off it
and 30 all but do not.
"""

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

WIDTH, SEEDS, STEPS, RATE = (8, 2, 20, 0.006) if SMALL else (64, 3, 1200, 0.006)
DEPTHS = (22, 30)  # He's
DRAWS = 4 if SMALL else 40
INITS = {"He": (2**0.5, plots.VANISHING, "o", "-"), "Xavier": (1.0, plots.EXPLODING, "s", "--")}  # sigma_w


@dataclass(frozen=True)
class Run:
    """One depth and initialization.

    Attributes:
        steps: at which the trainings are looked at.
        loss: of the training images there, shape ``(seeds, steps)``.
        accuracy: at the end, shape ``(seeds,)``.
        log_gradient: ln ||dL/dh^l|| before training, shape ``(draws, layers)``.
        expected: its mean in theory, from the mean at the last layer, shape ``(layers,)``.
    """

    steps: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray
    log_gradient: np.ndarray
    expected: np.ndarray


def compute() -> dict[tuple[int, str], Run]:
    """Gradient descent with momentum 0.9, as He's, at one rate for all, which falls along a cosine."""
    return {(depth, init): run for depth in DEPTHS for init, run in zip(INITS, runs_of(depth), strict=True)}


def runs_of(depth: int) -> list[Run]:
    """Both initializations of a network of that many kernels, the first and the last among them."""
    images, sigmas = vg.data.digits(), [sigma_w for sigma_w, *_ in INITS.values()]
    training, _ = vg.data.split(jax.random.key(9), images)
    network = vg.mlp(width=WIDTH, depth=depth - 2, activation="relu", inputs=64, outputs=10, bias_init="zero")
    measure = vg.trainings(
        training, "momentum", STEPS, schedule="cosine", snapshots=vg.training.SnapshotConfig(gradients=False)
    )
    options: dict[str, Any] = {"key": jax.random.key(0), "sigma_w": sigmas, "sigma_out": 1.0}
    found = vg.sweep(network, measure=measure, learning_rate=RATE, seeds=SEEDS, **options)
    example = images.inputs[0], images.labels[0]
    log_gradient = vg.sweep(network, *example, measure=vg.gradients(), seeds=DRAWS, **options).log_gradient
    runs = []
    for i, sigma_w in enumerate(sigmas):
        logs = log_gradient[:, i].astype(float)
        expected = logs[:, -1].mean() + theory.band("relu", [WIDTH] * logs.shape[1], sigma_w).mean[::-1]
        of_training = found.coordinates["step"], found.train_loss[:, i], found.train_accuracy[:, i, -1]
        runs.append(Run(*of_training, logs, expected))
    return runs


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(data: dict[tuple[int, str], Run]) -> "Figure":
    """The loss of both depths; the gradient before training, of the deeper."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    *losses, gradient = figure.subplots(1, 3, width_ratios=[1, 1, 1.15])
    for ax, depth in zip(losses, DEPTHS, strict=True):
        for init in INITS:
            draw_losses(ax, data[depth, init], init)
        ax.axhline(np.log(10), color="0.7", linewidth=0.6, zorder=0)
        ax.set(xlabel="step", xlim=(0, STEPS), ylim=(0, 3.4), title=f"{depth} layers")
        ax.legend(loc="upper right", fontsize=7, handlelength=2.4, borderaxespad=0.1)
    losses[0].text(STEPS, np.log(10) + 0.04, "guessing", color="0.4", fontsize=7, ha="right", va="bottom")
    losses[0].set_ylabel(f"training loss, each of {SEEDS} draws")
    for init in INITS:
        draw_gradient(gradient, data[DEPTHS[-1], init], init)
    gradient.plot([], [], "k", linewidth=0.8, label="theory")
    low, high = gradient.get_ylim()
    gradient.set(xlabel="layer $l$", ylabel=r"$\|\partial L / \partial h^l\|$", ylim=(low, high + 0.25 * (high - low)))
    gradient.set_title(f"{DEPTHS[-1]} layers, before training")
    gradient.set_yticks(plots.powers_of_ten(*gradient.get_ylim()))
    gradient.yaxis.set_major_formatter(plots.power_of_ten)
    gradient.legend(loc="upper left", fontsize=7, ncols=3, columnspacing=1, handlelength=1.4)
    return figure


def draw_losses(ax: "Axes", run: Run, init: str) -> None:
    """Each training as a line, named with the mean accuracy at the end."""
    _, colour, marker, style = INITS[init]
    for loss in run.loss:
        ax.plot(run.steps, loss, color=colour, linestyle=style, marker=marker, markersize=2, linewidth=0.8)
    text = f"{init}: {run.accuracy.mean():.0%} right"
    ax.plot([], [], color=colour, linestyle=style, marker=marker, markersize=2.5, linewidth=0.8, label=text)


def draw_gradient(ax: "Axes", run: Run, init: str) -> None:
    """Mean over draws as dots, a standard deviation of one draw as a band; the ratio of its ends in words."""
    sigma_w, colour, marker, _ = INITS[init]
    layers, mean, spread = np.arange(len(run.expected)), run.log_gradient.mean(axis=0), run.log_gradient.std(axis=0)
    ax.fill_between(layers, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
    ax.plot(layers, mean, marker, color=colour, markersize=3, label=init)
    ax.plot(layers, run.expected, "k", linewidth=0.8)
    if init == "Xavier":
        crossed = len(layers) - 1
        predicted, found = (sigma_w**2 / 2) ** (crossed / 2), np.exp(mean[0] - mean[-1])
        exact = np.exp(run.expected[0] - run.expected[-1])
        text = rf"first / last: $2^{{-{crossed}/2}}$ = {predicted:.1e}"
        text += f"\nat width {WIDTH}: {exact:.1e}\nmeasured: {found:.1e}"
        ax.text(crossed, mean[0], text, color=colour, fontsize=7, ha="right", va="bottom")


if __name__ == "__main__":
    render("he_22_30", compute, draw)
