"""A recurrent tanh network is a deep one that shares its weights: its Lyapunov spectrum, from order into chaos."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from common import SMALL, render, seed_key

import vgjax as vg
from vgjax import plots, theory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEPS, TRANSIENT = (150, 50) if SMALL else (1000, 250)
NARROW, WIDE = (16, 32) if SMALL else (64, 256)
DRAWS = 2 if SMALL else 6
KEY = jax.random.key(0)
GAINS = [0.7, 1.0, 2.0, 4.0]  # of the spectra
EVERY = [0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 1.5, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0]  # of the largest exponent
SEVERAL = [0.7, 1.0, 1.2, 1.4, 1.5, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0]  # of the dimension in the wide network


@dataclass(frozen=True)
class Exponents:
    """Lyapunov exponents of networks of one size.

    Attributes:
        size: n.
        gains: g, shape ``(gains,)``.
        values: descending, shape ``(gains, draws, count)``.
        errors: their standard errors over time, same shape.
    """

    size: int
    gains: np.ndarray
    values: np.ndarray
    errors: np.ndarray

    def at(self, gain: float) -> np.ndarray:
        """The spectra of all draws at one gain, shape ``(draws, count)``."""
        return self.values[int(np.abs(self.gains - gain).argmin())]

    @property
    def dimension(self) -> np.ndarray:
        """Kaplan and Yorke's of the attractor, shape ``(gains, draws)``: how many exponents, the next one in part, sum
        to 0."""
        sums = np.cumsum(self.values, axis=-1)
        whole = (sums >= 0).cumprod(axis=-1).sum(axis=-1)
        left = np.take_along_axis(sums, np.maximum(whole - 1, 0)[..., None], axis=-1)[..., 0]
        following = np.take_along_axis(self.values, whole[..., None], axis=-1)[..., 0]
        return whole + np.where(whole > 0, left / np.abs(following), 0)

    @property
    def positive(self) -> np.ndarray:
        """How many exponents are above 0 by two standard errors, shape ``(gains, draws)``."""
        return (self.values > 2 * self.errors).sum(axis=-1)


@dataclass(frozen=True)
class Data:
    """Measured exponents and what they should be.

    Attributes:
        narrow: all exponents of several draws.
        wide: all exponents of one draw.
        largest: the largest exponent of several draws of the wide network.
        log_moduli: ln of the moduli of the eigenvalues of J, of the draw in ``wide``, descending.
        fine, mean_field: gains, and the largest exponent of an infinite network there.
    """

    narrow: Exponents
    wide: Exponents
    largest: Exponents
    log_moduli: np.ndarray
    fine: np.ndarray
    mean_field: np.ndarray


def compute() -> Data:
    """Networks of 64 and 256 units, 6 draws, 750 steps behind a transient of 250."""
    fine = np.unique(np.concatenate([np.linspace(EVERY[0], EVERY[-1], 141), [1.0]]))
    return Data(
        exponents(NARROW, EVERY),
        exponents(WIDE, GAINS if SMALL else SEVERAL, draws=1),
        exponents(WIDE, EVERY, count=1),
        log_moduli(WIDE, seed=0),
        fine,
        theory.recurrent.maximal_lyapunov("tanh", fine).exponent,
    )


def exponents(size: int, gains: Sequence[float], draws: int = DRAWS, count: int | None = None) -> Exponents:
    """The exponents of each draw of J at each gain, or the largest ``count`` of them.

    In float64 where all are wanted: float32 ends e^-16 below the largest, where saturated units leave less.
    """
    x = jax.random.normal(jax.random.key(1), (size,))
    measure = vg.lyapunov(count, discard=TRANSIENT, dtype="float64" if count is None else "float32")
    swept = vg.sweep(recurring(size), x, measure=measure, key=KEY, seeds=draws, sigma_w=gains)
    # A running QR decomposition orders exponents only as far as they have converged.
    order = np.argsort(-swept.exponents, axis=-1)
    stretches = np.take_along_axis(swept.log_stretch, order[:, :, None], axis=-1).swapaxes(0, 1)
    found = [[vg.measure.Lyapunov(stretch, TRANSIENT) for stretch in of_gain] for of_gain in stretches]
    values, errors = (
        [[getattr(one, name) for one in row] for row in found] for name in ("exponents", "standard_error")
    )
    return Exponents(size, np.array(gains), np.array(values), np.array(errors))


def recurring(size: int) -> vg.Network:
    """h <- sigma_w J tanh(h), one J for all layers."""
    return vg.networks.tied(vg.mlp(width=size, depth=STEPS, activation="tanh", inputs=size, bias_init="zero"))


def log_moduli(size: int, seed: int) -> np.ndarray:
    """ln of the moduli of the eigenvalues of J, descending."""
    (stage,) = vg.init(seed_key(KEY, seed), recurring(size)).stages
    return np.sort(np.log(np.abs(np.linalg.eigvals(np.asarray(stage["kernel"], float)))))[::-1]


# --- drawing --------------------------------------------------------------------------------------------------------

COLOURS = dict(zip(GAINS, [plots.VANISHING, plots.CRITICAL, "#ef8a62", plots.EXPLODING], strict=True))
LABELS = {0.7: (0.2, -0.85), 1.0: (0.66, -0.22), 2.0: (0.83, -2.6), 4.0: (0.42, -2.2)}  # right ends
THIN: dict[str, Any] = {"color": "k", "linewidth": 0.7}
FAINT: dict[str, Any] = {"color": "0.8", "linewidth": 0.7, "zorder": 0}
DOT: dict[str, Any] = {"markersize": 3, "markeredgewidth": 0.7, "elinewidth": 0.7}
FILLS = ("white", "0.3")  # narrow, wide


@plots.styled
def draw(data: Data) -> "Figure":
    """The spectra; the largest exponent and the dimension of the attractor against the gain."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    spectra, largest, dimension = figure.subplots(1, 3, width_ratios=(1.2, 1.1, 1))
    draw_spectra(spectra, data)
    draw_largest(largest, data)
    draw_dimension(dimension, data)
    return figure


