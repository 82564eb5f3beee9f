"""Compiled programs are kept by commands and scripts, found again, and never taken from another version."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from vgjax import cli, compilation_cache

PROGRAM = """
import jaxlib.version
jaxlib.version.__version__ += {suffix!r}
import jax, jax.numpy as jnp
from vgjax.compilation_cache import keep_programs
keep_programs()
print(float(jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))(jnp.arange(3.0))))
"""


def run(folder: Path, suffix: str = "", **environment: str) -> tuple[str, str, set[str]]:
    """What a process that compiles one program says, and the programs that are kept behind it."""
    cleared = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(suffix=suffix)],
        env={**cleared, compilation_cache.SWITCH: str(folder), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    kept = {path.name for path in folder.rglob("*-cache")} if folder.is_dir() else set()
    return ran.stdout, ran.stderr, kept


def test_a_second_process_finds_what_the_first_has_compiled(tmp_path):
    said, _, first = run(tmp_path)
    again, _, second = run(tmp_path)
    assert first
    assert (said, first) == (again, second)


def test_what_another_version_has_left_is_not_used(tmp_path):
    said, _, first = run(tmp_path)
    for path in tmp_path.rglob("*-cache"):
        path.write_bytes(b"of another version")  # would be read, if it were looked at
    again, complaint, both = run(tmp_path, suffix="+other")
    assert said == again
    assert "Error reading" not in complaint
    assert len(both) == 2 * len(first)


def test_a_folder_that_cannot_be_written_to_costs_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    said, complaint, _ = run(tmp_path / "file" / "below")
    assert float(said) == pytest.approx((np.sin(2) + np.sin(4)) / 2, rel=1e-5)
    assert complaint.startswith("vgjax: compiled programs are not kept: ")
    assert complaint.count("\n") == 1


def test_off_keeps_nothing_and_a_folder_of_the_users_own_stays(tmp_path):
    said, complaint, _ = run(tmp_path, **{compilation_cache.SWITCH: "off"})
    assert (bool(said), complaint, list(tmp_path.iterdir())) == (True, "", [])
    mine = tmp_path / "mine"
    run(tmp_path / "ours", JAX_COMPILATION_CACHE_DIR=str(mine), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    assert list(mine.glob("*-cache"))
    assert not (tmp_path / "ours").exists()


def test_the_library_itself_leaves_the_configuration_alone():
    code = "import jax, vgjax as vg\nbefore = jax.config.values.copy()\n"
    code += "vg.init(jax.random.key(0), vg.mlp(width=2, depth=1, inputs=2))\nassert jax.config.values == before"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert jax.config.jax_compilation_cache_dir == os.environ.get("JAX_COMPILATION_CACHE_DIR")


def test_a_command_keeps_programs_unless_told_not_to(monkeypatch, capsys):
    kept = []
    monkeypatch.setattr(cli, "keep_programs", lambda: kept.append(True))
    for command, calls in ((["map"], 1), (["map", "--no-cache"], 1), (["diagnose", "nowhere"], 2)):
        assert cli.main([*command, *(["--activation", "tanb"] if command[0] == "map" else [])]) == 2
        assert len(kept) == calls
    assert "must be" in capsys.readouterr().err
