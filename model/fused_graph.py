"""Flow, what follows it, and the network, as one ONNX graph. Needs spox (extra `onnx-flow`)."""

from pathlib import Path

import numpy as np
import onnx
import spox.opset.ai.onnx.v20 as op
from google.protobuf.message import DecodeError
from spox import Tensor, Var, argument, build, inline

from model.errors import ModelError, SpecInvalid, SpecMismatch
from model.front import front
from model.spec import ModelSpec
from model.tvl1 import tvl1

__all__ = ["fused_graph"]

_BATCH = "batch"
_NETWORK_INPUTS = {"image", "flow"}


def fused_graph(path: Path, spec: ModelSpec) -> onnx.ModelProto:
    """Put a model's flow, of the spec's TV-L1, and what follows it before its network.

    Convention: N pairs of S × S crops, S the spec's input size. Inputs: `onset` (N, S, S, 3) uint8
    RGB; `onset_grey` and `apex_grey` (N, S, S) uint8; `face` (N, S, S) bool, true inside its
    outline. Outputs, float32: `probabilities` (N, K), at the spec's temperature; `flow`
    (N, 2, S, S), pixels, the head's motion removed; `head` (N, 5), as `model.front.Front` has it.
    Raises: ModelError (the file is no ONNX model), SpecMismatch (not TV-L1, or not a network of
    image and flow), SpecInvalid (parameters that TV-L1 does not have in this form).
    """
    if spec.flow.algorithm != "tvl1":
        raise SpecMismatch(
            f"the backend onnx computes TV-L1, but the spec of {path.name} asks for "
            f"{spec.flow.algorithm}"
        )
    network = _network(path)
    size = spec.input_size
    inputs = {
        "onset": argument(Tensor(np.uint8, (_BATCH, size, size, 3))),
        "onset_grey": argument(Tensor(np.uint8, (_BATCH, size, size))),
        "apex_grey": argument(Tensor(np.uint8, (_BATCH, size, size))),
        "face": argument(Tensor(np.bool_, (_BATCH, size, size))),
    }
    total = _flow(inputs["onset_grey"], inputs["apex_grey"], spec, path.name)
    front_ = front(inputs["onset"], total, inputs["face"], spec)
    logits = inline(network)(image=front_.image, flow=front_.flow_tensor)["logits"]
    cooled = op.div(logits, op.const(np.float32(spec.temperature)))
    outputs = {
        "probabilities": op.softmax(cooled, axis=1),
        "flow": front_.residual,
        "head": front_.head,
    }
    return build(inputs, outputs)


def _network(path: Path) -> onnx.ModelProto:
    try:
        network = onnx.load(path)
        onnx.checker.check_model(network)
    except (DecodeError, onnx.checker.ValidationError) as error:
        fault = str(error).partition("\n")[0]
        raise ModelError(f"{path.name} is not a valid ONNX model: {fault}") from None
    taken = {value.name for value in network.graph.input}
    given = [value.name for value in network.graph.output]
    if taken != _NETWORK_INPUTS or given != ["logits"]:
        raise SpecMismatch(
            f"{path.name} makes {', '.join(given)} of {', '.join(sorted(taken))}; "
            "logits of flow and image are needed"
        )
    return network


def _flow(onset: Var, apex: Var, spec: ModelSpec, name: str) -> Var:
    try:
        return tvl1(onset, apex, spec.flow.parameters, spec.input_size)
    except ValueError as error:
        raise SpecInvalid(
            f"the spec of {name} asks for a tvl1 flow that the backend onnx cannot compute: {error}"
        ) from None
