"""Who computes the flow: the backends behind one call, and who takes over where a GPU fails."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from model.errors import FlowFailed, FlowFault, ModelError, SpecInvalid, SpecMismatch
from model.flow import compute_flow
from model.flow_cuda import CudaFlow
from model.flow_onnx import OnnxFlow, spox_installed
from model.runtime import CPU_PROVIDER, Placement
from model.spec import FlowBackend, FlowMethod, ModelSpec

__all__ = [
    "CpuFlow",
    "FlowSolver",
    "Solved",
    "Solver",
    "backend_here",
    "choose_backend",
    "cuda_devices",
    "fault_of",
    "open_solver",
]

FloatArray = NDArray[np.float32]
Grey = NDArray[np.uint8]
Wanted = FlowBackend | Literal["auto"]
_LOG = logging.getLogger("mfdan")


class FlowSolver(Protocol):
    """One flow method of one backend. Safe to share among threads."""

    @property
    def backend(self) -> FlowBackend:
        """Who computes."""

    def solve(self, onset: Grey, apex: Grey) -> FloatArray:
        """Estimate the flow that carries the onset to the apex.

        Convention: onset and apex are (S, S) uint8; returns (2, S, S) float32, as `model.flow`.
        Raises: ShapeError; what the backend's library raises where the device fails.
        """


@dataclass(frozen=True, slots=True)
class CpuFlow:
    """Flow by OpenCV on the CPU."""

    method: FlowMethod

    @property
    def backend(self) -> FlowBackend:
        """Always "opencv-cpu"."""
        return "opencv-cpu"

    def solve(self, onset: Grey, apex: Grey) -> FloatArray:
        """Estimate a flow, as `compute_flow`."""
        return compute_flow(onset, apex, self.method)


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """A flow field, and who really computed it."""

    flow: FloatArray
    """(2, S, S), pixels, as `model.flow`."""
    backend: FlowBackend


def _unheard(_fault: FlowFault) -> None:
    """Tell nobody."""


class Solver:
    """A backend, and who takes a pair that it fails with. Safe to share among threads."""

    def __init__(
        self,
        first: FlowSolver,
        spare: FlowSolver | None = None,
        on_fallback: Callable[[FlowFault], None] = _unheard,
    ) -> None:
        self._first = first
        self._spare = spare
        self._on_fallback = on_fallback

    @property
    def backend(self) -> FlowBackend:
        """Who computes unless the device fails."""
        return self._first.backend

    @property
    def provider(self) -> str | None:
        """The execution provider that ONNX Runtime uses first; None where OpenCV computes."""
        return self._first.provider if isinstance(self._first, OnnxFlow) else None

    @property
    def fell_back(self) -> bool:
        """Whether a GPU was asked for and the graph of the backend `onnx` runs elsewhere."""
        return isinstance(self._first, OnnxFlow) and self._first.fell_back

    @property
    def spared(self) -> bool:
        """Whether another takes a pair that the device fails with."""
        return self._spare is not None

    def solve(self, onset: Grey, apex: Grey) -> FloatArray:
        """Return the flow alone, as `compute` does."""
        return self.compute(onset, apex).flow

    def compute(self, onset: Grey, apex: Grey) -> Solved:
        """Estimate the flow that carries the onset to the apex.

        Convention: onset and apex are (S, S) uint8. Each pair is tried on the device anew: memory
        comes back, and one that is lost fails at once.
        Raises: ShapeError; FlowFailed where the device fails and there is no spare.
        """
        try:
            return Solved(self._first.solve(onset, apex), self._first.backend)
        except Exception as error:
            fault = fault_of(error, self.provider)
            if fault is None:
                raise
            if self._spare is None:
                raise FlowFailed(_told(self._first.backend, fault), fault) from error
        self._on_fallback(fault)
        return Solved(self._spare.solve(onset, apex), self._spare.backend)


_WORDS: dict[FlowFault, tuple[str, ...]] = {
    "memory": (
        "out of memory",
        "failed to allocate memory",
        "alloc_failed",
        "smaller than requested bytes",
    ),
    "driver": (
        "driver",
        "no kernel image",
        "unsupported toolchain",
        "forward compatibility",
        "without cuda",
    ),
    "device": ("cuda", "cudnn", "cublas", "gpu"),
}
"""What the libraries say in each case, looked for in this order."""
_PATH = re.compile(r"\S*/\S*")
"""Of the library's sources, which has such words in it whatever failed."""
_CUDA_CODES = (cv2.Error.GPU_API_CALL_ERROR, cv2.Error.GPU_NOT_SUPPORTED)


