"""Clips and the service's limits: deadline, leavers, places, queue, memory."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

import httpx2
import pytest
from drawn_clips import encode_clip
from drawn_expression_clips import drawn_clip
from serving import HeldSession, Listener, MakeSettings, Pictures, Serve, served, until, wait_for

from model.tracking import Tracker
from service import engine as engine_module
from service.app import create_app
from service.engine import ClipUpload, DeadlineExceeded, Engine, Options, QueueFull, Upload
from service.preparation import Prepared

FRAMES = 40


@pytest.fixture(scope="module")
def clip() -> bytes:
    frames, _ = drawn_clip(fps=50, seconds=FRAMES / 50, onset_s=0.2, apex_s=0.4, offset_s=0.6)
    return encode_clip(frames, 50)


class Following:
    """Holds the worker that follows a clip at one frame, and counts the frames."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int = 5) -> None:
        self.frames = 0
        self.reached, self.may_go = threading.Event(), threading.Event()
        feed = Tracker.feed

        def held(tracker: Tracker, *given: object, **named: object) -> None:
            self.frames += 1
            if self.frames == at:
                self.reached.set()
                assert self.may_go.wait(20)
            feed(tracker, *given, **named)

        monkeypatch.setattr(Tracker, "feed", held)


@pytest.fixture
def following(monkeypatch: pytest.MonkeyPatch) -> Iterator[Following]:
    following = Following(monkeypatch)
    yield following
    following.may_go.set()


def test_past_its_deadline_a_clip_is_504_and_no_more_of_it_is_decoded(
    make_settings: MakeSettings, following: Following, clip: bytes
) -> None:
    async def run() -> None:
        async with Engine.open(make_settings(clip_deadline_ms=300)) as engine:
            await engine.warmed_up()
            with pytest.raises(DeadlineExceeded, match="300 ms"):
                await engine.predict_clip(ClipUpload(clip))
            assert engine.items == 0
            following.may_go.set()

    asyncio.run(run())  # closing waits for the worker
    assert following.frames == 5


def test_a_late_clip_is_answered_504(serve: Serve, following: Following, clip: bytes) -> None:
    with serve(clip_deadline_ms=300, deadline_ms=1) as client:
        response = client.post("/predict", files={"clip": clip})
        assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
        following.may_go.set()


def test_the_clip_of_a_caller_who_hung_up_is_decoded_no_further(
    make_settings: MakeSettings, following: Following, clip: bytes
) -> None:
    app = create_app(make_settings())
    with served(app) as url:
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{url}/predict", files={"clip": clip}, timeout=1)
        assert following.reached.is_set()
        gone = 'mfdan_requests_total{method="POST",route="/predict",status="499"} 1.0'
        wait_for(lambda: gone in httpx2.get(f"{url}/metrics").text)
        assert "client_gone" not in httpx2.get(f"{url}/metrics").text
        assert "mfdan_queue_items 0.0" in httpx2.get(f"{url}/metrics").text
        following.may_go.set()
        assert httpx2.post(f"{url}/predict", files={"clip": clip}, timeout=30).is_success
    assert following.frames == 5 + FRAMES


def test_an_upload_broken_off_leaves_nothing_behind(
    make_settings: MakeSettings, clip: bytes
) -> None:
    """The body ends before the clip does."""
    head = b'--b\r\nContent-Disposition: form-data; name="clip"; filename="c"\r\n\r\n'

    async def run() -> None:
        app = create_app(make_settings())
        async with app.router.lifespan_context(app) as state:
            await state["engine"].warmed_up()
            messages = iter(
                [
                    {"type": "http.request", "body": head + clip[:5000], "more_body": True},
                    {"type": "http.disconnect"},
                ]
            )

            async def receive() -> dict:
                return next(messages)

            async def send(_message: dict) -> None:
                pass

            scope = {
                "type": "http",
                "method": "POST",
                "path": "/predict",
                "raw_path": b"/predict",
                "query_string": b"",
                "headers": [(b"content-type", b"multipart/form-data; boundary=b")],
                "state": dict(state),
            }
            async with asyncio.timeout(20):
                await app(scope, receive, send)
            assert state["engine"].items == 0
            exposition = state["telemetry"].exposition().decode()
            assert "mfdan_requests_in_flight 0.0" in exposition
            assert "mfdan_clips_total{" not in exposition

    asyncio.run(run())


