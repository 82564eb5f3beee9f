"""Long work in pieces: what is kept is whole, what is missing is done again, and nothing else is touched."""

import contextlib
import errno
import gc
import io
import itertools
import json
import os
import pickle
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vgjax import files, memory
from vgjax.ensembles import runner
from vgjax.ensembles.folder import Checkpoint

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


def run(
    pieces: dict[str, Callable[[], runner.Arrays]], checkpoint: Checkpoint | None = None, **options: Any
) -> dict[str, Any]:
    """All pieces by name; those that the checkpoint holds are read, and the others kept in it."""
    kept = {name: found for name in pieces if checkpoint and (found := checkpoint.read(name)) is not None}
    missing = (name for name in pieces if name not in kept)
    begin = runner.in_this_process(lambda name: pieces[name]())
    done = runner.run(missing, begin, lambda name, made: checkpoint and checkpoint.write_or_warn(name, made), **options)
    return {**kept, **dict(done)}


def assert_same(found: dict[str, runner.Arrays], expected: dict[str, runner.Arrays]) -> None:
    assert sorted(found) == sorted(expected)
    for name, piece in expected.items():
        assert list(found[name]) == list(piece)
        for key, array in piece.items():
            np.testing.assert_array_equal(found[name][key], array, strict=True)


@pytest.fixture
def whole() -> dict[str, runner.Arrays]:
    """All pieces, done in one go and kept nowhere."""
    return run(Work()())


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
def test_every_piece_is_done_once(whole: dict[str, runner.Arrays], workers: int) -> None:
    """The first takes the longest."""
    work = Work()
    pieces = work()
    first = pieces[NAMES[0]]
    pieces[NAMES[0]] = lambda: time.sleep(0.05) or first()
    assert_same(run(pieces, workers=workers), whole)
    assert sorted(work.made) == NAMES


def test_workers_work_at_once() -> None:
    """Each piece waits for the other: one after the other they would never end."""
    together = threading.Barrier(2, timeout=5)
    pieces = {name: lambda: {"number": np.array(together.wait() >= 0)} for name in "ab"}
    assert sorted(run(pieces, workers=2)) == ["a", "b"]


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_pieces_are_asked_for_than_keep_the_workers_busy(workers: int) -> None:
    """A million would be held in memory."""
    asked, most = 0, 0

    def work() -> Iterator[int]:
        nonlocal asked
        for i in range(100):
            asked += 1
            yield i

    begin = runner.in_this_process(lambda i: {"number": np.array(i)})
    for done, _ in enumerate(runner.run(work(), begin, lambda *_: None, workers=workers)):
        most = max(most, asked - done)
    assert asked == 100
    assert most <= 2 * workers


def test_a_bar_counts_on_standard_error_and_only_if_shown(capsys: pytest.CaptureFixture[str]) -> None:
    list(runner.progress(NAMES, 4, "the label", show=True))
    shown = capsys.readouterr()
    assert "the label:" in shown.err
    assert "0/4" in shown.err
    list(runner.progress(NAMES, 4, "the label", show=False))
    list(runner.progress(NAMES, 4, "the label"))  # no terminal here
    assert capsys.readouterr() == ("", "")
    assert shown.out == ""


# --- pieces that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("error", [RuntimeError("stop"), MemoryError(), StopIteration(), TimeoutError()])
def test_a_piece_that_fails_twice_is_said_to_and_all_others_are_done(
    whole: dict[str, runner.Arrays], workers: int, error: Exception
) -> None:
    work, tried = Work(), []

    def fails() -> runner.Arrays:
        tried.append(1)
        raise error

    found = run({**work(), NAMES[1]: fails}, workers=workers)
    failed = found.pop(NAMES[1])
    assert (failed.error, failed.attempts, len(tried)) == (error, 2, 2)
    assert "in fails" in failed.traceback
    assert failed.without_frames().error.__traceback__ is None
    assert_same(found, {name: a for name, a in whole.items() if name != NAMES[1]})


@pytest.mark.parametrize("workers", [1, 3])
def test_a_piece_that_fails_once_is_done_like_the_others(whole: dict[str, runner.Arrays], workers: int) -> None:
    work = Work()
    pieces, errors = work(), iter([RuntimeError("the network is away")])
    real = pieces[NAMES[2]]

    def at_first() -> runner.Arrays:
        for error in errors:
            raise error
        return real()

    assert_same(run(pieces | {NAMES[2]: at_first}, workers=workers), whole)


