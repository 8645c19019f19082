"""POST /predict with a clip, or with its frames as pictures: what is answered."""

from functools import cache

import numpy as np
import pytest
from drawn_clips import encode_clip, encode_pictures
from drawn_expression_clips import drawn_clip
from drawn_face import background, draw_face
from fastapi.testclient import TestClient
from httpx2 import Response
from serving import encode
from tiny_model import CLASSES

Frames = list[np.ndarray]
FPS = 50
ONSET, APEX, OFFSET = 20, 28, 40


@cache
def smiling() -> Frames:
    return drawn_clip(fps=FPS, onset_s=0.4, apex_s=0.56, offset_s=0.8)[0]


@cache
def smiling_clip() -> bytes:
    return encode_clip(smiling(), FPS, options={"crf": "18"})


@cache
def still() -> Frames:
    return drawn_clip(fps=FPS, seconds=0.6, peak_px=0, noise=0)[0]


def short(count: int = 6) -> Frames:
    """Frames that differ, for what only asks how they are read."""
    return smiling()[ONSET : ONSET + count]


def post(client: TestClient, clip: bytes, **fields: object) -> Response:
    data = {name: str(value) for name, value in fields.items()}
    return client.post("/predict", files={"clip": ("c.txt", clip, "text/plain")}, data=data)


def post_frames(client: TestClient, frames: Frames, fps: float = FPS, **fields: object) -> Response:
    files = [("frames", (f"{number}.png", encode(frame))) for number, frame in enumerate(frames)]
    data = {name: str(value) for name, value in {"fps": fps, **fields}.items()}
    return client.post("/predict", files=files, data=data)


def answered(response: Response) -> dict:
    assert response.status_code == 200, response.text
    return response.json()


def only_face(response: Response) -> dict:
    (face,) = answered(response)["faces"]
    return face


def test_an_expression_in_a_clip_is_found_and_judged(client: TestClient) -> None:
    body = answered(post(client, smiling_clip()))
    (face,) = body["faces"]
    assert face["source"] == "spotted"
    assert face["onset_frame"] == pytest.approx(ONSET, abs=3)
    assert face["apex_frame"] == pytest.approx(APEX, abs=3)
    assert face["offset_frame"] == pytest.approx(OFFSET, abs=4)
    for name in ("onset", "apex", "offset"):
        assert face[f"{name}_s"] == pytest.approx(face[f"{name}_frame"] / FPS, abs=1e-3)
    assert face["strength_px"] > face["motion_curve"]["threshold_px"]
    assert list(face["probabilities"]) == list(CLASSES)
    assert (face["abstained"], face["reason"], face["reasons"]) == (False, None, [])
    assert (face["face_id"], face["seen"]) == (1, 1.0)
    assert body["clip"] == {
        "frames": 60,
        "duration_s": 1.2,
        "fps": 50.0,
        "width": 240,
        "height": 180,
        "variable_frame_rate": False,
        "container": "mp4",
        "codec": "h264",
        "scene_cuts": [],
    }
    assert body["warnings"] == []


def test_the_first_candidate_is_the_faces_own_answer(client: TestClient) -> None:
    face = only_face(post(client, smiling_clip()))
    first = face["candidates"][0]
    assert "label" in first
    assert first == {name: face[name] for name in first}


def test_a_long_clip_has_ranked_candidates_each_with_its_own_answer(client: TestClient) -> None:
    parts = [
        drawn_clip(
            fps=30, seconds=2, onset_s=0.8, apex_s=1, offset_s=1.2, peak_px=px, movement=move
        )
        for px, move in ((1.5, "brow_lift"), (3, "smile"))
    ]
    clip = encode_clip([frame for frames, _ in parts for frame in frames], 30)
    face = only_face(post(client, clip))
    strong, weak = face["candidates"]
    assert strong["strength_px"] > weak["strength_px"]
    assert strong["apex_s"] == pytest.approx(3, abs=0.1)
    assert weak["apex_s"] == pytest.approx(1, abs=0.1)
    assert strong["probabilities"] != weak["probabilities"]
    assert len(only_face(post(client, clip, candidates=1))["candidates"]) == 1


