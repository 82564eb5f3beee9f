"""Results: statistics over draws against numpy, what they say of themselves, labels and files."""

import functools
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vgjax as vg

pytestmark = pytest.mark.usefixtures("strict_promotion")

KEY = jax.random.key(9)
X, OTHER = np.array([0.5, -1.0, 2.0], np.float32), np.array([1.0, 0.3, -0.7], np.float32)
SIGMA_W, SIGMA_B = np.array([0.5, 1.0, 1.5]), np.array([0.0, 0.3])
SHALLOW, NET = (vg.mlp(width=4, depth=depth, activation="tanh", inputs=3, outputs=2) for depth in (2, 3))


def made(log_gain: np.ndarray, several: bool = False, **axes: Any) -> vg.Result:
    """A result without a sweep."""
    left = np.full(log_gain.shape[:-1], log_gain.shape[-1], np.int32)
    return vg.Result(
        "gains",
        {name: np.asarray(values) for name, values in axes.items()},
        {"log_gain": log_gain, "log_mean_square": np.zeros_like(log_gain), "first_inexact_layer": left},
        {"log_gain": ("layer",), "log_mean_square": ("layer",), "first_inexact_layer": ()},
        networks={"a": None, "b": None} if several else {"": None},
        provenance={"state_size": 4},
    )


# --- statistics -----------------------------------------------------------------------------------------------------


def test_means_over_seeds_are_those_of_numpy() -> None:
    log_gain = np.random.default_rng(0).normal(size=(5, 3, 4))
    found = made(log_gain, sigma_w=SIGMA_W)
    np.testing.assert_allclose(found.mean("log_gain"), np.mean(log_gain, axis=0))
    np.testing.assert_allclose(found.error("log_gain"), np.std(log_gain, axis=0, ddof=1) / np.sqrt(5))
    np.testing.assert_allclose(found.annealed("log_gain"), np.log(np.mean(np.exp(2 * log_gain), axis=0)) / 2)
    np.testing.assert_allclose(found.rate(), (log_gain.mean(0)[:, 3] - log_gain.mean(0)[:, 1]) / 2)
    np.testing.assert_allclose(found.rate(0), (log_gain.mean(0)[:, 3] - log_gain.mean(0)[:, 0]) / 3)


def test_the_axis_of_networks_stays_in_every_statistic() -> None:
    log_gain = np.random.default_rng(1).normal(size=(2, 5, 3, 4))
    found = made(log_gain, several=True, sigma_w=SIGMA_W)
    assert found.seeds == 5
    np.testing.assert_allclose(found.mean("log_gain"), log_gain.mean(axis=1))
    np.testing.assert_allclose(found.error("log_gain"), log_gain.std(axis=1, ddof=1) / np.sqrt(5))
    np.testing.assert_allclose(found.annealed("log_gain"), np.log(np.mean(np.exp(2 * log_gain), axis=1)) / 2)
    np.testing.assert_allclose(found.rate(), (log_gain.mean(1)[..., 3] - log_gain.mean(1)[..., 1]) / 2)


def test_means_hold_where_no_float_would() -> None:
    found = made(np.array([[[0.0, -40000.0, -np.inf]], [[0.0, -30000.0, -10.0]]]), sigma_w=[1.0])
    np.testing.assert_allclose(found.annealed("log_gain"), [[0, -30000 - np.log(2) / 2, -10 - np.log(2) / 2]])
    np.testing.assert_array_equal(found.mean("log_gain"), [[0, -35000, -np.inf]])
    assert np.isnan(found.error("log_gain")[0, 2])
    assert found.rate() == [-np.inf]


def test_one_seed_has_no_standard_error() -> None:
    for several, shape in ((False, (1, 3, 4)), (True, (2, 1, 3, 4))):
        error = made(np.zeros(shape), several, sigma_w=SIGMA_W).error("log_gain")
        assert error.shape == shape[:-3] + shape[-2:]
        assert np.all(np.isnan(error))


RATES = np.array([[-2.0, -3.0], [-1.0, 2.0], [3.0, 4.0]])  # over (sigma_w, sigma_b)


