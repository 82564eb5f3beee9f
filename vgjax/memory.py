"""Memory: how many points of a long computation are taken at once."""

import contextlib
import os
from collections.abc import Iterator

MEMORY = 2**28
"""Default budget of one chunk, in bytes: 256 MiB, small beside any machine's memory and large beside its caches."""


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


def of_machine() -> float:
    """Bytes of memory that this machine has; infinity where the system does not say."""
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not on every system
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return float("inf")
