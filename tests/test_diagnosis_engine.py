"""The engine of a diagnosis against what it shares nothing with: `jax.grad`, perturbations of the written-out program,
`vg.gradient_flow` past the float range."""

import functools
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
from vgjax.diagnosis.layout import parameter_names
from vgjax.diagnosis.models import Model
from vgjax.diagnosis.prepared import Prepared, prepare
from vgjax.diagnosis.readings import Path
from vgjax.diagnosis.table import gains_by_kind, log_gains

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


@pytest.fixture(scope="module")
def prepared_of() -> Callable[[str], Prepared]:
    """Each function is prepared, and compiled, once."""
    return functools.cache(lambda name: prepare(FUNCTIONS[name]))


@pytest.fixture(scope="module", params=FUNCTIONS)
def prepared(request: pytest.FixtureRequest, prepared_of: Callable[[str], Prepared]) -> Prepared:
    return prepared_of(request.param)


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
            tolerance = 1e-3 if prepared.model.function is half_precision else 1e-5
            assert log == pytest.approx(math.log(norm), abs=tolerance), name


@pytest.mark.parametrize("function", [nested, pytest.param(branching, marks=pytest.mark.slow)])
def test_float64_is_right_to_its_own_rounding(function, x64):
    parameters = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), PARAMETERS)
    readings = prepare(model(function, parameters, jnp.asarray(X, jnp.float64))).read()
    for norm, log in zip(
        map(np.linalg.norm, jax.tree.leaves(jax.grad(function)(parameters, jnp.asarray(X, jnp.float64), ()))),
        readings.parameter_gradients.values(),
        strict=True,
    ):
        assert log == pytest.approx(math.log(norm) if norm else -math.inf, abs=1e-12)


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
    given, graph = prepared.model, prepared.layout.graph
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
            tolerance = 1e-2 if given.function is half_precision else 1e-5
            assert log == pytest.approx(math.log(norm), abs=tolerance), (variable, index)
            compared += 1
    assert compared >= 5


# --- what lies between two states -----------------------------------------------------------------------------------


def log_norms(tail: Callable[..., jax.Array], *points: jax.Array) -> list[float]:
    """ln of the norm of the gradient by each of several arrays."""
    gradients = jax.grad(tail, argnums=tuple(range(len(points))))(*points)
    return [math.log(np.linalg.norm(np.asarray(gradient, np.float64))) for gradient in gradients]


def by_kind(path: Path) -> list[list[tuple[str, float]]]:
    return [gains_by_kind(before, row) for before, row in itertools.pairwise(path.rows)]


def same(found: list[list[tuple[str, float]]], wanted: list[list[tuple[str, float]]]) -> None:
    assert [[kind for kind, _ in some] for some in found] == [[kind for kind, _ in some] for some in wanted]
    logs = [[gain for some in each for _, gain in some] for each in (found, wanted)]
    np.testing.assert_allclose(*logs, rtol=0, atol=1e-5)


WIDTHS = [(WIDTH, 9), (9, 4), (4, 7)]
UNEQUAL = {"w": [draw(*shape) for shape in WIDTHS], "b": [0.1 * jnp.arange(shape[1]) for shape in WIDTHS]}


def sigmoid_layers(p: Any, x: jax.Array, rest: Any) -> jax.Array:
    for w, b in zip(p["w"], p["b"], strict=True):
        x = jax.nn.sigmoid(x @ w + b)
    return mean_square(x)


