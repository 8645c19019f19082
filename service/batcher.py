"""Runs what is waiting in one go, without ever waiting for more.

While one batch runs, the next one gathers: under load batches grow by themselves, and a lone
request is not delayed. Whoever has items hands them to the network's thread directly: a turn of
the event loop in between would cost a lone request more than all the rest of the way here.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.faults import Closed, WorkerDied
from service.observer import Observer
from service.workers import Workers, in_loop

__all__ = ["PROBE_S", "Arrays", "Batcher"]

PROBE_S = 2.0
"""After a failed run, how long nobody asked before an empty item is run to find out."""

T = TypeVar("T")
Row = TypeVar("Row")

Arrays = tuple[NDArray[Any], ...]
"""One item: the arrays of one pair, in the order that the run takes their stacks."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Job(Generic[Row]):
    arrays: Arrays
    since: float
    row: Future[Row] = field(default_factory=Future)


class Batcher(Generic[Row]):
    """Collects single items, runs them in batches of fixed sizes, hands each its own row.

    `run` takes one stack (N, ...) for each array of an item and returns N rows in their order; it
    is called in one thread, one call at a time. Items are of one kind: the same arrays, of the
    same shapes. `sizes` are the batch sizes it may be called with; 1 is among them. `observer`
    hears of every run, under the model's `name`. How many may wait is for the caller to bound,
    before the work that an item costs. `excuses` says of what a run raised whether its callers make
    good for it: then they alone hear of it, and it speaks for no failure.
    """

    def __init__(
        self,
        run: Callable[..., Collection[Row]],
        *,
        sizes: Sequence[int],
        name: str = "",
        observer: Observer | None = None,
        excuses: Callable[[Exception], bool] = lambda _error: False,
    ) -> None:
        if 1 not in sizes:
            raise ValueError(f"batch sizes {tuple(sizes)} leave a lone item unanswered: add 1")
        self._run = run
        self._sizes = sorted(sizes, reverse=True)
        self._name = name
        self._observer = observer or Observer()
        self._excuses = excuses
        self._blank: Arrays | None = None
        self._lock = threading.Lock()
        self._jobs: deque[_Job[Row]] = deque()
        self._batch: Sequence[_Job[Row]] = ()
        """Under way. Here, not in a local variable, so that it is found when the thread ends."""
        self._asked = 0.0
        self._busy_since: float | None = None
        self._closing = False
        loop = asyncio.get_running_loop()
        self._thread = Workers(
            1,
            f"mfdan-network-{name}",
            on_death=in_loop(loop, self._observer.worker_died, "network"),
        )

    @property
    def busy_s(self) -> float:
        """For how long the present run has been going on, seconds; 0 when none is."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def failed(self) -> bool:
        """Whether the last run raised, and was not excused."""
        return self._blank is not None

    def submit(self, items: Iterable[Arrays]) -> list[Future[Row]]:
        """Return what will be the row of each item. In any thread.

        All are there before the first is run, so they may share a batch. What is cancelled is
        dropped at once, unless its batch is under way. A row fails with Closed, WorkerDied, or
        whatever the run raised. Raises: Closed.
        """
        since = time.perf_counter()
        jobs: list[_Job[Row]] = [_Job(arrays, since) for arrays in items]
        for job in jobs:
            job.row.add_done_callback(self._forget)
        with self._lock:
            if self._closing:
                raise Closed("the service is shutting down")
            self._asked = since
            self._jobs.extend(jobs)
            for _ in jobs:
                self._add_turn()
        return [job.row for job in jobs]

    async def call(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, called in the thread of the runs, between two of them."""
        return await asyncio.wrap_future(self._thread.submit(work))

    def mend(self) -> None:
        """Replace the thread if it has ended; after a failed run, see whether the next succeeds.

        To be called now and then: without traffic nobody else finds out.
        """
        self._thread.mend()
        blank, idle = self._blank, not self._jobs and not self._batch
        if blank is not None and idle and time.perf_counter() - self._asked >= PROBE_S:
            self.submit([blank])

    async def close(self, timeout_s: float | None = None) -> bool:
        """Finish what is waiting, then stop; return whether that was done in time.

        Nobody is left without an answer: past `timeout_s` it is Closed.
        """
        with self._lock:
            self._closing = True
        left_s = min(math.inf if timeout_s is None else timeout_s, threading.TIMEOUT_MAX)
        return await asyncio.to_thread(self._end, left_s)

    def _end(self, timeout_s: float) -> bool:
        ended = self._thread.close(timeout_s)
        with self._lock:  # left are those of a thread that is stuck, or that ended just now
            left = [*self._batch, *self._jobs]
            self._jobs.clear()
        _fail(left, Closed("the service is shutting down"))
        return ended

    def _add_turn(self) -> None:
        """Have one batch run: one turn for each item, so that none is ever left waiting.

        Those that find nothing, because a batch took several, cost next to nothing.
        """
        self._thread.submit(self._turn).add_done_callback(self._turned)

    def _turned(self, turn: Future[None]) -> None:
        """Fail what an ended thread had in its hands; another takes the turn.

        Once closing there is no other: `close` answers those who are left.
        """
        died = turn.exception()
        if isinstance(died, WorkerDied):
            self._fail_batch(died)
            with suppress(Closed):
                self._add_turn()

    def _turn(self) -> None:
        """Run one batch of those who wait, if any. In the network's thread."""
        self._take()
        if not self._batch:
            return
        self._busy_since = time.monotonic()
        try:
            rows = self._rows()
        except Exception as error:  # noqa: BLE001 - every waiter must hear of it
            self._fail_batch(error)
            return
        self._blank = None
        self._busy_since = None
        for job, row in zip(self._batch, rows, strict=True):
            with suppress(InvalidStateError):  # its caller has gone
                job.row.set_result(row)
        self._batch = ()

    def _take(self) -> None:
        """Take the largest fixed size that those still interested fill."""
        with self._lock:
            interested = [job for job in self._jobs if not job.row.done()]
            size = next((size for size in self._sizes if size <= len(interested)), 0)
            # In this order: wherever the thread ends, each job is in one of the two.
            self._batch = interested[:size]
            self._jobs = deque(interested[size:])

    def _rows(self) -> Collection[Row]:
        # No job in a local variable here or in `_turn`, while it runs: a fault's traceback leads
        # to both, and a job to that fault, so its pixels would live until a cycle is collected.
        start = time.perf_counter()
        size = len(self._batch)
        self._tell_waits(start)
        rows = self._run(*map(_stacked, zip(*(job.arrays for job in self._batch), strict=True)))
        if len(rows) != size:  # a short answer is a fault too
            raise RuntimeError(f"{size} items were run, {len(rows)} rows came back")
        self._observer.batch_ran(self._name, size, time.perf_counter() - start)
        return rows

    def _tell_waits(self, start: float) -> None:
        for job in self._batch:
            self._observer.waited("network", start - job.since)

    def _fail_batch(self, error: Exception) -> None:
        if not self._batch:
            return
        self._busy_since = None
        excused = self._excuses(error)
        if not (excused or isinstance(error, WorkerDied)):  # that says nothing of the network
            self._blank = tuple(map(np.zeros_like, self._batch[0].arrays))
        if not excused:
            self._observer.batch_failed(self._name, len(self._batch), error)
        _fail(self._batch, error)
        self._batch = ()

    def _forget(self, row: Future[Row]) -> None:
        if not row.cancelled():
            return
        with self._lock:
            self._jobs = deque(job for job in self._jobs if job.row is not row)


def _stacked(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    # A lone one is not copied: that would take longer than all the rest of the way here.
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _fail(jobs: Iterable[_Job[Any]], error: Exception) -> None:
    for job in jobs:
        with suppress(InvalidStateError):  # it was answered, or its caller has gone
            job.row.set_exception(error)
