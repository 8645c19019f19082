"""Work shared out to processes, one for each core."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2

__all__ = ["in_processes"]

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_processes(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int = 0
) -> Iterator[tuple[Task, Result]]:
    """Yield each task with its result as it is done, in any order; 0 workers: one for each core.

    The first fault cancels what has not begun, waits for what has, and is raised.
    Raises: ChildProcessError if a process was killed; whatever `function` raises.
    """
    if not tasks:
        return
    # Spawned, not forked: a forked child would inherit the locks of this process's threads.
    context = multiprocessing.get_context("spawn")
    count = min(workers or os.cpu_count() or 1, len(tasks))
    with ProcessPoolExecutor(count, context, _start) as pool:
        jobs = {pool.submit(function, task): task for task in tasks}
        try:
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        except BrokenProcessPool:
            raise ChildProcessError(
                "a worker process was killed (is memory short?); the same command goes on"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _start() -> None:
    cv2.setNumThreads(1)  # there is a process for each core already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Do what a killed parent cannot: its workers would wait for their next task for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
