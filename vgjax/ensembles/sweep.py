"""Sweeps: one draw, every point of a grid of scales, all depths in one pass."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from vgjax.checks import known, positive_integer
from vgjax.ensembles import runner
from vgjax.ensembles.result import SpectrumSweep, Sweep, machine
from vgjax.initializers import Scales, check_scale
from vgjax.measure import spectrum
from vgjax.measure.flow import Push, directions, push, push_all, state_shapes
from vgjax.measure.graded import orthonormal
from vgjax.measure.gradients import GradientFlow, gradient_flow
from vgjax.networks.layers import Parameters, init, parameter_dtype
from vgjax.networks.network import Network, check_input, check_scales


def sweep(
    network: Network,
    x: ArrayLike,
    *,
    key: Array,
    seeds: int = 8,
    tangents: int = 1,
    scales: Scales | None = None,
    stream: bool = False,
    memory: int = runner.MEMORY,
    progress: bool | None = None,
    **axes: ArrayLike,
) -> Sweep:
    """ln of the gradient gain at every point of a grid of scales, for every seed, at every depth up to the network's.

    Seed s draws its weights and directions from ``fold_in(key, s)`` once and shares them over the whole grid: every
    layer is then one matrix product. One compilation serves all seeds and chunks, and a second grid of the same
    shape.

    Args:
        network: prefix-closed, so that one pass answers for every depth.
        x: one input for all seeds, shape ``network.input_shape``, or one a seed, with a leading axis of that length.
        key: `jax.random.key`.
        seeds: independent draws.
        tangents: random directions a draw; the gain is their root mean square (it tends to ||J||_F / sqrt(n)).
        scales: those that stay fixed, as for `forward`.
        stream: draw each layer inside the scan and store none.
        memory: budget in bytes for one chunk of the grid.
        progress: a bar on standard error, one step a chunk; None shows it on a terminal only.
        **axes: the grid: a scale's name with its values, shape ``(points,)``; a plain number stays fixed.

    Returns:
        `vgjax.ensembles.result.Sweep`, with axes (seed, *axes, depth).

    Raises:
        ValueError: an unknown or negative scale, an empty grid, a seed count that is not a whole number above 0, an
            input of the wrong shape, or a network that is not prefix-closed.
    """
    seeds, tangents = positive_integer("seeds", seeds), positive_integer("tangents", tangents)
    memory = positive_integer("memory", memory)
    grid, fixed = grid_of(network, scales if scales is not None else Scales(), axes)
    inputs = _inputs(network, x, seeds)
    if not network.prefix_closed:
        raise ValueError("network must be prefix-closed to be swept over depth: some block depends on layers behind it")

    shape, points = points_of(grid)
    count = int(np.prod(shape))
    size = runner.chunk_size(count, _bytes_per_point(network, tangents), memory)

    def work() -> Iterator[Push]:
        for seed in range(seeds):
            weights, of_tangents = jax.random.split(jax.random.fold_in(key, seed))
            parameters = init(weights, network, stream=stream)
            u = directions(of_tangents, network, tangents)
            for taken, new in runner.chunks(count, size):
                swept = Scales(**{name: values[taken] for name, values in points.items()})
                found = measure(parameters, Scales(**fixed), swept, inputs[seed], u)
                yield jax.tree.map(lambda a, new=new: np.asarray(a)[:new], found)

    total = seeds * -(-count // size)
    pieces = list(runner.progress(work(), total, "sweep", progress))
    found = jax.tree.map(lambda *parts: np.concatenate(parts).reshape(seeds, *shape, *parts[0].shape[1:]), *pieces)
    return Sweep(
        grid,
        found.log_gain,
        found.log_mean_square,
        found.first_inexact_layer,
        int(np.prod(state_shapes(network)[-1])),
        {name: np.asarray(value).tolist() for name, value in fixed.items()},
        provenance(network, key, seeds=seeds, tangents=tangents, chunk_size=size, stream=stream),
    )


def spectrum_sweep(
    network: Network,
    x: ArrayLike,
    *,
    key: Array,
    seeds: int = 8,
    depths: Sequence[int] | None = None,
    scales: Scales | None = None,
    from_input: bool = False,
    dtype: str | None = None,
    memory: int = runner.MEMORY,
    progress: bool | None = None,
    **axes: ArrayLike,
) -> SpectrumSweep:
    """`log_singular_values` of many networks: every seed at every point of a grid of scales, at a set of depths.

    Seed s draws its weights from ``fold_in(key, s)``, as `sweep` does, and shares them over the whole grid; one
    compilation serves all.

    Args:
        network, x, key, seeds, scales, progress, **axes: as for `sweep`; without axes, seeds alone.
        depths, from_input, dtype: as for `log_singular_values`.
        memory: budget in bytes for one chunk of the grid.

    Returns:
        `vgjax.ensembles.result.SpectrumSweep`, values with axes (seed, *axes, depths, n).

    Raises:
        ValueError: as `sweep` and `log_singular_values`; a layer whose Jacobian is not finite is named with its seed.
    """
    seeds, memory = positive_integer("seeds", seeds), positive_integer("memory", memory)
    grid, fixed = grid_of(network, scales if scales is not None else Scales(), axes, least=0)
    inputs = _inputs(network, x, seeds)
    wanted = spectrum.checked_depths(network, depths, 0, from_input)
    shape, points = points_of(grid)
    count = int(np.prod(shape))
    directions = int(np.prod(network.input_shape if from_input else state_shapes(network)[0]))
    drawn = jax.eval_shape(functools.partial(init, network=network), key)
    computed_in = np.dtype(dtype or parameter_dtype(drawn)).name
    spectrum.check_memory(network, directions, len(wanted), computed_in, spectrum.DENSE)
    per_point = spectrum.bytes_needed(network, directions, len(wanted), computed_in)
    size = runner.chunk_size(count, per_point, memory)

    def work() -> Iterator[list[spectrum.Found]]:
        for seed in range(seeds):
            parameters = init(jax.random.split(jax.random.fold_in(key, seed))[0], network, stream=False)
            with spectrum.computing(parameters, dtype) as kind:
                rotation = orthonormal(directions, directions, kind)
                for taken, new in runner.chunks(count, size):
                    swept = Scales(**{name: values[taken] for name, values in points.items()})
                    about = (np.asarray(taken), rotation, tuple(wanted), from_input, kind)
                    kept = measure_spectra(parameters, Scales(**fixed), swept, inputs[seed], *about)
                    kept = jax.tree.map(np.asarray, kept)
                    each = (spectrum.finished(jax.tree.map(lambda a, i=i: a[i], kept)) for i in range(new))
                    yield [spectrum.checked(one, wanted[-1], f" of seed {seed}") for one in each]

    pieces = list(runner.progress(work(), seeds * -(-count // size), "spectra", progress))
    found = jax.tree.map(lambda *values: np.stack(values), *(one for piece in pieces for one in piece))
    left = np.where(found.first_inexact_layer > wanted[-1], network.depth + 1, found.first_inexact_layer)
    values, condition, first_inexact_layer = (
        a.reshape(seeds, *shape, *a.shape[1:]) for a in (found.log_singular_values, found.condition, left)
    )
    about = provenance(network, key, seeds=seeds, chunk_size=size, from_input=from_input, dtype=computed_in)
    named = {name: np.asarray(value).tolist() for name, value in fixed.items()}
    return SpectrumSweep(grid, np.asarray(wanted), values, condition, first_inexact_layer, named, about)


@functools.partial(jax.jit, static_argnames=("depths", "from_input", "dtype"))
def measure_spectra(
    parameters: Parameters,
    fixed: Scales,
    swept: Scales,
    x: Array,
    index: Array,
    rotation: Array,
    depths: tuple[int, ...],
    from_input: bool,
    dtype: Any,
) -> spectrum.Kept:
    """One draw's products at many points, with a leading axis of points.

    On a CPU one after the other: its decompositions are, and a condition then decides for one point alone.
    """

    def at(point: tuple[Scales, Array]) -> spectrum.Kept:
        start = spectrum.origin(
            parameters, Scales(**{**fixed, **point[0]}), x, (0, max(depths[-1], 1)), from_input, dtype
        )
        return spectrum.kept_products(*start, rotation, depths)

    together = 1 if jax.default_backend() == "cpu" else len(index)
    return lax.map(at, (swept, index), batch_size=together)


def profile(
    network: Network,
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    key: Array,
    seeds: int = 8,
    scales: Scales,
    loss: str | None = None,
    naive: Sequence[str] = ("float32",),
) -> GradientFlow:
    """`gradient_flow` of several draws, the same that `sweep` makes from that key: gradients layer by layer, with
    their spread.

    Args:
        network, y, scales, loss, naive: as for `gradient_flow`; y for all seeds, or with a leading axis of seeds if x
            has one.
        x: one input for all seeds, or one a seed, with a leading axis of that length.
        key: `jax.random.key`.
        seeds: independent draws.

    Returns:
        `GradientFlow` of numpy arrays, each with a leading axis of seeds.

    Raises:
        ValueError: as `gradient_flow`, or a seed count that is not a whole number above 0.
    """
    seeds = positive_integer("seeds", seeds)
    one_each = jnp.shape(x) != network.input_shape
    inputs = _inputs(network, x, seeds)
    flows = []
    for seed in range(seeds):
        weights, direction = jax.random.split(jax.random.fold_in(key, seed))
        target = jnp.asarray(y)[seed] if one_each and y is not None else y
        parameters = init(weights, network)
        flows.append(gradient_flow(parameters, scales, inputs[seed], target, loss=loss, key=direction, naive=naive))
    return jax.tree.map(lambda *arrays: np.stack(arrays), *flows)


@jax.jit
def measure(parameters: Parameters, fixed: Scales, swept: Scales, x: Array, tangents: Array) -> Push:
    """One draw at many points: `push` under `vmap` over the swept scales, the directions taken together.

    Args:
        parameters: one draw at unit gain.
        fixed: scales shared by all points.
        swept: scales with a leading axis of points.
        x: one input.
        tangents: directions of norm 1, shape ``(tangents, *state)``.

    Returns:
        `Push` with a leading axis of points; ``log_gain`` is ln of the root mean square over the tangents.
    """

    def at(point: Scales) -> Push:
        scales = Scales(**{**fixed, **point})
        if len(tangents) == 1:
            return push(parameters, scales, x, tangents[0])
        found = push_all(parameters, scales, x, tangents)
        return found._replace(log_gain=(jax.nn.logsumexp(2 * found.log_gain, axis=0) - jnp.log(len(tangents))) / 2)

    return jax.vmap(at)(swept)


def points_of(grid: dict[str, np.ndarray]) -> tuple[tuple[int, ...], dict[str, np.ndarray]]:
    """The shape of a grid, and the scales at each of its points."""
    every = np.meshgrid(*grid.values(), indexing="ij")
    return tuple(len(v) for v in grid.values()), {n: v.ravel() for n, v in zip(grid, every, strict=True)}


def grid_of(
    network: Network, scales: Scales, axes: dict[str, ArrayLike], least: int = 1
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Swept axes as numpy arrays in the order given, and the fixed scales."""
    grid: dict[str, np.ndarray] = {}
    fixed: dict[str, Any] = dict(scales)
    for name, values in axes.items():
        known("scale", name, network.scales)
        check_scale(name, values)
        if np.ndim(values) == 0:
            fixed[name] = values
            continue
        if np.ndim(values) != 1 or np.size(values) == 0:
            raise ValueError(f"{name} must be a non-empty one-dimensional grid, got shape {np.shape(values)}")
        fixed.pop(name, None)
        grid[name] = np.asarray(values)
    if len(grid) < least:
        raise ValueError(
            f"a sweep needs at least one axis, an array of values for one of {', '.join(network.scales)}, got none"
        )
    check_scales(network, Scales(**fixed))
    return grid, fixed


