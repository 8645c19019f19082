"""A real ONNX model of a few hundred bytes, whose answers can be worked out by hand.

logits = [mean of the image, mean of |u|, mean of |v|] * GAIN: a pair that moved sideways is a
"positive", one that moved up or down a "surprise", a bright one that hardly moved a "negative".
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model.session import SPEC_METADATA_KEY
from model.spec import ModelSpec, Provenance, file_sha256, spec_path

CLASSES = ("negative", "positive", "surprise")
GAIN = 4.0


def tiny_spec(name: str = "tiny", **changes: object) -> ModelSpec:
    spec = ModelSpec(
        name=name,
        version="1",
        classes=CLASSES,
        motion_gate_px=0.15,
        provenance=Provenance(data="none", licence="MIT", training_commit="none"),
    )
    return replace(spec, **changes)


def write_tiny_model(folder: Path, spec: ModelSpec | None = None) -> Path:
    """Write the model and its spec into a folder; return the ONNX file."""
    spec = spec or tiny_spec()
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["pooled_image"]),
            helper.make_node("Abs", ["flow"], ["speed"]),
            helper.make_node("GlobalAveragePool", ["speed"], ["pooled_speed"]),
            helper.make_node("Concat", ["pooled_image", "pooled_speed"], ["pooled"], axis=1),
            helper.make_node("Flatten", ["pooled"], ["features"]),
            helper.make_node("MatMul", ["features", "weight"], ["logits"]),
        ],
        "tiny",
        [_tensor(key, ("batch", 3, spec.input_size, spec.input_size)) for key in ("image", "flow")],
        [_tensor("logits", ("batch", len(CLASSES)))],
        [numpy_helper.from_array(_weight(), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    entry = model.metadata_props.add()
    entry.key, entry.value = SPEC_METADATA_KEY, spec.embedded().to_json()
    path = folder / f"{spec.name}.onnx"
    onnx.save(model, path)
    spec_path(path).write_text(replace(spec, onnx_sha256=file_sha256(path)).to_json())
    return path


def _weight() -> np.ndarray:
    """(6, 3): from the means of R, G, B, |u|, |v|, strain to the classes."""
    weight = np.zeros((6, 3), np.float32)
    weight[:3, 0] = GAIN / 3
    weight[3, 1] = weight[4, 2] = GAIN
    return weight


def _tensor(name: str, shape: tuple[str | int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
