"""JAX's global settings (`jax_debug_nans`, `jax_enable_x64`) change no number and break no call."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vgjax as vg

KEY = jax.random.key(5)


class OwnBlock(nnx.Module):
    """A user's: it reports nothing of itself."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.inner = nnx.Linear(width, width, rngs=rngs)
        # At 0, because its masks are others where float64 is on.
        self.dropout = nnx.Dropout(0.0, rngs=rngs)

    def __call__(self, h: jax.Array) -> jax.Array:
        return h + self.dropout(jnp.tanh(self.inner(h)))


NETWORKS: dict[str, Callable[[], vg.Network]] = {
    "mlp": lambda: vg.mlp(width=(5, 4, 4), inputs=3, outputs=2),
    "resnet": lambda: vg.resnet(channels=(2, 3), depth=(1, 1), inputs=(4, 4, 2), outputs=2, norm="layer"),
    "lstm": lambda: vg.lstm(width=4, depth=3, inputs=2, outputs=2),
    "cnn": lambda: vg.cnn(channels=2, depth=2, inputs=(4, 4, 2), outputs=2),
    "transformer": lambda: vg.transformer(width=4, heads=2, depth=1, inputs=(3, 4), outputs=2),
    "own": lambda: vg.stack(OwnBlock, 4, depth=2, input_shape=4),
}


def x_of(network: vg.Network, examples: int | None = None) -> np.ndarray:
    """Inputs as numpy makes them: in float64."""
    lead = () if examples is None else (examples,)
    return np.random.default_rng(1).normal(size=(*lead, *network.input_shape))


def data_of(network: vg.Network) -> vg.data.Examples:
    """Labels as numpy makes them: int64; every loss that takes them takes these."""
    return vg.data.Examples(x_of(network, 6), np.arange(6) % 2)


Call = Callable[[vg.networks.Parameters, vg.Scales, Any], Any]
CALLS: dict[str, Call] = {
    "gain_matrix": vg.gain_matrix,
    "gradient_flow": lambda p, s, x: vg.gradient_flow(p, s, x, np.int64(1)),
    "train": lambda p, s, x: vg.train(p, s, data_of(p.network), "adam", 2, batch_size=3),
}
"""Of every network."""
OF_ONE: dict[str, Call] = {
    "forward": vg.forward,
    "states": vg.states,
    "push_forward": vg.push_forward,
    "pull_back": vg.pull_back,
    "gradient_flow, random cotangent": vg.gradient_flow,
    "naive_reading": lambda p, s, x: vg.naive_reading(p, s, x, np.int64(1)),
    "correlation": lambda p, s, x: vg.correlation(p, s, x, x[::-1].copy()),
    "log_frobenius": vg.log_frobenius,
    "absorb_scales": lambda p, s, x: vg.absorb_scales(p, s),
    "log_singular_values": vg.log_singular_values,
    "lyapunov_exponents": vg.lyapunov_exponents,
    "log_determinant": lambda p, s, x: vg.measure.log_determinant(p, s, x),
    "train_continuously": lambda p, s, x: vg.training.train_continuously(p, s, data_of(p.network), [0.0, 0.1]),
}


def swept(measure: Any, *inputs: str) -> Call:
    """A sweep of a measurement, of the inputs x and y."""
    of: dict[str, Any] = {"x": lambda x: x, "other": lambda x: -x, "y": lambda x: np.int64(1)}
    return lambda p, s, x: vg.sweep(p.network, *(of[name](x) for name in inputs), key=KEY, seeds=1, measure=measure())


def trainings() -> Any:
    return vg.trainings(data_of(NETWORKS["own"]()), "sgd", 2, batch_size=3)


SWEEPS: dict[str, Call] = {
    "gains": swept(vg.gains, "x"),
    "gradients": swept(vg.gradients, "x", "y"),
    "naive_readings": swept(vg.naive_readings, "x", "y"),
    "correlations": swept(vg.correlations, "x", "other"),
    "frobenius": swept(vg.frobenius, "x"),
    "spectra": swept(vg.spectra, "x"),
    "lyapunov": swept(vg.lyapunov, "x"),
    "trainings": swept(trainings),
}
CASES = [
    *((network, call) for network in NETWORKS for call in CALLS),
    *(("own", call) for call in (*OF_ONE, *SWEEPS)),
]


