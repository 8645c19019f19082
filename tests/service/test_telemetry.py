import io
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import get_args

import cv2
import numpy as np
import onnxruntime as ort
import pytest
from drawn_clips import encode_clip
from drawn_expression_clips import drawn_clip
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from serving import HeldSession, MakeSettings, Pictures, Serve, wait_for
from starlette.types import Receive, Scope, Send
from tiny_model import CLASSES, tiny_spec, write_tiny_model
from tritonclient.http import InferenceServerClient, InferInput

from model.spec import Reference
from service.errors import Cut
from service.gpu_memory import watch_gpu_memory
from service.keys import digest_of, new_token
from service.schemas import Reason
from service.telemetry import Telemetry, TelemetryMiddleware

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"
ALERTS = Path(__file__).parents[2] / "docker" / "prometheus" / "rules" / "mfdan.yml"
COUNTS_OF_THINGS = {"mfdan_batch_size"}
"""Histograms without a unit."""


Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(client: TestClient) -> Samples:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return samples_of(text_string_to_metric_families(response.text))


def samples_of(families: Iterator[Metric]) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def exposed(telemetry: Telemetry) -> Samples:
    return samples_of(text_string_to_metric_families(telemetry.exposition().decode()))


def test_metrics_count_what_was_answered(serve: Serve, pictures: Pictures) -> None:
    with serve() as client:
        client.post("/predict", files=pictures.pair)
        client.post("/predict", files={"onset": pictures.onset, "apex": pictures.onset})
        client.post("/predict", files={"onset": pictures.onset, "apex": b"x"})
        client.post("/predict/batch", files={"onset": pictures.onset, "apex": b"x"})
        found = samples(client)
    assert found["mfdan_requests_total", requests("/predict", 200)] == 2
    assert found["mfdan_requests_total", requests("/predict", 415)] == 1
    assert found["mfdan_requests_total", requests("/predict/batch", 200)] == 1
    assert found["mfdan_rejections_total", (("code", "not_an_image"),)] == 2
    assert found["mfdan_faces_total", ()] == 2
    assert found["mfdan_predictions_total", answered("pair", "some")] == 2
    stands = [value for (name, _), value in found.items() if name == "mfdan_labels_total"]
    assert sorted(stands) == [0, 0, 1]
    abstained = (("model", "tiny"), ("reason", "no_movement"))
    assert found["mfdan_abstentions_total", abstained] == 1
    assert found["mfdan_batch_size_sum", ()] == 2
    stage = (("kind", "pair"), ("stage", "flow"))
    assert found["mfdan_stage_duration_seconds_count", stage] == 2
    assert 0 < found["mfdan_stage_duration_seconds_sum", stage] < 20
    assert found["mfdan_request_duration_seconds_count", (("route", "/predict"),)] == 3
    assert found["mfdan_requests_in_flight", ()] == 1  # the scrape itself
    assert found["mfdan_queue_items", ()] == 0
    assert found["mfdan_queue_clips", ()] == 0
    assert found["mfdan_queue_waiting", ()] == 0
    assert found["mfdan_workers_busy", ()] == 0
    assert found["mfdan_predictions_in_flight", ()] == 0
    assert found["mfdan_ready", ()] == 1
    of_tiny = (("model", "tiny"),)
    assert found["mfdan_batch_duration_seconds_count", of_tiny] == 2
    for resource in ("worker", "network"):
        assert found["mfdan_queue_wait_seconds_count", (("resource", resource),)] >= 2
    assert found["mfdan_confidence_ratio_count", of_tiny] == 1
    assert 0 < found["mfdan_confidence_ratio_sum", of_tiny] <= 1
    assert found["mfdan_motion_moved_pixels_count", of_tiny] == 2
    assert found["mfdan_motion_p95_pixels_sum", of_tiny] > 0
    assert found["mfdan_process_resident_memory_bytes", ()] > 2**20
    assert found["mfdan_process_open_fds", ()] > 0


