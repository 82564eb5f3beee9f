"""Dense Jacobians of layers, and where a product of them begins."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from vgjax.checks import ArrayLike, known
from vgjax.floatexp import FloatExp
from vgjax.initializers import Scales
from vgjax.measure import graded
from vgjax.memory import MEMORY, chunk_size
from vgjax.networks.layer import Layer
from vgjax.networks.layers import Layers, bind, checked_input, state_shapes
from vgjax.networks.network import Network
from vgjax.networks.parameters import Parameters

DENSE = 2**33
"""Bytes that dense Jacobians may take by default: 8 GiB."""


class Origin(NamedTuple):
    """Where a product of Jacobians begins, and the layers it runs through.

    Attributes:
        layers: those behind it.
        state: not normalized.
        stem: the stem and the input, where the product begins before it; else None.
    """

    layers: Layers
    state: FloatExp
    stem: tuple[Layer, Array] | None

    @property
    def size(self) -> int:
        """Directions at the start."""
        return self.stem[1].size if self.stem else self.state.value.size

    def rotation(self, count: int | None = None) -> Array:
        """Random orthonormal columns there, shape ``(size, count)``."""
        return graded.orthonormal(self.size, count or self.size, self.state.value.dtype)


@functools.partial(jax.jit, static_argnames=("part", "from_input", "dtype"))
def origin(
    parameters: Parameters, scales: Scales, x: Array, part: tuple[int, int], from_input: bool, dtype: Any
) -> Origin:
    """Where a product begins, at a state or at the input (if there is a stem), and the layers it runs through."""
    start, stop = part
    layers = bind(parameters.astype(dtype), scales, x)
    state = layers.first_state(x)
    before_stem = (layers.stem, x.astype(dtype)) if layers.stem and from_input else None
    if start:
        state = layers.section(0, start).walk(state).last
    return Origin(layers.section(start, stop), state, before_stem)


def jacobian(layer: Layer, h: Float[Array, "*state"]) -> Float[Array, "outputs inputs"]:
    """The Jacobian of a layer at a state, both flattened, shape ``(outputs, inputs)``; column by column in chunks."""
    push = jax.linearize(layer, h)[1]
    unit = jnp.eye(h.size, dtype=h.dtype).reshape(-1, *h.shape)
    return columns(push, unit)


def columns(linear: Callable[[Array], Array], rows: Float[Array, "count *state"]) -> Float[Array, "outputs count"]:
    """A linear map of many states, shape ``(count, *state)``, as columns ``(outputs, count)``."""
    count = len(rows)
    # A layer may hold a few arrays of the state's size for every column.
    size = chunk_size(count, 8 * rows[0].size * rows.dtype.itemsize, MEMORY)
    moved = jax.vmap(linear)(rows) if size == count else lax.map(linear, rows, batch_size=size)
    return moved.reshape(count, -1).T


# --- the edge -------------------------------------------------------------------------------------------------------


def bytes_needed(network: Network, size: int, depths: int, dtype: Any) -> int:
    """About what the dense Jacobians of one network take: a few at a time, and what is kept at each depth."""
    largest = max(size, *(int(np.prod(shape)) for shape in state_shapes(network)))
    return np.dtype(dtype).itemsize * (8 * largest * largest + depths * size * size)


def check_memory(network: Network, size: int, depths: int, dtype: Any, max_bytes: int) -> None:
    """Raise ValueError if dense Jacobians would take more than that many bytes."""
    largest = max(size, *(int(np.prod(shape)) for shape in state_shapes(network)))
    needed = bytes_needed(network, size, depths, dtype)
    if needed > max_bytes:
        raise ValueError(
            f"dense Jacobians must fit into max_bytes = {max_bytes / 2**30:.3g} GiB, got a state of {largest} numbers, "
            f"for which they take {needed / 2**30:.3g} GiB; take the largest singular values (top=), or the norm alone "
            f"(log_frobenius with probes)"
        )


def check_one_shape(network: Network) -> None:
    """Raise ValueError unless all states have one shape."""
    if len(set(state_shapes(network))) > 1:
        raise ValueError(f"all states must have one shape, got {sorted(set(state_shapes(network)))}")


def computed_in(parameters: Parameters, dtype: str | None) -> Any:
    """The dtype to compute in: the one asked for, or that of the parameters."""
    kind = jnp.dtype(parameters.dtype if dtype is None else known("dtype", dtype, ["float32", "float64"]))
    if kind != parameters.dtype and parameters.streamed:
        raise ValueError(f"streamed parameters must be computed in their own dtype, got {kind.name}")
    return kind


@contextlib.contextmanager
def computing(parameters: Parameters, dtype: str | None) -> Iterator[Any]:
    """The dtype to compute in, switched on for what is done inside, with LAPACK on one thread.

    Many small decompositions on several threads cost up to 20 times more on a busy machine.
    """
    import scipy.linalg  # noqa: F401 - a limit holds only for what is loaded: its BLAS has to be there before

    kind = computed_in(parameters, dtype)
    with jax.enable_x64(kind == jnp.float64), threadpool_limits(1, user_api="blas"):
        yield kind


@contextlib.contextmanager
def computing_from(
    parameters: Parameters,
    scales: Scales,
    x: ArrayLike,
    dtype: str | None,
    part: tuple[int, int] | None = None,
    from_input: bool = False,
) -> Iterator[Origin]:
    """Where the product begins, in the dtype that is switched on for what is done inside."""
    x = checked_input(parameters, scales, x)
    with computing(parameters, dtype) as kind:
        yield origin(parameters, scales, x, part or (0, parameters.network.depth), from_input, kind)