def backward_by_hand(p: Any, x: jax.Array) -> list[list[tuple[str, float]]]:
    """Of layers with their biases, from what `jax.grad` says by every h = x W + b and every x = sigmoid(h)."""
    values = [x]
    for w, b in zip(p["w"], p["b"], strict=True):
        values += [values[-1] @ w + b, jax.nn.sigmoid(values[-1] @ w + b)]

    def rest_of(i: int) -> Callable[[jax.Array], jax.Array]:
        def tail(h: jax.Array) -> jax.Array:
            for j in range(i, len(values) - 1):
                h = jax.nn.sigmoid(h) if j % 2 else h @ p["w"][j // 2] + p["b"][j // 2]
            return mean_square(h)

        return tail

    logs = [log_norms(rest_of(i), value)[0] for i, value in enumerate(values)]
    gains = [before - after for before, after in itertools.pairwise(logs)]
    layers = [[("activation", gains[i - 1]), ("kernel", gains[i])] for i in range(2, len(gains), 2)]
    return [[("kernel", gains[0])], *layers]


def test_an_activation_and_a_kernel_are_told_apart_as_by_hand():
    found = prepare(model(sigmoid_layers, UNEQUAL)).read().paths[0]
    same(by_kind(found), backward_by_hand(UNEQUAL, X))
    assert all(gain <= math.log(1 / 4) for some in by_kind(found)[1:] for kind, gain in some if kind == "activation")


def test_layers_of_a_loop_are_told_apart_step_by_step():
    """The last step is its own row: what comes out of the loop, with its activation."""
    weights = {"w": [draw(*SQUARE, gain=1 + i / 4) for i in range(4)], "b": [0.1 * jnp.arange(WIDTH)] * 4}
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(weights["w"], weights["b"], strict=True))

    def function(p, x, rest):
        return mean_square(lax.scan(lambda h, now: (jax.nn.sigmoid(h @ now[0] + now[1]), None), x, p)[0])

    wanted = [gain for some in backward_by_hand(weights, X) for gain in some]
    found = [gain for some in by_kind(prepare(model(function, stacked)).read().paths[0])[1:] for gain in some]
    same([found[:-1]], [wanted])


def test_a_linear_network_has_kernels_alone():
    def function(p, x, rest):
        for w, b in zip(p["w"], p["b"], strict=True):
            x = (x @ w + b).reshape(-1, w.shape[1])
        return mean_square(x)

    path = prepare(model(function, UNEQUAL)).read().paths[0]
    assert [row.kinds for row in path.rows] == [(), ("kernel",), ("kernel",), ("kernel",)]
    gains = log_gains(path.rows)[1:]
    assert [some[0][1] for some in by_kind(path)] == gains


def layer_norm(h: jax.Array) -> jax.Array:
    return (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)


def test_a_residual_block_is_one_and_a_norm_beside_nothing_is_told_apart():
    def blocks_then_norm(p, h, rest):
        for w in p["w"]:
            h = h + jnp.tanh(layer_norm(h) @ w) @ p["shared"]
        return mean_square((layer_norm(h) * p["b"][0]) @ p["out"])

    path = prepare(model(blocks_then_norm, PARAMETERS)).read().paths[0]
    values = [X]
    for w in PARAMETERS["w"]:
        values.append(values[-1] + jnp.tanh(layer_norm(values[-1]) @ w) @ PARAMETERS["shared"])

    def tail(offsets):
        h = X + offsets[0]
        for w, offset in zip(PARAMETERS["w"], offsets[1:], strict=False):
            h = h + jnp.tanh(layer_norm(h) @ w) @ PARAMETERS["shared"] + offset
        normed = layer_norm(h) * PARAMETERS["b"][0] + offsets[4]
        return mean_square(normed @ PARAMETERS["out"] + offsets[5])

    logs = log_norms(lambda *offsets: tail(offsets), *[jnp.zeros_like(X)] * 6)
    gains = [before - after for before, after in itertools.pairwise(logs)]
    blocks = [[("branch", gain)] for gain in gains[:3]]
    same(by_kind(path), [*blocks, [("norm", gains[3]), ("kernel", gains[4])]])


