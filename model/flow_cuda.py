"""Optical flow by OpenCV on a CUDA GPU: TV-L1, Farneback, Brox.

The results are not those of the CPU to the bit. TV-L1 makes all its iterations here, whatever
`epsilon` says, and has no median filter among them; the flow that comes back is filtered once
instead, which takes about a quarter of the difference away. With `medianFiltering` 1 and `epsilon`
0 both do the same. So a spec must allow the backend, which it does once its answers were measured
(`ModelSpec.flow_backends`).
"""

import mmap
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from model.errors import ShapeError
from model.flow import FARNEBACK
from model.spec import FlowBackend, FlowMethod

__all__ = ["CudaFlow"]

FloatArray = NDArray[np.float32]
Grey = NDArray[np.uint8]


class CudaFlow:
    """One flow method on the GPU, for crops of one size. Safe to share among threads.

    With its first pair each thread makes a stream, an algorithm object, and buffers on the device
    and on the host of its own, and keeps them. What one thread copies, another computes meanwhile.
    """

    def __init__(self, method: FlowMethod, size: int) -> None:
        """Take a method and the side of the crops; the GPU is not touched yet.

        Names of parameters are those of the CPU's algorithm; Brox's are OpenCV's. Raises:
        ValueError for a parameter that the algorithm does not have on the GPU.
        """
        self._size = size
        self._make = _ALGORITHMS[method.algorithm](method.parameters)
        self._unit = method.algorithm == "brox"
        tvl1 = method.algorithm == "tvl1"
        self._median = int(method.parameters.get("medianFiltering", _MEDIAN)) if tvl1 else 1
        self._turns: AbstractContextManager[object] = (
            _FARNEBACK_TURNS if method.algorithm == "farneback" else nullcontext()
        )
        self._threads = threading.local()

    @property
    def backend(self) -> FlowBackend:
        """Always "opencv-cuda"."""
        return "opencv-cuda"

    def solve(self, onset: Grey, apex: Grey) -> FloatArray:
        """Estimate the flow that carries the onset to the apex.

        Convention: onset and apex are (S, S) uint8; returns (2, S, S) float32, as `model.flow`.
        Raises: ShapeError; what OpenCV raises where the device fails (cv2.error, or SystemError
        caused by one).
        """
        if not onset.shape == apex.shape == (self._size, self._size):
            raise ShapeError(
                f"two grey crops of side {self._size} are needed: {onset.shape}, {apex.shape}"
            )
        desk: _Desk | None = getattr(self._threads, "desk", None)
        # Taken away until the pair is done: what failed leaves no buffers behind.
        self._threads.desk = None
        desk = desk or _Desk(self._make, self._size, unit=self._unit)
        with self._turns:
            flow = desk.solve(onset, apex)
        self._threads.desk = desk
        if self._median > 1:
            flow = np.stack([cv2.medianBlur(part, self._median) for part in flow])
        return flow


_FARNEBACK_TURNS = threading.Lock()
"""Its polynomials lie in one place of the device, which each run writes anew for its own size."""


class _Desk:
    """What one thread works with."""

    def __init__(self, make: Callable[[], Any], size: int, *, unit: bool) -> None:
        # First, since it raises where there is no device: calls that take a stream, and the
        # constructor of a stream, then end the process or raise SystemError.
        self._onset, self._apex = _on_device(size, cv2.CV_8UC1), _on_device(size, cv2.CV_8UC1)
        self._flow = _on_device(size, cv2.CV_32FC2)
        self._floats = [_on_device(size, cv2.CV_32FC1) for _ in range(2 * unit)]
        self._stream = cv2.cuda.Stream()
        self._solver = make()
        greys, field = size * size, 2 * 4 * size * size
        block = _page_locked(self, 2 * greys + field).reshape(-1)
        # The field first: floats begin at multiples of four.
        self._field = block[:field].view(np.float32).reshape(size, size, 2)
        rest = block[field : field + 2 * greys]
        self._greys = rest.reshape(2, size, size)

    def solve(self, onset: Grey, apex: Grey) -> FloatArray:
        # Raises on a device that was lost meanwhile, where an upload might end the process.
        self._stream.queryIfComplete()
        self._greys[0], self._greys[1] = onset, apex
        self._onset.upload(self._greys[0], self._stream)
        self._apex.upload(self._greys[1], self._stream)
        first, second = self._pictures()
        self._flow = self._solver.calc(first, second, self._flow, self._stream)
        field = self._flow.download(self._stream, self._field)
        self._stream.waitForCompletion()
        return np.ascontiguousarray(field.transpose(2, 0, 1), dtype=np.float32)

    def _pictures(self) -> tuple[Any, Any]:
        """Return both pictures as the algorithm takes them: Brox wants floats from 0 to 1."""
        if not self._floats:
            return self._onset, self._apex
        for grey, unit in zip((self._onset, self._apex), self._floats, strict=True):
            grey.convertTo(cv2.CV_32F, 1 / 255, 0.0, self._stream, unit)
        return self._floats[0], self._floats[1]


