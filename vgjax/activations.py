"""Activations: phi, its slope, and what the rest of the library has to know about it.

An `Activation` is called like a function, elementwise, and differentiates to the right slope even where the textbook
formula cancels. `get` turns a name, an `Activation` or a user's own callable into one.
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax.checks import ArrayLike, kinds, known, untraced
from vgjax.floatexp import Degrees, Ends, FloatExp, degree_of, extended
from vgjax.values import reduced

Elementwise = Callable[[Array], Array]


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
        if registered(self):
            return get, (self.name,)
        return reduced(self, self.name, self.phi, self.slope, self.kinks, self.homogeneous)

    def __copy__(self) -> "Activation":
        return self

    def __deepcopy__(self, memo: Any) -> "Activation":
        return self  # another object would be another activation, and be compiled for anew

    @property
    def facts(self) -> "Facts":
        """What the library has to know about phi, measured once."""
        return _facts(self)


@dataclass(frozen=True)
class Facts:
    """What phi tends to at the two ends of the float range, and how steep and how flat it is between them.

    Attributes:
        largest_slope: the largest |phi'| on [-10, 10]: what "flat" is measured against.
        at_zero: phi(0).
        bounded: phi stays bounded far out on both sides.
        plateau: phi is flat far out on exactly one side, at a level other than 0 (ELU, SELU).
        dead: phi' is exactly 0 on some interval, so that a zero is a zero and not an underflow (ReLU, not tanh).
        ends: its degrees at both ends of the float range.
    """

    largest_slope: float
    at_zero: float
    bounded: bool
    plateau: bool
    dead: bool
    ends: Ends


def apply(activation: Activation, number: FloatExp) -> FloatExp:
    """phi of a normalized scaled number of any size, by `floatexp.extended`.

    Args:
        activation: phi.
        number: normalized; value of any shape.

    Returns:
        The scaled phi(h), not normalized. Past an end whose degrees are unknown the value is meaningless.
    """
    facts = activation.facts
    return extended(activation, number, facts.ends, at_zero=False, plateau=facts.plateau)


@functools.cache
def _differentiable(activation: Activation) -> Elementwise:
    if activation.slope is None and registered(activation):
        return activation.phi

    def slope(h: Array) -> Array:
        return jax.jvp(activation.phi, (h,), (jnp.ones_like(h),))[1]

    @jax.custom_jvp
    def phi(h: Array) -> Array:
        return activation.phi(h)

    # By its slope also where a user's formula is differentiated automatically: reverse mode adds up the same terms
    # times a cotangent, and what cancels for 1 need not cancel for that (h tanh h at -1e6 in float32: -.75 for -.7).
    @phi.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        (h,), (t,) = primals, tangents
        if activation.slope is not None:
            return phi(h), activation.slope(h) * t
        # A dead unit passes nothing on, not even an infinity.
        steep = slope(h)
        return phi(h), jnp.where(steep == 0, 0, steep * t)

    return phi


# Where float32 and float64 begin to count in exponents (`floatexp.window_exponent`), a number and twice that, on both
# sides; and numbers in between, for what holds everywhere.
_HIGH = np.array([[side * far, 2 * side * far] for far in (2.0**32, 2.0**256) for side in (1, -1)])
_LOW = 1 / _HIGH[:, ::-1]
_NEAR = np.array([[1.0, 2], [-1, -2], [3, 6], [-3, -6]])
_MIDDLE = np.linspace(-10, 10, 4001)


@functools.cache
@untraced
def _facts(activation: Activation) -> Facts:
    places = [np.zeros(1), _LOW.ravel(), _HIGH.ravel(), _NEAR.ravel(), _MIDDLE]
    points, ends = np.concatenate(places), np.cumsum([len(place) for place in places])[:-1]

    @jax.jit
    def evaluate(h: Array) -> tuple[Array, Array]:
        single = h.astype(jnp.float32)
        value, slope = (jnp.stack([activation(h), activation.derivative(h)]) for h in (h, single))
        return value, slope.astype(h.dtype)

    with jax.enable_x64(True), np.errstate(all="ignore"):
        found, single = (np.asarray(a) for a in evaluate(jnp.asarray(points)))
    zero, low, high, near, middle = np.split(found, ends, axis=1)
    _, low_single, high_single, *_ = np.split(single, ends, axis=1)
    at_zero, levels, slopes = float(zero[0, 0]), high[0], middle[1]
    below = _degrees(low) if _alike(low_single, low) else Degrees(None, None)
    if at_zero and math.isfinite(at_zero):  # beside which the rest of phi is rounding
        below = below._replace(value=Fraction(0))
    above = _degrees(high, far_out=True) if _alike(high_single, high) else Degrees(None, None)
    if any(degree is not None and degree < 0 for degree in above) and _growths(near[0]) != {above.value}:
        # Units near 0 decide then, and there phi is another power or none.
        above = Degrees(None, None)
    flat = (high[1] == 0) & (np.abs(levels) > 1e-6)
    return Facts(
        largest_slope=float(np.max(np.abs(slopes))),
        at_zero=at_zero,
        bounded=bool(np.all(np.abs(levels) < 2.0**20)),
        plateau=bool(above.value) and bool(np.any(flat)),
        dead=any(a == b == 0 for a, b in itertools.pairwise(slopes)),
        ends=(below, above),
    )


def _degrees(found: np.ndarray, far_out: bool = False) -> Degrees:
    """The degrees of phi and of phi' from their values at pairs of points an octave apart, shape ``(2, points)``."""
    value, slope = (_growths(a) for a in found)
    if far_out and len(value) == 2:  # one side on a plateau, the other beyond it
        value.discard(Fraction(0))
    return Degrees(*(of.pop() if len(of) == 1 else None if of else Fraction(0) for of in (value, slope)))


