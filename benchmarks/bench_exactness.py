"""Exactness against depth: float32 logarithms against the product of the same layer Jacobians in float64.

"The same layer Jacobians" are those at the states that the float32 run visited: in the chaotic phase two precisions
follow different trajectories, and only their statistics agree. The oracle below is numpy and scipy alone; it takes the
drawn parameters and the visited states and shares no other code with the library.

    python benchmarks/bench_exactness.py        # SIZE=small for a quick look
"""

import jax
import numpy as np
from common import SMALL, print_table, write_json
from scipy.special import ndtr

import vgjax as vg
from vgjax.floatexp import FloatExp, to_float_clipped
from vgjax.networks.layers import Layers, bind, joined

DEPTHS = (10, 100, 1000) if SMALL else (10, 100, 1000, 10_000)
WIDTH = 64
LIMIT = 1e-5  # times max(1, |ln gain|)
LN2 = np.log(2)

# activation, sigma_w, law of the kernels, how states are checked: where nearby trajectories stay together, against a
# float64 forward pass of its own ("trajectory"); where they part (chaos, criticality), one float64 layer from each
# visited state ("one layer").
CASES = (
    ("sigmoid", 1.0, "gaussian", "trajectory"),
    ("tanh", 0.5, "gaussian", "trajectory"),
    ("tanh", 3.0, "gaussian", "one layer"),
    ("tanh", 30.0, "gaussian", "one layer"),
    ("relu", 0.5**0.5, "gaussian", "trajectory"),
    ("relu", 2.0, "gaussian", "trajectory"),
    ("gelu", 1.0, "gaussian", "trajectory"),
    ("gelu", 3.0, "gaussian", "trajectory"),
    ("linear", 1.1, "orthogonal", "trajectory"),
)
# Beside the list: at criticality ln gain stays near 0 while 10,000 layers of float32 rounding add up.
BESIDE = (("tanh", 1.0, "gaussian", "one layer"),)


def normal_density(h: np.ndarray) -> np.ndarray:
    """Density of the standard normal."""
    return np.exp(-(np.minimum(np.abs(h), 1e3) ** 2) / 2) / np.sqrt(2 * np.pi)


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


def linear_end(activation: str, values: np.ndarray, exponent: int) -> bool:
    """Whether phi is to be taken as phi'(h) h.

    Numbers too far out for float64, of activations that are linear there.
    """
    return abs(exponent) > 500 and PHI[activation](np.zeros(1))[0] == 0


def layer(activation: str, kernel, bias, values: np.ndarray, exponent: int) -> tuple[np.ndarray, int]:
    """One layer in float64 on a state ``values * 2**exponent``, normalized again."""
    h = np.ldexp(values, int(np.clip(exponent, -900, 900)))
    if linear_end(activation, values, exponent):
        a, e = SLOPE[activation](h) * values, exponent
    else:
        a, e = PHI[activation](h), 0
    if np.any(bias) and e < 0:
        a, e = np.ldexp(a, max(e, -1000)), 0
    after = a @ kernel + (np.ldexp(bias, -e) if e < 1000 else 0)
    shift = int(np.frexp(np.abs(after).max())[1])
    return np.ldexp(after, -shift), e + shift


def log_states(how: str, activation: str, kernels, biases, values, exponents) -> np.ndarray:
    """ln of the norms of s_0 ... s_L in float64."""
    logs = [log_norm(values[0]) + int(exponents[0]) * LN2]
    state = values[0], int(exponents[0])
    for l in range(len(kernels)):
        if how == "one layer":
            state = values[l], int(exponents[l])
        state = layer(activation, kernels[l], biases[l], *state)
        logs.append(log_norm(state[0]) + state[1] * LN2)
    return np.array(logs)


def log_products(activation: str, kernels, values, exponents, u, v) -> dict[str, np.ndarray]:
    """ln of J u and J^T v, and of the parameter gradients of a cotangent v at s_L, in float64 at the visited states."""
    # Beyond 2^+-900 every slope has its limit to the last digit, so the clip changes nothing.
    h = np.ldexp(values, np.clip(exponents, -900, 900)[:, None])
    slopes = SLOPE[activation](h)
    push, pull = [log_norm(u)], [log_norm(v)]
    t, g = u / np.linalg.norm(u), v / np.linalg.norm(v)
    for l in range(len(kernels)):
        t = (slopes[l] * t) @ kernels[l]
        norm = np.linalg.norm(t)
        t = t / norm
        push.append(push[-1] + np.log(norm))
    for l in reversed(range(len(kernels))):
        g = slopes[l] * (kernels[l] @ g)
        norm = np.linalg.norm(g)
        g = g / norm
        pull.append(pull[-1] + np.log(norm))
    pull = np.array(pull[::-1])
    log_a = []
    for l in range(len(kernels)):
        far = linear_end(activation, values[l], int(exponents[l]))
        a = SLOPE[activation](h[l]) * values[l] if far else PHI[activation](h[l])
        log_a.append(log_norm(a) + (int(exponents[l]) * LN2 if far else 0))
    return {"push": np.array(push), "pull": pull, "kernel": np.array(log_a) + pull[1:], "bias": pull[1:]}


