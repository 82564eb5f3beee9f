"""Teachers: data that a network of the same kind could fit, since a network drawn at random has labelled them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax.checks import ArrayLike, RandomKey, kinds, not_negative, positive_integer
from vgjax.data import Examples, sphere
from vgjax.initializers import Scales
from vgjax.networks.network import Network, check_input, check_scales
from vgjax.networks.parameters import Parameters, init
from vgjax.training.problem import outputs


@kinds
def teacher(
    key: RandomKey,
    network: Network,
    scales: Scales | None = None,
    inputs: int | ArrayLike = 1000,
    *,
    classes: bool = False,
    noise: float = 0.0,
) -> Examples:
    """Inputs with the labels that a drawn network, the teacher, gives them.

        y = f(x; theta) + noise z,   or the class  argmax_k (f_k(x) - mean f_k) / deviation f_k

    So it is known that a student of the teacher's own kind can reach a loss of noise^2 outputs / 2, and any failure to
    is one of training.

    Args:
        key: of everything; the teacher is ``init(jax.random.fold_in(key, 0), network)``.
        network: the teacher's. With a batch in its state (batch norm), an example is a batch.
        scales: of its draw, as for `forward`; dropout stays on.
        inputs: how many examples, each of independent normal numbers scaled to unit mean square (q = 1, as in the
            theory); or the inputs themselves, shape ``(examples, *input)``.
        classes: labels are classes: the output that stands out most against its own mean and deviation over all the
            examples, which makes the classes about equally frequent at any depth.
        noise: standard deviation of what is added to each output.

    Returns:
        Examples with labels of shape ``(examples, *output)``, or whole numbers without the last axis for classes.

    Raises:
        ValueError: unknown scales, inputs that do not fit the network, noise that is negative or not finite, classes of
            a single output, outputs that are not finite or, for classes, are the same for all examples.

    Source: Gardner and Derrida 1989, "Three unfinished works on the optimal storage capacity of networks" (the
    teacher-student setting).
    """
    scales = Scales() if scales is None else scales
    check_scales(network, scales)
    not_negative("noise", noise)
    weights, pixels, errors = (jax.random.fold_in(key, i) for i in range(3))
    if np.ndim(inputs) == 0:
        shape = network.input_shape
        inputs = sphere(pixels, positive_integer("inputs", inputs), math.prod(shape)).reshape(-1, *shape)
    inputs = jnp.asarray(inputs, jnp.float32)
    check_input(network, inputs, batch=True)
    inputs = inputs.reshape(-1, *network.input_shape)
    y = _answers(init(weights, network), scales, inputs)
    y += float(noise) * jax.random.normal(errors, y.shape)
    if not np.all(np.isfinite(y)):
        raise ValueError("the teacher's outputs must be finite, got a NaN or an infinity: scales or noise too large")
    return Examples(inputs, _standing_out(y) if classes else y)


@jax.jit
def _answers(parameters: Parameters, scales: Scales, inputs: Array) -> Array:
    return outputs(parameters, scales, inputs)


def _standing_out(y: Array) -> Array:
    """The class of each example."""
    if y.shape[-1] < 2:
        raise ValueError("classes need a network of at least 2 outputs, got 1")
    if not np.all(y.max(axis=0) > y.min(axis=0)):
        raise ValueError("classes need outputs that differ between examples, got one that does not")
    return jnp.argmax((y - y.mean(axis=0)) / y.std(axis=0), axis=-1).astype(jnp.int32)
