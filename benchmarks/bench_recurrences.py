"""What exactness costs over 10,000 steps of time, LRU and Mamba against the bare recurrence; and how exact float32
is there, beside the same numbers in float64.

Forward is the state and a tangent of every step, backward dL/dh_t of every step t, each with its norms; gradients are
those of all parameters beside it, ours with the share of every step. Bare is the same recurrence in plain JAX: a
`jax.lax.scan`, and a `jax.lax.associative_scan`, which takes time in parallel; both get what the input sets (B x, dt)
for all steps at once, and neither normalizes, so that what is past the float range is lost to them.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import SMALL, best_of, print_table, write_json
from jax import Array, lax

import vgjax as vg
from vgjax.networks import Parameters, delta_net, diagonal_rnn, mamba, min_gru, min_lstm, rg_lru

STEPS, WIDTH, INPUTS, CHANNELS, STATES, RUNS = (100, 8, 4, 4, 3, 1) if SMALL else (10_000, 256, 64, 64, 16, 7)
TARGET = 0.5
"""The share of the bare scan's speed that is wanted."""

TARGET_ERROR = 1e-5
"""Of float32, of max(1, |ln|)."""

HIGHEST = lax.Precision.HIGHEST


def lru(parameters: Any, x: Array) -> tuple[Array, Array]:
    """lambda and gamma B x of every step, complex, shape ``(steps, width)``."""
    lam = jnp.exp(-jnp.exp(parameters["log_decay"]) + 1j * parameters["phase"])
    both = jnp.dot(x, parameters["input_kernel"], precision=HIGHEST)
    gain = parameters["gain"][0] + 1j * parameters["gain"][1]
    new = gain * (both[:, :WIDTH] + 1j * both[:, WIDTH:])
    return jnp.broadcast_to(lam, new.shape), new


def selective(parameters: Any, x: Array) -> tuple[Array, Array]:
    """exp(-dt A) and dt B x of every step, shape ``(steps, states, channels)``."""
    dt = jax.nn.softplus(jnp.dot(x, parameters["step_kernel"], precision=HIGHEST) + parameters["step_bias"])
    kept = jnp.exp(-dt[:, None] * jnp.exp(parameters["log_rate"]))
    of_state = jnp.dot(x, parameters["input_kernel"], precision=HIGHEST)
    return kept, of_state[:, :, None] * (dt * x)[:, None]


def by_scan(kept: Array, new: Array, first: Array) -> Array:
    """h_1 ... h_T of ``h' = kept h + new``."""

    def step(h: Array, maps: tuple[Array, Array]) -> tuple[Array, Array]:
        h = maps[0] * h + maps[1]
        return h, h

    return lax.scan(step, first, (kept, new))[1]


