"""What every figure script shares: its size and where the pictures go.

A figure is a script with ``compute() -> data`` and ``draw(data) -> Figure``. ``SIZE=small`` computes a quick one and
leaves the gallery alone.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

SMALL = os.environ.get("SIZE", "full") == "small"
ROOT = Path(__file__).parent
GALLERY = ROOT.parent / "results" / "figures" if SMALL else ROOT / "gallery"


def render(name: str, compute: Callable[[], Any], draw: Callable[[Any], Any]) -> None:
    """Compute, draw, save as PNG and PDF, say where."""
    from vgjax import plots

    for path in plots.save(draw(compute()), GALLERY / name):
        print(path)
