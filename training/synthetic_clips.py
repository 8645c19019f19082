"""Synthetic clips: one picture of a face, moved through time, with the true onset and apex.

Clip i depends on the seed, on i, on the sorted list of faces, on the settings and on the
blendshapes, on nothing else: everything random about it but the noise of its pixels is drawn into
a `ClipPlan` before a pixel is touched. All ranges are ours unless said otherwise. Amounts are in
pixels of the 224-pixel aligned face, times in seconds from the first frame.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from training.action_units import draw_units
from training.data.pairs import NOTHING
from training.displacement import Field, head_turn
from training.face_mesh import FaceAxes
from training.nuisances import (
    Camera,
    Head,
    Light,
    Shot,
    draw_camera,
    draw_light,
    expose,
    happens,
)
from training.synthetic import CLASSES
from training.warp import (
    FACE_PIXELS,
    FacePatch,
    camera_transform,
    closed_lids,
    compose,
    head_transform,
    sample,
    softened,
    undo,
)

__all__ = [
    "Blink",
    "ClipKind",
    "ClipPlan",
    "Codec",
    "Course",
    "Wander",
    "encode_clip",
    "plan_clip",
    "render_frames",
]

ClipKind = Literal["micro", "still", "large"]
"""A micro-expression; none; or a movement that is too large and too long for one."""
Codec = Literal["h264", "mjpeg"]

_BLINK_CLOSED = 0.35
"""Part of a blink after which the lids are down: they fall faster than they rise."""
_STEP_PX = 2.5
"""A displacement that is larger is gone in parts of this size, so that it does not fold."""
_BLINK_STEPS = 4


@dataclass(frozen=True, slots=True)
class Course:
    """When an expression begins, is at its height, and has gone; seconds."""

    onset_s: float
    apex_s: float
    offset_s: float

    def intensity(self, time_s: float) -> float:
        """Return how much of the expression is there, 0 to 1: half a cosine up, half one down."""
        way = np.interp(time_s, (self.onset_s, self.apex_s, self.offset_s), (0.0, 1.0, 0.0))
        return float(0.5 - 0.5 * np.cos(np.pi * way))


@dataclass(frozen=True, slots=True)
class Blink:
    """One blink of both eyes; seconds."""

    start_s: float
    length_s: float

    def closed(self, time_s: float) -> float:
        """Return how far the lids are down, 0 to 1."""
        end = self.start_s + self.length_s
        middle = self.start_s + _BLINK_CLOSED * self.length_s
        return Course(self.start_s, middle, end).intensity(time_s)


@dataclass(frozen=True, slots=True)
class Wander:
    """A slow swing of one quantity about zero."""

    size: float
    period_s: float
    phase: float
    """Radians."""

    def at(self, time_s: float) -> float:
        """Return the quantity, at most `size` from zero."""
        return float(self.size * np.sin(2 * np.pi * time_s / self.period_s + self.phase))


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """Everything random about one clip."""

    index: int
    picture: int
    """Place in the sorted list of faces."""
    kind: ClipKind
    label: str
    units: dict[str, float]
    """The class's action units and their relative weights."""
    peak: float
    """Largest displacement of the expression at its apex; 0 in a still clip."""
    course: Course | None
    """None in a still clip."""
    blinks: tuple[Blink, ...]
    head: tuple[Wander, Wander, Wander, Wander, Wander, Wander]
    """Shift right, shift down, roll (radians), growth (relative), turn right, turn down."""
    light: Light
    """At the height of its swing."""
    light_swing: Wander
    camera: Camera
    """Its `quality` is not used: a clip is encoded as a whole."""
    fps: float
    seconds: float
    codec: Codec
    crf: int
    """Of H.264; of Motion JPEG, the quantiser plus 16."""

    @property
    def frames(self) -> int:
        """Return how many frames the clip has."""
        return max(2, round(self.seconds * self.fps))

    @property
    def truth(self) -> tuple[int, int, int | None] | None:
        """Return the frames nearest to onset, apex and offset; None in a still clip.

        The offset is None where the clip ends before it.
        """
        if self.course is None:
            return None
        course = self.course
        times = (course.onset_s, course.apex_s, course.offset_s)
        onset, apex, offset = (round(at * self.fps) for at in times)
        return onset, apex, offset if offset < self.frames else None


