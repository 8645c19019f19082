"""The routes: read the form, await one call, shape the reply."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, Path, Request, Response, UploadFile
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BeforeValidator, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from starlette.datastructures import UploadFile as Part

from service.answers import Answer, Burst, ClipUpload, Options, Upload
from service.dependencies import EngineDep, ReadyDep, RequestIdDep, TelemetryDep, unless_gone
from service.errors import INTERNAL_ERROR, FieldsInvalid, problem_of
from service.examples import (
    BATCH_PREDICTION,
    CLIP_PREDICTION,
    LIVE,
    METRICS,
    MODEL_CARD,
    PAIR_PREDICTION,
    READY,
)
from service.responses import answered, problems
from service.schemas import (
    BatchPrediction,
    FieldFault,
    Health,
    ModelCard,
    Prediction,
    Problem,
)
from service.settings import MAX_BURST, MAX_CANDIDATES, MAX_FACES, MAX_PAIRS
from service.telemetry import Telemetry

__all__ = ["metrics_router", "router"]

router = APIRouter()
metrics_router = APIRouter()
"""Apart, because metrics may have a port of their own."""

_WAYS = (("onset", "apex"), ("clip",), ("frames", "fps"))
"""Of sending something to `/predict`: each field of one, and none of the others."""
_WAYS_IN_WORDS = "send either onset and apex, or clip, or frames and fps"
_OF_CLIPS = {"onset_frame", "apex_frame", "candidates"}
_OF_BATCHES = {"onset", "apex", "model", "faces", "explain"}
_FIELDS = _OF_BATCHES | _OF_CLIPS | {"clip", "frames", "fps"}
_FILES = {"onset", "apex", "clip", "frames"}
_ANSWERED_ALWAYS = ("unauthorized", "body_too_large", "rate_limited", "quota_exceeded")
"""By what stands before every route but those of health."""
_OF_PREDICTIONS = (
    "malformed_request",
    "model_not_found",
    "upload_timeout",
    "invalid_fields",
    "queue_full",
    "too_many_requests",
    "not_ready",
    "draining",
)
_OF_PICTURES = (
    "empty_image",
    "broken_image",
    "broken_clip",
    "image_too_large",
    "clip_too_large",
    "not_an_image",
    "not_a_clip",
    "image_too_small",
    "frame_size_mismatch",
    "too_few_frames",
    "frame_out_of_range",
    "internal_error",
    "worker_died",
    "deadline_exceeded",
)
"""Of a batch these stand in place of one answer."""
_MAX_FPS = 10_000
_MAX_FRAME = 10**9
_FILE: JsonSchemaValue = {"type": "string", "contentMediaType": "application/octet-stream"}
# Described as what they are when they are sent: no form can hold null in place of a file, and the
# documentation page would offer a line of text.
_AsFile = WithJsonSchema(_FILE)
_AsFiles = WithJsonSchema({"type": "array", "items": _FILE, "minItems": 2, "maxItems": MAX_BURST})
_LessBlanks = BeforeValidator(lambda parts: [part for part in parts if part != ""])
"""FastAPI drops empty texts itself, but not in lists."""
_MODEL_NAME = 64
"""Characters of the name of a model."""
_NAME_SHOWN = 64
"""Characters of an unknown field's name that its fault repeats."""


async def _options(
    model: Annotated[
        str | None,
        Form(max_length=_MODEL_NAME, description="Name of the model; none: the default one."),
    ] = None,
    faces: Annotated[
        int, Form(ge=1, le=MAX_FACES, description="Faces to answer for, the largest first.")
    ] = 1,
    explain: Annotated[  # noqa: FBT002 - a field of the form
        bool, Form(description="Whether to tell how each part of the face moved.")
    ] = False,
) -> Options:
    return Options(model=model, faces=faces, explain=explain)


OptionsDep = Annotated[Options, Depends(_options)]


async def _one_thing(request: Request) -> None:
    parts = await _parts(request)
    faults = [*_faults(parts, _FIELDS, repeatable={"frames"})]
    if not faults:
        faults = [*_way_faults({name for name, part in parts if not _is_blank(part)})]
    _refuse(faults)


async def _repeated_pictures(request: Request) -> None:
    _refuse([*_faults(await _parts(request), _OF_BATCHES, repeatable={"onset", "apex"})])


async def _parts(request: Request) -> list[tuple[str, Part | str]]:
    return (await request.form()).multi_items()  # parsed already; the request keeps it


def _is_blank(part: Part | str) -> bool:
    """Whether a form sent this for a field that nobody filled: FastAPI takes it for not given."""
    return part == "" if isinstance(part, str) else not part.filename and not part.size


def _refuse(faults: list[FieldFault]) -> None:
    if faults:
        raise FieldsInvalid(*sorted(faults, key=lambda fault: fault.field))


