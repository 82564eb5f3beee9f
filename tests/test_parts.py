"""One run in parts, by any number of writers, in any order: what is there is read, what is missing is said."""

import datetime
import itertools
import json
import os
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import vgjax as vg
from vgjax import cli, files
from vgjax.ensembles import assembly, folder
from vgjax.ensembles.measurements import Gains

KEY = jax.random.key(11)
X = np.array([0.5, -1.0, 2.0, 0.25], np.float32)
NETS = {"flat": vg.mlp(width=4, depth=2, inputs=4), "deep": vg.mlp(width=5, depth=4, inputs=4)}
SCHEDULES = [1.5, np.linspace(1, 2, 2)]
DATA = vg.data.Examples(np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32), np.arange(12) % 3)


def swept(network: Any = NETS, *inputs: Any, **options: Any) -> Any:
    """Three pieces a seed, the last one of a single point."""
    grid = {"sigma_w": np.linspace(0.5, 1.5, 5, dtype=np.float32)}
    two = {"memory": 2 * vg.gains().bytes_per_point(NETS["deep"])}
    return vg.sweep(network, *(inputs or (X,)), **{"key": KEY, "seeds": 2, "workers": 1, **two, **grid, **options})


CALLS: dict[str, dict[str, Any]] = {
    "networks": {},
    "one network, gradients": {"network": NETS["flat"], "inputs": (X, 0), "measure": vg.gradients()},
    "a batch": {"inputs": (np.stack([X, -X]),), "leading": "example"},
    "no axes": {"sigma_w": 1.5},
    "schedules": {"network": NETS["flat"], "sigma_w": SCHEDULES, "sigma_b": np.array([0.0, 0.1], np.float64)},
    "trainings": {
        "network": vg.mlp(width=4, depth=2, inputs=4, outputs=3),
        "inputs": (),
        "measure": vg.trainings(DATA, "sgd", 3, batch_size=4),
        "learning_rate": [0.01, 0.1],
    },
}


def called(name: str, **options: Any) -> Any:
    given = {**CALLS[name], **options}
    network, inputs = given.pop("network", NETS), given.pop("inputs", (X,))
    if name == "trainings":
        return vg.sweep(network, key=KEY, seeds=2, memory=1, sigma_w=[1.0, 1.5], **given)
    return swept(network, *inputs, **given)


# --- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_parts_in_any_order_are_the_whole(tmp_path: Path, name: str) -> None:
    """To the bit, its labels, its provenance and its data set."""
    whole = called(name, workers=2)
    for i in (2, 0, 1):
        status = called(name, folder=tmp_path, part=(i, 3), workers=1 + i % 2)
    assert status.is_complete
    found = vg.collect(tmp_path)
    assert vg.load(tmp_path) == found
    chunks = found.provenance.pop("chunks")
    assert len(chunks) == len(whole.provenance.pop("chunks"))
    assert found == whole
    assert {n: a.dtype for n, a in found.axes.items()} == {n: a.dtype for n, a in whole.axes.items()}
    assert found.to_xarray().identical(whole.to_xarray())
    assert called(name, folder=tmp_path) == vg.collect(tmp_path)


@pytest.mark.parametrize("parts", [1, 2, 5, 12, 50])
def test_parts_are_disjoint_and_nearly_equal(parts: int) -> None:
    about: dict[str, Any] = {"measure": "a", "coordinates": {}, "fixed": {}, "dims": {}, "seeds": 2}
    outline = assembly.Outline(
        axes={"a": np.arange(5)}, networks=dict.fromkeys(["x", "y"]), sizes=(2, 1), depths=(1, 9), **about
    )
    each = [list(outline.slots((i, parts))) for i in range(parts)]
    assert list(itertools.chain(*each)) == list(outline.slots())
    assert len(set(outline.slots())) == outline.pieces == 2 * (3 + 5)
    assert [len(one) for one in each] == [outline.count((i, parts)) for i in range(parts)]
    assert max(map(len, each)) - min(map(len, each)) <= 1
    assert [slot.network for slot in outline.slots()][:4] == [1, 0, 1, 0]  # in turn, the deepest first
    covered = [i for slot in outline.slots() if slot[:2] == (0, 1) for i in range(5)[outline.rows(slot)]]
    assert covered == list(range(5))


