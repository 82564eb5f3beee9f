"""Plain stacks, one draw of which is a few functions of one number a layer, for a whole grid of scales."""

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Key

from vgjax.activations import Activation
from vgjax.checks import untraced
from vgjax.implicit.plans import AffineNode, plan_of
from vgjax.implicit.sums import (
    GAINS,
    HIGHEST,
    LOWEST,
    flat_ends,
    homogeneous,
    pieces_of,
    smooth,
    steps,
)
from vgjax.measure.one_layer import FLAT
from vgjax.networks.network import OF_HEAD, Network
from vgjax.values import by_content


@dataclass(frozen=True)
class Stack:
    """A fully connected network of one width and one activation, with nothing around it.

    Attributes:
        activation: phi.
        width, depth, inputs, outputs: its sizes.
        stem_scale: the name of the stem's kernel scale.
        biased: whether stem and layers have Gaussian biases; without, they have none.
    """

    activation: Activation
    width: int
    depth: int
    inputs: int
    outputs: int
    stem_scale: str
    biased: tuple[bool, bool]

    @property
    def kind(self) -> str | None:
        """How the sums of a layer are had: homogeneous, steps or smooth; None if in none of these ways."""
        ends, bounded = self.activation.facts.ends, self.activation.facts.bounded
        known = ends[0].known and (bounded or ends[1].known)
        if not known or ends[0].jacobian != 0 or ends[0].value not in (0, 1):
            return None
        if not bounded and (ends[1].value != 1 or ends[1].jacobian != 0):
            return None
        if self.activation.homogeneous:
            return "homogeneous"
        if pieces_of(self.activation):
            return "steps"
        # A kink at 0 is none in r: every unit stays on its side.
        return "smooth" if set(self.activation.kinks) <= {0.0} else None


@functools.cache
def stack_of(network: Network) -> Stack | None:
    """A network as a plain stack of Gaussian kernels whose sums are functions of one number; None where it is none."""
    if network.stem is None or network.head is None or len(network.stages) != 1:
        return None
    nodes = [
        node
        for block in (network.stem, network.stages[0].spec, network.head)
        for node in plan_of(block)
        if isinstance(node, AffineNode) and not {"before", "after"} & dict(node.activity.options).keys()
    ]
    if len(nodes) != 3 or any(len(plan_of(s.spec)) > 1 for s in network.stages):
        return None
    stem, layer, head = nodes
    linear, phi, read = (dict(node.activity.options).get("activation") for node in nodes)
    gaussian = all(node.kernel.law == "gaussian" for node in nodes)
    biases = {stem.bias_init, layer.bias_init} <= {"gaussian", "zero"} and head.bias_init == "zero"
    named = layer.names == ("sigma_w", "sigma_b") and stem.names[1] == "sigma_b" and head.names[0] == OF_HEAD
    alike = isinstance(linear, Activation) and linear.name == "linear" and isinstance(phi, Activation) and phi == read
    if not (gaussian and biases and named and alike) or layer.kernel.fan_in != layer.kernel.fan_out:
        return None
    biased = (stem.bias_init == "gaussian", layer.bias_init == "gaussian")
    sizes = layer.kernel.fan_in, network.depth, stem.kernel.fan_in, head.kernel.fan_out
    stack = Stack(phi, *sizes, stem.names[0], biased)  # type: ignore[arg-type]
    return stack if stack.kind else None


# --- one draw, for a box of scales ------------------------------------------------------------------------------------


class Box(NamedTuple):
    """The scales that a draw is made for: its sums hold between these.

    Attributes:
        first: smallest and largest norm of the first state over the root of its width, shape ``(2,)``.
        sigma_w, sigma_b: smallest and largest of every layer, shape ``(2, depth)``.
    """

    first: Array
    sigma_w: Array
    sigma_b: Array


@by_content
@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["sums", "gram", "bias_normals", "read_out", "normals", "error"],
    meta_fields=["network"],
)
@dataclass(frozen=True)
class DrawnStack:
    """One draw of a stack as functions of r.

    Attributes:
        sums: `Smooth`, `PrefixSums` or `Homogeneous`, with a leading axis of layers 0 ... L.
        gram: g.g, g.t and t.t of every layer (for gradients e in place of t), shape ``(depth + 1, 3)``.
        bias_normals: e_b of every layer, shape ``(depth + 1,)``.
        read_out: the normals that the head makes of the last activations, shape ``(outputs,)``.
        normals: g of every layer in order, for counting flat units, shape ``(depth + 1, width)``; empty where nothing
            is counted.
        error: of the sums at probes, the largest of all layers, shape ``()``; 0 where they are exact.
        network: whose draw it is (static).
    """

    sums: Any
    gram: Array
    bias_normals: Array
    read_out: Array
    normals: Array
    error: Array
    network: Network

    @property
    def stack(self) -> Stack:
        """What the network is."""
        return _known_stack(self.network)


def _known_stack(network: Network) -> Stack:
    stack = stack_of(network)
    if stack is None:
        raise ValueError(f"network must be a plain stack of Gaussian kernels for tables, got {network!r}")
    return stack


