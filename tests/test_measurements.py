"""Every measurement of a sweep is the single call of the same draw; and measurements of one's own."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vgjax as vg

pytestmark = pytest.mark.usefixtures("strict_promotion")

KEY = jax.random.key(8)
NET = vg.mlp(width=6, depth=4, activation="tanh", inputs=3, outputs=2)
X, OTHER = np.array([0.5, -1.0, 2.0], np.float32), np.array([1.0, 0.3, -0.7], np.float32)
Y = np.array([1.0, -0.5], np.float32)
SIGMA_W = [0.7, 1.4]
# A batch of points adds up in another order than one alone: a few roundings of float32 in numbers of order 1 to 10.
ROUNDING = 1e-5


def drawn(seed: int, network: vg.Network = NET) -> tuple[vg.networks.Parameters, jax.Array]:
    """The parameters of a seed, and what else is drawn from its key."""
    weights, rest = jax.random.split(jax.random.fold_in(KEY, seed))
    return vg.init(weights, network), rest


def assert_is_the_loop(found: vg.Result, single: Any, atol: float = ROUNDING) -> None:
    """``single(parameters, rest, scales)`` gives a dict of variables, nested dicts by path."""
    for seed, (i, w) in itertools.product(range(found.seeds), enumerate(SIGMA_W)):
        expected = flat(single(*drawn(seed), vg.Scales(sigma_w=w, sigma_b=0.3)))
        assert set(expected) == set(found.arrays)
        for name, value in expected.items():
            ours = found.arrays[name][seed, i]
            assert ours.shape == np.shape(value), name
            np.testing.assert_allclose(ours, value, rtol=ROUNDING, atol=atol, err_msg=name)


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts as one, by names with dots."""
    leaves = {}
    for name, value in tree.items():
        inside = value.items() if isinstance(value, Mapping) else None
        leaves |= {f"{name}.{k.replace('/', '.')}": v for k, v in inside} if inside is not None else {name: value}
    return leaves


def swept(*inputs: Any, network: vg.Network = NET, **options: Any) -> vg.Result:
    return vg.sweep(network, *inputs, key=KEY, seeds=2, sigma_w=SIGMA_W, sigma_b=0.3, **options)


# --- against single calls -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probes", [1, 3])
def test_gains(probes: int) -> None:
    def single(parameters: Any, rest: jax.Array, scales: vg.Scales) -> dict[str, Any]:
        u = np.stack([jax.random.normal(key, (6,)) for key in jax.random.split(rest, probes)])
        pushed = vg.push_forward(parameters, scales, X, u / np.linalg.norm(u, axis=1, keepdims=True))
        squares = np.mean(np.exp(2 * np.asarray(pushed.log_gain, float)), axis=0)
        return {**pushed._asdict(), "log_gain": np.log(squares) / 2}

    assert_is_the_loop(swept(X, measure=vg.gains(probes, stream=probes > 1)), single)


@pytest.mark.parametrize(("y", "loss"), [(Y, None), (1, None), (None, None)])
def test_gradients(y: Any, loss: str | None) -> None:
    def single(parameters: Any, rest: jax.Array, scales: vg.Scales) -> dict[str, Any]:
        flow = vg.gradient_flow(parameters, scales, X, y, loss=loss, key=rest)
        return {name: value for name, value in flow._asdict().items() if not (isinstance(value, dict) and not value)}

    found = swept(X, *([] if y is None else [y]), measure=vg.gradients(loss=loss))
    assert_is_the_loop(found, single)
    assert found.log_parameter_gradient["stem/kernel"].shape == (2, 2)
    assert found.dims["log_parameter_gradient.kernel"] == ("block",)


def test_gradients_of_a_batch_have_one_parameter_gradient_of_the_summed_loss() -> None:
    xs, ys = np.stack([X, OTHER, -X]), np.array([0, 1, 1])

    def single(parameters: Any, rest: jax.Array, scales: vg.Scales) -> dict[str, Any]:
        flow = vg.gradient_flow(parameters, scales, xs, ys)
        return {name: value for name, value in flow._asdict().items() if not (isinstance(value, dict) and not value)}

    found = swept(xs, ys, measure=vg.gradients(), leading="example")
    assert_is_the_loop(found, single)
    assert found.dims["log_gradient"] == ("example", "layer")
    assert found.dims["log_parameter_gradient.kernel"] == ("block",)
    assert found.dims["log_parameter_gradient.head.bias"] == ()


