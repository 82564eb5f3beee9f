"""Inputs: real images that need no download, and synthetic ones."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax.checks import positive_integer


class Images(NamedTuple):
    """Inputs with their labels.

    Attributes:
        inputs: float32, shape ``(images, pixels)``.
        labels: int32, shape ``(images,)``.
    """

    inputs: Array
    labels: Array


def digits() -> Images:
    """1797 handwritten digits of 8 x 8 pixels, each image shifted to zero mean and scaled to unit mean square.

    So every image enters with q = 1, as in the theory. From the UCI optical recognition set, as scikit-learn ships it.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("the digits need scikit-learn: pip install 'vgjax[data]'") from None
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels - pixels.mean(axis=1, keepdims=True)
    pixels = pixels / np.sqrt((pixels**2).mean(axis=1, keepdims=True))
    return Images(jnp.asarray(pixels, jnp.float32), jnp.asarray(labels, jnp.int32))


def sphere(key: Array, images: int, inputs: int) -> Array:
    """Random inputs of unit mean square (uniform on the sphere of radius sqrt(inputs)), shape ``(images, inputs)``."""
    x = jax.random.normal(key, (positive_integer("images", images), positive_integer("inputs", inputs)))
    return x * jnp.sqrt(inputs / jnp.sum(x * x, axis=1, keepdims=True))