def test_the_edge_is_where_the_rate_changes_sign_along_either_axis() -> None:
    found = made(RATES[None, ..., None] * np.arange(5), sigma_w=SIGMA_W, sigma_b=SIGMA_B)
    np.testing.assert_allclose(found.rate(), RATES)
    np.testing.assert_allclose(found.edge(), [1.0 + 0.5 / 4, 0.5 + 0.5 * 3 / 5])
    np.testing.assert_array_equal(found.edge("sigma_w"), found.edge())
    np.testing.assert_allclose(found.edge(along="sigma_b"), [np.nan, 0.3 / 3, np.nan])
    both = made(np.stack([RATES, -RATES])[:, None, ..., None] * np.arange(5), True, sigma_w=SIGMA_W, sigma_b=SIGMA_B)
    np.testing.assert_allclose(both.edge("sigma_b"), [[np.nan, 0.1, np.nan], [np.nan] * 3])
    np.testing.assert_allclose(both.edge(), [found.edge(), [np.nan, np.nan]])


def test_the_edge_behind_dead_networks_is_the_first_scale_that_lives() -> None:
    log_gain = np.array([-np.inf, 2.0, 3.0])[None, :, None] * np.ones(5)
    log_gain[..., 0] = 0
    np.testing.assert_array_equal(made(log_gain, sigma_w=SIGMA_W).edge(), 1.0)
    assert np.isnan(made(log_gain[:, 1:], sigma_w=SIGMA_W[1:]).edge())
    assert np.isnan(made(log_gain[:, 1:2], sigma_w=SIGMA_W[1:2]).edge())


def test_lost_is_where_the_square_of_the_gradient_leaves_the_dtype() -> None:
    log_gain = np.log(10.0) * np.array([[[0.0, -18.0, -20.0, 18.0, 20.0]]])
    found = made(log_gain, sigma_w=[1.0])
    np.testing.assert_array_equal(found.naive_lost(), [[[False, False, True, False, True]]])
    np.testing.assert_array_equal(found.naive_lost("float16"), [[[False, True, True, True, True]]])
    with pytest.raises(
        ValueError, match=r"^dtype must be one of float32, bfloat16, float16, got 'float8'; did you mean"
    ):
        found.naive_lost("float8")


def test_what_a_result_has_not_is_refused_by_name() -> None:
    found = made(np.zeros((1, 3, 4)), sigma_w=SIGMA_W)
    with pytest.raises(ValueError, match=r"^from_layer must lie in 0 .. 2, got 3$"):
        found.rate(3)
    with pytest.raises(ValueError, match=r"^along must be one of sigma_w, got 'sigmaw'; did you mean 'sigma_w'\?$"):
        found.edge("sigmaw")
    with pytest.raises(
        ValueError, match=r"^variable must be one of log_gain, .*, got 'log_gian'; did you mean 'log_gain'\?$"
    ):
        found.mean("log_gian")
    with pytest.raises(AttributeError, match=r"^no variable 'log_gian' here; there are log_gain, log_mean_square, "):
        _ = found.log_gian
    other = vg.Result("frobenius", {}, {"log_norm": np.zeros((1, 4))}, {"log_norm": ("layer",)})
    for read in (other.rate, other.edge, other.naive_lost):
        with pytest.raises(
            ValueError, match=r"^rate, edge and naive_lost need a sweep of gains, got one of frobenius$"
        ):
            read()
    with pytest.raises(ValueError, match=r"^edge needs a sweep along some axis, got one without axes$"):
        made(np.zeros((1, 4))).edge()


# --- what it says of itself -----------------------------------------------------------------------------------------


@functools.cache
def swept(kind: str) -> vg.Result:
    """One of every measurement, and what is particular: examples, several networks, nested dicts, no axes."""
    options: dict[str, Any] = {"key": KEY, "seeds": 2, "sigma_w": SIGMA_W}
    pair = np.stack([X, OTHER])
    return {
        "gains": lambda: vg.sweep(NET, X, sigma_b=SIGMA_B, **options),
        "scales by layer": lambda: vg.sweep(
            NET, X, scales=vg.Scales(sigma_b=np.arange(3, dtype=np.float32)), **options
        ),
        "gradients": lambda: vg.sweep(NET, pair, [0, 1], measure=vg.gradients(), leading="example", **options),
        "several gradients": lambda: vg.sweep([SHALLOW, NET], X, 1, measure=vg.gradients(), **options),
        "naive readings": lambda: vg.sweep(NET, X, 1, measure=vg.naive_readings(), key=KEY, seeds=2),
        "correlations": lambda: vg.sweep(NET, X, OTHER, measure=vg.correlations(), **options),
        "spectra": lambda: vg.sweep([SHALLOW, NET], X, measure=vg.spectra([1, 2]), **options),
        "lyapunov": lambda: vg.sweep(NET, X, measure=vg.lyapunov(), **options),
        "frobenius": lambda: vg.sweep(NET, X, measure=vg.frobenius(), sigma_b=0.2, **options),
        "first steps": lambda: vg.sweep({"a": NET}, X, 1, measure=vg.first_steps(), **options),
    }[kind]()


