"""With dropout no point is critical: the depth to which two inputs can be told apart stays finite at every sigma_w, and
even a network's two copies of one input come apart."""

from dataclasses import dataclass
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

ACTIVATION, VARIANCE_B = "tanh", 0.05
KEEP = (1.0, 0.99, 0.95, 0.9)
LOOKS = dict(
    zip(KEEP, [("k", "-"), (plots.VANISHING, "--"), ("#1b7837", "-."), (plots.EXPLODING, (0, (1, 1)))], strict=True)
)
CURVE = np.linspace(1, 4, 61 if SMALL else 601)  # sigma_w^2
DOTS = np.linspace(1.25, 3.75, 2 if SMALL else 6)
WIDTH, DEPTH, PAIRS, DRAWS = (64, 10, 4, 1) if SMALL else (1000, 24, 24, 2)
MEASURED = (0.99, 0.9)


@dataclass(frozen=True)
class Dropout:
    """Theory along sigma_w^2 and measured points for one share of kept units.

    Attributes:
        xi_c, c_star: shape of ``CURVE``.
        measured_xi_c, measured_c_star: shape of ``DOTS``; None if not measured.
    """

    xi_c: np.ndarray
    c_star: np.ndarray
    measured_xi_c: np.ndarray | None = None
    measured_c_star: np.ndarray | None = None


def compute() -> dict[float, Dropout]:
    """Curves for four shares of kept units, six measured points for two of them."""
    return {keep: dropout(keep) for keep in KEEP}


def dropout(keep: float) -> Dropout:
    """Theory, and measurement where it is asked for."""
    field = theory.mean_field_map(ACTIVATION, np.sqrt(CURVE), [np.sqrt(VARIANCE_B)], dropout=1 - keep)
    curves = field.xi_c[:, 0], field.c_star[:, 0]
    if keep not in MEASURED:
        return Dropout(*curves)
    points = [measure(level, keep, jax.random.key(i)) for i, level in enumerate(DOTS)]
    xi_c, c_star = np.array(points).T
    return Dropout(*curves, xi_c, c_star)


# --- measuring: two starts approach the same correlation, at the rate 1 / xi_c ---------------------------------------


def measure(level: float, keep: float, key: Array) -> tuple[float, float]:
    """xi_c and c* at one sigma_w^2: where the mean correlations of pairs that start orthogonal and of pairs that start
    equal meet, and the rate at which they approach each other in the layers before."""
    start = theory.mean_field(ACTIVATION, float(np.sqrt(level)), VARIANCE_B**0.5, dropout=1 - keep).q_star
    keys = jax.random.split(key, DRAWS)
    c = np.mean([correlations(jnp.float32(level), jnp.float32(keep), jnp.float32(start), k) for k in keys], axis=0)
    gap = c[1] - c[0]
    layers = np.arange(len(gap))
    told = (layers >= 2) & (np.cumsum(gap < 0.05) == 0)
    slope = np.polyfit(layers[told], np.log(gap[told]), 1)[0] if told.sum() > 2 else np.nan
    return -1 / slope, c[:, -3:].mean()


@jax.jit
def correlations(level: Array, keep: Array, q: Array, key: Array) -> Array:
    """Mean cosine of the pairs at every layer, from cosine 0 and from cosine 1, shape ``(2, DEPTH + 1)``.

    h' = W (mask phi(h) / keep) + b; all inputs share W and b, every one has its own masks.
    """
    phi = vg.activations.get(ACTIVATION)
    first, layers = jax.random.split(key)
    x = jnp.sqrt(q) * vg.data.sphere(first, 2 * PAIRS, WIDTH).reshape(PAIRS, 2, WIDTH)
    states = jnp.stack([x, jnp.repeat(x[:, :1], 2, axis=1)])

    def step(states: Array, key: Array) -> tuple[Array, Array]:
        of_weights, of_biases, of_masks = jax.random.split(key, 3)
        weights = jax.random.normal(of_weights, (WIDTH, WIDTH)) * jnp.sqrt(level / WIDTH)
        biases = jax.random.normal(of_biases, (WIDTH,)) * VARIANCE_B**0.5
        mask = jax.random.bernoulli(of_masks, keep, states.shape)
        after = (mask * phi(states) / keep) @ weights + biases
        return after, cosine(after)

    _, behind = jax.lax.scan(step, states, jax.random.split(layers, DEPTH))
    return jnp.concatenate([cosine(states)[None], behind]).T


def cosine(states: Array) -> Array:
    """Mean over the pairs; shape ``(2, PAIRS, 2, WIDTH)`` -> ``(2,)``."""
    unit = states / jnp.linalg.norm(states, axis=-1, keepdims=True)
    return jnp.mean(jnp.sum(unit[:, :, 0] * unit[:, :, 1], axis=-1), axis=-1)


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(found: dict[float, Dropout]) -> "Figure":
    """xi_c and c* against sigma_w^2, theory as lines, measured points over them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for keep, curves in found.items():
        draw_curve(left, keep, curves.xi_c, curves.measured_xi_c)
        draw_curve(right, keep, curves.c_star, curves.measured_c_star)
    edge = theory.critical_sigma_w(ACTIVATION, VARIANCE_B**0.5).sigma_w ** 2
    left.set(yscale="log", ylim=(0.6, 600), ylabel=r"depth scale $\xi_c$ of the correlation, in layers")
    left.annotate(
        "diverges only\nwithout dropout", (edge, 300), xytext=(18, -4), textcoords="offset points", fontsize=7.5
    )
    right.set(ylim=(0, 1.03), ylabel=r"correlation $c^*$ that two inputs approach")
    for ax in (left, right):
        ax.axvline(edge, color="0.6", linewidth=0.6, zorder=0)
        ax.set(xlim=(CURVE[0], CURVE[-1]), xlabel=r"weight variance $\sigma_w^2$")
    left.plot([], [], "o", color="0.4", markersize=3.5, label=f"measured, width {WIDTH}")
    left.legend(loc="lower right", title=rf"{ACTIVATION}, $\sigma_b^2$ = {VARIANCE_B}", alignment="left")
    return figure


def draw_curve(ax: "Axes", keep: float, curve: np.ndarray, measured: np.ndarray | None) -> None:
    """One share of kept units: its colour and line style, dots where it was measured."""
    colour, style = LOOKS[keep]
    ax.plot(CURVE, curve, color=colour, linestyle=style, label="no dropout" if keep == 1 else f"keep {keep}")
    if measured is not None:
        ax.plot(DOTS, measured, "o", color=colour, markersize=4, markeredgecolor="white", markeredgewidth=0.5)


if __name__ == "__main__":
    render("dropout", compute, draw)
