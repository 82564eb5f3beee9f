"""Networks whose kernels are never drawn: a hundred thousand of any width, the 1/n law over four decades, the measured
edge on its way to infinite width, and a map of a million networks."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from common import SMALL, render
from jax import Array
from scipy.stats import skew

import vgjax as vg
from vgjax import plots, theory
from vgjax.implicit.points import push_stack
from vgjax.implicit.stacks import Box, draw_stack
from vgjax.implicit.sums import GAINS
from vgjax.plots.style import text_on_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INPUTS, DEPTH = 16, 50
TOGETHER = 250  # networks drawn by one call

SHOWN = (16, 256) if SMALL else (16, 256, 4096, 65536)  # widths whose law is drawn
LOOKS = (("#d55e00", "o"), ("#e69f00", "s"), ("#009e73", "^"), ("#0072b2", "D"))  # of these
RELU_DRAWS = dict.fromkeys(SHOWN, 2000) if SMALL else dict.fromkeys((*SHOWN, 2**20), 100_000)
TANH_DRAWS = {16: 50} if SMALL else {16: 4000, 128: 4000, 1024: 2000, 8192: 300, 65536: 60}
if not SMALL:
    RELU_DRAWS |= dict.fromkeys((64, 1024, 16384), 20_000)

PAST = 20  # layers before which no growth is counted, where the edge is sought
# Width: depth, draws. The distance from infinite width shows among as many layers as there are units, in all draws
# together; where a layer can be dead (ReLU, 16 units: one in 65,536) there are not many. Of tanh at 65,536 units they
# are too few, and only say below what it is.
RELU_EDGES = {16: (100, 32), 128: (500, 32), 1024: (1000, 64), 8192: (1000, 256), 65536: (1000, 400)}
TANH_EDGES = {16: (200, 64), 128: (200, 128), 1024: (200, 256), 8192: (200, 64), 65536: (200, 8)}
if SMALL:
    RELU_EDGES, TANH_EDGES = {128: (60, 32)}, {128: (60, 32)}

MAP_WIDTH, MAP_DEPTH, MAP_POINTS = (64, 20, 64) if SMALL else (1000, 100, 1000)
STRIPS = 2 if SMALL else 8  # of the map, one after the other
STEP = 1 if SMALL else 9  # of the grid between points of theory's line


@dataclass(frozen=True)
class Case:
    """An activation at its critical point.

    Attributes:
        activation: which.
        name: as it is written.
        sigma_b: of the biases; 0: none.
        colour, marker: of its points.
    """

    activation: str
    name: str
    sigma_b: float
    colour: str
    marker: str

    @property
    def critical(self) -> theory.Critical:
        """At infinite width."""
        return theory.critical(self.activation, self.sigma_b)

    @property
    def mean_square(self) -> float:
        """Of an input that starts at the fixed point of q."""
        found = self.critical
        return (float(found.q_star) - self.sigma_b**2) / float(found.sigma_w) ** 2

    @property
    def input(self) -> Array:
        """One of that mean square, in a random direction."""
        return vg.data.sphere(jax.random.key(1), 1, INPUTS)[0] * self.mean_square**0.5

    def network(self, width: int, depth: int) -> vg.Network:
        """A plain stack."""
        bias = "gaussian" if self.sigma_b else "zero"
        return vg.mlp(width=width, depth=depth, activation=self.activation, inputs=INPUTS, bias_init=bias)

    def band(self, width: int, depth: int, sigma_w: np.ndarray | float) -> theory.Band:
        """What theory expects of one draw, to order 1/n."""
        q0 = np.square(sigma_w) * self.mean_square + self.sigma_b**2
        return theory.band(self.activation, [width] * (depth + 1), sigma_w, self.sigma_b, q0=q0)


RELU = Case("relu", "ReLU", 0.0, "k", "o")
TANH = Case("tanh", "tanh", 0.1, "#7f5fc6", "s")


class Moments(NamedTuple):
    """Of ln ||J u||^2 over draws at each width, with standard errors; shapes ``(widths,)``."""

    widths: np.ndarray
    mean: np.ndarray
    mean_error: np.ndarray
    variance: np.ndarray
    variance_error: np.ndarray


class Edges(NamedTuple):
    """Measured critical sigma_w at each width and its standard error; shapes ``(widths,)``."""

    widths: np.ndarray
    value: np.ndarray
    error: np.ndarray


class Map(NamedTuple):
    """Growth per layer, shape ``(sigma_w, sigma_b)``, and theory's critical line along sigma_b."""

    sigma_w: np.ndarray
    sigma_b: np.ndarray
    rate: np.ndarray
    critical: np.ndarray


