"""Inputs: real images that need no download, image files in the IDX format, and synthetic ones; splits and batches."""

import functools
import gzip
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from vgjax.checks import finite, is_traced, known, positive_integer


class Examples(NamedTuple):
    """Inputs with their labels.

    Attributes:
        inputs: float32, shape ``(examples, *input)``.
        labels: int32, shape ``(examples,)``, or numbers, shape ``(examples, *output)``.
    """

    inputs: Array
    labels: Array

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

    def one_hot(self, classes: int | None = None, scale: float = 1.0) -> "Examples":
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


def digits(standardize: str = "image") -> Examples:
    """1797 handwritten digits of 8 x 8 pixels, by default each shifted to zero mean and scaled to unit mean square.

    So every image enters with q = 1, as in the theory. From the UCI optical recognition set, as scikit-learn ships it.

    Args:
        standardize: how the pixels (0 to 16) are treated; see `standardize`.

    Returns:
        Inputs of shape ``(1797, 64)``, labels 0 to 9.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: an unknown standardization.
    """
    known("standardize", standardize, STANDARDIZATIONS)
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("the digits need scikit-learn: pip install 'vgjax[data]'") from None
    pixels, labels = load_digits(return_X_y=True)
    return Examples(_standardized(pixels, standardize), jnp.asarray(labels, jnp.int32))


def sphere(key: Array, images: int, inputs: int) -> Array:
    """Random inputs of unit mean square (uniform on the sphere of radius sqrt(inputs)), shape ``(images, inputs)``."""
    x = jax.random.normal(key, (positive_integer("images", images), positive_integer("inputs", inputs)))
    return x * jnp.sqrt(inputs / jnp.sum(x * x, axis=1, keepdims=True))


# --- standardization ------------------------------------------------------------------------------------------------


def standardize(inputs: ArrayLike, how: str = "image", like: ArrayLike | None = None) -> Array:
    """Inputs shifted and scaled, by statistics of their own or of other inputs; worked out in float64.

    What does not vary (an empty image, a pixel at the edge) becomes 0.

    Args:
        inputs: shape ``(examples, *input)``.
        how: ``image``: each input to zero mean and unit mean square (q = 1, as in the theory); ``pixel``: each pixel to
            zero mean and unit variance over the examples of ``like``; ``global``: all pixels by one mean and one
            deviation, those of ``like``; ``unit``: all divided by the largest of ``like``, so that they lie in [0, 1],
            nothing centred; ``none``: as they are.
        like: whose statistics count, shape ``(others, *input)``, not standardized: the training set, for a test set.
            The inputs themselves if None. ``image`` and ``none`` have no use for it.

    Returns:
        float32, of the inputs' shape.

    Raises:
        ValueError: an unknown name, no inputs, shapes that differ, numbers that are not finite (or beyond float32), or
            negative ones for ``unit``.
    """
    known("how", how, STANDARDIZATIONS)
    return _standardized(inputs, how, like)


def _standardized(inputs: ArrayLike, how: str, like: ArrayLike | None = None) -> Array:
    inputs = _numbers("inputs", inputs)
    like = inputs if like is None else _numbers("like", like)
    if like.shape[1:] != inputs.shape[1:]:
        raise ValueError(f"like must hold inputs of shape {inputs.shape[1:]}, got {like.shape[1:]}")
    rule = STANDARDIZATIONS[how](like.reshape(len(like), -1))
    out = [rule(rows).astype(np.float32) for rows in _blocks(inputs.reshape(len(inputs), -1))]
    return jnp.asarray(np.concatenate(out).reshape(inputs.shape))


def _numbers(name: str, inputs: ArrayLike) -> np.ndarray:
    numbers = np.asarray(inputs)
    if numbers.ndim < 2 or not numbers.size:
        raise ValueError(f"{name} must have a shape (examples, *input) of at least 1 each, got {numbers.shape}")
    if numbers.dtype.kind not in "biu":
        finite(name, numbers, "within float32", lambda v: np.abs(v) <= np.finfo(np.float32).max)
    return numbers