@pytest.mark.parametrize("leading", [None, "example"])
def test_naive_readings(leading: str | None) -> None:
    x, y = (np.stack([X, OTHER]), np.stack([Y, -Y])) if leading else (X, Y)
    small = [1e-3, 1.4]  # where float16 has lost the gradient, and where it has not
    found = vg.sweep(
        NET, x, y, measure=vg.naive_readings("float16"), key=KEY, seeds=2, leading=leading, sigma_w=small, sigma_b=0.3
    )
    assert found.lost.any()
    assert not found.lost.all()
    for seed, (i, w) in itertools.product(range(2), enumerate(small)):
        one = vg.naive_reading(drawn(seed)[0], vg.Scales(sigma_w=w, sigma_b=0.3), x, y, "float16")
        np.testing.assert_array_equal(found.lost[seed, i], one)


@pytest.mark.parametrize("stream", [False, True])
def test_correlations(stream: bool) -> None:
    def single(parameters: Any, rest: jax.Array, scales: vg.Scales) -> dict[str, Any]:
        return vg.correlation(parameters, scales, X, OTHER)._asdict()

    found = swept(X, OTHER, measure=vg.correlations(stream=stream))
    assert_is_the_loop(found, single)
    assert found.dims["log_mean_square"] == ("input", "layer")


def test_correlations_of_pairs() -> None:
    pairs = np.stack([X, OTHER]), np.stack([-X, X])
    found = swept(*pairs, measure=vg.correlations(), leading="example")
    for i, pair in enumerate(zip(*pairs, strict=True)):
        one = vg.correlation(drawn(1)[0], vg.Scales(sigma_w=1.4, sigma_b=0.3), *pair)
        np.testing.assert_allclose(found.log_one_minus_c[1, 1, i], one.log_one_minus_c, atol=ROUNDING)


@pytest.mark.parametrize("options", [{}, {"dtype": "float64", "from_input": True, "depths": [1, 4]}])
def test_spectra(options: dict[str, Any]) -> None:
    def single(parameters: Any, rest: jax.Array, scales: vg.Scales) -> dict[str, Any]:
        one = vg.log_singular_values(parameters, scales, X, **options)
        names = ("log_singular_values", "condition", "first_inexact_layer", "rank", "log_frobenius", "log_condition")
        return {name: getattr(one, name) for name in (*names, "log_determinant", "participation")}

    # Right to rounding times the condition of a layer, which is below 100 here.
    assert_is_the_loop(swept(X, measure=vg.spectra(**options)), single, atol=1e-4)


def test_spectra_of_networks_of_several_widths_and_depths() -> None:
    nets = [vg.mlp(width=4, depth=3, inputs=3), NET]
    found = vg.sweep(nets, X, measure=vg.spectra(), key=KEY, seeds=1, leading=None)
    assert found.log_singular_values.shape == (2, 1, 1, 6)
    for i, net in enumerate(nets):
        one = vg.log_singular_values(drawn(0, net)[0], vg.Scales(), X)
        size = len(one.log_singular_values[0])
        np.testing.assert_allclose(found.log_singular_values[i, 0, 0, :size], one.log_singular_values[0], atol=1e-4)
        assert np.all(np.isnan(found.log_singular_values[i, 0, 0, size:]))


@pytest.mark.parametrize("options", [{}, {"count": 2, "discard": 2, "dtype": "float64"}])
def test_lyapunov(options: dict[str, Any]) -> None:
    def single(parameters: Any, rest: jax.Array, scales: vg.Scales) -> dict[str, Any]:
        one = vg.lyapunov_exponents(parameters, scales, X, **options)
        return {"exponents": one.exponents, "log_stretch": one.log_stretch}

    assert_is_the_loop(swept(X, measure=vg.lyapunov(**options)), single, atol=1e-4)


@pytest.mark.parametrize("probes", [None, 5])
def test_frobenius(probes: int | None) -> None:
    def single(parameters: Any, rest: jax.Array, scales: vg.Scales) -> dict[str, Any]:
        return vg.log_frobenius(parameters, scales, X, probes, key=rest)._asdict()

    assert_is_the_loop(swept(X, measure=vg.frobenius(probes)), single)


def test_recurrent_networks_read_their_input_step_by_step() -> None:
    net = vg.rnn(width=5, depth=3, inputs=2)
    x, other = np.random.default_rng(0).normal(size=(2, 3, 2)).astype(np.float32)
    found = vg.sweep(net, x, other, measure=vg.correlations(), key=KEY, seeds=1, sigma_w=[0.7, 1.4])
    one = vg.correlation(drawn(0, net)[0], vg.Scales(sigma_w=1.4), x, other)
    np.testing.assert_allclose(found.correlation[0, 1], one.correlation, atol=ROUNDING)


