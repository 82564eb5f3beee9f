"""Losses by name and of one's own, against plain JAX in float64, and past the float range against mpmath."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import vgjax as vg
from vgjax.floatexp import FloatExp, normalize
from vgjax.measure import losses

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
TOLERANCE = {"float32": 2e-5, "float64": 1e-11}

# Every loss written out, of one example and a sum over its terms; none of the library's formulas.
PLAIN: dict[str, Callable[[Any, Any], Any]] = {
    "squared_error": lambda f, y: jnp.sum((f - y) ** 2) / 2,
    "binary_cross_entropy": lambda f, y: jnp.sum(jnp.log(1 + jnp.exp(f)) - y * f),
    "cross_entropy": lambda f, y: -jnp.sum(y * (f - jnp.log(jnp.sum(jnp.exp(f), axis=-1, keepdims=True)))),
    "cotangent": lambda f, y: jnp.sum(f * y),
}
NETWORKS: dict[str, Callable[[str], vg.Network]] = {
    "three outputs": lambda dtype: vg.mlp(width=5, depth=2, inputs=4, outputs=3, dtype=dtype),
    "one output": lambda dtype: vg.mlp(width=5, depth=2, inputs=4, outputs=1, dtype=dtype),
    "every step": lambda dtype: vg.rnn(width=4, depth=3, inputs=2, outputs=3, every_step=True, dtype=dtype),
    "a batch is a state": lambda dtype: vg.mlp(
        width=4, depth=2, inputs=3, outputs=2, norm=vg.norm("batch", batch=5), dtype=dtype
    ),
}


def target(kind: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "labels":
        return rng.integers(0, shape[-1], shape[:-1])
    if kind == "one-hot":
        return np.eye(shape[-1])[rng.integers(0, shape[-1], shape[:-1])]
    if kind == "soft":
        return rng.dirichlet(np.ones(shape[-1]), shape[:-1])
    if kind == "binary":
        return rng.integers(0, 2, shape)
    return rng.uniform(size=shape) if kind == "shares" else rng.normal(size=shape)


def as_numbers(loss: str, y: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Labels as one-hot rows."""
    return np.eye(shape[-1])[y] if loss == "cross_entropy" and y.ndim < len(shape) else np.reshape(y, shape)


KINDS = {
    "squared_error": ("numbers",),
    "binary_cross_entropy": ("binary", "shares"),
    "cross_entropy": ("labels", "one-hot", "soft"),
    "cotangent": ("numbers",),
}
CASES = [
    (network, loss, kind, dtype)
    for network, (loss, kinds), dtype in itertools.product(NETWORKS, KINDS.items(), ("float32", "float64"))
    for kind in kinds
    # Each kind of target once, each network once, and one of each in float64.
    if (network == "three outputs" or kind == kinds[-1])
    and (dtype == "float32" or network == "every step")
    and not (network == "one output" and loss == "cross_entropy")
]


