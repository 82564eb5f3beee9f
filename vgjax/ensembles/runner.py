"""The runner: long work in pieces, several at a time, by threads or by any executor, with a progress bar."""

import contextlib
import importlib.util
import os
import pickle
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np
from tqdm import tqdm

T = TypeVar("T")

Arrays = dict[str, np.ndarray]

_ATTEMPTS = 2
"""How often a piece is tried: what failed for a reason of its machine does not fail again on another."""
_WINDOW = 128
"""Pieces on their way to an executor at least: it need not say how many workers it has."""
_POLL = 0.05
"""Seconds between two looks at futures that call nobody back (submitit's)."""


def progress_bar(total: int, label: str, show: bool | None = None) -> Any:
    """A progress bar on standard error: on a terminal and in a notebook if ``show`` is None, always or never if it says
    so; in a notebook that has widgets it is one."""
    notebook = "ipykernel" in sys.modules
    hidden = not (notebook or sys.stderr.isatty() if show is None else show)
    bar: Any = tqdm
    if notebook and not hidden and importlib.util.find_spec("ipywidgets"):
        from tqdm.notebook import tqdm_notebook

        bar = tqdm_notebook
    return bar(total=total, desc=label, disable=hidden, leave=False)


def progress(work: Iterable[T], total: int, label: str, show: bool | None = None) -> Iterator[T]:
    """The work with a progress bar."""
    with progress_bar(total, label, show) as bar:
        for each in work:
            yield each
            bar.update()


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
def switched(to: Mapping[str, Any]) -> Iterator[None]:
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


class Failed(NamedTuple):
    """A piece that raised.

    Attributes:
        error: what.
        traceback: where, as a text: frames would keep what they computed with alive.
        attempts: how often it was tried.
    """

    error: Exception
    traceback: str
    attempts: int = 1

    @classmethod
    def of(cls, error: Exception, *, travels: bool = False) -> "Failed":
        """What an exception says; one that travels and cannot is told of by another."""
        where = "".join(traceback.format_exception(error))
        return cls(_that_travels(error) if travels else error, where)

    @property
    def said(self) -> str:
        """In one line."""
        return in_one_line(self.error)

    def without_frames(self) -> "Failed":
        """The same, which keeps nothing alive but texts."""
        error: BaseException | None = self.error
        while error is not None:
            error.__traceback__, error = None, error.__cause__ or error.__context__
        return self


def _that_travels(error: Exception) -> Exception:
    """An exception, if another process can make it again, or one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(in_one_line(error))
    return error


def in_one_line(error: BaseException) -> str:
    """An exception's kind and the first line of what it says."""
    try:
        text = str(error).partition("\n")[0]
    except Exception:  # of a user's own kind
        text = "what it says cannot be read"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _Serial(Executor):
    """One piece after the other, in the thread of the caller, where an interrupt ends it at once."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **options))
        except Exception as error:
            future.set_exception(error)
        return future


Begin = Callable[[Any, T, int], Any]
"""What submits a piece to an executor, at which attempt, and returns its future."""


def in_this_process(do: Callable[[T], Arrays]) -> Begin[T]:
    """What submits pieces that a function makes here, in whichever thread, under JAX's settings of this one."""
    now = switches()

    def done(piece: T) -> Arrays:
        with switched(now), jax.debug_nans(False):
            return do(piece)

    return lambda executor, piece, attempt: executor.submit(done, piece)