def test_the_motion_curve_stands_in_the_answer(client: TestClient) -> None:
    curve = only_face(post(client, smiling_clip()))["motion_curve"]
    assert curve["frames"] == list(range(60))
    assert curve["times_s"] == pytest.approx([number / FPS for number in range(60)], abs=1e-3)
    assert int(np.argmax(curve["motion_px"])) == pytest.approx(APEX, abs=3)
    assert 0 < curve["threshold_px"] < max(curve["motion_px"])


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "h264"),
        ("mp4", "hevc"),
        ("mp4", "av1"),
        ("mov", "mjpeg"),
        ("mkv", "ffv1"),
        ("webm", "vp9"),
        ("avi", "mpeg4"),
        ("gif", "gif"),
    ],
)
def test_every_container_is_read_whatever_the_part_claims(
    client: TestClient, container: str, codec: str
) -> None:
    body = answered(post(client, encode_clip(short(), FPS, container, codec)))
    assert (body["clip"]["container"], body["clip"]["codec"]) == (container, codec)
    assert body["clip"]["frames"] == 6
    assert len(body["faces"]) == 1


def test_the_same_frames_are_answered_alike_as_pictures_and_as_a_clip(client: TestClient) -> None:
    frames = smiling()[10:50]
    pictures = answered(post_frames(client, frames))
    clip = answered(post(client, encode_pictures(frames, FPS, "webp")))
    assert (pictures["clip"]["container"], clip["clip"]["container"]) == ("pictures", "webp")
    assert pictures["faces"] == clip["faces"]
    assert clip["faces"][0]["source"] == "spotted"


def test_two_named_frames_are_answered_like_the_pair_that_they_are(client: TestClient) -> None:
    face = only_face(post_frames(client, smiling(), onset_frame=ONSET, apex_frame=APEX))
    files = {"onset": encode(smiling()[ONSET]), "apex": encode(smiling()[APEX])}
    pair = only_face(client.post("/predict", files=files))
    assert face["source"] == "given"
    assert (face["onset_frame"], face["apex_frame"]) == (ONSET, APEX)
    assert len(face["candidates"]) == 1
    for name in ("box", "label", "probabilities", "reasons", "motion", "quality"):
        assert face[name] == pair[name]


@pytest.mark.parametrize("named", [{"onset_frame": ONSET - 2}, {"apex_frame": APEX + 1}])
def test_a_named_frame_is_kept_and_the_other_is_found(
    client: TestClient, named: dict[str, int]
) -> None:
    face = only_face(post(client, smiling_clip(), **named))
    assert face["source"] == "given"
    assert face["onset_frame"] == pytest.approx(ONSET, abs=4)
    assert face["apex_frame"] == pytest.approx(APEX, abs=4)
    (name,) = named
    assert face[name] == named[name]


@pytest.mark.parametrize(
    "named",
    [{"onset_frame": 60}, {"apex_frame": 0}, {"onset_frame": 9, "apex_frame": 9}],
)
def test_a_frame_that_cannot_be_meant_is_422(client: TestClient, named: dict[str, int]) -> None:
    response = post(client, smiling_clip(), **named)
    assert (response.status_code, response.json()["code"]) == (422, "frame_out_of_range")
    assert str(next(iter(named.values()))) in response.json()["detail"]


def two_people() -> Frames:
    """The larger face keeps still, the smaller one smiles about frame 15."""
    large = draw_face(background(240, 480), centre=(130.0, 110.0), eye_distance=52.0)

    @cache
    def frame(smile: float) -> np.ndarray:
        return draw_face(large, centre=(350.0, 110.0), eye_distance=45.0, smile=smile)

    return [frame(float(smile)) for smile in np.interp(range(30), [9, 15, 21], [0, 3, 0])]


def test_each_of_several_faces_is_answered_the_larger_first(client: TestClient) -> None:
    clip = encode_clip(two_people(), 30, options={"crf": "18"})
    one = answered(post(client, clip))
    assert one["warnings"] == ["several_faces", "low_frame_rate", "middle_frame"]
    both = answered(post(client, clip, faces=2))
    assert both["warnings"] == ["low_frame_rate", "middle_frame"]
    larger, smaller = both["faces"]
    assert (larger["face_id"], smaller["face_id"]) == (1, 2)
    assert larger["box"]["width"] > smaller["box"]["width"]
    assert (larger["source"], larger["reason"]) == ("middle_frame", "no_movement")
    assert smaller["source"] == "spotted"
    assert smaller["apex_frame"] == pytest.approx(15, abs=1)


def test_frames_in_which_nobody_is_seen_are_told_and_not_that_there_are_more_faces(
    client: TestClient,
) -> None:
    nobody = [background(240, 480)] * 40
    clip = encode_clip(two_people() * 2 + nobody, 50, options={"crf": "18"})
    for named in ({"apex_frame": 90}, {"onset_frame": 90}, {"onset_frame": 9, "apex_frame": 90}):
        body = answered(post(client, clip, **named))
        assert body["faces"] == []
        assert body["warnings"] == ["not_seen_in_named_frames"]
    seen = answered(post(client, clip, onset_frame=9, apex_frame=15))
    assert len(seen["faces"]) == 1
    assert seen["warnings"] == ["several_faces"]


