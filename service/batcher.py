"""Runs what is waiting in one go, without ever waiting for more.

While one batch runs, the next one gathers: under load batches grow by themselves, and a lone
request is not delayed.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.faults import Closed
from service.observer import Observer

__all__ = ["Batcher"]

FloatArray = NDArray[np.float32]
Run = Callable[[FloatArray, FloatArray], FloatArray]


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    image: FloatArray
    flow: FloatArray
    row: asyncio.Future[FloatArray]
    since: float


class Batcher:
    """Collects single items, runs them in batches of fixed sizes, hands each its own row.

    `run` takes image and flow stacks (N, 3, S, S) and returns (N, K); it is called in a
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
        self._failed = False
        self._jobs: deque[_Job] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._busy_since: float | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mfdan-onnx")
        self._worker = asyncio.create_task(self._work())

    @property
    def waiting(self) -> int:
        """Items that wait for a batch."""
        return len(self._jobs)

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
        return self._failed

    async def submit(self, image: FloatArray, flow: FloatArray) -> FloatArray:
        """Return the (K,) row of one item; image and flow are (3, S, S).

        A cancelled call is dropped at once, unless its batch is under way.
        Raises: Closed, or whatever the run raised.
        """
        if self._closing or not self.alive:
            raise Closed("the service is shutting down")
        job = _Job(image, flow, asyncio.get_running_loop().create_future(), time.perf_counter())
        self._jobs.append(job)
        self._wake.set()
        try:
            return await job.row
        finally:
            with suppress(ValueError):  # it was taken
                self._jobs.remove(job)

    async def close(self) -> None:
        """Finish what is waiting, then stop. Nobody is left without an answer."""
        self._closing = True
        self._wake.set()
        with suppress(asyncio.CancelledError):
            await self._worker
        self._thread.shutdown(wait=True)

    async def _work(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while jobs := self._take():
                    await self._flush(jobs)
                if self._closing:
                    return
        finally:
            # Only a cancelled worker comes here with jobs left.
            for job in self._jobs:
                _fail(job, Closed("the service is shutting down"))
            self._jobs.clear()

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
            self._failed = True
            self._observer.batch_failed(self._name, len(jobs), error)
            for job in jobs:
                _fail(job, error)
            return
        finally:
            self._busy_since = None
        self._failed = False
        for job, row in zip(jobs, rows, strict=True):
            if not job.row.done():
                job.row.set_result(row)

    async def _run_in_thread(self, jobs: list[_Job]) -> FloatArray:
        def run() -> FloatArray:
            return self._run(
                np.stack([job.image for job in jobs]), np.stack([job.flow for job in jobs])
            )

        start = time.perf_counter()
        for job in jobs:
            self._observer.waited("network", start - job.since)
        rows = await asyncio.get_running_loop().run_in_executor(self._thread, run)
        if len(rows) != len(jobs):  # a short answer is a fault too
            raise RuntimeError(f"{len(jobs)} items were run, {len(rows)} rows came back")
        self._observer.batch_ran(self._name, len(jobs), time.perf_counter() - start)
        return rows


def _fail(job: _Job, error: Exception) -> None:
    future: asyncio.Future[Any] = job.row
    if not future.done():
        future.set_exception(error)
