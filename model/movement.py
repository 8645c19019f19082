"""How far a face moved between two aligned crops, the head's own motion left out."""

from dataclasses import dataclass
from math import nan

import cv2
import numpy as np
from numpy.typing import NDArray

from model.errors import ShapeError
from model.face import eye_centres
from model.flow import RigidMotion, magnitude, remove_rigid_motion

__all__ = [
    "FOLLOWED_LANDMARKS",
    "FOLLOWED_SIDE",
    "FaceRegions",
    "Motion",
    "motion_of",
    "region_movement",
    "residual_motion",
]

FloatArray = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Motion:
    """How far the face moved from onset to apex, in pixels of the aligned crop."""

    mean_px: float
    """Mean residual motion inside the face's outline, the head's own motion removed."""
    p95_px: float
    """95th percentile of the same."""
    head_px: float
    """Mean motion of the head, which was removed."""
    moved_px: float = nan
    """How far the part of the face that moved most went, by `region_movement`, or half of what the
    upper lids rose: noise, blinks and a head that turns do not count. The motion gate reads it.
    NaN where only a flow is known."""


def residual_motion(total: FloatArray, face: Mask | None = None) -> tuple[FloatArray, Motion]:
    """Remove the head's motion from a flow, and measure what is left inside the face.

    Convention: total is (2, H, W) in pixels of the crop; face is the (H, W) mask of the face,
    everything when None or empty. Returns the residual flow (2, H, W), and its measures, of
    which `moved_px` takes the pictures themselves. Raises: ShapeError.
    """
    flow, head = remove_rigid_motion(total, face)
    return flow, motion_of(flow, head, face)


def motion_of(flow: FloatArray, head: RigidMotion, face: Mask | None = None) -> Motion:
    """Measure a residual flow inside the face; convention and `moved_px` as `residual_motion`."""
    moved = magnitude(flow)
    if face is not None and face.any():
        moved = moved[face]
    mean, p95 = float(moved.mean()), float(np.percentile(moved, 95))
    return Motion(mean_px=mean, p95_px=p95, head_px=head.mean_px)


# All below works on crops shrunk to this side: motion is asked of regions, not of pixels.
_SIDE = 112
FOLLOWED_SIDE = _SIDE
"""Of the crops that `FaceRegions` takes."""
FOLLOWED_LANDMARKS = (
    *(70, 63, 105, 66, 107, 336, 296, 334, 293, 300),  # brows
    *(230, 120, 117, 50, 205, 450, 349, 346, 280, 425),  # below the eyes, cheeks
    *(129, 358),  # wings of the nose
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),  # round the mouth
    *(199, 200),  # chin
)
"""Mesh landmarks that the spotter looks at: no lids, which blink."""
_SMOOTHING = 1.0
"""Standard deviation of the smoothing before gradients, pixels of the shrunk crop."""
_SURROUNDINGS = 6.0
"""Standard deviation of the window whose mean and contrast are taken out, likewise."""
_CONTRAST_FLOOR = 15.0
"""Grey levels: noise of skin with less contrast is not stretched into a texture."""
_REGION = 4.0
"""Standard deviation of a region, pixels of the shrunk crop; a tenth of the eye distance."""
_TEXTURE_PRIOR = 0.005
"""Squared gradient of normalised contrast below which a region has nothing to tell motion by."""
_PERCENTILE = 98.0
_ROBUST_STEPS = 8
_CLIP_STEPS = 4
"""Likewise for each frame of a clip."""
_GRID = 6
"""Every so many pixels, the motion of a clip's frame is looked at for turns of the head."""
_RIDGE = 1e-6
_ROBUST_FLOOR_PX = 0.01


