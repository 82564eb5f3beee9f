"""A comparison, point by point, and what it says in one line."""

from dataclasses import dataclass

import numpy as np

from vgjax import theory
from vgjax.values import by_content


@by_content
@dataclass(frozen=True)
class Comparison:
    """Measurement and theory of one variable, point by point; natural logarithms.

    Attributes:
        variable: what is compared.
        axes: the swept scales, as in the result.
        measured: over seeds, shape ``(*axes, depth + 1)``: of log gains and log gradients their mean, or where theory
            is of the mean square at every width (`vgjax.compare` says of which families) ln of the root mean square;
            ln of the mean square of states and of the mean of 1 - c.
        predicted: what theory expects of it, same shape.
        deviation: standard deviation of one draw, same shape: theory's for gains and gradients of plain stacks, else
            that of the draws, in the logarithm.
        seeds: draws in ``measured``.
        critical: the edge of chaos at infinite width: sigma_w and sigma_b along the curve, each of shape ``(points,)``;
            NaN where there is none.
        name: of the activation, or of the network where one activation does not say which.
        left_out: share of points that are not compared, because some seed's gradient is a true zero or its state left
            what the activation covers.
    """

    variable: str
    axes: dict[str, np.ndarray]
    measured: np.ndarray
    predicted: np.ndarray
    deviation: np.ndarray
    seeds: int
    critical: tuple[np.ndarray, np.ndarray]
    name: str
    left_out: float

    @property
    def standard_error(self) -> np.ndarray:
        """Of ``measured``, shape ``(*axes, depth + 1)``."""
        return self.deviation / np.sqrt(self.seeds)

    @property
    def bands(self) -> list[theory.Band]:
        """The prediction as one band (mean, and deviation of one draw) a point, in the order of the axes."""
        means, deviations = (a.reshape(-1, a.shape[-1]) for a in (self.predicted, self.deviation))
        return [theory.Band(*band) for band in zip(means, deviations, strict=True)]

    @property
    def z(self) -> np.ndarray:
        """(measured - predicted) / standard error, shape ``(*axes, depth + 1)``; NaN where nothing is compared."""
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (self.measured - self.predicted) / self.standard_error
        return np.where(self.standard_error > 0, z, np.nan)

    @property
    def verdict(self) -> str:
        """What the z-scores say behind all layers (of gradients: at the first), in one line."""
        layers = np.flatnonzero(np.isfinite(self.z).any(axis=tuple(range(self.z.ndim - 1))))
        layer = int(layers[0 if self.variable == "log_gradient" else -1]) if layers.size else 0
        z = self.z[..., layer]
        told = np.isfinite(z)
        if not told.any():
            return f"{self.name}: nothing to compare: no point has a finite {self.variable} and a predicted spread"
        worst = np.unravel_index(np.nanargmax(np.where(told, np.abs(z), np.nan)), z.shape)
        where = ", ".join(f"{n} = {v[i]:.3g}" for (n, v), i in zip(self.axes.items(), worst, strict=True))
        root = float(np.sqrt(np.mean(z[told] ** 2)))
        says = "agree" if root < 2 else "differ"
        left = f" ({self.left_out:.0%} of points left out)" if self.left_out else ""
        return (
            f"{self.name}: theory and measurement {says}: root mean square z {root:.2f} over {told.sum()} points at "
            f"layer {layer} (1 is chance), largest {z[worst]:+.1f}{' at ' if where else ''}{where}{left}"
        )

    def __str__(self) -> str:
        return self.verdict
