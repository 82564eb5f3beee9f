"""Numbers of the benchmarks with what was wanted of them, as they stand in the docs' tables."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
Found = dict[str, Any]

NAMES = {
    "relu": "ReLU",
    "gelu": "GELU",
    "mlp tanh": "mlp, tanh",
    "mlp relu": "mlp, ReLU",
    "mlp gelu": "mlp, GELU",
    "residual": "residual mlp",
    "resnet": "ResNet, three stages, group norm",
    "lstm": "LSTM",
}


def read() -> Found:
    """Every benchmark's JSON by its name, without those of other devices and sizes, whose names have a dash."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json")) if "-" not in path.stem}


def machines(found: Found, names: Iterable[str]) -> str:
    """What these were measured on, as their JSON says; by machine if it was not one and the same."""
    on: dict[str, list[str]] = {}
    for name in names:
        of = found[name]["machine"]
        device = "no accelerator" if of["device"].startswith("cpu") else of["device"]
        versions = f"Python {of['python']}, JAX {of['jax']}, Flax {of['flax']}"
        on.setdefault(f"{of['cores']} cores ({of['machine']}), {device}, {versions}", []).append(name)
    if len(on) == 1:
        return f"Measured on {next(iter(on))}."
    return " ".join(f"Measured on {machine}: {', '.join(names)}." for machine, names in on.items())


def lines(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows as Markdown has them."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def short(x: float) -> str:
    """Two or three digits, and exponents where a number is far from 1."""
    size = abs(x)
    if isinstance(x, int) or not math.isfinite(x):
        return f"{x:,}"
    if size >= 100:
        return f"{x:,.0f}"
    return f"{x:.1f}" if size >= 10 else f"{x:.2f}" if size >= 0.1 else exponent(f"{x:.2g}")


def exponent(text: str) -> str:
    """1e-05 as 1e-5."""
    return re.sub(r"e([+-])0*", lambda found: "e" + found[1].strip("+"), text)


@dataclass(frozen=True)
class Claim:
    """A number and its target; in a table it says itself whether it misses it.

    Attributes:
        value: as the benchmark has it.
        least, most: the ends of the target; None where there is none.
        unit: behind both.
    """

    value: float
    least: float | None = None
    most: float | None = None
    unit: str = ""

    @property
    def is_missed(self) -> bool:
        """NaN misses any target."""
        reached = (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)
        return not reached

    @property
    def wanted(self) -> str:
        """The target in words; empty where there is none."""
        ends = [exponent(f"{end:.12g}") for end in (self.least, self.most) if end is not None]
        return " to ".join(ends) + self.unit if ends else ""

    def __str__(self) -> str:
        return f"{short(self.value)}{self.unit}{' (missed)' if self.is_missed else ''}"


def listed(of: Found, what: str, unit: str = "") -> Claim:
    """An entry of a benchmark's own list of targets, by the beginning of its name."""
    (entry,) = (each for each in of["targets"] if each["what"].startswith(what))
    return Claim(entry["value"], entry.get("least"), entry.get("most"), unit)


def spread(values: Iterable[float], most: float | None = None, unit: str = "") -> str:
    """The smallest and the largest, which is the one that a target is for."""
    values = list(values)
    low, high = short(min(values)), Claim(max(values), most=most, unit=unit)
    return str(high) if low == short(high.value) else f"{low} to {high}"


def listing(claims: dict[str, Claim]) -> str:
    """Each by its name."""
    between, after = ("; ", ": ") if re.search("[,0-9]", "".join(claims)) else (", ", " ")
    return between.join(f"{NAMES.get(name, name)}{after}{claim}" for name, claim in claims.items())


def targets(claims: dict[str, Claim]) -> str:
    """Each target once, with whose it is unless it is everybody's."""
    of: dict[str, list[str]] = {}
    for name, claim in claims.items():
        of.setdefault(claim.wanted, []).append(NAMES.get(name, name))
    if len(of) == 1:
        return next(iter(of))
    return "; ".join(f"{wanted} ({', '.join(names)})" for wanted, names in of.items() if wanted)


def all_but(claims: dict[str, Claim]) -> str:
    """The largest of those that reach their target, then each of the others."""
    missed = [f"{name} {claim}" for name, claim in claims.items() if claim.is_missed]
    reached = [claim for claim in claims.values() if not claim.is_missed]
    largest = [f"at most {max(reached, key=lambda claim: claim.value)}"] if reached else []
    return ", except ".join([*largest, *(["; ".join(missed)] if missed else [])])
