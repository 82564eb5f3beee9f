"""With a skip gradients grow instead of vanishing: like exp(sqrt(l)) for tanh, exp(l) for ReLU; branches of scale
1 / sqrt(L) bound the growth."""

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

WIDTH, DEPTH, SEEDS, PROBES = (32, 16, 2, 2) if SMALL else (512, 64, 12, 4)
ACTIVATIONS = ("tanh", "relu")
STABLE = theory.residual.stable_scale(DEPTH)
STACKS = {  # skip, branch; how they look
    (1.0, 1.0): ("skip, branches of scale 1", plots.EXPLODING, "o"),
    (1.0, STABLE): (r"skip, branches of scale $1/\sqrt{L}$", "#1b7837", "s"),
    (0.0, 1.0): ("no skip", plots.VANISHING, "D"),
}


@dataclass(frozen=True)
class Growth:
    """ln of the factor on a gradient's norm after l layers, l = 0 ... L; roots of mean squares.

    Attributes:
        expected: at infinite width, shape ``(depth + 1,)``.
        measured: over all draws, same shape.
        spread: standard deviation of one draw, same shape.
    """

    expected: np.ndarray
    measured: np.ndarray
    spread: np.ndarray


def compute() -> dict[str, dict[tuple[float, float], Growth]]:
    """For two activations and every stack: x' = skip x + branch V phi(W x), sigma_w = sigma_v = 1."""
    return {phi: growths(phi) for phi in ACTIVATIONS}


def growths(phi: str) -> dict[tuple[float, float], Growth]:
    """Theory and measurement; all stacks share the same draws."""
    network = vg.mlp(width=WIDTH, depth=DEPTH, activation=phi, inputs=WIDTH, residual="plain", bias_init="zero")
    x = vg.data.sphere(jax.random.key(1), SEEDS, WIDTH)
    options: dict[str, Any] = {"key": jax.random.key(0), "seeds": SEEDS, "leading": "seed", "sigma_w": 1.0}
    found = vg.sweep(network, x, measure=vg.gains(PROBES), skip=[1.0, 0.0], branch=[1.0, STABLE], **options)
    measured = found.annealed("log_gain")
    growth = {}
    for skip, branch in STACKS:
        at = int(skip == 0), int(branch != 1)
        expected = theory.residual.propagate(phi, DEPTH, branch=branch, skip=skip).log_chi / 2
        spread = found.log_gain[:, *at].std(axis=0, ddof=1)
        growth[skip, branch] = Growth(expected, measured[at], spread)
    return growth


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(data: dict[str, dict[tuple[float, float], Growth]]) -> "Figure":
    """tanh over the square root of depth, ReLU over depth: a skip makes both straight lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    squares = np.arange(int(np.sqrt(DEPTH)) + 1) ** 2
    draw_stacks(left, data["tanh"], squares)
    draw_stacks(right, data["relu"], np.arange(0, DEPTH + 1, DEPTH // 8))
    left.set_xscale("function", functions=(lambda l: np.sqrt(np.maximum(l, 0)), np.square))
    left.set_xticks(squares)
    left.set(xlabel=r"layers crossed, $l$ (spaced as $\sqrt{l}$)", ylabel="factor on the gradient norm", title="tanh")
    right.set(xlabel="layers crossed, $l$", title="ReLU")
    left.plot([], [], "k", linewidth=0.8, label="theory")
    left.legend(loc="upper left", title=f"width {WIDTH}, $L$ = {DEPTH}, {SEEDS} draws", alignment="left")
    return figure


def draw_stacks(ax: "Axes", found: dict[tuple[float, float], Growth], dots: np.ndarray) -> None:
    """Theory as lines; root mean square of all draws as dots, a draw's standard deviation as a band."""
    layers = np.arange(DEPTH + 1)
    for stack, growth in found.items():
        text, colour, marker = STACKS[stack]
        ax.plot(layers, growth.expected, "k", linewidth=0.8)
        low, high = growth.measured - growth.spread, growth.measured + growth.spread
        ax.fill_between(layers, low, high, color=colour, alpha=0.25, linewidth=0)
        style: dict[str, Any] = {"color": colour, "markersize": 3.5, "mec": "white", "mew": 0.5}
        ax.plot(dots, growth.measured[dots], marker, label=text, clip_on=False, **style)
    ax.set_xlim(0, 1.02 * DEPTH)
    ax.set_yticks(plots.powers_of_ten(*ax.get_ylim()))
    ax.yaxis.set_major_formatter(plots.power_of_ten)


if __name__ == "__main__":
    render("residual_growth", compute, draw)
