import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["service.app", "service.cli"])
def test_service_imports_without_torch(module: str) -> None:
    """Unimportable is stronger than absent from sys.modules: a guarded import would show."""
    code = (
        "import sys; sys.modules.update(torch=None, torchvision=None, onnx=None, sklearn=None, "
        f"matplotlib=None, scipy=None); import {module}"
    )
    run = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