def fault_of(error: BaseException, provider: str | None) -> FlowFault | None:
    """Tell what failed on a device, None for an error that is not the device's.

    `provider` is the execution provider that ran the graph, None for OpenCV's own. The CPU has no
    fault of these kinds.
    OpenCV gives its CUDA errors codes of their own, which Python meets as the cause of a
    SystemError where a constructor raised them. ONNX Runtime's have no class in common, and are
    plain RuntimeErrors where buffers on a device were bound.
    """
    if provider == CPU_PROVIDER:
        return None
    cause = error.__cause__ if isinstance(error, SystemError) else error
    if isinstance(cause, cv2.error):
        of_device = getattr(cause, "code", None) in _CUDA_CODES
    else:
        of_device = type(cause).__module__.startswith("onnxruntime") or type(cause) is RuntimeError
    said = _PATH.sub("", str(cause).lower()) if of_device else ""
    return next((fault for fault, words in _WORDS.items() if any(w in said for w in words)), None)


_MEANINGS: dict[FlowFault, str] = {
    "memory": "the GPU has no memory left",
    "driver": "the GPU, its driver and the CUDA libraries do not fit together",
    "device": "the GPU was lost or broke off",
}


def _told(backend: FlowBackend, fault: FlowFault) -> str:
    return f"{backend} could not compute a flow: {_MEANINGS[fault]}"


def cuda_devices() -> int:
    """Return how many GPUs OpenCV can use.

    0 where it was built without CUDA, -1 where the driver is missing or too old for it.
    """
    return cv2.cuda.getCudaEnabledDeviceCount()


def choose_backend(
    spec: ModelSpec, wanted: Wanted, *, cuda_devices: int, placement: Placement, spox: bool
) -> FlowBackend:
    """Return who computes the flow of a model on a machine with so many CUDA devices for OpenCV.

    "auto" is the first of these that the spec allows: OpenCV on the GPU, where there is one; the
    ONNX graph, where ONNX Runtime is placed on a GPU and spox is installed; OpenCV on the CPU; the
    ONNX graph. Strictly on a GPU it takes the CPU only where the spec allows nothing else.
    Raises: SpecMismatch (the spec does not allow what is wanted), ModelError (this machine does
    not have it, or strictly on a GPU nothing that uses one).
    """
    allowed = spec.flow_backends
    if wanted == "auto":
        return _best(spec, cuda_devices, placement, spox=spox)
    if wanted not in allowed:
        raise SpecMismatch(
            f"{spec.name} may have its flow from {' or '.join(allowed)}, not from {wanted}: choose "
            "one of these; `mfdan-train agree` measures whether another gives the same answers"
        )
    if wanted == "opencv-cuda" and cuda_devices < 1:
        raise ModelError(_no_cuda(spec, cuda_devices))
    return wanted


def backend_here(spec: ModelSpec, wanted: Wanted, placement: Placement) -> FlowBackend:
    """Return what `choose_backend` does on this machine. Raises: as it does."""
    return choose_backend(
        spec, wanted, cuda_devices=cuda_devices(), placement=placement, spox=spox_installed()
    )


def _best(spec: ModelSpec, cuda_devices: int, placement: Placement, *, spox: bool) -> FlowBackend:
    allowed, on_gpu = spec.flow_backends, placement.device != "cpu"
    if "opencv-cuda" in allowed and cuda_devices > 0:
        return "opencv-cuda"
    if "onnx" in allowed and ((on_gpu and spox) or "opencv-cpu" not in allowed):
        return "onnx"
    if "opencv-cpu" not in allowed:
        raise ModelError(_no_cuda(spec, cuda_devices))
    if on_gpu and placement.strict and len(allowed) > 1:
        raise ModelError(_not_strictly(spec, cuda_devices))
    return "opencv-cpu"


