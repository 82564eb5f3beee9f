"""Networks: what is compiled for, its numbers, the one pass through it, and how it is built."""

from vgjax.initializers import scheme
from vgjax.networks.builders import (
    attention,
    branch,
    chain,
    concatenated,
    conv,
    depth_average,
    feed_forward,
    graph_conv,
    graph_network,
    hyper_connections,
    normalized_adjacency,
    parallel,
    sequential,
    spiking,
    tied,
    tokens,
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
    "attention",
    "branch",
    "calibrate",
    "chain",
    "concatenated",
    "conv",
    "depth_average",
    "feed_forward",
    "graph_conv",
    "graph_network",
    "hyper_connections",
    "lsuv",
    "network_from_json",
    "network_to_json",
    "normalized_adjacency",
    "parallel",
    "scheme",
    "sequential",
    "spiking",
    "tied",
    "tokens",
    "untied",
]
