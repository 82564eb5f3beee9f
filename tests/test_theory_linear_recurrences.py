"""Theory of linear recurrences: closed forms, derived numbers, Monte Carlo of the laws, drawn networks."""

import functools
import math

import jax
import mpmath
import numpy as np
import pytest

import vgjax as vg
from vgjax.networks import delta_net, diagonal_rnn, mamba, min_gru, min_lstm, rg_lru
from vgjax.theory import linear_recurrences as theory

KEY = jax.random.key(5)


def gain(log: float) -> float:
    return math.exp(log)


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_the_ring() -> None:
    assert gain(theory.ring_log_gain(10)) == pytest.approx(1 / 11, rel=1e-14)
    assert gain(theory.ring_log_gain(10, (0.9, 0.999))) == pytest.approx(0.4254099118, rel=1e-9)
    assert gain(theory.ring_log_gain(100, (0.9, 0.999))) == pytest.approx(0.04302759659, rel=1e-9)
    # Past the floats: half a million steps; all on one circle; nothing at all.
    expected = mpmath.log(mpmath.mpf("0.999") ** 1000002 / (500001 * (mpmath.mpf("0.998001") - mpmath.mpf("0.81"))))
    assert theory.ring_log_gain(500000, (0.9, 0.999)) == pytest.approx(float(expected), rel=1e-13)
    assert theory.ring_log_gain(7, (0.5, 0.5)) == pytest.approx(14 * math.log(0.5), rel=1e-15)
    assert theory.ring_log_gain(0) == 0


@pytest.mark.parametrize("x", [1e-12, 1e-4, 0.09, 1.1, 30.0, 1e4, 6e5, 1e7])
def test_log_uniform_steps_by_the_exponential_integral(x: float) -> None:
    with mpmath.workdps(40):
        low, high = mpmath.mpf(1e-3) * x, mpmath.mpf(0.1) * x
        expected = float(
            mpmath.log((mpmath.e1(low) - mpmath.e1(high)) / mpmath.log(mpmath.mpf(0.1) / mpmath.mpf(1e-3)))
        )
    assert theory.s4d_log_gain(x) == pytest.approx(expected, rel=1e-13)
    assert theory.mamba_log_gain(x / 2, states=1) == pytest.approx(expected, rel=1e-13)


def test_mamba() -> None:
    assert gain(theory.mamba_log_gain(10, states=1)) == pytest.approx(0.7178469284, rel=1e-9)
    assert gain(theory.mamba_log_gain(100, states=1)) == pytest.approx(0.2654951923, rel=1e-9)
    one = [gain(theory.mamba_log_gain(100 * n, states=1)) for n in (1, 2, 3)]  # A and T count by their product
    assert gain(theory.mamba_log_gain(100, states=3)) == pytest.approx(np.mean(one), rel=1e-13)


@pytest.mark.parametrize("steps", [1, 100, 10000])
def test_mamba_2_is_the_average_over_its_rates(steps: int) -> None:
    with mpmath.workdps(20):
        inside = lambda a: (mpmath.e1(2 * a * steps / 1000) - mpmath.e1(2 * a * steps / 10)) / mpmath.log(100) / 15  # noqa: E731
        expected = mpmath.log(mpmath.quad(inside, [*mpmath.linspace(1, 2, 5), 4, 8, 16]))
    assert theory.mamba_log_gain(steps, heads=True) == pytest.approx(float(expected), rel=1e-10)


def test_a_noise_that_vanishes_changes_nothing() -> None:
    for steps in (1, 100, 10000):
        for quiet, noisy in (
            (theory.mamba_log_gain(steps, 3), theory.mamba_log_gain(steps, 3, sigma_dt=1e-8)),
            (theory.rg_lru_log_gain(steps), theory.rg_lru_log_gain(steps, 1e-8)),
        ):
            assert noisy == pytest.approx(quiet, rel=1e-9)


def test_griffins_unit_at_gates_of_one_half() -> None:
    """E a^(8 T) = E u^(4 T), u uniform between .81 and .998001."""
    expected = (0.998001**41 - 0.81**41) / (41 * (0.998001 - 0.81))
    assert gain(theory.rg_lru_log_gain(10)) == pytest.approx(expected, rel=1e-12)


