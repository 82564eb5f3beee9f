"""The calls: a diagnosis of any model of JAX, and a test that fails on a sick one."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgjax.checks import RandomKey, kinds, nan_is_data, positive_integer
from vgjax.diagnosis.layout import parameter_names
from vgjax.diagnosis.models import Model, read_model
from vgjax.diagnosis.prepared import prepare
from vgjax.diagnosis.readings import Frontier, Path, Readings, Row
from vgjax.diagnosis.report import Diagnosis
from vgjax.diagnosis.verdict import Word, blocking, judge
from vgjax.ensembles.result import describe_machine
from vgjax.version import VERSION

_HEADS = 4
"""Zero factors one behind the other that are looked behind."""


@kinds
@nan_is_data
def diagnose(
    model: Any,
    batch: Any,
    loss: Callable[..., Any] | None = None,
    *,
    probes: int = 1,
    key: RandomKey | None = None,
    parameters: bool = True,
) -> Diagnosis:
    """What is wrong with the gradient of a model as it is: at which layer, by how much, why.

    The batch is what the model is called with: a tuple is its arguments in a row, anything else (an array, a dict) its
    only one. A ``loss(output)`` is given what the model returns. A ``loss(output, targets)`` is given the last of the
    tuple as targets, which the model then is not given; of a batch that is no tuple, the batch itself. A loss whose
    first argument is called ``model`` or ``params`` is given everything, ``loss(model, batch)``, and calls the model
    itself (of a pair it gets the second). A loss may return (loss, whatever else). A model that returns one float needs
    no loss.

    The model is not changed: neither parameters nor statistics nor random state. Modules of Equinox take one example,
    as is their way, and are mapped over the batch's first axis; modules of Linen and Haiku draw with ``key``.

    Args:
        model: a module of NNX or Equinox; or a pair: (Linen module, variables), (transformed by Haiku, params), with
            state (transformed, (params, state)), or (function, params), called as ``function(params, *arguments)``.
        batch: as above; what is no array in it is handed on as it is.
        loss: as above. Without one, random Gaussian vectors at the output are pulled back: norms squared then estimate
            the squared Frobenius norm of d output / d state (Hutchinson), averaged over probes.
        probes: how many of them.
        key: of those vectors, and of what the model draws; left out, ``jax.random.key(0)``.
        parameters: read gradients of parameters too; without, it is faster.

    Raises:
        ValueError: what is no model, a batch that is empty or holds a NaN, a loss that is no number, integers without a
            loss, no differentiable way to the loss, or more than fits into memory. What the model itself raises is
            left as it is.
    """
    positive_integer("probes", probes)
    key = jax.random.key(0) if key is None else key
    told = read_model(model, batch, loss, key)
    if told.has_loss and probes > 1:
        raise ValueError(f"probes must be 1 with a loss, whose gradient is no estimate, got {probes}")
    prepared, keys = prepare(told, parameters=parameters), jax.random.split(key, probes)

    def read(parameters: Any) -> Readings:
        found = _mean([prepared.read(parameters, key=each) for each in keys])
        return dataclasses.replace(found, constants=(*found.constants, *_weights_beside(told)))

    readings = read(told.parameters)
    if not any(path.rows for path in readings.paths):
        end = "loss" if told.has_loss else "output"
        raise ValueError(f"model must have a way from the batch to its {end} that gradient passes, got none")
    return Diagnosis(readings, _behind(readings, told, read, key), describe_machine() | {"vgjax": VERSION})


@kinds
def assert_trainable(
    model: Any, batch: Any, loss: Callable[..., Any] | None = None, *, key: RandomKey | None = None
) -> Diagnosis:
    """For tests: pass a model whose gradient arrives everywhere.

    Args:
        model, batch, loss, key: as in `diagnose`.

    Returns:
        The diagnosis.

    Raises:
        AssertionError: the gradient vanishes, explodes, ends, or is no number; with the verdict and the table.
    """
    found = diagnose(model, batch, loss, key=key)
    if not found.is_healthy:
        raise AssertionError(str(found))
    return found


def _weights_beside(told: Model) -> list[tuple[tuple[int, ...], str]]:
    """What looks like weights among what the model keeps beside its parameters (variables of a kind of their own)."""
    kept = told.rest[0]
    named = zip(parameter_names(kept), jax.tree.leaves(kept), strict=True)
    return [(a.shape, name) for name, a in named if a.ndim > 1 and jnp.issubdtype(a.dtype, jnp.inexact)]


def _behind(readings: Readings, told: Model, read: Callable[[Any], Readings], key: jax.Array) -> Readings | None:
    """The readings with those parameters drawn that are exactly 0 and hide what is behind them; None if none does."""
    behind, parameters = readings, told.parameters
    for i in range(_HEADS):
        names = set(blocking(behind))
        if judge(behind).word is not Word.ZERO:
            break
        parameters = _drawn(parameters, names, jax.random.fold_in(key, i))
        behind = read(parameters)
    return None if behind is readings else behind


def _drawn(parameters: Any, names: set[str], key: jax.Array) -> Any:
    """Kernels at unit gain in place of those of zeros; scales and factors at 1."""
    leaves, structure = jax.tree.flatten(parameters)
    for i, name in enumerate(parameter_names(parameters)):
        if name in names and jnp.ndim(leaves[i]) > 1:
            fan_in = math.prod(leaves[i].shape[:-1])
            draw = jax.random.normal(jax.random.fold_in(key, i), leaves[i].shape) / math.sqrt(fan_in)
            leaves[i] = draw.astype(leaves[i].dtype)
        elif name in names:
            leaves[i] = jnp.ones_like(leaves[i])
    return jax.tree.unflatten(structure, leaves)


# --- the mean over probes -------------------------------------------------------------------------------------------


def _mean(draws: Sequence[Readings]) -> Readings:
    """Root mean squares of everything that was pulled back."""
    first = draws[0]
    if len(draws) == 1:
        return first
    names = first.parameter_gradients
    return dataclasses.replace(
        first,
        paths=tuple(map(_mean_path, *(draw.paths for draw in draws))),
        sites=tuple(map(_mean_row, *(draw.sites for draw in draws))),
        parameter_gradients={name: _root_mean([draw.parameter_gradients[name] for draw in draws]) for name in names},
        frontier=tuple(map(_mean_frontier, *(draw.frontier for draw in draws))),
    )


def _mean_path(*draws: Path) -> Path:
    return dataclasses.replace(draws[0], rows=tuple(map(_mean_row, *(draw.rows for draw in draws))))


def _mean_row(*draws: Row) -> Row:
    return dataclasses.replace(
        draws[0],
        log_cotangent=_root_mean([draw.log_cotangent for draw in draws]),
        log_parameter_gradient=_root_mean([draw.log_parameter_gradient for draw in draws]),
        log_cuts=tuple(map(_root_mean, zip(*(draw.log_cuts for draw in draws), strict=True))),
        sites=tuple(map(_mean_row, *(draw.sites for draw in draws))),
    )


def _mean_frontier(*draws: Frontier) -> Frontier:
    return dataclasses.replace(
        draws[0],
        log_cotangent=_root_mean([draw.log_cotangent for draw in draws]),
        log_smallest=_root_mean([draw.log_smallest for draw in draws]),
    )


def _root_mean(logs: Sequence[float]) -> float:
    with np.errstate(invalid="ignore"):
        return float(np.logaddexp.reduce(2 * np.array(logs)) - math.log(len(logs))) / 2
