"""Remedies as measured, and initialization from data."""

import math
from typing import Any

import architecture_oracles as truth
import jax
import numpy as np
import oracles
import pytest

import vgjax as vg
from vgjax.networks.network import check_scales

pytestmark = pytest.mark.usefixtures("strict_promotion")

KEY = jax.random.key(2)
LAYERS, WIDTH = 5, 6
NET = vg.mlp(width=WIDTH, depth=LAYERS - 1, inputs=64, outputs=10, activation="sigmoid")


@pytest.fixture(scope="module")
def batch() -> vg.data.Examples:
    return vg.ensembles.remedy_examples("vanishing", examples=3)


@pytest.fixture(scope="module")
def measured(batch: vg.data.Examples) -> vg.Result:
    """A sigmoid network under remedies that change one thing each."""
    chosen = {
        "network": vg.ensembles.Remedy(NET),
        "clipped": vg.ensembles.Remedy(NET, clip=1e-3),
        "not clipped": vg.ensembles.Remedy(NET, clip=1e9),
        "faster": vg.ensembles.Remedy(NET, learning_rate=1.0),
        "larger": vg.ensembles.Remedy(NET, {"sigma_w": 4.0}),
        "tiny": vg.ensembles.Remedy(NET, {"sigma_w": 1e-6}),
        "brighter": vg.ensembles.Remedy(NET, input_scale=10.0),
        "squared": vg.ensembles.Remedy(NET, loss="squared_error", target_scale=7.0),
        "unit variance": vg.ensembles.Remedy(NET, unit_variance=True),
    }
    return vg.sweep(chosen, batch.inputs, batch.labels, measure=vg.first_steps(), leading="example", key=KEY, seeds=2)


def of(measured: vg.Result, name: str, variable: str) -> np.ndarray:
    """A variable of one remedy, one value a seed."""
    return measured.arrays[variable][list(measured.networks).index(name)]


