"""The one command of docs/gpu.md: its numbers, its rows, and the table made from them."""

import json
import math
import subprocess
import sys
from pathlib import Path

import gpu
import gpu_limits
import gpu_parity
import gpu_rows
import numpy as np
import onnx
import pytest
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


def test_an_aim_is_met_on_a_gpu_only_and_owed_where_a_row_is_missing() -> None:
    row, aims_of = gpu_rows.Row, gpu.aims_of
    near = {"share within 0.02": 0.995}
    rows = [
        row(section="end to end", name="a, from frames", batch=1, numbers={"ms": 9, "pairs/s": 99}),
        row(
            section="end to end",
            name="a, from frames",
            batch=64,
            numbers={"ms": 70, "pairs/s": 900},
        ),
        row(section="end to end", name="a, from JPEG", batch=1, numbers={"ms": 1, "pairs/s": 9999}),
        row(section="flow", name="tvl1, onnx", batch=64, numbers={"pairs/s": 4000}),
        row(section="flow", name="tvl1, opencv-cuda", batch=1, numbers={"pairs/s": 100}),
        row(section="parity of answers", name="tvl1, fused", numbers=near),
        row(section="parity of answers", name="tvl1, opencv-cuda", reason="no GPU"),
        row(section="parity of answers", name="network, float32", numbers=near),
    ]
    rate, single, faster, close = aims_of(rows, "cuda")
    assert (rate.value, rate.met) == (900, False)
    assert (single.value, single.met) == (9, True)
    assert (faster.value, faster.met) == (40, True)
    assert (close.value, close.met) == (None, None)
    assert {aim.met for aim in aims_of(rows, "cpu")} == {None}


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
    gpu_only = ("opencv-cuda", "tf32", "float16", "CUDA graphs", "tensorrt", "torch", "brox")
    unmeasured = {row["name"] for row in report["rows"] if row["reason"]}
    assert not [name for name in unmeasured if not any(word in name for word in gpu_only)]
