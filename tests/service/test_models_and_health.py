from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from serving import MakeSettings, Serve
from tiny_model import CLASSES, tiny_spec, write_tiny_model

from service.app import create_app


def test_models_are_listed_with_all_that_fixes_their_predictions(client: TestClient) -> None:
    (card,) = client.get("/models").json()
    assert (card["name"], card["version"], card["default"]) == ("tiny", "1", True)
    assert card["sha256"] == card["spec"]["onnx_sha256"]
    assert card["spec"]["classes"] == list(CLASSES)
    assert card["spec"]["provenance"]["licence"] == "MIT"
    assert card["spec"]["preprocessing_version"] >= 1


def test_a_model_is_described_under_its_name(client: TestClient) -> None:
    assert client.get("/models/tiny").json() == client.get("/models").json()[0]


def test_an_unknown_model_is_404(client: TestClient) -> None:
    response = client.get("/models/none")
    assert (response.status_code, response.json()["code"]) == (404, "model_not_found")


def test_the_default_model_comes_first(tmp_path: Path, make_settings: MakeSettings) -> None:
    for name in ("a", "b"):
        write_tiny_model(tmp_path, tiny_spec(name))
    with TestClient(create_app(make_settings(models_dir=tmp_path, model="b"))) as client:
        cards = client.get("/models").json()
        assert [(card["name"], card["default"]) for card in cards] == [("b", True), ("a", False)]
        assert client.get("/models/a").json()["default"] is False


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_health_may_be_asked_without_a_body(client: TestClient, path: str) -> None:
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


def test_ready_says_no_without_a_body_too(serve: Serve) -> None:
    with serve() as client:
        client.app_state["admission"].drain()
        assert client.head("/health/ready").status_code == 503
        assert client.head("/health/live").status_code == 200


def test_live_and_ready(client: TestClient) -> None:
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json() == {"status": "ready"}
