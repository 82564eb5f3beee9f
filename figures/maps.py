"""Depth iterates two maps, of the variance and of the correlation: wide networks follow both, in every phase."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from common import SMALL, pairs, render

import vgjax as vg
from vgjax import plots, theory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACTIVATION, SIGMA_B = "tanh", 0.3
SHARES = {"ordered": 0.6, "critical": 1.0, "chaotic": 2.0}  # of the critical sigma_w
COLOURS = {"ordered": plots.VANISHING, "critical": plots.CRITICAL, "chaotic": plots.EXPLODING}
Q_STARTS, C_STARTS = (0.1, 1.9), (0.05, 0.95)  # of q*; as they are
WIDTH, DEPTH, DRAWS, POINTS = (64, 4, 1, 5) if SMALL else (1000, 12, 4, 41)


class Map(NamedTuple):
    """One map with its orbits.

    Attributes:
        curve: (before, after) in theory.
        fixed: where the orbits end.
        slope: of the map there.
        orbits: in theory, shape ``(starts, layers + 1)``.
        measured: shape ``(starts, draws, layers + 1)``.
    """

    curve: tuple[np.ndarray, np.ndarray]
    fixed: float
    slope: float
    orbits: np.ndarray
    measured: np.ndarray


class Phase(NamedTuple):
    """The q map, the c map at q*, chi and the weight scale."""

    q: Map
    c: Map
    chi: float
    sigma_w: float


def compute() -> dict[str, Phase]:
    """Pairs of states through 12 layers of networks of width 1000, 4 draws, at three weight scales."""
    sigma_w = np.array([*SHARES.values()]) * theory.critical(ACTIVATION, SIGMA_B).sigma_w
    field = theory.mean_field(ACTIVATION, sigma_w, SIGMA_B)
    return {name: phase(field, i) for i, name in enumerate(SHARES)}


def phase(field: theory.MeanField, i: int) -> Phase:
    """Both maps at the i-th weight scale, correlations followed at q*."""
    sigma_w, q_star = float(field.sigma_w[i]), float(field.q_star[i])

    def q_orbits(starts: np.ndarray, depth: int) -> np.ndarray:
        return theory.propagate(ACTIVATION, sigma_w, SIGMA_B, depth, q0=starts).q

    def c_orbits(starts: np.ndarray, depth: int) -> np.ndarray:
        return theory.propagate(ACTIVATION, sigma_w, SIGMA_B, depth, q0=q_star, c0=starts).c

    q_starts, c_starts = np.array(Q_STARTS) * q_star, np.array(C_STARTS)
    before_q, before_c = np.linspace(1e-3, 2, POINTS) * q_star, np.linspace(0, 1, POINTS)
    q, c = measured(sigma_w, [(start, 0.0) for start in q_starts] + [(q_star, start) for start in c_starts])
    q_map = Map(
        (before_q, q_orbits(before_q, 1)[:, 1]),
        q_star,
        float(field.q_slope[i]),
        q_orbits(q_starts, DEPTH),
        q[: len(q_starts)],
    )
    c_map = Map(
        (before_c, c_orbits(before_c, 1)[:, 1]),
        float(field.c_star[i]),
        float(field.c_slope[i]),
        c_orbits(c_starts, DEPTH),
        c[len(q_starts) :],
    )
    return Phase(q_map, c_map, float(field.chi[i]), sigma_w)


def measured(sigma_w: float, starts: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """q of the first of two states and the correlation of both at every layer, from each start (q, c); each of shape
    ``(starts, draws, depth + 1)``."""
    network = vg.mlp(width=WIDTH, depth=DEPTH, activation=ACTIVATION, stem=False)
    x1, x2 = pairs(jax.random.key(1), WIDTH, [(q, 1 - c) for q, c in starts])
    options: dict[str, Any] = {"measure": vg.correlations(), "leading": "example", "seeds": DRAWS}
    found = vg.sweep(network, x1, x2, key=jax.random.key(0), sigma_w=sigma_w, sigma_b=SIGMA_B, **options)
    return np.exp(found.log_mean_square[:, :, 0]).swapaxes(0, 1), found.correlation.swapaxes(0, 1)


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(phases: dict[str, Phase]) -> "Figure":
    """A column for each phase: q map above, c map below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 5.3), layout="constrained")
    axes = figure.subplots(2, len(phases))
    for (name, phase), (above, below) in zip(phases.items(), axes.T, strict=True):
        colour = COLOURS[name]
        draw_map(above, phase.q, colour, 2 * phase.q.fixed)
        draw_map(below, phase.c, colour, 1.0)
        above.set(xlabel=r"$q^l$", title=rf"{name}, $\sigma_w$ = {phase.sigma_w:.2f}")
        above.title.set_color(colour)
        note(above, rf"$q^*$ = {phase.q.fixed:.2f}", rf"slope there {phase.q.slope:.2f}")
        below.set(xlabel=r"$c^l$")
        at_one = rf"slope at 1 is $\chi$ = {phase.chi:.2f}"
        note(below, rf"$c^*$ = {phase.c.fixed:.2f}", *([at_one] if name != "chaotic" else [at_one, "(1 repels)"]))
        if name == "chaotic":
            below.plot(1, 1, "o", color=colour, markerfacecolor="white", markersize=6, clip_on=False, zorder=5)
    axes[0, 0].set_ylabel(r"variance of the next layer $q^{l+1}$")
    axes[1, 0].set_ylabel(r"correlation in the next layer $c^{l+1}$")
    figure.suptitle(rf"{ACTIVATION}, $\sigma_b$ = {SIGMA_B}", fontsize=8.5)
    figure.legend(handles=legend(), loc="outside lower center", ncols=4, handlelength=2)
    return figure


