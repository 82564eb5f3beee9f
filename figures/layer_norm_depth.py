"""Where LayerNorm stands in a transformer decides what its last layer learns from: before the branches, the gradient
falls with depth as L^-1/2; behind the skip, it does not fall (Xiong et al. 2020)."""

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

WIDTH, HEADS, TOKENS, SEEDS = (8, 2, 3, 2) if SMALL else (64, 4, 8, 8)
DEPTHS = (2, 4) if SMALL else (4, 6, 8, 12, 16, 24, 32)
DEEPEST = DEPTHS[-1]
KERNEL = "feed_forward/branch/layer_2/kernel"  # the last one of a block
BOTH = ("pre", "post")
STYLES = {
    "pre": ("pre-LN", plots.VANISHING, "o"),
    "post": ("post-LN", plots.EXPLODING, "s"),
    "deepnorm": ("DeepNorm", "#1b7837", "D"),
    "none": ("no LayerNorm", "0.3", "^"),
}


@dataclass(frozen=True)
class Gradients:
    """ln ||dL/dW|| of the last feed-forward kernel of every block.

    Attributes:
        last: of the last block, by kind, shape ``(depths, seeds)``.
        profiles: of all blocks at the largest depth, by kind, shape ``(seeds, depth)``.
    """

    last: dict[str, np.ndarray]
    profiles: dict[str, np.ndarray]


def compute() -> Gradients:
    """Random tokens, a random cotangent of the output, read from the mean token; 8 draws.

    A network of L blocks is the deepest one with all branches behind block L switched off: what is left there is the
    identity, also of post-LN, whose norms find normalized tokens. So one compilation serves all depths.
    """
    last, profiles = {}, {"none": gradients(transformer("pre", norm=None))}
    profiles["deepnorm"] = gradients(transformer(vg.networks.branch("post", scheme="deepnorm")))
    for kind in BOTH:
        found = [gradients(transformer(kind), branch=(np.arange(DEEPEST) < depth) * 1.0) for depth in DEPTHS]
        last[kind] = np.array([values[:, depth - 1] for values, depth in zip(found, DEPTHS, strict=True)])
        profiles[kind] = found[-1]
    return Gradients(last, profiles)


def transformer(residual: Any, norm: str | None = "layer") -> vg.Network:
    """Of the sizes above."""
    size: dict[str, Any] = {"width": WIDTH, "heads": HEADS, "inputs": (TOKENS, WIDTH), "outputs": 10}
    return vg.transformer(depth=DEEPEST, residual=residual, norm=norm, **size)


def gradients(network: vg.Network, **scales: np.ndarray) -> np.ndarray:
    """Of every block, shape ``(seeds, depth)``."""
    x = jax.random.normal(jax.random.key(1), (SEEDS, TOKENS, WIDTH))
    options: dict[str, Any] = {"measure": vg.gradients(), "key": jax.random.key(0), "seeds": SEEDS, "leading": "seed"}
    return vg.sweep(network, x, scales=vg.Scales(**scales), **options).log_parameter_gradient[KERNEL]


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(found: Gradients) -> "Figure":
    """The last block against the number of blocks; all blocks of the deepest network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    draw_last(left, found)
    draw_profiles(right, found)
    return figure


def draw_last(ax: "Axes", found: Gradients) -> None:
    """Mean over draws with bars of one standard deviation, and the powers of depth that theory says."""
    depths = np.array(DEPTHS)
    for kind, values in found.last.items():
        name, colour, marker = STYLES[kind]
        mean, spread = values.mean(axis=1), values.std(axis=1, ddof=1)
        slope = -0.5 if kind == "pre" else 0.0
        line = mean[-1] + slope * np.log(depths / depths[-1])
        text = "slope -1/2" if slope else "slope 0"
        ax.plot(np.log(depths), line, color=colour, linewidth=0.9, linestyle="--", zorder=0, label=text)
        style: dict[str, Any] = {"color": colour, "markersize": 4.5, "mec": "white", "mew": 0.5, "elinewidth": 0.8}
        ax.errorbar(np.log(depths), mean, spread, fmt=marker, **style, label=name)
    shown = [depth for depth in DEPTHS if depth & (depth - 1) == 0]
    ax.set_xticks(np.log(shown), [str(depth) for depth in shown])
    ax.set(xlabel="blocks, $L$", ylabel=r"$\|\partial L / \partial W\|$ of the last feed-forward kernel")
    ax.set_title(rf"last block, {SEEDS} draws, $\pm$ 1 s.d.")
    low, high = ax.get_ylim()
    ax.set_ylim(low - 0.1, high + 0.9)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low - 0.1 <= np.log(t) <= high + 0.9]
    ax.set_yticks(np.log(ticks), [f"{t:g}" for t in ticks])
    ax.legend(loc="upper left", ncols=2)


def draw_profiles(ax: "Axes", found: Gradients) -> None:
    """Mean over draws as lines with dots, their standard deviation as bands."""
    for kind in STYLES:
        values = found.profiles[kind]
        name, colour, marker = STYLES[kind]
        blocks, mean, spread = np.arange(1, DEEPEST + 1), values.mean(axis=0), values.std(axis=0, ddof=1)
        ax.fill_between(blocks, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
        style: dict[str, Any] = {
            "markersize": 3.5,
            "mec": "white",
            "mew": 0.4,
            "markevery": max(1, DEEPEST // 16),
            "linewidth": 0.9,
        }
        ax.plot(blocks, mean, marker=marker, color=colour, label=name, **style)
    ax.set(xlabel="block", xlim=(0, DEEPEST + 1), title=f"all blocks, $L$ = {DEEPEST}, width {WIDTH}")
    ax.set_ylabel(r"$\|\partial L / \partial W\|$ of its last kernel")
    ax.set_yticks(plots.powers_of_ten(*ax.get_ylim()))
    ax.yaxis.set_major_formatter(plots.power_of_ten)
    ax.legend(loc="center right", bbox_to_anchor=(1, 0.275), fontsize=7, labelspacing=0.3)


if __name__ == "__main__":
    render("layer_norm_depth", compute, draw)
