"""Jacobian spectra: the true log singular values of a product of layer Jacobians, at any depth.

A singular value decomposition of the product itself is wrong early: at 20 Gaussian layers even float64 has lost the
bottom of the spectrum. Here the product is a graded one (`vgjax.products`), and every singular value is right to
rounding. All logarithms are natural; -inf is a direction that is lost exactly, and nothing else.

The Jacobian of a layer is what its block's own derivative says, so nothing here knows what the blocks are.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from threadpoolctl import threadpool_limits

from vgjax import chunks, products
from vgjax.checks import known, positive_integer
from vgjax.exponents import LN2, ZERO, Scaled, clipped, normalize
from vgjax.flow import direction, first_state, joined, push_all, section, state_shapes, states_before, states_reading
from vgjax.initializers import Scales
from vgjax.layers import Layer, Parameters, Stream, by_stage, fed, parameter_dtype, scan_layers, stem_layer
from vgjax.networks import Network, check_input, check_scales
from vgjax.products import Product
from vgjax.results import Spectrum

DENSE = 2**33
"""Bytes that dense Jacobians may take by default: 8 GiB."""


# --- the whole spectrum ---------------------------------------------------------------------------------------------


def log_singular_values(
    network: Network,
    parameters: Parameters,
    scales: Scales,
    x: ArrayLike,
    depths: Sequence[int] | None = None,
    *,
    start: int = 0,
    from_input: bool = False,
    top: int | None = None,
    dtype: str | None = None,
    memory: int = DENSE,
) -> Spectrum:
    """ln of the singular values of J_{m<-l}, the Jacobian from state l to state m, at a set of depths m.

    The product is restored to orthonormal columns, a graded scale and well-conditioned rows behind every layer, and
    one-sided Jacobi rotations finish it; right to rounding times the condition number of a layer, however far the
    spectrum spans. Memory does not grow with depth.

    Args:
        network, parameters, scales: as for `forward`.
        x: one input.
        depths: the m, each from ``start`` to L (left out: L alone).
        start: l, the state that the product begins at.
        from_input: begin at the input x, before the stem, instead of at a state.
        top: only so many of the largest, for states too large for dense Jacobians: by block power iteration, forward
            and back, until none of them moves by more than 1e-6 (float32: 1e-4); slow where the spectrum is flat.
        dtype: ``"float32"`` or ``"float64"``: what layers and products are computed in (left out: the parameters'
            own), for this call only. The network stays the one that was drawn, in float32 or not.
        memory: bytes that dense Jacobians may take.

    Returns:
        `Spectrum`, values of shape ``(depths, n)`` or ``(depths, top)``, descending: one for each of the n directions
        at the start, -inf where it is lost (dead units, a narrower layer, what normalization removes). What a layer's
        Jacobian, its columns taken at equal size, shrinks to 2^-40 of its largest (float32: 2^-18, which a Gaussian
        layer does by chance once in 3e5 / sqrt(n) layers) counts as lost.

    Raises:
        ValueError: unknown scales, an input of the wrong shape, depths out of range, Jacobians larger than ``memory``,
            or a layer whose Jacobian is not finite.

    Source: Loh et al. 1989, "Stable matrix-multiplication algorithms for low-temperature numerical simulations of
    fermions"; Demmel & Veselic 1992, "Jacobi's method is more accurate than QR".
    """
    wanted = checked_depths(network, depths, start, from_input)
    stop = max(wanted[-1], start + 1)
    with _from(network, parameters, scales, x, dtype, (start, stop), from_input) as origin:
        if top is None or positive_integer("top", top) >= origin.size:
            check_memory(network, origin.size, len(wanted), origin.state.value.dtype, memory)
            found = finished(kept_products(*origin, origin.rotation(), tuple(m - start for m in wanted)))
        else:
            if wanted[0] == start:
                raise ValueError(f"depths must lie beyond the start, {start}, for the top {top}, got {wanted[0]}")
            found = _leading(origin, [m - start for m in wanted], top)
    checked(found._replace(first_infinite=found.first_infinite + start), stop)
    left = found.left_range + start if found.left_range <= stop - start else network.depth + 1
    return Spectrum(np.asarray(wanted), found.log_singular_values, found.condition, left)


class Found(NamedTuple):
    """One network's spectrum, in numpy.

    Attributes:
        log_singular_values: shape ``(depths, n)``.
        condition: largest condition number of a layer, its column sizes apart, about.
        left_range: as for `Push`.
        first_infinite: first layer whose Jacobian is not finite; a depth past the last if there is none.
    """

    log_singular_values: np.ndarray
    condition: float
    left_range: int
    first_infinite: int


class Origin(NamedTuple):
    """Where a product begins: what it runs through, and the first state.

    Attributes:
        parameters, scales: of the blocks behind it.
        state: not normalized.
        stem: the stem, where the product begins before it, and the input.
    """

    parameters: Parameters
    scales: Scales
    state: Scaled
    stem: tuple[Layer, Array] | None

    @property
    def size(self) -> int:
        """Directions at the start."""
        return self.stem[1].size if self.stem else self.state.value.size

    def rotation(self, count: int | None = None) -> Array:
        """Random orthonormal columns there, shape ``(size, count)``."""
        return products.orthonormal(self.size, count or self.size, self.state.value.dtype)


class Kept(NamedTuple):
    """What is left of the products at the depths that were asked for.

    Attributes:
        exponents, mixing: of the `Product`, shapes ``(depths, n)`` and ``(depths, n, n)``.
        condition, left_range, first_infinite: as for `Found`.
    """

    exponents: Array
    mixing: Array
    condition: Array
    left_range: Array
    first_infinite: Array


@functools.partial(jax.jit, static_argnames=("depths",))
def kept_products(
    parameters: Parameters,
    scales: Scales,
    state: Scaled,
    stem: tuple[Layer, Array] | None,
    rotation: Array,
    depths: tuple[int, ...],
) -> Kept:
    """The product at each depth, from one pass; unbatched, for `vmap` or `lax.map` over scales."""
    network, dtype = parameters.network, state.value.dtype
    size = len(rotation)
    product, worst = products.identity(rotation), jnp.ones((), dtype)
    if stem:
        product, worst = products.times(jacobian(*stem), product)
    nowhere = len(depths)
    slots = np.full(network.depth + 1, nowhere)
    slots[list(depths)] = np.arange(nowhere)
    kept = (jnp.full((nowhere, size), ZERO, jnp.int32), jnp.zeros((nowhere, size, size), dtype))

    def keep(kept: tuple[Array, Array], product: Product, slot: Array) -> tuple[Array, Array]:
        rank = len(product.exponents)
        exponents, mixing = (a.at[slot, :rank].set(b, mode="drop") for a, b in zip(kept, product[1:], strict=True))
        return exponents, mixing

    def visit(layer: Layer, carry: Any, here: tuple[Array, Array]) -> tuple[Any, Array]:
        state, product, kept, worst, infinite = carry
        number, slot = here
        state, log_norm = normalize(state)
        matrix = jacobian(layer, clipped(state))
        bad = ~jnp.all(jnp.isfinite(matrix))
        infinite = jnp.where(bad, jnp.minimum(infinite, number), infinite)
        product, condition = products.times(jnp.where(bad, 0, matrix), product)
        product = products.lifted(product, layer.lift(state))
        return (
            layer.step(state),
            product,
            keep(kept, product, slot),
            jnp.maximum(worst, condition),
            infinite,
        ), log_norm

    extras = by_stage(network, (jnp.arange(1, network.depth + 1), jnp.asarray(slots[1:])))
    carry = (state, product, keep(kept, product, jnp.asarray(slots[0])), worst, jnp.asarray(network.depth + 1))
    (state, _, kept, worst, infinite), logs = scan_layers(parameters, scales, carry, visit, extras=extras)
    left_range = states_reading(network, joined([*logs, normalize(state)[1][None]]))[1]
    return Kept(kept[0], kept[1], worst, left_range, infinite)


def finished(kept: Kept) -> Found:
    """The singular values of one network's products, on the host in float64."""
    rows = zip(np.asarray(kept.exponents), np.asarray(kept.mixing), strict=True)
    values = np.stack([products.log_singular_values(*row) for row in rows])
    return Found(values, float(kept.condition), int(kept.left_range), int(kept.first_infinite))