def _faults(
    parts: list[tuple[str, Part | str]], fields: set[str], repeatable: set[str]
) -> Iterator[FieldFault]:
    """Yield what FastAPI would silently drop."""
    names = [name for name, _ in parts]
    for name in {*names} - fields:
        yield FieldFault(field=_shown(name), message="is not a field of this form")
    for name in fields - repeatable:
        if names.count(name) > 1:
            yield FieldFault(field=name, message="is given more than once")
    for name in {name for name, part in parts if isinstance(part, str) and part} & fields & _FILES:
        yield FieldFault(field=name, message="must be a file: give the part a file name")
    for name in repeatable:
        if len({_is_blank(part) for other, part in parts if other == name}) > 1:
            yield FieldFault(field=name, message="one of its parts is empty and has no file name")


def _way_faults(names: set[str]) -> Iterator[FieldFault]:
    """Yield what keeps the fields from being exactly one of the three ways."""
    begun = [way for way in _WAYS if names & {*way}]
    if len(begun) != 1:
        for field in names & {*chain(*_WAYS)} or _FILES:
            yield FieldFault(field=field, message=_WAYS_IN_WORDS)
        return
    (way,) = begun
    for field in {*way} - names:
        yield FieldFault(field=field, message="Field required")
    if "onset" in way:
        for field in names & _OF_CLIPS:
            yield FieldFault(field=field, message="belongs to a clip or frames, not to a pair")


def _shown(name: str) -> str:
    """Return the beginning of a name as text that JSON can hold: a caller made it up."""
    return name[:_NAME_SHOWN].encode(errors="backslashreplace").decode()


async def _clip_options(
    options: OptionsDep,
    onset_frame: Annotated[
        int | None,
        Form(ge=0, le=_MAX_FRAME, description="Of a clip: the onset, counted from 0."),
    ] = None,
    apex_frame: Annotated[
        int | None,
        Form(ge=0, le=_MAX_FRAME, description="Of a clip: the apex, counted from 0."),
    ] = None,
    candidates: Annotated[
        int,
        Form(
            ge=1,
            le=MAX_CANDIDATES,
            description="Of a clip: movements of each face to answer for, the strongest first.",
        ),
    ] = 5,
) -> Options:
    return replace(options, onset_frame=onset_frame, apex_frame=apex_frame, candidates=candidates)


async def _sent(
    onset: Annotated[
        UploadFile | None, _AsFile, File(description="The frame in which the movement begins.")
    ] = None,
    apex: Annotated[
        UploadFile | None, _AsFile, File(description="The frame of its peak, of the same size.")
    ] = None,
    clip: Annotated[
        UploadFile | None,
        _AsFile,
        File(description="MP4, MOV, MKV, WebM, AVI, GIF or animated WebP."),
    ] = None,
    frames: Annotated[
        list[UploadFile] | None,
        _LessBlanks,
        _AsFiles,
        File(max_length=MAX_BURST, description="The frames of a clip, as pictures, in order."),
    ] = None,
    fps: Annotated[
        float | None,
        Form(gt=0, le=_MAX_FPS, allow_inf_nan=False, description="Frames a second of `frames`."),
    ] = None,
) -> Upload | ClipUpload | Burst:
    """Read what was sent; `_one_thing` has seen that it is one of the three."""
    if clip is not None:
        return ClipUpload(await _taken(clip))
    if frames and fps is not None:
        return Burst(tuple([await _taken(frame) for frame in frames]), fps)
    if onset is not None and apex is not None:
        return Upload(await _taken(onset), await _taken(apex))
    raise FieldsInvalid(FieldFault(field="body", message=_WAYS_IN_WORDS))


@router.post(
    "/predict",
    tags=["predictions"],
    summary="Answer one pair of frames or one clip",
    dependencies=[Depends(_one_thing)],
    openapi_extra={"requestBody": {"required": True}},  # no field is, but one of three ways is
    responses=answered(pair=PAIR_PREDICTION, clip=CLIP_PREDICTION)
    | problems(*_ANSWERED_ALWAYS, *_OF_PICTURES, *_OF_PREDICTIONS),
)
async def predict(  # noqa: PLR0913, PLR0917 - FastAPI injects them by name
    request: Request,
    response: Response,
    engine: EngineDep,
    telemetry: TelemetryDep,
    request_id: RequestIdDep,
    options: Annotated[Options, Depends(_clip_options)],
    sent: Annotated[Upload | ClipUpload | Burst, Depends(_sent)],
) -> Prediction:
    """Recognise the expression that a face shows in a pair of frames or in a clip.

    Send **one** of three: `onset` and `apex`, two frames of one recording of one person and of
    one size (JPEG, PNG, WebP or BMP); or `clip`, a video or animated picture; or `frames`,
    repeated, with `fps`. In a clip the movements are found: each is a candidate with onset, apex
    and offset frame and its own answer, and the strongest is the face's answer.

    No face is a normal answer with `faces: []`; when nothing moved, the face's answer abstains
    with the reason `no_movement`.
    """
    work = (
        engine.predict(sent, options)
        if isinstance(sent, Upload)
        else engine.predict_clip(sent, options)
    )
    answer = await unless_gone(request, work)
    prediction = Prediction.of(answer, request_id)
    telemetry.answered(prediction, answer.moments)
    response.headers["Server-Timing"] = ", ".join(
        f"{stage};dur={ms}" for stage, ms in prediction.timings_ms.items()
    )
    return prediction