def test_gates_of_noise_by_monte_carlo() -> None:
    """Mamba's step and Griffin's factor, T = 3, from a million draws of the law itself."""
    rng, count = np.random.default_rng(0), 10**6
    bias = np.log(np.expm1(np.exp(rng.uniform(math.log(1e-3), math.log(0.1), count))))
    dt = np.logaddexp(0, bias + 1.5 * rng.normal(size=(3, count)))
    u, r = rng.uniform(0.81, 0.998001, count), 1 / (1 + np.exp(-1.5 * rng.normal(size=(3, count))))
    for drawn, log in (
        (np.exp(-4 * dt.sum(axis=0)), theory.mamba_log_gain(6, 1, sigma_dt=0.0)),
        (np.exp(-2 * dt.sum(axis=0)), theory.mamba_log_gain(3, 1, sigma_dt=1.5)),
        (u ** (8 * r.sum(axis=0)), theory.rg_lru_log_gain(3, 1.5)),
    ):
        off = abs(drawn.mean() - gain(log)) / (drawn.std() / math.sqrt(count))
        assert (off < 4) == (log != theory.mamba_log_gain(6, 1)), off  # the first leaves the noise out, and is seen


def test_the_gates_of_minimal_cells() -> None:
    still, noisy = theory.min_gru_rates(0.0), theory.min_gru_rates(1.0)
    assert still == pytest.approx((-1.386294361, -1.386294361), rel=1e-9)
    assert noisy == pytest.approx((-1.226290, -1.612118), abs=5e-7)
    assert theory.min_lstm_rates(0.0, 0.0) == pytest.approx((-2 * math.log(2),) * 2, rel=1e-14)
    # A forget gate of 1: h' = (h + i n) / (1 + i), i = 1 / 2.
    assert theory.min_lstm_rates(0.0, 60.0) == pytest.approx((2 * math.log(2 / 3),) * 2, rel=1e-13)
    assert theory.min_gru_rates(0.5, -800.0).annealed == pytest.approx(-1600 + 2 * 0.25, rel=1e-12)  # E e^(2 g)
    # Where a sigmoid is nearly a step: 1/2 less what lies between the two, of area 1 at the Gaussian's middle.
    step = math.log(1 / 2 - 1 / (30 * math.sqrt(2 * math.pi)))
    assert theory.min_gru_rates(30.0).annealed == pytest.approx(step, abs=1e-4)


def test_min_lstm_by_monte_carlo() -> None:
    f, i = 1 / (1 + np.exp(-2 * np.random.default_rng(0).normal(size=(2, 10**6)) - np.array([[0.5], [0.0]])))
    kept, rates = f / (f + i), theory.min_lstm_rates(2.0, 0.5)
    for values, expected in ((kept**2, gain(rates.annealed)), (2 * np.log(kept), rates.quenched)):
        assert abs(values.mean() - expected) < 4 * values.std() / 1000


def test_the_delta_rule() -> None:
    assert theory.delta_rule_log_gain(7, 2.0, 5) == 0
    assert theory.delta_rule_log_gain(7, 1.0, 4) == pytest.approx(7 * math.log(0.75), rel=1e-14)
    assert theory.delta_rule_log_gain(3, 1.0, 1) == -math.inf


def test_the_curse_of_memory() -> None:
    """By sums over the past: h = sum l^k x_k, dh/dl = sum k l^(k-1) x_k."""
    k = np.arange(4000)
    for factor in (0.3, -0.9, 0.99):
        found = theory.curse_of_memory(factor)
        assert found.variance == pytest.approx(np.sum(factor ** (2.0 * k)), rel=1e-12)
        assert found.sensitivity == pytest.approx(np.sum(k[1:] ** 2 * factor ** (2.0 * k[1:] - 2)), rel=1e-12)


