"""solve and trace_edge: closed forms at finite width, theory at large width, dense sweeps, and what has no edge."""

import functools

import jax
import numpy as np
import pytest
from scipy.special import digamma

import vgjax as vg
from vgjax import edges
from vgjax.ensembles.crossing import POINTS, crossing, grids_near, search_grids
from vgjax.initializers import Scale

COMPUTES = True

KEY = jax.random.key(5)
X = np.random.default_rng(3).normal(size=16).astype(np.float32)


def linear(width: int, depth: int = 24, **options: object) -> vg.Network:
    return vg.mlp(width=width, depth=depth, activation="linear", inputs=16, **options)


# --- closed forms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "target"), [(8, 0.0), (8, 0.2), (32, -0.1)])
def test_a_gaussian_linear_network_crosses_where_chi_squares_say(width, target):
    """||W u||^2 / ||u||^2 = sigma_w^2 chi^2_n / n: E ln gain per layer = ln sigma_w + (psi(n/2) + ln(2/n)) / 2, and its
    variance is psi'(n/2) / 4."""
    exact = np.exp(target - (digamma(width / 2) + np.log(2 / width)) / 2)
    root = vg.solve(linear(width), X, target_rate=target, seeds=64, key=KEY)
    assert abs(root.value - exact) < 4 * root.standard_error
    error = exact * np.sqrt(1 / (2 * width) / 12 / 64)  # 12 layers past the transient; psi'(n/2) / 4 is nearly 1 / 2n
    assert root.standard_error == pytest.approx(error, rel=0.35)
    assert root.slope == pytest.approx(1 / exact, rel=0.05)
    assert root.bracket[0] <= root.value <= root.bracket[1]


def test_the_standard_error_is_the_spread_over_keys():
    roots = [vg.solve(linear(8), X, key=jax.random.key(k), seeds=12) for k in range(40)]
    values, errors = (np.array([getattr(root, name) for root in roots]) for name in ("value", "standard_error"))
    exact = np.exp(-(digamma(4) + np.log(1 / 4)) / 2)
    assert abs(values.mean() - exact) < 4 * values.std(ddof=1) / np.sqrt(40)
    assert values.std(ddof=1) == pytest.approx(np.sqrt(np.mean(errors**2)), rel=0.4)  # 1 / sqrt(2 * 39) = 0.11 each
    first = roots[0]
    assert first.draws.mean() == pytest.approx(first.value, abs=1e-6)
    assert first.draws.std(ddof=1) / np.sqrt(12) == pytest.approx(first.standard_error)


def test_an_orthogonal_linear_network_is_critical_at_one():
    root = vg.solve(linear(16, kernel_init="orthogonal"), X, key=KEY, seeds=2)
    assert root.value == pytest.approx(1, abs=1e-5)
    assert root.standard_error < 1e-6
    assert root.theory == pytest.approx(1, abs=1e-12)
    assert root.bracket[1] - root.bracket[0] <= 1e-3
    assert str(root).startswith("sigma_w = 1 ±")
    finer = vg.solve(linear(16, kernel_init="orthogonal"), X, key=KEY, seeds=2, tolerance=1e-9)  # below rounding: ends
    assert finer.value == pytest.approx(1, abs=1e-6)


# --- theory ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tanh() -> vg.Network:
    return vg.mlp(width=192, depth=60, activation="tanh", inputs=16)


@pytest.fixture(scope="module")
def line(tanh: vg.Network) -> vg.ensembles.Edge:
    return vg.trace_edge(tanh, X, "sigma_w", along="sigma_b", values=[0.2, 0.3, 0.4, 0.5], key=KEY)


def test_a_wide_tanh_network_crosses_at_the_edge_of_chaos(tanh):
    """But for O(1 / width): a mean of logarithms is below the logarithm of a mean."""
    root = vg.solve(tanh, X, "sigma_w", target_rate=0, key=KEY, sigma_b=0.3)
    theory = float(vg.theory.critical("tanh", 0.3).sigma_w)
    assert root.theory == theory
    assert root.about_theory == "edge of chaos"
    assert abs(root.value - theory) < 4 * root.standard_error + 5 / 192
    assert root.standard_error < 0.03
    assert root.evaluations <= 3 * POINTS


