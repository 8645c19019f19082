"""Body caps, slow uploads, disk, headers."""

import asyncio
import gc
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from drawn_clips import encode_clip, encode_pictures
from drawn_expression_clips import drawn_clip
from fastapi.testclient import TestClient
from httpx2 import Response
from PIL import Image
from serving import HeldSession, MakeSettings, Pictures, Serve, async_client, encode
from starlette.datastructures import UploadFile

from service.app import create_app


def assert_problem(response: Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == code


def test_a_body_announced_too_large_is_413(serve: Serve, pictures: Pictures) -> None:
    with serve(max_body_bytes=2048) as client:
        assert_problem(client.post("/predict", files=pictures.pair), 413, "body_too_large")
        counted = 'mfdan_requests_total{method="POST",route="/predict",status="413"} 1.0'
        assert counted in client.get("/metrics").text


def test_a_body_that_grows_too_large_is_413(serve: Serve, pictures: Pictures) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="onset"; filename="a"\r\n\r\n'
        for _ in range(20):
            yield bytes(1024)

    headers = {"content-type": "multipart/form-data; boundary=b"}
    with serve(max_body_bytes=4096) as client:
        response = client.post("/predict", content=chunks(), headers=headers)
        assert "content-length" not in response.request.headers
        assert_problem(response, 413, "body_too_large")
        assert_problem(
            client.post("/predict", files=pictures.pair), 413, "body_too_large"
        )  # and the service goes on


def test_a_pair_or_clip_may_hold_less_than_a_batch(serve: Serve) -> None:
    big = b"x" * 300_000
    with serve(max_image_bytes=1024, max_clip_bytes=1024, max_body_bytes=2**20) as client:
        files = {"onset": big, "apex": big}
        assert_problem(client.post("/predict", files=files), 413, "body_too_large")
        response = client.post("/predict/batch", files=files)
        assert response.json()["results"][0]["code"] == "image_too_large"


def test_a_body_where_none_belongs_is_413(client: TestClient) -> None:
    response = client.request("GET", "/models", content=bytes(2**17))
    assert_problem(response, 413, "body_too_large")


def test_an_upload_that_stalls_is_408(make_settings: MakeSettings) -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield b"--b\r\n"
        await asyncio.sleep(30)

    async def run() -> Response:
        app = create_app(make_settings(upload_timeout_ms=200))
        async with app.router.lifespan_context(app) as state, async_client(app, state) as client:
            headers = {"content-type": "multipart/form-data; boundary=b"}
            return await client.post("/predict", content=stalled(), headers=headers)

    assert_problem(asyncio.run(run()), 408, "upload_timeout")


class Opened:
    """Files opened for writing while it watches; an audit hook cannot be taken back."""

    def __init__(self) -> None:
        self.paths: list[object] = []
        self.watching = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[object, ...]) -> None:
        if self.watching and event == "open" and _may_write(*args[1:]):
            self.paths.append(args[0])


def _may_write(mode: object, flags: object) -> bool:
    by_mode = isinstance(mode, str) and any(letter in mode for letter in "wax+")
    return by_mode or (isinstance(flags, int) and flags & 3 != 0)


@pytest.fixture(scope="module")
def opened() -> Opened:
    return Opened()


def test_an_upload_never_touches_the_disk(client: TestClient, opened: Opened) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    picture = encode(noise)
    assert len(picture) > 3 * 2**20  # Starlette would spool one megabyte to disk
    opened.watching = True
    response = client.post("/predict", files={"onset": picture, "apex": picture})
    opened.watching = False
    assert response.status_code == 200
    assert opened.paths == []


@pytest.fixture(scope="module")
def noisy_frames() -> list[np.ndarray]:
    """A drawn face in much noise, which no codec makes small."""
    frames, _ = drawn_clip(fps=50, noise=12, size=(360, 480), eye_distance=90, seconds=0.5)
    return frames


@pytest.mark.parametrize("container", ["mkv", "webp"])
def test_a_clip_never_touches_the_disk(
    client: TestClient, opened: Opened, noisy_frames: list[np.ndarray], container: str
) -> None:
    clip = (
        encode_pictures(noisy_frames, 50)
        if container == "webp"
        else encode_clip(noisy_frames, 50, "mkv", "ffv1")
    )
    assert len(clip) > 3 * 2**20
    opened.watching = True
    response = client.post("/predict", files={"clip": clip})
    opened.watching = False
    assert response.status_code == 200
    assert len(response.json()["faces"]) == 1
    assert opened.paths == []


@pytest.mark.parametrize("kind", ["pair", "batch", "clip", "frames"])
def test_an_upload_is_held_once_while_it_is_worked_on(
    serve: Serve, held: HeldSession, pictures: Pictures, kind: str
) -> None:
    """The form's own buffers are freed once their parts are read."""
    path = "/predict/batch" if kind == "batch" else "/predict"
    files: object = pictures.pair
    if kind == "clip":
        files = {"clip": encode_clip(drawn_clip(fps=25, peak_px=0)[0], 25)}
    if kind == "frames":
        files = [("frames", pictures.onset), ("frames", pictures.smile)]
    data = {"fps": "25"} if kind == "frames" else {}
    with serve(held) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, path, files=files, data=data)
        assert held.started.wait(20)
        # By type: isinstance would wake whatever lazy objects other tests have imported.
        parts = [part for part in gc.get_objects() if issubclass(type(part), UploadFile)]
        assert parts
        assert [part.filename for part in parts if not part.file.closed] == []
        held.may_go.set()
        assert first.result().status_code == 200


def test_the_watch_over_the_disk_would_notice(opened: Opened, tmp_path: Path) -> None:
    opened.watching = True
    with tempfile.SpooledTemporaryFile(max_size=10, dir=tmp_path) as spool:
        spool.write(bytes(11))
    opened.watching = False
    assert str(tmp_path) in map(str, opened.paths)
    opened.paths.clear()


def test_every_answer_carries_protective_headers(
    serve: Serve, held: HeldSession, pictures: Pictures
) -> None:
    def fail(*_given: object) -> None:
        raise ZeroDivisionError

    held.run = fail
    with serve(held) as client:
        answers = [client.get(path) for path in ("/models", "/docs", "/nothing")]
        answers.append(client.get("/models", headers={"content-length": "70000"}))
        answers.append(client.post("/predict", files=pictures.pair))
    assert [answer.status_code for answer in answers] == [200, 200, 404, 413, 500]
    for headers in (answer.headers for answer in answers):
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "default-src 'self'" in headers["content-security-policy"]


def test_the_documentation_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "https://" not in page.replace("https://fastapi.tiangolo.com", "")
    for path in ("/static-offline-docs/swagger-ui-bundle.js", "/openapi.json"):
        assert path in page
        assert client.get(path).status_code == 200


def test_a_picture_of_many_frames_is_answered_by_its_first(
    client: TestClient, tmp_path: Path
) -> None:
    frames = [Image.new("RGB", (320, 240), colour) for colour in ("red", "blue")]
    path = tmp_path / "two.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    still = encode(np.asarray(frames[0]))
    files = {"onset": path.read_bytes(), "apex": still}
    assert client.post("/predict", files=files).json()["warnings"] == ["identical_frames"]
