import asyncio
import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from serving import end_thread, wait_for

from service.faults import Closed, WorkerDied
from service.workers import Workers, in_loop


@contextmanager
def workers(count: int = 2, **options: object) -> Iterator[Workers]:
    pool = Workers(count, "test", **options)
    try:
        yield pool
    finally:
        assert pool.close(20)


class Busy:
    """A job that goes on until told, in Python's own steps."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.begun = threading.Event()
        self.may_end = threading.Event()

    def __call__(self) -> str:
        self.thread = threading.current_thread()
        self.begun.set()
        while not self.may_end.wait(0.005):
            pass
        return "done"


def test_each_job_gets_its_own_answer_or_fault() -> None:
    def halve(number: int) -> int:
        if number % 2:
            raise ValueError(number)
        return number // 2

    with workers() as pool:
        answers = [pool.submit(lambda number=number: halve(number)) for number in range(50)]
        for number, answer in enumerate(answers):
            if number % 2:
                with pytest.raises(ValueError, match=f"^{number}$"):
                    answer.result(20)
            else:
                assert answer.result(20) == number // 2


def test_of_idle_workers_the_one_that_was_last_at_work_is_woken() -> None:
    with workers(3) as pool:
        names = set()
        for _ in range(6):
            time.sleep(0.1)  # until it is idle again, which comes after its answer
            names.add(pool.submit(lambda: threading.current_thread().name).result(20))
        assert len(names) == 1


def test_what_goes_ahead_is_taken_before_all_that_waits_and_in_the_order_it_came() -> None:
    with workers(1) as pool:
        busy, done = Busy(), []
        pool.submit(busy)
        assert busy.begun.wait(20)
        answers = [
            pool.submit(lambda name=name: done.append(name), ahead=name.startswith("ahead"))
            for name in ("first", "ahead 1", "second", "ahead 2", "ahead 3")
        ]
        busy.may_end.set()
        for answer in answers:
            answer.result(20)
        assert done == ["ahead 1", "ahead 2", "ahead 3", "first", "second"]


def test_what_goes_ahead_and_is_cancelled_leaves_the_queue_at_once() -> None:
    with workers(1) as pool:
        busy, done = Busy(), []
        pool.submit(busy)
        assert busy.begun.wait(20)
        left, stays = (
            pool.submit(lambda name=name: done.append(name), ahead=True)
            for name in ("left", "stays")
        )
        assert left.cancel()
        busy.may_end.set()
        stays.result(20)
        assert done == ["stays"]


def test_as_many_jobs_run_at_once_as_there_are_workers_and_no_more() -> None:
    with workers(2) as pool:
        jobs = [Busy() for _ in range(3)]
        answers = [pool.submit(job) for job in jobs]
        assert jobs[0].begun.wait(20)
        assert jobs[1].begun.wait(20)
        assert pool.busy == 2
        assert not jobs[2].begun.wait(0.05)
        for job in jobs:
            job.may_end.set()
        assert [answer.result(20) for answer in answers] == ["done"] * 3
        wait_for(lambda: pool.busy == 0)


def test_a_thread_that_ends_at_work_fails_its_job_and_is_replaced() -> None:
    deaths: list[str] = []
    with workers(2, on_death=lambda: deaths.append("dead")) as pool:
        first, second = Busy(), Busy()
        lost, kept = pool.submit(first), pool.submit(second)
        assert first.begun.wait(20)
        assert second.begun.wait(20)
        assert first.thread is not None
        end_thread(first.thread)
        with pytest.raises(WorkerDied, match="send it again"):
            lost.result(20)
        third = Busy()
        more = pool.submit(third)
        assert third.begun.wait(20)  # though the second is still at work
        second.may_end.set()
        third.may_end.set()
        assert (kept.result(20), more.result(20)) == ("done", "done")
        wait_for(lambda: deaths == ["dead"])
        assert first.thread not in pool.threads
        wait_for(lambda: sum(thread.is_alive() for thread in pool.threads) == 2)


def test_a_thread_that_ends_while_idle_costs_no_job() -> None:
    """It hears of its end when it is woken for a job, and another takes that job."""
    deaths: list[str] = []
    with workers(1, on_death=lambda: deaths.append("dead")) as pool:
        assert pool.submit(lambda: 1).result(20) == 1
        wait_for(lambda: pool.busy == 0)
        (idle,) = pool.threads
        end_thread(idle)
        assert [pool.submit(lambda: 2).result(20), pool.submit(lambda: 3).result(20)] == [2, 3]
        assert deaths == ["dead"]
        assert not idle.is_alive()


@pytest.mark.parametrize("fatal", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_job_that_would_end_its_thread_is_told_as_a_worker_that_died(
    fatal: type[BaseException],
) -> None:
    def job() -> None:
        raise fatal

    with workers(1) as pool:
        with pytest.raises(WorkerDied):
            pool.submit(job).result(20)
        assert pool.submit(lambda: "next").result(20) == "next"


def test_of_many_jobs_only_those_whose_thread_ended_are_lost() -> None:
    deaths: list[str] = []
    with workers(3, on_death=lambda: deaths.append("dead")) as pool:
        jobs = [Busy() for _ in range(60)]
        answers = [pool.submit(job) for job in jobs]
        for number, job in enumerate(jobs):
            assert job.begun.wait(20)
            if number % 3:
                job.may_end.set()
            else:
                assert job.thread is not None
                end_thread(job.thread)
        for number, answer in enumerate(answers):
            if number % 3:
                assert answer.result(20) == "done"
            else:
                with pytest.raises(WorkerDied):
                    answer.result(20)
        wait_for(lambda: len(deaths) == 20)
        wait_for(lambda: sum(thread.is_alive() for thread in pool.threads) == 3)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_could_not_tell_of_its_end_is_found_by_mending() -> None:
    with workers(1) as pool:
        job = Busy()
        lost = pool.submit(job)
        assert job.begun.wait(20)
        bury = pool._bury  # noqa: SLF001 - ended again while it tells of its end
        pool._bury = lambda _worker: sys.exit()  # noqa: SLF001
        assert job.thread is not None
        end_thread(job.thread)
        job.thread.join(20)
        pool._bury = bury  # noqa: SLF001
        assert not lost.done()
        pool.mend()
        with pytest.raises(WorkerDied):
            lost.result(20)
        assert pool.submit(lambda: "next").result(20) == "next"


def test_a_worker_is_overdue_past_the_limit_of_its_job_and_only_then() -> None:
    with workers(2) as pool:
        short, long = Busy(), Busy()
        answers = [pool.submit(short, limit_s=0.02), pool.submit(long, limit_s=60)]
        assert short.begun.wait(20)
        assert long.begun.wait(20)
        wait_for(lambda: pool.overdue == 1)
        short.may_end.set()
        answers[0].result(20)
        wait_for(lambda: pool.overdue == 0)
        long.may_end.set()


def test_a_cancelled_job_is_not_run() -> None:
    ran: list[int] = []
    with workers(1) as pool:
        job = Busy()
        pool.submit(job)
        assert job.begun.wait(20)
        left, stays = (pool.submit(lambda number=number: ran.append(number)) for number in (1, 2))
        assert left.cancel()
        job.may_end.set()
        stays.result(20)
    assert ran == [2]


def test_what_cancelled_jobs_hold_is_freed_though_every_worker_is_busy() -> None:
    class Uploaded:
        pass

    with workers(1) as pool:
        job = Busy()
        pool.submit(job)
        assert job.begun.wait(20)
        uploads = [Uploaded() for _ in range(20)]
        held = [weakref.ref(upload) for upload in uploads]
        answers = [pool.submit(lambda upload=upload: upload) for upload in uploads]
        last = pool.submit(lambda: "last")
        del uploads
        assert all(answer.cancel() for answer in answers)
        assert [upload() for upload in held if upload() is not None] == []
        job.may_end.set()
        assert last.result(20) == "last"


def test_every_thread_does_its_first_work_before_any_job_also_one_that_replaces_another() -> None:
    own = threading.local()

    def load() -> None:
        own.loaded = True

    with workers(1, first=load) as pool:
        assert pool.submit(lambda: own.loaded).result(20)
        with pytest.raises(WorkerDied):
            pool.submit(sys.exit).result(20)
        assert pool.submit(lambda: own.loaded).result(20)


def test_first_work_that_fails_is_told_and_jobs_are_still_taken() -> None:
    def fail() -> None:
        raise OSError("no face model")

    with workers(1, first=fail) as pool:
        (ready,) = pool.ready()
        with pytest.raises(OSError, match="no face model"):
            ready.result(20)
        assert pool.submit(lambda: 1).result(20) == 1


def test_what_a_job_held_is_let_go_when_it_has_ended_also_by_a_fault() -> None:
    class Picture:
        pass

    def keep(picture: Picture, *, fail: bool) -> None:
        if fail:
            raise ValueError(picture is None)

    def submit(pool: Workers, *, fail: bool) -> weakref.ref[Picture]:
        picture = Picture()
        answer = pool.submit(lambda: keep(picture, fail=fail))
        assert (answer.exception(20) is not None) == fail
        return weakref.ref(picture)

    gc.disable()  # a cycle would keep it until the collector comes
    try:
        with workers(1) as pool:
            for fail in (False, True):
                picture = submit(pool, fail=fail)
                wait_for(lambda picture=picture: picture() is None, 5)
    finally:
        gc.enable()


def test_closing_finishes_what_waits_and_refuses_newcomers() -> None:
    pool = Workers(2, "test")
    answers = [pool.submit(lambda number=number: number) for number in range(40)]
    assert pool.close(20)
    assert [answer.result(0) for answer in answers] == [*range(40)]
    with pytest.raises(Closed):
        pool.submit(lambda: 1)


def test_closing_leaves_a_stuck_thread_behind_and_nobody_waiting() -> None:
    pool = Workers(1, "test")
    stuck = Busy()
    pool.submit(stuck)
    assert stuck.begun.wait(20)
    waits = pool.submit(lambda: 1)
    try:
        start = time.monotonic()
        assert not pool.close(0.05)
        assert time.monotonic() - start < 10
        with pytest.raises(Closed):
            waits.result(0)
        assert all(thread.daemon for thread in pool.threads)
    finally:
        stuck.may_end.set()


def test_a_call_for_the_event_loop_from_a_thread_is_made_there_or_not_at_all() -> None:
    heard: list[threading.Thread] = []

    async def run() -> Callable[..., None]:
        call = in_loop(asyncio.get_running_loop(), lambda: heard.append(threading.current_thread()))
        await asyncio.to_thread(call, "anything")
        await asyncio.sleep(0)
        return call

    call = asyncio.run(run())
    assert heard == [threading.main_thread()]
    call()  # the loop is closed: nobody is there to hear
    assert len(heard) == 1
