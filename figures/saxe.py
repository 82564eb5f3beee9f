"""Deep linear networks in closed form: strong modes first, what large steps make of it, and the price of depth."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import SMALL, render

import vgjax as vg
from vgjax import plots
from vgjax.theory import linear_dynamics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = 6  # of inputs, outputs and hidden states
MODES, START, LAST = (4.0, 2.0, 1.0, 0.5), 1e-3, 12.0
RATES, FIRST, END = (0.1, 0.95, 1.15, 2.4), 0.01, 12.0  # of the limit; where one mode of s = 1 starts; until when
DEPTHS = (2, 3) if SMALL else (2, 3, 4, 6, 8, 10, 12)
SAME_MAP, SAME_WEIGHTS = 0.01, (0.5, 0.25)


class Dynamics(NamedTuple):
    """What was measured, all in float64; time is learning rate x steps.

    Attributes:
        times, modes: of two matrices under gradient flow: strengths of `MODES`, shape ``(times, modes)``.
        steps: strength of one mode of s = 1 after every step of gradient descent, by learning rate.
        halves: time to half of s = 1 by (depth, strength of every matrix in the beginning), under gradient flow.
    """

    times: np.ndarray
    modes: np.ndarray
    steps: dict[float, np.ndarray]
    halves: dict[tuple[int, float], float]


def compute() -> Dynamics:
    """Balanced, aligned weights; whitened inputs; targets of known singular values."""
    times = np.linspace(0, LAST, 6 if SMALL else 31)
    modes = flow(2, MODES, [START**0.5] * len(MODES), times)
    steps = {rate: descent(rate, round(END / rate)) for rate in RATES}
    return Dynamics(times, modes, steps, {(n, w): half_time(n, w) for n in DEPTHS for w in weights(n)})


def weights(layers: int) -> tuple[float, ...]:
    """Strengths of every matrix in the beginning: one for the same map at any depth, the others the same."""
    return (float(SAME_MAP ** (1 / layers)), *SAME_WEIGHTS)


def half_time(layers: int, weight: float) -> float:
    """When u comes to 1/2, by interpolation."""
    expected = linear_dynamics.learning_time(0.5, 1.0, weight**layers, layers)
    times = np.concatenate([[0.0], np.linspace(0.8, 1.1, 400) * expected])
    u = flow(layers, [1.0], [weight], times)[:, 0]
    return float(np.interp(0.5, u, times))


# --- the networks ---------------------------------------------------------------------------------------------------


def linear(layers: int) -> vg.Network:
    """So many square matrices and nothing else."""
    return dataclasses.replace(vg.mlp(width=[SIZE] * layers, activation="linear", inputs=SIZE), head=None)


def bases(layers: int) -> list[np.ndarray]:
    """Singular vectors at the input, between the matrices and at the output."""
    rng = np.random.default_rng(0)
    return [np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0] for _ in range(layers + 1)]


def examples(layers: int, strengths: Sequence[float]) -> vg.data.Examples:
    """Inputs of mean 0 and covariance 1, targets of these singular values."""
    first, *_, last = bases(layers)
    inputs = np.sqrt(SIZE) * np.concatenate([np.eye(SIZE), -np.eye(SIZE)])
    return vg.data.Examples(inputs, inputs @ (first * padded(strengths)) @ last.T)


def aligned(layers: int, strengths: Sequence[float]) -> vg.networks.Parameters:
    """Every matrix with the same strengths in its modes, from the singular vectors of one side to those of the next."""
    vectors = bases(layers)
    kernels = [left * padded(strengths) @ right.T for left, right in itertools.pairwise(vectors)]
    blocks = {"kernel": np.stack(kernels[1:]), "bias": np.zeros((layers - 1, SIZE))}
    return vg.networks.Parameters({"kernel": kernels[0], "bias": np.zeros(SIZE)}, (blocks,), {}, linear(layers))


def padded(strengths: Sequence[float]) -> np.ndarray:
    return np.concatenate([strengths, np.zeros(SIZE - len(strengths))])


def strengths_of(parameters: Any, layers: int, modes: int) -> np.ndarray:
    """Of the product of the matrices, shape ``(modes,)``."""
    first, *_, last = bases(layers)
    product = np.linalg.multi_dot([parameters.stem["kernel"], *parameters.stages[0]["kernel"]])
    return np.einsum("im,ij,jm->m", first, product, last)[:modes]


def flow(layers: int, ends: Sequence[float], starts: Sequence[float], times: np.ndarray) -> np.ndarray:
    """Strengths of the modes under gradient flow, shape ``(times, modes)``."""
    data, start = examples(layers, ends), aligned(layers, starts)
    found = vg.training.train_continuously(start, vg.Scales(), data, times, dtype="float64", rtol=1e-8)
    assert found.succeeded, found.status
    return np.stack([strengths_of(found.at(i), layers, len(ends)) for i in range(len(times))])


def descent(rate: float, count: int) -> np.ndarray:
    """Strength of one mode of s = 1 after every step of gradient descent, shape ``(count + 1,)``."""
    data = examples(2, [1.0])
    with jax.enable_x64(True):
        now, found = jax.tree.map(jnp.asarray, aligned(2, [FIRST**0.5])), [FIRST]
        for _ in range(count):
            now = step(now, data, rate)
            found.append(float(strengths_of(now, 2, 1)[0]))
    return np.array(found)


@jax.jit
def step(parameters: vg.networks.Parameters, data: vg.data.Examples, rate: float) -> vg.networks.Parameters:
    """One of gradient descent, on half the mean squared error of all examples."""

    def loss(parameters: vg.networks.Parameters) -> jax.Array:
        outputs = jax.vmap(lambda x: vg.forward(parameters, vg.Scales(), x))(data.inputs)
        return jnp.mean(jnp.sum((outputs - data.labels) ** 2, axis=1)) / 2

    optimizer = optax.sgd(rate)
    updates = optimizer.update(jax.grad(loss)(parameters), optimizer.init(parameters))[0]
    return optax.apply_updates(parameters, updates)


# --- drawing --------------------------------------------------------------------------------------------------------

COLOURS = ("#000000", plots.VANISHING, "#1b7837", "#e08214")
MARKERS = "os^D"
THEORY: dict[str, Any] = {"color": "k", "linewidth": 0.8}
RATE_LOOKS = {
    RATES[0]: (plots.VANISHING, "o", "0.1: follows the flow"),
    RATES[1]: ("#1b7837", "s", "0.95: late, and rings"),
    RATES[2]: ("#e08214", "^", "1.15: never settles"),
    RATES[3]: (plots.EXPLODING, "D", "2.4: diverges"),
}


DEPTH_LOOKS = (  # and where it says so
    (plots.VANISHING, "o", "same product,\n$u_0$ = 0.01", 10, 0.55),
    ("#1b7837", "s", "every matrix\nstarts at 1/2", 11, 60),
    (plots.EXPLODING, "D", "every matrix\nstarts at 1/4", 8.7, 8e3),
)


@plots.styled
def draw(data: Dynamics) -> "Figure":
    """Modes in time, steps in time, times to learn against depth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    figure.get_layout_engine().set(wspace=0.05)  # type: ignore[call-arg]
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 1.1, 1))
    draw_modes(left, data)
    draw_steps(middle, data)
    draw_depths(right, data)
    return figure


