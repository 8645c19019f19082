"""The one command of docs/gpu.md: its numbers, its rows, and the table made from them."""

import asyncio
import json
import math
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gpu
import gpu_engine
import gpu_limits
import gpu_network
import gpu_parity
import gpu_rows
import gpu_work
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tiny_model import tiny_spec, write_tiny_model

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
DOCS = ROOT / "docs"


def product_in_a_loop(turns: int) -> bytes:
    """x (4, 8) @ w (8, 8), so many times over, then one sigmoid."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["still_on"]),
            helper.make_node("MatMul", ["value", "w"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, [4, 8]),
        ],
        [
            helper.make_tensor_value_info("still_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [4, 8]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Loop", ["turns", "", "x"], ["last"], body=body),
            helper.make_node("Sigmoid", ["last"], ["y"]),
        ],
        "loop",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 8])],
        [
            helper.make_tensor("turns", TensorProto.INT64, [], [turns]),
            helper.make_tensor("w", TensorProto.FLOAT, [8, 8], [0.1] * 64),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("turns", [1, 5])
def test_work_is_counted_kernel_by_kernel_and_a_loop_as_often_as_it_turns(turns: int) -> None:
    feeds = {"x": np.ones((4, 8), np.float32)}
    work = gpu_limits.count_work(product_in_a_loop(turns), feeds)
    product, sigmoid = 4 * (32 + 64 + 32), 4 * (32 + 32)
    assert work.bytes == turns * product + sigmoid
    assert work.operations == turns * 2 * 32 * 8 + 32


def test_weights_are_read_once_a_batch_and_pairs_each() -> None:
    work = gpu_limits.per_batch(lambda batch: gpu_limits.Work(100 + 10 * batch, 7 * batch), 8)
    assert work == gpu_limits.Work(180, 56)


def test_a_share_is_work_over_time_over_the_ceiling() -> None:
    ceilings = gpu_limits.Ceilings(1000.0, {"float32": 50.0})
    shares = ceilings.shares(gpu_limits.Work(500, 100), "float32", 2.0)
    assert shares == {"share of memory": 0.25, "share of arithmetic": 1.0}
    assert "share of arithmetic" not in ceilings.shares(gpu_limits.Work(500, 100), "float16", 2.0)


def test_ways_are_run_in_turn_and_what_fails_or_lasts_too_long_says_so() -> None:
    order: list[str] = []

    def way(name: str, pairs: int = 4) -> object:
        def start() -> object:
            if name == "bad":
                raise RuntimeError("no such\ndevice")
            if name == "absent":
                raise gpu_rows.NotHere("it is not here")
            return lambda: order.append(name)

        return gpu_rows.Contender(name=name, pairs=pairs, open=start)

    pace = gpu_rows.Pace(rounds=3, budget_s=0.0, longest_s=1.0)
    rates = {"slow": 0.5}
    contenders = [way(name) for name in ("first", "bad", "second", "absent", "slow")]
    found = {row.name: row for row in gpu_rows.side_by_side("x", contenders, pace, rates)}
    turns = [name for place, name in enumerate(order) if place and order[place - 1] != name]
    assert turns[-6:] == ["first", "second"] * 3  # three rounds after each was opened
    assert found["first"].numbers["rounds"] == 3
    assert math.isclose(
        found["first"].numbers["pairs/s"], 4e3 / found["first"].numbers["ms"], rel_tol=1e-9
    )
    assert found["bad"].reason == "RuntimeError: no such device"
    assert found["absent"].reason == "it is not here"
    assert found["slow"].reason == "left out: a run would take 2.0 s, the limit is 1 s"
    assert rates["first"] > 0


def test_agreement_counts_pairs_that_are_near_in_every_class() -> None:
    expected = np.array([[0.6, 0.4], [0.5, 0.5], [0.1, 0.9], [0.55, 0.45]], np.float32)
    found = expected + np.array([[0.01], [-0.019], [0.0], [-0.1]], np.float32) * [1, -1]
    told = gpu_parity.agreement(found.astype(np.float32), expected)
    assert told["share within 0.02"] == 0.75
    assert told["labels that differ"] == 2  # the tie, and the last
    assert math.isclose(told["largest difference"], 0.1, rel_tol=1e-5)
    assert 0.30 < told["at least (95 %)"] < 0.31  # Wilson, 3 of 4


def end_to_end(way: str, batch: int, ms: float, rate: float) -> gpu_rows.Row:
    numbers = {"ms": ms, "pairs/s": rate}
    return gpu_rows.Row(section="end to end", name=way, batch=batch, numbers=numbers)


def flow_of(name: str, batch: int, rate: float) -> gpu_rows.Row:
    return gpu_rows.Row(section="flow", name=name, batch=batch, numbers={"pairs/s": rate})


def answers_of(name: str, share: float | None, batch: int = 1) -> gpu_rows.Row:
    numbers = {} if share is None else {"share within 0.02": share}
    reason = "" if numbers else "no GPU"
    return gpu_rows.Row(
        section="parity of answers", name=name, batch=batch, numbers=numbers, reason=reason
    )


def test_an_aim_is_met_on_a_gpu_only_and_owed_where_a_row_is_missing() -> None:
    rows = [
        end_to_end("tvl1 onnx, fused, from frames", 1, 9, 99),
        end_to_end("tvl1 onnx, fused, from frames", 64, 70, 900),
        flow_of("tvl1, onnx", 64, 4000),
        flow_of("tvl1, opencv-cuda", 1, 100),
        answers_of("tvl1, fused", 0.995),
        answers_of("tvl1, opencv-cuda", None),
        answers_of("network, float32", 0.995),
    ]
    rate, single, faster, close = gpu.aims_of(rows, "cuda")
    assert (rate.value, rate.met) == (900, False)
    assert (single.value, single.met) == (9, True)
    assert (faster.value, faster.met) == (40, True)
    assert (close.value, close.met) == (None, None)
    assert {aim.met for aim in gpu.aims_of(rows, "cpu")} == {None}
    assert {aim.value for aim in gpu.aims_of([], "cuda")} == {None}


def test_only_the_way_that_is_meant_meets_an_aim_and_its_row_is_named() -> None:
    rows = [
        end_to_end("dis opencv-cpu, from frames", 1, 1, 9999),
        end_to_end("tvl1 onnx, fused, from JPEG", 1, 1, 9999),
        end_to_end("tvl1 onnx, fused, from frames", 1, 9, 99),
        end_to_end("tvl1 onnx, fused, CUDA graphs, from frames", 64, 70, 1200),
        flow_of("tvl1, onnx", 8, 4000),
        flow_of("tvl1, opencv-cuda", 8, 150),
    ]
    rate, single, faster, _ = gpu.aims_of(rows, "cuda")
    assert (rate.value, rate.rows) == (
        1200,
        "end to end: tvl1 onnx, fused, CUDA graphs, from frames, batch 64",
    )
    assert (single.value, single.rows) == (9, "end to end: tvl1 onnx, fused, from frames, batch 1")
    assert faster.value is None  # OpenCV's rate at eight pairs is no base
    assert faster.rows == "flow: tvl1, onnx; flow: tvl1, opencv-cuda, batch 1"


def test_the_farthest_of_all_served_ways_and_batches_tells_the_nearness() -> None:
    rows = [
        answers_of("tvl1, fused", 1.0),
        answers_of("tvl1, fused", 0.97, batch=64),
        answers_of("tvl1, fused, tf32", 0.5, batch=64),  # whoever turns it on was told
        answers_of("tvl1, opencv-cuda", 0.995),
        answers_of("network, float32", 1.0),
    ]
    *_, close = gpu.aims_of(rows, "cuda")
    assert (close.value, close.met) == (0.97, False)
    assert close.rows == "parity of answers: tvl1, fused, batch 64"


@pytest.mark.slow
def test_every_precision_is_compiled_for_every_batch_size_and_what_is_not_raises() -> None:
    """Seconds, for torch's compiler alone."""
    compiled: list[int] = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        compiled.append(len(inputs[-1]))
        return graph.forward

    sizes = (1, 8, 32, 64)
    ways = [
        gpu_network.compiled(torch.nn.Linear(4, 4).to(kind).eval(), len(sizes), count)
        for kind in (torch.float32, torch.float32, torch.float16)
    ]
    kinds = (torch.float32, torch.float32, torch.float16)
    with torch.inference_mode():
        for _ in range(2):
            for size in sizes:
                for way, kind in zip(ways, kinds, strict=True):
                    way(torch.zeros(size, 4, dtype=kind))
        assert len(compiled) == len(ways) * len(sizes)
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):  # noqa: SLF001 - torch's
            ways[0](torch.zeros(2, 4))