KINDS = (
    "gains",
    "scales by layer",
    "gradients",
    "several gradients",
    "naive readings",
    "correlations",
    "spectra",
    "lyapunov",
    "frobenius",
    "first steps",
)


@pytest.fixture(scope="module", params=KINDS)
def result(request: pytest.FixtureRequest) -> vg.Result:
    return swept(request.param)


def test_a_result_says_in_one_line_what_was_measured_over_what() -> None:
    of_several = swept("several gradients")
    assert repr(swept("gains")) == (
        "<gains of mlp(tanh, width 4, depth 3, inputs 3, outputs 2) over 2 draws, 2 sigma_b, 3 sigma_w, 4 layers: "
        "log_gain, log_mean_square, first_inexact_layer, first_nan_layer>"
    )
    assert repr(of_several) == (
        "<gradients of 2 networks over 2 draws, 3 sigma_w, 4 layers, 3 blocks: log_mean_square, log_gradient, "
        "log_parameter_gradient, mean_square_slope, saturation, saturated, first_inexact_layer, first_nan_layer>"
    )
    page = of_several._repr_html_()
    assert "gradients of 2 networks over 2 draws, 3 sigma_w" in page
    assert "<td>log_parameter_gradient.stem.kernel</td><td>network 2, seed 2, sigma_w 3</td><td>float32</td>" in page
    named = vg.sweep({"<b>": NET}, X, key=KEY, seeds=1)
    assert "<b>" not in named._repr_html_()


def test_every_variable_is_an_attribute_and_nested_ones_are_dicts_by_path() -> None:
    found = swept("several gradients")
    np.testing.assert_array_equal(found.log_gradient, found.arrays["log_gradient"])
    assert set(found.log_parameter_gradient) == {
        "kernel",
        "bias",
        "stem/kernel",
        "stem/bias",
        "head/kernel",
        "head/bias",
    }
    np.testing.assert_array_equal(
        found.log_parameter_gradient["stem/kernel"], found.arrays["log_parameter_gradient.stem.kernel"]
    )


def test_a_dataset_is_labelled() -> None:
    found = swept("gains")
    data = found.to_xarray()
    assert data["log_gain"].dims == ("seed", "sigma_b", "sigma_w", "layer")
    point = data["log_gain"].sel(seed=1, sigma_b=0.3, sigma_w=1.5, layer=3)
    assert float(point) == found.log_gain[1, 1, 2, 3]
    np.testing.assert_array_equal(data["layer"], np.arange(4))
    assert data["log_gain"].attrs["units"] == "natural logarithm"
    several = swept("spectra").to_xarray()
    np.testing.assert_array_equal(several["to_layer"], [1, 2])
    np.testing.assert_array_equal(several["network"], ["depth 2", "depth 3"])
    np.testing.assert_array_equal(several["depth"], [2, 3])
    flow = swept("several gradients").to_xarray()
    np.testing.assert_array_equal(flow["block"], [1, 2, 3])
    assert np.isnan(flow["log_gradient"].sel(network="depth 2", layer=3)).all()


# --- files ----------------------------------------------------------------------------------------------------------


def assert_same(loaded: vg.Result, result: vg.Result) -> None:
    """Everything but the networks."""
    assert list(loaded.arrays) == list(result.arrays)
    for mine, theirs in (
        (loaded.arrays, result.arrays),
        (loaded.axes, result.axes),
        (loaded.coordinates, result.coordinates),
    ):
        assert set(mine) == set(theirs)
        for name, values in theirs.items():
            np.testing.assert_array_equal(mine[name], values)
            assert mine[name].dtype == values.dtype
    for of in ("measure", "dims", "fixed", "provenance", "lead", "sizes"):
        assert getattr(loaded, of) == getattr(result, of)
    assert list(loaded.networks) == list(result.networks)


