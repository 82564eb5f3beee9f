"""The folder of a run: its pieces, each written whole, and what they are pieces of; the one truth of long work.

Nothing else is remembered anywhere: no queue, no lease, no supervisor. Pieces are deterministic, so that one which is
done twice costs time, not truth; any number of processes and machines may write here at once.
"""

import contextlib
import datetime
import json
import os
import platform
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vgjax.checks import kinds
from vgjax.ensembles.assembly import Arrays, Assembly, Outline, Slot
from vgjax.ensembles.fingerprint import digest_of_text
from vgjax.ensembles.result import Result, result_of
from vgjax.ensembles.runner import Failed
from vgjax.files import foreign, read_arrays, refused_in_a_sentence, whole_file, writable_folder, write_arrays
from vgjax.networks.network import Network
from vgjax.version import VERSION

SETTINGS = "settings.json"
_VARIABLE = "variable/"
"""Before the name of a variable in a file: NumPy writes arrays by keyword, and "file" is one of its own."""
_LAYOUT, _OUTLINE, _DIGEST = "chunks", "outline", "digest"
"""Where the settings say how the run is cut into pieces, what its result is of, and what all of them came to."""
PROGRAM = "program"
"""And the fingerprint of the program that makes the pieces."""
_FAILED = ".failed.json"
_SHOWN = 10
"""Missing pieces that a sentence names."""
_RECENT = 100
"""Pieces that the rate is of."""


class Checkpoint:
    """A folder that holds the pieces of one run, so that a run that was killed goes on where it was.

    Args:
        folder: made if it is missing.
        settings: what the results depend on, as plain JSON values: a folder of other settings is refused.
        layout: how they are cut into pieces, as plain JSON values: that of an earlier run in the folder goes on, be it
            from a machine with more cores.
        outline: what the result is of, as plain JSON values.

    Attributes:
        layout: the one that holds.

    Raises:
        ValueError: a folder that cannot be written to, holds something else, or a run of other settings.
    """

    def __init__(
        self, folder: str | os.PathLike[str], settings: dict[str, Any], layout: Any = None, outline: Any = None
    ):
        self.folder, self._warned = writable_folder(folder, "folder"), threading.Lock()
        path, settings = self.folder / SETTINGS, json.loads(json.dumps(settings))
        others = foreign(self.folder)  # before the settings, which another run may write at any time
        if not path.exists():
            if others:
                raise ValueError(f"folder must be empty or hold an earlier run, got {str(folder)!r} with other files")
            self._begin(path, {**settings, _LAYOUT: layout, _OUTLINE: outline})
        found = read_settings(path)  # of this run or, if several begin at once, of the first of them
        self.layout, self._run = found.pop(_LAYOUT), found.pop(_DIGEST)
        found.pop(_OUTLINE)
        differ = list(_differing(found, settings))
        if differ:
            raise ValueError(
                f"folder must hold an earlier run of the same settings, got one that differs in {', '.join(differ)}"
            )

    def _begin(self, path: Path, content: dict[str, Any]) -> None:
        whole = {**content, _DIGEST: _digest(json.loads(json.dumps(content)))}
        # Of several that begin at once one is the first.
        first = contextlib.suppress(FileExistsError)
        with refused_in_a_sentence(self.folder, "folder"), first, whole_file(path, new=True) as temporary:
            temporary.write_text(json.dumps(whole, indent=1) + "\n")

    def read(self, name: str) -> Arrays | None:
        """A piece; None if it is not there, is not to be read, or is not what this run wrote: it is done again."""
        return read_piece(self.folder, self._run, name)

    def write(self, name: str, piece: Arrays) -> None:
        """Keep a piece, whole.

        Raises:
            OSError: it cannot be kept.
        """
        try:
            if not (self.folder / SETTINGS).exists():
                raise FileNotFoundError(2, f"its {SETTINGS} is gone")
            arrays = {f"{_VARIABLE}{variable}": a for variable, a in piece.items()}
            write_arrays(self.folder / f"{name}.npz", arrays, f"{self._run} {name}")
            (self.folder / f"{name}{_FAILED}").unlink(missing_ok=True)  # an earlier attempt's
        except OSError as error:
            raise OSError(f"folder {str(self.folder)!r} takes no more pieces ({error.strerror})") from error

    def write_or_warn(self, name: str, piece: Arrays) -> None:
        """Keep a piece; where the disk is full the run goes on without it, with a warning."""
        try:
            self.write(name, piece)
        except OSError as error:
            if self._warned.acquire(blocking=False):
                warnings.warn(f"{error}; the run goes on in memory", RuntimeWarning, stacklevel=2)

    def write_failed(self, name: str, failed: Failed) -> None:
        """Say of a piece why it is not there."""
        said = {
            "error": failed.said,
            "traceback": failed.traceback,
            "attempts": failed.attempts,
            "machine": platform.node(),
        }
        full = contextlib.suppress(OSError)  # a full disk, of which the pieces speak
        with full, whole_file(self.folder / f"{name}{_FAILED}") as temporary:
            temporary.write_text(json.dumps(said, indent=1) + "\n")


