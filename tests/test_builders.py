"""Builders: recipes are their combinators, one set of words, one line for people, and networks as JSON and back."""

import copy
import dataclasses
import functools
import inspect
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import architecture_oracles
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

import vgjax as vg
from vgjax import activations
from vgjax.networks.network import Stage, check_scales

MLP = functools.partial(vg.mlp, width=6, depth=3, inputs=4, outputs=3)
TRANSFORMER = functools.partial(vg.transformer, width=6, depth=3, heads=2, inputs=(3, 4))
RECURRENT = {"width": 4, "depth": 5, "inputs": 3}

NETWORKS: dict[str, Callable[[], vg.Network]] = {
    "mlp(tanh, width 6, depth 3, inputs 4, outputs 3)": MLP,
    "mlp(gelu, width 5-4-7, depth 4, inputs 6, outputs 1)": lambda: vg.mlp(
        width=(5, 4, 4, 4, 7), inputs=6, activation="gelu"
    ),
    "mlp(tanh, width 6, depth 3, inputs 6, outputs 1)": lambda: vg.mlp(width=6, depth=3, stem=False),
    "mlp(leaky_relu(0.3), width 6, depth 3, inputs 4, outputs 3, dropout, tied)": lambda: vg.networks.tied(
        MLP(activation="leaky_relu(0.3)", dropout="gaussian")
    ),
    "mlp(tanh, width 6, depth 3, inputs 4, outputs 3, residual, orthogonal, group norm)": lambda: MLP(
        norm=vg.norm("group", groups=2, epsilon=0.0),
        residual=vg.networks.branch("plain", bottleneck=8, scheme="rezero"),
        kernel_init="orthogonal",
    ),
    "mlp(tanh, states 5x6, depth 3, inputs 5x4, outputs 5x3, residual, batch norm)": lambda: MLP(
        norm=vg.norm("batch", batch=5, on="activations"), residual=vg.networks.branch("post", layers=3, scheme="fixup")
    ),
    "cnn(relu, states 7x4, depth 2, inputs 7x1, outputs 1, delta_orthogonal)": lambda: vg.cnn(
        channels=4, depth=2, inputs=(7, 1), kernel_size=5, padding="zero", kernel_init="delta_orthogonal"
    ),
    "resnet(relu, states 32x8x8x16-32x4x4x32-32x2x2x64, depth 27, inputs 32x8x8x1, outputs 32x1, residual, "
    "batch norm)": vg.resnet,
    "resnet(tanh, states 4x4x2-2x2x3, depth 2, inputs 4x4x1, outputs 1, residual, layer norm)": lambda: vg.resnet(
        channels=(2, 3), depth=(1, 1), inputs=(4, 4, 1), activation="tanh", norm="layer", residual="post"
    ),
    "rnn(tanh, width 4, depth 5, inputs 5x3, outputs 5x1, every step read)": lambda: vg.rnn(
        **RECURRENT, every_step=True
    ),
    "minimal(width 3, depth 5, inputs 5x3, outputs 1)": lambda: vg.rnn(**RECURRENT | {"width": 3}, cell="minimal"),
    "lstm(states 2x4, depth 5, inputs 5x3, outputs 1)": lambda: vg.lstm(**RECURRENT),
    "gru(width 4, depth 5, inputs 5x3, outputs 1)": lambda: vg.gru(**RECURRENT),
    "diagonal(states 2x4, depth 5, inputs 5x3, outputs 1)": lambda: vg.networks.diagonal_rnn(**RECURRENT),
    "selective(states 16x4, depth 5, inputs 5x4, outputs 1)": lambda: vg.networks.mamba(width=4, depth=5),
    "matrix(states 4x4, depth 5, inputs 5x3, outputs 5x1, every step read)": lambda: vg.networks.delta_net(
        **RECURRENT, decay="scalar", every_step=True
    ),
    "transformer(gelu, states 3x6, depth 3, inputs 3x4, outputs 1, residual, rms norm, attention)": lambda: TRANSFORMER(
        norm=vg.norm("rms", epsilon=0.0), attention="causal"
    ),
    "transformer(gelu, states 3x6, depth 3, inputs 3x4, outputs 1, residual, attention, layer norm)": lambda: (
        TRANSFORMER(residual=vg.networks.branch("post", scheme="deepnorm"))
    ),
    "stack of Dense(width 5-3, depth 1, inputs 5, outputs 3)": lambda: vg.stack(
        vg.blocks.Dense, 5, 3, depth=1, input_shape=5
    ),
}


