"""Named results: what a sweep measured, with where it came from; saved and loaded whole."""

import json
import os
import platform
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vgjax.checks import known
from vgjax.files import whole_file

if TYPE_CHECKING:
    import xarray


_EXPONENTS = {"float32": (-126, 128), "bfloat16": (-126, 128), "float16": (-14, 16)}
"""Exponents of the smallest normal number and of the first power of two beyond the largest."""


class Result(ABC):
    """What saves and loads: a dataclass with ``axes`` (swept scales in order, name -> values), ``fixed``,
    ``provenance`` and arrays whose leading dimensions are the seed and the axes."""

    trailing: ClassVar[dict[str, tuple[str, ...]]]
    """Its arrays, and what their dimensions behind the seed and the axes are called."""

    axes: dict[str, np.ndarray]
    fixed: dict[str, Any]
    provenance: dict[str, Any]

    kinds: ClassVar[dict[str, Any]] = {}
    """Every result, by name."""

    def __init_subclass__(cls) -> None:
        Result.kinds[cls.__name__] = cls

    @property
    @abstractmethod
    def coordinates(self) -> dict[str, Any]:
        """Values along the trailing dimensions, by the dimension's name (or pairs of dimension and values)."""

    def to_xarray(self) -> "xarray.Dataset":
        """A labelled `xarray.Dataset` over seed, swept scales and what is behind, with the provenance in its
        attributes.

        Raises:
            ImportError: xarray is not installed.
        """
        xr = _xarray()
        variables, lead = {}, ("seed", *self.axes)
        for name, behind in self.trailing.items():
            values = getattr(self, name)
            about = {"units": "natural logarithm"} if name.startswith("log_") else {}
            variables[name] = ((*lead, *behind), values, about)
        return xr.Dataset(
            variables,
            coords={"seed": np.arange(len(values)), **self.axes, **self.coordinates},
            attrs={"kind": type(self).__name__, **{name: json.dumps(value) for name, value in self._about().items()}},
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the whole result to ``path``, or nothing: ``.npz``, or ``.nc`` (netCDF, needs xarray and netcdf4).

        Returns:
            The path.

        Raises:
            ValueError: another suffix.
            OSError: the path cannot be written.
        """
        path = _with_known_suffix(path)
        with whole_file(path) as temporary:
            if path.suffix == ".nc":
                self.to_xarray().to_netcdf(temporary)
            else:
                about = json.dumps({"kind": type(self).__name__, "axes": [*self.axes], **self._about()})
                arrays: dict[str, Any] = {f"axis_{name}": values for name, values in self.axes.items()}
                arrays |= {name: getattr(self, name) for name in self.trailing} | self._stored_coordinates()
                np.savez_compressed(temporary, about=np.array(about), **arrays)
        return path

    def _about(self) -> dict[str, Any]:
        """All that is no array, as plain JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self._arrays()}  # type: ignore

    def _stored_coordinates(self) -> dict[str, np.ndarray]:
        """Those coordinates that are fields."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name in self.coordinates}  # type: ignore

    def _arrays(self) -> set[str]:
        return {"axes", *self.trailing, *self.coordinates}


def load(path: str | os.PathLike[str]) -> Any:
    """Read back what the ``save`` of a result (`Sweep`, `SpectrumSweep`, `Remedies`) wrote.

    Raises:
        ValueError: a suffix other than ``.npz`` and ``.nc``, or a file that holds no result.
        FileNotFoundError: there is no such file.
    """
    path = _with_known_suffix(path)
    if path.suffix == ".nc":
        with _xarray().open_dataset(path) as dataset:
            data = dataset.load()
        if "kind" not in data.attrs:
            raise ValueError(f"path must hold a saved result, got {path}")
        kind = Result.kinds[data.attrs.pop("kind")]
        names = [*data[next(iter(kind.trailing))].dims]
        about = {name: json.loads(value) for name, value in data.attrs.items()}
        axes = {str(n): data[n].values for n in names[1 : len(names) - len(next(iter(kind.trailing.values())))]}
        arrays = {f.name: data[f.name].values for f in fields(kind) if f.name in data and f.name not in axes}
        return kind(axes=axes, **arrays, **about)
    with np.load(path) as file:
        if "about" not in file:
            raise ValueError(f"path must hold a saved result, got {path}")
        about = json.loads(str(file["about"]))
        kind = Result.kinds[about.pop("kind")]
        axes = {name: file[f"axis_{name}"] for name in about.pop("axes")}
        arrays = {f.name: file[f.name] for f in fields(kind) if f.name in file}
        return kind(axes=axes, **arrays, **about)


@dataclass(frozen=True)
class Sweep(Result):
    """What `vgjax.sweep` measured. All logarithms are natural; -inf is a true zero.

    Attributes:
        axes: the swept scales, in order: name -> values, shape ``(points,)``.
        log_gain: ln of the root mean square over random directions u of ||J_{l<-0} u|| / ||u||, shape ``(seed, *axes,
            depth + 1)``.
        log_mean_square: ln of the mean square of the state s_l, same shape.
        first_inexact_layer: first layer whose state the activation does not cover, depth + 1 if none, shape ``(seed, *axes)``.
        state_size: units of a state.
        fixed: the scales that were not swept: name -> value.
        provenance: network, key, versions, dtype, device, chunk size: plain JSON values.
    """

    trailing: ClassVar[dict[str, tuple[str, ...]]] = {
        "log_gain": ("depth",),
        "log_mean_square": ("depth",),
        "first_inexact_layer": (),
    }

    axes: dict[str, np.ndarray]
    log_gain: np.ndarray
    log_mean_square: np.ndarray
    first_inexact_layer: np.ndarray
    state_size: int
    fixed: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def coordinates(self) -> dict[str, np.ndarray]:
        """Every depth."""
        return {"depth": np.arange(self.depth + 1)}

    @property
    def depth(self) -> int:
        """L, the number of blocks."""
        return self.log_gain.shape[-1] - 1

    @property
    def seeds(self) -> int:
        """How many independent draws."""
        return self.log_gain.shape[0]

    @property
    def mean_log_gain(self) -> np.ndarray:
        """Mean over seeds of the log gain (quenched: what a typical network does), shape ``(*axes, depth + 1)``."""
        return self.log_gain.mean(axis=0)

    @property
    def standard_error(self) -> np.ndarray:
        """Standard error of `mean_log_gain`; NaN for a single seed, and where some seed's gradient is a true zero."""
        if self.seeds < 2:
            return np.full(self.log_gain.shape[1:], np.nan)
        with np.errstate(invalid="ignore"):
            return self.log_gain.std(axis=0, ddof=1) / np.sqrt(self.seeds)

    @property
    def log_mean_square_gain(self) -> np.ndarray:
        """ln of the mean over seeds of the squared gain (annealed: what chi predicts), shape ``(*axes, depth + 1)``."""
        return np.logaddexp.reduce(2 * self.log_gain, axis=0) - np.log(self.seeds)

    def rate(self, start: int | None = None) -> np.ndarray:
        """Mean over seeds of the log gain per layer, from layer ``start`` (default: half the depth, past the
        transient) to L.

        Negative: gradients vanish; positive: they explode. Half of ln chi, in theory. -inf where the gain is a true
            zero at L.

        Returns:
            Shape ``(*axes,)``.

        Raises:
            ValueError: a start that is not a layer before the last.
        """
        start = self.depth // 2 if start is None else start
        if not 0 <= start < self.depth:
            raise ValueError(f"start must lie in 0 .. {self.depth - 1}, got {start}")
        last, first = self.mean_log_gain[..., -1], self.mean_log_gain[..., start]
        return np.where(np.isneginf(last), -np.inf, last - np.where(np.isneginf(last), 0, first)) / (self.depth - start)

    def edge(self) -> np.ndarray:
        """Where along the first axis gradients stop vanishing and start exploding: the first sign change of `rate`,
        interpolated.

        Returns:
            Values of the first swept scale, of the shape of the remaining axes; NaN where there is no such change.
        """
        rate, values = self.rate(), next(iter(self.axes.values()))
        crossing = (rate[:-1] < 0) & (rate[1:] >= 0)
        i = crossing.argmax(axis=0)
        low, high = (np.take_along_axis(rate, (i + k)[None], axis=0)[0] for k in (0, 1))
        with np.errstate(invalid="ignore"):
            share = np.where(np.isfinite(low), -low / (high - low), 1)
        return np.where(
            crossing.any(axis=0), values[i] + share * (values[np.minimum(i + 1, len(values) - 1)] - values[i]), np.nan
        )

    def lost(self, dtype: str = "float32") -> np.ndarray:
        """True where a plain pass in ``dtype`` would read the gradient, or the state behind it, as 0 or not finite.

        The naive reading (the root of the sum of squares of a gradient of norm 1 pulled through those layers),
        derived from the logarithms: right to a few layers. `gradient_flow` runs the pass itself.

        Returns:
            Booleans of the shape of ``log_gain``.

        Raises:
            ValueError: a dtype other than float32, bfloat16 and float16.
        """
        lowest, highest = _EXPONENTS[known("dtype", dtype, _EXPONENTS)]
        square = 2 * self.log_gain
        # A sum of squares is 0 when its largest term is: about 2 ln n times the mean of n Gaussian ones.
        n = self.state_size
        zero = square + np.log(max(1.0, 2 * np.log(n)) / n) < lowest * np.log(2)
        infinite = square > highest * np.log(2)
        return zero | infinite | (self.log_mean_square > 2 * highest * np.log(2))


