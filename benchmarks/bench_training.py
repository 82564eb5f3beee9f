"""Trainings by the hundred against an ordinary Flax loop, and the border of divergence.

Targets: a trainability map of 12 values of sigma_w^2 by depths 10 to 120 (width 128, 200 steps of 64 digits) in under
10 minutes on 2 cores, and at least 2 times (width 128) or 3 times (width 64 or less) faster than the same trainings one
after the other through an ordinary `nnx.jit` loop of Flax and optax, compilation included on both sides; 256 x 256
trainings of width 16 in under 20 s, warm, with a border of dimension between 1 and 2 where a linear network's is 1.00
+- .05, and with detail left after a zoom of 1000.
"""

import sys
import time
from dataclasses import dataclass, fields, replace
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import vgjax as vg
from vgjax.training.trainability import Trainings

RATE, STEPS, BATCH = 1e-4, (10, 200)[not common.SMALL], 64
VARIANCE = np.linspace(1.0, 3.75, 12)[:: 6 if common.SMALL else 1]
DEPTHS = (2, 4) if common.SMALL else tuple(range(10, 121, 10))
SAMPLE = (2, 4) if common.SMALL else (10, 60, 120)
SIGMA_B = 0.05**0.5
POINTS = 32 if common.SMALL else 256


# --- the map --------------------------------------------------------------------------------------------------------


def networks(width: int, depths: tuple[int, ...]) -> list[vg.Network]:
    """Tanh networks from digits to classes."""
    return [vg.mlp(width=width, depth=depth, activation="tanh", inputs=64, outputs=10) for depth in depths]


def our_map(width: int, depths: tuple[int, ...]) -> tuple[float, vg.Result]:
    """Seconds of a whole map, compilation included, and what it saw."""
    jax.clear_caches()
    start = time.perf_counter()
    found = vg.sweep(
        networks(width, depths),
        measure=vg.trainings(TRAINING, "adam", STEPS, batch_size=BATCH),
        key=jax.random.key(0),
        seeds=1,
        scales=vg.Scales(sigma_b=SIGMA_B),
        learning_rate=RATE,
        sigma_w=np.sqrt(VARIANCE),
    )
    return time.perf_counter() - start, found


