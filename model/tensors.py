"""Image and flow → the two normalised float32 arrays that the network takes."""

import numpy as np
from numpy.typing import NDArray

from model.errors import ShapeError
from model.flow import magnitude, optical_strain
from model.spec import Normalisation

__all__ = ["flow_tensor", "image_tensor"]

FloatArray = NDArray[np.float32]


def image_tensor(image: NDArray[np.uint8]) -> FloatArray:
    """Scale an (H, W, 3) uint8 RGB image to (3, H, W) float32 in [-1, 1] (ours)."""
    if image.ndim != 3 or image.shape[2] != 3:  # noqa: PLR2004 - three colours
        raise ShapeError(f"an image is (H, W, 3), got {image.shape}")
    scaled = image.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(scaled)


def flow_tensor(flow: FloatArray, normalisation: Normalisation) -> FloatArray:
    """Stack u, v and strain, scaled as `Normalisation` says.

    Convention: flow is (2, H, W) in pixels. Returns (3, H, W) float32: u and v in [-1, 1],
    strain in [0, 1]. The raw magnitude is lost here, so the motion gate reads the flow itself.
    Raises: ShapeError. Source: channels as in MFDAN; the scaling is ours.
    """
    strain = optical_strain(flow)
    flow_scale = _scale(magnitude(flow), normalisation.percentile, normalisation.flow_floor)
    strain_scale = _scale(strain, normalisation.percentile, normalisation.strain_floor)
    tensor = np.concatenate([flow / flow_scale, strain[None] / strain_scale])
    return np.asarray(np.clip(tensor, -1, 1), np.float32)


def _scale(values: FloatArray, percentile: float, floor: float) -> np.float32:
    return np.float32(max(float(np.percentile(values, percentile)), floor))
