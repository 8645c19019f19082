"""The ONNX file as it is shipped: half-precision weights, spec inside and beside it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model.session import SPEC_METADATA_KEY
from model.spec import ModelSpec, file_sha256, spec_path
from training.files import write_atomically, write_text_atomically

__all__ = ["HALF_FROM", "HALF_SUFFIX", "clean", "store_halves", "write_model"]

HALF_FROM = 1024
"""Values from which a weight is worth storing in half precision."""
HALF_SUFFIX = ".half"
"""Ends the name of a weight that is stored so; without it, it is the weight's own."""


def store_halves(proto: onnx.ModelProto) -> None:
    """Store large float32 weights as float16 behind a Cast, where that loses nothing, in place.

    The graph computes in float32 as before; ONNX Runtime folds the casts as it loads.
    """
    graph = proto.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if values.size < HALF_FROM or not np.array_equal(halves.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(halves, name + HALF_SUFFIX))
        casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    for cast in reversed(casts):
        graph.node.insert(0, cast)


def clean(proto: onnx.ModelProto) -> None:
    """Drop what the exporter noted for debugging: paths and stack traces of the machine."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    del graph.value_info[:]
    del proto.metadata_props[:]


def write_model(proto: onnx.ModelProto, spec: ModelSpec, path: Path) -> ModelSpec:
    """Write the ONNX file, its spec inside and beside it; return the spec with the file's hash.

    Each file is replaced at once; between the two, the hash in the old spec refuses the new file.
    """
    helper.set_model_props(proto, {SPEC_METADATA_KEY: spec.embedded().to_json()})
    write_atomically(path, lambda temporary: temporary.write_bytes(proto.SerializeToString()))
    spec = replace(spec, onnx_sha256=file_sha256(path))
    write_text_atomically(spec_path(path), spec.to_json())
    return spec