def draw_map(ax: "Axes", of: Map, colour: str, top: float) -> None:
    """The diagonal, the map, the cobwebs of its orbits, the measured pairs, the fixed point."""
    ax.plot([0, top], [0, top], **DIAGONAL)
    ax.plot(*of.curve, color=colour)
    for orbit in of.orbits:
        ax.plot(*cobweb(orbit), **WEB)
    for orbits in of.measured:
        ax.plot(orbits[:, :-1].ravel(), orbits[:, 1:].ravel(), **DOT)
    ax.plot(of.fixed, of.fixed, "o", color=colour, markeredgecolor="k", markersize=6, clip_on=False, zorder=5)
    ax.set(xlim=(0, top), ylim=(0, top), aspect="equal")


def cobweb(orbit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From the diagonal to the map, across to the diagonal, and so on."""
    x, y = np.repeat(orbit[:-1], 2), np.repeat(orbit[1:], 2)
    return np.append(x, orbit[-1]), np.append(orbit[0], y)


def note(ax: "Axes", *lines: str) -> None:
    """Words in the empty corner below the diagonal."""
    ax.text(0.98, 0.04, "\n".join(lines), transform=ax.transAxes, ha="right", va="bottom", fontsize=7)


DIAGONAL: dict[str, Any] = {"color": "0.6", "linewidth": 0.7, "linestyle": "--"}
WEB: dict[str, Any] = {"color": "k", "linewidth": 0.6}
DOT: dict[str, Any] = {
    "marker": "o",
    "color": plots.THEORY,
    "linestyle": "",
    "markersize": 3.4,
    "markeredgecolor": "k",
    "markeredgewidth": 0.4,
    "zorder": 4,
    "clip_on": False,
}


def legend() -> list[Any]:
    """What the lines and dots are."""
    from matplotlib.lines import Line2D

    what = f"measured, each of {DRAWS} draws (width {WIDTH})"
    return [
        Line2D([], [], color="0.3", label="the map, theory"),
        Line2D([], [], label="its orbit from two starts", **WEB),
        Line2D([], [], label="next layer = this layer", **DIAGONAL),
        Line2D([], [], label=what, **DOT),
    ]


if __name__ == "__main__":
    render("maps", compute, draw)
