"""One ONNX Runtime run from aligned crops to probabilities: nothing leaves the device between."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import ShapeError, SpecMismatch
from model.flow import RigidMotion
from model.flow_onnx import spox_needed
from model.runtime import Placement, RunsGraph, Runtime
from model.spec import ModelSpec, file_sha256

__all__ = ["Fused", "FusedRow"]

FloatArray = NDArray[np.float32]
_OUTPUTS = ("probabilities", "flow", "head")


@dataclass(frozen=True, slots=True, eq=False)
class FusedRow:
    """What `Fused` answers for one pair."""

    probabilities: FloatArray
    """(K,), in the order of the spec's classes; they sum to 1."""
    flow: FloatArray
    """(2, S, S), pixels of the crop, onset → apex, the head's motion removed."""
    head: RigidMotion
    """What was removed: `flow + head.over(flow)` is the flow as it was solved."""


@dataclass(frozen=True, slots=True)
class Fused(RunsGraph):
    """A model whose flow is computed with it, by the backend `onnx`. Safe to share among threads.

    The same steps as `Preprocessor`, `network_inputs` and `Session.run` take, in one graph
    (`model.fused_graph`); how near it comes to them is measured in docs/gpu.md.
    """

    spec: ModelSpec
    _runtime: Runtime

    @classmethod
    def open(cls, path: Path, spec: ModelSpec, placement: Placement) -> "Fused":
        """Build the graph of an ONNX file and its spec, and load it.

        Raises: ModelError (not an ONNX model, does not run here, or spox is not installed),
        SpecMismatch (another file than the spec's, or another flow than TV-L1), SpecInvalid (a
        parameter of the flow that this backend does not have).
        """
        if file_sha256(path) != spec.onnx_sha256:
            raise SpecMismatch(f"{path.name} is not the file that its spec was written for")
        graph = _graph(path, spec)
        return cls(spec, Runtime.open(graph, f"{spec.name} with its flow", placement))

    def run(
        self,
        onset: NDArray[np.uint8],
        onset_grey: NDArray[np.uint8],
        apex_grey: NDArray[np.uint8],
        face: NDArray[np.bool_],
    ) -> list[FusedRow]:
        """Answer N aligned pairs.

        Convention: onset is (N, S, S, 3) uint8 RGB, the greys (N, S, S) uint8, face (N, S, S)
        bool, true inside the face's outline; no row depends on another.
        Raises: ShapeError, and what ONNX Runtime raises where the device fails.
        """
        side = self.spec.input_size
        flat = (len(onset), side, side)
        shapes = [array.shape for array in (onset, onset_grey, apex_grey, face)]
        if shapes != [(*flat, 3), flat, flat, flat] or not len(onset):
            raise ShapeError(
                f"onset is {(*flat, 3)}, greys and face are {flat}, of one pair or more: "
                f"got {shapes}"
            )
        feeds = {"onset": onset, "onset_grey": onset_grey, "apex_grey": apex_grey, "face": face}
        probabilities, flows, heads = self._runtime.run(_OUTPUTS, feeds)
        return [
            # A row that outlives the others must not keep the batch.
            FusedRow(shares.copy(), flow.copy(), RigidMotion(*map(float, head)))
            for shares, flow, head in zip(probabilities, flows, heads, strict=True)
        ]

    def warm_up(self, batch_sizes: Iterable[int] = (1,)) -> None:
        """Run once for each batch size, so that the first request waits for no allocation."""
        side = self.spec.input_size
        for size in batch_sizes:
            grey = np.zeros((size, side, side), np.uint8)
            onset = np.zeros((size, side, side, 3), np.uint8)
            self.run(onset, grey, grey, np.ones((size, side, side), np.bool_))


def _graph(path: Path, spec: ModelSpec) -> bytes:
    with spox_needed():
        from model.fused_graph import fused_graph  # noqa: PLC0415 - what it needs is an extra
    return bytes(fused_graph(path, spec).SerializeToString())
