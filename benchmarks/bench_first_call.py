"""How long does the first answer take, and what of it is compilation?

Every network in a fresh process and without a cache of compiled programs: seconds of each first call, split into
tracing (with all Python around it), lowering, compiling and running (the second call), and the number of programs. The
limit to compare with is the first call of a plain ``jax.jit(jax.value_and_grad(...))`` of the same network, written in
Flax NNX with `lax.scan`, in the same process. Then ``python -m vgjax map`` with an empty cache and a full one.

    python benchmarks/bench_first_call.py        # SIZE=small for a quick look
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import SMALL, print_table, write_json

ROUNDS = int(os.environ.get("ROUNDS", 1 if SMALL else 3))
DEPTH, WIDTH, INPUTS, OUTPUTS = 12, 64, 32, 10
IMAGE, CHANNELS, TOKENS, HEADS = (8, 8, 3), 8, 6, 4
STAGES = (8, 16, 32)
NETWORKS = ("mlp tanh", "mlp relu", "mlp gelu", "residual", "cnn", "resnet", "lstm", "transformer")
CALLS = ("init", "push_forward", "gradient_flow", "sweep", "log_singular_values", "train")
# Times the plain program's first call.
MOST = {
    **{("gradient_flow", name): 2.5 for name in ("mlp tanh", "mlp relu", "mlp gelu")},
    ("gradient_flow", "resnet"): 3.0,
    **{("sweep", name): 2.0 for name in NETWORKS},
}
MAP = ("--points", "8", "--width", "32", "--depth", "20", "--seeds", "1") if SMALL else ()
MAP_SECONDS, AGAIN_SECONDS, MAP_PROGRAMS = 13.0, 6.0, 25

PHASES = {
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}


# --- one network, in a process of its own ---------------------------------------------------------------------------


def watched() -> dict[str, Any]:
    """Seconds and programs so far, by phase; JAX adds to it."""
    import jax

    so_far: dict[str, Any] = {"lower": 0.0, "compile": 0.0, "programs": 0}

    def add(event: str, seconds: float, **_: Any) -> None:
        if phase := PHASES.get(event):
            so_far[phase] += seconds
            so_far["programs"] += phase == "compile"

    jax.monitoring.register_event_duration_secs_listener(add)
    return so_far


def first_call(so_far: dict[str, Any], call: Callable[[], Any]) -> dict[str, Any]:
    """Seconds of a first call by phase; what runs is what the second call takes."""
    import jax

    def seconds() -> float:
        start = time.perf_counter()
        jax.block_until_ready(jax.tree.leaves(call()))
        return time.perf_counter() - start

    before = dict(so_far)
    first = seconds()
    found = {phase: so_far[phase] - before[phase] for phase in so_far}
    run = seconds()
    trace = max(0.0, first - run - found["lower"] - found["compile"])
    return {"first": first, "trace": trace, **found, "run": run}


def of_network(name: str) -> dict[str, Any]:
    """All first calls of one network, and that of the plain program."""
    start = time.perf_counter()
    import vgjax as vg

    imported = time.perf_counter() - start
    import jax
    import jax.numpy as jnp

    network, key = build(vg, name), jax.random.key(0)
    x = jax.random.normal(key, network.input_shape)
    xs, y, scales = jnp.stack([x, -x]), jnp.zeros((), int), vg.Scales()
    swept = next(scale for scale in network.scales if scale not in ("skip", "sigma_out"))
    train = functools.partial(vg.train, data=vg.data.Examples(xs, jnp.zeros(2, int)), num_steps=2, batch_size=None)
    drawn: list[Any] = []

    def init() -> Any:
        drawn[:] = [vg.init(key, network)]
        return drawn[0]

    calls: dict[str, Callable[[], Any]] = {
        "plain": plain(name, x),
        "init": init,
        "push_forward": lambda: vg.push_forward(drawn[0], scales, x)._asdict(),
        "gradient_flow": lambda: vg.gradient_flow(drawn[0], scales, x, y)._asdict(),
        "sweep": lambda: vg.sweep(network, x, key=key, seeds=1, progress=False, **{swept: [0.9, 1.1]}).arrays,
        "log_singular_values": lambda: vars(vg.log_singular_values(drawn[0], scales, x)),
        "train": lambda: train(drawn[0], scales).loss,
    }
    so_far = watched()
    return {"import": imported} | {call: first_call(so_far, make) for call, make in calls.items()}


def build(vg: Any, name: str) -> Any:
    """The library's network of that name."""
    kind, _, activation = name.partition(" ")
    dense = {"width": WIDTH, "depth": DEPTH, "inputs": INPUTS, "outputs": OUTPUTS}
    image = {"inputs": IMAGE, "outputs": OUTPUTS}
    if kind == "mlp":
        return vg.mlp(**dense, activation=activation)
    if kind == "residual":
        return vg.mlp(**dense, residual="plain")
    if kind == "cnn":
        return vg.cnn(**image, channels=CHANNELS, depth=DEPTH)
    if kind == "resnet":
        return vg.resnet(**image, channels=STAGES, depth=(3, 3, 3), norm=vg.norm("group", groups=4))
    if kind == "lstm":
        return vg.lstm(**dense)
    return vg.transformer(width=WIDTH, depth=DEPTH, heads=HEADS, inputs=(TOKENS, INPUTS), outputs=OUTPUTS)


