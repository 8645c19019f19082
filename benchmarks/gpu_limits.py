"""What the machine can do at most, measured, and what a graph asks of it, counted.

Memory: one tensor far larger than any cache is read and written again and again, inside one graph.
Arithmetic: large square products, likewise. Two numbers of turns are timed and their difference
taken, so that launching, copying in and copying out do not count.

A graph's bytes and operations are those of the kernels that ONNX Runtime executes for it, from its
own record of one run on the CPU: loops count as often as they turn. Every kernel reads its inputs
from memory and writes its outputs; reshaping is free; of what is sliced or gathered, what is taken
counts. A fused kernel of another device may do with less.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
from gpu_rows import NotHere, Row, attempt
from numpy.typing import NDArray

from model.runtime import Device, Placement, Runtime

__all__ = ["Ceilings", "Work", "count_work", "measure_ceilings", "per_batch", "torch_on"]

PRECISIONS = ("float32", "tf32", "float16")
_FREE = {
    *("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Constant"),
    *("Loop", "If", "Scan"),  # their bodies are counted
}
_TAKES_A_PART = {"Slice", "Gather", "GatherND", "GatherElements", "Expand"}
_SIZES = {"float": 4, "float16": 2, "double": 8, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}
_MAC = 2


@dataclass(frozen=True)
class Work:
    """What one run of a graph asks of the machine."""

    bytes: float
    operations: float
    """Of floating point: a multiplication and an addition are two."""

    def scaled(self, factor: float) -> "Work":
        """Return so many times the work."""
        return Work(self.bytes * factor, self.operations * factor)


def count_work(model: Path | bytes, feeds: Mapping[str, NDArray[Any]]) -> Work:
    """Count the work of one run on these inputs, in the precision that the graph has."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "record"))
        # Weights packed for this processor would be missing from the record, and layouts of its
        # own would be in it.
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        source = str(model) if isinstance(model, Path) else model
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        session.run(None, dict(feeds))
        record = json.loads(Path(session.end_profiling()).read_text())
    kernels = [
        event["args"]
        for event in record
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    return Work(sum(map(_bytes, kernels)), sum(map(_operations, kernels)))


def per_batch(work: Callable[[int], Work], batch: int) -> Work:
    """Return the work at a batch size from that at 1 and 2: weights are read once, pairs each."""
    one, two = work(1), work(2)
    more = batch - 1
    return Work(
        one.bytes + more * (two.bytes - one.bytes),
        one.operations + more * (two.operations - one.operations),
    )


def _bytes(kernel: dict[str, Any]) -> float:
    if kernel["op_name"] in _FREE:
        return 0
    written = sum(map(_size, kernel["output_type_shape"]))
    read = sum(map(_size, kernel["input_type_shape"]))
    return written + (min(read, written) if kernel["op_name"] in _TAKES_A_PART else read)


def _size(tensor: dict[str, list[int]]) -> float:
    ((kind, shape),) = tensor.items()
    return math.prod(shape) * _SIZES[kind]


def _operations(kernel: dict[str, Any]) -> float:
    name, outputs = kernel["op_name"], kernel["output_type_shape"]
    if name in _FREE | _TAKES_A_PART or not outputs:
        return 0
    values = sum(math.prod(*tensor.values()) for tensor in outputs if _is_float(tensor))
    shapes = [next(iter(tensor.values())) for tensor in kernel["input_type_shape"]]
    if "MatMul" in name or "Gemm" in name:
        # What is summed over is in the left factor, and not in the result.
        summed = math.prod(shapes[0]) / math.prod(next(iter(outputs[0].values()))[:-1])
        return _MAC * values * summed
    if "Conv" in name:
        return _MAC * values * math.prod(shapes[1][1:])
    return values


def _is_float(tensor: dict[str, list[int]]) -> bool:
    return next(iter(tensor)) in {"float", "float16", "double"}


@dataclass(frozen=True)
class Ceilings:
    """What was measured to be possible."""

    bytes_per_s: float | None
    operations_per_s: Mapping[str, float]
    """By precision."""

    def shares(self, work: Work, precision: str, seconds: float) -> dict[str, float]:
        """Return the share of each limit, 0 to 1, that this much work in this time reaches."""
        found = {}
        if self.bytes_per_s:
            found["share of memory"] = work.bytes / seconds / self.bytes_per_s
        if most := self.operations_per_s.get(precision):
            found["share of arithmetic"] = work.operations / seconds / most
        return found


def measure_ceilings(device: Device, *, quick: bool) -> tuple[list[Row], Ceilings]:
    """Measure both limits, by ONNX Runtime and by torch; the larger of the two is the limit."""
    section, probe = "ceilings", _Probe(device=device, quick=quick)
    rows = [
        attempt(section, "memory, ONNX Runtime", partial(_memory_ort, probe)),
        attempt(section, "memory, torch", partial(_memory_torch, probe)),
    ]
    fastest = max((row.numbers.get("GB/s", 0.0) for row in rows), default=0.0)
    rates = {}
    for precision in PRECISIONS:
        pair = [
            attempt(
                section,
                f"arithmetic {precision}, {library}",
                partial(measure, probe, precision),
            )
            for library, measure in (("ONNX Runtime", _products_ort), ("torch", _products_torch))
        ]
        rows += pair
        if best := max(row.numbers.get("TFLOP/s", 0.0) for row in pair):
            rates[precision] = best * 1e12
    return rows, Ceilings(fastest * 1e9 or None, rates)


@dataclass(frozen=True, kw_only=True)
class _Probe:
    """How the ceilings of a device are measured."""

    device: Device
    quick: bool

    @property
    def floats(self) -> int:
        """Of the tensor that is read and written: more than caches hold."""
        return 2**24 if self.device == "cpu" else 2**27

    @property
    def side(self) -> int:
        """Of the matrices that are multiplied."""
        if self.device == "cpu":
            return 512 if self.quick else 1024
        return 8192

    def extra_s(self, run: Callable[[int], object]) -> float:
        """Return what one more turn takes: the difference between many turns and few."""
        turns = 4 if self.device == "cpu" else 40
        few, many = turns // 4, turns + turns // 4
        spent: dict[int, list[float]] = {few: [], many: []}
        for count in spent:
            run(count)
        for _ in range(3 if self.quick else 7):
            for count, seconds in spent.items():
                start = time.perf_counter()
                run(count)
                seconds.append(time.perf_counter() - start)
        extra = (median(spent[many]) - median(spent[few])) / (many - few)
        if extra <= 0:
            raise NotHere("more turns took no longer than few: the machine is too busy to measure")
        return extra


def _memory_ort(probe: _Probe) -> dict[str, float]:
    from spox import Var  # noqa: PLC0415 - an extra of its own

    size = probe.floats

    def first(op: Any) -> Var:  # noqa: ANN401 - a module
        return op.expand(_constant(op, np.float32(1)), _constant(op, np.array([size], np.int64)))

    def turn(op: Any, value: Var) -> Var:  # noqa: ANN401 - a module
        return op.mul(value, _constant(op, np.float32(0.999)))

    runtime = _looped(first, turn, Placement(device=probe.device, strict=True))
    seconds = probe.extra_s(partial(_turn, runtime))
    return {"GB/s": 2 * 4 * size / seconds / 1e9}


def _products_ort(probe: _Probe, precision: str) -> dict[str, float]:
    _check_precision(probe.device, precision)
    side = probe.side
    kind = np.float16 if precision == "float16" else np.float32
    draw = np.random.default_rng(0)
    factor = (draw.standard_normal((side, side)) / math.sqrt(side)).astype(kind)

    def first(op: Any) -> Any:  # noqa: ANN401 - spox's
        return _constant(op, draw.standard_normal((side, side)).astype(kind))

    def turn(op: Any, value: Any) -> Any:  # noqa: ANN401 - spox's
        return op.matmul(value, _constant(op, factor))

    placement = Placement(device=probe.device, strict=True, tf32=precision == "tf32")
    runtime = _looped(first, turn, placement)
    seconds = probe.extra_s(partial(_turn, runtime))
    return {"TFLOP/s": _MAC * side**3 / seconds / 1e12}


def _check_precision(device: str, precision: str) -> None:
    if device == "cpu" and precision != "float32":
        raise NotHere(f"{precision} is arithmetic of GPUs: on the CPU it is computed in float32")


def _constant(op: Any, value: Any) -> Any:  # noqa: ANN401 - spox's
    return op.constant(value=np.asarray(value))


def _looped(
    first: Callable[[Any], Any], turn: Callable[[Any, Any], Any], placement: Placement
) -> Runtime:
    """Return a graph that turns so many times, and then gives the largest value alone."""
    try:
        import spox.opset.ai.onnx.v20 as op  # noqa: PLC0415 - an extra of its own
        from spox import Tensor, argument, build  # noqa: PLC0415 - likewise
    except ImportError:
        raise NotHere("spox is not installed: pip install 'mfdan[onnx-flow]'") from None
    turns = argument(Tensor(np.int64, (1,)))
    on = _constant(op, np.array([True]))
    (last,) = op.loop(turns, on, [first(op)], body=lambda _turn, _on, value: [on, turn(op, value)])
    result = op.reduce_max(op.cast(last, to=np.float32), keepdims=False)
    graph = build({"turns": turns}, {"largest": result})
    return Runtime.open(graph.SerializeToString(), "a graph of the ceilings", placement)


def _turn(runtime: Runtime, turns: int) -> None:
    runtime.run(["largest"], {"turns": np.array([turns], np.int64)})


def _memory_torch(probe: _Probe) -> dict[str, float]:
    torch = torch_on(probe.device)
    value = torch.ones(probe.floats, device=probe.device)
    other = torch.empty_like(value)

    def run(turns: int) -> None:
        for _ in range(turns):
            torch.mul(value, 0.999, out=other)
        other[0].item()

    seconds = probe.extra_s(run)
    return {"GB/s": 2 * 4 * len(value) / seconds / 1e9}


def _products_torch(probe: _Probe, precision: str) -> dict[str, float]:
    _check_precision(probe.device, precision)
    torch = torch_on(probe.device)
    side = probe.side
    kind = torch.float16 if precision == "float16" else torch.float32
    factor, first = torch.randn(2, side, side, device=probe.device, dtype=kind) / math.sqrt(side)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")

    def run(turns: int) -> None:
        value = first
        for _ in range(turns):
            value = value @ factor
        value[0, 0].item()

    try:
        seconds = probe.extra_s(run)
    finally:
        torch.set_float32_matmul_precision(before)
    return {"TFLOP/s": _MAC * side**3 / seconds / 1e12}


def torch_on(device: str) -> Any:  # noqa: ANN401 - the module
    """Return torch. Raises: NotHere where it is not installed, or sees no GPU."""
    try:
        import torch  # noqa: PLC0415 - an extra of its own
    except ImportError:
        raise NotHere("torch is not installed: pip install 'mfdan[train]'") from None
    if device != "cpu" and not torch.cuda.is_available():
        raise NotHere(f"torch {torch.__version__} sees no CUDA device")
    return torch