def checked(found: Found, last: int, whose: str = "") -> Found:
    """The same, if every Jacobian up to the last layer is finite; else the layer is named."""
    if found.first_infinite <= last:
        raise ValueError(
            f"the Jacobian of every layer must be finite, got a NaN or an infinity at layer "
            f"{found.first_infinite}{whose}"
        )
    return found


def jacobian(layer: Layer, h: Array) -> Array:
    """The Jacobian of a layer at a state, both flattened, shape ``(outputs, inputs)``; column by column in chunks."""
    push = jax.linearize(layer, h)[1]
    unit = jnp.eye(h.size, dtype=h.dtype).reshape(-1, *h.shape)
    return _columns(push, unit)


def _columns(linear: Callable[[Array], Array], rows: Array) -> Array:
    """A linear map of many states, shape ``(count, *state)``, as columns ``(outputs, count)``."""
    count = len(rows)
    # A layer may hold a few arrays of the state's size for every column.
    size = chunks.chunk_size(count, 8 * rows[0].size * rows.dtype.itemsize, chunks.MEMORY)
    found = jax.vmap(linear)(rows) if size == count else lax.map(linear, rows, batch_size=size)
    return found.reshape(count, -1).T


# --- the largest of them --------------------------------------------------------------------------------------------

_MORE = 8  # columns beyond those that were asked for
_MOST_ROUNDS = 100


