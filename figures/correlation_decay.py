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

SIGMA_B = {"tanh": 0.3, "relu": 0.0} if SMALL else {"tanh": 0.3, "sin": 1.0, "relu": 0.0}
LOOKS = {"tanh": (plots.VANISHING, "s"), "sin": ("#1b7837", "^"), "relu": (plots.EXPLODING, "o")}
DEPTH = 10**4 if SMALL else 10**5
DRAWS = {16: (2, 20), 64: (2, 20)} if SMALL else {60: (40, 90), 250: (12, 200), 1000: (4, 200)}  # and layers, by width
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


# --- measuring ------------------------------------------------------------------------------------------------------


def measure(decays: dict[str, Decay], width: int, draws: int, depth: int) -> dict[str, np.ndarray]:
    """1 - c of every activation in the same draws."""
    blocks = tuple(layer(name, width) for name in decays)
    scales = tuple(vg.Scales(sigma_w=d.sigma_w, sigma_b=d.sigma_b) for d in decays.values())
    found = []
    for key in jax.random.split(jax.random.key(width), draws):
        inputs, layers = jax.random.split(key)
        starts = tuple(pairs(inputs, PAIRS, width, d.q, 0.0) for d in decays.values())
        found.append(one_minus_c(blocks, scales, starts, layers, depth))
    return {name: np.stack(each) for name, each in zip(decays, zip(*found, strict=True), strict=True)}


def layer(activation: str | vg.Activation, width: int) -> vg.Network:
    """One layer from state to state: a network without its stem and its head."""
    whole = vg.mlp(width=width, depth=1, activation=activation, inputs=width)
    return replace(whole, stem=None, head=None)


def pairs(key: Array, count: int, width: int, q: float, c: float) -> Array:
    """Random pairs of states of mean square q and correlation c, shape ``(count, 2, width)``."""
    first, other = vg.data.sphere(key, 2 * count, width).reshape(2, count, width)
    other = other - first * jnp.mean(first * other, axis=-1, keepdims=True)
    other = other / jnp.sqrt(jnp.mean(other**2, axis=-1, keepdims=True))
    return jnp.sqrt(q) * jnp.stack([first, c * first + jnp.sqrt(1 - c**2) * other], axis=1)


@functools.partial(jax.jit, static_argnums=(0, 4))
def one_minus_c(
    blocks: tuple[vg.Network, ...], scales: tuple[vg.Scales, ...], states: tuple[Array, ...], key: Array, depth: int
) -> tuple[Array, ...]:
    """1 - cosine of each pair in front of and behind each of ``depth`` layers, shape ``(pairs, depth + 1)``.

    One a block: all blocks share the draws of every layer.
    """

    def step(states: tuple[Array, ...], key: Array) -> tuple[tuple[Array, ...], list[Array]]:
        drawn = vg.init(key, blocks[0])
        through = tuple(cross(replace(drawn, network=b), s, h) for b, s, h in zip(blocks, scales, states, strict=True))
        return through, [distance(h) for h in through]

    _, behind = jax.lax.scan(step, states, jax.random.split(key, depth))
    return tuple(jnp.concatenate([distance(h)[None], d]).T for h, d in zip(states, behind, strict=True))


def cross(parameters: vg.Parameters, scales: vg.Scales, states: Array) -> Array:
    """`vg.forward` of every state; shape ``(pairs, 2, width)`` in and out."""
    return jax.vmap(jax.vmap(lambda h: vg.forward(parameters.network, parameters, scales, h)))(states)


def distance(states: Array) -> Array:
    """1 - cosine from the difference of the unit vectors, so that nothing cancels; (pairs, 2, width) -> (pairs,)."""
    unit = states / jnp.linalg.norm(states, axis=-1, keepdims=True)
    return jnp.sum((unit[:, 0] - unit[:, 1]) ** 2, axis=-1) / 2


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
    colour, _ = LOOKS[name]
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
    colour, marker = LOOKS[name]
    at = np.unique(np.geomspace(1, measured.shape[-1] - 1, 14).round().astype(int))
    mean = measured.mean(axis=(0, 1))
    ax.plot(at, mean[at], marker, color=colour, markersize=3.8, markeredgecolor="white", markeredgewidth=0.4)


def draw_departure(ax: "Axes", name: str, found: Decay, width: int, measured: np.ndarray, size: float) -> None:
    """Measured over predicted against layer / width, geometric mean with bars of one standard error."""
    colour, marker = LOOKS[name]
    depth = measured.shape[-1] - 1
    mean, error = log_mean(measured / found.predicted[: depth + 1])
    at = np.linspace(0, depth, 6).round().astype(int)[1:]
    ratio = np.exp(mean[at])
    bars = ratio * -np.expm1(-error[at]), ratio * np.expm1(error[at])
    dodge = 0.012 * ([*LOOKS].index(name) - 1)
    ax.errorbar(
        at / width + dodge, ratio, bars, fmt=marker, color=colour, markersize=size, elinewidth=0.6, mew=0.3, mec="w"
    )


def log_mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the logarithm over pairs and draws, and its standard error from the spread of the draws."""
    logs = np.log(values).mean(axis=1)
    return logs.mean(axis=0), logs.std(axis=0, ddof=1) / np.sqrt(len(logs))


if __name__ == "__main__":
    render("correlation_decay", compute, draw)
