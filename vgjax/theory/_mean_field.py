"""Mean field: where the variance and the correlation of signals settle, and how far signals and gradients reach.

q_{l+1} = sigma_w^2 E phi(sqrt(q_l) z)^2 + sigma_b^2 (the q map), chi = sigma_w^2 E phi'(sqrt(q*) z)^2 (growth of the
mean squared gradient per layer), and the c map of two inputs' correlation (Poole et al. 2016; Schoenholz et al. 2017).

For a fixed sigma_b the q map has its fixed points where sigma_w^2 = F(q) = (q - sigma_b^2) / E phi^2: the fixed points
of every sigma_w are level sets of *one* function of q (`_level_sets`), which is why a map is hardly more work than a
point.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vgjax import activations
from vgjax.activations import Activation
from vgjax.checks import ArrayLike, finite, kinds
from vgjax.theory._gaussian import ActivationLike
from vgjax.theory._level_sets import EVERY, ONE, OSCILLATES, SEVERAL, UNBOUNDED, ZERO, all_crossings, first_crossings
from vgjax.theory._moments import MomentTable, moment_table
from vgjax.theory._pairs import fixed_correlations, pair_table
from vgjax.theory._scales import check_dropout, checked_scales
from vgjax.values import by_content

STATUSES = {
    ONE: "converged",
    SEVERAL: "several fixed points",
    ZERO: "decays to zero",
    UNBOUNDED: "grows without bound",
    EVERY: "every q is fixed",
    OSCILLATES: "oscillates",
}
"""What becomes of q_l."""

_CRITICAL = 1e-12  # |chi - 1| up to which a point is critical: ten times the rounding of the tables
_LIMIT = 1e-7  # the same where q* is 0 or infinity: what extrapolation leaves of SELU's is 8e-9
_NEAR_ZERO, _NEAR_INFINITY = 1e-6, 1e6  # stand for them in the c map, which converges like sqrt(q) at kinks


class FixedPoint(NamedTuple):
    """One fixed point of the q map.

    Attributes:
        q: where.
        chi: growth of the mean squared gradient per layer there.
        q_slope: slope of the q map.
        stable: forward iteration is drawn to it.
    """

    q: float
    chi: float
    q_slope: float
    stable: bool


@by_content
@dataclass(frozen=True, eq=False)
class MeanField:
    """Mean field at one pair of scales or at many; numpy float64 and strings, all of the scales' broadcast shape.

    Attributes:
        activation: phi.
        sigma_w, sigma_b: the scales.
        q_star: the fixed point that forward iteration reaches from q0; 0 or inf where it decays or grows.
        chi: sigma_w^2 E phi'^2 there (the limit, for 0 and inf); inf where phi jumps, 0 below 1e-230.
        q_slope: slope of the q map there; its ratio q_{l+1} / q_l in the limit for 0 and inf.
        status: one of the six of `STATUSES`.
        dropout: share of units that are dropped.
    """

    activation: Activation
    sigma_w: np.ndarray
    sigma_b: np.ndarray
    q_star: np.ndarray
    chi: np.ndarray
    q_slope: np.ndarray
    status: np.ndarray
    dropout: float = 0.0

    @property
    def phase(self) -> np.ndarray:
        """ "ordered" (chi < 1, gradients vanish), "critical" or "chaotic" (chi > 1, they explode)."""
        code = np.where(np.abs(self.chi - 1) <= _CRITICAL, 1, np.where(self.chi < 1, 0, 2))
        return np.array(["ordered", "critical", "chaotic"])[code]

    @property
    def xi_grad(self) -> np.ndarray:
        """-1 / ln chi, in layers: the mean squared gradient changes by e.

        Negative where it explodes, inf if critical.
        """
        return _depth_scale(self.chi)

    @property
    def xi_q(self) -> np.ndarray:
        """-1 / ln |slope of the q map|, in layers; negative where q leaves its value (grows without bound)."""
        return _depth_scale(np.abs(self.q_slope))

    @property
    def c_star(self) -> np.ndarray:
        """The correlation to which two inputs of equal norm are drawn; 1 in the ordered phase, and where q* is 0 or inf
        and identical inputs stay together; 0 where E phi^2 falls or grows faster than any power on the way there.

        Raises:
            ValueError: an activation of so many pieces that its correlations would take minutes.
        """
        return self._correlation[0]

    @property
    def c_slope(self) -> np.ndarray:
        """Slope of the c map at c*; chi in the ordered phase."""
        return self._correlation[1]

    @property
    def xi_c(self) -> np.ndarray:
        """-1 / ln (slope of the c map at c*), in layers: the depth to which two inputs can be told apart; inf if
        critical."""
        return _depth_scale(self.c_slope)

    @functools.cached_property
    def fixed_points(self) -> tuple[FixedPoint, ...]:
        """All isolated fixed points of the q map between q = 1e-14 and 1e9, increasing; of one pair of scales.

        Raises:
            ValueError: for many pairs of scales.
        """
        if np.ndim(self.q_star):
            raise ValueError(f"fixed_points are those of one pair of scales, got shape {self.q_star.shape}")
        level = float(self.sigma_w) ** 2 / (1 - self.dropout)
        q = all_crossings(self.activation, level, float(self.sigma_b) ** 2)
        found = (a.tolist() for a in (q, *_at(moment_table(self.activation), q, np.asarray(level))))
        return tuple(FixedPoint(q, chi, slope, abs(slope) < 1) for q, chi, slope in zip(*found, strict=True))

    @functools.cached_property
    def _correlation(self) -> tuple[np.ndarray, np.ndarray]:
        """c* and the slope of the c map there."""
        keep = 1 - self.dropout
        values = np.broadcast_arrays(self.q_star, self.chi * keep, self.sigma_w**2, self.sigma_b)
        q, slope, level, sigma_b = (np.array(a).ravel() for a in values)
        one, c_star = moment_table(self.activation), np.ones_like(q)
        # Where q runs to an end the scales no longer matter: what is left is the correlation of phi / sqrt(E phi^2).
        for end, (of, near) in enumerate(((0, _NEAR_ZERO), (np.inf, _NEAR_INFINITY))):
            there = q == of
            (*_, ratio), near_square = one.limits(end), one(np.array(near)).square
            slope[there] = 1 if abs(ratio - 1) < _LIMIT else ratio
            q[there], level[there], sigma_b[there] = near, keep * near / near_square if near_square else 0.0, 0
            if there.any() and one.faster_than_powers(end):  # what two inputs have in common falls faster than they do
                c_star[there] = slope[there] = 0
        gap = self.dropout * (1 - sigma_b**2 / q)
        apart = (slope > 1 + _CRITICAL) | (gap > 0) & (c_star > 0)
        if apart.any():
            pair = pair_table(self.activation, q[apart].min(), q[apart].max())
            c_star[apart], slope[apart] = fixed_correlations(pair, q[apart], level[apart], gap[apart])
        shape = np.shape(self.q_star)
        return c_star.reshape(shape)[()], slope.reshape(shape)[()]


@kinds
def mean_field(
    activation: ActivationLike,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike = 0.0,
    *,
    q0: float = 1.0,
    dropout: float = 0.0,
) -> MeanField:
    """Where the q map settles, and what signals and gradients do there: chi, c* and the depth scales.

    q* = sigma_w^2 E phi(sqrt(q*) z)^2 + sigma_b^2, chi = sigma_w^2 E phi'(sqrt(q*) z)^2; q*, chi and xi_grad at once,
    c*, xi_c and `fixed_points` when they are asked for.

    Args:
        activation: a name, an `Activation`, or any elementwise callable.
        sigma_w, sigma_b: standard deviations, any shapes that broadcast: ``sigma_w[:, None]`` and ``sigma_b`` answer
            a whole map. Points of equal sigma_b share their work.
        q0: variance of the first preactivations, from which forward iteration starts.
        dropout: share of units that are dropped, the others scaled up by 1 / (1 - dropout), independently for every
            input: the q map then has sigma_w^2 / (1 - dropout) in place of sigma_w^2, and c = 1 is no fixed point.

    Returns:
        `MeanField` of the broadcast shape, in float64 whatever JAX's default is; no value is NaN.

    Raises:
        ValueError: a negative or non-finite scale, scales that do not broadcast or are empty, a q0 that is not
            positive, a dropout outside [0, 1), or an activation that is not elementwise, returns NaN, is complex, or
            has no second moment.

    Source: Poole et al. 2016, "Exponential expressivity in deep neural networks through transient chaos", section 3;
    Schoenholz et al. 2017, "Deep information propagation", sections 3 to 5, with dropout.
    """
    phi = activations.get(activation)
    shape = checked_scales(sigma_w=sigma_w, sigma_b=sigma_b)
    finite("q0", q0, "positive", lambda q: q > 0)
    check_dropout(dropout)
    scales = [np.broadcast_to(np.asarray(s, float), shape) for s in (sigma_w, sigma_b)]
    level, bias = (scale.ravel() ** 2 for scale in scales)
    level = level / (1 - dropout)
    q, status = first_crossings(phi, float(q0), level, bias)
    chi, slope = _at(moment_table(phi), q, level)
    status = np.where((status <= SEVERAL) & (slope < -1), OSCILLATES, status)
    names = np.array([STATUSES[code] for code in range(len(STATUSES))])[status]
    w, b, q, chi, slope, names = (a.reshape(shape)[()] for a in (*scales, q, chi, slope, names))
    return MeanField(phi, w, b, q, chi, slope, names, dropout)


def _at(table: MomentTable, q: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """chi and the slope of the q map at fixed points, shapes ``(points,)``; the limits for q = 0 and infinity."""
    _, slope_square, growth = table(q)
    ratio = growth / np.where((q > 0) & np.isfinite(q), q, 1)
    for end, of in enumerate((0, np.inf)):
        if (there := q == of).any():
            ratio[there], slope_square[there], _ = table.limits(end)
    with np.errstate(invalid="ignore", over="ignore"):
        return tuple(np.where(level == 0, 0, level * factor) for factor in (slope_square, ratio))  # type: ignore


def _depth_scale(factor: ArrayLike) -> np.ndarray:
    """-1 / ln factor: layers in which something that changes by this factor per layer changes by e.

    Inf at 1, 0 at 0.
    """
    factor = np.asarray(factor)
    with np.errstate(divide="ignore"):
        return np.where(
            np.abs(factor - 1) <= _CRITICAL, np.inf, -1 / np.where(factor == 1, np.inf, np.log(factor)) + 0.0
        )