def test_theory_knows_fixed_scales_however_they_are_given(tanh):
    roots = [
        vg.solve(tanh, X, key=KEY, seeds=2, tolerance=1.0, **given)
        for given in ({"sigma_b": 0.3}, {"scales": vg.Scales(sigma_b=0.3)})
    ]
    assert roots[0].value == roots[1].value
    assert roots[0].theory == pytest.approx(roots[1].theory, abs=1e-7)  # Scales are float32
    schedule = vg.Scales(sigma_b=np.linspace(0.1, 0.5, 60))
    root = vg.solve(tanh, X, key=KEY, seeds=2, tolerance=1.0, scales=schedule)
    assert root.found
    assert np.isnan(root.theory)
    assert root.about_theory == "theory has one sigma_b for all layers"


def test_a_line_is_what_solve_finds_at_each_point(tanh, line):
    for value, edge, error in zip(line.values, line.edge, line.standard_error, strict=True):
        alone = vg.solve(tanh, X, key=KEY, sigma_b=float(value))
        assert abs(edge - alone.value) < 0.75 * alone.standard_error, value
        assert error == pytest.approx(alone.standard_error, rel=0.5)
    assert line.theory == pytest.approx(vg.theory.critical("tanh", line.values).sigma_w)
    assert line.reasons == ("",) * 4
    # A grid as fine as the errors, over what was searched, has a hundred times as many.
    assert line.evaluations.sum() <= 4 * 2 * POINTS + POINTS
    assert line.evaluations.sum() < 0.1 * 4 * (2 - 0.5) / line.standard_error.min()


def test_lines_come_back_from_files(line, tmp_path):
    path = line.save(tmp_path / "edge.npz")
    assert vg.ensembles.Edge.load(path) == line
    with pytest.raises(ValueError, match=r"path must end in .npz, got"):
        line.save(tmp_path / "edge.txt")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="path must hold a whole saved edge"):
        vg.ensembles.Edge.load(path)


def test_the_picture_has_both_lines(line):
    ax = vg.plots.edge(line).axes[0]
    lines = {each.get_label(): each.get_xdata() for each in ax.lines}
    assert np.array_equal(lines["edge, measured"], line.edge)
    assert np.array_equal(lines["edge of chaos, theory"], line.theory)
    assert (ax.get_xlabel(), ax.get_ylabel()) == (vg.plots.label("sigma_w"), vg.plots.label("sigma_b"))


# --- any network ----------------------------------------------------------------------------------------------------


def dense_edge(net: vg.Network, x: np.ndarray, scale: str, grid: np.ndarray, target: float) -> float:
    rate = vg.sweep(net, x, key=KEY, seeds=8, **{scale: grid}).rate() - target
    (i,) = np.nonzero(np.diff(np.sign(rate)))[0]
    return float(np.interp(0, *(np.sort(a[i : i + 2]) for a in (rate, grid)))) if rate[i] < 0 else float("nan")


def test_a_residual_branch_is_found_as_on_a_dense_grid():
    net = vg.mlp(width=24, depth=16, activation="relu", inputs=16, residual="pre")
    root = vg.solve(net, X, "branch", target_rate=0.1, key=KEY, seeds=8)
    dense = dense_edge(net, X, "branch", np.linspace(0.5, 1.5, 201), 0.1)
    assert root.value == pytest.approx(dense, abs=max(1e-3, 0.1 * root.standard_error))
    assert root.about_theory == "theory has the critical scale of plain stacks alone"
    assert root.evaluations <= 3 * POINTS


def test_a_forget_bias_is_found_as_on_a_dense_grid():
    net = vg.lstm(width=16, depth=24, inputs=3)
    xs = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    root = vg.solve(net, xs, "forget_bias", target_rate=-0.1, key=KEY, seeds=8)
    dense = dense_edge(net, xs, "forget_bias", np.linspace(0, 4, 201), -0.1)
    assert root.value == pytest.approx(dense, abs=0.1 * root.standard_error)