def test_more_parts_than_pieces_leave_some_nothing(tmp_path: Path, pieces: list[int]) -> None:
    for i in range(7):
        swept(NETS["flat"], seeds=1, sigma_w=1.5, folder=tmp_path, part=(i, 7))
    assert len(pieces) == 1
    assert vg.collect(tmp_path).seeds == 1


@pytest.mark.parametrize("part", [(2, 2), (-1, 2), (0, 0), (0.5, 2), (0, 1, 2), "ab"])
def test_a_part_that_is_none_is_refused(tmp_path: Path, part: Any) -> None:
    with pytest.raises(ValueError, match=r"^part must be "):
        swept(folder=tmp_path / "new", part=part)
    assert not (tmp_path / "new").exists()


def test_a_part_needs_no_memory_for_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vgjax.ensembles.sweep.of_machine", lambda: 100.0)
    with pytest.raises(ValueError, match="fits into the memory of this machine"):
        swept(folder=tmp_path)
    assert swept(folder=tmp_path, part=(0, 2)).done == 6


# --- a part of the whole --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_what_is_missing_is_nan_and_counted(tmp_path: Path, name: str) -> None:
    """Also where numbers are whole or truth values; what is there is as it will be."""
    whole = called(name, folder=tmp_path)
    lost = sorted(tmp_path.glob("0*.npz"))[1::3]
    rows = 0
    for path in lost:
        with np.load(path) as piece:
            rows += len(next(iter(piece.values())))
        path.unlink()
    found = vg.load(tmp_path)
    assert found.missing_points == rows > 0
    assert f"{rows} points missing" in repr(found)
    points = {n: a.reshape(*a.shape[: len(found.lead)], -1).shape[:-1] for n, a in found.arrays.items()}
    for variable, a in found.arrays.items():
        expected = whole.arrays[variable]
        assert a.dtype.kind == "f"
        same = (a == expected) | (np.isnan(a) & np.isnan(expected.astype(float)))
        axes = tuple(range(len(points[variable]), a.ndim))
        new = ~same.all(axis=axes)
        assert np.isnan(a[new]).all()
        assert new.sum() <= rows
    first = next(iter(found.arrays))
    lead = tuple(range(len(found.lead)))
    nothing = np.isnan(found.arrays[first]).all(axis=tuple(i for i in range(found.arrays[first].ndim) if i not in lead))
    assert nothing.sum() >= rows
    assert vg.load(found.save(tmp_path / "partial.npz")) == found
    assert found.to_xarray().identical(vg.load(found.save(tmp_path / "partial.nc")).to_xarray())
    with pytest.raises(ValueError, match=rf"^folder must hold all \d+ pieces .* without {len(lost)}: .*seed \d, point"):
        vg.collect(tmp_path)
    assert called(name, folder=tmp_path) == whole


def test_numbers_read_off_a_part_are_refused_or_nan(tmp_path: Path) -> None:
    """Trainability, where a missing training is none that failed."""
    trained = called("trainings", folder=tmp_path)
    assert np.isfinite(vg.training.best(trained)).all()
    sorted(tmp_path.glob("0*.npz"))[0].unlink()
    found = vg.load(tmp_path)
    assert np.isnan(vg.training.best(found)).any()
    with pytest.raises(ValueError, match=r"^zoom needs all points, got a result without \d of them$"):
        vg.training.zoom(found, 2.0)
    with pytest.raises(ValueError, match=r"^a trainability map needs all points, got a result without \d of them$"):
        vg.plots.trainability_map(found)
    networks = {f"{d}": vg.mlp(width=4, depth=d, inputs=4, outputs=3) for d in (1, 2)}
    vg.sweep(networks, measure=CALLS["trainings"]["measure"], key=KEY, seeds=1, folder=tmp_path / "b", part=(0, 2))
    with pytest.raises(ValueError, match=r"^a trainable depth needs all points, got a result without \d of them$"):
        vg.trainable_depth(vg.load(tmp_path / "b"))


