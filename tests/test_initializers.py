"""Unit-gain draws, named schemes, scales as a pytree, and the kinds of scales."""

import copy
import math
import pickle
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vgjax as vg
from vgjax import initializers

KEY = jax.random.key(0)


@pytest.mark.parametrize("kernel_init", ["gaussian", "truncated", "uniform", "orthogonal"])
@pytest.mark.parametrize(("fan_in", "fan_out"), [(90, 31), (31, 90)], ids=["narrowing", "widening"])
def test_every_draw_has_unit_gain(kernel_init: str, fan_in: int, fan_out: int) -> None:
    squares = (
        np.asarray(initializers.kernel_initializer(kernel_init)(KEY, (fan_in, fan_out), jnp.float32), np.float64) ** 2
        * fan_in
    )
    error = squares.std() / math.sqrt(squares.size)
    assert abs(squares.mean() - 1) < 4 * error


@pytest.mark.parametrize(
    "kernel_init",
    [pytest.param(kernel_init, marks=pytest.mark.slow) for kernel_init in ("truncated", "uniform")]
    + ["gaussian", "orthogonal"],
)
def test_kernels_of_a_network_have_unit_gain_in_every_layer(kernel_init: str) -> None:
    net = vg.mlp(width=(20, 35, 35, 35), inputs=50, outputs=40, kernel_init=kernel_init)
    params = vg.init(KEY, net)
    kernels = [params.stem["kernel"], params.head["kernel"], *(k for s in params.stages for k in s["kernel"])]
    assert [k.shape for k in kernels] == [(50, 20), (35, 40), (20, 35), (35, 35), (35, 35)]
    for kernel in kernels:
        squares = np.asarray(kernel, np.float64) ** 2 * kernel.shape[0]
        assert abs(squares.mean() - 1) < 4 * squares.std() / math.sqrt(squares.size)
    biases = np.concatenate([params.stem["bias"], *(s["bias"].ravel() for s in params.stages)])
    assert abs(np.mean(biases**2) - 1) < 4 * math.sqrt(2 / biases.size)
    assert not np.any(params.head["bias"])
    assert len({float(k[0, 0]) for k in kernels}) == len(kernels)


@pytest.mark.parametrize(("fan_in", "fan_out"), [(40, 12), (12, 40), (12, 12)], ids=["narrow", "wide", "square"])
def test_orthogonal_kernels_are_orthogonal(fan_in: int, fan_out: int) -> None:
    w = np.asarray(initializers.kernel_initializer("orthogonal")(KEY, (fan_in, fan_out), jnp.float32), np.float64)
    product, scale = (w @ w.T, fan_out / fan_in) if fan_out > fan_in else (w.T @ w, 1)
    np.testing.assert_allclose(product, scale * np.eye(len(product)), atol=1e-5)


def test_bounded_draws_keep_their_bounds() -> None:
    uniform, truncated = (
        np.abs(initializers.kernel_initializer(kernel_init)(KEY, (25, 400), jnp.float32))
        for kernel_init in ("uniform", "truncated")
    )
    assert 0.99 < uniform.max() / math.sqrt(3 / 25) <= 1
    deviation = 0.8796256610342398  # of a standard normal cut at 2
    assert 0.99 < truncated.max() / (2 / deviation / 5) <= 1.0001


@pytest.mark.parametrize("author", ["lecun", "glorot", "he"])
@pytest.mark.parametrize("shape", ["normal", "uniform"])
def test_schemes_are_those_of_jax(author: str, shape: str) -> None:
    fans = (60, 500)
    scheme = vg.networks.scheme(f"{author}_{shape}", *fans)
    ours = scheme.sigma_w * np.asarray(
        initializers.kernel_initializer(scheme.kernel_init)(KEY, fans, jnp.float32), np.float64
    )
    theirs = np.asarray(getattr(jax.nn.initializers, f"{author}_{shape}")()(jax.random.key(1), fans), np.float64)
    assert ours.var() == pytest.approx(theirs.var(), rel=0.03)
    assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=0.01)


