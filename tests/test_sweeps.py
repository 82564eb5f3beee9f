"""Sweeps against a loop of single passes, their statistics against numpy, and their files."""

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vgjax as vg

KEY = jax.random.key(5)
X = np.array([0.5, -1.0, 2.0], np.float32)
SIGMA_W, SIGMA_B = np.array([0.5, 1.0, 1.5]), np.array([0.0, 0.3])


@pytest.fixture(scope="module")
def net() -> vg.Network:
    return vg.mlp(width=6, depth=5, activation="tanh", inputs=3)


@pytest.fixture(scope="module")
def swept(net: vg.Network) -> vg.Sweep:
    """Two seeds, two tangents, three by two points; the axes not in the order that the network names them."""
    return vg.sweep(net, X, key=KEY, seeds=2, tangents=2, sigma_b=SIGMA_B, sigma_w=SIGMA_W)


def single(net: vg.Network, seed: int, tangents: int, scales: vg.Scales, x: np.ndarray = X) -> vg.measure.Push:
    """One point of a sweep by itself: weights and directions from `fold_in(key, seed)`, split once."""
    weights, of_tangents = jax.random.split(jax.random.fold_in(KEY, seed))
    us = np.stack([jax.random.normal(key, (6,)) for key in jax.random.split(of_tangents, tangents)])
    us /= np.linalg.norm(us, axis=1, keepdims=True)
    push = vg.push_forward(vg.init(weights, net, stream=False), scales, x, us)
    root_mean_square = np.log(np.mean(np.exp(2 * np.asarray(push.log_gain, np.float64)), axis=0)) / 2
    return push._replace(log_gain=root_mean_square)


def test_a_sweep_is_the_loop_over_its_points(net: vg.Network, swept: vg.Sweep) -> None:
    assert list(swept.axes) == ["sigma_b", "sigma_w"]
    assert swept.log_gain.shape == swept.log_mean_square.shape == (2, 2, 3, 6)
    assert (swept.seeds, swept.depth) == (2, 5)
    for seed, (i, b), (j, w) in itertools.product(range(2), enumerate(SIGMA_B), enumerate(SIGMA_W)):
        one = single(net, seed, 2, vg.Scales(sigma_w=w, sigma_b=b))
        np.testing.assert_allclose(swept.log_gain[seed, i, j], one.log_gain, atol=1e-5)
        np.testing.assert_allclose(swept.log_mean_square[seed, i, j], one.log_mean_square, atol=1e-5)
        assert swept.first_inexact_layer[seed, i, j] == 6


def test_fixed_scales_are_given_as_numbers_or_as_scales_of_any_shape(net: vg.Network) -> None:
    by_layer = np.array([0.0, 0.1, 0.2, 0.3, 0.4], np.float32)
    axis = {"sigma_w": SIGMA_W[:2]}
    number = vg.sweep(net, X, key=KEY, seeds=1, sigma_b=0.3, **axis)
    same = vg.sweep(net, X, key=KEY, seeds=1, scales=vg.Scales(sigma_b=0.3), **axis)
    np.testing.assert_array_equal(number.log_gain, same.log_gain)
    assert number.fixed == {"sigma_b": 0.3}
    assert same.fixed == pytest.approx({"sigma_b": 0.3})
    layers = vg.sweep(net, X, key=KEY, seeds=1, scales=vg.Scales(sigma_b=by_layer), **axis)
    one = single(net, 0, 1, vg.Scales(sigma_w=SIGMA_W[1], sigma_b=by_layer))
    np.testing.assert_allclose(layers.log_gain[0, 1], one.log_gain, atol=1e-5)


def test_every_seed_may_have_its_own_input(net: vg.Network) -> None:
    xs = np.stack([X, 3 * X])
    swept = vg.sweep(net, xs, key=KEY, seeds=2, sigma_w=SIGMA_W[:2], sigma_b=0.3)
    for seed, x in enumerate(xs):
        one = single(net, seed, 2, vg.Scales(sigma_w=SIGMA_W[1], sigma_b=SIGMA_B[1]), x)
        np.testing.assert_allclose(swept.log_mean_square[seed, 1], one.log_mean_square, atol=1e-5)


def test_chunks_and_streams_change_nothing(net: vg.Network, swept: vg.Sweep) -> None:
    """One point at a time, and with no kernel stored."""
    small = vg.sweep(net, X, key=KEY, seeds=2, tangents=2, memory=1, stream=True, sigma_b=SIGMA_B, sigma_w=SIGMA_W)
    assert small.provenance["chunk_size"] == 1
    np.testing.assert_allclose(small.log_gain, swept.log_gain, atol=1e-5)
    np.testing.assert_allclose(small.log_mean_square, swept.log_mean_square, atol=1e-5)


