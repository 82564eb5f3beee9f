"""Dynamical isometry: if q* falls with depth as L^(-1/2), orthogonal kernels hold the singular values of J in one band
around 1 at every depth (all but one of them); Gaussian kernels cannot."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from common import SMALL, render

import vgjax as vg
from vgjax import plots, theory
from vgjax.theory import free_probability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DRAWS, DEEPEST = (48, 2, 2) if SMALL else (400, 4, 128)
MORE_DRAWS = 2 * DRAWS  # of ReLU, which scatters most
NARROW = 100
Q_STAR = 1 / 16
VARIANCE = 0.25  # of s^2 over its squared mean, where q* follows the depth
SHARE = 0.05  # of the singular values beyond either end of the spectrum's spread


class Scales(NamedTuple):
    """Of a network at a critical fixed point: sigma_w, sigma_b and q."""

    sigma_w: float
    sigma_b: float
    q: float


@dataclass(frozen=True)
class Family:
    """Networks of every depth.

    Attributes:
        activation, kernel_init: of all of them.
        scales: by depth.
        depths: at which they are measured.
        fixed: whether the scales are the same for every depth, so that one network serves all.
        width, draws: of each network.
    """

    activation: str
    kernel_init: str
    scales: Callable[[int], Scales]
    depths: Sequence[int]
    fixed: bool = True
    width: int = WIDTH
    draws: int = DRAWS


@dataclass(frozen=True)
class Measured:
    """Singular values of J_{L<-0} against L, and what infinite width expects of them.

    Attributes:
        family: of networks.
        log_singular_values: descending, shape ``(draws, measured depths, width)``.
        depths: the L of the theory.
        log_largest: of theory, shape ``(depths,)``.
        log_spread: ln(s_95% / s_5%) of theory, same shape; NaN where the law has atoms.
    """

    family: Family
    log_singular_values: np.ndarray
    depths: np.ndarray
    log_largest: np.ndarray
    log_spread: np.ndarray

    @property
    def spreads(self) -> np.ndarray:
        """ln(s_95% / s_5%) of every draw, shape ``(draws, measured depths)``."""
        lower, upper = np.quantile(self.log_singular_values, [SHARE, 1 - SHARE], axis=-1, method="higher")
        return upper - lower


def compute() -> dict[str, Measured]:
    """4 draws of width 400 (of ReLU 8) in six families of networks, up to 128 layers, and narrow ones of the first."""
    return {name: measured(family) for name, family in families().items()}


def families() -> dict[str, Family]:
    """Linear, ReLU and tanh layers at criticality, measured at depths that do not hide each other."""
    linear, relu = Scales(1.0, 0.0, 1.0), Scales(2**0.5, 0.0, 1.0)
    point = critical(Q_STAR)
    twos = [2**i for i in range(int(np.log2(DEEPEST)) + 1)]
    threes = [1, *(3 * n for n in twos if 3 * n <= DEEPEST)]
    found = {
        "ReLU, Gaussian": Family("relu", "gaussian", lambda _: relu, twos, draws=MORE_DRAWS),
        "ReLU, orthogonal": Family("relu", "orthogonal", lambda _: relu, threes, draws=MORE_DRAWS),
        "linear, Gaussian": Family("linear", "gaussian", lambda _: linear, twos[::2]),
        "tanh, Gaussian, $q^*(L)$": Family("tanh", "gaussian", following, twos[1::2], fixed=False),
        f"tanh, orthogonal, $q^*$ = 1/{1 / Q_STAR:g}": Family("tanh", "orthogonal", lambda _: point, twos),
        "tanh, orthogonal, $q^*(L)$": Family("tanh", "orthogonal", following, twos[1::2], fixed=False),
        f"ReLU, Gaussian, width {NARROW}": Family(
            "relu", "gaussian", lambda _: relu, twos, width=NARROW, draws=2 * MORE_DRAWS
        ),
    }
    return {name: found[name] for name in [*found][::5]} if SMALL else found


def following(depth: int) -> Scales:
    """tanh at the q* at which orthogonal kernels give the spectrum the same variance at every depth."""
    q = free_probability.q_for_variance("tanh", depth, VARIANCE)
    assert q is not None
    return critical(q)


def critical(q: float) -> Scales:
    """tanh where chi = 1 at the fixed point q."""
    point = theory.critical("tanh", q=q)
    return Scales(float(point.sigma_w), float(point.sigma_b), q)


def measured(family: Family) -> Measured:
    """From one pass for all depths if the scales are fixed, else from one for each depth."""
    runs = [family.depths] if family.fixed else [[depth] for depth in family.depths]
    found = np.concatenate([draws(family, depths) for depths in runs], axis=1)
    depths = np.unique(np.geomspace(1, DEEPEST, 40).round().astype(int))
    log_largest, log_spread = np.array([expected(family, int(depth)) for depth in depths]).T
    return Measured(family, found, depths, log_largest, log_spread)


def draws(family: Family, depths: Sequence[int]) -> np.ndarray:
    """ln s of networks as deep as the last depth, begun at their fixed point, shape ``(draws, depths, width)``."""
    sigma_w, sigma_b, q = family.scales(depths[-1])
    network = vg.mlp(
        width=family.width,
        depth=depths[-1],
        activation=family.activation,
        inputs=family.width,
        kernel_init=family.kernel_init,
    )
    x = np.sqrt(q - sigma_b**2) / sigma_w * vg.data.sphere(jax.random.key(1), 1, family.width)[0]
    options: dict[str, Any] = {"measure": vg.spectra(depths), "key": jax.random.key(2), "seeds": family.draws}
    return vg.sweep(network, x, sigma_w=sigma_w, sigma_b=sigma_b, **options).log_singular_values


def expected(family: Family, depth: int) -> tuple[float, float]:
    """ln of the largest singular value and ln(s_95% / s_5%) at infinite width."""
    sigma_w, _, q = family.scales(depth)
    point = (family.activation, q, depth, sigma_w, family.kernel_init)
    largest, law = free_probability.log_largest_singular_value(*point), free_probability.spectral_density(*point)
    if law.atoms:
        return largest, np.nan
    lower, upper = np.interp([SHARE, 1 - SHARE], law.cumulative, law.log_s)
    return largest, upper - lower


# --- drawing --------------------------------------------------------------------------------------------------------

LINE: dict[str, Any] = {"color": "k", "linewidth": 0.7}
DOTS: dict[str, Any] = LINE | {"linestyle": (0, (1, 1.5))}
COLOURS = {"relu": plots.EXPLODING, "linear": plots.CRITICAL, "tanh": plots.VANISHING}
MARKERS = {"relu": "s", "linear": "D", "tanh": "o"}
FROM = 16  # depth from which the value that is left behind lies apart from the others


@plots.styled
def draw(found: dict[str, Measured]) -> "Figure":
    """The largest singular value; the spread of the spectrum of tanh; how far finite width is from theory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    largest, spread, away = figure.subplots(1, 3)
    for name, one in found.items():
        draw_away(away, one, name)
        if one.family.width != WIDTH:
            continue
        largest.plot(one.depths, np.exp(2 * one.log_largest), **LINE)
        draw_points(largest, one, 2 * one.log_singular_values[..., 0], name)
        if one.family.activation == "tanh":
            spread.plot(one.depths, one.log_spread, **LINE)
            draw_points(spread, one, np.log(one.spreads))
        if one.family.kernel_init == "orthogonal" and not one.family.fixed:
            draw_smallest(spread, one)
    away.axhline(0, **LINE)
    ticks = [4**i for i in range(int(np.log2(DEEPEST) / 2) + 1)]
    for ax in (largest, spread):
        ax.set(xscale="log", yscale="log", xlabel="depth $L$", xlim=(0.9, 1.15 * DEEPEST))
        ax.set_xticks(ticks, [str(t) for t in ticks])
        ax.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    largest.set(ylim=(0.9, 1200), ylabel=r"largest $s^2$ of $J_{L \leftarrow 0}$")
    largest.set_title(rf"width {WIDTH}, {DRAWS} to {MORE_DRAWS} draws $\pm$ 1 s.d.")
    spread.set(ylim=(0.1, 500), ylabel=r"$\ln\, (s_{95\%} / s_{5\%})$", title="spread of the spectrum, tanh")
    away.set(xscale="log", xlabel="depth / width", title=r"finite width, $\pm$ 1 s.e.")
    away.set_ylabel(r"$\ln$ (largest $s^2$ / theory)", labelpad=1)
    if not SMALL:
        write(largest, spread)
    name_marks(figure, largest, away)
    return figure