class Reading:
    """What can be read off log singular values, shape ``(..., n)`` along the last axis; all logarithms natural."""

    log_singular_values: np.ndarray

    @property
    def rank(self) -> np.ndarray:
        """How many directions are not lost, shape ``(...)``."""
        return np.isfinite(self.log_singular_values).sum(axis=-1)

    @property
    def log_frobenius(self) -> np.ndarray:
        """ln of the Frobenius norm: half of ln of the sum of s^2."""
        return np.logaddexp.reduce(2 * self.log_singular_values, axis=-1) / 2

    @property
    def log_condition(self) -> np.ndarray:
        """ln of the largest over the smallest; inf where a direction is lost."""
        values = self.log_singular_values
        return np.where(np.isneginf(values[..., -1]), np.inf, values[..., 0] - np.nan_to_num(values[..., -1]))

    @property
    def log_det(self) -> np.ndarray:
        """Their sum: ln |det J| where J is square; -inf where a direction is lost."""
        return self.log_singular_values.sum(axis=-1)

    @property
    def participation(self) -> np.ndarray:
        """(sum s^2)^2 / sum s^4: about how many directions carry the signal, from 1 to n; NaN where all are lost."""
        with np.errstate(invalid="ignore"):
            return np.exp(4 * self.log_frobenius - np.logaddexp.reduce(4 * self.log_singular_values, axis=-1))


