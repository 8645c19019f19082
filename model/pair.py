"""One face of two frames: its crops, and what is known of its motion once the flow is."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.face import Face
from model.movement import Motion
from model.quality import Quality
from model.spec import FlowBackend

__all__ = ["AlignedPair", "Crops"]

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Crops:
    """Both frames aligned to one face, by one transform from the onset; their flow is not known."""

    face: Face
    onset: NDArray[np.uint8]
    """(S, S, 3) RGB crop."""
    onset_grey: NDArray[np.uint8]
    """(S, S) luma of the crop."""
    apex_grey: NDArray[np.uint8]
    """Likewise of the apex."""
    landmarks: FloatArray
    """(468, 2), pixels of the crop."""
    outline: NDArray[np.bool_]
    """(S, S), true inside the hull of the landmarks: where the head's motion is fitted."""
    eye_distance_px: float
    """Pixels of the frame as sent."""
    outside: float
    """Share, 0 to 1, of the crop that lies outside the frame."""
    more_faces: bool
    """Whether the frame shows more faces than were asked for."""
    timings_ms: dict[str, float]
    """Wall time of align; of detect, shared by all faces, on the first."""


@dataclass(frozen=True, slots=True, eq=False)
class AlignedPair:
    """One face of a pair of frames, aligned by one transform from the onset."""

    face: Face
    onset: NDArray[np.uint8]
    """(S, S, 3) RGB crop."""
    flow: FloatArray
    """(2, S, S), pixels of the crop, onset → apex, the head's motion removed."""
    flow_backend: FlowBackend
    """Who computed it: where a GPU failed, not who was asked."""
    landmarks: FloatArray
    """(468, 2), pixels of the crop."""
    motion: Motion
    quality: Quality
    timings_ms: dict[str, float]
    """Wall time of align, flow, quality of a face; detect, shared by all faces, on the first."""
