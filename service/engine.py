"""The way of one request through threads, batches and deadlines. Usable without FastAPI.

async with Engine.open(Settings()) as engine:
    await engine.warmed_up()
    answer = await engine.predict(Upload(onset_bytes, apex_bytes))
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from model.errors import ModelError, ModelNotFound
from model.face import FaceFinder
from model.pipeline import Preprocessor
from model.quality import warnings as quality_warnings
from model.session import Session
from model.spec import ModelSpec
from model.verdict import Verdict, judge
from service.answers import (
    Answer,
    AnswerWarning,
    Burst,
    CandidateAnswer,
    ClipFacts,
    ClipUpload,
    FaceAnswer,
    FaceWarning,
    Options,
    Upload,
)
from service.batcher import Batcher, Closed, OnBatch
from service.preparation import Check, Item, Prepared, PreparedFace, prepare_clip, prepare_pair
from service.settings import Settings

__all__ = [
    "Answer",
    "AnswerWarning",
    "Burst",
    "CandidateAnswer",
    "ClipFacts",
    "ClipUpload",
    "Closed",
    "DeadlineExceeded",
    "Engine",
    "FaceAnswer",
    "FaceWarning",
    "NotReady",
    "Options",
    "QueueFull",
    "Upload",
    "open_sessions",
]

PARTLY_SEEN = 0.9
"""Share of a clip's keyframes that show the face, under which the answer warns (ours)."""

FloatArray = NDArray[np.float32]
_LOG = logging.getLogger("mfdan")


class NotReady(Exception):
    """The model is not warm yet, or could not be warmed."""

    code = "not_ready"


class QueueFull(Exception):
    """As much work waits as may wait."""

    code = "queue_full"


class DeadlineExceeded(Exception):
    """The answer took longer than the deadline."""

    code = "deadline_exceeded"


class _Abandoned(Exception):
    """Nobody waits for this work any more."""


_DEFAULTS = Options()


@dataclass(frozen=True, slots=True, eq=False)
class _Model:
    session: Session
    preprocessor: Preprocessor
    batcher: Batcher


def open_sessions(settings: Settings) -> dict[str, Session]:
    """Load every model of the models folder, by the name in its spec; the default comes first.

    Raises: ModelNotFound (an empty folder, or no model of the default's name), ModelError (two
    models of one name), and whatever `Session.open` raises.
    """
    sessions: dict[str, Session] = {}
    for path in settings.model_files():
        session = Session.open(path, device=settings.device, threads=settings.onnx)
        if session.spec.name in sessions:
            raise ModelError(f"two models are called {session.spec.name}")
        sessions[session.spec.name] = session
    if not sessions:
        raise ModelNotFound("the models folder holds no *.onnx file")
    default = settings.model or next(iter(sessions))
    if default not in sessions:
        raise ModelNotFound(f"the default model {default} is not among {', '.join(sessions)}")
    return {default: sessions.pop(default), **sessions}


