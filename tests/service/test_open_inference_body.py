import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.open_inference_body import Asked, TensorsInvalid, read, write
from service.open_inference_schemas import MAX_JSON_NUMBERS, MAX_ROWS

SIDE = 2
RNG = np.random.default_rng(1)
IMAGE = RNG.random((2, 3, SIDE, SIDE), np.float32)
FLOW = RNG.random((2, 3, SIDE, SIDE), np.float32)


def tensor(name: str, array: np.ndarray, **changes: object) -> dict[str, Any]:
    return {"name": name, "datatype": "FP32", "shape": list(array.shape), **changes}


def numbers(name: str, array: np.ndarray, **changes: object) -> dict[str, Any]:
    return tensor(name, array, **{"data": array.ravel().tolist(), **changes})


def sized(name: str, array: np.ndarray, size: int | None = None) -> dict[str, Any]:
    size = array.nbytes if size is None else size
    return tensor(name, array, parameters={"binary_data_size": size})


def request(*inputs: dict[str, Any], **more: object) -> bytes:
    return json.dumps({"inputs": inputs, **more}).encode()


IN_JSON = numbers("image", IMAGE), numbers("flow", FLOW)


def refusal(body: bytes, length: int | None = None) -> str:
    with pytest.raises(TensorsInvalid) as refused:
        read(body, length, SIDE)
    return str(refused.value)


@pytest.mark.parametrize("padding", [0, 1, 2, 3])
def test_binary_tensors_are_read_in_the_order_of_the_json_wherever_it_ends(padding: int) -> None:
    head = request(sized("flow", FLOW), sized("image", IMAGE)) + b" " * padding
    asked = read(head + FLOW.tobytes() + IMAGE.tobytes(), len(head), SIDE)
    np.testing.assert_array_equal(asked.image, IMAGE)
    np.testing.assert_array_equal(asked.flow, FLOW)
    assert asked.image.flags.aligned
    assert asked.image.dtype == np.float32


def test_numbers_in_json_are_the_same_tensors() -> None:
    asked = read(request(*IN_JSON), None, SIDE)
    np.testing.assert_array_equal(asked.image, IMAGE)
    np.testing.assert_array_equal(asked.flow, FLOW)


def test_one_tensor_may_be_binary_and_the_other_json() -> None:
    head = request(numbers("image", IMAGE), sized("flow", FLOW))
    asked = read(head + FLOW.tobytes(), len(head), SIDE)
    np.testing.assert_array_equal(asked.image, IMAGE)
    np.testing.assert_array_equal(asked.flow, FLOW)


@pytest.mark.parametrize(
    ("more", "binary"),
    [
        ({}, False),
        ({"parameters": {"binary_data_output": True}}, True),
        ({"outputs": [{"name": "probabilities"}]}, False),
        ({"outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}]}, True),
        (
            {
                "outputs": [{"name": "probabilities", "parameters": {"binary_data": False}}],
                "parameters": {"binary_data_output": True},
            },
            False,
        ),
        ({"parameters": {"priority": 1, "sequence_id": "passed over"}}, False),
    ],
)
def test_the_output_is_sent_as_it_was_asked_for(more: dict[str, Any], *, binary: bool) -> None:
    assert read(request(*IN_JSON, **more), None, SIDE).binary is binary


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([], "each once"),
        ([numbers("image", IMAGE)], "each once"),
        ([numbers("image", IMAGE)] * 2, "each once"),
        ([numbers("image", IMAGE), numbers("fluss", FLOW)], "each once"),
        ([*IN_JSON, numbers("more", FLOW)], "at most 2 items"),
        ([numbers("image", IMAGE, datatype="FP64"), IN_JSON[1]], "must be FP32"),
        ([numbers("image", IMAGE, datatype="BYTES"), IN_JSON[1]], "must be FP32"),
        ([numbers("image", IMAGE, shape=[]), IN_JSON[1]], "shape of image"),
        ([numbers("image", IMAGE, shape=[2, 12]), IN_JSON[1]], "shape of image"),
        ([numbers("image", IMAGE, shape=[-2, 3, -2, 2]), IN_JSON[1]], "shape of image"),
        ([numbers("image", IMAGE, shape=[0, 3, 2, 2]), IN_JSON[1]], "shape of image"),
        ([numbers("image", IMAGE, shape=[2.0, 3, 2, 2]), IN_JSON[1]], "valid integer"),
        ([numbers("image", IMAGE, shape=[10**30, 3, 2, 2]), IN_JSON[1]], "shape of image"),
        ([numbers("image", IMAGE, shape=[MAX_ROWS + 1, 3, 2, 2]), IN_JSON[1]], "shape of image"),
        ([numbers("image", IMAGE[:1]), IN_JSON[1]], "different shapes"),
        ([numbers("image", IMAGE, data=[0.5] * 23), IN_JSON[1]], "23 numbers"),
        ([numbers("image", IMAGE, data=[0.5] * 25), IN_JSON[1]], "25 numbers"),
        ([numbers("image", IMAGE, data=IMAGE.tolist()), IN_JSON[1]], "valid number"),
        ([numbers("image", IMAGE, data=["0.5"] * 24), IN_JSON[1]], "valid number"),
        ([numbers("image", IMAGE, data=[None] * 24), IN_JSON[1]], "valid number"),
        ([numbers("image", IMAGE, data=[1e300] * 24), IN_JSON[1]], "not finite"),
        ([numbers("image", IMAGE, data=[float("nan")] * 24), IN_JSON[1]], "not finite"),
        ([tensor("image", IMAGE), IN_JSON[1]], "either data or"),
        ([sized("image", IMAGE) | {"data": [0.5] * 24}, IN_JSON[1]], "either data or"),
        ([sized("image", IMAGE, -96), IN_JSON[1]], "greater than or equal to 0"),
        ([sized("image", IMAGE, 95), IN_JSON[1]], "must be 96"),
        ([sized("image", IMAGE), IN_JSON[1]], "0 bytes follow"),
        (
            [tensor("image", IMAGE, parameters={"shared_memory_region": "/x"}), IN_JSON[1]],
            "never read",
        ),
    ],
)
def test_what_is_not_the_models_inputs_is_refused_in_words(inputs: list[Any], words: str) -> None:
    assert words in refusal(request(*inputs))


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ({"name": "logits"}, "only output"),
        ({"name": "probabilities", "parameters": {"classification": 2}}, "sorted"),
        ({"name": "probabilities", "parameters": {"shared_memory_region": "x"}}, "shared memory"),
        ({"name": "probabilities", "parameters": {"binary_data": "yes"}}, "valid boolean"),
    ],
)
def test_an_output_that_is_not_given_is_refused(output: dict[str, Any], words: str) -> None:
    assert words in refusal(request(*IN_JSON, outputs=[output]))


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"{}", b"{", b"\xff\xfe", b"[" * 10**6, b'{"inputs": 1}']
)
def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    assert refusal(body)