def _inputs(network: Network, x: ArrayLike, seeds: int) -> Array:
    check_input(network, x, batch=True)
    inputs = jnp.asarray(x)
    if inputs.shape == network.input_shape:
        return jnp.broadcast_to(inputs, (seeds, *inputs.shape))
    if len(inputs) != seeds:
        raise ValueError(f"x must be one input, or one for each of the {seeds} seeds, got {len(inputs)}")
    return inputs


def _bytes_per_point(network: Network, tangents: int) -> int:
    """About what one point of the grid keeps alive.

    States and tangents before and after a layer, twice, and the results.
    """
    units = max(int(np.prod(shape)) for shape in state_shapes(network))
    return 8 * (6 * (1 + tangents) * units + (2 + tangents) * (network.depth + 1))


def provenance(network: Network, key: Array, **settings: Any) -> dict[str, Any]:
    """Where a result comes from: versions, machine, network, key, settings; plain JSON values."""
    from vgjax import __version__

    key_data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    about: dict[str, Any] = {
        "network": repr(network),
        "activation": network.activation,
        "width": int(np.prod(state_shapes(network)[-1])),
    }
    if network.plain is not None:
        about |= {"kernel_init": network.plain.kernel_init, "bias_init": network.plain.bias_init}
        if len(set(network.plain.widths)) > 1:
            about["widths"] = list(network.plain.widths)
    return {"vgjax": __version__, **machine(), **about, "key": np.asarray(key_data).tolist(), **settings}
