"""What operators see: metrics, one log line a request, request ids. Nothing of a picture.

Metrics and logger belong to one app: no global registry, no global configuration.
"""

import asyncio
import re
import sys
import time
import uuid
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, TextIO, get_args

from opentelemetry.trace import TracerProvider
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.errors import FlowFault
from service.admission import Admission
from service.answers import Moments
from service.engine import Engine
from service.errors import ClientGone, problem_of, problem_response
from service.gpu_memory import watch_gpu_memory
from service.logs import Level, LogStream, open_log, where
from service.metrics import AnswerMetrics, RequestMetrics, State, WorkMetrics, tell_build
from service.observer import Change, Observer, Place, Wait, Why
from service.schemas import Prediction
from service.settings import Settings
from service.tracing import Tracing, is_probe

__all__ = ["Telemetry", "TelemetryMiddleware"]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_NO_ANSWER = 499
"""Status in metrics and log of a request whose answer nobody waited for."""


class Telemetry(Observer):
    """The metrics, the logger and the traces of one app. Raises: TracingRefused."""

    def __init__(
        self,
        level: Level = "info",
        stream: TextIO | None = None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(namespace="mfdan", registry=registry)
        tell_build(registry)
        self._state = State(registry)
        self._engine: Engine | None = None
        self._told: set[tuple[str, FlowFault, bool]] = set()
        self.requests = RequestMetrics(registry)
        self._work = WorkMetrics(registry)
        self._answers = AnswerMetrics(registry)
        lost = self.requests.log_lines_lost.inc
        self.log = open_log(level, LogStream(stream or sys.stdout, lost))
        self.tracing = Tracing(tracer_provider)

    def started(self, settings: Settings, engine: Engine, admission: Admission) -> None:
        """Tell what serves how, once; from now on show the state at every scrape.

        Called in the event loop that the engine lives in.
        """
        self._engine = engine
        self._state.watch(settings, engine, admission)
        self.log.info("started", **_start_facts(settings, engine))
        for name in engine.models:
            self._loaded(name)
        by_opencv = any(one.flow_backend == "opencv-cuda" for one in engine.models.values())
        if (settings.device != "cpu" or by_opencv) and not watch_gpu_memory(self.registry):
            self.log.warning("the GPU's memory cannot be measured")

    def waited(self, what: Wait, seconds: float) -> None:
        """Count what an item waited for."""
        self._work.wait.labels(what).observe(seconds)

    def batch_ran(self, model: str, size: int, seconds: float) -> None:
        """Count one run of the network."""
        self._work.batch_size.observe(size)
        self._work.batch_duration.labels(model).observe(seconds)

    def batch_failed(self, model: str, size: int, error: BaseException) -> None:
        """Count and log a run of the network that raised."""
        self._work.batch_failures.labels(model).inc()
        fault = type(error).__name__
        self.log.error(
            "a run of the network failed", model=model, size=size, fault=fault, where=where(error)
        )

    def flow_failed(self, model: str, fault: FlowFault, *, fell_back: bool) -> None:
        """Count a GPU's failure at the flow of a pair, alone or fused; log the first of its kind.

        A GPU that is lost fails with each pair: a line for each would bury all others.
        """
        counter = self._work.flow_fallbacks if fell_back else self._work.flow_failures
        counter.labels(model, fault).inc()
        kind = (model, fault, fell_back)
        if kind not in self._told:
            self._told.add(kind)
            self.log.warning("a GPU failed", model=model, fault=fault, fell_back=fell_back)

    def dropped(self, place: Place, why: Why) -> None:
        """Count a pair or clip that nobody waits for any more."""
        self._work.cancellations.labels(place, why).inc()

    def worker_died(self, what: Wait) -> None:
        """Count and log a thread that ended."""
        self._work.deaths.labels(what).inc()
        self.log.error("a thread ended and was replaced", resource=what)

    def model_changed(self, name: str, change: Change, fault: str = "") -> None:
        """Count and log what became of a model's files."""
        self._work.model_changes.labels(change).inc()
        write = self.log.error if fault else self.log.info
        write("model", name=name, change=change, **({"fault": fault} if fault else {}))
        if change in {"loaded", "replaced"}:
            self._loaded(name)

    def _loaded(self, name: str) -> None:
        self._work.batch_failures.labels(name)  # begins at 0
        for fault in get_args(FlowFault):
            self._work.flow_fallbacks.labels(name, fault)
            self._work.flow_failures.labels(name, fault)
        loaded = self._engine.models.get(name) if self._engine else None
        if loaded is None:
            return
        self._answers.begin_at_zero(loaded.spec)
        if loaded.fell_back:
            self.log.warning("a GPU was asked for and not got", model=name)

    def answered(self, prediction: Prediction, moments: Moments) -> None:
        """Count and trace what is answered for one pair or clip."""
        # In a turn of its own, when the answer has been sent: it need not wait for this.
        asyncio.get_running_loop().call_soon(self._answers.count, prediction)
        self.tracing.tell_stages(prediction, moments)

    def answered_tensors(self, timings_ms: Mapping[str, float]) -> None:
        """Count what was answered for one stack of tensors."""
        self._answers.count_stages("tensors", timings_ms)

    def rejected(self, code: str) -> None:
        """Count one refused request or pair."""
        self.requests.rejections.labels(code).inc()

    def unforeseen(self, error: BaseException, request_id: str) -> None:
        """Log a fault that is a defect of the service.

        Names and lines only: messages of libraries may quote what was sent.
        """
        fault = type(error).__name__
        self.log.error("unforeseen fault", request_id=request_id, fault=fault, where=where(error))

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format. Takes milliseconds, and any thread."""
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
                message["headers"].append((b"x-request-id", request_id.encode()))
                self._trace(scope, state)  # now: the request's span ends with the answer
            await send(message)

        with self._telemetry.requests.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, send_with_id)
            except asyncio.CancelledError:
                self._trace(scope, state)
                raise
            except Exception as error:
                self._telemetry.unforeseen(error, request_id)
                problem = problem_of(error, request_id)
                state["code"] = problem.code
                if status:
                    raise
                response = problem_response(problem, self._retry_after_s)
                await response(scope, receive, send_with_id)
            finally:
                self._tell(scope, state, status or _NO_ANSWER, time.perf_counter() - start)

    def _trace(self, scope: Scope, state: dict[str, Any]) -> None:
        route = _route_template(scope)
        self._telemetry.tracing.tell_request(state["request_id"], route, state.get("code"))

    def _tell(self, scope: Scope, state: dict[str, Any], status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = _route_template(scope)
        code, caller = state.get("code"), state.get("caller")
        requests = self._telemetry.requests
        requests.answered.labels(method, route, str(status)).inc()
        requests.duration.labels(route).observe(seconds)
        if code not in {None, ClientGone.code}:
            self._telemetry.rejected(code)
        if caller is not None:
            requests.of_callers.labels(caller, str(status)).inc()
        about = {"caller": caller, "trace_id": self._telemetry.tracing.trace_id()}
        log = self._telemetry.log
        write = log.debug if is_probe(scope["path"]) else log.info
        write(
            "request",
            request_id=state["request_id"],
            method=method,
            route=route,
            status=status,
            code=code,
            duration_ms=round(seconds * 1e3, 1),
            **{name: value for name, value in about.items() if value is not None},
        )


def _start_facts(settings: Settings, engine: Engine) -> dict[str, Any]:
    return {
        "version": version("mfdan"),
        "host": settings.host,
        "port": settings.port,
        "device": settings.device,
        "models": [
            {
                "name": name,
                "version": loaded.spec.version,
                "sha256": loaded.spec.onnx_sha256,
                "provider": loaded.provider,
                "flow": loaded.flow_backend,
            }
            for name, loaded in engine.models.items()
        ],
        "threads": {
            "workers": settings.workers,
            "clip_workers": settings.clips_at_once,
            "opencv": settings.opencv,
            "onnx": settings.onnx,
        },
        "limits": {
            "max_requests": settings.max_requests,
            "max_connections": settings.max_connections,
            "queue_items": settings.queue_items,
            "queue_clips": settings.queue_clips,
            "deadline_ms": settings.deadline_ms,
            "clip_deadline_ms": settings.clip_deadline_ms,
            "max_body_bytes": settings.max_body_bytes,
        },
    }


def _request_id(sent: str | None) -> str:
    """Accept a short, harmless id; make one otherwise."""
    return sent if sent is not None and _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex


def _route_template(scope: Scope) -> str:
    """Return the route as declared, so that no caller can make up new labels."""
    route = scope.get("route")
    return str(getattr(route, "path", scope["state"].get("route", "unmatched")))
