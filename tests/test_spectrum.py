"""Jacobian spectra of networks of every kind against dense Jacobians, closed forms and arbitrary precision."""

import dataclasses
import functools
from typing import Any, ClassVar

import architecture_oracles as truth
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import oracles
import pytest
import scipy.special
from flax import nnx

import vgjax as vg
from vgjax.measure import graded, jacobian
from vgjax.measure.spectrum import Spectrum
from vgjax.networks.layers import bind

KEY = jax.random.key(11)
SCALES = vg.Scales(sigma_w=1.3, sigma_b=0.4)

# ln s is right to rounding times the condition of a layer, summed over the layers: conditions here are below 1e4
# (float32: 1e3), so 1e-9 in float64 and 5e-4 in float32 leave two digits of room; sums over few layers are right to
# 1e-5 in float32.

# Most tests look at this network at every depth, in float64: one program for all of them.
NET = vg.mlp(width=6, depth=5, activation="tanh", inputs=2)
PARAMETERS = oracles.drawn(NET, (2, *[6] * 6, 1), seed=4)
X = np.array([1.0, -0.3], np.float32)


RELU = vg.mlp(width=6, depth=5, activation="relu", inputs=3)
RELU_PARAMETERS = oracles.drawn(RELU, (3, *[6] * 6, 1))
RELU_X = np.array([0.5, -1.0, 2.0], np.float32)


def of_relu(parameters: vg.networks.Parameters, scales: vg.Scales) -> Spectrum:
    """Spectra of a ReLU network in float32."""
    return vg.log_singular_values(parameters, scales, RELU_X, [0, 2, 5])


def at_every_depth(scales: vg.Scales = SCALES, parameters: vg.networks.Parameters = PARAMETERS) -> Spectrum:
    """The spectra of that network from its first state on."""
    return vg.log_singular_values(parameters, scales, X, range(6), dtype="float64")


def by_numpy(matrix: Any) -> np.ndarray:
    """ln of the singular values of a small dense matrix, one for every column."""
    values = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    with np.errstate(divide="ignore"):
        return np.concatenate([np.log(values), np.full(np.shape(matrix)[1] - len(values), -np.inf)])


def by_mpmath(matrix: mpmath.matrix) -> np.ndarray:
    """The same in arbitrary precision."""
    return np.array([float(mpmath.log(s)) if s else -np.inf for s in mpmath.svd_r(matrix, compute_uv=False)])


# --- any network ----------------------------------------------------------------------------------------------------


def test_products_of_unequal_widths_against_dense_jacobians() -> None:
    widths, activation = (7, 4, 4, 6), "tanh"
    net = vg.mlp(width=widths, activation=activation, inputs=6)
    parameters = oracles.drawn(net, (6, *widths, 1))
    x = np.linspace(-1, 1, 6).astype(np.float32)
    weights, depth = oracles.weights(parameters, 1.3, 0.4), net.depth
    dense = oracles.jacobians(weights, oracles.ACTIVATIONS[activation], x)
    # Where the rank is below n, dense arithmetic leaves rounding in place of zeros.
    ranks = np.minimum.accumulate(widths)
    found = vg.log_singular_values(parameters, SCALES, x, range(depth + 1), dtype="float64")
    np.testing.assert_array_equal(found.rank, ranks)
    np.testing.assert_allclose(found.log_singular_values[0], 0, atol=1e-14)
    for m in range(1, depth + 1):
        rank = ranks[m]
        np.testing.assert_allclose(found.log_singular_values[m, :rank], by_numpy(dense[m, 0])[:rank], atol=1e-9)
    from_input = vg.log_singular_values(parameters, SCALES, x, from_input=True, dtype="float64")
    rank = min(6, *widths)
    np.testing.assert_allclose(
        from_input.log_singular_values[0, :rank], by_numpy(dense[depth, 0] @ weights[0][0].T)[:rank], atol=1e-9
    )
    assert from_input.rank == [rank]
    started = vg.log_singular_values(parameters, SCALES, x, from_layer=depth - 1, dtype="float64")
    np.testing.assert_allclose(started.log_singular_values[0], by_numpy(dense[depth, depth - 1]), atol=1e-9)
    assert not jax.config.jax_enable_x64


