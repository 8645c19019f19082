"""What the Open Inference Protocol says, as pydantic models.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import JsonSchemaValue

from service.settings import MAX_FACES, MAX_PAIRS

__all__ = [
    "INFER_REQUEST_SCHEMA",
    "MAX_JSON_NUMBERS",
    "MAX_ROWS",
    "IndexEntry",
    "InferRequest",
    "InferResponse",
    "InputTensor",
    "ModelMetadata",
    "ModelReady",
    "OutputTensor",
    "RequestedOutput",
    "ServerLive",
    "ServerMetadata",
    "ServerReady",
    "TensorMetadata",
    "V2Error",
]

MAX_ROWS = MAX_PAIRS * MAX_FACES
"""Pairs in one request: as many as the engine's shortest queue takes."""
MAX_JSON_NUMBERS = 2**19
"""Numbers that one request may hold as JSON; binary tensors are not counted."""
_MAX_ID = 64
_MAX_NAME = 64


class _Asked(BaseModel):
    # What the protocol lets a client add is passed over, as it lets a server do.
    model_config = ConfigDict(frozen=True, strict=True, use_attribute_docstrings=True)


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class InputParameters(_Asked):
    """How an input is sent."""

    binary_data_size: Annotated[int, Field(ge=0)] | None = None
    """Bytes of the tensor after the JSON; none: it is in `data`."""
    shared_memory_region: str | None = None
    """Refused: nothing but the request itself is ever read."""


class InputTensor(_Asked):
    """One tensor that is sent."""

    name: Annotated[str, Field(max_length=_MAX_NAME)]
    shape: Annotated[list[int], Field(max_length=8, fail_fast=True)]
    datatype: Annotated[str, Field(max_length=_MAX_NAME)]
    parameters: InputParameters = InputParameters()
    data: Annotated[list[float], Field(max_length=MAX_JSON_NUMBERS, fail_fast=True)] | None = None
    """All numbers in one flat list, row-major; none: they follow the JSON as bytes."""


class OutputParameters(_Asked):
    """How an output shall be sent."""

    binary_data: bool | None = None
    """Whether as bytes after the JSON; none: as the request's `binary_data_output` says."""
    classification: int | None = None
    """Refused: the classes are in the model's card."""
    shared_memory_region: str | None = None
    """Refused: nothing but the answer itself is ever written."""


class RequestedOutput(_Asked):
    """One tensor that is asked for."""

    name: Annotated[str, Field(max_length=_MAX_NAME)]
    parameters: OutputParameters = OutputParameters()


class RequestParameters(_Asked):
    """What holds for the whole request."""

    binary_data_output: bool = False
    """Whether outputs that do not say otherwise are sent as bytes after the JSON."""


class InferRequest(_Asked):
    """The JSON of a request; with binary tensors, what precedes them."""

    id: Annotated[str, Field(max_length=_MAX_ID)] | None = None
    """Comes back with the answer."""
    inputs: Annotated[list[InputTensor], Field(max_length=2, fail_fast=True)]
    """`image` and `flow`."""
    outputs: Annotated[list[RequestedOutput], Field(max_length=1, fail_fast=True)] = []
    """None, or `probabilities`."""
    parameters: RequestParameters = RequestParameters()


class TensorMetadata(_Told):
    """One tensor of a model; -1 stands for any number of pairs."""

    name: str
    datatype: Literal["FP32"]
    shape: tuple[int, ...]


class BinarySize(_Told):
    """Where an output's numbers are."""

    binary_data_size: int
    """Bytes of the tensor after the JSON."""


class OutputTensor(_Told):
    """One tensor of the answer."""

    name: str
    datatype: Literal["FP32"]
    shape: tuple[int, ...]
    parameters: BinarySize | None = None
    """With a binary tensor only."""
    data: tuple[float, ...] | None = None
    """All numbers, row-major; not with a binary tensor."""


class InferResponse(_Told):
    """The JSON of an answer; with binary tensors, what precedes them."""

    model_name: str
    model_version: str
    id: str | None = None
    """As the request had it."""
    outputs: tuple[OutputTensor, ...]


class ServerMetadata(_Told):
    """What answers, and what of the protocol's extensions it understands."""

    name: Literal["mfdan"] = "mfdan"
    version: str
    extensions: tuple[str, ...] = ("binary_tensor_data",)


class ServerLive(_Told):
    """That the process answers."""

    live: Literal[True] = True


class ServerReady(_Told):
    """That a request sent now would be worked on."""

    ready: Literal[True] = True


class ModelReady(_Told):
    """That a request for this model would be worked on."""

    name: str
    ready: Literal[True] = True


class ModelMetadata(_Told):
    """What a model takes and gives."""

    name: str
    versions: tuple[str, ...]
    platform: Literal["onnxruntime_onnx"] = "onnxruntime_onnx"
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


class IndexEntry(_Told):
    """One model of the repository."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str
    """Why a request for it would not be worked on; empty when it would."""


class V2Error(_Told):
    """An error, as the protocol shapes it."""

    error: str
    """The fault in a sentence."""


INFER_REQUEST_SCHEMA: JsonSchemaValue = {
    "title": "InferRequest",
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "maxLength": _MAX_ID},
        "inputs": {
            "type": "array",
            "minItems": 2,
            "maxItems": 2,
            "items": {
                "type": "object",
                "required": ["name", "shape", "datatype"],
                "properties": {
                    "name": {"enum": ["image", "flow"]},
                    "shape": {
                        "type": "array",
                        "minItems": 4,
                        "maxItems": 4,
                        "items": {"type": "integer", "minimum": 1},
                    },
                    "datatype": {"enum": ["FP32"]},
                    "parameters": {
                        "type": "object",
                        "properties": {"binary_data_size": {"type": "integer", "minimum": 0}},
                    },
                    "data": {
                        "type": "array",
                        "maxItems": MAX_JSON_NUMBERS,
                        "items": {"type": "number"},
                    },
                },
            },
        },
        "outputs": {
            "type": "array",
            "maxItems": 1,
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"enum": ["probabilities"]},
                    "parameters": {
                        "type": "object",
                        "properties": {"binary_data": {"type": "boolean"}},
                    },
                },
            },
        },
        "parameters": {
            "type": "object",
            "properties": {"binary_data_output": {"type": "boolean"}},
        },
    },
}
"""What `InferRequest` and the reader of its tensors accept, for the API description."""