def test_a_last_chunk_that_is_not_full_is_cut(net: vg.Network) -> None:
    grid = np.linspace(0.5, 1.1, 7)
    cut = vg.sweep(net, X, key=KEY, seeds=1, tangents=2, sigma_w=grid, sigma_b=0.3, memory=2400)
    assert 7 % cut.provenance["chunk_size"] not in (0, 7)
    for i, sigma_w in enumerate(grid):
        one = single(net, 0, 2, vg.Scales(sigma_w=sigma_w, sigma_b=SIGMA_B[1]))
        np.testing.assert_allclose(cut.log_gain[0, i], one.log_gain, atol=1e-5)


def test_a_sweep_is_traced_once_for_all_seeds_chunks_and_grids_of_its_shape() -> None:
    calls = []

    def counted(h: jax.Array) -> jax.Array:
        calls.append(1)
        return jnp.tanh(h)

    net = vg.mlp(width=4, depth=3, activation=counted, inputs=3)
    options = {"key": KEY, "memory": 1}  # one point a chunk
    vg.sweep(net, X, seeds=1, sigma_w=[0.5, 1.0], **options)
    traced = len(calls)
    vg.sweep(net, X, seeds=1, sigma_w=[0.7, 1.3], **options)  # another grid
    vg.sweep(net, X, seeds=1, sigma_w=[0.7, 1.3, 1.4, 1.5], **options)  # more chunks
    vg.sweep(net, X, seeds=3, sigma_w=[0.7, 1.3], **options)  # more seeds
    vg.sweep(vg.mlp(width=4, depth=3, activation=counted, inputs=3), X, seeds=1, sigma_w=[0.1, 2.0], **options)
    assert len(calls) == traced


def test_a_profile_is_the_gradient_flow_of_the_draws_of_a_sweep(net: vg.Network) -> None:
    scales = vg.Scales(sigma_w=1.2, sigma_b=0.1)
    flows = vg.profile(net, X, np.ones(1, np.float32), key=KEY, seeds=2, scales=scales, naive=())
    assert flows.log_gradient.shape == (2, 6)
    for seed in range(2):
        params = vg.init(jax.random.split(jax.random.fold_in(KEY, seed))[0], net, stream=False)
        flow = vg.gradient_flow(params, scales, X, np.ones(1, np.float32), naive=())
        np.testing.assert_allclose(flows.log_gradient[seed], flow.log_gradient, atol=1e-6)


# --- statistics -----------------------------------------------------------------------------------------------------


def made(log_gain: np.ndarray, **axes: Any) -> vg.Sweep:
    """A result without a sweep."""
    left = np.full(log_gain.shape[:-1], log_gain.shape[-1], np.int32)
    return vg.Sweep(
        {name: np.asarray(values) for name, values in axes.items()},
        log_gain,
        np.zeros_like(log_gain),
        left,
        state_size=4,
    )


def test_means_over_seeds_are_those_of_numpy() -> None:
    log_gain = np.random.default_rng(0).normal(size=(5, 3, 4))
    found = made(log_gain, sigma_w=SIGMA_W)
    np.testing.assert_allclose(found.mean_log_gain, np.mean(log_gain, axis=0))
    np.testing.assert_allclose(found.standard_error, np.std(log_gain, axis=0, ddof=1) / np.sqrt(5))
    np.testing.assert_allclose(found.log_mean_square_gain, np.log(np.mean(np.exp(2 * log_gain), axis=0)))
    np.testing.assert_allclose(found.rate(), (log_gain.mean(0)[:, 3] - log_gain.mean(0)[:, 1]) / 2)
    np.testing.assert_allclose(found.rate(0), (log_gain.mean(0)[:, 3] - log_gain.mean(0)[:, 0]) / 3)


def test_means_hold_where_no_float_would() -> None:
    found = made(np.array([[[0.0, -40000.0, -np.inf]], [[0.0, -30000.0, -10.0]]]), sigma_w=[1.0])
    np.testing.assert_allclose(found.log_mean_square_gain, [[0, -60000 - np.log(2), -20 - np.log(2)]])
    np.testing.assert_array_equal(found.mean_log_gain, [[0, -35000, -np.inf]])
    assert np.isnan(found.standard_error[0, 2])
    assert found.rate() == [-np.inf]


def test_one_seed_has_no_standard_error() -> None:
    assert np.all(np.isnan(made(np.zeros((1, 3, 4)), sigma_w=SIGMA_W).standard_error))


def test_the_edge_is_where_the_rate_changes_sign() -> None:
    rates = np.array([[-2.0, -3.0], [-1.0, -2.0], [3.0, -1.0]])  # over (sigma_w, sigma_b)
    log_gain = rates[None, ..., None] * np.arange(5)
    found = made(log_gain, sigma_w=SIGMA_W, sigma_b=SIGMA_B)
    np.testing.assert_allclose(found.rate(), rates)
    np.testing.assert_allclose(found.edge(), [1.0 + 0.5 / 4, np.nan])


