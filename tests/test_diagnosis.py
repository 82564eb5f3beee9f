"""The diagnosis around the engine: verdicts on readings made by hand, models of every library, and how it is told."""

import dataclasses
import json
import math
import pickle
import re
import sys
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sick_models import CLASSES, HE, KEY, MODELS, WIDTH, X, Y, cross_entropy, stack

import vgjax as vg
from vgjax.cli import main
from vgjax.diagnosis import Diagnosis, Frontier, Path, Readings, Row, judge
from vgjax.diagnosis.models import read_model
from vgjax.diagnosis.table import HEAD
from vgjax.diagnosis.verdict import theil_sen
from vgjax.diagnosis.words import number

INF = math.inf


def row(i: int, log: float, **rest: Any) -> Row:
    """A layer of 64 units; ``log`` of its cotangent, if the rest does not say another."""
    told = {"where": f"/home/model.py:{i} (f)", "operation": "dot_general", "shape": (8, 64), "log_rms": 0.0}
    return Row(f"layers/{i}", **told | {"log_cotangent": log} | rest)


def readings(slope: float, layers: int = 20, **changes: dict[str, Any]) -> Readings:
    """An input, layers whose gradient falls by ``slope`` nats each on its way back, a head; ``changes`` by layer."""
    rows = [row(i, slope * i, **changes.get(f"at_{i}", {})) for i in range(layers + 1)]
    rows = [row(-1, -slope, operation="input"), *rows, row(layers + 1, slope * layers - 2.0)]
    return Readings((Path("depth", "depth", tuple(rows)),), tuple(rows[1:]), {r.name: 0.0 for r in rows[1:]}, loss=1.0)


# --- the verdict ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slope", "word"), [(0.0, "healthy"), (0.2, "healthy"), (0.4, "vanishing"), (-0.4, "exploding")]
)
def test_the_slope_decides(slope, word):
    found = judge(readings(slope))
    assert found.word == word
    assert (found.layers, found.slope) == (20, pytest.approx(slope))
    assert found.lost == pytest.approx(20 * slope)
    assert found.xi == pytest.approx(1 / abs(slope)) if slope else found.xi == INF


def test_one_sentence_says_what_to_do():
    said = judge(readings(0.4)).sentence
    assert said == "vanishing: the gradient shrinks by 0.67 a layer and survives 6 of your 20 layers"
    lower = {f"at_{i}": {"log_cotangent": 1.17 * i - 5} for i in range(7)}
    lower["at_7"] = {"log_cotangent": 7 * 1.17 - 5, "saturated": 0.96}
    said = judge(readings(1.17, 24, **lower)).sentence
    assert said == (
        "vanishing: the gradient shrinks by 0.31 a layer and survives 2 of your 24 layers; "
        "it breaks at layers/7 (model.py:7): 96% of its units are saturated"
    )


def test_a_constant_factor_on_the_loss_changes_nothing():
    def scaled(one: Row, log: float) -> Row:
        return dataclasses.replace(one, log_cotangent=one.log_cotangent + log)

    before = readings(0.4, at_5={"log_cotangent": -4.0})
    for log in (math.log(1e-5), math.log(1e5)):
        path = before.paths[0]
        rows = tuple(scaled(each, log) for each in path.rows)
        after = judge(dataclasses.replace(before, paths=(dataclasses.replace(path, rows=rows),)))
        assert after.sentence == judge(before).sentence


def test_chance_has_room_in_narrow_networks():
    """At width 4 a product of 20 random ReLU layers is off by sqrt(5 * 20 / 16) = 2.5 nats."""
    narrow = {f"at_{i}": {"shape": (8, 4)} for i in range(21)}
    assert judge(readings(0.4)).word == "vanishing"
    assert judge(readings(0.4, **narrow)).word == "healthy"


def test_one_layer_that_takes_all_is_named():
    path = readings(0.0).paths[0]
    rows = tuple(dataclasses.replace(each, log_cotangent=-7.0 if i < 10 else 0.0) for i, each in enumerate(path.rows))
    found = judge(dataclasses.replace(readings(0.0), paths=(dataclasses.replace(path, rows=rows),)))
    assert found.word == "vanishing"
    assert found.sentence == (
        "vanishing: the gradient shrinks by 9.1e-04 over your 20 layers; "
        "it breaks at layers/9 (model.py:9): it alone changes the gradient by 9.1e-04"
    )


