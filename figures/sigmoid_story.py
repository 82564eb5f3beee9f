"""The textbook story, measured: sigmoid's slope is at most 1/4, and over 50 layers the gradient falls below 0.25^49."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from common import SMALL, render

import vgjax as vg
from vgjax import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, SHALLOW, DEEP, SEEDS = (16, 3, 20, 2) if SMALL else (100, 5, 50, 8)
LABELS = {SHALLOW: f"{SHALLOW} hidden layers", DEEP: f"{DEEP} hidden layers"}
COLOURS = {SHALLOW: plots.EXPLODING, DEEP: plots.VANISHING}


@dataclass(frozen=True)
class Story:
    """Gradients of sigmoid networks, by their number of hidden layers; logarithms, several draws.

    Attributes:
        states: ln of the norm of the gradient of each hidden layer's preactivations, shape ``(seeds, layers)``.
        kernels: ln of that of the kernel that makes them, same shape.
        zero: True in layers of the deep network whose gradient most draws read as 0 in float32, shape ``(layers,)``.
        expected: of the deep network, what theory expects of ``states``.
    """

    states: dict[int, np.ndarray]
    kernels: dict[int, np.ndarray]
    zero: np.ndarray
    expected: vg.theory.Band


def compute() -> Story:
    """A shallow and a deep network, 8 draws each, cross-entropy on images of digits."""
    states, kernels = {}, {}
    for layers in (SHALLOW, DEEP):
        found = measured(layers, vg.gradients())
        by_path = found.log_parameter_gradient
        states[layers] = found.log_gradient
        kernels[layers] = np.concatenate([by_path["stem/kernel"][:, None], by_path["kernel"]], axis=1)
    zero = measured(DEEP, vg.naive_readings("float32")).mean("lost") > 0.5
    return Story(states, kernels, zero, vg.compare(found).bands[0])


def measured(layers: int, measure: vg.ensembles.Measurement) -> vg.Result:
    """A network of so many hidden layers, each draw with an image of its own."""
    network = vg.mlp(width=WIDTH, depth=layers - 1, activation="sigmoid", inputs=64, outputs=10)
    images = vg.data.digits()
    options: dict[str, Any] = {"key": jax.random.key(0), "seeds": SEEDS, "leading": "seed"}
    x, y = images.inputs[:SEEDS], images.labels[:SEEDS]
    return vg.sweep(network, x, y, measure=measure, sigma_w=1.0, sigma_b=0.0, **options)


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(story: Story) -> "Figure":
    """The slope; the gradient of the states of the deep network; the gradients of the kernels of both."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    slope, chain, both = figure.subplots(1, 3, width_ratios=(0.9, 1.25, 1.15))
    draw_sigmoid(slope)
    draw_chain(chain, story)
    draw_kernels(both, story)
    return figure


def draw_sigmoid(ax: "Axes") -> None:
    """The function and its derivative."""
    h = jnp.linspace(-6, 6, 241)
    phi = vg.activations.get("sigmoid")
    ax.plot(h, phi(h), color="0.3")
    ax.plot(h, phi.derivative(h), color=plots.EXPLODING)
    ax.axhline(0.25, color="0.7", linewidth=0.6, zorder=0)
    ax.plot([0], [0.25], "o", color=plots.EXPLODING, markersize=4)
    ax.text(0.8, 0.9, "sigmoid", color="0.3", ha="right")
    ax.text(5.9, 0.27, r"slope $\leq$ 1/4", color=plots.EXPLODING, ha="right")
    ax.set(xlabel="$h$", xlim=(-6, 6), ylim=(0, 1.03), yticks=[0, 0.25, 0.5, 0.75, 1])
    ax.set_title("one layer")


def draw_chain(ax: "Axes", story: Story) -> None:
    """The gradient against layer: measured, expected, and the product of slopes of 1/4."""
    measured, layers = story.states[DEEP], np.arange(1, DEEP + 1)
    mean = measured.mean(axis=0)
    shade(ax, story)
    ax.fill_between(layers, measured.min(axis=0), measured.max(axis=0), color=COLOURS[DEEP], alpha=0.25, linewidth=0)
    every = layers % 2 == 1
    ax.plot(layers[every], mean[every], "o", color=COLOURS[DEEP], markersize=2.8, label=f"mean of {SEEDS} draws")
    ax.plot(layers, story.expected.mean, "k", linewidth=0.8, label="theory")
    text = f"$0.25^{{{DEEP}-l}}$ from the last"
    bound = mean[-1] + (DEEP - layers) * np.log(0.25)
    ax.plot(layers, bound, color=plots.EXPLODING, linestyle="--", linewidth=1, label=text)
    ax.set_title(f"gradient of the states, {DEEP} hidden layers")
    finish(ax, r"$\|\partial L / \partial h^l\|$")
    ax.legend(loc="lower right", fontsize=7, handlelength=1.6)


def draw_kernels(ax: "Axes", story: Story) -> None:
    """What every layer has to learn from, of the shallow and of the deep network."""
    shade(ax, story)
    for depth, values in story.kernels.items():
        style: dict[str, Any] = {"color": COLOURS[depth], "markersize": 2.8, "linewidth": 0.9}
        layers, mean = np.arange(1, depth + 1), values.mean(axis=0)
        ax.fill_between(layers, values.min(axis=0), values.max(axis=0), color=COLOURS[depth], alpha=0.25, linewidth=0)
        ax.plot(layers, mean, "o-", label=LABELS[depth], **style)
    ax.set_title("gradient of the weights")
    finish(ax, r"$\|\partial L / \partial W^l\|$")
    ax.legend(loc="lower right", fontsize=7, handlelength=1.6)


def shade(ax: "Axes", story: Story) -> None:
    """The first layers of the deep network, whose states' gradient float32 reads as 0."""
    last = int(np.flatnonzero(story.zero).max(initial=-1)) + 1
    if last:
        ax.axvspan(0, last + 0.5, color="0.92", linewidth=0, zorder=-2)
        text = f"{DEEP} layers:\nfloat32\nreads 0"
        ax.text(last / 2, np.log(1e-8), text, color=COLOURS[DEEP], ha="center", va="top", fontsize=7.5)


def finish(ax: "Axes", text: str) -> None:
    """Layers below, powers of ten beside."""
    ax.set(xlabel="hidden layer $l$", ylabel=text, xlim=(0, DEEP + 1))
    ax.set_yticks(plots.powers_of_ten(*ax.get_ylim()))
    ax.yaxis.set_major_formatter(plots.power_of_ten)


if __name__ == "__main__":
    render("sigmoid_story", compute, draw)
