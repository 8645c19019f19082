"""Callers who are too slow, too wordy or too many, over real connections."""

import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx2
import pytest
from connecting import LIVE, Doors, open_doors, posted, read_answer, read_to_end
from serving import HeldSession, MakeSettings, Pictures, wait_for

from service.security import PROTECTIVE

MOST = 4
BEGUN = b"POST /predict HTTP/1.1\r\nHost: here\r\n"
CHUNKED = BEGUN + b"Transfer-Encoding: chunked\r\nContent-Type: multipart/form-data; boundary=b\r\n"


@pytest.fixture(scope="module")
def hasty(make_settings: MakeSettings) -> Iterator[Doors]:
    """A service that waits 0.3 s for headers and takes four connections."""
    settings = make_settings(header_timeout_ms=300, max_connections=MOST)
    with open_doors(settings) as doors:
        yield doors


@pytest.fixture(scope="module")
def patient(make_settings: MakeSettings) -> Iterator[Doors]:
    """A service that never closes a connection for being late while a test lasts."""
    with open_doors(make_settings(header_timeout_ms=120_000, max_connections=MOST)) as doors:
        yield doors


def problem(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    found = json.loads(body)
    assert found["request_id"]
    assert found["status"] == int(head.split()[1])
    return found["status"], found["code"]


@pytest.mark.parametrize("said", [b"", b"GET /health", BEGUN])
def test_a_connection_whose_headers_do_not_arrive_is_closed(hasty: Doors, said: bytes) -> None:
    with hasty.connect(said) as connection:
        assert read_to_end(connection) == b""


def test_headers_that_trickle_do_not_hold_a_connection_open(hasty: Doors) -> None:
    before = hasty.rejections("headers_timeout")
    with hasty.connect(BEGUN) as connection:
        connection.settimeout(0.05)
        wait_for(lambda: is_closed_while(connection, b"X-A: b\r\n"))
    assert hasty.rejections("headers_timeout") == before + 1


def is_closed_while(connection: socket.socket, said: bytes) -> bool:
    """Say a little more; whether the other side has closed."""
    try:
        connection.sendall(said)
        return connection.recv(65536) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_a_connection_that_asks_for_nothing_more_is_closed_and_nobody_was_refused(
    hasty: Doors,
) -> None:
    before = hasty.rejections("headers_timeout")
    with hasty.connect(LIVE) as connection:
        assert read_answer(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(LIVE)
        assert read_answer(connection).startswith(b"HTTP/1.1 200")
        assert read_to_end(connection) == b""
    assert hasty.rejections("headers_timeout") == before


def test_a_refused_body_that_trickles_on_does_not_hold_a_connection_open(hasty: Doors) -> None:
    with hasty.connect(BEGUN, b"Content-Length: 1000000000\r\n\r\n") as connection:
        assert problem(read_answer(connection)) == (413, "body_too_large")
        connection.settimeout(0.05)
        wait_for(lambda: is_closed_while(connection, b"x"))


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (BEGUN + b"Content-Length: 1000000000\r\n\r\n", (413, "body_too_large")),
        (BEGUN + b"Content-Length: x\r\n\r\n", (400, "malformed_request")),
        (BEGUN + b"X-A: " + bytes(70_000), (400, "malformed_request")),
        (BEGUN + b"X-A: " + 70_000 * b"b", (431, "headers_too_large")),
    ],
    ids=["too large", "bad length", "bad header", "large header"],
)
def test_a_refusal_reaches_a_caller_who_sends_all_before_he_reads(
    patient: Doors, head: bytes, found: tuple[int, str]
) -> None:
    """As a proxy does; a connection that is closed while it is sent to is reset."""
    closing = head.replace(b"Host: here", b"Host: here\r\nConnection: close")
    with patient.connect(closing) as connection:
        for _ in range(200):
            connection.sendall(2**16 * b"b")
        assert problem(read_answer(connection)) == found
        assert read_to_end(connection) == b""
    wait_for(lambda: patient.connections <= 1)


