"""What the routes of both protocols take from a request, and how they await their work."""

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from service.admission import Admission
from service.engine import Closed, Engine, NotReady, Trouble
from service.errors import ClientGone, request_id_of
from service.telemetry import Telemetry

__all__ = [
    "EngineDep",
    "ReadyDep",
    "RequestIdDep",
    "TelemetryDep",
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


# None of these awaits anything; FastAPI would send each plain function to a thread and back.


async def _engine(request: Request) -> Engine:
    engine: Engine = request.state.engine
    return engine


async def _telemetry(request: Request) -> Telemetry:
    telemetry: Telemetry = request.state.telemetry
    return telemetry


async def _admission(request: Request) -> Admission:
    admission: Admission = request.state.admission
    return admission


async def _request_id(request: Request) -> str:
    return request_id_of(request)


EngineDep = Annotated[Engine, Depends(_engine)]
TelemetryDep = Annotated[Telemetry, Depends(_telemetry)]
RequestIdDep = Annotated[str, Depends(_request_id)]


async def _ready(engine: EngineDep, admission: Annotated[Admission, Depends(_admission)]) -> None:
    """Refuse what a prediction sent now would be refused for. Raises: Closed, NotReady."""
    trouble = engine.trouble
    if admission.draining or trouble == "closing":
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
