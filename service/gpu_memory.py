"""The memory of the machine's GPUs, asked of the driver at every scrape."""

from importlib import import_module
from types import ModuleType

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["GpuMemory", "watch_gpu_memory"]


def watch_gpu_memory(registry: CollectorRegistry, nvml: ModuleType | None = None) -> bool:
    """Show the memory of every GPU at every scrape; return whether there is a driver to ask.

    `nvml` is the module `pynvml`, by default the one of the extra `gpu`.
    """
    try:
        nvml = nvml or import_module("pynvml")
    except ImportError:
        return False
    try:
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError:
        return False
    registry.register(GpuMemory(nvml, count))
    return True


class GpuMemory(Collector):
    """All processes' memory together: what a network still finds free is the difference."""

    def __init__(self, nvml: ModuleType, count: int) -> None:
        self._nvml = nvml
        self._count = count  # asked once: a driver that lost its GPUs cannot tell how many

    def collect(self) -> list[Metric]:
        """Ask the driver. A GPU that does not answer is left out, and so told."""
        used = GaugeMetricFamily("mfdan_gpu_memory_used_bytes", "Memory in use.", labels=["gpu"])
        total = GaugeMetricFamily("mfdan_gpu_memory_total_bytes", "Memory.", labels=["gpu"])
        answers = GaugeMetricFamily("mfdan_gpu_answers", "1 when it does.", labels=["gpu"])
        for gpu in range(self._count):
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(gpu)
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
            except self._nvml.NVMLError:
                answers.add_metric([str(gpu)], 0)
                continue
            answers.add_metric([str(gpu)], 1)
            used.add_metric([str(gpu)], memory.used)
            total.add_metric([str(gpu)], memory.total)
        return [used, total, answers]