def _leading(origin: Origin, depths: list[int], top: int) -> Found:
    """The largest singular values at each depth, by block power iteration."""
    tolerance = 1e-6 if origin.state.value.dtype == jnp.float64 else 1e-4
    none = origin.parameters.network.depth + 1
    values, worst, left, infinite = [], 1.0, none, none
    for depth in depths:
        parameters, scales = section(origin.parameters, origin.scales, 0, depth)
        to = origin._replace(parameters=parameters, scales=scales)
        basis = origin.rotation(min(top + _MORE, origin.size))
        before = np.full(top, np.nan)
        for _ in range(_MOST_ROUNDS):
            there, condition, first, bad = _there(*to, basis)
            now = products.log_singular_values(np.asarray(there.exponents), np.asarray(there.mixing))[:top]
            moved = np.abs(np.nan_to_num(now, neginf=0) - np.nan_to_num(before, neginf=0))
            if bad <= depth or np.all((moved <= tolerance) & (np.isinf(now) == np.isinf(before))):
                break
            before, basis = now, _back(*to, there.basis)
        values.append(now)
        worst = max(worst, float(condition))
        left, infinite = (min(a, int(b) if b <= depth else none) for a, b in ((left, first), (infinite, bad)))
    return Found(np.stack(values), worst, left, infinite)


