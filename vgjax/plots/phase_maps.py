"""The phase map: growth of the gradient over two scales, and against depth."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Num

from vgjax.checks import AnyArray, kinds
from vgjax.comparison import Comparison
from vgjax.ensembles.result import Result, check_complete
from vgjax.plots.style import (
    THEORY,
    colour_bar,
    factor,
    factor_ticks,
    label,
    power_of_ten,
    powers_of_ten,
    sheet,
    styled,
    text_on_map,
)

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
    import matplotlib.lines


@kinds
@styled
def phase_map(
    sweep: Result, *, at: float = 0.05, title: str | None = None, theory: Comparison | None = None
) -> "matplotlib.figure.Figure":
    """Where gradients vanish and where they explode: the growth per layer over two scales, and the gain against depth
    along the first.

    Left: the factor by which a gradient's norm changes in a layer, past the transient (`Result.rate`), with the
    measured edge between vanishing and exploding. Right: the same gradient against depth at one value of the second
    scale, with the depth at which float32 stops reading it.

    Args:
        sweep: over two scales (or one: then only the right panel is drawn).
        at: value of the second scale for the right panel; the nearest on the grid is taken.
        title: above the left panel; the default names the activation and the network.
        theory: `vgjax.compare` of the sweep; draws the critical line over the measured edge.

    Raises:
        ValueError: a sweep over more than two scales, with fewer than two values along one, or with missing points.
    """
    check_complete("a phase map", sweep)
    if sweep.several:
        raise ValueError(f"a phase map is of one network, got {len(sweep.networks)}")
    names = [*sweep.axes]
    if len(names) > 2 or any(len(values) < 2 for values in sweep.axes.values()):
        shape = {name: len(values) for name, values in sweep.axes.items()}
        raise ValueError(f"a phase map needs one or two axes of at least 2 values, got {shape}")
    figure = sheet(7.2 if len(names) == 2 else 3.6, 3.15)
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    if len(names) == 2:
        x, y = sweep.axes.values()
        mesh = draw_rate(axes[0], x, y, sweep.rate())
        name_phases(axes[0], x, y, sweep.rate())
        if theory is not None and np.isfinite(theory.critical[0]).any():
            name_edges(axes[0], draw_critical_line(axes[0], *theory.critical))
        axes[0].set(xlabel=label(names[0]), ylabel=label(names[1]))
        reach = mesh.norm.halfrange
        colour_bar(figure, axes[0], mesh, "factor on the gradient norm, per layer", factor_ticks(reach), factor)
    mean, lost, where = along_first(sweep, at)
    mesh = draw_gain_against_depth(axes[-1], sweep.axes[names[0]], mean, lost)
    axes[-1].set(xlabel=label(names[0]), ylabel="layers crossed", title=where)
    axes[0].set_title(describe(sweep) if title is None else title)
    reach = mesh.norm.halfrange
    colour_bar(figure, axes[-1], mesh, "gradient norm behind those layers", powers_of_ten(-reach, reach), power_of_ten)
    return figure


@kinds
def draw_rate(
    ax: "matplotlib.axes.Axes",
    x: Num[AnyArray, " columns"],
    y: Num[AnyArray, " rows"],
    rate: Num[AnyArray, "columns rows"],
    *,
    reach: float | None = None,
) -> Any:
    """The growth per layer as colours centred on the edge between vanishing and exploding, which is drawn.

    Args:
        ax: where.
        x, y: values along the axes, shapes ``(columns,)`` and ``(rows,)``.
        rate: ln of the factor per layer, shape ``(columns, rows)``; -inf is a true zero and stays grey.
        reach: the colours run from -reach to reach; left out, chosen so that the edge stays clear.

    Returns:
        The mesh, for a colour bar.
    """
    finite = np.where(np.isfinite(rate), rate, np.nan)
    mesh = _mesh(ax, x, y, finite, reach)
    if np.nanmin(finite) < 0 < np.nanmax(finite):
        ax.contour(x, y, finite.T, levels=[0], colors="k", linewidths=1.3)
    return mesh


@kinds
def draw_critical_line(
    ax: "matplotlib.axes.Axes", sigma_w: Num[AnyArray, " points"], sigma_b: Num[AnyArray, " points"]
) -> Any:
    """The edge of chaos at infinite width over the measured one.

    Args:
        ax: where; its limits stay.
        sigma_w, sigma_b: along the line, shape ``(points,)``; NaN where there is none.

    Returns:
        The line.
    """
    from matplotlib.patheffects import withStroke

    limits = ax.get_xlim(), ax.get_ylim()
    halo = [withStroke(linewidth=2.4, foreground="k")]
    (line,) = ax.plot(sigma_w, sigma_b, color=THEORY, linestyle=(0, (4, 2)), linewidth=1.2, path_effects=halo)
    ax.set(xlim=limits[0], ylim=limits[1])
    return line


@kinds
def name_edges(ax: "matplotlib.axes.Axes", theory: "matplotlib.lines.Line2D") -> None:
    """A legend for the measured edge and, given its line, the one of theory."""
    from matplotlib.lines import Line2D

    measured = Line2D([], [], color="k", linewidth=1.3, label="edge, measured")
    theory.set_label("edge of chaos, theory")
    ax.legend(
        handles=[measured, theory], loc="lower right", frameon=True, framealpha=0.85, edgecolor="none", fontsize=6.5
    )


def name_phases(ax: "matplotlib.axes.Axes", x: np.ndarray, y: np.ndarray, rate: np.ndarray) -> None:
    """The names of the two phases in the middle of each, if there is room for them; arguments as for `draw_rate`."""
    for mask, name in (((rate < 0), "ordered:\ngradients\nvanish"), (rate > 0, "chaotic:\ngradients\nexplode")):
        if mask.mean() > 0.1:
            column, row = _deepest_inside(mask)
            text_on_map(ax, float(x[column]), float(y[row]), name)


@kinds
def draw_gain_against_depth(
    ax: "matplotlib.axes.Axes",
    x: Num[AnyArray, " columns"],
    log_gain: Num[AnyArray, "columns layers"],
    lost: Bool[AnyArray, "columns layers"],
) -> Any:
    """The gradient against depth as colours centred on 1, with the depths from which a plain float32 reading is 0 or
    not finite.

    Args:
        ax: where.
        x: values of the scale, shape ``(columns,)``.
        log_gain: ln of the gradient norm, shape ``(columns, depth + 1)``.
        lost: True where float32 does not read it, same shape.

    Returns:
        The mesh, for a colour bar.
    """
    depth = np.arange(log_gain.shape[1])
    mesh = _mesh(ax, x, depth, np.where(np.isfinite(log_gain), log_gain, np.nan))
    ever = lost.any(axis=1)
    first = np.where(ever, lost.argmax(axis=1), np.nan)
    for vanishing, style in ((True, "--"), (False, ":")):
        side = ever & ((log_gain[:, -1] < 0) == vanishing)
        if side.any():
            reading = "0" if vanishing else "inf or nan"
            ax.plot(
                x, np.where(side, first, np.nan), f"k{style}", linewidth=1.2, label=f"from here float32 reads {reading}"
            )
    if ever.any():
        ax.legend(loc="lower right", frameon=True, framealpha=0.85, edgecolor="none", fontsize=6.5, handlelength=1.8)
    ax.set_ylim(0, depth[-1])
    return mesh


def along_first(sweep: Result, at: float) -> tuple[np.ndarray, np.ndarray, str]:
    """Mean log gain and naive float32 mask along the first axis, at the second's value nearest ``at``, named."""
    lost, mean = sweep.naive_lost("float32").mean(axis=0) > 0.5, sweep.mean("log_gain")
    if len(sweep.axes) == 1:
        return mean, lost, ""
    name, values = [*sweep.axes.items()][1]
    row = int(np.abs(values - at).argmin())
    return mean[:, row], lost[:, row], f"along {label(name).split()[-1]} = {values[row]:.2g}"


