"""Free maps between the streams of hyper-connections amplify without bound; doubly stochastic ones keep what all
streams share, to rounding forward and to Sinkhorn's column error backward."""

import functools
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

DEPTH, SEEDS, MATRICES = (12, 40, 40) if SMALL else (60, 4000, 2000)
STREAMS, LOGIT = 4, 3.0
FREE = (0.05, 0.1, 0.277)  # the last: a gain of 3000 over 60 maps, as Xie et al. 2025 report of a training
SPREADS = np.array([1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0])


@dataclass(frozen=True)
class Gains:
    """ln of factors on the norm of what all streams share, over maps crossed; shape ``(seeds, depth + 1)``."""

    forward: np.ndarray
    backward: np.ndarray

    @property
    def annealed(self) -> tuple[np.ndarray, np.ndarray]:
        """ln of the root mean squares over draws."""
        return tuple(np.log(np.mean(np.exp(2 * gain), axis=0)) / 2 for gain in (self.forward, self.backward))


def compute() -> tuple[dict[float, Gains], np.ndarray]:
    """Gains of free maps by their deviation (0: a plain skip) and of constrained ones (NaN); column errors of
    constrained maps by the spread of their logits, shape ``(spreads, matrices)``."""
    free = gains(network(), [0.0, *FREE])
    return free | {float("nan"): gains(network(logit=LOGIT), [1.0])[1.0]}, column_errors()


def network(**options: Any) -> vg.Network:
    """Nothing but maps: the branch is there and switched off."""
    block = vg.networks.hyper_connections(vg.dense(1, 1), STREAMS, **options)
    return vg.stack(block, depth=DEPTH, input_shape=1, stem=vg.blocks.spec(vg.blocks.Split, STREAMS))


def gains(network: vg.Network, deviations: list[float]) -> dict[float, Gains]:
    """Of draws, by the deviation of the maps or of their logits."""
    options: dict[str, Any] = {"key": jax.random.key(0), "seeds": SEEDS, "scales": vg.Scales(branch=0.0)}
    found = vg.sweep(network, np.ones(1), measure=SHARED, sigma_r=deviations, **options)
    forward, backward = (np.asarray(gain, float) for gain in (found.forward, found.backward[..., ::-1]))
    return {deviation: Gains(forward[:, i], backward[:, i]) for i, deviation in enumerate(deviations)}


def shared(parameters: vg.networks.Parameters, scales: vg.Scales, x: jax.Array) -> dict[str, jax.Array]:
    """Of a tangent that is the same in all streams, as a stem makes it, and of such a cotangent, as a head makes it."""
    alike = jnp.full((STREAMS, 1), STREAMS**-0.5)
    push, pull = (f(parameters, scales, x, alike) for f in (vg.push_forward, vg.pull_back))
    return {"forward": push.log_gain, "backward": pull.log_gain}


SHARED = vg.measurement(shared, {"forward": ("layer",), "backward": ("layer",)})


@functools.cache
def column_errors() -> np.ndarray:
    """Of single maps, after the 20 steps that are the default."""
    draws = np.random.default_rng(0).normal(size=(MATRICES, STREAMS, STREAMS))
    return np.array([[theory.streams.sinkhorn(s * logits).column_error for logits in draws] for s in SPREADS])


# --- drawing ------------------------------------------------------------------------------------------------------


@plots.styled
def draw(data: tuple[dict[float, Gains], np.ndarray]) -> "Figure":
    """Forward, backward, and the error that is left on the columns."""
    from matplotlib.figure import Figure

    found, errors = data
    figure = Figure(figsize=(7.2, 3), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    for ax, way, title in ((left, 0, "forward"), (middle, 1, "backward")):
        draw_gains(ax, found, way)
        ax.set(title=title, xlabel="maps crossed, $l$", xlim=(0, DEPTH))
    middle.sharey(left)
    middle.tick_params(labelleft=False)
    left.set_ylabel("factor on what all streams share")
    left.set_ylim(top=1.3 * left.get_ylim()[1])
    left.set_yticks(plots.powers_of_ten(*left.get_ylim()))
    left.yaxis.set_major_formatter(plots.power_of_ten)
    left.plot([], [], "k", linewidth=0.8, label=r"theory, $(1 + n \epsilon^2)^{l/2}$")
    left.legend(loc="upper left", fontsize=6.5, title=f"$n$ = {STREAMS} streams, {SEEDS} draws", alignment="left")
    draw_errors(right, errors)
    return figure


def draw_gains(ax: "Axes", found: dict[float, Gains], way: int) -> None:
    """Root mean square of all draws as dots, 16% to 84% of the draws as a band, theory as lines."""
    colours = dict(zip(found, ("#4d4d4d", "#fdae61", "#f46d43", plots.EXPLODING, plots.VANISHING), strict=True))
    layers, dots = np.arange(DEPTH + 1), slice(0, None, max(1, DEPTH // 10))
    for deviation, gain in found.items():
        constrained = np.isnan(deviation)
        of_draws = (gain.forward, gain.backward)[way]
        expected = 0 * layers if constrained else theory.streams.free_maps_log_gain(deviation, 1, STREAMS) * layers / 2
        ax.plot(layers, expected, "k", linewidth=0.8, zorder=3)
        ax.fill_between(
            layers, *np.quantile(of_draws, (0.16, 0.84), axis=0), color=colours[deviation], alpha=0.25, lw=0
        )
        name = (
            "doubly stochastic" if constrained else f"free, $\\epsilon$ = {deviation:g}" if deviation else "plain skip"
        )
        style: dict[str, Any] = {"mec": "white", "mew": 0.5, "clip_on": False, "zorder": 4}
        marker, size = ("s", 3) if constrained else ("D", 5) if not deviation else ("o", 3.5)
        style |= {"zorder": 5} if constrained else {}
        ax.plot(layers[dots], gain.annealed[way][dots], marker, color=colours[deviation], ms=size, label=name, **style)


def draw_errors(ax: "Axes", errors: np.ndarray) -> None:
    """Median and the middle two thirds, over the spread of the logits."""
    ax.fill_between(SPREADS, *np.quantile(errors, (0.16, 0.84), axis=1), color=plots.VANISHING, alpha=0.25, lw=0)
    ax.plot(SPREADS, np.median(errors, axis=1), "s-", color=plots.VANISHING, ms=3, mec="white", mew=0.5, lw=0.9)
    ax.set_yscale("log")
    ax.set(xlabel="spread of the logits", ylabel="largest column error", title="20 steps of Sinkhorn")


if __name__ == "__main__":
    render("hyper_connections", compute, draw)
