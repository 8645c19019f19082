import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from model import runtime as under_test
from model.errors import ModelError
from model.runtime import BoundRuns, Device, Placement, Runtime, preload_cuda

OUTPUTS = ("large", "sum")


def graph() -> bytes:
    """sum = bytes + numbers, large = sum > 100; both are (n, 3)."""
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Cast", ["bytes"], ["floats"], to=TensorProto.FLOAT),
                helper.make_node("Add", ["floats", "numbers"], ["sum"]),
                helper.make_node("Greater", ["sum", "limit"], ["large"]),
            ],
            "graph",
            [
                helper.make_tensor_value_info("bytes", TensorProto.UINT8, ("n", 3)),
                helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ("n", 3)),
            ],
            [
                helper.make_tensor_value_info("sum", TensorProto.FLOAT, ("n", 3)),
                helper.make_tensor_value_info("large", TensorProto.BOOL, ("n", 3)),
            ],
            [helper.make_tensor("limit", TensorProto.FLOAT, (), [100])],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    entry = model.metadata_props.add()
    entry.key, entry.value = "kept", "with the graph"
    return bytes(model.SerializeToString())


GRAPH = graph()
needs_cuda = pytest.mark.skipif(
    Runtime.open(GRAPH, "probe", Placement(device="cuda")).fell_back,
    reason="ONNX Runtime runs nothing on CUDA here: `mfdan doctor` says what is missing",
)


def feeds(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "bytes": random.integers(0, 256, (count, 3), np.uint8),
        "numbers": random.random((count, 3), np.float32),
    }


def expected(given: dict[str, np.ndarray]) -> list[np.ndarray]:
    total = given["bytes"].astype(np.float32) + given["numbers"]
    return [total > 100, total]


def bound(*, capture: bool = False) -> BoundRuns:
    """The way of a GPU, with the CPU as the device."""
    return BoundRuns(onnxruntime.InferenceSession(GRAPH), "cpu", capture=capture)


def addresses(runs: BoundRuns) -> list[int]:
    """Of every buffer that is kept."""
    return [
        value.data_ptr()
        for one in runs._sets.values()  # noqa: SLF001 - addresses have no other witness
        for value in (*one._inputs.values(), *one._outputs)  # noqa: SLF001
    ]


def test_outputs_come_in_the_order_asked_for_and_only_those() -> None:
    runtime = Runtime.open(GRAPH, "graph", Placement())
    given = feeds(2)
    for got, wanted in zip(runtime.run(OUTPUTS, given), expected(given), strict=True):
        np.testing.assert_array_equal(got, wanted)
    (alone,) = runtime.run(["sum"], given)
    np.testing.assert_array_equal(alone, expected(given)[1])


def test_a_runtime_tells_what_the_graph_takes_gives_and_carries() -> None:
    runtime = Runtime.open(GRAPH, "graph", Placement())
    assert [one.name for one in runtime.inputs] == ["bytes", "numbers"]
    assert [(one.name, one.type) for one in runtime.outputs] == [
        ("sum", "tensor(float)"),
        ("large", "tensor(bool)"),
    ]
    assert runtime.metadata == {"kept": "with the graph"}
    assert (runtime.provider, runtime.captures) == ("CPUExecutionProvider", False)


@pytest.mark.parametrize("capture", [False, True])
def test_runs_in_kept_buffers_are_those_of_a_plain_run_whatever_shape_was_before(
    *, capture: bool
) -> None:
    runs, plain = bound(capture=capture), onnxruntime.InferenceSession(GRAPH)
    for turn, count in enumerate((1, 4, 1, 2, 4, 4, 1)):
        given = feeds(count, turn)
        for got, wanted in zip(
            runs.run(OUTPUTS, given), plain.run(list(OUTPUTS), given), strict=True
        ):
            np.testing.assert_array_equal(got, wanted)
            assert got.dtype == wanted.dtype


