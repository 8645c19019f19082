"""The routes: read the form, await one call, shape the reply."""

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, File, Form, Request, Response, UploadFile
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import UploadFile as Part

from service.engine import Answer, Closed, Engine, NotReady, Options, Upload
from service.errors import (
    INTERNAL_ERROR,
    PROBLEM_JSON,
    ClientGone,
    FieldsInvalid,
    problem_of,
    request_id_of,
)
from service.schemas import (
    BatchPrediction,
    FieldFault,
    Health,
    ModelCard,
    Prediction,
    Problem,
)
from service.settings import MAX_FACES, MAX_PAIRS
from service.telemetry import Telemetry

__all__ = ["router"]

T = TypeVar("T")
router = APIRouter()

_CLIPS = {"clip", "frames", "fps", "onset_frame", "apex_frame"}
_FIELDS = {"onset", "apex", "model", "faces", "explain"}
_NAME_SHOWN = 64
"""Characters of an unknown field's name that its fault repeats."""
_PREDICTION_EXAMPLE = {
    "request_id": "9b2f0a3c5d7e4f60a1b2c3d4e5f60718",
    "model": {"name": "mfdan-synthetic", "version": "1", "sha256": "0d06" * 16},
    "provider": "CPUExecutionProvider",
    "flow": {"backend": "opencv-cpu", "algorithm": "dis"},
    "faces": [
        {
            "box": {"x": 236.9, "y": 152.5, "width": 173.3, "height": 213.3},
            "score": 0.999,
            "label": "positive",
            "probabilities": {"negative": 0.12, "positive": 0.81, "surprise": 0.07},
            "abstained": False,
            "reason": None,
            "motion": {"mean_px": 0.15, "p95_px": 1.0, "head_px": 0.21},
            "quality": {"eye_distance_px": 77.7, "outside": 0.0},
            "warnings": [],
            "regions": None,
        }
    ],
    "warnings": [],
    "timings_ms": {
        "decode": 5.9,
        "detect": 11.8,
        "align": 1.6,
        "flow": 8.2,
        "tensors": 3.6,
        "infer": 92.4,
        "total": 123.9,
    },
}
_PROBLEM_EXAMPLE = {
    "type": "urn:mfdan:problem:broken_image",
    "title": "Bad Request",
    "status": 400,
    "code": "broken_image",
    "detail": "Apex: the picture is truncated or corrupt.",
    "request_id": "5f0c7c3c2f6e4b0e9f4f0a4d3b0f7a11",
}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    meanings = {
        400: "A picture is empty, truncated or corrupt, or the body is malformed.",
        404: "There is no model of that name.",
        408: "The body did not arrive in time.",
        413: "The body, or a picture in bytes or pixels, is too large.",
        415: "A part is not a JPEG, PNG, WebP or BMP picture.",
        422: "Fields are missing, unknown or repeated; a picture is too small; sizes differ.",
        429: "As much work waits as may wait; Retry-After says when to come back.",
        500: "The service failed.",
        503: "The model is not ready, or the service is shutting down.",
        504: "No answer within the deadline.",
    }
    return {
        status: {
            "description": meanings[status],
            "content": {
                PROBLEM_JSON: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    **(
                        {"example": _PROBLEM_EXAMPLE}
                        if status == _PROBLEM_EXAMPLE["status"]
                        else {}
                    ),
                }
            },
        }
        for status in statuses
    }


def _engine(request: Request) -> Engine:
    engine: Engine = request.state.engine
    return engine


def _telemetry(request: Request) -> Telemetry:
    telemetry: Telemetry = request.state.telemetry
    return telemetry


EngineDep = Annotated[Engine, Depends(_engine)]
TelemetryDep = Annotated[Telemetry, Depends(_telemetry)]
RequestIdDep = Annotated[str, Depends(request_id_of)]


