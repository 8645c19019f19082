import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pytest
from serving import Listener, end_thread, until

from service.batcher import Batcher
from service.faults import Closed, WorkerDied

FLOW = np.zeros((3, 2, 2), np.float32)


def item(number: float) -> np.ndarray:
    return np.full((3, 2, 2), number, np.float32)


class Network:
    """Answers every item with its own number; holds the first run until told."""

    def __init__(self, *, held: bool = False) -> None:
        self.sizes: list[int] = []
        self.seen: list[list[float]] = []
        self.started = threading.Event()
        self.may_go = threading.Event()
        if not held:
            self.may_go.set()

    def __call__(self, image: np.ndarray, flow: np.ndarray) -> np.ndarray:
        assert len(image) == len(flow)
        self.sizes.append(len(image))
        numbers = image[:, 0, 0, 0]
        self.seen.append(numbers.tolist())
        self.started.set()
        assert self.may_go.wait(10)
        if 13.0 in numbers:
            raise ValueError("thirteen")
        return numbers[:, None] * np.array([1.0, 2.0])


def batcher(network: Network, sizes: tuple[int, ...] = (1, 2, 4)) -> Batcher:
    return Batcher(network, sizes=sizes)


async def held_batcher(network: Network, **options: object) -> tuple[Batcher, asyncio.Future]:
    """Return a batcher whose worker is busy with item 0."""
    busy = batcher(network, **options)
    first = submit(busy, item(0))
    await asyncio.to_thread(network.started.wait, 10)
    return busy, first


def submit(busy: Batcher, image: np.ndarray) -> asyncio.Future:
    (row,) = busy.submit([(image, FLOW)])
    return asyncio.wrap_future(row)


def submit_all(busy: Batcher, numbers: list[float]) -> list[asyncio.Future]:
    return [submit(busy, item(number)) for number in numbers]


def test_everyone_gets_their_own_row() -> None:
    async def run() -> None:
        network = Network()
        busy = batcher(network)
        numbers = [float(n) for n in np.random.default_rng(7).permutation(40) + 20]
        rows = await asyncio.gather(*submit_all(busy, numbers))
        await busy.close()
        np.testing.assert_array_equal([row[0] for row in rows], numbers)
        np.testing.assert_array_equal([row[1] for row in rows], 2 * np.array(numbers))

    asyncio.run(run())


def test_what_waits_is_taken_in_the_largest_fixed_sizes() -> None:
    async def run() -> None:
        network = Network(held=True)
        busy, first = await held_batcher(network)
        rest = submit_all(busy, [1, 2, 3, 4, 5, 6, 7])
        await asyncio.sleep(0)
        network.may_go.set()
        await asyncio.gather(first, *rest)
        await busy.close()
        assert network.sizes == [1, 4, 2, 1]

    asyncio.run(run())


def test_items_that_come_together_are_run_together_though_nobody_held_the_network() -> None:
    async def run() -> None:
        network = Network()
        busy = batcher(network)
        for _ in range(50):
            rows = busy.submit([(item(number), FLOW) for number in range(4)])
            await asyncio.gather(*map(asyncio.wrap_future, rows))
        await busy.close()
        assert network.sizes == [4] * 50

    asyncio.run(run())


def test_an_item_of_another_thread_is_run_without_a_turn_of_the_event_loop() -> None:
    async def run() -> None:
        network = Network()
        busy = batcher(network)
        rows: list[Future] = []
        worker = threading.Thread(target=lambda: rows.extend(busy.submit([(item(3), FLOW)])))
        worker.start()
        worker.join(10)  # the event loop stands still, here and in the next line
        assert rows[0].result(10)[0] == 3
        assert network.seen == [[3.0]]
        await busy.close()

    asyncio.run(run())


