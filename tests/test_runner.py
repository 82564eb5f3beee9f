"""Long work in pieces: what is kept is whole, what is missing is done again, and nothing else is touched."""

import contextlib
import errno
import io
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vgjax import files, memory
from vgjax.ensembles import runner

SETTINGS = {"steps": 5, "rate": 0.1, "axes": {"sigma_w": [1.0, 2.0]}}
NAMES = [f"piece-{i}" for i in range(4)]


class Work:
    """Four pieces whose numbers are their own, that count how often each was made."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def piece(self, name: str) -> runner.Arrays:
        self.made.append(name)
        rng = np.random.default_rng(NAMES.index(name))
        return {"loss": rng.normal(size=(2, 3)).astype(np.float32), "first": rng.integers(0, 9, 2)}

    def __call__(self) -> dict[str, Callable[[], runner.Arrays]]:
        return {name: lambda name=name: self.piece(name) for name in NAMES}


def assert_same(found: dict[str, runner.Arrays], expected: dict[str, runner.Arrays]) -> None:
    assert list(found) == list(expected)
    for name, piece in expected.items():
        assert list(found[name]) == list(piece)
        for key, array in piece.items():
            np.testing.assert_array_equal(found[name][key], array, strict=True)


@pytest.fixture
def whole() -> dict[str, runner.Arrays]:
    """All pieces, done in one go and kept nowhere."""
    return runner.run(Work()(), "test")


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- how work is cut ------------------------------------------------------------------------------------------------


def test_chunks_take_every_point_once_in_pieces_of_one_size() -> None:
    for points, size in itertools.product(range(1, 12), range(1, 12)):
        pieces = list(memory.chunks(points, size))
        assert {len(taken) for taken, _ in pieces} == {size}
        assert [point for taken, new in pieces for point in taken[:new]] == list(range(points))
        assert all(0 <= point < points for taken, _ in pieces for point in taken)


def test_a_chunk_fits_its_memory_and_all_are_of_equal_size() -> None:
    for points, each, budget in itertools.product((1, 7, 100, 1000), (1, 8, 33), (1, 100, 3300, 10**6)):
        size = memory.chunk_size(points, each, budget)
        assert 1 <= size <= points
        assert size == 1 or size * each <= budget
        fewest = -(-points // max(1, min(points, budget // each)))
        assert -(-points // size) == fewest  # no more chunks than there must be
        assert fewest * size - points < fewest  # and the last is filled up by less than one point a chunk


def test_a_value_made_once_is_made_once_by_all_threads() -> None:
    calls: list[int] = []

    def make() -> object:
        calls.append(1)
        time.sleep(0.02)
        return object()

    once, found = runner.Once(make), []
    threads = [threading.Thread(target=lambda: found.append(once())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len({id(value) for value in found}) == 1


def test_a_value_that_could_not_be_made_is_tried_again() -> None:
    outcomes: Iterator[Any] = iter([MemoryError(), 7])

    def make() -> int:
        outcome = next(outcomes)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    once = runner.Once(make)
    with pytest.raises(MemoryError):
        once()
    assert once() == once() == 7


# --- all pieces -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_pieces_come_back_in_the_order_of_the_work(whole: dict[str, runner.Arrays], workers: int) -> None:
    """The first takes the longest, and is the first nevertheless."""
    work = Work()
    pieces = work()
    first = pieces[NAMES[0]]
    pieces[NAMES[0]] = lambda: time.sleep(0.05) or first()
    assert_same(runner.run(pieces, "test", workers=workers), whole)
    assert sorted(work.made) == NAMES


def test_workers_work_at_once() -> None:
    """Each piece waits for the other: one after the other they would never end."""
    together = threading.Barrier(2, timeout=5)
    pieces = {name: lambda: {"number": np.array(together.wait() >= 0)} for name in "ab"}
    assert list(runner.run(pieces, "test", workers=2)) == ["a", "b"]


def test_a_bar_counts_the_pieces_on_standard_error_and_only_if_shown(capsys: pytest.CaptureFixture[str]) -> None:
    runner.run(Work()(), "the label", show=True)
    shown = capsys.readouterr()
    assert "the label:" in shown.err
    assert "0/4" in shown.err
    runner.run(Work()(), "the label", show=False)
    runner.run(Work()(), "the label")  # no terminal here
    assert capsys.readouterr() == ("", "")
    assert shown.out == ""


# --- a run that is stopped ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [RuntimeError("stop"), MemoryError(), KeyboardInterrupt(), SystemExit(1)])
def test_a_run_that_was_stopped_goes_on_where_it_was(
    tmp_path: Path, whole: dict[str, runner.Arrays], stop: BaseException
) -> None:
    work = Work()
    pieces = work()

    def stopped() -> runner.Arrays:
        raise stop

    pieces[NAMES[2]] = stopped
    with pytest.raises(type(stop)):
        runner.run(pieces, "test", checkpoint=runner.Checkpoint(tmp_path, SETTINGS))
    assert work.made[:2] == NAMES[:2]
    kept = [f"{name}.npz" for name in work.made]
    assert listed(tmp_path) == [*sorted(kept), "settings.json"]

    again = Work()
    assert_same(runner.run(again(), "test", checkpoint=runner.Checkpoint(tmp_path, SETTINGS)), whole)
    assert sorted([*work.made, *again.made]) == NAMES  # each was made once
    assert_same(
        runner.run({name: None for name in NAMES}, "test", checkpoint=runner.Checkpoint(tmp_path, SETTINGS)), whole
    )


def test_pieces_that_run_when_another_fails_are_kept_and_no_new_one_begins(tmp_path: Path) -> None:
    failed = threading.Event()
    work = Work()
    pieces = work()

    def fails() -> runner.Arrays:
        failed.set()
        raise RuntimeError("stop")

    def slow() -> runner.Arrays:
        failed.wait(5)
        time.sleep(0.1)
        return work.piece(NAMES[1])

    pieces |= {NAMES[0]: fails, NAMES[1]: slow}
    with pytest.raises(RuntimeError, match="stop"):
        runner.run(pieces, "test", checkpoint=runner.Checkpoint(tmp_path, SETTINGS), workers=2)
    assert NAMES[1] in work.made
    assert len(work.made) <= 2  # at most the one that took the place of the failed one
    assert listed(tmp_path) == [*sorted(f"{name}.npz" for name in work.made), "settings.json"]


def test_a_piece_is_in_the_folder_before_the_next_is_done(tmp_path: Path) -> None:
    """What is seen on the disk while the run goes on: whole pieces, and nothing else."""
    work, seen = Work(), []
    pieces = {name: lambda f=f: seen.append(listed(tmp_path)) or f() for name, f in work().items()}
    runner.run(pieces, "test", checkpoint=runner.Checkpoint(tmp_path, SETTINGS))
    assert seen == [[*(f"{name}.npz" for name in NAMES[:i]), "settings.json"] for i in range(4)]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_a_file_that_could_not_be_finished_is_never_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    checkpoint = runner.Checkpoint(tmp_path, SETTINGS)
    seen = []

    def half(path: Path, whole: bytes) -> None:
        with open(path, "wb") as file:
            file.write(whole[: len(whole) // 2])
        seen.append(listed(tmp_path))
        raise stop("stop")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.warns(RuntimeWarning) if stop is OSError else pytest.raises(KeyboardInterrupt):
        checkpoint.write(NAMES[0], {"loss": np.zeros(3)})
    assert f"{NAMES[0]}.npz" not in seen[0]
    assert listed(tmp_path) == ["settings.json"]
    assert checkpoint.read(NAMES[0]) is None


# --- files that are not what they should be -------------------------------------------------------------------------


def test_a_corrupt_piece_is_made_again(tmp_path: Path, whole: dict[str, runner.Arrays]) -> None:
    runner.run(Work()(), "test", checkpoint=runner.Checkpoint(tmp_path, SETTINGS))
    paths = [tmp_path / f"{name}.npz" for name in NAMES]
    good = paths[1].read_bytes()
    paths[0].write_bytes(b"")
    paths[1].write_bytes(good[: len(good) // 2])
    paths[2].write_bytes(b"no archive at all")
    work = Work()
    assert_same(runner.run(work(), "test", checkpoint=runner.Checkpoint(tmp_path, SETTINGS)), whole)
    assert work.made == NAMES[:3]
    assert paths[1].read_bytes() == good


def test_whatever_byte_of_a_piece_is_wrong_it_is_read_as_it_was_or_not_at_all(tmp_path: Path) -> None:
    checkpoint = runner.Checkpoint(tmp_path, SETTINGS)
    piece = {"loss": np.arange(3, dtype=np.float32)}
    checkpoint.write("piece", piece)
    path = tmp_path / "piece.npz"
    good = path.read_bytes()
    assert_same({"piece": checkpoint.read("piece")}, {"piece": piece})  # type: ignore[dict-item]
    broken, lost = {}, 0
    for at, byte in enumerate(good):
        path.write_bytes(good[:at] + bytes([byte ^ 1]) + good[at + 1 :])
        try:
            found = checkpoint.read("piece")
        except Exception as error:
            broken[at] = repr(error)
            continue
        lost += found is None
        if found is not None and not (list(found) == ["loss"] and np.array_equal(found["loss"], piece["loss"])):
            broken[at] = f"read as {found}"
    assert lost > 100  # most bytes count
    assert not broken


def test_a_piece_that_is_another_kind_of_file_is_made_again(tmp_path: Path) -> None:
    checkpoint = runner.Checkpoint(tmp_path, SETTINGS)
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    pickled = io.BytesIO()
    np.savez(pickled, loss=np.array([{"a": 1}], object))
    for content in (array.getvalue(), pickled.getvalue()):
        (tmp_path / "piece.npz").write_bytes(content)
        assert checkpoint.read("piece") is None
    os.remove(tmp_path / "piece.npz")
    (tmp_path / "piece.npz").mkdir()
    assert checkpoint.read("piece") is None


# --- the folder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"steps": 6}, "steps"),
        ({"rate": 0.1 + 1e-16}, "rate"),
        ({"axes": {"sigma_w": [1.0, 2.5]}}, "axes.sigma_w"),
        ({"axes": {"sigma_b": [1.0, 2.0]}, "steps": 7}, "steps, axes.sigma_w, axes.sigma_b"),
        ({"axes": None}, "axes"),
        ({"more": None}, ""),
        ({"more": 1}, "more"),
    ],
)
def test_a_folder_of_other_settings_is_refused_with_their_names(
    tmp_path: Path, changed: dict[str, Any], names: str
) -> None:
    runner.Checkpoint(tmp_path, SETTINGS).write("piece", {"loss": np.zeros(3)})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    rule = "folder must hold an earlier run of the same settings, got one that differs in "
    refused = pytest.raises(ValueError, match=f"^{rule}{names}$") if names else contextlib.nullcontext()
    with refused:
        runner.Checkpoint(tmp_path, {**SETTINGS, **changed})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_settings_are_compared_as_the_json_they_are_kept_as(tmp_path: Path) -> None:
    settings = {"shape": (2, 3), "rate": 0.1}  # a tuple comes back as a list
    runner.Checkpoint(tmp_path, settings)
    runner.Checkpoint(tmp_path, settings)
    kept = json.loads((tmp_path / "settings.json").read_text())
    assert kept.pop("digest")
    assert kept == {"shape": [2, 3], "rate": 0.1, "chunks": None}


def test_the_layout_of_an_earlier_run_holds(tmp_path: Path) -> None:
    assert runner.Checkpoint(tmp_path, SETTINGS, [[4, 2]]).layout == [[4, 2]]
    assert runner.Checkpoint(tmp_path, SETTINGS, [[8, 8], [1, 1]]).layout == [[4, 2]]


@pytest.mark.parametrize("name", ["notes.txt", "piece-0.npz", ".hidden"])
def test_a_folder_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=r"folder must be empty or hold an earlier run, got .* with other files"):
        runner.Checkpoint(tmp_path, SETTINGS)
    assert listed(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_files_beside_an_earlier_run_are_left_alone(tmp_path: Path, whole: dict[str, runner.Arrays]) -> None:
    runner.Checkpoint(tmp_path, SETTINGS)
    (tmp_path / "notes.txt").write_text("mine")
    assert_same(runner.run(Work()(), "test", checkpoint=runner.Checkpoint(tmp_path, SETTINGS)), whole)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ['{"steps": 5', '{"steps": 5}', "[]", ""])
def test_settings_that_cannot_be_read_are_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(ValueError, match=r"must hold an earlier run, got an unreadable or damaged .*settings\.json"):
        runner.Checkpoint(tmp_path, SETTINGS)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    for folder in (taken, taken / "below"):
        with pytest.raises(ValueError, match=r"folder must be a folder that can be written to, got '.*taken.*' \("):
            runner.Checkpoint(folder, SETTINGS)
    assert taken.read_text() == "a file"

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(ValueError, match=r"can be written to, got .*new' \(Read-only file system\)"):
        runner.Checkpoint(tmp_path / "new", SETTINGS)


def test_a_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    runner.Checkpoint(tmp_path / "a" / "b", SETTINGS).write("piece", {"loss": np.zeros(3)})
    assert listed(tmp_path / "a" / "b") == ["piece.npz", "settings.json"]


# --- a full disk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["savez", "replace", "fsync", "mkstemp"])
def test_on_a_full_disk_the_run_goes_on_in_memory_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, runner.Arrays], where: str
) -> None:
    checkpoint = runner.Checkpoint(tmp_path, SETTINGS)

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr({"savez": np, "mkstemp": files.tempfile}.get(where, os), where, full)
    with pytest.warns(RuntimeWarning, match="takes no more pieces .No space left on device.; the run goes on") as all_:
        found = runner.run(Work()(), "test", checkpoint=checkpoint, workers=3)
    assert len(all_) == 1
    assert_same(found, whole)
    monkeypatch.undo()
    assert listed(tmp_path) == ["settings.json"]


# --- whole files ----------------------------------------------------------------------------------------------------


def test_a_whole_file_replaces_the_old_one_only_when_it_is_done(tmp_path: Path) -> None:
    path = tmp_path / "a" / "result.txt"
    with files.whole_file(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
        assert temporary.suffix == ".txt"
    with files.whole_file(path) as temporary:
        temporary.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert listed(path.parent) == ["result.txt"]


def test_a_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_text("")
    with files.whole_file(tmp_path / "whole") as temporary:
        temporary.write_text("")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_files_written_at_once_leave_the_process_mask_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mask belongs to the whole process: two threads that change it and put it back may leave it open for good."""
    real = os.umask
    before = real(0o027)

    def slow(mask: int) -> int:
        old = real(mask)
        time.sleep(0.005)  # a thread may be stopped here at any time
        return old

    monkeypatch.setattr(os, "umask", slow)

    def write(i: int) -> None:
        time.sleep(0.002 * i)
        with files.whole_file(tmp_path / f"{i}.txt") as temporary:
            temporary.write_text("")

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = real(before)
    modes = {oct((tmp_path / f"{i}.txt").stat().st_mode & 0o777) for i in range(4)}
    assert oct(left) == oct(0o027)
    assert modes == {oct(0o640)}
