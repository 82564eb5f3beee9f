"""What the remedies of the textbooks do to a network whose gradients vanish or explode, and what they do not."""

from typing import TYPE_CHECKING

import jax
from common import SMALL, render

import vgjax as vg
from vgjax import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = {"seeds": 2, "width": 12, "examples": 4} if SMALL else {"seeds": 8}
LAYERS = {"vanishing": 6, "exploding": 6, "recurrent": 8} if SMALL else {}


def compute() -> list[vg.Remedies]:
    """Three patients, every treatment, the same inputs."""
    found = [
        vg.remedies(patient, key=jax.random.key(0), layers=LAYERS.get(patient), progress=True, **SIZES)
        for patient in ("vanishing", "exploding", "recurrent")
    ]
    for one in found:
        print(one.to_markdown(), end="\n\n")
    return found


def draw(found: list[vg.Remedies]) -> "Figure":
    """One row of panels a patient."""
    return plots.remedies(*found)


if __name__ == "__main__":
    render("remedies", compute, draw)