@pytest.mark.parametrize("line", NETWORKS)
def test_a_network_prints_as_one_line_and_is_equal_when_built_twice_pickled_or_copied(line: str) -> None:
    network = NETWORKS[line]()
    assert repr(network) == line
    for again in (NETWORKS[line](), pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert again == network
        assert hash(again) == hash(network)


def test_parameters_are_pickled_with_their_network_and_read_by_another_process(tmp_path: Path) -> None:
    params = vg.init(
        jax.random.key(0), NETWORKS["cnn(relu, states 7x4, depth 2, inputs 7x1, outputs 1, delta_orthogonal)"]()
    )
    (tmp_path / "params").write_bytes(pickle.dumps(params))
    read = f"import pickle; print(pickle.load(open({str(tmp_path / 'params')!r}, 'rb')).network)"
    done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr(params.network)
    again = pickle.loads((tmp_path / "params").read_bytes())
    assert again.network == params.network
    jax.tree.map(np.testing.assert_array_equal, again, params)


# --- JSON -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", NETWORKS)
def test_a_network_comes_back_from_json(line: str) -> None:
    network = NETWORKS[line]()
    again = vg.networks.network_from_json(json.loads(json.dumps(vg.networks.network_to_json(network))))
    assert again == network
    assert repr(again) == line
    assert again.scales == network.scales


class Users(nnx.Module):
    """A user's block, named as one of the library's."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.width = width

    def __call__(self, h: jax.Array) -> jax.Array:
        return h


Users.__name__ = "Pool"


@pytest.mark.parametrize(
    "network",
    [
        MLP(activation=oracles.user_activation),
        MLP(activation=activations.Activation("tanh", jnp.sin)),
        vg.stack(Users, 4, depth=2, input_shape=4),
        vg.stack(vg.blocks.Residual, vg.blocks.spec(Users, 4), depth=2, input_shape=4),
    ],
    ids=["callable", "a known name", "block", "block inside"],
)
def test_what_is_a_users_own_is_described_but_does_not_come_back(network: vg.Network) -> None:
    described = json.loads(json.dumps(vg.networks.network_to_json(network)))
    assert "of a user" in str(described)
    assert vg.networks.network_from_json(described) is None


def test_only_blocks_of_the_library_are_looked_up_and_other_descriptions_are_none() -> None:
    described = vg.networks.network_to_json(MLP())
    assert vg.networks.network_from_json(described) is not None
    for name in ("os", "protocol", "spec", "nnx.Linear", "__builtins__", "Dens", 3):
        spec = {"block": name, "arguments": [6, 6], "options": {}}
        assert vg.networks.network_from_json(described | {"head": spec}) is None
    later = {**described["stages"][0], "speed": 3}
    assert vg.networks.network_from_json(described | {"stages": [later]}) is None
    unknown = {"block": "Activate", "arguments": [], "options": {"activation": {"activation": "tanhh"}}}
    assert vg.networks.network_from_json(described | {"head": unknown}) is None
    for other in ({}, {"stem": None}, described | {"stages": 3}, described | {"input_shape": None}):
        assert vg.networks.network_from_json(other) is None


# --- activations ----------------------------------------------------------------------------------------------------


def test_activations_of_the_registry_are_pickled_by_name() -> None:
    slopes = ("leaky_relu(0.2)", "leaky_relu(0.123456789)", "leaky_relu(-1)")
    for name in (*activations.NAMES, *slopes):
        activation = activations.get(name)
        assert activation.name == name
        assert pickle.loads(pickle.dumps(activation)) is activation
        assert copy.deepcopy(activation) is activation
    own = activations.Activation("tanh", oracles.user_activation)
    assert pickle.loads(pickle.dumps(own)) == own


# --- recipes over combinators ---------------------------------------------------------------------------------------


STEM: dict[str, Any] = {"names": ("sigma_in", "sigma_b"), "follows": "sigma_w"}
HEAD: dict[str, Any] = {"names": ("sigma_out", "sigma_b"), "bias_init": "zero"}


def test_an_mlp_is_its_layers_in_a_row() -> None:
    layer = functools.partial(vg.dense, activation="relu", norm="layer", dropout="bernoulli")
    ends = {"stem": vg.dense(4, 6, **STEM), "head": vg.dense(6, 3, "relu", norm="layer", **HEAD)}
    recipe = MLP(activation="relu", norm="layer", dropout="bernoulli")
    assert vg.stack(layer(6, 6), depth=3, input_shape=4, **ends) == recipe
    assert vg.networks.sequential(*[layer(6, 6)] * 3, input_shape=4, **ends) == recipe


def test_a_residual_mlp_is_its_layers_around_skips() -> None:
    layer = functools.partial(vg.dense, activation="relu")
    branch = vg.networks.chain(layer(6, 8), layer(8, 6, names=("sigma_v", "sigma_a")))
    block = vg.residual(branch, scheme="stable", depth=3)
    byhand = vg.stack(block, depth=3, input_shape=4, stem=vg.dense(4, 6, **STEM), head=layer(6, 3, **HEAD))
    assert byhand == MLP(activation="relu", residual=vg.networks.branch("pre", bottleneck=8, scheme="stable"))
    assert byhand.scales["branch"] == vg.blocks.Scale(3**-0.5, "factor")


def test_one_layer_alone_is_a_chain_of_itself() -> None:
    assert vg.networks.chain(vg.dense(4, 4)) == vg.dense(4, 4)
    assert vg.networks.chain(first=vg.dense(4, 4)) != vg.dense(4, 4)


def test_a_network_without_stem_begins_with_its_input() -> None:
    net, whole = vg.mlp(width=5, depth=3, outputs=2, stem=False), vg.mlp(width=5, depth=3, inputs=4, outputs=2)
    assert net.input_shape == (5,)
    assert (net.stem, net.stages, net.head) == (None, whole.stages, whole.head)
    params = oracles.drawn(whole, (4, 5, 5, 5, 5, 2))
    x, scales = np.arange(4, dtype=np.float32), vg.Scales(sigma_w=1.3, sigma_b=0.2)
    first = 1.3 * x @ np.asarray(params.stem["kernel"]) + 0.2 * np.asarray(params.stem["bias"])
    alone = vg.networks.Parameters({}, params.stages, params.head, net)
    np.testing.assert_allclose(vg.forward(alone, scales, first), vg.forward(params, scales, x), rtol=1e-5)


def test_a_resnet_works_on_its_own_defaults() -> None:
    net = vg.resnet()
    assert [stage.depth for stage in net.stages] == [9, 1, 8, 1, 8]
    assert [stage.keeps_shape for stage in net.stages] == [True, False, True, False, True]
    params, x = architecture_oracles.drawn(net), np.random.default_rng(0).normal(size=net.input_shape)
    output = vg.forward(params, vg.Scales(sigma_w=1.4), x.astype(np.float32))
    assert output.shape == (32, 1)
    assert np.all(np.isfinite(output))
    assert np.std(output) > 0
    # Behind a phi that closes every block the head has neither phi nor norm.
    post = NETWORKS["resnet(tanh, states 4x4x2-2x2x3, depth 2, inputs 4x4x1, outputs 1, residual, layer norm)"]()
    assert post.head == vg.dense(3, 1, after=vg.blocks.spec(vg.blocks.Pool, 2), **HEAD)


def test_tied_and_untied_are_inverse_and_change_what_is_drawn() -> None:
    tied = vg.networks.tied(MLP())
    assert vg.networks.untied(tied) == MLP()
    assert vg.init(jax.random.key(0), tied).stages[0]["kernel"].shape == (6, 6)
    recurrence = vg.networks.untied(vg.rnn(**RECURRENT))
    assert vg.init(jax.random.key(0), recurrence).stages[0]["kernel"].shape == (5, 4, 4)


def test_a_gate_under_shared_parameters_takes_one_branch_scale() -> None:
    """What multiplies a shared parameter cannot differ from layer to layer; what multiplies a branch can."""
    gated, free = (
        vg.networks.tied(MLP(residual=vg.networks.branch("pre", scheme=scheme))) for scheme in ("rezero", "stable")
    )
    assert gated.scales["branch"] == vg.blocks.Scale(0.0, "parameter")
    check_scales(free, vg.Scales(branch=[1.0, -2.0, 3.0]))
    with pytest.raises(ValueError, match="branch must be one number where layers share their parameters"):
        check_scales(gated, vg.Scales(branch=[1.0, 2.0, 3.0]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: vg.residual(vg.dense(4, 4), scheme="stable"), "depth (which scheme 'stable' needs) must be a whole"),
        (
            lambda: vg.residual(vg.dense(4, 4), scheme="fixup", depth=3),
            "fixup needs a branch of at least 2 kernels, the last scaled by sigma_v, got 1",
        ),
        (lambda: vg.residual(vg.dense(4, 4), scheme="deepnrm"), "did you mean 'deepnorm'?"),
        (lambda: vg.dense(4, 0), "fan_out must be at least 1, got 0"),
        (lambda: vg.dense(4, 4, dropout="gausian"), "did you mean 'gaussian'?"),
        (lambda: vg.networks.conv(4, 4, kernel_init="identity"), "kernel_init must be one of gaussian, truncated"),
        (lambda: vg.networks.conv(4, 4, padding="same"), "padding must be one of circular, zero, got 'same'"),
        (lambda: vg.norm("layer", on="states"), "on must be one of preactivations, activations, got 'states'"),
        (lambda: vg.norm("group", groups=0), "groups must be at least 1, got 0"),
        (lambda: vg.networks.branch("post", bottleneck=0), "bottleneck must be at least 1, got 0"),
        (lambda: vg.networks.sequential(input_shape=4), "a network needs at least one block, got none"),
        (
            lambda: vg.stack(vg.dense(4, 4), 5, depth=1, input_shape=4),
            "a Spec of Dense has its arguments already, got more of them",
        ),
        (lambda: vg.stack(vg.dense(4, 3), depth=2, input_shape=4), "Dense must keep the shape of its state, got (3,)"),
        (lambda: TRANSFORMER(residual="plain"), "residual must be one of pre, post, sandwich"),
        (
            lambda: TRANSFORMER(residual=vg.networks.branch("pre", layers=3)),
            "layers and bottleneck of a transformer's branches",
        ),
        (lambda: TRANSFORMER(norm="batch_running"), "norm must be one of layer, rms, dyt, derf, got 'batch_running'"),
        (lambda: TRANSFORMER(norm=vg.norm("rms", on="activations")), "a transformer's norm takes an epsilon alone"),
        (lambda: TRANSFORMER(inputs=(3, 4, 5)), "inputs must be the shape (tokens, features) of one input"),
        (lambda: vg.cnn(channels=4, depth=2, inputs=8), "inputs must be the shape of an image, 1 to 3 sizes and its"),
        (
            lambda: Stage(vg.dense(4, 3), 2, keeps_shape=False),
            "Dense must keep the shape of its state to stand in a stage of 2",
        ),
        (
            lambda: vg.Network(None, (Stage(vg.dense(4, 4), 2), Stage(vg.dense(4, 4), 2, read=True)), None, (4,)),
            "the head must read the states of all stages or of none, got some",
        ),
    ],
)
def test_what_does_not_compose_is_refused_in_one_sentence(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        build()
    assert "\n" not in str(error.value)


# --- one set of words -----------------------------------------------------------------------------------------------

BUILDERS = (vg.mlp, vg.cnn, vg.resnet, vg.rnn, vg.lstm, vg.gru, vg.transformer)


@pytest.mark.parametrize("name", ["outputs", "kernel_size", "padding", "kernel_init", "bias_init", "dtype"])
def test_a_keyword_has_one_default_in_all_builders(name: str) -> None:
    signatures = [inspect.signature(build).parameters for build in (*BUILDERS, vg.dense, vg.networks.conv)]
    defaults = {str(parameters[name].default) for parameters in signatures if name in parameters}
    # conv takes the window itself, one number a dimension; a transformer's style and input say what is left out.
    assert len(defaults - {"(3, 3)", "style", "None"}) == 1


# --- what theory is told --------------------------------------------------------------------------------------------


def test_theory_is_told_of_plain_stacks() -> None:
    told = vg.mlp(width=(5, 4, 4, 7), inputs=6, activation="gelu", kernel_init="orthogonal").theory_arguments
    assert told is not None
    assert told.plain
    assert told.activation is activations.get("gelu")
    assert (told.kernel_init, told.bias_init) == ("orthogonal", "gaussian")
    assert told.widths == (5, 4, 4, 7)
    assert told.names == ("sigma_w", "sigma_b")
    alone = vg.stack(vg.blocks.Dense, 5, 3, depth=1, input_shape=5).theory_arguments
    assert alone == dataclasses.replace(
        told, activation=activations.get("linear"), kernel_init="gaussian", widths=(5, 3)
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dropout": "gaussian"}, {"dropout": "gaussian"}),
        ({"norm": "layer"}, {"norm": "layer", "epsilon": 1e-6}),
        (
            {"norm": vg.norm("rms", on="activations", epsilon=0), "dropout": "bernoulli"},
            {"norm": "rms", "norm_on": "activations", "dropout": "bernoulli"},
        ),
        ({"residual": vg.networks.branch("pre", layers=1)}, {"residual": "pre"}),
        ({"residual": vg.networks.branch("pre", layers=1, scheme="rezero")}, {"residual": "pre"}),
        (
            {"residual": vg.networks.branch("plain", bottleneck=8), "norm": "batch_running"},
            {
                "residual": "plain",
                "names": ("sigma_w", "sigma_b", "sigma_v", "sigma_a"),
                "norm": "batch_running",
                "epsilon": 1e-6,
            },
        ),
    ],
    ids=lambda value: ", ".join(value),
)
def test_theory_is_told_of_norms_dropout_and_skips(options: dict[str, Any], told: dict[str, Any]) -> None:
    bare, dressed = MLP().theory_arguments, MLP(**options).theory_arguments
    assert bare is not None
    assert dressed == dataclasses.replace(bare, **told)
    assert not dressed.plain


@pytest.mark.parametrize(
    "build",
    [
        lambda: MLP(residual="pre"),
        lambda: MLP(residual="post"),
        lambda: vg.networks.tied(MLP()),
        lambda: vg.cnn(channels=4, depth=2),
        lambda: vg.rnn(**RECURRENT),
        lambda: vg.networks.untied(vg.rnn(**RECURRENT)),
        lambda: vg.stack(Users, 4, depth=2, input_shape=4),
        lambda: vg.stack(vg.dense(4, 4, before=vg.blocks.spec(Users, 4)), depth=2, input_shape=4),
        lambda: vg.networks.sequential(vg.dense(4, 4, "tanh"), vg.dense(4, 4, "relu"), input_shape=4),
    ],
)
def test_theory_has_nothing_for_other_networks(build: Callable[[], vg.Network]) -> None:
    assert build().theory_arguments is None
