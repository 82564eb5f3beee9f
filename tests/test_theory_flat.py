"""Activations that are constant on an interval, against closed forms at 40 digits: piecewise linear functions of a
Gaussian, whose moments fall faster than any power of q where the interval holds 0."""

import functools
import itertools
import math
import re

import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from vgjax.theory import critical, mean_field, moments, propagate

COMPUTES = True

INF = math.inf
SIGMA_W, SIGMA_B = (0.3, 1.0, 2.0, 5.0), (0.0, 0.05, 0.3, 1.0)
GRID = np.geomspace(1e-5, 1e6, 700)


def mirrored(*right):
    return (*((-high, -low, -a, b) for low, high, a, b in reversed(right)), *right)


def family(t):
    """Pieces (from, to, a, b) on which phi is a + b u; elsewhere it is 0."""
    return {
        "shifted": ((t, INF, -t, 1.0),),
        "soft": mirrored((t, INF, -t, 1.0)),
        "clipped": mirrored((t, t + 1, -t, 1.0), (t + 1, INF, 1.0, 0.0)),
        "one-sided, clipped": ((t, t + 1, -t, 1.0), (t + 1, INF, 1.0, 0.0)),
        "shelf": ((-INF, t, t, 0.0), (t, INF, 0.0, 1.0)),
        "leaky": ((-INF, t, 0.0, 1e-4), (t, INF, -t, 1.0 + 1e-4)),
    }


CASES = [(kind, t) for t in (0.1, 0.5, 3.0) for kind in family(t)]


@functools.cache
def made(kind, t):
    """The pieces, and phi of them as a user would write it."""
    pieces = family(t)[kind]

    def phi(u):
        return sum(jnp.where((u >= low) & (u < high), a + b * u, 0) for low, high, a, b in pieces)

    return pieces, phi


def exact(pieces, q):
    """E phi^2, E phi'^2 and E u phi phi' at q, by the truncated moments of a Gaussian."""
    root, found = mp.sqrt(q), [mp.mpf(0)] * 3

    def tails(x):
        if math.isinf(x):
            return (mp.mpf(x < 0), mp.mpf(0), mp.mpf(x < 0))
        x = x / root
        above, density = mp.erfc(x / mp.sqrt(2)) / 2, mp.npdf(x)
        return above, density, above + x * density

    for low, high, a, b in pieces:
        if high <= 0:  # the same, seen from the right, where nothing cancels
            low, high, b = -high, -low, -b
        one, first, second = (x - y for x, y in zip(tails(low), tails(high), strict=True))
        a, b = mp.mpf(a), mp.mpf(b)
        found[0] += a * a * one + 2 * a * b * root * first + b * b * q * second
        found[1] += b * b * one
        found[2] += b * (a * root * first + b * q * second)
    return found


@functools.cache
def tabled(kind, t):
    with mp.workdps(60):
        return [exact(made(kind, t)[0], mp.mpf(q)) for q in GRID.tolist()]


def roots(f, values):
    """q where f changes sign along the grid, to 30 digits."""
    cells = [i for i in range(len(GRID) - 1) if (values[i] > 0) != (values[i + 1] > 0)]
    return [mp.findroot(f, (mp.mpf(GRID[i]), mp.mpf(GRID[i + 1])), solver="anderson", tol=1e-30) for i in cells]


@pytest.mark.parametrize(("kind", "t"), CASES)
def test_moments(kind, t):
    pieces, phi = made(kind, t)
    q = np.array([t * t / k for k in (400, 150, 60, 20, 5, 1, 0.02)])
    found = moments(phi, q)
    with mp.workdps(60):
        expected = np.array([[float(x) for x in exact(pieces, mp.mpf(v))] for v in q.tolist()]).T
    # The kink is known to 1e-13 of 1, which is exp(-t^2 / 2q) to t^2 / q times as much of t.
    assert found.square == pytest.approx(expected[0], rel=1e-10, abs=1e-280)
    assert found.slope_square == pytest.approx(expected[1], rel=1e-9, abs=1e-280)
    assert found.growth == pytest.approx(expected[2], rel=1e-9, abs=1e-280)


@pytest.mark.parametrize(("kind", "t"), CASES)
def test_every_fixed_point_and_what_holds_there(kind, t):
    pieces, phi = made(kind, t)
    for sigma_w, sigma_b in itertools.product(SIGMA_W, SIGMA_B):
        with mp.workdps(60):
            level, bias = mp.mpf(sigma_w) ** 2, mp.mpf(sigma_b) ** 2
            values = [level * square + bias - q for q, (square, *_) in zip(GRID.tolist(), tabled(kind, t), strict=True)]
            expected = roots(lambda q: level * exact(pieces, q)[0] + bias - q, values)  # noqa: B023
            there = [exact(pieces, q) for q in expected]
            points = [
                (float(q), float(level * s), float(level * g / q)) for q, (_, s, g) in zip(expected, there, strict=True)
            ]
        tolerance = 1e-8 if min((abs(point[2] - 1) for point in points), default=1) > 1e-3 else 1e-4
        found = mean_field(phi, sigma_w, sigma_b)
        at = (sigma_w, sigma_b, found.fixed_points)
        assert len(found.fixed_points) == len(points), at
        for here, point in zip(found.fixed_points, points, strict=True):
            assert here[:3] == pytest.approx(point, rel=tolerance, abs=1e-200), at
            assert here.stable == (abs(point[2]) < 1), at
        grows = level * exact(pieces, mp.mpf(1))[0] + bias > 1
        beyond = [point for point in points if (point[0] > 1) == grows]
        if not beyond:
            ends = (0.0, 0.0, "decays to zero") if not grows else (INF, None, "grows without bound")
            if kind == "leaky" and not grows:
                ends = (0.0, pytest.approx(float(level) * 1e-8, rel=1e-8), "decays to zero")
            assert found.q_star == ends[0], at
            assert ends[1] is None or found.chi == ends[1], at
            assert found.status == ends[2], at
            assert not np.isnan([found.c_star, found.xi_c, found.xi_grad, found.xi_q]).any(), at
            continue
        q, chi, slope = beyond[0] if grows else beyond[-1]
        assert (found.q_star, found.chi, found.q_slope) == pytest.approx((q, chi, slope), rel=tolerance, abs=1e-200), at
        assert found.status == ("several fixed points" if len(points) > 1 else "converged"), at
        assert found.phase == ("ordered" if chi < 1 else "chaotic"), at
        if chi > 1e-200:
            assert found.xi_grad == pytest.approx(-1 / math.log(chi), rel=max(tolerance, 1e-4 * (abs(chi - 1) < 1e-3)))
        if chi < 1:
            assert (found.c_star, found.xi_c) == (1, found.xi_grad), at


