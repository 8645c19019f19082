"""Who computes the flow, and who takes over."""

import pickle
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
from cuda_stand_in import Algorithm, Device, Mat, Stream, cuda_error
from drawn_face import draw_face
from drawn_warp import bump, texture, warp
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from tiny_model import tiny_spec, write_tiny_model

from model.errors import FlowFailed, ModelError, ShapeError, SpecInvalid, SpecMismatch
from model.flow import compute_flow
from model.pipeline import Preprocessor
from model.runtime import Placement
from model.session import Session
from model.solver import CpuFlow, Solver, choose_backend, cuda_devices, fault_of, open_solver
from model.spec import FlowBackend, FlowMethod, ModelSpec

SIDE = 64
SMALL = {
    "scalesNumber": 1,
    "warpingsNumber": 2,
    "outerIterations": 2,
    "innerIterations": 4,
    "medianFiltering": 1,
}
TVL1 = tiny_spec(flow=FlowMethod(algorithm="tvl1", parameters=SMALL), input_size=SIDE)
EVERYWHERE = replace(TVL1, flow_backends=("opencv-cpu", "opencv-cuda", "onnx"))
ON_GPU = replace(TVL1, flow_backends=("opencv-cuda",))
BROX = tiny_spec(flow=FlowMethod(algorithm="brox"), flow_backends=("opencv-cuda",), input_size=SIDE)

without_gpu = pytest.mark.skipif(cuda_devices() > 0, reason="this machine has a GPU")


def pair() -> tuple[np.ndarray, np.ndarray]:
    shape = (SIDE, SIDE)
    truth = np.stack([bump(shape, 0.8, (30, 30), 10), bump(shape, -1.0, (40, 36), 10)])
    onset = texture(shape)
    return onset, warp(onset, truth.astype(np.float32))


class Failing:
    """A GPU that fails with every pair."""

    backend: FlowBackend = "opencv-cuda"

    def __init__(self, error: Exception) -> None:
        self._error = error

    def solve(self, *_pair: object) -> np.ndarray:
        raise self._error


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    stand_in = Device()
    monkeypatch.setattr(cv2, "cuda", stand_in)
    return stand_in


CPU, GPU, GPU_ONLY = Placement(), Placement(device="cuda"), Placement(device="cuda", strict=True)


@pytest.mark.parametrize(
    ("backends", "wanted", "devices", "placement", "chosen"),
    [
        (("opencv-cpu",), "auto", 0, CPU, "opencv-cpu"),
        (("opencv-cpu",), "auto", 1, GPU_ONLY, "opencv-cpu"),
        (("opencv-cpu", "opencv-cuda"), "auto", 0, GPU, "opencv-cpu"),
        (("opencv-cpu", "opencv-cuda"), "auto", -1, CPU, "opencv-cpu"),
        (("opencv-cpu", "opencv-cuda"), "auto", 1, CPU, "opencv-cuda"),
        (("opencv-cpu", "opencv-cuda"), "auto", 1, GPU_ONLY, "opencv-cuda"),
        (("opencv-cpu", "onnx"), "auto", 1, CPU, "opencv-cpu"),
        (("opencv-cpu", "onnx"), "auto", 0, GPU, "onnx"),
        (("opencv-cpu", "onnx"), "auto", 0, GPU_ONLY, "onnx"),
        (("opencv-cpu", "onnx"), "auto", 0, Placement(device="tensorrt"), "onnx"),
        (("opencv-cpu", "onnx", "opencv-cuda"), "auto", 1, GPU, "opencv-cuda"),
        (("opencv-cpu", "onnx", "opencv-cuda"), "auto", 0, GPU, "onnx"),
        (("onnx",), "auto", 0, CPU, "onnx"),
        (("onnx", "opencv-cuda"), "auto", 2, CPU, "opencv-cuda"),
        (("onnx", "opencv-cuda"), "auto", 0, CPU, "onnx"),
        (("opencv-cpu", "onnx"), "onnx", 0, CPU, "onnx"),
        (("opencv-cpu", "opencv-cuda"), "opencv-cpu", 1, GPU_ONLY, "opencv-cpu"),
        (("opencv-cpu", "opencv-cuda"), "opencv-cuda", 1, CPU, "opencv-cuda"),
    ],
)
def test_the_backend_is_what_the_spec_allows_and_the_machine_has(
    backends: tuple[FlowBackend, ...],
    wanted: FlowBackend,
    devices: int,
    placement: Placement,
    chosen: FlowBackend,
) -> None:
    spec = replace(TVL1, flow_backends=backends)
    found = choose_backend(spec, wanted, cuda_devices=devices, placement=placement, spox=True)
    assert found == chosen


