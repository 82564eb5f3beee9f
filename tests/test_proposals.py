"""What is proposed for a sick model: its effect is that of the model with it, and the first of them mends it."""

import math
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sick_models
from flax import nnx

import vgjax as vg
from vgjax.diagnosis import Proposal, proposals

WIDTH, DEPTH = 16, 12
X, Y = sick_models.X[:8, :WIDTH], sick_models.Y[:8]


def stack(weights: Any, x: Any) -> Any:
    for layer in weights["layers"]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ weights["head"]


def weights(gain: float, bias: float = 0.0) -> Any:
    keys = jax.random.split(jax.random.key(0), DEPTH + 1)
    layers = [{"kernel": gain * sick_models.gaussian(k, WIDTH, WIDTH), "bias": jnp.zeros(WIDTH)} for k in keys[1:]]
    layers[4]["bias"] += bias
    return {"layers": layers, "head": sick_models.gaussian(keys[0], WIDTH, 10)}


@pytest.fixture(scope="module")
def vanishing() -> tuple[Any, list[Proposal]]:
    model = stack, weights(0.6)
    return model, proposals(model, (X, Y), sick_models.cross_entropy)


def test_effects_are_those_of_the_model_with_them(vanishing: Any) -> None:
    model, found = vanishing
    assert len(found) >= 4
    for proposal in found:
        if proposal.change is not None:
            _, changed = proposal.apply(model)
            after = vg.diagnose((stack, changed), (X, Y), sick_models.cross_entropy).verdict
            assert after.word == proposal.after.word
            assert after.lost == pytest.approx(proposal.after.lost, abs=1e-3)
    assert found[0].before == vg.diagnose(model, (X, Y), sick_models.cross_entropy).verdict


def test_proposals_travel(vanishing: Any) -> None:
    model, found = vanishing
    for proposal in found:
        again = pickle.loads(pickle.dumps(proposal))
        assert (again.name, again.before, again.after) == (proposal.name, proposal.before, proposal.after)
        jax.tree.map(np.testing.assert_array_equal, again.apply(model)[1], proposal.apply(model)[1])


def test_the_first_mends_it_and_the_model_stays_as_it_was(vanishing: Any) -> None:
    (_, before), found = vanishing
    assert found[0].helps
    assert abs(found[0].after.lost) < 1
    jax.tree.map(np.testing.assert_array_equal, before, weights(0.6))
    left = [abs(p.after.lost) for p in found if p.after.is_healthy]
    assert left == sorted(left)
    assert not any("clipping" in proposal.name for proposal in found)  # no vanishing gradient is helped by it


def test_factors_make_every_layer_keep_the_gradient(vanishing: Any) -> None:
    """Against the norms that JAX's own gradients have at every layer."""
    model, found = vanishing
    chosen = next(p for p in found if p.name == "kernels at unit backward factor")
    _, changed = chosen.apply(model)

    def loss(moved: Any) -> Any:
        x = X
        for layer, eps in zip(changed["layers"], moved, strict=True):
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"] + eps)
        return sick_models.cross_entropy(x @ changed["head"], Y)

    norms = [float(jnp.linalg.norm(g)) for g in jax.grad(loss)([jnp.zeros((len(X), WIDTH))] * DEPTH)]
    np.testing.assert_allclose(np.log(norms[1:-1]), math.log(norms[1]), atol=0.1)


def test_a_dead_layer_is_mended_by_its_bias() -> None:
    found = proposals((stack, weights(math.sqrt(2), bias=-50.0)), (X, Y), sick_models.cross_entropy)
    assert found[0].before.word == "dead"
    assert "biases of 0" in found[0].name
    assert found[0].helps


