"""Networks: what is compiled for, its numbers, the one pass through it, and how it is built."""

from vgjax.initializers import scheme
from vgjax.networks.builders import (
    branch,
    chain,
    concatenated,
    conv,
    delta_net,
    diagonal_rnn,
    mamba,
    min_gru,
    min_lstm,
    rg_lru,
    sequential,
    tied,
    untied,
)
from vgjax.networks.calibration import calibrate, lsuv
from vgjax.networks.network import Network, Stage
from vgjax.networks.parameters import Parameters, Stream
from vgjax.networks.serialization import network_from_json, network_to_json

__all__ = [
    "Network",
    "Parameters",
    "Stage",
    "Stream",
    "branch",
    "calibrate",
    "chain",
    "concatenated",
    "conv",
    "delta_net",
    "diagonal_rnn",
    "lsuv",
    "mamba",
    "min_gru",
    "min_lstm",
    "network_from_json",
    "network_to_json",
    "rg_lru",
    "scheme",
    "sequential",
    "tied",
    "untied",
]
