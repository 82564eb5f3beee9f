"""Losses: what the output is compared with, and the loss's own gradient as a scaled number."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax.checks import ArrayLike, is_traced, known
from vgjax.floatexp import (
    FARTHEST,
    LN2,
    ZERO,
    FloatExp,
    add,
    from_float,
    power_of_two,
    window_exponent,
    with_zero_exponent,
)
from vgjax.measure.flow import direction
from vgjax.networks.network import Network, output_shape

LOSSES = ("cross_entropy", "squared_error", "cotangent")


def targets(
    network: Network, y: ArrayLike | None, loss: str | None, key: Array | None, batch: int, single: bool
) -> tuple[str, Array]:
    """The loss meant, and its targets with a batch axis."""
    shape = output_shape(network)
    if loss is not None:
        known("loss", loss, LOSSES)
    if y is None:
        if loss not in (None, "cotangent"):
            raise ValueError(f"loss {loss!r} needs y, got None")
        v = direction(jax.random.key(0) if key is None else key, shape, jnp.float32)
        return "cotangent", jnp.broadcast_to(v, (batch, *shape))
    ys = jnp.asarray(y)[None] if single else jnp.asarray(y)
    whole = jnp.issubdtype(ys.dtype, jnp.integer)
    loss = loss or ("cross_entropy" if whole else "squared_error")
    if loss == "cross_entropy":
        if not whole or ys.shape != (batch, *shape[:-1]):
            each = f"integer labels of shape {shape[:-1]}" if shape[:-1] else "one integer label"
            raise ValueError(f"y must be {each} an example for cross_entropy, got shape {np.shape(y)} of {ys.dtype}")
        if not is_traced(ys):
            bad = np.asarray(ys)[(np.asarray(ys) < 0) | (np.asarray(ys) >= shape[-1])]
            if bad.size:
                raise ValueError(f"labels must lie in 0 .. {shape[-1] - 1}, got {bad[0]}")
    elif ys.shape != (batch, *shape):
        raise ValueError(f"y must have the output's shape {shape} an example for {loss}, got {np.shape(y)}")
    elif not is_traced(ys) and not np.all(np.isfinite(np.asarray(ys))):
        raise ValueError("y must be finite, got a NaN or an infinity")
    return loss, ys


def value(loss: str, output: Array, y: Array) -> Array:
    """The loss of one example in ordinary floats; a sum over what its output has beside classes (steps, a batch)."""
    if loss == "cotangent":
        return jnp.sum(output * y)
    if loss == "squared_error":
        return jnp.sum((output - y) ** 2) / 2
    return -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(output), y[..., None], axis=-1))


def cotangent(loss: str, output: FloatExp, y: Array) -> tuple[FloatExp, Array]:
    """dL/d(output) of one example as a scaled number, and whether it is beyond even that."""
    if loss == "cotangent":
        return from_float(y), jnp.zeros((), bool)
    if loss == "squared_error":
        return add(with_zero_exponent(output), with_zero_exponent(from_float(-y))), jnp.zeros((), bool)
    if y.ndim == 0:
        return _cross_entropy_cotangent(output, y)
    # Examples of a batch that is one state: each has an exponent of its own, until they are one number again.
    rows = FloatExp(output.value, jnp.broadcast_to(output.exponent, y.shape))
    (value, exponent), saturated = jax.vmap(_cross_entropy_cotangent)(rows, y)
    top = jnp.max(exponent)
    return FloatExp(value * power_of_two(exponent - top, value.dtype)[:, None], top), jnp.any(saturated)


def _cross_entropy_cotangent(output: FloatExp, label: Array) -> tuple[FloatExp, Array]:
    """softmax - onehot from its logarithms: in plain floats it is exactly 0 as soon as the margin passes about 17
    (float32).

    ln |delta_j| = z_j - lse(z) for the wrong classes and lse_{j != label}(z) - lse(z) for the right one, z_j the
    margin to the label.
    """
    u, exponent = output
    deepest = -FARTHEST // 2  # what is left of the exponents for the layers behind
    largest = 3 * window_exponent(u.dtype)  # margins beyond 2^largest saturate anyway
    z = (u - u[label]) * power_of_two(jnp.minimum(exponent, largest), u.dtype)
    right = jnp.arange(len(u)) == label
    total = jax.nn.logsumexp(z)
    logs = jnp.where(right, jax.nn.logsumexp(jnp.where(right, -jnp.inf, z)), z) - total
    top = jnp.max(logs)
    is_zero = top == -jnp.inf  # a single class
    saturated = ~is_zero & (top < deepest * LN2)
    e = jnp.where(is_zero | saturated, 0, jnp.floor(jnp.maximum(top, deepest * LN2) / LN2)).astype(jnp.int32)
    shift = jnp.where(saturated | is_zero, jnp.where(is_zero, 0.0, top), e.astype(u.dtype) * LN2)
    value = jnp.where(right, -1, 1) * jnp.exp(logs - shift)
    return FloatExp(value, jnp.where(is_zero, ZERO, jnp.where(saturated, deepest, e))), saturated
