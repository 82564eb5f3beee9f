"""Every activation has its own edge of chaos: a line, a line that signals never reach, a single point, or none."""

import textwrap
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from common import SMALL, render

import vgjax as vg
from vgjax import activations, plots, theory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

TOP = 1.0  # largest sigma_b
MEASURED = ("tanh", "softsign", "selu")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9", "#7f5fc6")
STABLE, UNSTABLE = "-", (0, (3, 2))
DOT: dict[str, Any] = {
    "marker": "o",
    "linestyle": "",
    "markersize": 4,
    "markeredgecolor": "white",
    "markeredgewidth": 0.6,
}
POINT: dict[str, Any] = {"marker": "s", "color": "k", "markersize": 4.5, "clip_on": False, "zorder": 4}


class Edge(NamedTuple):
    """Where an edge was measured: sigma_w with its standard error for each sigma_b, shapes ``(points,)``."""

    sigma_w: np.ndarray
    error: np.ndarray
    sigma_b: np.ndarray


class Diagram(NamedTuple):
    """Critical points of each activation along its line, measured edges, and why the others have no line."""

    lines: dict[str, list[theory.Critical]]
    edges: dict[str, Edge]
    points: dict[str, float]
    reasons: dict[str, str]
    what: str


def compute() -> Diagram:
    """Roots of chi = 1 at 33 bias scales; edges of networks of width 512 and 300 layers, 4 draws."""
    names = (*MEASURED[:1], "gelu", "relu", "softplus", "sigmoid") if SMALL else activations.NAMES
    sigma_b = np.linspace(0, 1, 9 if SMALL else 33) ** 2 * TOP
    roots = {name: [root for b in sigma_b for root in critical_points(name, b)] for name in names}
    lines = {n: sorted(r, key=lambda root: root.q_star) for n, r in roots.items() if any(c.sigma_b > 0 for c in r)}
    without = [name for name in names if name not in lines]
    size = {"width": 32, "depth": 20} if SMALL else {"width": 512, "depth": 300}
    seeds = 2 if SMALL else 4
    return Diagram(
        lines,
        {name: measured_edge(name, lines[name], seeds, **size) for name in MEASURED if name in lines},
        {name: roots[name][0].sigma_w for name in without if roots[name]},
        {name: short(theory.critical(name, TOP).reason) for name in without},
        f"width {size['width']}, {size['depth']} layers, {seeds} draws",
    )


def critical_points(activation: str, sigma_b: float) -> list[theory.Critical]:
    """All that there are at one bias scale."""
    found = theory.critical(activation, sigma_b)
    return [] if found.stability == "none" else [found, *found.others]


def short(reason: str) -> str:
    """A reason without its numbers and consequences."""
    return reason.split(" (")[0].split(":")[0]


def measured_edge(activation: str, line: list[theory.Critical], seeds: int, *, width: int, depth: int) -> Edge:
    """Where gradients stop vanishing, at every eighth of the bias scale, with the jackknife's error over draws."""
    span = [root.sigma_w for root in line if root.is_edge]
    sigma_b = np.linspace(0, TOP, 9)[1:]
    found = vg.sweep(
        vg.mlp(width=width, depth=depth, activation=activation, inputs=64),
        vg.data.digits().inputs[:seeds],
        key=jax.random.key(0),
        seeds=seeds,
        leading="seed",
        sigma_w=np.linspace(min(span) - 0.1, max(span) + 0.1, 12 if SMALL else 16, dtype=np.float32),
        sigma_b=sigma_b.astype(np.float32),
    )
    without_one = [without(found, seed).edge("sigma_w") for seed in range(seeds)]
    return Edge(found.edge("sigma_w"), np.std(without_one, axis=0) * np.sqrt(seeds - 1), sigma_b)


