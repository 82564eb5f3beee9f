"""Remedies as measured, and initialization from data."""

import math
from pathlib import Path

import architecture_oracles as truth
import jax
import numpy as np
import oracles
import pytest

import vgjax as vg
from vgjax.ensembles import remedies

KEY = jax.random.key(2)
LAYERS, WIDTH = 5, 6


@pytest.fixture(scope="module")
def measured() -> vg.Remedies:
    """A sigmoid network under treatments that change one thing each."""
    patient = vg.Treatment(vg.mlp(width=WIDTH, depth=LAYERS - 1, inputs=64, outputs=10, activation="sigmoid"))
    chosen = {
        "patient": patient,
        "clipped": vg.Treatment(patient.network, clip=1e-3),
        "not clipped": vg.Treatment(patient.network, clip=1e9),
        "faster": vg.Treatment(patient.network, learning_rate=1.0),
        "larger": vg.Treatment(patient.network, {"sigma_w": 4.0}),
    }
    return vg.remedies(key=KEY, seeds=2, layers=LAYERS, width=WIDTH, examples=3, treatments=chosen)


def test_a_row_is_what_the_gradient_of_one_draw_says(measured: vg.Remedies) -> None:
    """Against `gradient_flow` of the same draw, and the norms of its ordinary weights."""
    net = vg.mlp(width=WIDTH, depth=LAYERS - 1, inputs=64, outputs=10, activation="sigmoid")
    images, seed = vg.data.digits(), 1
    params = vg.init(jax.random.fold_in(KEY, seed), net, stream=False)
    flow = vg.gradient_flow(params, vg.Scales(), images.inputs[:3], images.labels[:3])
    ends = np.linalg.norm(np.exp(np.asarray(flow.log_gradient, float)), axis=0)[[0, -1]]
    assert measured.log_ratio[seed, 0] == pytest.approx(math.log(ends[0] / ends[1]), rel=1e-5)
    assert measured.factor[seed, 0] == pytest.approx((ends[0] / ends[1]) ** (1 / (LAYERS - 1)), rel=1e-5)
    logs = np.concatenate([np.ravel(log) for log in flow.log_parameter_gradient.values()])
    weights = vg.absorb_scales(params, vg.Scales())
    size = math.sqrt(sum(float(np.sum(np.asarray(leaf) ** 2)) for leaf in jax.tree.leaves(weights)))
    expected = math.log(0.1 * math.sqrt(np.sum(np.exp(2 * logs))) / size)
    assert measured.log_step[seed, 0] == pytest.approx(expected, abs=1e-5)
    first = math.log(0.1) + float(flow.log_parameter_gradient["stem/kernel"])
    first -= math.log(np.linalg.norm(weights.stem["kernel"]))
    assert measured.log_first_step[seed, 0] == pytest.approx(first, abs=1e-5)


def test_what_changes_the_step_alone_leaves_the_gradients_ratio(measured: vg.Remedies) -> None:
    patient, clipped, _, faster, larger = measured.log_ratio.T
    np.testing.assert_array_equal(clipped, patient)
    np.testing.assert_array_equal(faster, patient)
    assert np.all(larger > patient + 1)
    steps = measured.log_step
    np.testing.assert_allclose(steps[:, 3] - steps[:, 0], math.log(10))
    np.testing.assert_array_equal(steps[:, 2], steps[:, 0])
    shrunk = steps[:, 1] - steps[:, 0]
    assert np.all(shrunk < -3)
    np.testing.assert_allclose(measured.log_first_step[:, 1] - measured.log_first_step[:, 0], shrunk)


def test_the_table_prints_saves_and_loads(measured: vg.Remedies, tmp_path: Path) -> None:
    lines = measured.to_markdown().splitlines()
    assert len(lines) == 2 + 5
    assert lines[2].startswith("| patient | ")
    assert "clipped" in str(measured)
    for suffix in (".npz", ".nc"):
        again = vg.load(measured.save(tmp_path / f"remedies{suffix}"))
        np.testing.assert_array_equal(again.log_ratio, measured.log_ratio)
        assert str(again) == str(measured)
        assert again.provenance == measured.provenance
    dataset = measured.to_xarray()
    assert dataset.log_step.sel(treatment="faster").shape == (2,)
    figure = vg.plots.remedies(measured)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(measured.treatment)


