"""Forty small models of which it is known what is wrong with them, and why: by how they are made, not by measuring.

chi is the growth of the mean squared gradient a layer; L layers change the gradient by L |ln chi| / 2 nats. What takes
or adds more than 5 of them, and what chance does at this width, is sick; what stays well below is healthy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

KEY = jax.random.key(0)
WIDTH, CLASSES, EXAMPLES = 64, 10, 16
X = jax.random.normal(jax.random.key(7), (EXAMPLES, WIDTH))
Y = jnp.arange(EXAMPLES) % CLASSES


@dataclass(frozen=True)
class Sick:
    """A model with its truth.

    Attributes:
        make: model, batch, loss, as `vgjax.diagnose` takes them.
        word: what it is.
        why: how that is known.
        at: a part of the name of the layer that is to blame; empty where none is.
    """

    make: Callable[[], tuple[Any, Any, Any]]
    word: str
    why: str
    at: str = ""


def cross_entropy(logits: Any, labels: Any) -> Any:
    """In float32, whatever the model computes in."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels).mean()


def gaussian(key: Any, *shape: int) -> Any:
    """A kernel of unit gain."""
    return jax.random.normal(key, shape) / np.sqrt(np.prod(shape[:-1]))


def orthogonal(key: Any, n: int) -> Any:
    """A kernel that keeps every norm."""
    return jnp.linalg.qr(jax.random.normal(key, (n, n)))[0]


# --- plain functions: stacks ----------------------------------------------------------------------------------------


def stack(
    activation: Callable[[Any], Any],
    sigma_w: float,
    depth: int,
    *,
    sigma_b: float = 0.0,
    draw: Callable[..., Any] | None = None,
    bias_at: tuple[int, float] | None = None,
    kernel_at: tuple[int, float] | None = None,
    head: float = 1.0,
    dtype: Any = jnp.float32,
    loss_scale: float = 1.0,
    detach: int | None = None,
) -> tuple[Any, Any, Any]:
    """A fully connected network as a list of layers.

    Args:
        activation, sigma_w, sigma_b, depth: as in vgjax.
        draw: of the kernels, if not Gaussian.
        bias_at, kernel_at: (layer, what is added to its bias) and (layer, what multiplies its kernel).
        head: what multiplies the last kernel.
        dtype: of parameters and states.
        loss_scale: multiplies the loss.
        detach: the layer behind which the gradient is stopped.
    """
    keys = jax.random.split(KEY, 2 * depth + 1)
    layers = []
    for i in range(depth):
        kernel = sigma_w * (draw(keys[i], WIDTH) if draw else gaussian(keys[i], WIDTH, WIDTH))
        bias = sigma_b * jax.random.normal(keys[depth + i], (WIDTH,))
        layers.append({"kernel": kernel, "bias": bias})
    if bias_at:
        layers[bias_at[0]]["bias"] += bias_at[1]
    if kernel_at:
        layers[kernel_at[0]]["kernel"] *= kernel_at[1]
    params = {"layers": layers, "head": head * gaussian(keys[-1], WIDTH, CLASSES)}
    params = jax.tree.map(lambda a: a.astype(dtype), params)

    def network(params: Any, x: Any) -> Any:
        h = x.astype(dtype)
        for i, layer in enumerate(params["layers"]):
            h = activation(h @ layer["kernel"] + layer["bias"])
            h = lax.stop_gradient(h) if i == detach else h
        return h @ params["head"]

    return (network, params), (X, Y), lambda logits, labels: loss_scale * cross_entropy(logits, labels)


def residual(branch: Callable[[Any, Any], Any], depth: int, **extra: Callable[[int, Any], Any]) -> tuple[Any, Any, Any]:
    """A stream that every layer adds to; ``extra`` makes parameters beside the kernel, of layer number and key."""
    keys = jax.random.split(KEY, depth + 1)
    layers = [
        {"kernel": gaussian(keys[i], WIDTH, WIDTH), **{name: make(i, keys[i]) for name, make in extra.items()}}
        for i in range(depth)
    ]
    params = {"layers": layers, "head": gaussian(keys[-1], WIDTH, CLASSES)}

    def network(params: Any, x: Any) -> Any:
        h = x
        for layer in params["layers"]:
            h = h + branch(layer, h)
        return standardized(h) @ params["head"]

    return (network, params), (X, Y), cross_entropy


