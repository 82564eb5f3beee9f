"""ln gradient norm against layer: vanishing, critical, exploding; and where float32 stops reading it."""

import jax
from common import SMALL, render

import vgjax as vg

SIGMA_B = 0.05
SIGMA_W = {"vanishing": 0.6, "critical": 1.17, "exploding": 3.0}


def compute() -> dict[str, vg.GradientFlow]:
    """Three tanh networks of 300 layers, 8 draws each, cross-entropy on images of digits."""
    width, depth, seeds = (32, 30, 2) if SMALL else (256, 300, 8)
    images = vg.data.digits()
    network = vg.mlp(width=width, depth=depth, activation="tanh", inputs=64, outputs=10)
    return {
        f"{name}, $\\sigma_w$ = {sigma_w}": vg.profile(
            network,
            images.inputs[:seeds],
            images.labels[:seeds],
            key=jax.random.key(0),
            seeds=seeds,
            scales=vg.Scales(sigma_w=sigma_w, sigma_b=SIGMA_B),
            naive=("float32",),
        )
        for name, sigma_w in SIGMA_W.items()
    }


if __name__ == "__main__":
    render(
        "depth_profile", compute, lambda flows: vg.plots.depth_profile(flows, title=rf"tanh, $\sigma_b$ = {SIGMA_B}")
    )
