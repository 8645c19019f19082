"""The command `mfdan serve` as an operator meets it: a process, a port, metrics."""

import subprocess
from pathlib import Path

import httpx2
import pytest
from connecting import metric
from processes import Process, serving_process
from serving import Pictures
from tiny_model import write_tiny_model

from service.settings import Settings

READY_WITHIN_CPU_S = 4.0
"""Processor time of all threads, from the start of the process until it is ready. It stands for
the time on the clock, which these tests do not assert: on an idle machine of one core it is no
less, on a loaded machine it says nothing of the process. A start that sleeps would pass."""
BUNDLED = Settings().models_dir


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return Pictures()


def cpu_seconds(process: Process) -> float:
    process.wait_until_ready()
    return metric(process.url, "mfdan_process_cpu_seconds_total")


def test_a_process_is_ready_within_its_processor_time_and_logs_what_it_answers(
    tmp_path: Path, pictures: Pictures
) -> None:
    write_tiny_model(tmp_path)
    with serving_process(tmp_path) as process:
        assert 0 < cpu_seconds(process) < READY_WITHIN_CPU_S
        body = httpx2.post(f"{process.url}/predict", files=pictures.pair).json()
        assert len(body["faces"]) == 1
        process.popen.terminate()
        assert process.end() == 0
    assert "Traceback" not in process.said
    assert body["request_id"] in process.written


def test_the_bundled_model_is_ready_within_its_processor_time_and_abstains_on_one_frame(
    pictures: Pictures,
) -> None:
    with serving_process(BUNDLED) as process:
        assert 0 < cpu_seconds(process) < READY_WITHIN_CPU_S
        files = {"onset": pictures.onset, "apex": pictures.onset}
        (face,) = httpx2.post(f"{process.url}/predict", files=files).json()["faces"]
        assert face["reason"] == "no_movement"
        (face,) = httpx2.post(f"{process.url}/predict", files=pictures.pair).json()["faces"]
        assert face["reason"] != "no_movement"


def test_metrics_can_have_a_port_of_their_own(tmp_path: Path, pictures: Pictures) -> None:
    write_tiny_model(tmp_path)
    with serving_process(tmp_path, subprocess.DEVNULL, MFDAN_METRICS_PORT="0") as process:
        process.wait_until_ready()
        httpx2.post(f"{process.url}/predict", files=pictures.pair).raise_for_status()
        counted = 'mfdan_requests_total{method="POST",route="/predict",status="200"} 1.0'
        assert counted in httpx2.get(process.metrics_url).text
        assert httpx2.get(f"{process.url}/metrics").status_code == 404
        process.popen.terminate()
        assert process.end() == 0
