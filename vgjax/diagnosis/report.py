"""A diagnosis: what was read off a model, and how it is told, drawn, kept, and compared with another."""

import base64
import functools
import html
import io
import itertools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
import numpy as np

from vgjax import plots
from vgjax.checks import kinds, known, positive_integer
from vgjax.diagnosis.readings import NAN, Path, Readings, Row
from vgjax.diagnosis.remarks import remarks
from vgjax.diagnosis.serialization import plain, readings_from_json, readings_to_json
from vgjax.diagnosis.table import as_html, as_text, gains_by_kind, lines, log_gains, log_gains_by_kind
from vgjax.diagnosis.verdict import Verdict, judge, judge_behind, largest
from vgjax.diagnosis.words import named, number, rate
from vgjax.ensembles.result import NATURAL, import_xarray
from vgjax.files import npz_path, read_arrays, whole_file, write_arrays
from vgjax.values import by_content
from vgjax.version import VERSION

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

_DIAGNOSIS = "diagnosis"
"""What the seal of a saved one is of."""
_PICTURES = 8
"""On a page: a recurrence inside a loop is a path at each of its steps."""


@by_content
@dataclass(frozen=True)
class Diagnosis:
    """What `vgjax.diagnose` found: the verdict first, then the gradient at every state.

    Attributes:
        readings: the numbers, path by path.
        behind: of a model whose head (or another factor) is exactly 0: the numbers once it is drawn instead; None of
            all others.
        provenance: versions and device: plain JSON values.
    """

    readings: Readings
    behind: Readings | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def verdict(self) -> Verdict:
        """One word, and why."""
        return judge(self.readings) if self.behind is None else judge_behind(self.readings, self.behind)

    @property
    def is_healthy(self) -> bool:
        """Whether a gradient arrives everywhere, neither vanished nor exploded."""
        return self.verdict.is_healthy

    @property
    def remarks(self) -> list[str]:
        """What else should be known: weight gradients, constants, what is not looked into."""
        return remarks(self.readings, self.verdict)

    # --- as text ---

    def __repr__(self) -> str:
        said = self.verdict.sentence
        return f"<diagnosis: {said if len(said) <= 250 else f'{said[:247]}...'}>"

    def __str__(self) -> str:
        return "\n".join([self.verdict.sentence, *(f"- {remark}" for remark in self.remarks), *self._tables()])

    def _tables(self) -> list[str]:
        return [part for path in self.readings.paths for part in ("", f"along {path.name}:", as_text(path))]

    def _repr_html_(self) -> str:
        said = "".join(f"<li>{html.escape(remark)}</li>" for remark in self.remarks)
        tables = "".join(f"<p>along {html.escape(path.name)}</p>{as_html(path)}" for path in self.readings.paths)
        return f"<p><b>{html.escape(self.verdict.sentence)}</b></p><ul>{said}</ul>{tables}"

    # --- by layer ---

    @kinds
    def blame(
        self, level: int | None = None, *, by: Literal["layer", "kind", "both"] = "layer", path: int = 0
    ) -> dict[str, float]:
        """What each layer does to the gradient on its way back: a budget of ln gain that adds up to the whole.

        Args:
            level: sum over what shares so many parts of its name (1: ``encoder``, ``decoder``); left out, every state
                by itself.
            by: the layer; the kind of what it is made of, summed over all layers; or both, ``layers/3/kernel: norm``.
                A layer reaches from preactivation to preactivation: the activation in it is that of the state before.
            path: which of the readings' paths, by number.

        Returns:
            ln of the factor, by name, input first; negative takes from the gradient. -inf where it ends; what lies
            before has 0, for nothing is left to lose. Kinds are ``kernel`` (one map with weights), ``activation`` (a
            softmax too), ``norm``, ``branch`` (several ways, with weights in them: a residual block with its skip,
            attention, a gate), ``recurrence``, ``scale`` (a factor, or dropout), ``pooling`` and ``other``; ``unsplit``
            is what cannot be told apart: steps of a recurrence of which each is used, and where there are ways around.

        Raises:
            ValueError: a level of kinds that are summed over all layers.
        """
        if level is not None:
            positive_integer("level", level)
        if level is not None and by == "kind":
            raise ValueError(f'level must be left out of what is summed over all layers (by="kind"), got {level}')
        budget: dict[str, float] = {}
        for before, row in itertools.pairwise(self._path(path).rows):
            layer = named(row) if level is None else "/".join(row.name.split("/")[:level])
            for kind, gain in gains_by_kind(before, row):
                name = {"layer": layer, "kind": kind or "unsplit", "both": f"{layer}: {kind}" if kind else layer}[by]
                budget[name] = budget.get(name, 0.0) + gain
        return budget

    @kinds
    def without(self, name: str, *, path: int = 0) -> float:
        """ln of what the gradient would gain over the whole path if one layer handed it on as it is (its Jacobian the
        identity); the layers are those of `blame`.

        Args:
            name: of the layer.
            path: which of the readings' paths, by number.

        Raises:
            ValueError: an unknown layer; the nearest known one is named.
        """
        budget = self.blame(path=path)
        known("the name of a layer", name, budget)
        return sum(gain for each, gain in budget.items() if each != name)

    @kinds
    def since(self, before: "Diagnosis") -> "Change":
        """This diagnosis beside one from before something was changed."""
        return Change(before, self)

    def _path(self, path: int) -> Path:
        if not 0 <= path < len(self.readings.paths):
            raise ValueError(f"path must lie in 0 .. {len(self.readings.paths) - 1}, got {path}")
        return self.readings.paths[path]

    # --- as a picture ---

    @kinds
    def plot(self, *, path: int = 0) -> "Figure":
        """Signal and gradient along a path: float ranges shaded, breaks marked, states named by their modules.

        Args:
            path: which of the readings' paths, by number.
        """
        return self._drawn(path)

    def _drawn(self, path: int, before: "Diagnosis | None" = None) -> "Figure":
        rows = self._path(path).rows
        marks = [line.mark for line in lines(self._path(path)) if not line.inside]
        ends = [(math.log(float(jnp.finfo(d).tiny)), largest(d)) for d in {row.dtype for row in rows}]
        said = self.verdict.sentence if before is None else f"{before.verdict.word} -> {self.verdict.sentence}"
        return plots.gradient_path(
            *_logs(rows),
            [named(row) for row in rows],
            breaks=[i for i, mark in enumerate(marks) if mark == "break" or mark in {*marks} - {"", *marks[:i]}],
            limits=(max(low for low, _ in ends), min(high for _, high in ends)),
            before=None if before is None else _logs(before._path(path).rows),
            title=said.replace("$", r"\$"),
        )

    @kinds
    def to_html(self, path: str | os.PathLike[str]) -> FilePath:
        """Write the report as one file that needs no other: verdict, pictures, all rows.

        Returns:
            The path.
        """
        pictures = "".join(self._picture(i) for i in range(min(_PICTURES, len(self.readings.paths))))
        style = (
            "body {font: 14px sans-serif; margin: 2em} table {border-collapse: collapse; font: 12px monospace} "
            "td, th {padding: 1px 8px; text-align: left; white-space: pre}"
        )
        page = (
            f'<!DOCTYPE html><html><head><meta charset="utf-8"><title>{html.escape(self.verdict.word)}</title>'
            f"<style>{style}</style></head><body>{self._repr_html_()}{pictures}"
            f"<p>{html.escape(json.dumps(self.provenance))}</p></body></html>\n"
        )
        with whole_file(FilePath(path)) as temporary:
            temporary.write_text(page, encoding="utf-8")
        return FilePath(path)

    def _picture(self, path: int) -> str:
        buffer = io.BytesIO()
        self.plot(path=path).savefig(buffer, format="png", dpi=150, metadata={"Software": None})
        return f'<p><img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"></p>'

    # --- as data ---

    @kinds
    def to_xarray(self, *, path: int = 0) -> "xarray.Dataset":
        """A labelled `xarray.Dataset` of one path over ``state``; gains by kind over ``kind`` too, if any is known.

        Args:
            path: which of the readings' paths, by number.

        Raises:
            ImportError: xarray is not installed.
        """
        rows, xr = self._path(path).rows, import_xarray()
        units = {"units": NATURAL}
        logs = ("log_rms", "log_cotangent", "log_parameter_gradient")
        variables: dict[str, Any] = {name: ("state", [getattr(row, name) for row in rows], units) for name in logs}
        variables |= {"log_gain": ("state", log_gains(rows), units)}
        variables |= {name: ("state", [getattr(row, name) for row in rows], {}) for name in ("zeros", "saturated")}
        told = ("name", "where", "operation", "dtype")
        coordinates: dict[str, Any] = {name: ("state", [getattr(row, name) for row in rows]) for name in told}
        coordinates["step"] = ("state", [NAN if row.step is None else float(row.step) for row in rows])
        by_kind = log_gains_by_kind(rows)
        if by_kind:
            variables["log_gain_by_kind"] = (("kind", "state"), [*by_kind.values()], units)
            coordinates["kind"] = [*by_kind]
        said = {"path": self._path(path).name, "word": str(self.verdict.word), "verdict": self.verdict.sentence}
        return xr.Dataset(variables, coords=coordinates, attrs=said)

    @kinds
    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON values, the verdict in words; what JSON has no number for is a text."""
        verdict = {"word": str(self.verdict.word), "sentence": self.verdict.sentence, "remarks": self.remarks}
        numbers = {name: getattr(self.verdict, name) for name in ("layers", "slope", "forward_slope", "lost", "limit")}
        behind = None if self.behind is None else readings_to_json(self.behind)
        told = {"verdict": plain(verdict | numbers), "readings": readings_to_json(self.readings), "behind": behind}
        return told | {"provenance": self.provenance}

    @kinds
    def save(self, path: str | os.PathLike[str]) -> FilePath:
        """Write the whole diagnosis to ``path``, an ``.npz``, or nothing.

        Returns:
            The path.

        Raises:
            ValueError: another suffix.
            OSError: the path cannot be written.
        """
        write_arrays(npz_path(path), {"description": np.array(json.dumps(self.to_json()))}, _DIAGNOSIS, compressed=True)
        return npz_path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Diagnosis":
        """Read back what `save` wrote.

        Raises:
            ValueError: another suffix, or a file that holds no whole diagnosis.
            FileNotFoundError: there is no such file.
        """
        arrays = read_arrays(npz_path(path), _DIAGNOSIS)
        if arrays is None:
            raise ValueError(f"path must hold a whole saved diagnosis, got {str(path)!r}")
        told = json.loads(str(arrays["description"]))
        try:
            behind = None if told["behind"] is None else readings_from_json(told["behind"])
            return cls(readings_from_json(told["readings"]), behind, told["provenance"])
        except (KeyError, TypeError):
            raise ValueError(f"path must hold a diagnosis as version {VERSION} writes it, got {str(path)!r}") from None


@by_content
@dataclass(frozen=True)
class Change:
    """Two diagnoses of one model: before something was changed, and after."""

    before: Diagnosis
    after: Diagnosis

    def __repr__(self) -> str:
        return f"<change: {self.before.verdict.word} -> {self.after.verdict.word}>"

    def __str__(self) -> str:
        told = [("", "before", "after"), *self._numbers()]
        widths = [max(len(row[i]) for row in told) for i in range(3)]
        lines_ = ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in told]
        return "\n".join([f"before: {self.before.verdict.sentence}", f"after: {self.after.verdict.sentence}", *lines_])

    def _numbers(self) -> list[tuple[str, str, str]]:
        old, new = self.before.verdict, self.after.verdict
        told = [
            ("gradient, a layer", rate(-old.slope), rate(-new.slope)),
            ("gradient, in all", number(-old.lost), number(-new.lost)),
            ("signal, a layer", rate(old.forward_slope), rate(new.forward_slope)),
        ]
        return told + [(name, rate(was), rate(now)) for name, (was, now) in self.layers().items()]

    @kinds
    def plot(self, *, path: int = 0) -> "Figure":
        """Signal and gradient along a path, after and before.

        Args:
            path: which of the readings' paths, by number.

        Raises:
            ValueError: models of different lengths.
        """
        old, new = (len(each._path(path).rows) for each in (self.before, self.after))
        if old != new:
            raise ValueError(f"before and after must have the same states to be drawn as one, got {old} and {new}")
        return self.after._drawn(path, self.before)

    @kinds
    def layers(self, most: int = 10) -> dict[str, tuple[float, float]]:
        """The layers whose ln gain changed most, largest change first: by name, before and after.

        States are the same if they have the same name.
        """
        positive_integer("most", most)
        before, after = self.before.blame(), self.after.blame()
        both = {name: (before[name], after[name]) for name in before if name in after}
        moved = {name: abs(new - old) for name, (old, new) in both.items() if new != old}
        return {name: both[name] for name in sorted(moved, key=lambda name: -moved[name])[:most]}


def _logs(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Signal and gradient of every state."""
    return np.array([row.log_rms for row in rows]), np.array([row.log_cotangent for row in rows])