def test_pairs_and_probes_are_answered_while_clips_are_worked_on(
    serve: Serve, following: Following, clip: bytes, pictures: Pictures
) -> None:
    """Two workers, two clips: one of them waits, and a worker is left to pairs."""
    with serve(worker_threads=2) as client, ThreadPoolExecutor(2) as pool:
        clips = [pool.submit(client.post, "/predict", files={"clip": clip}) for _ in range(2)]
        assert following.reached.wait(20)
        wait_for(lambda: "mfdan_queue_clips 2.0" in client.get("/metrics").text)
        assert client.post("/predict", files=pictures.pair).status_code == 200
        assert client.get("/health/ready").status_code == 200
        following.may_go.set()
        assert [one.result().status_code for one in clips] == [200, 200]


GREEDY = Options(faces=8, candidates=10)


def test_clips_that_ask_for_much_wait_side_by_side_and_leave_the_queue_to_pairs(
    make_settings: MakeSettings, following: Following, clip: bytes, pictures: Pictures
) -> None:
    """Nothing of them waits for the network while they are decoded."""

    async def run() -> None:
        async with Engine.open(make_settings(queue_items=128)) as engine:
            await engine.warmed_up()
            sent = [
                asyncio.create_task(engine.predict_clip(ClipUpload(clip), GREEDY)) for _ in "123"
            ]
            await until(following.reached.is_set)
            assert (engine.clips, engine.items) == (3, 0)
            pair = Upload(pictures.onset, pictures.smile)
            assert len(await engine.predict_many([pair] * 16, Options(faces=8))) == 16
            following.may_go.set()
            assert all(len(answer.faces) == 1 for answer in await asyncio.gather(*sent))
            assert (engine.clips, engine.items) == (0, 0)

    asyncio.run(run())


def test_more_clips_than_may_wait_are_refused_before_any_work(
    make_settings: MakeSettings, following: Following, clip: bytes
) -> None:
    async def run() -> None:
        async with Engine.open(make_settings(queue_clips=1)) as engine:
            await engine.warmed_up()
            sent = [asyncio.create_task(engine.predict_clip(ClipUpload(clip))) for _ in "12"]
            await until(following.reached.is_set)
            with pytest.raises(QueueFull, match="2 clips are at work or waiting already"):
                await engine.predict_clip(ClipUpload(clip))
            following.may_go.set()
            await asyncio.gather(*sent)
            assert len((await engine.predict_clip(ClipUpload(clip))).faces) == 1

    asyncio.run(run())


def test_a_clip_that_was_decoded_is_answered_though_the_queue_is_full(
    make_settings: MakeSettings, held: HeldSession, clip: bytes, pictures: Pictures
) -> None:
    """What was found in it counts: more pairs are refused, and it is not."""

    async def run() -> None:
        settings = make_settings(queue_items=128)
        async with Engine.open(settings, sessions={"tiny": held}) as engine:
            await engine.warmed_up()
            pair = Upload(pictures.onset, pictures.smile)
            pairs = asyncio.create_task(engine.predict_many([pair] * 16, Options(faces=8)))
            await asyncio.to_thread(held.started.wait, 20)
            sent = asyncio.create_task(engine.predict_clip(ClipUpload(clip), GREEDY))
            await until(lambda: engine.items == 129)
            with pytest.raises(QueueFull, match="of 128 places for faces 129 are taken, and 1"):
                await engine.predict(pair)
            held.may_go.set()
            assert len((await sent).faces[0].candidates) == 1
            assert len(await pairs) == 16

    asyncio.run(run())


