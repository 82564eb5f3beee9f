"""Figures: the phase map and the depth profile, in one paper style.

Axes-level functions take an ``ax`` and numbers and return what they drew; figure-level ones build the whole picture.
Nothing here knows JAX, and matplotlib is imported when something is drawn. Colours are safe for colour-blind readers,
and every distinction is also a line, a marker or a word.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from vgjax.results import Spectrum, Sweep, whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vgjax.comparison import Comparison
    from vgjax.theory import Band
    from vgjax.treatments import Remedies

P = ParamSpec("P")
R = TypeVar("R")

LN10 = float(np.log(10))

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,
    "figure.dpi": 100,
    "savefig.dpi": 250,
}
"""The paper style, as matplotlib rcParams; applied while a figure is drawn and saved, and to nothing else."""

VANISHING, CRITICAL, EXPLODING = "#2166ac", "#4d4d4d", "#b2182b"
THEORY = "#ffd92f"
NAMES = {"sigma_w": r"weight scale $\sigma_w$", "sigma_b": r"bias scale $\sigma_b$"}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing function in the paper style and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib as mpl

        with mpl.rc_context(STYLE):  # type: ignore[arg-type]
            return draw(*args, **kwargs)

    return wrapper


# --- the map --------------------------------------------------------------------------------------------------------


@styled
def phase_map(
    sweep: Sweep, *, at: float = 0.05, title: str | None = None, theory: "Comparison | None" = None
) -> "Figure":
    """Where gradients vanish and where they explode: the growth per layer over two scales, and the gain against depth
    along the first.

    Left: the factor by which a gradient's norm changes in a layer, past the transient (`Sweep.rate`), with the
        measured edge
    between vanishing and exploding. Right: the same gradient against depth at one value of the second scale, with the
    depth at which float32 stops reading it.

    Args:
        sweep: over two scales (or one: then only the right panel is drawn).
        at: value of the second scale for the right panel; the nearest on the grid is taken.
        title: above the left panel; the default names the activation and the network.
        theory: `vgjax.compare` of the sweep; draws the critical line over the measured edge.

    Raises:
        ValueError: a sweep over more than two scales, or with fewer than two values along one.
    """
    from matplotlib.figure import Figure

    names = [*sweep.axes]
    if len(names) > 2 or any(len(values) < 2 for values in sweep.axes.values()):
        shape = {name: len(values) for name, values in sweep.axes.items()}
        raise ValueError(f"a phase map needs one or two axes of at least 2 values, got {shape}")
    figure = Figure(figsize=(7.2, 3.15) if len(names) == 2 else (3.6, 3.15), layout="constrained")
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


def draw_rate(ax: "Axes", x: np.ndarray, y: np.ndarray, rate: np.ndarray, *, reach: float | None = None) -> Any:
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


def draw_critical_line(ax: "Axes", sigma_w: np.ndarray, sigma_b: np.ndarray) -> Any:
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


def name_edges(ax: "Axes", theory: Any) -> None:
    """A legend for the measured edge and, given its line, the one of theory."""
    from matplotlib.lines import Line2D

    measured = Line2D([], [], color="k", linewidth=1.3, label="edge, measured")
    theory.set_label("edge of chaos, theory")
    ax.legend(
        handles=[measured, theory], loc="lower right", frameon=True, framealpha=0.85, edgecolor="none", fontsize=6.5
    )


def name_phases(ax: "Axes", x: np.ndarray, y: np.ndarray, rate: np.ndarray) -> None:
    """The names of the two phases in the middle of each, if there is room for them; arguments as for `draw_rate`."""
    for mask, name in (((rate < 0), "ordered:\ngradients\nvanish"), (rate > 0, "chaotic:\ngradients\nexplode")):
        if mask.mean() > 0.1:
            column, row = _deepest_inside(mask)
            _text(ax, float(x[column]), float(y[row]), name)


def draw_gain_against_depth(ax: "Axes", x: np.ndarray, log_gain: np.ndarray, lost: np.ndarray) -> Any:
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


def along_first(sweep: Sweep, at: float) -> tuple[np.ndarray, np.ndarray, str]:
    """Mean log gain and naive float32 mask along the first axis, at the second's value nearest ``at``, named."""
    lost = sweep.lost("float32").mean(axis=0) > 0.5
    if len(sweep.axes) == 1:
        return sweep.mean_log_gain, lost, ""
    name, values = [*sweep.axes.items()][1]
    row = int(np.abs(values - at).argmin())
    return sweep.mean_log_gain[:, row], lost[:, row], f"along {label(name).split()[-1]} = {values[row]:.2g}"