@pytest.mark.parametrize(("network", "loss", "kind", "dtype"), CASES)
def test_the_cotangent_is_that_of_plain_jax(network: str, loss: str, kind: str, dtype: str) -> None:
    """What the head's bias reads: dL/df summed over examples, steps and rows, L the sum or the mean of all terms."""
    with jax.enable_x64(dtype == "float64"):
        net = NETWORKS[network](dtype)
        parameters = vg.init(KEY, net)
        xs = np.random.default_rng(1).normal(size=(2, *net.input_shape)).astype(dtype)
        shape = jax.eval_shape(vg.forward, parameters, vg.Scales(), xs[0]).shape
        ys = np.stack([target(kind, shape, seed) for seed in (0, 1)])
        means = ("", "mean_") if loss != "cotangent" and kind == KINDS[loss][-1] else ("",)
        ours = [vg.gradient_flow(parameters, vg.Scales(), xs, ys, loss=mean + loss) for mean in means]
        outputs = np.asarray(jax.vmap(lambda x: vg.forward(parameters, vg.Scales(), x))(xs), np.float64)
    with jax.enable_x64(True):
        numbers = as_numbers(loss, ys, outputs.shape)
        terms = outputs[..., 0].size if loss == "cross_entropy" else outputs.size
        deltas = np.asarray(jax.grad(lambda f: sum(map(PLAIN[loss], f, numbers)))(outputs))
        expected = np.log(np.linalg.norm(deltas.reshape(-1, shape[-1]).sum(axis=0)))
    for flow, log_count in zip(ours, (0, np.log(terms)), strict=False):
        of_head = flow.log_parameter_gradient["head/bias"]
        np.testing.assert_allclose(of_head, expected - log_count, rtol=0, atol=TOLERANCE[dtype] * 10)
        assert not np.any(flow.saturated)
    for a, b in itertools.pairwise(ours):
        np.testing.assert_allclose(a.log_gradient - b.log_gradient, np.log(terms), rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types")  # Flax's running statistics in float16
@pytest.mark.parametrize("network", ["every step", "a batch is a state"])
def test_every_layer_has_the_gradient_of_a_function_as_of_a_name(network: str) -> None:
    """A function sees the whole output of one example, all its steps or rows."""
    net = NETWORKS[network]("float32")
    parameters = vg.init(KEY, net)
    xs = RNG.normal(size=(2, *net.input_shape)).astype(np.float32)
    shape = jax.eval_shape(vg.forward, parameters, vg.Scales(), xs[0]).shape
    ys = RNG.normal(size=(2, *shape)).astype(np.float32)
    named = vg.gradient_flow(parameters, vg.Scales(), xs, ys)
    own = vg.gradient_flow(parameters, vg.Scales(), xs, ys, loss=PLAIN["squared_error"])
    for a, b in zip(jax.tree.leaves(named), jax.tree.leaves(own), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(
        vg.naive_reading(parameters, vg.Scales(), xs, ys, "float16"),
        vg.naive_reading(parameters, vg.Scales(), xs, ys, "float16", loss=PLAIN["squared_error"]),
    )


# --- past the float range -------------------------------------------------------------------------------------------


def exact_delta(loss: str, f: list[Any], y: list[Any]) -> list[Any]:
    if loss == "binary_cross_entropy":
        return [1 / (1 + mpmath.exp(-a)) - b for a, b in zip(f, y, strict=True)]
    total = sum(mpmath.exp(a) for a in f)
    return [sum(y) * mpmath.exp(a) / total - b for a, b in zip(f, y, strict=True)]


COTANGENT = jax.jit(losses.cotangent, static_argnums=0)
LOGITS = [[0.3, -0.2, 1.1], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [-1.0, 0.5, 0.25], [2.0, -2.0, 1e-6]]
SOFT = [[0.2, 0.5, 0.3], [1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1 - 2**-20, 2**-20, 0.0]]
SHARES = [[0.5, 0.5, 0.5], [1.0, 0.0, 1.0], [0.0, 1.0, 0.25], [2**-30, 1.0, 0.0]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("exponent", [-400, -90, -30, -8, 0, 3, 6, 9, 12])
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_a_cotangent_of_any_size_is_that_of_arbitrary_precision(loss: str, exponent: int, dtype: str) -> None:
    """Margins far beyond what a float's softmax can tell from 0 or 1, and far below its rounding."""
    for logits, y in itertools.product(LOGITS, SOFT if loss == "cross_entropy" else SHARES):
        with jax.enable_x64(dtype == "float64"), mpmath.workdps(8000 if exponent > 6 else 500):
            output = normalize(FloatExp(jnp.asarray(logits, dtype), jnp.asarray(exponent, jnp.int32)))[0]
            target = jnp.asarray(y, dtype)
            delta, lost = COTANGENT(loss, output, target)
            ours = normalize(delta)[1]
            exact_logits = [mpmath.mpf(float(a)) * mpmath.mpf(2) ** exponent for a in jnp.asarray(logits, dtype)]
            exact = exact_delta(loss, exact_logits, [mpmath.mpf(float(a)) for a in target])
            norm = mpmath.sqrt(sum(a * a for a in exact))
            # What the target's own rounding leaves of a sum of 1 is no gradient.
            if loss == "cross_entropy" and norm < 1e-7 and y == SOFT[1] and exponent >= 0:
                continue
            rounding = mpmath.mpf(10) ** (20 - mpmath.mp.dps)
            expected = float(mpmath.log(norm)) if norm > rounding else -np.inf
        size = max(1.0, abs(expected)) if np.isfinite(expected) else 1.0
        message = f"{logits} {y}"
        np.testing.assert_allclose(float(ours), expected, rtol=0, atol=TOLERANCE[dtype] * size, err_msg=message)
        assert not lost


def test_a_margin_beyond_an_exponent_is_marked() -> None:
    output = FloatExp(jnp.asarray([1.0, -1.0]), jnp.asarray(40, jnp.int32))
    for loss, y in (("cross_entropy", jnp.asarray(0)), ("binary_cross_entropy", jnp.asarray([1.0, 0.0]))):
        delta, lost = losses.cotangent(loss, output, y)
        assert lost
        assert normalize(delta)[1] < -9e7


@pytest.mark.parametrize(
    ("function", "marked"),
    [
        (lambda f, y: jnp.sum(f * y), True),  # the output is 1e45 and more: floats hold it not
        (lambda f, y: jnp.sum(0 * f), True),  # 0, be it truly or by underflow
    ],
)
def test_a_function_that_floats_cannot_hold_is_marked(function: Any, marked: bool) -> None:
    net = vg.mlp(width=8, depth=60, activation="relu", inputs=3, outputs=2)
    parameters, x = vg.init(KEY, net), np.ones(3, np.float32)
    for sigma_w in (15.0, 1e-3):
        found = vg.gradient_flow(parameters, vg.Scales(sigma_w=sigma_w), x, [1.0, 2.0], loss=function)
        assert bool(found.saturated) is marked


def test_a_function_within_floats_is_exact_at_any_depth_and_not_marked() -> None:
    net = vg.mlp(width=8, depth=300, activation="tanh", inputs=3, outputs=2)
    parameters, x, y = vg.init(KEY, net), np.ones(3, np.float32), np.ones(2, np.float32)
    scales = vg.Scales(sigma_w=0.3, sigma_b=0.4)
    ours = vg.gradient_flow(parameters, scales, x, y, loss=lambda f, y: jnp.sum(jnp.abs(f - y) ** 3))
    output = vg.forward(parameters, scales, x)
    given = vg.gradient_flow(parameters, scales, x, 3 * np.abs(output - y) * (output - y), loss="cotangent")
    np.testing.assert_allclose(ours.log_gradient, given.log_gradient, rtol=1e-6)
    assert not ours.saturated


# --- what is read off y ---------------------------------------------------------------------------------------------


def flow(net: vg.Network, y: Any, **options: Any) -> vg.measure.GradientFlow:
    return vg.gradient_flow(vg.init(KEY, net), vg.Scales(sigma_w=1.3), np.ones(4, np.float32), y, **options)


ONE, THREE = NETWORKS["one output"]("float32"), NETWORKS["three outputs"]("float32")


@pytest.mark.parametrize("y", [0, 1, np.int64(1), np.uint8(0), np.array([True]), [1], jnp.asarray(0)])
def test_one_output_and_a_whole_number_is_binary_cross_entropy(y: Any) -> None:
    """And no softmax over one class, whose loss is 0 and whose gradient is exactly 0."""
    found = flow(ONE, y)
    expected = flow(ONE, np.float32(np.ravel(y)), loss="binary_cross_entropy")
    assert np.all(np.isfinite(found.log_gradient))
    np.testing.assert_array_equal(found.log_gradient, expected.log_gradient)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "bool"])
def test_labels_of_every_dtype_are_classes(dtype: str) -> None:
    found = flow(THREE, np.asarray(1, dtype))
    np.testing.assert_array_equal(found.log_gradient, flow(THREE, [0.0, 1.0, 0.0], loss="cross_entropy").log_gradient)


def test_labels_in_a_byte_reach_as_many_classes_as_a_byte_has() -> None:
    """256 wraps to 0 in uint8: every label was read as none, and every gradient was NaN."""
    net = vg.mlp(width=4, depth=2, inputs=3, outputs=256)
    params, x = vg.init(jax.random.key(0), net), np.ones(3, np.float32)
    expected = vg.gradient_flow(params, vg.Scales(), x, 200).log_gradient
    assert np.all(np.isfinite(expected))
    np.testing.assert_array_equal(vg.gradient_flow(params, vg.Scales(), x, np.uint8(200)).log_gradient, expected)


def test_a_traced_label_that_is_none_is_nan_and_no_other_label() -> None:
    parameters = vg.init(KEY, THREE)
    traced = jax.jit(lambda y: vg.gradient_flow(parameters, vg.Scales(), np.ones(4, np.float32), y))
    for label in (-1, 3):
        assert np.all(np.isnan(traced(jnp.asarray(label)).log_gradient))
    assert np.all(np.isfinite(traced(jnp.asarray(2)).log_gradient))


@pytest.mark.parametrize(
    ("net", "y", "loss", "message"),
    [
        (ONE, 2, None, r"y must lie in 0 \.\. 1 for binary_cross_entropy \(that of whole numbers for one output\)"),
        (ONE, -1, None, r"y must lie in 0 \.\. 1 .* got -1"),
        (ONE, 0, "cross_entropy", r"cross_entropy needs at least 2 outputs, one a class, got 1 \(binary_cross_entropy"),
        (THREE, [0.0, 1.0, 0.0], None, r"loss must be named \(cross_entropy or squared_error\) .* one-hot rows"),
        (THREE, [0, 1, 0], None, "loss must be named .* one-hot rows, got None"),
        (THREE, [0, 5, 0], None, "loss must be named .* whole numbers of the output's shape, got None"),
        (THREE, 3, None, r"labels must lie in 0 \.\. 2, got 3"),
        (THREE, -1, "cross_entropy", r"labels must lie in 0 \.\. 2, got -1"),
        (THREE, [0.5, 0.4, 0.2], "cross_entropy", "y must hold probabilities that sum to 1 .* got a sum of 1.1"),
        (THREE, [1.5, -0.5, 0.0], "cross_entropy", "y must hold probabilities for cross_entropy, got -0.5"),
        (THREE, [np.nan, 0.5, 0.5], "cross_entropy", "y must be finite, got a NaN or an infinity"),
        (THREE, 1.0, "cross_entropy", r"y must be one integer label, or probabilities of shape \(3,\), an example"),
        (THREE, [0.0, 1.0, 2.0], "binary_cross_entropy", r"y must lie in 0 \.\. 1 .* got 2"),
        (THREE, 1, "crossentropy", "loss must be one of cross_entropy, .* or a function .* mean 'cross_entropy'"),
        (THREE, 1, lambda f, y: f, r"loss must give one real number for one example, got ShapeDtypeStruct\("),
    ],
)  # fmt: skip
def test_what_is_no_target_is_refused_in_one_sentence(net: Any, y: Any, loss: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flow(net, y, loss=loss)
    with pytest.raises(ValueError, match=message):
        vg.sweep(net, np.ones(4, np.float32), y, key=KEY, seeds=1, measure=vg.gradients(loss=loss))
    data = vg.data.Examples(np.ones((1, 4), np.float32), np.asarray(y)[None])
    with pytest.raises(ValueError, match=message):
        vg.train(vg.init(KEY, net), vg.Scales(), data, num_steps=1, batch_size=None, loss=loss)


def test_a_target_outside_of_the_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match=r"y must lie within the range of float32, got 1e\+39"):
        flow(THREE, [0.0, 1e39, 0.5])
