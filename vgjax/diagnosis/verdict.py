"""The verdict on a model's gradient: one word, one sentence, from quantities that no scale of the loss changes."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import jax.numpy as jnp
import numpy as np

from vgjax.checks import kinds
from vgjax.diagnosis.readings import NAN, Path, Readings, Row
from vgjax.diagnosis.words import listed, number, place, rate
from vgjax.values import by_content

LIMIT = 5.0
"""ln of what a path may take from the gradient or add to it: a factor of 150."""
BREAK = 3.0
"""ln of how far one layer may lie from the median one: a factor of 20."""
SURVIVES = math.log(10)
"""What is below a tenth has not survived."""
MOST = 0.8
"""Share of units from which their saturation, or their zeros, is a cause; half of them are off in any ReLU layer."""
GROWS = 0.05
"""Growth of the signal a layer, in nats, from which leaving the float range is an explosion and no accident."""


class Word(StrEnum):
    """What a gradient flow can be."""

    HEALTHY = "healthy"
    VANISHING = "vanishing"
    EXPLODING = "exploding"
    DEAD = "dead"
    NON_FINITE = "non-finite"
    ZERO = "zero by construction"
    UNCLEAR = "unclear"


_WORST_FIRST = (
    (Word.NON_FINITE,),
    (Word.DEAD,),
    (Word.VANISHING, Word.EXPLODING),
    (Word.ZERO,),
    (Word.HEALTHY,),
    (Word.UNCLEAR,),
)


@by_content
@dataclass(frozen=True)
class Verdict:
    """What is to be said of the gradient along one path.

    Attributes:
        word: one of `Word`: healthy, vanishing, exploding, dead, non-finite, zero by construction, unclear.
        path: its name.
        kind: along layers or along the steps of a recurrence.
        layers: L, maps between the states that are judged: those behind the input and before the head.
        slope: median slope of ln ||dL/dh|| a layer, towards the output, breaks left out; positive where it vanishes.
        forward_slope: the same of ln rms of the states.
        lost: ln of what all layers take from the gradient, L / xi and breaks; negative where they add to it.
        limit: of ``lost``, with room for what chance does at this width.
        at: where the fault sits, ``name (file:line)``; empty if it is everywhere or nowhere.
        cause: of what happens there.
    """

    word: Word
    path: str = ""
    kind: str = "depth"
    layers: int = 0
    slope: float = NAN
    forward_slope: float = NAN
    lost: float = NAN
    limit: float = LIMIT
    at: str = ""
    cause: str = ""

    @property
    def is_healthy(self) -> bool:
        """Whether training can begin: a head that is zero by construction is trained first, then all behind it."""
        return self.word in (Word.HEALTHY, Word.ZERO, Word.UNCLEAR)

    @property
    def xi(self) -> float:
        """The depth scale: layers over which the gradient changes by a factor of e; infinite if it does not. Of a
        recurrence steps: its effective memory."""
        return 1 / abs(self.slope) if self.slope else math.inf

    @property
    def sentence(self) -> str:
        """All of it in one sentence."""
        where = f" at {self.at}" if self.at else ""
        cause = f": {self.cause}" if self.cause else ""
        match self.word:
            case Word.UNCLEAR:
                said = f"fewer than 3 states on the path leave nothing to judge a slope by{cause}"
            case Word.HEALTHY | Word.VANISHING | Word.EXPLODING if not math.isnan(self.lost):
                said = self._flow() + (f"; it breaks{where}{cause}" if self.at else cause)
            case Word.EXPLODING:
                said = f"the signal grows by {rate(self.forward_slope)} a layer{where}{cause}"
            case Word.NON_FINITE:
                said = f"the numbers end{where}{cause}"
            case _:
                said = f"the gradient is exactly 0{where}{cause}"
        along = f" along the steps of {self.path.partition(' (')[0]}" if self.kind == "time" else ""
        return f"{self.word}{along}: {said}"

    def _flow(self) -> str:
        """What happens to the gradient on its way back, layer by layer and in all."""
        unit = "layer" if self.kind == "depth" else "step"
        factor, whole = rate(-self.slope), number(-self.lost)
        if self.word is Word.HEALTHY:
            return f"the gradient changes by {factor} a {unit}, {whole} over your {self.layers} {unit}s"
        change = "grows" if self.word is Word.EXPLODING else "shrinks"
        single = self.at and abs(self.slope * self.layers) < self.limit
        if single or self.slope * self.lost <= 0:  # it is not the typical layer that does it
            return f"the gradient {change} by {whole} over your {self.layers} {unit}s"
        if self.word is Word.EXPLODING:
            return f"the gradient grows by {factor} a {unit}, {whole} over your {self.layers} {unit}s"
        survives = min(self.layers, round(SURVIVES / self.slope))
        return f"the gradient shrinks by {factor} a {unit} and survives {survives} of your {self.layers} {unit}s"


@kinds
def judge(readings: Readings) -> Verdict:
    """The verdict on the worst path, and on what lies beside the paths."""
    found = [_judge_path(path, readings) for path in readings.paths]
    for words in _WORST_FIRST:
        those = [verdict for verdict in found if verdict.word in words]
        if those:
            worst = max(those, key=lambda verdict: 0.0 if math.isnan(verdict.lost) else abs(verdict.lost))
            return next(_judge_beside(readings), worst) if worst.is_healthy else worst
    return Verdict(Word.UNCLEAR)


def judge_behind(readings: Readings, behind: Readings) -> Verdict:
    """The verdict on a model whose zero parameters hide what is behind them, once others stand in their place."""
    hidden, seen = judge(readings), judge(behind)
    if not seen.is_healthy:
        return seen
    cause = f"{hidden.cause}; with it drawn: {seen.sentence}"
    return Verdict(hidden.word, hidden.path, hidden.kind, at=hidden.at, cause=cause)


# --- one path -------------------------------------------------------------------------------------------------------


def _judge_path(path: Path, readings: Readings) -> Verdict:
    path = _read_part(path)
    rows = [row for row in path.rows if row.is_layer]
    of = path.name, path.kind, max(0, len(inner(path)) - 1)
    return _not_finite(rows, of, readings) or _zero(rows, of, readings) or _flow(path, of)


def _read_part(path: Path) -> Path:
    """A recurrence up to the last step that the loss sees anything of; behind it may be padding."""
    seen = [i for i, row in enumerate(path.rows) if row.log_cotangent != -math.inf]
    return dataclasses.replace(path, rows=path.rows[: seen[-1] + 1] if seen else ()) if path.kind == "time" else path


_Of = tuple[str, str, int]
"""Name, kind and layers of a path."""


def _not_finite(rows: Sequence[Row], of: _Of, readings: Readings) -> Verdict | None:
    """A state past its float range: an explosion if the signal grew towards it; or a gradient that is none."""
    for i, row in enumerate(rows):
        if leaves_range(row):
            growth = theil_sen([each.log_rms for each in rows[:i]])
            led_there = growth > GROWS and rows[i - 1].log_rms + growth + BREAK > largest(row.dtype)
            word = Word.EXPLODING if led_there else Word.NON_FINITE
            return Verdict(word, *of, forward_slope=growth, at=place(row), cause=f"there it leaves {row.dtype}")
    there = [row for i, row in enumerate(rows) if i or not math.isnan(row.log_cotangent)]  # integers have no gradient
    for row in reversed(there):
        if math.isnan(row.log_cotangent) or row.log_cotangent == math.inf:
            return Verdict(Word.NON_FINITE, *of, at=place(row), cause="the gradient is lost there on its way back")
    if readings.cotangent == "loss" and not math.isfinite(readings.loss) and there:
        return Verdict(Word.NON_FINITE, *of, cause="the loss itself, of states that are finite")
    return None


def _zero(rows: Sequence[Row], of: _Of, readings: Readings) -> Verdict | None:
    """Behind a dead layer everything forward is 0 and so is every slope: the first dead one is the cause."""
    zeros = [i for i, row in enumerate(rows) if row.log_cotangent == -math.inf]
    if not zeros:
        return None
    last = zeros[-1]
    after = rows[last + 1] if last + 1 < len(rows) else None
    for row in (site for state in rows for site in (*state.sites, state)):
        if row.zeros == 1:
            return Verdict(Word.DEAD, *of, lost=math.inf, at=place(row), cause="its activation is 0 everywhere")
    blocking = _blocking(after, readings)
    if blocking:
        return Verdict(Word.ZERO, *of, at=place(after or rows[last]), cause=f"{listed(blocking)} starts at 0")
    if rows[last].saturated > 1 - 1e-6:
        said = "all of its units are saturated, with slopes of exactly 0"
        return Verdict(Word.DEAD, *of, lost=math.inf, at=place(rows[last]), cause=said)
    if after is None:
        return Verdict(Word.DEAD, *of, lost=math.inf, at=place(rows[last]), cause="the loss does not depend on it")
    said = f"it is there at {place(after)} and gone before it: detached, or rounded to 0"
    return Verdict(Word.DEAD, *of, lost=math.inf, at=place(rows[last]), cause=said)


def _flow(path: Path, of: _Of) -> Verdict:
    """Slopes; where the main path is not the only way, its own ends say nothing: states of other sizes lie between."""
    states = inner(path)
    if len(states) < 3:
        return Verdict(Word.UNCLEAR, *of)
    b = np.array([row.log_cotangent for row in states])
    off = _breaks(b) if path.all_gradient else np.zeros(len(b) - 1)
    typical, layers = b - np.concatenate([[0.0], np.cumsum(off)]), len(states) - 1
    slope, forward = theil_sen(typical), theil_sen([row.log_rms for row in states])
    ends = float(b[-1] - b[0]) if path.all_gradient else 0.0
    lost = max(slope * layers + float(off.sum()), ends, key=abs)
    width = float(np.median([row.shape[-1] if row.shape else 1 for row in states]))
    # ln of a product of L random layers of n units has a standard deviation of sqrt(5 L / (4 n)) for ReLU (Hanin &
    # Nica 2019, arXiv:1812.05994), less for others: twice that is no fault.
    limit = LIMIT + 2 * math.sqrt(5 * layers / (4 * width))
    word = Word.HEALTHY if abs(lost) < limit else Word.VANISHING if lost > 0 else Word.EXPLODING
    at, cause = _at_break(states, off)
    if word is Word.VANISHING and not at:
        cause = _everywhere(states)
    return Verdict(word, *of, slope, forward, lost, limit, at, cause)


def _breaks(b: np.ndarray) -> np.ndarray:
    """By how much each layer lies off the median one, where that is more than `BREAK`; else 0."""
    steps = np.diff(b)
    off = steps - np.median(steps)
    return np.where(np.abs(off) > BREAK, off, 0.0)


def _at_break(rows: Sequence[Row], off: np.ndarray) -> tuple[str, str]:
    """The layer that is most unlike the median one, and why; empty if none stands out."""
    i = int(np.abs(off).argmax())
    if not off[i]:
        return "", ""
    before, after = rows[i], rows[i + 1]
    if off[i] > 0 and before.zeros > MOST:
        return place(before), f"{before.zeros:.0%} of its activations are 0"
    if off[i] > 0 and before.saturated > MOST:
        return place(before), f"{before.saturated:.0%} of its units are saturated"
    return place(after), f"it alone changes the gradient by {number(before.log_cotangent - after.log_cotangent)}"


def _everywhere(rows: Sequence[Row]) -> str:
    """What the median layer has too much of."""
    for what, shares in (("activations are 0", "zeros"), ("units are saturated", "saturated")):
        known = [share for row in rows if not math.isnan(share := getattr(row, shares))]
        if known and np.median(known) > MOST:
            return f"{np.median(known):.0%} of the {what} in the median layer"
    return ""


def inner(path: Path) -> list[Row]:
    """States behind the input and before the head, which have scales of their own; of a recurrence, all."""
    rows = [row for row in path.rows if row.is_layer]
    if path.kind == "time":
        return rows
    rows = rows[1:] if rows and rows[0].operation == "input" else rows
    return rows[:-1] if len(rows) > 2 else rows


# --- beside the path ------------------------------------------------------------------------------------------------


def _judge_beside(readings: Readings) -> Iterator[Verdict]:
    """Weights that no gradient reaches, though the path beside them is alive; of detached ones the last."""
    gradients = readings.parameter_gradients.values()
    if gradients and all(log == -math.inf for log in gradients):
        said = "no parameter has any; they are not used, or others that the function closes over, constants to JAX"
        yield Verdict(Word.DEAD, cause=said)
    for site in readings.sites:
        if site.zeros == 1:
            yield Verdict(Word.DEAD, at=place(site), cause="its activation is 0 everywhere")
    of = readings.parameter_gradients  # what is detached in one place may be trained in another
    detached = [s for s in readings.sites if s.log_cotangent == of.get(s.name, -math.inf) == -math.inf]
    if detached and not zero_factors(readings):
        others = f", and those of {len(detached) - 1} maps before it" if len(detached) > 1 else ""
        yield Verdict(Word.DEAD, at=place(detached[-1]), cause=f"its output is detached from the loss{others}")


def blocking(readings: Readings) -> list[str]:
    """Parameters that are exactly 0 and end the gradient of a whole path."""
    found: list[str] = []
    for path in readings.paths:
        rows = [row for row in path.rows if row.is_layer]
        for before, after in itertools.pairwise(rows):
            if before.log_cotangent == -math.inf < after.log_cotangent:
                found += _blocking(after, readings)
    return [*dict.fromkeys(found)]


def _blocking(row: Row | None, readings: Readings) -> list[str]:
    return [] if row is None else [name for name in zero_factors(readings) if name in _names(row)]


def zero_factors(readings: Readings) -> list[str]:
    """Parameters that are exactly 0 and multiply: heads, the last scale of a branch, ReZero's factor; no offsets."""
    offsets = ("bias", "b", "beta", "offset", "mean")
    return [name for name in readings.zero_parameters if name.rpartition("/")[2] not in offsets]


# --- numbers --------------------------------------------------------------------------------------------------------


def theil_sen(values: Iterable[float]) -> float:
    """Median slope of all pairs of finite values, in units of their index; NaN of fewer than two (Sen 1968)."""
    y = np.array([*values], float)
    x = np.flatnonzero(np.isfinite(y))
    if len(x) < 2:
        return NAN
    x = x[:: -(-len(x) // 1000)]  # half a million pairs know a median
    i, j = np.triu_indices(len(x), 1)
    return float(np.median((y[x[j]] - y[x[i]]) / (x[j] - x[i])))


def leaves_range(row: Row) -> bool:
    """Whether an entry leaves the range of the dtype: the largest of n Gaussian ones is sqrt(2 ln n) of their rms."""
    above = math.log(max(1.0, 2 * math.log(max(1, math.prod(row.shape))))) / 2
    return not row.log_rms + above <= largest(row.dtype)


def largest(dtype: str) -> float:
    """ln of the largest number of a float dtype; infinite of others, which are not computed with."""
    return math.log(float(jnp.finfo(dtype).max)) if jnp.issubdtype(dtype, jnp.inexact) else math.inf


def _names(row: Row) -> set[str]:
    return {row.name, *(site.name for site in row.sites)}
