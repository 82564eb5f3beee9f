"""The result of a sweep: what was measured, over what, and where it came from; saved and loaded whole."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vgjax.checks import kinds, known
from vgjax.ensembles import notebook
from vgjax.ensembles.fingerprint import digest_of_network
from vgjax.ensembles.runner import switches
from vgjax.files import whole_file, write_arrays
from vgjax.networks.network import Network
from vgjax.networks.serialization import network_from_json, network_to_json
from vgjax.values import by_content

if TYPE_CHECKING:
    import xarray

_EXPONENTS = {"float32": (-126, 128), "bfloat16": (-126, 128), "float16": (-14, 16)}
"""Exponents of the smallest normal number and of the first power of two beyond the largest (IEEE 754)."""

MISSING, FAILED = "missing_points", "failed_pieces"
"""What a provenance says of what is not there: how many points, and of pieces that raised what they said."""
NATURAL = "natural logarithm"
SEAL = "result"
"""What the seal of a saved result is of."""


@by_content
@kinds
@dataclass(frozen=True)
class Result:
    """What `vgjax.sweep` measured. Every variable is an attribute: ``result.log_gain``. Logarithms are natural; -inf is
    a true zero, NaN what does not exist.

    Attributes:
        measure: the name of the measurement.
        axes: what was swept, in order: name -> values, shape ``(points,)``.
        arrays: the variables, by name: dimensions (network if there are several, seed, *axes, *dims of the variable).
        dims: names of every variable's dimensions behind the axes; ``layer`` runs over s_0 ... s_L, ``block`` over what
            is between them.
        coordinates: values along such dimensions, where they are not just counted; of swept schedules, by the name of
            the scale, shape ``(points, depth)``.
        networks: by name; one without a name where there was one. None for one that a file could not hold (with an
            activation, a block or a law of a user's own).
        fixed: scales and other numbers that were not swept: name -> value.
        provenance: networks, key, versions, device, pieces: plain JSON values.
    """

    measure: str
    axes: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]
    dims: dict[str, tuple[str, ...]]
    coordinates: dict[str, np.ndarray] = field(default_factory=dict)
    networks: dict[str, Network | None] = field(default_factory=lambda: {"": None})
    fixed: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        arrays = self.__dict__.get("arrays", {})
        if name in arrays:
            return arrays[name]
        inside = {key[len(name) + 1 :].replace(".", "/"): a for key, a in arrays.items() if key.startswith(f"{name}.")}
        if inside:
            return inside
        raise AttributeError(f"no variable {name!r} here; there are {', '.join(arrays)}")

    # --- what it is about ---

    @property
    def network(self) -> Network:
        """The network, where there was one.

        Raises:
            ValueError: of several, or of one that a file could not hold.
        """
        if len(self.networks) > 1:
            raise ValueError(
                f"a result over several networks has them as networks, by name: {', '.join(self.networks)}"
            )
        (network,) = self.networks.values()
        if network is None:
            raise ValueError(
                "the file could not hold this network (an activation, a block or a law of your own): "
                "hand it over as load(path, network=...)"
            )
        return network

    @property
    def several(self) -> bool:
        """Whether the variables have a leading dimension ``network``."""
        return "" not in self.networks

    @property
    def lead(self) -> tuple[str, ...]:
        """Names of the dimensions that all variables begin with."""
        return (*(("network",) if self.several else ()), "seed", *self.axes)

    @property
    def seeds(self) -> int:
        """How many independent draws."""
        return int(next(iter(self.arrays.values())).shape[int(self.several)])

    @property
    def missing_points(self) -> int:
        """Points, of all seeds and networks, that have not been measured and are NaN: of a run that is not finished, or
        of which pieces failed (``provenance["failed_pieces"]``)."""
        return int(self.provenance.get(MISSING, 0))

    @property
    def sizes(self) -> dict[str, int]:
        """Every dimension's size."""
        return self._sizes_of(self.arrays)

    def _sizes_of(self, arrays: Mapping[str, Any]) -> dict[str, int]:
        found: dict[str, int] = {}
        for name, a in arrays.items():
            found |= dict(zip((*self.lead, *self.dims[name]), a.shape, strict=True))
        return found

    @property
    def depth(self) -> int:
        """L, the number of layers (of several networks, of the deepest)."""
        sizes = self.sizes
        if "layer" in sizes:
            return sizes["layer"] - 1
        return max(network.depth for network in self.networks.values() if network is not None)

    def __repr__(self) -> str:
        return f"<{self._title()}: {', '.join(dict.fromkeys(name.partition('.')[0] for name in self.arrays))}>"

    def _repr_html_(self) -> str:
        dims = {name: (*self.lead, *self.dims[name]) for name in self.arrays}
        return notebook.table(self._title(), self.arrays, dims)

    def _title(self) -> str:
        """What was measured over what, in a few words."""
        names = {"seed": "draw", "layer": "layer", "block": "block", "example": "example", "input": "input"}
        sizes = {name: size for name, size in self.sizes.items() if name != "network"}
        over = (
            f"{size} {names.get(name, name)}{'s' if size > 1 and name in names else ''}" for name, size in sizes.items()
        )
        of = f"{len(self.networks)} networks" if self.several else next(iter(self.networks.values())) or "a network"
        missing = f", {self.missing_points} points missing" if self.missing_points else ""
        return f"{self.measure} of {of} over {', '.join(over)}{missing}"

    # --- statistics over seeds ---

    @kinds
    def mean(self, name: str) -> np.ndarray:
        """Mean of a variable over seeds: of logarithms the quenched one, what a typical network does; shape without
        ``seed``."""
        return self._variable(name).mean(axis=int(self.several))

    @kinds
    def error(self, name: str) -> np.ndarray:
        """Standard error of `mean`; NaN for a single seed, and where some seed's logarithm is that of a true zero."""
        values, axis = self._variable(name), int(self.several)
        if self.seeds < 2:
            return np.full(np.delete(values.shape, axis), np.nan)
        with np.errstate(invalid="ignore"):
            return values.std(axis=axis, ddof=1) / np.sqrt(self.seeds)

    @kinds
    def annealed(self, name: str) -> np.ndarray:
        """ln of the root mean square over seeds of what a variable is the logarithm of (what chi predicts, doubled):
        ``ln(mean exp(2 a)) / 2``; shape without ``seed``."""
        return (np.logaddexp.reduce(2 * self._variable(name), axis=int(self.several)) - np.log(self.seeds)) / 2

    @kinds
    def rate(self, from_layer: int | None = None) -> np.ndarray:
        """Mean over seeds of the log gain per layer, from a layer (default: half the depth, past the transient) to L.

        Negative: gradients vanish; positive: they explode. Half of ln chi, in theory. -inf where the gain is a true
        zero at L.

        Returns:
            Shape ``(*axes,)``, with several networks ``(network, *axes)``.

        Raises:
            ValueError: a result without gains, or a layer that is not before the last.
        """
        mean, depths = self._gains(), self._depths()
        if from_layer is not None and not 0 <= from_layer < min(depths):
            raise ValueError(f"from_layer must lie in 0 .. {min(depths) - 1}, got {from_layer}")

        growths = [
            growth_per_layer(each, depth, from_layer)
            for each, depth in zip(mean if self.several else [mean], depths, strict=True)
        ]
        return np.stack(growths) if self.several else growths[0]

    @kinds
    def edge(self, along: str | None = None) -> np.ndarray:
        """Where along an axis gradients stop vanishing and start exploding: the first sign change of `rate`,
        interpolated.

        Args:
            along: the axis; left out, the first.

        Returns:
            Values of that axis, of the shape of the remaining ones; NaN where there is no such change.

        Raises:
            ValueError: a result without gains or without such an axis, or with missing points.
        """
        check_complete("edge", self)
        rate = self.rate()
        if not self.axes:
            raise ValueError("edge needs a sweep along some axis, got one without axes")
        along = known("along", next(iter(self.axes)) if along is None else along, self.axes)
        values, axis = self.axes[along], [*self.axes].index(along) + self.several
        rate = np.moveaxis(rate, axis, 0)
        crossing = (rate[:-1] < 0) & (rate[1:] >= 0)
        i = crossing.argmax(axis=0) if len(crossing) else np.zeros(rate.shape[1:], int)
        low, high = (np.take_along_axis(rate, np.minimum(i + k, len(rate) - 1)[None], axis=0)[0] for k in (0, 1))
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(np.isfinite(low), -low / (high - low), 1)
        between = values[i] + share * (values[np.minimum(i + 1, len(values) - 1)] - values[i])
        return np.where(crossing.any(axis=0), between, np.nan)

    @kinds
    def naive_lost(self, dtype: str = "float32") -> np.ndarray:
        """True where a plain pass in ``dtype`` would read the gradient, or the state behind it, as 0 or not finite.

        The naive reading (the root of the sum of squares of a gradient of norm 1 pulled through those layers),
        derived from the logarithms: right to a few layers. `vgjax.naive_reading` runs the pass itself.

        Returns:
            Booleans of the shape of ``log_gain``.

        Raises:
            ValueError: a result without gains or with missing points, or a dtype other than float32, bfloat16 and
                float16.
        """
        self._gains()
        check_complete("naive_lost", self)
        lowest, highest = _EXPONENTS[known("dtype", dtype, _EXPONENTS)]
        square, n = 2 * self.log_gain, self.provenance["state_size"]
        # A sum of squares is 0 when its largest term is: about 2 ln n times the mean of n Gaussian ones.
        zero = square + np.log(max(1.0, 2 * np.log(n)) / n) < lowest * np.log(2)
        infinite = square > highest * np.log(2)
        return zero | infinite | (self.log_mean_square > 2 * highest * np.log(2))

    def _depths(self) -> list[int]:
        """Of every network."""
        return [self.depth if network is None else network.depth for network in self.networks.values()]

    def _variable(self, name: str) -> np.ndarray:
        return self.arrays[known("variable", name, self.arrays)]

    def _gains(self) -> np.ndarray:
        if "log_gain" not in self.arrays:
            raise ValueError(f"rate, edge and naive_lost need a sweep of gains, got one of {self.measure}")
        return self.mean("log_gain")

    # --- labels and files ---

    @kinds
    def to_xarray(self) -> "xarray.Dataset":
        """A labelled `xarray.Dataset`, with the provenance in its attributes.

        Raises:
            ImportError: xarray is not installed.
        """
        return self._labelled(self.arrays)

    def _labelled(self, arrays: Mapping[str, Any]) -> "xarray.Dataset":
        """`to_xarray` of variables of this result that need not be in memory."""
        xr, sizes = import_xarray(), self._sizes_of(arrays)
        units = {name: {"units": NATURAL} if name.startswith("log_") else {} for name in arrays}
        variables = {name: ((*self.lead, *self.dims[name]), a, units[name]) for name, a in arrays.items()}
        counted: dict[str, Any] = {dim: np.arange(sizes[dim]) for dim in ("seed", "layer") if dim in sizes}
        counted |= {"block": np.arange(1, sizes["block"] + 1)} if "block" in sizes else {}
        named: dict[str, Any] = {"network": np.array(list(self.networks))} if self.several else {}
        if self.several and None not in self.networks.values():
            named["depth"] = ("network", np.array([net.depth for net in self.networks.values()]))  # type: ignore[union-attr]
        along: dict[str, Any] = {
            name: ((f"{name}_schedule", "block"), values) if values.ndim > 1 else values
            for name, values in self.coordinates.items()
        }
        return xr.Dataset(
            variables,
            coords={**named, **counted, **self.axes, **along},
            attrs={name: json.dumps(value) for name, value in self._description().items()},
        )

    @kinds
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the whole result to ``path``, or nothing: ``.npz``, or ``.nc`` (netCDF, needs xarray and netcdf4).

        Returns:
            The path.

        Raises:
            ValueError: another suffix.
            OSError: the path cannot be written.
        """
        path = with_known_suffix(path)
        if path.suffix == ".nc":
            dataset = self.to_xarray()
            checked = {name: {"fletcher32": True} for name, a in dataset.variables.items() if a.ndim}
            with whole_file(path) as temporary:
                dataset.to_netcdf(temporary, encoding=checked)
            return path
        arrays: dict[str, Any] = {"description": np.array(json.dumps(self._description()))}
        arrays |= {f"axis/{name}": values for name, values in self.axes.items()}
        arrays |= {f"coordinate/{name}": values for name, values in self.coordinates.items()}
        arrays |= {f"variable/{name}": values for name, values in self.arrays.items()}
        write_arrays(path, arrays, SEAL, compressed=True)
        return path

    def _description(self) -> dict[str, Any]:
        """All that is no array, as plain JSON values."""
        return {
            "measure": self.measure,
            "axes": list(self.axes),
            "coordinate_names": list(self.coordinates),  # xarray has a use of its own for an attribute "coordinates"
            "dims": {name: list(dims) for name, dims in self.dims.items()},
            "networks": {name: net and network_to_json(net) for name, net in self.networks.items()},
            "programs": {name: program_of(net) for name, net in self.networks.items()},
            "fixed": self.fixed,
            "provenance": self.provenance,
        }


Read = tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]
"""A description, axes, coordinates and variables, as files hold them."""


def result_of(found: Read, network: Network | Mapping[str, Network] | None) -> Result:
    """A result of what a file holds of it, with those networks that a file cannot hold."""
    description, axes, coordinates, arrays = found
    networks = {name: each and network_from_json(each) for name, each in description["networks"].items()}
    given = {"": network} if isinstance(network, Network) else dict(network or {})
    for name in given:
        known("the name of a network", name, networks)
    # Another JAX writes the same program in other words.
    here = description["provenance"].get("jax") == describe_machine()["jax"]
    for (name, each), said in zip(networks.items(), description["provenance"].get("networks", []), strict=False):
        if name in given and repr(given[name]) != said:
            raise ValueError(f"network must be that of the result, {said}, got {given[name]!r}")
        if name in given and here and program_of(given[name]) != description["programs"][name]:
            raise ValueError(f"network must be that of the result, got another of the same name, {said}")
        networks[name] = given.get(name, each)
    dims = {name: tuple(each) for name, each in description["dims"].items()}
    kept = description["fixed"], description["provenance"]
    return Result(description["measure"], axes, arrays, dims, coordinates, networks, *kept)


def check_complete(what: str, result: Result) -> None:
    """Raise ValueError if points of a result are missing, where what is read off it would not show that."""
    if result.missing_points:
        raise ValueError(f"{what} needs all points, got a result without {result.missing_points} of them")


def program_of(network: Network | None) -> str:
    """The fingerprint of a network that its description does not give back; empty for all others."""
    if network is None or network_from_json(network_to_json(network)) == network:
        return ""
    return digest_of_network(network)


def growth_per_layer(log_gain: np.ndarray, depth: int, from_layer: int | None = None) -> np.ndarray:
    """The log gain per layer from a layer (default: half the depth) to L; -inf where the gain is a true zero at L.

    Args:
        log_gain: shape ``(..., depth + 1)``, or longer.
        depth: L.
        from_layer: before L.
    """
    start = depth // 2 if from_layer is None else from_layer
    last, first = log_gain[..., depth], log_gain[..., start]
    return np.where(np.isneginf(last), -np.inf, last - np.where(np.isneginf(last), 0, first)) / (depth - start)


def nearest(values: np.ndarray, value: float) -> float:
    """The entry of a grid nearest to a value."""
    return float(values[np.abs(values - value).argmin()])


def describe_machine() -> dict[str, Any]:
    """What ran this and may change the last bits, or all of a draw: versions, processor, device, switches; JSON
    values."""
    import flax
    import jax

    (device,) = jax.device_put(np.zeros(())).devices()  # what is computed on, which need not be the first there is
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "device": f"{device.platform}: {device.device_kind}",
        "threefry_partitionable": switches()["jax_threefry_partitionable"],
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def import_xarray() -> Any:
    """xarray, which is imported where it is needed alone.

    Raises:
        ImportError: it is not installed; the sentence says how to.
    """
    try:
        import xarray
    except ImportError:
        raise ImportError("labelled results need xarray: pip install 'vgjax[xarray]'") from None
    return xarray


def with_known_suffix(path: str | os.PathLike[str]) -> Path:
    """The path, if it is one that a result is saved to and read from.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix not in (".npz", ".nc"):
        raise ValueError(f"path must end in .npz or .nc, got {str(path)!r}")
    return path
