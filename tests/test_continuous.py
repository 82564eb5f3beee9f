"""Gradient flow against closed forms, against conserved quantities, and against explicit steps written here."""

import dataclasses
import itertools
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import vgjax as vg
from vgjax.networks.parameters import Stream
from vgjax.theory import linear_dynamics
from vgjax.training import problem
from vgjax.training.continuous import ContinuousTraining

# --- one mode of a deep linear network ------------------------------------------------------------------------------


def time_by_quadrature(fraction: float, s: float, u0: float, layers: int, tau: float) -> float:
    """tau int du / (N u^(2 - 2/N) (s - u)) with 25 digits, over ln u."""
    with mpmath.workdps(25):
        end, start = mpmath.log(mpmath.mpf(fraction) * s), mpmath.log(u0)

        def integrand(log_u: mpmath.mpf) -> mpmath.mpf:
            u = mpmath.exp(log_u)
            return u / (layers * u ** (2 - mpmath.mpf(2) / layers) * (s - u))

        return float(tau * mpmath.quad(integrand, mpmath.linspace(start, end, 12)))


def test_two_matrices_take_the_textbooks_times():
    times = [linear_dynamics.learning_time(fraction, 1.0, 0.01) for fraction in (0.5, 0.9, 0.99)]
    np.testing.assert_allclose(times, [2.2975599251, 3.3961722137, 4.5951198502], rtol=1e-10)


@pytest.mark.parametrize(
    ("fraction", "s", "u0", "layers", "tau"),
    [
        (0.99, 3.2, 0.001, 1, 0.7),
        (0.9, 0.4, 1e-9, 2, 2.0),
        (0.5, 2.0, 0.01, 3, 1.0),
        (0.99, 3.2, 1e-6, 5, 0.7),
        (0.75, 1.3, 0.3, 64, 1.0),
        (1.25, 0.3, 60.0, 1, 1.0),
        (1.01, 2.0, 7.0, 2, 1.5),
        (1.5, 0.3, 60.0, 4, 2.0),
    ],
)
def test_any_depth_against_quadrature_and_back(fraction: float, s: float, u0: float, layers: int, tau: float):
    expected = time_by_quadrature(fraction, s, u0, layers, tau)
    assert linear_dynamics.learning_time(fraction, s, u0, layers, tau) == pytest.approx(expected, rel=1e-11)
    assert linear_dynamics.mode_strength(expected, s, u0, layers, tau) == pytest.approx(fraction * s, rel=1e-9)


@pytest.mark.parametrize("layers", [1, 2, 3, 10])
@pytest.mark.parametrize("u0", [0.2, 2.9])
def test_a_mode_obeys_its_equation(layers: int, u0: float):
    s, tau, h = 1.7, 0.6, 1e-4
    t = np.linspace(0.01, 1, 12).reshape(3, 4)
    u = linear_dynamics.mode_strength(t, s, u0, layers, tau)
    after, before = (linear_dynamics.mode_strength(t + step, s, u0, layers, tau) for step in (h, -h))
    np.testing.assert_allclose(
        tau * (after - before) / (2 * h), layers * u ** (2 - 2 / layers) * (s - u), rtol=1e-4, atol=1e-8
    )


@pytest.mark.parametrize("layers", [1, 2, 3, 100])
def test_a_mode_begins_at_u0_and_ends_at_s(layers: int):
    for u0 in (1e-300, 0.3, 2.0, 1e6):
        ends = linear_dynamics.mode_strength([0.0, 1e308], 2.0, u0, layers)
        # Rounding of s, where it is what u0 is told from.
        np.testing.assert_allclose(ends, [u0, 2.0], rtol=1e-9, atol=1e-15 if layers < 3 else 0)
    assert linear_dynamics.learning_time(1.0, 2.0, 0.3, layers) == np.inf
    assert linear_dynamics.learning_time(1.0, 2.0, 2.0, layers) == 0.0


def test_bad_modes_are_refused_in_one_sentence():
    with pytest.raises(ValueError, match="u0 must be finite and positive, got 0"):
        linear_dynamics.mode_strength(1.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="t must be finite and not negative, got -1"):
        linear_dynamics.mode_strength([0.0, -1.0], 1.0, 0.1)
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        linear_dynamics.learning_time(0.5, 1.0, 0.1, layers=0)
    with pytest.raises(ValueError, match=r"fraction must lie between u0 / s = 0\.1 and 1, got 0\.05"):
        linear_dynamics.learning_time(0.05, 1.0, 0.1)


# --- deep linear networks -------------------------------------------------------------------------------------------

