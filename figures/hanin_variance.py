"""Of ReLU networks with equally many parameters those with narrow layers have gradients that differ more from draw to
draw: the sum of 1/n over the hidden layers decides, as exp(5 sum 1/n) (Hanin 2018, "Which neural net architectures give
rise to exploding and vanishing gradients?", arXiv 1801.03744; Hanin and Nica 2018, arXiv 1812.05994).

Layers of few units depart from the limit in beta, but not from the exact moments at these widths. The variance over the
squared mean is left out where so many draws do not hold it.
"""

from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from common import SMALL, render

import vgjax as vg
from vgjax import plots, theory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INPUTS, OUTPUTS = 16, 1
DRAWS = 60 if SMALL else 3000
HE = 2**0.5
PARAMETERS = 3000 if SMALL else 20000
SHAPES = {  # hidden widths relative to each other; how they look
    "4 equal": ((1,) * 4, plots.VANISHING, "s"),
    "12 equal": ((1,) * 12, plots.VANISHING, "o"),
    "20 equal": ((1,) * 20, plots.VANISHING, "^"),
    "40 equal": ((1,) * 40, plots.VANISHING, "D"),
    "12, two narrow": ((1,) * 5 + (0.12,) * 2 + (1,) * 5, "#e08214", "P"),
    "20, most narrow": ((1,) * 4 + (0.2,) * 16, plots.EXPLODING, "X"),
}
if SMALL:
    SHAPES = {name: SHAPES[name] for name in ("4 equal", "12 equal")}


class Gradients(NamedTuple):
    """The gradient of the output z by the first kernel in many draws.

    Attributes:
        widths: of the hidden layers.
        log_square: ln ||dz/dW^1||^2 less ln of its expectation, shape ``(draws,)``; -inf where a layer is dead.
        exact: mean and variance of that, given that all layers are alive.
    """

    widths: tuple[int, ...]
    log_square: np.ndarray
    exact: tuple[float, float]

    @property
    def beta(self) -> float:
        """5 sum 1/n over the hidden layers."""
        return 5 * float(np.sum(1 / np.array(self.widths)))

    @property
    def alive(self) -> np.ndarray:
        """Of the draws in which all layers are."""
        return self.log_square[np.isfinite(self.log_square)]


def compute() -> dict[str, Gradients]:
    """4000 draws of each network."""
    return {name: gradients(of_size(shape)) for name, (shape, *_) in SHAPES.items()}


def of_size(shape: tuple[float, ...]) -> tuple[int, ...]:
    """Widths of that shape with about `PARAMETERS` weights."""
    scales = np.linspace(5, 200, 4000)
    widths = [np.maximum(1, np.round(scale * np.array(shape))).astype(int) for scale in scales]
    best = min(widths, key=lambda w: abs(weights(tuple(w)) - PARAMETERS))
    return tuple(int(n) for n in best)


def weights(widths: tuple[int, ...]) -> int:
    """Entries of all kernels."""
    sizes = np.array([INPUTS, *widths, OUTPUTS])
    return int(np.sum(sizes[1:] * sizes[:-1]))


