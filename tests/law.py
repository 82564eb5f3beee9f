"""Thousands of networks with kernels and without, and p-values of their laws being the same.

Nothing here knows how a kernel is avoided. A sample is made of one network a key, by the measurements of drawn networks
or by those of undrawn ones, and read into named series, one number a network and layer. What is compared are numbers of
single layers and, since laws could agree one by one and not jointly, sums and differences of two series.
"""

import functools
import itertools
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from scipy import stats

import vgjax as vg
from vgjax.floatexp import ZERO, FloatExp, from_float
from vgjax.implicit import passes, points, readings, stacks, sums
from vgjax.measure import correlation, flow, gradients
from vgjax.networks.layers import by_stage, joined
from vgjax.networks.network import state_sizes

X = np.array([[0.7, -1.1, 0.4, 1.3, -0.2], [0.2, -0.9, 0.8, 0.6, 0.5]], np.float32)
"""Two inputs, neither close nor far apart."""

OUTPUTS = 2

Sample = dict[str, np.ndarray]
"""Series by name, shape ``(networks, layers)``."""


class Ends(NamedTuple):
    """What enters a network at random beside its parameters.

    Attributes:
        u: tangents at the first state: two of norm 1 and their sum, whose norm tells their inner product.
        v: a key of cotangents.
        y: targets, or cotangents of the output.
    """

    u: Array
    v: Array
    y: Array


def ends(key: Array, network: Any) -> Ends:
    """Drawn; the same call for networks with kernels and without."""
    of_u, of_v, of_y = jax.random.split(key, 3)
    u = flow.directions(of_u, network, 2)
    return Ends(jnp.concatenate([u, u[:1] + u[1:]]), of_v, jax.random.normal(of_y, (2, OUTPUTS), jnp.float32))


