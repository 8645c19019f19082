"""How a picture of a face is warped: where each pixel of a frame lies in the picture."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model.spec import Alignment
from training.displacement import Field, UnitFields
from training.face_mesh import FaceAxes
from training.nuisances import Camera, Head

__all__ = [
    "FACE_PIXELS",
    "FacePatch",
    "apply",
    "camera_transform",
    "closed_lids",
    "compose",
    "head_transform",
    "sample",
    "sample_field",
    "softened",
    "undo",
]

FACE_PIXELS = 224 * Alignment().eye_distance
"""Eye distance of the 224-pixel aligned face: amounts are given in its pixels."""

_INVERSE_STEPS = 6


@dataclass(frozen=True, slots=True, eq=False)
class FacePatch:
    """One picture, at working resolution, with its displacement fields."""

    image: NDArray[np.uint8]
    """(H, W, 3), BGR."""
    landmarks: NDArray[np.float64]
    """(468, 2), pixels of the patch."""
    fields: UnitFields


def closed_lids(patch: FacePatch) -> Field:
    """Return what closes both eyes: (2, H, W) displacement, pixels of the patch."""
    opening = float(np.linalg.norm(patch.landmarks[[159, 386]] - patch.landmarks[[145, 374]]))
    return patch.fields.combine({"43L": 1.0, "43R": 1.0}, opening / np.sqrt(2))


def camera_transform(
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


def head_transform(head: Head, camera: Camera, side: int) -> NDArray[np.float64]:
    """Return the (2, 3) motion of the head, in frame pixels about the frame's middle."""
    cos, sin = head.scale * np.cos(head.angle), head.scale * np.sin(head.angle)
    linear = np.array([[cos, -sin], [sin, cos]])
    middle = np.full(2, (side - 1) / 2)
    shift = np.array(head.shift) * camera.eye_distance / FACE_PIXELS
    return np.column_stack([linear, middle + shift - linear @ middle])


def compose(outer: NDArray[np.float64], inner: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (2, 3) transform that applies `inner`, then `outer`."""
    linear = outer[:, :2] @ inner[:, :2]
    return np.column_stack([linear, outer[:, :2] @ inner[:, 2] + outer[:, 2]])


def apply(transform: NDArray[np.float64], places: Field) -> Field:
    """Map (2, H, W) places by a (2, 3) transform."""
    linear, shift = transform[:, :2].astype(np.float32), transform[:, 2].astype(np.float32)
    return np.asarray(np.tensordot(linear, places, axes=1) + shift[:, None, None], np.float32)


def undo(transform: NDArray[np.float64], displacement: Field, side: int, steps: int = 1) -> Field:
    """Find the patch point p whose transform(p + displacement(p)) is each frame pixel.

    Returns (2, side, side) places. Fixed-point iteration: displacements change by far less
    than a pixel per pixel, so it converges. One that changes by more is gone in `steps` equal
    parts, each from where the last one led: so it does not fold, and falls somewhat short.
    """
    x, y = np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32))
    back = np.asarray(cv2.invertAffineTransform(transform), np.float64)
    places = apply(back, np.stack([x, y]))
    part = displacement / np.float32(steps)
    for _ in range(steps):
        target = places
        for _ in range(_INVERSE_STEPS):
            places = target - sample_field(part, places)
    return places


def sample_field(field: Field, places: Field) -> Field:
    """Read a (2, H, W) field at (2, h, w) places, bilinearly; zero outside."""
    interleaved = np.dstack([field[0], field[1]])
    read = cv2.remap(interleaved, places[0], places[1], cv2.INTER_LINEAR)
    return np.asarray(read.transpose(2, 0, 1), np.float32)


def sample(source: Field, places: Field) -> Field:
    """Read a (H, W, C) picture at (2, h, w) places, bicubically; mirrored outside."""
    read = cv2.remap(
        source, places[0], places[1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(read, np.float32)


def softened(image: NDArray[np.uint8], scale: float) -> Field:
    """Return the picture as float, without the detail that shrinking by `scale` would alias."""
    picture = image.astype(np.float32)
    if scale > 0.9:  # noqa: PLR2004 - cubic sampling copes with so little
        return picture
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), 0.45 / scale), np.float32)
