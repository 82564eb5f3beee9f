"""Sweeps without weights: the face, the tables, the ends. Their law against drawn networks: test_implicit_law."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vgjax as vg
from vgjax.ensembles.implicit import ImplicitCorrelations, ImplicitGains, ImplicitGradients
from vgjax.implicit import points, stacks, sums

X = np.array([0.7, -1.1, 0.4, 1.3, -0.2])
GRID = {"sigma_w": np.linspace(0.5, 4, 8), "sigma_b": np.linspace(0, 2, 4)}


def mlp(activation="tanh", width=32, depth=20, **options):
    return vg.mlp(width=width, depth=depth, activation=activation, inputs=5, outputs=3, **options)


def implicit(net, *inputs, seeds=2, **options):
    return vg.sweep(net, *inputs, key=jax.random.key(0), seeds=seeds, weights="implicit", progress=False, **options)


# --- the same face --------------------------------------------------------------------------------------------------

NETWORKS = {
    "smooth": mlp(),
    "homogeneous": mlp("relu"),
    "steps": mlp("hard_tanh"),
    "rows": mlp("hard_swish"),
    "widths": vg.mlp(width=[8, 12, 5], activation="gelu", inputs=5, outputs=3),
    "orthogonal": mlp(kernel_init="orthogonal", depth=4),
    "residual": mlp("relu", residual="plain", norm="layer", depth=4),
    "gate": mlp(residual=vg.networks.branch("pre", scheme="rezero"), bias_init="uniform", dropout="bernoulli", depth=4),
}
MEASURES = {
    "gains": (vg.gains(), 1, {}),
    "probes": (vg.gains(3), 1, {}),
    "gradients": (vg.gradients(), 2, {}),
    "batch": (vg.gradients(), 2, {"leading": "example"}),
    "correlations": (vg.correlations(), 2, {}),
}


@pytest.mark.parametrize(
    ("name", "measure"), [("smooth", "gains"), ("homogeneous", "gradients"), *(("residual", m) for m in MEASURES)]
)
def test_a_result_without_weights_has_what_a_drawn_one_has(name, measure):
    what, count, options = MEASURES[measure]
    x, y = X, np.ones(3) if what.name == "gradients" else -X
    if options:
        x, y = np.stack([x, -x]), np.stack([y, y])
    inputs = (x, y)[:count]
    ours = implicit(NETWORKS[name], *inputs, measure=what, sigma_w=GRID["sigma_w"], **options)
    drawn = vg.sweep(
        NETWORKS[name], *inputs, measure=what, key=jax.random.key(0), seeds=2, sigma_w=GRID["sigma_w"], **options
    )
    assert ours.measure == drawn.measure
    assert ours.arrays.keys() - drawn.arrays.keys() == {"table_error"}
    for variable, array in drawn.arrays.items():
        assert ours.arrays[variable].shape == array.shape, variable
        assert ours.arrays[variable].dtype == array.dtype, variable
        assert ours.dims[variable] == drawn.dims[variable]
    assert (ours.provenance["weights"], drawn.provenance["weights"]) == ("implicit", "drawn")


@pytest.mark.torture
@pytest.mark.parametrize("name", NETWORKS)
def test_gains_and_gradients_of_every_kind_are_near_those_of_drawn_networks(name):
    """A coarse look at many networks, within 5 standard errors; the law itself is tested elsewhere."""
    net, scales = NETWORKS[name], vg.Scales(sigma_w=1.3)
    for what, inputs, variable in ((vg.gains(), (X,), "log_gain"), (vg.gradients(), (X, np.ones(3)), "log_gradient")):
        run = {"measure": what, "key": jax.random.key(1), "seeds": 64, "scales": scales, "progress": False}
        ours, drawn = vg.sweep(net, *inputs, weights="implicit", **run), vg.sweep(net, *inputs, **run)
        error = np.hypot(ours.error(variable), drawn.error(variable))
        distance = np.abs(ours.mean(variable) - drawn.mean(variable))
        assert np.all(distance <= 5 * error + 1e-5), (variable, distance / error)


def test_results_save_compare_and_draw():
    found = implicit(NETWORKS["smooth"], X, **GRID)
    assert np.all(np.abs(found.rate()) < 3)
    assert np.isfinite(found.edge("sigma_w")).any()
    assert vg.compare(found).z.shape == (8, 4, 21)


def test_a_result_comes_back_from_its_file(tmp_path):
    found = implicit(NETWORKS["homogeneous"], X, sigma_w=[1.0, 1.4])
    assert vg.load(found.save(tmp_path / "found.npz")) == found


@pytest.mark.parametrize("name", ["smooth", "rows"])
def test_pieces_folders_and_threads_change_nothing(name, tmp_path):
    run = {"measure": vg.gradients(), "sigma_w": np.linspace(0.5, 2, 8), "sigma_b": np.linspace(0, 1, 4)}
    whole = implicit(NETWORKS[name], X, np.ones(3), **run)
    kept = implicit(NETWORKS[name], X, np.ones(3), folder=tmp_path / "run", memory=40_000, workers=2, **run)
    assert len(list((tmp_path / "run").glob("*.npz"))) > 2
    again = implicit(NETWORKS[name], X, np.ones(3), folder=tmp_path / "run", **run)
    for variable, array in whole.arrays.items():
        np.testing.assert_allclose(kept.arrays[variable], array, rtol=1e-5, atol=2e-5, err_msg=variable)
        np.testing.assert_array_equal(again.arrays[variable], kept.arrays[variable])


def test_the_edge_is_solved_for_without_weights():
    """A linear network's rate is ln sigma_w + (digamma(n / 2) + ln(2 / n)) / 2, in the mean."""
    from scipy.special import digamma

    n = 16
    net = vg.mlp(width=n, depth=60, activation="linear", inputs=5)
    root = vg.solve(net, X, key=jax.random.key(2), seeds=200, weights="implicit")
    exact = np.exp(-(digamma(n / 2) + np.log(2 / n)) / 2)
    assert abs(root.value - exact) < 4 * root.standard_error < 0.02