@jax.jit
def _there(
    parameters: Parameters, scales: Scales, state: Scaled, stem: tuple[Layer, Array] | None, columns: Array
) -> tuple[Product, Array, Array, Array]:
    """The product that begins with some columns, without any dense Jacobian."""
    dtype = state.value.dtype

    def pushed(layer: Layer, h: Array, product: Product) -> tuple[Product, Array]:
        push = jax.linearize(layer, h)[1]
        return products.restored(product, _columns(push, product.basis.T.reshape(-1, *h.shape)))

    def visit(layer: Layer, carry: Any, number: Array) -> tuple[Any, Array]:
        state, product, worst, infinite = carry
        state, log_norm = normalize(state)
        after, condition = pushed(layer, clipped(state), product)
        after = products.lifted(after, layer.lift(state))
        infinite = jnp.where(jnp.all(jnp.isfinite(after.basis)), infinite, jnp.minimum(infinite, number))
        return (layer.step(state), after, jnp.maximum(worst, condition), infinite), log_norm

    product, worst = products.start(columns), jnp.ones((), dtype)
    if stem:
        product, worst = pushed(*stem, product)
    carry = (state, product, worst, jnp.asarray(parameters.network.depth + 1))
    carry, logs = scan_layers(
        parameters,
        scales,
        carry,
        visit,
        extras=by_stage(parameters.network, jnp.arange(1, parameters.network.depth + 1)),
    )
    left_range = states_reading(parameters.network, joined([*logs, normalize(carry[0])[1][None]]))[1]
    return carry[1], carry[2], left_range, carry[3]


@jax.jit
def _back(
    parameters: Parameters, scales: Scales, state: Scaled, stem: tuple[Layer, Array] | None, columns: Array
) -> Array:
    """The columns that the transposed product makes of some, orthonormal."""

    def pulled(layer: Layer, h: Array, product: Product) -> Product:
        out, pull = jax.vjp(layer, h)
        moved = _columns(lambda v: pull(v)[0], product.basis.T.reshape(-1, *out.shape))
        return products.restored(product, moved)[0]

    def visit(layer: Layer, product: Product, state: Scaled) -> tuple[Product, None]:
        return pulled(layer, clipped(state), product), None

    states = states_before(parameters, scales, state)[0]
    product, _ = scan_layers(parameters, scales, products.start(columns), visit, extras=states, reverse=True)
    return (pulled(*stem, product) if stem else product).basis


# --- Lyapunov exponents, determinants, single layers, norms ---------------------------------------------------------


class Lyapunov(NamedTuple):
    """Growth rates along the depth, in nats per layer.

    Attributes:
        log_stretch: ln of what each layer adds to each exponent, shape ``(layers, count)``.
        discarded: how many layers at the start count as transient.
    """

    log_stretch: np.ndarray
    discarded: int

    @property
    def exponents(self) -> np.ndarray:
        """Mean over the layers behind the transient, shape ``(count,)``; descending, as far as they have converged."""
        return self.log_stretch[self.discarded :].mean(axis=0)

    @property
    def standard_error(self) -> np.ndarray:
        """Of the exponents, from ten stretches of layers (successive layers are not independent): itself right to a
        quarter or so; NaN below 20 layers."""
        rest = self.log_stretch[self.discarded :]
        if len(rest) < 20:
            return np.full(rest.shape[1], np.nan)
        means = np.stack([part.mean(axis=0) for part in np.array_split(rest, 10)])
        return means.std(axis=0, ddof=1) / np.sqrt(10)

    @property
    def running(self) -> np.ndarray:
        """The exponents as they would be after each layer, shape ``(layers - discarded, count)``: whether they have
        converged."""
        rest = self.log_stretch[self.discarded :]
        return np.cumsum(rest, axis=0) / np.arange(1, len(rest) + 1)[:, None]


