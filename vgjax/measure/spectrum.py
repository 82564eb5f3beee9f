"""Jacobian spectra: the true log singular values of a product of layer Jacobians, at any depth.

A singular value decomposition of the product itself is wrong early: at 20 Gaussian layers even float64 has lost the
bottom of the spectrum. Here the product is a graded one (`vgjax.measure.graded`), and every singular value is right to
rounding. All logarithms are natural; -inf is a direction that is lost exactly, and nothing else.

The Jacobian of a layer is what its block's own derivative says, so nothing here knows what the blocks are.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from vgjax.checks import ArrayLike, kinds, nan_is_data, positive_integer, whole_numbers
from vgjax.floatexp import ZERO, FloatExp
from vgjax.initializers import Scales
from vgjax.measure import graded
from vgjax.measure.graded import UDT
from vgjax.measure.jacobian import DENSE, Origin, check_memory, columns, computing_from, jacobian
from vgjax.networks.layer import Layer
from vgjax.networks.layers import Layers, by_stage
from vgjax.networks.network import Network
from vgjax.networks.parameters import Parameters
from vgjax.values import by_content


@by_content
@dataclass(frozen=True)
class Spectrum:
    """Singular values of the Jacobian of one network, at a set of depths.

    Attributes:
        depths: the m of J_{m<-l}, shape ``(depths,)``.
        log_singular_values: ln s, descending, shape ``(depths, n)``; -inf for a direction that is lost, NaN from
            ``first_inexact_layer`` on.
        condition: about the largest condition number of a single layer, unequal sizes of its columns apart: ln s is
            right to about this many roundings of the dtype.
        first_inexact_layer: as for `Push`.
    """

    depths: np.ndarray
    log_singular_values: np.ndarray
    condition: float
    first_inexact_layer: int

    @property
    def rank(self) -> np.ndarray:
        """How many directions are known not to be lost, shape ``(depths,)``; 0 where none are known."""
        return spectral_statistics(self.log_singular_values)["rank"]

    @property
    def log_frobenius(self) -> np.ndarray:
        """ln of the Frobenius norm: half of ln of the sum of s^2, shape ``(depths,)``."""
        return spectral_statistics(self.log_singular_values)["log_frobenius"]

    @property
    def log_condition(self) -> np.ndarray:
        """ln of the largest over the smallest, shape ``(depths,)``; inf where a direction is lost."""
        return spectral_statistics(self.log_singular_values)["log_condition"]

    @property
    def log_determinant(self) -> np.ndarray:
        """The sum of ln s, shape ``(depths,)``: ln |det J| where J is square; -inf where a direction is lost."""
        return spectral_statistics(self.log_singular_values)["log_determinant"]

    @property
    def participation(self) -> np.ndarray:
        """(sum s^2)^2 / sum s^4, shape ``(depths,)``: about how many directions carry the signal; NaN where none do."""
        return spectral_statistics(self.log_singular_values)["participation"]


def spectral_statistics(log_singular_values: np.ndarray) -> dict[str, np.ndarray]:
    """What can be read off log singular values, shape ``(..., n)`` and descending: the statistics of `Spectrum`, shape
    ``(...)``."""
    values = log_singular_values
    log_frobenius = np.logaddexp.reduce(2 * values, axis=-1) / 2
    with np.errstate(invalid="ignore"):
        participation = np.exp(4 * log_frobenius - np.logaddexp.reduce(4 * values, axis=-1))
    lowest = values[..., -1]
    return {
        "rank": np.isfinite(values).sum(axis=-1),
        "log_frobenius": log_frobenius,
        "log_condition": np.where(np.isneginf(lowest), np.inf, values[..., 0] - np.nan_to_num(lowest)),
        "log_determinant": values.sum(axis=-1),
        "participation": participation,
    }


# --- the whole spectrum ---------------------------------------------------------------------------------------------


@kinds
@nan_is_data
def log_singular_values(
    parameters: Parameters,
    scales: Scales,
    x: ArrayLike,
    depths: Sequence[int] | None = None,
    *,
    from_layer: int = 0,
    from_input: bool = False,
    top: int | None = None,
    dtype: str | None = None,
    max_bytes: int = DENSE,
) -> Spectrum:
    """ln of the singular values of J_{m<-l}, the Jacobian from state l to state m, at a set of depths m.

    The product is restored to orthonormal columns, a graded scale and well-conditioned rows behind every layer, and
    one-sided Jacobi rotations finish it; right to rounding times the condition number of a layer, however far the
    spectrum spans. Memory does not grow with depth.

    Args:
        parameters, scales: as for `forward`.
        x: one input.
        depths: the m, each from ``from_layer`` to L (left out: L alone).
        from_layer: l, the state that the product begins at.
        from_input: begin at the input x, before the stem, instead of at a state.
        top: only so many of the largest, for states too large for dense Jacobians: by block power iteration, forward
            and back, until none of them moves by more than 1e-6 (float32: 1e-4); slow where the spectrum is flat, and
            short of the largest there by more than that (4e-3 for one of 50,000 values evenly spread).
        dtype: ``"float32"`` or ``"float64"``: what layers and products are computed in (left out: the parameters'
            own), for this call only. The network stays the one that was drawn, in float32 or not.
        max_bytes: that dense Jacobians may take; more is refused.

    Returns:
        `Spectrum`, values of shape ``(depths, n)`` or ``(depths, top)``, descending: one for each of the n directions
        at the start, -inf where it is lost (dead units, a narrower layer, what normalization removes). What a layer's
        Jacobian, its columns taken at equal size, shrinks to 2^-40 of its largest (float32: 2^-18, which a Gaussian
        layer does by chance once in 3e5 / sqrt(n) layers) counts as lost.

    Raises:
        ValueError: unknown scales, an input of the wrong shape, depths out of range, Jacobians larger than
            ``max_bytes``, or a layer whose Jacobian is not finite.

    Source: Loh et al. 1989, "Stable matrix-multiplication algorithms for low-temperature numerical simulations of
    fermions"; Demmel & Veselic 1992, "Jacobi's method is more accurate than QR".
    """
    wanted = checked_depths(parameters.network, depths, from_layer, from_input)
    stop = max(wanted[-1], from_layer + 1)
    with computing_from(parameters, scales, x, dtype, (from_layer, stop), from_input) as origin:
        if top is None or positive_integer("top", top) >= origin.size:
            check_memory(parameters.network, origin.size, len(wanted), origin.state.value.dtype, max_bytes)
            kept = kept_products(origin, origin.rotation(), tuple(m - from_layer for m in wanted))
            found = finished(jax.tree.map(np.asarray, kept))
        else:
            if wanted[0] == from_layer:
                rule = f"depths must lie beyond from_layer = {from_layer} for the top {top}"
                raise ValueError(f"{rule}, got {wanted[0]}")
            found = _leading(origin, [m - from_layer for m in wanted], top)
    check_finite(found.first_infinite + from_layer, stop)
    first = found.first_inexact_layer
    first = first + from_layer if first <= stop - from_layer else parameters.network.depth + 1
    return Spectrum(np.asarray(wanted), found.log_singular_values, found.condition, first)


class Found(NamedTuple):
    """One network's spectrum, in numpy.

    Attributes:
        log_singular_values: shape ``(depths, n)``.
        condition: largest condition number of a layer, its column sizes apart, about.
        first_inexact_layer: as for `Push`.
        first_infinite: first layer that is not finite, or whose Jacobian is not; past the last if there is none.
    """

    log_singular_values: np.ndarray
    condition: float
    first_inexact_layer: int
    first_infinite: int


class Kept(NamedTuple):
    """What is left of the products at the depths that were asked for.

    Attributes:
        exponents, mixing: of the `UDT`, shapes ``(depths, n)`` and ``(depths, n, n)``.
        exact: whether they mean something, shape ``(depths,)``.
        condition, first_inexact_layer, first_infinite: as for `Found`.
    """

    exponents: Array
    mixing: Array
    exact: Array
    condition: Array
    first_inexact_layer: Array
    first_infinite: Array


class _Running(NamedTuple):
    """What the pass carries beside the state."""

    product: UDT
    kept: tuple[Array, Array]
    condition: Array
    first_infinite: Array


@functools.partial(jax.jit, static_argnames=("depths",))
def kept_products(origin: Origin, rotation: Float[Array, "n n"], depths: tuple[int, ...]) -> Kept:
    """The product at each depth, from one pass; unbatched, for `vmap` or `lax.map` over scales."""
    layers, dtype, size = origin.layers, origin.state.value.dtype, len(rotation)
    network = layers.network
    product, worst = graded.identity(rotation), jnp.ones((), dtype)
    if origin.stem:
        product, worst = graded.times(jacobian(*origin.stem), product)
    nowhere = len(depths)
    slots = np.full(network.depth + 1, nowhere)
    slots[list(depths)] = np.arange(nowhere)

    def keep(kept: tuple[Array, Array], product: UDT, slot: Array) -> tuple[Array, Array]:
        rank = len(product.exponents)
        exponents, mixing = (a.at[slot, :rank].set(b, mode="drop") for a, b in zip(kept, product[1:], strict=True))
        return exponents, mixing

    def visit(layer: Layer, state: FloatExp, now: _Running, here: tuple[Array, Array]) -> tuple[_Running, None]:
        number, slot = here
        h, shift = layer.place(state)
        matrix = jacobian(layer, h)
        bad = ~jnp.all(jnp.isfinite(matrix))
        infinite = jnp.where(bad, jnp.minimum(now.first_infinite, number), now.first_infinite)
        product, condition = graded.times(jnp.where(bad, 0, matrix), now.product)
        product = graded.lifted(product, shift)
        condition = jnp.maximum(now.condition, condition)
        return _Running(product, keep(now.kept, product, slot), condition, infinite), None

    empty = (jnp.full((nowhere, size), ZERO, jnp.int32), jnp.zeros((nowhere, size, size), dtype))
    start = _Running(product, keep(empty, product, jnp.asarray(slots[0])), worst, jnp.asarray(network.depth + 1))
    extras = by_stage(network, (jnp.arange(1, network.depth + 1), jnp.asarray(slots[1:])))
    walked = layers.walk(origin.state, visit, start, extras=extras)
    end, found = walked.carry, walked.exactness
    infinite = jnp.minimum(end.first_infinite, found.first_nan_layer.astype(end.first_infinite.dtype))
    exact = jnp.asarray(depths, jnp.int32) < found.layers
    exponents, mixing = end.kept
    return Kept(exponents, mixing, exact, end.condition, found.first_inexact_layer, infinite)


def finished(kept: Kept) -> Found:
    """The singular values of one network's products, on the host in float64."""
    rows = zip(np.asarray(kept.exponents), np.asarray(kept.mixing), strict=True)
    values = np.stack([graded.log_singular_values(*row) for row in rows])
    values[~np.asarray(kept.exact)] = np.nan
    return Found(values, float(kept.condition), int(kept.first_inexact_layer), int(kept.first_infinite))


