"""Synthetic pairs: an onset and an apex made from one picture of a face, with the true flow.

Pair i depends on the seed, on i, on the sorted list of faces, on `none_fraction` and on the
blendshapes, on nothing else: everything random about it but the noise of its pixels is drawn into
a `PairPlan` before a pixel is touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model.spec import Alignment
from training.action_units import UNITS, draw_units
from training.data.pairs import NOTHING
from training.displacement import Field, UnitFields, head_turn
from training.face_mesh import FaceAxes
from training.nuisances import (
    Camera,
    Head,
    Light,
    Shot,
    draw_camera,
    draw_head,
    draw_light,
    draw_shot,
    encode,
    expose,
    happens,
)

__all__ = ["CLASSES", "FacePatch", "Pair", "PairPlan", "plan_pair", "render_pair"]

CLASSES = ("negative", "positive", "surprise")

FACE_PIXELS = 224 * Alignment().eye_distance
"""Eye distance of the 224-pixel aligned face: amounts are given in its pixels."""

_INVERSE_STEPS = 6
_FLOW_STEP = 1 / 256
"""True flow is rounded to this part of a pixel, so that it compresses."""


@dataclass(frozen=True, slots=True)
class PairPlan:
    """Everything random about one pair. Lengths are in face pixels."""

    index: int
    picture: int
    """Place in the sorted list of faces."""
    label: str
    units: dict[str, float]
    """The class's action units and their relative weights."""
    peak: float
    """Largest displacement of the expression; 0 for `none`."""
    rest: float
    """Part of the expression already there at the onset."""
    stray: dict[str, float]
    """Units that have nothing to do with the class."""
    stray_peak: float
    blink: tuple[float, float]
    """How far the lids are closed at onset and apex, 0 to 1."""
    camera: Camera
    head: Head
    light: Light
    shots: tuple[Shot, Shot]


@dataclass(frozen=True, slots=True, eq=False)
class FacePatch:
    """One picture, at working resolution, with its displacement fields."""

    image: NDArray[np.uint8]
    """(H, W, 3), BGR."""
    landmarks: NDArray[np.float64]
    """(468, 2), pixels of the patch."""
    fields: UnitFields


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """What is written to disk for one pair."""

    onset: bytes
    """A JPEG file."""
    apex: bytes
    flow: Field
    """(2, H, W), pixels, onset to apex, head motion and blinks included."""
    expression: Field
    """(2, H, W): what the expression alone does."""


def plan_pair(
    seed: int, index: int, subjects: Sequence[Sequence[int]], none_fraction: float
) -> PairPlan:
    """Draw pair `index` of a seed.

    `subjects` holds the pictures of each subject, as places in the sorted list of faces.
    A subject is drawn by the square root of its pictures, so that neither the many subjects
    of one picture nor the few of many rule the set.
    """
    rng = np.random.default_rng([seed, index])
    shares = np.sqrt([len(pictures) for pictures in subjects])
    pictures = subjects[int(rng.choice(len(subjects), p=shares / shares.sum()))]
    picture = pictures[int(rng.integers(len(pictures)))]
    nothing = happens(rng, none_fraction)
    label = NOTHING if nothing else CLASSES[rng.integers(len(CLASSES))]
    units = {} if nothing else draw_units(label, rng)
    has_stray = not nothing and happens(rng, 0.3)
    return PairPlan(
        index=index,
        picture=picture,
        label=label,
        units=units,
        peak=0.0 if nothing else float(0.3 + 2.7 * rng.beta(1.6, 2.0)),
        rest=0.0 if nothing or happens(rng, 0.5) else float(rng.uniform(0, 0.2)),
        stray={UNITS[rng.integers(len(UNITS))]: 1.0} if has_stray else {},
        stray_peak=float(rng.uniform(0.05, 0.25)) if has_stray else 0.0,
        blink=_draw_blink(rng, 0.03 if nothing else 0.1),
        camera=draw_camera(rng),
        head=draw_head(rng),
        light=draw_light(rng),
        shots=(draw_shot(rng), draw_shot(rng)),
    )


def _draw_blink(rng: np.random.Generator, share: float) -> tuple[float, float]:
    if not happens(rng, share):
        return 0.0, 0.0
    closed = float(rng.uniform(0.1, 0.6))
    return (closed, 0.0) if happens(rng, 0.5) else (0.0, closed)


def render_pair(plan: PairPlan, seed: int, patch: FacePatch) -> Pair:
    """Render both frames of a plan and their true flow.

    A point p of the patch stands at camera(p + before) in the onset and at
    head(camera(p + after)) in the apex. Both frames are resampled once, alike, so that
    sharpness does not tell them apart.
    """
    axes = FaceAxes.of(patch.landmarks)
    face_pixel = axes.eye_distance / FACE_PIXELS
    before, after, expression = _displacements(plan, patch, face_pixel)
    to_onset, side = _camera_transform(plan.camera, patch.landmarks, axes)
    to_apex = _compose(_head_transform(plan.head, plan.camera, side), to_onset)
    source = _softened(patch.image, plan.camera.eye_distance / axes.eye_distance)
    onset_places = _undo(to_onset, before, side)
    apex_places = _undo(to_apex, after, side)
    rng = np.random.default_rng([seed, plan.index, 1])
    frames = [
        expose(_sample(source, places), plan.camera, light, shot, rng)
        for places, light, shot in zip(
            (onset_places, apex_places), (_STEADY, plan.light), plan.shots, strict=True
        )
    ]
    x, y = np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32))
    arrived = onset_places + _sample_field(after, onset_places)
    flow = _apply(to_apex, arrived) - np.stack([x, y])
    moved = _sample_field(expression, onset_places)
    linear = to_onset[:, :2].astype(np.float32)
    return Pair(
        onset=encode(frames[0], plan.camera.quality),
        apex=encode(frames[1], plan.camera.quality),
        flow=_rounded(flow),
        expression=_rounded(np.tensordot(linear, moved, axes=1)),
    )


