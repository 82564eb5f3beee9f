"""Wrong arguments: whatever is given to whatever is public, it is taken or refused in one sentence."""

import inspect
import traceback
from pathlib import Path
from typing import Any

import jax
import numpy as np
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


def call_with(name: str, parameter: str, value: Any) -> None:
    """The good call of a public function, with one argument replaced."""
    function, kind = public_calls()[name], inspect.signature(public_calls()[name]).parameters[parameter].kind
    given = dict(arguments(name))
    if kind is inspect.Parameter.VAR_POSITIONAL:
        value = (value,)
    if kind is inspect.Parameter.VAR_KEYWORD:
        value = given[parameter] | {list(given[parameter])[-1]: value}
    call = bound(function, given | {parameter: value})
    if function.__name__ == "__init__":
        public_objects()[name](*call.args[1:], **call.kwargs)
    else:
        function(*call.args, **call.kwargs)


def fault(name: str, parameter: str, value: Any) -> str | None:
    """What is wrong with how a call is refused, if anything is."""
    try:
        call_with(name, parameter, value)
    except Exception as error:
        said, last = str(error), traceback.extract_tb(error.__traceback__)[-1].filename
        if not isinstance(error, (ValueError, OSError)):
            return f"{type(error).__name__}: {said:.200}"
        if not last.startswith(LIBRARY):
            return f"raised by {last}: {said:.200}"
        if "\n" in said or len(said) > 400:
            return f"no sentence: {said:.200}"
        if error.__context__ is not None and not error.__suppress_context__:
            return f"behind {type(error.__context__).__name__}: {said:.200}"
    return None
