"""How fast is each architecture, against the bare matrix products (or convolutions) it is made of?

Sweeps: 256 points of a grid, state and tangent of every layer, against a `lax.scan` of the same products and nothing
else. Profiles: gradients of all states and parameters of a ResNet of 1,000 layers and of an LSTM over 1,000 steps.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from common import SMALL, best_of, piece_of_sweep, print_table, write_json
from jax import Array, lax

import vgjax as vg
from vgjax.ensembles import job
from vgjax.measure.flow import directions

WIDTH, DEPTH, POINTS, RUNS = (16, 4, 4, 1) if SMALL else (256, 50, 256, 5)
TOKENS, BATCH, CHANNELS, SIZE = (4, 4, 4, (4, 4)) if SMALL else (8, 16, 16, (8, 8))
HIGHEST = lax.Precision.HIGHEST
GROUPS = vg.norm("group", groups=4)
TARGETS = {"fraction": 0.5, "llama": 0.4, "resnet_seconds": 2.0, "lstm_seconds": 3.0}
DENSE_STACKS = ("dense", "residual, 1 kernel", "residual, 2 kernels", "layer norm", "rms norm", "batch norm")


def dense(**options: Any) -> vg.Network:
    """A tanh network."""
    return vg.mlp(width=WIDTH, depth=DEPTH, inputs=WIDTH, **options)


def cases() -> dict[str, tuple[vg.Network, str, list[tuple[int, int, int]]]]:
    """Architectures, the scale that is swept, and the products of a layer: rows, fan_in, fan_out."""
    n, square = WIDTH, (1, WIDTH, WIDTH)
    time = {"width": n, "depth": DEPTH, "inputs": n}
    small = max(1, WIDTH // 4)  # tokens make a state large
    encoder = {"width": small, "depth": DEPTH, "heads": 4, "inputs": (TOKENS, small)}
    attention = [(TOKENS, small, small)] * 4
    feed_forward = [(TOKENS, small, 4 * small), (TOKENS, 4 * small, small)]
    llama = {"style": "llama", "depth": DEPTH, "heads": 4}
    return {
        "dense": (dense(), "sigma_w", [square]),
        "residual, 1 kernel": (dense(residual=vg.networks.branch("pre", layers=1)), "sigma_w", [square]),
        "residual, 2 kernels": (dense(residual="plain"), "sigma_w", [square] * 2),
        "layer norm": (dense(norm="layer"), "sigma_w", [square]),
        "rms norm": (dense(norm="rms"), "sigma_w", [square]),
        "batch norm": (dense(norm=vg.norm("batch", batch=BATCH)), "sigma_w", [(BATCH, n, n)]),
        "dropout": (dense(dropout="bernoulli"), "dropout", [square]),
        "tanh RNN": (vg.rnn(**time), "sigma_w", [square]),
        "LSTM": (vg.lstm(**time), "sigma_w", [(1, n, 4 * n)]),
        "GRU": (vg.gru(**time), "sigma_w", [(1, n, 3 * n)]),
        "attention": (vg.transformer(**encoder, feed_forward=None), "sigma_vo", attention),
        "transformer": (vg.transformer(**encoder), "sigma_vo", attention + feed_forward),
        "transformer, DyT": (vg.transformer(**encoder, norm="dyt"), "sigma_vo", attention + feed_forward),
        **{
            f"llama, width {width}": (
                vg.transformer(width=width, inputs=(TOKENS, width), **llama),
                "sigma_vo",
                swiglu_block(width),
            )
            for width in (small, n)
        },
    }


def swiglu_block(width: int) -> list[tuple[int, int, int]]:
    """The products of a block of attention and a gated feed-forward layer."""
    inside = -(-8 * width // 3)
    return [(TOKENS, width, width)] * 4 + [(TOKENS, width, inside)] * 2 + [(TOKENS, inside, width)]


def swept(network: vg.Network, scale: str) -> Callable[[], Any]:
    """One piece of a sweep, as `vgjax.sweep` runs it."""
    key = jax.random.key(0)
    parameters = vg.init(key, network)
    x = jax.random.normal(key, network.input_shape)
    values = jnp.linspace(0.1, 0.9, POINTS) if scale == "dropout" else jnp.linspace(0.5, 2, POINTS)
    u = directions(key, network, 1)
    static, traced = piece_of_sweep(parameters, x, u, vg.Scales(**{scale: values}))
    return lambda: job._measure_points(*static, *traced)


def products(shapes: list[tuple[int, int, int]], depth: int) -> Callable[[], Any]:
    """The same products of state and tangent, in a scan, and nothing else: what a layer's kernels cost at least.

    Not the input kernels of a recurrence: their product is the same at every point, and needed once.
    """
    key = jax.random.key(0)
    kernels = [jax.random.normal(key, (depth, a, b)) / math.sqrt(a) for _, a, b in shapes]
    rows = [(jax.random.normal(key, (POINTS * r, a)), jax.random.normal(key, (POINTS * r, a))) for r, a, _ in shapes]

    @jax.jit
    def run(rows: list[tuple[Array, Array]], kernels: list[Array]) -> Any:
        def body(rows: Any, kernels: list[Array]) -> tuple[Any, None]:
            out = []
            for pair, kernel in zip(rows, kernels, strict=True):
                made = [jnp.dot(a, kernel, precision=HIGHEST) for a in pair]
                # What comes out is as wide as what goes in, and of use, so that nothing is left out.
                width = pair[0].shape[1]
                out.append(
                    tuple(
                        m[:, :width] if m.shape[1] >= width else jnp.pad(m, ((0, 0), (0, width - m.shape[1])))
                        for m in made
                    )
                )
            return out, None

        return lax.scan(body, rows, kernels)[0]

    return lambda: run(rows, kernels)


def convolutions(depth: int) -> Callable[[], Any]:
    """Convolutions of state and tangent with circular padding, in a scan."""
    key = jax.random.key(0)
    kernels = jax.random.normal(key, (depth, 3, 3, CHANNELS, CHANNELS)) / math.sqrt(9 * CHANNELS)
    images = tuple(jax.random.normal(key, (POINTS, *SIZE, CHANNELS)) for _ in range(2))

    @jax.jit
    def run(images: tuple[Array, Array], kernels: Array) -> Any:
        def one(h: Array, kernel: Array) -> Array:
            padded = jnp.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
            form = ("NHWC", "HWIO", "NHWC")
            return lax.conv_general_dilated(padded, kernel, (1, 1), "VALID", dimension_numbers=form, precision=HIGHEST)

        return lax.scan(lambda pair, kernel: (tuple(one(h, kernel) for h in pair), None), images, kernels)[0]

    return lambda: run(images, kernels)


def sweeps() -> list[dict[str, Any]]:
    """Layers per second of a point, and the fraction of the bare products' speed."""
    rows = []
    image = {"channels": CHANNELS, "depth": DEPTH, "inputs": (*SIZE, CHANNELS)}
    compared = {name: (swept(net, scale), products(shapes, DEPTH)) for name, (net, scale, shapes) in cases().items()}
    compared["convolution"] = swept(vg.cnn(**image), "sigma_w"), convolutions(DEPTH)
    compared["convolution, group norm"] = swept(vg.cnn(**image, norm=GROUPS), "sigma_w"), convolutions(DEPTH)
    for name, (ours, bare) in compared.items():
        seconds = best_of(RUNS, {"ours": ours, "bare": bare})
        rows.append(
            {
                "architecture": name,
                "seconds": seconds["ours"],
                "layers_per_second": POINTS * DEPTH / seconds["ours"],
                "fraction_of_bare": seconds["bare"] / seconds["ours"],
            }
        )
    return rows


