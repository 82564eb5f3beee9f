"""Theory: what infinite width, and its first correction in 1 / width, predict for any activation.

It imports nothing of the simulator, so that it can contradict it; the two meet in `vgjax.compare`. The plain stack is
here; further architectures are in `normalization`, `residual`, `recurrent`, `attention`, transformed activations in
`shaping`, singular values in `spectra`, what training makes of deep linear networks in `learning`.
"""

from vgjax.theory import attention, learning, normalization, recurrent, residual, shaping, spectra
from vgjax.theory.critical import Critical, critical_line, critical_point, critical_sigma_w
from vgjax.theory.finite_width import Band, band, fourth_moment, log_gain_moments, log_normal_beta
from vgjax.theory.gaussian import correlated_expectation, expectation
from vgjax.theory.phases import FixedPoint, MeanField, fixed_points, mean_field, mean_field_map
from vgjax.theory.trajectories import Trajectory, trajectory

__all__ = [
    "Band",
    "Critical",
    "FixedPoint",
    "MeanField",
    "Trajectory",
    "attention",
    "band",
    "correlated_expectation",
    "critical_line",
    "critical_point",
    "critical_sigma_w",
    "expectation",
    "fixed_points",
    "fourth_moment",
    "learning",
    "log_gain_moments",
    "log_normal_beta",
    "mean_field",
    "mean_field_map",
    "normalization",
    "recurrent",
    "residual",
    "shaping",
    "spectra",
    "trajectory",
]
