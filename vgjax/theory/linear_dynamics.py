"""Learning of one mode of a deep linear network in continuous time, from small weights to the end.

With whitened inputs, weights that are balanced (W_{l+1}^T W_{l+1} = W_l W_l^T) and aligned with the singular vectors of
the input-output correlations, every mode learns alone. The product u of its strengths in N weight matrices follows

    tau du/dt = N u^k (s - u),   k = 2 - 2/N,

where s is the singular value of the correlations. On half the mean squared error tau is 1 (the inverse of the learning
rate, counted in steps). In the coordinate x in which u = s / (1 + e^-x) (or s (1 + e^-x) where it comes from above),

    N s^k dt / tau = (1 + e^-x)^p dx,   p = 1 - 2/N (from above: -k),

which is smooth however small u is and however near it has come to s.

Source: Saxe, McClelland and Ganguli 2014, "Exact solutions to the nonlinear dynamics of learning in deep linear neural
networks", eq. 8 and its section on deeper multilayer dynamics.
"""

import numpy as np

from vgjax.checks import ArrayLike, finite, kinds, not_negative, positive_integer
from vgjax.theory._quadrature import panels

_WIDEST = 4.0  # of a panel: the integrand's singularities, pi away from the real axis, are then felt below 1e-20
_END = 40.0  # u is s to rounding


@kinds
def mode_strength(t: ArrayLike, s: float, u0: float, layers: int = 2, tau: float = 1.0) -> np.ndarray:
    """Strength u(t) of one mode: a plateau near u0, a rise, and s in the end.

    For two matrices ``u = s e^{2st/tau} / (e^{2st/tau} - 1 + s/u0)``, for one ``s + (u0 - s) e^{-t/tau}``; for any
    other number `learning_time` is inverted.

    Args:
        t: times, of any shape.
        s: where the mode goes: a singular value of the input-output correlations.
        u0: where it begins.
        layers: N, the number of weight matrices.
        tau: time constant, in the units of t.

    Returns:
        u, float64, of the shape of t.

    Raises:
        ValueError: a time that is negative or not finite, s, u0 or tau not positive and finite, or fewer than 1 layer.

    Source: Saxe, McClelland and Ganguli 2014, eq. 8.
    """
    not_negative("t", t)
    layers = _checked(s, u0, layers, tau)
    with np.errstate(over="ignore"):
        times = np.asarray(t, float) / tau
        rises = np.minimum(layers * s ** (2 - 2 / layers) * times, np.finfo(float).max)  # the end of time
    if layers == 1:
        return s + (u0 - s) * np.exp(-rises)
    if layers == 2:
        left = np.exp(-rises)
        return s / (1 - left + left * (s / u0))
    if u0 == s:
        return np.full_like(times, s)
    return _inverse(rises.ravel(), s, u0, layers).reshape(times.shape)


@kinds
def learning_time(fraction: float, s: float, u0: float, layers: int = 2, tau: float = 1.0) -> float:
    """Time at which a mode has come to a fraction of its end: ``t = tau int_{u0}^{fraction s} du / (N u^k (s - u))``.

    For two matrices ``t = tau / (2s) ln(u (s - u0) / (u0 (s - u)))``. From small weights most of it is the plateau,
    ``t ~ tau u0^(-(1 - 2/N)) / ((N - 2) s)`` for N > 2.

    Args:
        fraction: u / s, between u0 / s and 1, on either side of 1.
        s, u0, layers, tau: as for `mode_strength`.

    Returns:
        t, in the units of tau; infinite for fraction = 1.

    Raises:
        ValueError: a fraction that the mode does not pass, or as `mode_strength`.

    Source: Saxe, McClelland and Ganguli 2014, eq. 7.
    """
    layers = _checked(s, u0, layers, tau)
    low, high = sorted((u0 / s, 1.0))
    if not low <= fraction <= high:
        raise ValueError(f"fraction must lie between u0 / s = {u0 / s:g} and 1, got {fraction!r}")
    if fraction == 1:
        return np.inf if u0 != s else 0.0
    start, end = _coordinate(u0 / s), _coordinate(float(fraction))
    rise = _integral(start, np.array([end]), _power(s, u0, layers))[0]
    return float(tau * rise / (layers * s ** (2 - 2 / layers)))


def _checked(s: float, u0: float, layers: int, tau: float) -> int:
    for name, value in {"s": s, "u0": u0, "tau": tau}.items():
        finite(name, value, "positive", lambda v: v > 0)
    return positive_integer("layers", layers)


def _inverse(rises: np.ndarray, s: float, u0: float, layers: int) -> np.ndarray:
    """u where the integral has risen so far, shape ``(rises,)``; u0 is not s."""
    from scipy.optimize.elementwise import find_root

    start, power = _coordinate(u0 / s), _power(s, u0, layers)
    # Beyond 0 the integrand is 1 to within 2 e^-x, so that x gains on the integral by no more than 2 altogether.
    highest = np.maximum(np.minimum(max(start, 0.0) + rises + 2, _END), start)
    found = find_root(
        lambda x, rise: _integral(start, x, power) - rise, (np.full(len(rises), start), highest), args=(rises,)
    )
    x = np.where(found.status == -1, highest, found.x)  # the end of time
    return s / (1 + np.exp(-x)) if u0 < s else s * (1 + np.exp(-x))


def _coordinate(ratio: float) -> float:
    """x where u / s = 1 / (1 + e^-x), or 1 + e^-x if it is above 1."""
    return float(np.log(ratio / (1 - ratio)) if ratio < 1 else -np.log(ratio - 1))


def _power(s: float, u0: float, layers: int) -> float:
    return 1 - 2 / layers if u0 < s else 2 / layers - 2


def _integral(start: float, ends: np.ndarray, power: float) -> np.ndarray:
    """Integrals of (1 + e^-x)^power from one start to many ends, shape of the ends."""
    count = max(1, int(np.ceil((ends.max(initial=start) - start) / _WIDEST)))
    x, weights = panels(start + (ends[..., None] - start) * np.linspace(0, 1, count + 1))
    return np.sum((1 + np.exp(-x)) ** power * weights, axis=(-2, -1))
