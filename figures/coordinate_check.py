"""Coordinate check: how much states move in three steps of Adam, against width and depth.

In the standard parametrization the change of the states grows with width and with depth; mup takes out the width,
CompleteP both (Yang et al. 2022, "Tensor programs V", figure 5; Dey et al. 2025, "Don't be lazy: CompleteP")."""

from typing import TYPE_CHECKING

import numpy as np
from common import SMALL, render

import vgjax as vg
from vgjax import plots
from vgjax.training import CoordinateCheck

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS, DEPTHS = ((8, 16), (2, 4)) if SMALL else ((32, 64, 128, 256, 512), (4, 8, 16, 32))
SEEDS, EXAMPLES = (2, 20) if SMALL else (4, 128)
CHECKED = {"standard": "standard", r"$\mu$P": "mup", "CompleteP": "complete_p"}


def network(width: int, depth: int) -> vg.Network:
    """One ReLU layer a branch, behind a layer norm."""
    skips = vg.networks.branch("pre", layers=1)
    return vg.mlp(width=width, depth=depth, activation="relu", inputs=64, outputs=10, norm="layer", residual=skips)


def compute() -> dict[str, CoordinateCheck]:
    """Three steps of Adam at a rate of .003 on digits, all of them in every step."""
    images = vg.data.digits()
    some = vg.data.Examples(np.asarray(images.inputs[:EXAMPLES]), np.asarray(images.labels[:EXAMPLES]))
    sizes = {"widths": WIDTHS, "depths": DEPTHS, "seeds": SEEDS, "steps": 3, "learning_rate": 0.003}
    return {
        name: vg.coordinate_check(network, some, parametrization=rule, **sizes)  # type: ignore[arg-type]
        for name, rule in CHECKED.items()
    }


def draw(checks: dict[str, CoordinateCheck]) -> "Figure":
    """A column a parametrization; flat is right."""
    return plots.coordinate_check(checks)


if __name__ == "__main__":
    render("coordinate_check", compute, draw)
