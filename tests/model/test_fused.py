import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from cuda_kernels import without_cuda_kernel
from drawn_face import draw_face
from tiny_model import tiny_spec, write_tiny_model

from model.errors import ModelError, ShapeError, SpecInvalid, SpecMismatch
from model.fused import Fused, FusedRow
from model.fused_graph import fused_graph
from model.pipeline import AlignedPair, Crops, Preprocessor, network_inputs
from model.runtime import Placement, Runtime
from model.session import Session
from model.spec import FlowMethod, ModelSpec, load_spec

BUNDLED = Path(__file__).parents[2] / "model/weights/mfdan-synthetic.onnx"
ONE_THREAD = Placement(threads=1)
TVL1 = FlowMethod(
    algorithm="tvl1",
    parameters={
        "scalesNumber": 2,
        "scaleStep": 0.5,
        "warpingsNumber": 2,
        "outerIterations": 2,
        "innerIterations": 8,
        "medianFiltering": 1,
        "epsilon": 0.0,
    },
)
SIDE = 64
SHORT = FlowMethod(
    algorithm="tvl1",
    parameters={"scalesNumber": 1, "warpingsNumber": 1, "outerIterations": 1, "innerIterations": 4},
)


def run(fused: Fused, crops: list[Crops]) -> list[FusedRow]:
    return fused.run(
        np.stack([one.onset for one in crops]),
        np.stack([one.onset_grey for one in crops]),
        np.stack([one.apex_grey for one in crops]),
        np.stack([one.outline for one in crops]),
    )


def tiny(folder: Path, **changes: object) -> Path:
    return write_tiny_model(folder, tiny_spec(**{"input_size": SIDE, "flow": SHORT, **changes}))


def open_fused(path: Path, placement: Placement = ONE_THREAD) -> Fused:
    return Fused.open(path, load_spec(path), placement)