class _OnTheWay(Generic[T]):
    """The pieces that an executor works on, each with how often it has been tried."""

    def __init__(self, executor: Any):
        self._executor, self._calling_back = executor, True
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._pieces: dict[Any, tuple[T, int]] = {}

    def __len__(self) -> int:
        return len(self._pieces)

    def submit(self, begin: Begin[T], piece: T, attempt: int = 1) -> None:
        """Set a piece on its way."""
        try:
            future = begin(self._executor, piece, attempt)
        except RuntimeError as error:
            if isinstance(error, BrokenExecutor) or isinstance(self._executor, _Serial):
                raise
            raise RuntimeError(f"executor must take pieces, got one that does not: {error}") from error
        if not callable(getattr(future, "done", None)):
            raise RuntimeError(f"executor must return futures with done() and result(), got one that returns {future}")
        self._pieces[future] = piece, attempt
        if hasattr(future, "add_done_callback"):
            future.add_done_callback(self._done.put)
        else:
            self._calling_back = False

    def next(self) -> tuple[T, int, Arrays | Failed]:
        """One that has come back, when there is one: piece, attempt and what became of it."""
        while not self._calling_back and not (done := [each for each in self._pieces if each.done()]):
            time.sleep(_POLL)
        future = self._done.get() if self._calling_back else done[0]
        return *self._pieces.pop(future), _outcome(future)

    def given_up(self) -> Iterator[tuple[T, Arrays]]:
        """Call back those that have not begun; those that have come back by then."""
        for future in self._pieces:
            future.cancel()
        for future, (piece, _) in self._pieces.items():
            with contextlib.suppress(Exception):
                if future.done() and not isinstance(made := _outcome(future), Failed):
                    yield piece, made


def _outcome(future: Any) -> Arrays | Failed:
    try:
        made: Arrays | Failed = future.result()
    except (BrokenExecutor, Refused):
        raise
    except Exception as error:
        return Failed.of(error)
    return made


def run(
    work: Iterable[T],
    begin: Begin[T],
    keep: Callable[[T, Arrays], None],
    *,
    executor: Any = None,
    workers: int = 1,
) -> Iterator[tuple[T, Arrays | Failed]]:
    """Do all pieces of a long work, several at a time, in the order in which they are done.

    A piece that raises is tried again, by an executor wherever that puts it; then it is a `Failed` one, and the others
    go on. Whatever ends the run early (an interrupt, an error of whoever reads it), the pieces that were done by then
    have been kept. No more are on their way than keeps all workers busy, so that a million take no memory.

    Args:
        work: the pieces; asked for one by one, when there is room.
        begin: what submits a piece to the executor, whose future gives its arrays, `Failed`, or raises.
        keep: what is done with each as soon as it is there, in this thread.
        executor: any with ``submit``, which stays open; None does the work here, in ``workers`` threads.
        workers: pieces done at once.

    Raises:
        RuntimeError: an executor that takes no pieces, or has lost its processes.
    """
    window = max(2 * workers, _WINDOW) if executor is not None else workers if workers == 1 else 2 * workers
    with _pool(executor, workers) as pool:
        on_the_way, waiting = _OnTheWay[T](pool), iter(work)
        try:
            while True:
                while len(on_the_way) < window and (piece := next(waiting, None)) is not None:
                    on_the_way.submit(begin, piece)
                if not on_the_way:
                    return
                piece, attempt, made = on_the_way.next()
                if not isinstance(made, Failed):
                    keep(piece, made)
                elif attempt < _ATTEMPTS:
                    on_the_way.submit(begin, piece, attempt + 1)
                    continue
                else:
                    made = made._replace(attempts=attempt)
                yield piece, made
        except BaseException as error:
            if executor is None:
                pool.shutdown(wait=True, cancel_futures=True)
            with contextlib.suppress(OSError):  # a full disk, while something else ends the run
                for piece, arrays in on_the_way.given_up():
                    keep(piece, arrays)
            if isinstance(error, BrokenExecutor):
                said = f"executor must keep its processes alive, got one that lost them ({error})"
                raise RuntimeError(f"{said}: call again with a new one, and a folder, which keeps pieces") from error
            raise


class Refused(ValueError):
    """A worker that would not compute what is asked for: no other piece can be done there either."""


@contextlib.contextmanager
def _pool(executor: Any, workers: int) -> Iterator[Any]:
    if executor is not None:
        yield executor
    elif workers == 1:
        yield _Serial()
    else:
        with ThreadPoolExecutor(workers) as pool:
            yield pool