def test_many_small_steps_have_no_typical_layer():
    """The median layer does nothing; five of forty take 2.5 nats each."""
    path = readings(0.0, 40).paths[0]
    logs = np.cumsum([2.5 if i % 9 == 8 else -0.01 for i in range(len(path.rows))])
    rows = tuple(dataclasses.replace(each, log_cotangent=float(log)) for each, log in zip(path.rows, logs, strict=True))
    found = judge(dataclasses.replace(readings(0.0), paths=(dataclasses.replace(path, rows=rows),)))
    assert (found.word, found.at) == ("vanishing", "")
    flat = dataclasses.replace(found, slope=0.0)
    assert flat.sentence.startswith("vanishing: the gradient shrinks by ")


def test_a_dead_layer_is_found_forward():
    """All slopes behind it are 0 too, so that the gradient is 0 from the last layer on."""
    zero = {f"at_{i}": {"log_cotangent": -INF} for i in range(21)}
    dead = {f"at_{i}": {"log_cotangent": -INF, "zeros": 1.0} for i in range(4, 21)}
    found = judge(readings(0.0, **zero | dead))
    assert found.word == "dead"
    assert found.sentence == "dead: the gradient is exactly 0 at layers/4 (model.py:4): its activation is 0 everywhere"


def test_a_saturated_layer_with_slopes_of_zero_is_dead():
    zero = {f"at_{i}": {"log_cotangent": -INF} for i in range(6)}
    found = judge(readings(0.0, **zero | {"at_5": {"log_cotangent": -INF, "saturated": 1.0}}))
    assert (found.word, found.at) == ("dead", "layers/5 (model.py:5)")
    assert "saturated" in found.cause


def test_a_head_of_zeros_is_no_fault():
    zero = {f"at_{i}": {"log_cotangent": -INF} for i in range(21)}
    found = dataclasses.replace(readings(0.0, **zero), zero_parameters=("layers/21", "layers/3/bias"))
    assert judge(found).word == "zero by construction"
    assert judge(found).is_healthy
    hidden = Diagnosis(found, behind=readings(0.4))
    assert hidden.verdict.word == "vanishing"
    hidden = Diagnosis(found, behind=readings(0.0))
    assert hidden.verdict.word == "zero by construction"
    assert "with it drawn: healthy" in hidden.verdict.sentence


def test_an_offset_of_zero_hides_nothing():
    zero = {f"at_{i}": {"log_cotangent": -INF} for i in range(21)}
    found = dataclasses.replace(readings(0.0, **zero), zero_parameters=("layers/21/bias",))
    assert judge(found).word == "dead"


def test_leaving_the_range_is_an_explosion_if_the_signal_grew_towards_it():
    grown = {f"at_{i}": {"log_rms": 1.0 * i, "dtype": "float16"} for i in range(21)}
    found = judge(readings(-1.0, **grown))
    # The largest of 512 Gaussian entries is 3.5 times their rms: 3.5 e^10 > 65504 > 3.5 e^9.
    assert (found.word, found.at) == ("exploding", "layers/10 (model.py:10)")
    assert "there it leaves float16" in found.sentence
    found = judge(readings(0.0, at_4={"log_rms": 12.0, "dtype": "float16"}))
    assert (found.word, found.at) == ("non-finite", "layers/4 (model.py:4)")


@pytest.mark.parametrize("log", [math.nan, INF])
def test_what_is_not_finite_is_named(log):
    assert judge(readings(0.0, at_4={"log_rms": log})).at == "layers/4 (model.py:4)"
    found = judge(readings(0.0, at_4={"log_cotangent": log}, at_3={"log_cotangent": log}))
    assert (found.word, found.at) == ("non-finite", "layers/4 (model.py:4)")
    found = judge(dataclasses.replace(readings(0.0), loss=log))
    assert found.sentence == "non-finite: the numbers end: the loss itself, of states that are finite"


def test_tokens_have_no_gradient_and_that_is_no_fault():
    path = readings(0.0).paths[0]
    rows = (dataclasses.replace(path.rows[0], log_cotangent=math.nan, dtype="float32"), *path.rows[1:])
    assert judge(dataclasses.replace(readings(0.0), paths=(Path("depth", "depth", rows),))).word == "healthy"


def test_two_layers_are_too_few_to_judge():
    assert judge(readings(3.0, 1)).word == "unclear"
    assert judge(readings(3.0, 2)).word == "vanishing"
    assert judge(Readings((), (), {})).word == "unclear"


