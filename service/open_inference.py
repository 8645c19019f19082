"""The Open Inference Protocol (KServe V2) over HTTP: tensors in, probabilities out, under /v2.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

import time
from functools import partial
from importlib.metadata import version as version_of
from math import inf
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Header, Path, Request, Response
from pydantic import WithJsonSchema
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.errors import ModelNotFound, ShapeError
from model.session import Session
from service.dependencies import ReadyDep, engine_of, unless_gone
from service.errors import PROBLEM_JSON, ClientGone
from service.examples import (
    INFER_REQUEST,
    INFER_RESPONSE,
    V2_INDEX,
    V2_LIVE,
    V2_MODEL,
    V2_MODEL_READY,
    V2_READY,
    V2_SERVER,
)
from service.open_inference_body import (
    DATATYPE,
    INPUTS,
    MAX_JSON_BYTES,
    OUTPUT,
    Asked,
    FloatArray,
    TensorsInvalid,
    read,
    write,
)
from service.open_inference_schemas import (
    INFER_REQUEST_SCHEMA,
    IndexEntry,
    InferResponse,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    TensorMetadata,
    V2Error,
)
from service.responses import answered, errors_v2
from service.schemas import Problem

__all__ = ["OpenInferenceErrors", "router"]

_PREFIX = "/v2"
_HEADER_LENGTH = "Inference-Header-Content-Length"
_MAX_DIGITS = 12
_BYTES = "application/octet-stream"
_BINARY = {"schema": {"type": "string", "contentMediaType": _BYTES}}
_INFER_BODY = {
    "requestBody": {
        "required": True,
        "description": (
            f"JSON of at most {MAX_JSON_BYTES} bytes; or, with the header {_HEADER_LENGTH}, JSON "
            "of that length and then the bytes of the tensors."
        ),
        "content": {
            "application/json": {"schema": INFER_REQUEST_SCHEMA, "example": INFER_REQUEST},
            _BYTES: _BINARY,
        },
    },
}
_AT_HEADERS = ("unauthorized", "body_too_large", "rate_limited", "quota_exceeded")
_OF_MODEL = (*_AT_HEADERS, "model_not_found", "invalid_fields")
_OF_INFER = (
    *_OF_MODEL,
    "invalid_tensors",
    "upload_timeout",
    "compressed_body",
    "queue_full",
    "too_many_requests",
    "internal_error",
    "not_ready",
    "draining",
    "worker_died",
    "deadline_exceeded",
)
_OF_READY = ("body_too_large", "not_ready", "draining")

router = APIRouter(prefix=_PREFIX, tags=["Open Inference Protocol"])

Name = Annotated[str, Path(max_length=64, description="Of the model.")]
Version = Annotated[str, Path(max_length=64, description="Of the model, as its card has it.")]


@router.get(
    "",
    summary="Describe the server",
    responses=answered(server=V2_SERVER) | errors_v2(*_AT_HEADERS),
)
async def server() -> ServerMetadata:
    """Its name, its version and the extensions of the protocol that it understands."""
    return ServerMetadata(version=version_of("mfdan"))


@router.get(
    "/health/live",
    summary="Does the process answer?",
    responses=answered(live=V2_LIVE) | errors_v2("body_too_large"),
)
async def live() -> ServerLive:
    """Yes, if you can read this."""
    return ServerLive()


@router.get(
    "/health/ready",
    summary="Would a request sent now be worked on?",
    dependencies=[ReadyDep],
    responses=answered(ready=V2_READY) | errors_v2(*_OF_READY),
)
async def ready() -> ServerReady:
    """As `/health/ready`."""
    return ServerReady()


@router.post(
    "/repository/index",
    summary="List the loaded models",
    responses=answered(models=V2_INDEX) | errors_v2(*_AT_HEADERS),
)
async def index(request: Request) -> list[IndexEntry]:
    """Every model; a body is not read."""
    engine = engine_of(request)
    trouble = engine.trouble
    return [
        IndexEntry(
            name=name,
            version=loaded.spec.version,
            state="READY" if trouble is None else "UNAVAILABLE",
            reason=trouble or "",
        )
        for name, loaded in engine.models.items()
    ]


_MODEL_RESPONSES = answered(model=V2_MODEL) | errors_v2(*_OF_MODEL)


@router.get("/models/{name}", summary="Describe a model's tensors", responses=_MODEL_RESPONSES)
async def model(request: Request, name: Name) -> ModelMetadata:
    """Tell what it takes and gives; `GET /models/{name}` has its classes and all the rest."""
    return _metadata(_loaded(request, name))


@router.get(
    "/models/{name}/versions/{version}",
    summary="Describe the tensors of one version of a model",
    responses=_MODEL_RESPONSES,
)
async def model_version(request: Request, name: Name, version: Version) -> ModelMetadata:
    """Do the same for one version; only the one that is loaded is found."""
    return _metadata(_loaded(request, name, version))


_MODEL_READY_RESPONSES = answered(ready=V2_MODEL_READY) | errors_v2(
    *_OF_MODEL, "not_ready", "draining"
)


@router.get(
    "/models/{name}/ready",
    summary="Would a request for this model be worked on?",
    dependencies=[ReadyDep],
    responses=_MODEL_READY_RESPONSES,
)
async def model_ready(request: Request, name: Name) -> ModelReady:
    """Yes, when the service is ready and the model loaded."""
    return ModelReady(name=_loaded(request, name).spec.name)


@router.get(
    "/models/{name}/versions/{version}/ready",
    summary="Would a request for this version be worked on?",
    dependencies=[ReadyDep],
    responses=_MODEL_READY_RESPONSES,
)
async def version_ready(request: Request, name: Name, version: Version) -> ModelReady:
    """Yes, when the service is ready and that version loaded."""
    return ModelReady(name=_loaded(request, name, version).spec.name)


_INFER_RESPONSES = answered(probabilities=INFER_RESPONSE) | errors_v2(*_OF_INFER)
_INFER_RESPONSES[200]["content"][_BYTES] = _BINARY

HeaderLength = Annotated[
    str | None,
    Header(
        alias=_HEADER_LENGTH,
        description="Bytes of the JSON, where the bytes of the tensors follow it.",
    ),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": MAX_JSON_BYTES}),
]


@router.post(
    "/models/{name}/infer",
    summary="Run a model on prepared tensors",
    response_model=InferResponse,
    responses=_INFER_RESPONSES,
    openapi_extra=_INFER_BODY,
)
async def infer(request: Request, name: Name, json_bytes: HeaderLength = None) -> Response:
    """Answer with the calibrated probabilities of each pair's classes.

    `image` and `flow` are what the service's own preprocessing makes of a pair (`model.tensors`).
    Tensors tell nothing of motion or of quality: **no gate is applied, and nothing abstains**.
    """
    return await _inferred(request, _loaded(request, name), json_bytes)


@router.post(
    "/models/{name}/versions/{version}/infer",
    summary="Run one version of a model on prepared tensors",
    response_model=InferResponse,
    responses=_INFER_RESPONSES,
    openapi_extra=_INFER_BODY,
)
async def infer_version(
    request: Request, name: Name, version: Version, json_bytes: HeaderLength = None
) -> Response:
    """Do the same, and only with that version."""
    session = _loaded(request, name, version)
    return await _inferred(request, session, json_bytes, version)


async def _inferred(
    request: Request,
    session: Session,
    json_bytes: str | None,
    version: str | None = None,
) -> Response:
    length = None if json_bytes is None else _length(json_bytes)
    body = await _body(request, length)
    start = time.perf_counter()
    parse = partial(read, body, length, session.spec.input_size)
    asked = await to_thread.run_sync(parse, limiter=request.state.parsing)
    before_infer = time.perf_counter()
    used, rows = await _rows(request, asked, session.spec.name)
    end = time.perf_counter()
    if version is not None:
        _checked(used, version)  # the model may have been replaced meanwhile
    timings_ms = {"infer": (end - before_infer) * 1e3, "total": (end - start) * 1e3}
    request.state.telemetry.answered_tensors(timings_ms)
    content, head = write(rows, asked, used.spec.name, used.spec.version)
    if head is None:
        return Response(content, media_type="application/json")
    return Response(content, media_type=_BYTES, headers={_HEADER_LENGTH: str(head)})


async def _rows(request: Request, asked: Asked, name: str) -> tuple[Session, FloatArray]:
    try:
        return await unless_gone(request, engine_of(request).infer(asked.image, asked.flow, name))
    except ShapeError:  # the model was replaced meanwhile
        raise TensorsInvalid("the model takes tensors of another size now") from None


async def _body(request: Request, json_bytes: int | None) -> bytearray:
    """Read the body, at most what JSON may hold where it is nothing else.

    Raises: HTTPException (413, 415), ClientGone.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(415, "The body must not be compressed.")
    too_large = HTTPException(
        413, f"The JSON may hold {MAX_JSON_BYTES} bytes: send the tensors as bytes after it."
    )
    most = MAX_JSON_BYTES if json_bytes is None else inf  # the guard has its own cap
    if max(json_bytes or 0, _announced(request) if json_bytes is None else 0) > MAX_JSON_BYTES:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise too_large
    except ClientDisconnect:
        raise ClientGone("the caller has gone") from None
    return body


