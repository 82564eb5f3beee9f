"""The objective of training: examples as inputs of a network, and their mean loss."""

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax.checks import known
from vgjax.data import Examples
from vgjax.initializers import Scales
from vgjax.measure import losses
from vgjax.networks.layers import Parameters, forward
from vgjax.networks.network import Network

LOSSES = ("cross_entropy", "squared_error")


class Data(Protocol):
    """Inputs with their labels, such as `vgjax.data.Examples`."""

    @property
    def inputs(self) -> Any:
        """Shape ``(examples, *input)``."""

    @property
    def labels(self) -> Any:
        """Shape ``(examples,)`` of classes, or ``(examples, *output)`` of numbers."""


def checked_examples(name: str, network: Network, data: Data, loss: str | None) -> tuple[str, int, Examples]:
    """The loss that the labels mean, the number of examples in a state, and the examples as arrays.

    A state holds one example, or a batch of them where the network says so (batch norm).

    Raises:
        ValueError: examples that do not fit the network, or labels that do not fit its output.
    """
    inputs, labels = jnp.asarray(data.inputs), jnp.asarray(data.labels)
    shape = network.input_shape
    lot = 1 if inputs.shape[1:] == shape else shape[0] if inputs.shape[1:] == shape[1:] else 0
    if not lot or not len(inputs):
        one = ", ".join(map(str, shape))
        raise ValueError(f"{name} must hold inputs of shape (examples, {one}), got {inputs.shape}")
    if len(labels) != len(inputs):
        raise ValueError(f"{name} must hold one label an input, got {len(labels)} labels for {len(inputs)} inputs")
    if len(inputs) < lot:
        raise ValueError(f"{name} must hold at least the {lot} examples of a state, got {len(inputs)}")
    if not np.all(np.isfinite(inputs)):
        raise ValueError(f"{name} must hold finite inputs, got a NaN or an infinity")
    if loss is not None:
        known("loss", loss, LOSSES)
    states = in_states(lot, Examples(inputs, labels))
    loss, _ = losses.targets(network, states.labels, loss, None, len(states.inputs), False)
    return loss, lot, Examples(inputs, labels)


def in_states(lot: int, examples: Examples) -> Examples:
    """Examples as inputs of the network: as they are, or in whole lots where a batch is the state."""
    if lot == 1:
        return examples
    whole = len(examples.inputs) // lot * lot
    return Examples(*(a[:whole].reshape(-1, lot, *a.shape[1:]) for a in examples))


def outputs(network: Network, parameters: Parameters, scales: Scales, xs: Array) -> Array:
    """Of all the states, with a leading axis."""
    return jax.vmap(lambda x: forward(parameters, scales, x))(xs)


def mean_loss(loss: str, lot: int, parameters: Parameters, scales: Scales, states: Examples) -> Array:
    """The mean over the examples in all the states."""
    found = outputs(parameters.network, parameters, scales, states.inputs)
    labels = states.labels if loss == "cross_entropy" else states.labels.astype(found.dtype)
    return jnp.sum(jax.vmap(functools.partial(losses.value, loss))(found, labels)) / (len(labels) * lot)


def as_dtype(dtype: str, tree: Any) -> Any:
    """All floating-point numbers of a tree in a dtype."""
    return jax.tree.map(
        lambda a: jnp.asarray(a).astype(dtype) if jnp.issubdtype(jnp.result_type(a), jnp.floating) else a, tree
    )
