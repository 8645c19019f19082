from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from drawn_face import draw_face
from numpy.typing import NDArray

from model.face import FaceFinder
from training.action_units import UNITS
from training.displacement import head_turn, unit_fields
from training.face_mesh import FaceAxes
from training.nuisances import Head, Light, Shot
from training.synthetic import CLASSES, FacePatch, PairPlan, plan_pair, render_pair
from training.warp import FACE_PIXELS

SUBJECTS = [[0]]
QUIET = {
    "light": Light(gain=1.0, gamma=1.0, slope=(0.0, 0.0)),
    "shots": (Shot(blur_length=0.0, blur_angle=0.0),) * 2,
}
STILL = Head(shift=(0.0, 0.0), angle=0.0, scale=1.0, turn=(0.0, 0.0))


@pytest.fixture(scope="module")
def patch() -> FacePatch:
    picture = draw_face()[:, 80:560]
    landmarks = FaceFinder().find(np.ascontiguousarray(picture))[0].landmarks.astype(float)
    fields = unit_fields(landmarks, picture.shape[:2])
    return FacePatch(np.ascontiguousarray(picture[..., ::-1]), landmarks, fields)


def plan_of(label: str, *, quiet: bool = True, **changes: Any) -> PairPlan:  # noqa: ANN401 - any field
    """Return the first plan of a label, without noise if quiet."""
    plans = (plan_pair(7, index, SUBJECTS, 0.25) for index in range(1000))
    plan = next(plan for plan in plans if plan.label == label)
    if quiet:
        camera = replace(plan.camera, read_noise=0.0, shot_noise=0.0, quality=100, defocus=0.0)
        plan = replace(plan, camera=camera, **QUIET)
    return replace(plan, **changes)


def grey(data: bytes) -> NDArray[np.float32]:
    frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    return np.asarray(frame, np.float32)


