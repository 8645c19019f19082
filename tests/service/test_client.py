"""Both clients against a real service, and against what may stand in its place."""

import asyncio
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import pytest
from drawn_clips import encode_clip, grey_steps
from serving import HeldSession, MakeSettings, Pictures, served, wait_for

from mfdan.client import AsyncClient, Client, Prediction, Problem, ProblemError
from service.app import create_app
from service.engine import Engine
from service.keys import digest_of, new_token

Settings = dict[str, Any] | None
Ask = Callable[..., Any]
"""`ask(url, method, *values, settings={}, **options)`: what a client's method returns."""


def ask_sync(
    url: str, method: str, *values: object, settings: Settings = None, **options: object
) -> object:
    with Client(url, **(settings or {})) as client:
        return getattr(client, method)(*values, **options)


def ask_async(
    url: str, method: str, *values: object, settings: Settings = None, **options: object
) -> object:
    async def ask() -> object:
        async with AsyncClient(url, **(settings or {})) as client:
            return await getattr(client, method)(*values, **options)

    return asyncio.run(ask())


@pytest.fixture(params=[ask_sync, ask_async])
def ask(request: pytest.FixtureRequest) -> Ask:
    return request.param


@pytest.fixture(scope="module")
def url(make_settings: MakeSettings) -> Iterator[str]:
    with served(create_app(make_settings())) as url:
        yield url


def without_the_request(answer: Prediction) -> dict[str, Any]:
    return answer.model_dump(exclude={"request_id", "timings_ms"})


def test_a_pair_is_answered_from_bytes_and_from_paths_alike(
    ask: Ask, url: str, pictures: Pictures, tmp_path: Path
) -> None:
    for name, picture in pictures.pair.items():
        (tmp_path / name).write_bytes(picture)
    sent = ask(url, "predict", pictures.onset, pictures.smile, faces=2, explain=True)
    (face,) = sent.faces
    assert face.label in face.probabilities
    assert face.regions
    read = ask(
        url,
        "predict",
        tmp_path / "onset",
        str(tmp_path / "apex"),
        faces=2,
        explain=True,
        model=None,
    )
    assert without_the_request(read) == without_the_request(sent)
    assert read.request_id != sent.request_id


def test_a_clip_and_its_frames_are_answered(ask: Ask, url: str, pictures: Pictures) -> None:
    clip = ask(url, "predict_clip", encode_clip(grey_steps(8)), candidates=2)
    assert (clip.clip.frames, clip.faces) == (8, ())
    frames = [pictures.onset, pictures.smile, pictures.onset]
    burst = ask(url, "predict_frames", frames, 100, onset_frame=0, apex_frame=1)
    assert (burst.clip.container, burst.clip.fps) == ("pictures", 100)
    assert burst.faces[0].source == "given"


def test_a_bad_pair_of_a_batch_is_a_problem_in_its_place(
    ask: Ask, url: str, pictures: Pictures
) -> None:
    pairs = [(pictures.onset, pictures.smile), (pictures.onset, b"no picture")]
    good, bad = ask(url, "predict_batch", pairs, model="tiny").results
    assert good.model.name == "tiny"
    assert isinstance(bad, Problem)
    assert bad.code == "not_an_image"


def test_the_models_are_listed_with_their_classes(ask: Ask, url: str) -> None:
    (card,) = ask(url, "models")
    assert card.default
    assert card.spec.classes == ("negative", "positive", "surprise")


def test_ready_is_asked_and_not_assumed(ask: Ask, url: str, make_settings: MakeSettings) -> None:
    assert ask(url, "ready") is True
    with served(create_app(make_settings())) as other:
        assert ask(other, "ready") is True
    assert ask(other, "ready") is False  # nobody listens there any more


def test_a_refusal_is_a_problem_with_all_that_the_service_said(
    ask: Ask, url: str, pictures: Pictures
) -> None:
    with pytest.raises(ProblemError, match="invalid_fields") as fields:
        ask(url, "predict", *pictures.pair.values(), faces=99)
    assert (fields.value.status, fields.value.code) == (422, "invalid_fields")
    assert [fault.field for fault in fields.value.errors] == ["faces"]
    assert fields.value.request_id
    assert fields.value.retry_after_s is None
    with pytest.raises(ProblemError) as picture:
        ask(url, "predict", pictures.onset, pictures.onset[:200])
    assert picture.value.code == "broken_image"


def test_a_file_that_cannot_be_read_is_told_before_anything_is_sent(ask: Ask) -> None:
    with pytest.raises(FileNotFoundError):
        ask("http://127.0.0.1:1", "predict", "no-such-file.png", b"")


def test_a_service_that_is_not_there_is_no_problem_but_a_transport_error(ask: Ask) -> None:
    with pytest.raises(httpx2.TransportError):
        ask("http://127.0.0.1:1", "models")


