"""Traces: a span for each request, and below it one for each stage of an answer.

Off unless OTEL_EXPORTER_OTLP_ENDPOINT says where to send them, or a program hands in a provider of
its own. A span holds routes, codes, durations and counts: no path, query, body, file name, answer
or message of an exception.
"""

import asyncio
import os
import re
import threading
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace

from service.answers import Moments
from service.schemas import Prediction

if TYPE_CHECKING:  # of the extra `traces`
    from opentelemetry.sdk.trace import TracerProvider as SdkProvider
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["Tracing", "TracingRefused", "is_probe"]

_PROBE = re.compile(r"/metrics|(/v2)?/health/(live|ready)|/v2/models/[^/]+(/versions/[^/]+)?/ready")
_NS_PER_MS = 1_000_000
_FLUSH_S = 5.0
"""What a collector is given to take the last spans at shutdown."""


class TracingRefused(Exception):
    """Traces are asked for and cannot be sent; the message says why."""


class Tracing:
    """The traces of one app.

    `provider` is the program's own, and stays its own to shut down. Without one the environment
    decides. Raises: TracingRefused.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._exporter: SpanExporter | None = None
        self._own: SdkProvider | None = None
        if provider is None and (endpoint := _endpoint()):
            self._own, self._exporter = _provider(endpoint)
        self._provider = provider or self._own
        # Without a provider it makes spans of nothing, for nothing.
        self._tracer = (self._provider or trace.NoOpTracerProvider()).get_tracer(
            "mfdan", version("mfdan")
        )

    @property
    def config(self) -> TelemetryConfig:
        """What FastAPI is told: spans of requests, and nothing else."""
        return {
            "tracing": self._provider is not None,
            "tracer_provider": self._provider,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
            "exclude": _is_left_out,
        }

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Send spans while this lasts; at the end the last ones, unless that takes too long."""
        if self._own is None or self._exporter is None:
            yield
            return
        from opentelemetry.sdk.trace.export import (  # noqa: PLC0415 - of the extra `traces`
            BatchSpanProcessor,
        )

        self._own.add_span_processor(BatchSpanProcessor(self._exporter))
        try:
            yield
        finally:
            # A thread of its own, which the end of the process does not wait for.
            flush = threading.Thread(target=self._own.shutdown, daemon=True)
            flush.start()
            await asyncio.to_thread(flush.join, _FLUSH_S)

    def tell_stages(self, prediction: Prediction, moments: Moments) -> None:
        """Add to the present request's span what one of its pairs, or its clip, went through.

        The stages inside a worker stand one after the other in their order: of a clip, whose frames
        go through several of them in turns, each is the sum.
        """
        if not trace.get_current_span().is_recording():
            return
        span = self._tracer.start_span(
            "predict",
            start_time=moments.asked_ns,
            attributes={
                "mfdan.kind": "pair" if prediction.clip is None else "clip",
                "mfdan.model": prediction.model.name,
                "mfdan.provider": prediction.provider,
                "mfdan.faces": len(prediction.faces),
            },
        )
        below = trace.set_span_in_context(span)

        def tell(stage: str, start_ns: int, end_ns: int) -> None:
            self._tracer.start_span(stage, below, start_time=start_ns).end(end_ns)

        tell("wait", moments.asked_ns, moments.begun_ns)
        start = moments.begun_ns
        for stage, ms in prediction.timings_ms.items():
            if stage == "infer":
                tell("infer", moments.prepared_ns, moments.inferred_ns)
                if moments.resumed_ns > moments.inferred_ns:
                    tell("wait", moments.inferred_ns, moments.resumed_ns)
                start = moments.resumed_ns
            elif stage != "total":
                end = start + round(ms * _NS_PER_MS)
                tell(stage, start, end)
                start = end
        span.end(moments.answered_ns)

    @staticmethod
    def trace_id() -> str | None:
        """Return the id of the present request's trace; None where it has none."""
        context = trace.get_current_span().get_span_context()
        return trace.format_trace_id(context.trace_id) if context.is_valid else None

    def tell_request(self, request_id: str, route: str, code: str | None) -> None:
        """Complete the present request's span, and take from it what the caller made up."""
        span = trace.get_current_span()
        if self._provider is not None and span.is_recording():  # or else it is none of ours
            span.set_attributes(
                {"mfdan.request_id": request_id, "url.path": route, "url.query": ""}
                | ({} if code is None else {"mfdan.code": code})
            )


def is_probe(path: str) -> bool:
    """Whether a path is asked for every few seconds, and of no interest while it answers."""
    return _PROBE.fullmatch(path) is not None


def _is_left_out(scope: MutableMapping[str, Any]) -> bool:
    return is_probe(scope["path"])


def _endpoint() -> str | None:
    """Return where spans shall be sent, as OpenTelemetry's own variables say; None: nowhere."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if off or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    if endpoint := os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        return endpoint
    base = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return f"{base.removesuffix('/')}/v1/traces" if base else None


def _provider(endpoint: str) -> tuple["SdkProvider", "SpanExporter"]:
    where = urlsplit(endpoint)
    if where.scheme not in {"http", "https"} or not where.hostname:
        raise TracingRefused("traces: OTEL_EXPORTER_OTLP_ENDPOINT is not an http or https address")
    protocol = os.environ.get(
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    )
    if protocol not in {None, "", "http/protobuf"}:
        raise TracingRefused(f"traces: they are sent by http/protobuf, not by {protocol}")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - extra
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import (  # noqa: PLC0415 - extra
            OTELResourceDetector,
            Resource,
        )
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - extra
    except ImportError:
        raise TracingRefused("traces: install the extra, pip install mfdan[traces]") from None
    ours = Resource({"service.name": "mfdan", "service.version": version("mfdan")})
    # What the environment says of the service goes before what we say.
    named = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
    exporter = OTLPSpanExporter(endpoint=endpoint)
    return TracerProvider(resource=named, shutdown_on_exit=False), exporter
