"""What operators see: metrics, one log line a request, request ids. Nothing of a picture.

Metrics and logger belong to one app: no global registry, no global configuration.
"""

import re
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any, TextIO

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.engine import Engine
from service.errors import problem_of, problem_response
from service.observer import Observer
from service.schemas import Prediction
from service.settings import Settings

__all__ = ["Telemetry", "TelemetryMiddleware"]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_PROBES = {"/health/live", "/health/ready", "/metrics"}
"""Asked for every few seconds: their lines are written at level debug."""
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_LEVELS = ("debug", "info", "warning", "error")


class Telemetry(Observer):
    """The metrics and the logger of one app."""

    def __init__(self, level: str = "info", stream: TextIO | None = None) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(namespace="mfdan", registry=registry)
        self.log = _logger(level, stream or sys.stdout)
        self.requests = Counter(
            "mfdan_requests", "Requests answered.", ("method", "route", "status"), registry=registry
        )
        self.duration = Histogram(
            "mfdan_request_duration_seconds",
            "From the first byte of a request to the last of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.stages = Histogram(
            "mfdan_stage_duration_seconds",
            "Work of one pair or clip in one stage.",
            ("kind", "stage"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "mfdan_requests_in_flight", "Requests that wait for their answer.", registry=registry
        )
        self.queue = Gauge(
            "mfdan_queue_items",
            "Faces of pairs (as asked for) at work or waiting, and movements found in clips.",
            registry=registry,
        )
        self.queued_clips = Gauge(
            "mfdan_queue_clips", "Clips at work or waiting.", registry=registry
        )
        self.ready = Gauge("mfdan_ready", "1 when a request would be worked on.", registry=registry)
        self.batch_size = Histogram(
            "mfdan_batch_size",
            "Faces in one run of the network.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.batch_duration = Histogram(
            "mfdan_batch_duration_seconds",
            "One run of the network.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.faces = Counter("mfdan_faces", "Faces answered.", registry=registry)
        self.clips = Counter(
            "mfdan_clips", "Clips answered, by container.", ("container",), registry=registry
        )
        self.clip_seconds = Counter(
            "mfdan_clip_seconds", "Duration of the clips answered.", registry=registry
        )
        self.candidates = Counter(
            "mfdan_candidates",
            "Intervals of clips answered, by who chose them.",
            ("source",),
            registry=registry,
        )
        self.labels = Counter(
            "mfdan_labels", "Answers that stand, by class.", ("model", "label"), registry=registry
        )
        self.abstentions = Counter(
            "mfdan_abstentions", "Answers that abstain.", ("model", "reason"), registry=registry
        )
        self.rejections = Counter(
            "mfdan_rejections", "Requests and pairs refused, by code.", ("code",), registry=registry
        )
        self.model = Gauge(
            "mfdan_model_info",
            "The loaded models; always 1.",
            ("name", "version", "sha256", "provider"),
            registry=registry,
        )

    def watch(self, engine: Engine) -> None:
        """Show an engine's state at every scrape."""
        self.queue.set_function(lambda: engine.items)
        self.queued_clips.set_function(lambda: engine.clips)
        self.ready.set_function(lambda: engine.ready)
        for session in engine.sessions.values():
            spec = session.spec
            self.model.labels(spec.name, spec.version, spec.onnx_sha256, session.provider).set(1)

    def batch_ran(self, model: str, size: int, seconds: float) -> None:  # noqa: ARG002 - a label to come
        """Count one run of the network."""
        self.batch_size.observe(size)
        self.batch_duration.observe(seconds)

    def answered(self, prediction: Prediction) -> None:
        """Count what was answered for one pair or clip."""
        kind = "pair" if prediction.clip is None else "clip"
        for stage, ms in prediction.timings_ms.items():
            self.stages.labels(kind, stage).observe(ms / 1e3)
        if prediction.clip is not None:
            self.clips.labels(prediction.clip.container).inc()
            self.clip_seconds.inc(prediction.clip.duration_s)
        for candidate in (one for face in prediction.faces for one in face.candidates):
            self.candidates.labels(candidate.source).inc()
        self.faces.inc(len(prediction.faces))
        for face in prediction.faces:
            if face.reason is None:
                self.labels.labels(prediction.model.name, face.label).inc()
            else:
                self.abstentions.labels(prediction.model.name, face.reason).inc()

    def rejected(self, code: str) -> None:
        """Count one refused request or pair."""
        self.rejections.labels(code).inc()

    def unforeseen(self, error: BaseException, request_id: str) -> None:
        """Log a fault that is a defect of the service.

        Names and lines only: messages of libraries may quote what was sent.
        """
        self.log.error(
            "unforeseen fault",
            request_id=request_id,
            fault=type(error).__name__,
            where=_where(error),
        )

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class TelemetryMiddleware:
    """Gives each request its id, its log line and its counts; answers what nobody foresaw."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry, settings: Settings) -> None:
        self._app = app
        self._telemetry = telemetry
        self._retry_after_s = settings.retry_after_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, watched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        request_id = _request_id(Headers(scope=scope).get("x-request-id"))
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        with self._telemetry.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, send_with_id)
            except Exception as error:
                self._telemetry.unforeseen(error, request_id)
                if status:
                    raise
                problem = problem_of(error, request_id)
                state["code"] = problem.code
                response = problem_response(problem, self._retry_after_s)
                await response(scope, receive, send_with_id)
            finally:
                self._count(scope, state, status, time.perf_counter() - start)

    def _count(self, scope: Scope, state: dict[str, Any], status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = _route_template(scope)
        code = state.get("code")
        self._telemetry.requests.labels(method, route, str(status)).inc()
        self._telemetry.duration.labels(route).observe(seconds)
        if code is not None:
            self._telemetry.rejected(code)
        write = self._telemetry.log.debug if route in _PROBES else self._telemetry.log.info
        write(
            "request",
            request_id=state["request_id"],
            method=method,
            route=route,
            status=status,
            code=code,
            duration_ms=round(seconds * 1e3, 1),
        )


def _logger(level: str, stream: TextIO) -> Any:  # noqa: ANN401 - structlog's loggers are dynamic
    floor = _LEVELS.index(level)

    def drop_below(
        _: object, name: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        if _LEVELS.index(name) < floor:
            raise structlog.DropEvent
        return event

    return structlog.wrap_logger(
        structlog.PrintLogger(stream),
        wrapper_class=structlog.BoundLogger,
        processors=[
            drop_below,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
    )


def _request_id(sent: str | None) -> str:
    """Accept a short, harmless id; make one otherwise."""
    return sent if sent is not None and _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex


def _route_template(scope: Scope) -> str:
    """Return the route as declared, so that no caller can make up new labels."""
    route = scope.get("route")
    return str(getattr(route, "path", scope["state"].get("route", "unmatched")))


def _where(error: BaseException) -> Sequence[str]:
    """Return the last functions and lines of a traceback."""
    frames = []
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        frames.append(f"{code.co_qualname}:{step.tb_lineno}")
        step = step.tb_next
    return frames[-8:]
