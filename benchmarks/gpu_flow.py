"""The flow by backend and batch, and the fused graph of flow and network.

OpenCV solves one pair at a time: of a batch, as many are at work as there are cores, each in a
thread with its own stream, as the service's workers have it.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import numpy as np
from gpu_limits import Work, count_work, per_batch
from gpu_parity import CUDA_GRAPHS, FUSED_WAYS, fused_way, onnx_flow, solver_of, stacked
from gpu_rows import Contender, Row, report_progress, side_by_side
from gpu_work import METHODS, Bench

from model.flow_onnx import flow_model
from model.spec import FlowBackend
from service.settings import cores

__all__ = ["flow_rows", "fused_rows"]

_SOLVED: tuple[tuple[str, FlowBackend], ...] = (
    ("tvl1", "opencv-cpu"),
    ("tvl1", "opencv-cuda"),
    ("tvl1", "onnx"),
    ("tvl1, more steps, median 3", "opencv-cpu"),
    ("tvl1, more steps, median 3", "opencv-cuda"),
    ("tvl1, more steps, median 3", "onnx"),
    ("farneback", "opencv-cpu"),
    ("farneback", "opencv-cuda"),
    ("dis", "opencv-cpu"),
    ("brox", "opencv-cuda"),
)


def flow_rows(bench: Bench) -> list[Row]:
    """Return a row for each method and backend, at each batch size."""
    rows: list[Row] = []
    rates: dict[str, float] = {}
    for batch in bench.batches:
        report_progress(f"flow, batch {batch}")
        rows += side_by_side(
            "flow",
            [
                *(_solved(bench, name, backend, batch) for name, backend in _SOLVED),
                _solved(bench, "tvl1", "onnx", batch, cuda_graphs=True),
            ],
            bench.pace,
            rates,
        )
    return rows


def fused_rows(bench: Bench) -> list[Row]:
    """Return a row for each precision of the fused graph, at each batch size."""
    rows: list[Row] = []
    rates: dict[str, float] = {}
    for batch in bench.batches:
        report_progress(f"fused, batch {batch}")
        ways = [_fused(bench, precision, batch) for precision in FUSED_WAYS]
        rows += side_by_side("flow and network fused", ways, bench.pace, rates)
    return rows


def _solved(
    bench: Bench, name: str, backend: FlowBackend, batch: int, *, cuda_graphs: bool = False
) -> Contender:
    def start() -> Callable[[], object]:
        if backend == "onnx":
            return _batched(bench, name, batch, cuda_graphs=cuda_graphs)
        return _one_by_one(bench, name, backend, batch)

    def shares(seconds: float) -> dict[str, float]:
        if backend != "onnx":
            return {}  # OpenCV's kernels are no graph that could be counted
        work = per_batch(partial(_flow_work, name, bench.spec.input_size), batch)
        return bench.ceilings.shares(work, "float32", seconds)

    replayed = CUDA_GRAPHS if cuda_graphs else ""
    return Contender(name=f"{name}, {backend}{replayed}", pairs=batch, open=start, shares=shares)


def _batched(bench: Bench, name: str, batch: int, *, cuda_graphs: bool) -> Callable[[], object]:
    if cuda_graphs:
        bench.check_gpu("a CUDA graph")
    flow = onnx_flow(bench, name, cuda_graphs=cuda_graphs)
    _, onsets, apexes, _ = stacked(bench, batch)
    return partial(flow.solve_batch, onsets, apexes)


def _one_by_one(bench: Bench, name: str, backend: FlowBackend, batch: int) -> Callable[[], object]:
    solver = solver_of(bench, name, backend)
    _, onsets, apexes, _ = stacked(bench, batch)
    if batch == 1:
        return partial(solver.solve, onsets[0], apexes[0])
    pool = bench.kept.enter_context(ThreadPoolExecutor(min(batch, cores())))
    return lambda: list(pool.map(solver.solve, onsets, apexes))


def _fused(bench: Bench, precision: str, batch: int) -> Contender:
    def start() -> Callable[[], object]:
        return partial(fused_way(bench, "tvl1", precision).run, *stacked(bench, batch))

    def shares(seconds: float) -> dict[str, float]:
        work = per_batch(partial(_fused_work, bench), batch)
        return bench.ceilings.shares(work, "tf32" if "tf32" in precision else "float32", seconds)

    return Contender(name=f"tvl1 and network{precision}", pairs=batch, open=start, shares=shares)


@cache
def _flow_work(name: str, side: int, batch: int) -> Work:
    grey = np.zeros((batch, side, side), np.uint8)
    return count_work(_flow_graph(name, side), {"onset": grey, "apex": grey})


@cache
def _flow_graph(name: str, side: int) -> bytes:
    return flow_model(METHODS[name], side).SerializeToString()


@cache
def _fused_work(bench: Bench, batch: int) -> Work:
    names = ("onset", "onset_grey", "apex_grey", "face")
    feeds = dict(zip(names, stacked(bench, batch), strict=True))
    return count_work(_fused_graph(bench), feeds)


@cache
def _fused_graph(bench: Bench) -> bytes:
    from model.fused_graph import fused_graph  # noqa: PLC0415 - needs an extra

    return fused_graph(*bench.model_with_flow("tvl1")).SerializeToString()
