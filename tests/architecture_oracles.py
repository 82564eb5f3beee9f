"""Independent truth for every architecture: plain Flax NNX layers in a python loop, in float64.

An architecture is a `Parts`: three functions of ordinary parameters (nested dicts of arrays, by Flax path). They build
`nnx` modules that hold those numbers and call them; nothing here uses a block or a formula of the library.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from oracles import linear, log_mean_square, log_norm

import vgjax as vg

Tree = dict[str, Any]


class Parts(NamedTuple):
    """A network as functions of one layer's ordinary parameters.

    Attributes:
        stem: ``(parameters, x) -> s_0``.
        block: ``(parameters, s_l, scales, x_l) -> s_{l+1}``, scales by name, x_l None unless ``fed``.
        head: ``(parameters, s_L) -> output``.
        fed: whether blocks read the input step by step.
        every_step: whether the head reads all of s_1 ... s_L.
    """

    stem: Callable[..., Any]
    block: Callable[..., Any]
    head: Callable[..., Any]
    fed: bool = False
    every_step: bool = False


class Truth(NamedTuple):
    """What `jax.grad` finds; names as in `GradientFlow`, logs of norms, a leading axis for the examples."""

    outputs: np.ndarray
    states: list[np.ndarray]
    log_mean_square: np.ndarray
    log_gradient: np.ndarray
    log_gradient_parts: np.ndarray
    log_parameter_gradient: dict[str, np.ndarray]
    log_tied_gradient: dict[str, float]


# --- automatic differentiation --------------------------------------------------------------------------------------


def loss_of(kind: str, output: Any, y: Any) -> Any:
    """Summed over whatever stands before the last axis."""
    if kind == "cotangent":
        return jnp.sum(output * y)
    if kind == "squared_error":
        return jnp.sum((output - y) ** 2) / 2
    logits = output.reshape(-1, output.shape[-1])
    picked = logits[jnp.arange(len(logits)), y.reshape(-1)]
    return jnp.sum(jax.scipy.special.logsumexp(logits, axis=1) - picked)


def one_layer(stage: Tree, tied: bool, i: int) -> Tree:
    """The parameters of layer i of a stage."""
    return stage if tied else jax.tree.map(lambda a: a[i], stage)


def run(
    parts: Parts, stem: Tree, layers: list[Tree], head: Tree, scales: list[dict[str, float]], x: Any, nudges: list[Any]
) -> tuple[Any, list[Any]]:
    """Output and all states of one input; a nudge is added to each state."""
    states = [parts.stem(stem, x) + nudges[0]]
    for i, (layer, numbers) in enumerate(zip(layers, scales, strict=True)):
        states.append(parts.block(layer, states[-1], numbers, x[i] if parts.fed else None) + nudges[i + 1])
    if parts.every_step:
        return jnp.stack([parts.head(head, s) for s in states[1:]]), states
    return parts.head(head, states[-1]), states


def gradients(
    parts: Parts, ordinary: Any, scales: list[dict[str, float]], xs: np.ndarray, ys: np.ndarray, loss: str
) -> Truth:
    """Every gradient of the summed loss of a batch, by `jax.grad` through the python loop in float64.

    Args:
        parts: the architecture.
        ordinary: its ordinary parameters (of any dtype), stacked by layer as the library stacks them.
        scales: of each layer, those that multiply no parameters.
        xs, ys: a batch.
        loss: as in the library.
    """
    tied = [stage.tied for stage in ordinary.network.stages]
    depths = [stage.depth for stage in ordinary.network.stages]
    xs, stem, stages, head = jax.tree.map(
        lambda a: np.asarray(a, np.float64), (xs, ordinary.stem, ordinary.stages, ordinary.head)
    )
    ys = np.asarray(ys) if loss == "cross_entropy" else np.asarray(ys, np.float64)
    flat = [one_layer(own, t, i) for own, t, n in zip(stages, tied, depths, strict=True) for i in range(n)]
    copies = jax.tree.map(np.zeros_like, flat)  # each layer's own share of its (possibly tied) parameters

    def total(stem: Tree, stages: Any, copies: list[Tree], head: Tree, nudges: list[Any]) -> Any:
        owned = [one_layer(own, t, i) for own, t, n in zip(stages, tied, depths, strict=True) for i in range(n)]
        layers = [jax.tree.map(jnp.add, own, copy) for own, copy in zip(owned, copies, strict=True)]
        outputs, states = jax.vmap(lambda x, n: run(parts, stem, layers, head, scales, x, n))(xs, nudges)
        return sum(loss_of(loss, output, y) for output, y in zip(outputs, ys, strict=True)), (outputs, states)

    with jax.enable_x64(True):
        nothing = [np.zeros(len(xs)) for _ in range(len(flat) + 1)]
        shapes = jax.eval_shape(total, stem, stages, copies, head, nothing)[1][1]
        nudges = [np.zeros(s.shape) for s in shapes]
        found = compiled(jax.grad(total, argnums=(0, 1, 2, 3, 4), has_aux=True), stem, stages, copies, head, nudges)
    (by_stem, by_stages, by_copies, by_head, by_state), (outputs, states) = found
    named = {
        f"{end}/{path}": log_norm(g)
        for end, tree in (("stem", by_stem), ("head", by_head))
        for path, g in trainable(tree)
    }
    by_layer = [{path: log_norm(g) for path, g in trainable(tree)} for tree in by_copies]
    paths = {path for layer in by_layer for path in layer}
    named |= {path: np.array([layer.get(path, np.nan) for layer in by_layer]) for path in paths}
    examples = range(len(xs))
    of_parts = [[[log_norm(part) for part in g[i]] for g in by_state] for i in examples]
    return Truth(
        outputs,
        states,
        np.array([[log_mean_square(s[i]) for s in states] for i in examples]),
        np.array([[log_norm(g[i]) for g in by_state] for i in examples]),
        np.moveaxis(np.array(of_parts), -1, 0) if len({g.shape for g in by_state}) == 1 else np.array(of_parts, object),
        named,
        {path: log_norm(g) for own, t in zip(by_stages, tied, strict=True) if t for path, g in trainable(own)},
    )


def jacobians(
    parts: Parts, ordinary: Any, scales: list[dict[str, float]], x: np.ndarray
) -> tuple[np.ndarray, dict[tuple[int, int], np.ndarray]]:
    """The output, and the dense Jacobian ds_m/ds_l for every l <= m as a matrix, by (m, l), of one input and one stage:
    `jax.jacrev` end to end in float64."""
    (stage,), (own,) = ordinary.network.stages, ordinary.stages
    x, stem, own, head = jax.tree.map(lambda a: np.asarray(a, np.float64), (x, ordinary.stem, own, ordinary.head))
    layers = [one_layer(own, stage.tied, i) for i in range(stage.depth)]

    def both(nudges: list[Any]) -> tuple[list[Any], Any]:
        output, states = run(parts, stem, layers, head, scales, x, nudges)
        return states, output

    with jax.enable_x64(True):
        shapes = jax.eval_shape(both, [np.zeros(()) for _ in range(stage.depth + 1)])[0]
        found, output = compiled(jax.jacrev(both, has_aux=True), [np.zeros(s.shape) for s in shapes])
    size = int(np.prod(shapes[0].shape))
    return output, {(m, l): found[m][l].reshape(size, size) for m in range(stage.depth + 1) for l in range(m + 1)}


def compiled(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's value as numpy arrays; what counts is how long it compiles."""
    quick: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
    return jax.tree.map(np.asarray, jax.jit(function).lower(*arguments).compile(quick)(*arguments))