# --- one's own ------------------------------------------------------------------------------------------------------


def test_a_measurement_of_ones_own_is_the_function_of_every_draw_point_and_example() -> None:
    def angles(parameters: vg.networks.Parameters, scales: vg.Scales, x: jax.Array) -> dict[str, jax.Array]:
        states = vg.states(parameters, scales, x)
        turned = jnp.sum(states.direction[1:] * states.direction[:-1], axis=1)
        return {"turned": turned, "output": vg.forward(parameters, scales, x), "log_norm": states.log_norm}

    measure = vg.measurement(angles, {"turned": ("block",), "output": ("unit",), "log_norm": ("layer",)})
    assert measure.name == "angles"
    assert_is_the_loop(swept(X, measure=measure), lambda parameters, _, scales: angles(parameters, scales, X))
    xs = np.stack([X, OTHER])
    batch = swept(xs, measure=measure, leading="example")
    assert batch.dims["output"] == ("example", "unit")
    one = angles(drawn(1)[0], vg.Scales(sigma_w=1.4, sigma_b=0.3), OTHER)
    np.testing.assert_allclose(batch.turned[1, 1, 1], one["turned"], atol=ROUNDING)


def test_a_measurement_of_ones_own_may_take_several_inputs_or_none() -> None:
    def norms(parameters: vg.networks.Parameters, scales: vg.Scales, *inputs: jax.Array) -> dict[str, jax.Array]:
        return {
            "kernel": jnp.linalg.norm(parameters.stem["kernel"]),
            "inputs": sum(map(jnp.sum, inputs), jnp.zeros(())),
        }

    measure = vg.measurement(norms, {"kernel": (), "inputs": ()})
    for inputs in ((), (X,), (X, OTHER)):
        found = swept(*inputs, measure=measure)
        np.testing.assert_allclose(found.inputs, sum(x.sum() for x in inputs), rtol=1e-6)
        np.testing.assert_allclose(found.kernel[1], np.linalg.norm(drawn(1)[0].stem["kernel"]), rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class Powers(vg.ensembles.Measurement):
    """A measurement as a class: with a number of its own, a coordinate and a finish on the host."""

    orders: tuple[int, ...]

    name: ClassVar[str] = "powers"
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {"root": ("order",)}
    number_names: ClassVar[tuple[str, ...]] = ("shift",)

    def numbers(self, network: vg.Network, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"shift": 0.0, **given}

    def measure(self, drawn: Any, scales: vg.Scales, numbers: Any, *inputs: jax.Array) -> dict[str, Any]:
        out = jnp.sum(vg.forward(drawn[0], scales, inputs[0])) + numbers["shift"]
        return {"root": jnp.stack([out**order for order in self.orders])}

    def finish(self, arrays: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
        return {"root": np.abs(arrays["root"]) ** (1 / np.array(self.orders))}

    def coordinates(self, network: vg.Network) -> dict[str, np.ndarray]:
        return {"order": np.array(self.orders)}


def test_a_measurement_brings_numbers_to_sweep_over_coordinates_and_a_finish() -> None:
    found = vg.sweep(NET, X, measure=Powers((1, 2)), key=KEY, seeds=1, shift=[0.0, 1.0, 5.0], sigma_w=SIGMA_W)
    assert found.lead == ("seed", "shift", "sigma_w")
    np.testing.assert_array_equal(found.coordinates["order"], [1, 2])
    for (i, shift), (j, w) in itertools.product(enumerate([0.0, 1.0, 5.0]), enumerate(SIGMA_W)):
        out = abs(float(np.sum(vg.forward(drawn(0)[0], vg.Scales(sigma_w=w), X))) + shift)
        np.testing.assert_allclose(found.root[0, i, j], [out, out], rtol=1e-4)
    fixed = vg.sweep(NET, X, measure=Powers((1,)), key=KEY, seeds=1, shift=5.0, sigma_w=SIGMA_W)
    assert fixed.fixed == {"shift": 5.0}
    np.testing.assert_allclose(fixed.root[0, :, 0], found.root[0, 2, :, 0], rtol=1e-4)
    with pytest.raises(
        ValueError,
        match=r"^scale must be one of sigma_w, sigma_b, sigma_in, sigma_out, shift, got 'shfit'; did you mean 'shift'",
    ):
        vg.sweep(NET, X, measure=Powers((1,)), key=KEY, shfit=[1.0])


# --- bad input ------------------------------------------------------------------------------------------------------


def own(shape: tuple[int, ...], dims: tuple[str, ...], name: str = "out") -> vg.ensembles.Measurement:
    return vg.measurement(lambda parameters, scales, x: {name: jnp.zeros(shape)}, {"out": dims})


@pytest.mark.parametrize(
    ("measure", "inputs", "message"),
    [
        (lambda: vg.gains(0), (X,), "^probes must be at least 1, got 0$"),
        (lambda: vg.gains(1.5), (X,), "^probes must be a whole number, got 1.5$"),
        (lambda: vg.gradients(loss="hinge"), (X,), "^loss must be one of cross_entropy, .*, or a function .*, got"),
        (lambda: vg.naive_readings("float8"), (X,), "^dtype must be one of float32, bfloat16, float16, got 'float8'"),
        (lambda: vg.spectra([9]), (X,), "^depths must be whole numbers from 0 to 4, got 9$"),
        (lambda: vg.spectra(dtype="float16"), (X,), "^dtype must be one of float32, float64, got 'float16'"),
        (lambda: vg.lyapunov(0), (X,), "^count must be at least 1, got 0$"),
        (lambda: vg.lyapunov(discard=4), (X,), "^discard must be whole numbers from 0 to 3, got 4$"),
        (lambda: vg.frobenius(1), (X,), "^probes must be at least 2, got 1$"),
        (lambda: vg.first_steps(0.0), (X, Y), "^learning_rate must be positive and finite, got 0.0$"),
        (lambda: vg.first_steps(clip=-1.0), (X, Y), "^clip must be positive and finite, got -1.0$"),
        (vg.gains, (), "^gains takes one input x, got 0$"),
        (vg.gains, (X, X), "^gains takes one input x, got 2$"),
        (vg.gradients, (), "^gradients takes one input x and its target y, or x alone, got 0$"),
        (
            vg.gradients,
            (X, np.ones(3, np.float32)),
            r"^y must have the output's shape \(2,\) an example for squared_error",
        ),
        (vg.gradients, (X, 2), r"^labels must lie in 0 .. 1, got 2$"),
        (vg.correlations, (X,), "^correlations takes two inputs, x1 and x2, got 1$"),
        (vg.correlations, (X, X[None]), r"^x1 and x2 must have one shape, got \(3,\) and \(1, 3\)$"),
        (
            vg.spectra,
            (np.stack([X, X]),),
            r"^spectra takes one input, or one for each seed \(leading='seed'\), got a batch$",
        ),
        (lambda: own((), (), "other"), (X,), "^a measured variable must be one of out, got 'other'$"),
        (lambda: own((6,), ()), (X,), r"^out must have dimensions \(\), got shape \(6,\)$"),
        (lambda: own((4,), ("layer",)), (X,), r"^out must have dimensions \(layer\), got shape \(4,\)$"),
        (lambda: own((5,), ("block",)), (X,), r"^out must have dimensions \(block\), got shape \(5,\)$"),
        (
            lambda: own((), ()),
            (X, X[None]),
            "^<lambda> takes inputs that all have an axis of examples or none, got both$",
        ),
        (
            lambda: vg.measurement(lambda: None, {"mean": ()}),
            (X,),
            "^dims must name variables that a result has no other",
        ),
        (lambda: vg.measurement(lambda: None, {"a b": ()}), (X,), "^dims must name variables .*, got 'a b'$"),
        (
            lambda: vg.measurement(lambda: None, {"a": "layer"}),
            (X,),
            "^dims must be a dict of which every value is a list of strings, got {'a': 'layer'}$",
        ),
        (
            lambda: vg.measurement(lambda: None, {"a": ("seed",)}),
            (X,),
            "^dims must be a tuple of names other than network",
        ),
    ],
)
def test_bad_measurements_are_refused_in_one_sentence(measure: Any, inputs: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vg.sweep(NET, *inputs, measure=measure(), key=KEY, seeds=1)


def test_states_of_several_shapes_are_refused_where_exponents_need_one() -> None:
    with pytest.raises(ValueError, match=r"^all states must have one shape, got \[\(4,\), \(5,\)\]$"):
        vg.sweep(vg.mlp(width=(5, 4, 5), inputs=3), X, measure=vg.lyapunov(), key=KEY)


def test_a_jacobian_that_is_not_finite_is_named_by_layer_and_seed() -> None:
    net = vg.mlp(width=3, depth=2, activation=lambda h: jnp.sqrt(jnp.abs(h)), inputs=3)
    with pytest.raises(ValueError, match=r"must be finite, got a NaN or an infinity at layer 1 of seed 0$"):
        vg.sweep(net, np.zeros(3, np.float32), measure=vg.spectra(), key=KEY, seeds=1)
