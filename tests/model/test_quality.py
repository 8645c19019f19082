"""Each measure is held against a picture whose fault is known, on drawn faces."""

from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest
from drawn_face import Image, background, draw_face
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ShapeError
from model.movement import Motion
from model.pipeline import AlignedPair, Preprocessor
from model.quality import (
    Quality,
    blur_px,
    clip_warnings,
    exposure,
    faults,
    head_pose,
    hidden_parts,
    mismatch,
    smoothed,
    warnings,
)
from model.spec import Limit, ModelSpec, Provenance, QualityLimits

SPEC = ModelSpec(
    name="tiny",
    version="1",
    classes=("negative", "positive"),
    provenance=Provenance(data="none", licence="MIT", training_commit="abc"),
)
LIMITS = QualityLimits()
PREPROCESSOR = Preprocessor(SPEC)
FACE = draw_face()
SMILING = draw_face(smile=1.5)
EVERYTHING = np.ones((224, 224), bool)
CALM = Motion(mean_px=0.2, p95_px=1.0, head_px=0.3)


def align(onset: Image, apex: Image) -> AlignedPair:
    (pair,) = PREPROCESSOR.align_pair(onset, apex)
    return pair


def found_faults(onset: Image, apex: Image) -> tuple[str, ...]:
    pair = align(onset, apex)
    return faults(pair.quality, pair.motion, LIMITS)


@cache
def good() -> AlignedPair:
    return align(FACE, SMILING)


def edge(width: float) -> np.ndarray:
    """Draw a vertical edge of 100 grey levels, (224, 224), whose slope is a Gaussian."""
    x = np.arange(224) - 111.5
    step = np.where(x > 0, 160.0, 60.0)
    row = cv2.GaussianBlur(np.tile(step, (9, 1)), (0, 0), width) if width else np.tile(step, (9, 1))
    return np.tile(np.rint(row[4]).astype(np.uint8), (224, 1))


def test_a_good_pair_has_neither_faults_nor_warnings() -> None:
    assert faults(good().quality, good().motion, LIMITS) == ()
    assert warnings(good().quality, good().motion, LIMITS) == ()


def test_the_measures_take_their_time_apart() -> None:
    assert good().timings_ms["quality"] > 0


@pytest.mark.parametrize("width", [1.5, 2.0, 3.0, 5.0])
def test_blur_is_the_width_of_an_edge(width: float) -> None:
    grey = edge(width)
    strip = np.zeros((224, 224), bool)
    strip[:, 108:116] = True  # three in a hundred of its pixels are the edge itself
    assert blur_px(grey, smoothed(grey), strip) == pytest.approx(width, abs=0.2)


def test_blur_is_not_fooled_by_noise_nor_by_smooth_skin() -> None:
    noise = np.random.default_rng(0).normal(0, 4, FACE.shape)
    noisy = np.clip(FACE + noise, 0, 255).astype(np.uint8)
    soft = cv2.GaussianBlur(FACE, (0, 0), 3.0)
    blurred_and_noisy = np.clip(soft + noise, 0, 255).astype(np.uint8)
    sharp, still_sharp, blurred = (
        align(frame, frame).quality.blur_px for frame in (FACE, noisy, blurred_and_noisy)
    )
    assert still_sharp == pytest.approx(sharp, abs=0.3)
    assert blurred > 2.5


def test_a_picture_without_edges_is_as_blurred_as_can_be() -> None:
    flat = np.full((224, 224), 128, np.uint8)
    assert blur_px(flat, smoothed(flat), EVERYTHING) == 10.0


def test_one_blurred_frame_of_two_is_enough_to_abstain() -> None:
    assert "blurred" in found_faults(FACE, cv2.GaussianBlur(FACE, (0, 0), 4.0))


def test_exposure_counts_black_and_white_and_the_spread_between() -> None:
    grey = np.full((10, 20), 128, np.uint8)
    grey[:, :2], grey[:, 2:6] = 0, 255
    assert exposure(grey, np.ones(grey.shape, bool)) == pytest.approx((0.1, 0.2, 255.0))
    inside = np.zeros(grey.shape, bool)
    inside[:, 6:] = True
    assert exposure(grey, inside) == (0.0, 0.0, 0.0)


def test_a_face_in_the_dark_abstains_and_dark_skin_does_not() -> None:
    in_the_dark = (FACE * 0.1).astype(np.uint8)
    assert "badly_exposed" in found_faults(in_the_dark, in_the_dark)
    dark_skin = draw_face(tone=0.5)
    assert "badly_exposed" not in found_faults(dark_skin, dark_skin)


def test_the_pose_of_a_turned_head_is_its_yaw_and_pitch() -> None:
    for yaw, pitch in ((0, 0), (25, 0), (-40, 0), (0, 20), (20, -15)):
        assert head_pose(turned_mesh(yaw, pitch)) == pytest.approx((yaw, pitch), abs=1.5)


@given(st.floats(-45, 45), st.floats(0.5, 2.0), st.floats(-50, 50))
def test_pose_does_not_depend_on_place_or_size(yaw: float, scale: float, shift: float) -> None:
    mesh = turned_mesh(yaw, 0)
    moved = np.float32(scale) * mesh + np.float32(shift)
    assert head_pose(moved) == pytest.approx(head_pose(mesh), abs=0.05)


def turned_mesh(yaw: float, pitch: float) -> np.ndarray:
    """Turn the mean head in depth and look at it: (468, 2), only its rigid points filled."""
    from model.quality import _HEAD, _RIGID  # noqa: PLC0415 - the head that is turned

    a, b = np.deg2rad(yaw), np.deg2rad(pitch)
    about_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]])
    mesh = np.zeros((468, 2), np.float32)
    mesh[list(_RIGID)] = 80 * (_HEAD @ (about_x @ about_y).T)[:, :2] + 112
    return mesh