def region_movement(
    onset: NDArray[np.uint8],
    apex: NDArray[np.uint8],
    head: FloatArray,
    landmarks: FloatArray,
    face: Mask,
) -> float:
    """Return how far the part of a face that moved most went between two aligned crops.

    Ours. The apex is taken back along the head's motion; each region's motion then solves a
    regularised least-squares problem of brightness constancy (Lucas and Kanade 1981) on contrast
    relative to its surroundings, which a drift of the light leaves alone. Where skin has no texture
    the solution shrinks to zero, where a flow field would show noise. What a turn of the head in
    depth and a similarity explain of this field goes, and the 98th percentile of the rest is
    returned. Eyes and lids are left out. Motion of many pixels is underestimated.

    Convention: onset and apex are (S, S) grey; head is (2, S, S), the head's part of the flow in
    pixels of the crop; landmarks are (468, 2), pixels of the crop; face is the (S, S) mask of its
    outline. Returns pixels of the crop, 0 for a face outside of it. Raises: ShapeError.
    """
    side = onset.shape[0]
    if not onset.shape == apex.shape == face.shape == head.shape[1:] == (side, side):
        shapes = (onset.shape, apex.shape, face.shape, head.shape)
        raise ShapeError(f"onset, apex, face are (S, S), head is (2, S, S): {shapes}")
    seen = _shrunk((face & ~_eyes(landmarks, side)).astype(np.float32)) > 0.5  # noqa: PLR2004 - half of a pixel
    if not seen.any():
        return 0.0
    scale = _SIDE / side
    y, x = np.mgrid[:_SIDE, :_SIDE].astype(np.float32)
    shift_x, shift_y = (scale * _shrunk(part) for part in head)
    returned = cv2.remap(
        _shrunk(apex.astype(np.float32)),
        x + shift_x,
        y + shift_y,
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    before = _contrast(_shrunk(onset.astype(np.float32)), seen)
    after = _contrast(np.asarray(returned, np.float32), seen)
    motion = _region_motion(before, after, seen)
    # A shrunk pixel x covers crop pixels (x + ½) / scale - ½.
    points = (np.stack([x, y], axis=-1)[seen] + 0.5) / scale - 0.5
    turns = _Turns.of(points, landmarks, slice(None, None, _SAMPLE_STRIDE))
    left = turns.without(motion[:, seen] / scale, _ROBUST_STEPS)
    return float(np.percentile(np.hypot(*left), _PERCENTILE))


class FaceRegions:
    """The regions of one face in one crop, as they can be followed through many others.

    What `region_movement` measures between two frames, for a clip: each region's own motion
    against the crop, solved alike, at some places of the face.
    """

    def __init__(self, onset: NDArray[np.uint8], landmarks: FloatArray) -> None:
        """Prepare what does not change with the frame.

        Convention: onset is (112, 112) grey; landmarks are (468, 2), pixels of it.
        Raises: ShapeError.
        """
        if onset.shape != (_SIDE, _SIDE):
            raise ShapeError(f"the crop of a face is {_SIDE} pixels a side, got {onset.shape}")
        hull = cv2.convexHull(landmarks.round().astype(np.int32))
        outline = np.zeros((_SIDE, _SIDE), np.uint8)
        cv2.fillConvexPoly(outline, hull, 1)
        self._seen = outline.astype(bool) & ~_eyes(landmarks, _SIDE)
        self._before = _contrast(onset.astype(np.float32), self._seen)
        self._y, self._x = np.mgrid[:_SIDE, :_SIDE].astype(np.float32)
        grid = np.zeros((_SIDE, _SIDE), bool)
        grid[::_GRID, ::_GRID] = True
        fitted = np.stack([self._x, self._y], axis=-1)[grid & self._seen]
        places = landmarks[list(FOLLOWED_LANDMARKS)].clip(0, _SIDE - 1)
        points = np.concatenate([fitted, places]).astype(np.float32)
        self._columns, self._rows = points.round().astype(int).T
        self._fitted = len(fitted)
        self._turns = _Turns.of(points, landmarks, slice(0, self._fitted))

    def moved(self, apex: NDArray[np.uint8], head: RigidMotion) -> FloatArray:
        """Return (N, 2): how far each of `FOLLOWED_LANDMARKS` went by itself, (x, y), pixels.

        Convention: apex is (112, 112) grey, in the transform of the onset; head is the head's
        motion between the two.
        """
        middle = np.float32((_SIDE - 1) / 2)
        across, down = head.at(self._x - middle, self._y - middle)
        returned = cv2.remap(
            apex.astype(np.float32),
            self._x + across,
            self._y + down,
            cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REPLICATE,
        )
        after = _contrast(np.asarray(returned, np.float32), self._seen)
        motion = _region_motion(self._before, after, self._seen)[:, self._rows, self._columns]
        return self._turns.without(motion, _CLIP_STEPS)[:, self._fitted :].T


def _shrunk(picture: FloatArray) -> FloatArray:
    return np.asarray(cv2.resize(picture, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), np.float32)


def _smooth(picture: FloatArray, deviation: float) -> FloatArray:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), deviation), np.float32)


def _contrast(grey: FloatArray, seen: Mask) -> FloatArray:
    """Return a smoothed picture relative to the mean and contrast of what is seen around."""
    weight = seen.astype(np.float32)
    among = np.maximum(_smooth(weight, _SURROUNDINGS), np.float32(1e-3))
    grey = _smooth(grey, _SMOOTHING)
    rest = np.asarray(grey - _smooth(weight * grey, _SURROUNDINGS) / among, np.float32)
    spread = _smooth(weight * rest**2, _SURROUNDINGS) / among + np.float32(_CONTRAST_FLOOR**2)
    return np.asarray(rest / np.sqrt(spread), np.float32)


_LID_WIDTH, _LID_HEIGHT, _LID_RISE = 0.68, 0.4, 0.06
"""Half axes of the ellipse over eye and lids, and how far it stands above the middle of the eye's
corners, in distances between these corners."""


