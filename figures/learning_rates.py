"""A learning rate too small, right, too large, and decayed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np
from common import SMALL, render

import vgjax as vg
from vgjax import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DEPTH, STEPS = (8, 2, 30) if SMALL else (64, 10, 1500)
RATES = {"too small": 0.0003, "right": 0.03, "large": 0.15, "too large": 0.5}
SCHEDULES = {
    "constant": "constant",
    "step: a tenth, a hundredth": "step",
    "exponential": "exponential",
    "cosine": "cosine",
    "warm-up, then cosine": "warmup",
}
LARGE = 0.15


@dataclass(frozen=True)
class Rates:
    """Losses of every step, and accuracy on new images at the end, by rate and by schedule."""

    by_rate: dict[str, tuple[np.ndarray, float]]
    by_schedule: dict[str, tuple[np.ndarray, float]]


def compute() -> Rates:
    """One ReLU network, one draw; only the learning rate differs."""
    training, test = vg.data.split(jax.random.key(9), vg.data.digits())
    network = vg.mlp(width=WIDTH, depth=DEPTH, activation="relu", inputs=64, outputs=10)

    params, scales = vg.init(jax.random.key(0), network), vg.Scales(sigma_w=2**0.5)
    at_the_end = vg.training.SnapshotConfig((), gradients=False)

    def run(rate: float, schedule: str) -> tuple[np.ndarray, float]:
        about = {"learning_rate": rate, "schedule": schedule, "test": test, "snapshots": at_the_end}
        found = vg.train(params, scales, training, "sgd", STEPS, **about)  # type: ignore[arg-type]
        return np.asarray(found.loss), float(found.snapshots.test_accuracy[-1])

    by_rate = {f"{rate:g}, {name}": run(rate, "constant") for name, rate in RATES.items()}
    return Rates(by_rate, {name: run(LARGE, schedule) for name, schedule in SCHEDULES.items()})


@plots.styled
def draw(found: Rates) -> "Figure":
    """Constant rates left, schedules from the same large rate right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    draw_runs(left, found.by_rate, "a constant learning rate")
    draw_runs(right, found.by_schedule, f"schedules from a rate of {LARGE:g}")
    right.set_ylabel("")
    return figure


def draw_runs(ax: "Axes", runs: dict[str, tuple[np.ndarray, float]], title: str) -> None:
    """Averaged over about an epoch."""
    named = {f"{name}: {outcome(*run)}": run[0] for name, run in runs.items()}
    plots.draw_losses(ax, named, smooth=max(1, STEPS // 60))
    ax.set_title(title)
    ax.set_ylim(1e-4, 1e4)
    ax.legend(fontsize=7, handlelength=2.6, loc="upper right")


def outcome(loss: np.ndarray, accuracy: float) -> str:
    """Accuracy on new images, or when it was lost."""
    lost = np.flatnonzero(~np.isfinite(loss))
    return f"lost after {lost[0]} steps" if lost.size else f"{accuracy:.0%} right"


if __name__ == "__main__":
    render("learning_rates", compute, draw)
