"""A diagnosis as a table, in text and in HTML: a row a state, forward beside backward."""

import html
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vgjax.diagnosis.readings import NAN, Kind, Path, Row
from vgjax.diagnosis.verdict import BREAK, inner, leaves_range
from vgjax.diagnosis.words import line_of, named, number, rate

HEAD = ("state", "where", "shape", "rms", "|dL/dh|", "back", "|dL/dW|", "zeros", "saturated", "")
"""``back`` is the factor by which the gradient changes on its way back through the layer that makes the state."""
MOST = 60
"""Rows of a path in text; of a longer one those in the middle are left out."""


@dataclass(frozen=True)
class TableLine:
    """One row of the table.

    Attributes:
        cells: its texts, one a column of `HEAD`.
        inside: whether it is a map on the way to a state.
    """

    cells: tuple[str, ...]
    inside: bool

    @property
    def mark(self) -> str:
        """What is wrong with it; empty if nothing is."""
        return self.cells[-1]


def lines(path: Path) -> list[TableLine]:
    """The rows of a path, each state behind the maps with weights on the way to it, if there are several; of a
    recurrence, whose steps share them, behind those of the first."""
    found: list[TableLine] = []
    gains, judged = log_gains(path.rows), {id(row) for row in inner(path)[1:] if path.all_gradient}
    typical = float(np.median([gain for gain in gains if math.isfinite(gain)] or [0.0]))
    for row, gain in zip(path.rows, gains, strict=True):
        off = gain - typical if id(row) in judged else 0.0
        if len(row.sites) > 1 and not (path.kind == "time" and found):
            found += [_line(site, None, "", inside=True) for site in row.sites]
        found.append(_line(row, gain, _mark(row, off), inside=False))
    return found


def log_gains(rows: Sequence[Row]) -> list[float]:
    """ln of what each row's layer does to the gradient on its way back; they add up to the whole.

    NaN for the first; -inf where the gradient ends, and 0 behind it, where nothing is left to lose.
    """
    return [NAN, *_gains([row.log_cotangent for row in rows])] if rows else []


def gains_by_kind(before: Row, row: Row) -> list[tuple[str, float]]:
    """(kind, ln of the factor on the way back) of what lies between two neighbouring rows; they add up to the gain.

    One of no kind where it is not told apart.
    """
    gains = _gains([before.log_cotangent, *row.log_cuts, row.log_cotangent])
    return [*zip(row.kinds or ("",), gains, strict=True)]


def log_gains_by_kind(rows: Sequence[Row]) -> dict[Kind, list[float]]:
    """Of every kind, a number a row; together they are `log_gains`. NaN for the first, and where none is told apart."""
    told: list[dict[str, float]] = []
    for before, row in itertools.pairwise(rows):
        told.append({})
        for kind, gain in gains_by_kind(before, row):
            told[-1][kind] = told[-1].get(kind, 0.0) + gain
    of_all = dict.fromkeys(kind for row in rows[1:] for kind in row.kinds)
    return {kind: [NAN, *(NAN if "" in sums else sums.get(kind, 0.0) for sums in told)] for kind in of_all}


def _gains(logs: Sequence[float]) -> list[float]:
    """ln of the factor from each to the one before."""
    both_zero = -math.inf, -math.inf
    return [0.0 if pair == both_zero else pair[0] - pair[1] for pair in itertools.pairwise(logs)]


def as_text(path: Path) -> str:
    """Aligned columns."""
    shown = lines(path)
    half = MOST // 2
    cut = len(shown) - 2 * half
    head, tail = (shown[:half], shown[-half:]) if cut > 0 else (shown, [])
    left_out = [TableLine((f"... {cut} more", *[""] * (len(HEAD) - 1)), False)] if cut > 0 else []
    cells = [HEAD, *(_indented(line) for line in [*head, *left_out, *tail])]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEAD))]
    left = (0, 1, 2, len(HEAD) - 1)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def as_html(path: Path) -> str:
    """The whole table, faults in bold."""
    return f"<table>{''.join(_html_rows(lines(path)))}</table>"


def _html_rows(shown: Iterable[TableLine]) -> Iterator[str]:
    yield f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in HEAD)}</tr>"
    for line in shown:
        style = ' style="font-weight: bold"' if line.mark else ' style="opacity: 0.6"' if line.inside else ""
        yield f"<tr{style}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in _indented(line))}</tr>"


def _indented(line: TableLine) -> tuple[str, ...]:
    return (f"  {line.cells[0]}", *line.cells[1:]) if line.inside else line.cells


def _line(row: Row, gain: float | None, mark: str, *, inside: bool) -> TableLine:
    shares = (row.zeros, row.saturated)
    cells = (
        named(row),
        line_of(row),
        f"{row.dtype}[{','.join(map(str, row.shape))}]",
        _number(row.log_rms),
        _number(row.log_cotangent),
        "" if gain is None or math.isnan(gain) else rate(gain),
        _number(row.log_parameter_gradient),
        *("" if math.isnan(share) else f"{share:.0%}" for share in shares),
        mark,
    )
    return TableLine(cells, inside)


def _mark(row: Row, off: float) -> str:
    """What is wrong with a state, in a word."""
    if leaves_range(row):
        return "not finite"
    if row.zeros == 1:
        return "dead"
    if row.log_cotangent == -math.inf:
        return "no gradient"
    return "break" if BREAK < abs(off) < math.inf else ""


def _number(log: float) -> str:
    return "" if math.isnan(log) else number(log)
