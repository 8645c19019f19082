"""The way of one request through threads, batches and deadlines. Usable without FastAPI.

async with Engine.open(Settings()) as engine:
    await engine.warmed_up()
    answer = await engine.predict(Upload(onset_bytes, apex_bytes))
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from model.errors import ModelError, ModelNotFound, ShapeError
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
    Moments,
    Options,
    Upload,
)
from service.batcher import Batcher
from service.faults import Closed, DeadlineExceeded, NotReady, QueueFull, WorkerDied
from service.observer import Observer, Place
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
    "Moments",
    "NotReady",
    "Options",
    "QueueFull",
    "Trouble",
    "Upload",
    "WorkerDied",
    "open_sessions",
]

PARTLY_SEEN = 0.9
"""Share of a clip's keyframes that show the face, under which the answer warns (ours)."""

MOST_RETRY_AFTER_S = 60
"""A caller is never told to stay away for longer."""

Trouble = Literal[
    "loading",
    "warm_up_failed",
    "closing",
    "worker_wedged",
    "network_wedged",
    "inference_failed",
]
"""Why the engine is not ready."""
Kind = Literal["pair", "clip"]
_MEMORY = 0.95
"""What a completion weighs, once another one came."""
T = TypeVar("T")
FloatArray = NDArray[np.float32]
_LOG = logging.getLogger("mfdan")


class _Abandoned(Exception):
    """Nobody waits for this work any more."""


_DEFAULTS = Options()


@dataclass(frozen=True, slots=True, eq=False)
class _Model:
    session: Session
    preprocessor: Preprocessor
    batcher: Batcher


@dataclass(slots=True, eq=False)
class _Course:
    """How far one pair, clip or stack of tensors has come."""

    asked_ns: int = field(default_factory=time.time_ns)
    asked: float = field(default_factory=time.perf_counter)
    begun: float | None = None
    prepared: float | None = None

    @property
    def place(self) -> Place:
        """Where it is now."""
        if self.begun is None:
            return "waiting"
        return "working" if self.prepared is None else "network"

    def moments(self, answered: float) -> Moments:
        """Return when what happened; `answered` is of `time.perf_counter`."""
        assert self.begun is not None  # noqa: S101 - an answered one has been worked on
        assert self.prepared is not None  # noqa: S101 - likewise
        return Moments(
            self.asked_ns, self._at(self.begun), self._at(self.prepared), self._at(answered)
        )

    def _at(self, moment: float) -> int:
        return self.asked_ns + round((moment - self.asked) * 1e9)