# --- the same network in Flax --------------------------------------------------------------------------------------


def plain(name: str, x: Any) -> Callable[[], Any]:
    """Value and gradient of the loss of a network of plain Flax modules, compiled by its first call."""
    # Not before the library, whose import is timed.
    import jax
    import optax
    from plain_flax import in_flax

    sizes = (INPUTS, WIDTH, OUTPUTS), DEPTH, (IMAGE[-1], CHANNELS), STAGES, HEADS
    parameters, output = in_flax(name, *sizes)

    @jax.jit
    def step(parameters: Any, x: Any) -> Any:
        of = lambda p: optax.softmax_cross_entropy_with_integer_labels(output(p, x), 0)  # noqa: E731
        return jax.value_and_grad(of)(parameters)

    return lambda: step(parameters, x)


# --- the command line -----------------------------------------------------------------------------------------------

# Counts what is compiled, by the logs that JAX writes anyway.
COUNTED = """
import sys, json, jax, time
count = [0]
def add(event, seconds, **_):
    count[0] += event == "/jax/core/compile/backend_compile_duration"
jax.monitoring.register_event_duration_secs_listener(add)
from vgjax.cli import main
start = time.perf_counter()
code = main(sys.argv[1:])
print(json.dumps({"programs": count[0], "inside": time.perf_counter() - start}), file=sys.stderr)
sys.exit(code)
"""


def map_seconds() -> dict[str, Any]:
    """``python -m vgjax map`` with an empty cache, again with a full one, and with another activation."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "VGJAX_CACHE": f"{folder}/cache"}
        for name in ("JAX_COMPILATION_CACHE_DIR", "PYTHONDONTWRITEBYTECODE"):  # installed: its modules are compiled
            environment.pop(name, None)

        def run(*arguments: str) -> float:
            start = time.perf_counter()
            command = [sys.executable, "-m", "vgjax", "map", "--quiet", "--out", f"{folder}/map", *MAP, *arguments]
            subprocess.run(command, check=True, capture_output=True, env=environment)
            return time.perf_counter() - start

        empty, full = run(), min(run() for _ in range(ROUNDS))
        other = run("--activation", "relu")
        command = [sys.executable, "-c", COUNTED, "map", "--quiet", "--no-cache", "--out", f"{folder}/map", *MAP]
        counted = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    programs = json.loads(counted.stderr.splitlines()[-1])["programs"]
    return {"empty cache": empty, "full cache": full, "another activation": other, "programs": programs}


def main() -> None:
    """All networks, the table, the targets; one JSON."""
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"}
    found: dict[str, Any] = {}
    for name in NETWORKS:
        command = [sys.executable, str(Path(__file__)), name]
        runs = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
            for _ in range(ROUNDS)
        ]
        # Of each call the run in which it was fastest beside its own plain program.
        found[name] = {
            call: min((run[call] | {"ratio": run[call]["first"] / run["plain"]["first"]} for run in runs),
                      key=lambda one: one["ratio"])
            for call in ("plain", *CALLS)
        }  # fmt: skip
        found[name]["import"] = min(run["import"] for run in runs)
        print_table([{"network": name, "call": call} | found[name][call] for call in ("plain", *CALLS)])
    command_line = map_seconds()
    print(command_line)
    targets = [
        {"what": f"first {call}, {name}, over the plain program", "value": found[name][call]["ratio"], "most": most}
        for (call, name), most in MOST.items()
    ]
    limits = {"empty cache": MAP_SECONDS, "full cache": AGAIN_SECONDS, "programs": MAP_PROGRAMS}
    targets += [{"what": f"map, {what}", "value": command_line[what], "most": most} for what, most in limits.items()]
    targets = [target | {"reached": target["value"] <= target["most"]} for target in targets]
    print_table(targets)
    write_json("first_call", {"rounds": ROUNDS, "networks": found, "map": command_line, "targets": targets})


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(of_network(sys.argv[1])))
    else:
        main()
