"""The work of a sweep: its pieces made, kept as they come, and put together; what fails is said and left out."""

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

from vgjax.ensembles import runner
from vgjax.ensembles.assembly import Arrays, Assembly, Outline, Slot
from vgjax.ensembles.folder import Checkpoint, Status, named, status
from vgjax.ensembles.job import Job
from vgjax.ensembles.result import Result

OnError = Literal["record", "raise"]
_HOPELESS = 4
"""Pieces that fail before any is done, from which on it is the sweep that fails."""


class Work:
    """All pieces of a sweep, or a part of them.

    Args:
        outline: what the result is of.
        jobs: of every network.
        checkpoint: the folder that keeps pieces; None: none.
        part: (i, n), whose pieces are kept in the folder alone; None: all, put together in memory.
        on_error: whether the first failure ends it.
    """

    def __init__(
        self,
        outline: Outline,
        jobs: list[Job],
        checkpoint: Checkpoint | None,
        part: tuple[int, int] | None,
        on_error: OnError,
    ):
        self._outline, self._jobs, self._checkpoint, self._on_error = outline, jobs, checkpoint, on_error
        self._part, self._whole = part or (0, 1), part is None
        self._assembly, self._done = Assembly(outline), 0
        self._failed: dict[Slot, runner.Failed] = {}

    def here(self, workers: int) -> Callable[[Any, Slot, int], Any]:
        """What submits pieces that are made in this process."""
        draws = [functools.lru_cache(maxsize=workers)(job.draw) for job in self._jobs]  # a seed's pieces come in a row
        return runner.in_this_process(
            lambda slot: self._jobs[slot.network].piece(draws[slot.network], slot.seed, slot.chunk)
        )

    def do(self, begin: Callable[[Any, Slot, int], Any], show: bool | None, **how: Any) -> None:
        """Do what the folder does not hold yet.

        Args:
            begin: what submits a piece.
            show: a progress bar.
            **how: executor and workers, as for `runner.run`.
        """
        with runner.progress_bar(self._outline.count(self._part), self._outline.measure, show) as bar:
            for slot, made in runner.run(self._missing(bar), begin, self._keep, **how):
                bar.update()
                if isinstance(made, runner.Failed):
                    self._fail(slot, made, keep=True)
                else:
                    self._put(slot, made)

    def _missing(self, bar: Any) -> Iterator[Slot]:
        """Pieces that are to be made; those that are kept are put where they belong on the way."""
        for slot in self._outline.slots(self._part):
            kept = self._checkpoint.read(slot.name) if self._checkpoint else None
            if kept is None:
                yield slot
            else:
                bar.update()
                self._put(slot, kept)

    def _keep(self, slot: Slot, piece: Arrays) -> None:
        if self._checkpoint and self._whole:
            self._checkpoint.write_or_warn(slot.name, piece)
        elif self._checkpoint:  # where a piece that is not kept is lost
            self._checkpoint.write(slot.name, piece)

    def _put(self, slot: Slot, piece: Arrays) -> None:
        job = self._jobs[slot.network]
        if self._whole:
            try:
                self._assembly.put(slot, job.finished(slot.seed, piece) if job.finish_last else piece)
            except Exception as error:  # of a user's own finish
                self._fail(slot, runner.Failed.of(error), keep=False)
                return
        self._done += 1

    def _fail(self, slot: Slot, failed: runner.Failed, keep: bool) -> None:
        if keep and self._checkpoint:
            self._checkpoint.write_failed(slot.name, failed)
        self._failed[slot] = failed
        if not self._done and len(self._failed) == min(_HOPELESS, self._outline.count(self._part)):
            raise failed.error
        if self._on_error == "raise":
            failed.error.add_note(f"in the piece of {self._outline.said(slot)}")
            raise failed.error
        self._failed[slot] = failed.without_frames()

    def warn(self, stacklevel: int) -> None:
        """Name the pieces that failed."""
        if not self._failed:
            return
        each = [f"{self._outline.said(slot)} ({failed.said})" for slot, failed in sorted(self._failed.items())]
        count, are = self._outline.count(self._part), "NaN in the result" if self._whole else "not in the folder"
        text = f"{len(each)} of {count} pieces failed and are {are}: {named(each)}"
        warnings.warn(text, RuntimeWarning, stacklevel=stacklevel + 1)

    def result(self) -> Result | Status:
        """The result; of a part, how far its folder is."""
        if not self._whole:
            return status(self._checkpoint.folder)  # type: ignore[union-attr]
        return self._assembly.result({slot: failed.said for slot, failed in sorted(self._failed.items())})