@pytest.mark.parametrize(
    ("kinds", "between"),
    [
        (["norm"], layer_norm),
        (["norm"], lambda h: h / jnp.sqrt(jnp.mean(h**2, -1, keepdims=True))),
        (["norm"], lambda h: (h - h.mean(0)) * 2 * lax.rsqrt(h.var(0) + 1e-5) + 1),
        (["activation"], jax.nn.softmax),
        (["activation"], functools.partial(jax.nn.gelu, approximate=False)),
        (["activation"], lambda h: jnp.where(h > 0, h, 0.1 * h)),
        (["activation"], lambda h: h * jax.nn.sigmoid(h) + 1),
        (["activation"], jax.nn.glu),
        (["scale"], lambda h: jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, h.shape), h / 0.5, 0)),
        (["scale", "activation"], lambda h: jax.nn.relu(3 * h)),
        (["pooling"], lambda h: h.reshape(BATCH, 2, 3).mean(1)),
        (["other"], lambda h: h[:, :4]),
        (["branch"], lambda h: h @ jax.nn.softmax(h.T @ h)),
        ([], lambda h: h.astype(jnp.float16).astype(jnp.float32)),
    ],
)
def test_what_stands_between_two_kernels_is_known_by_what_it_does(kinds, between):
    width = between(X).shape[-1]
    parameters = {"w": draw(*SQUARE), "v": draw(width, 5)}
    found = prepare(model(lambda p, x, rest: mean_square(between(x @ p["w"]) @ p["v"]), parameters)).read()
    assert [row.kinds for row in found.paths[0].rows[1:]] == [("kernel",), (*kinds, "kernel")]
    gains = [sum(gain for _, gain in some) for some in by_kind(found.paths[0])]
    assert gains == pytest.approx(log_gains(found.paths[0].rows)[1:], abs=1e-12)


def test_steps_are_told_apart_where_the_last_alone_is_used():
    def recurrence(reads_all):
        def function(p, x, rest):
            def step(h, now):
                h = jnp.tanh(now @ p["in"] + h @ p["shared"])
                return h, h

            h, rows = lax.scan(step, jnp.zeros((WIDTH,)), x)
            return mean_square(rows if reads_all else h)

        return prepare(model(function, PARAMETERS)).read().paths

    depth, time = recurrence(False)
    assert depth.rows[-1].kinds[-1] == "recurrence"
    assert [row.kinds for row in time.rows] == [(), *[("kernel", "activation")] * 3]
    h, states = jnp.zeros((WIDTH,)), []
    for now in X:
        states.append(now @ PARAMETERS["in"] + h @ PARAMETERS["shared"])
        h = jnp.tanh(states[-1])
    by_h = jax.grad(mean_square)(h)
    for row, state, (_, (kind, gain)) in zip(time.rows[:0:-1], states[::-1], by_kind(time)[::-1], strict=True):
        by_state = by_h * (1 - jnp.tanh(state) ** 2)
        assert row.log_cotangent == pytest.approx(math.log(jnp.linalg.norm(by_h)), abs=1e-5)
        assert (kind, gain) == (
            "activation",
            pytest.approx(math.log(jnp.linalg.norm(by_state) / jnp.linalg.norm(by_h)), abs=1e-5),
        )
        by_h = by_state @ PARAMETERS["shared"].T
    assert all(row.kinds == () for row in recurrence(True)[1].rows)


def test_ways_around_each_other_are_not_told_apart():
    paths = [prepare(FUNCTIONS[name]).read().paths for name in ("several_trunks", "two_loops")]
    assert all(row.kinds == () for row in paths[0][0].rows if not paths[0][0].all_gradient)
    assert all(row.kinds == () for path in paths[1][1:] for row in path.rows)


def test_a_constant_factor_on_the_loss_and_sixty_layers_change_no_kind():
    weights = {"w": [draw(*SQUARE)] * 60, "b": [jnp.zeros(WIDTH)] * 60}
    one, other = (
        by_kind(prepare(model(lambda p, x, rest, k=k: k * sigmoid_layers(p, x, rest), weights)).read().paths[0])
        for k in (1.0, 1e5)
    )
    same(one, other)
    total = sum(gain for some in one for kind, gain in some if kind == "activation")
    assert len(one) == 60
    assert -math.inf < total < 59 * math.log(1 / 4)


def test_what_is_read_between_states_is_compiled_once():
    def function(p, x, rest):
        for w in p["w"]:
            x = jnp.tanh(x @ w)
        return mean_square(x)

    counts = []
    for depth in (6, 48):
        prepared = prepare(model(function, {"w": [draw(*SQUARE)] * depth}))
        assert prepared.read().paths[0].rows[-1].kinds == ("activation", "kernel")
        counts.append(len(prepared.compiled.functions))
    assert counts[0] == counts[1]


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