@functools.cache
def drawn(name: str) -> vg.networks.Parameters:
    return vg.init(KEY, NETWORKS[name]())


def arrays(found: Any) -> list[np.ndarray]:
    found = found.arrays if isinstance(found, vg.Result) else found
    leaves = [leaf for leaf in jax.tree.leaves(found) if hasattr(leaf, "dtype")]
    return [np.asarray(a) for a in leaves if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key)]


def answer(network: str, call: str) -> list[np.ndarray]:
    parameters = drawn(network)
    return arrays({**CALLS, **OF_ONE, **SWEEPS}[call](parameters, vg.Scales(), x_of(parameters.network)))


@pytest.mark.parametrize(("network", "call"), CASES)
def test_jax_debug_nans_changes_nothing(network: str, call: str) -> None:
    """NaN stands for what is not reported, or was not asked for."""
    expected = answer(network, call)
    with jax.debug_nans(True):
        found = answer(network, call)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_training_that_diverges_is_a_result_under_jax_debug_nans() -> None:
    parameters = vg.init(KEY, vg.mlp(width=4, depth=2, activation="relu", inputs=3))
    data = vg.data.Examples(x_of(parameters.network, 2), np.ones((2, 1)))
    with jax.debug_nans(True):
        training = vg.train(parameters, vg.Scales(), data, "sgd", 9, batch_size=None, learning_rate=1e20)
    assert training.diverged


# --- float64 switched on for everything ----------------------------------------------------------------------------


def wide(network: str, call: str) -> list[np.ndarray]:
    """The same call with what JAX makes where float64 is on: float64 inputs, int64 labels, and scales."""
    parameters = drawn(network)
    scales = vg.Scales(**{name: jnp.asarray(scale.default) for name, scale in parameters.network.scales.items()})
    return arrays({**CALLS, **OF_ONE, **SWEEPS}[call](parameters, scales, jnp.asarray(x_of(parameters.network))))


@pytest.mark.parametrize(("network", "call"), CASES)
def test_a_float32_network_measures_the_same_where_float64_is_on(network: str, call: str) -> None:
    """Random directions are float32 in both, seeds and labels mean the same."""
    expected = answer(network, call)
    with jax.enable_x64(True):
        found = wide(network, call)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        if np.issubdtype(b.dtype, np.floating):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


class Wide(nnx.Module):
    """Parameters of two dtypes where float64 is on: Flax's float32, and what JAX makes by itself."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.inner = nnx.Linear(4, 4, rngs=rngs)
        self.slope = nnx.Param(jnp.ones(4))

    def __call__(self, h: jax.Array) -> jax.Array:
        return h + self.slope * jnp.tanh(self.inner(h))


@pytest.mark.parametrize("dtype", [None, "float32", "float64"])
def test_examples_of_another_mode_are_trained_on(dtype: str | None) -> None:
    with jax.enable_x64(True):
        data = vg.data.Examples(jnp.asarray(np.random.default_rng(0).normal(size=(6, 4))), jnp.arange(6) % 2)
        net = vg.stack(Wide, depth=2, input_shape=4)
        assert vg.init(KEY, net).dtype == np.float64
        measure = vg.trainings(data, "sgd", 2, batch_size=3, dtype=dtype)
        assert np.all(np.isfinite(vg.sweep(drawn("own").network, measure=measure, key=KEY, seeds=1).loss))
        if dtype is not None:
            run = vg.train(drawn("own").astype(dtype), vg.Scales(), data, "sgd", 2, batch_size=3)
            assert run.loss.dtype == dtype
    narrow = vg.trainings(data, "sgd", 2, batch_size=3, dtype=dtype)
    assert np.all(np.isfinite(vg.sweep(drawn("own").network, measure=narrow, key=KEY, seeds=1).loss))


def test_float64_can_be_trained_where_it_is_off() -> None:
    parameters = drawn("own").astype("float64")
    run = vg.train(parameters, vg.Scales(), data_of(parameters.network), "sgd", 2, batch_size=3)
    assert run.loss.dtype == np.float64
