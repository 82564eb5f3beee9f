"""Exactness against depth: float32 logarithms against the product of the same layer Jacobians in float64.

"The same layer Jacobians" are those at the states that the float32 run visited: in the chaotic phase two precisions
follow different trajectories, and only their statistics agree. The oracle below is numpy and scipy alone; it takes
the drawn parameters and the visited states and shares no other code with the library.

    python benchmarks/bench_exactness.py        # SIZE=small for a quick look
"""

import numpy as np
from common import SMALL, print_table, write_json
from scipy.special import ndtr

DEPTHS = (10, 100, 1000) if SMALL else (10, 100, 1000, 10_000)
WIDTH = 64
LIMIT = 1e-5  # times max(1, |ln gain|)

# activation, sigma_w, law of the kernels
CASES = (
    ("sigmoid", 1.0, "gaussian"),
    ("tanh", 0.5, "gaussian"),
    ("tanh", 1.0, "gaussian"),
    ("tanh", 3.0, "gaussian"),
    ("tanh", 30.0, "gaussian"),
    ("relu", 0.5**0.5, "gaussian"),
    ("relu", 2.0, "gaussian"),
    ("gelu", 1.0, "gaussian"),
    ("gelu", 3.0, "gaussian"),
    ("linear", 1.1, "orthogonal"),
)


def normal_density(h: np.ndarray) -> np.ndarray:
    """Density of the standard normal."""
    return np.exp(-(h**2) / 2) / np.sqrt(2 * np.pi)


def inverse_square_cosh(h: np.ndarray) -> np.ndarray:
    """1 / cosh(h)^2 without overflow."""
    return (2 * np.exp(-np.abs(h)) / (1 + np.exp(-2 * np.abs(h)))) ** 2


PHI = {
    "sigmoid": lambda h: np.where(h > 0, 1, np.exp(-np.abs(h))) / (1 + np.exp(-np.abs(h))),
    "tanh": np.tanh,
    "relu": lambda h: np.maximum(h, 0),
    "gelu": lambda h: h * ndtr(h),
    "linear": lambda h: h,
}
SLOPE = {
    "sigmoid": lambda h: inverse_square_cosh(h / 2) / 4,
    "tanh": inverse_square_cosh,
    "relu": lambda h: (h > 0).astype(float),
    "gelu": lambda h: ndtr(h) + h * normal_density(h),
    "linear": np.ones_like,
}


def log_norm(v: np.ndarray) -> float:
    """ln of the Euclidean norm in float64."""
    largest = np.abs(v).max()
    return -np.inf if largest == 0 else float(np.log(largest) + np.log(np.sum((v / largest) ** 2)) / 2)


def oracle(activation: str, kernels, biases, values, exponents, u, v) -> dict[str, np.ndarray]:
    """Push, pull, states, parameter gradients in float64 at given states ``values * 2**exponents``."""
    depth = len(kernels)
    # Beyond 2^+-900 every slope has its limit to the last digit, so the clip changes nothing.
    h = np.ldexp(values, np.clip(exponents, -900, 900)[:, None])
    slopes = SLOPE[activation](h)
    push, pull = [log_norm(u)], [log_norm(v)]
    t, t_log, g, g_log = u / np.linalg.norm(u), push[0], v / np.linalg.norm(v), pull[0]
    for layer in range(depth):
        t = (slopes[layer] * t) @ kernels[layer]
        norm = np.linalg.norm(t)
        t, t_log = t / norm, t_log + np.log(norm)
        push.append(t_log)
    for layer in reversed(range(depth)):
        g = slopes[layer] * (kernels[layer] @ g)
        norm = np.linalg.norm(g)
        g, g_log = g / norm, g_log + np.log(norm)
        pull.append(g_log)
    # phi(h) 2^-e: where h itself leaves float64 phi is its linear end there.
    far = np.abs(exponents) > 500
    a_log = np.array(
        [log_norm(SLOPE[activation](h[i]) * values[i] if far[i] else PHI[activation](h[i])) for i in range(depth)]
    )
    linear_end = PHI[activation](np.zeros(1))[0] == 0
    a_log += np.where(far[:depth] & linear_end, exponents[:depth] * np.log(2), 0)
    steps = []
    for layer in range(depth):
        e = int(exponents[layer])
        a = SLOPE[activation](h[layer]) * values[layer] if far[layer] else np.ldexp(PHI[activation](h[layer]), -e)
        after = a @ kernels[layer] + np.ldexp(biases[layer], -e if e > -900 else 900) * (e > -900 or 0)
        steps.append(log_norm(after) - log_norm(values[layer]))
    pull = np.array(pull[::-1])
    states = log_norm(values[0]) + exponents[0] * np.log(2) + np.concatenate([[0], np.cumsum(steps)])
    return {
        "push": np.array(push),
        "pull": pull,
        "ln norm of the state": states,
        "kernel gradient": a_log + pull[1:],
        "bias gradient": pull[1:],
    }