def test_a_batch_counts_as_one_rate_a_draw():
    xs = np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)
    net = vg.mlp(width=16, depth=8, activation="tanh", inputs=16)
    root = vg.solve(net, xs, key=KEY, seeds=4, leading="example")
    m = vg.sweep(net, xs, key=KEY, seeds=4, leading="example", sigma_w=root.bracket)
    low, high = (m.log_gain[..., 8] - m.log_gain[..., 4]).mean(axis=(0, 2)) / 4
    assert low < 0 <= high
    assert root.rates.shape == (4,)


def test_a_reading_of_another_measurement():
    """ln |dL/dh^L| - ln |dL/dh^0| is the same gain backwards: of an orthogonal linear network 0 at sigma_w = 1."""

    def growth(result: vg.Result) -> np.ndarray:
        return (result.log_gradient[..., 0] - result.log_gradient[..., -1]) / result.depth

    net = linear(16, depth=8, kernel_init="orthogonal", outputs=3)
    root = vg.solve(net, (X, 1), reading=growth, measure=vg.gradients(), key=KEY, seeds=2)
    assert root.value == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match=r"reading must say what is sought in .* without log_gain, got gradients"):
        vg.solve(net, (X, 1), measure=vg.gradients(), key=KEY)
    with pytest.raises(ValueError, match=r"reading must give one number a draw and value, shape \(2, 8\), got \(8,\)"):
        vg.solve(net, X, reading=lambda result: result.rate(), key=KEY, seeds=2)


def test_a_folder_gives_the_same_without_work(tmp_path, pieces):
    net = linear(4, depth=4)
    asked = {"along": "sigma_b", "values": [0.0, 0.1], "key": KEY, "seeds": 2, "folder": tmp_path}
    first = vg.trace_edge(net, X, **asked)
    count = len(pieces)
    assert vg.trace_edge(net, X, **asked) == first
    assert len(pieces) == count > 0


# --- what has no edge -----------------------------------------------------------------------------------------------


def test_no_crossing_is_a_result():
    net = vg.mlp(width=16, depth=8, activation="relu", inputs=16, residual="pre")
    root = vg.solve(net, X, "branch", target_rate=-0.05, key=KEY, seeds=2)
    assert not root.found
    assert np.isnan([root.value, root.standard_error]).all()
    assert root.reason.startswith("the rate stays above -0.05 from 0.03125 to 32: it comes down to ")
    assert str(root) == f"no branch: {root.reason}"
    assert root.evaluations == 3 * POINTS
    assert vg.solve(net, X, "sigma_w", between=(0.1, 0.2), target_rate=1.0, key=KEY, seeds=2).bracket == (0.1, 0.2)


def test_a_line_goes_on_behind_a_point_without_an_edge():
    """Where orthogonal kernels keep more than 0.3 a layer by their skip alone, no weights reach 0."""
    net = vg.mlp(width=16, depth=8, activation="linear", inputs=16, residual="pre", kernel_init="orthogonal")
    line = vg.trace_edge(net, X, "sigma_w", along="skip", values=[0.4, 1.3, 0.5][:2], key=KEY, seeds=4)
    assert np.isfinite(line.edge).tolist() == [True, False]
    assert line.reasons[1].startswith("the rate stays above 0")
    assert "found at 1 of 2" in str(line)
    vg.plots.edge(line)


def rates_of(f, seeds: int = 4):
    """Draws that differ by a shift of their rate."""
    asked: list[np.ndarray] = []

    def rates(values: np.ndarray) -> np.ndarray:
        asked.append(values)
        return f(values)[None] + np.linspace(-0.01, 0.01, seeds)[:, None]

    return rates, asked


GRID = [np.linspace(0, 2, POINTS)]


