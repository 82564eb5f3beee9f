"""Depth makes the nodes of a graph alike (over-smoothing), and what one node hears of another falls with every edge
between them (over-squashing)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from common import SMALL, render

import vgjax as vg
from vgjax import plots, theory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DEPTH, SEEDS = (16, 6, 4) if SMALL else (256, 32, 24)
CLUB = vg.networks.normalized_adjacency(vg.data.karate_club())
STACKS = {  # phi, sigma_w, residual; name and look
    ("linear", 1.0, None): ("linear", plots.VANISHING, "o"),
    ("relu", 2**0.5, None): ("ReLU", plots.EXPLODING, "s"),
    ("relu", 2**0.5, vg.networks.branch("pre", layers=1, scheme="stable")): (
        r"ReLU, skip, branches $1/\sqrt{L}$",
        "#1b7837",
        "D",
    ),
}
CLIQUE, BRIDGE, STEPS, FEATURES, DRAWS = (3, 4, 5, 4, 20) if SMALL else (6, 8, 12, 16, 400)


@dataclass(frozen=True)
class Squashing:
    """E |dh_i / dx_0|_F^2 / width against the distance of node i from node 0, on one graph; shapes ``(distances,)``.

    Attributes:
        expected: the largest over nodes at that distance.
        measured: of the same node, over draws.
    """

    expected: np.ndarray
    measured: np.ndarray


def compute() -> tuple[dict[Any, np.ndarray], dict[str, Squashing]]:
    """Mean correlation of the nodes of the karate club, of every draw and layer; squashing on a path and a barbell."""
    nodes = CLIQUE + BRIDGE
    path = np.diag(np.ones(nodes), 1) + np.diag(np.ones(nodes), -1)
    return {stack: correlations(*stack) for stack in STACKS}, {"path": squashing(path), "barbell": squashing(barbell())}


def correlations(phi: str, sigma_w: float, residual: Any) -> np.ndarray:
    """Shape ``(seeds, depth + 1)``; features of the nodes are independent at the start."""
    net = vg.networks.graph_network(CLUB, width=WIDTH, depth=DEPTH, inputs=WIDTH, activation=phi, residual=residual)
    x = jax.random.normal(jax.random.key(1), (SEEDS, *net.input_shape))
    scales = vg.Scales(sigma_w=sigma_w, sigma_in=1.0)
    return vg.sweep(net, x, measure=ALIKE, key=jax.random.key(0), seeds=SEEDS, leading="seed", scales=scales).cosine


def cosines(parameters: vg.networks.Parameters, scales: vg.Scales, x: jax.Array) -> dict[str, jax.Array]:
    """As a measurement of a sweep."""
    return {"cosine": vg.measure.token_correlation(parameters, scales, x)}


ALIKE = vg.measurement(cosines, {"cosine": ("layer",)})


def barbell() -> np.ndarray:
    """Two cliques and a bridge between them, nodes in a row."""
    nodes = 2 * CLIQUE + BRIDGE
    adjacency = np.diag(np.ones(nodes - 1), 1)
    adjacency[:CLIQUE, :CLIQUE] = adjacency[-CLIQUE:, -CLIQUE:] = np.triu(np.ones((CLIQUE, CLIQUE)), 1)
    return adjacency + adjacency.T


def squashing(graph: np.ndarray) -> Squashing:
    """Of linear networks of unit gain, from the first node."""
    adjacency = vg.networks.normalized_adjacency(graph)
    net = vg.stack(
        vg.networks.graph_conv(adjacency, FEATURES, FEATURES), depth=STEPS, input_shape=(len(graph), FEATURES)
    )

    def heard(key: jax.Array) -> jax.Array:
        """|dh_i / dx_0|_F^2 / width of every node, by a tangent for each feature of the first."""
        params, x = vg.init(key, net), jnp.zeros(net.input_shape)
        push = lambda u: jax.jvp(lambda x: vg.forward(params, vg.Scales(), x), (x,), (x.at[0].set(u),))[1]  # noqa: E731
        return jnp.sum(jax.vmap(push)(jnp.eye(FEATURES)) ** 2, axis=(0, 2)) / FEATURES

    found = np.mean(jax.jit(jax.vmap(heard))(jax.random.split(jax.random.key(2), DRAWS)), axis=0)
    expected, far = theory.graphs.influence(adjacency, STEPS)[:, 0], theory.graphs.distances(graph)[:, 0]
    nodes = [max(np.flatnonzero(far == d), key=lambda i: expected[i]) for d in range(int(min(far.max(), STEPS)) + 1)]
    return Squashing(expected[nodes], np.asarray(found)[nodes])


# --- drawing ------------------------------------------------------------------------------------------------------


@plots.styled
def draw(data: tuple[dict[Any, np.ndarray], dict[str, Squashing]]) -> "Figure":
    """Correlation against depth; squared influence against distance."""
    from matplotlib.figure import Figure

    smoothing, squashed = data
    figure = Figure(figsize=(7.2, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for stack, values in smoothing.items():
        draw_correlation(left, stack, values)
    left.plot([], [], "k", linewidth=0.8, label="theory, infinite width")
    left.set(xlabel="layer $l$", xlim=(0, DEPTH), ylim=(0, 1.02))
    left.set(ylabel="mean correlation of two nodes", title="over-smoothing, karate club")
    left.legend(
        loc="center right",
        bbox_to_anchor=(1, 0.55),
        title=f"34 nodes of width {WIDTH}, {SEEDS} draws",
        alignment="left",
    )
    for (name, found), (colour, marker) in zip(
        squashed.items(), ((plots.VANISHING, "o"), (plots.EXPLODING, "s")), strict=True
    ):
        distance = np.arange(len(found.expected))
        right.plot(distance, found.expected, "k", linewidth=0.8)
        style: dict[str, Any] = {"color": colour, "markersize": 4, "mec": "white", "mew": 0.5, "zorder": 4}
        right.plot(distance, found.measured, marker, label=name, **style)
    right.plot([], [], "k", linewidth=0.8, label=r"$(A^L)_{ij}^2$, exact")
    right.set_yscale("log")
    right.set(xlabel="edges between $i$ and $j$", ylabel=r"E $|\partial h_i / \partial x_j|^2$ a feature")
    right.set_title("over-squashing, linear units")
    right.legend(loc="lower left", title=f"$L$ = {STEPS}, width {FEATURES}, {DRAWS} draws", alignment="left")
    return figure


def draw_correlation(ax: "Axes", stack: Any, values: np.ndarray) -> None:
    """Mean over draws as dots, one standard deviation as a band, theory where there is one."""
    (phi, sigma_w, residual), (name, colour, marker) = stack, STACKS[stack]
    layers, mean, spread = np.arange(DEPTH + 1), values.mean(axis=0), values.std(axis=0, ddof=1)
    ax.fill_between(layers, mean - spread, mean + spread, color=colour, alpha=0.25, linewidth=0)
    if residual is None:
        expected = theory.graphs.propagate_graph(CLUB, DEPTH, phi, sigma_w=sigma_w).correlation
        ax.plot(layers, expected, "k", linewidth=0.8, zorder=3)
    style: dict[str, Any] = {
        "color": colour,
        "markersize": 4,
        "mec": "white",
        "mew": 0.5,
        "clip_on": False,
        "zorder": 4,
    }
    ax.plot(layers, mean, marker, label=name, markevery=max(1, DEPTH // 16), **style)


if __name__ == "__main__":
    render("graphs", compute, draw)
