"""One ONNX model, checked against its spec and run by ONNX Runtime."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from model.errors import ModelError, ShapeError, SpecInvalid, SpecMismatch
from model.flow import compute_flow
from model.spec import ModelSpec, load_spec

__all__ = ["SPEC_METADATA_KEY", "Session"]

SPEC_METADATA_KEY = "mfdan.spec"
"""Of the ONNX file's metadata; its value is the spec without hash and scores."""

_PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
}
_INPUTS = ("image", "flow")
_OUTPUT = "logits"
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Session:
    """A verified model, ready to run. Safe to share among threads."""

    spec: ModelSpec
    path: Path
    """The ONNX file that it was loaded from."""
    _runtime: ort.InferenceSession
    _wanted: str

    @property
    def provider(self) -> str:
        """The execution provider that ONNX Runtime really uses first."""
        return str(self._runtime.get_providers()[0])

    @property
    def fell_back(self) -> bool:
        """Whether a GPU was asked for and not got."""
        return self.provider != self._wanted

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        device: Literal["cpu", "cuda"] = "cpu",
        threads: int = 0,
        strict: bool = False,
    ) -> "Session":
        """Load an ONNX file and the spec beside it.

        `threads` is ONNX Runtime's intra-op count; 0 leaves the choice to it. With `strict` a
        model that would run on another device than asked for is refused.

        Raises: ModelNotFound, SpecInvalid (also for a flow that does not run), SpecMismatch
        (hash, metadata, or the names, shapes and types of inputs and output do not fit the
        spec), ModelError (not an ONNX model that runs here, or not on the device).
        """
        spec = load_spec(path)
        _check_flow(spec, path.name)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Workers that spin between runs would take the cores from the flow of the next pair.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        runtime = _load(path, options, device, strict=strict)
        _check(runtime, spec, path.name)
        session = cls(spec, path, runtime, _PROVIDERS[device][0])
        if session.fell_back and strict:
            raise ModelError(f"a GPU was asked for, but {spec.name} runs on {session.provider}")
        return session

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


def _load(
    path: Path, options: ort.SessionOptions, device: Literal["cpu", "cuda"], *, strict: bool
) -> ort.InferenceSession:
    """Load the file on the device; on the CPU where there is none like it, unless `strict`."""
    try:
        return _runtime(path, options, _PROVIDERS[device])
    except Exception as error:  # ONNX Runtime has no common base class of its faults
        if device != "cpu" and not strict:
            return _load(path, options, "cpu", strict=strict)
        raise ModelError(
            f"ONNX Runtime cannot load {path.name} for {device}: {type(error).__name__}"
        ) from error


def _runtime(path: Path, options: ort.SessionOptions, providers: list[str]) -> ort.InferenceSession:
    # Its own fallback prints, and goes on without the GPU for ever after one failed run.
    return ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)


def _check_flow(spec: ModelSpec, name: str) -> None:
    """Compute one flow: only the algorithm itself knows which of its parameters are valid."""
    blank = np.zeros((spec.input_size, spec.input_size), np.uint8)
    try:
        compute_flow(blank, blank, spec.flow)
    except (ValueError, TypeError, cv2.error) as error:
        raise SpecInvalid(
            f"the spec of {name} asks for a {spec.flow.algorithm} flow that does not run: {error}"
        ) from None


def _check(runtime: ort.InferenceSession, spec: ModelSpec, name: str) -> None:
    embedded = runtime.get_modelmeta().custom_metadata_map.get(SPEC_METADATA_KEY)
    if embedded is None:
        raise SpecMismatch(f"{name} carries no spec in its metadata")
    if ModelSpec.from_json(embedded) != spec.embedded():
        raise SpecMismatch(f"the spec inside {name} differs from the one beside it")
    side = spec.input_size
    inputs = {node.name: (node.type, list(node.shape[1:])) for node in runtime.get_inputs()}
    wanted = {key: ("tensor(float)", [3, side, side]) for key in _INPUTS}
    if inputs != wanted:
        raise SpecMismatch(f"{name} takes inputs {inputs}, its spec asks for {wanted}")
    outputs = {node.name: list(node.shape[1:]) for node in runtime.get_outputs()}
    if outputs != {_OUTPUT: [len(spec.classes)]}:
        raise SpecMismatch(f"{name} gives {outputs}, its spec names {len(spec.classes)} classes")
    for node in (*runtime.get_inputs(), *runtime.get_outputs()):
        if isinstance(node.shape[0], int):  # a name or None where any number will do
            raise SpecMismatch(f"{name} fixes the batch of {node.name} to {node.shape[0]}")


def _softmax(logits: FloatArray) -> FloatArray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), np.float32)