@pytest.mark.parametrize("power", [1, 3, 9])
def test_a_smooth_rate_is_found_in_few_sweeps_in_either_direction(power):
    for sign in (1, -1):
        rates, asked = rates_of(lambda v, sign=sign: sign * (v**power - 0.7**power))
        found = crossing(rates, GRID, 0.0, 1e-6)
        assert found.value == pytest.approx(0.7, abs=0.1 * found.standard_error)
        assert found.standard_error == pytest.approx(np.std(found.rates, ddof=1) / 2 / abs(found.slope))
        assert np.sign(found.slope) == sign
        assert len(asked) <= 4


@pytest.mark.parametrize("ends", [(-1e-6, 1), (-1, 1e-6), (-0.01, 1)])
def test_a_step_is_enclosed_where_interpolation_looks_elsewhere(ends):
    asked: list[np.ndarray] = []

    def rates(values: np.ndarray) -> np.ndarray:
        asked.append(values)
        return np.where(values < 0.7, *ends)[None] + np.array([[-1e-9], [1e-9]])

    low, high = crossing(rates, GRID, 0.0, 1e-5).bracket
    assert low < 0.7 <= high
    assert high - low <= 1e-5
    assert len(asked) <= 12


def test_the_first_of_several_crossings():
    rates, _ = rates_of(lambda v: np.sin(3 * v) - 0.5)
    assert crossing(rates, GRID, 0.0, 1e-6).value == pytest.approx(np.pi / 18, abs=1e-3)
    rates, _ = rates_of(lambda v: np.sin(3 * v) - 0.5)
    later = crossing(rates, [np.linspace(0.5, 2, POINTS)], 0.0, 1e-6)
    assert (later.value, later.slope < 0) == (pytest.approx(5 * np.pi / 18, abs=1e-3), True)


def test_a_rough_rate_is_read_by_the_line_through_it():
    rough = np.random.default_rng(0)

    def rates(values: np.ndarray) -> np.ndarray:
        return values - 1 + 0.1 * rough.normal(size=(16, len(values)))

    values = [crossing(rates, GRID, 0.0, 1e-6).value for _ in range(100)]
    assert np.mean(values) == pytest.approx(1, abs=0.01)  # the first crossing of each lies at 0.97
    assert np.std(values) < 0.025


def test_a_true_zero_is_below_any_target():
    def dead_below(edge: float):
        return lambda v: np.where(v < edge, -np.inf, v - 1)

    rates, _ = rates_of(dead_below(0.5))
    assert crossing(rates, GRID, 0.0, 1e-6).value == pytest.approx(1, abs=1e-3)
    rates, _ = rates_of(dead_below(1.2))  # alive only where it explodes
    found = crossing(rates, GRID, 0.0, 1e-4)
    assert np.isnan(found.value)
    assert found.reason.startswith("the rate jumps from -inf to 0.2")
    assert found.bracket == pytest.approx((1.2, 1.2), abs=1e-4)


def test_nan_is_no_root():
    rates, _ = rates_of(lambda v: np.where((v > 0.6) & (v < 1.4), np.nan, v - 1))
    found = crossing(rates, GRID, 0.0, 1e-6)
    assert np.isnan(found.value)
    assert found.reason.startswith("the rate crosses 0 from 0 to 2, but where it is NaN")
    rates, asked = rates_of(lambda v: np.where(v < 5, np.nan, v))
    assert crossing(rates, GRID, 0.0, 1e-6).reason == "the rate is NaN from 0 to 2"
    assert len(asked) == 1
    rates, _ = rates_of(lambda v: np.where(np.abs(v - 1.01) < 0.05, np.nan, v - 1))  # seen only on the way
    assert np.isnan(crossing(rates, GRID, 0.0, 1e-6).value)


