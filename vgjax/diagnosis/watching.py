"""Signal and gradient of every layer while a model trains: `watch`."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from vgjax.checks import Size, kinds
from vgjax.diagnosis.forward import NOT_TAKEN
from vgjax.diagnosis.graphs import Node, Variable, is_inexact
from vgjax.diagnosis.layout import Layout
from vgjax.diagnosis.paths import State, Steps
from vgjax.diagnosis.tapped import run
from vgjax.floatexp import from_float, power_of_two, sum_of_squares

Scalars = dict[str, Array]
"""By name, each of shape ``()``."""


@kinds
def watch(loss: Callable[..., Any], *, has_aux: bool = False, every: Size = 1) -> Callable[..., Any]:
    """`jax.value_and_grad` that also says what passes every layer: for a training step of your own.

        watched = vg.watch(loss)
        value, gradients, scalars = watched(model, batch)       # inside jax.jit or nnx.jit
        wandb.log(scalars)

    Args:
        loss: ``loss(model, *arguments) -> number``; with ``has_aux`` ``(number, whatever else)``.
        has_aux: as for `jax.value_and_grad`.
        every: look at every so-many-th step alone; the step is then handed over, ``watched(model, batch, step=step)``.

    Returns:
        A function of the same arguments. Its first one is an NNX module (whose gradients are those of
        `nnx.value_and_grad`, and which is updated as there) or a pytree, of which gradients are taken by all float
        arrays. It returns what `jax.value_and_grad` does and ``{name: number}``: ``signal/<layer>``, the root mean
        square of a state, and ``gradient/<layer>``, the norm of the gradient by it, of the whole batch. Layers of a
        scan have one each, ``<layer>[3]``; a recurrence its first and last step. They are plain floats, as the training
        itself sees them: 0 below the range and infinite above it. NaN: a branch not taken, or a step not looked at.
    """

    @functools.wraps(loss)
    def watched(model: Any, *arguments: Any, step: Any = None, **keywords: Any) -> tuple[Any, Any, Scalars]:
        if every > 1 and step is None:
            raise ValueError(f"step must be given where one step in {every} is looked at, got None")
        opened = _opened(model)
        trees: list[Any] = []

        def function(parameters: Any, inputs: Any, _: Any) -> list[Any]:
            arguments, keywords, rest = inputs
            found, state = opened.call(lambda m: loss(m, *arguments, **keywords), parameters, rest)
            value, extra = found if has_aux else (found, None)
            leaves, tree = jax.tree.flatten((extra, state))
            trees.append(tree)
            return [value, *leaves]

        inputs = arguments, keywords, opened.rest
        layout = Layout(function, opened.parameters, inputs, (), checkpoints=True)
        look, pass_by = _both_ways(layout, jax.tree.leaves(opened.parameters), jax.tree.leaves(inputs))
        found = look() if every == 1 else lax.cond(step % every == 0, look, pass_by)
        value, leaves, gradients, scalars = found
        extra, state = jax.tree.unflatten(trees[0], leaves)
        opened.update(state)
        gradients = jax.tree.unflatten(jax.tree.structure(opened.parameters), gradients)
        return (value, extra) if has_aux else value, gradients, scalars

    return watched


# --- the model ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Opened:
    """A model taken apart inside a training step.

    Attributes:
        parameters, rest: what gradients are taken by, and its other arrays.
        call: ``(f, parameters, rest)`` -> what f says of the model, and its rest behind that.
        update: takes over that rest.
    """

    parameters: Any
    rest: Any
    call: Callable[[Callable[[Any], Any], Any, Any], tuple[Any, Any]]
    update: Callable[[Any], None]


def _opened(model: Any) -> _Opened:
    if isinstance(model, nnx.Module):
        graph, parameters, *others = nnx.split(model, nnx.Param, ...)

        def call(f: Callable[[Any], Any], parameters: Any, rest: Any) -> tuple[Any, Any]:
            module = nnx.merge(graph, parameters, rest, copy=True)
            found = f(module)
            return found, nnx.split(module, nnx.Param, ...)[2:]

        return _Opened(parameters, others[0], call, lambda state: nnx.update(model, *state))
    leaves, tree = jax.tree.flatten(model)
    floats = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves]
    parameters, rest = (
        jax.tree.unflatten(tree, [leaf if f == wanted else None for leaf, f in zip(leaves, floats, strict=True)])
        for wanted in (True, False)
    )

    def of(parameters: Any, rest: Any) -> Any:
        ours, others = iter(jax.tree.leaves(parameters)), iter(jax.tree.leaves(rest))
        return jax.tree.unflatten(tree, [next(ours if is_float else others) for is_float in floats])

    return _Opened(parameters, rest, lambda f, p, r: (f(of(p, r)), None), lambda _: None)


# --- the pass -------------------------------------------------------------------------------------------------------


def _both_ways(layout: Layout, parameters: list[Any], inputs: list[Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """(value, other outputs, gradients, scalars), read or not: two functions of nothing, for `lax.cond`."""
    places = list(_places(layout))
    if not places:
        raise ValueError(
            "loss must take its batch as an argument and pass its weights to it, got one without such a state: "
            "what a function closes over is a constant to JAX"
        )
    loops = {v: place.loops for place in places for v in place.variables}
    zeros = [jnp.zeros([node.steps for node in nodes], jnp.float32) for nodes in loops.values()]

    def loss(parameters: list[Any], taps: list[Array]) -> tuple[Array, Any]:
        here = dict(zip(loops, taps, strict=True)) if taps else {}
        (value, *others), reports = run(layout.graph, [*parameters, *inputs], here, _visit)
        return value, (others, [reports[v] for v in here])

    def look() -> Any:
        differentiated = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (value, (others, forward)), (gradients, backward) = differentiated(parameters, zeros)
        norms = {v: (f, b) for v, f, b in zip(loops, forward, backward, strict=True)}
        return value, others, gradients, dict(_scalars(places, norms))

    def pass_by() -> Any:
        (value, (others, _)), gradients = jax.value_and_grad(loss, has_aux=True)(parameters, [])
        nothing = jax.tree.map(lambda a: jnp.full(a.shape, jnp.nan, a.dtype), jax.eval_shape(look)[3])
        return value, others, gradients, nothing

    return look, pass_by


@jax.custom_vjp
def _tap(x: Array, norm: Array) -> Array:
    """x itself; the norm of its cotangent comes back as the cotangent of ``norm``."""
    return x


_tap.defvjp(lambda x, norm: (x, None), lambda _, cotangent: (cotangent, _norm(cotangent)))


def _norm(x: Array) -> Array:
    """The Euclidean norm, right where its square leaves the float range too."""
    number = from_float(x)
    plain, _ = sum_of_squares(number, careful=False)

    def careful() -> Array:
        total, exponent = sum_of_squares(number, careful=True)
        return jnp.sqrt(total) * power_of_two(exponent, total.dtype)

    norm = lax.cond((plain > 1e-30) & (plain < 1e30), lambda: jnp.sqrt(plain), careful)
    return norm.astype(jnp.float32)


def _visit(_: Variable, value: Array, norm: Array) -> tuple[Array, Array]:
    return _tap(value, norm), _norm(value)


# --- names ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """What has one name: an array, or the parts of a carry; of the steps of loops all, or ``ends`` alone."""

    name: str
    variables: list[Variable]
    loops: tuple[Node, ...]
    ends: bool = False


def _places(layout: Layout) -> Iterator[_Place]:
    """States on the ways of the gradient, then the other maps with weights."""
    seen = set(layout.graph.inputs)  # whose gradient no training step needs
    over_time = {node for way in layout.ways if way.kind == "time" for state in way.states() for node in state.loops}
    for way in layout.ways:
        for item in way.items:
            states = [*item.states, item.result] if isinstance(item, Steps) else [item]
            for state in states:
                variables = [v for v in state.variables if v not in seen and is_inexact(v)]
                if variables:
                    seen.update(variables)
                    yield _Place(_state_name(layout, state, states[0]), variables, state.loops, way.kind == "time")
    for site in layout.sites.all:
        if site.variable not in seen:
            seen.add(site.variable)
            yield _Place(layout.site_name(site), [site.variable], site.loops, bool(over_time & set(site.loops)))


def _state_name(layout: Layout, state: State, first: State) -> str:
    """The parameter's path, if it is the result of that map with weights; else with the operation that makes it."""
    name = layout.state_name(state if state.sites else first)
    if any(site.variable in state.variables for site in state.sites):
        return name
    return f"{name}:{state.maker.name}" if state.maker else f"{name}:carry" if state.loops else name


def _scalars(places: list[_Place], norms: dict[Variable, tuple[Array, Array]]) -> Iterator[tuple[str, Array]]:
    """Root mean squares forward, norms backward, by name."""
    said: set[str] = set()
    for place in places:
        forward, backward = (functools.reduce(jnp.hypot, [norms[v][i] for v in place.variables]) for i in (0, 1))
        taken = jnp.all(jnp.stack([norms[v][0] != NOT_TAKEN for v in place.variables]), axis=0)
        root = math.sqrt(sum(v.size for v in place.variables))
        indices = [*np.ndindex(*(node.steps for node in place.loops))]
        for index in dict.fromkeys([indices[0], indices[-1]]) if place.ends else indices:
            name = _new(place.name + "".join(f"[{i}]" for i in index), said)
            for kind, norm in (("signal", forward / root), ("gradient", backward)):
                yield f"{kind}/{name}", jnp.where(taken[index], norm[index], jnp.nan)


def _new(name: str, said: set[str]) -> str:
    """The name, with a number behind it if another thing has it already (a weight that is used twice)."""
    new = next(each for i in itertools.count(1) if (each := name if i == 1 else f"{name}#{i}") not in said)
    said.add(new)
    return new
