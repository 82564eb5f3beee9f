"""The whole spectrum of 10,000 layers: a plain decomposition of the product loses it within the first tens of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from common import SMALL, render
from scipy.special import digamma

import vgjax as vg
from vgjax import plots, theory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 16 if SMALL else 64
DEPTHS = [10, 50, 200] if SMALL else [10, 100, 1000, 10_000]
FIRST, LATER = 120, 40  # every depth up to one, and so many behind it
RIGHT = 0.01  # nats: a singular value within 1%
Q_STAR = 0.25  # of the critical tanh network


@dataclass(frozen=True)
class Measured:
    """One network.

    Attributes:
        name: of its activation and kernels.
        depths: shape ``(depths,)``.
        log_s: ln of its singular values, descending, shape ``(depths, n)``.
        plain: the same as a plain decomposition of the product reads them.
        exponents: ln s / depth in the limit, shape ``(n,)``.
        limit: what that limit is from.
    """

    name: str
    depths: np.ndarray
    log_s: np.ndarray
    plain: np.ndarray
    exponents: np.ndarray
    limit: str

    def at(self, depth: int) -> int:
        """Where a depth is."""
        return int(np.flatnonzero(self.depths == depth)[0])

    @property
    def right(self) -> np.ndarray:
        """How many singular values the plain decomposition gets right, shape ``(depths,)``."""
        return (np.abs(self.plain - self.log_s) < RIGHT).sum(axis=1)


def compute() -> list[Measured]:
    """10,000 layers of width 64 in float64: linear ones with Gaussian kernels, critical tanh ones with orthogonal."""
    critical = theory.critical("tanh", q=Q_STAR)
    linear = measure("linear", "gaussian", vg.Scales(sigma_w=1.0, sigma_b=0.0), 1.0)
    tanh = measure("tanh", "orthogonal", vg.Scales(sigma_w=critical.sigma_w, sigma_b=critical.sigma_b), Q_STAR)
    return [linear, tanh]


def measure(activation: str, kernel_init: str, scales: vg.Scales, q: float) -> Measured:
    """A network whose first state has variance q."""
    network = vg.mlp(width=WIDTH, depth=DEPTHS[-1], activation=activation, inputs=WIDTH, kernel_init=kernel_init)
    parameters = vg.init(jax.random.key(1), network)
    root_mean_square = np.sqrt(q - float(scales.sigma_b) ** 2) / float(scales.sigma_w)
    x = root_mean_square * vg.data.sphere(jax.random.key(2), 1, WIDTH)[0]
    behind = np.geomspace(FIRST, DEPTHS[-1], LATER).astype(int)
    depths = sorted({*range(1, min(FIRST, DEPTHS[-1]) + 1), *behind.tolist(), *DEPTHS})
    spectrum = vg.log_singular_values(parameters, scales, x, depths, dtype="float64")
    if activation == "linear":
        exponents, limit = newman(WIDTH), "exact (Newman 1986)"
    else:
        exponents = vg.lyapunov_exponents(parameters, scales, x, dtype="float64").exponents
        limit = "Lyapunov exponents"
    plain = plain_log_singular_values(parameters, scales, x, depths)
    return Measured(activation, spectrum.depths, spectrum.log_singular_values, plain, exponents, limit)


def newman(n: int) -> np.ndarray:
    """Lyapunov exponents of products of Gaussian matrices of variance 1 / n, exactly.

    lambda_i = (ln(2 / n) + digamma((n - i + 1) / 2)) / 2.

    Source: Newman 1986, "The distribution of Lyapunov exponents: exact results for random matrices".
    """
    return (np.log(2 / n) + digamma(np.arange(n, 0, -1) / 2)) / 2


def plain_log_singular_values(
    parameters: vg.networks.Parameters, scales: vg.Scales, x: Any, depths: list[int]
) -> np.ndarray:
    """The product multiplied out in float64, with its norm taken out after every factor, and its decomposition."""
    arrays = jax.tree.map(lambda a: np.asarray(a, float), (parameters.stem, parameters.stages[0]))
    (stem, stage), sigma_w, sigma_b = arrays, float(scales.sigma_w), float(scales.sigma_b)
    h = sigma_w * np.asarray(x, float) @ stem["kernel"] + sigma_b * stem["bias"]
    linear = parameters.network.activation == "linear"
    product, log_norm, found = np.eye(WIDTH), 0.0, []
    for layer, (kernel, bias) in enumerate(zip(stage["kernel"], stage["bias"], strict=True), start=1):
        slope, a = (np.ones(WIDTH), 0 * h) if linear else (np.cosh(h) ** -2, np.tanh(h))
        h = sigma_w * a @ kernel + sigma_b * bias
        product = (sigma_w * slope[:, None] * kernel).T @ product
        norm = np.linalg.norm(product)
        product, log_norm = product / norm, log_norm + np.log(norm)
        if layer in depths:
            found.append(np.log(np.linalg.svd(product, compute_uv=False)) + log_norm)
    return np.stack(found)


# --- drawing --------------------------------------------------------------------------------------------------------

SHADES = ["#fdbb84", "#ef6548", "#b30000", "#5c0000"][-len(DEPTHS) :]  # of the depths
THIN: dict[str, Any] = {"color": "k", "linewidth": 0.7}
CIRCLE: dict[str, Any] = {"mfc": "white", "markersize": 2.8, "mew": 0.7, "zorder": 3}
OF = {"linear": plots.CRITICAL, "tanh": plots.VANISHING}
NAMES = {"linear": "linear, Gaussian kernels", "tanh": "critical tanh, orthogonal kernels"}


@plots.styled
def draw(networks: list[Measured]) -> "Figure":
    """Above, the spectra of both networks; below, how much of them a plain decomposition reads, and their limits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 5.2), layout="constrained")
    axes = figure.subplots(2, 2)
    for ax, network in zip(axes[0], networks, strict=True):
        draw_spectra(ax, network)
    draw_right(axes[1, 0], networks)
    draw_limits(axes[1, 1], networks)
    return figure


