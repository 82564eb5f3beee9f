"""Sweeps against a loop of single calls: points, seeds, examples, networks, compilations, and what is refused."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vgjax as vg
from vgjax.ensembles import sweep as sweeps
from vgjax.measure.flow import Push

KEY = jax.random.key(5)
X = np.array([0.5, -1.0, 2.0], np.float32)
SIGMA_W, SIGMA_B = np.array([0.5, 1.0, 1.5]), np.array([0.0, 0.3])
# Layers of width 6 add up a few roundings, and in another order for another batch.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def net() -> vg.Network:
    return vg.mlp(width=6, depth=5, activation="tanh", inputs=3)


@pytest.fixture(scope="module")
def swept(net: vg.Network) -> vg.Result:
    """Two seeds, two probes, three by two points; the axes not in the order that the network names them."""
    return vg.sweep(net, X, key=KEY, seeds=2, measure=vg.gains(2), sigma_b=SIGMA_B, sigma_w=SIGMA_W)


def single(net: vg.Network, seed: int, probes: int, scales: vg.Scales, x: np.ndarray = X) -> Push:
    """One point of a sweep by itself: weights and directions from `fold_in(key, seed)`, split once."""
    weights, of_directions = jax.random.split(jax.random.fold_in(KEY, seed))
    us = np.stack([jax.random.normal(key, (6,)) for key in jax.random.split(of_directions, probes)])
    us /= np.linalg.norm(us, axis=1, keepdims=True)
    push = vg.push_forward(vg.init(weights, net), scales, x, us)
    root_mean_square = np.log(np.mean(np.exp(2 * np.asarray(push.log_gain, np.float64)), axis=0)) / 2
    return push._replace(log_gain=root_mean_square)


# --- points and seeds -----------------------------------------------------------------------------------------------


def test_a_sweep_is_the_loop_over_its_points(net: vg.Network, swept: vg.Result) -> None:
    assert list(swept.axes) == ["sigma_b", "sigma_w"]
    assert swept.log_gain.shape == swept.log_mean_square.shape == (2, 2, 3, 6)
    assert (swept.seeds, swept.depth, swept.network) == (2, 5, net)
    for seed, (i, b), (j, w) in itertools.product(range(2), enumerate(SIGMA_B), enumerate(SIGMA_W)):
        one = single(net, seed, 2, vg.Scales(sigma_w=w, sigma_b=b))
        np.testing.assert_allclose(swept.log_gain[seed, i, j], one.log_gain, atol=ROUNDING)
        np.testing.assert_allclose(swept.log_mean_square[seed, i, j], one.log_mean_square, atol=ROUNDING)
        assert swept.first_inexact_layer[seed, i, j] == 6


def test_a_sweep_without_axes_is_single_calls_bit_for_bit(net: vg.Network) -> None:
    swept = vg.sweep(net, X, key=KEY, seeds=2, measure=vg.gains(2), sigma_w=1.2)
    assert swept.log_gain.shape == (2, 6)
    for seed in range(2):
        one = single(net, seed, 2, vg.Scales(sigma_w=1.2))
        np.testing.assert_array_equal(swept.log_mean_square[seed], one.log_mean_square)
        np.testing.assert_allclose(swept.log_gain[seed], one.log_gain, atol=1e-6)  # the mean is of float64 there


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
    np.testing.assert_allclose(layers.log_gain[0, 1], one.log_gain, atol=ROUNDING)


def test_chunks_and_streams_change_nothing(net: vg.Network, swept: vg.Result) -> None:
    """One point at a time, and with no kernel stored."""
    options = {"key": KEY, "seeds": 2, "memory": 1, "sigma_b": SIGMA_B, "sigma_w": SIGMA_W}
    small = vg.sweep(net, X, measure=vg.gains(2, stream=True), **options)
    assert small.provenance["chunks"] == [[1, 1]]
    np.testing.assert_allclose(small.log_gain, swept.log_gain, atol=ROUNDING)
    np.testing.assert_allclose(small.log_mean_square, swept.log_mean_square, atol=ROUNDING)


def test_a_last_chunk_that_is_not_full_is_cut(net: vg.Network) -> None:
    grid = np.linspace(0.5, 1.1, 7)
    cut = vg.sweep(net, X, key=KEY, seeds=1, measure=vg.gains(2), sigma_w=grid, sigma_b=0.3, memory=2400)
    ((size, _),) = cut.provenance["chunks"]
    assert 7 % size not in (0, 7)
    for i, sigma_w in enumerate(grid):
        one = single(net, 0, 2, vg.Scales(sigma_w=sigma_w, sigma_b=SIGMA_B[1]))
        np.testing.assert_allclose(cut.log_gain[0, i], one.log_gain, atol=ROUNDING)


def test_the_first_layers_of_a_deeper_network_are_the_shallower_one(net: vg.Network, swept: vg.Result) -> None:
    deeper = vg.mlp(width=6, depth=9, activation="tanh", inputs=3)
    found = vg.sweep(deeper, X, key=KEY, seeds=2, measure=vg.gains(2), sigma_b=SIGMA_B, sigma_w=SIGMA_W)
    np.testing.assert_allclose(found.log_gain[..., :6], swept.log_gain, atol=ROUNDING)


def test_gains_past_the_float_range(net: vg.Network) -> None:
    """Of an orthogonal linear network every ln gain is layer * ln sigma_w."""
    deep = vg.mlp(width=6, depth=400, activation="linear", inputs=3, kernel_init="orthogonal")
    found = vg.sweep(deep, X, key=KEY, seeds=2, sigma_w=[0.01, 100.0])
    truth = np.log([0.01, 100.0])[:, None] * np.arange(401)
    np.testing.assert_allclose(found.log_gain, np.broadcast_to(truth, (2, 2, 401)), rtol=1e-6, atol=ROUNDING)
    assert np.all(np.abs(found.log_gain[..., -1]) > 1800)


# --- what a leading axis is -----------------------------------------------------------------------------------------


def test_every_seed_may_have_its_own_input(net: vg.Network) -> None:
    xs = np.stack([X, 3 * X])
    swept = vg.sweep(net, xs, key=KEY, seeds=2, leading="seed", sigma_w=SIGMA_W[:2], sigma_b=0.3)
    for seed, x in enumerate(xs):
        one = single(net, seed, 1, vg.Scales(sigma_w=SIGMA_W[1], sigma_b=SIGMA_B[1]), x)
        np.testing.assert_allclose(swept.log_mean_square[seed, 1], one.log_mean_square, atol=ROUNDING)
        np.testing.assert_allclose(swept.log_gain[seed, 1], one.log_gain, atol=ROUNDING)


def test_examples_are_an_axis_behind_the_grid_and_share_the_draw(net: vg.Network) -> None:
    xs = np.stack([X, 3 * X, -X])
    swept = vg.sweep(net, xs, key=KEY, seeds=2, leading="example", sigma_w=SIGMA_W[:2], sigma_b=0.3)
    assert swept.log_gain.shape == (2, 2, 3, 6)
    assert swept.dims["log_gain"] == ("example", "layer")
    assert swept.first_inexact_layer.shape == (2, 2, 3)
    for seed, (i, x) in itertools.product(range(2), enumerate(xs)):
        one = single(net, seed, 1, vg.Scales(sigma_w=SIGMA_W[1], sigma_b=SIGMA_B[1]), x)
        np.testing.assert_allclose(swept.log_gain[seed, 1, i], one.log_gain, atol=ROUNDING)
        np.testing.assert_allclose(swept.log_mean_square[seed, 1, i], one.log_mean_square, atol=ROUNDING)


def test_every_example_takes_its_share_of_the_memory(net: vg.Network) -> None:
    options: dict[str, Any] = {"key": KEY, "seeds": 1, "sigma_w": np.linspace(0.5, 1.5, 8), "memory": 10_000}
    ((one, _),) = vg.sweep(net, X, **options).provenance["chunks"]
    ((batch, _),) = vg.sweep(net, np.stack([X] * 4), leading="example", **options).provenance["chunks"]
    assert (one, batch) == (8, 3)  # a point of one example takes 720 bytes


@pytest.mark.parametrize("count", [8, 3])
def test_a_leading_axis_without_a_name_is_refused_even_if_it_has_the_length_of_the_seeds(
    net: vg.Network, count: int
) -> None:
    message = (
        rf"^x must have shape \(3,\), or its leading axis of {count} must be named: leading='seed' for one input a "
        r"seed, leading='example' for a batch$"
    )
    with pytest.raises(ValueError, match=message):
        vg.sweep(net, np.ones((count, 3)), key=KEY, seeds=8)


# --- several networks -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def depths(net: vg.Network) -> vg.Result:
    """A shallower network before the deeper one, which is measured first."""
    return vg.sweep([vg.mlp(width=6, depth=2, inputs=3), net], X, key=KEY, seeds=2, sigma_w=SIGMA_W)


def test_networks_of_a_list_are_an_axis_named_by_depth_with_nan_where_one_does_not_reach(
    net: vg.Network, depths: vg.Result
) -> None:
    assert list(depths.networks) == ["depth 2", "depth 5"]
    assert depths.networks["depth 5"] == net
    assert (depths.lead, depths.depth, depths.seeds) == (("network", "seed", "sigma_w"), 5, 2)
    assert depths.log_gain.shape == (2, 2, 3, 6)
    alone = vg.sweep(net, X, key=KEY, seeds=2, sigma_w=SIGMA_W)
    np.testing.assert_array_equal(depths.log_gain[1], alone.log_gain)
    np.testing.assert_array_equal(np.isnan(depths.log_gain[0]), np.broadcast_to(np.arange(6) > 2, (2, 3, 6)))
    np.testing.assert_allclose(depths.log_gain[0, ..., :3], alone.log_gain[..., :3], atol=ROUNDING)  # the prefix
    np.testing.assert_array_equal(depths.first_inexact_layer[:, 0, 0], [3, 6])
    with pytest.raises(ValueError, match=r"^a result over several networks has them as networks, by name: depth 2, "):
        _ = depths.network


def test_rate_and_edge_of_several_networks_are_those_of_each(net: vg.Network, depths: vg.Result) -> None:
    for i, network in enumerate(depths.networks.values()):
        alone = vg.sweep(network, X, key=KEY, seeds=2, sigma_w=SIGMA_W)
        np.testing.assert_allclose(depths.rate()[i], alone.rate(), atol=ROUNDING)
        np.testing.assert_allclose(depths.rate(1)[i], alone.rate(1), atol=ROUNDING)
        np.testing.assert_allclose(depths.edge()[i], alone.edge(), atol=ROUNDING)
    with pytest.raises(ValueError, match=r"^from_layer must lie in 0 .. 1, got 2$"):
        depths.rate(2)


def test_networks_of_a_dict_keep_their_names_and_order_and_may_have_scales_of_their_own(net: vg.Network) -> None:
    relu = vg.mlp(width=6, depth=5, activation="relu", inputs=3)
    cases = {"wide": vg.ensembles.Case(net, {"sigma_w": 3.0}), "as it is": net, "relu": relu}
    found = vg.sweep(cases, X, key=KEY, seeds=1, sigma_b=SIGMA_B)
    assert list(found.networks) == list(cases)
    for name, scales, network in (("wide", {"sigma_w": 3.0}, net), ("as it is", {}, net), ("relu", {}, relu)):
        for i, b in enumerate(SIGMA_B):
            one = single(network, 0, 1, vg.Scales(sigma_b=b, **scales))
            log_gain = found.log_gain[list(cases).index(name), 0, i]
            np.testing.assert_allclose(log_gain, one.log_gain, atol=ROUNDING)
    assert found.fixed == {}
    assert found.provenance["scales"] == [{"sigma_w": 3.0}, {}, {}]
    assert vg.sweep(cases["wide"], X, key=KEY, seeds=1).fixed == {"sigma_w": 3.0}


def test_whole_numbers_and_booleans_of_networks_that_do_not_reach_are_nan(net: vg.Network) -> None:
    found = vg.sweep([vg.mlp(width=6, depth=2, inputs=3), net], X, measure=vg.naive_readings(), key=KEY, seeds=1)
    assert found.lost.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(found.lost[:, 0]), [[False] * 3 + [True] * 3, [False] * 6])
    alone = vg.sweep(net, X, measure=vg.naive_readings(), key=KEY, seeds=1)
    assert alone.lost.dtype == bool


def test_networks_with_other_parameters_have_nan_where_there_are_none(net: vg.Network) -> None:
    tied = vg.networks.tied(vg.mlp(width=6, depth=5, activation="tanh", inputs=3))
    found = vg.sweep({"own": net, "tied": tied}, X, measure=vg.gradients(), key=KEY, seeds=2)
    assert set(found.log_tied_gradient) == {"kernel", "bias"}
    assert np.all(np.isnan(found.log_tied_gradient["kernel"][0]))
    assert np.all(np.isfinite(found.log_tied_gradient["kernel"][1]))
    assert set(found.log_parameter_gradient) == {
        "kernel",
        "bias",
        "stem/kernel",
        "stem/bias",
        "head/kernel",
        "head/bias",
    }


# --- compilations ---------------------------------------------------------------------------------------------------


@pytest.fixture
def counted() -> tuple[list[int], Any]:
    """An activation of its own, and how often it was traced."""
    calls: list[int] = []

    def phi(h: jax.Array) -> jax.Array:
        calls.append(1)
        return jnp.tanh(h)

    return calls, phi


def test_a_sweep_is_traced_once_for_all_seeds_chunks_and_grids_of_its_shape(counted: Any) -> None:
    calls, phi = counted
    net = vg.mlp(width=4, depth=3, activation=phi, inputs=3)
    options = {"key": KEY, "memory": 1}  # one point a chunk
    vg.sweep(net, X, seeds=1, sigma_w=[0.5, 1.0], **options)
    traced = len(calls)
    vg.sweep(net, X, seeds=1, sigma_w=[0.7, 1.3], **options)  # another grid
    vg.sweep(net, X, seeds=1, sigma_w=[0.7, 1.3, 1.4, 1.5], **options)  # more chunks
    vg.sweep(net, X, seeds=3, sigma_w=[0.7, 1.3], **options)  # more seeds
    vg.sweep(net, np.stack([X, X]), seeds=2, leading="seed", sigma_w=[0.7, 1.3], **options)  # inputs of their own
    vg.sweep(vg.mlp(width=4, depth=3, activation=phi, inputs=3), X, seeds=1, sigma_w=[0.1, 2.0], **options)
    assert len(calls) == traced


def test_several_networks_and_threads_trace_each_network_once(counted: Any) -> None:
    calls, phi = counted
    nets = [vg.mlp(width=4, depth=depth, activation=phi, inputs=3) for depth in (2, 3)]
    options = {"key": KEY, "sigma_w": [0.5, 1.0], "memory": 1}
    vg.sweep(nets[0], X, seeds=1, **options)
    one = len(calls)
    vg.sweep(nets, X, seeds=4, workers=2, **options)
    assert len(calls) <= 2 * one  # the other network: as often as the first, whatever thread came first
    traced = len(calls)
    vg.sweep(nets, X, seeds=2, workers=2, **options)
    assert len(calls) == traced


def test_options_that_only_the_host_reads_share_a_program(counted: Any) -> None:
    calls, phi = counted
    net = vg.mlp(width=4, depth=3, activation=phi, inputs=3, outputs=2)
    vg.sweep(net, X, 1, measure=vg.first_steps(0.1), key=KEY, seeds=1)
    traced = len(calls)
    for measure in (vg.first_steps(0.2), vg.first_steps(0.2, clip=0.01)):
        vg.sweep(net, X, 1, measure=measure, key=KEY, seeds=1)
    assert len(calls) == traced


# --- float64 and threads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_float64_networks_are_measured_in_float64_by_every_worker(workers: int) -> None:
    with jax.enable_x64(True):
        net = vg.mlp(width=6, depth=5, activation="tanh", inputs=3, dtype="float64")
        x = X.astype(float)
        found = vg.sweep(net, x, key=KEY, seeds=2, workers=workers, memory=1, sigma_w=SIGMA_W, sigma_b=0.1)
        assert found.log_gain.dtype == found.log_mean_square.dtype == np.float64
        for seed, (i, w) in itertools.product(range(2), enumerate(SIGMA_W)):
            params = jax.tree.map(np.asarray, vg.init(jax.random.split(jax.random.fold_in(KEY, seed))[0], net))
            h = params.stem["kernel"].T @ (w * x) + 0.1 * params.stem["bias"]
            for kernel, bias in zip(*(params.stages[0][name] for name in ("kernel", "bias")), strict=True):
                h = w * kernel.T @ np.tanh(h) + 0.1 * bias
            assert found.log_mean_square[seed, i, -1] == pytest.approx(np.log(np.mean(np.square(h))), abs=1e-12)


def test_workers_change_no_bit(net: vg.Network, swept: vg.Result) -> None:
    options = {"key": KEY, "seeds": 2, "measure": vg.gains(2), "sigma_b": SIGMA_B, "sigma_w": SIGMA_W}
    np.testing.assert_array_equal(vg.sweep(net, X, workers=2, **options).log_gain, swept.log_gain)


def test_what_goes_wrong_in_a_worker_comes_out(net: vg.Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, *_: Any) -> Any:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(sweeps.Job, "piece", broken)
    with pytest.raises(RuntimeError, match=r"^the disk is on fire$"):
        vg.sweep(net, X, key=KEY, seeds=4, workers=2)


def test_a_progress_bar_counts_pieces_on_standard_error(net: vg.Network, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"key": KEY, "seeds": 2, "memory": 1, "sigma_b": 0.1}
    vg.sweep(net, X, progress=True, sigma_w=SIGMA_W, **options)
    shown = capsys.readouterr()
    assert "gains:   0%" in shown.err
    assert " 0/6 " in shown.err
    assert not shown.out
    vg.sweep(net, X, progress=False, sigma_w=SIGMA_W, **options)
    vg.sweep(net, X, sigma_w=SIGMA_W, **options)  # no terminal here
    assert not capsys.readouterr().err


# --- bad input ------------------------------------------------------------------------------------------------------

NETWORK = r"^network must be a network, or several of them, got "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma_w": []}, r"^sigma_w must be a non-empty one-dimensional grid, got shape \(0,\)$"),
        (
            {"sigma_w": [[1.0, 2.0]]},
            r"^sigma_w must be a number or one value per layer, shape \(5,\), got shape \(2,\)$",
        ),
        ({"sigma_w": [1.0, -1.0]}, "^sigma_w must be finite and not negative, got -1$"),
        ({"sigma_w": [np.nan]}, "^sigma_w must be finite, got nan$"),
        ({"sigma_w": -1.0}, "^sigma_w must be finite and not negative, got -1$"),
        (
            {"sigma_v": [1.0]},
            r"^scale must be one of sigma_w, sigma_b, sigma_in, sigma_out, got 'sigma_v'; did you mean 'sigma_\w'\?$",
        ),
        ({"learning_rate": [1.0]}, "^scale must be one of sigma_w, sigma_b, sigma_in, sigma_out, got 'learning_rate'$"),
        ({"scales": {"alpha": 1.0}}, "^scale must be one of sigma_w, sigma_b, sigma_in, sigma_out, got 'alpha'$"),
        (
            {"scales": {"sigma_b": [1.0, 2.0]}},
            r"^sigma_b must be a number or one value per layer, shape \(5,\), got shape \(2,\)$",
        ),
        (
            {"scales": {"sigma_w": 1.0}, "sigma_w": [1.0]},
            "^sigma_w must be given once, got it among the fixed scales and as an argument of its own$",
        ),
        ({"seeds": 2.0}, "^seeds must be a whole number, got 2.0$"),
        ({"seeds": 0}, "^seeds must be at least 1, got 0$"),
        ({"memory": 0}, "^memory must be at least 1, got 0$"),
        ({"workers": 0}, "^workers must be at least 1, got 0$"),
        ({"key": 0}, r"^key must be a key \(of jax.random.key\), got 0$"),
        ({"x": np.ones(4)}, r"^x must have shape \(3,\) .*, got \(4,\)$"),
        ({"x": np.full(3, np.nan)}, "^x must be finite, got a NaN or an infinity$"),
        (
            {"x": np.ones((5, 3)), "seeds": 4, "leading": "seed"},
            r"^inputs must be one for each of the 4 seeds, got shape",
        ),
        ({"x": np.float32(1), "leading": "seed"}, r"^inputs must be one for each of the 1 seeds, got shape \(\)$"),
        ({"leading": "seeds"}, "^leading must be one of seed, example, got 'seeds'; did you mean 'seed'\\?$"),
        (
            {"measure": "spectrum"},
            r"^measure must be .* vgjax.gains\(\), got 'spectrum'; did you mean vgjax.spectra\(\)\?$",
        ),
        ({"measure": 3}, r"^measure must be a measurement such as vgjax.gains\(\), got 3$"),
        ({"measure": vg.gains}, r"^measure must be a measurement such as vgjax.gains\(\), got the function gains"),
        ({"network": "mlp"}, f"{NETWORK}'mlp'$"),
        ({"network": 5}, f"{NETWORK}5$"),
        ({"network": []}, "^network must be at least one, got none$"),
        ({"network": {"a": 3}}, f"{NETWORK}[{{]'a': 3[}}]$"),
        ({"network": {"": vg.mlp(width=2, depth=2, inputs=3)}}, "^networks must be named by texts that are not empty"),
    ],
)
def test_bad_sweeps_are_refused_in_one_sentence_before_anything_is_drawn(
    net: vg.Network, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps.Job, "draw", lambda *_: pytest.fail("drawn"))
    options = {"x": X, "seeds": 1, "key": KEY, "network": net, **options}
    if "scales" in options:
        options["scales"] = vg.Scales(**options["scales"])
    with pytest.raises(ValueError, match=message) as refused:
        vg.sweep(options.pop("network"), options.pop("x"), **options)
    assert "\n" not in str(refused.value)


def test_networks_that_take_one_input_and_a_batch_of_it_do_not_mix(net: vg.Network) -> None:
    batch = vg.mlp(width=6, depth=2, inputs=3, norm=vg.norm("batch", batch=4))
    message = r"^x must have shape \(4, 3\) .*, got \(3,\)$"
    with pytest.raises(ValueError, match=message):
        vg.sweep([net, batch], X, key=KEY, seeds=1)
    with pytest.raises(ValueError, match=r"^networks of a sweep must be alike in what they take as one input"):
        vg.sweep([net, batch], np.ones((4, 3)), key=KEY, seeds=1, leading="example")