class Fixed(nnx.Module):
    """A block around one of the functions below."""

    scales: ClassVar = {}

    def __init__(self, size: int, *, rngs: nnx.Rngs):
        self.size = size


class Pairs(Fixed):
    """Means over pairs of neighbours: identical columns, half of all directions lost."""

    def __call__(self, h: Any) -> Any:
        return jnp.repeat(h.reshape(-1, 2).mean(axis=1), 2)


class Broken(nnx.Module):
    """Its slope at 0 is infinite."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.gain = nnx.Param(jnp.ones(()))

    def __call__(self, h: Any) -> Any:
        return self.gain[...] * jnp.sqrt(h)


class Normed(nnx.Module):
    """A dense layer of the normalized state: LayerNorm takes away two directions."""

    def __init__(self, size: int, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(size, epsilon=0.0, rngs=rngs)
        self.linear = nnx.Linear(size, size, rngs=rngs, precision="highest")

    def __call__(self, h: Any) -> Any:
        return self.linear(self.norm(h))


class BatchNormed(nnx.Module):
    """The state is a batch, which batch norm couples: two directions less for every unit."""

    def __init__(self, size: int, *, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(size, epsilon=0.0, use_running_average=False, rngs=rngs)
        self.linear = nnx.Linear(size, size, rngs=rngs, precision="highest")

    def __call__(self, h: Any) -> Any:
        return self.linear(jnp.tanh(self.norm(h)))


class Convolution(nnx.Module):
    """A circular convolution over positions with a residual branch."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(channels, channels, (3,), padding="CIRCULAR", rngs=rngs, precision="highest")

    def __call__(self, h: Any) -> Any:
        return h + jnp.tanh(self.conv(h))


@pytest.mark.parametrize(
    ("block", "argument", "shape", "rank", "dtype"),
    [
        (Pairs, 10, (10,), 5, "float32"),
        pytest.param(Normed, 9, (9,), 7, "float32", marks=pytest.mark.slow),
        (Normed, 9, (9,), 7, "float64"),
        (BatchNormed, 3, (5, 3), 9, "float32"),
        (Convolution, 2, (6, 2), 12, "float64"),
    ],
)
def test_blocks_of_every_kind_and_what_they_lose(block: Any, argument: int, shape: Any, rank: int, dtype: str) -> None:
    depth = 6
    net = vg.stack(block, argument, depth=depth, input_shape=shape)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = vg.log_singular_values(truth.drawn(net), vg.Scales(), x, [1, depth], dtype=dtype)
    np.testing.assert_array_equal(found.rank, [rank, rank])
    for row, matrix in zip(found.log_singular_values, dense_jacobians(net, depth), strict=True):
        tolerance = 1e-9 if dtype == "float64" else 5e-4
        np.testing.assert_allclose(row[:rank], by_numpy(matrix)[:rank], atol=tolerance)


@functools.cache
def dense_jacobians(net: vg.Network, depth: int) -> list[np.ndarray]:
    """Those of the first layer and of all of them, by `jax.jacfwd` in float64."""
    x = np.random.default_rng(0).normal(size=net.input_shape).astype(np.float32).astype(float)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: a.astype(float) if a.dtype == np.float32 else a, truth.drawn(net))

        def first_layers(h: Any, count: int) -> Any:
            def visit(layer: Any, carry: Any, _: None) -> Any:
                h, i = carry
                return (jnp.where(i < count, layer(h), h), i + 1), None

            return bind(wide, vg.Scales(), h).scan((h, 0), visit)[0][0]

        dense = jax.jit(jax.jacfwd(first_layers))
        return [np.asarray(dense(x, count)).reshape(x.size, x.size) for count in (1, depth)]