@pytest.mark.parametrize(
    ("backends", "placement", "chosen"),
    [
        (("opencv-cpu", "onnx"), GPU, "opencv-cpu"),
        (("opencv-cpu", "onnx"), CPU, "opencv-cpu"),
        (("onnx",), GPU, "onnx"),  # opening it says what to install
    ],
)
def test_without_spox_the_graph_is_taken_only_where_nothing_else_is_allowed(
    backends: tuple[FlowBackend, ...], placement: Placement, chosen: FlowBackend
) -> None:
    spec = replace(TVL1, flow_backends=backends)
    found = choose_backend(spec, "auto", cuda_devices=0, placement=placement, spox=False)
    assert found == chosen


@pytest.mark.parametrize(
    ("backends", "told"),
    [
        (("opencv-cpu", "opencv-cuda"), ["for opencv-cuda the driver is missing or too old;"]),
        (("opencv-cpu", "onnx"), ["for onnx spox is not installed (pip install"]),
        (("opencv-cpu", "opencv-cuda", "onnx"), ["for opencv-cuda the driver", "and for onnx"]),
    ],
)
def test_strictly_on_a_gpu_the_cpu_is_not_taken_where_a_gpu_could_compute(
    backends: tuple[FlowBackend, ...], told: list[str]
) -> None:
    spec = replace(TVL1, flow_backends=backends)
    with pytest.raises(ModelError, match="tiny would come from opencv-cpu") as raised:
        choose_backend(spec, "auto", cuda_devices=-1, placement=GPU_ONLY, spox=False)
    assert all(part in str(raised.value) for part in told)


@pytest.mark.parametrize("wanted", ["opencv-cuda", "onnx"])
def test_a_backend_that_the_spec_does_not_allow_is_refused(wanted: FlowBackend) -> None:
    with pytest.raises(SpecMismatch, match=f"opencv-cpu, not from {wanted}: choose"):
        choose_backend(TVL1, wanted, cuda_devices=1, placement=CPU, spox=True)


@pytest.mark.parametrize(
    ("spec", "wanted", "devices", "told"),
    [
        (EVERYWHERE, "opencv-cuda", 0, "built without CUDA, or sees no GPU"),
        (EVERYWHERE, "opencv-cuda", -1, "driver is missing or too old"),
        (ON_GPU, "auto", 0, "NVIDIA GPU and OpenCV's CUDA build for its tvl1 flow"),
        (BROX, "auto", -1, "NVIDIA GPU and OpenCV's CUDA build for its brox flow"),
    ],
)
def test_a_machine_without_what_is_needed_is_told_so(
    spec: ModelSpec, wanted: FlowBackend, devices: int, told: str
) -> None:
    with pytest.raises(ModelError, match=told) as raised:
        choose_backend(spec, wanted, cuda_devices=devices, placement=CPU, spox=True)
    assert not isinstance(raised.value, SpecMismatch)


@without_gpu
def test_brox_is_refused_in_one_sentence_where_there_is_no_gpu(tmp_path: object) -> None:
    session = Session.open(write_tiny_model(tmp_path, BROX))
    with pytest.raises(ModelError, match=r"tiny needs an NVIDIA GPU .* brox flow") as raised:
        Preprocessor(session.spec)
    assert "\n" not in str(raised.value)


def test_by_itself_a_preprocessor_computes_as_the_training_data_was_made() -> None:
    spec = replace(TVL1, flow_backends=("onnx", "opencv-cpu"))
    assert Preprocessor(spec).solver.backend == "onnx"
    assert Preprocessor(EVERYWHERE).solver.backend == "opencv-cpu"


@pytest.mark.parametrize(
    ("backend", "provider"), [("opencv-cpu", None), ("onnx", "CPUExecutionProvider")]
)
def test_a_solver_tells_what_runs_its_graph(backend: FlowBackend, provider: str | None) -> None:
    solver = open_solver(EVERYWHERE, backend)
    assert (solver.provider, solver.fell_back) == (provider, False)


@without_gpu
def test_a_graph_that_was_meant_for_a_gpu_and_runs_on_the_cpu_is_told_of_its_solver() -> None:
    solver = open_solver(EVERYWHERE, placement=GPU)
    assert (solver.backend, solver.provider) == ("onnx", "CPUExecutionProvider")
    assert solver.fell_back


