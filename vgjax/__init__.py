"""vgjax maps where gradients vanish or explode in deep networks: before training, at any depth, exactly."""

from vgjax import activations, blocks, data, plots, theory
from vgjax.activations import Activation
from vgjax.blocks import Spec, spec
from vgjax.boundary import BoxCount, box_dimension, zoom
from vgjax.builders import cnn, gru, lstm, mlp, resnet, rnn, stack, transformer
from vgjax.calibration import calibrate, lsuv
from vgjax.comparison import Comparison, compare, predicted_profile
from vgjax.continuous import ContinuousTraining, train_continuously
from vgjax.flow import Pull, Push, gain_matrix, pull_back, push_forward
from vgjax.gradients import GradientFlow, gradient_flow
from vgjax.initializers import Scales, scheme
from vgjax.layers import Parameters, forward, init, scaled
from vgjax.networks import Network
from vgjax.results import Spectrum, SpectrumSweep, Sweep, load
from vgjax.spectrum import (
    Frobenius,
    Lyapunov,
    layer_singular_values,
    log_determinant,
    log_frobenius,
    log_singular_values,
    lyapunov_exponents,
)
from vgjax.sweeps import profile, spectrum_sweep, sweep
from vgjax.teachers import teacher
from vgjax.tokens import token_correlation
from vgjax.trainability import TrainingSweep, train_sweep
from vgjax.training import Training, train
from vgjax.treatments import Remedies, Treatment, remedies

__all__ = [
    "Activation",
    "BoxCount",
    "Comparison",
    "ContinuousTraining",
    "Frobenius",
    "GradientFlow",
    "Lyapunov",
    "Network",
    "Parameters",
    "Pull",
    "Push",
    "Remedies",
    "Scales",
    "Spec",
    "Spectrum",
    "SpectrumSweep",
    "Sweep",
    "Training",
    "TrainingSweep",
    "Treatment",
    "activations",
    "blocks",
    "box_dimension",
    "calibrate",
    "cnn",
    "compare",
    "data",
    "forward",
    "gain_matrix",
    "gradient_flow",
    "gru",
    "init",
    "layer_singular_values",
    "load",
    "log_determinant",
    "log_frobenius",
    "log_singular_values",
    "lstm",
    "lsuv",
    "lyapunov_exponents",
    "mlp",
    "plots",
    "predicted_profile",
    "profile",
    "pull_back",
    "push_forward",
    "remedies",
    "resnet",
    "rnn",
    "scaled",
    "scheme",
    "spec",
    "spectrum_sweep",
    "stack",
    "sweep",
    "teacher",
    "theory",
    "token_correlation",
    "train",
    "train_continuously",
    "train_sweep",
    "transformer",
    "zoom",
]

__version__ = "0.1.0"
