"""Plain stacks with every kernel written down, in numpy's float64: what laws without kernels are held against.

None of the library's passes is used, and nothing is compiled but phi and its derivative. Numbers leave no float at the
depths and scales asked for here, so there are no exponents.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from law import depths

from vgjax import activations

Sample = dict[str, Any]


class Drawn:
    """A number of networks, their states and slopes at both inputs.

    Attributes:
        kernels: of every layer, shape ``(networks, out, in)``, stem first.
        states, slopes, active: h, phi'(h) and phi(h), shape ``(networks, inputs, n)``, one a layer.
        head: its kernel.
        largest: slope of phi.
    """

    def __init__(
        self, rng: np.random.Generator, network: dict[str, Any], count: int, scales: dict[str, float], xs: Any
    ):
        phi, orthogonal = activations.get(network["activation"]), network.get("kernel_init") == "orthogonal"
        unit = _haar if orthogonal else _gaussian
        sizes = [network["inputs"], *_widths(network)]
        self.kernels, self.states, self.slopes, self.active = [], [], [], []
        value, slope = _functions(phi)
        self.largest, entering = (
            float(phi.facts.largest_slope),
            np.broadcast_to(np.asarray(xs, float), (count, 2, sizes[0])),
        )
        self.xs = entering
        for fan_in, fan_out in itertools.pairwise(sizes):
            kernel = scales["sigma_w"] * unit(rng, count, fan_out, fan_in)
            bias = scales["sigma_b"] * rng.normal(size=(count, 1, fan_out))
            self.kernels.append(kernel)
            self.states.append(entering @ kernel.transpose(0, 2, 1) + bias)
            entering = value(self.states[-1])
            self.slopes.append(slope(self.states[-1]))
            self.active.append(entering)
        self.head = unit(rng, count, network["outputs"], sizes[-1])

    def pushed(self, u: np.ndarray) -> list[np.ndarray]:
        """J u at every layer, for tangents ``(networks, inputs, k, n)``."""
        found = [u]
        for kernel, slope in zip(self.kernels[1:], self.slopes, strict=False):
            found.append((slope[:, :, None] * found[-1]) @ kernel[:, None].transpose(0, 1, 3, 2))
        return found

    def pulled(self, v: np.ndarray, depth: int) -> list[np.ndarray]:
        """J^T v at layers 0 ... depth, for cotangents ``(networks, inputs, n)`` there."""
        found = [v]
        for layer in range(depth, 0, -1):
            found.insert(0, self.slopes[layer - 1] * (found[0] @ self.kernels[layer]))
        return found


def _widths(network: dict[str, Any]) -> list[int]:
    width = network["width"]
    return [width] * (network["depth"] + 1) if isinstance(width, int) else list(width)


def _gaussian(rng: np.random.Generator, count: int, fan_out: int, fan_in: int) -> np.ndarray:
    return rng.normal(size=(count, fan_out, fan_in)) / np.sqrt(fan_in)


def _haar(rng: np.random.Generator, count: int, fan_out: int, fan_in: int) -> np.ndarray:
    """Orthonormal columns, or rows, of mean square 1 / fan_in."""
    q, r = np.linalg.qr(rng.normal(size=(count, max(fan_out, fan_in), min(fan_out, fan_in))))
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]  # QR's own choice of signs is not uniform
    return q * np.sqrt(fan_out / fan_in) if fan_out > fan_in else q.transpose(0, 2, 1) if fan_out < fan_in else q


def _functions(phi: Any) -> tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]:
    def of(f: Any) -> Callable[..., np.ndarray]:
        def applied(h: np.ndarray) -> np.ndarray:
            with jax.enable_x64(True):
                return np.asarray(f(h))

        return applied

    return of(jax.jit(phi)), of(jax.jit(phi.derivative))


def _log(a: Any) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(a)


def _log_norms(layers: list[np.ndarray]) -> np.ndarray:
    return np.stack([_log(np.sqrt(np.sum(a * a, axis=-1))) for a in layers], axis=-1)


def _unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    z = rng.normal(size=shape)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def readings(name: Any, network: dict[str, Any], count: int, scales: dict[str, float], xs: Any) -> dict[str, Sample]:
    """All groups of readings of some networks, of the same ones."""
    chunk = 4000 if np.max(network["width"]) <= 32 else 250
    parts = [
        _readings(np.random.default_rng([*map(ord, repr(name)), start]), network, min(chunk, count - start), scales, xs)
        for start in range(0, count, chunk)
    ]
    return jax.tree.map(lambda *a: np.concatenate(a), *parts)


def _readings(rng: np.random.Generator, network: dict[str, Any], count: int, scales: dict[str, float], xs: Any) -> Any:
    drawn, widths = Drawn(rng, network, count, scales, xs), _widths(network)
    depth = len(widths) - 1
    u = _unit(rng, count, 2, widths[0])
    u = np.concatenate([u, u[:, :1] + u[:, 1:]], axis=1)
    h = 2 * _log_norms(drawn.states) - np.log(widths)
    log_u = _log_norms(drawn.pushed(np.stack([u, u], axis=1)))
    log_v = np.full((count, 2, 3, depth + 1), np.nan)
    for i, start in enumerate(depths(depth)):
        v = _unit(rng, count, 1, widths[start])
        log_v[:, :, i, : start + 1] = _log_norms(drawn.pulled(np.concatenate([v, v], axis=1), start))
    e = _log_one_minus_c(drawn.states)
    y = rng.normal(size=(count, 2, network["outputs"]))
    output = drawn.active[-1] @ drawn.head.transpose(0, 2, 1)
    return {
        "push": {"h": h, "u": log_u},
        "tangent": {"h": h[:, 0], "u": log_u[:, 0, 0]},
        "pull": {"h": h[:, 0], "v": log_v[:, 0]},
        "pair": {"h": h, "e": e},
        "joint": {"h": h, "u": log_u, "v": log_v},
        "apart": {"h": h[:, 0], "u": log_u[:, 0, :2], "v": log_v[:, 0], "e": e},
        "batch": _flow(drawn, output - y, h),
        "gradient": {
            key: a if key.startswith("W") else a[:, 0] for key, a in _flow(drawn, y * [[[1], [0]]], h).items()
        },
    }


def _log_one_minus_c(states: list[np.ndarray]) -> np.ndarray:
    """ln of half the squared distance of the directions; NaN where there is none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = [h / np.linalg.norm(h, axis=-1, keepdims=True) for h in states]
    return np.stack([_log(np.sum((h[:, 0] - h[:, 1]) ** 2, axis=-1) / 2) for h in unit], axis=-1)