# --- what is chosen -------------------------------------------------------------------------------------------------


def engine(net, *inputs, **options):
    return implicit(net, *inputs, seeds=1, **options).provenance["options"].get("pieces")


def test_tables_serve_grids_of_plain_stacks():
    assert engine(mlp(), X, **GRID) == 1
    assert engine(mlp("relu"), X, sigma_w=[1.0]) == 1
    assert engine(mlp("hard_tanh"), X, sigma_w=[1.0]) == 1
    assert engine(mlp("gelu"), X, sigma_w=np.linspace(1, 2, 200)) in (4, 8)


@pytest.mark.parametrize(
    ("net", "x", "options"),
    [
        (mlp(), X, {"sigma_w": [1.0, 2.0]}),  # fewer points than nodes
        (mlp("hard_swish"), X, GRID),  # a kink that is no node
        (vg.mlp(width=[8, 8, 9], activation="relu", inputs=5), X, GRID),
        (mlp("relu", kernel_init="orthogonal"), X, {"sigma_w": [1.0]}),
        (mlp("relu", bias_init="uniform"), X, {"sigma_w": [1.0]}),
        (mlp("relu", residual="pre"), X, {"sigma_w": [1.0]}),
        (mlp("relu", norm="layer"), X, {"sigma_w": [1.0]}),
        (mlp("relu"), 0 * X, {"sigma_w": [1.0], "sigma_b": [0.0, 1.0]}),  # a state without a direction
        (mlp("relu"), np.stack([X, -X]), {"sigma_w": [1.0], "leading": "example"}),
    ],
)
def test_rows_serve_what_tables_do_not(net, x, options):
    assert engine(net, x, **options) is None


# --- refusals -------------------------------------------------------------------------------------------------------

TRANSFORMER = vg.transformer(width=8, depth=2, heads=2, inputs=(4, 3))
REFUSED = [
    (lambda: implicit(mlp(), X, measure=vg.spectra()), "gains, gradients and correlations, got spectra"),
    (lambda: implicit(mlp(), X, measure=vg.gains(stream=True)), "stream must be False"),
    (lambda: implicit(mlp(kernel_init="uniform"), X), "kernel_init gaussian or orthogonal, got uniform"),
    (lambda: implicit(mlp(kernel_init=jax.nn.initializers.he_normal()), X), "got a law of its own"),
    (lambda: implicit(mlp(bias_init=jax.nn.initializers.ones), X), "bias_init gaussian or uniform"),
    (lambda: implicit(vg.cnn(channels=4, depth=2), np.ones((8, 8, 1))), "states are vectors"),
    (lambda: implicit(TRANSFORMER, np.ones((4, 3))), "states are vectors"),
    (lambda: implicit(vg.networks.tied(mlp(depth=3)), X), "share their parameters"),
    (lambda: implicit(vg.rnn(width=4, depth=3, inputs=5), np.ones((3, 5))), "share their parameters"),
    (lambda: implicit(mlp(norm=vg.norm("batch", batch=4)), np.ones((4, 5))), "states are vectors"),
    (
        lambda: implicit(mlp(), np.stack([X, X]), np.stack([X, -X]), measure=vg.correlations(), leading="example"),
        "one pair of inputs",
    ),
    (lambda: vg.sweep(mlp(), X, key=jax.random.key(0), weights="implicitly"), "did you mean"),
]


