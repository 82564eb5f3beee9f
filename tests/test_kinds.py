"""Wrong arguments: whatever is given to whatever is public, it is taken or refused in one sentence."""

import inspect
import re
import traceback
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from public_calls import arguments, bound, public_calls, public_objects, world

import vgjax as vg

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
        if (said := fault(name, parameter, value))
    }
    assert faults == {}
