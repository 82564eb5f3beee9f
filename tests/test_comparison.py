"""compare beyond plain stacks: residual branches, norms, dropout against their predictions at infinite width.

What infinite width leaves out goes like C / width: the tolerance is 4 standard errors of the draws plus that, at two
widths, so that the law is tested too.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

import vgjax as vg

DEPTH, SEEDS, BATCH = 12, 16, 8
KEY = jax.random.key(11)
NETWORKS: dict[str, dict[str, Any]] = {
    "dropout": {"dropout": "bernoulli"},
    "one kernel around a skip": {"residual": vg.networks.branch("pre", layers=1)},
    "two kernels around a skip": {"residual": "plain"},
    "layer norm before phi": {"norm": vg.norm("layer", epsilon=0)},
    "layer norm behind phi": {"norm": vg.norm("layer", epsilon=0, on="activations")},
    "rms norm behind phi": {"norm": vg.norm("rms", epsilon=0, on="activations")},
}


def swept(name: str, width: int, measure: vg.ensembles.Measurement, *inputs: np.ndarray) -> vg.Result:
    net = vg.mlp(width=width, depth=DEPTH, activation="tanh", inputs=16, **NETWORKS[name])
    rest = {"dropout": 0.2} if name == "dropout" else {}
    return vg.sweep(net, *inputs, measure=measure, key=KEY, seeds=SEEDS, sigma_w=[0.9, 1.6], sigma_b=0.3, **rest)


def inputs(count: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(count, 16)).astype(np.float32)


@pytest.mark.parametrize("width", [48, 160])
@pytest.mark.parametrize("name", NETWORKS)
def test_gains_and_states_are_those_of_the_theory(name: str, width: int) -> None:
    result = swept(name, width, vg.gains(), inputs(1)[0])
    for variable in ("log_gain", "log_mean_square"):
        found = vg.compare(result, variable)
        error = result.error(variable)  # not the comparison's own
        off = np.abs(found.measured - found.predicted)
        # C = 6: a mean of logs is off by 1 / n or 2 / n a layer, of which the last few are remembered; 4.5 is the most
        # that was measured beyond 2 errors.
        assert np.all(off <= 4 * error + 6 / width), (variable, np.max(off - 4 * error) * width)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_run_backwards_as_gains_run_forwards(name: str) -> None:
    width = 160
    found = vg.compare(swept(name, width, vg.gradients(), inputs(1)[0]))
    told = np.isfinite(found.z)
    assert told[:, 1:-1].all()
    off = np.abs(found.measured - found.predicted)[told]
    assert np.all(off <= 4 * found.standard_error[told] + 6 / width)


def test_correlations_under_one_mask_are_those_of_larger_weights() -> None:
    width = 160
    result = swept("dropout", width, vg.correlations(), *inputs(2))
    found = vg.compare(result)
    off = np.abs(found.measured - found.predicted)
    assert np.all(off <= 4 * found.standard_error + 6 / width)
    assert found.predicted[0, -1] < -2 < found.predicted[1, -1]  # the inputs meet at one weight scale, not at the other


def test_batch_norm_explodes_at_the_rate_of_its_batch() -> None:
    net = vg.mlp(width=96, depth=DEPTH, activation="relu", inputs=16, norm=vg.norm("batch", batch=BATCH, epsilon=0))
    result = vg.sweep(net, inputs(BATCH), key=KEY, seeds=SEEDS, sigma_w=[1.0])
    found = vg.compare(result)
    # The rate is that of the mean square; the mean of logs of a batch of 8 is a few percent lower.
    off = np.abs(found.measured - found.predicted)
    assert np.all(off <= 4 * result.error("log_gain") + 6 / 96)
    assert found.predicted[0, -1] - found.predicted[0, 1] == pytest.approx(np.log(1.788189977) / 2 * (DEPTH - 1))
    with pytest.raises(ValueError, match=r"^theory has the gains of a stack with batch norm, not its states"):
        vg.compare(result, "log_mean_square")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": vg.norm("group", groups=2)}, "^compare needs a network that theory knows, got mlp"),
        ({"norm": "layer", "residual": "pre"}, "^compare needs a network that theory knows, got mlp"),
        ({"residual": "post"}, "^compare needs a network that theory knows, got mlp"),
    ],
)
def test_what_theory_does_not_know_is_refused(options: dict[str, Any], message: str) -> None:
    net = vg.mlp(width=4, depth=2, inputs=3, **options)
    result = vg.sweep(net, np.ones(3, np.float32), key=KEY, seeds=2, sigma_w=[1.0])
    with pytest.raises(ValueError, match=message):
        vg.compare(result)


def test_one_number_for_all_points_where_theory_wants_one() -> None:
    net = vg.mlp(width=4, depth=2, inputs=3, residual="plain")
    result = vg.sweep(net, np.ones(3, np.float32), key=KEY, seeds=2, branch=[0.5, 1.0])
    with pytest.raises(ValueError, match=r"^compare takes one branch for all points, got several$"):
        vg.compare(result)


def tokens(width: int) -> np.ndarray:
    """Eight with a common part, every two of which have a correlation of 1/4."""
    rows = np.linalg.qr(np.random.default_rng(0).normal(size=(width, 9)))[0].T * np.sqrt(width)
    return (np.sqrt(0.75) * rows[:8] + np.sqrt(0.25) * rows[8]).astype(np.float32)


@pytest.mark.parametrize("place", ["pre", "mix"])
def test_transformers_have_the_gains_and_states_of_their_mean_field(place: str, tmp_path: Any) -> None:
    """From tokens of correlation 1/4; what is saved and loaded is compared alike."""
    width = 128
    net = vg.transformer(
        width=width, depth=4, heads=4, inputs=(8, width), norm=vg.norm("rms", epsilon=0.0), residual=place,
        feed_forward="reglu",
    )  # fmt: skip
    net = dataclasses.replace(net, stem=None)
    result = vg.sweep(net, tokens(width), key=KEY, seeds=SEEDS, sigma_w=[0.8, 1.3], sigma_qk=1.1)
    for variable in ("log_gain", "log_mean_square"):
        found = vg.compare(vg.load(result.save(tmp_path / "transformer.npz")), variable, correlation=0.25)
        off = np.abs(found.measured - found.predicted)
        assert np.all(off <= 4 * result.error(variable) + 6 / width), variable
        if place == "pre" and variable == "log_mean_square":
            assert np.ptp(found.predicted[:, -1]) > 0.2
    assert "theory and measurement" in found.verdict
    for options, message in (
        ({}, "compare needs the correlation of two tokens of h\\^0 for a transformer, got None"),
        ({"variable": "log_gradient"}, "variable must be one of log_gain, log_mean_square"),
    ):
        with pytest.raises(ValueError, match=message):
            vg.compare(result, **options)


@pytest.mark.parametrize(
    "options", [{"attention": "causal"}, {"attention": vg.networks.attention(positions="rotary")}, {"style": "llama"}]
)
def test_transformers_that_know_distances_are_not_compared(options: dict[str, Any]) -> None:
    net = vg.transformer(width=4, depth=1, heads=2, inputs=(3, 4), **options)
    assert net.theory_arguments is None
    assert vg.transformer(width=4, depth=1, heads=2, inputs=(3, 4)).theory_arguments is not None
