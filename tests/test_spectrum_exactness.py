"""Every singular value of deep products against arbitrary precision: 27 networks at depths 1 to 300."""

import dataclasses
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

COMPUTES = True

REFERENCE = json.loads((Path(__file__).parent / "spectrum_reference.json").read_text())["cases"]
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


class Layer(nnx.Module):
    """skip h + sigma_w phi(h) Z + sigma_b z, where phi is a traced number: one program for every activation.

    A block that the library does not know.
    """

    scales: ClassVar = {
        "sigma_w": vg.blocks.Scale(1.0, "parameter"),
        "sigma_b": vg.blocks.Scale(0.0, "parameter"),
        "skip": 0.0,
        "phi": 0.0,
    }

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (width, width)) / math.sqrt(width))
        self.bias = nnx.Param(jax.random.normal(rngs.params(), (width,)))

    def __call__(self, h: Any, scales: vg.Scales) -> Any:
        phi = jnp.select([scales.phi == i for i in range(len(PHIS))], [f(h) for f in PHIS.values()])
        branch = jnp.dot(phi, self.kernel[...], precision="highest")
        return scales.skip * h + scales.sigma_w * branch + scales.sigma_b * self.bias[...]


PHIS = {"linear": lambda h: h, "tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}


def reference_network(kind: str, width: int) -> tuple[vg.Network, vg.networks.Parameters, vg.Scales, Any]:
    """One of the cases as a network of the library, with its parameters, scales and input.

    At width 12 of the library's own blocks, else (and where there is a skip connection) of the one above.
    """
    case = spectrum_cases.case(kind, width)
    name = {"identity": "linear"}.get(case.activation, case.activation)
    network = vg.mlp(width=width, depth=spectrum_cases.DEPTH, activation=name, inputs=len(case.first))
    scales = {"sigma_w": case.sigma_w, "sigma_b": case.sigma_b}
    if case.residual or width > 12:
        own = vg.stack(Layer, width, depth=spectrum_cases.DEPTH, input_shape=width)
        network = dataclasses.replace(network, stages=own.stages)
        scales |= {"skip": float(case.residual), "phi": float(list(PHIS).index(name))}
    stem = {}
    if case.stem is None:
        network = dataclasses.replace(network, stem=None)
    else:  # sigma_w is 1 there, and the stem has no bias
        stem = {"kernel": jnp.asarray(case.stem), "bias": jnp.zeros(width)}
    weights = {"kernel": jnp.asarray(case.kernels), "bias": jnp.asarray(case.biases)}
    network = dataclasses.replace(network, head=None)
    return network, vg.networks.Parameters(stem, (weights,), {}, network), vg.Scales(**scales), case.first


@pytest.mark.parametrize(
    "name", [n if n.endswith("/12") else pytest.param(n, marks=pytest.mark.slow) for n in REFERENCE]
)
def test_every_singular_value_against_arbitrary_precision(name: str) -> None:
    kind, width = name.split("/")
    _, parameters, scales, x = reference_network(kind, int(width))
    known = {int(m): np.array([-np.inf if s is None else s for s in row]) for m, row in REFERENCE[name].items()}
    exact = np.stack(list(known.values()))
    lost = np.isneginf(exact)
    # float32 at the narrowest and the widest: `benchmarks/bench_spectrum.py` has all of them.
    for dtype, least in (("float64", 1e-8), ("float32", 2e-3))[: 1 if width == "16" else 2]:
        found = vg.log_singular_values(parameters, scales, x, list(known), from_input=kind == "stem", dtype=dtype)
        assert np.array_equal(np.isneginf(found.log_singular_values), lost), dtype
        error = np.abs(np.where(lost, 0, found.log_singular_values) - np.where(lost, 0, exact)).max()
        assert error <= max(least, EPS[dtype] * found.condition)
