"""POST /predict/batch."""

from fastapi.testclient import TestClient
from httpx2 import Response
from serving import Pictures, form


def post(client: TestClient, pairs: list[tuple[bytes, bytes]], **fields: str) -> Response:
    files = [("onset", onset) for onset, _ in pairs] + [("apex", apex) for _, apex in pairs]
    return client.post("/predict/batch", files=files, data=fields)


def fields_of(response: Response) -> list[str]:
    assert response.status_code == 422, response.text
    assert response.json()["code"] == "invalid_fields"
    return [fault["field"] for fault in response.json()["errors"]]


def test_answers_come_in_request_order(client: TestClient, pictures: Pictures) -> None:
    apexes = [pictures.smile, pictures.brows, pictures.onset, pictures.smile]
    body = post(client, [(pictures.onset, apex) for apex in apexes]).json()
    alone = [
        client.post("/predict", files={"onset": pictures.onset, "apex": apex}).json()
        for apex in apexes
    ]
    assert [one["faces"] for one in body["results"]] == [one["faces"] for one in alone]
    assert body["results"][0]["faces"] != body["results"][1]["faces"]
    assert [one["warnings"] for one in body["results"]] == [[], [], ["identical_frames"], []]


def test_a_bad_pair_has_a_problem_in_its_place_and_the_rest_succeed(
    client: TestClient, pictures: Pictures
) -> None:
    good = (pictures.onset, pictures.smile)
    bad = [(pictures.onset, b"text"), (b"", pictures.onset), (pictures.onset, pictures.two)]
    response = post(client, [good, *bad, good])
    assert response.status_code == 200
    results = response.json()["results"]
    assert [one.get("code") for one in results] == [
        None,
        "not_an_image",
        "empty_image",
        "frame_size_mismatch",
        None,
    ]
    assert [one["status"] for one in results[1:4]] == [415, 400, 422]
    assert results[0]["faces"] == results[4]["faces"]
    assert {one["request_id"] for one in results} == {response.headers["x-request-id"]}


def test_a_batch_of_one_is_a_batch(client: TestClient, pictures: Pictures) -> None:
    assert len(post(client, [(pictures.onset, pictures.smile)]).json()["results"]) == 1


def test_unpaired_frames_are_422(client: TestClient, pictures: Pictures) -> None:
    files = [("onset", pictures.onset), ("onset", pictures.onset), ("apex", pictures.onset)]
    response = client.post("/predict/batch", files=files)
    assert fields_of(response) == ["apex"]
    assert "2 onset and 1 apex" in response.json()["errors"][0]["message"]


def test_blank_parts_among_frames_are_422_for_the_rest_would_be_paired_wrongly(
    client: TestClient, pictures: Pictures
) -> None:
    onsets = [("onset", pictures.onset), ("onset", None), ("onset", pictures.two)]
    apexes = [("apex", None), ("apex", pictures.smile), ("apex", pictures.two_smile)]
    response = client.post("/predict/batch", **form(*onsets, *apexes))
    assert fields_of(response) == ["apex", "onset"]


def test_seventeen_pairs_are_422(client: TestClient, pictures: Pictures) -> None:
    response = post(client, [(pictures.empty, pictures.empty)] * 17)
    assert fields_of(response) == ["onset", "apex"]


def test_an_empty_batch_is_422(client: TestClient) -> None:
    assert fields_of(client.post("/predict/batch")) == ["onset", "apex"]


def test_an_unknown_model_fails_the_whole_batch(client: TestClient, pictures: Pictures) -> None:
    response = post(client, [(pictures.onset, pictures.onset)], model="other")
    assert (response.status_code, response.json()["code"]) == (404, "model_not_found")


def test_options_hold_for_every_pair(client: TestClient, pictures: Pictures) -> None:
    pairs = [(pictures.two, pictures.two_smile)] * 2
    results = post(client, pairs, faces="2", explain="true").json()["results"]
    assert [len(one["faces"]) for one in results] == [2, 2]
    assert all(face["regions"] for one in results for face in one["faces"])
