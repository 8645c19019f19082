"""POST /predict: normal answers, and every kind of bad input."""

import io
import zlib

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from PIL import Image
from serving import Pictures, Serve, form
from tiny_model import CLASSES


def post(client: TestClient, onset: bytes, apex: bytes, **fields: str) -> Response:
    files = {"onset": ("a.png", onset), "apex": ("b.png", apex)}
    return client.post("/predict", files=files, data=fields)


def assert_problem(response: Response, status: int, code: str) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["type"] == f"urn:mfdan:problem:{code}"
    assert (body["status"], body["code"]) == (status, code)
    assert body["request_id"] == response.headers["x-request-id"]
    assert body["detail"]
    assert "Traceback" not in response.text
    assert "b.png" not in response.text
    return body


def test_a_moved_face_is_answered_with_probabilities(
    client: TestClient, pictures: Pictures
) -> None:
    body = post(client, pictures.onset, pictures.smile).json()
    (face,) = body["faces"]
    assert list(face["probabilities"]) == list(CLASSES)
    assert sum(face["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert face["label"] == max(face["probabilities"], key=face["probabilities"].get)
    assert face["abstained"] is False
    assert face["reason"] is None
    assert face["motion"]["p95_px"] > 0.5
    assert face["score"] > 0.9
    assert face["quality"]["eye_distance_px"] == pytest.approx(50, abs=5)
    assert face["warnings"] == []
    assert body["clip"] is None
    assert face["motion_curve"] is None
    assert face["candidates"] == []
    box = face["box"]
    assert box["x"] < 160 < box["x"] + box["width"]
    assert box["y"] < 110 < box["y"] + box["height"]
    assert body["warnings"] == []
    assert body["model"]["name"] == "tiny"
    assert body["provider"] == "CPUExecutionProvider"
    assert body["flow"]["backend"] == "opencv-cpu"


def test_different_movements_are_answered_differently(
    client: TestClient, pictures: Pictures
) -> None:
    faces = [
        post(client, pictures.onset, apex).json()["faces"][0]
        for apex in (pictures.smile, pictures.brows)
    ]
    assert faces[0]["probabilities"] != faces[1]["probabilities"]


def test_an_explanation_names_what_moved_most(client: TestClient, pictures: Pictures) -> None:
    explained = post(client, pictures.onset, pictures.smile, explain="true").json()
    assert "mouth_corner" in explained["faces"][0]["regions"][0]["region"]
    assert explained["faces"][0]["regions"][0]["down_px"] < 0
    plain = post(client, pictures.onset, pictures.smile).json()
    assert plain["faces"][0]["regions"] is None


def test_timings_add_up_and_travel_in_the_header(client: TestClient, pictures: Pictures) -> None:
    response = post(client, pictures.onset, pictures.smile)
    timings = response.json()["timings_ms"]
    assert list(timings) == [
        *("decode", "detect", "align", "flow", "quality", "tensors", "infer", "total")
    ]
    assert all(ms >= 0 for ms in timings.values())
    assert sum(timings.values()) - timings["total"] <= timings["total"]
    assert f"flow;dur={timings['flow']}" in response.headers["server-timing"]


def test_the_same_frame_twice_abstains(client: TestClient, pictures: Pictures) -> None:
    body = post(client, pictures.onset, pictures.onset).json()
    assert body["warnings"] == ["identical_frames"]
    assert body["faces"][0]["abstained"] is True
    assert body["faces"][0]["reason"] == "no_movement"


def test_no_face_is_a_normal_answer(client: TestClient, pictures: Pictures) -> None:
    response = post(client, pictures.empty, pictures.empty)
    assert response.status_code == 200
    assert response.json()["faces"] == []


def test_of_two_faces_the_larger_is_answered_with_a_warning(
    client: TestClient, pictures: Pictures
) -> None:
    body = post(client, pictures.two, pictures.two_smile).json()
    assert body["warnings"] == ["several_faces"]
    (face,) = body["faces"]
    assert face["box"]["x"] < 130 < face["box"]["x"] + face["box"]["width"]
    assert face["reason"] == "no_movement"


def test_two_faces_asked_for_are_both_answered_the_larger_first(
    client: TestClient, pictures: Pictures
) -> None:
    body = post(client, pictures.two, pictures.two_smile, faces="2").json()
    assert body["warnings"] == []
    assert [face["reason"] for face in body["faces"]] == ["no_movement", None]
    assert [face["reasons"] for face in body["faces"]] == [["no_movement"], []]
    assert [face["face_id"] for face in body["faces"]] == [1, 2]
    assert body["faces"][0]["box"]["width"] > body["faces"][1]["box"]["width"]


def test_a_face_at_the_border_is_answered_with_a_warning(
    client: TestClient, pictures: Pictures
) -> None:
    (face,) = post(client, pictures.border, pictures.border_smile).json()["faces"]
    assert face["warnings"] == ["face_at_border"]
    assert 0.1 < face["quality"]["outside"] < 0.6


def test_a_moving_head_is_answered_with_a_warning(client: TestClient, pictures: Pictures) -> None:
    (face,) = post(client, pictures.onset, pictures.moved_head).json()["faces"]
    assert face["warnings"] == ["head_motion"]
    assert face["motion"]["head_px"] > 2.5


def test_a_head_that_moved_far_makes_the_answer_abstain(
    client: TestClient, pictures: Pictures
) -> None:
    (face,) = post(client, pictures.onset, pictures.far_head).json()["faces"]
    assert face["abstained"]
    assert face["reason"] == face["reasons"][0] == "head_motion"
    assert "head_motion" not in face["warnings"]


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP"])
def test_every_picture_format_is_read_whatever_the_part_claims(
    client: TestClient, pictures: Pictures, kind: str
) -> None:
    picture = Image.open(io.BytesIO(pictures.onset))
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    files = {name: ("x.png", buffer.getvalue(), "text/plain") for name in ("onset", "apex")}
    assert len(client.post("/predict", files=files).json()["faces"]) == 1


def test_an_unreadable_upload_is_415(client: TestClient, pictures: Pictures) -> None:
    body = assert_problem(post(client, pictures.onset, b"GIF89a no"), 415, "not_an_image")
    assert body["detail"].startswith("Apex: ")


def test_a_text_file_is_415(client: TestClient, pictures: Pictures) -> None:
    assert_problem(post(client, b"onset,apex\n" * 50, pictures.onset), 415, "not_an_image")


def test_a_truncated_picture_is_400(client: TestClient, pictures: Pictures) -> None:
    half = pictures.smile[: len(pictures.smile) // 2]
    assert_problem(post(client, pictures.onset, half), 400, "broken_image")


def test_a_corrupt_picture_is_400(client: TestClient, pictures: Pictures) -> None:
    corrupt = bytearray(pictures.onset)
    corrupt[len(corrupt) // 2 : len(corrupt) // 2 + 64] = bytes(64)
    assert_problem(post(client, bytes(corrupt), pictures.onset), 400, "broken_image")


def test_an_empty_file_is_400(client: TestClient, pictures: Pictures) -> None:
    body = assert_problem(post(client, b"", pictures.onset), 400, "empty_image")
    assert body["detail"].startswith("Onset: ")


def test_a_one_pixel_picture_is_422(client: TestClient) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    assert_problem(post(client, buffer.getvalue(), buffer.getvalue()), 422, "image_too_small")


def test_frames_of_different_sizes_are_422(client: TestClient, pictures: Pictures) -> None:
    body = assert_problem(post(client, pictures.onset, pictures.two), 422, "frame_size_mismatch")
    assert "320x240" in body["detail"]
    assert "480x240" in body["detail"]


def test_too_many_pixels_are_413_before_any_is_decoded(
    client: TestClient, pictures: Pictures
) -> None:
    bomb = png_header(40_000, 40_000)  # of 1.6 thousand million pixels, in a hundred bytes
    assert_problem(post(client, bomb, pictures.onset), 413, "image_too_large")


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)

    size = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    data = zlib.compress(bytes(16))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_too_many_bytes_in_a_picture_are_413(serve: Serve, pictures: Pictures) -> None:
    with serve(max_image_bytes=len(pictures.onset) - 1) as client:
        assert_problem(post(client, pictures.onset, pictures.onset), 413, "image_too_large")


@pytest.mark.parametrize("missing", ["onset", "apex"])
def test_a_missing_frame_is_422(client: TestClient, pictures: Pictures, missing: str) -> None:
    files = dict.fromkeys({"onset", "apex"} - {missing}, pictures.onset)
    body = assert_problem(client.post("/predict", files=files), 422, "invalid_fields")
    assert body["errors"] == [{"field": missing, "message": "Field required"}]


def test_no_form_at_all_is_422(client: TestClient) -> None:
    body = assert_problem(client.post("/predict"), 422, "invalid_fields")
    assert [fault["field"] for fault in body["errors"]] == ["apex", "clip", "frames", "onset"]


def test_a_body_of_json_is_422(client: TestClient) -> None:
    assert_problem(client.post("/predict", json={"onset": "x"}), 422, "invalid_fields")


def test_text_in_place_of_a_file_is_422(client: TestClient) -> None:
    response = client.post("/predict", **form(("onset", "a"), ("apex", "b")))
    body = assert_problem(response, 422, "invalid_fields")
    assert body["errors"][0]["message"] == "must be a file: give the part a file name"


@pytest.mark.parametrize("sent", [{"data": {"onset": "a", "apex": "b"}}, {"json": {"onset": "a"}}])
def test_who_sends_no_multipart_form_is_told_so(client: TestClient, sent: dict) -> None:
    body = assert_problem(client.post("/predict", **sent), 422, "invalid_fields")
    assert body["errors"] == [
        {"field": "body", "message": "must be a form, sent as multipart/form-data"}
    ]


def test_a_file_in_place_of_text_is_422(client: TestClient, pictures: Pictures) -> None:
    files = {"onset": pictures.onset, "apex": pictures.onset, "faces": ("f", b"1")}
    body = assert_problem(client.post("/predict", files=files), 422, "invalid_fields")
    assert body["errors"] == [
        {"field": "faces", "message": "must be text: give the part no file name"}
    ]


def test_an_unknown_field_is_422(client: TestClient, pictures: Pictures) -> None:
    body = assert_problem(
        post(client, pictures.onset, pictures.onset, colour="red"), 422, "invalid_fields"
    )
    assert body["errors"] == [{"field": "colour", "message": "is not a field of this form"}]


def test_a_long_unknown_name_is_told_by_its_beginning(client: TestClient) -> None:
    response = client.post("/predict", files={"größe" + "x" * 2000: b"1"})
    body = assert_problem(response, 422, "invalid_fields")
    assert [fault["field"] for fault in body["errors"]] == ["größe" + "x" * 59]


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("unicode_escape", rb"\ud800"),
        ("raw_unicode_escape", rb"\ud800"),
        ("utf-7", b"+2AA-"),
        ("utf-16-le", b"\x00\xd8"),
        ("undefined", b"colour"),
        ("zlib", b"colour"),
    ],
)
def test_a_name_in_an_odd_charset_is_the_callers_fault(
    client: TestClient, charset: str, name: bytes
) -> None:
    part = b'Content-Disposition: form-data; name="' + name + b'"\r\n\r\n1\r\n'
    headers = {"content-type": f"multipart/form-data; boundary=b; charset={charset}"}
    response = client.post("/predict", content=b"--b\r\n" + part + b"--b--\r\n", headers=headers)
    assert response.status_code in {400, 422}, response.text
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("field", ["onset_frame", "apex_frame", "candidates"])
def test_a_field_of_clips_is_422_with_a_pair(
    client: TestClient, pictures: Pictures, field: str
) -> None:
    response = post(client, pictures.onset, pictures.smile, **{field: "1"})
    body = assert_problem(response, 422, "invalid_fields")
    assert body["errors"] == [
        {"field": field, "message": "belongs to a clip or frames, not to a pair"}
    ]


def test_a_frame_given_twice_is_422(client: TestClient, pictures: Pictures) -> None:
    files = [("onset", pictures.onset), ("onset", pictures.onset), ("apex", pictures.onset)]
    body = assert_problem(client.post("/predict", files=files), 422, "invalid_fields")
    assert body["errors"] == [{"field": "onset", "message": "is given more than once"}]


@pytest.mark.parametrize("faces", ["0", "9", "-1", "many"])
def test_an_impossible_number_of_faces_is_422(
    client: TestClient, pictures: Pictures, faces: str
) -> None:
    response = post(client, pictures.onset, pictures.onset, faces=faces)
    body = assert_problem(response, 422, "invalid_fields")
    assert body["errors"][0]["field"] == "faces"


def test_an_unknown_model_is_404(client: TestClient, pictures: Pictures) -> None:
    response = post(client, pictures.onset, pictures.onset, model="../tiny")
    assert_problem(response, 404, "model_not_found")


def test_a_model_can_be_named(client: TestClient, pictures: Pictures) -> None:
    response = post(client, pictures.onset, pictures.onset, model="tiny")
    assert response.json()["model"]["name"] == "tiny"


@pytest.mark.parametrize("boundary", ["", "; boundary=x"])
def test_a_malformed_form_is_400(client: TestClient, boundary: str) -> None:
    headers = {"content-type": f"multipart/form-data{boundary}"}
    response = client.post("/predict", content=b"no form", headers=headers)
    assert_problem(response, 400, "malformed_request")


def test_another_method_is_405_and_names_the_right_one(client: TestClient) -> None:
    response = client.get("/predict")
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_another_path_is_404(client: TestClient) -> None:
    assert_problem(client.get("/predictions"), 404, "not_found")


BLANKS = [("clip", None), ("clip", ""), ("frames", None), ("frames", ""), ("fps", "")]


@pytest.mark.parametrize("blank", [*BLANKS, ("onset_frame", ""), ("faces", ""), ("model", "")])
def test_a_field_that_nobody_filled_is_not_given(
    client: TestClient, pictures: Pictures, blank: tuple[str, str | None]
) -> None:
    parts = [("onset", pictures.onset), ("apex", pictures.smile)]
    plain = client.post("/predict", **form(*parts))
    assert plain.status_code == 200, plain.text
    for order in ([blank, *parts], [*parts, blank]):
        response = client.post("/predict", **form(*order))
        assert response.status_code == 200, response.text
        assert response.json()["faces"] == plain.json()["faces"]


@pytest.mark.parametrize("blank", [*BLANKS, ("onset", None), ("apex", None), ("onset", "")])
def test_a_form_that_nobody_filled_is_422_and_tells_the_three_ways(
    client: TestClient, blank: tuple[str, str | None]
) -> None:
    body = assert_problem(client.post("/predict", **form(blank)), 422, "invalid_fields")
    assert [fault["field"] for fault in body["errors"]] == ["apex", "clip", "frames", "onset"]
    assert all("send either" in fault["message"] for fault in body["errors"])


@pytest.mark.parametrize("blank", [None, ""])
def test_half_a_pair_whose_other_half_is_blank_is_422(
    client: TestClient, pictures: Pictures, blank: str | None
) -> None:
    response = client.post("/predict", **form(("onset", pictures.onset), ("apex", blank)))
    body = assert_problem(response, 422, "invalid_fields")
    assert body["errors"] == [{"field": "apex", "message": "Field required"}]


@pytest.mark.parametrize("name", ["clip", "onset"])
def test_a_file_beside_a_blank_part_of_its_name_is_422(
    client: TestClient, pictures: Pictures, name: str
) -> None:
    """Whichever comes last: which of them is meant, only the caller knows."""
    both = [(name, pictures.onset), (name, None)]
    for order in (both, both[::-1]):
        response = client.post("/predict", **form(*order, ("apex", pictures.onset)))
        body = assert_problem(response, 422, "invalid_fields")
        assert body["errors"] == [{"field": name, "message": "is given more than once"}]
