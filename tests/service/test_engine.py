import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from serving import HeldSession, Listener, MakeSettings, Pictures, until
from tiny_model import tiny_spec, write_tiny_model

from model.errors import BrokenImage, ModelError, ModelNotFound, NotAnImage
from model.flow import compute_flow
from service.engine import (
    Answer,
    Closed,
    DeadlineExceeded,
    Engine,
    NotReady,
    Options,
    QueueFull,
    Upload,
    open_sessions,
)
from service.settings import Settings


@asynccontextmanager
async def opened(
    settings: Settings, session: HeldSession | None = None, observer: Listener | None = None
) -> AsyncIterator[Engine]:
    sessions = session and {session.spec.name: session}
    async with Engine.open(settings, observer, sessions) as engine:
        await engine.warmed_up()
        yield engine


def test_an_engine_answers_without_any_web_framework(
    make_settings: MakeSettings, pictures: Pictures
) -> None:
    async def run() -> Answer:
        async with opened(make_settings()) as engine:
            return await engine.predict(Upload(pictures.onset, pictures.smile))

    answer = asyncio.run(run())
    assert len(answer.faces) == 1
    assert answer.faces[0].verdict.reason is None


def test_a_batch_keeps_its_order_and_a_bad_pair_leaves_its_fault(
    make_settings: MakeSettings, pictures: Pictures
) -> None:
    async def run() -> None:
        async with opened(make_settings()) as engine:
            good = [Upload(pictures.onset, apex) for apex in (pictures.smile, pictures.brows)]
            alone = [await engine.predict(upload) for upload in good]
            bad = Upload(pictures.onset, b"nothing")
            first, fault, second = await engine.predict_many([good[0], bad, good[1]])
            assert isinstance(fault, NotAnImage)
            for one, other in zip(alone, (first, second), strict=True):
                assert one.faces[0].verdict == other.faces[0].verdict
            assert alone[0].faces[0].verdict != alone[1].faces[0].verdict

    asyncio.run(run())


def test_faults_name_the_frame_that_has_them(
    make_settings: MakeSettings, pictures: Pictures
) -> None:
    async def run() -> None:
        async with opened(make_settings()) as engine:
            with pytest.raises(BrokenImage, match=r"^onset: "):
                await engine.predict(Upload(pictures.onset[:500], pictures.onset))

    asyncio.run(run())


def test_an_engine_is_not_ready_until_it_is_warm(
    make_settings: MakeSettings, held: HeldSession, pictures: Pictures
) -> None:
    async def run() -> None:
        warm = threading.Event()
        held.warm_up = lambda _sizes: warm.wait(20)
        async with Engine.open(make_settings(), sessions={"tiny": held}) as engine:
            assert not engine.ready
            with pytest.raises(NotReady):
                await engine.predict(Upload(pictures.onset, pictures.onset))
            warm.set()
            await engine.warmed_up()
            assert engine.ready

    asyncio.run(run())