def test_a_body_shorter_than_its_json_is_refused() -> None:
    assert "should hold 9999" in refusal(request(*IN_JSON), 9999)


def test_bytes_that_belong_to_no_tensor_are_refused() -> None:
    head = request(*IN_JSON)
    assert "1 bytes follow" in refusal(head + b"\0", len(head))


@pytest.mark.parametrize(
    ("filler", "words"),
    [
        (b"0,", "send the tensors as bytes"),
        (b'"",', "send the tensors as bytes"),
        (b"[],", "one flat list"),
        (b"{},", "one flat list"),
        (b'"":0,', "one flat list"),
    ],
)
def test_more_json_than_a_request_needs_is_refused_before_it_is_parsed(
    filler: bytes, words: str
) -> None:
    assert words in refusal(b'{"inputs":[' + filler * (MAX_JSON_NUMBERS + 1))


def test_a_refusal_quotes_nothing_of_what_was_sent() -> None:
    told = "a-face-of-somebody"
    for body in (
        request({**IN_JSON[0], "name": told}, IN_JSON[1]),
        request({**IN_JSON[0], "datatype": told}, IN_JSON[1]),
        request({**IN_JSON[0], "data": told}, IN_JSON[1]),
        request(*IN_JSON, outputs=[{"name": told}]),
        request(*IN_JSON, id=[told]),
        f'{{"{told}'.encode(),
    ):
        assert told not in refusal(body)


@pytest.mark.parametrize("binary", [False, True])
def test_an_answer_is_what_a_client_reads(*, binary: bool) -> None:
    rows = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)
    body, length = write(rows, Asked(IMAGE, FLOW, "id-1", binary), "tiny", "1")
    answer = json.loads(body[:length])
    (output,) = answer.pop("outputs")
    assert answer == {"model_name": "tiny", "model_version": "1", "id": "id-1"}
    assert (output["name"], output["shape"]) == ("probabilities", [2, 2])
    if binary:
        assert output["parameters"] == {"binary_data_size": rows.nbytes}
        assert body[length:] == rows.tobytes()
    else:
        assert (output["data"], length) == ([0.25, 0.75, 0.5, 0.5], None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["inputs", "outputs", "parameters", "name", "shape", "data", "id"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
TENSOR = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["image", "flow"]) | JSON,
        "datatype": st.just("FP32") | JSON,
        "shape": st.just([1, 3, SIDE, SIDE]) | st.lists(st.integers(), max_size=5) | JSON,
    },
    optional={
        "data": st.lists(st.floats(allow_nan=False), min_size=12, max_size=12) | JSON,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 100)}) | JSON,
    },
)
REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, max_size=3) | JSON},
    optional={"outputs": JSON, "parameters": JSON, "id": JSON},
)


@given(
    head=REQUEST.map(json.dumps).map(str.encode) | st.binary(max_size=200),
    rest=st.binary(max_size=200),
    length=st.none() | st.integers(0, 400),
)
def test_whatever_is_sent_is_read_or_refused(head: bytes, rest: bytes, length: int | None) -> None:
    try:
        asked = read(head + rest, len(head) if length == 0 else length, SIDE)
    except TensorsInvalid:
        return
    assert asked.image.shape == asked.flow.shape
    assert np.isfinite(asked.image).all()
    assert np.isfinite(asked.flow).all()


@given(st.data())
def test_a_request_damaged_anywhere_is_read_or_refused(data: st.DataObject) -> None:
    head = request(sized("image", IMAGE), sized("flow", FLOW), id="x")
    body = bytearray(head + IMAGE.tobytes() + FLOW.tobytes())
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    try:
        asked = read(body[:cut], len(head), SIDE)
    except TensorsInvalid:
        return
    assert asked.image.shape == IMAGE.shape