class Found(NamedTuple):
    """What depends on width; ``gains``: ln ||J u||^2 of each ReLU network without a dead layer, by width."""

    gains: dict[int, np.ndarray]
    moments: dict[Case, Moments]
    edges: dict[Case, Edges]


def compute() -> Found:
    """Nothing here ever holds a kernel."""
    with ThreadPoolExecutor(2) as both:  # a program of one core
        gains = dict(zip(RELU_DRAWS, both.map(relu_gains, RELU_DRAWS, RELU_DRAWS.values()), strict=True))
    of_tanh = {width: tanh_gains(width, draws) for width, draws in TANH_DRAWS.items()}
    return Found(
        {width: gains[width] for width in SHOWN},
        {RELU: moments(gains), TANH: moments(of_tanh)},
        {RELU: measured_edges(RELU, RELU_EDGES), TANH: measured_edges(TANH, TANH_EDGES)},
    )


def relu_gains(width: int, draws: int) -> np.ndarray:
    """ln ||J u||^2 of many ReLU networks in He's scaling, those with a dead layer left out: a few numbers a layer,
    whatever the width."""
    network, sigma_w = RELU.network(width, DEPTH), float(RELU.critical.sigma_w)
    box = Box(np.ones(2), np.full((2, DEPTH), sigma_w), np.zeros((2, DEPTH)))
    draw = jax.jit(jax.vmap(lambda key: draw_stack(key, network, box, GAINS, 1)))
    push = jax.jit(jax.vmap(lambda drawn: push_stack(drawn, vg.Scales(sigma_w=sigma_w), RELU.input).log_gain[-1]))
    found = []
    for keys in jax.random.split(jax.random.key(width), draws).reshape(-1, TOGETHER):
        with jax.enable_x64(True):  # sums are drawn in float64
            drawn = draw(keys)
        found.append(np.asarray(push(drawn), float))
    values = 2 * np.concatenate(found)
    return values[np.isfinite(values)]


def tanh_gains(width: int, draws: int) -> np.ndarray:
    """The same of tanh networks at their critical point: a few vectors a layer."""
    scales = {"sigma_w": float(TANH.critical.sigma_w), "sigma_b": TANH.sigma_b}
    network, key = TANH.network(width, DEPTH), jax.random.key(width)
    found = vg.sweep(network, TANH.input, key=key, seeds=draws, weights="implicit", **scales)
    return 2 * found.log_gain[:, -1].astype(float)


def moments(gains: dict[int, np.ndarray]) -> Moments:
    """With errors from the spread of the draws."""
    rows = []
    for width, values in sorted(gains.items()):
        apart = values - values.mean()
        variance, fourth, count = values.var(), np.mean(apart**4), len(values)
        errors = np.sqrt(variance / count), np.sqrt((fourth - variance**2) / count)
        rows.append((width, values.mean(), errors[0], variance, errors[1]))
    return Moments(*np.array(rows).T)


def measured_edges(case: Case, sizes: dict[int, tuple[int, int]]) -> Edges:
    """Where the growth of the gradient behind layer 20 is 0, as found by `vgjax.solve`."""
    rows = []
    for width, (depth, draws) in sizes.items():
        at = float(case.critical.sigma_w)
        root = vg.solve(
            case.network(width, depth),
            case.input,
            "sigma_w",
            key=jax.random.key(width),
            seeds=draws,
            between=(0.99 * at, (1.01 + 8 / width) * at),
            tolerance=1e-6,
            from_layer=PAST,
            weights="implicit",
            sigma_b=case.sigma_b,
        )
        rows.append((width, root.value, root.standard_error))
    return Edges(*np.array(rows).T)


