"""Clipping and its kin: what helps a network whose gradients explode, and why nothing of it helps one whose vanish."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax
from common import SMALL, render

import vgjax as vg
from vgjax import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DEPTH, STEPS = (8, 3, 20) if SMALL else (100, 20, 1000)
RATE = 0.05


def clipped(rate: Any) -> optax.GradientTransformation:
    """Gradient descent with the gradient's norm limited to 1."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rate))


@dataclass(frozen=True)
class Case:
    """What is changed: the optimizer, its rate, the targets of a squared error (None: cross-entropy), the activation
    with its weights (None: as it was)."""

    optimizer: Any = "sgd"
    rate: float = RATE
    targets: float | None = None
    activation: tuple[str, float] | None = None


EXPLODING = {
    "cross-entropy": Case(),
    "learning rate / 1000": Case(rate=RATE / 1000),
    "clipping": Case(clipped),
    "squared error": Case(targets=1.0),
    "squared error, targets × 1000": Case(targets=1000.0),
    "squared error, clipping": Case(clipped, targets=1.0),
}
VANISHING = {
    "cross-entropy": Case(),
    "clipping": Case(clipped),
    "learning rate × 100": Case(rate=100 * RATE),
    "squared error": Case(targets=1.0),
    "Adam": Case("adam", 0.001),
    "ReLU, He weights instead": Case(activation=("relu", 2**0.5)),
}


@dataclass(frozen=True)
class Runs:
    """By case: accuracy on the training images at the recorded steps; NaN from where the loss is not finite."""

    steps: np.ndarray
    exploding: dict[str, np.ndarray]
    vanishing: dict[str, np.ndarray]


def compute() -> Runs:
    """ReLU at sigma_w = 2 and sigmoid at 1, on the same images."""
    training, _ = vg.data.split(jax.random.key(9), vg.data.digits())
    steps = np.linspace(0, STEPS, min(STEPS, 40) + 1).round()

    def run(activation: str, sigma_w: float, case: Case) -> np.ndarray:
        activation, sigma_w = case.activation or (activation, sigma_w)
        network = vg.mlp(width=WIDTH, depth=DEPTH, activation=activation, inputs=64, outputs=10)
        data = training if case.targets is None else training.one_hot(10, case.targets)
        found = vg.train(
            vg.init(jax.random.key(0), network),
            vg.Scales(sigma_w=sigma_w),
            data,
            case.optimizer,
            STEPS,
            learning_rate=case.rate,
            loss=None if case.targets is None else "squared_error",
            snapshots=vg.training.SnapshotConfig(steps, gradients=False),
        )
        fine = found.snapshots.step <= found.first_nonfinite
        return np.where(fine | ~np.asarray(found.diverged), found.snapshots.train_accuracy, np.nan)

    exploding = {name: run("relu", 2.0, case) for name, case in EXPLODING.items()}
    return Runs(steps, exploding, {name: run("sigmoid", 1.0, case) for name, case in VANISHING.items()})


@plots.styled
def draw(runs: Runs) -> "Figure":
    """Accuracy against step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    draw_accuracy(left, runs.steps, runs.exploding, rf"exploding: ReLU, $\sigma_w = 2$, {DEPTH} layers")
    draw_accuracy(right, runs.steps, runs.vanishing, f"vanishing: sigmoid, {DEPTH} layers")
    left.set_ylabel("training accuracy")
    return figure


def draw_accuracy(ax: "Axes", steps: np.ndarray, curves: dict[str, np.ndarray], title: str) -> None:
    """One curve a case; a cross where it ended."""
    from vgjax.plots.learning import CURVES, LINES

    for (name, accuracy), colour, line in zip(curves.items(), CURVES, LINES, strict=False):
        lost = np.flatnonzero(np.isnan(accuracy))
        text = f"{name}: diverges" if lost.size else name
        ax.plot(steps, accuracy, color=colour, linestyle=line, label=text)
        if lost.size:
            ax.plot(steps[lost[0] - 1], accuracy[lost[0] - 1], "X", color=colour, markersize=6, markeredgecolor="w")
    ax.axhline(0.1, color="0.8", linewidth=0.6, zorder=0)
    ax.set(xlabel="step", ylim=(0, 1.02), title=title)
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.legend(fontsize=6.8, handlelength=2.6, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)


if __name__ == "__main__":
    render("clipping", compute, draw)
