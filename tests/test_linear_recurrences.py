"""Linear recurrences: gradients against plain JAX of the papers' equations, and the laws that they are drawn from."""

import functools
from collections.abc import Callable
from typing import Any

import architecture_oracles as truth
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from flax import nnx
from test_architectures import TOLERANCE, Case, assert_close, make

import vgjax as vg
from vgjax.networks import delta_net, diagonal_rnn, mamba, min_gru, min_lstm, rg_lru

WIDTH, DEPTH = 6, 4
BUILDERS = {
    "diagonal_rnn": diagonal_rnn,
    "mamba": mamba,
    "min_gru": min_gru,
    "min_lstm": min_lstm,
    "rg_lru": rg_lru,
    "delta_net": delta_net,
}
OF_WIDTH = ("mamba", "rg_lru")  # an input is as wide as the state


# --- the papers' equations --------------------------------------------------------------------------------------------


def diagonal(p: Any, pair: Any, scales: dict[str, float], x: Any) -> Any:
    """h' = lambda h + gamma B x, in complex numbers."""
    h, gamma = pair[0] + 1j * pair[1], p["gain"][0] + 1j * p["gain"][1]
    b = p["input_kernel"][:, :WIDTH] + 1j * p["input_kernel"][:, WIDTH:]
    h = jnp.exp(-jnp.exp(p["log_decay"]) + 1j * p["phase"]) * h + gamma * (x @ b)
    return jnp.stack([h.real, h.imag])


def selective(p: Any, h: Any, scales: dict[str, float], x: Any) -> Any:
    """A state and a channel at a time."""
    dt, b = jnp.log1p(jnp.exp(x @ p["step_kernel"] + p["step_bias"])), x @ p["input_kernel"]
    a, each = jnp.exp(p["log_rate"]), len(x) // len(dt)

    def one(n: int, c: int) -> Any:
        group = c // each
        return jnp.exp(-dt[group] * a[n % len(a), group]) * h[n, c] + dt[group] * b[n] * x[c]

    return jnp.stack([jnp.stack([one(n, c) for c in range(len(x))]) for n in range(len(b))])


def sigmoid(a: Any) -> Any:
    return 1 / (1 + jnp.exp(-a))


def gates(p: Any, x: Any, count: int) -> Any:
    return jnp.split(x @ p["input_kernel"] + p["bias"], count)


def minimal_gru(p: Any, h: Any, scales: dict[str, float], x: Any) -> Any:
    z, n = gates(p, x, 2)
    z = sigmoid(z - scales["forget_bias"])
    return (1 - z) * h + z * n


def minimal_lstm(p: Any, h: Any, scales: dict[str, float], x: Any) -> Any:
    f, i, n = gates(p, x, 3)
    f, i = sigmoid(f + scales["forget_bias"]), sigmoid(i)
    return f / (f + i) * h + i / (f + i) * n


def real_gated(p: Any, h: Any, scales: dict[str, float], x: Any) -> Any:
    r, i = map(sigmoid, gates(p, x, 2))
    a = (1 / (1 + jnp.exp(p["decay"]))) ** (8 * r)
    return a * h + jnp.sqrt(1 - a**2) * (i * x)


def matrix(p: Any, s: Any, scales: dict[str, float], x: Any, decay: bool = False, erase: bool = True) -> Any:
    key, value = x @ p["key_kernel"], x @ p["value_kernel"]
    key = key / jnp.linalg.norm(key)
    beta = scales["rate"] * sigmoid(x @ p["rate_kernel"])
    kept = jnp.eye(len(key)) * (sigmoid(x @ p["decay_kernel"] + scales["forget_bias"]) if decay else 1)
    kept = kept @ (jnp.eye(len(key)) - beta * jnp.outer(key, key)) if erase else kept
    return s @ kept + beta * jnp.outer(value, key)


def parts(cell: Callable[..., Any], *state: int, every_step: bool = False) -> truth.Parts:
    """From the state 0; the head reads all of the state."""
    head = lambda p, s: s.reshape(-1) @ p["kernel"] + p["bias"]  # noqa: E731
    return truth.Parts(lambda p, x: jnp.zeros(state, x.dtype), cell, head, fed=True, every_step=every_step)


def build(name: str, **options: Any) -> Callable[..., vg.Network]:
    inputs = {} if name in OF_WIDTH else {"inputs": 5}
    return functools.partial(BUILDERS[name], **{"width": WIDTH, "depth": DEPTH, "outputs": 3, **inputs, **options})


