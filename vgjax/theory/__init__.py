"""Theory: what infinite width, and its first correction in 1 / width, predict for any activation.

It imports nothing of the simulator, so that it can contradict it; the two meet in `vgjax.compare`. The plain stack is
here; further architectures are in `normalization`, `residual`, `recurrent`, `linear_recurrences`, `attention`,
`transformer`, `streams`, `graphs`, transformed activations in `shaping`, singular values in `free_probability`, what
training makes of deep linear networks in `linear_dynamics`.

Modules that begin with an underscore hold what is named here or what others need; a module never has the name of a
function.
"""

from vgjax.theory import (
    attention,
    free_probability,
    graphs,
    linear_dynamics,
    linear_recurrences,
    normalization,
    recurrent,
    residual,
    shaping,
    streams,
    transformer,
)
from vgjax.theory._critical import Critical, critical
from vgjax.theory._finite_width import Band, LogMoments, band, fourth_moment, log_gain_moments, log_normal_beta
from vgjax.theory._gaussian import correlated_expectation, expectation
from vgjax.theory._mean_field import FixedPoint, MeanField, mean_field
from vgjax.theory._moments import Moments, moments
from vgjax.theory._propagation import Propagation, propagate
from vgjax.theory._tables import Tables, tables

__all__ = [
    "Band",
    "Critical",
    "FixedPoint",
    "LogMoments",
    "MeanField",
    "Moments",
    "Propagation",
    "Tables",
    "attention",
    "band",
    "correlated_expectation",
    "critical",
    "expectation",
    "fourth_moment",
    "free_probability",
    "graphs",
    "linear_dynamics",
    "linear_recurrences",
    "log_gain_moments",
    "log_normal_beta",
    "mean_field",
    "moments",
    "normalization",
    "propagate",
    "recurrent",
    "residual",
    "shaping",
    "streams",
    "tables",
    "transformer",
]
