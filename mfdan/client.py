"""A client of the service, for programs that wait and for programs that do not.

    with Client("http://127.0.0.1:8000") as client:
        answer = client.predict(onset="onset.png", apex="apex.png")
    async with AsyncClient("http://127.0.0.1:8000") as client:
        answer = await client.predict(onset="onset.png", apex="apex.png")

Answers are the service's own models. Needs the extra `client`, and no ONNX Runtime.
"""

import os
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypedDict, TypeVar, Unpack

import anyio
import httpx2
from pydantic import TypeAdapter, ValidationError

from service.schemas import BatchPrediction, FieldFault, Health, ModelCard, Prediction, Problem

__all__ = [
    "AsyncClient",
    "BatchPrediction",
    "Client",
    "ClipOptions",
    "ModelCard",
    "PairOptions",
    "Prediction",
    "Problem",
    "ProblemError",
    "Source",
]

Source = bytes | str | os.PathLike[str]
"""A picture or clip: its bytes, or the path of its file. The file's name is never sent."""
T = TypeVar("T")

_CONNECT_S = 10
_TIMEOUT_S = 150.0
"""Longer than the service's own deadline for a clip, so that the service says what was too slow."""
_RETRY_S = 30.0
_LEAST_WAIT_S = 1.0
"""A proxy may say 0: asked at once, again and again, it would never be asked for the last time."""
_PROBLEM_JSON = "application/problem+json"
_COME_BACK = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}


class PairOptions(TypedDict, total=False):
    """What may be asked of a pair; what is left out is the service's default."""

    model: str | None
    """Name of the model; None: the default one."""
    faces: int
    """Faces to answer for, the largest first."""
    explain: bool
    """Whether to tell how each part of the face moved."""


class ClipOptions(PairOptions, total=False):
    """What may be asked of a clip."""

    onset_frame: int | None
    """Counted from 0; None leaves it to the spotter."""
    apex_frame: int | None
    candidates: int
    """Movements of each face to answer for, the strongest first."""


class ProblemError(Exception):
    """The service, or what stands before it, refused the request or answered with a fault."""

    def __init__(  # noqa: PLR0913 - a problem's members, by name
        self,
        *,
        status: int,
        code: str,
        detail: str,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        errors: tuple[FieldFault, ...] = (),
    ) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        """Of HTTP."""
        self.code = code
        """Stable name of the fault; `http_…` where the answer is none of the service's, and
        `unreadable_answer` where it is of another version."""
        self.detail = detail
        """The fault in a sentence."""
        self.request_id = request_id
        """By which the operator finds it in the log."""
        self.retry_after_s = retry_after_s
        """When to come back, seconds, where the service said so."""
        self.errors = errors
        """With code invalid_fields: each field that is wrong."""


@dataclass(frozen=True, slots=True)
class _Call(Generic[T]):
    """One request and how its answer is read; the same for both clients."""

    method: str
    path: str
    answer: TypeAdapter[T]
    sources: tuple[tuple[str, Source], ...] = ()
    fields: tuple[tuple[str, object], ...] = ()

    def read(self) -> dict[str, Any]:
        """Return the form's parts, with the files read. Raises: OSError."""
        return {
            "files": [(name, (name, _bytes_of(source))) for name, source in self.sources],
            "data": {name: _text_of(value) for name, value in self.fields if value is not None},
        }


_Steps = Generator[dict[str, Any] | float, httpx2.Response | None, T]
"""Yields requests to be sent, which are answered with responses, and seconds to be slept."""


def _steps(call: _Call[T], parts: dict[str, Any], retry_s: float) -> _Steps[T]:
    request = {"method": call.method, "url": call.path, **(parts if call.sources else {})}
    waited = 0.0
    while True:
        response = yield request
        if response is None:
            raise TypeError("a request is answered with a response")
        if response.is_success:
            return _answer_of(call, response)
        problem = _problem_of(response)
        if response.status_code not in _COME_BACK or problem.retry_after_s is None:
            raise problem
        wait = max(problem.retry_after_s, _LEAST_WAIT_S)
        if waited + wait > retry_s:
            raise problem
        yield wait
        waited += wait


