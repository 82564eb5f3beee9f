"""Networks of plain Flax NNX modules, a `lax.scan` over each stage, as one would write them without the library."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

Output = Callable[[Any, Array], Array]
PHIS: dict[str, Callable[[Array], Array]] = {"tanh": jnp.tanh, "gelu": nnx.gelu, "relu": nnx.relu}


# --- blocks ---------------------------------------------------------------------------------------------------------


def conv(a: int, b: int, rngs: nnx.Rngs, strides: int = 1) -> nnx.Conv:
    """A 3 x 3 convolution on a torus."""
    return nnx.Conv(a, b, (3, 3), strides=strides, padding="CIRCULAR", rngs=rngs)


class Dense(nnx.Module):
    """W phi(h) + b."""

    def __init__(self, width: int, phi: Callable[[Array], Array], rngs: nnx.Rngs):
        self.linear, self.phi = nnx.Linear(width, width, rngs=rngs), phi

    def __call__(self, h: Array) -> Array:
        return self.linear(self.phi(h))


class Residual(nnx.Module):
    """h + V tanh(W h + b) + a."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.first, self.second = (nnx.Linear(width, width, rngs=rngs) for _ in range(2))

    def __call__(self, h: Array) -> Array:
        return h + self.second(jnp.tanh(self.first(h)))


class Image(nnx.Module):
    """A convolution of relu(h)."""

    def __init__(self, channels: int, rngs: nnx.Rngs):
        self.conv = conv(channels, channels, rngs)

    def __call__(self, h: Array) -> Array:
        return self.conv(nnx.relu(h))


class ResidualImage(nnx.Module):
    """Two group norms, ReLUs and convolutions beside a skip."""

    def __init__(self, channels: int, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.GroupNorm(channels, num_groups=4, rngs=rngs) for _ in range(2)])
        self.convs = nnx.List([conv(channels, channels, rngs) for _ in range(2)])

    def __call__(self, h: Array) -> Array:
        branch = h
        for norm, of in zip(self.norms, self.convs, strict=True):
            branch = of(nnx.relu(norm(branch)))
        return h + branch


class Encoder(nnx.Module):
    """Attention and a feed-forward network, pre-LN."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.wide, self.narrow = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, h: Array) -> Array:
        h = h + self.attention(self.norms[0](h))
        return h + self.narrow(nnx.gelu(self.wide(self.norms[1](h))))


# --- networks -------------------------------------------------------------------------------------------------------


def in_flax(
    name: str, sizes: Sequence[int], depth: int, channels: Sequence[int], stages: Sequence[int], heads: int
) -> tuple[Any, Output]:
    """Parameters, and the output at one input.

    Args:
        name: kind of network, and of an mlp its activation.
        sizes: inputs, width and outputs.
        depth: blocks, or steps.
        channels: of the image, and of a cnn's states.
        stages: channels of a ResNet's stages of 3 blocks.
        heads: of attention.
    """
    kind, _, activation = name.partition(" ")
    (inputs, width, outputs), rngs = sizes, nnx.Rngs(0)
    if kind == "lstm":
        return _lstm(*sizes)
    if kind == "cnn":
        ends = [conv(*channels, rngs), nnx.Linear(channels[1], outputs, rngs=rngs)]
        return _network(ends, [_stack(functools.partial(Image, channels[1]), depth)], [], nnx.relu)
    if kind == "resnet":
        ends = [conv(channels[0], stages[0], rngs), nnx.Linear(stages[-1], outputs, rngs=rngs)]
        between = [conv(a, b, rngs, strides=2) for a, b in itertools.pairwise(stages)]
        return _network(ends, [_stack(functools.partial(ResidualImage, n), 3) for n in stages], between, nnx.relu)
    make: Callable[..., nnx.Module] = functools.partial(Dense, width, PHIS.get(activation, nnx.relu))
    if kind == "residual":
        make = functools.partial(Residual, width)
    if kind == "transformer":
        make = functools.partial(Encoder, width, heads)
    ends = [nnx.Linear(inputs, width, rngs=rngs), nnx.Linear(width, outputs, rngs=rngs)]
    return _network(ends, [_stack(make, depth)], [], PHIS.get(activation, nnx.relu))


def _stack(make: Callable[..., nnx.Module], depth: int) -> tuple[Any, Any]:
    """The static part of a block, and the parameters of ``depth`` of them."""
    keys = jax.random.split(jax.random.key(0), depth)
    return nnx.graphdef(make(rngs=nnx.Rngs(0))), jax.vmap(lambda key: nnx.state(make(rngs=nnx.Rngs(key))))(keys)


def _network(
    ends: Sequence[nnx.Module],
    stages: Sequence[tuple[Any, Any]],
    between: Sequence[nnx.Module],
    phi: Callable[[Array], Array],
) -> tuple[Any, Output]:
    """Stem, a scan over each stage with what stands between them, and a head on the mean of phi over places."""
    single = [nnx.split(module) for module in (*ends, *between)]
    parameters = [state for _, state in single], [states for _, states in stages]

    def output(parameters: Any, x: Array) -> Array:
        stem, head, *rest = (nnx.merge(graph, s) for (graph, _), s in zip(single, parameters[0], strict=True))
        h = stem(x)
        for i, ((graph, _), states) in enumerate(zip(stages, parameters[1], strict=True)):
            h = rest[i - 1](h) if i else h
            h, _ = lax.scan(lambda h, state, graph=graph: (nnx.merge(graph, state)(h), None), h, states)
        places = tuple(range(h.ndim - 1))
        return head(phi(h).mean(places) if places else phi(h))

    return parameters, output


def _lstm(inputs: int, width: int, outputs: int) -> tuple[Any, Output]:
    rngs = nnx.Rngs(0)
    cell, head = nnx.OptimizedLSTMCell(inputs, width, rngs=rngs), nnx.Linear(width, outputs, rngs=rngs)
    (of_cell, cell_state), (of_head, head_state) = nnx.split(cell), nnx.split(head)

    def output(parameters: Any, x: Array) -> Array:
        start = jnp.zeros(width), jnp.zeros(width)
        step = lambda carry, x: (nnx.merge(of_cell, parameters[0])(carry, x)[0], None)  # noqa: E731
        (_, h), _ = lax.scan(step, start, x)
        return nnx.merge(of_head, parameters[1])(h)

    return (cell_state, head_state), output
