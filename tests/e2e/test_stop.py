"""How `mfdan serve` ends: by a signal under load, by two, by one that nobody can hear."""

import json
import signal
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from connecting import metric, posted, read_answer
from processes import Process, serving_process
from serving import Pictures, wait_for
from tiny_model import write_tiny_model

CALLERS = 4
ANSWERED_BEFORE = 8
BEGUN = (
    b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Length: 1000\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return Pictures()


class Load:
    """Callers who send pairs, one after another, until they are sent away or told to stop."""

    def __init__(self, url: str, pictures: Pictures) -> None:
        self.answers: list[httpx2.Response] = []
        self.faults: list[httpx2.TransportError] = []
        self.enough = threading.Event()
        self._url = url
        self._pictures = pictures
        self._threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def _call(self) -> None:
        with httpx2.Client(timeout=30) as client:
            while not self.enough.is_set():
                try:
                    answer = client.post(f"{self._url}/predict", files=self._pictures.pair)
                except httpx2.TransportError as error:
                    self.faults.append(error)
                    return
                self.answers.append(answer)
                if not answer.is_success:
                    return

    def end(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


def test_sigterm_under_load_answers_all_it_accepted_and_ends_with_0(
    models: Path, pictures: Pictures
) -> None:
    with serving_process(models, MFDAN_DRAIN_GRACE_S="1.5") as process:
        process.wait_until_ready()
        load = Load(process.url, pictures)
        wait_for(lambda: len(load.answers) >= ANSWERED_BEFORE)
        process.popen.send_signal(signal.SIGTERM)
        load.end()
        assert process.end() == 0
    assert load.faults == []
    refused = [one for one in load.answers if not one.is_success]
    assert [one.json()["code"] for one in refused] == ["draining"] * CALLERS
    assert {one.headers["retry-after"] for one in refused} == {"1"}
    lines = [json.loads(line) for line in process.written.splitlines()]
    logged = [one["status"] for one in lines if one.get("route") == "/predict"]
    assert sorted(logged) == sorted(one.status_code for one in load.answers)
    assert "Traceback" not in process.said


def test_while_it_drains_the_port_is_open_and_who_was_admitted_is_answered(
    models: Path, pictures: Pictures
) -> None:
    files = 16 * [("onset", pictures.onset), ("apex", pictures.smile)]
    with (
        serving_process(models, subprocess.DEVNULL, MFDAN_WORKER_THREADS="1") as process,
        ThreadPoolExecutor(1) as pool,
    ):
        process.wait_until_ready()
        batch = f"{process.url}/predict/batch"
        first = pool.submit(httpx2.post, batch, files=files, timeout=60)
        wait_for(lambda: metric(process.url, "mfdan_queue_items") > 0)
        process.popen.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx2.get(f"{process.url}/health/ready").status_code == 503)
        answer = first.result()
        assert process.end() == 0
    assert [one["faces"][0]["reason"] for one in answer.json()["results"]] == [None] * 16


def test_whoever_never_ends_his_upload_does_not_hold_up_the_end(models: Path) -> None:
    limits = {"MFDAN_DRAIN_TIMEOUT_S": "1", "MFDAN_DRAIN_GRACE_S": "60"}
    with (
        serving_process(models, subprocess.DEVNULL, **limits) as process,
        upload_that_stalls(process),
    ):
        process.popen.send_signal(signal.SIGINT)
        assert process.end() == 0
    assert "Traceback" not in process.said


def test_a_second_signal_ends_it_at_once(models: Path) -> None:
    with serving_process(models, subprocess.DEVNULL) as process, upload_that_stalls(process):
        process.popen.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx2.get(f"{process.url}/health/ready").status_code == 503)
        assert httpx2.get(f"{process.url}/health/ready").json()["code"] == "draining"
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 128 + signal.SIGTERM
    assert process.said.endswith("\nmfdan: stopped\n")


def upload_that_stalls(process: Process) -> socket.socket:
    process.wait_until_ready()
    connection = socket.create_connection(("127.0.0.1", process.port))
    connection.sendall(BEGUN)
    wait_for(lambda: metric(process.url, "mfdan_requests_in_flight") == 2)  # this one and it
    return connection


def test_after_sigkill_under_load_it_starts_again_on_its_port_and_left_nothing_on_disk(
    models: Path, pictures: Pictures
) -> None:
    before = contents(models)
    with serving_process(models, subprocess.DEVNULL) as process:
        process.wait_until_ready()
        port = str(process.port)
        load = Load(process.url, pictures)
        wait_for(lambda: len(load.answers) >= ANSWERED_BEFORE)
        process.popen.kill()
        assert process.end() == -signal.SIGKILL
        load.end()
        assert contents(process.home) == {}
    assert {one.status_code for one in load.answers} == {200}
    assert contents(models) == before
    with serving_process(models, subprocess.DEVNULL, MFDAN_PORT=port) as process:
        process.wait_until_ready()
        with socket.create_connection(("127.0.0.1", int(port))) as connection:
            connection.sendall(posted("/predict", **pictures.pair))
            assert read_answer(connection).startswith(b"HTTP/1.1 200")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