@pytest.mark.parametrize(("kind", "t"), CASES)
def test_every_critical_point(kind, t):
    pieces, phi = made(kind, t)
    for sigma_b in SIGMA_B[kind == "leaky" :]:  # without a bias every small q is critical at 1e4, to 1e-40
        with mp.workdps(60):
            bias = mp.mpf(sigma_b) ** 2
            values = [q - square / slope - bias for q, (square, slope, _) in zip(GRID, tabled(kind, t), strict=True)]
            expected = roots(lambda q: q - exact(pieces, q)[0] / exact(pieces, q)[1] - bias, values)  # noqa: B023
            points = sorted((float(1 / mp.sqrt(exact(pieces, q)[1])), float(q)) for q in expected)
        found = critical(phi, sigma_b)
        listed = sorted((float(p.sigma_w), float(p.q_star)) for p in (found, *found.others) if p.q_star > 0)
        points = [point for point in points if point[0] < 1e100]
        listed = [point for point in listed if point[0] < 1e100]
        assert len(listed) == len(points), (sigma_b, listed, points)
        for here, point in zip(listed, points, strict=True):
            assert here == pytest.approx(point, rel=1e-8), sigma_b
        if not points and kind not in ("leaky", "shelf"):
            assert re.search("q. = 0 is stable with chi = 0" if sigma_b == 0 else "is flat as far as", found.reason)


@pytest.mark.parametrize(("kind", "t"), CASES)
def test_layer_by_layer(kind, t):
    pieces, phi = made(kind, t)
    for sigma_w, sigma_b, q0 in itertools.product((1.0, 3.0), (0.0, 0.1, 0.5), (0.1, 4.0)):
        found, q, log_chi = propagate(phi, sigma_w, sigma_b, 8, q0), mp.mpf(q0), mp.mpf(0)
        with mp.workdps(60):
            for l in range(8):
                square, slope, _ = exact(pieces, q)
                log_chi += mp.log(sigma_w**2 * slope) if slope else 0
                if slope < mp.mpf(10) ** -200:  # marked, for it cannot be told from 0
                    assert np.isnan(found.log_chi[l + 1 :]).all() or slope > mp.mpf(10) ** -290
                    break
                q = sigma_w**2 * square + mp.mpf(sigma_b) ** 2
                assert found.q[l + 1] == pytest.approx(float(q), rel=1e-8, abs=1e-280)
                assert found.log_chi[l + 1] == pytest.approx(float(log_chi), rel=1e-8, abs=1e-9)


def pair_product(t, q, c):
    """E phi(u1) phi(u2) of the clipped soft threshold, the inner integral in closed form."""

    def rising(m, s, t):
        x = (m - t) / s
        return (m - t) * mp.ncdf(x) + s * mp.npdf(x)

    def inner(m, s):
        return rising(m, s, t) - rising(m, s, t + 1) - rising(-m, s, t) + rising(-m, s, t + 1)

    root, s = mp.sqrt(q), mp.sqrt(q * (1 - c * c))
    ends = sorted({0.0, *(sign * x for sign in (-1, 1) for x in (t / root, (t + 1) / root, 3, 6, 12, 20))})
    return mp.quad(lambda z: mp.sign(z) * min(max(abs(root * z) - t, 0), 1) * inner(c * root * z, s) * mp.npdf(z), ends)


def test_correlations():
    _, phi = made("clipped", 0.5)
    found = mean_field(phi, 3.0, 0.3)
    assert found.phase == "chaotic"
    with mp.workdps(25):
        q, c = mp.mpf(float(found.q_star)), mp.mpf(float(found.c_star))
        assert float((9 * pair_product(0.5, q, c) + mp.mpf(0.3) ** 2) / q) == pytest.approx(found.c_star, rel=1e-9)
        # Deep in the flat part, where 1 - c falls to 1e-13 in two layers: q, C and 1 - c from 30 digits.
        series = propagate(phi, 1.0, 0.12, 2, 0.02, c0=0.5).one_minus_c
    with mp.workdps(30):
        q, c = mp.mpf(0.02), mp.mpf(0.5)
        for l in range(2):
            square, bias = exact(made("clipped", 0.5)[0], q)[0], mp.mpf(0.12) ** 2
            product = pair_product(mp.mpf(0.5), q, c)
            q, c = square + bias, (product + bias) / (square + bias)
            assert series[l + 1] == pytest.approx(float((square - product) / q), rel=1e-6)