# --- the profile ----------------------------------------------------------------------------------------------------


@styled
def depth_profile(
    flows: Mapping[str, Any], *, title: str | None = None, theory: Mapping[str, "Band"] | None = None
) -> "Figure":
    """ln gradient norm against layer, one curve a network, seeds as a band, with the plain float32 reading ending
    where it ends.

    Args:
        flows: name -> `GradientFlow` whose arrays have a leading axis of seeds (or none): ``log_gradient`` of shape
            ``(seeds, depth + 1)``, and ``naive["float32"]`` alike.
        title: above the axes.
        theory: name -> `vgjax.predicted_profile`, drawn as a dashed line between two thin ones, one standard deviation
            of a draw away.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 3.1), layout="constrained")
    ax = figure.subplots()
    colours = _by_growth({name: np.atleast_2d(flow.log_gradient) for name, flow in flows.items()})
    for name, flow in flows.items():
        naive = flow.naive.get("float32")
        draw_profile(
            ax, np.atleast_2d(flow.log_gradient), naive if naive is None else np.atleast_2d(naive), colours[name], name
        )
    for band in (theory or {}).values():
        draw_band(ax, band)
    ax.set(xlabel=r"layer $l$", ylabel=r"$\|\partial L / \partial h^l\|$", title=title or "")
    ax.margins(x=0.01)
    if theory:
        ax.plot([], [], **_BAND_LINE, label=r"theory $\pm$ 1 s.d. of a draw")
    if any("float32" in flow.naive for flow in flows.values()):
        ax.plot([], [], "o", color="0.3", markersize=2.6, label="what float32 reads of it")
        ax.plot([], [], "X", color="0.3", markersize=6, linestyle="", label="where float32 reads 0 or inf")
        ax.axhspan(*_float32_sums(), color="0.95", zorder=-2, linewidth=0)
    ax.set_yticks(powers_of_ten(*ax.get_ylim()))
    ax.yaxis.set_major_formatter(power_of_ten)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))  # the curves may be anywhere
    return figure


def draw_profile(ax: "Axes", log_gradient: np.ndarray, lost: np.ndarray | None, colour: str, name: str) -> None:
    """One curve: the mean over seeds as a line, their range as a band, the float32 reading as dots that end in a cross.

    Args:
        ax: where; the y axis is in natural logarithms.
        log_gradient: shape ``(seeds, layers)``; -inf (a true zero) is left out.
        lost: True where plain float32 reads 0 or inf, same shape, or None.
        colour, name: of the curve.
    """
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


def draw_band(ax: "Axes", band: "Band") -> None:
    """A predicted mean as a dashed line, one standard deviation to either side as thin ones; shapes ``(layers,)``."""
    layers = np.arange(len(band.mean))
    shown = np.where(np.isfinite(band.mean), band.mean, np.nan)
    ax.plot(layers, shown, **_BAND_LINE)
    for side in (-1, 1):
        ax.plot(layers, shown + side * band.deviation, color="k", linewidth=0.3)


# --- the spectrum ---------------------------------------------------------------------------------------------------


@styled
def remedies(*found: "Remedies") -> "Figure":
    """What remedies do: the gradient of the first layer against the last, and the first step it makes.

    Left: how much smaller (or larger) depth makes the gradient; beside the dots, how many layers float32 reads as 0 or
    inf. Right: the first step of gradient descent relative to the weights, of the first layer and of all parameters.
    Mean over the draws, with standard errors.

    Args:
        *found: results of `vgjax.remedies`, one row of panels each; the patient is on top.
    """
    from matplotlib.figure import Figure

    counts = [len(one.treatment) for one in found]
    figure = Figure(figsize=(7.2, 0.19 * sum(counts) + 0.75 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), 2, squeeze=False, gridspec_kw={"height_ratios": [n + 3 for n in counts]})
    for (left, right), one in zip(grid, found, strict=True):
        draw_ratios(left, one)
        draw_steps(right, one)
    grid[0, 1].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2, handletextpad=0.2)
    return figure


def draw_ratios(ax: "Axes", found: "Remedies") -> None:
    """First-layer over last-layer gradient of every treatment, the patient on top."""
    rows = np.arange(len(found.treatment))
    mean, error = _mean_and_error(found.log_ratio)
    growth = mean / found.depth  # a factor of 1.05 a layer is what 50 layers forgive
    colours = [VANISHING if g < -np.log(1.05) else EXPLODING if g > np.log(1.05) else CRITICAL for g in growth]
    ax.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    ax.hlines(rows, np.minimum(mean, 0), np.maximum(mean, 0), colors=colours, linewidth=1, alpha=0.45)
    ax.hlines(rows, mean - error, mean + error, colors=colours, linewidth=2.5)
    ax.scatter(mean, rows, c=colours, s=14, zorder=3)
    lost = found.lost.mean(axis=0).round().astype(int)
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
    _treatment_axis(ax, found)
    low, high = min(float(mean.min()), 0.0), max(float(mean.max()), 0.0)
    below, above = (0.06 + 0.17 * bool(np.any(lost[side] > 0)) for side in (mean < 0, mean >= 0))
    low, high = low - below * (high - low), high + above * (high - low)
    ax.set_xlim(low, high)
    ax.set_xticks(powers_of_ten(low, high))
    ax.xaxis.set_major_formatter(power_of_ten)
    ax.set_xlabel(r"gradient of the first layer / of the last", fontsize=7.5)


def draw_steps(ax: "Axes", found: "Remedies") -> None:
    """The first step of gradient descent relative to the weights, first layer and all parameters."""
    rows = np.arange(len(found.treatment))
    (first, first_error), (every, every_error) = (_mean_and_error(v) for v in (found.log_first_step, found.log_step))
    ax.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    ax.hlines(rows, first, every, colors="0.85", linewidth=1, zorder=0)
    ax.errorbar(every, rows, xerr=every_error, fmt="o", color=CRITICAL, ms=3, mfc="white", label="all parameters")
    ax.errorbar(first, rows, xerr=first_error, fmt="D", color="k", ms=2.8, label="first layer")
    _treatment_axis(ax, found)
    ax.set_yticklabels([])
    both = np.concatenate([first, every, [0.0]])
    room = 0.05 * float(np.ptp(both))
    ax.set_xlim(both.min() - room, both.max() + room)
    ax.set_xticks(powers_of_ten(both.min() - room, both.max() + room))
    ax.xaxis.set_major_formatter(power_of_ten)
    ax.set_xlabel("first step / weights", fontsize=7.5)


def _treatment_axis(ax: "Axes", found: "Remedies") -> None:
    ax.set_yticks(np.arange(len(found.treatment)), [str(name) for name in found.treatment])
    ax.set_ylim(len(found.treatment) - 0.5, -0.5)
    ax.get_yticklabels()[0].set_fontweight("bold")
    ax.tick_params(axis="y", length=0, labelsize=7)
    ax.axhline(0.5, color="0.8", linewidth=0.6)


def _mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Along the first axis: the mean and its standard error (0 for a single draw)."""
    spread = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros(values.shape[1:])
    return values.mean(axis=0), spread