@pytest.mark.parametrize("backend", ["opencv-cpu", "onnx"])
def test_an_opened_backend_computes_the_flow_and_says_who_did(backend: FlowBackend) -> None:
    solver = open_solver(EVERYWHERE, backend)
    found = solver.compute(*pair())
    assert (solver.backend, found.backend) == (backend, backend)
    expected = compute_flow(*pair(), TVL1.flow)
    np.testing.assert_allclose(found.flow, expected, atol=0 if backend == "opencv-cpu" else 1e-2)


def test_auto_takes_the_gpu_where_there_is_one(device: Device) -> None:
    solver = open_solver(EVERYWHERE)
    found = solver.compute(*pair())
    assert (solver.backend, found.backend) == ("opencv-cuda", "opencv-cuda")
    assert device.faults == []


def test_pairs_that_the_gpu_fails_with_are_computed_on_the_cpu_and_counted(device: Device) -> None:
    heard: list[str] = []
    solver = open_solver(EVERYWHERE, on_fallback=heard.append)
    device.breaks_with = "out of memory"
    found = solver.compute(*pair())
    assert (found.backend, heard) == ("opencv-cpu", ["memory"])
    np.testing.assert_array_equal(found.flow, compute_flow(*pair(), TVL1.flow))
    device.breaks_with = None
    assert (solver.compute(*pair()).backend, heard) == ("opencv-cuda", ["memory"])


@pytest.mark.parametrize(
    ("spec", "placement"), [(EVERYWHERE, Placement(strict=True)), (ON_GPU, Placement())]
)
def test_strictly_or_without_leave_a_pair_that_the_gpu_fails_with_fails(
    device: Device, spec: ModelSpec, placement: Placement
) -> None:
    heard: list[str] = []
    solver = open_solver(spec, placement=placement, on_fallback=heard.append)
    device.breaks_with = "unspecified launch failure"
    with pytest.raises(FlowFailed, match="opencv-cuda could not") as raised:
        solver.compute(*pair())
    assert (raised.value.fault, heard) == ("device", [])
    told = pickle.loads(pickle.dumps(raised.value))  # noqa: S301 - as a worker's process tells it
    assert (str(told), told.fault) == (str(raised.value), "device")


def test_a_gpu_that_fails_at_once_is_told_of_in_the_log_and_no_pair_counts_as_fallen_back(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []
    device.breaks_with = "CUDA driver version is insufficient for CUDA runtime version"
    solver = open_solver(EVERYWHERE, on_fallback=heard.append)
    assert (solver.backend, heard) == ("opencv-cuda", [])
    (record,) = caplog.records
    assert "opencv-cuda could not compute its first flow (the GPU, its driver" in record.message
    assert solver.compute(*pair()).backend == "opencv-cpu"
    assert heard == ["driver"]


def test_a_gpu_that_fails_at_once_and_has_no_spare_is_refused(device: Device) -> None:
    device.breaks_with = "CUDA driver version is insufficient for CUDA runtime version"
    with pytest.raises(ModelError, match="do not fit together"):
        open_solver(ON_GPU)


def test_a_backend_whose_first_flow_is_not_finite_is_refused(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def calc(_self: Algorithm, _first: Mat, _second: Mat, flow: Mat, stream: Stream) -> Mat:
        stream.add(lambda: flow.array.fill(np.nan))
        return flow

    monkeypatch.setattr(Algorithm, "calc", calc)
    with pytest.raises(SpecInvalid, match="opencv-cuda does not run: it is not finite"):
        open_solver(EVERYWHERE)
    assert device.faults == []


def test_an_opencv_built_without_brox_is_told(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = cv2.error("The called functionality is disabled for current build or platform")
    error.code = cv2.Error.STS_NOT_IMPLEMENTED  # as a build without the module cudalegacy says

    def absent(**_parameters: float) -> None:
        raise error

    monkeypatch.setattr(device, "BroxOpticalFlow_create", absent)
    with pytest.raises(ModelError, match="built without: build it by") as raised:
        open_solver(BROX)
    assert not isinstance(raised.value, SpecInvalid)


def test_parameters_that_a_backend_does_not_have_are_a_bad_spec(device: Device) -> None:
    flow = FlowMethod(algorithm="tvl1", parameters={"useInitialFlow": True})
    with pytest.raises(SpecInvalid, match="useInitialFlow"):
        open_solver(replace(ON_GPU, flow=flow))
    assert device.streams == []


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (cuda_error("out of memory"), "memory"),
        (cuda_error("CUDA driver version is insufficient for CUDA runtime version"), "driver"),
        (cuda_error("no kernel image is available for execution on the device"), "driver"),
        (cuda_error("an illegal memory access was encountered"), "device"),
        (cv2.error("(-215:Assertion failed) out of memory"), None),
        (SystemError("out of memory"), None),
    ],
)
def test_a_fault_of_opencv_s_device_is_told_from_others(
    error: Exception, fault: str | None
) -> None:
    assert fault_of(error, None) == fault


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (Fail("Failed to allocate memory for requested buffer of size 16"), "memory"),
        (Fail("CUDA failure 999: unknown error ; GPU=0"), "device"),
        (Fail("[ONNXRuntimeError] : Non-zero status code returned while running Add node"), None),
        (Fail("/src/onnxruntime/core/providers/cuda/math/add.cc:9 sizes do not fit"), None),
        (RuntimeError("CUDA failure 2: out of memory ; GPU=0"), "memory"),
        (RuntimeError("dictionary changed size during iteration"), None),
        (ShapeError("out of memory"), None),
        (MemoryError("out of memory"), None),
    ],
)
def test_a_fault_of_onnx_runtime_s_device_is_told_from_others_and_the_cpu_has_none(
    error: Exception, fault: str | None
) -> None:
    assert fault_of(error, "CUDAExecutionProvider") == fault
    assert fault_of(error, "CPUExecutionProvider") is None


