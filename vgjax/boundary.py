"""The boundary of trainability: where training stops converging, and how rough that border is.

The map of which learning rates train is not smooth: its border is a fractal (Sohl-Dickstein 2024, "The boundary of
neural network trainability is fractal"). Computed by `train_sweep`; here is what is read off it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from vgjax.checks import positive_integer
from vgjax.trainability import TrainingSweep


class BoxCount(NamedTuple):
    """How many boxes of each size the border meets.

    Attributes:
        sizes: sides of the boxes, in points of the grid, shape ``(sizes,)``.
        counts: boxes that hold a piece of the border, shape ``(sizes,)``.
        dimension: the slope of ln counts against -ln sizes: 1 for a smooth line, 2 for what fills the plane; NaN where
            there is no border.
    """

    sizes: np.ndarray
    counts: np.ndarray
    dimension: float


def border(converged: np.ndarray) -> np.ndarray:
    """The points of a grid that differ from the next one to the right or above, shape ``(x, y)``."""
    edge = np.zeros(converged.shape, bool)
    edge[:-1] |= converged[:-1] != converged[1:]
    edge[:, :-1] |= converged[:, :-1] != converged[:, 1:]
    return edge


def box_dimension(converged: np.ndarray) -> BoxCount:
    """The box-counting dimension of the border between True and False on a grid.

    ``N(s) ~ s^-D``: N boxes of side s meet the border. Sides are powers of 2, from a single point to an eighth of the
    grid.

    Args:
        converged: shape ``(x, y)``, each at least 32.

    Raises:
        ValueError: another shape.
    """
    converged = np.asarray(converged, dtype=bool)
    if converged.ndim != 2 or min(converged.shape) < 32:
        raise ValueError(f"converged must be a grid of at least 32 x 32 points, got shape {converged.shape}")
    edge = border(converged)
    sizes = 2 ** np.arange(int(np.log2(min(edge.shape) / 8)) + 1)
    counts = np.array([_boxes(edge, int(size)) for size in sizes])
    if not counts[0]:
        return BoxCount(sizes, counts, float("nan"))
    return BoxCount(sizes, counts, float(-np.polyfit(np.log(sizes), np.log(counts), 1)[0]))


def _boxes(edge: np.ndarray, size: int) -> int:
    """How many boxes hold a True; what does not fill a box at the far sides is left out."""
    x, y = (n // size for n in edge.shape)
    return int(edge[: x * size, : y * size].reshape(x, size, y, size).any(axis=(1, 3)).sum())


def zoom(
    sweep: TrainingSweep, factor: float, points: int | None = None, at: tuple[float, float] | None = None
) -> dict[str, np.ndarray]:
    """The axes of a closer look at the border: around a point of it, an interval smaller by a factor.

    Args:
        sweep: over two axes; equal steps or equal ratios.
        factor: above 1.
        points: along each axis; as many as before if left out.
        at: where to look: the point of the border nearest to it on the grid; left out, where the border is densest.

    Returns:
        By name, values spaced as before, float64.

    Raises:
        ValueError: a sweep over other than two axes, a factor of at most 1, or no border to be seen.
    """
    if len(sweep.axes) != 2:
        raise ValueError(f"zoom needs a sweep over two axes, got {', '.join(sweep.axes) or 'none'}")
    if not factor > 1:
        raise ValueError(f"factor must be above 1, got {factor}")
    edge = border(sweep.converged[0]).astype(float)
    if not edge.any():
        raise ValueError("zoom needs a border between convergence and divergence, got none")
    preferred = _density(edge) if at is None else _nearness(edge, sweep, at)
    where = np.unravel_index(int(preferred.argmax()), edge.shape)
    grids = zip(sweep.axes.items(), where, strict=True)
    return {name: _closer(values, int(i), factor, points) for (name, values), i in grids}


def rates(axes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of the axes that are learning rates, by group, as `train_sweep` takes them."""
    return {n.removeprefix("learning_rate_"): values for n, values in axes.items() if n.startswith("learning_rate_")}


def _density(edge: np.ndarray) -> np.ndarray:
    """How much border lies in a window of a sixteenth of the grid around each point, on the border alone."""
    from scipy.ndimage import uniform_filter

    return uniform_filter(edge, max(3, min(edge.shape) // 16), mode="constant") * edge


def _nearness(edge: np.ndarray, sweep: TrainingSweep, at: tuple[float, float]) -> np.ndarray:
    """Larger for the points of the border nearer to where one wants to look."""
    wanted = [int(np.abs(values - value).argmin()) for values, value in zip(sweep.axes.values(), at, strict=True)]
    x, y = np.indices(edge.shape)
    return edge / (1 + (x - wanted[0]) ** 2 + (y - wanted[1]) ** 2)


def _closer(values: np.ndarray, centre: int, factor: float, points: int | None) -> np.ndarray:
    points = len(values) if points is None else positive_integer("points", points)
    values = np.asarray(values, dtype=np.float64)
    ratios = values[0] > 0 and np.allclose(values[1:] / values[:-1], values[1] / values[0], rtol=1e-6, atol=0)
    scale = np.log(values) if ratios and not np.allclose(np.diff(values), values[1] - values[0], atol=0) else values
    half = (scale[-1] - scale[0]) / factor / 2
    closer = np.linspace(scale[centre] - half, scale[centre] + half, points)
    return np.exp(closer) if scale is not values else closer
