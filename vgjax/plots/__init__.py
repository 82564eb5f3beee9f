"""Figures in one paper style.

Axes-level functions take an ``ax`` and numbers and return what they drew; figure-level ones build the whole picture.
Nothing here knows JAX, and matplotlib is imported when something is drawn. Colours are safe for colour-blind readers,
and every distinction is also a line, a marker or a word.
"""

from vgjax.plots.coordinates import coordinate_check
from vgjax.plots.cures import remedies
from vgjax.plots.curves import depth_profile, draw_band, draw_profile, spectrum
from vgjax.plots.edges import draw_edge, edge
from vgjax.plots.exploring import EXPLORED, explorer
from vgjax.plots.learning import (
    draw_boundary,
    draw_gradient_heat,
    draw_losses,
    draw_trainability,
    trainability_boundary,
    trainability_map,
    training,
)
from vgjax.plots.paths import draw_states, gradient_path
from vgjax.plots.phase_maps import (
    describe,
    draw_critical_line,
    draw_gain_against_depth,
    draw_rate,
    name_edges,
    phase_map,
)
from vgjax.plots.style import (
    CRITICAL,
    EXPLODING,
    STYLE,
    THEORY,
    VANISHING,
    colour_bar,
    factor,
    factor_ticks,
    label,
    power_of_ten,
    powers_of_ten,
    save,
    styled,
)

__all__ = [
    "CRITICAL",
    "EXPLODING",
    "EXPLORED",
    "STYLE",
    "THEORY",
    "VANISHING",
    "colour_bar",
    "coordinate_check",
    "depth_profile",
    "describe",
    "draw_band",
    "draw_boundary",
    "draw_critical_line",
    "draw_edge",
    "draw_gain_against_depth",
    "draw_gradient_heat",
    "draw_losses",
    "draw_profile",
    "draw_rate",
    "draw_states",
    "draw_trainability",
    "edge",
    "explorer",
    "factor",
    "factor_ticks",
    "gradient_path",
    "label",
    "name_edges",
    "phase_map",
    "power_of_ten",
    "powers_of_ten",
    "remedies",
    "save",
    "spectrum",
    "styled",
    "trainability_boundary",
    "trainability_map",
    "training",
]
