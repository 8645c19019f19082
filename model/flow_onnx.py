"""Optical flow by ONNX Runtime: the backend `onnx`, on the CPU or a GPU, one pair or many at once.

What it needs to build the graph, spox, is in the extra `onnx-flow`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from model.errors import ModelError, ShapeError, SpecInvalid, SpecMismatch
from model.runtime import Placement, RunsGraph, Runtime
from model.spec import FlowMethod

if TYPE_CHECKING:
    import onnx

__all__ = ["OnnxFlow", "flow_model", "spox_installed", "spox_needed"]

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class OnnxFlow(RunsGraph):
    """TV-L1 for crops of one size, in batches. Safe to share among threads.

    It differs from OpenCV's in one thing: every pair gets all the iterations, whatever `epsilon`
    says, because the pairs of a batch go through one graph.
    """

    size: int
    """Side of the crops, pixels."""
    _runtime: Runtime

    @classmethod
    def open(cls, method: FlowMethod, size: int, placement: Placement) -> "OnnxFlow":
        """Build the graph for a method and a size of crop, and load it.

        Raises: SpecMismatch (not TV-L1), SpecInvalid (a parameter that it does not have or that
        this backend cannot follow), ModelError (spox is missing; with `placement.strict`, not on
        the device).
        """
        try:
            graph = flow_model(method, size)
        except ValueError as error:
            raise SpecInvalid(f"the backend onnx cannot compute this flow: {error}") from None
        return cls(size, Runtime.open(graph.SerializeToString(), "the flow", placement))

    @property
    def backend(self) -> Literal["onnx"]:
        """Who computes."""
        return "onnx"

    def solve(self, onset: NDArray[np.uint8], apex: NDArray[np.uint8]) -> FloatArray:
        """Estimate the flow that carries the onset to the apex.

        Convention: onset and apex are (S, S) uint8; returns (2, S, S) as `model.flow` has it.
        Raises: ShapeError, and what ONNX Runtime raises where the device fails.
        """
        return np.squeeze(self.solve_batch(onset[None], apex[None]), axis=0)

    def solve_batch(self, onsets: NDArray[np.uint8], apexes: NDArray[np.uint8]) -> FloatArray:
        """Estimate N flows at once; none depends on another.

        Convention: onsets and apexes are (N, S, S) uint8; returns (N, 2, S, S) as `model.flow`
        has it. Raises: ShapeError, and what ONNX Runtime raises where the device fails.
        """
        side = (self.size, self.size)
        if onsets.shape != apexes.shape or onsets.shape[1:] != side or not onsets.size:
            raise ShapeError(
                f"one or more pairs of {side} are needed, got {onsets.shape} and {apexes.shape}"
            )
        (flow,) = self._runtime.run(["flow"], {"onset": onsets, "apex": apexes})
        return np.asarray(flow, np.float32)


def flow_model(method: FlowMethod, size: int) -> "onnx.ModelProto":
    """Return the graph of a flow: inputs `onset` and `apex`, (N, S, S) uint8, output `flow`.

    Raises: SpecMismatch (not TV-L1), ModelError (spox is missing), ValueError (a parameter).
    """
    if method.algorithm != "tvl1":
        raise SpecMismatch(f"the backend onnx computes TV-L1, not {method.algorithm}")
    with spox_needed():
        from spox import Tensor, argument, build  # noqa: PLC0415 - an extra

        from model.tvl1 import tvl1  # noqa: PLC0415 - needs it
    grey = Tensor(np.uint8, ("batch", size, size))
    onset, apex = argument(grey), argument(grey)
    flow = tvl1(onset, apex, method.parameters, size)
    return build({"onset": onset, "apex": apex}, {"flow": flow})


def spox_installed() -> bool:
    """Return whether what builds the graphs is installed."""
    return find_spec("spox") is not None


@contextmanager
def spox_needed() -> Iterator[None]:
    """Say what to install where an import within fails. Raises: ModelError."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModelError(
            f"the backend onnx needs {error.name}: pip install 'mfdan[onnx-flow]'"
        ) from None
