"""Whole sweeps without weights against whole sweeps with them: what a user gets, keys, pieces and all, has the law of
drawn networks. Single numbers of single passes: test_implicit_law."""

import jax
import numpy as np
import pytest
from scipy import stats

import vgjax as vg

COMPUTES = True
X = np.array([0.7, -1.1, 0.4, 1.3, -0.2])
SEEDS = 400
LEAST = 1e-4
"""Below it a p-value fails; some 25 are asked for, of fixed keys."""


def swept(weights, net, *inputs, seeds=SEEDS, key=0, **options):
    """The same call with and without weights, of keys that have nothing in common."""
    of_key = jax.random.fold_in(jax.random.key(key), int(weights == "implicit"))
    return vg.sweep(net, *inputs, key=of_key, seeds=seeds, weights=weights, progress=False, **options)


def agree(drawn, undrawn, name):
    """Means, spreads and whole laws of one number a network."""
    placed = [np.where(np.isneginf(z), -1e6, z) for z in (drawn, undrawn)]  # dead networks are ties below all others
    assert np.isfinite(placed).all()
    alive = [z[np.isfinite(z)] for z in (drawn, undrawn)]
    found = {
        "law": stats.ks_2samp(*placed).pvalue,
        "mean": stats.ttest_ind(*alive, equal_var=False).pvalue,
        "spread": stats.levene(*alive).pvalue,
        "dead": stats.fisher_exact([[len(z), SEEDS - len(z)] for z in alive])[1] if len(drawn) == SEEDS else 1.0,
    }
    assert min(found.values()) > LEAST, (name, found)


@pytest.mark.parametrize("activation", ["tanh", "relu"])  # rows and tables (one point does not pay for tables of tanh)
def test_gains_of_a_sweep(activation):
    net = vg.mlp(width=8, depth=10, activation=activation, inputs=5)
    both = [swept(w, net, X, sigma_w=[1.4, 1.6]) for w in ("drawn", "implicit")]
    for i in range(2):
        agree(*(m.log_gain[:, i, -1] for m in both), f"gain {i}")
        agree(*(m.log_mean_square[:, i, 5] for m in both), f"q {i}")


def test_gradients_of_a_sweep():
    net = vg.mlp(width=8, depth=6, activation="tanh", inputs=5, outputs=3)
    both = [
        swept(w, net, X, np.ones(3), measure=vg.gradients(), sigma_w=1.5, sigma_b=0.3) for w in ("drawn", "implicit")
    ]
    agree(*(m.log_gradient[:, 0] for m in both), "gradient")
    agree(*(m.log_parameter_gradient["kernel"][:, 3] for m in both), "kernel")
    agree(*(m.log_gradient[:, 0] - m.log_mean_square[:, -1] for m in both), "gradient and signal together")


def test_a_sweep_of_another_law_is_told_apart():
    """What is compared could fail: weights larger by a tenth."""
    net = vg.mlp(width=8, depth=10, activation="relu", inputs=5)
    drawn, other = swept("drawn", net, X, sigma_w=1.4), swept("implicit", net, X, sigma_w=1.54)
    with pytest.raises(AssertionError, match="law"):
        agree(drawn.log_gain[:, -1], other.log_gain[:, -1], "gain")


def test_two_inputs_that_meet_keep_their_digits_in_float32():
    """ln(1 - c) at layer 60 in float32 without weights, against networks drawn in float64: two states of which each is
    rounded for itself would have lost it long before."""
    x, options = (X, X + 0.3), {"measure": vg.correlations(), "sigma_w": 0.9, "sigma_b": 0.2, "seeds": 100}
    size = {"width": 24, "depth": 60, "activation": "tanh", "inputs": 5}
    undrawn = swept("implicit", vg.mlp(**size), *x, **options).log_one_minus_c
    with jax.enable_x64(True):
        drawn = swept("drawn", vg.mlp(**size, dtype="float64"), *x, **options).log_one_minus_c
    assert drawn[:, 60].mean() < -25  # float32 holds 1 - c itself to 1e-7, which is -16
    for layer in (20, 40, 60):
        agree(drawn[:, layer], undrawn[:, layer].astype(float), f"layer {layer}")