def test_buffers_of_a_shape_are_used_again_and_answers_outlive_them() -> None:
    runs = bound()
    first = runs.run(OUTPUTS, feeds(3))
    kept = addresses(runs)
    for seed in range(1, 4):
        runs.run(OUTPUTS, feeds(3, seed))
    assert addresses(runs) == kept
    for got, wanted in zip(first, expected(feeds(3)), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("capture", [False, True])
def test_of_ever_new_shapes_only_the_latest_keep_their_buffers(*, capture: bool) -> None:
    runs, most = bound(capture=capture), under_test._MAX_BUFFER_SETS  # noqa: SLF001
    runs.run(OUTPUTS, feeds(1))
    used_often = addresses(runs)
    for count in range(2, 2 * most):
        given = feeds(count)
        np.testing.assert_array_equal(runs.run(OUTPUTS, given)[1], expected(given)[1])
        runs.run(OUTPUTS, feeds(1, count))
    assert len(addresses(runs)) == most * len(used_often)
    assert set(used_often) < set(addresses(runs))


def test_arrays_that_are_no_block_of_memory_are_taken_as_well() -> None:
    given = feeds(4)
    strided = {name: np.repeat(array, 2, axis=1)[:, ::2] for name, array in given.items()}
    assert not strided["bytes"].flags.c_contiguous
    np.testing.assert_array_equal(bound().run(OUTPUTS, strided)[1], expected(given)[1])


def test_threads_that_share_buffers_get_their_own_answers() -> None:
    runs = bound()

    def wrong(seed: int) -> int:
        given = feeds(1 + seed % 3, seed)
        got = runs.run(OUTPUTS, given)
        return sum((a != b).any() for a, b in zip(got, expected(given), strict=True))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(wrong, range(400))) == 0


def test_inputs_that_do_not_fit_raise_and_leave_nothing_behind() -> None:
    runs = bound()
    wrong = {**feeds(2), "numbers": np.zeros((3, 3), np.float32)}
    with pytest.raises(RuntimeError, match="broadcast"):
        runs.run(OUTPUTS, wrong)
    assert addresses(runs) == []
    np.testing.assert_array_equal(runs.run(OUTPUTS, feeds(2))[1], expected(feeds(2))[1])


class NothingButTheCpu(onnxruntime.InferenceSession):
    """As where the driver is missing; remembers what it was asked for."""

    asked: list[tuple[str, str]]

    def __init__(self, *arguments: object, providers: list, **keywords: object) -> None:
        name, options = providers[0]
        self.asked.append((name, options.get("enable_cuda_graph", "")))
        if name != "CPUExecutionProvider":
            graph = arguments[0] if isinstance(arguments[0], str) else "bytes"
            raise RuntimeError(
                f"CUDA failure 100: no CUDA-capable device is detected, for {graph}\nmore"
            )
        super().__init__(*arguments, providers=providers, **keywords)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """What ONNX Runtime, built for everything, is asked for in vain."""
    there = [f"{one}ExecutionProvider" for one in ("Tensorrt", "CUDA", "CPU")]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    monkeypatch.setattr(onnxruntime, "InferenceSession", NothingButTheCpu)
    NothingButTheCpu.asked = []
    under_test._preloaded.cache_clear()  # noqa: SLF001 - of each test its own
    yield NothingButTheCpu.asked
    under_test._preloaded.cache_clear()  # noqa: SLF001 - of each test its own


def test_what_cannot_be_had_is_tried_without_cuda_graphs_and_then_one_device_down(
    asked: list[tuple[str, str]],
) -> None:
    placement = Placement(device="tensorrt", cuda_graphs=True)
    runtime = Runtime.open(GRAPH, "graph", placement)
    assert asked == [
        ("TensorrtExecutionProvider", ""),
        ("TensorrtExecutionProvider", ""),
        ("CUDAExecutionProvider", "0"),
        ("CPUExecutionProvider", ""),
    ]
    assert runtime.fell_back
    assert not runtime.captures
    np.testing.assert_array_equal(runtime.run(OUTPUTS, feeds(2))[1], expected(feeds(2))[1])


@pytest.mark.usefixtures("asked")
def test_each_step_down_is_one_line_of_the_log_with_its_reason_and_no_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "of whom.onnx"
    path.write_bytes(GRAPH)
    Runtime.open(path, path.name, Placement(device="tensorrt", cuda_graphs=True))
    wanted = ("tensorrt with CUDA graphs", "tensorrt", "cuda")
    reason = "CUDA failure 100: no CUDA-capable device is detected, for of whom.onnx"
    assert [record.message for record in caplog.records] == [
        f"of whom.onnx could not be had on {one}: {reason}" for one in wanted
    ]


@pytest.mark.usefixtures("asked")
def test_threads_that_open_graphs_at_once_load_nvidia_s_libraries_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    begun = threading.Barrier(4)

    def preload_dlls(*, directory: str) -> None:
        calls.append(directory)
        print("Failed to load libcudnn.so.9")  # noqa: T201

    def preload(_: int) -> tuple[str, ...]:
        begun.wait()
        return preload_cuda()

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls)
    with ThreadPoolExecutor(4) as pool:
        told = set(pool.map(preload, range(4)))
    assert (told, calls) == ({("Failed to load libcudnn.so.9",)}, [""])
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_with_strict_nothing_but_the_device_is_tried(
    asked: list[tuple[str, str]], device: Device
) -> None:
    with pytest.raises(ModelError, match=f"cannot load graph for {device}: RuntimeError"):
        Runtime.open(GRAPH, "graph", Placement(device=device, strict=True))
    assert [name.lower()[:4] for name, _ in asked] == [device[:4]]