def test_lost_is_where_the_square_of_the_gradient_leaves_the_dtype() -> None:
    log_gain = np.log(10.0) * np.array([[[0.0, -18.0, -20.0, 18.0, 20.0]]])
    found = made(log_gain, sigma_w=[1.0])
    np.testing.assert_array_equal(found.lost(), [[[False, False, True, False, True]]])
    np.testing.assert_array_equal(found.lost("float16"), [[[False, True, True, True, True]]])
    with pytest.raises(ValueError, match="dtype must be one of"):
        found.lost("float8")


def test_a_start_behind_the_last_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"start must lie in 0 .. 2, got 3"):
        made(np.zeros((1, 3, 4)), sigma_w=SIGMA_W).rate(3)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".nc"])
def test_what_is_saved_is_loaded_whole(swept: vg.Sweep, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new folder" / f"result{suffix}"
    assert swept.save(path) == path
    loaded = vg.load(str(path))
    assert list(loaded.axes) == list(swept.axes)
    for name, values in swept.axes.items():
        np.testing.assert_array_equal(loaded.axes[name], values)
    for name in ("log_gain", "log_mean_square", "first_inexact_layer"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(swept, name))
        assert getattr(loaded, name).dtype == getattr(swept, name).dtype
    assert loaded.fixed == swept.fixed
    assert loaded.provenance == swept.provenance
    assert loaded.state_size == swept.state_size == 6
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_dataset_is_labelled(swept: vg.Sweep) -> None:
    data = swept.to_xarray()
    assert data["log_gain"].dims == ("seed", "sigma_b", "sigma_w", "depth")
    point = data["log_gain"].sel(seed=1, sigma_b=0.3, sigma_w=1.5, depth=4)
    assert float(point) == swept.log_gain[1, 1, 2, 4]
    np.testing.assert_array_equal(data["depth"], np.arange(6))


def test_a_failed_save_leaves_nothing_behind_and_the_old_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "result.npz"
    good = made(np.zeros((1, 3, 4)), sigma_w=SIGMA_W)
    good.save(path)
    before = path.read_bytes()
    bad = vg.Sweep(good.axes, good.log_gain, good.log_mean_square, good.first_inexact_layer, 4, {"sigma_b": object()})
    with pytest.raises(TypeError):
        bad.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"path must end in .npz or .nc, got .*csv"):
        good.save(tmp_path / "result.csv")
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_hold_no_sweep_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="path must hold a saved result"):
        vg.load(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="path must end in"):
        vg.load(tmp_path / "other.txt")
    with pytest.raises(FileNotFoundError):
        vg.load(tmp_path / "missing.npz")


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs at least one axis"),
        ({"sigma_w": 1.0}, "needs at least one axis"),
        ({"sigma_w": []}, "non-empty one-dimensional grid"),
        ({"sigma_w": [[1.0, 2.0]]}, r"one-dimensional grid, got shape \(1, 2\)"),
        ({"sigma_w": [1.0, -1.0]}, "sigma_w must be finite and not negative, got -1"),
        ({"sigma_w": [np.nan]}, "sigma_w must be finite and not negative, got nan"),
        ({"sigma_v": [1.0]}, "scale must be one of sigma_w, sigma_b, got 'sigma_v'; did you mean"),
        ({"sigma_w": [1.0], "scales": {"alpha": 1.0}}, "scale must be one of"),
        ({"sigma_w": [1.0], "scales": {"sigma_b": [1.0, 2.0]}}, "sigma_b must be a number or one value per layer"),
        ({"sigma_w": [1.0], "seeds": 2.0}, "seeds must be a whole number, got 2.0"),
        ({"sigma_w": [1.0], "seeds": 0}, "seeds must be at least 1, got 0"),
        ({"sigma_w": [1.0], "tangents": 0}, "tangents must be at least 1"),
        ({"sigma_w": [1.0], "memory": 0}, "memory must be at least 1"),
        ({"sigma_w": [1.0], "x": np.ones(4)}, "x must have shape"),
        ({"sigma_w": [1.0], "x": np.ones((5, 3)), "seeds": 4}, "one for each of the 4 seeds, got 5"),
    ],
)
def test_bad_sweeps_are_refused_in_one_sentence(net: vg.Network, options: dict[str, Any], message: str) -> None:
    options = {"x": X, "seeds": 1, **options}
    if "scales" in options:
        options["scales"] = vg.Scales(**options["scales"])
    with pytest.raises(ValueError, match=message):
        vg.sweep(net, key=KEY, **options)
