"""Files: written whole or not at all, and read as they were written or not at all."""

import contextlib
import hashlib
import io
import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vgjax import interrupts

_OURS = ".vgjax-"
"""What the name of a temporary begins with; its machine and process follow, so that one which was killed is told from
one that writes."""
_HERE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_ABANDONED = 86400.0
"""Seconds after which a temporary of another machine, whose processes nobody here can ask for, is one that was left."""
_UMASK = threading.Lock()
_SEAL = hashlib.sha256().digest_size
_live: set[Path] = set()
_made: set[Path] = set()


# --- whole files ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_file(path: Path, *, new: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path`` that becomes it once all is written and on the disk.

    A killed run leaves no half-written file.

    Args:
        path: where the file will be.
        new: leave a file that is there by then, of whoever was first.

    Raises:
        FileExistsError: there is one, and this was to be the first.
    """

    def make(**where: Any) -> str:
        handle, name = tempfile.mkstemp(suffix=path.suffix, **where)
        os.close(handle)
        return name

    with _temporary(path.parent, make) as temporary:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        with _UMASK:  # it can only be read by setting it, for all threads
            umask = os.umask(0)
            os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's files are private; results are ordinary ones
        if new:
            _link(temporary, path)
        else:
            os.replace(temporary, path)
        _sync_folder(path.parent)


def _link(temporary: Path, path: Path) -> None:
    """Give a file its name if no other has it, which of several writers one alone can do."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a disk without links
        if path.exists():
            raise FileExistsError(f"{str(path)!r} is there") from None
        os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    """A name is on the disk when its folder is."""
    with contextlib.suppress(PermissionError):  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def whole_set(folder: Path, last: str) -> Iterator[Path]:
    """A temporary folder whose files take their places in ``folder`` once all are written; others there stay.

    The file ``last`` stands for the set: that of an earlier one goes first and the new one comes last, so that whoever
    finds it finds all of one set, whenever the run was killed.
    """
    with _temporary(folder, tempfile.mkdtemp) as temporary:
        yield temporary
        names = sorted(os.listdir(temporary), key=lambda name: name == last)
        for target in (folder / name for name in names):
            if target.is_dir():
                raise IsADirectoryError(f"{str(target)!r} must be a file or missing, got a folder")
        (folder / last).unlink(missing_ok=True)
        for name in names:
            os.replace(temporary / name, folder / name)
        _sync_folder(folder)


@contextlib.contextmanager
def _temporary(folder: Path, make: Callable[..., str]) -> Iterator[Path]:
    """What is made in a folder, removed in the end; so is a folder that was missing, if nothing came into it."""
    missing = [each for each in (folder, *folder.absolute().parents) if not each.exists()]
    _made.update(missing)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(make(dir=folder, prefix=f"{_OURS}{_HERE}-{os.getpid()}-"))
        _live.add(temporary)
        try:
            yield temporary
        finally:
            _remove(temporary)
            _live.discard(temporary)
    finally:
        _remove_empty(missing)
        _made.difference_update(missing)


@interrupts.before_leaving.append
def _remove_live() -> None:
    """Those of this process, which ends without unwinding."""
    for temporary in list(_live):
        _remove(temporary)
    _remove_empty(_made)


def remove_left(folder: Path) -> None:
    """Remove the temporaries that killed processes left in a folder."""
    for path in folder.glob(f"{_OURS}*-*-*"):
        machine, process, _ = path.name.removeprefix(_OURS).split("-", 2)
        if len(machine) != len(_HERE) or not process.isdecimal() or path in _live:
            continue
        if not _runs(int(process)) if machine == _HERE else _abandoned(path):
            _remove(path)


def _abandoned(path: Path) -> bool:
    with contextlib.suppress(OSError):  # gone meanwhile
        return time.time() - path.stat().st_mtime > _ABANDONED
    return False


def foreign(folder: Path) -> list[Path]:
    """What is in a folder beside temporaries."""
    return [path for path in folder.iterdir() if not path.name.startswith(_OURS)] if folder.is_dir() else []


def _remove_empty(folders: Iterable[Path]) -> None:
    """Those that hold nothing, the inner ones first."""
    for folder in sorted(folders, key=lambda each: -len(each.absolute().parts)):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)  # which leaves a file alone
    with contextlib.suppress(OSError):
        path.unlink()


def _runs(process: int) -> bool:
    """Whether another process of that number is there."""
    if os.name == "nt":  # where the question would be a signal
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()  # in a container every run may have the same number


def writable_folder(path: str | os.PathLike[str], name: str = "out") -> Path:
    """The folder, which need not be there yet; raises before any work is done if nothing could be written there.

    What killed runs left there is removed.

    Raises:
        ValueError: it is no folder, or not writable.
    """
    folder = Path(path)
    with refused_in_a_sentence(folder, name), tempfile.TemporaryFile(dir=_first_there(folder)) as file:
        file.write(b"0")
        file.flush()
    remove_left(folder)
    return folder


def _first_there(folder: Path) -> Path:
    """The folder, or what it would be made in."""
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())


def disk_size(path: str | os.PathLike[str]) -> int:
    """Bytes that the disk of a folder holds, whether free or not."""
    return shutil.disk_usage(_first_there(Path(path))).total


@contextlib.contextmanager
def refused_in_a_sentence(folder: Path, name: str) -> Iterator[None]:
    """What the system says of a folder, as a ValueError."""
    try:
        yield
    except (OSError, ValueError) as error:  # a ValueError: a zero byte in the path
        said = getattr(error, "strerror", None) or error
        raise ValueError(f"{name} must be a folder that can be written to, got {str(folder)!r} ({said})") from None


# --- arrays ---------------------------------------------------------------------------------------------------------


def npz_path(path: str | os.PathLike[str]) -> Path:
    """The path of a file of arrays.

    Raises:
        ValueError: another suffix than ``.npz``.
    """
    if Path(path).suffix != ".npz":
        raise ValueError(f"path must end in .npz, got {str(path)!r}")
    return Path(path)


def write_arrays(path: Path, arrays: Mapping[str, Any], of: str, *, compressed: bool = False) -> None:
    """Keep arrays as an ``.npz``, whole and sealed: the archive's comment is a digest of its bytes and of what it is
    ``of``. Any program can read it, and `read_arrays` knows whether it is what was written.

    Raises:
        ValueError: arrays that a file can only hold as pickled objects, or not at all.
        OSError: it cannot be written.
    """
    for name, a in arrays.items():
        if np.asarray(a).dtype.kind in "OV":
            raise ValueError(f"{name} must be an array of numbers or texts, got one of {np.asarray(a).dtype}")
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)  # type: ignore[arg-type]
    body = buffer.getvalue()[:-2]  # an archive ends with the length of its comment: so far none
    with whole_file(path) as temporary:
        temporary.write_bytes(_sealed(body, of))


def read_arrays(path: Path, of: str) -> dict[str, np.ndarray] | None:
    """What `write_arrays` wrote; None if a byte of it is another.

    Raises:
        OSError: it cannot be read.
    """
    written = path.read_bytes()
    if written != _sealed(written[: -_SEAL - 2], of):
        return None
    with np.load(io.BytesIO(written)) as arrays:
        return {name: arrays[name] for name in arrays}


def _sealed(body: bytes, of: str) -> bytes:
    return body + _SEAL.to_bytes(2, "little") + hashlib.sha256(of.encode() + b"\0" + body).digest()
