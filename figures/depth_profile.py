"""ln gradient norm against layer: vanishing, critical, exploding; and where float32 stops reading it."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from common import SMALL, render

import vgjax as vg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGMA_B = 0.05
SIGMA_W = {"vanishing": 0.6, "critical": 1.17, "exploding": 3.0}


def compute() -> tuple[vg.Result, vg.Result]:
    """Gradients of tanh networks of 300 layers at three scales, 8 draws, cross-entropy on images of digits; and which
    of them float32 reads as 0 or not finite."""
    width, depth, seeds = (32, 30, 2) if SMALL else (256, 300, 8)
    images = vg.data.digits()
    network = vg.mlp(width=width, depth=depth, activation="tanh", inputs=64, outputs=10)
    x, y = images.inputs[:seeds], images.labels[:seeds]
    same: dict[str, Any] = {"key": jax.random.key(0), "seeds": seeds, "leading": "seed"}
    same |= {"sigma_w": [*SIGMA_W.values()], "sigma_b": SIGMA_B}
    gradients = vg.sweep(network, x, y, measure=vg.gradients(), **same)
    return gradients, vg.sweep(network, x, y, measure=vg.naive_readings("float32"), **same)


def draw(data: tuple[vg.Result, vg.Result]) -> "Figure":
    """The measured curves over the bands of theory."""
    gradients, readings = data

    def by_name(of_scales: Any) -> dict[str, Any]:
        names = [f"{name}, $\\sigma_w$ = {sigma_w}" for name, sigma_w in SIGMA_W.items()]
        return dict(zip(names, of_scales, strict=True))

    return vg.plots.depth_profile(
        by_name(np.swapaxes(gradients.log_gradient, 0, 1)),
        lost=by_name(np.swapaxes(readings.lost, 0, 1)),
        theory=by_name(vg.compare(gradients).bands),
        title=rf"tanh, $\sigma_b$ = {SIGMA_B}",
    )


if __name__ == "__main__":
    render("depth_profile", compute, draw)
