"""Memory: how many points of a long computation are taken at once."""

import contextlib
import os
from collections.abc import Iterator

import jax

MEMORY = 2**28
"""Default budget of one chunk, in bytes: 256 MiB, small beside any machine's memory and large beside its caches."""


def chunk_size(points: int, bytes_per_point: int, memory: int) -> int:
    """How many points to take at once: as many as fit the budget (at least one), in chunks of equal size."""
    fitting = max(1, min(points, memory // bytes_per_point))
    chunks = -(-points // fitting)
    return -(-points // chunks)


def chunk(points: int, size: int, number: int) -> tuple[list[int], int]:
    """One of the chunks of ``range(points)``: the points it takes, and how many of them are new.

    All have the same size, so that one compiled program serves them; the last is filled up by repeating its last point.
    """
    start = number * size
    return [min(i, points - 1) for i in range(start, start + size)], min(size, points - start)


def chunks(points: int, size: int) -> Iterator[tuple[list[int], int]]:
    """All of them."""
    for number in range(-(-points // size)):
        yield chunk(points, size, number)


def of_device() -> int:
    """The budget of one piece: on an accelerator a quarter of its memory (what a piece needs is known about, and the
    program's own constants and copies come to it), where the device says how much it has; else `MEMORY`."""
    (device,) = jax.device_put(0).devices()
    known = device.memory_stats() or {} if device.platform != "cpu" else {}
    return int(known.get("bytes_limit", 4 * MEMORY)) // 4


def of_machine() -> float:
    """Bytes of memory that this machine has; infinity where the system does not say."""
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not on every system
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return float("inf")