def check_finite(first_infinite: int, last: int, whose: str = "") -> None:
    """Raise ValueError, naming the layer, unless every Jacobian up to the last layer is finite."""
    if first_infinite <= last:
        rule = "the Jacobian of every layer must be finite, got a NaN or an infinity at layer"
        raise ValueError(f"{rule} {first_infinite}{whose}")


def checked_depths(network: Network, depths: Sequence[int] | None, from_layer: int, from_input: bool) -> list[int]:
    """The depths as a list, each from the start to L and none twice."""
    if isinstance(from_layer, bool) or not isinstance(from_layer, (int, np.integer)):
        raise ValueError(f"from_layer must be a whole number, got {from_layer!r}")
    if not 0 <= from_layer < network.depth:
        raise ValueError(f"from_layer must be a whole number from 0 to {network.depth - 1}, got {from_layer!r}")
    if from_input and from_layer:
        raise ValueError(f"a product begins at the input or at a state, got from_input and from_layer = {from_layer}")
    wanted = whole_numbers("depths", [network.depth] if depths is None else depths, from_layer, network.depth)
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"depths must hold at least one depth, and none twice, got {wanted}")
    return sorted(wanted)


# --- the largest of them --------------------------------------------------------------------------------------------

_MORE = 8  # columns beyond those that were asked for: the iteration converges like (s_{top + 8} / s_top)^2 a round
_MOST_ROUNDS = 100  # a flat spectrum never converges; its values are right by then all the same