def draw_spectra(ax: "Axes", data: Data) -> None:
    """Exponents in order: the wide network as lines, the mean of the narrow ones as dots; where activity dies or just
    lives, what the eigenvalues of J say."""
    wide, narrow = place(data.wide.size), place(data.narrow.size)
    ax.axhline(0, **FAINT)
    for gain, colour in COLOURS.items():
        ax.plot(wide, data.wide.at(gain)[0], color=colour, linewidth=2)
        if gain >= 1:
            mean = data.narrow.at(gain).mean(axis=0)
            ax.plot(narrow[::3], mean[::3], "o", color=colour, mfc="white", markersize=2.6, mew=0.7)
        ax.text(*LABELS[gain], f"$g$ = {gain:g}", color=colour, fontsize=7, ha="right")
    dots: dict[str, Any] = {"marker": "o", "linestyle": "", "color": "k", "markersize": 1.6}
    eigenvalues = np.log(GAINS[0]) + data.log_moduli
    ax.plot(wide[4::12], eigenvalues[4::12], **dots, label=r"$\ln|\mathrm{eig}(gJ)|$")
    ax.plot(wide, np.log(GAINS[0]) + np.log1p(-wide) / 2, **THIN, label="circular law")
    ax.plot([], [], color="0.3", linewidth=2, label=f"$n$ = {data.wide.size}")
    ax.plot([], [], "o", color="0.3", mfc="white", markersize=2.6, label=f"$n$ = {data.narrow.size}, mean of {DRAWS}")
    ax.legend(loc="lower left", fontsize=6.5, handlelength=1.6, borderaxespad=0.1)
    ax.set(xlabel="$i/n$", ylabel=r"Lyapunov exponent $\lambda_i$ (nats per step)", xlim=(0, 1), ylim=(-5, 0.6))
    ax.set_title(r"$h \leftarrow g\,J \tanh(h)$, one $J$ for all steps")


def draw_largest(ax: "Axes", data: Data) -> None:
    """Mean over draws with one standard deviation, over the line of infinite width; below, the distance from it."""
    ax.axhline(0, **FAINT)
    ax.axvline(1, **FAINT)
    below = ax.inset_axes((0.52, 0.12, 0.48, 0.34))
    below.axhline(0, **THIN)
    for found, fill, aside in zip((data.narrow, data.largest), FILLS, (-0.03, 0.03), strict=True):
        values = found.values[..., 0]
        mean, spread = values.mean(axis=1), values.std(axis=1, ddof=1)
        style = {"fmt": "o", "color": "0.3", "mfc": fill, **DOT}
        ax.errorbar(found.gains, mean, spread, **style, label=f"$n$ = {found.size}")
        above = found.gains > 1
        excess = mean - np.interp(found.gains, data.fine, data.mean_field)
        below.errorbar(found.gains[above] + aside, excess[above], spread[above], **style)
    ax.plot(data.fine, data.mean_field, **THIN, label="$n = \\infty$: mean field")
    ax.legend(loc="upper left", fontsize=7, handlelength=1.4, borderaxespad=0.1)
    ax.set(xlabel="gain $g$", ylabel=r"largest exponent $\lambda_1$", xlim=(0.4, 4.1))
    ax.set_title(rf"{DRAWS} draws of $J$, $\pm$ 1 s.d.")
    below.set(xlim=(1, 4.2), ylim=(-0.085, 0.025), xticks=[1, 2, 3, 4], yticks=[-0.05, 0])
    below.tick_params(labelsize=6)
    below.set_title(r"$\lambda_1$ $-$ mean field", fontsize=6.5, pad=2)


def draw_dimension(ax: "Axes", data: Data) -> None:
    """As a share of n, with the share of the directions that grow; bars as before, where there are several draws."""
    for found, fill in zip((data.narrow, data.wide), (False, True), strict=True):
        kinds = (found.dimension, plots.EXPLODING, -0.02), (found.positive, plots.VANISHING, 0.02)
        for values, colour, aside in kinds:
            share = values / found.size
            spread = share.std(axis=1, ddof=1) if share.shape[1] > 1 else None
            style = {"fmt": "o-", "color": colour, "mfc": colour if fill else "white", "linewidth": 0.5, **DOT}
            ax.errorbar(found.gains + aside, share.mean(axis=1), spread, **style)
    ax.axvline(1, **FAINT)
    sizes = f"open: $n$ = {data.narrow.size}, {DRAWS} draws\nfilled: $n$ = {data.wide.size}, 1 draw"
    ax.text(4.1, 0.41, sizes, color="0.3", ha="right", va="top", fontsize=7)
    ax.text(4.1, 0.3, "attractor's dimension\n(Kaplan, Yorke)", color=plots.EXPLODING, ha="right", fontsize=7)
    ax.text(4.1, 0.165, r"exponents $\lambda_i$ > 0", color=plots.VANISHING, ha="right", fontsize=7)
    ax.set(xlabel="gain $g$", ylabel="share of $n$", xlim=(0.4, 4.1), ylim=(0, 0.42))
    ax.set_title("the attractor")


def place(size: int) -> np.ndarray:
    """Of the exponents in order, from 0 to 1."""
    return (np.arange(size) + 0.5) / size


if __name__ == "__main__":
    render("lyapunov", compute, draw)