@pytest.mark.parametrize(
    ("scale", "low", "high"),
    [
        (Scale(1.0, "parameter"), 1 / 32, 32),
        (Scale(0.5, "factor"), 1 / 64, 16),
        (Scale(0.0, "parameter"), 0, 16),
        (Scale(1.0, "offset"), -63, 65),
        (Scale(0.0, "rate"), 0, 0.95),
        (Scale(2.0, "divisor"), 1 / 16, 64),
    ],
)
def test_where_a_scale_is_sought(scale, low, high):
    grids = list(search_grids(scale, None))
    values = np.concatenate(grids)
    assert (values.min(), values.max()) == (pytest.approx(low), pytest.approx(high))
    assert len(np.unique(values)) == len(values)
    assert {len(grid) for grid in [*grids, *grids_near(scale, None, 0.3, 1.0)]} == {POINTS}
    for grid in grids_near(scale, None, 0.3, 1.0):
        for value in grid:
            scale.check("it", value)
    assert [grid.tolist() for grid in grids_near(scale, (0.1, 0.2), 0.9, 0.1)][-1][::7] == pytest.approx([0.1, 0.2])


# --- refusals -------------------------------------------------------------------------------------------------------

REFUSED = {
    r"scale must be one of sigma_w, .*, got 'sigma_x'": {"scale": "sigma_x"},
    r"between must be \(low, high\) with low below high, got \(2, 1\)": {"between": (2, 1)},
    r"between must be \(low, high\) with low below high, got \(1,\)": {"between": (1,)},
    r"sigma_w must be finite and not negative, got -1": {"between": (-1, 1)},
    r"seeds must be at least 2, of which an error is made, got 1": {"seeds": 1},
    r"tolerance must be finite and positive, got 0": {"tolerance": 0},
    r"target_rate must be finite, got nan": {"target_rate": float("nan")},
    r"from_layer must lie in 0 \.\. 3, got 4": {"from_layer": 4},
    r"sigma_w must be left out where it is sought, got 1.0": {"sigma_w": 1.0},
    r"sigma_w must be given once": {"scales": vg.Scales(sigma_w=1.0)},
    r"sigma_b must be one number beside a scale that is sought, got \[0.1, 0.2\]": {"sigma_b": [0.1, 0.2]},
    r"part must be left out where each sweep needs the last one": {"part": (0, 2)},
    r"reading must be a function of one argument, a Result, got the class int": {"reading": int},
    r"gains takes one input x, got 2": {"inputs": (X, X)},
    r"network must be a Network .*, got \[\]": {"network": []},
}
REFUSED_LINES = {
    r"along must be one of sigma_w, .*, got 'sigma_x'": {"along": "sigma_x"},
    r"along must be a scale that is neither sought nor given, got 'sigma_w'": {"along": "sigma_w"},
    r"along must be a scale that is neither sought nor given, got 'sigma_b'": {"sigma_b": 0.1},
    r"values must be numbers that increase or decrease, at least one, got \[0, 1, 1\]": {"values": [0, 1, 1]},
    r"values must be numbers that increase or decrease, at least one, got \[\]": {"values": []},
    r"values must be numbers that increase or decrease, at least one, got 0.5": {"values": 0.5},
    r"sigma_b must be finite and not negative, got -1": {"values": [-1, 1]},
}


@pytest.mark.parametrize("sentence", [*REFUSED, *REFUSED_LINES])
def test_what_is_refused_before_any_work(sentence, pieces):
    given = {"network": linear(4, depth=4), "inputs": X, "key": KEY, "seeds": 2}
    given |= {**REFUSED, **REFUSED_LINES}[sentence]
    second = {} if sentence in REFUSED else {"along": "sigma_b", "values": [0.1, 0.2]}
    with pytest.raises(ValueError, match=sentence):
        (vg.trace_edge if second else vg.solve)(**second | given)
    assert pieces == []


def test_options_are_those_of_the_sweep(monkeypatch):
    seen: list[dict] = []
    sweep = edges.sweep

    @functools.wraps(sweep)
    def noted(*inputs, **options):
        seen.append(options)
        return sweep(*inputs, **options)

    monkeypatch.setattr(edges, "sweep", noted)
    options = {"memory": 2**20, "workers": 1, "measure": vg.gains(2), "on_error": "raise"}
    vg.solve(linear(4, depth=4), X, key=KEY, seeds=2, progress=False, **options)
    assert all(options.items() <= each.items() and each["progress"] is False for each in seen)
