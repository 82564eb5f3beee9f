"""Recurrences that are linear in their state: the gain through time by the law of the factors."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vgjax.blocks import Dense, Flat
from vgjax.blocks.told import RecurrenceArguments
from vgjax.checks import finite
from vgjax.comparison.points import Compared, Family, Points, annealed
from vgjax.networks.network import Network, output_shape
from vgjax.theory import linear_recurrences as theory


class _Law(NamedTuple):
    """How theory has a law of the factors.

    Attributes:
        gain: steps, the scales at a point and the law's numbers -> ln of the mean squared gain.
        names: the scales that networks of this law have; those that the factors do not read may be anything.
        reads: of a number other than 0 lets the factors read the input; None where nothing does.
        left_out: what must be 0.
    """

    gain: Callable[..., float]
    names: tuple[str, ...]
    reads: str | None = None
    left_out: str | None = None


_OF_GATES: dict[str, Any] = {"reads": "sigma_v", "left_out": "sigma_b"}
_LAWS = {
    "ring": _Law(lambda t, at, **law: theory.ring_log_gain(t, **law), ("sigma_v",)),
    "s4d": _Law(lambda t, at, **law: theory.s4d_log_gain(t, **law), ("sigma_v",)),
    "mamba": _Law(
        lambda t, at, **law: theory.mamba_log_gain(t, sigma_dt=at["sigma_dt"], **law),
        ("sigma_v", "sigma_dt"),
        reads="sigma_dt",
    ),
    "rg_lru": _Law(
        lambda t, at, **law: theory.rg_lru_log_gain(t, at["sigma_v"], **law), ("sigma_v", "sigma_b"), **_OF_GATES
    ),
    "min_gru": _Law(
        lambda t, at: t * theory.min_gru_rates(at["sigma_v"], at["forget_bias"]).annealed,
        ("sigma_v", "sigma_b", "forget_bias"),
        **_OF_GATES,
    ),
    "min_lstm": _Law(
        lambda t, at: t * theory.min_lstm_rates(at["sigma_v"], at["forget_bias"]).annealed,
        ("sigma_v", "sigma_b", "forget_bias"),
        **_OF_GATES,
    ),
    "delta_rule": _Law(  # sigmoid(0) = 1/2
        lambda t, at, **law: theory.delta_rule_log_gain(t, at["rate"] / 2, **law),
        ("sigma_v", "sigma_gate", "rate"),
        reads="rate",
        left_out="sigma_gate",
    ),
}
"""By the names of `RecurrenceArguments`."""


def _predicted(points: Points) -> Compared:
    told = points.told
    assert isinstance(told, RecurrenceArguments)
    law, steps = _LAWS[told.law], range(points.depth + 1)
    if law.left_out and not (law.left_out == "sigma_b" and told.bias_init == "zero"):
        points.check_zero(law.left_out, f"a recurrence of the law {told.law}")
    root = _root(points, told) if law.reads and np.any(points.grid(law.reads)) else 0.0

    def expected(scales: dict[str, float], q0: float) -> np.ndarray:
        at = scales | ({law.reads: scales[law.reads] * root} if law.reads in ("sigma_v", "sigma_dt") else {})
        return np.array([law.gain(float(number), at, **dict(told.numbers)) / 2 for number in steps])

    growth = points.each(expected)
    if points.variable == "log_gain":
        return annealed(points.draws, growth, power=2, begins=1)
    _check_head(points.result.network)
    last = points.draws[..., -1:]
    found = annealed(points.draws - last, growth[..., ::-1], power=2)
    mean = last.mean(axis=0)
    return found._replace(measured=mean + found.measured, predicted=mean + found.predicted)


def _root(points: Points, told: RecurrenceArguments) -> float:
    """Root mean square of white inputs, as it was given; where the factors read them."""
    given = points.given["input_variance"]
    if given is None:
        raise ValueError(
            f"compare needs input_variance, the mean square of inputs that are white, for the law {told.law}, which "
            "reads them, got None"
        )
    finite("input_variance", given, "positive", lambda v: v > 0)
    if told.kernel_init != "gaussian":
        raise ValueError(f"compare takes gates of Gaussian kernels, got input_kernel_init {told.kernel_init!r}")
    return math.sqrt(given)


def _check_head(network: Network) -> None:
    """Refuse a head whose gradient is not isotropic, whatever the loss."""
    shape, head = output_shape(network), network.head
    if shape != (1,) or head is None:
        raise ValueError(f"compare takes log_gradient of recurrences with one output, got output shape {shape}")
    options: dict[str, Any] = dict(head.options)
    before, after = options.get("before"), options.get("after")
    plain = after is None and (before is None or before.block is Flat)
    law, phi = options.get("kernel_init", "gaussian"), options.get("activation", "linear")
    if not (head.block is Dense and plain and law == "gaussian" and getattr(phi, "name", phi) == "linear"):
        raise ValueError(f"compare takes log_gradient behind a linear head of a Gaussian kernel, got {head!r}")


RECURRENCES = Family(
    "a linear recurrence",
    ("log_gain", "log_gradient"),
    lambda told: _LAWS[told.law].names,
    _predicted,
    takes=("input_variance",),
)
