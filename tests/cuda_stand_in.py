"""What `model.flow_cuda` uses of OpenCV's CUDA classes, computed on the CPU.

For machines without a GPU. Signatures are those of OpenCV 5.0's bindings. As on a GPU nothing
happens before a stream is waited for, and what a stream reads or writes on the host must be
page-locked. What no GPU would forgive is noted in `Device.faults`.
"""

# ruff: noqa: N802, N803 - OpenCV's own names
# ruff: noqa: ANN401 - parameters of any algorithm
# ruff: noqa: ARG002, PLR0913, PLR0917 - OpenCV's own signatures

import threading
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from model.flow import compute_flow
from model.spec import FlowMethod

_CHANNELS = {
    cv2.CV_8UC1: (np.uint8, 1),
    cv2.CV_32FC1: (np.float32, 1),
    cv2.CV_32FC2: (np.float32, 2),
}
_TVL1 = {
    "tau": "tau",
    "lambda_": "lambda",
    "theta": "theta",
    "nscales": "scalesNumber",
    "warps": "warpingsNumber",
    "iterations": "innerIterations",
    "scaleStep": "scaleStep",
    "gamma": "gamma",
    "epsilon": "epsilon",
    "useInitialFlow": "useInitialFlow",
}
_FARNEBACK = {
    "numLevels": "levels",
    "pyrScale": "pyr_scale",
    "winSize": "winsize",
    "numIters": "iterations",
    "polyN": "poly_n",
    "polySigma": "poly_sigma",
    "flags": "flags",
}


def cuda_error(text: str) -> cv2.error:
    """Return what OpenCV raises where a call of CUDA fails."""
    error = cv2.error(f"OpenCV(5.0.0) error: (-217:Gpu API call) {text} in function 'upload'")
    error.code = cv2.Error.GPU_API_CALL_ERROR
    return error


class Device:
    """Put in the place of the module `cv2.cuda`; `breaks_with` makes every call fail."""

    def __init__(self) -> None:
        self.breaks_with: str | None = None
        self.streams: list[Stream] = []
        self.solvers: list[dict[str, Any]] = []
        self.locked: list[np.ndarray] = []
        self.faults: list[str] = []
        self.busy = threading.Semaphore(1)

    def getCudaEnabledDeviceCount(self) -> int:
        return 1

    def GpuMat(self) -> "Mat":
        return Mat(self)

    def Stream(self) -> "Stream":
        self.check()
        self.streams.append(Stream(self))
        return self.streams[-1]

    def registerPageLocked(self, block: np.ndarray) -> None:
        self.check()
        self.locked.append(block)

    def unregisterPageLocked(self, block: np.ndarray) -> None:
        self.locked = [one for one in self.locked if one is not block]

    def OpticalFlowDual_TVL1_create(self, **given: Any) -> "Algorithm":
        parameters = {_TVL1[name]: value for name, value in given.items()}
        fixed = {"outerIterations": 1, "medianFiltering": 1}
        return self._algorithm("tvl1", parameters | fixed)

    def FarnebackOpticalFlow_create(self, *, fastPyramids: bool, **given: Any) -> "Algorithm":
        assert not fastPyramids
        parameters = {_FARNEBACK[name]: value for name, value in given.items()}
        return self._algorithm("farneback", parameters, turns=True)

    def BroxOpticalFlow_create(
        self,
        alpha: float,
        gamma: float,
        scale_factor: float,
        inner_iterations: int,
        outer_iterations: int,
        solver_iterations: int,
    ) -> "Algorithm":
        """Take Brox's parameters; DIS computes, from the floats that Brox takes."""
        self.solvers.append({"alpha": alpha, "gamma": gamma})
        return Algorithm(self, FlowMethod(algorithm="dis"), unit=True)

    def _algorithm(self, name: Any, parameters: dict[str, Any], **how: bool) -> "Algorithm":
        self.solvers.append(parameters)
        return Algorithm(self, FlowMethod(algorithm=name, parameters=parameters), **how)

    def check(self) -> None:
        if self.breaks_with is not None:
            raise cuda_error(self.breaks_with)

    def check_locked(self, host: np.ndarray) -> None:
        if not any(np.shares_memory(host, block) for block in self.locked):
            self.faults.append("an asynchronous copy from or to memory that is not page-locked")


class Stream:
    def __init__(self, device: Device) -> None:
        self._device = device
        self._thread = threading.get_ident()
        self._waiting: list[Callable[[], None]] = []

    def queryIfComplete(self) -> bool:
        self._device.check()
        return not self._waiting

    def add(self, work: Callable[[], None]) -> None:
        self._device.check()
        if threading.get_ident() != self._thread:
            self._device.faults.append("a stream was used by another thread than its own")
        self._waiting.append(work)

    def waitForCompletion(self) -> None:
        self._device.check()
        waiting, self._waiting = self._waiting, []
        for work in waiting:
            work()


class Mat:
    def __init__(self, device: Device) -> None:
        self._device = device
        self.array = np.empty(0)

    def create(self, rows: int, cols: int, kind: int) -> None:
        self._device.check()
        scalar, channels = _CHANNELS[kind]
        self.array = np.zeros((rows, cols, channels), scalar).squeeze(-1 if channels == 1 else ())

    def upload(self, host: np.ndarray, stream: Stream) -> None:
        self._device.check_locked(host)
        stream.add(lambda: np.copyto(self.array, host))

    def download(self, stream: Stream, host: np.ndarray) -> np.ndarray:
        self._device.check_locked(host)
        stream.add(lambda: np.copyto(host, self.array))
        return host

    def convertTo(self, kind: int, alpha: float, beta: float, stream: Stream, to: "Mat") -> "Mat":
        assert kind == cv2.CV_32F
        stream.add(lambda: np.copyto(to.array, self.array.astype(np.float32) * alpha + beta))
        return to


class Algorithm:
    def __init__(
        self, device: Device, method: FlowMethod, *, unit: bool = False, turns: bool = False
    ) -> None:
        self._device = device
        self._method = method
        self._unit = unit
        self._turns = turns

    def calc(self, first: Mat, second: Mat, flow: Mat, stream: Stream) -> Mat:
        begins = not self._turns or self._device.busy.acquire(blocking=False)
        if not begins:
            self._device.faults.append("two runs of Farneback at once")

        def compute() -> None:
            scale = 255.0 if self._unit else 1.0
            greys = [(one.array * scale).round().astype(np.uint8) for one in (first, second)]
            flow.array[:] = compute_flow(*greys, self._method).transpose(1, 2, 0)
            if self._turns and begins:
                self._device.busy.release()

        stream.add(compute)
        return flow
