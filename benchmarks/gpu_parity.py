"""How near is each way of computing to OpenCV and ONNX Runtime on the CPU?"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np
from gpu_network import PRECISIONS, Network, open_network
from gpu_rows import NotHere, Row, attempt
from gpu_work import METHODS, Bench
from numpy.typing import NDArray

from model.flow import magnitude, remove_rigid_motion
from model.flow_onnx import OnnxFlow
from model.fused import Fused
from model.pipeline import network_inputs
from model.solver import Solver, open_solver
from model.spec import FlowBackend
from service.settings import cores

__all__ = [
    "CUDA_GRAPHS",
    "FUSED_WAYS",
    "NEAR",
    "agreement",
    "flows_of",
    "fused_way",
    "onnx_flow",
    "parity_rows",
    "solver_of",
    "stacked",
]

FloatArray = NDArray[np.float32]
NEAR = 0.02
"""Two probabilities that differ by no more are the same answer (the aim of issue 7)."""
_Z = 1.96
_COMPARED: tuple[tuple[str, FlowBackend], ...] = (
    ("tvl1", "onnx"),
    ("tvl1", "opencv-cuda"),
    ("tvl1, more steps, median 3", "onnx"),
    ("tvl1, more steps, median 3", "opencv-cuda"),
    ("farneback", "opencv-cuda"),
)
"""What the CPU computes too: there is no Brox to compare with, only its speed to tell."""
CUDA_GRAPHS = ", CUDA graphs"
FUSED_WAYS = ("", ", tf32", CUDA_GRAPHS, ", tf32" + CUDA_GRAPHS)
"""How the fused graph is run, as the names of rows end."""


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
        attempt(
            "parity of answers",
            f"{name}, fused{way}",
            partial(_fused, bench, name, way, batch),
            batch,
        )
        for name, way, batch in _fused_compared(max(bench.batches))
    ]
    rows += [
        attempt("parity of answers", f"network, {name}", partial(_network, bench, name))
        for name in PRECISIONS
    ]
    return sorted(rows, key=lambda row: row.section, reverse=True)


def _fused_compared(largest: int) -> list[tuple[str, str, int]]:
    """Return method, way and batch: each method alone, and each way with the largest batch."""
    alone = [(name, "", 1) for name, method in METHODS.items() if method.algorithm == "tvl1"]
    return list(dict.fromkeys([*alone, *(("tvl1", way, largest) for way in FUSED_WAYS)]))


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
def fused_way(bench: Bench, name: str, way: str) -> Fused:
    """Return flow and network as one graph, on the device, in one of `FUSED_WAYS`.

    Raises: NotHere, ModelError (it cannot be had).
    """
    if way:
        bench.check_gpu(way.removeprefix(", "))
    captured = way.endswith(CUDA_GRAPHS)
    placement = bench.placement(tf32="tf32" in way, cuda_graphs=captured)
    fused = Fused.open(*bench.model_with_flow(name), placement)
    if captured:
        bench.check_captured(fused)
    return fused


@cache
def flows_of(bench: Bench, name: str, backend: FlowBackend) -> list[FloatArray]:
    """Return the (2, S, S) flow of each pair, once for all rows that need it.

    OpenCV has several pairs at once, as the service's workers give them to it.
    Raises: NotHere, ModelError (the backend cannot be had).
    """
    solver = solver_of(bench, name, backend)
    with ThreadPoolExecutor(1 if backend == "onnx" else cores()) as pool:
        return list(
            pool.map(lambda crops: solver.solve(crops.onset_grey, crops.apex_grey), bench.crops)
        )


def _flow(bench: Bench, name: str, backend: FlowBackend) -> dict[str, float]:
    found = flows_of(bench, name, backend)
    expected = flows_of(bench, name, "opencv-cpu")
    off = [magnitude(one - other) for one, other in zip(found, expected, strict=True)]
    means = [float(each.mean()) for each in off]
    return {
        "pairs": len(means),
        "mean px, median pair": float(np.median(means)),
        "mean px, 95 % of pairs": float(np.percentile(means, 95)),
        "largest px": max(float(each.max()) for each in off),
    }


def _answers(bench: Bench, name: str, backend: FlowBackend) -> dict[str, float]:
    found = _probabilities(bench, flows_of(bench, name, backend), bench.cpu.run)
    return agreement(found, _reference(bench, name))


@cache
def _reference(bench: Bench, name: str) -> FloatArray:
    return _probabilities(bench, flows_of(bench, name, "opencv-cpu"), bench.cpu.run)


def _probabilities(bench: Bench, flows: Sequence[FloatArray], run: Network) -> FloatArray:
    """Return the (N, K) probabilities of a network for pairs with these flows."""
    rows = []
    for crops, flow in zip(bench.crops, flows, strict=True):
        residual, _ = remove_rigid_motion(flow, crops.outline)
        inputs = network_inputs(crops.onset, residual, bench.spec)
        rows.append(run(*(array[None] for array in inputs)))
    return np.concatenate(rows)


def _fused(bench: Bench, name: str, way: str, batch: int) -> dict[str, float]:
    fused = fused_way(bench, name, way)
    found: list[FloatArray] = []
    while len(found) < len(bench.crops):
        rows = fused.run(*stacked(bench, batch, first=len(found)))
        found += [row.probabilities for row in rows]
    return agreement(np.stack(found[: len(bench.crops)]), _reference(bench, name))


def stacked(bench: Bench, batch: int, first: int = 0) -> tuple[NDArray[Any], ...]:
    """Return what the fused graph takes of so many pairs; after the last comes the first again."""
    chosen = [bench.crops[place % len(bench.crops)] for place in range(first, first + batch)]
    parts = [(one.onset, one.onset_grey, one.apex_grey, one.outline) for one in chosen]
    return tuple(np.stack(part) for part in zip(*parts, strict=True))


def _network(bench: Bench, precision: str) -> dict[str, float]:
    run = open_network(bench, precision)
    found = _probabilities(bench, flows_of(bench, "dis", "opencv-cpu"), run)
    return agreement(found, _reference(bench, "dis"))


def agreement(found: FloatArray, expected: FloatArray) -> dict[str, float]:
    """Compare (N, K) probabilities: how many pairs are near in every class, and how near all are.

    The lower bound is Wilson's, of 95 %. Raises: NotHere (one is not a number).
    """
    if not np.isfinite(found).all():
        raise NotHere("an answer is not a number")
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
