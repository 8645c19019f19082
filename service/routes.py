"""The routes: read the form, await one call, shape the reply."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.answers import Answer, Upload
from service.dependencies import ReadyDep, engine_of, telemetry_of, unless_gone
from service.errors import INTERNAL_ERROR, problem_of, request_id_of
from service.examples import (
    BATCH_PREDICTION,
    CLIP_PREDICTION,
    LIVE,
    METRICS,
    MODEL_CARD,
    PAIR_PREDICTION,
    READY,
)
from service.forms import MODEL_NAME, BatchForm, PredictForm, form_body
from service.responses import answered, problems
from service.schemas import (
    BatchPrediction,
    Health,
    ModelCard,
    Prediction,
    Problem,
)
from service.telemetry import Telemetry

__all__ = ["metrics_router", "router"]

router = APIRouter()
metrics_router = APIRouter()
"""Apart, because metrics may have a port of their own."""

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


@router.post(
    "/predict",
    tags=["predictions"],
    summary="Answer one pair of frames or one clip",
    response_model=Prediction,
    openapi_extra=form_body(PredictForm),
    responses=answered(pair=PAIR_PREDICTION, clip=CLIP_PREDICTION)
    | problems(*_ANSWERED_ALWAYS, *_OF_PICTURES, *_OF_PREDICTIONS),
)
async def predict(request: Request) -> Response:
    """Recognise the expression that a face shows in a pair of frames or in a clip.

    Send **one** of three: `onset` and `apex`, two frames of one recording of one person and of
    one size (JPEG, PNG, WebP or BMP); or `clip`, a video or animated picture; or `frames`,
    repeated, with `fps`. In a clip the movements are found: each is a candidate with onset, apex
    and offset frame and its own answer, and the strongest is the face's answer.

    No face is a normal answer with `faces: []`; when nothing moved, the face's answer abstains
    with the reason `no_movement`.
    """
    form = await PredictForm.sent_in(request)
    engine, sent = engine_of(request), form.sent
    work = (
        engine.predict(sent, form.options)
        if isinstance(sent, Upload)
        else engine.predict_clip(sent, form.options)
    )
    answer = await unless_gone(request, work)
    prediction = Prediction.of(answer, request_id_of(request))
    telemetry_of(request).answered(prediction, answer.moments)
    timing = ", ".join(f"{stage};dur={ms}" for stage, ms in prediction.timings_ms.items())
    return Response(
        prediction.model_dump_json(),
        headers={"Server-Timing": timing},
        media_type="application/json",
    )


@router.post(
    "/predict/batch",
    tags=["predictions"],
    summary="Answer many pairs of frames",
    openapi_extra=form_body(BatchForm),
    responses=answered(batch=BATCH_PREDICTION) | problems(*_ANSWERED_ALWAYS, *_OF_PREDICTIONS),
)
async def predict_batch(request: Request) -> BatchPrediction:
    """Recognise the expressions of up to 16 pairs: the n-th onset belongs to the n-th apex.

    The answers stand in request order. A pair that cannot be answered has a problem in its
    place, with the status that it would have had alone; the rest are answered.
    """
    form = await BatchForm.sent_in(request)
    work = engine_of(request).predict_many(form.sent, form.options)
    answers = await unless_gone(request, work)
    request_id, telemetry = request_id_of(request), telemetry_of(request)
    return BatchPrediction(
        request_id=request_id,
        results=tuple(_result(answer, request_id, telemetry) for answer in answers),
    )


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
async def models(request: Request) -> list[ModelCard]:
    """Every model that a request may name; the default comes first."""
    return [
        ModelCard.of(loaded, default=place == 0)
        for place, loaded in enumerate(engine_of(request).models.values())
    ]


@router.get(
    "/models/{name}",
    tags=["models"],
    summary="Describe one model",
    responses=answered(model=MODEL_CARD)
    | problems(*_ANSWERED_ALWAYS, "model_not_found", "invalid_fields"),
)
async def model(request: Request, name: Annotated[str, Path(max_length=MODEL_NAME)]) -> ModelCard:
    """Its spec, classes, hash, data, licence and measured scores."""
    engine = engine_of(request)
    loaded = engine.model(name)
    return ModelCard.of(loaded, default=loaded is engine.model())


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
async def metrics(request: Request) -> Response:
    """Show counts and durations; nothing of any picture."""
    exposition = await asyncio.to_thread(telemetry_of(request).exposition)
    return Response(exposition, media_type=CONTENT_TYPE_LATEST)