def _length(json_bytes: str) -> int:
    if not json_bytes.isdecimal() or not json_bytes.isascii() or len(json_bytes) > _MAX_DIGITS:
        raise TensorsInvalid(f"{_HEADER_LENGTH} is not a number of bytes")
    return int(json_bytes)


def _announced(request: Request) -> int:
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() and len(length) <= _MAX_DIGITS else 0


def _loaded(request: Request, name: str, version: str | None = None) -> Session:
    session = engine_of(request).session(name)
    return session if version is None else _checked(session, version)


def _checked(session: Session, version: str) -> Session:
    if session.spec.version != version:
        raise ModelNotFound("there is no such version of the model")
    return session


def _metadata(session: Session) -> ModelMetadata:
    spec = session.spec
    shape = (-1, 3, spec.input_size, spec.input_size)
    return ModelMetadata(
        name=spec.name,
        versions=(spec.version,),
        inputs=tuple(TensorMetadata(name=name, datatype=DATATYPE, shape=shape) for name in INPUTS),
        outputs=(TensorMetadata(name=OUTPUT, datatype=DATATYPE, shape=(-1, len(spec.classes))),),
    )


class OpenInferenceErrors:
    """Gives every problem under /v2 the protocol's shape, whoever found it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on; a problem is answered as `{"error": "..."}`."""
        path = scope.get("path", "")
        if path == _PREFIX or path.startswith(f"{_PREFIX}/"):
            await self._app(scope, receive, _Reshaping(send))
        else:
            await self._app(scope, receive, send)


class _Reshaping:
    """Sends what it is given; of a problem, its sentence."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._problem = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = Headers(raw=message["headers"]).get("content-type")
            if kind == PROBLEM_JSON:
                self._start = message
                return
        elif self._start is not None and message["type"] == "http.response.body":
            self._problem += message.get("body", b"")
            if not message.get("more_body", False):
                await self._answer(self._start)
            return
        await self._send(message)

    async def _answer(self, start: Message) -> None:
        problem = Problem.model_validate_json(self._problem)
        faults = (f" {fault.field}: {fault.message}." for fault in problem.errors)
        error = V2Error(error=problem.detail + "".join(faults))
        body = error.model_dump_json().encode()
        headers = MutableHeaders(scope=start)
        headers["content-type"] = "application/json"
        headers["content-length"] = str(len(body))
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})