def plan_clip(
    seed: int,
    index: int,
    subjects: Sequence[Sequence[int]],
    rates: Sequence[float],
    seconds: float,
) -> ClipPlan:
    """Draw clip `index` of a seed.

    `subjects` holds the pictures of each subject, as places in the sorted list of faces; a
    subject is drawn evenly. `rates`, frames a second, are taken in turn, so that neighbours
    differ. Of ten clips about six hold a micro-expression, three nothing, one a large movement.
    """
    rng = np.random.default_rng([seed, index, 2])  # pairs draw from [seed, index]
    pictures = subjects[int(rng.integers(len(subjects)))]
    picture = int(pictures[int(rng.integers(len(pictures)))])
    kind: ClipKind = ("micro", "still", "large")[int(rng.choice(3, p=(0.6, 0.3, 0.1)))]
    still = kind == "still"
    label = NOTHING if still else CLASSES[int(rng.integers(len(CLASSES)))]
    return ClipPlan(
        index=index,
        picture=picture,
        kind=kind,
        label=label,
        units={} if still else draw_units(label, rng),
        peak=0.0 if still else _draw_peak(kind, rng),
        course=None if still else _draw_course(kind, seconds, rng),
        blinks=_draw_blinks(seconds, rng),
        head=_draw_head(rng),
        light=draw_light(rng),
        light_swing=_draw_wander(1.0, rng),
        camera=_even(draw_camera(rng)),
        fps=rates[index % len(rates)],
        seconds=seconds,
        codec="mjpeg" if happens(rng, 0.2) else "h264",
        crf=int(rng.integers(17, 27)),
    )


def _draw_peak(kind: ClipKind, rng: np.random.Generator) -> float:
    if kind == "large":
        return float(rng.uniform(6.0, 12.0))
    return float(0.3 + 2.7 * rng.beta(1.6, 2.0))  # as in pairs


def _draw_course(kind: ClipKind, seconds: float, rng: np.random.Generator) -> Course:
    """Draw a course that the clip holds whole, but of a large movement perhaps not its end.

    A micro-expression lasts at most half a second (Yan et al. 2013).
    """
    if kind == "large":
        rise, length = min(rng.uniform(0.4, 0.8), seconds / 2), rng.uniform(1.2, 2.5)
    else:
        rise = rng.uniform(0.08, 0.25)
        length = rng.uniform(max(0.2, rise + 0.08), 0.5)
    spare = max(seconds - length, 0.0)
    start = rng.uniform(0.2, 0.9) * spare
    return Course(float(start), float(start + rise), float(start + length))


def _draw_blinks(seconds: float, rng: np.random.Generator) -> tuple[Blink, ...]:
    blinks = []
    for _ in range(int(rng.choice(3, p=(0.5, 0.35, 0.15)))):
        length = float(rng.uniform(0.15, 0.3))
        blinks.append(Blink(float(rng.uniform(0, max(seconds - length, 0.0))), length))
    return tuple(blinks)


def _draw_wander(size: float, rng: np.random.Generator) -> Wander:
    return Wander(size, float(rng.uniform(1.5, 5.0)), float(rng.uniform(0, 2 * np.pi)))


def _draw_head(
    rng: np.random.Generator,
) -> tuple[Wander, Wander, Wander, Wander, Wander, Wander]:
    """Draw a head that nobody holds still: from onset to apex it moves as in pairs."""
    shift, turn = 4.0 * rng.beta(1.0, 2.0, 2), 1.5 * rng.beta(1.0, 3.0, 2)
    roll, growth = abs(rng.normal(0, 0.006)), abs(rng.normal(0, 0.004))
    sizes = (*shift, min(roll, 0.02), min(growth, 0.012), *turn)
    right, down, angle, larger, yaw, pitch = (_draw_wander(float(size), rng) for size in sizes)
    return right, down, angle, larger, yaw, pitch


def _even(camera: Camera) -> Camera:
    """Return the camera with a frame of even sides, as H.264's colours need."""
    side = 2 * round(camera.side * camera.eye_distance / 2)
    return replace(camera, side=side / camera.eye_distance)


@dataclass(frozen=True, slots=True, eq=False)
class _Scene:
    """What all frames of a clip share; displacements in pixels of the patch."""

    patch: FacePatch
    source: Field
    """(H, W, 3), BGR, softened to the frame's resolution."""
    to_frame: NDArray[np.float64]
    side: int
    expression: Field
    """At the apex."""
    lids: Field
    """Of closed eyes."""
    face_pixel: float


