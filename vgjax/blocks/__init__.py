"""Blocks: Flax NNX modules that map a state to the next state. What they may say about themselves: `protocol`."""

from vgjax.blocks.attention import Attention, ValueResidual
from vgjax.blocks.composed import Chain, Concatenated, OnFirst, Parallel, Residual
from vgjax.blocks.convolution import Conv
from vgjax.blocks.dense import Dense
from vgjax.blocks.equilibrium import Equilibrium
from vgjax.blocks.experts import Experts
from vgjax.blocks.features import FourierFeatures
from vgjax.blocks.graph import GraphConv
from vgjax.blocks.linear_recurrences import DiagonalCell, MinGRUCell, MinLSTMCell, RGLRUCell, SelectiveCell
from vgjax.blocks.matrix_memory import MatrixCell
from vgjax.blocks.noise import Dropout
from vgjax.blocks.normalization import DynamicTanh, Gain, Norm
from vgjax.blocks.protocol import Spec, call, spec, step
from vgjax.blocks.reading import Activate, Flat, Part, Pool, Start
from vgjax.blocks.recurrent import GRUCell, LSTMCell, MinimalCell, RNNCell
from vgjax.blocks.spiking import LIFCell, surrogate
from vgjax.blocks.streams import DepthAverage, HyperConnection, Merge, Remember, Split
from vgjax.blocks.tokens import Embedding, Positions, Unembedding
from vgjax.blocks.weight_normalization import WeightNormalized
from vgjax.initializers import Scale

__all__ = [
    "Activate",
    "Attention",
    "Chain",
    "Concatenated",
    "Conv",
    "Dense",
    "DepthAverage",
    "DiagonalCell",
    "Dropout",
    "DynamicTanh",
    "Embedding",
    "Equilibrium",
    "Experts",
    "Flat",
    "FourierFeatures",
    "GRUCell",
    "Gain",
    "GraphConv",
    "HyperConnection",
    "LIFCell",
    "LSTMCell",
    "MatrixCell",
    "Merge",
    "MinGRUCell",
    "MinLSTMCell",
    "MinimalCell",
    "Norm",
    "OnFirst",
    "Parallel",
    "Part",
    "Pool",
    "Positions",
    "RGLRUCell",
    "RNNCell",
    "Remember",
    "Residual",
    "Scale",
    "SelectiveCell",
    "Spec",
    "Split",
    "Start",
    "Unembedding",
    "ValueResidual",
    "WeightNormalized",
    "call",
    "spec",
    "step",
    "surrogate",
]
