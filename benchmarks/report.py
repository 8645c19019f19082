"""What every benchmark says about itself: machine, versions, commit."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def heading(question: str) -> str:
    """Return the lines that open a benchmark's output."""
    onnx = next(name for name in ("onnxruntime", "onnxruntime-gpu") if _is_installed(name))
    libraries = ("numpy", "opencv-contrib-python-headless", onnx)
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    return (
        f"# {question}\n"
        f"machine: {_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}\n"
        f"with:    {versions}\n"
        f"commit:  {_commit()}\n"
    )


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    here = Path(__file__).parent
    found = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
