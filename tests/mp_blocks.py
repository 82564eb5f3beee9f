"""Networks of blocks that are more than ``phi(h) W + b``, each with its formula in mpmath: a user's own, and the
library's residual, normalized, attentive and recurrent ones."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
from flax import nnx
from mp_activations import ACTIVATIONS
from mp_network import Block, Exact, each, exact
from mpmath import mpf

import vgjax as vg

WIDTH, DEPTH, INPUTS, OUTPUTS, TOKENS = 4, 10, 3, 2, 3
Tree = dict[str, np.ndarray]


class Twin(NamedTuple):
    """A network and its formulas.

    Attributes:
        network: made by the library.
        stem, block, head: ``(parameters by path, state or input, what the layer reads) -> state``, flat; None for none.
        driven: whether a block reads the input.
        ruled: as for `Case`.
    """

    network: Callable[[], Any]
    stem: Callable[..., Any] | None
    block: Callable[..., Any]
    head: Callable[..., Any] | None
    driven: bool = False
    ruled: tuple[bool, bool] = (True, True)


# --- a user's own ---------------------------------------------------------------------------------------------------


class _TwoKernels(nnx.Module):
    """What the blocks below share: two square kernels."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        draw = nnx.initializers.normal(1 / np.sqrt(width))
        self.a, self.b = (nnx.Param(draw(rngs.params(), (width, width), jnp.float32)) for _ in "ab")


class Gate(_TwoKernels):
    """(h sigmoid(h A)) B: a degree of 1 at both ends, with another slope at each."""

    def __call__(self, h: jax.Array) -> jax.Array:
        return jnp.dot(h * jax.nn.sigmoid(jnp.dot(h, self.a[...])), self.b[...])


class Product(_TwoKernels):
    """(h A) (h B): a degree of 2 at both ends."""

    def __call__(self, h: jax.Array) -> jax.Array:
        return jnp.dot(h, self.a[...]) * jnp.dot(h, self.b[...])


class Inverse(_TwoKernels):
    """h A / (1 + |h B|^2): a degree of 1 at zero and of -1 far out."""

    def __call__(self, h: jax.Array) -> jax.Array:
        return jnp.dot(h, self.a[...]) / (1 + jnp.sum(jnp.dot(h, self.b[...]) ** 2))


def _own(block: type[nnx.Module], f: Callable[[Tree, np.ndarray], np.ndarray]) -> Twin:
    network = lambda: vg.stack(block, WIDTH, depth=DEPTH, input_shape=WIDTH)  # noqa: E731
    return Twin(network, None, lambda p, h, _: f(p, h), None)


# --- formulas -------------------------------------------------------------------------------------------------------


_sigmoid, _tanh = ACTIVATIONS["sigmoid"].value, ACTIVATIONS["tanh"].value


def _affine(p: Tree, h: np.ndarray, place: str = "") -> np.ndarray:
    return h @ p[f"{place}kernel"] + p[f"{place}bias"]


def _relu(h: np.ndarray) -> np.ndarray:
    return each(ACTIVATIONS["relu"].value, h)


def _normalized(p: Tree, h: np.ndarray, axis: int, epsilon: float) -> np.ndarray:
    count = h.shape[axis]
    centered = h - h.sum(axis=axis, keepdims=True) / count
    variance = (centered**2).sum(axis=axis, keepdims=True) / count + mpf(epsilon)
    return p["before/norm/scale"] * centered / each(mpmath.sqrt, variance) + p["before/norm/bias"]


def _layer_normed(p: Tree, h: np.ndarray, _: Any) -> np.ndarray:
    return _affine(p, _relu(_normalized(p, h, 0, float(np.float32(1e-6)))))


