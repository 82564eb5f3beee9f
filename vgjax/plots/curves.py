"""Curves against layer and index: gradient profiles and singular values."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Num

from vgjax.checks import AnyArray, ArrayLike, kinds, not_empty
from vgjax.measure.spectrum import Spectrum
from vgjax.plots.style import CRITICAL, EXPLODING, VANISHING, power_of_ten, powers_of_ten, sheet, styled
from vgjax.theory import Band

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure


@kinds
@styled
def depth_profile(
    curves: Mapping[str, ArrayLike],
    *,
    lost: Mapping[str, ArrayLike] | None = None,
    title: str | None = None,
    theory: Mapping[str, Band] | None = None,
) -> "matplotlib.figure.Figure":
    """ln gradient norm against layer, one curve a network, seeds as a band, with the plain float32 reading ending
    where it ends.

    Args:
        curves: name -> ``log_gradient``, shape ``(depth + 1,)`` or ``(seeds, depth + 1)``: of `vgjax.gradient_flow`, or
            of a sweep of `vgjax.gradients`.
        lost: name -> where plain float32 reads 0 or inf, same shape: of `vgjax.naive_reading`, or of a sweep of
            `vgjax.naive_readings`; left out, nothing is said of it.
        title: above the axes.
        theory: name -> one of ``vgjax.compare(result).bands``, drawn as a dashed line between two thin ones, one
            standard deviation of a draw away.
    """
    not_empty("curves", curves)
    figure = sheet(6.2, 3.1)
    ax, lost = figure.subplots(), dict(lost or {})
    logs = {name: np.atleast_2d(curve) for name, curve in curves.items()}
    colours = _by_growth(logs)
    for name, log_gradient in logs.items():
        draw_profile(ax, log_gradient, np.atleast_2d(lost[name]) if name in lost else None, colours[name], name)
    for band in (theory or {}).values():
        draw_band(ax, band)
    ax.set(xlabel=r"layer $l$", ylabel=r"$\|\partial L / \partial h^l\|$", title=title or "")
    ax.margins(x=0.01)
    if theory:
        ax.plot([], [], **_BAND_LINE, label=r"theory $\pm$ 1 s.d. of a draw")
    if lost:
        ax.plot([], [], "o", color="0.3", markersize=2.6, label="what float32 reads of it")
        ax.plot([], [], "X", color="0.3", markersize=6, linestyle="", label="where float32 reads 0 or inf")
        ax.axhspan(*_float32_sums(), color="0.95", zorder=-2, linewidth=0)
    ax.set_yticks(powers_of_ten(*ax.get_ylim()))
    ax.yaxis.set_major_formatter(power_of_ten)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))  # the curves may be anywhere
    return figure


@kinds
def draw_profile(
    ax: "matplotlib.axes.Axes",
    log_gradient: Num[AnyArray, "seeds layers"],
    lost: Bool[AnyArray, "seeds layers"] | None,
    colour: str,
    name: str,
) -> None:
    """One curve: the mean over seeds as a line, their range as a band, the float32 reading as dots that end in a cross.

    Args:
        ax: where; the y axis is in natural logarithms.
        log_gradient: shape ``(seeds, layers)``; -inf (a true zero) is left out.
        lost: True where plain float32 reads 0 or inf, same shape, or None.
        colour, name: of the curve.
    """
    from matplotlib.colors import is_color_like

    if not is_color_like(colour):
        raise ValueError(f"colour must be one of matplotlib's, got {colour!r}")
    layers = np.arange(log_gradient.shape[1])
    shown = np.where(np.isfinite(log_gradient), log_gradient, np.nan)
    ax.fill_between(layers, shown.min(axis=0), shown.max(axis=0), color=colour, alpha=0.25, linewidth=0)
    mean = shown.mean(axis=0)
    ax.plot(layers, mean, color=colour, label=name)
    if lost is None:
        return
    read = ~(lost.mean(axis=0) > 0.5)
    every = max(1, len(layers) // 40)
    dots = read & (layers % every == 0)
    ax.plot(layers[dots], mean[dots], "o", color=colour, markersize=2.6, markeredgecolor="white", markeredgewidth=0.4)
    ends = np.flatnonzero(np.diff(read.astype(int)))
    for end in ends:
        last = end + 1 if read[end + 1] else end
        ax.plot(layers[last], mean[last], "X", color=colour, markersize=7, markeredgecolor="white", markeredgewidth=0.6)


_BAND_LINE: dict[str, Any] = {"color": "k", "linestyle": (0, (2, 4)), "linewidth": 0.9}  # the curve shows through


@kinds
def draw_band(ax: "matplotlib.axes.Axes", band: Band) -> None:
    """A predicted mean as a dashed line, one standard deviation to either side as thin ones; shapes ``(layers,)``."""
    layers = np.arange(len(band.mean))
    shown = np.where(np.isfinite(band.mean), band.mean, np.nan)
    ax.plot(layers, shown, **_BAND_LINE)
    for side in (-1, 1):
        ax.plot(layers, shown + side * band.deviation, color="k", linewidth=0.3)


def _by_growth(curves: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """From blue, for what vanishes most towards the first layer, to red, for what explodes most."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    growth = {name: float(np.nanmean(c[:, 0] - c[:, -1])) for name, c in curves.items()}
    order = sorted(growth, key=growth.__getitem__)
    between = LinearSegmentedColormap.from_list("growth", [VANISHING, CRITICAL, EXPLODING])
    places = np.linspace(0, 1, len(order)) if len(order) > 1 else [0.5]
    return dict(zip(order, map(to_hex, between(places)), strict=True))


def _float32_sums() -> tuple[float, float]:
    """ln of the norms whose sum of squares float32 holds."""
    return -126 / 2 * np.log(2), 128 / 2 * np.log(2)


@kinds
@styled
def spectrum(found: Spectrum, *, title: str | None = None) -> "matplotlib.figure.Figure":
    """Singular values of the Jacobian, largest first, one curve a depth; what is lost is told in the legend.

    Args:
        found: of `vgjax.log_singular_values`.
        title: above the axes.
    """
    import matplotlib as mpl

    figure = sheet(5.2, 3.1)
    ax = figure.subplots()
    shades = mpl.colormaps["viridis_r"](np.linspace(0.1, 1, len(found.depths)))
    for depth, values, colour in zip(found.depths, found.log_singular_values, shades, strict=True):
        rank = int(np.isfinite(values).sum())
        lost = len(values) - rank
        name = f"{depth} layer{'s' if depth != 1 else ''}" + (f", {lost} of {len(values)} lost" if lost else "")
        ax.plot(np.arange(1, rank + 1), values[:rank], color=colour, label=name)
    ax.axhline(0, color="0.8", linewidth=0.6, zorder=-1)
    ax.set(xlabel="singular value, largest first", ylabel=r"$s_i$ of the Jacobian", title=title or "")
    ax.margins(x=0.01)
    ax.set_yticks(powers_of_ten(*ax.get_ylim()))
    ax.yaxis.set_major_formatter(power_of_ten)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
