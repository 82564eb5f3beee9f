"""Which deep networks train, against the critical line of the theory: programs and pieces as they are in use."""

import jax
import numpy as np
import pytest

import vgjax as vg

COMPUTES = True

SIGMA_B = 0.05**0.5
VARIANCE = np.array([1.0, 1.375, 1.75, 2.25, 3.0])
STEPS, RATE = 200, 1e-4
TRAINING, _ = vg.data.split(jax.random.key(9), vg.data.digits())
NETWORKS = [vg.mlp(width=64, depth=depth, activation="tanh", inputs=64, outputs=10) for depth in (5, 80)]


@pytest.fixture(scope="module")
def runs() -> vg.Result:
    """Of two depths, at five variances."""
    measure, scales = vg.trainings(TRAINING, "adam", STEPS), vg.Scales(sigma_b=SIGMA_B)
    about = {"key": jax.random.key(0), "seeds": 1, "learning_rate": RATE, "workers": 2}
    return vg.sweep(NETWORKS, measure=measure, scales=scales, sigma_w=np.sqrt(VARIANCE), **about)


def test_deep_networks_train_at_the_critical_variance_and_neither_in_order_nor_in_chaos(runs: vg.Result) -> None:
    critical = vg.theory.critical("tanh", sigma_b=SIGMA_B).sigma_w ** 2
    shallow, deep = vg.training.best(runs)
    assert (shallow > 0.6).all()
    deepest = vg.trainable_depth(runs)
    assert deepest.max() == 80
    # Deep ones train next to the theory's line; far from it on either side they have learned next to nothing.
    assert (np.abs(VARIANCE[deepest == 80] - critical) < 0.25).all()
    assert abs(VARIANCE[deep.argmax()] - critical) < 0.25
    assert (deep[[0, -1]] < 0.35).all()


@pytest.mark.parametrize("i", [0, 4])
def test_each_is_what_it_is_alone(runs: vg.Result, i: int) -> None:
    """In a piece whose last point is one that is computed twice; from a few roundings apart in the first steps."""
    assert runs.provenance["chunks"] == [[3, 3], [3, 3]]
    weights, rest = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    scales, snapshots = (
        vg.Scales(sigma_b=SIGMA_B, sigma_w=VARIANCE[i] ** 0.5),
        vg.training.SnapshotConfig((), gradients=False),
    )
    drawn = vg.init(weights, NETWORKS[0])
    alone = vg.train(drawn, scales, TRAINING, "adam", STEPS, key=rest, learning_rate=RATE, snapshots=snapshots)
    np.testing.assert_allclose(runs.loss[0, 0, i, :50], alone.loss[:50], rtol=1e-4)
    np.testing.assert_allclose(runs.train_accuracy[0, 0, i], alone.snapshots.train_accuracy, atol=5e-3)