def _batch(f: Callable[[Tree, np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda p, h, _: f(p, h.reshape(TOKENS, -1)).ravel()


def _batch_normed(p: Tree, h: np.ndarray) -> np.ndarray:
    return _affine(p, _relu(_normalized(p, h, 0, 0.0)))


def _attention(p: Tree, h: np.ndarray) -> np.ndarray:
    heads = []
    query, key, value, out = (p[f"attention/{name}/kernel"] for name in ("query", "key", "value", "out"))
    for i in range(query.shape[1]):
        q, k, v = h @ query[:, i], h @ key[:, i], h @ value[:, i]
        logits = q @ k.T / mpmath.sqrt(query.shape[2])
        weights = each(mpmath.exp, logits - logits.max(axis=1, keepdims=True))
        heads.append(weights / weights.sum(axis=1, keepdims=True) @ v @ out[i])
    return sum(heads)


def _lstm(p: Tree, state: np.ndarray, x: np.ndarray) -> np.ndarray:
    h, c = np.split(state, 2)
    i, f, g, o = np.split(h @ p["kernel"] + x @ p["input_kernel"] + p["bias"], 4)
    c = each(_sigmoid, f + 1) * c + each(_sigmoid, i) * each(_tanh, g)
    return np.concatenate([each(_sigmoid, o) * each(_tanh, c), c])


def _diagonal(p: Tree, pair: np.ndarray, x: np.ndarray) -> np.ndarray:
    def times(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return a * c - b * d, a * d + b * c

    size, phase = each(mpmath.exp, -each(mpmath.exp, p["log_decay"])), p["phase"]
    kept = times(size * each(mpmath.cos, phase), size * each(mpmath.sin, phase), *np.split(pair, 2))
    new = times(*p["gain"], *np.split(x @ p["input_kernel"], 2))
    return np.concatenate([kept[0] + new[0], kept[1] + new[1]])


def _min_gru(p: Tree, h: np.ndarray, x: np.ndarray) -> np.ndarray:
    z, n = np.split(x @ p["input_kernel"] + p["bias"], 2)
    return each(_sigmoid, -z) * h + each(_sigmoid, z) * n


def _zeros(size: int) -> Callable[..., np.ndarray]:
    return lambda p, x, _: np.array([mpf(0)] * size, dtype=object)


_ENDS: dict[str, Any] = {"inputs": INPUTS, "outputs": OUTPUTS}
_MLP: dict[str, Any] = _ENDS | {"width": WIDTH, "depth": DEPTH, "activation": "relu"}

TWINS: dict[str, Twin] = {
    "a user's gate h * sigmoid(A h)": _own(Gate, lambda p, h: (h * each(_sigmoid, h @ p["a"])) @ p["b"]),
    "a user's product (A h) * (B h)": _own(Product, lambda p, h: (h @ p["a"]) * (h @ p["b"])),
    "a user's A h / (1 + norm(B h)^2)": _own(Inverse, lambda p, h: (h @ p["a"]) / (1 + sum((h @ p["b"]) ** 2))),
    "residual, ReLU": Twin(
        lambda: vg.stack(vg.residual(vg.dense(WIDTH, WIDTH, "relu")), depth=DEPTH, input_shape=WIDTH),
        None,
        lambda p, h, _: h + _affine(p, _relu(h), "branch/"),
        None,
    ),
    "residual, degree 2": Twin(
        lambda: vg.stack(
            vg.residual(vg.dense(WIDTH, WIDTH, ACTIVATIONS["odd square"].library)), depth=DEPTH, input_shape=WIDTH
        ),
        None,
        lambda p, h, _: h + _affine(p, h * abs(h), "branch/"),
        None,
    ),
    "layer norm": Twin(
        lambda: vg.mlp(norm="layer", **_MLP), lambda p, x, _: _affine(p, x), _layer_normed, _layer_normed
    ),
    "batch norm": Twin(
        lambda: vg.mlp(norm=vg.norm("batch", batch=TOKENS, epsilon=0), **_MLP),
        _batch(_affine),
        _batch(_batch_normed),
        _batch(_batch_normed),
    ),
    "attention": Twin(
        lambda: vg.stack(vg.blocks.Attention, WIDTH, 2, depth=5, input_shape=(TOKENS, WIDTH)),
        None,
        _batch(_attention),
        None,
        ruled=(True, False),  # one token takes all, and what the others leave underflows inside the block
    ),
    "LSTM": Twin(
        lambda: vg.lstm(width=WIDTH, depth=DEPTH, **_ENDS),
        _zeros(2 * WIDTH),
        _lstm,
        lambda p, state, _: _affine(p, np.split(state, 2)[0]),
        driven=True,
    ),
    "LRU": Twin(
        lambda: vg.networks.diagonal_rnn(width=WIDTH, depth=DEPTH, radii=(0.2, 0.9), **_ENDS),
        _zeros(2 * WIDTH),
        _diagonal,
        lambda p, state, _: _affine(p, state),
        driven=True,
    ),
    "minGRU": Twin(
        lambda: vg.networks.min_gru(width=WIDTH, depth=DEPTH, **_ENDS),
        _zeros(WIDTH),
        _min_gru,
        lambda p, state, _: _affine(p, state),
        driven=True,
    ),
}


def network(twin: Twin, ordinary: Any, x: Any, wobble: float = 0.0, seed: int = 0) -> Exact:
    """The network of ordinary parameters (`vgjax.absorb_scales`) at an input, each moved by ``wobble``."""
    rng = np.random.default_rng(seed) if wobble else None

    def layer(f: Callable[..., Any] | None, tree: Any, reads: Any = None) -> Block | None:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        by_path = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
        return f and Block(lambda p, h: f(p, h, reads), {path: exact(a, wobble, rng) for path, a in by_path.items()})

    (stage,), (spec,) = ordinary.stages, ordinary.network.stages
    blocks = []
    for l in range(spec.depth):
        tree = stage if spec.tied else jax.tree.map(lambda a, l=l: a[l], stage)
        blocks.append(layer(twin.block, tree, exact(x[l]) if twin.driven else None))
    return Exact(layer(twin.stem, ordinary.stem), blocks, layer(twin.head, ordinary.head), x, wobble=wobble, seed=seed)
