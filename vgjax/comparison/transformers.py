"""Transformers of full attention, at infinite width."""

from typing import Any

import numpy as np

from vgjax.blocks.told import TransformerArguments
from vgjax.comparison.points import Compared, Family, Points, annealed, quenched
from vgjax.theory import transformer


def _predicted(points: Points) -> Compared:
    """From the mean square of h^0 as measured and the correlation of its tokens as it was given."""
    told, correlation, gains = points.told, points.given["correlation"], points.variable == "log_gain"
    assert isinstance(told, TransformerArguments)
    if correlation is None:
        raise ValueError("compare needs the correlation of two tokens of h^0 for a transformer, got None")

    def expected(scales: dict[str, Any], q0: float) -> np.ndarray:
        found = transformer.propagate(**vars(told), depth=points.depth, **scales, q0=q0, p0=q0 * correlation)
        return found.log_gain / 2 if gains else np.log(found.q)

    return (quenched if gains else annealed)(points.draws, points.each(expected))


TRANSFORMERS = Family(
    "a transformer",
    ("log_gain", "log_mean_square"),
    lambda told: transformer.SCALES,
    _predicted,
    by_layer=True,
    takes=("correlation",),
)