def _blocks(inputs: np.ndarray) -> Iterator[np.ndarray]:
    """Some rows at a time in float64, so that 60,000 images of bytes do not become 400 MB, several times."""
    rows = 4096
    for start in range(0, len(inputs), rows):
        yield np.asarray(inputs[start : start + rows], np.float64)


Rule = Callable[[np.ndarray], np.ndarray]


def _by_image(like: np.ndarray) -> Rule:
    def rule(rows: np.ndarray) -> np.ndarray:
        centred = rows - rows.mean(axis=1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True))
        return centred / _divisor(deviation, rows.min(axis=1, keepdims=True) < rows.max(axis=1, keepdims=True))

    return rule


def _by_pixel(like: np.ndarray) -> Rule:
    return _shifted_and_scaled(like, axis=0)


def _globally(like: np.ndarray) -> Rule:
    return _shifted_and_scaled(like, axis=None)


def _shifted_and_scaled(like: np.ndarray, axis: int | None) -> Rule:
    count = like.size if axis is None else len(like)
    mean = sum(rows.sum(axis) for rows in _blocks(like)) / count
    variance = sum(((rows - mean) ** 2).sum(axis) for rows in _blocks(like)) / count
    divisor = _divisor(np.sqrt(variance), like.min(axis) < like.max(axis))
    return lambda rows: (rows - mean) / divisor


def _to_unit(like: np.ndarray) -> Rule:
    largest = max(float(like.max()), 0.0) or math.inf

    def rule(rows: np.ndarray) -> np.ndarray:
        if (smallest := rows.min()) < 0:
            raise ValueError(f"inputs must not be negative to be scaled to [0, 1], got {smallest:g}")
        return rows / largest

    return rule


def _unchanged(like: np.ndarray) -> Rule:
    return lambda rows: rows


def _divisor(deviation: np.ndarray, varies: np.ndarray) -> np.ndarray:
    """The deviation, or inf where nothing varies: the mean of equal numbers may be off by a rounding."""
    return np.where(varies & (deviation > 0), deviation, np.inf)


STANDARDIZATIONS: dict[str, Callable[[np.ndarray], Rule]] = {
    "image": _by_image,
    "pixel": _by_pixel,
    "global": _globally,
    "unit": _to_unit,
    "none": _unchanged,
}


# --- files ----------------------------------------------------------------------------------------------------------

_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PIECE = 2**20  # bytes read at once: a corrupt header may promise 10^18


def mnist(folder: str | os.PathLike[str], *, train: bool = True, standardize: str = "image") -> Examples:
    """MNIST or Fashion-MNIST from the files they come in, found in a folder by their usual names.

    ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, or ``t10k-...``; plain or with ``.gz``; with ``.idx``
    for ``-idx``, too. Nothing is downloaded.

    Args:
        folder: where the files are.
        train: the training set, else the test set.
        standardize: see `standardize`. A test set is treated by the statistics of the training set beside it.

    Returns:
        Inputs of shape ``(images, 784)``, labels 0 to 9.

    Raises:
        FileNotFoundError: no file of these names.
        ValueError: an unknown standardization, or a file that is not what its name says (`idx`).
    """
    known("standardize", standardize, STANDARDIZATIONS)
    part = "train" if train else "t10k"
    images, labels = _found(folder, f"{part}-images-idx3-ubyte"), _found(folder, f"{part}-labels-idx1-ubyte")
    borrowed = not train and standardize not in ("image", "none")
    like = read_idx(_found(folder, "train-images-idx3-ubyte")) if borrowed else None
    return idx(images, labels, standardize=standardize, like=like)


def _found(folder: str | os.PathLike[str], name: str) -> Path:
    names = [spelt + suffix for spelt in (name, name.replace("-idx", ".idx")) for suffix in ("", ".gz")]
    found = [path for path in (Path(folder, spelt) for spelt in names) if path.is_file()]
    if not found:
        raise FileNotFoundError(f"folder must hold one of {', '.join(names)}, got none in {os.fspath(folder)!r}")
    return found[0]


