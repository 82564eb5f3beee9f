"""Builders: the architectures of the field, each as one call that returns a `Network`, and what they are made of.

Combinators make the `Spec` of a block and compose (`dense`, `conv`, `chain`, `residual`, `concatenated`); `sequential`
and `stack` make a network of blocks, `tied` one whose layers share their draw. The architectures are recipes over
these, with one set of words and defaults: ``activation`` is a name, an `Activation` or any elementwise callable;
``inputs`` says what one input is like, ``outputs`` how many numbers come out; ``norm`` and ``residual`` are a kind, or
`norm` and `branch` with their options; ``kernel_init`` and ``bias_init`` name the unit-gain draws of kernels and
biases, or are laws or arrays of your own; ``dtype`` is float32, or float64 within ``with jax.enable_x64(True):``. The
head reads the last state at unit gain (``sigma_out``) and has a zero bias.
"""

from vgjax.networks.builders.combinators import chain, concatenated, conv, dense, norm, parallel, residual
from vgjax.networks.builders.convolutional import cnn, resnet
from vgjax.networks.builders.fully_connected import mlp
from vgjax.networks.builders.graphs import graph_conv, graph_network, normalized_adjacency
from vgjax.networks.builders.linear_recurrences import delta_net, diagonal_rnn, mamba, min_gru, min_lstm, rg_lru
from vgjax.networks.builders.recipes import branch
from vgjax.networks.builders.recurrent import gru, lstm, rnn
from vgjax.networks.builders.spiking_networks import spiking
from vgjax.networks.builders.stacking import sequential, stack, tied, untied
from vgjax.networks.builders.streams import depth_average, hyper_connections
from vgjax.networks.builders.transformer_parts import attention, feed_forward, tokens
from vgjax.networks.builders.transformers import transformer

__all__ = [
    "attention",
    "branch",
    "chain",
    "cnn",
    "concatenated",
    "conv",
    "delta_net",
    "dense",
    "depth_average",
    "diagonal_rnn",
    "feed_forward",
    "graph_conv",
    "graph_network",
    "gru",
    "hyper_connections",
    "lstm",
    "mamba",
    "min_gru",
    "min_lstm",
    "mlp",
    "norm",
    "normalized_adjacency",
    "parallel",
    "residual",
    "resnet",
    "rg_lru",
    "rnn",
    "sequential",
    "spiking",
    "stack",
    "tied",
    "tokens",
    "transformer",
    "untied",
]