def draw_stack(
    key: Key[Array, ""], network: Network, box: Box, names: tuple[str, ...], pieces: int, dtype: Any = np.float32
) -> DrawnStack:
    """The sums of all layers for every point of a box.

    Args:
        network: a plain stack (`stack_of`).
        names: `vgjax.implicit.sums.GAINS` or ``GRADIENTS``.
        pieces: of the polynomials of a smooth phi (`pieces_needed`).
        dtype: of what is read off; the sums themselves are made in float64. Where this is traced, it must be within
            ``jax.enable_x64(True)``.

    Raises:
        ValueError: a network that is no plain stack.
    """
    stack, kind = _known_stack(network), np.dtype(dtype).name
    # Of float32's normals in float64: a table of differences needs its digits, and reading it does not.
    with jax.enable_x64(True):
        sums, gram, normals, error = _all_layers(key, stack, box, names, pieces, kind)
        of_bias, of_head = _small_draws(key, network.depth, stack.outputs, kind)
    return DrawnStack(sums, gram, of_bias, of_head, normals, error, network)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _small_draws(key: Array, depth: int, outputs: int, dtype: str) -> tuple[Array, Array]:
    of_bias, of_head = jax.random.split(jax.random.fold_in(key, 1))
    sizes = ((of_bias, depth + 1), (of_head, outputs))
    bias, head = (jax.random.normal(each, (size,), jnp.float32).astype(dtype) for each, size in sizes)
    return bias, head


@functools.partial(jax.jit, static_argnames=("stack", "names", "pieces", "dtype"))
def _all_layers(
    key: Key[Array, ""], stack: Stack, box: Box, names: tuple[str, ...], pieces: int, dtype: str
) -> tuple[Any, Array, Array, Array]:
    """Sums, Gram matrices and ordered normals of all layers, and the largest error at probes."""
    of_layers, wide = jax.random.fold_in(key, 0), jnp.float64
    counts = bool(names != GAINS and stack.kind != "homogeneous" and flat_ends(stack.activation, FLAT))

    def layer(ends: tuple[Array, Array], xs: Any) -> tuple[tuple[Array, Array], Any]:
        l, sigma_w, sigma_b = xs
        mine = jax.random.fold_in(of_layers, l)
        error, ordered = jnp.zeros((), wide), jnp.zeros(0, wide)
        sums: Any
        if stack.kind == "homogeneous":
            sums, both = homogeneous(stack.activation, mine, stack.width, wide, names)
            return ends, (sums, jnp.stack([both[0, 0], both[0, 1], both[1, 1]]), ordered, error)
        z = jax.random.normal(mine, (2, stack.width), jnp.float32).astype(wide)
        gram = jnp.stack([jnp.sum(z[i] * z[j]) for i, j in ((0, 0), (0, 1), (1, 1))])
        ordered = jnp.sort(z[0]) if counts else ordered
        if stack.kind == "steps":
            return ends, (steps(stack.activation, z, names), gram, ordered, error)
        sums, error, squares = smooth(stack.activation, ends, z, names, pieces)
        return _next_ends(stack, squares, sigma_w, sigma_b), (sums, gram, ordered, error)

    first, sigma_w, sigma_b = (a.astype(wide) for a in box)
    last = lambda a: jnp.concatenate([a, a[:, -1:]], axis=1).T  # noqa: E731 - no kernel stands behind the last layer
    low, high = jnp.clip(first, LOWEST, HIGHEST)
    xs = (jnp.arange(stack.depth + 1), last(sigma_w), last(sigma_b))
    _, made = lax.scan(layer, (low, high), xs)
    sums, gram, ordered, error = jax.tree.map(lambda a: a.astype(dtype), made)
    return sums, gram, ordered, jnp.max(error)


def _next_ends(stack: Stack, squares: Array, sigma_w: Array, sigma_b: Array) -> tuple[Array, Array]:
    """Between what the next radii lie, by intervals, and a little more: a maximum may lie between the nodes."""
    ends = []
    for square, c, b, more in zip(
        (jnp.min(squares), jnp.max(squares)), sigma_w, sigma_b, (1 / 1.02, 1.02), strict=True
    ):
        ends.append(jnp.clip(jnp.sqrt(c * c * square / stack.width + b * b) * more, LOWEST, HIGHEST))
    return ends[0], ends[1]


TOLERANCE = {"float32": 2e-6, "float64": 1e-7}
"""Of the tables: about the error of ln gain over 100 layers. In float32 the roundings of as many layers are more."""
MOST_PIECES = 32


@untraced
def pieces_needed(network: Network, box: Box, names: tuple[str, ...], dtype: Any) -> int | None:
    """The pieces of polynomials that keep the tolerance, tried on some units and layers; None if too many would be.

    1 where sums are exact.
    """
    stack = stack_of(network)
    if stack is None or stack.kind != "smooth":
        return None if stack is None else 1
    few = replace(stack, width=min(stack.width, 128), depth=min(stack.depth, 30))
    part = Box(box.first, box.sigma_w[:, : few.depth], box.sigma_b[:, : few.depth])
    quick: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
    # What is not bounded reaches over many octaves of r, and one piece never does.
    pieces = 1 if stack.activation.facts.bounded else 4
    with jax.enable_x64(True):
        while pieces <= MOST_PIECES:
            arguments = jax.random.key(0), few, part, names, pieces, "float64"
            tried = _all_layers.lower(*arguments).compile(quick)(arguments[0], part)
            if float(tried[-1]) <= TOLERANCE[np.dtype(dtype).name]:
                return pieces
            pieces *= 2
    return None
