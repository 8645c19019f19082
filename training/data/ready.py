"""Ready-made inputs → what live preprocessing makes: an aligned face and its residual flow.

Two kinds of flow are read. An `.npy` is (2, H, W) u and v in pixels of its own grid. A picture
shows u, v and strain in R, G and B, each stretched to the full range of its own image (min–max),
as published sets of 28x28 flow pictures have it. Stretching loses the size in pixels, the ratio of
u to v, and the zero. So R and G are taken to span `PICTURE_SPAN` each (ours); the zero comes back
as the head's motion is removed, for most of a face does not move; strain is not read, because the
network's strain is computed from u and v as for live flow.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from model.decode import Limits, decode_image
from model.errors import BadFlow
from model.movement import Motion, residual_motion

__all__ = ["PICTURE_SPAN", "ReadyPair", "read_face", "read_flow", "ready_pair"]

FloatArray = NDArray[np.float32]
PICTURE_SPAN = 1.5 / 224
"""What the full range of R, or of G, stands for, in sides of the crop: 1.5 px of 224 (ours), the
median, over synthetic pairs, of the larger of the two ranges."""
_LIMITS = Limits(min_side=8)
"""Ready-made pictures are small; below eight pixels there is no face, and no field either."""
_NPY_DIMENSIONS = 3


@dataclass(frozen=True, slots=True, eq=False)
class ReadyPair:
    """A ready-made pair, as `AlignedPair` has a live one."""

    onset: NDArray[np.uint8]
    """(S, S, 3) RGB."""
    flow: FloatArray
    """(2, S, S), pixels of the crop, the head's motion removed."""
    motion: Motion
    """With the whole picture for the face. Of a picture's flow all NaN, because nobody knows how
    far it moved: no threshold is above NaN, so the motion gate lets it pass."""


@dataclass(frozen=True, slots=True, eq=False)
class ReadyFlow:
    """A ready-made field on the crop's grid."""

    total: FloatArray
    """(2, S, S), pixels of the crop, onset → apex, the head's motion in it."""
    in_pixels: bool
    """Whether its size is known; a picture's is nominal."""


def ready_pair(onset: NDArray[np.uint8], flow: ReadyFlow) -> ReadyPair:
    """Put a face (S, S, 3) and its flow (2, S, S) through what live flow goes through."""
    residual, motion = residual_motion(flow.total)
    if not flow.in_pixels:
        motion = Motion(math.nan, math.nan, math.nan, math.nan)
    return ReadyPair(onset, residual, motion)


def read_face(path: Path, size: int) -> NDArray[np.uint8]:
    """Read the picture of an aligned face, of any size, as (size, size, 3) uint8 RGB.

    Raises: OSError; EmptyImage, NotAnImage, BrokenImage, ImageTooLarge, ImageTooSmall.
    """
    return np.asarray(_resize(decode_image(_read(path), _LIMITS), size), np.uint8)


def read_flow(path: Path, size: int) -> ReadyFlow:
    """Read ready-made flow of any size, and carry it to the grid of a crop: places and vectors.

    Convention: u grows by size / W, v by size / H. Raises: OSError; BadFlow; for a picture also
    the faults of `read_face`.
    """
    if path.suffix.lower() == ".npy":
        return ReadyFlow(_to_grid(_load(path), size), in_pixels=True)
    picture = decode_image(_read(path), _LIMITS)
    if (picture[..., 0] == picture[..., 1]).all() and np.ptp(picture):
        raise BadFlow("the flow picture is grey; its R and G must be u and v")
    red_green = picture[..., :2].transpose(2, 0, 1).astype(np.float32)
    span = np.float32(PICTURE_SPAN * size)
    channels = [_resize(channel, size) * span for channel in red_green / np.float32(255)]
    return ReadyFlow(np.stack(channels), in_pixels=False)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LIMITS.max_bytes + 1)  # the decoder refuses more without looking at it


def _load(path: Path) -> FloatArray:
    """Load an array (2, H, W); nothing of it is read before its header is checked."""
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception:  # noqa: BLE001 - numpy's parser of a spoilt header raises anything
        raise BadFlow("the file is not an .npy array, or cut short") from None
    if array.ndim != _NPY_DIMENSIONS or array.shape[0] != 2:  # noqa: PLR2004 - u and v
        raise BadFlow(f"a flow field is (2, H, W), the array is {array.shape}")
    if not np.issubdtype(array.dtype, np.floating):
        raise BadFlow(f"flow in pixels is floating-point, the array is {array.dtype}")
    _, height, width = array.shape
    if min(height, width) < _LIMITS.min_side or height * width > _LIMITS.max_pixels:
        raise BadFlow(
            f"the field has {width}x{height} vectors; at least {_LIMITS.min_side} a side and at "
            f"most {_LIMITS.max_pixels} are taken"
        )
    reach = float(np.abs(array).max())
    if not math.isfinite(reach):
        raise BadFlow("the field holds values that are not finite")
    if reach > max(height, width):
        raise BadFlow(f"the field moves {reach:.4g} px on a picture of {width}x{height}")
    return np.array(array, np.float32)


def _to_grid(flow: FloatArray, size: int) -> FloatArray:
    _, height, width = flow.shape
    u, v = (_resize(channel, size) for channel in flow)
    return np.stack([u * np.float32(size / width), v * np.float32(size / height)])


def _resize(array: NDArray[Any], size: int) -> NDArray[Any]:
    """Resample (H, W[, 3]) to (size, size[, 3]); pixel centres stay in their places."""
    height, width = array.shape[:2]
    if (height, width) == (size, size):
        return array
    # Averages over what is skipped, else smooth: the strain of a linear enlargement has steps.
    shrinking = min(height, width) >= size
    method = cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(array, (size, size), interpolation=method))