def lyapunov_exponents(
    network: Network,
    parameters: Parameters,
    scales: Scales,
    x: ArrayLike,
    count: int | None = None,
    *,
    discard: int | None = None,
    dtype: str | None = None,
) -> Lyapunov:
    """Lyapunov exponents: the rates lim (1/L) ln s at which directions grow, by a running QR decomposition.

    Where `log_singular_values` gives the spectrum of one finite product, these are its limit per layer: at a finite
    depth a different number (off by several nats at 300 layers). An exponent further below the largest than the digits
    of the dtype (16 nats in float32, 36 in float64) is rounding.

    Args:
        network, parameters, scales, x, dtype: as for `log_singular_values`; all states of one shape.
        count: how many of the largest (left out: all).
        discard: layers at the start that count as transient (left out: a tenth).

    Returns:
        `Lyapunov`.

    Raises:
        ValueError: unknown scales, an input of the wrong shape, states of several shapes, or a discard that leaves no
            layer.

    Source: Benettin et al. 1980, "Lyapunov characteristic exponents for smooth dynamical systems".
    """
    discard = network.depth // 10 if discard is None else discard
    if isinstance(discard, bool) or not isinstance(discard, (int, np.integer)) or not 0 <= discard < network.depth:
        raise ValueError(f"discard must be a whole number from 0 to {network.depth - 1}, got {discard!r}")
    _check_one_shape(network)
    with _from(network, parameters, scales, x, dtype) as origin:
        size = origin.size if count is None else min(positive_integer("count", count), origin.size)
        return Lyapunov(np.asarray(_stretches(*origin[:3], origin.rotation(size)), float), int(discard))


@jax.jit
def _stretches(parameters: Parameters, scales: Scales, state: Scaled, basis: Array) -> Array:
    """ln |R_ii| of every layer, shape ``(depth, count)``."""

    def visit(layer: Layer, carry: tuple[Scaled, Array], _: None) -> tuple[tuple[Scaled, Array], Array]:
        state, basis = normalize(carry[0])[0], carry[1]
        h = clipped(state)
        moved = _columns(jax.linearize(layer, h)[1], basis.T.reshape(-1, *h.shape))
        basis, r = jnp.linalg.qr(moved)
        return (layer.step(state), basis), jnp.log(jnp.abs(jnp.diagonal(r))) + LN2 * layer.lift(state)

    return joined(scan_layers(parameters, scales, (state, basis), visit)[1])


def log_determinant(
    network: Network, parameters: Parameters, scales: Scales, x: ArrayLike, *, dtype: str | None = None
) -> np.ndarray:
    """ln |det J_{l<-0}| at every depth l: the sum over layers of their own, each by an LU decomposition.

    Args:
        network, parameters, scales, x, dtype: as for `log_singular_values`; all states of one shape.

    Returns:
        Shape ``(depth + 1,)``, float64; -inf from the first singular layer on.

    Raises:
        ValueError: as `lyapunov_exponents`.
    """
    return np.concatenate([[0.0], np.cumsum(_single_layers(network, parameters, scales, x, dtype, _log_dets))])


def layer_singular_values(
    network: Network, parameters: Parameters, scales: Scales, x: ArrayLike, *, dtype: str | None = None
) -> np.ndarray:
    """ln of the singular values of every single layer's Jacobian.

    Args:
        network, parameters, scales, x, dtype: as for `log_singular_values`; all states of one shape.

    Returns:
        Shape ``(depth, n)``, descending along the last axis; -inf for exact zeros.

    Raises:
        ValueError: as `lyapunov_exponents`.
    """
    return _single_layers(network, parameters, scales, x, dtype, _log_values)


def _single_layers(
    network: Network,
    parameters: Parameters,
    scales: Scales,
    x: ArrayLike,
    dtype: str | None,
    f: Callable[[Parameters, Scales, Scaled], Array],
) -> np.ndarray:
    """One of the functions below, of every layer of a checked network."""
    _check_one_shape(network)
    with _from(network, parameters, scales, x, dtype) as origin:
        check_memory(network, origin.size, 1, origin.state.value.dtype, DENSE)
        return np.asarray(f(*origin[:3]), float)


@jax.jit
def layer_jacobians(parameters: Parameters, scales: Scales, state: Scaled) -> Array:
    """The Jacobians of all layers, shape ``(depth, n, n)``."""
    return _of_layers(parameters, scales, state, lambda matrix, _: matrix)