ARENA = """
import sys
import numpy as np
import onnxruntime as ort
from onnx import helper
from model.solver import fault_of

memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0,
                           ort.OrtMemType.DEFAULT)
ort.create_and_register_allocator(
    memory, ort.OrtArenaCfg({"max_mem": 2**20, "arena_extend_strategy": 1})
)
options = ort.SessionOptions()
options.add_session_config_entry("session.use_env_allocators", "1")
options.log_severity_level = 4
values = [helper.make_tensor_value_info(name, 1, ("n",)) for name in "ac"]
nodes = [helper.make_node("Add", ["a", "a"], ["b"]), helper.make_node("Mul", ["b", "a"], ["c"])]
graph = helper.make_graph(nodes, "squares", values[:1], values[1:])
opset = [helper.make_opsetid("", 20)]
model = helper.make_model(graph, opset_imports=opset, ir_version=10)
session = ort.InferenceSession(
    model.SerializeToString(), options, providers=["CPUExecutionProvider"]
)
binding = session.io_binding()
binding.bind_ortvalue_input("a", ort.OrtValue.ortvalue_from_numpy(np.zeros(2**20, np.float32)))
binding.bind_output("c")
for run in (lambda: session.run(None, {"a": np.zeros(2**20, np.float32)}),
            lambda: session.run_with_iobinding(binding)):
    try:
        run()
    except Exception as error:
        print(type(error).__name__, fault_of(error, "CUDAExecutionProvider"))
"""


def test_what_a_full_arena_of_onnx_runtime_says_is_understood() -> None:
    """In a process of its own, since an arena's limit holds for the whole of one."""
    done = subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-c", ARENA], check=True, capture_output=True, text=True
    )
    said = [line.split() for line in done.stdout.splitlines()]
    assert [fault for _, fault in said] == ["memory", "memory"]


@without_gpu
def test_what_this_opencv_says_without_a_gpu_is_understood() -> None:
    with pytest.raises(SystemError) as raised:  # from a constructor
        cv2.cuda.Stream()
    assert fault_of(raised.value, None) == "driver"
    with pytest.raises(cv2.error) as raised:
        cv2.cuda.registerPageLocked(np.zeros((4, 4096), np.uint8))
    assert fault_of(raised.value, None) == "driver"


def test_what_is_not_the_devices_fault_is_no_reason_to_fall_back() -> None:
    heard: list[str] = []
    solver = Solver(Failing(ShapeError("not square")), CpuFlow(TVL1.flow), heard.append)
    with pytest.raises(ShapeError):
        solver.compute(*pair())
    assert heard == []


def test_an_aligned_pair_says_who_really_computed_its_flow() -> None:
    spec = tiny_spec()
    spare = Solver(Failing(cuda_error("out of memory")), CpuFlow(spec.flow))
    still, moved = draw_face(), draw_face(smile=1.5)
    (fallen,) = Preprocessor(spec, solver=spare).align_pair(still, moved)
    (usual,) = Preprocessor(spec).align_pair(still, moved)
    assert (spare.backend, fallen.flow_backend) == ("opencv-cuda", "opencv-cpu")
    np.testing.assert_array_equal(fallen.flow, usual.flow)
    assert (fallen.motion, fallen.quality) == (usual.motion, usual.quality)
