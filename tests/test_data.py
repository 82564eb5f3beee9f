"""Inputs: standardizations against numpy, files written by plain Python, splits and batches."""

import gzip
import math
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vgjax as vg
from vgjax import data

KEY = jax.random.key(3)
CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}
LETTERS = {"uint8": "B", "int8": "b", "int16": "h", "int32": "i", "float32": "f", "float64": "d"}


def idx_bytes(array: np.ndarray, *, code: int | None = None, sizes: tuple[int, ...] | None = None) -> bytes:
    """An IDX file, number by number; another type or other sizes in its header if given."""
    name, sizes = array.dtype.name, array.shape if sizes is None else sizes
    header = struct.pack(">BBBB", 0, 0, CODES[name] if code is None else code, len(sizes))
    numbers = b"".join(struct.pack(">" + LETTERS[name], number) for number in array.ravel().tolist())
    return header + b"".join(struct.pack(">I", size) for size in sizes) + numbers


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def some_images(count: int = 6, seed: int = 0) -> np.ndarray:
    """Bytes, the first row of every image empty and the second image all empty."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 4, 3)).astype(np.uint8)
    images[:, 0] = images[1] = 0
    return images


@pytest.fixture(scope="module")
def digits() -> data.Examples:
    return vg.data.digits()


# --- examples -------------------------------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn_each_at_unit_mean_square(digits: data.Examples) -> None:
    """Bit for bit the shift and the scale of every image in float64, rounded once."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels - pixels.mean(axis=1, keepdims=True)
    pixels = pixels / np.sqrt((pixels**2).mean(axis=1, keepdims=True))
    np.testing.assert_array_equal(digits.inputs, pixels.astype(np.float32))
    np.testing.assert_array_equal(digits.labels, labels)
    assert (digits.inputs.dtype, digits.labels.dtype) == (jnp.float32, jnp.int32)


def test_digits_need_no_import_of_scikit_learn_but_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, vgjax; vgjax.data.digits(); sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    expected = data.digits("none")
    monkeypatch.setattr(Path, "is_file", lambda path: path.name != "digits.csv.gz")  # of a version that moved them
    jax.tree.map(np.testing.assert_array_equal, data.digits("none"), expected)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"the digits need scikit-learn: pip install 'vgjax\[data\]'"):
        data.digits()


def test_digits_take_another_standardization() -> None:
    raw, unit = data.digits("none").inputs, data.digits(standardize="unit").inputs
    assert set(np.unique(raw)) == set(range(17))
    np.testing.assert_array_equal(unit, np.asarray(raw) / np.float32(16))
    pixel = np.asarray(data.digits("pixel").inputs, float)
    varies = np.ptp(raw, axis=0) > 0
    assert varies.sum() == 61  # three of the 64 pixels are empty in all digits
    np.testing.assert_allclose(pixel.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose((pixel**2).mean(axis=0), varies, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8), (64, 1), (64,)], ids=str)
def test_inputs_take_another_shape_in_reading_order(digits: data.Examples, shape: tuple[int, ...]) -> None:
    shaped = digits.shaped(*shape)
    np.testing.assert_array_equal(shaped.inputs, np.reshape(np.asarray(digits.inputs), (1797, *shape)))
    assert shaped.labels is digits.labels
    np.testing.assert_array_equal(shaped.shaped(64).inputs, digits.inputs)


def test_one_hot_labels_are_scaled_rows_of_the_identity() -> None:
    examples = data.Examples(jnp.zeros((4, 2)), jnp.array([2, 0, 1, 2], jnp.int32))
    np.testing.assert_array_equal(examples.one_hot().labels, np.eye(3)[[2, 0, 1, 2]])
    targets = examples.one_hot(classes=5, scale=100.0)
    np.testing.assert_array_equal(targets.labels, 100 * np.eye(5)[[2, 0, 1, 2]])
    assert targets.labels.dtype == jnp.float32
    assert targets.inputs is examples.inputs
    traced = jax.jit(lambda examples, scale: examples.one_hot(5, scale).labels)(examples, 100.0)
    np.testing.assert_array_equal(traced, targets.labels)


def test_the_sphere_has_unit_mean_square() -> None:
    x = np.asarray(data.sphere(KEY, 5, 7), float)
    np.testing.assert_allclose((x**2).mean(axis=1), 1, rtol=1e-6)
    assert np.ptp(x) > 1