@jax.jit
def _log_dets(parameters: Parameters, scales: Scales, state: Scaled) -> Array:
    return _of_layers(
        parameters, scales, state, lambda matrix, lift: jnp.linalg.slogdet(matrix)[1] + len(matrix) * lift
    )


@jax.jit
def _log_values(parameters: Parameters, scales: Scales, state: Scaled) -> Array:
    def log_values(matrix: Array, lift: Array) -> Array:
        return jnp.log(jnp.linalg.svd(matrix, compute_uv=False)) + lift

    return _of_layers(parameters, scales, state, log_values)


def _of_layers(parameters: Parameters, scales: Scales, state: Scaled, f: Callable[[Array, Array], Array]) -> Array:
    """f of every layer's Jacobian and of ln of what is left to multiply it by, with a leading layer axis."""

    def visit(layer: Layer, state: Scaled, _: None) -> tuple[Scaled, Array]:
        state = normalize(state)[0]
        return layer.step(state), f(jacobian(layer, clipped(state)), LN2 * layer.lift(state))

    return joined(scan_layers(parameters, scales, state, visit)[1])


class Frobenius(NamedTuple):
    """ln of the Frobenius norm of J_{l<-0} at every depth.

    Attributes:
        log_norm: shape ``(depth + 1,)``; half of ln of the (estimated) sum of s^2.
        standard_error: of log_norm, from the spread of the probes; 0 where it is exact.
    """

    log_norm: np.ndarray
    standard_error: np.ndarray


def log_frobenius(
    network: Network,
    parameters: Parameters,
    scales: Scales,
    x: ArrayLike,
    probes: int | None = None,
    *,
    key: Array | None = None,
) -> Frobenius:
    """ln ||J_{l<-0}||_F at every depth: exactly, or by Hutchinson's estimate, the mean of ||J u||^2 over random u.

    Args:
        network, parameters, scales, x: as for `forward`.
        probes: how many random directions; left out, every unit vector is pushed (the exact norm, n tangents).
        key: draws the directions (default ``jax.random.key(0)``).

    Returns:
        `Frobenius`.

    Raises:
        ValueError: unknown scales, an input of the wrong shape, or fewer than 2 probes.

    Source: Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix".
    """
    check_scales(network, scales)
    check_input(network, x)
    shape = state_shapes(network)[0]
    size = int(np.prod(shape))
    if probes is not None and positive_integer("probes", probes) < 2:
        raise ValueError(f"probes must be at least 2, got {probes}")
    key = jax.random.key(0) if key is None else key

    def directions(taken: Array) -> Array:  # E u u^T = 1, as for the unit vectors together
        if probes is None:
            return jax.nn.one_hot(taken, size).reshape(-1, *shape)
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(taken)
        return jax.vmap(lambda k: direction(k, shape, jnp.float32))(keys) * np.sqrt(size)

    count, x = probes or size, jnp.asarray(x)
    logs = [
        np.asarray(_push_all(parameters, scales, x, directions(jnp.asarray(taken))).log_gain, float)[:new]
        for taken, new in chunks.chunks(count, chunks.chunk_size(count, 32 * size, chunks.MEMORY))
    ]
    squares = 2 * np.concatenate(logs)
    total = np.logaddexp.reduce(squares)
    if probes is None:
        return Frobenius(total / 2, np.zeros(network.depth + 1))
    total -= np.log(probes)
    with np.errstate(invalid="ignore"):
        spread = np.exp(squares - total).std(axis=0, ddof=1) / np.sqrt(probes)
    return Frobenius(total / 2, np.nan_to_num(spread) / 2)


_push_all = jax.jit(push_all)


# --- the edge -------------------------------------------------------------------------------------------------------


