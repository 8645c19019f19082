from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from serving import HeldSession, MakeSettings, Pictures, Serve
from tiny_model import write_tiny_model

from model.session import Session
from service.app import create_app
from service.engine import Engine
from service.settings import Settings


@pytest.fixture(scope="session")
def pictures() -> Pictures:
    return Pictures()


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def make_settings(models_dir: Path) -> MakeSettings:
    def make(**changes: object) -> Settings:
        return Settings(**{"models_dir": models_dir, "worker_threads": 2, **changes})

    return make


@pytest.fixture
def held(models_dir: Path) -> Iterator[HeldSession]:
    session = HeldSession(Session.open(next(models_dir.glob("*.onnx"))))
    yield session
    session.may_go.set()


@pytest.fixture(scope="session")
def serve(make_settings: MakeSettings) -> Serve:
    @contextmanager
    def serve(session: HeldSession | None = None, **changes: object) -> Iterator[TestClient]:
        sessions = session and {session.spec.name: session}
        app = create_app(make_settings(**changes), partial(Engine.open, sessions=sessions))
        with TestClient(app) as client:
            client.portal.call(client.app_state["engine"].warmed_up)
            yield client

    return serve


@pytest.fixture(scope="session")
def client(serve: Serve) -> Iterator[TestClient]:
    """Return a client of the real service on the tiny model."""
    with serve() as client:
        yield client