def blank(count: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    grey = np.full((count, SIDE, SIDE), 90, np.uint8)
    return np.repeat(grey[..., None], 3, axis=3), grey, grey, np.ones(grey.shape, bool)


def textured(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Waves that move by about a pixel, each pair's its own way."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    pairs = []
    for _ in range(count):
        dx, dy, phase = [*random.uniform(-1, 1, 2).tolist(), random.uniform(0, 6)]
        pairs.append([_waves(x, y, phase), _waves(x - dx * (y > SIDE / 2), y - dy, phase)])
    onset, apex = np.array(pairs, np.uint8).swapaxes(0, 1)
    return np.repeat(onset[..., None], 3, axis=3), onset, apex, np.ones(onset.shape, bool)


def _waves(x: np.ndarray, y: np.ndarray, phase: float) -> np.ndarray:
    return 127 + 60 * np.sin(x / 2.5 + phase) + 60 * np.cos(y / 3 + x / 7)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Fused:
    return open_fused(tiny(tmp_path_factory.mktemp("small")))


@cache
def bundled_spec() -> ModelSpec:
    return replace(load_spec(BUNDLED), flow=TVL1)


@pytest.fixture(scope="module")
def faces() -> tuple[list[Crops], list[AlignedPair]]:
    preprocessor = Preprocessor(bundled_spec())
    onset = draw_face()
    apexes = [onset, draw_face(brow_lift=2.0), draw_face(smile=2.0, centre=(321.0, 220.5))]
    crops = [preprocessor.crop_pair(onset, apex)[0] for apex in apexes]
    return crops, [preprocessor.solved(one) for one in crops]


@pytest.fixture(scope="module")
def bundled() -> Fused:
    return Fused.open(BUNDLED, bundled_spec(), ONE_THREAD)


def test_drawn_faces_get_the_answers_of_the_separate_steps(
    bundled: Fused, faces: tuple[list[Crops], list[AlignedPair]]
) -> None:
    crops, pairs = faces
    spec = bundled_spec()
    inputs = [network_inputs(pair.onset, pair.flow, spec) for pair in pairs]
    session = replace(Session.open(BUNDLED, ONE_THREAD), spec=spec)
    images, flows = (np.stack(part) for part in zip(*inputs, strict=True))
    expected = session.run(images, flows)
    rows = run(bundled, crops)
    for row, pair, probabilities in zip(rows, pairs, expected, strict=True):
        np.testing.assert_allclose(row.probabilities, probabilities, atol=0.02)
        np.testing.assert_allclose(row.flow, pair.flow, atol=0.1)
        assert abs(row.flow - pair.flow).mean() < 0.005
        assert row.head.mean_px == pytest.approx(pair.motion.head_px, abs=0.01)
    assert rows[1].probabilities.argmax() == expected[1].argmax()


def test_a_pair_that_did_not_move_has_no_flow_at_all(
    bundled: Fused, faces: tuple[list[Crops], list[AlignedPair]]
) -> None:
    (still, *_) = run(bundled, faces[0])
    assert not still.flow.any()
    assert still.head.mean_px == 0
    assert np.isfinite(still.probabilities).all()


def test_flow_and_head_together_are_what_was_solved(small: Fused) -> None:
    onset, *rest, face = textured(3, 1)
    (whole,) = small.run(onset, *rest, face)
    (nothing_removed,) = small.run(onset, *rest, np.zeros_like(face))
    total = whole.flow + whole.head.over(whole.flow)
    np.testing.assert_allclose(total, nothing_removed.flow, atol=1e-5)


def test_each_pair_of_a_batch_gets_its_own_answer(small: Fused) -> None:
    arrays = textured(0, 5)
    together = small.run(*arrays)
    for place in (4, 0, 2):
        (alone,) = small.run(*(array[[place]] for array in arrays))
        np.testing.assert_allclose(alone.flow, together[place].flow, atol=1e-5)
        np.testing.assert_allclose(alone.probabilities, together[place].probabilities, atol=1e-5)
    assert len({tuple(row.probabilities.round(4)) for row in together}) == len(together)


def test_probabilities_are_at_the_specs_temperature(small: Fused, tmp_path: Path) -> None:
    arrays = textured(1, 1)
    (warm,), (cool,) = small.run(*arrays), open_fused(tiny(tmp_path, temperature=2.5)).run(*arrays)
    assert warm.probabilities.sum() == pytest.approx(1)
    logits = np.log(warm.probabilities), 2.5 * np.log(cool.probabilities)
    np.testing.assert_allclose(*(one - one[0] for one in logits), atol=1e-4)


def test_warming_up_runs_each_batch_size(small: Fused, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    run = Runtime.run

    def noted(self: Runtime, outputs: object, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        got = run(self, outputs, feeds)
        sizes.append(len(got[0]))
        return got

    monkeypatch.setattr(Runtime, "run", noted)
    small.warm_up((1, 3))
    assert sizes == [1, 3]


def test_an_empty_batch_is_a_shape_error(small: Fused) -> None:
    with pytest.raises(ShapeError, match="one pair or more"):
        small.run(*blank(0))


def test_a_row_that_is_kept_does_not_keep_its_batch(small: Fused) -> None:
    for row in small.run(*blank(2)):
        assert row.flow.base is None
        assert row.probabilities.base is None


@pytest.mark.parametrize("wrong", range(4))
def test_arrays_that_do_not_fit_are_a_shape_error(small: Fused, wrong: int) -> None:
    arrays = list(blank(2))
    arrays[wrong] = arrays[wrong][:, 1:]
    with pytest.raises(ShapeError, match="63"):
        small.run(*arrays)


def test_another_flow_than_tvl1_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecMismatch, match="asks for dis"):
        open_fused(tiny(tmp_path, flow=FlowMethod(algorithm="dis")))


def test_a_parameter_that_only_opencv_has_is_refused(tmp_path: Path) -> None:
    flow = FlowMethod(algorithm="tvl1", parameters={"gamma": 0.5})
    with pytest.raises(SpecInvalid, match=r"tiny\.onnx .* gamma"):
        open_fused(tiny(tmp_path, flow=flow))


def test_a_file_that_changed_since_its_spec_was_read_is_refused(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    spec = load_spec(path)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(SpecMismatch, match="not the file"):
        Fused.open(path, spec, ONE_THREAD)


def test_a_file_that_is_no_onnx_model_is_refused(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    path.write_bytes(b"not a model")
    with pytest.raises(ModelError, match="not a valid ONNX model"):
        fused_graph(path, tiny_spec(flow=SHORT))


def test_a_network_whose_nodes_are_in_no_order_is_refused(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    model = onnx.load(path)
    nodes = list(model.graph.node)
    model.graph.ClearField("node")
    model.graph.node.extend(reversed(nodes))
    onnx.save(model, path)
    with pytest.raises(ModelError, match="topologically sorted"):
        fused_graph(path, tiny_spec(flow=SHORT))


def test_a_network_of_other_inputs_is_refused(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    model = onnx.load(path)
    model.graph.output[0].name = "speed"
    onnx.save(model, path)
    with pytest.raises(SpecMismatch, match="makes speed of flow, image"):
        fused_graph(path, tiny_spec(flow=SHORT))


def test_what_to_install_is_said_where_spox_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny(tmp_path)
    for name in ("model.fused_graph", "model.front", "model.tvl1"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "spox"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModelError, match=r"needs spox.*mfdan\[onnx-flow\]"):
        open_fused(path)


def test_every_operator_has_a_kernel_for_cuda() -> None:
    assert not without_cuda_kernel(fused_graph(BUNDLED, replace(bundled_spec(), flow=SHORT)))


def test_a_gpu_gives_the_answers_of_the_cpu(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    fused = open_fused(path, Placement(device="cuda"))
    if fused.fell_back:
        pytest.skip("ONNX Runtime runs nothing on CUDA here: `mfdan doctor` says what is missing")
    arrays = textured(2, 3)
    for row, expected in zip(fused.run(*arrays), open_fused(path).run(*arrays), strict=True):
        np.testing.assert_allclose(row.flow, expected.flow, atol=1e-2)
        np.testing.assert_allclose(row.probabilities, expected.probabilities, atol=0.02)
