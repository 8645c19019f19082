"""What every answer carries for the protection of browsers, and what none carries."""

from collections.abc import Callable, Iterator

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from key_files import ALICE, stanza
from serving import HeldSession, Pictures, Serve

PROTECTIVE = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
ELSEWHERE = {"Origin": "https://elsewhere.example"}
PREFLIGHT = ELSEWHERE | {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type,x-api-key",
    "Access-Control-Request-Private-Network": "true",
}

Ask = Callable[[TestClient, dict[str, str]], Response]
ANSWERS: dict[str, tuple[int, Ask]] = {
    "a list": (200, lambda client, sent: client.get("/models", headers=sent)),
    "the documentation": (200, lambda client, sent: client.get("/docs", headers=sent)),
    "a file": (
        200,
        lambda client, sent: client.get("/static-offline-docs/swagger-ui.css", headers=sent),
    ),
    "health": (200, lambda client, sent: client.get("/health/live", headers=sent)),
    "metrics": (200, lambda client, sent: client.get("/metrics", headers=sent)),
    "no such route": (404, lambda client, sent: client.get("/nothing", headers=sent)),
    "an address with a slash too many": (
        404,
        lambda client, sent: client.get("/health/live/", headers=sent, follow_redirects=False),
    ),
    "no such method": (405, lambda client, sent: client.delete("/predict", headers=sent)),
    "a preflight": (405, lambda client, sent: client.options("/predict", headers=sent)),
    "too large": (
        413,
        lambda client, sent: client.get("/models", headers=sent | {"content-length": "70000"}),
    ),
    "no fields": (422, lambda client, sent: client.post("/predict", headers=sent)),
    "the other protocol": (200, lambda client, sent: client.get("/v2", headers=sent)),
    "its errors": (404, lambda client, sent: client.get("/v2/models/none", headers=sent)),
}


def assert_protected(answer: Response) -> None:
    assert {name: answer.headers.get(name) for name in PROTECTIVE} == PROTECTIVE
    policy = answer.headers["content-security-policy"].split("; ")
    assert {"default-src 'self'", "frame-ancestors 'none'", "form-action 'self'"} <= set(policy)
    assert "server" not in answer.headers


def assert_closed_to_other_sites(answer: Response) -> None:
    assert [name for name in answer.headers if name.startswith("access-control-")] == []


@pytest.mark.parametrize("what", ANSWERS)
@pytest.mark.parametrize("sent", [{}, ELSEWHERE, PREFLIGHT], ids=["plain", "origin", "preflight"])
def test_every_answer_protects_and_lets_no_other_site_read_it(
    client: TestClient, what: str, sent: dict[str, str]
) -> None:
    status, ask = ANSWERS[what]
    answer = ask(client, sent)
    assert answer.status_code == status
    assert_protected(answer)
    assert_closed_to_other_sites(answer)


@pytest.mark.parametrize("origin", ["null", "http://localhost:8000", "http://testserver", "*"])
def test_no_origin_is_trusted_not_even_our_own(client: TestClient, origin: str) -> None:
    assert_closed_to_other_sites(client.get("/models", headers={"Origin": origin}))


@pytest.fixture(scope="module")
def keyed(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    path.write_text(stanza("alice", ALICE, rate_per_minute=1))
    with serve(api_keys_file=path) as client:
        yield client


def test_refusals_for_want_of_a_key_protect_as_well(keyed: TestClient) -> None:
    key = {"X-API-Key": ALICE}
    sent = [PREFLIGHT, key, key]
    answers = [keyed.options("/predict", headers=PREFLIGHT | one) for one in sent]
    assert [answer.status_code for answer in answers] == [401, 405, 429]
    for answer in answers:
        assert_protected(answer)
        assert_closed_to_other_sites(answer)


def test_an_answer_that_nobody_foresaw_protects_as_well(
    serve: Serve, held: HeldSession, pictures: Pictures
) -> None:
    def fail(*_given: object) -> None:
        raise ZeroDivisionError

    held.run = fail
    with serve(held) as client:
        answer = client.post("/predict", files=pictures.pair, headers=ELSEWHERE)
    assert answer.status_code == 500
    assert_protected(answer)
    assert_closed_to_other_sites(answer)


def test_the_documentation_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "https://" not in page.replace("https://fastapi.tiangolo.com", "")
    for path in ("/static-offline-docs/swagger-ui-bundle.js", "/openapi.json"):
        assert path in page
        assert client.get(path).status_code == 200
