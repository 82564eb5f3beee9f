"""Graded products: matrix products whose singular values span thousands of nats, all of them kept.

A plain product of many matrices keeps the largest singular values and loses the others to rounding. Here it is kept as
``basis diag(2^exponents) mixing``: orthonormal columns, a graded scale as integer exponents, and rows of norm about 1
that stay well-conditioned, by a QR decomposition at every factor of the columns sorted by their size (the
stratification of determinant quantum Monte Carlo: Loh et al. 1989; sorting in place of pivoting: Tomas et al. 2012).
Only powers of two are taken out, so nothing drifts. At the end ``diag(2^exponents) mixing`` goes through one-sided
Jacobi rotations, which are right to rounding for every singular value of a graded matrix (Demmel & Veselic 1992).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from vgjax.floatexp import LN2, ZERO, exponent_of, power_of_two

_UNEVEN = 6  # columns of a factor that differ by more powers of two than this are taken out as a factor of their own
# Share of a factor's largest column up to which a direction that it leaves counts as lost: above what rounding leaves
# in place of zeros, and as rarely as can be above a Gaussian matrix's own (.8 sqrt(n) times that, in one of so many).
_NOISE = {"float32": 2.0**-18, "float64": 2.0**-40}
_SPAN = 800  # powers of two that one Jacobi iteration may span: half the exponents of float64, with room
_APART = 64  # powers of two beyond which rows no longer see each other, 2^-128


class UDT(NamedTuple):
    """The matrix U D T = ``basis @ diag(2**exponents) @ mixing``: a stratified QR decomposition.

    Attributes:
        basis: orthonormal columns, shape ``(outputs, rank)``.
        exponents: int32, shape ``(rank,)``; `ZERO` for a direction that is lost exactly.
        mixing: rows of norm 1 to 2, or zero where lost, shape ``(rank, inputs)``.
    """

    basis: Array
    exponents: Array
    mixing: Array


def lifted(product: UDT, exponent: Array) -> UDT:
    """The product times ``2**exponent``; what is lost stays lost."""
    moved = jnp.where(product.exponents == ZERO, ZERO, product.exponents + exponent)
    return product._replace(exponents=moved)


def identity(rotation: Float[Array, "n n"]) -> UDT:
    """The empty product, with a random rotation (`orthonormal`) as its basis.

    The leading columns are then in general position to whatever follows: a factor of rank r leaves the first r of them
    independent, and rank can be read off a QR decomposition without pivoting.
    """
    return UDT(rotation, jnp.zeros(len(rotation), jnp.int32), rotation.T)


@functools.partial(jax.jit, static_argnames=("size", "count", "dtype"))
def orthonormal(size: int, count: int, dtype: Any) -> Float[Array, "{size} {count}"]:
    """Random orthonormal columns, always the same ones, shape ``(size, count)``."""
    return jnp.linalg.qr(jax.random.normal(jax.random.key(0), (size, count), dtype))[0]


def start(columns: Float[Array, "size count"]) -> UDT:
    """A product that begins with some orthonormal columns, shape ``(size, count)``."""
    count = columns.shape[1]
    return UDT(columns, jnp.zeros(count, jnp.int32), jnp.eye(count, dtype=columns.dtype))


def times(matrix: Float[Array, "outputs inputs"], product: UDT) -> tuple[UDT, Float[Array, ""]]:
    """``matrix @ product``, and an estimate of how ill-conditioned the matrix is, its column sizes apart.

    Columns of very unequal size (saturated units, dead ones) would lose the small ones in a plain product; they are
    first taken out as a diagonal factor, whose graded rows a QR decomposition keeps if they are sorted (Cox & Higham
    1998).
    """
    outputs, inputs = matrix.shape
    rank, size = min(outputs, len(product.exponents)), max(outputs, inputs)
    square = jnp.pad(matrix, ((0, size - outputs), (0, size - inputs)))  # both factors then have one shape
    largest = jnp.max(jnp.abs(square), axis=0)
    sizes = jnp.where(largest > 0, exponent_of(jnp.where(largest > 0, largest, 1)), ZERO)
    top = jnp.max(sizes)
    uneven = (top - jnp.min(sizes[:inputs]) > _UNEVEN) & (top > ZERO)
    diagonal = power_of_two(sizes, matrix.dtype)[:, None]
    even = jnp.where(uneven, square * power_of_two(-sizes, matrix.dtype), square)
    by_size = jnp.argsort(-sizes)

    def factor(i: Array, carry: tuple[UDT, Array]) -> tuple[UDT, Array]:
        product, first = carry[0], i == 0
        rows = jnp.where(first, by_size, jnp.arange(size))
        moved = lax.cond(first, lambda b: diagonal * b, lambda b: _dot(even, b), product.basis)
        product, condition = restored(product, moved[rows], jnp.where(first, 0, _NOISE[matrix.dtype.name]))
        return product._replace(basis=jnp.zeros_like(moved).at[rows].set(product.basis)), condition

    padded = product._replace(basis=jnp.pad(product.basis, ((0, size - inputs), (0, 0))))
    start = jnp.where(uneven, 0, 1)
    (basis, exponents, mixing), condition = lax.fori_loop(start, 2, factor, (padded, jnp.ones((), matrix.dtype)))
    return UDT(basis[:outputs, :rank], exponents[:rank], mixing[:rank]), condition


def restored(product: UDT, moved: Array, noise: float | Array | None = None) -> tuple[UDT, Array]:
    """``A @ product`` from ``moved = A @ product.basis``: its columns are made orthonormal again.

    Args:
        product: as it was.
        moved: shape ``(outputs, rank)``.
        noise: rows of R within that share of the largest column are zero; left out, what rounding may leave.

    Returns:
        The product, of rank ``min(outputs, rank)``, and the largest column over the smallest row of R that is kept.
    """
    norms = jnp.sqrt(jnp.sum(moved * moved, axis=0))
    alive = (product.exponents > ZERO) & (norms > 0)
    weight = jnp.where(alive, jnp.log2(jnp.where(alive, norms, 1)) + product.exponents.astype(norms.dtype), -jnp.inf)
    order = jnp.argsort(-weight)
    alive, exponents, mixing = alive[order], product.exponents[order], product.mixing[order]
    basis, r = jnp.linalg.qr(moved[:, order])

    # Row i of R diag(2^exponents), as a power of two times a row of ordinary size.
    size = jnp.where(alive, jnp.abs(r), 0)
    widest = jnp.max(jnp.where(alive, norms[order], 0))
    kept = jnp.max(size, axis=1) > (_NOISE[r.dtype.name] if noise is None else noise) * widest
    places = jnp.where(size > 0, exponent_of(jnp.where(size > 0, size, 1)) + exponents, ZERO)
    place = jnp.max(places, axis=1)
    graded = jnp.where(alive, r * power_of_two(exponents - place[:, None], r.dtype), 0)
    mixing = _dot(jnp.where(kept[:, None], graded, 0), mixing)
    length = exponent_of(jnp.where(kept, jnp.sqrt(jnp.sum(mixing * mixing, axis=1)), 1))
    result = UDT(basis, jnp.where(kept, place + length, ZERO), mixing * power_of_two(-length, r.dtype)[:, None])
    return result, widest / jnp.min(jnp.where(kept, jnp.max(size, axis=1), jnp.inf))


def _dot(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST)


def log_singular_values(exponents: np.ndarray, mixing: np.ndarray) -> np.ndarray:
    """ln of the singular values of ``diag(2**exponents) @ mixing``, descending; -inf for the directions that are lost.

    Args:
        exponents, mixing: of a `UDT`, shapes ``(rank,)`` and ``(rank, inputs)``; computed in float64.

    Returns:
        Shape ``(inputs,)``.
    """
    found = np.full(mixing.shape[1], -np.inf)
    order = np.argsort(-exponents, kind="stable")
    order = order[exponents[order] > ZERO]
    scale, rows = exponents[order].astype(float), np.asarray(mixing, float)[order]
    if not len(order):
        return found
    if scale[0] - scale[-1] <= _SPAN:
        found[: len(order)] = _jacobi(rows.T, scale)
        return found
    # Beyond the float range: windows along the diagonal of the triangular factor, each with what it can see of its
    # neighbours; what lies 2^64 apart moves it by 2^-128.
    triangle: np.ndarray = np.linalg.qr(rows.T, mode="r")  # type: ignore[assignment]
    first = 0
    while first < len(order):
        last = int(np.searchsorted(-scale, -(scale[first] - _SPAN + 3 * _APART), side="right"))
        low = int(np.searchsorted(-scale, -(scale[first] + _APART)))
        high = int(np.searchsorted(-scale, -(scale[last - 1] - _APART), side="right"))
        window = _jacobi(triangle[low:high, low:high], scale[low:high])
        found[first:last] = window[first - low : last - low]
        first = last
    return found


def _jacobi(columns: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """ln of the singular values of ``columns @ diag(2**scale)``, descending, each right to rounding."""
    from scipy.linalg import lapack  # a third of what importing the library would take

    middle = np.round((scale[0] + scale[-1]) / 2)
    values, _, _, work, _, failed = lapack.dgejsv(
        columns * np.exp2(scale - middle), joba=2, jobu=3, jobv=3, jobr=0, jobt=0, jobp=0
    )
    if failed:
        raise FloatingPointError(f"one-sided Jacobi iteration must converge, got LAPACK's status {failed}")
    with np.errstate(divide="ignore"):
        return np.log(values) + np.log(work[0] / work[1]) + middle * LN2
