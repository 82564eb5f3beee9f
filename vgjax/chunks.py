"""Long work in pieces: a memory budget, a progress bar."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

MEMORY = 2**28
"""Default budget of one chunk, in bytes: 256 MiB."""


def chunk_size(points: int, bytes_per_point: int, memory: int) -> int:
    """How many points to take at once: as many as fit the budget (at least one), in chunks of equal size."""
    fitting = max(1, min(points, memory // bytes_per_point))
    chunks = -(-points // fitting)
    return -(-points // chunks)


def chunks(points: int, size: int) -> Iterator[tuple[list[int], int]]:
    """The chunks of ``range(points)``: the points each takes, and how many of them are new.

    All have the same size, so that one compiled program serves them; the last is filled up by repeating its last point.
    """
    for start in range(0, points, size):
        yield [min(i, points - 1) for i in range(start, start + size)], min(size, points - start)


def progress(work: Iterable[T], total: int, label: str, show: bool | None = None) -> Iterator[T]:
    """The work with a progress bar on standard error.

    Shown on a terminal if ``show`` is None, always or never if it says so.
    """
    hidden = not (sys.stderr.isatty() if show is None else show)
    yield from tqdm(work, total=total, desc=label, disable=hidden, leave=False)
