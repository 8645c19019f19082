"""Every route answers the statuses that the API description gives it, each really brought about."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from serving import HeldSession, MakeSettings, Pictures, Serve

from model.session import Session
from service.app import create_app
from service.keys import digest_of, new_token

UNKNOWN, TOO_LONG = "huge", "x" * 65
TENSOR = np.zeros((1, 3, 224, 224), np.float32)
PREDICTING = ("/predict", "/predict/batch", "/infer")


class BrokenSession(HeldSession):
    def run(self, _image: np.ndarray, _flow: np.ndarray) -> np.ndarray:
        raise RuntimeError


@dataclass(frozen=True)
class Worlds:
    """Services, each in a state of its own."""

    well: TestClient
    keyed: TestClient
    """Whose only key may be used once a minute, and was."""
    token: str
    draining: TestClient
    broken: TestClient
    """Whose network raises."""


@pytest.fixture(scope="module")
def worlds(
    serve: Serve, models_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worlds]:
    token, keys = new_token(), tmp_path_factory.mktemp("keys") / "keys.toml"
    keys.write_text(f'[keys.me]\nsha256 = "{digest_of(token).hex()}"\nrate_per_minute = 1\n')
    keys.chmod(0o600)
    broken = BrokenSession(Session.open(next(models_dir.glob("*.onnx"))))
    with ExitStack() as stack:
        well, draining = stack.enter_context(serve()), stack.enter_context(serve())
        draining.app_state["admission"].drain()
        keyed = stack.enter_context(serve(api_keys_file=keys))
        assert keyed.get("/models", headers={"X-API-Key": token}).is_success
        yield Worlds(well, keyed, token, draining, stack.enter_context(serve(broken)))


def routes(make_settings: MakeSettings) -> dict[tuple[str, str], dict[str, Any]]:
    paths = create_app(make_settings()).openapi()["paths"]
    return {
        (path, method.upper()): operation["responses"]
        for path, methods in paths.items()
        for method, operation in methods.items()
    }


def good(path: str, pictures: Pictures) -> dict[str, Any]:
    """Return what a request to this route holds."""
    if path.startswith("/predict"):
        return {"files": pictures.pair}
    return as_bytes() if path.endswith("/infer") else {}


def as_bytes() -> dict[str, Any]:
    described = [
        {
            "name": name,
            "datatype": "FP32",
            "shape": TENSOR.shape,
            "parameters": {"binary_data_size": TENSOR.nbytes},
        }
        for name in ("image", "flow")
    ]
    head = json.dumps({"inputs": described}).encode()
    return {
        "content": head + 2 * TENSOR.tobytes(),
        "headers": {"Inference-Header-Content-Length": str(len(head))},
    }


def bad(path: str, pictures: Pictures) -> list[dict[str, Any]]:
    """Return requests that the route itself refuses."""
    if path.startswith("/predict"):
        pair = pictures.pair
        return [
            {},
            {"content": b"no form", "headers": {"Content-Type": "multipart/form-data"}},
            {"files": pair, "data": {"model": UNKNOWN}},
            {"files": {**pair, "apex": b""}},
            {"files": {**pair, "apex": b"text"}},
        ]
    if path.endswith("/infer"):
        packed = as_bytes()
        packed["headers"]["Content-Encoding"] = "gzip"
        return [{"content": b"{}"}, packed]
    return []


def stalled(client: TestClient, method: str, path: str) -> int:
    """Return the status that a body which never arrives is answered with."""

    async def ask() -> int:
        statuses: list[int] = []

        async def receive() -> dict[str, Any]:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope = {"type": "http", "http_version": "1.1", "method": method, "path": path}
        headers = [(b"host", b"here"), (b"content-type", b"multipart/form-data; boundary=b")]
        more = {"headers": headers, "query_string": b"", "root_path": ""}
        addresses = {"scheme": "http", "server": ("here", 80), "client": ("here", 1)}
        state = {"state": dict(client.app_state)}
        await client.app({**scope, **more, **addresses, **state}, receive, send)
        return statuses[0]

    return client.portal.call(ask)


def answers(worlds: Worlds, path: str, method: str, pictures: Pictures) -> Iterator[Response]:
    """Ask one route in every situation."""
    at = path.format(name="tiny", version="1")
    sent = good(path, pictures)
    for client in (worlds.well, worlds.draining, worlds.broken, worlds.keyed):
        yield client.request(method, at, **sent)
    headers = sent.get("headers", {})
    key = {"headers": {**headers, "X-API-Key": worlds.token}}
    yield worlds.keyed.request(method, at, **{**sent, **key})
    huge = {"headers": {**headers, "Content-Length": str(2**40)}}
    yield worlds.well.request(method, at, **{**sent, **huge})
    for request in bad(path, pictures):
        yield worlds.well.request(method, at, **request)
    if "{name}" in path:
        for name in (UNKNOWN, TOO_LONG):
            yield worlds.well.request(method, path.format(name=name, version="1"), **sent)


def late(serve: Serve, session: HeldSession, method: str, path: str, sent: dict[str, Any]) -> int:
    with serve(session, deadline_ms=100) as client:
        status = client.request(method, path.format(name="tiny", version="1"), **sent).status_code
        session.may_go.set()
        return status


def test_what_is_described_is_what_happens(
    worlds: Worlds, serve: Serve, models_dir: Path, make_settings: MakeSettings, pictures: Pictures
) -> None:
    described = routes(make_settings)
    happened: dict[tuple[str, str], set[str]] = {}
    with serve(upload_timeout_ms=50) as impatient:
        for (path, method), responses in described.items():
            found = [*answers(worlds, path, method, pictures)]
            for answer in found:
                assert_is_an_example(responses, path, answer)
            seen = {answer.status_code for answer in found}
            seen.add(stalled(impatient, method, path.format(name="tiny", version="1")))
            if path.endswith(PREDICTING):
                held = HeldSession(Session.open(next(models_dir.glob("*.onnx"))))
                seen.add(late(serve, held, method, path, good(path, pictures)))
            happened[path, method] = {str(status) for status in seen}
    assert happened == {route: set(responses) for route, responses in described.items()}


def assert_is_an_example(responses: dict[str, Any], path: str, answer: Response) -> None:
    """A problem has the code of one of the examples of its status."""
    if answer.is_success or path.startswith("/v2"):
        return
    content = responses[str(answer.status_code)]["content"]["application/problem+json"]
    assert answer.json()["code"] in content["examples"], path
