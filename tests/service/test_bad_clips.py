"""POST /predict with what is no clip, too much of one, or at odds with itself."""

import io
import socket
import struct
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path

import av
import numpy as np
import pytest
from drawn_clips import CODECS, encode_clip, encode_sound, grey_steps, repeat_last
from fastapi.testclient import TestClient
from httpx2 import Response
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import Pictures, Serve, encode, form

from service.settings import MAX_BURST

WAYS = "send either onset and apex, or clip, or frames and fps"


def post(client: TestClient, clip: bytes, **fields: str) -> Response:
    return client.post("/predict", files={"clip": ("secret.mp4", clip, "video/mp4")}, data=fields)


def post_frames(client: TestClient, pictures: Iterable[bytes], fps: str = "30") -> Response:
    files = [("frames", ("secret.png", picture)) for picture in pictures]
    return client.post("/predict", files=files, data={"fps": fps})


def assert_problem(response: Response, status: int, code: str) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert (body["status"], body["code"]) == (status, code), body
    assert body["detail"]
    assert "Traceback" not in response.text
    assert "secret" not in response.text
    return body


@pytest.fixture
def nothing_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusing costs nothing: no frame of the clip is looked at."""

    def fail(*_given: object) -> None:
        raise AssertionError("a refused clip was worked on")

    monkeypatch.setattr("service.preparation.align_clip", fail)


def cut_short() -> bytes:
    whole = encode_clip(grey_steps(12))
    return whole[: len(whole) // 2]


def one_frame() -> bytes:
    return encode_clip(grey_steps(1))


def no_frames() -> bytes:
    """An MP4 whose picture track was announced and never filled."""
    file = io.BytesIO()
    with av.open(
        file, "w", format="mp4", options={"movflags": "empty_moov+frag_keyframe"}
    ) as muxer:
        video = muxer.add_stream("libx264", rate=30)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        muxer.start_encoding()
    return file.getvalue()


def ten_thousand_frames() -> bytes:
    return repeat_last(encode_clip(grey_steps(2)), 9998, fps=1000)


def gigabytes_in_200_kilobytes() -> bytes:
    black = np.zeros((2160, 3840, 3), np.uint8)
    bomb = repeat_last(encode_clip([black] * 2), 3000, fps=200)
    assert len(bomb) < 200_000
    return bomb


def sixteen_thousand_a_side() -> bytes:
    """A GIF that says so of itself."""
    gif = bytearray(encode_clip(grey_steps(3), 25, "gif", "gif"))
    gif[6:10] = struct.pack("<HH", 16_384, 16_384)
    return bytes(gif)


def an_hour() -> bytes:
    return encode_clip(grey_steps(3), 30, times=[0, 1, 3600])


BAD: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "empty": (bytes, 415, "not_a_clip"),
    "random": (partial(np.random.default_rng(1).bytes, 4096), 415, "not_a_clip"),
    "text": (partial(bytes, b"RIFF of no kind" * 99), 415, "not_a_clip"),
    "picture": (lambda: encode(grey_steps(1)[0]), 415, "not_a_clip"),
    "sound only": (encode_sound, 415, "not_a_clip"),
    "cut short": (cut_short, 400, "broken_clip"),
    "no frames": (no_frames, 422, "too_few_frames"),
    "one frame": (one_frame, 422, "too_few_frames"),
    "10,000 frames": (ten_thousand_frames, 413, "clip_too_large"),
    "16k a side": (sixteen_thousand_a_side, 413, "clip_too_large"),
    "gigabytes": (gigabytes_in_200_kilobytes, 413, "clip_too_large"),
    "an hour": (an_hour, 413, "clip_too_large"),
    "tiny frames": (lambda: encode_clip(grey_steps(3, 16, 16)), 422, "image_too_small"),
}


@pytest.mark.usefixtures("nothing_followed")
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_clip_is_refused_before_any_frame_is_looked_at(client: TestClient, kind: str) -> None:
    make, status, code = BAD[kind]
    assert_problem(post(client, make()), status, code)


PLAYLISTS = {
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{place}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {place}\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\na={place}\n",
    "dash": "<?xml version='1.0'?><MPD><BaseURL>{place}</BaseURL></MPD>",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_of_a_local_file_is_415(client: TestClient, tmp_path: Path, kind: str) -> None:
    local = tmp_path / "local.mp4"
    local.write_bytes(encode_clip(grey_steps(6)))
    playlist = PLAYLISTS[kind].format(place=local).encode()
    assert_problem(post(client, playlist), 415, "not_a_clip")


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_of_an_address_is_415_and_nobody_calls_there(
    client: TestClient, kind: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        place = f"http://127.0.0.1:{listener.getsockname()[1]}/clip.mp4"
        assert_problem(
            post(client, PLAYLISTS[kind].format(place=place).encode()), 415, "not_a_clip"
        )
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_clip_of_more_bytes_than_allowed_is_named_as_such(serve: Serve) -> None:
    clip = encode_clip(grey_steps(6))
    with serve(max_clip_bytes=len(clip) - 1) as client:
        body = assert_problem(post(client, clip), 413, "clip_too_large")
        assert str(len(clip)) in body["detail"]


@pytest.mark.parametrize(
    ("cap", "value"),
    [
        ("max_clip_pixels", 64 * 48 - 1),
        ("max_clip_frames", 5),
        ("max_clip_seconds", 0.19),
        ("max_clip_decoded_pixels", 6 * 64 * 48 - 1),
        ("max_clip_decode_s", 1e-9),
    ],
)
def test_every_cap_can_be_set(serve: Serve, cap: str, value: float) -> None:
    clip = encode_clip(grey_steps(6))
    with serve(**{cap: value}) as client:
        assert_problem(post(client, clip), 413, "clip_too_large")


def test_a_frame_that_breaks_in_the_middle_is_400(client: TestClient) -> None:
    rng = np.random.default_rng(2)
    frames = [rng.integers(0, 256, (96, 128, 3), dtype=np.uint8) for _ in range(12)]
    clip = bytearray(encode_clip(frames))
    middle = len(clip) // 2
    clip[middle : middle + 2000] = bytes(2000)
    assert_problem(post(client, bytes(clip)), 400, "broken_clip")


@pytest.fixture(scope="module")
def steps() -> list[bytes]:
    return [encode(frame) for frame in grey_steps(4)]


def test_a_burst_of_one_frame_is_422(client: TestClient, steps: list[bytes]) -> None:
    assert_problem(post_frames(client, steps[:1]), 422, "too_few_frames")


def test_a_burst_of_two_sizes_is_422_and_names_the_frame(
    client: TestClient, steps: list[bytes], pictures: Pictures
) -> None:
    body = assert_problem(
        post_frames(client, [*steps[:2], pictures.onset]), 422, "frame_size_mismatch"
    )
    assert "2" in body["detail"]


@pytest.mark.parametrize(
    ("broken", "status", "code"),
    [(b"", 400, "empty_image"), (b"text" * 50, 415, "not_an_image")],
)
def test_a_bad_picture_of_a_burst_is_named(
    client: TestClient, steps: list[bytes], broken: bytes, status: int, code: str
) -> None:
    body = assert_problem(post_frames(client, [*steps[:3], broken]), status, code)
    assert "3" in body["detail"]


@pytest.mark.usefixtures("nothing_followed")
def test_a_burst_of_more_bytes_than_a_clip_is_413(serve: Serve, steps: list[bytes]) -> None:
    with serve(max_clip_bytes=1024) as client:
        assert_problem(post_frames(client, steps * 20), 413, "clip_too_large")


def faults(response: Response) -> dict[str, str]:
    body = assert_problem(response, 422, "invalid_fields")
    return {fault["field"]: fault["message"] for fault in body["errors"]}


def test_more_frames_than_a_burst_may_have_are_422(client: TestClient) -> None:
    assert set(faults(post_frames(client, [b"x"] * (MAX_BURST + 1)))) == {"frames"}


@pytest.mark.parametrize(
    ("count", "status", "code"),
    [(1024, 422, "invalid_fields"), (1025, 400, "malformed_request")],
)
def test_a_form_of_more_files_than_twice_a_burst_is_not_read(
    client: TestClient, count: int, status: int, code: str
) -> None:
    assert_problem(post_frames(client, [b"x"] * count), status, code)


@pytest.mark.parametrize("blank", [None, ""])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_blank_part_among_frames_is_422_for_the_rest_would_be_miscounted(
    client: TestClient, steps: list[bytes], place: int, blank: str | None
) -> None:
    frames: list[bytes | str | None] = [*steps]
    frames.insert(place, blank)
    parts = [("frames", frame) for frame in frames]
    response = client.post("/predict", **form(*parts, ("fps", "30")))
    assert faults(response) == {"frames": "one of its parts is empty and has no file name"}


def test_frames_with_an_empty_rate_are_422(client: TestClient, steps: list[bytes]) -> None:
    parts = [("frames", step) for step in steps]
    response = client.post("/predict", **form(*parts, ("fps", "")))
    assert faults(response) == {"fps": "Field required"}


def test_a_form_of_all_fields_of_which_only_the_clip_is_filled_is_answered(
    client: TestClient,
) -> None:
    blank = [("onset", None), ("apex", None), ("frames", None), ("fps", ""), ("apex_frame", "")]
    response = client.post("/predict", **form(*blank, ("clip", small("mp4"))))
    assert response.status_code == 200, response.text
    assert response.json()["clip"]["frames"] == 4


@pytest.mark.parametrize("fps", ["0", "-1", "nan", "inf", "1e9", "fast"])
def test_an_impossible_rate_is_422(client: TestClient, steps: list[bytes], fps: str) -> None:
    assert set(faults(post_frames(client, steps, fps))) == {"fps"}


@pytest.mark.parametrize(
    "fields",
    [
        {"onset_frame": "-1"},
        {"apex_frame": "first"},
        {"candidates": "0"},
        {"candidates": "11"},
        {"faces": "9"},
    ],
)
def test_an_impossible_option_is_422(client: TestClient, fields: dict[str, str]) -> None:
    assert set(faults(post(client, b"", **fields))) == set(fields)


def test_frames_without_a_rate_are_422(client: TestClient, steps: list[bytes]) -> None:
    response = client.post("/predict", files=[("frames", step) for step in steps])
    assert faults(response) == {"fps": "Field required"}


def test_a_rate_without_frames_is_422(client: TestClient) -> None:
    assert faults(client.post("/predict", **form(("fps", "30")))) == {"frames": "Field required"}


@pytest.mark.parametrize(
    "fields",
    [
        {"onset", "apex", "clip"},
        {"clip", "frames"},
        {"apex", "frames"},
        {"onset", "apex", "clip", "frames"},
    ],
)
def test_two_ways_at_once_are_422_and_each_field_is_named(
    client: TestClient, fields: set[str]
) -> None:
    response = client.post("/predict", files=[(field, b"x") for field in sorted(fields)])
    assert faults(response) == dict.fromkeys(fields, WAYS)


def test_nothing_at_all_is_422_and_tells_the_three_ways(client: TestClient) -> None:
    response = client.post("/predict", **form(("faces", "1")))
    assert faults(response) == dict.fromkeys(("onset", "apex", "clip", "frames"), WAYS)


def test_a_clip_given_twice_is_422(client: TestClient) -> None:
    response = client.post("/predict", files=[("clip", b"x"), ("clip", b"y")])
    assert faults(response) == {"clip": "is given more than once"}


def test_a_path_in_place_of_a_clip_is_422(client: TestClient) -> None:
    response = client.post("/predict", **form(("clip", "/etc/passwd")))
    assert faults(response) == {"clip": "must be a file: give the part a file name"}


def test_a_batch_holds_no_clips(client: TestClient, pictures: Pictures) -> None:
    response = client.post("/predict/batch", files={**pictures.pair, "clip": b"x"})
    assert faults(response) == {"clip": "is not a field of this form"}


@cache
def small(container: str) -> bytes:
    return encode_clip(grey_steps(4), 25, container, CODECS[container])


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(
    container=st.sampled_from(sorted(CODECS)),
    where=st.floats(0, 1, exclude_max=True),
    written=st.binary(min_size=1, max_size=8),
    kept=st.floats(0.2, 1),
)
def test_a_damaged_clip_is_answered_or_refused_and_never_a_fault_of_ours(
    client: TestClient, container: str, where: float, written: bytes, kept: float
) -> None:
    clip = bytearray(small(container))
    at = int(where * len(clip))
    clip[at : at + len(written)] = written
    response = post(client, bytes(clip[: int(kept * len(clip)) + 1]))
    assert response.status_code in {200, 400, 413, 415, 422}, response.text
    if response.status_code != 200:
        assert_problem(response, response.status_code, response.json()["code"])
