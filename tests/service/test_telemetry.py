import io
import json
import re

import pytest
from drawn_clips import encode_clip
from drawn_expression_clips import drawn_clip
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from serving import Pictures, Serve

from service.telemetry import Telemetry


def samples(client: TestClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


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
    stands = [value for (name, _), value in found.items() if name == "mfdan_labels_total"]
    assert stands == [1]
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
    assert found["mfdan_ready", ()] == 1


def test_metrics_count_clips_their_seconds_and_who_chose_their_frames(serve: Serve) -> None:
    clip = encode_clip(drawn_clip(fps=25)[0], 25, options={"crf": "18"})
    with serve() as client:
        found = client.post("/predict", files={"clip": clip}).json()["faces"][0]
        client.post("/predict", files={"clip": clip}, data={"apex_frame": "14"})
        client.post("/predict", files={"clip": b"x"})
        counts = samples(client)
    assert counts["mfdan_clips_total", (("container", "mp4"),)] == 2
    assert counts["mfdan_clip_seconds_total", ()] == pytest.approx(2.4)
    assert counts["mfdan_candidates_total", (("source", "given"),)] == 1
    spotted = counts["mfdan_candidates_total", (("source", "spotted"),)]
    assert spotted == len(found["candidates"])
    stage = (("kind", "clip"), ("stage", "spot"))
    assert counts["mfdan_stage_duration_seconds_count", stage] == 2
    assert counts["mfdan_rejections_total", (("code", "not_a_clip"),)] == 1


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
        client.get("/health/live")
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
