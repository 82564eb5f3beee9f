"""Every measurement on eight virtual devices and on one of them; prints a line of JSON. Run by test_devices."""

import functools
import json
import os
import re
import sys
import warnings

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np
from jax.sharding import Mesh

import vgjax as vg
from vgjax.ensembles import job

COLLECTIVES = re.compile(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast")
X = np.array([0.5, -1.0, 2.0, 0.25], np.float32)
DATA = vg.data.Examples(np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32), np.arange(24) % 3)
NET = vg.mlp(width=7, depth=3, inputs=4, outputs=3)
MEASURES = {
    "gains": (vg.gains(), (X,)),
    "streamed gains": (vg.gains(2, stream=True), (X,)),
    "gradients": (vg.gradients(), (X, 1)),
    "naive_readings": (vg.naive_readings(), (X, 1)),
    "correlations": (vg.correlations(), (X, X[::-1])),
    "spectra": (vg.spectra((1, 3)), (X,)),
    "lyapunov": (vg.lyapunov(2), (X,)),
    "frobenius": (vg.frobenius(3), (X,)),
    "first_steps": (vg.first_steps(), (X, 1)),
    "trainings": (vg.trainings(DATA, "adam", 8, batch_size=4), ()),
    "own": (vg.measurement(lambda p, s, x: {"out": vg.forward(p, s, x)[:2]}, {"out": ("unit",)}), (X,)),
}
"""Of the whole library."""

ALONE = ("gains", "lyapunov", "trainings")
"""Those that are compiled without a program for every device, too."""

# Ordered networks, eleven points: some devices have two, the last one repeats.
RUN = {"key": jax.random.key(3), "seeds": 2, "sigma_w": np.linspace(0.4, 1.0, 11)}
ONE = Mesh(np.array(jax.devices()[:1]), ("points",))


def difference(one: vg.Result, other: vg.Result) -> float:
    """The largest, relative to numbers above 1."""
    assert one.dims == other.dims
    worst = 0.0
    for name, a in one.arrays.items():
        b = other.arrays[name]
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.array_equal(np.isfinite(a), np.isfinite(b)), name
        known = np.isfinite(a)
        a, b = a[known].astype(float), b[known].astype(float)
        worst = max(worst, float(np.max(np.abs(a - b) / np.maximum(1, np.abs(a)), initial=0)))
    return worst


class Lowered:
    """The program of a piece, and what the compiler makes of the same points on the same devices if left alone."""

    def __init__(self, real):
        self.real, self.texts = real, []

    def lower(self, measure, batch, together, mesh, *arguments):
        """As a jitted function does."""
        lowered = self.real.lower(measure, batch, together, mesh, *arguments)
        self.texts = [lowered.compile().as_text()]
        if measure.name in ALONE:
            alone = jax.jit(functools.partial(job._on_one_device, measure, batch, together))
            self.texts.append(alone.lower(*arguments).compile().as_text())
        return lowered


def main() -> None:
    """Differences, collectives, partitions."""
    assert len(jax.devices()) == 8
    jax.config.update("jax_disable_most_optimizations", True)  # which takes minutes here, for milliseconds of work
    job._measure_points = lowered = Lowered(job._measure_points)
    found = {}
    for name, (measure, inputs) in MEASURES.items():
        on_all = vg.sweep(NET, *inputs, measure=measure, **RUN)
        collectives, *alone = (sorted(set(COLLECTIVES.findall(text))) for text in lowered.texts)
        partitions = ["num_partitions=8" in text for text in lowered.texts]
        on_one = vg.sweep(NET, *inputs, measure=measure, mesh=ONE, **RUN)
        partitions.append("num_partitions=8" in lowered.texts[0])
        found[name] = {
            "difference": difference(on_one, on_all),
            "collectives": collectives,
            "left_alone": alone[0] if alone else [],
            "partitions": partitions,
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
