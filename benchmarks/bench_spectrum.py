"""What exact spectra cost, and how exact they are.

Exactness: against 600-digit references (27 networks at depths 1 to 300, `tests/spectrum_reference.json`), beside what
a plain float64 decomposition of the plain product reads; the sum of logs against determinants taken layer by layer, at
10,000 layers; the edges of the spectrum at width 1000 against the infinite width.

Cost: the whole spectrum, finish included, over the plain layer-by-layer QR recursion (`lyapunov_exponents`) of the same
run; time against depth; temporary memory, as the compiler counts it, at 100 and 1000 layers.

    python benchmarks/bench_spectrum.py        # SIZE=small for a quick look
"""

import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import SMALL, best_of, print_table, write_json

import vgjax as vg
from vgjax import theory
from vgjax.measure import jacobian, lyapunov, spectrum

TESTS = Path(__file__).parent.parent / "tests"
WIDTHS = (12,) if SMALL else (12, 16, 32)
LAYERS = 1000 if SMALL else 10_000
EDGE_WIDTH, EDGE_SEEDS = (200, 2) if SMALL else (1000, 4)
KEY = jax.random.key(0)

# Largest s^2 at infinite width: free probability (Pennington et al. 2017, 2018), recomputed.
EDGES = (
    ("linear", "gaussian", None, 2, 6.75),
    ("linear", "gaussian", None, 10, 28.5311671),
    ("linear", "gaussian", None, 50, 137.270989),
    ("relu", "gaussian", None, 2, 11.0901699),
    ("relu", "gaussian", None, 10, 54.4108585),
    ("relu", "orthogonal", None, 2, 4.0),
    ("relu", "orthogonal", None, 10, 25.8117479),
    ("tanh", "orthogonal", 1 / 16, 16, 2.26168107),
    ("tanh", "gaussian", 1 / 16, 16, 45.69072),
    ("tanh", "orthogonal", 1 / 64, 64, 1.71331624),
    ("tanh", "orthogonal", 1.0, 10, 16.50387),
    ("hard_tanh", "orthogonal", 0.5, 10, 4.8180416038),
)


def exactness() -> list[dict[str, Any]]:
    """The largest error of any ln s, by kind of network and dtype."""
    sys.path.insert(0, str(TESTS))
    import spectrum_cases
    from test_spectrum_exactness import reference_network

    reference = json.loads((TESTS / "spectrum_reference.json").read_text())["cases"]
    rows = []
    for kind in spectrum_cases.KINDS:
        row: dict[str, Any] = {"network": kind, "float64": 0.0, "float32": 0.0, "allowed in float32": 0.0, "plain": 0.0}
        for width in WIDTHS:
            known = {
                int(m): np.array([-np.inf if s is None else s for s in values])
                for m, values in reference[f"{kind}/{width}"].items()
            }
            exact = np.stack(list(known.values()))
            _, parameters, scales, x = reference_network(kind, width)
            for dtype in ("float64", "float32"):
                found = vg.log_singular_values(
                    parameters, scales, x, list(known), from_input=kind == "stem", dtype=dtype
                )
                row[dtype] = max(row[dtype], largest_error(found.log_singular_values, exact))
            row["allowed in float32"] = max(row["allowed in float32"], 2e-3, 2.0**-23 * found.condition)
            if kind != "stem":
                row["plain"] = max(row["plain"], largest_error(plain(parameters, scales, x, known), exact))
        rows.append(row)
    return rows


def largest_error(found: np.ndarray, exact: np.ndarray) -> float:
    """Infinite where one is zero and the other is not."""
    lost = np.isneginf(exact)
    if not np.array_equal(np.isneginf(found), lost):
        return float("inf")
    return float(np.abs(np.where(lost, 0, found) - np.where(lost, 0, exact)).max())


def plain(parameters: Any, scales: Any, x: Any, depths: Any) -> np.ndarray:
    """ln s by a singular value decomposition of the plain float64 product."""
    with jacobian.computing_from(parameters, scales, x, "float64", (0, max(depths))) as origin:
        layers = np.asarray(lyapunov.layer_jacobians(origin))
    product, values = np.eye(layers.shape[1]), []
    for m, layer in enumerate(layers, start=1):
        product = layer @ product
        if m in depths:
            values.append(np.linalg.svd(product, compute_uv=False))
    with np.errstate(divide="ignore"):
        return np.log(values)


def determinant() -> dict[str, float]:
    """At 10,000 layers of width 64: seconds of the first call, and the sum of logs against the determinant."""
    network = vg.mlp(width=64, depth=LAYERS, activation="tanh", inputs=64)
    parameters, scales, x = vg.init(KEY, network), vg.Scales(sigma_w=1.2, sigma_b=0.1), np.ones(64, np.float32)
    row: dict[str, float] = {"layers": LAYERS}
    for dtype in ("float64", "float32"):
        start = time.perf_counter()
        found = vg.log_singular_values(parameters, scales, x, dtype=dtype)
        row[f"seconds, {dtype}"] = time.perf_counter() - start
        exact = vg.log_determinant(parameters, scales, x, dtype="float64")[-1]
        row[f"error of the sum, {dtype}"] = float(abs(found.log_determinant[0] / exact - 1))
        row["span in nats"] = float(found.log_condition[0])
    return row


