"""Tables: all that a program without this library needs to say what `mean_field`, `propagate` and `band` say.

Infinite width knows an activation by a few smooth functions of q and of a pair's correlation, none of which knows the
scales, the depth or the network. Their Chebyshev coefficients are some thousand numbers; with them the theory of every
setting is a matter of arithmetic, in a browser too (`vgjax.plots.explorer`).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vgjax import activations
from vgjax.activations import Activation
from vgjax.checks import finite, kinds, positive_integer
from vgjax.theory._chebyshev import coefficients
from vgjax.theory._finite_width import _LAWS, _law_of_slopes, _log_chi_square, _ratio_table, _slopes_part
from vgjax.theory._gaussian import ActivationLike
from vgjax.theory._moments import moment_table
from vgjax.theory._pairs import pair_table
from vgjax.theory._pieces import pieces
from vgjax.values import by_content

_PAIRS = (1e-9, 1e7)
"""q between which `propagate` looks correlations up; beyond, it takes phi for a power of its argument."""


@by_content
class Tables(NamedTuple):
    """Chebyshev coefficients T_0 ... T_23 on segments, numpy float64; q is a variance, all logarithms are natural.

    Attributes:
        edges: ends of the segments of ln q, all of one length, shape ``(segments + 1,)``.
        moments: of E phi^2, E phi'^2 and q d/dq E phi^2 over ln q, shape ``(segments, 3, 24)``.
        powers, corrections: as both go on beyond the ends, see `vgjax.theory.moments`; shape ``(2 ends, 2)``.
        limits: E phi^2 / q, E phi'^2 and q E phi'^2 / E phi^2 as q tends to 0 and infinity, shape ``(2 ends, 3)``.
        ratios: of the eight averages by which fluctuations travel (a1, a2, w1, w2, aa, aw, ww, along; see `band`),
            shape ``(segments, 8, 24)``.
        widths: those that the laws are of, shape ``(widths,)``.
        laws: mean and variance of ln(||D u||^2 / ||u||^2 / E phi'^2), D = diag phi'(h), over ln q, shape
            ``(widths, segments, 2, 24)``; one segment for a homogeneous activation.
        law_axis: where their first segment begins in ln q, and how long each is, shape ``(2,)``.
        norms: mean and variance of ln(chi^2_n / n), shape ``(widths, 2)``.
        pairs: of E (phi(u1) - phi(u2))^2 / 2 s and E phi'(u1) phi'(u2) over ln(sqrt(s) + root), ln(v + shift), where
            s = (1 - c) q, v = c q; shape ``(2, segments, segments, 24, 24)``.
        pair_axes: where the first segments begin, and how long they are, shape ``(2 axes, 2)``.
        root, shift: as above.
        held: q between which `band` keeps it, shape ``(2,)``.
        homogeneous: whether phi(a h) = a phi(h) for every a > 0: correlations then do not know q.
    """

    edges: np.ndarray
    moments: np.ndarray
    powers: np.ndarray
    corrections: np.ndarray
    limits: np.ndarray
    ratios: np.ndarray
    widths: np.ndarray
    laws: np.ndarray
    law_axis: np.ndarray
    norms: np.ndarray
    pairs: np.ndarray
    pair_axes: np.ndarray
    root: float
    shift: float
    held: np.ndarray
    homogeneous: bool

    def __repr__(self) -> str:
        widths = ", ".join(map(str, self.widths))
        return f"<tables: {len(self.moments)} segments of ln q, laws of widths {widths}>"


@kinds
def tables(activation: ActivationLike, widths: Sequence[int], largest_q: float | None = None) -> Tables:
    """All functions of one activation from which mean field, propagation and band follow by arithmetic.

    Args:
        activation: a name, an `Activation`, or any elementwise callable.
        widths: n of the laws of slopes; all else knows no width.
        largest_q: variance beyond which nothing is asked for. That of bounded activations is known beforehand, and
            smaller tables are made in seconds instead of half a minute. None: there is none.

    Returns:
        `Tables`, as right as what they are the tables of: about 1e-10.

    Raises:
        ValueError: a width below 1, a largest_q that is not positive, an activation that jumps, whose moments change
            faster than any power of q at either end, or as `mean_field` refuses it.

    Source: the tables of `vgjax.theory.moments`, `propagate` and `band`.
    """
    phi, sizes = activations.get(activation), [positive_integer("widths", n) for n in widths]
    finite("largest_q", 1.0 if largest_q is None else largest_q, "positive", lambda q: q > 0)
    one = moment_table(phi)
    uneven = np.ptp(np.diff(one.of_log_q.edges)) > 1e-9
    if one.jumps or uneven or one.faster_than_powers(0) or one.faster_than_powers(1):
        raise ValueError(f"activation must be continuous and a power of its argument far out, got {phi.name!r}")
    low, high = (1.0, 1.0) if phi.homogeneous else (_PAIRS[0], min(largest_q or _PAIRS[1], _PAIRS[1]))
    pair, (laws, law_axis) = pair_table(phi, low, high), _laws(phi, sizes, largest_q)
    below, above = (end.value in (0, 1) and end.jacobian == 0 for end in phi.facts.ends)
    return Tables(
        edges=one.of_log_q.edges,
        moments=one.of_log_q.coefficients,
        powers=one.powers,
        corrections=one.corrections,
        limits=np.array([one.limits(end) for end in (0, 1)]),
        ratios=_ratio_table(phi).coefficients,
        widths=np.array(sizes),
        laws=laws,
        law_axis=law_axis,
        norms=np.array([_log_chi_square(n) for n in sizes]).reshape(-1, 2),
        pairs=np.stack([pair.ratios.coefficients, pair.slopes.coefficients]),
        pair_axes=np.stack([pair.ratios.low, pair.ratios.step], axis=-1),
        root=pair.root,
        shift=pair.shift,
        held=np.array([1e-250 if below else 0, 1e250 if above else np.inf]),
        homogeneous=phi.homogeneous,
    )


def _laws(phi: Activation, widths: Sequence[int], largest_q: float | None) -> tuple[np.ndarray, np.ndarray]:
    """The laws of slopes at all widths from one pass over q, shape ``(widths, segments, 2, 24)``, and their axis."""
    reached = (math.log(pieces(phi).largest_variance) - _LAWS.low) // _LAWS.step
    needed = math.ceil((math.log(largest_q) - _LAWS.low) / _LAWS.step) if largest_q else _LAWS.segments
    segments = 1 if phi.homogeneous else max(1, min(_LAWS.segments, int(reached), needed))
    nodes = _LAWS.nodes[:segments]
    at_nodes = [[_law_of_slopes(phi, math.exp(t))[1:] for t in segment] for segment in nodes]
    values = [[[_slopes_part(*law, n) for law in segment] for segment in at_nodes] for n in widths]
    found = coefficients(np.array(values).reshape(len(widths), segments, nodes.shape[1], 2))
    return found, np.array([_LAWS.low, _LAWS.step])
