"""Fingerprints: of numbers, of compiled programs and of code, so that a folder never answers for another run."""

import dataclasses
import hashlib
import json
import re
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core


def digest(*arrays: Any) -> str:
    """Of arrays: their shapes, dtypes and bytes. One that comes several times, as for every seed, is read once."""
    once = {id(a): a for a in arrays}
    digests = {i: _digest_of_array(a) for i, a in once.items()}
    return digest_of_text("".join(digests[id(a)] for a in arrays))


def _digest_of_array(a: Any) -> str:
    if isinstance(a, jax.Array) and jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key):
        a = jax.random.key_data(a)
    a = np.asarray(a)
    return hashlib.sha256(f"{a.shape} {a.dtype}".encode() + a.tobytes()).hexdigest()


def digest_of_text(text: str) -> str:
    """Of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_of_program(program: core.ClosedJaxpr) -> str:
    """Of what a function computes: its operations and every constant in them, whatever it is called.

    Addresses of Python objects, which differ from process to process, are left out.
    """
    return digest_of_text(re.sub(r"0x[0-9a-f]+", "", str(program)) + digest(*_constants(program)))


def _constants(program: Any) -> Iterator[Any]:
    """Those of a program and of all programs inside it."""
    if isinstance(program, (core.ClosedJaxpr, core.Jaxpr)):  # one class from JAX 0.12 on
        yield from getattr(program, "consts", ())
        for equation in program.eqns:
            yield from _constants(list(equation.params.values()))
    elif isinstance(program, (list, tuple)):
        for each in program:
            yield from _constants(each)


def digest_of_code(function: Callable[..., Any]) -> str:
    """Of a Python function: its instructions, constants and names."""
    whole = hashlib.sha256()

    def add(code: types.CodeType) -> None:
        whole.update(code.co_code + repr(code.co_names).encode())
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                add(constant)
            else:
                whole.update(repr(constant).encode())

    add(function.__code__)
    return whole.hexdigest()[:16]


def options_of(measure: Any) -> dict[str, Any]:
    """What a measurement (a dataclass) was made with, as JSON values, or as it prints: of functions the names alone,
    and no data; both are in the other fingerprints."""
    options = {f.name: getattr(measure, f.name) for f in dataclasses.fields(measure) if f.init and f.repr}

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not callable(value):  # a measurement made of another
            return options_of(value)
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))  # an address differs from process to process

    return dict(json.loads(json.dumps(options, default=plain)))
