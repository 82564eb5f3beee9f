"""What every benchmark shares: sizes, timing, a table, a JSON with the machine beside it."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

SMALL = os.environ.get("SIZE", "full") == "small"
FOLDER = Path(__file__).parent / "results"


def write_json(name: str, result: dict[str, Any]) -> None:
    """The result with the machine that made it, whole or not at all.

    Runs at a small size leave the committed files alone.
    """
    from vgjax.ensembles.result import describe_machine
    from vgjax.ensembles.runner import cores
    from vgjax.files import whole_file

    path, machine = json_path(name), {**describe_machine(), "cores": cores()}
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps({"benchmark": name, "machine": machine, **result}, indent=1) + "\n")
    print(f"written: {path}")


def read_json(name: str) -> dict[str, Any]:
    """The last result of this size on this kind of device, without its machine."""
    kept = json.loads(json_path(name).read_text())
    return {key: value for key, value in kept.items() if key not in ("benchmark", "machine")}


def json_path(name: str) -> Path:
    """Where the results of this size on this kind of device are kept."""
    import jax

    suffix = "" if jax.default_backend() == "cpu" else f"-{jax.devices()[0].device_kind.replace(' ', '-').lower()}"
    return FOLDER / f"{name}{suffix}{'-small' if SMALL else ''}.json"


def print_table(rows: list[dict[str, Any]]) -> None:
    """Rows of equal keys as aligned columns."""

    def text(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    columns = list(rows[0])
    widths = [max(len(c), *(len(text(row[c])) for row in rows)) for c in columns]
    for cells in (columns, *([text(row[c]) for c in columns] for row in rows)):
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))


def best_of(runs: int, work: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of the fastest of several interleaved runs of each, after one that compiles.

    Interleaved, so that all meet the same noise.
    """
    import jax

    for f in work.values():
        jax.block_until_ready(f())
    seconds = dict.fromkeys(work, float("inf"))
    for _ in range(runs):
        for name, f in work.items():
            start = time.perf_counter()
            jax.block_until_ready(f())
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def piece_of_sweep(parameters: Any, x: Any, u: Any, swept: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The arguments of the program that a sweep of gains runs for one draw, all points of the grid at once.

    Of `vgjax.ensembles.job._measure_points`: what it is compiled for, and what it is called with, on the device.
    """
    import jax
    import jax.numpy as jnp

    import vgjax as vg

    points = len(next(iter(swept.values())))
    traced = (parameters, u), (vg.Scales(), (x,)), (swept, {}, jnp.arange(points))
    return (vg.gains(), False, points, None), jax.tree.map(jnp.asarray, traced)
