"""vgjax maps where gradients vanish or explode in deep networks: before training, at any depth, exactly."""

from vgjax import interrupts  # noqa: F401 - before all that takes time

# isort: split
from vgjax import activations, blocks, data, diagnosis, ensembles, measure, networks, plots, theory, training
from vgjax.activations import Activation
from vgjax.comparison import compare
from vgjax.diagnosis.calls import assert_trainable, diagnose
from vgjax.diagnosis.watching import watch
from vgjax.edges import solve, trace_edge
from vgjax.ensembles.folder import collect, status
from vgjax.ensembles.loading import load
from vgjax.ensembles.measurement import measurement
from vgjax.ensembles.measurements import correlations, frobenius, gains, gradients, lyapunov, naive_readings, spectra
from vgjax.ensembles.remedies import first_steps, remedies
from vgjax.ensembles.result import Result
from vgjax.ensembles.sweep import sweep
from vgjax.initializers import Scales
from vgjax.measure.correlation import correlation
from vgjax.measure.flow import gain_matrix, pull_back, push_forward, states
from vgjax.measure.gradients import gradient_flow
from vgjax.measure.lyapunov import lyapunov_exponents
from vgjax.measure.naive import naive_reading
from vgjax.measure.norms import log_frobenius
from vgjax.measure.spectrum import log_singular_values
from vgjax.networks.builders import (
    cnn,
    dense,
    gru,
    lstm,
    mlp,
    norm,
    residual,
    resnet,
    rnn,
    sequential,
    stack,
    transformer,
)
from vgjax.networks.layers import forward
from vgjax.networks.network import Network
from vgjax.networks.parameters import init
from vgjax.networks.trainable import absorb_scales
from vgjax.training.coordinates import coordinate_check
from vgjax.training.loop import train
from vgjax.training.teacher_student import teacher
from vgjax.training.trainability import trainable_depth, trainings
from vgjax.version import VERSION

__version__ = VERSION

# ruff: noqa: RUF022 - grouped, in the order in which one meets them
__all__ = [
    # networks: descriptions, draws, scales
    "mlp", "cnn", "resnet", "rnn", "lstm", "gru", "transformer",
    "stack", "sequential", "dense", "residual", "norm",
    "Network", "Activation", "Scales", "init", "forward", "absorb_scales",
    # measurements of one network
    "gradient_flow", "naive_reading", "push_forward", "pull_back", "gain_matrix", "states", "correlation",
    "log_singular_values", "lyapunov_exponents", "log_frobenius",
    # the sweep, what it measures, what it gives
    "sweep", "gains", "gradients", "naive_readings", "correlations", "spectra", "lyapunov", "frobenius",
    "trainings", "first_steps", "measurement", "Result", "load", "remedies",
    "collect", "status",
    # the edge, measured
    "solve", "trace_edge",
    # any other model
    "diagnose", "assert_trainable", "watch",
    # training
    "train", "coordinate_check", "trainable_depth", "teacher",
    # theory beside measurement
    "compare", "theory",
    # wings
    "activations", "blocks", "data", "diagnosis", "ensembles", "measure", "networks", "plots", "training",
]  # fmt: skip


def __dir__() -> list[str]:
    """The public page; what is not on it is internal."""
    return sorted(__all__)
