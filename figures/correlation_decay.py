"""At criticality two inputs become alike like 1/l^2 under ReLU and like 1/l under smooth activations, up to depths
that are a small share of the width."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from common import SMALL, pairs, render
from jax import Array

import vgjax as vg
from vgjax import plots, theory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIGMA_B = {"tanh": 0.3, "relu": 0.0} if SMALL else {"tanh": 0.3, "sin": 1.0, "relu": 0.0}
STYLES = {"tanh": (plots.VANISHING, "s"), "sin": ("#1b7837", "^"), "relu": (plots.EXPLODING, "o")}
DEPTH = 10**4 if SMALL else 10**5
DRAWS = {16: (2, 20), 64: (2, 20)} if SMALL else {60: (80, 90), 250: (32, 200), 1000: (12, 200)}  # and layers, by width
PAIRS = 8


@dataclass(frozen=True)
class Decay:
    """1 - c from layer 0 on for one activation at criticality, from orthogonal inputs at q*.

    Attributes:
        sigma_w, sigma_b: the scales.
        q: the fixed point.
        predicted: infinite width, shape ``(layers,)``.
        asymptote: its leading term, same shape (infinite at layer 0).
        formula: of the leading term.
    """

    sigma_w: float
    sigma_b: float
    q: float
    predicted: np.ndarray
    asymptote: np.ndarray
    formula: str


Measured = dict[int, dict[str, np.ndarray]]
"""Width -> activation -> 1 - c, shape ``(draws, PAIRS, layers)``."""


def compute() -> tuple[dict[str, Decay], Measured]:
    """Trajectories to 10^5 layers, and networks of three widths with up to 200 layers, 8 pairs of inputs each."""
    decays = {name: decay(name, sigma_b) for name, sigma_b in SIGMA_B.items()}
    return decays, {width: measure(decays, width, *draws) for width, draws in DRAWS.items()}


def decay(activation: str, sigma_b: float) -> Decay:
    """Theory for one activation at its critical sigma_w."""
    critical = theory.critical(activation, sigma_b)
    predicted = theory.propagate(activation, critical.sigma_w, sigma_b, DEPTH, critical.q_star, 0.0).one_minus_c
    leading = leading_term(activation, critical, np.arange(DEPTH + 1))
    return Decay(critical.sigma_w, sigma_b, critical.q_star, predicted, *leading)


def leading_term(activation: str, critical: theory.Critical, layers: np.ndarray) -> tuple[np.ndarray, str]:
    """9 pi^2 / (2 l^2) for ReLU, whose c map bends like (1 - c)^(3/2), and beta / l for smooth phi, with
    beta = 2 / (sigma_w^2 q E phi''^2)."""
    phi = vg.activations.get(activation)
    with np.errstate(divide="ignore"):
        if phi.homogeneous:
            return 9 * np.pi**2 / 2 / layers**2.0, r"$9\pi^2/2l^2$"
        beta = 2 / (critical.sigma_w**2 * critical.q_star * theory.expectation(squared_curvature(phi), critical.q_star))
        return beta / layers, rf"${beta:.2f}/l$"


@functools.cache
def squared_curvature(phi: vg.Activation) -> Callable[[Array], Array]:
    """phi''^2, elementwise."""
    return lambda h: jax.jvp(phi.derivative, (h,), (jnp.ones_like(h),))[1] ** 2


def measure(decays: dict[str, Decay], width: int, draws: int, depth: int) -> dict[str, np.ndarray]:
    """1 - c of every activation in the same draws, from pairs of orthogonal states at q*."""
    found = {}
    options: dict[str, Any] = {"measure": vg.correlations(stream=True), "leading": "example", "seeds": draws}
    for name, scales in decays.items():
        network = vg.mlp(width=width, depth=depth, activation=name, stem=False)
        x1, x2 = pairs(jax.random.key(0), width, [(scales.q, 1.0)], PAIRS)
        at = {"sigma_w": scales.sigma_w, "sigma_b": scales.sigma_b}
        found[name] = np.exp(vg.sweep(network, x1, x2, key=jax.random.key(width), **at, **options).log_one_minus_c)
    return found


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(data: tuple[dict[str, Decay], Measured]) -> "Figure":
    """Left: theory, its asymptotes, and what was measured at the largest width. Right: measured over predicted."""
    from matplotlib.figure import Figure

    decays, measured = data
    figure = Figure(figsize=(7.2, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    for name, found in decays.items():
        draw_decay(left, name, found)
        draw_dots(left, name, measured[max(measured)][name])
        for size, (width, by_name) in enumerate(measured.items()):
            draw_departure(right, name, found, width, by_name[name], 2 + 1.5 * size)
    widest = max(measured)
    left.plot([], [], "o", color="0.4", markersize=3.5, label=f"measured, width {widest}, {DRAWS[widest][0]} draws")
    left.plot([], [], color="0.4", label="theory, infinite width")
    leading = r"leading: $\beta/l$, $\beta = 2/(\sigma_w^2 q\, E \phi''^2)$"
    left.plot([], [], color="0.4", linestyle="--", linewidth=0.7, label=leading)
    left.set(xscale="log", yscale="log", xlim=(1, DEPTH), ylim=(DEPTH**-1.8, 2), xlabel="layer $l$")
    left.set_ylabel(r"$1 - c_l$, two inputs, $c_0 = 0$")
    left.legend(loc="lower left")
    for size, width in enumerate(measured):
        right.plot([], [], "o", color="0.4", markersize=2 + 1.5 * size, label=f"width {width}")
    right.axhline(1, color="k", linewidth=0.8)
    right.set(yscale="log", xlabel="layer $l$ / width", ylabel="measured $1 - c_l$ / theory, geometric mean")
    right.set_title("finite width: pairs meet sooner")
    right.text(1.5, 1.04, "infinite width", ha="right", va="bottom", fontsize=7.5)
    ticks = [2.0**-k for k in range(5)]
    right.set_yticks(ticks, [f"{tick:.3g}" for tick in ticks])
    right.minorticks_off()
    right.legend(loc="lower left", title="measured", alignment="left")
    return figure


def draw_decay(ax: "Axes", name: str, found: Decay) -> None:
    """Theory as a line, named at its end, with its leading term."""
    colour, _ = STYLES[name]
    layers = np.arange(1, len(found.predicted))
    ax.plot(layers, found.predicted[1:], color=colour)
    ax.plot(layers, found.asymptote[1:], color=colour, linestyle="--", linewidth=0.7)
    text = "ReLU" if name == "relu" else name
    shift = {"tanh": 1.8, "sin": 1 / 1.8}.get(name, 1.0)
    ax.text(
        layers[-1], found.predicted[-1] * shift, f" {text}: {found.formula}", color=colour, va="center", fontsize=7.5
    )


def draw_dots(ax: "Axes", name: str, measured: np.ndarray) -> None:
    """The mean over pairs and draws."""
    colour, marker = STYLES[name]
    at = np.unique(np.geomspace(1, measured.shape[-1] - 1, 14).round().astype(int))
    mean = measured.mean(axis=(0, 1))
    ax.plot(at, mean[at], marker, color=colour, markersize=3.8, markeredgecolor="white", markeredgewidth=0.4)


def draw_departure(ax: "Axes", name: str, found: Decay, width: int, measured: np.ndarray, size: float) -> None:
    """Measured over predicted against layer / width, geometric mean with bars of one standard error."""
    colour, marker = STYLES[name]
    depth = measured.shape[-1] - 1
    mean, error = log_mean(measured / found.predicted[: depth + 1])
    at = np.linspace(0, depth, 6).round().astype(int)[1:]
    ratio = np.exp(mean[at])
    bars = ratio * -np.expm1(-error[at]), ratio * np.expm1(error[at])
    dodge = 0.012 * ([*STYLES].index(name) - 1)
    ax.errorbar(
        at / width + dodge, ratio, bars, fmt=marker, color=colour, markersize=size, elinewidth=0.6, mew=0.3, mec="w"
    )


def log_mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the logarithm over pairs and draws, and its standard error from the spread of the draws."""
    logs = np.log(values).mean(axis=1)
    return logs.mean(axis=0), logs.std(axis=0, ddof=1) / np.sqrt(len(logs))


if __name__ == "__main__":
    render("correlation_decay", compute, draw)