def test_an_engine_that_cannot_warm_up_never_gets_ready(
    make_settings: MakeSettings, held: HeldSession, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        def fail(_sizes: object) -> None:
            raise ModelError("no memory")

        held.warm_up = fail
        async with Engine.open(make_settings(), sessions={"tiny": held}) as engine:
            with pytest.raises(ModelError, match="no memory"):
                await engine.warmed_up()
            assert not engine.ready

    asyncio.run(run())
    assert "warming up failed: no memory" in caplog.text


def test_a_stuck_network_is_504_and_makes_the_engine_unready_until_it_moves_on(
    make_settings: MakeSettings, held: HeldSession, pictures: Pictures
) -> None:
    async def run() -> None:
        async with opened(make_settings(deadline_ms=800), held) as engine:
            with pytest.raises(DeadlineExceeded, match="800 ms"):
                await engine.predict(Upload(pictures.onset, pictures.smile))
            assert held.runs == 1
            await until(lambda: not engine.ready)
            held.may_go.set()
            await until(lambda: engine.ready)
            assert engine.items == 0

    asyncio.run(run())


def test_past_the_deadline_nothing_more_is_started(
    make_settings: MakeSettings,
    held: HeldSession,
    pictures: Pictures,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Flow takes longer than the deadline: the network is never asked."""
    flowing, may_flow = threading.Event(), threading.Event()

    def slow_flow(*given: object) -> np.ndarray:
        flowing.set()
        assert may_flow.wait(20)
        return compute_flow(*given)

    monkeypatch.setattr("model.pipeline.compute_flow", slow_flow)
    held.may_go.set()

    async def run() -> None:
        async with opened(make_settings(deadline_ms=500, worker_threads=1), held) as engine:
            upload = Upload(pictures.onset, pictures.smile)
            answers = await engine.predict_many([upload, upload])
            assert [type(answer) for answer in answers] == [DeadlineExceeded] * 2
            assert flowing.is_set()
            may_flow.set()

    asyncio.run(run())  # closing waits for the workers
    assert held.runs == 0


def test_a_cancelled_call_is_never_run_and_its_neighbours_are_answered(
    make_settings: MakeSettings, held: HeldSession, pictures: Pictures
) -> None:
    async def run() -> None:
        async with opened(make_settings(), held) as engine:
            upload = Upload(pictures.onset, pictures.smile)
            first = asyncio.create_task(engine.predict(upload))
            await asyncio.to_thread(held.started.wait, 20)
            leaver = asyncio.create_task(engine.predict(upload))
            stays = asyncio.create_task(engine.predict(Upload(pictures.onset, pictures.brows)))
            batcher = engine._shelf.get(None).batcher  # noqa: SLF001 - to know that both wait
            await until(lambda: batcher.waiting == 2)
            leaver.cancel()
            await asyncio.sleep(0)
            held.may_go.set()
            answers = await asyncio.gather(first, leaver, stays, return_exceptions=True)
            assert isinstance(answers[1], asyncio.CancelledError)
            assert answers[0].faces[0].verdict != answers[2].faces[0].verdict
            assert held.runs == 2
            assert engine.items == 0

    asyncio.run(run())


def test_more_faces_than_may_wait_are_refused_before_any_work(
    make_settings: MakeSettings, held: HeldSession, pictures: Pictures
) -> None:
    async def run() -> None:
        async with opened(make_settings(queue_items=128), held) as engine:
            upload = Upload(pictures.onset, pictures.smile)
            first = asyncio.create_task(engine.predict(upload))
            await asyncio.to_thread(held.started.wait, 20)
            with pytest.raises(QueueFull, match="1 are taken, and 128 are asked for"):
                await engine.predict_many([upload] * 16, Options(faces=8))
            assert engine.items == 1
            held.may_go.set()
            assert len((await first).faces) == 1

    asyncio.run(run())


def test_closing_finishes_what_was_admitted_and_refuses_the_rest(
    make_settings: MakeSettings, held: HeldSession, pictures: Pictures
) -> None:
    async def run() -> None:
        async with opened(make_settings(), held) as engine:
            upload = Upload(pictures.onset, pictures.smile)
            first = asyncio.create_task(engine.predict(upload))
            await asyncio.to_thread(held.started.wait, 20)
            closing = asyncio.create_task(engine.close())
            await asyncio.sleep(0.05)
            assert not engine.ready
            with pytest.raises(Closed):
                await engine.predict(upload)
            assert not closing.done()
            held.may_go.set()
            await closing
            assert len((await first).faces) == 1

    asyncio.run(run())


def test_batches_are_reported(make_settings: MakeSettings, pictures: Pictures) -> None:
    heard = Listener()

    async def run() -> None:
        async with opened(make_settings(), observer=heard) as engine:
            await engine.predict_many([Upload(pictures.onset, pictures.smile)] * 3)

    asyncio.run(run())
    assert sum(heard.sizes) == 3


def test_the_models_folder_may_hold_several_and_the_default_comes_first(
    tmp_path: Path, make_settings: MakeSettings
) -> None:
    for name in ("first", "second"):
        write_tiny_model(tmp_path, tiny_spec(name))
    assert list(open_sessions(make_settings(models_dir=tmp_path))) == ["first", "second"]
    chosen = make_settings(models_dir=tmp_path, model="second")
    assert list(open_sessions(chosen)) == ["second", "first"]


def test_an_empty_models_folder_is_refused(tmp_path: Path, make_settings: MakeSettings) -> None:
    with pytest.raises(ModelNotFound, match=r"no \*\.onnx file"):
        open_sessions(make_settings(models_dir=tmp_path))


def test_an_unknown_default_model_is_refused(make_settings: MakeSettings) -> None:
    with pytest.raises(ModelNotFound, match="large is not among tiny"):
        open_sessions(make_settings(model="large"))


def test_two_models_of_one_name_are_refused(tmp_path: Path, make_settings: MakeSettings) -> None:
    write_tiny_model(tmp_path)
    for suffix in (".onnx", ".onnx.json"):
        (tmp_path / f"copy{suffix}").write_bytes((tmp_path / f"tiny{suffix}").read_bytes())
    with pytest.raises(ModelError, match="two models are called tiny"):
        open_sessions(make_settings(models_dir=tmp_path))
