"""The loss of a recurrent unit after 50 steps has a cliff in its parameters, where its start lies between two basins:
gradients explode there, and gradient descent is thrown far away unless they are clipped (Pascanu et al. 2013, "On the
difficulty of training recurrent neural networks", arXiv 1211.5063)."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import SMALL, render
from jax import Array

import vgjax as vg
from vgjax import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEPS, START, TARGET = 50, 0.5, 0.7  # Pascanu's figure 6: x' = w sigmoid(x) + b, loss (sigmoid(x_50) - 0.7)^2
W, B = (4.0, 5.8), (-3.1, -1.8)  # of the map
GRID, POINTS = (60, 9) if SMALL else (300, 19)
FROM, RATE, UPDATES, LARGEST = (5.2, -2.5), 0.5, 60, 0.5  # descents: from (w, b); the gradient's norm when clipped
LOOKS = {"plain": (plots.EXPLODING, "o"), "clipped": (plots.VANISHING, "s")}
SIGMOID = vg.activations.get("sigmoid")


class Descent(NamedTuple):
    """Gradient descent from one start: (w, b), the loss and the gradient's norm, a row or a number an update."""

    path: np.ndarray
    loss: np.ndarray
    norm: np.ndarray


class Surface(NamedTuple):
    """The loss and its gradient's norm over (w, b), along the cliff, and two descents.

    Attributes:
        w, b: of the map.
        norm: of the gradient there, shape ``(b, w)``.
        sheet: w, b and the loss, on lines that run along the cliff, shape ``(3, lines, w)``.
        cliff: w and b of points on the cliff, with the measured norm, shape ``(3, points)``.
        descents: by name.
    """

    w: np.ndarray
    b: np.ndarray
    norm: np.ndarray
    sheet: np.ndarray
    cliff: np.ndarray
    descents: dict[str, Descent]


def compute() -> Surface:
    """In float64, since on the cliff rounding grows as gradients do."""
    w, b, along = np.linspace(*W, GRID), np.linspace(*B, GRID), np.linspace(*W, POINTS)
    with jax.enable_x64(True):
        loss_and_gradient = jax.jit(jax.vmap(jax.value_and_grad(loss_of)))
        on_map = loss_and_gradient(jnp.stack(jnp.meshgrid(w, b), axis=-1).reshape(-1, 2))
        sheet_at = sheet_points()
        on_sheet = loss_and_gradient(sheet_at.reshape(2, -1).T)
        on_cliff = loss_and_gradient(jnp.stack([along, cliff(along)], axis=-1))
        descents = {"plain": descent(np.inf), "clipped": descent(LARGEST)}
    norm = np.linalg.norm(on_map[1], axis=-1).reshape(GRID, GRID)
    sheet = np.concatenate([sheet_at, np.reshape(on_sheet[0], (1, *sheet_at.shape[1:]))])
    points = np.stack([along, cliff(along), np.linalg.norm(on_cliff[1], axis=-1)])
    return Surface(w, b, norm, sheet, points, descents)


def loss_of(parameters: Array) -> Array:
    """(sigmoid(x_T) - target)^2, parameters (w, b)."""
    w, b = parameters
    x = jax.lax.fori_loop(0, STEPS, lambda _, x: w * SIGMOID(x) + b, jnp.full_like(w, START))
    return (SIGMOID(x) - TARGET) ** 2


def cliff(w: np.ndarray) -> np.ndarray:
    """b at which the start is a fixed point, unstable where w sigmoid'(x_0) > 1: it then parts two basins."""
    return START - w * float(SIGMOID(START))


def sheet_points() -> np.ndarray:
    """w and b of lines along the cliff, the closer to it the more of them, shape ``(2, lines, w)``."""
    away = np.geomspace(1e-8, 0.6, 50)
    w, away = np.meshgrid(np.linspace(*W, 60), np.concatenate([-away[::-1], [0.0], away]))
    return np.stack([w, cliff(w) + away])


def norm_on_cliff(w: np.ndarray) -> np.ndarray:
    """Of the gradient there, exactly: at a fixed point dx_T/db is the geometric sum of the slope w sigmoid'(x_0)."""
    s, slope = float(SIGMOID(START)), w * float(SIGMOID.derivative(START))
    growth = np.sum(np.power.outer(slope, np.arange(STEPS)), axis=-1)
    return 2 * abs(s - TARGET) * float(SIGMOID.derivative(START)) * growth * np.hypot(1, s)


