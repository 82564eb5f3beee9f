"""A recurrent unit that holds a bit safely cannot learn to: latched, it forgets the gradient as |w phi'|^t, and the
longer a bit must be held the fewer trainings succeed (Bengio, Simard and Frasconi 1994, "Learning long-term
dependencies with gradient descent is difficult", the latching problem).

The unit is x' = tanh(w x + u). A class is told by the first three u, which are learned with w (one class has the
other's with the opposite sign); all later u are noise. After T steps x is to be 0.8 or -0.8. Theory is without noise,
which moves x along the bend of tanh: with one attractor the slope is smaller than theory's, with two that are close,
between which bits are lost, larger.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import SMALL, render
from jax import Array

from vgjax import plots, theory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INFORMED, NOISE, TARGET = 3, 0.2, 0.8  # steps that tell the class, deviation of the noise, what is asked for
HELD = {0.8: ("#1b7837", "v"), 1.25: (plots.CRITICAL, "o"), 1.6: (plots.VANISHING, "s"), 2.0: (plots.EXPLODING, "^")}
STEPS, CHAINS = 40, (50 if SMALL else 4000)
SCANNED = tuple(np.round(np.linspace(0.6, 2.2, 3 if SMALL else 17), 2))
FROM = {0.4: (plots.VANISHING, "s"), 0.7: ("#1b7837", "v"), 1.0: (plots.CRITICAL, "o"), 1.4: (plots.EXPLODING, "^")}
LENGTHS = (4, 10) if SMALL else (4, 6, 10, 16, 25, 40, 63, 100)
TRIALS, UPDATES, EXAMPLES, RATE = (10, 40, 8, 0.1) if SMALL else (100, 1000, 16, 0.1)
TESTS, RIGHT = 200, 0.95  # noises a trained unit is tested on, and the share that must be right


class Latching(NamedTuple):
    """What a latched unit does to a gradient, and how often latching is learned.

    Attributes:
        log_slope: ln |dx_T/dx_{T-k}| for k = 0, 1, ..., of every noise, by w, shape ``(chains, steps + 1)``.
        held: share of the chains of w above 1 that end with the sign they began with, by w; below 1 half is chance.
        succeeded: share of the trainings, by the first w, shape ``(lengths,)``.
    """

    log_slope: dict[float, np.ndarray]
    held: dict[float, float]
    succeeded: dict[float, np.ndarray]


def compute() -> Latching:
    """4000 noises of 40 steps at each w; 100 trainings of each length from each first w."""
    chains = {w: latched(w) for w in sorted({*HELD, *SCANNED})}
    succeeded = np.array([successes(length) for length in LENGTHS]).T
    slopes, held = ({w: each[i] for w, each in chains.items()} for i in range(2))
    return Latching(slopes, held, dict(zip(FROM, succeeded, strict=True)))


def latched(w: float) -> tuple[np.ndarray, float]:
    """From the upper fixed point, under noise: ln of the last state's slope by each before, and what is held."""
    start = jnp.full(CHAINS, theory.recurrent.latch(w).points.max())

    def step(x: Array, u: Array) -> tuple[Array, Array]:
        after = jnp.tanh(w * x + u)
        return after, jnp.log(w * (1 - after**2))

    noise = NOISE * jax.random.normal(jax.random.key(0), (STEPS, CHAINS))
    end, logs = jax.jit(lambda: jax.lax.scan(step, start, noise))()
    back = np.cumsum(np.asarray(logs, float)[::-1], axis=0).T
    return np.concatenate([np.zeros((CHAINS, 1)), back], axis=1), float((end > 0).mean())