@pytest.mark.parametrize("name", ["edge", "naive_lost", "compare", "a phase map"])
def test_what_would_not_show_a_missing_point_is_refused(tmp_path: Path, name: str) -> None:
    swept(NETS["deep"], folder=tmp_path)
    sorted(tmp_path.glob("0*.npz"))[1].unlink()
    found = vg.load(tmp_path)
    calls = {"edge": found.edge, "naive_lost": found.naive_lost}
    calls |= {"compare": lambda: vg.compare(found), "a phase map": lambda: vg.plots.phase_map(found)}
    with pytest.raises(ValueError, match=rf"^{name} needs all points, got a result without 2 of them$"):
        calls[name]()
    assert np.isnan(found.rate()).any()  # which shows it


def test_a_folder_without_any_piece_has_no_result(tmp_path: Path) -> None:
    swept(folder=tmp_path)
    for path in tmp_path.glob("0*.npz"):
        path.unlink()
    with pytest.raises(ValueError, match=r"^a result must have one piece at least, got none of 12$"):
        vg.load(tmp_path)
    with pytest.raises(ValueError, match=r"^folder must hold all 12 pieces .* without 12: .* and 2 more$"):
        vg.collect(tmp_path)


def test_a_network_that_no_file_holds_is_handed_over(tmp_path: Path) -> None:
    own = vg.mlp(width=4, depth=2, inputs=4, activation=lambda h: h**3)
    whole = swept(own, folder=tmp_path)
    assert vg.collect(tmp_path).networks == {"": None}
    assert vg.collect(tmp_path, network=own).network == own
    assert vg.collect(tmp_path, own) == whole
    other = vg.mlp(width=4, depth=2, inputs=4, activation=lambda h: h**5)
    with pytest.raises(ValueError, match=r"^network must be that of the result, got another of the same name"):
        vg.collect(tmp_path, network=other)


class Halved(Gains):
    """A finish of one's own."""

    def finish(self, arrays: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
        return {**arrays, "log_gain": arrays["log_gain"] / 2}


def test_pieces_that_only_a_user_s_code_finishes_are_read_by_the_sweep_alone(tmp_path: Path) -> None:
    whole = swept(measure=Halved(1, False))
    swept(measure=Halved(1, False), folder=tmp_path, part=(0, 1))
    for read in (vg.load, vg.collect, vg.ensembles.open_dataset):
        with pytest.raises(ValueError, match=r"^folder must hold pieces that the library can finish, got those of a "):
            read(tmp_path)
    assert vg.status(tmp_path).is_complete
    assert swept(measure=Halved(1, False), folder=tmp_path) == whole


@pytest.mark.parametrize("read", [vg.load, vg.collect, vg.status, vg.ensembles.open_dataset])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, read: Any) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"^folder must hold the run of a sweep, got .* without settings\.json$"):
        read(tmp_path)
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^folder must hold an earlier run, got an unreadable or damaged "):
        read(tmp_path)