def descent(largest: float) -> Descent:
    """Gradients longer than ``largest`` are shortened to it."""

    def update(at: Array, _: None) -> tuple[Array, tuple[Array, Array, Array]]:
        loss, gradient = jax.value_and_grad(loss_of)(at)
        norm = jnp.linalg.norm(gradient)
        return at - RATE * gradient * jnp.minimum(1, largest / norm), (at, loss, norm)

    found = jax.jit(lambda: jax.lax.scan(update, jnp.asarray(FROM), None, length=UPDATES)[1])()
    return Descent(*(np.asarray(part) for part in found))


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(found: Surface) -> "Figure":
    """The surface; the gradient's norm over (w, b) with both paths; the norm on the cliff; the losses."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 5.3), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.15, 1])
    surface = above.add_subplot(1, 2, 1, projection="3d")
    draw_surface(surface, found)
    draw_map(above.add_subplot(1, 2, 2), found)
    wall, losses = below.subplots(1, 2)
    fine = np.linspace(*W, 200)
    wall.plot(fine, norm_on_cliff(fine), color="k", linewidth=1, label="exact, at a fixed point")
    wall.plot(found.cliff[0], found.cliff[2], "o", color=plots.EXPLODING, markersize=4, label="backpropagation")
    wall.axvline(1 / float(SIGMOID.derivative(START)), color=plots.CRITICAL, linewidth=0.7, linestyle=":")
    wall.text(1 / float(SIGMOID.derivative(START)) + 0.03, 3e5, "slope of a step = 1", color=plots.CRITICAL, fontsize=7)
    wall.set(yscale="log", xlabel="recurrent weight $w$", ylabel=r"$\|\nabla L\|$ on the cliff", xlim=W)
    wall.legend(loc="lower right")
    for name, (colour, marker) in LOOKS.items():
        every = {"marker": marker, "markersize": 3, "markevery": 3, "linewidth": 0.9}
        losses.plot(found.descents[name].loss, color=colour, label=name, **every)
    w, b = found.descents["plain"].path[-1]
    losses.text(UPDATES - 1, 0.6, f"plain: stuck at $w$ = {w:.0f}, $b$ = {b:.0f}", color=plots.EXPLODING, ha="right")
    losses.set(yscale="log", ylim=(1e-6, 2), xlabel="update", ylabel="loss $L$", xlim=(0, UPDATES))
    losses.legend(loc="lower left", title=f"descent, rate {RATE:g}", alignment="left")
    return figure


def draw_surface(ax: Any, found: Surface) -> None:
    """The loss over (w, b)."""
    style: dict[str, Any] = {"cmap": "viridis", "linewidth": 0, "antialiased": False, "rcount": 200, "ccount": 200}
    ax.plot_surface(*found.sheet, rasterized=True, **style)
    ax.view_init(elev=30, azim=-60)
    ax.set_xlabel("$w$", labelpad=-6)
    ax.set_ylabel("$b$", labelpad=-6)
    ax.set_zlabel("loss", labelpad=-6)
    ax.tick_params(pad=-3, labelsize=6.5)
    ax.locator_params(nbins=5)
    ax.set_title(f"loss after {STEPS} steps", y=0.98)
    ax.set_box_aspect(None, zoom=0.92)


def draw_map(ax: "Axes", found: Surface) -> None:
    """Powers of ten of the gradient's norm, the cliff as a dashed line, both paths on top."""
    logs = np.log10(found.norm)
    mesh = ax.pcolormesh(found.w, found.b, logs, cmap="magma", vmin=-3, vmax=3, rasterized=True)
    bar = ax.figure.colorbar(mesh, ax=ax, extend="both", pad=0.02, ticks=range(-3, 4), format="$10^{%d}$")
    bar.set_label(r"gradient's norm $\|\nabla L\|$")
    bar.outline.set_linewidth(0.6)
    line = found.w[found.w > 1 / float(SIGMOID.derivative(START))]
    ax.plot(line, cliff(line), color="white", linewidth=0.9, linestyle=(0, (4, 3)))
    turn = np.degrees(np.arctan(-float(SIGMOID(START))))
    along: dict[str, Any] = {"rotation": turn, "transform_rotates_text": True, "rotation_mode": "anchor", "va": "top"}
    ax.text(5.0, cliff(5.0) - 0.05, "start between two basins", color="white", fontsize=7, **along)
    for name, (colour, marker) in reversed(LOOKS.items()):
        path = found.descents[name].path
        ax.plot(*path.T, marker + "-", color=colour, markersize=3, mec="white", mew=0.4, linewidth=0.9, label=name)
    ax.plot(*FROM, "*", color="white", markeredgecolor="k", markersize=9, zorder=5)
    ax.text(FROM[0] + 0.05, FROM[1] + 0.03, "start", color="white", fontsize=7)
    ax.set(xlim=W, ylim=B, xlabel="recurrent weight $w$", ylabel="bias $b$")
    ax.legend(loc="lower left", labelcolor="white")


if __name__ == "__main__":
    render("rnn_cliff", compute, draw)
