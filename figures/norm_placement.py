"""Where a transformer's norms stand decides how its gradient grows: theory in four numbers over drawn networks.

Left: ln of the mean squared gain of a tangent over blocks. Right: post-norm networks lie above theory by what falls
like 1 / width. Sources: Xiong et al. 2020 (pre, post); Kim et al. 2025, "Peri-LN"; Zhu et al. 2025, "Transformers
without normalization"; Noci et al. 2022, "Signal propagation in transformers", for the mean field of tokens."""

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from common import SMALL, render

import vgjax as vg
from vgjax import plots
from vgjax.theory import transformer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DEPTH, WIDTH, TOKENS, HEADS, SEEDS = (3, 16, 4, 2, 4) if SMALL else (16, 256, 16, 4, 24)
WIDTHS = (8, 16) if SMALL else (32, 64, 128, 256, 512)
AT = min(4, DEPTH)  # block at which the gap is looked at
PLACES: dict[str, tuple[dict[str, Any], str, str]] = {
    "pre": ({"residual": "pre"}, plots.VANISHING, "o"),
    "post": ({"residual": "post"}, plots.EXPLODING, "s"),
    "sandwich": ({"residual": "sandwich"}, "#1b7837", "D"),
    "parallel": ({"residual": "parallel"}, "#762a83", "^"),
    r"pre, DyT, $\alpha$ = .5": ({"residual": "pre", "norm": "dyt"}, "#e08214", "v"),
}


@dataclass(frozen=True)
class Gains:
    """ln of mean squared gains.

    Attributes:
        expected: by place, shape ``(depth + 1,)``.
        drawn: by place, of every draw, shape ``(seeds, depth + 1)``.
        gaps: measured less expected of post-norm at block `AT`, and standard errors, shape ``(2, widths)``.
    """

    expected: dict[str, np.ndarray]
    drawn: dict[str, np.ndarray]
    gaps: np.ndarray


def compute() -> Gains:
    """Orthogonal tokens, ReLU, all kernels at unit gain."""
    expected, drawn = {}, {}
    for name, (options, *_) in PLACES.items():
        expected[name] = transformer.propagate("relu", DEPTH, tokens=TOKENS, **options).log_gain
        drawn[name] = gains(WIDTH, DEPTH, SEEDS, options)
    gaps = []
    for width in WIDTHS:
        squares = np.exp(gains(width, AT, SEEDS if SMALL else 256, PLACES["post"][0])[:, -1])
        error = squares.std(ddof=1) / squares.mean() / math.sqrt(len(squares))
        gaps.append((np.log(squares.mean()) - expected["post"][AT], error))
    return Gains(expected, drawn, np.array(gaps).T)


def gains(width: int, depth: int, seeds: int, options: dict[str, Any]) -> np.ndarray:
    """2 ln gain of draws, shape ``(seeds, depth + 1)``."""
    norm = options.get("norm") or vg.norm("rms", epsilon=0.0)
    size: dict[str, Any] = {"width": width, "depth": depth, "heads": HEADS, "inputs": (TOKENS, width)}
    network = vg.transformer(**size, feed_forward="relu", **{**options, "norm": norm})
    network = dataclasses.replace(network, stem=None)  # a drawn stem makes tokens a little alike
    x = np.linalg.qr(np.random.default_rng(0).normal(size=(width, TOKENS)))[0].T * math.sqrt(width)
    found = vg.sweep(network, x.astype(np.float32), key=jax.random.key(0), seeds=seeds)
    return 2 * np.asarray(found.log_gain, float)


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(found: Gains) -> "Figure":
    """Gains over blocks; the gap over width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    draw_gains(left, found)
    draw_gaps(right, found)
    return figure


def draw_gains(ax: "Axes", found: Gains) -> None:
    """Lines: theory; markers: ln of the mean over draws with its standard error."""
    blocks = np.arange(DEPTH + 1)
    for name, (_, colour, marker) in PLACES.items():
        squares = np.exp(found.drawn[name])
        mean, error = squares.mean(axis=0), squares.std(axis=0, ddof=1) / math.sqrt(SEEDS)
        ax.plot(blocks, found.expected[name], color=colour, linewidth=1.1)
        style: dict[str, Any] = {"color": colour, "markersize": 4, "mec": "white", "mew": 0.5, "elinewidth": 0.8}
        ax.errorbar(blocks, np.log(mean), error / mean, fmt=marker, label=name, **style)
    ax.set(xlabel="block", ylabel=r"$\ln\, E \|t_l\|^2 / \|t_0\|^2$", xlim=(-0.3, DEPTH + 0.3))
    ax.set_title(f"width {WIDTH}, {TOKENS} tokens, {SEEDS} draws; lines: theory")
    ax.legend(loc="upper left", fontsize=7, labelspacing=0.3)
    ax.set_ylim(top=ax.get_ylim()[1] * 1.25)


def draw_gaps(ax: "Axes", found: Gains) -> None:
    """With the line of 1 / width that fits all of them best."""
    gap, error = found.gaps
    widths = np.array(WIDTHS, float)
    through = np.sum(gap / widths / error**2) / np.sum(1 / (widths * error) ** 2)
    ax.plot(widths, through / widths, color="0.5", linestyle="--", linewidth=0.9, label=rf"{through:.1f} / width")
    ax.errorbar(widths, gap, error, fmt="s", color=plots.EXPLODING, markersize=4, mec="white", mew=0.5, label="post")
    ax.axhline(0, color="0.7", linewidth=0.7)
    ax.set(xscale="log", xlabel="width", ylabel=f"measured less theory, block {AT}")
    ax.set_xticks(widths, [str(width) for width in WIDTHS])
    ax.minorticks_off()
    ax.set_title("the gap of finite width")
    ax.legend(fontsize=7)


if __name__ == "__main__":
    render("norm_placement", compute, draw)