def without(found: vg.Result, seed: int) -> vg.Result:
    """All draws but one."""
    return replace(found, arrays={name: np.delete(values, seed, axis=0) for name, values in found.arrays.items()})


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(diagram: Diagram) -> "Figure":
    """Bounded activations left, on a broken axis; unbounded ones right, with those that have no line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.3), layout="constrained")
    near, far, unbounded = figure.subplots(1, 3, sharey=True, width_ratios=(2.1, 0.5, 2.1))
    is_bounded = {name: activations.get(name).facts.bounded for name in diagram.lines}
    kinds = {
        kind: together({n: diagram.lines[n] for n in is_bounded if is_bounded[n] == kind}) for kind in (True, False)
    }
    drawn: dict[Axes, dict[str, tuple[list[theory.Critical], str]]] = {near: {}, far: {}, unbounded: {}}
    for bounded, groups in kinds.items():
        for names, colour in zip(groups, COLOURS[: len(groups)], strict=True):
            ax = unbounded if not bounded else near if diagram.lines[names[0]][-1].sigma_w < 5 else far
            drawn[ax][", ".join(names)] = diagram.lines[names[0]], colour
            for name in names:
                draw_line(ax, diagram.lines[name], colour)
                if name in diagram.edges:
                    draw_edge(ax, diagram.edges[name], colour)
    near.set(xlim=(0.75, 2.85), xlabel=plots.label("sigma_w"), ylabel=plots.label("sigma_b"), ylim=(-0.03, TOP))
    far.set(xlim=(9.95, 10.45), xticks=[10, 10.4])
    unbounded.set(xlim=(0.6, 2.15), xlabel=plots.label("sigma_w"))
    break_axis(near, far)
    for ax, lines in drawn.items():
        name_ends(ax, lines)
        name_dashes(ax, lines)
    draw_points(unbounded, diagram.points)
    unbounded.text(1.56, 0.96 * TOP, words(diagram), fontsize=6.5, va="top", linespacing=1.4)
    near.text(
        0.79,
        0.96 * TOP,
        "left of a line\ngradients\nvanish,\nright of it\nthey explode",
        fontsize=6.5,
        va="top",
        linespacing=1.4,
    )
    figure.legend(handles=legend(diagram), loc="outside lower center", ncols=3, handlelength=2.2, columnspacing=1.5)
    return figure


def together(lines: dict[str, list[theory.Critical]]) -> list[list[str]]:
    """Names by increasing end of their lines; those whose lines coincide in one group."""
    levels = np.linspace(0.1, 1, 10) * TOP
    curves = {
        n: np.interp(levels, *zip(*((c.sigma_b, c.sigma_w) for c in line), strict=True)) for n, line in lines.items()
    }
    groups: list[list[str]] = []
    for name in lines:
        same = [group for group in groups if np.abs(curves[group[0]] - curves[name]).max() < 2e-3]
        if same:
            same[0].append(name)
        else:
            groups.append([name])
    return sorted(groups, key=lambda group: curves[group[0]][-1])


def draw_line(ax: "Axes", line: list[theory.Critical], colour: str) -> None:
    """Solid where it is an edge, dashed where its fixed point is unstable."""
    for part, edge in stretches(line):
        style = STABLE if edge else UNSTABLE
        ax.plot([root.sigma_w for root in part], [root.sigma_b for root in part], linestyle=style, color=colour)


def stretches(line: list[theory.Critical]) -> Iterator[tuple[list[theory.Critical], bool]]:
    """The line cut where it turns from edge to no edge, each stretch with the point at which the next begins."""
    start = 0
    for i in range(1, len(line) + 1):
        if i == len(line) or line[i].is_edge != line[start].is_edge:
            yield line[start : i + 1], line[start].is_edge
            start = i


def draw_edge(ax: "Axes", edge: Edge, colour: str) -> None:
    """Measured edges as dots with their standard errors."""
    ax.errorbar(
        edge.sigma_w, edge.sigma_b, xerr=edge.error, color=colour, elinewidth=0.8, zorder=3, clip_on=False, **DOT
    )


def name_ends(ax: "Axes", lines: dict[str, tuple[list[theory.Critical], str]]) -> None:
    """Names above the upper ends of the lines, pushed apart."""
    ends = [line[-1].sigma_w for line, _ in lines.values()]
    place = ax.get_xaxis_transform()
    for name, end, x in zip(lines, ends, spread(ends, 0.1), strict=True):
        colour = lines[name][1]
        ax.plot([end, x], [1, 1.05], color=colour, linewidth=0.6, transform=place, clip_on=False)
        ax.text(x, 1.06, name, transform=place, color=colour, rotation=55, rotation_mode="anchor", fontsize=7)


def spread(wanted: list[float], gap: float) -> list[float]:
    """Increasing positions near the wanted ones, at least a gap apart: clusters are centred on their mean."""
    clusters: list[list[float]] = []
    for x in wanted:
        clusters.append([x])
        while len(clusters) > 1 and clusters_touch(*clusters[-2:], gap):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    return [float(np.mean(c)) + (i - (len(c) - 1) / 2) * gap for c in clusters for i in range(len(c))]


def clusters_touch(left: list[float], right: list[float], gap: float) -> bool:
    """Whether two clusters, spaced out, come nearer than a gap."""
    return np.mean(right) - np.mean(left) < gap * (len(left) + len(right)) / 2


def name_dashes(ax: "Axes", lines: dict[str, tuple[list[theory.Critical], str]]) -> None:
    """Names written along the dashed lines, each at a height of its own, the outermost line highest."""
    from matplotlib.patheffects import withStroke

    dashed = {
        name: np.array([(c.sigma_b, c.sigma_w) for c in line if not c.is_edge]) for name, (line, _) in lines.items()
    }
    curves = {name: curve.T for name, curve in dashed.items() if len(curve)}
    order = sorted(curves, key=lambda name: np.interp(0.25 * TOP, *curves[name]))
    for name, height in zip(order, np.linspace(0.08, 0.34, len(order)) * TOP, strict=True):
        low, x, high = np.interp([height - 0.02, height, height + 0.02], *curves[name])
        ax.text(
            x,
            height,
            name.split(",")[0],
            color=lines[name][1],
            fontsize=6.5,
            ha="center",
            va="center",
            rotation=np.degrees(np.arctan2(-0.04, low - high)),
            transform_rotates_text=True,
            rotation_mode="anchor",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def draw_points(ax: "Axes", points: dict[str, float]) -> None:
    """Critical points of homogeneous activations, at sigma_b = 0 only."""
    for x in sorted({round(x, 3) for x in points.values()}):
        names = [name for name, at in points.items() if round(at, 3) == x]
        ax.plot(x, 0, **POINT)
        ax.annotate(",\n".join(names), (x, 0), (0, 5), textcoords="offset points", ha="center", fontsize=7)


def words(diagram: Diagram) -> str:
    """The activations without a line, with the reason."""
    lines = ["no line:"]
    for at_zero in (True, False):
        names = [name for name in diagram.reasons if (name in diagram.points) == at_zero]
        for reason in dict.fromkeys(diagram.reasons[name] for name in names):
            lines.append("\n" + ", ".join(name for name in names if diagram.reasons[name] == reason))
            lines += ["(at σ_b = 0 a point;"] if at_zero else []
            lines += textwrap.wrap(("else " if at_zero else "(") + reason + ")", 25)
    return "\n".join(lines).replace("chi", r"$\chi$").replace("σ_b", r"$\sigma_b$")


def break_axis(left: "Axes", right: "Axes") -> None:
    """One axis in two pieces, with a mark where it is cut."""
    right.spines["left"].set_visible(False)
    right.tick_params(left=False)
    for ax, x in ((left, 1), (right, 0)):
        ax.plot(x, 0, marker=[(-0.5, -1), (0.5, 1)], color="k", markersize=7, transform=ax.transAxes, clip_on=False)


def legend(diagram: Diagram) -> list["Line2D"]:
    """What solid, dashed and dotted mean."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color="k", linestyle=STABLE, label="edge of chaos, theory"),
        Line2D([], [], color="k", linestyle=UNSTABLE, label=r"$\chi = 1$, but signals never reach it (unstable)"),
        Line2D([], [], color="k", label=f"edge, measured\n({diagram.what})", **DOT),
    ]


if __name__ == "__main__":
    render("phase_diagram", compute, draw)
