"""Losses: what an output is compared with, in ordinary floats, and the loss's own gradient as a scaled number.

A loss is a name in `LOSSES`, or any function ``(output, y) -> number`` of one example. A named one is a sum of terms:

    squared_error           (f_j - y_j)^2 / 2                   for every number of the output
    binary_cross_entropy    ln(1 + exp f_j) - y_j f_j           for every number, a logit; y_j from 0 to 1
    cross_entropy           -sum_k y_k ln softmax(f)_k          for every row of classes; y a label, or probabilities
    cotangent               y . f                               y itself is the gradient

and, with ``mean_`` in front of its name, their mean, over all terms of all examples of the batch: what other libraries
call ``reduction="mean"``. How y is read is known here alone.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from vgjax.checks import ArrayLike, finite_in, is_traced, known, short, takes
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
from vgjax.values import on_device

Loss: TypeAlias = str | Callable[[Any, Any], Any]

MEAN = "mean_"
_SUMS = ("cross_entropy", "binary_cross_entropy", "squared_error")
LOSSES = (*_SUMS, *(MEAN + name for name in _SUMS), "cotangent")
"""Losses by name."""


def is_mean(loss: Loss) -> bool:
    """Whether a loss is the mean of its terms; a function of one's own is the loss of one example, and summed."""
    return not callable(loss) and loss.startswith(MEAN)


def mean_over(loss: Loss, network: Network, batch: int) -> int:
    """How many terms a loss is the mean of; 1 for a sum."""
    shape = output_shape(network)
    each_row = not callable(loss) and _kind(loss) == "cross_entropy"
    return batch * math.prod(shape[:-1] if each_row else shape) if is_mean(loss) else 1


def _kind(loss: str) -> str:
    return loss.removeprefix(MEAN)


# --- the edge -------------------------------------------------------------------------------------------------------


def checked_loss(loss: Loss | None) -> Loss | None:
    """The loss, if it is one."""
    also = ", or a function (output, y)"
    if isinstance(loss, str):
        return known("loss", loss, LOSSES, also)
    if loss is None or takes(loss, "output", "y"):
        return loss
    raise ValueError(f"loss must be one of {', '.join(LOSSES)}{also}, got {short(loss)}")


def targets(
    network: Network, y: ArrayLike | None, loss: Loss | None, key: Array | None, batch: int, single: bool
) -> tuple[Loss, Array]:
    """The loss meant, and its targets with a batch axis.

    Left out, the loss is read off y: whole numbers are labels, of classes or, where there is one output, 0 or 1 for
    binary cross-entropy; other numbers are targets of squared error.
    """
    shape, loss = output_shape(network), checked_loss(loss)
    if y is None:
        if loss not in (None, "cotangent"):
            raise ValueError(f"loss {loss!r} needs y, got None")
        v = direction(jax.random.key(0) if key is None else key, shape, jnp.float32)
        return "cotangent", jnp.broadcast_to(v, (batch, *shape))
    ys: Any = y if is_traced(y) else np.asarray(y)
    if not (_counts(ys) or jnp.issubdtype(ys.dtype, jnp.floating)):
        raise ValueError(f"y must hold real numbers, got {ys.dtype}")
    ys = ys[None] if single else ys
    if callable(loss):
        _check_function(loss, shape, ys, batch)
    else:
        loss = loss or _meant(ys, batch, shape)
        _check(loss, ys, batch, shape, np.shape(y))
        if _counts(ys) and ys.shape == (batch, *shape):  # a number, and no label: it may be larger than an int32
            ys = ys.astype(np.float32)
    return loss, on_device(ys)


def _counts(ys: Any) -> bool:
    return bool(jnp.issubdtype(ys.dtype, jnp.integer) or ys.dtype == bool)


def _classes(shape: tuple[int, ...]) -> int:
    return shape[-1] if shape else 1


def _meant(ys: Any, batch: int, shape: tuple[int, ...]) -> str:
    """The loss that targets mean by themselves."""
    rows = ys.shape == (batch, *shape) and _classes(shape) > 1
    one_hot = rows and not is_traced(ys) and np.all((ys == 0) | (ys == 1)) and np.all(ys.sum(axis=-1) == 1)
    if rows and (one_hot or _counts(ys)):
        what = "one-hot rows" if one_hot else "whole numbers of the output's shape"
        raise ValueError(f"loss must be named (cross_entropy or squared_error) where y holds {what}, got None")
    if not _counts(ys):
        return "squared_error"
    return "cross_entropy" if _classes(shape) > 1 else "binary_cross_entropy"


