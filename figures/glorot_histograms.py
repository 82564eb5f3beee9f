"""With the standard initialization of its time the activations of a tanh network shrink on their way forward and its
gradients on their way back; with the normalized one both keep their width (Glorot and Bengio 2010, "Understanding the
difficulty of training deep feedforward neural networks", figures 6 and 7).

The gradient of the last hidden layer is not normal even at infinite width: most of it is one weight of the last kernel,
that of the label, which is uniform.
"""

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
    from matplotlib.figure import Figure

WIDTH, LAYERS, DRAWS, IMAGES = (64, 5, 2, 40) if SMALL else (1000, 5, 6, 200)  # Glorot's: five hidden layers of 1000
PIXELS, CLASSES, BINS = 64, 10, 41 if SMALL else 161
INITS = {  # sigma = sqrt(fan_in Var W) of first kernel, kernels between, last kernel
    r"standard: $U(-1/\sqrt{n}, 1/\sqrt{n})$": (3**-0.5,) * 3,
    r"normalized: Var $W = 2/(n_{in} + n_{out})$": tuple(
        vg.networks.scheme("glorot_uniform", *fans).sigma_w
        for fans in ((PIXELS, WIDTH), (WIDTH, WIDTH), (WIDTH, CLASSES))
    ),
}
MARKS = "osD^v"


class Layers(NamedTuple):
    """One initialization, at every hidden layer: activations tanh(h), and gradients dL/dh.

    Attributes:
        edges: of the bins, by kind, shape ``(bins + 1,)``.
        measured, expected: densities, by kind, shape ``(layers, bins)``.
        deviation: root mean square of each draw, by kind, shape ``(draws, layers)``.
        expected_deviation: by kind, shape ``(layers,)``.
    """

    edges: dict[str, np.ndarray]
    measured: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    deviation: dict[str, np.ndarray]
    expected_deviation: dict[str, np.ndarray]


def compute() -> dict[str, Layers]:
    """Images of digits, 6 draws of five layers of 1000 units."""
    return {name: layers(*sigmas) for name, sigmas in INITS.items()}


def layers(sigma_in: float, sigma_w: float, sigma_out: float) -> Layers:
    """Theory and measurement of one initialization."""
    sizes: dict[str, Any] = {"width": WIDTH, "depth": LAYERS - 1, "inputs": PIXELS, "outputs": CLASSES}
    network = vg.mlp(activation="tanh", kernel_init="uniform", bias_init="zero", **sizes)
    scales, images, found = vg.Scales(sigma_w=sigma_w, sigma_in=sigma_in, sigma_out=sigma_out), vg.data.digits(), []
    for seed in range(DRAWS):
        ordinary, _ = vg.absorb_scales(vg.init(seed_key(jax.random.key(0), seed), network), scales)
        kernels = [ordinary.stem["kernel"], *ordinary.stages[0]["kernel"]], ordinary.head["kernel"]
        found.append(activations_and_gradients(*kernels, images.inputs[:IMAGES], images.labels[:IMAGES]))
    both = zip(*found, strict=True)
    values = {kind: np.asarray(jnp.stack(each), float) for kind, each in zip(KINDS, both, strict=True)}
    q, s = expected(sigma_in, sigma_w, sigma_out)
    deviations = dict(zip(KINDS, expected_deviations(q, s), strict=True))
    edges = {"activation": np.linspace(-1, 1, BINS + 1)}
    edges["gradient"] = np.linspace(-4, 4, BINS + 1) * deviations["gradient"].max()
    measured = {
        kind: np.array([np.histogram(values[kind][:, l], edges[kind])[0] for l in range(LAYERS)])
        / (values[kind][:, 0].size * np.diff(edges[kind]))
        for kind in KINDS
    }
    middles = {kind: (of[1:] + of[:-1]) / 2 for kind, of in edges.items()}
    uniform = np.zeros(LAYERS)
    uniform[-1] = (1 - 1 / CLASSES) * sigma_out / WIDTH**0.5
    densities = {
        "activation": np.array([activation_density(middles["activation"], each) for each in q]),
        "gradient": np.array(
            [gradient_density(middles["gradient"], *each) for each in zip(q, s, uniform, strict=True)]
        ),
    }
    deviation = {kind: np.sqrt((values[kind] ** 2).mean(axis=(2, 3))) for kind in KINDS}
    return Layers(edges, measured, densities, deviation, deviations)


KINDS = ("activation", "gradient")


