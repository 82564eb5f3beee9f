"""The library's measurements, each made by a function with its options."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vgjax.checks import ArrayLike, DtypeName, kinds, known, positive_integer
from vgjax.ensembles.measurement import Arrays, Measurement, checked_batch
from vgjax.initializers import Scales
from vgjax.measure import gradients as _gradients
from vgjax.measure import jacobian as _jacobian
from vgjax.measure import losses
from vgjax.measure import lyapunov as _lyapunov
from vgjax.measure import naive as _naive
from vgjax.measure import norms as _norms
from vgjax.measure import spectrum as _spectrum
from vgjax.measure.correlation import correlate
from vgjax.measure.flow import Push, directions, push, push_all
from vgjax.networks.layers import state_sizes
from vgjax.networks.network import Network
from vgjax.networks.parameters import Parameters, init, two_keys

_LAYERS = ("layer",)


@dataclass(frozen=True)
class Gains(Measurement):
    """`gains`."""

    probes: int
    stream: bool

    name: ClassVar[str] = "gains"
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "log_gain": _LAYERS,
        "log_mean_square": _LAYERS,
        "first_inexact_layer": (),
        "first_nan_layer": (),
    }

    def draw(self, key: Array, network: Network) -> tuple[Parameters, Array]:
        """Parameters and directions."""
        weights, of_directions = two_keys(key)
        return init(weights, network, stream=self.stream), directions(of_directions, network, self.probes)

    def measure(self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array) -> dict[str, Any]:
        """`push` of the directions taken together."""
        (parameters, u), (x,) = drawn, inputs
        if len(u) == 1:
            return push(parameters, scales, x, u[0])._asdict()
        return over_directions(push_all(parameters, scales, x, u))

    def bytes_per_point(self, network: Network) -> int:
        """States and tangents before and after a layer, twice, and the results."""
        units = int(state_sizes(network).max())
        return 8 * (6 * (1 + self.probes) * units + (2 + self.probes) * (network.depth + 1))


def over_directions(pushed: Push) -> dict[str, Any]:
    """The gain's root mean square over directions, axis -2 of ``log_gain``; of one the gain itself."""
    logs, count = pushed.log_gain, pushed.log_gain.shape[-2]
    together = (jax.nn.logsumexp(2 * logs, axis=-2) - jnp.log(count)) / 2 if count > 1 else logs[..., 0, :]
    return pushed._replace(log_gain=together)._asdict()


@kinds
def gains(probes: int = 1, *, stream: bool = False) -> Measurement:
    """ln of the gradient gain ||J_{l<-0} u|| / ||u|| at every layer l, by `vgjax.push_forward`.

    Variables: ``log_gain``, of the root mean square over random directions u (it tends to ||J||_F / sqrt(n));
    ``log_mean_square`` of the states, ``first_inexact_layer``, ``first_nan_layer``.

    Args:
        probes: random directions a draw.
        stream: draw each layer inside the scan and store none.

    Raises:
        ValueError: fewer than one probe.
    """
    return Gains(positive_integer("probes", probes), bool(stream))


