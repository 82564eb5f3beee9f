"""Blocks: Flax NNX modules that map a state to the next state. What they may say about themselves: `protocol`."""

from vgjax.blocks.attention import Attention
from vgjax.blocks.composed import Chain, Concatenated, Residual
from vgjax.blocks.convolution import Conv
from vgjax.blocks.dense import Dense
from vgjax.blocks.equilibrium import Equilibrium
from vgjax.blocks.linear_recurrences import DiagonalCell, MinGRUCell, MinLSTMCell, RGLRUCell, SelectiveCell
from vgjax.blocks.matrix_memory import MatrixCell
from vgjax.blocks.noise import Dropout
from vgjax.blocks.normalization import Norm
from vgjax.blocks.protocol import Spec, call, spec, step
from vgjax.blocks.reading import Activate, Flat, Part, Pool, Start
from vgjax.blocks.recurrent import GRUCell, LSTMCell, MinimalCell, RNNCell
from vgjax.initializers import Scale

__all__ = [
    "Activate",
    "Attention",
    "Chain",
    "Concatenated",
    "Conv",
    "Dense",
    "DiagonalCell",
    "Dropout",
    "Equilibrium",
    "Flat",
    "GRUCell",
    "LSTMCell",
    "MatrixCell",
    "MinGRUCell",
    "MinLSTMCell",
    "MinimalCell",
    "Norm",
    "Part",
    "Pool",
    "RGLRUCell",
    "RNNCell",
    "Residual",
    "Scale",
    "SelectiveCell",
    "Spec",
    "Start",
    "call",
    "spec",
    "step",
]