def render_frames(plan: ClipPlan, seed: int, patch: FacePatch) -> Iterator[NDArray[np.uint8]]:
    """Render a plan frame by frame, (H, W, 3), BGR; a grey camera's channels are alike.

    Every frame is resampled once from the picture, so that sharpness tells no moment apart.
    """
    axes = FaceAxes.of(patch.landmarks)
    face_pixel = axes.eye_distance / FACE_PIXELS
    to_frame, side = camera_transform(plan.camera, patch.landmarks, axes)
    scene = _Scene(
        patch=patch,
        source=softened(patch.image, plan.camera.eye_distance / axes.eye_distance),
        to_frame=to_frame,
        side=side,
        expression=patch.fields.combine(plan.units, plan.peak * face_pixel),
        lids=closed_lids(patch),
        face_pixel=face_pixel,
    )
    rng = np.random.default_rng([seed, plan.index, 3])
    for number in range(plan.frames):
        yield _frame(scene, plan, number / plan.fps, rng)


def _frame(
    scene: _Scene, plan: ClipPlan, time_s: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    right, down, angle, growth, yaw, pitch = (swing.at(time_s) for swing in plan.head)
    displacement, steps = _displacement(scene, plan, time_s, (yaw, pitch))
    head = Head(shift=(right, down), angle=angle, scale=1 + growth, turn=(yaw, pitch))
    transform = compose(head_transform(head, plan.camera, scene.side), scene.to_frame)
    places = undo(transform, displacement, scene.side, steps)
    light = _light(plan.light, plan.light_swing.at(time_s))
    seen = expose(sample(scene.source, places), plan.camera, light, _SHARP, rng)
    return seen if seen.ndim == 3 else np.asarray(cv2.cvtColor(seen, cv2.COLOR_GRAY2BGR), np.uint8)  # noqa: PLR2004 - grey cameras record planes


_SHARP = Shot(blur_length=0.0, blur_angle=0.0)


def _displacement(
    scene: _Scene, plan: ClipPlan, time_s: float, turn: tuple[float, float]
) -> tuple[Field, int]:
    """Return what stands where, pixels of the patch, and the parts to undo it in."""
    amount = plan.course.intensity(time_s) if plan.course else 0.0
    closed = max((blink.closed(time_s) for blink in plan.blinks), default=0.0)
    whole = np.float32(amount) * scene.expression
    yaw, pitch = (scene.face_pixel * part for part in turn)
    whole += head_turn(scene.patch.landmarks, scene.patch.fields.shape, yaw, pitch)
    steps = max(1, int(np.ceil(amount * plan.peak / _STEP_PX)))
    if closed:
        whole += np.float32(closed) * scene.lids
        steps = max(steps, _BLINK_STEPS)
    return whole, steps


def _light(light: Light, part: float) -> Light:
    """Return a part, -1 to 1, of a change of light."""
    across, down = light.slope
    return Light(
        gain=1 + part * (light.gain - 1),
        gamma=1 + part * (light.gamma - 1),
        slope=(part * across, part * down),
    )


def encode_clip(plan: ClipPlan, frames: Iterator[NDArray[np.uint8]]) -> bytes:
    """Encode (H, W, 3) BGR frames as the plan says: an MP4 file."""
    file = io.BytesIO()
    name, pixels, options = _encoder(plan)
    with av.open(file, "w", format="mp4") as muxer:
        rate = Fraction(plan.fps).limit_denominator(1001)
        video = muxer.add_stream(name, rate=rate, options=options)
        video.codec_context.thread_count = 1  # the same bytes on every machine
        for number, frame in enumerate(frames):
            if not number:
                video.height, video.width = frame.shape[:2]
                video.pix_fmt = pixels
            muxer.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
        muxer.mux(video.encode())
    return file.getvalue()


def _encoder(
    plan: ClipPlan,
) -> tuple[Literal["libx264", "mjpeg"], str, dict[str, str]]:
    if plan.codec == "mjpeg":
        quantiser = str(max(2, plan.crf - 16))
        return "mjpeg", "yuvj420p", {"qmin": quantiser, "qmax": quantiser}
    # As a camera encodes: it cannot look ahead. x264 that does gives other bytes at every run.
    live = {"preset": "veryfast", "bf": "0", "rc-lookahead": "0"}
    return "libx264", "yuv420p", live | {"crf": str(plan.crf)}