def test_a_recurrence_is_judged_by_its_steps_and_may_begin_at_zero():
    steps = tuple(row(0, 0.5 * i, step=i, log_rms=-INF if i == 0 else 0.0) for i in range(41))
    found = judge(dataclasses.replace(readings(0.0), paths=(*readings(0.0).paths, Path("rnn.py:3 (f)", "time", steps))))
    assert (found.word, found.layers, found.forward_slope) == ("vanishing", 40, 0.0)
    assert found.sentence == (
        "vanishing along the steps of rnn.py:3: the gradient shrinks by 0.61 a step and survives 5 of your 40 steps"
    )


def test_steps_that_the_loss_does_not_see_are_padding():
    steps = tuple(row(0, -INF if i > 30 else 0.0, step=i) for i in range(41))
    path = Path("rnn.py:3 (f)", "time", steps)
    found = judge(dataclasses.replace(readings(0.0, 1), paths=(*readings(0.0, 1).paths, path)))
    assert (found.word, found.layers) == ("healthy", 30)


def test_where_gradient_has_other_ways_ends_and_breaks_say_nothing():
    """States of other sizes lie between: in a U-Net norms change with every pooling."""
    for ends in (True, False):
        path = dataclasses.replace(readings(0.0).paths[0], all_gradient=ends)
        rows = tuple(
            dataclasses.replace(each, log_cotangent=-9.0 if i < 5 else 0.0) for i, each in enumerate(path.rows)
        )
        found = judge(dataclasses.replace(readings(0.0), paths=(dataclasses.replace(path, rows=rows),)))
        assert (found.word, found.at != "") == (("vanishing", True) if ends else ("healthy", False))


def test_what_lies_beside_the_path_may_be_dead_or_detached():
    healthy = readings(0.0)
    dead = dataclasses.replace(healthy, sites=(*healthy.sites, row(50, 0.0, zeros=1.0)))
    assert (judge(dead).word, judge(dead).at) == ("dead", "layers/50 (model.py:50)")
    detached = dataclasses.replace(healthy, sites=(*healthy.sites, row(50, -INF), row(51, -INF)))
    assert judge(detached).cause == "its output is detached from the loss, and those of 1 maps before it"
    elsewhere = dataclasses.replace(detached, parameter_gradients={"layers/50": 0.0, "layers/51": 0.0})
    assert judge(elsewhere).word == "healthy"
    by_construction = dataclasses.replace(detached, zero_parameters=("blocks/0/alpha",))
    assert judge(by_construction).word == "healthy"


def test_remarks_say_what_a_plot_of_weight_gradients_would_have_shown():
    """dL/dW is the gradient times the signal: where both fall, one forward and one backward, it is even."""
    falls = {f"at_{i}": {"log_rms": -0.4 * i, "log_parameter_gradient": 0.0} for i in range(21)}
    flat = Diagnosis(readings(0.4, **falls))
    assert any("weight gradients would look even" in remark for remark in flat.remarks)
    assert any("the signal itself shrinks by 3.4e-04" in remark for remark in flat.remarks)
    steep = {f"at_{i}": {"log_parameter_gradient": 0.4 * i} for i in range(21)}
    same = Diagnosis(readings(0.4, **steep))
    assert any("shows the same" in remark for remark in same.remarks)
    cries = Diagnosis(readings(0.0, **steep))
    assert any("and mislead" in remark for remark in cries.remarks)


def test_remarks_name_what_is_easily_overlooked():
    told = dataclasses.replace(
        readings(0.0),
        parameter_gradients={"layers/0": 0.0, "unused/kernel": -INF},
        constants=(((512, 512), "model.py:3 (f)"),),
        opaque=(("custom_vjp_call", "model.py:4 (f)"),),
        frontier=(Frontier("first", -1.0, -9.0), Frontier("last", 0.0, -1.0)),
        cotangent="random",
        loss=math.nan,
    )
    said = "\n".join(Diagnosis(told).remarks)
    for part in (
        "no gradient reaches unused/kernel: not used, or detached",
        "an array of shape (512, 512) is a constant of the function (model.py:3 (f)): JAX gives it no gradient",
        "custom_vjp_call (model.py:4 (f)): it has a rule of its own",
        "the weakest carries 3.4e-04 of it (first)",
        "Hutchinson",
    ):
        assert part in said