def _not_strictly(spec: ModelSpec, cuda_devices: int) -> str:
    lacks = {
        "opencv-cuda": _why_no_cuda(cuda_devices),
        "onnx": "spox is not installed (pip install 'mfdan[onnx-flow]')",
    }
    told = " and ".join(f"for {each} {lacks[each]}" for each in spec.flow_backends if each in lacks)
    return (
        f"a GPU was asked for, but the flow of {spec.name} would come from opencv-cpu: {told}; "
        "see docs/gpu.md, or name opencv-cpu if that is meant"
    )


def _no_cuda(spec: ModelSpec, cuda_devices: int) -> str:
    return (
        f"{spec.name} needs an NVIDIA GPU and OpenCV's CUDA build for its {spec.flow.algorithm} "
        f"flow, and {_why_no_cuda(cuda_devices)}: see docs/gpu.md"
    )


def _why_no_cuda(cuda_devices: int) -> str:
    if cuda_devices < 0:
        return "the driver is missing or too old"
    return "this OpenCV was built without CUDA, or sees no GPU"


def open_solver(
    spec: ModelSpec,
    wanted: Wanted = "auto",
    *,
    placement: Placement | None = None,
    on_fallback: Callable[[FlowFault], None] = _unheard,
) -> Solver:
    """Open a backend for a model's flow.

    Where the device fails with a pair, OpenCV computes it on the CPU, if the spec allows that and
    `placement.strict` is false, and `on_fallback` is told why, from the thread that had the pair.
    A first flow is computed at once; where the device fails with it, the log says so alone.
    Raises: SpecMismatch, ModelError as `backend_here` (also where the device fails at once and
    there is nobody to take its place); SpecInvalid for parameters that the backend refuses.
    """
    placement = placement or Placement()
    backend = backend_here(spec, wanted, placement)
    if backend == "opencv-cpu":
        return Solver(CpuFlow(spec.flow))
    spared = "opencv-cpu" in spec.flow_backends and not placement.strict
    spare = CpuFlow(spec.flow) if spared else None
    try:
        first = _device_flow(spec, backend, placement)
        _try_out(first, spare, spec)
    except FlowFailed as error:
        raise ModelError(f"{spec.name}: {error}") from error
    except (ValueError, TypeError, cv2.error) as error:
        why = getattr(error, "err", error)  # of OpenCV's errors: without the place in its source
        if getattr(error, "code", None) == cv2.Error.STS_NOT_IMPLEMENTED:
            raise ModelError(
                f"{spec.name} needs {spec.flow.algorithm} flow, which this OpenCV was built "
                "without: build it by docker/build-opencv-cuda.sh"
            ) from None
        raise SpecInvalid(
            f"{spec.name} asks for {spec.flow.algorithm} flow that {backend} does not run: {why}"
        ) from None
    return Solver(first, spare, on_fallback)


def _try_out(first: FlowSolver, spare: FlowSolver | None, spec: ModelSpec) -> None:
    """Compute a flow that nobody asked for, which is no pair that fell back."""

    def told(fault: FlowFault) -> None:
        _LOG.warning(
            "%s: %s could not compute its first flow (%s): opencv-cpu computes what it fails with",
            spec.name,
            first.backend,
            _MEANINGS[fault],
        )

    blank = np.zeros((spec.input_size, spec.input_size), np.uint8)
    flow = Solver(first, spare, told).solve(blank, blank)
    if not np.isfinite(flow).all():
        raise ValueError("it is not finite")


def _device_flow(spec: ModelSpec, backend: FlowBackend, placement: Placement) -> FlowSolver:
    if backend == "opencv-cuda":
        return CudaFlow(spec.flow, spec.input_size)
    # Pairs come one at a time from many threads, each of which would capture graphs of its own.
    placement = replace(placement, cuda_graphs=False)
    return OnnxFlow.open(spec.flow, spec.input_size, placement)
