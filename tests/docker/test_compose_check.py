"""`check`, run on this machine as docker-compose.yml has it, beside what is well and is not."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from composed import NOWHERE, Up, program
from typer.testing import CliRunner

Answers = dict[str, tuple[int, object]]
PROMETHEUS: Answers = {
    "/api/v1/targets": (
        200,
        {
            "data": {
                "activeTargets": [
                    {
                        "labels": {"instance": "mfdan:9000", "job": "mfdan"},
                        "scrapeUrl": "http://mfdan:9000/metrics",
                        "lastError": "",
                        "health": "up",
                    }
                ]
            }
        },
    ),
    "/api/v1/rules": (
        200,
        {
            "data": {
                "groups": [
                    {
                        "rules": [
                            {"name": "mfdan:drift", "health": "ok", "type": "recording"},
                            {"name": "MfdanSlow", "health": "ok", "state": "firing"},
                        ]
                    }
                ]
            }
        },
    ),
}
GRAFANA: Answers = {
    "/api/health": (200, {"database": "ok"}),
    "/api/datasources/uid/prometheus/health": (200, {"status": "OK", "message": "works"}),
    "/api/search": (200, [{"title": "The service"}]),
}
DOWN = "connection refused"


def with_target(**changed: str) -> Answers:
    answer = json.loads(json.dumps(PROMETHEUS["/api/v1/targets"][1]))
    answer["data"]["activeTargets"][0] |= changed
    return {**PROMETHEUS, "/api/v1/targets": (200, answer)}


@contextmanager
def answering(answers: Mapping[str, tuple[int, object]]) -> Iterator[str]:
    """Stand for a program that is not to be had here; answer as its API documents."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.get(self.path.partition("?")[0], (404, {}))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def checked(up: Up, prometheus: str = NOWHERE, grafana: str = NOWHERE, **at: str) -> list[str]:
    """Run the program `check` with what stands for the others; return its lines, status first."""
    said = {"prometheus:9090": prometheus, "grafana:3000": grafana, **at}
    command = up.run("check", **said).command
    asked = CliRunner().invoke(program("check").app, command[2:])
    return [str(asked.exit_code), *asked.stdout.splitlines(), *asked.stderr.splitlines()]


def test_check_finds_all_well_and_tells_what_fires(up: Up) -> None:
    with answering(PROMETHEUS) as prometheus, answering(GRAFANA) as grafana:
        status, *lines = checked(up, prometheus, grafana)
    assert status == "0"
    assert lines == [
        f"ok     mfdan is ready on {up.process.url}",
        "ok     it takes the key in caller.key, and serves mfdan-synthetic",
        "ok     Prometheus reaches mfdan",
        "ok     it evaluates 2 rules; firing: MfdanSlow",
        "ok     Grafana takes its password, and can ask Prometheus",
        "ok     it shows The service",
    ]


def test_check_says_for_each_that_is_down_what_to_do(up: Up) -> None:
    status, *lines = checked(up, **{"mfdan:8000": NOWHERE})
    assert status == "1"
    assert [line.split(" does not answer on ")[0] for line in lines] == [
        "wrong  mfdan",
        "wrong  Prometheus",
        "wrong  Grafana",
    ]
    assert all("docker compose logs" in line for line in lines)


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (
            with_target(health="down", lastError=DOWN),
            f"Prometheus cannot reach http://mfdan:9000/metrics: {DOWN}",
        ),
        (with_target(health="unknown"), "has not asked http://mfdan:9000/metrics yet"),
        (with_target(labels={"job": "other"}), "scrapes no job mfdan"),
        ({**PROMETHEUS, "/api/v1/rules": (200, {"data": {"groups": []}})}, "has no rules"),
        ({**PROMETHEUS, "/api/v1/rules": (503, {"error": "starting"})}, "(503): starting"),
        ({}, "refuses targets"),
    ],
)
def test_check_says_what_is_wrong_with_prometheus(up: Up, answers: Answers, words: str) -> None:
    with answering(answers) as prometheus, answering(GRAFANA) as grafana:
        status, *lines = checked(up, prometheus, grafana)
    assert status == "1"
    assert [words in line for line in lines if line.startswith("wrong")] == [True]


@pytest.mark.parametrize(
    ("path", "answer", "words"),
    [
        ("/api/health", (503, {}), "Grafana is not well (503)"),
        ("/api/datasources/uid/prometheus/health", (401, {}), "reset-admin-password"),
        (
            "/api/datasources/uid/prometheus/health",
            (400, {"message": "no such host"}),
            "Grafana cannot ask Prometheus (400): no such host",
        ),
        ("/api/search", (200, []), "shows no dashboard"),
    ],
)
def test_check_says_what_is_wrong_with_grafana(
    up: Up, path: str, answer: tuple[int, object], words: str
) -> None:
    with answering(PROMETHEUS) as prometheus, answering({**GRAFANA, path: answer}) as grafana:
        status, *lines = checked(up, prometheus, grafana)
    assert status == "1"
    assert [words in line for line in lines if line.startswith("wrong")] == [True]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (b"\xff\xfe", "cannot be read (it is no ASCII text): "),
        ("schl\u00fcssel".encode(), "cannot be read (it is no ASCII text): "),
        (b"one\ntwo", "cannot be read (it is more than one line): "),
        (None, "cannot be read (No such file or directory): "),
    ],
)
def test_check_says_what_to_do_about_a_key_that_cannot_be_sent(
    up: Up, tmp_path: Path, key: bytes | None, words: str
) -> None:
    check = program("check")
    if key is not None:
        (tmp_path / "caller.key").write_bytes(key)
    with pytest.raises(check.Wrong) as told:
        list(check.look_at_service(up.process.url, tmp_path / "caller.key"))
    assert f"{tmp_path / 'caller.key'} {words}put a key there that is in the file" in str(
        told.value
    )
