from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from model.network import Mfdan
from model.session import Session
from model.spec import load_spec
from training import export
from training.config import RunConfig
from training.export import ParityError, export_run, round_to_half
from training.loop import CHECKPOINT, Basis, Run
from training.onnx_file import HALF_FROM


def pair(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    image, flow = torch.rand(2, batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch))
    return image * 2 - 1, flow * 2 - 1


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_served_model_answers_as_torch_does(exported: Path, wide_run: Path, batch: int) -> None:
    network = Run.load(wide_run / CHECKPOINT).averaged_network()
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


def test_the_spec_beside_the_file_comes_from_the_run(exported: Path, wide_run: Path) -> None:
    run = Run.load(wide_run / CHECKPOINT)
    expected = replace(run.config.spec(run.commit, ("drawn",)), name="tiny", version="2")
    assert replace(load_spec(exported), onnx_sha256="") == expected


def test_every_weight_keeps_its_name_and_its_values(exported: Path, wide_run: Path) -> None:
    network = Run.load(wide_run / CHECKPOINT).averaged_network()
    round_to_half(network)
    stored = {
        tensor.name.removesuffix(".half"): numpy_helper.to_array(tensor).astype(np.float32)
        for tensor in onnx.load(exported).graph.initializer
    }
    for name, weight in network.named_parameters():
        np.testing.assert_array_equal(stored[name], weight.detach().numpy(), err_msg=name)


def test_the_spec_of_what_started_from_another_model_says_so(
    wide_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Path
) -> None:
    run = Run.load(wide_run / CHECKPOINT)
    basis = Basis(steps=40, datasets=("drawn", "real"), init="base 1 (a; licence b)")
    started = Run(run.config, basis)
    started.save(tmp_path / CHECKPOINT)
    monkeypatch.setattr(export, "to_onnx", lambda _network, _side: onnx.load(exported))
    monkeypatch.setattr(export, "_TOLERANCE", 1e9)
    made = export_run(tmp_path, tmp_path / "out.onnx").spec.provenance
    assert made.data == "drawn faces; started from base 1 (a; licence b)"
    assert made.datasets == ("drawn", "real")


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
    exported: Path, wide_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = onnx.load(exported)
    (bias,) = (t for t in wrong.graph.initializer if t.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.1), bias.name))
    monkeypatch.setattr(export, "to_onnx", lambda _network, _side: wrong)
    with pytest.raises(ParityError, match="logits differ by 1"):
        export_run(wide_run, tmp_path / "wrong.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        export_run(tmp_path, tmp_path / "out.onnx")
