"""How much states move in the first steps of training, against width and depth."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from vgjax.checks import kinds, known, not_empty
from vgjax.plots.learning import LINES
from vgjax.plots.style import LN10, sheet, styled
from vgjax.training.coordinates import PLACES, WHAT, CoordinateCheck

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

_MARKERS = "os^vDX"
_SAID = {"size": "state", "change": "change of the state", "update": "last change of the state"}


@kinds
@styled
def coordinate_check(checks: Mapping[str, CoordinateCheck], *, what: str = "change") -> "matplotlib.figure.Figure":
    """Sizes at six places of the network against width (above) and depth (below), a column a check: flat is right.

    Root mean squares at the last step, the geometric mean over seeds; bars are their standard deviation. In the corner
    the power of width or depth at the place where it is largest, with its standard error.

    Args:
        checks: name -> `vgjax.coordinate_check`.
        what: ``"size"``, ``"change"`` or ``"update"``.
    """
    not_empty("checks", checks)
    known("what", what, WHAT)
    figure = sheet(1.1 + 2.0 * len(checks), 4.1)
    panels = figure.subplots(2, len(checks), sharey="row", squeeze=False)
    for column, (name, check) in zip(panels.T, checks.items(), strict=True):
        for ax, axis in zip(column, ("width", "depth"), strict=True):
            _panel(ax, check, axis, what)
        column[0].set_title(name)
    for row in panels:
        row[0].set_ylabel(_SAID[what])
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=7, handlelength=2.2)
    return figure


def _panel(ax: "matplotlib.axes.Axes", check: CoordinateCheck, axis: str, what: str) -> None:
    import matplotlib as mpl
    from matplotlib.ticker import NullLocator

    sizes = np.array(check.widths if axis == "width" else check.depths)
    logs = check.at_places(axis, what)[:, :, -1] / LN10
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(PLACES)))
    for i, place in enumerate(PLACES):
        mean, spread = logs[..., i].mean(axis=1), logs[..., i].std(axis=1)
        error = np.abs(10 ** (mean + np.array([[-1], [1]]) * spread) - 10**mean)
        ax.errorbar(
            sizes, 10**mean, error, color=colours[i], linestyle=LINES[i], marker=_MARKERS[i], markersize=3.5,
            linewidth=1.1, elinewidth=0.7, label=place,
        )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel=axis)
    ax.set_xticks(sizes, [str(size) for size in sizes])
    low, high = ax.get_ylim()
    ticks = [tick for power in range(-12, 12) for tick in (10.0**power, 2 * 10.0**power, 5 * 10.0**power)]
    shown = [tick for tick in ticks if low <= tick <= high]
    ax.set_yticks(shown, [f"{tick:g}" for tick in shown])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_locator(NullLocator())
    slope, error = check.slopes(axis, what)
    if np.isfinite(slope).any():
        worst = int(np.nanargmax(np.abs(slope)))
        text = f"{PLACES[worst]}: power {slope[worst]:+.2f} $\\pm$ {error[worst]:.2f}"
        ax.text(0.03, 0.97, text, transform=ax.transAxes, va="top", fontsize=6.5)