@jax.jit
def activations_and_gradients(kernels: list[Array], head: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """tanh(h) and dL/dh of every hidden layer, each ``(layers, images, width)``, L the cross-entropy of an image."""

    def loss(nothing: Array, x: Array, y: Array) -> tuple[Array, Array]:
        a, each = x, []
        for kernel, zero in zip(kernels, nothing, strict=True):
            a = jnp.tanh(a @ kernel + zero)
            each.append(a)
        return -jax.nn.log_softmax(a @ head)[y], jnp.stack(each)

    nothing = jnp.zeros((len(kernels), head.shape[0]))
    gradients, activations = jax.vmap(jax.grad(loss, has_aux=True), (None, 0, 0), 1)(nothing, x, y)
    return activations, gradients


# --- theory ---------------------------------------------------------------------------------------------------------


def expected(sigma_in: float, sigma_w: float, sigma_out: float) -> tuple[np.ndarray, np.ndarray]:
    """q, the variance of h, and s, the deviation of dL/d(tanh h), at every hidden layer.

    An image has mean square 1. At the output dL/dz = p - y, whose squared norm is (1 - 1/K) + Var z / K up to higher
    orders of the small outputs z of K classes.
    """
    q = theory.propagate("tanh", sigma_w, 0.0, LAYERS - 1, q0=sigma_in**2).q
    square, slope_square, _ = theory.moments("tanh", q)
    s2 = np.empty(LAYERS)
    s2[-1] = sigma_out**2 / WIDTH * (1 - 1 / CLASSES + sigma_out**2 * square[-1] / CLASSES)
    for l in reversed(range(LAYERS - 1)):
        s2[l] = sigma_w**2 * slope_square[l + 1] * s2[l + 1]
    return q, np.sqrt(s2)


def expected_deviations(q: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of tanh(h), and of dL/dh = tanh'(h) dL/d(tanh h)."""
    square, slope_square, _ = theory.moments("tanh", q)
    return np.sqrt(square), s * np.sqrt(slope_square)


def activation_density(a: np.ndarray, q: float) -> np.ndarray:
    """Of tanh(h), h normal of variance q."""
    return np.exp(-(np.arctanh(a) ** 2) / 2 / q) / np.sqrt(2 * np.pi * q) / (1 - a**2)


def gradient_density(g: np.ndarray, q: float, s: float, uniform: float = 0.0) -> np.ndarray:
    """Of tanh'(h) (u + v), u uniform and v normal, of deviations whose squares add to s^2: E over h and u of a normal
    density. Behind more than one kernel u is 0; in front of the last one u is the label's weight."""
    z, of_z = np.polynomial.hermite_e.hermegauss(80)
    u, of_u = np.polynomial.legendre.leggauss(60)
    slope = 1 / np.cosh(np.sqrt(q) * z)[:, None] ** 2
    mean, deviation = slope * 3**0.5 * uniform * u, slope * np.sqrt(s**2 - uniform**2)
    density = np.exp(-((g[:, None, None] - mean) ** 2) / 2 / deviation**2) / np.sqrt(2 * np.pi) / deviation
    return density @ (of_u / 2) @ (of_z / of_z.sum())


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(data: dict[str, Layers]) -> "Figure":
    """Above activations, below gradients: histograms of both initializations, and their deviations against layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots(2, 3)
    for column, (name, found) in enumerate(data.items()):
        axes[0, column].set_title(name)
        for row, kind in zip(axes, KINDS, strict=True):
            draw_histograms(row[column], found, kind)
    for row, kind in zip(axes, KINDS, strict=True):
        draw_deviations(row[2], data, kind)
        row[0].set_ylabel("density")
    axes[0, 0].legend(loc="upper left", fontsize=6.5, handlelength=1, borderaxespad=0, labelspacing=0.25)
    axes[0, 2].set_ylabel("r.m.s. of activations")
    axes[1, 2].set_ylabel("r.m.s. of gradients")
    axes[0, 2].legend(loc="lower left", fontsize=7)
    for ax, ticks in zip(axes[:, 2], ([0.05, 0.1, 0.2, 0.4], [0.002, 0.005, 0.01, 0.02, 0.04]), strict=True):
        ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
    axes[0, 2].set_title(f"width {WIDTH}, {DRAWS} draws")
    return figure


def colour_of(layer: int) -> Any:
    """From dark to light, first layer to last."""
    import matplotlib as mpl

    return mpl.colormaps["viridis"](0.88 * layer / (LAYERS - 1))


def draw_histograms(ax: "Axes", found: Layers, kind: str) -> None:
    """Measured as dots, theory as lines, on a logarithmic axis."""
    middles = (found.edges[kind][1:] + found.edges[kind][:-1]) / 2
    for layer in range(LAYERS):
        colour, measured = colour_of(layer), found.measured[kind][layer]
        ax.plot(middles, found.expected[kind][layer], color=colour, linewidth=0.9)
        at = np.flatnonzero(measured)[layer % 5 :: 1 if SMALL else 5]
        label = f"layer {layer + 1}"
        ax.plot(middles[at], measured[at], MARKS[layer], color=colour, markersize=2.3, label=label, mew=0)
    top = found.expected[kind].max()
    ax.set(yscale="log", ylim=(top / 3000, 3 * top), xlim=(middles[0], middles[-1]))
    ax.set_xlabel(r"activation $\tanh h$" if kind == "activation" else r"gradient $\partial L / \partial h$")
    if kind == "gradient":
        ax.ticklabel_format(axis="x", style="sci", scilimits=(0, 0), useMathText=True)


def draw_deviations(ax: "Axes", data: dict[str, Layers], kind: str) -> None:
    """Means over draws with two standard errors, over theory."""
    layers = np.arange(1, LAYERS + 1)
    looks = ((plots.VANISHING, "o", "standard"), (plots.CRITICAL, "s", "normalized"))
    for found, (colour, marker, text) in zip(data.values(), looks, strict=True):
        values = found.deviation[kind]
        error = 2 * values.std(axis=0, ddof=1) / np.sqrt(DRAWS)
        ax.errorbar(layers, values.mean(axis=0), error, fmt=marker, color=colour, markersize=4, label=text)
        ax.plot(layers, found.expected_deviation[kind], color=colour, linewidth=1)
    ax.plot([], [], color="0.4", linewidth=1, label="theory")
    ax.set(yscale="log", xlabel="hidden layer", xticks=layers)


if __name__ == "__main__":
    render("glorot_histograms", compute, draw)