@dataclass(frozen=True)
class Gradients(Measurement):
    """`gradients`."""

    loss: losses.Loss | None

    name: ClassVar[str] = "gradients"
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "log_mean_square": _LAYERS,
        "log_gradient": _LAYERS,
        "log_parameter_gradient": ("block",),
        "log_tied_gradient": (),
        "log_gradient_parts": _LAYERS,
        "diagnostics": ("block",),
        "mean_square_slope": ("block",),
        "saturation": ("block",),
        "saturated": (),
        "first_inexact_layer": (),
        "first_nan_layer": (),
    }

    def check(self, network: Network, inputs: tuple[ArrayLike, ...]) -> tuple[bool, tuple[Any, ...]]:
        """x and, if there is one, y."""
        return checked_targets(self.name, network, inputs, self.loss)

    def measure(self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array) -> dict[str, Any]:
        """`gradient_flow` of one example."""
        parameters, x, y, loss = self.resolved(drawn, inputs, single=True)
        return _gradients.of_one(parameters, scales, x, y, loss)._asdict()

    def over_examples(
        self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """`gradient_flow` of a batch: parameter gradients are of the summed loss."""
        parameters, x, y, loss = self.resolved(drawn, inputs, single=False)
        return _gradients.of_batch(parameters, scales, x, y, loss)._asdict(), frozenset(_gradients.OF_BATCH)

    def resolved(self, drawn: Any, inputs: tuple[Array, ...], single: bool) -> tuple[Any, Array, Array, losses.Loss]:
        """What was drawn, x, targets with a leading axis and the loss."""
        (parameters, key), (x, *y) = drawn, inputs
        batch = 1 if single else len(x)
        loss, ys = losses.targets(parameters.network, y[0] if y else None, self.loss, key, batch, single)
        return parameters, x, ys, loss

    def bytes_per_point(self, network: Network) -> int:
        """All states, a layer's kernel and its gradient."""
        sizes = state_sizes(network)
        return 8 * (4 * int(sizes.sum()) + 4 * int(sizes.max()) ** 2)


@kinds
def gradients(*, loss: losses.Loss | None = None) -> Measurement:
    """Where the gradient of a loss goes, layer by layer and parameter by parameter, by `vgjax.gradient_flow`.

    The sweep's inputs are x and, if there is one, y. Variables: the fields of `GradientFlow`; those that are dicts by
    Flax path come as ``"log_parameter_gradient.stem.kernel"``, and ``result.log_parameter_gradient`` gives the dict.

    Args:
        loss: as for `vgjax.gradient_flow`.
    """
    return Gradients(losses.checked_loss(loss))


@dataclass(frozen=True)
class NaiveReadings(Measurement):
    """`naive_readings`."""

    dtype: str
    loss: losses.Loss | None

    name: ClassVar[str] = "naive_readings"
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {"lost": _LAYERS}

    def check(self, network: Network, inputs: tuple[ArrayLike, ...]) -> tuple[bool, tuple[Any, ...]]:
        """x and, if there is one, y."""
        return checked_targets(self.name, network, inputs, self.loss)

    def measure(self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array) -> dict[str, Any]:
        """`naive_reading` of one example."""
        (parameters, key), (x, *y) = drawn, inputs
        loss, ys = losses.targets(parameters.network, y[0] if y else None, self.loss, key, 1, True)
        return {"lost": _naive.of_batch(parameters, scales, x[None], ys, loss, self.dtype)[0]}

    def bytes_per_point(self, network: Network) -> int:
        """All states of a plain pass."""
        return 8 * 4 * int(state_sizes(network).sum())


@kinds
def naive_readings(dtype: str = "float32", *, loss: losses.Loss | None = None) -> Measurement:
    """Which layers' gradients a plain pass in a dtype reads as 0 or not finite, by `vgjax.naive_reading`.

    The sweep's inputs are x and, if there is one, y. Variable: ``lost``.

    Args:
        dtype: float32, bfloat16 or float16.
        loss: as for `vgjax.gradient_flow`.
    """
    return NaiveReadings(known("dtype", dtype, _naive.NAIVE_DTYPES), losses.checked_loss(loss))


@dataclass(frozen=True)
class Correlations(Measurement):
    """`correlations`."""

    stream: bool

    name: ClassVar[str] = "correlations"
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "correlation": _LAYERS,
        "log_one_minus_c": _LAYERS,
        "log_mean_square": ("input", "layer"),
        "first_inexact_layer": (),
        "first_nan_layer": (),
    }

    def draw(self, key: Array, network: Network) -> tuple[Parameters, Array]:
        """Parameters."""
        weights, rest = two_keys(key)
        return init(weights, network, stream=self.stream), rest

    def check(self, network: Network, inputs: tuple[ArrayLike, ...]) -> tuple[bool, tuple[Any, ...]]:
        """Two inputs of one shape."""
        if len(inputs) != 2:
            raise ValueError(f"correlations takes two inputs, x1 and x2, got {len(inputs)}")
        (batch, (x1,)), (other, (x2,)) = (checked_batch(network, x) for x in inputs)
        if batch != other or x1.shape != x2.shape:
            raise ValueError(f"x1 and x2 must have one shape, got {x1.shape} and {x2.shape}")
        return batch, (x1, x2)

    def measure(self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array) -> dict[str, Any]:
        """`correlation` of one pair."""
        return correlate(drawn[0], scales, *inputs)._asdict()

    def bytes_per_point(self, network: Network) -> int:
        """Two states, their difference and a midpoint, before and after a layer."""
        return 8 * (24 * int(state_sizes(network).max()) + 4 * (network.depth + 1))


@kinds
def correlations(*, stream: bool = False) -> Measurement:
    """The correlation of two inputs at every layer, and 1 - c however small, by `vgjax.correlation`.

    The sweep's inputs are x1 and x2. Variables: the fields of `Correlation`.

    Args:
        stream: draw each layer inside the scan and store none.
    """
    return Correlations(bool(stream))


