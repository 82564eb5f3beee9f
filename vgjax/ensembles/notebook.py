"""A result as a notebook shows it: a row a variable, with a small picture of its mean against the layer."""

import html
from collections.abc import Mapping

import numpy as np

WIDTH, HEIGHT = 120, 22
"""Of a picture, in pixels."""


def table(title: str, arrays: Mapping[str, np.ndarray], dims: Mapping[str, tuple[str, ...]]) -> str:
    """HTML: name, dimensions with sizes, dtype, range of what is finite, and the mean against the layer."""
    rows = []
    for name, array in arrays.items():
        sizes = ", ".join(f"{dim} {n}" for dim, n in zip(dims[name], array.shape, strict=True))
        cells = (name, sizes, str(array.dtype), _range(array))
        written = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        rows.append(f"<tr>{written}<td>{_against_layer(array, dims[name])}</td></tr>")
    heads = ("variable", "dimensions", "dtype", "from, to", "mean against layer")
    head = "".join(f"<th>{each}</th>" for each in heads)
    return f"<p>{html.escape(title)}</p><table><tr>{head}</tr>{''.join(rows)}</table>"


def _finite(array: np.ndarray) -> np.ndarray:
    """Floats, with NaN for whatever is not finite."""
    values = np.asarray(array, dtype=float)
    return np.where(np.isfinite(values), values, np.nan)


def _range(array: np.ndarray) -> str:
    values = _finite(array)
    if np.isnan(values).all():
        return "nothing finite"
    return f"{np.nanmin(values):.4g}, {np.nanmax(values):.4g}"


def _against_layer(array: np.ndarray, dims: tuple[str, ...]) -> str:
    """A line of the mean over everything else, as SVG; broken where nothing is finite, empty without a layer axis."""
    if "layer" not in dims or array.shape[dims.index("layer")] < 2:
        return ""
    values = np.moveaxis(_finite(array), dims.index("layer"), 0).reshape(array.shape[dims.index("layer")], -1)
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    mean = np.where(known, values, 0).sum(axis=1) / np.where(count, count, np.nan)
    if not count.any():
        return ""
    low, high = np.nanmin(mean), np.nanmax(mean)
    x = 1 + (WIDTH - 2) * np.arange(len(mean)) / (len(mean) - 1)
    y = HEIGHT / 2 + 0 * mean if high == low else 1 + (HEIGHT - 2) * (high - mean) / (high - low)
    starts = np.concatenate([[True], np.isnan(mean[:-1])])
    steps = [f"{'M' if start else 'L'}{a:.1f} {b:.1f}" for a, b, start in zip(x, y, starts, strict=True) if b == b]
    line = f'<path d="{"".join(steps)}" fill="none" stroke="currentColor"/>'
    return f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="mean against layer">{line}</svg>'
