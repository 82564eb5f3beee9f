"""Names, places and numbers as a diagnosis says them."""

import math
from collections.abc import Sequence

from vgjax.diagnosis.readings import Row


def place(row: Row) -> str:
    """Where a row is in the model and in the code."""
    where = line_of(row)
    return f"{named(row)} ({where})" if where else named(row)


def named(row: Row) -> str:
    """Its name, with the step of the loop."""
    return row.name if row.step is None else f"{row.name}[{row.step}]"


def line_of(row: Row) -> str:
    """``model.py:212``: without folders and function."""
    return row.where.partition(" ")[0].rpartition("/")[2]


def listed(names: Sequence[str], most: int = 3) -> str:
    """Names in a row, the first few of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def rate(log: float) -> str:
    """A factor a layer: ``0.31``, ``1.02``."""
    return f"{math.exp(log):.2f}" if abs(log) < 2 else number(log)


def number(log: float) -> str:
    """A number of which only the logarithm is known, which may lie past every float range: ``0.31``, ``2.4e-93``."""
    if math.isnan(log):
        return "nan"
    if math.isinf(log):
        return "inf" if log > 0 else "0"
    if -7 < log < 9:
        return f"{math.exp(log):.2g}" if log < 4.6 else f"{math.exp(log):.0f}"
    exponent = math.floor(log / math.log(10))
    digits = f"{math.exp(log - exponent * math.log(10)):.1f}"
    return f"{digits}e{exponent:+03d}" if digits != "10.0" else f"1.0e{exponent + 1:+03d}"