def test_memory_horizons() -> None:
    assert theory.memory_horizon(theory.ring_log_gain) == pytest.approx(math.e - 1, rel=1e-12)
    rate = theory.min_gru_rates(0.0).annealed
    assert theory.memory_horizon(lambda steps: steps * rate) == pytest.approx(1 / (2 * math.log(2)), rel=1e-12)
    assert theory.memory_horizon(lambda steps: theory.delta_rule_log_gain(steps, 2.0, 8)) == math.inf
    long = theory.memory_horizon(functools.partial(theory.ring_log_gain, radii=(0.9, 0.999)))
    assert theory.ring_log_gain(long, (0.9, 0.999)) == pytest.approx(-1, rel=1e-12)
    assert theory.memory_horizon(lambda steps: -math.inf if steps else 0.0) < 1e-9
    assert theory.memory_horizon(lambda steps: -2.0 - steps) == 0


def test_tied_depth() -> None:
    assert gain(theory.looped_log_gain(4, 0.5)) == pytest.approx(7.50390625, rel=1e-13)
    assert gain(theory.looped_log_gain(16, 0.25)) == pytest.approx(222.9016714, rel=1e-9)
    assert gain(theory.looped_log_gain(10**5, 1e-5)) == pytest.approx(2.279585302, rel=1e-5)
    assert gain(theory.looped_log_gain(16, 0.25, tied=False)) == pytest.approx((1 + 1 / 16) ** 16, rel=1e-13)
    assert gain(theory.equilibrium_log_gain(0.75)) == pytest.approx(4, rel=1e-13)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: theory.ring_log_gain(-1), "steps must be finite and not negative, got -1"),
        (lambda: theory.ring_log_gain(1, (0.5, 1.2)), r"radii must be two numbers from 0 to 1, in order, got"),
        (lambda: theory.s4d_log_gain(1, (0.0, 0.1)), "time_steps must be two positive numbers, in order, got"),
        (lambda: theory.mamba_log_gain(1, 0), "states must be at least 1, got 0"),
        (lambda: theory.mamba_log_gain(1, sigma_dt=-1.0), "sigma_dt must be finite and from 0 to 30, got -1"),
        (lambda: theory.rg_lru_log_gain(1, sharpness=0.0), "sharpness must be finite and positive, got 0"),
        (lambda: theory.min_gru_rates(math.nan), "sigma must be finite and from 0 to 30, got nan"),
        (lambda: theory.min_lstm_rates(1.0, math.inf), "forget_bias must be finite, got inf"),
        (lambda: theory.delta_rule_log_gain(1, 1.0, 0), "size must be at least 1, got 0"),
        (lambda: theory.curse_of_memory(1.0), "factor must be finite and between -1 and 1, got 1"),
        (
            lambda: theory.memory_horizon(lambda: 0.0),
            "log_gain must be a function of the number of steps, got",
        ),
        (lambda: theory.looped_log_gain(0, 1.0), "loops must be at least 1, got 0"),
        (lambda: theory.equilibrium_log_gain(1.0), "chi must be finite and at least 0 and below 1, got 1"),
    ],
)
def test_what_has_no_meaning_is_refused(call: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()


# --- drawn networks ---------------------------------------------------------------------------------------------------


def squares(network: vg.Network, seeds: int, key: int = 0, **scales: float) -> np.ndarray:
    """|J u|^2 of every draw, with white inputs of its own and a random direction u; shape ``(seeds, depth + 1)``."""
    x = np.random.default_rng(key).normal(size=(seeds, *network.input_shape)).astype(np.float32)
    found = vg.sweep(network, x, key=KEY, seeds=seeds, leading="seed", measure=vg.gains(1), **scales)
    return np.exp(2 * found.log_gain.astype(float))


def agree(measured: np.ndarray, log_expected: float) -> bool:
    return abs(measured.mean() - gain(log_expected)) < 4 * measured.std(ddof=1) / math.sqrt(len(measured))


STEPS = 60
DRAWN = {
    "ring": (diagonal_rnn(width=500, depth=STEPS, inputs=1, radii=(0.9, 0.999)), {}, 1),
    "s4d": (diagonal_rnn(width=500, depth=STEPS, inputs=1, law="s4d"), {}, 1),
    "mamba": (mamba(width=64, depth=STEPS, states=4), {"sigma_dt": 0.0}, 1),
    "mamba of noise": (mamba(width=64, depth=STEPS, states=4), {"sigma_dt": 1.0}, 1),
    "mamba 2": (mamba(width=64, depth=STEPS, states=2, heads=32), {"sigma_dt": 0.0}, 1),
    "rg_lru": (rg_lru(width=200, depth=STEPS), {"sigma_v": 0.0}, 10),
    "rg_lru of noise": (rg_lru(width=200, depth=STEPS), {"sigma_v": 1.0}, 10),
    "min_gru": (min_gru(width=200, depth=STEPS, inputs=200), {"sigma_v": 1.0}, 20),
    "min_lstm": (min_lstm(width=200, depth=STEPS, inputs=200), {"sigma_v": 1.0}, 20),
    "delta rule": (
        delta_net(width=8, depth=STEPS, inputs=8, input_kernel_init="orthogonal"),
        {"sigma_gate": 0.0, "rate": 1.0},
        1,
    ),
}
EXPECTED = {
    "ring": functools.partial(theory.ring_log_gain, radii=(0.9, 0.999)),
    "s4d": theory.s4d_log_gain,
    "mamba": functools.partial(theory.mamba_log_gain, states=4),
    "mamba of noise": functools.partial(theory.mamba_log_gain, states=4, sigma_dt=1.0),
    "mamba 2": functools.partial(theory.mamba_log_gain, heads=True),
    "rg_lru": theory.rg_lru_log_gain,
    "rg_lru of noise": functools.partial(theory.rg_lru_log_gain, sigma=1.0),
    "min_gru": lambda steps: steps * theory.min_gru_rates(1.0).annealed,
    "min_lstm": lambda steps: steps * theory.min_lstm_rates(1.0).annealed,
    "delta rule": lambda steps: theory.delta_rule_log_gain(steps, 0.5, 8),
}


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_networks_keep_what_theory_says(name: str) -> None:
    """The mean square over draws, to four standard errors, at a tenth of the time and at its end."""
    network, scales, part = DRAWN[name]
    measured = squares(network, 48, **scales)
    for steps in (max(1, STEPS // part // 10), STEPS // part):
        assert agree(measured[:, steps], EXPECTED[name](steps)), steps


def test_a_typical_unit_of_a_min_gru_forgets_at_the_quenched_rate() -> None:
    """The Jacobian is diagonal: one tangent a unit."""
    network = min_gru(width=200, depth=40, inputs=200)
    x = jax.random.normal(KEY, network.input_shape)
    by_unit = vg.push_forward(vg.init(KEY, network), vg.Scales(), x, np.eye(200, dtype=np.float32)).log_gain[:, -1]
    rates = 2 * np.asarray(by_unit, float) / 40
    assert abs(rates.mean() - theory.min_gru_rates(1.0).quenched) < 4 * rates.std() / math.sqrt(200)


def test_at_rate_two_a_delta_rule_reflects() -> None:
    measured = squares(delta_net(width=8, depth=STEPS, inputs=5), 4, sigma_gate=0.0, rate=4.0)
    np.testing.assert_allclose(measured, 1, rtol=1e-5)


def test_a_long_memory_makes_gradients_by_lambda_explode() -> None:
    """The curse of memory in a drawn network: one real lambda = e^-nu, white inputs; by ln nu, dlambda = -nu lambda."""
    width, inputs, steps, factor = 2000, 64, 200, 0.95
    network = diagonal_rnn(width=width, depth=steps, inputs=inputs, radii=(factor, factor), max_phase=1e-12)
    x = np.random.default_rng(2).normal(size=network.input_shape).astype(np.float32)
    flow = vg.gradient_flow(vg.init(KEY, network), vg.Scales(), x, np.ones(1, np.float32), loss="cotangent")
    found, injected = theory.curse_of_memory(factor), (1 - factor**2) / 2  # gamma^2 E (B x)^2, of either part
    # Of the mean square of few inputs over about ten steps, and of the units: a square of Gaussians times a square.
    of_inputs, of_units = 2 / (10 * inputs), 1 / width
    off = math.exp(float(flow.log_mean_square[-1])) / (found.variance * injected) - 1
    assert abs(off) < 4 * math.sqrt(of_units + of_inputs)
    by_factor = 2 * (flow.log_tied_gradient["log_decay"] - flow.log_gradient[-1])
    expected = found.sensitivity * injected * (factor * math.log(factor)) ** 2
    assert abs(math.exp(float(by_factor)) / expected - 1) < 4 * math.sqrt(5 * of_units + of_inputs)
