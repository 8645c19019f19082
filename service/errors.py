"""Which fault is answered with which status, and the one body of all errors (RFC 9457)."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Literal, get_args

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from model.errors import (
    BrokenClip,
    BrokenImage,
    ClipTooLarge,
    EmptyImage,
    FrameOutOfRange,
    FrameSizeMismatch,
    ImageTooLarge,
    ImageTooSmall,
    InputError,
    ModelNotFound,
    NotAClip,
    NotAnImage,
    TooFewFrames,
)
from service.faults import (
    Closed,
    DeadlineExceeded,
    NotReady,
    QueueFull,
    TooManyRequests,
    WorkerDied,
)
from service.keys import KeyUnknown, QuotaExceeded, RateLimited
from service.open_inference_body import TensorsInvalid
from service.schemas import FieldFault, Problem
from service.settings import Settings

__all__ = [
    "INTERNAL_ERROR",
    "PROBLEM_JSON",
    "REJECTIONS",
    "ClientGone",
    "Cut",
    "FieldsInvalid",
    "add_error_handlers",
    "field_fault",
    "problem_of",
    "problem_response",
    "refuse",
    "request_id_of",
    "retry_after_of",
]

INTERNAL_ERROR = "internal_error"
"""The code of every fault that nobody foresaw."""
PROBLEM_JSON = "application/problem+json"
_CLIENT_CLOSED_REQUEST = 499
"""Not in the standard; nobody reads this answer, only the log and the metrics show it."""


class ClientGone(Exception):
    """The caller closed the connection before the answer."""

    code = "client_gone"


class FieldsInvalid(Exception):
    """The form's fields are not what the route takes."""

    code = "invalid_fields"

    def __init__(self, *faults: FieldFault) -> None:
        super().__init__(*faults)
        self.faults = faults


_PHRASES = {
    413: "Content Too Large",  # this one and the next are other words in older Pythons
    422: "Unprocessable Content",
    _CLIENT_CLOSED_REQUEST: "Client Closed Request",
}
_STATUS: dict[type[Exception], int] = {
    EmptyImage: 400,
    BrokenImage: 400,
    BrokenClip: 400,
    ImageTooLarge: 413,
    ClipTooLarge: 413,
    NotAnImage: 415,
    NotAClip: 415,
    ImageTooSmall: 422,
    FrameSizeMismatch: 422,
    TooFewFrames: 422,
    FrameOutOfRange: 422,
    InputError: 422,
    KeyUnknown: 401,
    TensorsInvalid: 400,
    ModelNotFound: 404,
    RateLimited: 429,
    QuotaExceeded: 429,
    QueueFull: 429,
    TooManyRequests: 429,
    Closed: 503,
    NotReady: 503,
    WorkerDied: 503,
    DeadlineExceeded: 504,
    ClientGone: _CLIENT_CLOSED_REQUEST,
}
"""The one table; a fault that it does not hold is a 500."""

_HTTP_CODES = {
    400: "malformed_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "upload_timeout",
    413: "body_too_large",
    415: "compressed_body",
    431: "headers_too_large",
}
Cut = Literal["answer_not_read", "headers_timeout", "too_many_connections"]
"""Why a connection is closed without a word."""
REJECTIONS = (
    {vars(kind)["code"] for kind in (*_STATUS, FieldsInvalid)}
    | {INTERNAL_ERROR, *_HTTP_CODES.values(), *get_args(Cut)}
) - {ClientGone.code}
"""Every code by which a request is refused. Who has gone refused us."""


def problem_of(error: BaseException, request_id: str) -> Problem:
    """Describe a fault to the caller; one that is not foreseen tells nothing of itself."""
    if isinstance(error, FieldsInvalid):
        return _problem(422, error.code, "The fields are not valid.", request_id, error.faults)
    if isinstance(error, RequestValidationError):
        faults = tuple(field_fault(fault["loc"][1:], fault["msg"]) for fault in error.errors())
        return _problem(422, "invalid_fields", "The fields are not valid.", request_id, faults)
    if isinstance(error, HTTPException):
        code = _HTTP_CODES.get(error.status_code, f"http_{error.status_code}")
        return _problem(error.status_code, code, str(error.detail), request_id)
    for kind in type(error).__mro__:
        if kind in _STATUS:
            code = getattr(error, "code", "error")
            return _problem(_STATUS[kind], code, _sentence(str(error)), request_id)
    return _problem(500, INTERNAL_ERROR, "The service failed.", request_id)


def field_fault(place: Sequence[int | str], message: str) -> FieldFault:
    """Describe a fault of pydantic's; `place` leads from the whole to what is wrong."""
    return FieldFault(field=".".join(map(str, place)) or "body", message=message)


def problem_response(problem: Problem, retry_after_s: int) -> Response:
    """Make the HTTP answer of a problem: 429 and 503 say when to come back, 401 how to."""
    headers = {"Retry-After": str(retry_after_s)} if problem.status in {429, 503} else {}
    if problem.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="mfdan"'
    return Response(
        problem.model_dump_json(exclude_defaults=True),
        status_code=problem.status,
        headers=headers,
        media_type=PROBLEM_JSON,
    )


def retry_after_of(error: BaseException, settings: Settings) -> int:
    """Return the seconds that a refused caller waits: what the fault itself knows, or the least."""
    measured: int | None = getattr(error, "retry_after_s", None)
    return measured or settings.retry_after_s


def add_error_handlers(app: FastAPI, settings: Settings) -> None:
    """Have every foreseen fault answered as a problem; the rest is the telemetry's to catch."""

    async def answer(request: Request, error: Exception) -> Response:
        response = _answer(error, settings, request)
        if isinstance(error, HTTPException) and error.headers:
            response.headers.update(error.headers)
        return response

    for kind in (*_STATUS, FieldsInvalid, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)


async def refuse(
    error: Exception, settings: Settings, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer a request with a fault before a route was looked for."""
    await _answer(error, settings, Request(scope))(scope, receive, send)


def request_id_of(request: Request) -> str:
    """Return the id that the telemetry gave this request."""
    return str(request.state.request_id)


def _answer(error: Exception, settings: Settings, request: Request) -> Response:
    problem = problem_of(error, request_id_of(request))
    request.state.code = problem.code
    return problem_response(problem, retry_after_of(error, settings))


def _problem(
    status: int, code: str, detail: str, request_id: str, faults: tuple[FieldFault, ...] = ()
) -> Problem:
    return Problem(
        type=f"urn:mfdan:problem:{code}",
        title=_PHRASES.get(status) or HTTPStatus(status).phrase,
        status=status,
        code=code,
        detail=detail,
        request_id=request_id,
        errors=faults,
    )


def _sentence(message: str) -> str:
    return message[:1].upper() + message[1:] + "."
