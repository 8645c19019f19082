import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import write_tiny_model


@pytest.mark.parametrize("module", ["service.app", "service.cli"])
def test_service_imports_without_torch(module: str) -> None:
    """Unimportable is stronger than absent from sys.modules: a guarded import would show."""
    code = (
        "import sys; sys.modules.update(torch=None, torchvision=None, onnx=None, sklearn=None, "
        f"matplotlib=None, scipy=None, pandas=None, pyarrow=None, ray=None); import {module}"
    )
    run = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("first", ["model.session", "service.cli", "training.export"])
def test_onnx_runtime_reports_to_nobody_whatever_is_imported_first(
    tmp_path: Path, first: str
) -> None:
    """Where it does, it leaves its own database under the home folder."""
    home = tmp_path / "home"
    home.mkdir()
    path = write_tiny_model(tmp_path)
    code = (
        f"import {first}; from pathlib import Path; from model.session import Session; "
        f"Session.open(Path({str(path)!r})).warm_up([1])"
    )
    outside = {"HOME", "XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY"}  # the last is set here already
    env = {name: value for name, value in os.environ.items() if name not in outside}
    run = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", code],
        env=env | {"HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert not (home / ".cache" / "Microsoft").exists()
