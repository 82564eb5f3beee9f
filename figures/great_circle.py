"""Depth stretches and bends a circle of inputs in the chaotic phase: its length grows by sqrt(chi) a layer, its
curvature settles (Poole et al. 2016, "Exponential expressivity in deep neural networks through transient chaos",
arXiv 1606.05340)."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import SMALL, render, seed_key
from jax import Array

import vgjax as vg
from vgjax import plots, theory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

ACTIVATION, SIGMA_B = "tanh", 0.3
SIGMA_W = {1.3: (plots.VANISHING, "s", "-"), 2.5: ("#1b7837", "o", "--"), 4.0: (plots.EXPLODING, "^", "-.")}  # Poole's
WIDTH, DEPTH, DRAWS, POINTS = (64, 6, 2, 64) if SMALL else (1000, 15, 6, 512)
SHOWN = (0, 2, 4, 6) if SMALL else (0, 2, 5, 10)  # layers


class Curve(NamedTuple):
    """The image of the circle at every layer, in units in which a coordinate has variance q: lengths over sqrt(width).

    Attributes:
        length: integral of the speed.
        curvature: root mean square over the curve.
        turning: integral of curvature and speed, the length of the tangent's path on the sphere, in turns.
    """

    length: np.ndarray
    curvature: np.ndarray
    turning: np.ndarray


class Circle(NamedTuple):
    """One weight scale: theory of shape ``(layers,)``, measurements ``(draws, layers)``, and pictures of one draw."""

    expected: Curve
    measured: Curve
    chi: float
    pictures: np.ndarray


def compute() -> dict[float, Circle]:
    """Circles of radius sqrt(N q*) through 15 layers of width 1000, 6 draws, at three weight scales."""
    return {sigma_w: circle(sigma_w) for sigma_w in SIGMA_W}


def circle(sigma_w: float) -> Circle:
    """Theory and measurement at one weight scale."""
    field = theory.mean_field(ACTIVATION, sigma_w, SIGMA_B)
    q = float(field.q_star)
    network = vg.mlp(width=WIDTH, depth=DEPTH, activation=ACTIVATION, stem=False)
    scales, found = vg.Scales(sigma_w=sigma_w, sigma_b=SIGMA_B), []
    for seed in range(DRAWS):
        params, _ = vg.absorb_scales(vg.init(seed_key(jax.random.key(0), seed), network), scales)
        found.append(jets(params, q, POINTS))
    curves = [curve_of(*(np.asarray(part, float) for part in each)) for each in found]
    measured = Curve(*(np.stack(part) for part in zip(*curves, strict=True)))
    pictures = np.stack([principal(np.asarray(found[0][0][layer]) / np.sqrt(q)) for layer in SHOWN])
    return Circle(expected(sigma_w, q, float(field.chi)), measured, float(field.chi), pictures)


def jets(params: Any, q: float, points: int) -> tuple[Array, Array, Array]:
    """The circle's states with their first and second derivatives by the angle, each ``(layers, points, width)``."""
    parts = params.stages[0]
    angle = 2 * jnp.pi * jnp.arange(points)[:, None] / points
    e1, e2 = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (parts["kernel"].shape[-1], 2)))[0].T
    radius = jnp.sqrt(q * len(e1))
    h = radius * (jnp.cos(angle) * e1 + jnp.sin(angle) * e2)
    v = radius * (jnp.cos(angle) * e2 - jnp.sin(angle) * e1)
    return _through(parts["kernel"], parts["bias"], h, v, -h)