KERNEL, OFFSETS = {"sigma_v": 1.3}, {"sigma_v": 1.3, "sigma_b": 0.4, "forget_bias": (0.7, -0.4, 1.5, 0.2)}
OF_MATRIX = {"sigma_v": 1.3, "sigma_gate": 0.8, "rate": (1.0, 2.0, 0.5, 1.5)}
CASES = {
    "diagonal": Case(build("diagonal_rnn"), parts(diagonal, 2, WIDTH), "squared_error", KERNEL),
    "mamba": Case(
        build("mamba", states=3),
        parts(selective, 3, WIDTH),
        "squared_error",
        KERNEL | {"sigma_dt": 0.7},
        dtype="float64",
    ),
    "mamba of heads, a loss at every step": Case(
        build("mamba", states=3, heads=2, every_step=True),
        parts(selective, 3, WIDTH, every_step=True),
        "cross_entropy",
        KERNEL | {"sigma_dt": 0.7},
    ),
    "min_gru": Case(build("min_gru"), parts(minimal_gru, WIDTH), "squared_error", OFFSETS),
    "min_lstm": Case(build("min_lstm"), parts(minimal_lstm, WIDTH), "cross_entropy", OFFSETS, dtype="float64"),
    "rg_lru": Case(
        build("rg_lru"), parts(real_gated, WIDTH), "squared_error", KERNEL | {"sigma_b": 0.4}, dtype="float64"
    ),
    "delta_net": Case(build("delta_net"), parts(matrix, WIDTH, WIDTH), "squared_error", OF_MATRIX),
    "gated delta_net": Case(
        build("delta_net", decay="scalar"),
        parts(functools.partial(matrix, decay=True), WIDTH, WIDTH),
        "squared_error",
        OF_MATRIX | {"forget_bias": 1.2},
        dtype="float64",
    ),
    "gated linear attention": Case(
        build("delta_net", decay="channel", erase=False),
        parts(functools.partial(matrix, decay=True, erase=False), WIDTH, WIDTH),
        "cross_entropy",
        OF_MATRIX | {"forget_bias": 1.2},
        dtype="float64",
    ),
}
# Of float32. Gates saturate at large inputs: what their rounding moves is then most of what is left.
SIZES = {"diagonal": (1e-14, 1e14), "min_gru": (1e-14,), "delta_net": (1e-14,)}
SLOW = ("mamba of heads, a loss at every step", "gated delta_net")
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES]


@pytest.mark.parametrize("name", NAMES)
def test_every_gradient_is_that_of_automatic_differentiation_of_the_papers_equations(name: str) -> None:
    """In float32 also of inputs so small, or so large, that states travel with an exponent."""
    case = CASES[name]
    tolerance = TOLERANCE[case.dtype]
    with jax.enable_x64(case.dtype == "float64"):
        made = make(case)
        flow = jax.jit(vg.gradient_flow)
        sizes = (1.0, *SIZES.get(name, ()))
        flows = {size: flow(made.parameters, made.scales, size * made.xs, made.ys) for size in sizes}
    for size, ours in flows.items():
        expected = truth.gradients(case.parts, made.ordinary, made.by_layer, size * made.xs, made.ys, case.loss)
        assert_close(ours.log_mean_square, expected.log_mean_square, tolerance, "log_mean_square")
        assert_close(ours.log_gradient, expected.log_gradient, tolerance, "log_gradient")
        for found, others in (
            (ours.log_parameter_gradient, expected.log_parameter_gradient),
            (ours.log_tied_gradient, expected.log_tied_gradient),
        ):
            assert set(found) == set(others)
            for path in others:
                assert_close(found[path], others[path], tolerance, path)
        names = ("real", "imaginary") if name == "diagonal" else ()
        assert set(ours.log_gradient_parts) == set(names)
        for part, log in zip(names, expected.log_gradient_parts if names else (), strict=True):
            assert_close(ours.log_gradient_parts[part], log, tolerance, part)


LONG = {  # of 2,000 steps; at 1,000 nats and more where float32 alone reads 0
    "LRU": (diagonal_rnn, {"inputs": 3, "width": 8, "radii": (0.9, 0.999)}),
    "S4D": (diagonal_rnn, {"inputs": 3, "width": 8, "law": "s4d"}),
    "Mamba": (mamba, {"width": 4, "states": 4}),
    "minGRU": (min_gru, {"inputs": 3, "width": 8}),
    "RG-LRU": (rg_lru, {"width": 8}),
    "gated DeltaNet": (delta_net, {"inputs": 3, "width": 5, "decay": "scalar"}),
}


