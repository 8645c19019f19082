import io
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from drawn_clips import encode_clip
from drawn_expression_clips import drawn_clip
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from serving import MakeSettings, Pictures

from service.app import create_app
from service.engine import Engine
from service.settings import Settings
from service.tracing import Tracing, TracingRefused

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
TRACED = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
STAGES_OF_A_PAIR = ["wait", "decode", "detect", "align", "flow", "quality", "tensors", "infer"]
STAGES_OF_A_CLIP = [*STAGES_OF_A_PAIR[:3], "spot", *STAGES_OF_A_PAIR[3:]]


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(make_settings: MakeSettings, spans: InMemorySpanExporter) -> Iterator[TestClient]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    with warm(make_settings(), provider) as client:
        yield client


@contextmanager
def warm(settings: Settings, provider: TracerProvider | None = None) -> Iterator[TestClient]:
    with TestClient(create_app(settings, Engine.open, provider)) as client:
        client.portal.call(client.app_state["engine"].warmed_up)
        yield client


def one(spans: InMemorySpanExporter, name: str) -> ReadableSpan:
    (span,) = (span for span in spans.get_finished_spans() if span.name == name)
    return span


def below(spans: InMemorySpanExporter, parent: ReadableSpan) -> list[ReadableSpan]:
    found = [
        span
        for span in spans.get_finished_spans()
        if span.parent is not None and span.parent.span_id == parent.context.span_id
    ]
    return sorted(found, key=lambda span: span.start_time)


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """A collector of OTLP over HTTP on this machine; yields its address and what it was sent."""
    taken: list[ExportTraceServiceRequest] = []

    class Take(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            taken.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", taken
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def test_a_request_joins_the_callers_trace(
    traced: TestClient, spans: InMemorySpanExporter, pictures: Pictures
) -> None:
    answer = traced.post("/predict", files=pictures.pair, headers=TRACED)
    request = one(spans, "POST /predict")
    assert f"{request.context.trace_id:032x}" == TRACE_ID
    assert f"{request.parent.span_id:016x}" == PARENT_ID
    assert request.attributes["http.route"] == "/predict"
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["mfdan.request_id"] == answer.json()["request_id"]


def test_the_stages_of_a_pair_are_spans_in_their_order_within_the_request(
    traced: TestClient, spans: InMemorySpanExporter, pictures: Pictures
) -> None:
    answer = traced.post("/predict", files=pictures.pair).json()
    request = one(spans, "POST /predict")
    (predict,) = below(spans, request)
    assert dict(predict.attributes) == {
        "mfdan.kind": "pair",
        "mfdan.model": "tiny",
        "mfdan.provider": "CPUExecutionProvider",
        "mfdan.faces": 1,
    }
    stages = below(spans, predict)
    assert [stage.name for stage in stages] == STAGES_OF_A_PAIR
    for earlier, later in itertools.pairwise(stages):
        assert earlier.end_time <= later.start_time
    for stage in stages[1:-1]:
        told = answer["timings_ms"][stage.name] * 1e6
        assert stage.end_time - stage.start_time == pytest.approx(told, abs=1e3)
    assert request.start_time <= predict.start_time
    assert predict.start_time == stages[0].start_time
    assert predict.end_time == stages[-1].end_time <= request.end_time


def test_a_clip_and_each_pair_of_a_batch_have_spans_of_their_own(
    traced: TestClient, spans: InMemorySpanExporter, pictures: Pictures
) -> None:
    files = [("onset", pictures.onset), ("apex", pictures.smile)] * 2
    traced.post("/predict/batch", files=files)
    assert len(below(spans, one(spans, "POST /predict/batch"))) == 2
    clip = encode_clip(drawn_clip(fps=25)[0], 25, options={"crf": "18"})
    traced.post("/predict", files={"clip": clip})
    (predict,) = below(spans, one(spans, "POST /predict"))
    assert predict.attributes["mfdan.kind"] == "clip"
    stages = [stage.name for stage in below(spans, predict)]
    assert stages == STAGES_OF_A_CLIP


def test_no_span_holds_anything_that_the_caller_sent(
    traced: TestClient, spans: InMemorySpanExporter, pictures: Pictures
) -> None:
    files = {"onset": ("maria.png", pictures.onset), "apex": ("maria2.png", pictures.smile)}
    traced.post("/predict?name=maria", files=files, data={"model": "maria"})
    traced.post("/predict", files=files, data={"maria": "maria"})
    traced.post("/predict", files={"onset": ("maria", b"x"), "apex": ("maria", b"maria")})
    traced.get("/models/maria?maria=maria")
    traced.get("/maria.png")
    found = spans.get_finished_spans()
    assert "maria" not in " ".join(span.to_json() for span in found)
    codes = {span.attributes.get("mfdan.code") for span in found}
    assert codes == {"model_not_found", "invalid_fields", "not_an_image", "not_found"}
    assert [event for span in found for event in span.events] == []


def test_a_fault_that_nobody_foresaw_is_a_failed_span_without_its_message(
    make_settings: MakeSettings, spans: InMemorySpanExporter
) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    app = create_app(make_settings(), tracer_provider=provider)

    @app.get("/broken")
    async def broken() -> None:
        raise ValueError("maria.png")

    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/broken").status_code == 500
    span = one(spans, "GET /broken")
    assert not span.status.is_ok
    assert span.attributes["mfdan.code"] == "internal_error"
    assert "maria" not in span.to_json()


def test_health_checks_and_scrapes_have_no_spans(
    traced: TestClient, spans: InMemorySpanExporter
) -> None:
    for path in ("/health/live", "/health/ready", "/metrics", "/v2/models/tiny/ready"):
        assert traced.get(path).is_success
    assert spans.get_finished_spans() == ()


def test_a_traced_requests_line_names_its_trace(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = io.StringIO()
    monkeypatch.setattr("sys.stdout", output)
    for provider in (TracerProvider(shutdown_on_exit=False), None):
        with TestClient(create_app(make_settings(), tracer_provider=provider)) as client:
            client.get("/models", headers=TRACED)
    lines = [json.loads(line) for line in output.getvalue().splitlines()]
    found = [line.get("trace_id") for line in lines if line["event"] == "request"]
    assert found == [TRACE_ID, None]


def test_spans_reach_a_collector_that_the_environment_names(
    make_settings: MakeSettings, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector() as (address, taken):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        with warm(make_settings()) as client:
            client.post("/predict", files=pictures.pair, headers=TRACED)
    resources = [resource for export in taken for resource in export.resource_spans]
    names = [
        span.name
        for resource in resources
        for scope in resource.scope_spans
        for span in scope.spans
        if span.trace_id.hex() == TRACE_ID
    ]
    assert sorted(names) == sorted(["POST /predict", "predict", *STAGES_OF_A_PAIR])
    about = {pair.key: pair.value.string_value for pair in resources[0].resource.attributes}
    assert about["service.name"] == "mfdan"


def test_the_environment_may_name_the_service(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector() as (address, taken):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "clinic")
        with warm(make_settings()) as client:
            client.get("/models")
    (resource,) = taken[0].resource_spans
    about = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert about["service.name"] == "clinic"


def test_a_collector_that_is_down_fails_no_request(
    make_settings: MakeSettings, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    monkeypatch.setattr("service.tracing._FLUSH_S", 0.1)
    with warm(make_settings()) as client:
        for _ in range(3):
            assert client.post("/predict", files=pictures.pair).status_code == 200


def test_a_collector_that_hangs_holds_up_no_request_and_no_shutdown(
    make_settings: MakeSettings, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "300")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    monkeypatch.setattr("service.tracing._FLUSH_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        begin = time.monotonic()
        with warm(make_settings()) as client:
            client.get("/models")
            connection, _ = listener.accept()  # the collector has it, and is silent
            assert client.post("/predict", files=pictures.pair).status_code == 200
        assert time.monotonic() - begin < 20  # OpenTelemetry itself would wait for 30
        connection.close()


@pytest.mark.parametrize(
    ("variable", "value", "word"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "address"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "ftp://collector", "address"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "grpc"),
    ],
)
def test_a_collector_that_cannot_be_sent_to_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, word: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv(variable, value)
    with pytest.raises(TracingRefused, match=word):
        Tracing()


@pytest.mark.parametrize("off", [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")])
def test_the_environment_may_turn_traces_off(
    monkeypatch: pytest.MonkeyPatch, off: tuple[str, str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv(*off)
    assert not Tracing().config["tracing"]


def test_without_the_extra_the_service_runs_and_only_traces_are_refused() -> None:
    code = """
import os, sys
sys.modules.update({"opentelemetry.sdk": None, "opentelemetry.exporter": None})
from service.app import create_app
from service.tracing import TracingRefused
create_app()
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:4318"
try:
    create_app()
except TracingRefused as error:
    print(error)
"""
    run = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "pip install mfdan[traces]" in run.stdout