# --- standardization ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["image", "pixel", "global", "unit", "none"])
@pytest.mark.parametrize("own", [True, False], ids=["own", "like"])
def test_standardizations_are_those_of_numpy(how: str, own: bool) -> None:
    """Of more examples than are treated at once; those of a test set borrow the statistics of the training set."""
    random = np.random.default_rng(0)
    inputs = random.integers(0, 200, (5000, 2, 3)).astype(np.uint8)
    like = inputs if own else random.integers(50, 256, (40, 2, 3)).astype(np.uint8)
    axes = {"image": (1, 2), "pixel": 0}.get(how)
    x = inputs.astype(float)
    if how in ("image", "pixel", "global"):
        statistics = x if how == "image" else like.astype(float)
        expected = (x - statistics.mean(axes, keepdims=True)) / statistics.std(axes, keepdims=True)
    else:
        expected = x / like.max() if how == "unit" else x
    result = data.standardize(inputs, how, *([] if own else [like]))
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-7)
    assert (result.dtype, result.shape) == (jnp.float32, inputs.shape)


@pytest.mark.parametrize("how", ["image", "pixel", "global", "unit"])
@pytest.mark.parametrize("level", [0, 0.1, 1e-300], ids=str)
def test_what_does_not_vary_becomes_0(how: str, level: float) -> None:
    """The mean of 77 times 0.1 is not 0.1: its rounding must not be blown up to a deviation of 1."""
    flat = np.full((77, 7), level)
    expected = 1.0 if how == "unit" and level else 0.0
    np.testing.assert_array_equal(data.standardize(flat, how), np.full((77, 7), expected))


def test_a_single_flat_image_or_pixel_becomes_0_among_others() -> None:
    images = np.random.default_rng(1).uniform(size=(5, 4))
    images[2] = images[:, 3] = 0.1
    assert np.all((np.asarray(data.standardize(images, "image")) == 0).all(axis=1) == [0, 0, 1, 0, 0])
    assert np.all((np.asarray(data.standardize(images, "pixel")) == 0).all(axis=0) == [0, 0, 0, 1])
    assert not np.any(data.standardize(np.array([[1e-300, 2e-300]])))  # its variance is below float64
    others = np.ones((2, 4))  # not flat itself where the training set is
    assert np.all((np.asarray(data.standardize(others, "pixel", like=images)) == 0) == [0, 0, 0, 1])


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("shape", [(6,), (3, 2), (1, 2, 3), (2, 1, 1, 3)], ids=str)
@pytest.mark.parametrize("name", CODES)
def test_idx_files_of_every_type_are_read(tmp_path: Path, name: str, shape: tuple[int, ...], compressed: bool) -> None:
    limits = np.iinfo(name) if name.startswith(("u", "i")) else np.finfo(name)
    array = np.array([limits.min, limits.max, 1, 2.5, 0, 117], float).astype(name).reshape(shape)
    content = idx_bytes(array)
    path = written(tmp_path / "file", gzip.compress(content) if compressed else content)
    found = data.read_idx(path)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == np.dtype(name)  # of this machine's byte order
    assert found.shape == shape
    np.testing.assert_array_equal(data.read_idx(str(path)), found)


SMALL = np.arange(12, dtype=np.int16).reshape(3, 4)
GOOD = idx_bytes(SMALL)
PACKED = gzip.compress(GOOD, mtime=0)
NO_IDX = r"must begin with bytes 00 00, a type \(08, 09, 0b, 0c, 0d, 0e\) and 01 to 20 .* got "
CORRUPT = "must be a whole gzip file, got a corrupt one: "


HOLDS = r"must hold 24 bytes for sizes \(3, 4\) of int16, got "


def packed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


