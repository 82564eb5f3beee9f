"""Data: real images that need no download, image files in the IDX format, and synthetic ones; splits and batches."""

from vgjax.data.examples import Examples, batches, sphere, split
from vgjax.data.graphs import karate_club
from vgjax.data.images import digits, idx, mnist, read_idx
from vgjax.data.standardization import standardize

__all__ = ["Examples", "batches", "digits", "idx", "karate_club", "mnist", "read_idx", "sphere", "split", "standardize"]
