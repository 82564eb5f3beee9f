"""Independent truth for the tests: plain Flax NNX, numpy and mpmath, and none of the library's own formulas.

Everything here starts from `weights`: one ordinary (W, b) a layer in float64, stem first and head last. Kernels have
shape (fan_in, fan_out), states are row vectors.
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

import vgjax as vg

Weights = list[tuple[np.ndarray, np.ndarray]]


def weights(parameters: Any, sigma_w: Any = 1.0, sigma_b: Any = 0.0) -> Weights:
    """W = sigma_w Z and b = sigma_b z of stem, every block and head, multiplied out in float64."""
    dtype = parameters.head["kernel"].dtype
    draws = [(stage["kernel"][i], stage["bias"][i]) for stage in parameters.stages for i in range(len(stage["kernel"]))]
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


def drawn(
    network: Any, sizes: tuple[int, ...], seed: int = 0, dtype: str = "float32", kernel_init: str = "gaussian"
) -> Any:
    """Parameters of an mlp of these sizes (inputs, widths of h^0 ... h^L, outputs), drawn by numpy: no compilation.

    Kernels are Gaussian of variance 1 / fan_in, or orthonormal; biases standard normal, except the head's, which is 0.
    """
    rng = np.random.default_rng(seed)

    def layers(depth: int, fan_in: int, fan_out: int) -> dict[str, np.ndarray]:
        shape = depth, fan_in, fan_out
        kernel = orthonormal(rng, shape) if kernel_init == "orthogonal" else rng.normal(size=shape) / np.sqrt(fan_in)
        return {"kernel": kernel.astype(dtype), "bias": rng.normal(size=(depth, fan_out)).astype(dtype)}

    stem, head = ({name: a[0] for name, a in layers(1, *ends).items()} for ends in (sizes[:2], sizes[-2:]))
    starts = np.cumsum([1, *(stage.depth for stage in network.stages)])
    stages = [layers(stage.depth, *sizes[i : i + 2]) for i, stage in zip(starts[:-1], network.stages, strict=True)]
    parameters = vg.networks.Parameters(stem, tuple(stages), head | {"bias": 0 * head["bias"]}, network)
    return jax.tree.map(jnp.asarray, parameters)


def orthonormal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Kernels with orthonormal rows or columns, whichever are shorter."""
    a = rng.normal(size=shape)
    return np.linalg.qr(a)[0] if shape[-2] >= shape[-1] else np.linalg.qr(a.mT)[0].mT


def log_norm(a: Any) -> float:
    """ln of the Euclidean norm of all entries."""
    with np.errstate(divide="ignore"):
        return float(np.log(np.linalg.norm(np.asarray(a, np.float64).ravel())))


def log_mean_square(a: Any) -> float:
    """ln of the mean of the squares of all entries."""
    return 2 * log_norm(a) - float(np.log(np.size(a)))


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

    def __init__(self, weights: Weights, phi: Callable[[Any], Any]):
        self.phi = phi
        self.layers = nnx.List([linear(kernel, bias) for kernel, bias in weights])

    def __call__(self, x: Any, nudges: list[Any] | None = None) -> tuple[Any, list[Any]]:
        """Output and all preactivations h^0 ... h^L; a nudge is added to each of them."""
        *hidden, head = self.layers
        states: list[Any] = []
        for i, layer in enumerate(hidden):
            h = layer(x if i == 0 else self.phi(states[-1]))
            states.append(h if nudges is None else h + nudges[i])
        return head(self.phi(states[-1])), states


def linear(kernel: Any, bias: Any) -> nnx.Linear:
    """An `nnx.Linear` that holds these weights."""
    return nnx.Linear(
        *kernel.shape,
        dtype=kernel.dtype,
        kernel_init=lambda *_: jnp.asarray(kernel),
        bias_init=lambda *_: jnp.asarray(bias),
        rngs=nnx.Rngs(0),
    )


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
    xs = np.asarray(xs, np.float64)
    ys = np.asarray(ys) if loss == "cross_entropy" else np.asarray(ys, np.float64)
    with jax.enable_x64(True):
        nudges = [np.zeros((len(xs), len(bias))) for _, bias in weights[:-1]]
        (by_weight, by_state), states = jax.tree.map(np.asarray, _differentiate(weights, nudges, xs, ys, phi, loss))
    logs = [(log_norm(kernel), log_norm(bias)) for kernel, bias in by_weight]
    examples = range(len(xs))
    return {
        "states": np.array([[log_norm(g[i]) for g in by_state] for i in examples]),
        "log_mean_square": np.array([[log_mean_square(h[i]) for h in states] for i in examples]),
        "kernel": np.array([kernel for kernel, _ in logs[1:-1]]),
        "bias": np.array([bias for _, bias in logs[1:-1]]),
        "stem/kernel": logs[0][0],
        "stem/bias": logs[0][1],
        "head/kernel": logs[-1][0],
        "head/bias": logs[-1][1],
    }


@functools.partial(jax.jit, static_argnums=(4, 5))
def _differentiate(weights: Weights, nudges: list[Any], xs: Any, ys: Any, phi: Callable[[Any], Any], loss: str) -> Any:
    def total(weights: Weights, nudges: list[Any]) -> tuple[Any, list[Any]]:
        output, states = Unrolled(weights, phi)(xs, nudges)
        return jnp.sum(jax.vmap(LOSSES[loss])(output, ys)), states

    return jax.grad(total, argnums=(0, 1), has_aux=True)(weights, nudges)


def jacobians(weights: Weights, phi: Callable[[Any], Any], x: Any) -> dict[tuple[int, int], np.ndarray]:
    """The dense Jacobian dh^m/dh^l for every l <= m, by (m, l): `jax.jacrev` end to end in float64."""
    with jax.enable_x64(True):
        nudges = [np.zeros(len(bias)) for _, bias in weights[:-1]]

        @jax.jit
        @jax.jacrev
        def differentiate(nudges: list[Any]) -> list[Any]:
            return Unrolled(weights, phi)(np.asarray(x, np.float64), nudges)[1]

        found = jax.tree.map(np.asarray, differentiate(nudges))
    return {(m, l): found[m][l] for m in range(len(nudges)) for l in range(m + 1)}


def forward(weights: Weights, phi: Callable[[Any], Any], x: Any) -> np.ndarray:
    """The output of the unrolled network in float64."""
    with jax.enable_x64(True):
        return np.asarray(Unrolled(weights, phi)(np.asarray(x, np.float64))[0])


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
    """States, tangent and cotangent in float64, powers of two taken out; phi by its linear ends far out."""
    stem, *blocks, _ = weights
    h, e = np.asarray(x, np.float64) @ stem[0] + stem[1], 0
    u, u_exponent = np.asarray(u, np.float64), 0
    mean_squares, pushes, slopes = [], [], []

    def read() -> None:
        mean_squares.append(log_mean_square(h) + 2 * e * np.log(2))
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
