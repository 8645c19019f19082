"""Video file → onset and apex.

The first frame is the onset and the middle frame the apex (ours), until there is a spotter:
annotated apexes sit at about half of a clip. So a clip should begin where the expression does.
Frames are decoded one by one, twice: to count them, and to fetch those two.
"""

import os
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from numpy.typing import NDArray

from model.errors import BrokenClip, ClipTooLarge, NotAClip, TooFewFrames

__all__ = ["ClipLimits", "read_onset_and_apex"]

Frame = NDArray[np.uint8]
_HEAD = 12
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyp", "mp4"),
    *((4, atom, "mov") for atom in (b"moov", b"mdat", b"wide", b"free", b"skip")),
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (8, b"AVI ", "avi"),
    (0, b"GIF8", "gif"),
)
"""Offset, bytes there, and the one demuxer that then reads the file: FFmpeg's own guess would
also take playlists, which name other files and addresses."""
_QUARTER_TURN = 90
_NEEDED = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipLimits:
    """What one clip may cost; what its header says is checked before a frame is decoded."""

    max_pixels: int = 25_000_000
    """Of a frame, width times height."""
    max_frames: int = 10_000
    max_seconds: float = 300.0


_DEFAULT_LIMITS = ClipLimits()


def read_onset_and_apex(path: Path, limits: ClipLimits = _DEFAULT_LIMITS) -> tuple[Frame, Frame]:
    """Read the first and the middle frame (number n // 2 of n, from 0) of a video file.

    MP4, MOV, MKV, WebM, AVI and GIF. Returns two (H, W, 3) uint8 RGB frames, turned as the file's
    rotation says. No more than those two are in memory at once.
    Raises: FileNotFoundError, NotAClip, BrokenClip, ClipTooLarge, TooFewFrames.
    """
    with path.open("rb") as file:
        demuxer = _demuxer(file)
        if not _is_whole(file, demuxer):
            raise BrokenClip("the clip is cut short")
        count = 0
        for _ in _decode(file, demuxer, limits):
            count += 1
            if count > limits.max_frames:
                raise ClipTooLarge(f"the clip has more than {limits.max_frames} frames")
        if count < _NEEDED:
            raise TooFewFrames(f"an onset and an apex are needed; frames in the clip: {count}")
        with closing(_decode(file, demuxer, limits)) as frames:
            onset = _upright(next(frames))
            return onset, _upright(next(islice(frames, count // 2 - 1, None)))


def _demuxer(file: BinaryIO) -> str:
    head = file.read(_HEAD)
    for offset, signature, name in _SIGNATURES:
        if head[offset:].startswith(signature):
            return name
    raise NotAClip("the bytes are not an MP4, MOV, MKV, WebM, AVI or GIF clip")


def _decode(file: BinaryIO, demuxer: str, limits: ClipLimits) -> Generator[av.VideoFrame]:
    file.seek(0)
    with _faults_told(), av.open(file, "r", format=demuxer) as container:
        if not container.streams.video:
            raise NotAClip("the file holds no video")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise NotAClip("the video's codec is not known")
        _check_header(container, stream, limits)
        stream.codec_context.thread_count = 1  # rows are shared out to processes already
        stream.codec_context.options = {
            "err_detect": "explode",  # a frame patched up where data are missing is no frame
            "max_pixels": str(limits.max_pixels),
        }
        yield from container.decode(stream)


@contextmanager
def _faults_told() -> Iterator[None]:
    try:
        yield
    except av.FFmpegError:
        raise BrokenClip("the clip is truncated or corrupt") from None


def _check_header(
    container: av.container.InputContainer, stream: av.VideoStream, limits: ClipLimits
) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > limits.max_pixels:
        raise ClipTooLarge(
            f"the clip has frames of {width}x{height} pixels, at most {limits.max_pixels} are taken"
        )
    if stream.frames > limits.max_frames:
        raise ClipTooLarge(
            f"the clip has {stream.frames} frames, at most {limits.max_frames} are taken"
        )
    seconds = (container.duration or 0) / av.time_base
    if seconds > limits.max_seconds:
        raise ClipTooLarge(
            f"the clip lasts {seconds:.0f} s, at most {limits.max_seconds:g} s are taken"
        )


def _upright(frame: av.VideoFrame) -> Frame:
    pixels = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    # Both count counter-clockwise.
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / _QUARTER_TURN)))


def _is_whole(file: BinaryIO, demuxer: str) -> bool:
    """Whether a file reaches the end that its own structure gives; FFmpeg often does not ask."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if demuxer == "gif":
        file.seek(max(0, size - 1024))
        return file.read().rstrip(b"\0").endswith(b";")  # the trailer, perhaps padded
    if demuxer == "matroska":
        return _segment_end(file) <= size
    if demuxer in {"mp4", "mov"}:
        return _boxes_end(file, size) <= size
    return True  # an AVI's index leads the decoder into what is missing


_BOX_HEAD = 8
_MOST_BOXES = 100_000


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Return where the last top-level box of an MP4 or MOV file ends as it says itself."""
    end = 0
    for _ in range(_MOST_BOXES):
        file.seek(end)
        head = file.read(2 * _BOX_HEAD)
        length = int.from_bytes(head[:4])
        if length == 1:  # the length follows the name
            length = int.from_bytes(head[_BOX_HEAD:])
        elif length == 0:  # up to the end of the file
            length = size - end
        if end == size or length < _BOX_HEAD:
            break
        end += length
    return end


_MATROSKA_ID_BYTES = 4


def _segment_end(file: BinaryIO) -> int:
    """Return where a Matroska file's segment ends as it says itself; 0 if it does not say."""
    file.seek(_MATROSKA_ID_BYTES, os.SEEK_CUR)
    header = _read_size(file)
    if header is None:
        return 0
    file.seek(header + _MATROSKA_ID_BYTES, os.SEEK_CUR)
    segment = _read_size(file)
    return 0 if segment is None else file.tell() + segment


def _read_size(file: BinaryIO) -> int | None:
    """Read an EBML length: leading zero bits count the bytes that follow; all ones is unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    bits = 7 * length
    value = int.from_bytes(first + file.read(length - 1)) & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value
