"""Small random networks of 300 layers, the same to the last bit on every machine.

Used by the tests of deep Jacobian spectra and by ``make_spectrum_reference.py``, which computes the exact spectra.

Row vectors throughout. A layer maps the preactivation h, shape (n,), to

    h' = sigma_w * phi(h) @ Z + sigma_b * z        (residual: h' = h + sigma_w * phi(h) @ Z + sigma_b * z)

so its Jacobian is J = (sigma_w * diag(phi'(h)) @ Z).T (residual: plus the identity). Layer l (counted from 1) maps
h^{l-1} to h^l with ``kernels[l - 1]`` and ``biases[l - 1]``. The product at depth m is J_m ... J_1; with a stem
h^0 = x @ Z0 it is J_m ... J_1 Z0.T.

Only the frozen stream of ``RandomState``, elementwise float64 operations in a fixed order and roundings to float32
are used: no matrix product, no factorization. sigma_w and sigma_b are float32 values too.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DEPTH = 300
DEPTHS = (1, 2, 5, 20, 100, 300)
WIDTHS = (12, 16, 32)
STEM_INPUTS = 20
PERTURBATION = 0.05


class Kind(NamedTuple):
    """What the cases of one kind have in common at every width."""

    activation: str
    sigma_w: float
    sigma_b: float
    kernel: str = "gaussian"
    residual: bool = False
    stem: bool = False


class Case(NamedTuple):
    """One network with its weights and its first state (with a stem: its input)."""

    kind: str
    width: int
    sigma_w: float
    sigma_b: float
    activation: str
    residual: bool
    kernels: NDArray[np.float32]
    biases: NDArray[np.float32]
    first: NDArray[np.float32]
    stem: NDArray[np.float32] | None


KINDS = {
    "linear_gaussian": Kind("identity", 1.0, 0.0),
    "linear_orthogonal": Kind("identity", 1.0, 0.0, kernel="orthogonal"),
    "near_orthogonal": Kind("identity", 1.0, 0.0, kernel="near_orthogonal"),
    "tanh_ordered": Kind("tanh", 1.0, 0.25),
    "tanh_critical_orthogonal": Kind("tanh", 1.0625, 0.0625, kernel="orthogonal"),
    "relu": Kind("relu", 1.4140625, 0.125),
    "sigmoid": Kind("sigmoid", 1.5, 0.25),
    "residual": Kind("tanh", 0.25, 0.0625, residual=True),
    "stem": Kind("tanh", 1.0, 0.25, stem=True),
}

# ReLU: chosen so that no |h| at any unit and layer is below 3e-4 (float32 and exact arithmetic then agree on which
# units are dead) and that at least two singular values survive 300 layers. The seeds of the other kinds are arbitrary:
# 1000 times the position of the kind in KINDS, counted from 1, plus the width.
RELU_SEEDS = {12: 17, 16: 137, 32: 28}
SEEDS = {
    (kind, width): RELU_SEEDS[width] if kind == "relu" else 1000 * position + width
    for position, kind in enumerate(KINDS, start=1)
    for width in WIDTHS
}


def gaussian_kernels(random: np.random.RandomState, layers: int, width: int) -> NDArray[np.float64]:
    """Kernels with independent entries of variance 1 / width, shape (layers, width, width), not yet rounded."""
    return random.randn(layers, width, width) / math.sqrt(width)


def orthogonal_kernels(random: np.random.RandomState, layers: int, width: int) -> NDArray[np.float64]:
    """Products of ``width`` Householder reflections along random vectors, shape (layers, width, width), not rounded."""
    vectors = random.randn(width, layers, width).astype(np.float32).astype(np.float64)
    kernels = np.tile(np.eye(width), (layers, 1, 1))
    for v in vectors:
        # Sums run over k in this order, one elementwise operation at a time over all layers and rows.
        square = np.zeros(layers)
        along = np.zeros((layers, width))
        for k in range(width):
            square = square + v[:, k] * v[:, k]
            along = along + kernels[:, :, k] * v[:, k, None]
        scaled = (along + along) / square[:, None]
        kernels = kernels - scaled[:, :, None] * v[:, None, :]
    return kernels


def case(kind: str, width: int, seed: int | None = None) -> Case:
    """The network of this kind and width. A seed other than that of ``SEEDS`` serves only to choose one."""
    settings = KINDS[kind]
    random = np.random.RandomState(SEEDS[kind, width] if seed is None else seed)
    first = random.randn(STEM_INPUTS if settings.stem else width)
    stem = random.randn(STEM_INPUTS, width) / math.sqrt(STEM_INPUTS) if settings.stem else None
    biases = random.randn(DEPTH, width)
    if settings.kernel == "gaussian":
        kernels = gaussian_kernels(random, DEPTH, width)
    else:
        kernels = orthogonal_kernels(random, DEPTH, width)
        if settings.kernel == "near_orthogonal":
            kernels = kernels + PERTURBATION * gaussian_kernels(random, DEPTH, width)
    return Case(
        kind=kind,
        width=width,
        sigma_w=settings.sigma_w,
        sigma_b=settings.sigma_b,
        activation=settings.activation,
        residual=settings.residual,
        kernels=kernels.astype(np.float32),
        biases=biases.astype(np.float32),
        first=first.astype(np.float32),
        stem=None if stem is None else stem.astype(np.float32),
    )
