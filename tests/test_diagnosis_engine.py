"""The engine of a diagnosis against what it shares nothing with: `jax.grad`, perturbations of the written-out program,
`vg.gradient_flow` past the float range."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import vgjax as vg
from vgjax.diagnosis.graphs import Graph, Node, Variable, evaluate, value_of
from vgjax.diagnosis.models import Model
from vgjax.diagnosis.prepared import Prepared, parameter_names, prepare

WIDTH = 6
BATCH = 3
X = jax.random.normal(jax.random.key(1), (BATCH, WIDTH))


def draw(*shape: int, gain: float = 1.2) -> jax.Array:
    """Weights that depend on nothing but their shape."""
    return gain * jax.random.normal(jax.random.key(sum(shape)), shape) / math.sqrt(shape[-2])


def model(function: Callable[..., Any], parameters: Any, inputs: Any = X, *, has_loss: bool = True) -> Model:
    return Model(function, parameters, inputs, (), has_loss, lambda parameters: parameters)


# --- small functions of every kind ----------------------------------------------------------------------------------

SQUARE = (WIDTH, WIDTH)


def mean_square(h: jax.Array) -> jax.Array:
    return jnp.mean(h.astype(jnp.float32) ** 2)


def plain(p, x, rest):
    for w, b in zip(p["w"], p["b"], strict=True):
        x = jax.nn.relu(x @ w + b)
    return mean_square(x)


def residual(p, x, rest):
    for w in p["w"]:
        x = x + jnp.tanh(jax.nn.gelu(x @ w) @ p["shared"])
    return mean_square(x)


def normalized(p, x, rest):
    for w, scale in zip(p["w"], p["b"], strict=True):
        x = x @ w
        x = scale * (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return mean_square(x)


def attention(p, x, rest):
    for w in p["w"]:
        scores = jax.nn.softmax((x @ w) @ (x @ p["shared"]).T / 20)
        x = x + scores @ (x @ w.T)
    return mean_square(jax.nn.silu(x @ p["shared"]))


def convolution(p, x, rest):
    h = x[..., None]
    for kernel in p["kernels"]:
        h = jax.nn.relu(lax.conv_general_dilated(h, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")))
    return mean_square(h)


def scanned_layers(p, x, rest):
    return mean_square(lax.scan(lambda h, w: (jnp.tanh(h @ w + p["bias"]), None), x, p["stack"])[0])


def over_time(p, x, rest):
    def step(h, now):
        h = jnp.tanh(now @ p["in"] + h @ p["shared"])
        return h, h @ p["out"]

    h, rows = lax.scan(step, jnp.zeros((WIDTH,)), x)
    return mean_square(rows) + mean_square(h)


def branching(p, x, rest):
    h = lax.cond(x.sum() > 0, lambda h: jnp.tanh(h @ p["in"]), lambda h: h @ p["out"], x @ p["shared"])

    def step(h, now):
        w, i = now
        return lax.switch(i, [lambda h: jnp.tanh(h @ w), lambda h: h @ w * 0.5 + h, lambda h: jax.nn.relu(h)], h), None

    return mean_square(lax.scan(step, h, (p["stack"], jnp.arange(3)))[0])


def nested(p, x, rest):
    def layer(x, w):
        def step(h, now):
            h = jnp.tanh(now @ w + h @ p["shared"])
            return h, h

        return lax.scan(step, jnp.zeros((WIDTH,)), x, reverse=True)[1], None

    return mean_square(lax.scan(layer, x, p["stack"])[0])


def rematerialized(p, x, rest):
    block = jax.checkpoint(lambda h, w: h + jnp.tanh(h @ w))
    for w in p["w"]:
        x = block(x, w)
    return mean_square(x)


@jax.custom_vjp
def clipped(h):
    return h


clipped.defvjp(lambda h: (h, None), lambda _, cotangent: (jnp.clip(cotangent, -0.01, 0.01),))


def own_rule(p, x, rest):
    for w in p["w"]:
        x = jnp.tanh(clipped(x) @ w)
    return mean_square(x)


def weight_normalized(p, x, rest):
    for i in range(3):
        w = p["stack"][i]
        x = jnp.tanh(x @ (w / jnp.linalg.norm(w, axis=0)))
    return mean_square(x)


def embedded(p, x, rest):
    h = p["table"][x]
    for w in p["w"]:
        h = jax.nn.sigmoid(h @ w)
    return -jnp.mean(jax.nn.log_softmax(h @ p["table"].T)[..., 0])


def half_precision(p, x, rest):
    h = x.astype(jnp.bfloat16)
    for w in p["w"]:
        h = jnp.tanh(h @ w.astype(jnp.bfloat16))
    return mean_square(h)


def several_trunks(p, x, rest):
    """Ways around each other, and variables that are used both inside a piece and behind it."""
    a = jnp.tanh(x @ p["in"])
    b = jnp.tanh(a @ p["w"][0]) + a
    c = jax.nn.relu(b @ p["w"][1]) * a
    d = jnp.concatenate([c, b], -1) @ jnp.concatenate([p["w"][2], p["shared"]])
    return mean_square(d + a) + jnp.mean(c @ p["out"])


def two_loops(p, x, rest):
    """Two stacked recurrences with two parts of carry, and fixed states."""
    context = jnp.tanh(x @ p["in"])

    def step(carry, now):
        h, c = carry
        c = jax.nn.sigmoid(h @ p["shared"]) * c + now
        h = jnp.tanh(c) + jnp.mean(context, 0)
        return (h, c), h

    zero = jnp.zeros((WIDTH,))
    _, rows = lax.scan(step, (zero, zero), x)
    _, rows = lax.scan(step, (zero, zero), jnp.tanh(rows @ p["out"]))
    return mean_square(rows)


PARAMETERS = {
    "w": [draw(*SQUARE, gain=1.0 + i / 4) for i in range(3)],
    "b": [0.1 + 0.2 * jnp.arange(WIDTH) for _ in range(3)],
    "shared": draw(*SQUARE).T,
    "in": draw(*SQUARE)[::-1],
    "out": draw(*SQUARE)[:, ::-1],
    "bias": 0.1 * jnp.arange(WIDTH),
    "stack": draw(3, *SQUARE),
}
KERNELS = {"kernels": [draw(3, 1, 4), draw(3, 4, 4), draw(3, 4, 2)]}
TABLE = PARAMETERS | {"table": draw(9, WIDTH)}
TOKENS = jnp.array([[1, 4, 4], [0, 8, 2]])
FUNCTIONS = {
    f.__name__: model(f, *arguments)
    for f, *arguments in [
        *((f, PARAMETERS) for f in (plain, residual, normalized, attention, scanned_layers, over_time, branching)),
        *((f, PARAMETERS) for f in (nested, rematerialized, own_rule, weight_normalized, half_precision)),
        *((f, PARAMETERS) for f in (several_trunks, two_loops)),
        (convolution, KERNELS),
        (embedded, TABLE, TOKENS),
    ]
}


@pytest.fixture(scope="module", params=FUNCTIONS)
def prepared(request: pytest.FixtureRequest) -> Prepared:
    return prepare(FUNCTIONS[request.param])


def test_parameter_gradients_are_those_of_jax(prepared):
    given = prepared.model
    gradient = jax.jit(jax.grad(given.function))(given.parameters, given.inputs, given.rest)
    norms = [np.linalg.norm(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(gradient)]
    readings = prepared.read()
    assert list(readings.parameter_gradients) == parameter_names(given.parameters)
    for norm, (name, log) in zip(norms, readings.parameter_gradients.items(), strict=True):
        if norm == 0:
            assert log == -math.inf, name
        elif norm > 1e-6 * max(norms):  # smaller ones are zero by symmetry, and rounding
            tolerance = 2e-2 if prepared.model.function is half_precision else 1e-5
            assert log == pytest.approx(math.log(norm), abs=tolerance), name


# --- every cotangent against a perturbation -------------------------------------------------------------------------

Offsets = dict[tuple[Variable, tuple[int, ...]], Any]


def interpret(graph: Graph, inputs: list[Any], offsets: Offsets, index: tuple[int, ...] = ()) -> list[Any]:
    """The program written out, loops too, with an offset added to variables at steps."""
    values: dict[Variable, Any] = dict(graph.constants)

    def put(variables: list[Variable], given: list[Any]) -> None:
        for variable, value in zip(variables, given, strict=True):
            offset = offsets.get((variable, index))
            values[variable] = value if offset is None else value + offset

    put(graph.inputs, inputs)
    for node in graph.nodes:
        arguments = [value_of(v, values) for v in node.inputs]
        if node.kind == "loop":
            put(node.outputs, interpret_loop(node, arguments, offsets, index))
        elif node.kind == "switch":
            put(node.outputs, interpret(node.graphs[int(arguments[0])], arguments[1:], offsets, index))
        else:
            put(node.outputs, evaluate(node, arguments))
    return [value_of(v, values) for v in graph.outputs]


def interpret_loop(node: Node, arguments: list[Any], offsets: Offsets, index: tuple[int, ...]) -> list[Any]:
    fixed, carried, _ = node.counts
    constants, carry, slices = arguments[:fixed], arguments[fixed : fixed + carried], arguments[fixed + carried :]
    rows: list[Any] = [None] * node.steps
    order = range(node.steps)
    for i in reversed(order) if node.equation.params["reverse"] else order:
        results = interpret(node.graphs[0], [*constants, *carry, *(s[i] for s in slices)], offsets, (*index, i))
        carry, rows[i] = results[:carried], results[carried:]
    return [*carry, *(jnp.stack(row) for row in zip(*rows, strict=True))]


def places(graph: Graph, loops: tuple[Node, ...] = ()) -> Iterator[tuple[Variable, tuple[int, ...]]]:
    """All variables that are read, at all steps of the loops that they stand in."""
    for variable in [*graph.inputs, *(v for node in graph.nodes for v in node.outputs)]:
        if variable.read:
            yield from ((variable, index) for index in itertools.product(*(range(node.steps) for node in loops)))
    for node in graph.nodes:
        for inner in node.graphs:
            yield from places(inner, (*loops, node) if node.kind == "loop" else loops)


def test_every_cotangent_is_that_of_a_perturbation(prepared):
    given, graph = prepared.model, prepared.graph
    numbers = prepared.numbers()
    leaves = jax.tree.leaves((given.parameters, given.inputs, given.rest))
    fixed = {v for node in graph.all_nodes() if node.kind == "loop" for v in node.graphs[0].inputs[: node.counts[0]]}
    all_places = [place for place in places(graph) if place[0] not in fixed]
    offsets = [jnp.zeros(variable.shape, variable.aval.dtype) for variable, _ in all_places]

    def loss(offsets):
        return interpret(graph, leaves, dict(zip(all_places, offsets, strict=True)))[0].sum()

    norms = [float(np.linalg.norm(np.asarray(gradient, np.float64))) for gradient in jax.grad(loss)(offsets)]
    compared, largest = 0, max(norms)
    for (variable, index), norm in zip(all_places, norms, strict=True):
        log = numbers.log_cotangent(variable, index)
        if norm > 1e-6 * largest and not math.isnan(log):
            tolerance = 5e-2 if given.function is half_precision else 1e-5
            assert log == pytest.approx(math.log(norm), abs=tolerance), (variable, index)
            compared += 1
    assert compared >= 5


# --- past the float range -------------------------------------------------------------------------------------------


def unrolled(stack: dict[str, jax.Array]) -> list[dict[str, jax.Array]]:
    """Parameters stacked by layer as one dictionary a layer."""
    return [{name: leaf[i] for name, leaf in stack.items()} for i in range(len(stack["kernel"]))]


COTANGENT = np.array([0.3, -1.0, 0.5], np.float32)


def mlp_function(activation: Callable[[jax.Array], jax.Array], scanned: bool) -> Callable[..., Any]:
    """vgjax's MLP as a plain function; its loss is a product with a fixed vector."""

    def layer(h, p):
        return activation(h) @ p["kernel"] + p["bias"], None

    def function(p, inputs, rest):
        h = inputs @ p["stem"]["kernel"] + p["stem"]["bias"]
        if scanned:
            h, _ = lax.scan(layer, h, p["stack"])
        else:
            for one in p["stack"]:
                h, _ = layer(h, one)
        return COTANGENT @ (activation(h) @ p["head"]["kernel"] + p["head"]["bias"])

    return function


@pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize(
    ("name", "depth", "sigma_w", "sigma_b"),
    [("sigmoid", 60, 1.0, 0.1), ("relu", 300, 3.0, 0.0), ("relu", 300, 0.5, 0.0), ("tanh", 300, 0.5, 0.0)],
)
def test_depth_past_the_range_is_the_gradient_flow(name, depth, sigma_w, sigma_b, scanned):
    net = vg.mlp(width=16, depth=depth, activation=name, inputs=5, outputs=3)
    parameters, scales = vg.init(jax.random.key(0), net), vg.Scales(sigma_w=sigma_w, sigma_b=sigma_b)
    x = jax.random.normal(jax.random.key(1), (5,))
    flow = vg.gradient_flow(parameters, scales, x, COTANGENT, loss="cotangent")
    ordinary, _ = vg.absorb_scales(parameters, scales)
    stack = ordinary.stages[0] if scanned else unrolled(ordinary.stages[0])
    plain_parameters = {"stem": ordinary.stem, "stack": stack, "head": ordinary.head}
    activation = {"sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu, "tanh": jnp.tanh}[name]
    readings = prepare(model(mlp_function(activation, scanned), plain_parameters, x)).read()
    rows = [row for row in readings.paths[0].rows if row.shape == (16,) and row.is_layer]
    np.testing.assert_allclose([row.log_cotangent for row in rows], flow.log_gradient, rtol=0, atol=1e-4)
    np.testing.assert_allclose([2 * row.log_rms for row in rows], flow.log_mean_square, rtol=0, atol=1e-4)
    kernels = [readings.parameter_gradients[f"stack/{l}/kernel"] for l in range(0 if scanned else depth)]
    if scanned:
        kernels = [row.log_parameter_gradient for row in readings.paths[0].rows if row.step is not None]
    np.testing.assert_allclose(kernels, flow.log_parameter_gradient["kernel"], rtol=0, atol=1e-4)
    assert readings.first_inexact == ""


def test_time_past_the_range_is_the_gradient_flow():
    steps = 200
    net = vg.rnn(width=12, depth=steps, inputs=4, outputs=3)
    parameters, scales = vg.init(jax.random.key(0), net), vg.Scales(sigma_w=0.6, sigma_b=0.1)
    x = jax.random.normal(jax.random.key(1), (steps, 4))
    flow = vg.gradient_flow(parameters, scales, x, COTANGENT, loss="cotangent")
    ordinary, _ = vg.absorb_scales(parameters, scales)

    def function(p, inputs, rest):
        cell, head = p

        def step(h, now):
            return jnp.tanh(h @ cell["kernel"] + now @ cell["input_kernel"] + cell["bias"]), None

        h, _ = lax.scan(step, jnp.zeros(12), inputs)
        return COTANGENT @ (h @ head["kernel"] + head["bias"])

    readings = prepare(model(function, (ordinary.stages[0], ordinary.head), x)).read()
    (path,) = (path for path in readings.paths if path.kind == "time")
    assert [row.step for row in path.rows] == [*range(steps), None]
    np.testing.assert_allclose([row.log_cotangent for row in path.rows], flow.log_gradient, rtol=0, atol=1e-4)
    assert readings.parameter_gradients["0/kernel"] == pytest.approx(float(flow.log_tied_gradient["kernel"]), abs=1e-4)