@pytest.mark.parametrize(("call", "part"), REFUSED)
def test_what_needs_weights_is_refused_by_name(call, part):
    with pytest.raises(ValueError, match=part) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_a_kernel_of_a_users_own_block_is_refused_by_name():
    from flax import nnx

    class Mine(nnx.Module):
        def __init__(self, *, rngs):
            self.inner = nnx.Linear(4, 4, rngs=rngs)

        def __call__(self, h):
            return self.inner(h)

    with pytest.raises(ValueError, match="got Mine"):
        implicit(vg.stack(Mine, depth=2, input_shape=(4,)), np.ones(4))


# --- tables ---------------------------------------------------------------------------------------------------------

STACKED = ["sigmoid", "erf", "silu", "softplus", "elu", "selu", "sin", "softsign", "arctan", "mish"]


class AtEveryState:
    """Sums at the very radius that is asked for, in place of tables."""

    def __init__(self, z, names):
        self.z, self.names = z, names

    def __call__(self, activation, r):
        return list(sums.sums_at(activation, r[None], self.z, self.names)[:, 0])


jax.tree_util.register_pytree_node(
    AtEveryState, lambda s: ((s.z,), s.names), lambda names, z: AtEveryState(z[0], names)
)


def box(depth, low, high, bias):
    each = [np.array([np.full(depth, end) for end in ends]) for ends in ((low, high), bias)]
    size = float(np.sqrt(np.mean(X**2)))
    return stacks.Box(np.array([low * size, np.hypot(high * size, bias[1])]), *each)


def with_exact_sums(drawn, key, n, depth, names):
    keys = jax.vmap(lambda l: jax.random.fold_in(jax.random.fold_in(key, 0), l))(jnp.arange(depth + 1))
    z = jax.vmap(lambda k: jax.random.normal(k, (2, n), jnp.float32))(keys).astype(jnp.float64)
    return stacks.DrawnStack(
        AtEveryState(z, names),
        drawn.gram,
        drawn.bias_normals,
        drawn.read_out,
        drawn.normals,
        drawn.error,
        drawn.network,
    )


def read(drawn, names):
    at = [(0.5, 0.0), (1.0, 0.0), (1.7, 0.4), (3.9, 1.9)]

    def one(w, b):
        scales, x = vg.Scales(sigma_w=w, sigma_b=b), jnp.asarray(X)
        if names == sums.GAINS:
            push = points.push_stack(drawn, scales, x)
            return push.log_gain, push.log_mean_square
        flow = points.gradient_stack(drawn, scales, x, jnp.ones((1, 3)), "squared_error")
        return flow.log_gradient, flow.log_parameter_gradient["kernel"], flow.mean_square_slope

    w, b = jnp.asarray(at).T
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(w, b))


@pytest.mark.parametrize("names", [sums.GAINS, sums.GRADIENTS], ids=["gains", "gradients"])
@pytest.mark.parametrize(
    "activation",
    ["tanh", "gelu", "hard_tanh", *(pytest.param(name, marks=pytest.mark.torture) for name in [*STACKED, "relu6"])],
)
def test_a_table_reads_as_the_sums_themselves(activation, names):
    """ln gain and ln gradient of 100 layers in float64 to 1e-6, from a box that contains the points."""
    key, depth, n = jax.random.key(4), 100, 24
    net = mlp(activation, width=n, depth=depth)
    with jax.enable_x64(True):
        pieces = stacks.pieces_needed(net, box(depth, 0.5, 4.0, (0.0, 2.0)), names, "float64")
        drawn = stacks.draw_stack(key, net, box(depth, 0.5, 4.0, (0.0, 2.0)), names, pieces, np.float64)
        table, exact = read(drawn, names), read(with_exact_sums(drawn, key, n, depth, names), names)
    assert float(drawn.error) <= 1e-6
    for found, expected in zip(table, exact, strict=True):
        finite = np.isfinite(expected)
        assert finite.mean() > 0.5
        assert np.array_equal(np.isfinite(found), finite)
        assert np.max(np.abs(found[finite] - expected[finite])) < 1e-6


