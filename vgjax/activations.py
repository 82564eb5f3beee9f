"""Activations: phi, its slope, and what the rest of the library has to know about it.

An `Activation` is called like a function, elementwise, and differentiates to the right slope even where the textbook
formula cancels. `get` turns a name, an `Activation` or a user's own callable into one.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax.checks import ArrayLike, kinds, known, untraced
from vgjax.floatexp import FloatExp, to_float_clipped

Elementwise = Callable[[Array], Array]


@kinds
@dataclass(frozen=True)
class Activation:
    """An elementwise nonlinearity phi.

    Attributes:
        name: as it stands in tables, legends and files.
        phi: elementwise, traceable by JAX, same shape and dtype out as in.
        slope: phi', where differentiating ``phi`` automatically would cancel (tanh' as 1 - tanh^2 is exactly 0 in
            float32 from h = 9 on); None differentiates ``phi``.
        kinks: points where phi' is not smooth; quadratures split there.
        homogeneous: phi(a h) = a phi(h) for every a > 0.
    """

    name: str
    phi: Elementwise = field(repr=False)
    slope: Elementwise | None = field(default=None, repr=False)
    kinks: tuple[float, ...] = ()
    homogeneous: bool = False

    @kinds
    def __call__(self, h: ArrayLike) -> Array:
        """phi(h), elementwise; differentiates to `slope`."""
        return _differentiable(self)(h if hasattr(h, "dtype") else jnp.asarray(h))  # type: ignore[arg-type]

    @kinds
    def derivative(self, h: ArrayLike) -> Array:
        """phi'(h), elementwise; at a kink the value JAX gives (0 for ReLU at 0)."""
        h = jnp.asarray(h)
        h = h if jnp.issubdtype(h.dtype, jnp.floating) else h.astype(float)
        return jax.jvp(self, (h,), (jnp.ones_like(h),))[1]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # By name where the name says all, since the functions of the registry are lambdas, which cannot be pickled.
        return (get, (self.name,)) if registered(self) else super().__reduce_ex__(protocol)

    @property
    def facts(self) -> "Facts":
        """What the library has to know about phi, measured once."""
        return _facts(self)


@dataclass(frozen=True)
class Facts:
    """What phi tends to at the two ends of the float range, and its largest slope.

    Attributes:
        largest_slope: the largest |phi'| on [-10, 10]: what "flat" is measured against.
        at_zero: phi(0).
        bounded: phi stays bounded far out on both sides.
        plateau: phi is flat far out on exactly one side, at a level other than 0 (ELU, SELU).
        below: numbers below the float range are covered: phi(0) != 0, or phi is linear near 0 from at least one side.
        above: numbers above it are covered: phi is asymptotically homogeneous of degree 1, or flat on both sides.
    """

    largest_slope: float
    at_zero: float
    bounded: bool
    plateau: bool
    below: bool
    above: bool


def apply(activation: Activation, number: FloatExp) -> FloatExp:
    """phi of a normalized scaled number of any size, by `floatexp.euler`, with what is known about phi used to save
    work.

    Args:
        activation: phi.
        number: normalized; value of any shape.

    Returns:
        The scaled phi(h), not normalized. Where `Facts` says phi is not covered the value is meaningless (but finite).
    """
    facts = activation.facts
    value, exponent = number
    y, linear = jax.jvp(activation, (to_float_clipped(number),), (value,))
    below = jnp.zeros((), bool) if facts.at_zero else exponent < 0
    above = jnp.zeros((), bool) if facts.bounded else exponent > 0
    if facts.plateau:  # all units on it: what is left is its level, at exponent 0
        above = above & jnp.any(linear != 0)
    outside = below | above
    return FloatExp(jnp.where(outside, linear, y), jnp.where(outside, exponent, 0))


@functools.cache
def _differentiable(activation: Activation) -> Elementwise:
    if activation.slope is None:
        return activation.phi
    slope = activation.slope

    @jax.custom_jvp
    def phi(h: Array) -> Array:
        return activation.phi(h)

    @phi.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        (h,), (t,) = primals, tangents
        return phi(h), slope(h) * t

    return phi