def edges() -> list[dict[str, Any]]:
    """Largest s^2, the mean of its log over draws, against the infinite width."""
    rows = []
    for activation, kernel_init, q, depth, expected in EDGES:
        network = vg.mlp(
            width=EDGE_WIDTH, depth=depth, activation=activation, inputs=EDGE_WIDTH, kernel_init=kernel_init
        )
        sigma_w, sigma_b, x2 = (2**0.5 if activation == "relu" else 1.0), 0.0, 1.0
        if q is not None:
            critical = theory.critical(activation, q=q)
            sigma_w, sigma_b = critical.sigma_w, critical.sigma_b
            x2 = (q - sigma_b**2) / sigma_w**2
        logs = []
        for seed in range(EDGE_SEEDS):
            direction, weights = jax.random.split(jax.random.fold_in(KEY, seed))
            x = np.sqrt(x2) * jax.random.normal(direction, (EDGE_WIDTH,))
            scales = vg.Scales(sigma_w=sigma_w, sigma_b=sigma_b)
            found = vg.log_singular_values(vg.init(weights, network), scales, x, top=1)
            logs.append(2 * float(found.log_singular_values[0, 0]))
        value = float(np.exp(np.mean(logs)))
        rows.append(
            {
                "activation": activation,
                "kernel_init": kernel_init,
                "q*": q or float("nan"),
                "depth": depth,
                "measured": value,
                "infinite width": expected,
                "ratio": value / expected,
            }
        )
    return rows


def cost() -> list[dict[str, Any]]:
    """Seconds of the whole spectrum and of the plain QR recursion, by activation and dtype."""
    rows = []
    width, depth = (64, 20) if SMALL else (256, 100)
    for activation in ("tanh", "relu", "linear"):
        network = vg.mlp(width=width, depth=depth, activation=activation, inputs=64)
        parameters, x = vg.init(KEY, network), np.ones(64, np.float32)
        arguments = (parameters, vg.Scales(sigma_w=1.2, sigma_b=0.1), x)
        for dtype in ("float32", "float64"):
            found = best_of(
                5,
                {
                    "spectrum": functools.partial(vg.log_singular_values, *arguments, dtype=dtype),
                    "QR recursion": functools.partial(vg.lyapunov_exponents, *arguments, dtype=dtype),
                },
            )
            ratio = found["spectrum"] / found["QR recursion"]
            rows.append({"activation": activation, "dtype": dtype, **found, "ratio": ratio})
    return rows


def against_depth() -> list[dict[str, Any]]:
    """Seconds and temporary memory at width 64, by depth."""
    rows = []
    for depth in (100, 1000) if SMALL else (100, 1000, 4000):
        network = vg.mlp(width=64, depth=depth, activation="tanh", inputs=64)
        parameters, x = vg.init(KEY, network), np.ones(64, np.float32)
        scales = vg.Scales(sigma_w=1.2, sigma_b=0.1)
        work = functools.partial(vg.log_singular_values, parameters, scales, x)
        seconds = best_of(3, {"s": work})["s"]
        with jacobian.computing_from(parameters, scales, x, "float32") as origin:
            program = spectrum.kept_products.lower(origin, origin.rotation(), (depth,)).compile()
        memory = program.memory_analysis()
        rows.append(
            {
                "depth": depth,
                "seconds": seconds,
                "ms a layer": 1e3 * seconds / depth,
                "temporary MiB": memory.temp_size_in_bytes / 2**20,
            }
        )
    return rows


def main() -> None:
    """All of it; one JSON."""
    by_kind, deep, of_edges, ratios, depths = exactness(), determinant(), edges(), cost(), against_depth()
    for table in (by_kind, [deep], of_edges, ratios, depths):
        print_table(table)
    growth = depths[-1]["ms a layer"] / depths[-2]["ms a layer"]
    memory = depths[-1]["temporary MiB"] / depths[0]["temporary MiB"]
    worst_edge = max(abs(row["ratio"] - 1) for row in of_edges)
    checks = (
        ("largest error of any ln s, float64", max(row["float64"] for row in by_kind), 1e-8),
        ("error over what float32 allows", max(row["float32"] / row["allowed in float32"] for row in by_kind), 1.0),
        ("sum of logs against determinant, float64", deep["error of the sum, float64"], 1e-9),
        ("seconds of a 10,000-layer spectrum", max(deep[f"seconds, {d}"] for d in ("float32", "float64")), 60.0),
        ("spectrum over QR recursion, largest", max(row["ratio"] for row in ratios), 3.0),
        ("time a layer, 4000 over 1000 layers", growth, 1.3),
        ("temporary memory, 4000 over 100 layers", memory, 1.1),
        ("edges at width 1000, largest deviation", worst_edge, 0.1),
    )
    targets = [{"what": what, "value": value, "most": most, "reached": value <= most} for what, value, most in checks]
    for target in targets:
        verdict = "reached" if target["reached"] else "missed"
        print(f"{target['what']}: {target['value']:.3g}, at most {target['most']:g}: {verdict}")
    write_json(
        "spectrum",
        {"exactness": by_kind, "deep": deep, "edges": of_edges, "cost": ratios, "depth": depths, "targets": targets},
    )


if __name__ == "__main__":
    main()