def standardized(h: Any, axis: int = -1) -> Any:
    """Layer norm (or batch norm, along axis 0) without parameters."""
    return (h - h.mean(axis, keepdims=True)) * lax.rsqrt(h.var(axis, keepdims=True) + 1e-6)


def scanned(sigma_w: float, depth: int) -> tuple[Any, Any, Any]:
    """The layers of a ReLU network stacked, for `lax.scan`."""
    params = {"kernels": sigma_w * jax.vmap(lambda k: gaussian(k, WIDTH, WIDTH))(jax.random.split(KEY, depth))}
    params["head"] = gaussian(jax.random.key(1), WIDTH, CLASSES)

    def network(params: Any, x: Any) -> Any:
        h, _ = lax.scan(lambda h, kernel: (jax.nn.relu(h @ kernel), None), x, params["kernels"])
        return h @ params["head"]

    return (network, params), (X, Y), cross_entropy


def batch_normed(depth: int) -> tuple[Any, Any, Any]:
    """ReLU layers with batch norm in training mode."""
    keys = jax.random.split(KEY, depth + 1)
    params = {"layers": [gaussian(key, WIDTH, WIDTH) for key in keys[:-1]], "head": gaussian(keys[-1], WIDTH, CLASSES)}

    def network(params: Any, x: Any) -> Any:
        h = x
        for kernel in params["layers"]:
            h = jax.nn.relu(standardized(h @ kernel, 0))
        return h @ params["head"]

    return (network, params), (X, Y), cross_entropy


def dense_net(depth: int) -> tuple[Any, Any, Any]:
    """Every layer keeps what came before and adds eight channels."""
    widths = [32 + 8 * i for i in range(depth + 1)]
    keys = jax.random.split(KEY, depth + 1)
    params = {"layers": [np.sqrt(2) * gaussian(keys[i], widths[i], 8) for i in range(depth)]}
    params["head"] = gaussian(keys[-1], widths[-1], CLASSES)

    def network(params: Any, x: Any) -> Any:
        h = x[:, :32]
        for kernel in params["layers"]:
            h = jnp.concatenate([h, jax.nn.relu(h @ kernel)], axis=-1)
        return h @ params["head"]

    return (network, params), (X, Y), cross_entropy


def graph_net(depth: int, gain: float, *, keep: bool) -> tuple[Any, Any, Any]:
    """Nodes on a ring take the mean of themselves and their neighbours; ``keep``: and add it to what they are."""
    nodes = 12
    ring = (jnp.eye(nodes) + jnp.roll(jnp.eye(nodes), 1, 0) + jnp.roll(jnp.eye(nodes), -1, 0)) / 3
    keys = jax.random.split(KEY, depth + 1)
    params = {"layers": [gain * gaussian(key, 32, 32) for key in keys[:-1]], "head": gaussian(keys[-1], 32, CLASSES)}

    def network(params: Any, x: Any) -> Any:
        h = x.reshape(nodes, 32)
        for kernel in params["layers"]:
            new = jax.nn.relu(ring @ (h @ kernel))
            h = h + new if keep else new
        return h @ params["head"]

    x = jax.random.normal(KEY, (nodes * 32,))
    return (network, params), (x, jnp.arange(nodes) % CLASSES), cross_entropy


# --- plain functions: time ------------------------------------------------------------------------------------------


def recurrence(step: Callable[[Any, Any, Any], Any], kernel: Any, steps: int, *, offset: float = 0.0) -> Any:
    """One kernel at every step; the loss sees the last."""
    n = kernel.shape[0]
    params = {"recurrent": kernel, "input": 0.1 * gaussian(KEY, 8, n), "head": gaussian(KEY, n, CLASSES)}

    def network(params: Any, xs: Any) -> Any:
        start = jnp.zeros((EXAMPLES, n))
        h, _ = lax.scan(lambda h, x: (step(params["recurrent"], h, x @ params["input"]), None), start, xs)
        return h @ params["head"]

    xs = offset + jax.random.normal(KEY, (steps, EXAMPLES, 8))
    return (network, params), (xs, Y), cross_entropy


