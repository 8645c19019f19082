import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from drawn_answers import write_model_of
from drawn_face import background
from drawn_pairs import TINY
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from model.runtime import Placement, Runtime
from model.session import Session
from model.spec import FlowMethod, Score, load_spec
from training import agreement as measuring
from training.agreement import Disagreement, agreement, check_passed
from training.cli import app
from training.data.pairs import read_pairs, write_pairs
from training.evaluate import write_spec
from training.halving import halve, rehearsal
from training.onnx_file import write_model

TVL1 = FlowMethod(
    algorithm="tvl1",
    parameters={
        "scalesNumber": 2,
        "scaleStep": 0.5,
        "warpingsNumber": 2,
        "outerIterations": 1,
        "innerIterations": 4,
        "medianFiltering": 1,
        "epsilon": 0.0,
    },
)
PEOPLE = [str(row % 20) for row in range(200)]
ON_A_CPU = (
    "network and graphs measured on CPUExecutionProvider only: "
    "measure on the GPU (--device cuda) before serving there"
)


def rows(*apart: float) -> np.ndarray:
    """(200, 3): the candidate's first probabilities, so far apart from .5 in the first rows."""
    told = np.full((200, 3), 0.25, np.float32)
    told[:, 0] = 0.5
    told[: len(apart), 0] += np.float32(apart)
    return told


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "LEAST_PAIRS", 8)
    monkeypatch.setattr(measuring, "LEAST_PEOPLE", 2)


