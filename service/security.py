"""What protects the service from a request before any of its bytes are understood.

FastAPI's own `max_body_size` answers an announced excess in plain text; this one answers every
excess as a problem, and bounds time and number of uploads as well.
"""

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import problem_of, problem_response
from service.settings import Settings

__all__ = ["GuardMiddleware", "HeadersMiddleware"]

_PREDICT = "/predict"
_BATCH = "/predict/batch"
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
    """Caps body size, upload time and concurrent predictions."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._predictions = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, guarded."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        if not scope["path"].startswith(_PREDICT):
            await self._limited(scope, receive, send, _SMALL_BODY_BYTES)
            return
        if self._predictions >= self._settings.max_requests:
            full = HTTPException(429, "As many predictions are under way as may be.")
            await self._refuse(full, scope, receive, send)
            return
        cap = (
            self._settings.max_body_bytes
            if scope["path"] == _BATCH
            else self._settings.max_single_bytes
        )
        self._predictions += 1
        try:
            await self._limited(scope, receive, send, cap)
        finally:
            self._predictions -= 1

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

    async def _refuse(
        self, error: HTTPException, scope: Scope, receive: Receive, send: Send
    ) -> None:
        state = Request(scope).state
        if scope["path"] in {_PREDICT, _BATCH}:
            state.route = scope["path"]  # for the metrics: no route was looked for
        problem = problem_of(error, state.request_id)
        state.code = problem.code
        await problem_response(problem, self._settings.retry_after_s)(scope, receive, send)