def _eyes(landmarks: FloatArray, side: int) -> Mask:
    """Return the (S, S) mask of eyes and lids, which blink."""
    mask = np.zeros((side, side), np.uint8)
    for centre, (right, left) in zip(eye_centres(landmarks), ((33, 133), (362, 263)), strict=True):
        along = landmarks[left] - landmarks[right]
        width = float(np.hypot(*along))
        middle = (round(float(centre[0])), round(float(centre[1]) - _LID_RISE * width))
        axes = (round(_LID_WIDTH * width), round(_LID_HEIGHT * width))
        tilt = float(np.degrees(np.arctan2(along[1], along[0])))
        cv2.ellipse(mask, middle, axes, tilt, 0, 360, 1, -1)
    return mask.astype(bool)


def _region_motion(before: FloatArray, after: FloatArray, seen: Mask) -> FloatArray:
    """Solve every region's motion, (2, H, W) in pixels of the shrunk crop."""
    middle = (before + after) / 2
    step_x = np.asarray(cv2.Sobel(middle, cv2.CV_32F, 1, 0, scale=1 / 8), np.float32)
    step_y = np.asarray(cv2.Sobel(middle, cv2.CV_32F, 0, 1, scale=1 / 8), np.float32)
    weight = seen.astype(np.float32)
    change = (before - after) * weight
    prior = np.float32(_TEXTURE_PRIOR)
    xx = _smooth(step_x * step_x * weight, _REGION) + prior
    yy = _smooth(step_y * step_y * weight, _REGION) + prior
    xy = _smooth(step_x * step_y * weight, _REGION)
    bx, by = _smooth(step_x * change, _REGION), _smooth(step_y * change, _REGION)
    determinant = xx * yy - xy * xy
    across, down = (yy * bx - xy * by) / determinant, (xx * by - xy * bx) / determinant
    return np.stack([across, down]).astype(np.float32)


_NOSE_Y, _NOSE_WIDTH, _NOSE_HEIGHT = 0.68, 0.355, 0.31
"""The nose as a bump: how far below the eyes, and its standard deviations, in eye distances.
Fitted to the face mesh's own third coordinate, the mean over 150 synthetic onsets."""
_SAMPLE_STRIDE = 3


def _nose(points: FloatArray, landmarks: FloatArray) -> FloatArray:
    """Return how far (N, 2) points stand out of the face, 1 at the tip of the nose."""
    eyes = eye_centres(landmarks)
    x, y = ((points - eyes.mean(axis=0)) / np.hypot(*(eyes[1] - eyes[0]))).T
    squared = (x / _NOSE_WIDTH) ** 2 + ((y - _NOSE_Y) / _NOSE_HEIGHT) ** 2
    return np.asarray(np.exp(-squared / 2), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class _Turns:
    """Modes of a similarity, and of turns in depth about both axes, at N points.

    A head that turns carries the nose further than the rest of the face.
    """

    across: FloatArray
    """(6, N)."""
    down: FloatArray
    """(6, N)."""
    fitted_on: slice
    """Points that the fit looks at: a smooth field needs not all of them."""

    @classmethod
    def of(cls, points: FloatArray, landmarks: FloatArray, fitted_on: slice) -> "_Turns":
        x, y = ((points - points.mean(axis=0)) / np.float32(100)).T
        one, none, depth = np.ones_like(x), np.zeros_like(x), _nose(points, landmarks)
        return cls(
            across=np.stack([one, none, x, -y, depth, none]),
            down=np.stack([none, one, y, x, none, depth]),
            fitted_on=fitted_on,
        )

    def without(self, motion: FloatArray, steps: int) -> FloatArray:
        """Subtract from (2, N) what the modes explain; Geman–McClure weights."""
        some = self.fitted_on
        fitted = _robust_fit(self.across[:, some], self.down[:, some], motion[:, some], steps)
        return np.asarray(motion - np.stack([fitted @ self.across, fitted @ self.down]), np.float32)


def _robust_fit(across: FloatArray, down: FloatArray, motion: FloatArray, steps: int) -> FloatArray:
    """Weigh the (K, N) modes of both components so that their sum fits (2, N); return (K,)."""
    weights = np.ones(motion.shape[1])
    fitted = np.zeros(len(across))
    for _ in range(steps):
        # Few enough numbers for the linear-algebra library to start no threads of its own.
        normal = (across * weights) @ across.T + (down * weights) @ down.T
        right = (across * weights) @ motion[0] + (down * weights) @ motion[1]
        fitted = np.asarray(np.linalg.solve(normal + _RIDGE * np.eye(len(across)), right))
        length = np.hypot(motion[0] - fitted @ across, motion[1] - fitted @ down)
        scale = max(1.4826 * float(np.median(length)), _ROBUST_FLOOR_PX)
        weights = 1 / (1 + (length / scale) ** 2) ** 2
    return np.asarray(fitted, np.float32)