@pytest.fixture(scope="session")
def pairs(pairs_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people of the folder, each with its four pairs: time goes by the pair."""
    path = tmp_path_factory.mktemp("two") / "pairs.csv"
    here = str(pairs_folder)
    rows = [
        replace(pair, onset=f"{here}/{pair.onset}", apex=f"{here}/{pair.apex}")
        for pair in read_pairs(pairs_folder)
        if pair.subject in {"0", "1"}
    ]
    write_pairs(path, rows)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model_of(tmp_path, replace(TINY, flow=TVL1), "elsewhere")


def test_two_pairs_of_200_may_differ_and_three_may_not() -> None:
    two = agreement(rows(), rows(0.03, -0.03, 0.019), PEOPLE)
    assert (two.share, two.pairs, two.people, two.passed) == (0.99, 200, 20, True)
    three = agreement(rows(), rows(0.03, -0.03, 0.03), PEOPLE)
    assert not three.passed
    with pytest.raises(Disagreement, match=r"onnx .* 98.5% of 200 pairs agree, 99% must"):
        check_passed({"float16": two, "onnx": three})
    check_passed({"float16": two})


def test_what_is_no_number_agrees_with_nothing() -> None:
    broken = agreement(rows(), rows(math.nan), PEOPLE)
    assert broken.share == 199 / 200
    assert broken.largest == math.inf


@pytest.mark.parametrize("people", [20, 50, 200])
def test_where_all_agree_the_lower_bound_is_the_exact_one_of_as_many_people(people: int) -> None:
    """Clopper and Pearson: p^n = .025 where none of n people differs, however many pairs each."""
    all_ = agreement(rows(), rows(), [str(row % people) for row in range(200)])
    assert (all_.share, all_.high) == (1, 1)
    assert all_.low == pytest.approx(0.025 ** (1 / people), abs=1e-6)


def test_each_pair_that_differs_lowers_the_lower_bound() -> None:
    lows = [agreement(rows(), rows(*[0.1] * count), PEOPLE).low for count in range(5)]
    assert lows == sorted(set(lows), reverse=True)


def test_a_person_with_many_pairs_counts_for_no_more_people() -> None:
    """Half of the pairs differ: half of each person's, or all of one person's."""
    half = rows(*[0.1] * 100)
    each = agreement(rows(), half, PEOPLE)
    of_one = agreement(rows(), half, ["0"] * 100 + [str(1 + row % 19) for row in range(100)])
    assert (of_one.share, of_one.people) == (each.share, each.people) == (0.5, 20)
    assert of_one.low < each.low - 0.02


def test_where_none_agrees_the_lower_bound_is_nothing() -> None:
    assert agreement(rows(), rows() + 0.1, PEOPLE).low == 0


def test_another_likeliest_class_is_counted() -> None:
    assert agreement(rows(), rows(-0.3, -0.1), PEOPLE).labels_changed == 1


def small_sum() -> onnx.ModelProto:
    """Build x + 1/10000 - 1, which is 0 where x is 1 and each sum is rounded to half precision."""
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "little"], ["more"]),
            helper.make_node("Sub", ["more", "one"], ["y"]),
        ],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [
            numpy_helper.from_array(np.float32([value]), name)
            for name, value in (("little", 1e-4), ("one", 1.0))
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_rehearsal_rounds_every_result_on_a_cpu_too() -> None:
    feeds = {"x": np.float32([1.0])}
    answers = [
        Runtime.open(proto.SerializeToString(), "sum", Placement()).run(["y"], feeds)[0][0]
        for proto in (small_sum(), rehearsal(halve(small_sum())))
    ]
    assert answers == [pytest.approx(1e-4, rel=1e-2), 0.0]


def test_half_a_network_takes_and_gives_single_precision(exported: Path) -> None:
    half = halve(onnx.load(exported))
    ends = [*half.graph.input, *half.graph.output]
    assert {end.type.tensor_type.elem_type for end in ends} == {TensorProto.FLOAT}
    assert not [t.name for t in half.graph.initializer if t.data_type == TensorProto.FLOAT]
    assert onnx.load(exported).graph.initializer != half.graph.initializer


def test_a_rehearsed_network_is_off_by_the_rounding_of_half_precision(exported: Path) -> None:
    """A result is rounded by at most 2^-11 of itself; a network of some twenty layers adds up."""
    image, flow = np.random.default_rng(5).uniform(-1, 1, (2, 4, 3, 64, 64)).astype(np.float32)
    single = onnx.load(exported)
    expected, got = (
        Runtime.open(proto.SerializeToString(), "net", Placement()).run(
            ["logits"], {"image": image, "flow": flow}
        )[0]
        for proto in (single, rehearsal(halve(single)))
    )
    assert 0 < np.abs(got - expected).max() < 20 * 2**-11 * np.abs(expected).max()
    np.testing.assert_array_equal(got, got.astype(np.float16))


@pytest.mark.usefixtures("few_are_enough")
def test_a_model_that_stays_itself_in_half_precision_is_written(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "half.onnx"
    result = run("halve", "--model", model, pairs, "--out", out)
    assert result.exit_code == 0, result.output
    assert "float16: 100.00% of 8 pairs of 2 people" in result.stdout
    spec = Session.open(out).spec
    assert spec.precision == "float16"
    (score,) = spec.agreements
    assert (score.metric, score.value) == ("agrees_float16", 1)
    assert f"rounds each result; {ON_A_CPU}; `mfdan-train halve" in score.protocol
    assert result.stdout.splitlines()[-1] == ON_A_CPU
    before = load_spec(model)
    after = {"precision": "float32", "agreements": (), "onnx_sha256": before.onnx_sha256}
    assert replace(spec, **after) == before
    again = run("halve", "--model", out, pairs, "--out", tmp_path / "quarter.onnx")
    assert (again.exit_code, "half precision already" in again.stderr) == (1, True)


@pytest.mark.usefixtures("few_are_enough")
def test_a_model_that_half_precision_spoils_is_refused_and_nothing_written(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    proto = onnx.load(model)
    (weight,) = proto.graph.initializer
    huge = numpy_helper.to_array(weight) * np.float32(1e6)  # beyond 65504, and back again below
    weight.CopyFrom(numpy_helper.from_array(huge, weight.name))
    proto.graph.initializer.append(numpy_helper.from_array(np.float32([1e-6]), "back"))
    proto.graph.node[-1].output[0] = "large"
    proto.graph.node.append(helper.make_node("Mul", ["large", "back"], ["logits"]))
    write_model(proto, load_spec(model), model)
    out = tmp_path / "half.onnx"
    result = run("halve", "--model", model, pairs, "--out", out)
    assert result.exit_code == 1
    assert "of 8 pairs of 2 people keep" in result.stdout
    assert "float16 does not give the same answers" in result.stderr
    assert not out.exists()


@pytest.mark.usefixtures("few_are_enough")
def test_a_backend_that_gives_the_same_answers_is_allowed_in_the_spec_alone(
    model: Path, pairs: Path
) -> None:
    file, before = model.read_bytes(), load_spec(model)
    stale = Score(metric="agrees_onnx", value=0.5, low=0, high=1, protocol="of long ago")
    other = replace(stale, metric="agrees_opencv-cuda")
    write_spec(model, replace(before, agreements=(stale, other)))
    command = ("agree", "--model", model, "--backend", "onnx", pairs)
    result = run(*command, "--write-spec")
    assert result.exit_code == 0, result.output
    spec = Session.open(model).spec
    assert model.read_bytes() == file
    assert spec.flow_backends == ("opencv-cpu", "onnx")
    assert [s.metric for s in spec.agreements] == [
        "agrees_opencv-cuda",
        "agrees_onnx",
        "agrees_onnx_fused",
    ]
    assert all("8 pairs of 2 people" in score.protocol for score in spec.agreements[1:])
    assert all(f"; {ON_A_CPU}; " in score.protocol for score in spec.agreements[1:])
    assert result.stdout.splitlines()[-1] == ON_A_CPU
    assert replace(spec, flow_backends=("opencv-cpu",), agreements=()) == before


@pytest.mark.usefixtures("few_are_enough")
def test_a_backend_that_gives_other_answers_is_not_allowed(
    model: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "TOLERANCE", 0.0)  # the last bits of two ways never agree
    before = load_spec(model)
    result = run("agree", "--model", model, "--backend", "onnx", pairs, "--write-spec")
    assert result.exit_code == 1
    assert "onnx, fused: " in result.stdout
    assert "onnx does not give the same answers" in result.stderr
    assert load_spec(model) == before


@pytest.mark.parametrize(
    ("backend", "why"),
    [
        pytest.param("opencv-cpu", "made the data", id="the first"),
        pytest.param("onnx", "onnx has no farneback", id="one without the algorithm"),
        pytest.param(
            "opencv-cuda",
            "needs an NVIDIA GPU",
            id="one that is not there",
            marks=pytest.mark.skipif(
                cv2.cuda.getCudaEnabledDeviceCount() > 0, reason="there is a GPU"
            ),
        ),
    ],
)
@pytest.mark.usefixtures("few_are_enough")
def test_a_backend_that_cannot_be_compared_is_refused_in_one_sentence(
    backend: str, why: str, pairs: Path, tmp_path: Path
) -> None:
    path = write_model_of(tmp_path, TINY, "elsewhere")
    result = run("agree", "--model", path, "--backend", backend, pairs, "--write-spec")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert why in line
    assert load_spec(path).flow_backends == ("opencv-cpu",)


@pytest.mark.parametrize(
    "command", [("agree", "--backend", "onnx"), ("halve", "--out", "half.onnx")]
)
def test_too_few_pairs_prove_nothing(
    command: tuple[str, ...], model: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    result = run(*command, "--model", model, pairs)
    assert result.exit_code == 1
    assert "8 pairs of pictures of 2 people" in result.stderr
    assert "200 of 20 people are needed" in result.stderr
    assert not (model.parent / "half.onnx").exists()


def test_pairs_of_too_few_people_prove_nothing(
    model: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "LEAST_PAIRS", 8)
    result = run("agree", "--model", model, "--backend", "onnx", pairs)
    assert result.exit_code == 1
    assert "8 pairs of pictures of 2 people whom the model never saw are too few" in result.stderr


@pytest.mark.usefixtures("few_are_enough")
def test_pairs_in_which_no_face_is_found_are_no_evidence(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "wall.png"), background(240, 320))
    first, *others = read_pairs(pairs)
    write_pairs(pairs_of := tmp_path / "pairs.csv", [replace(first, onset="wall.png"), *others])
    out = tmp_path / "half.onnx"
    result = run("halve", "--model", model, pairs_of, "--out", out)
    assert result.exit_code == 1
    assert "7 pairs of pictures of 2 people" in result.stderr
    assert not out.exists()


@pytest.mark.usefixtures("few_are_enough")
def test_pairs_of_people_whom_the_weights_saw_prove_nothing(pairs: Path, tmp_path: Path) -> None:
    seen = replace(TINY, val_fraction=0.0, test_fraction=0.0)
    path = write_model_of(tmp_path, seen, "drawn")
    out = tmp_path / "half.onnx"
    result = run("halve", "--model", path, pairs, "--out", out)
    assert result.exit_code == 1
    assert "2 people of its training split" in result.stderr
    assert not out.exists()


@pytest.mark.skipif(
    cv2.cuda.getCudaEnabledDeviceCount() < 1,
    reason="OpenCV sees no CUDA device: the agreement of its GPU flow is measured where one is",
)
@pytest.mark.usefixtures("few_are_enough")
def test_flow_on_a_gpu_is_compared_with_the_cpu_s(pairs: Path, tmp_path: Path) -> None:
    path = write_model_of(tmp_path, TINY, "elsewhere")
    result = run("agree", "--model", path, "--backend", "opencv-cuda", pairs)
    assert result.exit_code == 0, result.output
    assert "opencv-cuda: 100.00% of 8 pairs of 2 people" in result.stdout


@pytest.mark.skipif(
    Runtime.open(small_sum().SerializeToString(), "probe", Placement(device="cuda")).fell_back,
    reason="ONNX Runtime runs nothing on CUDA here: `mfdan doctor` says what is missing",
)
@pytest.mark.usefixtures("few_are_enough")
def test_half_precision_is_measured_on_the_gpu_that_computes_it(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "half.onnx"
    result = run("halve", "--model", model, pairs, "--out", out, "--device", "cuda")
    assert result.exit_code == 0, result.output
    (score,) = load_spec(out).agreements
    assert "float16 on CUDAExecutionProvider" in score.protocol
    assert "before serving there" not in score.protocol + result.stdout
