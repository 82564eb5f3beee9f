"""Deep tanh networks with orthogonal kernels, whose Jacobian is nearly an isometry where q* is small, learn sooner than
those with Gaussian ones at every q*, and both late where q* is large (Pennington, Schoenholz and Ganguli 2017,
"Resurrecting the sigmoid in deep learning through dynamical isometry", arXiv 1711.04735).

The measured Jacobians are those of the networks that are trained: at a depth of half the width Gaussian ones lie below
theory's infinite width and scatter. The best conditioned networks, of the smallest q*, are not the fastest:
conditioning is not all, their outputs are also the smallest at the start.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from common import SMALL, render

import vgjax as vg
from vgjax import plots, theory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DEPTH, SEEDS, STEPS = (16, 4, 1, 20) if SMALL else (64, 32, 2, 400)
Q_STAR = (0.1, 1.0) if SMALL else (1 / 64, 1 / 16, 1 / 4, 1.0, 4.0)
RATES = [0.03, 0.1] if SMALL else [0.01, 0.03, 0.1, 0.3]
LEARNED = 1.0  # loss below which an image is mostly told right; at the start it is ln 10 = 2.3
LAWS = {"orthogonal": (plots.VANISHING, "o", "-"), "gaussian": (plots.EXPLODING, "s", "--")}


@dataclass(frozen=True)
class Learned:
    """One law of the kernels at every q*, and theory on a fine grid.

    Attributes:
        time: steps until the loss is below `LEARNED`, at the best learning rate, shape ``(q, seeds)``; inf if never.
        largest: measured ln of the largest squared singular value of the Jacobian, shape ``(q, seeds)``.
        expected: the same at infinite width, shape ``(fine,)``.
    """

    time: np.ndarray
    largest: np.ndarray
    expected: np.ndarray


FINE = np.geomspace(Q_STAR[0] / 1.5, Q_STAR[-1] * 1.5, 4 if SMALL else 40)


def compute() -> dict[str, Learned]:
    """Trainings on images of digits, at criticality."""
    training, _ = vg.data.split(jax.random.key(9), vg.data.digits())
    return {law: learned(law, training) for law in LAWS}


def learned(law: str, training: vg.data.Examples) -> Learned:
    """Trainings and Jacobians of one law of the kernels."""
    sizes: dict[str, Any] = {"width": WIDTH, "depth": DEPTH, "inputs": 64, "outputs": 10, "kernel_init": law}
    network = vg.mlp(activation="tanh", **sizes)
    times, largest = [], []
    for q in Q_STAR:
        edge = theory.critical("tanh", q=q)
        scales = vg.Scales(sigma_w=edge.sigma_w, sigma_b=edge.sigma_b, sigma_in=np.sqrt(q - edge.sigma_b**2))
        options: dict[str, Any] = {"key": jax.random.key(0), "seeds": SEEDS, "scales": scales}
        measure = vg.trainings(training, "sgd", STEPS, batch_size=32)
        runs = vg.sweep(network, measure=measure, learning_rate=RATES, **options)
        times.append(first_below(runs.loss.astype(float)).min(axis=1))
        jacobian = vg.sweep(network, training.inputs[0], measure=vg.spectra([DEPTH]), **options)
        largest.append(2 * jacobian.log_singular_values[:, 0, 0].astype(float))
    expected = np.array([theory.free_probability.log_largest_singular_value("tanh", q, DEPTH, None, law) for q in FINE])
    return Learned(np.array(times), np.array(largest), 2 * expected)


def first_below(loss: np.ndarray) -> np.ndarray:
    """The first step whose loss, averaged over 10 steps, is below `LEARNED`; inf if there is none."""
    window = np.ones(10) / 10
    smooth = np.apply_along_axis(lambda one: np.convolve(one, window, "valid"), -1, loss)
    below = smooth < LEARNED
    return np.where(below.any(axis=-1), below.argmax(axis=-1) + len(window), np.inf)


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(data: dict[str, Learned]) -> "Figure":
    """How badly conditioned the Jacobian is, and how long learning takes, both against q*."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    spectrum, time = figure.subplots(1, 2)
    for law, found in data.items():
        colour, marker, style = LAWS[law]
        text = law.replace("gaussian", "Gaussian")
        spectrum.plot(FINE, found.expected, color=colour, linestyle=style, linewidth=1.1)
        spectrum.plot(Q_STAR, found.largest, marker, color=colour, markersize=4, mec="white", mew=0.4)
        spectrum.plot([], [], color=colour, linestyle=style, marker=marker, markersize=4, linewidth=1.1, label=text)
        finite = np.where(np.isfinite(found.time), found.time, np.nan)
        time.plot(Q_STAR, np.median(found.time, axis=1), color=colour, linestyle=style, linewidth=1.1, label=text)
        time.plot(Q_STAR, finite, marker, color=colour, markersize=4, mec="white", mew=0.4)
    return finish(figure, spectrum, time, data)


def finish(figure: "Figure", spectrum: "Axes", time: "Axes", data: dict[str, Learned]) -> "Figure":
    """Axes, and words for what is not learned in time."""
    for ax in (spectrum, time):
        ax.set(xscale="log", xlabel="$q^*$, variance of the preactivations", xlim=(FINE[0], FINE[-1]))
        ticks = [q for q in (1 / 64, 1 / 16, 1 / 4, 1.0, 4.0) if FINE[0] < q < FINE[-1]]
        ax.set_xticks(ticks, [f"1/{1 / q:.0f}" if q < 0.9 else f"{q:g}" for q in ticks])
        ax.minorticks_off()
    spectrum.text(
        0.03,
        0.97,
        f"lines: theory, infinite width\n(here depth / width = {DEPTH / WIDTH:g})",
        transform=spectrum.transAxes,
        va="top",
        fontsize=7,
    )
    spectrum.set(ylabel=r"$s_{max}^2$ of the Jacobian", ylim=(-1.9, None))
    spectrum.set_yticks(np.log([1, 3, 10, 30, 100, 300]), [1, 3, 10, 30, 100, 300])
    spectrum.set_title(f"{DEPTH} layers, width {WIDTH}, {SEEDS} draws")
    spectrum.legend(loc="lower right", fontsize=7, handlelength=1.8)
    time.set(yscale="log", ylabel=f"steps until the loss is below {LEARNED:g}", ylim=(15, 2 * STEPS))
    time.set_yticks([20, 50, 100, 200, 400], [20, 50, 100, 200, 400])
    time.minorticks_off()
    time.axhline(STEPS, color="0.7", linewidth=0.7, linestyle=":")
    for law, found in data.items():
        late = np.isinf(found.time).sum(axis=1)
        for q, count in zip(Q_STAR, late, strict=True):
            if count:
                marker, colour = LAWS[law][1], LAWS[law][0]
                time.plot(
                    q * (0.9 if law == "gaussian" else 1.1),
                    STEPS * 1.25,
                    marker,
                    color=colour,
                    mfc="white",
                    markersize=4,
                )
    time.text(FINE[0] * 1.1, STEPS * 1.25, f"not within {STEPS} steps", va="center", fontsize=7)
    time.set_title("learning, at the best of four rates")
    return figure


if __name__ == "__main__":
    render("learning_time", compute, draw)