@pytest.mark.parametrize(
    ("name", "fans", "message"),
    [
        ("xavier", (3, 4), "scheme must be one of lecun_normal"),
        ("he_norml", (3, 4), "did you mean 'he_normal'"),
        ("he_normal", (0, 4), "fan_in must be at least 1, got 0"),
        ("he_normal", (3, 4.0), "fan_out must be a whole number"),
    ],
)
def test_unknown_schemes_are_refused_in_one_sentence(name: str, fans: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vg.networks.scheme(name, *fans)


# --- scales ---------------------------------------------------------------------------------------------------------


def test_scales_are_a_pytree_and_a_mapping() -> None:
    scales = vg.Scales(sigma_w=1.5, sigma_b=np.array([0.1, 0.2]))
    doubled = jax.tree.map(lambda s: 2 * s, scales)
    assert isinstance(doubled, vg.Scales)
    assert doubled.sigma_w == doubled["sigma_w"] == 3
    np.testing.assert_allclose(doubled.sigma_b, [0.2, 0.4])
    assert set({**doubled}) == {"sigma_w", "sigma_b"}
    assert len(scales) == 2
    leaves, structure = jax.tree.flatten(scales)
    assert structure == jax.tree.structure(vg.Scales(sigma_b=1, sigma_w=2))  # whatever the order
    assert jax.tree.unflatten(structure, leaves).sigma_w == 1.5
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(scales)]
    assert paths == [".sigma_b", ".sigma_w"]


def test_scales_go_through_jit_vmap_and_grad() -> None:
    def product(scales: vg.Scales) -> jax.Array:
        return scales.sigma_w**2 * scales.sigma_b

    grid = vg.Scales(sigma_w=jnp.array([1.0, 2.0]), sigma_b=jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(jax.jit(jax.vmap(product))(grid), [3, 16])
    slope = jax.grad(product)(vg.Scales(sigma_w=2.0, sigma_b=3.0))
    assert (slope.sigma_w, slope.sigma_b) == (12, 4)


def test_an_unknown_scale_is_an_attribute_error_that_names_those_there_are() -> None:
    with pytest.raises(AttributeError, match="no scale 'sigma_v' here; there are sigma_w"):
        _ = vg.Scales(sigma_w=1.0).sigma_v


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "sigma_w must be finite, got nan"),
        ([1.0, math.inf], "sigma_w must be finite, got inf"),
        ("1.5", "sigma_w must be a number or an array of numbers, got '1.5'"),
        (None, "sigma_w must be a number or an array of numbers, got None"),
        (1j, "sigma_w must be a number or an array of numbers, got 1j"),
        (True, "sigma_w must be a number or an array of numbers, got True"),
    ],
)
def test_scales_must_be_finite_numbers(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        vg.Scales(sigma_w=value)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda scales: pickle.loads(pickle.dumps(scales))])
def test_scales_can_be_copied_and_pickled(copied: Any) -> None:
    again = copied(vg.Scales(sigma_w=1.5, sigma_b=np.array([0.1, 0.2])))
    assert isinstance(again, vg.Scales)
    assert list(again) == ["sigma_w", "sigma_b"]
    assert again.sigma_w == 1.5
    np.testing.assert_array_equal(again.sigma_b, np.array([0.1, 0.2], np.float32))


RULES = {
    "parameter": ([0.0, 3.0], -1.0, "finite and not negative"),
    "factor": ([-2.0, 0.0], None, None),
    "rate": ([0.0, 0.99], 1.0, "finite and at least 0 and below 1"),
    "offset": ([-2.0, 0.0], None, None),
    "divisor": ([0.1, 3.0], 0.0, "finite and positive"),
}


@pytest.mark.parametrize("kind", RULES)
def test_a_scale_is_checked_by_its_kind(kind: str) -> None:
    good, bad, rule = RULES[kind]
    scale = vg.blocks.Scale(1.0, kind)
    scale.check("s", good)
    jax.jit(lambda s: scale.check("s", s))(-1.0)  # a traced value cannot be looked at
    if bad is not None:
        with pytest.raises(ValueError, match=f"^s must be {rule}, got {bad:g}$"):
            scale.check("s", [good[0], bad])
    assert scale.unit == 1
    assert vg.blocks.Scale(0.3, kind).unit == (1 if kind == "parameter" else 0.3)


def test_every_kind_of_scale_has_a_test() -> None:
    assert set(RULES) == set(initializers.KINDS)