_PREDICTION = TypeAdapter(Prediction)
_BATCH = TypeAdapter(BatchPrediction)
_CARD = TypeAdapter(ModelCard)
_CARDS = TypeAdapter(tuple[ModelCard, ...])
_HEALTH = TypeAdapter(Health)


def _pair(onset: Source, apex: Source, options: PairOptions) -> _Call[Prediction]:
    sources = (("onset", onset), ("apex", apex))
    return _Call("POST", "predict", _PREDICTION, sources, tuple(options.items()))


def _clip(clip: Source, options: ClipOptions) -> _Call[Prediction]:
    return _Call("POST", "predict", _PREDICTION, (("clip", clip),), tuple(options.items()))


def _burst(frames: Iterable[Source], fps: float, options: ClipOptions) -> _Call[Prediction]:
    sources = tuple(("frames", frame) for frame in frames)
    return _Call("POST", "predict", _PREDICTION, sources, (("fps", fps), *options.items()))


def _pairs(pairs: Iterable[tuple[Source, Source]], options: PairOptions) -> _Call[BatchPrediction]:
    sources = tuple(
        (name, source)
        for pair in pairs
        for name, source in zip(("onset", "apex"), pair, strict=True)
    )
    return _Call("POST", "predict/batch", _BATCH, sources, tuple(options.items()))


def _settings(base_url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    return {
        "base_url": _address(base_url),
        "headers": {} if api_key is None else {"X-API-Key": api_key},
        "timeout": httpx2.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_S)),
    }


def _address(base_url: str) -> httpx2.URL:
    fault = "base_url must be an address such as http://127.0.0.1:8000"
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL:
        raise ValueError(fault) from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise ValueError(fault)
    return url


