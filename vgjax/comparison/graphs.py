"""Graph networks: gains and states of convolutions with a given adjacency."""

from typing import Any

import numpy as np

from vgjax.blocks.told import GraphArguments
from vgjax.checks import finite
from vgjax.comparison.points import MEAN_SQUARE, Compared, Family, Points, annealed, check_drawn, parts_of
from vgjax.theory import graphs


def _predicted(points: Points) -> Compared:
    told, gains = points.told, points.variable == "log_gain"
    assert isinstance(told, GraphArguments)
    layer, adjacency = told.layer, told.adjacency.array
    if not layer.plain:
        extra = f"norm {layer.norm!r}" if layer.norm else f"dropout {layer.dropout!r}"
        raise ValueError(f"compare takes graph convolutions without norm and dropout, got {extra}")
    if layer.kernel_init == "identity":
        raise ValueError("compare takes graph convolutions whose kernels have no mean, got kernel_init 'identity'")
    check_drawn(parts_of(points.result.network.stem), layer)
    of_kernel, of_bias = layer.names
    start = _covariance(points, needed=not (gains and layer.activation.name == "linear"))

    def expected(scales: dict[str, Any], q0: float) -> np.ndarray:
        found = graphs.propagate_graph(
            adjacency,
            points.depth,
            layer.activation.name,
            sigma_w=scales[of_kernel],
            sigma_b=0.0 if layer.bias_init == "zero" else scales[of_bias],
            covariance=None if start is None else start * q0,
        )
        squares = np.trace(found.covariance, axis1=1, axis2=2) / len(adjacency)
        return found.log_gain / 2 if gains else np.log(squares)

    return annealed(points.draws, points.each(expected), **MEAN_SQUARE[points.variable])


def _covariance(points: Points, needed: bool) -> np.ndarray | None:
    """That of the nodes of h^0 as it was given, at a mean square of 1."""
    given = points.given["covariance"]
    if given is None:
        if needed:
            raise ValueError("compare needs the covariance of the nodes of h^0 for a graph network, got None")
        return None
    matrix = np.asarray(given, float)
    finite("covariance", matrix)
    square = float(np.mean(np.diag(matrix))) if matrix.ndim == 2 else 1.0
    if square <= 0:
        raise ValueError(f"covariance must have a positive mean square of its nodes, got {square:g}")
    return matrix / square


GRAPHS = Family(
    "a graph network", ("log_gain", "log_mean_square"), lambda told: told.layer.names, _predicted, takes=("covariance",)
)
