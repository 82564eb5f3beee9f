"""Teachers: their labels against the unrolled network in float64, and students that reach what they must."""

import jax
import numpy as np
import oracles
import pytest

import vgjax as vg

COMPUTES = True

KEY = jax.random.key(7)
NET = vg.mlp(width=[6, 5, 7], inputs=4, outputs=3, activation="tanh")
SCALES = vg.Scales(sigma_w=1.7, sigma_b=0.3)


def unrolled(x: np.ndarray) -> np.ndarray:
    """What the teacher says, in float64."""
    weights = oracles.weights(vg.init(jax.random.fold_in(KEY, 0), NET), 1.7, 0.3)
    return np.stack([oracles.forward(weights, jax.numpy.tanh, row) for row in np.asarray(x)])


def test_labels_are_the_outputs_of_the_network_that_it_says_it_is() -> None:
    found = vg.teacher(KEY, NET, SCALES, 50)
    assert found.inputs.shape == (50, 4)
    np.testing.assert_allclose(np.mean(found.inputs**2, axis=1), 1, rtol=1e-6)
    assert np.abs(np.corrcoef(found.inputs.T) - np.eye(4)).max() < 0.5
    np.testing.assert_allclose(found.labels, unrolled(found.inputs), rtol=2e-6, atol=2e-6)


def test_inputs_of_ones_own() -> None:
    x = np.random.default_rng(0).normal(size=(50, 4)) * 3
    found = vg.teacher(KEY, NET, SCALES, x)
    np.testing.assert_array_equal(found.inputs, x.astype(np.float32))
    np.testing.assert_allclose(found.labels, unrolled(x.astype(np.float32)), rtol=2e-6, atol=2e-6)
    assert vg.teacher(KEY, NET, SCALES, x[0]).labels.shape == (1, 3)


def test_a_teacher_of_images() -> None:
    images = vg.cnn(channels=3, depth=1, inputs=(5, 5, 2), outputs=4)
    found = vg.teacher(KEY, images, inputs=6, classes=True)
    assert (found.inputs.shape, found.labels.shape) == ((6, *images.input_shape), (6,))


def test_noise_has_its_deviation_and_leaves_the_rest_as_it_was() -> None:
    clean, noisy = (vg.teacher(KEY, NET, SCALES, 2000, noise=noise) for noise in (0.0, 0.5))
    np.testing.assert_array_equal(clean.inputs, noisy.inputs)
    errors = np.asarray(noisy.labels - clean.labels)
    np.testing.assert_allclose(errors.std(axis=0), 0.5, rtol=0.1)
    assert np.abs(errors.mean(axis=0)).max() < 0.05


def test_classes_are_whole_numbers_about_equally_frequent_at_any_depth() -> None:
    """Deep in the ordered phase every output is nearly the same for all; what differs still tells classes apart."""
    deep = vg.mlp(width=32, depth=20, inputs=8, outputs=5, activation="tanh")
    found = vg.teacher(KEY, deep, vg.Scales(sigma_w=0.9, sigma_b=0.2), 2000, classes=True)
    assert found.labels.dtype == np.int32
    share = np.bincount(found.labels, minlength=5) / 2000
    assert share.min() > 0.08
    assert share.size == 5
    y = unrolled((plain := vg.teacher(KEY, NET, SCALES, 50, classes=True)).inputs)
    np.testing.assert_array_equal(plain.labels, ((y - y.mean(axis=0)) / y.std(axis=0)).argmax(axis=1))


def test_a_student_learns_what_its_teacher_says_and_no_better_than_its_noise() -> None:
    linear = vg.mlp(width=8, depth=1, inputs=4, outputs=2, activation="linear")
    data = vg.teacher(KEY, linear, inputs=400, noise=0.3)
    student, snapshots = vg.init(jax.random.key(1), linear), vg.training.SnapshotConfig([0], gradients=False)
    run = vg.train(student, vg.Scales(), data, "adam", 600, learning_rate=0.02, snapshots=snapshots)
    floor = 0.3**2 * 2 / 2
    assert run.snapshots.train_loss[0] > 3 * floor
    np.testing.assert_allclose(run.snapshots.train_loss[-1], floor, rtol=0.15)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"noise": -1.0}, "noise must be finite and not negative, got -1"),
        ({"inputs": 0}, "inputs must be .* got 0"),
        ({"inputs": np.zeros((5, 3))}, r"x must have shape \(4,\).*got \(5, 3\)"),
        ({"inputs": np.full((5, 4), np.nan)}, "x must be finite"),
        ({"inputs": np.ones((50, 4)), "classes": True}, "classes need outputs that differ between examples"),
        ({"scales": vg.Scales(sigma_v=1.0)}, "sigma_v"),
        ({"network": vg.mlp(width=4, depth=1, inputs=4, outputs=1), "classes": True}, "at least 2 outputs, got 1"),
        ({"noise": 3e38}, "outputs must be finite"),
    ],
)
def test_bad_input_is_one_sentence(given: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says) as raised:
        vg.teacher(KEY, **{"network": NET, **given})
    assert "\n" not in str(raised.value)
