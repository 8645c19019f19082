"""What the API description shows is what is really answered."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from service.examples import (
    BATCH_PREDICTION,
    CLIP_PREDICTION,
    INFER_REQUEST,
    INFER_RESPONSE,
    LIVE,
    MODEL_CARD,
    PAIR_PREDICTION,
    PROBLEMS,
    READY,
    V2_ERRORS,
    V2_INDEX,
    V2_LIVE,
    V2_MODEL,
    V2_MODEL_READY,
    V2_READY,
    V2_SERVER,
)
from service.open_inference_body import read, write
from service.open_inference_schemas import (
    IndexEntry,
    InferResponse,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    V2Error,
)
from service.schemas import BatchPrediction, Health, ModelCard, Prediction, Problem


@pytest.mark.parametrize(
    ("kind", "example"),
    [
        (Prediction, PAIR_PREDICTION),
        (Prediction, CLIP_PREDICTION),
        (BatchPrediction, BATCH_PREDICTION),
        (ModelCard, MODEL_CARD),
        (Health, LIVE),
        (Health, READY),
        (InferResponse, INFER_RESPONSE),
        (ServerLive, V2_LIVE),
        (ServerReady, V2_READY),
        (ServerMetadata, V2_SERVER),
        (ModelMetadata, V2_MODEL),
        (ModelReady, V2_MODEL_READY),
        (list[IndexEntry], V2_INDEX),
        *((Problem, problem) for problem in PROBLEMS.values()),
        *((V2Error, error) for error in V2_ERRORS.values()),
    ],
)
def test_an_example_is_what_its_schema_writes(kind: Any, example: Any) -> None:  # noqa: ANN401 - any model
    adapter = TypeAdapter(kind)
    written = adapter.dump_python(adapter.validate_python(example), mode="json")
    assert without_defaults(written, example) == example


def without_defaults(written: Any, example: Any) -> Any:  # noqa: ANN401 - any JSON
    """Leave out the empty members that answers leave out."""
    if isinstance(written, dict):
        return {
            key: without_defaults(value, example.get(key))
            for key, value in written.items()
            if key in example or value not in (None, [])
        }
    if isinstance(written, list):
        pairs = zip(written, example, strict=True)
        return [without_defaults(one, other) for one, other in pairs]
    return written


def test_every_code_is_in_the_api_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    for code in PROBLEMS:
        assert f"`{code}`" in page


def test_the_infer_example_is_read_and_answered_as_shown() -> None:
    asked = read(json.dumps(INFER_REQUEST).encode(), None, INFER_REQUEST["inputs"][0]["shape"][-1])
    rows = np.array([INFER_RESPONSE["outputs"][0]["data"]], np.float32)
    names = INFER_RESPONSE["model_name"], INFER_RESPONSE["model_version"]
    written = json.loads(write(rows, asked, *names)[0])
    (output,) = written["outputs"]
    output["data"] = np.round(output["data"], 3).tolist()
    assert written == INFER_RESPONSE
