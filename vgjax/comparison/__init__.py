"""Comparison: what was measured beside what theory predicts for it.

The one place, with the pictures and the command line, where simulator and theory meet. A network tells of itself what
its theory has to be given (`vgjax.blocks.told`); for every class of what may be told there is one `Family` here, in a
module of its own, which predicts what a sweep has measured at every point.
"""

from vgjax.comparison.families import compare
from vgjax.comparison.verdict import Comparison

__all__ = ["Comparison", "compare"]
