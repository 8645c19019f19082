"""What the routes of both protocols take from a request, and how they await their work."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Depends, Request

from service.engine import Closed, Engine, NotReady, Trouble
from service.errors import ClientGone
from service.telemetry import Telemetry

__all__ = [
    "ReadyDep",
    "engine_of",
    "telemetry_of",
    "unless_gone",
]

T = TypeVar("T")

_IN_WORDS: dict[Trouble, str] = {
    "loading": "the model is being loaded",
    "warm_up_failed": "the model could not be warmed up",
    "closing": "the service is shutting down",
    "worker_wedged": "a worker is stuck",
    "network_wedged": "a run of the network is stuck",
    "inference_failed": "the last run of the network failed",
}


def engine_of(request: Request) -> Engine:
    """Return the engine of the app that a request came to.

    Not by FastAPI's Depends, here and below: three of them are a sixth of a millisecond of a pair.
    """
    engine: Engine = request.state.engine
    return engine


def telemetry_of(request: Request) -> Telemetry:
    """Return the telemetry of the app that a request came to."""
    telemetry: Telemetry = request.state.telemetry
    return telemetry


async def _ready(request: Request) -> None:
    """Refuse what a prediction sent now would be refused for. Raises: Closed, NotReady."""
    trouble = engine_of(request).trouble
    if request.state.admission.draining or trouble == "closing":
        raise Closed("the service is shutting down")
    if trouble is not None:
        raise NotReady(_IN_WORDS[trouble])


ReadyDep = Depends(_ready)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await the work; cancel it when the caller hangs up. Raises: ClientGone."""
    try:
        async with asyncio.timeout(None) as patience:
            watching = asyncio.create_task(_end_when_gone(request, patience))
            try:
                return await work
            finally:
                watching.cancel()
    except TimeoutError:
        if not patience.expired():
            raise
        raise ClientGone("the caller has gone") from None


async def _end_when_gone(request: Request, patience: asyncio.Timeout) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    patience.reschedule(asyncio.get_running_loop().time())
