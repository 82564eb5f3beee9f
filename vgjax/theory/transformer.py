"""Transformers at infinite width: four numbers, states and tangents, within a token and across two.

Tokens are alike (every two have the same correlation), attention is full, heads are any number. With q = E h_i^2, p = E
h_i h_j and, of a tangent that begins independently in every token, u = E t_i^2, v = E t_i t_j, a branch sees what
stands behind its norm, (q~, p~, u~, v~) = (q, p, u, v) / q (or elementwise through tanh or erf), and adds

- attention, s = (sigma_v sigma_o)^2, k = (sigma_q sigma_k / temperature)^2, A of logits of variance k q~ (q~ - p~)
  whose rows have the correlation p~ / q~ (`softmax_moments`):

      q: s [p~ + (q~ - p~) E sum A^2]              p: s [p~ + (q~ - p~) E sum A A']
      u: s {v~ + (u~ - v~) E sum A^2 + k (q~ - p~) [(q~ - p~) u~ + q~ (u~ - v~)] E sum A^2 (1 - 2 A + sum A^2)}
      v: s {v~ + (u~ - v~) E sum A A' + k (q~ - p~) [(q~ - p~) v~ + p~ (u~ - v~)] E sum A A' (1 - A - A' + sum A A')}

  The last terms are those of queries and keys: leaving them out loses half of ln u already at k = 5;

- the feed-forward layer W_2 phi(W_1 h), a ~ N(0, sigma_1^2 q~) and its pair: sigma_2^2 times E phi^2, E phi(a) phi(a'),
  sigma_1^2 E phi'^2 u~, sigma_1^2 E phi'(a) phi'(a') v~; gated by phi(W_g h), that times another product.

What is common to all keys shifts all logits of a row alike, which a softmax does not see.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax import activations
from vgjax.activations import Activation
from vgjax.checks import ArrayLike, finite, kinds, known, positive_integer
from vgjax.theory._gaussian import ActivationLike, line, pair
from vgjax.theory._pieces import REACH, Pieces, pieces
from vgjax.theory._scales import per_layer
from vgjax.theory._softmax import softmax_moments
from vgjax.values import by_content

PLACES = ("pre", "post", "sandwich", "mix", "parallel", "normalized")
"""Where norms stand, as in `vgjax.transformer`."""

_POINTWISE = {"dyt": "tanh", "derf": "erf"}
_FOLLOWS = {"sigma_q": "sigma_qk", "sigma_k": "sigma_qk", "sigma_v": "sigma_vo", "sigma_o": "sigma_vo"}
_FOLLOWS |= {name: "sigma_w" for name in ("sigma_1", "sigma_2", "sigma_g")}
_DEFAULTS = dict.fromkeys((*_FOLLOWS.values(), "branch", "skip", "temperature", "norm_gain", "layer_scale"), 1.0)
_DEFAULTS |= {"sigma_b": 0.0, "sigma_alpha": 1.0}
SCALES = (*_DEFAULTS, *_FOLLOWS)
"""The scales that `propagate` knows."""


@by_content
class TransformerPropagation(NamedTuple):
    """A transformer's stream along depth, l = 0..depth blocks; numpy float64, each of shape ``(depth + 1,)``.

    Attributes:
        q, p: E h_i^2, and E h_i h_j of two tokens.
        log_gain: ln E |t_l|^2 / |t_0|^2 of a tangent that begins independently in every token, and of a gradient on its
            way back likewise.
        shared: E t_i t_j / E t_i^2 of that tangent.
    """

    q: np.ndarray
    p: np.ndarray
    log_gain: np.ndarray
    shared: np.ndarray

    @property
    def c(self) -> np.ndarray:
        """Correlation of two tokens."""
        return self.p / self.q


class _Stream(NamedTuple):
    """States and tangents within a token and across two."""

    q: float
    p: float
    u: float
    v: float

    def plus(self, factor: float, other: "_Stream", by: float) -> "_Stream":
        """Both, weighted."""
        return _Stream(*(factor * a + by * b for a, b in zip(self, other, strict=True)))

    def normalized(self) -> "_Stream":
        """At q = 1; what is nothing stays nothing."""
        return _Stream(*(a / self.q for a in self)) if self.q else self


@kinds
def propagate(
    activation: ActivationLike | None,
    depth: int,
    *,
    tokens: int,
    residual: str = "pre",
    norm: str | None = "rms",
    gated: bool = False,
    q0: float = 1.0,
    p0: float = 0.0,
    **scales: ArrayLike,
) -> TransformerPropagation:
    """q, p and the gain of a transformer's blocks, attention and feed-forward layer each, at infinite width.

    Args:
        activation: phi of the feed-forward layer, a name, an `Activation` or a callable; None for attention alone.
        depth: L, blocks.
        tokens: n, at least 2; attention is full.
        residual: where the norms stand, one of `PLACES`.
        norm: rms or layer (the same at infinite width; epsilon 0), dyt, derf; None for none.
        gated: whether phi is that of a gate (`vgjax.networks.feed_forward`).
        q0, p0: E h_i^2 and E h_i h_j at the start; p0 in [-q0 / (n - 1), q0].
        **scales: by the names of `vgjax.transformer`, shapes ``()`` or ``(depth,)``: sigma_qk, sigma_vo, sigma_w and
            the kernels' own, sigma_b, temperature, branch, skip, sigma_alpha (of dyt and derf, whose alpha is half of
            it), norm_gain, layer_scale.

    Returns:
        `TransformerPropagation`. NaN behind the first block whose logits have a standard deviation above 12.

    Raises:
        ValueError: an unknown name, a number out of range, or scales of another shape.

    Source: four numbers in place of the two of Noci et al. 2022, "Signal propagation in transformers", with the paths
    through queries and keys.
    """
    depth, n = positive_integer("depth", depth), positive_integer("tokens", tokens)
    if n < 2:
        raise ValueError(f"tokens must be at least 2, got {n}")
    known("residual", residual, PLACES)
    if norm is not None:
        known("norm", norm, ("rms", "layer", *_POINTWISE))
    finite("q0", q0, "positive", lambda q: q > 0)
    if not -q0 / (n - 1) * (1 + 1e-12) <= p0 <= q0:
        raise ValueError(f"p0 must lie in [-q0 / {n - 1}, q0] for {n} tokens, got {p0}")
    values = _scales(scales, depth)
    phi = None if activation is None else activations.get(activation)
    stream, log_u, rows = _Stream(float(q0), float(p0), 1.0, 0.0), 0.0, []
    for l in range(depth + 1):
        rows.append((stream.q, stream.p, log_u, stream.v))
        if l < depth:
            place = ("post" if l < max(1, round(depth / 4)) else "pre") if residual == "mix" else residual
            block = _Block(n, phi, norm, gated, {name: float(value[l]) for name, value in values.items()})
            stream = block(stream, place)
            # Tangents are linear: what they grow by is taken out, so that no depth leaves the range.
            # Of what is no number (q past the float range) neither is the logarithm.
            log_u += -math.inf if stream.u <= 0 else math.log(stream.u)
            stream = stream._replace(u=1.0, v=0.0 if stream.u <= 0 else stream.v / stream.u)
    return TransformerPropagation(*(np.array(column) for column in zip(*rows, strict=True)))


def _scales(given: Mapping[str, ArrayLike], depth: int) -> dict[str, np.ndarray]:
    """Every scale, one number a layer; those not given at what they follow, or at their default."""
    for name in given:
        known("scale", name, SCALES)
    finite("temperature", given.get("temperature", 1.0), "positive", lambda t: t > 0)
    values = {name: per_layer(name, given.get(name, default), depth) for name, default in _DEFAULTS.items()}
    own = {name: per_layer(name, given.get(name, values[of]), depth) for name, of in _FOLLOWS.items()}
    return values | own


class _Block(NamedTuple):
    """One block: what stands in it, and its scales."""

    tokens: int
    phi: Activation | None
    norm: str | None
    gated: bool
    scales: dict[str, float]

    def __call__(self, x: _Stream, place: str) -> _Stream:
        skip, branch = self.scales["skip"] ** 2, (self.scales["branch"] * self.scales["layer_scale"]) ** 2
        branches = [self.attention, *([self.feed_forward] if self.phi else [])]
        if place == "parallel":
            inside = self.normed(x)
            for f in branches:
                x, skip = x.plus(skip, f(inside), branch), 1.0
            return x
        for f in branches:
            made = f(self.normed(x) if place in ("pre", "sandwich") else x)
            made = self.whole(made) if place in ("sandwich", "normalized") else made
            x = x.plus(skip, made, branch)
            x = self.whole(x) if place in ("post", "normalized") else x
        return x

    def whole(self, x: _Stream) -> _Stream:
        """Through the norm."""
        if self.norm is None:
            return x
        if self.norm not in _POINTWISE:
            return x.normalized()
        alpha, f = (self.scales["sigma_alpha"] / 2) ** 2, activations.get(_POINTWISE[self.norm])
        square, product, slope, slopes = _pair_moments(f, alpha * x.q, x.p / x.q if x.q else 0.0)
        return _Stream(square, product, alpha * slope * x.u, alpha * slopes * x.v)

    def normed(self, x: _Stream) -> _Stream:
        """What a branch sees."""
        gain = self.scales["norm_gain"] ** 2
        return _Stream(*(gain * a for a in self.whole(x)))

    def attention(self, x: _Stream) -> _Stream:
        sigma = self.scales
        s = (sigma["sigma_v"] * sigma["sigma_o"]) ** 2
        k = (sigma["sigma_q"] * sigma["sigma_k"] / sigma["temperature"]) ** 2
        if s == 0:  # its integrals are most of the work
            return _Stream(0.0, 0.0, 0.0, 0.0)
        apart, tangents = x.q - x.p, x.u - x.v
        a = softmax_moments(self.tokens, max(0.0, k * x.q * apart), min(1.0, x.p / x.q) if x.q else 0.0)
        looked = a.square - 2 * a.cube + a.square_of_square
        looked_both = a.product - 2 * a.cubic_product + a.square_of_product
        return _Stream(
            s * (x.p + apart * a.square),
            s * (x.p + apart * a.product),
            s * (x.v + tangents * a.square + k * apart * (apart * x.u + x.q * tangents) * looked),
            s * (x.v + tangents * a.product + k * apart * (apart * x.v + x.p * tangents) * looked_both),
        )

    def feed_forward(self, x: _Stream) -> _Stream:
        sigma = {name: value**2 for name, value in self.scales.items()}
        first = sigma["sigma_g"] if self.gated else sigma["sigma_1"]
        # Preactivations of phi, and of what a gate multiplies; the bias is one for all tokens.
        within, across = first * x.q + sigma["sigma_b"], first * x.p + sigma["sigma_b"]
        square, product, slope, slopes = _pair_moments(self.phi, within, across / within if within else 0.0)
        made = _Stream(square, product, first * slope * x.u, first * slopes * x.v)
        if self.gated:
            q, p = (sigma["sigma_1"] * of + sigma["sigma_b"] for of in (x.q, x.p))
            u, v = sigma["sigma_1"] * x.u, sigma["sigma_1"] * x.v
            made = _Stream(square * q, product * p, square * u + made.u * q, product * v + made.v * p)
        bias = _Stream(sigma["sigma_b"], sigma["sigma_b"], 0.0, 0.0)
        return made.plus(sigma["sigma_2"], bias, 1.0)


def _pair_moments(phi: Any, q: float, c: float) -> tuple[float, float, float, float]:
    """E phi(a)^2, E phi(a) phi(a'), E phi'(a)^2, E phi'(a) phi'(a') for a pair of variance q and correlation c."""
    # A power of two, so that few programs are compiled for the pieces of phi that matter.
    if not q <= pieces(phi, ()).largest_variance:
        return math.nan, math.nan, math.nan, math.nan
    reach = REACH * 2.0 ** math.ceil(math.log2(math.sqrt(q))) if q else REACH
    one = line(phi, q)
    square, slope = one.mean(one.phi**2), one.mean(one.slope**2)
    with jax.enable_x64(True):
        epsilon = np.float64(1 - min(1.0, max(-1.0, c)))
        product, slopes = np.asarray(_products(phi, pieces(phi, ()).within(reach), np.float64(q), epsilon))
    return square, float(product), slope, float(slopes)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _products(phi: Activation, found: Pieces, q: Array, epsilon: Array) -> Array:
    """E phi(a) phi(a') and E phi'(a) phi'(a') of a correlation of 1 - epsilon, shape ``(2,)``."""

    def product(f: Callable[[Array], Array]) -> Array:
        return pair(found, lambda a, b: f(a) * f(b), q, q, epsilon)

    return jnp.stack([product(phi), product(phi.derivative)])
