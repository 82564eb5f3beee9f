"""Scales as users give them: checked once, and broadcast."""

import numpy as np

from vgjax.checks import ArrayLike, finite, not_negative


def checked_scales(**scales: ArrayLike) -> tuple[int, ...]:
    """The shape to which scales broadcast, if they are what they have to be."""
    for name, values in scales.items():
        (not_negative if name == "p0" else check_scale)(name, values)  # a variance may be any float
        if not np.size(values):
            raise ValueError(f"{name} must not be empty, got shape {np.shape(values)}")
    try:
        return np.broadcast_shapes(*map(np.shape, scales.values()))
    except ValueError:
        shapes = ", ".join(f"{name} {np.shape(values)}" for name, values in scales.items())
        raise ValueError(
            f"scales must broadcast (sigma_w[:, None] and sigma_b for a map), got shapes {shapes}"
        ) from None


def check_scale(name: str, values: ArrayLike) -> None:
    """Pass standard deviations whose squares, and theirs, are floats."""
    not_negative(name, values)
    finite(name, values, "at most 1e75", lambda scale: scale <= 1e75)


def check_dropout(dropout: float) -> None:
    """Pass a share in [0, 1)."""
    finite("dropout", dropout, "in [0, 1)", lambda share: (share >= 0) & (share < 1))


def per_layer(name: str, scale: ArrayLike, depth: int) -> np.ndarray:
    """A scale as one number per layer, shape ``(depth,)``; a number holds for all.

    Raises:
        ValueError: a negative or non-finite value, or another shape.
    """
    not_negative(name, scale)
    values = np.asarray(scale, dtype=float)
    if values.shape not in ((), (depth,)):
        raise ValueError(f"{name} must be a number or have shape {(depth,)}, one per layer, got shape {values.shape}")
    return np.broadcast_to(values, (depth,))