def depths(depth: int) -> tuple[int, ...]:
    """Where cotangents start."""
    return max(1, depth // 4), depth // 2, depth


# --- with kernels -----------------------------------------------------------------------------------------------------


def drawn(network: Any, groups: tuple[str, ...]) -> Callable[..., Any]:
    """``(key, scales, xs) -> readings by group``, all of one network whose kernels are drawn."""

    def one(key: Array, scales: Any, xs: Array) -> Any:
        weights, rest = jax.random.split(key)
        p, end = vg.init(weights, network), ends(rest, network)
        # What no group asks for is not compiled.
        push = jax.vmap(lambda x: flow.push_all(p, scales, x, end.u))(xs)
        pull = jax.vmap(lambda x: vg.gain_matrix(p, scales, x, depths(network.depth), key=end.v))(xs)
        pair = correlation.correlate(p, scales, *xs)
        series = {"h": push.log_mean_square, "u": push.log_gain, "v": pull.log_gain, "e": pair.log_one_minus_c}
        found = {
            "push": {"h": series["h"], "u": series["u"]},
            "tangent": {"h": series["h"][0], "u": series["u"][0, 0]},
            "pull": {"h": series["h"][0], "v": series["v"][0]},
            "pair": {"h": pair.log_mean_square, "e": series["e"]},
            "joint": {name: series[name] for name in "huv"},
            "apart": {"h": series["h"][0], "u": series["u"][0, :2], "v": series["v"][0], "e": series["e"]},
            "batch": _of_flow(gradients.of_batch(p, scales, xs, end.y, "squared_error")),
            "gradient": _of_flow(gradients.of_one(p, scales, xs[0], end.y[:1], "cotangent")),
        }
        return {group: found[group] for group in groups}

    return one


def _of_flow(found: Any) -> dict[str, Array]:
    of_units = {"slope": found.mean_square_slope, "flat": found.saturation}
    of_parameters = {f"W {path}": a for path, a in found.log_parameter_gradient.items()}
    return {"h": found.log_mean_square, "d": found.log_gradient} | of_units | of_parameters


# --- without kernels, any network -------------------------------------------------------------------------------------


def direct(network: Any, groups: tuple[str, ...]) -> Callable[..., Any]:
    """The same of undrawn networks: another network for every group, since each is a pass of its own."""

    def one(key: Array, scales: Any, xs: Array) -> Any:
        of_network, rest = jax.random.split(key)
        end = ends(rest, network)
        each = {group: passes.undrawn(jax.random.fold_in(of_network, i), network) for i, group in enumerate(groups)}
        return {group: _DIRECT[group](draw, scales, xs, end) for group, draw in each.items()}

    return one


def _pushed(found: Any) -> dict[str, Array]:
    return {"h": found.log_mean_square, "u": found.log_gain}


def _pulled(draw: Any, scales: Any, xs: Array, end: Ends) -> dict[str, Array]:
    found = readings.pull_back_undrawn(draw, scales, xs[0], end.v, depths(draw.network.depth))
    return {"h": found.log_mean_square, "v": found.log_gain}


def _pair(draw: Any, scales: Any, xs: Array, end: Ends) -> dict[str, Array]:
    found = readings.correlate_undrawn(draw, scales, *xs)
    return {"h": found.log_mean_square, "e": found.log_one_minus_c}


def _tangent(draw: Any, scales: Any, xs: Array, end: Ends) -> dict[str, Array]:
    found = readings.push_undrawn(draw, scales, xs[0], end.u[:1])
    return {"h": found.log_mean_square, "u": found.log_gain[0]}


_DIRECT: dict[str, Callable[..., dict[str, Array]]] = {
    "push": lambda draw, scales, xs, end: _pushed(readings.push_each_undrawn(draw, scales, xs, end.u)),
    "tangent": _tangent,
    "pull": _pulled,
    "pair": _pair,
    "joint": lambda draw, scales, xs, end: joint(draw, scales, xs, end, pair=False),
    "apart": lambda draw, scales, xs, end: joint(draw, scales, xs, end, pair=True),
    "batch": lambda draw, scales, xs, end: _of_flow(
        readings.gradients_undrawn(draw, scales, xs, end.y, "squared_error")
    ),
    "gradient": lambda draw, scales, xs, end: _of_flow(
        readings.gradient_undrawn(draw, scales, xs[0], end.y[:1], "cotangent")
    ),
}
GROUPS = tuple(_DIRECT)
IDENTITIES = ("adjoint", "linear")
"""Series that are 0 in every undrawn network, by group ``joint`` and ``apart``."""


def joint(draw: Any, scales: Any, xs: Array, end: Ends, *, pair: bool) -> dict[str, Array]:
    """States, tangents and cotangents of one undrawn network, which no measurement has together.

    Args:
        pair: the second input as a difference from the first, which alone has tangents (two of them) and cotangents; or
            both inputs alike, with all tangents. These are few rows, and many, which go different ways.
    """
    layers, network, dtype = passes.bind_undrawn(draw, scales), draw.network, draw.dtype
    m, u = (1, end.u[:2]) if pair else (len(xs), end.u)
    of, back = (tuple(np.repeat(range(m), k).tolist()) for k in (len(u), 3))
    xs, numbers = xs.astype(dtype), jax.vmap(from_float)
    states, apart = (passes.each(numbers(a))[0] for a in (xs[:m], (xs[1:] - xs[:1])[: int(pair)]))
    plan, at = layers.stem()
    start = passes.Bundle(states, apart, passes.no_rows(states))
    start = passes.forward_chain(plan, at, *passes.normalized(start))[0]
    start = start._replace(tangents=numbers(jnp.tile(u.astype(dtype), (m, 1))))

    def up(plan: Any, at: Any, rows: Any, _: None) -> tuple[Any, Any]:
        rows, logs = passes.normalized(rows)
        after, tape, _ = passes.forward_chain(plan, at._replace(keep=True), rows, logs)
        return after, (tape, rows, logs)

    last, reports = layers.scan(start, up, of=of)
    tapes, rows, logs = zip(*reports, strict=True)
    last, of_last = passes.normalized(last)
    logs = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]).T, joined(list(logs)), of_last)
    entering, cotangents, log_v = _down(layers, network, end, back, tapes)
    shape = (m,) if m > 1 else ()
    series = {
        "h": (2 * logs.states - np.log(state_sizes(network))).reshape(*shape, -1),
        "u": logs.tangents.reshape(*shape, len(u), -1),
        "v": log_v.reshape(*shape, 3, -1),
    }
    series |= _identities(last.tangents, start.tangents, cotangents, entering, m)
    if pair:
        each = [jax.vmap(readings._read)(stage).log_one_minus_c for stage in rows]
        series["e"] = jnp.concatenate([*each, readings._read(last).log_one_minus_c[None]])
    return series


