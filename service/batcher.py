"""Runs what is waiting in one go, without ever waiting for more.

While one batch runs, the next one gathers: under load batches grow by themselves, and a lone
request is not delayed.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from service.faults import Closed, WorkerDied
from service.observer import Observer
from service.workers import Workers, in_loop

__all__ = ["PROBE_S", "Batcher"]

PROBE_S = 2.0
"""After a failed run, how long to wait for work before an empty item is run to find out."""

T = TypeVar("T")

FloatArray = NDArray[np.float32]
Run = Callable[[FloatArray, FloatArray], FloatArray]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Job:
    image: FloatArray
    flow: FloatArray
    row: asyncio.Future[FloatArray]
    since: float


class Batcher:
    """Collects single items, runs them in batches of fixed sizes, hands each its own row.

    `run` takes image and flow stacks (N, 3, S, S) and returns (N, K); it is called in one
    thread, one call at a time. `sizes` are the batch sizes it may be called with; 1 is among
    them. `observer` hears of every run, under the model's `name`. How many may wait is for the
    caller to bound, before the work that an item costs.
    """

    def __init__(
        self,
        run: Run,
        *,
        sizes: Sequence[int],
        name: str = "",
        observer: Observer | None = None,
    ) -> None:
        if 1 not in sizes:
            raise ValueError(f"batch sizes {tuple(sizes)} leave a lone item unanswered: add 1")
        self._run = run
        self._sizes = sorted(sizes, reverse=True)
        self._name = name
        self._observer = observer or Observer()
        self._blank: tuple[FloatArray, FloatArray] | None = None
        self._jobs: deque[_Job] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._busy_since: float | None = None
        loop = asyncio.get_running_loop()
        self._thread = Workers(
            1,
            f"mfdan-network-{name}",
            on_death=in_loop(loop, self._observer.worker_died, "network"),
        )
        self._worker = asyncio.create_task(self._work())

    @property
    def alive(self) -> bool:
        """Whether the worker still takes work."""
        return not self._worker.done()

    @property
    def busy_s(self) -> float:
        """For how long the present run has been going on, seconds; 0 when none is."""
        return 0.0 if self._busy_since is None else time.monotonic() - self._busy_since

    @property
    def failed(self) -> bool:
        """Whether the last run raised."""
        return self._blank is not None

    def submit(self, image: FloatArray, flow: FloatArray) -> asyncio.Future[FloatArray]:
        """Return what will be the (K,) row of one item; image and flow are (3, S, S).

        What is cancelled is dropped at once, unless its batch is under way. It fails with Closed,
        or whatever the run raised. Raises: Closed.
        """
        if self._closing or not self.alive:
            raise Closed("the service is shutting down")
        job = _job(image, flow)
        job.row.add_done_callback(partial(self._drop, job))
        self._jobs.append(job)
        self._wake.set()
        return job.row

    async def call(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, called in the thread of the runs, between two of them."""
        return await asyncio.wrap_future(self._thread.submit(work))

    def mend(self) -> None:
        """Replace the thread if it has ended."""
        self._thread.mend()

    async def close(self, timeout_s: float | None = None) -> bool:
        """Finish what is waiting, then stop; return whether that was done in time.

        Nobody is left without an answer: past `timeout_s` it is Closed.
        """
        loop = asyncio.get_running_loop()
        end = math.inf if timeout_s is None else loop.time() + timeout_s
        self._closing = True
        self._wake.set()
        await asyncio.wait([self._worker], timeout=timeout_s)
        self._worker.cancel()
        await asyncio.wait([self._worker])
        left_s = max(0.0, min(end - loop.time(), threading.TIMEOUT_MAX))
        return await asyncio.to_thread(self._thread.close, left_s)

    async def _work(self) -> None:
        try:
            while True:
                await self._woken()
                while jobs := self._take():
                    await self._flush(jobs)
                if self._closing:
                    return
        finally:
            # Only a cancelled worker comes here with jobs left.
            for job in self._jobs:
                _fail(job, Closed("the service is shutting down"))
            self._jobs.clear()

    def _drop(self, job: _Job, row: asyncio.Future[FloatArray]) -> None:
        # Not by `remove` alone: where the job was taken, that would describe it, pixels and all.
        if row.cancelled() and job in self._jobs:
            self._jobs.remove(job)

    async def _woken(self) -> None:
        """Wait for work. After a failed run not for long: without traffic nobody else finds out."""
        try:
            async with asyncio.timeout(PROBE_S if self._blank is not None else None):
                await self._wake.wait()
        except TimeoutError:
            assert self._blank is not None  # noqa: S101 - else nothing is timed
            probe = _job(*self._blank)
            probe.row.add_done_callback(lambda row: row.cancelled() or row.exception())
            self._jobs.append(probe)
        self._wake.clear()

    def _take(self) -> list[_Job]:
        """Take the largest fixed size that those still interested fill."""
        interested = [job for job in self._jobs if not job.row.done()]
        self._jobs = deque(interested)
        size = next((size for size in self._sizes if size <= len(interested)), 0)
        return [self._jobs.popleft() for _ in range(size)]

    async def _flush(self, jobs: list[_Job]) -> None:
        self._busy_since = time.monotonic()
        try:
            rows = await self._run_in_thread(jobs)
        except asyncio.CancelledError:
            for job in jobs:
                _fail(job, Closed("the service is shutting down"))
            raise
        except Exception as error:  # noqa: BLE001 - every waiter must hear of it
            if not isinstance(error, WorkerDied):  # it says nothing of the network
                self._blank = np.zeros_like(jobs[0].image), np.zeros_like(jobs[0].flow)
            self._observer.batch_failed(self._name, len(jobs), error)
            for job in jobs:
                _fail(job, error)
            return
        finally:
            self._busy_since = None
        self._blank = None
        for job, row in zip(jobs, rows, strict=True):
            if not job.row.done():
                job.row.set_result(row)

    async def _run_in_thread(self, jobs: list[_Job]) -> FloatArray:
        def run() -> FloatArray:
            return self._run(
                _stacked([job.image for job in jobs]), _stacked([job.flow for job in jobs])
            )

        start = time.perf_counter()
        for job in jobs:
            self._observer.waited("network", start - job.since)
        rows = await self.call(run)
        if len(rows) != len(jobs):  # a short answer is a fault too
            raise RuntimeError(f"{len(jobs)} items were run, {len(rows)} rows came back")
        self._observer.batch_ran(self._name, len(jobs), time.perf_counter() - start)
        return rows


def _stacked(arrays: list[FloatArray]) -> FloatArray:
    # A lone one is not copied: that would take longer than all the rest of the way here.
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _job(image: FloatArray, flow: FloatArray) -> _Job:
    return _Job(image, flow, asyncio.get_running_loop().create_future(), time.perf_counter())


def _fail(job: _Job, error: Exception) -> None:
    if not job.row.done():
        job.row.set_exception(error)
