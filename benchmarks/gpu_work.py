"""What `benchmarks/gpu.py` works on: a model, pairs, and how long it may measure."""

import csv
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from gpu_limits import Ceilings
from gpu_rows import NotHere, Pace
from numpy.typing import NDArray

from model.decode import decode_image
from model.face import FaceFinder
from model.flow_onnx import OnnxFlow
from model.fused import Fused
from model.pipeline import Crops, Preprocessor
from model.runtime import Device, Placement
from model.session import Session
from model.spec import FlowBackend, FlowMethod, ModelSpec, load_spec

__all__ = ["METHODS", "TVL1", "Bench", "Frames", "drawn_frames", "frames_of"]

Frames = tuple[NDArray[np.uint8], NDArray[np.uint8]]
TVL1 = FlowMethod(
    algorithm="tvl1",
    parameters={
        "scalesNumber": 3,
        "scaleStep": 0.5,
        "warpingsNumber": 2,
        "outerIterations": 2,
        "innerIterations": 8,
        "medianFiltering": 1,
        "epsilon": 0.0,
    },
)
"""Without a median filter, which OpenCV's CUDA has not, and with every iteration: what all backends
can compute."""
METHODS = {
    "tvl1": TVL1,
    "tvl1, more steps, median 3": FlowMethod(
        algorithm="tvl1",
        parameters={
            **TVL1.parameters,
            "outerIterations": 3,
            "innerIterations": 10,
            "medianFiltering": 3,
        },
    ),
    "farneback": FlowMethod(algorithm="farneback"),
    "dis": FlowMethod(algorithm="dis", parameters={"preset": "medium"}),
    "brox": FlowMethod(algorithm="brox"),
}
_ABLE: dict[str, tuple[FlowBackend, ...]] = {
    "tvl1": ("opencv-cpu", "opencv-cuda", "onnx"),
    "farneback": ("opencv-cpu", "opencv-cuda"),
    "dis": ("opencv-cpu",),
    "brox": ("opencv-cuda",),
}


@dataclass(eq=False)
class Bench:
    """One run of the benchmark."""

    model: Path
    device: Device
    frames: list[Frames]
    """Decoded pairs, each with a face."""
    batches: tuple[int, ...]
    pace: Pace
    quick: bool
    folder: Path
    """For models that are made for the measurement; gone afterwards."""
    kept: ExitStack
    """Of what is open until the end."""
    ceilings: Ceilings = field(default_factory=lambda: Ceilings(None, {}))

    @cached_property
    def spec(self) -> ModelSpec:
        """Of the model as it was given."""
        return load_spec(self.model)

    @cached_property
    def finder(self) -> FaceFinder:
        """Shared: it loads two networks."""
        return FaceFinder()

    @cached_property
    def cpu(self) -> Session:
        """The model on the CPU in float32: what all others are compared with."""
        return Session.open(self.model)

    @cached_property
    def crops(self) -> list[Crops]:
        """The largest face of each pair, cropped and aligned. Raises: NotHere (no pair has one)."""
        preprocessor = Preprocessor(self.with_flow("dis"), self.finder)
        found = [crops for pair in self.frames for crops in preprocessor.crop_pair(*pair)[:1]]
        if not found:
            raise NotHere("no pair shows a face")
        return found

    def with_flow(self, name: str) -> ModelSpec:
        """Return the model's spec with another flow, by any backend that can compute it."""
        method = METHODS[name]
        return replace(self.spec, flow=method, flow_backends=_ABLE[method.algorithm])

    def model_with_flow(self, name: str) -> tuple[Path, ModelSpec]:
        """Return a copy of the model whose spec says so, beside it and inside."""
        import onnx  # noqa: PLC0415 - extras of its own

        from training.onnx_file import write_model  # noqa: PLC0415 - likewise

        path = self.folder / f"{name}.onnx"
        if not path.exists():
            write_model(onnx.load(self.model), self.with_flow(name), path)
        return path, load_spec(path)

    def placement(self, *, tf32: bool = False, cuda_graphs: bool = False) -> Placement:
        """Return where to run: never elsewhere than asked for."""
        return Placement(device=self.device, strict=True, tf32=tf32, cuda_graphs=cuda_graphs)

    def check_captured(self, graph: Session | Fused | OnnxFlow) -> None:
        """Raise NotHere where runs of the graph are not replayed as CUDA graphs."""
        if not graph.captures:
            raise NotHere("ONNX Runtime cannot capture this graph for CUDA")

    def check_gpu(self, what: str) -> None:
        """Raise NotHere where the benchmark runs on the CPU."""
        if self.device == "cpu":
            raise NotHere(f"{what} needs a GPU, and --device is cpu")


def frames_of(folder: Path, wanted: int) -> list[Frames]:
    """Return the first pairs of a folder as `mfdan-train synth` writes it."""
    with (folder / "pairs.csv").open(newline="") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(wanted), strict=False)]
    return [
        (
            decode_image((folder / row["onset"]).read_bytes()),
            decode_image((folder / row["apex"]).read_bytes()),
        )
        for row in rows
    ]


def drawn_frames(wanted: int) -> list[Frames]:
    """Return pairs of drawn faces, 320x240, that differ in skin, size and movement."""
    folder = str(Path(__file__).parents[1] / "tests")
    sys.path.insert(0, folder)
    from drawn_face import background, draw_face  # noqa: PLC0415 - the tests' folder is no package

    sys.path.remove(folder)
    scene, draw = background(240, 320), np.random.default_rng(0)
    frames = []
    for _ in range(wanted):
        tone, eyes = draw.uniform(0.5, 1.1), draw.uniform(42, 56)
        brows, smile = draw.uniform(-1.5, 1.5, size=2)
        still = {"centre": (160.0, 100.0), "eye_distance": float(eyes), "tone": float(tone)}
        moved = {**still, "brow_lift": float(brows), "smile": float(smile)}
        frames.append((draw_face(scene, **still), draw_face(scene, **moved)))
    return frames