def _options(
    model: Annotated[
        str | None,
        Form(max_length=64, description="Name of the model; none: the default one."),
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


async def _one_of_each(request: Request) -> None:
    _check_fields(await _parts(request), repeatable=set())


async def _repeated_pictures(request: Request) -> None:
    _check_fields(await _parts(request), repeatable={"onset", "apex"})


async def _parts(request: Request) -> list[tuple[str, Part | str]]:
    return (await request.form()).multi_items()  # parsed already; the request keeps it


def _check_fields(parts: list[tuple[str, Part | str]], repeatable: set[str]) -> None:
    """Refuse what FastAPI would silently drop. Raises: FieldsInvalid."""
    names = [name for name, _ in parts]
    faults = [FieldFault(field=_shown(name), message=_unknown(name)) for name in {*names} - _FIELDS]
    faults += [
        FieldFault(field=name, message="is given more than once")
        for name in sorted(_FIELDS - repeatable)
        if names.count(name) > 1
    ]
    faults += [
        FieldFault(field=name, message="must be a file: give the part a file name")
        for name, part in parts
        if name in {"onset", "apex"} and isinstance(part, str)
    ]
    if faults:
        raise FieldsInvalid(*sorted(faults, key=lambda fault: fault.field))


def _shown(name: str) -> str:
    """Return the beginning of a name as text that JSON can hold: a caller made it up."""
    return name[:_NAME_SHOWN].encode(errors="backslashreplace").decode()


def _unknown(name: str) -> str:
    if name in _CLIPS:
        return "clips are not served by this release: send the onset and the apex frame"
    return "is not a field of this form"


@router.post(
    "/predict",
    tags=["predictions"],
    summary="Answer one pair of frames",
    dependencies=[Depends(_one_of_each)],
    responses={
        200: {"content": {"application/json": {"example": _PREDICTION_EXAMPLE}}},
        **_problems(400, 404, 408, 413, 415, 422, 429, 500, 503, 504),
    },
)
async def predict(  # noqa: PLR0913, PLR0917 - FastAPI injects them by name
    request: Request,
    response: Response,
    engine: EngineDep,
    telemetry: TelemetryDep,
    request_id: RequestIdDep,
    options: OptionsDep,
    onset: Annotated[UploadFile, File(description="The frame in which the movement begins.")],
    apex: Annotated[UploadFile, File(description="The frame of its peak, of the same size.")],
) -> Prediction:
    """Recognise the expression that a face shows between an onset and an apex frame.

    Both frames come from one recording of one person and have one size; JPEG, PNG, WebP or
    BMP. No face is a normal answer with `faces: []`; when nothing moved, the face's answer
    abstains with the reason `no_movement`.
    """
    upload = Upload(await _taken(onset), await _taken(apex))
    answer = await _unless_gone(request, engine.predict(upload, options))
    prediction = Prediction.of(answer, request_id)
    telemetry.answered(prediction)
    response.headers["Server-Timing"] = ", ".join(
        f"{stage};dur={ms}" for stage, ms in prediction.timings_ms.items()
    )
    return prediction


@router.post(
    "/predict/batch",
    tags=["predictions"],
    summary="Answer many pairs of frames",
    dependencies=[Depends(_repeated_pictures)],
    responses=_problems(400, 404, 408, 413, 422, 429, 500, 503),
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
    answers = await _unless_gone(request, engine.predict_many(uploads, options))
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
    telemetry.answered(prediction)
    return prediction


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await the work; cancel it when the caller hangs up. Raises: ClientGone."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone("the caller has gone")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@router.get("/models", tags=["models"], summary="List the loaded models")
async def models(engine: EngineDep) -> list[ModelCard]:
    """Every model that a request may name; the default comes first."""
    return [
        ModelCard.of(session, default=place == 0)
        for place, session in enumerate(engine.sessions.values())
    ]


@router.get(
    "/models/{name}", tags=["models"], summary="Describe one model", responses=_problems(404, 422)
)
async def model(engine: EngineDep, name: str) -> ModelCard:
    """Its spec, classes, hash, data, licence and measured scores."""
    session = engine.session(name)
    return ModelCard.of(session, default=session is engine.session())


@router.get("/health/live", tags=["operation"], summary="Does the process answer?")
async def live() -> Health:
    """Yes, if you can read this. Restart the process when it stops answering."""
    return Health(status="live")


@router.get(
    "/health/ready",
    tags=["operation"],
    summary="Would a prediction sent now be worked on?",
    responses=_problems(503),
)
async def ready(engine: EngineDep) -> Health:
    """Yes once the model is warm, no when it is stuck or shutting down. Route no traffic then."""
    if engine.closing:
        raise Closed("the service is shutting down")
    if not engine.ready:
        raise NotReady("the model is not ready")
    return Health(status="ready")


@router.get(
    "/metrics",
    tags=["operation"],
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(telemetry: TelemetryDep) -> Response:
    """Show counts and durations; nothing of any picture."""
    return Response(telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)