class Unrolled(nnx.Module):
    """The same network as users write it: a list of layers in a Python loop."""

    def __init__(self, width: int, depth: int, sigma_w: float, rngs: nnx.Rngs):
        def linear(fan_in: int, fan_out: int, sigma_w: float, sigma_b: float) -> nnx.Linear:
            normal = jax.nn.initializers.normal
            return nnx.Linear(
                fan_in,
                fan_out,
                kernel_init=normal(sigma_w / fan_in**0.5),
                bias_init=normal(sigma_b) if sigma_b else jax.nn.initializers.zeros,
                rngs=rngs,
            )

        sizes = [(64, width), *[(width, width)] * depth]
        self.hidden = nnx.List([linear(*size, sigma_w, SIGMA_B) for size in sizes])
        self.head = linear(width, 10, 1.0, 0.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.hidden:
            x = jnp.tanh(layer(x))
        return self.head(x)


@nnx.jit
def flax_step(model: Unrolled, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> jax.Array:
    """One update."""

    def loss(model: Unrolled) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    value, gradients = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradients)
    return value


OPTIMIZER = optax.adam(RATE)  # one object for all, or every training would compile again


def flax_training(width: int, depth: int, seed: int) -> float:
    """Seconds of one training through the loop, with its model."""
    start = time.perf_counter()
    model = Unrolled(width, depth, 1.3, nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param)
    rng = np.random.default_rng(seed)
    for _ in range(STEPS):
        batch = rng.integers(0, len(TRAINING.inputs), BATCH)
        loss = flax_step(model, optimizer, TRAINING.inputs[batch], TRAINING.labels[batch])
    jax.block_until_ready(loss)
    return time.perf_counter() - start


def flax_map(width: int, depths: tuple[int, ...]) -> dict[str, Any]:
    """Seconds of the map through the loop: at each sampled depth the first training, which compiles, and one more that
    stands for all the others; between the sampled depths linear in depth."""
    first, more = [], []
    for depth in SAMPLE:
        first.append(flax_training(width, depth, 0))
        more.append(flax_training(width, depth, 1))
    every = [np.interp(depths, SAMPLE, seconds) for seconds in (first, more)]
    total = float(np.sum(every[0] + (len(VARIANCE) - 1) * every[1]))
    return {"sampled depths": SAMPLE, "first": first, "more": more, "extrapolated to the whole map": total}


def compare_maps(sizes: dict[int, tuple[int, ...]]) -> list[dict[str, Any]]:
    """Our map and the loop's, by width: all depths, or a few."""
    rows = []
    for width, every in sizes.items():
        ours, found = our_map(width, every)
        loop = flax_map(width, every)
        ratio = loop["extrapolated to the whole map"] / ours
        depths = vg.trainable_depth(found)
        rows.append(
            {
                "width": width,
                "depths": every,
                "trainings": len(every) * len(VARIANCE),
                "seconds": ours,
                "flax": loop,
                "ratio": ratio,
                "target ratio": 2 if width >= 128 else 3,
                "trainable depth": depths.tolist(),
                "accuracy": vg.training.best(found).round(3).tolist(),
            }
        )
        print(f"width {width}: {ours:.1f} s, the loop {loop['extrapolated to the whole map']:.0f} s, {ratio:.2f} times")
        print("trainable depth by sigma_w^2:", dict(zip(VARIANCE.tolist(), depths.tolist(), strict=True)), flush=True)
    return rows


# --- the boundary ---------------------------------------------------------------------------------------------------


def trained(network: vg.Network, data: Any, dtype: str = "float32", **axes: Any) -> vg.Result:
    """Full-batch gradient descent at every pair of learning rates."""
    measure = vg.trainings(data, "sgd", 100, batch_size=None, dtype=dtype)
    return vg.sweep(network, measure=measure, key=jax.random.key(0), seeds=1, **axes)


def boundary() -> dict[str, Any]:
    """Seconds of the second of two maps, and the dimensions of their borders."""
    width = 16
    tanh = replace(vg.mlp(width=[width, 1], activation="tanh", inputs=width), head=None)
    linear = replace(vg.stack(vg.blocks.Dense, width, 1, depth=1, input_shape=width), stem=None)
    x, y = jax.random.normal(jax.random.key(1), (2, width, width))
    data = vg.data.Examples(x, y[:, :1])
    rates = {"stem": np.geomspace(1, 1e4, POINTS), "blocks": np.geomspace(0.03, 3, POINTS)}
    trained(tanh, data, learning_rate=rates)
    start = time.perf_counter()
    whole = trained(tanh, data, learning_rate=rates)
    seconds = time.perf_counter() - start
    closer = trained(tanh, data, "float64", **vg.training.zoom(trained(tanh, data, "float64", learning_rate=rates), 30))
    closest = trained(tanh, data, "float64", **vg.training.zoom(closer, 1000 / 30))
    smooth = trained(linear, data, learning_rate=dict.fromkeys(("kernel", "bias"), np.geomspace(0.01, 10, POINTS)))
    sweeps = {"tanh": whole, "tanh, x 30": closer, "tanh, x 1000": closest, "linear": smooth}
    dimensions = {name: vg.training.box_dimension(sweep.converged[0]).dimension for name, sweep in sweeps.items()}
    print(f"boundary: {POINTS} x {POINTS} in {seconds:.1f} s; dimensions {dimensions}", flush=True)
    return {"points": POINTS, "seconds, warm": seconds, "dimension": dimensions}


# --- one after the other, or as one batch ---------------------------------------------------------------------------


@dataclass(frozen=True)
class InBatches(Trainings):
    """Trainings in batches of a size that is given."""

    together: int = 1

    def chunk(self, network: vg.Network, points: int, memory: int, workers: int) -> tuple[int, int]:
        """All points in one piece."""
        return points, self.together


def batching() -> list[dict[str, Any]]:
    """Seconds per training of 32 trainings on one core: batches of 1, 4 and 32, the second run of each."""
    rows = []
    for width, batch in ((16, 16), (64, 64)):
        row: dict[str, Any] = {"width": width, "batch": batch}
        measure = vg.trainings(TRAINING, "sgd", 50, batch_size=batch)
        options = {f.name: getattr(measure, f.name) for f in fields(measure)}  # type: ignore[arg-type]
        about: dict[str, Any] = {"key": jax.random.key(0), "seeds": 1, "workers": 1}
        for together in (1, 4, 32):
            for _ in range(2):
                start = time.perf_counter()
                measure = InBatches(**options, together=together)
                vg.sweep(networks(width, (10,))[0], measure=measure, learning_rate=np.full(32, 0.01), **about)
                row[f"together {together}"] = (time.perf_counter() - start) / 32
        rows.append(row)
    common.print_table(rows)
    return rows


def main() -> None:
    """All of it, as one JSON; or the parts that are named, in place of those of the last run."""
    global TRAINING
    TRAINING = vg.data.split(jax.random.key(9), vg.data.digits())[0]
    parts = {
        "boundary": boundary,
        "maps": lambda: compare_maps({8: DEPTHS} if common.SMALL else {128: DEPTHS, 64: SAMPLE}),
        "batching": batching,
    }
    wanted = sys.argv[1:] or list(parts)
    result = common.read_json("training") if sys.argv[1:] else {}
    for name in wanted:
        result[name] = parts[name]()
        common.write_json("training", result)


if __name__ == "__main__":
    main()
