"""What is answered, and everything that speaks against it."""

import math
from dataclasses import replace

import numpy as np
import pytest

from model.movement import Motion
from model.quality import Quality
from model.spec import ModelSpec, Provenance
from model.verdict import judge

SPEC = ModelSpec(
    name="tiny",
    version="1",
    classes=("negative", "positive", "surprise"),
    provenance=Provenance(data="none", licence="MIT", training_commit="abc"),
    motion_gate_px=0.2,
    abstention_threshold=0.5,
)
CALM, MOVED = Motion(0.0, 0.9, 0.0, 0.1), Motion(0.3, 1.0, 0.2, 0.8)
GOOD = Quality(
    eye_distance_px=80.0,
    outside=0.0,
    more_faces=False,
    blur_px=1.0,
    dark=0.0,
    bright=0.0,
    contrast=120.0,
    yaw_deg=0.0,
    pitch_deg=0.0,
    eyes_hidden=0.0,
    mouth_hidden=0.0,
    mismatch=0.0,
)


def test_a_confident_answer_on_a_moving_face_stands() -> None:
    verdict = judge(SPEC, np.float32([0.1, 0.7, 0.2]), MOVED, GOOD)
    assert (verdict.label, verdict.abstained, verdict.reason) == ("positive", False, None)
    assert verdict.probabilities == pytest.approx(
        {"negative": 0.1, "positive": 0.7, "surprise": 0.2}
    )


def test_nothing_moved_abstains_however_confident_the_network() -> None:
    verdict = judge(SPEC, np.float32([0.0, 1.0, 0.0]), CALM, GOOD)
    assert (verdict.abstained, verdict.reason) == (True, "no_movement")


def test_a_motion_that_nobody_knows_passes_the_gate() -> None:
    known = judge(SPEC, np.float32([0.0, 1.0, 0.0]), Motion(math.nan, math.nan, math.nan), None)
    assert known.reasons == ()


def test_low_confidence_abstains() -> None:
    verdict = judge(SPEC, np.float32([0.35, 0.45, 0.2]), MOVED, GOOD)
    assert (verdict.label, verdict.reason) == ("positive", "low_confidence")


def test_all_reasons_are_told_and_the_first_is_the_reason() -> None:
    verdict = judge(SPEC, np.float32([0.35, 0.45, 0.2]), CALM, GOOD)
    assert verdict.reasons == ("no_movement", "low_confidence")
    assert verdict.reason == "no_movement"


def test_doubts_of_the_motion_itself_come_before_its_size_and_the_size_before_the_class() -> None:
    covered = replace(GOOD, mouth_hidden=1.0, blur_px=9.0)
    unsure = np.float32([0.35, 0.45, 0.2])
    assert judge(SPEC, unsure, CALM, covered).reasons == (
        *("occluded", "blurred", "no_movement", "low_confidence"),
    )
    huge = Motion(2.0, 30.0, 0.2, 12.0)
    assert judge(SPEC, unsure, huge, covered).reasons == (
        *("occluded", "blurred", "too_large_motion", "low_confidence"),
    )


def test_an_uncalibrated_spec_abstains_only_when_nothing_can_have_moved() -> None:
    fresh = ModelSpec(name="fresh", version="1", classes=SPEC.classes, provenance=SPEC.provenance)
    rows = np.float32([0.3, 0.4, 0.3])
    assert not judge(fresh, rows, CALM, GOOD).abstained
    assert judge(fresh, rows, Motion(0.0, 0.0, 0.0, 0.0), GOOD).reason == "no_movement"