@pytest.mark.parametrize(
    ("name", "depth", "sigma_w", "sigma_b", "scanned"),
    [
        ("sigmoid", 60, 1.0, 0.1, False),
        ("relu", 300, 3.0, 0.0, True),
        pytest.param("sigmoid", 60, 1.0, 0.1, True, marks=pytest.mark.slow),
        pytest.param("relu", 300, 3.0, 0.0, False, marks=pytest.mark.slow),
        *(pytest.param("relu", 300, 0.5, 0.0, scanned, marks=pytest.mark.slow) for scanned in (False, True)),
        *(pytest.param("tanh", 150, 0.5, 0.0, scanned, marks=pytest.mark.slow) for scanned in (False, True)),
    ],
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


def test_a_way_whose_gradient_is_nothing_beside_another_is_right():
    """What comes out of the first piece has cotangents of 1 and of e^-115."""
    parameters = {"first": draw(*SQUARE), "stack": [{"kernel": draw(*SQUARE)} for _ in range(80)]}

    def function(p, x, rest, beside):
        h = jnp.tanh(x @ p["first"])
        other, h = 2 * h, 1.5 * h
        for layer in p["stack"]:
            h = jax.nn.sigmoid(h @ layer["kernel"])
        return jnp.sum(h) + beside * jnp.sum(other)

    alone, both = (
        prepare(model(functools.partial(function, beside=beside), parameters)).read().sites for beside in (0.0, 1.0)
    )
    assert [site.name for site in both] == ["first", *(f"stack/{l}/kernel" for l in range(80))]
    assert both[1].log_cotangent < -100 < both[0].log_cotangent
    np.testing.assert_allclose(
        [site.log_cotangent for site in both[1:]], [site.log_cotangent for site in alone[1:]], rtol=0, atol=1e-4
    )


def test_the_lower_of_two_recurrences_past_the_range():
    """Against float64 by perturbations. The lower one forgets faster: at early steps all of its gradient comes through
    the upper one, e^-100 of what comes at late steps, and a product between them takes all steps at once."""
    steps = 200
    parameters = {"lower": draw(*SQUARE, gain=0.2), "upper": draw(*SQUARE, gain=0.5), "between": draw(*SQUARE)}
    inputs = 0.5 * jax.random.normal(jax.random.key(2), (steps, WIDTH))

    def function(p, x, offsets):
        def lower(h, now):
            h = h + now[1]
            h = jnp.tanh(now[0] + h @ p["lower"])
            return h, h

        def upper(h, now):
            return jnp.tanh(now + h @ p["upper"]), None

        zero = jnp.zeros((WIDTH,), x.dtype)
        _, rows = lax.scan(lower, zero, (x, offsets))
        h, _ = lax.scan(upper, zero, jnp.tanh(rows.T.T @ p["between"]))
        return jnp.sum(h)

    zeros = np.zeros((steps, WIDTH), np.float32)
    readings = prepare(Model(function, parameters, inputs, zeros, True, lambda p: p)).read()
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (parameters, inputs, zeros))
        truth = np.log(np.linalg.norm(np.asarray(jax.grad(function, 2)(*wide)), axis=1))
    (path,) = (path for path in readings.paths if path.rows[0].name.startswith("lower"))
    logs = [row.log_cotangent for row in path.rows[:steps]]
    assert truth[0] < -130
    np.testing.assert_allclose(logs, truth, rtol=0, atol=3e-4)  # slopes of tanh in float32


def exploding(loss: Callable[[jax.Array], jax.Array]) -> Model:
    """60 layers that each multiply their state by about 20."""
    parameters = {"stack": [{"kernel": draw(WIDTH, WIDTH, gain=30.0)} for _ in range(60)]}

    def function(p, x, rest):
        for layer in p["stack"]:
            x = jax.nn.relu(x @ layer["kernel"])
        return loss(x)

    return model(function, parameters)


def test_a_squared_loss_past_the_range():
    """Against float64, which holds these states and their squares: 1e78 and 1e156."""
    sick = exploding(mean_square)
    states = [np.asarray(X, np.float64)]
    for layer in sick.parameters["stack"]:
        before = states[-1] if len(states) == 1 else np.maximum(states[-1], 0)
        states.append(before @ np.asarray(layer["kernel"], np.float64))
    readings = prepare(sick).read()
    cotangent = 2 * np.maximum(states[-1], 0) / states[-1].size
    assert readings.loss == pytest.approx(np.mean(np.maximum(states[-1], 0) ** 2), rel=1e-4)
    assert readings.paths[0].rows[-1].log_cotangent == pytest.approx(math.log(np.linalg.norm(cotangent)), abs=1e-4)
    assert readings.first_inexact == ""


