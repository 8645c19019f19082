"""What protects the service from a request before any of its bytes are understood.

FastAPI's own `max_body_size` answers an announced excess in plain text; this one answers every
excess as a problem, and bounds time and number of uploads as well (service.admission).
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.admission import Admission, Upload
from service.engine import Closed, Engine
from service.errors import refuse
from service.faults import TooManyRequests
from service.settings import Settings

__all__ = [
    "PREDICTION_ROUTES",
    "PROTECTIVE",
    "GuardMiddleware",
    "HeadersMiddleware",
    "prediction_route",
]

_SMALL_BODY_BYTES = 2**16
PROTECTIVE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    # The documentation page has one inline script; nothing is ever loaded from elsewhere.
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    ),
}
"""Headers of every answer."""
_PROTECTIVE_RAW = [(name.lower().encode(), value.encode()) for name, value in PROTECTIVE.items()]
"""As ASGI has them."""


class _Prediction(NamedTuple):
    """A route that is answered with predictions, its paths, and the bytes that a body may hold."""

    route: str
    paths: re.Pattern[str]
    """The router's own: what it takes to the route and this does not see would go unguarded."""
    cap: Callable[[Settings], int]


def _prediction(route: str, cap: Callable[[Settings], int]) -> _Prediction:
    return _Prediction(route, compile_path(route)[0], cap)


_PREDICTIONS = (
    _prediction("/predict", lambda settings: settings.max_single_bytes),
    _prediction("/predict/batch", lambda settings: settings.max_body_bytes),
    _prediction("/v2/models/{name}/infer", lambda settings: settings.max_body_bytes),
    _prediction(
        "/v2/models/{name}/versions/{version}/infer", lambda settings: settings.max_body_bytes
    ),
)
PREDICTION_ROUTES = tuple(one.route for one in _PREDICTIONS)


class HeadersMiddleware:
    """Adds the protective headers to every answer, so it must be the outermost."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on; its answer gets the headers."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                message["headers"].extend(one for one in _PROTECTIVE_RAW if one[0] not in given)
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
        cap = _SMALL_BODY_BYTES if prediction is None else prediction.cap(self._settings)
        upload = Upload(receive, cap, self._settings.upload_timeout_ms / 1e3)
        if prediction is not None:
            scope["state"]["route"] = prediction.route  # for the metrics: none may be looked for
        fault = _announced_fault(scope, upload, cap)
        if fault is None and prediction is not None:
            fault = self._admission_fault(scope)
        if fault is not None:
            await self._refuse(fault, scope, receive, send)
        elif prediction is None:
            await self._app(scope, upload.receive, send)
        else:
            await self._admit(upload, scope, send)

    async def _admit(self, upload: Upload, scope: Scope, send: Send) -> None:
        try:
            async with self._admission.admitted(upload) as answer_begins:

                async def send_to_its_end(message: Message) -> None:
                    answer_begins()
                    await send(message)

                await self._app(scope, upload.receive, send_to_its_end)
        except Closed as fault:
            await self._refuse(fault, scope, upload.receive, send)

    async def _refuse(self, fault: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_the_last(message: Message) -> None:
            if message["type"] == "http.response.start" and self._admission.draining:
                MutableHeaders(scope=message)["Connection"] = "close"  # and go elsewhere
            await send(message)

        await refuse(fault, self._settings, scope, receive, send_the_last)

    def _admission_fault(self, scope: Scope) -> Exception | None:
        if self._admission.draining:
            return Closed("the service is shutting down")
        if self._admission.has_room():
            return None
        engine: Engine = scope["state"]["engine"]
        longest = max(engine.retry_after_s("pair"), engine.retry_after_s("clip"))  # of whatever
        return TooManyRequests("as many predictions are under way as may be", longest)


def prediction_route(scope: Scope) -> str | None:
    """Return the template of the route where a request asks for a prediction.

    For metrics and log of what is refused before any route is looked for.
    """
    prediction = _prediction_of(scope)
    return prediction and prediction.route


def _announced_fault(scope: Scope, upload: Upload, cap: int) -> Exception | None:
    announced = Headers(scope=scope).get("content-length", "")
    too_large = announced.isdecimal() and int(announced) > cap
    return upload.too_large() if too_large else None


def _prediction_of(scope: Scope) -> _Prediction | None:
    if scope["method"] != "POST":
        return None
    return next((one for one in _PREDICTIONS if one.paths.match(scope["path"])), None)