@pytest.mark.parametrize("name", LONG)
def test_two_thousand_steps_in_float32_are_those_of_float64(name: str) -> None:
    """ln ||dL/dh_t|| and ln of the states at every t, relative where it is beyond 1."""
    steps = 2000
    build, options = LONG[name]
    parameters = vg.init(jax.random.key(0), build(depth=steps, **options))
    x = np.random.default_rng(0).normal(size=parameters.network.input_shape).astype(np.float32)
    flow = vg.gradient_flow(parameters, vg.Scales(), x, np.ones(1, np.float32), loss="cotangent")
    with jax.enable_x64(True):
        network = build(depth=steps, dtype="float64", **options)
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), (parameters.stem, parameters.stages, parameters.head))
        wide = vg.networks.Parameters(*wide, network)
        exact = vg.gradient_flow(wide, vg.Scales(), x.astype(float), np.ones(1), loss="cotangent")
    for ours, expected in ((flow.log_gradient, exact.log_gradient), (flow.log_mean_square, exact.log_mean_square)):
        found, true = np.asarray(ours), np.asarray(expected)
        assert np.array_equal(np.isneginf(found), np.isneginf(true))
        there = np.isfinite(true)
        assert np.all(np.abs(found[there] - true[there]) <= TOLERANCE["float32"] * np.maximum(1, np.abs(true[there])))


@pytest.mark.parametrize("size", [1.0, 1e-14])
def test_a_factor_that_underflows_is_marked_and_not_a_zero(size: float) -> None:
    """1 - z = e^-60 a step is followed, e^-200 is no float32: NaN, whatever the state."""
    network = min_gru(width=4, depth=12, inputs=3)
    parameters, x = vg.init(jax.random.key(0), network), size * np.ones((12, 3), np.float32)
    scales = {bias: vg.Scales(sigma_v=0.1, forget_bias=bias) for bias in (-60.0, -200.0)}
    followed, lost = (np.asarray(vg.push_forward(parameters, each, x).log_gain) for each in scales.values())
    assert abs(followed[-1] + 12 * 60) < 12
    assert lost[0] == pytest.approx(0, abs=1e-6)
    assert np.all(np.isnan(lost[1:]))


def test_an_input_of_zeros_is_no_key() -> None:
    """Nothing is read, written or erased, and every derivative is a number."""
    network = delta_net(width=4, depth=3, inputs=3)
    parameters, x = vg.init(jax.random.key(0), network), np.zeros((3, 3), np.float32)
    flow = vg.gradient_flow(parameters, vg.Scales(), x)
    assert np.all(np.isneginf(flow.log_mean_square))
    np.testing.assert_array_equal(flow.log_gradient, flow.log_gradient[-1:].repeat(4))
    assert all(np.all(np.isneginf(log)) for log in flow.log_tied_gradient.values())


# --- the laws ---------------------------------------------------------------------------------------------------------


def within_four_errors(values: np.ndarray, expected: float) -> bool:
    return abs(np.mean(values) - expected) < 4 * np.std(values, ddof=1) / np.sqrt(len(values))


def uniform_between(values: np.ndarray, low: float, high: float) -> bool:
    """By bounds, mean and mean square."""
    u = (np.asarray(values, float) - low) / (high - low)
    inside = bool(np.all((u > -1e-5) & (u < 1 + 1e-5)))
    return inside and within_four_errors(u, 1 / 2) and within_four_errors(u**2, 1 / 3)


def cell(name: str, *sizes: int, **options: Any) -> dict[str, np.ndarray]:
    """The parameters of one drawn block."""
    block = getattr(vg.blocks, name)(*sizes, **options, rngs=jax_rngs())
    return {path[0]: np.asarray(leaf[...], float) for path, leaf in nnx.to_flat_state(nnx.state(block))}


def jax_rngs() -> nnx.Rngs:
    return nnx.Rngs(3)


MANY = 4000


def test_the_ring_is_uniform_in_area_and_keeps_the_mean_square_of_a_white_input() -> None:
    """Orvieto et al. 2023, lemma 3.2; its gamma makes E |h|^2 that of B x."""
    drawn = cell("DiagonalCell", MANY, 2, radii=(0.4, 0.9), max_phase=np.pi / 10)
    square = np.exp(-2 * np.exp(drawn["log_decay"]))
    assert uniform_between(square, 0.4**2, 0.9**2)
    assert uniform_between(drawn["phase"], 0, np.pi / 10)
    np.testing.assert_allclose(drawn["gain"][0], np.sqrt(1 - square), rtol=1e-5)
    assert np.all(drawn["gain"][1] == 0)
    assert within_four_errors(drawn["input_kernel"].ravel() ** 2, 1 / 4)  # 1 / (2 inputs)