def test_no_clip_is_decoded_while_as_many_as_may_wait_for_the_network(
    make_settings: MakeSettings,
    held: HeldSession,
    monkeypatch: pytest.MonkeyPatch,
    clip: bytes,
) -> None:
    """Else what clips hold for a slow network would be bounded by the queue of clips only."""
    clips = Deaf(monkeypatch, "prepare_clip")
    clips.may_go.set()

    async def run() -> None:
        async with Engine.open(make_settings(), sessions={"tiny": held}) as engine:
            await engine.warmed_up()
            sent = [asyncio.create_task(engine.predict_clip(ClipUpload(clip))) for _ in "123"]
            await asyncio.to_thread(held.started.wait, 20)
            await asyncio.sleep(0.2)
            assert (clips.begun, engine.items) == (1, 1)
            held.may_go.set()
            assert all(len(answer.faces) == 1 for answer in await asyncio.gather(*sent))

    asyncio.run(run())


def test_the_candidates_of_a_clip_share_a_batch(
    make_settings: MakeSettings, held: HeldSession
) -> None:
    """They wait together while the network is busy with something else."""
    heard = Listener()
    once, _ = drawn_clip(fps=30, seconds=1.5, onset_s=0.5, apex_s=0.7, offset_s=0.9)
    clip = encode_clip(once * 2, 30)
    open_engine = partial(Engine.open, observer=heard)
    held.may_go.set()

    async def run() -> int:
        async with open_engine(make_settings(), sessions={"tiny": held}) as engine:
            await engine.warmed_up()
            answer = await engine.predict_clip(ClipUpload(clip))
            return len(answer.faces[0].candidates)

    assert asyncio.run(run()) == 2
    assert heard.sizes == [2]


def test_closing_finishes_the_clip_under_way(
    make_settings: MakeSettings, following: Following, clip: bytes
) -> None:
    async def run() -> None:
        async with Engine.open(make_settings()) as engine:
            await engine.warmed_up()
            first = asyncio.create_task(engine.predict_clip(ClipUpload(clip)))
            await until(following.reached.is_set)
            closing = asyncio.create_task(engine.close())
            await asyncio.sleep(0.05)
            assert not closing.done()
            following.may_go.set()
            await closing
            assert len((await first).faces) == 1

    asyncio.run(run())


