"""Clip bytes → frames, one by one: video files, animated pictures, bursts of pictures.

What a clip may cost is known, and refused, before a frame is decoded. Nothing but the bytes
themselves is opened: the signature says what they are, so a playlist that names a file or an
address is no clip, and a file's name says nothing.

Memory, beside the clip's bytes, for frames of P pixels and whatever the clip's length: a decoder
keeps up to 17 frames of reference and delay, 1.5 P bytes each (3 P with ten bits; one frame only
for MJPEG, GIF and other codecs whose frames stand alone). `Frame.grey` adds P and `Frame.rgb` 3 P,
twice that while a frame is turned upright, as long as the caller holds them. A burst holds one
picture at a time, an animated WebP three canvases of 4 P.
"""

import io
import math
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np
from PIL import Image

from model.container import Animation, read_animation, sniff_container
from model.decode import PARSER_FAULTS, Limits, decode_image, to_rgb
from model.errors import BrokenClip, ClipTooLarge, FrameSizeMismatch, InputError
from model.frames import (
    Clip,
    ClipInfo,
    ClipLimits,
    Deadline,
    Frame,
    Plane,
    check_count,
    check_frames,
    check_seconds,
    check_size,
    check_work,
)
from model.video import open_video

__all__ = ["Clip", "ClipInfo", "ClipLimits", "Frame", "open_burst", "open_clip"]

_DEFAULT_LIMITS = ClipLimits()
_DEFAULT_PICTURE_LIMITS = Limits()


def open_clip(data: bytes, limits: ClipLimits = _DEFAULT_LIMITS) -> Clip:
    """Open an MP4, MOV, MKV, WebM, AVI, GIF or animated WebP clip.

    Once everything that the clip says of itself lies within the limits, its first frame is
    decoded, which tells which way is up.
    Raises: NotAClip, BrokenClip, ClipTooLarge, TooFewFrames, ImageTooSmall.
    """
    if len(data) > limits.max_bytes:
        raise ClipTooLarge(
            f"the clip holds {len(data)} bytes, at most {limits.max_bytes} are taken"
        )
    container = sniff_container(data)
    if container == "webp":
        return _open_animation(data, limits)
    return open_video(data, container, limits)


def open_burst(
    pictures: Sequence[bytes],
    fps: float,
    limits: ClipLimits = _DEFAULT_LIMITS,
    picture_limits: Limits = _DEFAULT_PICTURE_LIMITS,
) -> Clip:
    """Take pictures, each as `decode_image` takes them, for the frames of a clip.

    fps: frames a second, positive and finite. Only the first picture is decoded here; a fault of
    another is raised by `Clip.frames`, and names its number.
    Raises: TooFewFrames, ClipTooLarge, what `decode_image` raises; ValueError of fps.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError("fps must be positive and finite")
    count, whole = len(pictures), sum(map(len, pictures))
    check_count(count)
    check_frames(count, limits)
    check_seconds(count / fps, limits)
    if whole > limits.max_bytes:
        raise ClipTooLarge(f"the frames hold {whole} bytes, at most {limits.max_bytes} are taken")
    each = replace(
        picture_limits,
        max_pixels=min(picture_limits.max_pixels, limits.max_pixels),
        min_side=max(picture_limits.min_side, limits.min_side),
    )
    height, width = _decode_picture(pictures, 0, each).shape[:2]
    check_work(count, width, height, limits)
    info = _even_info(count, fps, (width, height), "pictures")
    return Clip(info, partial(_burst_frames, pictures, info, limits, each))


def _even_info(count: int, fps: float, size: tuple[int, int], container: str) -> ClipInfo:
    return ClipInfo(
        width=size[0],
        height=size[1],
        frames=count,
        duration_s=count / fps,
        fps=fps,
        variable_frame_rate=False,
        container=container,
        codec=container,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Picture:
    """A frame that was decoded in colour."""

    pixels: Plane

    def grey(self) -> Plane:
        return np.asarray(cv2.cvtColor(self.pixels, cv2.COLOR_RGB2GRAY), np.uint8)

    def rgb(self) -> Plane:
        return self.pixels


def _burst_frames(
    pictures: Sequence[bytes], info: ClipInfo, limits: ClipLimits, each: Limits
) -> Generator[Frame]:
    deadline = Deadline(limits)
    for index in range(len(pictures)):
        deadline.check()
        pixels = _decode_picture(pictures, index, each)
        height, width = pixels.shape[:2]
        if (width, height) != (info.width, info.height):
            raise FrameSizeMismatch(
                f"frame {index} is {width}x{height} pixels, the first {info.width}x{info.height}"
            )
        with deadline.paused():
            yield Frame(index, index / info.fps, _Picture(pixels))


def _decode_picture(pictures: Sequence[bytes], index: int, limits: Limits) -> Plane:
    try:
        return decode_image(pictures[index], limits)
    except InputError as fault:
        raise type(fault)(f"frame {index}: {fault}") from None


def _open_animation(data: bytes, limits: ClipLimits) -> Clip:
    """Open an animated WebP, by Pillow: FFmpeg decodes still ones only."""
    animation = read_animation(data)
    count, size = len(animation.seconds), (animation.width, animation.height)
    check_count(count)
    check_frames(count, limits)
    check_size(*size, limits)
    check_seconds(sum(animation.seconds), limits)
    check_work(count, *size, limits)
    starts = np.cumsum([0.0, *animation.seconds])
    fps = (count - 1) / float(starts[-2])
    info = replace(
        _even_info(count, fps, size, "webp"),
        duration_s=float(starts[-1]),
        variable_frame_rate=_varies(animation),
    )
    clip = Clip(info, partial(_animation_frames, data, starts[:-1].tolist(), limits))
    with closing(clip.frames()) as frames:
        next(frames)
    return clip


def _varies(animation: Animation) -> bool:
    """Whether the frames' whole milliseconds differ by more than rounding."""
    seconds = animation.seconds[:-1]
    return max(seconds) - min(seconds) > 0.0015  # noqa: PLR2004 - a millisecond, and a float's error


def _animation_frames(data: bytes, starts: Sequence[float], limits: ClipLimits) -> Generator[Frame]:
    deadline = Deadline(limits)
    try:
        with Image.open(io.BytesIO(data), formats=["WEBP"]) as picture:
            if getattr(picture, "n_frames", 1) != len(starts):
                raise BrokenClip("the clip is truncated or corrupt")
            for index, seconds in enumerate(starts):
                deadline.check()
                picture.seek(index)
                picture.load()
                pixels = np.array(to_rgb(picture))
                with deadline.paused():
                    yield Frame(index, seconds, _Picture(pixels))
    except InputError:
        raise
    except (*PARSER_FAULTS, Image.DecompressionBombError):
        raise BrokenClip("the clip is truncated or corrupt") from None
