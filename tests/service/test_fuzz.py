"""Whatever the description allows, and whatever it does not: never a 5xx."""

import asyncio
import json
from collections.abc import Iterator
from itertools import pairwise

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import MakeSettings, served

from service.app import create_app

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
ROUTES = [
    ("/predict", "POST", POSITIVE),
    ("/predict", "POST", NEGATIVE),
    ("/predict/batch", "POST", POSITIVE),
    ("/predict/batch", "POST", NEGATIVE),
    ("/models", "GET", POSITIVE),
    ("/models/{name}", "GET", POSITIVE),
    ("/health/live", "GET", POSITIVE),
    ("/health/ready", "GET", POSITIVE),
    ("/metrics", "GET", POSITIVE),
    ("/v2", "GET", POSITIVE),
    ("/v2/health/live", "GET", POSITIVE),
    ("/v2/health/ready", "GET", POSITIVE),
    ("/v2/repository/index", "POST", POSITIVE),
    ("/v2/models/{name}", "GET", POSITIVE),
    ("/v2/models/{name}/ready", "GET", POSITIVE),
    ("/v2/models/{name}/infer", "POST", POSITIVE),
    ("/v2/models/{name}/infer", "POST", NEGATIVE),
    ("/v2/models/{name}/versions/{version}", "GET", POSITIVE),
    ("/v2/models/{name}/versions/{version}/ready", "GET", POSITIVE),
    ("/v2/models/{name}/versions/{version}/infer", "POST", POSITIVE),
    ("/v2/models/{name}/versions/{version}/infer", "POST", NEGATIVE),
]
"""The GET routes take nothing that the description could forbid."""


@pytest.fixture(scope="module")
def description(make_settings: MakeSettings) -> Iterator[schemathesis.BaseSchema]:
    with served(create_app(make_settings())) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.parametrize(("path", "method", "mode"), ROUTES)
def test_answers_are_as_described(
    description: schemathesis.BaseSchema, path: str, method: str, mode: GenerationMode
) -> None:
    @settings(
        max_examples=10,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=description[path][method].as_strategy(generation_mode=mode))
    def answers(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS)

    answers()


def test_every_described_route_is_tried(description: schemathesis.BaseSchema) -> None:
    described = {
        (path, method.upper())
        for path, methods in description.raw_schema["paths"].items()
        for method in methods
    }
    assert described == {(path, method) for path, method, _ in ROUTES}


NAMES = ["onset", "apex", "clip", "frames", "fps", "faces", "model", "explain"]
WORDS = st.sampled_from([*NAMES, "", "f", "1", "é", '"', ";", "\\", "a" * 300]).map(str.encode)
DISPOSITIONS = st.one_of(
    st.builds(b'form-data; name="%b"'.__mod__, WORDS),
    st.builds(
        lambda name, file: b'form-data; name="%b"; filename="%b"' % (name, file), WORDS, WORDS
    ),
    st.builds(b"form-data; name*=utf-8''%b".__mod__, WORDS),
    st.sampled_from([b"form-data", b"", b"attachment; name=onset", b"form-data; name="]),
)
LINES = st.one_of(
    DISPOSITIONS.map(b"Content-Disposition: ".__add__),
    st.sampled_from(
        [
            b"Content-Type: image/png",
            b"Content-Type: text/plain; charset=utf-16",
            b"Content-Transfer-Encoding: base64",
            b"Content-Length: 999999",
            b"X: " + b"x" * 5000,
            b"no colon",
            b": no name",
        ]
    ),
    st.binary(max_size=12),
)
PARTS = st.tuples(
    DISPOSITIONS.map(b"Content-Disposition: ".__add__),
    st.lists(LINES, max_size=2),
    st.one_of(st.binary(max_size=40), st.sampled_from([b"--b", b"\r\n--b", b"1", b"\r\n"])),
    st.sampled_from([b"\r\n--b\r\n"] * 6 + [b"\n--b\n", b"\r\n--b", b"--b\r\n", b"\r\n--b--\r\n"]),
)


@st.composite
def forms(draw: st.DrawFn) -> list[bytes]:
    """Draw a form that is nearly one, in the pieces in which it arrives."""
    body = draw(st.sampled_from([b"--b\r\n"] * 6 + [b"", b"\r\n--b\r\n", b"preamble\r\n--b\r\n"]))
    for first, others, content, end in draw(st.lists(PARTS, max_size=4)):
        body += b"\r\n".join([first, *others, b"", content]) + end
    body = body.removesuffix(b"\r\n") + draw(st.sampled_from([b"--\r\n"] * 4 + [b"", b"-", b"--"]))
    ends = sorted({0, len(body), *draw(st.lists(st.integers(0, len(body)), max_size=6))})
    return [body[begin:end] for begin, end in pairwise(ends)]


@settings(max_examples=200, derandomize=True, database=None)
@given(pieces=forms(), boundary=st.sampled_from([b"b"] * 9 + [b"", b'"b', b"c" * 80]))
def test_a_form_is_answered_alike_in_whatever_pieces_it_arrives(
    client: TestClient, pieces: list[bytes], boundary: bytes
) -> None:
    status, kind, body = client.portal.call(post_form, client, pieces, boundary)
    assert status < 500
    if status >= 400:
        assert kind == b"application/problem+json"
        event(json.loads(body)["code"])
    at_once = client.portal.call(post_form, client, [b"".join(pieces)], boundary)
    assert at_once[0] == status
    assert _told(at_once[2]) == _told(body)


def _told(body: bytes) -> dict:
    return {**json.loads(body), "request_id": None, "timings_ms": None}


async def post_form(
    client: TestClient, pieces: list[bytes], boundary: bytes
) -> tuple[int, bytes, bytes]:
    """Hand the app a body in pieces; return status, content type and body of its answer."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    left = iter([*messages, {"type": "http.request", "body": b"", "more_body": False}])
    answer: list[dict] = []
    answered = asyncio.Event()

    async def receive() -> dict:
        if (message := next(left, None)) is None:
            await answered.wait()  # the caller stays until then
            return {"type": "http.disconnect"}
        return message

    async def send(message: dict) -> None:
        answer.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "raw_path": b"/predict",
        "query_string": b"",
        "headers": [(b"content-type", b"multipart/form-data; boundary=" + boundary)],
        "state": dict(client.app_state),
    }
    await client.app(scope, receive, send)
    answered.set()
    start, *bodies = answer
    return (
        start["status"],
        dict(start["headers"])[b"content-type"],
        b"".join(one["body"] for one in bodies),
    )
