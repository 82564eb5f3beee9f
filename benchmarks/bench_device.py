"""Whatever accelerator is there, against the CPU beside it and against its own bare matrix products.

Agreement of 30 networks (gains, gradients, spectra, training curves: the same draws on both, in float32); speed of a
map of 64 x 64 points, width 1024, depth 1000, over a scan of nothing but its two products a layer, in full float32 and
in what the device multiplies in by default; the largest width that fits.

    python benchmarks/bench_device.py        # SIZE=small for a quick look; DEVICE=cpu tries the script without one
"""

import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import SMALL, best_of, print_table, write_json
from jax import Array, lax

import vgjax as vg

WIDTH, DEPTH, POINTS = (64, 20, 8) if SMALL else (1024, 1000, 64)
LARGEST = 1024 if SMALL else 2**20
KEY = jax.random.key(0)
GRID = {"sigma_w": np.linspace(0.5, 1.4, 5, dtype=np.float32), "sigma_b": np.float32(0.1)}
"""Ordered and critical: in the chaotic phase two devices follow two trajectories."""


# --- agreement ------------------------------------------------------------------------------------------------------


def cases() -> Iterator[tuple[str, vg.Network, vg.ensembles.Measurement, tuple[Any, ...], dict[str, Any]]]:
    """Thirty networks: name, network, what is measured, of what, over which grid."""
    x = np.asarray(jax.random.normal(jax.random.key(1), (32,)))
    image, steps = (np.asarray(jax.random.normal(jax.random.key(2), shape)) for shape in ((8, 8, 3), (20, 32)))
    stack: dict[str, Any] = {"width": 48, "depth": 30, "inputs": 32, "outputs": 10}
    for name in ("tanh", "relu", "gelu", "sigmoid", "selu", "silu", "erf", "softplus", "sin", "hard_tanh"):
        yield f"gains, {name}", vg.mlp(activation=name, **stack), vg.gains(), (x,), GRID
    rest = {
        "residual": (vg.mlp(residual="pre", **stack), x),
        "layer norm": (vg.mlp(norm=vg.norm("layer"), **stack), x),
        "cnn": (vg.cnn(channels=8, depth=6, inputs=(8, 8, 3), outputs=10), image),
        "rnn": (vg.rnn(width=24, depth=20, inputs=32, outputs=10), steps),
        "lstm": (vg.lstm(width=24, depth=20, inputs=32, outputs=10), steps),
        "gru": (vg.gru(width=24, depth=20, inputs=32, outputs=10), steps),
        "transformer": (vg.transformer(width=24, depth=4, heads=2, inputs=(20, 32), outputs=10), steps),
    }
    for name, (network, inputs) in rest.items():
        yield f"gains, {name}", network, vg.gains(), (inputs,), {}
        if name != "transformer":
            yield f"gradients, {name}", network, vg.gradients(), (inputs, 3), {}
    for name in ("tanh", "relu"):
        yield f"spectra, {name}", vg.mlp(activation=name, **stack), vg.spectra((1, 10, 30)), (x,), {"sigma_w": 1.2}
    data = vg.data.Examples(np.asarray(jax.random.normal(jax.random.key(3), (256, 32))), np.arange(256) % 10)
    for name in ("sgd", "momentum", "adam", "rmsprop", "adagrad"):
        measure = vg.trainings(data, name, 30, batch_size=32)
        yield f"training, {name}", vg.mlp(**{**stack, "depth": 4}), measure, (), {"learning_rate": 1e-3}


def agreement(device: Any) -> list[dict[str, Any]]:
    """The largest difference of all variables of each, relative to numbers above 1."""
    rows = []
    for name, network, measure, inputs, grid in cases():
        found = []
        for where in (jax.devices("cpu")[0], device):
            with jax.default_device(where):
                found.append(vg.sweep(network, *inputs, key=KEY, seeds=2, measure=measure, **grid))
        one, other = (each.arrays for each in found)
        worst = max(difference(a, other[variable]) for variable, a in one.items())
        rows.append({"network": name, "largest difference": worst})
    return rows


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Infinite where what is finite is not the same."""
    one, other = np.asarray(one, float), np.asarray(other, float)
    known = np.isfinite(one)
    if (known != np.isfinite(other)).any():
        return np.inf
    one, other = one[known], other[known]
    return float(np.max(np.abs(one - other) / np.maximum(1, np.abs(one)), initial=0))


# --- speed ----------------------------------------------------------------------------------------------------------


def speed() -> dict[str, Any]:
    """The map over the scan of its products."""
    network = vg.mlp(width=WIDTH, depth=DEPTH, activation="tanh", inputs=WIDTH)
    x = np.asarray(jax.random.normal(jax.random.key(1), (WIDTH,)))
    axes = {"sigma_w": np.linspace(0.5, 3, POINTS), "sigma_b": np.linspace(0, 1, POINTS)}
    kernels = jax.random.normal(KEY, (DEPTH, WIDTH, WIDTH)) / np.sqrt(WIDTH)
    states = jnp.ones((2, POINTS**2, WIDTH))

    def products(precision: str) -> Any:
        def layer(h: Array, kernel: Array) -> tuple[Array, Array]:
            h = jnp.matmul(h, kernel, precision=precision)
            return h, jnp.sum(h[:, 0, 0])

        program = jax.jit(lambda states, kernels: lax.scan(layer, states, kernels)[1])
        return lambda: program(states, kernels)

    seconds = best_of(
        1 if SMALL else 3,
        {
            "map": lambda: vg.sweep(network, x, key=KEY, seeds=1, **axes).log_gain,
            "products, full float32": products("highest"),
            "products, as by default": products("default"),
        },
    )
    full = seconds["products, full float32"]
    flops = 2 * 2 * POINTS**2 * WIDTH**2 * DEPTH
    return {
        "width": WIDTH,
        "depth": DEPTH,
        "points": POINTS**2,
        "seconds": seconds,
        "fraction of full float32": full / seconds["map"],
        "fraction of the default": seconds["products, as by default"] / seconds["map"],
        "teraflops of full float32": flops / full / 1e12,
    }


def largest_width() -> int:
    """Of one network of ten layers, of which none is stored; doubled until the device has no room."""
    width, fits = 1024, 0
    while width <= LARGEST:
        network = vg.mlp(width=width, depth=10, activation="tanh", inputs=32)
        try:
            vg.sweep(network, np.ones(32), key=KEY, seeds=1, measure=vg.gains(stream=True), on_error="raise")
        except Exception as error:  # jaxlib's, of no public name
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return fits
        fits, width = width, 2 * width
    return fits


def main() -> None:
    """Skips where there is no accelerator."""
    device = jax.devices()[0]
    if device.platform == "cpu" and os.environ.get("DEVICE") != "cpu":
        print("there is no accelerator here: nothing to compare the CPU with")
        return
    rows = agreement(device)
    print_table(rows)
    found = {"networks": rows, "worst": max(row["largest difference"] for row in rows), "map": speed()}
    print(found["map"])
    found["largest width"] = largest_width()
    write_json("device", {"device": device.device_kind, **found})


if __name__ == "__main__":
    main()
