"""Jobs side by side: in processes of this machine, or as tasks of a Ray cluster.

A job is whatever the caller's function takes; it leaves its result in a file, so every node must
see the same folders under the same paths. On a cluster every node needs this package and its extra
`train` installed in the version that starts the run: code is not shipped. Ray retries a task whose
worker or node died; the function must stand being run twice.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from model.errors import MfdanError

__all__ = ["Failure", "Place", "run_jobs"]

J = TypeVar("J")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where jobs run, and how many at a time. Raises: ValueError."""

    jobs: int | None = None
    """At a time; None: one on this machine, as many as there is room for on a cluster."""
    ray: str | None = None
    """Address of a Ray cluster ("auto", "ray://host:10001"); "local" starts one here.

    On a machine with several cards, jobs that are not Ray's all use the current one (choose it with
    CUDA_VISIBLE_DEVICES); `--ray local --gpu-share 1` spreads them over all.
    """
    cpus: int = 1
    """That one job takes, of a cluster."""
    gpus: float = 0.0
    """Share of a card that one job takes, of a cluster."""

    def __post_init__(self) -> None:
        """Refuse a place with no room."""
        if self.jobs is not None and self.jobs < 1:
            raise ValueError(f"jobs must be at least 1, got {self.jobs}")
        if self.gpus < 0 or (self.gpus > 1 and self.gpus % 1):
            raise ValueError(f"a share of a card is at most 1, or whole cards; got {self.gpus}")


@dataclass(frozen=True, slots=True)
class Failure(Generic[J]):
    """A job that failed by its own fault, and why."""

    job: J
    reason: str


@dataclass(frozen=True, slots=True)
class _Fault:
    """What a worker answers for a failed job: text, for not every exception can be pickled."""

    reason: str
    stops_all: bool


def run_jobs(
    jobs: Sequence[J],
    run: Callable[[J], object],
    place: Place,
    on_done: Callable[[J], None] = lambda _job: None,
) -> list[Failure[J]]:
    """Run every job once; `on_done` hears of each as it finishes. `run` must be importable.

    A job that raises ValueError or MfdanError is a `Failure` of its own: the others go on.
    Raises: OSError naming the job that met one (a full disk stops every job), ChildProcessError
    naming the jobs lost with a worker, ValueError if Ray is not installed or its address is none
    ("nonsense"), ConnectionError if no cluster answers there ("ray://127.0.0.1:1", after half a
    minute); KeyboardInterrupt, once no worker is left running.
    """
    if not jobs:
        return []  # nobody waits for a cluster to start
    if place.ray is not None:
        return _on_ray(jobs, run, place, on_done)
    if (place.jobs or 1) > 1:
        return _in_processes(jobs, run, place.jobs or 1, on_done)
    failures: list[Failure[J]] = []
    for job in jobs:
        _settle(job, _attempt(run, job), failures, on_done)
    return failures


def _attempt(run: Callable[[J], object], job: J) -> _Fault | None:
    """Run one job, in whichever process this is."""
    try:
        run(job)
    except OSError as fault:
        return _Fault(str(fault), stops_all=True)
    except (ValueError, MfdanError) as fault:
        return _Fault(str(fault), stops_all=False)
    return None


def _settle(
    job: J, fault: _Fault | None, failures: list[Failure[J]], on_done: Callable[[J], None]
) -> None:
    if fault is None:
        on_done(job)
    elif fault.stops_all:
        raise OSError(f"{job}: {fault.reason}")
    else:
        failures.append(Failure(job, fault.reason))


def _in_processes(
    jobs: Sequence[J], run: Callable[[J], object], processes: int, on_done: Callable[[J], None]
) -> list[Failure[J]]:
    failures: list[Failure[J]] = []
    waiting = iter(jobs)
    running: dict[Future[_Fault | None], J] = {}
    with _pool(min(processes, len(jobs))) as pool:
        try:
            while True:
                # No more than there are workers: what is lost with one of them is then known.
                for job in islice(waiting, processes - len(running)):
                    with _interrupts_blocked():
                        running[pool.submit(_attempt, run, job)] = job
                if not running:
                    return failures
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    fault = future.result()
                    _settle(running.pop(future), fault, failures, on_done)
        except BrokenProcessPool:
            raise _lost(running, on_done) from None


def _lost(
    running: dict[Future[_Fault | None], J], on_done: Callable[[J], None]
) -> ChildProcessError:
    """Say what a dead worker took along; the pool stops the others with it."""
    lost = []
    for future, job in running.items():
        if future.done() and not future.exception() and future.result() is None:
            on_done(job)
        else:
            lost.append(str(job))
    return ChildProcessError(
        f"a worker process died (killed, or out of memory?); lost with it: {'; '.join(lost)}. "
        "What was finished is kept: the same command goes on from there"
    )


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Open worker processes; they are killed at once if the block is left by an exception."""
    others = set(multiprocessing.active_children())
    # Spawned, not forked: a forked child would inherit the locks of torch's threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _start_worker)
    try:
        yield pool
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: the parent hears it and says when to stop."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this worker when its parent is gone, lest it train on beside the resumed run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _on_ray(
    jobs: Sequence[J], run: Callable[[J], object], place: Place, on_done: Callable[[J], None]
) -> list[Failure[J]]:
    failures: list[Failure[J]] = []
    waiting = iter(jobs)
    running: dict[Any, J] = {}
    with _cluster(place) as ray:
        task = ray.remote(num_cpus=place.cpus, num_gpus=place.gpus)(_attempt)
        room = place.jobs or len(jobs)
        while True:
            for job in islice(waiting, room - len(running)):
                running[task.remote(run, job)] = job
            if not running:
                return failures
            for future in ray.wait(list(running))[0]:
                job = running.pop(future)
                try:
                    fault = ray.get(future)
                except ray.exceptions.RayTaskError:
                    raise  # a bug of the job
                except ray.exceptions.RayError as died:
                    fault = _Fault(f"lost with its worker: {died}", stops_all=False)
                _settle(job, fault, failures, on_done)


@contextmanager
def _cluster(place: Place) -> Iterator[Any]:
    """Connect to a cluster, or start one on this machine; disconnect or stop it in any case."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Cards are hidden by the device that a job is given, not by Ray (its future default).
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray  # noqa: PLC0415 - an extra, and slow to load
    except ImportError:
        raise ValueError("--ray needs the extra `ray`: pip install 'mfdan[ray]'") from None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if place.ray == "local":
        cpus = place.jobs and place.jobs * place.cpus  # None: all that this machine has
        options |= {"include_dashboard": False, "num_cpus": cpus}
    _connect(ray, str(place.ray), options)
    try:
        yield ray
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str, options: dict[str, Any]) -> None:  # noqa: ANN401 - an optional module
    try:
        ray.init(address, **options)
    except ConnectionError as fault:
        told = " ".join(str(fault).split())
        raise ConnectionError(f"--ray {address}: no cluster answers: {told}") from None
    except (ValueError, RuntimeError) as fault:  # Ray's word for a scheme that it does not know
        told = " ".join(str(fault).split())
        raise ValueError(f"--ray {address}: {told}") from None
