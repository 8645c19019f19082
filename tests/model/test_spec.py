import json
from dataclasses import replace
from pathlib import Path

import pytest

from model.errors import ModelNotFound, SpecInvalid, SpecMismatch
from model.spec import (
    FlowMethod,
    ModelSpec,
    Provenance,
    Reference,
    Score,
    file_sha256,
    load_spec,
    spec_path,
)

SPEC = ModelSpec(
    name="tiny",
    version="1",
    classes=("negative", "positive", "surprise"),
    provenance=Provenance(data="none", licence="MIT", training_commit="abc", seed=3),
    scores=(Score(metric="UF1", value=0.5, low=0.4, high=0.6, protocol="by hand"),),
)

TVL1 = replace(SPEC, flow=FlowMethod(algorithm="tvl1"))

SHARES = {"negative": 0.25, "positive": 0.5, "surprise": 0.125, "abstained": 0.125}
REFERENCE = Reference(shares=SHARES, answers=8, protocol="by hand")


def written(folder: Path, spec: ModelSpec, weights: bytes = b"weights") -> Path:
    path = folder / "tiny.onnx"
    path.write_bytes(weights)
    spec_path(path).write_text(replace(spec, onnx_sha256=file_sha256(path)).to_json())
    return path


def test_a_spec_survives_the_way_through_json() -> None:
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC
    measured = replace(SPEC, reference=REFERENCE)
    assert ModelSpec.from_json(measured.to_json()) == measured


def test_the_spec_lies_beside_its_weights() -> None:
    assert spec_path(Path("a/b.onnx")) == Path("a/b.onnx.json")


def test_the_embedded_copy_has_neither_hash_nor_what_was_measured() -> None:
    measured = replace(
        SPEC, onnx_sha256="f" * 64, reference=REFERENCE, agreements=SPEC.scores, precision="float16"
    )
    embedded = measured.embedded()
    assert (embedded.onnx_sha256, embedded.scores, embedded.reference) == ("", (), None)
    assert replace(embedded, scores=SPEC.scores, precision="float32") == SPEC


def test_the_embedded_copy_names_who_made_the_training_data_and_nobody_who_was_measured() -> None:
    widened = replace(TVL1, flow_backends=("opencv-cpu", "onnx", "opencv-cuda"))
    assert widened.embedded() == TVL1.embedded()
    elsewhere = replace(TVL1, flow_backends=("opencv-cuda", "opencv-cpu"))
    assert elsewhere.embedded() != TVL1.embedded()


@pytest.mark.parametrize(
    ("algorithm", "backends", "told"),
    [
        ("tvl1", (), "at least one"),
        ("tvl1", ("onnx", "onnx"), "each once"),
        ("dis", ("opencv-cuda",), "opencv-cuda has no dis; opencv-cpu can"),
        ("farneback", ("opencv-cpu", "onnx"), "onnx has no farneback"),
        ("brox", ("opencv-cpu",), "opencv-cpu has no brox; opencv-cuda can"),
    ],
)
def test_a_backend_that_cannot_compute_the_flow_is_refused(
    algorithm: str, backends: tuple[str, ...], told: str
) -> None:
    flow = {"algorithm": algorithm, "parameters": {}}
    document = json.loads(SPEC.to_json()) | {"flow": flow, "flow_backends": backends}
    with pytest.raises(SpecInvalid, match=told):
        ModelSpec.from_json(json.dumps(document))