def trainable(tree: Tree) -> list[tuple[str, Any]]:
    """Leaves by path "linear/kernel", without running statistics and noise."""
    leaves = [("/".join(k.key for k in path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    return [(path, leaf) for path, leaf in leaves if path.rsplit("/")[-1] not in ("mean", "var", "noise")]


# --- parameters -------------------------------------------------------------------------------------------------------


def drawn(net: Any, dropout: str = "bernoulli", seed: int = 0) -> Any:
    """Parameters by numpy, without compilation: kernels at about unit gain, all else around 0 or 1."""
    like = jax.eval_shape(lambda key: vg.init(key, net), jax.random.key(0))
    rng = np.random.default_rng(seed)

    def fill(path: Any, leaf: Any, lead: int) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(rng.integers(0, 2**32, (*leaf.shape, 2), np.uint32))
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        name, shape = path[-1].key, leaf.shape
        if name in ("scale", "gate", "var") or (name == "noise" and dropout == "bernoulli"):
            low, high = (0, 1) if name == "noise" else (0.6, 1.4)
            return jnp.asarray(rng.uniform(low, high, shape), leaf.dtype)
        gain = np.prod(shape[lead:-1]) ** -0.5 if len(shape) - lead > 1 and name != "noise" else 1.0
        return jnp.asarray(rng.normal(size=shape) * gain, leaf.dtype)

    def filled(tree: Any, lead: int) -> Any:
        return jax.tree_util.tree_map_with_path(functools.partial(fill, lead=lead), tree)

    stages = (filled(own, int(not stage.tied)) for own, stage in zip(like.stages, net.stages, strict=True))
    return vg.networks.Parameters(filled(like.stem, 0), tuple(stages), filled(like.head, 0), net)


# --- ordinary parameters --------------------------------------------------------------------------------------------


def multiplied(parameters: Any, scales: dict[str, Any], last: str = "") -> tuple[Tree, list[Tree]]:
    """Stem and stages of ordinary parameters: what the draws at unit gain become, multiplied out in float64.

    Args:
        parameters: draws at unit gain.
        scales: by name, numbers or one value a layer.
        last: the last layer of a residual branch, whose kernel and bias have scales of their own.
    """

    def sigma(path: str) -> Any:
        names, leaf = path.split("/"), path.split("/")[-1]
        if leaf == "gate":
            return scales["branch"]
        if "norm" in names or "attention_norm" in names or "feed_forward_norm" in names or leaf == "noise":
            return 1.0
        if leaf == "kernel" and {"query", "key", "value", "out"} & set(names):
            return scales["sigma_qk" if {"query", "key"} & set(names) else "sigma_vo"]
        if leaf == "input_kernel" or (leaf == "kernel" and last in names):
            return scales["sigma_v"]
        return scales["sigma_a" if last in names else "sigma_b" if leaf.endswith("bias") else "sigma_w"]

    def times(tree: Tree, at: slice | int, layers: bool) -> Tree:
        def one(path: Any, leaf: Any) -> np.ndarray:
            value = np.asarray(sigma("/".join(k.key for k in path)), np.float64)
            value = value[at] if value.ndim else value
            shape = (-1, *[1] * (np.ndim(leaf) - 1)) if layers and value.ndim else ()
            return value.reshape(shape) * np.asarray(leaf, np.float64)

        return jax.tree_util.tree_map_with_path(one, tree)

    stages, start = [], 0
    for stage, own in zip(parameters.network.stages, parameters.stages, strict=True):
        stages.append(times(own, slice(start, start + stage.depth), not stage.tied))
        start += stage.depth
    scales = {**scales, "sigma_w": scales.get("sigma_in", scales["sigma_w"])}
    return times(parameters.stem, 0, False), stages


# --- layers ---------------------------------------------------------------------------------------------------------


def _holding(array: Any) -> Callable[..., Any]:
    return lambda *_: array


def matrix(kernel: Any) -> nnx.Linear:
    """A linear layer without bias."""
    options = {"dtype": kernel.dtype, "param_dtype": kernel.dtype, "kernel_init": _holding(kernel)}
    return nnx.Linear(*kernel.shape, use_bias=False, rngs=nnx.Rngs(0), **options)


def convolved(kernel: Any, bias: Any, h: Any, padding: str, strides: int = 1) -> Any:
    """A convolution by `nnx.Conv`; circular padding by hand."""
    window, (before, after) = kernel.shape[:-2], kernel.shape[-2:]
    if padding == "circular":
        lead = [(0, 0)] * (h.ndim - 1 - len(window))
        h = jnp.pad(h, [*lead, *((n // 2, n // 2) for n in window), (0, 0)], mode="wrap")
    conv = nnx.Conv(
        before,
        after,
        window,
        strides,
        padding="VALID" if padding == "circular" else "SAME",
        dtype=kernel.dtype,
        param_dtype=kernel.dtype,
        kernel_init=_holding(kernel),
        bias_init=_holding(bias),
        rngs=nnx.Rngs(0),
    )
    return conv(h)


def normed(kind: str, p: Tree, h: Any, *, epsilon: float, groups: int = 1) -> Any:
    """A normalization by Flax."""
    while "norm" in p:
        p = p["norm"]
    size, dtype = len(p["scale"]), p["scale"].dtype
    about: dict[str, Any] = {"epsilon": epsilon, "dtype": dtype, "param_dtype": dtype, "rngs": nnx.Rngs(0)}
    about |= {"scale_init": _holding(p["scale"])}
    if kind == "rms":
        return nnx.RMSNorm(size, **about)(h)
    about |= {"bias_init": _holding(p["bias"])}
    if kind == "layer":
        return nnx.LayerNorm(size, **about)(h)
    if kind == "group":  # a batch of one image
        return nnx.GroupNorm(size, groups, **about)(h[None])[0]
    norm = nnx.BatchNorm(size, use_running_average=kind == "batch_running", **about)
    norm.mean, norm.var = nnx.BatchStat(p["mean"]), nnx.BatchStat(p["var"])
    return norm(h)


def dropped(distribution: str, p: Tree, a: Any, rate: float) -> Any:
    """Dropout by the mask that was drawn."""
    noise = p.get("dropout", p)["noise"]
    if distribution == "bernoulli":
        return jnp.where(noise < rate, 0, 1) * a / (1 - rate)
    return a + a * noise * np.sqrt(rate / (1 - rate))


class Around(NamedTuple):
    """What stands in a layer beside its product.

    Attributes:
        phi: the activation.
        norm: ``(parameters, h) -> h`` or None, before phi or (``behind``) after it.
        behind: where it stands.
        dropout: a distribution or None.
        padding: of convolutions.
    """

    phi: Callable[[Any], Any] = lambda h: h
    norm: Callable[..., Any] | None = None
    behind: bool = False
    dropout: str | None = None
    padding: str = "circular"


def layer(p: Tree, h: Any, around: Around, rate: float = 0.0, strides: int = 1, pool: int = 0) -> Any:
    """``W after(phi(before(h))) + b``: dense, or a convolution where the parameters are one's."""
    if around.norm and not around.behind:
        h = around.norm(p["before"], h)
    a = around.phi(h)
    if around.norm and around.behind:
        a = around.norm(p["after"], a)
    if around.dropout:
        a = dropped(around.dropout, p["after"], a, rate)
    for _ in range(pool):
        a = jnp.mean(a, axis=-2)
    if "conv" in p:
        return convolved(p["conv"]["kernel"], p["bias"], a, around.padding, strides)
    return linear(p["kernel"], p["bias"])(a)


# --- networks -------------------------------------------------------------------------------------------------------


def affine(p: Tree, h: Any) -> Any:
    """A linear layer, one token or example after the other."""
    return linear(p["kernel"], p["bias"])(h)


def plain(around: Around, pool: int = 0, stem: Callable[..., Any] = affine) -> Parts:
    """Layer after layer, dense or convolutional; ``pool`` axes are averaged over before the head."""

    def block(p: Tree, h: Any, scales: dict[str, float], _: None) -> Any:
        return layer(p, h, around, scales.get("dropout", 0.0))

    return Parts(stem, block, lambda p, h: layer(p, h, around._replace(dropout=None), pool=pool))


def image_stem(around: Around) -> Callable[..., Any]:
    """A convolution of the input."""
    return lambda p, x: convolved(p["conv"]["kernel"], p["bias"], x, around.padding)


def residual(kind: str, around: Around, kernels: int = 2, gated: bool = False) -> Parts:
    """Fully connected blocks around skip connections."""

    def block(p: Tree, h: Any, scales: dict[str, float], _: None) -> Any:
        rate = scales.get("dropout", 0.0)
        p = p["residual"] if kind == "post" else p
        branch, f = p["branch"], h
        for i in range(kernels):
            inside = branch if kernels == 1 else branch[f"layer_{i + 1}"]
            bare = i == 0 and kind != "pre"
            f = affine(inside, f) if bare else layer(inside, f, around, rate)
        h = scales.get("skip", 1.0) * h + (p["gate"] if gated else scales.get("branch", 1.0)) * f
        return around.phi(h) if kind == "post" else h

    def head(p: Tree, h: Any) -> Any:
        return affine(p, h) if kind == "post" else layer(p, h, around._replace(dropout=None))

    return Parts(affine, block, head)


def resnet(around: Around) -> Parts:
    """Gated residual blocks of two convolutions; transitions have a shortcut of window 1 and stride 2."""

    def block(p: Tree, h: Any, scales: dict[str, float], _: None) -> Any:
        first, second = p["branch"]["layer_1"], p["branch"]["layer_2"]
        f = layer(first, h, around, strides=2 if "shortcut" in p else 1)
        f = layer(second, f, around)
        if "shortcut" in p:
            short = p["shortcut"]
            h = convolved(short["conv"]["kernel"], short["bias"], h, around.padding, strides=2)
        return scales.get("skip", 1.0) * h + p["gate"] * f

    return Parts(image_stem(around), block, lambda p, h: layer(p, h, around, pool=2))


# --- recurrent cells ------------------------------------------------------------------------------------------------


def recurrent(cell: Callable[..., Any], width: int, parts: int = 0, every_step: bool = False) -> Parts:
    """A cell from the state 0; the head reads the state (its first part)."""
    shape = (parts, width) if parts else (width,)

    def head(p: Tree, s: Any) -> Any:
        return affine(p, s[0] if parts else s)

    return Parts(lambda p, x: jnp.zeros(shape, x.dtype), cell, head, fed=True, every_step=every_step)


def simple_cell(p: Tree, h: Any, scales: dict[str, float], x: Any) -> Any:
    """`nnx.SimpleCell`."""
    cell = nnx.SimpleCell(len(x), len(h), dtype=x.dtype, rngs=nnx.Rngs(0))
    cell.dense_h, cell.dense_i = matrix(p["kernel"]), linear(p["input_kernel"], p["bias"])
    return cell(h, x)[0]


def minimal_cell(p: Tree, h: Any, scales: dict[str, float], x: Any) -> Any:
    """A convex sum of state and input."""
    u = nnx.sigmoid(matrix(p["kernel"])(h) + linear(p["input_kernel"], p["bias"])(x) + scales["forget_bias"])
    return x + u * (h - x)


def lstm_cell(p: Tree, state: Any, scales: dict[str, float], x: Any) -> Any:
    """`nnx.LSTMCell`, eight kernels."""
    h, c = state
    cell = nnx.LSTMCell(len(x), len(h), dtype=x.dtype, param_dtype=x.dtype, rngs=nnx.Rngs(0))
    split = (jnp.split(p[name], 4, axis=-1) for name in ("kernel", "input_kernel", "bias"))
    for gate, kernel, input_kernel, bias in zip("ifgo", *split, strict=True):
        shift = scales["forget_bias"] if gate == "f" else 0.0
        setattr(cell, "if_" if gate == "f" else f"i{gate}", matrix(input_kernel))
        setattr(cell, f"h{gate}", linear(kernel, bias + shift))
    (c, h), _ = cell((c, h), x)
    return jnp.stack([h, c])


def gru_cell(p: Tree, h: Any, scales: dict[str, float], x: Any) -> Any:
    """`nnx.GRUCell`, with the bias inside its reset gate that its formula has."""
    cell = nnx.GRUCell(len(x), len(h), dtype=x.dtype, param_dtype=x.dtype, rngs=nnx.Rngs(0))
    none = jnp.zeros_like(h)
    shift = jnp.concatenate([none, none + scales["forget_bias"], none])
    cell.dense_i = linear(p["input_kernel"], p["bias"] + shift)
    cell.dense_h = linear(p["kernel"], jnp.concatenate([none, none, p["recurrent_bias"]]))
    return cell(h, x)[0]


# --- transformers ---------------------------------------------------------------------------------------------------


def _softmax_attention(query: Any, key: Any, value: Any, mask: Any = None, **_: Any) -> Any:
    """Shapes ``(tokens, heads, size)``; that of Flax takes its softmax in float32 whatever the dtype."""
    logits = jnp.einsum("qhd,khd->hqk", query, key) / np.sqrt(query.shape[-1])
    logits = logits if mask is None else jnp.where(mask, logits, -np.inf)
    return jnp.einsum("hqk,khd->qhd", jax.nn.softmax(logits, axis=-1), value)


def attended(p: Tree, h: Any, *, causal: bool, temperature: float) -> Any:
    """`nnx.MultiHeadAttention` whose queries are divided by the temperature."""
    width, heads = p["query"]["kernel"].shape[:2]
    attention = nnx.MultiHeadAttention(
        heads,
        width,
        use_bias=False,
        decode=False,
        dtype=h.dtype,
        param_dtype=h.dtype,
        attention_fn=_softmax_attention,
        rngs=nnx.Rngs(0),
    )
    for name in ("query", "key", "value", "out"):
        kernel = p[name]["kernel"]
        getattr(attention, name).kernel[...] = kernel / temperature if name == "query" else kernel
    return attention(h, mask=nnx.make_causal_mask(jnp.ones(len(h))) if causal else None)


def transformer(
    phi: Callable[[Any], Any] | None,
    place: str | None,
    norm: Callable[..., Any] | None = None,
    causal: bool = False,
    gated: bool = False,
) -> Parts:
    """Attention and (with phi) two feed-forward kernels, both around skips."""

    def around_skip(p: Tree, name: str, h: Any, f: Callable[[Tree, Any], Any], scales: dict[str, float]) -> Any:
        own = p[name]
        inside = norm(own["branch"]["norm"], h) if place == "pre" else h
        factor = own["gate"] if gated else scales.get("branch", 1.0)
        h = scales.get("skip", 1.0) * h + factor * f(own["branch"], inside)
        return norm(p[f"{name}_norm"], h) if place == "post" else h

    def block(p: Tree, h: Any, scales: dict[str, float], _: None) -> Any:
        temperature = scales.get("temperature", 1.0)
        look = functools.partial(attended, causal=causal, temperature=temperature)
        h = around_skip(p, "attention", h, lambda q, a: look(q["attention"], a), scales)
        if phi is None:
            return h
        feed = lambda q, a: affine(q["layer_2"], phi(affine(q["layer_1"], a)))  # noqa: E731
        return around_skip(p, "feed_forward", h, feed, scales)

    def head(p: Tree, h: Any) -> Any:
        return affine(p, jnp.mean(norm(p["before"], h) if place == "pre" else h, axis=0))

    return Parts(affine, block, head)
