"""What protects the service from a request before any of its bytes are understood.

FastAPI's own `max_body_size` answers an announced excess in plain text; this one answers every
excess as a problem, and bounds time and number of uploads as well.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.admission import Admission
from service.engine import Closed
from service.errors import problem_of, problem_response, retry_after_of
from service.settings import Settings

__all__ = ["GuardMiddleware", "HeadersMiddleware"]

_SMALL_BODY_BYTES = 2**16
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    # The documentation page has one inline script; nothing is ever loaded from elsewhere.
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    ),
}


@dataclass(frozen=True, slots=True)
class _Prediction:
    """A path that is answered with predictions, and the bytes that its body may hold."""

    route: str
    cap: Callable[[Settings], int]

    def is_at(self, path: str) -> bool:
        """Whether a request for this path is one for this route."""
        return re.fullmatch(re.sub(r"{\w+}", "[^/]+", self.route), path) is not None


_PREDICTIONS = (
    _Prediction("/predict", lambda settings: settings.max_single_bytes),
    _Prediction("/predict/batch", lambda settings: settings.max_body_bytes),
    _Prediction("/v2/models/{name}/infer", lambda settings: settings.max_body_bytes),
    _Prediction(
        "/v2/models/{name}/versions/{version}/infer", lambda settings: settings.max_body_bytes
    ),
)


class HeadersMiddleware:
    """Adds the protective headers to every answer, so it must be the outermost."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on; its answer gets the headers."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class GuardMiddleware:
    """Caps body size, upload time and concurrent predictions; refuses them while draining."""

    def __init__(self, app: ASGIApp, settings: Settings, admission: Admission) -> None:
        self._app = app
        self._settings = settings
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, guarded."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        prediction = _prediction_of(scope)
        if prediction is None:
            await self._limited(scope, receive, send, _SMALL_BODY_BYTES)
            return
        Request(scope).state.route = prediction.route  # for the metrics: none may be looked for
        if self._admission.draining:
            await self._refuse(Closed("the service is shutting down"), scope, receive, send)
            return
        if self._admission.full:
            full = HTTPException(429, "As many predictions are under way as may be.")
            await self._refuse(full, scope, receive, send)
            return
        with self._admission.admitted():
            await self._limited(scope, receive, send, prediction.cap(self._settings))

    async def _limited(self, scope: Scope, receive: Receive, send: Send, cap: int) -> None:
        too_large = HTTPException(413, f"The request body may hold {cap} bytes.")
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > cap:
            await self._refuse(too_large, scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        late = loop.time() + self._settings.upload_timeout_ms / 1e3
        taken, complete = 0, False

        async def capped_receive() -> Message:
            nonlocal taken, complete
            if complete:  # what comes now is the caller's leaving, whenever that is
                return await receive()
            try:
                async with asyncio.timeout_at(late):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "The request body did not arrive in time.") from None
            taken += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if taken > cap:
                raise too_large
            return message

        await self._app(scope, capped_receive, send)

    async def _refuse(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        state = Request(scope).state
        problem = problem_of(error, state.request_id)
        state.code = problem.code
        response = problem_response(problem, retry_after_of(error, self._settings))
        await response(scope, receive, send)


def _prediction_of(scope: Scope) -> _Prediction | None:
    if scope["method"] != "POST":
        return None
    return next((one for one in _PREDICTIONS if one.is_at(scope["path"])), None)
