import numpy as np
import pytest
from drawn_face import draw_face

from model.errors import ShapeError
from model.pipeline import AlignedPair, Preprocessor
from model.regions import REGIONS, region_motions
from model.spec import ModelSpec, Provenance

SPEC = ModelSpec(
    name="tiny",
    version="1",
    classes=("negative", "positive", "surprise"),
    provenance=Provenance(data="none", licence="MIT", training_commit="abc"),
)


def pair(**apex: float) -> AlignedPair:
    (found,) = Preprocessor(SPEC).align_pair(draw_face(), draw_face(**apex))
    return found


def test_raised_brows_are_named_first_and_go_up() -> None:
    moved = pair(brow_lift=2.0)
    motions = region_motions(moved.flow, moved.landmarks)
    assert "brow" in motions[0].region
    assert motions[0].down_px < -0.8


def test_a_smile_lifts_both_corners_of_the_mouth() -> None:
    moved = pair(smile=2.0)
    by_region = {motion.region: motion for motion in region_motions(moved.flow, moved.landmarks)}
    for corner in ("right_mouth_corner", "left_mouth_corner"):
        assert by_region[corner].down_px < -0.5
    assert by_region["right_outer_brow"].length_px < 0.2


def test_a_constant_field_moves_every_region_alike() -> None:
    landmarks = pair().landmarks
    flow = np.stack([np.full((224, 224), 3.0), np.full((224, 224), -4.0)]).astype(np.float32)
    motions = region_motions(flow, landmarks)
    assert {motion.region for motion in motions} == set(REGIONS)
    for motion in motions:
        assert (motion.right_px, motion.down_px, motion.length_px) == pytest.approx((3, -4, 5))


def test_a_region_outside_the_crop_is_left_out() -> None:
    landmarks = pair().landmarks.copy()
    landmarks[list(REGIONS["chin"])] = (112, 900)
    motions = region_motions(np.zeros((2, 224, 224), np.float32), landmarks)
    assert "chin" not in {motion.region for motion in motions}


def test_left_and_right_are_the_persons_own() -> None:
    landmarks = pair().landmarks
    assert landmarks[61, 0] < landmarks[291, 0]  # the person's right is on the picture's left


def test_half_a_flow_field_is_a_shape_error() -> None:
    with pytest.raises(ShapeError):
        region_motions(np.zeros((1, 224, 224), np.float32), pair().landmarks)
