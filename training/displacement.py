"""Dense displacement of a face picture, one field per action unit."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import Delaunay

from training.action_units import UNITS
from training.face_mesh import FACE_OVAL, FaceAxes
from training.unit_moves import Blendshapes, table_moves

__all__ = ["UnitFields", "head_turn", "unit_fields"]

Field = NDArray[np.float32]

_CELLS_PER_EYE_DISTANCE = 28
_FADE = 1.3
"""Displacement reaches zero on the face's oval enlarged by this factor."""


@dataclass(frozen=True, slots=True, eq=False)
class UnitFields:
    """Displacement of every pixel of one picture at full activation of each unit.

    Kept on a coarse grid: cell (r, c) holds the mean over its stride x stride pixels.
    """

    coarse: Field
    """(len(UNITS), 2, h, w), pixels, (x, y)."""
    stride: int
    shape: tuple[int, int]
    """(H, W) of the picture."""

    def combine(self, weights: dict[str, float], peak: float) -> Field:
        """Add units by weight and scale the sum to a peak displacement.

        Returns (2, H, W) pixels; its largest magnitude is `peak`, zero without weights.
        """
        height, width = self.shape
        if not weights or peak == 0.0:
            return np.zeros((2, height, width), np.float32)
        rows = [UNITS.index(unit) for unit in weights]
        amounts = np.array(list(weights.values()), np.float32)
        coarse = np.tensordot(amounts, self.coarse[rows], axes=1)
        size = (coarse.shape[2] * self.stride, coarse.shape[1] * self.stride)
        fine = np.stack([cv2.resize(c, size, interpolation=cv2.INTER_CUBIC) for c in coarse])
        fine = fine[:, :height, :width]
        largest = float(np.sqrt((fine**2).sum(axis=0).max()))
        return np.asarray(fine * np.float32(peak / max(largest, 1e-6)), np.float32)


def unit_fields(
    landmarks: NDArray[np.floating],
    shape: tuple[int, int],
    blendshapes: Blendshapes | None = None,
) -> UnitFields:
    """Spread the moves of landmarks, or of blendshape vertices, over a picture.

    Convention: landmarks (468, 2) pixels of a picture of `shape` (H, W). Moves are
    interpolated linearly between points, fall to zero outside the face's oval, and are
    smoothed over about a twentieth of an eye distance.
    """
    if blendshapes is None:
        points, moves = landmarks.astype(np.float64), table_moves(landmarks)
    else:
        points, moves = blendshapes.moves(landmarks)
    rim = _rim(landmarks)
    inside = np.array(
        [
            cv2.pointPolygonTest(rim.astype(np.float32), (float(x), float(y)), measureDist=False)
            for x, y in points
        ]
    )
    points, moves = points[inside > 0], moves[:, inside > 0]
    stride = max(2, round(FaceAxes.of(landmarks).eye_distance / _CELLS_PER_EYE_DISTANCE))
    rows, columns = (-(-side // stride) for side in shape)
    y, x = np.mgrid[:rows, :columns] * stride + (stride - 1) / 2
    columns_of_moves = moves.transpose(1, 0, 2).reshape(len(points), -1)
    values = np.vstack([columns_of_moves, np.zeros((len(rim), columns_of_moves.shape[1]))])
    mesh = Delaunay(np.vstack([points, rim]))
    spread = LinearNDInterpolator(mesh, values, fill_value=0.0)(x.ravel(), y.ravel())
    grid = spread.reshape(rows, columns, -1).astype(np.float32)
    smooth = np.dstack(
        [
            cv2.GaussianBlur(np.ascontiguousarray(grid[..., k : k + 4]), (0, 0), 1.2)
            for k in range(0, grid.shape[2], 4)
        ]
    )
    coarse = smooth.transpose(2, 0, 1).reshape(len(UNITS), 2, rows, columns)
    return UnitFields(np.ascontiguousarray(coarse), stride, shape)


def _rim(landmarks: NDArray[np.floating]) -> NDArray[np.float64]:
    oval = landmarks[list(FACE_OVAL)].astype(np.float64)
    centre = oval.mean(axis=0)
    return np.asarray(centre + _FADE * (oval - centre))


def head_turn(
    landmarks: NDArray[np.floating], shape: tuple[int, int], yaw: float, pitch: float
) -> Field:
    """Return how a small turn of the head shifts a picture, beyond a plane motion.

    Convention: yaw moves the nose right, pitch moves it down, both in pixels relative to
    the face's rim. Returns (2, H, W). Ours: depth is a paraboloid over the face.
    """
    axes = FaceAxes.of(landmarks)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    centre = landmarks[[4, 152, 10]].mean(axis=0).astype(np.float32)
    radius = np.float32(1.4 * axes.eye_distance)
    squared = ((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / radius**2
    depth = np.clip(1 - squared, 0, 1).astype(np.float32)
    depth *= depth  # smooth at the rim
    return np.stack([np.float32(yaw) * depth, np.float32(pitch) * depth])
