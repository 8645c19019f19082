"""Upper lids that rise: the one movement of the eyes that counts as an expression."""

import numpy as np
from numpy.typing import NDArray

from model.errors import ShapeError

__all__ = ["LID_SHARE", "lid_rise"]

LID_SHARE = 0.5
"""Of its length, a rise of the lids counts (ours): lids follow the gaze, and open after a blink."""
_UPPER_LIDS = ((160, 159, 158), (387, 386, 385))
"""Mesh landmarks in the middle of the right and of the left upper lid's margin."""


def lid_rise(flow: NDArray[np.float32], landmarks: NDArray[np.float32]) -> float:
    """Return how far the upper lid rose that rose more, pixels of the crop, 0 where none did.

    A blink lowers the lids, so what happens at the eyes is no evidence of an expression
    (`region_movement` leaves them out), but for this: widened eyes (action unit 5).

    Convention: flow is (2, H, W) pixels, onset → apex, the head's motion removed; landmarks are
    the onset's, (468, 2), (x, y), pixels of the same crop; lids outside of it have not risen.
    Raises: ShapeError.
    """
    if flow.ndim != 3 or flow.shape[0] != 2 or landmarks.shape != (468, 2):  # noqa: PLR2004 - u and v
        raise ShapeError(f"flow is (2, H, W), landmarks (468, 2): {flow.shape}, {landmarks.shape}")
    rises = [0.0]
    for lid in _UPPER_LIDS:
        x, y = landmarks[list(lid)].round().astype(int).T
        if min(*x, *y) >= 0 and (x < flow.shape[2]).all() and (y < flow.shape[1]).all():
            rises.append(-float(flow[1, y, x].mean()))
    return max(rises)
