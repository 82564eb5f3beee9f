"""The parts of transformers as they are trained, against plain JAX written from the papers' equations."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import architecture_oracles as truth
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vgjax as vg
from vgjax.networks import attention, branch, feed_forward, tokens

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


def attended(how: Attended, p: Tree, h: Any) -> Any:
    """Head by head, token by token; each group of query heads reads one head of keys and values."""
    query, key, value = (jnp.einsum("tw,whd->thd", h, p[name]["kernel"]) for name in ("query", "key", "value"))
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


def embedded(p: Tree, x: Any) -> Any:
    return p["embedding"]["embed"]["embedding"][x.astype(int)]


def pooled(norm: Callable[[Tree, Any], Any] | None) -> Callable[[Tree, Any], Any]:
    return lambda p, h: affine(p, jnp.mean(norm(p["before"], h) if norm else h, axis=0))


GELU, TANH_GELU = functools.partial(jax.nn.gelu, approximate=False), functools.partial(jax.nn.gelu, approximate=True)
LN, RMS = functools.partial(layer_norm, epsilon=1e-6), functools.partial(rms_norm, epsilon=1e-6)
DYT, DERF = functools.partial(pointwise, f=jnp.tanh), functools.partial(pointwise, f=jax.scipy.special.erf)
FULL = functools.partial(attended, Attended())


class Case(NamedTuple):
    """Options of the builder beside the same network in equations."""

    options: dict[str, Any]
    recipe: Recipe
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
    "gpt2: learned positions": Case(
        {"style": "gpt2", "inputs": tokens(5, 7)},
        Recipe(
            "pre",
            functools.partial(layer_norm, epsilon=1e-5),
            functools.partial(attended, Attended(True)),
            functools.partial(plain, TANH_GELU),
            lambda p, x: embedded(p, x) + p["positions"]["table"],
            lambda p, h: affine(p["readout"], layer_norm(p["readout"]["before"], h, 1e-5)),
        ),
        {"sigma_qk": 1.5, "sigma_vo": 0.8, "sigma_p": 0.4, "sigma_in": 0.9, "branch": (0.7, 1.2)},
    ),
    "sandwich, geglu, layer scale": Case(
        {"residual": branch("sandwich", scheme="layer_scale"), "feed_forward": "geglu"},
        Recipe("sandwich", LN, FULL, functools.partial(gated, GELU), affine, pooled(LN)),
        {"sigma_b": 0.3, "layer_scale": (0.6, 0.8), "sigma_qk": 1.3},
    ),
    "parallel, dyt": Case(
        {"residual": "parallel", "norm": "dyt"},
        Recipe("parallel", DYT, FULL, functools.partial(plain, GELU), affine, pooled(DYT)),
        {"sigma_b": 0.3, "alpha": (0.6, 0.8), "skip": 0.9, "branch": 0.8},
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
        {"sigma_b": 0.3, "sigma_r": 1.4, "alpha": 0.9},
    ),
    "layer norm scaling": Case(
        {"residual": branch("pre", scheme="layer_norm_scaling"), "style": "vit", "attention": "full"},
        Recipe("pre", LN, FULL, functools.partial(plain, GELU), affine, pooled(LN)),
        {"sigma_b": 0.3},
        "float32",
    ),
}
SLOW = ("mix", "normalized", "layer norm scaling")


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
    along = {n: np.broadcast_to(v, 2) for n, v in left.items()}
    by_layer = [{n: float(v[i]) for n, v in along.items()} for i in range(2)]
    loss = "cross_entropy" if whole else "squared_error"
    expected = truth.gradients(case.recipe.parts, ordinary, by_layer, xs, ys, loss)
    for ours, others, what in (
        (flow.log_mean_square, expected.log_mean_square, "states"),
        (flow.log_gradient, expected.log_gradient, "gradients"),
    ):
        np.testing.assert_allclose(ours, others, rtol=0, atol=tolerance, err_msg=what)
    assert set(flow.log_parameter_gradient) == set(expected.log_parameter_gradient)
    for path, log in flow.log_parameter_gradient.items():
        np.testing.assert_allclose(log, expected.log_parameter_gradient[path], rtol=0, atol=tolerance, err_msg=path)
    assert np.all(flow.first_inexact_layer == 3)