def magnitude(flow: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.hypot(flow[0], flow[1])


def test_combined_field_peaks_at_the_asked_displacement(patch: FacePatch) -> None:
    field = patch.fields.combine({"12L": 0.8, "6R": 0.4}, 2.5)
    assert field.shape == (2, 480, 480)
    assert magnitude(field).max() == pytest.approx(2.5, rel=1e-4)


def test_field_without_units_is_zero(patch: FacePatch) -> None:
    assert not patch.fields.combine({}, 2.5).any()
    assert not patch.fields.combine({"12L": 1.0}, 0.0).any()


@pytest.mark.parametrize("unit", UNITS)
def test_background_does_not_move(patch: FacePatch, unit: str) -> None:
    field = magnitude(patch.fields.combine({unit: 1.0}, 3.0))
    oval_centre = patch.landmarks[[10, 152, 234, 454]].mean(axis=0)
    radius = 1.35 * np.linalg.norm(patch.landmarks - oval_centre, axis=1).max()
    y, x = np.mgrid[:480, :480]
    outside = np.hypot(x - oval_centre[0], y - oval_centre[1]) > radius
    assert outside.any()
    assert field[outside].max() < 0.01


def test_displacement_is_smooth_enough_to_undo(patch: FacePatch) -> None:
    for unit in UNITS:
        peak = 3.0 * FaceAxes.of(patch.landmarks).eye_distance / FACE_PIXELS
        field = patch.fields.combine({unit: 1.0}, peak)
        steepest = max(np.abs(np.diff(field, axis=axis)).max() for axis in (1, 2))
        assert steepest < 0.9, unit  # at 1 the warp would fold


def test_turned_head_moves_the_nose_and_not_the_rim(patch: FacePatch) -> None:
    field = head_turn(patch.landmarks, (480, 480), yaw=1.0, pitch=-0.5)
    x, y = np.rint(patch.landmarks[[4, 10, 152]].mean(axis=0)).astype(int)
    np.testing.assert_allclose(field[:, y, x], (1.0, -0.5), atol=0.01)
    assert not field[:, 0, 0].any()


@pytest.mark.parametrize("label", CLASSES)
def test_apex_warped_back_along_the_true_flow_is_the_onset(patch: FacePatch, label: str) -> None:
    plan = plan_of(label, peak=3.0)
    pair = render_pair(plan, 7, patch)
    onset, apex = grey(pair.onset), grey(pair.apex)
    assert pair.flow.shape == (2, *onset.shape)
    y, x = np.mgrid[: onset.shape[0], : onset.shape[1]].astype(np.float32)
    back = cv2.remap(apex, x + pair.flow[0], y + pair.flow[1], cv2.INTER_CUBIC)
    inner = (slice(12, -12), slice(12, -12))
    moved = np.abs(apex - onset)[inner].mean()
    left = np.abs(back - onset)[inner].mean()
    assert left < 0.6  # JPEG at quality 100, two roundings, two interpolations
    assert left < 0.5 * moved


def test_expression_peaks_at_the_planned_pixels_of_an_aligned_face(patch: FacePatch) -> None:
    plan = plan_of("positive", peak=2.0)
    pair = render_pair(plan, 7, patch)
    frame_pixels = 2.0 * plan.camera.eye_distance / FACE_PIXELS
    assert magnitude(pair.expression).max() == pytest.approx(frame_pixels, rel=0.02)


def test_flow_of_a_still_head_is_the_expression(patch: FacePatch) -> None:
    plan = plan_of("surprise", head=STILL, stray={}, stray_peak=0.0, blink=(0.0, 0.0))
    pair = render_pair(plan, 7, patch)
    np.testing.assert_allclose(pair.flow, pair.expression, atol=0.02)


def test_nothing_has_no_expression(patch: FacePatch) -> None:
    plan = plan_of("none", quiet=False)
    assert plan.units == {}
    assert plan.stray == {}
    assert plan.peak == 0.0
    pair = render_pair(plan, 7, patch)
    assert not pair.expression.any()
    assert magnitude(pair.flow).max() > 0, "the head still moves"


def test_nothing_without_nuisances_is_the_same_frame_twice(patch: FacePatch) -> None:
    plan = plan_of("none", head=STILL, blink=(0.0, 0.0))
    pair = render_pair(plan, 7, patch)
    assert pair.onset == pair.apex
    assert not pair.flow.any()


def test_blink_is_flow_but_not_expression(patch: FacePatch) -> None:
    plan = plan_of("none", head=STILL, blink=(0.0, 0.5))
    pair = render_pair(plan, 7, patch)
    assert not pair.expression.any()
    assert pair.flow[1].max() > 1.0, "the upper lid goes down"


def test_head_shift_is_the_flow_of_the_background(patch: FacePatch) -> None:
    shift = Head(shift=(1.0, -0.5), angle=0.0, scale=1.0, turn=(0.0, 0.0))
    plan = plan_of("none", head=shift, blink=(0.0, 0.0))
    pair = render_pair(plan, 7, patch)
    scale = plan.camera.eye_distance / FACE_PIXELS
    expected = np.broadcast_to(np.array([[[scale]], [[-0.5 * scale]]]), pair.flow.shape)
    np.testing.assert_allclose(pair.flow, expected, atol=0.01)


def test_plan_depends_on_seed_and_index_only() -> None:
    subjects = [[0, 1], [2]]
    assert plan_pair(7, 5, subjects, 0.15) == plan_pair(7, 5, subjects, 0.15)
    assert plan_pair(7, 5, subjects, 0.15) != plan_pair(7, 6, subjects, 0.15)
    assert plan_pair(7, 5, subjects, 0.15) != plan_pair(8, 5, subjects, 0.15)


def test_labels_are_drawn_evenly_beside_the_share_of_nothing() -> None:
    labels = [plan_pair(1, index, SUBJECTS, 0.15).label for index in range(2000)]
    assert labels.count("none") / 2000 == pytest.approx(0.15, abs=0.025)
    for label in CLASSES:
        assert labels.count(label) / 2000 == pytest.approx(0.85 / 3, abs=0.03)


def test_peaks_are_those_of_micro_expressions() -> None:
    plans = [plan_pair(1, index, SUBJECTS, 0.0) for index in range(500)]
    peaks = [plan.peak for plan in plans]
    assert min(peaks) >= 0.3
    assert max(peaks) <= 3.0
    assert np.ptp(peaks) > 2
    assert max(plan.rest for plan in plans) <= 0.2


def test_a_subject_of_many_pictures_is_drawn_by_their_square_root() -> None:
    subjects = [[0], list(range(1, 10))]
    drawn = [plan_pair(1, index, subjects, 0.15).picture for index in range(1000)]
    assert drawn.count(0) / 1000 == pytest.approx(0.25, abs=0.05)
