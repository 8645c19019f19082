"""How near is each way of computing to OpenCV and ONNX Runtime on the CPU?"""

from functools import cache, partial

import numpy as np
from gpu_network import PRECISIONS, open_network
from gpu_rows import NotHere, Row, attempt
from gpu_work import METHODS, Bench
from numpy.typing import NDArray

from model.flow import magnitude
from model.flow_onnx import OnnxFlow
from model.fused import Fused
from model.pipeline import AlignedPair, Crops, Preprocessor
from model.solver import Solver, open_solver
from model.spec import FlowBackend

__all__ = [
    "NEAR",
    "agreement",
    "fused_inputs",
    "fused_model",
    "onnx_flow",
    "parity_rows",
    "solver_of",
]

NEAR = 0.02
"""Two probabilities that differ by no more are the same answer (the aim of issue 7)."""
_Z = 1.96
_COMPARED: tuple[tuple[str, FlowBackend], ...] = (
    ("tvl1", "onnx"),
    ("tvl1", "opencv-cuda"),
    ("tvl1, more steps, median 3", "onnx"),
    ("tvl1, more steps, median 3", "opencv-cuda"),
    ("farneback", "opencv-cuda"),
    ("brox", "opencv-cuda"),
)


def parity_rows(bench: Bench) -> list[Row]:
    """Return a row for each way: flow against flow, probabilities against probabilities."""
    rows = []
    for name, backend in _COMPARED:
        rows += [
            attempt("parity of flow", f"{name}, {backend}", partial(_flow, bench, name, backend)),
            attempt(
                "parity of answers", f"{name}, {backend}", partial(_answers, bench, name, backend)
            ),
        ]
    rows += [
        attempt("parity of answers", f"{name}, fused", partial(_fused, bench, name))
        for name in METHODS
        if METHODS[name].algorithm == "tvl1"
    ]
    rows += [
        attempt("parity of answers", f"network, {name}", partial(_network, bench, name))
        for name in PRECISIONS
    ]
    return sorted(rows, key=lambda row: row.section, reverse=True)


def solver_of(bench: Bench, name: str, backend: FlowBackend) -> Solver:
    """Return the solver, on the device. Raises: NotHere, ModelError (it cannot be had)."""
    if backend == "onnx":
        return Solver(onnx_flow(bench, name))
    if backend == "opencv-cuda":
        bench.check_gpu("opencv-cuda")
    return open_solver(bench.with_flow(name), backend, placement=bench.placement())


@cache
def onnx_flow(bench: Bench, name: str, *, cuda_graphs: bool = False) -> OnnxFlow:
    """Return the graph of a method, on the device: building it takes longer than running it."""
    placement = bench.placement(cuda_graphs=cuda_graphs)
    flow = OnnxFlow.open(METHODS[name], bench.spec.input_size, placement)
    if cuda_graphs:
        bench.check_captured(flow)
    return flow


@cache
def fused_model(bench: Bench, name: str, *, tf32: bool = False, cuda_graphs: bool = False) -> Fused:
    """Return flow and network as one graph, on the device."""
    placement = bench.placement(tf32=tf32, cuda_graphs=cuda_graphs)
    fused = Fused.open(*bench.model_with_flow(name), placement)
    if cuda_graphs:
        bench.check_captured(fused)
    return fused


def _flow(bench: Bench, name: str, backend: FlowBackend) -> dict[str, float]:
    solver, reference = solver_of(bench, name, backend), solver_of(bench, name, "opencv-cpu")
    means, largest = [], 0.0
    for crops in bench.crops:
        expected = reference.solve(crops.onset_grey, crops.apex_grey)
        off = magnitude(solver.solve(crops.onset_grey, crops.apex_grey) - expected)
        means.append(float(off.mean()))
        largest = max(largest, float(off.max()))
    return {
        "pairs": len(means),
        "mean px, median pair": float(np.median(means)),
        "mean px, 95 % of pairs": float(np.percentile(means, 95)),
        "largest px": largest,
    }


def _answers(bench: Bench, name: str, backend: FlowBackend) -> dict[str, float]:
    solver = solver_of(bench, name, backend)
    spec = bench.with_flow(name)
    pairs = [Preprocessor(spec, bench.finder, solver).solved(crops) for crops in bench.crops]
    return agreement(bench.probabilities(pairs), _reference(bench, name))


def _reference(bench: Bench, name: str) -> NDArray[np.float32]:
    return bench.probabilities(cpu_pairs(bench, name))


def cpu_pairs(bench: Bench, name: str) -> list[AlignedPair]:
    """Return the pairs with the flow that OpenCV computes on the CPU."""
    solver = solver_of(bench, name, "opencv-cpu")
    preprocessor = Preprocessor(bench.with_flow(name), bench.finder, solver)
    return [preprocessor.solved(crops) for crops in bench.crops]


def _fused(bench: Bench, name: str) -> dict[str, float]:
    fused = fused_model(bench, name)
    rows = [fused.run(*(array[None] for array in fused_inputs(crops)))[0] for crops in bench.crops]
    probabilities = np.stack([row.probabilities for row in rows])
    return agreement(probabilities, _reference(bench, name))


def fused_inputs(crops: Crops) -> tuple[NDArray[np.generic], ...]:
    """Return what the fused graph takes of one pair."""
    return crops.onset, crops.onset_grey, crops.apex_grey, crops.outline


def _network(bench: Bench, precision: str) -> dict[str, float]:
    run = open_network(bench, precision)
    pairs = cpu_pairs(bench, "dis")
    found = [run(*(array[None] for array in bench.inputs(pair))) for pair in pairs]
    return agreement(np.concatenate(found), bench.probabilities(pairs))


def agreement(found: NDArray[np.float32], expected: NDArray[np.float32]) -> dict[str, float]:
    """Compare (N, K) probabilities: how many pairs are near in every class, and how near all are.

    The lower bound is Wilson's, of 95 %. Raises: NotHere (no pair, or one is not a number).
    """
    if not len(found) or not np.isfinite(found).all():
        raise NotHere("there is no pair with a face, or an answer is not a number")
    off = np.abs(found - expected).max(axis=1)
    share, pairs = float((off <= NEAR).mean()), len(off)
    middle = share + _Z**2 / (2 * pairs)
    spread = _Z * np.sqrt(share * (1 - share) / pairs + _Z**2 / (4 * pairs**2))
    return {
        "pairs": pairs,
        f"share within {NEAR}": share,
        "at least (95 %)": float((middle - spread) / (1 + _Z**2 / pairs)),
        "largest difference": float(off.max()),
        "labels that differ": float((found.argmax(axis=1) != expected.argmax(axis=1)).sum()),
    }
