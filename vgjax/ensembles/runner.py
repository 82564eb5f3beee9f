"""The runner: long work in pieces, with a progress bar, on all cores, and kept on disk as it comes."""

import contextlib
import json
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from tqdm import tqdm

from vgjax.files import whole_file, writable_folder

T = TypeVar("T")

Arrays = dict[str, np.ndarray]

LAYOUT = "chunks"
"""Where a folder's settings say how its run is cut into pieces."""


def progress(work: Iterable[T], total: int, label: str, show: bool | None = None) -> Iterator[T]:
    """The work with a progress bar on standard error.

    Shown on a terminal if ``show`` is None, always or never if it says so.
    """
    hidden = not (sys.stderr.isatty() if show is None else show)
    yield from tqdm(work, total=total, desc=label, disable=hidden, leave=False)


def cores() -> int:
    """How many processors this process may use."""
    with contextlib.suppress(AttributeError):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Once:
    """A value made on first use, by whichever thread comes first; the others wait for it."""

    def __init__(self, make: Callable[[], Any]):
        self._make, self._lock, self._made = make, threading.Lock(), []  # type: ignore[var-annotated]

    def __call__(self) -> Any:
        with self._lock:
            if not self._made:
                self._made.append(self._make())
        return self._made[0]


def run(
    work: Mapping[str, Callable[[], Arrays]],
    label: str,
    *,
    checkpoint: "Checkpoint | None" = None,
    workers: int = 1,
    show: bool | None = None,
) -> dict[str, Arrays]:
    """Do all pieces of a long work, several at a time, and keep each as soon as it is done.

    What the checkpoint holds already is read, not done again. Whatever ends the run early (an error, an interrupt), the
    pieces that were done by then are in the checkpoint.

    Args:
        work: by name, what makes a piece.
        label: of the progress bar.
        checkpoint: where pieces are kept; None keeps them in memory alone.
        workers: threads.
        show: as for `progress`.

    Returns:
        The pieces, by name, in the order of ``work``.
    """
    kept = {name: found for name in work if checkpoint and (found := checkpoint.read(name)) is not None}

    wide = jax.dtypes.canonicalize_dtype("float64") == np.float64

    def done(name: str) -> tuple[str, Arrays]:
        with jax.enable_x64(wide), jax.debug_nans(False):  # JAX's settings belong to a thread
            made = work[name]()
        if checkpoint:
            checkpoint.write(name, made)
        return name, made

    missing = [name for name in work if name not in kept]
    if workers == 1:  # in this thread: what the caller switched on (a device, a precision) holds
        kept |= dict(progress(map(done, missing), len(missing), label, show))
        return {name: kept[name] for name in work}
    with ThreadPoolExecutor(workers) as pool:
        futures: list[Future[tuple[str, Arrays]]] = [pool.submit(done, name) for name in missing]
        try:
            finished = (future.result() for future in as_completed(futures))
            kept |= dict(progress(finished, len(missing), label, show))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {name: kept[name] for name in work}


class Checkpoint:
    """A folder that holds the pieces of one run, so that a run that was killed goes on where it was.

    Args:
        folder: made if it is missing.
        settings: what the results depend on, as plain JSON values: a folder of other settings is refused.
        layout: how they are cut into pieces, as plain JSON values: that of an earlier run in the folder goes on, be it
            from a machine with more cores.

    Attributes:
        layout: the one that holds.

    Raises:
        ValueError: a folder that cannot be written to, holds something else, or a run of other settings.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: dict[str, Any], layout: Any = None):
        self.folder, self.layout = writable_folder(folder, "folder"), layout
        self._warned = threading.Lock()
        path = self.folder / "settings.json"
        if path.exists():
            self.layout = _earlier_layout(path, json.loads(json.dumps(settings)))
            return
        if any(self.folder.iterdir()):
            raise ValueError(f"folder must be empty or hold an earlier run, got {str(folder)!r} with other files")
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps({**settings, LAYOUT: layout}, indent=1) + "\n")

    def read(self, name: str) -> Arrays | None:
        """A piece; None if it is not there or cannot be read."""
        try:
            with open(self._path(name), "rb") as file, np.load(file) as arrays:
                return {key: arrays[key] for key in arrays}
        except Exception:  # a damaged file raises anything, from zlib.error to NotImplementedError; it is done again
            return None

    def write(self, name: str, piece: Arrays) -> None:
        """Keep a piece, whole; where the disk is full the run goes on without it, with a warning."""
        try:
            with whole_file(self._path(name)) as temporary, open(temporary, "wb") as file:
                np.savez(file, **piece)  # type: ignore[arg-type]
        except OSError as error:
            if self._warned.acquire(blocking=False):
                text = f"folder {str(self.folder)!r} takes no more pieces ({error.strerror}); the run goes on in memory"
                warnings.warn(text, RuntimeWarning, stacklevel=2)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"


def _earlier_layout(path: Path, settings: dict[str, Any]) -> Any:
    try:
        found = dict(json.loads(path.read_text()))
        layout = found.pop(LAYOUT)
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"folder must hold an earlier run, got an unreadable {str(path)!r}") from None
    differ = list(_differing(found, settings))
    if differ:
        raise ValueError(
            f"folder must hold an earlier run of the same settings, got one that differs in {', '.join(differ)}"
        )
    return layout


def _differing(found: dict[str, Any], settings: dict[str, Any], within: str = "") -> Iterator[str]:
    """The names of the settings that differ, of nested ones with dots."""
    for name in {**found, **settings}:
        before, now = found.get(name), settings.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differing(before, now, f"{within}{name}.")
        elif before != now:
            yield within + name