def test_lenses_hide_the_eyes_and_leave_the_mouth() -> None:
    behind = FACE.copy()
    for x in (280, 360):
        cv2.ellipse(behind, (x, 224), (29, 24), 0, 0, 360, (25, 25, 30), -1)
    quality = align(behind, behind).quality
    assert quality.eyes_hidden > LIMITS.eyes_hidden.stop
    assert quality.mouth_hidden < 0.5
    assert align(FACE, FACE).quality.eyes_hidden < 0.1


def test_a_cloth_hides_the_mouth_and_leaves_the_eyes() -> None:
    pair = good()
    x, y = pair.face.landmarks[[61, 291, 13, 152]].round().astype(int).T
    masked = FACE.copy()
    masked[y[2] - 22 : y[3], x[0] - 20 : x[1] + 20] = (150, 190, 215)
    # The mesh of the open face, so that only the look of the mouth is asked.
    crop = PREPROCESSOR.align_face(masked, masked, pair.face)
    assert crop.quality.mouth_hidden > LIMITS.mouth_hidden.warn
    assert crop.quality.eyes_hidden < 0.1
    assert "occluded" in faults(crop.quality, crop.motion, LIMITS)


def test_closed_lids_are_no_cover() -> None:
    blinking = draw_face(lids=1.0)
    for pair in (align(FACE, blinking), align(blinking, FACE)):
        assert pair.quality.eyes_hidden < LIMITS.eyes_hidden.warn


def test_the_light_does_not_change_a_match_and_another_scene_does() -> None:
    brighter = np.clip(FACE * 1.15 + 5, 0, 255).astype(np.uint8)
    assert align(FACE, brighter).quality.mismatch < 0.01
    pair = align(FACE, background())
    assert pair.quality.mismatch > 0.3
    assert "misaligned" in faults(pair.quality, pair.motion, LIMITS)


def test_two_flat_pictures_show_nothing_to_match() -> None:
    flat = smoothed(np.full((224, 224), 90, np.uint8))
    assert mismatch(flat, flat, np.zeros((2, 224, 224), np.float32), EVERYTHING) == pytest.approx(1)


def test_a_head_that_moves_far_abstains() -> None:
    assert "head_motion" in found_faults(FACE, draw_face(centre=(330.0, 220.0)))


def test_a_grin_is_too_large_for_a_micro_expression() -> None:
    assert found_faults(FACE, draw_face(smile=14.0)) == ("too_large_motion",)


def test_a_small_face_is_told_first_and_then_refused() -> None:
    quality = good().quality
    for distance, told, refused in ((80.0, (), ()), (30.0, ("face_too_small",), ())):
        at = replace(quality, eye_distance_px=distance)
        assert (warnings(at, CALM, LIMITS), faults(at, CALM, LIMITS)) == (told, refused)
    tiny = replace(quality, eye_distance_px=20.0)
    assert warnings(tiny, CALM, LIMITS) == ()
    assert faults(tiny, CALM, LIMITS) == ("face_too_small",)


def test_reasons_come_in_one_order_whatever_is_wrong() -> None:
    bad = replace(good().quality, mouth_hidden=1.0, blur_px=9.0, dark=1.0, yaw_deg=-80.0)
    wild = Motion(mean_px=5.0, p95_px=20.0, head_px=30.0)
    assert faults(bad, wild, LIMITS) == (
        "occluded",
        "blurred",
        "badly_exposed",
        "turned_away",
        "head_motion",
        "too_large_motion",
    )


VALUES = st.floats(-1e3, 1e3)


@given(VALUES, VALUES, VALUES)
def test_no_value_is_stopped_that_is_not_warned_of(warn: float, stop: float, value: float) -> None:
    if warn == stop:
        with pytest.raises(ValueError, match="differ"):
            Limit(warn=warn, stop=stop)
        return
    limit = Limit(warn=warn, stop=stop)
    assert limit.warns(value) or not limit.stops(value)


def test_what_is_not_known_stops_nothing() -> None:
    unknown = Quality(
        **dict.fromkeys(Quality.__slots__, float("nan")) | {"more_faces": False},
    )
    blank = Motion(mean_px=float("nan"), p95_px=float("nan"), head_px=float("nan"))
    assert faults(unknown, blank, LIMITS) == warnings(unknown, blank, LIMITS) == ()


def test_a_clip_below_fifty_frames_a_second_is_warned_of() -> None:
    assert clip_warnings(30.0, LIMITS) == ("low_frame_rate",)
    assert clip_warnings(50.0, LIMITS) == ()


def test_limits_travel_with_the_spec() -> None:
    strict = replace(SPEC, quality=replace(LIMITS, blur_px=Limit(warn=0.5, stop=0.6)))
    assert ModelSpec.from_json(strict.to_json()).quality == strict.quality
    assert faults(good().quality, good().motion, strict.quality) == ("blurred",)


def test_shapes_are_checked() -> None:
    grey, mesh = np.zeros((224, 224), np.uint8), np.zeros((468, 2), np.float32)
    smooth = smoothed(grey)
    with pytest.raises(ShapeError):
        blur_px(grey, smooth, np.ones((4, 4), bool))
    with pytest.raises(ShapeError):
        exposure(np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), bool))
    with pytest.raises(ShapeError):
        head_pose(mesh[:10])
    with pytest.raises(ShapeError):
        hidden_parts(smooth, mesh[:10])
    with pytest.raises(ShapeError):
        mismatch(smooth, smooth, np.zeros((2, 3, 3), np.float32), EVERYTHING)