def expected(seed: int, x: np.ndarray, y: np.ndarray, rate: float, unit_variance: bool = False, **scales: float) -> Any:
    """Of one draw, from `gradient_flow` of the batch and the norms of its ordinary weights."""
    parameters = vg.init(jax.random.split(jax.random.fold_in(KEY, seed))[0], NET)
    parameters = vg.networks.lsuv(parameters, vg.Scales(**scales), x) if unit_variance else parameters
    flow = vg.gradient_flow(parameters, vg.Scales(**scales), x, y)
    first, last = np.linalg.norm(np.exp(np.asarray(flow.log_gradient, float)), axis=0)[[0, -1]]
    logs = np.concatenate([np.ravel(log) for log in flow.log_parameter_gradient.values()])
    # By hand: W = sigma_w Z, b = sigma_b z, the head at unit gain.
    sigmas = {"kernel": scales.get("sigma_w", 1.0), "bias": scales.get("sigma_b", 0.0)}
    ordinary = {
        (part, name): np.asarray(a, float) * (1.0 if part == "head" else sigmas[name])
        for part, tree in (("stem", parameters.stem), ("stage", parameters.stages[0]), ("head", parameters.head))
        for name, a in tree.items()
    }
    size = math.sqrt(sum(np.sum(a**2) for a in ordinary.values()))
    lost = vg.naive_reading(parameters, vg.Scales(**scales), x, y)
    return {
        "log_ratio": math.log(first / last),
        "lost_layers": float(np.asarray(lost).sum(axis=1).mean()),
        "log_step": math.log(rate * math.sqrt(np.sum(np.exp(2 * logs))) / size),
        "log_first_step": math.log(rate)
        + float(flow.log_parameter_gradient["stem/kernel"])
        - math.log(np.linalg.norm(ordinary["stem", "kernel"])),
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_every_number_is_what_the_gradient_of_one_draw_says(
    measured: vg.Result, batch: vg.data.Examples, seed: int
) -> None:
    x, y = np.asarray(batch.inputs), np.asarray(batch.labels)
    one_hot = 7 * np.eye(10, dtype=np.float32)[y]
    cases = {
        "network": expected(seed, x, y, 0.1),
        "faster": expected(seed, x, y, 1.0),
        "larger": expected(seed, x, y, 0.1, sigma_w=4.0),
        "tiny": expected(seed, x, y, 0.1, sigma_w=1e-6),
        "brighter": expected(seed, 10 * x, y, 0.1),
        "squared": expected(seed, x, one_hot, 0.1),
        "unit variance": expected(seed, x, y, 0.1, unit_variance=True),
    }
    for name, numbers in cases.items():
        for variable, value in numbers.items():
            # Sums of some hundred squares in float32, in another order.
            assert of(measured, name, variable)[seed] == pytest.approx(value, abs=2e-5), (name, variable)
    assert cases["tiny"]["lost_layers"] == 2  # a factor of 3e-7 a layer: the squares of 1e-20 and 1e-27


def test_what_changes_the_step_alone_leaves_the_gradients_ratio(measured: vg.Result) -> None:
    ratio, step = (lambda name: of(measured, name, "log_ratio")), (lambda name: of(measured, name, "log_step"))
    np.testing.assert_array_equal(ratio("clipped"), ratio("network"))
    np.testing.assert_array_equal(ratio("faster"), ratio("network"))
    assert np.all(ratio("larger") > ratio("network") + 1)
    np.testing.assert_allclose(step("faster") - step("network"), math.log(10), atol=1e-6)
    np.testing.assert_array_equal(step("not clipped"), step("network"))


def test_a_clipped_step_has_the_norm_that_it_is_clipped_to(measured: vg.Result) -> None:
    for seed in range(2):
        parameters = vg.init(jax.random.split(jax.random.fold_in(KEY, seed))[0], NET)
        kernels = [parameters.stem["kernel"], *parameters.stages[0]["kernel"], parameters.head["kernel"]]
        size = math.sqrt(sum(float(np.sum(np.square(kernel))) for kernel in kernels))  # sigma_b is 0
        assert of(measured, "clipped", "log_step")[seed] == pytest.approx(math.log(0.1 * 1e-3 / size), abs=1e-5)
    shrunk = of(measured, "clipped", "log_step") - of(measured, "network", "log_step")
    first = of(measured, "clipped", "log_first_step") - of(measured, "network", "log_first_step")
    np.testing.assert_allclose(first, shrunk, atol=1e-6)


def test_the_table_prints_and_is_drawn(measured: vg.Result) -> None:
    lines = vg.ensembles.remedy_table(measured, markdown=True).splitlines()
    assert len(lines) == 2 + 9
    ratio = of(measured, "network", "log_ratio") / math.log(10)
    assert lines[2].startswith(f"| network | {ratio.mean():.1f} ± {ratio.std(ddof=1) / math.sqrt(2):.1f} | ")
    assert f"| 0 ± 0 of {LAYERS} |" in lines[2]
    plain = vg.ensembles.remedy_table(measured).splitlines()
    assert len(plain) == 1 + 9
    assert len(set(map(len, plain))) == 1
    assert plain[2].startswith("clipped")
    figure = vg.plots.remedies(measured)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(measured.networks)
    with pytest.raises(
        ValueError, match=r"^a table of remedies needs first_steps of several networks without axes, got <g"
    ):
        vg.ensembles.remedy_table(vg.sweep(NET, np.ones(64, np.float32), key=KEY, seeds=1))


@pytest.mark.parametrize(("kind", "layers"), [("vanishing", 50), ("exploding", 50), ("recurrent", 200)])
def test_the_textbooks_remedies_are_networks_with_scales_they_know(kind: str, layers: int) -> None:
    usual = next(iter(vg.remedies(kind).values())).network
    assert usual.depth in (layers, layers - 1)
    small = vg.remedies(kind, layers=4, width=8, examples=3)
    examples = vg.ensembles.remedy_examples(kind, layers=4, examples=3)
    measure = vg.first_steps()
    for name, remedy in small.items():
        check_scales(remedy.network, vg.Scales(**remedy.scales))
        assert remedy.network.depth in (3, 4), name
        remedy.adapt(measure).check(remedy.network, (examples.inputs, examples.labels))


def test_remedies_of_one_layer_have_one_layer() -> None:
    """A number is what it says, however small."""
    assert next(iter(vg.remedies("recurrent", layers=1, width=3).values())).network.depth == 1
    with pytest.raises(ValueError, match=r"^layers must be at least 1, got 0$"):
        vg.remedies("recurrent", layers=0)
    with pytest.raises(ValueError, match=r"^layers must be at least 1, got 0$"):
        vg.ensembles.remedy_examples("recurrent", layers=0)


def test_bad_remedies_are_refused_in_one_sentence(batch: vg.data.Examples) -> None:
    with pytest.raises(ValueError, match=r"^kind must be one of vanishing, exploding, recurrent, got 'sick'$"):
        vg.remedies("sick")
    with pytest.raises(ValueError, match=r"^examples must be at least 1, got 0$"):
        vg.ensembles.remedy_examples(examples=0)
    options = {"measure": vg.first_steps(), "leading": "example", "key": KEY}
    with pytest.raises(ValueError, match=r"^scale must be one of sigma_w, sigma_b, sigma_in, sigma_out, got 'branch'$"):
        vg.sweep({"a": vg.ensembles.Remedy(NET, {"branch": 1.0})}, *batch[:2], **options)
    residual = vg.mlp(width=4, depth=2, inputs=64, outputs=10, residual="pre")
    with pytest.raises(ValueError, match=r"^lsuv needs fully connected or convolutional layers, got Residual$"):
        vg.sweep({"a": vg.ensembles.Remedy(residual, unit_variance=True)}, *batch[:2], **options)


# --- initialization from data ---------------------------------------------------------------------------------------


def test_lsuv_gives_every_layer_unit_variance() -> None:
    net = vg.mlp(width=(9, 12, 12, 7), inputs=5, kernel_init="orthogonal", activation="relu")
    params = oracles.drawn(net, (5, 9, 12, 12, 7, 1), kernel_init="orthogonal")
    scales = vg.Scales(sigma_w=0.4, sigma_b=0.3)
    xs = jax.random.normal(KEY, (40, 5))
    ready = vg.networks.lsuv(params, scales, xs)
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
    ready = vg.networks.calibrate(params, scales, xs)
    alone = jax.vmap(lambda x: vg.forward(ready, scales, x))(xs)
    together = vg.forward(vg.networks.Parameters(params.stem, params.stages, params.head, training), scales, xs)
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_what_cannot_be_set_from_data_is_refused() -> None:
    net = vg.mlp(width=4, depth=2, inputs=3, residual="pre")
    xs = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"^lsuv needs fully connected or convolutional layers, got Residual$"):
        vg.networks.lsuv(truth.drawn(net), vg.Scales(), xs)
    with pytest.raises(ValueError, match=r"^xs must be a batch of inputs, shape \(batch, \*\(3,\)\), got one input$"):
        vg.networks.calibrate(truth.drawn(net), vg.Scales(), xs[0])
    tied = vg.networks.tied(vg.mlp(width=4, depth=2, inputs=3))
    with pytest.raises(
        ValueError, match=r"^parameters must be stored, each layer with its own, to be set layer by layer$"
    ):
        vg.networks.calibrate(truth.drawn(tied), vg.Scales(), xs)