def test_numbers_past_every_float_range_can_be_read():
    logs = (math.nan, INF, -INF, 0.0, math.log(0.31), math.log(50), -200.0, 2000.0, math.log(9.99e12))
    assert [*map(number, logs)] == ["nan", "inf", "0", "1", "0.31", "50", "1.4e-87", "3.9e+868", "1.0e+13"]


def test_the_slope_is_a_median():
    assert theil_sen([0, 1, 2, 300, 4, 5, -INF, 7]) == 1
    assert math.isnan(theil_sen([1.0]))
    assert theil_sen(np.arange(10_000)) == 1


# --- how it is told -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vanishing() -> Diagnosis:
    return Diagnosis(readings(0.4, at_3={"sites": (row(30, 0.0), row(31, 0.0))}), provenance={"jax": "0"})


def test_the_verdict_comes_first_and_columns_are_aligned(vanishing):
    lines = str(vanishing).splitlines()
    assert lines[0] == vanishing.verdict.sentence
    start = next(i for i, line in enumerate(lines) if line.startswith("state"))
    assert re.split(" +", lines[start].strip()) == [*HEAD[:-1]]
    table = lines[start + 1 :]
    assert len(table) == 23 + 2
    assert sum(line.startswith("  layers/3") for line in table) == 2  # the maps inside
    column = lines[start].index("shape")
    assert all(line[column:].startswith("float32[8,64]") for line in table)
    assert repr(vanishing) == f"<diagnosis: {vanishing.verdict.sentence}>"
    assert "<b>vanishing: " in vanishing._repr_html_()


def test_a_long_path_is_cut_in_the_middle():
    table = str(Diagnosis(readings(0.0, 500))).splitlines()
    assert "... 443 more" in table
    assert len(table) < 75
    assert Diagnosis(readings(0.0, 500))._repr_html_().count("<tr") == 504


def test_the_budget_adds_up(vanishing):
    rows = vanishing.readings.paths[0].rows
    budget = vanishing.blame()
    assert sum(budget.values()) == pytest.approx(rows[0].log_cotangent - rows[-1].log_cotangent)
    assert budget["layers/7"] == pytest.approx(-0.4)
    assert vanishing.blame(1) == {"layers": pytest.approx(sum(budget.values()))}
    zero = {f"at_{i}": {"log_cotangent": -INF} for i in range(10)}
    rest = Diagnosis(readings(0.0, **zero)).blame()
    assert (rest["layers/5"], rest["layers/10"]) == (0.0, -INF)
    with pytest.raises(ValueError, match=r"path must lie in 0 \.\. 0, got 1"):
        vanishing.blame(path=1)


def in_kinds(slope: float, layers: int = 20) -> Readings:
    """Layers of a kernel that adds 0.1 nats and an activation that takes them and the slope; a head of one kind."""
    before = {
        f"at_{i}": {"kinds": ("activation", "kernel"), "log_cuts": (slope * i + 0.1,)} for i in range(1, layers + 1)
    }
    return readings(slope, layers, **before)


def test_the_budget_by_kind_adds_up(tmp_path):
    found = Diagnosis(in_kinds(0.4))
    whole = sum(found.blame().values())
    kinds, both = found.blame(by="kind"), found.blame(by="both")
    assert kinds == pytest.approx({"activation": -20 * 0.5, "kernel": 20 * 0.1, "unsplit": whole + 8.0})
    assert (both["layers/7: activation"], both["layers/7: kernel"]) == pytest.approx((-0.5, 0.1))
    assert both["layers/21"] == found.blame()["layers/21"]
    assert found.blame(1, by="both")["layers: kernel"] == pytest.approx(2.0)
    for budget in (kinds, both, found.blame(1, by="both")):
        assert sum(budget.values()) == pytest.approx(whole, abs=1e-9)
    with pytest.raises(
        ValueError, match=r'^level must be left out of what is summed over all layers \(by="kind"\), got 1'
    ):
        found.blame(1, by="kind")
    data = found.to_xarray()
    assert data.log_gain_by_kind.sel(kind="kernel").values[8] == pytest.approx(0.1)
    np.testing.assert_allclose(data.log_gain_by_kind.values[:, 2:-1].sum(0), data.log_gain.values[2:-1])
    assert Diagnosis.load(found.save(tmp_path / "kinds.npz")) == found


