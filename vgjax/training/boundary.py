"""The boundary of trainability: where training stops converging, and how rough that border is.

The map of which learning rates train is not smooth: its border is a fractal (Sohl-Dickstein 2024, "The boundary of
neural network trainability is fractal"). Computed by a sweep of `trainings`; here is what is read off it.
"""

from typing import Any, NamedTuple

import numpy as np

from vgjax.checks import kinds, positive_integer, whole_numbers
from vgjax.ensembles.result import Result, check_complete
from vgjax.training.trainability import RATE, check_trainings
from vgjax.values import by_content

_GROUP = f"{RATE}_"


@by_content
class BoxCount(NamedTuple):
    """How many boxes of each size the border meets.

    Attributes:
        sizes: sides of the boxes, in steps of the grid, shape ``(sizes,)``.
        counts: boxes that cover the border, a mean over all ways to lay them, shape ``(sizes,)``.
        dimension: the slope of ln counts against -ln sizes: 1 for a smooth line, 2 for what fills the plane; NaN where
            there is no border.
    """

    sizes: np.ndarray
    counts: np.ndarray
    dimension: float


def _border(converged: np.ndarray) -> np.ndarray:
    """The cells of a grid of points whose four corners are not all alike, shape ``(x - 1, y - 1)``."""
    corners = np.stack([converged[i : i - 1 or None, j : j - 1 or None] for i in (0, 1) for j in (0, 1)])
    return np.asarray(corners.any(axis=0) & ~corners.all(axis=0))


@kinds
def box_dimension(converged: np.ndarray) -> BoxCount:
    """The box-counting dimension of the border between True and False on a grid.

    ``N(s) ~ s^-D``: N boxes of side s cover the border, on average over all s^2 ways to lay them, so that nothing hangs
    on where they begin. Sides are powers of 2, from one cell to an eighth of the grid. A border cut off by the edge of
    the grid reads low: a straight line across by .02, one that fills the plane by .1.

    Args:
        converged: shape ``(x, y)``, each at least 32.

    Raises:
        ValueError: another shape.
    """
    converged = np.asarray(converged, dtype=bool)
    if converged.ndim != 2 or min(converged.shape) < 32:
        raise ValueError(f"converged must be a grid of at least 32 x 32 points, got shape {converged.shape}")
    edge = _border(converged)
    sizes = 2 ** np.arange(int(np.log2(min(converged.shape) / 8)) + 1)
    counts = np.array([_boxes(edge, int(size)) for size in sizes])
    if not counts[0]:
        return BoxCount(sizes, counts, float("nan"))
    return BoxCount(sizes, counts, float(-np.polyfit(np.log(sizes), np.log(counts), 1)[0]))


def _boxes(edge: np.ndarray, size: int) -> float:
    """How many boxes hold a True, a mean over all ways to lay them: those of each way have one corner in s^2 cells."""
    sums = np.pad(edge, ((size, size - 1),) * 2).cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    inside = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    return float(np.count_nonzero(inside)) / size**2


@kinds
def zoom(
    result: Result,
    factor: float,
    points: int | None = None,
    at: tuple[float, float] | None = None,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """A closer look at the border of one draw: around a point of it, an interval smaller by a factor along both axes.

    ``vg.sweep(..., **vg.training.zoom(result, 10))``, all else as it was for the result, is that look. Zooms of more
    than a few thousand need ``dtype="float64"`` from the first sweep on.

    Args:
        result: of a sweep of `trainings` over two axes; equal steps or equal ratios.
        factor: above 1. Beyond the points of the grid there may be no border in what is left.
        points: along each axis; as many as before if left out.
        at: where to look: the place of the border nearest to it on the grid; left out, where the border is densest.
        seed: whose border; that of every draw lies elsewhere.

    Returns:
        The axes as `vgjax.sweep` takes them: ``"learning_rate"`` with its values (or a dict of them by group) and
        scales with theirs; spaced as before, within the earlier interval, float64.

    Raises:
        ValueError: a sweep of something else, of several networks or over other than two axes, no such seed, a factor
            of at most 1, or no border to be seen.
    """
    converged = converged_of("zoom", result, seed)
    if not factor > 1:
        raise ValueError(f"factor must be above 1, got {factor}")
    edge = _border(converged).astype(float)
    if not edge.any():
        raise ValueError("zoom needs a border between convergence and divergence, got none")
    preferred = _density(edge) if at is None else _nearness(edge, result, at)
    where = np.unravel_index(int(preferred.argmax()), edge.shape)
    grids = zip(result.axes.items(), where, strict=True)
    closer: dict[str, Any] = {name: _closer(values, int(i), factor, points) for (name, values), i in grids}
    kept = {name: rate for name, rate in result.fixed.items() if name.startswith(_GROUP)}
    if by_group := {n.removeprefix(_GROUP): v for n, v in {**closer, **kept}.items() if n.startswith(_GROUP)}:
        closer = {RATE: by_group} | {n: v for n, v in closer.items() if not n.startswith(_GROUP)}
    return closer


def converged_of(what: str, result: Result, seed: int) -> np.ndarray:
    """Where one draw converges on a plane of two axes, booleans of shape ``(x, y)``.

    Raises:
        ValueError: there is no such plane, or no such draw.
    """
    check_trainings(what, result)
    check_complete(what, result)
    if len(result.axes) != 2 or result.several:
        lead = [name for name in result.lead if name != "seed"]
        raise ValueError(f"{what} needs a sweep of one network over two axes, got {', '.join(lead) or 'none'}")
    return np.asarray(result.converged[whole_numbers("seed", [seed], 0, result.seeds - 1)[0]])


def _density(edge: np.ndarray) -> np.ndarray:
    """How much border lies in a window of a sixteenth of the grid around each point, on the border alone."""
    from scipy.ndimage import uniform_filter

    return uniform_filter(edge, max(3, min(edge.shape) // 16), mode="constant") * edge


def _nearness(edge: np.ndarray, result: Result, at: tuple[float, float]) -> np.ndarray:
    """Larger for the points of the border nearer to where one wants to look."""
    wanted = [int(np.abs(values - value).argmin()) for values, value in zip(result.axes.values(), at, strict=True)]
    x, y = np.indices(edge.shape)
    return edge / (1 + (x - wanted[0]) ** 2 + (y - wanted[1]) ** 2)


def _closer(values: np.ndarray, cell: int, factor: float, points: int | None) -> np.ndarray:
    """An interval around the middle of a cell, but none of it outside the axis."""
    points = len(values) if points is None else positive_integer("points", points)
    values = np.asarray(values, dtype=np.float64)
    ratios = values[0] > 0 and np.allclose(values[1:] / values[:-1], values[1] / values[0], rtol=1e-6, atol=0)
    scale = np.log(values) if ratios and not np.allclose(np.diff(values), values[1] - values[0], atol=0) else values
    whole = scale[-1] - scale[0]
    low = (scale[cell] + scale[cell + 1] - whole / factor) / 2
    closer = np.clip(low, scale[0], scale[-1] - whole / factor) + np.linspace(0, whole / factor, points)
    return np.exp(closer) if scale is not values else closer
