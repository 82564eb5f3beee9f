"""What a search for the edge finds: one root, or a line of them over a second scale."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vgjax.checks import kinds
from vgjax.files import npz_path, read_arrays, write_arrays
from vgjax.values import by_content

_SEAL = "edge"
"""What the seal of a saved one is of."""


@by_content
@dataclass(frozen=True)
class Root:
    """The value of a scale at which the mean rate is the target.

    Attributes:
        scale: its name.
        value: NaN where there is none.
        standard_error: of the value, from the spread of the draws: ``std(rates) / |slope| / sqrt(seeds)``. In chaos,
            where a rate is rough and the value that of a line through it, rather too large.
        target_rate: growth of ln gain per layer that was sought (of a reading of your own, its number).
        rates: of every draw at the value, shape ``(seeds,)``.
        slope: of the mean rate by the scale, there.
        bracket: two measured values between which it lies (in chaos: all crossings near it); where there is none, the
            ends of where it was sought, or of where the rate jumps.
        evaluations: values of the scale at which all draws were measured.
        reason: why there is none; empty if there is one.
        theory: the value at infinite width and depth; NaN where theory has none.
        about_theory: what that is, or why there is none.
    """

    scale: str
    value: float
    standard_error: float
    target_rate: float
    rates: np.ndarray
    slope: float
    bracket: tuple[float, float]
    evaluations: int
    reason: str
    theory: float
    about_theory: str

    @property
    def found(self) -> bool:
        """Whether there is one."""
        return not self.reason

    @property
    def draws(self) -> np.ndarray:
        """Where every draw alone would cross the target, to first order, shape ``(seeds,)``."""
        return self.value - (self.rates - self.target_rate) / self.slope

    def __str__(self) -> str:
        if not self.found:
            return f"no {self.scale}: {self.reason}"
        beside = "" if math.isnan(self.theory) else f" (theory {self.theory:.6g})"
        return f"{self.scale} = {self.value:.6g} ± {self.standard_error:.2g}{beside}"


@by_content
@dataclass(frozen=True)
class Edge:
    """The line on which the mean rate is the target, over a second scale.

    Attributes:
        scale: the name of what was solved for.
        along: the name of the second scale.
        values: of the second scale, shape ``(points,)``.
        edge: of the first, same shape; NaN where there is none.
        standard_error: of the edge, same shape.
        slope: of the mean rate by the first scale, same shape.
        theory: the edge at infinite width and depth, same shape; NaN where theory has none.
        evaluations: values of the first scale at which all draws were measured, for each point.
        target_rate: as of `Root`.
        seeds: draws.
        reasons: for each point why there is none; empty if there is one.
        about_theory: likewise of theory's.
        network: in words.
    """

    scale: str
    along: str
    values: np.ndarray
    edge: np.ndarray
    standard_error: np.ndarray
    slope: np.ndarray
    theory: np.ndarray
    evaluations: np.ndarray
    target_rate: float
    seeds: int
    reasons: tuple[str, ...]
    about_theory: tuple[str, ...]
    network: str

    def __str__(self) -> str:
        found = np.isfinite(self.edge)
        ends = f"{self.values[0]:.4g} to {self.values[-1]:.4g}"
        return (
            f"{self.scale} over {self.along} from {ends}: found at {found.sum()} of {len(found)} points, "
            f"with {self.evaluations.sum()} evaluations"
        )

    @kinds
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to ``path``, an ``.npz``, whole or not at all.

        Raises:
            ValueError: another suffix.
        """
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        rest = {name: value for name, value in vars(self).items() if name not in arrays}
        write_arrays(npz_path(path), {"description": np.array(json.dumps(rest)), **arrays}, _SEAL)
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Edge":
        """Read back what `save` wrote.

        Raises:
            ValueError: a file that holds something else, or not all of it.
            FileNotFoundError: there is no such file.
        """
        arrays = read_arrays(npz_path(path), _SEAL)
        if arrays is None:
            raise ValueError(f"path must hold a whole saved edge, got {str(path)!r}")
        rest = json.loads(str(arrays.pop("description")))
        told = {name: tuple(value) if isinstance(value, list) else value for name, value in rest.items()}
        fields: dict[str, Any] = {**told, **arrays}
        return cls(**fields)
