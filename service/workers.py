"""A bounded pool of threads, each replaced when it ends.

`concurrent.futures` never replaces a thread that has ended: whoever waits for its work waits for
ever, and the pool is one smaller from then on.
"""

import asyncio
import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, ParamSpec, TypeVar

from service.faults import Closed, WorkerDied

__all__ = ["Workers", "in_loop"]

T = TypeVar("T")
Given = ParamSpec("Given")
_LOG = logging.getLogger("mfdan")


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True, eq=False)
class _Job(Generic[T]):
    work: Callable[[], T]
    limit_s: float
    answer: Future[T] = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class _Worker:
    """One thread and what it has in its hands."""

    thread: threading.Thread | None = None
    job: _Job[Any] | None = None
    late: float = math.inf
    """When the job's limit will be over, by `time.monotonic`."""
    ready: Future[object] = field(default_factory=Future)
    """Done once `first` was run."""
    wake: SimpleQueue[None] = field(default_factory=SimpleQueue)
    """What it waits at when there is no job."""


class Workers:
    """`count` threads that take jobs from one queue.

    A job that ends its thread, by SystemExit or another BaseException, fails with WorkerDied, and
    so does the job of a thread that something else ends. Another thread takes its place, and
    `on_death` is called: in a thread, so it must hand on what it does.
    Each thread calls `first` before its first job. How many jobs may wait is for the caller to
    bound. The threads are daemons: a stuck one does not keep the process from ending.
    """

    def __init__(
        self,
        count: int,
        name: str,
        *,
        first: Callable[[], object] = _nothing,
        on_death: Callable[[], object] = _nothing,
    ) -> None:
        self._count = count
        self._name = name
        self._first = first
        self._on_death = on_death
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._jobs: deque[_Job[Any]] = deque()
        self._jobs_ahead: deque[_Job[Any]] = deque()
        self._closing = False
        self._workers: list[_Worker] = []
        self._idle: list[_Worker] = []
        """Whoever was last at work is last here and the first to be woken: what it works with is
        still in the processor's caches."""
        self._fill()

    @property
    def busy(self) -> int:
        """Workers that have a job."""
        return sum(one.job is not None for one in self._workers)

    @property
    def overdue(self) -> int:
        """Workers that have been at one job for longer than its limit."""
        now = time.monotonic()
        return sum(one.late < now for one in self._workers)

    @property
    def threads(self) -> list[threading.Thread]:
        """The threads, for tests that end them."""
        return [one.thread for one in self._workers if one.thread is not None]

    def ready(self) -> list[Future[object]]:
        """Return what is done when each worker has run `first`, and fails as it failed."""
        return [one.ready for one in self._workers]

    def submit(
        self, work: Callable[[], T], limit_s: float = math.inf, *, ahead: bool = False
    ) -> Future[T]:
        """Have a worker call `work`; past `limit_s` of it the worker counts as overdue.

        What goes `ahead` is taken before all else that waits, in the order in which it came. What
        is cancelled before it began leaves the queue at once. Raises: Closed.
        """
        job = _Job(work, limit_s)
        job.answer.add_done_callback(self._forget)
        with self._lock:
            if self._closing:
                raise Closed("the service is shutting down")
            (self._jobs_ahead if ahead else self._jobs).append(job)
            if self._idle:
                # In this order: whoever is ended in between has woken it, and `_take` clears up.
                self._idle[-1].wake.put(None)
                self._idle.pop()
        return job.answer

    def mend(self) -> None:
        """Replace threads that have ended, in whatever way."""
        for worker in [*self._workers]:
            if worker.thread is not None and not worker.thread.is_alive() and not self._closing:
                self._bury(worker)
        with suppress(RuntimeError):  # the system has no thread left: the next call tries again
            self._fill()

    def close(self, timeout_s: float) -> bool:
        """Finish all jobs and end the threads; return whether that was done in time.

        Blocks for `timeout_s` at most; a thread that is stuck is left behind.
        """
        with self._lock:
            self._closing = True
            for worker in self._workers:
                worker.wake.put(None)
        end = time.monotonic() + timeout_s
        for thread in self.threads:
            thread.join(max(0.0, end - time.monotonic()))
        # Only where every thread is stuck or has ended.
        for job in (*self._jobs_ahead, *self._jobs):
            _fail(job.answer, Closed("the service is shutting down"))
        return not any(thread.is_alive() for thread in self.threads)

    def _forget(self, answer: Future[Any]) -> None:
        if not answer.cancelled():
            return
        with self._lock:
            self._jobs_ahead, self._jobs = (
                deque(job for job in jobs if job.answer is not answer)
                for jobs in (self._jobs_ahead, self._jobs)
            )

    def _fill(self) -> None:
        with self._lock:
            while len(self._workers) < self._count and not self._closing:
                self._start()

    def _start(self) -> None:
        worker = _Worker()
        worker.ready.set_running_or_notify_cancel()
        name = f"{self._name}-{next(self._numbers)}"
        worker.thread = threading.Thread(target=self._live, args=[worker], name=name, daemon=True)
        worker.thread.start()
        self._workers.append(worker)

    def _live(self, worker: _Worker) -> None:
        try:
            _settle(worker.ready, self._first)
            self._serve(worker)
        except BaseException as error:  # noqa: BLE001 - also what ends threads: it is replaced
            _LOG.error("a thread of %s ended: %s", self._name, type(error).__name__)
            self._bury(worker)

    def _serve(self, worker: _Worker) -> None:
        while self._take(worker):
            if worker.job is None:
                worker.wake.get()
            else:
                _run(worker)

    def _take(self, worker: _Worker) -> bool:
        """Give a worker its next job, or note that it is idle; False when there will be none."""
        with self._lock:
            self._forget_idle(worker)
            jobs = self._jobs_ahead or self._jobs
            if jobs:
                # In this order: whatever ends the thread between two lines, the job is in a place
                # where `_bury` or the next worker finds it.
                worker.job = jobs[0]
                worker.late = time.monotonic() + worker.job.limit_s
                jobs.popleft()
            elif self._closing:
                return False
            else:
                self._idle.append(worker)
            return True

    def _forget_idle(self, worker: _Worker) -> None:
        if worker in self._idle:
            self._idle.remove(worker)

    def _bury(self, worker: _Worker) -> None:
        """Fail what an ended thread had in its hands, and put another in its place.

        In this order: where this is broken off, `mend` finds the worker and does it again.
        """
        died = WorkerDied("the thread that worked on it ended; send it again")
        _fail(worker.ready, died)
        if worker.job is not None:
            _fail(worker.job.answer, died)
        with self._lock:
            if worker not in self._workers:
                return
            self._forget_idle(worker)
            self._workers.remove(worker)
        self._on_death()
        self.mend()


def in_loop(
    loop: asyncio.AbstractEventLoop,
    call: Callable[Given, object],
    *given: Given.args,
    **named: Given.kwargs,
) -> Callable[..., None]:
    """Return what any thread may call, with anything, to have the event loop make this call."""

    def hand_over(*_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is there to hear
            loop.call_soon_threadsafe(partial(call, *given, **named))

    return hand_over


def _run(worker: _Worker) -> None:
    job = worker.job
    assert job is not None  # noqa: S101 - it was taken
    # A job whose worker ended while taking it is done already, and still in the queue.
    if not job.answer.done() and job.answer.set_running_or_notify_cancel():
        _settle(job.answer, job.work)
    del job  # a fault's traceback leads here: what was sent would live until a cycle is collected
    worker.late = math.inf
    worker.job = None


def _fail(future: Future[Any], error: Exception) -> None:
    with suppress(InvalidStateError):  # it was settled, or whoever asked has gone
        future.set_exception(error)


def _settle(future: Future[T], work: Callable[[], T]) -> None:
    try:
        result = work()
    except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
        future.set_exception(error)
        del future, work  # likewise
    else:
        future.set_result(result)
