"""The paper style: fonts, colours, ticks, words, and how figures are saved."""

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from jaxtyping import Num

from vgjax.checks import AnyArray, finite, kinds, known, short
from vgjax.files import whole_file

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.cm
    import matplotlib.figure

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
NAMES = {
    "sigma_w": r"weight scale $\sigma_w$",
    "sigma_b": r"bias scale $\sigma_b$",
    "learning_rate_stem": "learning rate of the first layer",
    "learning_rate_blocks": "learning rate of the layers behind",
    "learning_rate_head": "learning rate of the last layer",
}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing function in the paper style and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib as mpl

        with mpl.rc_context(STYLE):  # type: ignore[arg-type]
            return draw(*args, **kwargs)

    return wrapper


def sheet(width: float, height: float) -> "matplotlib.figure.Figure":
    """An empty figure, in inches; the last line of a notebook's cell shows it, with nothing configured."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    # What IPython asks for; no subclass, so that a figure can still be pickled.
    figure._repr_png_ = functools.partial(_as_png, figure)  # type: ignore[attr-defined]
    return figure


@styled
def _as_png(figure: "matplotlib.figure.Figure") -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=144)
    return drawn.getvalue()


@kinds
@styled
def save(
    figure: "matplotlib.figure.Figure", path: str | Path, suffixes: Sequence[str] = (".png", ".pdf")
) -> list[Path]:
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
    for suffix in suffixes:
        known("suffixes", suffix, [f".{name}" for name in figure.canvas.get_supported_filetypes()])
    written = []
    for suffix in suffixes:
        target = Path(path).with_name(Path(path).name + suffix)
        with whole_file(target) as temporary:
            figure.savefig(temporary, format=suffix[1:], metadata=stamps.get(suffix))
        written.append(target)
    return written


@kinds
def label(name: str) -> str:
    """A scale's name as it stands on an axis."""
    return NAMES.get(name, name.replace("_", " "))


@kinds
def factor(log: float, _: Any = None) -> str:
    """Tick text of a natural logarithm as a factor."""
    with np.errstate(over="ignore"):
        return f"×{np.exp(float(log)):.2g}"


@kinds
def power_of_ten(log: float, _: Any = None) -> str:
    """Tick text of a natural logarithm as a power of ten."""
    finite("log", log)
    exponent = log / LN10
    return f"$10^{{{exponent:.0f}}}$" if abs(exponent - round(exponent)) < 1e-6 else f"$10^{{{exponent:.1f}}}$"


@kinds
def powers_of_ten(low: float, high: float) -> np.ndarray:
    """About seven whole powers of ten within an interval of natural logarithms."""
    from matplotlib.ticker import MaxNLocator

    ticks = np.asarray(MaxNLocator(7, integer=True).tick_values(low / LN10, high / LN10)) * LN10
    return ticks[(ticks >= low) & (ticks <= high)]


@kinds
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


@kinds
def colour_bar(
    figure: "matplotlib.figure.FigureBase",
    ax: Any,
    mesh: "matplotlib.cm.ScalarMappable",
    text: str,
    ticks: Num[AnyArray, " ticks"],
    format: Callable[..., str],
    extend: str = "both",
) -> None:
    """A colour bar in the style of the figures; pointed ends say that the colours go on beyond it."""
    import matplotlib.axes

    known("extend", extend, ("neither", "both", "min", "max"))
    axes = list(np.ravel(ax)) if isinstance(ax, (list, tuple, np.ndarray)) else [ax]
    if not axes or not all(isinstance(each, matplotlib.axes.Axes) for each in axes):
        raise ValueError(f"ax must be matplotlib Axes or a list of them, got {short(ax)}")
    bar = figure.colorbar(mesh, ax=ax, extend=extend, ticks=ticks, format=format, pad=0.02)
    bar.set_label(text)
    bar.outline.set_linewidth(0.6)
    bar.minorticks_off()


def text_on_map(ax: "matplotlib.axes.Axes", x: float, y: float, text: str) -> None:
    """Words that can be read on any colour."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2.2, foreground="white")]
    ax.text(x, y, text, ha="center", va="center", fontsize=7.5, path_effects=halo)