@router.post(
    "/predict/batch",
    tags=["predictions"],
    summary="Answer many pairs of frames",
    dependencies=[Depends(_repeated_pictures)],
    responses=answered(batch=BATCH_PREDICTION) | problems(*_ANSWERED_ALWAYS, *_OF_PREDICTIONS),
)
async def predict_batch(  # noqa: PLR0913, PLR0917 - FastAPI injects them by name
    request: Request,
    engine: EngineDep,
    telemetry: TelemetryDep,
    request_id: RequestIdDep,
    options: OptionsDep,
    onset: Annotated[
        list[UploadFile],
        File(min_length=1, max_length=MAX_PAIRS, description="The onset frame of each pair."),
    ],
    apex: Annotated[
        list[UploadFile],
        File(
            min_length=1,
            max_length=MAX_PAIRS,
            description="The apex frame of each pair, in the order of the onsets.",
        ),
    ],
) -> BatchPrediction:
    """Recognise the expressions of up to 16 pairs: the n-th onset belongs to the n-th apex.

    The answers stand in request order. A pair that cannot be answered has a problem in its
    place, with the status that it would have had alone; the rest are answered.
    """
    if len(onset) != len(apex):
        message = f"there are {len(onset)} onset and {len(apex)} apex frames"
        raise FieldsInvalid(FieldFault(field="apex", message=message))
    uploads = [
        Upload(await _taken(first), await _taken(second))
        for first, second in zip(onset, apex, strict=True)
    ]
    answers = await unless_gone(request, engine.predict_many(uploads, options))
    return BatchPrediction(
        request_id=request_id,
        results=tuple(_result(answer, request_id, telemetry) for answer in answers),
    )


async def _taken(part: UploadFile) -> bytes:
    """Read a part of the form and free its buffer, which would else live as long as the request."""
    data = await part.read()
    await part.close()
    return data


def _result(
    answer: Answer | BaseException, request_id: str, telemetry: Telemetry
) -> Prediction | Problem:
    if isinstance(answer, BaseException):
        problem = problem_of(answer, request_id)
        telemetry.rejected(problem.code)
        if problem.code == INTERNAL_ERROR:
            telemetry.unforeseen(answer, request_id)
        return problem
    prediction = Prediction.of(answer, request_id)
    telemetry.answered(prediction, answer.moments)
    return prediction


@router.get(
    "/models",
    tags=["models"],
    summary="List the loaded models",
    responses=answered(models=[MODEL_CARD]) | problems(*_ANSWERED_ALWAYS),
)
async def models(engine: EngineDep) -> list[ModelCard]:
    """Every model that a request may name; the default comes first."""
    return [
        ModelCard.of(session, default=place == 0)
        for place, session in enumerate(engine.sessions.values())
    ]


@router.get(
    "/models/{name}",
    tags=["models"],
    summary="Describe one model",
    responses=answered(model=MODEL_CARD)
    | problems(*_ANSWERED_ALWAYS, "model_not_found", "invalid_fields"),
)
async def model(engine: EngineDep, name: Annotated[str, Path(max_length=_MODEL_NAME)]) -> ModelCard:
    """Its spec, classes, hash, data, licence and measured scores."""
    session = engine.session(name)
    return ModelCard.of(session, default=session is engine.session())


@router.head("/health/live", include_in_schema=False)
@router.get(
    "/health/live",
    tags=["operation"],
    summary="Does the process answer?",
    responses=answered(live=LIVE) | problems("body_too_large"),
)
async def live() -> Health:
    """Yes, if you can read this. Restart the process when it stops answering."""
    return Health(status="live")


@router.head("/health/ready", dependencies=[ReadyDep], include_in_schema=False)
@router.get(
    "/health/ready",
    tags=["operation"],
    summary="Would a prediction sent now be worked on?",
    dependencies=[ReadyDep],
    responses=answered(ready=READY) | problems("body_too_large", "not_ready", "draining"),
)
async def ready() -> Health:
    """Yes once the model is warm, no when it is stuck or shutting down. Route no traffic then."""
    return Health(status="ready")


@metrics_router.get(
    "/metrics",
    tags=["operation"],
    summary="Metrics for Prometheus",
    response_class=Response,
    responses=problems(*_ANSWERED_ALWAYS)
    | {200: {"content": {"text/plain": {"schema": {"type": "string"}, "example": METRICS}}}},
)
async def metrics(telemetry: TelemetryDep) -> Response:
    """Show counts and durations; nothing of any picture."""
    return Response(await asyncio.to_thread(telemetry.exposition), media_type=CONTENT_TYPE_LATEST)
