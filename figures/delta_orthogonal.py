"""Delta-orthogonal kernels, orthogonal at the centre of the window and 0 elsewhere, make a deep convolutional network
nearly an isometry; Gaussian ones spread its singular values over decades (Xiao et al. 2018, "Dynamical isometry and a
mean field theory of CNNs", arXiv 1806.05393).

Theory is that of fully connected layers: under circular padding each spatial frequency meets a matrix of its own over
the channels, with the same law. One direction a pixel, the state itself, is no random one: it shrinks by the slope of
the q map in every layer, which theory of infinite width, where it is one of infinitely many, does not show.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from common import SMALL, render

import vgjax as vg
from vgjax import plots, theory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Q_STAR = 1 / 16
LENGTH, CHANNELS, WINDOW = (4, 8, 3) if SMALL else (8, 32, 3)  # of the Jacobians: rows of pixels
DEPTHS, JACOBIANS = ((1, 2, 4), 2) if SMALL else ((1, 2, 4, 8, 16, 32), 4)
GAIN_DEPTH, DRAWS = (10, 3) if SMALL else (200, 12)
LAWS = {"delta_orthogonal": (plots.VANISHING, "o", "-"), "gaussian": (plots.EXPLODING, "s", "--")}
NAMES = {"delta_orthogonal": "delta-orthogonal", "gaussian": "Gaussian"}


@dataclass(frozen=True)
class Law:
    """One law of the kernels, at criticality.

    Attributes:
        singular_values: ln of all of them at `DEPTHS`, shape ``(draws, depths, n)``.
        density: theory of the deepest.
        largest: theory of the ln of the largest at `DEPTHS`.
        log_gain: ln ||J u|| at every depth, shape ``(draws, layers)``.
    """

    singular_values: np.ndarray
    density: theory.free_probability.SpectralDensity
    largest: np.ndarray
    log_gain: np.ndarray


def compute() -> dict[str, Law]:
    """tanh networks on rows of 8 pixels with 32 channels."""
    return {law: of_law(law) for law in LAWS}


def of_law(law: str) -> Law:
    """All measurements of one law."""
    edge = theory.critical("tanh", q=Q_STAR)
    scales = vg.Scales(sigma_w=edge.sigma_w, sigma_b=edge.sigma_b)
    options: dict[str, Any] = {"key": jax.random.key(0), "scales": scales}
    size: dict[str, Any] = {"channels": CHANNELS, "kernel_size": WINDOW, "activation": "tanh", "kernel_init": law}
    row = {**size, "inputs": (LENGTH, CHANNELS)}
    x = np.sqrt((Q_STAR - edge.sigma_b**2) / edge.sigma_w**2) * jax.random.normal(jax.random.key(1), row["inputs"])
    spectra = vg.sweep(vg.cnn(depth=DEPTHS[-1], **row), x, measure=vg.spectra(DEPTHS), seeds=JACOBIANS, **options)
    gains = vg.sweep(vg.cnn(depth=GAIN_DEPTH, **row), x, measure=vg.gains(), seeds=DRAWS, **options)
    kernel_init = "orthogonal" if law == "delta_orthogonal" else law
    free = theory.free_probability
    density = free.spectral_density("tanh", Q_STAR, DEPTHS[-1], kernel_init=kernel_init)
    largest = [free.log_largest_singular_value("tanh", Q_STAR, depth, None, kernel_init) for depth in DEPTHS]
    values = spectra.log_singular_values.astype(float)
    return Law(values, density, np.array(largest), gains.log_gain.astype(float))


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(data: dict[str, Law]) -> "Figure":
    """Singular values of the deepest over theory; the largest against depth; what a direction gains."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    spectrum, largest, gain = figure.subplots(1, 3)
    for name, found in data.items():
        colour, marker, style = LAWS[name]
        draw_spectrum(spectrum, found, colour, marker, NAMES[name])
        draw_gain(gain, found, colour, marker)
        tops = 2 * found.singular_values.max(axis=-1)
        error = 2 * tops.std(axis=0, ddof=1) / np.sqrt(JACOBIANS)
        dots: dict[str, Any] = {"fmt": marker, "markersize": 4, "elinewidth": 0.7, "mec": "white", "mew": 0.4}
        largest.errorbar(DEPTHS, tops.mean(axis=0), error, color=colour, **dots)
        largest.plot(DEPTHS, 2 * found.largest, color=colour, linestyle=style, linewidth=1.1)
    ticks = np.log([1, 3, 10, 30, 100])
    largest.set_xscale("log", base=2)
    largest.set_xticks(DEPTHS, [str(depth) for depth in DEPTHS])
    largest.set_yticks(ticks, ["1", "3", "10", "30", "100"])
    largest.set(xlabel="layers", ylabel=r"largest $s^2$", title=f"{LENGTH} pixels, {CHANNELS} channels")
    along = DEPTHS[-1] * np.log(slope_along())
    spectrum.plot([along, along], [5e-3, 0.2], color=plots.VANISHING, linewidth=0.8, linestyle=":")
    text = f"along the state:\n1 of {CHANNELS}, $V'(q^*)^{{{DEPTHS[-1]}}}$"
    spectrum.text(along, 0.23, text, color=plots.VANISHING, fontsize=6.5, ha="center", va="bottom")
    return figure