def _check(loss: str, ys: Any, batch: int, shape: tuple[int, ...], given: tuple[int, ...]) -> None:
    """Raise ValueError unless targets are those of a named loss."""
    kind, classes = _kind(loss), _classes(shape)
    whole, rows = ys.shape == (batch, *shape), ys.shape == (batch, *shape[:-1])
    if kind == "cross_entropy":
        if classes < 2:
            raise ValueError(f"{loss} needs at least 2 outputs, one a class, got 1 (binary_cross_entropy needs 1)")
        if not (whole or (rows and _counts(ys))):
            each = f"integer labels of shape {shape[:-1]}" if shape[:-1] else "one integer label"
            got = f"shape {given} of {ys.dtype}"
            raise ValueError(f"y must be {each}, or probabilities of shape {shape}, an example for {loss}, got {got}")
    # A single output may go without its axis.
    elif not (whole or (rows and classes == 1)):
        raise ValueError(f"y must have the output's shape {shape} an example for {loss}, got {given}")
    if is_traced(ys):
        return
    numbers = np.asarray(ys, float)
    finite_in("y", numbers, jax.dtypes.canonicalize_dtype(float))
    if kind == "binary_cross_entropy":
        for bad in numbers[(numbers < 0) | (numbers > 1)]:
            raise ValueError(f"y must lie in 0 .. 1 for {loss} (that of whole numbers for one output), got {bad:g}")
    if kind == "cross_entropy" and not whole:
        for bad in ys[(ys < 0) | (ys >= classes)]:
            raise ValueError(f"labels must lie in 0 .. {classes - 1}, got {bad}")
    if kind == "cross_entropy" and whole:
        for bad in numbers[numbers < 0]:
            raise ValueError(f"y must hold probabilities for {loss}, got {bad:g}")
        sums = numbers.sum(axis=-1)
        # A few roundings of every class, in the dtype that they came in.
        rounding = 0 if _counts(ys) else 4 * classes * float(jnp.finfo(ys.dtype).eps)
        for bad in sums[np.abs(sums - 1) > rounding]:
            raise ValueError(f"y must hold probabilities that sum to 1 for {loss}, got a sum of {bad:.9g}")


def _check_function(loss: Callable[..., Any], shape: tuple[int, ...], ys: Any, batch: int) -> None:
    """Raise ValueError unless a function gives one number for one example."""
    if ys.shape[:1] != (batch,):
        raise ValueError(f"y must have a leading axis of the {batch} examples, got shape {ys.shape}")
    of_one = jax.ShapeDtypeStruct(shape, jnp.float32), jax.eval_shape(jnp.asarray, ys[0])
    try:
        number = jax.eval_shape(loss, *of_one)
    except TypeError as error:
        told = str(error).split("\n")[0]
        raise ValueError(f"loss must take an output of shape {shape} and a y of {ys.shape[1:]}, got {told}") from error
    if getattr(number, "shape", None) != () or not jnp.issubdtype(number.dtype, jnp.floating):
        raise ValueError(f"loss must give one real number for one example, got {number}")


# --- one example ----------------------------------------------------------------------------------------------------


def _target(loss: Loss, output: Array, y: Array) -> Array:
    """y as numbers of the output's shape and dtype; labels as one-hot rows. Of a function, y as it is."""
    if not callable(loss):
        if _kind(loss) == "cross_entropy" and y.ndim < output.ndim:
            classes = output.shape[-1]
            # In a small dtype the number of classes would wrap: 256 is 0 to a byte.
            y = y.astype(jnp.promote_types(y.dtype, jnp.int32))
            # A label that was traced could not be looked at: where it is none, NaN, and no row of zeros.
            valid = ((y >= 0) & (y < classes))[..., None]
            return jnp.where(valid, jax.nn.one_hot(y.astype(jnp.int32), classes, dtype=output.dtype), jnp.nan)
        y = y.reshape(output.shape).astype(output.dtype)
    return y.astype(output.dtype) if jnp.issubdtype(y.dtype, jnp.floating) else y


def value(loss: Loss, output: Array, y: Array) -> Array:
    """The loss of one example in ordinary floats, a sum over its terms."""
    y = _target(loss, output, y)
    if callable(loss):
        return jnp.asarray(loss(output, y)).astype(output.dtype)
    if _kind(loss) == "cross_entropy":
        return jnp.sum(optax.softmax_cross_entropy(output, y))
    if _kind(loss) == "binary_cross_entropy":
        return jnp.sum(optax.sigmoid_binary_cross_entropy(output, y))
    return jnp.sum(output * y) if loss == "cotangent" else jnp.sum((output - y) ** 2) / 2


def right_answers(loss: Loss, output: Array, y: Array) -> Array | None:
    """Which rows of an output have their largest number where y has, or is, that class; for binary cross-entropy, which
    numbers lie on y's side. None where there is no right answer: one number that is no logit, a y of another shape."""
    if not callable(loss) and _kind(loss) == "binary_cross_entropy":
        return (output > 0) == (_target(loss, output, y) > 0.5)
    if output.shape[-1] > 1 and y.shape == output.shape[:-1] and _counts(y):
        return jnp.argmax(output, axis=-1) == y
    if output.shape[-1] > 1 and y.shape == output.shape:
        return jnp.argmax(output, axis=-1) == jnp.argmax(y, axis=-1)
    return None


