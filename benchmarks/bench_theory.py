"""What theory costs: a map of 75,000 points for any activation, a point, a critical scale.

The first call is timed in a fresh process for every activation, from after the imports to the result: finding the
activation's pieces, tabulating its Gaussian averages, compiling. The yardstick of the same run is what one would write
first: iterate q and chi by 64-point Gauss-Hermite quadrature under `vmap` (wrong at kinks, no c*), on a part of the
map, scaled up.

    python benchmarks/bench_theory.py        # SIZE=small for a quick look
"""

import json
import subprocess
import sys
import time
from typing import Any

import numpy as np
from common import SMALL, best_of, print_table, write_json

COLUMNS, ROWS = (60, 50) if SMALL else (300, 250)
ACTIVATIONS = ("tanh", "gelu") if SMALL else ("tanh", "relu", "gelu", "hard_tanh", "selu", "sigmoid", "erf", "sin")
OWN = "lambda u: jnp.tanh(u) + 0.1 * jnp.maximum(u - 0.5, 0)"  # a user's callable, its kink not declared
MOST = {"map, q*": 0.3, "map, c*": 2.0, "first call": 10.0, "point": 5e-3, "critical": 50e-3}
ITERATIONS, NODES = 100, 64


def grid() -> tuple[np.ndarray, np.ndarray]:
    """sigma_w and sigma_b of the map, shapes ``(columns, 1)`` and ``(rows,)``."""
    return np.linspace(0.5, 4, COLUMNS)[:, None], np.linspace(0, 2, ROWS)


def activation(name: str) -> Any:
    """By name, or the user's own."""
    import jax.numpy as jnp

    return eval(name, {"jnp": jnp}) if name.startswith("lambda") else name


def first_call(name: str) -> dict[str, float]:
    """Seconds of the first map in this process, without and with c*, and whether any cell is NaN."""
    from vgjax import theory

    start = time.perf_counter()
    found = theory.mean_field(activation(name), *grid())
    q_star = found.xi_grad
    after_q = time.perf_counter() - start
    xi_c = found.xi_c
    whole = time.perf_counter() - start
    return {"q*": after_q, "whole": whole, "nan": int(np.isnan(q_star).sum() + np.isnan(xi_c).sum())}


def in_a_fresh_process(name: str) -> dict[str, float]:
    """`first_call` there."""
    ran = subprocess.run([sys.executable, __file__, "--first", name], capture_output=True, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def warm(name: str) -> dict[str, float]:
    """Seconds of the map, a point and a critical scale once all is compiled and tabulated."""
    from vgjax import theory

    phi = activation(name)
    points = iter(np.linspace(1.1, 1.9, 1000))
    work = {
        "map, q*": lambda: theory.mean_field(phi, *grid()).xi_grad,
        "map, c*": lambda: theory.mean_field(phi, *grid()).xi_c,
        "point": lambda: theory.mean_field(phi, next(points), 0.3).xi_c,
        "critical": lambda: theory.critical(phi, next(points) - 1).sigma_w,
    }
    return best_of(5, work)


def yardstick() -> float:
    """Seconds of plain Gauss-Hermite iteration for tanh on one row of the map, times the rows."""
    import jax
    import jax.numpy as jnp

    x, w = np.polynomial.hermite_e.hermegauss(NODES)
    with jax.enable_x64(True):
        z, weights = jnp.asarray(x), jnp.asarray(w / w.sum())

        @jax.jit
        def row(sigma_w: Any, sigma_b: Any) -> Any:
            def at(s: Any) -> Any:
                def layer(_: int, q: Any) -> Any:
                    return s**2 * jnp.sum(weights * jnp.tanh(jnp.sqrt(q) * z) ** 2) + sigma_b**2

                q = jax.lax.fori_loop(0, ITERATIONS, layer, jnp.ones(()))
                return q, s**2 * jnp.sum(weights / jnp.cosh(jnp.sqrt(q) * z) ** 4)

            return jax.vmap(at)(sigma_w)

        columns, rows = (jnp.asarray(axis).ravel() for axis in grid())
        return best_of(3, {"row": lambda: row(columns, rows[1])})["row"] * ROWS


def main() -> None:
    """Every activation first cold, then warm; one table, one JSON."""
    rows = []
    for name in (*ACTIVATIONS, OWN):
        cold, hot = in_a_fresh_process(name), warm(name)
        rows.append({"activation": name, "first call": cold["whole"], "NaN cells": cold["nan"], **hot})
    print_table([{**row, "activation": row["activation"][:12]} for row in rows])
    plain = yardstick()
    tanh = rows[0]["map, q*"]
    print(f"plain Gauss-Hermite iteration, tanh, q* and chi only: {plain:.2f} s, {plain / tanh:.1f} times the map")
    targets = []
    for what, most in MOST.items():
        value = max(row[what] for row in rows)
        targets.append({"what": f"{what}, seconds, slowest", "value": value, "most": most, "reached": value <= most})
        print(f"{what}: slowest {value:.3g} s, at most {most:g}: {'reached' if value <= most else 'missed'}")
    none = sum(row["NaN cells"] for row in rows)
    targets.append({"what": "NaN cells", "value": none, "most": 0, "reached": none == 0})
    write_json(
        "theory",
        {"points": COLUMNS * ROWS, "rows": rows, "plain_iteration_seconds": plain, "targets": targets},
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--first"]:
        print(json.dumps(first_call(sys.argv[2])))
    else:
        main()
