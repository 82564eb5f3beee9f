"""Deep equilibrium: a block whose output is the fixed point of a cell, infinitely many tied layers at once."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from vgjax.blocks import protocol
from vgjax.blocks.protocol import Spec
from vgjax.checks import Size, kinds
from vgjax.initializers import Scale, Scales


class FixedPointSearch(NamedTuple):
    """Where an iteration ended.

    Attributes:
        point: the last one.
        iterations: how many there were, int32, shape ``()``.
        converged: whether the last one moved by rounding alone, shape ``()``.
    """

    point: Array
    iterations: Array
    converged: Array


class Equilibrium(nnx.Module):
    """``h' = z`` where ``z = f(z, h)``: the fixed point of a cell f whose own input is the state.

    It is sought by ``z <- f(z, h)`` from 0, and is NaN where that does not settle within the iterations: at and past
    criticality. The derivative is that of the implicit function, ``(1 - df/dz)^-1 df/dh``, in either direction, by a
    dense solve.

    Args:
        cell: spec of f: of a block that is called with an input of its own, of the shape of the state.
        iterations: at most so many.
        rngs: where the draws come from.

    Source: Bai, Kolter and Koltun 2019, "Deep equilibrium models", theorem 1.
    """

    @kinds
    def __init__(self, cell: Spec, *, iterations: Size = 1000, rngs: nnx.Rngs):
        self.cell = cell.build(rngs)
        self.iterations = iterations

    @property
    def scales(self) -> Mapping[str, Scale]:
        """Those of the cell."""
        return protocol.scales_of(self.cell)

    def __call__(self, h: Array, scales: Scales | None = None) -> Array:
        """Of the state's shape."""

        def solve(_: Callable[[Array], Array], start: Array) -> Array:
            found = self.search(h, scales)
            return jnp.where(found.converged, found.point, jnp.nan)

        miss = lambda z: z - self._next(z, h, scales)  # noqa: E731
        return lax.custom_root(miss, self._start(h, scales), solve, _solve_densely)

    def search(self, h: Array, scales: Scales | None = None) -> FixedPointSearch:
        """The iteration, with its status."""
        origin = self._start(h, scales)
        least = 4 * jnp.finfo(origin.dtype).eps

        def goes_on(now: FixedPointSearch) -> Array:
            return ~now.converged & (now.iterations < self.iterations)

        def move(now: FixedPointSearch) -> FixedPointSearch:
            point = self._next(now.point, h, scales)
            moved = jnp.max(jnp.abs(point - now.point))
            return FixedPointSearch(point, now.iterations + 1, moved <= least * jnp.max(jnp.abs(point)))

        start = FixedPointSearch(origin, jnp.zeros((), jnp.int32), jnp.zeros((), bool))
        return lax.while_loop(goes_on, move, start)

    def diagnostics(self, h: Array, scales: Scales | None = None) -> dict[str, Array]:
        """How many iterations it took."""
        return {"iterations": self.search(h, scales).iterations.astype(h.dtype)}

    def absorb_scales(self, scales: Scales) -> frozenset[str]:
        """What the cell absorbs."""
        return protocol.absorb_scales(scales, self.cell)

    def _start(self, h: Array, scales: Scales | None) -> Array:
        """0, in the dtype that comes out."""
        return jnp.zeros_like(h, jax.eval_shape(lambda z: self._next(z, h, scales), h).dtype)

    def _next(self, z: Array, h: Array, scales: Scales | None) -> Array:
        return protocol.call(self.cell, z, Scales() if scales is None else scales, h)


def _solve_densely(linear: Callable[[Array], Array], y: Array) -> Array:
    """The x with ``linear(x) = y``."""
    unit = jnp.eye(y.size, dtype=y.dtype).reshape(y.size, *y.shape)
    columns = jax.vmap(linear)(unit).reshape(y.size, y.size)
    return jnp.linalg.solve(columns.T, y.reshape(-1)).reshape(y.shape)