@pytest.mark.parametrize(
    ("algorithm", "parameters", "told"),
    [
        ("farneback", {"levels": 10**30}, "levels must be a finite number below 2147483648"),
        ("farneback", {"poly_sigma": 1e300}, "poly_sigma must be a finite number"),
        ("tvl1", {"tau": 10**400}, "tau must be a finite number"),
        ("tvl1", {"lambda": float("nan")}, "lambda must be a finite number"),
        ("tvl1", {"theta": float("-inf")}, "theta must be a finite number"),
        ("tvl1", {"tau": 1e-300}, "tau from 0.0001 to 1, not 1e-300"),
        ("tvl1", {"tau": 2.5}, "tau from 0.0001 to 1"),
        ("tvl1", {"lambda": -1.0}, "lambda from 0.0001"),
        ("tvl1", {"theta": 1e5}, "theta from 0.0001 to 1000"),
        ("tvl1", {"innerIterations": 0}, "innerIterations from 1 to 1000, not 0"),
        ("tvl1", {"scaleStep": 1.0}, "scaleStep from 0.1 to 0.99"),
        ("tvl1", {"scalesNumber": 1000, "scaleStep": 0.99}, "scalesNumber from 1 to 100"),
        ("tvl1", {"warpingsNumber": 100}, "may take 25000 iterations in all, not 150000: scales"),
    ],
)
def test_numbers_that_no_flow_can_be_computed_with_are_refused(
    algorithm: str, parameters: dict[str, float], told: str
) -> None:
    flow = {"algorithm": algorithm, "parameters": parameters}
    document = json.loads(SPEC.to_json()) | {"flow": flow}
    with pytest.raises(SpecInvalid, match=told) as raised:
        ModelSpec.from_json(json.dumps(document))
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 1e-50),
        ("temperature", float("inf")),
        ("classes", ["only one"]),
        ("magnification", -1),
        ("name", "../../etc"),
        ("flow", {"algorithm": "raft", "parameters": {}}),
        ("surplus", 1),
        ("reference", {"shares": {"abstained": 1}, "answers": 3, "protocol": ""}),
        ("reference", {"shares": SHARES | {"anger": 0}, "answers": 3, "protocol": ""}),
        ("reference", {"shares": SHARES | {"negative": 0.3}, "answers": 3, "protocol": ""}),
        ("reference", {"shares": SHARES | {"negative": -1}, "answers": 3, "protocol": ""}),
        ("reference", {"shares": SHARES, "answers": 0, "protocol": ""}),
    ],
)
def test_a_bad_field_is_named(field: str, value: object) -> None:
    document = json.loads(SPEC.to_json()) | {field: value}
    with pytest.raises(SpecInvalid, match=field):
        ModelSpec.from_json(json.dumps(document))


def test_text_that_is_not_json_is_an_invalid_spec() -> None:
    with pytest.raises(SpecInvalid):
        ModelSpec.from_json("{")


def test_another_preprocessing_version_is_refused() -> None:
    document = json.loads(SPEC.to_json()) | {"preprocessing_version": 99}
    with pytest.raises(SpecMismatch, match="99"):
        ModelSpec.from_json(json.dumps(document))


def test_an_intact_pair_of_files_loads(tmp_path: Path) -> None:
    loaded = load_spec(written(tmp_path, SPEC))
    assert replace(loaded, onnx_sha256="") == SPEC


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, SPEC)
    path.write_bytes(b"weightz")
    with pytest.raises(SpecMismatch, match="SHA-256"):
        load_spec(path)


@pytest.mark.parametrize("missing", ["tiny.onnx", "tiny.onnx.json"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    path = written(tmp_path, SPEC)
    (tmp_path / missing).unlink()
    with pytest.raises(ModelNotFound, match=missing):
        load_spec(path)


def test_the_cache_key_follows_what_fixes_the_flow_and_nothing_else() -> None:
    farneback = replace(SPEC, flow=FlowMethod(algorithm="farneback"))
    assert farneback.preprocessing_key() != SPEC.preprocessing_key()
    renamed = replace(SPEC, name="other", magnification=1.0, motion_gate_px=2.0)
    assert renamed.preprocessing_key() == SPEC.preprocessing_key()


def test_pairs_prepared_by_two_backends_have_two_caches() -> None:
    assert replace(TVL1, flow_backends=("onnx",)).preprocessing_key() != TVL1.preprocessing_key()
    widened = replace(TVL1, flow_backends=("opencv-cpu", "onnx"))
    assert widened.preprocessing_key() == TVL1.preprocessing_key()


def test_the_bundled_cache_key_is_what_it_was_before_there_were_backends() -> None:
    assert SPEC.preprocessing_key() == "b1a1ab649b050848"