def irnn(steps: int) -> Any:
    """ReLU with the identity as its kernel, and inputs that keep every unit on."""
    made, (xs, labels), loss = recurrence(lambda w, h, x: jax.nn.relu(h @ w + jnp.abs(x)), jnp.eye(32), steps)
    return made, (xs, labels), loss


def lstm(steps: int, forget_bias: float) -> Any:
    """Small kernels, so that gates stand at their biases."""
    n = 32
    keys = jax.random.split(KEY, 4)
    params = {
        "hidden": 0.05 * gaussian(keys[0], n, 4 * n),
        "input": gaussian(keys[1], 8, 4 * n),
        "bias": jnp.repeat(jnp.array([0.0, forget_bias, 0.0, 0.0]), n),
        "head": gaussian(keys[2], n, CLASSES),
    }

    def step(params: Any, carry: Any, x: Any) -> Any:
        h, c = carry
        i, f, g, o = jnp.split(h @ params["hidden"] + x @ params["input"] + params["bias"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    def network(params: Any, xs: Any) -> Any:
        zero = jnp.zeros((EXAMPLES, n))
        (h, _), _ = lax.scan(lambda carry, x: step(params, carry, x), (zero, zero), xs)
        return h @ params["head"]

    return (network, params), (0.3 * jax.random.normal(keys[3], (steps, EXAMPLES, 8)), Y), cross_entropy


def ode(field: Callable[[Any, Any], Any], steps: int, dt: float) -> Any:
    """Euler steps of dh/dt = field(kernel, h)."""
    params = {"kernel": gaussian(KEY, WIDTH, WIDTH), "head": gaussian(jax.random.key(1), WIDTH, CLASSES)}

    def network(params: Any, x: Any) -> Any:
        h, _ = lax.scan(lambda h, _: (h + dt * field(params["kernel"], h), None), x, None, length=steps)
        return h @ params["head"]

    return (network, params), (X, Y), cross_entropy


def transformer(depth: int, *, post: bool, tokens: bool = False, branch: float = 1.0) -> Any:
    """Attention and a feed-forward layer a block, layer norms in front of the branches or behind the sums."""
    d, length = 32, 8
    keys = iter(jax.random.split(KEY, 6 * depth + 2))
    names = {"q": (d, d), "k": (d, d), "v": (d, d), "o": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}
    blocks = [{name: gaussian(next(keys), *shape) for name, shape in names.items()} for _ in range(depth)]
    params = {
        "blocks": blocks,
        "embedding": jax.random.normal(next(keys), (20, d)),
        "head": gaussian(next(keys), d, 10),
    }

    def attention(p: Any, h: Any) -> Any:
        scores = (h @ p["q"]) @ jnp.swapaxes(h @ p["k"], -1, -2) / np.sqrt(d)
        return branch * jax.nn.softmax(scores) @ (h @ p["v"]) @ p["o"]

    def feed_forward(p: Any, h: Any) -> Any:
        return branch * jax.nn.gelu(h @ p["up"]) @ p["down"]

    def network(params: Any, x: Any) -> Any:
        h = params["embedding"][x] if tokens else x
        for p in params["blocks"]:
            for part in (attention, feed_forward):
                h = standardized(h + part(p, h)) if post else h + part(p, standardized(h))
        return standardized(h).mean(1) @ params["head"]

    x = jnp.arange(EXAMPLES * length).reshape(EXAMPLES, length) % 20
    x = x if tokens else jax.random.normal(KEY, (EXAMPLES, length, d))
    if not tokens:
        del params["embedding"]
    return (network, params), (x, Y), cross_entropy


def root_at_zero() -> Any:
    """A root whose slope at 0 is infinite, though `where` chooses another value there."""

    def root(h: Any) -> Any:
        return jnp.where(h > 0, jnp.sqrt(jnp.maximum(h, 0.0)), 0.0)

    return stack(root, np.sqrt(2), 6)


# --- modules --------------------------------------------------------------------------------------------------------


class Mlp(nnx.Module):
    """Of NNX: linear layers with Flax's own draws."""

    def __init__(self, depth: int, activation: Any, rngs: nnx.Rngs, **options: Any) -> None:
        self.layers = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs, **options) for _ in range(depth)])
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.head(x)


