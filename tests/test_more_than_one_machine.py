"""The page "More than one machine": its scripts run, its numbers are the benchmark's, its links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import pytest

import vgjax as vg
from vgjax import cli

# Of processes that were killed, pipes and sockets are left to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
COMPUTES = True
"""Other processes optimize what they compile."""

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "more_than_one_machine.md"
SCRIPTS = ROOT / "docs" / "scripts"


def test_links_and_numbers_are_those_that_are_there() -> None:
    text = PAGE.read_text()
    links = re.findall(r"\]\((?!http)([^)]+)\)", text)
    assert {f"scripts/{path.name}" for path in SCRIPTS.glob("*.py")} == set(links)
    assert run_path(str(ROOT / "docs" / "costs.py"))["table"]() in text, "run: python docs/costs.py --write"


def test_several_devices(tmp_path: Path) -> None:
    code = "import several_gpus as s; print(s.main(width=8, points=3).provenance['devices'])"
    flags = "--xla_force_host_platform_device_count=3"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": f"{SCRIPTS}:{ROOT}"}
    said = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert said == "on 3 x cpu\n3\n"


def test_processes(tmp_path: Path) -> None:
    """The page's own lines, as a script."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    head = "import jax, numpy as np\nimport vgjax as vg\nnet, x, key = vg.mlp(width=4, depth=2, inputs=3), np.ones(3), "
    script = tmp_path / "script.py"
    script.write_text(f"{head}jax.random.key(0)\nsigma_w = [0.5, 1.5]\n{code}        print(result)\n")
    said = subprocess.check_output(
        [sys.executable, str(script)], text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert said.startswith("<gains of mlp(tanh, width 4, depth 2, inputs 3, outputs 1) over 64 draws, 2 sigma_w")


def test_a_dask_cluster(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 50}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        found = run_path(str(SCRIPTS / "dask_cluster.py"))["main"](client, str(tmp_path), steps=2)
    assert found.missing_points == 0
    assert found.loss.shape == (2, 4, 6, 2)
    assert vg.collect(tmp_path) == found


def test_a_job_array(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main, folder, out = (
        run_path(str(SCRIPTS / "job_array.py"))["main"],
        str(tmp_path / "run"),
        str(tmp_path / "out.npz"),
    )
    for i in (1, 0):
        assert str(main(folder, (i, 2), width=4)).startswith(f"{(2 - i) * 16} of 32 pieces done")
    assert cli.main(["status", folder]) == cli.main(["collect", folder, out]) == 0
    assert vg.load(out).log_gain.shape == (32, 24, 24, 101)
    assert np.isfinite(vg.load(out).log_gain).all()
    capsys.readouterr()


def test_a_job_array_by_submitit(tmp_path: Path) -> None:
    """Whose processes are of this machine, where there is no SLURM; as a script, whose functions travel."""
    pytest.importorskip("submitit")
    command = [sys.executable, str(SCRIPTS / "with_submitit.py"), str(tmp_path / "run"), "2", "4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    said = subprocess.check_output(command, text=True, env=environment)
    assert said.count("of 32 pieces done") == 2
    run_path(str(SCRIPTS / "job_array.py"))["main"](str(tmp_path / "other"), (0, 1), width=4)
    assert vg.collect(tmp_path / "run") == vg.collect(tmp_path / "other")


def test_without_an_accelerator_its_benchmark_says_so() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_device.py")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    said = subprocess.check_output(command, text=True, env=environment)
    assert said == "there is no accelerator here: nothing to compare the CPU with\n"
    code = "import bench_device; print(len(list(bench_device.cases())))"  # its networks can be made
    environment["PYTHONPATH"] += f":{ROOT / 'benchmarks'}"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment) == "30\n"
