"""Which part of the face moved, and where to: what an answer can be explained by."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.errors import ShapeError
from model.face import eye_centres

__all__ = ["REGIONS", "RegionMotion", "region_motions"]

REGIONS: dict[str, tuple[int, ...]] = {
    "right_inner_brow": (107, 55),
    "right_outer_brow": (105, 63),
    "left_inner_brow": (336, 285),
    "left_outer_brow": (334, 293),
    "right_upper_lid": (159, 158),
    "left_upper_lid": (386, 385),
    "right_lower_lid": (145, 153),
    "left_lower_lid": (374, 380),
    "nose": (4, 48, 278),
    "right_cheek": (50, 205),
    "left_cheek": (280, 425),
    "upper_lip": (0, 37, 267),
    "right_mouth_corner": (61,),
    "left_mouth_corner": (291,),
    "lower_lip": (17, 84, 314),
    "chin": (199, 200),
}
"""Mesh landmarks at the heart of each region; left and right are the person's own."""

_RADIUS = 0.1
"""Of the disc around each landmark, in eye distances."""


@dataclass(frozen=True, slots=True)
class RegionMotion:
    """Mean motion of one region from onset to apex, pixels of the aligned crop."""

    region: str
    right_px: float
    """Towards the picture's right, so negative is left."""
    down_px: float
    """Towards the picture's bottom, so negative is up."""
    length_px: float
    """Mean length of the region's flow vectors."""


def region_motions(
    flow: NDArray[np.float32], landmarks: NDArray[np.float32]
) -> tuple[RegionMotion, ...]:
    """Average a flow field over each region of the face, the one that moved most first.

    Convention: flow is (2, H, W) pixels, x right, y down, the head's motion removed;
    landmarks are (468, 2), (x, y), pixels of the same crop. A region outside the crop is
    left out. Raises: ShapeError.
    """
    if flow.ndim != 3 or flow.shape[0] != 2 or landmarks.shape != (468, 2):  # noqa: PLR2004 - u and v
        raise ShapeError(f"flow is (2, H, W), landmarks (468, 2): {flow.shape}, {landmarks.shape}")
    right, left = eye_centres(landmarks)
    offsets = _disc(_RADIUS * float(np.hypot(*(left - right))))
    found = []
    for region, anchors in REGIONS.items():
        u, v = _sample(flow, landmarks[list(anchors)].round().astype(int), offsets)
        if u.size:
            length = float(np.hypot(u, v).mean())
            found.append(RegionMotion(region, float(u.mean()), float(v.mean()), length))
    return tuple(sorted(found, key=lambda motion: -motion.length_px))


def _disc(radius: float) -> NDArray[np.int_]:
    """Return the (N, 2) whole-pixel offsets, (x, y), of a disc."""
    reach = np.arange(-int(radius), int(radius) + 1)
    x, y = (axis.ravel() for axis in np.meshgrid(reach, reach))
    return np.stack([x, y], axis=1)[x**2 + y**2 <= radius**2]


def _sample(
    flow: NDArray[np.float32], centres: NDArray[np.int_], offsets: NDArray[np.int_]
) -> NDArray[np.float32]:
    """Return the (2, N) flow vectors in the union of the discs, as far as it lies inside."""
    places = np.unique((centres[:, None] + offsets).reshape(-1, 2), axis=0)
    inside = ((places >= 0) & (places < (flow.shape[2], flow.shape[1]))).all(axis=1)
    x, y = places[inside].T
    return flow[:, y, x]
