"""The phase map of tanh.

Where gradients vanish, where they explode, the edge of chaos of theory over the measured one, and the depth at which
float32 stops seeing either.
"""

import jax
import numpy as np
from common import SMALL, render

import vgjax as vg


def compute() -> vg.Result:
    """64 x 64 networks of 100 layers and width 256, 8 draws, each with its own image of a digit."""
    points, width, depth, seeds = (8, 32, 20, 2) if SMALL else (64, 256, 100, 8)
    network = vg.mlp(width=width, depth=depth, activation="tanh", inputs=64, outputs=10)
    return vg.sweep(
        network,
        vg.data.digits().inputs[:seeds],
        key=jax.random.key(0),
        seeds=seeds,
        leading="seed",
        sigma_w=np.linspace(0.5, 3, points, dtype=np.float32),
        sigma_b=np.linspace(0, 1, points, dtype=np.float32),
    )


if __name__ == "__main__":
    render("map", compute, lambda sweep: vg.plots.phase_map(sweep, theory=vg.compare(sweep)))
