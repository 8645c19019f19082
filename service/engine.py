"""The way of one request through threads, batches and deadlines. Usable without FastAPI.

async with Engine.open(Settings()) as engine:
    await engine.warmed_up()
    answer = await engine.predict(Upload(onset_bytes, apex_bytes))
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from model.decode import Limits, decode_image
from model.errors import InputError, ModelError, ModelNotFound
from model.face import FaceFinder
from model.pipeline import AlignedPair, Preprocessor, network_inputs
from model.regions import RegionMotion, region_motions
from model.session import Session
from model.spec import ModelSpec
from model.verdict import Verdict, judge
from service.batcher import Batcher, Closed, OnBatch, QueueFull
from service.settings import Settings

__all__ = [
    "Answer",
    "Closed",
    "DeadlineExceeded",
    "Engine",
    "FaceAnswer",
    "FaceWarning",
    "NotReady",
    "Options",
    "PairWarning",
    "QueueFull",
    "Upload",
    "open_sessions",
]

FACE_AT_BORDER = 0.1
"""Share of the crop outside the frame above which the answer warns."""
HEAD_MOTION_PX = 3.0
"""Motion of the head, pixels of the crop, above which the answer warns (ours)."""

FaceWarning = Literal["face_at_border", "head_motion"]
PairWarning = Literal["several_faces", "identical_frames"]

_LOG = logging.getLogger("mfdan")


class NotReady(Exception):
    """The model is not warm yet, or could not be warmed."""

    code = "not_ready"


class DeadlineExceeded(Exception):
    """The answer took longer than the deadline."""

    code = "deadline_exceeded"


class _Abandoned(Exception):
    """Nobody waits for this work any more."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One pair as it was sent."""

    onset: bytes
    apex: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What a caller may choose."""

    model: str | None = None
    """Name of the model; None: the default."""
    faces: int = 1
    """Faces to answer for, the largest first."""
    explain: bool = False
    """Whether to tell how each region of the face moved."""


_DEFAULTS = Options()


@dataclass(frozen=True, slots=True, eq=False)
class FaceAnswer:
    """What is answered for one face."""

    pair: AlignedPair
    verdict: Verdict
    warnings: tuple[FaceWarning, ...]
    regions: tuple[RegionMotion, ...] | None
    """Only when an explanation was asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What is answered for one pair."""

    spec: ModelSpec
    provider: str
    faces: tuple[FaceAnswer, ...]
    warnings: tuple[PairWarning, ...]
    timings_ms: dict[str, float]
    """Work of decode, detect, align, flow and tensors; infer with its wait for a batch; total
    also holds the wait for a worker."""


@dataclass(frozen=True, slots=True, eq=False)
class _Model:
    session: Session
    preprocessor: Preprocessor
    batcher: Batcher


@dataclass(frozen=True, slots=True, eq=False)
class _Face:
    pair: AlignedPair
    image: NDArray[np.float32]
    flow: NDArray[np.float32]
    regions: tuple[RegionMotion, ...] | None


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    faces: list[_Face]
    warnings: tuple[PairWarning, ...]
    timings_ms: dict[str, float]


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
    """Answers pairs: bounded, cancellable, each within its deadline.

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
                    capacity=settings.queue_items,
                    on_batch=on_batch,
                ),
            )
            for name, session in sessions.items()
        }
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="mfdan-worker")
        self._items = 0
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
        """Faces (as asked for) at work or waiting."""
        return self._items

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
        with self._admitted(options.faces):
            return await self._within_deadline(model, upload, options)

    async def predict_many(
        self, uploads: Sequence[Upload], options: Options = _DEFAULTS
    ) -> list[Answer | BaseException]:
        """Answer many pairs, in their order; a pair that fails leaves its exception.

        Raises, for the whole: ModelNotFound, NotReady, Closed, QueueFull.
        """
        model = self._model(options.model)
        with self._admitted(options.faces * len(uploads)):
            return await asyncio.gather(
                *(self._within_deadline(model, upload, options) for upload in uploads),
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
    def _admitted(self, items: int) -> Iterator[None]:
        if self._closing:
            raise Closed("the service is shutting down")
        if not self.ready:
            raise NotReady("the model is not ready")
        if self._items + items > self._settings.queue_items:
            raise QueueFull(f"{self._items} faces are at work or waiting already")
        self._items += items
        self._idle.clear()
        try:
            yield
        finally:
            self._items -= items
            if self._items == 0:
                self._idle.set()

    async def _within_deadline(self, model: _Model, upload: Upload, options: Options) -> Answer:
        try:
            async with asyncio.timeout(self._settings.deadline_ms / 1e3):
                return await self._answer(model, upload, options)
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {self._settings.deadline_ms} ms") from None

    async def _answer(self, model: _Model, upload: Upload, options: Options) -> Answer:
        start = time.perf_counter()
        prepared = await self._prepare(model, upload, options)
        before_infer = time.perf_counter()
        rows = await asyncio.gather(
            *(model.batcher.submit(face.image, face.flow) for face in prepared.faces)
        )
        end = time.perf_counter()
        spec = model.session.spec
        return Answer(
            spec=spec,
            provider=model.session.provider,
            faces=tuple(
                FaceAnswer(
                    pair=face.pair,
                    verdict=judge(spec, row, face.pair.motion),
                    warnings=_face_warnings(face.pair),
                    regions=face.regions,
                )
                for face, row in zip(prepared.faces, rows, strict=True)
            ),
            warnings=prepared.warnings,
            timings_ms=prepared.timings_ms
            | {"infer": (end - before_infer) * 1e3, "total": (end - start) * 1e3},
        )

    async def _prepare(self, model: _Model, upload: Upload, options: Options) -> _Prepared:
        """Run the stages before the network in one worker.

        In one, so that no more decoded frames are held than there are workers.
        """
        abandoned = threading.Event()

        def work() -> _Prepared:
            return _prepare_pair(
                model.preprocessor, upload, options, self._settings.limits, abandoned.is_set
            )

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
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


def _log_failure(warming: asyncio.Task[None]) -> None:
    if not warming.cancelled() and (error := warming.exception()) is not None:
        _LOG.error("warming up failed: %s", error, exc_info=error)


def _prepare_pair(
    preprocessor: Preprocessor,
    upload: Upload,
    options: Options,
    limits: Limits,
    abandoned: Callable[[], bool],
) -> _Prepared:
    start = time.perf_counter()
    onset = _decode("onset", upload.onset, limits)
    apex = _decode("apex", upload.apex, limits)
    decoded = time.perf_counter()
    if abandoned():
        raise _Abandoned
    pairs = preprocessor.align_pair(onset, apex, options.faces)
    aligned = time.perf_counter()
    if abandoned():
        raise _Abandoned
    faces = [_prepare_face(pair, preprocessor.spec, explain=options.explain) for pair in pairs]
    warnings: list[PairWarning] = []
    if any(pair.quality.more_faces for pair in pairs):
        warnings.append("several_faces")
    if np.array_equal(onset, apex):
        warnings.append("identical_frames")
    timings = {"decode": (decoded - start) * 1e3, "detect": (aligned - decoded) * 1e3}
    for stage in ("detect", "align", "flow") if pairs else ():
        timings[stage] = sum(pair.timings_ms.get(stage, 0.0) for pair in pairs)
    timings["tensors"] = (time.perf_counter() - aligned) * 1e3
    return _Prepared(faces, tuple(warnings), timings)


def _prepare_face(pair: AlignedPair, spec: ModelSpec, *, explain: bool) -> _Face:
    image, flow = network_inputs(pair.onset, pair.flow, spec)
    regions = region_motions(pair.flow, pair.landmarks) if explain else None
    return _Face(pair, image, flow, regions)


def _decode(field: str, data: bytes, limits: Limits) -> NDArray[np.uint8]:
    try:
        return decode_image(data, limits)
    except InputError as error:
        raise type(error)(f"{field}: {error}") from None


def _face_warnings(pair: AlignedPair) -> tuple[FaceWarning, ...]:
    found: dict[FaceWarning, bool] = {
        "face_at_border": pair.quality.outside > FACE_AT_BORDER,
        "head_motion": pair.motion.head_px > HEAD_MOTION_PX,
    }
    return tuple(name for name, applies in found.items() if applies)