BAD_FILES = {
    "empty": (b"", NO_IDX + "nothing"),
    "cut in its magic": (b"\0\0\x08", NO_IDX + "00 00 08"),
    "a picture": (b"\x89PNG\r\n", NO_IDX + "89 50 4e 47"),
    "not two zeros": (b"\0\1" + GOOD[2:], NO_IDX + "00 01 0b 02"),
    "unknown type": (idx_bytes(SMALL, code=0x0A), NO_IDX + "00 00 0a 02"),
    "no dimensions": (b"\0\0\x08\0\7", NO_IDX + "00 00 08 00"),
    "255 dimensions": (b"\0\0\x08\xff" + bytes(2000), NO_IDX + "00 00 08 ff"),
    "packed text": (packed(b"no images at all"), NO_IDX + "6e 6f 20 69"),
    "cut in its sizes": (GOOD[:9], "must hold 2 sizes, got only 5 bytes of them"),
    "a size of 0": (idx_bytes(SMALL, sizes=(3, 0)), r"must have sizes of at least 1, got \(3, 0\)"),
    "truncated": (GOOD[:-1], HOLDS + "23: truncated, or a corrupt header"),
    "packed when truncated": (packed(GOOD[:-1]), HOLDS + "23: truncated"),
    "trailing byte": (GOOD + b"\0", HOLDS + "more"),
    "packed trailing byte": (packed(GOOD + b"\0"), HOLDS + "more"),
    "promises more": (idx_bytes(SMALL, code=0x0E), r"must hold 96 bytes for sizes \(3, 4\) of float64, got 24: trunc"),
    "gzip's magic only": (PACKED[:2], CORRUPT),
    "gzip cut": (PACKED[:14], CORRUPT + "Compressed file ended"),
    "gzip cut in its checksum": (PACKED[:-5], CORRUPT + "Compressed file ended"),
    "gzip of another checksum": (PACKED[:-8] + bytes(4) + PACKED[-4:], CORRUPT + "CRC check failed"),
    "gzip damaged": (PACKED[:10] + b"\xff" * 20 + PACKED[30:], CORRUPT + "Error -3 while decompressing"),
    "gzip and more": (PACKED + b"left over", CORRUPT + "Not a gzipped file"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_refused_in_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = written(tmp_path / "bad-images", content)
    with pytest.raises(ValueError, match=f"bad-images' {message}"):
        data.read_idx(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere' must be an IDX file, got no such file"):
        data.read_idx(tmp_path / "nowhere")


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("sizes", "length", "got"),
    [((2**32 - 1,) * 32, 5, "got 5"), ((2**31,), 5, "got 5"), ((5,), 30_000_000, "got more")],
    ids=["1e308 bytes", "2 GB", "longer"],
)
def test_no_more_is_read_than_promised_nor_allocated_than_is_there(
    tmp_path: Path, sizes: tuple[int, ...], length: int, got: str, compressed: bool
) -> None:
    content = idx_bytes(np.zeros(0, np.uint8), sizes=sizes) + bytes(length)
    path = written(tmp_path / "file", gzip.compress(content, 1) if compressed else content)
    del content
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=got):
            data.read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


def test_a_pair_of_files_becomes_examples(tmp_path: Path) -> None:
    images, labels = some_images(), np.arange(6, dtype=np.uint8)
    paths = written(tmp_path / "a", idx_bytes(images)), written(tmp_path / "b", packed(idx_bytes(labels)))
    raw = data.idx(*paths, standardize="none")
    np.testing.assert_array_equal(raw.inputs, images.reshape(6, 12))
    np.testing.assert_array_equal(raw.labels, labels)
    assert (raw.inputs.dtype, raw.labels.dtype) == (jnp.float32, jnp.int32)
    by_image = data.idx(*paths).inputs
    np.testing.assert_array_equal(by_image, data.standardize(images.reshape(6, 12), "image"))
    assert not np.any(by_image[1])
    like = some_images(9, seed=1)
    for same in (like, like.reshape(9, 12)):
        found = data.idx(*paths, standardize="pixel", like=same).inputs
        np.testing.assert_array_equal(found, data.standardize(images, "pixel", like).reshape(6, 12))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros(5, np.uint8), np.zeros(5, np.uint8), r"a' must hold images, of 2 or more .* got shape \(5,\)"),
        (np.zeros((5, 2, 2), np.uint8), np.zeros((5, 1), np.uint8), r"b' must hold labels, .* uint8 of shape \(5, 1\)"),
        (np.zeros((5, 2, 2), np.uint8), np.zeros(5, np.float32), r"b' must hold labels, whole numbers .* got float32"),
        (np.zeros((5, 2, 2), np.uint8), np.zeros(4, np.uint8), r"b' must hold a label for each of 5 images, got 4"),
        (np.full((5, 2), np.nan, np.float32), np.zeros(5, np.uint8), "inputs must be finite .* got nan"),
    ],
    ids=["no images", "no labels", "no whole numbers", "counts", "nan"],
)
def test_files_that_are_no_pair_are_refused(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, message: str
) -> None:
    paths = written(tmp_path / "a", idx_bytes(images)), written(tmp_path / "b", idx_bytes(labels))
    with pytest.raises(ValueError, match=message):
        data.idx(*paths)


