"""vgjax maps where gradients vanish or explode in deep networks: before training, at any depth, exactly."""

from vgjax import activations, data, plots
from vgjax.activations import Activation
from vgjax.flow import GradientFlow, Pull, Push, gain_matrix, gradient_flow, pull_back, push_forward
from vgjax.initializers import Scales, scheme
from vgjax.networks import Network, Parameters, Spec, forward, init, mlp, scaled, stack
from vgjax.results import Sweep, load
from vgjax.sweeps import profile, sweep

__all__ = [
    "Activation",
    "GradientFlow",
    "Network",
    "Parameters",
    "Pull",
    "Push",
    "Scales",
    "Spec",
    "Sweep",
    "activations",
    "data",
    "forward",
    "gain_matrix",
    "gradient_flow",
    "init",
    "load",
    "mlp",
    "plots",
    "profile",
    "pull_back",
    "push_forward",
    "scaled",
    "scheme",
    "stack",
    "sweep",
]

__version__ = "0.1.0"