# --- lazily ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("lost", [0, 2])
def test_a_run_is_read_piece_by_piece(tmp_path: Path, name: str, lost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same data set, of which nothing is read before it is asked for; and through zarr."""
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("dask")
    called(name, folder=tmp_path)
    for path in sorted(tmp_path.glob("0*.npz"))[:lost]:
        path.unlink()
    read, real = [], folder.read_arrays
    monkeypatch.setattr(folder, "read_arrays", lambda path, of: read.append(path) or real(path, of))
    lazily = vg.ensembles.open_dataset(tmp_path)
    assert len(read) <= 2  # for what they look like, one of each network
    expected = vg.load(tmp_path).to_xarray()
    assert lazily.load(scheduler="synchronous").identical(expected)
    pytest.importorskip("zarr")
    vg.ensembles.open_dataset(tmp_path).to_zarr(tmp_path / "all.zarr", consolidated=False, zarr_format=2)
    with xarray.open_zarr(tmp_path / "all.zarr", consolidated=False) as stored:
        for variable in expected.data_vars:
            np.testing.assert_array_equal(stored[variable].values, expected[variable].values)


def test_data_sets_read_lazily_have_chunks_that_zarr_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that end within rows of a grid, networks of several depths, one without a piece; from another folder."""
    pytest.importorskip("dask")
    pytest.importorskip("zarr")
    options: dict[str, Any] = {"sigma_b": np.linspace(0, 1, 3), "memory": 4 * vg.gains().bytes_per_point(NETS["deep"])}
    swept(folder=tmp_path / "run", **options)
    for path in (tmp_path / "run").glob("0000-*.npz"):
        path.unlink()
    monkeypatch.chdir(tmp_path)
    lazily = vg.ensembles.open_dataset("run")
    monkeypatch.chdir("/")
    lazily.to_zarr(tmp_path / "all.zarr", consolidated=False, zarr_format=2)
    assert lazily.load(scheduler="synchronous").identical(vg.load(tmp_path / "run").to_xarray())


def test_a_damaged_piece_is_said_when_it_is_read(tmp_path: Path) -> None:
    pytest.importorskip("dask")
    swept(folder=tmp_path)
    sorted(tmp_path.glob("0*.npz"))[0].write_bytes(b"PK")
    lazily = vg.ensembles.open_dataset(tmp_path)
    with pytest.raises(ValueError, match=r"^folder must hold whole pieces, got .* that is damaged or gone: call the s"):
        lazily.load(scheduler="synchronous")


# --- several writers at once ----------------------------------------------------------------------------------------


def test_whoever_begins_first_says_how_the_run_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty that all find an empty folder."""
    together = threading.Barrier(20)
    monkeypatch.setattr(folder, "foreign", lambda path: together.wait(5) >= 99 and [path])
    with ThreadPoolExecutor(20) as pool:
        begun = list(pool.map(lambda i: folder.Checkpoint(tmp_path, {"a": 1}, [[i, i]], {"b": 2}), range(20)))
    (layout,) = {json.dumps(each.layout) for each in begun}
    assert json.loads((tmp_path / "settings.json").read_text())["chunks"] == json.loads(layout)
    for i, each in enumerate(begun):
        each.write(f"{i}", {"a": np.array(i)})
    assert all(each.read(f"{19 - i}") == {"a": 19 - i} for i, each in enumerate(begun))
    assert not list(tmp_path.glob(".vgjax*"))


def test_a_run_that_another_begins_between_two_looks_is_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the two looks it is."""
    real = folder.foreign

    def begin_elsewhere() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(folder, "foreign", real)
            folder.Checkpoint(tmp_path / name, {"a": 1}, [[1, 1]]).write("1", {"a": np.array(1)})

    def before(path: Path) -> list[Path]:
        begin_elsewhere()
        return real(path)

    def behind(path: Path) -> list[Path]:
        found = real(path)
        begin_elsewhere()
        return found

    for name, look in {"before": before, "behind": behind}.items():
        monkeypatch.setattr(folder, "foreign", look)
        assert folder.Checkpoint(tmp_path / name, {"a": 1}, [[2, 2]]).layout == [[1, 1]]


def test_a_folder_that_is_removed_is_not_made_again(tmp_path: Path) -> None:
    """What would be written there belongs to nothing."""
    checkpoint = folder.Checkpoint(tmp_path / "run", {"a": 1})
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(OSError, match=r"takes no more pieces \(its settings\.json is gone\)$"):
        checkpoint.write("1", {"a": np.array(1)})
    assert not (tmp_path / "run").exists()


def test_a_part_ends_where_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence, and what is written stays."""
    swept(folder=tmp_path, part=(0, 3))
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match=r"^folder '.*' takes no more pieces \(No space left on device\)$"):
        swept(folder=tmp_path, part=(1, 3))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


def test_a_folder_of_an_earlier_version_is_refused_by_that(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"vgjax": "0.0.1", "chunks": [[1, 1]], "digest": "0"}')
    for read in (vg.load, lambda path: swept(folder=path)):
        with pytest.raises(
            ValueError, match=r"^folder must hold a run as version .* writes it, got .* of an earlier one$"
        ):
            read(tmp_path)


def test_of_two_runs_that_begin_at_once_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2)
    monkeypatch.setattr(folder, "foreign", lambda path: together.wait(5) >= 99 and [path])

    def begin(value: int) -> str:
        try:
            folder.Checkpoint(tmp_path, {"a": value})
        except ValueError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as pool:
        said = sorted(pool.map(begin, range(2)))
    assert said == ["", "folder must hold an earlier run of the same settings, got one that differs in a"]


@pytest.mark.parametrize("error", [None, OSError(95, "not supported")])
def test_the_first_of_several_files_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any) -> None:
    """Also on a disk without links."""

    def link(*_: Any) -> None:
        raise error

    if error:
        monkeypatch.setattr(files.os, "link", link)
    for text in ("first", "second"):
        try:
            with files.whole_file(tmp_path / "a", new=True) as path:
                path.write_text(text)
        except FileExistsError:
            assert text == "second"
        assert (tmp_path / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_files_are_on_the_disk_with_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is synchronized after the name has changed."""
    seen: list[str] = []
    synchronize, replace = os.fsync, os.replace

    def kind_of(descriptor: int) -> str:
        return "folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"

    monkeypatch.setattr(files.os, "fsync", lambda fd: seen.append(kind_of(fd)) or synchronize(fd))
    monkeypatch.setattr(files.os, "replace", lambda *paths: seen.append("name") or replace(*paths))
    with files.whole_file(tmp_path / "a") as path:
        path.write_text("a")
    assert seen == ["file", "name", "folder"]


@pytest.mark.parametrize(("hours", "left"), [(1, True), (25, False)])
def test_temporaries_of_other_machines_are_left_alone_for_a_day(tmp_path: Path, hours: int, left: bool) -> None:
    """Their processes cannot be asked for."""
    path = tmp_path / ".vgjax-0123abcd-1-x.npz"
    path.write_text("being written")
    os.utime(path, (time.time() - 3600 * hours,) * 2)
    files.writable_folder(tmp_path)
    assert path.exists() == left


# --- how far it is --------------------------------------------------------------------------------------------------


def test_status_says_how_far_a_run_is(tmp_path: Path) -> None:
    swept(folder=tmp_path, part=(0, 2))
    now = time.time()
    for i, path in enumerate(sorted(tmp_path.glob("0*.npz"))):
        os.utime(path, (now - 10 + 2 * i,) * 2)  # the last one now
    (tmp_path / "0001-00001-00002.failed.json").write_text("{}")
    (tmp_path / "0009-00001-00002.npz").write_text("of nobody")
    (tmp_path / "result.npz").write_text("of the user")
    (tmp_path / "notes.failed.json").write_text("of the user")
    status = vg.status(tmp_path)
    assert (status.total, status.done, status.failed, status.remaining) == (12, 6, 1, 5)
    assert status.rate == pytest.approx(0.5)
    assert status.seconds_left == pytest.approx(12)
    end = r"expected end \d{4}-\d\d-\d\d \d\d:\d\d \(0:00:12\)"
    assert re.fullmatch(rf"6 of 12 pieces done, 1 failed, 5 remaining; 0\.5 a second, {end}", str(status))
    stalled = status._replace(seconds_since=7200.0)
    assert str(stalled).endswith("; nothing since 2:00:00")
    swept(folder=tmp_path)
    assert str(vg.status(tmp_path)) == "12 of 12 pieces done, 0 failed, 0 remaining"
    assert datetime.timedelta(seconds=vg.status(tmp_path).seconds_left) == datetime.timedelta(0)


def test_the_command_line_says_how_far_a_run_is_and_collects_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out.npz"
    assert cli.main(["status", str(run)]) == 2
    assert capsys.readouterr().err.startswith("vgjax: folder must hold the run of a sweep, got ")
    swept(folder=run, part=(0, 2))
    assert cli.main(["status", str(run)]) == 1
    assert capsys.readouterr().out.startswith("6 of 12 pieces done, 0 failed, 6 remaining")
    assert cli.main(["status", str(run), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["total"], said["done"], said["remaining"]) == (12, 6, 6)
    assert cli.main(["collect", str(run), str(out)]) == 1
    assert capsys.readouterr().err.startswith("vgjax: folder must hold all 12 pieces of its run, got one without 6: ")
    assert not out.exists()
    whole = swept(folder=run)
    assert cli.main(["status", str(run)]) == 0
    assert cli.main(["collect", str(run), str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert vg.load(out) == whole
    assert cli.main(["collect", str(run), str(tmp_path / "out.txt")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