def by_associative_scan(kept: Array, new: Array, first: Array) -> Array:
    """The same, in parallel over time."""

    def both(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
        return other[0] * one[0], other[0] * one[1] + other[1]

    factors, states = lax.associative_scan(both, (kept, new))
    return states + factors * first


Recurrence = Callable[[Array, Array, Array], Array]


def forward(recurrence: Recurrence, maps: Callable[..., Any], parameters: Any, x: Array, tangent: Array) -> Any:
    """ln of the norms of states and tangents."""
    kept, new = maps(parameters, x)
    states = recurrence(kept, new, jnp.zeros_like(tangent))
    tangents = recurrence(kept, jnp.zeros_like(new), tangent)
    return log_norms(states), log_norms(tangents)


def backward(recurrence: Recurrence, maps: Callable[..., Any], parameters: Any, x: Array, cotangent: Array) -> Any:
    """ln of the norms of states, and of the gradients of <v, h_T> by all of them."""
    kept, new = maps(parameters, x)
    states = recurrence(kept, new, jnp.zeros_like(cotangent))
    # By hand, the best there is: v_t = conj(kept_t) v_(t + 1), a recurrence from the end.
    flipped = jnp.conj(kept)[::-1]
    cotangents = recurrence(flipped, jnp.zeros_like(new), cotangent)[::-1]
    return log_norms(states), log_norms(cotangents)


def gradients(recurrence: Recurrence, maps: Callable[..., Any], parameters: Any, x: Array, cotangent: Array) -> Any:
    """ln of the norms of the gradients of <v, h_T> by all parameters."""

    def loss(parameters: Any) -> Array:
        kept, new = maps(parameters, x)
        return jnp.sum(jnp.real(jnp.conj(cotangent) * recurrence(kept, new, jnp.zeros_like(cotangent))[-1]))

    return jax.tree.map(lambda g: jnp.log(jnp.sum(g**2)) / 2, jax.grad(loss)(parameters))


def log_norms(series: Array) -> Array:
    """Along time."""
    return jnp.log(jnp.sum(jnp.abs(series.reshape(len(series), -1)) ** 2, axis=1)) / 2


def cases() -> dict[str, tuple[vg.Network, Callable[..., Any], tuple[int, ...]]]:
    """Networks, their maps, and the shape of a state in plain JAX."""
    return {
        "LRU": (diagonal_rnn(width=WIDTH, depth=STEPS, inputs=INPUTS, radii=(0.9, 0.999)), lru, (WIDTH,)),
        "Mamba": (mamba(width=CHANNELS, depth=STEPS, states=STATES), selective, (STATES, CHANNELS)),
    }


def ours(parameters: Parameters, x: Array, vector: Array) -> dict[str, Callable[[], Any]]:
    """The same three by the library, each as the bare ones give it."""
    scales, headless = vg.Scales(), replace(parameters, head={}, network=replace(parameters.network, head=None))

    def logs(found: Any, gain: Array) -> tuple[Array, Array]:
        return (found.log_mean_square[1:] + math.log(vector.size)) / 2, gain

    def push() -> Any:
        found = vg.push_forward(parameters, scales, x, vector)
        return logs(found, found.log_gain[1:])

    def pull() -> Any:
        found = vg.pull_back(parameters, scales, x, vector)
        return logs(found, found.log_gain[:-1])

    def flow() -> Any:
        return vg.gradient_flow(headless, scales, x, vector, loss="cotangent").log_tied_gradient

    return {"forward": push, "backward": pull, "gradients": flow}


def measure(name: str, network: vg.Network, maps: Callable[..., Any], shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """Seconds of every way, and the shares of the bare speeds that ours has."""
    parameters = vg.init(jax.random.key(0), network)
    x = jax.random.normal(jax.random.key(1), network.input_shape)
    vector = jax.random.normal(jax.random.key(2), (2, *shape) if name == "LRU" else shape)
    plain = vector[0] + 1j * vector[1] if name == "LRU" else vector
    exact = ours(parameters, x, vector)
    rows = []
    for bare in (forward, backward, gradients):
        work: dict[str, Callable[[], Any]] = {"ours": exact[bare.__name__]}
        for kind, recurrence in (("scan", by_scan), ("associative_scan", by_associative_scan)):
            compiled = jax.jit(functools.partial(bare, recurrence, maps))
            work[kind] = functools.partial(compiled, parameters.stages[0], x, plain)
        seconds = best_of(RUNS, work)
        apart = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), work["ours"](), work["scan"]())
        row: dict[str, Any] = {"network": name, "pass": bare.__name__}
        row |= {f"{kind}_seconds": s for kind, s in seconds.items()}
        row |= {f"share_of_{kind}": seconds[kind] / seconds["ours"] for kind in ("scan", "associative_scan")}
        rows.append(row | {"largest_difference_of_logs": max(jax.tree.leaves(apart))})
    return rows


UNITS = 4 if SMALL else 32
RECURRENCES: dict[str, Callable[..., vg.Network]] = {
    "LRU": functools.partial(diagonal_rnn, inputs=4, radii=(0.9, 0.999)),
    "S4D": functools.partial(diagonal_rnn, inputs=4, law="s4d"),
    "Mamba": mamba,
    "minGRU": functools.partial(min_gru, inputs=4),
    "minLSTM": functools.partial(min_lstm, inputs=4),
    "RG-LRU": rg_lru,
    "DeltaNet": functools.partial(delta_net, inputs=4),
    "LSTM": functools.partial(vg.lstm, inputs=4),
    "GRU": functools.partial(vg.gru, inputs=4),
    "tanh RNN": functools.partial(vg.rnn, inputs=4),
}


def digits() -> dict[str, float]:
    """Largest difference of ln dL/dh_t over all t to float64, of max(1, |ln|)."""
    found = {}
    for name, build in RECURRENCES.items():
        build = functools.partial(build, width=UNITS, depth=STEPS)
        narrow = vg.init(jax.random.key(0), build())
        x, v = (np.asarray(jax.random.normal(jax.random.key(i), (STEPS, UNITS))) for i in (1, 2))
        x, v = x[:, : narrow.network.input_shape[1]], v[:1, :1]
        ours = vg.gradient_flow(narrow, vg.Scales(), x, v[0], loss="cotangent").log_gradient
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda a: np.asarray(a, float), (narrow.stem, narrow.stages, narrow.head))
            parameters = Parameters(*wide, build(dtype="float64"))
            exact = vg.gradient_flow(parameters, vg.Scales(), x.astype(float), v[0].astype(float), loss="cotangent")
            true = np.asarray(exact.log_gradient)
        found[name] = float(np.max(np.abs(np.asarray(ours) - true) / np.maximum(1, np.abs(true))))
    return found


def main() -> None:
    """All rows, printed and kept."""
    rows = [row for name, case in cases().items() for row in measure(name, *case)]
    print_table(rows)
    met = {f"{row['network']} {row['pass']}": row["share_of_scan"] >= TARGET for row in rows}
    errors = digits()
    print(errors)
    about = {"steps": STEPS, "target_share_of_scan": TARGET, "rows": rows, "met": met}
    write_json("recurrences", about | {"errors_of_float32": errors, "target_error": TARGET_ERROR})


if __name__ == "__main__":
    main()
