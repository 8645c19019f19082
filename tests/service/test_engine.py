import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from serving import HeldSession, Listener, MakeSettings, Pictures, end_thread, until
from tiny_model import tiny_spec, write_tiny_model

from model.decode import Limits, decode_image
from model.errors import BrokenImage, ModelError, ModelNotFound, NotAnImage, ShapeError
from model.flow import compute_flow
from model.session import Session
from service import engine as engine_module
from service import preparation
from service.engine import (
    Answer,
    ClipUpload,
    Closed,
    DeadlineExceeded,
    Engine,
    Frames,
    NotReady,
    Options,
    QueueFull,
    Upload,
    WorkerDied,
    open_sessions,
)
from service.preparation import Prepared
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


def test_frames_that_are_decoded_already_get_the_answer_of_their_pictures(
    make_settings: MakeSettings, pictures: Pictures
) -> None:
    async def run() -> None:
        async with opened(make_settings()) as engine:
            sent = Upload(pictures.onset, pictures.smile)
            frames = Frames(decode_image(sent.onset), decode_image(sent.apex))
            uploaded, decoded = await engine.predict(sent), await engine.predict(frames)
            assert decoded.faces[0].verdict == uploaded.faces[0].verdict
            with pytest.raises(ShapeError, match="apex"):
                await engine.predict(Frames(frames.onset, frames.apex[:, :, 0]))

    asyncio.run(run())


def test_both_frames_of_a_lone_pair_are_decoded_at_once(
    make_settings: MakeSettings, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=20)  # breaks where one waits for the other

    def decode(data: bytes, limits: Limits) -> np.ndarray:
        both.wait()
        return decode_image(data, limits)

    async def run() -> None:
        async with opened(make_settings(worker_threads=2)) as engine:
            monkeypatch.setattr(preparation, "decode_image", decode)
            answer = await engine.predict(Upload(pictures.onset, pictures.smile))
            assert answer.faces[0].verdict.reason is None
            monkeypatch.undo()
            with pytest.raises(BrokenImage, match=r"^apex: "):
                await engine.predict(Upload(pictures.onset, pictures.smile[:500]))

    asyncio.run(run())