def slope_along() -> float:
    """What a layer leaves of a perturbation along the state: the slope V' of the q map."""
    edge = theory.critical("tanh", q=Q_STAR)
    return float(edge.q_slope)


def draw_spectrum(ax: "Axes", found: Law, colour: str, marker: str, text: str) -> None:
    """Densities of ln s: measured as dots, theory as a line."""
    edges = np.linspace(-7, 3, 41)
    values = found.singular_values[:, -1]
    density = np.histogram(values, edges)[0] / values.size / np.diff(edges)
    some, middles = density > 0, (edges[1:] + edges[:-1]) / 2
    ax.plot(found.density.log_s, found.density.density_of_logs, color=colour, linewidth=1.1)
    ax.plot(middles[some], density[some], marker, color=colour, markersize=3.2, mec="white", mew=0.4, label=text)
    ticks = np.arange(-3, 2) * plots.style.LN10
    ax.set(yscale="log", ylim=(5e-3, 30), xlim=(-7, 3), xlabel="singular value $s$ of the Jacobian")
    ax.set_ylabel(r"density of $\ln s$")
    ax.set_xticks(ticks, [plots.power_of_ten(tick) for tick in ticks])
    ax.legend(loc="upper left", fontsize=7, handlelength=1)
    ax.set_title(f"{DEPTHS[-1]} layers; lines: theory")


def draw_gain(ax: "Axes", found: Law, colour: str, marker: str) -> None:
    """Every draw as a thin line, two standard deviations as a band, the mean as dots."""
    layers = np.arange(GAIN_DEPTH + 1)
    mean, spread = found.log_gain.mean(axis=0), found.log_gain.std(axis=0, ddof=1)
    ax.fill_between(layers, mean - 2 * spread, mean + 2 * spread, color=colour, alpha=0.2, linewidth=0)
    ax.plot(layers, found.log_gain.T, color=colour, linewidth=0.4, alpha=0.6)
    every = max(1, GAIN_DEPTH // 8)
    ax.plot(layers[::every], mean[::every], marker, color=colour, markersize=3.4, mec="white", mew=0.4)
    ax.axhline(0, color="k", linewidth=0.7, zorder=0)
    ax.set(xlabel="layer $l$", ylabel=r"$\|J_l u\| / \|u\|$", xlim=(0, GAIN_DEPTH))
    factors = (0.05, 0.1, 0.2, 0.5, 1, 2)
    ax.set_yticks(np.log(factors), [f"{factor:g}" for factor in factors])
    ax.set_title(f"{DRAWS} draws; black: theory")


if __name__ == "__main__":
    render("delta_orthogonal", compute, draw)
