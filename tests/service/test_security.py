"""Body caps, slow uploads, memory."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from drawn_clips import encode_clip
from drawn_expression_clips import drawn_clip
from fastapi.testclient import TestClient
from httpx2 import Request, Response
from PIL import Image
from serving import HeldSession, MakeSettings, Pictures, Serve, async_client, encode, form

from service import multipart
from service.app import create_app


def assert_problem(response: Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == code


def test_whatever_the_router_takes_to_a_prediction_is_guarded(
    serve: Serve, held: HeldSession, pictures: Pictures
) -> None:
    """Its patterns end with `$`, which the end of a line may follow."""
    infer = ("/v2/models/tiny/infer", "/v2/models/tiny/versions/1/infer")
    paths = [path + end for path in ("/predict", "/predict/batch", *infer) for end in ("", "%0A")]
    with serve(held, max_requests=1) as client, ThreadPoolExecutor(1) as pool:

        def statuses() -> set[int]:
            return {client.post(path).status_code for path in paths}

        first = pool.submit(client.post, "/predict", files=pictures.pair)
        assert held.started.wait(20)
        assert statuses() == {429}
        client.app_state["admission"].drain()
        assert statuses() == {503}
        held.may_go.set()
        assert first.result().status_code == 200


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


@pytest.mark.parametrize("kind", ["pair", "batch", "clip", "frames"])
def test_an_upload_is_held_once_while_it_is_worked_on(
    serve: Serve, held: HeldSession, pictures: Pictures, kind: str
) -> None:
    """What the reading of the form has allocated is its parts, and no buffer beside them."""
    path = "/predict/batch" if kind == "batch" else "/predict"
    files: object = pictures.pair
    if kind == "clip":
        files = {"clip": encode_clip(drawn_clip(fps=25, peak_px=0)[0], 25)}
    if kind == "frames":
        files = [("frames", pictures.onset), ("frames", pictures.smile)]
    data = {"fps": "25"} if kind == "frames" else {}
    sent = len(Request("POST", "http://here", files=files).read())
    with serve(held) as client, ThreadPoolExecutor(1) as pool:
        tracemalloc.start()
        first = pool.submit(client.post, path, files=files, data=data)
        assert held.started.wait(20)
        snapshot = tracemalloc.take_snapshot()
        tracemalloc.stop()
        of_reader = tracemalloc.Filter(inclusive=True, filename_pattern=multipart.__file__)
        held_bytes = sum(trace.size for trace in snapshot.filter_traces([of_reader]).traces)
        assert 0.9 * sent < held_bytes < 1.1 * sent
        held.may_go.set()
        assert first.result().status_code == 200


def test_a_picture_of_many_frames_is_answered_by_its_first(
    client: TestClient, tmp_path: Path
) -> None:
    frames = [Image.new("RGB", (320, 240), colour) for colour in ("red", "blue")]
    path = tmp_path / "two.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    still = encode(np.asarray(frames[0]))
    files = {"onset": path.read_bytes(), "apex": still}
    assert client.post("/predict", files=files).json()["warnings"] == ["identical_frames"]


@pytest.mark.parametrize("lost", [1, 6, 9, 400])
def test_a_form_that_is_cut_short_is_400_and_not_answered_with_a_part_fewer(
    client: TestClient, pictures: Pictures, lost: int
) -> None:
    """The third frame or the boundary behind it is cut; Content-Length speaks of what is sent."""
    whole = form(
        *(("frames", frame) for frame in (pictures.onset, pictures.smile, pictures.onset)),
        ("fps", "200"),
        ("frames", pictures.smile),
    )
    assert client.post("/predict", **whole).status_code == 200
    cut = whole | {"content": whole["content"].removesuffix(b"\r\n")[:-lost]}
    response = client.post("/predict", **cut)
    assert (response.status_code, response.json()["code"]) == (400, "malformed_request")


def test_a_form_may_have_a_line_behind_its_end(client: TestClient, pictures: Pictures) -> None:
    whole = form(("onset", pictures.onset), ("apex", pictures.smile))
    whole["content"] += b"sent by somebody\r\n"
    assert client.post("/predict", **whole).status_code == 200