class Engine:
    """Answers pairs and clips: bounded, cancellable, each within its deadline.

    >>> async with Engine.open(Settings()) as engine:  # doctest: +SKIP
    ...     await engine.warmed_up()
    ...     answer = await engine.predict(Upload(onset_bytes, apex_bytes))
    """

    def __init__(
        self, settings: Settings, sessions: Mapping[str, Session], on_batch: OnBatch | None = None
    ) -> None:
        finder = FaceFinder()
        self._settings = settings
        self._finder = finder
        self._models = {
            name: _Model(
                session,
                Preprocessor(session.spec, finder),
                Batcher(
                    session.run,
                    sizes=settings.batch_sizes,
                    on_batch=on_batch,
                ),
            )
            for name, session in sessions.items()
        }
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="mfdan-worker")
        # So that clips, which take seconds, never hold all the workers that pairs wait for.
        self._clip_places = asyncio.Semaphore(settings.clips_at_once)
        # A clip's turn ends with its answer, its place when its worker is free: later, where nobody
        # waits for the answer any more. Together they bound what clips hold for the network.
        self._clip_turns = asyncio.Semaphore(settings.clips_at_once)
        self._items = self._clips = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._warming = asyncio.create_task(asyncio.to_thread(self._warm_up))
        self._warming.add_done_callback(_log_failure)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        settings: Settings,
        on_batch: OnBatch | None = None,
        sessions: Mapping[str, Session] | None = None,
    ) -> AsyncIterator["Engine"]:
        """Load the models (unless they are given), warm up in the background, close at the end.

        `on_batch` hears of every batch: its size and its seconds. Raises what `open_sessions`
        raises.
        """
        cv2.setNumThreads(settings.opencv)  # together with the pool and ONNX Runtime
        if sessions is None:
            sessions = await asyncio.to_thread(open_sessions, settings)
        engine = cls(settings, sessions, on_batch)
        try:
            yield engine
        finally:
            await engine.close()

    @property
    def sessions(self) -> dict[str, Session]:
        """The loaded models by name; the default is the first."""
        return {name: one.session for name, one in self._models.items()}

    @property
    def items(self) -> int:
        """Faces of pairs (as asked for) at work or waiting, and movements found in clips."""
        return self._items

    @property
    def clips(self) -> int:
        """Clips at work or waiting."""
        return self._clips

    @property
    def closing(self) -> bool:
        """Whether new work is refused because the service shuts down."""
        return self._closing

    @property
    def ready(self) -> bool:
        """Whether a request sent now would be worked on: warm, not closing, no worker stuck."""
        warm = self._warming.done() and not self._warming.cancelled()
        return (
            warm
            and self._warming.exception() is None
            and not self._closing
            and all(
                one.batcher.alive and one.batcher.busy_s * 1e3 < self._settings.deadline_ms
                for one in self._models.values()
            )
        )

    async def warmed_up(self) -> None:
        """Wait until the engine is warm. Raises what the warming up raised."""
        await asyncio.shield(self._warming)

    def session(self, name: str | None = None) -> Session:
        """Return a loaded model; the default when no name is given. Raises: ModelNotFound."""
        return self._model(name).session

    async def predict(self, upload: Upload, options: Options = _DEFAULTS) -> Answer:
        """Answer one pair.

        Raises: InputError (of the pictures), ModelNotFound, NotReady, Closed, QueueFull,
        DeadlineExceeded. A cancelled call starts no further work.
        """
        model = self._model(options.model)
        with self._pairs_admitted(options.faces):
            return await self._pair_answer(model, upload, options)

    async def predict_clip(self, sent: ClipUpload | Burst, options: Options = _DEFAULTS) -> Answer:
        """Answer one clip.

        Raises: InputError (of the clip, its pictures, or the frames named), ModelNotFound,
        NotReady, Closed, QueueFull, DeadlineExceeded. A cancelled call, or one past its deadline,
        stops decoding at the next frame.
        """
        model = self._model(options.model)
        with self._clip_admitted():
            return await self._within(
                self._settings.clip_deadline_ms, self._clip_answer(model, sent, options)
            )

    async def predict_many(
        self, uploads: Sequence[Upload], options: Options = _DEFAULTS
    ) -> list[Answer | BaseException]:
        """Answer many pairs, in their order; a pair that fails leaves its exception.

        Raises, for the whole: ModelNotFound, NotReady, Closed, QueueFull.
        """
        model = self._model(options.model)
        with self._pairs_admitted(options.faces * len(uploads)):
            return await asyncio.gather(
                *(self._pair_answer(model, upload, options) for upload in uploads),
                return_exceptions=True,
            )

    async def close(self) -> None:
        """Refuse new work, finish what was admitted, stop all threads."""
        self._closing = True
        await self._idle.wait()
        await asyncio.wait([self._warming])
        for one in self._models.values():
            await one.batcher.close()
        self._pool.shutdown(wait=True)

    def _model(self, name: str | None) -> _Model:
        if name is None:
            return next(iter(self._models.values()))
        if name not in self._models:
            raise ModelNotFound("there is no model of that name")
        return self._models[name]

    @contextmanager
    def _pairs_admitted(self, faces: int) -> Iterator[None]:
        self._check_open()
        most = self._settings.queue_items
        if self._items + faces > most:
            raise QueueFull(
                f"of {most} places for faces {self._items} are taken, and {faces} are asked for"
            )
        with self._counted(items=faces):
            yield

    @contextmanager
    def _clip_admitted(self) -> Iterator[None]:
        self._check_open()
        if self._clips >= self._settings.most_clips:
            raise QueueFull(f"{self._clips} clips are at work or waiting already")
        with self._counted(clips=1):
            yield

    def _check_open(self) -> None:
        if self._closing:
            raise Closed("the service is shutting down")
        if not self.ready:
            raise NotReady("the model is not ready")

    @contextmanager
    def _counted(self, *, items: int = 0, clips: int = 0) -> Iterator[None]:
        self._items += items
        self._clips += clips
        self._idle.clear()
        try:
            yield
        finally:
            self._items -= items
            self._clips -= clips
            if self._items == self._clips == 0:
                self._idle.set()

    async def _within(self, deadline_ms: int, answer: Coroutine[Any, Any, Answer]) -> Answer:
        try:
            async with asyncio.timeout(deadline_ms / 1e3):
                return await answer
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {deadline_ms} ms") from None

    async def _pair_answer(self, model: _Model, upload: Upload, options: Options) -> Answer:
        def work(check: Check) -> Prepared:
            limits = self._settings.limits
            return prepare_pair(model.preprocessor, upload, options, limits, check)

        return await self._within(self._settings.deadline_ms, self._answer(model, work))

    async def _clip_answer(
        self, model: _Model, sent: ClipUpload | Burst, options: Options
    ) -> Answer:
        limits = self._settings.clip_limits, self._settings.limits

        def work(check: Check) -> Prepared:
            return prepare_clip(model.preprocessor, sent, options, *limits, check)

        async with self._clip_turns:
            return await self._answer(model, work, self._clip_places)

    async def _answer(
        self,
        model: _Model,
        work: Callable[[Check], Prepared],
        places: asyncio.Semaphore | None = None,
    ) -> Answer:
        start = time.perf_counter()
        prepared = await self._in_worker(work, places)
        before_infer = time.perf_counter()
        items = [item for face in prepared.faces for item in face.items]
        # A clip's count from here on, and are never refused: its decoding is paid for. Those of
        # pairs were counted, as asked for, when they were admitted.
        with self._counted(items=0 if prepared.clip is None else len(items)):
            rows = iter(
                await asyncio.gather(
                    *(model.batcher.submit(item.image, item.flow) for item in items)
                )
            )
        end = time.perf_counter()
        spec = model.session.spec
        return Answer(
            spec=spec,
            provider=model.session.provider,
            faces=tuple(
                _face_answer(spec, face, [next(rows) for _ in face.items])
                for face in prepared.faces
            ),
            warnings=prepared.warnings,
            timings_ms=prepared.timings_ms
            | {"infer": (end - before_infer) * 1e3, "total": (end - start) * 1e3},
            clip=prepared.clip,
        )

    async def _in_worker(
        self, work: Callable[[Check], Prepared], places: asyncio.Semaphore | None
    ) -> Prepared:
        """Run the stages before the network in one worker, when there is a place.

        In one, so that no more decoded frames are held than there are workers.
        """
        loop = asyncio.get_running_loop()
        abandoned = threading.Event()

        def check() -> None:
            if abandoned.is_set():
                raise _Abandoned

        if places is not None:
            await places.acquire()
        working = self._pool.submit(work, check)
        if places is not None:
            # Not when the caller leaves: the worker is busy until it hears of that. Cancelled
            # before it started, the work is done at once.
            working.add_done_callback(_in_loop(loop, places.release))
        try:
            return await asyncio.wrap_future(working)
        finally:
            abandoned.set()

    def _warm_up(self) -> None:
        """Run every stage once: each worker loads its own detector, the network runs."""
        everyone = threading.Barrier(self._settings.workers)

        def load() -> None:
            everyone.wait()  # so that every worker takes one
            self._finder.find(np.zeros((64, 64, 3), np.uint8))

        loading = [self._pool.submit(load) for _ in range(self._settings.workers)]
        # On a CPU one run allocates what matters; on a GPU every size has its own kernels.
        sizes = self._settings.batch_sizes if self._settings.device == "cuda" else (1,)
        for one in self._models.values():
            one.session.warm_up(sizes)
        for load_one in loading:
            load_one.result()


