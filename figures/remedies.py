"""What the remedies of the textbooks do to a network whose gradients vanish or explode, and what they do not."""

from typing import TYPE_CHECKING

import jax
from common import SMALL, render

import vgjax as vg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("vanishing", "exploding", "recurrent")
LAYERS, WIDTH, EXAMPLES, SEEDS = (6, 12, 4, 2) if SMALL else (None, 100, 32, 8)
FEW = 3 if SMALL else None  # of the remedies: those that share a network with the first


def compute() -> list[vg.Result]:
    """Every remedy of three networks, 8 draws; all of a kind meet the same inputs."""
    found = [measured(kind) for kind in KINDS]
    for result in found:
        print(vg.ensembles.remedy_table(result, markdown=True), end="\n\n")
    return found


def measured(kind: str) -> vg.Result:
    """The first gradient of one network, under every remedy."""
    cases = vg.remedies(kind, layers=LAYERS, width=WIDTH, examples=EXAMPLES)
    cases = dict([*cases.items()][:FEW])
    x, y = vg.ensembles.remedy_examples(kind, layers=LAYERS, examples=EXAMPLES)
    measure = vg.first_steps()
    return vg.sweep(cases, x, y, measure=measure, leading="example", key=jax.random.key(0), seeds=SEEDS)


def draw(found: list[vg.Result]) -> "Figure":
    """One row of panels a network."""
    return vg.plots.remedies(*found)


if __name__ == "__main__":
    render("remedies", compute, draw)