def test_a_clip_without_a_face_is_a_normal_answer(client: TestClient) -> None:
    scene = [np.roll(background(180, 240), shift, axis=1) for shift in range(8)]
    body = answered(post(client, encode_clip(scene, FPS)))
    assert body["faces"] == []
    assert body["clip"]["frames"] == 8


def test_a_face_in_half_of_the_frames_is_answered_with_a_warning(client: TestClient) -> None:
    empty = [background(180, 240)] * 60
    face = only_face(post(client, encode_clip(smiling() + empty, FPS, options={"crf": "18"})))
    assert "partly_seen" in face["warnings"]
    assert 0.3 < face["seen"] < 0.8
    assert face["apex_frame"] == pytest.approx(APEX, abs=3)
    assert max(face["motion_curve"]["frames"]) < 60


def test_a_scene_cut_is_told_and_no_movement_reaches_across_it(client: TestClient) -> None:
    other = draw_face(background(180, 240)[::-1], centre=(70.0, 60.0), eye_distance=36.0, tone=0.5)
    clip = encode_clip(smiling() + [other] * 30, FPS, options={"crf": "18"})
    body = answered(post(client, clip, faces=2))
    assert body["clip"]["scene_cuts"] == [60]
    assert "scene_cuts" in body["warnings"]
    first, second = body["faces"]
    assert first["apex_frame"] == pytest.approx(APEX, abs=3)
    assert second["onset_frame"] >= 60


def test_a_still_clip_abstains_for_want_of_movement(client: TestClient) -> None:
    body = answered(post(client, encode_clip(still(), FPS, "mkv", "ffv1")))
    (face,) = body["faces"]
    assert body["warnings"] == ["middle_frame"]
    assert (face["source"], face["onset_frame"], face["apex_frame"]) == ("middle_frame", 0, 15)
    assert face["abstained"]
    assert face["reasons"][0] == "no_movement"
    assert "no_expression_spotted" not in face["reasons"]


def test_movement_without_an_expression_abstains(client: TestClient) -> None:
    """A smile that comes once and stays is no state that is left and regained."""
    rise, _ = drawn_clip(fps=25, seconds=3, onset_s=0.9, apex_s=1.1, offset_s=2.9)
    frames = [*rise[:28], *[rise[28]] * 47]
    face = only_face(post_frames(client, frames, fps=25))
    assert face["source"] == "middle_frame"
    assert face["motion"]["p95_px"] > 0.5
    assert face["reasons"][0] == face["reason"] == "no_expression_spotted"
    assert face["abstained"]


@pytest.mark.parametrize(("fps", "warned"), [(49, True), (50, False)])
def test_a_low_frame_rate_is_warned_of(client: TestClient, fps: int, warned: bool) -> None:  # noqa: FBT001 - a case
    body = answered(post(client, encode_clip(short(), fps)))
    assert ("low_frame_rate" in body["warnings"]) == warned


def test_an_uneven_rate_is_told_and_times_are_true(client: TestClient) -> None:
    times = [0.02 * number + (0.3 if number > 30 else 0) for number in range(60)]
    body = answered(post(client, encode_clip(smiling(), FPS, times=times)))
    assert body["clip"]["variable_frame_rate"]
    curve = body["faces"][0]["motion_curve"]
    assert curve["times_s"] == pytest.approx(
        [times[number] for number in curve["frames"]], abs=1e-3
    )


def test_a_turned_clip_is_answered_upright(client: TestClient) -> None:
    lying = [np.ascontiguousarray(np.rot90(frame)) for frame in smiling()]
    body = answered(post(client, encode_clip(lying, FPS, rotation=-90, options={"crf": "18"})))
    assert (body["clip"]["width"], body["clip"]["height"]) == (240, 180)
    assert body["faces"][0]["apex_frame"] == pytest.approx(APEX, abs=3)


def test_explain_tells_how_each_region_moved(client: TestClient) -> None:
    face = only_face(post(client, smiling_clip(), explain="true"))
    assert "mouth" in face["regions"][0]["region"]
    assert only_face(post(client, smiling_clip()))["regions"] is None


def test_stages_of_a_clip_are_timed(client: TestClient) -> None:
    response = post(client, smiling_clip())
    timings = response.json()["timings_ms"]
    own = ["decode", "detect", "spot", "align", "flow", "quality", "tensors"]
    stages = [*own, "infer", "total"]
    assert list(timings) == stages
    assert all(ms > 0 for ms in timings.values())
    assert sum(timings[stage] for stage in own) < timings["total"]
    assert all(f"{stage};dur=" in response.headers["server-timing"] for stage in stages)