@pytest.mark.parametrize("dot", [False, True], ids=["-idx", ".idx"])
@pytest.mark.parametrize("suffix", ["", ".gz"], ids=["plain", "gzip"])
def test_mnist_is_found_by_its_usual_names(tmp_path: Path, suffix: str, dot: bool) -> None:
    """A test set is treated by the training set's statistics, an image by its own."""
    pack = gzip.compress if suffix else bytes
    train, test = some_images(8, seed=1), some_images(5, seed=2)
    for part, images in (("train", train), ("t10k", test)):
        for what, array in (("images-idx3", images), ("labels-idx1", np.arange(len(images), dtype=np.uint8))):
            name = f"{part}-{what}-ubyte{suffix}"
            written(tmp_path / (name.replace("-idx", ".idx") if dot else name), pack(idx_bytes(array)))
    first, second = data.mnist(tmp_path), data.mnist(str(tmp_path), train=False)
    np.testing.assert_array_equal(first.inputs, data.standardize(train).reshape(8, 12))
    np.testing.assert_array_equal(second.inputs, data.standardize(test).reshape(5, 12))
    np.testing.assert_array_equal(first.labels, range(8))
    for how in ("pixel", "global", "unit"):
        found = data.mnist(tmp_path, train=False, standardize=how).inputs
        np.testing.assert_array_equal(found, data.standardize(test, how, train).reshape(5, 12))


def test_mnist_says_what_it_looked_for(tmp_path: Path) -> None:
    (tmp_path / "t10k-images-idx3-ubyte").mkdir()  # some archives unpack into a folder of the file's name
    names = ", ".join(f"t10k-images{dot}idx3-ubyte{suffix}" for dot in "-." for suffix in ("", ".gz"))
    with pytest.raises(FileNotFoundError, match=f"folder must hold one of {names}, got none in '"):
        data.mnist(tmp_path, train=False)


# --- splits and batches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", [0.26, 0.3, 3, np.int32(3)], ids=repr)
def test_a_split_is_disjoint_and_takes_everything(test: float) -> None:
    examples = data.Examples(jnp.arange(22.0).reshape(11, 2), jnp.arange(11, dtype=jnp.int32))
    train, tested = data.split(KEY, examples, test)
    assert len(tested.inputs) == len(tested.labels) == 3
    np.testing.assert_array_equal(np.sort(np.concatenate([train.labels, tested.labels])), range(11))
    for part in (train, tested):
        np.testing.assert_array_equal(part.inputs, 2 * np.asarray(part.labels)[:, None] + [0, 1])


def test_a_split_is_the_keys_own() -> None:
    examples = data.Examples(np.zeros((11, 2)), np.arange(11))
    train, other = (data.split(key, examples)[0].labels for key in (KEY, jax.random.key(4)))
    assert not np.array_equal(train, other)
    assert not np.array_equal(np.sort(train), train)
    np.testing.assert_array_equal(jax.jit(lambda key: data.split(key, examples)[0].labels)(KEY), train)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """400 epochs of 11 examples in batches of 3, and one batch more."""
    return np.asarray(data.batches(KEY, examples=11, batch_size=3, num_steps=1201))


