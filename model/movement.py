"""How far a face moved between two aligned crops, the head's own motion left out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.flow import magnitude, remove_rigid_motion

__all__ = ["Motion", "residual_motion"]

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Motion:
    """How far the face moved from onset to apex, in pixels of the aligned crop."""

    mean_px: float
    """Mean residual motion inside the face's outline, the head's own motion removed."""
    p95_px: float
    """95th percentile of the same; the motion gate reads it."""
    head_px: float
    """Mean motion of the head, which was removed."""


def residual_motion(
    total: FloatArray, face: NDArray[np.bool_] | None = None
) -> tuple[FloatArray, Motion]:
    """Remove the head's motion from a flow, and measure what is left inside the face.

    Convention: total is (2, H, W) in pixels of the crop; face is the (H, W) mask of the face,
    everything when None or empty. Returns the residual flow (2, H, W). Raises: ShapeError.
    """
    flow, head = remove_rigid_motion(total, face)
    moved = magnitude(flow)
    if face is not None and face.any():
        moved = moved[face]
    mean, p95 = float(moved.mean()), float(np.percentile(moved, 95))
    return flow, Motion(mean_px=mean, p95_px=p95, head_px=head.mean_px)