def gradients(widths: tuple[int, ...]) -> Gradients:
    """Many draws of one network, each at one input of norm 1."""
    network = vg.mlp(width=widths, activation="relu", inputs=INPUTS, outputs=OUTPUTS, bias_init="zero")
    x = vg.data.sphere(jax.random.key(1), 1, INPUTS)[0] / np.sqrt(INPUTS)
    options = {"measure": vg.gradients(loss="cotangent"), "seeds": DRAWS, "sigma_w": HE, "sigma_out": HE}
    found = vg.sweep(network, x, np.ones(1), key=jax.random.key(0), **options)
    layers = [theory.log_gain_moments("relu", n) for n in widths]
    exact = float(sum(layer.mean for layer in layers)), float(sum(layer.variance for layer in layers))
    return Gradients(widths, 2 * found.log_parameter_gradient["stem/kernel"].astype(float), exact)


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(data: dict[str, Gradients]) -> "Figure":
    """The networks; the variance of ln ||dz/dW^1||^2 against depth, and with the relative variance against beta."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.1), layout="constrained")
    shapes, depth, law = figure.subplots(1, 3, width_ratios=[1.05, 1, 1.15])
    draw_shapes(shapes, data)
    for name, found in data.items():
        draw_variance(depth, len(found.widths), found, name)
        draw_variance(law, found.beta, found, name)
    depth.set(
        yscale="log", xlabel="hidden layers", xlim=(0, None), ylabel=r"variance of $\ln \|\partial z/\partial W^1\|^2$"
    )
    depth.set_title("depth does not decide")
    draw_law(law, data)
    return figure


def draw_shapes(ax: "Axes", data: dict[str, Gradients]) -> None:
    """Each network as a row of bars, from input to output, as high as its layers are wide."""
    widest = max(max(found.widths) for found in data.values())
    for row, (name, found) in enumerate(data.items()):
        _, colour, marker = SHAPES[name]
        height = 0.62 * np.array(found.widths) / widest
        ax.bar(np.arange(len(height)), height, 0.7, -row - height / 2, color=colour, alpha=0.75)
        ax.plot(-2.2, -row, marker, color=colour, markersize=5)
        counts = ", ".join(f"{n}" for n in dict.fromkeys(found.widths))
        ax.text(-0.5, -row - 0.36, f"{counts} wide, {weights(found.widths):,} weights", fontsize=6.5, va="top")
    ax.set(xlim=(-3.5, 41), ylim=(0.35 - len(data), 0.4))
    ax.set_axis_off()
    ax.set_title("equally many weights")


def draw_variance(ax: "Axes", x: float, found: Gradients, name: str) -> None:
    """Of the draws alive, with two standard errors; the exact value as a short line."""
    _, colour, marker = SHAPES[name]
    values, mean = found.alive, found.alive.mean()
    variance, fourth = values.var(), ((values - mean) ** 4).mean()
    error = 2 * np.sqrt((fourth - variance**2) / len(values))
    ax.plot(x, found.exact[1], "_", color="k", markersize=13, markeredgewidth=0.9, zorder=1)
    ax.errorbar(x, variance, error, fmt=marker, color=colour, markersize=5, mec="white", mew=0.4, zorder=2)


def draw_law(ax: "Axes", data: dict[str, Gradients]) -> None:
    """Lines of the limit, and of the ratio of moments where so many draws hold it."""
    beta = np.geomspace(0.15, 12, 200)
    ax.plot(beta, beta, color="0.7", linewidth=2.4, zorder=0, label=r"$\beta$ (limit of the variance)")
    ax.plot(beta, np.expm1(beta), color="0.4", linewidth=0.9, linestyle="--", zorder=0, label=r"$e^{\beta} - 1$")
    for name, found in data.items():
        exact = np.expm1(np.log1p(5 / np.array(found.widths)).sum())
        ratio, error = relative_variance(np.exp(found.log_square))
        _, colour, marker = SHAPES[name]
        ax.plot(found.beta, exact, "_", color="k", markersize=13, markeredgewidth=0.9, zorder=1)
        if error < ratio / 2:
            ax.errorbar(found.beta, ratio, error, fmt=marker, color=colour, markersize=5, mfc="white", mew=0.9)
    ax.plot([], [], "_", color="k", markersize=11, label="exact")
    ax.plot([], [], "o", color="0.4", markersize=4.5, label="variance of the logarithm")
    ax.plot([], [], "o", color="0.4", markersize=4.5, mfc="white", label="variance / mean²")
    ax.set(xscale="log", yscale="log", xlim=(0.15, 14), ylim=(0.12, 3e4), xlabel=r"$\beta = 5 \sum_j 1/n_j$")
    ax.set_title(r"$\sum 1/n$ does")
    ax.set_ylabel(r"of $\|\partial z/\partial W^1\|^2$ over draws")
    ax.legend(loc="upper left", fontsize=6.5, handlelength=1.8, borderaxespad=0.1)


def relative_variance(values: np.ndarray) -> tuple[float, float]:
    """Variance over squared mean, and twice its jackknife error over 20 groups of draws."""
    groups = np.array_split(values, 20)
    left = [np.concatenate([*groups[:i], *groups[i + 1 :]]) for i in range(len(groups))]
    ratios = np.array([each.var() / each.mean() ** 2 for each in left])
    return float(values.var() / values.mean() ** 2), float(2 * ratios.std() * np.sqrt(len(groups) - 1))


if __name__ == "__main__":
    render("hanin_variance", compute, draw)
