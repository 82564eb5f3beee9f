"""Initialization from data: a batch of inputs goes through the network layer by layer and sets some of its numbers."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from vgjax.blocks import protocol
from vgjax.blocks.dense import Affine
from vgjax.checks import ArrayLike, kinds, nan_is_data
from vgjax.initializers import Scales
from vgjax.networks.layer import Layer
from vgjax.networks.layers import bind, checked_input
from vgjax.networks.network import Network
from vgjax.networks.parameters import Parameters, without_shared

_ROUNDS = 10  # Mishkin and Matas stop after as many; one is enough where there is no bias


@kinds
@nan_is_data
def lsuv(parameters: Parameters, scales: Scales, xs: ArrayLike) -> Parameters:
    """Layer-sequential unit variance: every kernel rescaled so that what its layer puts out has unit variance.

    From the stem to the last block, ``W <- W / sqrt(Var h)`` over the batch and the units, until that variance is 1
    (with a bias a few rounds are needed, and a bias of larger variance cannot be undone); start from orthogonal kernels
    to follow the paper.

    Args:
        parameters: draws at unit gain (`init`), stored; of a network of fully connected or convolutional layers.
        scales: of the blocks and the stem: the variance is 1 at these.
        xs: inputs, with a leading batch axis.

    Returns:
        Parameters of the same network.

    Raises:
        ValueError: unknown scales, inputs of the wrong shape, streamed or tied parameters, or other kinds of layers.

    Source: Mishkin and Matas 2016, "All you need is a good init", algorithm 1.
    """
    check_unit_variance(parameters.network)
    return _calibrated(_unit_variance, parameters, scales, xs)


def check_unit_variance(network: Network) -> None:
    """Raise ValueError unless `lsuv` knows all kinds of layers of a network, each with parameters of its own."""
    specs = [*([network.stem] if network.stem else []), *(stage.spec for stage in network.stages)]
    for spec in specs:
        if not issubclass(spec.block, Affine):
            raise ValueError(f"lsuv needs fully connected or convolutional layers, got {spec.block.__name__}")


def unit_variance(parameters: Parameters, scales: Scales, xs: Array) -> Parameters:
    """`lsuv`, unchecked: for use inside compiled programs."""
    return _through(_unit_variance, parameters, scales, xs)


@kinds
@nan_is_data
def calibrate(parameters: Parameters, scales: Scales, xs: ArrayLike) -> Parameters:
    """Set running statistics (``norm="batch_running"``) to those of a batch, layer by layer.

    At initialization they are those of the identity: the norm then does nothing. A block of your own is called on the
    whole batch in training mode (`nnx.Module.train`), and moves its statistics by its own momentum.

    Args:
        parameters, scales: as for `forward`; stored, of a network whose blocks take a leading batch axis.
        xs: inputs, with a leading batch axis.

    Returns:
        Parameters of the same network.

    Raises:
        ValueError: unknown scales, inputs of the wrong shape, or streamed or tied parameters.
    """
    return _calibrated(_statistics, parameters, scales, xs)


def _calibrated(
    rule: Callable[[Layer, Array], tuple[Array, Any]],
    parameters: Parameters,
    scales: Scales,
    xs: ArrayLike,
) -> Parameters:
    xs, network = checked_input(parameters, scales, xs, batch=True), parameters.network
    if xs.shape == network.input_shape:
        raise ValueError(f"xs must be a batch of inputs, shape (batch, *{network.input_shape}), got one input")
    if parameters.streamed or any(stage.tied for stage in network.stages):
        raise ValueError("parameters must be stored, each layer with its own, to be set layer by layer")
    return _through(rule, parameters, scales, xs)


@functools.partial(jax.jit, static_argnames="rule")
def _through(
    rule: Callable[[Layer, Array], tuple[Array, Any]], parameters: Parameters, scales: Scales, xs: Array
) -> Parameters:
    """Every layer's parameters by a rule (layer, states of the batch) -> (next states, parameters)."""
    layers, hs = bind(parameters, scales, None), xs.astype(parameters.dtype)
    stem, head = layers.stem, layers.head
    hs, of_stem = rule(stem, hs) if stem else (hs, {})
    hs, stages = layers.scan(hs, lambda layer, hs, _: rule(layer, hs))
    last = without_shared(parameters.network, rule(head, hs)[1]) if head and rule is _statistics else parameters.head
    return replace(parameters, stem=of_stem, stages=tuple(stages), head=last)


def _unit_variance(layer: Layer, hs: Array) -> tuple[Array, Any]:
    path: str = layer.spec.block.kernel_path  # type: ignore[attr-defined]

    def once(_: int, kernel: Array) -> Array:
        out = jax.vmap(layer.with_parameters({path: kernel}))(hs)
        variance = jnp.var(out)
        return jnp.where(variance > 0, kernel / jnp.sqrt(variance), kernel)

    kernel = jax.lax.fori_loop(0, _ROUNDS, once, layer.trainable()[path])
    done = layer.with_parameters({path: kernel})
    return jax.vmap(done)(hs), done.parameters


def _statistics(layer: Layer, hs: Array) -> tuple[Array, Any]:
    block = layer.module()
    block.train()
    out = protocol.call(block, hs, layer.scales)
    return out, nnx.to_pure_dict(nnx.split(block)[1])