_STEADY = Light(gain=1.0, gamma=1.0, slope=(0.0, 0.0))


def _displacements(
    plan: PairPlan, patch: FacePatch, face_pixel: float
) -> tuple[Field, Field, Field]:
    """Return displacement at onset and apex, and the expression's part, in patch pixels."""
    height, width = patch.image.shape[:2]
    expression = patch.fields.combine(plan.units, plan.peak * face_pixel)
    before = np.float32(plan.rest) * expression
    after = before + expression
    if plan.stray:
        after += patch.fields.combine(plan.stray, plan.stray_peak * face_pixel)
    if any(plan.blink):
        opening = float(np.linalg.norm(patch.landmarks[[159, 386]] - patch.landmarks[[145, 374]]))
        lids = patch.fields.combine({"43L": 1.0, "43R": 1.0}, opening / np.sqrt(2))
        before = before + np.float32(plan.blink[0]) * lids
        after += np.float32(plan.blink[1]) * lids
    if any(plan.head.turn):
        yaw, pitch = (face_pixel * amount for amount in plan.head.turn)
        after += head_turn(patch.landmarks, (height, width), yaw, pitch)
    return before, after, expression


def _camera_transform(
    camera: Camera, landmarks: NDArray[np.float64], axes: FaceAxes
) -> tuple[NDArray[np.float64], int]:
    """Return the (2, 3) map from patch to frame, and the frame's side."""
    side = round(camera.side * camera.eye_distance)
    scale = camera.eye_distance / axes.eye_distance
    cos, sin = scale * np.cos(camera.angle), scale * np.sin(camera.angle)
    linear = np.array([[cos, -sin], [sin, cos]])
    middle = landmarks[[10, 152, 234, 454]].mean(axis=0)
    place = (side - 1) / 2 + np.array(camera.shift) * camera.eye_distance
    return np.column_stack([linear, place - linear @ middle]), side


def _head_transform(head: Head, camera: Camera, side: int) -> NDArray[np.float64]:
    """Return the (2, 3) motion of the head, in frame pixels about the frame's middle."""
    cos, sin = head.scale * np.cos(head.angle), head.scale * np.sin(head.angle)
    linear = np.array([[cos, -sin], [sin, cos]])
    middle = np.full(2, (side - 1) / 2)
    shift = np.array(head.shift) * camera.eye_distance / FACE_PIXELS
    return np.column_stack([linear, middle + shift - linear @ middle])


def _compose(outer: NDArray[np.float64], inner: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = outer[:, :2] @ inner[:, :2]
    return np.column_stack([linear, outer[:, :2] @ inner[:, 2] + outer[:, 2]])


def _apply(transform: NDArray[np.float64], places: Field) -> Field:
    """Map (2, H, W) places by a (2, 3) transform."""
    linear, shift = transform[:, :2].astype(np.float32), transform[:, 2].astype(np.float32)
    return np.asarray(np.tensordot(linear, places, axes=1) + shift[:, None, None], np.float32)


def _undo(transform: NDArray[np.float64], displacement: Field, side: int) -> Field:
    """Find the patch point p whose transform(p + displacement(p)) is each frame pixel.

    Returns (2, side, side) places. Fixed-point iteration: displacements change by far less
    than a pixel per pixel, so it converges.
    """
    x, y = np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32))
    back = np.asarray(cv2.invertAffineTransform(transform), np.float64)
    target = _apply(back, np.stack([x, y]))
    places = target
    for _ in range(_INVERSE_STEPS):
        places = target - _sample_field(displacement, places)
    return places


def _sample_field(field: Field, places: Field) -> Field:
    """Read a (2, H, W) field at (2, h, w) places, bilinearly; zero outside."""
    interleaved = np.dstack([field[0], field[1]])
    read = cv2.remap(interleaved, places[0], places[1], cv2.INTER_LINEAR)
    return np.asarray(read.transpose(2, 0, 1), np.float32)


def _sample(source: Field, places: Field) -> Field:
    read = cv2.remap(
        source, places[0], places[1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(read, np.float32)


def _softened(image: NDArray[np.uint8], scale: float) -> Field:
    """Return the picture as float, without the detail that shrinking by `scale` would alias."""
    picture = image.astype(np.float32)
    if scale > 0.9:  # noqa: PLR2004 - cubic sampling copes with so little
        return picture
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), 0.45 / scale), np.float32)


def _rounded(flow: Field) -> Field:
    return np.asarray(np.rint(flow / _FLOW_STEP) * _FLOW_STEP, np.float32)
