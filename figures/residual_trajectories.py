"""A skip slows all that depth does: in residual tanh networks the variance grows like l and the gradient like
exp(sqrt(l)), in ReLU ones both like exp(l); two inputs meet like l^-2 under ReLU and stay apart under tanh, where
without a skip they meet exponentially (Yang and Schoenholz 2017, "Mean field residual networks: on the edge of chaos",
arXiv 1712.08969)."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from common import SMALL, pairs, render

import vgjax as vg
from vgjax import plots, theory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STACKS = {  # activation, skip; how they look
    ("tanh", 1.0): ("tanh, skip", plots.VANISHING, "s", "-"),
    ("relu", 1.0): ("ReLU, skip", plots.EXPLODING, "o", "--"),
    ("tanh", 0.0): ("tanh, no skip", "0.45", "D", ":"),
}
SCALES = {"sigma_w": 1.0, "sigma_v": 1.0, "sigma_b": 0.5, "sigma_a": 0.5}
WIDTH, DEPTH, DRAWS, PAIRS = (64, 10, 2, 2) if SMALL else (400, 100, 8, 4)
FAR = 20 if SMALL else 600  # layers of theory
NAMES = ("p", "log_gradient", "one_minus_e")


class Trajectory(NamedTuple):
    """Along depth, each of shape ``(..., layers)``.

    Attributes:
        p: E x^2, 1 at the start.
        log_gradient: ln of the factor on the root mean square of a gradient's norm that has crossed so many layers.
        one_minus_e: 1 - correlation of two inputs, orthogonal at the start.
    """

    p: np.ndarray
    log_gradient: np.ndarray
    one_minus_e: np.ndarray


class Stack(NamedTuple):
    """One kind of network: theory, shape ``(FAR + 1,)``, and what each draw does, ``(draws, layers)``."""

    expected: Trajectory
    measured: Trajectory


def compute() -> dict[tuple[str, float], Stack]:
    """x' = skip x + V phi(W x + b) + a, 100 layers of width 400, 8 draws."""
    return {stack: Stack(expected(*stack, FAR), measured(*stack)) for stack in STACKS}


def expected(phi: str, skip: float, depth: int) -> Trajectory:
    """p and the gradient by the library; the covariance g of two inputs of norm p by the same recursion,
    g' = skip^2 g + sigma_v^2 E phi(u1) phi(u2) + sigma_a^2, Cov(u1, u2) = sigma_w^2 g + sigma_b^2."""
    found = theory.residual.propagate(phi, depth, skip=skip, p0=1.0, **SCALES)
    w2, b2, v2, a2 = (SCALES[name] ** 2 for name in ("sigma_w", "sigma_b", "sigma_v", "sigma_a"))
    g, homogeneous = np.zeros(depth + 1), vg.activations.get(phi).homogeneous
    for l, q in enumerate(found.q):
        c, unit = min(1.0, (w2 * g[l] + b2) / q), q if homogeneous else 1.0  # ReLU: at any q as at 1
        both = unit * float(theory.correlated_expectation(phi, q / unit, q / unit, c))
        g[l + 1] = skip**2 * g[l] + v2 * both + a2
    return Trajectory(found.p, found.log_chi / 2, 1 - g / found.p)


def measured(phi: str, skip: float) -> Trajectory:
    """The same of every draw: gains of random directions, and pairs of orthogonal states."""
    network = vg.mlp(width=WIDTH, depth=DEPTH, activation=phi, residual="plain", stem=False)
    x1, x2 = pairs(jax.random.key(1), WIDTH, [(1.0, 1.0)], PAIRS)
    options: dict[str, Any] = {"key": jax.random.key(0), "seeds": DRAWS, "skip": skip, **SCALES}
    gains = vg.sweep(network, x1[0], measure=vg.gains(PAIRS, stream=True), **options)
    two = vg.sweep(network, x1, x2, measure=vg.correlations(stream=True), leading="example", **options)
    p = np.exp(two.log_mean_square.astype(float)).mean(axis=(1, 2))
    one_minus_e = np.exp(two.log_one_minus_c.astype(float)).mean(axis=1)
    return Trajectory(p, gains.log_gain.astype(float), one_minus_e)


