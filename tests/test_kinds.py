"""Wrong arguments: whatever is given to whatever is public, it is taken or refused in one sentence."""

import inspect
import re
import timeit
import traceback
from pathlib import Path
from typing import Any

import flax.linen
import jax
import numpy as np
import pytest
from flax import nnx
from public_calls import arguments, bound, public_calls, public_objects, world

import vgjax as vg
from vgjax import checks

LIBRARY = str(Path(vg.__file__).parent)


def wrong_values() -> dict[str, Any]:
    """One of every kind that somebody might hand over; some are right somewhere."""
    w = world()
    return {
        "None": None,
        "True": True,
        "-1": -1,
        "0": 0,
        "10**30": 10**30,
        "1.5": 1.5,
        "nan": float("nan"),
        "inf": float("inf"),
        "text": "abc",
        "bytes": b"x",
        "object": object(),
        "list": [],
        "dict": {},
        "tuple": (),
        "function": lambda h: 0,
        "texts": np.array(["a", "b"]),
        "complex": 1j,
        "integers": np.arange(7),
        "floats": np.ones((2, 7), np.float32),
        "array": jax.numpy.ones(3),
        "key": w.key,
        "network": w.network,
        "parameters": w.parameters,
        "scales": w.scales,
        "result": w.sweep,
        "module": w.block,
        "class": nnx.Linear,
        "pair": (w.xs, w.xs),
        "other result": w.trained,
    }


def call(name: str, given: dict[str, Any]) -> None:
    """A public function, or a constructor."""
    function = public_calls()[name]
    one = bound(function, given)
    if function.__name__ == "__init__":
        public_objects()[name](*one.args[1:], **one.kwargs)
    else:
        function(*one.args, **one.kwargs)


def call_with(name: str, parameter: str, value: Any) -> None:
    """The good call of a public function, with one argument replaced."""
    given, kind = arguments(name), inspect.signature(public_calls()[name]).parameters[parameter].kind
    if kind is inspect.Parameter.VAR_POSITIONAL:
        value = (value,)
    if kind is inspect.Parameter.VAR_KEYWORD:
        value = given[parameter] | {list(given[parameter])[-1]: value}
    call(name, given | {parameter: value})


