import pytest
from fastapi.testclient import TestClient
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
