"""What the way to a GPU has and lacks on this machine, for `mfdan doctor`."""

import ctypes
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import onnxruntime as ort

from model.errors import ModelError
from model.runtime import Runtime, preload_cuda
from service.settings import Settings

__all__ = ["Finding", "gpu_findings"]

Finding = tuple[bool, str, str]
"""Is it fine, what, what was found."""

_DOUBLE = bytes.fromhex(
    "080a12003a370a0e0a01780a017812017922034164641201675a100a0178120b"
    "0a09080112050a0312016e62100a0179120b0a09080112050a0312016e42040a001014"
)
"""An ONNX graph: y = x + x, float32 of any length."""
_NO_SPOX = "missing: the flow backend onnx needs it (pip install 'mfdan[onnx-flow]')"
_MAPS = Path("/proc/self/maps")


def gpu_findings(settings: Settings) -> Iterator[Finding]:
    """Yield what ONNX Runtime, the driver, its libraries, OpenCV and spox say of themselves.

    What the settings do not ask for may lack.
    """
    wanted = settings.device != "cpu"
    preload_cuda()
    yield not wanted or bool(ort.cuda_version), "ONNX Runtime", _onnx_runtime()
    yield _provider(settings)
    gpus, driver = _driver()
    yield gpus or not wanted, "NVIDIA's driver", driver
    if ort.cuda_version and sys.platform == "linux":  # elsewhere they have other names
        names = _libraries(ort.cuda_version, tensorrt=settings.device == "tensorrt")
        found = {name: _where(name) for name in names}
        told = "\n".join(f"{name}: {where or 'not found'}" for name, where in found.items())
        yield all(found.values()) or not wanted, "NVIDIA's libraries", told
    devices = int(cv2.cuda.getCudaEnabledDeviceCount())
    yield devices > 0 or settings.flow != "opencv-cuda", "OpenCV devices", _opencv(devices)
    spox = _spox()
    yield bool(spox) or settings.flow != "onnx", "spox", spox or _NO_SPOX


def _onnx_runtime() -> str:
    package, build = f"{ort.package_name} {ort.__version__}", ort.cuda_version
    if not build:
        return f"{package} for the CPU alone; for a GPU, pip install 'mfdan[gpu]' elsewhere"
    return f"{package} for CUDA {build}; it knows {', '.join(ort.get_available_providers())}"


def _provider(settings: Settings) -> Finding:
    """Run a graph of one operator where the settings say."""
    what, ones = f"a graph on {settings.device}", np.ones(3, np.float32)
    try:
        runtime = Runtime.open(_DOUBLE, "a graph of one operator", settings.placement)
        (twice,) = runtime.run(["y"], {"x": ones})
    except (ModelError, RuntimeError) as error:
        return False, what, f"{error} ({error.__cause__})" if error.__cause__ else str(error)
    if not np.array_equal(twice, ones + ones):
        return False, what, f"{runtime.provider} computes 1 + 1 = {twice[0]:g}"
    return not runtime.fell_back, what, f"runs on {runtime.provider}"


def _driver(nvml: ModuleType | None = None) -> tuple[bool, str]:
    """Return whether there is a GPU, and what the driver says. `nvml` is the module `pynvml`."""
    try:
        nvml = nvml or import_module("pynvml")
    except ImportError:
        return False, "not asked: nvidia-ml-py is missing (pip install 'mfdan[gpu]')"
    try:
        nvml.nvmlInit()
        newest = nvml.nvmlSystemGetCudaDriverVersion_v2()  # 13010 is CUDA 13.1
        cuda = f"CUDA {newest // 1000}.{newest % 1000 // 10}"
        release = f"{nvml.nvmlSystemGetDriverVersion()}, up to {cuda}"
        gpus = [_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        return False, f"does not answer: {error}"
    return bool(gpus), f"{release}: {', '.join(gpus) or 'no GPU'}"


def _gpu(nvml: ModuleType, index: int) -> str:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle).total // 2**20
    return f"{nvml.nvmlDeviceGetName(handle)} with {memory} MiB"


def _libraries(cuda: str, *, tensorrt: bool) -> Iterator[str]:
    """Yield the libraries that ONNX Runtime's build for a version of CUDA opens."""
    major = int(cuda.partition(".")[0])
    yield "libcuda.so.1"
    for name in ("cudart", "cublas", "cublasLt", "nvrtc"):
        yield f"lib{name}.so.{major}"
    yield f"libcufft.so.{major - 1}"
    yield "libcurand.so.10"
    yield "libcudnn.so.9"
    if tensorrt:
        yield from ("libnvinfer.so.10", "libnvonnxparser.so.10")


def _where(name: str) -> str:
    """Return where a shared library was loaded from; empty: it cannot be loaded."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return ""
    places = (line.split(maxsplit=5)[-1] for line in _MAPS.read_text().splitlines())
    return next((place for place in places if Path(place).name.startswith(name)), "loaded")


def _opencv(devices: int) -> str:
    if devices < 0:
        return "CPU; built for CUDA, and the driver is missing or too old"
    return f"CPU, {devices} CUDA"


def _spox() -> str:
    try:
        return version("spox")
    except PackageNotFoundError:
        return ""
