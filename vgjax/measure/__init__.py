"""Measurements of one network: (params, scales, x, ...) -> a tuple of arrays; pure, traceable, one example."""

from vgjax.measure.correlation import Correlation, token_correlation
from vgjax.measure.flow import Pull, Push, States
from vgjax.measure.gradients import GradientFlow
from vgjax.measure.lyapunov import Lyapunov, layer_singular_values, log_determinant
from vgjax.measure.norms import Frobenius
from vgjax.measure.spectrum import Spectrum

__all__ = [
    "Correlation",
    "Frobenius",
    "GradientFlow",
    "Lyapunov",
    "Pull",
    "Push",
    "Spectrum",
    "States",
    "layer_singular_values",
    "log_determinant",
    "token_correlation",
]
