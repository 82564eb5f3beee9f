"""Deep Kernel Shaping keeps two inputs of a deep network about as far apart as they were, and tailoring slows their
drift; plain activations send all pairs to one correlation."""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from common import SMALL, pairs, render
from scipy.interpolate import CubicSpline

import vgjax as vg
from vgjax import plots, theory
from vgjax.theory.shaping import Shaped, c_map, deep_kernel_shaping, local_slope, tailored_leaky_relu

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DEPTHS = (1, 5, 20) if SMALL else (1, 5, 15, 50)
WIDTH, DRAWS, PAIRS = (64, 1, 2) if SMALL else (1000, 4, 3)
STARTS = np.linspace(-0.9, 0.9, 7)
NODES = np.linspace(0, np.pi, 9 if SMALL else 41)  # arccos c, in which maps are smooth, kinks of phi or not
CURVE = np.cos(np.linspace(np.pi, 0, 201))
BLUE, GREEN, RED = (plots.VANISHING, (0, (5, 1.5))), ("#1b7837", (0, (3, 1, 1, 1))), (plots.EXPLODING, "-")
STYLES = (("0.6", "-"), BLUE, GREEN, RED)[-len(DEPTHS) :]


@dataclass(frozen=True)
class Maps:
    """C^l of one activation for every l of ``DEPTHS``.

    Attributes:
        name: above the panel.
        predicted: at the correlations of ``CURVE``, shape ``(depths, curve)``.
        measured: at those of ``STARTS``, mean over draws, shape ``(depths, starts)``.
        spread: standard deviation over draws and pairs, same shape.
    """

    name: str
    predicted: np.ndarray
    measured: np.ndarray
    spread: np.ndarray


def compute() -> list[Maps]:
    """Three activations as they are, at the sigma_w that keeps q = 1, then the same three shaped for 50 layers."""
    depth = DEPTHS[-1]
    slope, tailored = local_slope(depth), tailored_leaky_relu(depth)
    phis = {
        "tanh": vg.activations.get("tanh"),
        "softplus": vg.activations.get("softplus"),
        "ReLU": vg.activations.get("relu"),
        "tanh, Deep Kernel Shaping": deep_kernel_shaping("tanh", slope).activation,
        "softplus, Deep Kernel Shaping": deep_kernel_shaping("softplus", slope).activation,
        f"leaky ReLU ({slope_of(tailored):.2f}), tailored": tailored.activation,
    }
    sigma_w = {name: float(theory.expectation(squared(phi), 1.0) ** -0.5) for name, phi in phis.items()}
    measured = measure(phis, sigma_w)
    return [
        Maps(name, iterated(phi), found.mean(axis=(0, 2)).T, found.std(axis=(0, 2)).T)
        for (name, phi), found in zip(phis.items(), measured, strict=True)
    ]


def slope_of(shaped: Shaped) -> float:
    """The slope of a leaky ReLU on the left, as it stands in its name, whatever scales it."""
    return float(-shaped.base(jnp.float32(-1)))


@functools.cache
def squared(phi: vg.Activation) -> vg.activations.Elementwise:
    """phi^2."""
    return lambda h: phi(h) ** 2


def iterated(phi: vg.Activation) -> np.ndarray:
    """C^l for every l of ``DEPTHS``, interpolated between exact values of C; shape ``(depths, curve)``."""
    map_of_angle = CubicSpline(NODES, c_map(phi, np.cos(NODES)), bc_type=((1, 0.0), (2, 0.0)))
    c = [CURVE]
    for _ in range(DEPTHS[-1]):
        c.append(map_of_angle(np.arccos(np.clip(c[-1], -1, 1))))
    return np.stack(c)[list(DEPTHS)]


def measure(phis: dict[str, vg.Activation], sigma_w: dict[str, float]) -> np.ndarray:
    """Correlations behind the layers of ``DEPTHS``, shape ``(activations, draws, starts, pairs, depths)``; all
    activations in the same draws."""
    networks = {}
    for name, phi in phis.items():
        network = vg.mlp(width=WIDTH, depth=DEPTHS[-1], activation=phi, stem=False, bias_init="zero")
        networks[name] = vg.ensembles.Case(network, {"sigma_w": sigma_w[name]})
    x1, x2 = pairs(jax.random.key(1), WIDTH, [(1.0, 1 - c) for c in STARTS], PAIRS)
    options: dict[str, Any] = {"measure": vg.correlations(), "leading": "example", "seeds": DRAWS}
    found = vg.sweep(networks, x1, x2, key=jax.random.key(0), **options).correlation
    return found.reshape(len(networks), DRAWS, len(STARTS), PAIRS, -1)[..., list(DEPTHS)]


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(maps: list[Maps]) -> "Figure":
    """Above: as they are. Below: shaped."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 5.1), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for ax, found in zip(axes.flat, maps, strict=True):
        draw_maps(ax, found)
    for ax, word in zip(axes[:, 0], (r"plain, $\sigma_w$ such that $q$ = 1", r"shaped, $\sigma_w$ = 1"), strict=True):
        ax.set_ylabel(f"{word}\n" + r"correlation $c_l$ behind layer $l$")
    for ax in axes[1]:
        ax.set_xlabel("correlation $c_0$ of two inputs")
    axes[0, 0].legend(loc="upper left", alignment="left", borderaxespad=0.1)
    axes[0, 1].plot([], [], color="0.3", linewidth=1.2, label="theory")
    (dots,) = axes[0, 1].plot(
        [], [], "o", color="0.3", markersize=3, label=f"measured, width {WIDTH}\n(bars: 1 s.d. of a pair)"
    )
    axes[0, 1].legend(handles=[axes[0, 1].lines[-2], dots], loc="lower right")
    return figure


def draw_maps(ax: "Axes", found: Maps) -> None:
    """C^l as lines, one a depth; measured means as dots with bars of one standard deviation of a pair."""
    for depth, (colour, style), curve, mean, spread in zip(
        DEPTHS, STYLES, found.predicted, found.measured, found.spread, strict=True
    ):
        ax.plot(CURVE, curve, color=colour, linestyle=style, linewidth=1.2, label=f"$l$ = {depth}")
        ax.errorbar(STARTS, mean, spread, fmt="o", color=colour, markersize=3, elinewidth=0.6, mec="w", mew=0.4)
    ax.set(xlim=(-1, 1.02), ylim=(-1, 1.05), aspect="equal", title=found.name)


if __name__ == "__main__":
    render("shaping", compute, draw)
