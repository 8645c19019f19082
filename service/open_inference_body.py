"""Tensors of the Open Inference Protocol: bytes of a request → arrays → bytes of an answer.

With the protocol's extension for binary tensors: JSON first, as long as the header
`Inference-Header-Content-Length` says, then the bytes of the tensors, little-endian, in the order
of the JSON.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from service.open_inference_schemas import (
    MAX_JSON_NUMBERS,
    MAX_ROWS,
    BinarySize,
    InferRequest,
    InferResponse,
    InputTensor,
    OutputTensor,
    RequestedOutput,
)

__all__ = [
    "DATATYPE",
    "INPUTS",
    "MAX_JSON_BYTES",
    "OUTPUT",
    "Asked",
    "TensorsInvalid",
    "read",
    "write",
]

INPUTS = ("image", "flow")
OUTPUT = "probabilities"
DATATYPE: Literal["FP32"] = "FP32"
MAX_JSON_BYTES = 2**23
"""Of the JSON in a request: one pair of 224 pixels fits.

Whoever parses JSON holds the interpreter, and nothing else is answered meanwhile.
"""
_MAX_STRUCTURE = 256
"""Lists, objects and their members in the JSON of a request."""
_LITTLE = np.dtype("<f4")
FloatArray = NDArray[np.float32]


class TensorsInvalid(Exception):
    """The request's tensors are not what the model takes."""

    code = "invalid_tensors"


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What a request asks for."""

    image: FloatArray
    """(N, 3, S, S), finite; so is `flow`."""
    flow: FloatArray
    id: str | None
    """Comes back with the answer."""
    binary: bool
    """Whether the answer's tensor is sent as bytes."""


def read(body: bytes | bytearray, json_bytes: int | None, side: int) -> Asked:
    """Read a request whose tensors are (N, 3, side, side).

    `json_bytes` is the length of the JSON before the binary tensors; None: it is all of the body.
    Names, shapes and sizes are looked at before any number. Raises: TensorsInvalid.
    """
    length = len(body) if json_bytes is None else json_bytes
    if length > len(body):
        raise TensorsInvalid(f"the body holds {len(body)} bytes, its JSON should hold {length}")
    request = _parsed(body[:length])
    tensors = {tensor.name: tensor for tensor in request.inputs}
    if len(request.inputs) != len(INPUTS) or {*tensors} != {*INPUTS}:
        raise TensorsInvalid("the inputs are image and flow, each once")
    shapes = [_shape(tensor, side) for tensor in request.inputs]
    if shapes[0] != shapes[1]:
        raise TensorsInvalid("image and flow are of different shapes")
    binary = _wants_binary(request)
    arrays = _arrays(request.inputs, shapes[0], memoryview(body)[length:])
    return Asked(arrays["image"], arrays["flow"], request.id, binary)


def write(
    probabilities: FloatArray, asked: Asked, model_name: str, model_version: str
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the length of its JSON if bytes follow it."""
    data = np.ascontiguousarray(probabilities, _LITTLE)
    output = OutputTensor(
        name=OUTPUT,
        datatype=DATATYPE,
        shape=data.shape,
        parameters=BinarySize(binary_data_size=data.nbytes) if asked.binary else None,
        data=None if asked.binary else tuple(data.ravel().tolist()),
    )
    response = InferResponse(
        model_name=model_name, model_version=model_version, id=asked.id, outputs=(output,)
    )
    head = response.model_dump_json(exclude_none=True).encode()
    return (head + data.tobytes(), len(head)) if asked.binary else (head, None)


def _parsed(head: bytes | bytearray) -> InferRequest:
    # Members and lists cost far more than their bytes, and a request needs few of them.
    if sum(map(head.count, (b":", b"{", b"["))) > _MAX_STRUCTURE:
        raise TensorsInvalid("the JSON is too deep or too rich: data is one flat list of numbers")
    if head.count(b",") > MAX_JSON_NUMBERS:
        raise TensorsInvalid(
            f"the JSON holds more than {MAX_JSON_NUMBERS} values: send the tensors as bytes"
        )
    try:
        return InferRequest.model_validate_json(head)
    except ValidationError as error:
        raise TensorsInvalid(_fault(error)) from None


def _fault(error: ValidationError) -> str:
    """Return the first fault in words that quote nothing of what was sent."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(str(step) for step in first["loc"])
    said = str(first["msg"]).rstrip(".")
    return f"{place}: {said}" if place else said


def _shape(tensor: InputTensor, side: int) -> tuple[int, ...]:
    if tensor.parameters.shared_memory_region is not None:
        raise TensorsInvalid(f"{tensor.name} is in shared memory, which is never read")
    if tensor.datatype != DATATYPE:
        raise TensorsInvalid(f"{tensor.name} must be {DATATYPE}")
    rows, *rest = tensor.shape or [0]
    if rest != [3, side, side] or not 1 <= rows <= MAX_ROWS:
        raise TensorsInvalid(
            f"the shape of {tensor.name} must be [N, 3, {side}, {side}], N from 1 to {MAX_ROWS}"
        )
    return tuple(tensor.shape)


def _wants_binary(request: InferRequest) -> bool:
    output = next(iter(request.outputs), RequestedOutput(name=OUTPUT))
    if output.name != OUTPUT:
        raise TensorsInvalid(f"the only output is {OUTPUT}")
    if output.parameters.classification is not None:
        raise TensorsInvalid("outputs are not sorted into classes: take the largest of each row")
    if output.parameters.shared_memory_region is not None:
        raise TensorsInvalid("outputs are not written to shared memory")
    asked = output.parameters.binary_data
    return request.parameters.binary_data_output if asked is None else asked


def _arrays(
    tensors: Sequence[InputTensor], shape: tuple[int, ...], rest: memoryview
) -> dict[str, FloatArray]:
    size = prod(shape) * _LITTLE.itemsize
    announced = [tensor.parameters.binary_data_size for tensor in tensors]
    for tensor, count in zip(tensors, announced, strict=True):
        if (count is None) == (tensor.data is None):
            raise TensorsInvalid(f"{tensor.name} needs either data or binary_data_size")
        if count not in {None, size}:
            raise TensorsInvalid(f"binary_data_size of {tensor.name} must be {size}")
    expected = sum(count for count in announced if count is not None)
    if expected != len(rest):
        raise TensorsInvalid(f"{len(rest)} bytes follow the JSON, which announces {expected}")
    arrays = {}
    for tensor in tensors:
        if tensor.data is None:
            flat, rest = _from_bytes(rest[:size]), rest[size:]
        else:
            flat = _from_numbers(tensor.name, tensor.data, prod(shape))
        if not np.isfinite(flat).all():
            raise TensorsInvalid(f"{tensor.name} holds numbers that are not finite FP32")
        arrays[tensor.name] = flat.reshape(shape)
    return arrays


def _from_bytes(data: memoryview) -> FloatArray:
    # The JSON may end anywhere, and ONNX Runtime reads aligned numbers only.
    return np.require(np.frombuffer(data, _LITTLE), np.float32, "A")


def _from_numbers(name: str, numbers: list[float], count: int) -> FloatArray:
    if len(numbers) != count:
        raise TensorsInvalid(f"{name} holds {len(numbers)} numbers, its shape {count}")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        return np.fromiter(numbers, np.float32, count)