def successes(length: int) -> np.ndarray:
    """Of trainings by gradient descent, each with first inputs and noises of its own, the share that hold the bit, by
    first w."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), length), TRIALS)
    many = jax.vmap(jax.vmap(trained, (0, None, None)), (None, 0, None))
    right = jax.jit(many, static_argnums=2)(keys, jnp.array([*FROM]), length)
    return np.asarray(right >= RIGHT).mean(axis=1)


def trained(key: Array, w: Array, length: int) -> Array:
    """The share of noises under which a unit holds the bit, once trained from w and small random first inputs."""

    def update(parameters: dict[str, Array], key: Array) -> tuple[dict[str, Array], None]:
        def loss(parameters: dict[str, Array]) -> Array:
            return jnp.mean((last(parameters, key, length, EXAMPLES) - TARGET) ** 2)

        return jax.tree.map(lambda p, g: p - RATE * g, parameters, jax.grad(loss)(parameters)), None

    of_start, of_noise, of_test = jax.random.split(key, 3)
    start = {"w": w, "u": NOISE * jax.random.normal(of_start, (INFORMED,))}
    end, _ = jax.lax.scan(update, start, jax.random.split(of_noise, UPDATES))
    return jnp.mean(last(end, of_test, length, TESTS) > 0)


def last(parameters: dict[str, Array], key: Array, length: int, count: int) -> Array:
    """x_T of the class +1 under ``count`` noises."""
    u = NOISE * jax.random.normal(key, (length, count))
    u = u.at[:INFORMED].set(jnp.broadcast_to(parameters["u"][:, None], (INFORMED, count)))
    return jax.lax.scan(lambda x, u: (jnp.tanh(parameters["w"] * x + u), None), jnp.zeros(count), u)[0]


# --- drawing --------------------------------------------------------------------------------------------------------


@plots.styled
def draw(found: Latching) -> "Figure":
    """The gradient through a latched unit; what it holds and lets through, against w; trainings that succeed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    gradient, dilemma, learned = figure.subplots(1, 3)
    draw_gradient(gradient, found)
    draw_dilemma(dilemma, found)
    for w, (colour, marker) in FROM.items():
        share = found.succeeded[w]
        error = np.sqrt(share * (1 - share) / TRIALS)
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 3.6, "linewidth": 0.9}
        learned.errorbar(LENGTHS, share, error, label=f"$w$ = {w:g}", elinewidth=0.7, **style)
    learned.set(xscale="log", xlabel="steps to hold the bit, $T$", ylim=(-0.03, 1.05), ylabel="share that learn to")
    learned.set_xticks(LENGTHS[::2], [str(length) for length in LENGTHS[::2]])
    learned.minorticks_off()
    learned.set_title(f"{TRIALS} trainings each")
    learned.legend(title="at the start", alignment="left", fontsize=7, handlelength=1.8, loc=(0.62, 0.57))
    return figure


def draw_gradient(ax: "Axes", found: Latching) -> None:
    """Mean of the logarithm over noises as dots, theory without noise as lines."""
    back = np.arange(STEPS + 1)
    for w, (colour, marker) in HELD.items():
        mean, spread = found.log_slope[w].mean(axis=0), found.log_slope[w].std(axis=0)
        ax.fill_between(back, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
        ax.plot(back[::4], mean[::4], marker, color=colour, markersize=3.4, label=f"$w$ = {w:g}")
        ax.plot(back, back * np.log(slope(w)), color=colour, linewidth=0.9)
    ax.plot([], [], color="0.4", linewidth=0.9, label="theory, no noise")
    ax.set(xlabel="steps back, $T - t$", ylabel=r"$|\partial x_T / \partial x_t|$", xlim=(0, STEPS), ylim=(-76, 3))
    ax.set_yticks(plots.powers_of_ten(*ax.get_ylim()))
    ax.yaxis.set_major_formatter(plots.power_of_ten)
    ax.set_title("gradient through a held bit")
    ax.legend(loc="lower left", fontsize=7, handlelength=1.4)


def slope(w: float) -> float:
    """w phi' at the uppermost fixed point: what a step leaves of a perturbation."""
    return float(theory.recurrent.latch(w).slopes[-1])


def draw_dilemma(ax: "Axes", found: Latching) -> None:
    """Against w: the slope of a step, measured and in theory, and the share of bits held."""
    fine = np.concatenate([np.linspace(SCANNED[0], 0.999, 40), np.linspace(1.001, SCANNED[-1], 80)])
    ax.plot(fine, [slope(w) for w in fine], color="k", linewidth=1, label="slope of a step, theory")
    measured = [np.exp(found.log_slope[w].mean(axis=0)[-1] / STEPS) for w in SCANNED]
    ax.plot(SCANNED, measured, "o", color=plots.EXPLODING, markersize=3.6, label="the same, measured")
    held = [found.held[w] for w in SCANNED]
    ax.plot(SCANNED, held, "s--", color=plots.VANISHING, mfc="white", markersize=3.6, linewidth=0.8, label="bits held")
    ax.axvspan(SCANNED[0], 1, color="0.93", linewidth=0, zorder=-2)
    ax.text(0.8, 0.03, "one\nattractor", ha="center", fontsize=7)
    ax.text(1.3, 0.03, "two", ha="center", fontsize=7)
    ax.set(
        xlabel="recurrent weight $w$",
        ylabel="slope of a step; share of bits",
        xlim=(SCANNED[0], SCANNED[-1]),
        ylim=(0, 1.45),
    )
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    ax.set_title(f"{STEPS} steps, noise {NOISE:g}")
    ax.legend(loc="upper right", fontsize=7, handlelength=1.6, borderaxespad=0.1)


if __name__ == "__main__":
    render("bengio_latch", compute, draw)
