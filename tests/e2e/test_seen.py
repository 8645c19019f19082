"""What `mfdan serve` itself adds to what is seen: libraries' lines, connections, refused traces."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from serving import wait_for
from tiny_model import write_tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    write_tiny_model(tmp_path)
    return {"PATH": "", "MFDAN_MODELS_DIR": str(tmp_path), "MFDAN_PORT": "0"}


@pytest.fixture
def process(variables: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = start(variables)
    yield process
    process.kill()
    process.communicate()


def start(variables: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from service.cli import app; app()", "serve"],
        env=variables,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_lines_of_the_server_are_json_and_connections_are_counted(
    process: subprocess.Popen[str],
) -> None:
    assert process.stderr is not None
    found = re.search(r"http://127\.0\.0\.1:(\d+)", process.stderr.readline())
    assert found is not None
    url, port = found[0], int(found[1])
    wait_for(lambda: answers(url))
    with socket.create_connection(("127.0.0.1", port)) as idle:
        assert "\nmfdan_connections 2.0\n" in httpx2.get(f"{url}/metrics").text
        idle.sendall(b"maria\r\n\r\n")
        assert idle.recv(64).startswith(b"HTTP/1.1 400")
    process.terminate()
    out, _ = process.communicate(timeout=20)
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[0]["event"] == "started"
    assert all(line.keys() >= {"event", "level", "timestamp"} for line in lines)
    (told,) = (line for line in lines if line.get("status") == 400)
    assert (told["event"], told["code"]) == ("request", "malformed_request")
    assert "maria" not in out


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health/live").is_success
    except httpx2.TransportError:
        return False


def test_traces_that_cannot_be_sent_end_the_start_in_one_sentence(
    variables: dict[str, str],
) -> None:
    process = start(variables | {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"})
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("mfdan: traces: ")
    assert len(err.splitlines()) == 1
