from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail
from tiny_model import GAIN, tiny_spec, write_tiny_model

from model.errors import ModelError, ModelNotFound, ShapeError, SpecInvalid, SpecMismatch
from model.runtime import Placement
from model.session import Session
from model.spec import FlowMethod, ModelSpec, Score, file_sha256, load_spec, spec_path


def resign(path: Path) -> None:
    """Give a changed ONNX file the hash in its spec, so that only the change itself is wrong."""
    spec = ModelSpec.from_json(spec_path(path).read_text())
    spec_path(path).write_text(replace(spec, onnx_sha256=file_sha256(path)).to_json())


def inputs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pair n moves sideways by n hundredths, so that rows can be told apart."""
    image = np.zeros((count, 3, 224, 224), np.float32)
    flow = np.zeros_like(image)
    flow[:, 0] = np.arange(count)[:, None, None] / 100
    return image, flow


@pytest.mark.parametrize("count", [1, 3])
def test_probabilities_follow_the_logits_row_by_row(tmp_path: Path, count: int) -> None:
    session = Session.open(write_tiny_model(tmp_path))
    rows = session.run(*inputs(count))
    growth = np.exp(GAIN * np.arange(count) / 100)
    expected = np.stack([np.ones(count), growth, np.ones(count)], axis=1)
    np.testing.assert_allclose(rows, expected / expected.sum(1, keepdims=True), rtol=1e-5)
    assert rows.dtype == np.float32


def test_it_says_which_provider_really_runs(tmp_path: Path) -> None:
    assert Session.open(write_tiny_model(tmp_path)).provider == "CPUExecutionProvider"


class BreakingDevice:
    """ONNX Runtime's own session, on a device that is lost."""

    def __init__(self, runtime: object) -> None:
        self._runtime = runtime

    def __getattr__(self, name: str) -> object:
        return getattr(self._runtime, name)

    def run(self, *_: object) -> None:
        raise EPFail("CUDA failure 700")


def test_a_device_that_fails_in_a_run_raises_every_time_and_nothing_else_takes_its_place(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    session = Session.open(write_tiny_model(tmp_path))
    # A device cannot be broken from outside.
    runtime = session._runtime._session  # noqa: SLF001
    runtime._sess = BreakingDevice(runtime._sess)  # noqa: SLF001
    for _ in range(2):
        with pytest.raises(EPFail, match="700"):
            session.run(*inputs(1))
    assert capfd.readouterr() == ("", "")


class NoGpu(onnxruntime.InferenceSession):
    """As where the driver is there and the GPU is not: creation for CUDA raises."""

    def __init__(self, *arguments: object, providers: list, **keywords: object) -> None:
        if providers[0][0] == "CUDAExecutionProvider":
            raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")
        super().__init__(*arguments, providers=providers, **keywords)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's build for CUDA, without the libraries and the device."""
    built_for = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: built_for)
    monkeypatch.setattr(onnxruntime, "InferenceSession", NoGpu)


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_cannot_be_had_is_the_cpu_without_a_word_and_so_told_of_the_session(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    session = Session.open(write_tiny_model(tmp_path), Placement(device="cuda"))
    assert (session.provider, session.fell_back) == ("CPUExecutionProvider", True)
    session.run(*inputs(1))
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(("content", "strict"), [(None, True), (b"no model", False)])
def test_a_model_that_cannot_be_made_for_the_gpu_is_refused_where_the_cpu_is_no_way_out(
    tmp_path: Path, content: bytes | None, *, strict: bool
) -> None:
    path = write_tiny_model(tmp_path)
    if content is not None:
        path.write_bytes(content)
        resign(path)
    device = "cuda" if strict else "cpu"
    with pytest.raises(ModelError, match=f"cannot load tiny.onnx for {device}: "):
        Session.open(path, Placement(device="cuda", strict=strict))


def test_warming_up_runs_each_batch_size(tmp_path: Path) -> None:
    Session.open(write_tiny_model(tmp_path)).warm_up((1, 4))


@pytest.mark.parametrize(("image_side", "flow_side"), [(112, 112), (224, 112), (112, 224)])
def test_arrays_of_another_size_are_a_shape_error(
    tmp_path: Path, image_side: int, flow_side: int
) -> None:
    session = Session.open(write_tiny_model(tmp_path))
    with pytest.raises(ShapeError):
        session.run(
            np.zeros((1, 3, image_side, image_side), np.float32),
            np.zeros((1, 3, flow_side, flow_side), np.float32),
        )


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="absent"):
        Session.open(tmp_path / "absent.onnx")