class _Pace:
    """The mean time between two completions while there is work, of the last few dozen."""

    def __init__(self) -> None:
        self._since = self._total_s = self._completions = 0.0

    @property
    def seconds(self) -> float:
        """Of one completion; 0 before the first."""
        return self._total_s / self._completions if self._completions else 0.0

    def begin(self, under_way: int, more: int) -> None:
        """Hear of new work: idle time up to here does not count."""
        if more and not under_way:
            self._since = time.perf_counter()

    def done(self, count: int) -> None:
        """Hear of completions."""
        if not count:
            return
        now = time.perf_counter()
        kept = _MEMORY**count
        self._total_s = kept * self._total_s + now - self._since
        self._completions = kept * self._completions + count
        self._since = now


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
        self,
        settings: Settings,
        sessions: Mapping[str, Session],
        observer: Observer | None = None,
    ) -> None:
        finder = FaceFinder()
        self._observer = observer = observer or Observer()
        self._settings = settings
        self._finder = finder
        self._models = {
            name: _Model(
                session,
                Preprocessor(session.spec, finder),
                Batcher(
                    session.run,
                    sizes=settings.batch_sizes,
                    name=name,
                    observer=observer,
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
        self._courses: set[_Course] = set()
        self._paces: dict[Kind, _Pace] = {"pair": _Pace(), "clip": _Pace()}
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
        observer: Observer | None = None,
        sessions: Mapping[str, Session] | None = None,
    ) -> AsyncIterator["Engine"]:
        """Load the models (unless they are given), warm up in the background, close at the end.

        `observer` hears of the work. Raises what `open_sessions` raises.
        """
        cv2.setNumThreads(settings.opencv)  # together with the pool and ONNX Runtime
        if sessions is None:
            sessions = await asyncio.to_thread(open_sessions, settings)
        engine = cls(settings, sessions, observer)
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
    def waiting(self) -> int:
        """Pairs and clips that wait for a worker."""
        return sum(one.begun is None for one in self._courses)

    @property
    def busy_workers(self) -> int:
        """Workers that have work."""
        return sum(one.begun is not None and one.prepared is None for one in self._courses)

    @property
    def trouble(self) -> Trouble | None:
        """Why the engine is not ready; None when it is."""
        if self._closing:
            return "closing"
        if not self._warming.done():
            return "loading"
        if self._warming.cancelled() or self._warming.exception() is not None:
            return "warm_up_failed"
        if any(self._is_stuck(one) for one in self._models.values()):
            return "network_wedged"
        if any(one.batcher.failed for one in self._models.values()):
            return "inference_failed"
        return None

    @property
    def ready(self) -> bool:
        """Whether a request sent now would be worked on: warm, not closing, nothing stuck."""
        return self.trouble is None

    def retry_after_s(self, kind: Kind = "pair") -> int:
        """Return when what waits now will have been answered, seconds, by the measured rate."""
        waiting = self._items if kind == "pair" else self._clips
        least = self._settings.retry_after_s
        expected = math.ceil(waiting * self._paces[kind].seconds)
        return max(least, min(MOST_RETRY_AFTER_S, expected))

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
        course = _Course()
        with self._clip_admitted():
            return await self._within(
                self._settings.clip_deadline_ms,
                course,
                self._clip_answer(model, sent, options, course),
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

    async def infer(
        self, image: FloatArray, flow: FloatArray, model: str | None = None
    ) -> tuple[Session, FloatArray]:
        """Return the model and the (N, K) probabilities of N prepared pairs.

        Convention: as `Session.run`. Gates and abstention are not applied.
        Raises: ShapeError (before any work), ModelNotFound, NotReady, Closed, QueueFull,
        DeadlineExceeded.
        """
        chosen = self._model(model)
        _check_tensors(image, flow, chosen.session.spec.input_size)
        with self._pairs_admitted(len(image)):
            course = _Course()
            course.begun = course.prepared = course.asked
            pairs = list(zip(image, flow, strict=True))
            rows = await self._within(self._settings.deadline_ms, course, self._rows(chosen, pairs))
        return chosen.session, np.stack(rows)

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
                f"of {most} places for faces {self._items} are taken, and {faces} are asked for",
                self.retry_after_s("pair"),
            )
        with self._counted(items=faces):
            yield

    @contextmanager
    def _clip_admitted(self) -> Iterator[None]:
        self._check_open()
        if self._clips >= self._settings.most_clips:
            raise QueueFull(
                f"{self._clips} clips are at work or waiting already", self.retry_after_s("clip")
            )
        with self._counted(clips=1):
            yield

    def _check_open(self) -> None:
        trouble = self.trouble
        if trouble == "closing":
            raise Closed("the service is shutting down")
        if trouble not in {None, "inference_failed"}:
            raise NotReady("the model is not ready")

    def _is_stuck(self, model: _Model) -> bool:
        batcher = model.batcher
        return not batcher.alive or batcher.busy_s * 1e3 >= self._settings.deadline_ms

    @contextmanager
    def _counted(self, *, items: int = 0, clips: int = 0) -> Iterator[None]:
        self._paces["pair"].begin(self._items, items)
        self._paces["clip"].begin(self._clips, clips)
        self._items += items
        self._clips += clips
        self._idle.clear()
        try:
            yield
            self._paces["pair"].done(items)
            self._paces["clip"].done(clips)
        finally:
            self._items -= items
            self._clips -= clips
            if self._items == self._clips == 0:
                self._idle.set()

    async def _within(self, deadline_ms: int, course: _Course, work: Coroutine[Any, Any, T]) -> T:
        """Await the work until the deadline; tell of it when nobody waits for it any more."""
        self._courses.add(course)
        try:
            async with asyncio.timeout(deadline_ms / 1e3):
                return await work
        except TimeoutError:
            self._observer.dropped(course.place, "deadline")
            raise DeadlineExceeded(f"no answer within {deadline_ms} ms") from None
        except asyncio.CancelledError:
            self._observer.dropped(course.place, "cancelled")
            raise
        finally:
            self._courses.discard(course)

    async def _pair_answer(self, model: _Model, upload: Upload, options: Options) -> Answer:
        course = _Course()

        def work(check: Check) -> Prepared:
            limits = self._settings.limits
            return prepare_pair(model.preprocessor, upload, options, limits, check)

        return await self._within(
            self._settings.deadline_ms, course, self._answer(model, work, course)
        )

    async def _clip_answer(
        self, model: _Model, sent: ClipUpload | Burst, options: Options, course: _Course
    ) -> Answer:
        limits = self._settings.clip_limits, self._settings.limits

        def work(check: Check) -> Prepared:
            return prepare_clip(model.preprocessor, sent, options, *limits, check)

        async with self._clip_turns:
            return await self._answer(model, work, course, self._clip_places)

    async def _answer(
        self,
        model: _Model,
        work: Callable[[Check], Prepared],
        course: _Course,
        places: asyncio.Semaphore | None = None,
    ) -> Answer:
        start = time.perf_counter()
        prepared = await self._in_worker(work, course, places)
        before_infer = course.prepared = time.perf_counter()
        items = [item for face in prepared.faces for item in face.items]
        # A clip's count from here on, and are never refused: its decoding is paid for. Those of
        # pairs were counted, as asked for, when they were admitted.
        with self._counted(items=0 if prepared.clip is None else len(items)):
            rows = iter(await self._rows(model, [(item.image, item.flow) for item in items]))
        end = time.perf_counter()
        spec = model.session.spec
        return Answer(
            spec=spec,
            provider=model.session.provider,
            provider_fallback=model.session.fell_back,
            faces=tuple(
                _face_answer(spec, face, [next(rows) for _ in face.items])
                for face in prepared.faces
            ),
            warnings=prepared.warnings,
            timings_ms=prepared.timings_ms
            | {"infer": (end - before_infer) * 1e3, "total": (end - start) * 1e3},
            moments=course.moments(end),
            clip=prepared.clip,
        )

    async def _rows(
        self, model: _Model, tensors: Sequence[tuple[FloatArray, FloatArray]]
    ) -> list[FloatArray]:
        return await asyncio.gather(*(model.batcher.submit(*pair) for pair in tensors))

    async def _in_worker(
        self,
        work: Callable[[Check], Prepared],
        course: _Course,
        places: asyncio.Semaphore | None,
    ) -> Prepared:
        """Run the stages before the network in one worker, when there is a place.

        In one, so that no more decoded frames are held than there are workers.
        """
        loop = asyncio.get_running_loop()
        abandoned = threading.Event()

        def check() -> None:
            if abandoned.is_set():
                raise _Abandoned

        def begin() -> Prepared:
            course.begun = time.perf_counter()
            return work(check)

        if places is not None:
            await places.acquire()
        working = self._pool.submit(begin)
        if places is not None:
            # Not when the caller leaves: the worker is busy until it hears of that. Cancelled
            # before it started, the work is done at once.
            working.add_done_callback(_in_loop(loop, places.release))
        try:
            return await asyncio.wrap_future(working)
        finally:
            abandoned.set()
            if course.begun is not None:
                self._observer.waited("worker", course.begun - course.asked)

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


def _check_tensors(image: FloatArray, flow: FloatArray, side: int) -> None:
    expected = (len(image) if image.ndim else 0, 3, side, side)
    for name, array in (("image", image), ("flow", flow)):
        if array.shape != expected or array.dtype != np.float32:
            raise ShapeError(f"{name} is {expected} float32, got {array.shape} {array.dtype}")
    if not len(image):
        raise ShapeError("image and flow hold nothing")


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