def test_an_explosion_may_also_be_clipped_and_a_healthy_model_needs_nothing() -> None:
    exploding = proposals((stack, weights(3.0)), (X, Y), sick_models.cross_entropy)
    assert exploding[-1].name == "clipping"
    with pytest.raises(ValueError, match=r"^clipping is no change of parameters: clip the gradient's norm"):
        exploding[-1].apply((stack, weights(3.0)))
    assert proposals((stack, weights(math.sqrt(2))), (X, Y), sick_models.cross_entropy) == []


def test_inputs_far_from_standard_are_standardized() -> None:
    """Pixels from 0 to 255 saturate a tanh network that is healthy on standardized ones."""
    keys = jax.random.split(jax.random.key(1), DEPTH + 1)
    layers = [sick_models.orthogonal(k, WIDTH) for k in keys[1:]]
    params = {"layers": layers, "head": sick_models.gaussian(keys[0], WIDTH, 10)}

    def network(p: Any, x: Any) -> Any:
        for kernel in p["layers"]:
            x = jnp.tanh(x @ kernel)
        return x @ p["head"]

    pixels = 255 * jax.nn.sigmoid(X)
    found = proposals((network, params), (pixels, Y), sick_models.cross_entropy)
    chosen = next(p for p in found if p.name == "standardized inputs")
    standardized = (pixels - pixels.mean()) / pixels.std()
    after = vg.diagnose((network, params), (standardized, Y), sick_models.cross_entropy).verdict
    assert chosen.after.lost == pytest.approx(after.lost, abs=1e-3)
    assert chosen.helps


def test_a_change_is_drawn_before_beside_after(vanishing: Any) -> None:
    model, found = vanishing
    before, after = (vg.diagnose(each, (X, Y), sick_models.cross_entropy) for each in (model, found[0].apply(model)))
    for ax, name in zip(after.since(before).plot().axes, ("log_rms", "log_cotangent"), strict=True):
        new, old = (np.array([getattr(row, name) for row in d.readings.paths[0].rows]) for d in (after, before))
        lines = {line.get_label(): line.get_xdata() for line in ax.lines}
        np.testing.assert_allclose(lines["after"], new)
        np.testing.assert_allclose(lines["before"], old)
    fewer = {**weights(0.6), "layers": weights(0.6)["layers"][1:]}
    shorter = vg.diagnose((stack, fewer), (X, Y), sick_models.cross_entropy)
    with pytest.raises(ValueError, match=r"^before and after must have the same states"):
        after.since(shorter).plot()


def test_where_nothing_helps_another_architecture_is_named() -> None:
    """Batch norm explodes by itself, whatever its kernels are (Yang et al. 2019)."""
    found = proposals(*sick_models.MODELS["batch norm, 60 layers"].make())
    assert found[0].name == "another architecture"
    assert found[0].change is None
    assert found[0].after.is_healthy
    assert not any(proposal.helps for proposal in found[1:])


def test_a_module_gets_a_module_back() -> None:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.layers = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(20)])

        def __call__(self, x: Any) -> Any:
            for layer in self.layers:
                x = jax.nn.relu(layer(x))
            return x

    net = Net(nnx.Rngs(0))
    found = proposals(net, (X, Y), sick_models.cross_entropy)
    mended = found[0].apply(net)
    assert isinstance(mended, Net)
    assert vg.diagnose(mended, (X, Y), sick_models.cross_entropy).is_healthy
    assert not vg.diagnose(net, (X, Y), sick_models.cross_entropy).is_healthy
    with pytest.raises(ValueError, match=r"^model must have the parameters that this was tried on"):
        found[0].apply((stack, weights(1.0)))


def test_without_a_layer_the_budget_lacks_its_part() -> None:
    found = vg.diagnose((stack, weights(0.6)), (X, Y), sick_models.cross_entropy)
    budget = found.blame()
    for name, gain in budget.items():
        assert found.without(name) == pytest.approx(sum(budget.values()) - gain)
    with pytest.raises(ValueError, match=r"^the name of a layer must be one of .*did you mean 'layers/3/kernel'"):
        found.without("layer/3/kernel")
