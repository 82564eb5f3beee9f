"""vgjax maps where gradients vanish or explode in deep networks: before training, at any depth, exactly."""

from vgjax import activations, blocks, data, plots, theory
from vgjax.activations import Activation
from vgjax.blocks import Spec, spec
from vgjax.comparison import Comparison, compare
from vgjax.ensembles.measurement import Measurement, measurement
from vgjax.ensembles.measurements import correlations, frobenius, gains, gradients, lyapunov, naive_readings, spectra
from vgjax.ensembles.remedies import Remedy, first_steps, remedies, remedy_examples, remedy_table
from vgjax.ensembles.result import Result, load
from vgjax.ensembles.sweep import Case, sweep
from vgjax.initializers import Scale, Scales, scheme
from vgjax.measure.correlation import correlation, token_correlation
from vgjax.measure.flow import gain_matrix, pull_back, push_forward, states
from vgjax.measure.gradients import GradientFlow, gradient_flow
from vgjax.measure.lyapunov import layer_singular_values, log_determinant, lyapunov_exponents
from vgjax.measure.naive import naive_reading
from vgjax.measure.norms import log_frobenius
from vgjax.measure.spectrum import log_singular_values
from vgjax.networks.builders import (
    branch,
    chain,
    cnn,
    conv,
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
    tied,
    transformer,
    untied,
)
from vgjax.networks.calibration import calibrate, lsuv
from vgjax.networks.layers import forward
from vgjax.networks.network import Network
from vgjax.networks.parameters import Parameters, init
from vgjax.networks.trainable import absorb_scales

__version__ = "0.1.0"