def test_a_table_that_is_too_coarse_says_so():
    net, wide = mlp("gelu", width=64, depth=10), box(10, 0.5, 4.0, (0.0, 2.0))
    errors = [
        float(stacks.draw_stack(jax.random.key(0), net, wide, sums.GAINS, pieces).error) for pieces in (1, 2, 4, 8)
    ]
    assert errors[0] > 1e-3
    assert all(a > 3 * b for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("names", [sums.GAINS, sums.GRADIENTS], ids=["gains", "gradients"])
@pytest.mark.parametrize(
    "activation", ["relu", *(pytest.param(name, marks=pytest.mark.torture) for name in ("tanh", "hard_tanh", "gelu"))]
)
def test_float32_reads_what_float64_reads_at_depth_1000(activation, names):
    depth = 1000
    net, within = mlp(activation, width=64, depth=depth), box(depth, 0.5, 4.0, (0.0, 2.0))
    with jax.enable_x64(True):
        pieces = stacks.pieces_needed(net, within, names, "float32")
        found = [
            read(stacks.draw_stack(jax.random.key(5), net, within, names, pieces, np.dtype(kind)), names)
            for kind in ("float32", "float64")
        ]
    for single, double in zip(*found, strict=True):
        finite = np.isfinite(double)
        error = np.abs(single[finite] - double[finite]) / np.maximum(1, np.abs(double[finite]))
        assert np.max(error) < 1e-5


def test_homogeneous_sums_cost_the_same_at_any_width():
    found = implicit(mlp("relu", width=10**7, depth=50), X, sigma_w=[2**0.5])
    assert np.all(np.abs(found.log_gain[..., -1]) < 0.01)  # 1 / sqrt(width) from what infinite width has


# --- ends -----------------------------------------------------------------------------------------------------------


def test_numbers_leave_the_float_range_as_everywhere():
    found = implicit(mlp("relu", width=16, depth=2000), X, sigma_w=[0.1, 10.0])
    assert found.log_gain[0, 0, -1] < -4000
    assert found.log_gain[0, 1, -1] > 3000
    assert np.all(found.first_inexact_layer == 2001)


@pytest.mark.parametrize("measure", ["gains", "gradients"])
def test_a_narrow_relu_network_dies_as_a_zero(measure):
    what, count, _ = MEASURES[measure]
    found = implicit(mlp("relu", width=2, depth=30), *(X, np.ones(3))[:count], measure=what, seeds=40, sigma_w=[1.4])
    logs = found.log_gain[:, 0, -1] if measure == "gains" else found.log_gradient[:, 0, 0]
    assert np.isneginf(logs).mean() > 0.3
    assert not np.isnan(logs).any()


@pytest.mark.parametrize(
    ("width", "activation"),
    [
        (1, "hard_swish"),
        (2, "relu"),
        *(pytest.param(w, a, marks=pytest.mark.torture) for w in (1, 2, 3, 4) for a in ("tanh", "relu", "hard_swish")),
    ],
)
def test_width_one_to_four(width, activation):
    net = mlp(activation, width=width, depth=10)
    for what, inputs in ((vg.gains(2), (X,)), (vg.gradients(), (X, np.ones(3))), (vg.correlations(), (X, -X))):
        found = implicit(net, *inputs, measure=what, seeds=3, sigma_w=[1.5], sigma_b=[0.0, 0.2])
        for name, array in found.arrays.items():
            if name.startswith("log_g") or name == "log_mean_square":
                assert not np.isnan(array).any(), name


def test_no_signal_at_all_is_a_zero():
    found = implicit(mlp("relu"), 0 * X, measure=vg.gradients(), sigma_b=[0.0])
    assert np.all(np.isneginf(found.log_mean_square))
    assert np.all(np.isneginf(found.log_gradient[..., :-1]))


def test_a_saturated_network_passes_nothing_that_floats_hold():
    """tanh at sigma_w = 1e8: slopes underflow, which is no zero."""
    found = implicit(mlp("tanh", width=8, depth=4), X, sigma_w=[1e8])
    assert np.all(np.isnan(found.log_gain[..., -1]))


def test_measurements_without_weights_are_values():
    assert ImplicitGains(1, False) == ImplicitGains(1, False)
    assert {ImplicitGradients(None), ImplicitCorrelations(False)}


def test_slopes_of_a_users_own_pieces_keep_their_digits():
    """A third is no decimal of six digits."""

    def leaning(h):
        return jnp.where(h > 1, 1 + (h - 1) / 3, jnp.where(h < -1, -1 + (h + 1) / 3, h))

    _, _, slopes = sums.pieces_of(vg.Activation("leaning", leaning, kinks=(-1.0, 1.0)))
    np.testing.assert_allclose(slopes, [1 / 3, 1, 1 / 3], rtol=1e-15)


def test_a_layer_that_names_no_activation_is_linear():
    layer = vg.blocks.spec(vg.blocks.Dense, 5, 5)
    net = vg.sequential(layer, layer, input_shape=5, stem=layer, head=layer)
    assert engine(net, X, sigma_w=[1.0]) is None