def _alike(single: np.ndarray, double: np.ndarray) -> bool:
    """Whether float32 gives at the end of its window what float64 gives (a formula may overflow inside)."""
    at_window = slice(0, 4)
    single, double = single[:, at_window], double[:, at_window]
    return bool(np.all(np.isclose(single, double, rtol=1e-4, atol=2.0**-126)))


def _growths(values: np.ndarray) -> set[Fraction | None]:
    """The degrees that pairs of values show; of zeros there is none, and past float64's own range none is seen."""
    pairs = np.abs(values.reshape(-1, 2))
    with np.errstate(all="ignore"):
        growths = np.log2(pairs[:, 1] / pairs[:, 0])
    usable = np.any(pairs != 0, axis=1) & (np.isfinite(growths) | (np.arange(len(pairs)) < 2))
    return {degree_of(float(growth), 1e-6) for growth in growths[usable]}


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

kinds(Activation)  # only now: those above need no check, and the first one costs every import 43 ms

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
        activation = Activation(getattr(activation, "__name__", "custom").strip("<>"), activation)
    if not registered(activation):
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
    h = np.linspace(-3, 3, 7, dtype=np.float32)
    try:
        like = jax.eval_shape(activation, h)
    except jax.errors.TracerArrayConversionError:
        raise ValueError(
            f"{called} must be made of functions of JAX (jax.numpy), which can be traced, got NumPy's"
        ) from None
    except Exception as error:
        raise ValueError(
            f"{called} must map an array to one of the same shape, got {type(error).__name__}: {error}"
        ) from error
    if like.shape != h.shape:
        raise ValueError(f"{called} must be elementwise, got shape {like.shape} from shape {h.shape}")
    if like.dtype != h.dtype:
        raise ValueError(f"{called} must keep the dtype, got {like.dtype} from {h.dtype}")
    try:
        jax.eval_shape(activation, h[0])
    except Exception as error:
        raise ValueError(f"{called} must be elementwise, got {type(error).__name__} on a single number") from error
    both = jax.jit(lambda h: (activation(h), jnp.stack([activation(one) for one in h])))  # one program for a user's phi
    y, alone = map(np.asarray, both(h))
    if np.any(np.isnan(y)):
        raise ValueError(f"{called} must not return NaN, got NaN at {h[np.isnan(y)][0]:g}")
    if not np.allclose(y, alone, rtol=1e-4, atol=1e-5):
        raise ValueError(f"{called} must be elementwise, got values that change with their neighbours")