def read_piece(folder: Path, run: str, name: str) -> Arrays | None:
    """A piece of the run of that digest; None if it is not there, or not as it was written."""
    try:
        found = read_arrays(folder / f"{name}.npz", f"{run} {name}")
    except OSError:
        return None
    return found and {variable.removeprefix(_VARIABLE): a for variable, a in found.items()}


def _digest(content: dict[str, Any]) -> str:
    return digest_of_text(json.dumps(content, sort_keys=True))


def read_settings(path: Path) -> dict[str, Any]:
    """All that a folder's settings hold.

    Raises:
        ValueError: they are not whole.
    """
    damaged = ValueError(f"folder must hold an earlier run, got an unreadable or damaged {str(path)!r}")
    try:
        found = dict(json.loads(path.read_text()))
        content = {name: value for name, value in found.items() if name != _DIGEST}
        whole = found[_DIGEST] == _digest(content)
    except OSError as error:
        raise ValueError(f"folder must hold a run that can be read, got {str(path)!r} ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, RecursionError):  # what parsing any bytes can raise
        raise damaged from None
    if not whole and _OUTLINE not in found and "vgjax" in found:
        raise ValueError(f"folder must hold a run as version {VERSION} writes it, got {str(path)!r} of an earlier one")
    if not whole or not {_LAYOUT, _OUTLINE} <= found.keys():
        raise damaged
    return found


def _differing(found: dict[str, Any], settings: dict[str, Any], within: str = "") -> Iterator[str]:
    """The names of the settings that differ, of nested ones with dots."""
    for name in {**found, **settings}:
        before, now = found.get(name), settings.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differing(before, now, f"{within}{name}.")
        elif json.dumps(before) != json.dumps(now):  # NaN is the same as NaN, and -0 is not 0
            yield within + name


# --- outlines as JSON values ----------------------------------------------------------------------------------------


def outline_to_json(outline: Outline, readable: bool) -> dict[str, Any]:
    """An outline as plain values.

    Args:
        outline: of the result.
        readable: whether pieces are kept as they come into the result; not those that a user's own code finishes.
    """
    empty = Result(outline.measure, {}, {}, {}, networks=outline.networks, fixed=outline.fixed)
    return {
        "description": {name: value for name, value in empty._description().items() if name != "provenance"},
        "axes": {name: _array_to_json(a) for name, a in outline.axes.items()},
        "coordinates": {name: _array_to_json(a) for name, a in outline.coordinates.items()},
        "dims": {name: list(dims) for name, dims in outline.dims.items()},
        "seeds": outline.seeds,
        "depths": list(outline.depths),
        "readable": readable,
    }


def _array_to_json(a: np.ndarray) -> dict[str, Any]:
    return {"dtype": a.dtype.name, "values": a.tolist()}


def _array_from_json(found: Mapping[str, Any]) -> np.ndarray:
    return np.array(found["values"], found["dtype"])


def _outline_of(found: dict[str, Any], network: Network | Mapping[str, Network] | None) -> Outline:
    given = found[_OUTLINE]
    axes, coordinates = ({name: _array_from_json(a) for name, a in given[k].items()} for k in ("axes", "coordinates"))
    provenance = {name: value for name, value in found.items() if name not in (_OUTLINE, _DIGEST, PROGRAM)}
    empty = result_of(({**given["description"], "provenance": provenance}, axes, coordinates, {}), network)
    return Outline(
        measure=empty.measure,
        axes=axes,
        coordinates=coordinates,
        fixed=empty.fixed,
        networks=empty.networks,
        dims={name: tuple(dims) for name, dims in given["dims"].items()},
        seeds=given["seeds"],
        sizes=tuple(size for size, _ in found[_LAYOUT]),
        depths=tuple(given["depths"]),
        provenance=empty.provenance,
    )


# --- reading a folder -----------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """A folder that is read.

    Attributes:
        folder: where it is.
        outline: what its result is of.
        digest: of its settings.
    """

    folder: Path
    outline: Outline
    digest: str

    def read(self, slot: Slot) -> Arrays | None:
        """A piece, None if it is not there or not whole."""
        return read_piece(self.folder, self.digest, slot.name)

    def files(self) -> tuple[dict[Slot, Path], dict[Slot, Path]]:
        """Of pieces that are there, and of those that failed and are not."""
        done: dict[Slot, Path] = {}
        failed: dict[Slot, Path] = {}
        for name in os.listdir(self.folder):
            stem = name.removesuffix(".npz").removesuffix(_FAILED)
            slot = self._slot(stem)
            if slot and name in (f"{stem}.npz", f"{stem}{_FAILED}"):
                (done if name.endswith(".npz") else failed)[slot] = self.folder / name
        return done, {slot: path for slot, path in sorted(failed.items()) if slot not in done}

    def _slot(self, name: str) -> Slot | None:
        """Of a piece of this run by its name."""
        numbers, outline = name.split("-"), self.outline
        if len(numbers) != 3 or not all(each.isdecimal() for each in numbers):
            return None
        slot = Slot(*map(int, numbers))
        there = slot.network < len(outline.sizes) and slot.seed < outline.seeds and slot.name == name
        return slot if there and slot.chunk < outline.chunks[slot.network] else None

    def errors(self) -> dict[Slot, str]:
        """What those that failed said."""
        return {slot: _error_in(path) for slot, path in self.files()[1].items()}


def _error_in(path: Path) -> str:
    try:
        return str(json.loads(path.read_text())["error"])
    except (OSError, ValueError, KeyError, TypeError):  # gone meanwhile, or not whole
        return "an error that cannot be read"


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a run."""
    return (Path(folder) / SETTINGS).is_file()


def open_run(
    folder: str | os.PathLike[str], network: Network | Mapping[str, Network] | None = None, *, pieces: bool = True
) -> Run:
    """The run in a folder.

    Args:
        folder: of a sweep.
        network: as for `load`.
        pieces: whether they are to be read.

    Raises:
        ValueError: a folder without one, or of pieces that only their sweep can finish.
    """
    path = Path(folder)
    if not is_run(folder):
        raise ValueError(f"folder must hold the run of a sweep, got {str(folder)!r} without {SETTINGS}")
    found = read_settings(path / SETTINGS)
    if pieces and not found[_OUTLINE]["readable"]:
        raise ValueError(
            "folder must hold pieces that the library can finish, got those of a measurement with a finish of its own: "
            "call vgjax.sweep again with the same arguments and this folder, which reads them"
        )
    return Run(path.resolve(), _outline_of(found, network), found[_DIGEST])


def _assembled(run: Run) -> Assembly:
    assembly = Assembly(run.outline)
    for slot in run.outline.slots():
        if (piece := run.read(slot)) is not None:
            assembly.put(slot, piece)
    return assembly


def load_folder(folder: str | os.PathLike[str], network: Network | Mapping[str, Network] | None = None) -> Result:
    """What is there of a run: see `load`."""
    run = open_run(folder, network)
    assembly, errors = _assembled(run), run.errors()
    return assembly.result({slot: errors[slot] for slot in assembly.missing() if slot in errors})


class MissingPieces(ValueError):
    """A run that is not done, where its result was asked for."""


@kinds
def collect(folder: str | os.PathLike[str], network: Network | Mapping[str, Network] | None = None) -> Result:
    """The result of a run whose pieces were done by any number of processes and machines.

    Args:
        folder: of `vgjax.sweep`.
        network: the network, or several by name, where a file cannot hold them, as for `load`.

    Raises:
        ValueError: a folder that holds no run, or not all pieces of one: the sentence says which are missing.
    """
    run = open_run(folder, network)
    assembly = _assembled(run)
    if missing := list(assembly.missing()):
        errors = run.errors()
        of = [f"{run.outline.said(slot)}{f' ({errors[slot]})' if slot in errors else ''}" for slot in missing]
        raise MissingPieces(
            f"folder must hold all {run.outline.pieces} pieces of its run, got one without {len(missing)}: {named(of)}"
        )
    return assembly.result()


def named(pieces: list[str]) -> str:
    """Some of them, for a sentence."""
    more = f" and {len(pieces) - _SHOWN} more" if len(pieces) > _SHOWN else ""
    return "; ".join(pieces[:_SHOWN]) + more


# --- how far it is --------------------------------------------------------------------------------------------------


class Status(NamedTuple):
    """How far a run is.

    Attributes:
        total: its pieces.
        done: that are there.
        failed: that raised, and are tried again by the next run.
        rate: pieces a second, of the latest ones; NaN of fewer than two.
        seconds_since: since the latest one; NaN without one.
    """

    total: int
    done: int
    failed: int
    rate: float
    seconds_since: float

    @property
    def remaining(self) -> int:
        """Pieces that are neither done nor failed."""
        return self.total - self.done - self.failed

    @property
    def seconds_left(self) -> float:
        """Until all are done, at this rate."""
        return (self.total - self.done) / self.rate if self.done < self.total else 0.0

    @property
    def is_complete(self) -> bool:
        """Whether every piece is done."""
        return self.done == self.total

    def __str__(self) -> str:
        said = f"{self.done} of {self.total} pieces done, {self.failed} failed, {self.remaining} remaining"
        if self.is_complete or not self.rate > 0:
            return said
        if self.seconds_since > max(60.0, 20 / self.rate):
            return f"{said}; nothing since {_duration(self.seconds_since)}"
        end = datetime.datetime.now() + datetime.timedelta(seconds=self.seconds_left)
        return f"{said}; {self.rate:.3g} a second, expected end {end:%Y-%m-%d %H:%M} ({_duration(self.seconds_left)})"


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


@kinds
def status(folder: str | os.PathLike[str]) -> Status:
    """How far the run in a folder is, by the names of its files alone; whether they are whole, `collect` reads.

    Args:
        folder: of `vgjax.sweep`.

    Raises:
        ValueError: a folder that holds no run.
    """
    run = open_run(folder, pieces=False)
    done, failed = run.files()
    times = np.sort([mtime for path in done.values() if (mtime := _mtime(path))])
    recent = times[-_RECENT:]
    spent = recent[-1] - recent[0] if len(recent) > 1 else 0.0
    rate = (len(recent) - 1) / spent if spent > 0 else np.nan
    since = time.time() - times[-1] if len(times) else np.nan
    return Status(run.outline.pieces, len(done), len(failed), float(rate), float(since))


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # gone meanwhile
        return 0.0
