"""The explorer: one page that holds the theory of a plain stack, to be turned by sliders in any browser."""

import base64
import functools
import gzip
import html
import json
import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from vgjax import activations as known_activations
from vgjax import theory
from vgjax.activations import Activation
from vgjax.checks import kinds, not_empty
from vgjax.ensembles import runner
from vgjax.files import whole_file, writable_folder
from vgjax.plots.style import CRITICAL, EXPLODING, VANISHING
from vgjax.theory._gaussian import ActivationLike
from vgjax.version import VERSION

EXPLORED = ("tanh", "sigmoid", "relu", "leaky_relu", "gelu", "silu", "elu", "selu", "sin")
"""The activations of a page that is asked for none."""

_WIDTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_LARGEST_Q0, _LARGEST_SIGMA_B, _STEP_B = 100.0, 2.0, 0.01
_REACHES = (4.0, 6.0, 8.0, 12.0, 16.0)  # of sigma_w: the least that holds the edge, or most of it
_COLUMNS, _ROWS = 160, 100  # of the map
_BITS = {"ratios": 44, "laws": 44, "pairs": 40, "map": 12}
"""Binary digits behind the point that are kept, of what need not keep all: the map shows colours, a table of
correlations is right to 1e-10 itself. What is cut off is zeros, which compress to nothing."""


@kinds
def explorer(
    path: str | os.PathLike[str], activations: Sequence[ActivationLike] = EXPLORED, *, progress: bool | None = None
) -> Path:
    """Write a page that answers for every sigma_w, sigma_b, depth and width: the phase map, q_l, c_l and the gradient
    against layer with its band, the depth scales, and in words where gradients vanish or explode.

    The page is one file and asks no network for anything. It holds the tables of the theory (`vgjax.theory.tables`),
    some 200 kB an activation, and evaluates them in the browser as `vgjax.theory.mean_field`, `propagate` and `band`
    do: its numbers are theirs to every digit shown. sigma_b comes in steps of 0.01 and width in powers of two from 16
    to 4096; all else is free.

    Args:
        path: of the file.
        activations: names, or `Activation`; each takes 3 to 40 seconds, most of it for the correlations.
        progress: a bar on standard error; None shows it on a terminal and in a notebook.

    Returns:
        The path.

    Raises:
        ValueError: no activation, one that is unknown, that jumps, or whose moments change faster than any power, two
            of one name, or a path that cannot be written.

    Source: as `vgjax.theory.mean_field` and `band`; the drawing is uPlot's (MIT, https://github.com/leeoniya/uPlot).
    """
    file = _writable(path)
    not_empty("activations", activations)
    found = [known_activations.get(each) for each in activations]
    names = [phi.name for phi in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"activations must have names of their own, got {min(twice)!r} twice")
    page = _page([_packed(phi) for phi in runner.progress(found, len(found), "explorer", progress)])
    with whole_file(file) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return file


def _writable(path: str | os.PathLike[str]) -> Path:
    """The path, if a file can be written there; asked before any work."""
    file = Path(path)
    if not file.name or file.is_dir():
        raise ValueError(f"path must be that of a file, got the folder {str(file)!r}")
    writable_folder(file.parent, "the folder of path")
    return file


# --- one activation -------------------------------------------------------------------------------------------------


def _packed(phi: Activation) -> dict[str, Any]:
    """All that the page knows of one activation: what it is called, its arrays, and why it has no edge where it has
    none."""
    sigma_b = _bias_scales()
    edge = theory.critical(phi, sigma_b)
    most = _reach(edge.edge)
    largest_q = None
    if phi.facts.bounded:
        square = float(theory.moments(phi, 1e9).square)
        largest_q = max(_LARGEST_Q0, most**2 * square + _LARGEST_SIGMA_B**2)
    growth, unbounded = _map(phi, most)
    arrays = {name: np.asarray(a, float) for name, a in theory.tables(phi, _WIDTHS, largest_q)._asdict().items()}
    arrays |= {"map": growth, "unbounded": unbounded, "edge": np.asarray(edge.edge)}
    reasons = np.where(edge.is_edge, "", edge.reason).tolist()
    blob, shapes = _blob(arrays)
    return {"name": phi.name, "largest": most, "reasons": reasons, "shapes": shapes, "blob": blob}


def _bias_scales() -> np.ndarray:
    """Every sigma_b that the page can be set to."""
    return np.arange(round(_LARGEST_SIGMA_B / _STEP_B) + 1) / round(1 / _STEP_B)


def _reach(edge: np.ndarray) -> float:
    """How far sigma_w goes: to the least round number with the edge well inside, for sigma_b up to 1."""
    inside = edge[: len(edge) // 2 + 1]
    inside = inside[np.isfinite(inside)]
    farthest = 1.2 * inside.max() if inside.size else 0.0
    return next((reach for reach in _REACHES if reach >= farthest), _REACHES[-1])


def _map(phi: Activation, most: float) -> tuple[np.ndarray, np.ndarray]:
    """ln of the factor on a gradient's norm per layer, and where q grows without bound, ``(_ROWS, _COLUMNS)``; in the
    middle of cells."""
    sigma_w = (np.arange(_COLUMNS) + 0.5) * most / _COLUMNS
    sigma_b = (np.arange(_ROWS) + 0.5) * _LARGEST_SIGMA_B / _ROWS
    point = theory.mean_field(phi, sigma_w, sigma_b[:, None])
    with np.errstate(divide="ignore"):
        return np.log(point.chi) / 2, (point.status == "grows without bound").astype(float)


def _blob(arrays: dict[str, np.ndarray]) -> tuple[str, dict[str, Any]]:
    """Arrays as one text, and their shapes in its order: little-endian float64, the first bytes of all numbers before
    the second ones, compressed."""
    kept = {name: a for name, a in arrays.items() if name in _BITS}
    cut = {name: np.ldexp(np.round(np.ldexp(a, _BITS[name])), -_BITS[name]) for name, a in kept.items()}
    flat = np.concatenate([np.ravel(a) for a in (arrays | cut).values()]).astype("<f8") + 0.0
    planes = np.ascontiguousarray(flat.view(np.uint8).reshape(-1, 8).T).tobytes()
    shapes = {name: list(a.shape) for name, a in arrays.items()}
    return base64.b64encode(gzip.compress(planes, 9, mtime=0)).decode(), shapes


# --- the page -------------------------------------------------------------------------------------------------------


def _page(packed: list[dict[str, Any]]) -> str:
    """The template with everything in its place."""
    given = {
        "version": VERSION,
        "widths": _WIDTHS,
        "largestB": _LARGEST_SIGMA_B,
        "stepsPerB": round(1 / _STEP_B),
        "largestQ0": _LARGEST_Q0,
        "mapShape": [_ROWS, _COLUMNS],
        "colours": {"ordered": VANISHING, "critical": CRITICAL, "chaotic": EXPLODING},
        "activations": packed,
    }
    data = json.dumps(given, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    names = "".join(f"<option>{html.escape(each['name'])}</option>" for each in packed)
    parts = {
        "style": _file("uPlot.min.css") + _file("explorer.css"),
        "licence": _file("uPlot.LICENSE"),
        "uplot": _file("uPlot.iife.min.js"),
        "data": f"const given = {data};",
        "theory": _file("theory.js"),
        "words": _file("words.js"),
        "pictures": _file("pictures.js"),
        "script": _file("explorer.js"),
        "activations": names,
        "version": VERSION,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _file("explorer.html"))


@functools.cache
def _file(name: str) -> str:
    return (resources.files("vgjax.plots") / "page" / name).read_text(encoding="utf-8")
