"""Motion magnification: the onset warped further along its own flow.

The paper uses MagNet (Oh et al., ECCV 2018). This is ours: deterministic, and it needs no
second network.
"""

import functools

import cv2
import numpy as np
from numpy.typing import NDArray

from model.errors import ShapeError

__all__ = ["INVERSION_STEPS", "carry", "magnify"]

INVERSION_STEPS = 5
"""The fixed point contracts by the field's slope, far below ½ for a magnified expression."""


def carry(flow: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the flow where it arrives instead of where it starts: d(x + flow(x)) = flow(x).

    Convention: (2, H, W), pixels, x right, y down; returns the same. What would have come from
    outside repeats the border. Source: d(y) = flow(y - d(y)), solved by fixed-point iteration.
    """
    height, width = flow.shape[1:]
    x, y = _places(height, width)
    field = np.ascontiguousarray(flow.transpose(1, 2, 0), dtype=np.float32)
    moved = field
    for _ in range(INVERSION_STEPS):
        moved = np.asarray(
            cv2.remap(
                field,
                x - moved[..., 0],
                y - moved[..., 1],
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
        )
    return moved.transpose(2, 0, 1)


def magnify(onset: NDArray[np.uint8], flow: NDArray[np.float32], alpha: float) -> NDArray[np.uint8]:
    """Return the frame in which every point has moved (1 + alpha) times its flow.

    Convention: onset is (H, W, 3) uint8; flow is (2, H, W), pixels, x right, y down; alpha ≥ 0
    is the paper's magnification factor: 0 gives the apex as the flow explains it. Returns
    (H, W, 3) uint8; what moved in from outside repeats the border. Raises: ShapeError.
    """
    if flow.shape != (2, *onset.shape[:2]):
        raise ShapeError(f"onset is {onset.shape}, flow is {flow.shape}")
    height, width = onset.shape[:2]
    x, y = _places(height, width)
    # Sampling asks where a point came from.
    u, v = carry((1 + alpha) * flow)
    frame = cv2.remap(
        onset,
        x - u,
        y - v,
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(frame, np.uint8)


@functools.lru_cache(maxsize=4)  # a model has one size of crop
def _places(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return x and y of every pixel, each (H, W)."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for part in (x, y):
        part.flags.writeable = False  # shared by all callers
    return x, y
