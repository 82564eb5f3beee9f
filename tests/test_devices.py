"""Several devices share the points of a piece: the same results, no device waits for another, and clear refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import vgjax as vg
from vgjax import memory
from vgjax.ensembles.sweep import MEASUREMENTS

ONE_BY_ONE = {"spectra", "lyapunov"}
"""Measurements that take points one after the other: the program of a point is the same on any number of devices."""


@pytest.fixture(scope="module")
def on_eight() -> dict[str, Any]:
    """By measurement."""
    script = Path(__file__).parent / "on_eight_devices.py"
    return json.loads(subprocess.check_output([sys.executable, str(script)], env=dict(os.environ)))


def test_eight_devices_give_what_one_gives_for_every_measurement(on_eight: dict[str, Any]) -> None:
    """To the bit where points are taken one by one; to rounding where eight devices make smaller matrix products."""
    assert set(MEASUREMENTS) < set(on_eight)
    assert {name for name, found in on_eight.items() if found["difference"] > 1e-6} == set()
    assert {name for name in ONE_BY_ONE if on_eight[name]["difference"]} == set()


def test_the_devices_work_apart(on_eight: dict[str, Any]) -> None:
    """No collective in any program; left alone, the compiler puts some in."""
    for name, found in on_eight.items():
        *all_devices, one = found["partitions"]
        assert all(all_devices), name
        assert not one, name
        assert found["collectives"] == [], name
    assert on_eight["gains"]["left_alone"]
    assert on_eight["trainings"]["left_alone"]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("a", "b"), r"^mesh must have one axis, or one that is called 'points', got axes \('a', 'b'\)$"),
        ((), r"^mesh must have one axis, or one that is called 'points', got axes \(\)$"),
    ],
)
def test_a_mesh_without_an_axis_for_points_is_refused(names: tuple[str, ...], sentence: str) -> None:
    mesh = Mesh(np.array(jax.devices()[:1]).reshape([1] * len(names)), names)
    with pytest.raises(ValueError, match=sentence):
        vg.sweep(vg.mlp(width=4, depth=2, inputs=3), np.ones(3), key=jax.random.key(0), mesh=mesh)


@pytest.mark.parametrize("names", [("any",), ("points", "other"), ("other", "points")])
def test_a_mesh_of_one_device_changes_no_bit(names: tuple[str, ...]) -> None:
    mesh = Mesh(np.array(jax.devices()[:1]).reshape([1] * len(names)), names)
    network, given = vg.mlp(width=4, depth=2, inputs=3), {"key": jax.random.key(0), "sigma_w": [0.5, 1.0, 1.5]}
    found, expected = (vg.sweep(network, np.ones(3), mesh=each, **given) for each in (mesh, None))
    np.testing.assert_array_equal(found.log_gain, expected.log_gain)


def test_a_mesh_beside_an_executor_is_refused() -> None:
    from concurrent.futures import ThreadPoolExecutor

    mesh = Mesh(np.array(jax.devices()[:1]), ("points",))
    with ThreadPoolExecutor() as executor, pytest.raises(ValueError, match=r"^mesh must be left out where an executor"):
        vg.sweep(vg.mlp(width=4, depth=2, inputs=3), np.ones(3), key=jax.random.key(0), mesh=mesh, executor=executor)


class Device:
    """An accelerator that says how much memory it has, if it does."""

    def __init__(self, stats: dict[str, int] | None, platform: str = "gpu"):
        self.stats, self.platform = stats, platform

    def memory_stats(self) -> dict[str, int] | None:
        """As JAX's devices do."""
        return self.stats

    def devices(self) -> list["Device"]:
        """As an array's."""
        return [self]


@pytest.mark.parametrize(
    ("device", "budget"),
    [
        (Device({"bytes_limit": 2**37, "bytes_in_use": 5}), 2**35),
        (Device({"bytes_in_use": 5}), memory.MEMORY),
        (Device(None), memory.MEMORY),
        (Device({"bytes_limit": 2**37}, "cpu"), memory.MEMORY),
    ],
)
def test_pieces_follow_the_memory_of_the_device(monkeypatch: pytest.MonkeyPatch, device: Device, budget: int) -> None:
    monkeypatch.setattr(memory.jax, "device_put", lambda _: device)
    assert memory.of_device() == budget