@dataclass(frozen=True)
class Spectra(Measurement):
    """`spectra`."""

    depths: tuple[int, ...] | None
    from_input: bool
    dtype: str | None

    name: ClassVar[str] = "spectra"
    parallel: ClassVar[bool] = True
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "log_singular_values": ("to_layer", "index"),
        "rank": ("to_layer",),
        "log_frobenius": ("to_layer",),
        "log_condition": ("to_layer",),
        "log_determinant": ("to_layer",),
        "participation": ("to_layer",),
        "condition": (),
        "first_inexact_layer": (),
    }

    def check(self, network: Network, inputs: tuple[ArrayLike, ...]) -> tuple[bool, tuple[Any, ...]]:
        """One input (the products of a batch would all be kept at once), and Jacobians that fit into memory."""
        self._check_memory(network)
        batch, inputs = super().check(network, inputs)
        if batch:
            raise ValueError("spectra takes one input, or one for each seed (leading='seed'), got a batch")
        return batch, inputs

    def measure(self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array) -> dict[str, Any]:
        """The graded products, not yet finished."""
        (parameters, _), (x,) = drawn, inputs
        wanted = self._wanted(parameters.network)
        kind = _jacobian.computed_in(parameters, self.dtype)
        origin = _jacobian.origin(parameters, scales, x, (0, max(wanted[-1], 1)), self.from_input, kind)
        kept = _spectrum.kept_products(origin, origin.rotation(), wanted)
        depth = parameters.network.depth
        inexact = jnp.where(kept.first_inexact_layer > wanted[-1], depth + 1, kept.first_inexact_layer)
        return {**kept._replace(first_inexact_layer=inexact)._asdict(), "last": jnp.asarray(wanted[-1])}

    def finish(self, arrays: Arrays, where: str) -> Arrays:
        """Jacobi rotations on the host, in float64."""
        last = arrays.pop("last")
        rows = [_spectrum.Kept(**{name: a[i] for name, a in arrays.items()}) for i in range(len(last))]
        finished = [_spectrum.finished(row) for row in rows]
        for one, end in zip(finished, last, strict=True):
            _spectrum.check_finite(one.first_infinite, int(end), where)
        values = np.stack([one.log_singular_values for one in finished])
        return {
            "log_singular_values": values,
            **_spectrum.spectral_statistics(values),
            "condition": np.array([one.condition for one in finished]),
            "first_inexact_layer": np.array([one.first_inexact_layer for one in finished]),
        }

    def coordinates(self, network: Network) -> dict[str, np.ndarray]:
        """The depths."""
        return {"to_layer": np.asarray(self._wanted(network))}

    def bytes_per_point(self, network: Network) -> int:
        """A few dense Jacobians, and what is kept at each depth."""
        return _jacobian.bytes_needed(network, self._size(network), len(self._wanted(network)), self._kind(network))

    def chunk(self, network: Network, points: int, memory: int, workers: int) -> tuple[int, int]:
        """On a CPU one point after the other: its decompositions are, and a condition then decides for one alone."""
        size, _ = super().chunk(network, points, memory, workers)
        return size, 1 if jax.default_backend() == "cpu" else size

    def computing(self, network: Network) -> AbstractContextManager[Any]:
        """In its dtype, with LAPACK on one thread."""
        return _jacobian.computing(_drawn(network), self.dtype)

    def _wanted(self, network: Network) -> tuple[int, ...]:
        return tuple(_spectrum.checked_depths(network, self.depths, 0, self.from_input))

    def _size(self, network: Network) -> int:
        return math.prod(network.input_shape) if self.from_input else int(state_sizes(network)[0])

    def _kind(self, network: Network) -> str:
        return np.dtype(self.dtype or _drawn(network).dtype).name

    def _check_memory(self, network: Network) -> None:
        wanted = len(self._wanted(network))
        _jacobian.check_memory(network, self._size(network), wanted, self._kind(network), _jacobian.DENSE)


def _drawn(network: Network) -> Parameters:
    """Parameters in shape and dtype alone."""
    return jax.eval_shape(lambda key: init(key, network), jax.random.key(0))


@kinds
def spectra(
    depths: Sequence[int] | None = None, *, from_input: bool = False, dtype: DtypeName | None = None
) -> Measurement:
    """ln of every singular value of J_{m<-0} at a set of depths m, by `vgjax.log_singular_values`.

    Variables: ``log_singular_values`` with dimensions ``to_layer`` (the m) and ``index``, the statistics of
    `vgjax.measure.spectrum.Spectrum` (``rank``, ``log_frobenius``, ``log_condition``, ``log_determinant``,
    ``participation``), ``condition`` and ``first_inexact_layer``.

    Args:
        depths, from_input, dtype: as for `vgjax.log_singular_values`.
    """
    return Spectra(None if depths is None else tuple(depths), bool(from_input), dtype)


