"""Torture: 40 layers of every kind of activation, far from critical both ways, with and without bias, against mpmath.

The rule of what is right is that of `exactness`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import exactness
import jax
import jax.numpy as jnp
import mp_network
import numpy as np
import oracles
import pytest
from mp_activations import ACTIVATIONS

import vgjax as vg

COMPUTES = True

INPUTS, WIDTH, OUTPUTS, DEPTH = 5, 6, 3, 40

FAR = {"float32": 100, "float64": 900}
"""Powers of two near either end of the floats."""


class Point(NamedTuple):
    """Where a network is measured; the numbers are the same in float32 and in float64.

    Attributes:
        sigma_w, sigma_b: its scales.
        end: its input is of size 1 (0), or near the lower (-1) or the upper (1) end of the floats.
    """

    sigma_w: float
    sigma_b: float
    end: int = 0


POINTS = [
    *(Point(w, b) for w in (0.0625, 0.5, 3.0, 50.0) for b in (0.0, 0.5)),
    *(Point(w, b, end) for w, b in ((3.0, 0.0), (0.5, 0.5)) for end in (-1, 1)),
]


@functools.cache
def parameters(name: str, dtype: str) -> Any:
    """Of one network; the same numbers in both dtypes."""
    options: Any = {"width": WIDTH, "depth": DEPTH, "activation": ACTIVATIONS[name].library}
    network = vg.mlp(**options, inputs=INPUTS, outputs=OUTPUTS)
    drawn = oracles.drawn(network, (INPUTS, *[WIDTH] * (DEPTH + 1), OUTPUTS))
    with jax.enable_x64(dtype == "float64"):
        wanted = vg.mlp(**options, inputs=INPUTS, outputs=OUTPUTS, dtype=dtype)
        leaves = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), dtype), (drawn.stem, drawn.stages, drawn.head))
        return vg.networks.Parameters(*leaves, wanted)


def case(name: str, dtype: str, point: Point) -> exactness.Case:
    rng, phi = np.random.default_rng(5), ACTIVATIONS[name]
    x, x2 = (np.ldexp(rng.normal(size=INPUTS).astype("float32").astype(dtype), point.end * FAR[dtype]) for _ in "12")
    weights = oracles.weights(parameters(name, "float32"), point.sigma_w, point.sigma_b)
    exact = lambda x, wobble, seed: mp_network.mlp(weights, phi, x, wobble=wobble, seed=seed)  # noqa: E731
    scales = {"sigma_w": point.sigma_w, "sigma_b": point.sigma_b}
    return exactness.Case(name, parameters(name, dtype), scales, (x, x2), exact, phi.ruled)


@functools.lru_cache(maxsize=1)
def _program(name: str, dtype: str) -> Callable[..., dict[str, Any]]:
    # One program for all calls and points: most of the time goes into compiling.
    any_point = case(name, dtype, POINTS[0])
    return jax.jit(lambda *numbers: {call: f(any_point, *numbers) for call, f in exactness.CALLS.items()})


def measured(case: exactness.Case, name: str) -> dict[str, Any]:
    """Every measurement of one network, in numpy."""
    with jax.enable_x64(case.dtype == "float64"):
        return jax.tree.map(np.asarray, _program(name, case.dtype)(case.parameters, case.scaled(), *case.xs))


def failures(name: str, dtype: str, point: Point) -> tuple[list[str], int]:
    """What is false and not marked, or marked without a reason; and how many numbers were compared."""
    here = case(name, dtype, point)
    judge, found, total = exactness.Judge(here), [], 0
    for call, result in measured(here, name).items():
        false, compared = judge.false(call, result)
        marked = [judge.needless(r) for r in (result.values() if isinstance(result, dict) else [result])]
        found, total = [*found, *false, *(f"{call}: {why}" for why in marked if why)], total + compared
    return found, total


QUICK = [("h tanh h", "float32"), ("root", "float64"), ("expm1", "float32")]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *QUICK,
        *(
            pytest.param(name, dtype, marks=pytest.mark.torture)
            for name in ACTIVATIONS
            for dtype in ("float32", "float64")
            if (name, dtype) not in QUICK
        ),
    ],
)
def test_every_number_is_right_or_marked(name: str, dtype: str) -> None:
    found = {point: failures(name, dtype, point)[0] for point in POINTS}
    assert not any(found.values()), found