def draw_spectra(ax: "Axes", network: Measured) -> None:
    """ln(s_i / s_1) at each depth as a line, downwards on a logarithmic axis; circles are the plain reading, and where
    the limit is reached it is drawn."""
    index = np.arange(2, WIDTH + 1)
    for turn, (depth, colour) in enumerate(zip(DEPTHS, SHADES, strict=True)):
        log_s, plain = (values[network.at(depth)] for values in (network.log_s, network.plain))
        some = slice(turn, None, len(DEPTHS))  # in turns: most of them coincide
        ax.plot(index, log_s[0] - log_s[1:], color=colour, linewidth=2)
        ax.plot(index[some], (plain[0] - plain[1:])[some], "o", color=colour, **CIRCLE)
        if depth >= 10 * WIDTH:
            ax.plot(index, depth * (network.exponents[0] - network.exponents[1:]), **THIN)
        ax.text(WIDTH + 2.2, log_s[0] - log_s[-1], f"$L$ = {depth:,}", color=colour, va="center", fontsize=7)
    ax.plot([], [], color=SHADES[-1], linewidth=2, label="vgjax, float64")
    ax.plot([], [], "o", color=SHADES[-1], **CIRCLE, label="SVD of the product, float64")
    ax.plot([], [], **THIN, label=rf"$L(\lambda_i - \lambda_1)$, {network.limit}")
    ax.legend(loc="lower left", fontsize=6.5, handlelength=1.5, borderaxespad=0.1)
    ax.set(yscale="log", ylim=(1_500_000, 0.02), xlim=(0, WIDTH + 1), title=f"{NAMES[network.name]}, width {WIDTH}")
    ax.set(xlabel="index $i$", ylabel=r"$\ln(s_i / s_1)$, nats below the largest")
    ax.set_yticks(10.0 ** np.arange(-1, 5), ["−0.1", "−1", "−10", "−100", "−1,000", "−10,000"])
    ax.minorticks_off()
    ends = "circles end at ln 2$^{-52}$ ≈ −36,\nwith the digits of float64"
    ax.text(WIDTH, 0.025, ends if network.name == "linear" else "", fontsize=7, color="0.3", ha="right", va="top")


def draw_right(ax: "Axes", networks: list[Measured]) -> None:
    """Directions that the plain decomposition reads to 1%, against depth."""
    for network in networks:
        ax.plot(network.depths, network.right, color=OF[network.name], drawstyle="steps-post")
    ax.set(xscale="log", xlabel="depth $L$ (layers)", xlim=(1, DEPTHS[-1]), ylim=(0, 1.12 * WIDTH))
    ax.set(ylabel=f"singular values right to {RIGHT:.0%}", title=f"SVD of the product: how many of {WIDTH} are right")
    ax.text(0.09, 0.62, "linear,\nGaussian", color=OF["linear"], transform=ax.transAxes, fontsize=7)
    ax.text(0.72, 0.62, "critical tanh,\northogonal", color=OF["tanh"], transform=ax.transAxes, fontsize=7)


def draw_limits(ax: "Axes", networks: list[Measured]) -> None:
    """ln s_i / L from one layer on, over the limit."""
    place = (np.arange(WIDTH) + 0.5) / WIDTH
    shades = {1: "#fddbb0", **dict(zip(DEPTHS, SHADES, strict=True))}
    for depth in (1, *DEPTHS[:2], DEPTHS[-1]):
        for network in networks:
            ax.plot(place, network.log_s[network.at(depth)] / depth, color=shades[depth], linewidth=1.6)
        ax.plot([], [], color=shades[depth], linewidth=1.6, label=f"$L$ = {depth:,}")
    for network in networks:
        ax.plot(place, network.exponents, **THIN)
    ax.plot([], [], **THIN, label=r"$\lambda_i$")
    ax.text(0.97, 0.12, "critical tanh, orthogonal", fontsize=7, color=OF["tanh"], ha="right")
    ax.text(0.56, -0.85, "linear, Gaussian", fontsize=7, color=OF["linear"], ha="right")
    ax.set(xlabel="$i/n$", ylabel=r"$\ln s_i / L$, nats per layer", xlim=(0, 1), title="per layer: Lyapunov exponents")
    ax.legend(loc="lower left", fontsize=7, handlelength=1.5, borderaxespad=0.1)


if __name__ == "__main__":
    render("deep_spectrum", compute, draw)
