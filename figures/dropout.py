"""With dropout no point is critical: the correlation of two inputs settles within a finite depth at every sigma_w, and
below 1, even that of two copies of one input."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

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

ACTIVATION, VARIANCE_B = "tanh", 0.05
KEEP = (1.0, 0.99, 0.95, 0.9)
STYLES = dict(
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
    starts = np.clip([field.c_star - APART, field.c_star + APART], 0, 1)
    x = np.stack(pairs(jax.random.key(0), WIDTH, [(field.q_star, 1 - c) for c in starts], PAIRS), axis=1)
    scales = {"sigma_w": np.sqrt(level), "sigma_b": VARIANCE_B**0.5, "dropout": 1 - keep}
    c = vg.sweep(network(), x.reshape(-1, WIDTH), measure=COSINES, key=key, seeds=DRAWS, **scales)
    before, behind = (part.ravel().astype(float) for part in (c.cosine[:, :-1], c.cosine[:, 1:]))
    (slope, offset), covariance = np.polyfit(before, behind, 1, cov=True)
    xi_c, c_star = -1 / np.log(slope), offset / (1 - slope)
    to_c_star = np.array([c_star, 1]) / (1 - slope)
    return (xi_c, xi_c**2 / slope * covariance[0, 0] ** 0.5), (c_star, (to_c_star @ covariance @ to_c_star) ** 0.5)


def network() -> vg.Network:
    """All states of all pairs as one batch: they share the weights, and every one has noise of its own."""
    batch = (4 * PAIRS, WIDTH)
    layer = vg.dense(WIDTH, WIDTH, ACTIVATION, after=vg.blocks.spec(vg.blocks.Dropout, batch))
    return vg.stack(layer, depth=DEPTH, input_shape=batch)


def cosines(parameters: vg.networks.Parameters, scales: vg.Scales, x: Array) -> dict[str, Array]:
    """Mean cosine of the pairs at every layer, from two starts, shape ``(depth + 1, 2)``."""
    states = vg.states(parameters, scales, x).direction.reshape(DEPTH + 1, 2, PAIRS, 2, WIDTH)
    first, other = jnp.moveaxis(states / jnp.linalg.norm(states, axis=-1, keepdims=True), 3, 0)
    return {"cosine": jnp.sum(first * other, axis=-1).mean(axis=-1)}


COSINES = vg.measurement(cosines, {"cosine": ("layer", "start")})


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
    colour, style = STYLES[keep]
    ax.plot(CURVE, curve, color=colour, linestyle=style, label="all (no dropout)" if keep == 1 else f"{keep:.0%}")
    if measured is not None:
        ax.errorbar(DOTS, *measured, fmt="o", color=colour, markersize=4, mec="white", mew=0.5, elinewidth=0.8)


if __name__ == "__main__":
    render("dropout", compute, draw)
