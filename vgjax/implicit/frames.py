"""Kernels that are never drawn: what is known of one is what it did, and that is all that a pass asks of it.

Of a random kernel K only products with a few vectors are seen. Given those, the next product is a number of normals of
one layer's width, and exact in law at every width (a Gaussian conditioned on linear maps of it):

    forward    K V = G R,   V = Q R the vectors, Q orthonormal, G fresh normals / sqrt(fan_in)
    backward   K^T D = Q G^T D + (1 - Q Q^T) E R_D,   D = P R_D, E fresh normals / sqrt(fan_in)

Of an orthogonal kernel G is a random frame, and what is fresh stays orthogonal to what is known. Vectors are rows here.

Source: Bolthausen 2014, "An iterative construction of solutions of the TAP equations"; Bayati and Montanari 2011, "The
dynamics of message passing on dense graphs", lemma 10; Yang 2020, "Tensor programs III", appendix.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Key

LAWS = ("gaussian", "orthogonal")
"""How kernels may be distributed: those whose law does not change under rotations."""

FEW = 4
"""Rows up to which loops over them are written out: they then fuse, at a price in compilation."""

Vectors = Sequence[Array] | Array
"""Rows of one length: as a list where they are few, so that none is copied to stand beside another."""


def frame(rows: Vectors, complement: Vectors = (), *, twice: bool = True, unit: bool = True) -> tuple[Vectors, Any]:
    """Orthonormal q_i and R with ``rows_j = sum_i R_ij q_i``, by Gram-Schmidt; a row in the span of those before it has
    a row of zeros.

    Args:
        rows: of norm 1 or 0, or what is left of such.
        complement: orthonormal rows (or zeros) that all q_i are kept orthogonal to.
        twice: whether each row is projected twice, for the q_i to be orthogonal to all digits; R is so after one.
        unit: whether rows have the norm 1 or 0, so that the first is its own direction.

    Returns:
        q_i, and R by ``R[i][j]``, of which ``i <= j`` is used.
    """
    if len(rows) > FEW:
        return _long_frame(jnp.asarray(rows), jnp.asarray(complement) if len(complement) else None)
    basis: list[Array] = []
    columns: list[list[Array]] = []
    for x in rows:
        column: list[Array] = []
        for _ in range(2 if twice else 1):
            for fixed in complement:
                x = x - jnp.sum(fixed * x) * fixed
            shares = [jnp.sum(q * x) for q in basis]
            column = [a + share for a, share in zip(column, shares, strict=True)] if column else shares
            for share, q in zip(shares, basis, strict=True):
                x = x - share * q
        alone = unit and not basis and not len(complement)
        direction, rest = (x, jnp.sqrt(jnp.sum(x * x))) if alone else _direction(x)
        basis.append(direction)
        columns.append([*column, rest])
    return basis, [[columns[j][i] if i <= j else None for j in range(len(rows))] for i in range(len(rows))]


def _long_frame(rows: Array, complement: Array | None) -> tuple[Array, Array]:
    """The same in a loop."""
    known = rows[:0] if complement is None else complement

    def add(j: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        basis, r = found
        x, along = rows[j], jnp.zeros(len(rows), rows.dtype)
        for _ in range(2):
            x = x - (known @ x) @ known
            shares = basis @ x
            x, along = x - shares @ basis, along + shares
        direction, rest = _direction(x)
        return basis.at[j].set(direction), r.at[:, j].set(along.at[j].set(rest))

    with jax.default_matmul_precision("highest"):
        start = jnp.zeros_like(rows), jnp.zeros((len(rows), len(rows)), rows.dtype)
        return lax.fori_loop(0, len(rows), add, start)


def _direction(x: Array) -> tuple[Array, Array]:
    """What is left of a row of norm 1 by direction and norm; zeros where that is rounding."""
    rest = jnp.sqrt(jnp.sum(x * x))
    nothing = rest <= (1e-6 if x.dtype == jnp.float32 else 1e-14)
    return jnp.where(nothing, 0, x / jnp.where(nothing, 1, rest)), jnp.where(nothing, 0, rest)


def each_row(f: Callable[..., Array], *rows: Vectors) -> Vectors:
    """A function of every row."""
    return jax.vmap(f)(*rows) if isinstance(rows[0], Array) else [f(*row) for row in zip(*rows, strict=True)]


def combined(weights: Any, rows: Vectors) -> Vectors:
    """``sum_i weights[i][j] rows_i``; what is None is left out."""
    if isinstance(rows, Array):
        return jnp.dot(weights.T, rows, precision="highest")
    terms = [
        [weights[i][j] * row for i, row in enumerate(rows) if weights[i][j] is not None] for j in range(len(weights[0]))
    ]
    return [functools.reduce(jnp.add, each) for each in terms]


def products(rows: Vectors, others: Vectors) -> Any:
    """All inner products, ``[i][j]``."""
    if isinstance(rows, Array):
        return jnp.dot(rows, jnp.asarray(others).T, precision="highest")
    return [[jnp.sum(a * b) for b in others] for a in rows]


class Seen(NamedTuple):
    """A kernel at unit gain, by what it did: ``K inputs_i = outputs_i``.

    Attributes:
        inputs: orthonormal rows, or zeros, of length fan_in; of an orthogonal kernel padded to the larger size.
        outputs: of length fan_out, likewise.
        triangle: what was asked for, at norm 1: ``sum_i triangle[i][j] inputs_i``.
    """

    inputs: Any
    outputs: Any
    triangle: Any


class Kernel(NamedTuple):
    """A random kernel at unit gain, E K_ij^2 = 1 / fan_in, as `vgjax.initializers` has it.

    Attributes:
        law: one of `LAWS`.
        fan_in, fan_out: its sizes.
    """

    law: str
    fan_in: int
    fan_out: int

    def multiply(self, key: Key[Array, ""], rows: Vectors, *, keep: bool) -> tuple[Vectors, Seen]:
        """K v for rows v of norm 1 (or 0), jointly exact: give all that is to be asked; and what is then known.

        Args:
            keep: whether it is asked for K^T later.
        """
        shape, dtype = (len(rows), self.fan_out), rows[0].dtype
        if self.law == "gaussian":
            inputs, triangle = frame(rows, twice=keep or len(rows) > 2)  # a third row meets what the second left
            outputs = self._like(rows, jax.random.normal(key, shape, dtype) / math.sqrt(self.fan_in))
            return combined(triangle, outputs), Seen(inputs, outputs, triangle)
        # The corner of a Haar matrix of the larger size; wide ones at the gain that keeps E K_ij^2.
        whole = max(self.fan_in, self.fan_out)
        inputs, triangle = frame(self._padded(rows, whole), twice=keep or len(rows) > 2)
        fresh = jax.random.normal(key, (len(rows), whole), dtype)
        outputs, _ = frame(_beside(inputs, self._like(rows, _unit_rows(fresh))))
        return self._cut(combined(triangle, outputs), self.fan_out), Seen(inputs, outputs, triangle)

    def multiply_transposed(self, key: Key[Array, ""], seen: Seen, rows: Vectors) -> tuple[Vectors, Any]:
        """K^T d for rows d of norm 1 (or 0), behind what was seen; and the triangle of their frame."""
        seen, rows = _alike(seen, rows)
        fresh = jax.random.normal(key, (len(rows), seen.inputs[0].shape[-1]), rows[0].dtype)
        _, triangle = frame(rows)
        if self.law == "gaussian":
            draws = self._like(rows, fresh / math.sqrt(self.fan_in))
            along, rest = products(seen.outputs, rows), triangle
            draws = each_row(operator.sub, draws, combined(products(seen.inputs, draws), seen.inputs))
        else:
            padded = self._padded(rows, seen.outputs[0].shape[-1])
            along = products(seen.outputs, padded)
            left, rest = frame(each_row(operator.sub, padded, combined(along, seen.outputs)), unit=False)
            draws, _ = frame(_beside(left, self._like(rows, _unit_rows(fresh))), complement=seen.inputs)
        moved = each_row(operator.add, combined(along, seen.inputs), combined(rest, draws))
        return self._cut(moved, self.fan_in), triangle

    def _padded(self, rows: Vectors, size: int) -> Vectors:
        return each_row(lambda row: jnp.pad(row, (0, size - len(row))), rows)

    def _cut(self, rows: Vectors, size: int) -> Vectors:
        if self.law == "gaussian":
            return rows
        gain = math.sqrt(max(1.0, self.fan_out / self.fan_in))
        return each_row(lambda row: gain * row[:size], rows)

    def _like(self, rows: Vectors, others: Array) -> Vectors:
        return others if isinstance(rows, Array) else list(others)


def _alike(seen: Seen, rows: Vectors) -> tuple[Seen, Vectors]:
    """Both as arrays where one of them is."""
    if isinstance(seen.inputs, Array) == isinstance(rows, Array):
        return seen, rows
    inputs, outputs = (jnp.stack(list(each)) for each in (seen.inputs, seen.outputs))
    return seen._replace(inputs=inputs, outputs=outputs), jnp.stack(list(rows))


def _beside(basis: Vectors, fresh: Vectors) -> Vectors:
    """Fresh rows where a basis has one, and zeros where it has none: what is left of a small space is theirs alone."""
    return each_row(lambda q, row: jnp.where(jnp.any(q != 0), row, 0), basis, fresh)


def _unit_rows(rows: Array) -> Array:
    return rows / jnp.sqrt(jnp.sum(rows * rows, axis=1, keepdims=True))