@functools.cache
@untraced
def _facts(activation: Activation) -> Facts:
    far = 2.0**40  # past float32's window; every degree shows to 1e-10 there
    points = np.concatenate([[0.0, 1 / far, -1 / far, far, -far, 4 * far, -4 * far], np.linspace(-10, 10, 4001)])

    @jax.jit
    def evaluate(h: Array) -> tuple[Array, Array]:
        return activation(h), activation.derivative(h)

    with jax.enable_x64(True):
        value, slope = (np.asarray(a) for a in evaluate(jnp.asarray(points)))

    def degree_one(i: int) -> bool:
        # |phi - phi' h| against |h|: a side where phi / h -> 0 (ReLU's left, ELU's left) counts as slope 0.
        return bool(abs(value[i] - slope[i] * points[i]) <= 1e-6 * abs(points[i]))

    def settled(i: int) -> bool:
        return bool(abs(slope[i + 2] - slope[i]) <= 1e-6 * max(1.0, abs(slope[i])))

    steep = [abs(slope[i]) > 1e-6 for i in (3, 4)]
    bounded = bool(np.all(np.abs(value[3:7]) < math.sqrt(far)))
    linear = all(degree_one(i) and settled(i) for i in (3, 4)) and any(steep) and not bounded
    saturated = bounded and not np.any(slope[3:7])
    below = bool(value[0]) or (degree_one(1) and degree_one(2) and bool(slope[1] or slope[2]))
    return Facts(
        largest_slope=float(np.max(np.abs(slope[7:]))),
        at_zero=float(value[0]),
        bounded=bounded,
        plateau=linear and not all(steep) and bool(abs(value[3 + steep.index(False)]) > 1e-6),
        below=below,
        above=linear or saturated,
    )


# --- the registry ---------------------------------------------------------------------------------------------------


def _tanh_slope(h: Array) -> Array:
    # 4 q / (1 + q)^2, q = exp(-2|h|), keeps all its digits where 1 - tanh^2 has none left.
    q = jnp.exp(-2 * jnp.abs(h))
    return 4 * q / (1 + q) ** 2


def _sigmoid_slope(h: Array) -> Array:
    q = jnp.exp(-jnp.abs(h))
    return q / (1 + q) ** 2


def _elu_slope(h: Array) -> Array:
    # Automatic differentiation gives expm1(h) + 1, which is exactly 0 from h = -17 on.
    return jnp.exp(jnp.minimum(h, 0))


def _selu_slope(h: Array) -> Array:
    scale, alpha = 1.0507009873554805, 1.6732632423543772  # Klambauer et al. 2017, as in jax.nn.selu
    return scale * jnp.where(h > 0, 1, alpha * _elu_slope(h))


def _normal_cdf(h: Array) -> Array:
    return jax.scipy.special.erfc(-h * math.sqrt(0.5)) / 2


def _gelu_slope(h: Array) -> Array:
    return _normal_cdf(h) + h * jnp.exp(-h * h / 2) * (1 / math.sqrt(2 * math.pi))


def _gelu_tanh(h: Array) -> Array:
    # (1 + tanh y) / 2 = sigmoid(2 y), which does not cancel on the left.
    return h * jax.nn.sigmoid(2 * math.sqrt(2 / math.pi) * h * (1 + 0.044715 * h * h))


def _hard_tanh_slope(h: Array) -> Array:
    return (jnp.abs(h) < 1).astype(h.dtype)


def _mish(h: Array) -> Array:
    # tanh(softplus(h)) = n / (n + 2), n = q (q + 2), q = exp(h): one exponential; turned around on the right, where q
    # overflows.
    q = jnp.exp(-jnp.abs(h))
    return h * jnp.where(h > 0, (1 + 2 * q) / (1 + 2 * q + 2 * q * q), q * (q + 2) / (q * (q + 2) + 2))


@kinds
def leaky_relu(slope: float = 0.01) -> Activation:
    """h for h > 0, slope h below; the same object for the same slope.

    Raises:
        ValueError: a slope that is not finite.
    """
    if not math.isfinite(slope):
        raise ValueError(f"slope must be finite, got {slope}")
    return _leaky_relu(float(slope))


@functools.cache
def _leaky_relu(slope: float) -> Activation:
    # With all its digits, so that the name alone gives it back.
    name = "leaky_relu" if slope == 0.01 else f"leaky_relu({str(slope).removesuffix('.0')})"
    return Activation(name, functools.partial(jax.nn.leaky_relu, negative_slope=slope), kinks=(0.0,), homogeneous=True)


