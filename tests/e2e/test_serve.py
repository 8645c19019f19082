"""The command `mfdan serve` as an operator meets it: a process, a port, signals."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from serving import Pictures, wait_for
from tiny_model import write_tiny_model

from service.settings import Settings

READY_WITHIN_CPU_S = 4.0
"""Processor time of all threads, from the start of the process until it is ready. It stands for
the time on the clock, which these tests do not assert: on an idle machine of one core it is no
less, on a loaded machine it says nothing of the process. A start that sleeps would pass."""
BUNDLED = Settings().models_dir


@contextmanager
def serving_process(folder: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    environment = {"MFDAN_MODELS_DIR": str(folder), "MFDAN_PORT": "0", **variables}
    process = subprocess.Popen(
        [sys.executable, "-c", "from service.cli import app; app()", "serve"],
        env={"PATH": "", **environment},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def address(process: subprocess.Popen[str]) -> str:
    """Return where the process says that it serves, once it is ready."""
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"serves (\S+) on (\S+)", line):
            url = found[2]
            break
    else:
        raise AssertionError(f"it ended with {process.wait()} before it had an address")
    wait_for(lambda: process.poll() is not None or is_ready(url))
    assert process.poll() is None, process.communicate()
    return url


def is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health/ready", timeout=1).is_success
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    write_tiny_model(path)
    return path


def test_a_process_is_ready_within_its_processor_time_answers_and_stops_at_a_signal(
    folder: Path,
) -> None:
    pictures = Pictures()
    with serving_process(folder) as process:
        url = address(process)
        assert metric(url, "mfdan_process_cpu_seconds_total") < READY_WITHIN_CPU_S
        body = httpx2.post(f"{url}/predict", files=pictures.pair).json()
        assert len(body["faces"]) == 1
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert process.returncode in {0, -signal.SIGTERM}
    assert "Traceback" not in err
    assert body["request_id"] in out


def test_the_bundled_model_is_ready_within_its_processor_time_and_abstains_on_one_frame() -> None:
    pictures = Pictures()
    with serving_process(BUNDLED) as process:
        url = address(process)
        assert metric(url, "mfdan_process_cpu_seconds_total") < READY_WITHIN_CPU_S
        files = {"onset": pictures.onset, "apex": pictures.onset}
        (face,) = httpx2.post(f"{url}/predict", files=files).json()["faces"]
        assert face["reason"] == "no_movement"
        (face,) = httpx2.post(f"{url}/predict", files=pictures.pair).json()["faces"]
        assert face["reason"] != "no_movement"


def test_a_request_under_way_is_answered_although_the_process_was_told_to_stop(
    folder: Path,
) -> None:
    pictures = Pictures()
    files = [("onset", pictures.onset)] * 16 + [("apex", pictures.smile)] * 16
    request = httpx2.Request("POST", "http://127.0.0.1/predict/batch", files=files)
    body = request.read()
    with serving_process(folder, MFDAN_WORKER_THREADS="1") as process:
        url = address(process)
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as connection:
            connection.settimeout(30)
            head = "POST /predict/batch HTTP/1.1\r\nHost: here\r\nConnection: close\r\n"
            for name in ("Content-Type", "Content-Length"):
                head += f"{name}: {request.headers[name]}\r\n"
            connection.sendall(head.encode() + b"\r\n" + body)
            wait_for(lambda: metric(url, "mfdan_queue_items") > 0)
            process.send_signal(signal.SIGTERM)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        process.communicate(timeout=20)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b'"label"') == 16


def metric(url: str, name: str) -> float:
    for line in httpx2.get(f"{url}/metrics").text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    raise AssertionError(f"no {name} in the metrics")


def test_a_port_in_use_ends_the_process(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with serving_process(folder, MFDAN_PORT=port) as process:
            process.communicate(timeout=20)
            assert process.returncode != 0
