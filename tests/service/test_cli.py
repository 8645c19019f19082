import json
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import onnxruntime
import pytest
from serving import Pictures
from tiny_model import tiny_spec, write_tiny_model
from typer.testing import CliRunner, Result

from model.spec import FlowMethod, load_spec, spec_path
from service.cli import app


@pytest.fixture(autouse=True)
def _tiny_models(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFDAN_MODELS_DIR", str(models_dir))
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def frames(tmp_path: Path, pictures: Pictures) -> dict[str, str]:
    paths = {}
    for name in ("onset", "smile", "empty", "two", "two_smile"):
        path = tmp_path / f"{name}.png"
        path.write_bytes(getattr(pictures, name))
        paths[name] = str(path)
    return paths


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_predict_prints_a_readable_table(frames: dict[str, str]) -> None:
    result = run("predict", frames["onset"], frames["smile"])
    assert result.exit_code == 0, result.output
    for words in ("negative", "positive", "surprise", "%", "mouth corner", "tiny 1", "ms"):
        assert words in result.output


def test_predict_says_what_the_api_says_with_json(frames: dict[str, str]) -> None:
    result = run("predict", frames["onset"], frames["smile"], "--json")
    prediction = json.loads(result.output)
    assert prediction["model"]["name"] == "tiny"
    assert prediction["faces"][0]["reason"] is None
    assert prediction["faces"][0]["regions"]


def test_predict_tells_that_nothing_moved(frames: dict[str, str]) -> None:
    result = run("predict", frames["onset"], frames["onset"])
    assert "abstains: nothing moved" in result.output
    assert "onset and apex are the same picture" in result.output


def test_predict_tells_the_motion_that_the_gate_reads(frames: dict[str, str]) -> None:
    pair = (frames["onset"], frames["smile"])
    motion = json.loads(run("predict", *pair, "--json").output)["faces"][0]["motion"]
    assert f"face {motion['moved_px']:.3f} px, head" in run("predict", *pair).output
    assert f"{motion['moved_px']:.3f}" != f"{motion['p95_px']:.3f}"


def test_predict_tells_the_gate_beside_a_motion_that_does_not_reach_it(
    frames: dict[str, str],
) -> None:
    gate = f"(the model asks for {tiny_spec().motion_gate_px:.3f} px)"
    assert f"face 0.000 px {gate}" in run("predict", frames["onset"], frames["onset"]).output
    assert gate not in run("predict", frames["onset"], frames["smile"]).output


def test_predict_answers_for_as_many_faces_as_asked(frames: dict[str, str]) -> None:
    result = run("predict", frames["two"], frames["two_smile"], "--faces", "2", "--json")
    assert len(json.loads(result.output)["faces"]) == 2


def test_predict_tells_that_there_is_no_face(frames: dict[str, str]) -> None:
    result = run("predict", frames["empty"], frames["empty"])
    assert result.exit_code == 0
    assert "No face was found" in result.output


def test_predict_fails_in_one_line_on_a_file_that_is_no_picture(frames: dict[str, str]) -> None:
    result = run("predict", frames["onset"], __file__)
    assert result.exit_code == 1
    assert result.stderr == "mfdan: apex: the bytes are not a JPEG, PNG, WebP or BMP picture\n"


def test_predict_refuses_a_file_that_is_not_there(frames: dict[str, str]) -> None:
    assert run("predict", frames["onset"], "nowhere.png").exit_code == 2


def test_an_unknown_model_is_named(frames: dict[str, str]) -> None:
    result = run("predict", frames["onset"], frames["smile"], "--model", "large")
    assert result.exit_code == 1
    assert "large is not among tiny" in result.stderr


def test_models_are_listed() -> None:
    result = run("models")
    assert result.exit_code == 0
    for words in ("tiny", "negative, positive, surprise", "MIT"):
        assert words in result.output


def test_what_a_spec_says_in_brackets_is_told_as_it_stands(
    frames: dict[str, str], tmp_path: Path
) -> None:
    classes = ("[bold]", "positive", "[surprise]")
    path = write_tiny_model(tmp_path, tiny_spec(classes=classes))
    shown = run("predict", frames["onset"], frames["smile"], "--model", str(path)).output
    assert all(name in shown for name in classes)


def test_models_says_that_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFDAN_MODELS_DIR", str(tmp_path / "nowhere"))
    result = run("models")
    assert result.exit_code == 1
    assert "no *.onnx file" in result.stderr


def test_doctor_finds_nothing_wrong_with_a_sound_installation(models_dir: Path) -> None:
    result = run("doctor")
    assert result.exit_code == 0, result.output
    sha256 = load_spec(models_dir / "tiny.onnx").onnx_sha256[:12]
    for words in ("onnxruntime", "CPUExecutionProvider", "CUDA", f"SHA-256 {sha256}", "cores"):
        assert words in result.output
    assert "wrong" not in result.output


@pytest.mark.parametrize("command", ["doctor", "models", "serve"])
def test_a_setting_that_cannot_be_read_is_named(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MFDAN_BATCH_SIZES", "1,2")
    result = run(command)
    assert result.exit_code == 2
    assert result.stderr.startswith("mfdan: settings: ")
    assert "batch_sizes" in result.stderr


def test_a_flow_that_nobody_computes_is_refused_with_all_that_may_be_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MFDAN_FLOW", "gpu")
    assert run("doctor").stderr == (
        "mfdan: settings: flow: Input should be 'opencv-cpu', 'opencv-cuda', 'onnx' or 'auto'\n"
    )


def test_doctor_finds_flow_parameters_that_do_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MFDAN_MODELS_DIR", str(tmp_path))
    flow = FlowMethod(algorithm="dis", parameters={"preset": "slow"})
    write_tiny_model(tmp_path, tiny_spec(flow=flow))
    result = run("doctor")
    assert result.exit_code == 1
    assert "slow" in result.output


def test_doctor_tells_who_computes_a_model_s_flow_and_finds_one_that_it_does_not_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def told() -> tuple[int, str]:
        result = run("doctor")
        return result.exit_code, " ".join(result.output.replace("│", " ").split())

    assert "flow by opencv-cpu" in told()[1]
    monkeypatch.setenv("MFDAN_FLOW", "onnx")
    status, words = told()
    assert status == 1
    assert "tiny may have its flow from opencv-cpu, not from onnx" in words


def test_serve_refuses_a_flow_that_its_model_may_not_have_before_it_says_that_it_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MFDAN_FLOW", "onnx")
    result = run("serve")
    assert result.exit_code == 1
    assert result.output.startswith("mfdan: tiny may have its flow from opencv-cpu, not from onnx")
    assert result.output.count("\n") == 1


def test_doctor_finds_a_changed_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFDAN_MODELS_DIR", str(tmp_path))
    path = write_tiny_model(tmp_path)
    with path.open("ab") as file:
        file.write(b"\0")
    result = run("doctor")
    assert result.exit_code == 1
    assert "SHA-256" in result.output


def test_doctor_finds_a_missing_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFDAN_MODELS_DIR", str(tmp_path))
    spec_path(write_tiny_model(tmp_path)).unlink()
    assert run("doctor").exit_code == 1


def test_doctor_finds_an_empty_models_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MFDAN_MODELS_DIR", str(tmp_path))
    result = run("doctor")
    assert result.exit_code == 1
    assert "no *.onnx file" in result.output


def test_doctor_misses_a_gpu_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFDAN_DEVICE", "cuda")
    result = run("doctor")
    if "CUDAExecutionProvider" in result.output:
        pytest.skip("there is one")
    assert result.exit_code == 1


def test_doctor_names_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "cuda_version", "")
    assert "pip install 'mfdan[gpu]'" in " ".join(run("doctor").output.replace("│", " ").split())


def test_serve_refuses_settings_out_of_bounds() -> None:
    result = run("serve", "--port", "99999")
    assert result.exit_code == 2
    assert result.stderr.startswith("mfdan: settings: port: ")


def test_serve_refuses_to_start_without_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MFDAN_MODELS_DIR", str(tmp_path))
    write_tiny_model(tmp_path, tiny_spec("other"))
    result = run("serve", "--model", "tiny")
    assert result.exit_code == 1
    assert "tiny is not among other" in result.stderr


def test_a_model_that_may_not_be_read_is_told_in_one_line(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> str:  # root, as whom tests may run, may read everything
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("model.spec.file_sha256", denied)
    monkeypatch.setenv("MFDAN_MODELS_DIR", str(models_dir))
    result = run("serve")
    assert result.exit_code == 1
    assert result.stderr.endswith(".onnx cannot be read: Permission denied\n")
    assert result.stderr.count("\n") == 1
    assert "Permission denied" in run("doctor").stdout


def test_a_model_can_be_given_as_a_file(frames: dict[str, str], tmp_path: Path) -> None:
    """A researcher's own model answers, whatever lies in the models folder."""
    path = write_tiny_model(tmp_path, tiny_spec("own"))
    result = run("predict", frames["onset"], frames["smile"], "--model", str(path), "--json")
    assert json.loads(result.output)["model"]["name"] == "own"


def test_a_model_file_that_is_not_there_is_named(frames: dict[str, str]) -> None:
    result = run("predict", frames["onset"], frames["smile"], "--model", "nowhere/own.onnx")
    assert result.exit_code == 1
    assert "no file own.onnx" in result.stderr


STOPPED_AT_AN_IMPORT = """
import os, signal, sys

class Finger:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), {number})

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever this test runs under
sys.meta_path.insert(0, Finger())
from service.main import main
main()
"""


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("cv2", signal.SIGINT),
        ("onnxruntime", signal.SIGINT),
        ("matplotlib.backends.backend_agg", signal.SIGINT),
        ("onnxruntime", signal.SIGTERM),
        ("matplotlib.backends.backend_agg", signal.SIGTERM),
    ],
)
def test_a_signal_ends_the_command_in_one_line(
    module: str, number: signal.Signals, frames: dict[str, str], tmp_path: Path
) -> None:
    """While it loads, and, with the last of the modules, in the middle of a command."""
    code = STOPPED_AT_AN_IMPORT.format(module=module, number=int(number))
    options = ("--plot", str(tmp_path / "plot.png"))
    done = subprocess.run(  # noqa: S603 - this file's own code
        [sys.executable, "-c", code, "predict", frames["onset"], frames["smile"], *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (128 + number, "mfdan: stopped\n")


def test_the_installed_command_hears_ctrl_c_before_it_loads_anything() -> None:
    """The entry point is the module that tells of Ctrl-C, and it loads nothing itself."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    module, _, function = project["project"]["scripts"]["mfdan"].partition(":")
    code = f"import sys; from {module} import {function}; print('numpy' in sys.modules)"
    done = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