def style(family: Family) -> dict[str, Any]:
    """Colour by activation, open for Gaussian kernels, triangles where q* follows the depth, small if narrow."""
    colour = COLOURS[family.activation]
    return {
        "color": colour,
        "mfc": "white" if family.kernel_init == "gaussian" else colour,
        "marker": MARKERS[family.activation] if family.fixed else "^",
        "markersize": 4 if family.width == WIDTH else 2.6,
        "mew": 0.8,
        "elinewidth": 0.8,
        "linestyle": "",
        "zorder": 3,
    }


def draw_points(ax: "Axes", one: Measured, logs: np.ndarray, name: str = "") -> None:
    """exp of the mean over draws, with bars of one standard deviation, of logs of shape ``(draws, depths)``."""
    mean, deviation = logs.mean(axis=0), logs.std(axis=0, ddof=1)
    bars = np.exp(mean) - np.exp(mean - deviation), np.exp(mean + deviation) - np.exp(mean)
    ax.errorbar(one.family.depths, np.exp(mean), bars, label=name, **style(one.family))


def draw_smallest(ax: "Axes", one: Measured) -> None:
    """The one value that is left behind, near the state's own direction: pulled back through a layer of tanh, the part
    of the state along itself grows by E[h phi / phi'] / q = exp(2 q), as phi' and h are not independent."""
    depths = one.depths[one.depths >= FROM]
    ax.plot(depths, [2 * one.family.scales(int(depth)).q * depth for depth in depths], **DOTS)
    smallest = one.log_singular_values[..., -1]
    here = np.array(one.family.depths) >= FROM
    mean, deviation = -smallest.mean(axis=0)[here], smallest.std(axis=0, ddof=1)[here]
    bars = style(one.family) | {"marker": "x"}
    ax.errorbar(np.array(one.family.depths)[here], mean, deviation, **bars)