@pytest.mark.usefixtures("asked")
def test_what_onnx_runtime_prints_of_nvidia_s_libraries_is_one_line_of_the_log(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def preload_dlls(*, directory: str) -> None:
        print(f"Failed to load libcudnn.so.9{directory}\n\nPlease follow the page.")  # noqa: T201

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls)
    with caplog.at_level(logging.WARNING, "mfdan"):
        for _ in range(2):
            Runtime.open(GRAPH, "graph", Placement(device="cuda"))
    told = [one.message for one in caplog.records if "NVIDIA's libraries" in one.message]
    assert [one[-53:] for one in told] == ["Failed to load libcudnn.so.9; Please follow the page."]
    assert capfd.readouterr().out == ""


def test_the_cpu_alone_is_no_reason_to_look_for_nvidia_s_libraries(
    asked: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "preload_dlls", None)
    Runtime.open(GRAPH, "graph", Placement())
    assert asked == [("CPUExecutionProvider", "")]


def test_bytes_that_are_no_model_are_refused_by_the_name_given() -> None:
    with pytest.raises(ModelError, match="cannot load the flow's graph for cpu"):
        Runtime.open(b"no model", "the flow's graph", Placement())


@needs_cuda
def test_onnx_runtime_takes_the_options_of_cuda_as_they_are_meant() -> None:
    placement = Placement(device="cuda", memory_limit_mb=512, tf32=True, cuda_graphs=True)
    runtime = Runtime.open(GRAPH, "graph", placement)
    taken = runtime._session.get_provider_options()["CUDAExecutionProvider"]  # noqa: SLF001
    (_, asked_for), _ = placement.providers()
    assert {name: taken[name] for name in asked_for} == asked_for
    assert runtime.captures


@needs_cuda
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_gpu_gives_the_answers_of_the_cpu_to_threads_and_shapes_in_turn(
    *, cuda_graphs: bool
) -> None:
    placement = Placement(device="cuda", strict=True, cuda_graphs=cuda_graphs)
    runtime = Runtime.open(GRAPH, "graph", placement)

    def wrong(seed: int) -> int:
        given = feeds(1 + seed % 3, seed)
        got = runtime.run(OUTPUTS, given)
        return sum((a != b).any() for a, b in zip(got, expected(given), strict=True))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(wrong, range(400))) == 0


@needs_cuda
def test_a_graph_with_a_loop_runs_on_the_gpu_without_being_captured() -> None:
    runtime = Runtime.open(loop(), "loop", Placement(device="cuda", cuda_graphs=True))
    assert (runtime.fell_back, runtime.captures) == (False, False)
    start = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(runtime.run(["end"], {"start": start})[0], 32 * start)


@needs_cuda
def test_more_than_the_arena_may_hold_is_a_fault_and_the_next_run_that_fits_succeeds() -> None:
    runtime = Runtime.open(GRAPH, "graph", Placement(device="cuda", memory_limit_mb=64))
    with pytest.raises(RuntimeError, match="memory"):
        runtime.run(OUTPUTS, feeds(2**24))
    np.testing.assert_array_equal(runtime.run(OUTPUTS, feeds(2))[1], expected(feeds(2))[1])


def test_the_loop_of_the_claim_above_doubles_five_times() -> None:
    start = np.ones((2, 3), np.float32)
    (end,) = Runtime.open(loop(), "loop", Placement()).run(["end"], {"start": start})
    np.testing.assert_array_equal(end, 32 * start)


def loop() -> bytes:
    """end = start, doubled five times in a Loop."""
    numbers = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (None, 3))
        for name in ("value", "doubled", "start", "end")
    ]
    on, more = (
        helper.make_tensor_value_info(name, TensorProto.BOOL, ()) for name in ("on", "more")
    )
    turn = helper.make_tensor_value_info("turn", TensorProto.INT64, ())
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["more"]),
            helper.make_node("Add", ["value", "value"], ["doubled"]),
        ],
        "body",
        [turn, on, numbers[0]],
        [more, numbers[1]],
    )
    whole = helper.make_graph(
        [helper.make_node("Loop", ["times", "", "start"], ["end"], body=body)],
        "loop",
        [numbers[2]],
        [numbers[3]],
        [helper.make_tensor("times", TensorProto.INT64, (), [5])],
    )
    opset = [helper.make_opsetid("", 20)]
    return bytes(helper.make_model(whole, opset_imports=opset, ir_version=10).SerializeToString())