def worst(ours: np.ndarray, truth: np.ndarray) -> float:
    """Largest error in units of max(1, |truth|); infinite if anything is not finite."""
    ours = np.asarray(ours, np.float64)
    if not np.all(np.isfinite(ours)):
        return float("inf")
    return float(np.max(np.abs(ours - truth) / np.maximum(1, np.abs(truth))))


def case(activation: str, sigma_w: float, law: str, sigma_b: float, depth: int) -> dict:
    """One network, both directions."""
    import jax
    import jax.numpy as jnp

    import vgjax as vg
    from vgjax.flow import visited_states

    network = vg.mlp(width=WIDTH, depth=depth, activation=activation, inputs=20, outputs=WIDTH, law=law)
    parameters = vg.init(jax.random.key(depth), network)
    x, u, v = (jax.random.normal(jax.random.key(i), (n,)) for i, n in ((1, 20), (2, WIDTH), (3, WIDTH)))
    scales = vg.Scales(sigma_w=sigma_w, sigma_b=sigma_b)
    # All readings at the ordinary parameters, so that ours and the oracle's kernels are the same floats.
    ordinary = vg.scaled(parameters, scales)
    unit = vg.Scales(sigma_w=1.0, sigma_b=1.0)
    values, exponents = (np.asarray(a) for a in visited_states(ordinary, unit, x))
    kernels, biases = (np.asarray(ordinary.stages[0][name], np.float64) for name in ("kernel", "bias"))

    push = vg.push_forward(network, ordinary, unit, x, u)
    pull = vg.pull_back(network, ordinary, unit, x, v)
    flow = vg.gradient_flow(network, ordinary, unit, x, v, loss="cotangent", naive=("float32",))
    # The loss's cotangent enters behind the head; the oracle starts from the cotangent at the last state.
    start = np.asarray(
        jax.vjp(lambda h: head(ordinary, h), jnp.asarray(values[-1] * 2.0 ** np.clip(exponents[-1], -32, 32)))[1](v)[0],
        np.float64,
    )
    truth = oracle(
        activation,
        kernels,
        biases,
        values.astype(np.float64),
        exponents,
        np.asarray(u, np.float64),
        np.asarray(v, np.float64),
    )
    loss_truth = oracle(
        activation, kernels, biases, values.astype(np.float64), exponents, np.asarray(u, np.float64), start
    )
    state = (push.log_mean_square + np.log(WIDTH)) / 2
    return {
        "activation": activation,
        "sigma_w": round(sigma_w, 4),
        "sigma_b": sigma_b,
        "law": law,
        "depth": depth,
        "ln gain": float(push.log_gain[-1]),
        "push": worst(push.log_gain, truth["push"]),
        "pull": worst(pull.log_gain, truth["pull"]),
        "state": worst(state, truth["ln norm of the state"]),
        "loss": worst(flow.log_gradient, loss_truth["pull"]),
        "kernel": worst(flow.log_parameter_gradient["kernel"], loss_truth["kernel gradient"]),
        "bias": worst(flow.log_parameter_gradient["bias"], loss_truth["bias gradient"]),
        "naive float32 lost": int(flow.naive["float32"].sum()),
    }


def head(parameters, h):
    """The head on a plain state."""
    from vgjax.networks import head_layer

    return head_layer(parameters)(h)


def main() -> None:
    """All cases at all depths; one JSON."""
    rows = [case(*c, sigma_b, depth) for c in CASES for sigma_b in (0.0, 0.3) for depth in DEPTHS]
    errors = ("push", "pull", "state", "loss", "kernel", "bias")
    print_table([row for row in rows if row["depth"] == DEPTHS[-1]])
    largest = max(row[name] for row in rows for name in errors)
    print(f"largest error of all {len(rows)} runs: {largest:.2g} of max(1, |ln|); allowed {LIMIT:g}")
    write_json(
        "exactness",
        {
            "width": WIDTH,
            "dtype": "float32",
            "limit": LIMIT,
            "largest": largest,
            "reached": largest <= LIMIT,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
