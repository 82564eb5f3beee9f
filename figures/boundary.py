"""The border between training that converges and training that diverges is a fractal."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from common import SMALL, render

import vgjax as vg
from vgjax import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS, STEPS, WIDTH = (32, 20, 4) if SMALL else (256, 100, 16)
FACTORS = (30.0, 1000.0)


@dataclass(frozen=True)
class Zooms:
    """The plane of the learning rates of two layers, and two closer looks at its border."""

    sweeps: list[vg.Result]

    @property
    def dimensions(self) -> list[float]:
        """Box-counting dimension of each border."""
        return [vg.training.box_dimension(sweep.converged[0]).dimension for sweep in self.sweeps]


def compute() -> Zooms:
    """One draw of a tanh network with one hidden layer, 16 random examples, full-batch gradient descent."""
    network = vg.mlp(width=[WIDTH, 1], activation="tanh", inputs=WIDTH)
    network = replace(network, head=None)  # two kernels
    x, y = jax.random.normal(jax.random.key(1), (2, WIDTH, WIDTH))
    data = vg.data.Examples(x, y[:, :1])

    def trained(**axes: Any) -> vg.Result:
        measure = vg.trainings(data, "sgd", STEPS, batch_size=None, dtype="float64")
        return vg.sweep(network, measure=measure, key=jax.random.key(0), seeds=1, progress=True, **axes)

    rates = {"stem": np.geomspace(1, 1e4, POINTS), "blocks": np.geomspace(0.03, 3, POINTS)}
    sweeps = [trained(learning_rate=rates)]
    sweeps.append(trained(**vg.training.zoom(sweeps[-1], FACTORS[0], at=(15.1, 0.475))))
    sweeps.append(trained(**vg.training.zoom(sweeps[-1], FACTORS[1] / FACTORS[0])))
    zooms = Zooms(sweeps)
    print("dimensions", zooms.dimensions)
    return zooms


@plots.styled
def draw(zooms: Zooms) -> "Figure":
    """Three squares, each a part of the one before."""
    titles = ["the whole plane", *(f"× {factor:,.0f}" for factor in FACTORS)]
    names = [f"{title}, dimension {d:.2f}" for title, d in zip(titles, zooms.dimensions, strict=True)]
    return plots.trainability_boundary(*zooms.sweeps, titles=names)


if __name__ == "__main__":
    render("boundary", compute, draw)
