"""Examples: inputs with their labels; splits, minibatches, and inputs drawn at random."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax.checks import ArrayLike, RandomKey, finite, is_traced, kinds, positive_integer
from vgjax.values import by_content


@by_content
class Examples(NamedTuple):
    """Inputs with their labels.

    Attributes:
        inputs: float32, shape ``(examples, *input)``.
        labels: int32, shape ``(examples,)``, or numbers, shape ``(examples, *output)``.
    """

    inputs: Array
    labels: Array

    @kinds
    def shaped(self, *shape: int) -> "Examples":
        """Every input in another shape: 64 pixels as an image ``(8, 8, 1)``, or as a sequence ``(8, 8)``, ``(64, 1)``.

        Args:
            *shape: of one input.

        Raises:
            ValueError: the shape has not as many numbers as an input.
        """
        shape = tuple(positive_integer("shape", size) for size in shape)
        numbers = math.prod(self.inputs.shape[1:])
        if math.prod(shape) != numbers:
            raise ValueError(f"shape must hold the {numbers} numbers of an input, got {shape}")
        return self._replace(inputs=self.inputs.reshape(len(self.inputs), *shape))

    @kinds
    def one_hot(self, classes: int | None = None, scale: ArrayLike = 1.0) -> "Examples":
        """Labels as numbers, ``scale`` at the right class and 0 at the others: what a squared error is taken to.

        Args:
            classes: how many there are; the largest label + 1 if None.
            scale: of the targets.

        Returns:
            The same inputs, with float32 labels of shape ``(examples, classes)``.

        Raises:
            ValueError: labels that are not whole numbers or not among the classes, or a scale that is not finite.
        """
        finite("scale", scale)
        if np.ndim(scale):
            raise ValueError(f"scale must be one number, got shape {np.shape(scale)}")
        if not jnp.issubdtype(self.labels.dtype, jnp.integer):
            raise ValueError(f"labels must be whole numbers to be made one-hot, got {self.labels.dtype}")
        if classes is None:
            if is_traced(self.labels):
                raise ValueError("classes must be given where labels are traced, got None")
            classes = int(self.labels.max()) + 1
        classes = positive_integer("classes", classes)
        if not is_traced(self.labels):
            bad = (labels := np.asarray(self.labels))[(labels < 0) | (labels >= classes)]
            if bad.size:
                raise ValueError(f"labels must lie in 0 .. {classes - 1}, got {bad[0]}")
        return self._replace(labels=jnp.float32(scale) * jax.nn.one_hot(self.labels, classes, dtype=jnp.float32))


@kinds
def sphere(key: RandomKey, images: int, inputs: int) -> Array:
    """Random inputs of unit mean square (uniform on the sphere of radius sqrt(inputs)), shape ``(images, inputs)``."""
    x = jax.random.normal(key, (positive_integer("images", images), positive_integer("inputs", inputs)))
    return x * jnp.sqrt(inputs / jnp.sum(x * x, axis=1, keepdims=True))


# --- splits and batches ---------------------------------------------------------------------------------------------


@kinds
def split(key: RandomKey, examples: Examples, test: float = 0.2) -> tuple[Examples, Examples]:
    """Examples in random order, cut in two: every one is in exactly one part.

    Args:
        key: of the order.
        examples: at least 2.
        test: how many are for testing: a share in (0, 1), rounded to whole examples, or a whole number of them.

    Returns:
        Those to train on, those to test on.

    Raises:
        ValueError: a ``test`` that is neither, or that leaves one part empty.
    """
    count = len(examples.inputs)
    if len(examples.labels) != count:
        raise ValueError(f"labels must be one for each of the {count} inputs, got {len(examples.labels)}")
    held_out = _held_out(test, count)
    order = jax.random.permutation(key, count)
    train, held = order[held_out:], order[:held_out]
    return Examples(*(jnp.asarray(a)[train] for a in examples)), Examples(*(jnp.asarray(a)[held] for a in examples))


def _held_out(test: float, count: int) -> int:
    whole = isinstance(test, (int, np.integer)) and not isinstance(test, bool)
    share = isinstance(test, (float, np.floating)) and 0 < test < 1
    if not whole and not share:
        raise ValueError(f"test must be a share in (0, 1) or a whole number of examples, got {test!r}")
    held_out = int(test) if whole else round(test * count)
    if not 0 < held_out < count:
        raise ValueError(f"test must leave at least 1 of the {count} examples on either side, got {test}")
    return held_out


@kinds
def batches(key: RandomKey, examples: int, batch_size: int, num_steps: int) -> Array:
    """Which examples every step takes: each epoch is a fresh permutation, cut into full batches.

    What is left of an epoch beyond its ``examples // batch_size`` batches is not taken, so no example comes twice in an
    epoch. Fewer steps are the first of more steps. A batch of all examples is all of them in order. The sizes are
    static, so that this can be traced.

    Args:
        key: epoch e is permuted by ``fold_in(key, e)``.
        examples: how many there are.
        batch_size: at most that many.
        num_steps: how many batches.

    Returns:
        Indices, int32, shape ``(num_steps, batch_size)``.

    Raises:
        ValueError: a size below 1, or more in a batch than there are.
    """
    examples, batch_size = positive_integer("examples", examples), positive_integer("batch_size", batch_size)
    num_steps = positive_integer("num_steps", num_steps)
    if batch_size > examples:
        raise ValueError(f"batch_size must be at most the {examples} examples, got {batch_size}")
    return _batches(key, examples, batch_size, num_steps)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _batches(key: Array, examples: int, batch_size: int, num_steps: int) -> Array:
    every = jnp.arange(examples, dtype=jnp.int32)
    if batch_size == examples:
        return jnp.broadcast_to(every, (num_steps, examples))
    per_epoch = examples // batch_size

    def epoch(number: Array) -> Array:
        order = jax.random.permutation(jax.random.fold_in(key, number), every)
        return order[: per_epoch * batch_size].reshape(per_epoch, batch_size)

    # One after the other, not vmap: a batch of keys of the "rbg" kind draws other numbers than each of them alone.
    epochs = jax.lax.map(epoch, jnp.arange(-(-num_steps // per_epoch)))
    return epochs.reshape(-1, batch_size)[:num_steps]
