"""At criticality two inputs become alike like 1/l^2 under ReLU and like 1/l under smooth activations, up to depths
that are a small share of the width."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from common import SMALL, render
from jax import Array

import vgjax as vg
from vgjax import plots, theory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIGMA_B = {"relu": 0.0, "tanh": 0.3, "gelu": 0.5}
LOOKS = {"relu": (plots.EXPLODING, "-", "o"), "tanh": (plots.VANISHING, "-", "s"), "gelu": ("#1b7837", "-", "^")}
NAMES = {"relu": "ReLU", "tanh": "tanh", "gelu": "GELU"}
DEPTH, MEASURED_DEPTH = (10**4, 20) if SMALL else (10**5, 200)
WIDTHS = {32: 2, 64: 2} if SMALL else {60: 48, 250: 12, 1000: 4}  # width -> draws
PAIRS = 8


@dataclass(frozen=True)
class Decay:
    """1 - c from layer 0 on for one activation at criticality, from orthogonal inputs at q*.

    Attributes:
        sigma_b: standard deviation of the biases.
        predicted: infinite width, shape ``(layers,)``.
        asymptote: its leading term, same shape (NaN at layer 0).
        formula: of the leading term.
        measured: width -> shape ``(draws, PAIRS, layers)``.
    """

    sigma_b: float
    predicted: np.ndarray
    asymptote: np.ndarray
    formula: str
    measured: dict[int, np.ndarray]


def compute() -> dict[str, Decay]:
    """Trajectories to 10^5 layers, and networks of 200 layers and three widths, 8 pairs of inputs each."""
    return {name: decay(name, sigma_b) for name, sigma_b in SIGMA_B.items()}


def decay(activation: str, sigma_b: float) -> Decay:
    """Theory and measurement for one activation at its critical sigma_w."""
    critical = theory.critical_sigma_w(activation, sigma_b)
    predicted = theory.trajectory(activation, critical.sigma_w, sigma_b, DEPTH, critical.q_star, 0.0).one_minus_c
    scales = vg.Scales(sigma_w=critical.sigma_w, sigma_b=sigma_b)

    def one(width: int, key: Array) -> np.ndarray:
        inputs_key, layers_key = jax.random.split(key)
        starts = pairs(inputs_key, PAIRS, width, critical.q_star, 0.0)
        return np.asarray(one_minus_c(layer(activation, width), scales, starts, layers_key, MEASURED_DEPTH))

    measured = {
        width: np.stack([one(width, key) for key in jax.random.split(jax.random.key(width), draws)])
        for width, draws in WIDTHS.items()
    }
    return Decay(sigma_b, predicted, *leading_term(activation, critical, np.arange(DEPTH + 1)), measured)


def leading_term(activation: str, critical: theory.Critical, layers: np.ndarray) -> tuple[np.ndarray, str]:
    """9 pi^2 / (2 l^2) for ReLU (1 - c bends like its 3/2th power), 2 / (sigma_w^2 q E phi''^2) / l for smooth phi."""
    phi = vg.activations.get(activation)
    with np.errstate(divide="ignore"):
        if phi.homogeneous:
            return 9 * np.pi**2 / 2 / layers**2.0, r"$9\pi^2/2l^2$"
        curvature = theory.expectation(squared_curvature(phi), critical.q_star)
        beta = 2 / (critical.sigma_w**2 * critical.q_star * curvature)
        return beta / layers, rf"$\beta/l,\ \beta$ = {beta:.3g}"


@functools.cache
def squared_curvature(phi: vg.Activation) -> Callable[[Array], Array]:
    """phi''^2, elementwise."""
    return lambda h: jax.jvp(phi.derivative, (h,), (jnp.ones_like(h),))[1] ** 2


# --- measuring ------------------------------------------------------------------------------------------------------


def layer(activation: str | vg.Activation, width: int) -> vg.Network:
    """One layer from state to state: the stem and the head of a network left away."""
    whole = vg.mlp(width=width, depth=1, activation=activation, inputs=width)
    return replace(whole, stem=None, head=None)


def pairs(key: Array, count: int, width: int, q: float, c: float) -> Array:
    """Random pairs of states of mean square q and correlation c, shape ``(count, 2, width)``."""
    first, other = vg.data.sphere(key, 2 * count, width).reshape(count, 2, width).swapaxes(0, 1)
    other = other - first * jnp.mean(first * other, axis=-1, keepdims=True)
    other = other / jnp.sqrt(jnp.mean(other**2, axis=-1, keepdims=True))
    return jnp.sqrt(q) * jnp.stack([first, c * first + jnp.sqrt(1 - c**2) * other], axis=1)


@functools.partial(jax.jit, static_argnums=(0, 4))
def one_minus_c(block: vg.Network, scales: vg.Scales, states: Array, key: Array, depth: int) -> Array:
    """1 - cosine of each pair in front of and behind ``depth`` freshly drawn layers, shape ``(pairs, depth + 1)``."""

    def step(states: Array, key: Array) -> tuple[Array, Array]:
        parameters = vg.init(key, block)
        through = jax.vmap(jax.vmap(lambda h: vg.forward(block, parameters, scales, h)))(states)
        return through, distance(through)

    _, behind = jax.lax.scan(step, states, jax.random.split(key, depth))
    return jnp.concatenate([distance(states)[None], behind]).T


def distance(states: Array) -> Array:
    """1 - cosine from the difference of the unit vectors, so that nothing cancels; (pairs, 2, width) -> (pairs,)."""
    unit = states / jnp.linalg.norm(states, axis=-1, keepdims=True)
    return jnp.sum((unit[:, 0] - unit[:, 1]) ** 2, axis=-1) / 2


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(decays: dict[str, Decay]) -> "Figure":
    """Left: theory, its asymptotes, and what was measured at the largest width. Right: measured over predicted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    for name, found in decays.items():
        draw_decay(left, name, found)
        draw_departure(right, name, found)
    widest = max(WIDTHS)
    left.plot([], [], "o", color="0.4", markersize=3, label=f"measured, width {widest}, {WIDTHS[widest]} draws")
    left.plot([], [], color="0.4", label="theory, infinite width")
    left.plot([], [], color="0.4", linestyle="--", linewidth=0.7, label="its leading term")
    left.set(xscale="log", yscale="log", xlim=(1, DEPTH), ylim=(1e-9, 2), xlabel=r"layer $l$", ylabel=r"$1 - c_l$")
    left.legend(loc="lower left")
    right.axhline(1, color="k", linewidth=0.8)
    right.set(xscale="log", yscale="log", xlabel="layer / width", ylabel=r"measured $1 - c_l$ over predicted")
    right.legend(loc="lower left", ncols=len(decays), columnspacing=0.8, handletextpad=0.3)
    return figure


