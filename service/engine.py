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
from concurrent.futures import Future, wait
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from model.errors import FlowFailed, FlowFault, InputError, ShapeError
from model.face import FaceFinder
from model.fused import FusedRow
from model.session import Session
from service.answers import (
    Answer,
    AnswerWarning,
    Burst,
    CandidateAnswer,
    ClipFacts,
    ClipUpload,
    FaceAnswer,
    FaceWarning,
    Frames,
    Moments,
    Options,
    Upload,
)
from service.batcher import Batcher
from service.course import Course, Pace
from service.faults import Closed, DeadlineExceeded, NotReady, QueueFull, WorkerDied
from service.judging import face_answer
from service.loaded import Loaded
from service.observer import Observer
from service.preparation import (
    Check,
    CroppedPair,
    Decode,
    Prepared,
    crop_pair,
    measure_pair,
    prepare_clip,
    prepare_pair,
    solve_pair,
)
from service.registry import Registry, open_sessions
from service.settings import Settings
from service.shelf import Model, Shelf
from service.workers import Workers, in_loop

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
    "Frames",
    "Moments",
    "NotReady",
    "Options",
    "QueueFull",
    "Trouble",
    "Upload",
    "WorkerDied",
    "open_sessions",
]

MOST_RETRY_AFTER_S = 60
"""A caller is never told to stay away for longer."""
MEND_S = 1.0
"""How often threads that have ended are looked for."""
UNHEARD_S = 1.0
"""What a worker may take beyond the deadline, and a tenth of it, to hear that nobody waits any
more; it is asked between two stages. Past that it counts as stuck."""
HELP_CHECK_S = 0.1
"""How often a worker whom another one helps looks whether anybody still waits for the answer."""
ENDING_S = 1.0, 10.0
"""What threads are given to end once nobody waits for them: at the least and at the most, between
which it is what the drain has left."""

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
T = TypeVar("T")
R = TypeVar("R")
FloatArray = NDArray[np.float32]
Row = Future[FloatArray]
_LOG = logging.getLogger("mfdan")


class _Abandoned(Exception):
    """Nobody waits for this work any more."""


_DEFAULTS = Options()


