"""Public objects as values: they travel, compare by what they carry, and read in one line."""

import copy
import inspect
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from public_calls import instances, phi, public_objects

import vgjax as vg

TRIPS = {"pickle": lambda value: pickle.loads(pickle.dumps(value)), "copy": copy.copy, "deepcopy": copy.deepcopy}
CLASSES = [
    name
    for name, value in public_objects().items()
    if inspect.isclass(value) and not issubclass(value, nnx.Module) and value is not vg.ensembles.Measurement
]


def test_every_public_class_has_an_object_here():
    assert [name for name in CLASSES if type(instances().get(name)) is not public_objects()[name]] == []


@pytest.mark.parametrize("trip", TRIPS)
def test_everything_public_travels(trip):
    for name, value in instances().items():
        arrived = TRIPS[trip](value)
        assert type(arrived) is type(value), name
        assert (arrived == value) is True, name
        assert (arrived != value) is False, name
        assert (value == "something else") is False, name


def test_what_differs_in_a_number_is_not_equal():
    scales = vg.Scales(sigma_w=[1.0, 2.0])
    assert scales != vg.Scales(sigma_w=[1.0, 2.5])
    assert scales != vg.Scales(sigma_w=[1.0])
    parameters = instances()["networks.Parameters"]
    assert parameters != vg.init(jax.random.key(1), parameters.network)
    push = instances()["measure.Push"]
    assert push != push._replace(log_gain=push.log_gain + 1)
    assert push._replace(log_gain=jnp.full(4, jnp.nan)) == push._replace(log_gain=jnp.full(4, jnp.nan))
    assert instances()["data.Examples"] == vg.data.Examples(*map(np.copy, instances()["data.Examples"]))


def test_everything_public_reads_in_one_line():
    for name, value in instances().items():
        assert "\n" not in repr(value), name
        assert len(repr(value)) < 350, f"{name}: {value!r}"
        of_a_user = name in ("measurement", "training.Parametrization")  # they hold a function
        assert " at 0x" not in repr(value) or of_a_user, name


def test_functions_without_a_name_travel_by_cloudpickle():
    network = vg.mlp(width=4, depth=2, inputs=4, activation=lambda h: jnp.tanh(2 * h))
    assert copy.deepcopy(network) == network  # not another activation, which would be compiled for anew
    arrived = pickle.loads(pickle.dumps(network))
    key, x = jax.random.key(0), np.ones(4, np.float32)
    outputs = [vg.forward(vg.init(key, each), vg.Scales(), x) for each in (network, arrived)]
    np.testing.assert_array_equal(*outputs)


def test_without_cloudpickle_a_function_without_a_name_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    network = vg.mlp(width=4, depth=2, inputs=4, activation=lambda h: jnp.tanh(2 * h))
    with pytest.raises(ValueError, match=r"^Activation holds a function without a name in a module, which must be"):
        pickle.dumps(network)
    named = vg.mlp(width=4, depth=2, inputs=4, activation=phi)
    assert pickle.loads(pickle.dumps(named)) == named
