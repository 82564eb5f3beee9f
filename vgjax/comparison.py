"""Comparison: what was measured beside what infinite-width theory and its 1/n band predict for it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vgjax import activations, theory
from vgjax.activations import Activation, Elementwise
from vgjax.gradients import GradientFlow
from vgjax.initializers import Scales
from vgjax.networks import Network
from vgjax.results import Sweep
from vgjax.theory import Band

CURVE_POINTS = 201


@dataclass(frozen=True)
class Comparison:
    """Measurement and theory of the log gain, point by point; natural logarithms.

    Attributes:
        axes: the swept scales, as in the sweep.
        measured: mean over seeds of the measured log gain, shape ``(*axes, depth + 1)``.
        predicted: mean of the log gain that theory expects at that width, same shape.
        standard_error: standard deviation that theory expects of ``measured``, same shape.
        critical: the edge of chaos at infinite width: sigma_w and sigma_b along the curve, each of shape ``(points,)``;
            NaN where there is none.
        name: of the activation.
        left_out: share of points that are not compared, because some seed's gradient is a true zero or its state left
            what the activation covers.
    """

    axes: dict[str, np.ndarray]
    measured: np.ndarray
    predicted: np.ndarray
    standard_error: np.ndarray
    critical: tuple[np.ndarray, np.ndarray]
    name: str
    left_out: float

    @property
    def z(self) -> np.ndarray:
        """(measured - predicted) / standard error, shape ``(*axes, depth + 1)``; NaN where nothing is compared."""
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (self.measured - self.predicted) / self.standard_error
        return np.where(self.standard_error > 0, z, np.nan)

    @property
    def verdict(self) -> str:
        """What the z-scores at the last depth say, in one line."""
        z = self.z[..., -1]
        told = np.isfinite(z)
        if not told.any():
            return f"{self.name}: nothing to compare: no point has a finite gain and a predicted spread"
        worst = np.unravel_index(np.nanargmax(np.where(told, np.abs(z), np.nan)), z.shape)
        where = ", ".join(f"{n} = {v[i]:.3g}" for (n, v), i in zip(self.axes.items(), worst, strict=True))
        root = float(np.sqrt(np.mean(z[told] ** 2)))
        says = "agree" if root < 2 else "differ"
        left = f" ({self.left_out:.0%} of points left out)" if self.left_out else ""
        return (
            f"{self.name}: theory and measurement {says}: root mean square z {root:.2f} over {told.sum()} points at "
            f"depth {self.z.shape[-1] - 1} (1 is chance), largest {z[worst]:+.1f} at {where}{left}"
        )

    def __str__(self) -> str:
        return self.verdict


def compare(sweep: Sweep, activation: str | Activation | Elementwise | None = None) -> Comparison:
    """The sweep's log gains beside `theory.band` at the same widths, law and scales, from the measured first layer on.

    Theory starts from the mean square of h^0 that was measured (averaged over seeds), and knows nothing else of the
    measurement.

    Args:
        sweep: of a plain network (`vgjax.mlp`) over ``sigma_w``, ``sigma_b`` or both, with one tangent a draw.
        activation: only for a network with a callable of your own, of which a sweep keeps but the name.

    Returns:
        `Comparison`.

    Raises:
        ValueError: a sweep of another network, over other scales, or of several tangents; or an activation whose name
            is not enough.
    """
    about = sweep.provenance
    _check(sweep, about)
    phi = activations.get(about["activation"] if activation is None else activation)
    scales = {name: np.asarray(sweep.fixed.get(name, default), float) for name, default in _DEFAULTS.items()}
    scales |= {name: values.astype(float) for name, values in sweep.axes.items()}
    scales["sigma_b"] = scales["sigma_b"] * (about["bias_law"] != "zero")
    grid = dict(zip(sweep.axes, np.meshgrid(*(scales[name] for name in sweep.axes), indexing="ij"), strict=True))
    band = theory.band(
        phi,
        about.get("widths") or [sweep.state_size] * (sweep.depth + 1),
        **{**scales, **grid},
        law=about["law"],
        q0=np.exp(sweep.log_mean_square[..., 0].astype(float)).mean(axis=0),
    )
    whole = np.isfinite(sweep.log_gain).all(axis=0) & (sweep.left_range.min(axis=0) > sweep.depth)[..., None]
    error = np.where(whole, band.deviation / np.sqrt(sweep.seeds), np.nan)
    line = _critical(phi, scales["sigma_b"])
    return Comparison(sweep.axes, sweep.mean_log_gain, band.mean, error, line, phi.name, 1 - whole.mean())


def predicted_profile(network: Network, flow: GradientFlow, scales: Scales) -> Band:
    """What theory expects of ln ||dL/dh^l|| of `profile`, given its values at the last layer and the first state's
    size.

    The gain from layer l to L is that of `theory.band` between the two: backwards as forwards.

    Args:
        network: a plain network (`vgjax.mlp`).
        flow: of several draws, arrays with a leading axis of seeds.
        scales: those it was measured at.

    Returns:
        `theory.Band` for l = 0 ... L: mean over draws, and standard deviation of one draw.

    Raises:
        ValueError: a network with other blocks than dense ones, or scales that differ from layer to layer.
    """
    plain = network.plain
    if plain is None:
        raise ValueError(f"theory covers a plain network (vgjax.mlp), got {network!r:.200}")
    for name in _DEFAULTS:
        if np.ndim(scales.get(name, 0.0)):
            raise ValueError(f"predicted_profile takes one {name} for all layers, got one a layer")
    sigma_w, sigma_b = (float(scales.get(name, default)) for name, default in _DEFAULTS.items())
    first = float(np.exp(np.asarray(flow.log_mean_square)[..., 0].astype(float)).mean())
    bias = sigma_b * (plain.bias_law != "zero")
    band = theory.band(plain.activation, plain.widths, sigma_w, bias, law=plain.law, q0=first)
    last = np.asarray(flow.log_gradient)[..., -1].astype(float)
    spread = float(last.std(ddof=1)) if last.size > 1 else 0.0
    # Forwards a gain from n to n' units has a factor n' / n in its mean square that it has not backwards.
    sizes = np.log(np.array(plain.widths) / plain.widths[-1]) / 2
    variance = np.maximum(band.deviation[-1] ** 2 - band.deviation**2, 0)
    return Band(last.mean() + band.mean[-1] - band.mean + sizes, np.sqrt(spread**2 + variance))


_DEFAULTS = {"sigma_w": 1.0, "sigma_b": 0.0}


def _check(sweep: Sweep, about: dict[str, Any]) -> None:
    """Raise unless theory covers the sweep."""
    if "law" not in about:
        raise ValueError(f"compare needs a sweep of vgjax.mlp, got one of {about.get('network', 'an unknown network')}")
    others = [name for name in sweep.axes if name not in _DEFAULTS]
    if others:
        raise ValueError(f"compare takes sweeps over sigma_w and sigma_b, got {', '.join(others)}")
    if about.get("tangents", 1) != 1:
        raise ValueError(f"compare needs one tangent a draw, got {about['tangents']}")
    for name in _DEFAULTS:
        if np.ndim(sweep.fixed.get(name, 0.0)):
            raise ValueError(f"compare takes one {name} for all layers, got one a layer")


def _critical(phi: Activation, sigma_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The edge of chaos over the range of bias scales, finely."""
    along = np.linspace(sigma_b.min(), sigma_b.max(), CURVE_POINTS) if sigma_b.size > 1 else sigma_b.reshape(1)
    return theory.critical(phi, along.astype(float)).edge, along