def _identities(after: FloatExp, before: FloatExp, cotangents: FloatExp, entering: Any, m: int) -> dict[str, Array]:
    """By how much ``u . J^T v`` is not ``v . J u``, and ``J (u + u')`` not ``J u + J u'``, in shares of the factors'
    sizes: of every input, shape ``(m,)``."""

    def floats(rows: FloatExp) -> Array:
        return (rows.value * jnp.exp2(rows.exponent.astype(rows.value.dtype))[:, None]).reshape(
            m, -1, rows.value.shape[1]
        )

    u, ju, jv = (floats(rows) for rows in (before, after, cotangents))
    v, jv = entering[ju.shape[-1]].reshape(m, 3, -1)[:, -1], jv[:, -1]
    gap = jnp.einsum("mkn,mn->mk", u, jv) - jnp.einsum("mkn,mn->mk", ju, v)
    norm = lambda a: jnp.sqrt(jnp.sum(a * a, axis=-1))  # noqa: E731
    size = jnp.maximum(norm(u) * norm(jv)[:, None], norm(ju) * norm(v)[:, None])
    found = {"adjoint": jnp.max(jnp.abs(gap) / jnp.maximum(size, 1e-30), axis=1)}
    if u.shape[1] == 3:
        of_sum, of_terms = ju[:, 2], (ju[:, 0], ju[:, 1])
        found["linear"] = norm(of_sum - sum(of_terms)) / jnp.maximum(sum(map(norm, of_terms)), 1e-30)
    return found