@pytest.mark.slow
def test_a_loss_that_is_no_power_of_its_state_is_named():
    readings = prepare(exploding(lambda x: jnp.sum(x) * jnp.log(jnp.sum(x)))).read()
    assert readings.first_inexact.startswith("mul at test_diagnosis_engine.py:")


@pytest.mark.slow
def test_what_stands_in_loops_inside_loops_is_not_right_past_the_range_and_says_so():
    def function(p, x, rest):
        def layer(x, w):
            return lax.scan(lambda h, _: (jax.nn.relu(h @ w), None), x, jnp.arange(2))[0], None

        return jnp.sum(lax.scan(layer, x, p["stack"])[0])

    parameters = {"stack": jnp.stack([draw(*SQUARE, gain=30.0)] * 40)}
    assert prepare(model(function, parameters)).read().first_inexact == "stack"
    assert prepare(model(function, {"stack": parameters["stack"][:2]})).read().first_inexact == ""


# --- what is compiled -----------------------------------------------------------------------------------------------


def blocks(depth: int) -> Model:
    """Residual blocks with a norm, an activation of several equations, remat and a switch, each with weights of its
    own."""
    parameters = [{"norm": jnp.ones(WIDTH), "up": draw(WIDTH, 9), "down": draw(9, WIDTH)} for _ in range(depth)]

    @jax.checkpoint
    def block(x, p):
        normalized = p["norm"] * (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        h = jax.nn.gelu(normalized @ p["up"])
        return x + lax.cond(jnp.sum(h) > 1e9, lambda h: h @ p["down"], lambda h: jnp.tanh(h) @ p["down"], h)

    def function(p, x, rest):
        for one in p:
            x = block(x, one)
        return mean_square(x)

    return model(function, parameters)


def test_what_is_compiled_does_not_grow_with_depth():
    counts = []
    for depth in (4, 16):
        prepared = prepare(blocks(depth))
        prepared.read()
        counts.append(len(prepared.compiled.functions))
    assert counts[0] == counts[1] < 16


def test_rules_that_differ_are_not_taken_for_each_other():
    """Steps with surrogate slopes: functions of one line and one value, whose rules hold different numbers."""

    def spike(slope):
        @jax.custom_jvp
        def step(x):
            return (x > 0).astype(x.dtype)

        step.defjvp(lambda x, t: (step(x[0]), t[0] * slope / (1 + jnp.abs(x[0]))))
        return step

    def function(p, x, rest):
        for w, slope in zip(p["w"], (1.0, 3.0, 1.0), strict=True):
            x = spike(slope)(x @ w)
        return mean_square(x)

    parameters = {"w": [draw(*SQUARE)] * 3}
    prepared = prepare(model(function, parameters))
    truth = [math.log(np.linalg.norm(g)) for g in jax.grad(function)(parameters, X, ())["w"]]
    assert list(prepared.read().parameter_gradients.values()) == pytest.approx(truth, abs=1e-5)


def test_a_second_reading_compiles_nothing(caplog):
    prepared = prepare(blocks(4))
    first = prepared.read()
    others = jax.tree.map(lambda leaf: 1.5 * leaf, prepared.model.parameters)
    with jax.log_compiles():
        second = prepared.read(others)
    assert "compil" not in caplog.text.lower()
    assert second != first
    assert second == prepare(Model(prepared.model.function, others, X, (), True, lambda p: p)).read()


# --- what else a reading says ---------------------------------------------------------------------------------------


def test_rows_name_the_parameters_and_the_lines_they_are_read_in(prepared_of):
    readings = prepared_of("plain").read()
    (path,) = readings.paths
    assert (path.name, path.kind, path.all_gradient) == ("depth", "depth", True)
    assert [row.name for row in path.rows] == ["input", "w/0", "w/1", "w/2"]
    assert [row.operation for row in path.rows] == ["input", "dot_general", "dot_general", "dot_general"]
    assert all(row.where.startswith("test_diagnosis_engine.py:") and "plain" in row.where for row in path.rows[1:])
    assert [row.log_parameter_gradient for row in path.rows[1:]] == [
        readings.parameter_gradients[f"w/{i}"] for i in range(3)
    ]
    assert [site.name for site in readings.sites] == ["w/0", "w/1", "w/2"]


def test_slices_and_reparametrizations_name_their_parameter(prepared_of):
    scanned = prepared_of("scanned_layers").read()
    steps = [row.log_parameter_gradient for row in scanned.paths[0].rows if row.step is not None]
    truth = jax.grad(scanned_layers)(PARAMETERS, X, ())["stack"]
    assert steps == pytest.approx([math.log(np.linalg.norm(g)) for g in truth], abs=1e-5)
    normalized = prepared_of("weight_normalized").read()
    assert [row.name for row in normalized.paths[0].rows[1:]] == ["stack"] * 3
    assert normalized.paths[0].rows[1].log_parameter_gradient == normalized.parameter_gradients["stack"]


def test_branches_stand_under_the_state_that_they_lead_to(prepared_of):
    (path,) = prepared_of("attention").read().paths
    assert len(path.rows) == 5
    assert [len(row.sites) for row in path.rows] == [0, 3, 3, 3, 0]


def test_a_recurrence_is_a_path_of_its_own_and_a_loop_over_layers_is_not(prepared_of):
    depth, time = prepared_of("over_time").read().paths
    assert (depth.kind, time.kind) == ("depth", "time")
    assert [row.step for row in time.rows] == [0, 1, 2, None]
    (layers,) = prepared_of("scanned_layers").read().paths
    assert [(row.step, row.is_layer) for row in layers.rows] == [
        (None, True),
        (0, False),
        (1, True),
        (2, True),
        (None, True),
    ]


def test_a_recurrence_inside_layers_has_a_path_for_each_of_them(prepared_of):
    paths = prepared_of("nested").read().paths
    assert [path.kind for path in paths] == ["depth", "time", "time", "time"]
    assert [row.step for row in paths[1].rows[:3]] == [2, 1, 0]


def test_recurrences_beside_each_other_have_paths_of_their_own():
    def function(p, x, rest):
        def step(w):
            return lambda h, now: (jnp.tanh(now + h @ p[w]), None)

        zero = jnp.zeros((WIDTH,))
        ahead, _ = lax.scan(step("in"), zero, x)
        back, _ = lax.scan(step("out"), zero, x, reverse=True)
        return mean_square(ahead + back)

    paths = prepare(model(function, PARAMETERS)).read().paths[1:]
    assert [path.name.split(",")[0] for path in paths] == ["in", "out"]
    assert [row.step for row in paths[1].rows] == [2, 1, 0, None]


def test_shares_of_zeros_and_of_saturated_units():
    x = jnp.linspace(-6, 6, 25)[:, None]

    def read(activation):
        readings = prepare(
            model(lambda p, x, rest: jnp.sum(activation(x @ p["w"]) @ p["v"]), {"w": jnp.eye(1), "v": jnp.eye(1)}, x)
        )
        return readings.read().paths[0].rows[1]

    relu, sigmoid, gelu = read(jax.nn.relu), read(jax.nn.sigmoid), read(jax.nn.gelu)
    assert relu.zeros == relu.saturated == pytest.approx(13 / 25)  # the slope at 0 is 0 in JAX
    slope = jax.nn.sigmoid(x) * (1 - jax.nn.sigmoid(x))
    assert (sigmoid.zeros, sigmoid.saturated) == (0, pytest.approx(float(jnp.mean(slope < 0.0125))))
    slope = jax.vmap(jax.grad(jax.nn.gelu))(x[:, 0])
    assert gelu.saturated == pytest.approx(float(jnp.mean(jnp.abs(slope) < float(jnp.max(slope)) / 20)))


def test_an_activation_of_a_sum_belongs_to_all_of_its_terms(prepared_of):
    (_, time) = prepared_of("over_time").read().paths
    step = time.rows[1]
    h, states = jnp.zeros((WIDTH,)), []
    for now in X:
        states.append(now @ PARAMETERS["in"] + h @ PARAMETERS["shared"])
        h = jnp.tanh(states[-1])
    share = float(jnp.mean(1 - jnp.tanh(states[1]) ** 2 < 1 / 20))
    assert [site.name for site in step.sites] == ["in", "shared", "out"]
    assert [site.saturated for site in step.sites[:2]] == pytest.approx([share, share])
    assert math.isnan(step.sites[2].saturated)


def test_a_dead_layer_reads_zero_and_not_nothing():
    parameters = PARAMETERS | {"b": [PARAMETERS["b"][0], jnp.full(WIDTH, -1e3), PARAMETERS["b"][2]]}
    rows = prepare(model(plain, parameters)).read().paths[0].rows
    assert rows[2].zeros == 1
    assert [row.log_cotangent for row in rows[:3]] == [-math.inf] * 3


def test_ways_around_each_other_have_a_frontier():
    parameters = {"down": [draw(*SQUARE) for _ in range(3)], "up": [draw(2 * WIDTH, WIDTH) for _ in range(3)]}

    def function(p, x, rest):
        skips = []
        for w in p["down"]:
            x = jnp.tanh(x @ w)
            skips.append(x)
        for w in p["up"]:
            x = jnp.tanh(jnp.concatenate([x, skips.pop()], -1) @ w)
        return mean_square(x)

    readings = prepare(model(function, parameters)).read()
    (path,) = readings.paths
    assert not path.all_gradient
    assert [row.name for row in path.rows] == ["down/0", "down/1", "down/2", "up/0", "up/1", "up/2"]
    assert all(front.log_smallest <= front.log_cotangent + 1e-6 for front in readings.frontier)
    assert readings.frontier[0].log_cotangent == pytest.approx(path.rows[0].log_cotangent)


def test_what_is_not_looked_into_is_listed(prepared_of):
    readings = prepared_of("own_rule").read()
    assert [what for what, _ in readings.opaque] == ["custom_vjp_call"] * 3
    assert all("own_rule" in where for _, where in readings.opaque)

    def endless(p, x, rest):
        _, h = lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] @ p["in"]), (0, x))
        return mean_square(h + x @ p["out"])

    readings = prepare(model(endless, PARAMETERS)).read()
    assert [what for what, _ in readings.opaque] == ["while"]
    assert readings.parameter_gradients["in"] == -math.inf


