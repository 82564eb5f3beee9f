"""A model's path as it is: the signal on its way forward and the gradient on its way back, state by state."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Num

from vgjax.checks import AnyArray, kinds
from vgjax.plots.style import CRITICAL, EXPLODING, VANISHING, power_of_ten, powers_of_ten, sheet, styled

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

MOST_NAMES = 40
"""Of more states than that, not every one is named."""


@kinds
@styled
def gradient_path(
    log_rms: Num[AnyArray, " states"],
    log_cotangent: Num[AnyArray, " states"],
    names: Sequence[str],
    *,
    breaks: Sequence[int] = (),
    limits: tuple[float, float] | None = None,
    before: tuple[Num[AnyArray, " states"], Num[AnyArray, " states"]] | None = None,
    title: str | None = None,
) -> "matplotlib.figure.Figure":
    """Forward and backward beside each other, input on top; what a float cannot hold is shaded, breaks are marked.

    Args:
        log_rms: ln rms of every state, shape ``(states,)``; true zeros (-inf) are rings at the edge.
        log_cotangent: ln ||dL/dh|| of every state, same shape.
        names: of the states.
        breaks: states, by number, behind layers that stand out.
        limits: ln of the smallest and of the largest number of the dtype that the model computes in.
        before: the same two of the model before something was changed, drawn as dashes.
        title: above both panels.
    """
    states = len(names)
    if not len(log_rms) == len(log_cotangent) == states or states < 1:
        lengths = f"{len(log_rms)}, {len(log_cotangent)} and {states}"
        raise ValueError(f"log_rms, log_cotangent and names must have one entry a state, got {lengths}")
    if any(not 0 <= i < states for i in breaks):
        raise ValueError(f"breaks must be states, from 0 to {states - 1}, got {list(breaks)}")
    said = textwrap.fill(title or "", 100)
    height = 1.6 + 0.13 * min(states, MOST_NAMES) + 0.15 * said.count("\n")
    figure = sheet(7.2, height)
    left, right = figure.subplots(1, 2, sharey=True)
    colour = _colour(np.asarray(log_cotangent))
    old = (None, None) if before is None else before
    for ax, values, was, shade, text in (
        (left, log_rms, old[0], CRITICAL, r"signal: rms of $h^l$"),
        (right, log_cotangent, old[1], colour, r"gradient: $\|\partial L / \partial h^l\|$"),
    ):
        draw_states(ax, values, shade, breaks=breaks, limits=limits, before=was)
        ax.set_xlabel(text)
    if before is not None:
        left.legend(loc="best")
    every = -(-states // MOST_NAMES)
    left.set_yticks(range(0, states, every), [_shortened(name) for name in names[::every]], fontsize=6)
    left.set_ylim(states - 0.5, -0.5)
    if said:
        figure.suptitle(said, fontsize=8.5)
    return figure


@kinds
def draw_states(
    ax: "matplotlib.axes.Axes",
    values: Num[AnyArray, " states"],
    colour: str,
    *,
    breaks: Sequence[int] = (),
    limits: tuple[float, float] | None = None,
    before: Num[AnyArray, " states"] | None = None,
) -> None:
    """Logarithms of one quantity down the path, in powers of ten.

    Args:
        ax: where; the x axis is in natural logarithms.
        values: shape ``(states,)``; true zeros (-inf) are rings at the edge, what is no number is left out.
        colour: of the line.
        breaks: states to mark.
        limits: ln of the smallest and of the largest number of the dtype; what is beyond is shaded.
        before: the same before something was changed.
    """
    from matplotlib.colors import is_color_like

    if not is_color_like(colour):
        raise ValueError(f"colour must be one of matplotlib's, got {colour!r}")
    if any(not 0 <= i < len(values) for i in breaks):
        raise ValueError(f"breaks must be states, from 0 to {len(values) - 1}, got {list(breaks)}")
    shown = np.where(np.isfinite(values), values, np.nan)
    rows = np.arange(len(shown))
    ax.plot(shown, rows, color=colour, marker="o", markersize=2.2, label="after" if before is not None else None)
    old = np.full(0, np.nan) if before is None else np.where(np.isfinite(before), before, np.nan)
    if before is not None:
        ax.plot(old, rows, color=VANISHING if colour != VANISHING else CRITICAL, dashes=(3, 2), label="before")
    marked = list(breaks)
    ax.plot(shown[marked], rows[marked], "X", color=EXPLODING, markersize=7, markeredgecolor="white", linestyle="")
    for row in marked:
        ax.axhline(row - 0.5, color=EXPLODING, linewidth=0.6, linestyle=(0, (2, 2)), zorder=-1)
    known = np.concatenate([shown[np.isfinite(shown)], old[np.isfinite(old)]])
    low, high = (float(known.min()), float(known.max())) if len(known) else (-1.0, 1.0)
    room = 0.05 * (high - low) + 2.5  # a power of ten: an even path is drawn as one
    low, high = low - room, high + room
    ax.set_xlim(low, high)
    for start, end in () if limits is None else ((low, limits[0]), (limits[1], high)):
        if start < end:
            ax.axvspan(start, end, color="0.9", zorder=-2, linewidth=0)
    zeros = np.flatnonzero(np.isneginf(values))
    (rings,) = ax.plot(np.full(len(zeros), low), zeros, "o", color=colour, mfc="white", markersize=4, clip_on=False)
    rings.set_in_layout(False)
    ax.set_xticks(powers_of_ten(low, high))
    ax.xaxis.set_major_formatter(power_of_ten)


def _colour(log_cotangent: np.ndarray) -> str:
    """Blue for a gradient that vanishes towards the input, red for one that explodes."""
    known = log_cotangent[np.isfinite(log_cotangent)]
    growth = float(known[0] - known[-1]) if len(known) else 0.0
    return VANISHING if growth < -5 else EXPLODING if growth > 5 else CRITICAL


def _shortened(name: str, most: int = 40) -> str:
    return name if len(name) <= most else f"...{name[3 - most :]}"
