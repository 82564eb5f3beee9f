"""Builders: the architectures of the field, each as one call that returns a `Network`.

What they share: ``activation`` is a name, an `Activation` or any elementwise callable; ``kernel_init`` and ``bias_init`` name
the unit-gain laws of kernels and biases; ``dtype`` is float32, or float64 within ``with jax.enable_x64(True):``;
``norm`` is one of `vgjax.blocks.normalization.NORMS` (or None) with its ``epsilon``; the head reads the last state at
unit gain and has a zero bias.
"""

from vgjax.networks.builders.convolutional import cnn, resnet
from vgjax.networks.builders.dense import mlp
from vgjax.networks.builders.own import stack
from vgjax.networks.builders.recurrent import gru, lstm, rnn
from vgjax.networks.builders.transformers import transformer

__all__ = ["cnn", "gru", "lstm", "mlp", "resnet", "rnn", "stack", "transformer"]
