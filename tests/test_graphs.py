"""Graph networks: against automatic differentiation, powers of the adjacency, and what depth makes of the nodes."""

import functools
from typing import Any

import architecture_oracles as truth
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_oracles import check, within_errors

import vgjax as vg
from vgjax.networks import graph_conv, graph_network, normalized_adjacency
from vgjax.theory import graphs as theory

KEY = jax.random.key(11)
KARATE = normalized_adjacency(vg.data.karate_club())


def ring(nodes: int) -> np.ndarray:
    return np.roll(np.eye(nodes), 1, axis=0) + np.roll(np.eye(nodes), -1, axis=0)


def barbell(clique: int, bridge: int) -> np.ndarray:
    """Two cliques at the ends of a path."""
    nodes = 2 * clique + bridge
    adjacency = np.diag(np.ones(nodes - 1), 1)
    adjacency[:clique, :clique] = adjacency[-clique:, -clique:] = np.triu(np.ones((clique, clique)), 1)
    return adjacency + adjacency.T


# --- against automatic differentiation ------------------------------------------------------------------------------

LOPSIDED = np.array([[0.5, 0.3, 0.0], [0.0, 1.0, -0.4], [0.7, 0.2, 0.1]])  # not symmetric: A and its transpose differ


def plain(phi: Any, skip: bool = False) -> truth.Parts:
    def block(p: Any, h: Any, scales: dict[str, float], _: None) -> Any:
        own = p["branch"] if skip else p
        made = jnp.stack(
            [sum(LOPSIDED[i, j] * (phi(h[j]) @ own["kernel"]) for j in range(3)) + own["bias"] for i in range(3)]
        )
        return scales["skip"] * h + scales["branch"] * made if skip else made

    return truth.Parts(truth.affine, block, lambda p, h: truth.affine(p, phi(h)))