def test_the_key_is_sent(ask: Ask, make_settings: MakeSettings, tmp_path: Path) -> None:
    token, keys = new_token(), tmp_path / "keys.toml"
    keys.write_text(f'[keys.me]\nsha256 = "{digest_of(token).hex()}"\n')
    keys.chmod(0o600)
    with served(create_app(make_settings(api_keys_file=keys))) as url:
        assert ask(url, "models", settings={"api_key": token})
        with pytest.raises(ProblemError) as refused:
            ask(url, "models")
    assert (refused.value.status, refused.value.code) == (401, "unauthorized")


@contextmanager
def full(make_settings: MakeSettings, held: HeldSession, pair: dict[str, bytes]) -> Iterator[str]:
    """Serve with the only place taken until `held` lets go."""
    settings = make_settings(max_requests=1)
    with served(create_app(settings, partial(Engine.open, sessions={"tiny": held}))) as url:
        first = threading.Thread(
            target=httpx2.post, args=(f"{url}/predict",), kwargs={"files": pair}
        )
        first.start()
        try:
            wait_for(held.started.is_set)
            yield url
        finally:
            held.may_go.set()
            first.join()


def test_a_full_service_is_asked_again_when_it_says(
    ask: Ask, make_settings: MakeSettings, held: HeldSession, pictures: Pictures
) -> None:
    def free_the_place() -> None:
        refused = 'mfdan_rejections_total{code="too_many_requests"} 1.0'
        wait_for(lambda: refused in httpx2.get(f"{url}/metrics").text)
        held.may_go.set()

    with full(make_settings, held, pictures.pair) as url, ThreadPoolExecutor(1) as pool:
        freed = pool.submit(free_the_place)
        assert ask(url, "predict", *pictures.pair.values()).faces
        freed.result()


class Proxy(BaseHTTPRequestHandler):
    """Answers what a proxy, or a service of another version, might."""

    answers: ClassVar[dict[str, tuple[int, str, bytes]]] = {
        "/html/models": (502, "text/html", b"<h1>Bad Gateway</h1>"),
        "/problem/models": (500, "application/problem+json", b'{"title": "of another service"}'),
        "/other/models": (200, "application/json", b'[{"name": "of another version"}]'),
        "/date/models": (503, "text/plain", b""),
        "/html/health/ready": (502, "text/html", b""),
        "/0/models": (503, "text/plain", b""),
        "/1/models": (429, "text/plain", b""),
    }
    asked: ClassVar[Counter[str]] = Counter()
    most: ClassVar[int] = 20
    """Times that one thing is answered, so that no client asks for ever."""

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        status, kind, body = self.answers[self.path]
        if self.asked[self.path] > self.most:
            status = 500
        wait = self.path.split("/")[1]
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header(
            "Retry-After", wait if wait.isdecimal() else "Wed, 21 Oct 2026 07:28:00 GMT"
        )
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@pytest.fixture(scope="module")
def proxy() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("html", 502, "http_502"),
        ("problem", 500, "http_500"),
        ("date", 503, "http_503"),
        ("other", 200, "unreadable_answer"),
    ],
)
def test_what_is_not_the_services_answer_is_a_problem_too(
    ask: Ask, proxy: str, path: str, status: int, code: str
) -> None:
    with pytest.raises(ProblemError) as found:
        ask(f"{proxy}/{path}", "models")
    assert (found.value.status, found.value.code) == (status, code)
    assert found.value.retry_after_s is None
    assert "another" not in str(found.value)


@pytest.mark.parametrize(
    ("says", "retry_s", "times"), [("0", 0, 1), ("0", 0.9, 1), ("1", 0, 1), ("1", 1.5, 2)]
)
def test_waiting_is_bounded_also_where_no_wait_is_asked_for(
    ask: Ask, proxy: str, says: str, retry_s: float, times: int
) -> None:
    Proxy.asked.clear()
    with pytest.raises(ProblemError) as refused:
        ask(f"{proxy}/{says}", "models", settings={"retry_s": retry_s})
    assert refused.value.retry_after_s == float(says)
    assert Proxy.asked == {f"/{says}/models": times}


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8000", "localhost:8000", "ftp://here", "http://", "", "http://here:x"]
)
def test_what_is_no_address_is_refused_before_anything_is_asked(address: str) -> None:
    for client in (Client, AsyncClient):
        with pytest.raises(ValueError, match="such as http://"):
            client(address)


def test_what_stands_before_the_service_is_not_taken_for_not_ready(ask: Ask, proxy: str) -> None:
    with pytest.raises(ProblemError, match="http_502"):
        ask(f"{proxy}/html", "ready")


def test_the_client_needs_no_runtime_and_no_server() -> None:
    code = (
        "import sys; sys.modules.update(onnxruntime=None, torch=None, fastapi=None, uvicorn=None); "
        "from mfdan.client import AsyncClient, Client; Client('http://127.0.0.1:1').close()"
    )
    run = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