@jax.jit
def _through(kernels: Array, biases: Array, *jet: Array) -> tuple[Array, ...]:
    """h' = W phi(h) + b, v' = W (phi' v), a' = W (phi'' v^2 + phi' a), layer by layer."""
    phi = vg.activations.get(ACTIVATION)

    def layer(jet: tuple[Array, ...], weights: tuple[Array, Array]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        (h, v, a), (kernel, bias) = jet, weights
        slope, bend = jax.jvp(phi.derivative, (h,), (v,))  # phi' and phi'' v
        after = phi(h) @ kernel + bias, (slope * v) @ kernel, (bend * v + slope * a) @ kernel
        return after, after

    _, behind = jax.lax.scan(layer, jet, (kernels, biases))
    return tuple(jnp.concatenate([first[None], rest]) for first, rest in zip(jet, behind, strict=True))


def curve_of(h: np.ndarray, v: np.ndarray, a: np.ndarray) -> Curve:
    """Length, curvature and turning at every layer, from derivatives by the angle, ``(layers, points, width)``."""
    speed2, along = np.square(v).mean(axis=-1), (v * a).mean(axis=-1)
    curvature2 = (np.square(a).mean(axis=-1) - along**2 / speed2) / speed2**2
    length, turning = np.sqrt(speed2).mean(axis=-1) * 2 * np.pi, np.sqrt(curvature2 * speed2).mean(axis=-1)
    return Curve(length, np.sqrt((curvature2 * np.sqrt(speed2)).sum(axis=-1) / np.sqrt(speed2).sum(axis=-1)), turning)


def expected(sigma_w: float, q: float, chi: float, depth: int = DEPTH) -> Curve:
    """g' = chi g and k'^2 = 3 chi_2 / chi^2 + k^2 / chi with chi_2 = sigma_w^2 E phi''^2, from g = q, k^2 = 1 / q.

    Source: Poole et al. 2016, equation 8.
    """
    chi_2 = sigma_w**2 * float(theory.expectation(_squared_curvature, q))
    g, k2 = q * chi ** np.arange(depth + 1), [1 / q]
    for _ in range(depth):
        k2.append(3 * chi_2 / chi**2 + k2[-1] / chi)
    return Curve(2 * np.pi * np.sqrt(g), np.sqrt(k2), np.sqrt(g * k2))


def _squared_curvature(h: Array) -> Array:
    """phi''^2, elementwise."""
    return jax.jvp(vg.activations.get(ACTIVATION).derivative, (h,), (jnp.ones_like(h),))[1] ** 2


def principal(states: np.ndarray) -> np.ndarray:
    """The curve along its two main directions, in units of the radius of the circle, shape ``(points, 2)``."""
    centred = states - states.mean(axis=0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T / np.sqrt(states.shape[1])


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(data: dict[float, Circle]) -> "Figure":
    """Left: the circle's image at four layers. Right: its length, curvature and turning against layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.45, 1])
    draw_pictures(left, data)
    length, curvature, turning = right.subplots(3, 1, sharex=True)
    draw_growth(length, data, "length", r"length$/\sqrt{N}$")
    draw_growth(curvature, data, "curvature", r"curvature $\times \sqrt{N}$")
    draw_growth(turning, data, "turning", "tangent turns")
    length.plot([], [], "o", color="0.4", markersize=3.2, label=f"measured, {DRAWS} draws")
    length.plot([], [], color="0.4", label="theory")
    length.legend(loc="upper left", handlelength=1.6, borderaxespad=0.1, fontsize=7)
    curvature.set_yticks([0.3, 1, 3], ["0.3", "1", "3"])
    curvature.minorticks_off()
    turning.set_xlabel("layer $l$")
    return figure


def draw_pictures(figure: "SubFigure", data: dict[float, Circle]) -> None:
    """A row for each weight scale, a column for each layer, all in the same units; colour is the angle."""
    axes = figure.subplots(len(data), len(SHOWN), sharex=True, sharey=True)
    for row, (sigma_w, found) in zip(axes, data.items(), strict=True):
        colour = SIGMA_W[sigma_w][0]
        row[0].set_ylabel(rf"$\sigma_w$ = {sigma_w:g}" + "\n" + rf"$\chi$ = {found.chi:.2f}", color=colour)
        for ax, curve in zip(row, found.pictures, strict=True):
            closed = np.append(curve, curve[:1], axis=0)
            ax.scatter(*closed.T, c=np.linspace(0, 1, len(closed)), cmap="twilight_shifted", s=1.6, linewidths=0)
            ax.plot(*closed.T, color=colour, linewidth=0.3, alpha=0.5, zorder=0)
            ax.set(aspect="equal", xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), xticks=[-1, 0, 1], yticks=[-1, 0, 1])
            ax.tick_params(labelsize=6.5)
    for ax, layer in zip(axes[0], SHOWN, strict=True):
        ax.set_title(f"layer {layer}")
    figure.supxlabel(r"first two principal components, in radii $\sqrt{N q^*}$ of the circle", fontsize=8)


def draw_growth(ax: "Axes", data: dict[float, Circle], name: str, text: str) -> None:
    """Theory as lines, means over draws as dots, with bars of two standard errors."""
    layers = np.arange(DEPTH + 1)
    for sigma_w, found in data.items():
        colour, marker, style = SIGMA_W[sigma_w]
        expected, measured = getattr(found.expected, name), getattr(found.measured, name)
        error = 2 * measured.std(axis=0, ddof=1) / np.sqrt(DRAWS)
        ax.plot(layers, expected, color=colour, linestyle=style, linewidth=1.1)
        dots: dict[str, Any] = {"fmt": marker, "markersize": 3.2, "elinewidth": 0.7, "mec": "white", "mew": 0.4}
        ax.errorbar(layers, measured.mean(axis=0), error, color=colour, **dots)
        ax.text(DEPTH + 0.4, expected[-1], rf"$\sigma_w$ = {sigma_w:g}", color=colour, va="center", fontsize=7)
    ax.set(yscale="log", ylabel=text, xlim=(-0.4, DEPTH + 0.3))


if __name__ == "__main__":
    render("great_circle", compute, draw)