class Silent(Exception):
    """Of a user, with a fault of its own."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("one\ntwo"), "ValueError: one"),
        (MemoryError(), "MemoryError"),
        (Silent(), "Silent: what it says cannot be read"),
    ],
)
def test_an_error_is_said_in_one_line(error: Exception, said: str) -> None:
    assert runner.Failed.of(error).said == said
    travelled = pickle.loads(pickle.dumps(runner.Failed.of(error, travels=True)))
    assert said in travelled.said


def test_an_error_keeps_nothing_alive() -> None:
    """Frames hold what they computed with."""
    large = np.zeros(10)
    alive = weakref.ref(large)

    def fails(_: int) -> runner.Arrays:
        mine = alive()
        try:
            raise KeyError(len(mine))  # type: ignore[arg-type]
        except KeyError as error:
            raise ValueError("stop") from error

    ((_, failed),) = runner.run([0], runner.in_this_process(fails), lambda *_: None)
    failed = failed.without_frames()
    del large
    gc.collect()
    assert alive() is None
    assert "KeyError" in failed.traceback


class Strange:
    """An executor that returns what is no future."""

    def submit(self, *_: Any) -> None:
        """Nothing."""


def test_executors_that_take_no_pieces_are_said_to() -> None:
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    for executor in (closed, Strange()):
        done = runner.run([0], runner.in_this_process(lambda _: {}), lambda *_: None, executor=executor)
        with pytest.raises(
            RuntimeError, match=r"^executor must (take pieces, got one that does not: cannot schedule|ret)"
        ):
            next(done)


def test_a_piece_that_an_executor_calls_off_is_one_that_failed() -> None:
    class Calls(ThreadPoolExecutor):
        def submit(self, *_: Any, **__: Any) -> Any:
            future: Any = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    with Calls(1) as executor:
        found = list(runner.run([0], runner.in_this_process(lambda _: {}), lambda *_: None, executor=executor))
    assert [failed.said for _, failed in found] == ["CancelledError"]


# --- a run that is stopped ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(1), runner.Refused("another version")])
def test_a_run_that_was_stopped_goes_on_where_it_was(
    tmp_path: Path, whole: dict[str, runner.Arrays], stop: BaseException, workers: int
) -> None:
    work = Work()
    pieces = work()

    def stopped() -> runner.Arrays:
        raise stop

    pieces[NAMES[2]] = stopped
    with pytest.raises(type(stop)):
        run(pieces, Checkpoint(tmp_path, SETTINGS), workers=workers)
    assert sorted(work.made)[:2] == NAMES[:2]
    assert listed(tmp_path) == [*sorted(f"{name}.npz" for name in work.made), "settings.json"]

    again = Work()
    assert_same(run(again(), Checkpoint(tmp_path, SETTINGS)), whole)
    assert sorted([*work.made, *again.made]) == NAMES  # each was made once
    assert_same(run(dict.fromkeys(NAMES), Checkpoint(tmp_path, SETTINGS)), whole)


def test_whoever_stops_reading_leaves_what_is_done_and_no_new_piece_begins(tmp_path: Path) -> None:
    """Those that are being made when it stops are kept."""
    checkpoint, made = Checkpoint(tmp_path, SETTINGS), []

    def piece(i: int) -> runner.Arrays:
        made.append(str(i))
        time.sleep(0.1)
        return {"number": np.array(i)}

    done = runner.run(range(100), runner.in_this_process(piece), lambda i, a: checkpoint.write(str(i), a), workers=3)
    next(done)
    done.close()
    assert 3 <= len(made) <= 6
    assert listed(tmp_path) == [*sorted(f"{name}.npz" for name in made), "settings.json"]


def test_a_piece_is_in_the_folder_before_the_next_is_done(tmp_path: Path) -> None:
    """What is seen on the disk while the run goes on: whole pieces, and nothing else."""
    work, seen = Work(), []
    pieces = {name: lambda f=f: seen.append(listed(tmp_path)) or f() for name, f in work().items()}
    run(pieces, Checkpoint(tmp_path, SETTINGS))
    assert seen == [[*(f"{name}.npz" for name in NAMES[:i]), "settings.json"] for i in range(4)]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_a_file_that_could_not_be_finished_is_never_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    checkpoint = Checkpoint(tmp_path, SETTINGS)
    seen = []

    def half(path: Path, whole: bytes) -> None:
        with open(path, "wb") as file:
            file.write(whole[: len(whole) // 2])
        seen.append(listed(tmp_path))
        raise stop("stop")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(stop):
        checkpoint.write(NAMES[0], {"loss": np.zeros(3)})
    assert f"{NAMES[0]}.npz" not in seen[0]
    assert listed(tmp_path) == ["settings.json"]
    assert checkpoint.read(NAMES[0]) is None


# --- files that are not what they should be -------------------------------------------------------------------------


def test_a_corrupt_piece_is_made_again(tmp_path: Path, whole: dict[str, runner.Arrays]) -> None:
    run(Work()(), Checkpoint(tmp_path, SETTINGS))
    paths = [tmp_path / f"{name}.npz" for name in NAMES]
    good = paths[1].read_bytes()
    paths[0].write_bytes(b"")
    paths[1].write_bytes(good[: len(good) // 2])
    paths[2].write_bytes(b"no archive at all")
    work = Work()
    assert_same(run(work(), Checkpoint(tmp_path, SETTINGS)), whole)
    assert work.made == NAMES[:3]
    assert paths[1].read_bytes() == good


def test_whatever_byte_of_a_piece_is_wrong_it_is_read_as_it_was_or_not_at_all(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, SETTINGS)
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
    checkpoint = Checkpoint(tmp_path, SETTINGS)
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
    Checkpoint(tmp_path, SETTINGS).write("piece", {"loss": np.zeros(3)})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    rule = "folder must hold an earlier run of the same settings, got one that differs in "
    refused = pytest.raises(ValueError, match=f"^{rule}{names}$") if names else contextlib.nullcontext()
    with refused:
        Checkpoint(tmp_path, {**SETTINGS, **changed})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_settings_are_compared_as_the_json_they_are_kept_as(tmp_path: Path) -> None:
    settings = {"shape": (2, 3), "rate": 0.1}  # a tuple comes back as a list
    Checkpoint(tmp_path, settings)
    Checkpoint(tmp_path, settings)
    kept = json.loads((tmp_path / "settings.json").read_text())
    assert kept.pop("digest")
    assert kept == {"shape": [2, 3], "rate": 0.1, "chunks": None, "outline": None}


def test_the_layout_of_an_earlier_run_holds(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path, SETTINGS, [[4, 2]]).layout == [[4, 2]]
    assert Checkpoint(tmp_path, SETTINGS, [[8, 8], [1, 1]]).layout == [[4, 2]]


@pytest.mark.parametrize("name", ["notes.txt", "piece-0.npz", ".hidden"])
def test_a_folder_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=r"folder must be empty or hold an earlier run, got .* with other files"):
        Checkpoint(tmp_path, SETTINGS)
    assert listed(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_files_beside_an_earlier_run_are_left_alone(tmp_path: Path, whole: dict[str, runner.Arrays]) -> None:
    Checkpoint(tmp_path, SETTINGS)
    (tmp_path / "notes.txt").write_text("mine")
    assert_same(run(Work()(), Checkpoint(tmp_path, SETTINGS)), whole)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ['{"steps": 5', '{"steps": 5}', "[]", ""])
def test_settings_that_cannot_be_read_are_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(ValueError, match=r"must hold an earlier run, got an unreadable or damaged .*settings\.json"):
        Checkpoint(tmp_path, SETTINGS)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    for folder in (taken, taken / "below"):
        with pytest.raises(ValueError, match=r"folder must be a folder that can be written to, got '.*taken.*' \("):
            Checkpoint(folder, SETTINGS)
    assert taken.read_text() == "a file"

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(ValueError, match=r"can be written to, got .*new' \(Read-only file system\)"):
        Checkpoint(tmp_path / "new", SETTINGS)


def test_a_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "a" / "b", SETTINGS).write("piece", {"loss": np.zeros(3)})
    assert listed(tmp_path / "a" / "b") == ["piece.npz", "settings.json"]


# --- a full disk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["savez", "replace", "fsync", "mkstemp"])
def test_on_a_full_disk_the_run_goes_on_in_memory_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, runner.Arrays], where: str
) -> None:
    checkpoint = Checkpoint(tmp_path, SETTINGS)

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr({"savez": np, "mkstemp": files.tempfile}.get(where, os), where, full)
    with pytest.warns(RuntimeWarning, match="takes no more pieces .No space left on device.; the run goes on") as all_:
        found = run(Work()(), checkpoint, workers=3)
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
