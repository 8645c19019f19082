"""Who may ask, as HTTP has it: the key of each request, checked at its headers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import refuse
from service.keys import KeyRing, KeysInvalid, KeyUnknown, QuotaExceeded, RateLimited
from service.security import prediction_route
from service.settings import Settings

__all__ = ["KeyMiddleware", "describe_keys", "followed"]

_FREE = {
    "/docs",
    "/docs/oauth2-redirect",
    "/health/live",
    "/health/ready",
    "/openapi.json",
    "/v2/health/live",
    "/v2/health/ready",
}
"""What anybody may ask for: whether the service is well, and how it is spoken to."""
_FREE_FILES = "/static-offline-docs/"
_SCHEMES = {
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "bearer": {"type": "http", "scheme": "bearer"},
}


class KeyMiddleware:
    """Lets in who sends a key of the ring, as often as that key allows; the rest is refused.

    It reads headers only, and stands before whatever reads a body. The key's name is the request's
    `state["caller"]`, also of one that came too often.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing, settings: Settings) -> None:
        self._app = app
        self._ring = ring
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or refuse it."""
        if scope["type"] != "http" or _is_free(scope["path"]):
            await self._app(scope, receive, send)
            return
        state = scope["state"]
        state["route"] = prediction_route(scope) or "unmatched"
        try:
            key = self._ring.whose(_token(Headers(scope=scope)))
            state["caller"] = key.name
            self._ring.count(key)
        except (KeyUnknown, RateLimited, QuotaExceeded) as error:
            await refuse(error, self._settings, scope, receive, send)
            return
        await self._app(scope, receive, send)


@asynccontextmanager
async def followed(
    ring: KeyRing | None,
    every_s: float,
    log: Any,  # noqa: ANN401 - structlog's loggers are dynamic
) -> AsyncIterator[None]:
    """Look at the file of keys again and again for as long as the block lasts; 0: never."""
    if ring is None or not every_s:
        yield
        return
    task = asyncio.create_task(_follow(ring, every_s, log))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def describe_keys(app: FastAPI) -> None:
    """Have the API's description tell how a key is sent, and what needs none.

    `{}` among the ways of a route: on a service without keys nobody sends one.
    """
    described = app.openapi

    def openapi() -> dict[str, Any]:
        schema = described()
        schema["components"]["securitySchemes"] = _SCHEMES
        schema["security"] = [{}, *({name: []} for name in _SCHEMES)]
        for path in _FREE & schema["paths"].keys():
            for operation in schema["paths"][path].values():
                operation["security"] = []
        return schema

    app.openapi = openapi  # type: ignore[method-assign] # as FastAPI documents it


async def _follow(ring: KeyRing, every_s: float, log: Any) -> None:  # noqa: ANN401 - as above
    while True:
        await asyncio.sleep(every_s)
        try:
            changed = await asyncio.to_thread(ring.look)
        except KeysInvalid as error:
            log.warning("API keys refused", fault=str(error))
            continue
        except Exception as error:  # noqa: BLE001 - a defect: later changes must be followed still
            log.warning("API keys refused", fault=type(error).__name__)
            continue
        if changed:
            log.info("API keys read", names=ring.names)


def _is_free(path: str) -> bool:
    return path in _FREE or path.startswith(_FREE_FILES)


def _token(headers: Headers) -> str:
    """Return the one key that was sent. Raises: KeyUnknown."""
    sent = headers.getlist("x-api-key")
    for value in headers.getlist("authorization"):
        scheme, _, token = value.partition(" ")
        if scheme.lower() == "bearer":
            sent.append(token.strip())
    if not sent:
        raise KeyUnknown("an API key is needed, as X-API-Key or as Authorization: Bearer")
    if len(sent) > 1:
        raise KeyUnknown("more than one API key was sent")
    return sent[0]
