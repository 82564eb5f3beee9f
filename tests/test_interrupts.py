"""The command line stopped at any time: one sentence, no traceback, and its files whole or not there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vgjax import cli, files

SIZES = ("--points", "12", "--width", "32", "--depth", "20", "--seeds", "2", "--quiet")
NAMES = {"map.npz", "map.png", "map.pdf", "profile.png", "profile.pdf"}
# What runs these tests may ignore interrupts, and its children with it.
AS_A_MODULE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
print("up", flush=True)
os.execv(sys.executable, [sys.executable, "-m", "vgjax", *sys.argv[1:]])
"""
AS_A_SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[0] = "/bin/vgjax"
import vgjax.interrupts
print("up", flush=True)
from vgjax.cli import main
sys.exit(main())
"""
# Python's own start, before the library's first line, cannot be covered: a module is interrupted from .5 s on.
QUICK = [(AS_A_SCRIPT, 0.0), (AS_A_SCRIPT, 0.05), (AS_A_SCRIPT, 0.3), (AS_A_MODULE, 1.0), (AS_A_SCRIPT, 3.0),
         (AS_A_MODULE, 6.0)]  # fmt: skip
SLOW = [(how, i / 2) for i in range(1, 17) for how in (AS_A_SCRIPT, AS_A_MODULE)]


@pytest.mark.parametrize(
    ("how", "delay"),
    [*QUICK, *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW)],
    ids=lambda value: None if isinstance(value, float) else "script" if value == AS_A_SCRIPT else "module",
)
def test_an_interrupt_at_any_time_is_one_sentence(tmp_path: Path, how: str, delay: float) -> None:
    """While Python imports, traces, compiles, runs, draws; where it comes too late the files are whole."""
    out = tmp_path / "out"
    environment = {name: value for name, value in os.environ.items() if "CACHE" not in name}  # it shall compile
    command = [sys.executable, "-c", how, "map", *SIZES, "--out", str(out)]
    with subprocess.Popen(command, env=environment, text=True, stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    if process.returncode == 0:
        assert {path.name for path in out.iterdir()} == NAMES
    else:
        assert (process.returncode, said) == (130, "vgjax: stopped; nothing was written\n")
        assert not out.exists()


def test_other_processes_keep_their_interrupts() -> None:
    code = "import signal, sys, vgjax; sys.exit(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)"
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    assert subprocess.run([sys.executable, "-c", start + code], check=False).returncode == 0


# --- a set of files -------------------------------------------------------------------------------------------------

# The library's own first line, which imports all of it, takes seconds; each of these processes needs but one room.
WRITE = """
import os, sys, types
package = types.ModuleType("vgjax")
package.__path__ = [sys.argv[1]]
sys.modules["vgjax"] = package
from vgjax import files, interrupts
from pathlib import Path
left = int(sys.argv[3])
def count(event, _):
    global left
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "shutil.rmtree"):
        left -= 1
        if left == -1:
            interrupts.leave() if sys.argv[5:] else os._exit(9)
folder = files.writable_folder(sys.argv[2])
sys.addaudithook(count)
with files.whole_set(folder, "last") as new:
    for name in ("last", "a", "b"):
        with files.whole_file(new / name) as path:
            path.write_text(sys.argv[4])
    if sys.argv[5:]:
        left = 1000  # from here on the command line ignores interrupts
"""


def _write(folder: Path, steps: int, *more: str) -> int:
    """The exit status of a process that writes a set of files and is ended at its step of that number."""
    command = [sys.executable, "-c", WRITE, str(Path(files.__file__).parent), str(folder), str(steps), *more]
    return subprocess.run(command, check=False, capture_output=True).returncode


def test_a_set_interrupted_at_any_step_leaves_neither_files_nor_the_folders_made_for_it(tmp_path: Path) -> None:
    for steps in range(1000):
        if not (status := _write(tmp_path / "new" / "out", steps, "text", "interrupted")):
            break
        assert (status, list(tmp_path.iterdir())) == (130, [])
    assert steps > 10
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == {"last", "a", "b"}


@pytest.mark.parametrize("before", [False, True])
def test_a_set_killed_at_any_step_is_whole_or_not_there_and_the_next_one_cleans_up(
    tmp_path: Path, before: bool
) -> None:
    folder = tmp_path / "out"
    if before:
        assert _write(folder, 1000, "old") == 0
        (folder / "foreign").write_text("mine")
        (folder / ".vgjax-notes").write_text("mine")
    seen: set[str] = set()
    for steps in range(1000):
        killed = _write(folder, steps, str(steps))
        found = {path.name: path.read_text() for path in folder.glob("*") if path.is_file()} if folder.exists() else {}
        if "last" in found:
            assert found["a"] == found["b"] == found["last"]
            seen.add(found["last"])
        assert not before or (found["foreign"], found[".vgjax-notes"]) == ("mine", "mine")
        if not killed:
            break
    assert killed == 0
    assert ("old" in seen) == before
    new = sorted(int(text) for text in seen - {"old"})
    assert new[0] > 15
    assert new == list(range(new[0], steps + 1))  # from the last file's step on there is nothing but cleaning up
    left = {path.name for path in folder.iterdir()} - {"foreign", ".vgjax-notes"}
    assert left == {"last", "a", "b"}


def test_a_temporary_of_a_process_that_runs_is_left_alone(tmp_path: Path) -> None:
    with files.whole_file(tmp_path / "mine") as mine:
        other = tmp_path / f".vgjax-{files._HERE}-{os.getppid()}-x.npz"
        other.write_text("being written")
        files.writable_folder(tmp_path)
        assert mine.exists()
        assert other.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"mine", other.name}


def test_a_map_that_cannot_be_written_is_one_sentence_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    small = ("--points", "3", "--width", "8", "--depth", "4", "--seeds", "2", "--quiet")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "map.png").mkdir()
    assert cli.main(["map", *small, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"vgjax: '{tmp_path / 'map.png'}' must be a file or missing, got a folder\n"
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "map.png"}
    (tmp_path / "map.png").rmdir()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    assert cli.main(["map", *small, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "vgjax: [Errno 28] No space left on device\n"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