def _leading(origin: Origin, depths: list[int], top: int) -> Found:
    """The largest singular values at each depth, by block power iteration."""
    tolerance = 1e-6 if origin.state.value.dtype == jnp.float64 else 1e-4
    none = origin.layers.network.depth + 1
    values, worst, first_inexact, first_infinite = [], 1.0, none, none
    for depth in depths:
        to = origin._replace(layers=origin.layers.section(0, depth))
        basis = origin.rotation(min(top + _MORE, origin.size))
        before = np.full(top, np.nan)
        for _ in range(_MOST_ROUNDS):
            there, condition, inexact, infinite = _there(to, basis)
            now = graded.log_singular_values(np.asarray(there.exponents), np.asarray(there.mixing))[:top]
            moved = np.abs(np.nan_to_num(now, neginf=0) - np.nan_to_num(before, neginf=0))
            if infinite <= depth or np.all((moved <= tolerance) & (np.isinf(now) == np.isinf(before))):
                break
            before, basis = now, _back(to, there.basis)
        values.append(np.where(inexact > depth, now, np.nan))
        worst = max(worst, float(condition))
        first_inexact = min(first_inexact, int(inexact) if inexact <= depth else none)
        first_infinite = min(first_infinite, int(infinite) if infinite <= depth else none)
    return Found(np.stack(values), worst, first_inexact, first_infinite)