@dataclass(frozen=True)
class LyapunovExponents(Measurement):
    """`lyapunov`."""

    count: int | None
    discard: int | None
    dtype: str | None

    name: ClassVar[str] = "lyapunov"
    parallel: ClassVar[bool] = True
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {"exponents": ("index",), "log_stretch": ("block", "index")}

    def check(self, network: Network, inputs: tuple[ArrayLike, ...]) -> tuple[bool, tuple[Any, ...]]:
        """One input, of a network whose states have one shape."""
        _lyapunov.checked_discard(network, self.discard)
        _jacobian.check_one_shape(network)
        return super().check(network, inputs)

    def measure(self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array) -> dict[str, Any]:
        """The stretches of every layer, and their means behind the transient."""
        (parameters, _), (x,) = drawn, inputs
        network, kind = parameters.network, _jacobian.computed_in(parameters, self.dtype)
        origin = _jacobian.origin(parameters, scales, x, (0, network.depth), False, kind)
        size = origin.size if self.count is None else min(self.count, origin.size)
        stretches = _lyapunov.stretches(origin, origin.rotation(size))
        rest = stretches[_lyapunov.checked_discard(network, self.discard) :]
        return {"exponents": rest.mean(axis=0), "log_stretch": stretches}

    def bytes_per_point(self, network: Network) -> int:
        """A few matrices of the directions, and the stretches."""
        size = int(state_sizes(network).max())
        return 8 * (8 * size * (self.count or size) + network.depth * (self.count or size))

    def chunk(self, network: Network, points: int, memory: int, workers: int) -> tuple[int, int]:
        """On a CPU one point after the other: its decompositions are."""
        size, _ = super().chunk(network, points, memory, workers)
        return size, 1 if jax.default_backend() == "cpu" else size

    def computing(self, network: Network) -> AbstractContextManager[Any]:
        """In its dtype, with LAPACK on one thread."""
        return _jacobian.computing(_drawn(network), self.dtype)


@kinds
def lyapunov(count: int | None = None, *, discard: int | None = None, dtype: DtypeName | None = None) -> Measurement:
    """Growth rates of directions per layer, by `vgjax.lyapunov_exponents`.

    Variables: ``exponents``, shape ``(index,)``, and ``log_stretch``, what each layer adds to each.

    Args:
        count, discard, dtype: as for `vgjax.lyapunov_exponents`.
    """
    return LyapunovExponents(None if count is None else positive_integer("count", count), discard, dtype)


@dataclass(frozen=True)
class FrobeniusNorms(Measurement):
    """`frobenius`."""

    probes: int | None

    name: ClassVar[str] = "frobenius"
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {"log_norm": _LAYERS, "standard_error": _LAYERS}

    def draw(self, key: Array, network: Network) -> tuple[Parameters, Array]:
        """Parameters and probes."""
        weights, of_probes = two_keys(key)
        return init(weights, network), _norms.probe_vectors(network, self.probes, of_probes)

    def measure(self, drawn: Any, scales: Scales, numbers: dict[str, Array], *inputs: Array) -> dict[str, Any]:
        """`log_frobenius`."""
        (parameters, probes), (x,) = drawn, inputs
        squares = 2 * push_all(parameters, scales, x, probes).log_gain
        return _norms.read_squares(squares, exact=self.probes is None)._asdict()

    def bytes_per_point(self, network: Network) -> int:
        """The probes before and after a layer, twice, and what each reads."""
        units = int(state_sizes(network).max())
        return 8 * (self.probes or units) * (6 * units + network.depth + 1)


@kinds
def frobenius(probes: int | None = None) -> Measurement:
    """ln ||J_{l<-0}||_F at every layer, by `vgjax.log_frobenius`.

    Variables: ``log_norm`` and ``standard_error``, as in `vgjax.measure.norms.Frobenius`.

    Args:
        probes: as for `vgjax.log_frobenius`.
    """
    return FrobeniusNorms(None if probes is None else _norms.checked_probes(probes))


def checked_targets(
    name: str, network: Network, inputs: tuple[ArrayLike, ...], loss: losses.Loss | None
) -> tuple[bool, tuple[Any, ...]]:
    """x and, if there is one, y as arrays, and whether they are a batch."""
    if len(inputs) not in (1, 2):
        raise ValueError(f"{name} takes one input x and its target y, or x alone, got {len(inputs)}")
    batch, (x,) = checked_batch(network, inputs[0])
    y = inputs[1] if len(inputs) == 2 else None
    losses.targets(network, y, loss, None, len(x) if batch else 1, not batch)
    return batch, (x,) if y is None else (x, np.asarray(y))