def test_a_caller_who_was_answered_and_sends_on_and_on_is_closed(hasty: Doors) -> None:
    late = hasty.rejections("headers_timeout")
    head = BEGUN + b"Connection: close\r\nContent-Length: 1000000000\r\n\r\n"
    with hasty.connect(head) as connection:
        assert problem(read_answer(connection)) == (413, "body_too_large")
        connection.settimeout(0.05)
        with suppress(ConnectionError):
            for _ in range(10_000):
                connection.sendall(bytes(1000))
                time.sleep(0.001)  # for as long as it takes, 10 s at the most
        assert read_to_end(connection) == b""
    assert hasty.rejections("headers_timeout") == late  # he was no late one


def test_a_request_under_way_is_no_idle_connection(
    make_settings: MakeSettings, held: HeldSession, pictures: Pictures
) -> None:
    with (
        open_doors(make_settings(header_timeout_ms=200), held) as doors,
        doors.connect(posted("/predict", **pictures.pair)) as connection,
    ):
        assert held.started.wait(20)
        with doors.connect() as idle:  # later, and closed first
            assert read_to_end(idle) == b""
        held.may_go.set()
        assert read_answer(connection).startswith(b"HTTP/1.1 200")


def test_an_answer_that_is_not_read_does_not_hold_a_connection_open(hasty: Doors) -> None:
    request = b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: here\r\n\r\n"
    before = hasty.rejections("answer_not_read")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", hasty.port))
        connection.sendall(3 * request)
        wait_for(lambda: hasty.rejections("answer_not_read") > before)


def test_a_newcomer_takes_the_place_of_the_longest_idle_connection(patient: Doors) -> None:
    before = patient.rejections("too_many_connections")
    idle = [patient.connect(LIVE[:-2]) for _ in range(MOST)]
    try:
        wait_for(lambda: patient.connections == MOST)
        for oldest in idle[:2]:
            idle.append(patient.connect(LIVE))
            assert read_answer(idle[-1]).startswith(b"HTTP/1.1 200")
            assert read_to_end(oldest) == b""
        idle[2].sendall(b"\r\n")
        assert read_answer(idle[2]).startswith(b"HTTP/1.1 200")
    finally:
        for connection in idle:
            connection.close()
    wait_for(lambda: patient.rejections("too_many_connections") >= before + 2)


def test_where_all_connections_are_being_answered_a_newcomer_is_closed(
    make_settings: MakeSettings, held: HeldSession, pictures: Pictures
) -> None:
    with (
        open_doors(make_settings(max_connections=1), held) as doors,
        doors.connect(posted("/predict", **pictures.pair)) as connection,
    ):
        assert held.started.wait(20)
        with doors.connect(LIVE) as newcomer:
            assert read_to_end(newcomer) == b""
        held.may_go.set()
        assert read_answer(connection).startswith(b"HTTP/1.1 200")


def endless(piece: bytes) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        for _ in range(2**20 // len(piece)):
            yield piece

    return pieces


@pytest.mark.parametrize(
    ("begun", "more"),
    [
        (BEGUN, endless(b"X-A: " + b"b" * 1000 + b"\r\n")),
        (BEGUN + b"X-A: ", endless(b"b" * 1000)),
        (b"GET /", endless(b"b" * 1000)),
        (CHUNKED + b"\r\n0\r\n", endless(b"X-A: " + b"b" * 1000 + b"\r\n")),
        (CHUNKED + b"\r\n1;a=", endless(b"b" * 1000)),
    ],
    ids=["headers", "one header", "address", "trailers", "lengths of chunks"],
)
def test_what_is_no_body_and_never_ends_is_431(
    patient: Doors, begun: bytes, more: Callable[[], Iterator[bytes]]
) -> None:
    before = patient.rejections("headers_too_large")
    with patient.connect(begun) as connection, suppress(ConnectionError):
        for piece in more():
            connection.sendall(piece)
        read_to_end(connection)  # all was sent before its end was heard of
    assert patient.rejections("headers_too_large") == before + 1


def test_a_body_in_small_chunks_is_read(patient: Doors, pictures: Pictures) -> None:
    """Their lengths are no headers without end."""
    files = [("onset", pictures.onset), ("apex", pictures.smile)] * 4
    request = httpx2.Request("POST", f"{patient.url}/predict/batch", files=files)
    body = request.read()
    chunks = (body[place : place + 8] for place in range(0, len(body), 8))
    assert len(body) * len(b"8\r\n\r\n") / 8 > 2**16
    headers = {"content-type": request.headers["content-type"]}
    assert httpx2.post(request.url, content=chunks, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        BEGUN + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        BEGUN + b"Content-Length: 99999999999999999999999\r\n\r\n",
    ],
    ids=["TLS", "version", "two lengths", "huge length"],
)
def test_what_is_no_http_is_400(patient: Doors, said: bytes) -> None:
    with patient.connect(said) as connection:
        assert problem(read_to_end(connection)) == (400, "malformed_request")