def test_what_shrinks_the_gradient_is_said_where_it_does(vanishing):
    assert "what changes it, in ln over all layers: activation -10.0, kernel +2.0" in Diagnosis(in_kinds(0.4)).remarks
    for other in (Diagnosis(in_kinds(0.0)), vanishing):
        assert not any("what changes it" in remark for remark in other.remarks)


def test_a_gradient_that_ends_inside_a_layer_ends_in_its_kind():
    dead = {f"at_{i}": {"log_cotangent": -INF} for i in range(10)}
    dead["at_10"] = {"kinds": ("activation", "kernel"), "log_cuts": (-3.0,)}
    dead["at_9"] = {"kinds": ("activation", "kernel"), "log_cuts": (-INF,), "log_cotangent": -INF}
    both = Diagnosis(readings(0.0, **dead)).blame(by="both")
    assert (both["layers/10: activation"], both["layers/10: kernel"]) == (-INF, -3.0)
    assert (both["layers/9: activation"], both["layers/9: kernel"]) == (0.0, 0.0)


def test_a_picture_shows_breaks_and_what_floats_cannot_hold(vanishing):
    figure = vanishing.plot()
    left, right = figure.axes
    assert len(left.lines[0].get_xdata()) == 23
    assert left.get_ylim()[0] > left.get_ylim()[1]  # input on top
    np.testing.assert_allclose(right.lines[0].get_xdata(), [r.log_cotangent for r in vanishing.readings.paths[0].rows])
    far = Diagnosis(readings(8.0)).plot()
    assert len(far.axes[1].patches) == 1  # below float32's smallest number
    zero = Diagnosis(readings(0.0, at_4={"log_cotangent": -INF})).plot()
    assert [len(axes.lines[-1].get_xdata()) for axes in zero.axes] == [0, 1]  # rings at the edge


def test_a_page_stands_alone(vanishing, tmp_path):
    page = vanishing.to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "data:image/png;base64," in page
    assert "http" not in page
    assert vanishing.verdict.sentence in page


def test_it_is_kept_whole_or_not_at_all(vanishing, tmp_path):
    kept = dataclasses.replace(vanishing, behind=readings(0.0, at_4={"log_rms": INF}))
    path = kept.save(tmp_path / "one.npz")
    assert Diagnosis.load(path) == kept
    assert pickle.loads(pickle.dumps(kept)) == kept
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(ValueError, match="path must hold a whole saved diagnosis"):
        Diagnosis.load(path)
    with pytest.raises(ValueError, match=r"path must end in \.npz, got"):
        kept.save(tmp_path / "one.txt")
    with pytest.raises(FileNotFoundError):
        Diagnosis.load(tmp_path / "none.npz")
    assert json.loads(json.dumps(kept.to_json(), allow_nan=False))["verdict"]["word"] == kept.verdict.word


def test_labels(vanishing):
    data = vanishing.to_xarray()
    assert dict(data.sizes) == {"state": 23}
    assert data.name.values[8] == "layers/7"
    assert data.log_gain.values[8] == pytest.approx(-0.4)
    assert data.attrs["word"] == "vanishing"


def test_before_and_after(vanishing):
    change = Diagnosis(readings(0.0)).since(vanishing)
    said = str(change).splitlines()
    assert said[0].startswith("before: vanishing")
    assert said[1].startswith("after: healthy")
    assert any(line.split() == ["gradient,", "a", "layer", "0.67", "1.00"] for line in said)
    assert len(change.layers()) == 10
    assert repr(change) == "<change: vanishing -> healthy>"


# --- models of every library ----------------------------------------------------------------------------------------


