"""Two inputs become alike, or unlike, exponentially with depth: |c - c*| falls as exp(-l / xi_c) in either phase, and
depth over xi_c is all that enters (Schoenholz et al. 2017, "Deep information propagation", arXiv 1611.01232).

Near the edge pairs in networks of finite width meet sooner than theory says, by a share that grows with depth / width
(`correlation_decay.py`).
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from common import SMALL, pairs, render

import vgjax as vg
from vgjax import plots, theory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACTIVATION, SIGMA_B = "tanh", float(np.sqrt(0.05))  # Schoenholz's
ORDERED, CHAOTIC = ((1.0, 1.5), (2.5, 4.0)) if SMALL else ((0.8, 1.2, 1.5), (2.2, 2.7, 4.0))  # sigma_w^2
LOOKS = (("s", "-"), ("o", "--"), ("^", "-."))
WIDTH, DEPTH, DRAWS, PAIRS = (64, 12, 2, 2) if SMALL else (1000, 40, 16, 4)
APART = 0.5  # of two inputs at the start: 1 - c, and where c* < 1 its distance from 1 - c* on either side, relative


class Decay(NamedTuple):
    """The correlation of two inputs at one weight scale.

    Attributes:
        c_star, xi: where it ends, and the depth scale on which it does.
        expected: |c - c*|, shape ``(layers,)``; half the distance of two starts on either side of c* < 1.
        measured: the same, shape ``(draws, layers)``, mean over pairs.
    """

    c_star: float
    xi: float
    expected: np.ndarray
    measured: np.ndarray

    @property
    def seen(self) -> np.ndarray:
        """Layers before the first whose mean over draws is not four standard errors above 0."""
        error = self.measured.std(axis=0, ddof=1) / np.sqrt(len(self.measured))
        return np.flatnonzero(np.logical_and.accumulate(self.measured.mean(axis=0) > 4 * error))


def compute() -> dict[float, Decay]:
    """Pairs of states through 40 layers of width 1000, 16 draws of 4 pairs, on both sides of the edge of chaos."""
    return {variance: decay(variance) for variance in (*ORDERED, *CHAOTIC)}


def decay(variance: float) -> Decay:
    """Theory and measurement; of both the same difference is taken, free of what c* is at finite width."""
    sigma_w = variance**0.5
    field = theory.mean_field(ACTIVATION, sigma_w, SIGMA_B)
    q, gap = float(field.q_star), 1 - float(field.c_star)
    starts = np.array([gap * (1 + APART), gap * (1 - APART)] if gap > 0 else [APART, 0.0])
    apart = theory.propagate(ACTIVATION, sigma_w, SIGMA_B, DEPTH, q0=q, one_minus_c0=starts).one_minus_c
    network = vg.mlp(width=WIDTH, depth=DEPTH, activation=ACTIVATION, stem=False)
    x1, x2 = pairs(jax.random.key(1), WIDTH, [(q, start) for start in starts], PAIRS)
    options: dict[str, Any] = {"measure": vg.correlations(stream=True), "leading": "example", "seeds": DRAWS}
    found = vg.sweep(network, x1, x2, key=jax.random.key(0), sigma_w=sigma_w, sigma_b=SIGMA_B, **options)
    of_starts = np.exp(found.log_one_minus_c.astype(float)).reshape(DRAWS, 2, PAIRS, -1).mean(axis=2)
    share = 2 if gap > 0 else 1  # both starts differ from c*; or only one, as equal inputs stay equal
    measured = (of_starts[:, 0] - of_starts[:, 1]) / share
    return Decay(1 - gap, float(field.xi_c), (apart[0] - apart[1]) / share, measured)


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(data: dict[float, Decay]) -> "Figure":
    """Left and middle: both phases against layer. Right: all of it against layer / xi_c."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    axes = figure.subplots(1, 3)
    phases = (("ordered", ORDERED, plots.VANISHING), ("chaotic", CHAOTIC, plots.EXPLODING))
    for ax, (phase, variances, colour) in zip(axes, phases, strict=False):
        for variance, (marker, style) in zip(variances, LOOKS, strict=False):
            draw_decay(ax, data[variance], variance, colour, marker, style)
            draw_collapsed(axes[2], data[variance], colour, marker)
        ax.plot([], [], color="0.75", linewidth=2.6, label=r"slope $-1/\xi_c$")
        ax.set_title(f"{phase}: " + (r"$c^*$ = 1" if phase == "ordered" else r"$c^* < 1$"), color=colour)
        ax.legend(loc="upper right", fontsize=7, handlelength=2.6, borderaxespad=0.1)
        ax.set(yscale="log", xlabel="layer $l$", xlim=(0, DEPTH), ylabel=r"$|c^l - c^*|$, two inputs")
    axes[0].set_ylim(1e-7, 300)
    axes[1].set_ylim(2e-3, 6)
    reach = max(DEPTH / found.xi for found in data.values())
    ends = np.array([0, min(reach, 14)])
    axes[2].plot(ends, np.exp(-ends), color="0.6", linewidth=2.6, zorder=0, label=r"$e^{-l/\xi_c}$")
    axes[2].set(yscale="log", ylim=(1e-6, 3), xlabel=r"$l / \xi_c$", xlim=(0, ends[1]), title="both phases")
    axes[2].set_ylabel("the same over its amplitude")
    axes[2].legend(loc="upper right")
    return figure


def draw_decay(ax: "Axes", found: Decay, variance: float, colour: str, marker: str, style: str) -> None:
    """Theory as a line, its asymptote behind it, the mean over draws as dots with two standard errors."""
    layers = np.arange(DEPTH + 1)
    ax.plot(layers, amplitude(found) * np.exp(-layers / found.xi), color="0.8", linewidth=2.6, zorder=0)
    ax.plot(layers, found.expected, color=colour, linestyle=style, linewidth=1)
    at = found.seen[:: max(1, len(found.seen) // 12)]
    mean, error = found.measured.mean(axis=0)[at], 2 * found.measured.std(axis=0, ddof=1)[at] / np.sqrt(DRAWS)
    dots: dict[str, Any] = {"markersize": 3.4, "elinewidth": 0.7, "mec": "white", "mew": 0.4}
    text = rf"$\sigma_w^2$ = {variance:g}, $\xi_c$ = {found.xi:.1f}"
    ax.errorbar(at, mean, error, color=colour, marker=marker, linestyle="", **dots)
    ax.plot([], [], color=colour, marker=marker, linestyle=style, linewidth=1, markersize=3.4, label=text)


def draw_collapsed(ax: "Axes", found: Decay, colour: str, marker: str) -> None:
    """The dots over the amplitude of theory's asymptote, against layer / xi_c."""
    at = found.seen[:: max(1, len(found.seen) // 12)]
    values = found.measured.mean(axis=0)[at] / amplitude(found)
    ax.plot(at / found.xi, values, marker, color=colour, markersize=3.4, markeredgecolor="white", markeredgewidth=0.4)


def amplitude(found: Decay) -> float:
    """Of the exponential that theory runs into, read at the last layer above rounding."""
    last = np.flatnonzero(found.expected > 1e-12)[-1]
    return float(found.expected[last] * np.exp(last / found.xi))


if __name__ == "__main__":
    render("c_map_convergence", compute, draw)