def draw_away(ax: "Axes", one: Measured, name: str) -> None:
    """Mean log of the largest s^2 over theory, against depth / width."""
    depths = np.array(one.family.depths)
    theory_there = [expected(one.family, int(depth))[0] for depth in depths]
    logs = 2 * (one.log_singular_values[..., 0] - theory_there)
    error = logs.std(axis=0, ddof=1) / np.sqrt(len(logs))
    ax.errorbar(depths / one.family.width, logs.mean(axis=0), error, label=name, **style(one.family))


def write(largest: "Axes", spread: "Axes") -> None:
    """Names of curves, where they leave room."""
    for factor in (1, 2):
        name = f"${factor if factor > 1 else ''}eL$"
        largest.text(1.22 * DEEPEST, factor * np.e * DEEPEST, name, fontsize=7, va="center")
    largest.text(40, 1.45, r"$q^*(L) \sim L^{-1/2}$", fontsize=7, ha="center")
    words = "$\\times$: $-\\ln s$ of the smallest,\n$q^*(L)$: one value a draw,\nat $2 q^* L$ (dotted)"
    spread.text(140, 0.14, words, fontsize=7, ha="right")


def name_marks(figure: "Figure", largest: "Axes", away: "Axes") -> None:
    """What is drawn, below the panels."""
    from matplotlib.lines import Line2D

    marks = {name: mark for ax in (largest, away) for mark, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    marks["theory, infinite width"] = Line2D([], [], **LINE)
    figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=4, fontsize=7, handlelength=1.2)


if __name__ == "__main__":
    render("isometry", compute, draw)
