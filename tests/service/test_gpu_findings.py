import ctypes
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import cv2
import onnxruntime
import pytest

from service.gpu_findings import Finding, _driver, _libraries, _where, gpu_findings
from service.settings import Settings

without_gpu = pytest.mark.skipif(
    bool(onnxruntime.cuda_version), reason="what is claimed is of ONNX Runtime's build for the CPU"
)


def findings(**settings: object) -> dict[str, Finding]:
    return {found[1]: found for found in gpu_findings(Settings(**settings))}


@without_gpu
def test_nothing_is_wrong_where_no_gpu_is_asked_for() -> None:
    found = findings()
    assert all(fine for fine, _, _ in found.values())
    assert found["a graph on cpu"][2] == "runs on CPUExecutionProvider"


@without_gpu
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_what_a_gpu_would_need_is_wrong_where_it_is_asked_for_and_lacks(device: str) -> None:
    found = findings(device=device)
    assert found[f"a graph on {device}"][::2] == (False, "runs on CPUExecutionProvider")
    assert not found["ONNX Runtime"][0]
    assert "pip install 'mfdan[gpu]'" in found["ONNX Runtime"][2]
    assert not found["NVIDIA's driver"][0]


@without_gpu
def test_a_device_that_is_refused_is_told_with_the_reason() -> None:
    (found,) = (
        one for name, one in findings(device="cuda", strict_gpu=True).items() if "graph" in name
    )
    assert found[0] is False
    assert found[2].startswith("a GPU was asked for, but a graph of one operator runs on CPU")


@without_gpu
@pytest.mark.parametrize(("device", "fine"), [("cpu", True), ("cuda", False)])
def test_each_library_of_nvidia_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, device: str, *, fine: bool
) -> None:
    monkeypatch.setattr(onnxruntime, "cuda_version", "99.0")
    found = findings(device=device)["NVIDIA's libraries"]
    assert found[0] == fine
    assert "libcudart.so.99: not found\n" in found[2]


@pytest.mark.parametrize(
    ("cuda", "tensorrt", "names"),
    [
        ("13.0", False, {"libcublasLt.so.13", "libcufft.so.12", "libcurand.so.10"}),
        ("12.8", True, {"libcublasLt.so.12", "libcufft.so.11", "libnvinfer.so.10"}),
    ],
)
def test_libraries_are_those_of_the_cuda_that_onnx_runtime_was_built_for(
    cuda: str, names: set[str], *, tensorrt: bool
) -> None:
    found = set(_libraries(cuda, tensorrt=tensorrt))
    assert names < found
    assert any("nvinfer" in name for name in found) == tensorrt


def test_a_library_that_is_there_is_told_with_its_place() -> None:
    assert Path(_where("libc.so.6")).is_file()
    assert Path(_where("libc.so.6")).name.startswith("libc")
    assert ctypes.CDLL(_where("libc.so.6"))
    assert _where("libnothing.so.1") == ""


class Nvml(SimpleNamespace):
    """`pynvml` on a machine with some GPUs, or without a driver."""

    NVMLError = RuntimeError

    def __init__(self, gpus: int | None) -> None:
        super().__init__(
            nvmlInit=self._init,
            nvmlSystemGetCudaDriverVersion_v2=lambda: 13010,
            nvmlSystemGetDriverVersion=lambda: "590.48",
            nvmlDeviceGetCount=lambda: gpus,
            nvmlDeviceGetHandleByIndex=lambda index: index,
            nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(total=80 * 2**30),
            nvmlDeviceGetName=lambda index: f"GPU {index}",
        )
        self._gpus = gpus

    def _init(self) -> None:
        if self._gpus is None:
            raise self.NVMLError("Driver Not Loaded")


@pytest.mark.parametrize(
    ("gpus", "told"),
    [
        (2, (True, "590.48, up to CUDA 13.1: GPU 0 with 81920 MiB, GPU 1 with 81920 MiB")),
        (0, (False, "590.48, up to CUDA 13.1: no GPU")),
        (None, (False, "does not answer: Driver Not Loaded")),
    ],
)
def test_the_driver_tells_its_version_and_its_gpus(
    gpus: int | None, told: tuple[bool, str]
) -> None:
    assert _driver(Nvml(gpus)) == told


@pytest.mark.parametrize(
    ("flow", "devices", "fine", "told"),
    [
        ("opencv-cuda", 0, False, "CPU, 0 CUDA"),
        ("opencv-cuda", -1, False, "the driver is missing or too old"),
        ("opencv-cuda", 2, True, "CPU, 2 CUDA"),
        ("auto", -1, True, "the driver is missing or too old"),
    ],
)
def test_a_device_for_opencv_lacks_only_where_its_flow_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, flow: str, devices: int, told: str, *, fine: bool
) -> None:
    monkeypatch.setattr(cv2.cuda, "getCudaEnabledDeviceCount", lambda: devices)
    found = findings(flow=flow)["OpenCV devices"]
    assert found[0] == fine
    assert found[2].endswith(told)


@pytest.mark.parametrize(("flow", "fine"), [("onnx", False), ("auto", True)])
def test_spox_lacks_only_where_its_flow_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, flow: str, *, fine: bool
) -> None:
    assert findings(flow=flow)["spox"] == (True, "spox", version("spox"))

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("service.gpu_findings.version", missing)
    found = findings(flow=flow)["spox"]
    assert found[0] == fine
    assert "pip install 'mfdan[onnx-flow]'" in found[2]


@pytest.mark.skipif(
    not onnxruntime.cuda_version or not _driver()[0],
    reason="onnxruntime-gpu is not installed, or NVIDIA's driver knows of no GPU",
)
def test_on_a_gpu_machine_nothing_lacks_for_cuda() -> None:
    found = findings(device="cuda", strict_gpu=True)
    assert [one for one in found.values() if not one[0]] == []
    assert found["a graph on cuda"][2] == "runs on CUDAExecutionProvider"
