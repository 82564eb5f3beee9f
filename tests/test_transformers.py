"""The parts of transformers as they are trained, against plain JAX written from the papers' equations."""

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import architecture_oracles as truth
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vgjax as vg
from vgjax.networks import attention, branch, feed_forward, tokens
from vgjax.networks.trainable import trainable

Tree = dict[str, Any]

# --- the equations, in plain JAX ------------------------------------------------------------------------------------


def layer_norm(p: Tree, h: Any, epsilon: float) -> Any:
    p = p["norm"]
    centred = h - jnp.mean(h, -1, keepdims=True)
    return p["scale"] * centred / jnp.sqrt(jnp.mean(centred**2, -1, keepdims=True) + epsilon) + p["bias"]


def rms_norm(p: Tree, h: Any, epsilon: float) -> Any:
    return p["norm"]["scale"] * h * jax.lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + epsilon)


def pointwise(p: Tree, h: Any, f: Callable[[Any], Any]) -> Any:
    """Zhu et al. 2025: gamma f(alpha h) + beta."""
    return p["gain"] * f(p["alpha"] * h) + p["bias"]


def rotated(a: Any, base: float) -> Any:
    """Su et al. 2021, with complex numbers: entries i and i + size / 2 of token t are multiplied by exp(i t theta)."""
    length, _, size = a.shape
    pairs = a[..., : size // 2] + 1j * a[..., size // 2 :]
    turns = np.exp(1j * np.arange(length)[:, None, None] * base ** (-2 * np.arange(size // 2) / size))
    turned = pairs * turns
    return jnp.concatenate([turned.real, turned.imag], axis=-1)


class Attended(NamedTuple):
    """What attention does."""

    causal: bool = False
    window: int | None = None
    base: float | None = None
    qk_norm: float | None = None


def attended(how: Attended, p: Tree, h: Any, mixed: Callable[[Any], Any] = lambda own: own) -> Any:
    """Head by head, token by token; each group of query heads reads one head of keys and values."""
    query, key, value = (jnp.einsum("tw,whd->thd", h, p[name]["kernel"]) for name in ("query", "key", "value"))
    value = mixed(value)
    if how.qk_norm is not None:
        query, key = (rms_norm(p[f"{n}_norm"], a, how.qk_norm) for n, a in (("query", query), ("key", key)))
    if how.base is not None:
        query, key = rotated(query, how.base), rotated(key, how.base)
    group, rows = query.shape[1] // key.shape[1], []
    for i in range(len(h)):
        seen = [j for j in range(len(h)) if (j <= i or not how.causal) and abs(i - j) < (how.window or len(h))]
        heads = []
        for head in range(query.shape[1]):
            theirs = key[:, head // group][jnp.array(seen)], value[:, head // group][jnp.array(seen)]
            weights = jax.nn.softmax(theirs[0] @ query[i, head] / np.sqrt(query.shape[2]))
            heads.append(weights @ theirs[1])
        rows.append(jnp.stack(heads))
    return jnp.einsum("thd,hdw->tw", jnp.stack(rows), p["out"]["kernel"])


def affine(p: Tree, h: Any) -> Any:
    return h @ p["kernel"] + p["bias"]


def plain(phi: Callable[[Any], Any], p: Tree, h: Any) -> Any:
    return affine(p["layer_2"], phi(affine(p["layer_1"], h)))


def gated(phi: Callable[[Any], Any], p: Tree, h: Any) -> Any:
    """Shazeer 2020."""
    return affine(p["layer_2"], phi(affine(p["gated"]["gate"]["layer_1"], h)) * affine(p["gated"]["up"], h))


def mixture(chosen: int, inner: Callable[[Tree, Any], Any], p: Tree, h: Any) -> Any:
    """Jiang et al. 2024: softmax over the logits of those chosen, token by token."""
    p, rows = p["mixture"], []
    for token in h:
        logits = token @ p["router"]
        best = jnp.argsort(-logits)[:chosen]
        weights = jax.nn.softmax(logits[best])
        outputs = jnp.stack([inner(p[f"expert_{e + 1}"], token) for e in range(len(logits))])
        rows.append(weights @ outputs[best])
    return jnp.stack(rows)


class Recipe(NamedTuple):
    """A transformer by its equations."""

    place: str
    norm: Callable[[Tree, Any], Any]
    attend: Callable[[Tree, Any], Any]
    feed: Callable[[Tree, Any], Any]
    stem: Callable[[Tree, Any], Any]
    head: Callable[[Tree, Any], Any]

    def block(self, p: Tree, h: Any, scales: dict[str, float], _: None) -> Any:
        skip, factor = scales.get("skip", 1.0), scales.get("branch", 1.0)
        if self.place == "parallel":
            inside = self.norm(p["parallel"]["branch"]["norm"], h)
            both = p["parallel"]["branch"]["both"]
            a, f = self.attend(both["attention"]["attention"], inside), self.feed(both["feed_forward"], inside)
            return skip * h + factor * (a + f)
        place = ("post" if "attention_norm" in p else "pre") if self.place == "mix" else self.place
        for name in ("attention", "feed_forward"):
            own, inside = p[name]["branch"], h
            if place in ("pre", "sandwich"):
                inside = scales.get("norm_gain", 1.0) * self.norm(own["norm"], h)
            f = self.attend(own["attention"], inside) if name == "attention" else self.feed(own, inside)
            if place in ("sandwich", "normalized"):
                f = self.norm(own["norm_behind"], f)
            if "layer_scale" in own:
                f = own["layer_scale"]["gain"] * f
            h = skip * h + factor * f
            if place in ("post", "normalized"):
                h = self.norm(p[f"{name}_norm"], h)
        return h

    @property
    def parts(self) -> truth.Parts:
        return truth.Parts(self.stem, self.block, self.head)


class WithFirstValues(NamedTuple):
    """Zhou et al. 2024: a pre- or post-norm transformer whose states are pairs [h, V_1]."""

    recipe: Recipe
    share: float

    def block(self, p: Tree, state: Any, scales: dict[str, float], _: None) -> Any:
        (h, first), its_own = state, scales["layer"] == 0
        skip, factor, post = scales.get("skip", 1.0), scales.get("branch", 1.0), "attention_norm" in p
        own = p["attention"]["branch"]
        inside = h if post else self.recipe.norm(own["norm"], h)
        values = jnp.einsum("tw,whd->thd", inside, own["attention"]["value"]["kernel"]).reshape(h.shape)
        first = values if its_own else first
        mixed = lambda v: (1 - self.share) * v + self.share * first.reshape(v.shape)  # noqa: E731
        h = skip * h + factor * self.recipe.attend(own["attention"], inside, mixed)  # type: ignore[call-arg]
        h = self.recipe.norm(p["attention_norm"]["branch"], h) if post else h
        own = p["feed_forward"]["branch"]["branch"]
        h = skip * h + factor * self.recipe.feed(own, h if post else self.recipe.norm(own["norm"], h))
        return jnp.stack([self.recipe.norm(p["feed_forward_norm"]["branch"], h) if post else h, first])

    @property
    def parts(self) -> truth.Parts:
        whole = self.recipe
        pair = lambda p, x: jnp.stack([whole.stem(p, x), jnp.zeros_like(whole.stem(p, x))])  # noqa: E731
        return truth.Parts(pair, self.block, lambda p, state: whole.head(p, state[0]))


def embedded(p: Tree, x: Any) -> Any:
    return p["embedding"]["embed"]["embedding"][x.astype(int)]


def pooled(norm: Callable[[Tree, Any], Any] | None) -> Callable[[Tree, Any], Any]:
    return lambda p, h: affine(p, jnp.mean(norm(p["before"], h) if norm else h, axis=0))


GELU, TANH_GELU = functools.partial(jax.nn.gelu, approximate=False), functools.partial(jax.nn.gelu, approximate=True)
LN, RMS = functools.partial(layer_norm, epsilon=1e-6), functools.partial(rms_norm, epsilon=1e-6)
DYT, DERF = functools.partial(pointwise, f=jnp.tanh), functools.partial(pointwise, f=jax.scipy.special.erf)
FULL = functools.partial(attended, Attended())


# Radford et al. 2019 and their code: logits are the normalized states with every row of the embedding, no factor.
GPT2 = Recipe(
    "pre",
    functools.partial(layer_norm, epsilon=1e-5),
    functools.partial(attended, Attended(True)),
    functools.partial(plain, TANH_GELU),
    lambda p, x: embedded(p, x) + p["positions"]["table"],
    lambda p, h: layer_norm(p["norm"], h, 1e-5) @ p["readout"]["table"].T,
)


FIRST_VALUES = attention("causal", value_residual=True)


class Case(NamedTuple):
    """Options of the builder beside the same network in equations."""

    options: dict[str, Any]
    recipe: Recipe | WithFirstValues
    given: dict[str, Any]
    dtype: str = "float64"


CASES = {
    "llama: tokens, rotary, grouped keys, normalized queries and keys, a window, swiglu": Case(
        {
            "style": "llama",
            "inputs": tokens(5, 7),
            "heads": 4,
            "attention": attention("causal", window=3, key_heads=2, positions="rotary", rotary=50.0, qk_norm=1e-5),
        },
        Recipe(
            "pre",
            RMS,
            functools.partial(attended, Attended(True, 3, 50.0, 1e-5)),
            functools.partial(gated, jax.nn.silu),
            embedded,
            lambda p, h: affine(p["readout"], RMS(p["readout"]["before"], h)),
        ),
        {"sigma_qk": 1.5, "sigma_vo": 0.8, "sigma_w": (1.2, 0.9), "sigma_g": 1.3, "sigma_b": 0.3, "sigma_in": 1.1},
        "float32",
    ),
    "gpt2: learned positions, tied readout": Case(
        {"style": "gpt2", "inputs": tokens(5, 7)},
        GPT2,
        {"sigma_qk": 1.5, "sigma_vo": 0.8, "sigma_p": 0.4, "sigma_in": 0.9, "branch": (0.7, 1.2)},
    ),
    "gpt2: a readout of its own": Case(
        {"style": "gpt2", "inputs": tokens(5, 7, tied=False)},
        GPT2._replace(head=lambda p, h: affine(p["readout"], layer_norm(p["readout"]["before"], h, 1e-5))),
        {"sigma_qk": 1.5, "sigma_vo": 0.8, "sigma_p": 0.4, "sigma_in": 0.9, "sigma_out": 1.2},
        "float32",
    ),
    "gpt2: first values": Case(
        {"style": "gpt2", "inputs": tokens(5, 7), "depth": 3, "attention": FIRST_VALUES},
        WithFirstValues(GPT2._replace(stem=embedded, attend=functools.partial(attended, Attended(True))), 0.5),
        {"sigma_qk": 1.5, "sigma_vo": 0.8, "sigma_in": 0.9, "branch": (0.7, 1.2, 0.9), "skip": 0.9},
    ),
    "post: first values": Case(
        {"residual": "post", "depth": 3, "attention": attention("causal", positions="rotary", value_residual=True)},
        WithFirstValues(
            Recipe(
                "post",
                LN,
                functools.partial(attended, Attended(True, None, 1e4)),
                functools.partial(plain, GELU),
                lambda p, x: affine(p["embedding"], x),
                pooled(None),
            ),
            0.3,
        ),
        {"sigma_b": 0.3, "value_skip": 0.3},
        "float32",
    ),
    "sandwich, geglu, layer scale": Case(
        {"residual": branch("sandwich", scheme="layer_scale"), "feed_forward": "geglu"},
        Recipe("sandwich", LN, FULL, functools.partial(gated, GELU), affine, pooled(LN)),
        {"sigma_b": 0.3, "layer_scale": (0.6, 0.8), "sigma_qk": 1.3},
    ),
    "parallel, dyt": Case(
        {"residual": "parallel", "norm": "dyt"},
        Recipe("parallel", DYT, FULL, functools.partial(plain, GELU), affine, pooled(DYT)),
        {"sigma_b": 0.3, "sigma_alpha": (1.2, 1.6), "skip": 0.9, "branch": 0.8},
    ),
    "normalized": Case(
        {"residual": "normalized", "norm": "rms"},
        Recipe(
            "normalized",
            RMS,
            FULL,
            functools.partial(plain, GELU),
            lambda p, x: RMS(p["norm"], affine(p["embedding"], x)),
            pooled(None),
        ),
        {"skip": 0.7, "branch": (0.4, 0.5), "sigma_b": 0.2},
    ),
    "mix": Case(
        {"residual": "mix", "feed_forward": feed_forward("relu", hidden=5)},
        Recipe("mix", LN, FULL, functools.partial(plain, jax.nn.relu), affine, pooled(LN)),
        {"sigma_b": 0.3},
    ),
    "experts, derf": Case(
        {"norm": "derf", "feed_forward": feed_forward("silu", hidden=5, experts=3, chosen=2)},
        Recipe(
            "pre",
            DERF,
            FULL,
            functools.partial(mixture, 2, functools.partial(plain, jax.nn.silu)),
            affine,
            pooled(DERF),
        ),
        {"sigma_b": 0.3, "sigma_r": 1.4, "sigma_alpha": 1.8},
    ),
    "layer norm scaling": Case(
        {"residual": branch("pre", scheme="layer_norm_scaling"), "style": "vit", "attention": "full"},
        Recipe("pre", LN, FULL, functools.partial(plain, TANH_GELU), affine, pooled(LN)),
        {"sigma_b": 0.3},
        "float32",
    ),
}
SLOW = ("mix", "normalized", "layer norm scaling", "gpt2: a readout of its own")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES])
def test_every_gradient_is_that_of_automatic_differentiation(name: str) -> None:
    case = CASES[name]
    tolerance = {"float32": 1e-5, "float64": 1e-11}[case.dtype]
    with jax.enable_x64(case.dtype == "float64"):
        options = {"width": 8, "depth": 2, "heads": 2, "inputs": (5, 3), "dtype": case.dtype}
        net = vg.transformer(**options | case.options)
        parameters = truth.drawn(net)
        scales = vg.Scales(**{name: jnp.asarray(value) for name, value in case.given.items()})
        whole = len(net.input_shape) == 1
        rng = np.random.default_rng(1)
        xs = rng.integers(0, 7, (2, 5)).astype(case.dtype) if whole else rng.normal(size=(2, 5, 3)).astype(case.dtype)
        shape = jax.eval_shape(lambda x: vg.forward(parameters, scales, x), xs[0]).shape
        ys = rng.integers(0, 7, (2, 5)) if whole else rng.normal(size=(2, *shape)).astype(case.dtype)
        ordinary, left = truth.compiled(vg.absorb_scales, parameters, scales)
        flow = truth.compiled(vg.gradient_flow, parameters, scales, xs, ys)
    along = {n: np.broadcast_to(v, net.depth) for n, v in left.items()}
    by_layer = [{n: float(v[i]) for n, v in along.items()} | {"layer": i} for i in range(net.depth)]
    loss = "cross_entropy" if whole else "squared_error"
    # Of a tied readout either end's share: as if the head had a copy of the table.
    apart = replace(ordinary, head=ordinary.whole_head)
    expected = truth.gradients(case.recipe.parts, apart, by_layer, xs, ys, loss)
    for ours, others, what in (
        (flow.log_mean_square, expected.log_mean_square, "states"),
        (flow.log_gradient, expected.log_gradient, "gradients"),
    ):
        np.testing.assert_allclose(ours, others, rtol=0, atol=tolerance, err_msg=what)
    assert set(flow.log_parameter_gradient) == set(expected.log_parameter_gradient)
    for path, log in flow.log_parameter_gradient.items():
        np.testing.assert_allclose(log, expected.log_parameter_gradient[path], rtol=0, atol=tolerance, err_msg=path)
    names = ("hidden", "first_values") if isinstance(case.recipe, WithFirstValues) else ()
    assert set(flow.log_gradient_parts) == set(names)
    for i, part in enumerate(names):
        ours, others = flow.log_gradient_parts[part], expected.log_gradient_parts[i]
        np.testing.assert_allclose(ours, others, rtol=0, atol=tolerance, err_msg=part)
    assert np.all(flow.first_inexact_layer == net.depth + 1)


def test_all_values_can_be_those_of_the_first_block() -> None:
    """Their SVFormer: no other kernel of values is read."""
    net = vg.transformer(width=8, depth=3, heads=2, inputs=(5, 3), attention=FIRST_VALUES)
    flow = vg.gradient_flow(truth.drawn(net), vg.Scales(value_skip=1.0), np.ones((5, 3), np.float32))
    values = flow.log_parameter_gradient["attention/branch/attention/value/kernel"]
    assert np.isfinite(values[0])
    assert np.all(np.isneginf(values[1:]))


def test_pairs_are_marked_where_one_part_would_be_lost_beside_the_other() -> None:
    net = vg.transformer(width=8, depth=8, heads=2, inputs=(5, 3), attention=FIRST_VALUES)
    flow = vg.gradient_flow(truth.drawn(net), vg.Scales(skip=1e10), np.ones((5, 3), np.float32))
    lost = int(min(flow.first_inexact_layer, flow.first_nan_layer))
    assert lost < 8
    # Within a block already: whole, it would grow like its skip, and its parts do not.
    assert np.all(np.isnan(flow.log_mean_square[lost:]))
    assert np.all(np.isnan(flow.log_gradient))


# --- one table at both ends -----------------------------------------------------------------------------------------

TABLE = "stem/embedding/embed/embedding"


class Tied(NamedTuple):
    """A network with a tied readout, beside plain JAX that has one table."""

    parameters: vg.networks.Parameters
    scales: vg.Scales
    xs: np.ndarray
    ys: np.ndarray
    ordinary: vg.networks.Parameters

    def gradient(self) -> np.ndarray:
        """Of the summed cross-entropy by the one table, unrolled in float64."""
        whole, depth = self.ordinary, self.parameters.network.depth
        tree = jax.tree.map(lambda a: np.asarray(a, np.float64), (whole.stem, *whole.stages, whole.head))

        def loss(table: Any, tree: Any) -> Any:
            stem, stage, head = tree
            stem, head = stem | {"embedding": {"embed": {"embedding": table}}}, head | {"readout": {"table": table}}
            layers = [truth.one_layer(stage, False, i) for i in range(depth)]
            here = [{"skip": float(self.scales.get("skip", 1.0))}] * depth, [0.0] * (depth + 1)
            outputs = (truth.run(GPT2.parts, stem, layers, head, here[0], x, here[1])[0] for x in self.xs)
            return sum(truth.loss_of("cross_entropy", out, y) for out, y in zip(outputs, self.ys, strict=True))

        with jax.enable_x64(True):
            return np.asarray(truth.compiled(jax.grad(loss), tree[0]["embedding"]["embed"]["embedding"], tree))


def tied(depth: int, dtype: str, **given: float) -> Tied:
    net = vg.transformer(style="gpt2", inputs=tokens(5, 7), width=8, depth=depth, heads=2, dtype=dtype)
    scales = vg.Scales(**{"sigma_in": 0.9, "sigma_p": 0.5, "sigma_vo": 1.0, "sigma_w": 1.0} | given)
    xs, ys = np.random.default_rng(2).integers(0, 7, (2, 2, 5))
    parameters = truth.drawn(net)
    return Tied(parameters, scales, xs.astype(dtype), ys, vg.absorb_scales(parameters, scales)[0])


# At a skip of 1e10 a first state has grown past float32's range, and not past float64's.
@pytest.mark.parametrize(("depth", "given", "dtype"), [(2, {}, "float64"), (5, {"skip": 1e10}, "float32")])
def test_the_whole_gradient_of_a_tied_table_is_that_of_both_ends(depth: int, given: Any, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        model = tied(depth, dtype, **given)
        flow = vg.gradient_flow(model.parameters, model.scales, model.xs, model.ys)
    assert np.max(np.asarray(flow.log_mean_square)) > 88.8 or not given
    expected = np.log(np.linalg.norm(model.gradient()))
    assert set(flow.log_tied_gradient) == {TABLE}
    assert abs(float(flow.log_tied_gradient[TABLE]) - expected) < {"float32": 1e-5, "float64": 1e-11}[dtype]
    if not given:  # neither share, nor both as if they were perpendicular
        ends = np.array([flow.log_parameter_gradient[path] for path in (TABLE, "head/readout/table")])
        assert np.all(np.abs([*ends, np.logaddexp(*(2 * ends)) / 2] - expected) > 1e-3)


def test_an_optimizer_moves_a_tied_table_once() -> None:
    with jax.enable_x64(True):
        model = tied(2, "float64")
        moved = trainable(model.ordinary)
        assert [path for path in moved if path.endswith(("table", "embedding"))] == [TABLE, "stem/positions/table"]
        data = vg.data.Examples(model.xs, model.ys)
        rates: dict[str, Any] = {"learning_rate": 0.1, "batch_size": None, "loss": "cross_entropy"}
        after = vg.train(model.parameters, model.scales, data, "sgd", 1, **rates)
        change = trainable(after.parameters)[TABLE] - moved[TABLE]
    np.testing.assert_allclose(change, -0.1 * model.gradient() / len(model.xs), rtol=0, atol=1e-12)


def test_a_tied_table_is_held_once_and_read_at_both_ends() -> None:
    model = tied(2, "float32")
    network, x = model.parameters.network, model.xs[0]
    again = vg.networks.network_from_json(vg.networks.network_to_json(network))
    assert again == network
    assert again != vg.transformer(style="gpt2", inputs=tokens(5, 7, tied=False), width=8, depth=2, heads=2)
    before = vg.forward(model.parameters, model.scales, x)
    np.testing.assert_allclose(vg.forward(*vg.absorb_scales(model.parameters, model.scales), x), before, rtol=1e-5)
    # Each size of logits by its own number: a factor on them, and the deviation of the table.
    twice = vg.forward(model.parameters, vg.Scales(**{**model.scales, "sigma_out": 2 * 8**0.5}), x)
    np.testing.assert_allclose(twice, 2 * before, rtol=1e-6)


def test_calibration_leaves_a_tied_table_where_it_is() -> None:
    ends = (vg.blocks.spec(block, 7, 8) for block in (vg.blocks.Embedding, vg.blocks.Unembedding))
    block = vg.dense(8, 8, "tanh", norm="batch_running")
    net = vg.stack(block, depth=2, input_shape=5, **dict(zip(("stem", "head"), ends, strict=True)))
    parameters = vg.init(jax.random.key(0), replace(net, shared=(("table", "embed/embedding"),)))
    assert parameters.head == {}
    after = vg.networks.calibrate(parameters, vg.Scales(), np.random.default_rng(0).integers(0, 7, (4, 5)))
    assert jax.tree.structure(after) == jax.tree.structure(parameters)
    np.testing.assert_array_equal(after.stem["embed"]["embedding"], parameters.stem["embed"]["embedding"])
    assert vg.forward(after, vg.Scales(), np.arange(5)).shape == (5, 7)


def test_a_tied_readout_begins_with_the_logits_of_one_of_its_own() -> None:
    """Of all styles: the variance of logits is that of a kernel with its own entries."""
    size: dict[str, Any] = {"width": 64, "depth": 1, "heads": 4, "inputs": tokens(16, 2000, tied=True)}
    for style in ("encoder", "gpt2", "llama", "bert"):
        nets = [vg.transformer(style=style, **size | {"inputs": tokens(16, 2000, tied=t)}) for t in (True, False)]
        logits = [vg.forward(vg.init(jax.random.key(0), net), vg.Scales(), np.arange(16)) for net in nets]
        # But for the logit of the token that stands there, whose row the state holds.
        apart = np.arange(16)[:, None] != np.arange(2000)
        tied_std, own_std = (np.std(np.asarray(each)[apart]) for each in logits)
        assert tied_std == pytest.approx(own_std, rel=0.06), style


# --- single parts -----------------------------------------------------------------------------------------------------


def test_positions_of_sines_are_those_of_the_paper() -> None:
    """Vaswani et al. 2017, section 3.5, entry by entry; never trained."""
    block = vg.blocks.Positions(5, 6, "sinusoidal", rngs=nnx.Rngs(0))
    expected = [[f(t * 10_000 ** (-2 * i / 6)) for f in (np.sin, np.cos) for i in range(3)] for t in range(5)]
    h = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    np.testing.assert_allclose(block(h, vg.Scales(sigma_p=2.0)), h + 2 * np.array(expected), atol=1e-6)
    assert not jax.tree.leaves(nnx.state(block, nnx.Param))


def test_rotation_tells_distances_alone() -> None:
    """Su et al. 2021: q_s . k_t depends on s - t; norms are kept."""
    rng = np.random.default_rng(0)
    q, k = (np.repeat(rng.normal(size=(1, 2, 6)), 7, axis=0).astype(np.float32) for _ in range(2))
    turned_q, turned_k = (vg.blocks.attention.turned(jnp.asarray(a), 100.0) for a in (q, k))
    logits = np.einsum("shd,thd->hst", turned_q, turned_k)
    for away in range(-6, 7):
        for head in logits:
            np.testing.assert_allclose(np.diagonal(head, away), np.diagonal(head, away)[0], atol=1e-5)
    assert np.ptp([np.diagonal(logits[0], away)[0] for away in range(-6, 7)]) > 0.1
    np.testing.assert_allclose(np.linalg.norm(turned_q, axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-6)


def test_what_a_mask_hides_has_no_influence() -> None:
    """Of the Jacobian of token i by token j the zeros are where the mask says."""
    block = vg.blocks.Attention(4, 2, mask="causal", window=3, rngs=nnx.Rngs(0))
    scales = vg.Scales(**{name: scale.default for name, scale in block.scales.items()})
    h = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    jacobian = jax.jacobian(lambda h: block(h, scales))(jnp.asarray(h))
    seen = np.abs(jacobian).sum(axis=(1, 3)) > 0
    np.testing.assert_array_equal(seen, [[0 <= i - j < 3 for j in range(6)] for i in range(6)])


def test_experts_report_their_load() -> None:
    """Four tokens on two unit vectors, a router that sends each to its own expert of three."""
    block = vg.blocks.Experts(vg.dense(2, 2), 2, experts=4, chosen=1, rngs=nnx.Rngs(0))
    block.router[...] = jnp.array([[1.0, 0, -1, -1], [0, 1.0, -1, -1]])
    scales = vg.Scales(sigma_r=1.0, sigma_w=1.0, sigma_b=0.0)
    h = jnp.array([[1.0, 0], [1.0, 0], [1.0, 0], [0, 1.0]])
    told = block.diagnostics(h, scales)
    assert told["largest_load"] == 3  # three of four tokens, where a fair share is one
    assert told["idle_experts"] == 0.5
    # Of equal logits as many are chosen as of others.
    np.testing.assert_array_equal(block.weights(0 * h, scales), np.tile([1.0, 0, 0, 0], (4, 1)))
    net = vg.transformer(width=4, depth=2, heads=2, inputs=(3, 4), feed_forward=feed_forward("relu", experts=3))
    flow = vg.gradient_flow(truth.drawn(net), vg.Scales(), np.ones((3, 4), np.float32))
    assert set(flow.diagnostics) == {f"feed_forward/mixture/{n}" for n in ("largest_load", "idle_experts")}
    assert np.all(flow.diagnostics["feed_forward/mixture/largest_load"] >= 1)


@pytest.mark.parametrize("how", ["sum", "product", "maximum"])
def test_blocks_side_by_side_are_joined_at_any_size(how: str) -> None:
    """Past float32 against float64; maxout is homogeneous (degree 1), a product of two maps is not (degree 2)."""
    width, depth = 6, 6 if how == "product" else 60
    net = vg.stack(vg.networks.parallel(how, *[vg.dense(width, width)] * 2), depth=depth, input_shape=width)
    parameters, scales = truth.drawn(net), vg.Scales(sigma_w=30.0, sigma_b=0.5)
    x = np.random.default_rng(0).normal(size=width).astype(np.float32)
    ours = truth.compiled(vg.gradient_flow, parameters, scales, x)
    with jax.enable_x64(True):
        wide = truth.compiled(vg.gradient_flow, parameters.astype("float64"), scales, x)
    assert np.all(wide.log_mean_square[-1] / 2 > 90)  # float32 ends at 88.7
    np.testing.assert_allclose(ours.log_mean_square, wide.log_mean_square, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.log_gradient, wide.log_gradient, rtol=1e-5, atol=1e-5)
    assert ours.first_inexact_layer == depth + 1


@pytest.mark.parametrize("phi", ["silu", "linear"])
@pytest.mark.parametrize(("sigma_w", "sigma_b"), [(0.05, 0.0), (0.05, 1e-3), (20.0, 0.0), (20.0, 1.0)])
def test_gated_units_without_norms_are_exact_past_the_range_or_marked(phi: str, sigma_w: float, sigma_b: float) -> None:
    """Degree 2 above. Below it is 2 as well without a bias and 1 with one, which the block cannot know: marked."""
    gate = vg.networks.chain(vg.dense(6, 6), vg.blocks.spec(vg.blocks.Activate, activation=vg.activations.get(phi)))
    block = vg.networks.chain(vg.networks.parallel("product", gate, vg.dense(6, 6)), vg.dense(6, 6))
    net = vg.stack(block, depth=7, input_shape=6)
    parameters, scales = truth.drawn(net), vg.Scales(sigma_w=sigma_w, sigma_b=sigma_b)
    x = np.random.default_rng(0).normal(size=6).astype(np.float32)
    ours = truth.compiled(vg.push_forward, parameters, scales, x)
    with jax.enable_x64(True):
        wide = truth.compiled(vg.push_forward, parameters.astype("float64"), scales, x)
    exact = np.isfinite(ours.log_gain)
    np.testing.assert_allclose(ours.log_gain[exact], wide.log_gain[exact], rtol=1e-5, atol=1e-5)
    if sigma_w > 1:
        assert exact.all()
        assert wide.log_mean_square[-1] / 2 > 90  # float32 ends at 88.7
    else:
        assert exact.sum() > 2


@pytest.mark.parametrize("sigma_vo", [0.03, 30.0])
def test_normalized_queries_are_exact_past_the_range_without_an_epsilon(sigma_vo: float) -> None:
    """A state that shrinks has no size below which a norm without epsilon would see nothing."""
    net = vg.stack(vg.blocks.spec(vg.blocks.Attention, 8, 2, qk_norm=0.0), depth=40, input_shape=(4, 8))
    parameters, scales = truth.drawn(net), vg.Scales(sigma_vo=sigma_vo)
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    ours = truth.compiled(vg.gradient_flow, parameters, scales, x)
    with jax.enable_x64(True):
        wide = truth.compiled(vg.gradient_flow, parameters.astype("float64"), scales, x)
    assert np.all(np.abs(wide.log_mean_square[-1]) / 2 > 90)  # float32 ends at 88.7
    np.testing.assert_allclose(ours.log_mean_square, wide.log_mean_square, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.log_gradient, wide.log_gradient, rtol=1e-5, atol=1e-5)


def test_states_without_norms_are_exact_past_the_range() -> None:
    """Tokens that have become nearly alike, under logits of 1e18 and more: float32 against float64."""
    net = vg.transformer(width=8, depth=12, heads=2, inputs=(4, 8), norm=None, feed_forward="relu")
    parameters, scales = truth.drawn(net), vg.Scales(sigma_vo=30.0, sigma_w=30.0, sigma_qk=0.5, sigma_b=0.5)
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    ours = truth.compiled(vg.push_forward, parameters, scales, x)
    with jax.enable_x64(True):
        wide = truth.compiled(vg.push_forward, parameters.astype("float64"), scales, x)
    assert wide.log_mean_square[-1] / 2 > 90  # float32 ends at 88.7
    np.testing.assert_allclose(ours.log_mean_square, wide.log_mean_square, rtol=1e-5, atol=1e-5)


# --- styles ---------------------------------------------------------------------------------------------------------


def deviations(net: vg.Network) -> dict[str, float]:
    """Standard deviations of the entries of ordinary parameters, as they stand at default scales."""
    ordinary, _ = vg.absorb_scales(vg.init(jax.random.key(0), net), vg.Scales())
    leaves = jax.tree_util.tree_leaves_with_path((ordinary.stem, ordinary.stages, ordinary.head))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): float(np.std(leaf)) for path, leaf in leaves}


def test_styles_have_the_entries_of_their_papers() -> None:
    """GPT-2: .02, positions .01, behind every branch .02 / sqrt(2 L); Llama: .02; BERT: .02, cut; ViT: Glorot."""
    size = {"width": 64, "depth": 3, "heads": 4}
    for style, last, positions in (("gpt2", 0.02 / 6**0.5, 0.01), ("llama", 0.02, None), ("bert", 0.02, 0.02)):
        found = deviations(vg.transformer(style=style, inputs=tokens(32, 100), **size))
        behind = {n: v for n, v in found.items() if n.endswith(("out/kernel", "layer_2/kernel")) and "readout" not in n}
        table = {n: v for n, v in found.items() if n.endswith("table")}
        others = {n: v for n, v in found.items() if n.endswith(("kernel", "embedding")) and n not in behind}
        assert len(behind) == 2
        assert len(others) == (7 if style == "llama" else 5)  # GPT-2 and BERT read by the table
        for group, expected in ((behind, last), (table, positions), (others, 0.02)):
            for name, deviation in group.items():
                assert deviation == pytest.approx(expected, rel=0.06), (style, name)
        assert bool(table) == (positions is not None)
        assert all(v == 0 for n, v in found.items() if n.endswith("bias"))
    vit = deviations(vg.transformer(style="vit", inputs=(16, 48), **size))
    for name, expected in (
        ("layer_1/kernel", (2 / (64 + 256)) ** 0.5),
        ("layer_2/kernel", (2 / (64 + 256)) ** 0.5),
        ("query/kernel", (2 / 128) ** 0.5),
        ("table", 0.02),
    ):
        (found_one,) = (v for n, v in vit.items() if n.endswith(name))
        assert found_one == pytest.approx(expected, rel=0.06), name


def test_a_language_model_reads_logits_at_every_token() -> None:
    net = vg.transformer(style="gpt2", width=8, depth=2, heads=2, inputs=tokens(5, 7))
    assert vg.networks.network.output_shape(net) == (5, 7)
    read = vg.transformer(style="gpt2", width=8, depth=2, heads=2, inputs=tokens(5, 7), outputs=3)
    assert vg.networks.network.output_shape(read) == (3,)
    again = vg.networks.network_from_json(vg.networks.network_to_json(net))
    assert again == net


def test_schemes_of_branches_have_their_numbers() -> None:
    size = {"width": 8, "depth": 20, "heads": 2, "inputs": (5, 3)}

    def default(scheme: str, name: str, place: str = "pre") -> Any:
        return vg.transformer(residual=branch(place, scheme=scheme), **size).scales[name].default

    assert default("complete", "branch") == pytest.approx(1 / 20)
    assert default("stable", "branch") == pytest.approx(20**-0.5)
    assert default("layer_scale", "layer_scale") == 1e-5  # Touvron et al. 2021: 18 < 20 <= 24 blocks
    np.testing.assert_allclose(default("layer_norm_scaling", "norm_gain"), np.arange(1, 21) ** -0.5)
    assert [default("layer_scale", "layer_scale") for size["depth"] in (18, 19, 24, 25)] == [0.1, 1e-5, 1e-5, 1e-6]
    size["depth"] = 20
    # Wang et al. 2022: of values, outputs and the feed-forward layer, here of Glorot's and of GPT-2's numbers.
    for style, names in (("vit", ("sigma_1", "sigma_2", "sigma_v")), ("gpt2", ("sigma_2", "sigma_v", "sigma_o"))):
        deep, plain = (
            vg.transformer(style=style, residual=skips, **size).completed(vg.Scales())
            for skips in (branch("post", scheme="deepnorm"), "post")
        )
        for name in names:
            assert deep[name] == pytest.approx(160**-0.25 * plain[name]), (style, name)
        assert deep["sigma_q"] == plain["sigma_q"]
    early = vg.transformer(residual="mix", **size).stages
    assert [stage.depth for stage in early] == [5, 15]
    normalized = vg.transformer(residual="normalized", **size).scales
    assert (normalized["skip"].default, normalized["branch"].default) == (0.95, 0.05)


# --- refusals -------------------------------------------------------------------------------------------------------

SIZE: dict[str, Any] = {"width": 8, "depth": 2, "heads": 2, "inputs": (5, 3)}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: vg.transformer(**SIZE | {"heads": 3}), "heads must divide the width 8, got 3"),
        (
            lambda: vg.transformer(**SIZE | {"heads": 4}, attention=attention(key_heads=3)),
            "key_heads must divide the heads 4, got 3",
        ),
        (
            lambda: vg.transformer(**SIZE | {"heads": 8}, attention=attention(positions="rotary")),
            "rotary needs heads of an even size, got width / heads = 1",
        ),
        (
            lambda: attention(value_residual=True, key_heads=1),
            "key_heads must be left out with value_residual, which keeps a state of values, got 1",
        ),
        (
            lambda: vg.transformer(**SIZE, attention=FIRST_VALUES, residual="parallel"),
            "value_residual takes a skip around the attention alone, got 'parallel', scheme None",
        ),
        (
            lambda: vg.transformer(**SIZE, attention=FIRST_VALUES, residual=branch("pre", scheme="rezero")),
            "value_residual takes a skip around the attention alone, got 'pre', scheme 'rezero'",
        ),
        (
            lambda: vg.blocks.ValueResidual(vg.dense(4, 4), first=True, rngs=nnx.Rngs(0)),
            "branch must be a chain with one attention, keys for every head, got Dense(4, 4",
        ),
        (
            lambda: vg.stack(
                vg.transformer(**SIZE, attention=FIRST_VALUES).stages[0].spec, depth=1, input_shape=(5, 8)
            ),
            "ValueResidual must take a state of shape (2, tokens, width), got (5, 8)",
        ),
        (lambda: attention("casual"), "did you mean 'causal'?"),
        (lambda: attention(positions="sine"), "positions must be one of rotary, learned, sinusoidal, got 'sine'"),
        (lambda: attention(window=0), "window must be at least 1, got 0"),
        (lambda: attention(qk_norm=-1.0), "qk_norm must be finite and not negative, got -1"),
        (
            lambda: vg.blocks.Attention(8, 2, qk_norm=-1.0, rngs=nnx.Rngs(0)),
            "epsilon must be finite and not negative, got -1",
        ),
        (
            lambda: vg.stack(vg.blocks.spec(vg.blocks.Positions, 1, 8, "learned"), depth=1, input_shape=(4, 8)),
            "positions are those of a state of shape (1, 8), got (4, 8)",
        ),
        (lambda: attention(rotary=0.0), "rotary must be finite and positive, got 0"),
        (lambda: feed_forward("gelu", experts=2, chosen=3), "chosen must be at most the number of experts, 2, got 3"),
        (lambda: feed_forward("swglu"), "swglu"),
        (lambda: feed_forward("relu", chosen=5), "chosen needs experts to choose from, got 5 and no experts"),
        (lambda: vg.norm("dyt", epsilon=1e-3), "norm 'dyt' takes no options, got some"),
        (
            lambda: vg.networks.parallel("sum", vg.dense(2, 2), layer_1=vg.dense(2, 2)),
            "parts need names that nothing else has, got 'layer_1'",
        ),
        (lambda: vg.networks.chain(order=vg.dense(2, 2)), "parts need names that nothing else has, got 'order'"),
        (
            lambda: vg.transformer(**SIZE | {"inputs": tokens(5, 7, tied=True)}, outputs=3),
            "outputs must be left out where the readout is tied to the vocabulary, got 3",
        ),
        (
            lambda: replace(vg.mlp(width=4, depth=2, inputs=4, stem=False), shared=(("a", "b"),)),
            "stem and head must be there to share parameters, got none for ('a', 'b')",
        ),
        (lambda: tokens(0, 7), "length must be at least 1, got 0"),
        (lambda: vg.transformer(**SIZE, style="gpt3"), "style must be one of encoder, gpt2, llama, vit, bert"),
        (
            lambda: vg.transformer(**SIZE, residual=branch("post", scheme="layer_norm_scaling")),
            "scheme 'layer_norm_scaling' needs residual 'pre' and a norm, got 'post'",
        ),
        (lambda: vg.transformer(**SIZE, residual="sandwich", norm=None), "residual 'sandwich' needs a norm, got None"),
        (
            lambda: vg.transformer(**SIZE, residual="parallel", feed_forward=None),
            "residual 'parallel' needs a feed-forward layer beside the attention, got None",
        ),
        (
            lambda: vg.transformer(**SIZE, residual=branch("normalized", scheme="stable")),
            "residual 'normalized' has factors of its own, got scheme 'stable'",
        ),
        (
            lambda: vg.transformer(**SIZE | {"width": 9, "heads": 3}, attention=attention(positions="sinusoidal")),
            "sinusoidal positions need an even width, got 9",
        ),
        (lambda: vg.networks.parallel("sum", vg.dense(2, 2)), "parallel needs at least 2 blocks to join, got 1"),
        (lambda: vg.networks.parallel("mean", *[vg.dense(2, 2)] * 2), "how must be one of sum, product, maximum"),
        (
            lambda: vg.stack(vg.networks.parallel("sum", vg.dense(2, 2), vg.dense(2, 3)), depth=1, input_shape=2),
            "parts must make states of one shape to be joined, got [(2,), (3,)]",
        ),
        (lambda: vg.mlp(width=4, depth=2, inputs=2, residual="sandwich"), "residual must be one of plain, pre, post"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        build()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [[0, 1, 7], [0, -1, 2], [0, 0.5, 2]])
def test_tokens_out_of_range_are_refused(bad: list[float]) -> None:
    net = vg.transformer(style="llama", width=4, depth=1, heads=2, inputs=tokens(3, 7))
    with pytest.raises(ValueError, match=r"x must hold tokens, whole numbers from 0 to 6, got (7|-1|0\.5)"):
        vg.forward(truth.drawn(net), vg.Scales(), np.array(bad))


def test_tokens_out_of_range_are_refused_without_a_stem_too() -> None:
    net = vg.stack(vg.blocks.spec(vg.blocks.Embedding, 5, 8), depth=1, input_shape=(4,))
    with pytest.raises(ValueError, match="x must hold tokens, whole numbers from 0 to 4, got 9"):
        vg.forward(truth.drawn(net), vg.Scales(), np.array([0, 4, 9, 1]))


def test_the_norm_of_a_head_that_is_none_has_the_alpha_of_the_others() -> None:
    """Zhu et al. 2025: one alpha_0 for all, 1/2."""
    net = vg.transformer(**SIZE, norm="dyt")
    ordinary, _ = vg.absorb_scales(vg.init(jax.random.key(0), net), vg.Scales())
    blocks = ordinary.stages[0]["attention"]["branch"]["norm"]["alpha"]
    np.testing.assert_array_equal(blocks, 0.5)
    np.testing.assert_array_equal(ordinary.head["before"]["alpha"], 0.5)


def test_defaults_by_layer_belong_to_networks_of_that_depth() -> None:
    block = vg.transformer(**SIZE, residual=branch("pre", scheme="layer_norm_scaling")).stages[0].spec
    net = vg.stack(block, depth=3, input_shape=(5, 8))
    message = "scale norm_gain has a default for each of 2 layers, so the network must have that depth, got depth 3"
    with pytest.raises(ValueError, match=re.escape(message)):
        vg.forward(truth.drawn(net), vg.Scales(), np.ones((5, 8), np.float32))