def test_requests_sent_at_once_are_answered_in_order(patient: Doors) -> None:
    with patient.connect(LIVE, b"GET /nothing HTTP/1.1\r\nHost: here\r\n\r\n", LIVE) as connection:
        statuses = [read_answer(connection).split()[1] for _ in range(3)]
    assert statuses == [b"200", b"404", b"200"]


def test_a_thousand_requests_sent_at_once_are_refused(patient: Doors) -> None:
    with patient.connect(1000 * LIVE) as connection:
        assert read_to_end(connection).count(b"HTTP/1.1 200") <= 20


@pytest.mark.parametrize(
    ("said", "code"),
    [(b"GET / HTTP/9.9\r\n\r\n", "malformed_request"), (LIVE[:-2] + b"X: " + 70_000 * b"b", None)],
    ids=["400", "431"],
)
def test_what_the_protocol_refuses_has_the_headers_and_the_line_of_every_request(
    make_settings: MakeSettings, capsys: pytest.CaptureFixture[str], said: bytes, code: str | None
) -> None:
    with open_doors(make_settings()) as doors, doors.connect(said) as connection:
        answer = read_answer(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
    found = json.loads(body)
    assert {name.lower() for name in PROTECTIVE} <= headers.keys()
    assert headers["x-request-id"] == found["request_id"]
    assert headers["connection"] == "close"
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == found["request_id"]]
    assert (line["event"], line["status"]) == ("request", found["status"])
    assert line["code"] == found["code"] == (code or "headers_too_large")


def test_uvicorn_says_nothing_of_what_a_caller_sends(
    patient: Doors, caplog: pytest.LogCaptureFixture
) -> None:
    upgrade = LIVE[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with caplog.at_level(logging.WARNING):
        for said in (upgrade, b"GET / HTTP/9.9\r\n\r\n"):
            with patient.connect(said) as connection:
                read_answer(connection)
    assert caplog.messages == []


def test_an_upgrade_is_answered_as_if_it_were_none(patient: Doors) -> None:
    asks = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n"
    with patient.connect(LIVE[:-2], asks) as connection:
        assert read_answer(connection).startswith(b"HTTP/1.1 200")


def test_many_callers_at_once_are_all_answered(patient: Doors) -> None:
    """More than there are places: a connection that was answered makes room."""

    def ask(_: int) -> bytes:
        with patient.connect(LIVE) as connection:
            return read_answer(connection)

    with ThreadPoolExecutor(MOST - 1) as pool:
        assert all(b'"live"' in answer for answer in pool.map(ask, range(60)))


ALLOWED = """
import resource
from service.connections import allow_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))
try:
    allow_open_files(100)
except OSError as error:
    print(error)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(("hard", "said"), [(4096, "228\n"), (200, "MFDAN_MAX_CONNECTIONS\n64\n")])
def test_open_files_are_allowed_for_all_connections_or_it_is_told(hard: int, said: str) -> None:
    done = subprocess.run(  # noqa: S603 - this file's own code
        [sys.executable, "-c", ALLOWED.format(hard=hard)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith(said)