class Client:
    """Asks a service and waits for its answers. Safe to share among threads.

    `timeout_s` bounds every wait for the network, `retry_s` the sum of what is waited on 429 and
    503, as their Retry-After says but a second at least, to try again (0: never). Raises
    ValueError for a `base_url` that is no http(s) address. Every method raises ProblemError,
    OSError for a file that cannot be read, and all but `ready` httpx2.TransportError where no
    answer came.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = _TIMEOUT_S,
        retry_s: float = _RETRY_S,
    ) -> None:
        self._http = httpx2.Client(**_settings(base_url, api_key, timeout_s))
        self._retry_s = retry_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(self, onset: Source, apex: Source, **options: Unpack[PairOptions]) -> Prediction:
        """Answer one pair."""
        return self._done(_pair(onset, apex, options))

    def predict_clip(self, clip: Source, **options: Unpack[ClipOptions]) -> Prediction:
        """Answer one clip."""
        return self._done(_clip(clip, options))

    def predict_frames(
        self, frames: Iterable[Source], fps: float, **options: Unpack[ClipOptions]
    ) -> Prediction:
        """Answer one clip whose frames are pictures, `fps` of them a second."""
        return self._done(_burst(frames, fps, options))

    def predict_batch(
        self, pairs: Iterable[tuple[Source, Source]], **options: Unpack[PairOptions]
    ) -> BatchPrediction:
        """Answer many pairs of onset and apex; a bad one has a Problem in its place."""
        return self._done(_pairs(pairs, options))

    def models(self) -> tuple[ModelCard, ...]:
        """Return the loaded models; the default is the first."""
        return self._done(_Call("GET", "models", _CARDS))

    def ready(self) -> bool:
        """Whether a prediction sent now would be worked on; False also where nobody answers."""
        try:
            self._done(_Call("GET", "health/ready", _HEALTH), retry_s=0)
        except (ProblemError, httpx2.TransportError) as error:
            return _not_ready(error)
        return True

    def _done(self, call: _Call[T], retry_s: float | None = None) -> T:
        steps = _steps(call, call.read(), self._retry_s if retry_s is None else retry_s)
        reply: httpx2.Response | None = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                answer: T = end.value
                return answer
            if isinstance(step, float):
                time.sleep(step)
                reply = None
            else:
                reply = self._http.request(**step)


class AsyncClient:
    """Does the same in an event loop, of asyncio or trio."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = _TIMEOUT_S,
        retry_s: float = _RETRY_S,
    ) -> None:
        self._http = httpx2.AsyncClient(**_settings(base_url, api_key, timeout_s))
        self._retry_s = retry_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def predict(
        self, onset: Source, apex: Source, **options: Unpack[PairOptions]
    ) -> Prediction:
        """Answer one pair."""
        return await self._done(_pair(onset, apex, options))

    async def predict_clip(self, clip: Source, **options: Unpack[ClipOptions]) -> Prediction:
        """Answer one clip."""
        return await self._done(_clip(clip, options))

    async def predict_frames(
        self, frames: Iterable[Source], fps: float, **options: Unpack[ClipOptions]
    ) -> Prediction:
        """Answer one clip whose frames are pictures, `fps` of them a second."""
        return await self._done(_burst(frames, fps, options))

    async def predict_batch(
        self, pairs: Iterable[tuple[Source, Source]], **options: Unpack[PairOptions]
    ) -> BatchPrediction:
        """Answer many pairs of onset and apex; a bad one has a Problem in its place."""
        return await self._done(_pairs(pairs, options))

    async def models(self) -> tuple[ModelCard, ...]:
        """Return the loaded models; the default is the first."""
        return await self._done(_Call("GET", "models", _CARDS))

    async def ready(self) -> bool:
        """Whether a prediction sent now would be worked on; False also where nobody answers."""
        try:
            await self._done(_Call("GET", "health/ready", _HEALTH), retry_s=0)
        except (ProblemError, httpx2.TransportError) as error:
            return _not_ready(error)
        return True

    async def _done(self, call: _Call[T], retry_s: float | None = None) -> T:
        parts = await anyio.to_thread.run_sync(call.read)
        steps = _steps(call, parts, self._retry_s if retry_s is None else retry_s)
        reply: httpx2.Response | None = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                answer: T = end.value
                return answer
            if isinstance(step, float):
                await anyio.sleep(step)
                reply = None
            else:
                reply = await self._http.request(**step)


def _bytes_of(source: Source) -> bytes:
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def _text_of(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _answer_of(call: _Call[T], response: httpx2.Response) -> T:
    try:
        return call.answer.validate_json(response.content)
    except ValidationError:  # it would quote the answer
        raise ProblemError(
            status=response.status_code,
            code="unreadable_answer",
            detail="The answer is not what this version of the client reads.",
            request_id=response.headers.get("X-Request-ID"),
        ) from None


def _problem_of(response: httpx2.Response) -> ProblemError:
    status, wait = response.status_code, _seconds(response.headers.get("Retry-After"))
    if response.headers.get("Content-Type") == _PROBLEM_JSON:
        try:
            problem = Problem.model_validate_json(response.content)
        except ValidationError:
            pass
        else:
            return ProblemError(
                status=status,
                code=problem.code,
                detail=problem.detail,
                request_id=problem.request_id,
                retry_after_s=wait,
                errors=problem.errors,
            )
    return ProblemError(
        status=status,
        code=f"http_{status}",
        detail=f"{response.reason_phrase}, and nothing of the service's.",
        request_id=response.headers.get("X-Request-ID"),
        retry_after_s=wait,
    )


def _seconds(retry_after: str | None) -> float | None:
    """Return what the header says; None where it says nothing, or a date, as others may."""
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else None


def _not_ready(error: ProblemError | httpx2.TransportError) -> bool:
    """Return False for what means not ready. Raises: the error, if it means anything else."""
    if isinstance(error, ProblemError) and error.status != HTTPStatus.SERVICE_UNAVAILABLE:
        raise error
    return False