def test_a_helper_that_ends_costs_nobody_an_answer(
    make_settings: MakeSettings, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = threading.Event()

    def decode(data: bytes, limits: Limits) -> np.ndarray:
        if data == pictures.smile and not died.is_set():
            died.set()
            raise SystemExit
        assert died.wait(20)  # the pair's own worker has the onset, and waits for its helper's end
        return decode_image(data, limits)

    async def run() -> None:
        async with opened(make_settings(worker_threads=2)) as engine:
            monkeypatch.setattr(preparation, "decode_image", decode)
            answer = await engine.predict(Upload(pictures.onset, pictures.smile))
            assert answer.faces[0].verdict.reason is None

    asyncio.run(run())


def test_where_no_worker_is_idle_a_pair_waits_for_none(
    make_settings: MakeSettings, pictures: Pictures
) -> None:
    async def run() -> None:
        upload = Upload(pictures.onset, pictures.smile)
        async with opened(make_settings(worker_threads=1)) as engine:
            alone = await engine.predict(upload)
            many = await asyncio.gather(*(engine.predict(upload) for _ in range(4)))
            assert {one.faces[0].verdict.label for one in many} == {alone.faces[0].verdict.label}

    asyncio.run(run())


def test_a_helper_that_hangs_is_the_only_worker_that_a_pair_costs(
    make_settings: MakeSettings, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()

    def decode(data: bytes, limits: Limits) -> np.ndarray:
        if data == pictures.smile:
            may_end.wait(20)
        return decode_image(data, limits)

    async def run() -> None:
        async with opened(make_settings(worker_threads=2, deadline_ms=1000)) as engine:
            monkeypatch.setattr(preparation, "decode_image", decode)
            with pytest.raises(DeadlineExceeded):
                await engine.predict(Upload(pictures.onset, pictures.smile))
            await until(lambda: engine.busy_workers == 1)
            answer = await engine.predict(Upload(pictures.onset, pictures.brows))
            assert answer.faces
            may_end.set()

    asyncio.run(run())


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


@pytest.mark.parametrize("wrong", ["onset", "apex", "network"])
def test_a_fault_holds_nothing_of_what_was_sent(
    make_settings: MakeSettings, held: HeldSession, pictures: Pictures, wrong: str
) -> None:
    """Without the collector of cycles, which may come much later."""
    onset, apex = (bytes(bytearray(one)) for one in (pictures.onset, pictures.smile))
    upload = {
        "onset": Upload(onset[:500], apex),
        "apex": Upload(onset, apex[:500]),
        "network": Upload(onset, apex),
    }[wrong]

    def fail(*_tensors: object) -> np.ndarray:
        raise ValueError("a fault of the network")

    def holders() -> tuple[int, int]:
        return sys.getrefcount(upload.onset), sys.getrefcount(upload.apex)

    async def run() -> None:
        held.run = fail
        async with opened(make_settings(worker_threads=2), held) as engine:
            before = holders()
            gc.disable()
            try:
                with suppress(BrokenImage, ValueError):
                    await engine.predict(upload)
                    raise AssertionError("it was answered")
                await until(lambda: engine.busy_workers == 0 and holders() == before)
            finally:
                gc.enable()

    asyncio.run(run())


def test_an_engine_is_not_ready_until_it_is_warm(
    make_settings: MakeSettings, held: HeldSession, pictures: Pictures
) -> None:
    async def run() -> None:
        warm = threading.Event()
        held.warm_up = lambda _sizes: warm.wait(20)
        async with Engine.open(make_settings(), sessions={"tiny": held}) as engine:
            assert (engine.ready, engine.trouble) == (False, "loading")
            with pytest.raises(NotReady):
                await engine.predict(Upload(pictures.onset, pictures.onset))
            warm.set()
            await engine.warmed_up()
            assert (engine.ready, engine.trouble) == (True, None)

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
            assert (engine.ready, engine.trouble) == (False, "warm_up_failed")

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
            await until(lambda: engine.trouble == "network_wedged")
            with pytest.raises(NotReady):
                await engine.predict(Upload(pictures.onset, pictures.smile))
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

    monkeypatch.setattr("model.solver.compute_flow", slow_flow)
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
            await until(lambda: len(batcher._jobs) == 2)  # noqa: SLF001 - likewise
            leaver.cancel()
            await asyncio.sleep(0)
            held.may_go.set()
            answers = await asyncio.gather(first, leaver, stays, return_exceptions=True)
            assert isinstance(answers[1], asyncio.CancelledError)
            assert answers[0].faces[0].verdict != answers[2].faces[0].verdict
            assert held.runs == 2
            assert engine.items == 0

    asyncio.run(run())


def test_what_a_worker_hands_over_just_when_its_caller_leaves_is_never_run(
    make_settings: MakeSettings,
    held: HeldSession,
    pictures: Pictures,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handing, may_hand = threading.Event(), threading.Event()

    async def run() -> None:
        async with opened(make_settings(), held) as engine:
            upload = Upload(pictures.onset, pictures.smile)
            first = asyncio.create_task(engine.predict(upload))
            await asyncio.to_thread(held.started.wait, 20)
            batcher = engine._shelf.get(None).batcher  # noqa: SLF001 - where it is handed over
            submit = batcher.submit

            def submit_late(pairs: object) -> object:
                handing.set()
                assert may_hand.wait(20)
                return submit(pairs)

            monkeypatch.setattr(batcher, "submit", submit_late)
            leaver = asyncio.create_task(engine.predict(upload))
            await asyncio.to_thread(handing.wait, 20)
            leaver.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaver
            may_hand.set()
            await until(lambda: engine.busy_workers == 0)
            assert not batcher._jobs  # noqa: SLF001 - likewise
            held.may_go.set()
            assert len((await first).faces) == 1
        assert held.runs == 1

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


def test_every_model_has_run_at_every_batch_size_before_the_engine_is_ready(
    tmp_path: Path, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        write_tiny_model(tmp_path, tiny_spec(name))
    ran: list[tuple[str, int]] = []
    run_real = Session.run

    def run_noted(session: Session, image: np.ndarray, flow: np.ndarray) -> np.ndarray:
        ran.append((session.spec.name, len(image)))
        return run_real(session, image, flow)

    monkeypatch.setattr(Session, "run", run_noted)

    async def run() -> None:
        async with opened(make_settings(models_dir=tmp_path, batch_sizes=(1, 3))):
            assert {*ran} == {(name, size) for name in ("first", "second") for size in (1, 3)}

    asyncio.run(run())


def test_the_engine_imports_without_any_web_framework() -> None:
    code = (
        "import sys; sys.modules.update(fastapi=None, starlette=None, uvicorn=None, "
        "prometheus_client=None, structlog=None); import service.engine"
    )
    run = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


class Stage:
    """The stages before the network, held in Python's own steps where the test asks for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.hold = False
        self.threads: list[threading.Thread] = []
        self.may_go = threading.Event()
        prepare: Callable[..., Prepared] = getattr(engine_module, name)

        def held(*given: object) -> Prepared:
            if self.hold:
                self.threads.append(threading.current_thread())
                while not self.may_go.wait(0.005):
                    pass
            return prepare(*given)

        monkeypatch.setattr(engine_module, name, held)


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage(monkeypatch, "prepare_pair")
    yield stage
    stage.may_go.set()


@pytest.fixture
def clips(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage(monkeypatch, "prepare_clip")
    yield stage
    stage.may_go.set()


def test_a_worker_thread_that_ends_costs_its_own_pair_only_and_is_replaced(
    make_settings: MakeSettings, pairs: Stage, pictures: Pictures
) -> None:
    heard = Listener()
    others = threading.enumerate()

    async def run() -> None:
        async with opened(make_settings(), observer=heard) as engine:
            upload = Upload(pictures.onset, pictures.smile)
            pairs.hold = True
            lost = asyncio.create_task(engine.predict(upload))
            await until(lambda: len(pairs.threads) == 1)
            kept = asyncio.create_task(engine.predict(upload))
            await until(lambda: len(pairs.threads) == 2)
            assert engine.busy_workers == 2
            end_thread(pairs.threads[0])
            with pytest.raises(WorkerDied):
                await lost
            await until(lambda: heard.deaths == ["worker"])
            pairs.may_go.set()
            assert len((await kept).faces) == 1
            answers = await engine.predict_many([upload] * 4)
            assert all(isinstance(answer, Answer) for answer in answers)
            working = [
                one
                for one in threading.enumerate()
                if "mfdan-worker" in one.name and one not in others
            ]
            assert len(working) == 2
            assert pairs.threads[0] not in working
            assert engine.ready
            assert engine.items == 0

    asyncio.run(run())


def test_idle_threads_that_end_cost_nobody_anything(
    make_settings: MakeSettings, pictures: Pictures
) -> None:
    async def run() -> None:
        async with opened(make_settings(worker_threads=1)) as engine:
            upload = Upload(pictures.onset, pictures.smile)
            await engine.predict(upload)
            await until(lambda: engine.busy_workers == 0)
            for thread in threading.enumerate():
                if thread.name.startswith("mfdan-"):
                    end_thread(thread)
            assert len((await engine.predict(upload)).faces) == 1
            assert engine.ready

    asyncio.run(run())


def test_a_thread_that_could_not_tell_of_its_end_is_replaced_within_a_heartbeat(
    make_settings: MakeSettings, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "MEND_S", 0.02)

    async def run() -> None:
        async with opened(make_settings(worker_threads=1)) as engine:
            pool = engine._pool  # noqa: SLF001 - to end its thread unheard
            monkeypatch.setattr(pool, "_live", lambda _worker: None)  # ends at once, each of them
            (first,) = pool.threads
            await until(lambda: engine.busy_workers == 0)
            end_thread(first)
            lost = asyncio.create_task(engine.predict(Upload(pictures.onset, pictures.smile)))
            await until(lambda: first not in pool.threads)
            monkeypatch.undo()
            assert len((await lost).faces) == 1

    asyncio.run(run())


def test_a_worker_that_is_stuck_makes_the_engine_unready_and_the_others_still_answer(
    make_settings: MakeSettings, clips: Stage, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "UNHEARD_S", 0.05)
    clips.hold = True

    async def run() -> None:
        settings = make_settings(worker_threads=2, clip_workers=2, clip_deadline_ms=100)
        async with opened(settings) as engine:
            upload = Upload(pictures.onset, pictures.smile)
            with pytest.raises(DeadlineExceeded):
                await engine.predict_clip(ClipUpload(b"clip"))
            await until(lambda: engine.trouble == "worker_wedged")
            assert len((await engine.predict(upload)).faces) == 1
            with pytest.raises(DeadlineExceeded):
                await engine.predict_clip(ClipUpload(b"clip"))
            await until(lambda: engine._pool.overdue == 2)  # noqa: SLF001 - none is left
            with pytest.raises(NotReady, match="no worker is free"):
                await engine.predict(upload)
            clips.may_go.set()
            await until(lambda: engine.ready)
            assert len((await engine.predict(upload)).faces) == 1

    asyncio.run(run())


class BreakingSession(HeldSession):
    """A real session whose runs raise for as long as they are told to."""

    broken = False

    def run(self, image: np.ndarray, flow: np.ndarray) -> np.ndarray:
        if self.broken:
            raise RuntimeError("the device is lost")
        return super().run(image, flow)


@pytest.fixture
def breaking(models_dir: Path) -> BreakingSession:
    session = BreakingSession(Session.open(next(models_dir.glob("*.onnx"))))
    session.may_go.set()
    return session


def test_a_run_that_raises_reaches_all_its_waiters_and_makes_the_engine_unready_until_one_succeeds(
    make_settings: MakeSettings,
    breaking: BreakingSession,
    pictures: Pictures,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.batcher.PROBE_S", 0.05)
    monkeypatch.setattr(engine_module, "MEND_S", 0.02)

    async def run() -> None:
        async with opened(make_settings(), breaking) as engine:
            upload = Upload(pictures.onset, pictures.smile)
            breaking.broken = True
            faults = await engine.predict_many([upload] * 3)
            assert [str(fault) for fault in faults] == ["the device is lost"] * 3
            assert engine.trouble == "inference_failed"
            with pytest.raises(RuntimeError, match="lost"):  # not refused: it may be over
                await engine.predict(upload)
            breaking.broken = False
            await until(lambda: engine.ready)  # without a request
            assert len((await engine.predict(upload)).faces) == 1

    asyncio.run(run())


def test_who_finds_the_queue_full_is_told_how_long_what_waits_will_take(
    make_settings: MakeSettings, held: HeldSession, pictures: Pictures
) -> None:
    async def run() -> None:
        async with opened(make_settings(retry_after_s=2), held) as engine:
            upload = Upload(pictures.onset, pictures.smile)
            assert (engine.retry_after_s("pair"), engine.retry_after_s("clip")) == (2, 2)
            slow = asyncio.create_task(engine.predict(upload))
            await asyncio.to_thread(held.started.wait, 20)
            await asyncio.sleep(0.2)  # so an answer takes a fifth of a second
            held.may_go.set()
            await slow
            assert engine.retry_after_s() == 2
            held.may_go.clear()
            many = asyncio.create_task(engine.predict_many([upload] * 16, Options(faces=8)))
            await until(lambda: engine.items == 128)
            with pytest.raises(QueueFull) as refused:
                await engine.predict(upload)
            assert refused.value.retry_after_s is not None
            assert 128 / 5 <= refused.value.retry_after_s <= 60
            assert engine.retry_after_s("clip") == 2
            held.may_go.set()
            await many

    asyncio.run(run())


def test_tensors_are_answered_as_the_network_answers_them(
    make_settings: MakeSettings, models_dir: Path
) -> None:
    session = Session.open(next(models_dir.glob("*.onnx")))
    rng = np.random.default_rng(7)
    image, flow = rng.random((2, 5, 3, 224, 224), dtype=np.float32)

    async def run() -> None:
        async with opened(make_settings()) as engine:
            asked = [engine.infer(image[at : at + 2], flow[at : at + 2]) for at in (0, 1, 3)]
            for at, (model, rows) in zip((0, 1, 3), await asyncio.gather(*asked), strict=True):
                assert model.spec == session.spec
                expected = session.run(image[at : at + 2], flow[at : at + 2])
                np.testing.assert_allclose(rows, expected, rtol=1e-5)
            assert engine.items == 0

    asyncio.run(run())


def test_tensors_that_the_network_does_not_take_are_refused_before_any_work(
    make_settings: MakeSettings, held: HeldSession
) -> None:
    good = np.zeros((2, 3, 224, 224), np.float32)
    bad = {
        "side": good[..., :112],
        "axes": good[0],
        "none": good[:0],
        "number": good[0, 0, 0, 0],
        "type": good.astype(np.float64),
        "fewer": good[:1],
    }

    async def run() -> None:
        async with opened(make_settings(), held) as engine:
            for given in bad.values():
                with pytest.raises(ShapeError):
                    await engine.infer(good, given)
                with pytest.raises(ShapeError):
                    await engine.infer(given, good if given.ndim else given)
            with pytest.raises(ModelNotFound):
                await engine.infer(good, good, "large")
            many = np.zeros((129, 3, 224, 224), np.float32)
            with pytest.raises(QueueFull, match="0 are taken, and 129 are asked for"):
                await engine.infer(many, many)
            assert held.runs == 0
            assert engine.items == 0

    asyncio.run(run())


def test_an_answer_tells_when_what_happened_in_its_order(
    make_settings: MakeSettings, held: HeldSession, pictures: Pictures
) -> None:
    async def run() -> None:
        async with opened(make_settings(), held) as engine:
            before = time.time_ns()
            asked = asyncio.create_task(engine.predict(Upload(pictures.onset, pictures.smile)))
            await asyncio.to_thread(held.started.wait, 20)
            await asyncio.sleep(0.1)
            held.may_go.set()
            answer = await asked
            at = answer.moments
            assert before <= at.asked_ns <= at.begun_ns <= at.prepared_ns <= at.answered_ns
            assert at.answered_ns - at.prepared_ns >= 100_000_000
            total = answer.timings_ms["total"]
            assert (at.answered_ns - at.asked_ns) / 1e6 == pytest.approx(total, abs=5)

    asyncio.run(run())


def test_where_a_request_was_when_nobody_waited_for_it_any_more_is_told(
    make_settings: MakeSettings, pairs: Stage, held: HeldSession, pictures: Pictures
) -> None:
    heard = Listener()

    async def run() -> None:
        async with opened(make_settings(worker_threads=1), held, heard) as engine:
            upload = Upload(pictures.onset, pictures.smile)
            pairs.hold = True
            working = asyncio.create_task(engine.predict(upload))
            await until(lambda: len(pairs.threads) == 1)
            waiting = asyncio.create_task(engine.predict(upload))
            await until(lambda: engine.waiting == 1)
            for task in (waiting, working):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            pairs.hold = False
            pairs.may_go.set()
            network = asyncio.create_task(engine.predict(upload))
            await asyncio.to_thread(held.started.wait, 20)
            network.cancel()
            with pytest.raises(asyncio.CancelledError):
                await network
            held.may_go.set()
        assert heard.drops == [
            ("waiting", "cancelled"),
            ("working", "cancelled"),
            ("network", "cancelled"),
        ]
        assert [what for what, _ in heard.waits if what == "worker"] == ["worker"] * 2

    asyncio.run(run())


def test_a_deadline_is_told_as_such(
    make_settings: MakeSettings, held: HeldSession, pictures: Pictures
) -> None:
    heard = Listener()

    async def run() -> None:
        async with opened(make_settings(deadline_ms=500), held, heard) as engine:
            with pytest.raises(DeadlineExceeded):
                await engine.predict(Upload(pictures.onset, pictures.smile))
            held.may_go.set()

    asyncio.run(run())
    assert heard.drops == [("network", "deadline")]


def test_closing_gives_up_on_a_stuck_worker_and_never_stops_the_event_loop(
    make_settings: MakeSettings, pairs: Stage, pictures: Pictures, caplog: pytest.LogCaptureFixture
) -> None:
    pairs.hold = True
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.02)

    async def run() -> None:
        async with opened(make_settings(drain_timeout_s=0, worker_threads=1)) as engine:
            upload = Upload(pictures.onset, pictures.smile)
            stuck = asyncio.create_task(engine.predict(upload))
            await until(lambda: len(pairs.threads) == 1)
            waits = asyncio.create_task(engine.predict(upload))
            await until(lambda: engine.waiting == 1)
            turning = asyncio.create_task(count_turns())
            await engine.close()
            turning.cancel()
            with pytest.raises(Closed):
                await waits
            stuck.cancel()

    asyncio.run(run())
    assert turns > 5
    assert "threads that are stuck were left behind" in caplog.text