class Net(nnx.Module):
    """Four layers with batch norm and dropout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(4)])
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return self.head(self.dropout(self.norm(x)))


class LinenNet(flax.linen.Module):
    """The same of Linen."""

    @flax.linen.compact
    def __call__(self, x: Any) -> Any:
        for i in range(4):
            x = jax.nn.relu(flax.linen.Dense(WIDTH, name=f"layers_{i}")(x))
        x = flax.linen.BatchNorm(use_running_average=False)(x)
        return flax.linen.Dense(CLASSES, name="head")(flax.linen.Dropout(0.1, deterministic=False)(x))


def of_nnx() -> Any:
    return Net(nnx.Rngs(0))


def of_linen() -> Any:
    return LinenNet(), LinenNet().init({"params": KEY, "dropout": KEY}, X)


def of_equinox() -> Any:
    equinox = pytest.importorskip("equinox")
    return equinox.nn.MLP(WIDTH, CLASSES, WIDTH, 4, key=KEY)


def of_haiku() -> Any:
    haiku = pytest.importorskip("haiku")
    network = haiku.transform(lambda x: haiku.nets.MLP([WIDTH] * 4 + [CLASSES])(x))
    return network, network.init(KEY, X)


def of_haiku_with_state() -> Any:
    haiku = pytest.importorskip("haiku")

    def forward(x: Any) -> Any:
        x = haiku.BatchNorm(True, True, 0.9)(haiku.nets.MLP([WIDTH] * 4)(x), True)
        return haiku.Linear(CLASSES, name="head")(x)

    network = haiku.transform_with_state(forward)
    return network, network.init(KEY, X)


LIBRARIES = [of_nnx, of_linen, of_equinox, of_haiku, of_haiku_with_state]


@pytest.mark.parametrize("make", LIBRARIES)
def test_a_model_is_read_as_its_own_library_differentiates_it(make):
    """`jax.grad` of the pure function that the library itself is called by."""
    told = read_model(make(), (X, Y), cross_entropy, KEY)
    gradient = jax.grad(told.function)(told.parameters, told.inputs, told.rest)
    found = vg.diagnose(make(), (X, Y), cross_entropy).readings
    assert found.loss == pytest.approx(float(told.function(told.parameters, told.inputs, told.rest)), rel=1e-5)
    assert len(found.parameter_gradients) == len(jax.tree.leaves(gradient))
    norms = [float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(gradient)]
    for log, norm in zip(found.parameter_gradients.values(), norms, strict=True):
        assert math.exp(log) == pytest.approx(norm, rel=1e-4, abs=1e-5 * max(norms))
    assert len(found.paths[0].rows) >= 6
    assert any("layers" in name or "linear" in name for name in found.parameter_gradients)


def test_a_module_is_left_as_it_is():
    model = of_nnx()
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey))))
    vg.diagnose(model, (X, Y), cross_entropy)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey))))


def test_layers_of_a_module_are_told_apart():
    """Against `jax.vjp` of each layer by itself, batch norm and dropout included."""
    net = of_nnx()
    found = vg.diagnose(of_nnx(), (X, Y), cross_entropy)
    mask = net.dropout(jnp.ones_like(X))  # what the first call of a model draws
    by_batch = lambda h: (h - h.mean(0)) / jnp.sqrt(h.var(0) + net.norm.epsilon)  # noqa: E731
    maps = [f for layer in net.layers for f in (layer, jax.nn.relu)] + [by_batch, lambda h: h * mask, net.head]
    values: list[Any] = [X]
    pulls = []
    for f in maps:
        value, pull = jax.vjp(f, values[-1])
        values.append(value)
        pulls.append(pull)
    cotangent, logs = jax.grad(cross_entropy)(values[-1], Y), []
    for pull in [None, *pulls[::-1]]:
        cotangent = cotangent if pull is None else pull(cotangent)[0]
        logs.append(math.log(float(jnp.linalg.norm(cotangent))))
    gains = dict(zip(range(len(maps)), np.diff(logs)[::-1], strict=True))
    by_kind = {
        "kernel": sum(gains[i] for i in (0, 2, 4, 6, 10)),
        "activation": sum(gains[i] for i in (1, 3, 5, 7)),
        "norm": gains[8],
        "scale": gains[9],
    }
    assert found.blame(by="kind") == pytest.approx(by_kind, abs=1e-5)
    assert list(found.blame(2, by="both"))[:3] == ["layers/0: kernel", "layers/1: activation", "layers/1: kernel"]


@pytest.mark.parametrize("make", LIBRARIES)
def test_a_rebuilt_model_is_one_of_the_users_kind(make):
    model = make()
    told = read_model(model, X, None, KEY)
    again = told.rebuild(jax.tree.map(lambda a: 0 * a, told.parameters))
    assert type(again) is type(model)
    output = read_model(again, X, None, KEY)
    assert np.all(np.asarray(output.function(output.parameters, output.inputs, output.rest)) == 0)


def two_layers(params: Any, x: Any) -> Any:
    """A function of parameters."""
    return jnp.tanh(x @ params["first"]) @ params["second"]


TWO = {"first": jnp.eye(WIDTH), "second": jnp.ones((WIDTH, CLASSES))}


def test_all_forms_of_a_loss_say_the_same():
    model = of_equinox()
    everything = vg.diagnose(
        model, (X, Y), lambda model, batch: (cross_entropy(jax.vmap(model)(batch[0]), batch[1]), 1)
    )
    assert everything.verdict == vg.diagnose(model, (X, Y), cross_entropy).verdict
    of_output = vg.diagnose(model, X, lambda logits: cross_entropy(logits, Y))
    assert of_output.readings.loss == pytest.approx(everything.readings.loss)
    as_function = vg.diagnose((lambda params, x, y: cross_entropy(two_layers(params, x), y), TWO), (X, Y))
    assert as_function.readings.cotangent == "loss"
    assert as_function.readings.loss == vg.diagnose((two_layers, TWO), (X, Y), cross_entropy).readings.loss
    given = vg.diagnose((two_layers, TWO), {"x": X, "y": Y}, lambda params, batch: two_layers(params, batch["x"]).sum())
    assert given.readings.cotangent == "loss"


def test_without_a_loss_norms_are_those_of_the_jacobian():
    """Hutchinson: with a linear model dout/dx is the kernel for every example."""
    kernel = jax.random.normal(KEY, (WIDTH, CLASSES))
    found = vg.diagnose((lambda params, x: x @ params["w"], {"w": kernel}), X, probes=200)
    assert found.readings.cotangent == "random"
    squared = math.exp(2 * found.readings.paths[0].rows[0].log_cotangent)
    exact = len(X) * float((kernel**2).sum())
    # The variance of v^T A v is 2 ||A||_F^2; A is J J^T, once an example.
    error = math.sqrt(2 * len(X) * float(((kernel.T @ kernel) ** 2).sum()) / 200)
    assert abs(squared - exact) < 4 * error


def test_without_gradients_of_parameters_the_path_is_the_same():
    model, batch, loss = stack(jnp.tanh, 0.7, 12)
    full, states = (vg.diagnose(model, batch, loss, parameters=each) for each in (True, False))
    assert full.verdict == states.verdict
    assert states.readings.parameter_gradients == {}
    assert all(math.isnan(each.log_parameter_gradient) for each in states.readings.sites)


def test_a_head_of_zeros_is_looked_behind():
    behind = vg.diagnose(*stack(jax.nn.relu, HE, 5, head=0.0))
    assert behind.verdict.word == "zero by construction"
    assert "with it drawn: healthy" in behind.verdict.sentence
    assert vg.diagnose(*stack(jax.nn.sigmoid, 1.0, 8, head=0.0)).verdict.word == "vanishing"


def test_what_is_closed_over_is_said():
    closed = jax.random.normal(KEY, (128, 128))
    x = jnp.ones((4, 128))
    found = vg.diagnose(
        (lambda params, x: jnp.tanh(x @ closed) @ params["w"], {"w": jnp.ones((128, 3)), "b": closed}), x
    )
    said = "\n".join(found.remarks)
    assert "an array of shape (128, 128) is a constant of the function (test_diagnosis.py" in said
    assert "no gradient reaches b: not used, or detached" in said


def test_parameters_that_are_not_those_that_are_used_are_dead():
    own = {name: jnp.array(a) for name, a in TWO.items()}
    found = vg.diagnose((lambda params, x: two_layers(own, x), TWO), X)
    assert found.verdict.word == "dead"
    assert "others that the function closes over" in found.verdict.sentence


class Weight(nnx.Variable):
    """Of a kind of its own."""


class Frozen(nnx.Module):
    """Whose first kernel is no parameter."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.kernel = Weight(jnp.eye(WIDTH))
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(x @ self.kernel)


