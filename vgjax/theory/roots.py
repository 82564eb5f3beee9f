"""Roots of many functions at once, each between two ends."""

from collections.abc import Callable

import numpy as np

_MOST_STEPS = 100


def falling_root(
    f: Callable[[np.ndarray, np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray, tolerance: float = 1e-15
) -> np.ndarray:
    """Where each function, falling, crosses 0 between its two ends, shape ``(points,)``; the end beyond which it would
    cross, where it does not.

    ``f(x, which)`` gives the values of the functions of those indices; those that are found are not asked again.
    Inverse quadratic interpolation where it can be trusted, bisection elsewhere. Source: Chandrupatla 1997, "A new
    hybrid quadratic/bisection algorithm for finding the zero of a nonlinear function without using derivatives".
    """
    which = np.arange(len(low))
    f_low, f_high = f(low, which), f(high, which)
    root = np.where(f_low <= 0, low, high)
    which = np.flatnonzero((f_low > 0) & (f_high < 0))
    a, b, c, fa, fb, fc = (x[which] for x in (high, low, low, f_high, f_low, f_low))  # between a and b; c came before
    share = np.full(len(which), 0.5)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for _ in range(_MOST_STEPS):
            x = a + share * (b - a)
            fx = f(x, which)
            same = np.sign(fx) == np.sign(fa)
            b, c, fb, fc = (np.where(same, *pair) for pair in ((b, a), (a, b), (fb, fa), (fa, fb)))
            a, fa = x, fx
            root[which] = np.where(np.abs(fa) < np.abs(fb), a, b)
            least = tolerance * np.maximum(np.abs(a), np.abs(b)) / np.abs(b - a)
            going = (least < 0.5) & (fa != 0)
            if not going.any():
                break
            which, a, b, c, fa, fb, fc, least = (x[going] for x in (which, a, b, c, fa, fb, fc, least))
            xi, psi = (a - b) / (c - b), (fa - fb) / (fc - fb)
            inverse = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
            trusted = (psi**2 < xi) & ((1 - psi) ** 2 < 1 - xi) & np.isfinite(inverse)
            share = np.clip(np.where(trusted, inverse, 0.5), least, 1 - least)
    return root
