"""With dropout no point is critical: the correlation of two inputs settles within a finite depth at every sigma_w, and
below 1, even that of two copies of one input."""

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
APART = 0.15  # of two starting correlations, to either side of c*
WIDTH, DEPTH, PAIRS, DRAWS = (64, 10, 4, 1) if SMALL else (1000, 16, 24, 3)
MEASURED = (0.99, 0.9)


@dataclass(frozen=True)
class Dropout:
    """Theory along sigma_w^2 and measured points for one share of kept units.

    Attributes:
        xi_c, c_star: shape of ``CURVE``.
        measured_xi_c, measured_c_star: values and standard errors, shape ``(2, dots)``; None if not measured.
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
    field = theory.mean_field(ACTIVATION, np.sqrt(CURVE), np.sqrt(VARIANCE_B), dropout=1 - keep)
    curves = field.xi_c, field.c_star
    if keep not in MEASURED:
        return Dropout(*curves)
    points = [measure(level, keep, jax.random.key(i)) for i, level in enumerate(DOTS)]
    xi_c, c_star = np.array(points).transpose(1, 2, 0)
    return Dropout(*curves, xi_c, c_star)


# --- measuring: the line c -> c' through what single layers do to correlations on both sides of c* --------------------


def measure(level: float, keep: float, key: Array) -> tuple[tuple[float, float], tuple[float, float]]:
    """xi_c = -1 / ln(slope) and c* with standard errors, of a line through correlations before and behind a layer."""
    field = theory.mean_field(ACTIVATION, float(np.sqrt(level)), VARIANCE_B**0.5, dropout=1 - keep)
    starts = jnp.clip(jnp.array([field.c_star - APART, field.c_star + APART], jnp.float32), 0, 1)
    numbers = (jnp.float32(x) for x in (level, keep, field.q_star))
    c = jax.vmap(correlations, (None, None, None, None, 0))(*numbers, starts, jax.random.split(key, DRAWS))
    before, behind = np.asarray(c[..., :-1], float).ravel(), np.asarray(c[..., 1:], float).ravel()
    (slope, offset), covariance = np.polyfit(before, behind, 1, cov=True)
    xi_c, c_star = -1 / np.log(slope), offset / (1 - slope)
    to_c_star = np.array([c_star, 1]) / (1 - slope)
    return (xi_c, xi_c**2 / slope * covariance[0, 0] ** 0.5), (c_star, (to_c_star @ covariance @ to_c_star) ** 0.5)


@jax.jit
def correlations(level: Array, keep: Array, q: Array, starts: Array, key: Array) -> Array:
    """Mean cosine of the pairs at every layer, from two starting values, shape ``(2, DEPTH + 1)``.

    h' = W (mask phi(h) / keep) + b; all inputs share W and b, every one has its own masks.
    """
    phi = vg.activations.get(ACTIVATION)
    first, layers = jax.random.split(key)
    x = vg.data.sphere(first, 2 * PAIRS, WIDTH).reshape(2, PAIRS, WIDTH)
    tilted = [c * x[0] + jnp.sqrt(1 - c**2) * x[1] for c in starts]
    states = jnp.sqrt(q) * jnp.stack([jnp.stack([x[0], other], axis=1) for other in tilted])

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
    edge = theory.critical(ACTIVATION, VARIANCE_B**0.5).sigma_w ** 2
    left.set(yscale="log", ylim=(1, 500), ylabel=r"depth scale $\xi_c$ (layers)")
    left.text(edge + 0.1, 300, "diverges only without dropout", fontsize=7.5, va="center")
    right.set(ylim=(0, 1.03), ylabel=r"correlation $c^*$ that two inputs approach")
    for ax in (left, right):
        ax.axvline(edge, color="0.7", linewidth=0.6, zorder=0)
        ax.set(xlim=(CURVE[0], CURVE[-1]), xlabel=r"weight variance $\sigma_w^2$")
    left.yaxis.set_major_formatter("{x:g}")
    right.plot([], [], "o", color="0.4", markersize=3.5, label=f"measured, width {WIDTH}")
    right.legend(loc="upper right", title=rf"{ACTIVATION}, $\sigma_b^2$ = {VARIANCE_B}; units kept:", alignment="left")
    return figure


def draw_curve(ax: "Axes", keep: float, curve: np.ndarray, measured: np.ndarray | None) -> None:
    """One share of kept units: its colour and line style, dots with bars of one standard error where measured."""
    colour, style = LOOKS[keep]
    ax.plot(CURVE, curve, color=colour, linestyle=style, label="all (no dropout)" if keep == 1 else f"{keep:.0%}")
    if measured is not None:
        ax.errorbar(DOTS, *measured, fmt="o", color=colour, markersize=4, mec="white", mew=0.5, elinewidth=0.8)


if __name__ == "__main__":
    render("dropout", compute, draw)