def _down(layers: Any, network: Any, end: Ends, of: tuple[int, ...], tapes: Any) -> tuple[Any, FloatExp, Array]:
    """Cotangents from both depths, behind what the tape has seen."""
    dtype, sizes = layers.draw.dtype, state_sizes(network).tolist()
    at = jnp.asarray(depths(network.depth) * (len(of) // 3))

    def entering(size: int) -> Array:
        each = lambda m: flow.direction(jax.random.fold_in(end.v, m), (size,), jnp.float32)  # noqa: E731
        return jax.vmap(each)(at).astype(dtype)

    all_entering = {size: entering(size) for size in set(sizes)}
    injected = functools.partial(readings._injected, all_entering, at)

    def down(plan: Any, where: Any, rows: FloatExp, extra: Any) -> tuple[FloatExp, Array]:
        tape, behind = extra
        rows, logs = passes.each(injected(rows, behind))
        return passes.backward_chain(plan, where, tape, rows, gradients=False)[0], logs

    nothing = FloatExp(jnp.zeros((len(of), sizes[-1]), dtype), jnp.full(len(of), ZERO, jnp.int32))
    extras = list(zip(tapes, by_stage(network, jnp.arange(network.depth) + 1), strict=True))
    first, logs = layers.scan(nothing, down, of=of, extras=extras, reverse=True)
    first, log_first = passes.each(first)
    logs = joined([log_first[None], *logs]).T
    return all_entering, first, jnp.where(jnp.arange(network.depth + 1) <= at[:, None], logs, jnp.nan)


# --- samples ----------------------------------------------------------------------------------------------------------


def keys(name: Any, count: int) -> Array:
    """Of a case: those of another have nothing in common with them."""
    return jax.random.split(jax.random.key(zlib.crc32(repr(name).encode())), count)


@functools.cache
def program(engine: Callable[..., Any], network: Any, groups: tuple[str, ...], batch: int = 250) -> Callable[..., Any]:
    """Compiled once for all scales and inputs."""
    one = engine(network, groups)

    def run(keys: Array, scales: Any, xs: Array) -> Any:
        return lax.map(lambda key: one(key, scales, xs), keys, batch_size=batch)

    return jax.jit(run)


def sampled(
    run: Callable[..., Any], name: Any, count: int, scales: dict[str, float], xs: Any = X, wide: bool = False
) -> Any:
    """A sample of every group."""
    with jax.enable_x64(wide):
        given = vg.Scales(**{k: np.float64(v) if wide else np.float32(v) for k, v in scales.items()})
        found = run(keys(name, count), given, jnp.asarray(np.asarray(xs, np.float64 if wide else np.float32)))
        return {group: series(found[group]) for group in found}


def series(found: dict[str, Any]) -> Sample:
    """Readings by name, every one with axes of networks and layers alone."""
    flat: Sample = {}
    for name, a in found.items():
        a = np.asarray(a, float)
        single = a.ndim == 1
        for index in np.ndindex(() if single else a.shape[1:-1]):
            flat[name + "".join(map(str, index))] = a[:, None] if single else a[(slice(None), *index)]
    return flat


def tabulated(network: Any, name: Any, count: int, box: Any, grid: list[dict[str, float]], groups: Any) -> list[Any]:
    """Samples of the points of a grid, read from one draw a network; as ``drawn`` has them under the same names."""
    made: list[dict[str, Sample]] = [{} for _ in grid]
    for group in groups:
        names = sums.GAINS if group == "tangent" else sums.GRADIENTS
        pieces = stacks.pieces_needed(network, box, names, np.float32)
        draw, read = _drawer(network, names, pieces), _reader(network, group)
        for found in made:
            found[group] = {}
        parts: list[list[Any]] = [[] for _ in grid]
        for some in keys((name, group), count).reshape(-1, CHUNK):
            with jax.enable_x64(True):
                stack = draw(some, box)
            for scales, part in zip(grid, parts, strict=True):
                given = vg.Scales(**{k: np.float32(v) for k, v in scales.items()})
                part.append(jax.tree.map(np.asarray, read(stack, some, given, jnp.asarray(X[0]))))
        for found, part in zip(made, parts, strict=True):
            found[group] = series(jax.tree.map(lambda *a: np.concatenate(a), *part))
    return made


CHUNK = 500
"""Networks whose tables are held at a time."""


@functools.cache
def _drawer(network: Any, names: tuple[str, ...], pieces: int) -> Callable[..., Any]:
    def one(key: Array, box: Any) -> Any:
        return stacks.draw_stack(key, network, box, names, pieces)

    return jax.jit(jax.vmap(one, in_axes=(0, None)))


@functools.cache
def _reader(network: Any, group: str) -> Callable[..., Any]:
    def one(stack: Any, key: Array, scales: Any, x: Array) -> dict[str, Array]:
        if group == "tangent":
            found = points.push_stack(stack, scales, x)
            return {"h": found.log_mean_square, "u": found.log_gain}
        # From another key than the draw's, which has used this one.
        end = ends(jax.random.fold_in(key, 99), network)
        return _of_flow(points.gradient_stack(stack, scales, x, end.y[:1], "cotangent"))

    return jax.jit(jax.vmap(one, in_axes=(0, 0, None, None)))


# --- what is compared -------------------------------------------------------------------------------------------------


def numbers(sample: Sample) -> Iterator[tuple[str, np.ndarray]]:
    """Numbers of single layers; and of every two series sums and differences, where both have come all the way and
    where both are halfway."""
    sample = {name: _resolved(name, a) for name, a in sample.items()}
    for name, a in sample.items():
        depth = a.shape[1] - 1
        # A tangent's norm at layer 0 is that with which it enters.
        for layer in sorted({0, min(1, depth), depth // 2, depth} - ({0} if name[0] == "u" else set())):
            yield f"{name}[{layer}]", a[:, layer]
    for one, other in itertools.combinations(sample, 2):
        a, b = sample[one], sample[other]
        # Gradients of biases and of the ends are the others times what is known.
        if one[0] == other[0] == "W" or any(name[0] == "W" and name != "W kernel" for name in (one, other)):
            continue
        for where, at in (("end", _end), ("half", lambda name, a: a.shape[1] // 2)):
            x, y = a[:, at(one, a)], b[:, at(other, b)]
            with np.errstate(invalid="ignore"):
                yield f"{one}+{other} {where}", x + y
                # Two inputs on one linear piece of phi, or drawn to one state, have one logarithm: exactly in float64,
                # to rounding in float32, which ranks would tell apart.
                yield f"{one}-{other} {where}", np.round((x - y) / ROUNDING) * ROUNDING


def _resolved(name: str, a: np.ndarray) -> np.ndarray:
    """Without what float32 and float64 tell apart: a third of the units is no tie of a third."""
    if name == "e":
        return np.where(a < PARALLEL, -np.inf, a)
    return np.round(a, 5) if name.startswith("flat") else a


def _end(name: str, a: np.ndarray) -> int:
    return 0 if name[0] in "vd" else a.shape[1] - 1


PARALLEL = -18.0
"""ln (1 - c) below which float32 rounds it by more than a thousandth: as good as parallel."""
ROUNDING = 1e-4
"""What varies by less is a constant in float32, as ln of the gain at layer 0 is."""


def p_values(a: Sample, b: Sample) -> dict[str, float]:
    """Of the hypothesis that two samples have one law, by number and test."""
    a, b = ({name: z[name] for name in z if name not in IDENTITIES} for z in (a, b))
    assert a.keys() == b.keys()
    found: dict[str, float] = {}
    for (name, x), (_, y) in zip(numbers(a), numbers(b), strict=True):
        alive = [z[np.isfinite(z)] for z in (x, y)]
        if np.isnan(x).all() and np.isnan(y).all():
            continue
        if all(len(z) and np.ptp(z) < ROUNDING for z in alive):
            assert abs(alive[0][0] - alive[1][0]) < 10 * ROUNDING, (name, alive[0][0], alive[1][0])
            if len(alive[0]) == len(alive[1]) == len(x):
                continue
            # Some networks are dead, or have left what float32 marks (a layer of GELU far below 0); the others agree.
            x, y = (np.where(np.isfinite(z), 0.0, z) for z in (x, y))
        found |= {f"{name} {test}": float(p) for test, p in _tests(x, y, *alive).items()}
    return found


def _tests(x: np.ndarray, y: np.ndarray, fx: np.ndarray, fy: np.ndarray) -> dict[str, float]:
    found: dict[str, Any] = {}
    # Dead networks (-inf) are ties below all others, and those without a number (a cosine of 0) below these.
    placed = [np.where(np.isnan(z), -2e6, np.where(np.isfinite(z), z, -1e6)) for z in (x, y)]
    found["KS"] = stats.ks_2samp(*placed, method="asymp").pvalue
    if min(len(fx), len(fy)) > 100 and np.ptp(np.concatenate([fx, fy])) > ROUNDING:
        found["mean"] = stats.ttest_ind(fx, fy, equal_var=False).pvalue
        found["variance"] = stats.levene(fx, fy, center="median").pvalue
    if len(fx) < len(x) or len(fy) < len(y):
        found["dead"] = stats.fisher_exact([[len(z), len(w) - len(z)] for z, w in ((fx, x), (fy, y))])[1]
    return found


def smallest(found: dict[Any, float]) -> tuple[Any, float]:
    """The smallest of p-values, and whose it is."""
    name = min(found, key=found.__getitem__)
    return name, found[name]