def test_every_epoch_is_a_fresh_permutation_cut_into_batches(rows: np.ndarray) -> None:
    assert (rows.shape, rows.dtype) == ((1201, 3), np.int32)
    epochs = rows[:1200].reshape(400, 9)
    assert all(len(set(epoch)) == 9 for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 400
    for e in (0, 7):
        order = jax.random.permutation(jax.random.fold_in(KEY, e), jnp.arange(11, dtype=jnp.int32))
        np.testing.assert_array_equal(epochs[e], order[:9])


def test_every_example_is_as_often_first_as_any_other(rows: np.ndarray) -> None:
    """In the first batch of an epoch with a chance of 3/11; 4.5 standard errors of 400 epochs."""
    share, chance = np.bincount(rows[:1200:3].ravel(), minlength=11) / 400, 3 / 11
    assert share.shape == (11,)
    assert np.abs(share - chance).max() < 4.5 * math.sqrt(chance * (1 - chance) / 400)


def test_fewer_steps_are_the_first_of_more_also_when_traced(rows: np.ndarray) -> None:
    np.testing.assert_array_equal(data.batches(KEY, 11, 3, 5), rows[:5])
    first, other = jax.jit(jax.vmap(lambda key: data.batches(key, 11, 3, 5)))(jnp.stack([KEY, jax.random.key(4)]))
    np.testing.assert_array_equal(first, rows[:5])
    assert not np.array_equal(other, first)


def test_an_epoch_is_its_own_keys_also_where_keys_do_not_batch() -> None:
    """Keys of the kind "rbg" draw other numbers under vmap than alone."""
    key = jax.random.key(0, impl="rbg")
    order = jax.random.permutation(jax.random.fold_in(key, 3), jnp.arange(5, dtype=jnp.int32))
    np.testing.assert_array_equal(data.batches(key, 5, 2, 8)[6:].ravel(), order[:4])


def test_a_full_batch_is_everything_in_order() -> None:
    np.testing.assert_array_equal(data.batches(KEY, 4, 4, 3), [[0, 1, 2, 3]] * 3)


def test_batches_are_the_same_in_float64(rows: np.ndarray, x64: None) -> None:
    wide = data.batches(KEY, 11, 3, 5)
    assert wide.dtype == jnp.int32
    np.testing.assert_array_equal(wide, rows[:5])


# --- refusals -------------------------------------------------------------------------------------------------------

FEW = data.Examples(np.zeros((10, 4), np.float32), np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 4]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FEW.shaped(3, 2), r"shape must hold the 4 numbers of an input, got \(3, 2\)"),
        (lambda: FEW.shaped(-2, -2), "shape must be at least 1, got -2"),
        (lambda: FEW.shaped((2, 2)), r"shape must be a whole number, got \(2, 2\)"),
        (lambda: FEW.one_hot(4), r"labels must lie in 0 .. 3, got 4"),
        (lambda: FEW._replace(labels=-FEW.labels).one_hot(), "labels must lie in 0 .. 0, got -1"),
        (lambda: FEW.one_hot().one_hot(), "labels must be whole numbers to be made one-hot, got float32"),
        (lambda: FEW.one_hot(0), "classes must be at least 1, got 0"),
        (lambda: FEW.one_hot(scale=math.nan), "scale must be finite, got nan"),
        (lambda: jax.jit(lambda e: e.one_hot())(FEW), "classes must be given where labels are traced, got None"),
        (lambda: data.digits("pixels"), "standardize must be one of image, .* got 'pixels'; did you mean 'pixel'?"),
        (lambda: data.mnist("nowhere", standardize="no"), "standardize must be one of image, pixel, global, unit"),
        (lambda: data.idx("no", "no", standardize="no"), "standardize must be one of image, pixel, global, unit, none"),
        (lambda: data.standardize(FEW.inputs, "whiten"), "how must be one of image, pixel, global, unit, none"),
        (lambda: data.standardize(np.zeros(3)), r"inputs must have a shape \(examples, \*input\) .* got \(3,\)"),
        (lambda: data.standardize(np.zeros((0, 3))), r"inputs must have a shape .* got \(0, 3\)"),
        (lambda: data.standardize(FEW.inputs, like=np.zeros((2, 3))), r"like must hold inputs of shape \(4,\), got"),
        (lambda: data.standardize(FEW.inputs, like=np.zeros((0, 4))), r"like must have a shape .* got \(0, 4\)"),
        (lambda: data.standardize([[1.0, math.inf]]), "inputs must be finite and within float32, got inf"),
        (lambda: data.standardize([[1.0, 1e39]], "none"), r"inputs must be finite and within float32, got 1e\+39"),
        (lambda: data.standardize([[1, -2]], "unit"), r"inputs must not be negative to be scaled to \[0, 1\], got -2"),
        (lambda: data.split(KEY, FEW, 1.0), r"test must be a share in \(0, 1\) or a whole number of examples, got 1.0"),
        (lambda: data.split(KEY, FEW, math.nan), "test must be a share .* got nan"),
        (lambda: data.split(KEY, FEW, True), "test must be a number, got True"),
        (lambda: data.split(KEY, FEW, 0), "test must leave at least 1 of the 10 examples on either side, got 0"),
        (lambda: data.split(KEY, FEW, 10), "test must leave at least 1 of the 10 examples on either side, got 10"),
        (lambda: data.split(KEY, FEW, 0.01), "test must leave at least 1 of the 10 examples on either side, got 0.01"),
        (lambda: data.split(KEY, FEW._replace(labels=[1])), "labels must be one for each of the 10 inputs, got 1"),
        (lambda: data.batches(KEY, 10, 11, 1), "batch_size must be at most the 10 examples, got 11"),
        (lambda: data.batches(KEY, 10, 0, 1), "batch_size must be at least 1, got 0"),
        (lambda: data.batches(KEY, 10, 2.0, 1), "batch_size must be a whole number, got 2.0"),
        (lambda: data.batches(KEY, 0, 1, 1), "examples must be at least 1, got 0"),
        (lambda: data.batches(KEY, 10, 2, 0), "num_steps must be at least 1, got 0"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
