from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from drawn_pairs import Fitted
from onnx import TensorProto, numpy_helper
from typer.testing import CliRunner

from model.network import Mfdan
from model.session import Session
from model.spec import load_spec
from training import export
from training.cli import app
from training.config import RunConfig
from training.export import ParityError, export_run, round_to_half
from training.loop import CHECKPOINT, Run
from training.onnx_file import HALF_FROM


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, fitted: Fitted) -> Path:
    """The run that `fit` made, its weights drawn wide: a silent network proves no parity."""
    folder = tmp_path_factory.mktemp("run")
    run = Run.load(fitted.folder / CHECKPOINT)
    torch.manual_seed(1)
    for weight in run.average.values():
        if weight.dim() > 1:
            weight.normal_(std=weight.shape[-1] ** -0.5)
    run.average["head.bias"] += torch.tensor([0.1, 0.2, 0.3])
    run.save(folder / CHECKPOINT)
    return folder


@pytest.fixture(scope="module")
def exported(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that `mfdan-train export` writes; torch takes its time, so there is one."""
    path = tmp_path_factory.mktemp("export") / "tiny.onnx"
    options = ["--run", str(run_folder), "--out", str(path), "--name", "tiny", "--version", "2"]
    result = CliRunner().invoke(app, ["export", *options])
    assert result.exit_code == 0, result.output
    assert "after 40 steps" in result.output
    return path


def pair(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    image, flow = torch.rand(2, batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch))
    return image * 2 - 1, flow * 2 - 1


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_served_model_answers_as_torch_does(
    exported: Path, run_folder: Path, batch: int
) -> None:
    network = Run.load(run_folder / CHECKPOINT).averaged_network()
    round_to_half(network)
    image, flow = pair(batch)
    with torch.no_grad():
        expected = network(image, flow).softmax(dim=1).numpy()
    served = Session.open(exported).run(image.numpy(), flow.numpy())
    np.testing.assert_allclose(served, expected, atol=1e-4)
    assert np.ptp(served) > 0.05


def test_image_and_flow_are_two_inputs(exported: Path) -> None:
    session = Session.open(exported)
    image, flow = (part.numpy() for part in pair(1))
    answers = [session.run(*inputs) for inputs in ((image, flow), (image, image), (flow, flow))]
    assert len({answer.tobytes() for answer in answers}) == 3


def test_the_spec_beside_the_file_comes_from_the_run(
    exported: Path, run_folder: Path, fitted: Fitted
) -> None:
    commit = Run.load(run_folder / CHECKPOINT).commit
    expected = replace(fitted.config.spec(commit), name="tiny", version="2")
    assert replace(load_spec(exported), onnx_sha256="") == expected


def test_large_weights_are_stored_in_half_precision_and_computed_in_single(
    exported: Path, tiny_config: RunConfig
) -> None:
    graph = onnx.load(exported).graph
    halves = {
        t.name: np.prod(t.dims) for t in graph.initializer if t.data_type == TensorProto.FLOAT16
    }
    sizes = [parameter.numel() for parameter in Mfdan(tiny_config.network).parameters()]
    assert sum(halves.values()) == sum(size for size in sizes if size >= HALF_FROM)
    assert {node.op_type for node in graph.node if set(halves) & set(node.input)} == {"Cast"}


def test_the_file_holds_no_path_of_the_machine_that_made_it(exported: Path) -> None:
    content = exported.read_bytes()
    assert b".py" not in content
    assert str(Path(export.__file__).parent).encode() not in content


def test_a_graph_that_differs_from_torch_is_not_written(
    exported: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = onnx.load(exported)
    (bias,) = (t for t in wrong.graph.initializer if t.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.1), bias.name))
    monkeypatch.setattr(export, "to_onnx", lambda _network, _side: wrong)
    with pytest.raises(ParityError, match="logits differ by 1"):
        export_run(run_folder, tmp_path / "wrong.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        export_run(tmp_path, tmp_path / "out.onnx")
