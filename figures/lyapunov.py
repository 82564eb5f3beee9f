"""A recurrent tanh network is a deep one with shared weights: its Lyapunov spectrum against the gain, into chaos."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from common import SMALL, render
from jax import Array

import vgjax as vg
from vgjax import plots, theory
from vgjax.layers import Stream

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEPS, TRANSIENT = (150, 50) if SMALL else (1500, 500)
NARROW, WIDE = (16, 32) if SMALL else (64, 256)
NARROW_DRAWS, WIDE_DRAWS = (2, 1) if SMALL else (10, 6)
GAINS = [0.7, 1.0, 1.5, 2.0, 3.0, 4.0]  # of the spectra
FINE = [0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0]
ONCE = [1.2, 1.4, 1.5, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0]  # of the dimension of the wide network


@dataclass(frozen=True)
class Exponents:
    """Lyapunov exponents of networks of one size.

    Attributes:
        gains: g, shape ``(gains,)``.
        values: descending, shape ``(gains, draws, count)``.
        errors: their standard errors over time, same shape.
        log_radius: ln of the largest modulus of the eigenvalues of each J, shape ``(draws,)``.
        size: n.
    """

    gains: np.ndarray
    values: np.ndarray
    errors: np.ndarray
    log_radius: np.ndarray
    size: int


@dataclass(frozen=True)
class Data:
    """Measured exponents and the theory of infinite size.

    Attributes:
        narrow: all exponents of many draws.
        wide: all exponents of one draw.
        largest: the largest exponent of a few draws of the wide network.
        log_moduli: ln of the moduli of the eigenvalues of J of the draw in ``wide``, descending.
        fine, mean_field: gains, and the largest exponent there in theory.
    """

    narrow: Exponents
    wide: Exponents
    largest: Exponents
    log_moduli: np.ndarray
    fine: np.ndarray
    mean_field: np.ndarray


def compute() -> Data:
    """Networks of 64 and 256 units, 1000 steps behind a transient of 500."""
    fine = np.unique(np.concatenate([np.linspace(FINE[0], FINE[-1], 141), [1.0]]))
    mean_field = np.array([theory.recurrent.lyapunov("tanh", g).exponent for g in fine])
    every, once = sorted({*GAINS, *FINE}), sorted({*GAINS, *ONCE})
    return Data(
        exponents(NARROW, every, NARROW_DRAWS),
        exponents(WIDE, GAINS if SMALL else once, 1),
        exponents(WIDE, FINE, WIDE_DRAWS, count=1),
        log_moduli(recurrent(WIDE, draw_key(0))[1]),
        fine,
        mean_field,
    )


def exponents(size: int, gains: Sequence[float], draws: int, count: int | None = None) -> Exponents:
    """The exponents of each draw of J at each gain, the largest ``count`` of them."""
    x = jax.random.normal(jax.random.key(1), (size,))
    networks = [recurrent(size, draw_key(i)) for i in range(draws)]

    def one(gain: float, network: vg.Network, parameters: vg.Parameters) -> tuple[np.ndarray, np.ndarray]:
        scales = vg.Scales(sigma_w=gain, sigma_b=0.0)
        found = vg.lyapunov_exponents(network, parameters, scales, x, count, discard=TRANSIENT)
        order = np.argsort(-found.exponents)
        return found.exponents[order], found.standard_error[order]

    found = np.array([[one(gain, *network) for network in networks] for gain in gains])
    log_radius = np.array([log_moduli(parameters)[0] for _, parameters in networks])
    return Exponents(np.array(gains), found[:, :, 0], found[:, :, 1], log_radius, size)


def draw_key(draw: int) -> Array:
    """Of J."""
    return jax.random.fold_in(jax.random.key(0), draw)


def recurrent(size: int, key: Array) -> tuple[vg.Network, vg.Parameters]:
    """h <- sigma_w J tanh(h): a deep network whose layers all draw their kernel from one key."""
    network = vg.mlp(width=size, depth=STEPS, activation="tanh", inputs=size, bias_law="zero")
    parameters = vg.init(key, network, stream=True)
    keys = parameters.stages[0].keys
    return network, dataclasses.replace(parameters, stages=(Stream(jnp.broadcast_to(keys[:1], keys.shape)),))


def log_moduli(parameters: vg.Parameters) -> np.ndarray:
    """ln of the moduli of the eigenvalues of J, descending."""
    spec = parameters.network.stages[0].spec
    kernel = vg.layers.draw(spec, parameters.stages[0].keys[0])["kernel"]
    return np.sort(np.log(np.abs(np.linalg.eigvals(np.asarray(kernel, float)))))[::-1]


