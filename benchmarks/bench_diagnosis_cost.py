"""What a diagnosis and a watched training step cost, as ratios to the gradient alone, on networks of everyday size.

Every first call is that of a process in which nothing like it was compiled before.

    python benchmarks/bench_diagnosis_cost.py        # SIZE=small for a quick look
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import SMALL, best_of, print_table, write_json

import vgjax as vg
from vgjax.diagnosis.models import read_model
from vgjax.diagnosis.prepared import prepare

KEY = jax.random.key(0)
MOST = {"first": 3.0, "second": 3.0, "watch": 1.1, "compile, 48 layers over 12": 2.0}
WIDTH, EXAMPLES = (64, 32) if SMALL else (512, 256)
Network = tuple[Callable[[Any, Any], Any], Any, Any]


def draw(i: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(KEY, i), shape) * (2 / shape[-2]) ** 0.5


def labels(count: int) -> jax.Array:
    return jnp.arange(count) % 10


def loss(logits: Any, y: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def mlp(depth: int = 16) -> Network:
    """ReLU layers, written out."""

    def network(p: Any, x: Any) -> Any:
        for kernel in p["layers"]:
            x = jax.nn.relu(x @ kernel)
        return x @ p["head"]

    weights = {"layers": [draw(i, WIDTH, WIDTH) for i in range(depth)], "head": draw(depth, WIDTH, 10)}
    return network, weights, (draw(99, EXAMPLES, WIDTH), labels(EXAMPLES))


def block(p: Any, h: Any) -> Any:
    """Attention and feed-forward, each behind a layer norm."""
    normed = lambda h: (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-6)  # noqa: E731
    x = normed(h)
    scores = jax.nn.softmax(jnp.einsum("btd,bsd->bts", x @ p["q"], x @ p["k"]) / x.shape[-1] ** 0.5)
    h = h + jnp.einsum("bts,bsd->btd", scores, x @ p["v"]) @ p["o"]
    return h + jax.nn.gelu(normed(h) @ p["in"]) @ p["out"]


def transformer(depth: int, *, scanned: bool) -> Network:
    """Blocks of width 128 over 32 tokens."""
    width, tokens, examples = (32, 8, 4) if SMALL else (128, 32, 32)
    shapes = {name: (width, width) for name in "qkvo"} | {"in": (width, 4 * width), "out": (4 * width, width)}
    blocks = [{n: draw(7 * i + j, *s) / 2 for j, (n, s) in enumerate(shapes.items())} for i in range(depth)]

    def network(p: Any, x: Any) -> Any:
        if scanned:
            x, _ = jax.lax.scan(lambda h, b: (block(b, h), None), x, p["blocks"])
        else:
            for each in p["blocks"]:
                x = block(each, x)
        return x.mean(1) @ p["head"]

    stacked = jax.tree.map(lambda *a: jnp.stack(a), *blocks) if scanned else blocks
    weights = {"blocks": stacked, "head": draw(5, width, 10)}
    return network, weights, (draw(6, examples, tokens, width), labels(examples))


NETWORKS: dict[str, Callable[[], Network]] = {
    "MLP, 16 layers": mlp,
    "transformer, 12 layers": lambda: transformer(12, scanned=False),
    "transformer, 12 layers, scanned": lambda: transformer(12, scanned=True),
}


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def calls(network: Network) -> dict[str, float]:
    """First and second diagnosis over first and second gradient."""
    function, weights, batch = network
    gradient = jax.jit(jax.value_and_grad(lambda p: loss(function(p, batch[0]), batch[1])))
    prepared = prepare(read_model((function, weights), batch, loss, KEY))
    first = {"gradient": seconds(lambda: gradient(weights)), "diagnosis": seconds(lambda: prepared.read().loss)}
    second = best_of(7, {"gradient": lambda: gradient(weights), "diagnosis": lambda: prepared.read().loss})
    return {f"{name}": each["diagnosis"] / each["gradient"] for name, each in (("first", first), ("second", second))}


def watched(network: Network) -> float:
    """A step of Adam that is watched over one that is not."""
    function, weights, batch = network
    optimizer = optax.adam(1e-3)
    ours = lambda p, x, y: loss(function(p, x), y)  # noqa: E731

    def step(differentiated: Any) -> Any:
        def run(p: Any, state: Any) -> Any:
            value, gradient, *scalars = differentiated(p, *batch)
            updates, state = optimizer.update(gradient, state)
            return optax.apply_updates(p, updates), state, value, scalars

        compiled = jax.jit(run)
        return lambda: compiled(weights, optimizer.init(weights))

    best = best_of(15, {"plain": step(jax.value_and_grad(ours)), "watched": step(vg.watch(ours))})
    return best["watched"] / best["plain"]


def first_call(depth: int) -> float:
    """Seconds of the first diagnosis of an unrolled transformer."""
    jax.clear_caches()
    function, weights, batch = transformer(depth, scanned=False)
    return seconds(lambda: vg.diagnose((function, weights), batch, loss).readings.loss)


def main() -> None:
    """One table, one JSON."""
    rows = []
    for name, make in NETWORKS.items():
        jax.clear_caches()
        rows.append({"network": name, **calls(make()), "watch": watched(make())})
    short, long = (4, 8) if SMALL else (12, 48)
    depth = first_call(long) / first_call(short)
    print_table(rows)
    print(f"first call, {long} layers over {short}: {depth:.2f}")
    reached = {name: max(row[name] for row in rows) for name in ("first", "second", "watch")}
    reached[f"compile, {long} layers over {short}"] = depth
    missed = {name: value for name, value in reached.items() if value > MOST.get(name, np.inf)}
    write_json("diagnosis_cost", {"networks": rows, "reached": reached, "wanted": MOST, "missed": missed})


if __name__ == "__main__":
    main()