def test_tensorrt_is_held_against_the_ceiling_of_what_it_computes_in() -> None:
    assert gpu_network.arithmetic_of("tensorrt") == "tf32"
    assert gpu_network.arithmetic_of("torch.compile float16") == "float16"
    assert gpu_network.arithmetic_of("float32, CUDA graphs") == "float32"


def bench_of(folder: Path, kept: ExitStack, pairs: int = 3) -> gpu_work.Bench:
    return gpu_work.Bench(
        model=write_tiny_model(folder, tiny_spec(input_size=56)),
        device="cpu",
        frames=gpu_work.drawn_frames(pairs),
        batches=(1, 2, 4),
        pace=gpu_rows.Pace(rounds=1, budget_s=0.0, longest_s=1.0),
        quick=True,
        folder=folder,
        kept=kept,
    )


def test_a_flow_is_computed_once_for_all_rows_and_by_threads_in_order(tmp_path: Path) -> None:
    with ExitStack() as kept:
        bench = bench_of(tmp_path, kept)
        flows = gpu_parity.flows_of(bench, "dis", "opencv-cpu")
        solver = gpu_parity.solver_of(bench, "dis", "opencv-cpu")
        for crops, flow in zip(bench.crops, flows, strict=True):
            assert np.array_equal(flow, solver.solve(crops.onset_grey, crops.apex_grey))
        assert gpu_parity.flows_of(bench, "dis", "opencv-cpu") is flows
        onsets, *_ = gpu_parity.stacked(bench, 4, first=2)
        after_the_last = [bench.crops[place].onset for place in (2, 0, 1, 2)]
        assert np.array_equal(onsets, np.stack(after_the_last))


