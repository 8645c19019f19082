"""One ONNX model, checked against its spec and run by ONNX Runtime."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from model.errors import ShapeError, SpecInvalid, SpecMismatch
from model.flow import compute_flow
from model.runtime import Placement, RunsGraph, Runtime
from model.spec import ModelSpec, load_spec

__all__ = ["SPEC_METADATA_KEY", "Session"]

SPEC_METADATA_KEY = "mfdan.spec"
"""Of the ONNX file's metadata; its value is the spec without hash and scores."""

_INPUTS = ("image", "flow")
_OUTPUT = "logits"
_HERE = Placement()
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Session(RunsGraph):
    """A verified model, ready to run. Safe to share among threads."""

    spec: ModelSpec
    path: Path
    """The ONNX file that it was loaded from."""
    _runtime: Runtime

    @classmethod
    def open(cls, path: Path, placement: Placement = _HERE) -> "Session":
        """Load an ONNX file and the spec beside it, by default on the CPU.

        Raises: ModelNotFound, SpecInvalid (also for a flow that does not run), SpecMismatch
        (hash, metadata, or the names, shapes and types of inputs and output do not fit the
        spec), ModelError (not an ONNX model that runs here, or not on the device).
        """
        spec = load_spec(path)
        _check_flow(spec, path.name)
        runtime = Runtime.open(path, path.name, placement)
        _check(runtime, spec, path.name)
        return cls(spec, path, runtime)

    def run(self, image: FloatArray, flow: FloatArray) -> FloatArray:
        """Return the (N, K) class probabilities of N prepared pairs.

        Convention: image and flow are (N, 3, S, S) float32 as `model.tensors` makes them; K
        follows `spec.classes`; each row sums to 1, at the spec's temperature.
        Raises: ShapeError, and what ONNX Runtime raises where the device fails.
        """
        side = self.spec.input_size
        expected = (len(image), 3, side, side)
        if image.shape != expected or flow.shape != expected:
            raise ShapeError(f"image and flow are {expected}, got {image.shape}, {flow.shape}")
        (logits,) = self._runtime.run([_OUTPUT], {"image": image, "flow": flow})
        return _softmax(np.asarray(logits, np.float32) / np.float32(self.spec.temperature))

    def warm_up(self, batch_sizes: Iterable[int] = (1,)) -> None:
        """Run once for each batch size, so that the first request waits for no allocation."""
        side = self.spec.input_size
        for size in batch_sizes:
            blank = np.zeros((size, 3, side, side), np.float32)
            self.run(blank, blank)


def _check_flow(spec: ModelSpec, name: str) -> None:
    """Compute one flow: only the algorithm itself knows which of its parameters are valid.

    Brox can be asked on a GPU alone, which `open_solver` does.
    """
    if spec.flow.algorithm == "brox":
        return
    blank = np.zeros((spec.input_size, spec.input_size), np.uint8)
    try:
        compute_flow(blank, blank, spec.flow)
    except (ValueError, TypeError, cv2.error) as error:
        why = getattr(error, "err", error)  # of OpenCV's errors: without the place in its source
        raise SpecInvalid(
            f"the spec of {name} asks for a {spec.flow.algorithm} flow that does not run: {why}"
        ) from None


def _check(runtime: Runtime, spec: ModelSpec, name: str) -> None:
    embedded = runtime.metadata.get(SPEC_METADATA_KEY)
    if embedded is None:
        raise SpecMismatch(f"{name} carries no spec in its metadata")
    if ModelSpec.from_json(embedded) != spec.embedded():
        raise SpecMismatch(f"the spec inside {name} differs from the one beside it")
    side = spec.input_size
    inputs = {node.name: (node.type, list(node.shape[1:])) for node in runtime.inputs}
    wanted = {key: ("tensor(float)", [3, side, side]) for key in _INPUTS}
    if inputs != wanted:
        raise SpecMismatch(f"{name} takes inputs {inputs}, its spec asks for {wanted}")
    outputs = {node.name: list(node.shape[1:]) for node in runtime.outputs}
    if outputs != {_OUTPUT: [len(spec.classes)]}:
        raise SpecMismatch(f"{name} gives {outputs}, its spec names {len(spec.classes)} classes")
    for node in (*runtime.inputs, *runtime.outputs):
        if isinstance(node.shape[0], int):  # a name or None where any number will do
            raise SpecMismatch(f"{name} fixes the batch of {node.name} to {node.shape[0]}")


def _softmax(logits: FloatArray) -> FloatArray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), np.float32)