def _flow(drawn: Drawn, of_output: np.ndarray, h: np.ndarray) -> Sample:
    """Gradients of a loss whose gradient at the outputs is given, one an input."""
    depth = len(drawn.states) - 1
    deltas = drawn.pulled(drawn.slopes[-1] * (of_output @ drawn.head), depth)
    kernels = [_of_kernel(d, a) for d, a in zip(deltas[1:], drawn.active, strict=False)]
    biases = [_of_kernel(d, np.ones_like(d[..., :1])) for d in (*deltas, of_output)]
    least = 0.05 * drawn.largest
    return {
        "h": h,
        "d": _log_norms(deltas),
        "slope": np.stack([np.mean(f**2, axis=-1) for f in drawn.slopes[:-1]], axis=-1),
        "flat": np.stack([np.mean(np.abs(f) < least, axis=-1) for f in drawn.slopes[:-1]], axis=-1),
        "W kernel": np.stack(kernels, axis=-1),
        "W bias": np.stack(biases[1:-1], axis=-1),
        "W stem/kernel": _of_kernel(deltas[0], drawn.xs),
        "W stem/bias": biases[0],
        "W head/kernel": _of_kernel(of_output, drawn.active[-1]),
        "W head/bias": biases[-1],
    }


def _of_kernel(deltas: np.ndarray, entering: np.ndarray) -> np.ndarray:
    """ln of the norm of the sum over inputs of the products."""
    total = np.einsum("bxi,bxj->bij", deltas, entering)
    return _log(np.sqrt(np.sum(total**2, axis=(1, 2))))