def test_the_linear_orthogonal_network_is_exact() -> None:
    with jax.enable_x64(True):
        net = vg.mlp(width=20, depth=300, activation="linear", inputs=3, kernel_init="orthogonal", dtype="float64")
        parameters = vg.init(KEY, net)
        sigma_w = np.linspace(0.1, 3, 300)
        found = vg.log_singular_values(parameters, vg.Scales(sigma_w=sigma_w), np.ones(3), [1, 300])
    expected = np.log(sigma_w).cumsum()[[0, 299], None]
    np.testing.assert_allclose(found.log_singular_values, np.broadcast_to(expected, (2, 20)), atol=1e-11)
    assert found.condition < 1.1


def test_saturated_units_are_kept_where_dense_arithmetic_loses_them() -> None:
    """Slopes of tanh from 1 to 1e-60: every singular value of three layers to 1e-9."""
    found = at_every_depth(vg.Scales(sigma_w=40.0, sigma_b=1.0)).log_singular_values[3]
    with mpmath.workdps(200):
        stem, *layers = (
            (mpmath.matrix(kernel.T.tolist()), mpmath.matrix(bias.tolist()))
            for kernel, bias in oracles.weights(PARAMETERS, 40.0, 1.0)[:4]
        )
        h = stem[0] * mpmath.matrix(X.astype(float).tolist()) + stem[1]
        product = mpmath.eye(6)
        smallest = mpmath.mpf(1)
        for kernel, bias in layers:
            slopes = [mpmath.sech(u) ** 2 for u in h]
            smallest = min(smallest, *slopes)
            product = kernel * mpmath.diag(slopes) * product
            h = kernel * h.apply(mpmath.tanh) + bias
        exact = by_mpmath(product)
    assert smallest < 1e-40
    np.testing.assert_allclose(found, exact, atol=1e-9)


