"""The naive reading: what plain floats, without exponents, make of the same gradient."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Shaped

from vgjax.checks import ArrayLike, RandomKey, kinds, known, nan_is_data
from vgjax.initializers import Scales
from vgjax.measure import losses
from vgjax.measure.gradients import _entering_before
from vgjax.networks.layer import Layer
from vgjax.networks.layers import bind, checked_input, joined
from vgjax.networks.parameters import Parameters, as_dtype

NAIVE_DTYPES = ("float32", "bfloat16", "float16")
"""The dtypes whose plain reading can be had."""


@kinds
@nan_is_data
def naive_reading(
    parameters: Parameters,
    scales: Scales,
    x: ArrayLike,
    y: ArrayLike | None = None,
    dtype: str = "float32",
    *,
    loss: losses.Loss | None = None,
    key: RandomKey | None = None,
) -> Bool[Array, "*batch layers"]:
    """Which layers' gradients a plain pass in a dtype loses: True where it reads ||dL/ds_l|| as 0 or not finite.

    The ordinary forward and backward pass run in that dtype, and each layer's norm taken there as the root of the sum
    of squares: float32 loses a gradient below about 1e-19, for the squares go first.

    Args:
        parameters, scales, x, y, loss, key: as for `gradient_flow`.
        dtype: float32, bfloat16 or float16.

    Returns:
        Booleans, shape ``(*batch, depth + 1)``.

    Raises:
        ValueError: an unknown dtype, or as `gradient_flow`.
    """
    known("dtype", dtype, NAIVE_DTYPES)
    x = checked_input(parameters, scales, x, batch=True)
    single = x.shape == parameters.network.input_shape
    loss, y = losses.targets(parameters.network, y, loss, key, 1 if single else len(x), single)
    lost = _of_batch(parameters, scales, x[None] if single else x, y, loss, dtype)
    return lost[0] if single else lost


def of_batch(
    parameters: Parameters,
    scales: Scales,
    xs: Shaped[Array, "batch *input"],
    ys: Shaped[Array, "batch *target"],
    loss: losses.Loss,
    dtype: str,
) -> Bool[Array, "batch layers"]:
    """`naive_reading` of a batch, unchecked; shape ``(batch, depth + 1)``."""
    cast: Any = functools.partial(as_dtype, dtype)

    def lost(g: Array) -> Array:
        norm = jnp.sqrt(jnp.sum(g * g))
        return (norm == 0) | ~jnp.isfinite(norm)

    def one(x: Array, y: Array) -> Array:
        layers = bind(parameters, scales, x)
        network, stem, head = parameters.network, layers.stem, layers.head

        def loss_of(read: Array) -> Array:
            outputs = jax.vmap(cast(head))(read) if head else read
            summed = losses.value(loss, outputs if network.every_step else outputs[0], cast(y))
            return summed / losses.mean_over(loss, network, len(xs))

        h = cast(stem)(cast(x)) if stem else cast(x)
        last, states = layers.scan(h, lambda layer, h, _: (cast(layer)(h), h))
        read = joined([*states, last[None]])[1:] if network.every_step else last[None]
        seeds = jax.grad(loss_of)(read)

        def visit(layer: Layer, g: Array, extra: tuple[Array, Array | None]) -> tuple[Array, Array]:
            h, seed = extra
            before = jax.vjp(cast(layer), h)[1](g)[0]
            return before if seed is None else before + seed, lost(g)

        extras = list(zip(states, _entering_before(network, seeds), strict=True))
        first, logs = layers.scan(seeds[-1], visit, extras=extras, reverse=True)
        return joined([lost(first)[None], *logs])

    return jax.vmap(one)(xs, ys)


_of_batch = functools.partial(jax.jit, static_argnames=("loss", "dtype"))(of_batch)