def worst(ours: np.ndarray, truth: np.ndarray) -> float:
    """Largest error in units of max(1, |truth|); infinite if anything is not finite."""
    ours = np.asarray(ours, np.float64)
    if not np.all(np.isfinite(ours)):
        return float("inf")
    return float(np.max(np.abs(ours - truth) / np.maximum(1, np.abs(truth))))


def case(activation: str, sigma_w: float, kernel_init: str, how: str, sigma_b: float, depth: int) -> dict:
    """One network, both directions: the largest error over all layers of every kind of result."""
    network = vg.mlp(width=WIDTH, depth=depth, activation=activation, inputs=20, outputs=WIDTH, kernel_init=kernel_init)
    parameters = vg.init(jax.random.key(depth), network)
    x, u, v = (jax.random.normal(jax.random.key(i), (n,)) for i, n in ((1, 20), (2, WIDTH), (3, WIDTH)))
    # All readings at the ordinary parameters, so that ours and the oracle's kernels are the same floats.
    ordinary, unit = vg.absorb_scales(parameters, vg.Scales(sigma_w=sigma_w, sigma_b=sigma_b))
    push = vg.push_forward(ordinary, unit, x, u)
    pull = vg.pull_back(ordinary, unit, x, v)
    flow = vg.gradient_flow(ordinary, unit, x, v, loss="cotangent")
    lost = vg.naive_reading(ordinary, unit, x, v, "float32", loss="cotangent")

    layers, states = visited_states(ordinary, unit, x)
    kernels, biases = (np.asarray(ordinary.stages[0][name], np.float64) for name in ("kernel", "bias"))
    values, exponents = np.asarray(states.value, np.float64), np.asarray(states.exponent)
    # The loss's cotangent enters behind the head, whose own Jacobian is taken as the library has it.
    start = jax.vjp(layers.head, to_float_clipped(jax.tree.map(lambda a: a[-1], states)))[1](v)[0]
    truth = log_products(activation, kernels, values, exponents, float64(u), float64(v))
    of_loss = log_products(activation, kernels, values, exponents, float64(u), float64(start))
    log_norms = log_states(how, activation, kernels, biases, values, exponents)
    return {
        "activation": activation,
        "sigma_w": round(sigma_w, 4),
        "sigma_b": sigma_b,
        "kernel_init": kernel_init,
        "depth": depth,
        "ln gain": float(push.log_gain[-1]),
        "push": worst(push.log_gain, truth["push"]),
        "pull": worst(pull.log_gain, truth["pull"]),
        "ln mean square": worst(push.log_mean_square, 2 * log_norms - np.log(WIDTH)),
        "states by": how,
        "loss": worst(flow.log_gradient, of_loss["pull"]),
        "kernel": worst(flow.log_parameter_gradient["kernel"], of_loss["kernel"]),
        "bias": worst(flow.log_parameter_gradient["bias"], of_loss["bias"]),
        "plain float32 lost": int(lost.sum()),
    }


@jax.jit
def visited_states(parameters: vg.networks.Parameters, scales: vg.Scales, x) -> tuple[Layers, FloatExp]:
    """The layers, and the states s_0 ... s_L of the float32 pass to the last bit, with a leading layer axis."""
    layers = bind(parameters, scales, x)
    walked = layers.walk(layers.first_state(x))
    return layers, joined([*walked.reports, jax.tree.map(lambda a: a[None], walked.last)])


def float64(a) -> np.ndarray:
    """As a float64 numpy array."""
    return np.asarray(a, np.float64)


def main() -> None:
    """All cases at all depths; one JSON."""
    rows, beside = (
        [case(*c, sigma_b, d) for c in cases for sigma_b in (0.0, 0.3) for d in DEPTHS] for cases in (CASES, BESIDE)
    )
    print_table([row for row in rows + beside if row["depth"] == DEPTHS[-1]])
    errors = ("push", "pull", "ln mean square", "loss", "kernel", "bias")
    deepest = max(row[name] for row in rows if row["depth"] == DEPTHS[-1] for name in errors)
    largest = max(row[name] for row in rows for name in errors)
    print(f"largest error, of max(1, |ln|): {deepest:.2g} at depth {DEPTHS[-1]}, {largest:.2g} anywhere")
    result = {"largest at full depth": deepest, "largest at any depth": largest, "reached": deepest <= LIMIT}
    about = {"width": WIDTH, "dtype": "float32", "error": "largest over the layers, of max(1, |ln|)", "limit": LIMIT}
    write_json("exactness", {**about, **result, "rows": rows, "at criticality, beside the list": beside})


if __name__ == "__main__":
    main()