def test_the_textbooks_treatments_are_networks_with_scales_they_know() -> None:
    for make, layers in remedies.PATIENTS.values():
        for name, treatment in make(layers, 8, 4).items():
            vg.networks.check_scales(treatment.network, vg.Scales(**treatment.scales))
            assert treatment.network.depth in (layers, layers - 1), name


def test_bad_treatments_are_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="patient must be one of vanishing, exploding, recurrent, got 'sick'"):
        vg.remedies("sick")
    with pytest.raises(ValueError, match="treatments must name at least one"):
        vg.remedies(treatments={})
    net = vg.mlp(width=3, depth=2, inputs=64, outputs=10)
    with pytest.raises(ValueError, match="scale must be one of sigma_w, sigma_b, got 'branch'"):
        vg.remedies(treatments={"patient": vg.Treatment(net, {"branch": 1.0})})


# --- initialization from data ---------------------------------------------------------------------------------------


def test_lsuv_gives_every_layer_unit_variance() -> None:
    net = vg.mlp(width=(9, 12, 12, 7), inputs=5, kernel_init="orthogonal", activation="relu")
    params = oracles.drawn(net, (5, 9, 12, 12, 7, 1), kernel_init="orthogonal")
    scales = vg.Scales(sigma_w=0.4, sigma_b=0.3)
    xs = jax.random.normal(KEY, (40, 5))
    ready = vg.lsuv(params, scales, xs)
    hs = xs @ (0.4 * ready.stem["kernel"]) + 0.3 * ready.stem["bias"]
    for stage in ready.stages:
        for kernel, bias in zip(stage["kernel"], stage["bias"], strict=True):
            assert np.var(hs) == pytest.approx(1, abs=1e-3)
            hs = 0.4 * np.maximum(hs, 0) @ kernel + 0.3 * bias
    assert np.var(hs) == pytest.approx(1, abs=1e-3)
    np.testing.assert_array_equal(ready.stages[0]["bias"], params.stages[0]["bias"])


def test_calibrated_running_statistics_are_those_of_the_batch() -> None:
    """Then every example alone reads what it reads within the batch, in training mode."""
    about = {"width": 6, "depth": 3, "inputs": 4, "outputs": 2, "activation": "tanh"}
    running, training = vg.mlp(**about, norm="batch_running"), vg.mlp(**about, norm=vg.norm("batch", batch=30))
    xs, scales = jax.random.normal(KEY, (30, 4)), vg.Scales(sigma_w=1.7, sigma_b=0.3)
    params = truth.drawn(running)
    ready = vg.calibrate(params, scales, xs)
    alone = jax.vmap(lambda x: vg.forward(ready, scales, x))(xs)
    together = vg.forward(vg.networks.Parameters(params.stem, params.stages, params.head, training), scales, xs)
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_what_cannot_be_set_from_data_is_refused() -> None:
    net = vg.mlp(width=4, depth=2, inputs=3, residual="pre")
    xs = np.ones((2, 3))
    with pytest.raises(ValueError, match="lsuv needs fully connected or convolutional layers, got Residual"):
        vg.lsuv(truth.drawn(net), vg.Scales(), xs)
    with pytest.raises(ValueError, match=r"xs must be a batch of inputs, shape \(batch, \*\(3,\)\), got one input"):
        vg.calibrate(truth.drawn(net), vg.Scales(), xs[0])
    tied = vg.networks.tied(vg.mlp(width=4, depth=2, inputs=3))
    with pytest.raises(ValueError, match="parameters must be stored, each layer with its own"):
        vg.calibrate(truth.drawn(tied), vg.Scales(), xs)
