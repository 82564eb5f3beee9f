"""Fingerprints: of numbers and of traced programs, so that a folder never answers for another run."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core

from vgjax.initializers import Scales
from vgjax.networks.layers import forward
from vgjax.networks.network import Network
from vgjax.networks.parameters import init

_UNSEEN = ("pure_callback", "io_callback", "ffi_call")
"""Primitives that compute what their program does not say: calls of Python or of foreign code. Those that return
nothing (`jax.debug`) change no result."""


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

    Addresses of Python objects, which differ from process to process (and which JAX prints as X), are left out.

    Raises:
        ValueError: a program that calls what it does not contain.
    """
    parts = list(_parts(program))
    unseen = sorted({each for each in parts if isinstance(each, str)})
    if unseen:
        raise ValueError(
            f"folder must be left out where a program calls what no fingerprint sees, got one with {', '.join(unseen)}"
        )
    text = program.pretty_print(use_color=False, width=2**30)  # on one line: where others break depends on addresses
    return digest_of_text(re.sub(r"0x[0-9a-fX]+", "", text) + digest(*parts))


def digest_of_network(network: Network) -> str:
    """Of what a network draws and computes, whatever its parts are called; empty if it calls what it does not contain,
    or cannot be traced here."""

    def run(key: jax.Array) -> jax.Array:
        parameters = init(key, network)
        return forward(parameters, Scales(), jax.numpy.zeros(network.input_shape, parameters.dtype))

    try:
        program = jax.make_jaxpr(run)(jax.random.key(0))
        return digest_of_program(program)
    except Exception:  # a user's own block may raise anything
        return ""


def _parts(program: Any) -> Iterator[Any]:
    """The constants of a program and of all programs inside it, and the names of what it calls unseen."""
    if isinstance(program, (core.ClosedJaxpr, core.Jaxpr)):  # one class from JAX 0.12 on
        yield from getattr(program, "consts", ())
        for equation in program.eqns:
            rule = equation.params.get("rule")  # for batches (custom_vmap): the library's is known by its version
            if equation.primitive.name in _UNSEEN or (callable(rule) and not rule.__module__.startswith("vgjax.")):
                yield equation.primitive.name
            yield from (v.val for v in equation.invars if isinstance(v, core.Literal) and np.ndim(v.val))
            yield from _parts(list(equation.params.values()))
    elif isinstance(program, (list, tuple)):
        for each in program:
            yield from _parts(each)


def options_of(measure: Any) -> dict[str, Any]:
    """What a measurement (a dataclass) was made with, as JSON values, or as it prints: of functions the names alone,
    and no data; both are in the other fingerprints."""
    options = {f.name: getattr(measure, f.name) for f in dataclasses.fields(measure) if f.init and f.repr}

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not callable(value):  # a measurement made of another
            return options_of(value)
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))  # an address differs from process to process

    return dict(json.loads(json.dumps(options, default=plain)))