class Engine:
    """Answers pairs and clips: bounded, cancellable, each within its deadline.

    >>> async with Engine.open(Settings()) as engine:  # doctest: +SKIP
    ...     await engine.warmed_up()
    ...     answer = await engine.predict(Upload(onset_bytes, apex_bytes))
    """

    def __init__(
        self,
        settings: Settings,
        models: Mapping[str, Loaded],
        observer: Observer,
    ) -> None:
        finder = FaceFinder()
        self._observer = observer
        self._settings = settings
        self._shelf = Shelf(models, settings, observer, finder)
        loop = asyncio.get_running_loop()
        self._pool = Workers(
            settings.workers,
            "mfdan-worker",
            # Each thread has a detector of its own; without this its first pair would wait for it.
            first=lambda: finder.find(np.zeros((64, 64, 3), np.uint8)),
            on_death=in_loop(loop, observer.worker_died, "worker"),
        )
        # So that clips, which take seconds, never hold all the workers that pairs wait for.
        self._clip_places = asyncio.Semaphore(settings.clips_at_once)
        # A clip's turn ends with its answer, its place when its worker is free: later, where nobody
        # waits for the answer any more. Together they bound what clips hold for the network.
        self._clip_turns = asyncio.Semaphore(settings.clips_at_once)
        self._items = self._clips = 0
        self._courses: set[Course] = set()
        self._paces: dict[Kind, Pace] = {"pair": Pace(), "clip": Pace()}
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._warming = asyncio.create_task(self._warm_up())
        self._warming.add_done_callback(_log_failure)
        self._watching = [asyncio.create_task(self._mend())]
        if settings.reload_s:
            watch = Registry(settings, self._shelf, observer).watch()
            self._watching.append(asyncio.create_task(watch))

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        settings: Settings,
        observer: Observer | None = None,
        sessions: Mapping[str, Session] | None = None,
    ) -> AsyncIterator["Engine"]:
        """Load the models (unless they are given), warm up in the background, close at the end.

        `observer` hears of the work. Raises what `open_sessions` and `Loaded.of` raise.
        """
        cv2.setNumThreads(settings.opencv)  # together with the pool and ONNX Runtime
        observer = observer or Observer()
        models = await asyncio.to_thread(_load, settings, observer, sessions)
        engine = cls(settings, models, observer)
        del sessions, models  # a model that is replaced later is to be freed
        try:
            yield engine
        finally:
            await engine.close()

    @property
    def models(self) -> dict[str, Loaded]:
        """The loaded models by name; the default is the first."""
        return self._shelf.loaded

    @property
    def items(self) -> int:
        """Faces of pairs (as asked for) at work or waiting, and movements found in clips."""
        return self._items

    @property
    def clips(self) -> int:
        """Clips at work or waiting."""
        return self._clips

    @property
    def waiting(self) -> int:
        """Pairs and clips that wait for a worker."""
        return sum(one.place == "waiting" for one in self._courses)

    @property
    def busy_workers(self) -> int:
        """Workers that have work."""
        return self._pool.busy

    @property
    def trouble(self) -> Trouble | None:
        """Why the engine is not ready; None when it is."""
        return next(self._troubles(), None)

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here: warm, not closing, nothing stuck or failing.

        For programs that use this class by itself; the service tells why not, by `trouble`.
        """
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

    def model(self, name: str | None = None) -> Loaded:
        """Return a loaded model; the default when no name is given. Raises: ModelNotFound."""
        return self._shelf.get(name).loaded

    def session(self, name: str | None = None) -> Session:
        """Return a loaded model's network, likewise."""
        return self.model(name).session

    async def predict(self, sent: Upload | Frames, options: Options = _DEFAULTS) -> Answer:
        """Answer one pair.

        Raises: InputError (of the pictures), ShapeError (of decoded frames), ModelNotFound,
        NotReady, Closed, QueueFull, DeadlineExceeded. A cancelled call starts no further work.
        """
        with self._in_use(options.model) as model, self._pairs_admitted(options.faces):
            return await self._pair_answer(model, sent, options)

    async def predict_clip(self, sent: ClipUpload | Burst, options: Options = _DEFAULTS) -> Answer:
        """Answer one clip.

        Raises: InputError (of the clip, its pictures, or the frames named), ModelNotFound,
        NotReady, Closed, QueueFull, DeadlineExceeded. A cancelled call, or one past its deadline,
        stops decoding at the next frame.
        """
        course = Course(self._settings.clip_deadline_ms / 1e3)
        with self._in_use(options.model) as model, self._clip_admitted():
            return await self._within(course, self._clip_answer(model, sent, options, course))

    async def predict_many(
        self, uploads: Sequence[Upload], options: Options = _DEFAULTS
    ) -> list[Answer | BaseException]:
        """Answer many pairs, in their order; a pair that fails leaves its exception.

        Raises, for the whole: ModelNotFound, NotReady, Closed, QueueFull.
        """
        faces = options.faces * len(uploads)
        with self._in_use(options.model) as model, self._pairs_admitted(faces):
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
        _check_tensors(image, flow, self.session(model).spec.input_size)
        with self._in_use(model) as chosen, self._pairs_admitted(len(image)):
            course = Course(self._settings.deadline_ms / 1e3)
            course.begun = course.asked
            course.asks()
            asked = chosen.batcher.submit(zip(image, flow, strict=True))
            rows = await self._within(course, _answered(asked))
            return chosen.session, np.stack(rows)

    async def close(self) -> None:
        """Refuse new work, finish what was admitted, stop all threads.

        What is not done within `drain_s` of the settings is left behind: Closed for those who wait.
        """
        self._closing = True
        for task in self._watching:
            task.cancel()
        await asyncio.wait(self._watching)
        end = time.monotonic() + self._settings.drain_s
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_s):
                await self._idle.wait()
                await asyncio.wait([self._warming])
        self._warming.cancel()
        least_s, most_s = ENDING_S
        left_s = max(least_s, min(most_s, end - time.monotonic()))
        ended = await asyncio.gather(
            self._shelf.close(left_s),
            asyncio.to_thread(self._pool.close, left_s),
        )
        if not all(ended):
            _LOG.warning("threads that are stuck were left behind")

    @contextmanager
    def _in_use(self, name: str | None) -> Iterator[Model]:
        model = self._shelf.get(name)
        self._check_open(model)
        with self._shelf.in_use(model):
            yield model

    @contextmanager
    def _pairs_admitted(self, faces: int) -> Iterator[None]:
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
        if self._clips >= self._settings.most_clips:
            raise QueueFull(
                f"{self._clips} clips are at work or waiting already", self.retry_after_s("clip")
            )
        with self._counted(clips=1):
            yield

    def _troubles(self) -> Iterator[Trouble]:
        if self._closing:
            yield "closing"
        if not self._warming.done():
            yield "loading"
        elif not self._is_warm:
            yield "warm_up_failed"
        if self._pool.overdue:
            yield "worker_wedged"
        if any(self._is_stuck(one) for one in self._shelf.models):
            yield "network_wedged"
        if any(one.failed for one in self._shelf.models):
            yield "inference_failed"

    def _check_open(self, model: Model) -> None:
        """Refuse what could not be answered. One stuck worker of several is no reason."""
        if self._closing:
            raise Closed("the service is shutting down")
        if not self._is_warm or self._is_stuck(model):
            raise NotReady("the model is not ready")
        if self._pool.overdue == self._settings.workers:
            raise NotReady("no worker is free of work that hangs")

    @property
    def _is_warm(self) -> bool:
        warming = self._warming
        return warming.done() and not warming.cancelled() and warming.exception() is None

    def _is_stuck(self, model: Model) -> bool:
        return model.busy_s * 1e3 >= self._settings.deadline_ms

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

    async def _within(self, course: Course, work: Coroutine[Any, Any, T]) -> T:
        """Await the work until the deadline; tell of it when nobody waits for it any more."""
        self._courses.add(course)
        try:
            async with asyncio.timeout(course.deadline_s):
                return await work
        except TimeoutError:
            self._observer.dropped(course.place, "deadline")
            ms = course.deadline_s * 1e3
            raise DeadlineExceeded(f"no answer within {ms:.0f} ms") from None
        except asyncio.CancelledError:
            self._observer.dropped(course.place, "cancelled")
            raise
        finally:
            self._courses.discard(course)

    async def _pair_answer(self, model: Model, sent: Upload | Frames, options: Options) -> Answer:
        course = Course(self._settings.deadline_ms / 1e3)
        limits = self._settings.limits

        def work(check: Check) -> Prepared:
            meanwhile = partial(self._meanwhile, course, check)
            return prepare_pair(model.preprocessor, sent, options, limits, check, meanwhile)

        def crop(check: Check) -> CroppedPair:
            meanwhile = partial(self._meanwhile, course, check)
            return crop_pair(model.preprocessor, sent, options, limits, check, meanwhile)

        if model.fused is None:
            return await self._within(course, self._answer(model, work, course))
        answering = self._fused_answer(model, model.fused, crop, course, options)
        return await self._within(course, answering)

    @contextmanager
    def _meanwhile(self, course: Course, check: Check, decode: Decode) -> Iterator[Decode]:
        """Have an idle worker decode one frame of a pair while the pair's own decodes the other.

        Where none is idle, or has begun in time, or the helper ends, that one does both: it never
        waits for a queue.
        """
        if self._pool.busy >= self._settings.workers:
            yield decode
            return
        try:
            helping = self._pool.submit(decode, _limit_s(course))
        except Closed:
            yield decode
            return

        def decoded() -> NDArray[np.uint8]:
            if not helping.cancel():
                while not helping.done():
                    check()
                    wait([helping], HELP_CHECK_S)
                fault = helping.exception()
                if fault is None:
                    return helping.result()
                if isinstance(fault, InputError):
                    # Another one: what comes out of a future leads back to it, and what was sent
                    # would live until that cycle is collected.
                    raise type(fault)(*fault.args)
            return decode()

        try:
            yield decoded
        finally:
            helping.cancel()

    async def _clip_answer(
        self, model: Model, sent: ClipUpload | Burst, options: Options, course: Course
    ) -> Answer:
        limits = self._settings.clip_limits, self._settings.limits

        def work(check: Check) -> Prepared:
            return prepare_clip(model.preprocessor, sent, options, *limits, check)

        async with self._clip_turns:
            return await self._answer(model, work, course, self._clip_places)

    async def _answer(
        self,
        model: Model,
        work: Callable[[Check], Prepared],
        course: Course,
        places: asyncio.Semaphore | None = None,
        *,
        ahead: bool = False,
    ) -> Answer:
        asked: list[Row] = []

        def hand_over(check: Check) -> Prepared:
            prepared = work(check)
            check()
            course.asks()
            asked.extend(model.batcher.submit(prepared.inputs))
            return prepared

        prepared = await self._in_worker(model, hand_over, course, asked, places, ahead=ahead)
        # A clip's count from here on, and are never refused: its decoding is paid for. Those of
        # pairs were counted, as asked for, when they were admitted.
        with self._counted(items=0 if prepared.clip is None else len(asked)):
            rows = await _answered(asked)
        course.inferred = course.answered = time.perf_counter()
        timings = prepared.timings_ms | {"infer": course.infer_s * 1e3}
        told = replace(prepared, timings_ms=timings)
        return _answer_of(model.loaded, model.session.provider, told, rows, course)

    async def _fused_answer(
        self,
        model: Model,
        fused: Batcher[FusedRow],
        crop: Callable[[Check], CroppedPair],
        course: Course,
        options: Options,
    ) -> Answer:
        """Crop in one worker, compute flow and network in one run, measure in a worker again.

        No worker waits for the run: else no more pairs could share it than there are workers.
        Where the run fails for its device, the pair goes on as one of a model that has none.
        """
        asked: list[Future[FusedRow]] = []

        def hand_over(check: Check) -> CroppedPair:
            cropped = crop(check)
            check()
            course.asks()
            asked.extend(
                fused.submit(
                    (one.onset, one.onset_grey, one.apex_grey, one.outline) for one in cropped.crops
                )
            )
            return cropped

        cropped = await self._in_worker(model, hand_over, course, asked)
        try:
            rows = await _answered(asked)
        except Exception as error:
            fault = model.loaded.fault_of_fused(error)
            if fault is None:
                raise
            if not model.loaded.makes_good(error):
                self._observer.flow_failed(model.loaded.spec.name, fault, fell_back=False)
                raise
        else:
            fault = None
        if fault is not None:
            course.place = "waiting"
            work = self._unfused(model, cropped, options, fault)
            return await self._answer(model, work, course, ahead=True)
        course.measures()

        def measure(_check: Check) -> Prepared:
            return measure_pair(cropped, rows, options)

        # Ahead of pairs that wait for their first worker: what is begun is finished first.
        measured = await self._in_worker(model, measure, course, ahead=True)
        course.answered = time.perf_counter()
        timings = cropped.timings_ms | {"infer": course.infer_s * 1e3} | measured.timings_ms
        told = replace(measured, timings_ms=timings)
        shares = [row.probabilities for row in rows]
        return _answer_of(model.loaded, model.loaded.provider, told, shares, course)

    def _unfused(
        self, model: Model, cropped: CroppedPair, options: Options, fault: FlowFault
    ) -> Callable[[Check], Prepared]:
        """Return what computes the flow of a pair whose fused run has failed."""

        def work(check: Check) -> Prepared:
            prepared = solve_pair(model.preprocessor, cropped, options, check)
            for item in (item for face in prepared.faces for item in face.items):
                # Where the CPU took it, the solver has told already.
                if item.pair.flow_backend == model.loaded.flow_backend:
                    self._observer.flow_failed(model.loaded.spec.name, fault, fell_back=True)
            return prepared

        return work

    async def _in_worker(  # noqa: PLR0913 - what is done, for whom, and where it waits
        self,
        model: Model,
        work: Callable[[Check], T],
        course: Course,
        asked: Sequence[Future[Any]] = (),
        places: asyncio.Semaphore | None = None,
        *,
        ahead: bool = False,
    ) -> T:
        """Run the stages before the network, or after it, in one worker, when there is a place.

        In one, so that no more decoded frames are held than there are workers. The worker hands
        its items to the network itself, and notes in `asked` what it will answer: it would wait
        for this loop's turn else.
        """
        loop = asyncio.get_running_loop()
        abandoned = threading.Event()

        def check() -> None:
            if abandoned.is_set():
                raise _Abandoned

        def begin() -> T:
            waited_s = course.taken()
            if not ahead:
                self._observer.waited("worker", waited_s)
            try:
                return work(check)
            except FlowFailed as error:
                self._observer.flow_failed(model.loaded.spec.name, error.fault, fell_back=False)
                raise

        if places is not None:
            await places.acquire()
        working = self._pool.submit(begin, _limit_s(course), ahead=ahead)
        if places is not None:
            # Not when the caller leaves: the worker is busy until it hears of that. Cancelled
            # before it started, the work is done at once.
            working.add_done_callback(in_loop(loop, places.release))
        # The rows of clips are counted from when they are asked for, so the loop must hear of that.
        # That of a pair would wake for nothing just when the network begins, on the same cores.
        done = loop.create_future()
        rows = asked if places is None else ()
        _when_done(chain([working], rows), in_loop(loop, _settle, done))
        try:
            await done
            return working.result()
        except asyncio.CancelledError:
            working.cancel()
            # What the worker has handed over by now, or yet will if it does not hear in time.
            working.add_done_callback(lambda _: _withdraw(asked))
            raise
        finally:
            abandoned.set()
            del working  # a fault leads here: what was sent would live until a cycle is collected

    async def _warm_up(self) -> None:
        """Run every stage once: each network every batch size, each worker its detector."""
        await self._shelf.warm_up()
        await asyncio.gather(*map(asyncio.wrap_future, self._pool.ready()))

    async def _mend(self) -> None:
        """Replace threads that ended in a way that they could not tell of."""
        while True:
            await asyncio.sleep(MEND_S)
            self._pool.mend()
            self._shelf.mend()


