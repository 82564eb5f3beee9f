"""Deep networks in arithmetic without ends: mpmath, whose exponents are Python's integers; no formula of the library.

`Exact` is ``h' = phi(h) W + b`` between a stem and a linear head, from weights as `oracles.weights` reads them: states,
tangents, cotangents, gradients and the Jacobian of all layers. `ACTIVATIONS` holds every phi three times: as the
library is given it, in mpmath, and its slope in mpmath by a formula of its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
from mpmath import mpf
from oracles import Weights

DIGITS = 100
"""Chaos takes up to 1.7 digits a layer at sigma_w = 50; what float64 still knows then took 16 of them."""

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
    return mpf(h > 0) if mpmath.mag(h) > ENDLESS // 3 else mpmath.erfc(-h / mpmath.sqrt(2)) / 2


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
    "3 to 1": Phi(
        lambda h: h * (h * h / (1 + h * h)),
        lambda h: h**3 / (1 + h * h),
        lambda h: h * h * (3 + h * h) / (1 + h * h) ** 2,
        (True, True),
    ),
    "1 to -1": Phi(
        lambda h: h / (1 + h * h),
        lambda h: h / (1 + h * h),
        lambda h: (1 - h * h) / (1 + h * h) ** 2,
        (True, True),
    ),
    "2 to 1": Phi(
        lambda h: h * h / (1 + jnp.sqrt(1 + h * h)),
        lambda h: h * h / (1 + mpmath.sqrt(1 + h * h)),
        lambda h: h / mpmath.sqrt(1 + h * h),
        (True, True),
    ),
    "softplus": Phi("softplus", _softplus, _sigmoid, (True, True)),
    "gelu": Phi("gelu", lambda h: h * _normal_cdf(h), lambda h: _normal_cdf(h) + h * _normal(h), (True, True)),
    "silu": Phi(
        "silu", lambda h: h * _sigmoid(h), lambda h: _sigmoid(h) + h * _sigmoid_slope(h), (True, True)
    ),
    "mish": Phi("mish", lambda h: h * _tanh(_softplus(h)), _mish_slope, (True, True)),
    "elu": Phi(
        "elu", lambda h: h if h > 0 else _expm1(h), lambda h: mpf(1) if h > 0 else _exp(h), (True, True)
    ),
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
    "shifted relu": Phi(lambda h: jnp.maximum(h - 0.5, 0), lambda h: max(h - 0.5, mpf(0)), lambda h: mpf(h > 0.5), (True, True)),
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


# --- the network ----------------------------------------------------------------------------------------------------


def exact(a: Any) -> np.ndarray:
    """Floats as mpf, in an array of objects."""
    return np.vectorize(lambda entry: mpf(float(entry)), otypes=[object])(np.asarray(a))


def log_norm(a: Any) -> float:
    """ln of the Euclidean norm; -inf for an exact zero."""
    squares = sum(entry * entry for entry in np.asarray(a).ravel())
    return float(mpmath.log(squares) / 2) if squares else -np.inf


def _each(f: Callable[[Any], Any], a: np.ndarray) -> np.ndarray:
    return np.array([f(entry) for entry in a], dtype=object)


class Exact:
    """A network with its numbers at one input.

    Attributes:
        states: h^0, h^1 ... as far as they exist: phi may leave everything behind.
    """

    def __init__(self, weights: Weights, phi: Phi, x: Any, *, wobble: float = 0.0, seed: int = 0):
        """``wobble`` moves every weight by about that share of itself: what a rounding of that size can do."""
        rng = np.random.default_rng(seed)

        def entries(a: np.ndarray) -> np.ndarray:
            return exact(a) * (1 + wobble * exact(rng.uniform(-1, 1, a.shape)) if wobble else 1)

        with mpmath.workdps(DIGITS):
            self.weights, self.phi, self.x = [(entries(w), entries(b)) for w, b in weights], phi, exact(x)
            (kernel, bias), *blocks, self.head = self.weights
            self.blocks, self.states = blocks, [self.x @ kernel + bias]
            self.values: list[np.ndarray] = []
            self.slopes: list[np.ndarray] = []
            self.depth = len(blocks)
            try:
                for kernel, bias in [*blocks, self.head]:
                    value, slope = _each(phi.value, self.states[-1]), _each(phi.slope, self.states[-1])
                    self.values.append(value)
                    self.slopes.append(slope)
                    self.states.append(value @ kernel + bias)
                self.output: Any = self.states.pop()
            except OverflowError:
                self.output = None

    def log_norms(self) -> np.ndarray:
        """ln ||h^l||, shape (L + 1,); NaN where there is none."""
        return self._logs(self.states)

    def push(self, u: Any) -> np.ndarray:
        """ln ||J_{l<-0} u||, shape (L + 1,); NaN where there is none."""
        with mpmath.workdps(DIGITS):
            moved = [exact(u)]
            for slope, (kernel, _) in zip(self.slopes, self.blocks, strict=False):
                moved.append((slope * moved[-1]) @ kernel)
            return self._logs(moved)

    def pull(self, m: int, v: Any) -> np.ndarray:
        """ln ||J_{m<-l}^T v|| for l = 0 ... m, shape (m + 1,); NaN if state m does not exist."""
        if m >= len(self.states):
            return np.full(m + 1, np.nan)
        return self._pulled(m, exact(v))[0]

    def gradients(self, y: Any, loss: str) -> dict[str, np.ndarray]:
        """ln of the norms of dL/dh^l (``"states"``) and of all parameter gradients, named as the library does."""
        nowhere = {"states": self.depth + 1, "kernel": self.depth, "bias": self.depth}
        if self.output is None:
            ends = {f"{end}/{name}": () for end in ("stem", "head") for name in ("kernel", "bias")}
            return {name: np.full(shape, np.nan) for name, shape in (nowhere | ends).items()}
        with mpmath.workdps(DIGITS):
            delta = _delta(self.output, y, loss)
            logs, cotangents = self._pulled(self.depth, (self.head[0] @ delta) * self.slopes[-1])
            behind = [log_norm(d) for d in cotangents]
            read = [log_norm(a) for a in self.values]
            return {
                "states": logs,
                "kernel": np.array([a + d for a, d in zip(read[:-1], behind[1:], strict=True)]),
                "bias": np.array(behind[1:]),
                "stem/kernel": np.array(log_norm(self.x) + behind[0]),
                "stem/bias": np.array(behind[0]),
                "head/kernel": np.array(read[-1] + log_norm(delta)),
                "head/bias": np.array(log_norm(delta)),
            }

    def mean_square_slopes(self) -> np.ndarray:
        """ln of the mean of phi'^2 over the units of h^0 ... h^(L-1), shape (L,); NaN where there is none."""
        logs = [2 * log_norm(slope) - np.log(len(slope)) for slope in self.slopes[: self.depth]]
        return np.array(logs + [np.nan] * (self.depth - len(logs)))

    def log_singular_values(self, m: int) -> np.ndarray:
        """ln of the singular values of J_{m<-0}, descending; a product of m layers has hundreds of digits."""
        with mpmath.workdps(DIGITS * 6):
            product = mpmath.eye(len(self.states[0]))
            for slope, (kernel, _) in list(zip(self.slopes, self.blocks, strict=False))[:m]:
                product = mpmath.matrix((slope[:, None] * kernel).T.tolist()) * product
            values = mpmath.svd_r(product, compute_uv=False)
            return np.array(sorted((float(mpmath.log(s)) if s else -np.inf for s in values), reverse=True))

    def log_frobenius(self) -> np.ndarray:
        """ln ||J_{l<-0}||_F, shape (L + 1,)."""
        return np.logaddexp.reduce([2 * self.push(u) for u in np.eye(len(self.states[0]))]) / 2

    def _pulled(self, m: int, v: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        with mpmath.workdps(DIGITS):
            moved = [v]
            for slope, (kernel, _) in list(zip(self.slopes, self.blocks, strict=False))[:m][::-1]:
                moved.append((kernel @ moved[-1]) * slope)
            return np.array([log_norm(v) for v in reversed(moved)]), moved[::-1]

    def _logs(self, along: list[np.ndarray]) -> np.ndarray:
        logs = [log_norm(a) for a in along[: self.depth + 1]]
        return np.array(logs + [np.nan] * (self.depth + 1 - len(logs)))


def _delta(output: np.ndarray, y: Any, loss: str) -> np.ndarray:
    """dL/d(output)."""
    if loss == "squared_error":
        return output - exact(y)
    # softmax - onehot without a difference: the right class is minus the sum of the wrong ones.
    e = _each(lambda z: _exp(z - max(output)), output)
    p = e / sum(e)
    p[y] = -sum(entry for i, entry in enumerate(p) if i != y)
    return p


def correlation(a: Exact, b: Exact) -> tuple[np.ndarray, np.ndarray]:
    """c_l and ln (1 - c_l) of two inputs, shape (L + 1,); NaN where a state is 0 or does not exist."""
    c, log = np.full((2, a.depth + 1), np.nan)
    with mpmath.workdps(DIGITS):
        for l, (s, t) in enumerate(zip(a.states, b.states, strict=False)):
            norms = [mpmath.sqrt(sum(entry * entry for entry in state)) for state in (s, t)]
            if all(norms):
                apart = sum((p / norms[0] - q / norms[1]) ** 2 for p, q in zip(s, t, strict=True)) / 2
                c[l], log[l] = float(1 - apart), float(mpmath.log(apart)) if apart else -np.inf
    return c, log
