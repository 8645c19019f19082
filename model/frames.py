"""What every kind of clip is made of: its limits, what is known of it, its frames."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.errors import BrokenClip, ClipTooLarge, ImageTooSmall, TooFewFrames

__all__ = [
    "Clip",
    "ClipInfo",
    "ClipLimits",
    "Deadline",
    "Frame",
    "Pixels",
    "Plane",
    "check_count",
    "check_frames",
    "check_seconds",
    "check_size",
    "check_work",
]

Plane = NDArray[np.uint8]
_NEEDED = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipLimits:
    """What one clip may cost."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 9_000_000
    """Of a frame, width times height: 4K is taken."""
    max_frames: int = 6000
    max_seconds: float = 60.0
    max_decoded_pixels: int = 6_000_000_000
    """Of all frames together: a minute of 1080p at 30 frames a second has 3.7 thousand million."""
    max_decode_seconds: float = 60.0
    """Spent decoding in one pass over the clip, by the clock; the caller's own work between two
    frames does not count."""
    min_side: int = 32
    """Pixels; a smaller frame holds no face that could be measured."""


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """What is known of a clip before it is decoded."""

    width: int
    """Of the frames, upright, pixels."""
    height: int
    frames: int
    """As the container lists them. A codec may show fewer, never more."""
    duration_s: float
    """From the first frame to the end of the last."""
    fps: float
    """Mean: (frames - 1) / (time of the last - time of the first)."""
    variable_frame_rate: bool
    """Whether a frame comes more than a quarter of the mean interval off an even beat."""
    container: str
    """mp4, mov, mkv, webm, avi, gif, webp or pictures."""
    codec: str


class Pixels(Protocol):
    """What a kind of clip gives to a `Frame`, whose methods say what is asked."""

    def grey(self) -> Plane:
        """Return (H, W)."""

    def rgb(self) -> Plane:
        """Return (H, W, 3)."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One frame of a clip. Its pixels are made when asked for, anew each time."""

    index: int
    """From 0."""
    time_s: float
    """From 0 at the first frame; strictly increasing."""
    _pixels: Pixels

    def grey(self) -> Plane:
        """Return (H, W) uint8, upright: the luma plane where the format has one.

        Luma of limited range stays in 16 to 235; more than eight bits keep the upper eight.
        """
        return self._pixels.grey()

    def rgb(self) -> Plane:
        """Return (H, W, 3) uint8 RGB of full range, upright."""
        return self._pixels.rgb()


class Clip:
    """A clip whose cost is known. It holds the bytes as sent, and no frame."""

    def __init__(self, info: ClipInfo, decode: Callable[[], Generator[Frame]]) -> None:
        self.info = info
        self._decode = decode

    def frames(self) -> Generator[Frame]:
        """Decode from the first frame on, anew with each call; closing it frees everything.

        Raises, while decoding: BrokenClip (also where a frame differs from the first in size),
        ClipTooLarge (past the deadline), TooFewFrames (fewer than two are shown), and of a burst
        what `decode_image` raises, or FrameSizeMismatch.
        """
        shown = 0
        with closing(self._decode()) as frames:
            for frame in frames:
                if frame.index >= self.info.frames:
                    raise BrokenClip("the clip shows more frames than it lists")
                shown += 1
                yield frame
        check_count(shown)


def check_size(width: int, height: int, limits: ClipLimits) -> None:
    """Check a frame's size. Raises: ClipTooLarge, ImageTooSmall; BrokenClip of none."""
    if width * height > limits.max_pixels:
        raise ClipTooLarge(
            f"the clip has frames of {width}x{height} pixels, at most {limits.max_pixels} are taken"
        )
    if not (width and height):
        raise BrokenClip("the clip does not say how large its frames are")
    if min(width, height) < limits.min_side:
        raise ImageTooSmall(
            f"the clip has frames of {width}x{height} pixels, at least {limits.min_side} a side "
            "are needed"
        )


def check_count(count: int) -> None:
    """Check that there are two frames at least. Raises: TooFewFrames."""
    if count < _NEEDED:
        raise TooFewFrames(f"an onset and an apex are needed; frames in the clip: {count}")


def check_frames(count: int, limits: ClipLimits) -> None:
    """Check the number of frames. Raises: ClipTooLarge."""
    if count > limits.max_frames:
        raise ClipTooLarge(f"the clip has more than {limits.max_frames} frames")


def check_seconds(seconds: float, limits: ClipLimits) -> None:
    """Check how long a clip lasts. Raises: ClipTooLarge."""
    if seconds > limits.max_seconds:
        raise ClipTooLarge(
            f"the clip lasts {seconds:.1f} s, at most {limits.max_seconds:g} s are taken"
        )


def check_work(count: int, width: int, height: int, limits: ClipLimits) -> None:
    """Check the pixels of all frames together. Raises: ClipTooLarge."""
    if count * width * height > limits.max_decoded_pixels:
        raise ClipTooLarge(
            f"{count} frames of {width}x{height} are {count * width * height} pixels, at most "
            f"{limits.max_decoded_pixels} are decoded"
        )


class Deadline:
    """A clock that runs while a clip is decoded, and stands while the caller works."""

    def __init__(self, limits: ClipLimits) -> None:
        self._left = limits.max_decode_seconds
        self._seconds = limits.max_decode_seconds
        self._since = time.monotonic()

    def check(self) -> None:
        """Raise ClipTooLarge when the time is up."""
        if time.monotonic() - self._since > self._left:
            raise ClipTooLarge(f"the clip takes more than {self._seconds:g} s to decode")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the clock stand."""
        self._left -= time.monotonic() - self._since
        yield
        self._since = time.monotonic()
