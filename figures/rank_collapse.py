"""Attention makes tokens alike: at once without a skip, layer by layer with one, hardly at all with branches of scale
1 / sqrt(L)."""

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

WIDTH, HEADS, TOKENS, DEPTH, SEEDS = (16, 2, 4, 4, 2) if SMALL else (256, 4, 16, 24, 6)
STABLE = DEPTH**-0.5
ATTENTION = {  # skip, branch; how they look
    (0.0, 1.0): ("no skip", plots.EXPLODING, "D"),
    (1.0, 1.0): ("skip, branch 1", "#e08214", "s"),
    (1.0, 0.5): ("skip, branch 1/2", "#1b7837", "^"),
    (1.0, STABLE): (r"skip, branch $1/\sqrt{L}$", plots.VANISHING, "o"),
}
WHOLE = {
    "none": ("no LayerNorm", "0.3", "^"),
    "post": ("post-LN", plots.EXPLODING, "s"),
    "pre": ("pre-LN", plots.VANISHING, "o"),
    "deepnorm": ("DeepNorm", "#1b7837", "D"),
}


@dataclass(frozen=True)
class Correlations:
    """Mean cosine between two tokens at every layer, shape ``(seeds, depth + 1)``.

    Attributes:
        attention: uniform attention alone, by skip and branch.
        whole: transformers with feed-forward layers, by the place of the norm.
    """

    attention: dict[tuple[float, float], np.ndarray]
    whole: dict[str, np.ndarray]


def compute() -> Correlations:
    """Random tokens, 6 draws."""
    uniform = network(norm=None, feed_forward=None)
    attention = {
        (skip, branch): correlations(uniform, sigma_qk=0.0, skip=skip, branch=branch) for skip, branch in ATTENTION
    }
    whole = {
        "none": correlations(network(norm=None)),
        "pre": correlations(network(residual="pre")),
        "post": correlations(network(residual="post")),
        "deepnorm": correlations(network(residual=vg.networks.branch("post", scheme="deepnorm"))),
    }
    return Correlations(attention, whole)


def network(**options: Any) -> vg.Network:
    """Of the sizes above."""
    return vg.transformer(width=WIDTH, depth=DEPTH, heads=HEADS, inputs=(TOKENS, WIDTH), **options)


def correlations(network: vg.Network, **scales: float) -> np.ndarray:
    """Of every draw, each with tokens of its own."""
    x = jax.random.normal(jax.random.key(1), (SEEDS, *network.input_shape))
    options: dict[str, Any] = {"measure": COSINES, "key": jax.random.key(0), "seeds": SEEDS, "leading": "seed"}
    return vg.sweep(network, x, **options, **scales).cosine


def cosines(parameters: vg.networks.Parameters, scales: vg.Scales, x: jax.Array) -> dict[str, jax.Array]:
    """As a measurement of a sweep."""
    return {"cosine": vg.measure.token_correlation(parameters, scales, x)}


COSINES = vg.measurement(cosines, {"cosine": ("layer",)})


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(found: Correlations) -> "Figure":
    """Uniform attention over its theory; whole transformers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    layers = np.arange(DEPTH + 1)
    for (skip, branch), values in found.attention.items():
        name, colour, marker = ATTENTION[skip, branch]
        line = theory.attention.uniform_attention_correlation(TOKENS, DEPTH, skip=skip, branch=branch)
        left.plot(layers, line, "k", linewidth=0.8, zorder=3)
        draw_correlation(left, values, colour, marker, name, linestyle="")
    left.plot([], [], "k", linewidth=0.8, label="theory, infinite width")
    for kind, (name, colour, marker) in WHOLE.items():
        draw_correlation(right, found.whole[kind], colour, marker, name, linewidth=0.9)
    left.set(ylabel="mean cosine between two tokens", ylim=(-0.02, 1.03), title="uniform attention alone")
    right.set_title("transformers at initialization")
    left.legend(loc="lower right", bbox_to_anchor=(1.03, 0.11), fontsize=7, labelspacing=0.3)
    options: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 0.06), "alignment": "left"}
    right.legend(title=f"{TOKENS} tokens of width {WIDTH}, {SEEDS} draws", **options)
    return figure


def draw_correlation(ax: "Axes", values: np.ndarray, colour: str, marker: str, name: str, **style: Any) -> None:
    """Mean over draws as dots, one standard deviation as a band."""
    layers, mean, spread = np.arange(DEPTH + 1), values.mean(axis=0), values.std(axis=0, ddof=1)
    ax.fill_between(layers, mean - spread, mean + spread, color=colour, alpha=0.25, linewidth=0)
    dots: dict[str, Any] = {"color": colour, "markersize": 4, "mec": "white", "mew": 0.5, "clip_on": False, "zorder": 4}
    first = 1 if name == "no skip" else 0  # beside the others where both are 1
    ax.plot(layers, mean, marker=marker, label=name, markevery=(first, max(1, DEPTH // 12)), **dots, **style)
    ax.set(xlabel="layer $l$", xlim=(0, DEPTH))


if __name__ == "__main__":
    render("rank_collapse", compute, draw)