def fault(name: str, parameter: str, value: Any) -> str | None:
    """What is wrong with how a call is refused, if anything is."""
    try:
        call_with(name, parameter, value)
    except Exception as error:
        said, *_, last = str(error), *(frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
        if not isinstance(error, (ValueError, OSError)):
            return f"{type(error).__name__}: {said:.200}"
        if not last.startswith(LIBRARY):
            return f"raised by {last}: {said:.200}"
        if "\n" in said or len(said) > 400:
            return f"no sentence: {said:.200}"
        if not (re.search(r"\b(must|needs?|takes?)\b", said) or isinstance(error, OSError)):
            return f"says no rule: {said:.200}"
        if error.__context__ is not None and not error.__suppress_context__:
            return f"behind {type(error.__context__).__name__}: {said:.200}"
    return None


@pytest.mark.parametrize("name", public_calls())
def test_everything_public_checks_kinds(name):
    assert hasattr(public_calls()[name], "checks_kinds"), f"{name} needs the decorator vgjax.checks.kinds"


OWN_ERRORS = {(call, "module") for call in ("diagnose", "assert_trainable", "diagnosis.proposals")}
"""What is called there as a model or a loss: its own errors are left as they are."""


@pytest.mark.usefixtures("kinds_unchecked")
@pytest.mark.parametrize("name", public_calls())
def test_a_wrong_argument_is_refused_in_one_sentence(name, tmp_path, monkeypatch):
    """Also the right one is taken: a call that is refused as it is would hide all others."""
    monkeypatch.chdir(tmp_path)
    call(name, arguments(name))
    parameters = [parameter for parameter in inspect.signature(public_calls()[name]).parameters if parameter != "self"]
    faults = {
        f"{parameter} = {label}": said
        for parameter in parameters
        for label, value in wrong_values().items()
        if (name, label) not in OWN_ERRORS and (said := fault(name, parameter, value))
    }
    assert faults == {}


class Linen(flax.linen.Module):
    """Of Flax's older interface."""


SENTENCES = {
    r"parameters must be Parameters \(of vgjax.init\), got \{\}": lambda w: vg.gradient_flow({}, w.scales, w.x),
    r"scales must be Scales \(vgjax.Scales\(sigma_w=...\)\), got 1.5": lambda w: vg.forward(w.parameters, 1.5, w.x),
    r"network must be a Network .*, got Dense": lambda w: vg.init(w.key, w.block),
    r"block must be .* a class of flax.nnx.Module .*Linen.*, got the class Linen": lambda w: vg.stack(
        Linen, depth=2, input_shape=4
    ),
    r"block must be .*, got Linen": lambda w: vg.stack(Linen(), depth=2, input_shape=4),
    r"arguments of Linear must be those .*missing": lambda w: vg.stack(nnx.Linear, depth=2, input_shape=4),
    r"dtype must be float32 or float64, got 'abc'": lambda w: vg.mlp(width=2, depth=2, inputs=2, dtype="abc"),
    r"dtype must be float32 or float64, got 'bfloat16'": lambda w: w.parameters.astype("bfloat16"),
    r"dtype must be one of float32, float64, got 'float16'": lambda w: vg.spectra(dtype="float16"),
    r"activation 'tanh' must be made of functions of JAX \(jax.numpy\), .*NumPy's": lambda w: vg.activations.get(
        np.tanh
    ),
    r"data must be Examples .*, got": lambda w: vg.train(w.parameters, w.scales, (w.xs, w.xs)),
    r"q must be a number, got an array of shape \(3,\)": lambda w: vg.theory.log_gain_moments("relu", 8, w.grid),
    r"ax must be matplotlib Axes, got 3": lambda w: vg.plots.draw_boundary(3, w.trained),
    r"draw_boundary needs a sweep of trainings": lambda w: vg.plots.draw_boundary(w.ax, w.sweep),
    r"rate must be an array of numbers of shape \(columns, rows\), got an array of shape \(5, 4\)": lambda w: (
        vg.plots.draw_rate(w.ax, np.arange(3.0), np.arange(4.0), w.xs)
    ),
    r"key must be a key \(of jax.random.key\), got 0": lambda w: vg.sweep(w.network, w.x, key=0),
    r"width must be at most 2147483647, got 1000": lambda w: vg.mlp(width=10**30, depth=2, inputs=2),
    r"probes must be at most 2147483647": lambda w: vg.log_frobenius(w.parameters, w.scales, w.x, 10**30),
    r"depth must be at most 2147483647": lambda w: vg.theory.propagate("tanh", 1.0, 0.1, 10**30),
    r"depths must be a list of whole numbers, got \[1, 'a'\]": lambda w: vg.gain_matrix(
        w.parameters, w.scales, w.x, [1, "a"]
    ),
    r"sigma_w must be a number or an array of numbers, got 'big'": lambda w: vg.Scales(sigma_w="big"),
    r"did you mean 'he_normal'": lambda w: vg.networks.scheme("kaiming_normal", 4, 4),
    r"did you mean 'glorot_uniform'": lambda w: vg.networks.scheme("xavier_uniform", 4, 4),
    r"did you mean 'silu'": lambda w: vg.activations.get("swish"),
    r"did you mean 'gaussian'": lambda w: vg.dense(4, 4, kernel_init="normal"),
    r"did you mean 'batch'": lambda w: vg.norm("BatchNorm"),
    r"did you mean 'layer'": lambda w: vg.norm("layer_norm"),
}


@pytest.mark.usefixtures("kinds_unchecked")
@pytest.mark.parametrize("sentence", SENTENCES)
def test_what_people_get_wrong(sentence):
    with pytest.raises(ValueError, match=f"{sentence}"):
        SENTENCES[sentence](world())


@pytest.mark.usefixtures("kinds_unchecked")
def test_numbers_of_all_kinds_are_numbers():
    w = world()
    for size in (4, np.int32(4), np.int64(4)):
        assert vg.mlp(width=size, depth=np.int16(3), inputs=4, outputs=3) == w.network
    for number in (1, 1.0, np.float32(1), np.float64(1), np.ones(()), jax.numpy.ones(())):
        assert vg.theory.recurrent.forget_gate(number).factor == pytest.approx(0.7310585786)
    for depths in ([1, 2], (1, 2), range(1, 3), np.arange(1, 3)):
        assert vg.gain_matrix(w.parameters, w.scales, w.x, depths) == vg.gain_matrix(
            w.parameters, w.scales, w.x, [1, 2]
        )


def test_a_check_keeps_the_signature_and_costs_microseconds():
    def plain(parameters: vg.networks.Parameters, scales: vg.Scales, x: checks.ArrayLike) -> int:
        """Does nothing."""
        return 1

    checked, w = checks.kinds(plain), world()
    assert inspect.signature(checked) == inspect.signature(plain)
    assert checked.__doc__ == plain.__doc__
    seconds = min(timeit.repeat(lambda: checked(w.parameters, w.scales, w.x), number=1000, repeat=5)) / 1000
    assert seconds < 2e-5  # 2 microseconds on a quiet machine
    assert jax.vmap(lambda x: checked(w.parameters, w.scales, x) * x)(w.xs).shape == w.xs.shape
