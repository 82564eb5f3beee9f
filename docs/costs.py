"""Prints what long runs cost, from the benchmark's JSON, as it stands in the docs: ``python docs/costs.py --write``."""

import json
import re
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "more_than_one_machine.md"
RESULT = Path(__file__).parent.parent / "benchmarks" / "results" / "runs.json"
REGION = re.compile(r"<!-- costs -->\n.*?<!-- /costs -->", re.S)


def table() -> str:
    """Rows of what, measured, wanted."""
    found: dict[str, Any] = json.loads(RESULT.read_text())
    processes, dask, million, kept = (found[name] for name in ("processes", "dask", "million", "kept"))
    kills = sum(found["kills"]["kills"].values())
    rows = [
        ("what", "measured", "wanted"),
        ("---", "---", "---"),
        (
            f"two processes over one with two threads, {processes['pieces']} pieces of a training sweep: speed",
            f"{processes['speed_of_processes']:.2f}",
            "0.9",
        ),
        ("Dask, more for a piece than in this process", f"{dask['more_ms']:.1f} ms", "50 ms"),
        (f"bookkeeping of each of {million['pieces']:,} pieces", f"{million['ms']:.3f} ms", "1 ms"),
        ("memory of a process that does them", f"{million['mb']:.0f} MB", "500 MB"),
        (f"the same with a folder, {kept['pieces']:,} pieces, each on the disk", f"{kept['ms']:.2f} ms", ""),
        ("kills and full disks, none of which did harm", f"{kills} of {found['kills']['trials']}", "200"),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Print it, or put it in its place."""
    text = f"<!-- costs -->\n\n{table()}\n\n<!-- /costs -->"
    if "--write" in sys.argv:
        PAGE.write_text(REGION.sub(lambda _: text, PAGE.read_text()))
    else:
        print(text)


if __name__ == "__main__":
    main()