@dataclass(frozen=True)
class Spectrum(Reading):
    """Singular values of the Jacobian of one network, at a set of depths.

    Attributes:
        depths: the m of J_{m<-l}, shape ``(depths,)``.
        log_singular_values: ln s, descending, shape ``(depths, n)``; -inf for a direction that is lost.
        condition: about the largest condition number of a single layer, unequal sizes of its columns apart: ln s is
            right to about this many roundings of the dtype.
        first_inexact_layer: as for `Push`.
    """

    depths: np.ndarray
    log_singular_values: np.ndarray
    condition: float
    first_inexact_layer: int


@dataclass(frozen=True)
class SpectrumSweep(Reading, Result):
    """What `vgjax.spectrum_sweep` measured. All logarithms are natural; -inf is a direction that is lost.

    Attributes:
        axes: the swept scales, in order: name -> values, shape ``(points,)``.
        depths: the m of J_{m<-l}, shape ``(depths,)``.
        log_singular_values: ln s, descending, shape ``(seed, *axes, depths, n)``.
        condition, first_inexact_layer: as for `Spectrum`, shape ``(seed, *axes)``.
        fixed: the scales that were not swept: name -> value.
        provenance: network, key, versions, dtype, device: plain JSON values.
    """

    trailing: ClassVar[dict[str, tuple[str, ...]]] = {
        "log_singular_values": ("depths", "index"),
        "condition": (),
        "first_inexact_layer": (),
    }

    axes: dict[str, np.ndarray]
    depths: np.ndarray
    log_singular_values: np.ndarray
    condition: np.ndarray
    first_inexact_layer: np.ndarray
    fixed: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def coordinates(self) -> dict[str, np.ndarray]:
        """The depths."""
        return {"depths": self.depths}


def nearest(values: np.ndarray, value: float) -> float:
    """The entry of a grid nearest to a value."""
    return float(values[np.abs(values - value).argmin()])


def machine() -> dict[str, Any]:
    """What ran this: versions, platform, device; JSON values."""
    import flax
    import jax

    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": f"{device.platform}: {device.device_kind}",
    }


def _with_known_suffix(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix not in (".npz", ".nc"):
        raise ValueError(f"path must end in .npz or .nc, got {str(path)!r}")
    return path


def _xarray() -> Any:
    try:
        import xarray
    except ImportError:
        raise ImportError("labelled results need xarray: pip install 'vgjax[xarray]'") from None
    return xarray