def checked_depths(network: Network, depths: Sequence[int] | None, start: int, from_input: bool) -> list[int]:
    """The depths as a list, each from the start to L and none twice."""
    if isinstance(start, bool) or not isinstance(start, (int, np.integer)) or not 0 <= start < network.depth:
        raise ValueError(f"start must be a whole number from 0 to {network.depth - 1}, got {start!r}")
    if from_input and start:
        raise ValueError(f"a product begins at the input or at a state, got from_input and start = {start}")
    wanted = [network.depth] if depths is None else list(depths)
    for m in wanted:
        if isinstance(m, bool) or not isinstance(m, (int, np.integer)) or not start <= m <= network.depth:
            raise ValueError(f"depths must be whole numbers from {start} to {network.depth}, got {m!r}")
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"depths must hold at least one depth, and none twice, got {wanted}")
    return sorted(int(m) for m in wanted)


def bytes_needed(network: Network, size: int, depths: int, dtype: Any) -> int:
    """About what the dense Jacobians of one network take: a few at a time, and what is kept at each depth."""
    largest = max(size, *(int(np.prod(shape)) for shape in state_shapes(network)))
    return np.dtype(dtype).itemsize * (8 * largest * largest + depths * size * size)


def check_memory(network: Network, size: int, depths: int, dtype: Any, memory: int) -> None:
    """Raise ValueError if dense Jacobians would take more than that many bytes."""
    largest = max(size, *(int(np.prod(shape)) for shape in state_shapes(network)))
    needed = bytes_needed(network, size, depths, dtype)
    if needed > memory:
        raise ValueError(
            f"dense Jacobians must fit into memory = {memory / 2**30:.3g} GiB, got a state of {largest} numbers, for "
            f"which they take {needed / 2**30:.3g} GiB; take the largest singular values (top=), or the norm alone "
            f"(log_frobenius with probes)"
        )


def _check_one_shape(network: Network) -> None:
    if len(set(state_shapes(network))) > 1:
        raise ValueError(f"all states must have one shape, got {sorted(set(state_shapes(network)))}")


@contextlib.contextmanager
def computing(parameters: Parameters, dtype: str | None) -> Iterator[Any]:
    """The dtype to compute in, switched on for what is done inside, with LAPACK on one thread.

    Many small decompositions on several threads cost up to 20 times more on a busy machine.
    """
    kind = jnp.dtype(parameter_dtype(parameters) if dtype is None else known("dtype", dtype, ["float32", "float64"]))
    if kind != parameter_dtype(parameters) and any(isinstance(own, Stream) for own in parameters.stages):
        raise ValueError(f"streamed parameters must be computed in their own dtype, got {kind.name}")
    with jax.enable_x64(kind == jnp.float64), threadpool_limits(1, user_api="blas"):
        yield kind


@contextlib.contextmanager
def _from(
    network: Network,
    parameters: Parameters,
    scales: Scales,
    x: ArrayLike,
    dtype: str | None,
    part: tuple[int, int] | None = None,
    from_input: bool = False,
) -> Iterator[Origin]:
    """Where the product begins, in the dtype that is switched on for what is done inside."""
    check_scales(network, scales)
    check_input(network, x)
    with computing(parameters, dtype) as kind:
        yield origin(parameters, scales, jnp.asarray(x), part or (0, network.depth), from_input, kind)


@functools.partial(jax.jit, static_argnames=("part", "from_input", "dtype"))
def origin(
    parameters: Parameters, scales: Scales, x: Array, part: tuple[int, int], from_input: bool, dtype: Any
) -> Origin:
    """Where a product begins, at a state or at the input (if there is a stem), and the blocks it runs through."""
    start, stop = part
    parameters = jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, parameters)
    stem = stem_layer(parameters, scales)
    state, parameters = first_state(parameters, scales, x), fed(parameters, x)
    state = state._replace(value=state.value.astype(dtype))
    before_stem = (stem, x.astype(dtype)) if stem and from_input else None
    if start:
        state = states_before(*section(parameters, scales, 0, start), state)[1]
    return Origin(*section(parameters, scales, start, stop), state, before_stem)