_REGISTRY = {
    a.name: a
    for a in (
        Activation("linear", lambda h: h, homogeneous=True),
        Activation("relu", jax.nn.relu, kinks=(0.0,), homogeneous=True),
        leaky_relu(),
        Activation("tanh", jnp.tanh, _tanh_slope),
        Activation("sigmoid", jax.nn.sigmoid, _sigmoid_slope),
        Activation("erf", jax.scipy.special.erf),
        Activation("hard_tanh", lambda h: jnp.clip(h, -1, 1), _hard_tanh_slope, kinks=(-1.0, 1.0)),
        Activation("softplus", jax.nn.softplus, jax.nn.sigmoid),
        Activation("softsign", jax.nn.soft_sign, lambda h: 1 / (1 + jnp.abs(h)) ** 2, kinks=(0.0,)),
        Activation("selu", jax.nn.selu, _selu_slope, kinks=(0.0,)),
        Activation("elu", jax.nn.elu, _elu_slope, kinks=(0.0,)),
        Activation("gelu", lambda h: h * _normal_cdf(h), _gelu_slope),
        Activation("gelu_tanh", _gelu_tanh),
        Activation("silu", jax.nn.silu),
        Activation("mish", _mish),
        Activation("sin", jnp.sin),
        Activation("relu6", jax.nn.relu6, kinks=(0.0, 6.0)),
        Activation("hard_swish", jax.nn.hard_swish, kinks=(-3.0, 3.0)),
        Activation("arctan", jnp.arctan),
    )
}

NAMES = tuple(_REGISTRY)
"""The names of the activations that come with the library."""


@kinds
def registered(activation: Activation) -> bool:
    """Whether it is the library's own, so that `get` gives it back from its name alone."""
    return _REGISTRY.get(activation.name) is activation or (
        activation.name.startswith("leaky_relu(") and _by_name(activation.name) is activation
    )


@kinds
def get(activation: str | Activation | Elementwise) -> Activation:
    """The activation meant by a name, an `Activation`, or any elementwise callable.

    Args:
        activation: one of `NAMES`; ``"leaky_relu(0.2)"`` for any slope; an `Activation`; or a callable array ->
            array. A callable is compared by identity, so pass the same object twice to compile once.

    Raises:
        ValueError: an unknown name (the nearest known one is named), or a callable that is not elementwise, changes the
            dtype, or returns NaN.
    """
    if isinstance(activation, str):
        return _by_name(activation)
    if not isinstance(activation, Activation):
        if not callable(activation):
            raise ValueError(f"activation must be a name, an Activation or a callable, got {activation!r}")
        activation = Activation(getattr(activation, "__name__", "custom").strip("<>"), activation)
    _check(activation)
    return activation


def _by_name(name: str) -> Activation:
    key = name.strip().lower()
    if key.startswith("leaky_relu(") and key.endswith(")"):
        try:
            return leaky_relu(float(key[len("leaky_relu(") : -1]))
        except ValueError:
            raise ValueError(f"leaky_relu takes a finite number as its slope, got {name!r}") from None
    return _REGISTRY[known("activation", key, NAMES, also=" or a callable")]


@functools.cache
@untraced
def _check(activation: Activation) -> None:
    called = f"activation {activation.name!r}"
    h = jnp.linspace(-3, 3, 7)
    try:
        y = jnp.asarray(activation(h))
    except Exception as error:
        raise ValueError(
            f"{called} must map an array to one of the same shape, got {type(error).__name__}: {error}"
        ) from error
    if y.shape != h.shape:
        raise ValueError(f"{called} must be elementwise, got shape {y.shape} from shape {h.shape}")
    if y.dtype != h.dtype:
        raise ValueError(f"{called} must keep the dtype, got {y.dtype} from {h.dtype}")
    if bool(jnp.any(jnp.isnan(y))):
        raise ValueError(f"{called} must not return NaN, got NaN at {float(h[jnp.isnan(y)][0]):g}")
    try:
        alone = np.array([activation(one) for one in h])
    except Exception as error:
        raise ValueError(f"{called} must be elementwise, got {type(error).__name__} on a single number") from error
    if not np.allclose(y, alone, rtol=1e-4, atol=1e-5):
        raise ValueError(f"{called} must be elementwise, got values that change with their neighbours")
