"""ln gradient norm against layer: vanishing, critical, exploding; and where float32 stops reading it."""

import jax
from common import SMALL, render

import vgjax as vg

SIGMA_B = 0.05
SIGMA_W = {"vanishing": 0.6, "critical": 1.17, "exploding": 3.0}


def compute() -> tuple[dict[str, vg.measure.GradientFlow], dict[str, vg.theory.Band]]:
    """Three tanh networks of 300 layers, 8 draws each, cross-entropy on images of digits; and what theory expects."""
    width, depth, seeds = (32, 30, 2) if SMALL else (256, 300, 8)
    images = vg.data.digits()
    network = vg.mlp(width=width, depth=depth, activation="tanh", inputs=64, outputs=10)
    flows, bands = {}, {}
    for name, sigma_w in SIGMA_W.items():
        scales, curve = vg.Scales(sigma_w=sigma_w, sigma_b=SIGMA_B), f"{name}, $\\sigma_w$ = {sigma_w}"
        flows[curve] = vg.profile(
            network,
            images.inputs[:seeds],
            images.labels[:seeds],
            key=jax.random.key(0),
            seeds=seeds,
            scales=scales,
            naive=("float32",),
        )
        bands[curve] = vg.predicted_profile(network, flows[curve], scales)
    return flows, bands


if __name__ == "__main__":
    title = rf"tanh, $\sigma_b$ = {SIGMA_B}"
    render("depth_profile", compute, lambda data: vg.plots.depth_profile(data[0], theory=data[1], title=title))