# --- the finish -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("span", [50, 700, 5000])
def test_the_finish_is_right_however_far_the_spectrum_spans(span: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(span)
    exponents = np.sort(rng.integers(-span, 1, 14))[::-1].astype(np.int32)
    rows = rng.normal(size=(14, 17))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with mpmath.workdps(80 + 2 * int(span * 0.31)):
        product = mpmath.matrix(rows.T.tolist()) * mpmath.diag([mpmath.mpf(2) ** int(k) for k in exponents])
        exact = by_mpmath(product)
    found = graded.log_singular_values(exponents, rows)
    np.testing.assert_allclose(found[:14], exact, rtol=1e-14, atol=1e-12)
    assert np.all(np.isneginf(found[14:]))
    order = rng.permutation(14)
    np.testing.assert_allclose(graded.log_singular_values(exponents[order], rows[order]), found, rtol=1e-14, atol=1e-12)
    monkeypatch.setattr(graded, "_SPAN", 250)  # short windows: the same numbers
    np.testing.assert_allclose(graded.log_singular_values(exponents, rows), found, rtol=1e-14, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_product_of_nothing_but_zeros_has_no_direction_left(dtype: str) -> None:
    nothing = vg.Scales(sigma_w=0.0, sigma_b=0.4)
    found = at_every_depth(nothing) if dtype == "float64" else of_relu(RELU_PARAMETERS, nothing)
    np.testing.assert_array_equal(found.rank, [6, *[0] * (len(found.rank) - 1)])
    np.testing.assert_allclose(found.log_determinant, [0, *[-np.inf] * (len(found.rank) - 1)], atol=1e-5)


# --- determinants, norms, single layers, exponents ------------------------------------------------------------------


def test_the_sum_of_logs_is_the_log_determinant_at_ten_thousand_layers() -> None:
    net = vg.mlp(width=9, depth=10_000, activation="tanh", inputs=4)
    parameters, x = oracles.drawn(net, (4, *[9] * 10_001, 1)), np.ones(4, np.float32)
    found = vg.log_singular_values(parameters, SCALES, x, [1, 100, 10_000], dtype="float64")
    exact = vg.measure.log_determinant(parameters, SCALES, x, dtype="float64")
    assert exact.shape == (10_001,)
    assert exact[0] == 0
    np.testing.assert_allclose(found.log_determinant, exact[[1, 100, 10_000]], rtol=1e-9)
    assert found.log_condition[2] > 1e4
    single = vg.measure.layer_singular_values(parameters, SCALES, x, dtype="float64")
    np.testing.assert_allclose(single.sum(axis=1).cumsum(), exact[1:], rtol=1e-9)
    np.testing.assert_allclose(single[0], found.log_singular_values[0], atol=1e-9)


def test_norms_agree_with_the_spectrum() -> None:
    found = at_every_depth()
    exact = vg.log_frobenius(PARAMETERS, SCALES, X)
    np.testing.assert_allclose(exact.log_norm, found.log_frobenius, atol=1e-5)
    assert not exact.standard_error.any()
    estimate = vg.log_frobenius(PARAMETERS, SCALES, X, probes=400, key=KEY)
    assert np.all(estimate.standard_error[1:] > 0)
    assert np.all(np.abs(estimate.log_norm - found.log_frobenius)[1:] < 4 * estimate.standard_error[1:])


def test_the_largest_alone_are_those_of_the_whole_spectrum() -> None:
    net = vg.mlp(width=11, depth=5, activation="tanh", inputs=14)
    parameters, x = oracles.drawn(net, (14, *[11] * 6, 1)), np.ones(14, np.float32)
    whole = vg.log_singular_values(parameters, SCALES, x, [3, 5], from_input=True, dtype="float64")
    some = vg.log_singular_values(parameters, SCALES, x, [3, 5], from_input=True, top=2, dtype="float64")
    np.testing.assert_allclose(some.log_singular_values, whole.log_singular_values[:, :2], atol=1e-5)


def test_lyapunov_exponents_of_gaussian_layers_are_those_of_newman() -> None:
    """lambda_i = (ln(2/n) + digamma((n - i + 1) / 2)) / 2 (Newman 1986, Commun. Math. Phys. 103)."""
    n = 6
    net = vg.mlp(width=n, depth=4000, activation="linear", inputs=1)
    found = vg.lyapunov_exponents(vg.init(KEY, net, stream=True), vg.Scales(), np.ones(1))
    expected = (np.log(2 / n) + scipy.special.digamma((n - np.arange(n)) / 2)) / 2
    assert np.all(found.standard_error < 0.03)
    assert np.all(np.abs(found.exponents - expected) < 4 * found.standard_error)
    assert found.log_stretch.shape == (4000, n)
    np.testing.assert_allclose(found.running[-1], found.exponents, rtol=1e-9)
    first = vg.lyapunov_exponents(vg.init(KEY, net, stream=True), vg.Scales(), np.ones(1), 2, discard=0)
    assert first.log_stretch.shape == (4000, 2)
    # Whatever columns one starts with, the flag is soon the same.
    np.testing.assert_allclose(first.log_stretch[500:], found.log_stretch[500:, :2], atol=1e-3)


def test_lyapunov_exponents_of_orthogonal_layers_are_the_log_of_their_gain() -> None:
    net = vg.mlp(width=7, depth=30, activation="linear", inputs=1, kernel_init="orthogonal")
    parameters = oracles.drawn(net, (1, *[7] * 31, 1), kernel_init="orthogonal")
    found = vg.lyapunov_exponents(parameters, vg.Scales(sigma_w=0.7), np.ones(1))
    np.testing.assert_allclose(found.exponents, np.log(0.7), atol=1e-6)
    assert found.discarded == 3


def test_readings_of_known_values() -> None:
    found = Spectrum(np.array([1, 2]), np.log([[4.0, 2.0, 1.0], [3.0, 3.0, 3.0]]), 1.0, 3)
    np.testing.assert_allclose(found.log_frobenius, np.log([21, 27]) / 2)
    np.testing.assert_allclose(found.log_condition, [np.log(4), 0], atol=1e-15)
    np.testing.assert_allclose(found.log_determinant, np.log([8, 27]))
    np.testing.assert_allclose(found.participation, [21**2 / (256 + 16 + 1), 3])
    lost = Spectrum(np.array([1]), np.array([[1.0, -np.inf]]), 1.0, 2)
    assert (lost.rank, lost.log_condition, lost.log_determinant) == (1, np.inf, -np.inf)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("kinds_unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"depths": [6]}, "^depths must be whole numbers from 0 to 5, got 6$"),
        ({"depths": [1.5]}, r"^depths must be a list of whole numbers, got \[1.5\]$"),
        ({"depths": [2], "from_layer": 3}, "^depths must be whole numbers from 3 to 5, got 2$"),
        ({"depths": []}, r"^depths must hold at least one depth, and none twice, got \[\]$"),
        ({"depths": [2, 2]}, r"^depths must hold at least one depth, and none twice, got \[2, 2\]$"),
        ({"from_layer": 5}, "^from_layer must be a whole number from 0 to 4, got 5$"),
        ({"from_layer": 1.5}, "^from_layer must be a whole number, got 1.5$"),
        (
            {"from_layer": 1, "from_input": True},
            "^a product begins at the input or at a state, got from_input and from_layer = 1$",
        ),
        ({"top": 0}, "^top must be at least 1, got 0$"),
        ({"top": 2, "depths": [0]}, "^depths must lie beyond from_layer = 0 for the top 2, got 0$"),
        ({"dtype": "float16"}, "^dtype must be one of float32, float64, got 'float16'; did you mean 'float\\d+'\\?$"),
        (
            {"max_bytes": 100},
            r"^dense Jacobians must fit into max_bytes = \S+ GiB, got a state of 6 numbers, .* take the largest .*top=",
        ),
        (
            {"scales": vg.Scales(sigma=1.0)},
            "^scale must be one of sigma_w, sigma_b, sigma_in, sigma_out, got 'sigma'; did you mean 'sigma_\\w'\\?$",
        ),
        ({"x": np.ones(3)}, r"^x must have shape \(2,\), got \(3,\)$"),
    ],
)
def test_bad_input_is_one_sentence(call: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"scales": SCALES, "x": np.ones(2), **call}
    scales, x = arguments.pop("scales"), arguments.pop("x")
    with pytest.raises(ValueError, match=message):
        vg.log_singular_values(PARAMETERS, scales, x, **arguments)


def test_a_jacobian_that_is_not_finite_is_named_by_its_layer() -> None:
    stage = PARAMETERS.stages[0]
    kernel = stage["kernel"].at[2, 0, 0].set(jnp.nan)
    broken = dataclasses.replace(PARAMETERS, stages=({**stage, "kernel": kernel},))
    refused = pytest.raises(ValueError, match="must be finite, got a NaN or an infinity at layer 3")
    with refused:
        at_every_depth(parameters=broken)
    with refused:
        vg.log_singular_values(broken, SCALES, X, top=2)
    vg.log_singular_values(broken, SCALES, X, [2])


def test_a_state_too_large_for_dense_jacobians_is_refused_and_its_top_found() -> None:
    class Wide(Fixed):
        def __call__(self, h: Any) -> Any:
            return h * jnp.concatenate([jnp.linspace(0.5, 1, self.size - 3), jnp.array([2.0, 4.0, 3.0])])

    net = vg.stack(Wide, 50_000, depth=3, input_shape=50_000)
    parameters, x = vg.networks.Parameters({}, ({},), {}, net), np.ones(50_000, np.float32)
    with pytest.raises(ValueError, match=r"fit into max_bytes = 8 GiB, got a state of 50000 numbers, .* 83\.8 GiB"):
        vg.log_singular_values(parameters, vg.Scales(), x)
    found = vg.log_singular_values(parameters, vg.Scales(), x, top=3)
    # Until none moves by more than 1e-4; three rounds from there a gap of 8 leaves nothing of it.
    np.testing.assert_allclose(found.log_singular_values[0], 3 * np.log([4, 3, 2]), atol=1e-4)


def test_other_bad_input() -> None:
    x = np.ones(2)
    stream = vg.init(KEY, NET, stream=True)
    with pytest.raises(ValueError, match=r"^streamed parameters must be computed in their own dtype, got float64$"):
        vg.log_singular_values(stream, SCALES, x, dtype="float64")
    with pytest.raises(ValueError, match=r"^discard must be whole numbers from 0 to 4, got 5$"):
        vg.lyapunov_exponents(stream, SCALES, x, discard=5)
    narrow = vg.mlp(width=(5, 4, 5), inputs=2)
    for f in (vg.lyapunov_exponents, vg.measure.log_determinant, vg.measure.layer_singular_values):
        with pytest.raises(ValueError, match=r"^all states must have one shape, got \[\(4,\), \(5,\)\]$"):
            f(oracles.drawn(narrow, (2, 5, 4, 5, 1)), SCALES, x)
    with pytest.raises(ValueError, match=r"^probes must be at least 2, got 1$"):
        vg.log_frobenius(stream, SCALES, x, probes=1)
    bad = vg.stack(Broken, depth=2, input_shape=3)
    with pytest.raises(ValueError, match=r"must be finite, got a NaN or an infinity at layer 1$"):
        vg.log_singular_values(vg.init(KEY, bad), vg.Scales(), np.zeros(3))


def test_jacobians_formed_in_chunks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def recorded(*arguments: int) -> int:
        taken.append(chunk_size(*arguments))
        return taken[-1]

    chunk_size = jacobian.chunk_size
    monkeypatch.setattr(jacobian, "chunk_size", recorded)
    monkeypatch.setattr(jacobian, "MEMORY", 1)  # one column at a time
    chunked = vg.log_singular_values(PARAMETERS, SCALES, X, [4, 5], dtype="float64")  # compiled nowhere else
    assert set(taken) == {1}
    np.testing.assert_allclose(chunked.log_singular_values, at_every_depth().log_singular_values[4:], atol=1e-9)


@pytest.mark.parametrize("build", [vg.rnn, vg.lstm, vg.gru])
def test_a_recurrence_has_the_same_spectrum_by_every_call(build: Any) -> None:
    """Its input is read layer by layer: a section of it has steps, and no state, to enter with."""
    net = build(width=4, depth=6, inputs=3)
    parameters, x = vg.init(jax.random.key(0), net), jax.random.normal(jax.random.key(1), (6, 3))
    exact: dict[str, Any] = {"dtype": "float64"}  # an LSTM's determinant, e^-122, is worth 1e-5 of its log in float32
    whole = vg.log_singular_values(parameters, vg.Scales(), x, [3, 6], **exact)
    top = vg.log_singular_values(parameters, vg.Scales(), x, [3, 6], top=2, **exact)
    np.testing.assert_allclose(top.log_singular_values, whole.log_singular_values[:, :2], atol=1e-6)
    logs = vg.measure.log_determinant(parameters, vg.Scales(), x, **exact)
    np.testing.assert_allclose(logs[np.array([3, 6])], whole.log_determinant, atol=1e-6)
    stretch = vg.lyapunov_exponents(parameters, vg.Scales(), x, discard=0, **exact).log_stretch
    np.testing.assert_allclose(stretch.sum(), whole.log_determinant[-1], atol=1e-6)