NAMES = {"kernel": "sigma_w", "bias": "sigma_b"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_graph_network(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        net = graph_network(LOPSIDED, width=4, depth=3, inputs=2, outputs=2, activation="tanh", dtype=dtype)
    check(net, plain(jnp.tanh), {"sigma_w": 1.3, "sigma_b": 0.4}, NAMES, dtype=dtype)


def test_a_residual_graph_network(x64: None) -> None:
    skips = vg.networks.branch("pre", layers=1)
    sizes: dict[str, Any] = {"width": 4, "depth": 3, "inputs": 2, "outputs": 2}
    net = graph_network(LOPSIDED, **sizes, activation="relu", residual=skips, dtype="float64")
    scales = {"sigma_w": 1.3, "sigma_b": 0.4, "skip": 0.9, "branch": 0.6}
    check(net, plain(lambda h: jnp.maximum(h, 0), skip=True), scales, NAMES)


def test_a_pooled_graph_network_reads_the_mean_of_its_nodes(x64: None) -> None:
    """In float64: the mean cancels to a four-hundredth of its terms."""
    sizes: dict[str, Any] = {"width": 4, "depth": 2, "inputs": 2, "outputs": 3, "norm": "layer", "dtype": "float64"}
    nodes, pooled = (graph_network(LOPSIDED, **sizes, pooled=pooled) for pooled in (False, True))
    parameters, x = truth.drawn(nodes), np.random.default_rng(0).normal(size=(3, 2))
    whole = vg.networks.Parameters(parameters.stem, parameters.stages, parameters.head, pooled)
    each, mean = (truth.compiled(vg.forward, p, vg.Scales(), x) for p in (parameters, whole))
    assert each.shape == (3, 3)
    np.testing.assert_allclose(mean, each.mean(axis=0), rtol=1e-11)


def test_a_graph_past_the_float_range() -> None:
    """Depth 300 in float32 against numpy that divides by the norm after every layer."""
    net = graph_network(KARATE, width=6, depth=300, inputs=4, activation="leaky_relu")
    parameters, x = truth.drawn(net), np.random.default_rng(0).normal(size=(34, 4))
    found = truth.compiled(vg.push_forward, parameters, vg.Scales(sigma_w=4.0, sigma_in=1.0), x)
    h = x @ np.asarray(parameters.stem["kernel"], np.float64)
    logs = [np.log(np.mean(h**2))]
    for kernel in np.asarray(parameters.stages[0]["kernel"], np.float64):
        h = h / np.sqrt(np.mean(h**2))
        h = KARATE @ np.where(h > 0, h, 0.01 * h) @ (4.0 * kernel)
        logs.append(logs[-1] + np.log(np.mean(h**2)))
    assert abs(logs[-1]) > 200
    np.testing.assert_allclose(found.log_mean_square, logs, rtol=1e-5, atol=1e-4)
    assert found.first_inexact_layer == 301


def test_an_adjacency_counts_by_its_content_and_is_no_parameter() -> None:
    first, same, other = (graph_conv(a, 4, 4) for a in (KARATE, KARATE.copy(), KARATE.T * 2))
    assert first == same
    assert first != other
    like = jax.eval_shape(lambda key: vg.init(key, vg.stack(first, depth=5, input_shape=(34, 4))), KEY)
    assert set(like.stages[0]) == {"kernel", "bias"}
    net = vg.stack(first, depth=5, input_shape=(34, 4))
    assert vg.networks.network_from_json(vg.networks.network_to_json(net)) == net
    assert net.theory_arguments.adjacency == vg.blocks.protocol.Constant(KARATE)


# --- linear networks, exactly ---------------------------------------------------------------------------------------


def test_the_karate_club_is_the_one_of_the_paper() -> None:
    """34 members, 78 friendships, the two leaders with 16 and 17 of them (Zachary 1977)."""
    club = vg.data.karate_club()
    assert club.sum() == 2 * 78
    np.testing.assert_array_equal(club, club.T)
    np.testing.assert_array_equal(np.diag(club), 0)
    assert (club[0].sum(), club[33].sum()) == (16, 17)


def test_the_gain_of_a_linear_graph_network_is_a_power_of_its_adjacency() -> None:
    """E |J|_F^2 a node and a feature is |A^L|_F^2 / N: .17281594, .08073514, .04789054 at 1, 2, 4 layers of the karate
    club; on a ring the central trinomial coefficients over 9^L, 3/9, 19/81, 141/729."""
    gains = np.exp(theory.propagate_graph(KARATE, 4).log_gain)
    np.testing.assert_allclose(gains[[1, 2, 4]], [0.17281594, 0.08073514, 0.04789054], atol=5e-9)
    rings = np.exp(theory.propagate_graph(normalized_adjacency(ring(12)), 3).log_gain)
    np.testing.assert_allclose(rings, [1, 3 / 9, 19 / 81, 141 / 729], rtol=1e-12)
    net = vg.stack(graph_conv(KARATE, 2, 2), depth=4, input_shape=(34, 2))
    found = vg.sweep(net, np.ones((34, 2)), key=KEY, seeds=3000).log_gain
    for l in (1, 2, 4):
        within_errors(np.exp(2 * np.asarray(found[:, l], np.float64)), gains[l])


@functools.cache
def blocks_between_nodes(width: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """|dh_i/dx_j|_F^2 / width of drawn networks on a barbell, and its adjacency."""
    adjacency = normalized_adjacency(barbell(3, 3))
    net = vg.stack(graph_conv(adjacency, width, width), depth=6, input_shape=(9, width))

    @jax.jit
    @jax.vmap
    def one(key: jax.Array) -> Any:
        params = vg.init(key, net)
        jacobian = jax.jacobian(lambda x: vg.forward(params, vg.Scales(), x))(jnp.ones((9, width)))
        return jnp.sum(jacobian**2, axis=(1, 3)) / width

    return np.asarray(one(jax.random.split(KEY, seeds)), np.float64), adjacency


def test_over_squashing_is_the_power_of_the_adjacency_at_two_nodes() -> None:
    """From one end of a barbell to the other, 6 edges: one path of 9 nodes in 6 layers, and 0 where it is too far."""
    found, adjacency = blocks_between_nodes(2, 4000)
    expected = theory.influence(adjacency, 6)
    far = theory.distances(adjacency)
    assert far[0, 8] == 6
    for i, j in ((0, 8), (0, 5), (3, 3), (2, 6)):
        within_errors(found[:, i, j], expected[i, j])
    # Along the path the influence is one product of degrees.
    degrees = np.array([3, 3, 4, 3, 3, 3, 4, 3, 3])
    through = degrees[[0, 2, 3, 4, 5, 6, 8]]
    assert expected[0, 8] == pytest.approx(np.prod(1 / np.sqrt(through[:-1] * through[1:])) ** 2, rel=1e-12)
    assert theory.influence(adjacency, 5)[0, 8] == 0
    # Sum over where to, mean over where from: the gain.
    assert expected.sum() / 9 == pytest.approx(np.exp(theory.propagate_graph(adjacency, 6).log_gain[-1]), rel=1e-12)


def test_distances_are_counted_in_edges() -> None:
    np.testing.assert_array_equal(theory.distances(ring(6))[0], [0, 1, 2, 3, 2, 1])
    apart = np.zeros((4, 4))
    apart[0, 1] = apart[1, 0] = 1
    np.testing.assert_array_equal(theory.distances(apart)[0], [0, 1, np.inf, np.inf])


# --- over-smoothing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("phi", "sigma_w"), [("linear", 1.0), ("relu", 2**0.5)])
def test_nodes_become_alike_as_theory_says(phi: str, sigma_w: float) -> None:
    """Of wide networks: the correlation of the nodes of the karate club, to about 1 / width."""
    width, depth, seeds = 256, 4, 24
    net = vg.stack(graph_conv(KARATE, width, width, phi), depth=depth, input_shape=(34, width))
    expected = theory.propagate_graph(KARATE, depth, phi, sigma_w=sigma_w)

    @jax.jit
    @jax.vmap
    def one(key: jax.Array) -> Any:
        x = jax.random.normal(jax.random.fold_in(key, 1), net.input_shape)
        scales = vg.Scales(sigma_w=sigma_w)
        params = vg.init(key, net)
        return vg.measure.token_correlation(params, scales, x), vg.push_forward(params, scales, x).log_gain

    cosines, gains = (np.asarray(a, np.float64) for a in one(jax.random.split(KEY, seeds)))
    for l in (1, 4):
        error = cosines[:, l].std(ddof=1) / np.sqrt(seeds)
        assert abs(cosines[:, l].mean() - expected.correlation[l]) < 4 * error + 2 / width
        within_errors(np.exp(2 * gains[:, l]), np.exp(expected.log_gain[l]))
    assert expected.correlation[0] == 0
    assert np.all(np.diff(expected.correlation) > 0)


def test_nodes_end_as_one_direction() -> None:
    """A^L tends to the projection on the root of the degrees: correlation 1, gain 1 / N of isotropic tangents, by the
    second eigenvalue."""
    deep = theory.propagate_graph(KARATE, 200)
    assert deep.correlation[-1] == pytest.approx(1, abs=1e-6)
    assert np.exp(deep.log_gain[-1]) == pytest.approx(1 / 34, rel=1e-6)
    second = np.sort(np.abs(np.linalg.eigvalsh(KARATE)))[-2]
    left = [np.exp(deep.log_gain[l]) - 1 / 34 for l in (60, 61)]
    assert left[1] / left[0] == pytest.approx(second**2, rel=1e-3)


def test_a_bias_is_the_same_at_every_node() -> None:
    """K' = sigma_w^2 A K A^T + sigma_b^2, by hand; ReLU's kernel by Gaussian expectations of the library."""
    K = np.array([[1.0, 0.3], [0.3, 2.0]])
    A = np.array([[0.5, 0.2], [0.1, 1.0]])
    ours = theory.propagate_graph(A, 1, sigma_w=1.5, sigma_b=0.7, covariance=K).covariance[1]
    np.testing.assert_allclose(ours, 2.25 * A @ K @ A.T + 0.49, rtol=1e-13)
    both = float(vg.theory.correlated_expectation("relu", 1.0, 2.0, 0.3 / np.sqrt(2)))
    relu = theory.propagate_graph(np.eye(2), 1, "relu", covariance=K).covariance[1]
    np.testing.assert_allclose(relu, [[0.5, both], [both, 1.0]], rtol=1e-9)


# --- what is refused ------------------------------------------------------------------------------------------------

SIZES: dict[str, Any] = {"width": 4, "depth": 2, "inputs": 2}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: graph_network(np.ones((2, 3)), **SIZES), r"adjacency must be a square matrix, .* got shape \(2, 3\)"),
        (lambda: graph_network(np.ones(4), **SIZES), r"adjacency must be a square matrix, .* got shape \(4,\)"),
        (lambda: graph_network(np.full((2, 2), np.nan), **SIZES), "adjacency must be finite, got nan"),
        (lambda: graph_conv(np.array([[0.0, np.inf], [0.0, 1.0]]), 2, 2), "adjacency must be finite, got inf"),
        (lambda: graph_conv(np.eye(2), 2, 2, width=3), "options must be of norm, .*, got width"),
        (lambda: vg.blocks.GraphConv(np.ones((2, 3)), 2, 2, rngs=None), "rngs must be flax.nnx.Rngs, got None"),
        (lambda: normalized_adjacency(np.triu(np.ones((3, 3)))), "adjacency must be symmetric to be normalized"),
        (lambda: normalized_adjacency(-np.eye(3)), "adjacency must be finite and not negative, got -1"),
        (
            lambda: normalized_adjacency(np.diag([1.0, 0.0]), self_loops=False),
            "adjacency must give every node a neighbour, got none for node 1",
        ),
        (lambda: vg.stack(graph_conv(np.eye(3), 2, 2), depth=2, input_shape=(4, 2)), "GraphConv must take a state"),
        (lambda: theory.propagate_graph(np.eye(3), 2, "tanh"), "activation must be one of linear, relu, got 'tanh'"),
        (
            lambda: theory.propagate_graph(np.eye(3), 2, covariance=np.eye(2)),
            r"must have the adjacency's shape \(3, 3\)",
        ),
        (lambda: theory.influence(np.ones((2, 3)), 2), r"adjacency must be a square matrix, .* got shape \(2, 3\)"),
        (lambda: theory.distances(np.full((2, 2), np.nan)), "adjacency must be finite, got nan"),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_normalization_without_self_loops() -> None:
    np.testing.assert_allclose(normalized_adjacency(ring(5), self_loops=False), ring(5) / 2)
    np.testing.assert_allclose(np.linalg.eigvalsh(KARATE)[-1], 1, rtol=1e-12)