@styled
def spectrum(found: Spectrum, *, title: str | None = None) -> "Figure":
    """Singular values of the Jacobian, largest first, one curve a depth; what is lost is told in the legend.

    Args:
        found: of `vgjax.log_singular_values`.
        title: above the axes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.1), layout="constrained")
    ax = figure.subplots()
    shades = mpl.colormaps["viridis_r"](np.linspace(0.1, 1, len(found.depths)))
    for depth, values, rank, colour in zip(found.depths, found.log_singular_values, found.rank, shades, strict=True):
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


# --- saving ---------------------------------------------------------------------------------------------------------


@styled
def save(figure: "Figure", path: str | Path, suffixes: Sequence[str] = (".png", ".pdf")) -> list[Path]:
    """Write a figure as PNG and PDF, each whole or not at all, the same bytes for the same figure.

    Args:
        figure: any matplotlib figure.
        path: without suffix.
        suffixes: the formats.

    Returns:
        The paths written.
    """
    stamps: dict[str, dict[str, None]] = {
        ".png": {"Software": None},
        ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    written = []
    for suffix in suffixes:
        target = Path(path).with_name(Path(path).name + suffix)
        with whole_file(target) as temporary:
            figure.savefig(temporary, format=suffix[1:], metadata=stamps.get(suffix))
        written.append(target)
    return written


# --- words, ticks, colours ------------------------------------------------------------------------------------------


def label(name: str) -> str:
    """A scale's name as it stands on an axis."""
    return NAMES.get(name, name.replace("_", " "))


