"""Remedies side by side."""

from typing import TYPE_CHECKING

import numpy as np

from vgjax.checks import kinds, not_empty
from vgjax.ensembles.result import Result, check_complete
from vgjax.plots.style import CRITICAL, EXPLODING, VANISHING, power_of_ten, powers_of_ten, sheet, styled

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure


@kinds
@styled
def remedies(*found: Result) -> "matplotlib.figure.Figure":
    """What remedies do: the gradient of the first layer against the last, and the first step it makes.

    Left: how much smaller (or larger) depth makes the gradient; beside the dots, how many layers float32 reads as 0 or
    inf. Right: the first step of gradient descent relative to the weights, of the first layer and of all parameters.
    Mean over the draws, with standard errors.

    Args:
        *found: sweeps of `vgjax.first_steps` over `vgjax.remedies`, a row of panels each; the first network is on top.
    """
    for one in found:
        if one.measure != "first_steps" or not one.several:
            raise ValueError(f"found must be sweeps of first_steps over several networks, got {one!r}")
        check_complete("remedies", one)
    not_empty("found", found)
    counts = [len(one.networks) for one in found]
    figure = sheet(7.2, 0.19 * sum(counts) + 0.75 * len(found))
    grid = figure.subplots(len(found), 2, squeeze=False, gridspec_kw={"height_ratios": [n + 3 for n in counts]})
    for (left, right), one in zip(grid, found, strict=True):
        draw_ratios(left, one)
        draw_steps(right, one)
    grid[0, 1].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2, handletextpad=0.2)
    return figure


def draw_ratios(ax: "matplotlib.axes.Axes", found: Result) -> None:
    """First-layer over last-layer gradient under every remedy, the network itself on top."""
    rows = np.arange(len(found.networks))
    mean, error = _mean_and_error(found.log_ratio)
    depths = [net.depth if net else found.depth for net in found.networks.values()]
    growth = mean / np.array(depths)  # a factor of 1.05 a layer is what 50 layers forgive
    colours = [VANISHING if g < -np.log(1.05) else EXPLODING if g > np.log(1.05) else CRITICAL for g in growth]
    ax.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    ax.hlines(rows, np.minimum(mean, 0), np.maximum(mean, 0), colors=colours, linewidth=1, alpha=0.45)
    ax.hlines(rows, mean - error, mean + error, colors=colours, linewidth=2.5)
    ax.scatter(mean, rows, c=colours, s=14, zorder=3)
    lost = found.lost_layers.mean(axis=1).round().astype(int)
    for row in np.flatnonzero(lost):
        side = -1 if mean[row] < 0 else 1
        ax.annotate(
            f"{lost[row]} lost",
            (mean[row], row),
            xytext=(6 * side, 0),
            textcoords="offset points",
            ha="right" if side < 0 else "left",
            va="center",
            fontsize=6,
        )
    _remedy_axis(ax, found)
    low, high = min(float(mean.min()), 0.0), max(float(mean.max()), 0.0)
    below, above = (0.06 + 0.17 * bool(np.any(lost[side] > 0)) for side in (mean < 0, mean >= 0))
    low, high = low - below * (high - low), high + above * (high - low)
    ax.set_xlim(low, high)
    ax.set_xticks(powers_of_ten(low, high))
    ax.xaxis.set_major_formatter(power_of_ten)
    ax.set_xlabel(r"gradient of the first layer / of the last", fontsize=7.5)


def draw_steps(ax: "matplotlib.axes.Axes", found: Result) -> None:
    """The first step of gradient descent relative to the weights, first layer and all parameters."""
    rows = np.arange(len(found.networks))
    (first, first_error), (every, every_error) = (_mean_and_error(v) for v in (found.log_first_step, found.log_step))
    ax.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    ax.hlines(rows, first, every, colors="0.85", linewidth=1, zorder=0)
    ax.errorbar(every, rows, xerr=every_error, fmt="o", color=CRITICAL, ms=3, mfc="white", label="all parameters")
    ax.errorbar(first, rows, xerr=first_error, fmt="D", color="k", ms=2.8, label="first layer")
    _remedy_axis(ax, found)
    ax.set_yticklabels([])
    both = np.concatenate([first, every, [0.0]])
    room = 0.05 * float(np.ptp(both))
    ax.set_xlim(both.min() - room, both.max() + room)
    ax.set_xticks(powers_of_ten(both.min() - room, both.max() + room))
    ax.xaxis.set_major_formatter(power_of_ten)
    ax.set_xlabel("first step / weights", fontsize=7.5)


def _remedy_axis(ax: "matplotlib.axes.Axes", found: Result) -> None:
    ax.set_yticks(np.arange(len(found.networks)), list(found.networks))
    ax.set_ylim(len(found.networks) - 0.5, -0.5)
    ax.get_yticklabels()[0].set_fontweight("bold")
    ax.tick_params(axis="y", length=0, labelsize=7)
    ax.axhline(0.5, color="0.8", linewidth=0.6)


def _mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over the draws of each network: the mean and its standard error (0 for a single draw)."""
    draws = values.shape[1]
    spread = values.std(axis=1, ddof=1) / np.sqrt(draws) if draws > 1 else np.zeros(len(values))
    return values.mean(axis=1), spread
