"""The objective of training: examples as inputs of a network, and their mean loss."""

import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax.data import Examples
from vgjax.initializers import Scales
from vgjax.measure import losses
from vgjax.networks.layers import forward
from vgjax.networks.network import Network, check_scales
from vgjax.networks.parameters import Parameters, in_present_mode


@runtime_checkable
class Data(Protocol):
    """Inputs with their labels, such as `vgjax.data.Examples`."""

    @property
    def inputs(self) -> Any:
        """Shape ``(examples, *input)``."""

    @property
    def labels(self) -> Any:
        """What the loss compares outputs with, a leading axis of examples: classes or numbers (`gradient_flow`)."""


def as_examples(name: str, data: Data) -> Examples:
    """Data as arrays of JAX's present mode: float64 and int64 ones, numpy's or of another mode, as it makes them.

    Raises:
        ValueError: inputs that are not finite.
    """
    examples = Examples(*in_present_mode((np.asarray(data.inputs), np.asarray(data.labels))))
    if not np.all(np.isfinite(examples.inputs)):
        raise ValueError(f"{name} must hold finite inputs, got a NaN or an infinity")
    return examples


def check_start(parameters: Parameters, scales: Scales) -> None:
    """Raise ValueError unless parameters can be trained: drawn, stored, and under scales of their network."""
    if not isinstance(parameters, Parameters):
        raise ValueError(f"parameters must be those of vgjax.init, got {type(parameters).__name__}")
    if parameters.streamed:
        raise ValueError("parameters must be stored to be trained; draw them with init(..., stream=False)")
    check_scales(parameters.network, scales)


def checked_objective(
    name: str, network: Network, examples: Examples, loss: losses.Loss | None
) -> tuple[losses.Loss, int]:
    """The loss, which may be left to what the labels of some examples mean, and how many of them one state holds.

    That is 1, or the size of a batch where the network says that a batch is its state (batch norm).

    Raises:
        ValueError: examples that do not fit the network, or labels that do not fit its output.
    """
    inputs, labels = examples
    shape = network.input_shape
    per_state = 1 if inputs.shape[1:] == shape else shape[0] if inputs.shape[1:] == shape[1:] else 0
    if not per_state or not len(inputs):
        one = ", ".join(map(str, shape))
        raise ValueError(f"{name} must hold inputs of shape (examples, {one}), got {inputs.shape}")
    if not labels.ndim or len(labels) != len(inputs):
        number = len(labels) if labels.ndim else 0
        raise ValueError(f"{name} must hold one label an input, got {number} labels for {len(inputs)} inputs")
    if len(inputs) < per_state:
        raise ValueError(f"{name} must hold at least the {per_state} examples of a state, got {len(inputs)}")
    states = in_states(per_state, examples)
    return losses.targets(network, states.labels, loss, None, len(states.inputs), False)[0], per_state


def in_states(per_state: int, examples: Examples) -> Examples:
    """Examples as inputs of the network: as they are, or in whole states where a batch is one; the rest is left out."""
    if per_state == 1:
        return examples
    whole = len(examples.inputs) // per_state * per_state
    return Examples(*(a[:whole].reshape(-1, per_state, *a.shape[1:]) for a in examples))


def outputs(parameters: Parameters, scales: Scales, xs: Array) -> Array:
    """Of all the states, with a leading axis."""
    return jax.vmap(lambda x: forward(parameters, scales, x))(xs)


def mean_loss(loss: losses.Loss, per_state: int, parameters: Parameters, scales: Scales, states: Examples) -> Array:
    """The mean over the examples in all the states; of a loss that is a mean, over all its terms."""
    return _mean(loss, per_state, parameters.network, outputs(parameters, scales, states.inputs), states.labels)


def scores(
    loss: losses.Loss, per_state: int, parameters: Parameters, scales: Scales, states: Examples
) -> tuple[Array, Array]:
    """`mean_loss`, and the share of right answers: NaN for a loss that knows none."""
    answers = outputs(parameters, scales, states.inputs)
    right = jax.vmap(functools.partial(losses.right_answers, loss))(answers, states.labels)
    accuracy = jnp.nan if right is None else jnp.mean(right.astype(answers.dtype))
    mean = _mean(loss, per_state, parameters.network, answers, states.labels)
    return mean, jnp.asarray(accuracy, answers.dtype)


def _mean(loss: losses.Loss, per_state: int, network: Network, answers: Array, labels: Array) -> Array:
    each = jax.vmap(functools.partial(losses.value, loss))(answers, labels)
    terms_of_one = max(1, losses.mean_over(loss, network, 1) // per_state)
    return jnp.sum(each) / (len(each) * per_state * terms_of_one)
