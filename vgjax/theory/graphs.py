"""Graph convolutions h' = A phi(h) W + b at infinite width: what depth leaves of the nodes' differences.

Features are independent; nodes are not. With K_ij = E h_i h_j over features, ``K' = sigma_w^2 A (E phi phi) A^T +
sigma_b^2``; a tangent's U_ij = E u_i . u_j / width goes on as ``U' = sigma_w^2 A (E phi' phi' * U) A^T``. For a linear
phi both are powers of A, exactly at any width, and ``E |J|_F^2 = width |A^L|_F^2``.
"""

from typing import NamedTuple

import numpy as np

from vgjax.checks import ArrayLike, finite, kinds, known, not_negative, positive_integer
from vgjax.values import by_content


@by_content
class GraphPropagation(NamedTuple):
    """Nodes along depth, l = 0 ... depth; numpy float64.

    Attributes:
        covariance: K, shape ``(depth + 1, nodes, nodes)``.
        correlation: mean of K_ij / sqrt(K_ii K_jj) over pairs of different nodes, shape ``(depth + 1,)``: 1 is
            over-smoothing.
        log_gain: ln E |J u|^2 / |u|^2 of isotropic tangents u of the first state, same shape: the *squared* gain.
    """

    covariance: np.ndarray
    correlation: np.ndarray
    log_gain: np.ndarray


@kinds
def propagate_graph(
    adjacency: ArrayLike,
    depth: int,
    activation: str = "linear",
    *,
    sigma_w: float = 1.0,
    sigma_b: float = 0.0,
    covariance: ArrayLike | None = None,
) -> GraphPropagation:
    """K, the correlation of nodes and the gain along a graph network, in closed form for linear and ReLU units.

    ReLU's, with t the angle of two nodes (cos t their correlation) and q their mean squares: ``E phi phi = sqrt(q q')
    (sin t + (pi - t) cos t) / 2 pi``, ``E phi' phi' = (pi - t) / 2 pi``.

    Args:
        adjacency: A, shape ``(nodes, nodes)``.
        depth: L.
        activation: linear or relu.
        sigma_w, sigma_b: standard deviations, Var W = sigma_w^2 / width.
        covariance: of the first state, shape ``(nodes, nodes)``; left out, nodes are independent and of mean square 1.

    Raises:
        ValueError: a matrix of another shape or that is not finite, an unknown activation, or a negative scale.

    Source: Cho and Saul 2009, "Kernel methods for deep learning", for ReLU; A around it: derived here.
    """
    a, depth = _square("adjacency", adjacency), positive_integer("depth", depth)
    known("activation", activation, ("linear", "relu"))
    not_negative("sigma_w", sigma_w)
    not_negative("sigma_b", sigma_b)
    k = np.eye(len(a)) if covariance is None else _square("covariance", covariance)
    if k.shape != a.shape:
        raise ValueError(f"covariance must have the adjacency's shape {a.shape}, got {k.shape}")
    u = np.eye(len(a)) / len(a)
    ks, gains = [k], [1.0]
    for _ in range(depth):
        values, slopes = (k, np.ones_like(k)) if activation == "linear" else _arc_cosine(k)
        k = sigma_w**2 * a @ values @ a.T + sigma_b**2
        u = sigma_w**2 * a @ (slopes * u) @ a.T
        ks.append(k)
        gains.append(np.trace(u))
    with np.errstate(divide="ignore"):
        return GraphPropagation(np.array(ks), np.array([_mean_correlation(k) for k in ks]), np.log(gains))


def _arc_cosine(k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E phi phi and E phi' phi' of ReLU."""
    sizes = np.sqrt(np.diag(k))
    both = np.outer(sizes, sizes)
    cosine = np.clip(k / np.where(both == 0, 1, both), -1, 1)
    angle = np.arccos(cosine)
    # A node's angle with itself is 0 to all digits, which arccos does not give.
    np.fill_diagonal(angle, 0)
    return both * (np.sin(angle) + (np.pi - angle) * cosine) / (2 * np.pi), (np.pi - angle) / (2 * np.pi)


def _mean_correlation(k: np.ndarray) -> float:
    sizes, n = np.sqrt(np.diag(k)), len(k)
    if n < 2 or np.any(sizes == 0):
        return float("nan")
    return float((np.sum(k / np.outer(sizes, sizes)) - n) / (n * (n - 1)))


@kinds
def influence(adjacency: ArrayLike, depth: int, *, sigma_w: float = 1.0) -> np.ndarray:
    """``sigma_w^(2L) (A^L)_ij^2``: E |dh_i^L / dh_j^0|_F^2 / width of a linear graph network, exactly at any width.

    It is 0 beyond a distance of L edges, and small wherever few of all paths lead: over-squashing.

    Args:
        adjacency: A, shape ``(nodes, nodes)``.
        depth: L.
        sigma_w: standard deviation, Var W = sigma_w^2 / width.

    Returns:
        Shape ``(nodes, nodes)``, rows say where to; its mean over j and sum over i is the squared gain.

    Raises:
        ValueError: a matrix that is not square or not finite, a depth below 1, or a negative scale.

    Source: Topping et al. 2022, "Understanding over-squashing and bottlenecks on graphs via curvature", lemma 1, which
    bounds it.
    """
    not_negative("sigma_w", sigma_w)
    depth = positive_integer("depth", depth)
    return (np.linalg.matrix_power(_square("adjacency", adjacency), depth) * float(sigma_w) ** depth) ** 2


@kinds
def distances(adjacency: ArrayLike) -> np.ndarray:
    """Edges between any two nodes on the shortest way; infinite where there is none.

    Args:
        adjacency: A, shape ``(nodes, nodes)``; an edge wherever it is not 0.

    Returns:
        Shape ``(nodes, nodes)``, rows say where to.

    Raises:
        ValueError: a matrix that is not square or not finite.
    """
    edges = _square("adjacency", adjacency) != 0
    reached, far = np.eye(len(edges), dtype=bool), np.where(np.eye(len(edges), dtype=bool), 0.0, np.inf)
    for step in range(1, len(edges)):
        reached = reached | (edges @ reached)
        far = np.where(reached & np.isinf(far), step, far)
    return far


def _square(name: str, given: ArrayLike) -> np.ndarray:
    matrix = np.asarray(given, float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"{name} must be a square matrix, one row a node, got shape {matrix.shape}")
    finite(name, matrix)
    return matrix