def test_metrics_count_clips_their_seconds_and_who_chose_their_frames(serve: Serve) -> None:
    clip = encode_clip(drawn_clip(fps=25)[0], 25, options={"crf": "18"})
    with serve() as client:
        found = client.post("/predict", files={"clip": clip}).json()["faces"][0]
        client.post("/predict", files={"clip": clip}, data={"apex_frame": "14"})
        client.post("/predict", files={"clip": b"x"})
        counts = samples(client)
    assert counts["mfdan_clips_total", (("container", "mp4"),)] == 2
    assert counts["mfdan_predictions_total", answered("clip", "some")] == 2
    assert counts["mfdan_clip_seconds_total", ()] == pytest.approx(2.4)
    assert counts["mfdan_candidates_total", (("source", "given"),)] == 1
    spotted = counts["mfdan_candidates_total", (("source", "spotted"),)]
    assert spotted == len(found["candidates"])
    stage = (("kind", "clip"), ("stage", "spot"))
    assert counts["mfdan_stage_duration_seconds_count", stage] == 2
    assert counts["mfdan_rejections_total", (("code", "not_a_clip"),)] == 1


def test_metrics_count_what_was_answered_for_tensors(client: TestClient) -> None:
    arrays = {name: np.zeros((2, 3, 224, 224), np.float32) for name in ("image", "flow")}
    body, head = InferenceServerClient.generate_request_body(
        [InferInput(name, [*a.shape], "FP32").set_data_from_numpy(a) for name, a in arrays.items()]
    )
    headers = {"Inference-Header-Content-Length": str(head)}
    before = samples(client)
    for path in ("/v2/models/tiny/infer", "/v2/models/other/infer"):
        client.post(path, content=body, headers=headers)
    after = samples(client)
    name, seconds = "mfdan_stage_duration_seconds", {}
    for stage in ("infer", "total"):
        labels = (("kind", "tensors"), ("stage", stage))
        assert after[f"{name}_count", labels] - before.get((f"{name}_count", labels), 0) == 1
        seconds[stage] = after[f"{name}_sum", labels] - before.get((f"{name}_sum", labels), 0)
    assert 0 < seconds["infer"] < seconds["total"] < 20


def test_a_pair_without_a_face_is_counted_as_such(serve: Serve, pictures: Pictures) -> None:
    empty = np.full((240, 320, 3), 127, np.uint8)
    encoded = cv2.imencode(".png", empty)[1].tobytes()
    with serve() as client:
        answer = client.post("/predict", files={"onset": encoded, "apex": encoded})
        assert answer.json()["faces"] == []
        client.post("/predict", files=pictures.pair)
        found = samples(client)
    assert found["mfdan_predictions_total", answered("pair", "none")] == 1
    assert found["mfdan_predictions_total", answered("pair", "some")] == 1
    assert found["mfdan_predictions_total", answered("clip", "none")] == 0


def answered(kind: str, faces: str) -> tuple[tuple[str, str], ...]:
    return (("faces", faces), ("kind", kind))


def requests(route: str, status: int) -> tuple[tuple[str, str], ...]:
    return (("method", "POST"), ("route", route), ("status", str(status)))


def test_the_model_is_named_in_the_metrics(client: TestClient) -> None:
    (labels,) = (dict(keys) for (name, keys) in samples(client) if name == "mfdan_model_info")
    assert labels["name"] == "tiny"
    assert labels["provider"] == "CPUExecutionProvider"
    assert re.fullmatch("[0-9a-f]{64}", labels["sha256"])


def test_callers_cannot_make_up_labels(client: TestClient) -> None:
    client.get("/models/made-up-name")
    client.get("/made-up-path")
    client.request("MADEUP", "/models")
    exposition = client.get("/metrics").text
    assert "made-up" not in exposition
    assert "MADEUP" not in exposition
    assert 'route="/models/{name}"' in exposition
    assert 'route="unmatched"' in exposition


def test_every_metric_has_the_prefix_and_two_apps_share_none(serve: Serve) -> None:
    with serve() as one, serve() as other:
        one.get("/models")
        names = {name for name, _ in samples(one)}
        route = (("method", "GET"), ("route", "/models"), ("status", "200"))
        assert samples(one)["mfdan_requests_total", route] == 1
        assert ("mfdan_requests_total", route) not in samples(other)
    assert {name for name in names if not name.startswith("mfdan_")} == set()