def idx(
    images_path: str | os.PathLike[str],
    labels_path: str | os.PathLike[str],
    *,
    standardize: str = "image",
    like: ArrayLike | None = None,
) -> Examples:
    """Images with their labels from a pair of IDX files, one row of pixels an image.

    Args:
        images_path: of ``(images, rows, columns)`` numbers, or of any other 2 or more dimensions.
        labels_path: of ``(images,)`` whole numbers.
        standardize: see `standardize`.
        like: images whose statistics count, as `read_idx` gives them: the training set, for a test set.

    Returns:
        Inputs of shape ``(images, pixels)``.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: a file that cannot be read (`read_idx`), files that are no pair, or what `standardize` refuses.
    """
    known("standardize", standardize, STANDARDIZATIONS)
    images, labels = _pair(images_path, labels_path)
    others = None if like is None else _flat(np.asarray(like))
    return Examples(_standardized(_flat(images), standardize, others), jnp.asarray(labels, jnp.int32))


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), math.prod(images.shape[1:])) if images.ndim > 2 else images


def _pair(images_path: str | os.PathLike[str], labels_path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim < 2:
        raise ValueError(f"{_quoted(images_path)} must hold images, of 2 or more dimensions, got shape {images.shape}")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        got = f"{labels.dtype} of shape {labels.shape}"
        raise ValueError(f"{_quoted(labels_path)} must hold labels, whole numbers of 1 dimension, got {got}")
    count = len(images)
    if len(labels) != count:
        raise ValueError(f"{_quoted(labels_path)} must hold a label for each of {count} images, got {len(labels)}")
    return images, labels


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array of an IDX file, the format of MNIST: two zero bytes, type, dimensions, big-endian sizes, numbers.

    Args:
        path: plain or compressed by gzip, whatever the name.

    Returns:
        Of the sizes and the type in the file: uint8, int8, int16, int32, float32 or float64.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, a corrupt or truncated file, or bytes that are left over.

    Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits", file formats.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{_quoted(path)} must be an IDX file, got no such file")
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not compressed:
            return _idx_array(file, path)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _idx_array(unpacked, path)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{_quoted(path)} must be a whole gzip file, got a corrupt one: {error}") from None


def _idx_array(file: BinaryIO | gzip.GzipFile, path: str | os.PathLike[str]) -> np.ndarray:
    dtype, sizes = _idx_header(file, path)
    promised = math.prod(sizes) * dtype.itemsize
    content = _read(file, promised + 1)
    if len(content) != promised:
        got = "more" if len(content) > promised else f"{len(content)}: truncated, or a corrupt header"
        raise ValueError(f"{_quoted(path)} must hold {promised} bytes for sizes {sizes} of {dtype.name}, got {got}")
    return np.frombuffer(content, dtype).reshape(sizes).astype(dtype.newbyteorder("="), copy=False)


def _idx_header(file: BinaryIO | gzip.GzipFile, path: str | os.PathLike[str]) -> tuple[np.dtype, tuple[int, ...]]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES or not 1 <= magic[3] <= 32:
        types = ", ".join(f"{code:02x}" for code in _IDX_TYPES)
        rule = f"begin with bytes 00 00, a type ({types}) and 01 to 20 for its dimensions"
        raise ValueError(f"{_quoted(path)} must {rule}, as IDX files do, got {magic.hex(' ') or 'nothing'}")
    dimensions = magic[3]
    header = file.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise ValueError(f"{_quoted(path)} must hold {dimensions} sizes, got only {len(header)} bytes of them")
    sizes = struct.unpack(f">{dimensions}I", header)
    if 0 in sizes:
        raise ValueError(f"{_quoted(path)} must have sizes of at least 1, got {sizes}")
    return np.dtype(_IDX_TYPES[magic[2]]), sizes


def _read(file: BinaryIO | gzip.GzipFile, size: int) -> bytearray:
    """At most so many bytes, in pieces: `read(size)` would allocate what it is asked for, be it there or not."""
    content = bytearray()
    while piece := file.read(min(_PIECE, size - len(content))):
        content += piece
    return content


def _quoted(path: str | os.PathLike[str]) -> str:
    return repr(os.fspath(path))


# --- splits and batches ---------------------------------------------------------------------------------------------


def split(key: Array, examples: Examples, test: float = 0.2) -> tuple[Examples, Examples]:
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


def batches(key: Array, examples: int, batch_size: int, num_steps: int) -> Array:
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