def test_a_ring_that_reaches_the_unit_circle_has_no_infinite_parameter() -> None:
    drawn = cell("DiagonalCell", 10**6, 1, radii=(0.9, 1.0))
    assert all(np.all(np.isfinite(values)) for values in drawn.values())


def test_s4d_is_the_zero_order_hold_of_its_differential_equation() -> None:
    """By a matrix exponential of a real 3 x 3 system with a constant input."""
    drawn = cell("DiagonalCell", MANY, 2, law="s4d", time_steps=(1e-3, 0.1))
    dt = 2 * np.exp(drawn["log_decay"])
    assert uniform_between(np.log(dt), np.log(1e-3), np.log(0.1))
    np.testing.assert_allclose(drawn["phase"], np.pi * np.arange(MANY) * dt, rtol=2e-5)
    for n in (0, 1, 7):
        system = np.array([[-0.5, -np.pi * n, 1.0], [np.pi * n, -0.5, 0.0], [0.0, 0.0, 0.0]])
        np.testing.assert_allclose(drawn["gain"][:, n], scipy.linalg.expm(dt[n] * system)[:2, 2], rtol=2e-6, atol=1e-10)


@pytest.mark.parametrize("heads", [None, MANY // 2])
def test_mambas_steps_are_log_uniform_at_the_input_zero(heads: int | None) -> None:
    drawn = cell("SelectiveCell", MANY, states=3, heads=heads, time_steps=(1e-3, 0.1), input_kernel_init=nothing)
    dt, rates = np.log1p(np.exp(drawn["step_bias"])), np.exp(drawn["log_rate"])
    assert dt.shape == (heads or MANY,)
    assert uniform_between(np.log(dt), np.log(1e-3), np.log(0.1))
    if heads:
        assert uniform_between(rates[0], 1, 16)
    else:
        np.testing.assert_allclose(rates, np.array([[1.0], [2.0], [3.0]]) * np.ones(MANY), rtol=1e-6)


def nothing(key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """A law of zeros."""
    return jnp.zeros(shape, dtype)


def test_griffins_factors_are_uniform_in_area() -> None:
    drawn = cell("RGLRUCell", MANY, radii=(0.9, 0.999), input_kernel_init=nothing)
    assert uniform_between((1 + np.exp(drawn["decay"])) ** -2.0, 0.9**2, 0.999**2)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("diagonal_rnn", {"law": "rings"}, r"law must be one of ring, s4d, got 'rings'; did you mean 'ring'\?"),
        (
            "diagonal_rnn",
            {"radii": (0.9, 0.5)},
            r"radii must be two numbers from 0 to 1, in order .* got \(0.9, 0.5",
        ),
        ("diagonal_rnn", {"radii": (0.5, 1.1)}, r"radii must be two numbers from 0 to 1"),
        ("diagonal_rnn", {"max_phase": 0.0}, "max_phase must be finite and above 0 and at most 2 pi, got 0"),
        (
            "diagonal_rnn",
            {"law": "s4d", "time_steps": (0.0, 0.1)},
            "time_steps must be two positive numbers",
        ),
        ("mamba", {"heads": 4}, "heads must divide the width 6, got 4"),
        ("mamba", {"time_steps": (0.1, 0.01)}, "time_steps must be two positive numbers"),
        ("mamba", {"states": 0}, "states must be at least 1, got 0"),
        (
            "min_gru",
            {"input_kernel_init": "gausian"},
            "input_kernel_init must be one of gaussian, .* did you mean 'ga",
        ),
        ("min_lstm", {"bias_init": "gausian"}, "bias_init must be one of gaussian, .* did you mean 'gaussian'"),
        ("rg_lru", {"radii": (1.0, 1.0)}, r"radii must be two numbers from 0 to 1"),
        ("rg_lru", {"sharpness": -1.0}, "sharpness must be finite and positive, got -1"),
        (
            "delta_net",
            {"decay": "scaler"},
            r"decay must be one of none, scalar, channel, got 'scaler'; did you mean 's",
        ),
        ("delta_net", {"width": 0}, "width must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(name: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build(name, **options)()
