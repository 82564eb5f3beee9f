"""More than one stream: hyper-connections and averages over depth, around one layer."""

from typing import Any

import numpy as np

from vgjax.blocks import Remember, Split
from vgjax.blocks.told import DepthAverageArguments, LayerArguments, StreamArguments
from vgjax.comparison.points import (
    MEAN_SQUARE,
    Compared,
    Family,
    Points,
    annealed,
    check_drawn,
    check_ends_in,
    parts_of,
)
from vgjax.theory import streams


def _hyper_connections(points: Points) -> Compared:
    told, gains = points.told, points.variable == "log_gain"
    assert isinstance(told, StreamArguments)
    _check(points, told.branch, Split, "hyper-connections")
    if told.branch.norm not in (None, "rms", "layer") or told.branch.norm_on != "preactivations":
        norm = f"{told.branch.norm} on {told.branch.norm_on}"
        raise ValueError(f"compare takes branches whose norm is rms or layer, before phi, got {norm}")
    if told.branch.epsilon:
        raise ValueError(f"compare takes branches whose norm has epsilon 0, got {told.branch.epsilon:g}")
    kept = np.roll(np.eye(told.streams), 1, axis=1) if told.shift else np.eye(told.streams)
    if told.logit is not None:
        kept = streams.sinkhorn(told.logit * kept, told.steps).map
        points.check_zero("sigma_r", "constrained maps, of whose law theory has no moments")
    if told.dynamic:
        points.check_zero("sigma_d", "dynamic maps, which theory has as they begin")

    def expected(scales: dict[str, Any], q0: float) -> np.ndarray:
        found = streams.propagate_streams(
            points.depth,
            told.streams,
            mixing=kept,
            deviation=scales["sigma_r"],
            gain=_gain(told.branch, scales),
            branch=scales["branch"],
            skip=scales["skip"],
            normalized=told.branch.norm is not None,
            q0=q0,
        )
        return found.log_gain / 2 if gains else np.log(found.mean_square)

    return annealed(points.draws, points.each(expected), **MEAN_SQUARE[points.variable])


def _depth_averages(points: Points) -> Compared:
    """The mean square of all that is remembered; places that are still empty count."""
    told = points.told
    assert isinstance(told, DepthAverageArguments)
    _check(points, told.branch, Remember, "averages over depth")
    if told.branch.norm is not None:
        raise ValueError(f"compare takes averages over depth without norm, got norm {told.branch.norm!r}")
    if told.memory < points.depth:
        raise ValueError(
            f"compare takes averages over depth with a memory of all {points.depth} states, got {told.memory}"
        )

    def expected(scales: dict[str, Any], q0: float) -> np.ndarray:
        q = streams.depth_average_mean_square(points.depth, scales["sigma_past"], gain=_gain(told.branch, scales))
        sums = np.cumsum(q)
        sums[told.memory :] -= sums[: -told.memory]  # the oldest fall out
        return np.log(q0 * sums)

    return annealed(points.draws, points.each(expected))


def _check(points: Points, branch: LayerArguments, first: type, of: str) -> None:
    """Refuse what neither theory has."""
    parts = parts_of(points.result.network.stem)
    check_ends_in(parts, first, of)
    if branch.residual or branch.dropout:
        raise ValueError(f"compare takes {of} around a layer without skip or dropout, got one with them")
    if not branch.activation.homogeneous:
        raise ValueError(f"compare takes {of} around a homogeneous phi, as linear and relu, got {branch.label}")
    if branch.kernel_init == "identity":
        raise ValueError(f"compare takes {of} around kernels without a mean, got kernel_init 'identity'")
    check_drawn(parts[:-1], branch)
    if branch.bias_init != "zero":
        for name in branch.names[1::2]:
            points.check_zero(name, f"{of}, whose theory has no biases")


def _gain(branch: LayerArguments, scales: dict[str, Any]) -> float:
    """E F^2 / E x^2; of a phi that is homogeneous that of its slopes as well."""
    kernels = branch.names[::2]
    # A norm behind a first kernel takes its scale out.
    kernels = kernels[-1:] if branch.norm else kernels
    ends = (float(branch.activation(np.array(side, np.float32))) ** 2 for side in (1.0, -1.0))
    return float(np.prod([scales[name] ** 2 for name in kernels]) * sum(ends) / 2)


def _of_maps(told: StreamArguments) -> tuple[str, ...]:
    return (*told.branch.names, "branch", "skip", "sigma_r", *(["sigma_d"] if told.dynamic else []))


HYPER_CONNECTIONS = Family("hyper-connections", ("log_gain", "log_mean_square"), _of_maps, _hyper_connections)
DEPTH_AVERAGES = Family(
    "averages over depth", ("log_mean_square",), lambda told: (*told.branch.names, "sigma_past"), _depth_averages
)