def draw_modes(ax: "Axes", data: Dynamics) -> None:
    """The closed form as lines, the network's flow as dots."""
    times = np.linspace(0, LAST, 400)
    for s, u, colour, marker in zip(MODES, data.modes.T, COLOURS, MARKERS, strict=True):
        ax.plot(times, linear_dynamics.mode_strength(times, s, START), color=colour, linewidth=0.9)
        ax.plot(data.times, u, marker, color=colour, markersize=3.4, mec="white", mew=0.4, clip_on=False)
        ax.text(LAST, s + 0.08, f"$s$ = {s:g}", color=colour, ha="right", va="bottom")
    ax.plot([], [], color="0.3", linewidth=0.9, label="closed form")
    ax.plot([], [], "o", color="0.3", markersize=3.4, label="network")
    ax.legend(loc="center", bbox_to_anchor=(0.65, 0.7), handlelength=1.4, title="two weight matrices", alignment="left")
    ax.set(
        xlabel=r"time (learning rate $\times$ steps)", ylabel="strength $u$ of a mode", xlim=(0, LAST), ylim=(0, 4.5)
    )
    ax.set(xticks=np.arange(0, LAST + 1, 3), yticks=range(5))
    ax.set_title("strong modes are learned first")


def draw_steps(ax: "Axes", data: Dynamics) -> None:
    """Gradient descent over the flow that it leaves."""
    times = np.linspace(0, END, 400)
    ax.plot(times, linear_dynamics.mode_strength(times, 1.0, FIRST), **THEORY, label="gradient flow")
    for rate, u in data.steps.items():
        colour, marker, text = RATE_LOOKS[rate]
        at = rate * np.arange(len(u))
        every = slice(None, None, 6 if rate < 0.5 else 1)
        ax.plot(at, u, color=colour, linewidth=0.6, linestyle="-" if rate > 0.5 else "")
        ax.plot(at[every], u[every], marker, color=colour, markersize=3.8, mec="white", mew=0.4, label=text)
    ax.set(xlabel=r"time (learning rate $\times$ steps)", ylabel="strength $u$ of the mode $s$ = 1", xlim=(0, END))
    ax.set(xticks=np.arange(0, END + 1, 3), yticks=range(4), ylim=(0, 3.3))
    legend = ax.legend(
        loc="upper left", fontsize=7, handlelength=1.4, title="learning rate × curvature / 2", alignment="left"
    )
    legend.get_title().set_fontsize(7)
    ax.set_title("large steps leave the flow")


def draw_depths(ax: "Axes", data: Dynamics) -> None:
    """The time to half of s = 1 against depth, from the same map and from the same weights."""
    depths = np.arange(DEPTHS[0], DEPTHS[-1] + 1)
    for i, (colour, marker, text, x, y) in enumerate(DEPTH_LOOKS):
        starts = [(int(n), weights(int(n))[i]) for n in depths]
        ax.plot(depths, [linear_dynamics.learning_time(0.5, 1.0, w**n, n) for n, w in starts], **THEORY)
        measured = [data.halves[n, weights(n)[i]] for n in DEPTHS]
        ax.plot(DEPTHS, measured, marker, color=colour, markersize=4, mec="white", mew=0.5, clip_on=False)
        ax.text(x, y, text, color=colour, fontsize=7, ha="right" if i else "center", va="bottom")
    ax.set_yscale("log")
    ax.minorticks_off()
    ax.set(xlabel="weight matrices", ylabel="time to half of $s$ = 1", xticks=range(2, 13, 2))
    ax.set(xlim=(1.5, 12.5), ylim=(0.3, 2e5))
    ax.set_title("what depth costs")


if __name__ == "__main__":
    render("saxe", compute, draw)
