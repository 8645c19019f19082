"""Synthetic pairs: an onset and an apex made from one picture of a face, with the true flow.

Pair i depends on the seed, on i, on the sorted list of faces, on `none_fraction` and on the
blendshapes, on nothing else: everything random about it but the noise of its pixels is drawn into
a `PairPlan` before a pixel is touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.action_units import UNITS, draw_units
from training.data.pairs import NOTHING
from training.displacement import Field, head_turn
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
from training.warp import (
    FACE_PIXELS,
    FacePatch,
    apply,
    camera_transform,
    closed_lids,
    compose,
    head_transform,
    sample,
    sample_field,
    softened,
    undo,
)

__all__ = ["CLASSES", "FacePatch", "Pair", "PairPlan", "plan_pair", "render_pair"]

CLASSES = ("negative", "positive", "surprise")

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
    to_onset, side = camera_transform(plan.camera, patch.landmarks, axes)
    to_apex = compose(head_transform(plan.head, plan.camera, side), to_onset)
    source = softened(patch.image, plan.camera.eye_distance / axes.eye_distance)
    onset_places = undo(to_onset, before, side)
    apex_places = undo(to_apex, after, side)
    rng = np.random.default_rng([seed, plan.index, 1])
    frames = [
        expose(sample(source, places), plan.camera, light, shot, rng)
        for places, light, shot in zip(
            (onset_places, apex_places), (_STEADY, plan.light), plan.shots, strict=True
        )
    ]
    x, y = np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32))
    arrived = onset_places + sample_field(after, onset_places)
    flow = apply(to_apex, arrived) - np.stack([x, y])
    moved = sample_field(expression, onset_places)
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
        lids = closed_lids(patch)
        before = before + np.float32(plan.blink[0]) * lids
        after += np.float32(plan.blink[1]) * lids
    if any(plan.head.turn):
        yaw, pitch = (face_pixel * amount for amount in plan.head.turn)
        after += head_turn(patch.landmarks, (height, width), yaw, pitch)
    return before, after, expression


def _rounded(flow: Field) -> Field:
    return np.asarray(np.rint(flow / _FLOW_STEP) * _FLOW_STEP, np.float32)
