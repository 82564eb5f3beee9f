"""Training: losses and gradients along the way, what trains at which depth, and the border of divergence."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Num

from vgjax.checks import AnyArray, kinds, not_empty, positive_integer
from vgjax.ensembles.result import Result, check_complete
from vgjax.plots.style import colour_bar, label, power_of_ten, powers_of_ten, sheet, styled
from vgjax.training.boundary import converged_of
from vgjax.training.loop import Training
from vgjax.training.trainability import best

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

CURVES = ("#b2182b", "#2166ac", "#4d4d4d", "#e08214", "#1b7837", "#762a83", "#01665e")
LINES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1, 1)),
    (0, (5, 1, 1, 1)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (8, 2)),
    "--",
)


@kinds
@styled
def training(runs: Mapping[str, Training], *, title: str | None = None) -> "matplotlib.figure.Figure":
    """Loss curves of several trainings, and for each the gradient over layer and step as a heat map.

    Args:
        runs: name -> `vgjax.train`, with gradients.
        title: above the first panel.
    """
    not_empty("runs", runs)
    figure = sheet(2.6 + 2.3 * len(runs), 2.7)
    curves, *heats = figure.subplots(1, 1 + len(runs), width_ratios=(1.25, *[1] * len(runs)))
    draw_losses(curves, {name: np.asarray(run.loss) for name, run in runs.items()})
    curves.set_title(title or "loss")
    gradients = {name: np.asarray(run.snapshots.log_gradient) for name, run in runs.items()}
    finite = np.concatenate([g[np.isfinite(g)] for g in gradients.values()])
    reach = float(finite.min()), float(finite.max())
    for ax, (name, gradient) in zip(heats, gradients.items(), strict=True):
        mesh = draw_gradient_heat(ax, np.asarray(runs[name].snapshots.step), gradient, reach)
        ax.set_title(name)
    ticks = powers_of_ten(*reach)
    colour_bar(figure, heats, mesh, r"$\|\partial L / \partial h^l\|$", ticks, power_of_ten, extend="neither")
    return figure


@kinds
def draw_losses(ax: "matplotlib.axes.Axes", losses: Mapping[str, Num[AnyArray, " _"]], *, smooth: int = 1) -> None:
    """One loss curve a training, on a logarithmic axis; a cross where it stops being finite.

    Args:
        ax: where.
        losses: name -> loss of every step, shape ``(num_steps,)``.
        smooth: steps over which to average.
    """
    not_empty("losses", losses)
    positive_integer("smooth", smooth, min(map(len, losses.values())))
    for (name, loss), colour, line in zip(losses.items(), CURVES * 9, LINES * 9, strict=False):
        shown = np.convolve(loss, np.ones(smooth) / smooth, "valid")
        steps = np.arange(len(shown)) + (smooth - 1) / 2
        (drawn,) = ax.plot(steps, shown, color=colour, linestyle=line, linewidth=1.1, label=name)
        end = int(np.argmax(~np.isfinite(loss))) if not np.isfinite(loss).all() else 0
        if end:
            ax.plot(end - 1, loss[end - 1], "X", color=drawn.get_color(), markersize=6, markeredgecolor="white")
    ax.set(xlabel="step", ylabel="training loss", yscale="log")
    ax.margins(x=0.01)
    ax.legend(handlelength=2.4, fontsize=7)


@kinds
def draw_gradient_heat(
    ax: "matplotlib.axes.Axes",
    steps: Num[AnyArray, " r"],
    log_gradient: Num[AnyArray, "r layers"],
    reach: tuple[float, float] | None = None,
) -> Any:
    """The gradient's norm over layer and step; white where it is a true zero or does not exist.

    Args:
        ax: where.
        steps: shape ``(r,)``.
        log_gradient: natural logarithms, shape ``(r, layers)``.
        reach: the ends of the colours.
    """
    from matplotlib.ticker import MaxNLocator

    low, high = reach if reach is not None else (None, None)
    shown = np.where(np.isfinite(log_gradient), log_gradient, np.nan)
    layers = np.arange(shown.shape[1])
    mesh = ax.pcolormesh(steps, layers, shown.T, cmap="magma", vmin=low, vmax=high, shading="nearest", rasterized=True)
    ax.set(xlabel="step", ylabel="layer $l$")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return mesh


# --- the trainability map -------------------------------------------------------------------------------------------


@kinds
@styled
def trainability_map(
    result: Result,
    *,
    name: str = "train_accuracy",
    xi: np.ndarray | None = None,
    multiples: Sequence[float] = (1, 3, 6),
    lost: np.ndarray | None = None,
    title: str | None = None,
) -> "matplotlib.figure.Figure":
    """Accuracy after training over weight variance and depth, at the best learning rate, with the theory over it.

    Args:
        result: of a sweep of `vgjax.trainings` over networks of several depths, ascending, and ``sigma_w`` (and
            learning rates).
        name: which accuracy.
        xi, multiples, lost: as for `draw_trainability`.
        title: above the axes.
    """
    check_complete("a trainability map", result)
    figure = sheet(4.3, 3.2)
    ax = figure.subplots()
    depths = np.array([network.depth for network in result.networks.values() if network is not None])
    theory: dict[str, Any] = {"xi": xi, "multiples": multiples, "lost": lost}
    mesh = draw_trainability(ax, result.axes["sigma_w"] ** 2, depths, best(result, name), **theory)
    ax.set_title(title or "")
    text = name.replace("_", " ").replace("train ", "training ")
    colour_bar(figure, ax, mesh, text, np.linspace(0, 1, 6), "{:.0%}".format, extend="neither")
    return figure


@kinds
def draw_trainability(
    ax: "matplotlib.axes.Axes",
    variance: Num[AnyArray, " points"],
    depths: Num[AnyArray, " depths"],
    accuracy: Num[AnyArray, "depths points"],
    *,
    xi: Num[AnyArray, " points"] | Num[AnyArray, "2 fine"] | None = None,
    multiples: Sequence[float] = (1, 3, 6),
    lost: Num[AnyArray, " points"] | None = None,
) -> Any:
    """Accuracy over weight variance and depth, with multiples of the predicted depth scale over it.

    Args:
        ax: where.
        variance: sigma_w^2, shape ``(points,)``.
        depths: shape ``(depths,)``.
        accuracy: between 0 and 1, shape ``(depths, points)``.
        xi: the depth scale xi_c at each variance, shape ``(points,)`` or ``(2, fine)``: variances and their xi.
        multiples: of xi to draw.
        lost: the depth from which float32 reads no gradient at the first layer, shape ``(points,)``; NaN for never.
    """
    mesh = ax.pcolormesh(variance, depths, accuracy, cmap="cividis", vmin=0, vmax=1, shading="nearest", rasterized=True)
    frame = ax.get_xlim(), ax.get_ylim()
    if xi is not None:
        where, scale = xi if np.ndim(xi) == 2 else (variance, xi)
        for times, line in zip(multiples, ("-", "--", ":", "-."), strict=False):
            text = rf"{times:g} $\xi_c$" if times != 1 else r"$\xi_c$"
            ax.plot(where, times * scale, color="white", linestyle=line, linewidth=1.2, label=text)
    if lost is not None and (lost < frame[1][1]).any():
        ax.plot(variance, lost, color="#ef3b2c", marker="x", markersize=4, linewidth=0.8, label="float32 reads 0")
    ax.set(xlim=frame[0], ylim=frame[1], xlabel=r"weight variance $\sigma_w^2$", ylabel="depth $L$")
    if ax.get_legend_handles_labels()[0]:
        legend = ax.legend(loc="upper right", fontsize=6.5, frameon=True, labelcolor="white")
        legend.get_frame().set(facecolor="0.3", alpha=0.8, linewidth=0)
    return mesh


# --- the boundary ---------------------------------------------------------------------------------------------------


@kinds
@styled
def trainability_boundary(*results: Result, titles: Sequence[str] = (), seed: int = 0) -> "matplotlib.figure.Figure":
    """Where small networks converge and where they diverge, over two learning rates (or a learning rate and a scale).

    Args:
        *results: of sweeps of `vgjax.trainings`, each over two axes; a zoom is outlined in the picture before it.
        titles: above the panels.
        seed: whose border: it lies elsewhere for every draw.
    """
    figure = sheet(2.5 * len(results) + 0.3, 2.75)
    axes = figure.subplots(1, len(results), squeeze=False)[0]
    for i, (ax, result) in enumerate(zip(axes, results, strict=True)):
        draw_boundary(ax, result, seed=seed)
        ax.set_title(titles[i] if i < len(titles) else "")
        if i + 1 < len(results):
            outline(ax, results[i + 1])
    return figure


@kinds
def draw_boundary(ax: "matplotlib.axes.Axes", result: Result, *, seed: int = 0) -> Any:
    """Blue where the loss of one draw goes down, darker the sooner; red where it does not, darker the sooner it is
    lost.

    Args:
        ax: where.
        result: of a sweep of `vgjax.trainings` over two axes.
        seed: which draw.

    Raises:
        ValueError: another result, or no such seed.
    """
    from matplotlib.ticker import MaxNLocator

    converged = converged_of("draw_boundary", result, seed)
    (x_name, x), (y_name, y) = result.axes.items()
    shade = intensity(result.loss[seed], converged).T
    mesh = ax.pcolormesh(x, y, shade, cmap="RdBu", vmin=-1, vmax=1, shading="nearest", rasterized=True)
    for axis, values, set_scale in ((ax.xaxis, x, ax.set_xscale), (ax.yaxis, y, ax.set_yscale)):
        if values[0] > 0 and values[-1] / values[0] > 20:
            set_scale("log")
        else:
            axis.set_major_locator(MaxNLocator(4))
    ax.set(xlabel=label(x_name), ylabel=label(y_name))
    return mesh


def intensity(loss: np.ndarray, converged: np.ndarray) -> np.ndarray:
    """Between .15 and 1 where training converged and -.15 and -1 where it did not, by rank: the sum of the losses over
    the first one where it did, of their inverses where it did not.

    Args:
        loss: shape ``(*axes, num_steps)``.
        converged: shape ``axes``.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        relative = loss / loss[..., :1]
        slow = np.where(converged, relative.sum(-1), np.nan_to_num(1 / relative, nan=0.0, posinf=1e30).sum(-1))
    shade = np.zeros(converged.shape)
    for side, sign in ((converged, 1), (~converged, -1)):
        if side.any():
            rank = np.argsort(np.argsort(slow[side])) / max(1, side.sum() - 1)
            shade[side] = sign * (1 - 0.85 * rank)
    return shade


def outline(ax: "matplotlib.axes.Axes", inner: Result) -> None:
    """A frame around what another sweep covers; a cross where that is too small to be seen."""
    from matplotlib.patches import Rectangle

    x, y = inner.axes.values()
    ax.add_patch(Rectangle((x[0], y[0]), x[-1] - x[0], y[-1] - y[0], fill=False, edgecolor="k", linewidth=0.9))
    ax.plot(
        np.mean(x), np.mean(y), "o", markersize=11, markerfacecolor="none", markeredgecolor="k", markeredgewidth=0.7
    )
