"""Which deep networks train, against the critical line of the theory."""

import jax
import numpy as np

import vgjax as vg

SIGMA_B = 0.05**0.5
VARIANCE = np.array([1.0, 1.375, 1.75, 2.25, 3.0])


def test_deep_networks_train_at_the_critical_variance_and_neither_in_order_nor_in_chaos():
    critical = vg.theory.critical("tanh", sigma_b=SIGMA_B).sigma_w ** 2
    training, _ = vg.data.split(jax.random.key(9), vg.data.digits())
    networks = [vg.mlp(width=64, depth=depth, activation="tanh", inputs=64, outputs=10) for depth in (5, 80)]
    runs = vg.train_sweep(
        networks,
        training,
        "adam",
        200,
        key=jax.random.key(0),
        learning_rate=1e-4,
        scales=vg.Scales(sigma_b=SIGMA_B),
        sigma_w=np.sqrt(VARIANCE),
    )
    shallow, deep = runs.best()
    assert (shallow > 0.6).all()
    deepest = runs.trainable_depth()
    assert deepest.max() == 80
    # Deep ones train next to the theory's line; far from it on either side they have learned next to nothing.
    assert (np.abs(VARIANCE[deepest == 80] - critical) < 0.25).all()
    assert abs(VARIANCE[deep.argmax()] - critical) < 0.25
    assert (deep[[0, -1]] < 0.35).all()
