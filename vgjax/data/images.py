"""Images: digits that need no download, and files in the IDX format of MNIST."""

import gzip
import importlib.util
import math
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vgjax.checks import ArrayLike, kinds, known
from vgjax.data.examples import Examples
from vgjax.data.standardization import STANDARDIZATIONS, standardized
from vgjax.values import on_device


@kinds
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
    pixels, labels = _digits_of_sklearn()
    return Examples(standardized(pixels, standardize), on_device(labels.astype(np.int32)))


def _digits_of_sklearn() -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels, from the file that comes with scikit-learn: to import it takes seconds."""
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise ImportError("the digits need scikit-learn: pip install 'vgjax[data]'")
    table = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if table.is_file():
        rows = np.loadtxt(table, delimiter=",")
        return rows[:, :-1], rows[:, -1]
    from sklearn.datasets import load_digits  # where another version keeps it elsewhere

    return load_digits(return_X_y=True)


# --- files ----------------------------------------------------------------------------------------------------------

_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PIECE = 2**20  # bytes read at once: a corrupt header may promise 10^18


@kinds
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


@kinds
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
    return Examples(standardized(_flat(images), standardize, others), on_device(labels.astype(np.int32)))


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


@kinds
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
