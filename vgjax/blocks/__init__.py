"""Blocks: Flax NNX modules that map a state to the next state. What they may say about themselves: `protocol`."""

from vgjax.blocks.attention import Attention
from vgjax.blocks.composed import Chain, Concatenated, Parallel, Residual
from vgjax.blocks.convolution import Conv
from vgjax.blocks.dense import Dense
from vgjax.blocks.experts import Experts
from vgjax.blocks.noise import Dropout
from vgjax.blocks.normalization import DynamicTanh, Gain, Norm
from vgjax.blocks.protocol import Spec, call, spec, step
from vgjax.blocks.reading import Activate, Part, Pool, Start
from vgjax.blocks.recurrent import GRUCell, LSTMCell, MinimalCell, RNNCell
from vgjax.blocks.tokens import Embedding, Positions
from vgjax.initializers import Scale

__all__ = [
    "Activate",
    "Attention",
    "Chain",
    "Concatenated",
    "Conv",
    "Dense",
    "Dropout",
    "DynamicTanh",
    "Embedding",
    "Experts",
    "GRUCell",
    "Gain",
    "LSTMCell",
    "MinimalCell",
    "Norm",
    "Parallel",
    "Part",
    "Pool",
    "Positions",
    "RNNCell",
    "Residual",
    "Scale",
    "Spec",
    "Start",
    "call",
    "spec",
    "step",
]
