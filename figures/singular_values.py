"""The singular values of deep Jacobians lie where free probability puts them: spread out by Gaussian kernels, held
near 1 by orthogonal ones if the activation is nearly linear."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from common import SMALL, render

import vgjax as vg
from vgjax import plots, theory
from vgjax.theory import free_probability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DEPTHS, DRAWS = (48, (2, 8), 2) if SMALL else (256, (2, 8, 32, 128), 5)
KERNEL_INITS = ("gaussian", "orthogonal")
Q_STAR = 0.25
SAME = 1e-5  # ln s^(1/L) closer than this are one value that many singular values take (kernels are float32)
BINS = 40


class Case(NamedTuple):
    """An activation at criticality.

    Attributes:
        name: of the activation.
        sigma_w, sigma_b: at which chi = 1.
        q: variance of every preactivation, from h^0 on.
        title: above its column.
    """

    name: str
    sigma_w: float
    sigma_b: float
    q: float
    title: str


@dataclass(frozen=True)
class Densities:
    """Singular values of J_{L<-0} at every L of ``DEPTHS``, measured and predicted.

    Attributes:
        case, kernel_init: which networks.
        rates: ln s^(1/L) of all draws together, shape ``(depths, draws * width)``; -inf where s = 0.
        predicted: the law at infinite width, one a depth.
        edges: largest s^(1/L) at infinite width, shape ``(depths,)``.
    """

    case: Case
    kernel_init: str
    rates: np.ndarray
    predicted: list[free_probability.SpectralDensity]
    edges: np.ndarray


def compute() -> list[Densities]:
    """Four activations with either law of kernels, 5 draws of width 256 each, all depths from one pass."""
    shown = cases()[2:3] if SMALL else cases()
    return [densities(case, kernel_init) for kernel_init in KERNEL_INITS for case in shown]


def cases() -> list[Case]:
    """Linear and ReLU layers without biases, hard tanh and tanh where ``Q_STAR`` is the critical fixed point."""
    found = [
        Case("linear", 1.0, 0.0, 1.0, "linear\n" + r"$\sigma_w^2$ = 1"),
        Case("relu", 2**0.5, 0.0, 1.0, "ReLU\n" + r"$\sigma_w^2$ = 2"),
    ]
    for name in ("hard_tanh", "tanh"):
        point = theory.critical(name, q=Q_STAR)
        scales = rf"$\sigma_w^2$ = {point.sigma_w**2:.4g}, $\sigma_b^2$ = {point.sigma_b**2:.2g}"
        title = f"{name.replace('_', ' ')}, $q^*$ = {Q_STAR}\n{scales}"
        found.append(Case(name, point.sigma_w, point.sigma_b, Q_STAR, title))
    return found


def densities(case: Case, kernel_init: str) -> Densities:
    """Draws that begin at the fixed point: the input is such that E (h^0)^2 = q."""
    network = vg.mlp(width=WIDTH, depth=DEPTHS[-1], activation=case.name, inputs=WIDTH, kernel_init=kernel_init)
    sweep = vg.sweep(
        network,
        np.sqrt(case.q - case.sigma_b**2) / case.sigma_w * vg.data.sphere(jax.random.key(1), 1, WIDTH)[0],
        measure=vg.spectra(DEPTHS, dtype="float64"),
        key=jax.random.key(2),
        seeds=DRAWS,
        sigma_w=case.sigma_w,
        sigma_b=case.sigma_b,
    )
    rates = np.moveaxis(sweep.log_singular_values / np.array(DEPTHS)[:, None], 1, 0)
    points = [(case.name, case.q, depth, case.sigma_w, kernel_init) for depth in DEPTHS]
    edges = [np.exp(free_probability.log_largest_singular_value(*point) / point[2]) for point in points]
    predicted = [free_probability.spectral_density(*point, points=1000) for point in points]
    return Densities(case, kernel_init, rates.reshape(len(DEPTHS), -1), predicted, np.array(edges))


# --- drawing --------------------------------------------------------------------------------------------------------

SHADES = ("#9ecae1", "#6baed6", "#3182bd", "#08519c")
LINE: dict[str, Any] = {"color": "k", "linewidth": 0.7}
HEIGHT, BAR = 0.8, 0.045  # of a curve (its place is 1 high), width of a bar


@plots.styled
def draw(found: list[Densities]) -> "Figure":
    """A column for each activation, a row for each law, the depths one above the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 5.8), layout="constrained")
    axes = figure.subplots(len(KERNEL_INITS), len(found) // len(KERNEL_INITS), sharex="row", sharey=True, squeeze=False)
    for ax, one in zip(axes.flat, found, strict=True):
        for i in range(len(DEPTHS)):
            draw_depth(ax, one, i)
        ax.spines["left"].set_visible(False)
        ax.tick_params(left=False)
        ax.set_xlabel("$s^{1/L}$")
    for ax, one in zip(axes[0], found[: len(axes[0])], strict=True):
        ax.set_title(one.case.title)
    for row, kernel_init, end in zip(axes, KERNEL_INITS, (1.95, 1.5), strict=True):
        row[0].set(
            ylabel=f"{kernel_init.capitalize()} kernels\ndensity of $s^{{1/L}}$, each to its own scale",
            xlim=(-0.35, end),
        )
        row[0].set_yticks(range(len(DEPTHS)), [f"$L$ = {depth}" for depth in DEPTHS[::-1]], va="bottom")
        row[0].set_xticks([0, 0.5, 1, 1.5], ["0", "0.5", "1", "1.5"])
        row[0].set_ylim(-0.03, len(DEPTHS))
    if found[-1].case.name == "tanh":
        name_own_direction(axes[-1, -1])
    name_marks(figure)
    return figure


def draw_depth(ax: "Axes", found: Densities, i: int) -> None:
    """A histogram under the predicted density, both to one scale; the predicted edge; bars for shared values."""
    rates, predicted, depth, shade = found.rates[i], found.predicted[i], DEPTHS[i], SHADES[i]
    base = len(DEPTHS) - 1 - i
    ax.axhline(base, color="0.75", linewidth=0.5, zorder=0)
    shared, expected = shares(rates), expected_shares(predicted, depth)
    rest = rates[np.isfinite(rates)]
    for value in shared:
        rest = rest[np.abs(rest - np.log(value or 1e-300)) > SAME]
    if len(rest) and len(predicted.log_s):
        s = np.exp(predicted.log_s / depth)
        factors = np.exp(rest)
        outside = factors < 0.98 * s[0]
        ends = bins(factors[~outside])
        measured = np.histogram(factors, bins=ends)[0] / len(rates) / np.diff(ends)
        scale = HEIGHT / measured.max()
        density = depth * predicted.density_of_logs / s
        ax.stairs(base + scale * measured, ends, baseline=base, fill=True, color=shade, alpha=0.85, linewidth=0)
        ax.plot(s, base + np.minimum(scale * density, 0.97), **LINE)
        ax.vlines(factors[outside], base, base + 0.12, color=shade, linewidth=0.6)
    for value, share in shared.items():
        ax.bar(value, HEIGHT * share, BAR, bottom=base, color=plots.EXPLODING, linewidth=0, zorder=2)
        side = -1 if value == 0 else 1
        place: dict[str, Any] = {
            "ha": "right" if side < 0 else "left",
            "va": "bottom",
            "color": plots.EXPLODING,
            "fontsize": 6.5,
        }
        ax.text(value + 0.06 * side, base + max(HEIGHT * share - 0.15, 0.02), f"{share:.2f}", **place)
    for value, share in expected.items():
        ax.plot(value + BAR * np.array([-0.9, 0.9]), [base + HEIGHT * share] * 2, **LINE, zorder=3)
    if not max(expected, default=0) > 0:  # else an atom is the edge
        ax.plot([found.edges[i]] * 2, [base, base + 0.16], **LINE | {"linewidth": 1.4}, solid_capstyle="butt")


def bins(values: np.ndarray) -> np.ndarray:
    """Ends of bins of equal width, as narrow as the bulk allows, down to the last straggler."""
    top = values.max()
    width = (top - np.quantile(values, 0.02)) / min(BINS, 4 + len(values) // 25)
    return top - width * np.arange(np.ceil((top - values.min()) / width) + 1)[::-1]


def name_own_direction(ax: "Axes") -> None:
    """One value a draw belongs to a direction near the state's own, which is no more independent of the slopes than the
    state: pulled back through a layer, h is phi / phi', and its part along the state before grows by
    E[h phi / phi'] / q, which is exp(2 q) for tanh."""
    text = "one value\na draw, at\n" + r"$e^{-2q^*}$"
    arrow = {"arrowstyle": "-", "color": "k", "linewidth": 0.5, "shrinkB": 1}
    ax.annotate(
        text, (np.exp(-2 * Q_STAR), 0.13), (0.17, 0.2), fontsize=6.5, ha="center", va="bottom", arrowprops=arrow
    )


def shares(rates: np.ndarray) -> dict[float, float]:
    """The s^(1/L) that over 2% of the singular values have in common, and which part of them has it."""
    finite = np.sort(rates[np.isfinite(rates)])
    starts = np.flatnonzero(np.diff(finite, prepend=-np.inf) > SAME)
    found = {0.0: 1 - len(finite) / len(rates)}
    for start, count in zip(starts, np.diff(starts, append=len(finite)), strict=True):
        found[float(np.exp(finite[start + count // 2]))] = count / len(rates)
    return {value: float(share) for value, share in found.items() if share > 0.02}


def expected_shares(predicted: free_probability.SpectralDensity, depth: int) -> dict[float, float]:
    """The atoms of the law; that at 0 at this width, where the layer with the fewest live units sets the rank."""
    from scipy.stats import binom

    dead = np.arange(WIDTH)
    return {
        s ** (1 / depth): share if s else float((1 - binom.cdf(dead, WIDTH, share) ** depth).sum() / WIDTH)
        for s, share in predicted.atoms
    }


def name_marks(figure: "Figure") -> None:
    """What is drawn, below the panels."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    tick: dict[str, Any] = {"marker": "|", "linestyle": "", "color": "k"}
    marks = {
        f"measured, {DRAWS} draws of width {WIDTH}": Patch(color=SHADES[1], linewidth=0),
        "share of one value (at 0: of $s$ = 0)": Patch(color=plots.EXPLODING, linewidth=0),
        "theory, infinite width": Line2D([], [], **LINE),
        "its theory (at 0: at this width)": Line2D([], [], markersize=7, markeredgewidth=0.7, **tick | {"marker": "_"}),
        "its largest $s$": Line2D([], [], markersize=6, markeredgewidth=1.4, **tick),
    }
    figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=3, handlelength=1.2, fontsize=7)


if __name__ == "__main__":
    render("singular_values", compute, draw)