def test_what_looks_like_weights_and_is_no_parameter_is_named():
    found = vg.diagnose(Frozen(nnx.Rngs(0)), (X, Y), cross_entropy)
    assert (
        "an array of shape (64, 64) is a constant of the function (kernel): JAX gives it no gradient" in found.remarks
    )


def test_a_nan_is_found_whatever_jax_looks_for():
    with jax.debug_nans(True):
        assert vg.diagnose(*MODELS["a root at 0"].make()).verdict.word == "non-finite"


def test_a_model_that_fails_says_so_itself():
    with pytest.raises(TypeError, match="dot_general"):
        vg.diagnose((two_layers, TWO), X[:, :3])
    with pytest.raises(ZeroDivisionError):
        vg.diagnose((two_layers, TWO), X, lambda output: 1 / 0)


REFUSED = {
    "model must be a module of NNX or Equinox, or a pair: .*, got 3": lambda: (3, X),
    "model must be .*, got the class Net": lambda: (Net, X),
    "model must have float parameters, got": lambda: ((two_layers, {"n": jnp.arange(3)}), X),
    "batch must hold an array, got 'abc'": lambda: ((two_layers, TWO), "abc"),
    r"batch must hold at least one example, got an array of shape \(0, 64\)": lambda: ((two_layers, TWO), X[:0]),
    "batch must hold numbers, got a NaN": lambda: ((two_layers, TWO), X * jnp.nan),
    r"batch must be \(inputs, targets\) for a loss of two": lambda: ((two_layers, TWO), (X,), cross_entropy),
    "model must return floats, .* got int32": lambda: ((lambda p, x: two_layers(p, x).argmax(-1), TWO), X),
    "loss must return one float number": lambda: ((two_layers, TWO), X, lambda output: output),
    r"loss must take \(output\)": lambda: ((two_layers, TWO), X, lambda a, b, c: 0),
    "model must have a way from the batch to its output that gradient passes": lambda: (
        (lambda p, x: jnp.sign(two_layers(p, x)), TWO),
        X,
    ),
    "GiB is the least that this model": lambda: (
        (lambda p, x: p["wide"].T @ p["wide"], {"wide": jnp.ones((1, 2**20))}),
        X,
    ),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_is_refused_is_refused_in_one_sentence(sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        vg.diagnose(*REFUSED[sentence]())
    assert "\n" not in str(caught.value)


def test_probes_are_of_random_vectors():
    with pytest.raises(ValueError, match="probes must be 1 with a loss"):
        vg.diagnose((two_layers, TWO), (X, Y), cross_entropy, probes=2)


def test_libraries_that_are_not_imported_are_not_needed(monkeypatch):
    for name in ("equinox", "haiku", "flax.linen"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert vg.diagnose((two_layers, TWO), X).verdict.word == "unclear"


# --- in tests and on the command line -------------------------------------------------------------------------------


def test_a_sick_model_fails_a_test_with_the_table():
    model, batch, loss = stack(jnp.tanh, 0.5, 20)
    with pytest.raises(AssertionError, match=r"(?s)^vanishing: .*state .*layers/19/kernel"):
        vg.assert_trainable(model, batch, loss)
    model, batch, loss = stack(jax.nn.relu, HE, 10)
    assert vg.assert_trainable(model, batch, loss).verdict.word == "healthy"


MODULE = """
import jax.numpy as jnp

def network(params, x):
    for kernel in params:
        x = jnp.tanh(x @ kernel)
    return x

def sick():
    return (network, [0.2 * jnp.eye(8)] * 9), jnp.ones((4, 8))

def healthy():
    return (network, [jnp.eye(8)] * 9), 0.1 * jnp.ones((4, 8)), lambda output: output.sum()

def broken():
    raise TypeError("a mistake of its own")

number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "its_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield "its_models"
    sys.modules.pop("its_models", None)


def test_the_command_says_by_its_exit_code_whether_a_model_is_healthy(module, tmp_path, capsys):
    assert main(["diagnose", f"{module}:healthy", "--html", "out/one.html", "--json", "one.json"]) == 0
    assert capsys.readouterr().out.startswith("healthy: ")
    assert "<html>" in (tmp_path / "out" / "one.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "one.json").read_text())["verdict"]["word"] == "healthy"
    assert main(["diagnose", f"{module}:sick"]) == 1
    assert re.match("vanishing: the gradient shrinks by 0.20 a layer and survives 1 of", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("its_models", "function must be given as package.module:function, got 'its_models'"),
        ("no_such:f", "function must be in a module that can be imported, got 'no_such:f'"),
        ("its_models:none", "function must be one of module its_models, got 'none'"),
        ("its_models:number", "function must be one of module its_models, got 'number'"),
    ],
)
def test_bad_names_are_one_sentence(module, capsys, function, sentence):
    assert main(["diagnose", function]) == 2
    assert re.fullmatch(f"vgjax: {re.escape(sentence)}.*\n", capsys.readouterr().err)


def test_a_users_own_error_is_left_as_it_is(module, capsys):
    assert main(["diagnose", f"{module}:broken"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.endswith("TypeError: a mistake of its own\n")