def _in_loop(
    loop: asyncio.AbstractEventLoop, call: Callable[[], None]
) -> Callable[[Future[Prepared]], None]:
    """Return a callback for a worker's thread, where no semaphore may be touched."""

    def callback(_working: Future[Prepared]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits for a place
            loop.call_soon_threadsafe(call)

    return callback


def _log_failure(warming: asyncio.Task[None]) -> None:
    if not warming.cancelled() and (error := warming.exception()) is not None:
        _LOG.error("warming up failed: %s", error, exc_info=error)


def _face_answer(spec: ModelSpec, face: PreparedFace, rows: Sequence[FloatArray]) -> FaceAnswer:
    """Judge the network's (K,) rows, one for each pair of a face."""
    verdicts = [_verdict(spec, item, row) for item, row in zip(face.items, rows, strict=True)]
    warnings = [_face_warnings(spec, face, item) for item in face.items]
    return FaceAnswer(
        face_id=face.face_id,
        pair=face.items[0].pair,
        verdict=verdicts[0],
        warnings=warnings[0],
        regions=face.regions,
        candidates=tuple(
            CandidateAnswer(item.interval, item.pair, verdict, about)
            for item, verdict, about in zip(face.items, verdicts, warnings, strict=True)
            if item.interval is not None
        ),
        curve=face.curve,
        seen=face.seen,
    )


def _verdict(spec: ModelSpec, item: Item, row: FloatArray) -> Verdict:
    verdict = judge(spec, row, item.pair.motion, item.pair.quality)
    middle = item.interval is not None and item.interval.source == "middle_frame"
    if middle and "no_movement" not in verdict.reasons:
        # Two arbitrary frames that differ: whatever the network sees in them is no expression.
        return replace(verdict, reasons=("no_expression_spotted", *verdict.reasons))
    return verdict


def _face_warnings(spec: ModelSpec, face: PreparedFace, item: Item) -> tuple[FaceWarning, ...]:
    found = quality_warnings(item.pair.quality, item.pair.motion, spec.quality)
    seldom = face.seen is not None and face.seen < PARTLY_SEEN
    return (*found, "partly_seen") if seldom else found
