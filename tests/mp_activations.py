"""Activations in arithmetic without ends: each as the library is given it, in mpmath, and its slope in mpmath by a
formula of its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
from mpmath import mpf

ENDLESS = 3000
"""exp(2^3000) has an exponent that no machine holds, and ln of exp(-2^3000) is -inf in float64."""


class Phi(NamedTuple):
    """An activation.

    Attributes:
        library: what the library is given: a name, or a function of JAX.
        value, slope: phi and phi' of one mpf. They raise OverflowError where the value is beyond everything.
        ruled: whether phi has a power law toward (zero, infinity), or a limit that is not 0, so that its states and
            derivatives can be had there without its formula.
    """

    library: Any
    value: Callable[[Any], Any]
    slope: Callable[[Any], Any]
    ruled: tuple[bool, bool]


# --- functions whose arguments have no end --------------------------------------------------------------------------


def _exp(h: Any) -> Any:
    if mpmath.mag(h) <= ENDLESS:
        return mpmath.exp(h)
    if h > 0:
        raise OverflowError(f"exp of 2^{mpmath.mag(h)}")
    return mpf(0)


def _flat(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """f that has reached +-1 to all digits at 2^20."""
    return lambda h: f(h) if mpmath.mag(h) < 20 else mpmath.sign(h)


def _periodic(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def within(h: Any) -> Any:
        if mpmath.mag(h) > ENDLESS:
            raise OverflowError(f"a sine of 2^{mpmath.mag(h)}")
        return f(h)

    return within


_tanh, _erf, _sin, _cos = _flat(mpmath.tanh), _flat(mpmath.erf), _periodic(mpmath.sin), _periodic(mpmath.cos)


def _sech2(h: Any) -> Any:
    q = _exp(-2 * abs(h))
    return 4 * q / (1 + q) ** 2


def _sigmoid(h: Any) -> Any:
    q = _exp(-abs(h))
    return (1 if h > 0 else q) / (1 + q)


def _sigmoid_slope(h: Any) -> Any:
    q = _exp(-abs(h))
    return q / (1 + q) ** 2


def _normal(h: Any) -> Any:
    return _exp(-h * h / 2) / mpmath.sqrt(2 * mpmath.pi)


def _normal_cdf(h: Any) -> Any:
    if mpmath.mag(h) <= 40:
        return mpmath.erfc(-h / mpmath.sqrt(2)) / 2
    return mpf(1) if h > 0 else _normal(h) / -h  # right to 2^-80


def _softplus(h: Any) -> Any:
    return max(h, 0) + mpmath.log1p(_exp(-abs(h)))


def _mish_slope(h: Any) -> Any:
    t, s = _tanh(_softplus(h)), _sigmoid(h)
    return t + h * s * _sech2(_softplus(h))


def _step(h: Any) -> Any:
    return mpf(h > 0)


def _expm1(h: Any) -> Any:
    return mpmath.expm1(h) if mpmath.mag(h) < 20 else _exp(h) - 1


def _root(h: Any) -> Any:
    return jnp.sign(h) * jnp.sqrt(jnp.abs(h))


_SELU_SCALE, _SELU_ALPHA = mpf("1.0507009873554805"), mpf("1.6732632423543772")  # Klambauer et al. 2017


ACTIVATIONS: dict[str, Phi] = {
    # A power law at both ends.
    "root": Phi(
        _root,
        lambda h: mpmath.sign(h) * mpmath.sqrt(abs(h)),
        lambda h: 1 / (2 * mpmath.sqrt(abs(h))) if h else mpf(0),
        (True, True),
    ),
    "linear": Phi("linear", lambda h: h, lambda h: mpf(1), (True, True)),
    "relu": Phi("relu", lambda h: max(h, mpf(0)), _step, (True, True)),
    "leaky": Phi(
        "leaky_relu(0.25)", lambda h: h if h > 0 else h / 4, lambda h: mpf(1 if h > 0 else 0.25), (True, True)
    ),
    "abs": Phi(jnp.abs, abs, mpmath.sign, (True, True)),
    "power 3/2": Phi(
        lambda h: h * jnp.sqrt(jnp.abs(h)),
        lambda h: h * mpmath.sqrt(abs(h)),
        lambda h: mpf(1.5) * mpmath.sqrt(abs(h)),
        (True, True),
    ),
    "square": Phi(lambda h: h * h, lambda h: h * h, lambda h: 2 * h, (True, True)),
    "odd square": Phi(lambda h: h * jnp.abs(h), lambda h: h * abs(h), lambda h: 2 * abs(h), (True, True)),
    "half square": Phi(
        lambda h: jax.nn.relu(h) ** 2, lambda h: max(h, mpf(0)) ** 2, lambda h: 2 * max(h, mpf(0)), (True, True)
    ),
    "cube": Phi(lambda h: h * h * h, lambda h: h**3, lambda h: 3 * h * h, (True, True)),
    # Two different ones.
    "h tanh h": Phi(
        lambda h: h * jnp.tanh(h), lambda h: h * _tanh(h), lambda h: _tanh(h) + h * _sech2(h), (True, True)
    ),
    # The square of 1 + h^2, of which its slope is made, is past the floats at the end of the ordinary range.
    "3 to 1": Phi(
        lambda h: h * (h * h / (1 + h * h)),
        lambda h: h**3 / (1 + h * h),
        lambda h: h * h * (3 + h * h) / (1 + h * h) ** 2,
        (True, False),
    ),
    # A power far out as well, but there the units nearest to zero decide, which are not far out.
    "1 to -1": Phi(
        lambda h: h / (1 + h * h),
        lambda h: h / (1 + h * h),
        lambda h: (1 - h * h) / (1 + h * h) ** 2,
        (True, False),
    ),
    "2 to 1": Phi(
        lambda h: h * h / (1 + jnp.sqrt(1 + h * h)),
        lambda h: h * h / (1 + mpmath.sqrt(1 + h * h)),
        lambda h: h / mpmath.sqrt(1 + h * h),
        (True, True),
    ),
    "softplus": Phi("softplus", _softplus, _sigmoid, (True, True)),
    "gelu": Phi("gelu", lambda h: h * _normal_cdf(h), lambda h: _normal_cdf(h) + h * _normal(h), (True, True)),
    "silu": Phi("silu", lambda h: h * _sigmoid(h), lambda h: _sigmoid(h) + h * _sigmoid_slope(h), (True, True)),
    "mish": Phi("mish", lambda h: h * _tanh(_softplus(h)), _mish_slope, (True, True)),
    "elu": Phi("elu", lambda h: h if h > 0 else _expm1(h), lambda h: mpf(1) if h > 0 else _exp(h), (True, True)),
    "selu": Phi(
        "selu",
        lambda h: _SELU_SCALE * (h if h > 0 else _SELU_ALPHA * _expm1(h)),
        lambda h: _SELU_SCALE * (1 if h > 0 else _SELU_ALPHA * _exp(h)),
        (True, True),
    ),
    # Bounded: the derivative of the smooth ones falls like exp far out, or like a power.
    "tanh": Phi("tanh", _tanh, _sech2, (True, True)),
    "erf": Phi("erf", _erf, lambda h: 2 / mpmath.sqrt(mpmath.pi) * _exp(-h * h), (True, True)),
    "sigmoid": Phi("sigmoid", _sigmoid, _sigmoid_slope, (True, True)),
    "softsign": Phi("softsign", lambda h: h / (1 + abs(h)), lambda h: 1 / (1 + abs(h)) ** 2, (True, True)),
    "arctan": Phi("arctan", mpmath.atan, lambda h: 1 / (1 + h * h), (True, True)),
    "hard tanh": Phi("hard_tanh", lambda h: min(max(h, mpf(-1)), mpf(1)), lambda h: mpf(abs(h) < 1), (True, True)),
    # A dead zone: exactly 0 near zero.
    "shifted relu": Phi(
        lambda h: jnp.maximum(h - 0.5, 0), lambda h: max(h - 0.5, mpf(0)), lambda h: mpf(h > 0.5), (True, True)
    ),
    "soft threshold": Phi(
        lambda h: jnp.sign(h) * jnp.maximum(jnp.abs(h) - 0.5, 0),
        lambda h: mpmath.sign(h) * max(abs(h) - 0.5, mpf(0)),
        lambda h: mpf(abs(h) > 0.5),
        (True, True),
    ),
    # No power law far out.
    "sin": Phi("sin", _sin, _cos, (True, False)),
    "h + sin h": Phi(lambda h: h + jnp.sin(h), lambda h: h + _sin(h), lambda h: 1 + _cos(h), (True, False)),
    "expm1": Phi(jnp.expm1, _expm1, _exp, (True, False)),
    "asinh": Phi(jnp.arcsinh, mpmath.asinh, lambda h: 1 / mpmath.sqrt(1 + h * h), (True, False)),
    "log1p": Phi(
        lambda h: jnp.log1p(jnp.abs(h)),
        lambda h: mpmath.log1p(abs(h)),
        lambda h: mpmath.sign(h) / (1 + abs(h)),
        (True, False),
    ),
}
