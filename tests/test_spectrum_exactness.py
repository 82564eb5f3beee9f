"""Every singular value of deep products against arbitrary precision: 27 networks at depths 1 to 300."""

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import spectrum_cases
from flax import nnx

import vgjax as vg

REFERENCE = json.loads((Path(__file__).parent / "spectrum_reference.json").read_text())["cases"]
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


class Residual(nnx.Module):
    """h + sigma_w tanh(h) Z + sigma_b z: a block that the library does not know."""

    scales: ClassVar = {"sigma_w": 1.0, "sigma_b": 0.0}

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (width, width)) / math.sqrt(width))
        self.bias = nnx.Param(jax.random.normal(rngs.params(), (width,)))

    def __call__(self, h: Any, scales: vg.Scales) -> Any:
        branch = jnp.dot(jnp.tanh(h), self.kernel[...], precision="highest")
        return h + scales.sigma_w * branch + scales.sigma_b * self.bias[...]


def reference_network(kind: str, width: int) -> tuple[vg.Network, vg.Parameters, vg.Scales, Any]:
    """One of the cases as a network of the library, with its parameters, scales and input."""
    case = spectrum_cases.case(kind, width)
    name = {"identity": "linear"}.get(case.activation, case.activation)
    scales = vg.Scales(sigma_w=case.sigma_w, sigma_b=case.sigma_b)
    weights = {"kernel": jnp.asarray(case.kernels), "bias": jnp.asarray(case.biases)}
    if case.residual:
        network = vg.stack(Residual, width, depth=spectrum_cases.DEPTH, input_shape=width)
        return network, vg.Parameters({}, (weights,), {}, network), scales, case.first
    inputs = len(case.first)
    network = vg.mlp(width=width, depth=spectrum_cases.DEPTH, activation=name, inputs=inputs)
    if case.stem is not None:  # sigma_w is 1 there, and the stem has no bias
        stem = {"kernel": jnp.asarray(case.stem), "bias": jnp.zeros(width)}
        return network, vg.Parameters(stem, (weights,), {}, network), scales, case.first
    plain = vg.Network(None, network.stages, None, (width,))
    return plain, vg.Parameters({}, (weights,), {}, plain), scales, case.first


@pytest.mark.parametrize("name", list(REFERENCE))
def test_every_singular_value_against_arbitrary_precision(name: str) -> None:
    kind, width = name.split("/")
    network, parameters, scales, x = reference_network(kind, int(width))
    known = {int(m): np.array([-np.inf if s is None else s for s in row]) for m, row in REFERENCE[name].items()}
    exact = np.stack(list(known.values()))
    lost = np.isneginf(exact)
    # float32 at the narrowest and the widest: `benchmarks/bench_spectrum.py` has all of them.
    for dtype, least in (("float64", 1e-8), ("float32", 2e-3))[: 1 if width == "16" else 2]:
        found = vg.log_singular_values(
            network, parameters, scales, x, list(known), from_input=kind == "stem", dtype=dtype
        )
        assert np.array_equal(np.isneginf(found.log_singular_values), lost), dtype
        error = np.abs(np.where(lost, 0, found.log_singular_values) - np.where(lost, 0, exact)).max()
        assert error <= max(least, EPS[dtype] * found.condition)
