"""The Open Inference Protocol as tritonclient speaks it, to a real server."""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import tritonclient.http as triton
from serving import HeldSession, MakeSettings, Serve, async_client, served, until
from tiny_model import CLASSES
from tritonclient.utils import InferenceServerException

from model.session import Session
from service.app import create_app
from service.engine import Engine
from service.open_inference_body import MAX_JSON_BYTES

SIDE = 224
INFER = "/v2/models/tiny/infer"


@pytest.fixture(scope="module")
def url(make_settings: MakeSettings) -> Iterator[str]:
    with served(create_app(make_settings())) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        yield client


@pytest.fixture(scope="module")
def session(models_dir: Path) -> Session:
    return Session.open(next(models_dir.glob("*.onnx")))


def tensors(rows: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = rows, 3, SIDE, SIDE
    # A level of its own for each row: the tiny model answers means.
    level = rng.random((2, rows, 3, 1, 1), np.float32)
    image, flow = level + rng.random((2, *shape), np.float32) / 10
    return image, flow


def inputs(*arrays: np.ndarray, binary: bool = True) -> list[triton.InferInput]:
    asked = []
    for name, array in zip(("image", "flow"), arrays, strict=True):
        one = triton.InferInput(name, list(array.shape), "FP32")
        asked.append(one.set_data_from_numpy(array, binary_data=binary))
    return asked


def refused(answer: httpx2.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"}
    return answer.status_code, answer.json()["error"]


def test_the_server_and_the_model_say_that_they_are_well(
    client: triton.InferenceServerClient,
) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("tiny", "2")
    assert not client.is_model_ready("huge")


def test_metadata_tells_what_a_client_must_send(client: triton.InferenceServerClient) -> None:
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata("tiny")
    assert metadata == client.get_model_metadata("tiny", "1")
    assert metadata["versions"] == ["1"]
    shape = [-1, 3, SIDE, SIDE]
    assert metadata["inputs"] == [
        {"name": "image", "datatype": "FP32", "shape": shape},
        {"name": "flow", "datatype": "FP32", "shape": shape},
    ]
    assert metadata["outputs"] == [
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(CLASSES)]}
    ]


def test_the_repository_holds_the_loaded_models(client: triton.InferenceServerClient) -> None:
    assert client.get_model_repository_index() == [
        {"name": "tiny", "version": "1", "state": "READY", "reason": ""}
    ]


@pytest.mark.parametrize("rows", [1, 3, 9])
@pytest.mark.parametrize("binary", [True, False])
def test_probabilities_are_what_the_session_gives(
    client: triton.InferenceServerClient, session: Session, rows: int, *, binary: bool
) -> None:
    arrays = tensors(rows)
    outputs = [triton.InferRequestedOutput("probabilities", binary_data=binary)]
    result = client.infer(
        "tiny", inputs(*arrays), outputs=outputs, model_version="1", request_id="id-1"
    )
    found = result.as_numpy("probabilities")
    np.testing.assert_allclose(found, session.run(*arrays), atol=1e-6)
    assert result.get_response()["id"] == "id-1"
    assert (result.get_response()["model_name"], result.get_response()["model_version"]) == (
        "tiny",
        "1",
    )


def test_tensors_in_json_are_answered_alike(
    client: triton.InferenceServerClient, session: Session
) -> None:
    arrays = tensors(1)
    result = client.infer("tiny", inputs(*arrays, binary=False))
    np.testing.assert_allclose(result.as_numpy("probabilities"), session.run(*arrays), atol=1e-6)


def test_answers_belong_to_their_requests(url: str, session: Session) -> None:
    def ask(seed: int) -> tuple[np.ndarray, np.ndarray]:
        arrays = tensors(seed % 3 + 1, seed)
        with triton.InferenceServerClient(url.removeprefix("http://")) as client:
            result = client.infer("tiny", inputs(*arrays))
        return result.as_numpy("probabilities"), session.run(*arrays)

    with ThreadPoolExecutor(4) as pool:
        for found, expected in pool.map(ask, range(24)):
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_fault_reaches_the_client_in_the_protocols_shape(
    client: triton.InferenceServerClient,
) -> None:
    image, flow = tensors(1)
    with pytest.raises(InferenceServerException, match="no model of that name") as unknown:
        client.infer("huge", inputs(image, flow))
    assert unknown.value.status() == "404"
    with pytest.raises(InferenceServerException, match="no such version") as version:
        client.infer("tiny", inputs(image, flow), model_version="2")
    assert version.value.status() == "404"
    with pytest.raises(InferenceServerException, match="shape of image") as shape:
        client.infer("tiny", inputs(image[..., :8], flow))
    assert shape.value.status() == "400"
    with pytest.raises(InferenceServerException, match="must not be compressed") as packed:
        client.infer("tiny", inputs(image, flow), request_compression_algorithm="gzip")
    assert packed.value.status() == "415"