INPUTS, HIDDEN, OUTPUTS = 5, 4, 3
STRENGTHS, STARTS = np.array([3.0, 1.5, 0.7]), np.array([0.01, 0.002, 0.03])
STEPS = 500  # one for all flows: another number is another program
RNG = np.random.default_rng(3)


def rotation(size: int) -> np.ndarray:
    return np.linalg.qr(RNG.normal(size=(size, size)))[0]


# Whitened: the mean of x is 0, that of x x^T the identity.
AXES = np.sqrt(INPUTS) * rotation(INPUTS)
WHITENED = np.concatenate([AXES, -AXES])
V, R, Q, U = rotation(INPUTS)[:, :3], rotation(HIDDEN)[:, :3], rotation(HIDDEN)[:, :3], rotation(OUTPUTS)
MAP = V * STRENGTHS @ U.T
TARGETS = vg.data.Examples(WHITENED, WHITENED @ MAP)


def linear(layers: int) -> vg.Network:
    """Two weight matrices, or three with the head."""
    if layers == 3:
        return vg.mlp(width=(HIDDEN, HIDDEN), activation="linear", inputs=INPUTS, outputs=OUTPUTS)
    return dataclasses.replace(vg.mlp(width=(HIDDEN, OUTPUTS), activation="linear", inputs=INPUTS), head=None)


def with_kernels(network: vg.Network, kernels: list[np.ndarray]) -> vg.networks.Parameters:
    """Parameters without biases."""
    first, second, *last = ({"kernel": k, "bias": np.zeros(k.shape[1])} for k in kernels)
    second = {name: leaf[None] for name, leaf in second.items()}
    return vg.networks.Parameters(first, (second,), last[0] if last else {}, network)


def flow(
    network: vg.Network, kernels: list[np.ndarray], times: np.ndarray, solver: str = "tsit5"
) -> ContinuousTraining:
    parameters = with_kernels(network, kernels)
    return vg.training.train_continuously(parameters, vg.Scales(), TARGETS, times, solver=solver, max_steps=STEPS)


def kernels_of(found: ContinuousTraining) -> list[np.ndarray]:
    """Every kernel, shape ``(times, fan_in, fan_out)``."""
    parts = [found.parameters.stem, *found.parameters.stages, found.parameters.head]
    return [part["kernel"].reshape(len(found.times), *part["kernel"].shape[-2:]) for part in parts if part]


def product(kernels: list[np.ndarray]) -> np.ndarray:
    return np.linalg.multi_dot(kernels) if len(kernels) > 2 else kernels[0] @ kernels[1]


@pytest.mark.parametrize(("layers", "solver"), [(2, "tsit5"), (3, "kvaerno5")])
def test_modes_are_learned_when_the_closed_form_says(layers: int, solver: str):
    """Balanced and aligned: every mode is at 50, 90 and 99% of its strength at its own times."""
    bases = [V, R, U] if layers == 2 else [V, R, Q, U]
    share = STARTS ** (1 / layers)
    kernels = [left * share @ right.T for left, right in itertools.pairwise(bases)]
    for mode, (s, u0) in enumerate(zip(STRENGTHS, STARTS, strict=True)):
        times = [0.0, *(linear_dynamics.learning_time(fraction, s, u0, layers) for fraction in (0.5, 0.9, 0.99))]
        found = flow(linear(layers), kernels, np.array(times), solver)
        assert found.succeeded
        maps = np.array([product(list(at)) for at in zip(*kernels_of(found), strict=True)])
        measured = np.einsum("im,tij,jm->tm", V, maps, U)
        np.testing.assert_allclose(measured[:, mode], [u0, 0.5 * s, 0.9 * s, 0.99 * s], rtol=2e-5)
        others = [linear_dynamics.mode_strength(times, s, u0, layers) for s, u0 in zip(STRENGTHS, STARTS, strict=True)]
        np.testing.assert_allclose(measured, np.transpose(others), rtol=2e-5)
        np.testing.assert_allclose(found.loss, ((maps - MAP) ** 2).sum(axis=(1, 2)) / 2, rtol=1e-5)


def steps(kernels: list[np.ndarray], size: float, count: int) -> list[np.ndarray]:
    """Gradient descent on ||W1 W2 - M||^2 / 2, gradients by hand."""
    first, second = kernels
    for _ in range(count):
        error = first @ second - MAP
        first, second = first - size * error @ second.T, second - size * first.T @ error
    return [first, second]


