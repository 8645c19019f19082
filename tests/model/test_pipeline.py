"""The whole preprocessing of one pair, on drawn faces whose motion is known."""

import numpy as np
import pytest
from drawn_face import background, draw_face

from model.errors import FrameSizeMismatch
from model.pipeline import Preprocessor, network_inputs
from model.spec import ModelSpec, Provenance

SPEC = ModelSpec(
    name="tiny",
    version="1",
    classes=("negative", "positive", "surprise"),
    provenance=Provenance(data="none", licence="MIT", training_commit="abc"),
)
PREPROCESSOR = Preprocessor(SPEC)
STILL = draw_face()


def test_raised_brows_flow_upwards_above_the_eyes_and_nowhere_else() -> None:
    (pair,) = PREPROCESSOR.align_pair(STILL, draw_face(brow_lift=2.0))
    assert pair.onset.shape == (224, 224, 3)
    assert pair.flow.shape == (2, 224, 224)
    brows, mouth = pair.flow[1, 45:70, 60:164], pair.flow[1, 150:200, 60:164]
    assert brows.min() < -1.2
    assert np.abs(mouth).mean() < 0.1
    assert pair.motion.p95_px > 0.5


def test_the_same_frame_twice_has_not_moved() -> None:
    (pair,) = PREPROCESSOR.align_pair(STILL, STILL)
    assert pair.motion.p95_px < 0.01
    assert pair.motion.head_px < 0.01


def test_a_moving_head_is_reported_and_removed() -> None:
    (pair,) = PREPROCESSOR.align_pair(STILL, draw_face(centre=(321.5, 219.0)))
    in_crop = pair.flow.shape[1] * SPEC.alignment.eye_distance / 80  # crop pixels a frame pixel
    assert pair.motion.head_px == pytest.approx(np.hypot(1.5, 1.0) * in_crop, rel=0.2)
    assert pair.motion.mean_px < 0.15


def test_no_face_is_an_empty_answer() -> None:
    assert PREPROCESSOR.align_pair(background(), background()) == []


def test_two_faces_are_each_answered_when_asked_for() -> None:
    small = draw_face(centre=(160, 200), eye_distance=55)
    both = draw_face(small, centre=(450, 220), eye_distance=90)
    pairs = PREPROCESSOR.align_pair(both, both, max_faces=2)
    assert [pair.quality.eye_distance_px for pair in pairs] == pytest.approx([90, 55], abs=5)
    assert not pairs[0].quality.more_faces
    assert "detect" in pairs[0].timings_ms
    assert "detect" not in pairs[1].timings_ms


def test_a_face_left_out_is_told() -> None:
    both = draw_face(draw_face(centre=(160, 200), eye_distance=55), centre=(450, 220))
    (largest,) = PREPROCESSOR.align_pair(both, both)
    assert largest.quality.more_faces
    (alone,) = PREPROCESSOR.align_pair(STILL, STILL)
    assert not alone.quality.more_faces


def test_a_face_at_the_border_says_how_much_is_missing() -> None:
    edge = draw_face(centre=(40, 220))
    (pair,) = PREPROCESSOR.align_pair(edge, edge)
    (whole,) = PREPROCESSOR.align_pair(STILL, STILL)
    assert 0.1 < pair.quality.outside < 0.6
    assert whole.quality.outside == 0


def test_frames_of_two_sizes_are_refused_naming_both() -> None:
    with pytest.raises(FrameSizeMismatch, match=r"640x480.*630x480"):
        PREPROCESSOR.align_pair(STILL, STILL[:, :630])


def test_network_inputs_are_two_float_arrays_of_the_crop() -> None:
    (pair,) = PREPROCESSOR.align_pair(STILL, draw_face(smile=1.5))
    image, flow = network_inputs(pair.onset, pair.flow, SPEC)
    for array in (image, flow):
        assert array.shape == (3, 224, 224)
        assert array.dtype == np.float32
        assert np.abs(array).max() <= 1
    stronger, same_flow = network_inputs(pair.onset, pair.flow, SPEC, alpha=8.0)
    np.testing.assert_array_equal(flow, same_flow)
    assert np.abs(stronger - image).max() > 0.05


def test_preprocessing_twice_gives_the_same_bits() -> None:
    smiling = draw_face(smile=1.0)
    first, second = (Preprocessor(SPEC).align_pair(STILL, smiling)[0] for _ in range(2))
    np.testing.assert_array_equal(first.flow, second.flow)
    np.testing.assert_array_equal(first.onset, second.onset)
