"""What tells a face that moved from one that only seems to, on drawn faces."""

import cv2
import numpy as np
import pytest
from drawn_face import draw_face
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import ShapeError
from model.face import align, similarity_transform
from model.flow import RigidMotion, to_grey
from model.movement import (
    FOLLOWED_LANDMARKS,
    FOLLOWED_SIDE,
    FaceRegions,
    region_movement,
    residual_motion,
)
from model.pipeline import AlignedPair, Preprocessor
from model.spec import ModelSpec, Provenance

SPEC = ModelSpec(
    name="tiny",
    version="1",
    classes=("negative", "positive", "surprise"),
    provenance=Provenance(data="none", licence="MIT", training_commit="abc"),
)
PREPROCESSOR = Preprocessor(SPEC)
STILL = draw_face()
STEADY = RigidMotion(0.0, 0.0, 0.0, 0.0, 0.0)


def pair_of(onset: np.ndarray, apex: np.ndarray) -> AlignedPair:
    (pair,) = PREPROCESSOR.align_pair(onset, apex)
    return pair


def noisy(frame: np.ndarray, seed: int, strength: float = 2.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, strength, frame.shape)
    return np.clip(np.rint(frame + noise), 0, 255).astype(np.uint8)


LANDMARKS = pair_of(STILL, STILL).landmarks


def moved(onset: np.ndarray, apex: np.ndarray) -> float:
    return pair_of(onset, apex).motion.moved_px


def test_the_same_frame_twice_has_not_moved_at_all() -> None:
    assert moved(STILL, STILL) == 0


@pytest.mark.parametrize("movement", ["smile", "brow_lift"])
def test_an_expression_of_a_pixel_moves_further_than_noise_light_and_blinks_do(
    movement: str,
) -> None:
    onset = noisy(STILL, 0)
    brighter = np.clip(1.06 * noisy(STILL, 2) + 4, 0, 255).astype(np.uint8)
    still = [noisy(STILL, 1), brighter, noisy(draw_face(lids=0.7), 3)]
    least = moved(onset, noisy(draw_face(**{movement: 1.5}), 4))
    assert least > 4 * max(moved(onset, apex) for apex in still)


def test_a_larger_expression_moves_further() -> None:
    lengths = [moved(STILL, draw_face(brow_lift=lift)) for lift in (0.5, 1.0, 2.0, 4.0)]
    assert lengths == sorted(lengths)
    assert lengths[1] > 0.3


def test_a_head_that_shifts_and_rolls_has_not_moved_its_face() -> None:
    apex = draw_face(centre=(321.5, 219.0), roll_degrees=0.5)
    assert moved(STILL, apex) < 0.5 * moved(STILL, draw_face(brow_lift=1.0))


def turned(frame: np.ndarray, centre: tuple[float, float], depth: float) -> np.ndarray:
    """Shift a bump about the nose to the right, as a head does that turns."""
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]].astype(np.float32)
    bump = np.exp(-(((x - centre[0]) / 30) ** 2 + ((y - centre[1]) / 28) ** 2) / 2)
    return np.asarray(cv2.remap(frame, x - depth * bump.astype(np.float32), y, cv2.INTER_CUBIC))


def test_a_nose_that_turns_with_the_head_counts_for_less_than_a_mouth_that_moves() -> None:
    """One bump, at the nose and as far from it as the corner of the mouth."""
    skin = noisy(STILL, 5, 12.0)  # the drawn skin has no texture to tell motion by
    nose = pair_of(skin, skin).face.landmarks[4]
    by_nose = moved(skin, turned(skin, tuple(nose), 1.0))
    by_mouth = moved(skin, turned(skin, (nose[0] + 45, nose[1] + 25), 1.0))
    assert by_nose < 0.7 * by_mouth


@settings(max_examples=15, deadline=None)
@given(
    gain=st.floats(0.93, 1.07),
    offset=st.floats(-15, 15),
    seed=st.integers(0, 2**16),
)
def test_light_that_drifts_moves_nothing(gain: float, offset: float, seed: int) -> None:
    texture = np.random.default_rng(seed).normal(0, 1, (224, 224)).astype(np.float32)
    texture = cv2.GaussianBlur(texture, (0, 0), 3)
    grey = 110 + 25 * texture / texture.std()
    everything = np.ones((224, 224), bool)
    brighter = gain * grey + offset
    onset, apex = (np.clip(np.rint(p), 0, 255).astype(np.uint8) for p in (grey, brighter))
    still = np.zeros((2, 224, 224), np.float32)
    assert region_movement(onset, apex, still, LANDMARKS, everything) < 0.12


def test_a_face_outside_of_the_crop_has_not_moved() -> None:
    grey = np.full((224, 224), 90, np.uint8)
    still, nowhere = np.zeros((2, 224, 224), np.float32), np.zeros((224, 224), bool)
    assert region_movement(grey, grey, still, LANDMARKS, nowhere) == 0


def test_crops_of_two_sizes_are_refused() -> None:
    grey = np.full((224, 224), 90, np.uint8)
    still, face = np.zeros((2, 224, 224), np.float32), np.ones((224, 224), bool)
    with pytest.raises(ShapeError, match="onset, apex, face"):
        region_movement(grey, grey[:100], still, LANDMARKS, face)


def test_a_flow_alone_does_not_tell_how_far_the_face_moved() -> None:
    flow, motion = residual_motion(np.zeros((2, 40, 56), np.float32))
    assert flow.shape == (2, 40, 56)
    assert motion.p95_px == 0
    assert np.isnan(motion.moved_px)


def followed(frame: np.ndarray, head: RigidMotion = STEADY) -> dict[int, np.ndarray]:
    """How far each followed landmark went from STILL, pixels of the small crop."""
    face = PREPROCESSOR.finder.find(STILL)[0]
    transform = similarity_transform(face.landmarks, SPEC.alignment, FOLLOWED_SIDE)
    crops = [align(to_grey(each), transform, FOLLOWED_SIDE) for each in (STILL, frame)]
    landmarks = face.landmarks @ transform[:, :2].T + transform[:, 2]
    moves = FaceRegions(crops[0], landmarks.astype(np.float32)).moved(crops[1], head)
    return dict(zip(FOLLOWED_LANDMARKS, moves, strict=True))


def test_of_the_followed_places_those_move_that_the_expression_moves() -> None:
    moves = followed(draw_face(smile=1.5))
    corners = [moves[61][1], moves[291][1]]
    assert max(corners) < -0.15  # up
    assert max(abs(moves[place]).max() for place in (70, 300, 107, 336)) < 0.06


def test_a_head_that_moved_as_told_leaves_its_regions_where_they_are() -> None:
    shift = FOLLOWED_SIDE * SPEC.alignment.eye_distance / 80  # a pixel of the frame, 80 a face
    head = RigidMotion(3 * shift, 0.0, 0.0, 0.0, 3 * shift)
    moves = followed(draw_face(centre=(323.0, 220.0)), head)
    assert max(abs(move).max() for move in moves.values()) < 0.1


def test_a_crop_of_another_side_is_refused() -> None:
    with pytest.raises(ShapeError, match="112"):
        FaceRegions(np.zeros((96, 96), np.uint8), LANDMARKS)