class _Engine:
    """Answers at once, and fails where more than two pairs are under way."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.under_way = seconds, 0

    async def predict(self, _pair: object) -> object:
        self.under_way += 1
        try:
            await asyncio.sleep(self.seconds)
            if self.under_way > 2:
                raise RuntimeError("too many")
        finally:
            self.under_way -= 1
        return SimpleNamespace(faces=["one"])


def test_a_number_of_pairs_that_fails_loses_no_other_row(tmp_path: Path) -> None:
    with ExitStack() as kept:
        bench = replace(bench_of(tmp_path, kept, pairs=0), batches=(1, 4, 2))
    engine = _Engine()
    rows = asyncio.run(gpu_engine.rows_at_each(engine, "way", [object()], bench))
    assert [bool(row.numbers) for row in rows] == [True, False, True]
    assert rows[1].reason == "RuntimeError: too many"
    assert engine.under_way == 0


def test_a_number_of_pairs_that_would_take_too_long_is_left_out(tmp_path: Path) -> None:
    with ExitStack() as kept:
        bench = replace(bench_of(tmp_path, kept, pairs=0), batches=(1, 20_000))
    rows = asyncio.run(gpu_engine.rows_at_each(_Engine(0.001), "way", [object()], bench))
    assert rows[0].numbers
    assert rows[1].reason.startswith("left out: it would take ")


def test_the_table_in_the_docs_is_the_one_of_its_json() -> None:
    report = json.loads((DOCS / "gpu-measured.json").read_text())
    assert (DOCS / "gpu-measured.md").read_text() == gpu.render(report)


def names_of(report: dict[str, list[dict[str, object]]]) -> set[tuple[object, ...]]:
    return {(row["section"], row["name"]) for row in report["rows"]}


@pytest.mark.slow
def test_the_command_runs_to_its_end_without_a_gpu_and_leaves_no_row_out(tmp_path: Path) -> None:
    """Seconds on an idle machine, most of them for building the graphs."""
    model = write_tiny_model(tmp_path, tiny_spec(input_size=56))
    out, table = tmp_path / "out.json", tmp_path / "out.md"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--quick", "--device", "cpu"]
    run = subprocess.run(  # noqa: S603 - our own interpreter and code
        [*command, "--model", model, "--batches", "1", "2", "--json", out, "--markdown", table],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == table.read_text().strip()
    report = json.loads(out.read_text())
    # What docs/ shows was measured by the same command: no row may get lost.
    assert names_of(report) == names_of(json.loads((DOCS / "gpu-measured.json").read_text()))
    for row in report["rows"]:
        assert bool(row["numbers"]) != bool(row["reason"]), row
        assert all(math.isfinite(number) for number in row["numbers"].values()), row
    fused = [row for row in report["rows"] if row["name"] == "tvl1, fused"]
    assert [row["batch"] for row in fused if row["numbers"]] == [1, 2]
    gpu_only = ("opencv-cuda", "tf32", "float16", "CUDA graphs", "tensorrt", "torch", "brox")
    unmeasured = {row["name"] for row in report["rows"] if row["reason"]}
    assert not [name for name in unmeasured if not any(word in name for word in gpu_only)]
