"""Independent truth for the tests: plain Flax NNX, numpy and mpmath, and none of the library's own formulas.

Everything here starts from `weights`: one ordinary (W, b) a layer in float64, stem first and head last. Kernels have shape
(fan_in, fan_out), states are row vectors.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import scipy.special
from flax import nnx

Weights = list[tuple[np.ndarray, np.ndarray]]


def weights(parameters: Any, sigma_w: Any = 1.0, sigma_b: Any = 0.0) -> Weights:
    """W = sigma_w Z and b = sigma_b z of stem, every block and head, multiplied out in float64."""
    dtype = parameters.head["kernel"].dtype
    draws = [
        (stage["kernel"][i], stage["bias"][i]) for stage in parameters.stages for i in range(len(stage["kernel"]))
    ]
    # The scales as the network sees them: rounded to its dtype.
    by_layer = [np.broadcast_to(np.asarray(s, dtype), len(draws)).astype(np.float64) for s in (sigma_w, sigma_b)]
    sigmas = [(w, b) for w, b in zip(*by_layer, strict=True)]
    draws = [(parameters.stem["kernel"], parameters.stem["bias"]), *draws]
    scaled = [
        (w * np.asarray(kernel, np.float64), b * np.asarray(bias, np.float64))
        for (kernel, bias), (w, b) in zip(draws, [sigmas[0], *sigmas], strict=True)
    ]
    head = (np.asarray(parameters.head["kernel"], np.float64), np.asarray(parameters.head["bias"], np.float64))
    return [*scaled, head]


def log_norm(a: Any) -> float:
    """ln of the Euclidean norm of all entries."""
    with np.errstate(divide="ignore"):
        return float(np.log(np.linalg.norm(np.asarray(a, np.float64).ravel())))


def user_activation(h: Any) -> Any:
    """An activation that the library does not know: neither odd nor monotone."""
    return h / jnp.sqrt(1 + h * h) + 0.2 * h


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda h: h,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "sigmoid": jax.nn.sigmoid,
    "selu": jax.nn.selu,
    "user": user_activation,
}


# --- a plain Flax NNX network ---------------------------------------------------------------------------------------


class Unrolled(nnx.Module):
    """The same network as a plain chain of `nnx.Linear` layers: one linear layer a weight, phi between them."""

    def __init__(self, weights: Weights, phi: Callable[[Any], Any], dtype: Any = jnp.float64):
        self.phi = phi
        self.layers = nnx.List([linear(kernel, bias, dtype) for kernel, bias in weights])

    def __call__(self, x: Any, nudges: list[Any] | None = None) -> tuple[Any, list[Any]]:
        """Output and all preactivations h^0 ... h^L; a nudge is added to each of them."""
        *hidden, head = self.layers
        states: list[Any] = []
        for i, layer in enumerate(hidden):
            h = layer(x if i == 0 else self.phi(states[-1]))
            states.append(h if nudges is None else h + nudges[i])
        return head(self.phi(states[-1])), states


def linear(kernel: np.ndarray, bias: np.ndarray, dtype: Any) -> nnx.Linear:
    """An `nnx.Linear` that holds these weights."""
    layer = nnx.Linear(*kernel.shape, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.asarray(kernel, dtype)
    layer.bias[...] = jnp.asarray(bias, dtype)
    return layer


LOSSES = {
    "cross_entropy": lambda output, y: jax.scipy.special.logsumexp(output) - output[y],
    "squared_error": lambda output, y: jnp.sum((output - y) ** 2) / 2,
    "cotangent": lambda output, y: jnp.sum(output * y),
}


def gradients(weights: Weights, phi: Callable[[Any], Any], xs: Any, ys: Any, loss: str) -> dict[str, np.ndarray]:
    """ln of every gradient norm of the summed loss of a batch, by `jax.grad` through the unrolled network in float64.

    Returns:
        ``"states"``: ln ||dL/dh^l||, shape (batch, L + 1); ``"kernel"``, ``"bias"``: shape (L,); ``"stem/kernel"`` and
        so on: shape (); ``"log_mean_square"``: of every h^l, shape (batch, L + 1).
    """
    with jax.enable_x64(True):
        graph, state = nnx.split(Unrolled(weights, phi))
        xs = jnp.asarray(np.asarray(xs), jnp.float64)
        ys = jnp.asarray(np.asarray(ys)) if loss == "cross_entropy" else jnp.asarray(np.asarray(ys), jnp.float64)
        nudges = [jnp.zeros((len(xs), len(bias))) for _, bias in weights[:-1]]

        @jax.jit
        @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
        def differentiate(state: Any, nudges: list[Any]) -> tuple[Any, list[Any]]:
            output, states = nnx.merge(graph, state)(xs, nudges)
            return jnp.sum(jax.vmap(LOSSES[loss])(output, ys)), states

        (by_weight, by_state), states = differentiate(state, nudges)
        layers = nnx.to_pure_dict(by_weight)["layers"]
        logs = [{name: log_norm(layers[i][name]) for name in ("kernel", "bias")} for i in range(len(weights))]
        return {
            "states": np.array([[log_norm(g) for g in rows] for rows in zip(*by_state, strict=True)]),
            "log_mean_square": np.array([[2 * log_norm(h) - np.log(h.size) for h in r] for r in zip(*states, strict=True)]),
            **{name: np.array([log[name] for log in logs[1:-1]]) for name in ("kernel", "bias")},
            **{f"stem/{name}": np.array(log) for name, log in logs[0].items()},
            **{f"head/{name}": np.array(log) for name, log in logs[-1].items()},
        }


def jacobians(weights: Weights, phi: Callable[[Any], Any], x: Any) -> dict[tuple[int, int], np.ndarray]:
    """The dense Jacobian dh^m/dh^l for every l <= m, by (m, l): `jax.jacrev` end to end in float64."""
    with jax.enable_x64(True):
        network = Unrolled(weights, phi)
        nudges = [jnp.zeros(len(bias)) for _, bias in weights[:-1]]

        @jax.jit
        @jax.jacrev
        def differentiate(nudges: list[Any]) -> list[Any]:
            return network(jnp.asarray(np.asarray(x), jnp.float64), nudges)[1]

        found = differentiate(nudges)
        return {(m, l): np.asarray(found[m][l]) for m in range(len(nudges)) for l in range(m + 1)}


def forward(weights: Weights, phi: Callable[[Any], Any], x: Any) -> np.ndarray:
    """The output of the unrolled network in float64."""
    with jax.enable_x64(True):
        return np.asarray(Unrolled(weights, phi)(jnp.asarray(np.asarray(x), jnp.float64))[0])


# --- numpy, with every norm taken out as it comes -------------------------------------------------------------------


class Phi(NamedTuple):
    """An activation in float64 numpy.

    Attributes:
        value, slope: phi and phi'.
        small, large: (left, right) slopes of phi near 0 and far out, where it is linear; None where it is not.
    """

    value: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]
    small: tuple[float, float] | None
    large: tuple[float, float] | None


def _tanh_slope(h: np.ndarray) -> np.ndarray:
    return 1 / np.cosh(h) ** 2


def _gelu_slope(h: np.ndarray) -> np.ndarray:
    return scipy.special.ndtr(h) + h * np.exp(-h * h / 2) / np.sqrt(2 * np.pi)


PHIS = {
    "linear": Phi(lambda h: h, np.ones_like, (1, 1), (1, 1)),
    "relu": Phi(lambda h: np.maximum(h, 0), lambda h: (h > 0) * 1.0, (0, 1), (0, 1)),
    "tanh": Phi(np.tanh, _tanh_slope, (1, 1), None),
    "gelu": Phi(lambda h: h * scipy.special.ndtr(h), _gelu_slope, (0.5, 0.5), (0, 1)),
    "sigmoid": Phi(scipy.special.expit, lambda h: scipy.special.expit(h) * scipy.special.expit(-h), None, None),
}


class Logs(NamedTuple):
    """ln of mean squares of h^0 ... h^L, of ||J_{l<-0} u|| and of ||J_{L<-l}^T v||, each of shape (L + 1,)."""

    log_mean_square: np.ndarray
    push: np.ndarray
    pull: np.ndarray


def _taken_out(a: np.ndarray) -> tuple[np.ndarray, int]:
    """The array at norm about 1, and the power of two taken out of it."""
    if not np.any(a):
        return a, 0
    exponent = int(np.frexp(np.max(np.abs(a)))[1])
    return np.ldexp(a, -exponent), exponent


def log_domain(weights: Weights, phi: Phi, x: np.ndarray, u: np.ndarray, v: np.ndarray) -> Logs:
    """States, tangent and cotangent at any depth in float64: value times power of two, phi by its linear ends outside 1e+-100."""
    stem, *blocks, _ = weights
    h, e = np.asarray(x, np.float64) @ stem[0] + stem[1], 0
    u, u_exponent = np.asarray(u, np.float64), 0
    mean_squares, pushes, slopes = [], [], []

    def read() -> None:
        mean_squares.append(2 * (log_norm(h) + e * np.log(2)) - np.log(h.size))
        pushes.append(log_norm(u) + u_exponent * np.log(2))

    for kernel, bias in blocks:
        read()
        if e == 0:
            a, slope = phi.value(h), phi.slope(h)
        else:
            left, right = phi.small if e < 0 else phi.large
            slope = np.where(h > 0, right, left)
            a = slope * h
        slopes.append(slope)
        h = a @ kernel
        if np.any(bias):  # below the range the bias decides alone, above it it has no say
            h, e = (h + np.ldexp(bias, -e), e) if e >= 0 else (np.ldexp(h, e) + bias, 0)
        small, power = _taken_out(h)
        total = e + power
        h, e = (np.ldexp(small, total), 0) if abs(total) < 330 else (small, total)
        u, power = _taken_out((u * slope) @ kernel)
        u_exponent += power
    read()
    v, v_exponent = np.asarray(v, np.float64), 0
    pulls = [log_norm(v)]
    for (kernel, _), slope in zip(reversed(blocks), reversed(slopes), strict=True):
        v, power = _taken_out((kernel @ v) * slope)
        v_exponent += power
        pulls.append(log_norm(v) + v_exponent * np.log(2))
    return Logs(np.array(mean_squares), np.array(pushes), np.array(pulls[::-1]))


# --- mpmath ---------------------------------------------------------------------------------------------------------

DIGITS = 60

MP_ACTIVATIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "relu": (lambda h: max(h, mpmath.mpf(0)), lambda h: mpmath.mpf(h > 0)),
    "sigmoid": (lambda h: 1 / (1 + mpmath.exp(-h)), lambda h: 1 / (2 + mpmath.exp(h) + mpmath.exp(-h))),
    "tanh": (mpmath.tanh, lambda h: mpmath.sech(h) ** 2),
}


def exact_gradients(weights: Weights, activation: str, x: np.ndarray, y: Any, loss: str) -> np.ndarray:
    """ln ||dL/dh^l|| of one example in 60 digits and with unbounded exponents, shape (L + 1,)."""
    phi, slope = MP_ACTIVATIONS[activation]
    with mpmath.workdps(DIGITS):
        a = [mpmath.mpf(float(entry)) for entry in x]
        states = []
        for i, (kernel, bias) in enumerate(weights):
            columns = [[mpmath.mpf(float(w)) for w in column] for column in kernel.T]
            z = [mpmath.fdot(a, column) + mpmath.mpf(float(b)) for column, b in zip(columns, bias, strict=True)]
            if i < len(weights) - 1:
                states.append(z)
                a = [phi(entry) for entry in z]
        delta = _exact_cotangent(z, y, loss)
        logs = []
        for (kernel, _), h in zip(reversed(weights[1:]), reversed(states), strict=True):
            rows = [[mpmath.mpf(float(w)) for w in row] for row in kernel]
            delta = [mpmath.fdot(row, delta) * slope(entry) for row, entry in zip(rows, h, strict=True)]
            logs.append(float(mpmath.log(mpmath.norm(delta))))
        return np.array(logs[::-1])


def _exact_cotangent(output: list[Any], y: Any, loss: str) -> list[Any]:
    if loss == "cotangent":
        return [mpmath.mpf(float(entry)) for entry in y]
    if loss == "squared_error":
        return [z - mpmath.mpf(float(entry)) for z, entry in zip(output, y, strict=True)]
    # softmax - onehot without a difference: the right class is minus the sum of the wrong ones.
    top = max(output)
    e = [mpmath.exp(z - top) for z in output]
    p = [entry / mpmath.fsum(e) for entry in e]
    p[y] = -mpmath.fsum(entry for i, entry in enumerate(p) if i != y)
    return p
