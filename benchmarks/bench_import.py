"""What it costs to begin: importing the library, and the time from a cold start to the first figure.

Every time is that of a fresh Python process, from its start to its end; the imports are the best of several,
interleaved.

    python benchmarks/bench_import.py        # SIZE=small for a quick look
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import SMALL, print_table, write_json

ROUNDS = 3 if SMALL else 7
IMPORTS = {"jax, flax.nnx": "import jax, flax.nnx", "vgjax": "import vgjax"}
MOST = 1.3  # times `import jax, flax.nnx`
# Heavy modules that some part of the library needs, or that one might pull in unawares.
HEAVY = ("matplotlib", "xarray", "sklearn", "scipy.stats", "optax", "pandas", "netCDF4", "torch", "tqdm")
LATER = ("matplotlib", "xarray", "sklearn")  # must wait until they are used
MAP = ("--points", "8", "--width", "32", "--depth", "20", "--seeds", "1") if SMALL else ()


def seconds(*arguments: str) -> float:
    """Seconds of a fresh Python with these arguments, from its start to its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def loaded_by(statement: str) -> list[str]:
    """Which of the heavy modules a fresh Python has loaded after the statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    return json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def first_figure() -> dict[str, Any]:
    """Seconds from a cold start of ``python -m vgjax map`` to its end, and the files it left."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        ran = subprocess.run(
            [sys.executable, "-m", "vgjax", "map", "--out", folder, *MAP], capture_output=True, text=True
        )
        elapsed = time.perf_counter() - start
        files = sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())
    if ran.returncode:
        raise RuntimeError(f"python -m vgjax map failed:\n{ran.stderr}")
    return {"arguments": list(MAP), "seconds": elapsed, "files": files}


def main() -> None:
    """Imports side by side, what they load, the first figure; one JSON."""
    best = dict.fromkeys(["nothing", *IMPORTS], float("inf"))
    for statement in IMPORTS.values():
        seconds("-c", statement)  # compiles what is not yet compiled, fills the disk's cache
    for _ in range(ROUNDS):
        for name, statement in {"nothing": "pass", **IMPORTS}.items():
            best[name] = min(best[name], seconds("-c", statement))
    loaded = {name: loaded_by(statement) for name, statement in IMPORTS.items()}
    print_table([{"import": n, "seconds": s, "loads": ", ".join(loaded.get(n, [])) or "-"} for n, s in best.items()])
    ratio = best["vgjax"] / best["jax, flax.nnx"]
    too_early = [module for module in LATER if module in loaded["vgjax"]]
    print(f"import vgjax / import jax, flax.nnx: {ratio:.3f}, at most {MOST}; loaded too early: {too_early or 'none'}")

    figure = first_figure()
    print(f"first figure after {figure['seconds']:.1f} s: {', '.join(figure['files'])}")
    write_json(
        "import",
        {
            "seconds": best,
            "loads": loaded,
            "first_figure": figure,
            "targets": [
                {"what": "import time over jax, flax.nnx", "value": ratio, "most": MOST, "reached": ratio <= MOST},
                {"what": "modules loaded too early", "value": too_early, "most": [], "reached": not too_early},
            ],
        },
    )


if __name__ == "__main__":
    main()
