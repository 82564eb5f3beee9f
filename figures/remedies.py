"""What the remedies of the textbooks do to a network whose gradients vanish or explode, and what they do not."""

from typing import TYPE_CHECKING

import jax
from common import SMALL, render

import vgjax as vg
from vgjax import plots
from vgjax.ensembles import remedies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEDS = 8


def compute() -> list[vg.Remedies]:
    """Three patients, every treatment, the same inputs."""
    found = [measured(patient) for patient in remedies.PATIENTS]
    for one in found:
        print(one.to_markdown(), end="\n\n")
    return found


def measured(patient: str) -> vg.Remedies:
    """All treatments of a patient; at a small size those few that share its network."""
    key = jax.random.key(0)
    if not SMALL:
        return vg.remedies(patient, key=key, seeds=SEEDS, progress=True)
    layers, width, examples = 6, 12, 4
    few = dict(list(remedies.PATIENTS[patient][0](layers, width, examples).items())[:3])
    return vg.remedies(patient, key=key, seeds=2, layers=layers, width=width, examples=examples, treatments=few)


def draw(found: list[vg.Remedies]) -> "Figure":
    """One row of panels a patient."""
    return plots.remedies(*found)


if __name__ == "__main__":
    render("remedies", compute, draw)