class Deaf:
    """Holds workers in a stage (of clips, or of pairs) that does not hear that its caller left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
        self.begun = self.ended = self.busy = self.most_busy = 0
        self.may_go = threading.Event()
        self._lock = threading.Lock()
        prepare: Callable[..., Prepared] = getattr(engine_module, stage)

        def held(*given: object) -> Prepared:
            with self._lock:
                self.begun += 1
                self.busy += 1
                self.most_busy = max(self.most_busy, self.busy)
            try:
                assert self.may_go.wait(20)
                return prepare(*given)
            finally:
                with self._lock:
                    self.busy -= 1
                    self.ended += 1

        monkeypatch.setattr(engine_module, stage, held)


@pytest.fixture
def deaf_clips(monkeypatch: pytest.MonkeyPatch) -> Iterator[Deaf]:
    deaf = Deaf(monkeypatch, "prepare_clip")
    yield deaf
    deaf.may_go.set()


@pytest.fixture
def deaf_pairs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Deaf]:
    deaf = Deaf(monkeypatch, "prepare_pair")
    yield deaf
    deaf.may_go.set()


async def hang_up(engine: Engine, clip: bytes, when: Callable[[], bool]) -> None:
    sent = asyncio.create_task(engine.predict_clip(ClipUpload(clip)))
    await until(when)
    sent.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sent


def test_late_clips_whose_worker_is_still_busy_leave_a_worker_to_pairs(
    make_settings: MakeSettings, deaf_clips: Deaf, clip: bytes, pictures: Pictures
) -> None:
    async def run() -> None:
        async with Engine.open(make_settings(clip_deadline_ms=300)) as engine:
            await engine.warmed_up()
            try:
                for _ in range(2):
                    with pytest.raises(DeadlineExceeded, match="300 ms"):
                        await engine.predict_clip(ClipUpload(clip))
                answer = await engine.predict(Upload(pictures.onset, pictures.smile))
                assert len(answer.faces) == 1
                assert (deaf_clips.begun, deaf_clips.ended) == (1, 0)
            finally:
                deaf_clips.may_go.set()  # closing waits for the workers

    asyncio.run(run())
    assert deaf_clips.begun == deaf_clips.ended == 1


def test_the_clip_of_a_caller_who_hung_up_gives_its_place_back_once_when_its_worker_is_free(
    make_settings: MakeSettings, deaf_clips: Deaf, clip: bytes, pictures: Pictures
) -> None:
    async def run() -> None:
        async with Engine.open(make_settings()) as engine:
            await engine.warmed_up()
            try:
                await hang_up(engine, clip, lambda: deaf_clips.begun == 1)
                await hang_up(engine, clip, lambda: engine.clips == 1)  # it waited for the place
                sent = [asyncio.create_task(engine.predict_clip(ClipUpload(clip))) for _ in "123"]
                await until(lambda: engine.clips == 3)
                await engine.predict(Upload(pictures.onset, pictures.smile))
                assert (deaf_clips.begun, deaf_clips.ended) == (1, 0)
            finally:
                deaf_clips.may_go.set()
            assert all(len(answer.faces) == 1 for answer in await asyncio.gather(*sent))

    asyncio.run(run())
    assert deaf_clips.begun == deaf_clips.ended == 4
    assert deaf_clips.most_busy == 1


def test_a_clip_that_was_left_before_it_got_a_worker_gives_its_place_back_once(
    make_settings: MakeSettings,
    deaf_pairs: Deaf,
    monkeypatch: pytest.MonkeyPatch,
    clip: bytes,
    pictures: Pictures,
) -> None:
    """It waits in the pool's queue, behind the pairs that hold both workers."""
    clips = Deaf(monkeypatch, "prepare_clip")
    clips.may_go.set()

    async def run() -> None:
        async with Engine.open(make_settings(clip_deadline_ms=20_000)) as engine:
            await engine.warmed_up()
            try:
                upload = Upload(pictures.onset, pictures.smile)
                pairs = [asyncio.create_task(engine.predict(upload)) for _ in range(2)]
                await until(lambda: deaf_pairs.begun == 2)
                for _ in range(2):
                    await hang_up(engine, clip, lambda: engine.clips == 1)
            finally:
                deaf_pairs.may_go.set()
            await asyncio.gather(*pairs)
            assert clips.begun == 0
            sent = [engine.predict_clip(ClipUpload(clip)) for _ in range(3)]
            assert all(len(answer.faces) == 1 for answer in await asyncio.gather(*sent))

    asyncio.run(run())
    assert clips.begun == clips.ended == 3
    assert clips.most_busy == 1


def test_closing_waits_for_the_worker_of_a_clip_that_was_left(
    make_settings: MakeSettings, deaf_clips: Deaf, clip: bytes
) -> None:
    engines: list[Engine] = []

    async def run() -> int:
        async with Engine.open(make_settings()) as engine:
            await engine.warmed_up()
            await hang_up(engine, clip, lambda: deaf_clips.begun == 1)
            engines.append(engine)
        return deaf_clips.ended

    with ThreadPoolExecutor(1) as pool:  # closing may hold the event loop's thread
        ended = pool.submit(asyncio.run, run())
        try:
            wait_for(lambda: bool(engines) and engines[0].trouble == "closing")
            assert wait([ended], timeout=0.2).not_done
        finally:
            deaf_clips.may_go.set()
        assert ended.result(20) == 1
