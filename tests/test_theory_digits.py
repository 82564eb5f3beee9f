"""Digits of theory over all activations of the library: batch norm at any batch size, and the edge without bias."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgjax import activations
from vgjax.theory import critical, mean_field, moments, normalization

COMPUTES = True

KINKS = {
    **dict.fromkeys(("relu", "leaky_relu", "elu", "selu", "softsign"), (0.0,)),
    "hard_tanh": (-1.0, 1.0),
    "relu6": (0.0, 6.0),
    "hard_swish": (-3.0, 3.0),
}
NAMES = activations.NAMES


def composite(edges):
    """Gauss-Legendre on 24 nodes between all edges, with x = middle - half cos(pi s) for roots at their ends."""
    x, w = np.polynomial.legendre.leggauss(24)
    edges = np.unique(edges)
    half, middle = (np.diff(edges) / 2)[:, None], ((edges[1:] + edges[:-1]) / 2)[:, None]
    angle = np.pi * (x + 1) / 2
    return (middle - half * np.cos(angle)).ravel(), (half * w * np.sin(angle) * np.pi / 2).ravel()


@functools.partial(jax.jit, static_argnums=0)
def and_slope(phi, h):
    return jax.jvp(phi, (h,), (jnp.ones_like(h),))


def rate(name, batch):
    """`batch_norm_rate` by nested panels: y1 = R sin a and, given it, y2 = R (rho sin a + s cos a sin b)."""
    radius, rho = math.sqrt(batch - 1), -1 / (batch - 1)
    phi, kinks = activations.get(name), np.array(KINKS.get(name, ()))
    kinks = kinks[np.abs(kinks) < radius] / radius
    reach = min(np.pi / 2, 14 / math.sqrt(batch))
    touches = [math.acos(rho) + side * math.acos(k) for k in kinks for side in (-1, 1)]
    breaks = np.clip([*np.arcsin(kinks), *(np.pi / 2 - math.acos(math.cos(t)) for t in touches)], -reach, reach)
    a, outer = composite(np.concatenate([np.linspace(-reach, reach, 15), breaks]))
    outer = outer * np.cos(a) ** (batch - 3)
    y1, y2, inner = radius * np.sin(a), [], []
    for angle in a:
        spread = math.sqrt(1 - rho**2) * math.cos(angle)
        images = np.clip((kinks - rho * math.sin(angle)) / spread, -math.sin(reach), math.sin(reach))
        b, weights = composite(np.concatenate([np.linspace(-reach, reach, 15), np.arcsin(images)]))
        weights = weights * np.cos(b) ** (batch - 4)
        y2.append(radius * (rho * math.sin(angle) + spread * np.sin(b)))
        inner.append(weights / weights.sum())
    sizes = np.cumsum([len(y) for y in y2])[:-1]
    flat, weights = np.concatenate(y2), np.concatenate(inner)
    with jax.enable_x64(True):
        (f, value), (d, slope) = (np.split(np.asarray(part), [len(y1)]) for part in and_slope(phi, np.append(y1, flat)))
    given = [np.array([part.sum() for part in np.split(weights * row, sizes)]) for row in (value, slope, slope * flat)]
    outer = outer / outer.sum()
    above = (batch - 1) * (outer @ d**2) + outer @ (d * given[1] + d * y1 * given[2] - (d * y1) ** 2)
    return above / (batch - 3) / (outer @ (f * f - f * given[0]))


@pytest.mark.parametrize("name", NAMES)
def test_batch_norm_to_nine_digits_at_any_batch(name):
    for batch in (4, 8, 64, 1024):
        assert normalization.batch_norm_rate(name, batch) == pytest.approx(rate(name, batch), rel=1e-11), batch


def test_batch_norm_of_elu_at_twenty_digits():
    # By mpmath's quadrature over (y1, y2) at 20 digits.
    for batch, expected in ((8, 1.2911097767574188755), (64, 1.0963805084099304961)):
        assert normalization.batch_norm_rate("elu", batch) == pytest.approx(expected, rel=1e-14)


def test_batch_norm_of_large_batches_is_that_of_infinite_ones():
    for name in ("relu", "elu", "tanh"):
        limit = normalization.batch_norm_rate(name, math.inf)
        gaps = [normalization.batch_norm_rate(name, batch) - limit for batch in (10**4, 10**6, 2**31 - 1)]
        assert gaps[1] == pytest.approx(gaps[0] / 100, rel=0.01, abs=1e-12), name
        assert abs(gaps[2]) < 2e-9, name


@pytest.mark.parametrize("name", NAMES)
def test_the_edge_at_vanishing_bias(name):
    phi = activations.get(name)
    with jax.enable_x64(True):
        # Slopes on both sides of 0: E phi'^2 tends to half the sum of their squares.
        left, right = (float(phi.derivative(jnp.asarray(side * 1e-300))) for side in (-1.0, 1.0))
        at_zero = float(phi(jnp.asarray(0.0)))
    found = critical(name)
    if at_zero:
        assert found.q_star != 0
    else:
        assert found.sigma_w == pytest.approx(math.sqrt(2 / (left**2 + right**2)), rel=1e-12)
        assert moments(name, 0.0).slope_square == pytest.approx((left**2 + right**2) / 2, rel=1e-12)
        below = mean_field(name, 0.9 * found.sigma_w)
        assert below.q_slope == pytest.approx(0.81, rel=1e-12) or below.q_star > 0
