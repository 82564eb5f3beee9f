"""The measured edge over two scales: a line with its error, theory's beside it."""

from typing import TYPE_CHECKING

import numpy as np

from vgjax.checks import kinds
from vgjax.ensembles.edge import Edge
from vgjax.plots.phase_maps import draw_critical_line
from vgjax.plots.style import EXPLODING, VANISHING, label, sheet, styled, text_on_map

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure


@kinds
@styled
def edge(found: Edge, *, title: str | None = None) -> "matplotlib.figure.Figure":
    """Where gradients stop vanishing and start exploding, over two scales as in `phase_map`: the measured line with two
    standard errors to each side, and theory's, where it has one.

    Args:
        found: of `vgjax.trace_edge`.
        title: above; the default names the network.
    """
    figure = sheet(3.9, 3.15)
    ax = figure.subplots()
    draw_edge(ax, found)
    _draw_sides(ax, found)
    ax.set(xlabel=label(found.scale), ylabel=label(found.along))
    ax.set_title(f"{found.network.partition(', inputs')[0].replace('(', ': ', 1)}" if title is None else title)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="lower right", frameon=True, framealpha=0.85, edgecolor="none", fontsize=6.5)
    return figure


@kinds
def draw_edge(ax: "matplotlib.axes.Axes", found: Edge) -> None:
    """The line alone, to be laid over a map of the same two scales.

    Args:
        ax: where; the first scale to the right, the second upwards.
        found: of `vgjax.trace_edge`.
    """
    reach = 2 * found.standard_error
    if np.isfinite(found.edge).any():
        left, right = found.edge - reach, found.edge + reach
        ax.fill_betweenx(found.values, left, right, color="k", alpha=0.25, linewidth=0, label="two standard errors")
        ax.plot(found.edge, found.values, "k.-", linewidth=1.3, markersize=4, label="edge, measured")
    if np.isfinite(found.theory).any():
        draw_critical_line(ax, found.theory, found.values).set_label("edge of chaos, theory")


def _draw_sides(ax: "matplotlib.axes.Axes", found: Edge) -> None:
    """Both sides of the line in their colours and words, by the sign of its slope."""
    there = np.isfinite(found.edge)
    if there.sum() < 2:
        return
    (left, right), up = ax.get_xlim(), np.nanmedian(found.slope) > 0
    span = right - left
    least = 0.0 if np.nanmin(found.edge) >= 0 else -np.inf
    left, right = max(left - 0.25 * span, least), right + 0.25 * span
    words = ("gradients\nvanish", "gradients\nexplode") if found.target_rate == 0 else ("rate\nbelow", "rate\nabove")
    sides = [(left, VANISHING, words[0]), (right, EXPLODING, words[1])]
    if not up:
        sides = [(left, EXPLODING, words[1]), (right, VANISHING, words[0])]
    row = int(np.flatnonzero(there)[there.sum() // 2])
    for end, colour, word in sides:
        ax.fill_betweenx(found.values, end, found.edge, color=colour, alpha=0.15, linewidth=0, zorder=0)
        text_on_map(ax, float(0.6 * end + 0.4 * found.edge[row]), float(found.values[row]), word)
    ax.set(xlim=(left, right), ylim=(found.values.min(), found.values.max()))
