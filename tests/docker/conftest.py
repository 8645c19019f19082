import subprocess
from collections.abc import Iterator

import pytest
from composed import Composed, Up, done
from fastapi.testclient import TestClient
from processes import Process
from prometheus_files import series_names
from tiny_model import write_tiny_model

from service.app import create_app
from service.settings import Settings


@pytest.fixture(scope="session")
def served_series(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Return the names of all series that a service without a GPU shows."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_model(folder)
    with TestClient(create_app(Settings(models_dir=folder, worker_threads=1))) as client:
        return series_names(client.get("/metrics").text)


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """prepare, then mfdan, as docker-compose.yml has them."""
    folder = tmp_path_factory.mktemp("compose")
    composed = Composed(folder)
    prepared = done(composed.run("prepare"))
    assert prepared.returncode == 0, prepared.stderr
    # The file's own ports may be taken here, and nobody but this machine shall ask.
    loopback = {"MFDAN_HOST": "127.0.0.1", "MFDAN_METRICS_HOST": "127.0.0.1"}
    ports = {"MFDAN_PORT": "0", "MFDAN_METRICS_PORT": "0"}
    run = composed.run("mfdan", MFDAN_BATCH_SIZES="[1]", **ports, **loopback)
    popen = subprocess.Popen(  # noqa: S603 - what the file says
        run.command,
        env=run.environment,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    process = Process(popen, folder)
    try:
        process.wait_until_ready()
        yield Up(composed, process)
    finally:
        popen.kill()
        process.end()
