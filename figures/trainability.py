"""Which networks can train at all: accuracy over weight variance and depth, with the depth scale of the theory."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from common import SMALL, render

import vgjax as vg
from vgjax import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, STEPS, SEEDS = (8, 5, 1) if SMALL else (64, 300, 2)
DEPTHS = (1, 2) if SMALL else tuple(range(10, 121, 10))
VARIANCE = np.array([1.5, 2.0]) if SMALL else np.linspace(1.0, 3.75, 12)
RATES = np.array([3e-5, 1e-4, 3e-4])
SIGMA_B = 0.05**0.5
FEW = (1, 2) if SMALL else (10, 40, 80, 120)
RELU = np.array([1.5, 2.0]) if SMALL else np.linspace(1.0, 3.0, 7)


@dataclass(frozen=True)
class Maps:
    """Three networks, trained by Adam at the best of three learning rates.

    Attributes:
        tanh, relu, residual: the trainings.
        xi: variances and the predicted depth scale xi_c of tanh, shape ``(2, fine)``.
        lost: the depth at which float32 reads no gradient of the first layer, at each variance; NaN for none.
    """

    tanh: vg.Result
    relu: vg.Result
    residual: vg.Result
    xi: np.ndarray
    lost: dict[str, np.ndarray]


def compute() -> Maps:
    """Images of digits, minibatches of 64."""
    training, test = vg.data.split(jax.random.key(9), vg.data.digits())

    def trained(depths: tuple[int, ...], variance: np.ndarray, sigma_b: float, **options: Any) -> vg.Result:
        return vg.sweep(
            [vg.mlp(width=WIDTH, depth=depth, inputs=64, outputs=10, **options) for depth in depths],
            measure=vg.trainings(training, "adam", STEPS, test=test),
            key=jax.random.key(0),
            seeds=SEEDS,
            scales=vg.Scales(sigma_b=sigma_b),
            learning_rate=RATES,
            sigma_w=np.sqrt(variance),
            folder=None if SMALL else f"results/trainability/{options['activation']}-{options.get('residual')}",
            progress=True,
        )

    fine = np.linspace(VARIANCE[0], VARIANCE[-1], 400)
    xi = [abs(vg.theory.mean_field("tanh", sigma_w=np.sqrt(v), sigma_b=SIGMA_B).xi_c) for v in fine]
    relu: dict[str, Any] = {"activation": "relu", "residual": "pre"}
    return Maps(
        trained(DEPTHS, VARIANCE, SIGMA_B, activation="tanh"),
        trained(FEW, RELU, 0.0, activation="relu"),
        trained(FEW, RELU, 0.0, **relu),
        np.array([fine, xi]),
        {
            "tanh": float32_death(VARIANCE, SIGMA_B, training.inputs[0], activation="tanh"),
            "relu": float32_death(RELU, 0.0, training.inputs[0], activation="relu"),
            "residual": float32_death(RELU, 0.0, training.inputs[0], **relu),
        },
    )


def float32_death(variance: np.ndarray, sigma_b: float, x: Any, **options: Any) -> np.ndarray:
    """The depth from which a plain float32 pass reads 0 (or inf) at the first layer, in most of 4 draws."""
    network = vg.mlp(width=WIDTH, depth=20 if SMALL else 1000, inputs=64, outputs=10, **options)
    scales = vg.Scales(sigma_b=sigma_b)
    swept = vg.sweep(network, x, key=jax.random.key(0), seeds=4, scales=scales, sigma_w=np.sqrt(variance))
    lost = swept.naive_lost("float32").mean(axis=0) > 0.5
    return np.where(lost.any(axis=1), lost.argmax(axis=1), np.nan)


@plots.styled
def draw(maps: Maps) -> "Figure":
    """Tanh with its theory; ReLU; the same with skip connections."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    titles = {"tanh": r"tanh, $\sigma_b^2 = 0.05$", "relu": "ReLU", "residual": "ReLU, residual"}
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        result = getattr(maps, name)
        depths = np.array([network.depth for network in result.networks.values()])
        theory = {"xi": maps.xi if name == "tanh" else None, "lost": maps.lost[name]}
        mesh = plots.draw_trainability(ax, result.axes["sigma_w"] ** 2, depths, vg.training.best(result), **theory)
        ax.set_title(title)
        if name != "tanh":
            ax.axvline(2, color="white", linestyle="-.", linewidth=1)
    axes[1].set_ylabel("")
    axes[2].set_ylabel("")
    ticks = np.linspace(0, 1, 6)
    plots.colour_bar(figure, axes, mesh, "training accuracy", ticks, "{:.0%}".format, extend="neither")
    return figure


if __name__ == "__main__":
    render("trainability", compute, draw)
