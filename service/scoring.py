"""`mfdan score`: every source through the engine, one row for each file, face and candidate."""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version

import numpy as np

from model.errors import FlowFailed, InputError
from model.movement import Motion
from model.pipeline import Quality
from model.session import Session
from model.spec import ModelSpec
from model.spotting import Interval
from service.answers import (
    Answer,
    CandidateAnswer,
    ClipFacts,
    ClipUpload,
    FaceAnswer,
    Options,
    Upload,
)
from service.engine import DeadlineExceeded, Engine
from service.journal import Journal
from service.settings import Settings
from service.sources import Source, Stamp, read_upload
from service.tables import Columns, Row

__all__ = [
    "Answered",
    "Outcome",
    "answer_source",
    "columns",
    "fingerprint",
    "lost",
    "rows_of",
    "score",
]

_DIGITS = 6
"""Of a float; more would only pretend to a precision that no flow and no network has."""
_PER_FILE: Columns = {
    "file": str,
    "apex_file": str,
    "error_code": str,
    "error": str,
    "faces": int,
}
_ANSWER: Columns = {
    "abstained": bool,
    "reason": str,
    "reasons": str,
    "warnings": str,
}
_INTERVAL: Columns = {
    "onset_frame": int,
    "apex_frame": int,
    "offset_frame": int,
    "onset_s": float,
    "apex_s": float,
    "offset_s": float,
    "source": str,
    "strength_px": float,
}
_FACE: Columns = {
    "face_score": float,
    "box_x": float,
    "box_y": float,
    "box_width": float,
    "box_height": float,
    "seen": float,
}
_CLIP: Columns = {
    "clip_frames": int,
    "clip_duration_s": float,
    "clip_fps": float,
    "clip_width": int,
    "clip_height": int,
    "clip_variable_frame_rate": bool,
    "clip_container": str,
    "clip_codec": str,
    "clip_scene_cuts": int,
}
_MODEL: Columns = {
    "model": str,
    "model_version": str,
    "model_sha256": str,
    "mfdan_version": str,
    "provider": str,
    "flow_backend": str,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one source."""

    source: Source
    error_code: str | None = None
    error: str | None = None
    final: bool = True
    """Whether the next run would meet the same."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What the journal keeps of one source."""

    stamp: Stamp
    outcome: Outcome
    rows: list[Row]

    @property
    def source(self) -> Source:
        """Of which it is."""
        return self.outcome.source


def columns(spec: ModelSpec) -> Columns:
    """Return the columns of the results of a model, in order."""
    return {
        **_PER_FILE,
        "face_id": int,
        "candidate": int,
        "label": str,
        **{f"p_{name}": float for name in spec.classes},
        **_ANSWER,
        **_INTERVAL,
        **{f"motion_{name}": float for name in _floats(Motion)},
        **{f"quality_{name}": float for name in _floats(Quality)},
        **_FACE,
        **_CLIP,
        **_MODEL,
    }


def fingerprint(spec: ModelSpec, settings: Settings, options: Options) -> dict[str, object]:
    """Return all that fixes the results of a file, beside the file."""
    return {
        **_model_of(spec),
        "faces": options.faces,
        "candidates": options.candidates,
        "limits": {"picture": asdict(settings.limits), "clip": asdict(settings.clip_limits)},
        "columns": list(columns(spec)),
    }


async def score(  # noqa: PLR0913, PLR0917 - one argument for each thing that takes part
    sources: Sequence[Source],
    journal: Journal,
    settings: Settings,
    sessions: dict[str, Session],
    options: Options,
    report: Callable[[Outcome], None],
) -> None:
    """Answer every source and note its rows in the journal; as many at once as there are workers.

    A file's fault is a row like any other. Raises: OSError (of the journal), and what warming up
    the engine raises.
    """
    # The results are of one model: its files are not watched.
    settings = settings.model_copy(update={"reload_s": 0})
    async with Engine.open(settings, sessions=sessions) as engine:
        await engine.warmed_up()
        pending = iter(sources)

        async def work() -> None:
            for source in pending:
                one = await answer_source(source, engine, settings, options)
                journal.append(source, one.stamp, one.rows, final=one.outcome.final)
                report(one.outcome)

        tasks = [asyncio.create_task(work()) for _ in range(settings.workers)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


def rows_of(source: Source, answer: Answer) -> list[Row]:
    """Return one row for each face and candidate of an answer; one when there is no face."""
    shared: dict[str, object] = {
        **_names(source),
        "faces": len(answer.faces),
        **_clip_cells(answer.clip),
        **_model_of(answer.spec),
        "provider": answer.provider,
        "flow_backend": answer.flow_backend,
    }
    rows = [
        {**shared, **cells, "warnings": " ".join((*answer.warnings, *warnings))}
        for face in answer.faces
        for cells, warnings in _candidates(face)
    ]
    return [_rounded(row) for row in rows or [{**shared, "warnings": " ".join(answer.warnings)}]]


async def answer_source(
    source: Source, engine: Engine, settings: Settings, options: Options
) -> Answered:
    """Read one source and answer it; whatever goes wrong is a row."""
    try:
        stamp, upload = await asyncio.to_thread(_read, source, settings)
        if isinstance(upload, ClipUpload):
            answer = await engine.predict_clip(upload, options)
        else:
            answer = await engine.predict(upload, options)
    except Exception as error:  # noqa: BLE001 - whatever one file does, the others are scored
        final = isinstance(error, InputError)  # it lies in the file's bytes
        outcome = Outcome(source, *_fault(error), final)
        return _failed(outcome, engine.session(options.model).spec)
    return Answered(stamp, Outcome(source), rows_of(source, answer))


def lost(source: Source, spec: ModelSpec) -> Answered:
    """Return what to note of a source that no worker lived to answer."""
    message = "the process that worked on it died (killed, or out of memory?)"
    return _failed(Outcome(source, "worker_died", message, final=False), spec)


def _failed(outcome: Outcome, spec: ModelSpec) -> Answered:
    source = outcome.source
    row = {**_names(source), "error_code": outcome.error_code, "error": outcome.error}
    return Answered(_stamp(source), outcome, [row | _model_of(spec)])


class _BadSource(Exception):
    """It was known before that this source cannot be scored."""


def _read(source: Source, settings: Settings) -> tuple[Stamp, Upload | ClipUpload]:
    if source.fault:
        raise _BadSource(source.fault)
    stamp = source.stamp()  # first: a file that changes while it is read is read again next time
    return stamp, read_upload(source.paths, settings)


def _stamp(source: Source) -> Stamp:
    try:
        return source.stamp()
    except OSError:
        return ()


def _fault(error: Exception) -> tuple[str, str]:
    if isinstance(error, InputError | DeadlineExceeded | FlowFailed):
        return error.code, str(error)
    if isinstance(error, _BadSource):
        return "bad_source", str(error)
    if isinstance(error, OSError):
        return "unreadable", (error.strerror or "it cannot be read").lower()
    return "internal_error", f"mfdan failed on this file ({type(error).__name__})"


def _candidates(face: FaceAnswer) -> Iterator[tuple[dict[str, object], tuple[str, ...]]]:
    """Yield the cells of each candidate of a face, and its warnings; a pair has one."""
    box = face.pair.face.box
    shared: dict[str, object] = {
        "face_id": face.face_id,
        "seen": face.seen,
        "face_score": face.pair.face.score,
        "box_x": box.x,
        "box_y": box.y,
        "box_width": box.width,
        "box_height": box.height,
    }
    answers: tuple[CandidateAnswer | FaceAnswer, ...] = face.candidates or (face,)
    for rank, one in enumerate(answers, start=1):
        verdict, pair = one.verdict, one.pair
        cells = {
            "candidate": rank,
            "label": verdict.label,
            **{f"p_{name}": share for name, share in verdict.probabilities.items()},
            "abstained": verdict.abstained,
            "reason": verdict.reason,
            "reasons": " ".join(verdict.reasons),
            **_interval_cells(one.interval),
            **{f"motion_{name}": getattr(pair.motion, name) for name in _floats(Motion)},
            **{f"quality_{name}": getattr(pair.quality, name) for name in _floats(Quality)},
        }
        yield shared | cells, one.warnings


def _interval_cells(interval: Interval | None) -> dict[str, object]:
    if interval is None:
        return {}
    return {
        "onset_frame": interval.onset,
        "apex_frame": interval.apex,
        "offset_frame": interval.offset,
        "onset_s": interval.onset_s,
        "apex_s": interval.apex_s,
        "offset_s": interval.offset_s,
        "source": interval.source,
        "strength_px": interval.strength_px,
    }


def _clip_cells(clip: ClipFacts | None) -> dict[str, object]:
    if clip is None:
        return {}
    facts = {f"clip_{name}": value for name, value in asdict(clip.info).items()}
    return facts | {"clip_scene_cuts": len(clip.scene_cuts)}


def _model_of(spec: ModelSpec) -> dict[str, object]:
    return {
        "model": spec.name,
        "model_version": spec.version,
        "model_sha256": spec.onnx_sha256,
        "mfdan_version": version("mfdan"),
    }


def _names(source: Source) -> dict[str, object]:
    return {"file": source.names[0], "apex_file": source.names[1] if source.is_pair else None}


def _floats(kind: type[Motion | Quality]) -> list[str]:
    return [field.name for field in fields(kind) if field.type in {float, "float"}]


def _rounded(row: Row) -> Row:
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: object) -> object:
    """Return what JSON can hold: no numpy scalar, and nothing for what is not finite."""
    plain = value.item() if isinstance(value, np.generic) else value
    if not isinstance(plain, float):
        return plain
    return round(plain, _DIGITS) if math.isfinite(plain) else None