def invariant(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """W1^T W1 - W2 W2^T, for kernels of shape (fan_in, fan_out)."""
    return np.swapaxes(first, -1, -2) @ first - second @ np.swapaxes(second, -1, -2)


@pytest.fixture(scope="module")
def unbalanced() -> list[np.ndarray]:
    return [0.4 * RNG.normal(size=(INPUTS, HIDDEN)), 0.7 * RNG.normal(size=(HIDDEN, OUTPUTS))]


def test_flow_conserves_what_steps_do_not(unbalanced: list[np.ndarray]):
    """Arora, Cohen and Hazan 2018, theorem 1."""
    found = flow(linear(2), unbalanced, np.array([0.0, 0.5, 1.0, 2.0]))
    before = invariant(*unbalanced)
    np.testing.assert_allclose(invariant(*kernels_of(found)) - before, 0, atol=1e-5)
    drift = np.abs(invariant(*steps(unbalanced, 0.1, 20)) - before).max()
    assert drift > 0.05


def test_gradient_descent_comes_to_the_flow_as_its_steps_shrink(unbalanced: list[np.ndarray]):
    """Its error halves with the step, and what is extrapolated from there is the flow."""
    found = kernels_of(flow(linear(2), unbalanced, np.array([0.0, 0.5, 1.0, 2.0])))
    flowed = product([kernel[-1] for kernel in found])
    coarse, fine, finest = (product(steps(unbalanced, 2.0 / count, count)) for count in (2000, 4000, 8000))
    assert np.abs(coarse - flowed).max() == pytest.approx(2 * np.abs(fine - flowed).max(), rel=0.05)
    extrapolated = (coarse - 6 * fine + 8 * finest) / 3
    np.testing.assert_allclose(flowed, extrapolated, atol=2e-5)


def test_a_flow_that_comes_to_no_end_says_so(unbalanced: list[np.ndarray]):
    network = linear(2)
    stiff = flow(network, unbalanced, np.array([0.0, 0.1, 1.0, 1e6]))
    assert (stiff.status, stiff.succeeded, stiff.steps) == ("max_steps", False, STEPS)
    np.testing.assert_array_equal(np.isfinite(stiff.loss), [True, True, True, False])
    np.testing.assert_array_equal(np.isfinite(stiff.parameters.stem["kernel"][:, 0, 0]), np.isfinite(stiff.loss))
    infinite = flow(network, [1e30 * kernel for kernel in unbalanced], np.array([0.0, 0.1, 1.0, 2.0]))
    assert infinite.status == "stalled"
    assert not np.isfinite(infinite.loss).any()


# --- any network ----------------------------------------------------------------------------------------------------


def runge_kutta(velocity: Callable[[np.ndarray], np.ndarray], theta: np.ndarray, time: float, count: int) -> np.ndarray:
    """Steps of the classical method of order 4."""
    h = time / count
    for _ in range(count):
        k1 = velocity(theta)
        k2 = velocity(theta + h / 2 * k1)
        k3 = velocity(theta + h / 2 * k2)
        k4 = velocity(theta + h * k3)
        theta = theta + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return theta


def by_name(network: vg.Network, f: Callable[[str, tuple[int, ...]], np.ndarray]) -> vg.networks.Parameters:
    """Parameters made from the names and shapes of their leaves."""
    like = jax.eval_shape(lambda: vg.init(jax.random.key(0), network))
    return jax.tree_util.tree_map_with_path(lambda path, a: f(path[-1].key, a.shape), like)


def test_a_nonlinear_network_against_explicit_steps():
    """Of ordinary weights, tied over the layers, under a mask and statistics that are no weights and stay."""
    network = vg.networks.tied(vg.mlp(width=4, depth=3, inputs=3, outputs=2, dropout="bernoulli", norm="batch_running"))
    scales, left = vg.Scales(sigma_w=1.3, sigma_b=0.4, dropout=0.3), vg.Scales(sigma_w=1.0, sigma_b=1.0, dropout=0.3)
    drawn = by_name(
        network, lambda name, shape: RNG.normal(size=shape) if name == "kernel" else RNG.uniform(size=shape)
    )
    moving = ravel_pytree(by_name(network, lambda name, shape: np.full(shape, name in ("kernel", "bias", "scale"))))[0]
    xs, labels = RNG.normal(size=(9, 3)), np.arange(9) % 2
    found = vg.training.train_continuously(
        drawn, scales, vg.data.Examples(xs, labels), [0.0, 2.0, 6.0], solver="dopri8"
    )

    scaled = [
        {**part, "kernel": 1.3 * part["kernel"], "bias": 0.4 * part["bias"]} for part in (drawn.stem, *drawn.stages)
    ]
    with jax.enable_x64(True):
        start, whole = ravel_pytree(dataclasses.replace(drawn, stem=scaled[0], stages=tuple(scaled[1:])))

        def loss(theta: jax.Array) -> jax.Array:
            outputs = jax.vmap(lambda x: vg.forward(whole(theta), left, x))(jnp.asarray(xs))
            right = jnp.take_along_axis(outputs, jnp.asarray(labels)[:, None], axis=1)[:, 0]
            return jnp.mean(jax.nn.logsumexp(outputs, axis=1) - right)

        of_loss = jax.jit(jax.value_and_grad(loss))
        end = runge_kutta(lambda theta: -np.asarray(of_loss(theta)[1]) * moving, np.asarray(start), 6.0, 150)
        for i, expected in ((0, start), (2, end)):
            np.testing.assert_allclose(ravel_pytree(found.at(i))[0], expected, rtol=1e-5, atol=1e-6)
            assert found.loss[i] == pytest.approx(float(of_loss(expected)[0]), rel=1e-6)
    assert found.loss[0] > found.loss[1] > found.loss[2]
    assert found.scales.sigma_w == pytest.approx(1.0)
    assert found.scales.dropout == pytest.approx(0.3)


def test_batches_that_are_states_count_by_example():
    network = vg.mlp(width=4, depth=1, activation="linear", inputs=3, outputs=2)
    network = dataclasses.replace(network, input_shape=(4, 3))
    kernels = [RNG.normal(size=shape) for shape in ((3, 4), (4, 4), (4, 2))]
    xs, ys = RNG.normal(size=(8, 3)), RNG.normal(size=(8, 2))
    examples = problem.as_examples("data", vg.data.Examples(xs, ys))
    loss, per_state = problem.checked_objective("data", network, examples, None)
    assert (loss, per_state) == ("squared_error", 4)
    expected = np.mean(np.sum((xs @ product(kernels) - ys) ** 2, axis=1)) / 2
    mean_loss = jax.jit(problem.mean_loss, static_argnums=(0, 1))
    value = mean_loss(
        loss, per_state, with_kernels(network, kernels), vg.Scales(), problem.in_states(per_state, examples)
    )
    assert float(value) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"data must hold at least the 4 examples of a state, got 3"):
        problem.checked_objective("data", network, vg.data.Examples(xs[:3], ys[:3]), None)


