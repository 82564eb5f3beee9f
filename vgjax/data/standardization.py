"""Standardization: inputs shifted and scaled, by statistics of their own or of other inputs."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from jax import Array

from vgjax.checks import ArrayLike, finite, kinds, known
from vgjax.values import on_device


@kinds
def standardize(inputs: ArrayLike, how: str = "image", like: ArrayLike | None = None) -> Array:
    """Inputs shifted and scaled, by statistics of their own or of other inputs; worked out in float64.

    What does not vary (an empty image, a pixel at the edge) becomes 0.

    Args:
        inputs: shape ``(examples, *input)``.
        how: ``image``: each input to zero mean and unit mean square (q = 1, as in the theory); ``pixel``: each pixel to
            zero mean and unit variance over the examples of ``like``; ``global``: all pixels by one mean and one
            deviation, those of ``like``; ``unit``: all divided by the largest of ``like``, so that they lie in [0, 1],
            nothing centred; ``none``: as they are.
        like: whose statistics count, shape ``(others, *input)``, not standardized: the training set, for a test set.
            The inputs themselves if None. ``image`` and ``none`` have no use for it.

    Returns:
        float32, of the inputs' shape.

    Raises:
        ValueError: an unknown name, no inputs, shapes that differ, numbers that are not finite (or beyond float32), or
            negative ones for ``unit``.
    """
    known("how", how, STANDARDIZATIONS)
    return standardized(inputs, how, like)


def standardized(inputs: ArrayLike, how: str, like: ArrayLike | None = None) -> Array:
    """`standardize`, for a name that is known."""
    inputs = _numbers("inputs", inputs)
    like = inputs if like is None else _numbers("like", like)
    if like.shape[1:] != inputs.shape[1:]:
        raise ValueError(f"like must hold inputs of shape {inputs.shape[1:]}, got {like.shape[1:]}")
    rule = STANDARDIZATIONS[how](like.reshape(len(like), -1))
    out = [rule(rows).astype(np.float32) for rows in _blocks(inputs.reshape(len(inputs), -1))]
    return on_device(np.concatenate(out).reshape(inputs.shape))


def _numbers(name: str, inputs: ArrayLike) -> np.ndarray:
    numbers = np.asarray(inputs)
    if numbers.ndim < 2 or not numbers.size:
        raise ValueError(f"{name} must have a shape (examples, *input) of at least 1 each, got {numbers.shape}")
    if numbers.dtype.kind not in "biu":
        finite(name, numbers, "within float32", lambda v: np.abs(v) <= np.finfo(np.float32).max)
    return numbers


def _blocks(inputs: np.ndarray) -> Iterator[np.ndarray]:
    """Some rows at a time in float64, so that 60,000 images of bytes do not become 400 MB, several times."""
    rows = 4096
    for start in range(0, len(inputs), rows):
        yield np.asarray(inputs[start : start + rows], np.float64)


Rule = Callable[[np.ndarray], np.ndarray]


def _by_image(like: np.ndarray) -> Rule:
    def rule(rows: np.ndarray) -> np.ndarray:
        centred = rows - rows.mean(axis=1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True))
        return centred / _divisor(deviation, rows.min(axis=1, keepdims=True) < rows.max(axis=1, keepdims=True))

    return rule


def _by_pixel(like: np.ndarray) -> Rule:
    return _shifted_and_scaled(like, axis=0)


def _globally(like: np.ndarray) -> Rule:
    return _shifted_and_scaled(like, axis=None)


def _shifted_and_scaled(like: np.ndarray, axis: int | None) -> Rule:
    count = like.size if axis is None else len(like)
    mean = sum(rows.sum(axis) for rows in _blocks(like)) / count
    variance = sum(((rows - mean) ** 2).sum(axis) for rows in _blocks(like)) / count
    divisor = _divisor(np.sqrt(variance), like.min(axis) < like.max(axis))
    return lambda rows: (rows - mean) / divisor


def _to_unit(like: np.ndarray) -> Rule:
    largest = max(float(like.max()), 0.0) or math.inf

    def rule(rows: np.ndarray) -> np.ndarray:
        if (smallest := rows.min()) < 0:
            raise ValueError(f"inputs must not be negative to be scaled to [0, 1], got {smallest:g}")
        return rows / largest

    return rule


def _unchanged(like: np.ndarray) -> Rule:
    return lambda rows: rows


def _divisor(deviation: np.ndarray, varies: np.ndarray) -> np.ndarray:
    """The deviation, or inf where nothing varies: the mean of equal numbers may be off by a rounding."""
    return np.where(varies & (deviation > 0), deviation, np.inf)


STANDARDIZATIONS: dict[str, Callable[[np.ndarray], Rule]] = {
    "image": _by_image,
    "pixel": _by_pixel,
    "global": _globally,
    "unit": _to_unit,
    "none": _unchanged,
}