def test_large_constants_and_zero_parameters_are_listed():
    table = jnp.ones((200, 100))
    parameters = {"w": draw(100, 3), "b": jnp.zeros(3)}
    readings = prepare(model(lambda p, x, rest: mean_square(table[x] @ p["w"] + p["b"]), parameters, TOKENS)).read()
    ((shape, where),) = readings.constants
    assert shape == (200, 100)
    assert where.startswith("test_diagnosis_engine.py:")
    assert readings.zero_parameters == ("b",)


def test_without_a_loss_random_vectors_are_pulled_back():
    def function(p, x, rest):
        return {"a": x @ p["in"], "b": jnp.tanh(x) @ p["out"]}

    prepared = prepare(model(function, PARAMETERS, has_loss=False))
    first, same, other = (prepared.read(key=jax.random.key(seed)) for seed in (0, 0, 1))
    assert (first.cotangent, math.isnan(first.loss)) == ("random", True)
    assert first == same
    assert first.parameter_gradients["in"] != other.parameter_gradients["in"]
    drawn = [jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (BATCH, WIDTH)) for i in range(2)]
    norms = [float(jnp.log(jnp.linalg.norm(vector))) for vector in drawn]
    np.testing.assert_allclose([site.log_cotangent for site in first.sites], norms, atol=1e-6)


def test_a_mutable_reference_is_refused_in_one_sentence():
    def function(p, x, rest):
        reference = jax.new_ref(jnp.zeros(()))
        reference[...] = jnp.sum(x @ p["in"])
        return reference[...]

    with pytest.raises(ValueError, match=r"function\) reads or writes a mutable reference"):
        prepare(model(function, PARAMETERS))