def draw_decay(ax: "Axes", name: str, found: Decay) -> None:
    """Theory as a line with its leading term beside it, the mean over the widest draws as dots."""
    colour, style, marker = LOOKS[name]
    layers = np.arange(len(found.predicted))
    ax.plot(layers[1:], found.predicted[1:], color=colour, linestyle=style)
    ax.plot(layers[1:], found.asymptote[1:], color=colour, linestyle="--", linewidth=0.7)
    mean, _ = geometric(found.measured[max(found.measured)])
    at = evenly(len(mean), 14)
    ax.plot(at, mean[at], marker, color=colour, markersize=3.6, markeredgecolor="white", markeredgewidth=0.4)
    ax.text(layers[-1], found.predicted[-1], f" {NAMES[name]}\n {found.formula}", color=colour, va="center", fontsize=7)


def draw_departure(ax: "Axes", name: str, found: Decay) -> None:
    """Measured over predicted against layer / width, one marker size a width, bars of one standard error."""
    colour, _, marker = LOOKS[name]
    for size, (width, measured) in zip((2.2, 3.2, 4.6), found.measured.items(), strict=False):
        mean, error = geometric(measured / found.predicted[: measured.shape[-1]])
        at = evenly(len(mean), 9)
        ax.errorbar(
            at / width,
            mean[at],
            [mean[at] * (1 - np.exp(-error[at])), mean[at] * np.expm1(error[at])],
            fmt=marker,
            color=colour,
            markersize=size,
            elinewidth=0.6,
            markeredgecolor="white",
            markeredgewidth=0.3,
            label=f"{NAMES[name]}, {width}",
        )


def geometric(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Geometric mean over pairs and draws, and the standard error of its logarithm, from the spread of the draws."""
    logs = np.log(values).mean(axis=1)
    return np.exp(logs.mean(axis=0)), logs.std(axis=0, ddof=1) / np.sqrt(len(logs))


def evenly(count: int, points: int) -> np.ndarray:
    """Layers from 1 on, evenly spread on a logarithmic axis."""
    return np.unique(np.geomspace(1, count - 1, points).round().astype(int))


if __name__ == "__main__":
    render("correlation_decay", compute, draw)