def test_a_sent_request_id_is_echoed_in_header_body_and_log(
    serve: Serve, pictures: Pictures, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve() as client:
        headers = {"X-Request-ID": "trace-7.a_B"}
        response = client.post("/predict", files=pictures.pair, headers=headers)
    assert response.headers["x-request-id"] == "trace-7.a_B"
    assert response.json()["request_id"] == "trace-7.a_B"
    (line,) = request_lines(capsys.readouterr().out)
    assert line["request_id"] == "trace-7.a_B"


def request_lines(output: str) -> list[dict]:
    lines = [json.loads(line) for line in output.splitlines()]
    return [line for line in lines if line["event"] == "request"]


@pytest.mark.parametrize("sent", ["", "x" * 65, "a b", '"}{', "ünsafe".encode().decode("latin-1")])
def test_an_unsafe_request_id_is_replaced(client: TestClient, sent: str) -> None:
    answer = client.get("/health/live", headers={"X-Request-ID": sent.encode("latin-1")})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


def test_a_log_line_tells_of_the_request_and_nothing_of_the_picture(
    serve: Serve, pictures: Pictures, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve() as client:
        files = {"onset": ("maria.png", pictures.onset), "apex": ("maria2.png", pictures.smile)}
        client.post("/predict", files=files)
        client.post("/predict", files={"onset": ("maria.png", b"x")})
        client.post("/predict", files={"clip": ("maria.mp4", b"x")})
        for path in ("/health/live", "/v2/health/ready", "/v2/models/tiny/ready"):
            client.get(path)
    output = capsys.readouterr()
    lines = request_lines(output.out)
    assert [(line["route"], line["status"], line["code"]) for line in lines] == [
        ("/predict", 200, None),
        ("/predict", 422, "invalid_fields"),
        ("/predict", 415, "not_a_clip"),
    ]
    assert set(lines[0]) == {
        "request_id",
        "method",
        "route",
        "status",
        "code",
        "duration_ms",
        "event",
        "level",
        "timestamp",
    }
    assert "maria" not in output.out + output.err


def test_lines_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    telemetry = Telemetry("warning", stream)
    telemetry.log.info("quiet")
    telemetry.log.warning("loud")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["loud"]


def test_the_start_is_told_with_all_that_was_chosen(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(onnx_threads=1, opencv_threads=1):
        pass
    line = json.loads(capsys.readouterr().out.splitlines()[0])
    assert line["event"] == "started"
    assert line["threads"] == {"workers": 2, "clip_workers": 1, "opencv": 1, "onnx": 1}
    assert line["device"] == "cpu"
    assert line["host"] == "127.0.0.1"
    assert [model["name"] for model in line["models"]] == ["tiny"]
    assert line["limits"]["queue_items"] == 128
    assert line["version"]


def test_a_request_that_took_too_long_is_counted_where_it_was(
    serve: Serve, held: HeldSession, pictures: Pictures
) -> None:
    with serve(held, deadline_ms=300) as client:
        assert client.post("/predict", files=pictures.pair).status_code == 504
        found = samples(client)
        held.may_go.set()
    why = (("place", "network"), ("why", "deadline"))
    assert found["mfdan_cancellations_total", why] == 1
    assert found["mfdan_rejections_total", (("code", "deadline_exceeded"),)] == 1


def test_an_answer_that_breaks_after_its_beginning_is_counted_as_a_fault(
    make_settings: MakeSettings,
) -> None:
    async def breaks(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise LookupError

    telemetry = Telemetry(stream=io.StringIO())
    app = TelemetryMiddleware(breaks, telemetry, make_settings())
    with pytest.raises(LookupError):
        TestClient(app).get("/")
    assert exposed(telemetry)["mfdan_rejections_total", (("code", "internal_error"),)] == 1


def test_what_never_happened_is_shown_as_zero(serve: Serve) -> None:
    with serve() as client:
        found = samples(client)
    for change in ("loaded", "replaced", "unloaded", "refused"):
        assert found["mfdan_model_changes_total", (("change", change),)] == 0
    for resource in ("worker", "network"):
        assert found["mfdan_worker_deaths_total", (("resource", resource),)] == 0
    assert found["mfdan_cancellations_total", (("place", "waiting"), ("why", "cancelled"))] == 0
    assert found["mfdan_log_lines_lost_total", ()] == 0
    assert found["mfdan_batch_failures_total", (("model", "tiny"),)] == 0


def test_whatever_an_alert_takes_the_increase_of_is_there_from_the_start(serve: Serve) -> None:
    with serve() as client:
        fresh = [(name, dict(labels)) for name, labels in samples(client)]
    alerts = re.findall(r"increase\((\w+)(?:{(.*?)})?\[", ALERTS.read_text())
    assert len(alerts) > 5
    for metric, selector in alerts:
        wanted = [
            [(label, value) for value in values.split("|")]
            for label, values in re.findall(r'(\w+)=~?"(.*?)"', selector)
        ]
        for labels in map(dict, product(*wanted)):
            assert any(name == metric and labels.items() <= of.items() for name, of in fresh), (
                metric,
                labels,
            )


def test_every_code_that_the_api_page_names_begins_at_zero(serve: Serve) -> None:
    page = (DOCS.parent / "api.md").read_text().partition("## Problems")[2]
    rows = re.findall(r"^\| \d{3} \| (.*?) \|", page, re.MULTILINE)
    with serve() as client:
        found = samples(client)
    for code in re.findall("`(.*?)`", "".join(rows)):
        assert found["mfdan_rejections_total", (("code", code),)] == 0


def test_whatever_an_alert_counts_of_requests_is_there_from_the_start(serve: Serve) -> None:
    (routes,) = set(re.findall(r'mfdan_requests_total{route=~"(.*?)"', ALERTS.read_text()))
    failed = re.findall(r'mfdan_requests_total{.*?status=~"(.*?)"}', ALERTS.read_text())
    with serve() as client:
        found = samples(client)
        offered = [
            path for path, methods in client.app.openapi()["paths"].items() if "post" in methods
        ]
    counted = [path for path in offered if re.fullmatch(routes, path)]
    assert len(counted) == 4
    for route, status in product(counted, {"200", *"|".join(failed).split("|")}):
        assert found["mfdan_requests_total", requests(route, int(status))] == 0


def test_a_code_that_no_problem_has_begins_at_zero_too() -> None:
    found = exposed(Telemetry())
    for code in get_args(Cut):
        assert found["mfdan_rejections_total", (("code", code),)] == 0


def test_the_reason_why_a_service_is_not_ready_is_shown(serve: Serve) -> None:
    with serve() as client:
        before = samples(client)
        client.app_state["admission"].drain()
        after = samples(client)
    draining = (("reason", "draining"),)
    assert (before["mfdan_ready", ()], before["mfdan_not_ready", draining]) == (1, 0)
    assert (after["mfdan_ready", ()], after["mfdan_not_ready", draining]) == (0, 1)
    assert sum(value for (name, _), value in after.items() if name == "mfdan_not_ready") == 1


def test_models_that_come_and_go_are_shown_as_they_are(serve: Serve, tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    with serve(models_dir=tmp_path, reload_s=0.05) as client:
        assert models_shown(client) == {"tiny"}
        other = write_tiny_model(tmp_path, replace(tiny_spec(), name="other"))
        wait_for(lambda: models_shown(client) == {"tiny", "other"})
        other.unlink()
        wait_for(lambda: models_shown(client) == {"tiny"})
        found = samples(client)
    assert found["mfdan_model_changes_total", (("change", "loaded"),)] == 1
    assert found["mfdan_model_changes_total", (("change", "unloaded"),)] == 1


def test_every_class_and_reason_of_a_model_begins_at_zero_when_it_is_loaded(
    serve: Serve, tmp_path: Path
) -> None:
    write_tiny_model(tmp_path)
    with serve(models_dir=tmp_path, reload_s=0.05) as client:
        write_tiny_model(tmp_path, replace(tiny_spec(), name="other"))
        wait_for(lambda: samples(client)["mfdan_model_changes_total", (("change", "loaded"),)])
        found = samples(client)
    for model in ("tiny", "other"):
        for label in CLASSES:
            assert found["mfdan_labels_total", (("label", label), ("model", model))] == 0
        for reason in get_args(Reason):
            assert found["mfdan_abstentions_total", (("model", model), ("reason", reason))] == 0


def test_the_reference_of_a_model_is_shown_and_goes_with_it(serve: Serve, tmp_path: Path) -> None:
    shares = {"negative": 0.5, "positive": 0.25, "surprise": 0.125, "abstained": 0.125}
    write_tiny_model(tmp_path)
    reference = Reference(shares=shares, answers=8, protocol="by hand")
    other = write_tiny_model(tmp_path, replace(tiny_spec(), name="z", reference=reference))
    with serve(models_dir=tmp_path, reload_s=0.05) as client:
        assert references(client) == {("z", answer): share for answer, share in shares.items()}
        other.unlink()
        wait_for(lambda: models_shown(client) == {"tiny"})
        assert references(client) == {}


def references(client: TestClient) -> dict[tuple[str, str], float]:
    return {
        (dict(labels)["model"], dict(labels)["answer"]): share
        for (name, labels), share in samples(client).items()
        if name == "mfdan_reference_ratio"
    }


def models_shown(client: TestClient) -> set[str]:
    return {dict(labels)["name"] for name, labels in samples(client) if name == "mfdan_model_info"}


def test_a_gpu_that_was_asked_for_and_not_got_is_shown_and_told(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this machine has what is asked for")
    with serve(device="cuda") as client:
        found = samples(client)
    assert found["mfdan_provider_fallback", (("model", "tiny"),)] == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (line,) = (line for line in lines if line["event"] == "a GPU was asked for and not got")
    assert (line["level"], line["model"]) == ("warning", "tiny")


def test_a_caller_is_counted_and_logged_by_the_name_of_the_key(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = new_token()
    path = tmp_path / "keys.toml"
    path.write_text(f'[keys.clinic]\nsha256 = "{digest_of(token).hex()}"\n')
    path.chmod(0o600)
    with serve(api_keys_file=path) as client:
        client.get("/models", headers={"X-API-Key": token})
        client.get("/models")
        client.headers["X-API-Key"] = token
        found = samples(client)
    clinic = (("caller", "clinic"), ("status", "200"))
    assert found["mfdan_caller_requests_total", clinic] == 1
    assert [line.get("caller") for line in request_lines(capsys.readouterr().out)] == [
        "clinic",
        None,
    ]


def test_a_scrape_by_a_thread_sees_the_same_state(serve: Serve) -> None:
    with serve() as client:
        found = exposed(client.app_state["telemetry"])
        assert found.keys() - samples(client).keys() == set()
    assert found["mfdan_ready", ()] == 1
    assert found["mfdan_limit", (("of", "workers"),)] == 2


def test_a_scrape_while_the_event_loop_hangs_still_shows_the_counts(serve: Serve) -> None:
    with serve() as client:
        client.get("/models")
        hangs, may_go_on = threading.Event(), threading.Event()

        def hang() -> None:
            hangs.set()
            may_go_on.wait(20)

        stuck = threading.Thread(target=client.portal.call, args=(hang,))
        stuck.start()
        assert hangs.wait(20)
        found = exposed(client.app_state["telemetry"])
        may_go_on.set()
        stuck.join()
    route = (("method", "GET"), ("route", "/models"), ("status", "200"))
    assert found["mfdan_requests_total", route] == 1
    assert ("mfdan_ready", ()) not in found


def test_what_breaks_in_the_engine_is_counted_and_told_without_messages() -> None:
    stream = io.StringIO()
    telemetry = Telemetry("info", stream)
    telemetry.worker_died("worker")
    telemetry.batch_failed("tiny", 4, ValueError("maria.png"))
    telemetry.model_changed("tiny", "refused", "the hash does not fit")
    telemetry.model_changed("tiny", "replaced")
    found = exposed(telemetry)
    assert found["mfdan_worker_deaths_total", (("resource", "worker"),)] == 1
    assert found["mfdan_batch_failures_total", (("model", "tiny"),)] == 1
    assert found["mfdan_model_changes_total", (("change", "refused"),)] == 1
    assert found["mfdan_model_changes_total", (("change", "replaced"),)] == 1
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["level"] for line in lines] == ["error", "error", "error", "info"]
    assert lines[1]["fault"] == "ValueError"
    assert lines[2]["fault"] == "the hash does not fit"
    assert "maria" not in stream.getvalue()


def test_a_full_disk_under_the_log_fails_no_request_and_is_counted(
    serve: Serve, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr("sys.stdout", full)
        with serve() as client:
            assert client.post("/predict", files=pictures.pair).status_code == 200
            found = samples(client)
    assert found["mfdan_log_lines_lost_total", ()] == 2  # the start and the request


def test_every_family_is_well_formed_and_its_name_ends_in_its_base_unit(
    client: TestClient,
) -> None:
    for family in text_string_to_metric_families(client.get("/metrics").text):
        assert re.fullmatch("mfdan_[a-z0-9_]+", family.name)
        assert family.documentation.endswith(".")
        assert not re.search("_(ms|milliseconds|kb|mb|px|percent|count|sum|bucket)$", family.name)
        if family.type == "histogram" and family.name not in COUNTS_OF_THINGS:
            assert re.search("_(seconds|pixels|ratio|bytes)$", family.name)
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")
            assert sample.labels.keys().isdisjoint({"le", "quantile"} - {"le"})


def test_the_operations_page_names_every_metric_and_no_other(
    client: TestClient, pictures: Pictures
) -> None:
    client.post("/predict", files=pictures.pair)
    of_gpus = CollectorRegistry()
    watch_gpu_memory(of_gpus, fake_nvml())
    exposition = client.get("/metrics").text + generate_latest(of_gpus).decode()
    families = set(re.findall(r"^# TYPE (\S+)", exposition, re.MULTILINE))
    page = DOCS.read_text()
    named = set(re.findall(r"mfdan_[a-z0-9_]+[a-z0-9]", page)) - {"mfdan_process"}
    taken_together = re.compile("_process_|_created$")
    assert {name for name in families - named if not taken_together.search(name)} == set()
    assert {name.removesuffix("_bucket") for name in named} - families == set()


class NvmlError(Exception):
    """As the driver's library raises it."""


def fake_nvml(*, driver: bool = True) -> ModuleType:
    """The interface of `pynvml`: two GPUs, the second of which has fallen off the bus."""

    def init() -> None:
        if not driver:
            raise NvmlError

    def memory(handle: str) -> SimpleNamespace:
        if handle == "gpu 1":
            raise NvmlError
        return SimpleNamespace(used=3 * 2**30, total=8 * 2**30)

    nvml = ModuleType("pynvml")
    nvml.NVMLError = NvmlError
    nvml.nvmlInit = init
    nvml.nvmlDeviceGetCount = lambda: 2
    nvml.nvmlDeviceGetHandleByIndex = lambda index: f"gpu {index}"
    nvml.nvmlDeviceGetMemoryInfo = memory
    return nvml


def test_the_memory_of_gpus_is_shown_and_one_that_does_not_answer_is_told() -> None:
    telemetry = Telemetry()
    assert watch_gpu_memory(telemetry.registry, fake_nvml())
    found = exposed(telemetry)
    first, second = (("gpu", "0"),), (("gpu", "1"),)
    assert found["mfdan_gpu_memory_used_bytes", first] == 3 * 2**30
    assert found["mfdan_gpu_memory_total_bytes", first] == 8 * 2**30
    assert (found["mfdan_gpu_answers", first], found["mfdan_gpu_answers", second]) == (1, 0)
    assert ("mfdan_gpu_memory_used_bytes", second) not in found


def test_a_driver_that_has_lost_its_gpus_leaves_the_metrics_readable() -> None:
    def lost(*_: object) -> None:
        raise NvmlError

    nvml, telemetry = fake_nvml(), Telemetry()
    assert watch_gpu_memory(telemetry.registry, nvml)
    nvml.nvmlDeviceGetCount = nvml.nvmlDeviceGetHandleByIndex = lost
    found = exposed(telemetry)
    assert [found["mfdan_gpu_answers", (("gpu", gpu),)] for gpu in ("0", "1")] == [0, 0]


def test_without_a_driver_nothing_is_shown_of_gpus() -> None:
    registry = CollectorRegistry()
    assert not watch_gpu_memory(registry, fake_nvml(driver=False))
    assert not [*registry.collect()]


def test_on_a_cpu_no_gpu_is_asked_for_its_memory(client: TestClient) -> None:
    assert "mfdan_gpu" not in client.get("/metrics").text