@jax.jit
def _there(
    origin: Origin, basis: Float[Array, "n top"]
) -> tuple[UDT, Float[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """The product that begins with some columns, without any dense Jacobian."""
    layers, dtype = origin.layers, origin.state.value.dtype

    def pushed(layer: Layer, h: Array, product: UDT) -> tuple[UDT, Array]:
        push = jax.linearize(layer, h)[1]
        return graded.restored(product, columns(push, product.basis.T.reshape(-1, *h.shape)))

    def visit(layer: Layer, state: FloatExp, carry: Any, number: Array) -> tuple[Any, None]:
        product, worst, infinite = carry
        h, shift = layer.place(state)
        after, condition = pushed(layer, h, product)
        after = graded.lifted(after, shift)
        infinite = jnp.where(jnp.all(jnp.isfinite(after.basis)), infinite, jnp.minimum(infinite, number))
        return (after, jnp.maximum(worst, condition), infinite), None

    product, worst = graded.start(basis), jnp.ones((), dtype)
    if origin.stem:
        product, worst = pushed(*origin.stem, product)
    depth = layers.network.depth
    numbers = by_stage(layers.network, jnp.arange(1, depth + 1))
    walked = layers.walk(origin.state, visit, (product, worst, jnp.asarray(depth + 1)), extras=numbers)
    product, worst, infinite = walked.carry
    found = walked.exactness
    return (
        product,
        worst,
        found.first_inexact_layer,
        jnp.minimum(infinite, found.first_nan_layer.astype(infinite.dtype)),
    )


@jax.jit
def _back(origin: Origin, basis: Float[Array, "m top"]) -> Float[Array, "n top"]:
    """The columns that the transposed product makes of some, orthonormal."""

    def pulled(layer: Layer, h: Array, product: UDT) -> UDT:
        out, pull = jax.vjp(layer, h)
        moved = columns(lambda v: pull(v)[0], product.basis.T.reshape(-1, *out.shape))
        return graded.restored(product, moved)[0]

    def visit(layer: Layer, product: UDT, state: FloatExp) -> tuple[UDT, None]:
        return pulled(layer, layer.place(state)[0], product), None

    layers: Layers = origin.layers
    states = layers.walk(origin.state).reports
    product, _ = layers.scan(graded.start(basis), visit, extras=states, reverse=True)
    return (pulled(*origin.stem, product) if origin.stem else product).basis