def cotangent(loss: Loss, output: FloatExp, y: Array) -> tuple[FloatExp, Array]:
    """dL/d(output) of one example, L the sum of terms, and whether it is lost.

    Args:
        loss: a name, or a function.
        output: normalized; of a function's, with every step's exponent along the first axis if it has them.
        y: of that example.

    Returns:
        A scaled number with the output's exponents, not normalized; and True where the cotangent is beyond even an
        exponent or, of a function, where floats do not hold the output, or the cotangent is not finite or 0, which may
        be a zero or an underflow.
    """
    if callable(loss):
        return _cotangent_of_function(loss, output, y)
    u, exponent = output
    y, kind, nothing_lost = _target(loss, u, y), _kind(loss), jnp.zeros((), bool)
    if kind == "cotangent":
        return from_float(y), nothing_lost
    if kind == "squared_error":
        return add(with_zero_exponent(output), with_zero_exponent(from_float(-y))), nothing_lost
    if kind == "cross_entropy":
        delta, lost = _softmax_rows(u.reshape(-1, u.shape[-1]), exponent, y.reshape(-1, u.shape[-1]))
    else:  # of two classes, with the logits f and 0
        pairs = [jnp.stack([a.ravel(), b.ravel()], axis=-1) for a, b in ((u, jnp.zeros_like(u)), (y, 1 - y))]
        delta, lost = _softmax_rows(pairs[0], exponent, pairs[1])
        delta = delta._replace(value=delta.value[:, 0])
    return delta._replace(value=delta.value.reshape(u.shape)), lost


def _cotangent_of_function(loss: Callable[..., Any], output: FloatExp, y: Array) -> tuple[FloatExp, Array]:
    u, exponent = output
    info = jnp.finfo(u.dtype)
    held = (exponent == ZERO) | ((exponent > int(info.minexp)) & (exponent < int(info.maxexp) - 1))
    each = power_of_two(exponent, u.dtype).reshape(*exponent.shape, *(1,) * (u.ndim - exponent.ndim))
    delta = jax.grad(lambda f: value(loss, f, y))(u * each)
    lost = ~jnp.all(held) | ~jnp.all(jnp.isfinite(delta)) | jnp.all(delta == 0)
    return FloatExp(delta, jnp.zeros_like(exponent)), lost


def _softmax_rows(u: Array, exponent: Array, y: Array) -> tuple[FloatExp, Array]:
    """`_softmax_minus` of rows that share an exponent, as one number."""
    rows = FloatExp(u, jnp.broadcast_to(exponent, len(u)))
    deltas, lost = jax.vmap(_softmax_minus)(rows, y)
    value, exponents = jax.vmap(with_zero_exponent)(deltas)
    top = jnp.max(exponents)
    return FloatExp(value * power_of_two(exponents - top, value.dtype)[:, None], top), jnp.any(lost)


def _softmax_minus(output: FloatExp, y: Array) -> tuple[FloatExp, Array]:
    """sum(y) softmax - y, where plain floats make it exactly 0 as soon as the margin passes about 17 (float32).

    From logarithms, p_j (sum_{k != j} y_k) - y_j (1 - p_j): neither factor cancels. Where all margins are small, from
    what the softmax differs from uniform by.
    """
    u, exponent = output
    total, at = jnp.sum(y), jnp.arange(len(u))
    is_top = at == jnp.argmax(u)
    largest = 3 * window_exponent(u.dtype)  # margins beyond 2^largest saturate anyway
    margins = u - jnp.max(u)
    z = margins * power_of_two(jnp.minimum(exponent, largest), u.dtype)
    # Of the largest logit, 1 - p by what the others leave it; of any other p is at most 1/2.
    others = jax.nn.logsumexp(jnp.where(is_top, -jnp.inf, z))
    log_p = z - jnp.logaddexp(others, 0)
    log_rest = jnp.where(is_top, others + log_p, jnp.log1p(-jnp.exp(jnp.where(is_top, -jnp.inf, log_p))))
    is_main = at == jnp.argmax(y)
    rest = jnp.where(is_main, jnp.sum(jnp.where(is_main, 0, y)), total - y)
    up, down = log_p + jnp.log(rest), log_rest + jnp.log(y)
    top, deepest = (
        jnp.max(jnp.maximum(up, down)),
        -FARTHEST // 2,
    )  # half of the exponents are left for the layers behind
    lost = top < deepest * LN2
    e = jnp.where(top >= deepest * LN2, jnp.floor(top / LN2), jnp.where(lost, deepest, 0)).astype(jnp.int32)
    shift = jnp.where(lost, top, e.astype(u.dtype) * LN2)
    far = FloatExp(jnp.exp(up - shift) - jnp.exp(down - shift), e)

    uniform, flat = total / len(u), total / len(u) - y
    near = flat + uniform * jnp.expm1(z - jnp.log1p(jnp.mean(jnp.expm1(z))))
    # Of margins: where they are all 0 so is their mean, where that of equal logits may be rounded.
    deviation = with_zero_exponent(FloatExp(uniform * (margins - jnp.mean(margins)), exponent))
    below = add(with_zero_exponent(from_float(flat)), deviation)
    is_near, is_below = jnp.min(z) > -1, exponent < 0
    inside = FloatExp(jnp.where(is_near, near, far.value), jnp.where(is_near, 0, far.exponent))
    return jax.tree.map(lambda a, b: jnp.where(is_below, a, b), below, inside), lost & ~is_near & ~is_below