@pytest.mark.parametrize("suffix", [".npz", ".nc"])
def test_what_is_saved_is_loaded_whole(result: vg.Result, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new folder" / f"result{suffix}"
    assert result.save(path) == path
    assert_same(vg.load(str(path)), result)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("kind", "suffix"), [("gains", ".npz"), ("spectra", ".nc")])
def test_networks_come_back_with_the_file(kind: str, suffix: str, tmp_path: Path) -> None:
    found = swept(kind)
    loaded = vg.load(found.save(tmp_path / f"result{suffix}"))
    assert loaded.networks == found.networks
    if not found.several:
        assert loaded.network == found.network
    assert repr(loaded) == repr(found)


def test_a_result_can_be_pickled(result: vg.Result) -> None:
    again = pickle.loads(pickle.dumps(result))
    assert_same(again, result)
    assert again.networks == result.networks
    assert repr(again) == repr(result)


def user(h: jax.Array) -> jax.Array:
    return jnp.tanh(2 * h)


def test_a_network_that_a_file_cannot_hold_is_handed_over_and_checked(tmp_path: Path) -> None:
    net = vg.mlp(width=4, depth=3, activation=user, inputs=3)
    path = vg.sweep(net, X, key=KEY, seeds=2, sigma_w=SIGMA_W).save(tmp_path / "own.npz")
    alone = vg.load(path)
    np.testing.assert_array_equal(alone.rate(), vg.load(path, network=net).rate())
    with pytest.raises(
        ValueError, match=r"^the file could not hold this network \(an activation, a block or a law of your own\)"
    ):
        _ = alone.network
    assert vg.load(path, network=net).network is net
    with pytest.raises(ValueError, match=r"^network must be that of the result, mlp\(user, .*, got mlp\(tanh, "):
        vg.load(path, network=NET)

    def named_alike(slope: float) -> vg.Network:
        phi = vg.Activation("user", lambda h: jnp.tanh(slope * h))
        return vg.mlp(width=4, depth=3, activation=phi, inputs=3)

    same, another = named_alike(2.0), named_alike(3.0)
    assert vg.load(path, network=same).network is same
    with pytest.raises(
        ValueError, match=r"^network must be that of the result, got another of the same name, mlp\(user"
    ):
        vg.load(path, network=another)
    both = vg.sweep({"own": net, "ours": NET}, X, key=KEY, seeds=1).save(tmp_path / "both.npz")
    assert vg.load(both, network={"own": net}).networks["own"] is net
    with pytest.raises(
        ValueError, match=r"^the name of a network must be one of own, ours, got 'won'; did you mean 'own'"
    ):
        vg.load(both, network={"won": net})
    with pytest.raises(ValueError, match=r"^the name of a network must be one of own, ours, got ''"):
        vg.load(both, network=net)


def test_a_failed_save_leaves_nothing_behind_and_the_old_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "result.npz"
    good = made(np.zeros((1, 3, 4)), sigma_w=SIGMA_W)
    good.save(path)
    before = path.read_bytes()
    bad = vg.Result(good.measure, good.axes, good.arrays, good.dims, fixed={"sigma_b": object()})
    with pytest.raises(TypeError, match="object is not JSON serializable"):
        bad.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"^path must end in .npz or .nc, got '.*result.csv'$"):
        good.save(tmp_path / "result.csv")
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_hold_no_result_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match=r"^path must hold a whole saved result, got .*other.npz' \("):
        vg.load(tmp_path / "other.npz")
    made(np.zeros((1, 3, 4)), sigma_w=SIGMA_W).to_xarray().drop_attrs().to_netcdf(tmp_path / "other.nc")
    with pytest.raises(ValueError, match=r"^path must hold a whole saved result, got .*other.nc' \("):
        vg.load(tmp_path / "other.nc")
    with pytest.raises(ValueError, match=r"^path must end in .npz or .nc, got '.*other.txt'$"):
        vg.load(tmp_path / "other.txt")
    with pytest.raises(FileNotFoundError):
        vg.load(tmp_path / "missing.npz")