def profiles() -> list[dict[str, Any]]:
    """Gradients of every state and parameter, and what plain float32 reads of them, warm."""
    depth = 8 if SMALL else 1000
    key = jax.random.key(0)
    image = {"channels": CHANNELS, "depth": depth, "inputs": (*SIZE, 3), "outputs": 10}
    networks = {
        "resnet": vg.resnet(**image, norm=GROUPS),
        "resnet_no_norm": vg.resnet(**image, norm=None, residual=vg.networks.branch("pre", scheme="stable")),
        "lstm": vg.lstm(width=WIDTH, depth=depth, inputs=64, outputs=10),
        "gru": vg.gru(width=WIDTH, depth=depth, inputs=64, outputs=10),
    }
    rows = []
    for name, net in networks.items():
        parameters, x = vg.init(key, net), jax.random.normal(key, net.input_shape)
        work = {
            "gradients": lambda p=parameters, x=x: vg.gradient_flow(p, vg.Scales(), x, 1),
            "naive reading": lambda p=parameters, x=x: vg.naive_reading(p, vg.Scales(), x, 1),
        }
        for what, seconds in best_of(RUNS, work).items():
            rows.append({"network": name, "layers": depth, "what": what, "seconds": seconds})
    return rows


def main() -> None:
    """Measure, print, write."""
    swept_rows, profile_rows = sweeps(), profiles()
    print_table(swept_rows)
    print_table(profile_rows)
    dense_rows = {
        row["architecture"]: row["fraction_of_bare"] for row in swept_rows if row["architecture"] in DENSE_STACKS
    }
    fastest = {name: next(r["seconds"] for r in profile_rows if r["network"] == name) for name in ("resnet", "lstm")}
    of_llama = {r["architecture"]: r["fraction_of_bare"] for r in swept_rows if r["architecture"].startswith("llama")}
    reached = {
        "llama": {name: bool(value >= TARGETS["llama"]) for name, value in of_llama.items()},
        "fraction": {name: bool(value >= TARGETS["fraction"]) for name, value in dense_rows.items()},
        "resnet_seconds": bool(fastest["resnet"] < TARGETS["resnet_seconds"]),
        "lstm_seconds": bool(fastest["lstm"] < TARGETS["lstm_seconds"]),
    }
    print(reached)
    setting = {"width": WIDTH, "depth": DEPTH, "points": POINTS, "runs": RUNS, "channels": CHANNELS, "size": list(SIZE)}
    write_json(
        "architectures",
        {"setting": setting, "sweeps": swept_rows, "profiles": profile_rows, "targets": TARGETS, "reached": reached},
    )


if __name__ == "__main__":
    main()