def _load(
    settings: Settings, observer: Observer, sessions: Mapping[str, Session] | None
) -> dict[str, Loaded]:
    if sessions is None:
        sessions = open_sessions(settings)
    return {name: Loaded.of(session, settings, observer) for name, session in sessions.items()}


def _answer_of(
    loaded: Loaded,
    provider: str,
    prepared: Prepared,
    rows: Sequence[FloatArray],
    course: Course,
) -> Answer:
    moments = course.moments()
    left = iter(rows)
    spec = loaded.spec
    pairs = [item.pair for face in prepared.faces for item in face.items]
    fallen = (one.flow_backend for one in pairs if one.flow_backend != loaded.flow_backend)
    return Answer(
        spec=spec,
        provider=provider,
        provider_fallback=loaded.fell_back,
        flow_backend=next(fallen, loaded.flow_backend),
        faces=tuple(
            face_answer(spec, face, [next(left) for _ in face.items]) for face in prepared.faces
        ),
        warnings=prepared.warnings,
        timings_ms=prepared.timings_ms | {"total": (moments.answered_ns - moments.asked_ns) / 1e6},
        moments=moments,
        clip=prepared.clip,
    )


def _limit_s(course: Course) -> float:
    """Return how long a worker may be at a piece of this work."""
    return course.deadline_s * 1.1 + UNHEARD_S