def test_what_cannot_be_trained_is_refused_in_one_sentence():
    network = linear(2)
    drawn = with_kernels(network, [np.ones((INPUTS, HIDDEN)), np.ones((HIDDEN, OUTPUTS))])

    def refused(match: str, data: vg.data.Examples = TARGETS, times: object = (1.0,), **others: object) -> None:
        with pytest.raises(ValueError, match=match):
            vg.training.train_continuously(others.pop("parameters", drawn), vg.Scales(), data, times, **others)

    refused("times must be finite and not negative, got -1", times=[-1.0, 0.0])
    refused(r"times must increase \(in float32\), got 1 behind 1", times=[0.0, 1.0, 1.0 + 1e-9], dtype="float32")
    refused(r"times must be a list of at least one, got shape \(0,\)", times=[])
    refused("solver must be one of tsit5, dopri8, kvaerno5, got 'tsit'; did you mean 'tsit5'", solver="tsit")
    refused("dtype must be one of float32, float64, got 'bfloat16'", dtype="bfloat16")
    refused("rtol must be finite and positive, got 0", rtol=0.0)
    refused("max_steps must be at least 1, got 0", max_steps=0)
    refused(r"inputs of shape \(examples, 5\), got \(2, 4\)", vg.data.Examples(np.ones((2, 4)), np.ones((2, 3))))
    refused("one label an input, got 1 labels for 2 inputs", vg.data.Examples(np.ones((2, 5)), np.ones((1, 3))))
    refused("finite inputs", vg.data.Examples(np.full((2, 5), np.nan), np.ones((2, 3))))
    refused("labels must lie in 0 .. 2, got 3", vg.data.Examples(np.ones((1, 5)), np.array([3])))
    streamed = dataclasses.replace(drawn, stages=(Stream(jax.random.split(jax.random.key(0), 1)),))
    refused("parameters must be stored to be trained", parameters=streamed)
    large = with_kernels(network, [np.ones((INPUTS, 20000)), np.ones((20000, OUTPUTS))])
    refused(r"solver must be explicit \(tsit5, dopri8\) .* got 180003", parameters=large, solver="kvaerno5")


def test_without_diffrax_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match=r"continuous training needs diffrax: pip install 'vgjax\[ode\]'"):
        vg.training.train_continuously(with_kernels(linear(2), [AXES, AXES]), vg.Scales(), TARGETS, [1.0])