def describe(sweep: Sweep) -> str:
    """Activation, width and depth of what was swept, as far as the sweep knows."""
    about = sweep.provenance
    parts = [str(about["activation"])] if about.get("activation") else []
    parts += [f"width {about['width']}"] if about.get("width") else []
    return ", ".join([*parts, f"{sweep.depth} layers", f"{sweep.seeds} draw{'s' if sweep.seeds > 1 else ''}"])


def factor(log: float, _: Any = None) -> str:
    """Tick text of a natural logarithm as a factor."""
    return f"×{np.exp(log):.2g}"


def power_of_ten(log: float, _: Any = None) -> str:
    """Tick text of a natural logarithm as a power of ten."""
    exponent = log / LN10
    return f"$10^{{{exponent:.0f}}}$" if abs(exponent - round(exponent)) < 1e-6 else f"$10^{{{exponent:.1f}}}$"


def powers_of_ten(low: float, high: float) -> np.ndarray:
    """About seven whole powers of ten within an interval of natural logarithms."""
    from matplotlib.ticker import MaxNLocator

    ticks = np.asarray(MaxNLocator(7, integer=True).tick_values(low / LN10, high / LN10)) * LN10
    return ticks[(ticks >= low) & (ticks <= high)]


def factor_ticks(reach: float) -> np.ndarray:
    """ln of round factors within +-reach, evenly enough spread."""
    ticks = [0.0]
    for round_factor in (1.01, 1.02, 1.05, 1.1, 1.2, 1.3, 1.5, 2, 2.5, 3, 4, 5, 7, 10, 20, 50, 100):
        if ticks[-1] + reach / 5 < np.log(round_factor) < reach:
            ticks.append(float(np.log(round_factor)))
    below = [0.0]
    for round_factor in (0.99, 0.98, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01):
        if below[-1] - reach / 5 > np.log(round_factor) > -reach:
            below.append(float(np.log(round_factor)))
    return np.array([*below[:0:-1], *ticks])


def colour_bar(figure: "Figure", ax: Any, mesh: Any, text: str, ticks: np.ndarray, format: Callable[..., str]) -> None:
    """A colour bar in the style of the figures; its pointed ends say that the colours go on beyond it."""
    bar = figure.colorbar(mesh, ax=ax, extend="both", ticks=ticks, format=format, pad=0.02)
    bar.set_label(text)
    bar.outline.set_linewidth(0.6)
    bar.minorticks_off()


def _mesh(ax: "Axes", x: np.ndarray, y: np.ndarray, values: np.ndarray, reach: float | None = None) -> Any:
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


def _text(ax: "Axes", x: float, y: float, text: str) -> None:
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2.2, foreground="white")]
    ax.text(x, y, text, ha="center", va="center", fontsize=7.5, path_effects=halo)


def _deepest_inside(mask: np.ndarray) -> tuple[int, int]:
    """The cell of a region farthest from its border, the frame counting as border."""
    distance = np.pad(mask, 1).astype(int)
    alive = distance.copy()
    while alive.any():
        alive = alive & np.roll(alive, 1, 0) & np.roll(alive, -1, 0) & np.roll(alive, 1, 1) & np.roll(alive, -1, 1)
        distance += alive
    column, row = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(column) - 1, int(row) - 1


def _by_growth(curves: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """From blue, for what vanishes most towards the first layer, to red, for what explodes most."""
    from matplotlib import colormaps

    growth = {name: float(np.nanmean(c[:, 0] - c[:, -1])) for name, c in curves.items()}
    order = sorted(growth, key=growth.__getitem__)
    few = {1: [CRITICAL], 2: [VANISHING, EXPLODING], 3: [VANISHING, CRITICAL, EXPLODING]}
    colours = few.get(len(order)) or list(colormaps["coolwarm"](np.linspace(0, 1, len(order))))
    return dict(zip(order, colours, strict=True))


def _float32_sums() -> tuple[float, float]:
    """ln of the norms whose sum of squares float32 holds."""
    return -126 / 2 * np.log(2), 128 / 2 * np.log(2)
