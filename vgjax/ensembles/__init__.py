"""Ensembles: one sweep over networks, scales and seeds of anything that can be measured, and its one result."""

from vgjax.ensembles.edge import Edge, Root
from vgjax.ensembles.grid import Case
from vgjax.ensembles.lazy import open_dataset
from vgjax.ensembles.measurement import Measurement
from vgjax.ensembles.remedies import Remedy, remedy_examples, remedy_table

__all__ = [
    "Case",
    "Edge",
    "Measurement",
    "Remedy",
    "Root",
    "open_dataset",
    "remedy_examples",
    "remedy_table",
]
