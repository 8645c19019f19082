"""A network whose weights and arithmetic are of half precision, and a rehearsal of it on a CPU."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from model.runtime import Placement
from model.session import Session
from model.spec import ModelSpec
from training.onnx_file import write_model

__all__ = ["half_session", "halve", "rehearsal"]

_AXIS = "rehearsal.axis"


def halve(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a network that computes in float16 between float32 inputs and outputs.

    What half precision spoils whatever its values (the converter's own list: Max, Min, Range, …)
    stays float32 behind casts. Weights that half precision cannot hold are rounded to the nearest
    that it can.
    """
    # The converter writes into what it is given.
    half: onnx.ModelProto = convert_float_to_float16(_copy(proto), keep_io_types=True)
    OnnxModel(half).topological_sort()  # it appends casts behind those who read them
    onnx.checker.check_model(half, full_check=True)
    return half


def rehearsal(half: onnx.ModelProto) -> onnx.ModelProto:
    """Return a half-precision network whose every result a CPU rounds, as a GPU would.

    ONNX Runtime has next to no float16 arithmetic on a CPU: it computes in float32, and drops the
    roundings between one operator and the next, so that the network itself would show little but
    its rounded weights. Behind each operator stand an Unsqueeze and a Squeeze, which move nothing
    and want the tensor as it is.
    """
    told = _copy(half)
    rounded, nodes = _halves(half), []
    for node in told.graph.node:
        nodes.append(node)
        for place, name in enumerate(node.output):
            if name in rounded and node.op_type != "Constant":
                node.output[place] = f"{name}.raw"
                nodes += _rounding(name)
    fresh = [helper.make_node("Constant", [], [_AXIS], value=_axis()), *nodes]
    told.graph.ClearField("node")
    told.graph.node.extend(fresh)
    told.graph.ClearField("value_info")
    onnx.checker.check_model(told, full_check=True)
    return told


def _rounding(name: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Unsqueeze", [f"{name}.raw", _AXIS], [f"{name}.deep"]),
        helper.make_node("Squeeze", [f"{name}.deep", _AXIS], [name]),
    ]


def _axis() -> TensorProto:
    return numpy_helper.from_array(np.zeros(1, np.int64))


def _halves(proto: onnx.ModelProto) -> set[str]:
    """Return the names of what operators compute in float16."""
    inferred = shape_inference.infer_shapes(proto, data_prop=True)
    return {
        value.name
        for value in inferred.graph.value_info
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16
    }


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    same = onnx.ModelProto()
    same.CopyFrom(proto)
    return same


@contextmanager
def half_session(half: onnx.ModelProto, spec: ModelSpec, placement: Placement) -> Iterator[Session]:
    """Open a half-precision network as it is served; on the CPU its rehearsal.

    Raises: as `Session.open`.
    """
    proto = rehearsal(half) if placement.device == "cpu" else half
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{spec.name}.onnx"
        write_model(_copy(proto), replace(spec, precision="float16"), path)
        yield Session.open(path, placement)
