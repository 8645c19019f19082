"""Who may ask for what over HTTP, with which key and how often."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from key_files import ALICE, BOB, stanza
from serving import MakeSettings, Pictures, Serve, async_client, until, wait_for
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect
from structlog.testing import CapturingLogger

from service.app import create_app
from service.callers import KeyMiddleware, followed
from service.keys import KeyRing, new_token

FREE = [
    "/docs",
    "/health/live",
    "/health/ready",
    "/openapi.json",
    "/v2/health/live",
    "/v2/health/ready",
]
FREE_FILE = "/static-offline-docs/swagger-ui.css"


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    path.write_text(stanza("alice", ALICE) + stanza("bob", BOB))
    return path


@pytest.fixture(scope="module")
def keyed(serve: Serve, keys_file: Path) -> Iterator[TestClient]:
    with serve(api_keys_file=keys_file) as client:
        yield client


def assert_refused(response: Response) -> None:
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    if response.url.path.startswith("/v2"):  # errors of the Open Inference Protocol
        assert response.json().keys() == {"error"}
    else:
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["code"] == "unauthorized"


@pytest.mark.parametrize("path", [*FREE, FREE_FILE])
def test_health_and_description_need_no_key(keyed: TestClient, path: str) -> None:
    assert keyed.get(path).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/models",
        "/models/tiny",
        "/metrics",
        "/predict",
        "/v2",
        "/v2/models/tiny",
        "/nothing",
        "/health",
        "/health/live/",
        "/health/live%2f..%2f..%2fmodels",
        "//health/live",
        "/docs/../models",
        "/Health/live",
        "/static-offline-docs",
    ],
)
def test_everything_else_needs_one(keyed: TestClient, path: str) -> None:
    assert_refused(keyed.get(path))
    assert_refused(keyed.post(path))
    assert_refused(keyed.options(path))


def test_a_free_folder_shows_only_its_own_files(keyed: TestClient) -> None:
    for path in ("/static-offline-docs/../models", "/static-offline-docs/%2e%2e/%2e%2e/models"):
        assert keyed.get(path).status_code in {401, 404}


@pytest.mark.parametrize(
    "headers",
    [{"X-API-Key": BOB}, {"Authorization": f"Bearer {BOB}"}, {"authorization": f"bearer {BOB}"}],
)
def test_a_key_opens_all_in_either_header(
    keyed: TestClient, pictures: Pictures, headers: dict[str, str]
) -> None:
    assert keyed.get("/models", headers=headers).status_code == 200
    assert keyed.get("/metrics", headers=headers).status_code == 200
    answer = keyed.post("/predict", files=pictures.pair, headers=headers)
    assert len(answer.json()["faces"]) == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": ""},
        {"X-API-Key": new_token()},
        {"X-API-Key": f"Bearer {ALICE}"},
        {"X-API-Key": "ä".encode() * 50},
        {"X-API-Key": b"\xff" * 49},
        {"X-API-Key": "a" * 10_000},
        {"Authorization": ALICE},
        {"Authorization": f"Basic {ALICE}"},
        {"Authorization": "Bearer"},
        {"Cookie": f"X-API-Key={ALICE}"},
        [("X-API-Key", ALICE), ("X-API-Key", BOB)],
        [("X-API-Key", ALICE), ("Authorization", f"Bearer {ALICE}")],
    ],
)
def test_what_is_not_one_known_key_is_refused(keyed: TestClient, headers: object) -> None:
    assert_refused(keyed.get("/models", headers=headers))


@pytest.mark.parametrize("name", ["api_key", "X-API-Key", "access_token"])
def test_a_key_in_the_address_is_none(keyed: TestClient, name: str) -> None:
    """Addresses are written to logs everywhere."""
    assert_refused(keyed.get("/models", params={name: ALICE}))


def test_refusals_are_counted_by_route(serve: Serve, keys_file: Path) -> None:
    with serve(api_keys_file=keys_file) as client:
        for path in ("/predict", "/v2/models/a/infer", "/made/up"):
            assert_refused(client.post(path))
        metrics = client.get("/metrics", headers={"X-API-Key": ALICE}).text
    for route in ("/predict", "/v2/models/{name}/infer", "unmatched"):
        assert f'{{method="POST",route="{route}",status="401"}} 1.0' in metrics


def test_an_upload_without_a_key_is_refused_before_a_byte_of_it_is_read(
    make_settings: MakeSettings, keys_file: Path
) -> None:
    read = []

    async def upload() -> AsyncIterator[bytes]:
        read.append("a part")
        yield b"--b\r\n"

    async def run() -> Response:
        app = create_app(make_settings(api_keys_file=keys_file))
        async with app.router.lifespan_context(app) as state, async_client(app, state) as client:
            headers = {"content-type": "multipart/form-data; boundary=b"}
            return await client.post("/predict", content=upload(), headers=headers)

    assert_refused(asyncio.run(run()))
    assert read == []


def test_a_rate_and_a_quota_are_told_apart(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(stanza("alice", ALICE, rate_per_minute=2) + stanza("bob", BOB, quota_per_day=1))
    with serve(api_keys_file=path) as client:
        alice, bob = ({"X-API-Key": key} for key in (ALICE, BOB))
        assert [client.get("/models", headers=alice).status_code for _ in range(2)] == [200, 200]
        limited = client.get("/models", headers=alice)
        assert (limited.status_code, limited.json()["code"]) == (429, "rate_limited")
        assert 1 <= int(limited.headers["retry-after"]) <= 60
        assert client.get("/models", headers=bob).status_code == 200
        exceeded = client.get("/models", headers=bob)
        assert (exceeded.status_code, exceeded.json()["code"]) == (429, "quota_exceeded")
        assert 60 < int(exceeded.headers["retry-after"]) <= 24 * 60 * 60
        assert client.get("/health/ready", headers=alice).status_code == 200


def test_a_stranger_uses_up_nothing(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(stanza("alice", ALICE, rate_per_minute=1))
    with serve(api_keys_file=path) as client:
        for _ in range(5):
            assert_refused(client.get("/models", headers={"X-API-Key": new_token()}))
        assert client.get("/models", headers={"X-API-Key": ALICE}).status_code == 200


def test_the_name_of_the_key_goes_with_the_request_also_of_one_too_many(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(stanza("alice", ALICE, rate_per_minute=1))
    reached = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        reached.append(scope["state"]["caller"])

    async def ignore(_message: object) -> None:
        pass

    async def run() -> list[str]:
        guarded = KeyMiddleware(app, KeyRing(path), make_settings())
        states = [{"request_id": "1"}, {"request_id": "2"}]
        for state in states:
            scope = {"type": "http", "path": "/models", "method": "GET", "state": state}
            headers = [(b"x-api-key", ALICE.encode())]
            await guarded({**scope, "headers": headers}, ignore, ignore)
        return [state["caller"] for state in states]

    assert asyncio.run(run()) == ["alice", "alice"]
    assert reached == ["alice"]


def test_a_changed_file_is_followed_and_a_bad_one_told(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, fresh = tmp_path / "keys.toml", tmp_path / "fresh"
    path.write_text(stanza("alice", ALICE))

    def status(key: str) -> int:
        return client.get("/models", headers={"X-API-Key": key}).status_code

    with serve(api_keys_file=path, reload_s=0.01) as client:
        fresh.write_text(stanza("bob", BOB))
        fresh.replace(path)
        wait_for(lambda: status(BOB) == 200)
        assert status(ALICE) == 401
        written = ""
        fresh.write_text("[keys.alice")
        fresh.replace(path)

        def told() -> bool:
            nonlocal written
            written += capsys.readouterr().out
            return "API keys refused" in written

        wait_for(told)
        assert status(BOB) == 200
    (fault,) = (json.loads(line) for line in written.splitlines() if "refused" in line)
    assert "is not TOML" in fault["fault"]
    assert ALICE not in written
    assert BOB not in written


class RingWithADefect(KeyRing):
    looks = 0

    def look(self) -> bool:
        self.looks += 1
        if self.looks == 1:
            raise MemoryError("of what the file has")
        return super().look()


def test_following_the_file_outlives_a_defect_and_tells_its_type(tmp_path: Path) -> None:
    path, fresh, log = tmp_path / "keys.toml", tmp_path / "fresh", CapturingLogger()
    path.write_text(stanza("alice", ALICE))
    ring = RingWithADefect(path)
    fresh.write_text(stanza("bob", BOB))
    fresh.replace(path)

    async def run() -> None:
        async with followed(ring, 0.01, log):
            await until(lambda: ring.names == ("bob",) and len(log.calls) > 1)

    asyncio.run(run())
    assert [(call.args, call.kwargs) for call in log.calls] == [
        (("API keys refused",), {"fault": "MemoryError"}),
        (("API keys read",), {"names": ("bob",)}),
    ]


def test_no_key_is_asked_for_where_there_are_none(client: TestClient) -> None:
    assert client.get("/models").status_code == 200
    assert client.get("/models", headers={"X-API-Key": new_token()}).status_code == 200


def test_nothing_is_answered_over_a_web_socket(keyed: TestClient) -> None:
    for path in ("/predict", "/health/live"):
        with pytest.raises(WebSocketDisconnect), keyed.websocket_connect(path):
            pass


def test_the_description_says_how_a_key_is_sent_and_where_none_is_needed(
    make_settings: MakeSettings,
) -> None:
    schema = create_app(make_settings()).openapi()
    assert schema["components"]["securitySchemes"] == {
        "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "bearer": {"type": "http", "scheme": "bearer"},
    }
    assert schema["security"] == [{}, {"apiKey": []}, {"bearer": []}]
    free = {
        path
        for path, operations in schema["paths"].items()
        if all(operation.get("security") == [] for operation in operations.values())
    }
    assert free == {path for path in schema["paths"] if "/health/" in path}
    with_own = [
        operation
        for path, operations in schema["paths"].items()
        for operation in operations.values()
        if path not in free and "security" in operation
    ]
    assert with_own == []