def expected_edge(case: Case, width: int) -> float:
    """The same in theory's band: sigma_w at which its mean stops changing with depth."""
    at = float(case.critical.sigma_w)
    tried = at * (1 + np.linspace(0, 8 / width, 25))
    mean = case.band(width, 2 * PAST, tried).mean
    return float(np.interp(0, mean[:, -1] - mean[:, PAST], tried))


def growth_map() -> Map:
    """One draw of normals, read at every point of the grid, strip by strip."""
    sigma_w, sigma_b = (np.linspace(*ends, MAP_POINTS, dtype=np.float32) for ends in ((0.5, 3), (0, 1)))
    network, x = TANH.network(MAP_WIDTH, MAP_DEPTH), vg.data.sphere(jax.random.key(1), 1, INPUTS)[0]
    strips = []
    for part in np.split(sigma_b, STRIPS):
        found = vg.sweep(network, x, key=jax.random.key(0), seeds=1, weights="implicit", sigma_w=sigma_w, sigma_b=part)
        strips.append(found.rate())
    line = theory.critical("tanh", sigma_b[::STEP]).sigma_w
    return Map(sigma_w, sigma_b, np.concatenate(strips, axis=1), line)


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(found: Found) -> "Figure":
    """The law of the gain, its moments against width, and the measured edge against width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    law, size, edge = figure.subplots(1, 3)
    draw_law(law, found.gains)
    draw_moments(size, found.moments)
    draw_edges(edge, found.edges)
    return figure


def draw_law(ax: "Axes", gains: dict[int, np.ndarray]) -> None:
    """Densities in standard deviations of theory, each width a decade below the one before, over the normal law."""
    x, edges = np.linspace(-4.9, 4.9, 400), np.linspace(-6, 6, 41)
    middle = (edges[1:] + edges[:-1]) / 2
    for i, ((width, values), (colour, marker)) in enumerate(zip(gains.items(), LOOKS, strict=False)):
        band, down = RELU.band(width, DEPTH, float(RELU.critical.sigma_w)), 10.0**-i
        count, _ = np.histogram((values / 2 - band.mean[-1]) / band.deviation[-1], edges)
        there, unit = count > 3, down / len(values) / (edges[1] - edges[0])
        skewness = f"{skew(values):.3f}".replace("-", "−")
        bars: dict[str, Any] = {"fmt": marker, "color": colour, "markersize": 2.8, "elinewidth": 0.7}
        name = f"$n$ = {width:,}: skewness {skewness}"
        ax.errorbar(middle[there], count[there] * unit, np.sqrt(count[there]) * unit, label=name, **bars)
        ax.plot(x, down * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), color="0.5", linewidth=0.8, zorder=0)
    ax.plot([], [], color="0.5", linewidth=0.8, label="normal law")
    ax.legend(loc="lower center", handlelength=1.2, borderaxespad=0.1, fontsize=7)
    ax.set(yscale="log", xlim=(-5, 5), ylim=(6e-13 if len(gains) > 2 else 1e-7, 1))
    ax.set(xlabel=r"$(\ln \|J u\|$ − mean) / standard deviation", ylabel="density, each a decade lower")
    ax.set_title(f"ReLU, {RELU_DRAWS[SHOWN[0]]:,} networks each")
    ax.set_yticks([1, 1e-2, 1e-4, 1e-6, 1e-8])


def draw_moments(ax: "Axes", found: dict[Case, Moments]) -> None:
    """Variance (filled) and minus the mean (open) against width, over what theory expects."""
    from matplotlib.ticker import NullFormatter

    for case, at in found.items():
        widths = along(at.widths)
        bands = [case.band(n, DEPTH, float(case.critical.sigma_w)) for n in widths]
        mean, deviation = (np.array([getattr(band, name)[-1] for band in bands]) for name in ("mean", "deviation"))
        ax.plot(widths, 4 * deviation**2, color=case.colour, linewidth=0.9, zorder=0)
        ax.plot(widths, -2 * mean, color=case.colour, linewidth=0.9, linestyle="--", zorder=0)
        draw_points(ax, case, at.widths, at.variance, at.variance_error, case.colour)
        draw_points(ax, case, at.widths, -at.mean, at.mean_error, "white")
        for fill, style, word in ((case.colour, "-", "variance"), ("white", "--", "− mean")):
            look = {"color": case.colour, "mfc": fill, "linestyle": style, "linewidth": 0.9, "markersize": 3.6}
            ax.plot([], [], case.marker, label=f"{case.name}: {word}", **look)
    ax.legend(loc="upper right", handlelength=2.2, borderaxespad=0.1, fontsize=7)
    ax.text(0.03, 0.04, "lines: theory\narrows: less than", transform=ax.transAxes, fontsize=7, color="0.3")
    ax.set(xscale="log", yscale="log", xlabel="width $n$", ylabel=r"moments of $\ln \|J u\|^2$")
    ax.set_title(f"mean and variance, {DEPTH} layers")
    ax.xaxis.set_minor_formatter(NullFormatter())


def draw_edges(ax: "Axes", found: dict[Case, Edges]) -> None:
    """The distance of the measured edge from that of infinite width, over that of theory at finite width."""
    lowest = np.inf
    for case, at in found.items():
        limit = float(case.critical.sigma_w)
        widths = along(at.widths)
        expected = [expected_edge(case, n) - limit for n in widths]
        ax.plot(widths, expected, color=case.colour, linewidth=0.9, zorder=0)
        lowest = min(lowest, expected[-1])
        draw_points(ax, case, at.widths, np.abs(at.value - limit), at.error, case.colour)
        name = rf"{case.name}: $\sigma_w(\infty)$ = {limit:.4f}"
        ax.plot([], [], f"{case.marker}-", color=case.colour, linewidth=0.9, markersize=3.6, label=name)
    ends = np.array([40, 800])
    ax.plot(ends, 0.4 / ends, color="0.6", linewidth=0.8, linestyle=(0, (1, 1.5)), label="slope −1")
    ax.legend(loc="upper right", handlelength=2.2, borderaxespad=0.1, fontsize=7)
    ax.text(0.03, 0.04, "lines: theory\narrows: less than", transform=ax.transAxes, fontsize=7, color="0.3")
    ax.set(xscale="log", yscale="log", xlabel="width $n$", ylabel=r"$|\sigma_w(n) - \sigma_w(\infty)|$")
    ax.set(ylim=(lowest / 8, None), title="the edge, measured")


def along(widths: np.ndarray) -> list[int]:
    """Widths for a line from the first to the last; at least to eight times the first."""
    ends = widths[0], max(widths[-1], 8 * widths[0])
    return [int(n) for n in np.unique(np.geomspace(*ends, 14).round())]


def draw_points(ax: "Axes", case: Case, x: np.ndarray, value: np.ndarray, error: np.ndarray, fill: str) -> None:
    """With two standard errors to each side; what is below two of them as an arrow down from where it is less than."""
    sure = value > 2 * error
    bars: dict[str, Any] = {"color": case.colour, "mfc": fill, "markersize": 3.6, "elinewidth": 0.8, "mew": 0.8}
    ax.errorbar(x[sure], value[sure], 2 * error[sure], fmt=case.marker, **bars)
    top, small = (value + 2 * error)[~sure], {"elinewidth": 0.8, "capsize": 2}
    ax.errorbar(x[~sure], top, 0.6 * top, fmt="none", uplims=True, color=case.colour, **small)


@plots.styled
def draw_map(found: Map) -> "Figure":
    """Growth per layer over both scales, the measured edge, and theory's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.3), layout="constrained")
    ax = figure.subplots()
    mesh = plots.draw_rate(ax, found.sigma_w, found.sigma_b, found.rate)
    plots.name_edges(ax, plots.draw_critical_line(ax, found.critical, found.sigma_b[::STEP]))
    text_on_map(ax, 1.0, 0.7, "ordered:\ngradients\nvanish")
    text_on_map(ax, 2.3, 0.4, "chaotic:\ngradients\nexplode")
    ax.set(xlabel=plots.label("sigma_w"), ylabel=plots.label("sigma_b"))
    ax.set_title(f"{found.rate.size:,} networks: tanh, width {MAP_WIDTH}, {MAP_DEPTH} layers")
    ticks = plots.factor_ticks(mesh.norm.halfrange)
    plots.colour_bar(figure, ax, mesh, "factor on the gradient norm, per layer", ticks, plots.factor)
    return figure


if __name__ == "__main__":
    render("ensembles", compute, draw)
    render("ensembles_map", growth_map, draw_map)