class ConvNet(nnx.Module):
    """Of NNX: convolutions, batch norm in training mode, dropout."""

    def __init__(self, depth: int, rngs: nnx.Rngs) -> None:
        he = jax.nn.initializers.he_normal()
        self.first = nnx.Conv(1, 16, (3, 3), kernel_init=he, rngs=rngs)
        self.convs = nnx.List([nnx.Conv(16, 16, (3, 3), kernel_init=he, rngs=rngs) for _ in range(depth)])
        self.norms = nnx.List([nnx.BatchNorm(16, rngs=rngs) for _ in range(depth)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(16, CLASSES, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        h = self.first(x.reshape(-1, 8, 8, 1))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = jax.nn.relu(norm(conv(h)))
        return self.head(self.dropout(h.mean((1, 2))))


class UNet(nnx.Module):
    """Of NNX: down twice, up twice, with skips."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        he = jax.nn.initializers.he_normal()
        sizes = ((1, 8), (8, 16), (16, 16), (32, 8), (16, 8))
        self.convs = nnx.List([nnx.Conv(a, b, (3, 3), kernel_init=he, rngs=rngs) for a, b in sizes])
        self.head = nnx.Conv(8, 1, (1, 1), rngs=rngs)

    def __call__(self, x: Any) -> Any:
        down, lower, bottom, up, upper = self.convs
        pool = lambda h: nnx.avg_pool(h, (2, 2), strides=(2, 2))  # noqa: E731
        double = lambda h: jnp.repeat(jnp.repeat(h, 2, 1), 2, 2)  # noqa: E731
        first = jax.nn.relu(down(x.reshape(-1, 8, 8, 1)))
        second = jax.nn.relu(lower(pool(first)))
        third = jax.nn.relu(bottom(pool(second)))
        h = jax.nn.relu(up(jnp.concatenate([second, double(third)], -1)))
        return self.head(jax.nn.relu(upper(jnp.concatenate([first, double(h)], -1))))


class ZeroBranches(nnx.Module):
    """Of NNX: residual blocks whose last kernel is zero at the start, as Fixup and adaLN-zero have it."""

    def __init__(self, depth: int, rngs: nnx.Rngs) -> None:
        zeros = jax.nn.initializers.zeros
        self.ins = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(depth)])
        self.outs = nnx.List([nnx.Linear(WIDTH, WIDTH, kernel_init=zeros, rngs=rngs) for _ in range(depth)])
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for into, out in zip(self.ins, self.outs, strict=True):
            x = x + out(jax.nn.relu(into(x)))
        return self.head(x)


class LinenMlp(flax.linen.Module):
    """Of Linen: dense layers and an activation."""

    depth: int
    activation: Any
    kernel_init: Any = jax.nn.initializers.lecun_normal()
    zero_head: bool = False

    @flax.linen.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(self.depth):
            x = self.activation(flax.linen.Dense(WIDTH, kernel_init=self.kernel_init)(x))
        init = jax.nn.initializers.zeros if self.zero_head else jax.nn.initializers.lecun_normal()
        return flax.linen.Dense(CLASSES, kernel_init=init, name="logits")(x)


class LinenResNet(flax.linen.Module):
    """Of Linen: layer norm, dense, ReLU, dense in every branch."""

    depth: int

    @flax.linen.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(self.depth):
            h = flax.linen.Dense(WIDTH)(flax.linen.LayerNorm()(x))
            x = x + flax.linen.Dense(WIDTH)(jax.nn.relu(h))
        return flax.linen.Dense(CLASSES)(flax.linen.LayerNorm()(x))


class LinenLstm(flax.linen.Module):
    """Of Linen: a recurrence over the second axis, read at its end."""

    @flax.linen.compact
    def __call__(self, x: Any) -> Any:
        return flax.linen.Dense(CLASSES)(flax.linen.RNN(flax.linen.OptimizedLSTMCell(32))(x)[:, -1])


def linen(module: flax.linen.Module, x: Any = X) -> Any:
    """The pair, its batch and its loss."""
    return (module, module.init(KEY, x)), (x, Y), cross_entropy


def with_loss(module: Any) -> Any:
    """A module of NNX, its batch and its loss."""
    return module, (X, Y), cross_entropy


relu, tanh, sigmoid = jax.nn.relu, jnp.tanh, jax.nn.sigmoid
HE = float(np.sqrt(2))
he_normal = jax.nn.initializers.he_normal()
linear: Callable[[Any], Any] = lambda h: h  # noqa: E731

MODELS: dict[str, Sick] = {
    # healthy
    "ReLU at He's scale": Sick(lambda: stack(relu, HE, 30), "healthy", "chi = sigma_w^2 / 2 = 1"),
    "the same, loss x 1e-5": Sick(lambda: stack(relu, HE, 30, loss_scale=1e-5), "healthy", "a scale is no fault"),
    "the same, loss x 1e5": Sick(lambda: stack(relu, HE, 30, loss_scale=1e5), "healthy", "a scale is no fault"),
    "the same in bfloat16": Sick(lambda: stack(relu, HE, 20, dtype=jnp.bfloat16), "healthy", "chi = 1"),
    "tanh at the edge": Sick(
        lambda: stack(tanh, 1.0, 30), "healthy", "sigma_w = 1 is critical: powers of depth, about ln 30 / 2 nats"
    ),
    "orthogonal, linear": Sick(lambda: stack(linear, 1.0, 60, draw=orthogonal), "healthy", "every norm is kept"),
    "pre-LN branches": Sick(
        lambda: residual(lambda p, h: relu(standardized(h) @ p["kernel"]), 30),
        "healthy",
        "branch l is 1 / sqrt(l) of the stream: a power of depth",
    ),
    "ReZero": Sick(
        lambda: residual(lambda p, h: p["alpha"] * relu(h @ p["kernel"]), 20, alpha=lambda i, k: jnp.zeros(())),
        "healthy",
        "the map is the identity",
    ),
    "DenseNet": Sick(lambda: dense_net(8), "healthy", "what came before is kept: the gradient is at least what it was"),
    "graph network with skips": Sick(
        lambda: graph_net(6, 0.5, keep=True), "healthy", "a factor of at most 1.5 a layer, 6 layers: 2.4 nats"
    ),
    "IRNN": Sick(lambda: irnn(50), "healthy", "the identity at every step: all units are on"),
    "LSTM, forget bias 6": Sick(lambda: lstm(40, 6.0), "healthy", "the cell keeps .9975 a step: .1 nats"),
    "neural ODE": Sick(
        lambda: ode(lambda w, h: tanh(h @ w), 50, 0.02), "healthy", "|ln gain| is below the integral of ||J||, 2"
    ),
    "transformer, pre-LN": Sick(lambda: transformer(4, post=False, tokens=True), "healthy", "as pre-LN branches"),
    "transformer, post-LN, small branches": Sick(
        lambda: transformer(4, post=True, branch=0.1), "healthy", "LN(h + a tenth) is close to the identity"
    ),
    "NNX convolutions": Sick(
        lambda: with_loss(ConvNet(4, nnx.Rngs(0))), "healthy", "batch norm takes .19 nats a layer at most: .8"
    ),
    "NNX U-Net": Sick(
        lambda: (UNet(nnx.Rngs(0)), X, lambda image: (image**2).mean()), "healthy", "He's scale, 5 layers"
    ),
    "NNX zero branches": Sick(lambda: with_loss(ZeroBranches(12, nnx.Rngs(0))), "healthy", "the map is the identity"),
    "Linen residual": Sick(lambda: linen(LinenResNet(10)), "healthy", "as pre-LN branches"),
    # vanishing
    "ReLU at LeCun's scale": Sick(lambda: stack(relu, 1.0, 30), "vanishing", "chi = 1/2: 10.4 nats"),
    "the same, scanned": Sick(lambda: scanned(1.0, 30), "vanishing", "chi = 1/2: 10.4 nats"),
    "ReLU below He's, loss x 1e5": Sick(
        lambda: stack(relu, 0.8, 30, loss_scale=1e5), "vanishing", "chi = .32: 17 nats, whatever the loss"
    ),
    "sigmoid": Sick(lambda: stack(sigmoid, 1.0, 10), "vanishing", "slopes are at most 1/4: 13 nats at least"),
    "tanh, all inputs become one": Sick(
        lambda: stack(tanh, 0.5, 20, sigma_b=1.0), "vanishing", "ordered phase: chi < sigma_w^2 = 1/4, 13 nats at least"
    ),
    "one small kernel": Sick(
        lambda: stack(linear, 1.0, 12, draw=orthogonal, kernel_at=(5, 1e-4)), "vanishing", "9.2 nats in one", "layers/5"
    ),
    "one saturated layer": Sick(
        lambda: stack(tanh, 1.0, 12, bias_at=(5, 6.0)), "vanishing", "tanh'(6) = 2.5e-5: 8 nats or so", "layers/5"
    ),
    "RNN, orthogonal x .8": Sick(
        lambda: recurrence(lambda w, h, x: tanh(h @ w + x), 0.8 * orthogonal(KEY, 32), 50),
        "vanishing",
        "at most .8 a step: 11 nats at least",
    ),
    "LSTM of Linen": Sick(
        lambda: linen(LinenLstm(), jax.random.normal(KEY, (EXAMPLES, 40, 8))),
        "vanishing",
        "Flax's forget gate stands at 1/2: about 28 nats",
    ),
    "stiff ODE": Sick(lambda: ode(lambda w, h: -h, 50, 0.4), "vanishing", "a factor of .6 a step: 26 nats"),
    "deep graph network": Sick(
        lambda: graph_net(30, 1.0, keep=False), "vanishing", "chi <= 1/2, means of neighbours besides: 10.4 nats"
    ),
    "NNX multilayer perceptron": Sick(
        lambda: with_loss(Mlp(24, relu, nnx.Rngs(0))), "vanishing", "Flax draws at LeCun's scale: 8.3 nats"
    ),
    # exploding
    "ReLU at twice LeCun's, loss x 1e-5": Sick(
        lambda: stack(relu, 2.0, 30, loss_scale=1e-5), "exploding", "chi = 2: 10.4 nats, whatever the loss"
    ),
    "batch norm, 60 layers": Sick(
        lambda: batch_normed(60), "exploding", "chi = pi / (pi - 1) (Yang et al. 2019): 11.5 nats"
    ),
    "ReLU in bfloat16": Sick(
        lambda: stack(relu, 4.0, 100, dtype=jnp.bfloat16),
        "exploding",
        "2.83 a layer passes 3.4e38 at layer 86 at latest",
    ),
    "ReLU in float16": Sick(
        lambda: stack(relu, 2.0, 45, dtype=jnp.float16), "exploding", "1.41 a layer passes 65504 at layer 33 at latest"
    ),
    # dead
    "one dead ReLU layer": Sick(lambda: stack(relu, HE, 10, bias_at=(4, -100.0)), "dead", "no unit is on", "layers/4"),
    "detached in the middle": Sick(
        lambda: stack(relu, HE, 10, detach=4), "dead", "stop_gradient behind layer 4", "layers/4"
    ),
    # zero by construction
    "Linen zero head": Sick(
        lambda: linen(LinenMlp(8, relu, he_normal, zero_head=True)),
        "zero by construction",
        "logits start at 0",
        "logits",
    ),
    # non-finite
    "one layer past float16": Sick(
        lambda: stack(relu, HE, 10, dtype=jnp.float16, kernel_at=(4, 6e4)), "non-finite", "past 65504", "layers/4"
    ),
    "a root at 0": Sick(lambda: root_at_zero(), "non-finite", "0 times an infinite slope is NaN"),
}


def names(*words: str) -> Sequence[str]:
    """Those that are one of the words."""
    return [name for name, sick in MODELS.items() if sick.word in words]