@pytest.mark.parametrize("length", ["-1", "+1", "1.5", "٣", "x", "", "9" * 40])
def test_a_header_that_is_no_length_is_400(url: str, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length.encode()}
    answer = httpx2.post(url + INFER, content=b"{}", headers=headers)
    assert refused(answer) == (
        400,
        "Inference-Header-Content-Length is not a number of bytes.",
    )


def test_json_that_is_too_long_is_413_before_it_is_read(url: str) -> None:
    announced = httpx2.post(url + INFER, content=b" " * (MAX_JSON_BYTES + 1))
    assert refused(announced)[0] == 413
    chunks = (b" " * 2**20 for _ in range(9))
    assert refused(httpx2.post(url + INFER, content=chunks))[0] == 413
    headers = {"Inference-Header-Content-Length": str(MAX_JSON_BYTES + 1)}
    assert refused(httpx2.post(url + INFER, content=b"{}", headers=headers))[0] == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nothing", 404),
        ("GET", INFER, 405),
        ("GET", "/v2/models/huge", 404),
        ("GET", "/v2/models/tiny/versions/2", 404),
        ("GET", f"/v2/models/{'x' * 65}", 422),
        ("POST", INFER, 400),
    ],
)
def test_every_error_under_v2_has_the_protocols_shape(
    url: str, method: str, path: str, status: int
) -> None:
    assert refused(httpx2.request(method, url + path))[0] == status


def test_other_errors_are_problems_still(url: str) -> None:
    answer = httpx2.get(f"{url}/v2x")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def as_bytes(image: np.ndarray, flow: np.ndarray) -> dict[str, Any]:
    described = [
        {
            "name": name,
            "datatype": "FP32",
            "shape": array.shape,
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in (("image", image), ("flow", flow))
    ]
    head = json.dumps({"inputs": described}).encode()
    return {
        "content": head + image.tobytes() + flow.tobytes(),
        "headers": {"Inference-Header-Content-Length": str(len(head))},
    }


def test_a_service_that_is_not_ready_says_so_and_when_to_come_back(
    serve: Serve, held: HeldSession
) -> None:
    with serve(held, deadline_ms=200) as client:
        client.app_state["admission"].drain()
        for method, path in (
            ("GET", "/v2/health/ready"),
            ("GET", "/v2/models/tiny/ready"),
            ("POST", INFER),
        ):
            answer = client.request(method, path)
            assert refused(answer) == (503, "The service is shutting down.")
            assert int(answer.headers["Retry-After"]) >= 1
        assert client.get("/v2/health/live").json() == {"live": True}


class BrokenSession(HeldSession):
    def run(self, _image: np.ndarray, _flow: np.ndarray) -> np.ndarray:
        raise RuntimeError("what was in the tensor")


def test_a_session_that_raises_is_500_and_tells_nothing(serve: Serve, session: Session) -> None:
    with serve(BrokenSession(session)) as client:
        answer = client.post(INFER, **as_bytes(*tensors(1)))
        assert refused(answer) == (500, "The service failed.")


def test_a_client_that_leaves_frees_its_places(
    make_settings: MakeSettings, held: HeldSession
) -> None:
    async def leave() -> None:
        app = create_app(make_settings(), partial(Engine.open, sessions={held.spec.name: held}))
        async with app.router.lifespan_context(app) as state, async_client(app, state) as client:
            engine: Engine = state["engine"]
            await engine.warmed_up()
            asking = asyncio.create_task(client.post(INFER, **as_bytes(*tensors(3))))
            await until(held.started.is_set)
            assert engine.items == 3
            asking.cancel()
            await until(lambda: engine.items == 0)
            held.may_go.set()

    asyncio.run(leave())


def test_the_metrics_count_a_refusal_by_its_code(serve: Serve) -> None:
    with serve() as client:
        client.post(INFER, content=b"{}")
        page = client.get("/metrics").text
    assert 'mfdan_rejections_total{code="invalid_tensors"} 1.0' in page
    assert 'route="/v2/models/{name}/infer",status="400"' in page


def test_the_service_lives_while_json_is_parsed(url: str) -> None:
    """As many values as JSON may hold are parsed in one go, and then refused."""
    heavy = b'{"inputs":[[' + b"0.123456," * (2**19 - 9) + b"0]]}"
    with ThreadPoolExecutor(3) as pool, httpx2.Client(timeout=5) as prober:
        asked = [pool.submit(httpx2.post, url + INFER, content=heavy, timeout=30) for _ in range(3)]
        while not all(one.done() for one in asked):
            assert prober.get(f"{url}/v2/health/live").is_success
    assert {refused(one.result())[0] for one in asked} == {400}
