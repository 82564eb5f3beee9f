"""Kernels that are never drawn: what is known of one is what it did, and that is all that a pass asks of it.

Of a random kernel K only products with a few vectors are seen. Given those, the next product is a number of normals of
one layer's width, and exact in law at every width (a Gaussian conditioned on linear maps of it):

    forward    K V = G R,   V = Q R the vectors, Q orthonormal, G fresh normals / sqrt(fan_in)
    backward   K^T D = Q G^T D + (1 - Q Q^T) E R_D,   D = P R_D, E fresh normals / sqrt(fan_in)

Of an orthogonal kernel G is a random frame, and what is fresh stays orthogonal to what is known. Vectors are rows here.

Source: Bolthausen 2014, "An iterative construction of solutions of the TAP equations"; Bayati and Montanari 2011, "The
dynamics of message passing on dense graphs", lemma 10; Yang 2020, "Tensor programs III", appendix.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Key

from vgjax.floatexp import FloatExp

LAWS = ("gaussian", "orthogonal")
"""How kernels may be distributed: those whose law does not change under rotations."""

_FEW = 4
"""Rows up to which a loop over them is written out: it then fuses, at a price in compilation."""


def frame(
    rows: Float[Array, "k n"], complement: Float[Array, "j n"] | None = None
) -> tuple[Float[Array, "k n"], Float[Array, "k k"]]:
    """Orthonormal Q and R with rows = R^T Q, by Gram-Schmidt done twice; a row in the span of those before it has a row
    of zeros in Q.

    Args:
        rows: of norm 1 or 0.
        complement: orthonormal rows (or zeros) that Q is kept orthogonal to.
    """
    known = [] if complement is None else list(complement)
    if len(rows) > _FEW:
        return _long_frame(rows, complement)
    basis: list[Array] = []
    columns = []
    for x in rows:
        size, along = _norm(x), [jnp.zeros((), x.dtype) for _ in basis]
        for _ in range(2):
            for fixed in known:
                x = x - jnp.sum(fixed * x) * fixed
            shares = [jnp.sum(q * x) for q in basis]
            along = [a + share for a, share in zip(along, shares, strict=True)]
            x = x - sum(share * q for share, q in zip(shares, basis, strict=True))
        direction, rest = _direction(x, size)
        columns.append(jnp.stack([*along, rest, *[jnp.zeros((), x.dtype)] * (len(rows) - 1 - len(basis))]))
        basis.append(direction)
    return jnp.stack(basis), jnp.stack(columns, axis=1)


def _long_frame(rows: Array, complement: Array | None) -> tuple[Array, Array]:
    """The same in a loop."""
    known = rows[:0] if complement is None else complement

    def add(j: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        basis, r = found
        x, along = rows[j], jnp.zeros(len(rows), rows.dtype)
        size = _norm(x)
        for _ in range(2):
            x = x - (known @ x) @ known
            shares = basis @ x
            x, along = x - shares @ basis, along + shares
        direction, rest = _direction(x, size)
        return basis.at[j].set(direction), r.at[:, j].set(along.at[j].set(rest))

    with jax.default_matmul_precision("highest"):
        start = jnp.zeros_like(rows), jnp.zeros((len(rows), len(rows)), rows.dtype)
        return lax.fori_loop(0, len(rows), add, start)


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(x * x))


def _direction(x: Array, size: Array) -> tuple[Array, Array]:
    """What is left of a row by direction and norm; zeros where that is the rounding of a row of that size."""
    rest = _norm(x)
    nothing = rest <= (1e-6 if x.dtype == jnp.float32 else 1e-14) * size
    return jnp.where(nothing, 0, x / jnp.where(nothing, 1, rest)), jnp.where(nothing, 0, rest)


def combined(weights: Float[Array, "k p"], rows: Float[Array, "k n"]) -> Float[Array, "p n"]:
    """weights^T rows: written out where they are few, since a product of so small an inner size fuses with nothing."""
    if len(rows) > _FEW:
        return jnp.dot(weights.T, rows, precision="highest")
    return sum(weight[:, None] * row for weight, row in zip(weights, rows, strict=True))  # type: ignore[return-value]


def products(rows: Float[Array, "k n"], others: Float[Array, "p n"]) -> Float[Array, "k p"]:
    """All inner products."""
    if len(rows) * len(others) > _FEW**2:
        return jnp.dot(rows, others.T, precision="highest")
    return jnp.stack([jnp.stack([jnp.sum(a * b) for b in others]) for a in rows])


class Seen(NamedTuple):
    """A kernel at unit gain, by what it did: ``K inputs_i = outputs_i``.

    Attributes:
        inputs: orthonormal rows, or zeros, shape ``(p, fan_in)``; of an orthogonal kernel padded to the larger size.
        outputs: shape ``(p, fan_out)``, likewise.
        triangle: what was asked for: ``triangle^T inputs`` at norm 1, shape ``(p, p)``.
    """

    inputs: Array
    outputs: Array
    triangle: Array


class Kernel(NamedTuple):
    """A random kernel at unit gain, E K_ij^2 = 1 / fan_in, as `vgjax.initializers` has it.

    Attributes:
        law: one of `LAWS`.
        fan_in, fan_out: its sizes.
    """

    law: str
    fan_in: int
    fan_out: int

    def multiply(self, key: Key[Array, ""], rows: FloatExp) -> tuple[FloatExp, Seen]:
        """K v for the rows v, normalized; and what is then known. Jointly exact: give all that is to be asked."""
        size = jax.vmap(_norm)(rows.value)
        unit = rows.value / jnp.where(size > 0, size, 1)[:, None]
        shape, dtype = (len(unit), self.fan_out), unit.dtype
        if self.law == "gaussian":
            inputs, triangle = frame(unit)
            outputs = jax.random.normal(key, shape, dtype) / math.sqrt(self.fan_in)
        else:  # the corner of a Haar matrix of the larger size, wide ones at the gain that keeps E K_ij^2
            whole = max(self.fan_in, self.fan_out)
            inputs, triangle = frame(jnp.pad(unit, ((0, 0), (0, whole - self.fan_in))))
            outputs, _ = frame(_unit(jax.random.normal(key, (len(unit), whole), dtype)))
            outputs = jnp.where(jnp.any(inputs != 0, axis=1, keepdims=True), outputs, 0)
        value = self._gain * combined(triangle * size, outputs)[:, : self.fan_out]
        return rows._replace(value=value), Seen(inputs, outputs, triangle)

    def multiply_transposed(self, key: Key[Array, ""], seen: Seen, rows: FloatExp) -> tuple[FloatExp, Array]:
        """K^T d for the rows d, normalized, behind what was seen; and the triangle of their frame."""
        size = jax.vmap(_norm)(rows.value)
        unit = rows.value / jnp.where(size > 0, size, 1)[:, None]
        fresh, shape = jax.random.normal(key, (len(unit), seen.inputs.shape[1]), unit.dtype), unit.shape
        _, triangle = frame(unit)
        if self.law == "gaussian":
            fresh = fresh / math.sqrt(self.fan_in)
            along, rest = products(seen.outputs, unit), triangle
            fresh = fresh - combined(products(seen.inputs, fresh), seen.inputs)
        else:
            unit = jnp.pad(unit, ((0, 0), (0, seen.outputs.shape[1] - shape[1])))
            along = products(seen.outputs, unit)
            _, rest = frame(unit - combined(along, seen.outputs))
            fresh, _ = frame(_unit(fresh), complement=seen.inputs)
        value = self._gain * (combined(along, seen.inputs) + combined(rest, fresh))[:, : self.fan_in]
        return rows._replace(value=value * size[:, None]), triangle

    @property
    def _gain(self) -> float:
        return 1.0 if self.law == "gaussian" else math.sqrt(max(1.0, self.fan_out / self.fan_in))


def _unit(rows: Array) -> Array:
    return rows / jax.vmap(_norm)(rows)[:, None]