@kinds
def describe(sweep: Result) -> str:
    """Activation, width and depth of what was swept, as far as the sweep knows."""
    networks = [network for network in sweep.networks.values() if network is not None]
    activation = networks[0].activation if len(networks) == 1 else None
    parts = [activation] if activation else []
    parts += [f"width {sweep.provenance['state_size']}"] if "state_size" in sweep.provenance else []
    return ", ".join([*parts, f"{sweep.depth} layers", f"{sweep.seeds} draw{'s' if sweep.seeds > 1 else ''}"])


def _mesh(ax: Any, x: Any, y: Any, values: np.ndarray, reach: float | None = None) -> Any:
    from matplotlib.colors import CenteredNorm

    reach = _reach(values) if reach is None else reach
    ax.set_facecolor("0.6")  # true zeros
    norm = CenteredNorm(0, reach)
    return ax.pcolormesh(x, y, values.T, cmap="RdBu_r", norm=norm, shading="nearest", rasterized=True)


def _reach(values: np.ndarray) -> float:
    """Where the colours end.

    The bar's ends say "or more", so that one side far beyond the other does not wash out the edge.
    """
    sides = [np.abs(side) for side in (values[values < 0], values[values > 0]) if side.size]
    return max(
        1e-6,
        min([2 * float(np.percentile(s, 98)) for s in sides] + [max((float(s.max()) for s in sides), default=1.0)]),
    )


def _deepest_inside(mask: np.ndarray) -> tuple[int, int]:
    """The cell of a region farthest from its border, the frame counting as border."""
    distance = np.pad(mask, 1).astype(int)
    alive = distance.copy()
    while alive.any():
        alive = alive & np.roll(alive, 1, 0) & np.roll(alive, -1, 0) & np.roll(alive, 1, 1) & np.roll(alive, -1, 1)
        distance += alive
    column, row = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(column) - 1, int(row) - 1
