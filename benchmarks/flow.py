"""How near does each flow method come to the true flow, and what does it cost?

    python benchmarks/flow.py PAIRS [--pairs 60]

PAIRS is a folder that `mfdan-train synth` wrote: its true flow is the yardstick. Every method
meets the same aligned crops in turn, so that the cost ratios hold on a noisy machine.
Errors are relative to the pair's peak displacement; medians over pairs. The rows named onnx are
the backend of that name on the CPU, one pair or eight at once; as it has no use for `epsilon`,
OpenCV's TV-L1 is also asked for all its iterations (epsilon 0).
"""

import argparse
import csv
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from report import heading

from model.decode import decode_image
from model.face import FaceFinder, align, similarity_transform
from model.flow import compute_flow, magnitude, to_grey
from model.flow_onnx import OnnxFlow
from model.runtime import Placement
from model.spec import DEFAULT_FLOW, Alignment, FlowMethod

SIZE = 224
TOGETHER = 8
"""Pairs that a row of the backend `onnx` takes at once."""


def tvl1(scales: int, warps: int, outer: int, inner: int, median: int) -> FlowMethod:
    """Name a TV-L1 parameter set by what costs time; the scale step is a half."""
    return FlowMethod(
        algorithm="tvl1",
        parameters={
            "scalesNumber": scales,
            "scaleStep": 0.5,
            "warpingsNumber": warps,
            "outerIterations": outer,
            "innerIterations": inner,
            "medianFiltering": median,
        },
    )


METHODS = {
    "tvl1 OpenCV default": FlowMethod(algorithm="tvl1"),
    "tvl1 5 scales, 5 warps, 3x10, median 5": tvl1(5, 5, 3, 10, 5),
    "tvl1 3 scales, 2 warps, 3x10, median 3": tvl1(3, 2, 3, 10, 3),
    "tvl1 3 scales, 2 warps, 2x8, median 5": tvl1(3, 2, 2, 8, 5),
    "tvl1 3 scales, 2 warps, 2x8": tvl1(3, 2, 2, 8, 1),
    "tvl1 2 scales, 2 warps, 2x8": tvl1(2, 2, 2, 8, 1),
    "tvl1 3 scales, 1 warp, 2x8": tvl1(3, 1, 2, 8, 1),
    "farneback window 15": FlowMethod(algorithm="farneback"),
    "farneback window 25": FlowMethod(algorithm="farneback", parameters={"winsize": 25}),
    "dis medium (default)": DEFAULT_FLOW,
    "dis fast": FlowMethod(algorithm="dis", parameters={"preset": "fast"}),
    "dis ultrafast": FlowMethod(algorithm="dis", parameters={"preset": "ultrafast"}),
}
ON_ONNX = (
    "tvl1 3 scales, 2 warps, 3x10, median 3",
    "tvl1 3 scales, 2 warps, 2x8, median 5",
    "tvl1 3 scales, 2 warps, 2x8",
    "tvl1 2 scales, 2 warps, 2x8",
)


@dataclass(frozen=True)
class Case:
    """Two aligned grey crops, and the flow between them in pixels of the crop."""

    onset: NDArray[np.uint8]
    apex: NDArray[np.uint8]
    total: NDArray[np.float32]
    expression: NDArray[np.float32]


def load_cases(folder: Path, wanted: int) -> list[Case]:
    """Align the first pairs of the folder that show an expression."""
    finder = FaceFinder()
    cases: list[Case] = []
    with (folder / "pairs.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["label"] != "none" and len(cases) < wanted:
                cases.extend(_align_case(folder, row, finder))
    return cases


def _align_case(folder: Path, row: dict[str, str], finder: FaceFinder) -> list[Case]:
    onset, apex = (decode_image((folder / row[key]).read_bytes()) for key in ("onset", "apex"))
    faces = finder.find(onset)
    if not faces:
        return []
    transform = similarity_transform(faces[0].landmarks, Alignment(), SIZE)
    with np.load(folder / row["true_flow"]) as truth:
        total, expression = (_to_crop(truth[key], transform) for key in ("flow", "expression"))
    onset_grey, apex_grey = (to_grey(align(frame, transform, SIZE)) for frame in (onset, apex))
    return [Case(onset_grey, apex_grey, total, expression)]


def _to_crop(flow: NDArray[np.float16], transform: NDArray[np.float64]) -> NDArray[np.float32]:
    """Carry a flow field of the frame into the crop: its places and its vectors."""
    channels = [
        cv2.warpAffine(c.astype(np.float32), transform, (SIZE, SIZE), borderMode=1) for c in flow
    ]
    return np.tensordot(transform[:, :2], np.stack(channels), axes=1).astype(np.float32)


Solver = Callable[[Sequence["Case"]], Iterable[NDArray[np.float32]]]


def by_opencv(method: FlowMethod) -> Solver:
    """Solve cases one after another."""
    return lambda cases: [compute_flow(case.onset, case.apex, method) for case in cases]


def by_onnx(flow: OnnxFlow) -> Solver:
    """Solve cases all at once."""
    return lambda cases: flow.solve_batch(
        np.stack([case.onset for case in cases]), np.stack([case.apex for case in cases])
    )


def open_rows() -> dict[str, tuple[Solver, int]]:
    """Return who solves each row, and how many pairs at once."""
    rows = {name: (by_opencv(method), 1) for name, method in METHODS.items()}
    for name in ON_ONNX:
        method = METHODS[name]
        whole = replace(method, parameters={**method.parameters, "epsilon": 0})
        flow = OnnxFlow.open(method, SIZE, Placement(threads=1))
        rows[f"{name}, epsilon 0"] = by_opencv(whole), 1
        rows[f"{name}, onnx"] = by_onnx(flow), 1
        rows[f"{name}, onnx, {TOGETHER} at once"] = by_onnx(flow), TOGETHER
    return rows


@dataclass
class Figures:
    """What is measured of one row, a value for each pair."""

    moving: list[np.float32] = field(default_factory=list)
    still: list[np.float32] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def measure(cases: Sequence[Case], solve: Solver, at_once: int, figures: Figures) -> None:
    """Solve cases, so many at once, and note errors and times."""
    for first in range(0, len(cases), at_once):
        batch = cases[first : first + at_once]
        start = time.perf_counter()
        flows = solve(batch)
        figures.seconds.extend([(time.perf_counter() - start) / len(batch)] * len(batch))
        for case, flow in zip(batch, flows, strict=True):
            strength = magnitude(case.expression)
            peak = strength.max()
            error = magnitude(flow - case.total) / peak
            figures.moving.append(error[strength > 0.3 * peak].mean())
            figures.still.append(error[strength < 0.05 * peak].mean())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=60)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    cases = load_cases(arguments.folder, arguments.pairs)
    rows = open_rows()
    figures = {name: Figures() for name in rows}
    for first in range(0, len(cases), TOGETHER):
        for name, (solve, at_once) in rows.items():
            measure(cases[first : first + TOGETHER], solve, at_once, figures[name])
    print(heading(f"Flow against the true flow of {len(cases)} synthetic pairs, {SIZE} px crops"))
    print(f"{'method':58} {'moving':>7} {'still':>7} {'ms':>7} {'cost':>7}")
    reference = np.median(figures["dis medium (default)"].seconds)
    for name, of in figures.items():
        took = np.median(of.seconds)
        print(
            f"{name:58} {np.median(of.moving):7.3f} {np.median(of.still):7.3f} "
            f"{took * 1e3:7.1f} {took / reference:6.1f}x"
        )


if __name__ == "__main__":
    main()
