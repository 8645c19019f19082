"""Whole pairs through the engine: from decoded frames, and from JPEG bytes.

Face detection, alignment, measures and gates are in it, on the CPU; HTTP is not.
"""

import asyncio
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from statistics import median
from typing import Literal

import numpy as np
from gpu_rows import NotHere, Row, attempt, in_words, report_progress
from gpu_work import Bench
from numpy.typing import NDArray
from PIL import Image

from model.spec import FlowBackend
from service.answers import Frames, Upload
from service.engine import Engine
from service.settings import Settings

__all__ = ["engine_rows", "rows_at_each"]

_SECTION = "end to end"
_WAYS: tuple[tuple[str, FlowBackend], ...] = (
    ("dis", "opencv-cpu"),
    ("tvl1", "opencv-cpu"),
    ("tvl1", "opencv-cuda"),
    ("tvl1", "onnx"),
)
_CUDA_GRAPHS = ", CUDA graphs"
_SENT: tuple[Literal["frames", "JPEG"], ...] = ("frames", "JPEG")
_SINGLES = 30


@dataclass(frozen=True, kw_only=True)
class _Way:
    bench: Bench
    flow: str
    backend: FlowBackend
    cuda_graphs: bool = False

    def name(self, sent: str) -> str:
        fused = ", fused" if self.backend == "onnx" else ""
        replayed = _CUDA_GRAPHS if self.cuda_graphs else ""
        return f"{self.flow} {self.backend}{fused}{replayed}, from {sent}"


def engine_rows(bench: Bench) -> list[Row]:
    """Return a row for each flow, sort of upload, and number of pairs at once (column batch)."""
    rows = []
    ways = [_Way(bench=bench, flow=flow, backend=backend) for flow, backend in _WAYS]
    ways.append(_Way(bench=bench, flow="tvl1", backend="onnx", cuda_graphs=True))
    for way in ways:
        report_progress(f"end to end, {way.name('frames and JPEG')}")
        rows += _measured(way)
    return rows


def _measured(way: _Way) -> list[Row]:
    try:
        return asyncio.run(_rows(way))
    except NotHere as fault:
        reason = str(fault)
    except Exception as fault:  # noqa: BLE001 - whatever keeps an engine from opening is the reason
        reason = in_words(fault)
    return [
        Row(section=_SECTION, name=way.name(sent), batch=at_once, reason=reason)
        for sent in _SENT
        for at_once in way.bench.batches
    ]


async def _rows(way: _Way) -> list[Row]:
    rows = []
    async with Engine.open(_settings(way)) as engine:
        await engine.warmed_up()
        for sent in _SENT:
            asked = _sent(way.bench.frames, sent)
            rows += await rows_at_each(engine, way.name(sent), asked, way.bench)
    return rows


async def rows_at_each(
    engine: Engine, name: str, asked: Sequence[Upload | Frames], bench: Bench
) -> list[Row]:
    """Return a row for each number of pairs at once. A fault of one ends no other."""
    rows: list[Row] = []
    seconds_each = 0.0  # of the last number that was measured
    # What `side_by_side` lets a batch have: two runs, and then the rounds.
    most_s = (2 + bench.pace.rounds) * bench.pace.longest_s
    for at_once in bench.batches:
        expected = at_once * seconds_each
        if expected > most_s:
            reason = f"left out: it would take {expected:.1f} s, the limit is {most_s:g} s"
            rows.append(Row(section=_SECTION, name=name, batch=at_once, reason=reason))
            continue
        work = asyncio.ensure_future(_answered(engine, asked, at_once, bench))
        await asyncio.wait([work])
        row = attempt(_SECTION, name, partial(_numbers, work), at_once)
        rows.append(row)
        seconds_each = 1 / row.numbers["pairs/s"] if row.numbers else seconds_each
    return rows


def _settings(way: _Way) -> Settings:
    bench = way.bench
    if way.backend == "opencv-cuda":
        bench.check_gpu("opencv-cuda")
    if way.cuda_graphs:
        bench.check_gpu("a CUDA graph")
    path, _ = bench.model_with_flow(way.flow)
    return Settings(
        models_dir=path,
        reload_s=0,
        device=bench.device,
        strict_gpu=True,
        flow=way.backend,
        cuda_graphs=way.cuda_graphs,
        batch_sizes=tuple(sorted({1, 2, 4, 8, *bench.batches})),
        queue_items=1024,
        deadline_ms=600_000,  # a row tells how long pairs wait, however long
    )


def _sent(frames: Sequence[tuple[NDArray[np.uint8], ...]], sent: str) -> list[Upload | Frames]:
    if sent == "frames":
        return [Frames(*pair) for pair in frames]
    return [Upload(*map(_jpeg, pair)) for pair in frames]


def _jpeg(frame: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=95)
    return file.getvalue()


async def _answered(
    engine: Engine, asked: Sequence[Upload | Frames], at_once: int, bench: Bench
) -> tuple[list[float], float]:
    """Keep so many pairs under way; return the seconds of each, and of the whole."""
    enough = _SINGLES if not bench.quick else 3
    most_s = 2 * bench.pace.budget_s
    spent: list[float] = []
    numbers = count()
    start = time.perf_counter()

    async def caller() -> None:
        own = 0
        while own == 0 or (
            time.perf_counter() - start < most_s and (at_once > 1 or len(spent) < enough)
        ):
            pair = asked[next(numbers) % len(asked)]
            begun = time.perf_counter()
            answer = await engine.predict(pair)
            spent.append(time.perf_counter() - begun)
            own += 1
            if not answer.faces:
                raise NotHere("a pair shows no face")

    await engine.predict(asked[0])
    start = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as callers:
            for _ in range(at_once):
                callers.create_task(caller())
    except ExceptionGroup as faults:
        raise faults.exceptions[0] from None
    return spent, time.perf_counter() - start


def _numbers(work: asyncio.Future[tuple[list[float], float]]) -> dict[str, float]:
    spent, whole = work.result()
    return {
        "ms": 1e3 * median(spent),
        "ms, 95 %": 1e3 * float(np.percentile(spent, 95)),
        "pairs/s": len(spent) / whole,
        "answers": len(spent),
    }