def _on_device(size: int, kind: int) -> Any:  # noqa: ANN401 - OpenCV's stub leaves out what we use
    mat = cv2.cuda.GpuMat()
    mat.create(size, size, kind)
    return mat


def _page_locked(owner: object, size: int) -> NDArray[np.uint8]:
    """Return whole pages that the GPU copies from and to by itself, unlocked with their owner.

    OpenCV's own page-locked matrices reach Python as copies.
    """
    pages = -(-size // mmap.PAGESIZE)
    block = np.frombuffer(mmap.mmap(-1, pages * mmap.PAGESIZE), np.uint8)
    block = block.reshape(pages, mmap.PAGESIZE)
    cv2.cuda.registerPageLocked(block)
    weakref.finalize(owner, _unlock, block)
    return block


def _unlock(block: NDArray[np.uint8]) -> None:
    with suppress(cv2.error):  # of a lost device: it has nothing locked any more
        cv2.cuda.unregisterPageLocked(block)


def _chosen(
    name: str, parameters: Mapping[str, Any], defaults: Mapping[str, Any], *ignored: str
) -> dict[str, Any]:
    if unknown := parameters.keys() - defaults.keys() - set(ignored):
        raise ValueError(f"{name} has no parameter {min(unknown)!r}")
    return {key: parameters.get(key, default) for key, default in defaults.items()}


_TVL1 = {
    "tau": 0.25,
    "lambda": 0.15,
    "theta": 0.3,
    "scalesNumber": 5,
    "warpingsNumber": 5,
    "outerIterations": 10,
    "innerIterations": 30,
    "scaleStep": 0.8,
    "gamma": 0.0,
    "useInitialFlow": False,
}
_MEDIAN = 5
"""The CPU's defaults."""


def _tvl1(parameters: Mapping[str, Any]) -> Callable[[], Any]:
    chosen = _chosen("TV-L1", parameters, _TVL1, "medianFiltering", "epsilon")
    if chosen["useInitialFlow"]:
        raise ValueError("TV-L1: useInitialFlow must be false, there is no flow to begin with")
    return lambda: cv2.cuda.OpticalFlowDual_TVL1_create(  # type: ignore[attr-defined] # CUDA only
        tau=chosen["tau"],
        lambda_=chosen["lambda"],
        theta=chosen["theta"],
        nscales=chosen["scalesNumber"],
        warps=chosen["warpingsNumber"],
        # Its own rule of when to stop sums on a stream that all threads share, and waits for it.
        epsilon=0.0,
        iterations=chosen["outerIterations"] * chosen["innerIterations"],
        scaleStep=chosen["scaleStep"],
        gamma=chosen["gamma"],
        useInitialFlow=False,
    )


def _farneback(parameters: Mapping[str, Any]) -> Callable[[], Any]:
    chosen = _chosen("Farneback", parameters, FARNEBACK)
    if chosen["flags"] & cv2.OPTFLOW_USE_INITIAL_FLOW:
        raise ValueError("Farneback: there is no flow to begin with, leave that flag out")
    return lambda: cv2.cuda.FarnebackOpticalFlow_create(  # type: ignore[attr-defined] # CUDA only
        numLevels=chosen["levels"],
        pyrScale=chosen["pyr_scale"],
        fastPyramids=False,  # another pyramid than the CPU's
        winSize=chosen["winsize"],
        numIters=chosen["iterations"],
        polyN=chosen["poly_n"],
        polySigma=chosen["poly_sigma"],
        flags=chosen["flags"],
    )


_BROX = {
    "alpha": 0.197,
    "gamma": 50.0,
    "scale_factor": 0.8,
    "inner_iterations": 5,
    "outer_iterations": 150,
    "solver_iterations": 10,
}
"""OpenCV's defaults."""


def _brox(parameters: Mapping[str, Any]) -> Callable[[], Any]:
    chosen = _chosen("Brox", parameters, _BROX)
    return lambda: cv2.cuda.BroxOpticalFlow_create(**chosen)  # type: ignore[attr-defined] # CUDA only


_ALGORITHMS: Mapping[str, Callable[[Mapping[str, Any]], Callable[[], Any]]] = {
    "tvl1": _tvl1,
    "farneback": _farneback,
    "brox": _brox,
}
