"""A manifest's row → its files, decoded or aligned; a fault names the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.decode import Limits, decode_image
from model.errors import FrameSizeMismatch, InputError
from model.pipeline import AlignedPair, Preprocessor
from training.data.pairs import Pair
from training.data.ready import ReadyPair, read_face, read_flow, ready_pair
from training.data.video import check_video, read_video

__all__ = ["UNUSABLE", "align_row", "check_row", "read_frames", "read_ready"]

UNUSABLE = (InputError, FileNotFoundError, IsADirectoryError, NotADirectoryError)
"""What makes a row unusable; any other fault is the machine's and ends the work."""
_LIMITS = Limits()
_CHECKED_SIZE = 28
"""Ready-made inputs are brought to some size as they are read; any shows what is wrong."""


def align_row(pair: Pair, folder: Path, preprocessor: Preprocessor) -> AlignedPair | None:
    """Align the frames of a row of pictures or of a video; None if they show no face.

    `folder` is the manifest's. Raises: UNUSABLE, another OSError where a file cannot be read.
    """
    if pair.kind == "video":
        with _faults_name(pair.clip):
            return read_video(folder / pair.clip, preprocessor)
    faces = preprocessor.align_pair(*read_frames(pair, folder))
    return faces[0] if faces else None


def check_row(pair: Pair, folder: Path) -> None:
    """Decode the files of a row, and seek no faces. Raises: as `align_row`."""
    if pair.kind == "video":
        with _faults_name(pair.clip):
            check_video(folder / pair.clip)
    elif pair.kind == "ready":
        read_ready(pair, folder, _CHECKED_SIZE)
    else:
        read_frames(pair, folder)


def read_frames(pair: Pair, folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read onset and apex of a row of pictures: (H, W, 3) uint8 RGB of one size.

    Raises: as `align_row`.
    """
    onset, apex = (_picture(folder, name) for name in (pair.onset, pair.apex))
    if onset.shape != apex.shape:
        (h0, w0), (h1, w1) = onset.shape[:2], apex.shape[:2]
        raise FrameSizeMismatch(f"the onset is {w0}x{h0} pixels, the apex {w1}x{h1}")
    return onset, apex


def read_ready(pair: Pair, folder: Path, size: int) -> ReadyPair:
    """Read a row of ready-made inputs for crops of a size. Raises: as `align_row`."""
    with _faults_name(pair.image):
        face = read_face(folder / pair.image, size)
    with _faults_name(pair.flow):
        flow = read_flow(folder / pair.flow, size)
    return ready_pair(face, flow)


def _picture(folder: Path, name: str) -> NDArray[np.uint8]:
    with _faults_name(name), (folder / name).open("rb") as file:
        # One byte more than the decoder takes is enough for it to refuse.
        return decode_image(file.read(_LIMITS.max_bytes + 1), _LIMITS)


@contextmanager
def _faults_name(name: str) -> Iterator[None]:
    try:
        yield
    except InputError as fault:
        raise type(fault)(f"{name}: {fault}") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"{name} is a folder") from None
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{name} is missing") from None