def test_a_flipped_byte_is_refused(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(SpecMismatch, match="SHA-256"):
        Session.open(path)


def test_a_file_that_is_no_onnx_model_is_refused_without_its_path(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path)
    path.write_bytes(b"not a model")
    resign(path)
    with pytest.raises(ModelError) as caught:
        Session.open(path)
    assert str(tmp_path) not in str(caught.value)


def test_the_spec_inside_the_file_must_be_the_one_beside_it(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path)
    spec_path(path).write_text(replace(load_spec(path), magnification=9.0).to_json())
    with pytest.raises(SpecMismatch, match="differs"):
        Session.open(path)


def test_a_file_without_a_spec_inside_is_refused(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path)
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    resign(path)
    with pytest.raises(SpecMismatch, match="metadata"):
        Session.open(path)


def test_scores_may_be_added_beside_the_file_later(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path)
    score = Score(metric="UF1", value=0.5, low=0.4, high=0.6, protocol="by hand")
    spec_path(path).write_text(replace(load_spec(path), scores=(score,)).to_json())
    assert Session.open(path).spec.scores == (score,)


def test_inputs_of_another_size_than_the_spec_says_are_refused(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path, tiny_spec(input_size=112))
    model = onnx.load(path)
    grown = replace(tiny_spec(), input_size=224)
    model.metadata_props[0].value = grown.embedded().to_json()
    onnx.save(model, path)
    spec_path(path).write_text(replace(grown, onnx_sha256=file_sha256(path)).to_json())
    with pytest.raises(SpecMismatch, match="112"):
        Session.open(path)


def test_fewer_classes_than_outputs_are_refused(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path, tiny_spec(classes=("negative", "positive")))
    with pytest.raises(SpecMismatch, match="2 classes"):
        Session.open(path)


@pytest.mark.parametrize(
    "flow",
    [
        FlowMethod(algorithm="dis", parameters={"preset": "slow"}),
        FlowMethod(algorithm="tvl1", parameters={"tau": "fast"}),
        FlowMethod(algorithm="farneback", parameters={"poly_n": -1}),
    ],
    ids=lambda flow: flow.algorithm,
)
def test_flow_parameters_that_do_not_run_are_refused(tmp_path: Path, flow: FlowMethod) -> None:
    path = write_tiny_model(tmp_path, tiny_spec(flow=flow))
    with pytest.raises(SpecInvalid, match=f"tiny.onnx .* {flow.algorithm}") as raised:
        Session.open(path)
    assert ".cpp" not in str(raised.value)


def test_a_model_of_one_batch_size_is_refused(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path)
    model = onnx.load(path)
    for node in (*model.graph.input, *model.graph.output):
        node.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, path)
    resign(path)
    with pytest.raises(SpecMismatch, match="batch"):
        Session.open(path)


def test_a_model_that_takes_other_numbers_than_float32_is_refused(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path)
    model = onnx.load(path)
    for value, user in zip(model.graph.input, (0, 1), strict=True):
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
        model.graph.node[user].input[0] = f"{value.name}32"
    for value in model.graph.input:
        cast = onnx.helper.make_node(
            "Cast", [value.name], [f"{value.name}32"], to=onnx.TensorProto.FLOAT
        )
        model.graph.node.insert(0, cast)
    onnx.save(model, path)
    resign(path)
    with pytest.raises(SpecMismatch, match="double"):
        Session.open(path)