async def _answered(asked: list[Future[R]]) -> list[R]:
    """Return the rows asked for. One after the other: they come in that order, some at once.

    None are left in `asked`: a fault of theirs leads to whoever asked, and what was sent would live
    until that cycle is collected.
    """
    found: list[R] = []
    row: Future[R] | None = None
    try:
        for row in asked:
            found.append(  # noqa: PERF401 - a comprehension would keep the last row in its frame
                row.result() if row.done() else await asyncio.wrap_future(row)
            )
        return found
    finally:
        _withdraw(asked)
        asked.clear()
        row = None


def _when_done(futures: Iterator[Future[Any]], call: Callable[[], object]) -> None:
    """Call when all these are done, in whatever thread; each is asked for when those before are."""
    one = next(futures, None)
    if one is None:
        call()
    else:
        one.add_done_callback(lambda _: _when_done(futures, call))


def _settle(done: "asyncio.Future[None]") -> None:
    if not done.done():  # whoever asked may have gone
        done.set_result(None)


def _withdraw(asked: Sequence[Future[Any]]) -> None:
    """Have nothing more run for one who has gone; what is answered stays so."""
    for row in asked:
        row.cancel()


def _check_tensors(image: FloatArray, flow: FloatArray, side: int) -> None:
    expected = (len(image) if image.ndim else 0, 3, side, side)
    for name, array in (("image", image), ("flow", flow)):
        if array.shape != expected or array.dtype != np.float32:
            raise ShapeError(f"{name} is {expected} float32, got {array.shape} {array.dtype}")
    if not len(image):
        raise ShapeError("image and flow hold nothing")


def _log_failure(warming: asyncio.Task[None]) -> None:
    if not warming.cancelled() and (error := warming.exception()) is not None:
        _LOG.error("warming up failed: %s", error, exc_info=error)
