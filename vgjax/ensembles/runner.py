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

from vgjax.ensembles.fingerprint import digest_of_text
from vgjax.files import foreign, read_arrays, refused_in_a_sentence, whole_file, writable_folder, write_arrays

T = TypeVar("T")

Arrays = dict[str, np.ndarray]

LAYOUT = "chunks"
"""Where a folder's settings say how its run is cut into pieces."""
DIGEST = "digest"
"""And what all of them came to when they were written."""
_VARIABLE = "variable/"
"""Before the name of a variable in a file: NumPy writes arrays by keyword, and "file" is one of its own."""


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


_SWITCHES: dict[str, Callable[[Any], Any]] = {
    "jax_enable_x64": jax.enable_x64,
    "jax_default_matmul_precision": jax.default_matmul_precision,
    "jax_default_prng_impl": jax.default_prng_impl,
    "jax_default_device": jax.default_device,
    "jax_threefry_partitionable": jax.threefry_partitionable,
    "jax_numpy_dtype_promotion": jax.numpy_dtype_promotion,
}


def switches() -> dict[str, Any]:
    """Those of JAX's settings that change what is computed, as they are in this thread."""
    return {name: getattr(jax.config, name) for name in _SWITCHES}


@contextlib.contextmanager
def _switched(to: Mapping[str, Any]) -> Iterator[None]:
    """As they were in another: JAX's settings belong to a thread."""
    with contextlib.ExitStack() as stack:
        for name, value in to.items():
            stack.enter_context(_SWITCHES[name](value))
        yield


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

    now = switches()

    def done(name: str) -> tuple[str, Arrays]:
        with _switched(now), jax.debug_nans(False):
            made = work[name]()
        if checkpoint:
            checkpoint.write(name, made)
        return name, made

    missing = [name for name in work if name not in kept]
    if workers == 1:
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
        path, settings = self.folder / "settings.json", json.loads(json.dumps(settings))
        if path.exists():
            self.layout = _earlier_layout(path, settings)
        elif foreign(self.folder):
            raise ValueError(f"folder must be empty or hold an earlier run, got {str(folder)!r} with other files")
        self._run = _digest_of_run(settings, self.layout)
        if not path.exists():
            with refused_in_a_sentence(self.folder, "folder"), whole_file(path) as temporary:
                whole = {**settings, LAYOUT: self.layout, DIGEST: self._run}
                temporary.write_text(json.dumps(whole, indent=1) + "\n")

    def read(self, name: str) -> Arrays | None:
        """A piece; None if it is not there, is not to be read, or is not what this run wrote: it is done again."""
        try:
            found = read_arrays(self._path(name), self._of(name))
        except OSError:
            return None
        return found and {variable.removeprefix(_VARIABLE): a for variable, a in found.items()}

    def write(self, name: str, piece: Arrays) -> None:
        """Keep a piece, whole; where the disk is full the run goes on without it, with a warning."""
        try:
            arrays = {f"{_VARIABLE}{variable}": a for variable, a in piece.items()}
            write_arrays(self._path(name), arrays, self._of(name))
        except OSError as error:
            if self._warned.acquire(blocking=False):
                text = f"folder {str(self.folder)!r} takes no more pieces ({error.strerror}); the run goes on in memory"
                warnings.warn(text, RuntimeWarning, stacklevel=2)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"

    def _of(self, name: str) -> str:
        return f"{self._run} {name}"


def _digest_of_run(settings: dict[str, Any], layout: Any) -> str:
    return digest_of_text(json.dumps([settings, layout], sort_keys=True))


def _earlier_layout(path: Path, settings: dict[str, Any]) -> Any:
    try:
        found = dict(json.loads(path.read_text()))
        layout, digest = found.pop(LAYOUT), found.pop(DIGEST)
        whole = digest == _digest_of_run(found, layout)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # what reading and parsing any bytes can raise
        whole = False
    if not whole:
        raise ValueError(f"folder must hold an earlier run, got an unreadable or damaged {str(path)!r}")
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
        elif json.dumps(before) != json.dumps(now):  # NaN is the same as NaN, and -0 is not 0
            yield within + name