def test_threads_that_hand_over_at_once_each_get_their_own_rows() -> None:
    count, threads = 1000, 3

    def hand_over(busy: Batcher, offset: int) -> None:
        numbers = range(offset, offset + count)
        rows = [(number, *busy.submit([(item(number), FLOW)])) for number in numbers]
        assert all(row.cancel() or row.done() for number, row in rows if number % 7 == 0)
        got = [(number, row.result(20)[0]) for number, row in rows if not row.cancelled()]
        assert all(number == own for number, own in got)
        assert len(got) >= count * 6 // 7

    async def run() -> None:
        busy = batcher(Network())
        offsets = [100 + count * n for n in range(threads)]
        works = [asyncio.to_thread(hand_over, busy, offset) for offset in offsets]
        await asyncio.gather(*works)
        assert await busy.close()
        assert not busy._jobs  # noqa: SLF001 - what it holds is seen nowhere else

    asyncio.run(run())


def test_a_thread_that_ends_again_and_again_loses_its_own_batches_only() -> None:
    def network(image: np.ndarray, _flow: np.ndarray) -> np.ndarray:
        if 5.0 in image % 10:
            sys.exit()
        return image[:, 0, 0]

    async def run() -> None:
        busy = Batcher(network, sizes=(1, 2))
        numbers = [*range(100)]
        async with asyncio.timeout(20):
            rows = await asyncio.gather(*submit_all(busy, numbers), return_exceptions=True)
        lost = [
            number
            for number, row in zip(numbers, rows, strict=True)
            if isinstance(row, WorkerDied) or row[0] != number
        ]
        await busy.close()
        assert 10 <= len(lost) <= 20
        assert {number // 10 for number in lost} == {*range(10)}
        assert {number % 10 for number in lost} <= {4, 5, 6}

    asyncio.run(run())


def test_those_who_leave_are_not_run_and_the_others_are_answered() -> None:
    async def run() -> None:
        network = Network(held=True)
        busy, first = await held_batcher(network)
        stays, leaves, stays_too = submit_all(busy, [1, 2, 3])
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.sleep(0)
        network.may_go.set()
        assert (await stays)[0] == 1
        assert (await stays_too)[0] == 3
        assert (await first)[0] == 0
        assert leaves.cancelled()
        assert network.seen == [[0.0], [1.0, 3.0]]
        await busy.close()

    asyncio.run(run())


def test_one_who_leaves_during_the_run_does_not_disturb_the_others() -> None:
    async def run() -> None:
        network = Network(held=True)
        busy, first = await held_batcher(network)
        pair = submit_all(busy, [1, 2])
        await asyncio.sleep(0)
        network.started.clear()
        network.may_go.set()
        await first
        await asyncio.to_thread(network.started.wait, 10)
        pair[0].cancel()
        assert (await pair[1])[0] == 2
        await busy.close()

    asyncio.run(run())


def test_a_failing_run_fails_its_own_batch_only() -> None:
    async def run() -> None:
        network = Network(held=True)
        busy, first = await held_batcher(network, sizes=(1, 2))
        batch = submit_all(busy, [13, 1, 2, 3])
        await asyncio.sleep(0)
        network.may_go.set()
        answers = await asyncio.gather(first, *batch, return_exceptions=True)
        assert [str(answer) for answer in answers[1:3]] == ["thirteen", "thirteen"]
        assert [answers[0][0], answers[3][0], answers[4][0]] == [0, 2, 3]
        assert (await submit(busy, item(4)))[0] == 4
        await busy.close()

    asyncio.run(run())


def test_a_failing_run_is_told_with_its_size_and_the_next_good_one_clears_it() -> None:
    async def run() -> None:
        heard = Listener()
        busy = Batcher(Network(), sizes=(1,), name="tiny", observer=heard)
        assert not busy.failed
        with pytest.raises(ValueError, match="thirteen"):
            await submit(busy, item(13))
        assert busy.failed
        assert (heard.failed, heard.ran) == ([("tiny", 1, "thirteen")], [])
        await submit(busy, item(1))
        assert not busy.failed
        await busy.close()

    asyncio.run(run())


def test_after_a_failing_run_an_empty_item_finds_out_when_nobody_else_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.batcher.PROBE_S", 0.02)
    broken = threading.Event()
    broken.set()
    seen: list[list[float]] = []

    def network(image: np.ndarray, _flow: np.ndarray) -> np.ndarray:
        seen.append(image[:, 0, 0, 0].tolist())
        if broken.is_set():
            raise RuntimeError("the device is lost")
        return image[:, 0, 0]

    async def run() -> None:
        heard = Listener()
        busy = Batcher(network, sizes=(1, 2), observer=heard)
        with pytest.raises(RuntimeError, match="lost"):
            await submit(busy, item(7))

        def after_a_heartbeat(condition: Callable[[], bool]) -> bool:
            busy.mend()
            return condition()

        await until(lambda: after_a_heartbeat(lambda: len(heard.failed) == 3))
        assert busy.failed
        broken.clear()
        await until(lambda: after_a_heartbeat(lambda: not busy.failed))
        for _ in range(5):
            await asyncio.sleep(0.03)
            busy.mend()
        assert seen[0] == [7.0]
        assert {*map(tuple, seen[1:])} == {(0.0,)}
        assert len(heard.ran) == 1  # then it is left in peace
        await busy.close()

    asyncio.run(run())


def test_a_network_thread_that_ends_fails_its_batch_and_is_replaced() -> None:
    async def run() -> None:
        threads: list[threading.Thread] = []
        going = threading.Event()

        def network(image: np.ndarray, _flow: np.ndarray) -> np.ndarray:
            threads.append(threading.current_thread())
            while image[0, 0, 0, 0] == 0 and not going.wait(0.005):
                pass
            return image[:, 0, 0]

        heard = Listener()
        busy = Batcher(network, sizes=(1, 2), name="tiny", observer=heard)
        lost = submit(busy, item(0))
        await until(lambda: bool(threads))
        waiting = submit_all(busy, [1, 2])
        await asyncio.sleep(0)
        end_thread(threads[0])
        with pytest.raises(WorkerDied):
            await lost
        assert [row[0] for row in await asyncio.gather(*waiting)] == [1, 2]
        await until(lambda: heard.deaths == ["network"])
        assert [size for _, size, _ in heard.failed] == [1]
        assert not busy.failed  # it says nothing of the network
        assert threads[0] not in threads[1:]
        await busy.close()

    asyncio.run(run())


def test_a_run_that_would_end_the_process_ends_its_thread_only() -> None:
    async def run() -> None:
        busy = Batcher(lambda *_: sys.exit(3), sizes=(1,))
        with pytest.raises(WorkerDied):
            await submit(busy, item(1))
        await busy.close()

    asyncio.run(run())


def test_closing_past_its_time_leaves_a_stuck_run_behind_and_nobody_waiting() -> None:
    async def run() -> None:
        network = Network(held=True)
        busy, first = await held_batcher(network)
        waiting = submit_all(busy, [1, 2])
        await asyncio.sleep(0)
        assert not await busy.close(0.05)
        answers = await asyncio.gather(first, *waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Closed] * 3
        network.may_go.set()

    asyncio.run(run())


def test_how_long_each_item_waited_for_its_run_is_told() -> None:
    async def run() -> None:
        heard = Listener()
        network = Network(held=True)
        busy = Batcher(network, sizes=(1, 2), observer=heard)
        first = submit(busy, item(0))
        await asyncio.to_thread(network.started.wait, 10)
        rest = submit_all(busy, [1, 2])
        await asyncio.sleep(0.05)
        network.may_go.set()
        await asyncio.gather(first, *rest)
        assert [what for what, _ in heard.waits] == ["network"] * 3
        assert all(seconds >= 0.05 for _, seconds in heard.waits[1:])
        await busy.close()

    asyncio.run(run())


def test_a_short_answer_fails_every_waiter() -> None:
    async def run() -> None:
        busy = Batcher(lambda image, _flow: image[:0, 0, 0], sizes=(1,))
        with pytest.raises(RuntimeError, match="1 items were run, 0 rows came back"):
            await submit(busy, item(1))
        await busy.close()

    asyncio.run(run())


def test_a_leaver_is_held_no_longer_though_the_network_is_busy() -> None:
    async def run() -> None:
        network = Network(held=True)
        busy, first = await held_batcher(network)
        leaver, stays = submit_all(busy, [1, 2])
        await asyncio.sleep(0)
        leaver.cancel()
        await asyncio.sleep(0)
        assert len(busy._jobs) == 1  # noqa: SLF001 - what it holds is seen nowhere else
        network.may_go.set()
        await first
        assert (await stays)[0] == 2
        await busy.close()

    asyncio.run(run())


def test_closing_answers_those_who_wait_and_refuses_newcomers() -> None:
    async def run() -> None:
        network = Network(held=True)
        busy, first = await held_batcher(network)
        waiting = submit_all(busy, [1, 2, 3])
        await asyncio.sleep(0)
        closing = asyncio.create_task(busy.close())
        await asyncio.sleep(0)
        with pytest.raises(Closed):
            submit(busy, item(9))
        network.may_go.set()
        await closing
        rows = await asyncio.gather(first, *waiting)
        assert [row[0] for row in rows] == [0, 1, 2, 3]
        with pytest.raises(Closed):
            submit(busy, item(9))

    asyncio.run(run())


def test_closing_leaves_nobody_waiting_though_it_is_cancelled_as_by_a_dying_event_loop() -> None:
    async def run() -> None:
        network = Network(held=True)
        busy, first = await held_batcher(network)
        waiting = submit_all(busy, [1, 2])
        closing = asyncio.create_task(busy.close(0.2))
        await asyncio.sleep(0.05)
        closing.cancel()
        answers = await asyncio.gather(first, *waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Closed, Closed, Closed]
        network.may_go.set()

    asyncio.run(run())


def test_what_waits_is_finished_though_the_event_loop_has_died() -> None:
    network = Network(held=True)

    async def run() -> list[Future]:
        busy, first = await held_batcher(network)
        rows = busy.submit([(item(1), FLOW), (item(2), FLOW)])
        first.cancel()
        return rows

    rows = asyncio.run(run())
    network.may_go.set()
    assert [row.result(10)[0] for row in rows] == [1, 2]


def test_every_batch_that_ran_is_reported_with_its_size() -> None:
    async def run() -> None:
        heard = Listener()
        busy = Batcher(Network(), sizes=(1,), name="tiny", observer=heard)
        await submit(busy, item(1))
        await busy.close()
        ((name, size, seconds),) = heard.ran
        assert (name, size) == ("tiny", 1)
        assert seconds > 0

    asyncio.run(run())


def test_no_pixel_is_described_on_the_way() -> None:
    """What takes a job out of the queue must not: it would cost more than all the rest."""

    class Silent(np.ndarray):
        def __repr__(self) -> str:
            raise AssertionError("the pixels were written out")

    async def run() -> None:
        busy = batcher(Network())
        assert (await submit(busy, item(3).view(Silent)))[0] == 3
        await busy.close()

    asyncio.run(run())


def test_what_a_failed_item_held_is_let_go_with_its_answer() -> None:
    async def run() -> None:
        busy = batcher(Network())
        image = item(13)
        held = weakref.ref(image)
        row = submit(busy, image)
        del image
        with pytest.raises(ValueError, match="thirteen"):
            await row
        del row
        await until(lambda: held() is None)
        await busy.close()

    gc.disable()  # a cycle would keep it until the collector comes
    try:
        asyncio.run(run())
    finally:
        gc.enable()


def test_an_item_may_be_any_arrays_and_a_row_anything() -> None:
    def run_all(pixels: np.ndarray, mask: np.ndarray, weight: np.ndarray) -> list[tuple]:
        assert (pixels.dtype, mask.dtype, weight.dtype) == (np.uint8, bool, np.float32)
        rows = zip(pixels, mask, weight, strict=True)
        return [(int(one[seen].sum()), float(factor)) for one, seen, factor in rows]

    async def run() -> None:
        busy: Batcher[tuple[int, float]] = Batcher(run_all, sizes=(1, 2))
        mask = np.array([True, False, True])
        pixels = [np.array([number, 100, 1], np.uint8) for number in range(5)]
        items = [(one, mask, np.float32(number)) for number, one in enumerate(pixels)]
        rows = await asyncio.gather(*map(asyncio.wrap_future, busy.submit(items)))
        assert rows == [(number + 1, float(number)) for number in range(5)]
        await busy.close()

    asyncio.run(run())


def test_sizes_without_one_are_refused() -> None:
    with pytest.raises(ValueError, match="add 1"):
        Batcher(Network(), sizes=(2, 4))
