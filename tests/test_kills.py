"""Runs that are killed, of every kind, each at another operation (`benchmarks/kills.py`; there are 200 in its JSON)."""

import json
import subprocess
import sys
from pathlib import Path


def test_ten_killed_runs_lose_nothing_and_leave_nothing_half() -> None:
    script = Path(__file__).parent.parent / "benchmarks" / "kills.py"
    run = subprocess.run([sys.executable, str(script), "10"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["kills"].keys() == {"driver", "part", "two_drivers", "full_disk", "dask"}
    assert all(found["kills"].values())
    assert found["operations"] > 40