def tanh_limits(l: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Of tanh, where phi becomes a sign: p = r l with r = sigma_v^2 + sigma_a^2; ln of the gradient's factor, from
    E phi'^2 = 4 / (3 sqrt(2 pi q)); and the fixed correlation, r e = sigma_v^2 (2 / pi) arcsin e + sigma_a^2."""
    w, v2, a2 = SCALES["sigma_w"], SCALES["sigma_v"] ** 2, SCALES["sigma_a"] ** 2
    rise, e = v2 + a2, 0.0
    for _ in range(200):
        e = (v2 * 2 / np.pi * np.arcsin(e) + a2) / rise
    return rise * l, 4 / 3 * v2 * w * np.sqrt(l / (2 * np.pi * rise)), e


def relu_limit(l: np.ndarray) -> np.ndarray:
    """1 - e = 4 / (k l)^2: the branch's share of p falls short of 1 - e by (2 sqrt 2 / 3 pi) (1 - e)^(3/2) a layer."""
    gain = SCALES["sigma_v"] ** 2 * SCALES["sigma_w"] ** 2 / 2
    return 4 / (gain / (1 + gain) * 2 * np.sqrt(2) / 3 / np.pi * l) ** 2


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(data: dict[tuple[str, float], Stack]) -> "Figure":
    """Variance, gradient and correlation against depth, all on logarithmic axes: powers are straight lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    axes = figure.subplots(1, 3)
    for ax, name in zip(axes, NAMES, strict=True):
        for stack, found in data.items():
            draw_stack(ax, stack, getattr(found.expected, name), getattr(found.measured, name), name)
        ax.set(xscale="log", yscale="log", xlabel="layer $l$", xlim=(0.9, FAR))
    far = np.geomspace(FAR / 20, FAR, 2)
    p, gradient, e = tanh_limits(far)
    e_star = rf"$1 - e^*$ = {1 - e:.2f}"
    laws = (
        (axes[0], p, r"$(\sigma_v^2 + \sigma_a^2)\, l$", (-2, -26)),
        (axes[1], gradient, r"$\propto \sqrt{l}$", (-2, -16)),
        (axes[2], np.full(2, 1 - e), e_star, (-2, 5)),
        (axes[2], relu_limit(far), r"$\propto l^{-2}$", (-12, -4)),
    )
    for ax, values, text, place in laws:
        ax.plot(far, values, **LAW)
        ax.annotate(text, (far[1], values[1]), xytext=place, textcoords="offset points", ha="right", fontsize=7)
    axes[0].set(ylabel=r"$p = \mathrm{E}\,x^2$", title="signal", ylim=(0.2, 1e8))
    axes[1].set(ylabel="|ln of the factor on its norm|", title="gradient")
    axes[2].set(ylabel="$1 - e$, two inputs", title="correlation", ylim=(3e-7, 3))
    axes[0].legend(loc="upper left", fontsize=7, handlelength=2.2)
    return figure


LAW: dict[str, Any] = {"color": "0.75", "linewidth": 2.4, "zorder": 0}


def draw_stack(ax: "Axes", stack: tuple[str, float], expected: np.ndarray, measured: np.ndarray, name: str) -> None:
    """Theory as a line, draws as dots with two standard errors: means, of gradients roots of mean squares."""
    text, colour, marker, style = STACKS[stack]
    layers = np.arange(FAR + 1)
    at = np.unique(np.geomspace(1, DEPTH, 12).round().astype(int))
    if name == "log_gradient":
        squares = np.exp(2 * measured)
        mean = np.log(squares.mean(axis=0)) / 2
        error = squares.std(axis=0, ddof=1) / np.sqrt(DRAWS) / squares.mean(axis=0)
        expected, mean = np.abs(expected), np.abs(mean)  # without a skip it is negative
    else:
        mean, error = measured.mean(axis=0), 2 * measured.std(axis=0, ddof=1) / np.sqrt(DRAWS)
    seen = at[expected[at] > 1e-7] if name == "one_minus_e" else at
    ax.plot(layers[1:], expected[1:], color=colour, linestyle=style, linewidth=1.1)
    dots: dict[str, Any] = {"markersize": 3.4, "mec": "white", "mew": 0.4, "elinewidth": 0.7}
    ax.errorbar(seen, mean[seen], error[seen], color=colour, marker=marker, linestyle="", **dots)
    ax.plot([], [], color=colour, marker=marker, linestyle=style, markersize=3.4, linewidth=1.1, label=text)


if __name__ == "__main__":
    render("residual_trajectories", compute, draw)
